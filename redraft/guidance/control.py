"""Diffusion-LM's plug-and-play control: after every step the sample itself is moved towards what is wanted.

    J(x) = control(x, s) + fluency sum (x - mean)^2 / std,      x <- x - lr sign(grad J),  a few times

with mean and std those of the step's own kernel, whose draw x is (Diffusion-LM, Li et al. 2022). This is an exact
sampler of no law: how far a sample goes is set by ``lr`` and the number of updates, not by what is likely. To sample
p(x | y), use ``gradient_guided``.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from redraft.guidance.classifier_free import of_vectors
from redraft.guidance.gradient import LogLikelihood, slope
from redraft.processes import Process
from redraft.processes.base import differentiating
from redraft.randomness import randn
from redraft.sampling.samplers import Draw, Query, Sampler


class Control(Protocol):
    """``control(x, s, denoiser) -> (B,)``, what is to become small, differentiable in x (B, L, D); row by row.

    ``denoiser`` is the run's own, counted in ``nfe``, for those who would look through it; s (B,) is x's time.
    """

    def __call__(self, x: Tensor, s: Tensor, denoiser: Query, /) -> Tensor: ...


def unlikely(log_likelihood: LogLikelihood) -> Control:
    """-log p(y | x): attributes of a text, or tags of its tokens, by a classifier of noised vectors."""
    return lambda x, s, denoiser: -log_likelihood(x, s)


def ends_at(process: Process, position: int, end: int) -> Control:
    """|x_hat - codebook[end]|^2 / sigma_s at ``position``: a text of that many tokens, with no classifier.

    The clean vector is the denoiser's, so that every update costs a call of it and a backward pass through it. What
    stands before the end is left alone, be it another end; a negative position counts from the text's end.

    Errors: ``ValueError`` for a token that there is not; when run, for a position that there is not.
    """
    process = of_vectors(process, "ends_at")
    if not 0 <= end < process.K:
        raise ValueError(f"end={end}: name a token from 0 to {process.K - 1}")

    def control(x: Tensor, s: Tensor, denoiser: Query) -> Tensor:
        if not -x.shape[1] <= position < x.shape[1]:
            raise ValueError(f"ends_at position {position} of texts of {x.shape[1]} tokens: name one of those")
        sigma = process.scales(process.gamma(s)[0])[1][:, 0]
        found = denoiser(x, s)[:, position]
        return ((found - process.codebook[end].to(found)) ** 2).sum(-1) / sigma

    return control


def plug_and_play(
    control: Control, *, fluency: float = 0.01, updates: int = 3, lr: float = 0.1, until: float = 0.05
) -> Sampler:
    """The ancestral sampler with ``updates`` signed steps of size ``lr`` on J after each step from t >= ``until``.

    Their optimiser, Adagrad made anew for every update, is exactly these signed steps. ``fluency`` holds the sample to
    where the kernel has it (they use 0.1 to 1e-4, 0.01 for attributes and length). Every coordinate moves by the
    same ``lr``, so that what is large depends on the codebook's scale.

    Errors: ``ValueError`` for options outside their range; at its first step, for a process of tokens; for a control
    that is not one number a row, or has no finite gradient, or that looks through the denoiser at temperature 0; and
    in inference mode.
    """
    for name, value in (("fluency", fluency), ("until", until)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: pass 0 or more")
    if updates < 1 or not 0 < lr < math.inf:
        raise ValueError(f"updates={updates}, lr={lr}: take one update at least, of a size above 0")

    def guided(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
        process = of_vectors(process, "plug_and_play")
        mean, variance = process.posterior(denoiser(z, t), z, t, s)
        std = variance.sqrt().to(mean)
        x = mean + (variance.sqrt() * randn(z.shape, draw.generator, z.device)).to(mean)
        moving = (t >= until)[:, None, None]
        if not bool(moving.any()):
            return x
        seen = _greedy if draw.temperature == 0 else denoiser
        for _ in range(updates):
            with differentiating():
                at = x.detach().requires_grad_()
                held = fluency * ((at - mean) ** 2 / std).flatten(1).sum(1)
                push = slope(control(at, s, seen) + held, at, s)
            x = torch.where(moving, x - lr * push.sign(), x)
        return x

    return guided


def _greedy(z: Tensor, t: Tensor, where: Tensor | None = None, /) -> Tensor:
    """What a control finds in place of the denoiser where the likeliest token is taken, which has no gradient."""
    raise ValueError("temperature=0 with a control that looks through the denoiser: pass a temperature above 0")
