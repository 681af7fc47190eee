"""Code as it is: does it parse, does it run, does it pass its tests.

Model-written code is run in a process of its own that first locks itself in (``sandbox``): it may read Python's own
files and no other, write none, open no socket, start no process or thread, signal nobody; memory, CPU time, wall time
and output are bounded; its environment is empty, its folder too, and there is no shell and nothing on its input.

What it is not: proof against an attacker. The code shares the kernel with you, and may use whatever hole that has; it
sees which files of Python there are, the time and the machine; and code that looks for the way its success is told can
claim to have passed. For code that someone wrote against you use a virtual machine. Linux alone has these locks; where
they cannot be set, nothing is run. What needs a file, a thread, a second process or a library beyond the standard one
fails here, however right it is.
"""

import ast
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from redraft.evaluation.intervals import wilson

MAX_CODE = 1 << 20
"""Characters of a program; a longer one is refused."""
SANDBOX = Path(__file__).with_name("sandbox.py")
_LOCKED = b"locked\n"
Status = Literal["passed", "failed", "timed out"]


@dataclass(frozen=True)
class Limits:
    """``seconds`` of wall time and, rounded up, of CPU time; ``memory``, bytes of address space; ``output``, bytes of
    each of standard output and error, beyond which writing fails."""

    seconds: float = 5.0
    memory: int = 512 << 20
    output: int = 1 << 16

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name}={value}: a limit is above 0")


@dataclass(frozen=True)
class Outcome:
    """``passed``: the program came to its end. ``failed``: it raised, left before, or was ended by a limit other than
    time, and the last line of ``error`` says why. Both are as much as it wrote within its limits."""

    status: Status
    output: str
    error: str


def run(code: str, test: str = "", *, allow_execution: bool = False, limits: Limits | None = None) -> Outcome:
    """Run ``code``, and ``test`` behind it, locked in.

    Errors: ``ValueError`` unless ``allow_execution`` is True, for a program of more than ``MAX_CODE`` characters, and
    on a machine where the locks cannot be set.
    """
    if not allow_execution:
        raise ValueError("this runs code that a model wrote; pass allow_execution=True if you want that")
    limits = limits or Limits()
    program = f"{code}\n\n{test}\n" if test else code
    if len(program) > MAX_CODE:
        raise ValueError(f"a program of {len(program)} characters: {MAX_CODE} at most are run")
    if not sys.platform.startswith("linux"):
        raise ValueError(f"code is run on Linux only, where it can be locked in, not on {sys.platform}")
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="redraft-code-") as folder:
        home = Path(folder)
        (home / "empty").mkdir()
        # what is no text for a file is no program either
        (home / "program.py").write_bytes(f"{secret}\n{program}".encode("utf-8", "replace"))
        said, in_time = _start(home, limits)
        output, error = (_read(home / name, limits.output) for name in ("output", "error"))
    before, locked, rest = said.partition(_LOCKED)
    if in_time and not locked:
        reason = (before.decode("utf-8", "replace").strip() or error.strip() or "it did not start").splitlines()[-1]
        raise ValueError(f"code cannot be locked in on this machine, and is not run ({reason}); use a newer Linux")
    status: Status = "passed" if rest == secret.encode() else "failed" if in_time else "timed out"
    return Outcome(status, output, error)


def _start(home: Path, limits: Limits) -> tuple[bytes, bool]:
    """What the sandbox said of itself, and whether it ended in time; whatever it was, it is over then."""
    inside = [sys.executable, "-I", "-S", "-B", str(SANDBOX), str(home / "program.py")]
    reading, writing = os.pipe()
    with open(reading, "rb") as status, (home / "output").open("wb") as output, (home / "error").open("wb") as error:
        process = subprocess.Popen(
            [*inside, *map(str, (limits.memory, math.ceil(limits.seconds), limits.output, writing))],
            cwd=home / "empty",
            env={},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=error,
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        in_time = True
        try:
            process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            in_time = False
        finally:
            if process.poll() is None:  # one that ended left nobody, and its number may be another's
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return status.read(4096), in_time


def _read(path: Path, most: int) -> str:
    with path.open("rb") as file:
        return file.read(most).decode("utf-8", "replace")


# ------------------------------------------------------------------------------------------------------------ figures


def parses(code: str) -> bool:
    """Whether it is a program of this Python.

    >>> parses("x = 1"), parses("x = ")
    (True, False)
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bad escape is no syntax error yet
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def parsing(programs: Iterable[str]) -> dict[str, Any]:
    """``programs``, and the share that ``parses`` with its Wilson interval. An empty program parses, and runs too."""
    listed = list(programs)
    return {"programs": len(listed), **_share("parses", sum(map(parses, listed)), len(listed))}


def running(
    programs: Sequence[str],
    tests: Sequence[str] | None = None,
    *,
    allow_execution: bool = False,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """``parsing``, and the share that ``runs`` to its end; with ``tests``, one for each, the share that ``passes`` it.

    One after the other, each within its limits. Errors: those of ``run``, and ``ValueError`` for tests that are not as
    many.
    """
    if tests is not None and len(tests) != len(programs):
        raise ValueError(f"{len(tests)} tests for {len(programs)} programs: pass one for each")
    how: dict[str, Any] = {"allow_execution": allow_execution, "limits": limits}
    outcomes = [run(code, test, **how) for code, test in zip(programs, tests or [""] * len(programs), strict=True)]
    passed = sum(one.status == "passed" for one in outcomes)
    late = sum(one.status == "timed out" for one in outcomes)
    name = "runs" if tests is None else "passes"
    return {**parsing(programs), **_share(name, passed, len(outcomes)), "timed_out": late}


def _share(name: str, hits: int, n: int) -> dict[str, float]:
    low, high = wilson(hits, n)
    return {name: hits / n, f"{name}_low": low, f"{name}_high": high}


def humaneval(prompt: str, completion: str, test: str, entry_point: str) -> tuple[str, str]:
    """The program and the test of a task laid out as HumanEval's: ``test`` defines ``check``, of one function."""
    if not entry_point.isidentifier():
        raise ValueError(f"entry_point={entry_point!r} is no name of a function")
    return prompt + completion, f"{test}\n\ncheck({entry_point})"


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): how likely one of k programs passes, from c of n that did (Chen et al. 2107.03374).

    Unbiased, unlike 1 - (1 - c / n)^k. It is of one task: average over tasks. Errors: ``ValueError`` unless
    0 <= c <= n and 1 <= k <= n.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n={n}, c={c}, k={k}: of n programs c passed, and k of them are drawn, at most all")
    return 1 - math.comb(n - c, k) / math.comb(n, k)
