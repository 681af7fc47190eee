"""Texts whose length changes while they are written: in stages, each one step of ``sample``.

A canvas of ``sample`` has one length. Here what was written is given to the next stage, a callback ends the run after
its first step (``Halt``), and the length changes in between. So there is one loop, and all it does of a step (laws,
costs, callbacks, rows of one shape together) holds. Stage k of a row draws from derive(its seed, k): a row never
depends on what becomes of the rows beside it. The price: what was written is not revised, and a rule sees each step as
its first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
from torch import Tensor

from redraft.processes import Categorical, Denoiser, Process, absorbing
from redraft.randomness import Device, derive, row_seeds
from redraft.sampling.canvas import checked
from redraft.sampling.contract import Draw, Query, Sampler, misfit, proposing
from redraft.sampling.cost import Cost
from redraft.sampling.loop import sample
from redraft.sampling.steps import Callback, Halt, Samples, Step


class Shaping(TypedDict, total=False):
    """The options of ``sample`` that hold for every step, whatever the length."""

    temperature: float
    top_p: float
    top_k: int
    repetition: float
    banned: Sequence[int]


@dataclass
class Draft:
    """A row in work: ``ids`` (L,) with masks where it is to be written, ``given`` (L,) bool what the caller gave, log p
    (L,) of what was written, nan elsewhere; ``added``: how many positions it has grown by; ``stage``: steps so far."""

    ids: Tensor
    given: Tensor
    logp: Tensor
    seed: int
    most: int  # positions that may be added
    added: int = 0
    stage: int = 0
    growing: bool = True  # whether it is still to be appended to

    def take(self, counts: Tensor) -> None:
        """Every position so many times, ``counts`` (L,) long: 0 removes it, 2 doubles it."""
        self.ids, self.given, self.logp = (one.repeat_interleave(counts) for one in (self.ids, self.given, self.logp))


Plan = Callable[[list[Draft]], Sampler]
"""The step for drafts of one length and as many masks each."""
Change = Callable[[Draft, Tensor, int], None]
"""What a step makes of a draft: (draft, where it was masked before, its number in the step)."""


def masked(what: str, process: Process, denoiser: Denoiser) -> Categorical:
    """The process, if its texts can be written in stages; ``ValueError`` otherwise."""
    if not absorbing(process):
        raise misfit(what, process, "a process that has fixed masks", instead="a given length")
    if denoiser.facts.attention != "full" or denoiser.facts.given:
        raise ValueError(
            f"{what} with a denoiser of {denoiser.facts.attention} attention"
            f"{', told which tokens are given' if denoiser.facts.given else ''}: it needs one that reads the whole "
            "canvas, whoever wrote it; give a length"
        )
    return process


def begun(
    process: Categorical,
    ids: list[Tensor],
    known: list[Tensor],
    seed: int,
    seeds: Sequence[int] | None,
    device: Device,
) -> list[Draft]:
    own = row_seeds(seed, seeds, len(ids))
    assert process.mask_id is not None
    found = list[Draft]()
    for row, given, mine in zip(ids, known, own, strict=True):
        text = torch.where(given, row, process.mask_id).to(device)
        nothing = torch.full(text.shape, torch.nan, dtype=torch.float64, device=device)
        found.append(Draft(text, given.to(device), nothing, mine, 0))
    return found


def staged(
    process: Categorical,
    denoiser: Denoiser,
    drafts: list[Draft],
    plan: Plan,
    change: Change,
    callback: Callback | None,
    device: Device,
    shaping: dict[str, Any],
    out: int | None = None,
) -> Cost:
    """Write drafts until none has a mask: a step of ``plan`` each, then ``change``. Those alike are written together.

    ``out``: the id that is ruled out in a draft that may not grow any more.
    """
    cost, banned = Cost(of_rows=[0] * len(drafts)), list(shaping.pop("banned", ()))
    while True:
        alike = dict[tuple[int, int, bool], list[int]]()
        for row, draft in enumerate(drafts):
            if left := int((draft.ids == process.mask_id).sum()):
                full = out is not None and draft.added >= draft.most
                alike.setdefault((len(draft.ids), left, full), []).append(row)
        if not alike:
            return cost
        for (_, left, full), rows in alike.items():
            mine = [drafts[row] for row in rows]
            masked = torch.stack([draft.ids == process.mask_id for draft in mine])
            once = _Once(callback, process, mine, rows, cost.nfe)
            found = sample(
                process,
                denoiser,
                canvas=torch.stack([draft.ids for draft in mine]),
                frozen=~masked,
                steps=left,
                sampler=_timed(plan(mine), process, mine) if denoiser.facts.time_conditioned else plan(mine),
                seeds=[derive(draft.seed, draft.stage) if draft.stage else draft.seed for draft in mine],
                callback=once,
                banned=[*banned, out] if full and out is not None else banned,
                device=device,
                **shaping,
            )
            cost.add(found.cost, rows)
            tokens = found.tokens if once.rewritten is None else once.rewritten
            for number, draft in enumerate(mine):
                draft.ids, draft.stage = tokens[number], draft.stage + 1
                draft.logp = torch.where(masked[number], found.logp[number], draft.logp)
                change(draft, masked[number], number)


def _timed(rule: Sampler, process: Categorical, drafts: list[Draft]) -> Sampler:
    """The rule, whose denoiser is told the time at which so large a share of what is free is masked."""
    share = [int((draft.ids == process.mask_id).sum()) / int((~draft.given).sum()) for draft in drafts]
    alpha = 1 - torch.tensor(share, dtype=torch.float64, device=drafts[0].ids.device)
    times = process.schedule.inverse(alpha)

    @proposing
    def timed(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
        def asked(z: Tensor, t: Tensor, where: Tensor | None = None, /) -> Tensor:
            return denoiser(z, times, where)

        return rule(process, asked, z, t, s, draw)

    return timed


class _Once:
    """Ends the run after a step, which ``callback`` is told of as one of the whole text.

    What it writes is kept in ``rewritten``: it may rewrite what earlier stages wrote, which this one holds for given.
    """

    def __init__(
        self, callback: Callback | None, process: Process, drafts: list[Draft], rows: list[int], nfe: int
    ) -> None:
        self.callback, self.process, self.drafts, self.rows, self.nfe = callback, process, drafts, rows, nfe
        self.rewritten: Tensor | None = None

    def __call__(self, step: Step) -> Halt:
        if self.callback is None:
            return Halt()
        given, stage = torch.stack([draft.given for draft in self.drafts]), max(draft.stage for draft in self.drafts)
        whole = {"index": stage, "steps": stage + step.steps, "nfe": self.nfe + step.nfe}
        said = self.callback(replace(step, frozen=given, rows=self.rows, **whole))
        if said is not None and not isinstance(said, Tensor):
            raise ValueError("a callback ended the run or named ancestors while lengths change: it may rewrite only")
        if said is not None:
            self.rewritten = torch.where(given, step.tokens, checked(self.process, said, step.z))
        return Halt()


def collected(drafts: list[Draft], cost: Cost, fill: int, stop: int | None) -> Samples:
    """Drafts without masks as samples; a row ends with its first ``stop``, if any."""
    shape = len(drafts), max(len(draft.ids) for draft in drafts)
    tokens = drafts[0].ids.new_full(shape, fill)
    logp = torch.full(shape, torch.nan, dtype=torch.float64, device=tokens.device)
    lengths = list[int]()
    for row, draft in enumerate(drafts):
        tokens[row, : len(draft.ids)], logp[row, : len(draft.ids)] = draft.ids, draft.logp
        ends = ((draft.ids == stop) & ~draft.given).nonzero().flatten().tolist() if stop is not None else []
        lengths.append(ends[0] + 1 if ends else len(draft.ids))
    return Samples(tokens, [draft.seed for draft in drafts], cost, lengths, logp)
