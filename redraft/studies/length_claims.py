"""What the records of study ``length`` say: what a longer canvas does to an answer, and what undoes it."""

from collections.abc import Mapping, Sequence
from typing import Any

from redraft.studies.findings import (
    Conclusion,
    Estimate,
    Finding,
    Plot,
    Table,
    alike,
    below,
    mean_over,
    nothing,
    pooled,
    share,
)
from redraft.studies.runner import Record, rows_by

SAME = "learned with ends of text to fill the canvas, answers are as often right on any canvas within the learned one"
KEPT = "learned with ends of text to fill the canvas, refusals are as many on any canvas within the learned one"
BEYOND = "on a canvas beyond the learned one fewer answers are right"
PACKED = "learned with one end each, fewer answers are right on a canvas longer than any answer than on one that fits"
FITTED = "a canvas with room for the answer makes fewer refusals than one that fits a refusal"
REFUSED = "a canvas longer than any answer makes fewer refusals than one with just the room"
COMPLIED = "what a canvas longer than any answer makes of refusals are answers"
BLOCKS = "written in blocks, more answers are right on the longest canvas"
LATE = "where ends of text wait, fewer answers on the longest canvas are too short"
CLAIMS = (SAME, KEPT, BEYOND, PACKED, FITTED, REFUSED, COMPLIED, BLOCKS, LATE)

ANSWERED, ASKED_NOT_TO = "?", "!"
FITTING = 0
FILLING, RANDOM = ("filled", "varied"), ("low_confidence", "ancestral")
LEARNED = {"filled": 32, "batch": 8, "packed": 8, "varied": 32}
"""The longest canvas that a cell's model was taught."""

Row = Mapping[str, Any]
Got = dict[str, dict[tuple[str, int, str], list[Row]]]
"""By cell, then by way, canvas and mark: a row a seed."""


def conclude(records: Sequence[Record]) -> Conclusion:
    """Tables, a plot and findings, from the records alone."""
    got: Got = rows_by(records, "way", "canvas", "mark")
    if not got:
        return Conclusion(findings=nothing(CLAIMS, "no cell succeeded."))
    found = [one for name in got for way in RANDOM for one in _of_canvas(name, way, got)]
    found += [one for name in got for one in _of_ways(name, got)]
    return Conclusion([_table(name, got[name]) for name in got], [_plot(got)], found)


def shares(cell: Mapping[tuple[str, int, str], Sequence[Row]], way: str, mark: str, what: str) -> dict[int, Estimate]:
    """The share of answers that are ``what``, by canvas; over the seeds."""
    return {
        canvas: pooled([share(row[what], row["n"]) for row in rows])
        for (of, canvas, about), rows in cell.items()
        if (of, about) == (way, mark)
    }


def _named(way: str, values: Mapping[int, Estimate]) -> dict[str, Estimate]:
    return {f"{way} on {_canvas(canvas)}": value for canvas, value in values.items()}


def _canvas(canvas: int) -> str:
    return "a fitting one" if canvas == FITTING else str(canvas)


def _of_canvas(name: str, way: str, got: Got) -> list[Finding]:
    """What the canvas does to the answers of one model, written one way."""
    label = f"{name}, {way}"
    right = shares(got[name], way, ANSWERED, "right")
    refused = shares(got[name], way, ASKED_NOT_TO, "refused")
    complied = shares(got[name], way, ASKED_NOT_TO, "complied")
    longest, found = f"{label} on {max(right)}", list[Finding]()
    if name in FILLING:
        within = [f"{label} on {canvas}" for canvas in right if FITTING < canvas <= LEARNED[name]]
        found.append(alike(SAME, within, _named(label, right), "of answers right"))
        found.append(alike(KEPT, within, _named(label, refused), "of answers refusals"))
    if name == "packed":
        twice = min(canvas for canvas in right if canvas > LEARNED[name])
        pair = f"{label} on {twice}", f"{label} on {_canvas(FITTING)}"
        found.append(below(PACKED, *pair, _named(label, right), "of answers right"))
    else:
        found.append(below(BEYOND, longest, f"{label} on {LEARNED[name]}", _named(label, right), "of answers right"))
    fitting, room = (f"{label} on {_canvas(at)}" for at in sorted(right)[:2])
    found.append(below(FITTED, room, fitting, _named(label, refused), "of answers refusals"))
    found.append(below(REFUSED, longest, room, _named(label, refused), "of answers refusals"))
    found.append(below(COMPLIED, room, longest, _named(label, complied), "of answers begin as asked"))
    return found


