"""What a request does to the model's law before any sampler sees it: tokens ruled out, repeated ones made unlikely."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.processes import Process


@dataclass(frozen=True)
class Law:
    """``banned`` (n,) ids are never written; ``stop`` (an id) not before ``earliest`` (B,), a position of the canvas.

    ``repetition`` above 1 makes tokens that stand elsewhere on the canvas less likely: their log p is multiplied by it
    (CTRL, Keskar et al. 2019, divides logits; log p is never positive, and needs no cases). ``start`` is where the positions
    asked about begin on the canvas, ``beside`` (B, M) the rest of it, whose tokens count as repeated too.
    """

    banned: Tensor | None = None
    stop: int | None = None
    earliest: Tensor | None = None
    repetition: float = 1.0
    start: int = 0
    beside: Tensor | None = None

    def rows(self, rows: Tensor) -> "Law":
        """The same for rows of these numbers."""
        earliest = None if self.earliest is None else self.earliest[rows]
        beside = None if self.beside is None else self.beside[rows]
        return replace(self, earliest=earliest, beside=beside)

    def within(self, start: int, beside: Tensor) -> "Law":
        """The same for a part of the canvas that begins at ``start``, ``beside`` which this stands."""
        return replace(self, start=start, beside=beside)

    def __call__(self, logp: Tensor, z: Tensor, where: Tensor | None, mask_id: int | None) -> Tensor:
        """log p (B, L, K), or (n, K) of the positions ``where`` (B, L), as the request wants it, normalised."""
        flat = logp if where is not None else logp.flatten(0, 1)
        where = torch.ones_like(z, dtype=torch.bool) if where is None else where
        row, position = where.nonzero(as_tuple=True)
        if self.repetition != 1:
            flat = torch.where(self._repeated(z, where, mask_id, flat.shape[-1]), self.repetition * flat, flat)
        if self.banned is not None:
            flat = flat.index_fill(-1, self.banned, -torch.inf)
        if self.stop is not None and self.earliest is not None:
            early = position + self.start < self.earliest[row]
            column = torch.where(early, -torch.inf, flat[:, self.stop])
            flat = flat.index_copy(-1, torch.tensor([self.stop], device=z.device), column[:, None])
        return torch.log_softmax(flat, -1).view_as(logp)

    def _repeated(self, z: Tensor, where: Tensor, mask_id: int | None, size: int) -> Tensor:
        """Which tokens would repeat one that stands elsewhere on the row's canvas, (n, K) bool."""
        whole = z if self.beside is None else torch.cat([z, self.beside], dim=1)
        ids = whole.masked_fill(whole == mask_id, size) if mask_id is not None else whole
        count = torch.zeros(len(z), size + 1, dtype=torch.long, device=z.device)
        count = count.scatter_add(1, ids.clamp_max(size), torch.ones_like(ids))
        row, own = where.nonzero()[:, 0], ids[:, : z.shape[1]][where].clamp_max(size)[:, None]
        repeated = count[row] > 0  # but a token is no repetition of itself
        return repeated.scatter(1, own, count[row].gather(1, own) > 1)[:, :size]


def law(
    process: Process,
    frozen: Tensor,
    *,
    banned: Sequence[int] = (),
    repetition: float = 1.0,
    min_length: int = 0,
    stop: int | None = None,
) -> Law | None:
    """What is asked of the law of a canvas whose given tokens are ``frozen`` (B, L); None if nothing is.

    ``min_length`` counts from the first free position of a row. Errors: ``ValueError`` for ids that are no tokens or
    all of them, a repetition that is not above 0, a minimum length without a ``stop`` token or beyond what is free.
    """
    for name, ids in (("banned", banned), ("stop", () if stop is None else (stop,))):
        wrong = [one for one in ids if not 0 <= one < process.K or one == process.mask_id]
        if wrong:
            raise ValueError(f"{name} holds {wrong[0]}, which is no token: ids run from 0 to {process.K - 1}")
    if len(set(banned)) >= process.K - (process.mask_id is not None and process.mask_id < process.K):
        raise ValueError(f"banned holds all {process.K} tokens: leave one that can be written")
    if not repetition > 0:
        raise ValueError(f"repetition={repetition}: pass a number above 0; 1 changes nothing, more avoids repeats")
    if min_length < 0 or (min_length and stop is None):
        raise ValueError(
            f"min_length={min_length} with stop={stop}: pass a number from 0, and the token that would end a text"
        )
    free = ~frozen
    room = int(free.sum(1).min())
    if min_length > room:
        raise ValueError(f"min_length={min_length}, and a row has {room} free positions: ask for less")
    if not banned and repetition == 1 and not min_length:
        return None
    ids = torch.tensor(sorted(set(banned)), device=frozen.device) if banned else None
    earliest = free.int().argmax(1) + min_length if min_length else None
    return Law(ids, stop, earliest, repetition)
