"""Randomness is a contract: every random draw belongs to a row, and every row to a key.

What corrupts a training sample depends on ``(seed, step, index)`` and what a generated row becomes on its own seed,
never on the batch, the number of processes or the device. Draws are made on the CPU in float64, one generator a row,
and moved to the device afterwards, so that a row's numbers are the same wherever and beside whomever it is computed.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None
Device = torch.device | str | None

DRAWS = torch.float64
"""What every draw is made in, whatever the network computes in: with it figures of samples are quoted."""
_MASK64 = (1 << 64) - 1


def _mix(value: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection of 64-bit words that scatters neighbours."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK64
    return value ^ (value >> 31)


def derive(*keys: int) -> int:
    """A 63-bit seed from a tuple of integers, the same on every platform.

    >>> derive(0, 1) != derive(1, 0)
    True
    """
    state = 0x9E3779B97F4A7C15
    for key in keys:
        state = _mix((state + 0x9E3779B97F4A7C15 + _mix(key & _MASK64)) & _MASK64)
    return state >> 1


def generator(*keys: int) -> torch.Generator:
    """A CPU generator seeded by ``derive(*keys)``."""
    return torch.Generator().manual_seed(derive(*keys))


def row_generators(*keys: int, rows: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator per row, seeded by ``derive(*keys, row)``."""
    return [generator(*keys, row) for row in rows]


def row_seeds(seed: int, seeds: Sequence[int] | None, rows: int) -> list[int]:
    """The seed of each row: ``seeds``, or ``derive(seed, row)``. Errors: ``ValueError`` for others than one a row."""
    if seeds is None:
        return [derive(seed, row) for row in range(rows)]
    if len(seeds) != rows:
        raise ValueError(f"{len(seeds)} seeds for {rows} rows: pass one per row")
    return list(seeds)


def rand(shape: Sequence[int], generators: Generators, device: Device = None) -> Tensor:
    """Uniform float64 draws on [0, 1) of ``shape``; a list of generators draws row by row."""
    return _draw(torch.rand, shape, generators, device)


def randn(shape: Sequence[int], generators: Generators, device: Device = None) -> Tensor:
    """Standard normal float64 draws of ``shape``; a list of generators draws row by row."""
    return _draw(torch.randn, shape, generators, device)


def _draw(function: Callable[..., Tensor], shape: Sequence[int], generators: Generators, device: Device) -> Tensor:
    if isinstance(generators, torch.Generator) or generators is None:
        return function(tuple(shape), generator=generators, dtype=DRAWS).to(device)
    if len(generators) != shape[0]:
        raise ValueError(f"{len(generators)} generators for {shape[0]} rows: pass one per row, or a single one")
    rows = [function(tuple(shape[1:]), generator=one, dtype=DRAWS) for one in generators]
    return torch.stack(rows).to(device)


def categorical(probs: Tensor, generators: Generators) -> Tensor:
    """Draw ids from ``probs`` of shape (B, L, V), not necessarily normalised, by float64 inverse CDF.

    A float32 Gumbel draw never sees a class below about 6e-8 of the largest (Zheng et al., arXiv 2409.02908), which
    cuts the tail whenever [MASK] dominates; a float64 cumulative sum with a float64 uniform does not.
    """
    return inverse_cdf(probs, rand(probs.shape[:-1], generators, probs.device)[..., None]).squeeze(-1)


def categorical_at(probs: Tensor, where: Tensor, generators: Generators) -> Tensor:
    """Draw ids (n,) from ``probs`` (n, V), one for each position marked in ``where`` (B, L), as ``categorical`` does.

    A number is drawn for every position, marked or not: a row's draws do not depend on those of others, nor on which
    positions were marked before.
    """
    return inverse_cdf(probs, rand(where.shape, generators, probs.device)[where][..., None]).squeeze(-1)


def inverse_cdf(probs: Tensor, u: Tensor) -> Tensor:
    """Where the cumulative sums of ``probs`` (..., V) pass the shares ``u`` (..., n) of the whole: ids (..., n)."""
    cumulative = probs.to(DRAWS).cumsum(-1)
    total = cumulative[..., -1:]
    ids = torch.searchsorted(cumulative, u * total, right=True)
    # u * total can round up to total itself: take the last class that has mass, never one beyond it
    last = torch.searchsorted(cumulative, total.contiguous())
    return torch.minimum(ids, last)
