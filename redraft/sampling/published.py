"""The rules of Dream and of MaskGIT: how many tokens a step writes follows their authors' grids of time.

Dream's time is t' = eps + (1 - eps) t, so that a step from t to s reveals a share 1 - s'/t' of the masks, the last step
all. Its authors average the masks over the batch; here every row counts its own. A step that writes nothing is free.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.processes import Process
from redraft.randomness import rand
from redraft.sampling.contract import Draw, Query, proposing
from redraft.sampling.proposal import Proposal, floored, masks, propose, top


def gumbel(z: Tensor, draw: Draw) -> Tensor:
    """Standard Gumbel noise (B, L) float64. The n highest of log w + noise are n drawn without replacement by w."""
    u = rand(z.shape, draw.generator, z.device)
    return -(-u.clamp_min(torch.finfo(u.dtype).tiny).log()).log()


# ----------------------------------------------------------------------------------------------------------- Dream


def share(t: Tensor, s: Tensor, eps: float) -> Tensor:
    """1 - s'/t', t' = eps + (1 - eps) t, and 1 if s = 0; (B,). Errors: ``ValueError`` for an eps outside [0, 1)."""
    if not 0 <= eps < 1:
        raise ValueError(f"eps={eps} is outside [0, 1): the last time but 0 of Dream's grid, 0.001 as published")
    return torch.where(s > 0, 1 - (eps + (1 - eps) * s) / (eps + (1 - eps) * t), 1.0)


@proposing
def origin(
    process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw, *, eps: float = 1e-3
) -> Tensor:
    """Write every mask independently with probability 1 - s'/t' (Dream's ``origin``, arXiv 2508.15487).

    eps of 0 is ancestral sampling on the linear schedule.

    Errors: ``ValueError`` for a process other than masked, and an eps outside [0, 1).
    """
    revealed = share(t, s, eps)
    open_ = masks("origin", process, z, draw)
    chosen = open_ & (rand(z.shape, draw.generator, z.device) < revealed[:, None])
    return propose(process, denoiser, z, t, s, draw, chosen).write(chosen)


@proposing
def maskgit_plus(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    alg_temp: float = 0.0,
    eps: float = 1e-3,
) -> Tensor:
    """Write the likeliest proposed tokens, floor(masks (1 - s'/t')) of them (Dream, arXiv 2508.15487).

    Scored by the law that tokens are drawn from, after temperature and cuts. ``alg_temp`` above 0 draws as many without
    replacement in proportion to exp(score / alg_temp).

    Errors: ``ValueError`` for a process other than masked, a negative alg_temp, and an eps outside [0, 1).
    """
    return _dream("maskgit_plus", lambda one: one.confidence("drawn"), process, denoiser, z, t, s, draw, alg_temp, eps)


@proposing
def topk_margin(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    alg_temp: float = 0.0,
    eps: float = 1e-3,
) -> Tensor:
    """As ``maskgit_plus``, scored by p of the likeliest token less that of the second (Kim et al., arXiv 2502.06768).

    Errors: as there.
    """
    return _dream("topk_margin", lambda one: one.margin("drawn"), process, denoiser, z, t, s, draw, alg_temp, eps)


@proposing
def entropy(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    alg_temp: float = 0.0,
    eps: float = 1e-3,
) -> Tensor:
    """As ``maskgit_plus``, scored by minus the entropy of a position's law, in nats: the lowest entropy first.

    Errors: as there.
    """
    return _dream("entropy", lambda one: -one.entropy("drawn"), process, denoiser, z, t, s, draw, alg_temp, eps)


def _dream(
    name: str,
    scored: Callable[[Proposal], Tensor],
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    alg_temp: float,
    eps: float,
) -> Tensor:
    if not 0 <= alg_temp < math.inf:
        raise ValueError(f"alg_temp={alg_temp} of {name}: pass 0 for the highest scores, or a temperature above it")
    open_ = masks(name, process, z, draw)
    count = floored(open_.sum(1) * share(t, s, eps))
    proposal = propose(process, denoiser, z, t, s, draw, open_ & (count > 0)[:, None])
    score = scored(proposal)
    if alg_temp:
        score = score / alg_temp + gumbel(z, draw)
    return proposal.write(top(score, open_, count))


# --------------------------------------------------------------------------------------------------------- MaskGIT

POWERS = {"uniform": 1.0, "square": 2.0, "cubic": 3.0, "sqrt": 0.5}
SCHEDULES = ("cosine", "exp", "log", "pow", *POWERS)


def masked_share(schedule: str, r: Tensor, number: Tensor, exponent: float | None = None) -> Tensor:
    """gamma(r), the share of ``number`` (B,) masks that is left after a share r (B,) of the steps.

        cosine cos(pi r / 2)     uniform, square, cubic, sqrt, pow 1 - r^p, p = 1, 2, 3, 1/2, ``exponent``
        log -log r / log n       exp 1 - n^(r-1)

    Errors: ``ValueError`` for an unknown schedule, pow without an exponent above 0, or an exponent of another.
    """
    if schedule not in SCHEDULES:
        raise unknown("schedule of maskgit", schedule, SCHEDULES)
    if (schedule == "pow") != (exponent is not None) or not (exponent is None or exponent > 0):
        raise ValueError(f"exponent={exponent} of maskgit:schedule={schedule}: one above 0 goes with pow alone")
    if schedule == "cosine":
        return torch.cos(math.pi / 2 * r)
    size = number.clamp_min(2).double()  # of one mask nothing is left, whatever its share
    if schedule == "log":
        return (-r.log() / size.log()).clamp(0.0, 1.0)
    if schedule == "exp":
        return 1 - size ** (r - 1)
    return 1 - r ** (POWERS[schedule] if exponent is None else exponent)


@proposing
def maskgit(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    schedule: str = "cosine",
    exponent: float | None = None,
    noise: float = 4.5,
) -> Tensor:
    """Write those of highest log p + noise s G, G Gumbel, as many as MaskGIT's schedule leaves (arXiv 2202.04200).

    Of the n free positions floor(n gamma(1 - s)) stay masked, at least one and at most all masks but one, and none at
    s = 0: of 256 in 8 steps 251, 236, 212, 181, 142, 97, 49, 0. ``schedule``: see ``masked_share``; ``exponent`` that
    of schedule=pow. ``noise`` falls to 0 with s; a large one writes in random order, 0 the likeliest.

    Errors: ``ValueError`` for a process other than masked, a negative noise, and those of ``masked_share``.
    """
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise={noise} of maskgit: pass 0 for the likeliest tokens, or more for chance")
    open_ = masks("maskgit", process, z, draw)
    number, left = (~draw.frozen).sum(1), open_.sum(1)
    stay = floored(number * masked_share(schedule, 1 - s, number, exponent)).clamp_min(1)
    count = left - torch.where(s > 0, torch.minimum(stay, left - 1), 0)
    proposal = propose(process, denoiser, z, t, s, draw, open_)
    score = proposal.confidence().double().clamp_min(torch.finfo(torch.float64).tiny).log()
    if noise:
        score = score + noise * s[:, None] * gumbel(z, draw)
    return proposal.write(top(score, open_, count))
