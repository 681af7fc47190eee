"""The diffusion transformer that SEDD, MDLM, UDLM, BD3-LM, Duo, GIDD and RADD share, and the denoiser made of it.

Parameters and buffers have the names they have in the released files. Shapes: B batch, L length, V states, K clean
tokens, E width, C width of the time's code, H heads. LayerNorm in float32, rotary positions, and on every half of a
block a shift, a scale and a gate read off the time (adaLN-zero, Peebles & Xie 2023). Layout: SEDD, arXiv 2310.16834.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.models import contexts, heads
from redraft.models.layers import Reading, attention, mixed, split
from redraft.processes import Categorical, Facts
from redraft.processes.base import Attention, Condition, as_condition, per_position

TIME_FEATURES = 256
LOGLINEAR_EPS = 1e-3
"""SEDD's log-linear noise stops at alpha = 1e-3; all models told sigma were trained with it."""
_BASE = 10_000.0


@dataclass(frozen=True)
class DiTConfig:
    """Sizes, and what a layout has or lacks.

    ``code``: C, or None for a network without a time (no sigma_map, no adaLN). ``classes``: rows of the label table of
    a guided model, the last of them meaning no label. ``table``: the rotary angles are stored for so many positions,
    as cos and sin, and not as frequencies.
    """

    vocab: int
    width: int
    depth: int
    heads: int
    code: int | None
    norm_bias: bool = False
    classes: int | None = None
    table: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"width {self.width} in {self.heads} heads: a head's width must be a whole, even number")


class DiT(nn.Module):
    """From embeddings (B, L, E) to logits (B, L, V); ``DiTDenoiser`` says what goes in and what comes out means."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_embed = Embedding(config)
        if config.code is not None:
            self.sigma_map = TimeMap(config.code)
        if config.classes is not None:
            assert config.code is not None, "a label is added to the time's code"
            self.cond_map = LabelMap(config.classes, config.code)
        self.rotary_emb = Rotary(config)
        self.blocks = nn.ModuleList(DiTBlock(config, layer) for layer in range(config.depth))
        self.output_layer = Output(config)

    def forward(self, x: Tensor, reading: Reading, code: Tensor | None, where: Tensor | None = None) -> Tensor:
        """``code`` (B or 1, L or 1, C); ``where`` (B, L) bool gives (n, V), the logits of those positions only."""
        for block in self.blocks:
            x = block(x, reading, code)
        if where is not None:
            code = None if code is None else code.expand(*x.shape[:2], -1)[where]
            x = x[where]
        return self.output_layer(x, code)


class Embedding(nn.Module):
    """A table of V rows, not tied to the head."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(config.vocab, config.width))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

    def forward(self, z: Tensor, mixture: tuple[Tensor, Tensor] | None) -> Tensor:
        return self.embedding[z] if mixture is None else mixed(self.embedding, mixture)


class TimeMap(nn.Module):
    """[cos || sin] of sigma (or t) at 128 frequencies, 1 down to 1e-4, through two layers: SiLU(MLP), (..., C)."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, code), nn.SiLU(), nn.Linear(code, code))

    def forward(self, sigma: Tensor) -> Tensor:
        half = TIME_FEATURES // 2
        frequency = _BASE ** -(torch.arange(half, dtype=torch.float64, device=sigma.device) / half)
        angle = sigma.double()[..., None] * frequency
        features = torch.cat([angle.cos(), angle.sin()], dim=-1)
        weight = next(self.mlp.parameters())
        return F.silu(self.mlp(features.to(weight)))


class LabelMap(nn.Module):
    """SiLU of a row per class, (..., C)."""

    def __init__(self, classes: int, code: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes, code)

    def forward(self, labels: Tensor) -> Tensor:
        return F.silu(self.embedding_table(labels))


class Rotary(nn.Module):
    """cos and sin of position times frequency, base 1e4, from what the layout stores: frequencies, or the angles."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        half = config.width // config.heads // 2
        frequency = _BASE ** -(torch.arange(half) / half)
        self.table = config.table
        if config.table is None:
            self.register_buffer("inv_freq", frequency)
            return
        angle = torch.arange(config.table)[:, None] * frequency
        # stored as (1, positions, q k v, 1, head): both halves alike, and v not turned
        for name, turned, left in (("cos_cached", angle.cos(), 1.0), ("sin_cached", angle.sin(), 0.0)):
            both = torch.cat([turned, turned], dim=-1)
            self.register_buffer(name, torch.stack([both, both, torch.full_like(both, left)], dim=1)[None, :, :, None])

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (L,) or (B, L) to (L, head / 2) or (B, 1, L, head / 2)."""
        if self.table is None:
            frequency = self.get_buffer("inv_freq")
            wide = frequency if frequency.dtype is torch.float64 else frequency.float()
            angle = positions.to(wide)[..., None] * wide
            cos, sin = angle.cos(), angle.sin()
        else:
            if positions.numel() and int(positions.max()) >= self.table:
                raise ValueError(
                    f"position {int(positions.max())}: this checkpoint stores rotary angles for positions below "
                    f"{self.table} only; pass shorter rows"
                )
            tables = (self.get_buffer(name)[0, :, 0, 0] for name in ("cos_cached", "sin_cached"))
            cos, sin = (table[positions, : table.shape[-1] // 2] for table in tables)
        return (cos, sin) if positions.ndim == 1 else (cos[:, None], sin[:, None])


class Norm(nn.Module):
    """LayerNorm computed in float32 (or wider), with a weight and in RADD's layout a bias."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.width))
        self.bias = nn.Parameter(torch.zeros(config.width)) if config.norm_bias else None

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype is torch.float64 else x.float()
        y = F.layer_norm(wide, x.shape[-1:]) * self.weight
        return (y if self.bias is None else y + self.bias).to(self.weight)


