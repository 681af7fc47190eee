"""Asking a masked denoiser about many texts at once: what is equal is asked once, texts of one length together.

No text is padded, and what is said of one does not depend on those beside it, to the last bit (``sampling.speak``): so
nothing here depends on how many are asked at a time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from redraft.evaluation.answers import NUMBERS_AT_ONCE, hear
from redraft.processes import Categorical, Denoiser
from redraft.sampling.contract import clean
from redraft.sampling.doubt import POSITIONS_AT_ONCE
from redraft.sampling.speak import speak

ON_THE_CPU = 2048
"""Positions in a forward on a CPU: with twice as many a small network's no longer fit its caches, a quarter slower."""
POOLED = 8
"""Batches gathered before the first is asked, so that few are not full."""


@dataclass
class Spent:
    """``forwards`` of the network, each of a batch; ``texts`` and ``positions`` in them, counted each time."""

    forwards: int = 0
    texts: int = 0
    positions: int = 0

    def count(self, forwards: int, texts: int, positions: int) -> None:
        self.forwards += forwards
        self.texts += forwards * texts
        self.positions += forwards * positions


@dataclass
class Job:
    """Texts (Q, L) of one prompt's length ``given``, of whose positions from ``start`` on some are hidden.

    A row hides ``hidden`` (P, n) bool of the text ``of`` (P,), n = L - start. Once asked, ``logp`` (P, n) float64 has
    log p of the tokens hidden, 0 elsewhere; ``best`` (P,) the position to be written first, of which the network is
    surest (of a causal one the leftmost); ``right`` (P, n) where its likeliest token is the text's. With ``clear``
    nothing is masked: for those who do not look ahead.
    """

    ids: Tensor
    given: int
    start: int
    of: Tensor
    hidden: Tensor
    clear: bool = False
    logp: Tensor = field(init=False)
    best: Tensor = field(init=False)
    right: Tensor = field(init=False)
    rows: Tensor = field(init=False)  # of each canvas one row that asks for it
    canvas: Tensor = field(init=False)  # the canvas of each row

    def __post_init__(self) -> None:
        behind = self.ids[self.of][:, self.given :].clone()
        if not self.clear:
            behind[:, self.start - self.given :].masked_fill_(self.hidden, -1)
        kinds, self.canvas = behind.unique(dim=0, return_inverse=True)
        self.rows = torch.empty(len(kinds), dtype=torch.long)
        self.rows[self.canvas] = torch.arange(len(self.of))
        self.logp = torch.zeros(self.hidden.shape, dtype=torch.float64)
        self.best, self.right = torch.zeros(len(self.of), dtype=torch.long), torch.zeros_like(self.hidden)

    def canvases(self) -> tuple[Tensor, Tensor]:
        """Texts (U, L), and what of them is hidden."""
        ids = self.ids[self.of[self.rows]]
        where = torch.zeros_like(ids, dtype=torch.bool)
        where[:, self.start :] = self.hidden[self.rows]
        return ids, where

    def take(self, first: int, place: Tensor, logp: Tensor, sure: Tensor, likeliest: Tensor) -> None:
        """What was said of the canvases from ``first`` on: ``place`` (U, L) is where in log p (m, K) each position is.

        ``sure`` (m,): how soon each is written, the largest first; ``likeliest`` (m,): its likeliest token.
        """
        mine = ((self.canvas >= first) & (self.canvas < first + len(place))).nonzero().squeeze(1)
        at, hidden = place[self.canvas[mine] - first][:, self.start :], self.hidden[mine]
        targets = self.ids[self.of[mine]][:, self.start :]
        self.logp[mine] = logp[at, targets].double().masked_fill(~hidden, 0.0)
        self.right[mine] = (likeliest[at] == targets) & hidden
        self.best[mine] = sure[at].masked_fill(~hidden, -torch.inf).argmax(1)


@dataclass
class Asker:
    """A process and its denoiser, asked about ``batch`` texts at a time, or as many as memory is planned for."""

    process: Categorical
    denoiser: Denoiser
    device: torch.device
    batch: int | None = None
    spent: Spent = field(default_factory=Spent)

    @property
    def at_once(self) -> bool:
        """Whether one look at the whole text says what each token is, given those before it."""
        facts = self.denoiser.facts
        return facts.attention == "causal" and not facts.time_conditioned

    def __call__(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """The same jobs, answered; those of one length are best next to each other."""
        pool, texts = list[Job](), 0
        for job in jobs:
            if pool and pool[0].ids.shape[1] != job.ids.shape[1]:
                yield from self._answered(pool)
                pool, texts = [], 0
            pool.append(job)
            texts += len(job.rows)
            if texts >= POOLED * self._most(pool):
                yield from self._answered(pool)
                pool, texts = [], 0
        yield from self._answered(pool)

    def _most(self, pool: list[Job]) -> int:
        """How many texts to ask about at a time."""
        room = ON_THE_CPU if self.device.type == "cpu" else POSITIONS_AT_ONCE
        most = max(1, room // pool[0].ids.shape[1]) if self.batch is None else self.batch
        widest = max(job.hidden.shape[1] for job in pool)
        return min(most, max(1, NUMBERS_AT_ONCE // (self.process.K * widest)))

    def _answered(self, pool: list[Job]) -> list[Job]:
        """Ask about all canvases of a pool, some at a time."""
        if not pool:
            return pool
        made = [job.canvases() for job in pool]
        ids, where = (torch.cat(both) for both in zip(*made, strict=True))
        start, given = (
            torch.tensor([value for job in pool for value in [getattr(job, name)] * len(job.rows)])
            for name in ("start", "given")
        )
        most, place = self._most(pool), torch.arange(ids.shape[1])
        ends = list(accumulate((len(job.rows) for job in pool), initial=0))
        for first in range(0, len(ids), most):
            part = slice(first, first + most)
            said = self._said(ids[part], where[part], start[part], place < given[part][:, None])
            at = (where[part].flatten().cumsum(0) - 1).view(where[part].shape)
            for job, (begin, end) in zip(pool, pairwise(ends), strict=True):
                if begin < first + most and first < end:
                    job.take(max(first - begin, 0), at[max(begin - first, 0) : end - first], *said)
        return pool

    def _said(self, ids: Tensor, where: Tensor, start: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p (n, K) of what is hidden, how soon it is written, its likeliest token; on the CPU."""
        here = [one.to(self.device) for one in (ids, where, start, given)]
        if self.at_once:
            t = torch.ones(len(ids), dtype=torch.float64, device=self.device)
            logp = speak(self.denoiser, here[0], t, here[1], None)
        else:
            logp = hear(self.process, self.denoiser, *here)
        self.spent.count(self.denoiser.facts.forwards, len(ids), ids.numel())
        top = clean(logp, self.process).max(-1)
        sure = top.values
        if self.denoiser.facts.attention == "causal":  # its texts are written from left to right, sure or not
            sure = -torch.arange(len(sure), device=sure.device)
        return logp.cpu(), sure.cpu().double(), top.indices.cpu()
