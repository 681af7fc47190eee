"""Opening a causal model's attention little by little while it learns to denoise."""

import torch
from torch import Tensor, nn

from redraft import randomness
from redraft.models import contexts
from redraft.objectives.base import Batch, Loss, Objective, at
from redraft.processes import Denoiser, Facts, Process
from redraft.processes.base import Condition, as_condition
from redraft.randomness import Generators

PATTERN = 4
"""The key of a step's pattern, beside those of its times and noise (``training.loop``)."""


class Opening:
    """``denoiser``, each position reading only those that ``pattern`` (L, L) lets it, of what it would read else.

    Of two streams both halves keep to it, by where they stand. Attention is full or by blocks.
    """

    def __init__(self, denoiser: Denoiser, pattern: Tensor) -> None:
        self.denoiser, self.pattern = denoiser, pattern

    @property
    def facts(self) -> Facts:
        return self.denoiser.facts

    @property
    def module(self) -> nn.Module | None:
        """What it wraps, as those who look for what a model carries expect it (``blocks.noise_range``)."""
        return self.denoiser if isinstance(self.denoiser, nn.Module) else getattr(self.denoiser, "module", None)

    def __call__(self, z: Tensor, t: Tensor, cond: Condition | None = None, **asked: Tensor) -> Tensor:
        told = as_condition(cond)
        place = told.get("positions", torch.arange(z.shape[1], device=z.device))
        attend = self.pattern[place[..., :, None], place[..., None, :]]
        if "attend" in told:
            attend = told["attend"] & attend
        elif self.facts.block is not None:  # what is told takes the place of the model's own blocks
            attend = contexts.up_to(place // self.facts.block) & attend
        return self.denoiser(z, t, {**told, "attend": attend}, **asked)


def annealed(objective: Objective, over: int, seed: int, steps: int) -> Objective:
    """``objective`` through attention that opens over its first ``over`` steps, of ``steps`` in all.

        pattern = causal or Bernoulli(r),    r = min(1, (step + 1) / over),    one pattern a batch

    (DiffuLLaMA, Gong et al. 2024, arXiv 2410.17891). A step's pattern is a function of the seed and the step alone.

    Errors: ``ValueError`` for more steps than there are: attention would never be open; when called, for a denoiser
    whose attention is not open in the end.
    """
    if over > steps:
        raise ValueError(
            f"model.anneal={over} in train.steps={steps}: attention would not be open at the end; lower the first"
        )

    def opening(
        denoiser: Denoiser,
        process: Process,
        batch: Batch,
        u: Tensor,
        generator: Generators = None,
        *,
        progress: float = 1.0,
    ) -> Loss:
        if denoiser.facts.attention not in ("full", "block"):
            raise ValueError(
                f"model.anneal={over} with {denoiser.facts.attention} attention, which never opens: leave it out"
            )
        step = round(progress * steps)
        if step + 1 < over:
            ids = batch["ids"]
            drawn = randomness.generator(seed, PATTERN, step)
            denoiser = Opening(denoiser, contexts.opened(ids.shape[1], (step + 1) / over, drawn, ids.device))
        return at(objective, progress)(denoiser, process, batch, u, generator)

    return opening
