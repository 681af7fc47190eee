"""What one sampling step costs under each noise and sampler: CPU time against a masked step of the same network.

    python benchmarks/sampling.py [--vocab 50258] [--depth 4] [--batch 4] [--length 128] [--rounds 7]

A step asks the denoiser (Heun's method and churn of order 2 twice) and draws z at s; the network is untrained, which
changes no cost. The unit's denoiser reads t, so that it is asked at every step. The floor of any step is its forward
pass, timed alone. Interleaved rounds, the order turned round every time; a ratio is to the unit's step of the same
round. Per call: the ratio over the number of denoiser calls.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from redraft import recipes, records, runs
from redraft.data import Tokenizer
from redraft.models import Transformer
from redraft.processes import Process
from redraft.randomness import row_generators
from redraft.sampling import samplers
from redraft.sampling.loop import sample

UNIT = "masked, ancestral"
CELLS = {
    "mdlm": ("ancestral",),
    "udlm": ("ancestral",),
    "gaussian": ("ancestral", "ddim"),
    "cdcd": ("ancestral", "ddim", "heun", "churn"),
    "plaid": ("ancestral",),
    "diffusion_lm": ("ancestral", "ddim:clamp=true"),
    "analog_bits": ("ancestral",),
}
"""Recipes, and the samplers timed with each."""
STEPS = 4
"""Steps of one timed run: the fixed costs of ``sample`` (a prior, the last call among vectors) are divided by them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("vocab", 50_258),
        ("depth", 4),
        ("batch", 4),
        ("length", 128),
        ("rounds", 7),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sampling-cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    entries = dict(steps(options.vocab, options.depth, options.batch, options.length))
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    for run, _ in entries.values():
        run()
    for turn in range(options.rounds):
        for name in list(entries) if turn % 2 else list(entries)[::-1]:
            seconds[name].append(timed(entries[name][0]))
    found: dict[str, Any] = {}
    for name, (_, calls) in entries.items():
        ratios = [one / unit for one, unit in zip(seconds[name], seconds[UNIT], strict=True)]
        median = statistics.median(ratios)
        found[name] = {
            "cpu_seconds_per_step": statistics.median(seconds[name]),
            "calls": calls,
            "ratio": {"median": median, "least": min(ratios), "most": max(ratios)},
            "ratio_per_call": median / calls,
        }
        print(f"{name:<32}{json.dumps(found[name])}", file=sys.stderr)
    shape = {name: value for name, value in vars(options).items() if name != "out"}
    report = {**shape, "entries": found} | records.made([0])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")


def steps(vocab: int, depth: int, batch: int, length: int) -> Iterator[tuple[str, tuple[Callable[[], object], float]]]:
    """By name: what takes one step, and the denoiser calls in it."""
    for name, chosen in CELLS.items():
        process, model = build(name, vocab, depth)
        label = "masked" if name == "mdlm" else "uniform" if name == "udlm" else name
        yield f"{label}, forward alone", (forward(process, model, batch, length), 1.0)
        for sampler in chosen:
            run, calls = step(process, model, sampler, batch, length)
            yield f"{label}, {sampler}", (run, calls)


def build(name: str, vocab: int, depth: int) -> tuple[Process, Transformer]:
    tokenizer = SimpleNamespace(K=vocab, mask_id=None, eos_id=None, pad_id=None)
    preset = recipes.get(name)
    # the unit reads t like the others, and is asked at every step
    preset = replace(preset, model=replace(preset.model, depth=depth, time_conditioned=True))
    process, model = runs.build(preset, cast(Tokenizer, tokenizer))
    return process, model.eval().requires_grad_(False)


def forward(process: Process, model: Transformer, batch: int, length: int) -> Callable[[], object]:
    ids = torch.zeros(batch, length, dtype=torch.long)
    t = torch.full((batch,), 0.5, dtype=torch.float64)
    z = process.corrupt(ids, t, row_generators(0, rows=range(batch)))
    told: Any = {"guess": torch.zeros_like(z)} if model.facts.self_conditioned else None
    asked: dict[str, Any] = {"vectors": True} if model.facts.vectors else {}
    return lambda: model(z, t, told, **asked)


def step(
    process: Process, model: Transformer, sampler: str, batch: int, length: int
) -> tuple[Callable[[], object], float]:
    """One step out of ``STEPS`` from t = 0.9 down, through the query that ``sample`` gives its samplers."""
    taken: list[Callable[[], Tensor]] = []
    calls: list[int] = []

    def record(*given: Any) -> Tensor:
        function = samplers.get(sampler)
        z = function(*given)
        if len(taken) < 2:  # the second step, where a model that conditions on itself has a guess
            before = given[1].cost.nfe
            taken.append(lambda: function(*given))
            taken[-1]()
            calls.append(given[1].cost.nfe - before)
        return z

    sample(process, model, length=length, num=batch, steps=STEPS, sampler=cast(Any, record), seed=0)
    return taken[1], float(calls[1])


def timed(run: Callable[[], object]) -> float:
    with torch.no_grad():
        started = time.process_time()
        run()
        return time.process_time() - started


if __name__ == "__main__":
    main()
