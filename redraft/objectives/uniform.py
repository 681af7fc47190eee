"""Uniform noise: UDLM's loss, which is the NELBO, and Duo's, which comes to it by way of Gaussian noise."""

import torch
from torch import Tensor

from redraft.objectives.base import Batch, Loss, condition
from redraft.objectives.plain import nelbo
from redraft.processes import Categorical, Denoiser, Process, duality
from redraft.processes.base import per_position, to_convention
from redraft.randomness import Generators

TOP = 32
"""Coordinates of the Gaussian that the softmax is taken over: all the mass, at the temperatures of use."""


def udlm(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Loss:
    """UDLM (Schiff et al. 2024, arXiv 2412.10193): the NELBO of uniform noise, whose closed form is

        alpha' / (K alpha) [ K / y_z - K / p_z - sum_j y_j / y_z log(p_z y_j / (p_j y_z)) ]

    for y = K alpha 1_x0 + 1 - alpha and p = K alpha p(x0 | z) + 1 - alpha (see ``Categorical.divergence``).
    """
    return nelbo(denoiser, process, batch, u, generator)


def duo(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    curriculum: float = 0.5,
    temperature: float = 1e-3,
    progress: float = 0.0,
) -> Loss:
    """Duo (Sahoo et al. 2025, arXiv 2506.10892): ``nelbo`` after a share ``curriculum`` of the training.

    Until then gamma = gamma_min + u (gamma_max - gamma_min), w = a~ 1_x0 + s~ eps with a~^2 = sigmoid(-gamma), and

        z = argmax w,   alpha = T(a~),   loss = nelbo(network(softmax(w / temperature) E, t), x0, z, t) dt/du

    where t is the time at which the process's own alpha is T(a~), so that the loss is the closed form above
    whatever the schedule. gamma keeps alpha between 0.05 and 0.945, the paper's interval for large K.

    Then the network reads what no sampler will show it, over part of the times: neither this value nor any reweighting
    of it bounds -log p. A bound would cost one more forward, so none is measured, and ``Loss.bound`` is NaN.
    """
    process = continuous_uniform("duo", process)
    if progress >= curriculum:
        return nelbo(denoiser, process, batch, u, generator)
    x0, K = batch["ids"], process.K
    ratio, t, dt_du = times(process, u.to(x0.device))
    drawn = duality.relax(x0, ratio, K, min(K, TOP), generator)
    # w here is in units of s~ = (1 + ratio^2)^(-1/2)
    weights = torch.softmax(drawn.w / (temperature * torch.sqrt(1 + ratio**2))[:, None, None], -1)
    mixture = (drawn.ids, weights)
    logp = denoiser(drawn.z, t, {**(condition(batch) or {}), "mixture": mixture})
    logp = to_convention(denoiser, process, logp, drawn.z, t)
    value = per_position(dt_du).to(logp) * process.nelbo(logp, x0, drawn.z, t)
    return Loss(value, torch.full_like(value, torch.nan, requires_grad=False))


def times(process: Categorical, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What u in [0, 1) stands for in the curriculum: a~/s~, the process's time t, and dt / du; (B,) float64 each."""
    least, greatest = duality.interval(process.K)
    ratio = torch.exp(-(least + u.double() * (greatest - least)) / 2)
    alpha, rate = duality.transform(ratio, process.K)
    t = process.schedule.inverse(alpha)
    return ratio, t, rate * (-ratio / 2) * (greatest - least) / process.schedule(t)[1]


def continuous_uniform(objective: str, process: Process) -> Categorical:
    """The process, if it is uniform noise in continuous time. Errors: ``ValueError`` for any other."""
    if not isinstance(process, Categorical) or process.name != "uniform" or process.steps is not None:
        raise ValueError(f"objective {objective!r} with {process.to_dict()}: it needs uniform noise in continuous time")
    return process
