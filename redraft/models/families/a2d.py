"""Autoregressive models made to denoise: the causal network of a base, its keys unchanged, read without its order.

config.json is the base's, with "a2d-" before its model_type, the mask's id, and under "diffusion" what ``convert``
decided. Without that key it is one of github.com/ZHZisZZ/dllm, whose config.json does not say how it was trained: see
``reads``.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from redraft import processes
from redraft.errors import unknown
from redraft.models.backbone import BackboneDenoiser, Meaning
from redraft.models.borrowed import borrow
from redraft.models.decoder import Decoder, DecoderConfig
from redraft.models.families.base import Family, Fields, Known, llama_network, mask_id, named, stands_twice
from redraft.processes import Categorical

NAME, PREFIX = "a2d", "a2d-"
MASK = "<|mask|>"
"""What dllm calls the mask that it adds."""
OWN = {"llama": None, "mistral": (False, False), "qwen2": (True, False), "qwen3": None}
"""Bases that ``Decoder`` computes, and which of their layers have biases: those of queries, keys and values, and those
of outputs; None where the config says it."""
ATTENTION = ("full", "block")
BD3LM = {"attention": "block", "block": 32}
"""What dllm's models of that name were trained with."""


def is_a2d(config: Mapping[str, Any]) -> bool:
    """Whatever the base."""
    return str(config.get("model_type")).startswith(PREFIX)


def base_config(fields: Fields) -> Any:
    """The config of the base as ``transformers`` has it, with all that a file leaves to its class.

    Errors: ``ValueError`` for a type that ``transformers`` does not know, or fields that it refuses; for quantised
    weights.
    """
    fields.refuse(quantization_config=None)
    from transformers import AutoConfig  # seconds to import: only for those who need it

    values = {name: value for name, value in fields.values.items() if name != "model_type"}
    base = str(fields.values.get("model_type")).removeprefix(PREFIX)
    try:
        config: Any = AutoConfig.for_model(base, **values)
    except Exception as error:  # whatever a class says of its fields, they are what is wrong
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{fields.path}: no config of a {base!r} model ({reason})") from None
    return config


def own_network(fields: Fields) -> DecoderConfig | None:
    """The network of a base as ``Decoder`` has it, from its complete config; None where the base does more."""
    values, base = fields.values, fields.values["model_type"]
    kinds, rope = values.get("layer_types") or (), values.get("rope_parameters") or {}
    plain = {"hidden_act": "silu", "mlp_bias": False, "pretraining_tp": 1, "use_sliding_window": False}
    if base not in OWN or any(values.get(name, usual) != usual for name, usual in plain.items()):
        return None
    if base == "mistral" and values.get("sliding_window") is not None:
        return None
    if any(kind != "full_attention" for kind in kinds):
        return None
    if rope.get("rope_type") != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return None
    said = fields("attention_bias", bool, False)
    biases = OWN[base] or (said, said)
    return llama_network(fields, qkv_bias=biases[0], out_bias=biases[1], qk_norm=base == "qwen3")


def meaning_of(fields: Fields, rows: int) -> Meaning:
    """What "diffusion" says of the logits. Errors: ``ValueError`` for a process or attention that cannot be."""
    said = fields.values.get("diffusion", {})
    if not isinstance(said, Mapping):
        raise ValueError(f"{fields.path}: field 'diffusion' is {said!r}, expected an object")
    attention = fields("diffusion.attention", str, "full")
    if attention not in ATTENTION:
        raise unknown(f"attention in {fields.path}", attention, ATTENTION)
    try:
        process = processes.from_dict(said["process"]) if "process" in said else None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{fields.path}: field 'diffusion.process' describes no process ({error})") from None
    process = processes.masked(rows, mask_id=mask_id(fields, rows, token=MASK)) if process is None else process
    if not isinstance(process, Categorical) or rows < process.V:
        raise ValueError(
            f"{fields.path}: field 'diffusion.process' is {said['process']}, expected noise of at most {rows} ids"
        )
    block = None if said.get("block") is None else fields("diffusion.block", int)
    return Meaning(process, fields("diffusion.shift", bool, False), "block" if attention == "block" else "full", block)


def reads(fields: Fields) -> Known:
    """Causal models made to denoise, by ``redraft convert`` or dllm's A2D; of any base that can be read both ways.

    Of dllm's, those whose repository is named bd3lm read blocks of 32, and all others the whole text: their config.json
    does not say it. Where that is wrong, or the name is lost, the field "diffusion" says so in config.json, by
    {"attention": "block", "block": 32}; once read off the name it is stored there.
    """
    by_name = "diffusion" not in fields.values and "bd3lm" in re.split(r"\W|_", fields.repository.lower())
    if by_name:
        fields = replace(fields, values={**fields.values, "diffusion": BD3LM})
    config = base_config(fields)
    base = Fields(fields.path, config.to_dict())
    own, meaning = own_network(base), meaning_of(fields, base("vocab_size", int))
    converted = "process" in (fields.values.get("diffusion") or {})  # which stores one head, whatever its base does
    if own is not None and own.tied and not converted:
        own = replace(own, twice=stands_twice(fields))

    def build() -> BackboneDenoiser:
        return BackboneDenoiser(borrow(config) if own is None else Decoder(own), meaning)

    stored = json.dumps(fields.values, indent=2) + "\n" if by_name else None
    return Known(build, int(config.max_position_embeddings), config=stored)


# ``Borrowed`` has its network under a name of its own
FAMILY = Family(NAME, is_a2d, reads, partial(named, names={"network.": ""}))
