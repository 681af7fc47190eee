"""One stage of training: a compact loop, whose every step is a pure function of (data, seed, step)."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from redraft.data.packing import indices
from redraft.dglm.config import StageConfig
from redraft.processes.time import draw
from redraft.randomness import derive, row_generators
from redraft.recipes.config import TrainConfig
from redraft.training import optim

TIMES, NOISE, DROPOUT = 1, 2, 3
"""What a draw is for: the second key after the seed, so that no two draws of a stage share a stream."""

Loss = Callable[[list[int], Tensor, list[torch.Generator]], Tensor]
"""(rows of the data, u ~ U(0, 1) for each, a generator for each) -> the mean loss, ()."""


class Log:
    """Means of the losses, on standard error and in ``metrics.jsonl`` of a folder; without a folder, nowhere."""

    def __init__(self, out: Path | None, every: int) -> None:
        self.out, self.every = out, every

    def row(self, term: str, step: int, steps: int, loss: float) -> None:
        if self.out is None:
            return
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": term, "step": step, "loss": loss}) + "\n")
        print(f"{term} step {step}/{steps}  loss {loss:.5g}", file=sys.stderr, flush=True)


def fit(term: str, module: nn.Module, loss: Loss, rows: int, stage: StageConfig, seed: int, log: Log) -> float:
    """Train ``module`` in place on ``rows`` rows of data; the mean loss of the last logged steps.

    Errors: ``ValueError`` naming step and ``term`` where the loss or its gradient is not finite, before any weight
    takes that in.
    """
    train = TrainConfig(
        steps=stage.steps, lr=stage.lr, warmup=stage.warmup, decay=stage.decay, weight_decay=stage.weight_decay
    )
    optimizers, mean, recent = optim.build(module, train), math.nan, list[float]()
    devices = sorted({weight.device.index or 0 for weight in module.parameters() if weight.is_cuda})
    module.train()
    with torch.random.fork_rng(devices=devices):
        for step in range(stage.steps):
            torch.manual_seed(derive(seed, DROPOUT, step))  # a released decoder's own dropout draws from the global one
            drawn = indices(step, stage.batch, rows, seed).tolist()
            u = draw("stratified", (seed, TIMES, step), range(stage.batch), stage.batch)
            value = loss(drawn, u, row_generators(seed, NOISE, step, rows=drawn))
            value.backward()
            norm = optim.clip(module, stage.clip)
            recent.append(value.item())
            if not (math.isfinite(recent[-1]) and math.isfinite(norm)):
                raise ValueError(
                    f"training diverged at step {step + 1} of the {term}: loss {recent[-1]}, gradient norm {norm}; "
                    f"lower train.{term}.lr or raise train.{term}.warmup"
                )
            optim.set_lr(optimizers, optim.lr_scale(step, train))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if step + 1 == stage.steps or (step + 1) % log.every == 0:
                mean = sum(recent) / len(recent)
                log.row(term, step + 1, stage.steps, mean)
                recent.clear()
    module.eval()
    return mean
