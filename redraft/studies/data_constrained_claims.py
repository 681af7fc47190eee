"""What the records of study ``data-constrained`` say: two curves for each size of text, and where they cross."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from redraft.studies.findings import (
    Conclusion,
    Estimate,
    Finding,
    Plot,
    Table,
    Verdict,
    below,
    estimate,
    lower,
    nothing,
    pooled,
)
from redraft.studies.runner import Record

EARLY = "at the epoch where it is best, the autoregressive model is below the masked one's bound"
RISES = "the autoregressive model's held-out loss has an early minimum and then rises"
HEART = "the masked model learns less by heart: its gap between held-out and training text stays smaller"
CROSSES = "over equal epochs the masked model's bound falls below the autoregressive loss"
LATER = "the more text, the more epochs until it does"
LAW = "the compute at which they cross grows as the published power of the amount of text"
BEST = "the best masked bound is below the best autoregressive loss"
CLAIMS = (EARLY, RISES, HEART, CROSSES, LATER, LAW, BEST)

AR, MASKED = "autoregressive", "masked"
PUBLISHED = 2.17
"""Exponent of the critical compute in the unique tokens (Prabhudesai et al. 2025, arXiv 2507.15857)."""


@dataclass(frozen=True)
class Curve:
    """A model's losses by epochs, nats a character, of all seeds."""

    epochs: list[float]
    held_out: list[Estimate]
    train: list[Estimate]
    characters: int
    per_epoch: float
    """Compute of an epoch, 6 N U."""

    @property
    def best(self) -> int:
        """The point of the lowest held-out loss."""
        return min(range(len(self.epochs)), key=lambda i: self.held_out[i].mean)

    def at(self, epochs: float) -> Estimate:
        """The held-out loss after so many epochs, linear in their logarithm between points."""
        for (a, left), (b, right) in pairwise(zip(self.epochs, self.held_out, strict=True)):
            if a <= epochs <= b:
                w = math.log(epochs / a) / math.log(b / a)
                mean = (1 - w) * left.mean + w * right.mean
                return Estimate(mean, math.hypot((1 - w) * left.error, w * right.error))
        return self.held_out[0 if epochs < self.epochs[0] else -1]


@dataclass(frozen=True)
class Crossing:
    """Where the masked curve falls below for good, in epochs, and the interval in which that is sure to be."""

    epochs: float
    low: float
    high: float

    @property
    def log(self) -> Estimate:
        """log epochs; half the width of the interval, which is wider where it lies to one side."""
        return Estimate(math.log(self.epochs), max(math.log(self.high / self.epochs), math.log(self.epochs / self.low)))

    def text(self) -> str:
        return f"{self.epochs:.0f} epochs ({self.low:.0f} to {self.high:.0f})"


Pair = tuple[Curve, Curve]
"""(autoregressive, masked) of one text."""


def conclude(records: Sequence[Record]) -> Conclusion:
    """A table, a plot and findings, from the records alone."""
    got: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for record in records:
        if record.measured is not None:
            kind = record.cell.name.rpartition(" ")[0]
            got.setdefault(record.cell.options["characters"], {}).setdefault(kind, []).append(record.measured)
    pairs = {u: (curve(both[AR]), curve(both[MASKED])) for u, both in sorted(got.items()) if {AR, MASKED} <= set(both)}
    if not pairs:
        return Conclusion(findings=nothing(CLAIMS, "no text has both models."))
    found = {u: crossing(*pair) for u, pair in pairs.items()}
    crossings = {u: one for u, one in found.items() if one is not None}
    findings = [one for u, pair in pairs.items() for one in _pair(u, *pair, found[u])]
    findings += [*_later(pairs, found), _law(pairs, crossings)]
    return Conclusion([_table(pairs, found)], [_plot(pairs, found)], findings)


def curve(measured: Sequence[Mapping[str, Any]]) -> Curve:
    """The curve of all seeds of a cell, pooled point by point."""
    first = measured[0]
    points = list(zip(*(one["curve"] for one in measured), strict=True))
    epochs = [at[0]["step"] * first["per_step"] / first["characters"] for at in points]
    held_out, train = ([pooled([estimate(one, of) for one in at]) for at in points] for of in ("held_out", "train"))
    return Curve(epochs, held_out, train, first["characters"], 6.0 * first["parameters"] * first["characters"])


