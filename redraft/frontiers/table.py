"""The points of a sweep as rows of text: what a command prints and a page shows."""

from typing import Any

from redraft.frontiers.curves import Frontier, Point, costs, pareto


def entries(found: Frontier) -> list[dict[str, str]]:
    """A row a point. A star marks those that no other of this model dominates."""
    best = set(pareto(costs(found.points), found.higher))
    return [_entry(point, found, i in best) for i, point in enumerate(found.points)]


def areas(found: Frontier) -> list[dict[str, str]]:
    """A row a sampler that was judged at two numbers of calls or more."""
    told: dict[str, Any] = found.to_dict()["areas"]
    return [
        {
            "sampler": name,
            "area": f"{one['area']:.4g}",
            "octaves": f"{one['octaves']:.3g}",
            "mean": f"{one['mean']:.4g}",
        }
        for name, one in told.items()
        if one is not None
    ]


def _entry(point: Point, found: Frontier, best: bool) -> dict[str, str]:
    told = point.measured
    varied = {"distinct 2": _number(told.get("distinct_2")), "self-BLEU": _number(told.get("self_bleu"))}
    spread = point.nfe_percentiles
    return {
        "sampler": point.sampler,
        "asked": str(point.asked),
        "calls": f"{point.nfe:.1f}"
        + (f" ({spread['p10']:.0f} to {spread['p90']:.0f})" if {"p10", "p90"} <= spread.keys() else ""),
        "": "*" if best else "",
        "quality": _quality(point),
        "unigram entropy": _number(point.unigram_entropy),
        **varied,
        "tokens a call": f"{point.tokens_per_forward:.2f}",
        "CPU s a text": f"{point.cpu_seconds:.3g}",
    }


def _quality(point: Point) -> str:
    if point.quality is None:
        return "none: empty, or not read by the judge"
    told = f"{point.quality:.3f}"
    if point.quality_low is not None and point.quality_high is not None:
        told += f" ({point.quality_low:.3f} to {point.quality_high:.3f})"
    # a judge says nothing of these, and few that are left are no picture of what a sampler writes
    empty = point.measured.get("empty")
    return told + (f", {empty} empty" if empty else "")


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"
