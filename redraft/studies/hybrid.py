"""Study ``hybrid``: uniform noise with [MASK] beside it, from all mask to all uniform, on a language known exactly."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from redraft import recipes
from redraft.data import toy
from redraft.evaluation import variety
from redraft.lm import LM
from redraft.processes import Categorical, Process
from redraft.recipes import Config, EvalConfig
from redraft.studies import repair
from redraft.studies.findings import share
from redraft.studies.hybrid_claims import CLAIMS, conclude
from redraft.studies.runner import Budget, Cell, Study
from redraft.studies.training import trained

SHARES = ("0", "0.05", "0.1", "0.2", "0.4", "0.7", "1")
"""The uniform share at its peak (GIDD's p_u); 0 is masked noise and 1 uniform noise."""
NFE = (4, 8, 16, 64)


def names() -> Sequence[str]:
    return SHARES


def config(name: str, budget: Budget) -> Config:
    """The toy recipes' network and optimiser; every share is trained on its own bound."""
    base = recipes.get({"0": "toy_masked", "1": "toy_uniform"}.get(name, "toy_hybrid"))
    noise = base.process if name in ("0", "1") else replace(base.process, uniform_share=float(name))
    optimiser = replace(recipes.get("toy_masked").train, steps=budget.steps, threads=1, eval_every=0)
    return replace(base, objective="nelbo", process=noise, train=optimiser, eval=EvalConfig(draws=1))


def options(name: str, budget: Budget) -> dict[str, Any]:
    chosen = recipes.to_dict(config(name, budget))
    measured = {"nfe": list(NFE), "repair": repair.SETTINGS, "noise": repair.NOISE, "restart_steps": repair.STEPS}
    return {"config": chosen, "draws": budget.draws, "samples": budget.samples, **measured}


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train, and measure the bound, samples against the law, and repair."""
    _, lm, figures = trained(cell, folder)
    return {
        **figures,
        "excess": figures["likelihood"]["nats_per_token"] - toy.ENTROPY,
        "mask_share_grows": mask_share_grows(lm.process),
        "samples": [quality(lm, steps, cell) for steps in cell.options["nfe"]],
        "repair": repair.measure(lm.process, lm.denoiser, cell.seed, most=cell.options["samples"]),
    }


def mask_share_grows(process: Process, points: int = 1001) -> bool | None:
    """Does the mass of [MASK] never fall from t = 0 to t = 1, on an even grid? None without [MASK]."""
    if process.mask_id is None:
        return None
    assert isinstance(process, Categorical)
    mask = process.coefficients(torch.linspace(0, 1, points, dtype=torch.float64)).mask.flatten()
    return bool((mask.diff() >= 0).all())


def quality(lm: LM, steps: int, cell: Cell) -> dict[str, Any]:
    """Samples against the law: counts of each class, variety, and the total variation of their frequencies from it."""
    written = lm.generate(num=cell.options["samples"], steps=steps, seed=cell.seed)
    found = toy.report(written.texts)
    return {
        "steps": steps,
        "nfe": written.samples.nfe,
        **found,
        **total_variation(written.texts),
        "perfect_variation": perfect_variation(len(written.texts)),
        **variety(written.tokens.tolist()),
    }


def total_variation(texts: Sequence[str]) -> dict[str, float]:
    """Half the summed distance between the texts' frequencies and the law, over the 252 sentences and all else.

    Its error takes the set of over-represented texts as given: TV = p(set) - law(set), a share. An empirical TV lies
    above the true one; ``perfect_variation`` says by how much for a sampler without fault.
    """
    n = len(texts)
    counts = Counter(" ".join(text.split()) for text in texts)
    sentences = {" ".join(toy.text(row).split()) for row in toy.sentences()}
    over = {text for text in counts if text not in sentences or counts[text] / n > 1 / toy.COUNT}
    hits = sum(counts[text] for text in over)
    return {
        "total_variation": hits / n - len(over & sentences) / toy.COUNT,
        "total_variation_error": share(hits, n).error,
    }


def perfect_variation(n: int) -> float:
    """The mean empirical total variation of n exact draws: 252/2 E|X/n - p|, X ~ Binomial(n, p), p = 1/252."""
    p = 1 / toy.COUNT

    def log_pmf(k: int) -> float:
        choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return choose + k * math.log(p) + (n - k) * math.log1p(-p)

    return toy.COUNT / 2 * sum(abs(k / n - p) * math.exp(log_pmf(k)) for k in range(n + 1))


STUDY = Study(
    name="hybrid",
    question=(
        "Uniform noise with a [MASK] beside it, whose share only grows: does such a model mend its own mistakes, as a "
        "masked one cannot, and what does it pay for that in likelihood and in text?"
    ),
    told=(
        "Masked noise is uniform noise with one more state that is never left. To allow [MASK] beside uniform noise, "
        "with a share that only grows, might give masked models the self-correction they lack."
    ),
    claims=CLAIMS,
    protocol=(
        "Text: the toy language, 252 sentences of six tokens, all equally likely; its entropy is known exactly.",
        "Network: ours, depth 2, trained on each noise's own bound; told the time unless the noise is masked, where "
        "the exact denoiser does not need it.",
        "Errors to mend: every sentence with every change of one token that breaks agreement and nothing else.",
        "redraw: the least likely token given the others is drawn again if its probability is below p; one call, for "
        "noise that swaps tokens teaches to doubt tokens that are seen. remask: the same for the masked model, which "
        "must mask and predict each token in turn, six calls; it is its only way.",
        "restart: the sentence is read as noisy at time t and denoised from there, 8 calls. self_correct: GIDD's fixed "
        "point at t; it seeks the likeliest text, so it also changes right sentences for ones it likes better.",
        "Each share is quoted at its best setting, chosen on the errors it is quoted on, for all shares alike.",
        "Total variation is that of the samples' frequencies; an exact sampler's is given beside it.",
    ),
    names=names,
    options=options,
    measure=measure,
    conclude=conclude,
    full=Budget(steps=800, seeds=2, draws=256, samples=2000),
    quick=Budget(steps=150, seeds=1, draws=16, samples=300),
)
