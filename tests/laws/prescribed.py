"""Objectives without their randomness: the draw is prescribed, so that expectations are sums over draws."""

import copy

import torch
from torch import Tensor

from redraft.processes import Facts


def prescribed(process, *draws: Tensor):
    """The same process, whose ``corrupt`` returns the given z in turn, over and over; times stay what u says."""
    process, queue = copy.copy(process), list(draws)

    def corrupt(x0, t, generator=None):
        queue.append(queue.pop(0))
        return queue[-1]

    process.corrupt = corrupt
    return process


class Says:
    """A denoiser that says the same whatever it is asked: ``answer`` (B, L, K), repeated for more streams."""

    def __init__(self, answer: Tensor, **facts) -> None:
        self.answer, self.facts = answer, Facts(**{"time_conditioned": True, **facts})

    def __call__(self, z: Tensor, t: Tensor, cond: object = None, scores: bool = False) -> Tensor:
        assert scores == self.facts.scores or not scores
        return self.answer.repeat(1, z.shape[1] // self.answer.shape[1], 1)


class Selective:
    """Any denoiser, asked for some positions only; counts how many."""

    def __init__(self, inner) -> None:
        self.inner, self.asked = inner, 0
        self.facts = Facts(**{**vars(inner.facts), "selective": True})

    def __call__(self, z: Tensor, t: Tensor, cond: object = None, where: Tensor | None = None, **asked) -> Tensor:
        out = self.inner(z, t, cond, **asked)
        if where is None:
            return out
        self.asked += int(where.sum())
        return out[where]


def random_law(*shape: int, seed: int = 0, scale: float = 1.5) -> Tensor:
    """log p of random laws over the last axis, float64."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (scale * noise).log_softmax(-1)
