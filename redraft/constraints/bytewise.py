"""Regular expressions as automata over bytes, compiled by outlines-core in a process of their own.

Twenty characters can ask for 2^20 states (``[ab]*a[ab]{19}``), and the library has no limit: whoever compiles a
stranger's pattern must be able to stop.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PATTERN = 20_000
"""Characters of a pattern, of a schema, or of all choices together."""
MAX_STATES = 4_000
"""States of an automaton over bytes, as compiled."""
SECONDS, MEMORY = 10, 2 << 30

_LIMIT = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
except (ImportError, ValueError, OSError):
    pass
said = json.load(sys.stdin)
"""
_SCHEMA = """
from outlines_core import json_schema
try:
    pattern = json_schema.build_regex_from_schema(said["schema"], said["whitespace"])
    answer = {"pattern": pattern} if len(pattern) <= said["most"] else {"length": len(pattern)}
except ValueError as error:
    answer = {"error": str(error)}
json.dump(answer, sys.stdout)
"""
_COMPILE = """
from outlines_core import Index, Vocabulary
alphabet = Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})
try:
    Index(chr(0) + said["pattern"], alphabet)  # a)(b is no pattern, whatever is put around it
    index = Index(chr(0) + "(?:" + said["pattern"] + ")" + chr(92) + "z", alphabet)
    found, final = index.get_transitions(), list(index.get_final_states())
    edges = [[one, byte, other] for one, row in found.items() for byte, other in row.items() if byte < 256]
    answer = {"states": len(found)}
    if len(found) <= said["most"]:
        answer |= {"start": index.get_initial_state(), "final": final, "edges": edges}
except ValueError as error:
    answer = {"error": str(error)}
json.dump(answer, sys.stdout)
"""


MISSING = "regular expressions need outlines-core: pip install 'redraft[guide]'"


@dataclass(frozen=True)
class Bytes:
    """``next`` (Q, 256) int: the state that a byte leads to, -1 for none; 0 is the first; ``accept`` (Q,) bool."""

    next: NDArray[np.int32]
    accept: NDArray[np.bool_]


def of_texts(texts: Sequence[str]) -> Bytes:
    """Exactly these texts, in the fewest states.

    The states of their tree are merged from its leaves, later ones first: no state comes before the one it is read
    from, so that what a state leads to is merged before it. Linear in the texts' bytes. Errors: ``ValueError`` for
    more than ``MAX_STATES`` states.
    """
    tree, accept = [dict[int, int]()], [False]
    for text in texts:
        state = 0
        for byte in text.encode():
            if byte not in tree[state]:
                tree[state][byte] = len(tree)
                tree.append({})
                accept.append(False)
            state = tree[state][byte]
        accept[state] = True
    number, merged = dict[tuple[bool, tuple[tuple[int, int], ...]], int](), [0] * len(tree)
    for state in reversed(range(len(tree))):
        after = tuple(sorted((byte, merged[other]) for byte, other in tree[state].items()))
        merged[state] = number.setdefault((accept[state], after), len(number))
    if len(number) > MAX_STATES:
        raise ValueError(f"texts of {len(number)} states: at most {MAX_STATES}; pass shorter or fewer ones")
    last = len(number) - 1  # the first state is merged last, and is numbered 0
    table = np.full((len(number), 256), -1, np.int32)
    for (_, after), state in number.items():
        for byte, other in after:
            table[last - state, byte] = last - other
    return Bytes(table, np.array([end for end, _ in number])[::-1].copy())


