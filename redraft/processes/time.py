"""Drawing u ~ U(0, 1), which decides t: a pure function of (key, position in the global batch, its size).

The global batch is the one a step sees whatever the number of processes or of accumulated parts, so each of them
computes the times of its own positions and all agree.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.randomness import generator, rand, row_generators


def stratified(keys: Sequence[int], positions: Sequence[int], total: int) -> Tensor:
    """u_j = (U + j / total) mod 1 with one shared U ~ U(0, 1) (VDM, MD4): each is uniform, together they are even."""
    shift = torch.rand((), generator=generator(*keys), dtype=torch.float64)
    return (shift + torch.tensor(positions, dtype=torch.float64) / total) % 1


def independent(keys: Sequence[int], positions: Sequence[int], total: int) -> Tensor:
    """u_j ~ U(0, 1), independent."""
    return rand((len(positions),), row_generators(*keys, rows=positions))


DRAWS = {"stratified": stratified, "uniform": independent}


def draw(name: str, keys: Sequence[int], positions: Sequence[int], total: int) -> Tensor:
    """u in [0, 1), float64, (len(positions),), for ``positions`` of a global batch of ``total`` rows.

    ``name`` is ``stratified`` or ``uniform``; ``keys`` (seed, step, ...) decide the draw.
    """
    if name not in DRAWS:
        raise unknown("way to draw times", name, DRAWS)
    return DRAWS[name](keys, positions, total)
