"""Integrals over times, and whose law a bound is of: by quadrature and enumeration, float64.

The estimator runs through its own code at every node of u and every z; the truth is the integrand alone, in log t.
"""

import math
from unittest.mock import patch

import numpy as np
import pytest
import torch

from redraft import processes
from redraft.data import Packed, pack
from redraft.evaluation import estimators, likelihood, times
from redraft.processes import Facts
from redraft.processes.categorical import T_EDGE

from .oracle import INFORMATION, LAW, ExactDenoiser, H, K, L, TableDenoiser, noisy_pairs, quadrature, sequences
from .prescribed import random_law

PROCESSES = {
    "masked": lambda: processes.masked(K),
    "masked_cosine": lambda: processes.masked(K, schedule="cosine"),
    "uniform": lambda: processes.uniform(K),
    "uniform_cosine": lambda: processes.uniform(K, schedule="cosine"),
    "uniform_polynomial": lambda: processes.uniform(K, schedule="polynomial"),
    "hybrid": lambda: processes.hybrid(K),
    "hybrid_geometric": lambda: processes.hybrid(K, schedule="geometric"),
    "hybrid_polynomial": lambda: processes.hybrid(K, schedule="polynomial"),
    "spindle": lambda: processes.spindle(torch.tensor([0.5, -0.25, -0.25])),
    "learned": lambda: processes.learned(torch.tensor([0.5, 0.0, -1.0])),
    "learned_late": lambda: processes.learned(torch.tensor([0.0, -1.0, -3.0])),
}

KINDS = [name for name in PROCESSES if name.split("_")[0] in ("masked", "uniform", "hybrid")]


class Table(TableDenoiser):
    """A random law at every position of every state, and of the time."""

    def __init__(self, process):
        super().__init__(random_law(process.V**L, L, process.K).double(), process.V)
        self.facts = Facts(mask_id=process.mask_id, time_conditioned=True)

    def __call__(self, z, t=None, cond=None):
        return ((1 + t.view(-1, 1, 1)) * super().__call__(z)).log_softmax(-1)


def every_draw(process, denoiser, score=estimators.over_times):
    """The mean of an estimator over u and z, for a text of LAW: nodes of u, and every z by its chance."""
    texts, states = sequences(process.K), sequences(process.V)
    ids, z = texts.repeat_interleave(len(states), 0), states.repeat(len(texts), 1)
    chance, total = torch.zeros(0), 0.0

    def told(x0, t, generator):
        nonlocal chance
        q = process.marginal(torch.nn.functional.one_hot(x0, process.K).double(), t)
        chance = q.gather(-1, z[..., None])[..., 0].prod(1)
        return z

    with patch.object(process, "corrupt", told):
        for u, weight in zip(*quadrature(300), strict=True):
            found = score(denoiser, process, {"ids": ids}, u.expand(len(ids)), None).sum(1)
            mean = torch.where(chance > 0, found * chance, 0.0).view(len(texts), -1).sum(1)
            total += (weight * (LAW.flatten() @ mean)).item()
    return total


def integral(process, denoiser, least):
    """int from ``least`` to 1 of the integrand, over LAW: dt = t dy, y = log t."""
    node, weight = np.polynomial.legendre.leggauss(400)
    y = torch.tensor((node - 1) / 2) * -math.log(least)
    x0, z, t, probability = noisy_pairs(process, y.exp())
    dt = (torch.tensor(weight / 2) * -math.log(least) * y.exp())[torch.searchsorted(y.exp(), t)]
    return (process.nelbo(denoiser(z, t), x0, z, t).sum(-1) * probability * dt).sum().item()


@pytest.mark.parametrize("name", PROCESSES)
def test_a_drawn_time_is_the_integral(name):
    """The mean over u = int of the integrand dt, down to where ``prior_kl`` takes over, and ``prior_kl``; 2e-5."""
    process = PROCESSES[name]()
    denoiser = Table(process)
    least = process.schedule.inverse(torch.tensor(1 - 2e-14, dtype=torch.float64)).item() if name in KINDS else T_EDGE
    expected = integral(process, denoiser, least) + LAW.flatten() @ process.prior_kl(sequences(K)).sum(1)
    assert every_draw(process, denoiser) == pytest.approx(float(expected), abs=2e-5)


