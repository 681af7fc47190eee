"""The loop: every option acts, a run that diverges or is interrupted stops whole, hooks see what they should."""

import os
import signal
import threading
from dataclasses import fields

import pytest
import torch
from parity import small
from torch import nn

from redraft import objectives
from redraft.data.packing import pack
from redraft.objectives import Loss
from redraft.recipes.config import TrainConfig
from redraft.training import Hooks, fit, latest, world

WEIGHTS = {
    "steps": 3, "batch": 4, "optimizer": "muon", "lr": 2e-3, "weight_decay": 0.1, "warmup": 0, "decay": 0.0,
    "clip": 0.1, "ema": 0.9, "times": "uniform", "precision": "float32", "seed": 1,
}  # fmt: skip
"""Options that decide the weights, each with a value unlike the small run's."""

TESTED_BELOW = {"muon_lr", "accumulate", "parallel", "compile", "threads", "tracker"} | {
    "log_every", "eval_every", "save_every", "sample_every",
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return small.train(tmp_path_factory.mktemp("plain"))


def test_every_option_is_tested():
    assert {field.name for field in fields(TrainConfig)} == set(WEIGHTS) | TESTED_BELOW


@pytest.mark.parametrize("name", WEIGHTS)
def test_option_changes_the_weights(name, plain, tmp_path):
    assert not small.same(small.train(tmp_path, **{name: WEIGHTS[name]}).weights, plain.weights)


def test_same_run_same_weights(plain, tmp_path):
    assert small.same(small.train(tmp_path).weights, plain.weights)


def test_muon_lr_changes_the_weights(tmp_path):
    one, other = (small.train(tmp_path / str(lr), optimizer="muon", muon_lr=lr).weights for lr in (0.02, 0.01))
    assert not small.same(one, other)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("float64", torch.float64)])
def test_precision_is_that_of_weights_and_log_p(precision, dtype, tmp_path):
    seen = watch(tmp_path, precision=precision)
    assert {one["dtype"] for one in seen} == {dtype}


def test_bfloat16_is_mixed(tmp_path):
    result = small.train(tmp_path, precision="bfloat16")
    assert {weight.dtype for weight in result.weights.values()} == {torch.float32}
    exact = small.train(tmp_path / "exact", precision="float32")
    gap = abs(small.metrics(tmp_path)[0]["loss"] - small.metrics(tmp_path / "exact")[0]["loss"])
    assert 0 < gap < 0.05
    assert not small.same(result.weights, exact.weights)


def watch(out, **options):
    """Train with an objective that notes how it was called."""
    seen = []

    def objective(denoiser, process, batch, u, generator):
        loss = objectives.get("nelbo")(denoiser, process, batch, u, generator)
        seen.append({"rows": len(u), "dtype": loss.value.dtype, "threads": torch.get_num_threads(), "u": u.dtype})
        return loss

    fit(small.config(**options), small.model(), small.process(), objective, small.Rows(), out=out)
    return seen


def test_noise_of_a_row_does_not_depend_on_the_batch(tmp_path):
    """With independent times, the first half of a batch of 8 is a batch of 4, corruption included."""
    seen = []
    for batch in (8, 4):
        process = small.process()
        corrupt = process.corrupt
        process.corrupt = lambda x0, t, generator, corrupt=corrupt: seen.append(corrupt(x0, t, generator)) or seen[-1]
        train = small.config(steps=1, batch=batch, times="uniform")
        fit(train, small.model(), process, objectives.get("nelbo"), small.Rows(), out=tmp_path / str(batch))
    assert torch.equal(seen[0][:4], seen[1])


def test_draws_of_two_steps_differ(tmp_path):
    rows = small.Rows(n=1)  # the same row over and over
    process, seen = small.process(), []
    corrupt = process.corrupt
    process.corrupt = lambda x0, t, generator: (
        seen.append((t.item(), generator[0].initial_seed())) or corrupt(x0, t, generator)
    )
    fit(small.config(batch=1), small.model(), process, objectives.get("nelbo"), rows, out=tmp_path)
    assert len({t for t, _ in seen}) == len({seed for _, seed in seen}) == small.STEPS


