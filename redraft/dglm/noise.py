"""The noise of one vector: ``Channel`` with the schedule of STAR-LDM's code, and no codebook."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from redraft.processes import Channel
from redraft.randomness import Device, Generators, randn
from redraft.schedules.gamma import check_ends


@dataclass(frozen=True)
class Cosine:
    """gamma = 2 log tan(theta) - 2 log(scale), theta rising evenly in t, from ``low`` to ``high`` before the shift.

    t ~ U(0, 1) draws gamma from the cosine density, sech(gamma / 2) / 2 pi between its ends; the width of an angle's
    range is all that cutting the ends changes. ``scale`` above 1 gives the same t more signal.
    """

    low: float = -15.0
    high: float = 15.0
    scale: float = 1.0
    name: str = "cosine_angle"

    def __post_init__(self) -> None:
        check_ends(self.low, self.high)

    @property
    def gamma_min(self) -> float:
        return self.low - 2 * math.log(self.scale)

    @property
    def gamma_max(self) -> float:
        return self.high - 2 * math.log(self.scale)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(gamma, d gamma / dt) in float64, of t's shape."""
        first, last = (math.atan(math.exp(end / 2)) for end in (self.low, self.high))
        theta = first + (last - first) * t.double()
        return 2 * torch.log(torch.tan(theta) / self.scale), 4 * (last - first) / torch.sin(2 * theta)

    def to(self, device: torch.device | str | None) -> Self:
        return self

    def complaint(self) -> str | None:
        return None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Vectors(Channel):
    """Noise on vectors that stand for no token: what the samplers of ``redraft.sampling`` need to draw one (B, 1, D).

    VP, for standardised vectors, whose coordinates then have variance 1 at every t.
    """

    name = "vectors"
    vectors = True
    mask_id = None

    def prior(self, shape: tuple[int, int, int], generator: Generators = None, device: Device = None) -> Tensor:
        """Draw z at t = 1; (B, 1, D) float64."""
        return self.ends()[2].to(device) * randn(shape, generator, device)


def renoised(x: Tensor, variance: float, generator: Generators = None) -> Tensor:
    """sqrt(1 - variance) x + sqrt(variance) eps, of x's shape (B, D)."""
    eps = randn(x.shape, generator, x.device)
    return math.sqrt(1 - variance) * x + (math.sqrt(variance) * eps).to(x)
