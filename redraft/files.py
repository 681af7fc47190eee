"""Writing files so that no half of one is ever seen."""

import os
from collections.abc import Callable
from pathlib import Path


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
