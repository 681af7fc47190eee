"""The paths of texts through layers of nodes: what all of them weigh, a draw of one by its weight, the best of them.

A layer is a position that is asked about: from each of its nodes a symbol leads to a node behind it, and what is given
before the next such position leads on. A path weighs the product of its symbols' masses, and counts if it ends in an
accepting node. All is log, float64, nats: the tokens that a constraint wants may weigh far less than a float64 holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Groups:
    """Entries that share a key: ``order`` sorts them by it, and those of each of ``keys`` begin at ``starts``.

    ``number``: of the group of each entry, as sorted.
    """

    order: Ints
    starts: Ints
    keys: Ints
    number: Ints

    @classmethod
    def of(cls, key: Ints) -> "Groups":
        order = np.argsort(key, kind="stable")
        keys, starts, number = np.unique(key[order], return_index=True, return_inverse=True)
        return cls(order, starts, keys, number)

    def most(self, values: Floats, size: int) -> Floats:
        """The largest of each group, (size,); -inf for those without entries."""
        out = np.full(size, -np.inf)
        if len(values):
            out[self.keys] = np.maximum.reduceat(values[self.order], self.starts)
        return out

    def total(self, values: Floats, size: int) -> Floats:
        """log sum exp of each group, (size,); -inf for those without entries."""
        out = np.full(size, -np.inf)
        if len(values):
            ranked = values[self.order]
            base = finite(np.maximum.reduceat(ranked, self.starts))
            out[self.keys] = base + logged(np.add.reduceat(np.exp(ranked - base[self.number]), self.starts))
        return out


@dataclass(frozen=True)
class Graph:
    """Edges ``source``, ``symbol``, ``target`` (E,), sorted by source, from ``nodes`` to ``after`` others."""

    nodes: int
    after: int
    source: Ints
    symbol: Ints
    target: Ints
    begins: Ints
    by_source: Groups
    by_symbol: Groups
    by_target: Groups

    @classmethod
    def of(cls, nodes: int, after: int, source: Ints, symbol: Ints, target: Ints) -> "Graph":
        begins = np.searchsorted(source, np.arange(nodes + 1))
        groups = Groups.of(source), Groups.of(symbol), Groups.of(target)
        return cls(nodes, after, source, symbol, target, begins, *groups)


@dataclass(frozen=True)
class Layer:
    """A position asked about. ``onward``: the node of the next layer, which has ``nodes``, for each behind this.

    -1 of it is none, and None in its place each node itself.
    """

    graph: Graph
    onward: Ints | None
    nodes: int

    def pulled(self, weights: Floats) -> Floats:
        """Weights of the nodes behind this, those that the next layer's lead on from."""
        return weights if self.onward is None else np.append(weights, -np.inf)[self.onward]

    def pushed(self, weights: Floats) -> Floats:
        """Weights of the next layer's nodes, summed over the nodes behind this that lead to them."""
        return weights if self.onward is None else Groups.of(self.onward + 1).total(weights, self.nodes + 1)[1:]

    def values(self, mass: Floats, later: Floats) -> Floats:
        """What each edge weighs together with all that follows, (E,)."""
        return mass[self.graph.symbol] + self.pulled(later)[self.graph.target]


def backward(layers: Sequence[Layer], mass: Floats, accept: Bools, best: bool = False) -> list[Floats]:
    """b_i(q), log of the weight of all paths, or of the ``best``, from node q of layer i to an accepting one.

    b_n(q) = log 1[q accepts], b_i(q) = log sum_c exp(mass_i(c) + b_{i+1}(q c)), of ``mass`` (n, C).
    """
    found = [logged(accept)]
    for layer, weights in zip(reversed(layers), mass[::-1], strict=True):
        grouped = layer.graph.by_source
        found.append((grouped.most if best else grouped.total)(layer.values(weights, found[-1]), layer.graph.nodes))
    return found[::-1]


def multipliers(layers: Sequence[Layer], mass: Floats, later: Sequence[Floats], start: int) -> Floats:
    """log P(symbol c at i | the constraint) - mass_i(c), (n, C): by what the law of each position is multiplied.

    log sum_q exp(f_i(q) + b_{i+1}(q c)) - log P(the constraint), with ``later`` = b and f as b, from node ``start``.
    """
    total, found = later[0][start], list[Floats]()
    here = np.full(layers[0].graph.nodes, -np.inf)
    here[start] = 0.0
    for layer, weights, after in zip(layers, mass, later[1:], strict=True):
        graph = layer.graph
        reached = here[graph.source]
        found.append(graph.by_symbol.total(reached + layer.pulled(after)[graph.target], mass.shape[1]) - total)
        here = layer.pushed(graph.by_target.total(reached + weights[graph.symbol], graph.after))
    return np.stack(found)


def drawn(layers: Sequence[Layer], mass: Floats, later: Sequence[Floats], start: int, u: Floats) -> Ints:
    """The symbols of one path, drawn from left to right by its weight given the constraint, (n,); ``u`` (n,) uniform.

    P(c at i | node q) = exp(mass_i(c) + b_{i+1}(q c) - b_i(q)), with ``later`` = b.
    """
    node, found = start, list[int]()
    for layer, weights, after, number in zip(layers, mass, later[1:], u, strict=True):
        edges = _edges(layer, node)
        value = layer.values(weights, after)[edges]
        node, symbol = _along(layer, edges.start + pick(np.exp(value - value.max()), number))
        found.append(symbol)
    return np.array(found)


def best(layers: Sequence[Layer], mass: Floats, later: Sequence[Floats], start: int, ids: Ints) -> Ints:
    """The symbols of the heaviest path, (n,), with ``later`` = b of the best; of equals, that of the lowest id.

    ``ids`` (n, C): the id that each symbol stands for at each position; ties are settled from left to right.
    """
    node, found = start, list[int]()
    for layer, weights, after, names in zip(layers, mass, later[1:], ids, strict=True):
        edges = _edges(layer, node)
        value = layer.values(weights, after)[edges]
        equal = (value == value.max()).nonzero()[0]
        lowest = equal[names[layer.graph.symbol[edges][equal]].argmin()]
        node, symbol = _along(layer, edges.start + int(lowest))
        found.append(symbol)
    return np.array(found)


def pick(weights: Floats, u: float) -> int:
    """The inverse of the distribution function at ``u``, of weights (n,), not normalised."""
    if len(weights) == 1:
        return 0
    cumulative = weights.cumsum()
    chosen = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    return min(chosen, int(np.searchsorted(cumulative, cumulative[-1])))  # u c may round up to c: not beyond it


def logged(values: Floats | Bools) -> Floats:
    """log, -inf of 0; warned of unless ``quietly``."""
    return np.log(values, dtype=np.float64)


def finite(values: Floats) -> Floats:
    """The same, but for -inf the lowest number."""
    return np.maximum(values, _LOWEST)


def quietly() -> np.errstate:
    """In which the logarithm of 0 is -inf."""
    return np.errstate(divide="ignore")


_LOWEST = np.finfo(np.float64).min


def _edges(layer: Layer, node: int) -> slice:
    return slice(int(layer.graph.begins[node]), int(layer.graph.begins[node + 1]))


def _along(layer: Layer, edge: int) -> tuple[int, int]:
    """The node of the next layer that an edge leads to, and its symbol."""
    behind = int(layer.graph.target[edge])
    return int(behind if layer.onward is None else layer.onward[behind]), int(layer.graph.symbol[edge])
