"""Which texts may be written, whatever is written first: regular expressions, JSON Schemas, choices, grammars, forms
with gaps.

Each is passed to ``sample`` or ``lm.generate`` as ``constraint``, with a sampler that proposes.
"""

from redraft.constraints.automaton import Automaton, of_edges
from redraft.constraints.compile import choices, json_schema, regex
from redraft.constraints.grammar import Grammar, grammar
from redraft.constraints.regular import Regular
from redraft.constraints.template import Each, each, json_template

__all__ = [
    "Automaton",
    "Each",
    "Grammar",
    "Regular",
    "choices",
    "each",
    "grammar",
    "json_schema",
    "json_template",
    "of_edges",
    "regex",
]
