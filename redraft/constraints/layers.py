"""From an automaton, and what stands on a canvas, to layers of nodes: one for each position that is asked about.

Where every mask up to the last position asked about is asked about, nodes are the automaton's states. A mask among them
that is not may become any token, so that several states are possible behind it; there nodes are sets of states, and the
law is that of the positions asked about given that *some* tokens for the others make a text.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from redraft.constraints.automaton import EARLY, Automaton
from redraft.constraints.paths import Bools, Graph, Ints, Layer

MAX_SETS = 4_096
"""Sets of states in one layer."""

Tokens = Sequence[int | None]
"""What stands on positions; None and ``EARLY`` are masks."""


class ImpossibleError(ValueError):
    """Nothing can be written that satisfies the constraint."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no text satisfies the constraint any more: {reason}")


def layers(
    automaton: Automaton, tokens: Tokens, asked: Sequence[int], before: Bools, after: Bools
) -> tuple[list[Layer], int, Bools]:
    """Layers for the positions ``asked``, in order, of ``tokens``; the first node, and which of the last accept.

    ``before`` and ``after`` (Q,) bool are the states before all tokens and behind them that a text may have.

    Errors: ``ValueError`` if no text may have such tokens, or there are more than ``MAX_SETS`` sets of states.
    """
    for token in tokens[: asked[0]]:
        before = automaton.read(before, token)
    for token in reversed(tokens[asked[-1] + 1 :]):
        after = automaton.unread(after, token)
    gaps = [tokens[one + 1 : other] for one, other in pairwise(asked)]
    if not bool(before.any()) or not bool(after.any()):
        raise ImpossibleError("it contradicts the tokens on the canvas, which a callback wrote")
    if int(before.sum()) == 1 and not any(token in (None, EARLY) for gap in gaps for token in gap):
        size = len(automaton.next)
        onward = [_onward(automaton, gap) for gap in gaps]
        return [Layer(automaton.graph, one, size) for one in [*onward, None]], int(before.argmax()), after
    return _of_sets(automaton, gaps, before, after)


def _onward(automaton: Automaton, gap: Tokens) -> Ints | None:
    """Where given tokens lead each state, -1 if nowhere; None if there are none."""
    if not gap:
        return None
    states = np.arange(len(automaton.next))
    for token in gap:
        assert token is not None
        assert token != EARLY
        symbol = automaton.symbol[token]
        after = np.full(len(states), -1) if symbol < 0 else automaton.next[:, symbol]
        states = np.where(states < 0, -1, after[states])
    return states


def _of_sets(
    automaton: Automaton, gaps: Sequence[Tokens], before: Bools, after: Bools
) -> tuple[list[Layer], int, Bools]:
    """``layers`` whose nodes are sets of states, of those only from which a text can still be finished."""
    ends, enters = [after], list[Bools]()  # the states behind each position asked about, and before it
    for gap in [*reversed(gaps), None]:
        states = automaton.unread(ends[-1], None)
        enters.append(states)
        for token in reversed(gap or ()):
            states = automaton.unread(states, token)
        if gap is not None:
            ends.append(states)
    ends, enters = ends[::-1], enters[::-1]
    nodes, found = (before & enters[0])[None], list[Layer]()
    if not bool(nodes.any()):
        raise ImpossibleError("it contradicts the tokens on the canvas, which a callback wrote")
    for i, live in enumerate(ends):
        source, symbol, sets = _stepped(automaton, nodes, live)
        behind, target = _distinct(sets)
        onward = None
        if i < len(gaps):
            moved = behind
            for token in gaps[i]:
                moved = automaton.read(moved, token)
            following, onward = _distinct(moved & enters[i + 1])
        else:
            following = behind
        graph = Graph.of(len(nodes), len(behind), source, symbol, target)
        found.append(Layer(graph, onward, len(following)))
        nodes = following
    return found, 0, np.ones(len(nodes), np.bool_)


def _stepped(automaton: Automaton, nodes: Bools, live: Bools) -> tuple[Ints, Ints, Bools]:
    """For each node (N, Q) and symbol the ``live`` states it leads to, if any: numbers (E,) and sets (E, Q)."""
    graph, parts = automaton.graph, list[tuple[Ints, Ints, Bools]]()
    for number, states in enumerate(nodes):
        reached = np.zeros((automaton.next.shape[1], len(live)), np.bool_)
        edges = states[graph.source]
        reached[graph.symbol[edges], graph.target[edges]] = True
        reached &= live
        symbols = np.flatnonzero(reached.any(1))
        parts.append((np.full(len(symbols), number), symbols, reached[symbols]))
    source, symbol, sets = zip(*parts, strict=True)
    return np.concatenate(source), np.concatenate(symbol), np.concatenate(sets)


def _distinct(sets: Bools) -> tuple[Bools, Ints]:
    """The different rows, and the number of each row among them."""
    _, first, inverse = np.unique(np.packbits(sets, axis=1), axis=0, return_index=True, return_inverse=True)
    if len(first) > MAX_SETS:
        raise ValueError(
            f"positions asked about far apart, with masks between: {len(first)} sets of states, at most {MAX_SETS}; "
            "use a sampler that asks about all masks, 'low_confidence' say"
        )
    return sets[first], inverse.reshape(-1)
