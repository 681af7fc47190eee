"""``sample``: the only sampling loop. Prompt, infilling and editing are one ``frozen`` mask on one canvas."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from redraft.models.told import Told
from redraft.processes import Denoiser, PerToken, Process, absorbing
from redraft.processes.base import device_of
from redraft.randomness import Device, derive, generator
from redraft.sampling import samplers
from redraft.sampling.blocks import by_blocks
from redraft.sampling.canvas import Canvas, checked, convention, layout
from redraft.sampling.contract import check_temperature
from redraft.sampling.query import Asked
from redraft.sampling.samplers import Draw, Sampler, ancestral, left_to_right, revises

DEFAULT_STEPS = 128


@dataclass(frozen=True)
class Step:
    """What a callback sees after a step from t to s: ``z`` now, and ``tokens`` (B, L) to show (ids, masks included).

    ``frozen`` (B, L) marks the given tokens; ``nfe`` counts denoiser calls so far.
    """

    index: int
    steps: int
    t: float
    s: float
    z: Tensor
    tokens: Tensor
    frozen: Tensor
    nfe: int


Callback = Callable[[Step], Tensor | None]
"""Called after every step; a returned tensor of z's shape replaces the canvas (frozen tokens are put back)."""


@dataclass(frozen=True)
class Samples:
    """``tokens`` (B, L) ids. ``nfe``: denoiser calls; ``positions``: rows times length, summed over calls.
    A call of a denoiser made of several counts for each of them (``Facts.forwards``).

    ``seeds``: one per row; ``sample(..., seeds=[seeds[r]])`` draws row r again, alone.
    """

    tokens: Tensor
    nfe: int
    positions: int
    seeds: list[int]


@torch.no_grad()
def sample(
    process: Process,
    denoiser: Denoiser,
    *,
    length: int = 64,
    num: int = 1,
    steps: int | None = None,
    prompt: Tensor | Sequence[int] | None = None,
    canvas: Tensor | None = None,
    frozen: Tensor | None = None,
    strength: float | None = None,
    given: str | None = None,
    resample: int = 0,
    sampler: str | Sampler | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    cond: Any = None,
    callback: Callback | None = None,
    device: Device = None,
) -> Samples:
    """Draw texts by refining a whole canvas from t = 1 to t = 0 in ``steps`` equal steps of t.

    The canvas is ``prompt`` followed by ``length`` free positions, or is given: ``canvas`` (L,) or (B, L) ids with
    ``frozen``, a bool of its shape, marking the tokens that must not change. ``num`` rows are drawn of a canvas of one
    row, on the device of the denoiser's weights. ``steps`` is 128 unless given; an autoregressive denoiser takes one
    per free position. ``sampler``: a name or function of ``redraft.sampling.samplers`` (``ancestral`` unless given), or
    a name with options, ``"remdm:eta=0.02"``.

    ``strength`` t* redrafts a text (SDEdit, Meng et al. 2021): ``canvas`` is noised to t*, and the steps are spent from
    there to 0. All of it, unless ``frozen`` is given too. 0 returns the text without a call, 1 writes as from nothing;
    if the reverse process is exact, texts of the model's law stay texts of that law at any t*.

    Frozen tokens never change. Among masks a denoiser conditions on them exactly. Under other noise ``given`` says how
    they stand on the canvas, ``noised``, ``clean`` or ``told``, and what is drawn beside them depends on it:
    ``canvas.GIVEN`` has what each means, and ``resample``.

    Row r draws from its own generator, seeded by ``seeds[r]``, or by (seed, r): no row depends on those beside it.
    A masked canvas without masks left ends the loop early, so ``nfe`` may be below ``steps``. A block model writes one
    block after the other, ``steps`` each, and ``nfe`` counts the clean pass by which a finished one is remembered.

    Errors: ``ValueError`` for options that clash, ids that are no tokens, a denoiser of another mask id, a text to be
    redrafted by a model that writes in one order only.
    """
    device = device_of(denoiser) if device is None else device
    ids, frozen = layout(process, length, num if seeds is None else len(seeds), prompt, canvas, frozen, strength)
    ids, frozen = ids.to(device), frozen.to(device)
    given = convention(process, denoiser.facts, given, resample, frozen)
    seeds = _seeds(seed, seeds, len(ids))
    steps, step_function = _plan(process, denoiser, frozen, strength, steps, sampler, temperature, top_p)
    if denoiser.facts.attention == "block":
        options = {"steps": steps, "sampler": step_function, "device": device}
        options |= {"temperature": temperature, "top_p": top_p}
        return Samples(*by_blocks(sample, process, denoiser, ids, frozen, seeds, cond, callback, **options), seeds)
    if strength == 0:
        return Samples(ids.clone(), 0, 0, seeds)
    generators = [generator(one) for one in seeds]
    final = absorbing(process) and not revises(step_function)
    told = partial(Told, process=process, ids=ids, given=frozen) if given == "told" else None
    board = Canvas(process, ids, frozen, given, generators, strength)
    stand = board.clean if given == "clean" else None
    query = Asked(denoiser, process, cond, temperature, top_p, told, stand, final=final)
    draw = Draw(frozen, generators, temperature, top_p)

    times = _times(process, denoiser, strength, steps)
    z = board.put_back(board.begin(), times[0])
    for index, (t, s) in enumerate(pairwise(times)):
        if _finished(process, z) and not revises(step_function):
            break
        t_rows, s_rows = (torch.full((len(z),), value, dtype=torch.float64, device=device) for value in (t, s))
        for again in range(resample + 1):
            z = board.put_back(board.renoised(z, s, t), t) if again else z
            z = board.put_back(step_function(process, query, z, t_rows, s_rows, draw), s)
        if callback is not None:
            shown = board.shown(z if query.tokens is None else query.tokens)
            rewritten = callback(Step(index, steps, t, s, z, shown, frozen, query.nfe))
            if rewritten is not None:
                z = board.put_back(checked(process, rewritten, z), s)
    return Samples(board.shown(_finish(process, query, z, draw)), query.nfe, query.positions, seeds)


