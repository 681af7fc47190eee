"""What a study may say: estimates with their error, comparisons that know when nothing is separated, tables, plots."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

_Z95 = 1.959964

Verdict = Literal["holds", "fails", "not separated", "not measured"]


@dataclass(frozen=True)
class Estimate:
    """A mean and the half-width of its 95% interval."""

    mean: float
    error: float

    def text(self, digits: int = 3) -> str:
        return f"{self.mean:.{digits}f} ± {self.error:.{digits}f}"

    def percent(self) -> str:
        return f"{100 * self.mean:.1f}% ± {100 * self.error:.1f}"

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference of two independent estimates."""
        return Estimate(self.mean - other.mean, math.hypot(self.error, other.error))

    @property
    def sign(self) -> int:
        """-1, 1, or 0 when the interval holds zero."""
        return 0 if abs(self.mean) <= self.error else int(math.copysign(1, self.mean))


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over seeds. Its error holds each seed's own, and the spread over seeds when there are several.

    error^2 = sum_i error_i^2 / n^2 + 1.96^2 variance / n: the two overlap, which errs on the wide side.
    """
    n = len(estimates)
    if not n:
        raise ValueError("no estimates to pool: pass at least one")
    mean = sum(one.mean for one in estimates) / n
    own = sum(one.error**2 for one in estimates) / n**2
    spread = sum((one.mean - mean) ** 2 for one in estimates) / (n - 1) / n if n > 1 else 0.0
    return Estimate(mean, math.sqrt(own + _Z95**2 * spread))


def mean_over(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """The mean of what ``rows`` hold by this name."""
    return sum(row[name] for row in rows) / len(rows)


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean of independent values, with its interval. Errors: ``ValueError`` for fewer than two."""
    n = len(values)
    if n < 2:
        raise ValueError(f"{n} values: an error bar needs at least 2")
    mean = sum(values) / n
    return Estimate(mean, _Z95 * math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n))


def share(hits: int, n: int) -> Estimate:
    """A share, with an interval that does not vanish at 0 and 1 (Agresti and Coull's half-width)."""
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"{hits} of {n} is no share: count hits among at least one trial")
    around = (hits + _Z95**2 / 2) / (n + _Z95**2)
    return Estimate(hits / n, _Z95 * math.sqrt(around * (1 - around) / (n + _Z95**2)))


@dataclass(frozen=True)
class Finding:
    """A sentence about a claim, computed from the records."""

    claim: str
    verdict: Verdict
    sentence: str


def below(claim: str, left: str, right: str, values: Mapping[str, Estimate], unit: str) -> Finding:
    """Is the value of ``left`` below that of ``right``? Intervals of the difference that hold zero separate nothing."""
    missing = [name for name in (left, right) if name not in values]
    if missing:
        return Finding(claim, "not measured", f"{left} against {right}: no record of {' and '.join(missing)}.")
    gap = values[left] - values[right]
    verdicts: dict[int, Verdict] = {-1: "holds", 0: "not separated", 1: "fails"}
    where = {-1: "below", 0: "not separated from", 1: "above"}[gap.sign]
    sentence = (
        f"{left} ({values[left].text()}) is {where} {right} ({values[right].text()}) {unit}; "
        f"difference {gap.mean:+.3f} ± {gap.error:.3f}."
    )
    return Finding(claim, verdicts[gap.sign], sentence)


def alike(claim: str, names: Sequence[str], values: Mapping[str, Estimate], unit: str) -> Finding:
    """Do all of ``names`` have one value? It holds as far as the data go when no two of them are separated."""
    missing = [name for name in names if name not in values]
    if missing:
        return Finding(claim, "not measured", f"no record of {', '.join(missing)}.")
    apart = [
        f"{a} and {b} ({(values[a] - values[b]).text()})"
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if (values[a] - values[b]).sign
    ]
    listed = ", ".join(f"{name} {values[name].text()}" for name in names)
    if apart:
        return Finding(claim, "fails", f"{listed} {unit}; separated: {'; '.join(apart)}.")
    widest = max(values[name].error for name in names)
    return Finding(claim, "holds", f"{listed} {unit}: no two are separated, within errors of up to {widest:.3f}.")


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
