"""Gaussian noise on vectors, and on the vectors of tokens: z = alpha x + sigma eps.

VP, VE and RF differ only in how (alpha, sigma) follow from ``gamma = -log SNR = log(sigma^2 / alpha^2)``: in the
coordinate u = z / alpha all three are x + e^(gamma / 2) eps. All here is written for gamma, never for a timestep.

``Channel`` knows vectors only. ``Gaussian`` is the channel of token embeddings: a network that names tokens, p over K,
says x = p @ codebook, and the score is exact when p is (CDCD, Dieleman et al. 2022; PLAID, Gulrajani & Hashimoto 2023).
"""

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.errors import unknown
from redraft.processes.base import per_position
from redraft.randomness import Device, Generators, randn
from redraft.schedules import Gamma, GammaSchedule, time_of

Scales = Callable[[Tensor], tuple[Tensor, Tensor]]


def _vp(gamma: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()


def _ve(gamma: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(gamma), torch.exp(gamma / 2)


def _rf(gamma: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(-gamma / 2), torch.sigmoid(gamma / 2)


KINDS: dict[str, Scales] = {"vp": _vp, "ve": _ve, "rf": _rf}

RECONSTRUCTION_SHARE = 0.125
"""Share of a batch spent on the bound's t = 0 term (PLAID evaluates with 1/8)."""

# ------------------------------------------------------------------------------------------------ what is predicted

Affine = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""(gamma, power) -> (a, b), of gamma's shape: a network's number f stands for x = a u + b f, u = z / alpha."""


def _x0(gamma: Tensor, power: float) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(gamma), torch.ones_like(gamma)


def _epsilon(gamma: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """x = u - e^(gamma / 2) eps."""
    return torch.ones_like(gamma), -torch.exp(gamma / 2)


def _v(gamma: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """v = alpha eps - sigma x in VP units: x = alpha^2 u - sigma v (Salimans & Ho 2022)."""
    return torch.sigmoid(-gamma), -torch.sigmoid(gamma).sqrt()


def _velocity(gamma: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """(x - z) / (1 - tau) in RF units, towards data: x = tau u + (1 - tau) f."""
    return torch.sigmoid(-gamma / 2), torch.sigmoid(gamma / 2)


def _edm(gamma: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """x = c_skip u + c_out f for data of per-coordinate variance ``power`` (Karras et al. 2022, table 1)."""
    total = torch.exp(gamma) + power
    return power / total, (torch.exp(gamma) * power / total).sqrt()


PREDICTIONS: dict[str, Affine] = {"x0": _x0, "epsilon": _epsilon, "v": _v, "velocity": _velocity, "edm": _edm}
"""What a regression network's output may mean. An error in it is b^-2 times the same error in x."""


class Channel:
    """Vectors through Gaussian noise: z = alpha x + sigma eps, x of any shape (B, L, D). Build one with ``channel``.

    ``power`` is the mean square of a coordinate of x, which scales inputs and the ``edm`` prediction.
    """

    def __init__(self, kind: str = "vp", schedule: Gamma | None = None, power: float = 1.0) -> None:
        if kind not in KINDS:
            raise unknown("kind of Gaussian process", kind, KINDS)
        self.kind, self.schedule, self.power = kind, schedule or GammaSchedule(), power

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(gamma, d gamma / dt) at t, float64, with a position axis: (B, 1) for t of shape (B,)."""
        return self.schedule(per_position(t))

    def place(self, gamma: Tensor) -> Tensor:
        """Where gamma stands between the ends that the schedule starts with, 0 to 1: how a network is told the time."""
        low, high = self.schedule.gamma_min, self.schedule.gamma_max
        return (gamma - low) / (high - low)

    def scales(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at gamma, float64, of gamma's shape."""
        return KINDS[self.kind](gamma)

    def ends(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and the prior's std at t = 1; the std is that of unit-variance data, so that kinds agree."""
        alpha, sigma = self.scales(self.schedule(torch.ones(()))[0])
        return alpha, sigma, (alpha**2 + sigma**2).sqrt()

    def noised(self, x: Tensor, gamma: Tensor, generator: Generators = None) -> Tensor:
        """Draw z ~ N(alpha x, sigma^2 I) at gamma (B, 1 or L); x and z (B, L, D)."""
        alpha, sigma = (scale[..., None] for scale in self.scales(gamma))
        return alpha.to(x) * x + (sigma * randn(x.shape, generator, x.device)).to(x)

    def denoised(self, value: Tensor, predicts: str, z: Tensor, gamma: Tensor) -> Tensor:
        """x from what a network predicts of z at gamma: one of ``PREDICTIONS``; (B, L, D), exact both ways."""
        a, b = self._affine(predicts, gamma)
        return (a / self.scales(gamma)[0])[..., None].to(z) * z + b[..., None].to(z) * value

    def predicted(self, x: Tensor, predicts: str, z: Tensor, gamma: Tensor) -> Tensor:
        """The inverse of ``denoised``: the target that a network predicting so has for x; (B, L, D)."""
        a, b = self._affine(predicts, gamma)
        return (x - (a / self.scales(gamma)[0])[..., None].to(z) * z) / b[..., None].to(z)

    def error_weight(self, predicts: str, gamma: Tensor) -> Tensor:
        """What |x - x_hat|^2 weighs in the prediction's squared error: SNR for epsilon, SNR + 1 for v, 1 for x0."""
        return self._affine(predicts, gamma)[1] ** -2

    def _affine(self, predicts: str, gamma: Tensor) -> tuple[Tensor, Tensor]:
        if predicts not in PREDICTIONS:
            raise unknown("prediction", predicts, PREDICTIONS)
        return PREDICTIONS[predicts](gamma, self.power)

    def vlb(self, error: Tensor, gamma: Tensor, d_gamma: Tensor) -> Tensor:
        """1/2 exp(-gamma) gamma'(t) |x - x_hat|^2, ``error`` the square (B, L): nats per token (VDM, eq. 17)."""
        return (0.5 * torch.exp(-gamma) * d_gamma).to(error) * error

    def posterior(self, x: Tensor, z: Tensor, t: Tensor, s: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Mean (B, L, D) and variance (B, 1 or L, 1) of the reverse kernel q(z_s | z_t, x) of strength ``eta``.

            mean = alpha_s x + sqrt(sigma_s^2 - variance) eps,  eps = (z - alpha_t x) / sigma_t
            variance = eta^2 c sigma_s^2,  c = 1 - exp(gamma_s - gamma_t)

        Every eta in [0, 1] takes q_t(. | x) to q_s(. | x) (DDIM, Song et al. 2020). 1 is Bayes, the kernel that the
        bound is about: mean (1 - c) alpha_s / alpha_t z + c alpha_s x (VDM, Kingma et al. 2021, eq. 32; the same map
        as DDPM's). 0 moves z along the probability-flow ODE, by one Euler step in any of its coordinates.

        Errors: ``ValueError`` for an eta outside [0, 1].
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta} is outside [0, 1]: 0 adds no noise, 1 is ancestral")
        gamma_t, gamma_s = self.gamma(t)[0], self.gamma(s)[0]
        (alpha_t, _), (alpha_s, sigma_s) = self.scales(gamma_t), self.scales(gamma_s)
        c = -torch.expm1(gamma_s - gamma_t)
        # u - x shrinks by e^shrink: neither factor is a difference of close numbers, however short or long the step
        shrink = (gamma_s - gamma_t + torch.log1p(-(eta**2) * c)) / 2
        keep, give = shrink.exp() * alpha_s / alpha_t, -torch.expm1(shrink) * alpha_s
        mean = keep[..., None].to(z) * z + give[..., None].to(z) * x.to(z)
        return mean, (eta**2 * c * sigma_s**2)[..., None]

    def step(self, x: Tensor, z: Tensor, t: Tensor, s: Tensor, eta: float, generator: Generators = None) -> Tensor:
        """Draw z at s from ``posterior`` of strength ``eta``, without a draw where that is 0; (B, L, D)."""
        mean, variance = self.posterior(x, z, t, s, eta)
        if eta == 0:
            return mean
        return mean + (variance.sqrt() * randn(z.shape, generator, z.device)).to(mean)

    def ancestral(self, x: Tensor, z: Tensor, t: Tensor, s: Tensor, generator: Generators = None) -> Tensor:
        """``step`` at full strength: z at s by Bayes; (B, L, D)."""
        return self.step(x, z, t, s, 1.0, generator)

    def input_scale(self, gamma: Tensor) -> Tensor:
        """1 / sqrt(alpha^2 power + sigma^2): gives z coordinates of variance 1 (EDM's c_in), float64, gamma's shape."""
        alpha, sigma = self.scales(gamma)
        return (alpha**2 * self.power + sigma**2).rsqrt()


class Gaussian(Channel):
    """A process over vectors: z has shape (B, L, D), the clean state is a row of ``codebook`` (K, D).

    The bound is -log p(x0 | z at t = 0) + integral of ``nelbo`` + ``prior_kl``. Build one with ``gaussian``. A
    ``learned`` codebook is a parameter of the model that holds the process; ``normalise`` divides its rows by their
    norms whenever they are read, which keeps learned ones from collapsing or growing (CDCD, PLAID).
    """

    name = "gaussian"
    vectors = True
    mask_id = None

    def __init__(
        self,
        codebook: Tensor,
        kind: str = "vp",
        schedule: Gamma | None = None,
        learned: bool = False,
        normalise: bool = False,
        power: float | None = None,
    ) -> None:
        """``power`` is measured on the codebook unless given; normalised rows have 1 / D."""
        if codebook.ndim != 2:
            raise ValueError(f"codebook of shape {tuple(codebook.shape)}: pass one row per token, shape (K, D)")
        self.table, self.learned, self.normalise = codebook, learned, normalise
        self.K, self.D = codebook.shape
        if normalise:
            power = 1 / self.D
        elif power is None:
            power = float((codebook.detach().double() ** 2).mean()) or 1.0
        super().__init__(kind, schedule, power)

    @property
    def codebook(self) -> Tensor:
        """The clean vectors of the tokens, (K, D)."""
        return F.normalize(self.table, dim=-1) if self.normalise else self.table

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "K": self.K,
            "D": self.D,
            "kind": self.kind,
            "schedule": self.schedule.to_dict(),
            "learned": self.learned,
            "normalise": self.normalise,
            "power": self.power,
        }

    def to(self, device: Device) -> Self:
        """The same process on ``device``; a learned codebook goes where its model takes it."""
        table = self.table if isinstance(self.table, nn.Parameter) else self.table.to(device)
        schedule = self.schedule.to(device)
        return type(self)(table, self.kind, schedule, self.learned, self.normalise, self.power)

    def detached(self) -> Self:
        """The same process, whose codebook no gradient reaches."""
        table = self.table.detach()
        return type(self)(table, self.kind, self.schedule, self.learned, self.normalise, self.power)

    def mean(self, p0: Tensor) -> Tensor:
        """x = p0 @ codebook, the denoised vector; (B, L, D)."""
        return p0 @ self.codebook.to(p0)

    def prior(self, shape: tuple[int, int], generator: Generators = None, device: Device = None) -> Tensor:
        """Draw z at t = 1 from N(0, alpha_1^2 + sigma_1^2), which is N(0, 1) for VP; (B, L, D) float64."""
        return self.ends()[2].to(device) * randn((*shape, self.D), generator, device)

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """A share of u goes to t = 0, the rest evenly over (0, 1); each weighs one over its share."""
        u = u.double()
        at_zero = u < RECONSTRUCTION_SHARE
        t = ((u - RECONSTRUCTION_SHARE) / (1 - RECONSTRUCTION_SHARE)).clamp_min(0.0)
        inside = torch.full_like(t, 1 / (1 - RECONSTRUCTION_SHARE))
        return t, torch.where(at_zero, 1 / RECONSTRUCTION_SHARE, inside)

    def levels(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``times`` with the noise level even over gamma instead of t: the same integral, from other draws.

        A fixed schedule that is steep at an end, as ``sqrt`` is, visits the levels there with rare and huge weights;
        it is well to train by, and bad to measure by. A learned one is made for the bound already: it keeps its times.
        """
        t, weight = self.times(u)
        if not isinstance(self.schedule, GammaSchedule) or self.schedule.name == "linear_gamma":
            return t, weight
        low, high = self.schedule(torch.tensor([0.0, 1.0], device=t.device))[0]
        at = time_of(self.schedule, low + (high - low) * t)
        at = torch.where(t > 0, at, 0.0)
        return at, torch.where(t > 0, weight * (high - low) / self.schedule(at)[1], weight)

    def corrupt(self, x0: Tensor, t: Tensor, generator: Generators = None) -> Tensor:
        """Draw z ~ N(alpha_t x, sigma_t^2 I); (B, L, D) in the codebook's dtype."""
        return self.noised(self.codebook[x0], self.gamma(t)[0], generator)

    def nelbo(self, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """``vlb`` of x_hat = p @ codebook, nats per token, (B, L)."""
        x = self.mean(logp.exp())
        return self.vlb(((self.codebook[x0].to(x) - x) ** 2).sum(-1), *self.gamma(t))

    def prior_kl(self, x0: Tensor) -> Tensor:
        """KL(N(alpha_1 x, sigma_1^2) || prior), nats per token, (B, L); closed form of two Gaussians."""
        alpha, sigma, std = self.ends()
        ratio = (sigma / std) ** 2
        squared = (self.codebook[x0].double() ** 2).sum(-1)
        return 0.5 * (self.D * (ratio - 1 - ratio.log()) + (alpha / std) ** 2 * squared)

    def to_full(self, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """``logp`` itself: the denoised mean needs the full posterior, and that is what the bound teaches."""
        return logp

    to_cavity = to_full

    def evidence(self, z: Tensor, gamma: Tensor) -> Tensor:
        """log q(z_i | token) up to a constant: (alpha / sigma^2) z.e - (alpha^2 / 2 sigma^2) |e|^2; (B, L, K)."""
        u = z / self.scales(gamma)[0][..., None].to(z)
        return self._closeness(u, torch.exp(-gamma)[..., None].to(z))

    def output_prior(self, z: Tensor, t: Tensor) -> Tensor:
        """``evidence`` at t: added to a network's logits it turns the cavity posterior into the full one, which the
        denoised mean needs (PLAID's output prior; the second term matters when codebook norms differ).
        """
        return self.evidence(z, self.gamma(t)[0])

    def rounding(self, x: Tensor) -> Tensor:
        """log p(token | x), (B, L, K): Bayes for tokens alike, had x been seen through the noise of t = 0.

            log softmax_v -|x - e_v|^2 / (2 exp(gamma_0))

        The nearest row is the likeliest. Diffusion-LM's rounding step (Li et al. 2022) with nothing to learn.
        """
        gamma = self.schedule(torch.zeros(()))[0]
        return torch.log_softmax(self._closeness(x, torch.exp(-gamma).to(x)), dim=-1)

    def nearest(self, x: Tensor) -> Tensor:
        """The token whose row is nearest, (B, L); of rows equally near the lowest id."""
        return self._closeness(x, x.new_ones(())).argmax(-1)

    def _closeness(self, x: Tensor, scale: Tensor) -> Tensor:
        """scale (x.e - |e|^2 / 2) of every row e, (B, L, K): -scale |x - e|^2 / 2, up to what x alone decides."""
        codebook = self.codebook.to(x)
        # noise levels weigh this by hundreds: bfloat16 would round the likelihoods of tokens together
        with torch.autocast(x.device.type, enabled=False):
            # one product, the square a column of its own: a pass over K numbers a position costs as much as it does
            rows = torch.cat([codebook, -0.5 * (codebook**2).sum(-1, keepdim=True)], dim=-1)
            return torch.cat([scale * x, scale.expand(x[..., :1].shape)], dim=-1) @ rows.T
