"""What every measurement is kept with: a file that says what it is, on what it was made, and how to repeat it.

    {"kind": "likelihood", ..what was measured.., "made": {"command", "seeds", "commit", "machine", "date"}}

Whatever measures writes such a file (``write``); ``redraft report`` reads a folder of them (``redraft.reporting``).
"""

import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from redraft.files import read_object, write_text

KINDS = ("likelihood", "samples", "frontier", "harness", "safety", "study")
"""What a record may be of."""
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")
GIT_SECONDS = 10


def made(seeds: Sequence[int], command: Sequence[str] | None = None) -> dict[str, Any]:
    """Where a figure comes from: ``command`` (this process's own unless given), seeds, commit, machine, date (UTC)."""
    told = _typed() if command is None else command
    return {
        "command": shlex.join(told),
        "seeds": list(seeds),
        "commit": commit(),
        "machine": machine(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def machine() -> dict[str, Any]:
    """What a figure was measured on: processor, threads, GPU, and versions."""
    import torch  # here, for a command that only prints is to start at once

    from redraft import __version__

    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
        "redraft": __version__,
    }


@cache
def commit() -> str | None:
    """The commit of redraft's own files, ``+`` behind it where they were changed since; None of an installed copy."""
    home = Path(__file__).parent
    found = _git(home, "rev-parse", "--short=12", "HEAD")
    if found is None or _git(home, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None  # no checkout, or another project's, with redraft installed somewhere in it
    return found + ("+" if _git(home, "status", "--porcelain", "--", ".") else "")


def write(path: Path, kind: str, measured: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Store what was measured as one JSON object; numbers that JSON cannot write are null."""
    assert kind in KINDS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"kind": kind, **plain(measured), "made": dict(made)}, indent=2) + "\n")


def read(path: Path) -> dict[str, Any] | None:
    """The record in a file; None where its JSON is none of ours. Errors: ``ValueError`` for a file that holds none."""
    found = read_object(path)
    return found if found.get("kind") in KINDS and isinstance(found.get("made"), dict) else None


def plain(value: Any) -> Any:
    """``value`` as JSON can write it: numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _typed() -> list[str]:
    """What started this process: the ``redraft`` command, or somebody's own program."""
    program = Path(sys.argv[0])
    ours = program.stem == "redraft" or program.parent.name == "redraft"  # installed, or run as a module
    return ["redraft", *sys.argv[1:]] if ours else ["python", *sys.argv]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *words: str) -> str | None:
    """What git says, None where it fails or is not there."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
