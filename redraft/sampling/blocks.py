"""Texts written block by block, from left to right: each by the loop, through a ``Window`` on the whole canvas."""

from dataclasses import replace

import torch
from torch import Tensor

from redraft.processes.base import as_condition, of_rows
from redraft.randomness import derive
from redraft.sampling.cost import Cost
from redraft.sampling.request import Request, first_block
from redraft.sampling.steps import Ancestors, Callback, Halt, Samples, Step
from redraft.sampling.window import Window
from redraft.sampling.writing import ended, samples, write


def by_blocks(
    request: Request,
    ids: Tensor,
    frozen: Tensor,
    seeds: list[int],
    block: int,
    cache: str | None,
    refresh: int | None,
) -> Samples:
    """Write a canvas block by block, ``write`` each.

    Block b of row r draws from derive(seeds[r], b), the first from seeds[r] itself. ``callback`` sees the whole canvas,
    and may rewrite the block in work. Rows that ended leave: later blocks are written of the others.
    """
    process, mask_id = request.process, request.process.mask_id
    assert mask_id is not None
    aligned = request.denoiser.facts.attention == "block"
    text, known = torch.where(frozen, ids, mask_id), frozen
    first = min(first_block(row, block if aligned else 1)[0] for row in frozen)
    last = max(first_block(row, 1)[1] for row in frozen)
    spans = [(start, min(start + block, text.shape[1])) for start in range(first, last, block)]
    cost, logp = Cost(of_rows=[0] * len(ids)), torch.full(ids.shape, torch.nan, dtype=torch.float64, device=ids.device)
    window = Window(request.denoiser, process, text, frozen, cache, refresh)
    left = torch.arange(len(ids), device=ids.device)  # the rows that have not ended
    if spans and first:
        window.take_in(0, first, cost, left.tolist())
    for number, (start, stop) in enumerate(spans):
        part = slice(start, stop)
        window.move(start, stop)
        mine = _part(request, window, left, text, (number, len(spans)), cost)
        own = [seeds[row] for row in left.tolist()]
        nth = start // block if aligned else number
        found = write(mine, ids[left, part], known[left, part], [derive(one, nth) if nth else one for one in own])
        text[left, part] = found.tokens
        logp[left, part] = found.logp
        cost.add(found.cost, left.tolist())
        if request.stop is not None:
            text[left] = ended(process, text[left], known[left], request.stop)
        still = ((text[left] == mask_id) & ~known[left]).any(1).nonzero().squeeze(1)
        if not len(still):
            break
        window, left = window.only(still), left[still]
        window.text = text[left]
        window.take_in(start, stop, cost, left.tolist())
    return samples(request, text, frozen, seeds, cost, {"logp": logp}, not aligned and cost.cached > 0)


def _part(request: Request, window: Window, left: Tensor, text: Tensor, place: tuple[int, int], cost: Cost) -> Request:
    """The request for one block, ``place`` of how many, of the rows ``left``."""
    start, stop = window.start, window.stop
    law, constraint = request.law, request.constraint
    if law is not None:
        law = law.rows(left).within(start, torch.cat([text[left, :start], text[left, stop:]], dim=1))
    if constraint is not None:
        constraint = constraint.rows(left).within(start, stop, text[left])
    cond = None if request.cond is None else of_rows(as_condition(request.cond), left)
    callback = None if request.callback is None else _showing(request.callback, window, place, cost.nfe)
    rows = [request.rows[row] for row in left.tolist()]
    return replace(request, denoiser=window, law=law, constraint=constraint, cond=cond, callback=callback, rows=rows)


def _showing(callback: Callback, window: Window, place: tuple[int, int], nfe: int) -> Callback:
    """``callback`` for a block, told of the whole canvas: ``place`` is the block's number and how many there are."""
    part = slice(window.start, window.stop)

    def show(step: Step) -> Tensor | Ancestors | Halt | None:
        whole = window.text.clone()
        whole[:, part] = step.z
        index, steps = place[0] * step.steps + step.index, place[1] * step.steps
        said = callback(
            replace(
                step,
                index=index,
                steps=steps,
                z=whole,
                tokens=whole,
                frozen=window.frozen,
                nfe=nfe + step.nfe,
                start=window.start,
                stop=window.stop,
            )
        )
        if said is None:
            return None
        if isinstance(said, Ancestors | Halt):
            raise ValueError(
                "a callback named ancestors, or ended the run, while blocks are written: both are of texts that are "
                "written whole"
            )
        if said.shape != whole.shape:
            raise ValueError(f"the callback returned shape {tuple(said.shape)} for a canvas of {tuple(whole.shape)}")
        return said[:, part]

    return show
