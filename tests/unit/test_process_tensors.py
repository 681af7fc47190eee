"""Processes that keep a tensor among a model's weights: made by a recipe, learned, stored and read back."""

import shutil
from dataclasses import replace

import pytest
import torch

from redraft import processes, recipes, runs
from redraft.data import build_tokenizer, load_data
from redraft.evaluation.estimators import (
    ESTIMATORS,
    choose,
    over_block_counts,
    over_block_steps,
    over_counts,
    over_steps,
)
from redraft.models import Transformer, TransformerConfig, folder
from redraft.processes import Categorical, Matrix, PerToken
from redraft.processes.d3pm import nearest, spelling
from redraft.recipes import ProcessConfig
from redraft.sampling import sample

D3PM = {"name": "d3pm", "steps": 8}
NOISES = {
    "masked": ProcessConfig(name="masked", steps=8),
    "uniform": ProcessConfig(name="uniform", steps=8),
    "hybrid": ProcessConfig(name="hybrid", steps=8),
    "spindle": ProcessConfig(name="spindle"),
    "learned": ProcessConfig(name="learned"),
    "gaussian": ProcessConfig(name="gaussian", schedule="linear_gamma"),
    "d3pm_uniform": ProcessConfig(**D3PM, matrix="uniform", schedule="cosine"),
    "d3pm_absorbing": ProcessConfig(**D3PM, matrix="absorbing", schedule="reciprocal"),
    "d3pm_hybrid": ProcessConfig(**D3PM, matrix="hybrid", schedule="reciprocal"),
    "d3pm_gaussian": ProcessConfig(**D3PM, matrix="gaussian"),
    "d3pm_band": ProcessConfig(**D3PM, matrix="band"),
    "d3pm_neighbour": ProcessConfig(**D3PM, matrix="neighbour", schedule="mutual_information"),
}


def config(noise, objective="nelbo", **train):
    base = recipes.get("toy_masked")
    model = replace(base.model, depth=1, time_conditioned=True)
    defaults = {"steps": 3, "batch": 8, "optimizer": "adamw", "warmup": 1}
    train = replace(base.train, **{**defaults, **train})
    measure = replace(base.eval, draws=1, rows=8)
    return replace(base, process=noise, model=model, objective=objective, train=train, eval=measure)


@pytest.fixture(scope="module")
def corpus():
    return load_data(recipes.get("toy_masked").data)


@pytest.mark.parametrize("name", NOISES)
def test_a_recipe_makes_it_and_a_folder_keeps_it(name, corpus, tmp_path):
    objective = "genmd4" if name == "learned" else "nelbo"
    process, model = runs.build(config(NOISES[name], objective), corpus.tokenizer, corpus.train)
    assert process.to_dict() == model.config.process
    assert process.name == NOISES[name].name
    kept = processes.tensors_of(process.to_dict())
    stored = dict(model.named_parameters()) | dict(model.named_buffers())
    assert all(stored[one.name].shape == one.shape for one in kept)
    folder.save(tmp_path, model.config, model.state_dict())
    again, _ = folder.load(tmp_path)
    assert again.process.to_dict() == process.to_dict()
    x0 = torch.randint(0, corpus.tokenizer.K, (2, 6), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.5, 1.0])
    draws = [one.corrupt(x0, t, torch.Generator().manual_seed(1)) for one in (process, again.process)]
    assert torch.equal(*draws)
    logp = model(draws[0], t)
    assert torch.equal(again(draws[0], t), logp)
    assert process.nelbo(logp, x0, draws[0], t.clamp(max=0.99)).isfinite().all()
    full = name in ("spindle", "learned", "gaussian")
    assert model.facts.posterior == ("full" if full else "cavity")
    drawn = sample(process, model, length=6, steps=4, seed=0).tokens
    assert ((drawn >= 0) & (drawn < corpus.tokenizer.K)).all()


@pytest.mark.parametrize("name", ["learned", "spindle", "d3pm_neighbour", "d3pm_absorbing", "uniform"])
def test_it_trains_and_is_measured(name, corpus, tmp_path):
    objective = "genmd4" if name == "learned" else "nelbo"
    run = runs.train(config(NOISES[name], objective, ema=0.5), out=tmp_path / "run")
    assert run.likelihood.nats_per_token > 0
    process = run.lm.denoiser.process
    if name == "learned":
        assert isinstance(process, PerToken)
        start = processes.per_token.usual_exponents(process.K)
        assert (process.tensor - start).abs().max() > 1e-4
        again = runs.load(tmp_path / "run").denoiser.process
        assert torch.equal(again.tensor, process.tensor)


