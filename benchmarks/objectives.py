"""What one training step costs under each objective: time and memory, against plain masked cross-entropy.

    python benchmarks/objectives.py [--vocab 50258] [--depth 4] [--batch 4] [--length 128] [--only udlm ...]

A step is forward, backward and clipping; the optimiser is left out, as its cost depends on the weights alone. One entry
for each recipe of the lineage and of the Gaussian family, and for each objective that has none. The unit is masked
cross-entropy with the output layer at all positions; ``mdlm`` is the same with the output layer at masked positions
only, about half of them.

Time: CPU seconds of interleaved rounds, the order turned round every time; a ratio is to the unit's step of the same
round. Memory: what a step allocates, seen by every operation that autograd or we dispatch, at its peak: bytes, and how
many tensors of size batch x length x vocabulary they would be, counting only those of at least a third of that size.
"""

import argparse
import gc
import inspect
import json
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redraft import objectives, records, runs
from redraft.data import Packed, Tokenizer
from redraft.models import Transformer
from redraft.objectives import OBJECTIVES
from redraft.processes import Process
from redraft.processes.base import log_prob_of
from redraft.randomness import row_generators
from redraft.recipes import Config, ModelConfig, ProcessConfig
from redraft.recipes.gaussian import GAUSSIAN
from redraft.recipes.lineage import LINEAGE

