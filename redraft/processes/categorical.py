"""Corruption among tokens: masked, uniform and hybrid noise are one process with different coefficients.

    q_t(y | x) = alpha_t 1[y = x] + b_t(y),        b_t(y) = mask_t 1[y = m] + token_t 1[y is a clean token]

Two primitives, ``marginal`` and ``likelihood``, give posterior, jump rate and NELBO (D3PM, Austin et al. 2021; SEDD,
Lou et al. 2023; UDLM, Schiff et al. 2024; GIDD, von Rütte et al. 2025). Coefficients are float64; tensors over the
vocabulary keep the dtype of what came in. Time is continuous, or, with ``steps``, a chain of so many: the
bound is then a sum of KLs between reverse kernels, which lies above the integral it tends to.
"""

import math
from typing import Any, Self, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.processes.base import Process, grid_before, grid_times, log_prob_of, per_position, step_kl
from redraft.processes.fused import shares
from redraft.processes.noises import Coefficients, Noise, masked_noise
from redraft.randomness import Device, Generators, categorical, rand
from redraft.schedules import Schedule, Table

T_EDGE = 1e-5
"""Draws are kept this far from 0 and 1, where integrands are limits 0 times infinity."""


def vocabulary(K: int) -> int:
    """K, if a vocabulary can have that many clean tokens; ``ValueError`` otherwise."""
    if K < 2:
        raise ValueError(f"K={K}: a vocabulary needs at least 2 clean tokens")
    return K


def mask_state(K: int, mask_id: int | None) -> int:
    """The id of [MASK]: K unless given. Errors: ``ValueError`` for one that leaves a gap after the tokens."""
    mask_id = K if mask_id is None else mask_id
    if not 0 <= mask_id <= K:
        raise ValueError(f"mask_id={mask_id} is outside 0..K={K}: it must be a token's id or the next free one")
    return mask_id


def check_ids(x0: Tensor, name: str, K: int, mask_id: int | None) -> None:
    """Refuse ids that are not clean tokens: ``ValueError`` naming the first."""
    bad = (x0 < 0) | (x0 >= K)
    if mask_id is not None:
        bad = bad | (x0 == mask_id)
    if bad.any():
        raise ValueError(
            f"token id {int(x0[bad][0])} is not a clean token of {name}(K={K}, mask_id={mask_id}): "
            "encode with the model's tokenizer"
        )


