"""What released networks compute, once more and plainly: numpy, float64, one row of ids, from the stored tensors alone.

Nothing here is shared with the package. Each function takes config.json, the tensors by their names in the files, the
ids (L,) and which keys each query reads, (L, L) bool; it returns the head's logits as they stand, (L, V).
"""

import numpy as np


def rms(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def swiglu(x, gate, up, down):
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def rope(x, positions, theta, turned):
    """x (L, D): numbers j and j + turned / 2 of the first ``turned`` are a pair, turned by p theta^(-2 j / turned)."""
    y, half = x.copy(), turned // 2
    for j in range(half):
        angle = positions * theta ** (-2 * j / turned)
        a, b = x[:, j], x[:, j + half]
        y[:, j], y[:, j + half] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    return y


def attention(q, k, v, reads, theta, positions, turned):
    """Heads of queries (H, L, D), of keys and values (G, L, D); consecutive heads of queries share one of those."""
    shared, out = len(q) // len(k), []
    for h in range(len(q)):
        query = rope(q[h], positions, theta, turned)
        key = rope(k[h // shared], positions, theta, turned)
        score = query @ key.T / np.sqrt(query.shape[1])
        out.append(softmax(np.where(reads, score, -np.inf)) @ v[h // shared])
    return np.concatenate(out, axis=-1)


def heads(x, count):
    return x.reshape(len(x), count, -1).transpose(1, 0, 2)


def llada(config, w, ids, reads, positions=None):
    """Sections 1.1 to 1.3."""
    positions = np.arange(len(ids)) if positions is None else positions
    H, G, eps = config["n_heads"], config["n_kv_heads"], config["rms_norm_eps"]
    D = config["d_model"] // H
    x = w["model.transformer.wte.weight"][ids]
    for i in range(config["n_layers"]):
        p = f"model.transformer.blocks.{i}."
        a = rms(x, w[p + "attn_norm.weight"], eps)
        q, k, v = (heads(a @ w[f"{p}{one}_proj.weight"].T, n) for one, n in (("q", H), ("k", G), ("v", G)))
        x = x + attention(q, k, v, reads, config["rope_theta"], positions, D) @ w[p + "attn_out.weight"].T
        f = rms(x, w[p + "ff_norm.weight"], eps)
        x = x + swiglu(f, *(w[f"{p}{one}.weight"] for one in ("ff_proj", "up_proj", "ff_out")))
    head = w["model.transformer.wte.weight" if config["weight_tying"] else "model.transformer.ff_out.weight"]
    return rms(x, w["model.transformer.ln_f.weight"], eps) @ head.T


def llama(config, w, ids, reads, positions=None, feed=None):
    """The network in Llama's words: sections 1.11, 1.12, 2.3 and 9.1; biases and norms where there are such tensors."""
    positions = np.arange(len(ids)) if positions is None else positions
    H, G, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    x = w["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        a, made = rms(x, w[p + "input_layernorm.weight"], eps), []
        for one, n in (("q", H), ("k", G), ("v", G)):
            y = a @ w[f"{p}self_attn.{one}_proj.weight"].T + w.get(f"{p}self_attn.{one}_proj.bias", 0.0)
            y, norm = heads(y, n), w.get(f"{p}self_attn.{one}_norm.weight")
            made.append(y if norm is None else rms(y, norm, eps))
        turned = made[0].shape[-1]
        read = attention(*made, reads, config["rope_theta"], positions, turned)
        x = x + read @ w[p + "self_attn.o_proj.weight"].T
        f = rms(x, w[p + "post_attention_layernorm.weight"], eps)
        x = x + (feed or dense)(config, w, p + "mlp.", f)
    head = w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return rms(x, w["model.norm.weight"], eps) @ head.T


def dense(_config, w, p, x):
    return swiglu(x, *(w[f"{p}{one}_proj.weight"] for one in ("gate", "up", "down")))


def softmax_experts(config, w, p, x):
    """The raw softmax values of the best experts weigh what those say."""
    if p + "gate.weight" not in w:
        return dense(config, w, p, x)
    out = np.zeros_like(x)
    for n, token in enumerate(x):
        share = softmax(w[p + "gate.weight"] @ token)
        for e in np.argsort(-share, kind="stable")[: config["num_experts_per_tok"]]:
            out[n] += share[e] * dense(config, w, f"{p}experts.{e}.", token[None])[0]
    return out


def llada_moe(config, w, ids, reads, positions=None):
    """Section 1.12."""
    return llama(config, w, ids, reads, positions, softmax_experts)


def grouped_experts(config, w, p, x):
    """Sigmoids choose, with a bias, within the best groups; without it, and made to sum to one, they weigh."""
    if p + "gate.weight" not in w:
        return dense(config, w, p, x)
    X, groups, k = config["num_experts"], config["n_group"], config["num_experts_per_tok"]
    size, out = X // groups, np.zeros_like(x)
    for n, token in enumerate(x):
        score = 1 / (1 + np.exp(-(w[p + "gate.weight"] @ token)))
        choosing = score + w[p + "gate.expert_bias"]
        best = [np.sort(choosing[g * size : (g + 1) * size])[-2:].sum() for g in range(groups)]
        kept = np.argsort(-np.array(best), kind="stable")[: config["topk_group"]]
        allowed = [e for e in range(X) if e // size in kept]
        chosen = sorted(allowed, key=lambda e: -choosing[e])[:k]
        whole = sum(score[e] for e in chosen) + 1e-20
        for e in chosen:
            said = swiglu(token[None], *(one_expert(w, p, e, name) for name in ("gate", "up", "down")))[0]
            out[n] += config["routed_scaling_factor"] * score[e] / whole * said
    return out + dense(config, w, p + "shared_experts.", x)


def one_expert(w, p, e, name):
    """An expert's tensor, stored alone or, merged, as an entry of its layer's."""
    alone = w.get(f"{p}experts.{e}.{name}_proj.weight")
    return w[f"{p}experts.{name}_proj"][e] if alone is None else alone


def llada2(config, w, ids, reads, positions=None):
    """Section 1.13."""
    positions = np.arange(len(ids)) if positions is None else positions
    H, G, D = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    eps, turned = config["rms_norm_eps"], config["rotary_dim"]
    x = w["model.word_embeddings.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        fused = rms(x, w[p + "input_layernorm.weight"], eps) @ w[p + "attention.query_key_value.weight"].T
        q, k, v = np.split(fused, [H * D, (H + G) * D], axis=-1)
        q = rms(heads(q, H), w[p + "attention.query_layernorm.weight"], eps)
        k = rms(heads(k, G), w[p + "attention.key_layernorm.weight"], eps)
        read = attention(q, k, heads(v, G), reads, config["rope_theta"], positions, turned)
        x = x + read @ w[p + "attention.dense.weight"].T
        x = x + grouped_experts(config, w, p + "mlp.", rms(x, w[p + "post_attention_layernorm.weight"], eps))
    head = w["model.word_embeddings.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return rms(x, w["model.norm.weight"], eps) @ head.T


def smdm(config, w, ids, reads, positions=None):
    """Section 3, lit-gpt's layout: the fused rows are, group by group, its queries, its keys, its values."""
    positions = np.arange(len(ids)) if positions is None else positions
    H, G, E, eps = config["n_head"], config["n_query_groups"], config["n_embd"], config["norm_eps"]
    D, shared = E // H, H // G
    x = w["transformer.wte.weight"][ids]
    for i in range(config["n_layer"]):
        p, q, k, v = f"transformer.h.{i}.", [], [], []
        fused = rms(x, w[p + "norm_1.weight"], eps) @ w[p + "attn.attn.weight"].T
        for g in range(G):
            part = [fused[:, (g * (shared + 2) + n) * D :][:, :D] for n in range(shared + 2)]
            q += part[:shared]
            k.append(part[shared])
            v.append(part[shared + 1])
        read = attention(np.stack(q), np.stack(k), np.stack(v), reads, 10_000.0, positions, D)
        x = x + read @ w[p + "attn.proj.weight"].T
        f = rms(x, w[p + "norm_2.weight"], eps)
        x = x + swiglu(f, *(w[f"{p}mlp.swiglu.w{n}.weight"] for n in (1, 2, 3)))
    return rms(x, w["transformer.ln_f.weight"], eps) @ w["lm_head.weight"].T


def blocks(length, size):
    """A query reads the keys of its own block and of those before."""
    number = np.arange(length) // size
    return number[:, None] >= number[None, :]


def shifted(logits):
    """What is said at i is of token i + 1; token 0 keeps its own."""
    return np.concatenate([logits[:1], logits[:-1]])
