"""Training objectives: (denoiser, process, batch, u, generator) -> loss per token, and the bound it reports.

The loss is what gradients come from; the bound is the NELBO of the same draw, in nats per token. A reweighted loss is
not a likelihood, so the two are kept apart: those of ``nelbo`` and ``autoregressive`` are one, that of
``cross_entropy`` is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from redraft.errors import unknown
from redraft.processes import Denoiser, Facts, Process, absorbing
from redraft.processes.base import log_prob_of, per_position, to_convention
from redraft.randomness import Device, Generators

Batch = Mapping[str, Tensor]
"""``ids`` (B, L) clean tokens; optional ``segments`` (B, L), ``valid`` (B, L) bool: the tokens that count."""


@dataclass(frozen=True)
class Loss:
    """``value`` (B, L), averaged over valid tokens, is minimised; ``bound`` (B, L), detached, has a mean >= -log p."""

    value: Tensor
    bound: Tensor


class Objective(Protocol):
    """``u`` (B,) in [0, 1) decides the noise levels, ``generator`` (one per row) the noise."""

    def __call__(
        self, denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None
    ) -> Loss: ...


def nelbo(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Loss:
    """The negative evidence lower bound itself, for every process (see ``Process.nelbo``); nats per token."""
    z, t, weight = corrupt(process, batch["ids"], u, generator)
    if absorbing(process):
        losses = masked_cross_entropy(denoiser, batch, z, t, z == process.mask_id)
        value = weight * process.mask_weight(t) * losses
    else:
        value = bound(process, log_probs(denoiser, process, batch, z, t), batch["ids"], z, t, weight)
    return Loss(value, value.detach())


def cross_entropy(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Loss:
    """-log p(x0 | z) with weight 1 at every noised position: MaskGIT's loss on masks, CDCD's on embeddings.

    It teaches the full posterior, so for uniform and hybrid noise it acts on ``to_full`` of the cavity output; fed to
    the raw output it would pull the reverse kernel to another law. Not a bound, but the draw's NELBO is reported.
    """
    z, t, weight = corrupt(process, batch["ids"], u, generator)
    if absorbing(process):
        value = masked_cross_entropy(denoiser, batch, z, t, z == process.mask_id)
        return Loss(value, value.detach() * weight * process.mask_weight(t))
    logp = log_probs(denoiser, process, batch, z, t)
    value = -log_prob_of(batch["ids"], process.to_full(logp, z, t))
    return Loss(value, bound(process, logp.detach(), batch["ids"], z, t, weight))


def autoregressive(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Loss:
    """-log p(x_i | x_<i): the baseline's exact likelihood, one forward; draws nothing, so u and generator are idle.

    Errors: ``ValueError`` for a denoiser that is not causal.
    """
    if denoiser.facts.attention != "causal":
        raise ValueError("objective 'autoregressive' needs a causal denoiser: set model.causal=True")
    value = -log_prob_of(batch["ids"], denoiser(batch["ids"], u, condition(batch)))
    return Loss(value, value.detach())


OBJECTIVES: dict[str, Objective] = {
    "nelbo": nelbo,
    "cross_entropy": cross_entropy,
    "autoregressive": autoregressive,
}


def get(name: str) -> Objective:
    """The objective of a name. Errors: ``ValueError`` naming the nearest."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def check(objective: str, process: Process, facts: Facts) -> None:
    """Refuse, before any step, combinations that cannot train: ``ValueError``."""
    if (objective == "autoregressive") != (facts.attention == "causal"):
        raise ValueError(
            f"objective {objective!r} with {facts.attention} attention: "
            "'autoregressive' and model.causal=True go together, and only together"
        )
    if not (absorbing(process) or process.vectors or facts.time_conditioned):
        raise ValueError(f"a {process.name} process needs the time: set model.time_conditioned=True")


# ------------------------------------------------------------------------------------------------------------ parts


def as_batch(arrays: Mapping[str, NDArray[Any] | Tensor], device: Device = None) -> dict[str, Tensor]:
    """Rows of ``redraft.data`` as tensors: ids and segments long, valid bool."""
    kinds = {"ids": torch.long, "segments": torch.long, "valid": torch.bool}
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
    if process.vectors:
        terms = torch.where(per_position(t == 0), -log_prob_of(x0, logp), terms)
    return weight.to(terms) * terms + process.prior_kl(x0).to(terms)


def condition(batch: Batch) -> dict[str, Tensor] | None:
    """What a denoiser is told beside z and t."""
    return {"segments": batch["segments"]} if "segments" in batch else None


def log_probs(denoiser: Denoiser, process: Process, batch: Batch, z: Tensor, t: Tensor) -> Tensor:
    """The denoiser's log p in the convention of ``Process.nelbo``, (B, L, K)."""
    return to_convention(denoiser, process, denoiser(z, t, condition(batch)), z, t)


def masked_cross_entropy(denoiser: Denoiser, batch: Batch, z: Tensor, t: Tensor, where: Tensor) -> Tensor:
    """-log p(x0) at the masked positions ``where`` and 0 elsewhere, (B, L); the others need no output layer."""
    if denoiser.facts.selective:
        logp = denoiser(z, t, condition(batch), where=where)  # pyright: ignore[reportCallIssue]
    else:
        logp = denoiser(z, t, condition(batch))[where]
    losses = -log_prob_of(batch["ids"][where], logp)
    return torch.zeros(where.shape, dtype=losses.dtype, device=losses.device).masked_scatter(where, losses)
