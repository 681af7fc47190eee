"""A model as a Hugging Face folder: config.json, model.safetensors, tokenizer.json. The process is in the config.

``transformers.AutoModelForMaskedLM`` reads the same folder once ``redraft.models.hf`` is imported. Files are written
beside and renamed, config.json last: a folder with a config.json is whole. Nothing in a folder is ever executed.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from redraft.data import Tokenizer
from redraft.files import write, write_text
from redraft.models.transformer import Transformer, TransformerConfig
from redraft.processes import Gaussian
from redraft.schedules import gamma_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MODEL_TYPE, ARCHITECTURE = "redraft", "RedraftForMaskedLM"
PREFIX = "model."
"""The wrapper for ``transformers`` holds the transformer under this name, so stored keys begin with it."""
_PRECISIONS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")


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
    folder: str | Path, tensors: Mapping[str, Tensor], config: str, tokenizer: Tokenizer | None = None
) -> None:
    """Write the files of any model's folder, config.json last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)  # while its parts are exchanged, the folder is no model
    if tokenizer is not None:
        tokenizer.save(folder)
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write(folder / WEIGHTS, lambda path: save_file(kept, path, metadata={"format": "pt"}))
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


def load(folder: str | Path, device: str | torch.device | None = None) -> tuple[Transformer, dict[str, Any]]:
    """The transformer stored in ``folder``, in evaluation mode, and what was stored "about" it.

    Errors: ``ValueError`` for a folder without config, a config of another model type, a weight that is missing, not
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
    put_weights(model, folder, lambda name: PREFIX + name)
    return model.to(device).eval(), stored.get("about", {})


def put_weights(model: torch.nn.Module, folder: Path, stored_as: Callable[[str], str]) -> None:
    """Give ``model`` the tensors in ``folder``, all of them and no other, each as it is stored.

    ``stored_as`` turns a name in ``state_dict()`` into the file's. Errors: ``ValueError`` naming what does not fit.
    """
    tensors = _read_weights(folder / WEIGHTS)
    expected = {stored_as(name): (name, value.shape) for name, value in model.state_dict().items()}
    _compare(folder / WEIGHTS, {key: shape for key, (_, shape) in expected.items()}, tensors)
    path, names = folder / WEIGHTS, [stored_as(name) for name, _ in model.named_parameters()]
    _check_precision(path, {name: tensors[name] for name in names})
    model.load_state_dict({expected[key][0]: value for key, value in tensors.items()}, strict=True, assign=True)


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
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged, {error}") from None
    if not isinstance(stored, dict):
        raise ValueError(f"{path}: damaged, it holds no JSON object")
    return stored


def is_ours(stored: Mapping[str, Any]) -> bool:
    """Whether config.json is one that ``save`` wrote, and not a released checkpoint's."""
    return stored.get("model_type") == MODEL_TYPE


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(missing(path))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, {error}; copy the folder again") from None


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


def _compare(path: Path, expected: Mapping[str, torch.Size], found: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise ValueError(
            f"{path}: does not fit its config; missing {missing or 'none'}, not expected {extra or 'none'}"
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ValueError(f"{path}: {name} has shape {tuple(found[name].shape)}, the config says {tuple(shape)}")


def _check_precision(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse quantised weights, and weights of several precisions, which cannot meet in one product."""
    first: tuple[str, torch.dtype] | None = None
    for name, value in weights.items():
        if value.dtype not in _PRECISIONS:
            raise ValueError(f"{path}: {name} is {value.dtype}; convert it to a floating precision of 16 bits or more")
        first = first or (name, value.dtype)
        if value.dtype != first[1]:
            raise ValueError(f"{path}: {name} is {value.dtype}, {first[0]} {first[1]}; convert them to one precision")
