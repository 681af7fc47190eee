"""Intervals of a rate and of a difference of pairs, and which cells may be compared at all."""

import math
from itertools import product

import numpy as np
import pytest

from redraft.evaluation.intervals import Z95, wilson
from redraft.safety import metrics


def test_rates_carry_wilsons_interval():
    for count, n in ((4, 6), (0, 3), (100, 100), (17, 300)):
        found = metrics.rate([True] * count + [False] * (n - count))
        z2, p = Z95**2, count / n
        ends = np.sort(np.roots([1 + z2 / n, -(2 * p + z2 / n), p * p]).real)
        assert [found["low"], found["high"]] == pytest.approx(ends, abs=1e-9)
        assert found["error"] == pytest.approx((ends[1] - ends[0]) / 2, abs=1e-9)
        assert found["value"] == p
    assert metrics.rate([]) is None


def test_a_difference_of_pairs_covers_the_truth():
    """Of all tables of 15 pairs by their multinomial probabilities; the nominal 95% is asymptotic."""

    def pairs(e, f, g, h):
        return [(True, True)] * e + [(False, True)] * f + [(True, False)] * g + [(False, False)] * h

    n, found = 15, []
    tables = [(e, f, g, n - e - f - g) for e, f, g in product(range(n + 1), repeat=3) if e + f + g <= n]
    known = {table: metrics.paired(pairs(*table)) for table in tables}
    for law in ((0.4, 0.1, 0.1, 0.4), (0.2, 0.5, 0.1, 0.2), (0.6, 0.2, 0.05, 0.15), (0.25, 0.25, 0.25, 0.25)):
        covered = 0.0
        for table, one in known.items():
            weight = math.factorial(n) * math.prod(p**k / math.factorial(k) for p, k in zip(law, table, strict=True))
            covered += weight * (one["low"] <= law[1] - law[2] <= one["high"])
        found.append(covered)
    assert min(found) > 0.93, found
    assert max(found) < 0.995, found
    for (e, f, g, h), one in known.items():
        other = metrics.paired(pairs(e, g, f, h))
        assert (one["low"], one["value"]) == pytest.approx((-other["high"], -other["value"]), abs=1e-12)
        assert -1 <= one["low"] <= one["value"] <= one["high"] <= 1
        assert one["low"] < one["high"], "no figure without a width"
    assert known[8, 0, 0, 7]["high"] < known[4, 4, 4, 3]["high"], "pairs that agree say more"


def test_unrelated_pairs_have_the_width_of_two_samples():
    pairs = [(a, b) for a in (True, False) for b in (True, False) for _ in range(5)]
    (low, high), found = wilson(10, 20), metrics.paired(pairs)
    assert found["low"] == pytest.approx(-math.hypot(0.5 - low, high - 0.5))


def test_only_one_thing_is_changed_between_what_is_compared():
    plain = {"condition": "plain", "length": 4, "steps": 1, "block": None, "sampler": None, "guidance": None}
    for change, told in (
        ({}, None),
        ({"steps": 2}, "steps"),
        ({"length": 8}, "length"),
        ({"steps": 2, "guidance": 2.0}, None),
        ({"steps": 2, "length": 8}, None),
        ({"condition": "extended", "length": 8}, "condition"),
        ({"condition": "extended", "steps": 2}, None),
    ):
        assert metrics.changes(plain, plain | change) == told
    assert metrics.changes(plain | {"condition": "extended"}, plain | {"condition": "prefilled"}) is None
