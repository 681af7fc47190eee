"""Study ``time-conditioning``: does telling the model t help a masked denoiser, and does it listen?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft import recipes
from redraft.data import Packed, load_data
from redraft.evaluation import likelihood
from redraft.evaluation.intervals import ratio
from redraft.lm import LM
from redraft.processes import Denoiser, Facts
from redraft.recipes import Config
from redraft.studies.findings import (
    Conclusion,
    Estimate,
    Finding,
    Plot,
    Table,
    below,
    estimate,
    mean_over,
    pooled,
)
from redraft.studies.runner import Budget, Cell, Record, Study
from redraft.studies.training import trained
from redraft.studies.unmasking_order import CORPORA
from redraft.studies.unmasking_order import config as of_corpus

TOLD, UNTOLD = "told", "untold"
WRONG = (0.1, 0.5, 0.9)
"""What a model that is told the time is told instead, wherever it stands."""

HELPS = "a masked model that is told the time does better: its bound is lower than that of one that is not"
LISTENS = "a model that was told the time does worse when it is told a wrong one"
CLAIMS = (HELPS, LISTENS)


@dataclass(frozen=True)
class Misled:
    """``denoiser``, told ``t`` whatever the time is."""

    denoiser: Denoiser
    t: float

    @property
    def facts(self) -> Facts:
        return self.denoiser.facts

    def __call__(self, z: Tensor, t: Tensor, cond: Any = None, **more: Any) -> Tensor:
        return self.denoiser(z, torch.full_like(t, self.t), cond, **more)


def names() -> Sequence[str]:
    return [f"{corpus} {told}" for corpus in CORPORA for told in (UNTOLD, TOLD)]


def config(name: str, budget: Budget) -> Config:
    """One recipe a corpus; whether its model is told the time is all that differs."""
    corpus, told = name.split()
    same = of_corpus(corpus, budget)
    return replace(same, model=replace(same.model, time_conditioned=told == TOLD))


def options(name: str, budget: Budget) -> dict[str, Any]:
    return {"config": recipes.to_dict(config(name, budget)), "draws": budget.draws, "wrong": list(WRONG)}


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train; the bound by one estimator for all; and that of a model misled about the time."""
    preset, lm, figures = trained(cell, folder)
    held_out = load_data(preset.data, lm.tokenizer).held_out
    assert held_out is not None
    found = {**figures, "bound": bound(lm, lm.denoiser, held_out, cell)}
    if lm.denoiser.facts.time_conditioned:
        found["misled"] = {str(t): bound(lm, Misled(lm.denoiser, t), held_out, cell) for t in cell.options["wrong"]}
    return found


def bound(lm: LM, denoiser: Denoiser, held_out: Packed, cell: Cell) -> dict[str, Any]:
    """The NELBO as an integral over t: the estimator that both kinds of model allow, on the same noise; row by row."""
    draws = cell.options["draws"]
    found = likelihood(denoiser, lm.process, held_out, draws=draws, seed=cell.seed, estimator="vlb").to_record()
    return {**found, "row_nats": [round(nats, 4) for nats in found["row_nats"]]}


# ------------------------------------------------------------------------------------------------ what records say


Measured = dict[int, dict[str, Any]]
"""What a cell measured, by seed."""


def conclude(records: Sequence[Record]) -> Conclusion:
    """A table, a plot and findings, from the records alone."""
    by_cell = dict[str, Measured]()
    for record in records:
        if record.measured is not None:
            by_cell.setdefault(record.cell.name, {})[record.cell.seed] = record.measured
    bounds = {name: pooled([nats(one["bound"]) for one in rows.values()]) for name, rows in by_cell.items()}
    found = list[Finding]()
    for corpus in CORPORA:
        told, untold = f"{corpus} {TOLD}", f"{corpus} {UNTOLD}"
        found.append(_helps(told, untold, by_cell, bounds))
        if told in by_cell:
            found.append(_listens(told, by_cell[told], bounds[told]))
    return Conclusion([_table(by_cell, bounds)], [_plot(by_cell, bounds)], found)


def nats(found: dict[str, Any]) -> Estimate:
    return estimate(found, "nats_per_token")


def misled(rows: Measured, t: str) -> Estimate:
    return pooled([nats(one["misled"][t]) for one in rows.values()])


