"""Likelihood estimators against enumeration, float64: exact where they say so, else bounds in the order of theory.

Denoisers are random tables, exact of nothing, and the exact ones of the oracle's law. Whatever is drawn is gone
through: orders by patching the draw of one, chains by ``exhaust``.
"""

import itertools
import math
from unittest.mock import patch

import pytest
import torch

from redraft import processes
from redraft.evaluation import enumeration, estimators, importance
from redraft.processes import Facts
from redraft.processes.d3pm import d3pm
from redraft.sampling import samplers

from .exhaust import law_at
from .oracle import LAW, ExactDenoiser, K, L, finite_nelbo, nelbo, posteriors, sequences, state_number
from .tables import SMALL, TEXTS, Table, assert_close, found, pairs, rows_of, start


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
