"""What a run shows and keeps: a progress bar or plain lines on standard error, ``metrics.jsonl``, and a tracker."""

import json
import math
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from redraft.errors import unknown
from redraft.files import write_text

Metrics = Mapping[str, float]


class Tracker(Protocol):
    """Where metrics go besides ``metrics.jsonl``."""

    def log(self, step: int, metrics: Metrics) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, out: Path, config: Mapping[str, Any], step: int) -> None:
        writer = _import("torch.utils.tensorboard", "tensorboard").SummaryWriter
        # what a killed run logged after the checkpoint it resumes from is hidden
        self._writer = writer(str(out / "tensorboard"), purge_step=step + 1)
        self._writer.add_text("config", "```json\n" + json.dumps(config, indent=1) + "\n```")

    def log(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    def __init__(self, out: Path, config: Mapping[str, Any], step: int) -> None:
        self._run = _import("trackio", "trackio").init(
            project="redraft", name=out.resolve().name, config=dict(config), resume="allow" if step else "never"
        )

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, type[_TensorBoard] | type[_Trackio]] = {"tensorboard": _TensorBoard, "trackio": _Trackio}


def _import(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise ValueError(
            f"train.tracker={extra!r} needs a package that is not installed: "
            f"pip install 'redraft[{extra}]', or set train.tracker=none"
        ) from None


class Report:
    """The output of one run; use it as a context manager. With ``main`` False it does nothing.

    ``advance`` is called after every step, ``row`` for what is to be kept, ``say`` for a remark.
    """

    def __init__(
        self, out: Path, steps: int, step: int, tracker: str, config: Mapping[str, Any], main: bool = True
    ) -> None:
        if tracker != "none" and tracker not in TRACKERS:
            raise unknown("tracker", tracker, ["none", *TRACKERS])
        self.main, self.steps, self.first = main, steps, step
        self._started = time.monotonic()
        self._tracker: Tracker | None = None
        self._bar: Progress | None = None
        if not main:
            return
        if tracker != "none":
            self._tracker = TRACKERS[tracker](out, config, step)
        self._path = out / "metrics.jsonl"
        truncate(self._path, step)
        if sys.stderr.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=steps, completed=step)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()
        if self._tracker:
            self._tracker.close()

    def advance(self, step: int, loss: float, speed: float) -> None:
        """``step`` updates are done, the last with ``loss``, at ``speed`` tokens per second."""
        if self._bar:
            text = f"step {step}  loss {loss:.4f}  {speed:,.0f} tokens/s"
            self._bar.update(self._task, completed=step, description=text)

    def row(self, step: int, metrics: Metrics) -> None:
        """Keep ``metrics`` of ``step`` in metrics.jsonl and the tracker, and show them.

        NaN means not measured (a bound that an objective's draw says nothing of), and is left out.
        """
        if not self.main:
            return
        metrics = {name: value for name, value in metrics.items() if not math.isnan(value)}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._tracker:
            self._tracker.log(step, metrics)
        if not self._bar:
            shown = "  ".join(f"{name} {value:.5g}" for name, value in metrics.items())
            self.say(f"step {step}/{self.steps}  {shown}  ETA {self._remaining(step)}")

    def say(self, text: str) -> None:
        """Show a remark, unmarked-up, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self.main:
            print(text, file=sys.stderr, flush=True)

    def _remaining(self, step: int) -> timedelta:
        per_step = (time.monotonic() - self._started) / max(step - self.first, 1)
        return timedelta(seconds=round(per_step * (self.steps - step)))


def truncate(path: Path, step: int) -> None:
    """Keep the rows of ``path`` up to ``step``: what a killed run wrote later will be written again."""
    kept: list[str] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:  # the line a killed run was writing
            continue
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(kept))
