"""Times and categorical draws: unbiased, a function of the key alone, and true to the smallest probability.

Monte Carlo checks have fixed seeds; under a random seed a correct implementation would fail one with probability below
1e-6 (five standard errors, or a chi-square tail below 1e-7).
"""

import math

import pytest
import torch

from redraft import objectives, processes, randomness
from redraft.processes import time

from .oracle import chi_square_tail

NAMES = ["stratified", "uniform"]


@pytest.mark.parametrize("name", NAMES)
def test_times_lie_between_data_and_noise(name):
    for step in range(50):
        u = time.draw(name, (0, step), range(64), 64)
        assert u.shape == (64,)
        assert u.dtype == torch.float64
        assert ((u >= 0) & (u < 1)).all()


@pytest.mark.parametrize("make", [processes.masked, processes.uniform, processes.hybrid])
def test_no_loss_is_taken_at_an_end(make):
    """The draws that would be 0 or 1 exactly, where integrands are 0 times infinity, are kept T_EDGE away."""
    process = make(3)
    batch = {"ids": torch.tensor([[0, 1, 2]] * 4)}
    u = torch.tensor([0.0, 1e-300, 0.5, 1 - 2**-53], dtype=torch.float64)
    z, t, weight = objectives.corrupt(process, batch["ids"], u, torch.Generator().manual_seed(0))
    assert ((t > 0) & (t < 1)).all()
    assert weight.isfinite().all()
    logp = torch.full((4, 3, 3), 1 / 3, dtype=torch.float64).log()
    assert process.nelbo(logp, batch["ids"], z, t).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_times_belong_to_the_global_batch(name):
    """Any split of a global batch into processes and accumulated parts draws the same times."""
    whole = time.draw(name, (3, 17), range(24), 24)
    for ranks, parts in ((1, 4), (2, 3), (4, 1), (3, 8)):
        size = 24 // (ranks * parts)
        pieces = [list(range(i * size, (i + 1) * size)) for i in range(ranks * parts)]
        split = torch.cat([time.draw(name, (3, 17), piece, 24) for piece in pieces])
        assert torch.equal(split, whole)
    strided = [time.draw(name, (3, 17), range(rank, 24, 4), 24) for rank in range(4)]
    assert torch.equal(torch.stack(strided, 1).flatten(), whole)


@pytest.mark.parametrize("name", NAMES)
def test_times_depend_on_seed_and_step(name):
    one = time.draw(name, (3, 17), range(8), 8)
    assert torch.equal(one, time.draw(name, (3, 17), range(8), 8))
    for keys in ((3, 18), (4, 17), (17, 3)):
        assert not torch.equal(one, time.draw(name, keys, range(8), 8))


