"""What the objectives of Gaussian noise share: the draw, asking the denoiser for vectors, and the bound in parts.

A denoiser that conditions on itself is asked twice. Shapes: B batch, L length, K tokens, D codebook width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.models.told import Told
from redraft.objectives.base import Batch, condition, valid
from redraft.processes import Denoiser, Gaussian
from redraft.processes.base import Condition, log_prob_of, per_position
from redraft.randomness import Generators, rand
from redraft.schedules import Plaid

Parts = dict[str, Tensor]
"""Named terms whose sum is a loss, (B, L) each, nats per token unless their objective says otherwise."""


@dataclass(frozen=True)
class Drawn:
    """Clean vectors ``x`` of tokens ``x0``, and ``z`` (B, L, D) drawn of them at the noise of t (B,).

    ``gamma`` and ``d_gamma`` (B, 1); ``weight`` (B, 1) is what the draw weighs in the bound; ``again`` (B,) bool marks
    the rows that a denoiser which conditions on itself is given its first answer of.
    """

    x0: Tensor
    x: Tensor
    z: Tensor
    t: Tensor
    gamma: Tensor
    d_gamma: Tensor
    weight: Tensor
    again: Tensor

    @property
    def at_zero(self) -> Tensor:
        """(B, 1) bool: rows drawn at t = 0, for the bound's reconstruction."""
        return per_position(self.t == 0)


@dataclass(frozen=True)
class Said:
    """What a denoiser says of noisy vectors: ``logp`` (B, L, K) of tokens, and clean vectors ``x`` (B, L, D)."""

    logp: Tensor
    x: Tensor


# --------------------------------------------------------------------------------------------------------- the draw


def draw(
    denoiser: Denoiser,
    process: Gaussian,
    x0: Tensor,
    u: Tensor,
    generator: Generators,
    self_condition: float = 1.0,
    evenly: bool = False,
) -> Drawn:
    """A draw for tokens x0 at the times u stands for. No gradient enters the schedule: gamma is a number here.

    ``self_condition`` is the share of rows that are asked about ``again``; ``evenly`` spreads u over gamma, not t.
    """
    t, weight = (process.levels if evenly else process.times)(u.to(x0.device))
    again = asked_again(denoiser, self_condition, x0, generator)
    gamma, d_gamma = (value.detach() for value in process.gamma(t))
    x = process.codebook[x0]
    return Drawn(x0, x, process.noised(x, gamma, generator), t, gamma, d_gamma, per_position(weight), again)


def differentiable_draw(
    denoiser: Denoiser, process: Gaussian, x0: Tensor, u: Tensor, generator: Generators, self_condition: float
) -> tuple[Drawn, tuple[Tensor, ...]]:
    """``draw`` with gradients into a schedule that learns by them, and what its network gave, for ``minimise_square``.

    Rows asked about again teach the denoiser alone: what they see of codebook and schedule is detached (PLAID).
    """
    t, weight = process.times(u.to(x0.device))
    again = asked_again(denoiser, self_condition, x0, generator)
    schedule, inner = process.schedule, tuple[Tensor, ...]()
    if isinstance(schedule, Plaid):
        inner = schedule.inner(per_position(t))
        gamma, d_gamma = schedule.between(*inner)
    else:
        gamma, d_gamma = process.gamma(t)
    gamma, d_gamma, x = (apart(again, value) for value in (gamma, d_gamma, process.codebook[x0]))
    z = process.noised(x, gamma, generator)
    return Drawn(x0, x, z, t, gamma, d_gamma, per_position(weight), again), inner


def asked_again(denoiser: Denoiser, share: float, x0: Tensor, generator: Generators) -> Tensor:
    """(B,) bool, each row with probability ``share``; none, and nothing drawn, unless the denoiser is told guesses."""
    if not denoiser.facts.self_conditioned:
        return torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
    return rand((len(x0),), generator, x0.device) < share


def apart(rows: Tensor, value: Tensor) -> Tensor:
    """``value`` (B, ..), no gradient coming back from the rows that are marked, (B,) bool."""
    return torch.where(rows.reshape(-1, *(1,) * (value.ndim - 1)), value.detach(), value)


