"""A tiny DiffusionGemma, and what it computes, plainly: numpy, float64, one row, from the stored tensors alone.

Written from its config's fields and from facts read off ``transformers``' class (orders, scales, what is shared); no
code is shared with that or with the package. An encoder reads the text, causally, and keeps the keys and values of
every layer. A decoder of the same weights reads the canvas, every token of it, and those keys. Shapes: T text, C
canvas, L tokens, M keys, E width, D of a head, H heads of queries, G of keys, V vocabulary.
"""

import numpy as np

from parity.borrowed import PAD, gelu_new
from parity.checkpoints import EOS, VOCAB
from parity.plain import heads, rms, softmax

ANGLES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
TEXT = {
    "model_type": "diffusion_gemma_text", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16,
    "num_global_key_value_heads": 1, "sliding_window": 4, "num_experts": 4, "top_k_experts": 2, "pad_token_id": PAD,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "moe_intermediate_size": 16, "eos_token_id": EOS,
    "max_position_embeddings": 64, "bos_token_id": 2, "rms_norm_eps": 1e-6, "rope_parameters": ANGLES,
}  # fmt: skip
VISION = {
    "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8,
    "num_attention_heads": 2, "num_key_value_heads": 2, "patch_size": 2, "position_embedding_size": 8,
}  # fmt: skip
CANVAS = 8
DECODER, ENCODER = "model.decoder.", "model.encoder.language_model."


def diffusion_gemma(config, w, text, canvas, before=None):
    """Logits (C, V) of ``canvas`` (C,) behind ``text`` (T,); ``before`` (C, V): the probabilities said before, if any.

    config: "text_config" of config.json, with the cap of the logits, which files may leave out.
    """
    table, eps = w[DECODER + "embed_tokens.weight"], config["rms_norm_eps"]
    scale, T, C = table.shape[1] ** 0.5, len(text), len(canvas)
    kept = encoded(config, w, table[text] * scale) if T else [None] * config["num_hidden_layers"]
    x = conditioned(w, table[canvas] * scale, None if before is None else before @ table * scale, eps)
    for i, kind in enumerate(config["layer_types"]):
        # of the text a layer with a window reads what the first token behind it would; of the canvas every token
        near = kind == "full_attention" or np.arange(T + C) > T - config["sliding_window"]
        reads = np.broadcast_to(near | (np.arange(T + C) >= T), (C, T + C))
        x, _ = layer(config, w, i, x, np.arange(T, T + C), reads, w[f"{DECODER}layers.{i}.layer_scalar"], kept[i])
    logits = rms(x, w[DECODER + "norm.weight"], eps) @ table.T
    return config["final_logit_softcapping"] * np.tanh(logits / config["final_logit_softcapping"])


def encoded(config, w, x):
    """Keys and values (G, T, D) of every layer; the decoder's weights, but the factor of a layer is the encoder's."""
    at, kept = np.arange(len(x)), []
    away = at[:, None] - at
    for i, kind in enumerate(config["layer_types"]):
        reads = (away >= 0) & (kind == "full_attention" or away < config["sliding_window"])
        x, found = layer(config, w, i, x, at, reads, w[f"{ENCODER}layers.{i}.layer_scalar"])
        kept.append(found)
    return kept


def conditioned(w, x, soft, eps):
    """The canvas as the first layer reads it: x and what a small network makes of ``soft``, the embedding expected."""
    p = DECODER + "self_conditioning."
    told = 0.0 if soft is None else gated(rms(soft, w[p + "pre_norm.weight"], eps), *matrices(w, p))
    return rms(x + told, 1.0, eps)


def layer(config, w, i, x, at, reads, factor, kept=None):
    """x (L, E) after layer i, and its keys and values; ``kept``: those before. ``reads`` (L, M), ``at`` (L,)."""
    p, eps = f"{DECODER}layers.{i}.", config["rms_norm_eps"]

    def norm(name, y):
        return rms(y, w[f"{p}{name}.weight"], eps)

    said, kept = attended(config, w, i, norm("input_layernorm", x), at, reads, kept)
    x = x + norm("post_attention_layernorm", said)
    dense = gated(norm("pre_feedforward_layernorm", x), *matrices(w, p + "mlp."))
    routed = experts(config, w, p, norm("pre_feedforward_layernorm_2", x), x)
    fed = norm("post_feedforward_layernorm_1", dense) + norm("post_feedforward_layernorm_2", routed)
    return (x + norm("post_feedforward_layernorm", fed)) * factor, kept


def attended(config, w, i, x, at, reads, kept):
    """What attention says, and keys and values. Scores are not scaled: queries and keys have norms of their own."""
    p, eps = f"{DECODER}layers.{i}.self_attn.", config["rms_norm_eps"]
    D = len(w[p + "q_norm.weight"])

    def made(name):
        y = x @ w[f"{p}{name}_proj.weight"].T
        return heads(y, y.shape[1] // D)

    angles = at[:, None] * speeds(config["rope_parameters"][config["layer_types"][i]], D)
    q = turned(rms(made("q"), w[p + "q_norm.weight"], eps), angles)
    k = turned(rms(made("k"), w[p + "k_norm.weight"], eps), angles)
    # layers that read everything have no matrix for values: those are the keys before their norm and angles
    v = rms(made("v" if p + "v_proj.weight" in w else "k"), 1.0, eps)
    if kept is not None:
        k, v = (np.concatenate(pair, axis=1) for pair in zip(kept, (k, v), strict=True))
    shared, out = len(q) // len(k), []
    for h in range(len(q)):
        share = softmax(np.where(reads, q[h] @ k[h // shared].T, -np.inf))
        out.append(share @ v[h // shared])
    return np.concatenate(out, axis=1) @ w[p + "o_proj.weight"].T, (k, v)


def speeds(rope, D):
    """Radians per position of the D / 2 pairs; of "proportional" angles the last pairs stand still."""
    pair = np.arange(D // 2)
    moving = pair < rope.get("partial_rotary_factor", 1.0) * D // 2
    return moving * rope["rope_theta"] ** (-2 * pair / D)


def turned(x, angles):
    """x (H, L, D), numbers j and j + D / 2 of a head a pair; ``angles`` (L, D / 2)."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], axis=-1)


def gated(x, gate, up, down):
    return (gelu_new(x @ gate.T) * (x @ up.T)) @ down.T


def matrices(w, p):
    return [w[f"{p}{one}_proj.weight"] for one in ("gate", "up", "down")]


def experts(config, w, p, x, stream):
    """The best experts by what flows past the layer, their shares made to sum to one, then each times its own factor.

    They are told x, which has a norm; ``stream`` is without one and has that of the router.
    """
    out, E = np.zeros_like(x), x.shape[1]
    asked = rms(stream, w[p + "router.scale"], config["rms_norm_eps"]) / E**0.5
    shares = softmax(asked @ w[p + "router.proj.weight"].T)
    for n, share in enumerate(shares):
        best = np.argsort(-share)[: config["top_k_experts"]]
        for e in best:
            gate, up = np.split(w[p + "experts.gate_up_proj"][e], 2)
            weight = share[e] / share[best].sum() * w[p + "router.per_expert_scale"][e]
            out[n] += weight * gated(x[n], gate, up, w[p + "experts.down_proj"][e])
    return out
