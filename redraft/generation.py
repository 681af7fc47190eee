"""What is asked of a language model when it writes, which rows that makes, and the texts that come of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from redraft.evaluation import mbr, variety
from redraft.evaluation.mbr import Choice, Gain
from redraft.randomness import derive
from redraft.sampling import Callback, Samples
from redraft.sampling.doubt import POSITIONS_AT_ONCE
from redraft.sampling.lengths import Tried
from redraft.sampling.request import Writing
from redraft.sampling.steps import joined

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


WHICH = ("num", "seed", "seeds")
"""The options that say which texts."""


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
    ``doubt``: what the model thought of the text that is redrafted, if it was asked.
    """

    texts: list[str]
    samples: Samples
    choice: Choice | None = None
    lengths: list[tuple[int, ...]] | None = None
    tried: list[Tried] | None = None
    doubt: Doubt | None = None

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
        each sample has its own ``lengths`` and ``scores``, one for each of ``tried``. Of a doubted text ``doubt``.
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
        return {
            "samples": rows,
            "nfe": self.samples.nfe,
            "positions": self.samples.positions,
            "cost": self.samples.cost.to_dict(),
            "approximate": self.samples.approximate,
            **variety(self.rows),
            **more,
        }


def canvas_of(row: Row) -> tuple[Tensor, Tensor]:
    """Ids (L,), and which of them are given (L,)."""
    canvas = torch.tensor([0 if token is None else token for token in row])
    return canvas, torch.tensor([token is not None for token in row])


def numbered(options: Options, rows: int) -> tuple[list[int], list[int]]:
    """Of each text to write: which of so many ``rows`` it is of, and its seed.

    Errors: ``ValueError`` for no texts, and seeds that are not as many as they.
    """
    num, seeds = options.get("num", 1), options.get("seeds")
    if num < 1:
        raise ValueError(f"num={num}: draw at least one row")
    if seeds is not None and not seeds:
        raise ValueError("seeds=[]: pass one for each text to draw")
    num = len(seeds) if seeds is not None and rows == 1 else num
    own = [row for row in range(rows) for _ in range(num)]
    seeds = [derive(options.get("seed", 0), i) for i in range(len(own))] if seeds is None else list(seeds)
    if len(seeds) != len(own):
        raise ValueError(f"{len(seeds)} seeds for {len(own)} texts: pass one for each")
    return own, seeds


def in_parts(
    write: Callable[..., Samples],
    widths: Sequence[int],
    common: Mapping[str, Any],
    own: Mapping[str, Sequence[Any]],
    first: int = 0,
) -> Samples:
    """Write rows of these ``widths`` so many at a time that memory stays bounded; no row depends on its neighbours.

    ``common`` are options of all, ``own`` has one of each for every row; ``first`` is the number of the first row.
    """
    ends, room, callback = [0], POSITIONS_AT_ONCE, common.get("callback")
    for row, width in enumerate(widths):
        if width > room and row > ends[-1]:
            ends.append(row)
            room = POSITIONS_AT_ONCE
        room -= width
    parts = list[Samples]()
    for start, stop in pairwise([*ends, len(widths)]):
        part = {name: values[start:stop] for name, values in own.items()}
        told = {} if callback is None else {"callback": _told(callback, first + start)}
        parts.append(write(**{**common, **told, **part}))
    return joined(parts, fill=common.get("stop") or 0)


def _told(callback: Callback, first: int) -> Callback:
    """``callback`` for a part of the rows, told their numbers among all."""
    return lambda step: callback(replace(step, rows=[first + row for row in step.rows]))
