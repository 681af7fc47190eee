"""Heads: from the last layer's numbers to log p over clean tokens, and between log p and SEDD's concrete scores.

Shapes: B batch, L length, K clean tokens, V states. A score is s(z -> y) = q_t(y) / q_t(z) with all other positions as
they are, one per state y; scores are kept as logarithms, and log s(z -> z) = 0 (SEDD, Lou et al. 2023).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.errors import unknown
from redraft.processes import Categorical, Process, absorbing
from redraft.processes.gaussian import PREDICTIONS

LOGISTIC_GAIN = 2.0
"""log-scale 0 of the ``logistic`` head is a scale of exp(-2) on [-1, 1]; our constant."""

# ----------------------------------------------------------------------------------------------------------- heads


def subs(logits: Tensor, z: Tensor, t: Tensor, process: Process) -> Tensor:
    """log softmax over the clean tokens; [MASK] has no mass (MDLM's SUBS). (..., K) -> (..., K).

    The other half of SUBS, that revealed tokens are copied, is the reverse kernel's own (``Categorical.posterior``).
    """
    mask_id = process.mask_id
    if mask_id is not None and mask_id < logits.shape[-1]:  # a mask inside the vocabulary is no clean token
        logits = logits.index_fill(-1, torch.tensor(mask_id, device=logits.device), -torch.inf)
    return torch.log_softmax(logits, dim=-1)


def plain(logits: Tensor, z: Tensor, t: Tensor, process: Process) -> Tensor:
    """log softmax over all there is (D3PM): K tokens without a mask, with one the V states, of which [MASK] is one.

    Mass on [MASK] is a model that would rather not say; ``Categorical.posterior`` and ``nelbo`` know what it means.
    """
    return torch.log_softmax(logits, dim=-1)


def score(logits: Tensor, z: Tensor, t: Tensor, process: Process) -> Tensor:
    """log p of the scores that ``scores`` reads off the same numbers. (B, L, V) -> (B, L, K).

    Among masks p is proportional to s, whatever the unit of s (RADD, Ou et al. 2024).
    """
    if absorbing(process):
        return subs(logits[..., : process.K], z, t, process)
    assert isinstance(process, Categorical)
    return from_score(scores(logits, z, t, process), z, t, process)


def scores(logits: Tensor, z: Tensor, t: Tensor, process: Process) -> Tensor:
    """log s(z -> y) of a ``score`` head, (B, L, V), 0 at y = z.

    For masked noise the numbers are in units of 1 / ((e^sigma - 1) K), SEDD's ``scale_by_sigma``: a network whose last
    layer is zero then has the exact sum of scores at a mask, 1 / (e^sigma - 1) = alpha / (1 - alpha).
    """
    if absorbing(process):
        unit = log_odds(process.coefficients(t).alpha) + math.log(process.num_tokens)
        logits = logits - unit.to(logits)[..., None]
    return logits.scatter(-1, z[..., None], 0.0)


def logistic(logits: Tensor, z: Tensor, t: Tensor, process: Process) -> Tensor:
    """A discretised logistic law over ids that are an order, (loc, log-scale) -> log p. (..., 2) -> (..., K).

        p(k) = S(edge_{k+1}) - S(edge_k),   S(e) = sigmoid((e - loc) exp(2 - log_scale))

    Ids stand at -1 .. 1, edges half way between them; the first and last bin are open, so that p sums to 1 (D3PM's
    ordinal head for pixels, Austin et al. 2021, appendix). The constants are ours, and loc is not moved by z as there:
    the output convention is the cavity's, which z itself says nothing about.
    """
    loc, log_scale = logits[..., :1], logits[..., 1:]
    edges = (torch.arange(1, process.K, device=logits.device, dtype=logits.dtype) * 2 - process.K) / (process.K - 1)
    at = (edges - loc) * torch.exp(LOGISTIC_GAIN - log_scale)
    below, above = F.logsigmoid(at), F.logsigmoid(-at)
    # S(b) - S(a) = S(b) S(-a) (1 - e^(a - b)): no difference of numbers that are nearly 1
    inner = below[..., 1:] + above[..., :-1] + torch.log(-torch.expm1(at[..., :-1] - at[..., 1:]))
    return torch.cat([below[..., :1], inner, above[..., -1:]], dim=-1)


# ----------------------------------------------------------------------------------------------------- conversions


def log_odds(alpha: Tensor) -> Tensor:
    """log((1 - alpha) / alpha) = log(e^sigma - 1), float64; finite at alpha = 0 and 1, where neither is asked for."""
    tiny = torch.finfo(torch.float64).tiny
    alpha = alpha.double()
    return torch.log1p(-alpha.clamp_max(1 - 2**-53)) - torch.log(alpha.clamp_min(tiny))


def to_score(logp: Tensor, z: Tensor, t: Tensor, process: Categorical) -> Tensor:
    """log s(z -> y) = log marginal(p, t)(y) - log marginal(p, t)(z). logp: cavity, (B, L, K) -> (B, L, V).

    At a mask s_y = p_y / (e^sigma - 1). A revealed token z of masked noise is known: s is e^sigma - 1 at [MASK], and 0
    (-inf here) at other tokens.
    """
    if not absorbing(process):
        log_q = process.marginal(logp.exp(), t).log()
        return log_q - log_q.gather(-1, z[..., None])
    assert process.mask_id is not None
    odds = log_odds(process.coefficients(t).alpha).to(logp).expand(z.shape)[..., None]
    hidden = F.pad(logp[..., : process.K] - odds, (0, process.V - process.K))
    known = torch.full_like(hidden, -torch.inf)
    known[..., process.mask_id] = odds[..., 0]
    masked = (z == process.mask_id)[..., None]
    return torch.where(masked, hidden, known).scatter(-1, z[..., None], 0.0)


def from_score(log_scores: Tensor, z: Tensor, t: Tensor, process: Categorical) -> Tensor:
    """The cavity log p whose scores these are, (B, L, V) -> (B, L, K): the inverse of ``to_score``.

        marginal(p, t) = s / sum s,   hence   p proportional to s / sum s - b_t

    For masked noise p is proportional to s. For others s may be the scores of no law: what comes out below the least
    positive number is set to it, and p normalised. As alpha tends to 0 scores say ever less of p, and say it exactly
    only in float64.
    """
    if absorbing(process):
        return subs(log_scores[..., : process.K], z, t, process)
    q = torch.softmax(log_scores, dim=-1)[..., : process.K]
    token = process.coefficients(t).token.to(q)[..., None]
    p = (q - token).clamp_min(torch.finfo(q.dtype).tiny)
    if process.mask_id is not None and process.mask_id < process.K:
        p = p.index_fill(-1, torch.tensor(process.mask_id, device=p.device), 0.0)
    return torch.log(p / p.sum(-1, keepdim=True))


# -------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Head:
    """``head(logits, z, t, process) -> log p``; ``outputs`` is how many numbers a position has.

    ``outputs`` takes what is stored of the process, and V; ``refuses`` says why it does not go with it, or nothing.
    ``function`` is None where the numbers mean vectors (``VECTORS``): ``Gaussian.denoised`` reads them.
    """

    outputs: Callable[[Mapping[str, Any], int], int]
    refuses: Callable[[Mapping[str, Any]], str | None]
    function: Callable[[Tensor, Tensor, Tensor, Process], Tensor] | None = None

    def __call__(self, logits: Tensor, z: Tensor, t: Tensor, process: Process) -> Tensor:
        assert self.function is not None
        return self.function(logits, z, t, process)


def _subs_refuses(process: Mapping[str, Any]) -> str | None:
    return None if "mask_id" in process else "it takes [MASK] out of the softmax, and there is none; use head=plain"


def _plain_refuses(process: Mapping[str, Any]) -> str | None:
    leaks = process["name"] in ("masked", "d3pm") or process.get("steps") is not None
    if "mask_id" not in process or leaks:
        return None
    return "its bound is that of a model without mass on [MASK]; use head=subs"


def _score_refuses(process: Mapping[str, Any]) -> str | None:
    known = process["name"] in ("masked", "uniform", "hybrid") and process.get("steps") is None
    return None if known else "scores belong to masked, uniform or hybrid noise in continuous time; use another head"


def _logistic_refuses(process: Mapping[str, Any]) -> str | None:
    if process["name"] == "gaussian":
        return "what a vector says of its token is added to K logits; use head=plain"
    inside = process.get("mask_id", process["K"]) < process["K"]
    return "[MASK] stands among the ids it takes for an order; use head=subs" if inside else None


def _vectors_refuse(process: Mapping[str, Any]) -> str | None:
    return None if process["name"] == "gaussian" else "it predicts vectors, and there are none; leave head out"


VECTORS = tuple(PREDICTIONS)
"""Heads that predict clean vectors, in one parameterisation or another; tokens are named by rounding."""
HEADS: dict[str, Head] = {
    "subs": Head(lambda process, V: process["K"], _subs_refuses, subs),
    "plain": Head(lambda process, V: V, _plain_refuses, plain),
    "score": Head(lambda process, V: V, _score_refuses, score),
    "logistic": Head(lambda process, V: 2, _logistic_refuses, logistic),
    **{name: Head(lambda process, V: process["D"], _vectors_refuse) for name in VECTORS},
}


def get(name: str | None, process: Mapping[str, Any]) -> Head:
    """The head of a name; unless given, ``subs`` where the process (its ``to_dict``) has a mask, ``plain`` elsewhere.

    Errors: ``ValueError`` for an unknown name, or a head that does not fit the process, naming both.
    """
    name = name or ("subs" if "mask_id" in process else "plain")
    if name not in HEADS:
        raise unknown("head", name, HEADS)
    reason = HEADS[name].refuses(process)
    if reason:
        raise ValueError(f"head {name!r} with a {process['name']} process: {reason}")
    return HEADS[name]
