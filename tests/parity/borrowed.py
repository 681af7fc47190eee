"""Layouts of families on networks of ``transformers``, and those networks written out from their papers.

In float64 and numpy, one row at a time.
"""

from math import erf

import numpy as np

from parity.checkpoints import EOS, VOCAB, Layout, M

PAD = 5
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCAB,
}
SPECIAL = {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": EOS, "mask_token_id": M}
BERT = SIZES | SPECIAL | {
    "architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_act": "gelu", "max_position_embeddings": 64,
    "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "position_embedding_type": "absolute",
}  # fmt: skip
ROBERTA = BERT | {
    "architectures": ["RobertaForMaskedLM"], "model_type": "roberta", "max_position_embeddings": 70,
    "type_vocab_size": 1, "layer_norm_eps": 1e-5,
}  # fmt: skip
MODERN = SIZES | SPECIAL | {
    "architectures": ["ModernBertForMaskedLM"], "model_type": "modernbert", "num_hidden_layers": 3, "norm_eps": 1e-5,
    "hidden_activation": "gelu", "global_attn_every_n_layers": 2, "global_rope_theta": 160000.0, "norm_bias": False,
    "local_attention": 4, "local_rope_theta": 10000.0, "max_position_embeddings": 64, "mlp_bias": False,
    "attention_bias": False, "decoder_bias": True, "classifier_bias": False, "cls_token_id": 2, "sep_token_id": EOS,
    "tie_word_embeddings": True,
}  # fmt: skip
GPT = {
    "architectures": ["DiscreteDiffusionModel"], "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4,
    "n_positions": 64, "n_ctx": 64, "vocab_size": VOCAB, "activation_function": "gelu_new", "bos_token_id": EOS,
    "layer_norm_epsilon": 1e-5, "eos_token_id": EOS, "mask_token_id": M, "attn_pdrop": 0.1, "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
}  # fmt: skip


def linears(shapes):
    """Weights and biases of layers of these shapes, outputs first."""
    return {
        f"{name}.{part}": one
        for name, shape in shapes.items()
        for part, one in (("weight", shape), ("bias", shape[:1]))
    }


def encoder_shapes(config, top):
    E, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes = {f"{top}embeddings.word_embeddings.weight": (V, E)}
    shapes[f"{top}embeddings.position_embeddings.weight"] = (config["max_position_embeddings"], E)
    shapes[f"{top}embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], E)
    made = {"embeddings.LayerNorm": (E,)}
    for i in range(config["num_hidden_layers"]):
        p = f"encoder.layer.{i}."
        made |= {f"{p}attention.self.{name}": (E, E) for name in ("query", "key", "value")}
        made |= {f"{p}attention.output.dense": (E, E), f"{p}attention.output.LayerNorm": (E,)}
        made |= {f"{p}intermediate.dense": (F, E), f"{p}output.dense": (E, F), f"{p}output.LayerNorm": (E,)}
    return shapes | linears({top + name: shape for name, shape in made.items()})


def bert_shapes(config):
    E, V, head = config["hidden_size"], config["vocab_size"], "cls.predictions.transform."
    shapes = encoder_shapes(config, "bert.") | {"cls.predictions.bias": (V,)}
    return shapes | linears({head + "dense": (E, E), head + "LayerNorm": (E,)})


def google_shapes(config):
    """As the first release has it: norms by old names, and what pretraining needed besides."""
    shapes = {old_name(name): shape for name, shape in bert_shapes(config).items()}
    return shapes | linears({"bert.pooler.dense": (32, 32), "cls.seq_relationship": (2, 32)})


def old_name(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def roberta_shapes(config):
    E, V = config["hidden_size"], config["vocab_size"]
    shapes = encoder_shapes(config, "roberta.") | {"lm_head.bias": (V,)}
    return shapes | linears({"lm_head.dense": (E, E), "lm_head.layer_norm": (E,)})


def modern_shapes(config):
    E, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes = {"model.embeddings.tok_embeddings.weight": (V, E), "model.embeddings.norm.weight": (E,)}
    shapes |= {"model.final_norm.weight": (E,), "head.dense.weight": (E, E), "head.norm.weight": (E,)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes |= {f"{p}attn_norm.weight": (E,)} if i else {}
        shapes |= {f"{p}attn.Wqkv.weight": (3 * E, E), f"{p}attn.Wo.weight": (E, E), f"{p}mlp_norm.weight": (E,)}
        shapes |= {f"{p}mlp.Wi.weight": (2 * F, E), f"{p}mlp.Wo.weight": (E, F)}
    return shapes | {"decoder.bias": (V,)}


def gpt_shapes(config):
    E, V = config["n_embd"], config["vocab_size"]
    shapes = {"embed_tokens.weight": (V, E), "lm_head.weight": (V, E)}
    shapes["denoise_model.wpe.weight"] = (config["n_positions"], E)
    made = {"ln_f": (E, E)}
    for i in range(config["n_layer"]):
        made |= {f"h.{i}.ln_1": (E, E), f"h.{i}.ln_2": (E, E), f"h.{i}.attn.c_attn": (E, 3 * E)}
        made |= {f"h.{i}.attn.c_proj": (E, E), f"h.{i}.mlp.c_fc": (E, 4 * E), f"h.{i}.mlp.c_proj": (4 * E, E)}
    for name, (rows, columns) in made.items():  # inputs first
        p = f"denoise_model.{name}."
        shapes |= {p + "weight": (E,) if "ln_" in name else (rows, columns), p + "bias": (columns,)}
    return shapes


LAYOUTS = {
    "bert": Layout(BERT, bert_shapes),
    "google": Layout(BERT, google_shapes),
    "roberta": Layout(ROBERTA, roberta_shapes),
    "modernbert": Layout(MODERN, modern_shapes),
    "diffugpt": Layout(GPT, gpt_shapes, shift=True, asked="diffugpt"),
}

# ---------------------------------------------------------------------------------------------------- plain networks


def normed(x, w, p, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[p + "weight"] + w.get(p + "bias", 0.0)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def gelu_new(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attended(q, k, v, H, reads):
    """Heads apart, (L, E) each; ``reads`` (L, L) bool, query by key."""
    D, out = q.shape[1] // H, np.zeros_like(q)
    for h in range(H):
        part = slice(h * D, (h + 1) * D)
        score = np.where(reads, q[:, part] @ k[:, part].T / np.sqrt(D), -np.inf)
        share = np.exp(score - score.max(-1, keepdims=True))
        out[:, part] = share / share.sum(-1, keepdims=True) @ v[:, part]
    return out


def linear(w, p, x):
    return x @ w[p + "weight"].T + w.get(p + "bias", 0.0)


def plain_bert(config, w, z, reads, top="bert.", first=0):
    """Norms behind each part; the head is the embedding, after a layer of its own."""
    w = {name.replace("gamma", "weight").replace("beta", "bias"): value for name, value in w.items()}
    eps, at = config["layer_norm_eps"], np.arange(len(z)) + first
    e = top + "embeddings."
    x = w[e + "word_embeddings.weight"][z] + w[e + "position_embeddings.weight"][at]
    x = normed(x + w[e + "token_type_embeddings.weight"][0], w, e + "LayerNorm.", eps)
    for i in range(config["num_hidden_layers"]):
        p = f"{top}encoder.layer.{i}."
        q, k, v = (linear(w, f"{p}attention.self.{name}.", x) for name in ("query", "key", "value"))
        read = linear(w, p + "attention.output.dense.", attended(q, k, v, config["num_attention_heads"], reads))
        x = normed(x + read, w, p + "attention.output.LayerNorm.", eps)
        fed = linear(w, p + "output.dense.", gelu(linear(w, p + "intermediate.dense.", x)))
        x = normed(x + fed, w, p + "output.LayerNorm.", eps)
    dense, norm, bias = HEADS[top]
    return normed(gelu(linear(w, dense, x)), w, norm, eps) @ w[e + "word_embeddings.weight"].T + w[bias]


HEADS = {
    "bert.": ("cls.predictions.transform.dense.", "cls.predictions.transform.LayerNorm.", "cls.predictions.bias"),
    "roberta.": ("lm_head.dense.", "lm_head.layer_norm.", "lm_head.bias"),
}


def plain_roberta(config, w, z, reads):
    return plain_bert(config, w, z, reads, "roberta.", config["pad_token_id"] + 1)


def turned(x, H, theta):
    """Rotary angles, halves of a head paired."""
    D = x.shape[1] // H
    angle = np.arange(len(x))[:, None] * theta ** -(np.arange(D // 2) / (D // 2))
    out = np.zeros_like(x)
    for h in range(H):
        a, b = x[:, h * D : h * D + D // 2], x[:, h * D + D // 2 : (h + 1) * D]
        out[:, h * D : (h + 1) * D] = np.hstack(
            [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
        )
    return out


def plain_modern(config, w, z, reads):
    """Norms before each part, rotary angles, every other layer with a window, a gate on what is fed."""
    eps, H, at = config["norm_eps"], config["num_attention_heads"], np.arange(len(z))
    near = np.abs(at[:, None] - at) <= config["local_attention"] // 2
    x = normed(w["model.embeddings.tok_embeddings.weight"][z], w, "model.embeddings.norm.", eps)
    for i in range(config["num_hidden_layers"]):
        p, local = f"model.layers.{i}.", i % config["global_attn_every_n_layers"] != 0
        a = normed(x, w, p + "attn_norm.", eps) if i else x
        q, k, v = np.split(linear(w, p + "attn.Wqkv.", a), 3, axis=1)
        theta = config["local_rope_theta" if local else "global_rope_theta"]
        read = attended(turned(q, H, theta), turned(k, H, theta), v, H, reads & near if local else reads)
        x = x + linear(w, p + "attn.Wo.", read)
        value, gate = np.split(linear(w, p + "mlp.Wi.", normed(x, w, p + "mlp_norm.", eps)), 2, axis=1)
        x = x + linear(w, p + "mlp.Wo.", gelu(value) * gate)
    x = normed(gelu(linear(w, "head.dense.", normed(x, w, "model.final_norm.", eps))), w, "head.norm.", eps)
    return x @ w["model.embeddings.tok_embeddings.weight"].T + w["decoder.bias"]


def plain_gpt(config, w, z, reads):
    """GPT-2, whose linear layers have inputs first, and its answers moved by one."""
    eps, d = config["layer_norm_epsilon"], "denoise_model."
    x = w["embed_tokens.weight"][z] + w[d + "wpe.weight"][: len(z)]
    for i in range(config["n_layer"]):
        p = f"{d}h.{i}."
        made = normed(x, w, p + "ln_1.", eps) @ w[p + "attn.c_attn.weight"] + w[p + "attn.c_attn.bias"]
        read = attended(*np.split(made, 3, axis=1), config["n_head"], reads)
        x = x + read @ w[p + "attn.c_proj.weight"] + w[p + "attn.c_proj.bias"]
        fed = gelu_new(normed(x, w, p + "ln_2.", eps) @ w[p + "mlp.c_fc.weight"] + w[p + "mlp.c_fc.bias"])
        x = x + fed @ w[p + "mlp.c_proj.weight"] + w[p + "mlp.c_proj.bias"]
    said = normed(x, w, d + "ln_f.", eps) @ w["lm_head.weight"].T
    return np.concatenate([said[:1], said[:-1]])


PLAIN = {
    "bert": plain_bert, "google": plain_bert, "roberta": plain_roberta, "modernbert": plain_modern,
    "diffugpt": plain_gpt,
}  # fmt: skip
