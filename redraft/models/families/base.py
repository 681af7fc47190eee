"""What a family of released checkpoints is: how its config.json is known and read, and how its files name the tensors.

Keys are matched strictly, only safetensors are read, and no code in a folder is ever run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from redraft.models.backbone import BackboneDenoiser
from redraft.models.decoder import DecoderConfig
from redraft.models.dit import DiTDenoiser
from redraft.models.weights import Piece, renamed

T = TypeVar("T", bool, int, float, str)
Released = DiTDenoiser | BackboneDenoiser


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

    def id(self, name: str, rows: int) -> int:
        """The field as the id of a token, of a vocabulary of so many rows."""
        found = self.values.get(name)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < rows:
            raise ValueError(f"{self.path}: field {name!r} is {found!r}, expected the id of a token, below {rows}")
        return found

    def refuse(self, **known: Any) -> None:
        """Refuse fields, if there are any, of other values than these: what no network of ours does."""
        for name, value in known.items():
            found = self.values.get(name, value)
            if found != value:
                raise ValueError(f"{self.path}: field {name!r} is {found!r}, and only {value!r} is supported")


@dataclass(frozen=True)
class Known:
    """What a config.json says: the denoiser to ``build`` (on the meta device), and the length it was trained at.

    ``ids``: those of ``eos_id`` and ``pad_id`` that it names, by these names; the tokenizer has the rest.
    """

    build: Callable[[], Released]
    context: int
    ids: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Family:
    """``recognises`` its config.json, ``reads`` it; ``pieces`` says where in the files a denoiser's tensors are.

    ``tokenizer`` is the Hub id of the one its models were trained with, where a folder has none; ``pad_token`` what was
    added to it; ``turn`` the token that ends an answer in a conversation. ``template``: a chat template in place of the
    shipped one. ``decoding``: how its authors write with it, options of ``lm.generate``.
    """

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    reads: Callable[[Fields], Known]
    pieces: Callable[[nn.Module], list[Piece]] = renamed
    tokenizer: str | None = None
    pad_token: str | None = None
    turn: str | None = None
    template: str | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict[str, Any])


def of_type(name: str) -> Callable[[Mapping[str, Any]], bool]:
    """Recognises ``model_type``, in capitals or not."""
    return lambda config: str(config.get("model_type")).lower() == name


def replaced(name: str, names: Mapping[str, str], prefix: str = "backbone.") -> str:
    """The name in the files of a denoiser's tensor: without ``prefix``, and all ``names`` replaced, in their order."""
    name = name.removeprefix(prefix)
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def named_ids(fields: Fields, rows: int) -> dict[str, int]:
    """The end of text and the padding that config.json names."""
    names = {"eos_id": "eos_token_id", "pad_id": "pad_token_id"}
    return {ours: fields.id(theirs, rows) for ours, theirs in names.items() if fields.values.get(theirs) is not None}


def llama_network(fields: Fields, **given: Any) -> DecoderConfig:
    """The network that a config.json in Llama's words (and Qwen's) describes; ``given`` is what the family decides."""
    width, heads, vocab = fields("hidden_size", int), fields("num_attention_heads", int), fields("vocab_size", int)
    head = fields("head_dim", int, width // heads)
    config = DecoderConfig(
        vocab=vocab,
        outputs=vocab,
        width=width,
        depth=fields("num_hidden_layers", int),
        heads=heads,
        kv_heads=fields("num_key_value_heads", int, heads),
        head_width=head,
        hidden=given.pop("hidden", None) or fields("intermediate_size", int),
        eps=fields("rms_norm_eps", float),
        theta=fields("rope_theta", float),
        rotary=given.pop("rotary", head),
        tied=fields("tie_word_embeddings", bool, False),
    )
    return replace(config, **given)
