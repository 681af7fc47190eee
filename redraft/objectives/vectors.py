"""What the objectives of Gaussian noise share: the draw, asking the denoiser for vectors, and the bound in parts.

A denoiser that conditions on itself is asked twice. Shapes: B batch, L length, K tokens, D codebook width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.models.told import Told
from redraft.models.vectors import Said, ask
from redraft.objectives.base import Batch, condition
from redraft.processes import Denoiser, Gaussian, Process
from redraft.processes.base import Condition, log_prob_of, per_position
from redraft.randomness import Generators, rand

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


# --------------------------------------------------------------------------------------------------------- the draw


def over_vectors(objective: str, process: Process) -> Gaussian:
    """The process, if it is one of token vectors. Errors: ``ValueError`` for any other."""
    if not isinstance(process, Gaussian):
        raise ValueError(
            f"objective {objective!r} with a {process.name} process: it is about vectors, use process.name=gaussian"
        )
    return process


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


def asked_again(denoiser: Denoiser, share: float, x0: Tensor, generator: Generators) -> Tensor:
    """(B,) bool, each row with probability ``share``; none, and nothing drawn, unless the denoiser is told guesses."""
    if not denoiser.facts.self_conditioned:
        return torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
    return rand((len(x0),), generator, x0.device) < share


# ------------------------------------------------------------------------------------------------------- the answer


def answer(denoiser: Denoiser, process: Gaussian, batch: Batch, drawn: Drawn, detached: Tensor | None = None) -> Said:
    """What the denoiser says of a draw, a self-conditioned one told a guess of its own that no gradient enters.

    Only the rows drawn to be asked ``again`` are given the guess, the others are told zeros. Of rows ``detached`` (B,)
    bool no gradient reaches the codebook.
    """
    z, t, again = drawn.z, drawn.t, drawn.again
    cond: Condition = {**(condition(batch) or {}), "gamma": drawn.gamma}
    if detached is not None:
        cond["detached"] = detached
    if denoiser.facts.self_conditioned:
        nothing = torch.zeros_like(z)
        rows = again.nonzero()[:, 0]
        # sharded processes must all call equally often: none of them is without a row
        rows = rows if len(rows) else rows.new_zeros(1)
        some = denoiser.rows(rows) if isinstance(denoiser, Told) else denoiser
        few: Condition = {key: value[rows] for key, value in cond.items()}  # type: ignore[assignment]
        with torch.no_grad():
            guess = ask(some, process, z[rows], t[rows], {**few, "guess": nothing[rows]}).x.to(z)
        cond["guess"] = torch.where(again[:, None, None], nothing.index_put((rows,), guess), nothing)
    said = ask(denoiser, process, z, t, cond)
    if detached is None or said.named is None:
        return said
    x = torch.where(detached[:, None, None], process.detached().mean(said.named.exp()), said.x)
    return replace(said, x=x)


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


def measured(process: Gaussian, said: Said, drawn: Drawn) -> Tensor:
    """The VLB of a draw, nats per token, (B, L), without gradients: what an objective that is not the bound reports."""
    with torch.no_grad():
        return total(bound_parts(process, said, drawn))


def total(parts: Parts) -> Tensor:
    """The sum of all parts, (B, L)."""
    return torch.stack(list(parts.values())).sum(0)
