"""Forward corruptions q_t(z | x0) and what follows from them: posterior, bound, prior. No network, no loop."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from redraft import schedules
from redraft.errors import unknown
from redraft.processes.base import Denoiser, Facts, Process
from redraft.processes.categorical import Categorical, absorbing, hybrid_noise, masked_noise, uniform_noise
from redraft.processes.gaussian import Gaussian
from redraft.schedules import GammaSchedule, Schedule

__all__ = [
    "NAMES",
    "Categorical",
    "Denoiser",
    "Facts",
    "Gaussian",
    "Process",
    "absorbing",
    "from_dict",
    "gaussian",
    "hybrid",
    "masked",
    "uniform",
]

NAMES = ("masked", "uniform", "hybrid", "gaussian")


def masked(K: int, schedule: str | Schedule = "linear", mask_id: int | None = None) -> Categorical:
    """Absorbing noise: b_t = (1 - alpha_t) [MASK] (D3PM-absorb, MDLM, MD4, RADD, LLaDA). ``mask_id`` is K unless given.

    >>> masked(3).V
    4
    """
    return Categorical("masked", _vocabulary(K), schedules.get(schedule), masked_noise, _mask(K, mask_id), {})


def uniform(K: int, schedule: str | Schedule = "linear") -> Categorical:
    """Uniform noise: b_t = (1 - alpha_t) / K on every token (D3PM-uniform, SEDD-uniform, UDLM, Duo)."""
    return Categorical("uniform", _vocabulary(K), schedules.get(schedule), uniform_noise, None, {})


def hybrid(
    K: int, uniform_share: float = 0.2, schedule: str | Schedule = "linear", mask_id: int | None = None
) -> Categorical:
    """Mask and uniform noise together, GIDD's mixing (arXiv 2503.04482): the uniform share peaks at ``uniform_share``.

    Errors: ``ValueError`` for a share outside (0, 1).
    """
    if not 0 < uniform_share < 1:
        raise ValueError(f"uniform_share={uniform_share} is outside (0, 1): use masked() for none, uniform() for all")
    noise, parameters = hybrid_noise(uniform_share), {"uniform_share": uniform_share}
    return Categorical("hybrid", _vocabulary(K), schedules.get(schedule), noise, _mask(K, mask_id), parameters)


def gaussian(
    codebook: Tensor,
    kind: str = "vp",
    schedule: str | GammaSchedule = "linear_gamma",
) -> Gaussian:
    """Gaussian noise on the rows of ``codebook`` (K, D), of kind ``vp``, ``ve`` or ``rf``.

    ``schedule`` is a ``schedules.GammaSchedule``, or the name of one with its usual ends.
    """
    return Gaussian(codebook, kind, GammaSchedule(schedule) if isinstance(schedule, str) else schedule)


def from_dict(facts: Mapping[str, Any], codebook: Tensor | None = None) -> Process:
    """The process a model's configuration describes; a Gaussian one needs its ``codebook``, which is a weight."""
    stored = dict(facts)
    name = stored.pop("name", None)
    if name == "gaussian":
        if codebook is None:
            raise ValueError("a Gaussian process needs its codebook: pass the model's")
        return Gaussian(codebook, stored["kind"], GammaSchedule(**stored["schedule"]))
    constructors = {"masked": masked, "uniform": uniform, "hybrid": hybrid}
    if name not in constructors:
        raise unknown("process", name, NAMES)
    return constructors[name](stored.pop("K"), schedule=schedules.get(stored.pop("schedule")), **stored)


def _vocabulary(K: int) -> int:
    if K < 2:
        raise ValueError(f"K={K}: a vocabulary needs at least 2 clean tokens")
    return K


def _mask(K: int, mask_id: int | None) -> int:
    mask_id = K if mask_id is None else mask_id
    if not 0 <= mask_id <= K:
        raise ValueError(f"mask_id={mask_id} is outside 0..K={K}: it must be a token's id or the next free one")
    return mask_id
