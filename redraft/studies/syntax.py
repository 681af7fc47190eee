"""Does a line of Python parse? A measure of samples of a small model, whose texts are too short to be programs."""

import re
from collections.abc import Iterable
from itertools import islice

from redraft.data.corpora import python_source
from redraft.evaluation import execution

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
_ENDINGS = {"try": "\nexcept Exception: pass", "match": "\n case _: pass", "case": "\n  pass"}
"""What must follow the head of a block that begins so; others have a body."""


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
    word = re.match(r"\w*", code)
    assert word is not None
    before, after = _OPENINGS.get(word[0], ""), _ENDINGS.get(word[0], "\n  pass")
    decorated = f"{code}\ndef f(): pass" if code.startswith("@") else code
    # a statement, the head of a block with a body of its own or not, whatever comment ends the line
    forms = [decorated, before + code, before + code + "\n  pass", before + code + after]
    forms += [f"{before}{code}\n pass{after}"] if word[0] == "try" else []
    return any(map(execution.parses, forms))


def lines(text: str) -> list[str]:
    """The complete lines of a text that was cut anywhere: without its first and last; blank ones are none."""
    return [line for line in text.split("\n")[1:-1] if line.strip()]


def parsing(texts: Iterable[str]) -> tuple[int, int]:
    """How many complete lines parse, and how many there are."""
    found = [parses(line) for text in texts for line in lines(text)]
    return sum(found), len(found)
