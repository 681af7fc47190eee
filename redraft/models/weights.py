"""Weights in safetensors files, one or several: checked whole before any is read, then read one by one.

What a file calls a tensor, and how it cuts it, differs from family to family. ``Piece`` says it for one tensor, and a
list of them is the whole correspondence, both ways. Nothing but safetensors is ever opened. A tensor that stays as it
is stored, and on the CPU, is the file itself, mapped; any other is read some rows at a time, so that beside what is
kept there are never more than ``READ`` bytes of what was stored.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
READ = 4 << 20
"""Bytes read at a time where a tensor is not mapped; a single row may be more."""
_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
PRECISIONS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_OTHERS = {
    **{"I64": torch.int64, "I32": torch.int32, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
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

    What an index says of the whole size is not looked at: released ones are wrong about it, and every file has been
    found whole. Errors: ``ValueError`` for no file, pickles only, a file that is damaged, cut off or not the index's, a
    tensor that stands in two of them.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / (INDEX if (folder / INDEX).is_file() else WEIGHTS)
        self.shapes = dict[str, tuple[int, ...]]()
        self.precisions = dict[str, str]()
        self._open = dict[str, Any]()
        self._begins = dict[str, tuple[Path, int]]()
        self._read = torch.empty(READ, dtype=torch.uint8)
        index = _read_index(self.path) if self.path.name == INDEX else None
        files = {folder / name for name in index.values()} if index is not None else {self.path}
        held = dict[str, str]()
        for path in sorted(files):
            if not path.is_file():
                raise ValueError(missing(path))
            file, begins = _opened(path), _begins(path)
            for key in file.keys():  # noqa: SIM118
                if key in held:
                    raise ValueError(
                        f"{path}: {key} is in {held[key]} too, and one of them is wrong; copy the folder again"
                    )
                header = file.get_slice(key)
                self.shapes[key], self.precisions[key] = tuple(header.get_shape()), str(header.get_dtype())
                self._open[key], held[key], self._begins[key] = file, path.name, (path, begins[key])
        if index is not None and index != held:
            wrong = sorted(key for key in index.keys() | held.keys() if index.get(key) != held.get(key))
            raise ValueError(
                f"{self.path}: {wrong[0]} is said to be in {index.get(wrong[0])}, and is in {held.get(wrong[0])} "
                f"({len(wrong)} are misplaced); copy the folder again"
            )

    def check(self, key: str) -> torch.dtype:
        """The precision of a weight. Errors: ``ValueError`` for a quantised one, or for no floating number."""
        found = self.precisions[key]
        if found not in PRECISIONS:
            said = _OTHERS.get(found, found)
            raise ValueError(f"{self.path}: {key} is {said}; convert it to a floating precision of 16 bits or more")
        return PRECISIONS[found]

    def dtype(self, key: str) -> torch.dtype:
        """The precision of any tensor. Errors: ``ValueError`` for one that torch has not."""
        found = (PRECISIONS | _OTHERS).get(self.precisions[key])
        if found is None:
            raise ValueError(f"{self.path}: {key} is {self.precisions[key]}; convert it to a precision torch knows")
        return found

    def get(self, key: str) -> Tensor:
        """A tensor as it is stored: a view of the file where the platform can map it."""
        return self._open[key].get_tensor(key)

    def rows(self, key: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor, read, until the next are: nothing of the file is left in memory, as of a mapped one.

        They stand where those before stood, so that memory is not full of holes in the end.
        """
        path, begin = self._begins[key]
        row, dtype = self.shapes[key][1:], self.dtype(key)
        size = (stop - start) * math.prod(row) * dtype.itemsize
        if size > len(self._read):
            self._read = torch.empty(size, dtype=torch.uint8)
        found = self._read[:size].view(dtype).view(stop - start, *row)
        buffer = self._read[:size].numpy().data
        with path.open("rb", buffering=0) as file:
            file.seek(begin + start * math.prod(row) * dtype.itemsize)
            while buffer and (read := file.readinto(buffer)):
                buffer = buffer[read:]
        if buffer:
            raise ValueError(f"{path}: was cut off while it was read; copy the folder again")
        return found


