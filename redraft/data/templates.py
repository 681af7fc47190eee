"""Templates: texts with gaps to fill, ``"The [MASK:3] of France is [MASK]."``."""

import re

MAX_SPAN = 100_000
_TEMPLATE = re.compile(r"(\\*)(\[MASK(?::([^\]]*))?\])")


def parse_template(text: str) -> list[str | int | range]:
    r"""Split a template into its texts and the lengths of its spans: ``[MASK]`` is one token, ``[MASK:3]`` three.

    ``[MASK:2-6]`` is a span of 2 to 6 tokens, whichever is best: a range. A backslash before it, ``\[MASK]``, makes it
    text; two before it stand for one backslash and a span.

    >>> parse_template("The [MASK:3] of France is [MASK].")
    ['The ', 3, ' of France is ', 1, '.']
    """
    parts: list[str | int | range] = [""]
    end = 0
    for match in _TEMPLATE.finditer(text):
        slashes, written, length = match.groups()
        literal = text[end : match.start()] + slashes[: len(slashes) // 2]
        if len(slashes) % 2:
            literal += written
        _append(parts, literal)
        if len(slashes) % 2 == 0:
            parts.append(_span(written, length))
        end = match.end()
    _append(parts, text[end:])
    if not any(isinstance(part, int | range) for part in parts):
        raise ValueError(f"no [MASK] in the template {text[:80]!r}; write e.g. 'The [MASK:3] of France is [MASK].'")
    return [part for part in parts if part != ""]


def _append(parts: list[str | int | range], literal: str) -> None:
    last = parts[-1]
    if isinstance(last, str):
        parts[-1] = last + literal
    else:
        parts.append(literal)


def _span(written: str, length: str | None) -> int | range:
    if length is None:
        return 1
    least, dash, most = length.partition("-")
    first, last = _number(least), _number(most if dash else least)
    if first is not None and last is not None and first <= last:
        return range(first, last + 1) if first < last else first
    raise ValueError(
        f"{written[:40]!r} is no span: write [MASK], [MASK:n] or, of unknown length, [MASK:n-m], n and m from 1 to "
        f"{MAX_SPAN}"
    )


def _number(digits: str) -> int | None:
    """A length as written, None for what is none."""
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_SPAN))):
        return None
    return int(digits) if 1 <= int(digits) <= MAX_SPAN else None
