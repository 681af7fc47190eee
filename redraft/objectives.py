"""Training objectives: (denoiser, process, batch, u, generator) -> loss per token, and the bound it reports.

The loss is what gradients come from; the bound is the NELBO of the same draw, in nats per token, and is None where the
draw does not give one. A reweighted loss is not a likelihood, so the two are kept apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from redraft.errors import unknown
from redraft.processes import Categorical, Denoiser, Process
from redraft.processes.base import per_position
from redraft.processes.time import T_EDGE
from redraft.randomness import Device, Generators

Batch = Mapping[str, Tensor]
"""``ids`` (B, L) clean tokens; optional ``segments`` (B, L), ``valid`` (B, L) bool: the tokens that count."""


def as_batch(arrays: Mapping[str, NDArray[Any] | Tensor], device: Device = None) -> dict[str, Tensor]:
    """Rows of ``redraft.data`` as tensors: ids and segments long, valid bool."""
    kinds = {"ids": torch.long, "segments": torch.long, "valid": torch.bool}
    return {name: torch.as_tensor(array).to(device, kinds[name]) for name, array in arrays.items()}


RECONSTRUCTION_SHARE = 0.125
"""Share of a batch spent on the bound's t = 0 term by processes that have one (PLAID evaluates with 1/8)."""


@dataclass(frozen=True)
class Loss:
    """``value`` (B, L) is averaged over valid tokens and minimised; ``bound`` (B, L) has a mean >= -log p, or is
    None."""

    value: Tensor
    bound: Tensor | None


class Objective(Protocol):
    """``is_bound`` says whether the training value itself is a likelihood bound."""

    is_bound: bool

    def __call__(
        self, denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None
    ) -> Loss:
        """``u`` (B,) in [0, 1) decides the times, ``generator`` the noise (one per row)."""
        ...


@dataclass(frozen=True)
class Draw:
    """One corruption of a batch. ``weight`` (B, 1) turns per-term means into the bound; ``ends`` (B, 1) marks t = 0."""

    z: Tensor
    t: Tensor
    ends: Tensor
    weight: Tensor

    @classmethod
    def at(cls, z: Tensor, t: Tensor) -> "Draw":
        """A canvas noised by other means, at t inside (0, 1)."""
        return cls(z, t, torch.zeros_like(t, dtype=torch.bool)[:, None], torch.ones_like(t)[:, None])


def corrupt(process: Process, batch: Batch, u: Tensor, generator: Generators) -> Draw:
    """Turn u ~ U(0, 1) into times and draw z.

    Processes with a t = 0 term put an atom of ``RECONSTRUCTION_SHARE`` there, and both terms are divided by their
    probability: one stratified draw serves the whole bound, unbiased.
    """
    ids = batch["ids"]
    u = u.double().to(ids.device)
    share = RECONSTRUCTION_SHARE if process.reconstructs else 0.0
    ends = u < share
    t = torch.where(ends, 0.0, (u - share) / (1 - share))
    t = t if process.reconstructs else t.clamp(T_EDGE, 1 - T_EDGE)
    weight = torch.where(ends, 1 / max(share, T_EDGE), 1 / (1 - share))
    return Draw(process.corrupt(ids, t, generator), t, per_position(ends), per_position(weight))


def bound(process: Process, logp: Tensor, x0: Tensor, draw: Draw) -> Tensor:
    """The draw's NELBO, nats per token, (B, L): its mean over draws bounds -log p(x0)."""
    terms = process.nelbo(logp, x0, draw.z, draw.t)
    if process.reconstructs:
        terms = torch.where(draw.ends, -chosen(logp, x0), terms) * draw.weight.to(terms)
        terms = terms + process.prior_kl(x0).to(terms)
    return terms


def chosen(logp: Tensor, ids: Tensor) -> Tensor:
    """log p of the given ids: (B, L, K), (B, L) -> (B, L)."""
    return logp.gather(-1, ids[..., None]).squeeze(-1)


