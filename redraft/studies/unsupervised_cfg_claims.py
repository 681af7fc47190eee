"""What the records of study ``unsupervised-cfg`` say: what guidance by a hidden prompt gains, and what it costs."""

from collections.abc import Mapping, Sequence
from typing import Any

from redraft.evaluation.intervals import ratio
from redraft.studies.findings import (
    Conclusion,
    Estimate,
    Finding,
    Plot,
    Table,
    alike,
    below,
    higher,
    mean_of,
    mean_over,
    nothing,
    pooled,
)
from redraft.studies.runner import Record, rows_by

FOLLOWS = "guided by hiding the prompt, w = 1, answers follow their prompt more often"
RIGHT = "guided by hiding the prompt, w = 1, more answers are right"
MORE = "the stronger the guidance, w = 4 against 1, the more answers follow their prompt"
VARIETY = "guidance, w = 1, costs variety"
DROP = "guidance gains more where prompts were dropped in training"
NEEDLESS = "a model that learned whole texts gains as much as one whose prompts were dropped"
FORWARDS = "at equal forwards guidance makes more answers right than twice the steps do"
BETTER = "guided, w = 1, a model whose prompts were never dropped makes more answers right than one whose were"
CLAIMS = (FOLLOWS, RIGHT, MORE, VARIETY, DROP, NEEDLESS, BETTER, FORWARDS)

ANSWERS, DROPPED, WHOLE = "answers", "dropped", "whole"
NONE, ONE, STRONG = 0.0, 1.0, 4.0

Row = Mapping[str, Any]
Of = dict[tuple[int, float], list[Row]]
"""By steps and weight: a row a seed."""


def conclude(records: Sequence[Record]) -> Conclusion:
    """A table, a plot and findings, from the records alone."""
    got: dict[str, Of] = rows_by(records, "steps", "weight")
    if not got:
        return Conclusion(findings=nothing(CLAIMS, "no cell succeeded."))
    found = list[Finding]()
    for name, cell in got.items():
        for steps in _steps(cell):
            found += _of_guidance(f"{name}, {steps} steps", cell, steps)
        found.append(_forwards(name, cell))
    found += [one for steps in _steps(next(iter(got.values()))) for one in _of_training(got, steps)]
    return Conclusion([_table(name, cell) for name, cell in got.items()], [_plot(got)], found)


def _steps(cell: Of) -> list[int]:
    return sorted({steps for steps, _ in cell})


def mean(rows: Sequence[Row], what: str) -> Estimate:
    """The mean over prompts of what was counted for each, over the seeds."""
    return pooled([mean_of(row[what]) for row in rows])


def gain(cell: Of, what: str, at: tuple[int, float], over: tuple[int, float]) -> Estimate:
    """How much more of it there is in these steps at this weight than ``over`` others."""
    return more_of(what, cell[at], cell[over])


def more_of(what: str, rows: Sequence[Row], over: Sequence[Row]) -> Estimate:
    """How much more of it there is than ``over`` others: prompt by prompt, so that what differs between prompts is no
    error. The mean over as many seeds as both have."""
    pairs = zip(rows, over, strict=False)
    return pooled([mean_of([a - b for a, b in zip(one[what], two[what], strict=True)]) for one, two in pairs])


def repeats(rows: Sequence[Row]) -> Estimate:
    """Pairs of right answers to a prompt that are the same, over those of as many draws of the law: 1 for the law."""
    return pooled([ratio(row["same"], row["same_by_law"]) for row in rows if sum(row["same_by_law"])])


def _of_guidance(where: str, cell: Of, steps: int) -> list[Finding]:
    found = list[Finding]()
    for claim, what, weight, over in (
        (FOLLOWS, "follows", ONE, NONE),
        (RIGHT, "right", ONE, NONE),
        (MORE, "follows", STRONG, ONE),
    ):
        more = gain(cell, what, (steps, weight), (steps, over))
        before, after = (mean(cell[steps, one], what).percent() for one in (over, weight))
        sentence = f"{where}: {before} at w = {over:g}, {after} at w = {weight:g}; prompt by prompt {_points(more)}."
        found.append(Finding(claim, higher(more), sentence))
    named = {f"{where}, w = {w:g}": cell[steps, w] for w in (NONE, ONE)}
    if not all(any(sum(row["same_by_law"]) for row in rows) for rows in named.values()):
        return [*found, Finding(VARIETY, "not measured", f"{where}: no prompt has two right answers.")]
    plain, guided = named
    values = {name: repeats(rows) for name, rows in named.items()}
    return [*found, below(VARIETY, plain, guided, values, "times the repeats of the law")]


