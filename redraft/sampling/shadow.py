"""A shadow of the canvas: a mask beside every position, that reads the text as if the token there were not written.

A query's ``where`` (B, 2 W) asks about the shadow of z (B, W) with its second half. Nothing else reads a shadow, so
that what is said of the canvas stays what it was (WINO, ``sampling.wino``).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def shadowed(
    z: Tensor, free: Tensor, mask_id: int, told: Mapping[str, Any], block: slice, first: int = 0, before: int = 0
) -> tuple[Tensor, dict[str, Any]]:
    """z (n, M) followed by the W masks that are the shadow of its positions ``block``, and what is told of both.

    Positions of z read z; position j of the shadow stands where j does, and reads all of z but j, and the shadow of the
    ``free`` positions (n, W). z begins at position ``first`` and is read after ``before`` others, kept in a cache.
    """
    rows, length = z.shape
    own = torch.arange(block.start, block.stop, device=z.device)
    width = len(own)
    place = torch.arange(length, device=z.device)
    attend = torch.ones(rows, length + width, before + length + width, dtype=torch.bool, device=z.device)
    attend[:, :length, before + length :] = False
    attend[:, length:, before + length :] = free[:, None]
    attend[:, length + own - block.start, before + own] = False
    attend[:, length + own - block.start, before + length + own - block.start] = True
    cond: dict[str, Any] = {**told, "positions": first + torch.cat([place, own]), "attend": attend}
    if "given" in told:
        cond["given"] = torch.cat([told["given"], torch.zeros_like(free)], 1)
    return torch.cat([z, torch.full_like(free, mask_id, dtype=z.dtype)], 1), cond