def log_probs(denoiser: Denoiser, batch: Batch, draw: Draw, where: Tensor | None = None) -> Tensor:
    """The denoiser's log p on a draw. ``where`` asks for some positions, (n, K); the rest need no output layer."""
    cond = {"segments": batch["segments"]} if "segments" in batch else None
    if where is None:
        return denoiser(draw.z, draw.t, cond)
    if denoiser.facts.selective:
        return denoiser(draw.z, draw.t, cond, where=where)  # pyright: ignore[reportCallIssue]
    return denoiser(draw.z, draw.t, cond)[where]


def _masked_cross_entropy(denoiser: Denoiser, process: Process, batch: Batch, draw: Draw) -> Tensor:
    """-log p(x0) at masked positions and 0 elsewhere, (B, L); the output layer runs on masked positions only."""
    where = draw.z == process.mask_id
    logp = log_probs(denoiser, batch, draw, where)
    losses = -chosen(logp, batch["ids"][where])
    return torch.zeros(where.shape, dtype=losses.dtype, device=losses.device).masked_scatter(where, losses)


def is_masked(process: Process) -> bool:
    """Whether the process is pure masking, where every loss is a weighted cross-entropy of the masked positions."""
    return isinstance(process, Categorical) and not process.has_uniform


class Nelbo:
    """The negative evidence lower bound itself, for every process (see ``Process.nelbo``); nats per token."""

    is_bound = True

    def __call__(
        self, denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None
    ) -> Loss:
        draw = corrupt(process, batch, u, generator)
        if isinstance(process, Categorical) and is_masked(process):
            value = process.mask_weight(draw.t) * _masked_cross_entropy(denoiser, process, batch, draw)
        else:
            value = bound(process, log_probs(denoiser, batch, draw), batch["ids"], draw)
        return Loss(value, value.detach())


class CrossEntropy:
    """-log p(x0 | z) with weight 1 at every noised position: MaskGIT's loss on masks, CDCD's on embeddings.

    It teaches the full posterior, so for uniform and hybrid noise it acts on ``to_full`` of the cavity output; fed to
    the raw output it would pull the reverse kernel to another law. Not a bound, but the draw's NELBO is reported.
    """

    is_bound = False

    def __call__(
        self, denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None
    ) -> Loss:
        draw = corrupt(process, batch, u, generator)
        if isinstance(process, Categorical) and is_masked(process):
            value = _masked_cross_entropy(denoiser, process, batch, draw)
            return Loss(value, value.detach() * process.mask_weight(draw.t).to(value))
        logp = log_probs(denoiser, batch, draw)
        with torch.no_grad():
            reported = bound(process, logp, batch["ids"], draw)
        full = process.to_full(logp, draw.z, draw.t) if isinstance(process, Categorical) else logp
        return Loss(-chosen(full, batch["ids"]), reported)


class Autoregressive:
    """-log p(x_i | x_<i): the baseline's exact likelihood, one forward; ignores process, u and generator.

    Errors: ``ValueError`` for a denoiser that is not causal.
    """

    is_bound = True

    def __call__(
        self, denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None
    ) -> Loss:
        if denoiser.facts.attention != "causal":
            raise ValueError("objective 'autoregressive' needs a causal denoiser: set model.causal=True")
        ids = batch["ids"]
        cond = {"segments": batch["segments"]} if "segments" in batch else None
        value = -chosen(denoiser(ids, u, cond), ids)
        return Loss(value, value.detach())


OBJECTIVES: dict[str, Objective] = {
    "nelbo": Nelbo(),
    "cross_entropy": CrossEntropy(),
    "autoregressive": Autoregressive(),
}


def get(name: str) -> Objective:
    """The objective of a name. Errors: ``ValueError`` naming the nearest."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def check(objective: str, process: Any, facts: Any) -> None:
    """Refuse, before any step, combinations that cannot train: ``ValueError``."""
    if (objective == "autoregressive") != (facts.attention == "causal"):
        raise ValueError(
            f"objective {objective!r} with {facts.attention} attention: "
            "'autoregressive' and model.causal=True go together, and only together"
        )
    if process.name in ("uniform", "hybrid") and not facts.time_conditioned:
        raise ValueError(f"a {process.name} process needs the time: set model.time_conditioned=True")
