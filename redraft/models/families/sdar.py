"""SDAR (1.7B, 4B, 8B) and TraDo: Qwen3's network, which writes blocks of 4 from left to right (2510.06303).

config.json as released: huggingface.co/JetLM/SDAR-1.7B-Chat; keys are Qwen3's.
"""

from collections.abc import Mapping
from typing import Any

from redraft.models.families.base import Family, Fields, Known, decoder, llama_network, mask_id, named, of_type

MASK, MASK_ID = "<|MASK|>", 151669
BLOCK = 4
MOE = "sdar_moe"


def is_sdar(config: Mapping[str, Any]) -> bool:
    """Those with experts are known too, so that they can be refused by name."""
    return of_type("sdar")(config) or of_type(MOE)(config)


def reads(fields: Fields) -> Known:
    """SDAR and TraDo, without experts: masks in blocks of 4 from left to right (2510.06303)."""
    if of_type(MOE)(fields.values):
        raise ValueError(
            f"{fields.path}: model_type {MOE!r} is not supported: how its experts are chosen is not established; "
            "use one of SDAR without experts (1.7B, 4B, 8B)"
        )
    fields.refuse(attention_bias=False)
    network = llama_network(fields, qk_norm=True)
    mask, block = mask_id(fields, network.vocab, MASK_ID, MASK), fields("block_size", int, BLOCK)
    return decoder(fields, network, mask, attention="block", block=block)


FAMILY = Family(
    "sdar",
    is_sdar,
    reads,
    named,
    decoding={"sampler": "threshold:tau=0.85", "length": 128, "stop": True},
)
