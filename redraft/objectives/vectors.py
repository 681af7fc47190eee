"""What the objectives of Gaussian noise share: asking the denoiser for vectors, twice where it conditions on itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.objectives.base import Batch, condition
from redraft.processes import Denoiser, Gaussian
from redraft.processes.base import Condition, log_prob_of, per_position


@dataclass(frozen=True)
class Said:
    """What a denoiser says of noisy vectors: ``logp`` (B, L, K) of tokens, and clean vectors ``x`` (B, L, D)."""

    logp: Tensor
    x: Tensor


def ask(denoiser: Denoiser, process: Gaussian, z: Tensor, t: Tensor, cond: Condition) -> Said:
    """One call of the denoiser; what it does not say itself follows: x = p @ codebook, or p by rounding x."""
    if denoiser.facts.vectors:
        x = denoiser(z, t, cond, **{"vectors": True})
        return Said(process.rounding(x), x)
    logp = denoiser(z, t, cond)
    return Said(logp, process.mean(logp.exp()))


def say(
    denoiser: Denoiser,
    process: Gaussian,
    batch: Batch,
    z: Tensor,
    t: Tensor,
    again: Tensor | None = None,
    **told: Tensor,
) -> Said:
    """What the denoiser says of z at t, a self-conditioned one told a guess of its own that no gradient enters.

    ``again`` (B,) bool marks the rows that are given the guess, all unless given; the others are told zeros. ``told``
    goes into the condition as it is.
    """
    cond: Condition = {**(condition(batch) or {}), **told}  # type: ignore[typeddict-item]
    if not denoiser.facts.self_conditioned:
        return ask(denoiser, process, z, t, cond)
    nothing = torch.zeros((*z.shape[:2], process.D), device=z.device, dtype=z.dtype)
    if again is not None and not bool(again.any()):
        return ask(denoiser, process, z, t, {**cond, "guess": nothing})
    with torch.no_grad():
        guess = ask(denoiser, process, z, t, {**cond, "guess": nothing}).x.to(z)
    if again is not None:
        guess = torch.where(again[:, None, None], guess, nothing)
    return ask(denoiser, process, z, t, {**cond, "guess": guess})


def terms(process: Gaussian, said: Said, x0: Tensor, t: Tensor) -> Tensor:
    """The bound's integrand, nats per token, (B, L): the VLB's, and at t = 0 the reconstruction -log p(x0 | z)."""
    diffusion = process.vlb(process.error(said.x, x0), *process.gamma(t))
    return torch.where(per_position(t == 0), -log_prob_of(x0, said.logp).to(diffusion), diffusion)


def vector_bound(process: Gaussian, said: Said, x0: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """The VLB of one draw of ``corrupt``, nats per token, (B, L): reconstruction or diffusion, and the prior's term."""
    found = terms(process, said, x0, t)
    return weight.to(found) * found + process.prior_kl(x0).to(found)
