"""The chain rule in a random order, and the importance-weighted bound, of which it is one particle.

A masked denoiser that reveals one token at a time in a random order has one law of texts, p(x) = E_order p(x | order),
and a reverse process of T ancestral steps has another, p(x) = sum over chains z_T .. z_1 of p(z_T .. z_1, x). Either is
a mean of weights w that can be drawn, and

    -log p(x)  <=  E[-log 1/k (w_1 + .. + w_k)]  <=  E[-log w_1],      closer the larger k

(Burda, Grosse and Salakhutdinov 2015, arXiv 1509.00519): by Jensen's inequality a bound for every k. For orders w is
the chain rule's product, and k = 1 is the any-order bound, which is the NELBO of a denoiser that does not read t. For
chains w = p(z_T) prod p(z_s | z_t) / q(z_T .. z_1 | x), and k = 1 is the NELBO of T steps.

Positions that are not ``valid`` are known: among masks they stand clean, under other noise their own noise stands
there, as for ``sample(given="noised")``, and no token of theirs is scored.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft import objectives
from redraft.objectives import Batch, masked_cross_entropy
from redraft.processes import Denoiser, Process, absorbing, only_masks
from redraft.processes.base import log_prob_of
from redraft.randomness import Generators, categorical, rand


class Chained(Process, Protocol):
    """A process over ids, whose reverse kernel is a table."""

    @property
    def V(self) -> int: ...  # noqa: N802

    def prior_law(self) -> Tensor: ...
    def marginal(self, p0: Tensor, t: Tensor) -> Tensor: ...
    def posterior(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor: ...


# ------------------------------------------------------------------------------------------------------------ orders


def hidden_losses(denoiser: Denoiser, process: Process, batch: Batch, hidden: Tensor, asked: Tensor) -> Tensor:
    """-log p of the tokens ``asked`` (B, L) of those ``hidden``, all others clean; 0 elsewhere, (B, L) float64.

    A denoiser that reads t is told when the schedule hides that share of the row's valid tokens.
    """
    assert absorbing(process)
    assert process.mask_id is not None
    share = hidden.sum(1).double() / objectives.valid(batch).sum(1).clamp_min(1)
    z = torch.where(hidden, process.mask_id, batch["ids"])
    return masked_cross_entropy(denoiser, batch, z, process.schedule.inverse(1 - share), asked).double()


def in_order(denoiser: Denoiser, process: Process, batch: Batch, place: Tensor) -> Tensor:
    """-log p(x_i | the tokens before it in the order), nats, (B, L); a forward for each token of the longest row.

    ``place`` (B, L): when each token comes, from 0; -1 where it does not count.
    """
    total = torch.zeros(place.shape, dtype=torch.float64, device=place.device)
    for step in range(int(place.max()) + 1):
        total += hidden_losses(denoiser, process, batch, place >= step, place == step)
    return total


def random_places(batch: Batch, generator: Generators) -> Tensor:
    """A random order of each row's valid tokens, as ``in_order`` takes it; (B, L) long."""
    counted = objectives.valid(batch)
    drawn = rand(counted.shape, generator, counted.device).masked_fill(~counted, 2.0)
    return drawn.argsort(1).argsort(1).masked_fill(~counted, -1)


def over_random_order(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The chain rule in a random order, one forward a token: exact for that order, a bound on average; u is idle."""
    return in_order(denoiser, process, batch, random_places(batch, generator))


# ------------------------------------------------------------------------------------------------------------ chains


def grid(steps: int, rows: int, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The times t and s of each step of ``sample``, from 1 down to 0, (rows,) float64 each."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=like.device)
    for t, s in pairwise(times):
        yield t.expand(rows), s.expand(rows)


def reverse(denoiser: Denoiser, process: Chained, batch: Batch, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """p(z_s | z_t = z) of the ancestral sampler, (B, L, V) float64, normalised."""
    p0 = objectives.log_probs(denoiser, process, batch, z, t).double().exp()
    p = process.posterior(p0, z, t, s)
    return p / p.sum(-1, keepdim=True)


def clean(process: Process, batch: Batch) -> Tensor:
    """The positions that stand clean at every time, (B, L) bool: among masks those that are known."""
    counted = objectives.valid(batch)
    return ~counted if only_masks(process) else torch.zeros_like(counted)


def log_weight(denoiser: Denoiser, process: Chained, batch: Batch, steps: int, generator: Generators) -> Tensor:
    """log w of one chain z_T .. z_1 ~ q(. | x0) of ``steps`` steps, (B,) float64; E w = p(x0) of the sampler.

    log p(z_T) / q(z_T | x0) + sum over the steps, the last one to x0, of log p(z_s | z_t) / q(z_s | z_t, x0)
    """
    ids, still = batch["ids"], clean(process, batch)
    truth = F.one_hot(ids, process.K).double()

    def moved(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of q, and log p / q there, summed over the tokens that count."""
        z = torch.where(still, ids, categorical(q, generator))
        ratio = (log_prob_of(z, p) / log_prob_of(z, q)).log()
        return z, torch.where(objectives.valid(batch), ratio, 0.0).sum(1)

    q = process.marginal(truth, torch.ones(len(ids), dtype=torch.float64, device=ids.device))
    z, total = moved(process.prior_law().to(q).expand_as(q), q)
    for t, s in grid(steps, len(ids), ids):
        p = reverse(denoiser, process, batch, z, t, s)
        z, gained = moved(p, process.posterior(truth, z, t, s))
        total = total + gained
    return total


# ------------------------------------------------------------------------------------------------------------- bound


def bound(logs: Tensor) -> Tensor:
    """-log of the mean of k weights, from log w (k, B); (B,)."""
    return math.log(len(logs)) - logs.logsumexp(0)


def spread(value: Tensor, batch: Batch) -> Tensor:
    """A row's value (B,), in equal shares at its valid tokens, (B, L): only the sum is a bound."""
    counted = objectives.valid(batch)
    return torch.where(counted, value[:, None] / counted.sum(1, keepdim=True), 0.0)


def of_orders(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators,
    particles: int,
    order: objectives.Objective | None = None,
) -> Tensor:
    """The importance-weighted bound of independent random orders.

    ``order``: the loss that draws one and scores in it, for a denoiser that reads in an order; u is idle.
    """
    logs = list[Tensor]()
    for _ in range(particles):
        if order is None:
            losses = over_random_order(denoiser, process, batch, u, generator)
        else:
            losses = order(denoiser, process, batch, u, generator).bound.double()
        logs.append(-(losses * objectives.valid(batch)).sum(1))
    return spread(bound(torch.stack(logs)), batch)


def of_chains(
    denoiser: Denoiser,
    process: Chained,
    batch: Batch,
    u: Tensor,
    generator: Generators,
    particles: int,
    steps: int,
) -> Tensor:
    """The importance-weighted bound of independent chains of ``steps`` ancestral steps; u is idle."""
    logs = [log_weight(denoiser, process, batch, steps, generator) for _ in range(particles)]
    return spread(bound(torch.stack(logs)), batch)
