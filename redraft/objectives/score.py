"""Losses on concrete scores s(z -> y) = q_t(y) / q_t(z): SEDD's score entropy, and the squared error before it.

Both compare s with the ratios rho_y = q_t(y | x0) / q_t(z | x0) of the draw, of which s is the conditional mean. rho
has one value for all tokens but x0, z and [MASK], so sums of s and log s over the states are all that is needed, and
one form serves masked, uniform and hybrid noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from redraft.models.heads import to_score
from redraft.objectives.base import Batch, Loss, corrupt, evaluate
from redraft.processes import Categorical, Denoiser, Process
from redraft.processes.fused import at_once
from redraft.randomness import Generators

ScoreIntegrand = Callable[[Categorical, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(process, log_scores (B, L, V), x0, z, t) -> (B, L), nats per token."""

# ------------------------------------------------------------------------------------------------------- integrands


def score_entropy(process: Categorical, log_scores: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """SEDD's denoising score entropy at rate g_t(z) of jumping into z, (B, L) nats per token.

        g_t(z) sum_{y != z} [ s_y - rho_y log s_y + rho_y (log rho_y - 1) ]

    (Lou et al. 2023, arXiv 2310.16834.) Any positive s makes it the path KL of some
    chain, so it bounds -log p without normalising; with the scores of a law p it is ``Process.nelbo`` of p.
    ``log_scores`` is 0 at z.
    """
    rho, sums = _ratios(process, x0, z, t), _sums(process, log_scores, x0, z)
    # times 0 where no clean token is noise: there the others' log s may be -inf
    others = torch.where(rho.token > 0, rho.token * sums.log_tokens, 0.0)
    cross = others + rho.x0_excess * sums.log_x0 + rho.mask * sums.log_mask
    return (rho.rate * (sums.total - cross + rho.of(_entropy))).to(log_scores)


def squared_score_error(process: Categorical, log_scores: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """Denoising concrete score matching at rate g_t(z): g_t(z) sum_{y != z} (s_y - rho_y)^2, (B, L); no bound.

    In expectation over x0 given z it is the squared error of s plus a constant, so its minimiser is score entropy's. It
    weighs the rare large ratios of small t beyond measure, which is why SEDD left it.
    """
    rho, sums = _ratios(process, x0, z, t), _sums(process, log_scores, x0, z)
    x0_score, mask_score = torch.exp(sums.log_x0), torch.exp(sums.log_mask)
    # [MASK]'s score is among the total, but its ratio is its own; where z is [MASK] that is 0, as is its share here
    tokens = sums.total - torch.where(rho.has_mask, mask_score, 0.0)
    cross = rho.token * tokens + rho.x0_excess * x0_score + rho.mask * mask_score
    return (rho.rate * (sums.squares - 2 * cross + rho.of(torch.square))).to(log_scores)


def _entropy(rho: Tensor) -> Tensor:
    return torch.special.xlogy(rho, rho) - rho


@dataclass(frozen=True)
class _Ratios:
    """rho_y for y other than z, each (B, L) float64: of a clean token, what x0 has beyond that, of [MASK]; 0 for z."""

    rate: Tensor
    token: Tensor
    x0_excess: Tensor
    mask: Tensor
    others: Tensor
    """How many clean tokens are neither x0 nor z."""
    has_mask: Tensor
    """Whether [MASK] is a state other than z."""

    def of(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """sum_{y != z} function(rho_y), for a function that is 0 at 0."""
        of_x0 = torch.where(self.x0_excess > 0, function(self.token + self.x0_excess), 0.0)
        return self.others * function(self.token) + of_x0 + function(self.mask)


def _ratios(process: Categorical, x0: Tensor, z: Tensor, t: Tensor) -> _Ratios:
    at = process.coefficients(t)
    masked = torch.zeros_like(z, dtype=torch.bool) if process.mask_id is None else z == process.mask_id
    kept = z == x0
    own = torch.where(masked, at.mask, at.token + at.alpha * kept)
    has_mask = ~masked & (process.mask_id is not None)
    return _Ratios(
        process.jump(z, t),
        at.token / own,
        torch.where(kept, 0.0, at.alpha / own),
        torch.where(has_mask, at.mask / own, 0.0),
        process.num_tokens - 1 - (~masked & ~kept).double(),
        has_mask,
    )


@dataclass(frozen=True)
class _Sums:
    """Over y != z, each (B, L) float64: of s, of s^2, of log s among clean tokens; log s at x0 and at [MASK]."""

    total: Tensor
    squares: Tensor
    log_tokens: Tensor
    log_x0: Tensor
    log_mask: Tensor


def _sums(process: Categorical, log_scores: Tensor, x0: Tensor, z: Tensor) -> _Sums:
    return _Sums(*cast(tuple[Tensor, ...], _SumsOver.apply(log_scores, x0, z, process.mask_id)))


class _SumsOver(torch.autograd.Function):
    """Keeps the log-scores and makes one gradient of them, where autograd would keep and add one for every sum."""

    @staticmethod
    def forward(ctx: Any, log_scores: Tensor, x0: Tensor, z: Tensor, mask_id: int | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(log_scores, x0, z)
        ctx.mask_id = mask_id
        logs, own = log_scores.flatten(0, -2), z.reshape(-1, 1)
        total, squares, log_tokens = (own.new_empty(len(own), dtype=torch.float64) for _ in range(3))
        for part in at_once(logs):
            s = logs[part].exp().scatter_(-1, own[part], 0.0)
            total[part] = s.double().sum(-1)
            squares[part] = torch.linalg.vector_norm(s, dim=-1).double() ** 2
            log_tokens[part] = logs[part].double().sum(-1)
        log_x0 = log_scores.gather(-1, x0[..., None])[..., 0].double()
        log_mask = torch.zeros_like(log_x0) if mask_id is None else log_scores[..., mask_id].double()
        total, squares, log_tokens = (one.view(z.shape) for one in (total, squares, log_tokens))
        # where all tokens but z are ruled out this is -inf, and -inf less -inf is no number
        log_tokens = torch.where(log_tokens.isfinite(), log_tokens - log_mask, log_tokens)
        return total, squares, log_tokens, log_x0, log_mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        log_scores, x0, z = ctx.saved_tensors
        total, squares, log_tokens, log_x0, log_mask = (grad.to(log_scores)[..., None] for grad in grads)
        out = torch.empty_like(log_scores, memory_format=torch.contiguous_format)
        logs, filled = log_scores.flatten(0, -2), out.flatten(0, -2)
        of_s, of_squares, of_logs = (grad.reshape(-1, 1) for grad in (total, 2 * squares, log_tokens))
        for part in at_once(logs):
            s = torch.exp(logs[part], out=filled[part])
            s.mul_(s * of_squares[part] + of_s[part]).add_(of_logs[part])
        if ctx.mask_id is not None:
            out[..., ctx.mask_id] += (log_mask - log_tokens)[..., 0]
        out.scatter_add_(-1, x0[..., None], log_x0)
        # log s(z -> z) is 0 by definition, whatever was told
        out.scatter_(-1, z[..., None], 0.0)
        return out, None, None, None


# ------------------------------------------------------------------------------------------------------- objectives


def sedd(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Loss:
    """``score_entropy`` (SEDD, Lou et al. 2023), nats per token; value and bound are the same.

    A denoiser of scores (``facts.scores``) is taken at its scores, unnormalised as they are: the value is then SEDD's
    own bound, of the chain those scores drive, and not quite the NELBO of the log p it answers otherwise. At the scores
    of a law the two are one (T3c), so any other denoiser's log p is spared the detour.

    Errors: ``ValueError`` for a process in discrete time, or whose ratios are not those of tokens and one mask.
    """
    return _on_scores(denoiser, process, batch, u, generator, score_entropy)


def csm(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Loss:
    """``squared_score_error``: concrete score matching (Meng et al. 2022) in its denoising form.

    The value is no bound; the draw's score entropy is, and is reported. Errors: see ``sedd``.
    """
    return _on_scores(denoiser, process, batch, u, generator, squared_score_error)


def _on_scores(
    denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators, integrand: ScoreIntegrand
) -> Loss:
    if not isinstance(process, Categorical) or process.steps is not None:
        raise ValueError(f"scores of a {process.name} process: take masked, uniform or hybrid, process.steps=none")
    raw = denoiser.facts.scores

    def weighed(out: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        if integrand is score_entropy:
            value = integrand(process, out, x0, z, t) if raw else process.nelbo(out, x0, z, t)
            return value, value.detach()
        log_scores = out if raw else to_score(out, z, t, process)
        value = integrand(process, log_scores, x0, z, t)
        return value, score_entropy(process, log_scores.detach(), x0, z, t)

    z, t, weight = corrupt(process, batch["ids"], u, generator)
    value, bound = evaluate(denoiser, process, batch, z, t, weighed, scores=raw)
    return Loss(weight.to(value) * value, weight.to(bound) * bound)


def concrete_score_matching(c: Tensor, p: Tensor, neighbours: Tensor) -> Tensor:
    """The objective of concrete score matching (Meng et al. 2022) over N states with n neighbours each, a scalar.

        J = sum_x p(x) sum_i [ c_i(x)^2 + 2 c_i(x) ] - 2 sum_{x'} p(x') sum_{x, i: x' = x_i} c_i(x)

    c (N, n), p (N,) the law, ``neighbours`` (N, n) the states x_i next to x. J is E_p sum_i (c_i - c_p,i)^2 less a
    constant, with the concrete score c_p,i(x) = p(x_i) / p(x) - 1: the second term is a mean over draws x' of the law,
    at the states that have x' as a neighbour, so no ratio of the law is needed.
    """
    own = p[:, None] * (c**2 + 2 * c)
    of_neighbours = p[neighbours] * 2 * c
    return (own - of_neighbours).sum()
