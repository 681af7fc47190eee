"""Classifier guidance of the reverse kernel (D-CBG, Schiff et al. 2024, arXiv 2412.10193).

    p(z_s^l = y | z_t, c)  is proportional to  p(z_s^l = y | z_t) p(c | z_t with position l changed to y)^weight

position by position. With the exact classifier and weight 1 the sampled law tends to p(x | c), with an error of order
one over the number of steps. The classifier reads noisy z: one trained on clean text knows nothing of them.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.guidance.classifier_free import reverse_kernel
from redraft.processes import Process
from redraft.processes.base import Kernel, differentiating
from redraft.randomness import categorical
from redraft.sampling.samplers import Draw, Query, Sampler


class Classifier(Protocol):
    """``classifier(z, t) -> log p(c | z_t = z)``, (B,), of the one class c wanted; z (B, L) ids, t (B,).

    For first-order guidance z is given as (B, L, V) one-hot rows instead, and the answer must be differentiable in it.
    """

    def __call__(self, z: Tensor, t: Tensor) -> Tensor: ...


def gain(classifier: Classifier, z: Tensor, t: Tensor, possible: Tensor, batch: int = 1024) -> Tensor:
    """log p(c | z with position l changed to y) for every l and y that is ``possible``, 0 elsewhere; (B, L, V).

    A position with one possible state has nothing to choose and is not asked about, so under masks only masked
    positions cost anything: V - 1 tokens and [MASK] each. ``batch`` texts are given to the classifier at once.
    """
    rows, position, state = (possible & (possible.sum(-1, keepdim=True) > 1)).nonzero().T
    found: list[Tensor] = []
    for part in torch.arange(len(rows), device=z.device).split(batch):
        changed = z[rows[part]].clone()
        changed[torch.arange(len(part), device=z.device), position[part]] = state[part]
        found.append(classifier(changed, t[rows[part]]))
    gains = torch.zeros(possible.shape, dtype=torch.float64, device=z.device)
    if found:
        gains[rows, position, state] = torch.cat(found).double()
    return gains


def first_order_gain(classifier: Classifier, z: Tensor, t: Tensor, states: int) -> Tensor:
    """The same, up to a constant, by one gradient: g_{l, y} - g_{l, z_l}, g = d log p(c | z) / d one-hot(z); (B, L, V).

    Exact where log p(c | z) is linear in the one-hot rows; elsewhere it extrapolates from z to a text one token away.
    """
    with differentiating():
        rows = F.one_hot(z, states).to(torch.get_default_dtype()).requires_grad_()
        (slope,) = torch.autograd.grad(classifier(rows, t).sum(), rows)
    return (slope - slope.gather(-1, z[..., None])).double()


def tilted(
    process: Kernel,
    p0: Tensor,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    classifier: Classifier,
    weight: float = 1.0,
    first_order: bool = False,
) -> Tensor:
    """The guided reverse kernel, (B, L, V) float64 probabilities: posterior(p0, z, t, s) times p(c | .)^weight.

    ``p0`` (B, L, K) is what ``process.posterior`` takes. Weight 0 asks no classifier. States without probability stay
    without. Errors: ``ValueError`` for a negative weight, or a classifier that rules out every state of a position.
    """
    _check(weight)
    p = process.posterior(p0.double(), z, t, s)
    if weight == 0:
        return p
    gains = first_order_gain(classifier, z, t, p.shape[-1]) if first_order else gain(classifier, z, t, p > 0)
    guided = p.log() + weight * gains
    if bool(torch.isneginf(guided).all(-1).any()):
        raise ValueError("the classifier gives probability 0 to every state that a position can move to")
    return torch.softmax(guided, -1)


def _check(weight: float) -> None:
    if weight < 0:
        raise ValueError(
            f"weight={weight}: 0 is no guidance and 1 is p(x | c); for texts that are not c, classify not-c"
        )


def classifier_guided(classifier: Classifier, weight: float = 1.0, first_order: bool = False) -> Sampler:
    """A sampler guided by a classifier of noisy texts, for every process among tokens.

    A step asks the classifier about each single change that the kernel allows, L V texts a row at most (V times the
    masked positions under masks), or, with ``first_order``, takes one gradient. These are not denoiser calls, and
    ``nfe`` does not count them. Weight 1 is p(x | c), 0 no guidance, above 1 sharper than c.

    Errors: ``ValueError`` for a negative weight, or, at its first step, a process of vectors.
    """
    _check(weight)

    def guided(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
        kernel = reverse_kernel(process, "classifier guidance")
        probs = tilted(kernel, draw.probs(denoiser(z, t)), z, t, s, classifier, weight, first_order)
        return categorical(probs, draw.generator)

    return guided