def back_and_forth():
    """Matrices that hide tokens, then show what was hidden as token 0, then spread all: what was possible is not."""
    one, even = torch.eye(4, dtype=torch.float64), torch.full((4,), 0.25, dtype=torch.float64)
    hide, show, spread = 0.95 * one + 0.05 * one[3], one.clone(), (one + even) / 2
    show[3] = one[0]
    return processes.Matrix(K, torch.stack([hide, show, *[spread] * 4]), even)


CHAINS = {
    "masked_within": lambda: processes.masked(4, mask_id=3),
    "masked_steps": lambda: processes.masked(K, steps=6),
    **{f"d3pm_{kind}": (lambda kind=kind: processes.d3pm(K, kind, 6)) for kind in ("uniform", "absorbing", "hybrid")},
    "d3pm_band": lambda: processes.d3pm(5, "band", 6, width=3),
    "d3pm_gaussian": lambda: processes.d3pm(K, "gaussian", 6),
    "back_and_forth": back_and_forth,
}


@pytest.mark.parametrize("name", [*PROCESSES, *CHAINS])
@pytest.mark.parametrize("rank", [[0, 0, 0], [0, 0, 1]])
def test_noise_that_is_drawn_more_often_weighs_less(name, rank):
    """E_q_t' w f = E_q_t f for any f of z, here that of a table, over all z; weights stay below 4; late, all are 1."""
    process = {**PROCESSES, **CHAINS}[name]()
    parts = torch.tensor(rank)
    z = sequences(process.V, 3)
    ids = torch.tensor([[0, 2, 1]]).expand(len(z), 3)
    free = torch.tensor([True, name in ("uniform", "d3pm_band"), True]).expand_as(z)
    f = torch.rand(len(z), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stays = (z == ids) | free  # what is not free is never noised
    least = times.earliest(process, ids, free, parts)
    for early, late in ((1 / 6, 4 / 6), (5 / 6, 2 / 6), (1.0, 1.0)):
        t = torch.tensor([early, late], dtype=torch.float64)[: rank[-1] + 1].expand(len(z), -1)
        chances = list[torch.Tensor]()

        def told(x0, later, generator, chances=chances):
            law = process.marginal(torch.nn.functional.one_hot(x0, process.K).double(), later)
            every = torch.where(free, law.gather(-1, z[..., None])[..., 0], 1.0).prod(1)
            chances.append(torch.where(stays.all(1), every, 0.0))
            return z

        with patch.object(process, "corrupt", told):
            drawn, weight = times.noised(process, ids, free, parts, t, least, None)
        assert (drawn[stays.all(1)] == z[stays.all(1)]).all()
        both = torch.stack([weight[:, parts == part][:, 0] for part in range(rank[-1] + 1)]).prod(0)
        found = torch.where(chances[0] > 0, chances[0] * both * f, 0.0).sum()
        told(ids, t[:, parts], None)
        assert chances[0].sum() == pytest.approx(1, abs=1e-12)
        assert found.item() == pytest.approx((chances[1] * f).sum().item(), abs=1e-12)
        assert both[chances[0] > 0].max() < 4 ** (1 + rank[-1])
        if early == 1:
            assert (weight[chances[0] > 0] == 1).all()


@pytest.mark.parametrize("kind", ["band", "gaussian", "neighbour"])
def test_weights_stay_small_where_a_chain_jumps(kind):
    """Matrices have no times between their steps: none at which a long row is noised a little may be stepped over."""
    options = {"band": {"width": 5}, "neighbour": {"embeddings": torch.eye(27)}}.get(kind, {})
    process = processes.d3pm(27, kind, 6, [0.001, 0.005, 0.3, 0.5, 0.8, 1.0], **options)
    ids = torch.full((1, 60), 13)
    free, rank = torch.ones_like(ids, dtype=torch.bool), times.whole(ids)
    least = times.earliest(process, ids, free, rank)
    for step in range(1, 7):
        t = torch.full((1, 1), step / 6, dtype=torch.float64)
        with patch.object(process, "corrupt", lambda x0, t, generator: x0):
            assert times.noised(process, ids, free, rank, t, least, None)[1].max() < math.e


def test_a_part_without_free_tokens_is_no_search():
    """It weighs 1 and stands clean; and its time is found in as many evaluations as any other's."""
    process, ids, rank = processes.masked(K), torch.zeros(2, 4, dtype=torch.long), torch.tensor([0, 0, 1, 1])
    free = torch.tensor([[True, True, False, False], [False] * 4])
    with patch.object(process, "log_q", wraps=process.log_q) as asked:
        least = times.earliest(process, ids, free, rank)
    assert asked.call_count < 100
    z, weight = times.noised(process, ids, free, rank, torch.full((2, 2), 1e-9), least, None)
    assert (z[~free] == 0).all()
    assert (weight[~free] == 1).all()


@pytest.mark.parametrize("name", KINDS)
def test_no_time_is_drawn_at_which_noise_rounds_to_none(name):
    """The times of training too: 1 - alpha of t^2 rounds to 0 below t = 1e-8, and 0 / 0 is the integrand there."""
    process = PROCESSES[name]()
    u = torch.cat([torch.zeros(1), torch.logspace(-9, 0, 19)]).double()
    x0 = torch.zeros(len(u), L, dtype=torch.long)
    logp = torch.full((len(u), L, K), -math.log(K))
    for t, _ in (process.times(u), times.spread_times(process, u)):
        assert process.nelbo(logp, x0, x0, t).isfinite().all()


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("u", [0.0, 1e-9, 1 - 1e-16])
def test_the_ends_are_numbers(name, u):
    """At u = 0 and 1 every z has a finite integrand, in float32 too."""
    process = PROCESSES[name]()
    texts, states = sequences(K), sequences(process.V)
    ids, z = texts.repeat_interleave(len(states), 0), states.repeat(len(texts), 1)
    z = z if process.name in ("uniform", "hybrid") else torch.where(z == K, K, ids)
    times = torch.full((len(ids),), u, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        denoiser = Table(process)
        denoiser.table = denoiser.table.to(dtype)
        with patch.object(process, "corrupt", lambda x0, t, generator: z):
            assert estimators.over_times(denoiser, process, {"ids": ids}, times, None).isfinite().all()


# ------------------------------------------------------------------------------------------------------------- blocks


class OneBlock:
    """A row that is one block of a block model: the table on the noisy half of the two streams; and what it saw."""

    def __init__(self, process, length=L, block=L):
        self.table, self.length, self.seen = Table(process) if length == L else None, length, list[torch.Tensor]()
        self.facts = Facts(mask_id=process.mask_id, attention="block", block=block, time_conditioned=True)

    def __call__(self, z, t, cond=None):
        self.seen.append(z[:, : self.length])
        if self.table is None:
            return torch.full((*z.shape, K), -math.log(K), dtype=torch.float64)
        said = self.table(z[:, : self.length], t[:, 0])
        return torch.cat([said, said], 1)


def test_a_drawn_time_of_a_block_is_the_integral():
    """Of one block the mean over u and z is the masked integral, 2e-5."""
    process = processes.masked(K)
    denoiser = OneBlock(process)
    found = every_draw(process, denoiser, estimators.over_block_times)
    assert found == pytest.approx(integral(process, denoiser.table, 1e-13), abs=2e-5)


@pytest.mark.parametrize("name", ["masked", "uniform", "hybrid", "block"])
def test_squares_stay_bounded_where_noise_is_rare(name):
    """E of the square of a draw as u falls to 0, over z: error bars need it. At t = u it grows like 1 / u."""
    process = processes.masked(K) if name == "block" else PROCESSES[name]()
    denoiser = OneBlock(process) if name == "block" else Table(process)
    score = estimators.over_block_times if name == "block" else estimators.over_times
    z, ids = sequences(process.V), torch.zeros(process.V**L, L, dtype=torch.long)
    chances = list[torch.Tensor]()

    def told(x0, t, generator):
        t = t if t.ndim == 1 else t[:, 0]
        q = process.marginal(torch.nn.functional.one_hot(x0, process.K).double(), t)
        chances.append(q.gather(-1, z[..., None])[..., 0].prod(1))
        return z

    with patch.object(process, "corrupt", told):
        for u in (1e-2, 1e-4, 1e-6):
            found = score(denoiser, process, {"ids": ids}, torch.full((len(ids),), u, dtype=torch.float64), None)
            assert (torch.where(chances[-1] > 0, found.sum(1) ** 2, 0.0) * chances[-1]).sum() < 50


@pytest.mark.parametrize("steps", [None, 4])
def test_known_tokens_of_a_block_stand_clean(steps):
    """Where a block model reads t what does not count is never hidden, nor scored."""
    process = processes.masked(K, steps=steps)
    denoiser = OneBlock(process, 6, 3)
    rows = Packed(np.zeros((40, 6), np.int32), np.tile([False, False, True, True, True, False], (40, 1)), None, 0, 120)
    likelihood(denoiser, process, rows)
    seen = torch.cat(denoiser.seen) == K
    assert not seen[:, [0, 1, 5]].any()
    assert (seen[:, 2:5].sum(0) > 20).all()


@pytest.mark.parametrize(("length", "stride", "fits"), [(10, 6, True), (10, 4, False), (12, 4, True), (12, 6, False)])
def test_what_a_window_knows_is_whole_blocks(length, stride, fits):
    """Blocks are counted from a row's own start, so it is length - stride that they must divide."""
    process = processes.masked(K)
    rows = pack([[0, 1, 2] * 8], length, None, stride=stride)
    if fits:
        assert likelihood(OneBlock(process, length, 4), process, rows).tokens == 24
    else:
        with pytest.raises(ValueError, match=rf"stride={stride} .* knows {length - stride} tokens.* blocks of 4"):
            likelihood(OneBlock(process, length, 4), process, rows)


# ------------------------------------------------------------------------------------------------------- whose law


def mean_nats(name, process, denoiser, **options):
    """What an estimator that draws nothing says of LAW, nats per text."""
    how, texts = estimators.get(name, denoiser, process, **options), sequences(K)
    assert not how.draws
    found = how.score(denoiser, process, {"ids": texts}, torch.zeros(len(texts)), None).sum(1)
    return float(LAW.flatten() @ found)


def test_a_bound_is_of_one_law_and_may_lie_below_anothers_truth():
    """Of exact conditionals the NELBO of masks is H; written in one step the tokens are apart, and -log p is H + I.

    So the continuous bound lies below what is exact of few steps. The bound of that chain does not.
    """
    process = processes.masked(K)
    exact = ExactDenoiser(process)
    exact.facts = Facts(mask_id=K)
    bound, chain = mean_nats("exact_elbo", process, exact), mean_nats("enumeration", process, exact, chain_steps=1)
    assert bound == pytest.approx(H, abs=1e-6)
    assert chain == pytest.approx(H + INFORMATION, abs=1e-6)
    stepped = processes.masked(K, steps=1)
    assert mean_nats("exact_elbo", stepped, exact) == pytest.approx(chain, abs=1e-9)


def test_a_bound_of_steps_may_lie_below_the_continuous_one():
    """A denoiser that knows all where all is hidden, and nothing later: one step costs nothing, many steps do."""
    process, one_step = processes.masked(2), processes.masked(2, steps=1)
    table = torch.full((3**L, L, 2), math.log(0.5), dtype=torch.float64)
    table[-1] = torch.tensor([0.0, -torch.inf])
    denoiser = TableDenoiser(table, 3)
    denoiser.facts = Facts(mask_id=2)
    batch, u = {"ids": torch.zeros(1, L, dtype=torch.long)}, torch.zeros(1)
    found = [
        estimators.get("exact_elbo", denoiser, one).score(denoiser, one, batch, u, None).sum().item()
        for one in (one_step, process)
    ]
    assert found == pytest.approx([0.0, math.log(2)], abs=1e-12)
