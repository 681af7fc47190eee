"""Deterministic automata over token ids, in which ids that act alike are one symbol.

Every state of a text over 126,000 ids treats most of them alike: as columns of symbols the automaton is small, and what
is done per id is done once, when the law of a position is summed over each symbol's ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from redraft.constraints.bytewise import Bytes
from redraft.constraints.paths import Bools, Graph, Ints
from redraft.constraints.pieces import Pieces

MAX_STATES = 4_000
MAX_EDGES = 4_000_000
"""States times symbols."""

EARLY = -1
"""In place of a token: a mask that may become any but the one that ends a text. None is a mask that may end it too."""


@dataclass(frozen=True)
class Automaton:
    """``next`` (Q, C) int: the state that a symbol leads to, -1 for none; 0 is the first; ``accept`` (Q,) bool.

    ``symbol`` (V,) int: the symbol of each id, -1 for one that no text has. From every state some text can be finished,
    if by ids that are ``banned``: given tokens may be those, masks do not become them. ``stop`` ends a text.
    """

    next: Ints
    accept: Bools
    symbol: Ints
    banned: tuple[int, ...] = ()
    stop: int | None = None

    @cached_property
    def graph(self) -> Graph:
        """The edges of the states."""
        source, symbol = (self.next >= 0).nonzero()
        return Graph.of(len(self.next), len(self.next), source, symbol, self.next[source, symbol])

    @cached_property
    def links(self) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints]]:
        """Pairs of states that a mask leads from and to; and one that is ``EARLY``."""
        usable, ids = np.zeros(self.next.shape[1] + 1, np.bool_), self.symbol.copy()  # the last is for -1
        ids[list(self.banned)] = -1
        usable[ids] = True
        early = usable.copy()
        if self.stop is not None:
            early[self.symbol[self.stop]] = False  # a symbol that no other id has
        return self._links(usable), self._links(early)

    def _links(self, usable: Bools) -> tuple[Ints, Ints]:
        """Pairs of states that symbols lead from and to."""
        some = usable[self.graph.symbol]
        pairs = np.unique(self.graph.source[some] * len(self.next) + self.graph.target[some])
        return pairs // len(self.next), pairs % len(self.next)

    @cached_property
    def ids(self) -> tuple[Ints, Ints, Ints]:
        """The ids that have a symbol, by symbol and in order; where each symbol's begin, (C + 1,); their symbols."""
        order = np.argsort(self.symbol, kind="stable")
        order = order[np.searchsorted(self.symbol[order], 0) :]
        return order, np.searchsorted(self.symbol[order], np.arange(self.next.shape[1] + 1)), self.symbol[order]

    def read(self, states: Bools, token: int | None) -> Bools:
        """The states after a token, or after a mask (None, ``EARLY``); of sets of states, (..., Q)."""
        out = np.zeros_like(states)
        if token is None or token == EARLY:
            source, target = self.links[token == EARLY]
            rows = states.reshape(-1, states.shape[-1])
            at, which = rows[:, source].nonzero()
            out.reshape(rows.shape)[at, target[which]] = True
        elif self.symbol[token] >= 0:
            after = self.next[:, self.symbol[token]]
            going = (after >= 0).nonzero()[0]
            *where, which = states[..., going].nonzero()
            out[(*where, after[going][which])] = True
        return out

    def unread(self, states: Bools, token: int | None) -> Bools:
        """The states (Q,) from which a token, or a mask (None, ``EARLY``), leads into one of those."""
        if token is None or token == EARLY:
            source, target = self.links[token == EARLY]
            out = np.zeros_like(states)
            out[source[states[target]]] = True
            return out
        if self.symbol[token] < 0:
            return np.zeros_like(states)
        after = self.next[:, self.symbol[token]]
        return (after >= 0) & states[after]

    def least(self) -> int:
        """The length of the shortest text, in tokens; of an automaton without bans."""
        assert not self.banned
        reached, length = np.arange(len(self.next)) == 0, 0
        while not bool((reached & self.accept).any()):
            reached, length = self.read(reached, None) | reached, length + 1
        return length

    def ending(self, stop: int) -> "Automaton":
        """The same texts, each followed by any number of ``stop``, which is no part of a text itself."""
        states, symbols = self.next.shape
        table = np.full((states + 1, symbols + 1), -1, np.intp)
        table[:states, :symbols] = self.next
        table[:states, symbols] = np.where(self.accept, states, -1)
        table[states, symbols] = states
        symbol = self.symbol.copy()
        symbol[stop] = symbols
        return replace(trimmed(table, np.append(self.accept, True), symbol), stop=stop)

    def over(self, size: int, mask_id: int | None) -> "Automaton":
        """The same over ``size`` ids, without the mask."""
        symbol = np.full(size, -1, np.intp)
        symbol[: len(self.symbol)] = self.symbol[:size]
        if mask_id is not None and mask_id < size:
            symbol[mask_id] = -1
        return trimmed(self.next, self.accept, symbol)


