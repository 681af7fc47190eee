"""What a training step keeps alive, in tensors of size batch x length x vocabulary (``benchmarks/objectives.py``).

The unit is masked cross-entropy over all positions: log p stands in for the logits, and while softmax's own backward
runs the gradients of both are there, three in all. No objective here may need more.
"""

import gc
import importlib.util
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "benchmarks" / "objectives.py"
SPEC = importlib.util.spec_from_file_location("benchmark_of_objectives", PATH)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)

SHAPE = benchmark.Shape(vocab=4000, depth=1, batch=4, length=64)
SOME = ("udlm", "duo", "gidd", "dcd", "nelbo")


def peak(step) -> float:
    step()
    return benchmark.memory(step, SHAPE)["peak_logits"]


@pytest.fixture(scope="module", autouse=True)
def _old_objects_aside():
    """The benchmark collects garbage before it measures: what other tests left need not be walked every time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def unit():
    return peak(benchmark.plain(SHAPE))


def test_the_unit_is_three(unit):
    assert unit == 3.0


@pytest.mark.parametrize("name", SOME)
def test_no_objective_needs_more_than_plain_cross_entropy(name, unit):
    """Nor distillation: its teacher's law is one more, but is gone before softmax's backward."""
    found = dict(benchmark.configurations([name]))
    for stage, step in benchmark.entries(name, found[name], SHAPE).items():
        assert peak(step) <= unit, stage


def test_the_benchmark_misses_no_objective():
    from redraft.objectives import OBJECTIVES

    assert {config.objective for _, config in benchmark.configurations()} == set(OBJECTIVES)


def test_the_watch_sees_what_autograd_keeps():
    """The same sum left to autograd keeps at least two more; a tensor let go of no longer counts."""
    from redraft.processes.fused import shares

    size = SHAPE.vocab
    leaf = torch.randn(4, 64, size, requires_grad=True)
    ids = torch.zeros(4, 64, dtype=torch.long)
    ratio = torch.full((4, 1), 100.0)

    def naive():
        logp = leaf.log_softmax(-1)
        torch.log1p(ratio[..., None] * logp.exp()).sum().backward()

    def ours():
        shares(leaf.log_softmax(-1), ratio, ids, ids)[0].sum().backward()

    def passing():
        for _ in range(5):
            torch.zeros(4, 64, size)

    assert peak(naive) >= peak(ours) + 2
    assert peak(passing) <= 2  # the next may be made before the last is gone
