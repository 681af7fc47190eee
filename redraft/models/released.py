"""Released checkpoints, read and written in their own layouts: which family a folder is of, and its parts together."""

import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from redraft.data import Tokenizer, build_tokenizer, pretrained, slow
from redraft.errors import unknown
from redraft.models import folder as folders
from redraft.models import quantised
from redraft.models.families import FAMILIES
from redraft.models.families.base import Family, Fields, Released
from redraft.models.placement import DeviceMap, fetch
from redraft.models.weights import stored
from redraft.processes import Categorical
from redraft.randomness import Device

_LARGEST = 1 << 26
_TOKENIZERS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
CARRIED = ("generation_config.json", *_TOKENIZERS)
"""The files beside a model's weights and config that go where it goes; of others nobody knows what they hold."""


def load(
    folder: str | Path,
    device: Device = None,
    *,
    tokenizer: str | Tokenizer | None = None,
    family: str | None = None,
    repository: str = "",
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap | None = None,
    quantize: str | None = None,
) -> tuple[Released, Tokenizer, dict[str, Any]]:
    """The denoiser stored in ``folder``, in evaluation mode, its tokenizer, and what there is to say "about" it.

    ``family`` decides where config.json does not; left out, it is read off config.json, or failing that off the name
    of the ``repository`` the folder came from. ``tokenizer``: see ``tokenizer_of``. Weights go straight to their
    devices, as ``placement.fetch`` does it. Errors: ``ValueError`` for an unknown family, a field that is
    missing or unsupported, a key that is missing, not expected or of another shape, weights stored as a pickle, a
    tokenizer that does not fit.
    """
    folder = Path(folder)
    path = folder / folders.CONFIG
    values = folders.read_config(folder)
    found = family_of(path, values, family, repository)
    try:
        known = found.reads(Fields(path, values, repository))
        with torch.device("meta"):
            denoiser = known.build()
    except ValueError as error:
        raise ValueError(f"{error} (read as family {found.name!r})") from None
    words = tokenizer_of(folder, found, denoiser.process, tokenizer)
    fetch(denoiser, folder, found.pieces(denoiser), device, dtype=dtype, device_map=device_map, quantize=quantize)
    denoiser.eos_id = known.ids.get("eos_id", words.eos_id)
    denoiser.pad_id = known.ids.get("pad_id", words.pad_id)
    config = path.read_text(encoding="utf-8") if known.config is None else known.config
    about: dict[str, Any] = {"context": known.context, "family": found.name, "config": config}
    about["decoding"] = dict(found.decoding)
    about |= {"files": beside(folder), "tokens": fingerprint(words) if tokenizer is None else None}
    if repository:
        about["base_model"] = repository
    return denoiser.eval(), words, about


def save(folder: str | Path, denoiser: Released, tokenizer: Tokenizer, about: Mapping[str, Any]) -> None:
    """Store it in the layout it was loaded from: the same keys, and config.json and the files beside it as they were.

    The tokenizer's files are among those, unless it is another tokenizer now.
    """
    tensors = tensors_of(denoiser, FAMILIES[about["family"]])
    folders.write_model(folder, tensors, about["config"], *words_and_files(tokenizer, about))


def tensors_of(denoiser: Released, family: Family) -> dict[str, torch.Tensor]:
    """What is stored of a denoiser in a family's layout. Errors: ``ValueError`` where its numbers are not all there."""
    weights = denoiser.state_dict()
    if quantised.bits(denoiser):
        raise ValueError("a quantised model has lost what would be stored; load it without quantize= and save that")
    if any(tensor.is_meta for tensor in weights.values()):
        raise ValueError("part of the model was left on the CPU by device_map=; load it without and save that")
    return stored(weights, family.pieces(denoiser))


def words_and_files(tokenizer: Tokenizer, about: Mapping[str, Any]) -> tuple[Tokenizer | None, dict[str, str]]:
    """What to store beside the weights: the tokenizer, or None where the files that came with the model hold it.

    Servers encode what a chat template wrote by those files: to them a special token in a text is special, and not so
    to what we write ourselves.
    """
    files: dict[str, str] = about.get("files", {})
    if any(name in files for name in _TOKENIZERS) and about.get("tokens") == fingerprint(tokenizer):
        return None, files
    return tokenizer, {name: text for name, text in files.items() if name not in _TOKENIZERS}


