"""Prompts with known answers, and small masked models taught to answer them: what studies of asking share."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from redraft import processes
from redraft.finetuning.rows import Example
from redraft.finetuning.run import loss_of
from redraft.models import Transformer, TransformerConfig
from redraft.randomness import derive
from redraft.recipes.config import TrainConfig, from_dict, override
from redraft.recipes.finetune import Finetune
from redraft.studies.runner import Cell
from redraft.training import Rows, fit

TRAIN = TrainConfig(
    batch=64, optimizer="muon", lr=5e-3, muon_lr=2e-2, warmup=20, decay=0.9, eval_every=0, log_every=100, threads=1
)
"""The optimisation of the toy language's recipes."""
_WEIGHTS = 0
"""What a run's seed draws before its first step."""


def example(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    """A prompt that is told and an answer that is learned, as a row."""
    return Example(np.array([*prompt, *answer], np.int32), np.arange(len(prompt) + len(answer)) >= len(prompt))


def teaching(base: Finetune, steps: int) -> Finetune:
    """``base`` with the studies' optimisation, for so many steps."""
    return replace(base, train=replace(TRAIN, steps=steps))


def taught(cell: Cell, rows: Rows, K: int, folder: Path) -> tuple[Transformer, dict[str, Any]]:
    """A new model of K tokens, of ``cell.options["depth"]``, taught ``rows`` as ``cell.options["config"]`` says.

    The model, ready to be asked, and the record's figures. Errors: ``RuntimeError`` if a signal stopped it.
    """
    config = override(from_dict(cell.options["config"], Finetune), {"train.seed": cell.seed})
    process = processes.masked(K)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(cell.seed, _WEIGHTS))
        model = Transformer(TransformerConfig(process.to_dict(), cell.options["depth"]))
    started = time.process_time()
    ended = fit(config, model, process, loss_of(config.loss), rows, out=folder / "run")
    seconds = time.process_time() - started
    if ended.stopped:
        raise RuntimeError(f"a signal stopped the training at step {ended.step}")
    figures = {
        "loss": ended.loss,
        "train_cpu_seconds": round(seconds, 1),
        "parameters": sum(weights.numel() for weights in model.parameters()),
    }
    return model.eval(), figures
