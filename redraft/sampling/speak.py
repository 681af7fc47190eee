"""Asking a denoiser, so that what it says of a row is the same to the last bit alone as beside others."""

from typing import Any

import torch
from torch import Tensor

from redraft.models.layers import LEAST, Cache
from redraft.processes import Denoiser
from redraft.processes.base import as_condition, of_rows


def speak(denoiser: Denoiser, z: Tensor, t: Tensor, where: Tensor | None, cond: Any) -> Tensor:
    """log p (B, L, K), or (n, K) of the positions ``where`` (B, L), of any denoiser.

    Asked about few positions, it is asked about ``LEAST`` at least, and about a canvas of fewer several times over:
    what was not wanted is left out of the answer.
    """
    if where is None:
        return denoiser(z, t, cond)
    if z.shape[0] * z.shape[1] < LEAST and (cond is None or isinstance(cond, dict)):
        return _over_again(denoiser, z, t, where, cond)
    if not denoiser.facts.selective:
        return denoiser(z, t, cond)[where]
    count = int(where.sum())
    if not 0 < count < LEAST:
        return denoiser(z, t, cond, where=where)  # pyright: ignore[reportCallIssue]
    wide = where.clone()
    others = (~where).flatten().nonzero().squeeze(1)[: LEAST - count]
    wide.view(-1)[others] = True
    return denoiser(z, t, cond, where=wide)[where[wide]]  # pyright: ignore[reportCallIssue]


def _over_again(denoiser: Denoiser, z: Tensor, t: Tensor, where: Tensor, cond: Any) -> Tensor:
    """As ``speak``, with every row asked about so often that there are enough of them."""
    rows, copies = len(z), -(-LEAST // max(1, z.shape[0] * z.shape[1]))
    many = torch.arange(rows, device=z.device).repeat(copies)
    told: dict[str, Any] | None = None if cond is None else {**of_rows(as_condition(cond), many)}
    cache: Cache | None = None if told is None else told.get("cache")
    copy = Cache() if cache is None else cache.map(lambda k: k[many])
    if told is not None and cache is not None:
        told["cache"] = copy
    out = speak(denoiser, z[many], t[many], where[many], told)
    if cache is not None:
        cache.become(copy.map(lambda k: k[:rows]))
    return out[: int(where.sum())]
