"""The transformer's parts: sizes from one dial, a block of attention and SwiGLU, positions and times as features.

Shapes: B batch, L length, M keys, E model width, H heads. Sinusoidal and rotary positions (Su et al. 2021), RMSNorm
before each half of a block, QK-norm, SwiGLU, no dropout; t shifts and scales each half's input (adaLN, Peebles & Xie
2023, without the gates).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_FEATURES = 128
HEAD = 64
"""Width of an attention head."""


@dataclass(frozen=True)
class Widths:
    """All sizes that follow from ``depth``."""

    width: int
    heads: int
    hidden: int


def widths(depth: int) -> Widths:
    """The one dial: width = 64 depth in heads of 64, SwiGLU hidden = 8/3 width rounded up to 64.

    A block then holds about 12 width^2 weights whatever the depth (4 of attention, 8 of SwiGLU), and depth over width
    stays constant, so that depth alone walks along one line of shapes: 2 is 0.4M inner weights, 6 is 10.6M, 12 is 85M.

    Errors: ``ValueError`` for a depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth={depth}: a transformer needs at least 1 block")
    width = HEAD * depth
    return Widths(width, heads=depth, hidden=64 * math.ceil(8 * width / 3 / 64))


@dataclass
class Cache:
    """Keys and values of other positions, per block, (B, H, M, 64) each: what needs to be computed only once.

    A denoiser made of several keeps a cache for each of them in ``parts``, by names of its own.
    """

    keys: list[Tensor] = field(default_factory=list[Tensor])
    values: list[Tensor] = field(default_factory=list[Tensor])
    parts: dict[str, "Cache"] = field(default_factory=dict[str, "Cache"])

    def part(self, name: str) -> "Cache":
        """The cache of the denoiser called ``name``, empty at first."""
        return self.parts.setdefault(name, Cache())

    def map(self, change: Callable[[Tensor], Tensor]) -> "Cache":
        """The same with every tensor changed."""
        parts = {name: part.map(change) for name, part in self.parts.items()}
        return Cache([change(k) for k in self.keys], [change(v) for v in self.values], parts)

    def become(self, other: "Cache") -> None:
        """Hold what ``other`` holds."""
        self.keys, self.values = other.keys, other.values
        for name, part in other.parts.items():
            self.part(name).become(part)

    def put(self, rows: Tensor, other: "Cache") -> None:
        """Take ``other``, whose rows are those of these numbers here, in place of what was kept of them."""
        for own, new in ((self.keys, other.keys), (self.values, other.values)):
            for layer, tensor in enumerate(new):
                own[layer] = own[layer].index_copy(0, rows, tensor)
        for name, part in other.parts.items():
            self.parts[name].put(rows, part)

    def extend(self, layer: int, k: Tensor, v: Tensor, store: bool) -> tuple[Tensor, Tensor]:
        """The prefix's keys and values with these after them; kept for later if ``store``."""
        if layer < len(self.keys):
            k, v = torch.cat([self.keys[layer], k], dim=2), torch.cat([self.values[layer], v], dim=2)
            if store:
                self.keys[layer], self.values[layer] = k, v
        elif store:
            self.keys.append(k)
            self.values.append(v)
        return k, v


@dataclass(frozen=True)
class Reading:
    """How a forward pass attends: rotary angles, the pattern (True: may read), the cache of what came before."""

    rotary: tuple[Tensor, Tensor]
    attend: Tensor | None
    causal: bool
    cache: Cache | None
    store: bool


