"""Discrete flow matching (Gat et al. 2024, arXiv 2407.15595): the mixture path's rates, learned by a generalised KL.

In our time, where t = 1 is the source, z is x with probability kappa = alpha and else the source's token. That path is
followed by jumps straight to x at the rate -alpha' / (1 - alpha), and the model jumps to y at that times p(y | z).
"""

import torch
from torch import Tensor

from redraft.objectives.base import Batch, Loss, bound, corrupt, log_probs
from redraft.processes import Categorical, Denoiser, Process
from redraft.processes.base import log_prob_of
from redraft.randomness import Generators


def generalised_kl(process: Categorical, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """Between the rates of the path and of the model, nats per token and unit of time, (B, L); never below 0.

        -alpha' / (1 - alpha) [1[z = x] - p(z) - 1[z != x] log p(x)],    p the full posterior p(x | all of z)

    ``logp`` (B, L, K). Its integral over t bounds -log p(x0) of the model that jumps at those rates. At [MASK] p(z) is
    0, a revealed token's posterior is that token, and what is left is the NELBO's own integrand.
    """
    if process.absorbing:
        terms = torch.where(z == process.mask_id, -log_prob_of(x0, logp), 0.0)
    else:
        on_z = log_prob_of(z, logp).exp()
        terms = torch.where(z == x0, 1 - on_z, -log_prob_of(x0, logp) - on_z)
    return process.mask_weight(t).to(logp) * terms


def dfm(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Loss:
    """The generalised KL of discrete flow matching, mask or uniform source; nats per token.

    Its p is the full posterior: what a denoiser of the cavity says is converted (``Process.to_full``), so the network
    taught is the one every sampler here takes. For the mask source it is ``nelbo``. For the uniform source it bounds
    the likelihood of another model, one of jumps straight to x: even the exact posterior stays above the entropy (by
    0.58 nats on the toy of the tests, as the path is no Markov chain once x is averaged over), and no sampler here
    follows those jumps. So its values are not to be set beside those of UDLM or Duo, nor a head trained on one read as
    the other. ``bound`` is the process's own NELBO of the same draw, like everywhere.

    Errors: ``ValueError`` for other noise, or discrete time.
    """
    if not isinstance(process, Categorical) or process.name not in ("masked", "uniform") or process.steps is not None:
        raise ValueError(
            f"objective 'dfm' with {process.to_dict()}: it mixes x with masks or uniform tokens in continuous time"
        )
    x0 = batch["ids"]
    z, t, weight = corrupt(process, x0, u, generator)
    logp = log_probs(denoiser, process, batch, z, t)
    value = weight * generalised_kl(process, process.to_full(logp, z, t), x0, z, t)
    return Loss(value, bound(process, logp.detach(), x0, z, t, weight))
