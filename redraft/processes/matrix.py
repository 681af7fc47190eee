"""Corruption by any transition matrices: q(z_i | z_{i-1}) = Q_i, a chain of T steps (D3PM, Austin et al. 2021).

Rows are where a token comes from, columns where it goes. The two primitives are products of matrices:
``marginal(p0, t) = p0 Q_1 .. Q_i`` and ``likelihood(z; s, t) = (Q_{j+1} .. Q_i)[:, z]``.

Time is the grid i / T. A time off it is moved to the nearest point of it, so that a sampler may take any number of
steps: 8 of 1000 are products of 125 matrices each, and of 1000 steps over a chain of 8 most leave z as it is.
"""

from typing import Any, Self

import torch
from torch import Tensor

from redraft.processes.base import grid_before, grid_times, per_position, step_kl
from redraft.processes.categorical import check_ids, vocabulary
from redraft.randomness import Device, Generators, categorical

LIMIT = 1 << 30
"""Bytes that the matrices of a process may take."""


class Matrix:
    """A chain with transition matrices ``steps`` (T, V, V), each row a law, and a ``prior`` (V,) law of z at t = 1.

    The states are the K clean tokens and whatever else the matrices hold after them. ``facts`` is what ``to_dict``
    tells beside K: all that ``d3pm`` needs to build the matrices again; ``graph`` is the tensor it needs, if any.
    Build one with ``d3pm``.

    Errors: ``ValueError`` for matrices too large to keep, of another shape, or whose rows are no laws.
    """

    name = "d3pm"
    vectors = False

    def __init__(
        self,
        K: int,
        steps: Tensor,
        prior: Tensor,
        mask_id: int | None = None,
        facts: dict[str, Any] | None = None,
        graph: Tensor | None = None,
    ) -> None:
        if steps.ndim != 3 or steps.shape[1] != steps.shape[2] or steps.shape[1] < vocabulary(K) or not len(steps):
            raise ValueError(f"matrices of shape {tuple(steps.shape)} for K={K}: pass (T, V, V) with V >= K, T >= 1")
        self.K, self.V, self.steps, self.mask_id = K, steps.shape[1], len(steps), mask_id
        check_size(self.V, self.steps)
        wrong = (steps.sum(-1) - 1).abs().amax(-1).gt(1e-9) | (steps < 0).flatten(1).any(1)
        if wrong.any():
            raise ValueError(f"matrix of step {int(wrong.nonzero()[0]) + 1}: a row is no law; rows must sum to 1")
        self._facts, self.graph = facts or {}, graph
        self._steps, self._prior = steps.double(), prior.double()
        products = torch.empty(self.steps + 1, self.V, self.V, dtype=torch.float64, device=steps.device)
        products[0] = torch.eye(self.V, dtype=torch.float64)
        for i, step in enumerate(self._steps):
            torch.matmul(products[i], step, out=products[i + 1])
        self._products = products

    def to_dict(self) -> dict[str, Any]:
        facts = {"name": self.name, "K": self.K, "steps": self.steps, **self._facts}
        return facts if self.mask_id is None else {**facts, "mask_id": self.mask_id}

    def to(self, device: Device) -> Self:
        """The same process with its matrices on ``device``; itself if they are there."""
        if self._products.device == torch.empty(0, device=device).device:
            return self
        other = object.__new__(type(self))
        other.__dict__ = {
            key: value.to(device) if isinstance(value, Tensor) else value for key, value in vars(self).items()
        }
        return other

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Each of the T steps is as likely: t = (1 + floor(u T)) / T, weight 1."""
        return grid_times(u, self.steps)

    def _step(self, t: Tensor, like: Tensor) -> Tensor:
        """The step i nearest to t T, for every position of ``like`` (B, L)."""
        return (per_position(t).double() * self.steps).round().clamp(0, self.steps).long().expand(like.shape[:2])

    # ------------------------------------------------------------------------------------------------ forward

    def prior(self, shape: tuple[int, int], generator: Generators = None, device: Device = None) -> Tensor:
        """Draw z at t = 1: independent draws of the prior; (B, L) ids."""
        return categorical(self._prior.to(device).expand(*shape, -1), generator)

    def prior_law(self) -> Tensor:
        """What ``prior`` draws a position from, (V,) float64."""
        return self._prior

    def corrupt(self, x0: Tensor, t: Tensor, generator: Generators = None) -> Tensor:
        """Draw z ~ q_t(. | x0), row x0 of Q_1 .. Q_i; (B, L) ids."""
        check_ids(x0, self.name, self.K, self.mask_id)
        return categorical(self._products[self._step(t, x0), x0], generator)

    def log_q(self, z: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """log q_t(z | x0), (B, L) float64; -inf where z cannot be."""
        return self._products[self._step(t, x0), x0, z].log()

    def step_before(self, t: Tensor) -> Tensor:
        """The time of the step before t's, of t's shape, and of none after which a step empties a state.

        So far whatever can be at one step can be at all that follow.
        """
        lasting = (self._steps.diagonal(dim1=1, dim2=2) > 0).all(1).long().cumprod(0).sum()
        return torch.minimum((t * self.steps).round() - 1, lasting).clamp_min(0) / self.steps

    def marginal(self, p0: Tensor, t: Tensor) -> Tensor:
        """p0 Q_1 .. Q_i, (B, L, V) probabilities; p0 (B, L, K or V)."""
        out = p0.new_empty(*p0.shape[:2], self.V)
        for i, where in _each(self._step(t, p0)):
            out[where] = p0[where] @ self._products[i, : p0.shape[-1]].to(p0)
        return out

    def likelihood(self, z: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """q(z_t = z | z_s = y) for every state y, s < t: column z of Q_{j+1} .. Q_i; (B, L, V) float64."""
        early, late = self._step(s, z), self._step(t, z)
        out = torch.empty(*z.shape, self.V, dtype=torch.float64, device=z.device)
        for pair, where in _each(early * (self.steps + 1) + late):
            out[where] = self._between(pair // (self.steps + 1), pair % (self.steps + 1)).T[z[where]]
        return out

    def _between(self, j: int, i: int) -> Tensor:
        """Q_{j+1} .. Q_i, (V, V): the identity for j = i."""
        if j == 0:
            return self._products[i]
        if j >= i:
            return self._products[0]
        product = self._steps[j]
        for step in self._steps[j + 1 : i]:
            product = product @ step
        return product

    def posterior(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The plug-in reverse kernel p(z_s = y | z_t = z, p0), (B, L, V): likelihood(z; s, t)(y) marginal(p0, s)(y).

        Normalised. p0 is the cavity posterior (D3PM, eq. 4). Where p0 rules z out altogether it says nothing, and z
        stays.
        """
        joint = self.likelihood(z, s, t).to(p0) * self.marginal(p0, s)
        total = joint.sum(-1, keepdim=True)
        stay = torch.nn.functional.one_hot(z, self.V).to(p0)
        return torch.where(total > 0, joint / torch.where(total > 0, total, 1.0), stay)

    def ancestral(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor, generator: Generators = None) -> Tensor:
        """Draw z at s from ``posterior``, every position on its own, in float64; (B, L) ids."""
        return categorical(self.posterior(p0.double(), z, t, s), generator)

    # --------------------------------------------------------------------------------------------------- loss

    def nelbo(self, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """T KL(posterior(x0; z, t, s) || posterior(p; z, t, s)), s = t - 1/T, nats per token, (B, L).

        Its mean over the T steps, plus ``prior_kl``, bounds -log p(x0) (D3PM, eq. 1).
        """
        # float64: a chain of short jumps gives far ones masses that float32 has no numbers for
        return (self.steps * step_kl(self, logp.double(), x0, z, t, grid_before(t, self.steps))).to(logp)

    def prior_kl(self, x0: Tensor) -> Tensor:
        """KL(q_1(. | x0) || prior), nats per token, (B, L): not 0, for a chain need not forget all in T steps."""
        q = self._products[-1, : self.K]
        ratio = torch.where(q > 0, q / self._prior, 1.0)
        return torch.special.xlogy(q, ratio).sum(-1).clamp_min(0.0)[x0]

    # ------------------------------------------------------------------------------------ cavity and full posterior

    def to_full(self, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Cavity to full posterior: log p(x | all of z) = log p(x | z without i) + log q_t(z_i | x) + const."""
        return torch.log_softmax(logp + self._log_own(z, t).to(logp), -1)

    def to_cavity(self, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Full to cavity posterior, the inverse of ``to_full``; tokens that z rules out stay out."""
        return torch.log_softmax(logp - self._log_own(z, t).to(logp), -1)

    def _log_own(self, z: Tensor, t: Tensor) -> Tensor:
        """log q_t(z | x) for every clean x, (B, L, K)."""
        q = self.likelihood(z, torch.zeros_like(t), t)[..., : self.K]
        return q.clamp_min(torch.finfo(torch.float64).tiny).log()


def check_size(states: int, steps: int) -> None:
    """Refuse matrices of more than a gibibyte: ``ValueError`` naming K, T and what would fit."""
    each = 16 * states**2  # a step and a product, float64
    if each * (steps + 1) > LIMIT:
        fits = LIMIT // each - 1
        fix = f"take steps={fits} or fewer" if fits > 0 else "take a smaller vocabulary (data.vocab)"
        raise ValueError(
            f"K={states}, steps={steps}: the matrices of this kind take {each * (steps + 1) / 2**30:.1f} GiB, and 1 is "
            f"allowed: {fix}, or kind uniform, absorbing or hybrid, which need none"
        )


def _each(values: Tensor) -> list[tuple[int, Tensor]]:
    """Every value that occurs in (B, L), with where it does."""
    return [(int(value), values == value) for value in values.unique()]
