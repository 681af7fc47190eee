"""Writing files so that no half of one is ever seen, and reading those that hold a JSON object."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(path: Path, writer: Callable[[Path], object]) -> None:
    """Let ``writer`` write beside ``path``, then rename: the file is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        writer(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """``write`` of a UTF-8 text."""
    write(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Errors: ``ValueError`` where it holds none; ``OSError`` without the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, {error}; copy the folder again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: damaged, it holds no JSON object; copy the folder again")
    return found
