"""What a request does to the model's law before any sampler sees it: tokens ruled out, repeated ones made unlikely."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.processes import Process, only_masks


@dataclass(frozen=True)
class Law:
    """``banned`` (n,) ids are never written; ``stop`` (an id) not before ``earliest`` (B,), a position of the canvas.
    ``bias``: ids (m,) and the nats (m,) that are added to their log p before it is normalised again.

    ``repetition`` above 1 divides the probability of tokens that stand elsewhere on the canvas (CTRL, Keskar et al.
    2019, divides logits, whose zero is arbitrary; a power of p would favour what repeats once all tokens stand).
    ``start`` is where the positions asked about begin on the canvas, ``beside`` (B, M) the rest of it, whose tokens
    count as repeated too. Where a model gives all that is left probability 0, what is left is as likely as the rest.
    """

    banned: Tensor | None = None
    stop: int | None = None
    earliest: Tensor | None = None
    repetition: float = 1.0
    start: int = 0
    beside: Tensor | None = None
    bias: tuple[Tensor, Tensor] | None = None

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
            repeated = self._repeated(z, where, mask_id, flat.shape[-1])
            flat = torch.where(repeated, flat - math.log(self.repetition), flat)
        if self.bias is not None:
            flat = flat.index_add(-1, self.bias[0], self.bias[1].to(flat).expand(len(flat), -1))
        early = None if self.earliest is None else position + self.start < self.earliest[row]
        flat = self._ruled(flat, early)
        if early is not None or self.banned is not None:
            nothing = torch.isneginf(flat).all(-1)
            if bool(nothing.any()):
                left = self._ruled(torch.zeros_like(flat[nothing]), None if early is None else early[nothing])
                if mask_id is not None and mask_id < left.shape[-1]:
                    left[:, mask_id] = -torch.inf
                flat = flat.index_copy(0, nothing.nonzero().squeeze(1), left)
        return torch.log_softmax(flat, -1).view_as(logp)

    def _ruled(self, flat: Tensor, early: Tensor | None) -> Tensor:
        """log p (n, K) without what may not be written; ``early`` (n,) says where the end may not."""
        if self.banned is not None:
            flat = flat.index_fill(-1, self.banned, -torch.inf)
        if early is None:
            return flat
        assert self.stop is not None
        column = torch.where(early, -torch.inf, flat[:, self.stop])
        return flat.index_copy(-1, torch.tensor([self.stop], device=flat.device), column[:, None])

    def _repeated(self, z: Tensor, where: Tensor, mask_id: int | None, size: int) -> Tensor:
        """Which tokens would repeat one that stands elsewhere on the row's canvas, (n, K) bool."""
        whole = z if self.beside is None else torch.cat([z, self.beside], dim=1)
        ids = whole.masked_fill(whole == mask_id, size) if mask_id is not None else whole
        count = torch.zeros(len(z), size + 1, dtype=torch.long, device=z.device)
        count = count.scatter_add(1, ids.clamp_max(size), torch.ones_like(ids))
        row, own = where.nonzero()[:, 0], ids[:, : z.shape[1]][where].clamp_max(size)
        repeated = (count > 0)[row]  # but a token is no repetition of itself
        return repeated.scatter(1, own[:, None], (count[row, own] > 1)[:, None])[:, :size]


def law(
    process: Process,
    frozen: Tensor,
    *,
    banned: Sequence[int] = (),
    bias: Mapping[int, float] | None = None,
    repetition: float = 1.0,
    min_length: int = 0,
    stop: int | None = None,
) -> Law | None:
    """What is asked of the law of a canvas whose given tokens are ``frozen`` (B, L); None if nothing is.

    ``min_length`` counts from the first free position of a row. Errors: ``ValueError`` for ids that are no tokens or
    all of them, a repetition that is not above 0, a minimum length without a ``stop`` token or beyond what is free, and
    anything of a process of vectors.
    """
    bias = bias or {}
    for name, ids in (("banned", banned), ("bias", bias), ("stop", () if stop is None else (stop,))):
        checked_ids(process, name, ids)
    for token, nats in bias.items():
        if not math.isfinite(nats):
            raise ValueError(f"bias of token {token} is {nats}: pass nats; what is never to be written goes to banned")
    out = {*banned, *([] if stop is None or not min_length else [stop])}
    if len(out) >= process.K - (process.mask_id is not None and process.mask_id < process.K):
        raise ValueError(f"banned holds all {process.K} tokens: leave one that can be written, not the end alone")
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
    said = {"banned": list(banned), "bias": dict(bias), "repetition": repetition, "min_length": min_length}
    idle = ([], {}, 1, 0)
    asked = {name: value for (name, value), none in zip(said.items(), idle, strict=True) if value != none}
    if not asked:
        return None
    if process.vectors:
        raise ValueError(f"{asked} of a {process.name} process, which names tokens at its end only: leave them out")
    if repetition != 1 and not only_masks(process):
        raise ValueError(f"repetition={repetition} of a {process.name} process, whose noise repeats too: leave it out")
    ids = torch.tensor(sorted(set(banned)), device=frozen.device) if banned else None
    earliest = free.int().argmax(1) + min_length if min_length else None
    pairs = None
    if bias:
        nats = torch.tensor(list(bias.values()), dtype=torch.float64, device=frozen.device)
        pairs = torch.tensor(list(bias), device=frozen.device), nats
    return Law(ids, stop, earliest, repetition, bias=pairs)


def checked_ids(process: Process, name: str, ids: Iterable[int]) -> tuple[int, ...]:
    """``ids`` that an option of this name was given. Errors: ``ValueError`` for one that is no token."""
    found = tuple(ids)
    for one in found:
        if not 0 <= one < process.K or one == process.mask_id:
            raise ValueError(f"{name} holds {one}, which is no token: ids run from 0 to {process.K - 1}")
    return found
