"""Lists of requests, as their authors lay them out, from a path or the Hub; what is read is bounded, none shipped."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from redraft.data.sources import records
from redraft.models.hub import parted

MAX_BYTES = 16_000_000
MAX_ROWS = 10_000
MAX_CHARACTERS = 20_000
"""Most of a file, of its rows, and of one request."""
BENIGN = "benign:"
"""Put before the id of a request that is only benign by what the caller says, for lists that share their ids."""

LAYOUTS: dict[str, tuple[str, ...]] = {
    "HarmBench": ("BehaviorID", "Behavior"),
    "JailbreakBench": ("Behavior", "Goal"),
    "plain": ("id", "prompt", "harmful"),
}
"""The columns that a layout must have: the id, the request, others. HarmBench's ContextString is put before it."""
CATEGORIES = ("SemanticCategory", "Category", "category")
_HUB = re.compile(r"([\w.-]+/[\w.-]+(?:@[\w./-]+)?):([\w./ -]+\.(?:csv|jsonl))")
_BOOLS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Behaviour:
    """One request: what is asked, and whether an answer to it would do harm. A benign one measures over-refusal."""

    id: str
    prompt: str
    harmful: bool
    category: str = ""


def read(source: str | Path, benign: bool = False) -> list[Behaviour]:
    """The requests of a ``.csv`` or ``.jsonl`` file, or of one in a data set of the Hub, ``owner/name:path.csv``.

    Layouts (``LAYOUTS``): HarmBench's and JailbreakBench's CSV, whose rows are harmful unless ``benign`` says that they
    are not, and {id, prompt, harmful}, which says so itself.

    Errors: ``ValueError`` for a file that is of no layout, too large, damaged or empty, ids that stand twice, and for
    ``benign`` of a list that calls a row harmful.
    """
    path = located(str(source))
    every = _csv(path) if path.suffix == ".csv" else _jsonl(path)
    rows = list(islice(every, MAX_ROWS + 1))
    if len(rows) > MAX_ROWS:
        raise ValueError(f"{source}: more than {MAX_ROWS:,} rows; split it")
    if not rows:
        raise ValueError(f"{source}: empty, there is no request in it; choose a file with some")
    layout = _layout(str(source), rows[0])
    found = [_behaviour(layout, row, f"{source}, row {number}", benign) for number, row in enumerate(rows, 1)]
    unique(found, str(source))
    return found


def unique(behaviours: Sequence[Behaviour], where: str) -> None:
    """Errors: ``ValueError`` for an id that two requests have."""
    seen = set[str]()
    for one in behaviours:
        if one.id in seen:
            raise ValueError(f"{where}: the id {one.id!r} stands twice; give each request its own")
        seen.add(one.id)


def spread(behaviours: Sequence[Behaviour], limit: int | None) -> list[Behaviour]:
    """So many of them, evenly spread, for lists are sorted by category. Errors: ``ValueError`` for a limit below 1."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: pass how many requests of a list to take, at least 1")
    size = len(behaviours)
    number = size if limit is None else min(limit, size)
    return [behaviours[i * size // number] for i in range(number)]


def located(source: str) -> Path:
    """The file of a path, or of ``owner/name[@revision]:file`` on the Hub, whose data file alone is fetched."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"{source}: unknown file type {path.suffix!r}; use .csv or .jsonl")
        return path
    if (match := _HUB.fullmatch(source)) is None:
        raise ValueError(f"{source}: no such file; pass a .csv or .jsonl file, or owner/name:file.csv of the Hub")
    repository, revision = parted(match[1])
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, match[2], repo_type="dataset", revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{source}: no such file, and not to be had from the Hugging Face Hub ({reason})") from None


def text_of(path: Path) -> str:
    """A file's text, ``MAX_BYTES`` at most. Errors: ``ValueError`` for a larger one, and what is not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    _small(path, len(data))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; convert it") from None


def texts_by_id(path: Path) -> dict[str, str]:
    """A JSON object of texts, each under a request's id. Errors: ``ValueError`` for anything else."""
    try:
        found = json.loads(text_of(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); write an object of texts, each under a request's id") from None
    if not isinstance(found, dict) or not found or not all(isinstance(one, str) for one in found.values()):
        raise ValueError(f"{path}: write one JSON object of texts, each under a request's id")
    for name, text in found.items():
        _bounded(text, f"{path}, {name!r}")
    return found


def _csv(path: Path) -> Iterator[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(text_of(path), newline=""))
    try:
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise ValueError(f"{path}, row {number}: its cells are not as many as the columns; quote commas")
            yield row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: damaged CSV ({error}); write it again") from None


def _jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    _small(path, path.stat().st_size)
    return (row for _, row in records(path, "{'id': ..., 'prompt': ..., 'harmful': ...}"))


def _small(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES:,} bytes; split it")


def _layout(where: str, row: Mapping[str, Any]) -> str:
    for name, wanted in LAYOUTS.items():
        if row.keys() >= set(wanted):
            return name
    told = "; ".join(f"{', '.join(wanted)} ({name})" for name, wanted in LAYOUTS.items())
    raise ValueError(f"{where}: columns {', '.join(map(str, row)) or 'none'}; wanted are {told}")


def _behaviour(layout: str, row: Mapping[str, Any], where: str, benign: bool) -> Behaviour:
    own, prompt = (_text(row, name, where) for name in LAYOUTS[layout][:2])
    if layout == "HarmBench" and row.get("ContextString"):
        prompt = _bounded(f"{_text(row, 'ContextString', where)}\n\n{prompt}", where)
    harmful = not benign
    if layout == "plain":
        harmful = _bool(row.get("harmful"), where)
        if benign and harmful:
            raise ValueError(f"{where}: it is harmful by its own column, and the list was passed as benign")
    elif benign:
        own = BENIGN + own
    category = next((str(row[name]) for name in CATEGORIES if row.get(name)), "")
    return Behaviour(own, prompt, harmful, category[:200])


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: column {name!r} holds no text; write one")
    return _bounded(value, where)


def _bounded(text: str, where: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{where}: a text of {len(text):,} characters, {MAX_CHARACTERS:,} at most; shorten it")
    return text


def _bool(value: object, where: str) -> bool:
    found = value if isinstance(value, bool) else _BOOLS.get(str(value).strip().lower())
    if found is None:
        raise ValueError(f"{where}: harmful is {value!r:.60}; write true or false")
    return found
