"""Optimisers, their learning rate over the run, and the clipping of gradients."""

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from redraft.recipes.config import TrainConfig


def lr_scale(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at update ``step`` (from 0): linear warm-up, constant, linear decay towards 0.

        min(1, (step + 1) / warmup, (steps - step) / (decay steps))

    The last update still moves the weights; the line meets zero one step after it.
    """
    rise = (step + 1) / max(config.warmup, 1)
    fall = (config.steps - step) / (config.decay * config.steps) if config.decay else math.inf
    return min(1.0, rise, fall)


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan et al. 2024), which orthogonalises a matrix's update by five bfloat16 iterations.

    On sharded matrices those iterations would round differently with every number of processes (by a tenth of the
    update, where it is nearly singular), so each update is computed from the whole matrix: while stepping, a process
    holds the gradient and the momentum of all matrices unsharded.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        sharded = [
            p for group in self.param_groups for p in group["params"] if isinstance(p, DTensor) and p.grad is not None
        ]
        for p in sharded:
            whole = [Replicate()] * p.device_mesh.ndim
            p.grad = cast(DTensor, p.grad).redistribute(placements=whole)
            if "momentum_buffer" in self.state[p]:
                self.state[p]["momentum_buffer"] = self.state[p]["momentum_buffer"].redistribute(placements=whole)
        loss = super().step(closure)
        for p in sharded:
            self.state[p]["momentum_buffer"] = self.state[p]["momentum_buffer"].redistribute(placements=p.placements)
        return loss


def build(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW alone, or Muon for the matrices inside ``model.blocks`` and AdamW for the rest.

    Weight decay acts on matrices only, and not on those that a model names in ``undecayed``. AdamW keeps torch's betas
    (0.9, 0.999).

    Errors: ``ValueError`` for Muon on a model that has no ``blocks``.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    undecayed: frozenset[str] = getattr(model, "undecayed", frozenset())
    kept: set[Tensor] = {p for name, p in model.named_parameters() if name in undecayed}
    inner: set[Tensor] = set()
    if config.optimizer == "muon":
        blocks = getattr(model, "blocks", None)
        if not isinstance(blocks, nn.Module):
            raise ValueError(f"train.optimizer='muon' needs a model with .blocks; {type(model).__name__} has none")
        inner = {p for p in blocks.parameters() if p.ndim == 2 and p.requires_grad}
    rest = [p for p in parameters if p not in inner]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim >= 2 and p not in kept], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2 or p in kept], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, fused=True)
    ]
    if inner:
        matrices = [p for p in parameters if p in inner]
        optimizers.append(Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_lr(optimizers: Iterable[torch.optim.Optimizer], scale: float) -> None:
    """Give every group its peak learning rate times ``scale``."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * scale


def clip(model: nn.Module, limit: float) -> float:
    """Scale all gradients so that their global norm is at most ``limit`` (0: leave them); the norm before that.

    A norm that is not finite leaves the gradients alone, for the caller to refuse.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if limit and math.isfinite(value):
        clip_grads_with_norm_(parameters, limit, norm)
    return value
