"""Released research checkpoints: MDLM, BD3-LM, UDLM, Duo, SEDD, RADD and GIDD, read and written in their own layouts.

A family is a row of ``FAMILIES``: how its config.json is known, what it means, how its files name the tensors, and
which tokenizer its models were trained with. All of them are one network, ``redraft.models.dit``. Keys are matched
strictly, only safetensors are read, and no code in a folder is ever run. Which fields and keys a layout has was read
off the code that writes it: github.com/kuleshov-group/{mdlm,bd3lms,discrete-diffusion-guidance}, s-sahoo/duo,
louaaron/Score-Entropy-Discrete-Diffusion, ML-GSAI/RADD and dvruette/gidd.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from redraft import processes
from redraft.data import Tokenizer, build_tokenizer, pretrained
from redraft.errors import unknown
from redraft.models import folder as folders
from redraft.models.dit import DenoiserConfig, DiTConfig, DiTDenoiser
from redraft.processes import Categorical
from redraft.randomness import Device

T = TypeVar("T", bool, int, float, str)
_BACKBONE = "backbone."
"""What the denoiser calls its network. Families whose files hold the bare network leave it out."""


@dataclass(frozen=True)
class Fields:
    """config.json with its path: ``fields("model.n_heads", int)`` is that field, checked; ``ValueError`` names it."""

    path: Path
    values: Mapping[str, Any]

    def __call__(self, name: str, kind: type[T], otherwise: T | None = None) -> T:
        value: Any = self.values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            if otherwise is None:
                raise ValueError(f"{self.path}: no field {name!r}, which this family's checkpoints have")
            return otherwise
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return kind(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{self.path}: field {name!r} is {value!r}, expected {kind.__name__}")
        if isinstance(value, int) and kind is int and value < 1:
            raise ValueError(f"{self.path}: field {name!r} is {value!r}, expected at least 1")
        return value

    def only(self, name: str, known: str) -> None:
        """Refuse what released checkpoints do not do."""
        if (value := self(name, str)) != known:
            raise ValueError(f"{self.path}: field {name!r} is {value!r}; released checkpoints have {known!r}")


@dataclass(frozen=True)
class Family:
    """``recognises`` its config.json, ``reads`` it; files name tensors with ``backbone.`` or without.

    ``tokenizer`` is the Hub id of the one its models were trained with, ``pad_token`` what was added to it.
    """

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    reads: Callable[[Fields], tuple[DenoiserConfig, int]]
    wrapped: bool
    tokenizer: str = "gpt2"
    pad_token: str | None = None

    def stored_as(self, name: str) -> str:
        """The name in the family's files of a tensor of the denoiser."""
        return name if self.wrapped else name.removeprefix(_BACKBONE)


# ---------------------------------------------------------------------------------------------------- one per family


def _mdlm(fields: Fields) -> tuple[DenoiserConfig, int]:
    """Masked noise, SUBS; told the time or, as released, not (Sahoo et al. 2406.07524)."""
    clock = "sigma" if fields("time_conditioning", bool) else "nothing"
    return DenoiserConfig(_network(fields), _masked(fields), clock), fields("model_length", int)


def _bd3lm(fields: Fields) -> tuple[DenoiserConfig, int]:
    """MDLM in blocks (Arriola et al. 2503.09573), and what its authors stored beside it: full, and left to right."""
    timed, length = fields("adaln", bool, True), fields("model_length", int)
    clock = "sigma" if timed and fields("time_conditioning", bool) else "nothing"
    network, bounds = _network(fields, timed), fields("var_min", bool, True)
    config = DenoiserConfig(network, _masked(fields), clock, bounds=bounds)
    if fields("causal", bool, False):
        # rows of these models begin with GPT-2's <|endoftext|>, its last token
        return replace(config, attention="causal", start=config.process.K - 1), length
    block = fields("block_size", int)
    if not fields("cross_attn", bool, True) or block == length:
        return config, length
    if length % block:
        raise ValueError(f"{fields.path}: block_size {block} does not divide model_length {length}")
    return replace(config, attention="block", block=block), length