def test_what_is_learned_is_the_models_own(corpus):
    """The process that training holds reads the parameter an optimiser moves, wherever the model went meanwhile."""
    process, model = runs.build(config(NOISES["learned"], "genmd4"), corpus.tokenizer, corpus.train)
    process = process.to("cpu")
    model.to(torch.float64)
    assert process.tensor is model.exponents
    with torch.no_grad():
        model.exponents.add_(1.0)
    assert torch.equal(model.process.tensor, process.tensor)
    assert process.hidden(torch.tensor([0.5]))[0].max() < 0.5


def test_resumed_training_of_the_rates_is_uninterrupted_training(corpus, tmp_path):
    whole = config(NOISES["learned"], "genmd4", steps=4, save_every=2, ema=0.9)
    first = runs.train(whole, out=tmp_path / "whole")

    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "half" / "checkpoints")
    for later in sorted((tmp_path / "half" / "checkpoints").iterdir()):
        if "4" in later.name:
            shutil.rmtree(later)
    assert [path.name for path in (tmp_path / "half" / "checkpoints").iterdir()] == ["step-000002"]
    second = runs.train(whole, out=tmp_path / "half", resume=True)
    assert torch.equal(first.lm.denoiser.exponents, second.lm.denoiser.exponents)


def test_matrices_are_built_once(corpus):
    """A chain's products are kept between calls, and follow the model's graph and device."""
    _, model = runs.build(config(NOISES["d3pm_neighbour"]), corpus.tokenizer, corpus.train)
    first = model.process
    assert isinstance(first, Matrix)
    assert model.process is first
    with torch.no_grad():
        model.graph.mul_(0.5)
    assert model.process is not first
    chain = Transformer(TransformerConfig(processes.d3pm(13, "gaussian", 4).to_dict(), depth=1))
    assert chain.process is chain.process


def test_scores_follow_the_training_text(corpus):
    process, _ = runs.build(config(NOISES["spindle"]), corpus.tokenizer, corpus.train)
    counts = torch.bincount(torch.as_tensor(corpus.train.ids).flatten().long(), minlength=process.K)
    hidden = process.hidden(torch.tensor([0.5]))[0][0, 0]
    assert hidden[counts.argmax()] < hidden[counts.argmin()]
    with pytest.raises(ValueError, match="training rows"):
        runs.build(config(NOISES["spindle"]), corpus.tokenizer)


def test_spelling_puts_like_letters_together():
    texts = build_tokenizer("bytes").tokens(range(257))
    rows = spelling(texts)
    assert rows.shape == (257, 520)
    assert torch.equal(rows, spelling(texts))
    near = nearest(rows, 8)
    assert near[ord("a"), ord("A")] > 0
    assert near[ord("3"), ord("4")] > 0
    assert near[ord("3"), ord("a")] == 0


def test_estimators_know_discrete_time(corpus):
    """k-DCE is the bound of continuous time; a chain of T steps is measured by its own."""
    timeless = replace(config(NOISES["masked"]), model=replace(recipes.get("toy_masked").model, depth=1))
    for noise, expected in ((NOISES["masked"], over_steps), (ProcessConfig(name="masked"), over_counts)):
        process, model = runs.build(replace(timeless, process=noise), corpus.tokenizer)
        assert isinstance(process, Categorical)
        assert choose(model, process) is expected
    assert "discrete-time" in ESTIMATORS[over_steps]
    assert "discrete time" in ESTIMATORS[over_block_steps]
    blocks = replace(timeless, model=replace(timeless.model, attention="block", block=2), objective="bd3lm")
    for noise, expected in ((NOISES["masked"], over_block_steps), (ProcessConfig(name="masked"), over_block_counts)):
        process, model = runs.build(replace(blocks, process=noise), corpus.tokenizer)
        assert choose(model, process) is expected


@pytest.mark.parametrize(
    ("noise", "train", "said"),
    [
        (ProcessConfig(name="d3pm"), {}, "process.steps"),
        (ProcessConfig(name="learned", steps=8), {}, "process.steps=8 with a learned"),
        (ProcessConfig(name="learned"), {"parallel": "fsdp"}, "train.parallel='fsdp' with a learned process"),
        (ProcessConfig(name="d3pm", steps=8, schedule="linaer"), {}, "linaer.*did you mean 'linear'"),
        (ProcessConfig(name="spindle", strength=0.5), {}, "strength=0.5"),
        (ProcessConfig(name="spindle", schedule="cosine"), {}, "process.schedule='cosine' with a spindle"),
        (ProcessConfig(name="learned", schedule="cosine"), {}, "process.schedule='cosine' with a learned"),
        (ProcessConfig(name="learned"), {}, "objective 'nelbo' with a learned process.*use genmd4"),
    ],
)
def test_refused(noise, train, said, corpus):
    with pytest.raises(ValueError, match=said):
        runs.build(config(noise, **train), corpus.tokenizer, corpus.train)
