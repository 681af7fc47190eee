"""Noise schedules: ``alpha(t)``, the probability that a token is still untouched, with its derivative.

Time runs from data (t = 0, alpha = 1) to noise (t = 1, alpha = 0); every schedule meets both ends exactly, so that no
bound needs a correction for tokens the prior does not cover. The masked NELBO does not depend on the schedule (only its
variance does), but which t a sampler visits does. Formulas: D3PM, MDLM, MD4, SEDD, Diffusion-LM; those that miss an
end in their paper (geometric, sqrt) are rescaled affinely, as their docstrings say.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from redraft.errors import unknown

AlphaFunction = Callable[..., tuple[Tensor, Tensor]]


def _linear(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = 1 - t (MDLM's log-linear noise, LLaDA)."""
    return 1 - t, -torch.ones_like(t)


def _cosine(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = 1 - cos(pi/2 (1 - t)) (MD4, MaskGIT): slow near t = 1, where few tokens are known."""
    angle = math.pi / 2 * (1 - t)
    return 1 - torch.cos(angle), -math.pi / 2 * torch.sin(angle)


def _cosine_squared(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = cos^2(pi t / 2) (MDLM's ablation)."""
    return torch.cos(math.pi / 2 * t) ** 2, -math.pi / 2 * torch.sin(math.pi * t)


def _polynomial(t: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """alpha = 1 - t^power (MD4)."""
    return 1 - t**power, -power * t ** (power - 1)


def _geometric(t: Tensor, sigma_min: float, sigma_max: float) -> tuple[Tensor, Tensor]:
    """alpha = exp(-sigma), sigma = sigma_min^(1-t) sigma_max^t (SEDD), rescaled affinely to reach 1 and 0."""
    rate = math.log(sigma_max / sigma_min)
    sigma = sigma_min * torch.exp(rate * t)
    first, last = math.exp(-sigma_min), math.exp(-sigma_max)
    alpha = (torch.exp(-sigma) - last) / (first - last)
    return alpha, -rate * sigma * torch.exp(-sigma) / (first - last)


def _sqrt(t: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """alpha = 1 - sqrt(t + offset) (Diffusion-LM), rescaled affinely to reach 1 and 0."""
    root = torch.sqrt(t + offset)
    span = math.sqrt(1 + offset) - math.sqrt(offset)
    return 1 - (root - math.sqrt(offset)) / span, -0.5 / (root * span)


_FUNCTIONS: dict[str, tuple[AlphaFunction, dict[str, float]]] = {
    "linear": (_linear, {}),
    "cosine": (_cosine, {}),
    "cosine_squared": (_cosine_squared, {}),
    "polynomial": (_polynomial, {"power": 2.0}),
    "geometric": (_geometric, {"sigma_min": 1e-4, "sigma_max": 20.0}),
    "sqrt": (_sqrt, {"offset": 1e-4}),
}
NAMES: tuple[str, ...] = tuple(_FUNCTIONS)


def _geometric_inverse(alpha: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    first, last = math.exp(-sigma_min), math.exp(-sigma_max)
    sigma = -torch.log(last + alpha * (first - last))
    return torch.log(sigma / sigma_min) / math.log(sigma_max / sigma_min)


def _sqrt_inverse(alpha: Tensor, offset: float) -> Tensor:
    span = math.sqrt(1 + offset) - math.sqrt(offset)
    return (math.sqrt(offset) + (1 - alpha) * span) ** 2 - offset


def _polynomial_inverse(alpha: Tensor, power: float) -> Tensor:
    return (1 - alpha) ** (1 / power)


def _linear_inverse(alpha: Tensor) -> Tensor:
    return 1 - alpha


def _cosine_inverse(alpha: Tensor) -> Tensor:
    return 1 - torch.acos(1 - alpha) * 2 / math.pi


def _cosine_squared_inverse(alpha: Tensor) -> Tensor:
    return torch.acos(alpha.sqrt()) * 2 / math.pi


_INVERSES: dict[str, Callable[..., Tensor]] = {
    "linear": _linear_inverse,
    "cosine": _cosine_inverse,
    "cosine_squared": _cosine_squared_inverse,
    "polynomial": _polynomial_inverse,
    "geometric": _geometric_inverse,
    "sqrt": _sqrt_inverse,
}


def bisect(falling: Callable[[Tensor], Tensor], value: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The t in [low, high] at which a falling function takes ``value``, by halving until float64 can no more."""
    lows, highs = (torch.full_like(value, end, dtype=torch.float64) for end in (low, high))
    for _ in range(1100):  # 1074 halvings separate any two float64; nearly always about 60 are made
        middle = (lows + highs) / 2
        if bool(((middle == lows) | (middle == highs)).all()):
            break
        above = falling(middle) > value
        lows, highs = torch.where(above, middle, lows), torch.where(above, highs, middle)
    return highs


def _check_alpha(alpha: Tensor) -> Tensor:
    alpha = alpha.double()
    outside = ~((alpha >= 0) & (alpha <= 1))
    if outside.any():
        raise ValueError(f"alpha={float(alpha[outside][0])} is no probability: pass values in [0, 1]")
    return alpha


@dataclass(frozen=True)
class Schedule:
    """A named noise schedule; ``schedule(t)`` returns ``(alpha, d alpha / dt)`` in float64, of t's shape.

    ``parameters`` holds every parameter of the named formula. Build one with ``get``.
    """

    name: str
    parameters: tuple[tuple[str, float], ...] = ()

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        alpha, d_alpha = _FUNCTIONS[self.name][0](t, **dict(self.parameters))
        # rounding must not leave a trace of data in the prior, nor of noise in the data
        alpha = torch.where(t <= 0, 1.0, torch.where(t >= 1, 0.0, alpha.clamp(0.0, 1.0)))
        return alpha, d_alpha

    def inverse(self, alpha: Tensor) -> Tensor:
        """The time at which ``alpha`` is left, float64, of alpha's shape: ``schedule(schedule.inverse(a))[0] = a``.

        Errors: ``ValueError`` for an alpha outside [0, 1].
        """
        alpha = _check_alpha(alpha)
        if self.name in _INVERSES:
            t = _INVERSES[self.name](alpha, **dict(self.parameters)).clamp(0.0, 1.0)
            return torch.where(alpha == 1, 0.0, torch.where(alpha == 0, 1.0, t))
        return bisect(lambda t: self(t)[0], alpha)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **dict(self.parameters)}


def get(schedule: "str | Schedule | Mapping[str, Any]", **parameters: float) -> Schedule:
    """The schedule of a name (``"linear"``), of a stored ``to_dict()``, or the given one.

    Errors: ``ValueError`` for an unknown name or parameter (naming the nearest), and for a parameter that is not
    positive.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, Mapping):
        stored = dict(schedule)
        return get(stored.pop("name"), **stored)
    if schedule not in _FUNCTIONS:
        raise unknown("schedule", schedule, NAMES)
    defaults = _FUNCTIONS[schedule][1]
    for name, value in parameters.items():
        if name not in defaults:
            raise unknown(f"parameter of schedule {schedule!r}:", name, defaults)
        if not value > 0:
            raise ValueError(f"{name}={value} of schedule {schedule!r}: pass a number above 0")
    if (
        schedule == "geometric"
        and not {**defaults, **parameters}["sigma_min"] < {**defaults, **parameters}["sigma_max"]
    ):
        raise ValueError(f"schedule 'geometric' with {parameters}: sigma_min must be below sigma_max")
    return Schedule(schedule, tuple({**defaults, **parameters}.items()))


# --------------------------------------------------------------------------------------------------- discrete time


def _reciprocal_betas(steps: int) -> Tensor:
    """beta_i = 1 / (T - i + 1) (D3PM-absorbing; Sohl-Dickstein et al. 2015): alpha_i = 1 - i / T."""
    return 1 / torch.arange(steps, 0, -1, dtype=torch.float64)


def _linear_betas(steps: int) -> Tensor:
    """beta from 0.02 to 1 in equal increments: the range is our choice, and too fast for any but Gaussian matrices."""
    return torch.linspace(0.02, 1.0, steps, dtype=torch.float64)


def _cosine_betas(steps: int) -> Tensor:
    """alpha_i proportional to cos((i / T + s) / (1 + s) pi / 2), s = 0.008, and no beta above 0.999 (D3PM-uniform)."""
    i = torch.arange(steps + 1, dtype=torch.float64)
    alpha = torch.cos((i / steps + 0.008) / 1.008 * math.pi / 2)
    return (1 - alpha[1:] / alpha[:-1]).clamp_max(0.999)


BETAS: dict[str, Callable[[int], Tensor]] = {
    "reciprocal": _reciprocal_betas,
    "linear": _linear_betas,
    "cosine": _cosine_betas,
}
"""D3PM's schedules by name: the number of steps T -> beta_1 .. beta_T, float64."""


@dataclass(frozen=True, eq=False)
class Table:
    """alpha_i at the times i / T of a chain of T steps, (T + 1,) float64, falling from 1; linear in between.

    The line makes it a schedule like any other, so that a sampler may step where it likes; at i / T it is exact.
    """

    name: str
    alphas: Tensor

    @classmethod
    def of_betas(cls, name: str, betas: Tensor) -> Self:
        """alpha_i = (1 - beta_1) .. (1 - beta_i). Errors: ``ValueError`` for a beta outside (0, 1]."""
        outside = ~((betas > 0) & (betas <= 1))
        if outside.any():
            step = int(outside.nonzero()[0])
            raise ValueError(
                f"beta={float(betas[step])} at step {step + 1} is outside (0, 1]: alpha must fall, to 0 at most"
            )
        alphas = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas.double()).cumprod(0)])
        return cls(name, alphas)

    @property
    def steps(self) -> int:
        return len(self.alphas) - 1

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, d alpha / dt) in float64, of t's shape."""
        alphas = self.alphas.to(t.device)
        place = t.double().clamp(0.0, 1.0) * self.steps
        nearest = place.round()
        place = torch.where((place - nearest).abs() < 1e-9, nearest, place)  # i / T times T may miss i by its rounding
        before = place.floor().clamp_max(self.steps - 1).long()
        fall = alphas[before + 1] - alphas[before]
        return alphas[before] + (place - before) * fall, fall * self.steps

    def inverse(self, alpha: Tensor) -> Tensor:
        """The time at which ``alpha`` is left; 1 for an alpha below the last. Errors: ``ValueError`` outside [0, 1]."""
        alpha = _check_alpha(alpha)
        alphas = self.alphas.to(alpha.device)
        after = torch.searchsorted(-alphas, -alpha).clamp(1, self.steps)
        first, last = alphas[after - 1], alphas[after]
        share = ((first - alpha) / (first - last).clamp_min(torch.finfo(torch.float64).tiny)).clamp(0.0, 1.0)
        return (after - 1 + share) / self.steps

    def to_dict(self) -> dict[str, Any]:
        """The name alone: what built the table is kept by the process it belongs to."""
        return {"name": self.name}
