"""One token at a time with a key-value cache: the baseline that parallel decoding has to beat, and FLOPs of either.

The loop of ``redraft.sample`` reads a causal model's whole canvas anew for every token. A decoder that is served keeps
keys and values of what stands before and reads one position a token: what it writes is the same law, and it is written
here so that its cost is measured.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from redraft.models import Transformer
from redraft.models.layers import Cache
from redraft.randomness import rand, row_generators

_ATTENTION: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@torch.inference_mode()
def write(denoiser: Transformer, length: int, num: int, seed: int) -> Tensor:
    """``num`` texts of ``length`` tokens by a causal ``denoiser``, left to right, (num, length).

    Errors: ``ValueError`` for a denoiser that is not causal.
    """
    if denoiser.facts.attention != "causal":
        raise ValueError(f"attention={denoiser.facts.attention!r}: a cache of single tokens needs a causal denoiser")
    start = denoiser.facts.mask_id
    assert start is not None
    generators, cache = row_generators(seed, rows=range(num)), Cache()
    tokens = torch.full((num, length + 1), start)
    for place in range(length):
        p = following(denoiser, tokens[:, place], place, cache).exp().double()
        drawn = rand((num, 1), generators).double() * p.sum(1, keepdim=True)
        tokens[:, place + 1] = torch.searchsorted(p.cumsum(1), drawn).squeeze(1).clamp_max(p.shape[1] - 1)
    return tokens[:, 1:]


def following(denoiser: Transformer, previous: Tensor, place: int, cache: Cache) -> Tensor:
    """log p (B, K) of the token at ``place``, which ``previous`` (B,) precedes; ``cache`` holds what stands before."""
    weights = denoiser.head.weight
    told: dict[str, Any] = {
        "mixture": (previous[:, None, None], torch.ones(len(previous), 1, 1, device=weights.device)),
        "positions": torch.tensor([place], device=weights.device),
        "attend": torch.ones(1, place + 1, dtype=torch.bool, device=weights.device),
        "cache": cache,
        "store": True,
    }
    return denoiser(previous[:, None], torch.zeros(len(previous), device=weights.device), told)[:, 0]


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and the attention in ``work()``, as they were run."""
    with FlopCounterMode(display=False, custom_mapping={_ATTENTION: _attention}) as counter:
        work()
    return counter.get_total_flops()


def _attention(query: Any, key: Any, *_: Any, **__: Any) -> int:
    """q k^T and what it weighs: 4 B H L M D; masked pairs are computed too."""
    B, H, L, D = query
    return 4 * B * H * L * key[2] * D
