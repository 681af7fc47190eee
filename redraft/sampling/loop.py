"""``sample``: the only sampling loop. Prompt and infilling are one ``frozen`` mask on one canvas."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from redraft.processes import Denoiser, Gaussian, PerToken, Process, absorbing
from redraft.processes.base import device_of, to_convention
from redraft.randomness import Device, Generators, derive, generator
from redraft.sampling import samplers
from redraft.sampling.blocks import by_blocks
from redraft.sampling.contract import clean, tempered
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


@dataclass
class _Query:
    """The denoiser as samplers see it: counted, conditioned, and in the convention the reverse kernel wants."""

    denoiser: Denoiser
    process: Process
    cond: Any
    temperature: float = 1.0
    top_p: float = 1.0
    nfe: int = 0
    positions: int = 0
    tokens: Tensor | None = field(default=None, repr=False)  # of vectors: those last thought likeliest
    guess: Tensor | None = field(default=None, repr=False)  # and the clean ones themselves
    final: bool = False  # whether a token once written stays, so that nothing is asked of a row without masks
    last: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """What the denoiser says of z; rows that stand as they did when it was last asked are not asked for again.

        That holds for denoisers that do not read t (MDLM's and RADD's cached sampling, row by row): over N steps a row
        of l masks takes N (1 - (1 - 1/N)^l) calls on the linear schedule.
        """
        if isinstance(self.process, Gaussian):
            return self._vectors(self.process, z, t)
        stale = torch.ones(len(z), dtype=torch.bool, device=z.device)
        if self.last is not None and self.last[0].shape == z.shape:
            stale = (self.last[0] != z).any(1)
            if self.final:
                stale &= (z == self.process.mask_id).any(1)
        if not bool(stale.any()):
            assert self.last is not None
            return self.last[1]
        if self.cond is not None:  # it may speak of rows, and cannot be cut
            stale = torch.ones_like(stale)
        self._count(self.denoiser, int(stale.sum()) * z.shape[1])
        if bool(stale.all()):
            logp = clean(self.denoiser(z, t, self.cond), self.process)
        else:
            assert self.last is not None
            logp = self.last[1].clone()
            logp[stale] = clean(self.denoiser(z[stale], t[stale], self.cond), self.process)
        if absorbing(self.process) and not self.denoiser.facts.time_conditioned:
            self.last = z.clone(), logp
        return to_convention(self.denoiser, self.process, logp, z, t)

    def _vectors(self, process: Gaussian, z: Tensor, t: Tensor) -> Tensor:
        """Clean vectors (B, L, D). One that conditions on itself is told what it said at the step before."""
        facts, cond = self.denoiser.facts, self.cond
        if facts.self_conditioned:
            nothing = z.new_zeros((*z.shape[:2], process.D))
            cond = {**(cond or {}), "guess": nothing if self.guess is None else self.guess.to(z)}
        self._count(self.denoiser, z.shape[0] * z.shape[1])
        if facts.vectors:
            self.guess = x = self.denoiser(z, t, cond, **{"vectors": True})
            self.tokens = process.nearest(x)
            return x
        logp = self.denoiser(z, t, cond)
        self.tokens = logp.argmax(-1)
        x = process.mean(logp.exp())
        if facts.self_conditioned:
            self.guess = x
        plain = self.temperature == 1 and self.top_p == 1
        return x if plain else process.mean(tempered(logp, self.temperature, self.top_p)).to(x)

    def beside(self, denoiser: Denoiser, cond: Any, /) -> Callable[[Tensor, Tensor], Tensor]:
        """A second denoiser, told ``cond``, in the same convention and counted with the first."""

        def ask(z: Tensor, t: Tensor) -> Tensor:
            self._count(denoiser, z.shape[0] * z.shape[1])
            return to_convention(denoiser, self.process, clean(denoiser(z, t, cond), self.process), z, t)

        return ask

    def _count(self, denoiser: Denoiser, positions: int) -> None:
        self.nfe += denoiser.facts.forwards
        self.positions += denoiser.facts.forwards * positions


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

    Frozen tokens never change. A masked denoiser conditions on them exactly; under uniform, hybrid and Gaussian noise
    it is told one t for the whole row and reads them as noisy too: infilling is approximate there, whatever the steps.

    Row r draws from its own generator, seeded by ``seeds[r]``, or by (seed, r): no row depends on those beside it.
    A masked canvas without masks left ends the loop early, so ``nfe`` may be below ``steps``. A block model writes one
    block after the other, ``steps`` each, and ``nfe`` counts the clean pass by which a finished one is remembered.

    Errors: ``ValueError`` for options that clash, ids that are no tokens, a denoiser of another mask id.
    """
    if process.mask_id != denoiser.facts.mask_id:
        raise ValueError(
            f"the process masks with id {process.mask_id}, the denoiser was trained with {denoiser.facts.mask_id}"
        )
    device = device_of(denoiser) if device is None else device
    given, frozen = _layout(process, length, num if seeds is None else len(seeds), prompt, canvas, frozen)
    given, frozen = given.to(device), frozen.to(device)
    rows = given.shape[0]
    seeds = [derive(seed, row) for row in range(rows)] if seeds is None else list(seeds)
    if len(seeds) != rows:
        raise ValueError(f"{len(seeds)} seeds for {rows} rows: pass one per row")
    if denoiser.facts.attention == "block":
        options = {"steps": steps, "sampler": sampler, "temperature": temperature, "top_p": top_p, "device": device}
        return Samples(*by_blocks(sample, process, denoiser, given, frozen, seeds, cond, callback, **options), seeds)
    steps, step_function = _plan(denoiser, frozen, steps, sampler)
    generators = [generator(one) for one in seeds]
    final = absorbing(process) and not revises(step_function)
    query = _Query(denoiser, process, cond, temperature, top_p, final=final)

    z = process.prior((rows, given.shape[1]), generators, device)
    z = _put_back(process, z, given, frozen, 1.0, generators)
    draw = Draw(frozen, generators, temperature, top_p)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    if denoiser.facts.attention == "causal" and absorbing(process):  # whatever the schedule, a token a step
        times = process.schedule.inverse(1 - times)
    for index, (t, s) in enumerate(pairwise(times.tolist())):
        if _finished(process, z) and not revises(step_function):
            break
        t_rows, s_rows = (torch.full((rows,), value, dtype=torch.float64, device=device) for value in (t, s))
        z = step_function(process, query, z, t_rows, s_rows, draw)
        z = _put_back(process, z, given, frozen, s, generators)
        if callback is not None:
            shown = z if query.tokens is None else torch.where(frozen, given, query.tokens)
            rewritten = callback(Step(index, steps, t, s, z, shown, frozen, query.nfe))
            if rewritten is not None:
                z = _put_back(process, _checked(process, rewritten, z), given, frozen, s, generators)
    tokens = _finish(process, query, z, draw)
    return Samples(torch.where(frozen, given, tokens), query.nfe, query.positions, seeds)


