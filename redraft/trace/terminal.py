"""A draft changing under one's eyes: live while it is written, and again from a record."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from redraft.trace.record import Frame, Mark, Record

STYLES: dict[Mark, str] = {
    "given": "cyan",
    "mask": "bright_black",
    "written": "bold green",
    "rewritten": "bold yellow",
    "taken": "bold magenta",
    "kept": "",
}
SPEED = 4.0
"""Frames a second of a replay unless asked otherwise."""
_BAR = 20


class Screen:
    """Shows frames of ``record``: on a terminal in place with a line of progress, elsewhere a line for each.

    A context manager: a terminal gets its cursor back whatever happens inside.
    """

    def __init__(self, record: Record, console: Console) -> None:
        self._record, self._console = record, console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        if self._live:
            self._live.start()

    def stop(self) -> None:
        if self._live:
            self._live.stop()

    def show(self, frame: Frame) -> None:
        text = coloured(self._record, frame)
        if self._live:
            self._live.update(Group(progress(frame), text), refresh=True)
        else:
            head = Text(f"{frame.label}  t={frame.s:.2f}  ")
            self._console.print(head.append_text(text), soft_wrap=True)


def coloured(record: Record, frame: Frame, first: int = 0) -> Text:
    """The draft on one line, from position ``first`` on: masks are grey blocks, what is given cyan, what a step wrote
    green, what it wrote over another token yellow, what it took back a magenta block."""
    text, joint = Text(), ""
    for word, mark in [*zip(record.words(frame), frame.marks, strict=True)][first:]:
        text.append(joint).append(word, STYLES[mark])
        joint = record.joint
    return text


def progress(frame: Frame) -> Text:
    """How far a frame is, and what its step did."""
    done = _BAR if frame.cause == "end" else round(_BAR * (frame.index + 1) / max(1, frame.steps))
    text = Text(f"{frame.label}  t={frame.s:.2f}  ", "bright_black")
    text.append("━" * done, "green").append("━" * (_BAR - done), "bright_black")
    text.append(f"  {frame.nfe} calls", "bright_black")
    counts: list[tuple[str, Mark]] = [("written", "written"), ("rewritten", "rewritten"), ("taken back", "taken")]
    for name, mark in counts:
        if count := frame.marks.count(mark):
            text.append(f"  {count} {name}", STYLES[mark])
    return text


def replay(
    record: Record, console: Console, *, row: int = 0, speed: float = SPEED, wait: Callable[[], object] | None = None
) -> None:
    """Show the frames of a row again, ``speed`` a second, and what they cost; at speed 0 ``wait`` for each.

    Without a terminal nothing waits. Errors: ``ValueError`` for a negative speed, a row that was not recorded.
    """
    if not 0 <= speed < float("inf"):
        raise ValueError(f"speed={speed}: pass frames a second, or 0 to step through with the Enter key")
    frames = record.row(row).frames
    # typed lines would break a picture that changes in place: stepping through prints one draft below the other
    if console.is_terminal and speed == 0:
        for number, frame in enumerate(frames):
            console.print(progress(frame))
            console.print(coloured(record, frame))
            if number + 1 < len(frames):
                (wait or _enter)()
    else:
        with Screen(record, console) as screen:
            for number, frame in enumerate(frames):
                screen.show(frame)
                if console.is_terminal and number + 1 < len(frames):
                    time.sleep(1 / speed)
    if said := record.summary(row):
        console.print(Text(said, "bright_black"))


def _enter() -> None:
    with suppress(EOFError):  # nobody is there to press it
        input()
