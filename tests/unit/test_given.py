"""``loss.given`` from recipe to model: it trains another model, refuses what it does not fit, and can be resumed."""

import shutil

import pytest
import torch

from redraft import recipes, runs

TINY = {"train.steps": 3, "train.warmup": 1, "model.depth": 1, "train.batch": 8, "eval.draws": 1, "eval.rows": 16}


@pytest.mark.parametrize("recipe", ["toy_uniform", "toy_hybrid", "toy_gaussian"])
def test_a_share_of_rows_is_given_text(recipe, tmp_path):
    """The share changes the weights; both models infill, told or not; the bound reported is the usual one's kind."""
    models = {}
    for share in ("none", "0.2", "0.8"):
        run = runs.train(recipe, out=tmp_path / share, overrides={**TINY, "loss.given": share})
        models[share] = run.lm
        assert run.likelihood.nats_per_token > 0
        made = run.lm.infill("our [MASK] is [MASK:2]", given="told", steps=3)
        assert made.text.startswith("our ")
    weights = {share: lm.denoiser.head.weight for share, lm in models.items()}
    assert not torch.equal(weights["none"], weights["0.2"])
    assert not torch.equal(weights["0.8"], weights["0.2"])
    assert recipes.get(recipe).loss.given is None


def test_resumed_training_is_uninterrupted_training(tmp_path):
    options = {**TINY, "train.steps": 4, "train.save_every": 2, "loss.given": 0.5}
    whole = runs.train("toy_uniform", out=tmp_path / "whole", overrides=options)
    shutil.copytree(
        tmp_path / "whole" / "checkpoints" / "step-000002", tmp_path / "cut" / "checkpoints" / "step-000002"
    )
    with pytest.raises(ValueError, match=r"loss\.given=0\.2: it was trained with loss\.given=0\.5"):
        runs.train("toy_uniform", out=tmp_path / "cut", overrides={**options, "loss.given": 0.2}, resume=True)
    again = runs.train("toy_uniform", out=tmp_path / "cut", overrides=options, resume=True)
    for name, value in whole.lm.denoiser.state_dict().items():
        assert torch.equal(again.lm.denoiser.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("toy_masked", {"loss.given": 0.5}, r"loss\.given with a masked process"),
        ("toy_uniform", {"loss.given": 1.0}, r"loss\.given"),
        ("toy_uniform", {"loss.given": 0.5, "objective": "duo"}, r"loss\.given with objective 'duo'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(recipe, options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        runs.train(recipe, out=tmp_path / "run", overrides={**TINY, **options})
