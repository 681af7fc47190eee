"""Unbiased draws of the bound, and which of them a denoiser allows."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from redraft import objectives
from redraft.errors import unknown
from redraft.evaluation import ode
from redraft.models import contexts
from redraft.objectives import Batch, over_counts, vectors
from redraft.processes import Denoiser, Gaussian, Process, absorbing
from redraft.randomness import Generators

Score = Callable[[Denoiser, Process, Batch, Tensor, Generators], Tensor]
"""(denoiser, process, batch, u, generator) -> one unbiased draw of the bound, nats per token, (B, L)."""


def exact(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """-log p(x_i | x_<i) of a causal denoiser."""
    return objectives.autoregressive(denoiser, process, batch, u, generator).bound


def over_times(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The continuous-time NELBO at the time u stands for."""
    return objectives.nelbo(denoiser, process, batch, u, generator).bound


def over_levels(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The VLB of vectors at the noise level u stands for, drawn evenly over gamma unless the schedule was learned."""
    assert isinstance(process, Gaussian)
    drawn = vectors.draw(denoiser, process, batch["ids"], u, generator, evenly=True)
    return vectors.measured(process, vectors.answer(denoiser, process, batch, drawn), drawn)


def over_steps(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The NELBO of a chain of T steps, at the step u stands for; above the continuous one it tends to."""
    return over_times(denoiser, process, batch, u, generator)


def over_block_times(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The NELBO of every block at a time of its own, over the whole range of mask rates."""
    return objectives.bd3lm(denoiser, process, batch, u, generator, mask_min=0.0, mask_max=1.0).bound


def over_block_steps(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The NELBO of every block's chain of T steps, each at a step of its own."""
    return over_block_times(denoiser, process, batch, u, generator)


def over_block_counts(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """``over_counts`` block by block: k of each block's n valid tokens masked, the clean blocks before it told."""
    block = objectives.block_of(denoiser)
    z, masked, weight = objectives.some_masked(process, batch, u, generator, block)
    rank = contexts.block_ranks(z.shape[1], block, z.device)
    return objectives.two_stream_cross_entropy(denoiser, batch, z, 1 / weight, rank, masked) * weight


def over_single_tokens(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """-log p(x_i | x_<i) of a model whose blocks are single tokens."""
    return over_block_times(denoiser, process, batch, u, generator)


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


NAMES = ("vlb", "ode")


def get(
    name: str | None, denoiser: Denoiser, process: Process, ode_steps: int | None = None, ode_probes: int | None = None
) -> tuple[Score, str]:
    """The estimator of a name and what a figure by it must be quoted with; ``choose`` decides unless given.

    ``vlb``: the NELBO as an integral over noise levels, or a sum over a chain's steps. ``ode``: the bound of a Gaussian
    process's probability-flow ODE by ``ode_steps`` of Heun's method, ``ode_probes`` for its trace (``ode.bound``).

    Errors: ``ValueError`` for an unknown name, one that does not fit the model, options of the ODE to any other.
    """
    if name not in (None, *NAMES):
        raise unknown("estimator", name, NAMES)
    if name == "ode":
        return _flow(process, ode.STEPS if ode_steps is None else ode_steps, 1 if ode_probes is None else ode_probes)
    for option, value in (("ode_steps", ode_steps), ("ode_probes", ode_probes)):
        if value is not None:
            raise ValueError(f"{option}={value} without the ODE: pass estimator='ode' with it, or leave it out")
    score = choose(denoiser, process)
    if name == "vlb":
        attention = denoiser.facts.attention
        if attention != "full":
            raise ValueError(
                f"estimator='vlb' of a denoiser whose attention is {attention!r}, which has an estimator of its own, "
                f"{ESTIMATORS[score]!r}: leave it out"
            )
        if score is over_counts:  # the same mean, by another way
            score = over_times
    return score, ESTIMATORS[score]


def _flow(process: Process, steps: int, probes: int) -> tuple[Score, str]:
    if not isinstance(process, Gaussian):
        raise ValueError(
            f"estimator='ode' of a {process.name} process: only vectors flow, tokens jump; use 'vlb' or leave it out"
        )
    trace = {0: "exact trace", 1: "Hutchinson trace"}.get(probes, f"Hutchinson trace of {probes} probes")
    name = f"probability-flow ODE, Heun of {steps} steps, {trace}"
    return partial(over_flow, steps=steps, probes=probes), name
