"""What a sweep found: points of cost and quality, those that no other beats, the area under a curve, what compares."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from redraft import records

FORMED, BITS = "share of well-formed sentences", "bits per character"
MEASURES = {FORMED: True, BITS: False}
"""What quality may be, and whether more of it is better."""
PROTOCOL = ("length", "prompt", "num", "judge")
"""What every protocol says."""


@dataclass(frozen=True)
class Point:
    """One sampler at one number of calls.

    ``asked``: the calls a text was to take; ``steps`` those that were set for it, None where the model has no choice.
    ``nfe``: the calls it took, mean over texts, with the percentiles of ``nfe_percentiles``; ``positions`` and
    ``cpu_seconds`` a text; ``tokens_per_forward`` as in ``Cost``. ``quality`` with its 95% interval ``quality_low`` to
    ``quality_high``, None where the texts were none that can be judged, and ``unigram_entropy`` where all are empty;
    ``measured``: all that was measured of them.
    """

    sampler: str
    asked: int
    steps: int | None
    nfe: float
    nfe_percentiles: dict[str, float]
    positions: float
    tokens_per_forward: float
    cpu_seconds: float
    quality: float | None
    quality_low: float | None
    quality_high: float | None
    unigram_entropy: float | None
    measured: dict[str, Any]


@dataclass(frozen=True)
class Frontier:
    """The points of one model. Two may be drawn together if their ``protocol`` is one (``together``).

    ``measure`` names what quality is, one of ``MEASURES``. ``reference``: the same of human text, where some was given.
    ``seed`` draws every point, each by itself.
    """

    model: str
    measure: str
    protocol: dict[str, Any]
    points: tuple[Point, ...]
    reference: dict[str, Any] | None
    seed: int

    @property
    def higher(self) -> bool:
        """Whether more of its measure is better."""
        return MEASURES[self.measure]

    @property
    def samplers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(point.sampler for point in self.points))

    def of(self, sampler: str) -> list[Point]:
        """The points of a sampler that could be judged, cheapest first."""
        found = [point for point in self.points if point.sampler == sampler and point.quality is not None]
        return sorted(found, key=lambda point: point.nfe)

    def to_dict(self) -> dict[str, Any]:
        """All of it, with the ``pareto`` set as numbers of points, and the ``areas`` of the samplers."""
        areas = {name: area([(one.nfe, one.quality) for one in self.of(name)]) for name in self.samplers}
        return {
            **asdict(self),
            "higher": self.higher,
            "pareto": pareto(costs(self.points), self.higher),
            "areas": areas,
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], of: str = "the record") -> "Frontier":
        """What ``to_dict`` gave. Errors: ``ValueError`` for what is no such thing, named ``of``."""
        try:
            told: dict[str, Any] = {field.name: tree[field.name] for field in fields(cls)}
            points = tuple(Point(**point) for point in told.pop("points"))
            for point in points:
                _check(point)
            kinds: dict[str, Any] = {"model": str, "measure": str, "protocol": dict, "seed": int}
            for name, kind in kinds.items():
                if not isinstance(told[name], kind):
                    raise TypeError(f"{name} is {told[name]!r:.80}")
            if missing := [name for name in PROTOCOL if name not in told["protocol"]]:
                raise TypeError(f"its protocol has no {missing[0]}")
            if told["measure"] not in MEASURES:
                raise TypeError(f"it is of {told['measure']!r:.80}")
            if told["reference"] is not None:
                _check_reference(told["reference"])
            return cls(**told, points=points)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{of} is no frontier that we wrote ({error}): measure it again") from None

    @classmethod
    def read(cls, path: Path) -> "Frontier":
        """The one that a file holds. Errors: ``ValueError`` for a file that holds none."""
        found = records.read(path)
        if found is None or found["kind"] != "frontier":
            raise ValueError(f"{path} holds no frontier: pass a file that redraft evaluate --frontier wrote")
        return cls.from_dict(found, str(path))


def _check(point: Point) -> None:
    """Errors: ``TypeError`` for figures that are none."""
    needed = [point.nfe, point.positions, point.cpu_seconds, point.tokens_per_forward, *point.nfe_percentiles.values()]
    found = [point.quality, point.quality_low, point.quality_high, point.unigram_entropy]
    numbers = all(map(_is_number, needed)) and all(one is None or _is_number(one) for one in found)
    told: list[tuple[Any, type]] = [(point.sampler, str), (point.measured, dict)]
    if not numbers or point.nfe <= 0 or not all(isinstance(*one) for one in told):
        raise TypeError(f"a figure of {point.sampler!r:.80} is no number")


def _check_reference(reference: Mapping[str, Any]) -> None:
    for name in ("quality", "unigram_entropy"):
        if not (reference[name] is None or _is_number(reference[name])):
            raise TypeError(f"{name} of human text is no number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def costs(points: Sequence[Point]) -> list[tuple[float, float | None]]:
    """(calls, quality) of each point."""
    return [(point.nfe, point.quality) for point in points]


def pareto(found: Sequence[tuple[float, float | None]], higher: bool) -> list[int]:
    """The numbers of those (cost, quality) that none dominates, cheapest first; equals stand together.

    a dominates b where a costs no more and is no worse, and one of the two is strict. ``higher``: greater is better.
    A quality of None is no candidate. Means alone decide: whether two of them are separated their intervals say.

    >>> pareto([(4, 0.5), (8, 0.9), (8, 0.7), (16, 0.9)], higher=True)
    [0, 1]
    """
    worth = [(cost, -value if higher else value, i) for i, (cost, value) in enumerate(found) if value is not None]
    kept: list[int] = []
    best: tuple[float, float] | None = None
    for cost, value, i in sorted(worth):
        if best is None or value < best[1] or (cost, value) == best:
            kept.append(i)
            best = (cost, value)
    return kept


def area(found: Sequence[tuple[float, float | None]]) -> dict[str, float] | None:
    """The area under quality over log2(calls), by trapezoids, in units of quality times octaves.

        sum_i (q_i + q_(i+1)) / 2 (log2 n_(i+1) - log2 n_i)

    Of points of equal cost it is their mean that counts. ``octaves`` is the width it is over, ``mean`` the area by
    octave, which is what two samplers that took other numbers of calls can be compared by, if at all. None of fewer
    than two numbers of calls.

    >>> area([(4, 0.5), (8, 1.0), (32, 0.0)])
    {'area': 1.75, 'octaves': 3.0, 'mean': 0.5833333333333334}
    """
    told: dict[float, list[float]] = {}
    for cost, value in found:
        if value is not None:
            told.setdefault(cost, []).append(value)
    if len(told) < 2:
        return None
    at = [(math.log2(cost), sum(values) / len(values)) for cost, values in sorted(told.items())]
    octaves = at[-1][0] - at[0][0]
    total = sum((b - a) * (left + right) / 2 for (a, left), (b, right) in pairwise(at))
    return {"area": total, "octaves": octaves, "mean": total / octaves}


def together(frontiers: Sequence[Frontier], force: bool = False) -> None:
    """Errors: ``ValueError`` for frontiers of another protocol than the first, naming what differs, unless forced.

    What is measured in other units, or is better the other way, cannot be forced onto one axis.
    """
    first = frontiers[0]
    for other in frontiers[1:]:
        if first.higher != other.higher:
            told = f"{first.model} has {first.measure}, {other.model} {other.measure}"
            raise ValueError(f"{told}: no one axis is for both; measure one as the other")
        mine, theirs = first.protocol, other.protocol
        names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        if names and not force:
            told = "; ".join(f"{name} {_said(mine.get(name))} and {_said(theirs.get(name))}" for name in names)
            raise ValueError(
                f"{first.model} and {other.model} were measured differently: {told}. Measure one as the other, or "
                "pass --force (force=True)"
            )


def _said(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
