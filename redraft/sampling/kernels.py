"""Samplers that go from noise to data once: a token, once written, is changed only if the reverse kernel changes it.

``*_kernel`` functions give the law of z_s position by position, (B, L, V) probabilities; a sampler only draws from it.
"""

import torch
from torch import Tensor

from redraft.processes import Categorical, Process, absorbing, only_masks
from redraft.processes.base import per_position
from redraft.randomness import categorical, rand
from redraft.sampling.contract import Draw, Query, misfit
from redraft.sampling.flow import ddim
from redraft.schedules import Schedule, Table

TINY = 1e-100
"""Divisors are kept above this where a rate is infinite: at t = 1, where alpha is 0."""


def ancestral(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
    """Draw every position from the reverse kernel p(z_s | z_t, p0) (D3PM, eq. 4); exact as steps go to infinity.

    ``analytic``, SEDD's Tweedie tau-leaping (arXiv 2310.16834), is the same kernel written with scores:
    for masked noise (a staggered score times the transposed transition) it is this one to the last digit, for uniform
    noise it is the Bayes kernel of the cavity posterior, which this is. ``cached`` is this too: a masked denoiser that
    does not read t is never asked twice about a row that has not changed (MDLM, RADD), whatever the sampler.
    """
    said = denoiser(z, t)
    return process.ancestral(said if process.vectors else draw.probs(said), z, t, s, draw.generator)


def greedy_tail(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
    """Ancestral, but the last step takes the argmax of the denoiser's output, the cavity posterior (Duo, 2506.10892).

    The Bayes-optimal last guess would be that of the full posterior; Duo's takes the output as it is. Masked noise
    leaves written tokens alone. Exact for no law: it trades variety for likelihood.

    Errors: ``ValueError`` for a process of vectors, which names tokens at t = 0 anyway.
    """
    if process.vectors:
        raise misfit("greedy_tail", process, "a process over tokens")
    logp = denoiser(z, t)
    drawn = process.ancestral(draw.probs(logp), z, t, s, draw.generator)
    last = per_position(s == 0)
    if only_masks(process):
        last = last & (z == process.mask_id)
    return torch.where(last, logp.argmax(-1), drawn)


# -------------------------------------------------------------------------------------------------------------- euler


def reverse_rates(process: Categorical, p0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """The rates at which a position leaves z for another state y as t falls, 0 at y = z; (B, L, V).

        R(z -> y) = g_t(z) marginal(p0, t)(y) / marginal(p0, t)(z)

    At t = 1, alpha = 0, uniform noise has infinite rates, which are very large here, and alike.
    """
    at = process.coefficients(t)
    flow = at.alpha * at.d_token - at.d_alpha * at.token  # alpha_t g_t(z), finite where g_t is not
    if process.mask_id is not None:
        flow = torch.where(z == process.mask_id, at.alpha * at.d_mask - at.d_alpha * at.mask, flow)
    clean, noise = process.marginal(p0, torch.zeros_like(t)), process.marginal(torch.zeros_like(p0), t)
    over_alpha = noise / at.alpha.to(p0)[..., None].clamp_min(TINY)
    own = process.marginal(p0, t).gather(-1, z[..., None]).clamp_min(TINY)
    rates = flow.to(p0)[..., None] / own * (clean + torch.where(noise > 0, over_alpha, 0.0))
    return rates.scatter(-1, z[..., None], 0.0)


def leap(rates: Tensor, z: Tensor, dt: Tensor) -> Tensor:
    """1_z + dt R, R's rows made to sum to 0 by their diagonal, clipped at 0 and normalised; (B, L, V). dt (B,)."""
    jump = per_position(dt).to(rates)[..., None] * rates
    stay = (1 - jump.sum(-1, keepdim=True)).clamp_min(0.0)
    probs = jump.scatter(-1, z[..., None], stay)
    return probs / probs.sum(-1, keepdim=True)


def euler_kernel(process: Categorical, p0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """1_z + (t - s) R, the ``reverse_rates`` held fixed over the step; (B, L, V).

    From t = 1 uniform noise leaves z for any other token alike, the limit t -> 1.
    """
    return leap(reverse_rates(process, p0, z, t), z, t - s)


def with_rates(sampler: str, process: Process) -> Categorical:
    """The process as one that jumps at rates. Errors: ``ValueError`` for chains, per-token masking, vectors."""
    if not isinstance(process, Categorical) or process.name == "d3pm":
        raise misfit(sampler, process, "masked, uniform or hybrid noise in continuous time")
    return process


def euler(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    tau: float = 1.0,
    clamp: bool = False,
) -> Tensor:
    """Euler's method: tau-leaping among tokens, the probability-flow ODE among vectors, where it is ``ddim``.

    Among tokens z_s ~ Cat(1_z + (t - s) R), the reverse rates R held fixed over the step (SEDD).
    Exact as steps go to infinity, at a rate that is worse than ``ancestral``'s; on the linear masked schedule the two
    are one. Masks that the last step leaves (other schedules) are filled by one more call.

    Errors: ``ValueError`` for a process without rates: D3PM's chains, per-token masking; and for ``tau`` or ``clamp``
    (``flow.said``) among tokens.
    """
    if process.vectors:
        return ddim(process, denoiser, z, t, s, draw, tau=tau, clamp=clamp)
    if tau != 1 or clamp:
        raise misfit(f"euler:tau={tau},clamp={clamp}", process, "a process of vectors", "euler")
    process = with_rates("euler", process)
    return categorical(euler_kernel(process, draw.probs(denoiser(z, t)), z, t, s), draw.generator)


# ------------------------------------------------------------------------------------------------------ first hitting


def hitting_time(schedule: Schedule | Table, t: Tensor, masks: Tensor, u: Tensor) -> Tensor:
    """When the next of ``masks`` tokens is revealed, going down from t: 1 - alpha(t') = u^(1/masks) (1 - alpha(t)).

    u ~ U(0, 1). All arguments and the time of one shape, float64.
    """
    hidden = u ** (1 / masks) * (1 - schedule(t)[0])
    return torch.minimum(schedule.inverse((1 - hidden).clamp(0.0, 1.0)), t)


def first_hitting(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
    """Simulate the reverse process event by event from t to s, one token at a time (Zheng et al., arXiv 2409.02908).

    The next event is ``hitting_time`` away, at a masked position drawn evenly, whose token is drawn from p there.
    Exact on any grid: times have no memory, so that a step may end between two events. One call an event, L in all for
    a row alone; rows advance on their own, so ``steps=1`` needs as many calls as the row with most masks, and a fine
    grid nearly one an event of any row.

    Errors: ``ValueError`` for a process other than masked.
    """
    if not absorbing(process):
        raise misfit("first_hitting", process, "a masked process")
    z, now = z.clone(), t.clone()
    rows = ((z == process.mask_id) & ~draw.frozen).any(1).nonzero().squeeze(1)
    while len(rows):
        masked = (z[rows] == process.mask_id) & ~draw.frozen[rows]
        u = rand((len(rows),), draw.rows(rows).generator, z.device)
        now[rows] = hitting_time(process.schedule, now[rows], masked.sum(1), u)
        soon = now[rows] > s[rows]
        rows, masked = rows[soon], masked[soon]
        if len(rows):
            part, where = draw.rows(rows), torch.zeros_like(draw.frozen)
            at = categorical(masked.double()[:, None], part.generator).squeeze(1)
            where[rows, at] = True
            logp = denoiser(z, torch.maximum(now, s), where)
            z[rows, at] = part.tokens(logp[:, None]).squeeze(1)
            rows = rows[masked.sum(1) > 1]
    return z
