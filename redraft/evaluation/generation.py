"""How varied samples are. A sample-quality figure never stands without these."""

import math
from collections import Counter
from collections.abc import Sequence


def variety(rows: Sequence[Sequence[int]]) -> dict[str, float]:
    """``unigram_entropy`` (nats) and ``distinct_1``, ``distinct_2``, ``distinct_3`` as far as rows are long enough."""
    longest = max(map(len, rows), default=0)
    return {"unigram_entropy": unigram_entropy(rows)} | {
        f"distinct_{n}": distinct_n(rows, n) for n in (1, 2, 3) if n <= longest
    }


def unigram_entropy(rows: Sequence[Sequence[int]]) -> float:
    """-sum_v c_v/L ln(c_v/L) of each row's own token counts c_v, averaged over rows; nats (Zheng et al. 2409.02908).

    It falls towards 0 as samples repeat themselves. It is bounded by ln L: compare only rows of one length.
    """
    if not rows or not all(rows):
        raise ValueError("no tokens to measure: pass at least one row of at least one token")
    entropies = [-sum(c / len(row) * math.log(c / len(row)) for c in Counter(row).values()) for row in rows]
    return sum(entropies) / len(entropies)


def distinct_n(rows: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams, in all rows together (Li et al. 2016); in (0, 1], falls with their number."""
    if n < 1:
        raise ValueError(f"n={n}: n-grams have at least one token")
    grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    if not grams:
        raise ValueError(f"no row has {n} tokens: pass longer rows or a smaller n")
    return len(set(grams)) / len(grams)
