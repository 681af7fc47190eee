"""Three tokens on a line, the toy of the Gaussian laws: its exact posterior, and expectations that are quadratures.

e = (-1, 0.3, 1) with probabilities (.5, .2, .3), gamma from -3 to 6; gamma = -log SNR. Expectations over the noise are
trapezoid sums over eps, spectrally accurate here.
"""

import math

import torch
from torch import Tensor

from redraft import processes
from redraft.schedules import GammaSchedule

from .oracle import quadrature

KINDS = ["vp", "ve", "rf"]
SCHEDULES = ["linear_gamma", "cosine", "sqrt", "edm"]
CODES = torch.tensor([[-1.0], [0.3], [1.0]], dtype=torch.float64)
PI = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
H = -(PI * PI.log()).sum().item()

EPS = torch.linspace(-9, 9, 361, dtype=torch.float64)
DENSITY = torch.exp(-(EPS**2) / 2) / math.sqrt(2 * math.pi) * (EPS[1] - EPS[0])


def toy(kind: str = "vp", schedule: str = "linear_gamma"):
    return processes.gaussian(CODES, kind, GammaSchedule(schedule, -3.0, 6.0))


def sphere(kind: str = "vp", norms: bool = False):
    codes = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes = codes / codes.norm(dim=-1, keepdim=True)
    if norms:
        codes = codes * torch.tensor([0.5, 0.8, 1.0, 1.3, 2.0], dtype=torch.float64)[:, None]
    return processes.gaussian(codes, kind, GammaSchedule(gamma_min=-3.0, gamma_max=6.0))


def posterior_tokens(process, z: Tensor, t: Tensor, pi: Tensor) -> Tensor:
    """log p(token | z) for independent tokens of law ``pi``, by Bayes from the density of z alone; (B, L, K)."""
    alpha, sigma = (scale[..., None, None] for scale in process.scales(process.gamma(t)[0]))
    distance = ((z[:, :, None, :] - alpha * process.codebook) ** 2).sum(-1, keepdim=True)
    return (pi.log() - (distance / (2 * sigma**2))[..., 0]).log_softmax(-1)


def noisy_tokens(process, times: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0, z, t and probability of every (time, token, eps): the expectation over q(z | x0) p(x0) as a sum."""
    i, x0, e = (g.flatten() for g in torch.meshgrid(*map(torch.arange, (len(times), 3, len(EPS))), indexing="ij"))
    t = times[i]
    alpha, sigma = (scale[:, 0] for scale in process.scales(process.gamma(t)[0]))
    z = alpha * process.codebook[x0, 0] + sigma * EPS[e]
    return x0[:, None], z[:, None, None], t, PI[x0] * DENSITY[e]


def cross_entropy(process, time: float) -> float:
    x0, z, t, probability = noisy_tokens(process, torch.tensor([time], dtype=torch.float64))
    logp = posterior_tokens(process, z, t, PI)
    return -(logp.gather(-1, x0[..., None])[:, 0, 0] * probability).sum().item()


def diffusion_loss(process, nodes: int = 100) -> float:
    times, weights = quadrature(nodes)
    x0, z, t, probability = noisy_tokens(process, times)
    loss = process.nelbo(posterior_tokens(process, z, t, PI), x0, z, t)[:, 0]
    return ((loss * probability).reshape(nodes, -1).sum(-1) * weights).sum().item()


class ExactTokens:
    """The exact denoiser of independent tokens of law PI."""

    facts = processes.Facts(posterior="full", time_conditioned=True)

    def __init__(self, process) -> None:
        self.process = process

    def __call__(self, z: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return posterior_tokens(self.process, z, t, PI)
