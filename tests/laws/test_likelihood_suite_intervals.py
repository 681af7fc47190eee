"""The 95% interval beside a likelihood covers what it is an interval of, at its rate.

The truth is the estimator's own expectation over the toy's law of texts and over its draws, computed exactly. Each of
200 seeds draws 50 texts and scores them once. At a rate of 0.95 fewer than 180 or more than 199 hits have a chance of
1.2e-3. The rates themselves, of 1200 seeds: 0.928 (counts), 0.937 and 0.938 (all steps), 0.946 to 0.982 (the others).
For 50 texts lie unevenly about their mean. With other seeds that of counts would fail in 5 of 100 cases.
"""

import itertools
import sys

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from redraft import processes
from redraft.data import Packed
from redraft.evaluation import answers, estimators, importance, likelihood
from redraft.evaluation.intervals import ratio, student95
from redraft.processes import Facts
from redraft.randomness import generator

from .oracle import K, TableDenoiser, nelbo, sequences
from .prescribed import random_law

SEEDS, TEXTS = 200, 50
LEAST, MOST = 180, 199


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """All rows in one batch that draws from one generator: making one for every row would take most of the time."""
    module = sys.modules["redraft.evaluation.likelihood"]
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 1000)
    monkeypatch.setattr(module, "row_generators", lambda *keys, rows: generator(*keys, len(rows)))


class Table(TableDenoiser):
    """A random law at every position of every state; the time is heard and ignored."""

    def __init__(self, process, length, timed=False):
        super().__init__(random_law(process.V**length, length, process.K).double(), process.V)
        self.facts = Facts(mask_id=process.mask_id, time_conditioned=timed)


def law_of(length):
    """A law of texts, of its own, over all of this length."""
    return random_law(K**length, seed=5).double().exp().reshape((K,) * length)


def population(length):
    return sequences(K, length), law_of(length).flatten()


def hits(process, denoiser, length, truth, seeds=SEEDS, texts=TEXTS, draws=1, **options):
    """How many of the seeds' intervals hold the truth (nats per text)."""
    every, law = population(length)
    found = 0
    for seed in range(seeds):
        drawn = torch.multinomial(law, texts, replacement=True, generator=torch.Generator().manual_seed(seed))
        rows = Packed(every[drawn].numpy().astype(np.int32), None, None, 0, texts * length)
        one = likelihood(denoiser, process, rows, draws=draws, seed=seed, **options)
        found += abs(one.nats_per_token - truth / length) <= one.nats_per_token_error
    return found


def exactly(name, denoiser, process, length, **options):
    """What an estimator that draws nothing says of the population, nats per text."""
    texts, law = population(length)
    how = estimators.get(name, denoiser, process, **options)
    assert not how.draws
    return float(law @ how.score(denoiser, process, {"ids": texts}, torch.zeros(len(texts)), None).sum(1))


def expected_importance(denoiser, process, length, k):
    """E of the bound of k orders over the population, by all k-tuples of orders."""
    texts, law = population(length)
    logs = list[torch.Tensor]()
    for order in itertools.permutations(range(length)):
        place = torch.tensor(order).expand_as(texts)
        logs.append(-importance.in_order(denoiser, process, {"ids": texts}, place).sum(1))
    tuples = itertools.product(logs, repeat=k)
    bounds = torch.stack([importance.bound(torch.stack(one)) for one in tuples])
    return float(law @ bounds.mean(0))


@pytest.mark.parametrize("estimator", ["any_order", "importance"])
def test_intervals_of_random_orders(estimator):
    process = processes.masked(K)
    denoiser = Table(process, 3)
    if estimator == "any_order":
        truth = exactly("exact_elbo", denoiser, process, 3)
        assert LEAST <= hits(process, denoiser, 3, truth, estimator=estimator) <= MOST
    else:
        truth = expected_importance(denoiser, process, 3, 2)
        assert LEAST <= hits(process, denoiser, 3, truth, estimator=estimator, particles=2) <= MOST


@pytest.mark.parametrize("make", [processes.masked, processes.uniform])
def test_intervals_of_all_steps(make):
    process = make(K, steps=2)
    denoiser = Table(process, 2)
    truth = exactly("exact_elbo", denoiser, process, 2)
    assert LEAST <= hits(process, denoiser, 2, truth, estimator="steps") <= MOST


@pytest.mark.parametrize("default", ["counts", "times"])
def test_intervals_of_the_default(default):
    """k of n masked, and the integral over t: its truth by quadrature."""
    process = processes.masked(K)
    denoiser = Table(process, 2, timed=default == "times")
    truth = nelbo(process, denoiser, law_of(2))
    if default == "counts":
        assert truth == pytest.approx(exactly("exact_elbo", denoiser, process, 2), abs=1e-9)
    assert LEAST <= hits(process, denoiser, 2, truth) <= MOST


@pytest.mark.parametrize(
    ("make", "texts", "draws"), [(processes.uniform, 50, 1), (processes.hybrid, 50, 1), (processes.uniform, 200, 4)]
)
def test_intervals_over_times_of_noise_that_reaches_tokens(make, texts, draws):
    """Where a token is seldom noised, and costs much when it is; drawn as they come 0.88 to 0.93 held the truth."""
    process = make(K)
    denoiser = Table(process, 2, timed=True)
    truth = nelbo(process, denoiser, law_of(2))
    assert LEAST <= hits(process, denoiser, 2, truth, texts=texts, draws=draws) <= MOST


def test_intervals_of_answers():
    """LLaDA's Monte Carlo, 64 draws of one answer: chance alone, against the exact mean over orders."""
    process = processes.masked(K)
    denoiser, text = Table(process, 5), torch.tensor([2, 0, 1, 0, 2])

    def score(**options):
        return answers.score(process, denoiser, text[:1], text[1:], device="cpu", **options)

    truth = score(estimator="any_order_exact").nats
    found = [score(draws=64, seed=seed) for seed in range(SEEDS)]
    assert LEAST <= sum(abs(one.nats - truth) <= one.error for one in found) <= MOST


def test_quantiles_are_students():
    """By how many standard errors a mean of 2 to 400 values misses: scipy's, 2e-5."""
    got = [student95(values) for values in range(2, 401)]
    np.testing.assert_allclose(got, student.ppf(0.975, np.arange(1, 400)), rtol=0, atol=2e-5)


def test_half_width_of_rows_of_one_size_is_that_of_their_mean():
    values = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = student.ppf(0.975, 5) * values.std().item() / 6**0.5 / 3
    assert ratio(values.tolist(), [3.0] * 6).error == pytest.approx(expected, rel=1e-5)
