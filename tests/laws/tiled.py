"""Many short texts side by side in one row: real draws of ``sample`` by the ten thousand, at the price of a few rows.

And ``drawing``, a process all of whose draws ``exhaust`` can enumerate, so that ``sample`` itself is run to its law.
"""

import copy

import torch
from torch import Tensor

from redraft import randomness


class Tiled:
    """The denoiser of texts of ``length`` positions as one of rows that hold n of them, independent of one another."""

    def __init__(self, inner, length: int) -> None:
        self.inner, self.length, self.facts = inner, length, inner.facts

    def __call__(self, z: Tensor, t: Tensor, cond: object = None) -> Tensor:
        t = t if t.dim() == 2 else t[:, None].expand(z.shape[:2])
        flat = self.inner(z.reshape(-1, self.length, *z.shape[2:]), t.reshape(-1, self.length), cond)
        return flat.reshape(*z.shape[:2], -1)


def tile(texts: Tensor, rows: int) -> Tensor:
    """(n, L) as (rows, n L / rows)."""
    return texts.reshape(rows, -1)


def drawing(process):
    """The same process over ids, which draws noise and prior by ``categorical`` from its own ``marginal``."""
    process = copy.copy(process)

    def law(x0: Tensor, t: Tensor) -> Tensor:
        p0 = torch.nn.functional.one_hot(x0, process.K).double()
        return process.marginal(p0, t)

    def corrupt(x0: Tensor, t: Tensor, generator=None) -> Tensor:
        return randomness.categorical(law(x0, t), generator)

    def prior(shape, generator=None, device=None) -> Tensor:
        # any clean token will do: at t = 1 nothing is left of it
        x0 = torch.full(shape, 1 if process.mask_id == 0 else 0)
        return randomness.categorical(law(x0, torch.ones(shape[0], dtype=torch.float64)), generator)

    process.corrupt, process.prior = corrupt, prior
    return process
