"""What is asked of ``sample``, checked against what process, denoiser and sampler can do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.models import contexts
from redraft.processes import Denoiser, Facts, Process, absorbing
from redraft.processes.base import OF_POSITIONS
from redraft.sampling import samplers
from redraft.sampling.contract import Constraint, check_temperature
from redraft.sampling.law import Law
from redraft.sampling.samplers import Sampler, ancestral, left_to_right, proposes
from redraft.sampling.steps import Callback
from redraft.sampling.window import CACHES

DEFAULT_STEPS = 128


class Writing(TypedDict, total=False):
    """The options of ``sample`` that hold for any way to lay texts out; see there."""

    steps: int | None
    sampler: str | Sampler | None
    temperature: float
    top_p: float
    top_k: int
    repetition: float
    banned: Sequence[int]
    bias: Mapping[int, float] | None
    late: Sequence[int]
    block: int | None
    whole_blocks: bool
    cache: str | None
    refresh: int | None
    constraint: Any
    callback: Callback | None


_OWN = (*OF_POSITIONS, "given")
"""What a denoiser is told of the canvas by the loop over blocks alone."""


@dataclass(frozen=True)
class Request:
    """What is asked for, and does not change while it is written."""

    process: Process
    denoiser: Denoiser
    sampler: Sampler
    steps: int | None
    temperature: float
    top_p: float
    top_k: int
    strength: float | None
    given: str
    resample: int
    stop: int | None
    cond: Any
    callback: Callback | None
    late: tuple[int, ...] = ()
    law: Law | None = None
    constraint: Constraint | None = None
    rows: list[int] = field(default_factory=list[int])

    def check(self, constrained: bool) -> None:
        """Errors: ``ValueError`` for what clashes with the process, the denoiser or the sampler."""
        process, facts, strength = self.process, self.denoiser.facts, self.strength
        if process.mask_id != facts.mask_id:
            raise ValueError(
                f"the process masks with id {process.mask_id}, the denoiser was trained with {facts.mask_id}"
            )
        if strength is not None and facts.attention in ("causal", "block"):
            raise ValueError(
                f"strength={strength} with a denoiser of {facts.attention} attention: it writes from left to "
                "right and cannot redraft a text; use a model of full attention"
            )
        check_temperature(self.temperature, self.top_p, self.top_k)
        if facts.vectors and (self.temperature, self.top_p, self.top_k) != (1.0, 1.0, 0):
            raise ValueError(
                f"temperature={self.temperature}, top_p={self.top_p}, top_k={self.top_k} of a denoiser that answers "
                "with vectors, which are no mean of tokens: leave them at 1, 1 and 0; 'ddim:tau=0.9' is a temperature "
                "of vectors"
            )
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps}: take at least one")
        if self.late and not proposes(self.sampler):
            raise ValueError(
                f"late={list(self.late)} needs a sampler that proposes tokens and writes some: 'low_confidence', "
                "'threshold'"
            )
        if constrained and not proposes(self.sampler):
            raise ValueError(
                "a constraint needs a sampler that proposes tokens and writes some: 'low_confidence', 'threshold', "
                "'random_order'"
            )
        if constrained and strength is not None:
            raise ValueError(
                f"strength={strength} with a constraint, which what is kept of the text may contradict: leave one out"
            )
        if strength is not None and getattr(self.sampler, "keywords", {}).get("strategy") == "loop":
            raise ValueError(f"strength={strength} with remdm:strategy=loop, which has a clock of its own: use another")


def step_function(denoiser: Denoiser, sampler: str | Sampler | None) -> Sampler:
    """The step function. Errors: ``ValueError`` for one that an autoregressive denoiser cannot follow."""
    if denoiser.facts.attention != "causal":
        return samplers.get(sampler or ancestral)
    if samplers.get(sampler or left_to_right) is not left_to_right:
        raise ValueError("an autoregressive denoiser needs sampler='left_to_right'")
    return left_to_right


def alike(request: Request, frozen: Sequence[Tensor], block: int | None) -> list[list[int]]:
    """The numbers of rows that are written together: of one length, and of one start where that decides the blocks.

    Of one number of free positions where that decides the steps.
    """
    facts, found = request.denoiser.facts, dict[tuple[int, ...], list[int]]()
    for row, known in enumerate(frozen):
        key = [len(known)]
        if facts.attention == "block" or block is not None:
            key.append(first_block(known, facts.block or 1)[0])
        if facts.attention == "causal" or (request.steps is None and proposes(request.sampler)):
            key.append(int((~known).sum()))
        found.setdefault(tuple(key), []).append(row)
    return list(found.values())


def first_block(frozen: Tensor, block: int) -> tuple[int, int]:
    """Where the free positions of a row (L,) begin, at a multiple of ``block``, and where they end; (L, L) of none."""
    free = (~frozen).nonzero().flatten()
    if not len(free):
        return len(frozen), len(frozen)
    return int(free[0]) // block * block, int(free[-1]) + 1


def width_of_blocks(
    process: Process, facts: Facts, frozen: Tensor, cond: Any, block: int | None, cache: str | None, refresh: int | None
) -> int | None:
    """The length of the blocks in which ``frozen`` (B, L) is to be written, None for a canvas written whole.

    Errors: ``ValueError`` for a block that is not the model's, a process without fixed masks, tokens given behind what
    a block model can read, a ``cond`` that speaks of positions, a cache that would do nothing or is not to be had.
    """
    if cache is not None and cache not in CACHES:
        raise unknown("cache", cache, CACHES)
    if refresh is not None and (cache is None or refresh < 1):
        raise ValueError(f"refresh={refresh} with cache={cache!r}: pass a number of calls from 1, and a cache to renew")
    if facts.attention == "block":
        block = _own_block(facts, frozen, block, cache)
    if block is None:
        if cache is not None:
            raise ValueError(f"cache={cache!r} without blocks: pass block, the positions to write at a time")
        return None
    if block < 1:
        raise ValueError(f"block={block}: write at least one position at a time")
    if facts.attention not in ("full", "block"):
        raise ValueError(f"block={block} of a denoiser of {facts.attention} attention: leave it out")
    if not absorbing(process):
        raise ValueError(f"block={block} with a {process.name} process: it needs blocks and masks")
    if facts.self_conditioned:
        raise ValueError(f"block={block} of a denoiser that conditions on itself: what it said is of a block alone")
    if cache is not None and not facts.caches:
        raise ValueError(f"cache={cache!r} of a denoiser that keeps none: leave it out")
    if cond is not None and (not isinstance(cond, Mapping) or any(name in cond for name in _OWN)):
        raise ValueError(f"cond={cond!r}: the loop over blocks says {', '.join(_OWN)} itself; leave them out")
    return block


def _own_block(facts: Facts, frozen: Tensor, block: int | None, cache: str | None) -> int:
    """The block of a block model. Errors: ``ValueError`` as ``width_of_blocks`` says."""
    if facts.block is None or block not in (None, facts.block):
        raise ValueError(f"block={block} of a model that was made for block={facts.block}: leave it out")
    if cache is not None:
        raise ValueError(f"cache={cache!r} of a block model, whose cache is exact and always used: leave it out")
    number = contexts.block_ranks(frozen.shape[1], facts.block, frozen.device)
    first_gap = torch.where(frozen, len(number), number).amin(1, keepdim=True)
    if bool((frozen & (number > first_gap)).any()):
        raise ValueError(
            f"tokens are given right of a gap, in a later block of {facts.block}: a block model sees nothing right of "
            "the block it writes; give what comes before, and no more than the rest of the block with the gap"
        )
    return facts.block
