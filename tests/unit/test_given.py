"""``loss.given`` from recipe to model: it trains another model, refuses what it does not fit, and can be resumed."""

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
