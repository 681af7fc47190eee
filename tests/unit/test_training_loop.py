"""The loop: every option acts, a run that diverges or is interrupted stops whole, hooks see what they should."""

import hashlib
import os
import re
import signal
import threading
from dataclasses import fields

import numpy as np
import pytest
import torch
from parity import small
from torch import nn

from redraft import objectives, processes, schedules
from redraft.data.packing import pack
from redraft.models import Transformer, TransformerConfig
from redraft.objectives import Loss
from redraft.recipes.config import TrainConfig
from redraft.training import Hooks, fit, latest, world
from redraft.training.loop import fingerprint

WEIGHTS = {
    "steps": 3, "batch": 4, "optimizer": "muon", "lr": 2e-3, "weight_decay": 0.1, "warmup": 0, "decay": 0.0,
    "clip": 0.1, "ema": 0.9, "times": "uniform", "precision": "float32", "seed": 1,
    "random_length": 1.0,
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


def with_terms(bad=None, at=None, value=float("nan")):
    """NELBO as two terms, a third and two thirds of it; those named in ``bad`` are ``value`` in step ``at``."""
    calls = []

    def objective(denoiser, process, batch, u, generator):
        loss = objectives.get("nelbo")(denoiser, process, batch, u, generator)
        calls.append(None)
        terms = {"first": loss.value / 3, "second": 2 * loss.value / 3}
        if len(calls) == at:
            terms |= {name: terms[name] * value for name in bad.split()}
        return Loss(sum(terms.values()), loss.bound, terms)

    return objective


def fit_terms(out, objective=None, resume=False, **options):
    """Train on padded rows, whose padding counts for nothing."""
    return fit(
        small.config(**options), small.model(), small.process(), objective or with_terms(), small.Rows(),
        out=out, resume=resume,
    )  # fmt: skip


@pytest.mark.parametrize("accumulate", [1, 2])
def test_terms_are_logged_as_means_over_valid_tokens(plain, tmp_path, accumulate):
    last = fit_terms(tmp_path, accumulate=accumulate, log_every=2)
    assert last.loss == pytest.approx(plain.loss, rel=1e-9)
    rows = small.metrics(tmp_path)
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert row["terms.first"] == pytest.approx(row["loss"] / 3, rel=1e-12)
        assert row["terms.second"] == pytest.approx(2 * row["loss"] / 3, rel=1e-12)


def test_terms_do_not_change_the_run_and_resume_within_a_row(plain, tmp_path):
    """A checkpoint between two logged rows keeps the sums of the terms: the resumed curve is the same."""
    whole = fit_terms(tmp_path / "whole", log_every=4, save_every=2)
    torch.testing.assert_close(whole.weights, plain.weights, rtol=0, atol=1e-9)
    newest = tmp_path / "whole" / "checkpoints" / "step-000004"
    expected = small.metrics(tmp_path / "whole")
    newest.rename(newest.with_name(".step-000004.tmp"))
    fit_terms(tmp_path / "whole", resume=True, log_every=4, save_every=2)
    again = small.metrics(tmp_path / "whole")
    assert [list(row) for row in again] == [list(row) for row in expected]
    for name in ("loss", "bound", "terms.first", "terms.second"):
        assert again[-1][name] == expected[-1][name]


@pytest.mark.parametrize(
    ("bad", "value"), [("first", float("nan")), ("second", float("inf")), ("first second", float("nan"))]
)
def test_a_term_that_is_not_finite_is_named(tmp_path, bad, value):
    first = bad.split()[0]
    said = rf"diverged at step 4: loss {value}, gradient norm \w+, term '{first}' is {value}; .*step-000002"
    with pytest.raises(ValueError, match=said):
        fit_terms(tmp_path, with_terms(bad, 4, value), steps=9, save_every=2)
    assert latest(tmp_path).name == "step-000002"


def test_a_gradient_that_is_not_finite_is_named(tmp_path):
    """A finite loss of finite terms, at a point where one weight's gradient is not."""
    model = small.model()

    def objective(denoiser, process, batch, u, generator):
        loss = objectives.get("nelbo")(denoiser, process, batch, u, generator)
        steep = (model.head.weight - model.head.weight.detach()).sum().abs().sqrt()  # 0, with slope infinity
        return Loss(loss.value + steep, loss.bound, {"all": loss.value})

    with pytest.raises(ValueError, match=r"diverged at step 1: loss \d.*norm nan, the gradient of head.weight is not"):
        fit(small.config(), model, small.process(), objective, small.Rows(), out=tmp_path)


def scheduled(name):
    """A Gaussian process with a learned schedule, as its model holds it."""
    stored = {"name": name, "gamma_min": -3.0, "gamma_max": 3.0}
    start = schedules.gamma_start(stored, 0)
    process = processes.gaussian(torch.eye(small.K), schedule=schedules.gamma(stored, start))
    torch.manual_seed(0)
    tensors = {"codebook": torch.eye(small.K), **{f"schedule_{key}": one for key, one in start.items()}}
    return Transformer(TransformerConfig(process.to_dict(), depth=1), tensors)


def pushed(from_step, push):
    """NELBO as a term, and from some step on another that pushes the process's schedule somewhere."""
    calls = []

    def objective(denoiser, process, batch, u, generator):
        loss = objectives.get("nelbo")(denoiser, process, batch, u, generator)
        calls.append(None)
        rest = sum(0.0 * one.sum() for one in process.schedule.tensors.values())
        rest = rest + push(process.schedule) if len(calls) >= from_step else rest
        terms = {"nelbo": loss.value, "push": torch.zeros_like(loss.value) + rest}
        return Loss(loss.value + terms["push"], loss.bound, terms)

    return objective


def fit_scheduled(out, name, objective, resume=False, **options):
    model = scheduled(name)
    result = fit(
        small.config(**{"save_every": 2, "steps": 9, "warmup": 0, "decay": 0.0, "clip": 0.0, **options}), model,
        model.process, objective, small.Rows(), out=out, resume=resume,
    )  # fmt: skip
    return result, model


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ([0.4, -0.4], r"schedule 'plaid': its ends are out of order, 1\S* at t = 0 and -\S+ at t = 1"),
        ([0.0, 4.0], r"schedule 'plaid': gamma at t = 1 is 4\d\.\d+, outside \[-40, 40\]"),
        ([0.0, float("nan")], "ends of schedule 'plaid' is not finite"),
    ],
)
def test_a_schedule_that_goes_bad_stops_the_run_before_it_is_saved(tmp_path, ends, said):
    """Step 4 leads to a bad schedule, with a loss as good as any: nothing of it is kept, and step 2 can be resumed."""
    calls = []

    def fatal(denoiser, process, batch, u, generator):
        loss = objectives.get("nelbo")(denoiser, process, batch, u, generator)
        calls.append(None)
        if len(calls) == 4:  # once the loss is computed, as if this step's update had done it
            process.schedule.tensors["ends"].data = torch.tensor(ends, dtype=torch.float64)
        return loss

    with pytest.raises(ValueError, match=rf"diverged at step 4: {said}; last good checkpoint: .*step-000002"):
        fit_scheduled(tmp_path / "bad", "plaid", fatal)
    assert latest(tmp_path / "bad").name == "step-000002"
    assert [row["step"] for row in small.metrics(tmp_path / "bad")] == [1, 2, 3]
    resumed, model = fit_scheduled(tmp_path / "bad", "plaid", objectives.get("nelbo"), resume=True)
    whole, _ = fit_scheduled(tmp_path / "good", "plaid", objectives.get("nelbo"))
    assert small.same(resumed.weights, whole.weights)
    assert resumed.weights["schedule_ends"].abs().max() > 0
    assert model.process.schedule.complaint() is None


