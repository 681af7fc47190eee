"""Resumable checkpoints: everything a killed run needs to end with the weights of one never killed.

A checkpoint is a folder ``checkpoints/step-000123``: safetensors written by ``torch.distributed.checkpoint``, each
process its shards, readable by any other number of processes; and ``manifest.json``: step, configuration and the
SHA-256 of every file. It is written beside as ``.step-000123.tmp`` and renamed when complete, and holds no pickle.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from redraft.recipes import Config, to_dict
from redraft.training.ema import Ema
from redraft.training.parallel import World, frozen

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

KEEP = 2
"""Complete checkpoints kept; older ones are removed."""

CADENCE = {"log_every", "eval_every", "save_every", "sample_every", "tracker", "threads"}
LAYOUT = {"accumulate", "parallel", "compile"}
FREE = {"recipe"} | {f"train.{name}" for name in CADENCE | LAYOUT}
"""Fields that may differ on resume, besides those of ``eval``: cadence, and layout, which leaves the sums the same."""

_VERSION = 1
_NAME = re.compile(r"step-\d{6,}")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself. ``config`` is flat, by dotted name; ``data`` fingerprints the training rows."""

    step: int
    config: dict[str, Any]
    data: str
    extra: dict[str, Any]
    files: dict[str, str]


def state_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ema: Ema) -> dict[str, Tensor]:
    """Every tensor that decides the rest of the run and changes in it, by name; sharded tensors stay sharded."""
    fixed, state = frozen(model), cast(dict[str, Tensor], model.state_dict())
    tensors = {f"model.{name}": tensor for name, tensor in state.items() if name not in fixed}
    tensors |= {f"ema.{name}": tensor for name, tensor in ema.average.items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            tensors |= {f"optimizer.{names[parameter]}.{key}": value for key, value in state.items()}
    return tensors


def prepare(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let the optimisers make their state, as zeros, so that a checkpoint can be read into it."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()


def save(out: Path, manifest: Manifest, tensors: dict[str, Tensor], world: World) -> Path:
    """Write a complete checkpoint, then remove all but the last ``KEEP``; every process must call it."""
    # a second of imports, spared to whoever only reads a model
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    folder = out / "checkpoints"
    final, partial = folder / f"step-{manifest.step:06d}", folder / f".step-{manifest.step:06d}.tmp"
    if world.main:
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
    world.barrier()
    with _quiet():
        dcp_save(tensors, storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
    world.barrier()
    names = sorted(path.name for path in partial.iterdir())
    files = {name: digest for part in world.gather(_digests(partial, names, world)) for name, digest in part.items()}
    if world.main:
        _write(partial / "manifest.json", {"version": _VERSION, **vars(manifest), "files": files})
        partial.rename(final)
        _sync(folder)
        for old in complete(out)[:-KEEP]:
            shutil.rmtree(old)
    world.barrier()
    return final


def complete(out: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; unfinished ones are not among them."""
    found = [path for path in (out / "checkpoints").glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def latest(out: Path) -> Path | None:
    """The last complete checkpoint of a run, or None."""
    return (complete(out) or [None])[-1]


def read_manifest(path: Path) -> Manifest:
    """What a checkpoint says of itself. Errors: ``ValueError`` naming the file if that is missing or damaged."""
    try:
        fields = json.loads((path / "manifest.json").read_text())
        version = fields.pop("version")
        manifest = Manifest(**fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"damaged checkpoint {path}: manifest.json is unreadable ({error}); {_REMEDY}") from None
    if version != _VERSION:
        raise ValueError(f"checkpoint {path} has version {version}, this redraft reads {_VERSION}: use the other one")
    return manifest


def load(path: Path, manifest: Manifest, tensors: dict[str, Tensor], world: World) -> None:
    """Read a checkpoint into ``tensors``, in place, after checking all of it; every process must call it.

    Errors: ``ValueError`` naming the file or the key that is wrong; nothing is read then.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

    missing = sorted(name for name in manifest.files if not (path / name).is_file())
    if missing:
        raise ValueError(f"damaged checkpoint {path}: {missing[0]} is missing; {_REMEDY}")
    # each process reads its share of the files once for this, and all hear of what any finds
    digests = _digests(path, sorted(manifest.files), world)
    wrong = [name for name, digest in digests.items() if digest != manifest.files[name]]
    wrong = [name for part in world.gather(wrong) for name in part]
    if wrong:
        raise ValueError(f"damaged checkpoint {path}: the content of {wrong[0]} has changed; {_REMEDY}")
    reader = HuggingFaceStorageReader(str(path))
    _same_keys(path, reader.read_metadata().state_dict_metadata, tensors)
    with _quiet():
        dcp_load(tensors, storage_reader=reader)


def same_run(path: Path, manifest: Manifest, config: Mapping[str, Any], data: str) -> None:
    """Refuse a checkpoint of another run: ``ValueError`` naming a field that decides the weights and differs.

    A field that the checkpoint does not know, being older than it, had its default.
    """
    stored = {**flatten(to_dict(Config())), **manifest.config}
    # a block model's validations choose the mask rates of the steps after them
    free = FREE - {"train.eval_every"} if config.get("objective") == "bd3lm" else FREE
    for name in sorted({*config, *manifest.config}):
        kept, asked = stored.get(name), config.get(name)
        if kept != asked and name not in free and not name.startswith("eval."):
            raise ValueError(
                f"cannot resume {path} with {name}={asked!r}: it was trained with {name}={kept!r}, "
                "and this decides the weights; resume with that, or start another run"
            )
    if manifest.data != data:
        raise ValueError(f"cannot resume {path}: the training rows have changed since; restore them, or start anew")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration by dotted name: ``{"train": {"lr": 1}} -> {"train.lr": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


_REMEDY = "remove its folder to resume from the one before"


def _same_keys(path: Path, stored: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    for key in sorted({*stored, *tensors}):
        if key not in stored or key not in tensors:
            lacking = "the checkpoint" if key not in stored else "this run"
            raise ValueError(f"mismatched checkpoint {path}: {lacking} has no {key}; resume with the model it is of")
        kept = cast("TensorStorageMetadata", stored[key])
        theirs, ours = (tuple(kept.size), kept.properties.dtype), (tuple(tensors[key].shape), tensors[key].dtype)
        if theirs != ours:
            raise ValueError(f"mismatched checkpoint {path}: {key} is {theirs} there and {ours} here")


def _digests(folder: Path, names: Sequence[str], world: World) -> dict[str, str]:
    """SHA-256 of this process's share of the files."""
    digests: dict[str, str] = {}
    for name in names[world.rank :: world.size]:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make a rename inside ``folder`` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _quiet() -> Generator[None]:
    """Without DCP's remark that a single process has no group, which is how it is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
        yield
