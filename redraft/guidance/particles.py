"""Groups of weighted particles: potentials, log-weights, evidence, resampling. What sequential Monte Carlo is made of.

After step k a particle's weight is multiplied by a potential G_k > 0, and the product of all potentials on a path, the
last one included, is exp(lam r(x_0)). Whatever the others are, even random or made from the other particles, then

    E[Z-hat h] = E_p[exp(lam r(x_0)) h(x_0)],       Z-hat = product over resamplings of mean w, times the last mean w

where h is averaged with the last weights, as long as a group is resampled with K w_i expected copies of particle i:
what has been multiplied into a weight too early, the last potential takes out of it. Weights are logarithms, (n, K)
float64 on the CPU, for n groups of K particles; they add up until their group is resampled. Nats.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.randomness import categorical, inverse_cdf, rand

Rule = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(v, path, running) to (log G, running): v = lam r_k, and the logarithm of the product of a path's potentials."""


def difference(v: Tensor, path: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
    """log G_k = v_k - v_{k-1}, and v_0 = 0: the product is always that of the latest reward."""
    return v - path, running


def largest(v: Tensor, path: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
    """log G_k = max over j <= k of v_j."""
    running = torch.maximum(running, v)
    return running, running


def added(v: Tensor, path: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
    """log G_k = sum over j <= k of v_j."""
    return running + v, running + v


def current(v: Tensor, path: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
    """log G_k = v_k."""
    return v, running


POTENTIALS: dict[str, tuple[Rule, float]] = {
    "difference": (difference, 0.0),
    "max": (largest, -math.inf),
    "add": (added, 0.0),
    "rt": (current, 0.0),
}
"""The potentials of FK steering (Singhal et al. 2025, arXiv 2501.06848) by its names, and what their running value is
to begin with. All but the first reward a path for more than where it stands; the last potential mends that."""


def systematic(weights: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Ancestors (n, K) at K evenly spaced shares of the weights (n, K), moved by one uniform number a group.

    Particle i is copied K w_i times, rounded down or up: the least noise that leaves the expectation right.
    """
    size = weights.shape[1]
    shares = (rand((len(weights), 1), generators) + torch.arange(size)) / size
    return inverse_cdf(weights, shares)


def multinomial(weights: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Ancestors (n, K) drawn independently in proportion to the weights (n, K)."""
    return categorical(weights[:, None].repeat(1, weights.shape[1], 1), generators)


RESAMPLING = {"systematic": systematic, "multinomial": multinomial}


def effective_size(log_w: Tensor) -> Tensor:
    """1 / sum of squares of the normalised weights, (n,): K where all are equal, 1 where one has everything."""
    return 1 / torch.softmax(log_w, -1).square().sum(-1)


def log_mean(log_w: Tensor) -> Tensor:
    """log mean exp over the last axis."""
    return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])


@dataclass
class Particles:
    """``log_w``: what was multiplied into each weight since its group was last resampled; ``path``: the potentials on
    the particle's whole path; ``running``: what the potential's rule remembers of it; ``log_z`` (n,): of Z-hat, the
    factors up to the last resampling."""

    rule: Rule
    log_w: Tensor
    path: Tensor
    running: Tensor
    log_z: Tensor

    @classmethod
    def fresh(cls, groups: int, size: int, potential: str) -> "Particles":
        rule, start = POTENTIALS[potential]
        zero = torch.zeros(groups, size, dtype=torch.float64)
        return cls(rule, zero, zero.clone(), torch.full_like(zero, start), zero[:, 0].clone())

    def weigh(self, groups: Tensor, v: Tensor, seen: Tensor) -> None:
        """Multiply in the potential of v = lam r_k (m, K) of the ``groups`` (m,); of what was not ``seen``, 1."""
        path, before = self.path[groups], self.running[groups]
        log_g, running = self.rule(v, path, before)
        log_g = log_g.masked_fill(torch.isneginf(path), -torch.inf)
        log_g = torch.where(seen, log_g, 0.0)
        self.running[groups] = torch.where(seen, running, before)
        self.path[groups] = path + log_g
        self.log_w[groups] += log_g

    def finish(self, v: Tensor) -> None:
        """The last potential: v = lam r(x_0) (n, K), less what the path has had of it."""
        dead = torch.isneginf(v) | torch.isneginf(self.path)
        self.log_w += torch.where(dead, -torch.inf, v - self.path)

    def lost(self, groups: Tensor) -> Tensor:
        """Those of the ``groups`` (m,) in which no particle has any weight."""
        return groups[torch.isneginf(self.log_w[groups]).all(1)]

    def resample(self, groups: Tensor, ancestors: Tensor) -> None:
        """Particle k of each of the ``groups`` (m,) goes on from particle ancestors[., k], (m, K), with weight 1."""
        self.log_z[groups] += log_mean(self.log_w[groups])
        self.log_w[groups] = 0.0
        self.path[groups] = self.path[groups].gather(1, ancestors)
        self.running[groups] = self.running[groups].gather(1, ancestors)

    @property
    def log_evidence(self) -> Tensor:
        """log Z-hat, (n,)."""
        return self.log_z + log_mean(self.log_w)
