"""Whether a grammar has a text among all that a partial text can become, and which tokens leave it one.

A partial text of n slots is an automaton without cycles: node after node of the bytes that its tokens spell, from each
slot's left boundary to its right one. Its language and the grammar's have a text in common iff the grammar's first
symbol spans a path from end to end (Bar-Hillel, Perles and Shamir 1961); the spans of all symbols are found from right
to left, as sets of right ends. Every slot stands for one token, so that what is found fits the room there is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from redraft.constraints.rules import Rules

STOP = 0
"""The kind of the token that ends a text."""
KEPT = 256  # charts
REMEMBERED = 200_000  # steps of the terminals' automata


@dataclass(frozen=True)
class Slot:
    """What one slot may hold: ``kinds`` of tokens; nodes 0 (its right boundary) to ``size`` (its left one).

    ``arcs[u]``: the nodes right of u, each with a number for the classes of bytes that lead there; ``whole``: the kind
    that is spelt by reaching u and then reading a class to the right boundary.
    """

    kinds: frozenset[int]
    size: int
    arcs: tuple[tuple[tuple[int, int], ...], ...]
    whole: dict[tuple[int, int], int]


@dataclass
class Lattice:
    """Partial texts of one grammar. ``strings[k]`` are the classes of bytes that a token of kind k spells."""

    rules: Rules
    strings: Sequence[tuple[int, ...]]
    slots: dict[frozenset[int], Slot] = field(default_factory=dict[frozenset[int], Slot])
    charts: dict[tuple[frozenset[int], ...], "Chart"] = field(default_factory=dict)
    sets: dict[tuple[int, ...], int] = field(default_factory=dict[tuple[int, ...], int])
    classes: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    after: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    steps: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    back: dict[tuple[int, int, int], tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    last: "Chart | None" = None

    def slot(self, kinds: frozenset[int]) -> Slot:
        """A slot for these kinds of tokens, the same object for the same kinds."""
        if kinds not in self.slots:
            self.slots[kinds] = self._slot(kinds)
        return self.slots[kinds]

    def _slot(self, kinds: frozenset[int]) -> Slot:
        """The tree of their bytes; a node numbers higher than those right of it."""
        below = list[dict[int, int]]([{}])
        ends, whole = list[set[int]]([set()]), dict[tuple[int, int], int]()
        for kind in sorted(kinds - {STOP}):
            node, string = 0, self.strings[kind]
            for one in string[:-1]:
                if one not in below[node]:
                    below[node][one] = len(below)
                    below.append({})
                    ends.append(set())
                node = below[node][one]
            ends[node].add(string[-1])
            whole[node, string[-1]] = kind
        size = len(below)
        arcs = [list[tuple[int, int]]() for _ in range(size + 1)]
        for node, (inner, last) in enumerate(zip(below, ends, strict=True)):  # the first node is the left boundary
            arcs[size - node] += [(size - other, self._set((one,))) for one, other in inner.items()]
            if last:
                arcs[size - node].append((0, self._set(tuple(sorted(last)))))
        return Slot(
            kinds, size, tuple(map(tuple, arcs)), {(size - node, one): kind for (node, one), kind in whole.items()}
        )

    def _set(self, classes: tuple[int, ...]) -> int:
        """A number for a set of classes of bytes."""
        if classes not in self.sets:
            self.sets[classes] = len(self.classes)
            self.classes.append(classes)
        return self.sets[classes]

    def step(self, states: int, which: int) -> int:
        """The states of the terminals' automata after any class of a set; states are bits."""
        key = states, which
        if key not in self.steps:
            if len(self.steps) > REMEMBERED:
                self.steps.clear()
            self.steps[key] = sum_of(self._from(state, which) for state in bits(states))
        return self.steps[key]

    def _from(self, state: int, which: int) -> int:
        key = state, which
        if key not in self.after:
            row = self.rules.lexer.after[state]
            self.after[key] = sum_of(1 << row[one] for one in self.classes[which] if row[one] >= 0)
        return self.after[key]

    def unstep(self, states: int, which: int, into: int) -> tuple[int, tuple[int, ...]]:
        """Those of ``states`` that a class of the set leads into some of ``into``, and the classes that do."""
        key = states, which, into
        if key not in self.back:
            if len(self.back) > REMEMBERED:
                self.back.clear()
            pairs = [
                (state, one)
                for state in bits(states)
                if self._from(state, which) & into
                for one in self.classes[which]
                if (new := self.rules.lexer.after[state][one]) >= 0 and into >> new & 1
            ]
            self.back[key] = sum_of(1 << state for state, _ in pairs), tuple(sorted({one for _, one in pairs}))
        return self.back[key]

    def chart(self, text: Sequence[frozenset[int]]) -> "Chart":
        """The chart of a partial text, each slot given by the kinds it may hold."""
        key = tuple(text)
        found = self.charts.pop(key, None)
        if found is None:
            found = Chart(self, tuple(map(self.slot, key)), self.last)
        self.charts[key] = self.last = found
        if len(self.charts) > KEPT:
            self.charts.pop(next(iter(self.charts)))
        return found


