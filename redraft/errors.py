"""The one way an unknown name is refused: with the value, the nearest valid one, and the whole choice."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, name: object, choices: Iterable[str]) -> ValueError:
    """The error for an unknown ``name`` of some ``kind``; raise what it returns.

    >>> unknown("schedule", "linaer", ["linear", "cosine"]).args[0]
    "unknown schedule 'linaer'; did you mean 'linear'? Known: cosine, linear"
    """
    known = sorted(choices)
    near = get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ValueError(f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}")
