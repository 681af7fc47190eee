"""A model as a Hugging Face folder: config.json, model.safetensors, tokenizer.json. The process is in the config.

``transformers.AutoModelForMaskedLM`` reads the same folder once ``redraft.models.hf`` is imported. Files are written
beside and renamed, config.json last: a folder with a config.json is whole. Nothing in a folder is ever executed.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft.data import Tokenizer
from redraft.files import read_object, write_text
from redraft.models.transformer import Transformer, TransformerConfig
from redraft.models.weights import fill, renamed, write_weights
from redraft.processes import Gaussian, tensors_of
from redraft.schedules import gamma_tensors

CONFIG = "config.json"
MODEL_TYPE, ARCHITECTURE = "redraft", "RedraftForMaskedLM"
PREFIX = "model."
"""The wrapper for ``transformers`` holds the transformer under this name, so stored keys begin with it."""


def save(
    folder: str | Path,
    config: TransformerConfig,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Store a model. ``weights`` is its ``state_dict()``; ``about`` (JSON values) is kept as it is, under "about"."""
    tensors = {PREFIX + name: value for name, value in weights.items()}
    write_model(folder, tensors, json.dumps(to_json(config, tensors, about or {}), indent=2) + "\n", tokenizer)


def write_model(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    config: str,
    tokenizer: Tokenizer | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write the files of any model's folder, config.json last; ``files`` are more of them, name and text."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)  # while its parts are exchanged, the folder is no model
    if tokenizer is not None:
        tokenizer.save(folder)
    for name, text in (files or {}).items():
        write_text(folder / name, text)
    write_weights(folder, tensors)
    write_text(folder / CONFIG, config)


def to_json(config: TransformerConfig, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Any]:
    """config.json: the keys ``transformers`` expects, the transformer with its process, and what the caller adds."""
    # that of a weight: what a process keeps beside them, such as a fixed codebook, may have another
    floating = tensors[PREFIX + "head.weight"].dtype
    return {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "dtype": str(floating).removeprefix("torch."),
        "mask_token_id": config.process.get("mask_id"),
        "eos_token_id": config.eos_id,
        "pad_token_id": config.pad_id,
        "transformer": config.to_dict(),
        "about": dict(about),
    }


def load(
    folder: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> tuple[Transformer, dict[str, Any]]:
    """The transformer stored in ``folder``, in evaluation mode, and what was stored "about" it.

    ``dtype``: of its weights, as stored unless given. Errors: ``ValueError`` for a process that keeps numbers among
    them, and a ``dtype``, or for a folder without config, a config of another model type, a weight that is missing, not
    expected, of another shape, or a damaged file; each names what is wrong. Nothing is loaded in part.
    """
    folder = Path(folder)
    stored = read_config(folder)
    if not is_ours(stored):
        raise ValueError(
            f"{folder / CONFIG}: model_type {stored.get('model_type')!r} is not supported; known: {MODEL_TYPE!r}"
        )
    try:
        config = TransformerConfig(**stored["transformer"])
        model = Transformer.empty(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG}: damaged, {type(error).__name__} {error}") from None
    if dtype is not None and (kept := [one.name for one in tensors_of(config.process)]):
        raise ValueError(
            f"dtype={dtype}: {kept[0]} of the {config.process['name']} process must be exact; leave it out"
        )
    fill(model, folder, renamed(model, lambda name: PREFIX + name), dtype=dtype, place=lambda _: device)
    return model.eval(), stored.get("about", {})


def start_from(model: Transformer, path: str) -> None:
    """Give ``model`` the weights of the one in the folder ``path``, its process's tensors among them.

    Errors: ``ValueError`` naming what differs in shape, or a fact of a Gaussian process that decides what weights mean.
    """
    stored, about = load(path)
    weights, own = stored.state_dict(), model.state_dict()
    # the mask rates a block model is trained at are a choice, not a weight: kept by those that have one
    if "noise_range" in own:
        weights.setdefault("noise_range", own["noise_range"])
    else:
        weights.pop("noise_range", None)
    there, here = ({name: tuple(one.shape) for name, one in state.items()} for state in (weights, own))
    if there != here:
        names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        theirs, ours = stored.config.to_dict(), model.config.to_dict()
        facts = [f"{name} {theirs[name]} there, {ours[name]} here" for name in ours if theirs[name] != ours[name]]
        raise ValueError(
            f"model.init={path}: {names[0]} has shape {there.get(names[0])} there and {here.get(names[0])} here "
            f"({len(names)} weights differ: {'; '.join(facts)})"
        )
    if isinstance(stored.process, Gaussian) and isinstance(model.process, Gaussian):
        _same_vectors(path, stored.process, model.process, about)
    model.load_state_dict(weights)


def _same_vectors(path: str, theirs: Gaussian, ours: Gaussian, about: Mapping[str, Any]) -> None:
    """Refuse facts that do not go with the codebook and the schedule of the model in ``path``."""
    pairs = {name: (getattr(theirs, name), getattr(ours, name)) for name in ("normalise", "power")}
    if gamma_tensors(theirs.schedule.to_dict()):  # what it has learned counts from its ends
        ends = "gamma_min", "gamma_max"
        pairs |= {end: (getattr(theirs.schedule, end), getattr(ours.schedule, end)) for end in ends}
    for name, (there, here) in pairs.items():
        # random unit rows of two seeds have the same power up to rounding
        if math.isclose(there, here, rel_tol=1e-5):
            continue
        fix = f"process.{name}={_short(there)}"
        if name == "power":  # measured on the codebook that training started with
            codebook = about.get("recipe", {}).get("process", {}).get("codebook")
            fix = "process.codebook to what that model had" if codebook is None else f"process.codebook={codebook!r}"
        raise ValueError(
            f"model.init={path}: {name} of its process is {_short(there)} there and {_short(here)} here, "
            f"and its weights were trained by that: set {fix}"
        )


def _short(value: float) -> str:
    """As the command line takes it."""
    return json.dumps(value) if isinstance(value, bool) else f"{value:.6g}"


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says. Errors: ``ValueError`` for none, or a damaged one."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder}: no {CONFIG} in it; pass the folder of a finished run or of a saved model")
    return read_object(path)


def is_ours(stored: Mapping[str, Any]) -> bool:
    """Whether config.json is one that ``save`` wrote, and not a released checkpoint's."""
    return stored.get("model_type") == MODEL_TYPE
