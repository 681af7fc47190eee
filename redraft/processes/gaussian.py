"""Gaussian corruption of token embeddings: z = alpha x + sigma eps, x the codebook's row of the token.

VP, VE and RF differ only in how (alpha, sigma) follow from ``gamma = -log SNR = log(sigma^2 / alpha^2)``; a state of
one is a state of any other after rescaling. The network names tokens, p0 over K, and the mean is x = p0 @ codebook, so
the score is exact when p0 is (CDCD, Dieleman et al. 2022; PLAID, Gulrajani & Hashimoto 2023).
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.processes.base import per_position
from redraft.randomness import Device, Generators, randn
from redraft.schedules import GammaSchedule

Scales = Callable[[Tensor], tuple[Tensor, Tensor]]


def _vp(gamma: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()


def _ve(gamma: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(gamma), torch.exp(gamma / 2)


def _rf(gamma: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(-gamma / 2), torch.sigmoid(gamma / 2)


RECONSTRUCTION_SHARE = 0.125
"""Share of a batch spent on the bound's t = 0 term (PLAID evaluates with 1/8)."""

KINDS: dict[str, Scales] = {"vp": _vp, "ve": _ve, "rf": _rf}


class Gaussian:
    """A process over vectors: z has shape (B, L, D), the clean state is a row of ``codebook`` (K, D).

    The bound is -log p(x0 | z at t = 0) + integral of ``nelbo`` + ``prior_kl``. Build one with ``gaussian``.
    """

    name = "gaussian"
    vectors = True
    mask_id = None

    def __init__(self, codebook: Tensor, kind: str = "vp", schedule: GammaSchedule | None = None) -> None:
        if kind not in KINDS:
            raise unknown("kind of Gaussian process", kind, KINDS)
        if codebook.ndim != 2:
            raise ValueError(f"codebook of shape {tuple(codebook.shape)}: pass one row per token, shape (K, D)")
        self.codebook, self.kind, self.schedule = codebook, kind, schedule or GammaSchedule()
        self.K, self.D = codebook.shape

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "K": self.K, "D": self.D, "kind": self.kind, "schedule": self.schedule.to_dict()}

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(gamma, d gamma / dt) at t, float64, with a position axis: (B, 1) for t of shape (B,)."""
        return self.schedule(per_position(t))

    def scales(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at gamma, float64, of gamma's shape."""
        return KINDS[self.kind](gamma)

    def mean(self, p0: Tensor) -> Tensor:
        """x = p0 @ codebook, the denoised vector; (B, L, D)."""
        return p0 @ self.codebook.to(p0)

    def _last(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and the prior's std at t = 1; the std is that of unit-variance data, so that kinds agree."""
        alpha, sigma = self.scales(self.schedule(torch.ones(()))[0])
        return alpha, sigma, (alpha**2 + sigma**2).sqrt()

    def prior(self, shape: tuple[int, int], generator: Generators = None, device: Device = None) -> Tensor:
        """Draw z at t = 1 from N(0, alpha_1^2 + sigma_1^2), which is N(0, 1) for VP; (B, L, D) float64."""
        return self._last()[2] * randn((*shape, self.D), generator, device)

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """A share of u goes to t = 0, the rest evenly over (0, 1); each weighs one over its share."""
        u = u.double()
        at_zero = u < RECONSTRUCTION_SHARE
        t = ((u - RECONSTRUCTION_SHARE) / (1 - RECONSTRUCTION_SHARE)).clamp_min(0.0)
        return t, torch.where(at_zero, 1 / RECONSTRUCTION_SHARE, 1 / (1 - RECONSTRUCTION_SHARE))

    def corrupt(self, x0: Tensor, t: Tensor, generator: Generators = None) -> Tensor:
        """Draw z ~ N(alpha_t x, sigma_t^2 I); (B, L, D) in the codebook's dtype."""
        alpha, sigma = (scale[..., None] for scale in self.scales(self.gamma(t)[0]))
        noise = randn((*x0.shape, self.D), generator, x0.device)
        return alpha.to(self.codebook) * self.codebook[x0] + (sigma * noise).to(self.codebook)

    def posterior(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, L, D) and variance (B, 1 or L, 1) of the reverse kernel q(z_s | z_t, x), x = p0 @ codebook.

            mean = (1 - c) alpha_s / alpha_t z + c alpha_s x,  variance = c sigma_s^2,  c = 1 - exp(gamma_s - gamma_t)

        (VDM, Kingma et al. 2021, eq. 32; the same map as DDPM's.)
        """
        gamma_t, gamma_s = self.gamma(t)[0], self.gamma(s)[0]
        (alpha_t, _), (alpha_s, sigma_s) = self.scales(gamma_t), self.scales(gamma_s)
        c = -torch.expm1(gamma_s - gamma_t)
        keep = ((1 - c) * alpha_s / alpha_t)[..., None]
        mean = keep.to(z) * z + (c * alpha_s)[..., None].to(z) * self.mean(p0).to(z)
        return mean, (c * sigma_s**2)[..., None]

    def ancestral(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor, generator: Generators = None) -> Tensor:
        """Draw z at s from ``posterior``; (B, L, D)."""
        mean, variance = self.posterior(p0, z, t, s)
        return mean + (variance.sqrt() * randn(z.shape, generator, z.device)).to(mean)

    def nelbo(self, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """1/2 exp(-gamma) gamma'(t) |x - x_hat|^2, nats per token, (B, L) (VDM, eq. 17)."""
        gamma, d_gamma = self.gamma(t)
        error = self.codebook[x0].to(logp) - self.mean(logp.exp())
        return (0.5 * torch.exp(-gamma) * d_gamma).to(logp) * (error**2).sum(-1)

    def prior_kl(self, x0: Tensor) -> Tensor:
        """KL(N(alpha_1 x, sigma_1^2) || prior), nats per token, (B, L); closed form of two Gaussians."""
        alpha, sigma, std = self._last()
        ratio = (sigma / std) ** 2
        squared = (self.codebook[x0].double() ** 2).sum(-1)
        return 0.5 * (self.D * (ratio - 1 - ratio.log()) + (alpha / std) ** 2 * squared)

    def to_full(self, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """``logp`` itself: the denoised mean needs the full posterior, and that is what the bound teaches."""
        return logp

    to_cavity = to_full

    def to(self, device: Device) -> Self:
        """The same process with its codebook on ``device``."""
        return type(self)(self.codebook.to(device), self.kind, self.schedule)

    def output_prior(self, z: Tensor, t: Tensor) -> Tensor:
        """log q_t(z_i | token) up to a constant: (alpha / sigma^2) z.e - (alpha^2 / 2 sigma^2) |e|^2; (B, L, K).

        Added to a network's logits it turns the cavity posterior into the full one that the denoised mean needs
        (PLAID's output prior; the second term matters when codebook norms differ).
        """
        alpha, sigma = self.scales(self.gamma(t)[0])
        # alpha / sigma^2 reaches the hundreds: bfloat16 would round the likelihoods of tokens together
        with torch.autocast(z.device.type, enabled=False):
            codebook = self.codebook.to(z)
            dot = (alpha / sigma**2)[..., None].to(z) * (z @ codebook.T)
            return dot - (alpha**2 / (2 * sigma**2))[..., None].to(z) * (codebook**2).sum(-1)
