"""A judge that needs no download: an interpolated character n-gram, fitted on the training text.

Its bits per character are the generative perplexity of samples under a named judge. They say how plausible the
spelling is, and nothing of sense beyond a word; text that repeats itself or the training text is judged well too, so
the figure never stands without diversity, nor without that of human text under the same judge.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ORDER = 5


class Judged(NamedTuple):
    """-log p of a text under a judge in ``nats``, and how many of its ``tokens`` and of its ``characters`` that is of.

    ``characters`` is 0 where the judge reads another text than was written (a tokenizer that loses letters).
    """

    nats: float
    tokens: int
    characters: int


class NGram:
    """Witten-Bell interpolation, orders 1 to ``order``, over the characters of ``texts`` and one for all others.

        p_n(c | h) = (count(hc) + types(h) p_{n-1}(c | h[1:])) / (count(h) + types(h)),     p_0 = 1 / characters

    with types(h) the number of different characters that follow h (Witten and Bell 1991). Texts are apart: no history
    reaches from one into the next, and the first characters of a text are judged with what history there is.
    """

    tokenisation = "characters, each text from nothing"

    def __init__(self, texts: Iterable[str], order: int = ORDER, of: str = "the training text") -> None:
        if order < 1:
            raise ValueError(f"order={order}: an n-gram has at least one character")
        self.order, self.of = order, of
        self.counts: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self.types: Counter[str] = Counter()
        for text in texts:
            for n in range(1, order + 1):
                self.counts.update(text[i : i + n] for i in range(len(text) - n + 1))
        if not self.counts:
            raise ValueError("no characters to fit an n-gram on: pass a text")
        for gram, count in self.counts.items():
            self.totals[gram[:-1]] += count
            self.types[gram[:-1]] += 1
        self.characters = self.types[""] + 1

    @property
    def name(self) -> str:
        """What a figure under this judge must be quoted with."""
        return f"character {self.order}-gram of {self.of}, Witten-Bell"

    def probability(self, history: str, character: str) -> float:
        """p(character | history); a character never seen has the probability of the one that stands for all others.

        >>> NGram(["abab"], order=1).probability("", "a")
        0.4444444444444444
        """
        p = 1 / self.characters
        for n in range(min(self.order - 1, len(history)) + 1):
            seen = history[len(history) - n :]
            total = self.totals[seen]
            if not total:  # nor was any longer one
                break
            p = (self.counts[seen + character] + self.types[seen] * p) / (total + self.types[seen])
        return p

    def bits_per_char(self, text: str) -> float:
        """-1/n sum_i log2 p(c_i | c_<i) of a text. Errors: ``ValueError`` for an empty one."""
        if not text:
            raise ValueError("an empty text has no bits per character")
        return self._nats(text) / math.log(2) / len(text)

    def nats(self, texts: Sequence[str]) -> list[Judged]:
        """-log p of each text, nats; a token is a character."""
        return [Judged(self._nats(text), len(text), len(text)) for text in texts]

    def _nats(self, text: str) -> float:
        reach = self.order - 1
        return -sum(math.log(self.probability(text[max(0, i - reach) : i], c)) for i, c in enumerate(text))
