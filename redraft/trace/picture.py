"""A row's trace as a picture: a heat map of position and step (PNG), or its drafts below each other (SVG)."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from rich.console import Console
from rich.table import Table

from redraft.drawing import check_plotting, drawable
from redraft.errors import unknown
from redraft.files import write, write_text
from redraft.trace.record import Mark, Record, Row
from redraft.trace.terminal import coloured

Colour = Literal["confidence", "step"]
COLOURS: tuple[Colour, ...] = ("confidence", "step")
SHOWN = 16
"""Most drafts in one SVG."""
_WIDTH = 100
_NAMED = 48  # most positions whose tokens are named at the axis
_GREY, _BLUE = "#c9c9cf", "#bcd8f2"


def save_svg(record: Record, path: str | Path, row: int = 0, title: str | None = None) -> None:
    """A row's drafts, the latest at the bottom: all of them, or ``SHOWN`` evenly chosen."""
    frames = record.row(row).frames
    count = len(frames)
    chosen = sorted({round(i * (count - 1) / (SHOWN - 1)) for i in range(SHOWN)})
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bright_black")
    table.add_column(overflow="fold")
    for i in chosen:
        table.add_row(f"t = {frames[i].s:.2f}", coloured(record, frames[i]))
    console = Console(record=True, file=io.StringIO(), width=_WIDTH)
    console.print(table)
    write_text(Path(path), console.export_svg(title=title or record.title))


def save_png(record: Record, path: str | Path, row: int = 0, colour: Colour = "confidence") -> None:
    """A heat map of one row: positions from left to right, steps downwards.

    ``colour``: p of the token that stands there when something was last said of it, or the step that wrote it. Masks
    are grey, given tokens blue, tokens of which nothing was said white; a cross marks a re-write, a ring a token taken
    back. Errors: ``ValueError`` without matplotlib, for another colour, and for a row without frames.
    """
    check_plotting("a heat map is a plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure(record, record.row(row), colour)
    write(Path(path), lambda beside: FigureCanvasAgg(figure).print_png(str(beside)))


def _figure(record: Record, row: Row, colour: Colour) -> Any:
    """The heat map, on a canvas of its own: pyplot and its settings are left alone."""
    if colour not in COLOURS:
        raise unknown("colour of a heat map", colour, COLOURS)
    if not row.frames:
        raise ValueError(f"row {row.number} has no frames: nothing was written")
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    steps, length = len(row.frames), max(len(frame.ids) for frame in row.frames)
    width = min(14.0, max(5.5, 0.16 * length + 2))
    figure = cast(Any, Figure(figsize=(width, min(10.0, max(3.0, 0.16 * steps + 1.8))), layout="constrained"))
    axes = figure.add_subplot()
    ground = [[{"mask": 0, "taken": 0, "given": 1}.get(mark, 2) for mark in frame.marks] for frame in row.frames]
    _image(axes, ground, length, cmap=ListedColormap([_GREY, _BLUE, "white"]), vmin=0, vmax=2)
    low, high = (0, 1) if colour == "confidence" else (1, max(2, steps))
    image = _image(axes, _values(row, colour), length, cmap="viridis", vmin=low, vmax=high)
    size = max(1.5, min(6.0, 400 / length))
    shapes: list[tuple[Mark, str, str]] = [("rewritten", "x", "written again"), ("taken", "o", "taken back")]
    for mark, shape, name in shapes:
        if places := [(i, number) for number, frame in enumerate(row.frames) for i in frame.places(mark)]:
            how = {"color": "C3", "markersize": size, "fillstyle": "none", "linestyle": ""}
            axes.plot(*zip(*places, strict=True), marker=shape, label=name, **how)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper right", frameon=False, ncols=2, fontsize="small")
    label = "p of the token that stands" if colour == "confidence" else "written in step"
    figure.colorbar(image, ax=axes, label=label, pad=0.01)
    _axes(axes, record, row, length)
    figure.suptitle(drawable(f"{record.title}, text {row.number + 1}"), x=0.01, ha="left", parse_math=False)
    return figure


def _axes(axes: Any, record: Record, row: Row, length: int) -> None:
    """Their names and ticks; the caption stands below. A frame that is no step has no number of its own."""
    caption = record.summary(row.number)
    last = row.frames[-1]
    axes.set(xlim=(-0.5, length - 0.5), ylim=(len(row.frames) - 0.5, -0.5), ylabel="step")
    axes.set_xlabel("position" + (f"\n{caption}" if caption else ""))
    count = len(row.frames)
    ticks = range(0, count, -(-count // 16))
    names = [{"callback": "callback", "end": "final"}.get(row.frames[i].cause, str(i + 1)) for i in ticks]
    axes.set_yticks(ticks, names, fontsize="small")
    if length <= _NAMED and len(last.ids) == length:
        words = [drawable(word)[:12] for word in record.words(last)]
        axes.set_xticks(range(length), words, rotation=90, fontsize="small", parse_math=False)


def _values(row: Row, colour: Colour) -> list[list[float]]:
    """What the colours stand for; nan where there is nothing to say."""
    nothing = float("nan")
    if colour == "step":
        return [[nothing if one < 0 else one + 1 for one in found.wrote] for found in row.standing()]
    return [
        [nothing if p is None or mark == "given" else p for p, mark in zip(found.sure, frame.marks, strict=True)]
        for found, frame in zip(row.standing(), row.frames, strict=True)
    ]


def _image(axes: Any, values: Iterable[Sequence[float]], length: int, **how: Any) -> Any:
    """Cells (step, position); rows that are shorter end before the edge."""
    import numpy as np

    cells = np.array([[*line, *[float("nan")] * (length - len(line))] for line in values], dtype=float)
    return axes.imshow(cells, aspect="auto", interpolation="nearest", **how)
