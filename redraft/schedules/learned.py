"""Noise schedules of vectors that are learned: ``gamma(t)`` follows from tensors that are trained with the model.

Two ideas. ``adaptive`` and ``gumbel`` fit a monotone function to the cross-entropy seen at each gamma and visit every
level of it equally often (CDCD, Dieleman et al. 2022; LangFlow, arXiv 2604.11748). ``plaid`` lets the bound's own
gradient move the schedule to where its estimator varies least (VDM, Kingma et al. 2021; PLAID, Gulrajani & Hashimoto
2023). With an exact denoiser both ask for the same: cross-entropy that is linear in t.

All is computed in float64, whatever the precision of the tensors.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.randomness import generator, rand
from redraft.schedules.gamma import Kept, check_ends

BINS = 100
"""Pieces of a warped schedule's line, equally wide in gamma (CDCD)."""
FLOOR = 0.01
"""Share of the time that a warped schedule spreads evenly over gamma: keeps its derivative below range / FLOOR."""
PACE = 10.0
"""What a learned tensor is multiplied by when it is read: it moves so much faster than weights do under AdamW, at 1e-2
where these have 1e-3 (CDCD's rate, and that of PLAID's ends)."""
FIT_WEIGHT = 1e-3
"""Scales a warped schedule's own loss, which AdamW does not notice, so that clipping the model's gradient does not."""
HIDDEN = 1024
"""Units of PLAID's network."""
STEEPEST = 50.0
"""Slope of the steepest unit of PLAID's network at the start: what it can learn where gamma has to run fastest."""
FARTHEST = 40.0
"""A learned end beyond this is no noise level any more: float64 has 36 for the logarithm of its resolution."""

Tensors = Mapping[str, Tensor]


class Learned(ABC):
    """What learned schedules share: ends to start from, and tensors, parameters if a model holds them.

    ``tensors`` are those named in ``kept``; unless given, those that training starts with (``start``).
    """

    name: ClassVar[str]
    kept: ClassVar[tuple[Kept, ...]]

    def __init__(self, gamma_min: float = -4.0, gamma_max: float = 6.0, tensors: Tensors | None = None) -> None:
        check_ends(gamma_min, gamma_max)
        self.gamma_min, self.gamma_max = gamma_min, gamma_max
        self.tensors = dict(self.start(0) if tensors is None else tensors)
        for kept in self.kept:
            shape = tuple(self.tensors[kept.name].shape) if kept.name in self.tensors else None
            if shape != kept.shape:
                raise ValueError(f"schedule {self.name!r} needs {kept.name} of shape {kept.shape}, given: {shape}")

    @classmethod
    def start(cls, seed: int) -> dict[str, Tensor]:
        """The tensors that training starts with, float32: zeros, unless a schedule needs them to differ."""
        return {kept.name: torch.zeros(kept.shape) for kept in cls.kept}

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(gamma, d gamma / dt) in float64, of t's shape."""

    def to(self, device: torch.device | str | None) -> Self:
        """The same schedule on ``device``; parameters go where their model takes them."""
        moved = {name: one if isinstance(one, nn.Parameter) else one.to(device) for name, one in self.tensors.items()}
        return type(self)(self.gamma_min, self.gamma_max, moved)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "gamma_min": self.gamma_min, "gamma_max": self.gamma_max}

    def complaint(self) -> str | None:
        """What has gone bad of it in training, in words; None for a schedule that can be used."""
        for name, tensor in self.tensors.items():
            if not bool(tensor.detach().isfinite().all()):
                return f"{name} of schedule {self.name!r} is not finite"
        times = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
        gamma, slope = (value.detach().cpu() for value in self(times))
        bad = ~(gamma.isfinite() & slope.isfinite() & (slope > 0))
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
            at = f"gamma {float(gamma[i])}, slope {float(slope[i])} at t = {float(times[i]):.1f}"
            return f"schedule {self.name!r} does not rise: {at}"
        return None

    def _read(self, name: str) -> Tensor:
        return PACE * self.tensors[name].double()

    def _here(self, value: Tensor) -> Tensor:
        """In float64 where the tensors are: a process asks for its ends by a t on the CPU."""
        return value.double().to(self.tensors[self.kept[0].name].device)


# ------------------------------------------------------------------------------------------------- time warping


