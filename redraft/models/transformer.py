"""Our denoiser: a transformer that reads a noisy canvas whole and names the clean token at every position.

Shapes: B batch, L length, K clean tokens, V input states, D codebook width, E model width, H heads.
Sinusoidal and rotary positions (Su et al. 2021), RMSNorm before each half of a block, QK-norm, SwiGLU, no dropout.
With ``time_conditioned`` t shifts and scales each half's input (adaLN, Peebles & Xie 2023, without the gates).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft import processes
from redraft.processes import Facts, Gaussian, Process

_TIME_FEATURES = 128
_HEAD = 64
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
    width = _HEAD * depth
    return Widths(width, heads=depth, hidden=64 * math.ceil(8 * width / 3 / 64))


@dataclass(frozen=True)
class TransformerConfig:
    """What rebuilds a ``Transformer``: the process's facts, the dial, and two switches."""

    process: dict[str, Any]
    depth: int = 4
    time_conditioned: bool = False
    causal: bool = False
    eos_id: int | None = None
    pad_id: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Transformer(nn.Module):
    """The denoiser ``(z, t, cond) -> log p`` over clean tokens, (B, L, K).

    z: (B, L) ids, or (B, L, D) vectors for a Gaussian process, of which each is read as the mixture of token embeddings
    that q(z_i | token) suggests: that likelihood is all z_i says about its token, and knows t. cond: None or
    ``{"segments": (B, L)}``; attention stays within equal segments. ``where`` (B, L) bool asks for those positions only
    and returns (n, K), in row-major order.

    t: (B,), told to the blocks only when ``time_conditioned``. The exact denoiser needs it for uniform and hybrid
    noise; among masks it is free of t, and vectors are read knowing t already.

    ``causal`` makes it the autoregressive baseline: it reads [MASK], z_1 .. z_{L-1}, so that position i's output
    depends on z before i only.

    Errors: ``ValueError`` for a causal model of anything but a masked process.
    """

    codebook: Tensor

    def __init__(self, config: TransformerConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        sizes = widths(config.depth)
        stored = config.process
        if config.causal and stored["name"] != "masked":
            raise ValueError(f"causal=True with a {stored['name']} process: a left-to-right model needs a masked one")
        self.is_gaussian = stored["name"] == "gaussian"
        self.time_conditioned = config.time_conditioned
        if self.is_gaussian:
            codebook = torch.zeros(stored["K"], stored["D"]) if codebook is None else codebook
            self.register_buffer("codebook", codebook.clone())
            states = stored["K"]
        else:
            states = max(stored["K"], stored.get("mask_id", 0) + 1)
        self.embed = nn.Embedding(states, sizes.width)
        if self.time_conditioned:
            self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, sizes.width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(sizes, self.time_conditioned) for _ in range(config.depth))
        self.head = nn.Linear(sizes.width, stored["K"], bias=False)
        self.initialise()

    @classmethod
    def empty(cls, config: TransformerConfig) -> Self:
        """A model without weights, on the meta device, to be given them by ``load_state_dict(..., assign=True)``."""
        with torch.device("meta"):
            return cls(config)

    def initialise(self) -> None:
        """Variance-preserving weights; every residual branch and the head start at zero, so log p starts uniform."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if "bias" in dict(module.named_parameters(recurse=False)):
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
        for module in self.modules():
            if isinstance(module, Block):
                module.zero_branches()
        nn.init.zeros_(self.head.weight)

    @property
    def process(self) -> Process:
        """The process this model was built for; a Gaussian one reads the model's own codebook."""
        return processes.from_dict(self.config.process, self.codebook if self.is_gaussian else None)

    @property
    def facts(self) -> Facts:
        return Facts(
            # a Gaussian model adds log q(z_i | x) to its logits (output_prior): its posterior is the full one
            posterior="full" if self.is_gaussian else "cavity",
            time_conditioned=self.time_conditioned,
            attention="causal" if self.config.causal else "full",
            mask_id=self.config.process.get("mask_id"),
            eos_id=self.config.eos_id,
            pad_id=self.config.pad_id,
            selective=True,
        )

    def forward(
        self, z: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None, where: Tensor | None = None
    ) -> Tensor:
        bias = None
        if self.is_gaussian:
            process = self.process
            assert isinstance(process, Gaussian)
            bias = process.output_prior(z.to(self.codebook), t)
        elif self.config.causal:
            start = torch.full_like(z[:, :1], self.config.process["mask_id"])
            z = torch.cat([start, z[:, :-1]], dim=1)
        table = self.embed.weight
        x = self.embed(z) if bias is None else torch.softmax(bias, dim=-1).to(table) @ table
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()  # weights may be gathered in bfloat16 (FSDP); what blocks add to stays float32 either way
        # rotary positions are relative only: without this, all positions of an all-mask canvas would look the same
        L, E = x.shape[1:]
        x = norm(x + torch.cat(sinusoids(L, E // 2, x.device), dim=-1).to(x))
        code = self.time(time_features(t).to(x)) if self.time_conditioned else None
        cos, sin = sinusoids(L, _HEAD // 2, x.device)
        rotary = cos.to(x), sin.to(x)
        segments = None if cond is None else cond["segments"]
        allowed = None if segments is None else segments[:, None, :, None] == segments[:, None, None, :]
        if allowed is not None and self.config.causal:
            allowed = allowed & torch.ones(allowed.shape[-2:], dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x = block(x, rotary, allowed, self.config.causal, code)
        if where is not None:
            x, bias = x[where], None if bias is None else bias[where]
        logits = self.head(norm(x))
        logits = logits if bias is None else logits + bias
        mask_id = self.config.process.get("mask_id")
        if mask_id is not None and mask_id < logits.shape[-1]:  # a mask inside the vocabulary is no clean token
            logits = logits.index_fill(-1, torch.tensor(mask_id, device=logits.device), -torch.inf)
        # under bfloat16 autocast the sum over a large vocabulary must not be rounded
        return torch.log_softmax(logits.float() if logits.dtype is torch.bfloat16 else logits, dim=-1)


class Block(nn.Module):
    """Attention, then SwiGLU, each on the normalised stream and added back to it."""

    def __init__(self, sizes: Widths, time_conditioned: bool) -> None:
        super().__init__()
        width = sizes.width
        self.heads = sizes.heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * sizes.hidden, bias=False)
        self.down = nn.Linear(sizes.hidden, width, bias=False)
        self.modulation = nn.Linear(width, 4 * width) if time_conditioned else None

    def zero_branches(self) -> None:
        for module in (self.out, self.down, self.modulation):
            if module is not None:
                nn.init.zeros_(module.weight)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        allowed: Tensor | None,
        causal: bool,
        code: Tensor | None,
    ) -> Tensor:
        if self.modulation is None or code is None:
            x = x + self.attend(norm(x), rotary, allowed, causal)
            return x + self.feed(norm(x))
        shift_a, scale_a, shift_f, scale_f = self.modulation(code)[:, None].chunk(4, dim=-1)
        x = x + self.attend(norm(x) * (1 + scale_a) + shift_a, rotary, allowed, causal)
        return x + self.feed(norm(x) * (1 + scale_f) + shift_f)

    def attend(self, x: Tensor, rotary: tuple[Tensor, Tensor], allowed: Tensor | None, causal: bool) -> Tensor:
        B, L, E = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4)
        # QK-norm bounds the attention logits by the head width, which keeps large learning rates stable
        q, k = (rotate(norm(one), rotary) for one in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal and allowed is None)
        return self.out(y.transpose(1, 2).reshape(B, L, E))

    def feed(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


def norm(x: Tensor) -> Tensor:
    """x divided by the root mean square of its last axis; no weights."""
    return F.rms_norm(x, x.shape[-1:])


def sinusoids(length: int, frequencies: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, wavelengths 2 pi to 20,000 pi; (L, frequencies) each, float64.

    Computed where they are used: a buffer would be lost when a model is built on the meta device.
    """
    exponent = torch.arange(frequencies, device=device, dtype=torch.float64) / frequencies
    angle = torch.arange(length, device=device, dtype=torch.float64)[:, None] * 10_000.0**-exponent
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the halves of each head by the position's angles. x: (B, H, L, 64)."""
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).type_as(x)


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines of t at 64 frequencies, geometric from 1 to 30 radians; (B, 128) float64.

    What a denoiser needs of t is smooth; higher frequencies would only be noise to unlearn.
    """
    frequency = torch.exp(torch.linspace(0, math.log(30.0), _TIME_FEATURES // 2, dtype=torch.float64, device=t.device))
    angle = t.double()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
