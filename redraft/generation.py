"""What is asked of a language model when it writes, and the texts that come of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.evaluation import mbr, variety
from redraft.evaluation.mbr import Choice, Gain
from redraft.sampling import Samples
from redraft.sampling.lengths import Tried
from redraft.sampling.request import Writing

Row = Sequence[int | None]
"""Ids of a canvas, None where it is free."""


class Options(Writing, total=False):
    """Options of ``sample``, which says what they mean; all ways to write take them.

    ``stop``: True ends texts at the tokenizer's end of text, an id at that token. ``banned``: ids, which
    ``lm.tokenizer.token`` finds. ``num`` texts are written of each row.
    """

    num: int
    seed: int
    seeds: Sequence[int] | None
    stop: bool | int
    min_length: int
    given: str | None
    resample: int


@dataclass(frozen=True)
class Doubt:
    """log p of each token given all others, nats, None where it was not asked; and which tokens were redrafted."""

    logp: list[float | None]
    chosen: list[bool]


@dataclass(frozen=True)
class Generation:
    """Texts as written, prompt included, with what they cost and the seeds that write each of them again, alone.

    ``choice`` says how the text came to be selected, if it was (``select``); what it cost is then the cost of all.
    ``lengths`` are those that were tried of spans of unknown length, and ``tried`` what came of it, for each text.
    ``doubt``: what the model thought of the text that is redrafted, if it was asked. Of a conversation the texts are
    answers alone, and ``dropped`` is how many of its exchanges were left out for want of room.
    """

    texts: list[str]
    samples: Samples
    choice: Choice | None = None
    lengths: list[tuple[int, ...]] | None = None
    tried: list[Tried] | None = None
    doubt: Doubt | None = None
    dropped: int | None = None

    @property
    def text(self) -> str:
        """The first text."""
        return self.texts[0]

    @property
    def tokens(self) -> Tensor:
        """(B, L) ids."""
        return self.samples.tokens

    @property
    def rows(self) -> list[list[int]]:
        """The ids of each text, as many as are its own."""
        lengths = self.samples.lengths
        return [row[:length] for row, length in zip(self.tokens.tolist(), lengths, strict=True)]

    def select(self, gain: str | Gain = "bleu") -> "Generation":
        """The one text that agrees best with the others: minimum Bayes risk under ``gain``, the first of equals.

        Names are those of ``redraft.evaluation.mbr.GAINS``; a function (hypothesis, reference) is given texts. To draw
        many and keep one: ``lm.generate(num=50).select("bleu")``. Errors: ``ValueError`` for an unknown gain.
        """
        rows: list[Any] = self.rows if gain in mbr.OF_ROWS else self.texts
        choice = mbr.choose(rows, gain)
        kept = slice(choice.index, choice.index + 1)
        tried = None if self.tried is None else self.tried[kept]
        samples = self.samples.rows(torch.tensor([choice.index], device=self.tokens.device))
        return replace(self, texts=self.texts[kept], samples=samples, choice=choice, tried=tried)

    def to_dict(self) -> dict[str, Any]:
        """``samples`` with text and seed; ``nfe``, ``positions`` and all of the ``cost``; whether an ``approximate``
        cache was used; and how varied the rows are.

        Of a selected text also ``choice``: its index, mean gain, and the number it was chosen from. Of tried lengths
        each sample has its own ``lengths`` and ``scores``, one for each of ``tried``. Of a doubted text ``doubt``, of
        answers ``dropped``.
        """
        pairs = zip(self.texts, self.samples.seeds, strict=True)
        rows: list[dict[str, Any]] = [{"text": text, "seed": seed} for text, seed in pairs]
        more: dict[str, Any] = {}
        if self.lengths is not None and self.tried is not None:
            more["tried"] = [list(one) for one in self.lengths]
            for row, one in zip(rows, self.tried, strict=True):
                row |= {"lengths": list(self.lengths[one.kept]), "scores": one.scores}
        for name in ("choice", "doubt"):
            if (value := getattr(self, name)) is not None:
                more[name] = asdict(value)
        more |= {} if self.dropped is None else {"dropped": self.dropped}
        return {
            "samples": rows,
            "nfe": self.samples.nfe,
            "positions": self.samples.positions,
            "cost": self.samples.cost.to_dict(),
            "approximate": self.samples.approximate,
            **variety(self.rows),
            **more,
        }


def filled(options: Options, usual: Mapping[str, Any]) -> Options:
    """``options`` where they say something, and what is ``usual`` where they do not; the length apart."""
    given = {name: value for name, value in options.items() if value is not None}
    both: Any = {name: value for name, value in usual.items() if name != "length"} | given
    return both