UNIT = "masked cross-entropy, all positions"
SQUARE = ("gaussian", "neighbour", "band")
"""Kinds of D3PM matrix that are stored, K x K."""
Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=50_258)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=None, help="entries to measure; all unless given")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/objectives-cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = Shape(options.vocab, options.depth, options.batch, options.length)
    found, refused = measure(dict(configurations(options.only)), shape, options.rounds)
    report = {
        **asdict(shape),
        "rounds": options.rounds,
        "logits_bytes": shape.logits_bytes,
        "step": "forward, backward, gradient clipping; no optimiser",
        "entries": found,
        "not_measured": refused,
        "goal": f"udlm and duo: cpu_time_ratio at most 1.25; peak_logits no more than of {UNIT!r}",
        **records.made([0]),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


@dataclass(frozen=True)
class Shape:
    """Sizes of the step; ``vocab`` clean tokens, [MASK] beside them where the noise has one."""

    vocab: int
    depth: int
    batch: int
    length: int

    @property
    def logits_bytes(self) -> int:
        return 4 * self.batch * self.length * self.vocab


def configurations(only: Collection[str] | None = None) -> Iterator[tuple[str, Config]]:
    """The recipes on text by name, then objectives without a recipe on noise that fits them."""
    text = [recipe for recipe in GAUSSIAN if not recipe.__name__.startswith("toy_")]
    recipes = {recipe.__name__: recipe() for recipe in (*LINEAGE, *text)}
    covered = {config.objective for config in recipes.values()}
    for name, spec in OBJECTIVES.items():
        if name not in covered:
            noise = spec.processes[0] if spec.processes else "masked"
            process = ProcessConfig(name=cast(Any, noise))
            model = ModelConfig(time_conditioned=noise != "masked", attention=spec.attention[0])
            recipes[name] = Config(recipe=name, objective=name, process=process, model=model)
    yield from ((name, config) for name, config in recipes.items() if only is None or name in only)


def measure(configs: dict[str, Config], shape: Shape, rounds: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures of every configuration, and why some have none. Each is built once; all are timed in every round."""
    steps: dict[str, Step] = {UNIT: plain(shape)}
    refused: dict[str, str] = {}
    for name, config in configs.items():
        if config.process.name == "d3pm" and config.process.matrix in SQUARE:
            refused[name] = f"its transition matrix alone has {shape.vocab}^2 numbers"
            continue
        steps |= entries(name, config, shape)
    found: dict[str, Any] = {}
    for name, step in steps.items():
        step()  # the gradients' storage, and whatever is made once
        found[name] = memory(step, shape)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name in list(steps) if turn % 2 else list(steps)[::-1]:
            seconds[name].append(timed(steps[name]))
    for name in steps:
        ratios = [one / unit for one, unit in zip(seconds[name], seconds[UNIT], strict=True)]
        found[name] |= {"cpu_seconds": spread(seconds[name]), "cpu_time_ratio": spread(ratios)}
    for name, figures in found.items():
        figures["peak_bytes_ratio"] = figures["peak_bytes"] / found[UNIT]["peak_bytes"]
        print(f"{name:<40}{json.dumps(figures)}", file=sys.stderr)
    return found, refused


# ---------------------------------------------------------------------------------------------------------- the steps


def entries(name: str, config: Config, shape: Shape) -> dict[str, Step]:
    """The step of one configuration; two for an objective with a curriculum, while it lasts and after it."""
    process, model = build(config, shape)
    options: dict[str, Any] = {option: value for option, value in asdict(config.loss).items() if value is not None}
    if config.objective == "dcd":
        options["teacher"] = build(config, shape)[1].requires_grad_(False)
    objective = objectives.get(config.objective, **options)
    stages = {name: 1.0}
    if "progress" in inspect.signature(objective).parameters:
        stages = {f"{name}, curriculum": 0.0, f"{name}, after it": 1.0}
    batch, u = draw(shape)

    def stepper(progress: float) -> Step:
        def step() -> None:
            noise = row_generators(0, rows=range(shape.batch))
            loss = objectives.at(objective, progress)(model, process, batch, u, noise)
            finish(model, loss.value)

        return step

    return {stage: stepper(progress) for stage, progress in stages.items()}


def plain(shape: Shape) -> Step:
    """The unit: log softmax of all positions, -log p(x0) gathered, masked positions weighed by 1 / t."""
    config = Config(process=ProcessConfig(name="masked"))
    process, model = build(config, shape)
    batch, u = draw(shape)

    def step() -> None:
        z, t, _ = objectives.corrupt(process, batch["ids"], u, row_generators(0, rows=range(shape.batch)))
        losses = -log_prob_of(batch["ids"], model(z, t))
        finish(model, torch.where(z == process.mask_id, losses / t[:, None], 0.0))

    return step


def build(config: Config, shape: Shape) -> tuple[Process, Transformer]:
    """Process and network at the benchmark's size; head weights drawn, as an untrained head is zero."""
    tokenizer = SimpleNamespace(K=shape.vocab, mask_id=None, eos_id=None, pad_id=None)
    model = replace(config.model, depth=shape.depth, init=None)
    if model.attention == "block":
        model = replace(model, block=model.block or 16)
    rows = SimpleNamespace(ids=draw(shape)[0]["ids"], valid=None)
    process, network = runs.build(replace(config, model=model), cast(Tokenizer, tokenizer), cast(Packed, rows))
    torch.nn.init.normal_(network.head.weight, std=0.02)
    return process, network


def draw(shape: Shape) -> tuple[dict[str, Tensor], Tensor]:
    ids = torch.randint(0, shape.vocab, (shape.batch, shape.length), generator=torch.Generator().manual_seed(0))
    return {"ids": ids}, (torch.arange(shape.batch, dtype=torch.float64) + 0.5) / shape.batch


def finish(model: Transformer, value: Tensor) -> None:
    loss = value.double().mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert norm.isfinite()
    model.zero_grad()


# ------------------------------------------------------------------------------------------------------ measuring them


class Alive(TorchDispatchMode):
    """Watches what operations return, and keeps the most that was alive at once.

    ``bytes``: of all storages made while it watched. ``logits``: of those of at least a third of ``unit`` bytes, in
    units; gradients of weights, recognised by their size, are not among them.
    """

    def __init__(self, unit: int, known: Collection[Tensor]) -> None:
        super().__init__()
        self.unit = unit
        self.weights = {one.untyped_storage().nbytes() for one in known}
        self.before = {one.untyped_storage()._cdata for one in known}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes, self.logits = 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.live = {key: one for key, one in self.live.items() if not one[0].expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.before:
                    self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        sizes = [size for _, size in self.live.values()]
        self.bytes = max(self.bytes, sum(sizes))
        large = sum(size for size in sizes if size > self.unit / 3 and size not in self.weights)
        self.logits = max(self.logits, large / self.unit)
        return out


def memory(step: Step, shape: Shape) -> dict[str, float]:
    """Peak of what one step allocates: ``peak_bytes``, and ``peak_logits`` in tensors of the logits' size."""
    gc.collect()
    known = [one for one in gc.get_objects() if type(one) is torch.nn.Parameter]
    with Alive(shape.logits_bytes, known) as alive:
        step()
    return {"peak_bytes": alive.bytes, "peak_logits": round(alive.logits, 2)}


def timed(step: Step) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    main()
