"""How rows are drawn of a model: which are asked for, in what way, and as many at a time as memory has room for."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from redraft.generation import Doubt, Options, Row
from redraft.processes import Denoiser, Process
from redraft.randomness import derive
from redraft.sampling import Callback, Cost, Samples, sample, semi_autoregressive
from redraft.sampling.doubt import POSITIONS_AT_ONCE, alone, doubted
from redraft.sampling.growth import Elastic, Growth, elastic, grown
from redraft.sampling.lengths import Tried, best_of, scoring
from redraft.sampling.stages import Shaping
from redraft.sampling.steps import joined

WHICH = ("num", "seed", "seeds")
"""The options that say which texts."""


@dataclass(frozen=True)
class Writer:
    """Draws rows of ``denoiser``, trained on ``context`` tokens, on ``device``; ``eos_id`` ends a text, if one does.

    Options are those of ``sample``; every way is told those that hold for it, and refuses others.
    """

    process: Process
    denoiser: Denoiser
    device: torch.device
    context: int
    eos_id: int | None

    def rows(self, rows: Sequence[Row], options: Options) -> Samples:
        """Texts of canvases, None where they are free."""
        own, seeds = numbered(options, len(rows))
        made = [canvas_of(rows[row]) for row in own]
        parts = {"canvas": [ids for ids, _ in made], "frozen": [known for _, known in made], "seeds": seeds}
        write = partial(sample, self.process, self.denoiser)
        return in_parts(write, [len(rows[row]) for row in own], self.common(options), parts)

    def growing(self, prompts: list[list[int]], wanted: list[int], how: Growth, options: Options) -> Samples:
        """Prompts continued by as much as the model wants, at most what is ``wanted``."""
        common = only(options, "grow", "stop") | {"device": self.device, "stop": self.end(options.get("stop", True))}
        own, seeds = numbered(options, len(prompts))
        parts = {"prompt": [prompts[row] for row in own], "length": [wanted[row] for row in own], "seeds": seeds}
        widths = [len(prompts[row]) + wanted[row] for row in own]
        return in_parts(partial(grown, self.process, self.denoiser, growth=how), widths, common, parts)

    def sliding(self, prompts: list[list[int]], wanted: list[int], stride: int, options: Options) -> Samples:
        """Prompts continued through a window, one after the other."""
        for name in ("stop", "min_length", "constraint", "block", "cache"):
            if options.get(name) not in (None, False) and (name != "min_length" or options.get(name)):
                raise ValueError(f"{name}={options.get(name)!r} with a stride: it is of one window; leave one out")
        own, seeds = numbered(options, len(prompts))
        found = list[Samples]()
        for row, (ids, more) in enumerate(zip(prompts, wanted, strict=True)):
            window = {"window": self.context, "stride": stride, "prompt": ids, "length": more}
            write = partial(semi_autoregressive, self.process, self.denoiser, **window)
            mine = {"seeds": [seed for seed, of in zip(seeds, own, strict=True) if of == row]}
            widths = [self.context] * len(mine["seeds"])
            found.append(in_parts(write, widths, self.common(options), mine, own.index(row)))
        return joined(found)

    def stretching(self, row: Row, marks: Elastic, options: Options) -> Samples:
        """A canvas whose length the model changes, as far as the context has room."""
        marks = replace(marks, budget=min(marks.budget, self.context - len(row)))
        common, (_, seeds) = only(options, "marks", "sampler") | {"device": self.device}, numbered(options, 1)
        canvas, frozen = canvas_of(row)
        parts = {"canvas": [canvas] * len(seeds), "frozen": [frozen] * len(seeds), "seeds": seeds}
        write = partial(elastic, self.process, self.denoiser, marks=marks)
        return in_parts(write, [len(row) + marks.budget] * len(seeds), common, parts)

    def best_of(self, rows: Sequence[Row], options: Options) -> tuple[Samples, list[Tried]]:
        """For each text that one of ``rows`` of whose tokens the model is surest (``lengths.best_of``)."""
        common = self.common(options)
        common["sampler"] = scoring(self.process, options.get("sampler"))
        write, (_, seeds) = partial(sample, self.process, self.denoiser), numbered(options, 1)

        def write_all(**own: Sequence[Any]) -> Samples:
            return in_parts(write, [len(ids) for ids in own["canvas"]], common, own)

        return best_of(write_all, [canvas_of(row) for row in rows], seeds, common.get("stop"))

    def redrafting(self, canvas: Tensor, free: Tensor, strength: float, options: Options) -> Samples:
        """Texts from ``canvas`` (L,), noised to t = ``strength`` where it is ``free`` (L,), and denoised from there."""
        _, seeds = numbered(options, 1)
        parts = {"canvas": [canvas] * len(seeds), "frozen": [~free] * len(seeds), "seeds": seeds}
        write = partial(sample, self.process, self.denoiser, strength=strength)
        return in_parts(write, [len(canvas)] * len(seeds), self.common(options), parts)

    def end(self, stop: bool | int) -> int:
        """The id that ends a text. Errors: ``ValueError`` for a model without one."""
        if not isinstance(stop, bool):
            return stop
        if self.eos_id is None:
            raise ValueError("stop=True with a model that has no end of text: pass the id of a token")
        return self.eos_id

    def common(self, options: Options) -> dict[str, Any]:
        """The options as ``sample`` takes them, but which texts."""
        common: dict[str, Any] = {name: value for name, value in options.items() if name not in WHICH}
        ends = {} if (stop := common.pop("stop", False)) is False else {"stop": self.end(stop)}
        return common | ends | {"device": self.device}


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
