"""What our training step costs beyond the bare arithmetic, and how near that is to the machine's peak.

    python benchmarks/training.py [--depth 6] [--rounds 15] [--out FILE]
    python benchmarks/training.py --utilisation --depth 12 --length 1024 --batch 32 --precision bfloat16 --compile

A: our whole step, as ``fit`` runs it (data, times, noise, forward, loss, backward, clipping, optimiser, logging).
B: forward + loss + backward + optimiser of the same module on a corrupted batch drawn beforehand.
A and B alternate in one process; the figure is the median of the ratios of neighbours, in CPU time and in wall time.
``--utilisation`` measures A alone, on the GPU if there is one: model FLOPs per second over the device's own matrix
product rate in that precision (what is often called MFU is against the rate on the data sheet).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from redraft import objectives, recipes, records, runs
from redraft.data import load_data
from redraft.models import Transformer
from redraft.objectives import as_batch
from redraft.processes import Process
from redraft.processes.base import log_prob_of
from redraft.recipes import Config
from redraft.training import Hooks, World, fit, optim
from redraft.training.interrupts import Stop
from redraft.training.loop import State
from redraft.training.progress import Report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="steps of A, then of B, in each round")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--utilisation", action="store_true", help="measure the whole step alone")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training-cpu.json"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    report = (utilisation(options) if options.utilisation else compare(options)) | {
        **records.made([0]),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def configuration(options: argparse.Namespace) -> Config:
    return recipes.override(
        recipes.get("mdlm"),
        {
            "model.depth": options.depth,
            "data.length": options.length,
            "train.batch": options.batch,
            "train.optimizer": "adamw",
            "train.precision": options.precision,
            "train.compile": options.compile,
        },
    )


def utilisation(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of ``fit`` after ``steps`` steps of warm-up, and the share of the matrix product rate."""
    config = configuration(options)
    corpus = load_data(config.data)
    process, model = runs.build(config, corpus.tokenizer)
    times: list[float] = []
    hooks = Hooks(sample=lambda _step, _model: times.append(time.perf_counter()))
    total = options.steps * (options.rounds + 1)
    config = recipes.override(config, {"train.steps": total, "train.sample_every": options.steps})
    with tempfile.TemporaryDirectory() as folder:
        fit(config, model, process, objectives.get(config.objective), corpus.train, hooks, Path(folder) / "run")
    rounds = [(after - before) / options.steps for before, after in pairwise(times)]
    flops = step_flops(model, options.batch, options.length)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = matmul_rate(device, 4096 if device.type == "cuda" else 1024, getattr(torch, options.precision))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch": options.batch,
        "length": options.length,
        "precision": options.precision,
        "compiled": options.compile,
        "step_seconds": spread(rounds),
        "tokens_per_second": options.batch * options.length / statistics.median(rounds),
        "step_flops": flops,
        "matmul_flops_per_second": peak,
        "share_of_matmul_rate": flops / statistics.median(rounds) / peak,
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of A to B over ``rounds`` interleaved rounds, and the matrix-multiply rate B and the machine reach."""
    config = configuration(options)
    corpus = load_data(config.data)
    process, model = runs.build(config, corpus.tokenizer)
    bare = Bare(config, process, model, corpus.train.batch(slice(0, options.batch)))
    whole = Whole(config, process, model, corpus.train, options.steps)
    whole()
    bare.steps(options.steps)
    cpu, wall, bare_seconds = [], [], []
    for index in range(options.rounds):
        # the order alternates, so that a machine that speeds up or slows down favours neither
        pair = [("a", whole), ("b", lambda: bare.steps(options.steps))]
        taken = {name: timed(function) for name, function in (pair if index % 2 else pair[::-1])}
        cpu.append(taken["a"][0] / taken["b"][0])
        wall.append(taken["a"][1] / taken["b"][1])
        bare_seconds.append(taken["b"][1] / options.steps)
    parameters = sum(p.numel() for p in model.parameters())
    flops = step_flops(model, options.batch, options.length)
    peak = matmul_rate(torch.device("cpu"))
    return {
        "parameters": parameters,
        "batch": options.batch,
        "length": options.length,
        "rounds": options.rounds,
        "cpu_time_ratio": spread(cpu),
        "wall_time_ratio": spread(wall),
        "bare_step_seconds": spread(bare_seconds),
        "step_flops": flops,
        "matmul_flops_per_second": peak,
        "share_of_matmul_rate": flops / statistics.median(bare_seconds) / peak,
        "goal": "median CPU-time ratio at most 1.08",
    }


class Bare:
    """B: the least a step can do."""

    def __init__(self, config: Config, process: Process, model: Transformer, rows: Any) -> None:
        self.process, self.model = process, model
        self.batch = as_batch(rows)
        self.objective = objectives.get(config.objective)
        self.optimizers = optim.build(model, config.train)
        self.u = (torch.arange(len(self.batch["ids"])) + 0.5) / len(self.batch["ids"])
        self.z, self.t, _ = objectives.corrupt(process, self.batch["ids"], self.u, torch.Generator().manual_seed(0))

    def steps(self, number: int) -> None:
        for _ in range(number):
            where = self.z == self.process.mask_id
            logp = self.model(self.z, self.t, None, where)
            losses = -log_prob_of(self.batch["ids"][where], logp)
            weight = (1 / self.t)[:, None].expand(where.shape)[where]
            (weight * losses).sum().div(where.numel()).backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()


class Whole:
    """A: the step ``fit`` takes, ``steps`` times; making the run and its checkpoint are outside the timing."""

    def __init__(self, config: Config, process: Process, model: Transformer, rows: Any, steps: int) -> None:
        self.steps = steps
        self.folder = tempfile.TemporaryDirectory()
        objective = objectives.get(config.objective)
        self.world = World(rank=0, size=1, device=torch.device("cpu"), grouped=False)
        self.run = State(config, model, process, objective, rows, Path(self.folder.name), self.world)
        self.report = Report(Path(self.folder.name), 10**6, 0, "none", {}, main=True)
        self.stop = Stop()

    def __call__(self) -> None:
        for _ in range(self.steps):
            now = self.run.advance(self.stop)
            self.report.advance(self.run.step, now["loss"], 0.0)
            self.report.row(self.run.step, {**now, **self.run.tally.means()})


def timed(function: Callable[[], None]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def step_flops(model: Transformer, batch: int, length: int) -> float:
    """Multiply-adds counted as two: 6 per weight and token for matrices, 12 L E per token and block for attention.

    The output layer runs on masked positions only, half of them on average.
    """
    inner = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    head = model.head.weight.numel() / 2
    attention = 12 * length * model.head.in_features * len(model.blocks)
    return batch * length * (6 * (inner + head) + attention)


def matmul_rate(device: torch.device, size: int = 1024, dtype: torch.dtype = torch.float32) -> float:
    """The device's best rate over square matrix products, FLOP/s."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 2 * size**3 / min(timed(product)[1] for _ in range(20))


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    main()
