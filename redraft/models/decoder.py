"""The transformer that nearly all released language models share, as a denoiser reads with it: nothing is causal here.

Embeddings, blocks of attention and SwiGLU behind RMSNorms, rotary positions, a head; what families differ in is data,
``DecoderConfig``. Parameters have the names that ``transformers`` gives them in Llama. Shapes: B batch, L length,
E width, H heads, G heads of keys and values, D width of a head, V rows of the head.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from redraft.models.experts import ExpertsConfig, Mixture, SwiGLU
from redraft.models.layers import Cache, mixed, rotate


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes, and what a family has or lacks.

    ``vocab`` and ``outputs``: rows of the embedding and of the head. ``rotary``: how many numbers of each head, the
    first, are turned with the position, at base ``theta``. ``qkv_bias``, ``out_bias``: of the attention's linear
    layers; ``qk_norm``: an RMSNorm of each query and key before it is turned. ``tied``: the head is the embedding,
    ``twice``: of which files hold a copy under the head's name.
    """

    vocab: int
    outputs: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_width: int
    hidden: int
    eps: float
    theta: float
    rotary: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    twice: bool = False
    experts: ExpertsConfig | None = None

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads, {self.kv_heads} of keys and values: a whole number must share one")
        if self.rotary % 2 or not 0 < self.rotary <= self.head_width:
            raise ValueError(f"{self.rotary} of {self.head_width} numbers of a head are turned: pass an even number")
        if self.tied and self.vocab != self.outputs:
            raise ValueError(f"a head of {self.outputs} rows tied to an embedding of {self.vocab}: they must be equal")


@dataclass(frozen=True)
class Attending:
    """How a pass attends: rotary angles, the pattern (True: may read; None: all), the cache and whether it is kept."""

    rotary: tuple[Tensor, Tensor]
    pattern: Tensor | None
    cache: Cache | None
    store: bool

    def to(self, device: torch.device, non_blocking: bool = False) -> "Attending":
        """The same where a block computes, of a network on several devices; each layer's cache is there already."""
        cos, sin = (one.to(device, non_blocking=non_blocking) for one in self.rotary)
        pattern = None if self.pattern is None else self.pattern.to(device, non_blocking=non_blocking)
        return replace(self, rotary=(cos, sin), pattern=pattern)


class RMSNorm(nn.Module):
    """x / rms(x), in float32 or wider and rounded to x's precision, times a weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, x.shape[-1:], eps=self.eps).to(x) * self.weight


class Attention(nn.Module):
    """Every position reads those that the pattern lets it; G heads of keys and values serve H of queries."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        E, D, bias = config.width, config.head_width, config.qkv_bias
        self.layer, self.head_width, self.shared = layer, D, config.heads // config.kv_heads
        self.q_proj = nn.Linear(E, config.heads * D, bias=bias)
        self.k_proj = nn.Linear(E, config.kv_heads * D, bias=bias)
        self.v_proj = nn.Linear(E, config.kv_heads * D, bias=bias)
        self.o_proj = nn.Linear(config.heads * D, E, bias=config.out_bias)
        self.q_norm = RMSNorm(D, config.eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(D, config.eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, how: Attending) -> Tensor:
        q, k, v = (one.unflatten(-1, (-1, self.head_width)) for one in (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        q, k = turned(self.q_norm(q).transpose(1, 2), how.rotary), turned(self.k_norm(k).transpose(1, 2), how.rotary)
        v = v.transpose(1, 2)
        if how.cache is not None:
            k, v = how.cache.extend(self.layer, k, v, how.store)
        k, v = (one.repeat_interleave(self.shared, dim=1) for one in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=how.pattern)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """Attention, then SwiGLU or a mixture of experts, each on the normalised stream and added back to it."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.width, config.eps)
        if config.experts is not None and config.experts.layers[layer]:
            self.mlp = Mixture(config.width, config.experts)
        else:
            self.mlp = SwiGLU(config.width, config.hidden)

    def forward(self, x: Tensor, how: Attending) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), how)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Everything but the head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(DecoderBlock(config, layer) for layer in range(config.depth))
        self.norm = RMSNorm(config.width, config.eps)


class Decoder(nn.Module):
    """From ids to what the head reads, ``forward``, and from that to logits, ``say``.

    ``checkpointing``: while training, blocks are computed again for their gradients, and keep nothing in between.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.model = Trunk(config)
        self.lm_head = None if config.tied else nn.Linear(config.width, config.outputs, bias=False)

    @property
    def depth(self) -> int:
        """Blocks, which is how many layers a ``Cache`` has of this network."""
        return self.config.depth

    def forward(
        self,
        z: Tensor,
        positions: Tensor,
        pattern: Tensor | None = None,
        cache: Cache | None = None,
        store: bool = False,
        mixture: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """What the head reads of ids z (B, L), or of a ``mixture`` in their place (see ``Condition``): (B, L, E).

        ``positions`` (L,) or (B, L), ``pattern`` (B or 1, 1, L, M) bool, query by key; ``cache`` and ``store`` as in
        ``Condition``.
        """
        table = self.model.embed_tokens
        x = table(z) if mixture is None else mixed(table.weight, mixture)
        how = Attending(self.rotary(positions, x), pattern, cache, store)
        for block in self.model.layers:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, how, use_reentrant=False)
                assert isinstance(x, Tensor)
            else:
                x = block(x, how)
        return self.model.norm(x).to(z.device)

    def say(self, hidden: Tensor) -> Tensor:
        """Logits (..., V)."""
        if self.lm_head is not None:
            return self.lm_head(hidden)
        table = self.model.embed_tokens.weight
        return F.linear(hidden.to(table.device), table)

    def rotary(self, positions: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the angle position theta^(-2 j / R), (L, R / 2) or (B, 1, L, R / 2); float32 or wider."""
        half = self.config.rotary // 2
        frequency = self.config.theta ** -(torch.arange(half, dtype=torch.float64, device=x.device) / half)
        angle = positions.to(x.device).double()[..., None] * frequency
        wide = torch.promote_types(x.dtype, torch.float32)
        cos, sin = angle.cos().to(wide), angle.sin().to(wide)
        return (cos, sin) if positions.ndim == 1 else (cos[:, None], sin[:, None])


def turned(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Heads (B, H, L, D) with their first R numbers turned, halves of those paired (not neighbours)."""
    R = 2 * rotary[0].shape[-1]
    part = rotate(x[..., :R], rotary)
    return part if x.shape[-1] == R else torch.cat([part, x[..., R:]], dim=-1)
