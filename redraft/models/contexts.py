"""Attention contexts: which inputs each position may read, as dense masks; and the two-stream layout.

A context is a rank for every position: a position may be told of those of lower rank. Ranks by blocks give block
diffusion (BD3-LM), ranks by place give the left-to-right model, and a random order of ranks gives any-order models
(XLNet, sigma-GPT, Eso-LM): one form for all.
"""

import torch
from torch import Tensor

from redraft.processes.base import Attention, Condition
from redraft.randomness import Device, Generators, rand


def block_ranks(length: int, block: int, device: Device = None) -> Tensor:
    """The number of each position's block, (L,)."""
    return torch.arange(length, device=device) // block


def up_to(rank: Tensor) -> Tensor:
    """Each position reads those of its own rank and below: (L,) or (B, L) -> (..., L, L) bool, query by key.

    Ranks by blocks are the block-causal pattern in which a text is written block by block.
    """
    return rank[..., :, None] >= rank[..., None, :]


def opened(length: int, share: float, generator: Generators = None, device: Device = None) -> Tensor:
    """A causal pattern that is partly open, (L, L) bool, query by key: what is to the right is read with chance share.

    0 is the causal pattern, 1 all of it (attention annealing: DiffuLLaMA, Gong et al. 2024, arXiv 2410.17891).
    """
    return up_to(torch.arange(length, device=device)) | (rand((length, length), generator, device) < share)


def two_stream(rank: Tensor) -> Tensor:
    """The pattern over [x_t ; x_0], 2L inputs: (L,) or (B, L) -> (..., 2L, 2L) bool, query by key.

        noisy query  reads  noisy keys of equal rank, clean keys of lower rank
        clean query  reads  clean keys of equal or lower rank

    so that one forward denoises every rank given the clean text below it (BD3-LM, Arriola et al. 2025).
    """
    equal = rank[..., :, None] == rank[..., None, :]
    below = rank[..., :, None] > rank[..., None, :]
    noisy = torch.cat([equal, below], dim=-1)
    clean = torch.cat([torch.zeros_like(equal), equal | below], dim=-1)
    return torch.cat([noisy, clean], dim=-2)


def doubled(length: int, device: Device = None) -> Tensor:
    """Positions of the 2L inputs of ``two_stream``: both halves stand at 0 .. L-1."""
    return torch.arange(length, device=device).repeat(2)


def revealed(known: Tensor) -> Tensor:
    """What a model trained on random orders reads of a canvas: ``known`` (B, L) bool -> (B, L, L), query by key.

    Known tokens come in the order they stand, unknown ones after them all: each reads itself and what is known. It is
    ``two_stream``'s answer for an order that begins so. What is read of a known token depends on those before it in the
    order, so other orders of the same known tokens, met in training too, give laws of their own.
    """
    L = known.shape[-1]
    rank = torch.where(known, torch.arange(L, device=known.device), L)
    below = rank[..., :, None] > rank[..., None, :]
    return below | torch.eye(L, dtype=torch.bool, device=known.device)


def readable(z: Tensor, cond: Condition, attention: Attention, block: int | None, mask_id: int | None) -> Tensor | None:
    """Which keys each query of a canvas z reads, (B or 1, 1, L, M) bool; None for all (or all before, if causal).

    That is what ``cond`` says in place of the model's own ``attention`` (see ``Facts``), within equal segments. Blocks
    are of positions: where those are told, a text is read the same wherever it stands in its row.
    """
    pattern = cond.get("attend")
    # a cache holds whole blocks, all of which are read
    if pattern is None and attention == "block" and "cache" not in cond:
        assert block is not None
        place = cond.get("positions")
        pattern = up_to(block_ranks(z.shape[1], block, z.device) if place is None else place // block)
    elif pattern is None and attention == "permuted":
        pattern = revealed(z != mask_id)
    if "segments" in cond:
        same = cond["segments"][:, :, None] == cond["segments"][:, None, :]
        if pattern is None and attention == "causal":
            pattern = up_to(torch.arange(z.shape[1], device=z.device))
        pattern = same if pattern is None else same & pattern
    if pattern is None:
        return None
    return (pattern if pattern.ndim == 3 else pattern[None])[:, None]