def apart(one: dict[str, Any], other: dict[str, Any]) -> Estimate:
    """The difference of two bounds of the same rows, nats per token, by the rows' own differences."""
    gaps = [a - b for a, b in zip(one["row_nats"], other["row_nats"], strict=True)]
    return ratio(gaps, one["row_tokens"])


def _helps(told: str, untold: str, by_cell: dict[str, Measured], bounds: dict[str, Estimate]) -> Finding:
    of = [by_cell.get(name, {}) for name in (told, untold)]
    gaps = [apart(of[0][seed]["bound"], of[1][seed]["bound"]) for seed in sorted(of[0].keys() & of[1].keys())]
    return below(HELPS, told, untold, bounds, "nats per token", gap=pooled(gaps) if gaps else None)


def _listens(name: str, rows: Measured, right: Estimate) -> Finding:
    """Of all wrong times that which costs most: does it cost anything?"""
    times = next(iter(rows.values()))["misled"]
    gaps = {t: pooled([apart(one["bound"], one["misled"][t]) for one in rows.values()]) for t in times}
    worst = min(gaps, key=lambda t: gaps[t].mean)
    own, wrong = f"{name}, told right", f"told t = {worst}"
    values = {own: right, wrong: misled(rows, worst)}
    return below(LISTENS, own, wrong, values, "nats per token", comparisons=len(gaps), gap=gaps[worst])


def _table(by_cell: dict[str, Measured], bounds: dict[str, Estimate]) -> Table:
    lines = list[tuple[str, ...]]()
    for name, rows in by_cell.items():
        every = list(rows.values())
        wrong = [misled(rows, str(t)).text() if "misled" in every[0] else "-" for t in WRONG]
        spent = f"{mean_over(every, 'train_cpu_seconds'):.0f}"
        lines.append((name, bounds[name].text(), *wrong, f"{mean_over(every, 'parameters'):.0f}", spent))
    columns = ("cell", "bound", *(f"told t = {t}" for t in WRONG), "weights", "training CPU s")
    note = "Nats per token, by the integral over t for all, on the same rows and noise."
    return Table("Bounds", columns, lines, note)


def _plot(by_cell: dict[str, Measured], bounds: dict[str, Estimate]) -> Plot:
    def draw(figure: Any) -> None:
        for axes, corpus in zip(figure.subplots(1, len(CORPORA), squeeze=False)[0], CORPORA, strict=True):
            bars = {told: bounds[name] for told in (UNTOLD, TOLD) if (name := f"{corpus} {told}") in bounds}
            if (rows := by_cell.get(f"{corpus} {TOLD}")) is not None:
                bars |= {f"told {t}": misled(rows, str(t)) for t in WRONG}
            heights, errors = [one.mean for one in bars.values()], [one.error for one in bars.values()]
            axes.errorbar(range(len(bars)), heights, errors, fmt="o", capsize=3)
            axes.set_xticks(range(len(bars)), list(bars))
            axes.set(title=corpus, ylabel="nats per token")

    caption = "The bound of models untold, told the time, and told a wrong one wherever they stand."
    return Plot("bounds", caption, draw)


STUDY = Study(
    name="time-conditioning",
    question="Does telling the model the time help a masked denoiser, and does a model that is told listen?",
    told=(
        "Earlier models were told the noise level. For masked ones it was then shown, by MD4, MDLM and RADD at about "
        "the same time, that it can be left out, which makes training simpler."
    ),
    claims=CLAIMS,
    protocol=(
        "Toy language and characters of python-docs; a pair of models that differ in one thing, whether the time is an "
        "input. The input adds weights, which are counted in the table.",
        "Under masked noise p(x0 | z, t) does not depend on t (MD4, arXiv 2406.04329; RADD, arXiv 2406.03736): an "
        "exact denoiser has nothing to gain, and how many masks there are can be seen.",
        "Misled models are told one time wherever they stand, on the same rows and noise as before. Of the wrong times "
        "that which costs most is told, with an interval widened for their number (Bonferroni).",
        "Differences are those of the same rows under the same noise, one by one; over seeds, of their means.",
    ),
    names=names,
    options=options,
    measure=measure,
    conclude=conclude,
    full=Budget(steps=500, seeds=2, draws=8, samples=0),
    quick=Budget(steps=200, seeds=1, draws=4, samples=0),
)