def of_edges(states: int, size: int, edges: Sequence[tuple[int, int, int]], accept: Sequence[int]) -> Automaton:
    """The automaton with edges (source, id, target) among ``states``, of which 0 is the first, over ``size`` ids.

    Errors: ``ValueError`` for two edges of one source and id, numbers out of range, an automaton that accepts nothing.
    """
    table = np.full((states, size), -1, np.intp)
    for source, token, target in edges:
        if not (0 <= source < states and 0 <= target < states and 0 <= token < size):
            raise ValueError(f"edge {(source, token, target)}: states run to {states - 1}, ids to {size - 1}")
        if table[source, token] not in (-1, target):
            raise ValueError(f"two edges from state {source} with id {token}: a text must have one path")
        table[source, token] = target
    accepting = np.zeros(states, np.bool_)
    accepting[list(accept)] = True
    return trimmed(table, accepting, np.arange(size))


def of_bytes(automaton: Bytes, pieces: Pieces) -> Automaton:
    """The automaton over ids of one over bytes: an id leads where the bytes of its piece lead.

    Errors: ``ValueError`` for a language without a text, or with too large an automaton.
    """
    if pieces.first == pieces.rest:
        walks, starts = [_Walk(automaton, pieces.rest)], [(0, 0)]
    else:
        walks, starts = [_Walk(automaton, pieces.rest), _Walk(automaton, pieces.first)], [(1, 0)]
    number, todo = {starts[0]: 0}, list(starts)
    hashed, rows = np.zeros(len(pieces.rest), np.uint64), list[tuple[int, int]]()
    for which, state in todo:  # it grows
        rows.append((which, state))
        after = walks[which].after(state)
        for one in np.unique(after[after >= 0]).tolist():
            if (0, one) not in number:
                number[0, one] = len(number)
                todo.append((0, one))
        hashed = _mixed(hashed ^ (after + 1).astype(np.uint64))
        _check_size(len(number), 0)
    _, chosen, symbol = np.unique(hashed, return_index=True, return_inverse=True)  # ids that lead alike from all states
    _check_size(len(rows), len(chosen))
    table = np.stack([walks[which].after(state, chosen) for which, state in rows])
    renumber = np.full(len(automaton.next) + 1, -1, np.intp)
    for (which, state), new in number.items():
        if which == 0:
            renumber[state] = new
    accept = np.array([automaton.accept[state] for _, state in rows])
    return trimmed(renumber[table], accept, symbol)


class _Walk:
    """Where the pieces of all ids lead from a state."""

    def __init__(self, automaton: Bytes, pieces: Sequence[bytes | None]) -> None:
        self.next = automaton.next
        lengths = np.array([-1 if piece is None else len(piece) for piece in pieces])
        self.lengths = lengths
        self.bytes = np.frombuffer(b"".join(piece or b"" for piece in pieces) + b"\0", np.uint8)
        self.begins = np.cumsum(np.maximum(lengths, 0)) - np.maximum(lengths, 0)

    def after(self, state: int, ids: Ints | None = None) -> Ints:
        """The states over bytes that ids, all unless given, lead to, -1 for none."""
        lengths = self.lengths if ids is None else self.lengths[ids]
        begins = self.begins if ids is None else self.begins[ids]
        out = np.where(lengths < 0, -1, state)
        alive, at = (lengths > 0).nonzero()[0], 0
        while len(alive):
            after = self.next[out[alive], self.bytes[begins[alive] + at]]
            out[alive] = after
            at += 1
            alive = alive[(after >= 0) & (lengths[alive] > at)]
        return out


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit words that scatters neighbours."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def trimmed(table: Ints, accept: Bools, symbol: Ints) -> Automaton:
    """The same language by the states that can be reached and left for its end, and the fewest symbols.

    Errors: ``ValueError`` for a language without a text.
    """
    used = np.unique(symbol[symbol >= 0])
    table = np.where(np.isin(np.arange(table.shape[1]), used), table, -1)
    source, which = (table >= 0).nonzero()
    source, target = np.divmod(np.unique(source * len(table) + table[source, which]), len(table))
    live = _closure(np.arange(len(table)) == 0, source, target) & _closure(accept, target, source)
    if not live[0]:
        raise ValueError("no text over these tokens satisfies the constraint, of whatever length: ask for another")
    new = np.where(live, np.cumsum(live) - 1, -1)
    table = np.where(table[live] < 0, -1, new[table[live]])
    columns, inverse = np.unique(table, axis=1, return_inverse=True)
    inverse, none = inverse.reshape(-1), (columns < 0).all(0)
    number = np.where(none, -1, np.cumsum(~none) - 1)[inverse]
    kept = columns[:, ~none].astype(np.intp)
    return Automaton(np.ascontiguousarray(kept), accept[live], np.append(number, -1)[symbol])


def _closure(states: Bools, source: Ints, target: Ints) -> Bools:
    """All states that edges lead to from those, in any number of steps."""
    while True:
        more = states.copy()
        more[target[states[source]]] = True
        if bool((more == states).all()):
            return states
        states = more


def _check_size(states: int, symbols: int) -> None:
    if states > MAX_STATES or states * symbols > MAX_EDGES:
        raise ValueError(
            f"the constraint needs {states} states of {symbols} symbols over these tokens: at most {MAX_STATES} "
            f"states, and {MAX_EDGES} of both multiplied; ask for less, or for parts one after the other"
        )