def _udlm(fields: Fields) -> tuple[DenoiserConfig, int]:
    """Uniform noise on the whole vocabulary; guided models know classes (Schiff et al. 2412.10193)."""
    network = _network(fields)
    if fields("cfg", bool, False):
        network = replace(network, classes=fields("cfg_num_classes", int) + 1)
    clock = "sigma" if fields("time_conditioning", bool) else "nothing"
    return DenoiserConfig(network, processes.uniform(network.vocab), clock), fields("model_length", int)


def _duo(fields: Fields) -> tuple[DenoiserConfig, int]:
    """Uniform noise on the whole vocabulary, padding included, distilled or not (Sahoo et al. 2506.10892)."""
    if fields("causal", bool, False):
        raise ValueError(f"{fields.path}: field 'causal' is True, which no released Duo checkpoint sets")
    network = _network(fields)
    return DenoiserConfig(network, processes.uniform(network.vocab), "sigma"), fields("model_length", int)


def _sedd(fields: Fields) -> tuple[DenoiserConfig, int]:
    """Masked noise, outputs log-scores (Lou et al. 2310.16834)."""
    fields.only("graph.type", "absorb")
    fields.only("noise.type", "loglinear")
    scores = "scaled" if fields("model.scale_by_sigma", bool) else "plain"
    network = replace(_hydra_network(fields), code=fields("model.cond_dim", int))
    config = DenoiserConfig(network, processes.masked(fields("tokens", int)), "sigma", scores=scores)
    return config, fields("model.length", int)


def _radd(fields: Fields) -> tuple[DenoiserConfig, int]:
    """Masked noise, no time anywhere, norms with a bias (Ou et al. 2406.03736)."""
    network = replace(_hydra_network(fields), norm_bias=True)
    return DenoiserConfig(network, processes.masked(fields("tokens", int))), fields("model.length", int)


def _gidd(fields: Fields) -> tuple[DenoiserConfig, int]:
    """Masks with a share of uniform noise, told t itself (von Rütte et al. 2503.04482)."""
    length, share = fields("max_seq_len", int), fields("p_uniform", float)
    if not 0 <= share < 1:
        raise ValueError(f"{fields.path}: field 'p_uniform' is {share}, expected a share from 0 to below 1")
    masked = _masked(fields)
    network = DiTConfig(
        vocab=masked.V,
        width=fields("hidden_size", int),
        depth=fields("num_hidden_layers", int),
        heads=fields("num_attention_heads", int),
        code=fields("timestep_cond_dim", int),
        table=length,
        dropout=fields("attention_dropout", float),
    )
    process = processes.hybrid(masked.K, share, mask_id=masked.mask_id) if share else masked
    return DenoiserConfig(network, process, "t", margin=fields("t_eps", float)), length


def _network(fields: Fields, timed: bool = True) -> DiTConfig:
    return DiTConfig(
        vocab=fields("vocab_size", int),
        width=fields("hidden_dim", int),
        depth=fields("n_blocks", int),
        heads=fields("n_heads", int),
        code=fields("cond_dim", int) if timed else None,
        dropout=fields("dropout", float),
    )


def _hydra_network(fields: Fields) -> DiTConfig:
    return DiTConfig(
        vocab=fields("tokens", int) + 1,
        width=fields("model.hidden_size", int),
        depth=fields("model.n_blocks", int),
        heads=fields("model.n_heads", int),
        code=None,
        dropout=fields("model.dropout", float),
    )


def _masked(fields: Fields) -> Categorical:
    """The last id is [MASK], appended to the vocabulary, unless config.json says where it lies."""
    V = fields("vocab_size", int)
    mask_id = fields("mask_token_id", int, V - 1)
    if mask_id >= V:
        raise ValueError(f"{fields.path}: field 'mask_token_id' is {mask_id}, expected an id below vocab_size {V}")
    return processes.masked(V - 1 if mask_id == V - 1 else V, mask_id=mask_id)


