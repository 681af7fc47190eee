"""What a page is made of, tables, pictures and sentences, and how a figure is told with its interval."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST, DEEPEST = 1000, 8
"""Most characters of one cell, and how deep an object is told."""


@dataclass(frozen=True)
class Table:
    """Rows of text below ``columns``; ``numbers`` are those of the records that the rows are of."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int]


@dataclass(frozen=True)
class Picture:
    """An ``<svg>`` element of our own drawing."""

    caption: str
    svg: str


Part = Table | Picture | str
"""A string is a sentence."""


def figure(tree: Mapping[str, Any], name: str) -> str:
    """A figure with its interval, however it is told: half its width, its ends, or both in one mapping; - for none.

    >>> figure({"x": 1.5, "x_error": 0.25}, "x"), figure({"x": 0.5, "x_low": 0.4, "x_high": 0.6}, "x"), figure({}, "x")
    ('1.5 ± 0.25', '0.5 (0.4 to 0.6)', '-')
    """
    value = tree.get(name)
    if isinstance(value, Mapping):
        if "value" in value:
            told = {"value": value["value"], "value_low": value.get("low"), "value_high": value.get("high")}
            return figure(told, "value")
        return ", ".join(f"{key} {number(one)}" for key, one in value.items()) or "-"
    low, high, error = (tree.get(f"{name}_{end}") for end in ("low", "high", "error"))
    if _is_number(value) and _is_number(low) and _is_number(high):
        return f"{number(value)} ({number(low)} to {number(high)})"
    if _is_number(value) and _is_number(error):
        return f"{number(value)} ± {error:.2g}"
    return number(value)


def number(value: Any) -> str:
    """A value in a few characters."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, int):
        return f"{value:,}"
    return cut(str(value))


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 2] + " …"


def grid(caption: str, names: Mapping[str, str], rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Table:
    """A row for each (number, tree) with the figures ``names``, key to heading; what no row has gets no column."""
    listed = list(rows)
    told = {key: head for key, head in names.items() if any(tree.get(key) is not None for _, tree in listed)}
    cells = [[figure(tree, key) for key in told] for _, tree in listed]
    return Table(caption, list(told.values()), cells, [one for one, _ in listed])


def mapping(value: Any) -> dict[str, Any]:
    """``value`` where it is an object, else an empty one: what others may have edited is shown as far as it goes."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def words(value: Any, depth: int = 0) -> str:
    """An object in words: ``a 1, b c 2``."""
    if depth == DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {words(one, depth + 1)}" for name, one in value.items() if one is not None)
    if isinstance(value, list | tuple):
        return " ".join(words(one, depth + 1) for one in value)
    return number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
