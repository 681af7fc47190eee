"""Quality per denoising step: a sweep of samplers and numbers of calls, its Pareto set, and its picture."""

from redraft.frontiers.curves import Frontier, Point, area, pareto, together
from redraft.frontiers.picture import SIZE, draw
from redraft.frontiers.sweep import NFES, NUM, frontier, usual
from redraft.frontiers.table import areas, entries
from redraft.frontiers.yardstick import of_people, yardstick

__all__ = [
    "NFES",
    "NUM",
    "SIZE",
    "Frontier",
    "Point",
    "area",
    "areas",
    "draw",
    "entries",
    "frontier",
    "of_people",
    "pareto",
    "together",
    "usual",
    "yardstick",
]
