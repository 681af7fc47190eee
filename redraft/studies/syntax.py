"""Does a line of Python parse? A measure of samples of a small model, whose texts are too short to be programs."""

import ast
import warnings
from collections.abc import Iterable
from itertools import islice

from redraft.data.corpora import python_source

PIECE, LIMIT, EVERY = 4_000, 600_000, 3
"""Characters of a module that are taken, of all, and each how manieth module: a corpus that trains in minutes."""
_OPENINGS = {
    "elif": "if x:\n pass\n",
    "else": "if x:\n pass\n",
    "except": "try:\n pass\n",
    "finally": "try:\n pass\n",
    "case": "match x:\n ",
}
"""What must stand before a line that begins so."""


def corpus() -> str:
    """Beginnings of modules of the standard library, one after the other."""
    taken, size = list[str](), 0
    for document in islice(python_source(), 0, None, EVERY):
        taken.append(document[:PIECE])
        size += len(taken[-1])
        if size >= LIMIT:
            break
    return "\n".join(taken)


def parses(line: str) -> bool:
    """Whether a line could stand in a program, alone: a statement, or the head of a block.

    Lines of a text in quotes or of a statement over several lines do not: right programs have such lines too.

    >>> parses("    return x + 1"), parses("else:"), parses("return x +")
    (True, True, False)
    """
    code = line.strip()
    if not code or code.startswith("#"):
        return True
    word = code.split(":")[0].split("(")[0].split(" ")[0]
    if code.startswith("@"):
        code += "\ndef f(): pass"
    elif code.endswith(":"):
        code += "\n  pass" if word == "case" else " pass"
    code = _OPENINGS.get(word, "") + code
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bad escape is no syntax error yet
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def lines(text: str) -> list[str]:
    """The complete lines of a text that was cut anywhere: without its first and last; blank ones are none."""
    return [line for line in text.split("\n")[1:-1] if line.strip()]


def parsing(texts: Iterable[str]) -> tuple[int, int]:
    """How many complete lines parse, and how many there are."""
    found = [parses(line) for text in texts for line in lines(text)]
    return sum(found), len(found)
