"""One report format: ``report.md`` with its pictures for people, ``records.json`` for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from redraft.files import write, write_text
from redraft.studies.findings import Conclusion, Plot, Table
from redraft.studies.runner import Budget, Record, Study

REPORT, RECORDS = "report.md", "records.json"
_STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "redraft",
    "svg.fonttype": "none",
}


def check_plotting() -> None:
    """Refuse before anything runs. Errors: ``ValueError`` naming the extra when matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise ValueError("a study draws plots and matplotlib is missing: pip install 'redraft[viz]'")


def write_report(
    study: Study, budget: Budget, records: Sequence[Record], conclusion: Conclusion, out: Path, command: str
) -> None:
    """Write ``report.md``, ``records.json`` and each plot as ``.png`` and ``.svg`` into ``out``."""
    for plot in conclusion.plots:
        _draw(plot, out)
    tree = {
        "study": study.name,
        "question": study.question,
        "command": command,
        "budget": asdict(budget),
        "findings": [asdict(finding) for finding in conclusion.findings],
        "answer": conclusion.answer,
        "records": [asdict(record) for record in records],
    }
    write_text(out / RECORDS, json.dumps(tree, indent=2) + "\n")
    parts = [
        f"# Study: {study.name}",
        study.question,
        "## What we found",
        *_found(study, conclusion),
        "## Results",
        *map(_table, conclusion.tables),
        *(f"![{plot.caption}]({plot.name}.png)\n\n*{plot.caption}*" for plot in conclusion.plots),
        *_failures(records),
        "## Protocol",
        _protocol(study, budget, records, command),
    ]
    write_text(out / REPORT, "\n\n".join(parts) + "\n")


def _found(study: Study, conclusion: Conclusion) -> list[str]:
    """The claims in the study's order, each with what the records say to it, then the answer."""
    parts: list[str] = []
    for claim in study.claims:
        listed = [found for found in conclusion.findings if found.claim == claim]
        lines = [f"- **{found.verdict}**: {found.sentence}" for found in listed]
        parts.append("\n".join([f"**Claim: {claim}**", "", *(lines or ["- **not measured**"])]))
    assert {found.claim for found in conclusion.findings} <= set(study.claims)
    return [*parts, *([conclusion.answer] if conclusion.answer else [])]


def _table(table: Table) -> str:
    rows = [table.columns, ("---",) * len(table.columns), *table.rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"### {table.title}", "", *lines, *(["", table.note] if table.note else [])])


def _failures(records: Sequence[Record]) -> list[str]:
    failed = [(one.cell.name, str(one.cell.seed), one.failed) for one in records if one.failed is not None]
    note = "No figure above holds anything of these. The log of each is in `logs/`."
    return [_table(Table("Failed cells", ("cell", "seed", "reason"), failed, note))] if failed else []


def _protocol(study: Study, budget: Budget, records: Sequence[Record], command: str) -> str:
    machines = {json.dumps(one.machine, sort_keys=True): one.machine for one in records if one.machine is not None}
    spent = sum(one.cpu_seconds or 0 for one in records)
    seeds = ", ".join(map(str, range(budget.seeds)))
    lines = [
        f"Command: `{command}`",
        f"Budget: {budget.steps} training steps, {budget.draws} draws a row for each bound, "
        f"{budget.samples} samples at each number of denoiser calls; seeds {seeds}.",
        *study.protocol,
        f"{len(records)} cells took {spent / 60:.1f} CPU-minutes in all, one thread each.",
        *(f"Machine: {_machine(one)}." for one in machines.values()),
        "Intervals are of 95%. "
        + (
            "They hold what evaluation and sampling add, and the spread over seeds."
            if budget.seeds > 1
            else "They hold what evaluation and sampling add, not how trainings with other seeds would differ."
        ),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _machine(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def _draw(plot: Plot, out: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=plot.size, layout="constrained")
        plot.draw(figure)
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):

            def save(path: Path, kind: str = kind, metadata: dict[str, Any] = metadata) -> None:
                figure.savefig(path, format=kind, dpi=150, metadata=metadata)

            write(out / f"{plot.name}.{kind}", save)
