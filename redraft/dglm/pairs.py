"""Text as pairs of a prefix and its continuation, with a label where there is one."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from redraft.data.sources import read_documents
from redraft.dglm.config import PairsConfig
from redraft.errors import unknown

_WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True)
class Pair:
    """``prefix`` may be empty. Together they are the text, the blank between them too."""

    prefix: str
    continuation: str
    label: str | None = None


def read_pairs(source: str | Path | Sequence[Pair], config: PairsConfig) -> list[Pair]:
    """The pairs of ``source``: those given, a .jsonl file's, or the pieces of any source of ``redraft.data``.

    A record of a .jsonl file with ``prompt`` and ``completion`` is a pair; one with ``config.text_field`` is cut into
    pieces, as documents are. ``config.label_field`` labels the pairs of a record.

    Errors: ``ValueError`` for a file that cannot be read, a record without its fields, or nothing to learn from.
    """
    if isinstance(source, str | Path):
        if Path(source).suffix == ".jsonl":
            pairs = _records(Path(source), config)
        elif config.label_field is not None:
            raise ValueError(f"data.label_field={config.label_field!r}: {source} has no records; pass a .jsonl file")
        else:
            documents = read_documents(source, config.text_field, config.max_documents)
            pairs = (pair for text in documents for pair in cut(text, config))
        found = list(pairs)
    else:
        found = list(source)
    if not found:
        raise ValueError(f"{source if isinstance(source, str | Path) else 'data'}: no text to learn from")
    for number, pair in enumerate(found):
        if not pair.continuation.strip():
            raise ValueError(f"pair {number}: its continuation is empty; leave it out")
    return found


def cut(text: str, config: PairsConfig, label: str | None = None) -> Iterator[Pair]:
    """Pieces of ``config.words`` words, of which the first share is the prefix; the last piece may be shorter.

    A piece begins with a word, as a prompt does, and keeps the blanks within.

    >>> [(one.prefix, one.continuation) for one in cut("a b c d e", PairsConfig(words=4))]
    [('a b', ' c d'), ('', 'e')]
    """
    words = _WORD.findall(text)
    for start in range(0, len(words), config.words):
        piece = [words[start].lstrip(), *words[start + 1 : start + config.words]]
        at = int(config.prefix_share * len(piece))
        yield Pair("".join(piece[:at]), "".join(piece[at:]), label)


def _records(path: Path, config: PairsConfig) -> Iterator[Pair]:
    with path.open(encoding="utf-8") as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        for number, line in islice(lines, config.max_documents):
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: not JSON ({error}); write one JSON object a line") from None
            if not isinstance(record, dict):
                raise ValueError(f"{where}: no JSON object; write {{{config.text_field!r}: ...}}")
            label = None if config.label_field is None else str(_field(record, config.label_field, where))
            if "completion" in record:
                prompt, completion = (_text(record, name, where) for name in ("prompt", "completion"))
                yield Pair(prompt, completion, label)
            else:
                yield from cut(_text(record, config.text_field, where), config, label)


def _text(record: dict[str, Any], name: str, where: str) -> str:
    if not isinstance(value := _field(record, name, where), str):
        raise ValueError(f"{where}: field {name!r} is {value!r:.60}, not a string")
    return value


def _field(record: dict[str, Any], name: str, where: str) -> Any:
    if name not in record:
        raise ValueError(f"{where}: {unknown('field', name, record)}")
    return record[name]
