"""Regular constraints on the texts of a canvas: exact for the law that a model gives, whatever is written first.

The model says of each position what it holds, p_i, as if positions were independent. Given that the whole text is one
of a regular language, their joint law is prod_i p_i(x_i) 1[x in the language] / P(language): its marginals, draws from
it and its likeliest text are sums, draws and maxima over paths of an automaton (``paths``). Any part of a text drawn so
may be written, and the rest drawn again: some text stays possible.

The text is what stands from a row's first free position to its last, given tokens between included. With a ``stop``
token it may end before that, and ``stop`` fills what is left.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redraft.constraints.automaton import EARLY, Automaton
from redraft.constraints.layers import ImpossibleError, layers
from redraft.constraints.paths import (
    Bools,
    Floats,
    Ints,
    Layer,
    backward,
    best,
    drawn,
    finite,
    logged,
    multipliers,
    pick,
    quietly,
)
from redraft.processes import Process, absorbing
from redraft.randomness import inverse_cdf, rand
from redraft.sampling.contract import Draw
from redraft.sampling.law import Law


@dataclass(frozen=True)
class Regular:
    """The texts that an automaton over ids accepts. Pass it to ``sample`` as ``constraint``."""

    automaton: Automaton
    _bound: dict[tuple[int, int, int | None, tuple[int, ...]], Automaton] = field(
        default_factory=dict[tuple[int, int, int | None, tuple[int, ...]], Automaton], repr=False, compare=False
    )

    def bind(self, process: Process, ids: Tensor, frozen: Tensor, stop: int | None, law: Law | None = None) -> "Bound":
        """The constraint on rows of one shape: ``ids`` (B, L), of which ``frozen`` are given.

        No mask becomes a token that ``law`` bans, nor ``stop`` before its time, whether or not it is asked about.

        Errors: ``ValueError`` if there is no such text in the room that is free, or amid the tokens that are given.
        """
        rows, (banned, earliest) = list[tuple[Part, ...]](), ruled_out(law, len(ids))
        for row, known, first in zip(ids, frozen, earliest, strict=True):
            free = (~known).nonzero().flatten().tolist()
            spans = [(free[0], free[-1] + 1)] if free else []
            rows.append(tuple(self.part(process, row, known, span, stop, banned, first) for span in spans))
        return Bound(mask_of(process), tuple(rows))

    def part(
        self,
        process: Process,
        ids: Tensor,
        frozen: Tensor,
        span: tuple[int, int],
        stop: int | None,
        banned: tuple[int, ...] = (),
        earliest: int = 0,
    ) -> "Part":
        """The constraint on the positions of a ``span`` of one row (L,), without the ``banned`` ids, and ``stop`` not
        before the position ``earliest``. Errors: as ``bind``."""
        mask_id = mask_of(process)
        automaton = self._over(process.K, mask_id, stop, banned)
        states = len(automaton.next)
        part = Part(automaton, *span, np.arange(states) == 0, automaton.accept, earliest)
        row = torch.where(frozen, ids, mask_id).cpu().numpy()
        if part.possible(row, mask_id):
            return part
        room = span[1] - span[0]
        for asked, other in (
            (f"the banned tokens {list(banned)}", replace(part, automaton=replace(automaton, banned=()))),
            ("a stop token before min_length", replace(part, earliest=0)),
            (
                "banned tokens or a stop token before min_length",
                replace(part, earliest=0, automaton=replace(automaton, banned=())),
            ),
        ):
            if other.possible(row, mask_id):
                raise ValueError(
                    f"no text of {room} tokens satisfies the constraint without {asked}: allow them, or more room"
                )
        raise self._infeasible(int((~frozen[slice(*span)]).sum()), room, stop)

    def _over(self, size: int, mask_id: int, stop: int | None, banned: tuple[int, ...]) -> Automaton:
        """The automaton over a model's ids, its texts ended by ``stop``, and masks never becoming ``banned``."""
        key = size, mask_id, stop, banned
        if key not in self._bound:
            if stop is not None and not 0 <= stop < size:
                raise ValueError(f"stop={stop} is no token: ids run from 0 to {size - 1}")
            made = self.automaton.over(size, mask_id)
            self._bound[key] = replace(made if stop is None else made.ending(stop), banned=banned)
        return self._bound[key]

    def _infeasible(self, free: int, room: int, stop: int | None) -> ValueError:
        least = self.automaton.least()
        if least > room:
            given = "" if free == room else f" of which {room - free} hold given tokens"
            return ValueError(
                f"the constraint needs at least {least} tokens, and its text has {room} positions{given}: ask for more"
            )
        if free < room:
            return ValueError(
                f"no text of {room} tokens satisfies the constraint with the {room - free} given between its first "
                "free position and its last: give others, or more room"
            )
        ends = "" if stop is not None else ", or pass stop, the token that fills what is left behind a shorter one"
        return ValueError(
            f"no text of exactly {room} tokens satisfies the constraint, whose shortest has {least}: pass another "
            f"length{ends}"
        )


