"""The study of Gaussian noise: its cells are the recipes at equal compute, its verdicts those of the numbers."""

import pytest

from redraft import recipes
from redraft.studies import gaussian, gaussian_claims
from redraft.studies.runner import Budget, Cell, Record

BUDGET = Budget(steps=120, seeds=1, draws=1, samples=8)


def test_every_cell_is_a_recipe_or_one_change_of_it():
    for name in gaussian.names():
        config = gaussian.config(name, BUDGET)
        preset = recipes.get(name.split()[0])
        same = (config.objective, config.data.source, config.train.optimizer, config.train.lr)
        assert same == (preset.objective, preset.data.source, preset.train.optimizer, preset.train.lr)
        assert config.data.tokenizer == ("toy" if name.startswith("toy_") else "chars")
        changed = config.process != preset.process or config.model != preset.model
        assert changed == (name in gaussian_claims.ABLATIONS), name


def test_compute_counts_the_rows_that_are_asked_about_twice():
    """Half the rows twice is a sixth more than a forward and a backward pass, a quarter a twelfth."""
    assert gaussian.compute(recipes.get("toy_masked")) == 1
    assert gaussian.compute(recipes.get("toy_cdcd")) == pytest.approx(7 / 6)
    assert gaussian.compute(recipes.get("toy_plaid")) == pytest.approx(13 / 12)
    assert gaussian.config("toy_cdcd", BUDGET).train.steps == round(120 * 6 / 7)
    assert gaussian.config("toy_cdcd alone", BUDGET).train.steps == 120


@pytest.mark.parametrize("name", ["toy_cdcd", "toy_masked"])
def test_a_cell_is_measured(name, tmp_path):
    budget = Budget(steps=3, seeds=1, draws=1, samples=4)
    cell = Cell(name, 0, {**gaussian.options(name, budget), "nfe": [5]})
    found = gaussian.measure(cell, tmp_path)
    assert found["unigrams"] == pytest.approx(2.2, abs=0.3)
    written = {row["sampler"]: row for row in found["samples"]}
    assert set(written) == ({"ancestral"} if name == "toy_masked" else set(gaussian.SAMPLERS))
    assert all(row["nfe"] <= 5 for row in written.values())
    if name == "toy_cdcd":
        assert {row["nfe"] for row in written.values()} == {5}


def made_up(name, nats, well_formed):
    rows = [
        {
            "calls": calls,
            "sampler": sampler,
            "n": 1000,
            "well_formed": share,
            "distinct": 200,
            "expected_distinct": 250.0,
        }
        for calls in (8, 64)
        for sampler, share in well_formed.items()
    ]
    likelihood = {"nats_per_token": nats, "nats_per_token_error": 0.01, "bits_per_char": None}
    shared = {"objective": "x", "steps": 3, "parameters": 10**6, "train_cpu_seconds": 1.0, "unigrams": 2.2}
    return Record(Cell(name, 0, {}), {"likelihood": likelihood, "samples": rows, **shared})


def test_verdicts_are_what_the_numbers_say():
    records = [
        made_up("toy_masked", 0.95, {"ancestral": 0.5}),
        made_up("toy_cdcd", 0.96, {"ancestral": 0.9, "ddim": 0.8, "heun": 0.95}),
        made_up("toy_cdcd alone", 0.97, {"ancestral": 0.9, "ddim": 0.8, "heun": 0.5}),
        made_up("toy_cdcd linear_gamma", 0.96, {"ancestral": 0.9, "ddim": 0.8, "heun": 0.8}),
        made_up("toy_plaid", 2.5, {"ancestral": 0.1, "ddim": 0.1, "heun": 0.1}),
        Record(Cell("cdcd", 0, {}), failed="ValueError: no"),
    ]
    told = gaussian_claims.conclude(records)

    def verdicts(claim, start):
        return {one.verdict for one in told.findings if one.claim == claim and one.sentence.startswith(start)}

    assert verdicts(gaussian_claims.LEARNS, "toy_cdcd:") == {"holds"}
    assert verdicts(gaussian_claims.LEARNS, "toy_plaid:") == {"fails"}
    assert verdicts(gaussian_claims.FEWER, "toy_cdcd ") == {"holds"}
    assert verdicts(gaussian_claims.FEWER, "toy_plaid ") == {"fails"}
    assert verdicts(gaussian_claims.FEWER, "toy_langflow ") == {"not measured"}
    assert verdicts(gaussian_claims.SELF, "toy_cdcd ") == {"not separated"}
    assert verdicts(gaussian_claims.ADAPTS, "toy_cdcd ") == {"not separated"}
    assert verdicts(gaussian_claims.ADAPTS, "toy_plaid against") == {"not measured"}
    heun = [
        one.verdict for one in told.findings if one.claim == gaussian_claims.HEUN and "toy_cdcd ill" in one.sentence
    ]
    assert heun == ["holds", "holds"]
    assert "4 of 5 models" in told.answer
    assert len(told.tables[1].rows) == 1 + 4 * 3
    assert gaussian_claims.conclude(records[-1:]).findings[0].verdict == "not measured"
