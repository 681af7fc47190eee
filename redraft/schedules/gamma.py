"""Noise schedules of vectors: ``gamma(t) = -log SNR = log(sigma^2 / alpha^2)``, rising, with its derivative.

A schedule decides which noise levels t visits, and nothing else: the bound is an integral over gamma.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.schedules.alpha import bisect


@dataclass(frozen=True)
class Kept:
    """A tensor that a process keeps among a model's weights: its name and shape, and whether it is learned."""

    name: str
    shape: tuple[int, ...]
    learned: bool = False


class Gamma(Protocol):
    """What a Gaussian process asks of its schedule. ``gamma_min`` and ``gamma_max`` are those it starts with."""

    @property
    def name(self) -> str: ...

    @property
    def gamma_min(self) -> float: ...

    @property
    def gamma_max(self) -> float: ...

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(gamma, d gamma / dt) in float64, of t's shape."""
        ...

    def to(self, device: torch.device | str | None) -> Self: ...

    def complaint(self) -> str | None:
        """What has gone bad of it in training, in words; None for a schedule that can be used."""
        ...

    def to_dict(self) -> dict[str, Any]: ...


Formula = Callable[[Tensor, float, float], tuple[Tensor, Tensor]]
"""(t, gamma_min, gamma_max) -> (gamma, d gamma / dt)."""


def _linear_gamma(t: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """gamma = gamma_min + (gamma_max - gamma_min) t (VDM, Kingma et al. 2021)."""
    return low + (high - low) * t, torch.full_like(t, high - low)


def _edm(t: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """e^(gamma / 14), the seventh root of sigma, is linear in t (Karras et al. 2022, eq. 5)."""
    first, last = math.exp(low / 2 / EDM_RHO), math.exp(high / 2 / EDM_RHO)
    root = first + (last - first) * t
    return 2 * EDM_RHO * torch.log(root), 2 * EDM_RHO * (last - first) / root


def _squeezed(
    power: Callable[[Tensor], tuple[Tensor, Tensor]], t: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """gamma of a falling signal power alpha^2 (VP), moved affinely to meet both ends."""
    (first, last), _ = power(torch.tensor([0.0, 1.0], dtype=torch.float64))
    hi, lo = 1 / (1 + math.exp(low)), 1 / (1 + math.exp(high))
    scale = (hi - lo) / float(first - last)
    value, slope = power(t)
    value = lo + scale * (value - float(last))
    return torch.log1p(-value) - torch.log(value), -scale * slope / (value * (1 - value))


def _sqrt(t: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """alpha^2 = 1 - sqrt(t + 1e-4) (Diffusion-LM, Li et al. 2022), squeezed to keep the ends."""

    def power(t: Tensor) -> tuple[Tensor, Tensor]:
        root = torch.sqrt(t + 1e-4)
        return 1 - root, -0.5 / root

    return _squeezed(power, t, low, high)


def _cosine(t: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """alpha^2 = cos^2(pi/2 (t + 0.008) / 1.008) (Nichol & Dhariwal 2021), squeezed to keep the ends."""

    def power(t: Tensor) -> tuple[Tensor, Tensor]:
        angle = math.pi / 2 * (t + 0.008) / 1.008
        return torch.cos(angle) ** 2, -math.pi / 2 / 1.008 * torch.sin(2 * angle)

    return _squeezed(power, t, low, high)


FARTHEST_END = 30.0
EDM_RHO = 7.0
"""Karras et al. 2022, eq. 5: the root of sigma that is evenly spaced."""
FIXED: dict[str, Formula] = {"linear_gamma": _linear_gamma, "edm": _edm, "sqrt": _sqrt, "cosine": _cosine}
"""The fixed schedules by name."""


@dataclass(frozen=True)
class GammaSchedule:
    """A fixed schedule, by the name of its formula, from ``gamma_min`` at t = 0 to ``gamma_max`` at t = 1."""

    name: str = "linear_gamma"
    gamma_min: float = -4.0
    gamma_max: float = 6.0

    def __post_init__(self) -> None:
        if self.name not in FIXED:
            raise unknown("schedule", self.name, FIXED)
        check_ends(self.gamma_min, self.gamma_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(gamma, d gamma / dt) in float64, of t's shape."""
        return FIXED[self.name](t.double(), self.gamma_min, self.gamma_max)

    def to(self, device: torch.device | str | None) -> Self:
        return self

    def complaint(self) -> str | None:
        return None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_ends(gamma_min: float, gamma_max: float) -> None:
    """Errors: ``ValueError`` unless both ends are in order and within ``FARTHEST_END``."""
    if not -FARTHEST_END <= gamma_min < gamma_max <= FARTHEST_END:
        raise ValueError(
            f"gamma_min={gamma_min} must be below gamma_max={gamma_max}, both within {FARTHEST_END:g} of 0: beyond "
            "that one of signal and noise is nothing in float64"
        )


def time_of(schedule: Gamma, gamma: Tensor) -> Tensor:
    """The t in [0, 1] at which ``schedule`` has ``gamma``, elementwise, float64; an end for one outside its range."""
    return bisect(lambda t: -schedule(t)[0], -gamma)
