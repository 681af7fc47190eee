"""A draft changing under one's eyes: a sampling callback that draws each step in the terminal or as a picture."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from redraft.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

    from redraft.data import Tokenizer
    from redraft.lm import LM
    from redraft.sampling import Step

Mark = Literal["given", "mask", "written", "rewritten", "kept"]
STYLES: dict[Mark, str] = {
    "given": "cyan",
    "mask": "bright_black",
    "written": "bold green",
    "rewritten": "bold yellow",
    "kept": "",
}
SHOWN = 16
"""Most drafts in one picture."""
_WIDTH = 100


@dataclass(frozen=True)
class Frame:
    """The first row at time ``t``, after the step that ``label`` names: its ids, and what became of each token."""

    label: str
    t: float
    ids: list[int]
    marks: list[Mark]


class Trace:
    """``lm.generate(..., callback=trace)`` shows the first row step by step; use it as a context manager.

    On a terminal the draft changes in place, elsewhere each step prints a line; with ``console=None`` nothing is shown
    and ``save_svg`` draws the picture. Masks are grey blocks, tokens written in a step green, tokens written over
    another yellow, given ones blue. ``before`` are the ids of a text that is redrafted: what stays of it was not
    written.
    """

    def __init__(self, lm: "LM", console: Console | None = None, before: Sequence[int] | None = None) -> None:
        self.frames: list[Frame] = []
        self._tokenizer, self._mask_id = lm.tokenizer, lm.process.mask_id
        self._joint = _joint(lm.tokenizer)
        self._block = "░" if lm.tokenizer.kind in ("bytes", "chars") else "░░░"
        self._given: list[bool] = []
        self._before = before
        self._steps, self._over = 0, False
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console and console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, step: "Step") -> None:
        # many rows come in several parts, the first row in the first; long texts in windows, of which one is shown
        self._over = self._over or step.index < self._steps
        if self._over:
            return
        self._steps = step.index + 1
        self._given = step.frozen[0].tolist()
        self._add(f"step {step.index + 1}/{step.steps}", step.s, step.tokens)

    def finish(self, tokens: "Tensor") -> None:
        """Show the finished text where it is not the last draft: vectors are rounded to tokens after the last step."""
        if not self.frames or tokens[0].tolist() != self.frames[-1].ids:
            self._add("final text", 0.0, tokens)

    def text(self, frame: Frame) -> Text:
        """The draft in colours, on one line."""
        text, joint = Text(), ""
        for token, mark in zip(self._tokenizer.tokens(frame.ids), frame.marks, strict=True):
            text.append(joint).append(self._block if mark == "mask" else visible(token), STYLES[mark])
            joint = self._joint
        return text

    def save_svg(self, path: str | Path, title: str = "redraft") -> None:
        """A picture of the drafts, the latest at the bottom: all of them, or ``SHOWN`` evenly chosen."""
        count = len(self.frames)
        chosen = sorted({round(i * (count - 1) / (SHOWN - 1)) for i in range(SHOWN)})
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="bright_black")
        table.add_column(overflow="fold")
        for i in chosen:
            table.add_row(f"t = {self.frames[i].t:.2f}", self.text(self.frames[i]))
        console = Console(record=True, file=io.StringIO(), width=_WIDTH)
        console.print(table)
        write_text(Path(path), console.export_svg(title=title))

    def _add(self, label: str, t: float, tokens: "Tensor") -> None:
        ids: list[int] = tokens[0].tolist()
        frame = Frame(label, t, ids, self._marks(ids))
        self.frames.append(frame)
        header = f"{label}  t={t:.2f}"
        if self._live:
            self._live.update(Group(Text(header, style="bright_black"), self.text(frame)), refresh=True)
        elif self._console:
            self._console.print(Text(header + "  ").append_text(self.text(frame)), soft_wrap=True)

    def _marks(self, ids: list[int]) -> list[Mark]:
        # before the first step all was mask, or noise that nobody has seen
        unseen = ids if self._mask_id is None else [self._mask_id] * len(ids)
        unseen = unseen if self._before is None else list(self._before)
        before = self.frames[-1].ids if self.frames else unseen
        before = before + unseen[len(before) :]  # a text longer than its first window, which is what was seen
        given = self._given + [False] * (len(ids) - len(self._given))
        return [self._mark(*one) for one in zip(before, ids, given, strict=True)]

    def _mark(self, before: int, now: int, given: bool) -> Mark:
        if given:
            return "given"
        if now == self._mask_id:
            return "mask"
        if before == self._mask_id:
            return "written"
        return "kept" if before == now else "rewritten"


def visible(text: str, keep: str = "") -> str:
    """``text`` with control characters, which could steer a terminal, as the pictures Unicode has for them."""
    return "".join(one if one in keep or one.isprintable() else _picture(one) for one in text)


def _picture(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return "↵"
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "�" if code < 0xA0 else character


def _joint(tokenizer: "Tokenizer") -> str:
    """What stands between two tokens in a text: a blank where tokens are words, else nothing."""
    plain = next(i for i in range(tokenizer.K) if i not in (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id))
    return "" if tokenizer.decode([plain, plain]) == "".join(tokenizer.tokens([plain, plain])) else " "
