"""The likelihood bound of the probability-flow ODE of Gaussian noise, beside the variational one.

In y = z / sigma and r = sqrt(SNR) = e^(-gamma / 2) the flow is dy / dr = x_hat(y, r), the same for every kind of noise.
Run from data to noise it gives the density of z at t = 0, and with it a bound for tokens (the trace as in FFJORD,
Grathwohl et al. 2018; the ODE of Song et al. 2020; for token embeddings LangFlow's).
"""

from typing import Final

import torch
from torch import Tensor

from redraft.models.vectors import Said, ask
from redraft.objectives import Batch, condition, valid
from redraft.processes import Denoiser, Gaussian
from redraft.processes.base import Condition, differentiating, log_prob_of
from redraft.randomness import Generators, rand

STEPS: Final = 64
"""Our choice: one token of the laws' toy is then 1.2e-3 nats above its limit."""


@torch.no_grad()
def bound(
    denoiser: Denoiser,
    process: Gaussian,
    batch: Batch,
    z: Tensor,
    generator: Generators = None,
    steps: int = STEPS,
    probes: int = 1,
) -> Tensor:
    """-log p(w) <= the mean over z ~ q(z_0 | w) of the sum over a row's tokens that count of what this returns, (B, L).

        -log p(w_i | z_0) + integral from r_1 to r_0 of div_i x_hat dr + |y_1|^2 / 2v + D/2 log v - |eps|^2 / 2

    nats, float64, y_0 = r_0 x + eps. div_i sums the derivatives of x_hat_i by y_i; v = (alpha_1^2 + sigma_1^2) /
    sigma_1^2 is the variance of y_1 under the process's own prior, 1 + SNR at t = 1 whatever the kind. It is
    -log p(w | z_0) - log p(y_0) + log q(y_0 | w), the last as drawn: LangFlow has its mean, |eps|^2 = D, with which
    the same bound is many times as noisy. Only the sum is one: the flow moves all positions together, and the share of
    one may be negative. With an exact denoiser the mean is that of the VLB.

    Heun's method, ``steps`` evenly spaced in the schedule's t, each of two calls of the denoiser (four if it conditions
    on itself). Its error, of second order, is not part of the bound, and either sign is possible: double the steps, a
    third of the change is about what is left. ``probes``: random sign vectors for the divergence at every call, a
    backward pass each (Hutchinson's trace, unbiased); 0 takes the trace exactly, by L D backward passes.

    Positions that are not ``valid`` are known: their vectors stay on q's own path, y = r x + eps, the others are told
    of them as in training, and they are no part of the flow. What is bounded is then -log p(tokens | what is known).

    A denoiser that conditions on itself is asked twice at every point, first told zeros: the flow is then a function of
    (z, t), and the bound is of it, not of a sampler that hands on guesses from step to step.

    Errors: ``ValueError`` for fewer than 1 step or 0 probes, for a denoiser that no gradient passes, and in inference
    mode.
    """
    if steps < 1:
        raise ValueError(f"ode_steps={steps}: take at least one")
    if probes < 0:
        raise ValueError(f"ode_probes={probes}: take at least one, or 0 for the exact trace")
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=z.device)
    r, sigma = torch.exp(-process.gamma(t)[0] / 2), process.scales(process.gamma(t)[0])[1]
    counts, clean = valid(batch)[..., None], process.codebook[batch["ids"]].double()

    def ask_at(y: Tensor, i: int) -> tuple[Said, Tensor, Tensor]:
        """What is said at y and time i, the flow dy / dr there, and its divergence."""
        with differentiating():
            y = y.detach().requires_grad_()
            said = field(denoiser, process, batch, (sigma[i] * y).to(process.codebook), t[i])
            flow = torch.where(counts, said.x.double(), clean)
            return said, flow.detach(), divergence(flow, y, generator, probes)

    y = z.double() / sigma[0]
    eps = y - r[0] * clean
    integral = torch.zeros(z.shape[:2], dtype=torch.float64, device=z.device)
    reconstruction = integral
    for i in range(steps):
        dr = r[i + 1] - r[i]
        said, flow, spread = ask_at(y, i)
        if i == 0:
            reconstruction = -log_prob_of(batch["ids"], said.logp.detach()).double()
        _, flow_after, spread_after = ask_at(y + dr * flow, i + 1)
        y = y + dr * (flow + flow_after) / 2
        integral = integral - dr * (spread + spread_after) / 2
    _, last, std = process.ends()
    v = ((std / last) ** 2).to(y.device)
    return reconstruction + integral + (y**2 / v - eps**2 + v.log()).sum(-1) / 2


def field(denoiser: Denoiser, process: Gaussian, batch: Batch, z: Tensor, t: Tensor) -> Said:
    """What the denoiser says of z at the scalar t, as a function of z alone: a gradient passes its guess too."""
    cond: Condition = condition(batch) or {}
    t = t.expand(len(z))
    if denoiser.facts.self_conditioned:
        guess = ask(denoiser, process, z, t, {**cond, "guess": torch.zeros_like(z)}).x
        cond = {**cond, "guess": guess.to(z)}
    return ask(denoiser, process, z, t, cond)


def divergence(x: Tensor, y: Tensor, generator: Generators, probes: int) -> Tensor:
    """Position i's share of the trace of dx / dy, sum_d dx_id / dy_id, (B, L): exact for 0 probes, else a mean of them.

    E u_i . (u^T dx / dy)_i = the trace of position i's own block, u of random signs (Hutchinson 1989)
    """
    if probes:
        found = torch.zeros_like(y[..., 0])
        for _ in range(probes):
            u = rademacher(y, generator)
            found = found + (u * _pulled(x, y, u)).sum(-1) / probes
        return found
    found = torch.zeros_like(y)
    for i in range(y.shape[1]):
        for d in range(y.shape[2]):
            u = torch.zeros_like(y)
            u[:, i, d] = 1.0
            found[:, i, d] = _pulled(x, y, u)[:, i, d]
    return found.sum(-1)


def rademacher(like: Tensor, generator: Generators) -> Tensor:
    """Signs +-1, either with probability 1/2, of the shape, type and device of ``like``."""
    return torch.where(rand(like.shape, generator, like.device) < 0.5, -1.0, 1.0).to(like)


def _pulled(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    """u^T dx / dy, of y's shape."""
    found = torch.autograd.grad(x, y, u, retain_graph=True, allow_unused=True)[0] if x.requires_grad else None
    if found is None:
        raise ValueError(
            "no gradient passes from the denoiser's answer to z (torch.no_grad or detach within it?), and the ODE's "
            "divergence is made of it: let it through, or use estimator='vlb'"
        )
    return found