def test_ends_driven_together_by_gradients_stop_the_run(tmp_path):
    options = {"lr": 0.05, "save_every": 1, "steps": 30}
    together = pushed(5, lambda schedule: 1e6 * (schedule.tensors["ends"] * torch.tensor([-1.0, 1.0])).sum())
    with pytest.raises(ValueError, match=r"schedule 'plaid': its ends are out of order, .* at t = 1; last") as stop:
        fit_scheduled(tmp_path, "plaid", together, **options)
    step = int(re.findall(r"diverged at step (\d+)", str(stop.value))[0])
    assert 6 < step < 20
    assert latest(tmp_path).name == f"step-{step - 1:06d}"


@pytest.mark.parametrize(
    ("push", "said"),
    [
        (lambda schedule: schedule.tensors["log_heights"].sum() * torch.nan, "loss nan.*term 'push' is nan"),
        (
            lambda schedule: (
                (schedule.tensors["log_heights"] - schedule.tensors["log_heights"].detach()).abs().sqrt().sum()
            ),
            "the gradient of schedule_log_heights is not finite",
        ),
    ],
)
def test_what_goes_bad_of_a_schedule_is_named_before_it_moves(tmp_path, push, said):
    with pytest.raises(ValueError, match=rf"diverged at step 3: .*{said}.*step-000002"):
        fit_scheduled(tmp_path, "adaptive", pushed(3, push))


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
    # what Python does unless it was started where interrupts are ignored, as in the background of a shell
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(step, model):
        signal.raise_signal(signal.SIGINT)  # in this thread, and handled before the next: two at once may count as one
        signal.raise_signal(signal.SIGINT)
        return {}

    try:
        with pytest.raises(KeyboardInterrupt):
            small.train(tmp_path, hooks=Hooks(interrupt), eval_every=1)
    finally:
        signal.signal(signal.SIGINT, before)
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
    torch.manual_seed(0)
    process = processes.gaussian(torch.randn(small.K, 4, dtype=torch.float64))
    model = Transformer(TransformerConfig(process.to_dict(), depth=1), {"codebook": process.codebook})
    result = fit(small.config(), model, process, objectives.get("nelbo"), small.Rows(), out=tmp_path)
    assert torch.equal(result.weights["codebook"], process.codebook)
    assert result.loss < 20


def test_rows_of_other_answers_are_other_rows():
    """Their ids alike; rows of which all is learned are known by their ids, as before."""

    class Answers(small.Rows):
        def __init__(self, first):
            super().__init__()
            self.first = first

        def batch(self, indices):
            ids = torch.as_tensor(self.ids[indices])
            if self.first is None:
                return {"ids": ids}
            return {"ids": ids, "valid": (torch.arange(ids.shape[1]) >= self.first).expand(ids.shape)}

    plain, n = Answers(None), len(Answers(None))
    ids = plain.ids[np.linspace(0, n - 1, 1000).astype(np.int64)]
    assert fingerprint(plain) == hashlib.sha256(f"{n} {ids.tolist()}".encode()).hexdigest()
    assert fingerprint(Answers(1)) == fingerprint(Answers(1))
    assert len({fingerprint(plain), fingerprint(Answers(1)), fingerprint(Answers(2))}) == 3
