"""A model as a Hugging Face folder: config.json, model.safetensors, tokenizer.json. The process is in the config.

``transformers.AutoModelForMaskedLM`` reads the same folder once ``redraft.models.hf`` is imported. Files are written
beside and renamed, config.json last: a folder with a config.json is whole. Nothing in a folder is ever executed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from redraft.data import Tokenizer
from redraft.files import write, write_text
from redraft.models.transformer import Transformer, TransformerConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)  # while its parts are exchanged, the folder is no model
    if tokenizer is not None:
        tokenizer.save(folder)
    tensors = {PREFIX + name: value.detach().cpu().contiguous() for name, value in weights.items()}
    write(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    text = json.dumps(to_json(config, tensors, about or {}), indent=2) + "\n"
    write_text(folder / CONFIG, text)


def to_json(config: TransformerConfig, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Any]:
    """config.json: the keys ``transformers`` expects, the transformer with its process, and what the caller adds."""
    floating = next(value.dtype for value in tensors.values() if value.is_floating_point())
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


def load(folder: str | Path, device: str | torch.device | None = None) -> tuple[Transformer, dict[str, Any]]:
    """The transformer stored in ``folder``, in evaluation mode, and what was stored "about" it.

    Errors: ``ValueError`` for a folder without config, a config of another model type, a weight that is missing, not
    expected, of another shape, or a damaged file; each names what is wrong. Nothing is loaded in part.
    """
    folder = Path(folder)
    stored = read_config(folder)
    try:
        config = TransformerConfig(**stored["transformer"])
        model = Transformer.empty(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG}: damaged, {type(error).__name__} {error}") from None
    tensors = _read_weights(folder / WEIGHTS)
    _compare(folder / WEIGHTS, {name: value.shape for name, value in model.state_dict().items()}, tensors)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.to(device).eval(), stored.get("about", {})


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of one of our folders. Errors: ``ValueError`` saying why it is none."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder}: no {CONFIG} in it; pass the folder of a finished run or of a saved model")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        model_type = stored.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: damaged, {error}") from None
    if model_type != MODEL_TYPE:
        raise ValueError(f"{path}: model_type {model_type!r} is not supported; known: {MODEL_TYPE!r}")
    return stored


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; copy the folder again")
    try:
        with safe_open(path, framework="pt") as file:
            return {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, {error}; copy the folder again") from None


def _compare(path: Path, expected: Mapping[str, torch.Size], found: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise ValueError(
            f"{path}: does not fit its config; missing {missing or 'none'}, not expected {extra or 'none'}"
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ValueError(f"{path}: {name} has shape {tuple(found[name].shape)}, the config says {tuple(shape)}")
