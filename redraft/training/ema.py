"""The moving average of the weights: a second copy of the parameters, sharded as they are."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from redraft.training.parallel import frozen


class Ema:
    """average <- d average + (1 - d) weights after every step, with d = min(decay, (1 + step) / (10 + step)).

    The ramp lets the first steps forget the random start, as the average of a short run would otherwise mostly be it.
    ``decay`` 0 keeps no copy, and the weights stand for their own average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        fixed = frozen(model)
        trained = {name: one for name, one in model.named_parameters() if name not in fixed}
        self._parameters = trained if decay else {}
        self.average: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that ``step`` updates have led to."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self.average[name].lerp_(parameter.detach(), weight)

    @contextmanager
    def swapped(self) -> Generator[None]:
        """Inside, the model computes with the average; afterwards with its own weights again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(kept)
