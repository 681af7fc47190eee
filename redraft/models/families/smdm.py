"""SMDM: masked diffusion at 6M to 2.1B parameters, in lit-gpt's layout (Nie et al. 2410.18514).

Files of huggingface.co/nieshen/SMDM hold weights alone: the folder that is read has one of them as model.safetensors,
and as config.json what lit-gpt says of that size (github.com/ML-GSAI/SMDM, lit_gpt/diffmodel and config).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from redraft import processes
from redraft.models.backbone import BackboneDenoiser, Meaning
from redraft.models.decoder import Decoder, DecoderConfig
from redraft.models.families.base import Family, Fields, Known, replaced
from redraft.models.weights import Piece, renamed

THETA = 10_000.0
NEEDED = ("n_layer", "n_head", "n_embd")
FUSED = ("q_proj", "k_proj", "v_proj")
NAMES = {
    "model.layers.": "transformer.h.",
    "model.embed_tokens": "transformer.wte",
    "model.norm": "transformer.ln_f",
    **{f"self_attn.{name}": "attn.attn" for name in FUSED},
    "self_attn.o_proj": "attn.proj",
    "post_attention_layernorm": "norm_2",
    "input_layernorm": "norm_1",
    "mlp.gate_proj": "mlp.swiglu.w1",
    "mlp.up_proj": "mlp.swiglu.w2",
    "mlp.down_proj": "mlp.swiglu.w3",
}


def is_smdm(config: Mapping[str, Any]) -> bool:
    """lit-gpt's words, in which there is no model_type."""
    return "model_type" not in config and all(name in config for name in NEEDED)


def reads(fields: Fields) -> Known:
    """SMDM, 6M to 2.1B: masks, full attention, lit-gpt's layout (Nie et al. 2410.18514)."""
    fields.refuse(
        bias=False, parallel_residual=False, shared_attention_norm=False, rotary_percentage=1, condense_ratio=1,
        scale_embeddings=False, _mlp_class="LLaMAMLP",
    )  # fmt: skip
    if (norm := fields("_norm_class", str, "RMSNorm")) not in ("RMSNorm", "FusedRMSNorm"):
        raise ValueError(f"{fields.path}: field '_norm_class' is {norm!r}, and only RMSNorm is supported")
    width, heads = fields("n_embd", int), fields("n_head", int)
    multiple = fields("padding_multiple", int, 64)
    rows = fields("padded_vocab_size", int, -(-fields("vocab_size", int) // multiple) * multiple)
    network = DecoderConfig(
        vocab=rows + 1,
        outputs=rows,
        width=width,
        depth=fields("n_layer", int),
        heads=heads,
        kv_heads=fields("n_query_groups", int, heads),
        head_width=width // heads,
        hidden=fields("intermediate_size", int),
        eps=fields.positive("norm_eps"),
        theta=THETA,
        rotary=width // heads,
    )
    meaning = Meaning(processes.masked(rows))
    return Known(lambda: BackboneDenoiser(Decoder(network), meaning), fields("block_size", int))


def pieces(model: nn.Module) -> list[Piece]:
    """Queries, keys and values are one tensor: of each head of keys its queries, its keys, its values."""
    assert isinstance(model, BackboneDenoiser)
    assert isinstance(model.backbone, Decoder)
    config, found = model.backbone.config, list[Piece]()
    shared = config.heads // config.kv_heads
    grid = torch.arange((shared + 2) * config.kv_heads * config.head_width)
    grouped = grid.view(config.kv_heads, shared + 2, config.head_width)
    rows = dict[str, Tensor](zip(FUSED, (grouped[:, :shared], grouped[:, shared], grouped[:, shared + 1]), strict=True))
    for piece in renamed(model, partial(replaced, names=NAMES)):
        ours = next((one for one in FUSED if one in piece.name), None)
        found.append(piece if ours is None else Piece(piece.stored, piece.name, rows=rows[ours].flatten()))
    return found


FAMILY = Family(
    "smdm",
    is_smdm,
    reads,
    pieces,
    tokenizer="TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
    decoding={"sampler": "maskgit_plus", "temperature": 0.0},
)
