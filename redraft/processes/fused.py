"""Sums over the vocabulary that keep no tensor of its size but log p itself, and its gradient once that is asked for.

Plain autograd would keep every step between log p and a sum, (B, L, K) each: several times the memory of a training
step, most of which is log p already when K is 50,000. Here both directions work through a few rows at a time.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK = {"cpu": 1 << 18}
_CHUNK_ELSEWHERE = 1 << 25
"""Numbers worked on at once: on a CPU what its cache holds, elsewhere what keeps the device busy."""


def shares(logp: Tensor, ratio: Tensor, x0: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sum_j log(1 + ratio p_j) over the vocabulary, log p(x0) and log p(z): all that a NELBO among tokens needs of p.

    logp (B, L, K), ratio broadcasting to (B, L), ids x0 and z (B, L) -> three times (B, L) float64. ``ratio`` gets no
    gradient. The three share one gradient of log p, where three gathers would fill one each.
    """
    return _Shares.apply(logp, ratio.to(logp).expand(x0.shape), x0, z)  # pyright: ignore[reportReturnType]


def kl(logp: Tensor, target: Tensor) -> Tensor:
    """KL(p || target) = sum_j p_j (log p_j - log target_j), (..., K) twice -> (...); the target gets no gradient.

    Where p is 0 it adds nothing, whatever the target.
    """
    return _KL.apply(logp, target)  # pyright: ignore[reportReturnType]


def at_once(like: Tensor) -> Iterator[slice]:
    """Slices of the rows of a (N, K) tensor, as many at a time as may be worked on at once."""
    step = max(1, _CHUNK.get(like.device.type, _CHUNK_ELSEWHERE) // like.shape[-1])
    return (slice(first, first + step) for first in range(0, len(like), step))


class _Shares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logp: Tensor, ratio: Tensor, x0: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(logp, ratio, x0, z)
        rows, scale = logp.flatten(0, -2), ratio.reshape(-1, 1)
        total = rows.new_empty(len(rows), dtype=torch.float64)
        for part in at_once(rows):
            total[part] = rows[part].exp().mul_(scale[part]).log1p_().sum(-1)
        at_x0, at_z = (logp.gather(-1, ids[..., None])[..., 0].double() for ids in (x0, z))
        return total.view(x0.shape), at_x0, at_z

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator hides its keywords
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        logp, ratio, x0, z = ctx.saved_tensors
        of_total, of_x0, of_z = (grad.to(logp) for grad in grads)
        out = torch.empty_like(logp, memory_format=torch.contiguous_format)
        rows, filled = logp.flatten(0, -2), out.flatten(0, -2)
        scale, weight = ratio.reshape(-1, 1), of_total.reshape(-1, 1)
        for part in at_once(rows):
            odds = torch.exp(rows[part], out=filled[part]).mul_(scale[part])
            odds.div_(odds + 1).mul_(weight[part])
        for ids, grad in ((x0, of_x0), (z, of_z)):
            out.scatter_add_(-1, ids[..., None], grad[..., None])
        return out, None, None, None


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logp: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logp, target)
        rows, aims = logp.flatten(0, -2), target.flatten(0, -2)
        total = rows.new_empty(len(rows))
        for part in at_once(rows):
            p = rows[part].exp()
            total[part] = torch.where(p > 0, p * (rows[part] - aims[part]), 0.0).sum(-1)
        return total.view(logp.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator hides its keywords
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        logp, target = ctx.saved_tensors
        rows, aims, weight = logp.flatten(0, -2), target.flatten(0, -2), grads[0].reshape(-1, 1)
        out = torch.empty_like(logp, memory_format=torch.contiguous_format)
        filled = out.flatten(0, -2)
        for part in at_once(rows):
            p = rows[part].exp()
            filled[part] = torch.where(p > 0, p * (rows[part] - aims[part] + 1), 0.0).mul_(weight[part])
        return out, None
