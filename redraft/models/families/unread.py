"""Tensors that a checkpoint has and its denoiser does not read, carried along so that what is saved is what was loaded.

Heads of other tasks, tables of positions, causal masks of old releases.
"""

from collections.abc import Mapping

import torch
from torch import nn


class Unread(nn.Module):
    """Tensors of these ``shapes``, by the names that files have for them; nothing is ever computed of them."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.names = sorted(shapes)
        for number, name in enumerate(self.names):
            self.register_buffer(str(number), torch.empty(shapes[name]))

    def stored(self, name: str) -> str:
        """What files call the tensor of this name."""
        return self.names[int(name.rpartition(".")[2])]
