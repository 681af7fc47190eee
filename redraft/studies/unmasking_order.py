"""Study ``unmasking-order``: which kinds of tokens are fixed first, by sampler and number of steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from redraft import recipes
from redraft.data import toy
from redraft.evaluation import variety
from redraft.evaluation.intervals import mean_of
from redraft.lm import LM
from redraft.recipes import Config, EvalConfig
from redraft.sampling import Step
from redraft.studies.lineage import DATA, DEPTH, TRAIN
from redraft.studies.runner import Budget, Cell, Study
from redraft.studies.training import trained
from redraft.studies.unmasking_order_claims import CLAIMS, FEWEST, conclude

CORPORA = {"toy": "toy_masked", "characters": "mdlm"}
SAMPLERS = ("ancestral", "low_confidence", "topk_margin", "entropy", "threshold:tau=0.9")
SHARES = (1, 2)
"""Tokens a step: the first is one order, told exactly."""


def names() -> Sequence[str]:
    return tuple(CORPORA)


def config(name: str, budget: Budget) -> Config:
    """The masked model of a corpus, small, and the same wherever one is asked about."""
    preset = recipes.get(CORPORA[name])
    if name == "characters":
        preset = replace(preset, data=DATA, train=TRAIN, model=replace(preset.model, depth=DEPTH))
    return replace(preset, train=replace(preset.train, steps=budget.steps, threads=1), eval=EvalConfig(draws=1))


def options(name: str, budget: Budget) -> dict[str, Any]:
    chosen = {"config": recipes.to_dict(config(name, budget)), "draws": budget.draws, "samples": budget.samples}
    return {**chosen, "samplers": list(SAMPLERS), "tokens_a_step": list(SHARES)}


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train, then write by every sampler and see when each token is fixed."""
    _, lm, figures = trained(cell, folder)
    rows = [
        written(lm, sampler, share, cell)
        for sampler in cell.options["samplers"]
        for share in cell.options["tokens_a_step"]
    ]
    return {**figures, "rows": rows}


def written(lm: LM, sampler: str, share: int, cell: Cell) -> dict[str, Any]:
    """Texts of one sampler: where each kind stands in the order of writing, and how much of that is from the left."""
    steps, seen = max(1, lm.context // share), Order()
    drawn = lm.generate(num=cell.options["samples"], steps=steps, seed=cell.seed, sampler=sampler, callback=seen)
    places = order_of(seen.fixed)
    kinds = [[kind(cell.name, lm.decode([token])) for token in row] for row in drawn.tokens.tolist()]
    found: dict[str, Any] = {"sampler": sampler, "tokens_a_step": share, "nfe": mean(drawn.samples.cost.of_rows)}
    found["kinds"] = by_kind(places, kinds)
    left = mean_of(leftmost(seen.fixed).tolist())
    found |= {"leftmost": left.mean, "leftmost_error": left.error, "leftmost_by_chance": by_chance(seen.fixed)}
    return {**found, **variety(drawn.tokens.tolist()), "text": drawn.text}


@dataclass
class Order:
    """A callback that keeps the step at which each token was last changed; rows may be drawn some at a time."""

    _rows: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict[int, tuple[Tensor, Tensor]])

    def __call__(self, step: Step) -> None:
        for row, tokens in zip(step.rows, step.tokens, strict=True):
            fixed, before = self._rows.get(row, (torch.full_like(tokens, step.index), tokens))
            fixed[tokens != before] = step.index
            self._rows[row] = fixed, tokens.clone()

    @property
    def fixed(self) -> Tensor:
        """The steps, (B, L)."""
        return torch.stack([fixed for _, (fixed, _) in sorted(self._rows.items())])


# ---------------------------------------------------------------------------------------------------- arithmetic


def order_of(fixed: Tensor) -> Tensor:
    """Where each token stands in its row's order of writing, from 0 to 1, ties in the middle; (B, L), mean 1/2.

    place_i = (how many were fixed before i + half of the others of its step) / (L - 1)
    """
    before = (fixed[:, :, None] > fixed[:, None, :]).sum(-1)
    same = (fixed[:, :, None] == fixed[:, None, :]).sum(-1) - 1
    return (before + same / 2).double() / max(1, fixed.shape[1] - 1)


