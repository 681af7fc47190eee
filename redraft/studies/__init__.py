"""The field's claims as experiments anyone can rerun: one runner, one report, a file a study."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from redraft.drawing import check_plotting
from redraft.errors import unknown
from redraft.studies.findings import Conclusion, Finding
from redraft.studies.report import write_report
from redraft.studies.runner import WORKERS, Budget, Cell, Record, Study, run_cells

STUDIES = (
    "data-constrained",
    "gaussian",
    "hybrid",
    "length",
    "lineage",
    "schedules",
    "self-correction",
    "steps-vs-ar",
    "time-conditioning",
    "unmasking-order",
    "unsupervised-cfg",
)
"""Each is the ``STUDY`` of its own module here (- is _ there), which is imported when asked for."""


@dataclass(frozen=True)
class Outcome:
    """What ``run`` returns: the records, what they say, and the folder that holds the report."""

    records: list[Record]
    conclusion: Conclusion
    out: Path

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.failed is not None]

    def to_dict(self) -> dict[str, Any]:
        """The findings and the failed cells, as plain JSON values; the records are in ``out / "records.json"``."""
        failed = [{"cell": one.cell.name, "seed": one.cell.seed, "reason": one.failed} for one in self.failed]
        findings = [asdict(finding) for finding in self.conclusion.findings]
        return {"out": str(self.out), "cells": len(self.records), "failed": failed, "findings": findings}


def get(name: str) -> Study:
    """The study of a name. Errors: ``ValueError`` naming the nearest."""
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    study = import_module(f"redraft.studies.{name.replace('-', '_')}").STUDY
    assert isinstance(study, Study)
    return study


def run(
    study: str | Study,
    *,
    quick: bool = False,
    out: str | Path | None = None,
    steps: int | None = None,
    seeds: int | None = None,
    workers: int = WORKERS,
    only: Sequence[str] = (),
    command: str | None = None,
) -> Outcome:
    """Run a study's cells, and write its report into ``out`` (``runs/studies/NAME``).

    ``quick`` takes the study's small budget; ``steps`` and ``seeds`` change either. ``only`` names the cells to run.
    Records already in ``out`` for the same cells and budget are used again, so an interrupted study goes on where it
    stopped. ``command`` is what the report says repeats it.

    Errors: ``ValueError`` for unknown names, a budget below one, or matplotlib missing; before any cell runs.
    """
    study = get(study) if isinstance(study, str) else study
    budget = study.quick if quick else study.full
    budget = replace(budget, steps=budget.steps if steps is None else steps)
    budget = replace(budget, seeds=budget.seeds if seeds is None else seeds)
    cells = study.cells(budget, only)
    check_plotting("a study draws plots")
    out = Path(out or Path("runs") / "studies" / study.name)
    out.mkdir(parents=True, exist_ok=True)
    records = run_cells(cells, study.measure, out, workers)
    conclusion = study.conclude(records)
    write_report(study, budget, records, conclusion, out, command or _command(study, budget, quick, only))
    return Outcome(records, conclusion, out)


def _command(study: Study, budget: Budget, quick: bool, only: Sequence[str]) -> str:
    options = [*(["--quick"] if quick else []), "--steps", str(budget.steps), "--seeds", str(budget.seeds)]
    for name in only:
        options += ["--only", name]
    return shlex.join(["redraft", "study", study.name, *options])


__all__ = [
    "STUDIES",
    "Budget",
    "Cell",
    "Conclusion",
    "Finding",
    "Outcome",
    "Record",
    "Study",
    "get",
    "run",
]
