"""A record as JSON and back: version 1, whole or refused. Who reads it needs no model.

    {"format": "redraft trace", "version": 1, "title", "mask", "gap", "joint", "left_out", "cut", "approximate",
     "texts": [[id, text], ...],
     "cost": null or {"nfe", "positions", "cached", "written", "tokens_per_forward", "seconds": {phase: s}},
     "rows": [{"number", "before": null or ids, "seed", "length", "calls",
               "frames": [{"cause", "index", "steps", "t", "s", "nfe", "ids",
                           "marks": a letter of GMWRTK for each position (given, mask, written, ..., as in ``MARKS``),
                           "asked": positions, "confidence" and "entropy": of those, null where a mask stands}]}]}

Confidences and entropies (nats) have 4 significant digits, as they were recorded.
"""

import json
import math
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar

from redraft.files import write_text
from redraft.trace.record import CAUSES, LONGEST, MARKS, Frame, Known, Mark, Record, Row

FORMAT, VERSION = "redraft trace", 1
BYTES, POSITIONS = 1 << 28, 1 << 23
"""Most that a file may have to be read: its size, and rows times frames times length."""
_LARGEST = (1 << 64) - 1
_LETTER: dict[Mark, str] = {mark: mark[0].upper() for mark in MARKS}
_MARK: dict[str, Mark] = {letter: mark for mark, letter in _LETTER.items()}
_COUNTS = ("nfe", "positions", "cached", "written")

T = TypeVar("T")


def save(record: Record, path: Path) -> None:
    """Write it beside, then rename."""
    write_text(path, json.dumps(to_dict(record), separators=(",", ":"), allow_nan=False) + "\n")