def _layout(
    process: Process,
    length: int,
    num: int,
    prompt: Tensor | Sequence[int] | None,
    canvas: Tensor | None,
    frozen: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The given ids and the frozen mask, both (B, L); free positions hold 0."""
    if num < 1:
        raise ValueError(f"num={num}: draw at least one row")
    if (canvas is None) != (frozen is None):
        raise ValueError("canvas and frozen go together: the ids, and which of them must not change")
    if canvas is None or frozen is None:
        if length < 1:
            raise ValueError(f"length={length}: ask for at least one token")
        start = torch.as_tensor([] if prompt is None else prompt, dtype=torch.long).cpu()
        if start.ndim != 1:
            raise ValueError(f"prompt of shape {tuple(start.shape)}: pass one sequence of ids, or canvas and frozen")
        canvas = torch.cat([start, torch.zeros(length, dtype=torch.long)])
        frozen = torch.arange(len(canvas)) < len(start)
    elif prompt is not None:
        raise ValueError("prompt and canvas are two ways to say the same: pass one")
    if canvas.shape != frozen.shape or canvas.ndim not in (1, 2) or frozen.dtype is not torch.bool:
        raise ValueError(
            f"canvas {tuple(canvas.shape)} and frozen {tuple(frozen.shape)} of {frozen.dtype}: "
            "pass ids and a bool of one shape, (L,) or (B, L)"
        )
    if canvas.ndim == 1:
        canvas, frozen = canvas.expand(num, -1), frozen.expand(num, -1)
    elif num not in (1, len(canvas)):
        raise ValueError(f"num={num} with a canvas of {len(canvas)} rows: leave num out, or pass one row")
    known = canvas[frozen]
    if len(known) and not 0 <= int(known.min()) <= int(known.max()) < process.K:
        raise ValueError(
            f"frozen ids run from {int(known.min())} to {int(known.max())}, tokens from 0 to {process.K - 1}"
        )
    if process.mask_id is not None and bool((known == process.mask_id).any()):
        raise ValueError(
            f"a frozen position holds the mask id {process.mask_id}: leave positions to be written unfrozen"
        )
    return torch.where(frozen, canvas, 0), frozen


def _plan(denoiser: Denoiser, frozen: Tensor, steps: int | None, sampler: str | Sampler | None) -> tuple[int, Sampler]:
    """The number of steps and the step function, checked against what the denoiser can do."""
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps}: take at least one")
    if denoiser.facts.attention != "causal":
        return steps or DEFAULT_STEPS, samplers.get(sampler or ancestral)
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


def _put_back(process: Process, z: Tensor, given: Tensor, frozen: Tensor, s: float, generators: Generators) -> Tensor:
    """Restore the given tokens: as they are among ids; freshly noised to time s among vectors (RePaint's way)."""
    if not process.vectors:
        return torch.where(frozen, given, z)
    # drawn for rows without given tokens too: a row's draws must not depend on the rows beside it
    at = torch.full((len(z),), s, dtype=torch.float64, device=z.device)
    return torch.where(frozen[..., None], process.corrupt(given, at, generators).to(z), z)


def _finished(process: Process, z: Tensor) -> bool:
    """Whether all is written, where masks are the only noise."""
    only_masks = absorbing(process) or isinstance(process, PerToken)
    return only_masks and not bool((z == process.mask_id).any())


def _checked(process: Process, rewritten: Tensor, z: Tensor) -> Tensor:
    if rewritten.shape != z.shape:
        raise ValueError(f"the callback returned shape {tuple(rewritten.shape)} for a canvas of {tuple(z.shape)}")
    states = max(process.K, 0 if process.mask_id is None else process.mask_id + 1)
    if not process.vectors and not 0 <= int(rewritten.min()) <= int(rewritten.max()) < states:
        raise ValueError(f"the callback wrote an id outside the states, 0 to {states - 1}: {rewritten.tolist()}")
    return rewritten.to(z)


def _finish(process: Process, query: _Query, z: Tensor, draw: Draw) -> Tensor:
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
