"""Rules that write as many of the proposed tokens as seem sure, and at least so many that the steps given suffice.

That is an even share of the masks left, one if there are as many steps as masks; where fewer tokens are sure, the next
by their score are written with them. ``gap``: no two tokens of one step stand closer than that, the surer first (tokens
far apart depend on each other less; DUS, arXiv 2506.19037); an even share is written all the same, closer if it must.
``of``: the law that says how sure, ``model``, or ``drawn``, after temperature and cuts. Ties go to the lowest index.
"""

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

from redraft.processes import Process
from redraft.sampling.contract import Draw, Query, proposing
from redraft.sampling.proposal import Proposal, bounded, even, masks, propose, top
from redraft.sampling.selection import check_of


def enough(sure: Tensor, score: Tensor, open_: Tensor, least: Tensor, gap: int = 1) -> Tensor:
    """Which masks ``open_`` to write, (B, L) bool: the ``sure``, and the next by ``score`` up to ``least`` (B,) in all.

    ``gap`` above 1 goes through the sure ones from the highest score on, and leaves out who stands closer to one taken
    before; up to ``least`` it takes others that keep the distance, and only then those that do not.

    Errors: ``ValueError`` for a gap below 1.
    """
    if gap < 1:
        raise ValueError(f"gap={gap}: pass 1 for tokens side by side, or the least distance of two written together")
    among = open_
    if gap > 1:
        among = apart(sure, score, open_, gap)
        sure = sure & among
    sure = sure | top(score, among & ~sure, least - sure.sum(1))
    return sure if gap == 1 else sure | top(score, open_ & ~sure, least - sure.sum(1))


def apart(sure: Tensor, score: Tensor, open_: Tensor, gap: int) -> Tensor:
    """Those of ``open_`` (B, L) that are taken one by one, the ``sure`` first, then by ``score``, each ``gap`` or more
    from all taken before it.

    Whoever comes before all that are left around it is taken; so many at once, that a few rounds settle a row.
    """
    by_score = score.masked_fill(~open_, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    order = by_score.gather(1, sure.gather(1, by_score).byte().sort(dim=1, descending=True, stable=True).indices)
    early = -torch.arange(1.0, score.shape[1] + 1, dtype=torch.float64, device=score.device).expand(order.shape)
    early = torch.empty_like(early).scatter(1, order, early)  # minus the turn at which a position is looked at
    taken, left = torch.zeros_like(open_), open_

    def around(value: Tensor) -> Tensor:
        return max_pool1d(value, 2 * gap - 1, stride=1, padding=gap - 1)

    while bool(left.any()):
        waiting = early.masked_fill(~left, -torch.inf)
        first = left & (waiting == around(waiting))
        taken = taken | first
        left = left & ~around(first.double()).bool()
    return taken


def check_sure(tau: float) -> None:
    """Errors: ``ValueError`` for a bound on p below 0; one above 1 has a meaning, no token is that sure."""
    if not tau >= 0:
        raise ValueError(f"tau={tau}: pass a probability; with 1 or more, one token is written a step")


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
    strict: bool = True,
    least: int = 1,
    whole: bool = False,
    gap: int = 1,
) -> Tensor:
    """Write all tokens of confidence above ``tau``, and the surest in any case (Fast-dLLM, arXiv 2505.22618).

    tau of 1 or more writes one a step: ``low_confidence`` in as many steps as masks. ``strict=false`` also writes a
    token of p = tau (Fast-dLLM; SGLang does not). ``least``: so many at least. ``whole``: at least an even share of the
    whole block, whatever is written or given of it, and not of the masks left (LLaDA2.0, arXiv 2512.15745).

    Errors: ``ValueError`` for a process other than masked, a negative tau, a least or gap below 1.
    """
    check_of(of)
    check_sure(tau)
    if least < 1:
        raise ValueError(f"least={least} of threshold: a step writes one token at least")
    open_ = masks("threshold", process, z, draw)
    proposal = propose(process, denoiser, z, t, s, draw, open_)
    score = proposal.confidence(of)
    sure = open_ & ((score > tau) if strict else (score >= tau))
    share = of_all(t, s, draw) if whole else even(open_.sum(1), t, s)
    return proposal.write(enough(sure, score, open_, share.clamp_min(least), gap))


def of_all(t: Tensor, s: Tensor, draw: Draw) -> Tensor:
    """The step's even share of all the L positions, whatever is written of them, (B,): L // S, and one more in each of
    the first L mod S of the S steps."""
    left = (t / (t - s)).round().long()
    steps = draw.memory.setdefault("steps", left)
    length = draw.frozen.shape[1]
    return length // steps + (steps - left < length % steps)


@proposing
def factor(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    factor: float = 1.0,
    of: str = "model",
    gap: int = 1,
) -> Tensor:
    """Write the n surest, the more the surer: most n with (n + 1) (1 - p_n) <= factor (Fast-dLLM, arXiv 2505.22618).

    p_j is the confidence of the j-th surest and falls with j as the bound 1 - factor / (j + 1) rises, so that those who
    keep it are the first n. 1 - p_n below 1 / (n + 1) is what makes the likeliest tokens of n laws the likeliest
    together. factor of 0 writes one a step, and whatever has p = 1.

    Errors: ``ValueError`` for a process other than masked, a negative factor, a gap below 1.
    """
    check_of(of)
    if not factor >= 0:
        raise ValueError(f"factor={factor}: pass 0 (one token a step) or more")
    open_ = masks("factor", process, z, draw)
    proposal = propose(process, denoiser, z, t, s, draw, open_)
    score = proposal.confidence(of).masked_fill(~open_, -torch.inf)
    ranked, order = score.sort(dim=1, descending=True, stable=True)
    bound = 1 - factor / torch.arange(2, z.shape[1] + 2, device=z.device, dtype=torch.float64)
    sure = open_ & torch.zeros_like(open_).scatter(1, order, ranked >= bound)
    return proposal.write(enough(sure, score, open_, even(open_.sum(1), t, s), gap))


