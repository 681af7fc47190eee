"""One report format: ``report.md`` with its pictures for people, ``records.json`` for programs."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from redraft import drawing
from redraft.files import write_text
from redraft.records import made
from redraft.records import write as write_record
from redraft.studies.findings import Conclusion, Table, summary
from redraft.studies.runner import Budget, Record, Study

REPORT, RECORDS = "report.md", "records.json"


def write_report(
    study: Study, budget: Budget, records: Sequence[Record], conclusion: Conclusion, out: Path, command: str
) -> None:
    """Write ``report.md``, ``records.json`` and each plot as ``.png`` and ``.svg`` into ``out``."""
    for plot in conclusion.plots:
        drawing.save(plot.draw, out / plot.name, plot.size)
    found = summary(study.claims, conclusion.findings)
    tree = {
        "study": study.name,
        "question": study.question,
        "told": study.told,
        "found": found,
        "command": command,
        "budget": asdict(budget),
        "findings": [asdict(finding) for finding in conclusion.findings],
        "answer": conclusion.answer,
        "records": [asdict(record) for record in records],
    }
    write_record(out / RECORDS, "study", tree, made(range(budget.seeds), shlex.split(command)))
    parts = [
        f"# Study: {study.name}",
        study.question,
        *([f"> What is said: {study.told}"] if study.told else []),
        f"**What we found.** {found}",
        f"**Budget.** {_budget(study, budget)}",
        "## Claims",
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
    lines = [
        f"Command: `{command}`",
        f"Budget: {_budget(study, budget)}",
        *study.protocol,
        f"{len(records)} cells took {spent / 60:.1f} CPU-minutes in all, one thread each.",
        *(f"Machine: {_machine(one)}." for one in machines.values()),
        "Intervals are of 95%. "
        + (
            "They hold what evaluation and sampling add, and the spread over seeds as far as so few tell it."
            if budget.seeds > 1
            else "They hold what evaluation and sampling add, not how trainings with other seeds would differ."
        ),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _budget(study: Study, budget: Budget) -> str:
    draws = f", {budget.draws} draws a row for each bound" if budget.draws else ""
    samples = f", {budget.samples} {study.sampled}" if budget.samples else ""
    seeds = ", ".join(map(str, range(budget.seeds)))
    return f"{budget.steps} training steps{draws}{samples}; seeds {seeds}."


def _machine(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