@lru_cache(maxsize=64)
def of_pattern(pattern: str) -> Bytes:
    """All texts that match a pattern as a whole, in the fewest states.

    Errors: ``ValueError`` naming the pattern: it is too long, cannot be compiled or not within ``MAX_STATES``, or
    nothing matches it; or the extra that is not installed.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a pattern of {len(pattern)} characters ({_short(pattern)}): at most {MAX_PATTERN}")
    if _possessive(pattern):
        raise ValueError(
            f"the pattern {_short(pattern)} cannot be compiled: possessive repeats (a++) and atomic groups would match "
            "what they do not elsewhere; write a+ or (?:a+)+"
        )
    # the library prefers the first alternative (of a|ab, only a) unless the end must be met, and wants no condition on
    # the start: a zero that is read first, and \z behind, make it match the whole
    said = _compiled(pattern)
    if "error" in said:
        empty = "no transitions" in said["error"]
        reason = "nothing matches it" if empty else said["error"].strip().splitlines()[-1]
        raise ValueError(
            f"the pattern {_short(pattern)} cannot be compiled ({reason}): it is matched as a whole, without ^, "
            "\\b, look-around and references"
        )
    if "edges" not in said:
        raise ValueError(f"the pattern {_short(pattern)} needs {said['states']} states: at most {MAX_STATES}")
    return _table(said["start"], said["final"], said["edges"])


def of_schema(schema: str, whitespace: str | None) -> str:
    """The pattern that the library makes of a JSON Schema. Errors: ``ValueError`` for one it refuses or too long."""
    said = _apart(_SCHEMA, {"schema": schema, "whitespace": whitespace, "most": MAX_PATTERN})
    if said is None or "length" in said:
        size = "more than can be made" if said is None else said["length"]
        raise ValueError(f"its pattern has {size} characters: at most {MAX_PATTERN}; use fewer optional properties")
    if "error" in said:
        raise ValueError(said["error"].strip())
    return said["pattern"]


def _compiled(pattern: str) -> dict[str, Any]:
    said = _apart(_COMPILE, {"pattern": pattern, "most": MAX_STATES})
    return said or {"states": f"more than {SECONDS} seconds or {MEMORY >> 30} GiB to count its"}


def _apart(program: str, told: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a program answers in a process of its own, None if it needs too much."""
    if find_spec("outlines_core") is None:
        raise ValueError(MISSING)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"memory = {MEMORY}\n{_LIMIT}{program}"],
            input=json.dumps(told),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return None
    return json.loads(done.stdout)


def _table(start: int, final: list[int], edges: list[list[int]]) -> Bytes:
    """The automaton that the library made, without its first byte."""
    number: dict[int, int] = {}
    for source, byte, target in edges:
        if source == start and byte == 0:
            number[target] = 0
    for source, _, target in edges:
        for state in (source, target):
            if state != start:
                number.setdefault(state, len(number))
    table = np.full((len(number), 256), -1, np.int32)
    for source, byte, target in edges:
        if source != start:
            table[number[source], byte] = number[target]
    accept = np.zeros(len(number), np.bool_)
    accept[[number[state] for state in final if state in number]] = True
    return fewest(Bytes(table, accept))


def fewest(automaton: Bytes) -> Bytes:
    """The same language in the fewest states: Moore's refinement, states told apart by their class and their bytes'."""
    table, classes = automaton.next, automaton.accept.astype(np.int64)
    weights = np.random.default_rng(0).integers(1, 1 << 62, 257, np.int64)
    count = 0
    while True:
        seen = np.where(table < 0, -1, classes[table]) + 1
        with np.errstate(over="ignore"):  # a hash of each row, modulo 2^64; two rows of one hash are looked for below
            hashed = seen @ weights[:256] + classes * weights[256]
        _, classes = np.unique(hashed, return_inverse=True)
        if int(classes.max()) + 1 == count:
            break
        count = int(classes.max()) + 1
    order = np.unique(classes, return_index=True)[1]
    after = np.where(table < 0, -1, classes[table])
    assert bool((after == after[order][classes]).all())
    assert bool((automaton.accept == automaton.accept[order][classes]).all())
    swap = np.arange(count)  # the first state stays the first
    swap[[0, classes[0]]] = swap[[classes[0], 0]]
    made = after[order][swap]
    return Bytes(np.where(made < 0, -1, swap[made]).astype(np.int32), automaton.accept[order][swap])


_PART = re.compile(r"\\[pPxuU]\{[^}]*\}|\\.|\[\^?\]?|\]|\(\?>|(?:[*+?]|\{\d*,?\d*\})\+|.", re.DOTALL)


def _possessive(pattern: str) -> bool:
    """Whether it has a possessive repeat, which the library reads as a repeat of a repeat, or an atomic group."""
    depth = 0  # of classes, which nest
    for part in _PART.findall(pattern):
        if part[0] == "[":
            depth += 1
        elif part == "]":
            depth = max(0, depth - 1)
        elif not depth and len(part) > 1 and part[0] != "\\":
            return True
    return False


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 200 else pattern[:200] + "...")
