"""PLAID's objective: the bound of token vectors itself, whose gradient teaches schedule and codebook too."""

import math

import torch
from torch import Tensor

from redraft.objectives.base import Batch, Loss, valid
from redraft.objectives.vectors import Drawn, answer, asked_again, bound_parts, diffusion, over_vectors, total
from redraft.processes import Denoiser, Gaussian, Process
from redraft.processes.base import per_position
from redraft.randomness import Generators
from redraft.schedules import Plaid


def plaid(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    self_condition: float = 0.25,
) -> Loss:
    """PLAID (Gulrajani & Hashimoto 2023, arXiv 2305.18619): the bound itself, with all that it can teach.

        -log p(x0 | z_0) + 1/2 exp(-gamma) gamma'(t) |x - x_hat|^2 + KL(q(z_1 | x0) || prior)

    Its gradient reaches denoiser, codebook and, of the ``plaid`` schedule, the ends; that schedule's network follows
    the gradient of the squared diffusion loss of a row instead (``minimise_square``). Rows asked about again teach the
    denoiser alone: codebook and schedule are detached there.
    """
    noise = over_vectors("plaid", process)
    drawn, inner = differentiable_draw(denoiser, noise, batch["ids"], u, generator, self_condition)
    said = answer(denoiser, noise, batch, drawn, detached=drawn.again)
    minimise_square(inner, diffusion(noise, said, drawn), batch, math.log(noise.K))
    parts = bound_parts(noise, said, drawn)
    parts["prior"] = apart(drawn.again, parts["prior"])
    value = total(parts)
    return Loss(value, value.detach(), parts)


# ------------------------------------------------------------------------------------------------------------ parts


def differentiable_draw(
    denoiser: Denoiser, process: Gaussian, x0: Tensor, u: Tensor, generator: Generators, self_condition: float
) -> tuple[Drawn, tuple[Tensor, ...]]:
    """``draw`` with gradients into a schedule that learns by them, and what its network gave, for ``minimise_square``.

    Rows asked about again teach the denoiser alone: what they see of codebook and schedule is detached (PLAID).
    """
    t, weight = process.times(u.to(x0.device))
    again = asked_again(denoiser, self_condition, x0, generator)
    schedule, inner = process.schedule, tuple[Tensor, ...]()
    if isinstance(schedule, Plaid):
        inner = schedule.inner(per_position(t))
        gamma, d_gamma = schedule.between(*inner)
    else:
        gamma, d_gamma = process.gamma(t)
    gamma, d_gamma, x = (apart(again, value) for value in (gamma, d_gamma, process.codebook[x0]))
    z = process.noised(x, gamma, generator)
    return Drawn(x0, x, z, t, gamma, d_gamma, per_position(weight), again), inner


def apart(rows: Tensor, value: Tensor) -> Tensor:
    """``value`` (B, ..), no gradient coming back from the rows that are marked, (B,) bool."""
    return torch.where(rows.reshape(-1, *(1,) * (value.ndim - 1)), value.detach(), value)


def minimise_square(inner: tuple[Tensor, ...], loss: Tensor, batch: Batch, unit: float) -> None:
    """Let what computed ``inner`` (B, 1) follow the gradient of l^2 / unit where all else follows that of l.

    l (B, 1) is a row's mean ``loss`` (B, L) over its valid tokens: gradients that arrive are multiplied by 2 l / unit,
    for d l^2 = 2 l dl (PLAID, Gulrajani & Hashimoto 2023). ``unit``, about as large as l, moves no minimum: without it
    the schedule's gradient would be most of the norm that all are clipped by.
    """
    counts = valid(batch)
    mean = torch.where(counts, loss.detach(), 0.0).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp_min(1)

    def scaled(gradient: Tensor) -> Tensor:
        return gradient * (2 * mean / unit).to(gradient)

    for one in inner:
        if one.requires_grad:
            one.register_hook(scaled)
