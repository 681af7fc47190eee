"""Study ``lineage``: every method of the lineage on one text, network, budget and seed, against the field's claims."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from redraft import recipes
from redraft.data import read_documents, split_held_out
from redraft.evaluation import variety
from redraft.evaluation.ngram import NGram
from redraft.lm import LM
from redraft.recipes import Config, DataConfig, EvalConfig, TrainConfig
from redraft.recipes.lineage import LINEAGE
from redraft.sampling.correctors import self_correct
from redraft.studies.findings import mean_of
from redraft.studies.lineage_claims import CLAIMS, COLLAPSE, conclude
from redraft.studies.repair import swaps
from redraft.studies.runner import Budget, Cell, Study
from redraft.studies.training import trained

NFE = (8, 32, 128)
"""Denoiser calls asked for; the autoregressive baseline takes one a token."""
LENGTH, DEPTH = 64, 2
DATA = DataConfig(source="python-docs", tokenizer="chars", length=LENGTH)
TRAIN = TrainConfig(
    batch=16, optimizer="muon", lr=1e-2, muon_lr=2e-2, weight_decay=0.1, warmup=50, decay=0.7, threads=1
)
"""What the masked recipe was tuned to; no method has settings of its own, which favours those nearest to it."""
SAMPLER = {"maskgit": "confidence"}
"""A method that is a sampler too is sampled its own way; the others by what ``sample`` takes unless told."""


def presets() -> list[str]:
    """The lineage, and the Gaussian family to compare it with."""
    return [*(recipe.__name__ for recipe in LINEAGE), "gaussian"]


def config(name: str, budget: Budget) -> Config:
    """A preset's process, head, context and loss, with everything else as it is for all."""
    preset = recipes.get(name)
    return replace(
        preset,
        model=replace(preset.model, depth=DEPTH),
        data=DATA,
        train=replace(TRAIN, steps=budget.steps),
        # the bound is measured apart, so that training time is that of training but for one draw a row
        eval=EvalConfig(draws=1),
    )


def options(name: str, budget: Budget) -> dict[str, Any]:
    chosen = recipes.to_dict(config(name, budget))
    return {"config": chosen, "draws": budget.draws, "samples": budget.samples, "nfe": list(NFE)}


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train, measure the bound, and judge samples at each number of denoiser calls."""
    preset, lm, figures = trained(cell, folder)
    nats, error = (figures["likelihood"][name] for name in ("nats_per_token", "nats_per_token_error"))
    if not math.isfinite(nats + error):
        raise ValueError(f"its bound on the held-out text is {nats} nats per token")
    training_text, held_out = split_held_out(read_documents(preset.data.source), preset.data.held_out)
    judge = NGram(training_text)
    return {
        **figures,
        "process": preset.process.name if preset.process.name != "d3pm" else f"d3pm {preset.process.matrix}",
        "objective": preset.objective,
        "attention": preset.model.attention,
        "judge": judge.name,
        "judge_held_out": judge.bits_per_char("\n".join(held_out)),
        "human": human(judge, held_out, cell.options["samples"]),
        "samples": samples(lm, judge, cell, preset),
    }


def samples(lm: LM, judge: NGram, cell: Cell, preset: Config) -> list[dict[str, Any]]:
    """Quality and variety of what the model writes at each number of calls."""
    rows: list[dict[str, Any]] = []
    causal = preset.model.attention == "causal"
    for steps in (None,) if causal else cell.options["nfe"]:
        written = lm.generate(
            num=cell.options["samples"], steps=steps, seed=cell.seed, sampler=SAMPLER.get(preset.recipe)
        )
        figures = judged(judge, written.texts, written.tokens.tolist())
        row = {"steps": steps or LENGTH, "nfe": written.samples.nfe, **figures, "text": written.text}
        if swaps(lm.process) and not rows:  # of the fewest calls, where there is most to correct
            mended, calls = self_correct(lm.process, lm.denoiser, written.tokens, seed=cell.seed)
            texts = [lm.decode(one) for one in mended]
            row["corrected"] = {"nfe": written.samples.nfe + calls, **judged(judge, texts, mended.tolist())}
        rows.append(row)
    return rows


def judged(judge: NGram, texts: list[str], tokens: list[list[int]]) -> dict[str, float]:
    """Bits per character under the judge, always with how varied the texts are."""
    bits = mean_of([judge.bits_per_char(text) for text in texts if text])
    return {"bits_per_char": bits.mean, "bits_per_char_error": bits.error, **variety(tokens)}


def human(judge: NGram, held_out: list[str], num: int) -> Mapping[str, float]:
    """The same figures of held-out text in windows as long as the samples.

    The judge reads them all; variety, which falls with the number of texts, is that of ``num``, evenly spread.
    """
    whole = "\n".join(held_out)
    windows = [whole[start : start + LENGTH] for start in range(0, len(whole) - LENGTH + 1, LENGTH)]
    bits = mean_of([judge.bits_per_char(window) for window in windows])
    spread = [windows[i * len(windows) // num] for i in range(num)]
    varied = variety([list(map(ord, window)) for window in spread])  # a character is a token
    return {"bits_per_char": bits.mean, "bits_per_char_error": bits.error, **varied}


STUDY = Study(
    name="lineage",
    question=(
        "Ten repositories train discrete diffusion on different data with different code. "
        "What is left of their differences when text, network, tokens and seeds are the same?"
    ),
    told=(
        "Discrete diffusion went from D3PM by way of SEDD to MDLM, whose objective is weighted masked prediction. "
        "Masked noise reaches better perplexity than uniform noise, and both better than Gaussian noise."
    ),
    claims=CLAIMS,
    protocol=(
        f"Text: python-docs, characters, rows of {LENGTH}; a tenth held out by content hash, scored whole.",
        f"Network: ours, depth {DEPTH}; presets differ in process, head, context, time input and loss only. "
        "The optimiser's settings are those of the masked recipe for all.",
        "Equal budget means equal tokens; training CPU seconds stand beside, with the loading of the text and one "
        "evaluation of a draw a row in them.",
        "Judge: a character 5-gram (Witten-Bell) of the training text. A text that repeats itself, or its training "
        "text, is judged well: read it with entropy and distinct-n, and against human text of the same length. Samples "
        f"with less than {COLLAPSE:.0%} of human text's unigram entropy are not called better, whatever it says.",
        "Memory is the peak of the cell's whole process: Python, torch, training, evaluation and sampling.",
    ),
    names=presets,
    options=options,
    measure=measure,
    conclude=conclude,
    full=Budget(steps=1000, seeds=1, draws=16, samples=96),
    quick=Budget(steps=40, seeds=1, draws=1, samples=8),
)
