"""What a family of released checkpoints is: how its config.json is known and read, and how its files name the tensors.

Keys are matched strictly, only safetensors are read, and no code in a folder is ever run.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from redraft import processes
from redraft.files import read_object
from redraft.models.backbone import BackboneDenoiser, Meaning
from redraft.models.canvas import CanvasDenoiser
from redraft.models.decoder import Decoder, DecoderConfig
from redraft.models.dit import DiTDenoiser
from redraft.models.weights import READ, Piece, Shards, renamed

T = TypeVar("T", bool, int, float, str)
NONE: Mapping[str, str] = {}
HEAD, EMBEDDING = "backbone.lm_head.weight", "backbone.model.embed_tokens.weight"
Released = DiTDenoiser | BackboneDenoiser | CanvasDenoiser


@dataclass(frozen=True)
class Fields:
    """config.json with its path: ``fields("model.n_heads", int)`` is that field, checked; ``ValueError`` names it.

    ``repository``: where it came from, if that is known.
    """

    path: Path
    values: Mapping[str, Any]
    repository: str = ""

    def __call__(self, name: str, kind: type[T], otherwise: T | None = None, least: int = 1) -> T:
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
        if isinstance(value, int) and kind is int and value < least:
            raise ValueError(f"{self.path}: field {name!r} is {value!r}, expected at least {least}")
        return value

    def positive(self, name: str, otherwise: float | None = None) -> float:
        """The field as a number above 0."""
        if not 0 < (value := self(name, float, otherwise)) < math.inf:
            raise ValueError(f"{self.path}: field {name!r} is {value!r}, expected a number above 0")
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

    ``ids``: those of ``eos_id`` and ``pad_id`` that it names, by these names; the tokenizer has the rest. ``config``:
    what config.json is to say from now on, where the repository's name said more.
    """

    build: Callable[[], Released]
    context: int
    ids: Mapping[str, int] = field(default_factory=dict[str, int])
    config: str | None = None


@dataclass(frozen=True)
class Family:
    """``recognises`` its config.json, ``reads`` it; ``pieces`` says where in the files a denoiser's tensors are.

    ``tokenizer`` is the Hub id of the one its models were trained with, where a folder has none; ``pad_token`` what was
    added to it; ``turn`` the token that ends an answer in a conversation. ``template``: a chat template in place of the
    shipped one. ``decoding``: how its authors write with it, options of ``lm.generate``. ``under``: model_types that
    other models have too; of those the repository's name tells, or the caller, that it is this family.
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
    under: tuple[str, ...] = ()


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
    """The end of text, the first of several, and the padding that config.json names; -1 names none."""
    found = dict[str, int]()
    for ours, theirs in {"eos_id": "eos_token_id", "pad_id": "pad_token_id"}.items():
        said = fields.values.get(theirs)
        first = said[0] if isinstance(said, list) and said else said
        if first is not None and first != -1:
            found[ours] = Fields(fields.path, {theirs: first}).id(theirs, rows)
    return found


def mask_id(fields: Fields, rows: int, stated: int | None = None, token: str | None = None) -> int:
    """The id of the mask: config.json's, or that of the tokenizer's ``token`` of this name, or what authors state.

    Errors: ``ValueError`` for none, or an id that the network has no row for.
    """
    if fields.values.get("mask_token_id") is not None:
        return fields.id("mask_token_id", rows)
    found = stated if token is None else added_tokens(fields.path.parent).get(token, stated)
    if found is None or found >= rows:
        said = "the mask of this family" if token is None else f"the mask of this family, {token!r}"
        raise ValueError(
            f"{fields.path}: no field 'mask_token_id', and {said}, id {found}, is none of {rows} tokens; add the field"
        )
    return found


def added_tokens(folder: Path) -> dict[str, int]:
    """The tokens that a tokenizer's files declare beside their vocabulary, with their ids; none without such files."""
    found = dict[str, int]()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        try:
            values = read_object(folder / name)
            listed = values.get("added_tokens", [])
            found |= {str(one["content"]): int(one["id"]) for one in listed}
            found |= {str(one["content"]): int(i) for i, one in values.get("added_tokens_decoder", {}).items()}
        except FileNotFoundError:
            continue
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / name}: damaged, {type(error).__name__} {error}; copy it again") from None
    return found


SHARE = "partial_rotary_factor"


def architectures(config: Mapping[str, Any]) -> list[str]:
    """The classes that config.json names."""
    found = config.get("architectures")
    return [str(name) for name in found] if isinstance(found, list) else []


