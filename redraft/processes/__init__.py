"""Forward corruptions q_t(z | x0) and what follows from them: posterior, bound, prior. No network, no loop."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from redraft import schedules
from redraft.errors import unknown
from redraft.processes.base import Denoiser, Facts, Process
from redraft.processes.categorical import (
    Categorical,
    absorbing,
    mask_state,
    vocabulary,
)
from redraft.processes.d3pm import d3pm
from redraft.processes.gaussian import Gaussian
from redraft.processes.matrix import Matrix
from redraft.processes.noises import hybrid_noise, masked_noise, uniform_noise
from redraft.processes.per_token import PerToken, learned, spindle
from redraft.schedules import GammaSchedule, Schedule

__all__ = [
    "NAMES",
    "Categorical",
    "Denoiser",
    "Facts",
    "Gaussian",
    "Kept",
    "Matrix",
    "PerToken",
    "Process",
    "absorbing",
    "d3pm",
    "from_dict",
    "gaussian",
    "hybrid",
    "learned",
    "masked",
    "spindle",
    "tensor_of",
    "uniform",
]

NAMES = ("masked", "uniform", "hybrid", "d3pm", "spindle", "learned", "gaussian")


def masked(
    K: int, schedule: str | Schedule = "linear", mask_id: int | None = None, steps: int | None = None
) -> Categorical:
    """Absorbing noise: b_t = (1 - alpha_t) [MASK] (D3PM-absorb, MDLM, MD4, RADD, LLaDA). ``mask_id`` is K unless given.

    ``steps``: T of a chain in discrete time, whose bound is that of T steps; none is continuous time.

    >>> masked(3).V
    4
    """
    return Categorical(
        "masked", vocabulary(K), schedules.get(schedule), masked_noise, mask_state(K, mask_id), {}, steps
    )


def uniform(K: int, schedule: str | Schedule = "linear", steps: int | None = None) -> Categorical:
    """Uniform noise: b_t = (1 - alpha_t) / K on every token (D3PM-uniform, SEDD-uniform, UDLM, Duo)."""
    return Categorical("uniform", vocabulary(K), schedules.get(schedule), uniform_noise, None, {}, steps)


def hybrid(
    K: int,
    uniform_share: float = 0.2,
    schedule: str | Schedule = "linear",
    mask_id: int | None = None,
    steps: int | None = None,
) -> Categorical:
    """Mask and uniform noise together, GIDD's mixing (arXiv 2503.04482): the uniform share peaks at ``uniform_share``.

    Errors: ``ValueError`` for a share outside (0, 1).
    """
    if not 0 < uniform_share < 1:
        raise ValueError(f"uniform_share={uniform_share} is outside (0, 1): use masked() for none, uniform() for all")
    noise, parameters = hybrid_noise(uniform_share), {"uniform_share": uniform_share}
    mask_id = mask_state(K, mask_id)
    return Categorical("hybrid", vocabulary(K), schedules.get(schedule), noise, mask_id, parameters, steps)


def gaussian(
    codebook: Tensor,
    kind: str = "vp",
    schedule: str | GammaSchedule = "linear_gamma",
) -> Gaussian:
    """Gaussian noise on the rows of ``codebook`` (K, D), of kind ``vp``, ``ve`` or ``rf``.

    ``schedule`` is a ``schedules.GammaSchedule``, or the name of one with its usual ends.
    """
    return Gaussian(codebook, kind, GammaSchedule(schedule) if isinstance(schedule, str) else schedule)


def from_dict(facts: Mapping[str, Any], tensor: Tensor | None = None) -> Process:
    """The process a model's configuration describes. ``tensor`` is what it keeps among the weights (see ``tensor_of``).

    Errors: ``ValueError`` for an unknown name, or a process without the tensor it needs.
    """
    stored = dict(facts)
    name = stored.pop("name", None)
    if name not in NAMES:
        raise unknown("process", name, NAMES)
    needed = tensor_of(facts)
    if needed is not None and tensor is None:
        raise ValueError(f"a {name} process needs its {needed.name}: pass the model's")
    if name == "gaussian":
        assert tensor is not None
        return Gaussian(tensor, stored["kind"], GammaSchedule(**stored["schedule"]))
    if name == "d3pm":
        return d3pm(**stored, graph=tensor)
    if name in ("spindle", "learned"):
        assert tensor is not None
        return (spindle if name == "spindle" else learned)(tensor, **{key: stored[key] for key in stored if key != "K"})
    constructors = {"masked": masked, "uniform": uniform, "hybrid": hybrid}
    return constructors[name](stored.pop("K"), schedule=schedules.get(stored.pop("schedule")), **stored)


@dataclass(frozen=True)
class Kept:
    """A tensor that a process keeps among a model's weights: its name and shape, and whether it is learned."""

    name: str
    shape: tuple[int, ...]
    learned: bool = False


def tensor_of(facts: Mapping[str, Any]) -> Kept | None:
    """The tensor that the process of ``facts`` needs beside them, None for most.

    Gaussian noise has its ``codebook``, spindle its ``scores``, learned masking its ``exponents``, D3PM's neighbours
    their ``graph``.
    """
    K = facts["K"]
    if facts["name"] == "d3pm":
        return Kept("graph", (K, K)) if facts["kind"] == "neighbour" else None
    if facts["name"] == "gaussian":
        return Kept("codebook", (K, facts["D"]))
    return {"spindle": Kept("scores", (K,)), "learned": Kept("exponents", (K,), learned=True)}.get(facts["name"])
