"""A run of seconds: a hybrid process over 7 tokens, rows of 6 with padding, a model of depth 1, everything float64."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from redraft import objectives, processes, schedules
from redraft.models.transformer import Transformer, TransformerConfig
from redraft.recipes.config import Config, override
from redraft.training import Hooks, Result, fit

K, L, BATCH, STEPS = 7, 6, 8, 4


class Rows:
    """20 random rows; the last tokens of some are padding. ``pause`` seconds a batch make a run slow enough to kill."""

    def __init__(self, n: int = 20, pause: float = 0.0, seed: int = 0) -> None:
        random = np.random.RandomState(seed)
        self.ids = random.randint(0, K, (n, L)).astype(np.int32)
        self.valid = np.arange(L) < random.randint(2, L + 1, (n, 1))
        self.pause = pause

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        time.sleep(self.pause)
        return {"ids": self.ids[indices], "valid": self.valid[indices]}


def config(**train: object) -> Config:
    base = {"steps": STEPS, "batch": BATCH, "warmup": 2, "log_every": 1, "precision": "float64", "threads": 1}
    return override(Config(), {f"train.{name}": value for name, value in {**base, **train}.items()})


def process() -> processes.Categorical:
    return processes.hybrid(K)


def model() -> Transformer:
    """The same weights each time; the head is not zero, so that gradients reach everything from the first step."""
    torch.manual_seed(0)
    made = Transformer(TransformerConfig(process().to_dict(), depth=1, time_conditioned=True))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return made


SCHEDULES = {"plaid": "plaid", "cdcd": "adaptive"}
"""Of objectives over vectors that learn all there is to learn: what they learn their schedule by."""


def vectors(objective: str) -> Transformer:
    """A self-conditioned model over vectors whose codebook and schedule are learned, moved off its start likewise."""
    stored = {"name": SCHEDULES[objective], "gamma_min": -4.0, "gamma_max": 4.0}
    start = schedules.gamma_start(stored, 0)
    table = torch.randn(K, 5, generator=torch.Generator().manual_seed(0))
    noise = processes.gaussian(table, "vp", schedules.gamma(stored, start), learned=True, normalise=True)
    torch.manual_seed(0)
    config = TransformerConfig(noise.to_dict(), depth=1, time_conditioned=True, self_conditioned=True)
    made = Transformer(config, {"codebook": table, **{f"schedule_{name}": one for name, one in start.items()}})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return made


def train_vectors(out: Path, name: str, **options) -> Result:
    made, objective = vectors(name), objectives.get(name)
    return fit(config(**options), made, made.process, objective, Rows(), out=out)


def probe(step: int, model: Transformer) -> dict[str, float]:
    """A number that depends on all weights, as a validation would give it."""
    z, t = torch.arange(L)[None], torch.full((1,), 0.5, dtype=torch.float64)
    return {"probe": model(z, t)[..., 0].sum().item()}


def train(out: Path, rows: Rows | None = None, resume: bool = False, hooks: Hooks | None = None, **options) -> Result:
    return fit(
        config(**options), model(), process(), objectives.get("nelbo"), rows or Rows(), hooks, out=out, resume=resume
    )


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def start(script: str, *arguments: object, rank: int | None = None, size: int = 1, port: int = 0) -> subprocess.Popen:
    """Run a script of this folder, as a rank of a group if ``rank`` is given, as torchrun would start it."""
    tests = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}", "OMP_NUM_THREADS": "1"}
    if rank is not None:
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env |= {name: str(value) for name, value in group.items()}
    command = [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def start_group(script: str, *arguments: object, size: int = 2) -> list[subprocess.Popen]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    return [start(script, *arguments, rank=rank, size=size, port=port) for rank in range(size)]
