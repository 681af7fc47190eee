"""Weights in safetensors files, one or several: checked whole before any is read, then read one by one.

What a file calls a tensor, and how it cuts it, differs from family to family. ``Piece`` says it for one tensor, and a
list of them is the whole correspondence, both ways. Nothing but safetensors is ever opened.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from redraft.files import write, write_text
from redraft.randomness import Device

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD = 5_000_000_000
"""Bytes of the largest file written, as ``transformers`` has it."""
_PRECISIONS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_OTHERS = {
    **{"I64": torch.int64, "I32": torch.int32, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_SHOWN = 4


@dataclass(frozen=True)
class Piece:
    """Where the tensor ``name`` of a module is found: in the file's tensor ``stored``.

    ``rows``: it is those rows of the stored one (a fused layer). ``at``: the stored one is this entry of it (an expert
    among those stacked).
    """

    stored: str
    name: str
    rows: slice | Tensor | None = None
    at: int | None = None


def renamed(model: nn.Module, stored_as: Callable[[str], str] = lambda name: name) -> list[Piece]:
    """Every tensor of ``model`` is stored whole, under another name."""
    return [Piece(stored_as(name), name) for name in model.state_dict()]


class Shards:
    """The safetensors files of a folder: ``shapes`` and ``precisions`` (as safetensors names them) of all tensors.

    Errors: ``ValueError`` for no file, pickles only, a file that is damaged, cut off or not the index's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / (INDEX if (folder / INDEX).is_file() else WEIGHTS)
        self.shapes = dict[str, tuple[int, ...]]()
        self.precisions = dict[str, str]()
        self._open = dict[str, Any]()
        index = _read_index(self.path) if self.path.name == INDEX else None
        files = {folder / name for name in index.values()} if index is not None else {self.path}
        held = dict[str, str]()
        for path in sorted(files):
            if not path.is_file():
                raise ValueError(missing(path))
            file = _opened(path)
            for key in file.keys():  # noqa: SIM118
                header = file.get_slice(key)
                self.shapes[key], self.precisions[key] = tuple(header.get_shape()), str(header.get_dtype())
                self._open[key], held[key] = file, path.name
        if index is not None and index != held:
            wrong = sorted(key for key in index.keys() | held.keys() if index.get(key) != held.get(key))
            raise ValueError(
                f"{self.path}: {wrong[0]} is said to be in {index.get(wrong[0])}, and is in {held.get(wrong[0])} "
                f"({len(wrong)} are misplaced); copy the folder again"
            )

    def check(self, key: str) -> torch.dtype:
        """The precision of a weight. Errors: ``ValueError`` for a quantised one, or for no floating number."""
        found = self.precisions[key]
        if found not in _PRECISIONS:
            said = _OTHERS.get(found, found)
            raise ValueError(f"{self.path}: {key} is {said}; convert it to a floating precision of 16 bits or more")
        return _PRECISIONS[found]

    def get(self, key: str) -> Tensor:
        """A tensor as it is stored: a view of the file where the platform can map it."""
        return self._open[key].get_tensor(key)


def fill(
    model: nn.Module,
    folder: Path,
    pieces: Sequence[Piece] | None = None,
    *,
    dtype: torch.dtype | None = None,
    place: Callable[[str], Device] = lambda name: None,
    done: Callable[[str], object] = lambda name: None,
) -> None:
    """Give ``model`` (built on the meta device) the tensors in ``folder``, all of them and no other.

    Each is read, cast to ``dtype`` (as stored if None; buffers always are) and put on the device ``place(name)`` before
    the next: at no time are there two copies of more than one. ``done(name)`` is called when a tensor is in place.

    Errors: ``ValueError`` naming what does not fit; nothing is read then.
    """
    pieces = renamed(model) if pieces is None else pieces
    shards = Shards(folder)
    state = model.state_dict()
    weights = {name for name, _ in model.named_parameters()}
    _compare(shards, _expected(pieces, state))
    _check_precision(shards, [piece for piece in pieces if piece.name in weights], dtype)
    for name, parts in _grouped(pieces, lambda piece: piece.name).items():
        wanted = dtype if name in weights else None
        tensor = _read(shards, parts, state[name], wanted).to(device=place(name), dtype=wanted)
        put(model, name, tensor)
        done(name)
    stored = {name for name, value in model.state_dict().items() if value.is_meta}
    assert not stored, f"pieces name all but {sorted(stored)}"


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make ``tensor`` the parameter or buffer called ``name``."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if (old := dict(module.named_parameters(recurse=False)).get(leaf)) is not None:
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        module.register_buffer(leaf, tensor)


