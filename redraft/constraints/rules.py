"""A context-free grammar made ready for charts: rules of at most two symbols, terminals as one automaton over bytes.

The text is lark's EBNF and is read by lark, which unfolds ``?``, ``*``, ``+``, ``~n`` and ``[...]``; templates are
refused. The regular expressions of terminals become automata by outlines-core.
"""

import importlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redraft.constraints.bytewise import Bytes, of_pattern, of_texts

MAX_TEXT = 20_000
MAX_UNFOLDED = 2_000
MAX_WRITTEN = 8_000
"""Parts of all terminals, each with those of the terminals it names."""
MAX_LEVELS = 50
MAX_SYMBOLS = 4_000
MAX_STATES = 20_000

Rule = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Lexer:
    """The automata of all terminals side by side: a set of states is an int, bit s for state s.

    ``kind`` maps each of the 256 bytes to its class, bytes of one class being read alike by every terminal, -1 for
    those that none reads; ``after[s][c]`` is the state after class c, -1 for none; ``start`` the first states,
    ``ends[t]`` the last ones of terminal t.
    """

    kind: tuple[int, ...]
    after: tuple[tuple[int, ...], ...]
    start: int
    ends: tuple[int, ...]

    @cached_property
    def last(self) -> int:
        """The last states of any terminal."""
        return sum(self.ends)

    def read(self, piece: bytes) -> tuple[int, ...] | None:
        """The classes of its bytes; None of a piece that is empty, or has a byte no terminal reads."""
        classes = tuple(self.kind[byte] for byte in piece)
        return classes if classes and -1 not in classes else None


@dataclass(frozen=True)
class Rules:
    """Symbols are numbers, those of terminals first, as in ``lexer``.

    ``lefts``: of each symbol b that begins a rule a -> b c, its c with the symbols a, and all that derive one of those
    by rules of one symbol. ``down[a]``: what a derives so, itself too. ``empty``: whether the empty text is one.
    """

    lexer: Lexer
    size: int
    start: int
    empty: bool
    lefts: tuple[tuple[int, tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]], ...]
    down: tuple[tuple[int, ...], ...]

    @cached_property
    def up(self) -> tuple[tuple[int, ...], ...]:
        """The symbols that derive each one by rules of one symbol, itself too."""
        found = [list[int]() for _ in range(self.size)]
        for above, below in enumerate(self.down):
            for one in below:
                found[one].append(above)
        return tuple(map(tuple, found))


def read(text: str, start: str) -> Rules:
    """The rules of a grammar text. Errors: ``ValueError`` for one that lark refuses, or that is too large."""
    loaded = _loaded(text, start)
    patterns = {one.name: one.pattern for one in loaded.terminals}
    rules = [(str(rule.origin.name), tuple(str(one.name) for one in rule.expansion)) for rule in loaded.rules]
    missing = {name for rule in loaded.rules for one in rule.expansion if one.is_term and (name := one.name)}
    if lost := sorted(missing - set(patterns)):
        raise ValueError(f"terminal {lost[0]} is declared without a pattern: write one, {lost[0]}: /.../")
    rules, top = _with_ignored(rules, start, sorted(patterns), sorted(map(str, loaded.ignore_tokens)))
    rules = _reached(_binary(rules), top)
    used = {one for _, body in rules for one in body}
    terminals = [name for name in sorted(patterns) if name in used]
    names = [*terminals, *sorted({top} | {head for head, _ in rules} | (used - set(terminals)))]
    if len(names) > MAX_SYMBOLS:
        raise ValueError(f"the grammar has {len(names)} symbols of at most two each: up to {MAX_SYMBOLS} are taken")
    return _numbered(rules, names, top, lexer({name: patterns[name] for name in terminals}))


def _loaded(text: str, start: str) -> Any:
    if len(text) > MAX_TEXT:
        raise ValueError(f"a grammar of {len(text)} characters: up to {MAX_TEXT} are read")
    if re.search(r"%import\s*\.", text):
        raise ValueError("%import of a file: write the rules out; '%import common.NUMBER' and its kin may stay")
    _check_unfolded(text)
    try:
        lark = importlib.import_module("lark")
    except ImportError:
        raise ValueError("a grammar needs the library lark: pip install 'redraft[guide]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they are about is refused below
            return lark.Lark(text, parser="earley", lexer="dynamic_complete", start=start, maybe_placeholders=False)
    except Exception as error:  # errors of its own, of two regular expression libraries, and of reading imports
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"lark refuses the grammar: {reason}") from None


# --------------------------------------------------------------------------------------------- how large it unfolds

_TOKEN = re.compile(
    r'//[^\n]*|"(?:\\.|[^"\\\n])*"i?|/(?:\\.|[^/\\\n])+/[imslux]*|->\s*\w+|~\s*\d+(?:\s*\.\.\s*\d+)?|\w+\{?|\s|.'
)
_FACTORED = 50  # lark writes ``x~n`` out below this n


