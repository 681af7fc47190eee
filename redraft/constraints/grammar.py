"""Texts of a context-free grammar, written in any order: a token is drawn from those that leave the rest a way out."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from redraft.constraints.emptiness import STOP, Chart, Lattice
from redraft.constraints.pieces import Pieces, pieces
from redraft.constraints.regular import mask_of, ruled_out
from redraft.constraints.rules import Rules, read
from redraft.data import Tokenizer
from redraft.processes import Process
from redraft.randomness import Generators, categorical
from redraft.sampling.contract import Draw
from redraft.sampling.law import Law

MAX_POSITIONS = 512
NODES, FEWER = 1_024, 64
"""Places within tokens, on a whole canvas, that are looked at: if that does for all that masks may become, and else."""

Kinds = frozenset[int]


def grammar(text: str, tokenizer: Tokenizer, start: str = "start", rejections: int = 100) -> "Grammar":
    r"""Texts of a context-free grammar, ``text`` in lark's EBNF, whose first rule is ``start``.

    The free positions of a row, from the first to the last, together with what is given between them, are made to read
    as a text of the grammar; if the request has a ``stop`` token, a text and then nothing but that. After the idea of
    Muendler et al. (arXiv 2508.10111), with the number of masks accounted for: a token is written only if the grammar
    has a text among all that the canvas can still become, each mask being one token.

    A text may be divided into terminals in every way (lark's ``lexer="dynamic_complete"``): ``ifx`` is also ``if`` and
    ``x``. What is ignored may stand before each terminal and at the end. A pattern stands for all that it matches as a
    whole: ``/a|ab/`` for ``ab`` too, of which Python's ``re.match``, and so lark, finds the first ``a`` alone. ``\w``,
    ``\s`` and their kin are Unicode's.

    Exact where all that tokens spell can be looked at for every mask: characters, bytes, small vocabularies. Of larger
    ones, what is not written yet is taken for the shortest pieces (single bytes, mostly). Every text still ends as one
    of the grammar; a proposed token of another piece is tried on its own, up to ``rejections`` a position, and is
    refused too if only longer pieces could follow it, as where few masks are left for much that must be written.

    >>> grammar('start: "(" start ")" start |', tokenizer)  # doctest: +SKIP

    Errors: ``ValueError`` for a grammar that cannot be read, or is too large; for a missing library. Bound to a
    canvas, for one that no text fits, before the first call of the model.
    """
    if rejections < 0:
        raise ValueError(f"rejections={rejections}: pass how many tokens to try, from 0")
    return Grammar(read(text, start), pieces(tokenizer), rejections)


@dataclass
class Grammar:
    """A grammar over the tokens of a vocabulary, for any canvas; ``bind`` is for ``sample``."""

    rules: Rules
    pieces: Pieces
    rejections: int = 100

    @cached_property
    def _kinds(self) -> tuple[list[tuple[int, ...]], list[list[int]]]:
        """What tokens can spell, and which of it each does, at the start of a text and elsewhere (-1: nothing)."""
        strings, number = list[tuple[int, ...]]([()]), dict[tuple[int, ...], int]()
        tables = list[list[int]]()
        for table in (self.pieces.first, self.pieces.rest):
            tables.append([])
            for piece in table:
                read = None if piece is None else self.rules.lexer.read(piece)
                if read is not None and read not in number:
                    number[read] = len(strings)
                    strings.append(read)
                tables[-1].append(-1 if read is None else number[read])
        return strings, tables

    def bind(self, process: Process, ids: Tensor, frozen: Tensor, stop: int | None, law: Law | None = None) -> "Bound":
        """The grammar on a canvas ``ids`` (B, L) of which ``frozen`` (B, L) is given.

        No mask becomes a token that ``law`` bans, nor ``stop`` before its time, whether or not it is asked about.

        Errors: ``ValueError`` for a process without masks, a canvas that is too long, and one that no text fits.
        """
        mask_id = mask_of(process)
        strings, tables = self._kinds
        kinds = torch.full((2, process.K), -1, dtype=torch.long)
        for table, one in zip(tables, kinds, strict=True):
            one[: len(table)] = torch.tensor(table[: process.K])
        if mask_id < process.K:
            kinds[:, mask_id] = -1
        if stop is not None:
            if not 0 <= stop < process.K:
                raise ValueError(f"stop={stop} is no token: ids run from 0 to {process.K - 1}")
            kinds[:, stop] = STOP
        spans = [_span(row) for row in frozen]
        longest = max(stop - start for start, stop in spans)
        if longest > MAX_POSITIONS:
            raise ValueError(f"a grammar over {longest} positions: up to {MAX_POSITIONS} are taken; ask for less")
        banned, earliest = ruled_out(law, len(ids))
        open_ = kinds.clone()
        open_[:, list(banned)] = -1
        every = [frozenset(row[row >= 0].tolist()) for row in open_]
        of_length = {size: tuple(_shortest(some, strings, max(size, 1)) for some in every) for size in sizes(spans)}
        free = [of_length[stop - start] for start, stop in spans]
        beyond = torch.zeros(len(ids), 2, len(strings) + 1, dtype=torch.bool)  # the last is for -1
        for row, looked in zip(beyond, free, strict=True):
            for one, some, mine in zip(row, every, looked, strict=True):
                one[list(some - mine)] = True
        canvas, lattice = torch.where(frozen, ids, mask_id), Lattice(self.rules, strings)
        bound = Bound(self, lattice, kinds, free, beyond, canvas, spans, mask_id, earliest, banned)
        for row, known in enumerate(frozen):
            bound.check(row, bool(known[slice(*spans[row])].any()))
        return bound


def _span(frozen: Tensor) -> tuple[int, int]:
    """From the first free position of a row to behind the last; (0, 0) if there is none."""
    free = (~frozen).nonzero().flatten()
    return (int(free[0]), int(free[-1]) + 1) if len(free) else (0, 0)


def sizes(spans: Sequence[tuple[int, int]]) -> set[int]:
    """The different lengths."""
    return {stop - start for start, stop in spans}


def _shortest(kinds: Kinds, strings: Sequence[tuple[int, ...]], positions: int) -> Kinds:
    """The kinds that are looked at for each of so many masks: all if that can be, else the shortest, one at least."""
    order = sorted(kinds, key=lambda kind: (len(strings[kind]), strings[kind]))
    tree, sizes = {()}, list[int]()
    for kind in order:
        tree |= {strings[kind][:end] for end in range(1, len(strings[kind]))}
        sizes.append(len(tree))
        if len(tree) > max(NODES // positions, 1):
            few = bisect_right(sizes, max(FEWER // positions, 1))
            return frozenset(order[: max(few, 1 + (order[0] == STOP))])
    return frozenset(order)


@dataclass(frozen=True)
class Bound:
    """A grammar on rows of one canvas; see ``contract.Constraint``.

    ``kinds`` (2, K): what each token spells, first and elsewhere, -1 for one that no text has; ``banned`` ids, which
    masks do not become; ``start``: where the canvases to be proposed for begin. Of each row: ``free``, the kinds looked
    at for a mask, first and elsewhere; ``beyond`` (B, 2, kinds + 1) bool, the others; ``spans``, where its text stands;
    ``earliest``, the first position where a mask may end it.
    """

    grammar: Grammar
    lattice: Lattice
    kinds: Tensor
    free: list[tuple[Kinds, ...]]
    beyond: Tensor
    canvas: Tensor
    spans: list[tuple[int, int]]
    mask_id: int
    earliest: list[int]
    banned: tuple[int, ...]
    start: int = 0
    _one: dict[int, Kinds] = field(default_factory=dict[int, Kinds], repr=False)

    def rows(self, rows: Tensor) -> "Bound":
        free, spans, earliest = ([one[row] for row in rows.tolist()] for one in (self.free, self.spans, self.earliest))
        beyond = self.beyond[rows.cpu()]
        return replace(self, canvas=self.canvas[rows], free=free, beyond=beyond, spans=spans, earliest=earliest)

    def within(self, start: int, stop: int, canvas: Tensor) -> "Bound":
        return replace(self, canvas=canvas, start=start)

    def check(self, row: int, given: bool) -> None:
        """Errors: ``ValueError`` if no text fits."""
        start, stop = self.spans[row]
        if stop > start and not self.lattice.chart(self._slots(row, self.canvas[row])):
            beside = " and the tokens given between them" if given else ""
            narrow = (
                " by the short pieces of the vocabulary that can be looked at" if bool(self.beyond[row].any()) else ""
            )
            narrow += f" without the banned tokens {list(self.banned)}" if self.banned else ""
            narrow += " with a stop token not before min_length" if self.earliest[row] > start else ""
            raise ValueError(
                f"no text of the grammar fits the {stop - start} positions {start} to {stop - 1}{beside}"
                f"{narrow}: ask for another length, or name a stop token, so that a text may end before"
            )

    def propose(self, z: Tensor, where: Tensor, logp: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Tokens (n,) for the positions ``where`` (B, W), one after the other, the surest first (of equals the lowest
        index), each drawn from its law given that the grammar has a text with it and those before; log p (n, K) of
        that.

        That is **not** p(text | it is of the grammar): each token counts only whether the others have a way out, not
        how likely one is. A written token that is asked about stays, and is its own proposal: another in its place
        might not go with what is written beside it.

        Errors: ``ValueError`` if a callback wrote what is no part of a text, or if the law forbids every text.
        """
        tokens, given = z[where].clone(), logp.clone()
        begin = 0
        for row, asked in enumerate(where.cpu()):
            number = int(asked.sum())
            mine = slice(begin, begin + number)
            begin += number
            places = asked.nonzero().flatten()
            free = (z[row].cpu()[places] == self.mask_id).nonzero().flatten()
            if not len(free):
                continue
            whole = self.canvas[row].clone()
            whole[self.start : self.start + z.shape[1]] = z[row]
            own: Generators = draw.generator
            if not (own is None or isinstance(own, torch.Generator)):
                own = [own[row]]
            at = (places[free] + self.start - self.spans[row][0]).tolist()
            laws, slots = logp[mine][free.to(z.device)], self._slots(row, whole)
            found, law = self._draw(slots, self.beyond[row], at, laws, replace(draw, generator=own))
            tokens[mine][free] = found.to(z.device)
            given[mine][free] = law
        return tokens, given

    def _slots(self, row: int, whole: Tensor) -> list[Kinds]:
        """What each position of a row's text may hold."""
        start, stop = self.spans[row]
        out = list[Kinds]()
        for at, token in enumerate(whole[start:stop].tolist()):
            if token == self.mask_id:
                kinds = self.free[row][min(at, 1)]
                out.append(kinds if start + at >= self.earliest[row] else kinds - {STOP})
                continue
            kind = int(self.kinds[min(at, 1), token])
            if kind < 0:
                raise ValueError(f"no text of the grammar has the token {token}, which stands at position {start + at}")
            out.append(self._only(kind))
        return out

    def _only(self, kind: int) -> Kinds:
        return self._one.setdefault(kind, frozenset((kind,)))

    def _draw(
        self, slots: list[Kinds], beyond: Tensor, at: list[int], logp: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor]:
        """Tokens (n,) of the slots ``at``, and their laws (n, K)."""
        for one, slot in enumerate(at):
            possible = self._possible(logp[one], slot)
            if possible is not None:
                slots[slot] = frozenset(kind for kind in slots[slot] if bool(possible[kind]))
        chart = self.lattice.chart(slots)
        if not chart:
            raise ValueError(
                "no text of the grammar is left among the tokens that the law has: see banned, min_length, what a "
                "callback wrote, and whether the model gives probability 0"
            )
        tokens, laws = torch.zeros(len(at), dtype=torch.long), torch.empty_like(logp)
        for one in logp.amax(-1).sort(descending=True, stable=True).indices.tolist():
            tokens[one], laws[one], chart = self._next(chart, slots, beyond, at[one], logp[one], draw)
        return tokens, laws

    def _possible(self, logp: Tensor, slot: int) -> Tensor | None:
        """The kinds that the law (K,) of a slot gives probability, (kinds + 1,) bool; None for all."""
        kinds = self.kinds[min(slot, 1)]
        never = torch.isneginf(logp).cpu()
        if not bool((never & (kinds >= 0)).any()):
            return None
        possible = torch.zeros_like(self.beyond[0, 0])
        possible[kinds[~never]] = True
        possible[-1] = False
        return possible

    def _next(
        self, chart: Chart, slots: list[Kinds], others: Tensor, at: int, logp: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor, Chart]:
        """A token for one slot, which is set, its law (K,), and the chart of what it leaves."""
        viable, tries = chart.viable[at], 0
        kinds, beyond = self.kinds[min(at, 1)], others[min(at, 1)]
        listed = beyond & (self.grammar.rejections > 0)
        listed[list(viable)] = True
        while True:
            law = logp.masked_fill(~listed[kinds].to(logp.device), -torch.inf).log_softmax(-1)
            token = law.argmax() if draw.temperature == 0 else categorical(draw.probs(law)[None, None], draw.generator)
            kind = int(kinds[int(token)])
            if kind in viable and len(viable) == 1:
                return token.reshape(()), law, chart
            after = self.lattice.chart([*slots[:at], self._only(kind), *slots[at + 1 :]])
            if after:
                slots[at] = self._only(kind)
                return token.reshape(()), law, after
            tries += 1
            listed[kind] = False
            if tries >= self.grammar.rejections:
                listed &= ~beyond