def fits(
    model: nn.Module, shards: Shards, pieces: Sequence[Piece], dtype: torch.dtype | None = None
) -> dict[str, torch.dtype]:
    """The precision in which each tensor of ``model`` would be kept: ``dtype`` for weights; buffers as stored.

    Errors: ``ValueError`` naming what is missing, not expected, of another shape, quantised, or of several precisions.
    """
    state = model.state_dict()
    weights = {name for name, _ in model.named_parameters()}
    _compare(shards, _expected(pieces, state))
    _check_precision(shards, [piece for piece in pieces if piece.name in weights], dtype)
    kept = {piece.name: shards.dtype(piece.stored) for piece in pieces}
    left_out = sorted(state.keys() - kept.keys())
    assert not left_out, f"pieces name all but {left_out}"
    return {name: dtype if dtype is not None and name in weights else found for name, found in kept.items()}


def fill(
    model: nn.Module,
    source: Path | Shards,
    pieces: Sequence[Piece] | None = None,
    *,
    dtype: torch.dtype | None = None,
    place: Callable[[str], Device] = lambda name: None,
    become: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> None:
    """Give ``model`` (built on the meta device) the tensors of a folder, all of them and no other.

    Each is read, cast to ``dtype`` (as stored if None; buffers always are) and put on the device ``place(name)`` before
    the next, where it becomes what ``become[name]`` makes of it, matrix by matrix; what is computed and not stored goes
    along. At no time are there two copies of any.

    Errors: ``ValueError`` naming what does not fit; nothing is read then.
    """
    pieces = renamed(model) if pieces is None else pieces
    shards = Shards(source) if isinstance(source, Path) else source
    kept, state = fits(model, shards, pieces, dtype), model.state_dict()
    for name, parts in _grouped(pieces, lambda piece: piece.name).items():
        like, where = state[name], torch.device(place(name) or "cpu")
        if become is not None and name in become:
            made = [become[name](one) for one in _matrices(shards, parts, like, kept[name], where)]
            put(model, name, made if like.ndim > 2 else made[0])
        else:
            put(model, name, _read(shards, parts, like, kept[name], where))
    for name, buffer in list(model.named_buffers()):
        if name not in kept and not buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, buffer.to(place(name)))


def put(model: nn.Module, name: str, tensor: Tensor | Sequence[Tensor]) -> None:
    """Make ``tensor`` the parameter or buffer called ``name``; of several, which stood stacked, the list of them.

    What is no plain tensor, as quantised weights are, learns nothing.
    """
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if not isinstance(tensor, Tensor):
        delattr(module, leaf)
        module.register_module(leaf, nn.ParameterList(nn.Parameter(one, requires_grad=False) for one in tensor))
    elif (old := dict(module.named_parameters(recurse=False)).get(leaf)) is not None:
        learns = old.requires_grad and type(tensor) is Tensor
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=learns))
    else:
        module.register_buffer(leaf, tensor)


def stored(state: Mapping[str, Tensor], pieces: Iterable[Piece]) -> dict[str, Tensor]:
    """The tensors as the files have them: the inverse of what ``fill`` does."""
    found, written = dict[str, Tensor](), set[str]()
    for key, parts in _grouped(pieces, lambda piece: piece.stored).items():
        tensors = [state[piece.name] if piece.at is None else state[piece.name][piece.at] for piece in parts]
        if parts[0].rows is None:
            (tensor,) = tensors
            # files share no memory, so what stands in them twice is two tensors
            found[key] = tensor.clone() if parts[0].at is None and parts[0].name in written else tensor
            written.add(parts[0].name)
            continue
        whole = tensors[0].new_empty(sum(map(len, tensors)), *tensors[0].shape[1:])
        for piece, tensor in zip(parts, tensors, strict=True):
            whole[piece.rows] = tensor
        found[key] = whole
    return found


