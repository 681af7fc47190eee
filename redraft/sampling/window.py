"""Texts written block by block: each by any sampler, given what stands before it, and what is masked behind it.

A block model (BD3-LM, Arriola et al. 2025, arXiv 2503.09573; LLaDA2, SDAR) reads the finished blocks and its own.
The clean text of a block never changes what stands before it, so what the model computes of a finished block is what it
computed of it in training, and is computed once: that cache is exact.

A model of full attention reads the whole canvas whatever block is written (LLaDA's semi-autoregressive decoding). What
it computes of the other positions changes with every token; to keep it from the first step of a block on is an
**approximation** (Fast-dLLM, Wu et al. 2025, arXiv 2505.22618), and results that used one say so.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.models import contexts
from redraft.models.layers import Cache
from redraft.processes import Denoiser, Facts, Process, absorbing
from redraft.processes.base import Condition, as_condition, of_rows, per_position
from redraft.sampling.cost import Clock, Cost
from redraft.sampling.shadow import shadowed
from redraft.sampling.speak import speak

CACHES = ("prefix", "dual")
"""What a model of full attention may keep while it writes a block: what stands before it, or all but the block."""


@dataclass
class Window:
    """A denoiser of one block of a canvas, the rest of which stands as it is; ``move`` goes on to another.

    ``text`` (B, L) has masks where it is to be written, ``frozen`` (B, L) marks what is given. ``keep`` names one of
    ``CACHES``, to be renewed by a call of the whole canvas every ``refresh`` calls, at least as each block begins.
    """

    denoiser: Denoiser
    process: Process
    text: Tensor
    frozen: Tensor
    keep: str | None = None
    refresh: int | None = None
    start: int = 0
    stop: int = 0
    cache: Cache | None = None

    def __post_init__(self) -> None:
        # calls since what a row keeps was computed; -1 if it was not
        self.age = torch.full((len(self.text),), -1, device=self.text.device)
        if self.causal and self.denoiser.facts.caches and self.cache is None:
            self.cache = Cache()

    @property
    def causal(self) -> bool:
        """Whether nothing right of the block is read."""
        return self.denoiser.facts.attention == "block"

    @property
    def facts(self) -> Facts:
        return replace(self.denoiser.facts, attention="full", block=None, given=False, caches=False)

    def move(self, start: int, stop: int) -> None:
        """Go on to the positions from start to stop."""
        self.start, self.stop = start, stop
        self.age.fill_(-1)
        if not self.causal:  # what was kept lay round another block, and need not have this one's shape
            self.cache = None

    def take_in(self, start: int, stop: int, cost: Cost, rows: list[int]) -> None:
        """Remember the finished blocks from start to stop of a block model: one clean pass, if it caches at all.

        ``rows`` are the numbers in ``cost`` of the rows here.
        """
        if not self.causal or self.cache is None:
            return
        ids = self.text[:, start:stop]
        cond: dict[str, Any] = {**self._told(self.frozen, start, stop), "cache": self.cache, "store": True}
        if start == 0:  # several blocks at once, each to read those up to its own
            assert self.denoiser.facts.block is not None
            cond["attend"] = contexts.up_to(contexts.block_ranks(stop, self.denoiser.facts.block, ids.device))
        # what is stored is made below the output layer, which a selective denoiser is then spared
        unread = torch.zeros_like(ids, dtype=torch.bool)
        with Clock(cost, "model"):
            speak(self.denoiser, ids, torch.zeros(len(ids), dtype=torch.float64, device=ids.device), unread, cond)
        cost.count(self.facts.forwards, rows, ids.numel(), len(ids) * start)

    def ask(self, z: Tensor, t: Tensor, cond: Any, where: Tensor | None, rows: Tensor, cost: Cost) -> Tensor:
        """log p of the block z (n, W) of the rows ``rows`` (n,): (n, W, K), or (m, K) of the positions ``where``.

        Those of a block and its shadow (``sampling.shadow``) if ``where`` is (n, 2 W).
        """
        told = as_condition(cond)
        if self.keep is not None and not self.causal:
            return self._kept(z, t, told, where, rows, cost)
        if self.cache is not None:
            return self._speak(z, t, told, where, rows, cost, (self.start, self.stop), self._rows(self.cache, rows))
        return self._speak(z, t, told, where, rows, cost, (0, self.stop if self.causal else self.text.shape[1]))

    def _kept(self, z: Tensor, t: Tensor, cond: Condition, where: Tensor | None, rows: Tensor, cost: Cost) -> Tensor:
        """As ``ask``, by what is kept; rows that have nothing, or nothing fresh enough, have the whole canvas read."""
        length, age = self.text.shape[1], self.age[rows]
        due = (age < 0) | (age >= (self.refresh or length + 1))
        if bool(due.any()) and not bool(due.all()):
            parts = [one.nonzero().squeeze(1) for one in (due, ~due)]
            asked = [(z[p], t[p], of_rows(cond, p), None if where is None else where[p], rows[p]) for p in parts]
            return _together([self._kept(*one, cost) for one in asked], parts, where, z)
        self.age[rows] = torch.where(due, 1, age + 1)
        if not bool(due.all()):
            assert self.cache is not None
            read = (self.start, self.stop if self.keep == "dual" else length)
            return self._speak(z, t, cond, where, rows, cost, read, self._rows(self.cache, rows))
        fresh = Cache()
        out = self._speak(z, t, cond, where, rows, cost, (0, length), fresh, store=True)
        behind = slice(self.stop, length if self.keep == "dual" else self.stop)
        fresh = fresh.map(lambda k: torch.cat([k[:, :, : self.start], k[:, :, behind]], dim=2))
        if len(rows) == len(self.text):
            self.cache = fresh
        else:
            self.cache = self.cache or fresh.map(lambda k: k.new_zeros(len(self.text), *k.shape[1:]))
            self.cache.put(rows, fresh)
        return out

    def _speak(
        self,
        z: Tensor,
        t: Tensor,
        cond: Condition,
        where: Tensor | None,
        rows: Tensor,
        cost: Cost,
        read: tuple[int, int],
        cache: Cache | None = None,
        store: bool = False,
    ) -> Tensor:
        """Ask about the block z in its place among the positions from read[0] to read[1]."""
        whole = self.text[rows, read[0] : read[1]]
        block = slice(self.start - read[0], self.stop - read[0])
        whole[:, block] = z
        told: dict[str, Any] = {**cond, **self._told(self.frozen[rows], *read)}
        if self.facts.time_conditioned and not self.causal:
            t = self._level(z, rows)
        if cache is None:
            del told["positions"]
            if self.causal and self.facts.time_conditioned:  # finished text is told that it is clean
                t = per_position(t).expand(z.shape)
                t = torch.cat([t.new_zeros(len(z), block.start), t], dim=1)
        else:
            told |= {"cache": cache, "store": True} if store else {"cache": cache}
        place, width = torch.zeros_like(whole, dtype=torch.bool), z.shape[1]
        place[:, block] = True if where is None else where[:, :width]
        kept = 0 if cache is None or store else self.text.shape[1] if self.keep == "dual" else read[1]
        kept = max(0, kept - whole.shape[1])
        if where is not None and where.shape[1] > width:
            assert self.facts.mask_id is not None
            free = ~self.frozen[rows, self.start : self.stop]
            whole, told = shadowed(whole, free, self.facts.mask_id, told, block, read[0], kept)
            place = torch.cat([place, where[:, width:]], 1)
        passed = whole.numel(), len(z) * kept
        if store:  # every part of a denoiser made of several keeps what it will need later
            cost.count(self.facts.forwards, rows.tolist(), *passed)
        else:
            cost.call(self.denoiser, t, rows.tolist(), *passed)
        with Clock(cost, "model"):
            out = speak(self.denoiser, whole, t, place, told or None)
        return out if where is not None else out.unflatten(0, z.shape)

    def _level(self, z: Tensor, rows: Tensor) -> Tensor:
        """The time at which as many of a row's free positions are masked as are with z (n, W) in its place, (n,).

        The block's own runs from 1 to 0, whatever is written before it and masked behind it.
        """
        assert absorbing(self.process)
        whole, free = self.text[rows], ~self.frozen[rows]
        whole[:, self.start : self.stop] = z
        share = ((whole == self.process.mask_id) & free).sum(1).double() / free.sum(1).clamp_min(1)
        return self.process.schedule.inverse(1 - share)

    def around(self, z: Tensor) -> Tensor:
        """The canvas with the block z (B, W) in its place, (B, L)."""
        whole = self.text.clone()
        whole[:, self.start : self.stop] = z
        return whole

    def only(self, rows: Tensor) -> "Window":
        """The same for the rows of these numbers."""
        cache = None if self.cache is None else self._rows(self.cache, rows)
        return replace(self, text=self.text[rows], frozen=self.frozen[rows], cache=cache)

    def _rows(self, cache: Cache, rows: Tensor) -> Cache:
        """What is kept of some rows; itself if they are all."""
        if len(rows) == len(self.text) and bool((rows[1:] > rows[:-1]).all()):
            return cache
        return cache.map(lambda k: k[rows])

    def _told(self, frozen: Tensor, start: int, stop: int) -> dict[str, Any]:
        told: dict[str, Any] = {"positions": torch.arange(start, stop, device=self.text.device)}
        if self.denoiser.facts.given:
            told["given"] = frozen[:, start:stop]
        return told


def _together(said: list[Tensor], parts: list[Tensor], where: Tensor | None, z: Tensor) -> Tensor:
    """The answers for two sets of rows in the order of the rows they came from."""
    if where is None:
        out = said[0].new_empty(*z.shape, said[0].shape[-1])
        for rows, one in zip(parts, said, strict=True):
            out[rows] = one
        return out
    row = where.nonzero()[:, 0]
    out = said[0].new_empty(len(row), said[0].shape[-1])
    for rows, one in zip(parts, said, strict=True):
        out[torch.isin(row, rows)] = one
    return out
