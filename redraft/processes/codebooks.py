"""Codebooks for Gaussian noise: the clean vector of every token, one row each, (K, D) float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.randomness import Generators, randn

SHORTEST = 1e-6
"""A row shorter than this share of the mean is none."""


def unit_vectors(K: int, dim: int, generator: Generators = None) -> Tensor:
    """K random vectors of norm 1, (K, dim): at right angles to one another if there is room for that."""
    drawn = randn((K, dim), generator)
    rows = torch.linalg.qr(drawn.T).Q.T if dim >= K else F.normalize(drawn, dim=-1)
    return rows.float().contiguous()


def filled(table: Tensor, generator: Generators = None) -> Tensor:
    """``table`` (K, D) with a random vector of norm 1 for each row that has no direction, such as that of padding.

    Rows that are read divided by their norms need one: the gradient of x / |x| grows as 1 / |x|.
    """
    empty = table.norm(dim=-1) < SHORTEST * table.norm(dim=-1).mean()
    rows = unit_vectors(int(empty.sum()), table.shape[1], generator)
    return table.index_put((empty,), rows.to(table))


def bits(K: int) -> Tensor:
    """Analog bits (Chen et al. 2022, arXiv 2208.04202): the binary digits of the token's id as -1 and 1, (K, D).

    D = ceil(log2 K) digits, the most significant first. Codes from K to 2^D - 1 belong to no token, and none is ever
    named by one: rounding knows the K rows alone (``Gaussian.rounding``), where the paper reads off signs.

    >>> bits(3).tolist()
    [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]]
    """
    digits = torch.arange(max((K - 1).bit_length(), 1)).flip(0)
    return ((torch.arange(K)[:, None] >> digits) % 2 * 2 - 1).float()