def leftmost(fixed: Tensor) -> Tensor:
    """The share of a row's tokens that were fixed while nothing to their left was open, (B,).

    A token counts if every token to its left was fixed in an earlier step, or in its own.
    """
    return (fixed == fixed.cummax(1).values).double().mean(1)


def by_chance(fixed: Tensor) -> float:
    """What ``leftmost`` is on average when the same steps fix as many tokens, at places drawn evenly.

    The token at i counts if no token left of it comes later. With c_j tokens fixed by the end of step j out of L, and
    n_j in that step, that is the mean over i of sum_j n_j / L C(c_j - 1, i) / C(L - 1, i).
    """
    total, L = 0.0, fixed.shape[1]
    for row in fixed.tolist():
        for step in set(row):
            among, n = sum(one <= step for one in row), row.count(step)
            share = 1.0  # of the ways to choose i others, those of which all were fixed by then
            for i in range(among):
                total += n / L * share
                share *= (among - 1 - i) / (L - 1 - i) if i < L - 1 else 0.0
    return total / fixed.numel()


def by_kind(places: Tensor, kinds: Sequence[Sequence[str]], fewest: int = FEWEST) -> dict[str, dict[str, float]]:
    """Each kind's mean place, with its interval over the texts that have any, ``fewest`` at least; and its share of
    all tokens."""
    texts = dict[str, list[float]]()
    counts = dict[str, int]()
    for row, of in zip(places.tolist(), kinds, strict=True):
        own = dict[str, list[float]]()
        for place, one in zip(row, of, strict=True):
            own.setdefault(one, []).append(place)
        for one, found in own.items():
            texts.setdefault(one, []).append(sum(found) / len(found))
            counts[one] = counts.get(one, 0) + len(found)
    found = dict[str, dict[str, float]]()
    for one, values in texts.items():
        if len(values) >= fewest:
            place = mean_of(values)
            share = counts[one] / places.numel()
            found[one] = {"place": place.mean, "error": place.error, "share": share, "texts": len(values)}
    return found


def kind(corpus: str, token: str) -> str:
    """What a token is: a part of speech of the toy language, or a class of characters."""
    if corpus == "toy":
        place = toy.UNITS.index(token) if token in toy.UNITS else toy.PAD
        bounds = ((3, "pronoun"), (6, "determiner"), (9, "noun"), (11, "verb"), (12, "plural s"))
        return next((name for end, name in bounds if place < end), "padding")
    if token == "\n":
        return "line end"
    if token == " ":
        return "space"
    if token.isalpha():
        return "capital" if token.isupper() else "vowel" if token in "aeiou" else "consonant"
    return "digit" if token.isdigit() else "punctuation"


STUDY = Study(
    name="unmasking-order",
    question="Which kinds of tokens does a masked model fix first, by the sampler and by how many it writes at a time?",
    told=(
        "It would be interesting to study which tokens, and which types of words, a masked model unmasks first, and "
        "whether there are patterns in what is fixed first."
    ),
    claims=CLAIMS,
    sampled="texts by each sampler in each number of steps",
    protocol=(
        "One masked model a corpus, the toy language and characters of python-docs, written by each sampler from "
        "nothing but masks.",
        "The place of a token is how many were fixed before it over all others, half of those of its own step counted; "
        "0 is first, 1 last, 1/2 on average. A kind's place is the mean over texts of its mean in a text, "
        f"of the {FEWEST} texts at least that have any.",
        "Of an exact model, a token drawn at a random place does not depend on when. An order under ancestral sampling "
        "is then drift: what the model says while it knows little is not the mean of what it says later.",
        "Among several kinds the intervals are widened for their number (Bonferroni), since each is a comparison. A "
        "rule that repeats itself writes hardly any kind but one: read its order with the unigram entropy.",
        "Leftmost: the share of tokens that had nothing open to their left when they were fixed, beside what steps of "
        "the same sizes at random places give.",
    ),
    names=names,
    options=options,
    measure=measure,
    conclude=conclude,
    full=Budget(steps=1000, seeds=2, draws=4, samples=128),
    quick=Budget(steps=300, seeds=1, draws=2, samples=64),
)
