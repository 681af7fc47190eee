"""Texts that grow at their end and inside (DAEDAL), and gaps that grow and shrink by tokens that say so (DreamOn)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from redraft.processes import Categorical, Denoiser, Process
from redraft.processes.base import device_of
from redraft.randomness import Device
from redraft.sampling import samplers
from redraft.sampling.canvas import layout
from redraft.sampling.contract import Draw, Query, Sampler, proposes, proposing, revises
from redraft.sampling.proposal import Proposal, masks, propose, top
from redraft.sampling.stages import Draft, Shaping, begun, collected, masked, staged
from redraft.sampling.steps import Callback, Samples
from redraft.sampling.writing import ended


@dataclass(frozen=True)
class Growth:
    """How a text grows (DAEDAL, arXiv 2508.00819); the defaults are its authors'.

    The end is in sight as far as the model believes that the text is over before the canvas is:

        score = mean over the last ``tail`` free positions of p(EOS) where EOS is the likeliest token, else 0

    (fewer where there are fewer; written EOS count 1, other written tokens 0). A text begins with ``start`` masks;
    while score < ``enough``, ``append`` more are put at its end, and nothing is written. Then tokens are written within
    ``window`` positions of the first mask, those surer than ``tau`` and the surest in any case; and as long as score <
    ``sight``, the least sure of those masks, if p of its likeliest token is below ``weak``, is not written but replaced
    by ``expand`` masks.
    """

    start: int = 64
    append: int = 8
    expand: int = 8
    tail: int = 32
    window: int = 32
    enough: float = 0.5
    sight: float = 0.9
    tau: float = 0.9
    weak: float = 0.1

    def __post_init__(self) -> None:
        for name in ("start", "append", "tail", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} of a growth: pass a number of positions from 1")
        if self.expand < 2:
            raise ValueError(f"expand={self.expand} of a growth: a mask is replaced by 2 or more; weak=0 expands none")


@dataclass(frozen=True)
class Elastic:
    """Tokens that change the length of what is filled in: ``expand``, written, becomes two masks, and each of
    ``delete`` leaves no position behind (DreamOn, arXiv 2602.01326: its delete is the end of text).

    A row takes ``budget`` expansions; then ``expand`` is ruled out. A deletion gives none back, or a row could go on
    for ever.
    """

    expand: int | None = None
    delete: tuple[int, ...] = ()
    budget: int = 64

    def check(self, process: Process) -> None:
        """Errors: ``ValueError`` for no such token, ids that are none, a budget below 0."""
        ids = [*self.delete, *(() if self.expand is None else (self.expand,))]
        if not ids or self.budget < 0:
            raise ValueError(f"{self}: name the id that expands, those that delete, or both, and a budget from 0")
        for one in ids:
            if not 0 <= one < process.K or one == process.mask_id:
                raise ValueError(f"{self}: {one} is no token, ids run from 0 to {process.K - 1}")


def grown(
    process: Process,
    denoiser: Denoiser,
    *,
    stop: int,
    length: int | Sequence[int] = 256,
    growth: Growth | None = None,
    prompt: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
    num: int = 1,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    callback: Callback | None = None,
    device: Device = None,
    **shaping: Unpack[Shaping],
) -> Samples:
    """Continue ``prompt`` by as many tokens as the model wants before it writes ``stop``, at most ``length``.

    ``growth`` says how. Rows may differ in prompt and length, as for ``sample``. ``lengths`` of what is returned end
    with each row's first ``stop``. A row of m = ``length`` takes at most 2 m - start forwards.

    Errors: ``ValueError`` for a process without fixed masks, a denoiser that does not read the whole canvas or wants to
    know which tokens are given, a ``stop`` that is no token.
    """
    how = growth or Growth()
    checked = masked("growing", process, denoiser)
    if not 0 <= stop < process.K or stop == process.mask_id:
        raise ValueError(f"stop={stop} is no token, ids run from 0 to {process.K - 1}")
    ids, known = layout(process, length, num if seeds is None else len(seeds), prompt, None, None)
    device = device_of(denoiser) if device is None else device
    drafts = begun(checked, ids, known, seed, seeds, device)
    for draft in drafts:
        free = int((~draft.given).sum())
        begin = len(draft.ids) - max(0, free - how.start)
        draft.most = len(draft.ids) - begin
        draft.take((torch.arange(len(draft.ids), device=draft.ids.device) < begin).long())
    state = _Growing(how, stop, checked)
    cost = staged(checked, denoiser, drafts, state.plan, state.change, callback, device, dict(shaping))
    return collected(drafts, cost, stop, stop)


def elastic(
    process: Process,
    denoiser: Denoiser,
    *,
    canvas: Tensor | Sequence[Tensor],
    frozen: Tensor | Sequence[Tensor],
    marks: Elastic,
    sampler: str | Sampler = "low_confidence",
    num: int = 1,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    callback: Callback | None = None,
    device: Device = None,
    **shaping: Unpack[Shaping],
) -> Samples:
    """Fill what is free of ``canvas`` by a rule, positions coming and going as the model writes ``marks``.

    Given tokens stay, in their order. Where a step writes more expansions than the budget has left, the leftmost
    stand, and the others are masks again. A row of m masks takes at most m + 2 budget forwards: every step writes one
    at least, and an expansion makes two of one.

    Errors: ``ValueError`` as for ``grown``, and for a sampler that does not propose, revises, or writes nothing.
    """
    checked = masked("filling with tokens that change the length", process, denoiser)
    marks.check(process)
    rule = samplers.get(sampler)
    if not proposes(rule) or revises(rule):
        raise ValueError(f"sampler={sampler!r} where lengths change: use one that writes each mask once, 'threshold'")
    ids, known = layout(process, None, num if seeds is None else len(seeds), None, canvas, frozen)
    device = device_of(denoiser) if device is None else device
    drafts = begun(checked, ids, known, seed, seeds, device)
    for draft in drafts:
        draft.most = marks.budget

    def change(draft: Draft, before: Tensor, _: int) -> None:
        if int((draft.ids == checked.mask_id).sum()) == int(before.sum()):
            raise ValueError(f"sampler={sampler!r} wrote none of {int(before.sum())} masks: use 'low_confidence'")
        _obey(draft, before, marks, checked)

    banned = {"out": marks.expand} if marks.expand is not None else {}
    options = dict(shaping)
    cost = staged(checked, denoiser, drafts, lambda _: rule, change, callback, device, options, **banned)
    return collected(drafts, cost, 0, None)


# ------------------------------------------------------------------------------------------------------- the two ways


class _Growing:
    """The step of DAEDAL: what it found of the drafts of one step is kept until they change."""

    def __init__(self, how: Growth, stop: int, process: Categorical) -> None:
        self.how, self.stop, self.process = how, stop, process
        self.hold = self.weak = torch.zeros(0, dtype=torch.bool)  # (B,) what is to be appended to, (B, L) expanded

    def plan(self, drafts: list[Draft]) -> Sampler:
        device = drafts[0].ids.device
        free = ~torch.stack([draft.given for draft in drafts])
        behind = free.long().flip(1).cumsum(1).flip(1)  # free positions from here on
        tail = free & (behind <= self.how.tail)
        room = torch.tensor([draft.added < draft.most for draft in drafts], device=device)
        growing = torch.tensor([draft.growing for draft in drafts], device=device) & room

        @proposing
        def step(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
            open_ = masks("growing", process, z, draw)
            place = torch.arange(z.shape[1], device=z.device)
            near = open_ & (place < open_.int().argmax(1, keepdim=True) + self.how.window)
            proposal = propose(process, denoiser, z, t, s, draw, near | (open_ & tail))
            score, sure = self._sight(proposal, tail)
            self.hold = growing & (score < self.how.enough)
            expanding = room & ~self.hold & (score < self.how.sight)
            least = top(-sure, near, torch.ones_like(room).long())
            self.weak = least & (sure < self.how.weak) & expanding[:, None]
            near = near & ~self.weak & ~self.hold[:, None]
            confidence = proposal.confidence()
            surest = top(confidence, near, torch.ones_like(room).long())
            return proposal.write(near & ((confidence > self.how.tau) | surest))

        return step

    def _sight(self, proposal: Proposal, tail: Tensor) -> tuple[Tensor, Tensor]:
        """How far the end is in sight, (B,), and p of the likeliest token of each position asked about, (B, L)."""
        best = proposal.logp.max(-1)
        sure = proposal.spread(best.values.exp().double())
        ends = proposal.spread(torch.where(best.indices == self.stop, best.values.exp(), 0.0).double())
        ends = torch.where(proposal.asked, ends, (proposal.z == self.stop).double())
        return (ends * tail).sum(1) / tail.sum(1), sure

    def change(self, draft: Draft, before: Tensor, number: int) -> None:
        """Make the draft as long as the step found it should be."""
        room = draft.most - draft.added
        counts = torch.ones_like(draft.ids)
        more = 0
        if bool(self.hold[number]):
            more = min(self.how.append, room)
            counts[-1] += more  # the last position is a mask, as nothing is written yet
        elif bool(self.weak[number].any()):
            more = min(self.how.expand - 1, room)
            counts[self.weak[number]] += more
        draft.growing &= bool(self.hold[number])
        draft.added += more
        draft.take(counts)
        filled = ended(self.process, draft.ids[None], draft.given[None], self.stop)[0]
        draft.logp = draft.logp.masked_fill(filled != draft.ids, torch.nan)
        draft.ids = filled


def _obey(draft: Draft, before: Tensor, marks: Elastic, process: Categorical) -> None:
    """Change the draft as the tokens written where it was masked ``before`` ask for."""
    assert process.mask_id is not None
    expand = before & (draft.ids == marks.expand) if marks.expand is not None else torch.zeros_like(before)
    delete = before & torch.isin(draft.ids, torch.tensor(marks.delete, dtype=torch.long, device=draft.ids.device))
    stands = expand & (expand.cumsum(0) <= draft.most - draft.added)
    draft.ids = draft.ids.masked_fill(expand, process.mask_id)
    draft.added += int(stands.sum())
    draft.take(1 + stands.long() - delete.long())
