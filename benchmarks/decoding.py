"""Decoding speed against a plainly written LLaDA loop: one checkpoint, identical tokens first, then CPU time.

    python benchmarks/decoding.py [--depths 3,6,11] [--vocab 1000,126000] [--lengths 96,512] [--written 32] [--rounds 3]

A random-weight network of full attention continues a prompt at temperature 0 by low-confidence unmasking in blocks. The
baseline (``Plain``) is the algorithm as the paper prints it: a forward of the whole canvas a step, the output layer at
every position, softmax, argmax, top-k. Beside it stand the same algorithm with a threshold, and with Fast-dLLM's dual
cache, written as plainly: what redraft writes must equal the plain loop's tokens, or no time is given.

Thresholds mean nothing to random weights: tau is a quantile of the confidences the plain loop has seen. Times are CPU
seconds of one thread, the two sides run in turns, the order changing every round; a ratio is ours to the baseline of
its round. ``overhead`` is a step of ours with the network replaced by stored log p of a vocabulary of 32.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft import processes, records
from redraft.models import Transformer, TransformerConfig
from redraft.models.layers import Cache
from redraft.processes import Facts
from redraft.sampling import sample

BLOCK = 16
QUANTILE = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", default="3,6,11", help="1.3M, 10.6M and 65M inner weights")
    parser.add_argument("--vocab", default="1000,126000")
    parser.add_argument("--lengths", default="96,512")
    for name, default in (("written", 32), ("rounds", 3), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decoding-cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"overhead": overhead(), "cells": []}
    for depth in numbers(options.depths):
        for vocab in numbers(options.vocab):
            model = network(depth, vocab, options.seed)
            for length in numbers(options.lengths):
                found["cells"].append(cell(model, length, options.written, options.rounds, options.seed))
                print(json.dumps(found["cells"][-1]), file=sys.stderr)
                shape = {"written": options.written, "block": BLOCK, "rounds": options.rounds, "seed": options.seed}
                report = {**shape, **found, "load": os.getloadavg()}
                report |= records.made([options.seed])
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(report, indent=2) + "\n")


def numbers(written: str) -> list[int]:
    return [int(one) for one in written.split(",")]


def network(depth: int, vocab: int, seed: int) -> Transformer:
    """Random weights, such that no position is sure of anything and none the same as another."""
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(processes.masked(vocab).to_dict(), depth=depth))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        model.head.weight.mul_(4.0)
    return model.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------- the plain loops


@dataclass
class Plain:
    """The paper's loop, one row: what it costs is counted as ours is."""

    model: Transformer
    mask: int
    nfe: int = 0
    positions: int = 0
    seen: list[float] = field(default_factory=list[float])

    def logits(self, x: Tensor, cond: Any = None) -> Tensor:
        """Logits of every position of x (1, L). Up to its normalisation that is what the network says."""
        self.nfe += 1
        self.positions += x.numel()
        return self.model(x, torch.ones(1, dtype=torch.float64), cond)

    def write(self, prompt: Tensor, written: int, tau: float | None, dual: bool) -> Tensor:
        x = torch.cat([prompt, torch.full((written,), self.mask)])[None]
        for start in range(len(prompt), x.shape[1], BLOCK):
            stop, kept, first = min(start + BLOCK, x.shape[1]), Cache(), True
            while bool((x[0, start:stop] == self.mask).any()):
                if not dual:
                    logits = self.logits(x)[0, start:stop]
                elif first:
                    logits = self.logits(x, {"cache": kept, "store": True})[0, start:stop]
                    for layers in (kept.keys, kept.values):
                        layers[:] = [torch.cat([one[:, :, :start], one[:, :, stop:]], dim=2) for one in layers]
                else:
                    told = {"cache": kept, "positions": torch.arange(start, stop)}
                    logits = self.logits(x[:, start:stop], told)[0]
                first = False
                self.choose(x[0, start:stop], logits, tau)
        return x[0]

    def choose(self, block: Tensor, logits: Tensor, tau: float | None) -> None:
        """Write the surest masked token of the block, and with tau all above it."""
        tokens = logits.argmax(-1)
        sure = torch.softmax(logits, -1).gather(-1, tokens[:, None])[:, 0]
        sure = torch.where(block == self.mask, sure, -torch.inf)
        best = int(sure.argmax())
        self.seen.append(float(sure[best]))
        block[best] = tokens[best]
        if tau is not None:
            block[sure > tau] = tokens[sure > tau]


