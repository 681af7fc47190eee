"""GIDD's loss: the NELBO of mask and uniform noise, or its terms under kinder weights."""

from typing import Literal

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.objectives.base import Batch, Loss, corrupt, log_probs
from redraft.processes import Categorical, Denoiser, Process
from redraft.processes.base import per_position
from redraft.randomness import Generators

LARGEST = 2.0
"""What no reweighted term weighs more than."""

Weighting = Literal["nelbo", "dynamic", "clip"]


def gidd(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    weighting: Weighting = "dynamic",
) -> Loss:
    """GIDD (von Rütte et al. 2025, arXiv 2503.04482): weight [KL + r - log r - 1], see ``Categorical.divergence``.

    The NELBO's own weight grows without limit towards both ends of time; see ``weights`` for what stands in for it. The
    bound is the NELBO of the same draw whatever the weighting.
    """
    if not isinstance(process, Categorical) or process.name != "hybrid" or process.steps is not None:
        raise ValueError(
            f"objective 'gidd' with {process.to_dict()}: it is defined for hybrid noise in continuous time"
        )
    x0 = batch["ids"]
    z, t, share = corrupt(process, x0, u, generator)
    logp = log_probs(denoiser, process, batch, z, t)
    terms = share * process.divergence(logp, x0, z, t)
    value = weights(process, x0, z, t, weighting) * terms
    bound = process.bound_weight(x0, z, t) * terms.detach() + process.prior_kl(x0)
    return Loss(value.to(logp), bound.to(logp))


def weights(process: Categorical, x0: Tensor, z: Tensor, t: Tensor, weighting: Weighting) -> Tensor:
    """What each position's divergence weighs in the loss, (B, L) float64.

    ``nelbo``: g_t(z) / q_t(z | x0), the bound's. ``clip``: the same, but at most 2. ``dynamic``: the bound's weights
    relative to those of uniform noise, 1 / (2 u (1 - u)) in GIDD's time u = 1 - alpha, where the mask's is 2 and

        clean tokens:  (B / K) exp(-log SNR / 2), at most 2,     log SNR = log((1 - u) / u)

    which is the relative weight to leading order in 1 / K. Errors: ``ValueError`` for another name.
    """
    if weighting not in ("nelbo", "dynamic", "clip"):
        raise unknown("weighting", weighting, ("nelbo", "dynamic", "clip"))
    if weighting != "dynamic":
        own = process.bound_weight(x0, z, t)
        return own if weighting == "nelbo" else own.clamp_max(LARGEST)
    alpha = process.schedule(per_position(t))[0]
    share = process.to_dict()["uniform_share"]
    scale = 2 * share / (1 - share) / process.num_tokens
    clean = (scale * torch.sqrt((1 - alpha) / alpha)).clamp_max(LARGEST)
    return torch.where(z == x0, clean, torch.where(z == process.mask_id, LARGEST, 1.0))
