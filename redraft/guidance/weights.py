"""How strongly to guide: weights, what others call them, and weights that change with t.

A weight of 1 is the plain conditional model and 0 the unconditional one, everywhere here.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from redraft.processes.base import per_position

Weight = float | Callable[[Tensor], Tensor | float]
"""A number, or a function of t (B,), each row's latest time, that gives one, or one a row."""


def weight_at(weight: Weight, t: Tensor) -> Tensor:
    """The weight of each row at t, (B,) or (B, L); (B,) float64. Errors: ``ValueError`` for what is no number a row."""
    latest = per_position(t).amax(1)
    if not callable(weight):
        return torch.full_like(latest, weight, dtype=torch.float64)
    found = torch.as_tensor(weight(latest), dtype=torch.float64, device=t.device)
    if found.shape not in ((), latest.shape):
        raise ValueError(
            f"a weight of shape {tuple(found.shape)} at t of {len(latest)} rows: return a number, or one a row, (B,)"
        )
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"weight={found.tolist()} at t={latest.tolist()}: return numbers")
    return found.expand(latest.shape)


def tilting_at(weight: Weight, t: Tensor) -> Tensor:
    """As ``weight_at``, of what p(y | .) is raised to: 0 or more. Errors: ``ValueError`` for another."""
    found = weight_at(weight, t)
    if len(found):
        check_tilting(float(found.min()))
        check_tilting(float(found.max()))
    return found


def check_tilting(weight: Weight) -> None:
    """Errors: ``ValueError`` for a number below 0, or that is none."""
    if not callable(weight) and not 0 <= weight < math.inf:
        raise ValueError(
            f"weight={weight}: 0 is no guidance and 1 is p(x | y); for texts of which y does not hold, guide by not-y"
        )


def check_finite(weight: Weight) -> None:
    """Errors: ``ValueError`` for a weight that is no number."""
    if not callable(weight) and not math.isfinite(weight):
        raise ValueError(f"weight={weight}: pass a number; 1 is the conditional model, 0 the unconditional one")


def from_w(w: float) -> float:
    """The weight here of those who write (1 + w) conditional - w unconditional: 1 + w (Ho & Salimans; Muse; LLaDA).

    No conversion is needed of scales of which 1 is the conditional model: those of GLIDE, Imagen, diffusers and ELF,
    gamma of D-CFG and Duo, the g of classifier guidance, PLAID's lambda. Diffusion-LM's lambda weighs fluency, the
    opposite, and has no counterpart.
    """
    return 1 + w


def from_temperature(temperature: float) -> float:
    """The weight here of a guidance temperature (Nisonoff et al. 2024): 1 / T, 0 for an infinite one.

    Errors: ``ValueError`` unless T is above 0.
    """
    if not temperature > 0:
        raise ValueError(
            f"temperature={temperature}: a guidance temperature is above 0, and 1 is the conditional model"
        )
    return 1 / temperature


def interval(weight: float, low: float, high: float) -> Weight:
    """``weight`` for low <= t <= high, and the plain conditional model, 1, outside (Kynkäänniemi et al. 2024,
    arXiv 2404.07724): there one side is asked, and one forward spent.

    Errors: ``ValueError`` for times that are no interval of [0, 1], or a weight that is no number.
    """
    check_finite(weight)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"low={low}, high={high}: pass 0 <= low <= high <= 1; t = 1 is noise, where writing begins")
    return lambda t: torch.where((t >= low) & (t <= high), torch.full_like(t, weight), 1.0)


def linear(weight: float) -> Weight:
    """From the plain conditional model at t = 1 to ``weight`` at t = 0, rising as the text is written (Muse, Chang et
    al. 2023, arXiv 2301.00704).

    Of a text written in blocks t falls from 1 to 0 in each. Errors: ``ValueError`` for a weight that is no number.
    """
    check_finite(weight)
    return lambda t: 1 + (weight - 1) * (1 - t)
