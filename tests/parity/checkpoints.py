"""Tiny checkpoints of large models' families, in their exact layouts, filled by a rule that any language can follow.

Keys, shapes and config fields are written out here, independently of the code under test. What the networks say was
computed by the released code on these weights (``GOLDEN_IDS`` and the numbers in the tests).
"""

import json
import zlib

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
    names = {mask: "<|mask|>", eos: "<|end|>", **dict(specials)}
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


def qwen2_shapes(config, bias=True):
    E, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    G = E // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (V, E), "model.norm.weight": (E,), "lm_head.weight": (V, E)}
    for i in range(config["num_hidden_layers"]):
        rows = {"q_proj": E, "k_proj": G, "v_proj": G}
        block = {f"self_attn.{name}.weight": (n, E) for name, n in rows.items()}
        if bias:
            block |= {f"self_attn.{name}.bias": (n,) for name, n in rows.items()}
        block |= {"self_attn.o_proj.weight": (E, E), "mlp.gate_proj.weight": (F, E), "mlp.up_proj.weight": (F, E)}
        block |= {"mlp.down_proj.weight": (E, F), "input_layernorm.weight": (E,)}
        block |= {"post_attention_layernorm.weight": (E,)}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    return shapes
