"""Checkpoints are whole or not there, and another run's are refused by name."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from parity import small

from redraft.training import checkpoint, latest


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    small.train(out, save_every=1, ema=0.9)
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def resume(out, rows=None, **options):
    return small.train(out, rows, resume=True, **{"save_every": 1, "ema": 0.9, **options})


def test_last_two_are_kept(run):
    assert [path.name for path in checkpoint.complete(run)] == ["step-000003", "step-000004"]
    assert latest(run).name == "step-000004"


def test_unfinished_checkpoint_is_ignored_and_cleared(run):
    last = latest(run)
    last.rename(last.with_name(".step-000004.tmp"))
    assert latest(run).name == "step-000003"
    resume(run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000003", "step-000004"]


def test_resumed_run_ends_with_the_same_weights_and_curve(run, finished):
    shutil.rmtree(latest(run))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # what a killed run was writing
    whole = resume(finished)  # no step left to do: the weights of the end
    assert whole.loss is None
    assert small.same(resume(run).weights, whole.weights)
    assert [row["loss"] for row in small.metrics(run)] == [row["loss"] for row in small.metrics(finished)]


def test_nothing_to_resume(tmp_path):
    with pytest.raises(ValueError, match="nothing to resume"):
        resume(tmp_path)


def test_a_run_is_not_overwritten(run):
    with pytest.raises(ValueError, match=r"holds a run \(step-000004\)"):
        small.train(run)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_file_is_named(run, damage):
    (file,) = latest(run).glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flip" else data[:-8])
    with pytest.raises(ValueError, match=f"damaged checkpoint .*{file.name}.*one before"):
        resume(run)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"step": 4}', '{"version": 1, "step": 4}'])
def test_damaged_manifest_is_named(run, content):
    manifest = latest(run) / "manifest.json"
    manifest.unlink()
    if content is not None:
        manifest.write_text(content)
    with pytest.raises(ValueError, match=r"damaged checkpoint .*manifest.json"):
        resume(run)


def test_other_version_is_refused(run):
    manifest = latest(run) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        resume(run)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 2e-3),
        ("steps", 5),
        ("batch", 4),
        ("seed", 1),
        ("ema", 0.5),
        ("optimizer", "muon"),
        ("precision", "float32"),
    ],
)
def test_other_configuration_is_refused_by_field(run, field, value):
    with pytest.raises(ValueError, match=rf"train\.{field}="):
        resume(run, **{field: value})


def test_fields_younger_than_a_checkpoint_count_as_their_defaults(run):
    """What a field does not change unless set, a checkpoint made before there was such a field need not say."""
    path = latest(run)
    kept = checkpoint.read_manifest(path)
    asked = dict(kept.config)
    old = {name: value for name, value in asked.items() if name not in ("model.self_conditioned", "process.normalise")}
    manifest = replace(kept, config=old)
    checkpoint.same_run(path, manifest, asked, kept.data)
    with pytest.raises(ValueError, match=r"model\.self_conditioned=True: it was trained with .*=False"):
        checkpoint.same_run(path, manifest, {**asked, "model.self_conditioned": True}, kept.data)


def test_cadence_and_layout_may_differ(run):
    shutil.rmtree(latest(run))
    assert resume(run, log_every=2, eval_every=1, save_every=0, sample_every=3, accumulate=2, threads=None).step == 4


def test_other_rows_are_refused(run):
    with pytest.raises(ValueError, match="training rows have changed"):
        resume(run, small.Rows(seed=1))


def test_other_model_is_refused_by_key(run, monkeypatch):
    larger, shape = small.model(), small.model().head.weight.shape
    larger.extra = torch.nn.Linear(1, 1, bias=False)
    monkeypatch.setattr(small, "model", lambda: larger)
    with pytest.raises(ValueError, match=r"the checkpoint has no ema\.extra\.weight"):
        resume(run)
    other = small.model()
    del other.extra
    other.head = torch.nn.Linear(shape[1], shape[0] + 1, bias=False)
    with pytest.raises(ValueError, match=r"head\.weight is \(\(7, 64\), torch.float64\) there and \(\(8, 64\)"):
        resume(run)


def test_refusal_leaves_weights_alone(run):
    (file,) = latest(run).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    manifest = checkpoint.read_manifest(latest(run))
    tensors = {"model.head.weight": torch.zeros(7, 64, dtype=torch.float64)}
    from redraft.training import world

    with world() as here, pytest.raises(ValueError, match="damaged"):
        checkpoint.load(latest(run), manifest, tensors, here)
    assert not tensors["model.head.weight"].any()


def test_nothing_in_a_checkpoint_is_a_pickle(run):
    assert {path.suffix for path in latest(run).iterdir()} == {".safetensors", ".json"}
