"""What is asked of a language model when it writes, which rows that makes, and the texts that come of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from redraft.evaluation import mbr, variety
from redraft.evaluation.mbr import Choice, Gain
from redraft.processes import Denoiser, Process
from redraft.randomness import derive
from redraft.sampling import Callback, Cost, Samples
from redraft.sampling.doubt import POSITIONS_AT_ONCE, alone, doubted
from redraft.sampling.lengths import Tried
from redraft.sampling.request import Writing
from redraft.sampling.stages import Shaping
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


def canvas_of(row: Row) -> tuple[Tensor, Tensor]:
    """Ids (L,), and which of them are given (L,)."""
    canvas = torch.tensor([0 if token is None else token for token in row])
    return canvas, torch.tensor([token is not None for token in row])


def only(options: Options, mode: str, *more: str) -> dict[str, Any]:
    """Those of the options that hold where lengths change, ``mode`` says how. Errors: ``ValueError`` for others."""
    known = (*WHICH, *Shaping.__annotations__, "callback", *more)
    for name, value in options.items():
        if name not in known and value not in (None, False, 0):
            raise ValueError(f"{name}={value!r} with {mode}: it is of texts whose length is known; leave it out")
    return {name: value for name, value in options.items() if name in known[len(WHICH) :] and value is not None}


def paired(
    prompts: list[list[int]], length: int | Sequence[int] | None
) -> tuple[list[list[int]], list[int] | list[int | None]]:
    """A prompt and a length for each text. Errors: ``ValueError`` where neither is one for all others."""
    lengths = [length] if length is None or isinstance(length, int) else list(length)
    asked = max(len(prompts), len(lengths))
    if not {len(prompts), len(lengths)} <= {1, asked}:
        raise ValueError(f"{len(prompts)} prompts and {len(lengths)} lengths: pass one for all, or one for each")
    return prompts * asked if len(prompts) == 1 else prompts, lengths * asked if len(lengths) == 1 else lengths


def room(context: int, ids: Row, length: int | None, most: int | None = None, window: bool = False) -> int:
    """How many tokens to write after a prompt in so long a ``context``, or through a ``window`` of it.

    What there is room for unless a ``length`` is given, and ``most`` at most. Errors: ``ValueError`` for a length that
    does not fit.
    """
    left = context - len(ids)
    if length is None:
        length = left if most is None else most if window else min(most, left)
    if length < 1 or (not window and length > left):
        raise ValueError(
            f"a prompt of {len(ids)} tokens and {length} to write do not fit the {context} positions trained on: pass "
            f"length from 1 to {left}, a shorter prompt, or a stride"
        )
    return length


def doubts(
    process: Process, denoiser: Denoiser, ids: Tensor, among: Tensor, share: float | None, below: float | None
) -> tuple[Tensor, Doubt, Cost]:
    """What is to be redrafted of a text, (L,) bool; nothing is asked where that is nothing in any case."""
    logp, cost = torch.full(ids.shape, torch.nan, dtype=torch.float64), Cost(of_rows=[0])
    chosen = doubted(logp, among, share, below)  # a mistake is one there too
    if share != 0 and below != 0:
        logp, cost = alone(process, denoiser, ids, among)
        logp = logp.cpu()
        chosen = doubted(logp, among, share, below)
    told = [None if math.isnan(value) else value for value in logp.tolist()]
    return chosen, Doubt(told, chosen.tolist()), cost


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
