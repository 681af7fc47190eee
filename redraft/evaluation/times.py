"""At which times a bound's integrand is drawn, and at how noisy a z: what keeps draws from being rare and large.

Near t = 0 a token is noised with a chance c(t) that falls to 0, and then costs about c' / c. Drawn as they come, such
costs are seldom seen and huge when they are: error bars of a few hundred texts are too short, and no mean is precise.
So the z that is scored at such a t is drawn at a later time t', at which one token or so is noised, and its score is
multiplied by w = q_t(z | x0) / q_t'(z | x0), how much likelier z was at t (importance sampling: the same mean).

A row is one part, with one t and one w for all of its tokens; a block model's rows have a part for each block.
"""

from typing import Protocol

import torch
from torch import Tensor

from redraft.processes import Categorical, Matrix, Process
from redraft.processes.categorical import T_EDGE
from redraft.randomness import Generators
from redraft.schedules import bisect


class Corrupting(Process, Protocol):
    """A process among ids, whose noise can be weighed."""

    def log_q(self, z: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """log q_t(z | x0), (B, L) float64."""
        ...


def spread_times(process: Process, u: Tensor) -> tuple[Tensor, Tensor]:
    """t = v^p at v = v_0 + (1 - v_0) u, and dt / du, so that the mean over u is the integral from v_0^p on.

    p is such that c ~ v^2, c being about t, or sqrt t of hybrid noise: what is left of the integrand, a logarithm where
    noise reaches tokens, then falls to 0 with v. Our choice, by how wide intervals are and how often they cover the
    truth. What lies below v_0^p is left out: some 1e-6 nats of hybrid noise, less of others. Where rates are of each
    token's own the integral begins where its ``prior_kl`` pays for what is hidden still.
    """
    power = 4 if process.name == "hybrid" else 2
    least = (process.first_time() if isinstance(process, Categorical) else T_EDGE) ** (1 / power)
    v = least + (1 - least) * u.double().clamp(max=1 - T_EDGE)
    return v**power, (1 - least) * power * v ** (power - 1)


def earliest(process: Corrupting, ids: Tensor, free: Tensor, rank: Tensor) -> Tensor:
    """The earliest time to draw z at: when N / (N + 1) of a part's N free tokens are noised in expectation, (B, parts).

    ``free`` (B, L) bool: what is noised at all; ``rank`` (L,): which part of the row a position is of, from 0. It is
    little enough for the weights of ``noised`` to stay about e at most. Of a chain of matrices, which has no times
    between its steps, it is the last step that noises no more.
    """
    many = _sums(free.double(), rank).clamp_min(1)  # a part of none may take any time: 1 is found soon, 0 is not

    def minus_noised(t: Tensor) -> Tensor:
        return -_sums(torch.where(free, 1 - process.log_q(ids, ids, t[:, rank]).exp(), 0.0), rank)

    time = bisect(minus_noised, -many / (many + 1))
    return process.step_before(time) if isinstance(process, Matrix) else time


def noised(
    process: Corrupting, ids: Tensor, free: Tensor, rank: Tensor, t: Tensor, least: Tensor, generator: Generators
) -> tuple[Tensor, Tensor]:
    """z ~ q_t'(. | x0), t' = max(t, ``least``), and w = q_t(z | x0) / q_t'(z | x0), so that E w f(z) = E_q_t f(z).

    t, ``least`` (B, parts) as of ``earliest``; z and w (B, L), w being that of all of a position's part. Where t is
    late enough w is 1: near t = 0 alone is noise drawn more often than it comes.
    """
    later = torch.maximum(t, least)[:, rank]
    z = torch.where(free, process.corrupt(ids, later, generator), ids)
    ratio = process.log_q(z, ids, t[:, rank]) - process.log_q(z, ids, later)
    return z, _sums(torch.where(free, ratio, 0.0), rank).exp()[:, rank]


def whole(ids: Tensor) -> Tensor:
    """The ``rank`` of a row that is one part."""
    return torch.zeros(ids.shape[1], dtype=torch.long, device=ids.device)


def weighed(weight: Tensor, terms: Tensor) -> Tensor:
    """weight times terms, and 0 where the weight is, whatever the terms of what cannot be are."""
    return torch.where(weight > 0, weight * terms, 0.0)


def _sums(values: Tensor, rank: Tensor) -> Tensor:
    """Over each part: (B, L) to (B, parts)."""
    return values.new_zeros(len(values), int(rank[-1]) + 1).index_add(1, rank, values)