def mask_of(process: Process) -> int:
    """The mask. Errors: ``ValueError`` for a process that has none to write over."""
    if not absorbing(process) or process.mask_id is None:
        raise ValueError(f"a constraint with a {process.name} process: it needs masks, and tokens that stay as written")
    return process.mask_id


def ruled_out(law: Law | None, rows: int) -> tuple[tuple[int, ...], list[int]]:
    """The ids that a law bans, and, of each row, the first position of the canvas where it lets a text end."""
    banned = () if law is None or law.banned is None else tuple(law.banned.tolist())
    return banned, [0] * rows if law is None or law.earliest is None else law.earliest.tolist()


@dataclass(frozen=True)
class Part:
    """The positions ``start`` to ``stop`` of a row. ``before`` and ``after`` (Q,) bool: the states in which they may be
    entered, and left so that what stands behind them can follow; masks before ``earliest`` do not end the text."""

    automaton: Automaton
    start: int
    stop: int
    before: Bools
    after: Bools
    earliest: int = 0

    def tokens(self, row: NDArray[np.int64], mask_id: int, start: int, stop: int) -> list[int | None]:
        """What stands on the positions start to stop of a row (L,)."""
        masks = [EARLY if at < self.earliest else None for at in range(start, stop)]
        return [mask if one == mask_id else one for one, mask in zip(row[start:stop].tolist(), masks, strict=True)]

    def read(self, row: NDArray[np.int64], mask_id: int, stop: int) -> Bools:
        """The states after the positions before ``stop`` of a row (L,)."""
        states = self.before
        for token in self.tokens(row, mask_id, self.start, stop):
            states = self.automaton.read(states, token)
        return states

    def possible(self, row: NDArray[np.int64], mask_id: int) -> bool:
        """Whether a row (L,) can become a text."""
        return bool((self.read(row, mask_id, self.stop) & self.after).any())

    def within(self, start: int, stop: int, row: NDArray[np.int64], mask_id: int) -> "Part | None":
        """The same of a part of the canvas; None if it lies outside."""
        first, last = max(self.start, start), min(self.stop, stop)
        if first >= last:
            return None
        before, after = self.read(row, mask_id, first), self.after
        for token in reversed(self.tokens(row, mask_id, last, self.stop)):
            after = self.automaton.unread(after, token)
        return Part(self.automaton, first - start, last - start, before, after, self.earliest - start)