def _check_unfolded(text: str) -> None:
    """Refuse a definition that lark would write out as too many: every ``?`` and inner choice multiplies them."""
    terminals = dict[str, list[str]]()
    for definition in re.split(r"\n(?=[ \t]*[%?!\w])", re.sub(r"\\[ ]*\r?\n", " ", text)):
        name, _, body = definition.partition(":")
        tokens = [token for token in _TOKEN.findall(body) if not token.isspace() and not token.startswith("//")]
        if terminal := re.search(r"(?:^|[\s%])(_*[A-Z]\w*)\s*(?:\.\s*-?\d+\s*)?$", name):
            terminals.setdefault(terminal[1], []).extend(tokens)
        if "{" in name or any(token[0] != '"' and token.endswith("{") for token in tokens):
            raise ValueError(f"{name.strip()[:40]!r} uses a template: write the rules out")
        # a terminal becomes one pattern, whose automaton is bounded elsewhere
        if re.match(r"\s*[?!]*_*[a-z]", name) and _unfolded(tokens) > MAX_UNFOLDED:
            raise ValueError(
                f"{name.strip()[:40]!r} stands for more than {MAX_UNFOLDED} rules: give its parts names of their own"
            )
    _check_written_out(terminals)


def _check_written_out(terminals: Mapping[str, Sequence[str]]) -> None:
    """Refuse terminals that lark would write out, each in all that use it, as more than ``MAX_WRITTEN`` in all."""
    sizes = dict[str, int]()

    def size(name: str, above: tuple[str, ...]) -> int:
        if name in above or len(above) > MAX_LEVELS:
            raise ValueError(f"terminal {name} is made of itself, or of more than {MAX_LEVELS} levels: write a rule")
        if name not in sizes:
            sizes[name] = sum(
                size(one, (*above, name)) if one in terminals else 1 + len(one) // 8 for one in terminals[name]
            )
        return sizes[name]

    total = 0
    for name in terminals:
        total += size(name, ())
        if total > MAX_WRITTEN:
            raise ValueError(f"the terminals up to {name} stand for more than {MAX_WRITTEN} parts: make some rules")


def _unfolded(tokens: Iterable[str]) -> int:
    """So many rules at most, more than ``MAX_UNFOLDED`` if that many."""
    sums, product, ways, outer = 0, 1, 1, list[tuple[int, int]]()  # ways: in how many the item just read is written
    for token in tokens:
        if token in "([":
            outer.append((sums, product))
            sums, product, ways = 0, 1, 1
        elif token in ")]" and outer:
            ways = sums + product + (token == "]")
            sums, product = outer.pop()
            product *= ways
        elif token == "|":
            sums, product, ways = sums + product, 1, 1
        elif token in "?*+" or token[0] == "~":
            product //= ways
            ways = _repeated(token, ways)
            product *= ways
        else:
            ways = 1
        if sums + product > MAX_UNFOLDED:
            break
    return sums + product


def _repeated(token: str, ways: int) -> int:
    if token[0] != "~":
        return {"?": ways + 1, "*": 2, "+": 1}[token]
    times = [int(number[:6]) for number in re.findall(r"\d+", token)]
    return sum(ways**n for n in range(times[0], times[-1] + 1)) if times[-1] < _FACTORED else 2 * ways


# ---------------------------------------------------------------------------------------------------- the normal form


def _with_ignored(
    rules: Sequence[Rule], start: str, terminals: Sequence[str], ignored: Sequence[str]
) -> tuple[list[Rule], str]:
    """The rules, and their first symbol, with what is ignored before every terminal and at the end."""
    if not ignored:
        return list(rules), start
    some, top = "(ignored)", "(text)"
    known = set(terminals)
    out = [(head, tuple(f"({one})" if one in known else one for one in body)) for head, body in rules]
    for name in terminals:
        out += [(f"({name})", (name,)), (f"({name})", (some, name))]
    for name in ignored:
        out += [(some, (name,)), (some, (some, name))]
    return [*out, (top, (start,)), (top, (start, some))], top


def _binary(rules: Iterable[Rule]) -> list[Rule]:
    """The same language by rules of at most two symbols; the ends of long rules are shared."""
    out = dict[Rule, None]()
    for head, body in rules:
        while len(body) > 2:
            rest = " ".join(body[1:])
            out[head, (body[0], rest)] = None
            head, body = rest, body[1:]
        out[head, body] = None
    return list(out)


