"""What comes out of the loop: what a callback sees after each step, and the texts with what they cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from redraft.processes.base import log_prob_of
from redraft.sampling.cost import Cost


@dataclass(frozen=True)
class Step:
    """What a callback sees after a step from t to s: ``z`` now, and ``tokens`` (B, L) to show (ids, masks included).

    ``frozen`` (B, L) marks the given tokens; ``nfe`` counts denoiser calls so far; ``rows`` are the numbers of these
    rows among all that ``sample`` draws, which draws those of one shape together; ``over`` (B,) bool says which of them
    were finished before the step, and have gone through it unchanged. Positions from ``start`` to ``stop`` (L if None)
    are those at work, a block perhaps; ``offset`` is where the canvas begins in its text, a window of a longer one.
    """

    index: int
    steps: int
    t: float
    s: float
    z: Tensor
    tokens: Tensor
    frozen: Tensor
    nfe: int
    rows: list[int] = field(default_factory=list[int])
    start: int = 0
    _said: tuple[Tensor, Tensor | None] | None = field(default=None, repr=False)
    over: Tensor | None = None
    stop: int | None = None
    offset: int = 0

    @property
    def confidence(self) -> Tensor:
        """p of the tokens that stand now, by what was said of the canvas before the step; nan where nothing was said of
        a position, or a mask stands there. (B, L) float."""
        where, logp = self.law
        ids = self.tokens[where]
        inside = ids < logp.shape[-1]
        p = log_prob_of(ids.clamp_max(logp.shape[-1] - 1), logp).exp().float()
        return self._spread(where, torch.where(inside, p, torch.nan))

    @property
    def entropy(self) -> Tensor:
        """Entropy of what was said of each position before the step, nats; nan where nothing was. (B, L) float."""
        where, logp = self.law
        return self._spread(where, torch.special.entr(logp.exp()).sum(-1).float())

    @property
    def law(self) -> tuple[Tensor, Tensor]:
        """What the denoiser last said: of the positions where (B, L) bool, log p (n, K) in their row-major order, as
        the reverse kernel wants it (``Facts.posterior``: the cavity), before temperature and cuts."""
        where = torch.zeros_like(self.frozen)
        if self._said is None:
            return where, torch.zeros(0, 1, device=self.frozen.device)
        logp, asked = self._said
        width = logp.shape[1] if asked is None else asked.shape[1]
        where[:, self.start : self.start + width] = True if asked is None else asked
        return where, logp.flatten(0, 1) if asked is None else logp

    def _spread(self, where: Tensor, values: Tensor) -> Tensor:
        out = torch.full(where.shape, torch.nan, device=where.device)
        out[where] = values
        return out


@dataclass(frozen=True)
class Ancestors:
    """What a callback returns to go on from other rows: row r continues what row ``rows[r]`` (B,) has become."""

    rows: Tensor


@dataclass(frozen=True)
class Halt:
    """What a callback returns to end the run there: the canvas stays as it stands, or as ``z``, masks included."""

    z: Tensor | None = None


Callback = Callable[[Step], Tensor | Ancestors | Halt | None]
"""Called after every step; a returned tensor of z's shape replaces the canvas (frozen tokens are put back)."""


@dataclass(frozen=True)
class Samples:
    """``tokens`` (B, L) ids. ``nfe``: denoiser calls; ``positions``: rows times length, summed over calls; ``cost``
    has these and more. ``approximate`` if a cache was used that is not exact (``window``).

    ``seeds``: one per row; ``sample(..., seeds=[seeds[r]])`` draws row r again, alone. ``lengths``: how many of a row's
    tokens are its text, less than L behind a ``stop`` token or where rows differ in length. ``logp`` (B, L): log p of
    each token when it was last written, as the request shaped it; nan where it was given, or the sampler says nothing.
    """

    tokens: Tensor
    seeds: list[int]
    cost: Cost
    lengths: list[int]
    logp: Tensor
    approximate: bool = False

    def rows(self, rows: Tensor) -> "Samples":
        """The rows of these numbers, (n,) long; the cost stays that of all."""
        at = rows.tolist()
        seeds, lengths = [self.seeds[row] for row in at], [self.lengths[row] for row in at]
        return replace(self, tokens=self.tokens[rows], logp=self.logp[rows], seeds=seeds, lengths=lengths)

    @property
    def nfe(self) -> int:
        return self.cost.nfe

    @property
    def positions(self) -> int:
        return self.cost.positions


def cut(samples: Samples, widths: Sequence[int], fill: int = 0) -> Samples:
    """Rows shortened to these widths, one each; what they cost stays what it was."""
    most = max(widths)
    tokens, logp = samples.tokens[:, :most], samples.logp[:, :most]
    behind = torch.arange(tokens.shape[1], device=tokens.device) >= torch.tensor(widths, device=tokens.device)[:, None]
    lengths = [min(pair) for pair in zip(samples.lengths, widths, strict=True)]
    tokens, logp = tokens.masked_fill(behind, fill), logp.masked_fill(behind, torch.nan)
    return replace(samples, tokens=tokens, logp=logp, lengths=lengths)


def joined(parts: Sequence[Samples], rows: Sequence[Sequence[int]] | None = None, fill: int = 0) -> Samples:
    """Samples drawn apart as one: ``rows`` are their numbers in it, one after the other unless given.

    Shorter rows are followed by ``fill``. Every call counts, whatever was called side by side.
    """
    if len(parts) == 1:
        return parts[0]
    if rows is None:
        ends = list(accumulate((len(part.seeds) for part in parts), initial=0))
        rows = [range(start, stop) for start, stop in pairwise(ends)]
    first, total = parts[0].tokens, sum(len(part.seeds) for part in parts)
    shape = total, max(part.tokens.shape[1] for part in parts)
    tokens, seeds, lengths = first.new_full(shape, fill), [0] * total, [0] * total
    logp = torch.full(shape, torch.nan, dtype=torch.float64, device=first.device)
    cost = Cost(of_rows=[0] * total)
    for numbers, part in zip(rows, parts, strict=True):
        at, width = list(numbers), part.tokens.shape[1]
        cost.add(part.cost, at)
        tokens[at, :width], logp[at, :width] = part.tokens, part.logp
        for row, seed, length in zip(at, part.seeds, part.lengths, strict=True):
            seeds[row], lengths[row] = seed, length
    return Samples(tokens, seeds, cost, lengths, logp, any(part.approximate for part in parts))
