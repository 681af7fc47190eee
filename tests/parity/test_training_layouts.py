"""One law for all layouts: the corruption of every sample bit for bit, and the loss curve to 1e-9."""

import pytest
import torch

from parity import small
from parity.layouts_worker import LAYOUTS, recorded


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("layouts")
    group = small.start_group("layouts_worker.py", out)
    recorded(out / "single")
    recorded(out / "parts", accumulate=2)
    for rank in group:
        errors = rank.communicate(timeout=120)[1]
        assert rank.returncode == 0, errors
    return out


def draws(out, name):
    """x0, t and z of every step of the global batch, put together from the ranks' parts."""
    ranks = [torch.load(path, weights_only=True) for path in sorted((out / name).glob("drawn-*.pt"))]
    parts = len(ranks[0]) // small.STEPS
    return [
        torch.cat([part[field] for rank in ranks for part in rank[step * parts : (step + 1) * parts]])
        for step in range(small.STEPS)
        for field in range(3)
    ]


@pytest.mark.parametrize("name", ["parts", *LAYOUTS])
def test_layouts_agree(runs, name):
    assert all(map(torch.equal, draws(runs, name), draws(runs, "single")))
    for key in ("loss", "bound", "norm"):
        curves = [
            torch.tensor([row[key] for row in small.metrics(runs / one) if key in row]) for one in (name, "single")
        ]
        assert len(curves[0]) == small.STEPS
        torch.testing.assert_close(*curves, rtol=0, atol=1e-9)


def test_weights_agree(runs):
    single = torch.load(runs / "single" / "weights.pt")
    for name in ("ddp", "ddp_parts", "fsdp_parts"):
        torch.testing.assert_close(torch.load(runs / name / "weights.pt"), single, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", small.SCHEDULES)
def test_what_is_learned_of_a_process_agrees(runs, name, tmp_path):
    """Codebook, schedule and network, with self-conditioned rows: one process, two parts, two processes."""
    whole = small.train_vectors(tmp_path / "single", name)
    parts = small.train_vectors(tmp_path / "parts", name, accumulate=2)
    start = small.vectors(name).double().state_dict()
    for key in (one for one in start if one == "codebook" or one.startswith("schedule_")):
        assert (whole.weights[key] - start[key]).abs().max() > 1e-6
    for out, weights in (
        (tmp_path / "parts", parts.weights),
        (runs / f"{name}_ddp", torch.load(runs / f"{name}_ddp" / "weights.pt")),
    ):
        torch.testing.assert_close(weights, whole.weights, rtol=0, atol=1e-9)
        for key in ("loss", "bound", "norm"):
            found, expected = (
                torch.tensor([row[key] for row in small.metrics(one)]) for one in (out, tmp_path / "single")
            )
            assert len(found) == small.STEPS
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_average_is_saved_and_sharded_alike(runs, tmp_path):
    whole = small.train(tmp_path, ema=0.9).weights
    torch.testing.assert_close(torch.load(runs / "fsdp" / "weights.pt"), whole, rtol=0, atol=1e-9)
    assert (whole["head.weight"] - torch.load(runs / "single" / "weights.pt")["head.weight"]).abs().max() > 1e-6


def test_group_resumes_its_checkpoint_bit_for_bit(runs):
    assert small.same(torch.load(runs / "half" / "weights.pt"), torch.load(runs / "fsdp" / "weights.pt"))


def test_sharded_checkpoint_loads_in_one_process(runs):
    newest = runs / "half" / "checkpoints" / "step-000004"
    assert len(list(newest.glob("*.safetensors"))) == 2
    newest.rename(newest.with_name(".step-000004.tmp"))
    one = small.train(runs / "half", resume=True, ema=0.9, save_every=2)
    assert one.loss is not None
    torch.testing.assert_close(one.weights, torch.load(runs / "fsdp" / "weights.pt"), rtol=0, atol=1e-9)


def test_muon_agrees_when_sharded(runs, tmp_path):
    one = small.train(tmp_path, optimizer="muon").weights
    torch.testing.assert_close(torch.load(runs / "muon" / "weights.pt"), one, rtol=0, atol=1e-9)


def test_hooks_get_a_working_model(runs):
    probes = {name: small.metrics(runs / name)[-1]["probe"] for name in ("single", "ddp", "ddp_parts", "fsdp_parts")}
    assert max(probes.values()) - min(probes.values()) < 1e-9


def test_all_processes_stop_after_the_same_step(runs):
    assert [(runs / f"stopped-{rank}").read_text() for rank in range(2)] == ["True 3"] * 2
    assert small.train(runs / "stopped", resume=True).step == small.STEPS


def test_batch_must_divide(runs):
    for rank in range(2):
        assert "train.batch=9 does not divide by 2 processes" in (runs / f"refusal-{rank}").read_text()