def fingerprint(tokenizer: Tokenizer) -> int:
    """A number that another tokenizer, or this one changed, has hardly ever."""
    return zlib.crc32(tokenizer.backend.to_str().encode())


def beside(folder: Path) -> dict[str, str]:
    """Name and text of the files beside a model's weights and config that ``CARRIED`` names, in that order.

    None larger than ``_LARGEST`` bytes, and none by a link out of the folder, but into the blobs of a Hub's cache.
    """
    found = dict[str, str]()
    for name in CARRIED:
        path = folder / name
        if path.is_file() and _within(path) and path.stat().st_size <= _LARGEST:
            with suppress(UnicodeDecodeError):  # it is no text, whatever it is called
                found[name] = path.read_bytes().decode("utf-8")
    return found


def _within(path: Path) -> bool:
    """Whether a file lies in its folder, or where the Hub's cache has the files of REPOSITORY/snapshots/COMMIT."""
    folder, at = path.parent.resolve(), path.resolve().parent
    return at == folder or (folder.parent.name == "snapshots" and at == folder.parent.parent / "blobs")


def family_of(path: Path, config: Mapping[str, Any], family: str | None = None, repository: str = "") -> Family:
    """The family asked for, or the one config.json or the repository's name tells. Errors: ``ValueError``."""
    if family is not None:
        if family not in FAMILIES:
            raise unknown("family", family, FAMILIES)
        return FAMILIES[family]
    found = [one for one in FAMILIES.values() if one.recognises(config)]
    kind = str(config.get("model_type")).lower()
    hidden = [one for one in FAMILIES.values() if "model_type" not in config or kind in one.under]
    if not found:
        words = re.split(r"\W|_", repository.lower().rsplit("/", 1)[-1])
        found = [one for one in hidden if one.name in words]
    if len(found) == 1:
        return found[0]
    known = ", ".join(FAMILIES)
    if found:
        raise ValueError(f"{path}: could be {' or '.join(one.name for one in found)}; pass family=, one of {known}")
    if hidden and "model_type" in config:
        raise ValueError(
            f"{path}: model_type {kind!r} alone does not tell what it is; pass family= if it is "
            f"{' or '.join(one.name for one in hidden)}"
        )
    raise ValueError(
        f"{path}: model_type {config.get('model_type')!r} is not supported; known are {folders.MODEL_TYPE!r} and the "
        f"released families {known}; pass family= if it is one of them"
    )


def tokenizer_of(folder: Path, family: Family, process: Categorical, given: str | Tokenizer | None = None) -> Tokenizer:
    """The tokenizer given (an object, a folder or a Hub id), or the folder's own, or the one the family trained with.

    It may know fewer ids than the model: text never has the others, and where a model writes one it decodes to nothing
    (or, right after the last, to [MASK]). Errors: ``ValueError`` for one that cannot be had, that knows more, or whose
    mask lies elsewhere inside the vocabulary.
    """
    # where the mask lies among other tokens, the model says which it is
    inside = process.mask_id if process.mask_id is not None and process.mask_id < process.K else None
    if isinstance(given, Tokenizer):
        found = given
    elif given is not None:
        found = build_tokenizer(given) if inside is None else pretrained(given, mask_id=inside)
    elif any((folder / name).is_file() for name in ("tokenizer.json", slow.VOCAB)):
        found = Tokenizer.load(folder, inside)
    elif family.tokenizer is None:
        raise ValueError(f"{folder}: no tokenizer in it; pass tokenizer=, a folder or id")
    else:
        try:
            found = pretrained(family.tokenizer, family.pad_token, inside)
        except ValueError as error:
            raise ValueError(f"{folder}: no tokenizer in it, and {error}; or pass tokenizer=, a folder or id") from None
    if found.K > process.K:
        raise ValueError(
            f"{folder}: the tokenizer has {found.K} tokens, the model {process.K}; pass tokenizer=, the one it was "
            "trained with (where [MASK] is a token of its vocabulary, config.json must say so: mask_token_id)"
        )
    if inside is not None and found.mask_id != inside:
        raise ValueError(f"{folder}: the tokenizer's mask is id {found.mask_id}, the model's {process.mask_id}")
    return found