def crossing(ar: Curve, masked: Curve) -> Crossing | None:
    """Where the masked curve falls below the autoregressive one for good; None if it is not surely below at the end,
    or never was above.

    Between points the difference is linear in log epochs.
    """
    last = min(ar.epochs[-1], masked.epochs[-1])
    first = max(ar.epochs[0], masked.epochs[0])
    grid = sorted({e for e in (*ar.epochs, *masked.epochs) if first <= e <= last})
    gaps = [masked.at(e) - ar.at(e) for e in grid]
    over = [i for i, gap in enumerate(gaps) if gap.mean >= 0]
    if gaps[-1].sign >= 0 or not over:
        return None
    i = over[-1]
    w = gaps[i].mean / (gaps[i].mean - gaps[i + 1].mean)
    epochs = grid[i] * (grid[i + 1] / grid[i]) ** w
    above = [j for j in range(i + 1) if gaps[j].sign > 0]
    sure = next(j for j in range(i + 1, len(grid)) if all(gap.sign < 0 for gap in gaps[j:]))
    return Crossing(epochs, grid[above[-1]] if above else grid[0], grid[sure])


def slope(crossings: Mapping[int, Crossing], pairs: Mapping[int, Pair]) -> Estimate:
    """Least squares of log C on log U. The error is what the intervals of the crossings add, and nothing else.

    C = 6 N D: the compute of an epoch times the epochs. Errors: ``ValueError`` for fewer than two crossings.
    """
    if len(crossings) < 2:
        raise ValueError(f"{len(crossings)} crossings: a slope needs at least 2")
    x = [math.log(pairs[u][1].characters) for u in crossings]
    y = [math.log(pairs[u][1].per_epoch) + one.log.mean for u, one in crossings.items()]
    middle = sum(x) / len(x)
    spread = sum((one - middle) ** 2 for one in x)
    weights = [(one - middle) / spread for one in x]
    own = [w * one.log.error for w, one in zip(weights, crossings.values(), strict=True)]
    return Estimate(sum(w * one for w, one in zip(weights, y, strict=True)), math.hypot(*own))


# ---------------------------------------------------------------------------------------------------------- findings


def _pair(u: int, ar: Curve, masked: Curve, where: Crossing | None) -> list[Finding]:
    text, unit = f"U = {u:,}", "nats a character"
    top, best = ar.best, masked.best
    early = {MASKED: masked.at(ar.epochs[top]), AR: ar.held_out[top]}
    ends = {"its best": ar.held_out[top], "its last": ar.held_out[-1]}
    last = min(ar.epochs[-1], masked.epochs[-1])
    i = max(i for i, epochs in enumerate(masked.epochs) if epochs <= last * 1.001)
    gaps = {MASKED: masked.held_out[i] - masked.train[i], AR: ar.held_out[-1] - ar.train[-1]}
    bests = {MASKED: masked.held_out[best], AR: ar.held_out[top]}
    behind = (masked.at(last) - ar.at(last)).sign
    crossed: Verdict = ("not separated", "fails", "not measured")[behind]  # where it was ahead all along: unseen
    told = (
        f"{text}: no crossing within {last:.0f} epochs; there masked has {masked.at(last).text()} and {AR} "
        f"{ar.at(last).text()} {unit}."
        if where is None
        else f"{text}: masked is ahead from {where.text()} on."
    )
    return [
        below(EARLY, AR, MASKED, early, f"{unit} after {ar.epochs[top]:.0f} epochs, {text}"),
        below(RISES, "its best", "its last", ends, f"{unit} after {ar.epochs[top]:.0f} and {last_of(ar)}, {text}"),
        below(HEART, MASKED, AR, gaps, f"{unit} between the two texts after {last:.0f} epochs, {text}"),
        Finding(CROSSES, crossed if where is None else "holds", told),
        below(
            BEST,
            MASKED,
            AR,
            bests,
            f"{unit} at best, after {masked.epochs[best]:.0f} and "
            f"{ar.epochs[top]:.0f} epochs, {text}; the masked figure is a bound",
        ),
    ]