class DiTBlock(nn.Module):
    """x + gate * attend(modulated norm of x), then the same with a GELU layer of width 4 E."""

    def __init__(self, config: DiTConfig, layer: int) -> None:
        super().__init__()
        E = config.width
        self.heads, self.layer, self.dropout = config.heads, layer, config.dropout
        self.norm1 = Norm(config)
        self.attn_qkv = nn.Linear(E, 3 * E, bias=False)
        self.attn_out = nn.Linear(E, E, bias=False)
        self.norm2 = Norm(config)
        self.mlp = nn.Sequential(nn.Linear(E, 4 * E), nn.GELU(approximate="tanh"), nn.Linear(4 * E, E))
        self.adaLN_modulation = _modulation(config.code, 6 * E)

    def forward(self, x: Tensor, reading: Reading, code: Tensor | None) -> Tensor:
        # without a time nothing is shifted, scaled or gated
        parts: Sequence[Tensor | float] = (0.0, 0.0, 1.0, 0.0, 0.0, 1.0)
        if self.adaLN_modulation is not None and code is not None:
            parts = self.adaLN_modulation(code).chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = parts
        attended = self.attend(self.norm1(x) * (1 + scale_a) + shift_a, reading)
        x = x + gate_a * F.dropout(attended, self.dropout, self.training)
        fed = self.mlp(self.norm2(x) * (1 + scale_f) + shift_f)
        return x + gate_f * F.dropout(fed, self.dropout, self.training)

    def attend(self, x: Tensor, reading: Reading) -> Tensor:
        q, k, v = split(self.attn_qkv(x), self.heads)
        return self.attn_out(attention(q, k, v, self.layer, reading))


