"""Guidance of vectors by gradients: a denoiser pushed towards the texts of which something holds.

    x_hat(z) + weight (sigma^2 / alpha) grad_z log p(y | z)

With weight 1 and the exact p(y | z) this is E[x | z, y] itself (Tweedie's formula and Bayes), so that a sampler given
it draws p(x | y): classifier guidance (Dhariwal & Nichol 2021), and, where p(y | z) is read off what the denoiser says
of the tokens, PLAID's token guidance (Gulrajani & Hashimoto 2023).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from redraft.guidance.classifier_free import clean_vectors, of_vectors
from redraft.guidance.weights import Weight, check_tilting, tilting_at
from redraft.models.vectors import ask
from redraft.processes import Channel, Denoiser, Facts, Gaussian, Process
from redraft.processes.base import differentiating, forwards_at, per_position

LogLikelihood = Callable[[Tensor, Tensor], Tensor]
"""``(z, t) -> log p(y | z)`` of the one y wanted, (B,), differentiable in z (B, L, D); row by row."""

Constraint = Callable[[Tensor], Tensor]
"""``log p`` of tokens (B, L, K) to the log-probability that the constraint holds, (B,)."""


def slope(value: Tensor, z: Tensor, t: Tensor, create_graph: bool = False) -> Tensor:
    """d value_r / d z_r, of z's shape. ``value`` (B,): one number a row, which must not depend on other rows.

    Errors: ``ValueError`` for another shape, and for a row whose value has no gradient, log 0 above all.
    """
    if value.shape != z.shape[:1]:
        raise ValueError(f"guided by numbers of shape {tuple(value.shape)} for {len(z)} rows: return one per row, (B,)")
    (found,) = torch.autograd.grad(value.sum(), z, create_graph=create_graph)
    fine = torch.isfinite(value) & torch.isfinite(found).flatten(1).all(1)
    if not bool(fine.all()):
        row = int((~fine).nonzero()[0])
        raise ValueError(
            f"guided by {value[row].item()} at t={per_position(t)[row].max().item():.4g}, row {row}, which has no "
            "finite gradient: does what is asked for have probability 0 there?"
        )
    return found


class Steered(torch.nn.Module):
    """A denoiser that answers ``vectors=True`` with pushed ones; made by ``gradient_guided`` and ``token_guided``.

    Pushed by log p(y | z) of ``log_likelihood``, or by the sum of log p(constraint | z) of what the denoiser says.
    Asked without ``vectors`` it is the denoiser as it was.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        process: Process | Channel,
        weight: Weight,
        log_likelihood: LogLikelihood | None = None,
        constraints: Sequence[Constraint] = (),
    ) -> None:
        super().__init__()
        check_tilting(weight)
        self.process = process if isinstance(process, Channel) else of_vectors(process, "a gradient")
        self.codes = self.process if isinstance(self.process, Gaussian) else None
        if self.codes is None and not (denoiser.facts.vectors and log_likelihood is not None):
            raise ValueError("a gradient of what is said of tokens needs their codebook: pass a process of rd.gaussian")
        self.denoiser, self.weight = denoiser, weight
        self.log_likelihood, self.constraints = log_likelihood, tuple(constraints)

    @property
    def facts(self) -> Facts:
        base = replace(self.denoiser.facts, selective=False, scores=False, caches=False)
        return base if self._idle else replace(base, vectors=True)

    @property
    def _idle(self) -> bool:
        """Whether nothing is ever added: then this is the denoiser itself, whichever answer it gives."""
        return not callable(self.weight) and self.weight == 0

    def forward(self, z: Tensor, t: Tensor, cond: Any = None, vectors: bool = False) -> Tensor:
        """log p (B, L, K), or the pushed clean vectors (B, L, D). Errors: ``ValueError`` as ``slope``."""
        if not vectors:
            return self.denoiser(z, t, cond)
        weight = tilting_at(self.weight, t)[:, None]
        if not bool(weight.any()):
            return clean_vectors(self.denoiser, self.codes, z, t, cond)
        further = torch.is_grad_enabled() and z.requires_grad
        # of a log-likelihood apart from the denoiser, only what is asked about keeps a graph
        x = None if self.log_likelihood is None else clean_vectors(self.denoiser, self.codes, z, t, cond)
        # the fast ways of attention have no second derivative
        plain = sdpa_kernel(SDPBackend.MATH) if further else nullcontext()
        with differentiating(), plain:
            at = z if further else z.detach().requires_grad_()
            if x is None or self.log_likelihood is None:
                said = ask(self.denoiser, self.codes, at, t, cond)
                value = torch.stack([constraint(said.logp) for constraint in self.constraints]).sum(0)
                x = said.x if further else said.x.detach()
            else:
                value = self.log_likelihood(at, t)
            push = slope(value, at, t, create_graph=further)
        alpha, sigma = self.process.scales(self.process.gamma(t)[0])
        strength = (weight * sigma**2 / alpha)[..., None]
        return x + (strength * push).to(x)

    def forwards_at(self, t: Tensor) -> int:
        return forwards_at(self.denoiser, t)