def _of_type(name: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda config: str(config.get("model_type")).lower() == name


def _is_hydra(config: Mapping[str, Any]) -> bool:
    return "model_type" not in config and isinstance(config.get("model"), Mapping) and "tokens" in config


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("mdlm", _of_type("mdlm"), _mdlm, wrapped=True),
        Family("bd3lm", _of_type("bd3lm"), _bd3lm, wrapped=True),
        Family("udlm", _of_type("udlm"), _udlm, wrapped=True, tokenizer="bert-base-uncased"),
        Family("duo", _of_type("duo"), _duo, wrapped=True, pad_token="[PAD]"),
        Family("sedd", lambda config: _is_hydra(config) and "graph" in config, _sedd, wrapped=False),
        Family("radd", lambda config: _is_hydra(config) and "graph" not in config, _radd, wrapped=False),
        Family("gidd", lambda config: _of_type("dit")(config) and "p_uniform" in config, _gidd, wrapped=False),
    )
}


# ---------------------------------------------------------------------------------------------------- load and save


def load(
    folder: str | Path,
    device: Device = None,
    *,
    tokenizer: str | Tokenizer | None = None,
    family: str | None = None,
    repository: str = "",
) -> tuple[DiTDenoiser, Tokenizer, dict[str, Any]]:
    """The denoiser stored in ``folder``, in evaluation mode, its tokenizer, and what there is to say "about" it.

    ``family`` decides where config.json does not; left out, it is read off config.json, or failing that off the name
    of the ``repository`` the folder came from. ``tokenizer``: see ``tokenizer_of``. Weights keep the precision they are
    stored in. Errors: ``ValueError`` for an unknown family, a field that is missing or unsupported, a key that is
    missing, not expected or of another shape, weights stored as a pickle, a tokenizer that does not fit.
    """
    folder = Path(folder)
    path = folder / folders.CONFIG
    values = folders.read_config(folder)
    found = family_of(path, values, family, repository)
    try:
        config, context = found.reads(Fields(path, values))
    except ValueError as error:
        raise ValueError(f"{error} (read as family {found.name!r})") from None
    with torch.device("meta"):
        denoiser = DiTDenoiser(config)
    folders.put_weights(denoiser, folder, found.stored_as)
    words = tokenizer_of(folder, found, config.process, tokenizer)
    denoiser.eos_id, denoiser.pad_id = words.eos_id, words.pad_id
    about = {"context": context, "family": found.name, "config": path.read_text(encoding="utf-8")}
    return denoiser.to(device).eval(), words, about


def save(folder: str | Path, denoiser: DiTDenoiser, tokenizer: Tokenizer, about: Mapping[str, Any]) -> None:
    """Store it in the layout it was loaded from: the same keys, and config.json as it was."""
    family = FAMILIES[about["family"]]
    tensors = {family.stored_as(name): value for name, value in denoiser.state_dict().items()}
    folders.write_model(folder, tensors, about["config"], tokenizer)


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
    if isinstance(given, Tokenizer):
        found = given
    elif given is not None:
        found = build_tokenizer(given)
    elif (folder / "tokenizer.json").is_file():
        found = Tokenizer.load(folder)
    else:
        try:
            found = pretrained(family.tokenizer, family.pad_token)
        except ValueError as error:
            raise ValueError(f"{folder}: no tokenizer in it, and {error}; or pass tokenizer=, a folder or id") from None
    if found.K > process.K:
        raise ValueError(
            f"{folder}: the tokenizer has {found.K} tokens, the model {process.K}; pass tokenizer=, the one it was "
            "trained with (where [MASK] is a token of its vocabulary, config.json must say so: mask_token_id)"
        )
    if process.mask_id is not None and process.mask_id < process.K and found.mask_id != process.mask_id:
        raise ValueError(f"{folder}: the tokenizer's mask is id {found.mask_id}, the model's {process.mask_id}")
    return found
