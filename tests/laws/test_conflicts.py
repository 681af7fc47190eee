"""What it costs to write tokens apart: the formula against enumeration, and the best schedule against all schedules."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise, permutations, product

import pytest
import torch

from redraft.data import toy
from redraft.studies.conflicts import best, conflict, costs, counts, exact_surprise, falling

ROWS = [row[:4] for row in toy.sentences()]
"""Sentences cut short: their law is not uniform, and not of independent tokens either."""


def compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    return [one for one in product(range(1, total + 1), repeat=parts) if sum(one) == total]


def law(rows: Sequence[Sequence[int]], places: Sequence[int]) -> dict[tuple[int, ...], float]:
    seen = Counter(tuple(row[i] for i in places) for row in rows)
    return {key: n / len(rows) for key, n in seen.items()}


def path_divergence(written: Sequence[int]) -> float:
    """KL between (order, text) of the law itself and of the sampler that writes so many at once, by enumeration."""
    total, orders = 0.0, list(permutations(range(4)))
    for order, row in product(orders, ROWS):
        known, log_q = 0, 0.0
        for number in written:
            before = order[:known]
            like = [one for one in ROWS if all(one[i] == row[i] for i in before)]
            for place in order[known : known + number]:
                log_q += math.log(sum(one[place] == row[place] for one in like) / len(like))
            known += number
        log_p = math.log(law(ROWS, range(4))[tuple(row)])
        total += (log_p - log_q) / len(orders) / len(ROWS)
    return total


@pytest.mark.parametrize("written", [(4,), (1, 3), (2, 2), (3, 1), (1, 2, 1), (1, 1, 2), (1, 1, 1, 1)])
def test_the_cost_is_the_divergence_of_the_paths(written):
    """1e-12, for laws that are not uniform too; one token a step costs nothing."""
    assert sum(costs(exact_surprise(ROWS), written)) == pytest.approx(path_divergence(written), abs=1e-12)


def test_surprise_of_the_toy_language():
    """h never rises, and sums to ln 252."""
    surprise = exact_surprise(toy.sentences())
    assert sum(surprise) == pytest.approx(math.log(252), abs=1e-12)
    assert all(before >= after - 1e-12 for before, after in pairwise(surprise))
    pairs = [law(toy.sentences(), places) for places in combinations(range(6), 2)]
    mean = sum(-sum(p * math.log(p) for p in one.values()) for one in pairs) / len(pairs)
    assert sum(surprise[:2]) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
def test_best_is_the_best_of_all(steps):
    surprise = sorted(torch.rand(6, generator=torch.Generator().manual_seed(steps)).tolist(), reverse=True)
    found = best(surprise, steps)
    assert (sum(found), len(found)) == (6, steps)
    least = min(sum(costs(surprise, one)) for one in compositions(6, steps))
    assert sum(costs(surprise, found)) == pytest.approx(least, abs=1e-12)


def test_a_line_that_falls_evenly_asks_for_even_steps():
    """C depends on how far h falls within a step alone."""
    assert best([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 3) == [2, 2, 2]
    assert best([9.0, 4.0, 1.0, 1.0, 1.0, 1.0], 3) == [1, 1, 4]
    assert conflict([3.0, 1.0, 1.0], 0, 2) == 2.0


def test_counts():
    """MaskGIT's golden list, and at least one token a step whatever the schedule."""
    assert counts("cosine", 256, 8) == [5, 15, 24, 31, 39, 45, 48, 49]
    assert counts("uniform", 6, 3) == [2, 2, 2]
    for schedule, steps in product(("sqrt", "uniform", "square", "cosine", "cubic"), range(1, 8)):
        found = counts(schedule, 6, steps)
        assert sum(found) == 6
        assert min(found) >= 1
        assert len(found) == min(steps, 6)


def test_falling():
    assert falling([3.0, 2.0, 1.0]) == [3.0, 2.0, 1.0]
    assert falling([1.0, 3.0, 2.0, 2.5]) == pytest.approx([2.125] * 4)
    assert falling([3.0, 1.0, 2.0, 0.5]) == [3.0, 1.5, 1.5, 0.5]
