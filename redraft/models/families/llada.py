"""LLaDA-8B (Base, Instruct) and LLaDA-1.5: masks, full attention, OLMo's names (Nie et al. 2502.09992).

config.json and keys as released: huggingface.co/GSAI-ML/LLaDA-8B-Instruct, LLaDA-1.5.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from redraft.models.decoder import DecoderConfig
from redraft.models.families.base import Family, Fields, Known, architectures, decoder, named, of_type

TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""The shipped template asks for an answer whether it is told to or not, and would put one behind every answer."""
NAMES = {
    "model.layers.": "model.transformer.blocks.",
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    "self_attn.o_proj": "attn_out",
    "self_attn.": "",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
"""Parts of our names, and what they are called in the files."""


def is_llada(config: Mapping[str, Any]) -> bool:
    """It has OLMo's words, or is said to be of that class: LLaDA-MoE and others have the same model_type."""
    return of_type("llada")(config) and ("d_model" in config or "LLaDAModelLM" in architectures(config))


def reads(fields: Fields) -> Known:
    """LLaDA-8B and LLaDA-1.5: masks, full attention (Nie et al. 2502.09992)."""
    fields.refuse(
        alibi=False, rope=True, block_type="llama", layer_norm_type="rms", activation_type="silu", input_emb_norm=False,
        include_bias=False, bias_for_layer_norm=False, attention_layer_norm=False, scale_logits=False,
        multi_query_attention=None, clip_qkv=None, layer_norm_with_affine=True, rope_full_precision=True,
        rope_scaling=None, quantization_config=None,
    )  # fmt: skip
    width, heads, vocab = fields("d_model", int), fields("n_heads", int), fields("vocab_size", int)
    rows = fields("embedding_size", int, vocab)
    network = DecoderConfig(
        vocab=rows,
        outputs=rows,
        width=width,
        depth=fields("n_layers", int),
        heads=heads,
        kv_heads=fields("n_kv_heads", int, heads),
        head_width=width // heads,
        hidden=fields("mlp_hidden_size", int, fields("mlp_ratio", int, 4) * width),
        eps=fields.positive("rms_norm_eps"),
        theta=fields.positive("rope_theta"),
        rotary=width // heads,
        qkv_bias=fields("include_qkv_bias", bool, False),
        tied=fields("weight_tying", bool),
    )
    return decoder(fields, network, fields.id("mask_token_id", rows), NAMES, fields("max_sequence_length", int))


FAMILY = Family(
    "llada",
    is_llada,
    reads,
    partial(named, names=NAMES),
    template=TEMPLATE,
    decoding={"sampler": "low_confidence", "temperature": 0.0, "length": 128, "block": 32},
)