@dataclass(frozen=True)
class Bound:
    """What may be written on the rows of one canvas: the parts of each row that are constrained. See ``Constraint``."""

    mask_id: int
    parts: tuple[tuple[Part, ...], ...]

    def rows(self, rows: Tensor) -> "Bound":
        return Bound(self.mask_id, tuple(self.parts[row] for row in rows.tolist()))

    def within(self, start: int, stop: int, canvas: Tensor) -> "Bound":
        rows, seen = canvas.cpu().numpy(), list[tuple[Part, ...]]()
        for row, parts in zip(rows, self.parts, strict=True):
            inside = [part.within(start, stop, row, self.mask_id) for part in parts]
            seen.append(tuple(part for part in inside if part is not None))
        return Bound(self.mask_id, tuple(seen))

    def propose(self, z: Tensor, where: Tensor, logp: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Tokens (n,) and log p (n, K) for the positions ``where``; see ``Constraint``.

        A mask that is not asked about may become any token that is not ruled out. A written token that is asked about
        stays, and is its own proposal. Where ``top_k`` and ``top_p`` leave no text, one is drawn without them.

        Errors: ``ValueError`` if none is possible, by what a callback wrote or as the model gives its tokens
        probability 0; and for positions asked about so far apart, with masks between, that more sets of states than
        ``layers.MAX_SETS`` would have to be told apart, which shows only while a text is being written.
        """
        # the same numbers whatever is constrained: a row's must not depend on the rows beside it
        u = rand((*z.shape, 2), draw.generator) if draw.temperature > 0 else torch.zeros((*z.shape, 2)).double()
        found, u = self._alone(z, where, logp, draw, u[..., 0]), u.numpy()
        given, canvas, asked = logp.clone(), z.cpu().numpy(), where.cpu().numpy()
        open_ = asked & (canvas == self.mask_id)
        number = asked.cumsum().reshape(asked.shape) - 1  # of each position among those asked about
        cut = draw.temperature > 0 and (draw.top_p < 1 or draw.top_k > 0)
        law = draw.probs(logp).log() if cut else None
        for row, part in ((row, part) for row, parts in enumerate(self.parts) for part in parts):
            at = open_[row, part.start : part.stop].nonzero()[0] + part.start
            if len(at):
                here = _places(number[row, at], z.device)
                with quietly():
                    task = _Task.of(part, canvas[row], at, self.mask_id, logp[here])
                    tokens = task.tokens(draw.temperature, None if law is None else law[here], u[row, at])
                    found[here] = torch.from_numpy(tokens).to(z.device)
                    given[here] += task.given()
        return found, given

    def _alone(self, z: Tensor, where: Tensor, logp: Tensor, draw: Draw, u: Tensor) -> Tensor:
        """Tokens (n,), drawn with ``u`` (B, L), where nothing is constrained; what stands there of the rest."""
        covered = torch.zeros_like(where)
        for row, parts in enumerate(self.parts):
            for part in parts:
                covered[row, part.start : part.stop] = True
        found, left = z[where], (where & ~covered & (z == self.mask_id))[where]
        if bool(left.any()):
            free, number = logp[left], u.to(z.device)[where][left][:, None]
            likeliest = draw.temperature == 0
            found[left] = free.argmax(-1) if likeliest else inverse_cdf(draw.probs(free), number).squeeze(-1)
        return found


@dataclass(frozen=True)
class _Task:
    """The positions of one part that are asked about, n of them, and log p (n, K) of each."""

    automaton: Automaton
    layers: list[Layer]
    start: int
    accept: Bools
    logp: Tensor
    weights: Floats  # log p of the ids that have a symbol, by symbol
    mass: Floats
    shares: Floats  # p of each as a share of its symbol's likeliest
    later: list[Floats]

    @classmethod
    def of(cls, part: Part, row: NDArray[np.int64], at: Ints, mask_id: int, logp: Tensor) -> "_Task":
        """Errors: ``ValueError`` if nothing can be written there."""
        automaton = part.automaton
        tokens = part.tokens(row, mask_id, part.start, part.stop)
        found, start, accept = layers(automaton, tokens, (at - part.start).tolist(), part.before, part.after)
        weights = _of_ids(automaton, logp)
        mass, shares = _masses(automaton, weights)
        later = backward(found, mass, accept)
        if np.isneginf(later[0][start]):
            raise ImpossibleError("the law gives each token that may follow probability 0")
        return cls(automaton, found, start, accept, logp, weights, mass, shares, later)

    def given(self) -> Tensor:
        """By what log p is to be raised so that it is that of each token given the constraint, (n, K); nats."""
        found = multipliers(self.layers, self.mass, self.later, self.start)
        none = np.full((len(found), 1), -np.inf)  # the last column is of symbol -1, which is none
        table = torch.from_numpy(np.concatenate([found, none], axis=1)).to(self.logp)
        return table.index_select(1, torch.from_numpy(self.automaton.symbol % table.shape[1]).to(table.device))

    def tokens(self, temperature: float, cut: Tensor | None, u: Floats) -> Ints:
        """Ids (n,) drawn together with ``u`` (n, 2), of the law as ``cut`` if that leaves any; the likeliest at 0."""
        ids, begins, _ = self.automaton.ids
        if temperature == 0:
            most, names = _likeliest(self.automaton, self.weights)
            later = backward(self.layers, most, self.accept, best=True)
            symbols = best(self.layers, most, later, self.start, names)
            return np.take_along_axis(names, symbols[:, None], 1)[:, 0]
        mass, shares, later = self.mass, self.shares, self.later
        if cut is not None:
            mass, shares = _masses(self.automaton, _of_ids(self.automaton, cut))
            later = backward(self.layers, mass, self.accept)
        if np.isneginf(later[0][self.start]) or (cut is None and temperature != 1):
            mass, shares = _masses(self.automaton, self.weights / temperature)
            later = backward(self.layers, mass, self.accept)
        symbols = drawn(self.layers, mass, later, self.start, u[:, 0])
        found = list[int]()
        for symbol, one, number in zip(symbols.tolist(), shares, u[:, 1].tolist(), strict=True):
            found.append(int(ids[begins[symbol] + pick(one[begins[symbol] : begins[symbol + 1]], number)]))
        return np.array(found)


def _of_ids(automaton: Automaton, logp: Tensor) -> Floats:
    """log p (n, K) of the ids that have a symbol, by symbol."""
    return logp.cpu().index_select(1, torch.from_numpy(automaton.ids[0])).double().numpy()


def _places(number: Ints, device: torch.device) -> Tensor | slice:
    """Those rows of a tensor, without a copy if they follow one another."""
    if number[-1] - number[0] == len(number) - 1:
        return slice(int(number[0]), int(number[-1]) + 1)
    return torch.from_numpy(number).to(device)


def _masses(automaton: Automaton, weights: Floats) -> tuple[Floats, Floats]:
    """log of the mass of each symbol, (n, C), and of each id the share of its symbol's likeliest."""
    begins = automaton.ids[1]
    most = np.maximum.reduceat(weights, begins[:-1], axis=1)
    base = finite(most)
    shares = weights - base.take(automaton.ids[2], axis=1)
    np.exp(shares, out=shares)
    return base + logged(np.add.reduceat(shares, begins[:-1], axis=1)), shares


def _likeliest(automaton: Automaton, weights: Floats) -> tuple[Floats, Ints]:
    """log p of each symbol's likeliest id, and that id, the lowest of equals, (n, C) each."""
    ids, begins, symbols = automaton.ids
    most = np.maximum.reduceat(weights, begins[:-1], axis=1)
    equal = weights == most.take(symbols, axis=1)
    place = np.where(equal, np.arange(len(ids)), len(ids))
    return most, ids[np.minimum.reduceat(place, begins[:-1], axis=1)]
