"""``sample``: the only sampling loop. Prompt, infilling and editing are one ``frozen`` mask on one canvas."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from redraft.models.told import Told
from redraft.processes import Denoiser, Gaussian, PerToken, Process, absorbing
from redraft.processes.base import device_of, to_convention
from redraft.randomness import Device, derive, generator
from redraft.sampling import samplers
from redraft.sampling.blocks import by_blocks
from redraft.sampling.canvas import Canvas, checked, convention, layout
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
    told: Callable[[Denoiser], Denoiser] | None = None  # what tells a denoiser that given tokens are clean
    nfe: int = 0
    positions: int = 0
    tokens: Tensor | None = field(default=None, repr=False)  # of vectors: those last thought likeliest
    guess: Tensor | None = field(default=None, repr=False)  # and the clean ones themselves
    final: bool = False  # whether a token once written stays, so that nothing is asked of a row without masks
    last: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.denoiser = self.told(self.denoiser) if self.told else self.denoiser

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
            x = self.denoiser(z, t, cond, **{"vectors": True})
            self.guess = x.detach()
            self.tokens = process.nearest(x)
            return x
        logp = self.denoiser(z, t, cond)
        self.tokens = logp.argmax(-1)
        x = process.mean(logp.exp())
        if facts.self_conditioned:
            self.guess = x.detach()  # who asks with gradients (plug-and-play control) leaves no graph behind
        plain = self.temperature == 1 and self.top_p == 1
        return x if plain else process.mean(tempered(logp, self.temperature, self.top_p)).to(x)

    def beside(self, denoiser: Denoiser, cond: Any, /) -> Callable[[Tensor, Tensor], Tensor]:
        """A second denoiser, told ``cond``, in the same convention and counted with the first."""
        denoiser = self.told(denoiser) if self.told else denoiser

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
    they stand on the canvas, and what is drawn beside them depends on it:

    - ``noised``: noised to the time of the canvas, afresh after each step (RePaint, Lugmayr et al. 2022); usual among
      vectors. Biased, whatever the steps: what is free has been denoised beside other noise. ``resample`` jumps back
      from s to t and repeats the step so many times, at as many more calls, which lowers the bias.
    - ``clean``: without noise, alpha_s x (Diffusion-LM) or the token itself, which is usual among tokens. The denoiser
      takes them for as noisy as the rest, and so for less than they say.
    - ``told``: without noise and said to be so, by a time of their own (``models.told``). Exact where the denoiser
      knows what that means: one trained with ``loss.given``, or exact itself.

    Guidance by the given tokens' own likelihood (PLAID's token guidance) is a fourth way, and a denoiser of its own.

    Row r draws from its own generator, seeded by ``seeds[r]``, or by (seed, r): no row depends on those beside it.
    A masked canvas without masks left ends the loop early, so ``nfe`` may be below ``steps``. A block model writes one
    block after the other, ``steps`` each, and ``nfe`` counts the clean pass by which a finished one is remembered.

    Errors: ``ValueError`` for options that clash, ids that are no tokens, a denoiser of another mask id, a text to be
    redrafted by a model that writes in one order only.
    """
    if process.mask_id != denoiser.facts.mask_id:
        raise ValueError(
            f"the process masks with id {process.mask_id}, the denoiser was trained with {denoiser.facts.mask_id}"
        )
    device = device_of(denoiser) if device is None else device
    ids, frozen = layout(process, length, num if seeds is None else len(seeds), prompt, canvas, frozen, strength)
    ids, frozen = ids.to(device), frozen.to(device)
    given = convention(process, denoiser.facts, given, resample, frozen)
    seeds = [derive(seed, row) for row in range(len(ids))] if seeds is None else list(seeds)
    if len(seeds) != len(ids):
        raise ValueError(f"{len(seeds)} seeds for {len(ids)} rows: pass one per row")
    if strength is not None and denoiser.facts.attention in ("causal", "block"):
        raise ValueError(
            f"strength={strength} with a denoiser of {denoiser.facts.attention} attention: it writes from left to "
            "right and cannot redraft a text; use a model of full attention"
        )
    if denoiser.facts.attention == "block":
        options = {"steps": steps, "sampler": sampler, "temperature": temperature, "top_p": top_p, "device": device}
        return Samples(*by_blocks(sample, process, denoiser, ids, frozen, seeds, cond, callback, **options), seeds)
    if denoiser.facts.vectors and (temperature, top_p) != (1.0, 1.0):
        raise ValueError(
            f"temperature={temperature}, top_p={top_p} of a denoiser that answers with vectors, which are no mean of "
            "tokens: leave both at 1; 'ddim:tau=0.9' is a temperature of vectors"
        )
    steps, step_function = _plan(denoiser, frozen, steps, sampler)
    if strength == 0:
        return Samples(ids.clone(), 0, 0, seeds)
    generators = [generator(one) for one in seeds]
    final = absorbing(process) and not revises(step_function)
    told = partial(Told, process=process, ids=ids, given=frozen) if given == "told" else None
    query = _Query(denoiser, process, cond, temperature, top_p, told, final=final)
    draw = Draw(frozen, generators, temperature, top_p)
    board = Canvas(process, ids, frozen, given, generators, strength)

    times = torch.linspace(1 if strength is None else strength, 0, steps + 1, dtype=torch.float64)
    if denoiser.facts.attention == "causal" and absorbing(process):  # whatever the schedule, a token a step
        times = process.schedule.inverse(1 - times)
    z = board.put_back(board.begin(), times[0].item())
    for index, (t, s) in enumerate(pairwise(times.tolist())):
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


def _finished(process: Process, z: Tensor) -> bool:
    """Whether all is written, where masks are the only noise."""
    only_masks = absorbing(process) or isinstance(process, PerToken)
    return only_masks and not bool((z == process.mask_id).any())


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
