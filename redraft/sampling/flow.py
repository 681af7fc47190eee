"""Samplers of vectors: from z at t to z at s along the probability-flow ODE, with as much fresh noise as asked for.

In u = z / alpha and sigma~ = sigma / alpha = e^(gamma / 2) the ODE is du / d sigma~ = (u - x_hat) / sigma~, of whatever
kind the process is: VP, VE and RF take the same steps in other units, and write the same tokens from the same noise.

All take ``tau`` and ``clamp``, which change what the denoiser is taken to say: see ``said``. Both are off unless asked
for, and the law that is sampled is then the model's.
"""

import math

import torch
from torch import Tensor

from redraft.processes import Channel, Gaussian, Process
from redraft.randomness import randn
from redraft.sampling.contract import Draw, Query, misfit
from redraft.schedules import time_of


def ddim(
    process: Process | Channel,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    eta: float = 0.0,
    tau: float = 1.0,
    clamp: bool = False,
) -> Tensor:
    """``Channel.step`` from the clean vectors the denoiser says: eta=0 is DDIM, eta=1 is ``ancestral``.

    DDIM (Song et al. 2020) is Euler's method for the probability-flow ODE in (u, sigma~), in RF's (z, tau) and in
    (z / sigma, 1 / sigma~) alike: first order, deterministic. ``ddim:eta=1,clamp=true`` is Diffusion-LM's sampler.

    Errors: ``ValueError`` for a process of tokens, and for an option outside its range.
    """
    process = _channel("ddim", process)
    return process.step(said(process, denoiser, z, t, tau, clamp), z, t, s, eta, draw.generator)


def heun(
    process: Process | Channel,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    tau: float = 1.0,
    clamp: bool = False,
) -> Tensor:
    """Heun's method for the probability-flow ODE: second order, two calls a step, deterministic.

    Euler's point is asked again, at s, and the mean of both slopes (u - x_hat) / sigma~ is taken:

        u_s = u_euler + (sigma~_t / sigma~_s - 1) / 2 (x_hat_s - x_hat_t)

    (Karras et al. 2022, algorithm 1.) sigma~ stays above 0 at t = 0, so that the last step is corrected as all are.
    Steps that divide sigma~ by 3 or more may correct too much, and Euler's are better: 10 nats of gamma want at least
    5 steps. A denoiser that conditions on itself is told at s what it said at t.

    Errors: ``ValueError`` for a process of tokens, and for an option outside its range.
    """
    process = _channel("heun", process)
    before = said(process, denoiser, z, t, tau, clamp)
    euler = process.step(before, z, t, s, 0.0)
    after = said(process, denoiser, euler, s, tau, clamp)
    (gamma_t, _), (gamma_s, _) = process.gamma(t), process.gamma(s)
    weight = process.scales(gamma_s)[0] * torch.expm1((gamma_t - gamma_s) / 2) / 2
    return euler + weight[..., None].to(z) * (after - before)


def churn(
    process: Process | Channel,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    churn: float = 0.1,
    order: int = 2,
    tau: float = 1.0,
    clamp: bool = False,
) -> Tensor:
    """Raise sigma~ by the share ``churn`` with fresh noise, then step down from there (Karras et al. 2022, alg. 2).

    ``order`` 1 steps as ``ddim``, 2 as ``heun``. The noise never goes above the prior's. Raising keeps the marginals
    exactly, and what earlier steps got wrong is partly forgotten; but a step is as long as it was raised, so the law
    is exact as steps grow only if ``churn`` falls with them. 0 draws nothing. With N steps the paper's S_churn is N
    times ``churn``, and its S_noise 1.

    Errors: ``ValueError`` for a process of tokens, and for an option outside its range.
    """
    process = _channel("churn", process)
    if not churn >= 0:
        raise ValueError(f"churn={churn} of churn: pass 0 (no noise) or more")
    if order not in (1, 2):
        raise ValueError(f"order={order} of churn: pass 1 (ddim) or 2 (heun)")
    if churn:
        z, t = raised(process, z, t, churn, draw)
    step = ddim if order == 1 else heun
    return step(process, denoiser, z, t, s, draw, tau=tau, clamp=clamp)


def raised(channel: Channel, z: Tensor, t: Tensor, churn: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """z at sigma~ (1 + churn), or at t = 1 if that is less, and its time: u + sqrt(sigma~'^2 - sigma~^2) xi."""
    later = time_of(channel.schedule, channel.schedule(t)[0] + 2 * math.log1p(churn))
    (low, _), (high, _) = channel.gamma(t), channel.gamma(later)
    (alpha, _), (alpha_later, _) = channel.scales(low), channel.scales(high)
    spread = alpha_later * (torch.exp(low) * torch.expm1((high - low).clamp_min(0.0))).sqrt()
    noise = spread[..., None] * randn(z.shape, draw.generator, z.device)
    return (alpha_later / alpha)[..., None].to(z) * z + noise.to(z), later


def said(channel: Channel, denoiser: Query, z: Tensor, t: Tensor, tau: float = 1.0, clamp: bool = False) -> Tensor:
    """The clean vectors x_hat (B, L, D) that a step believes in, of z's dtype: those of the denoiser, unless asked.

    ``tau``: the score is divided by this temperature, eps <- eps / tau, so x_hat <- x_hat / tau + (1 - 1 / tau) z /
    alpha (PLAID samples at 0.9). 1 is exact; below it no law is known to be sampled. ``clamp``: then each x_hat is
    replaced by the nearest row of the codebook (Diffusion-LM's clamping trick, Li et al. 2022), which commits to
    tokens early and shifts their frequencies.

    Errors: ``ValueError`` for a tau that is not above 0, and for ``clamp`` of vectors that have no codebook.
    """
    if not tau > 0:
        raise ValueError(f"tau={tau}: pass a temperature above 0, 1 for the model's own score")
    x = denoiser(z, t).to(z)
    if tau != 1:
        alpha = channel.scales(channel.gamma(t)[0])[0][..., None]
        x = x / tau + ((1 - 1 / tau) / alpha).to(z) * z
    if not clamp:
        return x
    if not isinstance(channel, Gaussian):
        raise ValueError("clamp=True: these vectors have no codebook to be rounded to; leave it out")
    return channel.codebook[channel.nearest(x)].to(z)


def _channel(sampler: str, process: Process | Channel) -> Channel:
    if not isinstance(process, Channel):
        raise misfit(sampler, process, "a process of vectors")
    return process
