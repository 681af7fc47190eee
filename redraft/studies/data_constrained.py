"""Study ``data-constrained``: few texts, many epochs: who is ahead early, who late, and where the curves cross."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from redraft import objectives, recipes
from redraft.data import Packed, read_documents, split_held_out
from redraft.data.packing import pack
from redraft.data.sources import spread
from redraft.data.tokenizers import Tokenizer, build_tokenizer
from redraft.evaluation import likelihood
from redraft.models import Transformer
from redraft.recipes import Config, DataConfig, EvalConfig, TrainConfig
from redraft.runs import build
from redraft.studies.data_constrained_claims import AR, CLAIMS, MASKED, PUBLISHED, conclude
from redraft.studies.runner import Budget, Cell, Study
from redraft.training import Hooks, fit

SIZES = (10_000, 20_000, 40_000)
"""U: characters of training text."""
HELD_OUT, PIECE = 12_800, 512
"""Characters that are held out; how long the pieces are of which a training text is made, from all of the corpus."""
LENGTH, DEPTH = 128, 2
EVERY, POINTS = 10, 24
"""Steps that a point of a curve is a multiple of, and how many points there are at most."""
MEMORY = 48
"""Rows of the training text on which what was learnt by heart is measured."""
TRAIN = TrainConfig(batch=16, optimizer="adamw", lr=1e-3, weight_decay=0.1, warmup=100, decay=0.0, threads=1)
CELLS = {f"{name} {size // 1000}k": (name, size) for size in SIZES for name in (MASKED, AR)}


def names() -> Sequence[str]:
    return tuple(CELLS)


def config(name: str, budget: Budget) -> Config:
    """The two presets on one network, optimiser and number of steps."""
    kind, _ = CELLS[name]
    preset = recipes.get("mdlm" if kind == MASKED else "autoregressive")
    data = DataConfig(source="python-docs", tokenizer="chars", length=LENGTH)
    train = replace(TRAIN, steps=budget.steps, eval_every=EVERY)
    return replace(preset, model=replace(preset.model, depth=DEPTH), data=data, train=train, eval=EvalConfig(draws=1))


def options(name: str, budget: Budget) -> dict[str, Any]:
    chosen = {"config": recipes.to_dict(config(name, budget)), "draws": budget.draws, "characters": CELLS[name][1]}
    return {**chosen, "held_out": HELD_OUT, "piece": PIECE, "points": points(config(name, budget).train.steps)}


def points(steps: int) -> list[int]:
    """The steps of a curve's points: multiples of ``EVERY``, evenly spread over their logarithm, the last one among
    them."""
    wanted = np.geomspace(min(2 * EVERY, steps), steps, POINTS) / EVERY
    return sorted({min(steps, EVERY * max(1, round(float(one)))) for one in wanted} | {steps})


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train for many epochs; at each point of the curve the held-out text and the training text, nats a character."""
    told = recipes.override(recipes.from_dict(cell.options["config"]), {"train.seed": cell.seed})
    rows, held_out, tokenizer = texts(cell.options["characters"], cell.options["held_out"], cell.options["piece"])
    process, model = build(told, tokenizer, rows)
    assert isinstance(model, Transformer)
    curve = list[dict[str, float]]()
    hooks = Hooks(validate=_watching(cell, rows, held_out, curve))
    started = time.process_time()
    ended = fit(told, model, process, objectives.get(told.objective, **asdict(told.loss)), rows, hooks, folder / "run")
    if ended.stopped:
        raise RuntimeError(f"a signal stopped the training at step {ended.step}")
    return {
        "curve": curve,
        "characters": int(rows.ids.size),
        "per_step": told.train.batch * told.data.length,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "train_cpu_seconds": round(time.process_time() - started, 1),
    }


def texts(characters: int, held_out: int, piece: int) -> tuple[Packed, Packed, Tokenizer]:
    """Training rows of about so many characters, held-out rows, and the alphabet of the whole corpus."""
    sides = split_held_out(read_documents("python-docs"), 0.1)
    tokenizer = alphabet()
    cut = [
        "\n".join(spread(side, size, piece))[:size] for side, size in zip(sides, (characters, held_out), strict=True)
    ]
    ids = tokenizer.encode_batch(cut)
    train, test = (pack([one], LENGTH, None, num_chars=len(one)) for one in ids)
    return train, test, tokenizer


@cache
def alphabet() -> Tokenizer:
    """Characters of the whole corpus, whatever part of it is read: equal tasks at every size."""
    return build_tokenizer("chars", list(read_documents("python-docs")))


def _watching(
    cell: Cell, rows: Packed, held_out: Packed, curve: list[dict[str, float]]
) -> Callable[[int, nn.Module], dict[str, float]]:
    """A hook that adds a point to ``curve`` where one is due."""

    def watch(step: int, model: nn.Module) -> dict[str, float]:
        if step not in cell.options["points"]:
            return {}
        assert isinstance(model, Transformer)
        draws = cell.options["draws"]
        unseen = likelihood(model, model.process, held_out, draws=draws, seed=cell.seed)
        seen = likelihood(model, model.process, rows, draws=draws, rows=MEMORY, seed=cell.seed)
        point = {"step": step, "held_out": unseen.nats_per_token, "held_out_error": unseen.nats_per_token_error}
        curve.append({**point, "train": seen.nats_per_token, "train_error": seen.nats_per_token_error})
        return {"held_out": unseen.nats_per_token, "train": seen.nats_per_token}

    return watch


STUDY = Study(
    name="data-constrained",
    question=(
        "With little text and many passes over it, an autoregressive model learns fast and then learns by heart; a "
        "masked one meets every text under ever new masks. Who is ahead when, where do they cross, and whose best is "
        "better?"
    ),
    told=(
        "At few epochs autoregressive models are ahead; with repeated passes over the same data diffusion overtakes "
        "them and ends better, so that it may suit domains where data and not compute is short."
    ),
    claims=CLAIMS,
    protocol=(
        f"Text: python-docs, characters; U of them, in pieces of {PIECE} from all of the corpus, in rows of {LENGTH}. "
        f"Held out: {HELD_OUT} characters of pieces chosen by content hash, none of which is in any training text.",
        f"Network: ours, depth {DEPTH}, the same for both but for causal attention; no dropout. AdamW at lr "
        f"{TRAIN.lr:g}, constant after {TRAIN.warmup} steps, weight decay {TRAIN.weight_decay}, gradients clipped to "
        f"1, {TRAIN.batch} rows a step, as many steps for all.",
        "The autoregressive figure is the exact -log p, the masked one an upper bound (the truth lies at or below), so "
        "that a masked model which looks better is, and one that looks worse may not be. The best of a curve is chosen "
        f"on the text it is quoted on, for both alike. Training text: {MEMORY} rows of it.",
        "Compute is 6 N D, with N all weights and D the characters trained on, repeats counted.",
        "The crossing is where the masked curve over epochs falls below the autoregressive one for good; its interval "
        f"reaches from the last point where it is surely above to the first where it is surely below. {PUBLISHED} is "
        "the exponent published for models of many sizes up to 2.5B weights; ours have one size, and a line through "
        "two or three points on a logarithmic scale is no law.",
    ),
    names=names,
    options=options,
    measure=measure,
    conclude=conclude,
    full=Budget(steps=1200, seeds=1, draws=8, samples=0),
    quick=Budget(steps=250, seeds=1, draws=1, samples=0),
)
