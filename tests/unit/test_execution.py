"""Foreign code: what it may not do, what is said of it, and pass@k by counting."""

import itertools
import os
import sys
import tempfile
from pathlib import Path

import pytest

from redraft.evaluation import execution
from redraft.evaluation.execution import Limits, humaneval, parses, parsing, pass_at_k, running
from redraft.evaluation.intervals import wilson


def lockable():
    """Whether this machine has the locks: an older kernel, or a container that forbids them, runs nothing."""
    try:
        execution.run("pass", allow_execution=True)
    except ValueError:
        return False
    return True


linux = pytest.mark.skipif(not lockable(), reason="code cannot be locked in on this machine")


def run(code, test="", **limits):
    return execution.run(code, test, allow_execution=True, limits=Limits(**limits))


def test_nothing_runs_unasked(monkeypatch):
    monkeypatch.setattr(execution, "_start", lambda *_: pytest.fail("it was run"))
    with pytest.raises(ValueError, match="allow_execution=True"):
        execution.run("print(1)")
    with pytest.raises(ValueError, match="allow_execution=True"):
        running(["print(1)"])


@linux
def test_what_passes_and_what_fails():
    done = run("print('ä', 1 + 1)")
    assert (done.status, done.output, done.error) == ("passed", "ä 2\n", "")
    done = run("def f(x):\n    return x", "assert f(1) == 2, 'wrong'")
    assert done.status == "failed"
    assert done.error.endswith("AssertionError: wrong\n")
    assert run("def f(x):\n    return x", "assert f(2) == 2").status == "passed"
    assert run("x = ").status == "failed"
    assert run("x = '\ud800'").status == "passed"
    assert run("if __name__ == '__main__':\n    raise SystemError").status == "failed"


@linux
@pytest.mark.parametrize("way", ["import sys\nsys.exit(0)", "import os\nos._exit(0)", "exit()", "quit(0)"])
def test_leaving_before_the_end_is_not_passing(way):
    """The test behind it was never reached, whatever number the process left with."""
    assert run(way, "assert False").status == "failed"


@linux
def test_the_standard_library_is_there():
    names = "collections, datetime, decimal, functools, hashlib, heapq, itertools, json, math, random, re, typing"
    assert run(f"import {names}\nassert json.loads(json.dumps([random.random() < 1])) == [True]").status == "passed"
    assert "ModuleNotFoundError" in run("import torch").error


@linux
def test_a_loop_is_ended():
    assert run("while True: pass", seconds=0.4).status == "timed out"
    assert run("import time\ntime.sleep(60)", seconds=0.4).status == "timed out"
    stubborn = (
        "import signal\nfor n in range(1, 20):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass"
    )
    assert run(f"{stubborn}\nwhile True: pass", seconds=0.4).status == "timed out"


@linux
def test_memory_is_bounded():
    """What one limit refuses the next grants."""
    hog = "x = bytearray(100 << 20)"
    assert run(hog, memory=96 << 20).error.endswith("MemoryError\n")
    assert run(hog, memory=256 << 20).status == "passed"


@linux
def test_output_is_bounded():
    done = run("while True: print('x' * 99)", output=1000)
    assert (done.status, len(done.output)) == ("failed", 1000)
    done = run("import sys\nwhile True: sys.stderr.write('x' * 99)", output=1000)
    assert (done.status, len(done.error)) == ("failed", 1000)
    assert run("print('x' * 2000)", output=4000).status == "passed"


LOCKS = {
    "fork": "import os\nwhile True: os.fork()",
    "a thread": "import threading\nthreading.Thread(target=print).start()",
    "a program": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "a socket": "import socket\nsocket.socket()",
    "a local socket": "import socket\nsocket.socketpair()",
    "a signal": "import os\nos.kill(os.getppid(), 0)",
    "a signal to the group": "import os\nos.killpg(0, 9)",
    "a signal by a pipe": "import fcntl, os\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
    "a signal of its choice": "import fcntl, os\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETSIG, 9)",
    "a signal by ioctl": "import fcntl, os, struct\nfcntl.ioctl(os.pipe()[0], 0x8901, struct.pack('i', os.getppid()))",
    "a priority": "import os\nos.setpriority(os.PRIO_PROCESS, 0, 1)",
    "a processor": "import os\nos.sched_setaffinity(0, os.sched_getaffinity(0))",
    "a file read": "print(open({secret!r}).read())",
    "a folder read": "import os\nprint(os.listdir('/'))",
    "a file written": "open('left', 'w')",
    "a file written elsewhere": "open({folder!r} + '/left', 'w')",
    "a folder made": "import os\nos.mkdir({folder!r} + '/left')",
    "a file removed": "import os\nos.remove({secret!r})",
    "a file emptied": "import os\nos.truncate({secret!r}, 0)",
    "a file renamed": "import os\nos.rename({secret!r}, {secret!r} + '2')",
    "a file's mode": "import os\nos.chmod({secret!r}, 0)",
    "a file's times": "import os\nos.utime({secret!r})",
    "a file's attributes": "import os\nos.setxattr({secret!r}, 'user.a', b'1')",
    "a link": "import os\nos.symlink('a', {folder!r} + '/left')",
    "the parent's environment": "import os\nprint(open(f'/proc/{{os.getppid()}}/environ').read())",
    "another user": "import os\nos.setuid(12345)",
    "more memory": "import resource as r\nr.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))",
    "the parent's limits": "import os, resource as r\nr.prlimit(os.getppid(), r.RLIMIT_NOFILE, (64, 64))",
    "input": "input()",
}