def _reached(rules: Sequence[Rule], top: str) -> list[Rule]:
    """Those that a text can use."""
    bodies = dict[str, list[tuple[str, ...]]]()
    for head, body in rules:
        bodies.setdefault(head, []).append(body)
    seen, todo = {top}, [top]
    while todo:
        new = {one for body in bodies.get(todo.pop(), ()) for one in body} - seen
        seen |= new
        todo += new
    return [rule for rule in rules if rule[0] in seen]


def _numbered(rules: Sequence[Rule], names: Sequence[str], top: str, lexer: Lexer) -> Rules:
    """Without empty rules, and rules of one symbol followed to their ends."""
    empty, before = set[str](), -1
    while before != len(empty):
        before = len(empty)
        empty |= {head for head, body in rules if all(one in empty for one in body)}
    number = {name: i for i, name in enumerate(names)}
    below, pairs = [{i} for i in range(len(names))], dict[tuple[int, int], set[int]]()
    for head, body in rules:
        a, ids = number[head], [number[one] for one in body]
        if len(ids) == 1:
            below[a].add(ids[0])
        elif ids:
            pairs.setdefault((ids[0], ids[1]), set()).add(a)
            below[a] |= {ids[1 - i] for i in (0, 1) if body[i] in empty}
    down = _closed(below)
    above = [[a for a in range(len(names)) if i in down[a]] for i in range(len(names))]
    lefts = dict[int, list[tuple[int, tuple[int, ...], tuple[int, ...]]]]()
    for (b, c), heads in sorted(pairs.items()):
        every = sorted({one for a in heads for one in above[a]})
        lefts.setdefault(b, []).append((c, tuple(sorted(heads)), tuple(every)))
    return Rules(
        lexer,
        len(names),
        number[top],
        top in empty,
        tuple((b, tuple(found)) for b, found in lefts.items()),
        tuple(tuple(sorted(one)) for one in down),
    )


def _closed(below: Sequence[set[int]]) -> list[set[int]]:
    """All that each number leads to, itself too."""
    out = list[set[int]]()
    for first in range(len(below)):
        seen, todo = {first}, [first]
        while todo:
            new = below[todo.pop()] - seen
            seen |= new
            todo += new
        out.append(seen)
    return out


# ----------------------------------------------------------------------------------------------------------- terminals


def lexer(patterns: Mapping[str, Any]) -> Lexer:
    """The automata of lark's patterns. Errors: ``ValueError`` for what no automaton over bytes has, or too many."""
    tables, accepts, start = list[NDArray[np.int64]](), list[NDArray[np.bool_]](), list[int]()
    for name, pattern in patterns.items():
        one, first = _automaton(name, pattern), sum(map(len, tables))
        start.append(first)
        tables.append(np.where(one.next < 0, -1, one.next.astype(np.int64) + first))
        accepts.append(one.accept)
        if first + len(one.next) > MAX_STATES:
            raise ValueError(f"the terminals up to {name} need more than {MAX_STATES} states: make patterns shorter")
    columns, kind = np.unique(np.concatenate(tables), axis=1, return_inverse=True)
    kind, read = kind.reshape(-1), (columns >= 0).any(0)
    number = np.where(read, np.cumsum(read) - 1, -1)[kind]
    table = tuple(tuple(row) for row in columns[:, read].tolist())
    ends = [sum(1 << (at + int(s)) for s in accept.nonzero()[0]) for at, accept in zip(start, accepts, strict=True)]
    return Lexer(tuple(number.tolist()), table, sum(1 << one for one in start), tuple(ends))


def _automaton(name: str, pattern: Any) -> Bytes:
    """The automaton of a pattern of lark's."""
    if pattern.type == "str":
        if "i" not in pattern.flags:
            return of_texts([pattern.value])
        return of_pattern("(?i:" + "".join(rf"\x{{{ord(letter):x}}}" for letter in pattern.value) + ")")
    expression = str(pattern.to_regexp())
    _check_expression(name, expression)
    return of_pattern(expression)


def _check_expression(name: str, expression: str) -> None:
    """Refuse what means something else beside other terminals, or to another library of regular expressions."""
    parser: Any = importlib.import_module("re._parser")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # sets of sets, which Python reads as plain letters
        try:
            tree = parser.parse(expression)
        except FutureWarning as error:
            raise ValueError(f"terminal {name}: {expression[:80]!r}: {error}; put a backslash before it") from None
    if _has(tree, "POSSESSIVE_REPEAT", "ATOMIC_GROUP"):
        raise ValueError(f"terminal {name}: {expression[:80]!r} has a possessive repeat or an atomic group: write a+")
    if _has(tree, "AT", "ASSERT", "ASSERT_NOT"):
        raise ValueError(f"terminal {name}: {expression[:80]!r} looks at what stands beside it (^, $, \\b, (?=...))")


def _has(tree: Any, *kinds: str) -> bool:
    if isinstance(tree, str | int) or tree is None:
        return str(tree) in kinds
    return any(_has(part, *kinds) for part in tree)
