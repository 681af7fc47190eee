"""Samplers: pure functions from z at t to z at s < t, given the process and the denoiser.

Each may call the denoiser as often as its method asks. ``frozen`` (B, L) marks given tokens, which a sampler may use to
count but need not protect: ``sample`` puts them back after every step.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.processes import Process, absorbing
from redraft.processes.base import log_prob_of
from redraft.randomness import Generators, categorical

Query = Callable[[Tensor, Tensor], Tensor]
"""The denoiser as a sampler sees it: ``(z, t) -> log p`` (B, L, K), what the process's reverse kernel wants."""


class Sampler(Protocol):
    """``temperature`` divides log p before tokens are drawn from it; 0 takes the likeliest."""

    def __call__(
        self,
        process: Process,
        denoiser: Query,
        z: Tensor,
        t: Tensor,
        s: Tensor,
        *,
        frozen: Tensor,
        generator: Generators,
        temperature: float = 1.0,
    ) -> Tensor: ...


def ancestral(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    frozen: Tensor,
    generator: Generators,
    temperature: float = 1.0,
) -> Tensor:
    """Draw every position from the reverse kernel p(z_s | z_t, p0) (D3PM, eq. 4); exact as steps go to infinity."""
    p0 = tempered(denoiser(z, t), temperature)
    return process.ancestral(p0, z, t, s, generator)


def confidence(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    frozen: Tensor,
    generator: Generators,
    temperature: float = 1.0,
) -> Tensor:
    """Draw all masked tokens and keep those the model is surest of (MaskGIT; LLaDA's low-confidence remasking).

    As many stay masked as the schedule says at s: round((1 - alpha_s) times the free positions). Confidence is the
    drawn token's probability at temperature 1; ties go to the lowest index. Not an exact sampler of any law.

    Errors: ``ValueError`` for a process other than masked.
    """
    logp = denoiser(z, t)
    drawn = categorical(tempered(logp, temperature), generator)
    return reveal(process, z, s, drawn, log_prob_of(drawn, logp), frozen)


def left_to_right(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    frozen: Tensor,
    generator: Generators,
    temperature: float = 1.0,
) -> Tensor:
    """Draw the leftmost masked tokens, as many as the schedule reveals by s; with one a step, ordinary AR decoding.

    Errors: ``ValueError`` for a process other than masked.
    """
    drawn = categorical(tempered(denoiser(z, t), temperature), generator)
    return reveal(process, z, s, drawn, -torch.arange(z.shape[1], device=z.device).expand(z.shape), frozen)


def reveal(process: Process, z: Tensor, s: Tensor, drawn: Tensor, score: Tensor, frozen: Tensor) -> Tensor:
    """Write ``drawn`` at the masked positions of highest ``score``, down to the schedule's count of masks at s."""
    if not absorbing(process):
        raise ValueError(
            f"this sampler unmasks tokens and a {process.name} process has no fixed masks: use 'ancestral'"
        )
    masked = z == process.mask_id
    remaining = ((1 - process.schedule(s)[0]) * (~frozen).sum(1)).round().long()
    count = (masked.sum(1) - remaining).clamp_min(0)
    # a stable descending sort gives equal scores to the lowest index first
    order = score.masked_fill(~masked, -torch.inf if score.is_floating_point() else -z.shape[1] - 1)
    rank = order.sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)
    return torch.where(masked & (rank < count[:, None]), drawn, z)


def tempered(logp: Tensor, temperature: float) -> Tensor:
    """p^(1/temperature), renormalised, float64; 0 puts all mass on the likeliest token (the lowest id of equals)."""
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: pass 0 (greedy) or more")
    if temperature == 0:
        return torch.nn.functional.one_hot(logp.argmax(-1), logp.shape[-1]).double()
    return torch.softmax(logp.double() / temperature, dim=-1)


SAMPLERS: dict[str, Sampler] = {"ancestral": ancestral, "confidence": confidence, "left_to_right": left_to_right}


def get(sampler: str | Sampler) -> Sampler:
    """The sampler of a name, or the given function. Errors: ``ValueError`` naming the nearest."""
    if not isinstance(sampler, str):
        return sampler
    if sampler not in SAMPLERS:
        raise unknown("sampler", sampler, SAMPLERS)
    return SAMPLERS[sampler]
