"""What a study may say: estimates with their error, comparisons that know when nothing is separated, tables, plots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import NormalDist
from typing import Any, Literal

from redraft.evaluation.intervals import Estimate, mean_of, pooled, share

__all__ = [
    "Conclusion",
    "Estimate",
    "Finding",
    "Plot",
    "Table",
    "Verdict",
    "alike",
    "below",
    "estimate",
    "higher",
    "lower",
    "mean_of",
    "mean_over",
    "nothing",
    "pooled",
    "share",
    "widened",
]

Verdict = Literal["holds", "fails", "not separated", "not measured"]


def mean_over(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """The mean of what ``rows`` hold by this name."""
    return sum(row[name] for row in rows) / len(rows)


@dataclass(frozen=True)
class Finding:
    """A sentence about a claim, computed from the records."""

    claim: str
    verdict: Verdict
    sentence: str


def nothing(claims: Sequence[str], why: str) -> list[Finding]:
    """Of no claim anything was measured."""
    return [Finding(claim, "not measured", why) for claim in claims]


def estimate(row: Mapping[str, Any], name: str) -> Estimate:
    """What ``row`` holds by this name, with its ``name_error``."""
    return Estimate(row[name], row[f"{name}_error"])


def lower(gap: Estimate) -> Verdict:
    """What a difference says of a claim that it is below zero."""
    return ("not separated", "fails", "holds")[gap.sign]


def higher(gap: Estimate) -> Verdict:
    """What a difference says of a claim that it is above zero."""
    return ("not separated", "holds", "fails")[gap.sign]


def widened(one: Estimate, comparisons: int) -> Estimate:
    """The interval of one among so many that all hold at once at 95% or more, by Bonferroni's bound."""
    normal = NormalDist()
    factor = normal.inv_cdf(1 - 0.025 / max(1, comparisons)) / normal.inv_cdf(0.975)
    return Estimate(one.mean, one.error * factor)


def below(
    claim: str,
    left: str,
    right: str,
    values: Mapping[str, Estimate],
    unit: str,
    comparisons: int = 1,
    gap: Estimate | None = None,
) -> Finding:
    """Is the value of ``left`` below that of ``right``? Intervals of the difference that hold zero separate nothing.

    ``comparisons``: of how many this one was chosen; the interval is widened for them. ``gap``: the difference, where
    it was measured by itself, on the same texts say; of independent values unless given.
    """
    missing = [name for name in (left, right) if name not in values]
    if missing:
        return Finding(claim, "not measured", f"{left} against {right}: no record of {' and '.join(missing)}.")
    gap = widened(values[left] - values[right] if gap is None else gap, comparisons)
    where = {-1: "below", 0: "not separated from", 1: "above"}[gap.sign]
    sentence = (
        f"{left} ({values[left].text()}) is {where} {right} ({values[right].text()}) {unit}; "
        f"difference {gap.mean:+.3f} ± {gap.error:.3f}."
    )
    return Finding(claim, lower(gap), sentence)


def alike(claim: str, names: Sequence[str], values: Mapping[str, Estimate], unit: str) -> Finding:
    """Do all of ``names`` have one value? It holds as far as the data go when no two of them are separated.

    The intervals of the differences are widened for their number.
    """
    missing = [name for name in names if name not in values]
    if missing:
        return Finding(claim, "not measured", f"no record of {', '.join(missing)}.")
    pairs = list(combinations(names, 2))
    gaps = {(a, b): widened(values[a] - values[b], len(pairs)) for a, b in pairs}
    said = {(a, b): f"{a} and {b} ({gap.mean:+.3f} ± {gap.error:.3f})" for (a, b), gap in gaps.items()}
    listed = ", ".join(f"{name} {values[name].text()}" for name in names)
    apart = [said[pair] for pair, gap in gaps.items() if gap.sign]
    if apart:
        return Finding(claim, "fails", f"{listed} {unit}; separated: {'; '.join(apart)}.")
    most = max(gaps, key=lambda pair: abs(gaps[pair].mean))
    return Finding(claim, "holds", f"{listed} {unit}: no two are separated; most apart are {said[most]}.")


def summary(claims: Sequence[str], findings: Sequence[Finding]) -> str:
    """What was found, in one sentence: how many claims hold, and by name all that do not, or not everywhere.

    Counted are the comparisons that were measured.
    """
    kinds: dict[str, list[str]] = {name: [] for name in ("all", "in some", "in none", "not separated", "not measured")}
    for claim in claims:
        said = [one.verdict for one in findings if one.claim == claim and one.verdict != "not measured"]
        held, failed = said.count("holds"), said.count("fails")
        of = f" of {len(said)}"
        part = [f"{held}{of}"] * bool(held) + [f"failed in {failed}{'' if held else of}"] * bool(failed)
        kind = "all" if held == len(said) else "in some" if held else "in none" if failed else "not separated"
        kinds[kind if said else "not measured"].append(f"“{claim}”" + (f" ({', '.join(part)})" if part else ""))
    named = [f"{kind}: {', '.join(listed)}" for kind, listed in kinds.items() if kind != "all" and listed]
    return "; ".join([f"Of {len(claims)} claims {len(kinds['all'])} held in every comparison", *named]) + "."


@dataclass(frozen=True)
class Table:
    """Rows of text under ``columns``; ``note`` says what the reader must know of them."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A picture. ``draw`` is given a matplotlib ``Figure`` of ``size`` inches; ``name`` becomes the file's."""

    name: str
    caption: str
    draw: Callable[[Any], None]
    size: tuple[float, float] = (9.0, 5.0)


@dataclass(frozen=True)
class Conclusion:
    """All that a study says: ``answer`` is a paragraph, or empty."""

    tables: list[Table] = field(default_factory=list[Table])
    plots: list[Plot] = field(default_factory=list[Plot])
    findings: list[Finding] = field(default_factory=list[Finding])
    answer: str = ""