class Warped(Learned):
    """t = F(gamma), a CDF that is linear in each of ``BINS`` bins: a multiple of it is fitted to the cross-entropy.

        F~(gamma) = offset + sum of the rises of the bins below gamma,  in nats per token
        F(gamma)  = the same, without offset, of the rises' shares of their sum

    The children say how offset and rises follow from what is learned. The shares are mixed with ``FLOOR`` of even
    ones, so that F can be inverted, and gamma' has a bound, wherever cross-entropy is flat. No gradient comes through
    gamma(t): the schedule learns by ``fit`` alone, and the bound does not depend on it.
    """

    @abstractmethod
    def rises(self) -> tuple[Tensor, Tensor]:
        """The offset (1,) and by how much F~ rises in each bin (BINS,): nats per token, none negative, float64."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """gamma = F^-1(t) and 1 / F'(gamma), float64, of t's shape; exactly the ends at t = 0 and 1."""
        t = self._here(t).clamp(0.0, 1.0)
        shares = self._shares()
        edges = F.pad(shares.cumsum(0), (1, 0))
        i = torch.searchsorted(edges, t, right=True).sub(1).clamp(0, BINS - 1)
        inside = ((t - edges[i]) / shares[i]).clamp(0.0, 1.0)
        place = torch.where(t == 1, 1.0, (i + inside) / BINS)
        ends = torch.tensor([self.gamma_min, self.gamma_max], dtype=t.dtype, device=t.device)
        return torch.lerp(ends[0], ends[1], place), (self.gamma_max - self.gamma_min) / BINS / shares[i]

    def cdf(self, gamma: Tensor) -> Tensor:
        """t = F(gamma), the inverse of the schedule, float64, of gamma's shape; 0 and 1 beyond the ends."""
        return self._line(gamma, self._shares())

    def expected(self, gamma: Tensor) -> Tensor:
        """F~(gamma), the cross-entropy that is fitted, nats per token, of gamma's shape; differentiable."""
        offset, rises = self.rises()
        return offset + self._line(gamma, rises)

    def fit(self, gamma: Tensor, cross_entropy: Tensor) -> Tensor:
        """The schedule's own loss: (F~(gamma) - cross-entropy)^2, small, of the shape that both broadcast to.

        ``gamma``: levels drawn by this schedule at t ~ U(0, 1), each weighing one over its density, with mean 1, so
        that all levels count alike; ``cross_entropy`` what was found there, nats per token. A gradient in the
        schedule's tensors alone, to be added to the objective's.
        """
        gamma = gamma.detach()
        weight = 1 / (BINS * self._shares()[self._bin(self._place(gamma))])
        error = self.expected(gamma) - self._here(cross_entropy.detach())
        return FIT_WEIGHT * weight * error**2

    def _shares(self) -> Tensor:
        """By how much F rises in each bin, (BINS,), all positive with sum 1; detached."""
        rises = self.rises()[1].detach()
        shares = rises / rises.sum().clamp_min(torch.finfo(rises.dtype).tiny) + FLOOR / BINS
        return shares / shares.sum()

    def _place(self, gamma: Tensor) -> Tensor:
        """Where gamma is between the ends, counted in bins."""
        place = (self._here(gamma) - self.gamma_min) / (self.gamma_max - self.gamma_min)
        return place.clamp(0.0, 1.0) * BINS

    def _bin(self, place: Tensor) -> Tensor:
        return place.floor().long().clamp(0, BINS - 1)

    def _line(self, gamma: Tensor, rises: Tensor) -> Tensor:
        """The line through 0 at gamma_min that rises so in each bin."""
        place = self._place(gamma)
        i = self._bin(place)
        return F.pad(rises.cumsum(0), (1, 0))[i] + (place - i) * rises[i]


class Adaptive(Warped):
    """t is the share of cross-entropy's rise up to gamma, fitted bin by bin (CDCD's time warping)."""

    name = "adaptive"
    kept = (Kept("log_heights", (BINS,), learned=True), Kept("log_offset", (1,), learned=True))

    def rises(self) -> tuple[Tensor, Tensor]:
        """Free and positive; zeros rise by one nat in all, evenly as linear_gamma, above a twentieth of one."""
        return torch.exp(self._read("log_offset")) / 20, torch.exp(self._read("log_heights")) / BINS


class Gumbel(Warped):
    """t is the CDF of a Gumbel law of gamma, fitted to cross-entropy by its place, width and height (LangFlow).

        F~(gamma) = total exp(-exp(-(gamma - loc) / scale)),  gamma = loc - scale log(-log u) where it is not cut off

    cut off at the ends, and taken at the edges of the bins.
    """

    name = "gumbel"
    kept = tuple(Kept(name, (1,), learned=True) for name in ("loc", "log_scale", "log_total"))

    def law(self) -> tuple[Tensor, Tensor, Tensor]:
        """loc, scale and total (nats per token), (1,) each; zeros: amid the ends, an eighth of their distance, 1."""
        amid, distance = (self.gamma_min + self.gamma_max) / 2, self.gamma_max - self.gamma_min
        scale = distance / 8 * torch.exp(self._read("log_scale"))
        return amid + self._read("loc"), scale, torch.exp(self._read("log_total"))

    def rises(self) -> tuple[Tensor, Tensor]:
        """What lies below gamma_min, and in each bin."""
        loc, scale, total = self.law()
        edges = torch.linspace(self.gamma_min, self.gamma_max, BINS + 1, dtype=loc.dtype, device=loc.device)
        # exp(-exp(6)) is 1e-175; further down the gradient would be 0 times infinity
        levels = total * torch.exp(-torch.exp(-((edges - loc) / scale).clamp_min(-6.0)))
        return levels[:1], levels.diff()