def _of_ways(name: str, got: Got) -> list[Finding]:
    """What blocks and waiting ends do on the longest canvas."""
    found = list[Finding]()
    for claim, way, what, unit in (
        (BLOCKS, "blocks", "right", "of answers right"),
        (LATE, "late ends", "short", "of answers too short"),
    ):
        values = {one: shares(got[name], one, ANSWERED, what) for one in (RANDOM[0], way)}
        named = {f"{name}, {one}": each[max(each)] for one, each in values.items()}
        usual, new = f"{name}, {RANDOM[0]}", f"{name}, {way}"
        left, right = (usual, new) if what == "right" else (new, usual)
        found.append(below(claim, left, right, named, unit))
    return found


def _table(name: str, cell: Mapping[tuple[str, int, str], Sequence[Row]]) -> Table:
    lines = list[tuple[str, ...]]()
    for (way, canvas, mark), rows in cell.items():
        if mark != ANSWERED:
            continue
        other = cell[way, canvas, ASKED_NOT_TO]
        asked = (_percent(rows, "right"), _percent(rows, "short"), _percent(rows, "long"), _percent(rows, "ended"))
        lengths = f"{mean_over(rows, 'length'):.1f} for {mean_over(rows, 'right_length'):.1f}"
        tail = (f"{mean_over(rows, 'ends'):.2f}", f"{mean_over(rows, 'unigram_entropy'):.2f}")
        calls, refused = f"{mean_over(rows, 'calls'):.1f}", (_percent(other, "refused"), _percent(other, "complied"))
        lines.append((way, _canvas(canvas), *asked, lengths, *tail, calls, *refused))
    columns = (
        *("way", "canvas", "right", "too short", "too long", "ended", "letters", "share of ends", "unigram entropy"),
        *("calls", "of !: refused", "of !: begin as asked"),
    )
    note = (
        f"Prompts with ?, all but the last two columns. The model was taught canvases up to {LEARNED[name]}; a fitting "
        "canvas has room for the right answer, of ! the refusal, and its end. The data refuse three of four with !."
    )
    return Table(name, columns, lines, note)


def _percent(rows: Sequence[Row], what: str) -> str:
    return pooled([share(row[what], row["n"]) for row in rows]).percent()


def _plot(got: Got) -> Plot:
    def draw(figure: Any) -> None:
        grid = figure.subplots(2, len(got), squeeze=False, sharey=True)
        for column, (name, cell) in enumerate(got.items()):
            for axes, mark, what in zip(grid[:, column], (ANSWERED, ASKED_NOT_TO), ("right", "refused"), strict=True):
                for way in dict.fromkeys(way for way, *_ in cell):
                    values = shares(cell, way, mark, what)
                    heights, errors = [one.mean for one in values.values()], [one.error for one in values.values()]
                    axes.errorbar(range(len(values)), heights, errors, fmt="o-", ms=3, capsize=2, label=way)
                    axes.set_xticks(range(len(values)), ["fits" if c == FITTING else str(c) for c in values])
                axes.set(title=f"{name}: {what}", ylim=(-0.05, 1.05))
            grid[1, column].axhline(0.75, color="grey", lw=0.8)
            grid[1, column].set(xlabel="canvas")
        grid[0, 0].legend(fontsize=7)

    caption = "Right answers to ?, and refusals of !, by the canvas asked for; grey: the share of refusals in the data."
    return Plot("canvas", caption, draw, (3.2 * max(2, len(got)), 6.0))