def last_of(one: Curve) -> str:
    return f"{one.epochs[-1]:.0f} epochs"


def _later(pairs: Mapping[int, Pair], found: Mapping[int, Crossing | None]) -> list[Finding]:
    listed = list[Finding]()
    for less, more in pairwise(pairs):
        one, two = found[less], found[more]
        sizes = f"U = {less:,} and {more:,}"
        if one is None:
            listed.append(Finding(LATER, "not measured", f"{sizes}: no crossing at the smaller."))
        elif two is None:
            ends = min(curve.epochs[-1] for curve in pairs[more])
            ar, masked = pairs[more]
            later = ends > one.high and (masked.at(ends) - ar.at(ends)).sign > 0
            said = f"{sizes}: after {one.text()} at the smaller; at the larger not surely within {ends:.0f}."
            verdict: Verdict = "holds" if later else "not measured"
            listed.append(Finding(LATER, verdict, said))
        else:
            said = f"{sizes}: after {one.text()} and after {two.text()}."
            listed.append(Finding(LATER, lower(one.log - two.log), said))
    return listed or [Finding(LATER, "not measured", "one text only.")]


def _law(pairs: Mapping[int, Pair], crossings: Mapping[int, Crossing]) -> Finding:
    if len(crossings) < 2:
        return Finding(
            LAW, "not measured", f"{len(crossings)} of {len(pairs)} texts have a crossing; a slope needs two."
        )
    found = slope(crossings, pairs)
    gap = found - Estimate(PUBLISHED, 0.0)
    sentence = (
        f"slope of log C in log U {found.text(2)} over {len(crossings)} of {len(pairs)} texts, where {PUBLISHED} is "
        f"published for models of many sizes; {len(crossings)} points of one size are no law, and "
        "the interval leaves out how other trainings would differ."
    )
    return Finding(LAW, "fails" if gap.sign else "not separated", sentence)


# ------------------------------------------------------------------------------------------------- a table and a plot


def _table(pairs: Mapping[int, Pair], found: Mapping[int, Crossing | None]) -> Table:
    rows = list[tuple[str, ...]]()
    for u, pair in pairs.items():
        for name, one in zip((AR, MASKED), pair, strict=True):
            best, where = one.best, found[u]
            learnt = f"{one.train[best].text()} / {one.train[-1].text()}"
            crossed = "-" if where is None else f"{where.epochs * one.per_epoch:.1e}"
            told = (f"{one.epochs[best]:.0f}", one.held_out[best].text(), last_of(one), one.held_out[-1].text(), learnt)
            rows.append((f"{u:,}", name, *told, "-" if where is None else where.text(), crossed))
    columns = (
        *("U", "model", "best after, epochs", "held out, at best", "trained for", "held out, at the end"),
        *("training text, at best / at the end", "masked ahead from", "6 N D there"),
    )
    note = "Nats a character, 95% over rows: exact for the autoregressive model, an upper bound for the masked one."
    return Table("Curves", columns, rows, note)


def _plot(pairs: Mapping[int, Pair], found: Mapping[int, Crossing | None]) -> Plot:
    def draw(figure: Any) -> None:
        for axes, (u, pair) in zip(
            figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0], pairs.items(), strict=True
        ):
            for name, one, colour in zip((AR, MASKED), pair, ("#222222", "#1f77b4"), strict=True):
                y = [value.mean for value in one.held_out]
                axes.errorbar(one.epochs, y, [v.error for v in one.held_out], color=colour, label=f"{name}, held out")
                axes.plot(one.epochs, [v.mean for v in one.train], color=colour, ls=":", label=f"{name}, training text")
            where = found[u]
            if where is not None:
                axes.axvline(where.epochs, color="#d95f02", ls="--", lw=1)
                axes.axvspan(where.low, where.high, color="#d95f02", alpha=0.12, label="crossing")
            axes.set(xscale="log", title=f"U = {u:,} characters", xlabel="epochs")
        figure.axes[0].set_ylabel("nats a character")
        figure.axes[0].legend(fontsize=8)

    caption = "Loss over epochs: solid on held-out text, dotted on training text; the crossing with its interval."
    return Plot("curves", caption, draw, (4.5 * len(pairs), 4.5))
