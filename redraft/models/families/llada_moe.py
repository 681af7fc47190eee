"""LLaDA-MoE-7B-A1B (Base, Instruct): LLaDA with experts in place of its SwiGLUs (2509.24389).

config.json and keys as released: huggingface.co/inclusionAI/LLaDA-MoE-7B-A1B-Instruct. Its model_type is LLaDA's.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from redraft.models.experts import ExpertsConfig
from redraft.models.families.base import (
    Family,
    Fields,
    Known,
    architectures,
    decoder,
    llama_network,
    mask_id,
    named,
    of_type,
)

MASK, MASK_ID = "<|mask|>", 156895


def is_llada_moe(config: Mapping[str, Any]) -> bool:
    """It has experts, or is said to be of that class."""
    experts = config.get("num_experts") is not None or "LLaDAMoEModelLM" in architectures(config)
    return of_type("llada")(config) and experts


def reads(fields: Fields) -> Known:
    """LLaDA-MoE-7B-A1B: masks, full attention, a mixture of experts (2509.24389)."""
    fields.refuse(
        attention_bias=False, clip_qkv=None, shared_expert_intermediate_size=None, moe_router_enable_expert_bias=False,
        routed_scaling_factor=1, moe_router_score_function="softmax",
    )  # fmt: skip
    if fields.values.get("num_shared_experts") != 0:
        fields.refuse(num_shared_experts=None)
    # norm_topk_prob is not looked at, as the released code does not: shares never are made to sum to one
    depth = fields("num_hidden_layers", int)
    experts = ExpertsConfig(
        count=fields("num_experts", int),
        top=fields("num_experts_per_tok", int),
        hidden=fields("expert_intermediate_size", int),
        layers=_layers(fields, depth),
    )
    hidden = fields("dense_intermediate_size", int, experts.hidden)
    network = llama_network(fields, qk_norm=fields("qk_layernorm", bool), experts=experts, hidden=hidden)
    return decoder(fields, network, mask_id(fields, network.vocab, MASK_ID, MASK))


def _layers(fields: Fields, depth: int) -> tuple[bool, ...]:
    """Which layers have experts: those with a 1 in ``moe_layer_freq``; a 1 alone, or none, is all of them."""
    found = fields.values.get("moe_layer_freq")
    found = [1] * depth if found is None or found == 1 else found
    if not isinstance(found, list) or len(found) != depth or any(one not in (0, 1) for one in found):
        raise ValueError(f"{fields.path}: field 'moe_layer_freq' is {found!r}, expected 0 or 1 for each of {depth}")
    return tuple(one == 1 for one in found)


FAMILY = Family(
    "llada_moe",
    is_llada_moe,
    reads,
    partial(named, apart=True),
    decoding={"sampler": "low_confidence", "temperature": 0.0, "length": 128, "block": 32},
)
