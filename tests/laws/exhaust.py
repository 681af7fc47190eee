"""The exact law of code that draws: run it once for every outcome of its categorical draws, with its probability.

Nothing of a sampler is written a second time here: what runs is the package's own code, with ``categorical`` and
``categorical_at`` replaced by what takes a told outcome and notes how probable it was. Uniform draws (``rand``) are not
enumerated.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from unittest.mock import patch

import torch
from torch import Tensor

from redraft import randomness
from redraft.sampling.contract import Draw

from .oracle import LAW, marginals, prior_law, sequences, state_number


class _ImpossibleError(Exception):
    """What was told so far has probability zero in every row."""


class _Told:
    """``categorical`` that returns the outcomes of ``path`` in turn, alike in every row, and then the first ones."""

    def __init__(self, path: list[int], rows: int) -> None:
        self.path, self.sizes = path, list[int]()
        self.weight = torch.ones(rows, dtype=torch.float64)

    def __call__(self, probs: Tensor, generators: object) -> Tensor:
        assert len(probs) == len(self.weight), "a draw for some of the rows: run them one at a time"
        rows, positions, size = probs.shape
        if len(self.sizes) == len(self.path):
            self.path.append(0)
        outcome = self.path[len(self.sizes)]
        self.sizes.append(size**positions)
        ids = sequences(size, positions)[outcome].expand(rows, -1) if positions else probs.new_zeros(rows, 0).long()
        share = probs.double() / probs.double().sum(-1, keepdim=True)
        self.weight = self.weight * share.gather(-1, ids[..., None]).squeeze(-1).prod(1)
        if not bool((self.weight > 0).any()):
            raise _ImpossibleError
        return ids

    def at(self, probs: Tensor, where: Tensor, generators: object) -> Tensor:
        """``categorical_at``: outcomes of the columns some row has marked; where a row has not, any is as good."""
        columns = where.any(0)
        full = torch.full((*where.shape, probs.shape[-1]), 1 / probs.shape[-1], dtype=torch.float64)
        full[where] = probs.double()
        return self(full[:, columns], generators)[where[:, columns]]


def outcomes(run: Callable[[], Tensor], rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(what ``run`` returns, the probability of that in each of its rows) for every sequence of outcomes."""
    names = ("categorical", "categorical_at")
    modules = [module for name, module in sys.modules.items() if name.startswith("redraft.")]
    users = [(module, name) for module in modules for name in names
             if getattr(module, name, None) is getattr(randomness, name)]  # fmt: skip
    path: list[int] = []
    while True:
        told = _Told(path, rows)
        result = None
        with ExitStack() as stack, suppress(_ImpossibleError):
            for module, name in users:
                stack.enter_context(patch.object(module, name, told if name == "categorical" else told.at))
            result = run()
        if result is not None:
            yield result, told.weight
        path = told.path[: len(told.sizes)]
        while path and path[-1] == told.sizes[len(path) - 1] - 1:
            path.pop()
        if not path:
            return
        path[-1] += 1


def remembering(denoiser: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same denoiser, asked once about the same (z, t): outcomes differ after the call more often than before it."""
    known: dict[tuple[object, ...], Tensor] = {}

    def ask(z: Tensor, t: Tensor, where: Tensor | None = None) -> Tensor:
        key = (z.shape, z.numpy().tobytes(), t.numpy().tobytes())
        if key not in known:
            known[key] = denoiser(z, t)
        return known[key] if where is None else known[key][where]

    return ask


def transitions(sampler, process, denoiser, t: float, s: float, together: bool = True, **draw) -> Tensor:
    """P(z_s | z_t) of a sampler over all states of two positions, (V^2, V^2); ``together``: all rows in one batch."""
    states, asked = sequences(process.V), remembering(denoiser)
    kernel = torch.zeros(len(states), len(states), dtype=torch.float64)
    for rows in [slice(None)] if together else [slice(i, i + 1) for i in range(len(states))]:
        z = states[rows]
        t_rows, s_rows = (torch.full((len(z),), time, dtype=torch.float64) for time in (t, s))

        def run(z: Tensor = z, t: Tensor = t_rows, s: Tensor = s_rows) -> Tensor:
            return sampler(process, asked, z, t, s, Draw(torch.zeros_like(z, dtype=torch.bool), None, **draw))

        for result, weight in outcomes(run, len(z)):
            kernel[rows].index_put_((torch.arange(len(z)), state_number(result, process.V)), weight, accumulate=True)
    return kernel


def law_at(sampler, process, denoiser, steps: int, until: int = 0, law: Tensor | None = None, **options) -> Tensor:
    """The law of the canvas after the steps from 1 to ``until / steps`` of an even grid, over the V^2 states."""
    law = prior_law(process) if law is None else law
    for i in range(steps, until, -1):
        law = after(law, transitions(sampler, process, denoiser, i / steps, (i - 1) / steps, **options))
    return law


def noised(process, s: float) -> Tensor:
    """q_s of the toy, over the V^2 states."""
    q = marginals(process, torch.tensor([s], dtype=torch.float64))[0]
    return torch.einsum("ab,ay,bz->yz", LAW, q, q).flatten()


def after(law: Tensor, kernel: Tensor) -> Tensor:
    """The law one step on; unreachable states may have no law at all."""
    return law @ torch.where(law[:, None] > 0, kernel, 0.0)
