"""The classifiers that a proposal is guided by: their log p(y | z), whose gradient ``redraft.guidance`` adds."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from redraft.guidance.gradient import LogLikelihood
from redraft.models.layers import TIME_FEATURES, time_features
from redraft.models.vectors import ask
from redraft.processes import Denoiser

Clean = Callable[[Tensor], Tensor]
"""x (B, D) -> log p(y | x), (B,), of a clean vector."""


def plug_in(denoiser: Denoiser, clean: Clean) -> LogLikelihood:
    """log p(y | x_hat(z)): a classifier of clean vectors asked of the denoised one, the gradient through the denoiser.

    Biased, however exact both are: log p(y | z) is the log of the mean of p(y | x), not p at the mean x. The bias goes
    with the spread of x given z, so it is large at high noise and vanishes at low.
    """
    return lambda z, t: clean(ask(denoiser, None, z, t, None).x[:, 0])


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
