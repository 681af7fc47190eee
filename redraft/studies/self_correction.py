"""Study ``self-correction``: which samplers mend what they wrote wrong, at how many calls, and for how much variety."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from redraft import recipes
from redraft.data import toy
from redraft.evaluation import variety
from redraft.files import write_text
from redraft.lm import LM, Generation
from redraft.recipes import Config, EvalConfig
from redraft.studies import syntax
from redraft.studies.lineage import TRAIN
from redraft.studies.runner import Budget, Cell, Study
from redraft.studies.self_correction_claims import CLAIMS, conclude
from redraft.studies.training import trained

LENGTH = 96
CELLS = {
    "toy masked": "toy_masked",
    "toy uniform": "toy_uniform",
    "toy hybrid": "toy_hybrid",
    "code masked": "mdlm",
    "code hybrid": "gidd",
}
CALLS = {"toy": (4, 8, 16, 32), "code": (16, 32, 64)}
ONCE = ("ancestral",)
MASKED = (
    "low_confidence",
    "threshold:tau=0.9",
    "entropy_bounded",
    "maskgit",
    "remdm:strategy=rescale,eta=0.1",
    "remdm:strategy=conf",
    "forward_backward",
    "low_confidence+remask:share=0.2",
    "low_confidence+remask:share=0.2,when=written",
    "low_confidence+edit:tau=0.5",
    "wino",
    "gibbs",
)
SWAPPING = ("psi:rule=constant,eta=0.1", "gibbs", "informed:k=1")
UNIFORM = (*SWAPPING, "renoise")
TWICE = ("gibbs", "informed:k=1")
"""Samplers whose step is two calls where noise swaps tokens; among masks ``gibbs`` is too."""


def names() -> Sequence[str]:
    return tuple(CELLS)


def config(name: str, budget: Budget) -> Config:
    """The recipes' own settings on the toy language; one optimiser for the code models."""
    preset = recipes.get(CELLS[name])
    train = preset.train if name.startswith("toy") else TRAIN
    if name.startswith("code"):
        preset = replace(preset, data=replace(preset.data, source="code.txt", tokenizer="chars", length=LENGTH))
        preset = replace(preset, model=replace(preset.model, depth=2))
    train = replace(train, steps=budget.steps, threads=1, eval_every=0)
    return replace(preset, train=train, eval=EvalConfig(draws=1))


def samplers(name: str) -> tuple[str, ...]:
    """Those that fit the noise of a cell."""
    if name.endswith("masked"):
        return (*ONCE, *MASKED)
    return (*ONCE, *(UNIFORM if name.endswith("uniform") else SWAPPING))


def options(name: str, budget: Budget) -> dict[str, Any]:
    calls = CALLS[name.split()[0]]
    draws = budget.draws if name.startswith("toy") else 1
    chosen = {"config": recipes.to_dict(config(name, budget)), "draws": draws, "samples": budget.samples}
    return {**chosen, "calls": list(calls), "samplers": list(samplers(name))}


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train, then write by every sampler at every number of calls, and count what is wrong."""
    told, code = dict(cell.options), syntax.corpus() if cell.name.startswith("code") else None
    if code is not None:
        write_text(folder / "code.txt", code)
        told["config"] = {**told["config"], "data": {**told["config"]["data"], "source": str(folder / "code.txt")}}
    _, lm, figures = trained(replace(cell, options=told), folder)
    rows = [
        written(lm, sampler, calls, cell)
        for sampler in cell.options["samplers"]
        for calls in cell.options["calls"]
    ]  # fmt: skip
    found: dict[str, Any] = {**figures, "rows": rows}
    if code is not None:
        right, all_lines = syntax.parsing([code])
        found["human"] = {"right": right, "n": all_lines}
    return found


def written(lm: LM, sampler: str, calls: int, cell: Cell) -> dict[str, Any]:
    """Texts of one sampler in about so many calls: errors, what they cost a row, and how varied they are."""
    twice = sampler in TWICE
    num = cell.options["samples"] if cell.name.startswith("toy") else max(2, cell.options["samples"] // 8)
    steps = max(1, calls // 2 if twice else calls)
    drawn: Generation = lm.generate(num=num, steps=steps, seed=cell.seed, sampler=sampler)
    cost = drawn.samples.cost
    found = {"sampler": sampler, "calls": calls, "nfe": sum(cost.of_rows) / len(cost.of_rows)}
    found |= {"positions": cost.positions / len(cost.of_rows), **variety(drawn.tokens.tolist())}
    if cell.name.startswith("toy"):
        said = toy.report(drawn.texts)
        kinds = {"right": round(said["well_formed"] * num), "agreement": round(said["agreement"] * num)}
        return {**found, **kinds, "n": num, "distinct": said["distinct"], "expected": said["expected_distinct"]}
    right, lines = syntax.parsing(drawn.texts)
    return {**found, "right": right, "n": lines, "text": drawn.text}


STUDY = Study(
    name="self-correction",
    question=(
        "Whoever writes several tokens at once makes mistakes. Which samplers mend theirs, at how many calls of the "
        "network, and what do they give up in variety for it?"
    ),
    told=(
        "A masked model cannot change what it has written, so its mistakes stay and spread; Gaussian and uniform noise "
        "mend theirs by design. Remasking while sampling is said to make up for it."
    ),
    claims=CLAIMS,
    protocol=(
        "Toy language: 252 sentences of six tokens; an error is a text that is not one of them, and of those, errors "
        f"of agreement are told apart. Code: the beginnings of modules of the standard library, characters, {LENGTH} "
        "at a time; an error is a complete line that does not parse by itself (right programs have such lines, by "
        "quoted text and statements over several lines: their share stands beside).",
        "One network for all samplers of a cell, trained on the bound of its noise alone: nothing was taught to edit.",
        "Calls are those a row took part in, on average over rows: rules that are sure early take fewer than they may. "
        "Samplers that ask twice a step take half the steps. Lines of one text are counted as if independent.",
        "Variety is the unigram entropy of a text's own tokens and the share of different n-grams; on the toy language "
        "also how many different sentences occur, beside what exact draws would give.",
    ),
    names=names,
    options=options,
    measure=measure,
    conclude=conclude,
    full=Budget(steps=800, seeds=1, draws=4, samples=300),
    quick=Budget(steps=250, seeds=1, draws=4, samples=100),
)
