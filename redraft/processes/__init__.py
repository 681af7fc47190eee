"""Forward corruptions q_t(z | x0) and what follows from them: posterior, bound, prior. No network, no loop."""

from collections.abc import Mapping
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
from redraft.processes.gaussian import Channel, Gaussian
from redraft.processes.matrix import Matrix
from redraft.processes.noises import hybrid_noise, masked_noise, uniform_noise
from redraft.processes.per_token import PerToken, learned, only_masks, spindle
from redraft.schedules import Gamma, Kept, Schedule, gamma_tensors

__all__ = [
    "NAMES",
    "Categorical",
    "Channel",
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
    "only_masks",
    "spindle",
    "tensors_of",
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
    schedule: str | Gamma = "linear_gamma",
    *,
    learned: bool = False,
    normalise: bool = False,
) -> Gaussian:
    """Gaussian noise on the rows of ``codebook`` (K, D), of kind ``vp``, ``ve`` or ``rf``.

    ``schedule`` is a ``schedules.Gamma``, or the name of one, as training starts with it. ``learned``: the codebook is
    a parameter of the model built for the process; ``normalise``: its rows are read divided by their norms.
    """
    made = schedules.gamma({"name": schedule}) if isinstance(schedule, str) else schedule
    return Gaussian(codebook, kind, made, learned, normalise)


def from_dict(facts: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Process:
    """The process a model's configuration describes. ``tensors`` are those it keeps among the weights (``tensors_of``).

    Errors: ``ValueError`` for an unknown name, or a process without a tensor it needs.
    """
    stored, tensors = dict(facts), tensors or {}
    name = stored.pop("name", None)
    if name not in NAMES:
        raise unknown("process", name, NAMES)
    for needed in tensors_of(facts):
        if needed.name not in tensors:
            raise ValueError(f"a {name} process needs its {needed.name}: pass the model's")
    if name == "gaussian":
        schedule = stored["schedule"]
        own = {key: tensors[f"schedule_{key}"] for key in gamma_tensors(schedule)}
        options = {key: stored[key] for key in ("learned", "normalise", "power") if key in stored}
        return Gaussian(tensors["codebook"], stored["kind"], schedules.gamma(schedule, own), **options)
    if name == "d3pm":
        return d3pm(**stored, graph=tensors.get("graph"))
    if name in ("spindle", "learned"):
        options = {key: stored[key] for key in stored if key != "K"}
        return spindle(tensors["scores"], **options) if name == "spindle" else learned(tensors["exponents"], **options)
    constructors = {"masked": masked, "uniform": uniform, "hybrid": hybrid}
    return constructors[name](stored.pop("K"), schedule=schedules.get(stored.pop("schedule")), **stored)


def tensors_of(facts: Mapping[str, Any]) -> tuple[Kept, ...]:
    """The tensors that the process of ``facts`` needs beside them, none for most.

    Gaussian noise has its ``codebook`` and what its schedule learns (``schedule_*``), spindle its ``scores``, learned
    masking its ``exponents``, D3PM's neighbours their ``graph``.
    """
    K, name = facts["K"], facts["name"]
    if name == "gaussian":
        learning = gamma_tensors(facts["schedule"])
        own = tuple(Kept(f"schedule_{key}", kept.shape, kept.learned) for key, kept in learning.items())
        return (Kept("codebook", (K, facts["D"]), facts.get("learned", False)), *own)
    if name == "d3pm":
        return (Kept("graph", (K, K)),) if facts["kind"] == "neighbour" else ()
    kept = {"spindle": Kept("scores", (K,)), "learned": Kept("exponents", (K,), learned=True)}
    return (kept[name],) if name in kept else ()
