"""Likelihood estimators against enumeration, float64: exact where they say so, else bounds in the order of theory.

Denoisers are random tables, exact of nothing, and the exact ones of the oracle's law. Whatever is drawn is gone
through: orders by patching the draw of one, chains by ``exhaust``.
"""

import itertools
import math
from unittest.mock import patch

import numpy as np
import pytest
import torch

from redraft import processes
from redraft.data import Packed
from redraft.evaluation import enumeration, estimators, importance, likelihood
from redraft.processes import Facts
from redraft.processes.d3pm import d3pm
from redraft.sampling import samplers

from .exhaust import law_at, outcomes
from .oracle import (
    LAW,
    ExactDenoiser,
    K,
    L,
    TableDenoiser,
    finite_nelbo,
    nelbo,
    posteriors,
    prior_law,
    sequences,
    state_number,
)
from .prescribed import random_law

TEXTS = sequences(K)
U = torch.full((1,), 0.7, dtype=torch.float64)  # idle in most of what is tested here


class Table(TableDenoiser):
    """A random law at every position of every state, which may lean on the time, and knows nothing."""

    def __init__(self, process, length=L, timed=False, **facts):
        super().__init__(random_law(process.V**length, length, process.K).double(), process.V)
        self.facts = Facts(mask_id=process.mask_id, time_conditioned=timed, **facts)

    def __call__(self, z, t=None, cond=None):
        said = super().__call__(z)
        return ((1 + t.view(-1, 1, 1)) * said).log_softmax(-1) if self.facts.time_conditioned else said


def rows_of(texts, valid=None):
    return {"ids": texts} if valid is None else {"ids": texts, "valid": valid.expand_as(texts)}


