"""A constraint for each gap of a text whose rest is given: a form to be filled in, valid whatever fills it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from redraft.constraints.automaton import Automaton, trimmed
from redraft.constraints.compile import pattern_of, regex
from redraft.constraints.regular import Bound, Part, Regular, mask_of, ruled_out
from redraft.data import Tokenizer
from redraft.processes import Process
from redraft.sampling.law import Law


@dataclass(frozen=True)
class Each:
    """``gaps[i]`` holds of the i-th gap of every row: the i-th run of free positions with nothing given in it.

    A gap without one is free. ``stop`` may end the last gap early, if nothing is given behind it or it is free; no
    other gap holds ``stop``, which would end the text before what is given.
    """

    gaps: Mapping[int, Regular]

    def bind(self, process: Process, ids: Tensor, frozen: Tensor, stop: int | None, law: Law | None = None) -> Bound:
        """The constraint on rows of one shape. Errors: ``ValueError`` for a gap no row has, and as ``Regular``."""
        mask_id, rows = mask_of(process), list[tuple[Part, ...]]()
        banned, earliest = ruled_out(law, len(ids))
        for row, known, first in zip(ids, frozen, earliest, strict=True):
            spans, parts = _runs(known), list[Part]()
            beyond = [number for number in self.gaps if not 0 <= number < len(spans)]
            if beyond:
                raise ValueError(f"a constraint for gap {beyond[0]} of a text with {len(spans)} gaps, counted from 0")
            for number, span in enumerate(spans):
                if number in self.gaps and span[1] == len(known):
                    parts.append(self.gaps[number].part(process, row, known, span, stop, banned, first))
                elif number in self.gaps or (stop is not None and number + 1 < len(spans)):
                    one = self.gaps.get(number) or _anything(process.K)
                    one = one if stop is None else _without(one, stop)
                    parts.append(one.part(process, row, known, span, None, banned))
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
    own = [{**shared, **value} if isinstance(value, Mapping) else value for value in properties.values()]
    patterns = [pattern_of(one) for one in own]
    return "{" + ", ".join(written) + "}", each([regex(f"(?:{one}) *", tokenizer) for one in patterns])


def _anything(size: int) -> Regular:
    """Any text over so many ids."""
    return Regular(Automaton(np.zeros((1, 1), np.intp), np.ones(1, np.bool_), np.zeros(size, np.intp)))


def _without(one: Regular, stop: int) -> Regular:
    """The texts that do not hold ``stop``. Errors: ``ValueError`` for none."""
    made = one.automaton
    return Regular(trimmed(made.next, made.accept, np.where(np.arange(len(made.symbol)) == stop, -1, made.symbol)))


def _literal(text: str) -> str:
    """Text that spells a gap, as text."""
    return text.replace("[MASK", "\\[MASK")


def _runs(frozen: Tensor) -> list[tuple[int, int]]:
    """Where the runs of free positions of a row (L,) begin and end."""
    known = [True, *frozen.tolist(), True]
    begins = [i for i in range(len(frozen)) if known[i] and not known[i + 1]]
    ends = [i for i in range(1, len(frozen) + 1) if not known[i] and known[i + 1]]
    return list(zip(begins, ends, strict=True))