def rotary_base(fields: Fields) -> float:
    """The base of rotary angles: a field of its own or, as ``transformers`` 5 writes it, one among others.

    Errors: ``ValueError`` for angles that are scaled.
    """
    for name, known in (("rope_scaling", ()), ("rope_parameters", ("rope_theta", SHARE))):
        said = fields.values.get(name)
        plain = said is None or isinstance(said, Mapping)
        of = dict[str, Any](said or {}) if plain else {}
        usual = {key for key in ("type", "rope_type") if of.get(key) == "default"}
        if not plain or any(of[key] is not None for key in of.keys() - usual - {*known}):
            raise ValueError(
                f"{fields.path}: field {name!r} is {said!r}, and only angles of type 'default' are supported"
            )
    inner = "" if fields.values.get("rope_parameters") is None else "rope_parameters."
    return fields.positive(inner + "rope_theta")


def rotary_share(fields: Fields, otherwise: float = 1.0) -> float:
    """How much of a head is turned; said where the base is, or on its own."""
    return fields.positive(f"rope_parameters.{SHARE}", fields.positive(SHARE, otherwise))


def unstacked(model: nn.Module, stored_as: Callable[[str], str]) -> list[Piece]:
    """As ``renamed``, but each expert's tensors are stored apart: ``mlp.experts.3.gate_proj.weight``."""
    found = list[Piece]()
    for name, tensor in model.state_dict().items():
        if ".mlp.experts." not in name:
            found.append(Piece(stored_as(name), name))
            continue
        head, _, leaf = stored_as(name).rpartition(".")
        found += [Piece(f"{head}.{expert}.{leaf}.weight", name, at=expert) for expert in range(len(tensor))]
    return found


def named(model: nn.Module, names: Mapping[str, str] = NONE, apart: bool = False) -> list[Piece]:
    """A decoder's tensors by Llama's names with ``names`` replaced, experts ``apart`` or not, and the head's copy."""
    assert isinstance(model, BackboneDenoiser)
    stored_as = partial(replaced, names=names)
    found = (unstacked if apart else renamed)(model, stored_as)
    if isinstance(model.backbone, Decoder) and model.backbone.config.twice:
        found.append(Piece(stored_as(HEAD), EMBEDDING))
    return found


def stands_twice(fields: Fields, names: Mapping[str, str] = NONE) -> bool:
    """Whether the files hold a head beside the embedding it is tied to. Errors: ``ValueError`` if they differ."""
    head, table = replaced(HEAD, names), replaced(EMBEDDING, names)
    try:
        shards = Shards(fields.path.parent)
    except ValueError:  # there are none, or they are damaged: who reads them says so
        return False
    if head not in shards.shapes or table not in shards.shapes:
        return False
    same = [(one[head], one[table]) for one in (shards.shapes, shards.precisions)]
    if not all(one == other for one, other in same) or not _equal(shards, head, table):
        raise ValueError(f"{shards.path}: {head} is not {table}, which the config ties it to; correct the config")
    return True


def _equal(shards: Shards, one: str, other: str) -> bool:
    """Whether two tensors of one shape are the same to the bit, some rows at a time."""
    rows, *row = shards.shapes[one]
    step = max(1, READ // max(1, math.prod(row) * shards.dtype(one).itemsize))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        first = shards.rows(one, start, stop).clone()
        if not torch.equal(first.view(torch.uint8), shards.rows(other, start, stop).view(torch.uint8)):
            return False
    return True


def decoder(
    fields: Fields,
    network: DecoderConfig,
    mask: int,
    names: Mapping[str, str] = NONE,
    context: int | None = None,
    **meaning: Any,
) -> Known:
    """A denoiser of masks on ``network``, its ``meaning`` beside them; ``names``: see ``named``.

    ``context``: the length it was trained at, unless that is what config.json calls the longest.
    """
    means = Meaning(processes.masked(network.vocab, mask_id=mask), **meaning)
    network = replace(network, twice=network.tied and stands_twice(fields, names))
    context = fields("max_position_embeddings", int) if context is None else context
    return Known(lambda: BackboneDenoiser(Decoder(network), means), context, named_ids(fields, network.vocab))


def llama_network(fields: Fields, **given: Any) -> DecoderConfig:
    """The network that a config.json in Llama's words (and Qwen's) describes; ``given`` is what the family decides.

    Errors: ``ValueError`` for what ``Decoder`` does not do.
    """
    fields.refuse(
        hidden_act="silu", mlp_bias=False, pretraining_tp=1, use_sliding_window=False, quantization_config=None
    )
    if others := sorted({*map(str, fields.values.get("layer_types") or ())} - {"full_attention"}):
        raise ValueError(f"{fields.path}: field 'layer_types' has {others[0]!r}; only 'full_attention' is supported")
    if "rotary" not in given and (share := rotary_share(fields)) != 1:
        raise ValueError(f"{fields.path}: field {SHARE!r} is {share}, and only 1 is supported")
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
        eps=fields.positive("rms_norm_eps"),
        theta=rotary_base(fields),
        rotary=given.pop("rotary", head),
        tied=fields("tie_word_embeddings", bool, False),
    )
    return replace(config, **given)
