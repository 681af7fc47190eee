"""Constraints on text: what matches a regular expression, what a JSON Schema describes, one of some choices."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from redraft.constraints import bytewise
from redraft.constraints.automaton import of_bytes
from redraft.constraints.bytewise import MAX_PATTERN, MISSING
from redraft.constraints.pieces import Pieces, pieces
from redraft.constraints.regular import Regular
from redraft.constraints.schema import plain
from redraft.data import Tokenizer


def regex(pattern: str, tokenizer: Tokenizer) -> Regular:
    """Texts that match ``pattern`` as a whole, as ``re.fullmatch`` has it, of the tokens of a model.

    The syntax is that of Rust's ``regex``, without ``^``, ``\\b``, look-around and references; ``\\d`` is any digit of
    its Unicode, which may be newer than Python's: write ``[0-9]``. A text is what the tokenizer decodes its tokens to,
    whichever they are; special tokens are none.

    Errors: ``ValueError`` for a pattern that cannot be compiled, needs too many states or matches no text these tokens
    can spell, for a tokenizer whose texts are not made of pieces, for the library not installed.
    """
    return Regular(of_bytes(bytewise.of_pattern(pattern), _pieces(tokenizer)))


def json_schema(schema: Mapping[str, Any] | str, tokenizer: Tokenizer, *, whitespace: str | None = None) -> Regular:
    """JSON texts that a schema describes, as far as outlines-core writes it as a regular expression.

    Properties stand in the schema's order. ``whitespace``: a pattern for what may stand between tokens of JSON, at
    most one blank unless given.

    Every text is of the schema: what the library would leave out is refused by name (the bounds of a number, say,
    ``allOf`` of several parts, recursion). With ``properties`` no others are written, a string with a ``pattern`` meets
    it as a whole and has no letter that JSON escapes.

    Errors: ``ValueError`` for what is no schema or would not hold, one that is too large, and as ``regex``.
    """
    return regex(pattern_of(schema, whitespace), tokenizer)


def pattern_of(schema: Any, whitespace: str | None = None) -> str:
    """The regular expression of a schema. Errors: as ``json_schema``."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        if len(text) > MAX_PATTERN:
            raise ValueError(f"{len(text)} characters, at most {MAX_PATTERN}")
        made = json.dumps(plain(json.loads(text)))
        if len(made) > MAX_PATTERN:
            raise ValueError(f"{len(made)} characters with its references written out, at most {MAX_PATTERN}")
        return bytewise.of_schema(made, whitespace)
    except RecursionError:
        raise ValueError("a JSON Schema of too many levels cannot be compiled") from None
    except (TypeError, ValueError) as error:
        if str(error) == MISSING:
            raise
        shown = str(schema)[:200]
        raise ValueError(f"the JSON Schema {shown} cannot be compiled: {error}") from None


def choices(texts: Sequence[str], tokenizer: Tokenizer) -> Regular:
    """One of ``texts``. Errors: ``ValueError`` for none, for more than 20,000 characters, and as ``regex``."""
    if isinstance(texts, str) or not texts:
        raise ValueError(f"choices={texts!r}: pass a list of at least one text")
    if sum(map(len, texts)) > MAX_PATTERN:
        raise ValueError(f"choices of {sum(map(len, texts))} characters together: at most {MAX_PATTERN}")
    return Regular(of_bytes(bytewise.of_texts(texts), _pieces(tokenizer)))


@lru_cache(maxsize=4)
def _pieces(tokenizer: Tokenizer) -> Pieces:
    return pieces(tokenizer)