def to_dict(record: Record) -> dict[str, Any]:
    """What ``from_dict`` reads."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": record.title,
        "mask": record.mask,
        "gap": record.gap,
        "joint": record.joint,
        "left_out": record.left_out,
        "cut": record.cut,
        "approximate": record.approximate,
        "texts": [[token, text] for token, text in record.texts.items()],
        "cost": None if record.cost is None else dict(record.cost),
        "rows": [_row(row) for row in record.rows.values()],
    }


def _row(row: Row) -> dict[str, Any]:
    before = None if row.before is None else list(row.before)
    own = {"number": row.number, "before": before, "seed": row.seed, "length": row.length, "calls": row.calls}
    return {**own, "frames": [_frame(frame) for frame in row.frames]}


def _frame(frame: Frame) -> dict[str, Any]:
    asked = [i for i, doubt in enumerate(frame.entropy) if doubt is not None]
    return {
        "cause": frame.cause,
        "index": frame.index,
        "steps": frame.steps,
        "t": frame.t,
        "s": frame.s,
        "nfe": frame.nfe,
        "ids": list(frame.ids),
        "marks": "".join(_LETTER[mark] for mark in frame.marks),
        "asked": asked,
        "confidence": [frame.confidence[i] for i in asked],
        "entropy": [frame.entropy[i] for i in asked],
    }


def load(path: str | Path) -> Record:
    """The record in a file. Errors: ``ValueError`` naming what is wrong in it, or that it is too large."""
    path = Path(path)
    if path.stat().st_size > BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than the {BYTES} a trace may have")
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_object, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no trace, it is not JSON ({error or type(error).__name__})") from None
    try:
        return from_dict(value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice in an object of {sorted(found)}")
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")


def from_dict(value: Any) -> Record:
    """A record from what JSON said. Errors: ``ValueError`` naming the key that is wrong."""
    top = Fields(value, "")
    if top.value.get("format") != FORMAT:
        raise ValueError(f"format: {_short(top.value.get('format'))} is not {FORMAT!r}: it is no trace")
    if top.value.get("version") != VERSION or isinstance(top.value["version"], bool):
        raise ValueError(f"version: {_short(top.value.get('version'))} is not {VERSION}, the one that is read here")
    top.keys("format version title mask gap joint left_out cut approximate texts cost rows")
    texts = dict(top.many("texts", _text))
    if len(texts) < len(top.value["texts"]):
        raise ValueError("texts: an id stands there twice")
    record = Record(
        texts,
        mask=top.maybe("mask", _count),
        gap=top.get("gap", _string),
        joint=top.get("joint", _string),
        title=top.get("title", _string),
        left_out=top.get("left_out", _count),
        cut=top.get("cut", _flag),
        approximate=top.get("approximate", _flag),
        cost=top.maybe("cost", _cost),
    )
    known = texts.keys()
    for row in top.many("rows", lambda one, key: _read_row(one, key, known)):
        if row.number in record.rows:
            raise ValueError(f"rows: number {row.number} stands there twice")
        record.rows[row.number] = row
    if (size := sum(row.size for row in record.rows.values())) > POSITIONS:
        raise ValueError(f"rows: {size} positions, more than the {POSITIONS} a trace may have")
    return record


class Fields:
    """An object of JSON at a key, read strictly: every value by a function (value, key) that checks it."""

    def __init__(self, value: Any, key: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{key or 'the whole'}: {_short(value)} is no object")
        self.value: dict[str, Any] = value
        self.key = key

    def keys(self, names: str) -> None:
        expected = names.split()
        for name in expected:
            if name not in self.value:
                raise ValueError(f"{self._at(name)}: missing")
        for name in self.value:
            if name not in expected:
                raise ValueError(f"{self._at(_short(name))}: unknown; expected are {', '.join(expected)}")

    def get(self, name: str, read: Callable[[Any, str], T]) -> T:
        return read(self.value[name], self._at(name))

    def maybe(self, name: str, read: Callable[[Any, str], T]) -> T | None:
        return None if self.value[name] is None else self.get(name, read)

    def many(self, name: str, read: Callable[[Any, str], T]) -> list[T]:
        return self.get(name, lambda value, key: [read(one, f"{key}[{i}]") for i, one in enumerate(_list(value, key))])

    def _at(self, name: str) -> str:
        return f"{self.key}.{name}" if self.key else name


def _read_row(value: Any, key: str, known: Set[int]) -> Row:
    row = Fields(value, key)
    row.keys("number before seed length calls frames")
    return Row(
        row.get("number", _count),
        before=row.maybe("before", lambda one, at: _ids(one, at, None)),
        frames=row.many("frames", lambda one, at: _read_frame(one, at, known)),
        seed=row.maybe("seed", _integer),
        length=row.maybe("length", _count),
        calls=row.maybe("calls", _count),
    )


def _read_frame(value: Any, key: str, known: Set[int]) -> Frame:
    frame = Fields(value, key)
    frame.keys("cause index steps t s nfe ids marks asked confidence entropy")
    if frame.value["cause"] not in CAUSES:
        raise ValueError(f"{key}.cause: {_short(frame.value['cause'])} is none of {', '.join(CAUSES)}")
    ids = frame.get("ids", lambda one, at: _ids(one, at, known))
    letters = frame.get("marks", _string_of(len(ids)))
    if strange := set(letters) - _MARK.keys():
        raise ValueError(f"{key}.marks: {_short(min(strange))} is none of {''.join(_MARK)}")
    asked = frame.get("asked", _counts)
    if asked != sorted(set(asked)) or (asked and asked[-1] >= len(ids)):
        raise ValueError(f"{key}.asked: positions below {len(ids)} in ascending order are needed")
    return Frame(
        frame.value["cause"],
        frame.get("index", _count),
        frame.get("steps", _count),
        frame.get("t", _share),
        frame.get("s", _share),
        frame.get("nfe", _count),
        ids,
        _spread(frame.many("confidence", _maybe_share), asked, len(ids), f"{key}.confidence"),
        _spread(frame.many("entropy", _number), asked, len(ids), f"{key}.entropy"),
        tuple(_MARK[letter] for letter in letters),
    )


def _spread(values: Sequence[float | None], asked: list[int], length: int, key: str) -> Known:
    if len(values) != len(asked):
        raise ValueError(f"{key}: {len(values)} numbers for {len(asked)} positions asked about")
    out: list[float | None] = [None] * length
    for i, one in zip(asked, values, strict=True):
        out[i] = one
    return tuple(out)


def _cost(value: Any, key: str) -> dict[str, Any]:
    cost = Fields(value, key)
    cost.keys(" ".join((*_COUNTS, "tokens_per_forward", "seconds")))
    seconds = cost.get("seconds", Fields)
    return {
        **{name: cost.get(name, _count) for name in _COUNTS},
        "tokens_per_forward": cost.get("tokens_per_forward", _number),
        "seconds": {name: seconds.get(name, _finite) for name in seconds.value},
    }


def _text(value: Any, key: str) -> tuple[int, str]:
    if len(_list(value, key)) != 2:
        raise ValueError(f"{key}: {_short(value)} is no pair of an id and its text")
    return _count(value[0], f"{key}[0]"), _string(value[1], f"{key}[1]")


def _ids(value: Any, key: str, known: Set[int] | None) -> tuple[int, ...]:
    found = _counts(value, key)
    if known is not None and (strange := set(found) - known):
        raise ValueError(f"{key}: id {min(strange)} has no entry in texts")
    return tuple(found)


def _counts(value: Any, key: str) -> list[int]:
    for i, one in enumerate(_list(value, key)):
        if type(one) is not int or not 0 <= one <= _LARGEST:
            _count(one, f"{key}[{i}]")
    return value


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{key}: {_short(value)} is no list")
    return value


def _string(value: Any, key: str) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError(f"{key}: {_short(value)} is no text of up to {LONGEST} characters")
    return value


def _string_of(length: int) -> Callable[[Any, str], str]:
    def read(value: Any, key: str) -> str:
        if not isinstance(value, str) or len(value) != length:
            raise ValueError(f"{key}: {_short(value)} is no text of {length} letters")
        return value

    return read


def _flag(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key}: {_short(value)} is neither true nor false")
    return value


def _integer(value: Any, key: str) -> int:
    if type(value) is not int or abs(value) > _LARGEST:
        raise ValueError(f"{key}: {_short(value)} is no integer of 64 bits")
    return value


def _count(value: Any, key: str) -> int:
    if _integer(value, key) < 0:
        raise ValueError(f"{key}: {_short(value)} is negative")
    return value


def _finite(value: Any, key: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{key}: {_short(value)} is no finite number")
    return value


def _number(value: Any, key: str) -> float:
    if _finite(value, key) < 0:
        raise ValueError(f"{key}: {_short(value)} is negative")
    return value


def _share(value: Any, key: str) -> float:
    if _number(value, key) > 1:
        raise ValueError(f"{key}: {_short(value)} is above 1")
    return value


def _maybe_share(value: Any, key: str) -> float | None:
    return None if value is None else _share(value, key)


def _short(value: Any) -> str:
    """A value as an error message shows it."""
    written = repr(value)
    return written if len(written) <= 60 else written[:57] + "..."
