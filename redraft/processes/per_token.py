"""Masking at a rate of each token's own: q_t(y | x) = alpha_{t,x} 1[y = x] + (1 - alpha_{t,x}) 1[y = m].

``spindle`` hides rare tokens first (DiffusionBERT, He et al. 2022, arXiv 2211.15029); ``learned`` learns when to hide
what (GenMD4, Shi et al. 2024, arXiv 2406.04329). A mask then says something about the token behind it, and more so
the earlier t is: the denoiser must know t and give the posterior p(x | all of z, t), the mask at i included. With
``hidden`` = 1 - alpha, everything follows from hidden(t) and its logarithmic slope r = hidden' / hidden.
"""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.processes.base import Process, log_prob_of, per_position
from redraft.processes.categorical import T_EDGE, absorbing, check_ids, mask_state, vocabulary
from redraft.randomness import Device, Generators, categorical, rand

Hide = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(t, the process's tensor) -> (hidden, r), float64, which broadcast t against the vocabulary's tensor."""


def spindle(scores: Tensor, strength: float = 0.3, mask_id: int | None = None) -> "PerToken":
    """alpha_{t,v} = 1 - t + strength sin(pi t) S_v: tokens of high score stay longer (DiffusionBERT).

    ``scores`` S (K,) in [-1, 1], of mean 0 over the vocabulary: see ``frequency_scores``. The paper subtracts the mean
    over the *sentence*, which makes a token's noise depend on its neighbours: its law no longer factorises, and the
    bound it reports is not one. Over the vocabulary it is.

    Errors: ``ValueError`` for a score outside [-1, 1], and for strength pi max|S| >= 1, where alpha would not fall.
    """
    _vector("scores", scores)
    largest = float(scores.abs().max()) if _readable(scores) else 0.0
    if not largest <= 1:
        raise ValueError(f"a score of size {largest} is outside [-1, 1]: divide by the largest (frequency_scores does)")
    if not 0 <= strength * math.pi * largest < 1:
        raise ValueError(f"strength={strength} with scores up to {largest:.3g}: alpha must fall, strength pi |S| < 1")

    def hide(t: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        hidden = t - strength * torch.sin(math.pi * t) * scores
        return hidden, (1 - strength * math.pi * torch.cos(math.pi * t) * scores) / hidden

    return PerToken("spindle", scores, hide, mask_id, {"strength": strength})


def learned(exponents: Tensor, mask_id: int | None = None) -> "PerToken":
    """alpha_{t,v} = 1 - t^{w_v}, w = softplus(exponents): GenMD4's learned forward process.

    ``exponents`` (K,) is unconstrained and may be a parameter: ``nelbo`` and ``log_q`` are differentiable in it. The
    gradient of the bound needs both, for the law of z depends on w too; ``usual_exponents`` starts at w = 1.

    Errors: ``ValueError`` for an exponent w that is not above 0.
    """
    _vector("exponents", exponents)
    if _readable(exponents):
        w = F.softplus(exponents.detach().double())
        if not bool((w > 0).all()):
            bad = int((~(w > 0)).nonzero()[0])
            raise ValueError(
                f"exponent w={float(w[bad])} of token {bad} (raw {float(exponents[bad])}): must be above 0"
            )

    def hide(t: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor]:
        w = F.softplus(exponents)
        return t**w, w / t

    return PerToken("learned", exponents, hide, mask_id, {})


def usual_exponents(K: int) -> Tensor:
    """Raw exponents whose softplus is 1, where learned masking starts as linear masking; (K,) float32."""
    return torch.full((K,), math.log(math.expm1(1.0)))


def frequency_scores(counts: Tensor) -> Tensor:
    """S of ``spindle`` from how often each token occurs: log(1 + count), minus its mean, scaled to [-1, 1]; (K,)."""
    score = torch.log1p(counts.double())
    score = score - score.mean()
    return (score / score.abs().max().clamp_min(torch.finfo(torch.float64).tiny)).float()


def _readable(values: Tensor) -> bool:
    """Whether values can be looked at: a graph being compiled would break, and meta tensors have none."""
    return not (values.is_meta or torch.compiler.is_compiling())


def _vector(name: str, values: Tensor) -> None:
    if values.ndim != 1:
        raise ValueError(f"{name} of shape {tuple(values.shape)}: pass one number per token, (K,)")


class PerToken:
    """A masking process whose rate is a function of the token. Build one with ``spindle`` or ``learned``.

    ``logp`` is the full posterior p(x | z_t), which knows t and that i is masked: ``to_full`` and ``to_cavity`` are the
    identity, as they are among vectors. ``tensor`` (K,) is the scores or raw exponents.
    """

    vectors = False

    def __init__(
        self, name: str, tensor: Tensor, hide: Hide, mask_id: int | None, parameters: dict[str, float]
    ) -> None:
        self.name, self.tensor, self._hide, self._parameters = name, tensor, hide, parameters
        self.K = vocabulary(len(tensor))
        self.mask_id = mask_state(self.K, mask_id)
        self.V = max(self.K, self.mask_id + 1)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "K": self.K, **self._parameters, "mask_id": self.mask_id}

    def to(self, device: Device) -> Self:
        """The same process with its tensor on ``device``; one that reads a parameter goes where its model takes it."""
        if isinstance(self.tensor, nn.Parameter):
            return self
        return type(self)(self.name, self.tensor.to(device), self._hide, self.mask_id, self._parameters)

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """t = u, kept off both ends, weight 1."""
        u = u.double().clamp(T_EDGE, 1 - T_EDGE)
        return u, torch.ones_like(u)

    def hidden(self, t: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(1 - alpha, its logarithmic slope r), float64: (B, L or 1, K), or of the given tokens ``ids`` (B, L) only."""
        t, tensor = per_position(t).double(), self.tensor.double()
        hidden, slope = self._hide(t[..., None], tensor) if ids is None else self._hide(t, tensor[ids])
        late = (t >= 1) if ids is not None else (t >= 1)[..., None]
        return torch.where(late, 1.0, hidden), slope

    # ------------------------------------------------------------------------------------------------ forward

    def prior(self, shape: tuple[int, int], generator: Generators = None, device: Device = None) -> Tensor:
        """z at t = 1: all [MASK]; (B, L) ids."""
        return torch.full(shape, self.mask_id, device=device)

    def prior_law(self) -> Tensor:
        """What ``prior`` draws a position from, (V,) float64: [MASK]."""
        return F.one_hot(torch.tensor(self.mask_id), self.V).double()

    def corrupt(self, x0: Tensor, t: Tensor, generator: Generators = None) -> Tensor:
        """Draw z ~ q_t(. | x0): a token is hidden with probability hidden_{t, x0}."""
        check_ids(x0, self.name, self.K, self.mask_id)
        alpha = 1 - self.hidden(t, x0)[0].detach()
        return torch.where(rand(x0.shape, generator, x0.device) < alpha, x0, self.mask_id)

    def log_q(self, z: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """log q_t(z | x0), (B, L) float64, differentiable in learned exponents; -inf where z is neither x0 nor [MASK].

        What the score-function part of a learned process's gradient needs (GenMD4, REINFORCE leave-one-out).
        """
        hidden = self.hidden(t, x0)[0]
        masked = z == self.mask_id
        # each branch is evaluated where it is finite, so that the other's gradient is no 0 times infinity
        gone = torch.log(torch.where(masked, hidden, 1.0))
        kept = torch.log1p(-torch.where(masked, 0.0, hidden))
        return torch.where(masked, gone, torch.where(z == x0, kept, -torch.inf))

    # --------------------------------------------------------------------------------------------- primitives

    def _with_mask(self, of_tokens: Tensor, of_mask: Tensor) -> Tensor:
        """Values of the K tokens (.., K) and of [MASK] (..) as values of the V states."""
        states = F.pad(of_tokens, (0, self.V - self.K))
        is_mask = torch.arange(self.V, device=states.device) == self.mask_id
        return torch.where(is_mask, of_mask[..., None], states)

    def marginal(self, p0: Tensor, t: Tensor) -> Tensor:
        """q_t averaged over x ~ p0, (B, L, V) probabilities; p0 (B, L, K)."""
        hidden = self.hidden(t)[0].to(p0)
        return self._with_mask((1 - hidden) * p0, (hidden * p0).sum(-1))

    def likelihood(self, z: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """q(z_t = z | z_s = y) for every state y, s < t, (B, L, V): y stays in alpha_{t,y} / alpha_{s,y} of cases."""
        stays = (1 - self.hidden(t)[0]) / (1 - self.hidden(s)[0])
        masked = z == self.mask_id
        of_tokens = torch.where(masked[..., None], 1 - stays, stays * F.one_hot(z, self.V)[..., : self.K])
        return self._with_mask(of_tokens, masked.to(of_tokens))

    def posterior(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The reverse kernel p(z_s = y | z_t = z), (B, L, V): [MASK] turns into v with probability

            p0(v) (alpha_{s,v} - alpha_{t,v}) / (1 - alpha_{t,v})

        and stays otherwise, as do tokens. p0 is the full posterior: this is the mixture of the true posteriors under
        p0, which for one-hot p0 is Bayes' rule (GenMD4).
        """
        reveal = (1 - self.hidden(s)[0] / self.hidden(t)[0]).to(p0) * p0
        total = p0.sum(-1)
        from_mask = self._with_mask(reveal, total - reveal.sum(-1))
        return torch.where((z == self.mask_id)[..., None], from_mask, F.one_hot(z, self.V).to(p0))

    def ancestral(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor, generator: Generators = None) -> Tensor:
        """Draw z at s from ``posterior``, every position on its own, in float64; (B, L) ids."""
        return categorical(self.posterior(p0.double(), z, t, s), generator)

    # --------------------------------------------------------------------------------------------------- loss

    def nelbo(self, logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Integrand of the continuous-time NELBO, nats per token, (B, L); r is the logarithmic slope of ``hidden``.

            sum_v p_v r_v - r_x - r_x log p_x on masks, 0 elsewhere

        the path KL of the reverse rates p_v r_v (GenMD4, eq. for the loss, where r_v = w_v / t).
        """
        slope = self.hidden(t)[1].to(logp).expand(logp.shape)
        own = log_prob_of(x0, slope)
        terms = (logp.exp() * slope).sum(-1) - own - own * log_prob_of(x0, logp)
        return torch.where(z == self.mask_id, terms, 0.0)

    def prior_kl(self, x0: Tensor) -> Tensor:
        """What the integral leaves out: tokens still hidden at the edge of ``times``, coded uniformly. (B, L).

        At t = 1 every token is hidden, and the KL to the prior is 0. At the other end an exponent below 1 leaves
        edge^w hidden, which costs log K each (GenMD4's reconstruction term): the bound holds whatever is learned.
        """
        edge = torch.full((len(x0),), T_EDGE, dtype=torch.float64, device=x0.device)
        return self.hidden(edge, x0)[0] * math.log(self.K)

    def to_full(self, logp: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """``logp`` itself: the reverse kernel needs the full posterior, and that is what the bound teaches."""
        return logp

    to_cavity = to_full


def only_masks(process: Process) -> bool:
    """Whether what is no mask is final: ``absorbing``, or masks at a rate of each token's own."""
    return absorbing(process) or isinstance(process, PerToken)
