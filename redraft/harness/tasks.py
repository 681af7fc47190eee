"""Tasks of lm-evaluation-harness run on a model, and what is stored of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from redraft.harness.backend import Harness

KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")
"""Of what lm_eval returns, what a record holds."""


@dataclass(frozen=True)
class Asked:
    """What of the harness's own choices is made; the rest is as it comes. ``limit``: examples of each task."""

    tasks: Sequence[str]
    include_path: Path | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    chat: bool = False
    system: str | None = None
    gen_kwargs: str | None = None
    unsafe_code: bool = False


def run(backend: Harness, asked: Asked) -> dict[str, Any]:
    """Figures by task, with versions, settings, cost and the standard error of what was drawn.

    With ``include_path`` the harness's own tasks are not indexed, which takes half a minute: only that folder's are
    known. Errors: ``ValueError`` for tasks that are unknown, with the nearest, and settings of none.
    """
    own = asked.include_path is not None
    manager: Any = TaskManager(include_path=str(asked.include_path) if own else None, include_defaults=not own)
    _check(asked.tasks, manager.all_tasks)
    backend.settings.check(manager.all_subtasks, manager.all_tasks)
    evaluate: Any = lm_eval.simple_evaluate
    found: Any = evaluate(
        model=backend,
        tasks=list(asked.tasks),
        num_fewshot=asked.num_fewshot,
        limit=asked.limit,
        apply_chat_template=asked.chat,
        system_instruction=asked.system,
        gen_kwargs=asked.gen_kwargs,
        task_manager=manager,
        log_samples=False,
        confirm_run_unsafe_code=asked.unsafe_code,
    )
    kept = {name.replace("-", "_"): found[name] for name in KEPT if name in found}
    own = {"chat": asked.chat, "limit": asked.limit, "versions_of": {"lm_eval": version("lm_eval")}}
    return {**kept, **own, **backend.record()}


def figures(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table: each figure by task and name, with the harness's standard error over examples, of a ``run``.

    Then, of tasks that are scored, whether log p is a bound or exact, and its standard error by what was drawn.
    """
    rows = list[tuple[str, str]]()
    for task, said in found["log_p"].items():
        mean = said["mean_standard_error"]
        chance = "not known" if mean is None else f"{mean:.4f} nats in the mean"
        drawn = f", standard error of {said['draws']} draws {chance}" if said["draws"] else ""
        rows.append((f"{task} log p", f"{said['is']} ({said['estimator']}){drawn}"))
    return _scores(found["results"]) + rows


def _scores(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    rows = list[tuple[str, str]]()
    for task, found in results.items():
        for name, value in found.items():
            metric, _, rule = name.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float) or not rule:
                continue
            error = found.get(f"{metric}_stderr,{rule}")
            told = f" ± {error:.4f} (standard error)" if isinstance(error, float) else ""
            rows.append((f"{task} {metric}" + ("" if rule == "none" else f" ({rule})"), f"{value:.4f}{told}"))
    return rows


def _check(tasks: Sequence[str], known: Sequence[str]) -> None:
    """Errors: ``ValueError`` for a task that is none, with the nearest; patterns and files are lm_eval's to find."""
    for task in tasks:
        if task not in known and not any(mark in task for mark in "*?[/.") and not Path(task).exists():
            near = get_close_matches(task, known, n=3, cutoff=0.5)
            raise ValueError(
                f"unknown task {task!r}" + (f"; did you mean {' or '.join(map(repr, near))}?" if near else ".")
            )
