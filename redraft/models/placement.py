"""Where the parts of a model go, and whether there is room for them: known before any weight is read."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redraft.models.decoder import Decoder
from redraft.models.quantised import KINDS, blocks, kind_of, made, matrices
from redraft.models.weights import PRECISIONS, Piece, Shards, fill, fits
from redraft.randomness import Device

DeviceMap = str | Mapping[str, str | int | torch.device]


def precision(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating precision by its name; None for "auto", as stored. Errors: ``ValueError`` for anything else."""
    if dtype is None or dtype == "auto":
        return None
    known = {str(one).removeprefix("torch."): one for one in PRECISIONS.values()}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        near = get_close_matches(name.replace("bf", "bfloat").replace("fp", "float"), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"dtype={dtype!r} is no precision of weights; {hint}pass auto or one of {', '.join(known)}")
    return known[name]


def fetch(
    model: nn.Module,
    folder: Path,
    pieces: Sequence[Piece],
    device: Device = None,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap | None = None,
    quantize: str | None = None,
) -> None:
    """Fill ``model`` (built on the meta device) tensor by tensor: each in its precision or format, where it belongs.

    ``dtype``: see ``precision``; ``device_map``: see ``plan``; ``quantize``: one of ``quantised.KINDS``. Errors:
    ``ValueError`` for what does not fit, one another or the memory that is free; nothing is read then.
    """
    wanted, kind = precision(dtype), None if quantize is None else kind_of(quantize)
    shards = Shards(folder)
    precisions = fits(model, shards, pieces, wanted)
    found = plan(model, device, device_map, precisions, quantize)
    check_room(model, found, precisions, quantize)
    become = None if kind is None else dict.fromkeys(matrices(model, kind), partial(made, kind))
    fill(model, shards, pieces, dtype=wanted, place=place(found), become=become)
    spread(model, found)


def sizes(model: nn.Module, precisions: Mapping[str, torch.dtype], quantize: str | None = None) -> dict[str, int]:
    """Bytes of each tensor of ``model`` in these precisions, or where its weights are quantised in that format."""
    kind = None if quantize is None else KINDS[quantize]
    stacked = {} if kind is None else matrices(model, kind)
    found = dict[str, int]()
    for name, tensor in model.state_dict().items():
        found[name] = tensor.numel() * precisions[name].itemsize
        if kind is not None and name in stacked:
            found[name] = stacked[name] * kind.size(tuple(tensor.shape[-2:]), precisions[name].itemsize)
    return found


def plan(
    model: nn.Module,
    device: Device,
    device_map: DeviceMap | None,
    precisions: Mapping[str, torch.dtype],
    quantize: str | None = None,
    room: Mapping[str | int, int] | None = None,
) -> dict[str, torch.device]:
    """The device of every module, by the longest name that a tensor's begins with: {"": device} if all in one.

    ``device_map`` "auto" is accelerate's, by what is free, or by ``room``, bytes of each device. No block is divided.
    Errors: ``ValueError`` for a device that is not to be had, a name that is no module or divides a block, a module
    that no name covers, disks, and for several devices of a network other than ``Decoder``.
    """
    if device_map is None:
        return {"": to_be_had(device or "cpu")}
    if device is not None:
        raise ValueError(f"device={device!r} and device_map={device_map!r}: they say the same, pass one")
    if isinstance(device_map, str) and device_map != "auto":
        raise ValueError(f"device_map={device_map!r}: pass 'auto', or the names of modules with their devices")
    if find_spec("accelerate") is None:
        raise ValueError("device_map needs accelerate: pip install 'redraft[train]'")
    chosen = _inferred(model, precisions, quantize, room) if isinstance(device_map, str) else device_map
    if "disk" in chosen.values():
        raise ValueError(
            "device_map: part of the model would be left on disk, and be read again for every call; "
            f"there is too little room for it, {_gigabytes(sum(sizes(model, precisions, quantize).values()))} in all"
        )
    found = {name: to_be_had(f"cuda:{where}" if isinstance(where, int) else where) for name, where in chosen.items()}
    _check_names(model, found)
    if len(set(found.values())) > 1:
        _check_spread(model, found, quantize)
    return found


def place(found: Mapping[str, torch.device]) -> Callable[[str], torch.device]:
    """Where the tensor of a name goes, by a plan that covers it."""

    def of(name: str) -> torch.device:
        while name and name not in found:
            name = name.rpartition(".")[0]
        return found.get(name) or next(iter(found.values()))  # of no tensor that is stored

    return of


