"""Dream-7B, Dream-Coder, DiffuCoder, DreamOn: Qwen2's network, its answers shifted by one (Ye et al. 2508.15487).

config.json and keys as released: huggingface.co/Dream-org/Dream-v0-Instruct-7B. DreamOn (2602.01326) has one token
more, which it writes where a gap is to grow: ``sampling.growth.Elastic`` follows it.
"""

from redraft.models.families.base import Family, Fields, Known, decoder, llama_network, named, of_type

TRAINED = 2048
"""Tokens of a text in training, as the authors state it; config.json has the base's positions, many more."""


def reads(fields: Fields) -> Known:
    """Dream-7B, Dream-Coder, DiffuCoder, DreamOn: masks, answers shifted by one (Ye et al. 2508.15487)."""
    fields.refuse(use_mrope=False)
    network = llama_network(fields, qkv_bias=True)
    context = min(TRAINED, fields("max_position_embeddings", int))
    return decoder(fields, network, fields.id("mask_token_id", network.vocab), context=context, shift=True)


FAMILY = Family(
    "dream",
    of_type("dream"),
    reads,
    named,
    decoding={"sampler": "entropy", "temperature": 0.2, "top_p": 0.95, "length": 128},
)
