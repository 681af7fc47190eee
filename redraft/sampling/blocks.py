"""Texts written block by block (BD3-LM): each block by any sampler, given the finished ones from an exact cache.

The clean text of a block never changes what stands before it, so what the model computes of a finished block is what
it computed of it in training, and is computed once (Arriola et al. 2025, arXiv 2503.09573).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from redraft.models import contexts
from redraft.models.layers import Cache
from redraft.processes import Denoiser, Facts, Process, absorbing
from redraft.processes.base import per_position
from redraft.randomness import derive

if TYPE_CHECKING:
    from redraft.sampling.loop import Callback, Samples, Step

_OWN = ("segments", "positions", "attend", "cache", "store")
"""What a block model is told of the canvas by the loop over blocks alone."""


class Continuation:
    """A block model's denoiser of one block, given the finished text before it: full attention within the block.

    A model that caches (``Facts.caches``) keeps keys and values of the finished text, which costs one clean pass a
    block; another is asked for the whole text so far each time. ``nfe`` counts the clean passes, ``positions`` what
    goes in beside the block's own.
    """

    def __init__(self, denoiser: Denoiser, rows: int, device: torch.device) -> None:
        self.denoiser = denoiser
        self.facts: Facts = replace(denoiser.facts, attention="full", block=None)
        self.cache = Cache() if denoiser.facts.caches else None
        self.text = torch.zeros(rows, 0, dtype=torch.long, device=device)
        self.nfe = self.positions = 0

    def add(self, ids: Tensor) -> None:
        """Take finished blocks in: (B, n) ids, n a whole number of blocks."""
        start = self.text.shape[1]
        self.text = torch.cat([self.text, ids], dim=1)
        if self.cache is None:
            return
        cond = self._told(start, ids)
        cond["store"] = True
        if start == 0:  # several blocks at once, each to read those up to its own
            assert self.denoiser.facts.block is not None
            cond["attend"] = contexts.up_to(contexts.block_ranks(ids.shape[1], self.denoiser.facts.block, ids.device))
        # what is stored is made below the output layer, which a selective denoiser is then spared
        unread = {"where": torch.zeros_like(ids, dtype=torch.bool)} if self.facts.selective else {}
        self.denoiser(ids, torch.zeros(len(ids), dtype=torch.float64, device=ids.device), cond, **unread)
        self.nfe += self.facts.forwards
        self.positions += self.facts.forwards * ids.numel()

    def __call__(self, z: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        start = self.text.shape[1]
        if self.cache is not None:
            return self.denoiser(z, t, {**cond, **self._told(start, z)})
        self.positions += self.facts.forwards * self.text.numel()
        if self.facts.time_conditioned:  # finished text is told that it is clean
            t = torch.cat([t.new_zeros(self.text.shape), per_position(t).expand(z.shape)], dim=1)
        return self.denoiser(torch.cat([self.text, z], dim=1), t, cond or None)[:, start:]

    def _told(self, start: int, z: Tensor) -> dict[str, Any]:
        return {"cache": self.cache, "positions": torch.arange(start, start + z.shape[1], device=z.device)}


def by_blocks(
    write: "Callable[..., Samples]",
    process: Process,
    denoiser: Denoiser,
    given: Tensor,
    frozen: Tensor,
    seeds: Sequence[int],
    cond: Any,
    callback: "Callback | None",
    **options: Any,
) -> tuple[Tensor, int, int]:
    """Write a canvas block by block with ``write``, the loop over a canvas of full attention: tokens, nfe, positions.

    Block b of row r draws from derive(seeds[r], b), the first from seeds[r] itself. Blocks that are given at the front
    are taken in at once. ``callback`` sees the whole canvas, and may rewrite the block in work.

    Errors: ``ValueError`` for a process without fixed masks, a ``cond`` that speaks of positions, tokens given right
    of a block with gaps.
    """
    block, text, cond = _checked(process, denoiser, given, frozen, cond)
    seen = Continuation(denoiser, len(given), given.device)
    free = (~frozen).any(0).nonzero().flatten().tolist()
    if not free:
        return text, 0, 0
    starts = range(free[0] // block * block, free[-1] + 1, block)
    if starts[0]:
        seen.add(text[:, : starts[0]])
    nfe = positions = 0
    for number, start in enumerate(starts):
        piece = slice(start, start + block)
        found = write(
            process,
            seen,
            canvas=given[:, piece],
            frozen=frozen[:, piece],
            seeds=[derive(seed, start // block) if start else seed for seed in seeds],
            cond=cond,
            callback=callback and _showing(callback, text, frozen, piece, (number, len(starts)), nfe + seen.nfe),
            **options,
        )
        text[:, piece] = found.tokens
        nfe, positions = nfe + found.nfe, positions + found.positions
        if start != starts[-1]:
            seen.add(text[:, piece])
    return text, nfe + seen.nfe, positions + seen.positions


def _checked(
    process: Process, denoiser: Denoiser, given: Tensor, frozen: Tensor, cond: Any
) -> tuple[int, Tensor, Mapping[str, Any]]:
    """The block's length, the canvas with masks where it is free, and what the denoiser is told."""
    block = denoiser.facts.block
    if block is None or not absorbing(process):
        raise ValueError(f"block attention with block={block} and a {process.name} process: it needs blocks and masks")
    if cond is not None and (not isinstance(cond, Mapping) or any(name in cond for name in _OWN)):
        raise ValueError(f"cond={cond!r}: the loop over blocks says {', '.join(_OWN)} itself; leave them out")
    number = contexts.block_ranks(given.shape[1], block, given.device)
    first_gap = torch.where(frozen, len(number), number).amin(1, keepdim=True)
    if bool((frozen & (number > first_gap)).any()):
        raise ValueError(
            f"tokens are given right of a gap, in a later block of {block}: a block model sees nothing right of the "
            "block it writes; give what comes before, and no more than the rest of the block with the gap"
        )
    assert process.mask_id is not None
    return block, torch.where(frozen, given, process.mask_id), {} if cond is None else cond


def _showing(
    callback: "Callback", text: Tensor, frozen: Tensor, piece: slice, place: tuple[int, int], nfe: int
) -> "Callback":
    """``callback`` for a block, told of the whole canvas: ``place`` is the block's number and how many there are."""

    def show(step: "Step") -> Tensor | None:
        whole = text.clone()
        whole[:, piece] = step.z
        index, steps = place[0] * step.steps + step.index, place[1] * step.steps
        seen = replace(step, index=index, steps=steps, z=whole, tokens=whole, frozen=frozen, nfe=nfe + step.nfe)
        rewritten = callback(seen)
        if rewritten is None:
            return None
        if rewritten.shape != whole.shape:
            raise ValueError(
                f"the callback returned shape {tuple(rewritten.shape)} for a canvas of {tuple(whole.shape)}"
            )
        return rewritten[:, piece]

    return show
