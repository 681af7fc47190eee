"""What a JSON Schema says, in the words that outlines-core writes as a pattern without a mistake; the rest is refused.

The library passes over keywords it does not know, and over some that it does where they stand together, so that its
texts would not be of the schema. What is handed to it is therefore made anew, of known keywords only, references
written out. Texts of the result are of the schema; it may describe fewer.
"""

import importlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

MAX_DEPTH = 12
MAX_NODES = 1_000
ANNOTATIONS = {
    *("title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions"),
    *("deprecated", "readOnly", "writeOnly"),
}
"""What asks nothing of a text."""
KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "integer": set[str](),
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
}
"""What may stand in the schema of each type."""
ALONE = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
_MONTHS = (
    "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])",
    "(0[469]|11)-(0[1-9]|[12][0-9]|30)",
    "02-(0[1-9]|1[0-9]|2[0-8])",
)
_DAY = f"({'|'.join(_MONTHS)})"  # without the 29th of February: no pattern of modest size knows its years
_HOUR = "([01][0-9]|2[0-3]):[0-5][0-9]"
FORMATS = {
    "date": f"[0-9]{{4}}-{_DAY}",
    "time": rf"{_HOUR}:[0-5][0-9](\.[0-9]+)?(Z|[+\-]{_HOUR})",
    "date-time": rf"[0-9]{{4}}-{_DAY}T{_HOUR}:[0-5][0-9](\.[0-9]+)?(Z|[+\-]{_HOUR})",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
"""RFC 3339 and RFC 4122. The library's own time, email and uri spell what is no JSON."""


def plain(schema: Any) -> dict[str, Any]:
    """The same in safe words. Errors: ``ValueError`` naming what would not hold."""
    return _Walk(schema).walk(schema, 0, ())


@dataclass
class _Walk:
    root: Any
    nodes: list[int] = field(default_factory=lambda: [0])

    def walk(self, schema: Any, depth: int, trail: tuple[str, ...]) -> dict[str, Any]:
        self.nodes[0] += 1
        if depth > MAX_DEPTH or self.nodes[0] > MAX_NODES:
            raise ValueError(f"more than {MAX_DEPTH} levels or {MAX_NODES} schemas, with references written out")
        if schema is True:
            return {}
        if not isinstance(schema, Mapping):
            raise ValueError(f"{str(schema)[:80]} is no schema that a text could be of")
        said = {str(name): value for name, value in schema.items() if name not in ANNOTATIONS}
        alone = next((name for name in ALONE if name in said), None)
        if alone is None:
            return self.typed(said, depth, trail)
        kind = said.pop("type", None) if alone in ("enum", "const") else None
        if len(said) > 1:
            raise _unsaid(next(name for name in said if name != alone), f"beside {alone!r}")
        if alone in ("enum", "const"):
            return {"enum": _values(said["enum"] if alone == "enum" else [said["const"]], kind)}
        if alone == "$ref":
            return self.referred(said["$ref"], depth, trail)
        parts = said[alone]
        if not isinstance(parts, list) or not parts:
            raise ValueError(f"{alone!r} needs a list of at least one schema")
        made = [self.walk(part, depth + 1, trail) for part in parts]
        if len(made) == 1:
            return made[0]
        if alone == "allOf":
            raise _unsaid(alone, "of more than one part")
        if alone == "oneOf" and not _apart(made):
            raise _unsaid(alone, "of parts that one text may share; use 'anyOf'")
        return {"anyOf": made}

    def referred(self, name: Any, depth: int, trail: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(name, str) or not (name == "#" or name.startswith("#/")):
            raise ValueError(f"the reference {name!r} is not to a part of the schema, '#/...'")
        if name in trail:
            raise ValueError(f"the reference {name!r} leads back to itself: no pattern is recursive; use a grammar")
        found: Any = self.root
        for step in unquote(name).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or step not in found:
                raise ValueError(f"the reference {name!r} leads nowhere")
            found = found[step]
        return self.walk(found, depth + 1, (*trail, name))

    def typed(self, said: dict[str, Any], depth: int, trail: tuple[str, ...]) -> dict[str, Any]:
        kinds = said.pop("type", None)
        if kinds is None:
            kinds = [one for one, words in KEYWORDS.items() if words & set(said)][:1]
            if not said:
                return {}
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list) or any(one not in KEYWORDS for one in kinds):
            raise ValueError(f"the type {str(kinds)[:80]} is none of {', '.join(KEYWORDS)}")
        known = {word for one in kinds for word in KEYWORDS[one]}
        unknown = next((name for name in said if name not in known), None)
        if unknown is not None:
            raise _unsaid(unknown, f"of type {' or '.join(kinds) or 'any'}")
        if not kinds:
            raise ValueError("no type is left to a text")
        made = list[dict[str, Any]]()
        for one in kinds:
            own = {name: value for name, value in said.items() if name in KEYWORDS[one]}
            inner = {"string": _string, "object": self.object, "array": self.array}.get(one)
            made.append({"type": one} if inner is None else inner(own, depth, trail))
        return made[0] if len(made) == 1 else {"anyOf": made}

    def object(self, said: dict[str, Any], depth: int, trail: tuple[str, ...]) -> dict[str, Any]:
        """Without ``properties`` any, each of ``additionalProperties``; with them no others."""
        more = said.get("additionalProperties", True)
        others = {} if more is False else self.walk(more, depth + 1, trail)
        properties, required = said.get("properties"), said.get("required", [])
        if properties is None and more is False:
            properties = {}
        if properties is not None and not isinstance(properties, Mapping):
            raise ValueError(f"'properties' are {str(properties)[:80]}: names with a schema each")
        lost = [name for name in required if name not in (properties or {})]
        if lost:
            raise _unsaid("required", f"of {lost[0]!r}, which is none of the properties")
        if properties is None:
            return {"type": "object", "additionalProperties": others}
        _check_names(properties)
        inner = {name: self.walk(value, depth + 1, trail) for name, value in properties.items()}
        return {"type": "object", "properties": inner, "required": list(required)}

    def array(self, said: dict[str, Any], depth: int, trail: tuple[str, ...]) -> dict[str, Any]:
        if "prefixItems" in said:
            beside = [name for name in said if name != "prefixItems" and said[name] is not False]
            if beside:
                raise _unsaid(beside[0], "beside 'prefixItems'")
            if not isinstance(said["prefixItems"], list) or not said["prefixItems"]:
                raise ValueError("'prefixItems' needs a list of at least one schema")
            return {"type": "array", "prefixItems": [self.walk(one, depth + 1, trail) for one in said["prefixItems"]]}
        _check_bounds(said, "minItems", "maxItems")
        bounds = {name: said[name] for name in ("minItems", "maxItems") if name in said}
        if said.get("items") is False:
            if bounds.get("minItems"):
                raise ValueError("no array of no items has 'minItems' of them")
            return {"type": "array", "items": {"type": "null"}, "maxItems": 0}
        return {"type": "array", "items": self.walk(said.get("items", True), depth + 1, trail), **bounds}


def _string(said: dict[str, Any], depth: int, trail: tuple[str, ...]) -> dict[str, Any]:
    """``pattern`` and ``format`` stand alone: the library forgets them beside a length."""
    for alone in ("pattern", "format"):
        if alone in said and len(said) > 1:
            raise _unsaid(next(name for name in said if name != alone), f"beside {alone!r}")
    if "format" in said:
        if said["format"] not in FORMATS:
            raise _unsaid("format", f"of {said['format']!r}, only of {', '.join(FORMATS)}")
        return {"type": "string", "pattern": FORMATS[said["format"]]}
    if "pattern" in said:
        return {"type": "string", "pattern": safe_pattern(said["pattern"])}
    _check_bounds(said, "minLength", "maxLength")
    return {"type": "string", **said}


def _check_bounds(said: Mapping[str, Any], least: str, most: str) -> None:
    for name in (least, most):
        if name in said and (type(said[name]) is not int or said[name] < 0):
            raise ValueError(f"{name!r} is {said[name]!r}: an integer of at least 0")
    if said.get(most, said.get(least, 0)) < said.get(least, 0):
        raise ValueError(f"{least!r} is above {most!r}")


def _check_names(names: Mapping[Any, Any]) -> None:
    """The library writes names as they are."""
    for name in names:
        if not isinstance(name, str) or json.dumps(name, ensure_ascii=False) != f'"{name}"':
            raise ValueError(f"the name {name!r} is one that JSON would escape, which would not hold")


def _values(values: Any, kind: Any) -> list[Any]:
    """Those of the type."""
    if not isinstance(values, list) or not values:
        raise ValueError("'enum' needs a list of at least one value")
    kinds = [kind] if isinstance(kind, str) else kind
    for one in values:
        _check_value(one)
        if kinds is not None and not {_kind(one), *(["number"] if _kind(one) == "integer" else [])} & set(kinds):
            raise ValueError(f"the value {one!r} is not of type {kind!r}")
    return values


def _check_value(value: Any) -> None:
    if isinstance(value, Mapping):
        _check_names(value)
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        _check_value(one)


def _kind(value: Any) -> str:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", type(None): "null"}
    return kinds.get(type(value), "object")


def _apart(parts: list[dict[str, Any]]) -> bool:
    """Whether no text is of two of these plain schemas: they are of other types, or list other values."""
    for at, one in enumerate(parts):
        for other in parts[:at]:
            if "enum" in one and "enum" in other:
                if any(a == b for a in one["enum"] for b in other["enum"]):
                    return False
            elif _kinds(one) & _kinds(other):
                return False
    return True


def _kinds(schema: dict[str, Any]) -> set[str]:
    """The types of its texts, an integer being a number."""
    if "anyOf" in schema:
        return {kind for part in schema["anyOf"] for kind in _kinds(part)}
    found = {_kind(one) for one in schema["enum"]} if "enum" in schema else {schema.get("type", "any")}
    found = set(KEYWORDS) if found == {"any"} else found
    return {"number" if kind == "integer" else kind for kind in found}


def _unsaid(name: str, where: str) -> ValueError:
    return ValueError(f"{name!r} {where} would not hold, which no pattern here says; leave it out and check the text")


# ------------------------------------------------------------------------------------------- patterns within strings

_UNSAFE = r"\"\\\x00-\x1f\x7f-\x9f"
_CLASSES = {"CATEGORY_DIGIT": "0-9", "CATEGORY_WORD": "0-9A-Za-z_"}


def safe_pattern(pattern: Any) -> str:
    """A pattern of ECMA-262, met by the whole string, none of whose letters JSON would have to escape.

    It is written anew from its tree: ``.`` and ``[^...]`` are without the quote, the backslash and control characters,
    ``\\d`` and ``\\w`` are of ASCII. Errors: ``ValueError`` for anchors within, look-around, references, flags,
    possessive and atomic groups, the other classes, and for letters that JSON escapes.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"'pattern' is {str(pattern)[:80]}: a text")
    body = pattern[1:] if pattern.startswith("^") else pattern
    if re.search(r"(?<!\\)(\\\\)*\$$", body):
        body = body[:-1]
    parser: Any = importlib.import_module("re._parser")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        try:
            tree = parser.parse(body)
        except (re.error, OverflowError, FutureWarning) as error:
            raise ValueError(f"the string pattern {pattern[:80]!r}: {error}") from None
    if tree.state.flags & ~re.UNICODE.value:
        raise ValueError(f"the string pattern {pattern[:80]!r} sets flags, which would not hold")
    try:
        return _again(tree)
    except ValueError as error:
        raise ValueError(f"the string pattern {pattern[:80]!r}: {error}") from None


def _again(tree: Any) -> str:
    return "".join(_node(str(kind), value) for kind, value in tree)


def _node(kind: str, value: Any) -> str:
    if kind == "LITERAL":
        return _letter(value)
    if kind == "ANY":
        return f"[^{_UNSAFE}]"
    if kind == "NOT_LITERAL":
        return rf"[^\x{{{value:x}}}{_UNSAFE}]"
    if kind == "IN":
        negated = str(value[0][0]) == "NEGATE"
        inside = "".join(_member(str(one), what, negated) for one, what in value[negated:])
        return f"[^{inside}{_UNSAFE}]" if negated else f"[{inside}]"
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        least, most, inner = value
        return f"(?:{_again(inner)}){{{least},{most if isinstance(most, int) and most < 1 << 31 else ''}}}"
    if kind == "SUBPATTERN" and not value[1] and not value[2]:
        return f"(?:{_again(value[3])})"
    if kind == "BRANCH":
        return f"(?:{'|'.join(_again(one) for one in value[1])})"
    raise ValueError(f"{kind} would not hold within a JSON string")


def _member(kind: str, value: Any, negated: bool) -> str:
    if kind == "LITERAL":
        return rf"\x{{{value:x}}}" if negated else _letter(value)
    if kind == "RANGE":
        low, high = value
        if not negated and any(low <= one <= high for one in (0x22, 0x5C, *range(0x20), *range(0x7F, 0xA0))):
            raise ValueError(f"the range of {chr(low)!r} to {chr(high)!r} has letters that JSON escapes")
        return rf"\x{{{low:x}}}-\x{{{high:x}}}"
    if str(value) in _CLASSES:
        return _CLASSES[str(value)]
    raise ValueError(f"{value} would not hold within a JSON string")


def _letter(code: int) -> str:
    if code in (0x22, 0x5C) or code < 0x20 or 0x7F <= code < 0xA0:
        raise ValueError(f"{chr(code)!r} is a letter that JSON escapes")
    return rf"\x{{{code:x}}}"