def minimise_square(inner: tuple[Tensor, ...], loss: Tensor, batch: Batch, unit: float) -> None:
    """Let what computed ``inner`` (B, 1) follow the gradient of l^2 / unit where all else follows that of l.

    l (B, 1) is a row's mean ``loss`` (B, L) over its valid tokens: gradients that arrive are multiplied by 2 l / unit,
    for d l^2 = 2 l dl (PLAID, Gulrajani & Hashimoto 2023). ``unit``, about as large as l, moves no minimum: without it
    the schedule's gradient would be most of the norm that all are clipped by.
    """
    counts = valid(batch)
    mean = torch.where(counts, loss.detach(), 0.0).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp_min(1)

    def scaled(gradient: Tensor) -> Tensor:
        return gradient * (2 * mean / unit).to(gradient)

    for one in inner:
        if one.requires_grad:
            one.register_hook(scaled)


# ------------------------------------------------------------------------------------------------------- the answer


def ask(denoiser: Denoiser, process: Gaussian, z: Tensor, t: Tensor, cond: Condition) -> Said:
    """One call of the denoiser; what it does not say itself follows: x = p @ codebook, or p by rounding x."""
    if denoiser.facts.vectors:
        x = denoiser(z, t, cond, **{"vectors": True})
        return Said(process.rounding(x), x)
    logp = denoiser(z, t, cond)
    p = logp.exp()
    x = process.mean(p)
    if "detached" in cond:
        x = torch.where(cond["detached"][:, None, None], process.detached().mean(p), x)
    return Said(logp, x)


def say(
    denoiser: Denoiser,
    process: Gaussian,
    batch: Batch,
    z: Tensor,
    t: Tensor,
    again: Tensor | None = None,
    **told: Tensor,
) -> Said:
    """What the denoiser says of z at t, a self-conditioned one told a guess of its own that no gradient enters.

    ``again`` (B,) bool marks the rows that are given the guess, all unless given; the others are told zeros. ``told``
    (a row each) goes into the condition as it is.
    """
    cond: Condition = {**(condition(batch) or {}), **told}  # type: ignore[typeddict-item]
    if not denoiser.facts.self_conditioned:
        return ask(denoiser, process, z, t, cond)
    nothing = torch.zeros((*z.shape[:2], process.D), device=z.device, dtype=z.dtype)
    if again is None:
        again = torch.ones(len(z), dtype=torch.bool, device=z.device)
    rows = again.nonzero()[:, 0]
    # sharded processes must all call equally often: none of them is without a row
    rows = rows if len(rows) else rows.new_zeros(1)
    some = denoiser.rows(rows) if isinstance(denoiser, Told) else denoiser
    few: Condition = {key: value[rows] for key, value in cond.items()}  # type: ignore[assignment]
    with torch.no_grad():
        guess = ask(some, process, z[rows], t[rows], {**few, "guess": nothing[rows]}).x.to(z)
    guess = torch.where(again[:, None, None], nothing.index_put((rows,), guess), nothing)
    return ask(denoiser, process, z, t, {**cond, "guess": guess})


def answer(denoiser: Denoiser, process: Gaussian, batch: Batch, drawn: Drawn, **told: Tensor) -> Said:
    """``say`` of a draw, at its own gamma."""
    return say(denoiser, process, batch, drawn.z, drawn.t, drawn.again, gamma=drawn.gamma, **told)


# -------------------------------------------------------------------------------------------------------- the bound


def error(said: Said, drawn: Drawn) -> Tensor:
    """|x - x_hat|^2, summed over D; (B, L)."""
    return ((drawn.x.to(said.x) - said.x) ** 2).sum(-1)


def diffusion(process: Gaussian, said: Said, drawn: Drawn) -> Tensor:
    """The VLB's integrand at the draw's own gamma, nats per token, (B, L)."""
    return process.vlb(error(said, drawn), drawn.gamma, drawn.d_gamma)


def bound_parts(process: Gaussian, said: Said, drawn: Drawn) -> Parts:
    """The VLB of a draw in its three parts, nats per token: the mean of each is what the bound holds of it.

    A draw at t = 0 stands for reconstruction, -log p(x0 | z), any other for diffusion; both carry their weight. The
    prior's part is exact.
    """
    inside = diffusion(process, said, drawn)
    weight, start = drawn.weight.to(inside), -log_prob_of(drawn.x0, said.logp).to(inside)
    return {
        "reconstruction": torch.where(drawn.at_zero, weight * start, 0.0),
        "diffusion": torch.where(drawn.at_zero, 0.0, weight * inside),
        "prior": process.prior_kl(drawn.x0).to(inside),
    }


def total(parts: Parts) -> Tensor:
    """The sum of all parts, (B, L)."""
    return torch.stack(list(parts.values())).sum(0)