def write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors files: one, or of large models several and their index. Others of an earlier model go."""
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
    for path in folder.iterdir():
        if _SHARD.fullmatch(path.name) and path.name not in plan.filename_to_tensors:
            path.unlink()


def missing(path: Path) -> str:
    """Why there are no weights to read, and what to do about it."""
    pickled = sorted(one.name for one in path.parent.iterdir() if one.suffix in PICKLED)
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
        found: Any = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)["weight_map"]
        names = {str(key): str(name) for key, name in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged, {type(error).__name__} {error}; copy the folder again") from None
    for name in names.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{path}: names the file {name!r}; only .safetensors files beside it are read")
    return names


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Errors: ``ValueError`` for a key that is in it twice."""
    counted = Counter(key for key, _ in pairs)
    if twice := [key for key, count in counted.items() if count > 1]:
        raise ValueError(f"{twice[0]} is in it twice")
    return dict(pairs)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt").__enter__()
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, {error}; copy the folder again") from None


def _begins(path: Path) -> dict[str, int]:
    """Where in a file that ``_opened`` found in order the numbers of each tensor begin."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(file.read(size), object_pairs_hook=_once)
        except ValueError as error:
            raise ValueError(f"{path}: damaged, {error}; copy the folder again") from None
    return {key: 8 + size + one["data_offsets"][0] for key, one in header.items() if key != "__metadata__"}


def _grouped(pieces: Iterable[Piece], key: Callable[[Piece], str]) -> dict[str, list[Piece]]:
    found = defaultdict[str, list[Piece]](list)
    for piece in pieces:
        found[key(piece)].append(piece)
    return found


def _read(shards: Shards, parts: Sequence[Piece], like: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One tensor of ours, of the pieces it is made of."""
    first = parts[0]
    whole = first.at is None and not isinstance(first.rows, Tensor)
    if whole and device.type == "cpu" and dtype == shards.dtype(first.stored):
        mapped = shards.get(first.stored)
        return mapped if first.rows is None else mapped[first.rows]
    found = torch.empty(like.shape, dtype=dtype, device=device)
    for piece in parts:
        _copy(shards, piece.stored, piece.rows, found if piece.at is None else found[piece.at])
    return found


def _matrices(
    shards: Shards, parts: Sequence[Piece], like: Tensor, dtype: torch.dtype, device: torch.device
) -> Iterator[Tensor]:
    """A matrix, or those stacked in a tensor one after the other: read, not mapped."""
    apart = {piece.at: piece for piece in parts}
    shape = like.shape[-2:]
    for entry in range(len(like) if like.ndim > 2 else 1):
        found = torch.empty(shape, dtype=dtype, device=device)
        if entry in apart:
            _copy(shards, apart[entry].stored, None, found)
        elif like.ndim > 2:
            _copy(shards, parts[0].stored, slice(entry, entry + 1), found[None])
        else:
            _copy(shards, parts[0].stored, parts[0].rows, found)
        yield found


def _copy(shards: Shards, key: str, rows: slice | Tensor | None, out: Tensor) -> None:
    """Read some rows of a stored tensor (all if None) into ``out``, few at a time."""
    shape = shards.shapes[key]
    if not shape:
        out.copy_(shards.get(key))
        return
    low, high = 0, shape[0]
    if isinstance(rows, slice):
        low, high, _ = rows.indices(high)
    step = max(1, READ // max(1, math.prod(shape[1:]) * shards.dtype(key).itemsize))
    for start in range(low, high, step):
        some = shards.rows(key, start, min(start + step, high))
        if isinstance(rows, Tensor):
            at = ((rows >= start) & (rows < start + len(some))).nonzero()[:, 0]
            out[at.to(out.device)] = some[rows[at] - start].to(out)
        else:
            out[start - low : start - low + len(some)] = some


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
