"""Released checkpoints, read and written in their own layouts: which family a folder is of, and its parts together."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from redraft.data import Tokenizer, build_tokenizer, pretrained
from redraft.errors import unknown
from redraft.models import folder as folders
from redraft.models.families import FAMILIES
from redraft.models.families.base import Family, Fields, Released
from redraft.models.weights import fill, stored
from redraft.processes import Categorical
from redraft.randomness import Device


def load(
    folder: str | Path,
    device: Device = None,
    *,
    tokenizer: str | Tokenizer | None = None,
    family: str | None = None,
    repository: str = "",
    dtype: torch.dtype | None = None,
) -> tuple[Released, Tokenizer, dict[str, Any]]:
    """The denoiser stored in ``folder``, in evaluation mode, its tokenizer, and what there is to say "about" it.

    ``family`` decides where config.json does not; left out, it is read off config.json, or failing that off the name
    of the ``repository`` the folder came from. ``tokenizer``: see ``tokenizer_of``. Weights go straight to the device,
    in the precision they are stored in or ``dtype``. Errors: ``ValueError`` for an unknown family, a field that is
    missing or unsupported, a key that is missing, not expected or of another shape, weights stored as a pickle, a
    tokenizer that does not fit.
    """
    folder = Path(folder)
    path = folder / folders.CONFIG
    values = folders.read_config(folder)
    found = family_of(path, values, family, repository)
    try:
        known = found.reads(Fields(path, values))
        with torch.device("meta"):
            denoiser = known.build()
    except ValueError as error:
        raise ValueError(f"{error} (read as family {found.name!r})") from None
    words = tokenizer_of(folder, found, denoiser.process, tokenizer)
    fill(denoiser, folder, found.pieces(denoiser), dtype=dtype, place=lambda _: device)
    denoiser.eos_id = known.ids.get("eos_id", words.eos_id)
    denoiser.pad_id = known.ids.get("pad_id", words.pad_id)
    about = {"context": known.context, "family": found.name, "config": path.read_text(encoding="utf-8")}
    return denoiser.eval(), words, about


def save(folder: str | Path, denoiser: Released, tokenizer: Tokenizer, about: Mapping[str, Any]) -> None:
    """Store it in the layout it was loaded from: the same keys, and config.json as it was."""
    pieces = FAMILIES[about["family"]].pieces(denoiser)
    folders.write_model(folder, stored(denoiser.state_dict(), pieces), about["config"], tokenizer)


def family_of(path: Path, config: Mapping[str, Any], family: str | None = None, repository: str = "") -> Family:
    """The family asked for, or the one config.json or the repository's name tells. Errors: ``ValueError``."""
    if family is not None:
        if family not in FAMILIES:
            raise unknown("family", family, FAMILIES)
        return FAMILIES[family]
    found = [one for one in FAMILIES.values() if one.recognises(config)]
    if not found and "model_type" not in config:
        words = re.split(r"\W|_", repository.lower().rsplit("/", 1)[-1])
        found = [one for one in FAMILIES.values() if one.name in words]
    if len(found) == 1:
        return found[0]
    known = ", ".join(FAMILIES)
    if found:
        raise ValueError(f"{path}: could be {' or '.join(one.name for one in found)}; pass family=, one of {known}")
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
    elif (folder / "tokenizer.json").is_file():
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
