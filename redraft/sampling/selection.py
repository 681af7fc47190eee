"""Which of the proposed tokens to write: the rules by which masked models are decoded.

A rule asks about the masks it may write, scores what is proposed, and writes some; none of them samples the model's law
exactly unless it says so. Ties go to the lowest index. Their steps, unless given, are as many as there are masks to
write, one a step; in fewer, what a rule must write at least grows so that the last step leaves no mask.
"""

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.processes import Process
from redraft.randomness import rand
from redraft.sampling.contract import Draw, Query, proposing
from redraft.sampling.proposal import Of, even, masks, propose, top

OF = ("model", "drawn")


def check_of(of: Of) -> None:
    if of not in OF:
        raise unknown("law to score by", of, OF)


# -------------------------------------------------------------------------------------------------- a fixed number


@proposing
def low_confidence(
    process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw, *, of: str = "model"
) -> Tensor:
    """Write an even share of the masks a step, those whose proposed token is likeliest (LLaDA, arXiv 2502.09992).

    ``of``: the law that says how likely, ``model`` as LLaDA has it, whatever the temperature, or ``drawn``.

    Errors: ``ValueError`` for a process other than masked.
    """
    check_of(of)
    open_ = masks("low_confidence", process, z, draw)
    count = even(open_.sum(1), t, s)
    proposal = propose(process, denoiser, z, t, s, draw, open_ & (count > 0)[:, None])
    return proposal.write(top(proposal.confidence(of), open_, count))


@proposing
def random_order(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
    """Write an even share of the masks a step, drawn evenly (LLaDA's ``random``). One a step is any-order sampling.

    With exact conditionals and one token a step, at temperature 1, the joint law itself.

    Errors: ``ValueError`` for a process other than masked.
    """
    open_ = masks("random_order", process, z, draw)
    count = even(open_.sum(1), t, s)
    chosen = top(rand(z.shape, draw.generator, z.device), open_, count)
    return propose(process, denoiser, z, t, s, draw, chosen).write(chosen)


@proposing
def confidence(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
    """Write the likeliest of the proposed tokens, as many as the process's schedule says (MaskGIT without noise).

    As many stay masked as that leaves at s: round((1 - alpha_s) times the free positions).

    Errors: ``ValueError`` for a process other than masked.
    """
    open_ = masks("confidence", process, z, draw)
    count = scheduled(process, open_, s, draw)
    proposal = propose(process, denoiser, z, t, s, draw, open_ & (count > 0)[:, None])
    return proposal.write(top(proposal.confidence(), open_, count))


@proposing
def left_to_right(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
    """Write the leftmost masks, as many as the schedule reveals by s; with one a step, ordinary AR decoding.

    Errors: ``ValueError`` for a process other than masked.
    """
    open_ = masks("left_to_right", process, z, draw)
    order = -torch.arange(z.shape[1], device=z.device, dtype=torch.float64).expand(z.shape)
    chosen = top(order, open_, scheduled(process, open_, s, draw))
    return propose(process, denoiser, z, t, s, draw, chosen).write(chosen)


def scheduled(process: Process, open_: Tensor, s: Tensor, draw: Draw) -> Tensor:
    """How many of the masks ``open_`` (B, L) the process's own schedule would have written by s, (B,)."""
    remaining = ((1 - process.schedule(s)[0]) * (~draw.frozen).sum(1)).round().long()  # pyright: ignore
    return (open_.sum(1) - remaining).clamp_min(0)


# ------------------------------------------------------------------------------------------ as many as seem sure


@proposing
def threshold(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    tau: float = 0.9,
    of: str = "model",
) -> Tensor:
    """Write all tokens of confidence above ``tau``, and the surest in any case (Fast-dLLM, arXiv 2505.22618).

    tau of 1 or more writes one a step: ``low_confidence`` in as many steps as masks.

    Errors: ``ValueError`` for a process other than masked.
    """
    check_of(of)
    open_ = masks("threshold", process, z, draw)
    proposal = propose(process, denoiser, z, t, s, draw, open_)
    score = proposal.confidence(of)
    return proposal.write((open_ & (score > tau)) | top(score, open_, even(open_.sum(1), t, s)))
