"""Two likelihoods side by side: how far apart, how surely, and only where they measure the same thing."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from redraft.errors import unknown
from redraft.evaluation.intervals import ratio
from redraft.evaluation.likelihood import Likelihood
from redraft.evaluation.protocol import differing

UNITS = ("nats_per_token", "bits_per_byte", "bits_per_char")
OF_TEXT = ("bits_per_byte", "bits_per_char")
"""Units in which tokenizers may differ."""


@dataclass(frozen=True)
class Comparison:
    """``difference`` of the first from the second, in ``unit``, and the half-width of its 95% interval, ``error``.

    ``paired``: the rows are the same, so that the interval is that of the rows' own differences, and what makes a row
    hard for both is not in it; else the two count as independent. ``note`` says what the difference is not;
    ``forced`` are the fields of the protocol that differ all the same.
    """

    difference: float
    error: float
    unit: str
    paired: bool
    note: str = ""
    forced: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    one: Likelihood | Mapping[str, Any],
    other: Likelihood | Mapping[str, Any],
    unit: str = "nats_per_token",
    *,
    force: bool = False,
) -> Comparison:
    """``one`` minus ``other``: below 0 where the first is the likelier; both are likelihoods, or records of them.

    The protocols must be the same. In bits per byte or character the tokenizer may differ, but nothing else: a context
    of as many tokens is then of more or less text, which the note says.

    Errors: ``ValueError`` for an unknown unit, what is no record of a likelihood or has no value in that unit, and for
    protocols that differ, naming each field, unless ``force``.
    """
    if unit not in UNITS:
        raise unknown("unit", unit, UNITS)
    sides = [_read(one, unit, "first"), _read(other, unit, "second")]
    own, others = sides
    apart = differing(own["protocol"], others["protocol"])
    tokenizers = "tokenizer" in apart
    if unit in OF_TEXT:
        apart.pop("tokenizer", None)
    if apart and not force:
        raise ValueError(
            f"two likelihoods of different protocol are not compared: {'; '.join(apart.values())}; or force it"
        )
    same = not apart and not tokenizers
    error = _paired(own, others, unit) if same else None
    notes = [*_kinds(own, others), *(_spans(own, others) if tokenizers and unit in OF_TEXT else [])]
    return Comparison(
        difference=own[unit] - others[unit],
        error=math.hypot(own[f"{unit}_error"], others[f"{unit}_error"]) if error is None else error,
        unit=unit,
        paired=error is not None,
        note="; ".join(notes),
        forced=tuple(apart),
    )


def _read(one: Likelihood | Mapping[str, Any], unit: str, which: str) -> dict[str, Any]:
    """What is compared, checked: records are files from anywhere."""
    found = one.to_record() if isinstance(one, Likelihood) else dict(one)
    if not isinstance(found.get("protocol"), Mapping) or not isinstance(found.get("estimator"), str):
        raise ValueError(
            f"the {which} is no record of a likelihood with its protocol: measure it (again) by redraft evaluate --out"
        )
    for name in (unit, f"{unit}_error", "nats_per_token"):
        value = found.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(
                f"the {which} has {name}={value!r}: its tokenizer loses letters, its first tokens are left out, or "
                "the text was not counted; compare nats_per_token"
                if unit in OF_TEXT
                else f"the {which} has {name}={value!r}: measure it again"
            )
    return found


def _paired(own: Mapping[str, Any], others: Mapping[str, Any], unit: str) -> float | None:
    """The error of a difference row by row; None where the rows are not known, or not the same."""
    rows = [_rows(side) for side in (own, others)]
    if rows[0] is None or rows[1] is None or rows[0][1] != rows[1][1]:
        return None
    (mine, counts), (theirs, _) = rows[0], rows[1]
    side = own if own["nats_per_token"] else others
    per_nat = side[unit] / side["nats_per_token"] if side["nats_per_token"] else 1.0
    return ratio([a - b for a, b in zip(mine, theirs, strict=True)], counts).error * per_nat


def _rows(side: Mapping[str, Any]) -> tuple[list[float], list[float]] | None:
    """The nats and the tokens of each row, if the record has them, and they are numbers."""
    nats, tokens = side.get("row_nats"), side.get("row_tokens")
    if not isinstance(nats, list | tuple) or not isinstance(tokens, list | tuple):
        return None
    columns = [cast(list[Any], list(one)) for one in (nats, tokens)]
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for one in columns for value in one)
    if not numbers or len(columns[0]) != len(columns[1]) or len(columns[0]) < 2 or sum(columns[1]) <= 0:
        return None
    return columns[0], columns[1]


def _kinds(own: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """What must be said of two estimators."""
    bounds = bool(own.get("is_bound")), bool(others.get("is_bound"))
    if bounds[0] != bounds[1]:
        bound, exact = ("first", "second") if bounds[0] else ("second", "first")
        return [f"the {bound} is a bound and the {exact} is exact: the bound's slack is part of the difference"]
    if own["estimator"] != others["estimator"] and bounds[0]:
        return [
            f"bounds by different estimators ({own['estimator']}; {others['estimator']}), each with slack of its own"
        ]
    if own["estimator"] != others["estimator"]:
        return [f"exact under different laws ({own['estimator']}; {others['estimator']})"]
    return ["both are bounds: how much of the difference is slack is not known"] if bounds[0] else []


def _spans(own: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """How much text a row of either tokenizer holds."""
    spans = [f"{span:.4g}" if (span := _bytes_a_row(side)) else "an unknown number of" for side in (own, others)]
    return [f"tokenizers differ: a row holds {spans[0]} bytes of the first and {spans[1]} of the second"]


def _bytes_a_row(side: Mapping[str, Any]) -> float | None:
    nats, bits, context = side["nats_per_token"], side.get("bits_per_byte"), side["protocol"].get("context")
    if not isinstance(bits, int | float) or not isinstance(context, int) or not bits:
        return None
    return context * nats / math.log(2) / bits
