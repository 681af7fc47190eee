"""Which of the proposed tokens to write: rules that write a given number of them a step.

A rule asks about the masks it may write, scores what is proposed, and writes some; none of them samples the model's law
exactly unless it says so. Ties go to the lowest index. Their steps, unless given, are as many as there are masks to
write; the last step leaves none. A row that is to write nothing in a step is not asked, and costs nothing. Rules that
write as many as seem sure are in ``adaptive``, those of Dream and of MaskGIT in ``published``.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.processes import Process
from redraft.randomness import rand
from redraft.sampling.contract import Draw, Query, proposing
from redraft.sampling.proposal import Of, even, masks, propose, top

OF = ("model", "drawn")


def check_of(of: Of) -> None:
    """Errors: ``ValueError`` for a law that is none of ``OF``."""
    if of not in OF:
        raise unknown("law to score by", of, OF)


# --------------------------------------------------------------------------------------------- an even share a step


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
def sequential(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
    """Write the leftmost masks, an even share a step, whatever the schedule; one a step is the chain rule.

    With exact conditionals, at temperature 1, the joint law itself, one a step.

    Errors: ``ValueError`` for a process other than masked.
    """
    open_ = masks("sequential", process, z, draw)
    chosen = open_ & (open_.cumsum(1) <= even(open_.sum(1), t, s)[:, None])
    return propose(process, denoiser, z, t, s, draw, chosen).write(chosen)


@proposing
def positional(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    decay: float = 0.25,
    alpha: float = 10.0,
) -> Tensor:
    """Write an even share a step by e^(-decay i) min(-p log f, alpha): likely, telling, and near the start.

    PC-Sampler (arXiv 2508.13021): i is the position, p of the token proposed, f how frequent it is in a corpus, so that
    commas and stop words, likely anywhere, wait. Here f is uniform, 1 / K; ``calibrated`` makes the rule of a corpus.
    decay of 0 ignores where a token stands, a large one writes from left to right.

    Errors: ``ValueError`` for a process other than masked, a negative decay and an alpha that is not above 0.
    """
    return _calibrated(process, denoiser, z, t, s, draw, surprise=None, decay=decay, alpha=alpha)


def calibrated(frequencies: Tensor, *, decay: float = 0.25, alpha: float = 10.0) -> Callable[..., Tensor]:
    """``positional`` with the unigram frequencies (K,) of a corpus, or its counts: a sampler to pass to ``sample``.

    A token of no count is as telling as alpha allows.

    Errors: ``ValueError`` for frequencies that are negative or all zero.
    """
    counts = frequencies.double()
    if counts.ndim != 1 or not bool((counts >= 0).all()) or not 0 < float(counts.sum()) < torch.inf:
        raise ValueError(f"frequencies of shape {tuple(counts.shape)}: pass (K,) counts from 0, not all of them 0")
    surprise = -(counts / counts.sum()).clamp_min(torch.finfo(counts.dtype).tiny).log()
    return partial(_calibrated, surprise=surprise, decay=decay, alpha=alpha)


@proposing
def _calibrated(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    surprise: Tensor | None,
    decay: float,
    alpha: float,
) -> Tensor:
    """The rule of ``positional``; ``surprise`` (K,) is -log f in nats, that of uniform frequencies unless given."""
    if not (decay >= 0 and alpha > 0):
        raise ValueError(f"decay={decay}, alpha={alpha} of positional: pass a decay from 0 and an alpha above 0")
    open_ = masks("positional", process, z, draw)
    if surprise is None:
        surprise = torch.full((process.K,), math.log(process.K), dtype=torch.float64)
    if len(surprise) != process.K:
        raise ValueError(f"frequencies of {len(surprise)} tokens for a vocabulary of {process.K}: pass one for each")
    proposal = propose(process, denoiser, z, t, s, draw, open_)
    telling = proposal.confidence().double() * surprise.to(z.device)[proposal.tokens.clamp_max(process.K - 1)]
    # counted from a row's first mask: a factor of the whole row, so that far down a text nothing becomes 0
    place = torch.arange(z.shape[1], device=z.device, dtype=torch.float64) - open_.int().argmax(1)[:, None]
    score = torch.exp(-decay * place.clamp_min(0)) * telling.clamp_max(alpha)
    return proposal.write(top(score, open_, even(open_.sum(1), t, s)))


# ------------------------------------------------------------------------------------------------ a number of its own


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


@proposing
def dilated(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
    """Write positions far from each other together: R = ceil(log2 n) rounds for n free positions (DUS, 2506.19037).

    Round r = 1..R writes the free positions number j, from 0, with j mod 2^(R-r) = 0 that are still masked: of 8, 0 and
    4, then 2 and 6, then 1, 3, 5, 7. Tokens of one round are thus 2^(R-r) apart at least, and stand between those
    of the rounds before. A step is a round; in fewer steps than R rounds, a step takes an even share of those left.

    Errors: ``ValueError`` for a process other than masked.
    """
    open_ = masks("dilated", process, z, draw)
    free = ~draw.frozen
    number = (free.cumsum(1) - 1).clamp_min(0)
    rounds = (free.sum(1, keepdim=True) - 1).clamp_min(1).double().log2().floor().long() + 1
    # j mod 2^(R-r) = 0 from r = R - (times that 2 divides j) on; 2^(R-1) divides 0 and itself, in the first round
    divides = (number & -number).clamp_min(1).double().log2().long()
    last = rounds.expand_as(number)
    mine = torch.where(number == 0, 1, last - divides)
    now = torch.where(open_, mine, last + 1).amin(1, keepdim=True)
    share = even((rounds - now + 1).squeeze(1), t, s)[:, None]
    chosen = open_ & (mine < now + share)
    return propose(process, denoiser, z, t, s, draw, chosen).write(chosen)