def _forwards(name: str, cell: Of) -> Finding:
    """Plain answers in most steps against guided ones in half as many."""
    most = max(_steps(cell))
    plain, guided = (most, NONE), (most // 2, ONE)
    if guided not in cell:
        return Finding(FORWARDS, "not measured", f"{name}: nothing was written in half of {most} steps.")
    more = gain(cell, "right", guided, plain)
    before, after = (mean(cell[one], "right").percent() for one in (plain, guided))
    sentence = (
        f"{name}: {before} are right in {most} plain steps, {after} in {most // 2} guided ones; "
        f"prompt by prompt {_points(more)}."
    )
    return Finding(FORWARDS, higher(more), sentence)


def _of_training(got: Mapping[str, Of], steps: int) -> list[Finding]:
    """What was learned of prompts, by what guidance gains of right answers."""
    gains = {f"{name}, {steps} steps": gain(cell, "right", (steps, ONE), (steps, NONE)) for name, cell in got.items()}
    plain, dropped, whole = (f"{name}, {steps} steps" for name in (ANSWERS, DROPPED, WHOLE))
    unit = "more of the answers right at w = 1 than at 0"
    return [
        below(DROP, plain, dropped, gains, unit),
        alike(NEEDLESS, [whole, dropped], gains, unit),
        *(_better(got, name, steps) for name in (ANSWERS, WHOLE)),
    ]


def _better(got: Mapping[str, Of], name: str, steps: int) -> Finding:
    """Guided answers of a model whose prompts were never dropped against those of one whose were."""
    if name not in got or DROPPED not in got:
        return Finding(BETTER, "not measured", f"{name} against {DROPPED}: a cell is missing.")
    rows, dropped = got[name][steps, ONE], got[DROPPED][steps, ONE]
    more = more_of("right", rows, dropped)
    sentence = (
        f"{steps} steps: {mean(rows, 'right').percent()} of {name}, {mean(dropped, 'right').percent()} of {DROPPED}; "
        f"prompt by prompt {_points(more)}."
    )
    return Finding(BETTER, higher(more), sentence)


def _points(gain: Estimate) -> str:
    return f"{100 * gain.mean:+.1f} ± {100 * gain.error:.1f} points"


def _table(name: str, cell: Of) -> Table:
    lines = list[tuple[str, ...]]()
    for (steps, weight), rows in cell.items():
        follows, right = mean(rows, "follows").percent(), mean(rows, "right").percent()
        counted = any(sum(row["same_by_law"]) for row in rows)
        rest = (repeats(rows).text(2) if counted else "-", mean(rows, "distance").text())
        well = f"{100 * mean_over(rows, 'well_formed'):.1f}%"
        calls, entropy = f"{mean_over(rows, 'nfe'):.0f}", f"{mean_over(rows, 'unigram_entropy'):.2f}"
        lines.append((str(steps), f"{weight:g}", calls, follows, well, right, *rest, entropy))
    columns = ("steps", "w", "forwards", "follows", "sentences", "right", "repeats", "distance", "unigram entropy")
    note = (
        "follows: has both units asked for; right: a sentence too. repeats: equal pairs among the right answers to a "
        "prompt, over those of the law; 1 is the law, more is less variety. distance: total variation from the law of "
        "a prompt's answers, less that of as many draws of the law."
    )
    return Table(name, columns, lines, note)


def _plot(got: Mapping[str, Of]) -> Plot:
    def draw(figure: Any) -> None:
        for axes, what in zip(figure.subplots(1, 2), ("follows", "right"), strict=True):
            for name, cell in got.items():
                for steps in _steps(cell):
                    points = {w: mean(rows, what) for (of, w), rows in sorted(cell.items()) if of == steps}
                    heights, errors = [one.mean for one in points.values()], [one.error for one in points.values()]
                    label = f"{name}, {steps} steps"
                    axes.errorbar(list(points), heights, errors, fmt="o-", ms=3, capsize=2, label=label)
            axes.set(xlabel="w", ylabel=f"share that {'follows' if what == 'follows' else 'is right'}")
            axes.legend(fontsize=7)

    caption = "Answers that have what the prompt asks for, and those that are right, by the weight of guidance."
    return Plot("weights", caption, draw, (10.0, 4.5))
