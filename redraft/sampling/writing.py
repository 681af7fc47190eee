"""The loop: from t = 1 to t = 0, rows of one shape together."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from redraft.models.told import Told
from redraft.processes import Process, absorbing, only_masks
from redraft.randomness import generator
from redraft.sampling.canvas import Canvas, checked
from redraft.sampling.contract import Draw, proposes, revises
from redraft.sampling.cost import Clock, Cost
from redraft.sampling.proposal import propose
from redraft.sampling.query import Asked
from redraft.sampling.request import DEFAULT_STEPS, Request
from redraft.sampling.samplers import Revised, Sampler
from redraft.sampling.steps import Ancestors, Halt, Samples, Step
from redraft.sampling.window import Window


def write(request: Request, ids: Tensor, frozen: Tensor, seeds: list[int]) -> Samples:
    """The loop: rows of one shape, (B, L) on their device, from the first time to the last."""
    process, denoiser, given = request.process, request.denoiser, request.given
    cost = Cost(of_rows=[0] * len(ids))
    if request.strength == 0:
        return samples(request, ids.clone(), frozen, seeds, cost, {})
    generators = [generator(one) for one in seeds]
    final = absorbing(process) and not revises(request.sampler)
    told = partial(Told, process=process, ids=ids, given=frozen) if given == "told" else None
    board = Canvas(process, ids, frozen, given, generators, request.strength)
    query = Asked(
        denoiser,
        process,
        request.cond,
        cost,
        frozen,
        request.temperature,
        request.top_p,
        request.top_k,
        request.law,
        told,
        board.clean if given == "clean" else None,
        final=final,
    )
    draw = Draw(
        frozen,
        generators,
        request.temperature,
        request.top_p,
        request.top_k,
        constraint=request.constraint,
        late=request.late,
    )
    with Clock(cost, "rest"):
        z, halted = _refined(request, board, query, draw)
        tokens = board.shown(_shown(z, query) if halted else _finish(process, query, z, draw))
    return samples(request, tokens, frozen, seeds, cost, draw.memory)


def _refined(request: Request, board: Canvas, query: Asked, draw: Draw) -> tuple[Tensor, bool]:
    """z at the last time, or when the callback ended the run; and whether it did."""
    process, sampler = request.process, request.sampler
    times = _times(request, board.frozen)
    z = board.put_back(board.begin(), times[0])
    for index, (t, s) in enumerate(pairwise(times)):
        over = _over(process, sampler, z, draw)
        if bool(over.all()):
            break
        t_rows, s_rows = (torch.full((len(z),), value, dtype=torch.float64, device=z.device) for value in (t, s))
        before = z
        for again in range(request.resample + 1):
            z = board.put_back(board.renoised(z, s, t), t) if again else z
            z = board.put_back(sampler(process, query, z, t_rows, s_rows, draw), s)
        if not process.vectors:
            query.cost.written += int(((z != before) & (z != process.mask_id)).sum())
        if request.callback is not None:
            shown = board.shown(_shown(z, query))
            step = Step(
                index, len(times) - 1, t, s, z, shown, board.frozen, query.cost.nfe, request.rows,
                _said=query.said, over=over,
            )  # fmt: skip
            z, halted = _called(request, board, query, draw, step)
            if halted:
                return z, True
        if request.stop is not None and absorbing(process) and not revises(sampler):  # noise tells of no end
            z = ended(process, z, board.frozen, request.stop)
    return z, False


def _called(request: Request, board: Canvas, query: Asked, draw: Draw, step: Step) -> tuple[Tensor, bool]:
    """z after the callback has seen it, and done with it what it may; and whether it ends the run."""
    assert request.callback is not None
    z = step.z
    with Clock(query.cost, "callback"):
        said = request.callback(step)
    halted = isinstance(said, Halt)
    said = said.z if isinstance(said, Halt) else said
    if said is None:
        return z, halted
    if isinstance(said, Ancestors):
        rows = said.rows.to(z.device)
        if rows.shape != (len(z),) or not 0 <= int(rows.min()) <= int(rows.max()) < len(z):
            raise ValueError(f"the callback named ancestors {rows.tolist()} of {len(z)} rows: pass a row for each")
        query.follow(rows)
        for name, value in draw.memory.items():
            draw.memory[name] = value[rows]
        # what is given stands in the ancestor already; to noise it afresh would change rows that stay what they were
        return (z[rows] if board.shared(rows) else board.put_back(z[rows], step.s)), False
    rewritten = board.put_back(checked(request.process, said, z), step.s)
    if "logp" in draw.memory:  # nobody has said how likely what the callback wrote is
        draw.memory["logp"] = draw.memory["logp"].masked_fill(rewritten != z, torch.nan)
    return rewritten, halted


def _shown(z: Tensor, query: Asked) -> Tensor:
    """The tokens to show of z; of vectors those last thought likeliest."""
    return z if query.tokens is None else query.tokens


def ended(process: Process, z: Tensor, frozen: Tensor, stop: int) -> Tensor:
    """z with ``stop`` on all that is free behind a row's first one, where nothing is left to write before that."""
    found = ((z == stop) & ~frozen).int()
    behind = found.cumsum(1) - found > 0
    if process.mask_id is not None:
        behind &= ~((z == process.mask_id) & ~behind).any(1, keepdim=True)
    return torch.where(behind & ~frozen, stop, z)


