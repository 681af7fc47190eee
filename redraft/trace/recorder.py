"""``Trace``: the callback that records every row of a draw, and shows the first one as it changes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.text import Text

from redraft.trace.record import LONGEST, Cause, Frame, Known, Record, Row, carried, marks
from redraft.trace.terminal import Screen, coloured

if TYPE_CHECKING:
    from torch import Tensor

    from redraft.data import Tokenizer
    from redraft.lm import LM, Generation
    from redraft.sampling import Samples, Step
    from redraft.sampling.steps import Ancestors, Callback, Halt

BUDGET = 1 << 20
"""Positions a trace records unless told otherwise, rows times frames times length: about 100 MB at most."""
MOST = 1 << 22
"""The greatest such budget, whose JSON can still be loaded."""


class Trace:
    """``lm.generate(..., callback=trace)`` records all rows, and shows the first step by step on ``console``.

    Use it as a context manager where it shows something: on a terminal the draft changes in place, elsewhere each step
    prints a line. ``finish(written)`` tells it the finished texts and what they cost; ``save("x.json")``, ``.html``,
    ``.png`` or ``.svg`` writes what it saw, ``record`` holds it. A trace is of one draw.

    ``before``: the ids of a text that is redrafted; what stays of it was not written. ``callback``: another one to
    call after each step, which may rewrite the canvas, seen as a frame of its own, or name ancestors, whose history a
    row then takes over with their text. Vectors it rewrites are seen at the next step only.

    ``budget``: so many positions are recorded. Whole rows are given up for it, those of highest number first, and the
    record says how many; of a single row that is longer, the last steps become one frame.
    """

    def __init__(
        self,
        lm: "LM",
        console: Console | None = None,
        before: Sequence[int] | None = None,
        *,
        callback: "Callback | None" = None,
        budget: int = BUDGET,
        title: str = "redraft",
    ) -> None:
        if not 1 <= budget <= MOST:
            raise ValueError(f"budget={budget}: pass the number of positions to record, from 1 to {MOST}")
        tokenizer = lm.tokenizer
        gap = "░" if tokenizer.kind in ("bytes", "chars") else "░░░"
        self.record = Record({}, lm.process.mask_id, gap, _joint(tokenizer), title[:LONGEST])
        self._tokenizer, self._callback, self._budget = tokenizer, callback, budget
        self._before = None if before is None else tuple(before)
        self._size = 0
        self._most: int | None = None  # rows from this number on are left out
        self._gone = set[int]()
        self._screen = None if console is None else Screen(self.record, console)

    def __enter__(self) -> Self:
        if self._screen:
            self._screen.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._screen:
            self._screen.stop()

    def __call__(self, step: "Step") -> "Tensor | Ancestors | Halt | None":
        numbers = step.rows or list(range(len(step.tokens)))
        self._see(step, numbers)
        said = None if self._callback is None else self._callback(step)
        if said is None:
            return None
        from redraft.sampling.steps import Ancestors, Halt

        if isinstance(said, Ancestors):
            self._follow(numbers, said.rows.tolist())
            return said
        z = said.z if isinstance(said, Halt) else said
        # else of vectors, or a mistake that sample() tells of
        if z is not None and step.z.ndim == 2 and z.shape == step.z.shape:
            self._rewritten(step, numbers, z)
        return said

    @property
    def frames(self) -> list[Frame]:
        """Those of the first row."""
        return self.record.rows[0].frames if 0 in self.record.rows else []

    def step_map(self, row: int = 0) -> list[int]:
        """The frame that last wrote each position of a row, -1 for given ones (``Row.step_map``)."""
        return self.record.row(row).step_map()

    def text(self, frame: Frame) -> Text:
        """The draft in colours, on one line."""
        return coloured(self.record, frame)

    def save(self, path: str | Path, row: int = 0) -> None:
        """Write what was recorded, in the format that the name's ending asks for (``Record.save``)."""
        self.record.save(path, row)

    def save_svg(self, path: str | Path, title: str = "redraft") -> None:
        """A picture of the first row's drafts, the latest at the bottom."""
        from redraft.trace.picture import save_svg

        save_svg(self.record, path, title=title)

    def finish(self, written: "Generation | Samples | Tensor") -> None:
        """Tell of the finished texts of all rows, which may differ from the last drafts, and of what they cost.

        Vectors are rounded to tokens after the last step, masks that were left are filled. Of plain ``tokens`` (B, L)
        the cost stays unknown. Where fewer texts are returned than were drawn, one of several being kept, their cost is
        all that is told: which rows they were is not known here.
        """
        samples: Any = getattr(written, "samples", written)
        tokens: list[list[int]] = getattr(samples, "tokens", samples).tolist()
        count = len(tokens) if len(tokens) > max([-1, *self.record.rows, *self._gone]) else 0
        self._tell(samples if hasattr(samples, "cost") else None, count)
        for number in range(count):
            if self._wanted(number):
                self._end(number, tuple(tokens[number]))
            else:
                self._gone.add(number)
        self._trim()

    def _tell(self, samples: "Samples | None", count: int) -> None:
        """What the samples say of rows and cost."""
        for number in range(count):
            if self._wanted(number):
                row = self._row(number)
                if samples is not None:
                    row.seed, row.length = samples.seeds[number], samples.lengths[number]
                    row.calls = samples.cost.of_rows[number]
        if samples is not None:
            cost = samples.cost.to_dict()
            names = ("nfe", "positions", "cached", "written", "tokens_per_forward", "seconds")
            self.record.cost = {name: cost[name] for name in names}
            self.record.approximate = samples.approximate

    def _end(self, number: int, ids: tuple[int, ...]) -> None:
        """The finished text as a frame, if it is not the last one; ids behind a shorter row's own are no part of it."""
        row = self._row(number)
        last = row.frames[-1] if row.frames else None
        if last is not None or row.length is not None:
            ids = ids[: max(row.length or 0, 0 if last is None else len(last.ids))]
        if last is None or ids != last.ids:
            place = (0, 0, 0.0, 0.0, 0) if last is None else (last.index, last.steps, last.s, 0.0, last.nfe)
            self._add(number, "end", place, ids, [False] * len(ids))

    def _see(self, step: "Step", numbers: list[int]) -> None:
        """A frame of each row that is recorded; one that was finished before has gone through no step."""
        self._gone.update(number for number in numbers if not self._wanted(number))
        if not any(map(self._wanted, numbers)):
            return
        place = (step.index, step.steps, step.t, step.s, step.nfe)
        parts = (part.tolist() for part in (step.tokens, step.frozen, step.confidence, step.entropy))
        over = [False] * len(numbers) if step.over is None else step.over.tolist()
        for number, done, ids, frozen, sure, doubt in zip(numbers, over, *parts, strict=True):
            if self._wanted(number):
                text, given = self._whole(number, step.offset, ids, frozen)
                frames = self._row(number).frames
                if not (done and frames and frames[-1].ids == text):
                    self._add(number, "step", place, text, given, _heard(sure, doubt))
        self._trim()

    def _rewritten(self, step: "Step", numbers: list[int], said: "Tensor") -> None:
        """A frame of each row that the callback changed: where tokens are given, or no block is at work, it cannot."""
        place = (step.index, step.steps, step.t, step.s, step.nfe)
        parts = (part.tolist() for part in (step.tokens, step.frozen, said))
        for number, ids, frozen, now in zip(numbers, *parts, strict=True):
            free = range(step.start, len(ids) if step.stop is None else step.stop)
            put = [now[i] if i in free and not frozen[i] else one for i, one in enumerate(ids)]
            if put != ids and self._wanted(number):
                self._add(number, "callback", place, *self._whole(number, step.offset, put, frozen))
        self._trim()

    def _follow(self, numbers: list[int], ancestors: list[int]) -> None:
        """Each row takes over the history of the row it goes on from; its own stays where that was not recorded."""
        rows = self.record.rows
        frames = {number: list(rows[number].frames) for number in numbers if number in rows}
        for number, ancestor in zip(numbers, ancestors, strict=True):
            if number in rows and 0 <= ancestor < len(numbers) and numbers[ancestor] in frames:
                rows[number].frames = list(frames[numbers[ancestor]])
        self._size = sum(row.size for row in rows.values())
        self._trim()

    def _whole(
        self, number: int, offset: int, ids: list[int], frozen: list[bool]
    ) -> tuple[tuple[int, ...], list[bool]]:
        """The row's text, and what is given in it, of which a window was seen that begins at ``offset``."""
        frames = self._row(number).frames
        ahead = frames[-1].ids[:offset] if frames else ()
        if len(ahead) < offset:
            raise ValueError(f"a window that begins at {offset}, and {len(ahead)} tokens were seen: use a new trace")
        return (*ahead, *ids), [False] * offset + frozen

    def _add(
        self,
        number: int,
        cause: Cause,
        place: tuple[int, int, float, float, int],
        ids: tuple[int, ...],
        frozen: list[bool],
        heard: tuple[Known, Known] = ((), ()),
    ) -> None:
        """A frame against the one before. A position is given if it was so when it was first seen."""
        row = self._row(number)
        if cause != "end" and self._full(row, len(ids)):
            self.record.cut = True
            self._size -= len(row.frames.pop().ids)  # the steps since the frame before it become one
        last = row.frames[-1] if row.frames else None
        old = row.before if last is None else last.ids
        origin: list[int | None] = [None] * len(ids) if old is None else carried(old, ids)
        given = [frozen[i] if last is None or j is None else last.marks[j] == "given" for i, j in enumerate(origin)]
        for one in {*ids} - self.record.texts.keys():
            self.record.texts[one] = self._tokenizer.tokens([one])[0][:LONGEST]
        sure, doubt = ((None,) * (len(ids) - len(part)) + part for part in heard)  # what stands ahead of a window
        frame = Frame(cause, *place, ids, sure, doubt, marks(old, ids, origin, given, self.record.mask))
        row.frames.append(frame)
        self._size += len(ids)
        if self._screen and number == 0:
            self._screen.show(frame)

    def _full(self, row: Row, more: int) -> bool:
        """Whether one row alone is at the budget."""
        return len(self.record.rows) == 1 and len(row.frames) > 1 and self._size + more > self._budget

    def _trim(self) -> None:
        """Give up rows from the last on until the rest is within the budget."""
        rows = self.record.rows
        while self._size > self._budget and len(rows) > 1:
            self._most = max(rows)
            self._size -= rows.pop(self._most).size
            self._gone.add(self._most)
        self.record.left_out = len(self._gone)

    def _wanted(self, number: int) -> bool:
        return self._most is None or number < self._most

    def _row(self, number: int) -> Row:
        return self.record.rows.setdefault(number, Row(number, self._before))


def _heard(sure: list[float], doubt: list[float]) -> tuple[Known, Known]:
    """p and entropy of each position, None for nan."""
    asked = [not math.isnan(one) for one in doubt]
    p = tuple(_rounded(min(p, 1.0)) if a and not math.isnan(p) else None for p, a in zip(sure, asked, strict=True))
    return p, tuple(_rounded(max(h, 0.0)) if a else None for h, a in zip(doubt, asked, strict=True))


def _rounded(number: float) -> float:
    """To 4 significant digits, so that small probabilities keep their size."""
    return float(f"{number:.4g}")


def _joint(tokenizer: "Tokenizer") -> str:
    """What stands between two tokens in a text: a blank where tokens are words, else nothing."""
    plain = next(i for i in range(tokenizer.K) if i not in (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id))
    return "" if tokenizer.decode([plain, plain]) == "".join(tokenizer.tokens([plain, plain])) else " "
