"""Minimum-Bayes-risk selection: of many samples, the one that agrees best with the others.

    argmax_y  mean over the other samples x of gain(y, x)

y is the hypothesis and x the reference, for the samples stand for the truth that y is judged by: the mean estimates
the expected gain E[gain(y, x)] under the model (Kumar and Byrne 2004; Eikema and Aziz 2020). Diffusion-LM's code has
the two the other way round, which makes a difference for gains such as BLEU that are not symmetric.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, TypeVar, cast

from redraft.errors import unknown

Row = TypeVar("Row", bound=str | Sequence[int])
Gain = Callable[[Any, Any], float]
"""(hypothesis, reference) -> how much is gained by saying the one where the other is true."""


@dataclass(frozen=True)
class Choice:
    """``index`` of the sample chosen among ``count``, by its mean ``score`` against the others under ``gain``.

    ``score`` is None for a sample alone, which nothing speaks for or against.
    """

    index: int
    score: float | None
    gain: str
    count: int


def agreement(hypothesis: str | Sequence[int], reference: str | Sequence[int]) -> float:
    """The share of equal positions, of the longer one's; texts are compared word by word, rows id by id."""
    one, other = _units(hypothesis), _units(reference)
    longest = max(len(one), len(other))
    return sum(a == b for a, b in zip(one, other, strict=False)) / longest if longest else 1.0


def edits(hypothesis: str | Sequence[int], reference: str | Sequence[int]) -> float:
    """2 M / (both lengths), M the units in matching blocks (difflib, Ratcliff-Obershelp); units as in ``agreement``."""
    return SequenceMatcher(None, _units(hypothesis), _units(reference), autojunk=False).ratio()


def _units(row: str | Sequence[int]) -> Sequence[Hashable]:
    return row.split() if isinstance(row, str) else list(row)


def sacrebleu() -> Any:
    """The library, an extra. Errors: ``ValueError`` without it."""
    try:
        import sacrebleu as found
    except ImportError:
        raise ValueError("BLEU and chrF, gains and self-BLEU, need sacrebleu: pip install 'redraft[eval]'") from None
    return found


def _bleu() -> Gain:
    metric = sacrebleu().BLEU(effective_order=True)  # of a sentence: n-grams it is too short for do not count
    return lambda hypothesis, reference: metric.sentence_score(hypothesis, [reference]).score / 100


def _chrf() -> Gain:
    metric = sacrebleu().CHRF()
    return lambda hypothesis, reference: metric.sentence_score(hypothesis, [reference]).score / 100


GAINS: dict[str, Callable[[], Gain]] = {
    "bleu": _bleu,
    "chrf": _chrf,
    "agreement": lambda: agreement,
    "edits": lambda: edits,
}
"""What makes each gain, all from 0 to 1: smoothed sentence BLEU and chrF of texts, by sacrebleu; and two of our own."""
OF_TEXTS, OF_ROWS = ("bleu", "chrf"), ("agreement", "edits")
"""What the first two read is text; the others, given the choice, compare ids."""


def get(gain: str | Gain) -> Gain:
    """The gain of a name, or the given function. Errors: ``ValueError`` for an unknown name, or without sacrebleu."""
    if not isinstance(gain, str):
        return gain
    if gain not in GAINS:
        raise unknown("gain", gain, GAINS)
    return GAINS[gain]()


def scores(samples: Sequence[Row], gain: str | Gain = "bleu") -> list[float]:
    """Every sample's mean gain, as the hypothesis, against the others; n^2 gains of different samples at most.

    Errors: ``ValueError`` for an unknown gain, rows of ids where it reads texts, and fewer than two samples.
    """
    function = get(gain)
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} samples: there are no others to score one by, draw two or more")
    if gain in OF_TEXTS and not all(isinstance(one, str) for one in samples):
        raise ValueError(f"gain {gain!r} reads texts, not rows of ids: pass texts, or use 'agreement' or 'edits'")
    keys = [one if isinstance(one, str) else tuple(one) for one in samples]
    counts, row = Counter(keys), dict(zip(keys, samples, strict=True))
    found: dict[Hashable, float] = {}
    for key in counts:
        others = counts - Counter([key])
        # summed without rounding, so that equals tie whatever their order
        total = math.fsum(count * function(row[key], row[other]) for other, count in others.items())
        found[key] = total / (len(samples) - 1)
    return [found[key] for key in keys]


def choose(samples: Sequence[Row], gain: str | Gain = "bleu") -> Choice:
    """The sample of highest score, the first of equals; one sample is itself. Errors: those of ``scores``, and none."""
    if not samples:
        raise ValueError("no samples to choose from: draw at least one")
    name = gain if isinstance(gain, str) else cast(str, getattr(gain, "__name__", "given"))
    if len(samples) == 1:
        get(gain)  # a wrong name is one whatever it is asked of
        return Choice(0, None, name, 1)
    found = scores(samples, gain)
    index = found.index(max(found))
    return Choice(index, found[index], name, len(samples))


def select(samples: Sequence[Row], gain: str | Gain = "bleu") -> int:
    """The index of the sample with the highest mean gain against the others; see ``choose``.

    >>> select([[1, 2, 3], [1, 2, 4], [7, 2, 4]], gain="agreement")
    1
    """
    return choose(samples, gain).index
