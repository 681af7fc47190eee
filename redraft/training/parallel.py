"""Processes and devices: who computes what, and how their gradients meet.

One process needs nothing. Under ``torchrun`` each process is a rank of a group (gloo between CPUs, nccl between GPUs)
and the model is replicated (DDP) or sharded (FSDP2).
"""

import os
import warnings
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from redraft.processes import Facts
from redraft.recipes.config import TrainConfig


@dataclass(frozen=True)
class World:
    """This process among the ``size`` that train together. ``grouped``: they hold a process group."""

    rank: int
    size: int
    device: torch.device
    grouped: bool

    @property
    def main(self) -> bool:
        """Whether this is rank 0, the one that writes and prints."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """The element-wise sum over all processes, in float64."""
        if not self.grouped:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value``, by rank."""
        if not self.grouped:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        self.sum([0.0])


@contextmanager
def world() -> Generator[World]:
    """Join the group that torchrun's environment describes, and leave it at the end; may be nested.

    Without that environment it is one process, on the first GPU if there is one.
    """
    owner = "RANK" in os.environ and not dist.is_initialized()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if owner:
        # gloo beside nccl: scalars and file names are exchanged without waiting for the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    grouped = dist.is_initialized()
    try:
        yield World(dist.get_rank() if grouped else 0, dist.get_world_size() if grouped else 1, device, grouped)
    finally:
        if owner:
            dist.destroy_process_group()


def parts(config: TrainConfig, world: World) -> list[range]:
    """The positions of the global batch this process works on, one contiguous range per accumulated part.

    Errors: ``ValueError`` if the batch does not divide by processes times parts.
    """
    pieces = world.size * config.accumulate
    if config.batch % pieces:
        nearest = max(round(config.batch / pieces), 1) * pieces
        raise ValueError(
            f"train.batch={config.batch} does not divide by {world.size} processes x train.accumulate="
            f"{config.accumulate} = {pieces}: set train.batch={nearest}, or another accumulate or number of processes"
        )
    rows = config.batch // pieces
    first = world.rank * config.accumulate
    return [range((first + part) * rows, (first + part + 1) * rows) for part in range(config.accumulate)]


@dataclass(frozen=True)
class Distributed:
    """A wrapped model as a denoiser: it computes in the run's precision and still declares the model's facts."""

    module: nn.Module
    facts: Facts
    autocast: torch.device | None

    def __call__(self, z: Tensor, t: Tensor, cond: Any = None, **options: Tensor) -> Tensor:
        with nullcontext() if self.autocast is None else torch.autocast(self.autocast.type, dtype=torch.bfloat16):
            return self.module(z, t, cond, **options)

    def gradients_meet(self, now: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass: average gradients over the processes ``now``, or only add them up."""
        if isinstance(self.module, DistributedDataParallel) and not now:
            return cast(AbstractContextManager[None], self.module.no_sync())
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(now)
        return nullcontext()


def place(model: nn.Module, config: TrainConfig, world: World) -> Distributed:
    """Move ``model`` to its device and precision, in place, and wrap it for the processes that train it.

    Errors: ``ValueError`` if ``train.parallel`` asks for a group and there is none.
    """
    facts = cast(Facts, model.facts)
    settle(model, world.device, torch.float64 if config.precision == "float64" else torch.float32)
    mixed = config.precision == "bfloat16"
    if config.parallel != "auto" and not world.grouped:
        raise ValueError(
            f"train.parallel={config.parallel!r} in a single process: start with "
            "'torchrun --nproc-per-node N -m redraft.cli train ...', or set train.parallel=auto"
        )
    if config.compile:
        model.compile()
    module = model
    if config.parallel == "fsdp":
        module = shard(model, mixed)
    elif world.grouped:
        devices = [world.device] if world.device.type == "cuda" else None
        with warnings.catch_warnings():  # torch 2.13 renames the option, 2.11 knows no other name
            warnings.simplefilter("ignore", FutureWarning)
            module = DistributedDataParallel(model, devices, broadcast_buffers=False, gradient_as_bucket_view=True)
    return Distributed(module, facts, world.device if mixed else None)


def settle(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move ``model``, and give it a precision, but for weights that are not trained: those keep what they have."""
    fixed = frozen(model)
    if not fixed:
        model.to(device, dtype)
        return
    model.to(device)
    for name, one in [*model.named_parameters(), *model.named_buffers()]:
        if one.is_floating_point() and name not in fixed:
            one.data = one.data.to(dtype)


def frozen(model: nn.Module) -> set[str]:
    """The names, in its state, of parameters that are not trained; all names of one that has several."""
    return {name for name, one in model.named_parameters(remove_duplicate=False) if not one.requires_grad}


def shard(model: nn.Module, mixed: bool) -> nn.Module:
    """FSDP2, block by block, then what is left; every process starts from rank 0's weights."""
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), 0)
    # autocast rounds activations where that is safe; the policy only gathers weights in half the bytes.
    # Inputs are not cast: t must stay exact
    half = torch.bfloat16 if mixed else None
    full = torch.float32 if mixed else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=full, cast_forward_inputs=False)
    for block in cast(nn.ModuleList, model.blocks):
        fully_shard(block, mp_policy=policy)
    return cast(nn.Module, fully_shard(model, mp_policy=policy))


def full_state(model: nn.Module, world: World) -> dict[str, Tensor]:
    """What is trained, and buffers, whole and on the CPU, on rank 0; empty elsewhere. Every process must call it."""
    state: dict[str, Tensor] = {}
    fixed = frozen(model)
    for name, tensor in cast(dict[str, Tensor], model.state_dict()).items():
        if name in fixed:
            continue
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if world.main:
            state[name] = whole.detach().cpu().clone()
    return state
