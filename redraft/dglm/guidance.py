"""Guidance of a proposal: of two denoisers, or by the gradient of a classifier. Each makes a query of queries.

Weights are canonical: 1 is the conditional law (exactly so with exact parts and one classifier of noisy vectors), 0 the
unconditional one.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from redraft.guidance.gradient import LogLikelihood, check_weight, slope
from redraft.models.layers import TIME_FEATURES, time_features
from redraft.processes import Channel
from redraft.sampling.contract import Query

Clean = Callable[[Tensor], Tensor]
"""x (B, D) -> log p(y | x), (B,), of a clean vector."""


def cfg(conditional: Query, unconditional: Query, weight: float) -> Query:
    """x_hat = w x_c + (1 - w) x_u; asks one of the two only at w = 1 and w = 0.

    Among vectors it is the same combination of v, epsilon, or the score: each is affine in x_hat at a given z. It is
    not p_c^w p_u^(1 - w), whatever the steps (Ho & Salimans 2022).
    """
    if not math.isfinite(weight):
        raise ValueError(f"guidance weight {weight}: pass a number, 1 for none")
    if weight in (0, 1):
        return conditional if weight else unconditional
    return lambda z, t: weight * conditional(z, t) + (1 - weight) * unconditional(z, t)


def guided(query: Query, process: Channel, log_p: LogLikelihood, strength: float) -> Query:
    """x_hat + g (sigma^2 / alpha) grad_z log p(y | z), which is E[x | z, y] at g = 1 if both parts are exact.

    The same as epsilon - g sigma grad (Dhariwal & Nichol 2021). Strength 0 asks no classifier.

    Errors: ``ValueError`` for a negative strength, and for a log p without a finite gradient.
    """
    check_weight(strength)
    if strength == 0:
        return query

    def said(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.scales(process.gamma(t)[0])
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            push = slope(log_p(at, t), at, t)
        return query(z, t) + (strength * sigma**2 / alpha)[..., None].to(z) * push

    return said


def plug_in(query: Query, clean: Clean) -> LogLikelihood:
    """log p(y | x_hat(z)): a classifier of clean vectors asked of the denoised one, the gradient through the denoiser.

    Biased, however exact both are: log p(y | z) is the log of the mean of p(y | x), not p at the mean x. The bias goes
    with the spread of x given z, so it is large at high noise and vanishes at low.
    """
    return lambda z, t: clean(query(z, t)[:, 0])


class Noised(nn.Module):
    """log p(y | z, gamma) for each class: a small MLP of alpha z, trained over all noise levels (VP).

    alpha z is the best linear guess of a standardised x. The push on x_hat is then sigma^2 times the net's own slope:
    bounded, where a slope in z that did not fall with alpha would be magnified without end as alpha does.
    """

    def __init__(self, dim: int, classes: int, width: int) -> None:
        super().__init__()
        self.read, self.level = nn.Linear(dim, width), nn.Linear(TIME_FEATURES, width)
        self.hidden, self.say = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, z: Tensor, gamma: Tensor) -> Tensor:
        """z (B, D) and gamma (B,) to log p (B, classes)."""
        alpha = torch.sigmoid(-gamma).sqrt().to(z)[:, None]
        h = torch.nn.functional.silu(self.read(alpha * z) + self.level(level_features(gamma).to(z)))
        return torch.log_softmax(self.say(torch.nn.functional.silu(self.hidden(h))), -1)


class Logistic(nn.Module):
    """log p(y | x) for each class, linear in the clean vector."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.say = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, D) to log p (B, classes)."""
        return torch.log_softmax(self.say(x), -1)


def level_features(gamma: Tensor) -> Tensor:
    """Sines and cosines of the noise level, (..., TIME_FEATURES) float64: up to a radian per unit of gamma."""
    return time_features(gamma / 30 + 0.5)