def _seeds(seed: int, seeds: Sequence[int] | None, rows: int) -> list[int]:
    """One a row: those given, or of (seed, row)."""
    if seeds is None:
        return [derive(seed, row) for row in range(rows)]
    if len(seeds) != rows:
        raise ValueError(f"{len(seeds)} seeds for {rows} rows: pass one per row")
    return list(seeds)


def _times(process: Process, denoiser: Denoiser, strength: float | None, steps: int) -> list[float]:
    """Where the steps begin and end, steps + 1 times down to 0."""
    times = torch.linspace(1 if strength is None else strength, 0, steps + 1, dtype=torch.float64)
    if denoiser.facts.attention == "causal" and absorbing(process):  # whatever the schedule, a token a step
        times = process.schedule.inverse(1 - times)
    return times.tolist()


def _plan(
    process: Process,
    denoiser: Denoiser,
    frozen: Tensor,
    strength: float | None,
    steps: int | None,
    sampler: str | Sampler | None,
    temperature: float,
    top_p: float,
) -> tuple[int, Sampler]:
    """The number of steps and the step function; all that is asked for is checked against what the denoiser can do."""
    if process.mask_id != denoiser.facts.mask_id:
        raise ValueError(
            f"the process masks with id {process.mask_id}, the denoiser was trained with {denoiser.facts.mask_id}"
        )
    if strength is not None and denoiser.facts.attention in ("causal", "block"):
        raise ValueError(
            f"strength={strength} with a denoiser of {denoiser.facts.attention} attention: it writes from left to "
            "right and cannot redraft a text; use a model of full attention"
        )
    check_temperature(temperature, top_p)
    if denoiser.facts.vectors and (temperature, top_p) != (1.0, 1.0):
        raise ValueError(
            f"temperature={temperature}, top_p={top_p} of a denoiser that answers with vectors, which are no mean of "
            "tokens: leave both at 1; 'ddim:tau=0.9' is a temperature of vectors"
        )
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps}: take at least one")
    if denoiser.facts.attention != "causal":
        chosen = samplers.get(sampler or ancestral)
        if strength is not None and getattr(chosen, "keywords", {}).get("strategy") == "loop":
            raise ValueError(f"strength={strength} with remdm:strategy=loop, which has a clock of its own: use another")
        return steps or DEFAULT_STEPS, chosen
    free, most = (int(count) for count in (~frozen).sum(1).aminmax())
    if free != most:
        raise ValueError(
            f"rows of {free} to {most} free positions: draw them apart, an autoregressive row takes one each"
        )
    if bool((frozen[:, 1:] & ~frozen[:, :-1]).any()):
        raise ValueError("an autoregressive denoiser only continues a prompt: it sees nothing right of a gap")
    if samplers.get(sampler or left_to_right) is not left_to_right:
        raise ValueError("an autoregressive denoiser needs sampler='left_to_right'")
    if steps not in (None, free):
        raise ValueError(f"steps={steps}: an autoregressive denoiser takes one per token, {free} here; leave it out")
    return max(free, 1), left_to_right


def _finished(process: Process, z: Tensor) -> bool:
    """Whether all is written, where masks are the only noise."""
    only_masks = absorbing(process) or isinstance(process, PerToken)
    return only_masks and not bool((z == process.mask_id).any())


def _finish(process: Process, query: Asked, z: Tensor, draw: Draw) -> Tensor:
    """The tokens at t = 0. Vectors, and masks a callback left, take one more call; only free positions are drawn."""
    zero = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    if process.vectors:
        query(z, zero)
        assert query.tokens is not None
        return query.tokens
    if process.mask_id is None or not bool((z == process.mask_id).any()):
        return z
    left = z == process.mask_id
    return torch.where(left, draw.tokens(query(z, zero)), z)
