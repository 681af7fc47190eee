"""The records of a folder: every JSON file below it that says what it is of and how it was made, and runs' results."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.publishing import RESULTS
from redraft.records import KINDS

MOST_FILES = 10_000
MOST_BYTES = 32_000_000
RUN = "run"
_OF_A_RUN = {"recipe", "machine", "seconds"}


@dataclass(frozen=True)
class Found:
    """A record: its ``number`` on the page, its file's ``name`` below the folder, what it is of, and what it says."""

    number: int
    name: str
    kind: str
    tree: dict[str, Any]
    made: dict[str, Any]


def collect(folder: Path) -> tuple[list[Found], list[str]]:
    """The records below ``folder``, by name, and remarks on files that were not read.

    A file larger than ``MOST_BYTES`` is left out with a remark; JSON that is none of ours, and links, without one.

    Errors: ``ValueError`` for what is no folder, a file whose JSON is damaged, named, more than ``MOST_FILES`` files,
    and a folder without any record.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: pass one that holds records")
    files = [path for path in folder.rglob("*.json") if path.is_file() and not path.is_symlink()]
    if len(files) > MOST_FILES:
        raise ValueError(f"{folder} holds {len(files)} .json files, at most {MOST_FILES} are read: pass a folder in it")
    found, remarks = list[Found](), list[str]()
    for path in sorted(files, key=lambda path: path.relative_to(folder).parts):
        name = path.relative_to(folder).as_posix()
        if path.stat().st_size > MOST_BYTES:
            remarks.append(f"{name} was not read: it is larger than {MOST_BYTES // 1_000_000} MB")
        elif (one := _record(path, name, len(found) + 1)) is not None:
            found.append(one)
    if not found:
        raise ValueError(
            f"{folder} holds no records: redraft evaluate, lm-eval and safety store one by --out FILE.json, evaluate "
            "--frontier, study and train by themselves"
        )
    return found, remarks


def _record(path: Path, name: str, number: int) -> Found | None:
    """The record of a file, None of JSON that is none of ours. Errors: ``ValueError`` for what is no JSON."""
    try:
        tree = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, {error}; copy it again, or take it out of the folder") from None
    if not isinstance(tree, dict):
        return None
    made = tree.get("made")
    if tree.get("kind") in KINDS and isinstance(made, dict):
        return Found(number, name, str(tree["kind"]), tree, made)
    if path.name == RESULTS and tree.keys() >= _OF_A_RUN:
        return Found(number, name, RUN, tree, _of_run(tree))
    return None


def _of_run(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's results say of how they were made."""
    told = {name: tree.get(name) for name in ("command", "commit", "machine", "date")}
    recipe: Any = tree["recipe"]
    train: Any = recipe.get("train") if isinstance(recipe, dict) else None
    seed: Any = train.get("seed") if isinstance(train, dict) else tree.get("seed")
    return {**told, "seeds": [] if seed is None else [seed]}
