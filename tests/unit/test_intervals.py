"""Intervals: where they end, by the tests that they are of, and how often they hold the truth."""

import math

import numpy as np
import pytest

from redraft.evaluation.intervals import Estimate, mean_of, ratio, share, wilson


@pytest.mark.parametrize("n", [1, 4, 30])
def test_wilson_is_where_the_score_test_turns(n):
    """At both ends of the interval |hits / n - p| is 1.96 standard errors of p itself."""
    for hits in range(n + 1):
        low, high = wilson(hits, n)
        assert 0 <= low < high <= 1
        for p in {low, high} - {0.0, 1.0}:
            assert abs(hits / n - p) == pytest.approx(1.9599640 * math.sqrt(p * (1 - p) / n), rel=1e-6)
    assert wilson(0, n)[0] == 0
    assert wilson(n, n)[1] == 1
    assert wilson(0, n)[1] == pytest.approx(1 - wilson(n, n)[0])


def test_wilson_covers():
    """Exactly, by the binomial law: over p from .05 to .95, a mean within 1% of 95% at n = 40 and never below 90%."""
    covered = []
    for p in np.linspace(0.05, 0.95, 91):
        chances = [math.comb(40, c) * p**c * (1 - p) ** (40 - c) for c in range(41)]
        covered.append(sum(q for c, q in enumerate(chances) if wilson(c, 40)[0] <= p <= wilson(c, 40)[1]))
    assert min(covered) > 0.9
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("hits", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_no_share(hits, n):
    for what in (wilson, share):
        with pytest.raises(ValueError, match="no share"):
            what(hits, n)


def test_a_ratio_of_equal_sizes_is_a_mean():
    values = [1.0, 2.0, 4.0, 3.5] * 30
    found, mean = ratio(values, [1.0] * 120), mean_of(values)
    assert found.mean == pytest.approx(mean.mean)
    assert found.error == pytest.approx(mean.error, rel=0.02)
    assert ratio([6.0, 1.0], [2, 1]).mean == pytest.approx(7 / 3)
    assert ratio([3.0], [2.0]) == Estimate(1.5, math.inf)
    for amounts, sizes in (([1.0], [0.0]), ([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="pass one size each"):
            ratio(amounts, sizes)


def test_a_ratio_covers():
    """95% over 400 seeds of 20 texts of uneven length: fewer than 361 has probability 5e-5 at that rate."""
    hits = 0
    for seed in range(400):
        draw = np.random.default_rng(seed)
        sizes = draw.integers(5, 40, 20).astype(float)
        amounts = sizes * 2 + np.sqrt(sizes) * draw.normal(size=20)
        found = ratio(amounts.tolist(), sizes.tolist())
        hits += abs(found.mean - 2) < found.error
    assert 361 <= hits < 400
