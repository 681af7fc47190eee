"""Block and any-order models from recipe to figures: what they carry, how they are measured, what they refuse."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from redraft import objectives, processes, recipes, runs
from redraft.data import load_data
from redraft.models import Transformer, TransformerConfig, folder
from redraft.objectives import blocks
from redraft.processes import Facts
from redraft.recipes import ModelConfig

TINY = {
    **{"train.steps": 6, "train.warmup": 1, "train.batch": 8, "train.save_every": 3, "train.log_every": 1},
    **{"model.depth": 1, "eval.draws": 2, "eval.rows": 8, "data.held_out": 0.3},
}
BLOCKS = {**TINY, "objective": "bd3lm", "model.attention": "block", "model.block": 3}


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_validations_choose_the_mask_rates_and_a_resumed_run_keeps_them(tmp_path):
    """The range found at step 2 acts at step 3, is stored at 3, and the run resumed there ends with equal weights."""
    options = {**BLOCKS, "train.eval_every": 2}
    whole = runs.train("toy_masked", out=tmp_path / "whole", overrides=options)
    rows = metrics(tmp_path / "whole")
    chosen = [(row["mask_min"], row["mask_max"]) for row in rows if "mask_min" in row]
    assert len(chosen) == 3
    assert all(0.5 <= high - low + 1e-9 <= 0.9 + 2e-9 for low, high in chosen)
    assert whole.lm.denoiser.noise_range.tolist() == pytest.approx(chosen[-1])
    measured = {row["step"] for row in rows if "bound" in row}
    assert measured == {1, 2}, "over part of the rates the draws of training measure no bound"

    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "cut" / "checkpoints")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-000006")
    with pytest.raises(ValueError, match="eval_every"):
        runs.train("toy_masked", out=tmp_path / "cut", overrides={**options, "train.eval_every": 3}, resume=True)
    cut = runs.train("toy_masked", out=tmp_path / "cut", overrides=options, resume=True)
    assert whole.lm.denoiser.state_dict().keys() == cut.lm.denoiser.state_dict().keys()
    for name, value in whole.lm.denoiser.state_dict().items():
        assert torch.equal(value, cut.lm.denoiser.state_dict()[name]), name
    assert cut.likelihood == whole.likelihood

    again = runs.load(tmp_path / "whole")
    assert torch.equal(again.denoiser.noise_range, whole.lm.denoiser.noise_range)
    assert again.generate(num=2, seed=1).texts == whole.lm.generate(num=2, seed=1).texts


def test_a_fixed_range_is_kept(tmp_path):
    options = {**BLOCKS, "train.eval_every": 2, "loss.mask_min": 0.0, "loss.mask_max": 1.0}
    run = runs.train("toy_masked", out=tmp_path / "run", overrides=options)
    assert run.lm.denoiser.noise_range.tolist() == [0, 1]
    assert {row["step"] for row in metrics(tmp_path / "run") if "bound" in row} == set(range(1, 7))


@pytest.mark.parametrize(
    ("options", "estimator", "is_bound"),
    [
        ({"model.attention": "block", "model.block": 3, "objective": "bd3lm"}, "block NELBO, k of n", True),
        ({"model.attention": "block", "model.block": 1, "objective": "bd3lm"}, "chain rule, exact, in blocks", False),
        ({"model.attention": "permuted", "objective": "any_order"}, "any-order chain rule", True),
    ],
)
def test_each_is_measured_and_written_by_its_own_means(options, estimator, is_bound, tmp_path):
    run = runs.train("toy_masked", out=tmp_path / "run", overrides={**TINY, **options, "train.eval_every": 3})
    assert run.likelihood.estimator.startswith(estimator)
    assert run.likelihood.is_bound == is_bound
    assert 0 < run.likelihood.nats_per_token < 5
    written = run.lm.generate(num=2, seed=1)
    assert (written.tokens < run.lm.process.mask_id).all()
    assert runs.load(tmp_path / "run").generate(num=2, seed=1).texts == written.texts


def model(attention, block=None):
    return Transformer(TransformerConfig(processes.masked(5).to_dict(), depth=1, attention=attention, block=block))


@pytest.mark.parametrize(
    ("network", "name", "options", "message"),
    [
        (model("full"), "bd3lm", {}, "needs a block denoiser"),
        (model("block", 2), "bd3lm", {"mask_min": 0.5, "mask_max": 0.4}, r"mask_min=0\.5, mask_max=0\.4"),
        (model("block", 1), "bd3lm", {"mask_min": 0.5}, "always masked"),
        (model("block", 2), "any_order", {}, "needs a permuted denoiser"),
    ],
)
def test_objectives_refuse(network, name, options, message):
    batch = {"ids": torch.zeros(2, 4, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        objectives.get(name, **options)(network, network.process, batch, torch.zeros(2))


@pytest.mark.parametrize(
    ("name", "attention", "message"),
    [("nelbo", "block", "trained by bd3lm"), ("nelbo", "permuted", "trained by any_order"), ("bd3lm", "full", "block")],
)
def test_combinations_are_refused_before_any_step(name, attention, message):
    network = model(attention, 2 if attention == "block" else None)
    with pytest.raises(ValueError, match=message):
        objectives.check(name, network.process, network.facts)


@pytest.mark.parametrize(("name", "attention"), [("autoregressive", "causal"), ("any_order", "permuted")])
def test_a_number_of_steps_that_would_do_nothing_is_refused(name, attention):
    facts = Facts(attention=attention, mask_id=3)
    objectives.check(name, processes.masked(3), facts)
    with pytest.raises(ValueError, match=f"objective '{name}'.*process.steps=none"):
        objectives.check(name, processes.masked(3, steps=8), facts)


def test_a_block_model_starts_from_one_of_full_attention(tmp_path):
    """As BD3-LM does (``bd3lm_paper``), and the other way round: the range of mask rates is no weight."""
    corpus = load_data(recipes.get("toy_masked").data)
    full = replace(recipes.get("toy_masked"), model=ModelConfig(depth=1))
    blocks = replace(full, objective="bd3lm", model=ModelConfig(depth=1, attention="block", block=2))
    for number, (first, then) in enumerate(((full, blocks), (blocks, full), (blocks, blocks))):
        _, model = runs.build(replace(first, train=replace(first.train, seed=1)), corpus.tokenizer)
        if first is blocks:
            model.noise_range.copy_(torch.tensor([0.25, 0.75]))
        folder.save(tmp_path / str(number), model.config, model.state_dict())
        _, found = runs.build(
            replace(then, model=replace(then.model, init=str(tmp_path / str(number)))), corpus.tokenizer
        )
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.named_parameters())
        if then is blocks:
            assert found.noise_range.tolist() == ([0.25, 0.75] if first is blocks else [0.0, 1.0])


def test_tokens_that_do_not_count_are_given(monkeypatch):
    """An any-order model's padding comes first in every order, and is worth nothing."""
    network, ranks = model("permuted"), []
    whole = blocks.two_stream_cross_entropy

    def watched(denoiser, batch, z, t, rank, where):
        ranks.append(rank)
        return whole(denoiser, batch, z, t, rank, where)

    monkeypatch.setattr(blocks, "two_stream_cross_entropy", watched)
    counted = torch.tensor([[True, False, True, True, False, True]]).expand(40, -1)
    batch = {"ids": torch.ones(40, 6, dtype=torch.long), "valid": counted}
    loss = objectives.any_order(network, network.process, batch, torch.zeros(40), torch.Generator().manual_seed(0))
    (rank,) = ranks
    assert (rank.sort(1).values == torch.arange(6)).all()
    assert rank[~counted].max() == 1
    assert len(rank[:, [0, 2, 3, 5]].unique(dim=0)) > 15, "of the 24 orders of the others"
    assert (loss.value[~counted] == 0).all()
    assert (loss.value[counted] > 0).all()
