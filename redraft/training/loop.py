"""The training loop: the algorithm box, and the few things a long run needs around it.

What a step computes is a pure function of (configuration, data, step): row indices, times and noise are keyed by
(seed, step, place in the global batch or row index), so processes, accumulation and resumption do not change it.
"""

import hashlib
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from redraft.data.packing import indices
from redraft.objectives import Objective, as_batch, at
from redraft.processes import Channel, Process
from redraft.processes.categorical import check_ids
from redraft.processes.time import draw
from redraft.randomness import generator, row_generators
from redraft.recipes.config import TrainConfig, to_dict
from redraft.training import checkpoint, optim, parallel
from redraft.training.ema import Ema
from redraft.training.interrupts import Stop, interrupts
from redraft.training.parallel import World
from redraft.training.progress import Report

TIMES, NOISE, LENGTH = 1, 2, 5
"""What a draw is for: the second key after the seed, so that no two draws of a run share a stream."""


_ROWS_AT_ONCE = 4096


class Tree(Protocol):
    """A frozen tree of fields (``recipes.config.frozen``), of which ``train`` acts here."""

    @property
    def train(self) -> TrainConfig: ...


class Rows(Protocol):
    """Training rows, such as ``redraft.data.Packed``. Those of a global batch are asked for together."""

    def __len__(self) -> int: ...

    def batch(self, indices: NDArray[np.int64], /) -> Mapping[str, Any]:
        """Arrays or tensors of the rows: ``ids`` (B, L), and what else an ``objectives.Batch`` has."""
        ...


@dataclass(frozen=True)
class Hooks:
    """What the caller wants done with the model during the run; each is called on every process, without gradients.

    ``validate(step, model)`` returns numbers to log, ``sample(step, model)`` a text to show. The model is in
    evaluation mode and holds the averaged weights if ``train.ema`` keeps an average.
    """

    validate: Callable[[int, nn.Module], Mapping[str, float]] | None = None
    sample: Callable[[int, nn.Module], str | None] | None = None


@dataclass(frozen=True)
class Result:
    """How a run ended. ``weights`` is the state dict to keep, averaged if ``train.ema``; on rank 0, empty elsewhere.

    ``stopped``: ended early by a signal, a checkpoint made. ``loss``: of the last step, nats per token; None
    if there was no step left to do. ``validation``: what ``Hooks.validate`` last returned here.
    """

    step: int
    stopped: bool
    loss: float | None
    weights: dict[str, Tensor]
    validation: dict[str, float]


@dataclass
class Tally:
    """Sums over the steps since the last logged row; part of a checkpoint, so that a resumed curve is the same."""

    steps: int = 0
    loss: float = 0.0
    bound: float = 0.0
    terms: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, means: Mapping[str, float]) -> None:
        """Take in a step's ``loss`` and ``bound``, and whatever else it has, by name."""
        self.steps, self.loss, self.bound = self.steps + 1, self.loss + means["loss"], self.bound + means["bound"]
        for name in means.keys() - {"loss", "bound"}:
            self.terms[name] = self.terms.get(name, 0.0) + means[name]

    def means(self) -> dict[str, float]:
        sums = {"loss": self.loss, "bound": self.bound, **dict(sorted(self.terms.items()))}
        return {name: value / self.steps for name, value in sums.items()}


