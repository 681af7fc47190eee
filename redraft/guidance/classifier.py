"""Classifier guidance of the reverse kernel (D-CBG, Schiff et al. 2024, arXiv 2412.10193).

    p(z_s^l = y | z_t, c)  is proportional to  p(z_s^l = y | z_t) p(c | z_t with position l changed to y)^weight

position by position. With the exact classifier and weight 1 the sampled law tends to p(x | c), with an error of order
one over the number of steps. The classifier reads noisy z: one trained on clean text knows nothing of them.
"""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.guidance.classifier_free import reverse_kernel
from redraft.guidance.weights import Weight, check_tilting, tilting_at
from redraft.processes import Process
from redraft.processes.base import Kernel, differentiating
from redraft.randomness import categorical
from redraft.sampling.samplers import Draw, Query, Sampler


class Classifier(Protocol):
    """``classifier(z, t) -> log p(c | z_t = z)``, (B,), of the one class c wanted; z (B, L) ids, t (B,).

    For first-order guidance z is given as (B, L, V) one-hot rows instead, and the answer must be differentiable in it.
    """

    def __call__(self, z: Tensor, t: Tensor) -> Tensor: ...


@runtime_checkable
class Around(Protocol):
    """What ``sample`` gives a sampler for a denoiser: it has the text around z, and counts what a classifier reads."""

    def __call__(self, z: Tensor, t: Tensor, /) -> Tensor: ...

    def whole(self, z: Tensor, /) -> tuple[Tensor, int]: ...

    def classified(self, texts: int, /) -> None: ...


def around(classifier: Classifier, denoiser: Query, z: Tensor) -> tuple[Classifier, Tensor, int]:
    """The classifier, counted; the text that z is part of, and where in it z begins. Called by hand: z itself."""
    if not isinstance(denoiser, Around):
        return classifier, z, 0
    count = denoiser.classified

    def counted(z: Tensor, t: Tensor) -> Tensor:
        count(len(z))
        return classifier(z, t)

    return counted, *denoiser.whole(z)


def gain(classifier: Classifier, z: Tensor, t: Tensor, possible: Tensor, batch: int = 1024, start: int = 0) -> Tensor:
    """log p(c | z with position start + l changed to y) for l and y that are ``possible`` (B, W, V), else 0; (B, W, V).

    A position with one possible state has nothing to choose and is not asked about, so under masks only masked
    positions cost anything: V - 1 tokens and [MASK] each. ``batch`` texts are given to the classifier at once.
    """
    rows, position, state = (possible & (possible.sum(-1, keepdim=True) > 1)).nonzero().T
    found: list[Tensor] = []
    for part in torch.arange(len(rows), device=z.device).split(batch):
        changed = z[rows[part]].clone()
        changed[torch.arange(len(part), device=z.device), start + position[part]] = state[part]
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


def gains(
    classifier: Classifier, z: Tensor, t: Tensor, possible: Tensor, first_order: bool, text: Tensor | None, start: int
) -> Tensor:
    """``gain`` or ``first_order_gain`` of z (B, W), which begins at ``start`` in ``text``; (B, W, V)."""
    text = z if text is None else text
    if first_order:
        return first_order_gain(classifier, text, t, possible.shape[-1])[:, start : start + z.shape[1]]
    return gain(classifier, text, t, possible, start=start)


def tilted(
    process: Kernel,
    p0: Tensor,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    classifier: Classifier,
    weight: Weight = 1.0,
    first_order: bool = False,
    text: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """The guided reverse kernel, (B, L, V) float64 probabilities: posterior(p0, z, t, s) times p(c | .)^weight.

    ``p0`` (B, L, K) is what ``process.posterior`` takes. Of rows of weight 0 no classifier is asked. States without
    probability stay without. ``text``: what the classifier reads, if z is only a part that begins at ``start``.

    Errors: ``ValueError`` for a negative weight, or a classifier that rules out every state of a position.
    """
    own = tilting_at(weight, t)[:, None, None]
    p = process.posterior(p0.double(), z, t, s)
    if not bool(own.any()):
        return p
    guided = p.log() + own * gains(classifier, z, t, (p > 0) & (own > 0), first_order, text, start)
    if bool(torch.isneginf(guided).all(-1).any()):
        raise ValueError("the classifier gives probability 0 to every state that a position can move to")
    return torch.where(own > 0, torch.softmax(guided, -1), p)


def classifier_guided(classifier: Classifier, weight: Weight = 1.0, first_order: bool = False) -> Sampler:
    """A sampler guided by a classifier of noisy texts, for every process among tokens.

    A step asks the classifier about each single change that the kernel allows, L V texts a row at most (V times the
    masked positions under masks), or, with ``first_order``, takes one gradient. These are no denoiser calls: ``nfe``
    leaves them out, and ``cost.classified`` counts the texts. Weight 1 is p(x | c), 0 no guidance, above 1 sharper than
    c; a function of t may say which. While blocks are written the classifier reads the whole text, which has masks
    where nothing stands yet.

    Errors: ``ValueError`` for a negative weight, or, at its first step, a process of vectors.
    """
    check_tilting(weight)

    def guided(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
        kernel = reverse_kernel(process, "classifier guidance")
        asked, text, start = around(classifier, denoiser, z)
        p0 = draw.probs(denoiser(z, t))
        return categorical(tilted(kernel, p0, z, t, s, asked, weight, first_order, text, start), draw.generator)

    return guided
