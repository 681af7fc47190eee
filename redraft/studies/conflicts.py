"""What it costs to write tokens apart, and which schedule pays least: exact, from how much is known at each point.

With exact conditionals and a random order, a step that writes n of L tokens beside j known ones draws them from the
product of their laws instead of the joint. The path law is then off by the total correlation of what is written, on
average over orders

    C(j, n) = n h_j - (h_j + ... + h_{j+n-1})    nats,    h_j = H_{j+1} - H_j

where H_j is the mean entropy of j positions drawn evenly, and h_j what a token still surprises when j are known. h
never rises (Han's inequality), so that C >= 0, and a step costs by how far h falls *within* it. The sum over the steps
is KL(p || sampler) over orders and texts, and no less than that over texts.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise

import torch

from redraft.sampling.published import masked_share

SCHEDULES = ("sqrt", "uniform", "square", "cosine", "cubic")
"""MaskGIT's, from the fastest beginning to the slowest: sqrt writes most at first, cubic least."""


def counts(schedule: str, length: int, steps: int) -> list[int]:
    """How many of ``length`` tokens each step writes, one at least; at most ``length`` steps."""
    steps, number = min(steps, length), torch.tensor([length])
    left = [length]
    for k in range(1, steps):
        r = torch.tensor([k / steps], dtype=torch.float64)
        stay = math.floor(float(masked_share(schedule, r, number)) * length + 1e-9)
        left.append(min(max(stay, steps - k), left[-1] - 1))
    return [a - b for a, b in zip(left, [*left[1:], 0], strict=True)]


def conflict(surprise: Sequence[float], known: int, written: int) -> float:
    """C(j, n) in nats; ``surprise`` is h."""
    return written * surprise[known] - sum(surprise[known : known + written])


def costs(surprise: Sequence[float], written: Sequence[int]) -> list[float]:
    """What each step costs, nats a text."""
    known, found = 0, list[float]()
    for one in written:
        found.append(conflict(surprise, known, one))
        known += one
    return found


def best(surprise: Sequence[float], steps: int) -> list[int]:
    """The counts of least cost in so many steps, by dynamic programming over (steps left, tokens known)."""
    length = len(surprise)
    steps = min(steps, length)
    least = [[math.inf] * (length + 1) for _ in range(steps + 1)]
    first = [[0] * (length + 1) for _ in range(steps + 1)]
    least[0][length] = 0.0
    for left in range(1, steps + 1):
        for known in range(length):
            for written in range(1, length - known + 1):
                cost = conflict(surprise, known, written) + least[left - 1][known + written]
                if cost < least[left][known]:
                    least[left][known], first[left][known] = cost, written
    known, found = 0, list[int]()
    for left in range(steps, 0, -1):
        found.append(first[left][known])
        known += found[-1]
    return found


def exact_surprise(rows: Sequence[Sequence[int]]) -> list[float]:
    """h_0 .. h_{L-1} of the uniform law over ``rows``, nats, by every subset of positions."""
    length = len(rows[0])
    means = list[float]()
    for size in range(length + 1):
        entropies = list[float]()
        for places in combinations(range(length), size):
            seen = Counter(tuple(row[i] for i in places) for row in rows)
            entropies.append(-sum(n / len(rows) * math.log(n / len(rows)) for n in seen.values()))
        means.append(sum(entropies) / len(entropies))
    return [after - before for before, after in pairwise(means)]


def falling(values: Sequence[float]) -> list[float]:
    """The nearest sequence that never rises (pool adjacent violators): h as it must be, from noisy measurements."""
    pools = list[tuple[float, int]]()
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (one, n), (two, m) = pools[-2:]
            pools[-2:] = [((n * one + m * two) / (n + m), n + m)]
    return [mean for mean, size in pools for _ in range(size)]