class Categorical:
    """A process over ids: ``K`` clean tokens, ``V`` states (one more when [MASK] is appended after them).

    ``mask_id`` may also lie inside the vocabulary (released checkpoints do that): then V = K, and neither data nor
    noise nor a denoiser may put a clean token there. ``steps``: T of a chain in discrete time; None is continuous
    time. Build one with ``masked``, ``uniform``, ``hybrid`` or ``d3pm``.
    """

    vectors = False

    def __init__(
        self,
        name: str,
        K: int,
        schedule: Schedule | Table,
        noise: Noise,
        mask_id: int | None,
        parameters: dict[str, Any],
        steps: int | None = None,
    ) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"steps={steps}: a chain takes at least 1; leave it out for continuous time")
        self.name, self.K, self.schedule, self.mask_id = name, K, schedule, mask_id
        self.V = K if mask_id is None else max(K, mask_id + 1)
        self.num_tokens = K - (mask_id is not None and mask_id < K)
        self._noise, self._parameters, self.steps = noise, parameters, steps
        self.absorbing = noise is masked_noise

    def to_dict(self) -> dict[str, Any]:
        facts = {"name": self.name, "K": self.K, "schedule": self.schedule.to_dict(), **self._parameters}
        if self.steps is not None:
            facts["steps"] = self.steps
        return facts if self.mask_id is None else {**facts, "mask_id": self.mask_id}

    def to(self, device: Device) -> Self:
        """Itself: a process over ids holds no tensors."""
        return self

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """t = u, or for hybrid noise t = u^2, with weight dt / du.

        GIDD's integrand grows like t^-1/2 towards t = 0; in u it is level, and its mean can be estimated. In discrete
        time each of the T steps is as likely: t = (1 + floor(u T)) / T.
        """
        if self.steps is not None:
            return grid_times(u, self.steps)
        u = u.double().clamp(T_EDGE, 1 - T_EDGE)
        t, weight = (u**2, 2 * u) if self.name == "hybrid" else (u, torch.ones_like(u))
        return t.clamp_min(self.first_time()), weight

    def first_time(self) -> float:
        """The earliest time drawn, when 1e-14 of the data is gone: not far below alpha rounds to 1, terms to 0 / 0."""
        return self.schedule.inverse(torch.tensor(1 - 1e-14, dtype=torch.float64, device="cpu")).item()

    def coefficients(self, t: Tensor) -> Coefficients:
        """The coefficients at t, of t's shape, (B, 1) for t of shape (B,)."""
        return self._noise(*self.schedule(per_position(t)), self.num_tokens)

    # ------------------------------------------------------------------------------------------------ forward

    def prior(self, shape: tuple[int, int], generator: Generators = None, device: Device = None) -> Tensor:
        """Draw z at t = 1: all [MASK], or for uniform noise independent uniform tokens; (B, L) ids."""
        if self.mask_id is not None:
            return torch.full(shape, self.mask_id, device=device)
        return (rand(shape, generator, device) * self.K).long()

    def prior_law(self) -> Tensor:
        """What ``prior`` draws a position from, (V,) float64."""
        if self.mask_id is None:
            return torch.full((self.V,), 1 / self.V, dtype=torch.float64)
        return F.one_hot(torch.tensor(self.mask_id), self.V).double()

    def corrupt(self, x0: Tensor, t: Tensor, generator: Generators = None) -> Tensor:
        """Draw z ~ q_t(. | x0) from one uniform per position, in O(B L) memory.

        The unit interval is cut into alpha (keep), mask, and equal shares of the clean tokens.
        """
        check_ids(x0, self.name, self.K, self.mask_id)
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

    def log_q(self, z: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """log q_t(z | x0), (B, L) float64; -inf where z cannot be."""
        return self._own(z, x0, self.coefficients(t)).log()

    def _own(self, z: Tensor, x0: Tensor, at: Coefficients) -> Tensor:
        own = at.token + at.alpha * (z == x0)
        return own if self.mask_id is None else torch.where(z == self.mask_id, at.mask, own)

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
        keep = _kept(early.alpha, late.alpha)
        mask, token = late.mask - keep * early.mask, late.token - keep * early.token
        into = token.expand(z.shape) if self.mask_id is None else torch.where(z == self.mask_id, mask, token)
        return keep[..., None] * F.one_hot(z, self.V) + into[..., None]

    def posterior(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The plug-in reverse kernel p(z_s = y | z_t = z, p0), (B, L, V) probabilities over the states.

            likelihood(z; s, t)(y) marginal(p0, s)(y) / marginal(p0, t)(z)

        p0 one-hot gives the true posterior. p0 must be the cavity posterior, which the D3PM parameterisation
        (eq. 4) then turns into the exact reverse kernel; with the full posterior it samples another law. p0 has K
        columns, or V where [MASK] is given mass too (D3PM's plain softmax).
        """
        if self.absorbing:
            return self._masked_posterior(p0, z, t, s)
        joint = self.likelihood(z, s, t).to(p0) * self.marginal(p0, s)
        return joint / joint.sum(-1, keepdim=True)

    def _masked_posterior(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Fast path: a masked token is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t), others stay.

        Mass p_m on [MASK] makes that (alpha_s - alpha_t) / (1 - alpha_t + alpha_t p_m) times the other tokens' p0. It
        also holds where the general form is 0/0: at a revealed token to which p0 gives no mass.
        """
        assert self.mask_id is not None
        early, late = self.coefficients(s), self.coefficients(t)
        on_mask = self._on_mask(p0)
        total = 1 - late.alpha + late.alpha * on_mask
        reveal = ((early.alpha - late.alpha) / total).to(p0)[..., None] * self._over_states(p0)
        stay = ((1 - early.alpha + early.alpha * on_mask) / total).to(p0)[..., None]
        is_mask_state = F.one_hot(torch.tensor(self.mask_id, device=z.device), self.V).bool()
        masked = (z == self.mask_id)[..., None]
        return torch.where(masked, torch.where(is_mask_state, stay, reveal), F.one_hot(z, self.V).to(p0))

    def _on_mask(self, p0: Tensor) -> Tensor:
        """The mass a model leaves on [MASK], float64 (B, L); none, (1, 1), where it names the K clean tokens only."""
        if self.mask_id is None or p0.shape[-1] <= self.mask_id:
            return torch.zeros(1, 1, dtype=torch.float64, device=p0.device)
        return p0[..., self.mask_id].double()

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

        In discrete time it is T KL(posterior(x0; z, t, s) || posterior(p; z, t, s)) with s = t - 1/T, whose mean over
        the T steps bounds -log p(x0). ``logp`` may then, and for masked noise always, have V columns: a model that
        leaves mass on [MASK].
        """
        if self.absorbing and logp.shape[-1] == self.K:
            weight = torch.where(z == self.mask_id, self.mask_weight(t), 0.0)
            return weight.to(logp) * -log_prob_of(x0, logp)
        if self.steps is not None:
            s, leaks = grid_before(t, self.steps), logp.shape[-1] > self.K
            if leaks and self.absorbing:
                return self.steps * self._leaking_step(logp, x0, z, t, s)
            return self.steps * (step_kl(self, logp, x0, z, t, s) if leaks else self._step(logp, x0, z, t, s))
        return self._leaking_nelbo(logp, x0, z, t) if self.absorbing else self._general_nelbo(logp, x0, z, t)

    def mask_weight(self, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha): what one masked token's cross-entropy weighs in the masked NELBO; float64.

        In discrete time T (alpha_s - alpha_t) / (1 - alpha_t), s = t - 1/T.
        """
        alpha, d_alpha = self.schedule(per_position(t))
        if self.steps is not None:
            d_alpha = (alpha - self.schedule(per_position(grid_before(t, self.steps)))[0]) * self.steps
        # where 1 - alpha rounds to zero nothing is masked, and a weight that is no number would spoil that nothing
        return -d_alpha / (1 - alpha).clamp_min(torch.finfo(alpha.dtype).tiny)

    def _leaking_nelbo(self, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The masked integrand of a model with mass p_m on [MASK], which slows its reveals; n = 1 - alpha (1 - p_m).

        -alpha' [ (1 - p_m) / n - 1 / (1 - alpha) + log(n / ((1 - alpha) p_x)) / (1 - alpha) ]
        """
        alpha, d_alpha = self.schedule(per_position(t))
        on_mask, hidden = self._on_mask(logp).exp(), 1 - alpha
        total = hidden + alpha * on_mask
        slowed = (1 - on_mask) / total - 1 / hidden + torch.log(total / hidden) / hidden
        terms = slowed.to(logp) - log_prob_of(x0, logp) / hidden.to(logp)
        return torch.where(z == self.mask_id, -d_alpha.to(logp) * terms, 0.0)

    def _leaking_step(self, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """``step_kl`` of the same model without a sum over the vocabulary, h = 1 - alpha:

        log(1 + alpha_t p_m / h_t) - (1 - h_s / h_t) log p_x - h_s / h_t log(1 + alpha_s p_m / h_s)
        """
        on_mask = self._on_mask(logp).exp()
        early, late = (1 - self.schedule(per_position(time))[0] for time in (s, t))
        stays = early / late
        log_total = torch.log1p((1 - late) * on_mask / late)
        log_early = torch.log1p((1 - early) * on_mask / torch.where(early > 0, early, 1.0))
        terms = log_total - (1 - stays) * log_prob_of(x0, logp) - stays * log_early
        return torch.where(z == self.mask_id, terms, 0.0).to(logp)

    def _general_nelbo(self, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        return (self.bound_weight(x0, z, t) * self.divergence(logp, x0, z, t)).to(logp)

    def bound_weight(self, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """g_t(z) / q_t(z | x0): what the NELBO multiplies ``divergence`` by, (B, L) float64 (GIDD's ELBO weights)."""
        return self.jump(z, t) / self._own(z, x0, self.coefficients(t))

    def divergence(self, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """KL(marginal(x, t) || marginal(p, t)) + r - log r - 1 for noise that reaches clean tokens, (B, L) float64.

        Both marginals are token times 1 + ratio times a law of clean tokens, so that the KL needs one sum over the
        vocabulary. The mask's own terms cancel, since p gives [MASK] no mass: both hold mask_t there.
        """
        at = self.coefficients(t)
        ratio = at.alpha / at.token
        total, at_x0, at_z = shares(logp, ratio, x0, z.clamp_max(self.K - 1))
        kl = _spread(ratio, at_x0, total)
        log_r = torch.log1p(ratio * (z == x0)) - torch.log1p(ratio * at_z.exp())
        if self.mask_id is not None:
            log_r = torch.where(z == self.mask_id, 0.0, log_r)
        return at.token * kl + torch.expm1(log_r) - log_r

    def _step(self, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """``step_kl`` for noise that reaches clean tokens, with one sum over the vocabulary. With N = q_t(z | x) it is

            1/N sum_y lik(y) marginal(x, s)(y) log(marginal(x, s)(y) / marginal(p, s)(y)) - log(N / marginal(p, t)(z))

        where lik(y) = q(z | y) is one number for all y, and more for y = z. At s = 0 the logarithm is -log p(x).
        """
        early, late, same = self.coefficients(s), self.coefficients(t), z == x0
        keep, first = _kept(early.alpha, late.alpha), (early.token <= 0) & (early.alpha > 0)
        tiny = torch.finfo(torch.float64).tiny
        ratio_s = torch.where(first, 0.0, early.alpha / early.token.clamp_min(tiny))
        ratio_t = late.alpha / late.token.clamp_min(tiny)
        total, at_x0, at_z = shares(logp, ratio_s, x0, z.clamp_max(self.K - 1))
        spread = torch.where(first, -at_x0, early.token * _spread(ratio_s, at_x0, total))
        log_early = torch.log1p(ratio_s * same) - torch.log1p(ratio_s * at_z.exp())
        log_early = torch.where(first, -at_x0 * same, log_early)
        log_late = torch.log1p(ratio_t * same) - torch.log1p(ratio_t * at_z.exp())
        stays = keep * (early.token + early.alpha * same)
        into, own = late.token - keep * early.token, late.token + late.alpha * same
        if self.mask_id is None:
            return ((into * spread + stays * log_early) / own - log_late).to(logp)
        is_mask = z == self.mask_id
        into, own = torch.where(is_mask, late.mask - keep * early.mask, into), torch.where(is_mask, late.mask, own)
        return (into * spread / own + torch.where(is_mask, 0.0, stays * log_early / own - log_late)).to(logp)

    def prior_kl(self, x0: Tensor) -> Tensor:
        """KL(q_1(. | x0) || prior), nats per token, (B, L): 0 unless uniform noise ends short of alpha = 0 (D3PM's)."""
        alpha = self.schedule(torch.ones(1, dtype=torch.float64))[0].item()
        kept, spread = alpha + (1 - alpha) / self.K, (1 - alpha) / self.K
        kl = kept * math.log(self.K * kept) + (self.K - 1) * spread * math.log1p(-alpha) if alpha else 0.0
        return torch.full(x0.shape, kl, dtype=torch.float64, device=x0.device)

    # ------------------------------------------------------------------------------------ cavity and full posterior

    def to_full(self, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Cavity to full posterior: log p(x | all of z) = log p(x | z without i) + log q_t(z_i | x) + const.

        Among clean tokens: where masks are not all the noise, what a model leaves on an appended [MASK] is dropped.
        """
        if self.absorbing:
            return logp
        logp = logp[..., : self.K]
        return torch.log_softmax(logp + self._log_own(logp, z, t), -1)

    def log_full_of(self, x0: Tensor, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """``to_full`` at x0 alone, (B, L), without a tensor over the vocabulary:

        log p(x0 | all of z) = log p(x0 | z without i) + log q_t(z_i | x0) - log marginal(p, t)(z_i)
        """
        if self.absorbing:
            return log_prob_of(x0, logp)
        left = torch.log1p(-self._on_mask(logp).exp()) if logp.shape[-1] > self.K else 0.0  # what is not on [MASK]
        at, own = self.coefficients(t), log_prob_of(x0, logp) - left
        seen = at.token + at.alpha * torch.exp(log_prob_of(z.clamp_max(self.K - 1), logp) - left)
        truly = at.token + at.alpha * (z == x0)
        if self.mask_id is not None:  # [MASK] tells nothing of x0; at the end of a chain the quotient there is 0 / 0
            truly, seen = (torch.where(z == self.mask_id, 1.0, value) for value in (truly, seen))
        return (own + torch.log(truly / seen)).to(logp)

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


def _kept(early: Tensor, late: Tensor) -> Tensor:
    """alpha_{t|s} = alpha_t / alpha_s, and 0 where nothing was left at s: a fast and long chain underflows."""
    return late / early.clamp_min(torch.finfo(torch.float64).tiny)


def _spread(ratio: Tensor, at_x0: Tensor, total: Tensor) -> Tensor:
    """sum_j q_j log(q_j / m_j), q = 1 + ratio 1_x and m = 1 + ratio p over clean tokens; total = sum_j log m_j."""
    return (1 + ratio) * torch.log1p(ratio) - ratio * torch.log1p(ratio * at_x0.exp()) - total


def absorbing(process: Process) -> TypeGuard[Categorical]:
    """Whether the only noise is [MASK]: revealed tokens are exact, and losses weigh masked tokens only."""
    return isinstance(process, Categorical) and process.absorbing
