"""Losses of masking at a rate of each token's own: DiffusionBERT's, and GenMD4's with a gradient of the rates."""

import torch
from torch import Tensor

from redraft.objectives.base import Batch, Loss, corrupt, evaluate, valid
from redraft.objectives.finite import AUXILIARY, with_cross_entropy
from redraft.processes import Denoiser, PerToken, Process
from redraft.randomness import Generators


def diffusionbert(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    auxiliary: float = AUXILIARY,
) -> Loss:
    """NELBO + lambda CE under the spindle schedule (DiffusionBERT, He et al. 2022, arXiv 2211.15029), nats per token.

    CE is that of masked tokens, its weight ``auxiliary``; the value is a bound only without it, the bound is reported.
    The paper's chain of 2048 steps divides its bound by as many; time is continuous here, and lambda so much less.
    """
    return with_cross_entropy(denoiser, process, batch, u, generator, auxiliary)


def genmd4(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Loss:
    """A NELBO with a gradient for the masking rates (GenMD4, Shi et al. 2024, arXiv 2406.04329).

        1/2 (L_1 + L_2) + 1/2 sg(L_1 - L_2) (log q(z_1 | x0) - log q(z_2 | x0))

    with L_i the row's NELBO at z_i, two draws at one t. The draws depend on the rates, and the second term is how
    (REINFORCE, each draw the other's baseline). It belongs to a row, and is spread evenly over the row's valid tokens.
    The value is no bound: that second term has no mean of 0. The bound is 1/2 (L_1 + L_2), nats per token.

    Errors: ``ValueError`` for a process without rates of its own.
    """
    if not isinstance(process, PerToken):
        raise ValueError(f"objective 'genmd4' with a {process.name} process: set process.name=learned")

    def terms(logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return (process.nelbo(logp, x0, z, t),)

    ids, counted = batch["ids"], valid(batch)
    losses, log_q = list[Tensor](), list[Tensor]()
    for _ in range(2):
        z, t, weight = corrupt(process, ids, u, generator)
        (nelbo,) = evaluate(denoiser, process, batch, z, t, terms)
        losses.append(weight.to(nelbo) * nelbo)
        log_q.append(process.log_q(z, ids, t).sum(1))
    mean = (losses[0] + losses[1]) / 2 + process.prior_kl(ids).to(losses[0])
    apart = ((losses[0] - losses[1]).detach().double() * counted).sum(1)
    row = apart * (log_q[0] - log_q[1]) / 2
    share = (row / counted.sum(1).clamp_min(1))[:, None].to(mean)
    return Loss(mean + torch.where(counted, share, 0.0), mean.detach())
