"""The masked family by its papers' names: MDLM, MD4, RADD's four faces of one bound, and MaskGIT's loss.

The masked NELBO is a cross-entropy of masked tokens under a law of how many are masked. Which one, t and a schedule,
the mask rate lambda or the count k, moves its variance and never its mean (RADD, Ou et al. 2024).
"""

from typing import Literal

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.models import contexts
from redraft.models.heads import log_odds, to_score
from redraft.objectives.base import Batch, Loss, corrupt, evaluate, masked_cross_entropy, valid
from redraft.objectives.blocks import block_times
from redraft.objectives.plain import cross_entropy, nelbo
from redraft.objectives.score import score_entropy
from redraft.processes import Categorical, Denoiser, Process, absorbing
from redraft.processes.base import per_position
from redraft.randomness import Generators, rand

Variant = Literal["t_dse", "t_dce", "lambda_dce", "k_dce"]


def mdlm(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Loss:
    """-alpha' / (1 - alpha) times the cross-entropy of masked tokens (MDLM, Sahoo et al. 2024, arXiv 2406.07524).

    ``nelbo`` under its paper's name, which goes with a linear schedule; value and bound are the same, nats per token.
    """
    return nelbo(denoiser, process, batch, u, generator)


def md4(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Loss:
    """-alpha' / (1 - alpha) times the cross-entropy of masked tokens (MD4, Shi et al. 2024, arXiv 2406.04329).

    ``nelbo`` under its paper's name, which goes with cosine and polynomial schedules. MD4 squeezes alpha into
    [1e-4, 1 - 1e-4] and codes what is still masked at t = 0 uniformly, which adds 1e-4 log K to the bound and nothing
    to learn from. Schedules here meet both ends, so there is nothing to code.
    """
    return nelbo(denoiser, process, batch, u, generator)


def maskgit(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Loss:
    """Cross-entropy of masked tokens, each of weight 1 (MaskGIT, Chang et al. 2022, which masks by a cosine).

    The value is no bound; the draw's NELBO is reported beside it.
    """
    return cross_entropy(denoiser, process, batch, u, generator)


def radd(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    variant: Variant = "lambda_dce",
) -> Loss:
    """RADD's losses (Ou et al. 2024, arXiv 2406.03736), four draws of one expectation; nats per token.

    - ``t_dse``: score entropy of the scores p / (e^sigma - 1), pointwise the NELBO.
    - ``t_dce``: ``denoising_cross_entropy``. Its value is off by what no weight moves, so it is no bound.
    - ``lambda_dce``: a mask rate lambda ~ U(0, 1) and weight 1 / lambda, whatever the schedule.
    - ``k_dce``: k ~ U{1 .. n} of a row's n valid tokens and weight n / k: see ``over_counts``.

    The bound is the weighted cross-entropy of the same draw in each. Errors: ``ValueError`` for an unknown variant, or
    a process other than masked noise in continuous time.
    """
    if not absorbing(process) or process.steps is not None:
        raise ValueError(f"objective 'radd' with a {process.name} process: take masked noise, process.steps=none")
    if variant == "k_dce":
        value = over_counts(denoiser, process, batch, u, generator)
        return Loss(value, value.detach())
    if variant == "lambda_dce":
        return _over_rates(denoiser, process, batch, u, generator)
    if variant not in ("t_dse", "t_dce"):
        raise unknown("variant of radd", variant, ("t_dse", "t_dce", "lambda_dce", "k_dce"))

    def terms(logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        bound = process.nelbo(logp.detach(), x0, z, t)
        if variant == "t_dse":
            return score_entropy(process, to_score(logp, z, t, process), x0, z, t), bound
        return denoising_cross_entropy(process, logp, x0, z, t), bound

    z, t, weight = corrupt(process, batch["ids"], u, generator)
    value, bound = evaluate(denoiser, process, batch, z, t, terms)
    return Loss(weight.to(value) * value, weight.to(bound) * bound)


def denoising_cross_entropy(process: Categorical, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """t-DCE: sigma' / (e^sigma - 1) (-log s(z -> x0)) on masks, s the scores of p; (B, L), no bound.

    -log s = -log p + log(e^sigma - 1): beside the NELBO's integrand stands a term without p, whose mean over z and over
    t in (0, 1) is 0, but not at any one t (RADD's t-DCE).
    """
    odds = log_odds(process.coefficients(t).alpha)
    free = torch.where(z == process.mask_id, process.mask_weight(t) * odds, 0.0)
    return process.nelbo(logp, x0, z, t) + free.to(logp)


def _over_rates(denoiser: Denoiser, process: Categorical, batch: Batch, u: Tensor, generator: Generators) -> Loss:
    """lambda-DCE: tokens masked at rate lambda = u, weight 1 / lambda; t is when the schedule masks at that rate."""
    rate = u.to(batch["ids"].device).double().clamp_min(torch.finfo(torch.float32).eps)
    t = process.schedule.inverse(1 - rate)
    z = process.corrupt(batch["ids"], t, generator)
    losses = masked_cross_entropy(denoiser, batch, z, t, z == process.mask_id)
    value = losses / per_position(rate).to(losses)
    return Loss(value, value.detach())


def over_counts(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Tensor:
    """k-DCE: (n / k) times the cross-entropy of k masked tokens, a uniformly random subset of the row's n valid ones.

    One unbiased draw of the bound, nats per token, (B, L), without the rare weights of 1 / t (RADD; LLaDA's estimator).
    A denoiser that knows the time is told when the schedule has masked k / n.
    """
    assert absorbing(process)
    z, masked, weight = some_masked(process, batch, u, generator, block=batch["ids"].shape[1])
    t = process.schedule.inverse(1 - 1 / weight[:, 0])
    return masked_cross_entropy(denoiser, batch, z, t, masked) * weight


def some_masked(
    process: Process, batch: Batch, u: Tensor, generator: Generators, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """z with k of the n valid tokens of every block masked, k ~ U{1..n}; which those are; n / k; all (B, L)."""
    ids, counted = batch["ids"], valid(batch)
    number = contexts.block_ranks(ids.shape[1], block, ids.device)
    u = block_times(u.to(ids.device), int(number[-1]) + 1, generator)
    n = u.new_zeros(u.shape).index_add(1, number, counted.to(u))
    k = (1 + (u * n).floor()).clamp(max=n.clamp_min(1))
    drawn = rand(ids.shape, generator, ids.device).masked_fill(~counted, 2.0)
    # a token's place among its block's, those that do not count last
    place = (drawn + 4 * number).argsort(1).argsort(1) - number * block
    masked = counted & (place < k[:, number])
    assert process.mask_id is not None
    return torch.where(masked, process.mask_id, ids), masked, (n.clamp_min(1) / k)[:, number]