def test_stratified_times_are_evenly_spread():
    """One shared shift: sorted, the times of a batch are 1 / N apart, round the circle."""
    t = time.draw("stratified", (0, 0), range(40), 40).sort().values
    torch.testing.assert_close(t.diff(), torch.full((39,), 1 / 40, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_each_time_is_uniform(name):
    """Every single position's time is uniform over the steps, so each row's loss is unbiased on its own."""
    draws = torch.stack([time.draw(name, (1, step), range(4), 4) for step in range(3000)])
    for position in range(4):
        counts = torch.bincount((draws[:, position] * 20).long(), minlength=20).double()
        assert chi_square_tail(counts, torch.full((20,), 0.05, dtype=torch.float64)) > 1e-7


def test_stratified_times_are_unbiased_and_steadier():
    """Batch means of f(t) = exp(2 t): both unbiased (five standard errors), with the variances of theory.

    Independent draws: Var f / N. One shared shift: the error is that of a rectangle rule, uniform over f(1) - f(0)
    divided by N, so the variance is (f(1) - f(0))^2 / 12 N^2 to leading order.
    """
    integral, size, steps = (math.exp(2) - 1) / 2, 16, 1500
    second = (math.exp(4) - 1) / 4
    variances = {}
    for name in NAMES:
        means = torch.stack([(2 * time.draw(name, (2, step), range(size), size)).exp().mean() for step in range(steps)])
        variances[name] = means.var().item()
        assert abs(means.mean().item() - integral) < 5 * math.sqrt(variances[name] / steps)
    assert variances["uniform"] == pytest.approx((second - integral**2) / size, rel=0.2)
    assert variances["stratified"] == pytest.approx((math.exp(2) - 1) ** 2 / 12 / size**2, rel=0.2)
    assert variances["stratified"] < variances["uniform"] / 10


def test_unknown_time_sampler():
    with pytest.raises(ValueError, match=r"stratifed.*did you mean 'stratified'"):
        time.draw("stratifed", (0,), range(2), 2)


# ------------------------------------------------------------------------------------------ categorical draws (6.1)


def draw(probs: list[float] | torch.Tensor, u: torch.Tensor, monkeypatch) -> torch.Tensor:
    """``categorical`` of the same probabilities for every given uniform ``u``."""
    probs = torch.as_tensor(probs, dtype=torch.float64)
    monkeypatch.setattr(randomness, "rand", lambda shape, *_: u.reshape(shape))
    return randomness.categorical(probs.expand(1, len(u), -1), None)[0]


def test_t23_what_float32_gumbel_noise_cannot_draw():
    """T23: the largest float32 Gumbel is 16.63553, below the log(1e9) = 20.7 a class of 1e-9 would have to beat."""
    largest = -math.log(-math.log(1 - 2**-24))
    assert largest == pytest.approx(16.63553, abs=1e-5)
    assert largest < math.log(1e9)


def test_rare_classes_have_their_exact_share(monkeypatch):
    """Classes of 1e-9, 1e-12 and 1e-15 behind a dominating one own intervals of u of exactly that width."""
    rare = [1e-9, 1e-12, 1e-15]
    probs = torch.tensor([0.25, *rare, 0.0, 0.75 - sum(rare)], dtype=torch.float64)
    edges = torch.cat([torch.zeros(1).double(), probs.cumsum(0)])
    middles = (edges[:-1] + edges[1:])[probs > 0] / 2
    assert draw(probs, middles, monkeypatch).tolist() == [0, 1, 2, 3, 5]
    for width, low in zip(rare, edges[1:], strict=False):
        nudge = width / 8
        u = low + torch.tensor([-nudge, nudge, width - nudge, width + nudge], dtype=torch.float64)
        inside = draw(probs, u, monkeypatch)
        assert inside[1] == inside[2]
        assert probs[inside[1]] == width
        assert inside[0] == inside[1] - 1
        assert inside[3] > inside[2]


def test_a_vocabulary_behind_a_dominating_mask(monkeypatch):
    """50 000 tokens that share 1e-6 behind a mask: the cumulative sum resolves every one of them."""
    tokens = 50_000
    probs = torch.full((tokens + 1,), 1e-6 / tokens, dtype=torch.float64)
    probs[-1] = 1 - 1e-6
    u = (torch.arange(0, tokens, 997, dtype=torch.float64) + 0.5) * 1e-6 / tokens
    assert torch.equal(draw(probs, u, monkeypatch), torch.arange(0, tokens, 997))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 3.0, 1e30])
def test_zero_probability_is_never_drawn(scale, monkeypatch):
    """Not at u = 0, nor at the largest double below 1, nor on any edge; unnormalised weights are fine."""
    probs = scale * torch.tensor([0.0, 0.1, 0.0, 0.0, 0.6, 0.3, 0.0, 0.0], dtype=torch.float64)
    edges = probs.cumsum(0) / probs.sum()
    u = torch.cat([torch.tensor([0.0, 2**-53, 0.5, 1 - 2**-53]).double(), edges[edges < 1], edges[edges < 1] - 2**-54])
    ids = draw(probs, u.clamp(0, 1 - 2**-53), monkeypatch)
    assert (probs[ids] > 0).all()


def test_categorical_frequencies():
    """20 000 rows against their probabilities, one generator per row as in training and sampling."""
    probs = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05], dtype=torch.float64)
    ids = randomness.categorical(probs.expand(20_000, 1, -1), randomness.row_generators(9, rows=range(20_000)))
    assert chi_square_tail(torch.bincount(ids[:, 0], minlength=5).double(), probs) > 1e-7


def test_a_row_draws_the_same_alone():
    probs = torch.rand(6, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = randomness.categorical(probs, randomness.row_generators(4, rows=range(6)))
    for row in range(6):
        alone = randomness.categorical(probs[row : row + 1], randomness.row_generators(4, rows=[row]))
        assert torch.equal(alone[0], together[row])