@dataclass
class Run:
    """All terminals read from one node: the ``states`` at each node right of it, and where each terminal ends."""

    states: dict[int, int]
    ends: list[tuple[int, int]]


class Chart:
    """What each symbol spans in one partial text, and hence whether it can be completed and by which tokens.

    Nodes are numbered from the right, so that a chart shares what is right of a change with the chart it differs from;
    a set of nodes is an int, bit u for node u.
    """

    def __init__(self, lattice: Lattice, slots: tuple[Slot, ...], like: "Chart | None" = None) -> None:
        self.lattice, self.slots = lattice, slots
        same = 0
        if like is not None:
            while same < min(len(slots), len(like.slots)) and slots[-1 - same] is like.slots[-1 - same]:
                same += 1
        bounds = [0]  # the boundary right of each slot, from the last slot on
        for slot in reversed(slots):
            bounds.append(bounds[-1] + slot.size)
        self.bounds, self.first = bounds, bounds[-1]
        self.arcs: list[list[tuple[int, int]]] = [[]]
        self.runs: list[Run | None] = [None] * (self.first + 1)
        self.spans: list[list[int] | None] = [None] * (self.first + 1)
        if like is not None and same:
            kept = bounds[same] + 1
            self.arcs = like.arcs[:kept]
            self.runs[:kept], self.spans[:kept] = like.runs[:kept], like.spans[:kept]
        for at in range(same, len(slots)):
            base, slot = bounds[at], slots[-1 - at]
            self.arcs += [[(base + right, which) for right, which in slot.arcs[u]] for u in range(1, slot.size + 1)]
        self._fill()

    # ------------------------------------------------------------------------------------------------- bottom up

    def _fill(self) -> None:
        starts = 1 << self.first
        todo = starts
        new = list[int]()
        while todo:  # where terminals may begin: at the left end, and where others end
            node = todo.bit_length() - 1
            run = self.runs[node]
            if run is None:
                run = self.runs[node] = self._run(node)
            if self.spans[node] is None:
                new.append(node)
            ends = sum_of(found for _, found in run.ends)
            todo = (todo | ends) & ((1 << node) - 1)
            starts |= ends
        for node in reversed(new):
            self.spans[node] = self._spans(node)
        self.starts = starts

    def _run(self, node: int) -> Run:
        lexer, lattice = self.lattice.rules.lexer, self.lattice
        states, todo = {node: lexer.start}, 1 << node
        while todo:
            u = todo.bit_length() - 1
            todo ^= 1 << u
            for right, which in self.arcs[u]:
                after = lattice.step(states[u], which)
                if after:
                    states[right] = states.get(right, 0) | after
                    todo |= 1 << right
        ends = dict[int, int]()
        for u, here in states.items():
            if u != node and here & lexer.last:
                for terminal, last in enumerate(lexer.ends):
                    if here & last:
                        ends[terminal] = ends.get(terminal, 0) | 1 << u
        return Run(states, sorted(ends.items()))

    def _spans(self, node: int) -> list[int]:
        """For each symbol the right ends of what it spans from a node."""
        rules, run = self.lattice.rules, self.runs[node]
        assert run is not None
        row, live = [0] * rules.size, 0
        for terminal, ends in run.ends:
            live |= ends
            for above in rules.up[terminal]:
                row[above] |= ends
        while live:
            middle = live.bit_length() - 1
            bit = 1 << middle
            live ^= bit
            other = self.spans[middle]
            if other is None:
                continue
            for b, pairs in rules.lefts:
                if row[b] & bit:
                    for c, _, heads in pairs:
                        if found := other[c]:
                            live |= found
                            for head in heads:
                                row[head] |= found
        return row

    @cached_property
    def accepted(self) -> int:
        """The nodes at which a text can end: nothing but stop tokens can stand right of one."""
        ends, bounds = 1, self.bounds
        for at, slot in enumerate(reversed(self.slots)):
            if STOP not in slot.kinds:
                break
            ends |= 1 << bounds[at + 1]
        whole = self.spans[self.first]
        assert whole is not None
        empty = 1 << self.first if self.lattice.rules.empty else 0
        return ends & (whole[self.lattice.rules.start] | empty)

    def __bool__(self) -> bool:
        """Whether some text of the grammar can be made of it."""
        return self.accepted != 0

    # -------------------------------------------------------------------------------------------------- top down

    @cached_property
    def viable(self) -> list[frozenset[int]]:
        """For each slot the kinds of tokens with which a text can be made of the rest."""
        found = [set[int]() for _ in self.slots]
        slot_of = {
            self.bounds[-1 - at] - u: (at, slot.size - u)
            for at, slot in enumerate(self.slots)
            for u in range(slot.size)
        }
        marks = self._marks()
        for node in nodes(self.starts):
            mine = marks.get(node)
            if mine is not None:
                for u, one in self._used(node, mine):
                    at, local = slot_of[u]
                    if (kind := self.slots[at].whole.get((local, one))) is not None:
                        found[at].add(kind)
        for at in range(len(self.slots)):
            if self.accepted >> self.bounds[len(self.slots) - at]:
                found[at].add(STOP)
        return list(map(frozenset, found))

    def _marks(self) -> dict[int, list[int]]:
        """For each node and symbol the right ends of those spans that a whole text is made of."""
        rules = self.lattice.rules
        marks = dict[int, list[int]]()

        def mark(node: int, symbol: int, ends: int) -> None:
            row, mine = self.spans[node], marks.setdefault(node, [0] * rules.size)
            assert row is not None
            for below in rules.down[symbol]:
                mine[below] |= ends & row[below]

        mark(self.first, rules.start, self.accepted)
        for node in nodes(self.starts):
            mine, row = marks.get(node), self.spans[node]
            if mine is None:
                continue
            assert row is not None
            live = sum_of(row[b] for b, _ in rules.lefts)
            while live:  # the nearest ends last: what they are the left part of is marked by then
                bit = live & -live
                live ^= bit
                middle = bit.bit_length() - 1
                other = self.spans[middle]
                if other is None:
                    continue
                for b, pairs in rules.lefts:
                    if row[b] & bit:
                        for c, heads, _ in pairs:
                            if other[c] and (ends := other[c] & sum_of(mine[head] for head in heads)):
                                mark(node, b, bit)
                                mark(middle, c, ends)
        return marks

    def _used(self, node: int, marks: list[int]) -> Iterable[tuple[int, int]]:
        """The arcs into boundaries that marked terminals from a node are read along: left node and class."""
        lexer, run = self.lattice.rules.lexer, self.runs[node]
        assert run is not None
        into = dict[int, int]()
        for terminal, _ in run.ends:
            for u in bits(marks[terminal]):
                into[u] = into.get(u, 0) | lexer.ends[terminal]
        if not into:
            return
        boundaries = self._boundaries
        for u in sorted(run.states):
            states, wanted = run.states[u], into.get(u, 0) if u != node else 0
            for right, which in self.arcs[u]:
                if into.get(right):
                    before, classes = self.lattice.unstep(states, which, into[right])
                    wanted |= before
                    if right in boundaries:
                        yield from ((u, one) for one in classes)
            if wanted:
                into[u] = wanted

    @cached_property
    def _boundaries(self) -> frozenset[int]:
        return frozenset(self.bounds)


def bits(number: int) -> list[int]:
    """The numbers of the bits that are set, from the lowest on."""
    out = list[int]()
    while number:
        low = number & -number
        out.append(low.bit_length() - 1)
        number ^= low
    return out


def nodes(number: int) -> list[int]:
    """The same from the highest on: from left to right."""
    return bits(number)[::-1]


def sum_of(sets: Iterable[int]) -> int:
    """The union of sets of bits."""
    out = 0
    for one in sets:
        out |= one
    return out
