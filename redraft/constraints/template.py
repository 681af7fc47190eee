"""A constraint for each gap of a text whose rest is given: a form to be filled in, valid whatever fills it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from redraft.constraints.compile import pattern_of, regex
from redraft.constraints.regular import Bound, Part, Regular, mask_of
from redraft.data import Tokenizer
from redraft.processes import Facts, Process


@dataclass(frozen=True)
class Each:
    """``gaps[i]`` holds of the i-th gap of every row: the i-th run of free positions with nothing given in it.

    A gap without one is free. ``stop`` may end the last gap early, if nothing is given behind it; others are filled.
    """

    gaps: Mapping[int, Regular]

    def bind(self, process: Process, facts: Facts, ids: Tensor, frozen: Tensor, stop: int | None) -> Bound:
        """The constraint on rows of one shape. Errors: ``ValueError`` for a gap that no row has, and as ``Regular``."""
        mask_id, rows = mask_of(process), list[tuple[Part, ...]]()
        for row, known in zip(ids, frozen, strict=True):
            spans, parts = _runs(known), list[Part]()
            beyond = [number for number in self.gaps if not 0 <= number < len(spans)]
            if beyond:
                raise ValueError(f"a constraint for gap {beyond[0]} of a text with {len(spans)} gaps, counted from 0")
            for number, span in enumerate(spans):
                if number in self.gaps:
                    end = stop if span[1] == len(known) else None
                    parts.append(self.gaps[number].part(process, row, known, span, end))
            rows.append(tuple(parts))
        return Bound(mask_id, tuple(rows))


def each(gaps: Mapping[int, Regular] | Sequence[Regular]) -> Each:
    """A constraint for each gap: of a list the first for the first gap, or by number, from 0.

    ``lm.infill("The year [MASK:4] was [MASK:2].", constraint=each([regex("[0-9]{4}", lm.tokenizer)]))``
    """
    return Each(dict(gaps) if isinstance(gaps, Mapping) else dict(enumerate(gaps)))


def json_template(
    schema: Mapping[str, Any], tokenizer: Tokenizer, room: Mapping[str, int] | int = 4
) -> tuple[str, Each]:
    """A JSON object whose braces and names are given and whose values are gaps: the text for ``infill``, and what holds
    of its gaps.

    ``schema`` names the ``properties``, all of which are written, in order; ``room`` is how many tokens the value of
    each has. A shorter value is followed by blanks, which JSON ignores.

    Errors: ``ValueError`` for a schema without properties, a room for none of them, and as ``json_schema``.
    """
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        raise ValueError(f"a template of a schema without properties: {str(schema)[:200]}; use json_schema")
    sizes = dict.fromkeys(properties, room) if isinstance(room, int) else dict(room)
    if set(sizes) != set(properties):
        raise ValueError(f"room for {sorted(sizes)}, and the properties are {sorted(properties)}: pass one for each")
    written = [f"{_literal(json.dumps(name, ensure_ascii=False))}: [MASK:{sizes[name]}]" for name in properties]
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    patterns = [pattern_of({**shared, **value}) for value in properties.values()]
    return "{" + ", ".join(written) + "}", each([regex(f"(?:{one}) *", tokenizer) for one in patterns])


def _literal(text: str) -> str:
    """Text that spells a gap, as text."""
    return text.replace("[MASK", "\\[MASK")


def _runs(frozen: Tensor) -> list[tuple[int, int]]:
    """Where the runs of free positions of a row (L,) begin and end."""
    known = [True, *frozen.tolist(), True]
    begins = [i for i in range(len(frozen)) if known[i] and not known[i + 1]]
    ends = [i for i in range(1, len(frozen) + 1) if not known[i] and known[i + 1]]
    return list(zip(begins, ends, strict=True))