class Block(nn.Module):
    """Attention, then SwiGLU, each on the normalised stream and added back to it."""

    def __init__(self, sizes: Widths, time_conditioned: bool, layer: int) -> None:
        super().__init__()
        width = sizes.width
        self.heads, self.layer = sizes.heads, layer
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * sizes.hidden, bias=False)
        self.down = nn.Linear(sizes.hidden, width, bias=False)
        self.modulation = nn.Linear(width, 4 * width) if time_conditioned else None

    def zero_branches(self) -> None:
        for module in (self.out, self.down, self.modulation):
            if module is not None:
                nn.init.zeros_(module.weight)

    def forward(self, x: Tensor, reading: Reading, code: Tensor | None, where: Tensor | None = None) -> Tensor:
        """(B, L, E); of the positions ``where`` (B, L) bool only, (n, 1, E): nobody reads the last block's others."""
        if self.modulation is None or code is None:
            x = chosen(x + self.attend(norm(x), reading), where)
            return x + self.feed(norm(x))
        shift_a, scale_a, shift_f, scale_f = alike(self.modulation, code).chunk(4, dim=-1)
        x = chosen(x + self.attend(norm(x) * (1 + scale_a) + shift_a, reading), where)
        if where is not None:
            shift_f, scale_f = (chosen(one.expand(*where.shape, -1), where) for one in (shift_f, scale_f))
        return x + self.feed(norm(x) * (1 + scale_f) + shift_f)

    def attend(self, x: Tensor, reading: Reading) -> Tensor:
        q, k, v = split(self.qkv(x), self.heads)
        # QK-norm bounds the attention logits by the head width, which keeps large learning rates stable
        return self.out(attention(norm(q), norm(k), v, self.layer, reading))

    def feed(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


def chosen(x: Tensor, where: Tensor | None) -> Tensor:
    """x (B, L, E), or its positions ``where`` (B, L) bool as rows of length one, (n, 1, E)."""
    return x if where is None else x[where][:, None]


LEAST = 4
"""A matrix product of fewer rows than this is computed by other instructions, whose last bits differ (MKL, AVX-512)."""


def alike(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` for x (B, n, E) of few rows, computed as beside others: a row's bits are the same alone."""
    if x.shape[0] * x.shape[1] >= LEAST:
        return module(x)
    return module(x.repeat(-(-LEAST // max(1, x.shape[0])), 1, 1))[: len(x)]


def split(qkv: Tensor, heads: int) -> Tensor:
    """Queries, keys and values side by side, (B, L, 3 E), as (3, B, H, L, E / H)."""
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


def attention(q: Tensor, k: Tensor, v: Tensor, layer: int, reading: Reading) -> Tensor:
    """What the queries of block ``layer`` read, heads side by side: (B, H, L, E / H) each -> (B, L, E)."""
    q, k = rotate(q, reading.rotary), rotate(k, reading.rotary)
    if reading.cache is not None:
        k, v = reading.cache.extend(layer, k, v, reading.store)
    causal = reading.causal and reading.attend is None
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=reading.attend, is_causal=causal)
    return y.transpose(1, 2).flatten(2)


def mixed(table: Tensor, mixture: tuple[Tensor, Tensor]) -> Tensor:
    """Weighted sums of an embedding table's rows: (V, E), ids and weights (B, L, n) -> (B, L, E)."""
    ids, weights = (one.flatten(0, 1) for one in mixture)
    x = F.embedding_bag(ids, table, per_sample_weights=weights.to(table), mode="sum")
    return x.unflatten(0, mixture[0].shape[:2])


def norm(x: Tensor) -> Tensor:
    """x divided by the root mean square of its last axis; no weights."""
    return F.rms_norm(x, x.shape[-1:])


def placed(x: Tensor, positions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The stream that blocks read, x (B, L, E) marked with its ``positions``, (L,) or (B, L), and rotary angles."""
    # rotary positions are relative only: without this, all positions of an all-mask canvas would look the same
    x = norm(x + torch.cat(sinusoids(positions, x.shape[-1] // 2), dim=-1).to(x))
    cos, sin = (one.to(x) for one in sinusoids(positions, HEAD // 2))
    return x, (cos, sin) if positions.ndim == 1 else (cos[:, None], sin[:, None])


def preserve_variance(linear: nn.Linear) -> None:
    """Draw weights of variance 1 / inputs; no bias."""
    nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    if "bias" in dict(linear.named_parameters(recurse=False)):
        nn.init.zeros_(linear.bias)


def sinusoids(positions: Tensor, frequencies: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, wavelengths 2 pi to 20,000 pi; (..., frequencies) each, float64.

    Computed where they are used: a buffer would be lost when a model is built on the meta device.
    """
    exponent = torch.arange(frequencies, device=positions.device, dtype=torch.float64) / frequencies
    angle = positions.double()[..., None] * 10_000.0**-exponent
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the halves of each head by the position's angles. x: (B, H, L, 64)."""
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).type_as(x)


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines of t at 64 frequencies, geometric from 1 to 30 radians; (..., 128) float64.

    What a denoiser needs of t is smooth; higher frequencies would only be noise to unlearn.
    """
    frequency = torch.exp(torch.linspace(0, math.log(30.0), TIME_FEATURES // 2, dtype=torch.float64, device=t.device))
    angle = t.double()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
