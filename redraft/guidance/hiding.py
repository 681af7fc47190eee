"""What the unconditional side of ``cfg`` is not shown, where the text itself is the condition and no label was trained.

``unprompted`` hides what is given, ``doubting`` what was written with the least confidence. Both need masks, and are
told by ``sample`` which tokens are given.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from redraft.processes import Denoiser, Facts
from redraft.processes.base import as_condition, forwards_at
from redraft.sampling.proposal import top


class Unprompted(torch.nn.Module):
    """A denoiser that sees [MASK] in place of all that is given; made by ``unprompted``."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.mask_id = denoiser, mask_of(denoiser, "unprompted")

    @property
    def facts(self) -> Facts:
        return replace(self.denoiser.facts, given=True, scores=False)

    def forwards_at(self, t: Tensor) -> int:
        return forwards_at(self.denoiser, t)

    def forward(self, z: Tensor, t: Tensor, cond: Any = None, where: Tensor | None = None) -> Tensor:
        """log p (B, L, K), or (n, K) of the positions ``where``. Errors: ``ValueError`` without ``cond["given"]``."""
        hidden = torch.where(given_of(cond, "unprompted"), self.mask_id, z)
        return answer(self.denoiser, hidden, t, cond, where)


def unprompted(denoiser: Denoiser) -> Unprompted:
    """The same denoiser, shown [MASK] at every given position and the rest of the text as it stands.

    As the unconditional side of ``cfg`` it guides towards a prompt, whatever its length in each row, by the model's own
    law of a text without one: p(x | prompt, z)^weight p(x | z)^(1 - weight) (SMDM, Nie et al. 2024, arXiv 2410.18514,
    whose w is weight - 1; LLaDA, arXiv 2502.09992). Tokens given anywhere are hidden, as infilling gives them too.

    >>> guided = cfg(lm.denoiser, unprompted(lm.denoiser), weight=1.5)  # doctest: +SKIP

    Errors: ``ValueError`` for a denoiser without a mask; when called by hand, without ``cond["given"]`` (B, L).
    """
    return Unprompted(denoiser)


class Doubting(torch.nn.Module):
    """A denoiser that sees [MASK] where what was written is least sure; made by ``doubting``."""

    def __init__(self, denoiser: Denoiser, share: float) -> None:
        super().__init__()
        self.denoiser, self.share, self.mask_id = denoiser, share, mask_of(denoiser, "doubting")

    @property
    def facts(self) -> Facts:
        base = self.denoiser.facts
        # finished blocks would have to be hidden anew at every call, so that what is kept of them is not exact
        return replace(base, given=True, scores=False, caches=base.caches and base.attention != "block")

    def forwards_at(self, t: Tensor) -> int:
        return forwards_at(self.denoiser, t)

    def written(self, z: Tensor, cond: Any) -> Tensor:
        """Which tokens could be doubted, (B, L) bool: neither masked nor given."""
        return (z != self.mask_id) & ~given_of(cond, "doubting")

    def forward(
        self, z: Tensor, t: Tensor, cond: Any = None, where: Tensor | None = None, sure: Tensor | None = None
    ) -> Tensor:
        """log p (B, L, K), or (n, K) of the positions ``where``; ``sure`` (B, L): log p of each token written.

        Errors: ``ValueError`` without ``sure``, which ``cfg`` says, or without ``cond["given"]``.
        """
        if sure is None:
            raise ValueError(
                "doubting hides what another denoiser is not sure of: make it the second of cfg(denoiser, doubting)"
            )
        among = self.written(z, cond)
        count = (self.share * among.sum(1)).round()
        hidden = torch.where(top(-sure, among, count), self.mask_id, z)
        return answer(self.denoiser, hidden, t, cond, where)


def doubting(denoiser: Denoiser, share: float) -> Doubting:
    """The same denoiser, shown [MASK] in place of the ``share`` of the written tokens that are least sure (A-CFG, Li et
    al. 2025, arXiv 2505.20199).

    It is the unconditional side of ``cfg``, whose conditional side says how sure: by its p of the token that stands
    there, at this very call. So a call costs a forward of each. Written tokens are those neither masked nor given;
    round(share n) of a row's n are hidden, of equals those that stand first. At a block's cached calls they are those
    of the block.

    >>> guided = cfg(lm.denoiser, doubting(lm.denoiser, 0.3), weight=1.5)  # doctest: +SKIP

    Errors: ``ValueError`` for a share outside (0, 1], a denoiser without a mask, a call outside ``cfg``.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: pass the share of the written tokens to hide, above 0 and at most 1")
    return Doubting(denoiser, share)


def mask_of(denoiser: Denoiser, method: str) -> int:
    """The id of [MASK]. Errors: ``ValueError`` for a denoiser that knows none."""
    mask_id = denoiser.facts.mask_id
    if mask_id is None:
        raise ValueError(f"{method} needs a denoiser that knows [MASK]; one of uniform or Gaussian noise has none")
    return mask_id


def given_of(cond: Any, method: str) -> Tensor:
    """Which tokens are given, (B, L). Errors: ``ValueError`` where nobody said so."""
    told = as_condition(cond)
    if "given" not in told:
        raise ValueError(
            f"{method} is told by sample which tokens are given: called by hand, pass cond={{'given': ..}}"
        )
    return told["given"]


def answer(denoiser: Denoiser, z: Tensor, t: Tensor, cond: Any, where: Tensor | None) -> Tensor:
    """log p (B, L, K), or, of a selective denoiser, (n, K) of the positions ``where``."""
    if where is None:
        return denoiser(z, t, cond)
    return denoiser(z, t, cond, where=where)  # pyright: ignore[reportCallIssue]