def test_accumulate_splits_the_batch(tmp_path):
    assert [one["rows"] for one in watch(tmp_path, accumulate=4)] == [2] * 4 * small.STEPS


def test_threads(tmp_path):
    before = torch.get_num_threads()
    try:
        assert {one["threads"] for one in watch(tmp_path, threads=2, steps=2)} == {2}
    finally:
        torch.set_num_threads(before)


def test_compile(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    small.train(tmp_path, compile=True)
    assert compiled == ["Transformer"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_parallel_needs_a_group(tmp_path, parallel):
    with pytest.raises(ValueError, match=f"train.parallel='{parallel}' in a single process.*torchrun"):
        small.train(tmp_path, parallel=parallel)


def test_cadences(tmp_path, capsys):
    validated, sampled = [], []

    def validate(step, model):
        validated.append(step)
        return {"held_out": float(step)}

    def sample(step, model):
        sampled.append(step)
        return f"text at {step}"

    result = small.train(
        tmp_path, hooks=Hooks(validate, sample), steps=7, log_every=2, eval_every=3, sample_every=4, save_every=5
    )
    assert validated == [3, 6, 7]
    assert sampled == [4]
    assert "text at 4" in capsys.readouterr().err
    assert result.validation == {"held_out": 7.0}
    assert [row["step"] for row in small.metrics(tmp_path) if "loss" in row] == [2, 4, 6, 7]
    assert [row["step"] for row in small.metrics(tmp_path) if "held_out" in row] == [3, 6, 7]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000005", "step-000007"]


def test_rows_hold_means_since_the_last(tmp_path):
    small.train(tmp_path / "one")
    small.train(tmp_path / "two", log_every=2)
    losses = [row["loss"] for row in small.metrics(tmp_path / "one")]
    means = [row["loss"] for row in small.metrics(tmp_path / "two")]
    assert means == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=1e-12)


def test_tracker(tmp_path):
    small.train(tmp_path, tracker="tensorboard")
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_loss_is_the_mean_over_valid_tokens(tmp_path):
    rows, counted = small.Rows(), []

    def objective(denoiser, process, batch, u, generator):
        # any value at padding, even one that is no number, must not count
        value = torch.where(batch["valid"], 2.0, torch.nan) + 0 * next(denoiser.module.parameters()).sum()
        counted.append(batch["valid"].sum().item())
        return Loss(value, 3 * value.detach())

    result = fit(small.config(steps=1), small.model(), small.process(), objective, rows, out=tmp_path)
    assert counted[0] < small.BATCH * small.L
    assert result.loss == pytest.approx(2.0, rel=1e-12)
    assert small.metrics(tmp_path)[0]["bound"] == pytest.approx(6.0, rel=1e-12)


@pytest.mark.parametrize("objective", ["nelbo", "autoregressive"])
def test_ids_outside_the_vocabulary_are_refused_before_any_step(objective, tmp_path):
    """The last row of many, which a short run would not meet, and a causal model would never corrupt."""
    seen = []

    class Rows(small.Rows):
        def batch(self, indices, /):
            batch = dict(super().batch(indices))
            ids = torch.as_tensor(batch["ids"]).clone()
            ids[torch.as_tensor(indices) == len(self) - 1] = 77
            return batch | {"ids": ids}

    def watched(*arguments):
        seen.append(1)
        return objectives.get(objective)(*arguments)

    with pytest.raises(ValueError, match="token id 77 is not a clean token"):
        fit(small.config(steps=1), small.model(), small.process(), watched, Rows(), out=tmp_path)
    assert not seen


def test_rows_without_padding(tmp_path):
    rows = small.Rows()
    whole = small.Rows()
    whole.valid[:] = True
    bare = type("Bare", (), {"__len__": lambda self: 20, "batch": lambda self, i: {"ids": rows.ids[i]}})()
    losses = [small.train(tmp_path / str(i), one).loss for i, one in enumerate((whole, bare))]
    assert losses[0] == losses[1]


def test_packed_rows_with_isolated_documents(tmp_path):
    documents = [[1, 2, 3, 4], [5, 6], [1, 3, 5, 2, 4]] * 5
    packed = [
        pack(documents, small.L, eos_id=0, isolate_documents=isolate, keep_tail=True) for isolate in (True, False)
    ]
    losses = [small.train(tmp_path / str(i), rows).loss for i, rows in enumerate(packed)]
    assert losses[0] != losses[1]


def failing(step, value):
    """NELBO until ``step``, whose loss is ``value``."""
    calls = []

    def objective(denoiser, process, batch, u, generator):
        loss = objectives.get("nelbo")(denoiser, process, batch, u, generator)
        calls.append(None)
        return Loss(loss.value * (value if len(calls) == step else 1.0), loss.bound)

    return objective


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_divergence_stops_at_the_step_and_keeps_the_last_good(tmp_path, value):
    with pytest.raises(ValueError, match=r"diverged at step 4: loss (nan|inf).*step-000002"):
        fit(
            small.config(steps=9, save_every=2), small.model(), small.process(), failing(4, value), small.Rows(),
            out=tmp_path,
        )  # fmt: skip
    assert latest(tmp_path).name == "step-000002"
    assert [row["step"] for row in small.metrics(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_between_steps_and_resumes(tmp_path, number, capsys):
    handler = signal.getsignal(number)

    def interrupt(step, model):
        if step == 2:
            os.kill(os.getpid(), number)
        return {}

    stopped = small.train(tmp_path / "cut", hooks=Hooks(interrupt), eval_every=1, steps=6)
    assert (stopped.stopped, stopped.step) == (True, 3)
    assert "stopped at step 3, checkpoint made" in capsys.readouterr().err
    assert latest(tmp_path / "cut").name == "step-000003"
    assert signal.getsignal(number) == handler
    resumed = small.train(tmp_path / "cut", resume=True, steps=6)
    assert not resumed.stopped
    assert small.same(resumed.weights, small.train(tmp_path / "whole", steps=6).weights)


def test_second_interrupt_quits_at_once(tmp_path):
    def interrupt(step, model):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    with pytest.raises(KeyboardInterrupt):
        small.train(tmp_path, hooks=Hooks(interrupt), eval_every=1)
    assert latest(tmp_path) is None


def test_runs_outside_the_main_thread(plain, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(small.train(tmp_path)))
    thread.start()
    thread.join()
    assert small.same(results[0].weights, plain.weights)


def test_hooks_see_the_average_without_gradients_in_evaluation_mode(tmp_path):
    seen = []

    def validate(step, model):
        seen.append((model.training, torch.is_grad_enabled(), model.head.weight.clone()))
        return {}

    result = small.train(tmp_path, hooks=Hooks(validate), ema=0.9)
    assert seen[-1][:2] == (False, False)
    assert torch.equal(seen[-1][2], result.weights["head.weight"])


def test_hooks_do_not_change_the_run(plain, tmp_path):
    result = small.train(tmp_path, hooks=Hooks(lambda step, model: {"draw": torch.rand(()).item()}), eval_every=1)
    assert small.same(result.weights, plain.weights)


@pytest.mark.parametrize(("batch", "accumulate", "fix"), [(9, 2, 8), (3, 4, 4)])
def test_batch_must_divide(tmp_path, batch, accumulate, fix):
    with pytest.raises(ValueError, match=rf"train\.batch={batch} does not divide by 1 .*={accumulate}.*={fix}"):
        small.train(tmp_path, batch=batch, accumulate=accumulate)


def test_world_of_one():
    with world() as here:
        assert (here.rank, here.size, here.main) == (0, 1, True)
        assert here.sum([1.0, 2.0]) == [1.0, 2.0]
        assert here.gather("a") == ["a"]


def test_gaussian_process_trains(tmp_path):
    from redraft import processes
    from redraft.models.transformer import Transformer, TransformerConfig

    torch.manual_seed(0)
    process = processes.gaussian(torch.randn(small.K, 4, dtype=torch.float64))
    model = Transformer(TransformerConfig(process.to_dict(), depth=1), {"codebook": process.codebook})
    result = fit(small.config(), model, process, objectives.get("nelbo"), small.Rows(), out=tmp_path)
    assert torch.equal(result.weights["codebook"], process.codebook)
    assert result.loss < 20