class State:
    """A run on this process: the state that a checkpoint holds, and what a step needs to change it."""

    def __init__(
        self,
        config: Tree,
        model: nn.Module,
        process: Process,
        objective: Objective,
        rows: Rows,
        out: Path,
        world: World,
    ) -> None:
        self.train, self.model, self.rows, self.objective = config.train, model, rows, objective
        self.out, self.world = out, world
        self.shares = parallel.parts(config.train, world)
        self.denoiser = parallel.place(model, config.train, world)
        self.process = process.to(world.device)  # after the model, whose parameters it may read
        self.optimizers = optim.build(model, config.train)
        self.ema = Ema(model, config.train.ema)
        self.tree, self.data = checkpoint.flatten(to_dict(config)), fingerprint(rows)
        self.step, self.tally, self.stopping = 0, Tally(), False

    def advance(self, stop: Stop) -> dict[str, float]:
        """One step of the algorithm; what it was like. Errors: ``ValueError`` before weights take in what diverged."""
        train, world = self.train, self.world
        self.model.train()
        tokens, parts = self.accumulate()
        *sums, stopping = world.sum([*parts.values(), float(stop.asked)])
        means = dict(zip(parts, sums, strict=True))
        norm = optim.clip(self.model, train.clip)
        if not (math.isfinite(means["loss"]) and math.isfinite(norm)):
            raise self.divergence(blame(means, norm, self.model))
        scale = optim.lr_scale(self.step, train)
        optim.set_lr(self.optimizers, scale)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        complaint = schedule_complaint(self.process)
        if complaint is not None:  # before any checkpoint, average or sample is made of it
            raise self.divergence(complaint)
        self.step += 1
        self.ema.update(self.step)
        self.stopping = stopping > 0
        self.tally.add(means)
        return {"loss": means["loss"], "lr": train.lr * scale, "norm": norm, "tokens": tokens}

    def accumulate(self) -> tuple[float, dict[str, float]]:
        """Add up the gradient of the mean loss per valid token of the global batch.

        Returns the global number of valid tokens, and this process's part of the means of ``loss``, ``bound`` and each
        of the loss's ``terms.*``, which an objective must name alike on every process.
        """
        train, world, step = self.train, self.world, self.step
        drawn = indices(step, train.batch, len(self.rows), train.seed)
        whole = shortened(self.rows.batch(drawn), train, step)
        batches = [
            as_batch({name: one[share.start : share.stop] for name, one in whole.items()}, world.device)
            for share in self.shares
        ]
        tokens = count_tokens(batches, train.batch, world)
        parts, counts = dict[str, float](), None
        objective = at(self.objective, step / train.steps)
        for share, batch in zip(self.shares, batches, strict=True):
            u = draw(train.times, (train.seed, TIMES, step), share, train.batch)
            noise = row_generators(train.seed, NOISE, step, rows=drawn[share].tolist())
            with self.denoiser.gradients_meet(now=share is self.shares[-1]):
                loss = objective(self.denoiser, self.process, batch, u, noise)
                mean = total(loss.value, batch) / tokens
                (mean * world.size).backward()  # processes average their gradients; here they are to add up
            found = {
                "loss": loss.value,
                "bound": loss.bound,
                **{f"terms.{name}": term for name, term in loss.terms.items()},
            }
            sums = torch.stack([total(value.detach(), batch) for value in found.values()])
            for name, value in zip(found, (sums / tokens).tolist(), strict=True):
                parts[name] = parts.get(name, 0.0) + value
            if loss.counts is not None:
                counts = (counts or 0.0) + float(total(loss.counts, batch))
        if counts is not None:  # known only now that all noise is drawn
            scale = tokens / (world.sum([counts])[0] or 1.0)
            parts["loss"] *= scale
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        return tokens, parts

    def divergence(self, reason: str) -> ValueError:
        last = checkpoint.latest(self.out)
        return ValueError(
            f"training diverged at step {self.step + 1}: {reason}; "
            f"last good checkpoint: {last or 'none (set train.save_every)'}; lower train.lr or raise train.warmup"
        )

    def resume(self, path: Path) -> None:
        """Take up a checkpoint. Errors: ``ValueError`` saying what is wrong with it."""
        manifest = checkpoint.read_manifest(path)
        checkpoint.same_run(path, manifest, self.tree, self.data)
        checkpoint.prepare(self.optimizers)
        checkpoint.load(path, manifest, self.tensors(), self.world)
        self.step, self.tally = manifest.step, Tally(**manifest.extra)

    def save(self) -> None:
        manifest = checkpoint.Manifest(self.step, self.tree, self.data, asdict(self.tally), {})
        checkpoint.save(self.out, manifest, self.tensors(), self.world)

    def tensors(self) -> dict[str, Tensor]:
        return checkpoint.state_tensors(self.model, self.optimizers, self.ema)


