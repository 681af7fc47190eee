"""The bound itself, and the baselines: plain cross-entropy and the left-to-right likelihood."""

from torch import Tensor

from redraft.objectives.base import (
    Batch,
    Loss,
    bound,
    condition,
    corrupt,
    log_full_of,
    log_probs,
    masked_cross_entropy,
)
from redraft.objectives.vectors import answer, bound_parts, draw, measured, total
from redraft.processes import Denoiser, Gaussian, Process, absorbing
from redraft.processes.base import log_prob_of
from redraft.randomness import Generators


def nelbo(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    self_condition: float = 0.5,
) -> Loss:
    """The negative evidence lower bound itself, for every process (see ``Process.nelbo``); nats per token.

    ``self_condition``: see ``objectives.gaussian``.
    """
    if isinstance(process, Gaussian):
        drawn = draw(denoiser, process, batch["ids"], u, generator, self_condition)
        parts = bound_parts(process, answer(denoiser, process, batch, drawn), drawn)
        value = total(parts)
        return Loss(value, value.detach(), parts)
    z, t, weight = corrupt(process, batch["ids"], u, generator)
    if absorbing(process):
        losses = masked_cross_entropy(denoiser, batch, z, t, z == process.mask_id)
        value = weight * process.mask_weight(t) * losses
    else:
        value = bound(process, log_probs(denoiser, process, batch, z, t), batch["ids"], z, t, weight)
    return Loss(value, value.detach())


def cross_entropy(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    self_condition: float = 0.5,
) -> Loss:
    """-log p(x0 | z) with weight 1 at every noised position: MaskGIT's loss on masks, CDCD's on embeddings.

    It teaches the full posterior, so for uniform and hybrid noise it acts on ``to_full`` of the cavity output; fed to
    the raw output it would pull the reverse kernel to another law. Not a bound, but the draw's NELBO is reported.
    ``self_condition``: see ``objectives.gaussian``.
    """
    if isinstance(process, Gaussian):
        drawn = draw(denoiser, process, batch["ids"], u, generator, self_condition)
        said = answer(denoiser, process, batch, drawn)
        return Loss(-log_prob_of(batch["ids"], said.logp), measured(process, said, drawn))
    z, t, weight = corrupt(process, batch["ids"], u, generator)
    if absorbing(process):
        value = masked_cross_entropy(denoiser, batch, z, t, z == process.mask_id)
        return Loss(value, value.detach() * weight * process.mask_weight(t))
    logp = log_probs(denoiser, process, batch, z, t)
    value = -log_full_of(process, batch["ids"], logp, z, t)
    return Loss(value, bound(process, logp.detach(), batch["ids"], z, t, weight))


def autoregressive(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Loss:
    """-log p(x_i | x_<i): the baseline's exact likelihood, one forward; draws nothing, so u and generator are idle.

    Errors: ``ValueError`` for a denoiser that is not causal.
    """
    if denoiser.facts.attention != "causal":
        raise ValueError("objective 'autoregressive' needs a causal denoiser: set model.attention=causal")
    value = -log_prob_of(batch["ids"], denoiser(batch["ids"], u, condition(batch)))
    return Loss(value, value.detach())
