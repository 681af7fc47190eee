"""WINO: write many tokens on a slight hope, and take back those that the rest of the text does not bear out."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from redraft.processes import Process
from redraft.processes.base import log_prob_of
from redraft.sampling.contract import Draw, Query, proposing, revising
from redraft.sampling.proposal import even, masks, propose, top


@runtime_checkable
class Shadowing(Protocol):
    """What ``sample`` gives a sampler for a denoiser: it can ask for a shadow of the text too."""

    def __call__(self, z: Tensor, t: Tensor, where: Tensor | None = None, /) -> Tensor: ...

    def shadow(self, z: Tensor, t: Tensor, where: Tensor, doubted: Tensor, /) -> tuple[Tensor, Tensor]: ...


@dataclass
class _Doubting:
    """A query that hears of the written tokens ``doubted`` (B, W) in the same call: log p (m, K) in ``heard``."""

    denoiser: Shadowing
    doubted: Tensor
    heard: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __call__(self, z: Tensor, t: Tensor, where: Tensor | None = None, /) -> Tensor:
        assert where is not None
        said, self.heard = self.denoiser.shadow(z, t, where, self.doubted)
        return said


@revising
@proposing
def wino(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    tau: float = 0.6,
    verify: float = 0.9,
    share: float = 0.7,
    least: int = 5,
    most: int = 20,
) -> Tensor:
    """Wide in, narrow out (WINO, Hong et al. 2025, arXiv 2507.18578): draft generously, verify what was drafted before.

    Draft: write the masks whose token has confidence above ``tau``, the surest, up to ``share`` of the masks, but no
    fewer than ``least`` and no more than ``most`` of them; and the surest in any case. Verify, in the same forward: of
    the tokens x_j written before, those with

        q_j < verify,    q_j = p(x_j) of the shadow of j

    are masked again, the lowest first, at most one fewer than were written now: there are fewer masks after each step.
    The shadow is a mask beside each of the W positions in work, at the same place, that reads every token but its own,
    and the other shadows. In a network of one block q_j is what a plain forward says of a mask at j beside which those
    shadows stand; in deeper ones the tokens it reads have read x_j themselves, so that it is an approximation.

    A step with tokens to verify computes 2 W positions for W, once. ``verify`` of 0 takes nothing back and needs no
    shadow: it is ``threshold`` with a cap. Rows are done when they have no masks. In fewer ``steps`` than masks what a
    step writes at least grows, so that the last leaves none. The shadow is never kept in a cache.

    Errors: ``ValueError`` for a process other than masked, a share outside (0, 1], 1 <= least <= most not kept, a
    denoiser that cannot be told what to read, or is told of positions, or was not given by ``sample``.
    """
    open_ = masks("wino", process, z, draw)
    if not 0 < share <= 1 or not 1 <= least <= most:
        raise ValueError(f"share={share}, least={least}, most={most} of wino: need 0 < share <= 1 <= least <= most")
    doubted = ~draw.frozen & ~open_ & open_.any(1, keepdim=True)
    query = denoiser
    if verify > 0 and bool(doubted.any()):
        if not isinstance(denoiser, Shadowing):
            raise ValueError(
                "wino is a sampler for redraft.sample: called by hand it has no shadow; use 'wino:verify=0'"
            )
        query = _Doubting(denoiser, doubted)
    proposal = propose(process, query, z, t, s, draw, open_)
    left = open_.sum(1)
    need = even(left, t, s)
    cap = (share * left).long().clamp(least, most)
    score = proposal.confidence()
    chosen = top(score, open_, torch.maximum(need, torch.minimum((open_ & (score > tau)).sum(1), cap)))
    after, mask_id = proposal.write(chosen), proposal.process.mask_id
    assert mask_id is not None
    if isinstance(query, _Doubting):
        sure = torch.full(z.shape, torch.inf, dtype=query.heard.dtype, device=z.device)
        sure[doubted] = log_prob_of(z[doubted], query.heard).exp()
        suspect = doubted & (sure < verify) & (after == z)
        after = after.masked_fill(top(-sure, suspect, chosen.sum(1) - need), mask_id)
    done = ~((after == mask_id) & ~draw.frozen).any(1)
    draw.memory["done"] = done if draw.revision is None else done & draw.memory["done"]
    return after