def fit(
    config: Tree,
    model: nn.Module,
    process: Process,
    objective: Objective,
    rows: Rows,
    hooks: Hooks | None = None,
    out: str | Path = "runs/run",
    resume: bool = False,
) -> Result:
    """Train ``model`` in place by ``config.train``, on ``rows``; every process of a torchrun calls it alike.

    Only ``config.train`` acts here; the whole ``config`` is kept in checkpoints, and one that differs in a field that
    decides the weights is refused. ``out`` receives ``checkpoints/`` and ``metrics.jsonl`` (nats per token). The loss
    of a step is the mean over the valid tokens of its global batch.

    Errors: ``ValueError`` for rows with ids that are no clean tokens, a batch that does not divide, an ``out`` already
    in use, nothing to resume, a damaged or foreign checkpoint, a loss or gradient that is not finite (its step and
    first term are named, and nothing of it kept), or a learned noise schedule that has gone bad (likewise).
    """
    train, out, hooks = config.train, Path(out), hooks or Hooks()
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    with parallel.world() as world, interrupts() as stop:
        start = starting_point(out, resume)
        check_rows(rows, process)
        run = State(config, model, process, objective, rows, out, world)
        if start is not None:
            run.resume(start)
        loss, validation, clock = None, {}, Clock()
        with Report(out, train.steps, run.step, train.tracker, run.tree, world.main) as report:
            while run.step < train.steps and not run.stopping:
                now = run.advance(stop)
                last, loss, speed = run.step == train.steps, now["loss"], clock.speed(now.pop("tokens"))
                report.advance(run.step, loss, speed)
                if last or due(run.step, train.log_every):
                    report.row(run.step, {**now, **run.tally.means(), "tokens_per_second": speed})
                    run.tally, clock = Tally(), Clock()
                with clock.paused():
                    validation = call_hooks(hooks, run, report) or validation
                    if last or run.stopping or due(run.step, train.save_every):
                        run.save()
            if run.step < train.steps:
                report.say(f"stopped at step {run.step}, checkpoint made")
        with run.ema.swapped():
            weights = parallel.full_state(model, world)
        return Result(run.step, run.step < train.steps, loss, weights, validation)


def blame(means: Mapping[str, float], norm: float, model: nn.Module) -> str:
    """What is not finite: the loss's first term that is not, or of a finite loss the first weight's gradient."""
    said = [f"loss {means['loss']}, gradient norm {norm}"]
    bad = [
        f"term {name.removeprefix('terms.')!r} is {value}"
        for name, value in means.items()
        if name.startswith("terms.") and not math.isfinite(value)
    ]
    if not bad and math.isfinite(means["loss"]):
        gradients = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
        bad = [
            f"the gradient of {name} is not finite"
            for name, gradient in gradients
            if not bool(gradient.isfinite().all())
        ]
    return ", ".join(said + bad[:1])


def schedule_complaint(process: Process) -> str | None:
    """What has gone bad of a process's noise schedule, in words; only vectors have schedules that can."""
    return process.schedule.complaint() if isinstance(process, Channel) else None


def call_hooks(hooks: Hooks, run: State, report: Report) -> dict[str, float]:
    """Validate (also after the last step) and sample, each when due; what the validation gave, or nothing."""
    train, metrics = run.train, dict[str, float]()
    validating = hooks.validate and (run.step == train.steps or due(run.step, train.eval_every))
    sampling = hooks.sample and due(run.step, train.sample_every)
    if not (validating or sampling):
        return metrics
    run.model.eval()
    with torch.no_grad(), run.ema.swapped():
        if validating and hooks.validate:
            metrics = dict(hooks.validate(run.step, run.model))
            report.row(run.step, metrics)
        if sampling and hooks.sample and (text := hooks.sample(run.step, run.model)) is not None:
            report.say(text)
    return metrics


