"""Study ``schedules``: why unmasking slowly at first makes fewer conflicts, computed and counted."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft import recipes
from redraft.data import load_data, toy
from redraft.evaluation import variety
from redraft.evaluation.ngram import NGram
from redraft.lm import LM
from redraft.processes import Process
from redraft.processes.base import log_prob_of
from redraft.randomness import rand, row_generators
from redraft.recipes import Config, EvalConfig
from redraft.sampling import Sampler
from redraft.sampling.proposal import masks, propose, top
from redraft.sampling.samplers import Draw, Query, proposing
from redraft.studies.conflicts import SCHEDULES, best, costs, counts, exact_surprise, falling
from redraft.studies.findings import mean_of
from redraft.studies.lineage import DATA, TRAIN
from redraft.studies.runner import Budget, Cell, Study
from redraft.studies.schedules_claims import CLAIMS, conclude
from redraft.studies.training import trained

STEPS = {"toy": (2, 3, 4), "text": (4, 8, 16, 32)}


def names() -> Sequence[str]:
    return tuple(STEPS)


def config(name: str, budget: Budget) -> Config:
    """The masked recipes; characters of python-docs for the text."""
    preset = recipes.get("toy_masked" if name == "toy" else "mdlm")
    train = preset.train if name == "toy" else TRAIN
    data = preset.data if name == "toy" else DATA
    train = replace(train, steps=budget.steps, threads=1, eval_every=0)
    return replace(preset, data=data, train=train, eval=EvalConfig(draws=1))


def options(name: str, budget: Budget) -> dict[str, Any]:
    chosen = recipes.to_dict(config(name, budget))
    return {"config": chosen, "draws": budget.draws, "samples": budget.samples, "steps": list(STEPS[name])}


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train a masked model, measure what a token surprises it by, and write by each schedule in random order."""
    preset, lm, figures = trained(cell, folder)
    data = load_data(preset.data, lm.tokenizer)
    assert data.held_out is not None
    surprise = measured_surprise(lm, torch.as_tensor(data.held_out.ids).long(), cell.options["draws"], cell.seed)
    known = exact_surprise(toy.sentences()) if cell.name == "toy" else None
    judge = None if known else NGram(lm.decode(row) for row in torch.as_tensor(data.train.ids).long())
    return {
        **figures,
        "surprise": surprise,
        "exact_surprise": known,
        "written": [written(lm, judge, steps, known or surprise, cell) for steps in cell.options["steps"]],
    }


@torch.no_grad()
def measured_surprise(lm: LM, rows: Tensor, draws: int, seed: int, most: int = 512) -> list[float]:
    """h_j as the model has it: -log p of a token given j others, nats, by the number j; made to never rise."""
    number_of_rows, length = min(most, len(rows)), rows.shape[1]
    # every number of known tokens as often, and of other rows in each draw
    turn = torch.arange(number_of_rows)[None] + torch.arange(draws)[:, None]
    revealed, rows = (turn % length).flatten(), rows[:most].repeat(draws, 1)
    generators = row_generators(seed, rows=range(len(rows)))
    total, number = torch.zeros(length, dtype=torch.float64), torch.zeros(length, dtype=torch.float64)
    order = rand(rows.shape, generators).argsort(1).argsort(1)
    for part in torch.arange(len(rows)).split(64):
        hidden = order[part] >= revealed[part, None]
        z = torch.where(hidden, lm.process.mask_id or 0, rows[part])
        logp = lm.denoiser(z, (hidden.sum(1) / length).double())
        loss = -(log_prob_of(rows[part], logp).double() * hidden).sum(1) / hidden.sum(1)
        total.index_add_(0, revealed[part], loss)
        number.index_add_(0, revealed[part], torch.ones_like(loss))
    return falling((total / number).tolist())


def revealing(written: Sequence[int]) -> Sampler:
    """A rule that writes so many masks in each step, drawn evenly."""

    @proposing
    def rule(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
        open_ = masks("revealing", process, z, draw)
        step = ((1 - t) * len(written)).round().long().clamp_max(len(written) - 1)
        chosen = top(rand(z.shape, draw.generator), open_, torch.tensor(written)[step])
        return propose(process, denoiser, z, t, s, draw, chosen).write(chosen)

    return rule


def written(lm: LM, judge: NGram | None, steps: int, surprise: Sequence[float], cell: Cell) -> dict[str, Any]:
    """Every schedule in so many steps: what it should cost, and what it makes of the text."""
    rows = list[dict[str, Any]]()
    plans = {name: counts(name, lm.context, steps) for name in SCHEDULES}
    plans["best"] = best(surprise, steps)
    for name, plan in plans.items():
        options: dict[str, Any] = {"num": cell.options["samples"], "seed": cell.seed, "steps": len(plan)}
        drawn = lm.generate(**options, sampler=revealing(plan))
        spent = costs(surprise, plan)
        found: dict[str, Any] = {"schedule": name, "counts": plan, "cost": sum(spent), "costs": spent}
        found |= {"nfe": drawn.samples.nfe, **variety(drawn.tokens.tolist())}
        if judge is None:
            found |= toy.report(drawn.texts)
        else:
            bits = mean_of([judge.bits_per_char(text) for text in drawn.texts if text])
            found |= {"bits_per_char": bits.mean, "bits_per_char_error": bits.error}
        rows.append(found)
    return {"steps": steps, "rows": rows}


STUDY = Study(
    name="schedules",
    question=(
        "MaskGIT unmasks few tokens at first and many at last (cosine), and writes better than by even steps. Why? "
        "Tokens written in one step are drawn without regard to one another; how much that costs can be computed."
    ),
    told=(
        "The schedule matters: unmasking few tokens at first and more later suits text, since tokens of one step are "
        "drawn apart and then stay, so that early conflicts compound."
    ),
    claims=CLAIMS,
    protocol=(
        "Toy language: 252 sentences of six tokens; what a token surprises when j others are known, h_j, is exact, by "
        "every subset of positions. Text: python-docs, characters; h_j is the trained model's loss on held-out rows "
        "by the number of known tokens, made to never rise.",
        "A step that writes n tokens beside j known ones costs n h_j - (h_j + .. + h_{j+n-1}) nats a text on average "
        "over orders: the total correlation of what it writes. The sum is KL(text and order || sampler's).",
        "Every schedule writes in random order at temperature 1, the same numbers of calls: which positions, and which "
        "tokens, is not what is compared. best: the counts of least cost, by dynamic programming.",
        "Counted: sentences that are not of the language (toy); bits per character under a character 5-gram of the "
        "training text (text), to be read beside the unigram entropy of the samples.",
    ),
    names=names,
    options=options,
    measure=measure,
    conclude=conclude,
    full=Budget(steps=600, seeds=1, draws=8, samples=500),
    quick=Budget(steps=300, seeds=1, draws=4, samples=100),
)
