"""Distillation: what flows where, its fixed point, rounds that start from one another, ``model.init``."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from redraft import objectives, processes, runs
from redraft.cli import app
from redraft.distillation import distil
from redraft.models import Transformer, TransformerConfig, folder
from redraft.processes import Facts
from redraft.training import checkpoint

TINY = {"train.steps": 3, "train.warmup": 1, "model.depth": 1, "train.batch": 8, "eval.draws": 1}
ROUNDS = {"train.steps": 2, "train.warmup": 0, "eval.draws": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny uniform model of the toy language, by its recipe."""
    out = tmp_path_factory.mktemp("distil") / "model"
    runs.train("toy_uniform", out=out, overrides=TINY)
    return out


class Constant:
    """Says one law whatever it sees."""

    facts = Facts(time_conditioned=True)

    def __init__(self, law):
        self.logp = torch.tensor(law, dtype=torch.float64).log().requires_grad_()

    def __call__(self, z, t, cond=None):
        return self.logp.expand(*z.shape, -1)


def loss_of(student, teacher, jump=0.25):
    process = processes.uniform(3)
    batch = {"ids": torch.tensor([[0, 1, 2, 0]] * 5)}
    u = torch.linspace(0.01, 0.99, 5, dtype=torch.float64)
    objective = objectives.get("dcd", teacher=teacher, jump=jump)
    return objective(student, process, batch, u, torch.Generator().manual_seed(0))


def test_a_constant_posterior_is_the_fixed_point():
    """A teacher that says the same everywhere: a student that agrees has loss 0 and gradient 0; others KL(p || q)."""
    p, q = [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]
    agreed = loss_of(Constant(p), Constant(p))
    assert agreed.value.abs().max().item() < 1e-15
    student, teacher = Constant(p), Constant(q)
    loss = loss_of(student, teacher)
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    torch.testing.assert_close(loss.value, torch.full_like(loss.value, expected), rtol=1e-12, atol=0)
    loss.value.sum().backward()
    assert student.logp.grad.abs().max() > 0
    assert teacher.logp.grad is None
    assert not loss.bound.requires_grad


def test_the_teacher_is_asked_a_jump_earlier_on_the_same_path():
    """At max(t - jump, 1e-5), about a z in which tokens are only ever nearer to the data than the student's."""
    asked = {}

    class Listens(Constant):
        def __init__(self, name):
            super().__init__([0.2, 0.3, 0.5])
            self.name = name

        def __call__(self, z, t, cond=None):
            asked[self.name] = z, t
            return super().__call__(z, t, cond)

    loss_of(Listens("student"), Listens("teacher"), jump=0.25)
    (late, t), (early, s) = asked["student"], asked["teacher"]
    torch.testing.assert_close(s, (t - 0.25).clamp_min(1e-5), rtol=0, atol=1e-15)
    ids = torch.tensor([[0, 1, 2, 0]] * 5)
    assert ((early == late) | (early == ids)).all()
    assert (early != late).any()


def test_a_folder_teaches_and_a_wrong_one_is_refused(trained, tmp_path):
    model, _ = folder.load(trained)
    with pytest.raises(ValueError, match=r"set loss\.teacher"):
        loss_of(Constant([0.2, 0.3, 0.5]), None)
    with pytest.raises(ValueError, match=r"must be of uniform\(3\)"):
        loss_of(Constant([0.2, 0.3, 0.5]), str(trained))
    process, batch = model.process, {"ids": torch.randint(0, 13, (4, 6), generator=torch.Generator().manual_seed(0))}
    u = torch.rand(4, generator=torch.Generator().manual_seed(1))
    values = [
        objectives.get("dcd", teacher=teacher, jump=0.1)(model, process, batch, u, torch.Generator().manual_seed(0))
        for teacher in (str(trained), model)
    ]
    assert torch.equal(values[0].value, values[1].value)
    values[0].value.sum().backward()
    assert model.head.weight.grad.abs().max() > 0


# ---------------------------------------------------------------------------------------------------- model.init


def test_a_run_starts_from_given_weights(trained, tmp_path):
    """No step away they are the same numbers; the tokenizer comes with them."""
    config = runs.configure("toy_uniform", None, {**TINY, "model.init": str(trained)})
    lm = runs.load(trained)
    process, model = runs.build(config, lm.tokenizer)
    for name, value in lm.denoiser.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert process.to_dict() == lm.process.to_dict()
    run = runs.train(config, out=tmp_path / "run", overrides={"train.lr": 1e-12, "train.muon_lr": 1e-12})
    torch.testing.assert_close(run.lm.denoiser.head.weight, lm.denoiser.head.weight, rtol=0, atol=1e-6)
    fresh = runs.build(runs.configure("toy_uniform", None, TINY), lm.tokenizer)[1]
    assert not torch.equal(fresh.head.weight, lm.denoiser.head.weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model.depth": 2}, "depth 1 there, 2 here"),
        ({"model.time_conditioned": False, "process.name": "masked"}, "time_conditioned True there, False here"),
    ],
)
def test_weights_of_another_shape_are_refused(trained, options, words):
    config = runs.configure("toy_uniform", None, {**TINY, "model.init": str(trained), **options})
    with pytest.raises(ValueError, match=words) as refused:
        runs.build(config, runs.load(trained).tokenizer)
    assert f"model.init={trained}" in str(refused.value)