def found(name, denoiser, process, batch, seed=0, **options):
    """What an estimator says of each row's tokens that count, in all, (B,)."""
    how = estimators.get(name, denoiser, process, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        values = how.score(denoiser, process, batch, U.expand(len(batch["ids"])), generator)
    return (values * batch.get("valid", torch.ones_like(batch["ids"], dtype=torch.bool))).sum(1)


def orders(length):
    """Every order of so many tokens as the places they come at, (length!, length)."""
    return torch.tensor(list(itertools.permutations(range(length))))


def by_orders(denoiser, process, texts):
    """log p of each text in each order, (orders, texts), from calls of one text and one token: no code of ours."""
    length = texts.shape[1]
    out = torch.zeros(math.factorial(length), len(texts), dtype=torch.float64)
    for number, place in enumerate(orders(length)):
        for row, text in enumerate(texts):
            for i in range(length):
                hidden = place >= place[i]
                t = process.schedule.inverse(1 - hidden.double().mean()[None])
                z = torch.where(hidden, process.mask_id, text)
                out[number, row] += denoiser(z[None], t)[0, i, text[i]]
    return out


def assert_close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------------------------ orders


@pytest.mark.parametrize("name", ["enumeration", "any_order", "importance", "exact_elbo"])
@pytest.mark.parametrize("seed", [0, 1])
def test_of_an_exact_masked_denoiser_all_say_log_p(name, seed):
    """Every order of exact conditionals says log p, so that every estimator does, whatever it draws; 1e-10."""
    process = processes.masked(K)
    exact = ExactDenoiser(process)
    exact.facts = Facts(mask_id=K)
    assert_close(found(name, exact, process, rows_of(TEXTS), seed), -LAW.flatten().log())


@pytest.mark.parametrize("length", [2, 3])
@pytest.mark.parametrize("timed", [False, True])
def test_sets_are_the_law_of_one_token_at_a_time(length, timed):
    """The subset recursion is the mean over all orders, and a law: it sums to 1; 1e-10."""
    process = processes.masked(K, schedule="cosine")
    denoiser, texts = Table(process, length, timed), sequences(K, length)
    expected = by_orders(denoiser, process, texts).exp().mean(0)
    got = (-found("enumeration", denoiser, process, rows_of(texts))).exp()
    assert_close(got, expected)
    assert got.sum().item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("timed", [False, True])
def test_the_chain_rule_of_an_order_is_its_own(timed):
    """``any_order`` in every order, run through the code, is that order's log p; 1e-12."""
    process = processes.masked(K, schedule="cosine")
    denoiser, texts = Table(process, 3, timed), sequences(K, 3)
    every = by_orders(denoiser, process, texts)
    for place, expected in zip(orders(3), every, strict=True):
        with patch.object(importance, "random_places", lambda batch, _, place=place: place.expand_as(batch["ids"])):
            assert_close(found("any_order", denoiser, process, rows_of(texts)), -expected, 1e-12)


def test_importance_is_between_enumeration_and_the_nelbo():
    """E over all k-tuples of orders, run through the code: falls with k for every text, from the NELBO to -log p."""
    process = processes.masked(K)
    denoiser, texts = Table(process, 3), sequences(K, 3)[::4]
    exact = found("enumeration", denoiser, process, rows_of(texts))
    bounds = [found("exact_elbo", denoiser, process, rows_of(texts))]
    for k in (1, 2, 3):
        values = list[torch.Tensor]()
        for chosen in itertools.product(orders(3), repeat=k):
            drawn = iter(chosen)
            with patch.object(importance, "random_places", lambda batch, _, it=drawn: next(it).expand_as(batch["ids"])):
                values.append(found("importance", denoiser, process, rows_of(texts), particles=k))
        bounds.append(torch.stack(values).mean(0))
    assert_close(bounds[1], bounds[0])
    for wider, closer in itertools.pairwise(bounds[1:]):
        assert (wider - closer > 1e-3).all()
    assert (bounds[-1] - exact > 1e-3).all()


def test_the_nelbo_of_masks_is_the_sum_over_sets():
    """``exact_elbo`` averaged over a law = the integral over times, by quadrature; 1e-10."""
    process = processes.masked(K, schedule="cosine")
    denoiser = Table(process)
    got = LAW.flatten() @ found("exact_elbo", denoiser, process, rows_of(TEXTS))
    assert got.item() == pytest.approx(nelbo(process, denoiser), abs=1e-10)


def test_what_is_drawn_is_a_random_order():
    """All six orders of the tokens that count, as often as each other; what does not count has no place.

    600 draws; a chi-square this large has a chance of 1e-4 under even orders.
    """
    batch = rows_of(torch.zeros(600, 4, dtype=torch.long), torch.tensor([True, False, True, True]))
    places = importance.random_places(batch, torch.Generator().manual_seed(0))
    assert (places[:, 1] == -1).all()
    assert (places[:, [0, 2, 3]].sort(1).values == torch.arange(3)).all()
    number = state_number(places[:, [0, 2, 3]], 3)
    counts = number.unique(return_counts=True)[1].double()
    assert len(counts) == 6
    assert ((counts - 100) ** 2 / 100).sum() < 25.7


# ------------------------------------------------------------------------------------------------------------ chains

CHAINS = {
    "masked": lambda: processes.masked(K),
    "uniform": lambda: processes.uniform(K, schedule="cosine"),
    "hybrid": lambda: processes.hybrid(K),
    "hybrid_inside": lambda: processes.hybrid(K, mask_id=1),
    "spindle": lambda: processes.spindle(torch.tensor([0.5, -0.25, -0.25])),
    "d3pm_uniform": lambda: d3pm(K, "uniform", 3, [0.3, 0.4, 0.5]),
    "d3pm_gaussian": lambda: d3pm(K, "gaussian", 3, [0.3, 0.4, 0.5]),
    "d3pm_hybrid": lambda: d3pm(K, "hybrid", 3),
}


def start(process, length):
    """The law that sampling begins with: all masks, or uniform tokens; over the V ** length states."""
    if process.mask_id is None:  # D3PM's chains need not have forgotten all at t = 1
        return torch.full((process.V**length,), process.V**-length, dtype=torch.float64)
    return prior_law(process, length)


@pytest.mark.parametrize("name", CHAINS)
def test_enumerated_chains_are_the_law_of_the_ancestral_sampler(name):
    """-log p of every text = that of the sampler's own code over every outcome of its draws; 1e-10."""
    process = CHAINS[name]()
    denoiser = Table(process, timed=True)
    law = law_at(samplers.ancestral, process, denoiser, 3, law=start(process, L))
    got = found("enumeration", denoiser, process, rows_of(TEXTS), chain_steps=3)
    clean = [text for text in TEXTS.tolist() if process.mask_id not in text]
    expected = -law[[state_number(torch.tensor([text]), process.V).item() for text in clean]].log()
    assert_close(got[[TEXTS.tolist().index(text) for text in clean]], expected)


def pairs(process, steps, texts, valid=None):
    """log w of every chain of each text and its probability: (chains, texts) each, through the code."""
    denoiser, batch = Table(process, timed=True), rows_of(texts, valid)

    def run():
        return importance.log_weight(denoiser, process, batch, steps, None)

    every = list(outcomes(run, len(texts)))
    return torch.stack([value for value, _ in every]), torch.stack([weight for _, weight in every])


SMALL = {
    "masked": lambda: processes.masked(K, steps=2),
    "uniform": lambda: processes.uniform(2, schedule="cosine", steps=2),
    "hybrid": lambda: processes.hybrid(2, steps=2),
    "d3pm_gaussian": lambda: d3pm(2, "gaussian", 2, [0.4, 0.5]),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_chain_weighs_what_it_should(name):
    """E w = p and E[-log w] = the NELBO of T steps for every text; -log of the mean of k falls with k between them."""
    process = SMALL[name]()
    texts, denoiser = sequences(process.K), Table(process, timed=True)
    logs, chance = pairs(process, 2, texts)
    assert_close(chance.sum(0), torch.ones(len(texts)).double())
    exact, widest = (found(one, denoiser, process, rows_of(texts)) for one in ("enumeration", "exact_elbo"))
    assert_close(-(torch.where(chance > 0, logs.exp(), 0.0) * chance).sum(0).log(), exact)
    bounds = list[torch.Tensor]()
    for row in range(len(texts)):
        there = chance[:, row] > 0
        values, odds = merged(logs[there, row], chance[there, row])
        bounds.append(torch.stack([expected_bound(values, odds, k) for k in (1, 2, 3)]))
    each = torch.stack(bounds, 1)
    assert_close(each[0], widest)
    for wider, closer in itertools.pairwise([*each, exact]):
        assert (wider - closer > 1e-6).all()


def merged(values, odds):
    """Equal weights as one."""
    kept, which = values.round(decimals=10).unique(return_inverse=True)
    return kept, torch.zeros_like(kept).index_add(0, which, odds)


def expected_bound(values, odds, k):
    """E of ``importance.bound`` over all k-tuples of weights."""
    grids = torch.meshgrid(*[torch.arange(len(values))] * k, indexing="ij")
    chosen = torch.stack([grid.flatten() for grid in grids])
    return (importance.bound(values[chosen]) * odds[chosen].prod(0)).sum()


def test_particles_are_drawn_one_after_the_other():
    """The bound of k chains is that of k weights drawn from the same generator; 1e-12."""
    process = processes.uniform(K)
    denoiser, batch = Table(process, timed=True), rows_of(TEXTS)
    generator = torch.Generator().manual_seed(3)
    logs = torch.stack([importance.log_weight(denoiser, process, batch, 4, generator) for _ in range(5)])
    got = found("importance", denoiser, process, batch, seed=3, particles=5, chain_steps=4)
    assert_close(got, importance.bound(logs), 1e-12)
    assert_close(importance.bound(logs), -(logs.exp().mean(0)).log(), 1e-12)


@pytest.mark.parametrize("name", [*SMALL, "d3pm_uniform"])
def test_all_steps_and_all_z_are_the_nelbo_of_the_chain(name):
    """``exact_elbo`` averaged over a law = D3PM's sum by the oracle; 1e-10. ``steps`` has the same mean.

    4000 draws of each text, within 4.5 standard errors: a false alarm below 1e-4 for all texts together.
    """
    process = processes.masked(K, steps=5) if name == "masked" else processes.uniform(K, steps=5)
    if name in ("hybrid", "d3pm_gaussian", "d3pm_uniform"):
        chain = {"gaussian": [0.4, 0.5], "uniform": [0.3, 0.4, 0.5]}
        kind = name.removeprefix("d3pm_")
        process = processes.hybrid(K, steps=5) if name == "hybrid" else d3pm(K, kind, len(chain[kind]), chain[kind])
    denoiser = Table(process, timed=True)
    exact = found("exact_elbo", denoiser, process, rows_of(TEXTS))
    prior = process.prior_kl(TEXTS).sum(1)
    assert (LAW.flatten() @ (exact - prior)).item() == pytest.approx(
        finite_nelbo(process, denoiser, process.steps), abs=1e-10
    )
    many = rows_of(TEXTS.repeat(4000, 1))
    drawn = found("steps", denoiser, process, many).view(4000, -1)
    assert ((drawn.mean(0) - exact).abs() < 4.5 * drawn.std(0) / math.sqrt(4000) + 1e-12).all()


def test_summing_the_steps_leaves_less_to_chance():
    """Var of ``steps`` is below that of a drawn step, text by text (2000 draws, factors of 2 and more)."""
    process = processes.masked(K, steps=6)
    denoiser, texts = Table(process), TEXTS.repeat(2000, 1)
    summed = found("steps", denoiser, process, rows_of(texts)).view(2000, -1)
    u = torch.rand(len(texts), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = estimators.over_steps(denoiser, process, rows_of(texts), u, None).sum(1).view(2000, -1)
    assert (drawn.var(0) > 1.5 * summed.var(0)).all()


def test_many_steps_tend_to_one_token_at_a_time():
    """Masked chains of T steps: their law tends to that of random orders, at a rate of 1 / T."""
    process = processes.masked(K)
    denoiser = Table(process)
    limit = found("enumeration", denoiser, process, rows_of(TEXTS))
    gaps = [
        (found("enumeration", denoiser, process, rows_of(TEXTS), chain_steps=T) - limit).abs().max().item()
        for T in (16, 32, 64)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("make", [lambda: processes.uniform(K), lambda: processes.hybrid(K)])
def test_an_exact_denoiser_in_many_steps_has_the_law_itself(make):
    """Enumerated chains of the exact cavity come closer to the law the more steps; both bounds lie above them."""
    process = make()
    exact = ExactDenoiser(process)
    gaps = list[float]()
    for T in (4, 16, 64):
        found_p = found("enumeration", exact, process, rows_of(TEXTS), chain_steps=T)
        gaps.append((LAW.flatten() @ (found_p + LAW.flatten().log())).item())  # a KL
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 2e-3


# ------------------------------------------------------------------------------------------------------ what is known


@pytest.mark.parametrize("name", ["enumeration", "any_order", "importance", "exact_elbo"])
def test_what_does_not_count_is_given(name):
    """Of masks: the first token known, each estimator of the exact denoiser says -log p(second | first); 1e-10."""
    process = processes.masked(K)
    exact = ExactDenoiser(process)
    exact.facts = Facts(mask_id=K)
    expected = -(LAW / LAW.sum(1, keepdim=True)).log().flatten()
    assert_close(found(name, exact, process, rows_of(TEXTS, torch.tensor([[False, True]]))), expected)


@pytest.mark.parametrize("estimator", ["vlb", "steps", "exact_elbo"])
def test_what_does_not_count_stands_clean_at_every_time(estimator):
    """Also where t is drawn: a masked denoiser that is told t sees the known token in every call."""
    process = processes.masked(K) if estimator == "vlb" else processes.masked(K, steps=4)
    seen = list[torch.Tensor]()

    class Watching(Table):
        def __call__(self, z, t=None, cond=None):
            seen.append(z)
            return super().__call__(z, t)

    denoiser = Watching(process, timed=True)
    batch = rows_of(TEXTS, torch.tensor([[True, False]]))
    found(estimator, denoiser, process, batch)
    assert seen
    whole = torch.cat(seen)
    assert (whole[:, 1] != K).all()
    assert (whole[:, 0] == K).any()


@pytest.mark.parametrize("name", ["masked", "uniform", "hybrid", "d3pm_gaussian"])
def test_known_tokens_of_a_chain(name):
    """The law of what is free beside known tokens, noisy or clean: by loops over states, and E w; 1e-10."""
    process = SMALL[name]()
    texts, valid = sequences(process.K), torch.tensor([[False, True]])
    denoiser = Table(process, timed=True)
    expected = [-math.log(beside(process, denoiser, text)) for text in texts]
    got = found("enumeration", denoiser, process, rows_of(texts, valid))
    assert_close(got, torch.tensor(expected, dtype=torch.float64))
    logs, chance = pairs(process, 2, texts, valid)
    assert_close(-(torch.where(chance > 0, logs.exp(), 0.0) * chance).sum(0).log(), got)
    widest = -(torch.where(chance > 0, logs, 0.0) * chance).sum(0)
    assert_close(found("exact_elbo", denoiser, process, rows_of(texts, valid)), widest)


def beside(process, denoiser, text, steps=2):
    """p(second token | the first, which has its own noise or, amid masks, none), one state at a time."""
    truth = torch.nn.functional.one_hot(text, process.K).double()[None]
    prior = start(process, 1)
    last = process.marginal(truth, torch.ones(1, dtype=torch.float64))[0, 0]
    still = torch.nn.functional.one_hot(text[0], process.V).double()
    masks = process.name == "masked"
    law = torch.outer(still if masks else last, prior)
    for i in range(steps, 0, -1):
        t, s = (torch.tensor([time], dtype=torch.float64) for time in (i / steps, (i - 1) / steps))
        after = torch.zeros_like(law)
        for a, b in itertools.product(range(process.V), repeat=2):
            if law[a, b] > 0:
                z = torch.tensor([[a, b]])
                p = process.posterior(denoiser(z, t).exp(), z, t, s)[0, 1]
                q = still if masks else process.posterior(truth, z, t, s)[0, 0]
                after += law[a, b] * torch.outer(q, p)
        law = after
    return (law[text[0], text[1]] / law[text[0]].sum()).item()


# ------------------------------------------------------------------------------------------------------------ windows


class Recalls:
    """Says a law that depends on the sum of the clean tokens it sees, and on how many masks there are."""

    def __init__(self, mask_id, attention="full", size=5):
        logits = torch.randn(size, 8, size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        self.logp, self.size = logits.log_softmax(-1), size
        self.facts = Facts(mask_id=mask_id, attention=attention)

    def __call__(self, z, t, cond=None):
        if self.facts.attention == "causal":
            before = z.cumsum(1) - z
            return self.logp[before % self.size, torch.arange(z.shape[1])]
        hidden = z == self.facts.mask_id
        total = torch.where(hidden, 0, z).sum(1) % self.size
        return self.logp[total, hidden.sum(1)][:, None].expand(-1, z.shape[1], -1)


TEXT = torch.tensor([1, 4, 0, 2, 3, 3, 1, 0, 4, 2, 1])


def windows(stride, length=4):
    from redraft.data import pack

    return pack([TEXT.tolist()], length, None, stride=stride)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("attention", ["causal", "full"])
def test_windows_score_every_token_once_given_those_before(attention, stride):
    """Stride s: by hand, from what a window of 4 holds; of masks by the mean over orders of the new; 1e-10."""
    process = processes.masked(5)
    denoiser = Recalls(5, attention)
    estimator = "exact_elbo" if attention == "full" else None
    got = likelihood(denoiser, process, windows(stride), estimator=estimator)
    expected, at = 0.0, 0
    while at < len(TEXT):
        start = 0 if at == 0 else at + stride - 4
        stop = min(start + 4, len(TEXT))
        expected += scored(denoiser, TEXT[start:stop], at - start, 4)
        at = stop
    assert got.tokens == len(TEXT)
    assert got.nats_per_token == pytest.approx(expected / len(TEXT), abs=1e-10)
    assert got.protocol["stride"] == stride
    assert got.protocol["context"] == 4


def scored(denoiser, window, known, length):
    """Nats of the window's tokens behind the known ones, padded to a length with zeros."""
    row = torch.cat([window, window.new_zeros(length - len(window))])
    free = range(known, len(window))
    if denoiser.facts.attention == "causal":
        logp = denoiser(row[None], None)[0]
        return -sum(logp[i, row[i]].item() for i in free)
    total, every = 0.0, list(itertools.permutations(free))
    for order in every:
        for step, i in enumerate(order):
            z = row.clone()
            z[list(order[step:])] = 5
            total -= denoiser(z[None], None)[0, i, row[i]].item()
    return total / len(every)


def test_windows_keep_documents_apart():
    """Segments are numbered from a window's own start; what is past the text has none."""
    from redraft.data import pack

    found = pack([[1, 2, 3], [4, 5, 6]], 4, None, isolate_documents=True, stride=3)
    assert found.ids.tolist() == [[1, 2, 3, 4], [4, 5, 6, 0]]
    assert found.segments.tolist() == [[0, 0, 0, 1], [0, 0, 0, -1]]
    assert found.valid.tolist() == [[True] * 4, [False, True, True, False]]


def test_a_stride_of_the_whole_row_is_plain_rows():
    process, denoiser = processes.masked(5), Recalls(5)
    from redraft.data import pack

    plain = pack([TEXT.tolist()], 4, None, keep_tail=True)
    one, other = (likelihood(denoiser, process, rows, estimator="exact_elbo") for rows in (windows(4), plain))
    assert one.nats_per_token == pytest.approx(other.nats_per_token, abs=1e-12)


# ------------------------------------------------------------------------------------------------------------ refused


def packed(texts):
    return Packed(texts.numpy().astype(np.int32), None, None, 0, texts.numel())


def wide():
    process = processes.masked(K)
    return process, Recalls(K, size=K), torch.zeros(2, 13, dtype=torch.long)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (wide, {"estimator": "enumeration"}, r"13 tokens, which have 2\^13 sets, at most 4096"),
        (wide, {"estimator": "exact_elbo"}, r"exact_elbo.*2\^13 sets"),
        (wide, {"estimator": "enumeration", "chain_steps": 2}, r"13 tokens, which have 2\^13 states, at most 4096"),
        (wide, {"estimator": "importanse"}, "did you mean 'importance'"),
        (wide, {"estimator": "any_order", "particles": 3}, "particles=3 goes with estimator='importance'"),
        (wide, {"chain_steps": 3}, "chain_steps=3 goes with estimator='importance' or estimator='enumeration'"),
        (wide, {"estimator": "importance", "particles": 0}, "particles=0: take at least one"),
        (wide, {"estimator": "enumeration", "chain_steps": 0}, "chain_steps=0"),
        (wide, {"estimator": "steps"}, "steps' of a masked process in continuous time"),
    ],
)
def test_what_does_not_fit_is_refused(make, options, said):
    process, denoiser, texts = make()
    with pytest.raises(ValueError, match=said):
        likelihood(denoiser, process, packed(texts), **options)


@pytest.mark.parametrize(
    ("process", "facts", "name", "said"),
    [
        (processes.uniform(K), {}, "any_order", "uniform process: tokens are written in an order among masks only"),
        (processes.uniform(K), {}, "exact_elbo", "an integral over t"),
        (processes.masked(K), {"timed": True}, "exact_elbo", "an integral over t"),
        (processes.masked(K), {"attention": "causal"}, "importance", "'causal', which has an estimator of its own"),
        (processes.masked(K), {"attention": "permuted"}, "enumeration", "'permuted'"),
        (processes.uniform(K), {"self_conditioned": True}, "enumeration", "self-conditioned"),
    ],
)
def test_models_that_do_not_fit_are_refused(process, facts, name, said):
    with pytest.raises(ValueError, match=said):
        estimators.get(name, Table(process, **facts), process)


def test_a_permuted_denoiser_writes_in_no_steps():
    process = processes.masked(K)
    with pytest.raises(ValueError, match="chain_steps=2 of a permuted"):
        estimators.get("importance", Table(process, attention="permuted"), process, chain_steps=2)


def test_what_draws_nothing_is_measured_once():
    """However many draws are asked for: enumeration and ``exact_elbo`` say 1, and only the first is no bound."""
    process, texts = processes.masked(K), packed(TEXTS)
    names = ("enumeration", "exact_elbo", "any_order")
    told = [likelihood(Table(process), process, texts, draws=3, estimator=name) for name in names]
    assert [(one.draws, one.is_bound) for one in told] == [(1, False), (1, True), (3, True)]


def test_rows_of_noise_that_reaches_tokens_have_all_states():
    process = processes.uniform(K)
    with pytest.raises(ValueError, match=r"8 tokens, which have 3\^8 states"):
        found("enumeration", ExactDenoiser(process), process, rows_of(torch.zeros(1, 8, dtype=torch.long)))


@pytest.mark.parametrize(
    ("process", "facts", "said"),
    [
        (processes.uniform(5), {}, "stride=2 of a uniform process: its noise reaches every token"),
        (
            processes.masked(5),
            {"attention": "block", "block": 4},
            "knows 2 tokens, which must be whole blocks of 4 for this model; take stride=4",
        ),
    ],
)
def test_windows_are_refused_where_nothing_can_be_known(process, facts, said):
    with pytest.raises(ValueError, match=said):
        likelihood(Table(process, 4, **facts), process, windows(2))


def test_steps_of_the_chain_are_the_processes_own_unless_given():
    process = processes.uniform(K, steps=7)
    denoiser = Table(process)
    assert "of 7 ancestral" in estimators.get("enumeration", denoiser, process).name
    assert "of 2 ancestral" in estimators.get("enumeration", denoiser, process, chain_steps=2).name
    assert "128 ancestral" in estimators.get("importance", denoiser, processes.uniform(K)).name
    assert "8 random orders" in estimators.get("importance", Table(processes.masked(K)), processes.masked(K)).name


def test_posteriors_of_the_toy_are_normalised():
    """What ``ExactDenoiser`` stands on here: rows of exact conditionals sum to 1."""
    exact = posteriors(LAW, torch.ones(1, L, K, dtype=torch.float64), "cavity")
    assert_close(exact.sum(-1), torch.ones(1, L).double())


def test_memory_is_bounded_and_moves_no_value(monkeypatch):
    process = processes.hybrid(K)
    denoiser = Table(process)
    whole = found("enumeration", denoiser, process, rows_of(TEXTS), chain_steps=2)
    sizes = list[int]()

    class Counts(Table):
        def __call__(self, z, t=None, cond=None):
            sizes.append(len(z))
            return super().__call__(z, t)

    monkeypatch.setattr(enumeration, "NUMBERS_AT_ONCE", 16 * 3)
    assert_close(found("enumeration", Counts(process), process, rows_of(TEXTS), chain_steps=2), whole, 1e-12)
    assert max(sizes) == 3
