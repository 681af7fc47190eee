"""Dream-7B, Dream-Coder and DiffuCoder: Qwen2's network, its answers shifted by one (Ye et al. 2508.15487).

config.json and keys as released: huggingface.co/Dream-org/Dream-v0-Instruct-7B.
"""

from functools import partial

from redraft import processes
from redraft.models.backbone import BackboneDenoiser, Meaning
from redraft.models.decoder import Decoder
from redraft.models.families.base import Family, Fields, Known, llama_network, named_ids, of_type, replaced
from redraft.models.weights import renamed


def reads(fields: Fields) -> Known:
    """Dream-7B, Dream-Coder, DiffuCoder: masks, answers shifted by one (Ye et al. 2508.15487)."""
    fields.refuse(rope_scaling=None, use_sliding_window=False, use_mrope=False, hidden_act="silu")
    network = llama_network(fields, qkv_bias=True)
    meaning = Meaning(processes.masked(network.vocab, mask_id=fields.id("mask_token_id", network.vocab)), shift=True)
    context = fields("max_position_embeddings", int)
    return Known(lambda: BackboneDenoiser(Decoder(network), meaning), context, named_ids(fields, network.vocab))


FAMILY = Family(
    "dream",
    of_type("dream"),
    reads,
    partial(renamed, stored_as=partial(replaced, names={})),
    turn="<|im_end|>",
    decoding={"sampler": "entropy", "temperature": 0.2, "top_p": 0.95, "length": 128},
)
