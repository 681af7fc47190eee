"""Learning rate, optimisers, clipping and the moving average."""

import math

import pytest
import torch
from parity import small
from torch import nn

from redraft import processes
from redraft.models import Transformer, TransformerConfig
from redraft.training import lr_scale, optim
from redraft.training.ema import Ema


def test_lr_rises_stays_and_falls():
    train = small.config(steps=100, warmup=10, decay=0.2).train
    scales = [lr_scale(step, train) for step in range(100)]
    assert scales[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(scales[10:80]) == {1.0}
    assert scales[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])
    assert min(scales) > 0


def test_lr_without_warmup_or_decay_is_constant():
    train = small.config(steps=5, warmup=0, decay=0.0).train
    assert [lr_scale(step, train) for step in range(5)] == [1.0] * 5


def groups(optimizers):
    """(kind, parameter's shape, weight decay, peak) of every parameter."""
    return [
        (type(one).__name__, tuple(p.shape), group["weight_decay"], group["peak"])
        for one in optimizers
        for group in one.param_groups
        for p in group["params"]
    ]


def test_adamw_decays_matrices_only():
    model = small.model()
    found = groups(optim.build(model, small.config(weight_decay=0.1, lr=2e-3).train))
    assert len(found) == len(list(model.parameters()))
    for kind, shape, weight_decay, peak in found:
        assert (kind, weight_decay, peak) == ("AdamW", 0.1 if len(shape) == 2 else 0.0, 2e-3)


def test_muon_takes_the_matrices_of_the_blocks():
    model = small.model()
    optimizers = optim.build(model, small.config(optimizer="muon", weight_decay=0.1, muon_lr=0.03).train)
    taken = {p for one in optimizers if type(one) is optim.Muon for group in one.param_groups for p in group["params"]}
    assert taken == {p for p in model.blocks.parameters() if p.ndim == 2}
    found = groups(optimizers)
    assert len(found) == len(list(model.parameters()))
    assert all(peak == (0.03 if kind == "Muon" else 1e-3) for kind, *_, peak in found)


def test_what_stands_for_the_process_is_not_decayed():
    """A learned codebook is a matrix, and decay would pull it to another process."""
    process = processes.gaussian(torch.randn(5, 4), learned=True)
    model = Transformer(TransformerConfig(process.to_dict(), depth=1), {"codebook": process.table})
    assert model.undecayed == {"codebook"}
    for optimizer in optim.build(model, small.config(weight_decay=0.1).train):
        for group in optimizer.param_groups:
            if any(p is model.codebook for p in group["params"]):
                assert group["weight_decay"] == 0.0
                break
        else:
            raise AssertionError("the codebook is not trained")


def test_muon_needs_blocks():
    with pytest.raises(ValueError, match=r"needs a model with \.blocks; Linear has none"):
        optim.build(nn.Linear(2, 2), small.config(optimizer="muon").train)


def test_set_lr_scales_every_peak():
    optimizers = optim.build(small.model(), small.config(optimizer="muon", lr=1e-3, muon_lr=0.02).train)
    optim.set_lr(optimizers, 0.5)
    assert {group["lr"] for one in optimizers for group in one.param_groups} == {5e-4, 0.01}


@pytest.mark.parametrize(("limit", "after"), [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_clip_limits_the_global_norm_and_reports_it_unclipped(limit, after):
    model = nn.Linear(2, 1).double()
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, 0.0]]).double(), torch.tensor([4.0]).double()
    assert optim.clip(model, limit) == 5.0
    assert torch.cat([model.weight.grad[0], model.bias.grad]).norm().item() == pytest.approx(after, rel=1e-5)


def test_clip_leaves_what_is_not_finite_to_be_refused():
    model = nn.Linear(1, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[math.inf]]), torch.tensor([4.0])
    assert optim.clip(model, 1.0) == math.inf
    assert model.bias.grad.item() == 4.0


def test_ema_is_the_recursion():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    ema, expected = Ema(model, 0.5), 0.0
    for step in range(1, 12):
        with torch.no_grad():
            model.weight.fill_(step)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-12)
    with ema.swapped():
        assert model.weight.item() == pytest.approx(expected, rel=1e-12)
    assert model.weight.item() == 11


def test_no_ema_keeps_no_copy():
    model = nn.Linear(1, 1)
    ema, weight = Ema(model, 0.0), model.weight.item()
    ema.update(1)
    with ema.swapped():
        assert model.weight.item() == weight
    assert ema.average == {}
