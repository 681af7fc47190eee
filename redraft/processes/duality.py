"""Gaussian noise under the argmax is uniform noise (Duo, Sahoo et al. 2025, arXiv 2506.10892).

    w = a 1_x + eps,  eps ~ N(0, 1) in R^K,    z = argmax w    ~    alpha 1_x + (1 - alpha) uniform

Here a is the ratio of signal to noise of one coordinate: dividing Duo's a~ 1_x + s~ eps by s~ moves no argmax, so that
a = a~ / s~ = exp(-gamma / 2), where gamma is minus the log SNR.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from redraft.processes.base import per_position
from redraft.processes.categorical import Categorical
from redraft.randomness import Generators, rand, randn
from redraft.schedules import bisect

ALPHA_MAX, ALPHA_MIN = 0.945, 0.05
"""The alphas between which Duo's curriculum draws: at K = 50,258 its gammas of -3.55 and -1.85."""
_REACH, _STEP = 9.0, 0.01


def transform(ratio: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """(alpha, d alpha / d ratio) of z = argmax(ratio 1_x + eps) over K coordinates; float64, of ratio's shape.

        alpha = (K P - 1) / (K - 1),    P = P(z = x) = int phi(u - ratio) Phi(u)^(K-1) du

    by the trapezoidal rule, which for an analytic integrand that vanishes at both ends is exact to rounding.
    """
    ratio = ratio.double()
    offset = torch.arange(-_REACH, _REACH + _STEP / 2, _STEP, dtype=torch.float64, device=ratio.device)
    weight = _STEP / math.sqrt(2 * math.pi) * torch.exp(-(offset**2) / 2)
    below = torch.exp((K - 1) * torch.special.log_ndtr(ratio[..., None] + offset))
    # d/d ratio moves phi alone: d phi(u - ratio) = (u - ratio) phi(u - ratio)
    stays, rate = below @ weight, below @ (weight * offset)
    return (K * stays - 1) / (K - 1), K * rate / (K - 1)


@lru_cache
def interval(K: int) -> tuple[float, float]:
    """The gammas (least, greatest) at which alpha is ``ALPHA_MAX`` and ``ALPHA_MIN``, for a vocabulary of K."""
    wanted = torch.tensor([ALPHA_MAX, ALPHA_MIN], dtype=torch.float64)
    least, greatest = bisect(lambda gamma: transform(torch.exp(-gamma / 2), K)[0], wanted, -20.0, 20.0).tolist()
    return least, greatest


@dataclass(frozen=True)
class Relaxed:
    """One Gaussian draw per position: its argmax z, and its n largest coordinates, ids and values w, (B, L, n).

    The data's coordinate is always among the n, and comes last.
    """

    z: Tensor
    ids: Tensor
    w: Tensor


def relax(x0: Tensor, ratio: Tensor, K: int, n: int, generator: Generators = None) -> Relaxed:
    """Draw w = ratio 1_x0 + eps at every position without its K numbers: the data's and the n - 1 largest others.

    The K - 1 others are exchangeable, so their largest are the order statistics of that many normals (uniforms' are
    products of powers) at distinct ids drawn evenly; in joint law nothing is approximated (Duo++, Deschenaux et al.
    2026, arXiv 2602.21185). ``ratio`` (B,) or (B, L); 2 <= n <= K.
    """
    shape = (*x0.shape, n - 1)
    tops = _largest_normals(rand(shape, generator, x0.device), K - 1)
    others = _distinct(rand(shape, generator, x0.device), x0, K)
    own = per_position(ratio) + randn(x0.shape, generator, x0.device)
    ids, w = torch.cat([others, x0[..., None]], -1), torch.cat([tops, own[..., None]], -1)
    return Relaxed(ids.gather(-1, w.argmax(-1, keepdim=True))[..., 0], ids, w)


def _largest_normals(v: Tensor, count: int) -> Tensor:
    """The largest of ``count`` standard normals, in falling order, from uniforms v (..., n), n <= count.

    U_(1) = V_1^(1/count) and U_(j+1) = U_(j) V_(j+1)^(1/(count-j)): each is the largest of those left below the last.
    """
    left = count - torch.arange(v.shape[-1], dtype=torch.float64, device=v.device)
    log_u = (torch.log1p(-v) / left).cumsum(-1)
    tiny = torch.finfo(torch.float64).tiny
    above = torch.special.ndtri((-torch.expm1(log_u)).clamp_min(tiny))  # precise where U is near 1
    return torch.where(log_u > -math.log(2), -above, torch.special.ndtri(log_u.exp().clamp_min(tiny)))


def _distinct(v: Tensor, x0: Tensor, K: int) -> Tensor:
    """n distinct ids other than x0, evenly and in random order, from uniforms v (..., n); nothing of size K.

    The r-th id that is not yet taken is r plus the number of taken ids (in rising order, the i-th being c_i) for which
    c_i - i <= r.
    """
    taken = x0[..., None]
    for j in range(v.shape[-1]):
        r = (v[..., j] * (K - 1 - j)).long().clamp_max(K - 2 - j)[..., None]
        rising = taken.sort(-1).values - torch.arange(j + 1, device=v.device)
        taken = torch.cat([taken, r + (rising <= r).sum(-1, keepdim=True)], -1)
    return taken[..., 1:]


def coupled(process: Categorical, x0: Tensor, times: tuple[Tensor, ...], generator: Generators = None) -> list[Tensor]:
    """z at several times from the same Gaussian noise, (B, L) ids each: Duo's deterministic coupling.

    With eps fixed, argmax(a_t 1_x + eps) is x as long as a_t + eps_x exceeds every other coordinate, and then the
    largest other one, the same at all times. So one uniform v decides when the token is lost, at
    P(z_t = x) = alpha_t + (1 - alpha_t) / K, and one id what it is lost to: no normal is drawn.
    """
    v, other = rand((*x0.shape, 2), generator, x0.device).unbind(-1)
    noise = _distinct(other[..., None], x0, process.K)[..., 0]
    marginals = [process.coefficients(t) for t in times]
    return [torch.where(v < at.alpha + at.token, x0, noise) for at in marginals]