@proposing
def entropy_bounded(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    gamma: float = 0.1,
    of: str = "model",
    gap: int = 1,
) -> Tensor:
    """Write the most positions, of lowest entropy, whose entropies but the largest sum to ``gamma`` nats at most.

    The EB-Sampler (arXiv 2505.24857): that sum bounds what drawing them independently, not jointly, can be off by, as
    H(joint) is at least the largest of them. gamma of 0 writes one a step, the lowest entropy first, and
    whatever is certain.

    Errors: ``ValueError`` for a process other than masked, a negative gamma, a gap below 1.
    """
    check_of(of)
    if not gamma >= 0:
        raise ValueError(f"gamma={gamma} of entropy_bounded: pass nats from 0")
    open_ = masks("entropy_bounded", process, z, draw)
    proposal = propose(process, denoiser, z, t, s, draw, open_)
    entropy = proposal.entropy(of)
    return proposal.write(enough(bounded(entropy, open_, gamma), -entropy, open_, even(open_.sum(1), t, s), gap))


@proposing
def klass(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    tau: float = 0.9,
    kl: float = 0.01,
    history: int = 2,
    of: str = "model",
    gap: int = 1,
) -> Tensor:
    """Write tokens of confidence above ``tau`` whose law has come to rest (KLASS, arXiv 2511.05664).

    At rest: KL(p now || p a step before) was below ``kl`` nats at each of the last ``history`` steps, so that the
    first ``history`` steps of a block write the surest alone. Remembers log p of the block, (B, L, K).

    Errors: ``ValueError`` for a process other than masked, a negative tau or kl, a history or gap below 1.
    """
    check_of(of)
    check_sure(tau)
    if not kl >= 0 or history < 1:
        raise ValueError(f"kl={kl}, history={history} of klass: pass nats from 0, and one step at least")
    open_ = masks("klass", process, z, draw)
    proposal = propose(process, denoiser, z, t, s, draw, open_)
    score = proposal.confidence(of)
    sure = open_ & (score > tau) & (_at_rest(proposal, open_, kl) >= history)
    return proposal.write(enough(sure, score, open_, even(open_.sum(1), t, s), gap))


def _at_rest(proposal: Proposal, open_: Tensor, kl: float) -> Tensor:
    """For how many steps on end a mask's law has moved by less than ``kl``, (B, L); keeps it and the laws of now."""
    memory, asked, logp = proposal.draw.memory, proposal.asked, proposal.given
    if "klass_logp" not in memory:
        memory["klass_logp"] = logp.new_zeros(*open_.shape, logp.shape[-1])
        memory["klass_rest"] = torch.full_like(proposal.z, -1)  # -1 where nothing was said of a mask
    before, rest = memory["klass_logp"], memory["klass_rest"]
    p = logp.exp()
    moved = proposal.spread(torch.where(p > 0, p * (logp - before[asked]), 0.0).sum(-1))
    rest = torch.where((rest >= 0) & (moved < kl), rest + 1, 0).masked_fill(~open_, -1)
    before[asked] = logp
    memory["klass_rest"] = rest
    return rest


@proposing
def hierarchical(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    tau: float = 0.9,
    low: float = 0.5,
    of: str = "model",
    gap: int = 1,
) -> Tensor:
    """Write tokens of confidence above ``tau``, and of every run of masks the surest if above ``low`` (dInfer).

    Runs are so cut again and again, as a search is halved (arXiv 2510.08666). low at or above tau is ``threshold``.

    Errors: ``ValueError`` for a process other than masked, a negative tau or low, a gap below 1.
    """
    check_of(of)
    check_sure(tau)
    check_sure(low)
    open_ = masks("hierarchical", process, z, draw)
    proposal = propose(process, denoiser, z, t, s, draw, open_)
    score = proposal.confidence(of)
    sure = open_ & ((score > tau) | (_first_of_run(score, open_) & (score > low)))
    return proposal.write(enough(sure, score, open_, even(open_.sum(1), t, s), gap))


def _first_of_run(score: Tensor, open_: Tensor) -> Tensor:
    """The position of highest score, the lowest index of equals, of every run of ``open_`` (B, L) side by side."""
    length = score.shape[1]
    order = score.masked_fill(~open_, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    turn = torch.empty_like(order).scatter(1, order, torch.arange(length, device=score.device).expand_as(order))
    turn = turn.masked_fill(~open_, length)
    run = (open_ & ~pad(open_, (1, 0))[:, :-1]).cumsum(1)  # those not open count to the run before them, behind all
    first = torch.full_like(pad(turn, (1, 0)), length).scatter_reduce(1, run, turn, "amin")
    return open_ & (turn == first.gather(1, run))