@linux
@pytest.mark.parametrize("name", LOCKS)
def test_what_it_may_not_do(name, tmp_path, monkeypatch):
    """Each of these is refused at once: it fails, and does not run into its time."""
    monkeypatch.setenv("REDRAFT_SECRET", "xyzzy")
    secret = tmp_path / "secret.txt"
    secret.write_text("xyzzy")
    before = secret.stat().st_mtime_ns
    done = run(LOCKS[name].format(secret=str(secret), folder=str(tmp_path)))
    assert done.status == "failed"
    reasons = ("PermissionError", "can't start new thread", "EOFError", "not allowed to raise", "Errno 1]")
    assert any(reason in done.error for reason in reasons), done.error
    assert "xyzzy" not in done.output + done.error
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]
    assert (secret.read_text(), secret.stat().st_mtime_ns) == ("xyzzy", before)
    assert os.getppid() > 0


@linux
def test_its_environment_is_empty_and_so_is_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("REDRAFT_SECRET", "xyzzy")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = run("import os, sys\nprint(sorted({*os.environ} - {'LC_CTYPE'}), sys.argv, sys.flags.isolated)")
    assert done.output == "[] ['program.py'] 1\n"
    assert run("while True: pass", seconds=0.3).status == "timed out"
    assert list(tmp_path.iterdir()) == []


@linux
def test_locks_that_do_not_hold_run_nothing(monkeypatch, tmp_path):
    """A sandbox with a lock taken out notices, and refuses."""
    source = execution.SANDBOX.read_text()
    for call in ("_shut_files()", "_shut_calls()"):
        broken = tmp_path / "sandbox.py"
        assert source.count(f"        {call}\n") == 1
        broken.write_text(source.replace(f"        {call}\n", ""))
        monkeypatch.setattr(execution, "SANDBOX", broken)
        with pytest.raises(ValueError, match=r"cannot be locked in.*does not hold"):
            run("print(1)")


@linux
def test_nothing_is_emptied_where_landlock_is_too_old_to_refuse_it(monkeypatch, tmp_path):
    """Its second version knows 14 rights, of which emptying is none; and here the file may even be read."""
    source, kept = execution.SANDBOX.read_text(), tmp_path / "kept.txt"
    kept.write_text("xyzzy")
    old = tmp_path / "sandbox.py"
    assert source.count("_RIGHTS.get(version, 16)") == source.count("READABLE = (") == 1
    old.write_text(
        source.replace("_RIGHTS.get(version, 16)", "14").replace("READABLE = (", f"READABLE = ({str(tmp_path)!r}, ")
    )
    monkeypatch.setattr(execution, "SANDBOX", old)
    assert run(f"print(open({str(kept)!r}).read())").output == "xyzzy\n"
    for way in ("os.truncate({!r}, 0)", "os.open({!r}, os.O_RDONLY | os.O_TRUNC)"):
        done = run("import os\n" + way.format(str(kept)))
        assert (done.status, kept.read_text()) == ("failed", "xyzzy"), way
        assert "PermissionError" in done.error
    assert run("import os\nopen(os.devnull, 'w').write('x')").status == "passed"


def test_elsewhere_nothing_is_run(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match=r"Linux only.*darwin"):
        run("print(1)")


def test_limits_are_above_nothing():
    for name in ("seconds", "memory", "output"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            Limits(**{name: 0})
    with pytest.raises(ValueError, match="characters"):
        run("#" * (execution.MAX_CODE + 1))


# ------------------------------------------------------------------------------------------------------------ figures


def test_parses():
    told = {"": True, "x = 1": True, "'\\d'": True, "def f(:": False, "x = \0": False, "(" * 500: False}
    assert {code: parses(code) for code in told} == told


def test_the_share_that_parses_has_its_interval():
    found = parsing(["x = 1", "x =", "y"])
    assert found == {"programs": 3, "parses": 2 / 3, "parses_low": wilson(2, 3)[0], "parses_high": wilson(2, 3)[1]}


@linux
def test_the_share_that_runs_and_that_passes():
    programs = ["x = 1", "x =", "1 / 0", "while True: pass"]
    found = running(programs, allow_execution=True, limits=Limits(seconds=0.5))
    assert (found["parses"], found["runs"], found["timed_out"]) == (0.75, 0.25, 1)
    assert (found["runs_low"], found["runs_high"]) == wilson(1, 4)
    tested = running(["x = 1", "x = 2"], ["assert x == 2"] * 2, allow_execution=True)
    assert tested["passes"] == 0.5
    assert "runs" not in tested
    with pytest.raises(ValueError, match="1 tests for 2 programs"):
        running(["x", "y"], ["z"], allow_execution=True)


@linux
def test_a_task_laid_out_as_humanevals():
    prompt, test = "def twice(x):\n", "def check(candidate):\n    assert candidate(2) == 4"
    for body, status in (("    return 2 * x\n", "passed"), ("    return x\n", "failed")):
        assert run(*humaneval(prompt, body, test, "twice")).status == status
    with pytest.raises(ValueError, match="no name"):
        humaneval(prompt, "", test, "twice)")


def test_pass_at_k_is_the_share_of_draws_with_one_that_passes():
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations(range(n), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(min(one) < c for one in draws) / len(draws), abs=1e-15)


@pytest.mark.parametrize("numbers", [(0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses(numbers):
    with pytest.raises(ValueError, match="c passed"):
        pass_at_k(*numbers)


def test_the_program_inside_needs_no_more_than_python():
    lines = [line for line in Path(execution.SANDBOX).read_text().splitlines() if line.startswith(("import", "from"))]
    assert {line.split()[1] for line in lines} <= sys.stdlib_module_names
