"""Study ``unsupervised-cfg``: guidance by hiding the prompt, where the law of answers is known."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

from redraft.data import toy
from redraft.evaluation.generation import unigram_entropy
from redraft.finetuning.rows import Example, Padded
from redraft.guidance import cfg, unprompted
from redraft.models import Transformer
from redraft.recipes.config import to_dict
from redraft.recipes.finetune import AnswersConfig, Finetune
from redraft.sampling import sample
from redraft.studies.asking import example, taught, teaching
from redraft.studies.runner import Budget, Cell, Study
from redraft.studies.unsupervised_cfg_claims import ANSWERS, CLAIMS, DROPPED, WHOLE, conclude

DROP = 0.1
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""w of p(x | prompt)^(1 + w) / p(x)^w."""
STEPS = (3, 6)
LEAST = 8
"""Fewest answers that a prompt has."""

Prompt = tuple[int, int]
Sentence = tuple[int, ...]


@cache
def law() -> Mapping[Prompt, frozenset[Sentence]]:
    """The right answers of each prompt, all equally likely: two units ask for a sentence of the toy language that has
    both. Prompts of fewer than ``LEAST`` are left out."""
    found = {
        pair: frozenset(row for row in toy.sentences() if set(pair) <= set(row))
        for pair in combinations(range(toy.PAD), 2)
    }
    return {pair: rows for pair, rows in found.items() if len(rows) >= LEAST}


def examples(whole: bool) -> list[Example]:
    """Every prompt with each of its answers once; ``whole``: the prompt is learned as the answer is."""
    pairs = [(prompt, answer) for prompt, answers in law().items() for answer in sorted(answers)]
    return [example((), prompt + answer) if whole else example(prompt, answer) for prompt, answer in pairs]


def names() -> Sequence[str]:
    return (ANSWERS, DROPPED, WHOLE)


def config(name: str, budget: Budget) -> Finetune:
    """All that differs is what is learned of prompts."""
    loss = AnswersConfig(drop=DROP) if name == DROPPED else AnswersConfig()
    return teaching(Finetune(loss=loss), budget.steps)


def options(name: str, budget: Budget) -> dict[str, Any]:
    chosen = {"config": to_dict(config(name, budget)), "depth": 2, "samples": budget.samples}
    return {**chosen, "weights": list(WEIGHTS), "steps": list(STEPS)}


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Teach a model to answer, then ask it with each weight in each number of steps."""
    rows = Padded(examples(cell.name == WHOLE), toy.PAD)
    model, figures = taught(cell, rows, len(toy.UNITS), folder)
    asked = product(cell.options["steps"], cell.options["weights"])
    return {**figures, "rows": [answered(model, weight, steps, cell) for steps, weight in asked]}


def answered(model: Transformer, weight: float, steps: int, cell: Cell) -> dict[str, Any]:
    """Answers to every prompt, each asked for as often, and how they agree with their law."""
    many = cell.options["samples"]
    drawn = sample(
        model.process,
        cfg(model, unprompted(model), weight=1 + weight),
        prompt=[list(prompt) for prompt in law() for _ in range(many)],
        length=toy.LENGTH,
        steps=steps,
        sampler="random_order",
        seed=cell.seed,
    )
    rows = [tuple(row[2:]) for row in drawn.tokens.tolist()]
    each = [judged(prompt, rows[i * many : (i + 1) * many]) for i, prompt in enumerate(law())]
    return {
        "weight": weight,
        "steps": steps,
        "nfe": drawn.cost.nfe,
        "well_formed": toy.report(map(toy.text, rows))["well_formed"],
        "unigram_entropy": unigram_entropy(rows),
        **{name: [one[name] for one in each] for name in each[0]},
    }


def judged(prompt: Prompt, rows: Sequence[Sentence]) -> dict[str, float]:
    """Answers to one prompt against their law, uniform over its m right sentences.

    ``follows``: the share that has both units, ``right``: that is a sentence too. ``same``: how many pairs of right
    answers are the same sentence, and ``same_by_law``: how many would be if as many were drawn of the law.
    ``distance``: total variation from the law, less what as many draws of the law itself have on average.
    """
    answers = law()[prompt]
    counts = Counter(row for row in rows if row in answers)
    k, m, n = counts.total(), len(answers), len(rows)
    apart = (sum(abs(counts[row] / n - 1 / m) for row in answers) + 1 - k / n) / 2
    return {
        "follows": sum(set(prompt) <= set(row) for row in rows) / n,
        "right": k / n,
        "same": sum(math.comb(one, 2) for one in counts.values()),
        "same_by_law": math.comb(k, 2) / m,
        "distance": apart - by_chance(n, m),
    }


@cache
def by_chance(n: int, m: int) -> float:
    """Mean total variation from a uniform law over m of n draws of it: m / 2 E|X / n - 1 / m|, X ~ Bin(n, 1 / m)."""
    chances = (math.comb(n, x) * (1 / m) ** x * (1 - 1 / m) ** (n - x) for x in range(n + 1))
    return m / 2 * sum(chance * abs(x / n - 1 / m) for x, chance in enumerate(chances))


STUDY = Study(
    name="unsupervised-cfg",
    question=(
        "Does guidance by hiding the prompt make the answers of a masked model follow it, what does it cost, and must "
        "prompts be dropped in training for it?"
    ),
    told=(
        "Guidance without a classifier was thought hard to bring to masked models; unsupervised guidance (Nie et al. "
        "2024) does so without pairs of prompt and answer, and models tuned with it did better than with the usual way."
    ),
    claims=CLAIMS,
    sampled="answers to each prompt with each weight in each number of steps",
    protocol=(
        "A prompt is two units of the toy language, and an answer is a sentence that has both, all equally likely: "
        f"every such pair with at least {LEAST} sentences, each of them once in the training data.",
        "Answers are drawn of p(x | prompt)^(1 + w) / p(x | masks for a prompt)^w, renormalised at each position: "
        "cfg(model, unprompted(model), weight=1 + w). A guided call is two forwards, a plain one one.",
        "answers: the prompt always stands clean in training. dropped: it is masked as a whole for one row in ten. "
        "whole: prompt and answer are masked alike, as in pre-training, so that a text without a prompt is known. None "
        "is pre-trained and then tuned, as the models of the claim were.",
        "Models are trained too little, so that there is something to gain. Tokens are written in random order at "
        "temperature 1: in six steps one at a time, without error of its own; in three two at a time.",
        "Intervals are over prompts; gains are taken prompt by prompt.",
    ),
    names=names,
    options=options,
    measure=measure,
    conclude=conclude,
    full=Budget(steps=600, seeds=2, draws=0, samples=48),
    quick=Budget(steps=300, seeds=1, draws=0, samples=32),
)