# ------------------------------------------------------------------------------------------- variance minimising


class Plaid(Learned):
    """gamma(t) = g0 + (g1 - g0) share(t) by a monotone network, for a bound of little variance (PLAID).

        share(t) = (g(t) - g(0)) / (g(1) - g(0)),  g(t) = sum_j softplus(c_j) tanh(softplus(a_j) (t - 1/2) + b_j)

    The bound is an integral over gamma: ``share`` decides the variance of its estimator only, the ends g0 and g1 decide
    its value, and what each ought to minimise differs. An objective with the loss l of a row, one draw of (t, eps),

    - computes ``share, d_share = schedule.inner(t)`` and ``gamma, d_gamma = schedule.between(share, d_share)``,
    - draws z and weighs the loss with these, and tells the denoiser ``gamma`` (``Condition``), not t alone,
    - and multiplies the gradients that arrive at ``share`` and ``d_share`` by 2 l over a unit, by a hook on each
      (``objectives.vlb.minimise_square``): the network then follows the gradient of E l^2 in that unit, whose least
      value for a given mean has l alike at every t, while ends and weights follow that of E l.
    """

    name = "plaid"
    kept = (
        *(Kept(name, (HIDDEN,), learned=True) for name in ("slopes", "shifts", "heights")),
        Kept("ends", (2,), learned=True),
    )

    @classmethod
    def start(cls, seed: int) -> dict[str, Tensor]:
        """A nearly straight line between the ends: equal steps of every steepness, somewhere between or just beyond."""
        steepness, places = (rand((HIDDEN,), generator(seed, key)) for key in (0, 1))
        slopes, places = STEEPEST**steepness, 1.2 * places - 0.6
        # softplus is undone, and what _read multiplies by
        drawn = {"slopes": torch.log(torch.expm1(slopes)), "shifts": -slopes * places}
        return {**super().start(seed), **{name: (value / PACE).float() for name, value in drawn.items()}}

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(gamma, d gamma / dt) in float64, of t's shape; differentiable in all that is learned, and in t."""
        return self.between(*self.inner(t))

    def inner(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """share(t) in [0, 1] and d share / dt > 0, float64, of t's shape; differentiable in the network."""
        slopes, heights = (F.softplus(self._read(name)) for name in ("slopes", "heights"))
        shifts = self._read("shifts")
        first, last = (torch.tanh((end - 0.5) * slopes + shifts) for end in (0.0, 1.0))
        units = torch.tanh((self._here(t)[..., None] - 0.5) * slopes + shifts)
        distance = ((last - first) * heights).sum()
        share = ((units - first) * heights).sum(-1) / distance
        return share, ((1 - units**2) * slopes * heights).sum(-1) / distance

    def between(self, share: Tensor, d_share: Tensor) -> tuple[Tensor, Tensor]:
        """(gamma, d gamma / dt) of what ``inner`` returns; differentiable in both and in the ends."""
        first, last = self.ends()
        return first + (last - first) * share, (last - first) * d_share

    def ends(self) -> tuple[Tensor, Tensor]:
        """g0 and g1, gamma at t = 0 and t = 1: learned, from gamma_min and gamma_max on; scalars, float64."""
        moved = self._read("ends")
        return self.gamma_min + moved[0], self.gamma_max + moved[1]

    def complaint(self) -> str | None:
        """As of all that are learned; and an end beyond ``FARTHEST``, or ends out of order."""
        first, last = (float(end.detach()) for end in self.ends())
        for side, end in (("0", first), ("1", last)):
            if abs(end) > FARTHEST:
                return f"schedule 'plaid': gamma at t = {side} is {end:.4g}, outside [-{FARTHEST:g}, {FARTHEST:g}]"
        if first >= last:
            return f"schedule 'plaid': its ends are out of order, {first:.4g} at t = 0 and {last:.4g} at t = 1"
        return super().complaint()


LEARNED: dict[str, type[Adaptive] | type[Gumbel] | type[Plaid]] = {one.name: one for one in (Adaptive, Gumbel, Plaid)}
"""The learned schedules by name."""
