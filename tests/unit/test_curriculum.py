"""Duo in training: the curriculum ends when it should, and what was not measured is not in the log."""

import json

import pytest
import torch

from redraft import runs

TINY = {"objective": "duo", "train.steps": 6, "train.warmup": 1, "model.depth": 1, "train.batch": 8, "eval.draws": 1}
TINY |= {"train.log_every": 1, "eval.rows": 8}


def rows(out):
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in logged if "loss" in row}


def test_the_bound_appears_when_the_curriculum_ends(tmp_path):
    """Half of 6 steps are relaxed: their rows have a loss and no bound, later ones both, and the same."""
    run = runs.train("toy_uniform", out=tmp_path / "a", overrides=TINY)
    logged = rows(tmp_path / "a")
    assert [step for step in logged if "bound" in logged[step]] == [4, 5, 6]
    assert all(logged[step]["loss"] == pytest.approx(logged[step]["bound"], rel=1e-6) for step in (4, 5, 6))
    assert run.likelihood.is_bound
    shorter = runs.train("toy_uniform", out=tmp_path / "b", overrides={**TINY, "loss.curriculum": 0.2})
    assert [step for step in rows(tmp_path / "b") if "bound" in rows(tmp_path / "b")[step]] == [3, 4, 5, 6]
    warmer = runs.train("toy_uniform", out=tmp_path / "c", overrides={**TINY, "loss.temperature": 0.5})
    heads = [one.lm.denoiser.head.weight for one in (run, shorter, warmer)]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    plain = runs.train("toy_uniform", out=tmp_path / "d", overrides={**TINY, "objective": "udlm"})
    none = runs.train("toy_uniform", out=tmp_path / "e", overrides={**TINY, "loss.curriculum": 0.0})
    assert torch.equal(plain.lm.denoiser.head.weight, none.lm.denoiser.head.weight)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("toy_hybrid", {"objective": "duo"}, "duo"),
        ("toy_uniform", {"objective": "gidd"}, "gidd"),
        ("toy_uniform", {"process.steps": 8}, "continuous"),
        ("toy_uniform", {"objective": "udlm", "loss.temperature": 0.5}, "no option 'temperature'"),
        ("toy_uniform", {"loss.temperature": 0.0}, r"loss\.temperature"),
    ],
)
def test_misfits_are_refused_before_any_step(recipe, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs.train(recipe, out=tmp_path / "run", overrides={**TINY, **options})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