def spread(model: nn.Module, found: Mapping[str, torch.device]) -> None:
    """Let what passes between modules on several devices be carried along. What lies on the CPU computes elsewhere."""
    if len(set(found.values())) > 1:
        from accelerate import dispatch_model

        dispatch_model(model, {name: str(where) for name, where in found.items()})


def check_room(
    model: nn.Module,
    found: Mapping[str, torch.device],
    precisions: Mapping[str, torch.dtype],
    quantize: str | None = None,
) -> None:
    """Errors: ``ValueError`` where a device has less memory than its weights take, with what would make them fit."""
    where, needed = place(found), defaultdict[torch.device, int](int)
    for name, size in sizes(model, precisions, quantize).items():
        needed[where(name)] += size
    for device, size in needed.items():
        room = free(device)
        if room is not None and size > room:
            smaller = _smaller(model, precisions, quantize)
            if len(needed) == 1:
                smaller.append("device_map='auto' divides them among devices")
            raise ValueError(
                f"the weights take {_gigabytes(size)} on {device}, where {_gigabytes(room)} are free: "
                + ("; ".join(smaller) or "free some, or take a smaller model")
            )


def free(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type in ("cpu", "mps"):
        import psutil

        return psutil.virtual_memory().available
    return None


def to_be_had(device: Device | str) -> torch.device:
    """The device. Errors: ``ValueError`` for one that is not there."""
    try:
        torch.empty(0, device=device)
        return torch.device("cpu" if device is None else device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"device {str(device)!r} is not to be had ({reason}); leave it out") from None


def _smaller(model: nn.Module, precisions: Mapping[str, torch.dtype], quantize: str | None) -> list[str]:
    """What would make the weights smaller, and how small."""
    now = sum(sizes(model, precisions, quantize).values())
    options = {f"quantize={name!r}": sum(sizes(model, precisions, name).values()) for name in KINDS}
    if quantize is None:
        half = {name: min(one, torch.bfloat16, key=lambda dtype: dtype.itemsize) for name, one in precisions.items()}
        options = {"dtype='bfloat16'": sum(sizes(model, half).values())} | options
    return [f"{option} makes it {_gigabytes(size)}" for option, size in options.items() if size < now]


def _inferred(
    model: nn.Module,
    precisions: Mapping[str, torch.dtype],
    quantize: str | None,
    room: Mapping[str | int, int] | None,
) -> dict[str, Any]:
    from accelerate import infer_auto_device_map
    from accelerate.utils import CustomDtype, get_balanced_memory

    special: dict[str, Any] = dict(precisions)
    if quantize is not None:
        small = {"int8": torch.int8, "nf4": CustomDtype.INT4}[quantize]
        special |= dict.fromkeys(matrices(model, KINDS[quantize]), small)
    how: Any = {
        "no_split_module_classes": sorted({type(block).__name__ for _, block in blocks(model)}),
        "special_dtypes": special,
    }
    balanced = get_balanced_memory(model, None if room is None else dict(room), **how)
    return dict(infer_auto_device_map(model, max_memory=balanced, **how))


def _check_names(model: nn.Module, found: Mapping[str, torch.device]) -> None:
    modules, undivided = [name for name, _ in model.named_modules()], [name for name, _ in blocks(model)]
    for name in found:
        if name not in modules:
            near = get_close_matches(name, modules, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"device_map: no module is called {name!r}{hint} (see lm.denoiser.named_modules())")
        for block in undivided:
            if name.startswith(block + "."):
                raise ValueError(f"device_map: {name!r} divides {block!r}, which must be in one place; name that")
    for tensor in model.state_dict():
        parts = tensor.split(".")
        if not any(".".join(parts[:end]) in found for end in range(len(parts))):
            raise ValueError(
                f"device_map: where {tensor.rpartition('.')[0]!r} goes is not said; name it, or '' for the rest"
            )


def _check_spread(model: nn.Module, found: Mapping[str, torch.device], quantize: str | None) -> None:
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, Decoder):
        raise ValueError(
            f"device_map with several devices and a network of class {type(backbone).__name__}: only Decoder can be "
            "divided; pass device="
        )
    where = {device.type for device in found.values()}
    if "cpu" in where:  # accelerate keeps those weights there, and moves them to the others as they are needed
        if quantize is not None:
            raise ValueError(f"quantize={quantize!r} with a device_map that leaves part on the CPU: pass one of them")
        if place(found)("backbone.model.embed_tokens.weight").type == "cpu":
            raise ValueError("device_map: the embedding cannot be left on the CPU where other parts are not")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
