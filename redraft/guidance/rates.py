"""Guidance of the reverse process's rates: the chain in continuous time, guided jump by jump (Nisonoff et al. 2024,
arXiv 2406.01572).

    R^c(z -> y) = R(z -> y) [p(c | y, t) / p(c | z, t)]^weight         for every change y of one position

With the exact classifier of noisy texts and weight 1 these are the rates of the reverse process of p(x | c): steps of
any sampler of rates draw it as they become short. Without a classifier, R_c^weight R_u^(1 - weight).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.guidance.classifier import Classifier, around, gains
from redraft.guidance.classifier_free import both, joined
from redraft.guidance.weights import Weight, check_finite, check_tilting, tilting_at, weight_at
from redraft.processes import Categorical, Denoiser, Process
from redraft.processes.base import per_position
from redraft.randomness import categorical
from redraft.sampling.kernels import leap, reverse_rates, with_rates
from redraft.sampling.samplers import Draw, Query, Sampler

LIMIT = 80.0
"""A rate is multiplied by no more than e^80, and no less than e^-80 unless its jump is ruled out."""


def tilted_rates(
    process: Categorical,
    p0: Tensor,
    z: Tensor,
    t: Tensor,
    classifier: Classifier,
    weight: Weight = 1.0,
    first_order: bool = False,
    text: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """The guided rates R(z -> y) [p(c | y, t) / p(c | z, t)]^weight, 0 at y = z; (B, L, V) float64.

    ``p0`` (B, L, K): the cavity posterior. Of rows of weight 0 no classifier is asked. ``first_order`` takes the
    logarithm's ratio by one gradient (TAG). ``text`` and ``start`` as in ``classifier.tilted``.

    Errors: ``ValueError`` for a negative weight.
    """
    own = tilting_at(weight, t)[:, None, None]
    rates = reverse_rates(process, p0.double(), z, t)
    if not bool(own.any()):
        return rates
    possible = ((rates > 0) | F.one_hot(z, process.V).bool()) & (own > 0)
    found = gains(classifier, z, t, possible, first_order, text, start)
    ratio = (own * (found - found.gather(-1, z[..., None]))).clamp(-LIMIT, LIMIT).exp()
    return torch.where(own > 0, rates * torch.where(torch.isneginf(found), 0.0, ratio), rates)


def mixed_rates(conditional: Tensor, unconditional: Tensor, weight: float | Tensor) -> Tensor:
    """R_c^weight R_u^(1 - weight), of which nothing is normalised; (B, L, V) rates each.

    A jump that either rules out is none, unless that leaves a position without any: then the conditional speaks alone.
    """
    meet = (conditional > 0) & (unconditional > 0)
    apart = torch.where(meet, conditional, 1.0).log() - torch.where(meet, unconditional, 1.0).log()
    mixed = torch.where(meet, conditional * ((weight - 1) * apart).clamp(-LIMIT, LIMIT).exp(), 0.0)
    return torch.where(meet.any(-1, keepdim=True), mixed, conditional)


def landed(process: Categorical, rates: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The law of z_s: Euler's step by these rates, (B, L, V); a mask that is left at s = 0 jumps all the same.

    Errors: ``ValueError`` for one that then has nowhere to go.
    """
    probs = leap(rates, z, t - s)
    if process.mask_id is None:
        return probs
    last = ((z == process.mask_id) & per_position(s == 0))[..., None]
    total = rates.sum(-1, keepdim=True)
    if bool((last & (total == 0)).any()):
        raise ValueError("the classifier gives probability 0 to every token that could take the place of a mask")
    return torch.where(last, rates / torch.where(total > 0, total, 1.0), probs)


def rate_guided(classifier: Classifier, weight: Weight = 1.0, first_order: bool = False) -> Sampler:
    """``euler`` by the rates that a classifier guides: masked, uniform and hybrid noise in continuous time.

    Its last step leaves no mask: one that would stay jumps, to a token in proportion to its guided rate.

    What it asks the classifier, and how that is counted, is as for ``classifier_guided``; both draw p(x | c) as steps
    go to infinity if ``weight`` is 1 and the classifier exact. Here p(c | .) also moves *when* a token is written: a
    mask whose tokens all make c likelier is written sooner.

    Errors: ``ValueError`` for a negative weight; at its first step, for a process without rates; for a classifier that
    leaves a mask no token.
    """
    check_tilting(weight)

    def guided(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
        process = with_rates("rate_guided", process)
        asked, text, start = around(classifier, denoiser, z)
        p0 = draw.probs(denoiser(z, t))
        rates = tilted_rates(process, p0, z, t, asked, weight, first_order, text, start)
        return categorical(landed(process, rates, z, t, s), draw.generator)

    return guided


def rate_cfg(unconditional: Denoiser, weight: Weight, null: Any = None) -> Sampler:
    """``euler`` by R_c^weight R_u^(1 - weight), guidance of rates without a classifier; its last step leaves no mask.

    ``sample`` is given the conditional denoiser; ``unconditional`` is told ``null``. Rows of weight 0 and 1 are those
    of one denoiser. Rates are not normalised: under masks a token is written Z = sum p_c^weight
    p_u^(1 - weight) times as fast, as in ``cfg_posteriors``; ``cfg`` leaves the time alone.

    Errors: ``ValueError`` for a weight that is no number; at its first step, for a process without rates, and for a
    text written in blocks.
    """
    check_finite(weight)

    def guided(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
        process = with_rates("rate_cfg", process)
        own = weight_at(weight, t)
        said = both(denoiser, unconditional, null, own, z, t, "rate_cfg")
        sides = [None if logp is None else reverse_rates(process, draw.probs(logp), z, t) for logp in said]
        return categorical(landed(process, joined(sides, own, mixed_rates), z, t, s), draw.generator)

    return guided
