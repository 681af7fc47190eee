"""At which times a bound's integrand is drawn, and at how noisy a z: what keeps draws from being rare and large.

Near t = 0 a token is noised with a chance c(t) that falls to 0, and then costs about c' / c. Drawn as they come, such
costs are seldom seen and huge when they are: error bars of a few hundred texts are too short, and no mean is precise.
So z is drawn at a later time, at which one token or so is noised, and weighed by how much likelier it was then.
"""

from typing import Protocol

import torch
from torch import Tensor

from redraft.processes import PerToken, Process
from redraft.processes.categorical import T_EDGE
from redraft.randomness import Generators
from redraft.schedules import bisect

LEAST_T = 1e-14
"""Where an integral over times begins. What lies below is left out: some 1e-6 nats of hybrid noise, less of others."""


class Corrupting(Process, Protocol):
    """A process among ids, whose noise can be weighed."""

    def log_q(self, z: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """log q_t(z | x0), (B, L) float64."""
        ...


def spread_times(process: Process, u: Tensor) -> tuple[Tensor, Tensor]:
    """t = v^p at v = v_0 + (1 - v_0) u, and dt / du, so that the mean over u is the integral from v_0^p on.

    p is such that c ~ v^2, c being about t, or sqrt t of hybrid noise: what is left of the integrand, a logarithm where
    noise reaches tokens, then falls to 0 with v. Our choice, by how wide intervals are and how often they cover the
    truth. Where rates are of each token's own the integral begins where its ``prior_kl`` pays for what is hidden still.
    """
    power = 4 if process.name == "hybrid" else 2
    least = (T_EDGE if isinstance(process, PerToken) else LEAST_T) ** (1 / power)
    v = least + (1 - least) * u.double().clamp(max=1 - T_EDGE)
    return v**power, (1 - least) * power * v ** (power - 1)


def earliest(process: Corrupting, ids: Tensor, free: Tensor, rank: Tensor) -> Tensor:
    """The time at which N / (N + 1) of a part's N free tokens are noised in expectation, (B, parts).

    ``free`` (B, L) bool: what is noised at all; ``rank`` (L,): which part of the row a position is of, from 0. It is
    little enough for the weights of ``noised`` to stay about e at most.
    """
    many = _sums(free.double(), rank)

    def kept(t: Tensor) -> Tensor:
        return _sums(torch.where(free, process.log_q(ids, ids, t[:, rank]).exp(), 0.0), rank)

    return bisect(kept, many - many / (many + 1))


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