def cell(model: Transformer, length: int, written: int, rounds: int, seed: int) -> dict[str, Any]:
    """All loops on one network and length, in turns; the first round says which of ours wrote the same text."""
    vocab = model.config.process["K"]
    prompt = torch.randint(vocab, (length - written,), generator=torch.Generator().manual_seed(seed))
    first = Plain(model, vocab)
    with torch.no_grad():
        first.write(prompt, written, None, dual=False)
    tau = float(torch.tensor(first.seen).quantile(QUANTILE))
    ways: dict[str, tuple[float | None, bool, dict[str, Any]]] = {
        "no cache": (None, False, {"sampler": "low_confidence"}),
        "threshold": (tau, False, {"sampler": f"threshold:tau={tau}"}),
        "threshold, dual cache": (tau, True, {"sampler": f"threshold:tau={tau}", "cache": "dual"}),
    }
    loops: dict[str, Callable[[], Loop]] = {}
    for name, (at, dual, options) in ways.items():
        loops[f"plain {name}"] = partial(plain, model, prompt, written, at, dual)
        loops[f"ours {name}"] = partial(ours, model, prompt, written, options)
    found: dict[str, list[Loop]] = {name: [] for name in loops}
    for turn in range(rounds):
        for name in list(loops) if turn % 2 else list(loops)[::-1]:
            found[name].append(timed(loops[name]))
    inner = sum(one.numel() for name, one in model.named_parameters() if name.startswith("blocks"))
    shape = {"inner_weights": inner, "vocab": vocab, "length": length, "written": written, "tau": tau}
    return {**shape, "ways": {name: compared(found, name) for name in ways}}


@dataclass
class Loop:
    """What a loop wrote, and what it cost."""

    tokens: Tensor
    nfe: int
    positions: int
    approximate: bool = False
    seconds: float = 0.0


def plain(model: Transformer, prompt: Tensor, written: int, tau: float | None, dual: bool) -> Loop:
    loop = Plain(model, model.config.process["K"])
    return Loop(loop.write(prompt, written, tau, dual), loop.nfe, loop.positions, dual)


def ours(model: Transformer, prompt: Tensor, written: int, options: dict[str, Any]) -> Loop:
    found = sample(model.process, model, prompt=prompt, length=written, block=BLOCK, temperature=0.0, **options)
    return Loop(found.tokens[0], found.nfe, found.positions, found.approximate)


def compared(found: dict[str, list[Loop]], way: str) -> dict[str, Any]:
    """Ours against the plain loop of the same algorithm, whose text it must be, and against the baseline's time."""
    sides = {"ours": found[f"ours {way}"], "same algorithm": found[f"plain {way}"], "baseline": found["plain no cache"]}
    told: dict[str, Any] = {
        "identical": all(torch.equal(one.tokens, sides["same algorithm"][0].tokens) for one in sides["ours"]),
        "nfe": {name: loops[0].nfe for name, loops in sides.items()},
        "positions": {name: loops[0].positions for name, loops in sides.items()},
        "approximate": sides["ours"][0].approximate,
    }
    if not told["identical"]:
        return told  # no speed of another text
    for other in ("baseline", "same algorithm"):
        ratios = [one.seconds / two.seconds for one, two in zip(sides["ours"], sides[other], strict=True)]
        told[f"to {other}"] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    told["cpu_seconds"] = {name: statistics.median(one.seconds for one in loops) for name, loops in sides.items()}
    return told


def timed(run: Callable[[], Loop]) -> Loop:
    with torch.no_grad():
        started = time.process_time()
        done = run()
        done.seconds = time.process_time() - started
        return done


# ----------------------------------------------------------------------------------------------------- our own cost


class Stub:
    """A denoiser that only looks up what it says."""

    def __init__(self, vocab: int, length: int) -> None:
        self.facts = Facts(mask_id=vocab, selective=True)
        self.logp = torch.randn(length, vocab, generator=torch.Generator().manual_seed(0)).log_softmax(-1)

    def __call__(self, z: Tensor, t: Tensor, cond: Any = None, where: Tensor | None = None) -> Tensor:
        return self.logp[None].expand(len(z), -1, -1) if where is None else self.logp[where[0]]


def overhead(vocab: int = 32, length: int = 512, rounds: int = 5) -> dict[str, Any]:
    """CPU milliseconds a step, all of it: choosing, writing, counting, and log p of 32 tokens."""
    process, stub = processes.masked(vocab), Stub(vocab, length)
    found: dict[str, Any] = {}
    for sampler in ("low_confidence", "threshold:tau=0.2", "entropy_bounded", "random_order", "maskgit_plus"):
        times = list[float]()
        for _ in range(rounds):
            started = time.process_time()
            steps = sample(process, stub, length=length, temperature=0.0, sampler=sampler).nfe
            times.append(1000 * (time.process_time() - started) / steps)
        found[sampler] = {"milliseconds": statistics.median(times), "least": min(times), "most": max(times)}
    return found


if __name__ == "__main__":
    main()
