"""What a Categorical process mixes into the data: b_t, as a function of alpha alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coefficients:
    """alpha_t, the mask's and each clean token's mass in b_t, and their derivatives; all of one shape, float64."""

    alpha: Tensor
    mask: Tensor
    token: Tensor
    d_alpha: Tensor
    d_mask: Tensor
    d_token: Tensor


Noise = Callable[[Tensor, Tensor, int], Coefficients]
"""(alpha, d_alpha, number of clean tokens) -> coefficients."""


def masked_noise(alpha: Tensor, d_alpha: Tensor, tokens: int) -> Coefficients:
    zero = torch.zeros_like(alpha)
    return Coefficients(alpha, 1 - alpha, zero, d_alpha, -d_alpha, zero)


def uniform_noise(alpha: Tensor, d_alpha: Tensor, tokens: int) -> Coefficients:
    zero = torch.zeros_like(alpha)
    return Coefficients(alpha, zero, (1 - alpha) / tokens, d_alpha, zero, -d_alpha / tokens)


def mixed_noise(mask_fraction: float) -> Noise:
    """D3PM's mask and uniform noise in a fixed proportion: b = (1 - alpha) (f 1_m + (1 - f) uniform), f < 1.

    The last step is forced to the mask: where alpha is 0, so is all but the mask (Austin et al. 2021, appendix).
    """

    def noise(alpha: Tensor, d_alpha: Tensor, tokens: int) -> Coefficients:
        last = alpha <= 0
        share = torch.full_like(alpha, mask_fraction).masked_fill(last, 1.0)
        rest = (1 - share) / tokens
        gone = 1 - alpha
        return Coefficients(alpha, gone * share, gone * rest, d_alpha, -d_alpha * share, -d_alpha * rest)

    return noise


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