def _times(request: Request, frozen: Tensor) -> list[float]:
    """Where the steps begin and end, from the first time down to 0."""
    process, facts, steps = request.process, request.denoiser.facts, request.steps
    most = int((~frozen).sum(1).max())
    if facts.attention == "causal":
        if most and steps not in (None, most):
            raise ValueError(
                f"steps={steps}: an autoregressive denoiser takes one per token, {most} here; leave it out"
            )
        if bool((frozen[:, 1:] & ~frozen[:, :-1]).any()):
            raise ValueError("an autoregressive denoiser only continues a prompt: it sees nothing right of a gap")
        steps = max(most, 1)
    elif steps is None:
        # of a block its width, whatever is given in it: a row's steps must not depend on the rows beside it
        per_mask = frozen.shape[1] if isinstance(request.denoiser, Window) else most
        more = request.sampler.extra if isinstance(request.sampler, Revised) else 0
        steps = max(per_mask + more, 1) if proposes(request.sampler) else DEFAULT_STEPS
    times = torch.linspace(1 if request.strength is None else request.strength, 0, steps + 1, dtype=torch.float64)
    if facts.attention == "causal" and absorbing(process):  # whatever the schedule, a token a step
        times = process.schedule.inverse(1 - times)
    return times.tolist()


def _over(process: Process, sampler: Sampler, z: Tensor, draw: Draw) -> Tensor:
    """The rows that are finished, (B,) bool: all is written where masks are the only noise, or the sampler says so."""
    over = draw.memory.get("done", torch.zeros(len(z), dtype=torch.bool, device=z.device))
    if revises(sampler) or not only_masks(process):
        return over
    return over | ~(z == process.mask_id).any(1)


def _finish(process: Process, query: Asked, z: Tensor, draw: Draw) -> Tensor:
    """The tokens at t = 0. Vectors, and masks a callback left, take one more call; only free positions are drawn."""
    zero = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    if process.vectors:
        query(z, zero)
        assert query.tokens is not None
        return query.tokens
    if process.mask_id is None or not bool((z == process.mask_id).any()):
        return z
    if absorbing(process):
        left = z == process.mask_id
        return propose(process, query, z, zero, zero, replace(draw, revision=None), left).write(left)
    left = z == process.mask_id
    return torch.where(left, draw.tokens(query(z, zero)), z)


def samples(
    request: Request,
    tokens: Tensor,
    frozen: Tensor,
    seeds: list[int],
    cost: Cost,
    memory: dict[str, Tensor],
    approximate: bool = False,
) -> Samples:
    """What ``sample`` returns, of rows of one shape."""
    logp = memory.get("logp")
    if logp is None:
        logp = torch.full(tokens.shape, torch.nan, dtype=torch.float64, device=tokens.device)
    lengths = [tokens.shape[1]] * len(tokens)
    if request.stop is not None:
        written, tokens = tokens, ended(request.process, tokens, frozen, request.stop)
        logp = logp.masked_fill(written != tokens, torch.nan)
        found = (tokens == request.stop) & ~frozen
        # a text whose last given token stands behind its stop token ends with what is given
        last = torch.where(frozen, torch.arange(1, tokens.shape[1] + 1, device=tokens.device), 0).amax(1)
        first = torch.where(found.any(1), found.int().argmax(1) + 1, tokens.shape[1])
        lengths = torch.maximum(first, last).tolist()
    return Samples(tokens, seeds, cost, lengths, logp, approximate)
