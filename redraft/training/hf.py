"""The same objectives under ``transformers.Trainer``, for those who live in its callbacks and launchers.

Rows, times and noise are keyed as in ``training.loop``: step s of a Trainer sees the batch, the corruption and the
loss that step s of ``fit`` sees. Needs accelerate, the ``train`` extra.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainingArguments

from redraft.data.packing import indices
from redraft.objectives import Objective, as_batch, at
from redraft.processes import Facts, Process
from redraft.processes.time import draw
from redraft.randomness import row_generators
from redraft.training.loop import NOISE, TIMES, Rows, total
from redraft.training.parallel import Distributed

HELD_OUT = 3
"""The key of evaluation's draws, beside ``TIMES`` and ``NOISE``."""

_KEYS = ("u", "index", "step", "tokens")


class TrainingStream(Dataset[dict[str, Tensor]]):
    """Item k is position ``k % batch`` of the global batch of step ``k // batch``, with all that its corruption needs.

    Read in order, however it is split among processes and parts, it is the loop's sequence of batches.
    """

    def __init__(self, rows: Rows, steps: int, batch: int, seed: int, times: str) -> None:
        self.rows, self.steps, self.batch, self.seed, self.times = rows, steps, batch, seed, times

    def __len__(self) -> int:
        return self.steps * self.batch

    def __getitems__(self, items: Sequence[int]) -> dict[str, Tensor]:
        steps, positions = {k // self.batch for k in items}, [k % self.batch for k in items]
        assert len(steps) == 1, "a part of a batch belongs to one step, since its size divides the batch"
        step = steps.pop()
        drawn = indices(step, self.batch, len(self.rows), self.seed)
        whole = as_batch(self.rows.batch(drawn))  # its number of valid tokens is the divisor
        valid = whole.get("valid", torch.ones_like(whole["ids"]))
        return {
            **{name: tensor[positions] for name, tensor in whole.items()},
            "u": draw(self.times, (self.seed, TIMES, step), positions, self.batch),
            "index": torch.as_tensor(drawn[positions]),
            "step": torch.full((len(items),), step),
            "tokens": torch.full((len(items),), int(valid.sum())),
        }


class HeldOutRows(Dataset[dict[str, Tensor]]):
    """Each row once, at its own time and noise, the same at every evaluation."""

    def __init__(self, rows: Rows, seed: int, times: str) -> None:
        self.rows, self.seed, self.times = rows, seed, times

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, items: Sequence[int]) -> dict[str, Tensor]:
        batch = as_batch(self.rows.batch(np.asarray(items)))
        valid = batch.get("valid", torch.ones_like(batch["ids"]))
        return {
            **batch,
            "u": draw(self.times, (self.seed, HELD_OUT, TIMES), items, len(self.rows)),
            "index": torch.as_tensor(items),
            "step": torch.full((len(items),), -1),
            "tokens": torch.full((len(items),), int(valid.sum())),
        }


class Trained(nn.Module):
    """What Trainer sees: the denoiser, its weights and keys, without its ``config``: Trainer would write in it."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, z: Tensor, t: Tensor, cond: Any = None, **options: Tensor) -> Tensor:
        return self.denoiser(z, t, cond, **options)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return self.denoiser.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        return self.denoiser.load_state_dict(*args, **options)


class DiffusionTrainer(Trainer):
    """``transformers.Trainer`` for a denoiser, its process and an objective.

    ``model`` is an ``nn.Module`` that is a denoiser and has ``facts``, or has one as ``denoiser``; it is trained in
    place. Save it with ``redraft.models.folder``: Trainer's checkpoints hold no configuration. ``rows`` are packed;
    ``args.seed`` keys all draws, ``args.max_steps`` is the length of the run, and the global batch is
    ``per_device_train_batch_size x processes x gradient_accumulation_steps``. Losses are nats per valid token;
    ``evaluate`` averages those of its batches, so padded rows count there as whole ones.

    Errors: ``ValueError`` without ``max_steps`` or with several GPUs a process; ``ImportError`` without accelerate.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        process: Process,
        objective: Objective,
        rows: Rows,
        eval_rows: Rows | None = None,
        times: str = "stratified",
        **options: Any,
    ) -> None:
        if find_spec("accelerate") is None:
            raise ImportError("transformers.Trainer needs accelerate: pip install 'redraft[train]'")
        if args.max_steps <= 0:
            raise ValueError(f"max_steps={args.max_steps}: set TrainingArguments(max_steps=...); rows never end")
        if args.n_gpu > 1:
            raise ValueError(f"{args.n_gpu} GPUs in one process: start one process for each, with torchrun")
        self.process, self.objective = process.to(args.device), objective
        batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        args.remove_unused_columns = False  # the batch is the objective's, not the arguments of model.forward
        denoiser = cast(nn.Module, getattr(model, "denoiser", model))
        self.facts = cast(Facts, denoiser.facts)
        super().__init__(
            Trained(denoiser),
            args,
            data_collator=_collated,
            train_dataset=TrainingStream(rows, args.max_steps, batch, args.seed, times),
            eval_dataset=None if eval_rows is None else HeldOutRows(eval_rows, args.seed, times),
            **options,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)  # pyright: ignore[reportArgumentType]

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Those that Trainer would decay, less what the denoiser names in ``undecayed``."""
        undecayed: frozenset[str] = getattr(model.denoiser, "undecayed", frozenset())
        found = super().get_decay_parameter_names(model)
        return [name for name in found if name.removeprefix("denoiser.") not in undecayed]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The part's share of the mean loss per valid token of the global batch, scaled as Trainer will undo it."""
        batch = {name: tensor for name, tensor in inputs.items() if name not in _KEYS}
        denoiser = Distributed(model, self.facts, None)
        step, training = int(inputs["step"][0]), bool(inputs["step"][0] >= 0)
        key = (self.args.seed, NOISE, step) if training else (self.args.seed, HELD_OUT, NOISE)
        noise = row_generators(*key, rows=inputs["index"].tolist())
        objective = at(self.objective, step / self.args.max_steps if training else 1.0)
        value = objective(denoiser, self.process, batch, inputs["u"], noise).value
        loss = total(value, batch) / inputs["tokens"][0]
        if training:  # Trainer divides by the parts and averages over the processes; the shares are to add up
            loss = loss * self.current_gradient_accumulation_steps * self.args.world_size
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss of held-out rows; there are no labels to hand back."""
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None


def _collated(batch: Any) -> Any:
    """Datasets here hand over whole batches."""
    return batch
