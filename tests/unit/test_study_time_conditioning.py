"""The study of the time as an input: pairs that differ in it alone, and verdicts that are those of the numbers."""

from dataclasses import replace

import pytest
import torch

from redraft import processes, recipes
from redraft.models import Transformer, TransformerConfig
from redraft.studies import time_conditioning as study
from redraft.studies.runner import Budget, Cell, Record

BUDGET = Budget(steps=3, seeds=1, draws=1, samples=1)


@pytest.mark.parametrize("corpus", study.CORPORA)
def test_a_pair_differs_in_the_time_alone(corpus):
    told, untold = (study.config(f"{corpus} {one}", BUDGET) for one in (study.TOLD, study.UNTOLD))
    assert told.model.time_conditioned
    assert not untold.model.time_conditioned
    assert replace(told, model=untold.model) == untold


def test_misled_is_told_one_time_and_nothing_else_changes():
    torch.manual_seed(0)
    process = processes.masked(13)
    model = Transformer(TransformerConfig(process.to_dict(), depth=1, time_conditioned=True)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    z, t = torch.tensor([[1, 13, 13], [2, 3, 13]]), torch.tensor([0.2, 0.9])
    wrong = study.Misled(model, 0.5)
    assert torch.equal(wrong(z, t), model(z, torch.full_like(t, 0.5)))
    assert not torch.allclose(wrong(z, t), model(z, t))
    assert wrong.facts == model.facts


@pytest.mark.parametrize("told", [study.TOLD, study.UNTOLD])
def test_a_cell_is_measured(told, tmp_path):
    name = f"toy {told}"
    found = study.measure(Cell(name, 0, study.options(name, BUDGET)), tmp_path)
    assert found["bound"]["estimator"].startswith("continuous-time NELBO")
    assert ("misled" in found) == (told == study.TOLD)
    if told == study.TOLD:
        assert set(found["misled"]) == {"0.1", "0.5", "0.9"}
        assert found["misled"]["0.9"] != found["bound"], "a few steps are enough to listen a little"


def rows(nats, jitter=0.0):
    """Four rows of two tokens, which differ by far more than models do, ``jitter`` aside."""
    each = [2 * (nats + level + jitter * sign) for level, sign in zip((-3, -1, 1, 3), (1, -1, -1, 1), strict=True)]
    told = {"nats_per_token": nats, "nats_per_token_error": 2.0}
    return {**told, "row_nats": each, "row_tokens": [2] * 4}


def made_up(name, nats, misled=None, jitter=0.0):
    figures = {"bound": rows(nats), "train_cpu_seconds": 1.0, "parameters": 10**6}
    if misled is not None:
        figures["bound"] = rows(nats, jitter)
        figures["misled"] = {str(t): rows(value) for t, value in zip(study.WRONG, misled, strict=True)}
    return Record(Cell(name, 0, {}), figures)


@pytest.mark.parametrize(
    ("told", "misled", "helps", "listens"),
    [
        (1.0, (1.0, 1.0, 1.0), "not separated", "not separated"),
        (0.9, (1.0, 0.9, 0.9), "holds", "holds"),
        (1.1, (1.0, 1.0, 1.0), "fails", "fails"),
        # rows differ by 0.01 sqrt(4/3) / 2, times 3.18 of Student's t: 0.0184; for the worst of three a fifth more
        (0.98, (1.0, 0.98, 0.98), "holds", "not separated"),
    ],
)
def test_verdicts_are_what_the_numbers_say(told, misled, helps, listens):
    """Differences are of the same rows, one by one: a bound's own interval of 2 nats hides none of them."""
    made = [made_up("toy untold", 1.0), made_up("toy told", told, misled, jitter=0.01)]
    findings = study.conclude([*made, Record(Cell("x", 0, {}), failed="no")]).findings
    toy = [one for one in findings if "toy" in one.sentence]
    assert {one.claim: one.verdict for one in toy} == {study.HELPS: helps, study.LISTENS: listens}
    assert {one.verdict for one in findings if one not in toy} == {"not measured"}


def test_the_recipes_are_known():
    for name in study.names():
        assert recipes.from_dict(study.options(name, BUDGET)["config"]) == study.config(name, BUDGET)