# -------------------------------------------------------------------------------------------------------- rounds


def test_rounds_teach_one_another(trained, tmp_path):
    """Each round's recipe: teacher and start are the round before, the jump doubles; the weights move."""
    run = distil(trained, rounds=2, jump=0.1, out=tmp_path / "out", overrides=ROUNDS)
    assert (run.stopped, run.step, run.out) == (False, 2, tmp_path / "out" / "round-2")
    before = trained
    for number in (1, 2):
        path = tmp_path / "out" / f"round-{number}"
        recipe = folder.read_config(path)["about"]["recipe"]
        assert recipe["objective"] == "dcd"
        assert recipe["loss"]["teacher"] == recipe["model"]["init"] == str(before)
        assert recipe["loss"]["jump"] == pytest.approx(0.1 * 2 ** (number - 1))
        heads = [folder.load(one)[0].head.weight for one in (before, path)]
        assert not torch.equal(*heads)
        before = path
    assert all("bound" in row for row in metrics(before) if "loss" in row)
    assert run.lm.generate(num=1, steps=2).texts


def metrics(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_rounds_resume_to_the_same_weights(trained, tmp_path):
    """Cut after round 1: with resume round 1 is kept, and round 2 ends as if it had never been cut."""
    whole = distil(trained, rounds=2, jump=0.1, out=tmp_path / "a", overrides=ROUNDS)
    distil(trained, rounds=1, jump=0.1, out=tmp_path / "b", overrides=ROUNDS)
    stamp = (tmp_path / "b" / "round-1" / "config.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match="continue it with resume"):
        distil(trained, rounds=2, jump=0.1, out=tmp_path / "b", overrides=ROUNDS)
    again = distil(trained, rounds=2, jump=0.1, out=tmp_path / "b", resume=True, overrides=ROUNDS)
    assert (tmp_path / "b" / "round-1" / "config.json").stat().st_mtime_ns == stamp
    assert torch.equal(again.lm.denoiser.head.weight, whole.lm.denoiser.head.weight)


def test_a_round_cut_short_is_continued(trained, tmp_path):
    """One round loses its last step and its model: with resume it ends at the same weights."""
    options = {**ROUNDS, "train.steps": 3, "train.save_every": 1}
    run = distil(trained, rounds=1, jump=0.1, out=tmp_path / "out", overrides=options)
    assert len(checkpoint.complete(run.out)) > 1
    shutil.rmtree(checkpoint.complete(run.out)[-1])
    (run.out / folder.CONFIG).unlink()
    again = distil(trained, rounds=1, jump=0.1, out=tmp_path / "out", resume=True, overrides=options)
    assert again.step == 3
    assert torch.equal(again.lm.denoiser.head.weight, run.lm.denoiser.head.weight)


def test_what_cannot_be_distilled_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match=r"loss\.jump: distillation sets it itself"):
        distil(trained, out=tmp_path / "x", overrides={"loss.jump": 0.5})
    with pytest.raises(ValueError, match="rounds=0"):
        distil(trained, rounds=0, out=tmp_path / "x")
    with pytest.raises(ValueError, match="nothing to resume"):
        distil(trained, out=tmp_path / "x", resume=True)
    config = TransformerConfig(processes.masked(13).to_dict(), depth=1)
    about = {"recipe": {"process": {"name": "masked"}}}
    folder.save(tmp_path / "masked", config, Transformer(config).state_dict(), None, about)
    with pytest.raises(ValueError, match="a model of masked noise"):
        distil(tmp_path / "masked", out=tmp_path / "x")
    folder.save(tmp_path / "bare", config, Transformer(config).state_dict(), None, {})
    with pytest.raises(ValueError, match="names no recipe"):
        distil(tmp_path / "bare", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_command(trained, tmp_path):
    fields = ["--train.warmup", "0", "--eval.draws", "1", "--json"]
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["distil", str(trained), "--rounds", "1", "--steps", "2", "--out", str(out), *fields]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["out"] == str(out / "round-1")
    assert found["steps"] == 2
    assert found["likelihood"]["is_bound"]
    refused = CliRunner().invoke(app, ["distil", str(trained), "--out", str(out)])
    assert refused.exit_code == 2
    assert "continue it with resume" in refused.stderr