class Output(nn.Module):
    """The modulated norm, then a linear layer with a bias to V logits."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = Norm(config)
        self.linear = nn.Linear(config.width, config.vocab)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = _modulation(config.code, 2 * config.width)

    def forward(self, x: Tensor, code: Tensor | None) -> Tensor:
        x = self.norm_final(x)
        if self.adaLN_modulation is not None and code is not None:
            shift, scale = self.adaLN_modulation(code).chunk(2, dim=-1)
            x = x * (1 + scale) + shift
        return self.linear(x)


def _modulation(code: int | None, outputs: int) -> nn.Linear | None:
    """adaLN-zero: all gates start closed, so that a fresh network passes its embeddings on."""
    if code is None:
        return None
    layer = nn.Linear(code, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


# -------------------------------------------------------------------------------------------------------- the denoiser


@dataclass(frozen=True)
class DenoiserConfig:
    """What a network was trained as.

    ``clock``: what the time's code is made of: nothing (zeros), ``sigma`` = -log alpha of the log-linear noise, or
    ``t`` itself, kept ``margin`` away from both ends. ``scores``: the outputs are SEDD's log-scores, as they are
    (``plain``) or in units of 1 / ((e^sigma - 1) K) (``scaled``). ``start``: what a causal model reads before the
    first token. ``bounds``: BD3-LM's two buffers with the mask rates trained on, which nothing here reads.
    """

    network: DiTConfig
    process: Categorical
    clock: Literal["nothing", "sigma", "t"] = "nothing"
    margin: float = 0.0
    attention: Attention = "full"
    block: int | None = None
    start: int | None = None
    scores: Literal["plain", "scaled"] | None = None
    bounds: bool = False


class DiTDenoiser(nn.Module):
    """The denoiser ``(z, t, cond) -> log p`` over clean tokens, (B, L, K): log softmax without the mask's logit.

    z: (B, L) ids; t: (B,) or (B, L), read as ``DenoiserConfig.clock`` says; cond: a ``Condition``, whose ``labels`` a
    guided model takes: its last class, no label, unless given. ``where`` (B, L) bool asks for those positions only,
    (n, K). Among masks, SEDD's scores are proportional to p, so its log p is the same softmax; ``scores=True`` gives
    its log-scores s(z -> y) over the V states instead, (B, L, V), 0 at y = z (arXiv 2310.16834, section 4).

    Errors: ``ValueError`` for labels told to a model that knows none, scores asked of a model that gives none, and
    positions beyond those stored.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config, self.process = config, config.process
        self.eos_id: int | None = None
        self.pad_id: int | None = None
        self.backbone = DiT(config.network)
        if config.bounds:
            self.register_buffer("sampling_eps_min", torch.tensor(LOGLINEAR_EPS))
            self.register_buffer("sampling_eps_max", torch.tensor(1.0))

    @property
    def facts(self) -> Facts:
        """``eos_id`` and ``pad_id`` are the tokenizer's: whoever has one sets them."""
        config = self.config
        return Facts(
            time_conditioned=config.clock != "nothing",
            attention=config.attention,
            block=config.block,
            scores=config.scores is not None,
            mask_id=self.process.mask_id,
            eos_id=self.eos_id,
            pad_id=self.pad_id,
            selective=True,
            caches=True,
        )

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        where: Tensor | None = None,
        scores: bool = False,
    ) -> Tensor:
        cond = as_condition(cond)
        config = self.config
        causal = config.attention == "causal"
        if causal:
            assert config.start is not None
            z = torch.cat([torch.full_like(z[:, :1], config.start), z[:, :-1]], dim=1)
        x = self.backbone.vocab_embed(z, cond.get("mixture"))
        positions = cond.get("positions", torch.arange(z.shape[1], device=z.device))
        rotary = self.backbone.rotary_emb(positions)
        pattern = contexts.readable(z, cond, config.attention, config.block, self.process.mask_id)
        reading = Reading(rotary, pattern, causal, cond.get("cache"), cond.get("store", False))
        logits = self.backbone(x, reading, self._code(t, cond), where)
        logits = logits if logits.dtype is torch.float64 else logits.float()
        if scores:
            return self._scores(logits, z, t, where)
        return heads.subs(logits[..., : self.process.K], z, t, self.process)

    def _code(self, t: Tensor, cond: Condition) -> Tensor | None:
        network = self.backbone.config
        if "labels" in cond and network.classes is None:
            raise ValueError("labels told to a model that was trained without any: leave them out")
        if network.code is None:
            return None
        code = self.backbone.sigma_map(self._told(per_position(t)))
        if network.classes is not None:
            labels = cond.get("labels", torch.full_like(t, network.classes - 1, dtype=torch.long))
            code = code + self.backbone.cond_map(per_position(labels))
        return code

    def _told(self, t: Tensor) -> Tensor:
        if self.config.clock == "nothing":  # the map still runs: its code of zero is part of what was trained
            return torch.zeros_like(t)
        if self.config.clock == "t":
            return t.clamp(self.config.margin, 1 - self.config.margin)
        return sigma(t)

    def _scores(self, logits: Tensor, z: Tensor, t: Tensor, where: Tensor | None) -> Tensor:
        if self.config.scores is None:
            raise ValueError("scores=True asked of a model trained to give log p: see redraft.models.heads to convert")
        if self.config.scores == "scaled":
            level = sigma(per_position(t)).expand(z.shape)
            level = level if where is None else level[where]
            unit = torch.log(torch.expm1(level)) + math.log(logits.shape[-1] - 1)
            logits = logits - unit.to(logits)[..., None]
        own = (z if where is None else z[where])[..., None]
        return logits.scatter(-1, own, torch.zeros_like(own, dtype=logits.dtype))


def sigma(t: Tensor) -> Tensor:
    """Total noise -log alpha_t of SEDD's log-linear schedule alpha = 1 - (1 - 1e-3) t; float64, of t's shape."""
    return -torch.log1p(-(1 - LOGLINEAR_EPS) * t.double())
