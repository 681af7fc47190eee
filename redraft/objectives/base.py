"""What every objective is made of: the contract, the draw of (z, t), the bound, the cross-entropy of masked tokens."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch
from numpy.typing import NDArray
from torch import Tensor

from redraft.processes import Categorical, Denoiser, Process, only_masks
from redraft.processes.base import Attention, Condition, log_prob_of, per_position, to_convention
from redraft.randomness import Device, Generators

Batch = Mapping[str, Tensor]
"""``ids`` (B, L) clean tokens; optional ``segments`` (B, L), ``valid`` (B, L) bool: the tokens that count.

``positions`` (B, L): where each token stands in its own text, of rows of several (``finetuning.rows``).
"""


@dataclass(frozen=True)
class Loss:
    """``value`` (B, L), averaged over valid tokens, is minimised; ``bound`` (B, L), detached, has a mean >= -log p.

    ``terms``: named parts of the value, (B, L), for whoever wants to know which of them went bad. ``counts`` (B, L):
    what the value is averaged over in place of the valid tokens, sum(value) / sum(counts), both of the global batch.
    """

    value: Tensor
    bound: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    counts: Tensor | None = None


class Objective(Protocol):
    """``u`` (B,) in [0, 1) decides the noise levels, ``generator`` (one per row) the noise.

    Options are keywords with defaults. One named ``progress`` is given the share of the training that is done.
    """

    def __call__(
        self, denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None
    ) -> Loss: ...


def at(objective: Objective, progress: float) -> Objective:
    """The objective when ``progress`` in [0, 1] of the training is done; itself, unless it has a curriculum."""
    if "progress" not in inspect.signature(objective).parameters:
        return objective
    scheduled: Objective = partial(cast(Any, objective), progress=progress)
    return scheduled


@dataclass(frozen=True)
class Spec:
    """An objective, what it fits, and whether its training value is itself a bound on -log p (or exact).

    ``processes``: names it is defined for, empty for all; ``attention``: the contexts it trains, any of them; ``time``:
    whether the process's must be ``continuous``, or ``discrete`` (``process.steps`` is set). ``says``: whether the
    denoiser must name ``tokens``, or predict ``vectors``. ``schedules``: learned ones that it trains.
    """

    function: Callable[..., Loss]
    is_bound: bool
    processes: tuple[str, ...] = ()
    attention: tuple[Attention, ...] = ("full",)
    time: Literal["any", "continuous", "discrete"] = "any"
    says: Literal["any", "tokens", "vectors"] = "any"
    schedules: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------------ parts


def as_batch(arrays: Mapping[str, NDArray[Any] | Tensor], device: Device = None) -> dict[str, Tensor]:
    """Rows of ``redraft.data`` as tensors: ids, segments and positions long, valid bool."""
    kinds = {"ids": torch.long, "segments": torch.long, "positions": torch.long, "valid": torch.bool}
    return {name: torch.as_tensor(array).to(device, kinds[name]) for name, array in arrays.items()}


def valid(batch: Batch) -> Tensor:
    """(B, L) bool, the tokens that count: all, unless the batch says otherwise."""
    return batch["valid"] if "valid" in batch else torch.ones_like(batch["ids"], dtype=torch.bool)


def corrupt(process: Process, x0: Tensor, u: Tensor, generator: Generators) -> tuple[Tensor, Tensor, Tensor]:
    """The times t (B,) that u ~ U(0, 1) stands for, z drawn there, and what that draw weighs in the bound, (B, 1)."""
    t, weight = process.times(u.to(x0.device))
    return process.corrupt(x0, t, generator), t, per_position(weight)


def bound(process: Process, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """The NELBO of one draw of ``corrupt``, nats per token, (B, L): its mean over draws bounds -log p(x0)."""
    terms = process.nelbo(logp, x0, z, t)
    return weight.to(terms) * terms + process.prior_kl(x0).to(terms)


def log_full_of(process: Process, x0: Tensor, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """log p(x0 | all of z), what cross-entropy teaches, from ``logp`` in the process's convention; (B, L)."""
    if isinstance(process, Categorical):
        return process.log_full_of(x0, logp, z, t)
    return log_prob_of(x0, process.to_full(logp, z, t))


def condition(batch: Batch) -> Condition | None:
    """What a denoiser is told beside z and t."""
    told = {name: batch[name] for name in ("segments", "positions") if name in batch}
    return cast(Condition, told) if told else None


def log_probs(denoiser: Denoiser, process: Process, batch: Batch, z: Tensor, t: Tensor) -> Tensor:
    """The denoiser's log p in the convention of ``Process.nelbo``, (B, L, K)."""
    return to_convention(denoiser, process, denoiser(z, t, condition(batch)), z, t)


def masked_cross_entropy(
    denoiser: Denoiser, batch: Batch, z: Tensor, t: Tensor, where: Tensor, cond: Condition | None = None
) -> Tensor:
    """-log p(x0) at the masked positions ``where`` and 0 elsewhere, (B, L); the others need no output layer.

    The denoiser is told ``cond``, or what the batch says. Among rows of two streams L counts both.
    """
    cond = condition(batch) if cond is None else cond
    told = {"where": where} if denoiser.facts.selective else {}
    logp = denoiser(z, t, cond, **told)
    losses = -log_prob_of(batch["ids"][where], logp if told else logp[where])
    return torch.zeros(where.shape, dtype=losses.dtype, device=losses.device).masked_scatter(where, losses)


Integrand = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""(what the denoiser says of z at t, x0, z, t) -> terms of shape (B, L)."""


def evaluate(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    z: Tensor,
    t: Tensor,
    integrand: Integrand,
    scores: bool = False,
) -> tuple[Tensor, ...]:
    """``integrand`` of the denoiser's log p in the convention of ``Process.nelbo``, or of its log-scores; (B, L) each.

    Where the only noise is [MASK] other positions cost nothing and teach nothing: they are left at 0, and a denoiser
    that can is asked for the masked ones alone, which the integrand then sees as rows of length one.
    """
    x0, asked = batch["ids"], {"scores": True} if scores else {}
    masks_only = only_masks(process)
    if masks_only and denoiser.facts.selective:
        where = z == process.mask_id
        said = denoiser(z, t, condition(batch), **asked, **{"where": where})[:, None]
        chosen = per_position(t).expand(z.shape)[where]
        terms = integrand(said, x0[where][:, None], z[where][:, None], chosen)
        return tuple(
            torch.zeros(z.shape, dtype=term.dtype, device=z.device).masked_scatter(where, term) for term in terms
        )
    said = denoiser(z, t, condition(batch), **asked)
    if not scores:
        said = to_convention(denoiser, process, said, z, t)
    terms = integrand(said, x0, z, t)
    return tuple(torch.where(z == process.mask_id, term, 0.0) for term in terms) if masks_only else terms
