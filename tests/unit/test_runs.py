"""From recipe to model: ``train``, its folder, and the options that must matter."""

import json

import pytest
import torch

from redraft import recipes, runs

TINY = {"train.steps": 4, "train.warmup": 1, "model.depth": 1, "train.batch": 8, "eval.draws": 1, "eval.rows": 16}
"""Small enough for a test; what it learns does not matter."""
TOY = {"data.source": "toy", "data.tokenizer": "toy", "data.length": 6}


@pytest.mark.parametrize("recipe", ["toy_masked", "toy_uniform", "toy_hybrid", "toy_gaussian", "autoregressive"])
def test_every_family_trains_evaluates_and_loads(recipe, tmp_path):
    options = {**TINY}
    if recipe == "autoregressive":
        options |= TOY
    run = runs.train(recipe, out=tmp_path / "run", overrides=options)
    assert (run.stopped, run.step) == (False, 4)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["nats_per_token"] == run.likelihood.nats_per_token
    assert results["recipe"]["train"]["steps"] == 4
    again = runs.load(tmp_path / "run")
    assert again.generate(num=2, seed=1).texts == run.lm.generate(num=2, seed=1).texts
    with pytest.raises(ValueError, match="resume"):
        runs.train(recipe, out=tmp_path / "run", overrides=options)


def test_text_file_data_and_seed(tmp_path):
    text = tmp_path / "my.txt"
    text.write_text("\n\n".join(f"Paragraph {i} says that {i * i} is the square of {i}." for i in range(200)))
    options = {**TINY, "data.tokenizer": "bytes", "data.length": 32}
    run = runs.train("mdlm", data=text, out=tmp_path / "a", overrides=options)
    assert run.likelihood.bits_per_char is not None
    assert run.lm.about["data"]["source"] == str(text)
    other = runs.train("mdlm", data=text, out=tmp_path / "b", overrides={**options, "train.seed": 1})
    weights = (run.lm.denoiser.head.weight, other.lm.denoiser.head.weight)
    assert not torch.equal(*weights)


def test_configure_accepts_names_and_recipes():
    base = recipes.get("mdlm")
    assert runs.configure("mdlm", None, {"train.lr": 1.0}) == runs.configure(base, None, {"train.lr": "1.0"})
    with pytest.raises(ValueError, match=r"did you mean 'train\.lr'"):
        runs.configure("mdlm", None, {"train.lrr": 1.0})
    with pytest.raises(ValueError, match="the same field"):
        runs.configure("mdlm", "a.txt", {"data.source": "b.txt"})


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("mdlm", {"objective": "nelboo"}, "unknown objective 'nelboo'"),
        ("mdlm", {"objective": "autoregressive"}, "goes together"),
        ("mdlm", {"model.attention": "causal"}, "goes together"),
        ("udlm", {"model.time_conditioned": False}, "needs the time"),
        ("mdlm", {"process.schedule": "linaer"}, "did you mean 'linear'"),
        (
            "mdlm",
            {"process.uniform_share": 0.5},
            "process.uniform_share=0.5 with a masked process, which does not read",
        ),
        ("genmd4", {"process.schedule": "cosine"}, "process.schedule='cosine' with a learned process, which does not"),
        ("udlm", {"model.head": "subs"}, "'subs'"),
        ("mdlm", {"model.block": 4}, "block=4"),
        ("mdlm", {"loss.jump": 0.1}, "no option 'jump'"),
        ("d3pm_uniform", {"process.steps": None}, "set process.steps"),
        ("d3pm_uniform", {"process.schedule": "reciprocall"}, "did you mean 'reciprocal'"),
        ("gaussian", {"process.gamma_min": 9.0}, "gamma_min=9.0"),
        ("toy_masked", {"data.length": 7}, "rows of the toy language"),
        ("toy_masked", {"data.source": "python-docs"}, "toy language"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_any_step(recipe, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs.train(recipe, out=tmp_path / "run", overrides={**TINY, **TOY, **options})
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("process.kind", "ve"),
        ("process.schedule", "sqrt"),
        ("process.dim", 8),
        ("process.gamma_min", -2.0),
        ("process.gamma_max", 4.0),
        ("objective", "nelbo"),
    ],
)
def test_every_gaussian_option_changes_the_outcome(option, value, tmp_path):
    """On untrained weights a bound already depends on every fact of the process; training differs by objective."""
    base = {**TINY, "eval.draws": 1}
    found = [
        runs.train("toy_gaussian", out=tmp_path / str(i), overrides=options).likelihood.nats_per_token
        for i, options in enumerate([base, {**base, option: value}])
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("recipe", "option", "value"),
    [
        ("toy_masked", "process.schedule", "cosine"),
        ("toy_hybrid", "process.uniform_share", 0.5),
        ("toy_masked", "model.time_conditioned", True),
        ("toy_masked", "model.depth", 2),
        ("toy_masked", "objective", "cross_entropy"),
        ("toy_masked", "eval.draws", 3),
        ("toy_masked", "process.name", "hybrid"),
    ],
)
def test_every_other_option_changes_the_outcome(recipe, option, value, tmp_path):
    extra = {"model.time_conditioned": True} if value == "hybrid" else {}
    found = [
        runs.train(recipe, out=tmp_path / str(i), overrides={**TINY, **options}).likelihood.nats_per_token
        for i, options in enumerate([{}, {option: value, **extra}])
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("recipe", "option", "value"),
    [
        ("d3pm_uniform", "process.matrix", "band"),
        ("d3pm_uniform", "process.steps", 16),
        ("d3pm_uniform", "process.schedule", "reciprocal"),
        ("d3pm_gaussian", "model.head", "logistic"),
        ("d3pm_hybrid", "loss.auxiliary", 0.5),
        ("diffusionbert", "process.strength", 0.1),
        ("sedd_absorb", "model.head", "subs"),
        ("radd", "loss.variant", "k_dce"),
        ("gidd", "loss.weighting", "clip"),
        ("duo", "loss.temperature", 0.5),
        ("duo", "loss.curriculum", 0.0),
        ("bd3lm", "model.block", 2),
        ("bd3lm", "loss.mask_min", 0.3),
        ("bd3lm", "loss.mask_max", 0.7),
        ("mdlm", "model.attention", "permuted"),
    ],
)
def test_every_option_of_the_lineage_changes_the_outcome(recipe, option, value, tmp_path):
    """Two steps train other weights, or the same weights are measured otherwise."""
    tiny = {**TINY, **TOY, "train.steps": 2, "train.warmup": 0}
    if recipe == "bd3lm":
        tiny["model.block"] = 3
    objective = {"objective": "any_order"} if value == "permuted" else {}
    found = [
        runs.train(recipe, out=tmp_path / str(i), overrides={**tiny, **options}).likelihood.nats_per_token
        for i, options in enumerate([{}, {option: value, **objective}])
    ]
    assert found[0] != found[1]
