"""LLaDA2.0 and 2.1, mini and flash: blocks of masks read from left to right, and experts (2512.15745, 2602.08676).

config.json and keys as released: huggingface.co/inclusionAI/LLaDA2.0-mini, LLaDA2.0-flash. dFactory, which trains
them, keeps the experts of a layer stacked; that layout is a family of its own, ``llada2_merged``.
"""

from functools import partial

from torch import nn

from redraft.models.experts import ExpertsConfig
from redraft.models.families.base import (
    Family,
    Fields,
    Known,
    decoder,
    llama_network,
    mask_id,
    named,
    of_type,
    rotary_share,
)
from redraft.models.weights import Piece

MASK, MASK_ID = "<|mask|>", 156895
BLOCK = 32
"""Tokens of a block, which released configs do not name."""
FUSED = ("q_proj", "k_proj", "v_proj")
NAMES = {
    "model.embed_tokens": "model.word_embeddings",
    **{f"self_attn.{name}": "attention.query_key_value" for name in FUSED},
    "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm",
    "self_attn.o_proj": "attention.dense",
}


def reads(fields: Fields) -> Known:
    """LLaDA2.0 and 2.1, mini and flash: masks in blocks of 32 from left to right, experts (2512.15745)."""
    fields.refuse(
        use_rmsnorm=True, use_qk_norm=True, use_qkv_bias=False, use_bias=False, norm_head=False, norm_softmax=False,
        score_function="sigmoid", router_dtype="fp32", using_split_qkv_in_self_attention=False,
    )  # fmt: skip
    network = llama_network(fields, qk_norm=True, experts=_experts(fields), rotary=_rotary(fields))
    mask, block = mask_id(fields, network.vocab, MASK_ID, MASK), fields("block_size", int, BLOCK)
    return decoder(fields, network, mask, NAMES, attention="block", block=block)


def reads_merged(fields: Fields) -> Known:
    """LLaDA2 as dFactory keeps it while training: the experts of a layer stacked in one tensor."""
    return reads(fields)


def _experts(fields: Fields) -> ExpertsConfig:
    depth, hidden = fields("num_hidden_layers", int), fields("moe_intermediate_size", int)
    dense, shared = fields("first_k_dense_replace", int, 0, least=0), fields("num_shared_experts", int, 0, least=0)
    return ExpertsConfig(
        count=fields("num_experts", int),
        top=fields("num_experts_per_tok", int),
        hidden=hidden,
        layers=tuple(layer >= dense for layer in range(depth)),
        scoring="sigmoid",
        groups=fields("n_group", int),
        top_groups=fields("topk_group", int),
        bias=fields("moe_router_enable_expert_bias", bool),
        renormalise=fields("norm_topk_prob", bool),
        scale=fields("routed_scaling_factor", float),
        shared=hidden * shared or None,
    )


def _rotary(fields: Fields) -> int:
    """How many numbers of a head are turned: said as a number, as a share, or both."""
    head = fields("head_dim", int)
    share = rotary_share(fields, fields("rotary_dim", int, head) / head)
    found = fields("rotary_dim", int, round(share * head))
    if found != round(share * head):
        raise ValueError(
            f"{fields.path}: rotary_dim {found} and partial_rotary_factor {share} of {head} disagree; correct one"
        )
    return found


def _pieces(model: nn.Module, apart: bool) -> list[Piece]:
    """Queries, keys and values are one tensor, in this order."""
    rows, found = {name: len(tensor) for name, tensor in model.state_dict().items() if tensor.ndim}, list[Piece]()
    for piece in named(model, NAMES, apart):
        ours = next((one for one in FUSED if one in piece.name), None)
        if ours is None:
            found.append(piece)
            continue
        start = sum(rows[piece.name.replace(ours, one)] for one in FUSED[: FUSED.index(ours)])
        found.append(Piece(piece.stored, piece.name, rows=slice(start, start + rows[piece.name])))
    return found


DECODING = {
    "sampler": "threshold:tau=0.95,whole=true",
    "temperature": 0.0,
    "length": 2048,
    "stop": True,
    "whole_blocks": True,
}
FAMILIES = (
    Family(
        "llada2",
        of_type("llada2_moe"),
        reads,
        partial(_pieces, apart=True),
        decoding=DECODING,
    ),
    Family(
        "llada2_merged",
        of_type("llada2_moe_veomni"),
        reads_merged,
        partial(_pieces, apart=False),
        decoding=DECODING,
    ),
)
