"""Unbiased draws of the bound, exact values, and which of them a denoiser allows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from redraft import objectives
from redraft.errors import unknown
from redraft.evaluation import enumeration, importance, ode, times
from redraft.evaluation.times import Corrupting
from redraft.models import contexts
from redraft.objectives import Batch, over_counts, vectors
from redraft.processes import Denoiser, Gaussian, Process, absorbing
from redraft.processes.base import per_position
from redraft.randomness import Generators
from redraft.sampling import DEFAULT_STEPS

Score = Callable[[Denoiser, Process, Batch, Tensor, Generators], Tensor]
"""(denoiser, process, batch, u, generator) -> one unbiased draw of the bound, nats per token, (B, L)."""
Times = Callable[[Tensor], tuple[Tensor, Tensor]]
"""u -> (t, dt / du), of u's shape."""


def exact(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """-log p(x_i | x_<i) of a causal denoiser."""
    return objectives.autoregressive(denoiser, process, batch, u, generator).bound


def over_times(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The continuous-time NELBO at the time u stands for (``times.spread_times``)."""
    t, weight = times.spread_times(process, u.to(batch["ids"].device))
    terms = _at(denoiser, process, batch, t, _earliest(process, batch), generator)
    return per_position(weight) * terms + process.prior_kl(batch["ids"])


def _earliest(process: Process, batch: Batch) -> Tensor:
    """``times.earliest`` of whole rows."""
    free = ~enumeration.clean(process, batch)
    return times.earliest(cast(Corrupting, process), batch["ids"], free, times.whole(batch["ids"]))


def _at(denoiser: Denoiser, process: Process, batch: Batch, t: Tensor, least: Tensor, generator: Generators) -> Tensor:
    """The integrand at a draw of z at t, (B, L); among masks what does not count stands clean, and is known."""
    ids, free = batch["ids"], ~enumeration.clean(process, batch)
    rank = times.whole(ids)
    z, weight = times.noised(cast(Corrupting, process), ids, free, rank, per_position(t), least, generator)
    return times.weighed(weight, enumeration.integrand(denoiser, process, batch, z, t))


def over_levels(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The VLB of vectors at the noise level u stands for, drawn evenly over gamma unless the schedule was learned."""
    assert isinstance(process, Gaussian)
    drawn = vectors.draw(denoiser, process, batch["ids"], u, generator, evenly=True)
    return vectors.measured(process, vectors.answer(denoiser, process, batch, drawn), drawn)


def over_steps(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The NELBO of a chain of T steps, at the step u stands for: a bound of that chain's law, no other's."""
    t, weight = process.times(u.to(batch["ids"].device))
    terms = _at(denoiser, process, batch, t, _earliest(process, batch), generator)
    return per_position(weight) * terms + process.prior_kl(batch["ids"])


def over_all_steps(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The NELBO of a chain of T steps, each of them at a draw of z there: no step is drawn, and u is idle."""
    T, total, least = steps_of(process), process.prior_kl(batch["ids"]).double(), _earliest(process, batch)
    assert T is not None
    for step in range(1, T + 1):
        t = torch.full((len(total),), step / T, dtype=torch.float64, device=total.device)
        total = total + _at(denoiser, process, batch, t, least, generator) / T
    return total


def over_block_times(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The NELBO of every block at a time of its own, over the whole range of mask rates."""
    return _by_blocks(denoiser, process, batch, u, generator, partial(times.spread_times, process))


def over_block_steps(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The NELBO of every block's chain of T steps, each at a step of its own."""
    return _by_blocks(denoiser, process, batch, u, generator, process.times)


def _by_blocks(
    denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators, chosen: Times
) -> Tensor:
    """The masked integrand of every block at the time its own u stands for; what is known stands clean. (B, L)."""
    assert absorbing(process)
    ids, block = batch["ids"], objectives.block_of(denoiser)
    rank = contexts.block_ranks(ids.shape[1], block, ids.device)
    each = objectives.block_times(u.to(ids.device), int(rank[-1]) + 1, generator)
    t, weight = chosen(each)
    free = objectives.valid(batch)
    least = times.earliest(process, ids, free, rank)
    z, likelier = times.noised(process, ids, free, rank, t, least, generator)
    t = t[:, rank]
    losses = objectives.two_stream_cross_entropy(denoiser, batch, z, t, rank, free & (z == process.mask_id))
    return times.weighed(likelier, weight[:, rank] * process.mask_weight(t) * losses)


def over_block_counts(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """``over_counts`` block by block: k of each block's n valid tokens masked, the clean blocks before it told."""
    block = objectives.block_of(denoiser)
    z, masked, weight = objectives.some_masked(process, batch, u, generator, block)
    rank = contexts.block_ranks(z.shape[1], block, z.device)
    return objectives.two_stream_cross_entropy(denoiser, batch, z, 1 / weight, rank, masked) * weight


def over_single_tokens(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """-log p(x_i | x_<i) of a model whose blocks are single tokens."""
    return objectives.bd3lm(denoiser, process, batch, u, generator, mask_min=0.0, mask_max=1.0).bound


def over_orders(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """-log p(x_i | those before it) in a random order: exact for that order, and on average over orders a bound."""
    return objectives.any_order(denoiser, process, batch, u, generator).bound


def over_flow(
    denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators, steps: int, probes: int
) -> Tensor:
    """The bound of the probability-flow ODE from one draw of z at t = 0 (``ode.bound``); u is idle."""
    assert isinstance(process, Gaussian)
    ids = batch["ids"]
    z = process.corrupt(ids, torch.zeros(len(ids), dtype=torch.float64, device=ids.device), generator)
    return ode.bound(denoiser, process, batch, z, generator, steps, probes)


ESTIMATORS: dict[Score, str] = {
    exact: "chain rule, exact",
    over_times: "continuous-time NELBO, stratified t",
    over_levels: "continuous-time VLB, stratified noise level",
    over_steps: "discrete-time NELBO of T steps, stratified step",
    over_counts: "NELBO, k of n tokens masked, stratified k",
    over_block_times: "block NELBO, continuous time, stratified t per block",
    over_block_steps: "block NELBO, discrete time, stratified step per block",
    over_block_counts: "block NELBO, k of n tokens masked per block, stratified k",
    over_single_tokens: "chain rule, exact, in blocks of one token",
    over_orders: "any-order chain rule, exact per order, random orders",
}
EXACT: tuple[Score, ...] = (exact, over_single_tokens)
"""Those that draw nothing: their value is -log p itself."""


def choose(denoiser: Denoiser, process: Process) -> Score:
    """The estimator of least variance that this denoiser and process allow."""
    # k-DCE is the mean of the continuous bound; that of T steps lies above it
    steps = getattr(process, "steps", None)
    if denoiser.facts.attention == "causal":
        return exact
    if denoiser.facts.attention == "permuted":
        return over_orders
    if denoiser.facts.attention == "block":
        if denoiser.facts.block == 1:
            return over_single_tokens
        if steps is not None:
            return over_block_steps
        return over_block_times if denoiser.facts.time_conditioned else over_block_counts
    if isinstance(process, Gaussian):
        return over_levels
    if steps is not None:
        return over_steps
    return over_counts if absorbing(process) and not denoiser.facts.time_conditioned else over_times


def steps_of(process: Process) -> int | None:
    """T of a process that is a chain in discrete time; None in continuous time."""
    return getattr(process, "steps", None)


NAMES = ("vlb", "steps", "exact_elbo", "any_order", "importance", "enumeration", "ode")
"""What may be asked for by name:

``vlb``: the NELBO as an integral over noise levels, or a sum over a chain's steps of which one is drawn.
``steps``: that sum, with every step.
``exact_elbo``: the NELBO with nothing left to chance.
``any_order``: the chain rule in a random order.
``importance``: the importance-weighted bound of so many ``particles``.
``enumeration``: -log p itself.
``ode``: the bound of a Gaussian process's probability-flow ODE, by ``ode_steps`` of Heun's method with ``ode_probes``.
"""
OPTIONS = {
    "ode_steps": ("ode",),
    "ode_probes": ("ode",),
    "particles": ("importance",),
    "chain_steps": ("importance", "enumeration"),
}
"""Which estimators take an option."""
PARTICLES = 8


@dataclass(frozen=True)
class Estimator:
    """How a row is scored, and what a figure by it must be quoted with.

    ``is_bound``: -log p lies at or below what is expected of it; it is -log p otherwise. ``draws``: whether anything is
    left to chance.
    """

    score: Score
    name: str
    is_bound: bool = True
    draws: bool = True


def get(name: str | None, denoiser: Denoiser, process: Process, **options: int | None) -> Estimator:
    """The estimator of a name, one of ``NAMES``, with its ``OPTIONS``; ``choose`` decides unless given.

    Errors: ``ValueError`` for an unknown name, one that does not fit the model, an option of another, or below 1 (of
    ``ode_probes`` below 0).
    """
    if name not in (None, *NAMES):
        raise unknown("estimator", name, NAMES)
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        if name not in OPTIONS[option]:
            wanted = " or ".join(f"estimator={one!r}" for one in OPTIONS[option])
            raise ValueError(f"{option}={value} goes with {wanted}: pass that with it, or leave it out")
        if option in ("particles", "chain_steps") and value < 1:
            raise ValueError(f"{option}={value}: take at least one")
    if name == "ode":
        return _flow(process, given.get("ode_steps", ode.STEPS), given.get("ode_probes", 1))
    chosen = choose(denoiser, process)
    if name is not None:
        _check(name, denoiser, process, chosen)
    if name is None or name == "vlb":
        if name == "vlb" and chosen is over_counts:  # the same mean, by another way
            chosen = over_times
        exact = chosen in EXACT
        return Estimator(chosen, ESTIMATORS[chosen], is_bound=not exact, draws=not exact)
    return _MAKERS[name](denoiser, process, given)


def _check(name: str, denoiser: Denoiser, process: Process, chosen: Score) -> None:
    """Refuse what an estimator says nothing of: ``ValueError``."""
    facts = denoiser.facts
    orders = name in ("any_order", "importance") and facts.attention == "permuted"
    if facts.attention != "full" and not orders:
        raise ValueError(
            f"estimator={name!r} of a denoiser whose attention is {facts.attention!r}, which has an estimator of its "
            f"own, {ESTIMATORS[chosen]!r}: leave it out"
        )
    if name == "vlb":
        return
    if isinstance(process, Gaussian):
        raise ValueError(f"estimator={name!r} of a {process.name} process: it is for tokens; use 'vlb' or 'ode'")
    if facts.self_conditioned and name in ("importance", "enumeration"):
        raise ValueError(
            f"estimator={name!r} of a self-conditioned denoiser: its sampler hands what was said from step to step, so "
            "that its law is no chain of z alone; leave it out"
        )


def _steps(denoiser: Denoiser, process: Process, given: Mapping[str, int]) -> Estimator:
    if (T := steps_of(process)) is None:
        raise ValueError(
            f"estimator='steps' of a {process.name} process in continuous time: it has no steps to sum, leave it out"
        )
    return Estimator(over_all_steps, f"discrete-time NELBO, all of {T} steps, z drawn")


def _exact_elbo(denoiser: Denoiser, process: Process, given: Mapping[str, int]) -> Estimator:
    if (T := steps_of(process)) is not None:
        score = cast(Score, partial(enumeration.nelbo_over_states, steps=T))
        return Estimator(score, f"discrete-time NELBO, all of {T} steps, all z: no chance", draws=False)
    if absorbing(process) and not denoiser.facts.time_conditioned:
        return Estimator(enumeration.nelbo_over_sets, "NELBO, all sets of masked tokens: no chance", draws=False)
    raise ValueError(
        f"estimator='exact_elbo' of a {process.name} process in continuous time, whose bound is an integral over t: it "
        "is for processes with steps, and for masked denoisers that do not read t; leave it out"
    )


def _any_order(denoiser: Denoiser, process: Process, given: Mapping[str, int]) -> Estimator:
    if denoiser.facts.attention == "permuted":
        return Estimator(over_orders, ESTIMATORS[over_orders])
    if not absorbing(process):
        raise ValueError(
            f"estimator='any_order' of a {process.name} process: tokens are written in an order among masks only; "
            "leave it out, or use 'importance'"
        )
    return Estimator(importance.over_random_order, f"any-order chain rule, a forward per token{_told(denoiser)}")


def _chain_steps(denoiser: Denoiser, process: Process, given: Mapping[str, int]) -> int | None:
    """Of how many ancestral steps the law is that is asked about; None for one token at a time."""
    one_by_one = denoiser.facts.attention == "permuted" or (absorbing(process) and steps_of(process) is None)
    return given.get("chain_steps", None if one_by_one else steps_of(process) or DEFAULT_STEPS)


def _importance(denoiser: Denoiser, process: Process, given: Mapping[str, int]) -> Estimator:
    k, steps = given.get("particles", PARTICLES), _chain_steps(denoiser, process, given)
    permuted = denoiser.facts.attention == "permuted"
    if steps is None:
        own = objectives.any_order if permuted else None
        score: Score = partial(importance.of_orders, particles=k, order=own)
        return Estimator(score, f"importance-weighted bound, {k} random orders{_told(denoiser)}")
    if permuted:
        raise ValueError(f"chain_steps={steps} of a permuted denoiser, which writes in an order: leave it out")
    score = cast(Score, partial(importance.of_chains, particles=k, steps=steps))
    return Estimator(score, f"importance-weighted bound, {k} chains of {steps} ancestral steps")


def _enumeration(denoiser: Denoiser, process: Process, given: Mapping[str, int]) -> Estimator:
    steps = _chain_steps(denoiser, process, given)
    if steps is None:
        told = f"enumeration, tokens one at a time in random order{_told(denoiser)}"
        return Estimator(enumeration.over_sets, told, is_bound=False, draws=False)
    score = cast(Score, partial(enumeration.over_states, steps=steps))
    return Estimator(score, f"enumeration of {steps} ancestral steps", is_bound=False, draws=False)


def _told(denoiser: Denoiser) -> str:
    return ", t told by count" if denoiser.facts.time_conditioned else ""


_MAKERS = {
    "steps": _steps,
    "exact_elbo": _exact_elbo,
    "any_order": _any_order,
    "importance": _importance,
    "enumeration": _enumeration,
}


def _flow(process: Process, steps: int, probes: int) -> Estimator:
    if not isinstance(process, Gaussian):
        raise ValueError(
            f"estimator='ode' of a {process.name} process: only vectors flow, tokens jump; use 'vlb' or leave it out"
        )
    trace = {0: "exact trace", 1: "Hutchinson trace"}.get(probes, f"Hutchinson trace of {probes} probes")
    name = f"probability-flow ODE, Heun of {steps} steps, {trace}"
    return Estimator(partial(over_flow, steps=steps, probes=probes), name)
