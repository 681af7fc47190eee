"""A codebook out of a trained model: the token embedding in a folder of safetensors, ours or anyone's.

Only safetensors are read, one tensor of them; nothing in a folder is run.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from redraft.data import Tokenizer
from redraft.models.folder import CONFIG, WEIGHTS, is_ours, missing, read_config

INDEX = WEIGHTS + ".index.json"
NAMES = (
    *("codebook", "embed.weight"),  # ours: a Gaussian model's own vectors before its input's
    "vocab_embed.embedding",  # MDLM, SEDD and their kin
    *("embed_tokens.weight", "tok_embeddings.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight"),
    "shared.weight",
)
"""What the token embedding is called, the first that is found wins; prefixes such as ``model.`` may precede it."""


def token_embedding(folder: str | Path, tokenizer: Tokenizer) -> Tensor:
    """The token embedding of the model in ``folder``, one row per clean token, (K, D) float32, of mean row norm 1.

    The row of a [MASK] after the last token is left out. Which tokens the rows belong to a file does not say: their
    number must be the tokenizer's. The codebook of a model of ours that normalises its rows is given as that reads it.

    Errors: ``ValueError`` for a folder without safetensors, a damaged file, no tensor of a known name, a number of
    rows that is not the tokenizer's, rows that are no numbers or all zero.
    """
    folder = Path(folder)
    files = _files(folder)
    name = _choose(folder, list(files))
    table = _read(folder / files[name], name)
    K = tokenizer.K
    if table.ndim != 2 or len(table) not in (K, max(K, tokenizer.mask_id + 1)):
        raise ValueError(
            f"process.codebook={str(folder)!r}: {name} has shape {tuple(table.shape)}, the tokenizer {K} tokens; "
            "one row per token is needed: set data.tokenizer to the one that model was trained with"
        )
    table = table[:K].float()
    if name.split(".")[-1] == "codebook" and _normalised(folder):
        table = F.normalize(table, dim=-1)
    size = table.norm(dim=-1).mean()
    if not (size.isfinite() and size > 0):
        raise ValueError(f"process.codebook={str(folder)!r}: rows of {name} have mean norm {size.item()}; take another")
    return (table / size).contiguous()


def _normalised(folder: Path) -> bool:
    """Whether the model in ``folder`` is one of ours that divides its codebook's rows by their norms."""
    if not (folder / CONFIG).is_file():
        return False
    stored = read_config(folder)
    return is_ours(stored) and bool(stored["transformer"]["process"].get("normalise"))


def _files(folder: Path) -> dict[str, str]:
    """The file that holds each tensor, by the tensor's name."""
    index = folder / INDEX
    if not index.is_file():
        if not folder.is_dir():
            raise ValueError(f"process.codebook={str(folder)!r}: no such folder; use random, bits or a model's folder")
        if not (folder / WEIGHTS).is_file():
            raise ValueError(missing(folder / WEIGHTS))
        return dict.fromkeys(_names(folder / WEIGHTS), WEIGHTS)
    try:
        files = {str(name): str(file) for name, file in json.loads(index.read_text("utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: damaged ({type(error).__name__} {error}); copy the folder again") from None
    for file in files.values():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"{index}: names {file!r}, which is no safetensors file of this folder")
    return files


def _choose(folder: Path, found: Sequence[str]) -> str:
    for known in NAMES:
        if named := sorted(name for name in found if f".{name}".endswith(f".{known}")):
            return named[0]
    raise ValueError(
        f"process.codebook={str(folder)!r}: none of its {len(found)} tensors is called like a token embedding: "
        f"{', '.join(NAMES)}"
    )


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, {error}; copy the folder again") from None


def _read(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            table = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged, {error}; copy the folder again") from None
    if table.dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise ValueError(f"{path}: {name} is {table.dtype}; convert it to a floating precision of 16 bits or more")
    return table