def due(step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is done at ``step``."""
    return every > 0 and step % every == 0


def starting_point(out: Path, resume: bool) -> Path | None:
    """The checkpoint to start from, None for a fresh run. Errors: ``ValueError`` if ``out`` is unfit.

    A fresh run wants a folder that is not there or holds nothing but the log of a run that never reached a checkpoint.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={str(out)!r} is a file: choose a folder")
    last = checkpoint.latest(out)
    if resume and last is None:
        raise ValueError(f"nothing to resume: {out} holds no complete checkpoint; start without resume")
    if not resume and last is not None:
        raise ValueError(f"out={str(out)!r} holds a run ({last.name}): continue it with resume, or choose another out")
    left = (
        {path.name for path in out.iterdir()} - {"metrics.jsonl", "checkpoints", "tensorboard"}
        if out.is_dir()
        else set()
    )
    if not resume and left:
        raise ValueError(f"out={str(out)!r} exists and holds {min(left)}: choose another out, or remove it")
    return last


def shortened(rows: Mapping[str, Any], train: TrainConfig, step: int) -> Mapping[str, Any]:
    """A global batch, in a share ``train.random_length`` of the steps cut to a length drawn from 1 .. L (LLaDA)."""
    if not train.random_length:
        return rows
    chance, place = torch.rand(2, generator=generator(train.seed, LENGTH, step), dtype=torch.float64).tolist()
    length = 1 + int(place * rows["ids"].shape[1])
    return {name: one[:, :length] for name, one in rows.items()} if chance < train.random_length else rows


def count_tokens(batches: Sequence[Mapping[str, Tensor]], batch: int, world: World) -> float:
    """Number of valid tokens of the global batch of ``batch`` rows; 1 where there are none."""
    if "valid" not in batches[0]:
        return float(batch * batches[0]["ids"].shape[1])
    return world.sum([float(sum(int(one["valid"].sum()) for one in batches))])[0] or 1.0


def total(values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The sum of (B, L) values over the valid tokens, in float64."""
    values = values.double()
    return (torch.where(batch["valid"], values, 0.0) if "valid" in batch else values).sum()


def check_rows(rows: Rows, process: Process) -> None:
    """Refuse, before any step, rows with ids that are not clean tokens: ``ValueError`` naming the first."""
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        ids = rows.batch(np.arange(start, min(start + _ROWS_AT_ONCE, len(rows))))["ids"]
        check_ids(torch.as_tensor(ids), process.name, process.K, process.mask_id)


def fingerprint(rows: Rows) -> str:
    """SHA-256 of the number of rows and of a thousand of them: enough to notice that the text, or what counts of it,
    is another."""
    n = len(rows)
    sample = rows.batch(np.linspace(0, n - 1, 1000).astype(np.int64))
    found = hashlib.sha256(f"{n} {np.asarray(sample['ids']).tolist()}".encode())
    if "valid" in sample:
        found.update(np.packbits(np.asarray(sample["valid"])).tobytes())
    return found.hexdigest()


class Clock:
    """Measures tokens per second of training since it was made, leaving out what happens while ``paused``."""

    def __init__(self) -> None:
        self._start, self._tokens = time.monotonic(), 0.0

    def speed(self, tokens: float) -> float:
        """Count ``tokens`` more; the speed so far."""
        self._tokens += tokens
        return self._tokens / max(time.monotonic() - self._start, 1e-9)

    @contextmanager
    def paused(self) -> Generator[None]:
        pause = time.monotonic()
        yield
        self._start += time.monotonic() - pause
