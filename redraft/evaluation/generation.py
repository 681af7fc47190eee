"""How varied samples are. A sample-quality figure never stands without these."""

import math
import random
from collections import Counter
from collections.abc import Sequence

from redraft.evaluation.mbr import sacrebleu

SELF_BLEU_TEXTS = 1000
"""How many texts are compared with one another unless told."""
_ORDERS = (1, 2, 3, 4)


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
    entropies = unigram_entropies(rows)
    return sum(entropies) / len(entropies)


def unigram_entropies(rows: Sequence[Sequence[int]]) -> list[float]:
    """What ``unigram_entropy`` averages."""
    if not rows or not all(rows):
        raise ValueError("no tokens to measure: pass at least one row of at least one token")
    return [-sum(c / len(row) * math.log(c / len(row)) for c in Counter(row).values()) for row in rows]


def distinct_n(rows: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams, in all rows together (Li et al. 2016); in (0, 1], falls with their number."""
    if n < 1:
        raise ValueError(f"n={n}: n-grams have at least one token")
    grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    if not grams:
        raise ValueError(f"no row has {n} tokens: pass longer rows or a smaller n")
    return len(set(grams)) / len(grams)


def self_bleu(texts: Sequence[str], most: int = SELF_BLEU_TEXTS, seed: int = 0) -> float:
    """The mean over texts of BLEU-4 against all others as references, 0 to 1 (Zhu et al. 2018, 1802.01886).

    The higher, the more alike the texts are. Words are sacrebleu's (13a: blanks and punctuation part them), so is the
    arithmetic: sentence BLEU, its exponential smoothing, and of a text too short for 4-grams the orders that it has. It
    rises with the number of texts: of more than ``most``, so many are drawn, by ``seed``. Errors: ``ValueError`` for
    fewer than two texts, or without sacrebleu.
    """
    if len(texts) < 2 or most < 2:
        raise ValueError(f"{min(len(texts), most)} texts: there are no others to compare one with, draw two or more")
    metrics = sacrebleu()
    metric = metrics.BLEU(effective_order=True)
    taken = list(texts) if len(texts) <= most else random.Random(seed).sample(list(texts), most)
    words = [metric.tokenizer(text.rstrip()).split() for text in taken]
    grams = [Counter(tuple(one[i : i + n]) for n in _ORDERS for i in range(len(one) - n + 1)) for one in words]
    best, second = dict[tuple[str, ...], tuple[int, int]](), dict[tuple[str, ...], int]()
    for text, counts in enumerate(grams):
        for gram, count in counts.items():
            top, _ = best.get(gram, (0, -1))
            if count > top:
                best[gram], second[gram] = (count, text), top
            else:
                second[gram] = max(second[gram], count)
    lengths, total = Counter(map(len, words)), 0.0
    for text, counts in enumerate(grams):
        size = len(words[text])
        others = [length for length, many in lengths.items() if many > (length == size)]
        hits, all_of = [0] * len(_ORDERS), [0] * len(_ORDERS)
        for gram, count in counts.items():
            elsewhere = second[gram] if best[gram][1] == text else best[gram][0]
            hits[len(gram) - 1] += min(count, elsewhere)
            all_of[len(gram) - 1] += count
        nearest = min(others, key=lambda length: (abs(length - size), length))
        how = {"smooth_method": "exp", "effective_order": True}
        total += metrics.BLEU.compute_bleu(hits, all_of, size, nearest, **how).score / 100
    return total / len(taken)
