"""Tiny checkpoints of large models' families, in their exact layouts, filled by a rule that any language can follow.

Keys, shapes and config fields are written out here, independently of the code under test. What the networks say was
computed by the released code on these weights (``GOLDEN_IDS`` and the numbers in the tests).
"""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import tokenizers
import torch
from safetensors.torch import save_file

M, EOS = 60, 1
VOCAB = 64
GOLDEN_IDS = [3, 14, 15, M, M, 9, 2, M]


def filled(name, shape):
    """Numbers hashed from the key and the place: exact in float64, stored as float32."""
    n = int(np.prod(shape))
    h = (np.arange(n, dtype=np.uint64) + zlib.crc32(name.encode())) % 2**32
    h ^= h >> np.uint64(16)
    h = h * 0x7FEB352D % 2**32
    h ^= h >> np.uint64(15)
    h = h * 0x846CA68B % 2**32
    h ^= h >> np.uint64(16)
    u = torch.from_numpy(h.astype(np.float64) / 2**31 - 1).reshape(tuple(shape))
    if name.endswith("expert_bias"):
        value = 0.05 * u
    elif name.endswith(".bias"):
        value = 0.1 * u
    elif len(shape) == 1:
        value = 1 + 0.25 * u
    else:
        value = 0.25 * u
    return value.float()


