"""Likelihood and variety, against values known in closed form."""

import math

import numpy as np
import pytest
import torch

from redraft import processes
from redraft.data import Packed
from redraft.evaluation import distinct_n, likelihood, unigram_entropy
from redraft.processes import Facts


class Constant:
    """A denoiser that gives every token of ``p`` the same probability everywhere: the NELBO is -E log p(x)."""

    def __init__(self, p, causal=False, mask_id=None):
        self.logp = torch.tensor(p, dtype=torch.float64).log()
        self.facts = Facts(mask_id=mask_id, attention="causal" if causal else "full")

    def __call__(self, z, t, cond=None):
        return self.logp.expand(*z.shape[:2], -1)


P = [0.5, 0.3, 0.2]


def rows(n=400, length=8, valid=None):
    ids = np.random.default_rng(0).choice(3, size=(n, length), p=P).astype(np.int32)
    tokens = ids.size if valid is None else int(valid.sum())
    return Packed(ids, valid, None, num_chars=2 * tokens, num_tokens=tokens)


def cross_entropy(packed):
    valid = np.ones(packed.ids.shape, bool) if packed.valid is None else packed.valid
    return -np.log(np.array(P))[packed.ids[valid]].mean()


def test_masked_bound_of_independent_tokens_is_their_entropy():
    """Two-sided 99.9% test with a fixed seed: false alarm 1e-3, once."""
    packed = rows()
    found = likelihood(Constant(P, mask_id=3), processes.masked(3), packed, draws=16)
    assert abs(found.nats_per_token - cross_entropy(packed)) < 3.3 * found.nats_per_token_error / 1.96
    assert found.nats_per_token_error < 0.05
    assert found.bits_per_char == pytest.approx(found.nats_per_token / math.log(2) / 2)
    assert found.perplexity == pytest.approx(math.exp(found.nats_per_token))
    assert (found.is_bound, found.rows, found.tokens, found.characters) == (True, 400, 3200, 6400)
    assert found.estimator == "NELBO, k of n tokens masked, stratified k"


def test_every_estimator_has_the_same_mean():
    """k of n masked and the integral over t agree, for a denoiser that looks at what is left.

    Two-sided 99.9% test with a fixed seed: false alarm 1e-3, once.
    """

    class Looking(Constant):
        def __call__(self, z, t, cond=None):
            seen = (z != 3).double().mean(1)[:, None, None]
            return torch.log_softmax(self.logp * (1 + seen), -1).expand(*z.shape, -1)

    packed, process = rows(n=2000), processes.masked(3)
    counted = likelihood(Looking(P, mask_id=3), process, packed, draws=8)
    timed = Looking(P, mask_id=3)
    timed.facts = Facts(mask_id=3, time_conditioned=True)
    integrated = likelihood(timed, process, packed, draws=8)
    assert integrated.estimator == "continuous-time NELBO, stratified t"
    error = math.hypot(counted.nats_per_token_error, integrated.nats_per_token_error) / 1.96
    assert abs(counted.nats_per_token - integrated.nats_per_token) < 3.3 * error
    assert counted.nats_per_token_error < integrated.nats_per_token_error


def test_causal_likelihood_is_exact():
    packed = rows()
    found = likelihood(Constant(P, causal=True, mask_id=3), processes.masked(3), packed, draws=9)
    assert found.nats_per_token == pytest.approx(cross_entropy(packed), abs=1e-12)
    assert (found.is_bound, found.draws) == (False, 1)
    spread = 1.96 * np.log(np.array(P))[packed.ids].mean(1).std(ddof=1) / math.sqrt(400)
    assert found.nats_per_token_error == pytest.approx(spread, rel=1e-4)


def test_padding_does_not_count():
    valid = np.ones((400, 8), bool)
    valid[::2, 5:] = False
    packed = rows(valid=valid)
    found = likelihood(Constant(P, causal=True, mask_id=3), processes.masked(3), packed)
    assert found.nats_per_token == pytest.approx(cross_entropy(packed), abs=1e-12)
    assert found.tokens == valid.sum()


def test_interval_covers_the_truth_at_its_rate():
    """95% intervals over 60 seeds: fewer than 50 hits has probability 4e-4 under the stated rate."""
    packed = rows(n=40)
    truth = cross_entropy(packed)
    results = [likelihood(Constant(P, mask_id=3), processes.masked(3), packed, seed=seed) for seed in range(60)]
    hits = sum(abs(one.nats_per_token - truth) < one.nats_per_token_error for one in results)
    assert hits >= 50


def test_options_change_the_outcome():
    packed, denoiser, process = rows(), Constant(P, mask_id=3), processes.masked(3)
    base = likelihood(denoiser, process, packed)
    assert base == likelihood(denoiser, process, packed)
    assert base.nats_per_token != likelihood(denoiser, process, packed, seed=1).nats_per_token
    assert likelihood(denoiser, process, packed, draws=16).nats_per_token_error < base.nats_per_token_error
    assert likelihood(denoiser, process, packed, rows=10).rows == 10
    with pytest.raises(ValueError, match="draws=0"):
        likelihood(denoiser, process, packed, draws=0)
    with pytest.raises(ValueError, match="1 rows"):
        likelihood(denoiser, process, rows(n=1))


def test_unigram_entropy():
    assert unigram_entropy([[1, 2, 3, 4]]) == pytest.approx(math.log(4))
    assert unigram_entropy([[1, 1, 1, 1], [1, 1, 2, 2]]) == pytest.approx(math.log(2) / 2)
    with pytest.raises(ValueError, match="no tokens"):
        unigram_entropy([])


def test_distinct_n():
    assert distinct_n([[1, 2, 1, 2], [1, 2, 3, 4]], 2) == pytest.approx(4 / 6)
    assert distinct_n([[1, 1]], 1) == 0.5
    with pytest.raises(ValueError, match="no row has 3"):
        distinct_n([[1, 2]], 3)
    with pytest.raises(ValueError, match="n=0"):
        distinct_n([[1, 2]], 0)
