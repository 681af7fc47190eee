"""Training: the loop on torch.distributed, its checkpoints, and a front end for ``transformers.Trainer``."""

from typing import TYPE_CHECKING, Any

from redraft.training.checkpoint import latest
from redraft.training.loop import Hooks, Result, Rows, fit
from redraft.training.optim import lr_scale
from redraft.training.parallel import World, world

if TYPE_CHECKING:
    from redraft.training.hf import DiffusionTrainer

__all__ = ["DiffusionTrainer", "Hooks", "Result", "Rows", "World", "fit", "latest", "lr_scale", "world"]


def __getattr__(name: str) -> Any:
    if name == "DiffusionTrainer":  # imports transformers, which nothing else here needs
        from redraft.training.hf import DiffusionTrainer

        return DiffusionTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
