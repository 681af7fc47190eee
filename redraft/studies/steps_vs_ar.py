"""Study ``steps-vs-ar``: when does writing in parallel pay, beside one token at a time with a key-value cache?"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from redraft import recipes
from redraft.data import read_documents, split_held_out
from redraft.evaluation.ngram import NGram
from redraft.lm import LM
from redraft.models import Transformer
from redraft.recipes import Config, EvalConfig
from redraft.studies import cached
from redraft.studies.lineage import DATA, DEPTH, LENGTH, TRAIN, human, judged
from redraft.studies.lineage_claims import COLLAPSE
from redraft.studies.runner import Budget, Cell, Study
from redraft.studies.steps_vs_ar_claims import AR, BLOCKS, CLAIMS, LONGER, MARGIN, MASKED, conclude
from redraft.studies.training import trained

CELLS = {AR: "autoregressive", MASKED: "mdlm", LONGER: "mdlm", BLOCKS: "bd3lm"}
TIMES = 4
"""How much longer the longer trained one is."""
NFE = (2, 4, 8, 16, 32, 64)
WIDTH = 8
"""Positions of a block; its steps are those that divide it."""
STEPS = (1, 2, 4, 8)
SAMPLERS = ("random_order", "low_confidence")
ROUNDS = 3
BATCH = 16
"""Texts that are written together where time is measured."""


def names() -> Sequence[str]:
    return tuple(CELLS)


def config(name: str, budget: Budget) -> Config:
    """The presets of the lineage on its text, network and optimiser."""
    preset = recipes.get(CELLS[name])
    block = WIDTH if preset.model.block else None
    steps = budget.steps * (TIMES if name == LONGER else 1)
    model, train = replace(preset.model, depth=DEPTH, block=block), replace(TRAIN, steps=steps)
    return replace(preset, model=model, data=DATA, train=train, eval=EvalConfig(draws=1))


def options(name: str, budget: Budget) -> dict[str, Any]:
    chosen = {"config": recipes.to_dict(config(name, budget)), "draws": budget.draws, "samples": budget.samples}
    if name == AR:
        return chosen
    return {**chosen, "samplers": list(SAMPLERS), "steps": list(STEPS if name == BLOCKS else NFE)}


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train; write by each sampler in each number of steps; judge it, and measure what a token costs."""
    preset, lm, figures = trained(cell, folder)
    training_text, held_out = split_held_out(read_documents(preset.data.source), preset.data.held_out)
    judge = NGram(training_text)
    rows = [
        written(lm, judge, cell, sampler, steps)
        for sampler in cell.options.get("samplers", ["cached"])
        for steps in cell.options.get("steps", [LENGTH])
    ]
    return {**figures, "human": human(judge, held_out, cell.options["samples"]), "rows": rows}


def written(lm: LM, judge: NGram, cell: Cell, sampler: str, steps: int) -> dict[str, Any]:
    """Texts of one sampler in so many steps, and what they cost: calls, FLOPs and CPU seconds a token."""
    num, denoiser = cell.options["samples"], lm.denoiser
    if cell.name == AR:
        assert isinstance(denoiser, Transformer)
        tokens = cached.write(denoiser, LENGTH, num, cell.seed).tolist()
        texts, nfe = [lm.decode(row) for row in tokens], float(LENGTH)

        def write(n: int) -> object:
            return cached.write(denoiser, LENGTH, n, cell.seed)
    else:
        drawn = lm.generate(num=num, steps=steps, seed=cell.seed, sampler=sampler)
        tokens, texts = drawn.tokens.tolist(), drawn.texts
        nfe = sum(drawn.samples.cost.of_rows) / num

        def write(n: int) -> object:
            return lm.generate(num=n, steps=steps, seed=cell.seed, sampler=sampler)

    return {
        "sampler": sampler,
        "steps": steps,
        "nfe": nfe,
        **judged(judge, texts, tokens),
        "flops": cached.flops(lambda: write(1)) / LENGTH,
        "seconds_alone": seconds(lambda: write(1), LENGTH),
        "seconds_batch": seconds(lambda: write(BATCH), BATCH * LENGTH),
        "text": texts[0],
    }


def seconds(work: Callable[[], object], tokens: int) -> list[float]:
    """CPU seconds a token, one thread, of each of ``ROUNDS`` repeats after one that warms up."""
    work()
    found = list[float]()
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        found.append((time.process_time() - started) / tokens)
    return found


STUDY = Study(
    name="steps-vs-ar",
    question=(
        "A masked model writes many tokens a call, an autoregressive one a token a call; but the first reads the whole "
        "canvas every time, and the second, with a cache, one position. At equal quality, when does parallel decoding "
        "pay?"
    ),
    told=(
        "A diffusion model decides several tokens in one step, so that inference takes fewer steps than one a token; "
        "yet attention over the whole sequence at every step makes it costly."
    ),
    claims=CLAIMS,
    protocol=(
        f"Text: python-docs, characters, {LENGTH} at a time; network: ours, depth {DEPTH}; one optimiser for all, "
        f"equal tokens, but for the model called {LONGER}, which is trained on {TIMES} times as many.",
        "The autoregressive model is written by a cache of keys and values: one position read a token, the law of the "
        "full recompute. Masked models read all positions at every call (the last block and the output layer only "
        f"those asked about); blocks of {WIDTH} read the block, and finished blocks from an exact cache.",
        "FLOPs are those of the matrix products and attention that were run, counted by torch, two a multiply-add. "
        f"Seconds are CPU seconds of one thread, {ROUNDS} repeats, of one text alone and of {BATCH} together.",
        "Quality: bits per character under a character 5-gram of the training text. It counts as the autoregressive "
        f"model's if the 95% interval of the difference stays below {MARGIN} bits, and texts are as varied: "
        f"{COLLAPSE:.0%} of human text's unigram entropy at least. Of the ways that count the cheapest is told; among "
        "many, one may count by luck.",
        "CPU arithmetic. On an accelerator one position a call leaves most of the chip idle, and a call of many costs "
        "hardly more: seconds there are another question, FLOPs the same.",
    ),
    names=names,
    options=options,
    measure=measure,
    conclude=conclude,
    full=Budget(steps=1000, seeds=1, draws=16, samples=384),
    quick=Budget(steps=100, seeds=1, draws=1, samples=32),
)
