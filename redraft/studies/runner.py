"""The one runner of all studies: cells in processes of their own, each kept as a file, so that a study resumes.

A study is a question, cells to run, and what their records say. This file knows of no particular study.
"""

import hashlib
import json
import multiprocessing as mp
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from redraft import __version__
from redraft.errors import unknown
from redraft.files import write_text
from redraft.studies.findings import Conclusion

WORKERS = 2


@dataclass(frozen=True)
class Budget:
    """What a cell may spend: training ``steps``, ``draws`` of (t, z) a row for the bound, ``samples`` to judge.

    ``seeds``: how many times each cell is trained, with seeds 0, 1, ... ``draws`` is 0 where no bound is measured, and
    ``samples`` where nothing is written.
    """

    steps: int
    seeds: int
    draws: int
    samples: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < (0 if name in ("draws", "samples") else 1):
                raise ValueError(f"{name}={value}: take at least one")


@dataclass(frozen=True)
class Cell:
    """One training to measure. ``options`` (JSON values) hold everything beside name and seed that decides it."""

    name: str
    seed: int
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """The name of the cell's file: another option or another version of redraft is another cell."""
        told = json.dumps([self.options, __version__], sort_keys=True)
        return f"{self.name}-{self.seed}-{hashlib.sha256(told.encode()).hexdigest()[:10]}"


@dataclass(frozen=True)
class Record:
    """What a cell gave: ``measured``, or the reason why it ``failed``; the other fields are None when it did.

    ``cpu_seconds`` and ``peak_memory_mb`` are of the cell's whole process, evaluation and sampling included.
    """

    cell: Cell
    measured: dict[str, Any] | None = None
    failed: str | None = None
    cpu_seconds: float | None = None
    peak_memory_mb: float | None = None
    machine: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Record":
        fields: dict[str, Any] = {**tree, "cell": Cell(**tree["cell"])}
        return cls(**fields)


def rows_by(records: Sequence[Record], *names: str) -> dict[str, dict[Any, list[Mapping[str, Any]]]]:
    """The ``rows`` of what was measured, by cell, then by what a row holds under ``names``: one of each seed."""
    found = dict[str, dict[Any, list[Mapping[str, Any]]]]()
    for record in records:
        for row in (record.measured or {}).get("rows", ()):
            cell = found.setdefault(record.cell.name, {})
            cell.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


Measure = Callable[[Cell, Path], dict[str, Any]]
"""(cell, an empty folder to work in) -> JSON values; a function of a module, for it runs in a process of its own."""


@dataclass(frozen=True)
class Study:
    """A claim or more as an experiment. ``claims`` are what it reads; ``protocol`` says what is equal in all cells.

    ``told``: what the texts that this project began with say of it, in our words; the report quotes it. ``sampled``:
    what a budget's samples are.
    ``names()`` are the cells; ``options(name, budget)`` what decides one; ``measure`` runs one;
    ``conclude(records)`` turns all records into tables, plots and findings.
    """

    name: str
    question: str
    claims: tuple[str, ...]
    protocol: tuple[str, ...]
    names: Callable[[], Sequence[str]]
    options: Callable[[str, Budget], dict[str, Any]]
    measure: Measure
    conclude: Callable[[Sequence[Record]], Conclusion]
    full: Budget
    quick: Budget
    told: str = ""
    sampled: str = "samples at each number of denoiser calls"

    def cells(self, budget: Budget, only: Sequence[str] = ()) -> list[Cell]:
        """One cell a name and seed, seeds outermost. Errors: ``ValueError`` for a name in ``only`` that is none."""
        names = list(self.names())
        for name in only:
            if name not in names:
                raise unknown(f"cell of study {self.name!r}:", name, names)
        chosen = [name for name in names if not only or name in only]
        return [Cell(name, seed, self.options(name, budget)) for seed in range(budget.seeds) for name in chosen]


