"""Schedules of vectors by name, fixed or learned: what a recipe names and a model's configuration stores."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from redraft.errors import unknown
from redraft.schedules.gamma import FIXED, Gamma, GammaSchedule, Kept
from redraft.schedules.learned import LEARNED

GAMMAS: dict[str, Callable[..., Any]] = {**FIXED, **LEARNED}
"""All schedules of vectors by name, each with what documents it."""


def gamma(stored: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Gamma:
    """The schedule of a ``to_dict()``; its name alone is enough. ``tensors``: what it learned, none for its start.

    Errors: ``ValueError`` for an unknown name, ends out of order, a tensor that is missing or of another shape.
    """
    name = stored["name"]
    if name not in GAMMAS:
        raise unknown("schedule", name, GAMMAS)
    if name not in LEARNED:
        return GammaSchedule(**stored)
    return LEARNED[name](**{key: value for key, value in stored.items() if key != "name"}, tensors=tensors)


def gamma_tensors(stored: Mapping[str, Any]) -> dict[str, Kept]:
    """The tensors that a schedule (its ``to_dict``) keeps among a model's weights, by the names it calls them."""
    return {kept.name: kept for kept in LEARNED[stored["name"]].kept} if stored["name"] in LEARNED else {}


def gamma_start(stored: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """The values of ``gamma_tensors`` that training starts with; ``seed`` draws those that must differ."""
    return LEARNED[stored["name"]].start(seed) if stored["name"] in LEARNED else {}
