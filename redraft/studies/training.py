"""A cell that trains one model: what every study of trained models does first, and keeps of it."""

import time
from pathlib import Path
from typing import Any

from redraft import recipes
from redraft.data import load_data
from redraft.evaluation import likelihood
from redraft.lm import LM
from redraft.recipes import Config
from redraft.runs import train
from redraft.studies.runner import Cell


def trained(cell: Cell, folder: Path) -> tuple[Config, LM, dict[str, Any]]:
    """Train ``cell.options["config"]`` under the cell's seed, and measure its bound on the held-out rows.

    The configuration, the model, and the record's figures: the likelihood with ``cell.options["draws"]`` draws a row,
    training CPU seconds, the number of weights and of tokens trained on.

    Errors: ``RuntimeError`` if a signal stopped it.
    """
    config = recipes.override(recipes.from_dict(cell.options["config"]), {"train.seed": cell.seed})
    started = time.process_time()
    run = train(config, out=folder / "run")
    seconds = time.process_time() - started
    if run.stopped:
        raise RuntimeError(f"a signal stopped the training at step {run.step}")
    lm = run.lm
    held_out = load_data(config.data, lm.tokenizer).held_out
    assert held_out is not None
    found = likelihood(lm.denoiser, lm.process, held_out, draws=cell.options["draws"], seed=cell.seed)
    figures = {
        "likelihood": found.to_dict(),
        "train_cpu_seconds": round(seconds, 1),
        "parameters": sum(weights.numel() for weights in lm.denoiser.parameters()),
        "tokens": config.train.steps * config.train.batch * config.data.length,
    }
    return config, lm, figures
