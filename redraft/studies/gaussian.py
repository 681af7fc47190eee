"""Study ``gaussian``: the objectives of Gaussian noise beside masked and uniform noise, at equal compute and calls."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from redraft import recipes
from redraft.data import load_data, toy
from redraft.evaluation import variety
from redraft.lm import LM
from redraft.recipes import Config, EvalConfig
from redraft.studies.gaussian_claims import ABLATIONS, CLAIMS, TEXT, TOY, conclude
from redraft.studies.lineage import DATA
from redraft.studies.runner import Budget, Cell, Study
from redraft.studies.training import trained

NFE = (8, 16, 64)
"""Denoiser calls of a sample, the one that names the tokens at the end included."""
SAMPLERS = ("ancestral", "ddim", "heun")
"""Of vectors; masked and uniform noise take ``ancestral`` alone."""
_SHARES = {"plaid": 0.25}
"""Rows that an objective asks about twice when the model conditions on itself; half of them unless named here."""


def names() -> Sequence[str]:
    return (*TOY, *ABLATIONS, *TEXT)


def config(name: str, budget: Budget) -> Config:
    """A recipe with its own settings, its steps cut to what the plain model's compute pays for."""
    recipe, _, changes = name.partition(" ")
    preset = recipes.override(recipes.get(recipe), ABLATIONS[name] if changes else {})
    train = replace(preset.train, steps=round(budget.steps / compute(preset)), threads=1, eval_every=0)
    data = preset.data if preset.data.source == "toy" else DATA
    return replace(preset, data=data, train=train, eval=EvalConfig(draws=1))


def compute(preset: Config) -> float:
    """Passes of a training step in units of a plain one's three: a forward more for rows that are asked about twice."""
    share = _SHARES.get(preset.objective, 0.5) if preset.model.self_conditioned else 0.0
    return 1 + share / 3


def options(name: str, budget: Budget) -> dict[str, Any]:
    chosen = config(name, budget)
    # the text has more rows than the toy language, and needs fewer draws of each
    draws = budget.draws if chosen.data.source == "toy" else max(1, budget.draws // 8)
    return {"config": recipes.to_dict(chosen), "draws": draws, "samples": budget.samples, "nfe": list(NFE)}


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train, measure the bound, and, on the toy language, count what the samples are."""
    preset, lm, figures = trained(cell, folder)
    found = figures["likelihood"]
    if not math.isfinite(found["nats_per_token"] + found["nats_per_token_error"]):
        raise ValueError(f"its bound on the held-out text is {found['nats_per_token']} nats per token")
    return {
        **figures,
        "steps": preset.train.steps,
        "process": preset.process.name,
        "objective": preset.objective,
        "unigrams": unigram_entropy(preset, lm),
        "samples": samples(lm, cell) if preset.data.source == "toy" else [],
    }


def unigram_entropy(preset: Config, lm: LM) -> float:
    """Entropy of the training tokens' own frequencies, nats per token: what a model without context reaches there."""
    rows = load_data(preset.data, lm.tokenizer).train
    counted = rows.ids if rows.valid is None else rows.ids[rows.valid]
    counts = Counter(counted.flatten().tolist())
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values())


def samples(lm: LM, cell: Cell) -> list[dict[str, Any]]:
    """What is written at each number of calls by each sampler: shares of the three classes, and how varied it is."""
    rows: list[dict[str, Any]] = []
    for calls in cell.options["nfe"]:
        for sampler in SAMPLERS if lm.process.vectors else SAMPLERS[:1]:
            # the last call among vectors names the tokens; Heun's method asks twice a step
            steps = calls if not lm.process.vectors else (calls - 1) // (2 if sampler == "heun" else 1)
            written = lm.generate(num=cell.options["samples"], steps=steps, seed=cell.seed, sampler=sampler)
            varied = variety(written.tokens.tolist())
            rows.append(
                {"calls": calls, "sampler": sampler, "nfe": written.samples.nfe, **toy.report(written.texts), **varied}
            )
    return rows


STUDY = Study(
    name="gaussian",
    question=(
        "Continuous diffusion over embeddings is the oldest family of diffusion language models, and each paper has "
        "its own loss, schedule and sampler. On one network, with equal compute and equal calls, what does each of "
        "them reach, and where does it stand beside masked and uniform noise?"
    ),
    told=(
        "Gaussian noise over embeddings has met with less success than masked and uniform noise: its perplexity is "
        "worse, and turning vectors back into tokens takes special tricks in training and in sampling."
    ),
    claims=CLAIMS,
    protocol=(
        "Toy language: 252 sentences of six tokens, all equally likely; its entropy is known exactly. Text: "
        f"python-docs, characters, rows of {DATA.length}; a tenth held out by content hash, scored whole.",
        "Network: ours, depth 2. Each recipe keeps its own optimiser settings.",
        "Equal compute means equal passes through the network: a step in which a share p of the rows is asked about "
        "twice (self-conditioning) counts as 1 + p/3 steps, and such recipes take fewer of them.",
        "Equal calls: each sample costs at most the calls that its row names, the one in which vectors are named at "
        "the end included; Heun's method takes half the steps, for it asks twice in each.",
        "The bound of Gaussian noise is the VLB in continuous time: reconstruction at t = 0, diffusion, prior; a model "
        "that conditions on itself is asked twice, which leaves it a bound.",
        "The unigram entropy is that of the training tokens' own frequencies.",
    ),
    names=names,
    options=options,
    measure=measure,
    conclude=conclude,
    full=Budget(steps=1000, seeds=1, draws=32, samples=2000),
    quick=Budget(steps=60, seeds=1, draws=2, samples=100),
)