def tokenizer_files(folder, vocab=VOCAB, mask=M, eos=EOS, specials=()):
    """A tokenizer of letters, whose mask lies among the others and is declared in no config, as in LLaDA's."""
    alphabet = [chr(0x61 + i) if i < 26 else chr(0x400 + i) for i in range(vocab)]
    names = {eos: "<|end|>", **({} if mask is None else {mask: "<|mask|>"}), **dict(specials)}
    words = {names.get(i, letter): i for i, letter in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab=words))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in names.values()])
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": names[eos], "pad_token": names[eos]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write(folder, config, shapes, dtype=torch.float32, **tokenizer):
    """A folder as the Hub would give it. ``shapes``: key to shape."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = {name: filled(name, shape).to(dtype) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer_files(folder, **tokenizer)
    return folder


# --------------------------------------------------------------------------------------------------------- families

LLADA = {
    "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 32, "n_heads": 4, "n_kv_heads": 4,
    "n_layers": 2, "mlp_hidden_size": 48, "mlp_ratio": 4, "activation_type": "silu", "block_type": "llama",
    "layer_norm_type": "rms", "rms_norm_eps": 1e-5, "layer_norm_with_affine": True, "bias_for_layer_norm": False,
    "include_bias": False, "include_qkv_bias": False, "attention_layer_norm": False, "rope": True,
    "rope_full_precision": True, "rope_theta": 500000.0, "alibi": False, "max_sequence_length": 64,
    "vocab_size": VOCAB, "embedding_size": VOCAB, "weight_tying": False, "scale_logits": False,
    "input_emb_norm": False, "mask_token_id": M, "eos_token_id": EOS, "pad_token_id": EOS,
    "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
}  # fmt: skip
DREAM = {
    "architectures": ["DreamModel"], "model_type": "Dream", "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_window_layers": 2, "max_position_embeddings": 64,
    "hidden_act": "silu", "rope_scaling": None, "sliding_window": None, "use_sliding_window": False,
    "use_mrope": False, "tie_word_embeddings": False, "mask_token_id": M, "eos_token_id": EOS, "pad_token_id": EOS,
    "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
}  # fmt: skip
LLADA_MOE = {
    "architectures": ["LLaDAMoEModelLM"], "model_type": "llada", "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "expert_intermediate_size": 16, "dense_intermediate_size": 48,
    "shared_expert_intermediate_size": None, "num_experts": 8, "num_experts_per_tok": 2, "moe_layer_freq": [1, 1],
    "qk_layernorm": True, "rope_theta": 50000, "partial_rotary_factor": 1, "rope_scaling": None,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": False,
    "clip_qkv": None, "norm_topk_prob": None, "router_aux_loss_coef": 0.01, "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax", "routed_scaling_factor": 1, "router_num_group": None,
    "router_topk_group": None, "tie_word_embeddings": False, "output_router_logits": False, "vocab_size": VOCAB,
    "eos_token_id": EOS, "pad_token_id": EOS, "auto_map": {"AutoModel": "modeling_lladamoe.LLaDAMoEModelLM"},
}  # fmt: skip
LLADA2 = {
    "architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe", "hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48,
    "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1, "n_group": 4,
    "topk_group": 2, "first_k_dense_replace": 1, "score_function": "sigmoid", "router_dtype": "fp32",
    "moe_router_enable_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "rope_theta": 600000, "partial_rotary_factor": 0.5, "rotary_dim": 8, "rope_scaling": None,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "use_qk_norm": True, "use_qkv_bias": False,
    "use_bias": False, "use_rmsnorm": True, "vocab_size": VOCAB, "pad_token_id": EOS, "tie_word_embeddings": False,
    "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28, "norm_head": False,
    "norm_softmax": False, "using_split_qkv_in_self_attention": False, "hidden_act": "silu",
    "auto_map": {"AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM"},
}  # fmt: skip
SDAR = {
    "architectures": ["SDARForCausalLM"], "model_type": "sdar", "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_scaling": None, "max_position_embeddings": 64,
    "max_window_layers": 2, "sliding_window": None, "use_sliding_window": False, "hidden_act": "silu",
    "attention_bias": False, "tie_word_embeddings": False, "block_size": 4, "mask_token_id": M, "eos_token_id": EOS,
    "bos_token_id": EOS, "auto_map": {"AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"},
}  # fmt: skip
DIFFULLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "max_position_embeddings": 64,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1,
    "tie_word_embeddings": False, "mask_token_id": 11, "bos_token_id": 2, "eos_token_id": EOS,
}  # fmt: skip
ILLADA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "illada", "hidden_size": 32, "num_attention_heads": 8,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": None, "max_position_embeddings": 64,
    "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": True, "eos_token_id": EOS,
    "pad_token_id": EOS,
}  # fmt: skip
SMDM = {
    "name": "Diff_LLaMA_6M", "block_size": 64, "vocab_size": VOCAB, "padding_multiple": 64, "padded_vocab_size": VOCAB,
    "n_layer": 2, "n_head": 4, "n_query_groups": 2, "n_embd": 32, "rotary_percentage": 1.0,
    "parallel_residual": False, "bias": False, "shared_attention_norm": False, "_norm_class": "FusedRMSNorm",
    "norm_eps": 1e-5, "_mlp_class": "LLaMAMLP", "intermediate_size": 48, "condense_ratio": 1,
}  # fmt: skip


def llada_shapes(config):
    E, F, V = config["d_model"], config["mlp_hidden_size"], config["embedding_size"]
    G = E // config["n_heads"] * config["n_kv_heads"]
    top = "model.transformer."
    shapes = {top + "wte.weight": (V, E), top + "ln_f.weight": (E,)}
    if not config["weight_tying"]:
        shapes[top + "ff_out.weight"] = (V, E)
    for i in range(config["n_layers"]):
        block = {"attn_norm": (E,), "q_proj": (E, E), "k_proj": (G, E), "v_proj": (G, E), "attn_out": (E, E)}
        block |= {"ff_norm": (E,), "ff_proj": (F, E), "up_proj": (F, E), "ff_out": (E, F)}
        shapes |= {f"{top}blocks.{i}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def qwen2_shapes(config, bias=True, norms=False):
    """Qwen2's keys; Llama's without ``bias``, Qwen3's with ``norms`` in its place."""
    E, F, V = config["hidden_size"], config.get("intermediate_size"), config["vocab_size"]
    D = config.get("head_dim", E // config["num_attention_heads"])
    Q, G = D * config["num_attention_heads"], D * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (V, E), "model.norm.weight": (E,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (V, E)
    for i in range(config["num_hidden_layers"]):
        rows = {"q_proj": Q, "k_proj": G, "v_proj": G}
        block = {f"self_attn.{name}.weight": (n, E) for name, n in rows.items()}
        if bias:
            block |= {f"self_attn.{name}.bias": (n,) for name, n in rows.items()}
        if norms:
            block |= {f"self_attn.{name}_norm.weight": (D,) for name in "qk"}
        block |= {"self_attn.o_proj.weight": (E, Q), "input_layernorm.weight": (E,)}
        block |= {"post_attention_layernorm.weight": (E,)}
        if F is not None:
            block |= swiglu_shapes("mlp.", E, F)
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def swiglu_shapes(prefix, E, F):
    shapes = {"gate_proj": (F, E), "up_proj": (F, E), "down_proj": (E, F)}
    return {f"{prefix}{name}.weight": shape for name, shape in shapes.items()}


def llada_moe_shapes(config):
    E, F, X = config["hidden_size"], config["expert_intermediate_size"], config["num_experts"]
    shapes = qwen2_shapes(config, bias=False, norms=config["qk_layernorm"])
    for i, mixed in enumerate(config["moe_layer_freq"]):
        top = f"model.layers.{i}.mlp."
        if not mixed:
            shapes |= swiglu_shapes(top, E, config["dense_intermediate_size"])
            continue
        shapes[top + "gate.weight"] = (X, E)
        for expert in range(X):
            shapes |= swiglu_shapes(f"{top}experts.{expert}.", E, F)
    return shapes


def llada2_shapes(config, merged=False):
    E, D, V, X = config["hidden_size"], config["head_dim"], config["vocab_size"], config["num_experts"]
    H, G, F = config["num_attention_heads"], config["num_key_value_heads"], config["moe_intermediate_size"]
    shapes = {"model.word_embeddings.weight": (V, E), "model.norm.weight": (E,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, E)
    for i in range(config["num_hidden_layers"]):
        top = f"model.layers.{i}."
        block = {"query_key_value": ((H + 2 * G) * D, E), "query_layernorm": (D,), "key_layernorm": (D,)}
        block |= {"dense": (E, H * D)}
        shapes |= {f"{top}attention.{name}.weight": shape for name, shape in block.items()}
        shapes |= {top + "input_layernorm.weight": (E,), top + "post_attention_layernorm.weight": (E,)}
        if i < config["first_k_dense_replace"]:
            shapes |= swiglu_shapes(top + "mlp.", E, config["intermediate_size"])
            continue
        shapes |= {top + "mlp.gate.weight": (X, E), top + "mlp.gate.expert_bias": (X,)}
        shapes |= swiglu_shapes(top + "mlp.shared_experts.", E, F * config["num_shared_experts"])
        if merged:
            stacked = {"gate_proj": (X, F, E), "up_proj": (X, F, E), "down_proj": (X, E, F)}
            shapes |= {f"{top}mlp.experts.{name}": shape for name, shape in stacked.items()}
            continue
        for expert in range(X):
            shapes |= swiglu_shapes(f"{top}mlp.experts.{expert}.", E, F)
    return shapes


def smdm_shapes(config):
    E, F, V, G = config["n_embd"], config["intermediate_size"], config["padded_vocab_size"], config["n_query_groups"]
    fused = (config["n_head"] + 2 * G) * E // config["n_head"]
    shapes = {"lm_head.weight": (V, E), "transformer.wte.weight": (V + 1, E), "transformer.ln_f.weight": (E,)}
    for i in range(config["n_layer"]):
        block = {"norm_1": (E,), "norm_2": (E,), "attn.attn": (fused, E), "attn.proj": (E, E)}
        block |= {"mlp.swiglu.w1": (F, E), "mlp.swiglu.w2": (F, E), "mlp.swiglu.w3": (E, F)}
        shapes |= {f"transformer.h.{i}.{name}.weight": shape for name, shape in block.items()}
    return shapes


@dataclass(frozen=True)
class Layout:
    """A family's tiny checkpoint: config, keys with shapes, and what is to be found: ``block`` of blocks, ``shift``.

    ``asked``: what must be passed to load it; ``tied``: the field that ties the head to the embedding, None for none.
    """

    config: dict
    shapes: Callable
    block: int | None = None
    shift: bool = False
    asked: str | None = None
    mask: int = M
    tied: str | None = "tie_word_embeddings"

    def write(self, folder, dtype=torch.float32, **changed):
        """Its folder, fields of config.json changed; a mask of None is no token of the tokenizer."""
        tokenizer = {"mask": None} if self.mask >= VOCAB else {"mask": self.mask}
        return write(folder, self.config | changed, self.shapes(self.config | changed), dtype, **tokenizer)


LAYOUTS = {
    "llada": Layout(LLADA | {"n_kv_heads": 2}, llada_shapes, tied="weight_tying"),
    "dream": Layout(DREAM, qwen2_shapes, shift=True),
    "llada_moe": Layout(LLADA_MOE, llada_moe_shapes),
    "llada2": Layout(LLADA2, llada2_shapes, block=32),
    "llada2_merged": Layout(
        LLADA2 | {"model_type": "llada2_moe_veomni"}, partial(llada2_shapes, merged=True), block=32
    ),
    "sdar": Layout(SDAR, partial(qwen2_shapes, bias=False, norms=True), block=4),
    "diffullama": Layout(DIFFULLAMA, partial(qwen2_shapes, bias=False), shift=True, asked="diffullama", mask=11),
    "illada": Layout(ILLADA, partial(qwen2_shapes, bias=False), mask=5),
    "smdm": Layout(SMDM, smdm_shapes, mask=VOCAB, tied=None),
}
"""Large models' families on the network they share, by name."""
