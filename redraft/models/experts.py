"""Mixtures of experts: which of them a token is sent to, and what they say together.

Shapes: n tokens, E width, X experts, F their hidden width, k experts for each token. Two ways to choose are in use:
softmax over all (LLaDA-MoE, as OLMoE), and sigmoids in groups with a bias that only chooses (LLaDA2, as DeepSeek-V3).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ExpertsConfig:
    """``count`` experts of hidden width ``hidden``, the best ``top`` for each token, in the ``layers`` marked so.

    ``scoring``: a token's scores are the softmax over all experts, or a sigmoid each. Only experts of the best
    ``top_groups`` of ``groups`` contiguous groups are chosen from. ``bias``: a number for each expert, added to the
    scores where they choose and nowhere else. ``renormalise``: weights are divided by their sum. ``scale`` multiplies
    them. ``shared``: hidden width of an expert that hears every token.
    """

    count: int
    top: int
    hidden: int
    layers: tuple[bool, ...]
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    groups: int = 1
    top_groups: int = 1
    bias: bool = False
    renormalise: bool = False
    scale: float = 1.0
    shared: int | None = None

    def __post_init__(self) -> None:
        if self.count % self.groups or self.top > self.count // self.groups * self.top_groups:
            raise ValueError(
                f"the best {self.top} of {self.count} experts in {self.top_groups} of {self.groups} groups: groups "
                "must be of one size, and hold as many as are chosen"
            )


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, width: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=bias)
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """Scores of experts, in float32 or wider."""

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.count, width))
        nn.init.normal_(self.weight, std=width**-0.5)
        if config.bias:
            self.register_buffer("expert_bias", torch.zeros(config.count))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (n, E) to the numbers of their experts and their weights, (n, k) both."""
        config, wide = self.config, torch.promote_types(x.dtype, torch.float32)
        logits = F.linear(x.to(wide), self.weight.to(wide))
        scores = logits.softmax(-1) if config.scoring == "softmax" else logits.sigmoid()
        choosing = scores + self.get_buffer("expert_bias").to(wide) if config.bias else scores
        if config.groups > 1:
            grouped = choosing.unflatten(-1, (config.groups, -1))
            best = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1).topk(config.top_groups, -1).indices
            kept = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, True)
            choosing = grouped.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
        experts = choosing.topk(config.top, -1).indices
        weights = scores.gather(-1, experts)
        if config.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return experts, weights * config.scale


class Experts(nn.Module):
    """All experts' weights stacked: gate and up (X, F, E), down (X, E, F)."""

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        count, hidden = config.count, config.hidden
        self.gate_proj = nn.Parameter(torch.empty(count, hidden, width))
        self.up_proj = nn.Parameter(torch.empty(count, hidden, width))
        self.down_proj = nn.Parameter(torch.empty(count, width, hidden))
        for weight in self.parameters():
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of what its experts say of each token: (n, E), (n, k), (n, k) -> (n, E)."""
        out = torch.zeros_like(x)
        for expert in experts.unique().tolist():
            token, place = (experts == expert).nonzero(as_tuple=True)
            heard = x[token]
            hidden = F.silu(F.linear(heard, self.gate_proj[expert])) * F.linear(heard, self.up_proj[expert])
            said = F.linear(hidden, self.down_proj[expert]) * weights[token, place, None].to(x)
            out = out.index_add(0, token, said)
        return out


class Mixture(nn.Module):
    """The experts in place of a block's SwiGLU."""

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.gate = Router(width, config)
        self.experts = Experts(width, config)
        self.shared_experts = None if config.shared is None else SwiGLU(width, config.shared)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        out = self.experts(tokens, *self.gate(tokens)).view_as(x)
        return out if self.shared_experts is None else out + self.shared_experts(x)
