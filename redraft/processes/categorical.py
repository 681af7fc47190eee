"""Corruption among tokens: masked, uniform and hybrid noise are one process with different coefficients.

    q_t(y | x) = alpha_t 1[y = x] + b_t(y),        b_t(y) = mask_t 1[y = m] + token_t 1[y is a clean token]

Two primitives, ``marginal`` and ``likelihood``, give posterior, jump rate and NELBO (D3PM, Austin et al. 2021; SEDD,
Lou et al. 2023; UDLM, Schiff et al. 2024; GIDD, von Rütte et al. 2025). Coefficients are float64; tensors over the
vocabulary keep the dtype of what came in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.processes.base import Process, log_prob_of, per_position
from redraft.randomness import Device, Generators, categorical, rand
from redraft.schedules import Schedule


@dataclass(frozen=True)
class Coefficients:
    """alpha_t, the mask's and each clean token's mass in b_t, and their derivatives; all of one shape, float64."""

    alpha: Tensor
    mask: Tensor
    token: Tensor
    d_alpha: Tensor
    d_mask: Tensor
    d_token: Tensor


T_EDGE = 1e-5
"""Draws are kept this far from 0 and 1, where integrands are limits 0 times infinity."""

Noise = Callable[[Tensor, Tensor, int], Coefficients]
"""(alpha, d_alpha, number of clean tokens) -> coefficients."""


def masked_noise(alpha: Tensor, d_alpha: Tensor, tokens: int) -> Coefficients:
    zero = torch.zeros_like(alpha)
    return Coefficients(alpha, 1 - alpha, zero, d_alpha, -d_alpha, zero)


def uniform_noise(alpha: Tensor, d_alpha: Tensor, tokens: int) -> Coefficients:
    zero = torch.zeros_like(alpha)
    return Coefficients(alpha, zero, (1 - alpha) / tokens, d_alpha, zero, -d_alpha / tokens)


def hybrid_noise(uniform_share: float) -> Noise:
    """GIDD's mixing with gamma = 1: c = B sqrt(u (1-u)), B = 2 p_u / (1 - p_u), in its own time u = 1 - alpha.

        alpha_u = (1 - u) / (1 + c)     b_u = (u 1_m + c uniform) / (1 + c)

    so the uniform share peaks at p_u for u = 1/2 and all is mask at u = 1 (arXiv 2503.04482, eq. for pi_t).
    """
    scale = 2 * uniform_share / (1 - uniform_share)

    def noise(alpha: Tensor, d_alpha: Tensor, tokens: int) -> Coefficients:
        u, d_u = 1 - alpha, -d_alpha
        c = scale * torch.sqrt(u * alpha)
        # c' is infinite at both ends; inside the open interval of times it is not, and no kernel needs it at the ends
        d_c = scale * (1 - 2 * u) / (2 * torch.sqrt((u * alpha).clamp_min(torch.finfo(u.dtype).tiny)))
        total = 1 + c
        return Coefficients(
            alpha / total,
            u / total,
            c / total / tokens,
            (-total - alpha * d_c) / total**2 * d_u,
            (total - u * d_c) / total**2 * d_u,
            d_c / total**2 / tokens * d_u,
        )

    return noise


class Categorical:
    """A process over ids: ``K`` clean tokens, ``V`` states (one more when [MASK] is appended after them).

    ``mask_id`` may also lie inside the vocabulary (released checkpoints do that): then V = K, and neither data nor
    noise nor a denoiser may put a clean token there. Build one with ``masked``, ``uniform`` or ``hybrid``.
    """

    vectors = False

    def __init__(
        self, name: str, K: int, schedule: Schedule, noise: Noise, mask_id: int | None, parameters: dict[str, float]
    ) -> None:
        self.name, self.K, self.schedule, self.mask_id = name, K, schedule, mask_id
        self.V = K if mask_id is None else max(K, mask_id + 1)
        self.num_tokens = K - (mask_id is not None and mask_id < K)
        self._noise, self._parameters = noise, parameters
        self.absorbing = noise is masked_noise

    def to_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "name": self.name,
            "K": self.K,
            "schedule": self.schedule.to_dict(),
            **self._parameters,
        }
        return facts if self.mask_id is None else {**facts, "mask_id": self.mask_id}

    def to(self, device: Device) -> Self:
        """Itself: a process over ids holds no tensors."""
        return self

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """t = u, or for hybrid noise t = u^2, with weight dt / du.

        GIDD's integrand grows like t^-1/2 towards t = 0; in u it is level, and its mean can be estimated.
        """
        u = u.double().clamp(T_EDGE, 1 - T_EDGE)
        return (u**2, 2 * u) if self.name == "hybrid" else (u, torch.ones_like(u))

    def coefficients(self, t: Tensor) -> Coefficients:
        """The coefficients at t, of t's shape, (B, 1) for t of shape (B,)."""
        return self._noise(*self.schedule(per_position(t)), self.num_tokens)

    # ------------------------------------------------------------------------------------------------ forward

    def prior(self, shape: tuple[int, int], generator: Generators = None, device: Device = None) -> Tensor:
        """Draw z at t = 1: all [MASK], or for uniform noise independent uniform tokens; (B, L) ids."""
        if self.mask_id is not None:
            return torch.full(shape, self.mask_id, device=device)
        return (rand(shape, generator, device) * self.K).long()

    def corrupt(self, x0: Tensor, t: Tensor, generator: Generators = None) -> Tensor:
        """Draw z ~ q_t(. | x0) from one uniform per position, in O(B L) memory.

        The unit interval is cut into alpha (keep), mask, and equal shares of the clean tokens.
        """
        self.check_ids(x0)
        at = self.coefficients(t)
        u = rand(x0.shape, generator, x0.device) - at.alpha
        z = x0
        if not self.absorbing:
            share = (u - at.mask) / at.token.clamp_min(torch.finfo(at.token.dtype).tiny)
            noise = share.floor().clamp(0, self.num_tokens - 1).long()
            if self.mask_id is not None and self.mask_id < self.K:
                noise = noise + (noise >= self.mask_id)
            z = torch.where(u >= at.mask, noise, z)
        if self.mask_id is not None:
            z = torch.where((u >= 0) & (u < at.mask), self.mask_id, z)
        return torch.where(u < 0, x0, z)

    def check_ids(self, x0: Tensor) -> None:
        """Refuse ids that are not clean tokens: ``ValueError`` naming the first."""
        bad = (x0 < 0) | (x0 >= self.K)
        if self.mask_id is not None:
            bad = bad | (x0 == self.mask_id)
        if bad.any():
            raise ValueError(
                f"token id {int(x0[bad][0])} is not a clean token of {self.name}(K={self.K}, mask_id={self.mask_id}): "
                "encode with the model's tokenizer"
            )

    # --------------------------------------------------------------------------------------------- primitives

    def _noise_vector(self, mask: Tensor, token: Tensor, like: Tensor) -> Tensor:
        """b(y) over the V states, (B, L or 1, V), in the dtype of ``like``."""
        b = token.to(like)[..., None].expand(*token.shape, self.V)
        if self.mask_id is None:
            return b
        b = b.clone()
        b[..., self.mask_id] = mask.to(like)
        return b

    def _over_states(self, p0: Tensor) -> Tensor:
        """Give p0 over K clean tokens its V-th state, the appended mask, with probability 0."""
        return p0 if p0.shape[-1] == self.V else F.pad(p0, (0, self.V - p0.shape[-1]))

    def marginal(self, p0: Tensor, t: Tensor) -> Tensor:
        """q_t averaged over x ~ p0: alpha_t p0 + b_t. p0: (B, L, K); returns (B, L, V) probabilities."""
        at = self.coefficients(t)
        return at.alpha.to(p0)[..., None] * self._over_states(p0) + self._noise_vector(at.mask, at.token, p0)

    def likelihood(self, z: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """q(z_t = z | z_s = y) for every state y: alpha_{t|s} 1[y = z] + b_{t|s}(z), s < t; (B, L, V) float64."""
        early, late = self.coefficients(s), self.coefficients(t)
        keep = late.alpha / early.alpha
        mask, token = late.mask - keep * early.mask, late.token - keep * early.token
        into = token.expand(z.shape) if self.mask_id is None else torch.where(z == self.mask_id, mask, token)
        return keep[..., None] * F.one_hot(z, self.V) + into[..., None]

    def posterior(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The plug-in reverse kernel p(z_s = y | z_t = z, p0), (B, L, V) probabilities over the states.

            likelihood(z; s, t)(y) marginal(p0, s)(y) / marginal(p0, t)(z)

        p0 one-hot gives the true posterior. p0 must be the cavity posterior, which the D3PM parameterisation
        (eq. 4) then turns into the exact reverse kernel; with the full posterior it samples another law.
        """
        if self.absorbing:
            return self._masked_posterior(p0, z, t, s)
        joint = self.likelihood(z, s, t).to(p0) * self.marginal(p0, s)
        return joint / joint.sum(-1, keepdim=True)

    def _masked_posterior(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Fast path: a masked token is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t), others stay.

        It also holds where the general form is 0/0: at a revealed token to which p0 gives no mass.
        """
        assert self.mask_id is not None
        early, late = self.coefficients(s), self.coefficients(t)
        stay = ((1 - early.alpha) / (1 - late.alpha)).to(p0)[..., None]
        reveal = (1 - stay) * self._over_states(p0)
        is_mask_state = F.one_hot(torch.tensor(self.mask_id, device=z.device), self.V).to(p0)
        masked = (z == self.mask_id)[..., None]
        return torch.where(masked, reveal + stay * is_mask_state, F.one_hot(z, self.V).to(p0))

    def ancestral(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor, generator: Generators = None) -> Tensor:
        """Draw z at s from ``posterior``, every position on its own, in float64; (B, L) ids."""
        return categorical(self.posterior(p0.double(), z, t, s), generator)

    def jump(self, z: Tensor, t: Tensor) -> Tensor:
        """The forward rate of jumping into z from any other state: g_t(z) = b'_t(z) - (alpha'_t / alpha_t) b_t(z)."""
        at = self.coefficients(t)
        ratio = at.d_alpha / at.alpha
        token = (at.d_token - ratio * at.token).expand(z.shape)
        return token if self.mask_id is None else torch.where(z == self.mask_id, at.d_mask - ratio * at.mask, token)

    # --------------------------------------------------------------------------------------------------- loss

    def nelbo(self, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Integrand of the continuous-time NELBO, nats per token, (B, L).

            g_t(z) / q_t(z|x) [ KL(marginal(x, t) || marginal(p, t)) + r - log r - 1 ],  r = q_t(z|x) / q_t(z|p)

        Its mean over t ~ U(0, 1) and z ~ q_t bounds -log p(x0). One integrand serves SEDD, MDLM, MD4, RADD, UDLM, Duo
        and GIDD. For masked noise it is -alpha'/(1 - alpha) times the cross-entropy of the masked positions.
        """
        if self.absorbing:
            weight = torch.where(z == self.mask_id, self.mask_weight(t), 0.0)
            return weight.to(logp) * -log_prob_of(x0, logp)
        return self._general_nelbo(logp, x0, z, t)

    def mask_weight(self, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha): what one masked token's cross-entropy weighs in the masked NELBO; float64."""
        alpha, d_alpha = self.schedule(per_position(t))
        # where 1 - alpha rounds to zero nothing is masked, and a weight that is no number would spoil that nothing
        return -d_alpha / (1 - alpha).clamp_min(torch.finfo(alpha.dtype).tiny)

    def _general_nelbo(self, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The KL needs one sum over the vocabulary: marginal(x, t) is alpha + token at x, token or mask elsewhere."""
        at = self.coefficients(t)
        alpha, token = at.alpha.to(logp), at.token.to(logp)
        log_model = torch.log(alpha[..., None] * logp.exp() + token[..., None])  # log marginal(p, t) of clean tokens
        log_model_x = log_prob_of(x0, log_model)
        log_sum = log_model.sum(-1)
        if self.mask_id is not None and self.mask_id < self.K:
            log_sum = log_sum - log_model[..., self.mask_id]
        # the mask's own terms cancel, since p gives [MASK] no mass: both marginals hold mask_t there
        kl = (alpha + token) * torch.log(alpha + token) + (self.num_tokens - 1) * token * torch.log(token)
        kl = kl - alpha * log_model_x - token * log_sum
        own = token + alpha * (z == x0)
        log_model_z = log_prob_of(z.clamp_max(self.K - 1), log_model)
        log_r = torch.log(own) - log_model_z
        if self.mask_id is not None:
            is_mask = z == self.mask_id
            own = torch.where(is_mask, at.mask.to(logp), own)
            log_r = torch.where(is_mask, 0.0, log_r)
        return self.jump(z, t).to(logp) / own * (kl + torch.expm1(log_r) - log_r)

    def prior_kl(self, x0: Tensor) -> Tensor:
        """KL(q_1(. | x0) || prior) = 0: every schedule reaches alpha = 0. (B, L)."""
        return torch.zeros(x0.shape, dtype=torch.float64, device=x0.device)

    # ------------------------------------------------------------------------------------ cavity and full posterior

    def to_full(self, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Cavity to full posterior: log p(x | all of z) = log p(x | z without i) + log q_t(z_i | x) + const."""
        return logp if self.absorbing else torch.log_softmax(logp + self._log_own(logp, z, t), -1)

    def to_cavity(self, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Full to cavity posterior: the inverse of ``to_full``; the identity wherever z is [MASK].

        Absorbing noise has no use for either away from masks, where tokens are known, so both leave ``logp`` as it is.
        """
        return logp if self.absorbing else torch.log_softmax(logp - self._log_own(logp, z, t), -1)

    def _log_own(self, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """log q_t(z | x) for every clean x, up to a constant: zero where z is [MASK]. (B, L, K)."""
        at = self.coefficients(t)
        same = F.one_hot(z.clamp_max(self.K - 1), self.K).bool()
        if self.mask_id is not None:
            same = same & (z != self.mask_id)[..., None]
        ratio = torch.log((at.alpha + at.token) / at.token)
        return torch.where(same, ratio.to(logp)[..., None], 0.0)


def absorbing(process: Process) -> TypeGuard[Categorical]:
    """Whether the only noise is [MASK]: revealed tokens are exact, and losses weigh masked tokens only."""
    return isinstance(process, Categorical) and process.absorbing