def gradient_guided(
    denoiser: Denoiser, process: Process | Channel, log_likelihood: LogLikelihood, weight: Weight = 1.0
) -> Steered:
    """``denoiser`` guided by the gradient of ``log_likelihood(z, t)``, for every sampler of Gaussian noise.

        x_hat + weight (sigma^2 / alpha) grad_z log p(y | z)

    ``weight``: a number, or a function of t (B,), each row's latest where tokens have times of their own; 1 is p(x | y)
    where both are exact, 0 asks no gradient and is the denoiser bit for bit, above 1 sharper than y. A call costs one
    of the denoiser, and ``nfe`` counts that alone: the forward and backward pass of the log-likelihood come on top.
    Log-likelihoods of several independent facts add up. One from a classifier must know noised vectors
    (``train_classifier``). A denoiser that conditions on itself is told what was guided before. One that says vectors
    may have any ``Channel`` for its process, whatever the vectors stand for. A sampler's ``tau`` divides this push as
    it does the score: to have it whole, multiply the weight by tau.

    Errors: ``ValueError`` for a negative weight, a process of tokens, a channel without the codebook it needs; when
    called, for a log-likelihood that is not one number a row, or has no finite gradient, and in inference mode.
    """
    return Steered(denoiser, process, weight, log_likelihood=log_likelihood)


def token_guided(
    denoiser: Denoiser, process: Process, constraints: Constraint | Sequence[Constraint], weight: Weight = 1.0
) -> Steered:
    """``denoiser`` guided by what it says of the tokens itself, with nothing trained (PLAID, section on control).

        x_hat + weight (sigma^2 / alpha) grad_z sum_k log p(constraint_k | z)

    >>> guided = token_guided(denoiser, process, [token_at(0, 7), negated(token_anywhere(3))])  # doctest: +SKIP

    Exact for one ``token_at`` with weight 1 and an exact denoiser: x_hat becomes E[x | z, the token stands there]. Of
    several the product of the single probabilities is taken, which is exact only if they are independent given z;
    other weights temper. One forward a call, as ``nfe`` counts, and one backward pass through the network. A
    constraint may be any function of log p; for a weight of its own, multiply it. Guidance by gradients goes around it.

    Errors: ``ValueError`` for no constraint at all, a denoiser that is itself steered, and as ``gradient_guided``.
    """
    listed = (constraints,) if callable(constraints) else tuple(constraints)
    if not listed:
        raise ValueError("token_guided without constraints: pass one at least, token_at(position, token) say")
    if isinstance(denoiser, Steered):  # what it says of tokens is not what it was steered to
        raise ValueError("token_guided of a steered denoiser: pass all constraints at once, and steer the outcome")
    return Steered(denoiser, process, weight, constraints=listed)


# --------------------------------------------------------------------------------------------------------- constraints


def token_at(position: int, *tokens: int) -> Constraint:
    """log p(w_position is one of ``tokens``); negative positions count from the end."""

    def constraint(logp: Tensor) -> Tensor:
        if not -logp.shape[1] <= position < logp.shape[1]:
            raise ValueError(f"token_at position {position} of texts of {logp.shape[1]} tokens: name one of those")
        return _any_of(logp, tokens)[:, position]

    return constraint


def token_everywhere(*tokens: int) -> Constraint:
    """sum_i log p(w_i is one of ``tokens``): every position, each for itself."""
    return lambda logp: _any_of(logp, tokens).sum(1)


def token_anywhere(*tokens: int) -> Constraint:
    """log (1/L) sum_i p(w_i is one of ``tokens``): that a position drawn at random holds one.

    A probability, so that it can be ``negated`` (PLAID's code takes another constant).
    """
    return lambda logp: torch.logsumexp(_any_of(logp, tokens), 1) - math.log(logp.shape[1])


def negated(constraint: Constraint) -> Constraint:
    """log(1 - p) of a constraint of log-probability log p: that it does not hold."""

    def complement(logp: Tensor) -> Tensor:
        value = constraint(logp)
        # where p rounds to 1 the gradient keeps its direction, at the size it has one rounding below
        below = torch.clamp(value.detach(), max=-torch.finfo(value.dtype).eps)
        value = value + (below - value.detach())
        # log(1 - e^v): each form where the other would subtract numbers nearly equal (Maechler 2012)
        near = value > -math.log(2)
        inner = torch.log(-torch.expm1(torch.where(near, value, -1.0)))
        return torch.where(near, inner, torch.log1p(-torch.exp(torch.where(near, -1.0, value))))

    return complement


def _any_of(logp: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """log p(w_i is one of ``tokens``), (B, L). Errors: ``ValueError`` for none, twice the same, or ids that are not."""
    if not tokens or len(set(tokens)) != len(tokens) or not all(0 <= token < logp.shape[-1] for token in tokens):
        raise ValueError(f"tokens {list(tokens)}: name different ids from 0 to {logp.shape[-1] - 1}, one at least")
    if len(tokens) == 1:
        return logp[..., tokens[0]]
    return torch.logsumexp(logp[..., list(tokens)], -1)