def run_cells(
    cells: Sequence[Cell],
    measure: Measure,
    out: Path,
    workers: int = WORKERS,
    tell: Callable[[str], object] = lambda line: print(line, file=sys.stderr),
) -> list[Record]:
    """Run the cells that have no record in ``out / "cells"`` yet; the records of all, in the order of ``cells``.

    ``workers`` processes at a time, one torch thread and one fresh process a cell: a cell that fails or is killed
    takes no other with it, and peak memory is its own. A failed cell leaves ``logs/KEY.log`` and is tried again next
    time. Errors: ``ValueError`` for fewer than one worker.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: take at least one")
    records = {cell.key: kept for cell in cells if (kept := _kept(out, cell)) is not None}
    waiting = deque(cell for cell in cells if cell.key not in records)
    if records:
        tell(f"{len(records)} of {len(cells)} cells are already in {out}")
    running: dict[Connection, tuple[Cell, BaseProcess, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.popleft()
                connection, process = _start(cell, measure, out)
                running[connection] = cell, process, time.monotonic()
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                cell, process, started = running.pop(connection)
                record = _receive(cell, connection, process)
                records[cell.key] = record
                _keep(out, record)
                how = f"failed: {record.failed}" if record.failed else f"{time.monotonic() - started:.0f} s"
                tell(f"[{len(records)}/{len(cells)}] {cell.name}, seed {cell.seed}: {how}")
    finally:
        for _, process, _ in running.values():
            process.kill()
            process.join()
        shutil.rmtree(out / "work", ignore_errors=True)
        if not any((out / "logs").glob("*")):
            shutil.rmtree(out / "logs", ignore_errors=True)
    return [records[cell.key] for cell in cells]


def _start(cell: Cell, measure: Measure, out: Path) -> tuple[Connection, BaseProcess]:
    folder = out / "work" / cell.key
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    log = out / "logs" / f"{cell.key}.log"
    for parent in (folder, log.parent):
        parent.mkdir(parents=True, exist_ok=True)
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, measure, cell, folder, log))
    process.start()
    theirs.close()  # so that its end is seen when the child dies
    return ours, process


def _child(connection: Connection, measure: Measure, cell: Cell, folder: Path, log: Path) -> None:
    """The cell's process: quiet, single-threaded, deaf to the interrupt that its parent will act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from redraft.records import machine

    torch.set_num_threads(1)
    started = time.process_time()
    try:
        measured = measure(cell, folder)
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        connection.send({"failed": reason})
        return
    spent = round(time.process_time() - started, 1)
    connection.send({"measured": measured, "cpu_seconds": spent, "peak_memory_mb": peak_memory(), "machine": machine()})


def _receive(cell: Cell, connection: Connection, process: BaseProcess) -> Record:
    try:
        outcome: dict[str, Any] = connection.recv()
    except (EOFError, OSError):  # before it told anything, or in the middle of it
        process.join()
        outcome = {"failed": f"its process died with exit code {process.exitcode} (-9: killed, often for memory)"}
    connection.close()
    process.join()
    return Record(cell, **outcome)


def _keep(out: Path, record: Record) -> None:
    """Store a measured record, and clear away what its process left."""
    key = record.cell.key
    shutil.rmtree(out / "work" / key, ignore_errors=True)
    if record.failed is None:
        (out / "cells").mkdir(exist_ok=True)
        write_text(out / "cells" / f"{key}.json", json.dumps(asdict(record), indent=2) + "\n")
        (out / "logs" / f"{key}.log").unlink(missing_ok=True)


def _kept(out: Path, cell: Cell) -> Record | None:
    path = out / "cells" / f"{cell.key}.json"
    return Record.from_dict(json.loads(path.read_text("utf-8"))) if path.is_file() else None


def peak_memory() -> float:
    """The most memory this process ever held, MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would count what the parent held when this process was started
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in lines:
            return round(int(lines["VmHWM"].split()[0]) * 1024 / 1e6, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