def stored(state: Mapping[str, Tensor], pieces: Iterable[Piece]) -> dict[str, Tensor]:
    """The tensors as the files have them: the inverse of what ``fill`` does."""
    found = dict[str, Tensor]()
    for key, parts in _grouped(pieces, lambda piece: piece.stored).items():
        tensors = [state[piece.name] if piece.at is None else state[piece.name][piece.at] for piece in parts]
        if parts[0].rows is None:
            (found[key],) = tensors
            continue
        whole = tensors[0].new_empty(sum(map(len, tensors)), *tensors[0].shape[1:])
        for piece, tensor in zip(parts, tensors, strict=True):
            whole[piece.rows] = tensor
        found[key] = whole
    return found


def write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors files: one, or of large models several and their index."""
    from huggingface_hub import split_torch_state_dict_into_shards

    plan = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=MAX_SHARD)
    for name, keys in plan.filename_to_tensors.items():
        part = {key: tensors[key].detach().cpu().contiguous() for key in keys}
        write(folder / name, lambda path, part=part: save_file(part, path, metadata={"format": "pt"}))
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    else:
        (folder / INDEX).unlink(missing_ok=True)


def missing(path: Path) -> str:
    """Why there are no weights to read, and what to do about it."""
    pickled = sorted(one.name for one in path.parent.iterdir() if one.suffix in _PICKLED)
    if not pickled:
        return f"{path}: no such file, and weights are read from nowhere else; copy the folder again, or convert them"
    return (
        f"{path}: no such file. {pickled[0]} is a pickle, which can run code when it is read, so it is not; if you "
        f"trust it, convert it: tensors = torch.load({pickled[0]!r}, weights_only=True), then "
        f"safetensors.torch.save_file({{k: v.clone().contiguous() for k, v in tensors.items()}}, {WEIGHTS!r}). "
        "A Lightning checkpoint holds them under 'state_dict', together with some that are no weights"
    )


def _read_index(path: Path) -> dict[str, str]:
    """Which file holds which tensor."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = {str(key): str(name) for key, name in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged, {type(error).__name__} {error}; copy the folder again") from None
    for name in names.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{path}: names the file {name!r}; only .safetensors files beside it are read")
    return names


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt").__enter__()
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, {error}; copy the folder again") from None


def _grouped(pieces: Iterable[Piece], key: Callable[[Piece], str]) -> dict[str, list[Piece]]:
    found = defaultdict[str, list[Piece]](list)
    for piece in pieces:
        found[key(piece)].append(piece)
    return found


def _read(shards: Shards, parts: Sequence[Piece], like: Tensor, dtype: torch.dtype | None) -> Tensor:
    """One tensor of ours, of the pieces it is made of."""
    if parts[0].at is None:
        (piece,) = parts
        tensor = shards.get(piece.stored)
        return tensor if piece.rows is None else tensor[piece.rows]
    kept = dtype or _PRECISIONS[shards.precisions[parts[0].stored]]
    whole = torch.empty(like.shape, dtype=kept)
    for piece in parts:
        assert piece.at is not None
        whole[piece.at] = shards.get(piece.stored)
    return whole


def _expected(pieces: Iterable[Piece], state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that the files should hold."""
    found = dict[str, tuple[int, ...]]()
    for key, parts in _grouped(pieces, lambda piece: piece.stored).items():
        shapes = [tuple(state[piece.name].shape) for piece in parts]
        if parts[0].at is not None:
            found[key] = shapes[0][1:]
        elif parts[0].rows is not None:
            found[key] = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        else:
            found[key] = shapes[0]
    return found


def _compare(shards: Shards, expected: Mapping[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(expected.keys() - shards.shapes.keys()), sorted(shards.shapes.keys() - expected.keys())
    if missing or extra:
        raise ValueError(
            f"{shards.path}: does not fit its config; missing {_some(missing)}, not expected {_some(extra)}"
        )
    for name, shape in expected.items():
        if shards.shapes[name] != shape:
            raise ValueError(f"{shards.path}: {name} has shape {shards.shapes[name]}, the config says {shape}")


def _some(names: list[str]) -> str:
    if len(names) > _SHOWN:
        return f"{len(names)}, {names[:_SHOWN]} among them"
    return str(names or "none")


def _check_precision(shards: Shards, pieces: Iterable[Piece], dtype: torch.dtype | None) -> None:
    """Refuse quantised weights, and weights kept in several precisions, which cannot meet in one product."""
    first: tuple[str, torch.dtype] | None = None
    for piece in pieces:
        name, found = piece.stored, shards.check(piece.stored)
        first = first or (name, found)
        if dtype is None and found != first[1]:
            raise ValueError(
                f"{shards.path}: {name} is {found}, {first[0]} {first[1]}; convert them to one precision (dtype=)"
            )
