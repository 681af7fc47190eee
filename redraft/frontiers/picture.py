"""The one picture of a sweep: quality against calls with the Pareto set, and how varied the texts are, below it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from redraft.drawing import drawable
from redraft.frontiers.curves import Frontier, Point, costs, pareto

SIZE = (9.0, 7.5)
LABEL = 80
"""Most characters of a label: names may be longer than a picture."""
_MARKERS = "osD^vP*X<>"
_ROOM = 1.2


@dataclass(frozen=True)
class _Series:
    """A sampler of a model: its label, where it is one of several models, names both."""

    label: str
    points: list[Point]
    style: dict[str, Any]


def draw(frontiers: Sequence[Frontier], figure: Any) -> None:
    """Draw one frontier or several of one protocol on a matplotlib ``figure``.

    Above: mean calls a text (log2) against quality with its 95% interval, a series for each model and sampler; the
    points that none dominates are joined and ringed. Below: unigram entropy, without intervals. Dotted lines are human
    text. Texts that could not be judged are not drawn.
    """
    first = frontiers[0]
    quality, variety = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for one in _series(frontiers):
        nfe = [point.nfe for point in one.points]
        quality.errorbar(nfe, [point.quality for point in one.points], yerr=_bars(one.points), capsize=2, **one.style)
        told = [(point.nfe, point.unigram_entropy) for point in one.points if point.unigram_entropy is not None]
        variety.plot(*zip(*told, strict=True), **one.style)
    every = [point for frontier in frontiers for point in frontier.points]
    best = [every[i] for i in pareto(costs(every), first.higher)]
    at = [point.nfe for point in best], [point.quality for point in best]
    quality.plot(*at, color="black", lw=1, drawstyle="steps-post", zorder=0)
    quality.scatter(*at, s=110, facecolors="none", edgecolors="black", zorder=3)
    _of_people(frontiers, quality, variety)
    better = "higher" if first.higher else "lower"
    quality.set_ylabel(f"{first.measure} ({better} is better)")
    variety.set(xlabel="denoiser calls a text took, mean", ylabel="unigram entropy, nats")
    variety.set_xscale("log", base=2)
    calls = [point.nfe for point in every]
    variety.set_xlim(min(calls) / _ROOM, max(calls) * _ROOM)  # of a single number of calls too, or of none judged
    variety.xaxis.set_major_formatter("{x:g}")
    _legend(figure, frontiers)


def _series(frontiers: Sequence[Frontier]) -> Iterator[_Series]:
    """Colours go through all series; a sampler has one marker whatever the model."""
    names = list(dict.fromkeys(name for frontier in frontiers for name in frontier.samplers))
    number = 0
    for frontier in frontiers:
        for name in frontier.samplers:
            label = name if len(frontiers) == 1 else f"{name}, {frontier.model}"
            style = {"color": f"C{number % 10}", "marker": _MARKERS[names.index(name) % len(_MARKERS)], "ms": 5}
            style |= {"ls": ("-", "--", "-.", ":")[number // 10 % 4], "lw": 1.2}
            yield _Series(label, frontier.of(name), style)
            number += 1


def _bars(points: Sequence[Point]) -> list[list[float]]:
    """How far the intervals reach below and above."""

    def reach(end: float | None, mean: float | None, sign: int) -> float:
        return 0.0 if end is None or mean is None else max(0.0, sign * (end - mean))

    below = [reach(one.quality_low, one.quality, -1) for one in points]
    return [below, [reach(one.quality_high, one.quality, 1) for one in points]]


def _of_people(frontiers: Sequence[Frontier], quality: Any, variety: Any) -> None:
    """A dotted line at each different figure of human text."""
    found = [frontier.reference for frontier in frontiers if frontier.reference is not None]
    for axes, name in ((quality, "quality"), (variety, "unigram_entropy")):
        for value in dict.fromkeys(one[name] for one in found):
            if value is not None:
                axes.axhline(value, color="grey", ls=":", lw=1.2)


def _cut(label: str) -> str:
    return label if len(label) <= LABEL else label[: LABEL - 1] + "…"


def _legend(figure: Any, frontiers: Sequence[Frontier]) -> None:
    from matplotlib.lines import Line2D

    handles = [(Line2D([], [], **one.style), one.label) for one in _series(frontiers)]
    ring: dict[str, Any] = {"color": "black", "lw": 1, "marker": "o", "ms": 10, "mfc": "none"}
    handles.append((Line2D([], [], **ring), "dominated by none"))
    if any(frontier.reference is not None for frontier in frontiers):
        handles.append((Line2D([], [], color="grey", ls=":"), "human text"))
    lines, labels = zip(*handles, strict=True)
    legend = figure.legend(
        lines, [drawable(_cut(one)) for one in labels], loc="outside lower center", ncols=2, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
