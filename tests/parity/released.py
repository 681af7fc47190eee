"""Released checkpoints in each family's layout, tiny and random, and a slow forward to check them by.

The layouts (keys, shapes, config fields) and the forward are written out from the description of the network,
independently of the code under test.
"""

import json
import math
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import save_file

from redraft import runs
from redraft.data import build_tokenizer

E, H, C, LAYERS, L = 16, 2, 6, 2, 6
HEAD = E // H
K = 13
"""Clean tokens, as many as the toy tokenizer has."""

HF = {"hidden_dim": E, "n_heads": H, "cond_dim": C, "n_blocks": LAYERS, "model_length": L, "dropout": 0.1}
MDLM = {"model_type": "mdlm", "vocab_size": K + 1, "time_conditioning": False, "return_dict": False, **HF}
BD3 = MDLM | {"model_type": "bd3lm", "block_size": 2, "cross_attn": True, "adaln": True, "causal": False}
BD3 |= {"attn_backend": "flex", "var_min": True, "sampling_eps_min": 1e-3, "sampling_eps_max": 0.999}
UDLM = MDLM | {"model_type": "udlm", "vocab_size": K, "time_conditioning": True, "cfg": False, "cfg_num_classes": -1}
DUO = {"model_type": "DUO", "vocab_size": K + 1, "causal": False, "var_min": True, **HF}
HYDRA = {"hidden_size": E, "cond_dim": C, "length": L, "n_blocks": LAYERS, "n_heads": H, "dropout": 0.1}
SEDD = {"tokens": K, "graph": {"type": "absorb"}, "noise": {"type": "loglinear"}}
SEDD |= {"model": HYDRA | {"scale_by_sigma": True}}
RADD = {"tokens": K, "noise": {"type": "loglinear"}, "model": HYDRA}
GIDD = {"model_type": "dit", "vocab_size": K + 1, "max_seq_len": L, "hidden_size": E, "timestep_cond_dim": C}
GIDD |= {"num_hidden_layers": LAYERS, "num_attention_heads": H, "attention_dropout": 0.0, "p_uniform": 0.2}
GIDD |= {"t_eps": 1e-4}


@dataclass(frozen=True)
class Layout:
    """What a folder of a family looks like, and how its forward differs from the plain one."""

    family: str
    config: dict
    prefix: str = ""
    timed: bool = True
    norm_bias: bool = False
    classes: int | None = None
    table: bool = False
    bounds: bool = False
    clock: str = "nothing"
    pattern: str = "full"
    process: dict = field(default_factory=dict)

    @property
    def states(self):
        return self.config.get("vocab_size", self.config.get("tokens", 0) + 1)


B = "backbone."
UNIFORM, HYBRID = {"name": "uniform"}, {"name": "hybrid", "uniform_share": 0.2}
LAYOUTS = {
    "mdlm": Layout("mdlm", MDLM, B),
    "mdlm-timed": Layout("mdlm", MDLM | {"time_conditioning": True}, B, clock="sigma"),
    "bd3lm": Layout("bd3lm", BD3, B, bounds=True, pattern="block"),
    "bd3lm-timed": Layout("bd3lm", BD3 | {"time_conditioning": True}, B, bounds=True, clock="sigma", pattern="block"),
    "bd3lm-one-block": Layout("bd3lm", BD3 | {"block_size": L}, B, bounds=True),
    "bd3lm-full": Layout("bd3lm", BD3 | {"cross_attn": False, "var_min": False}, B),
    "bd3lm-ar": Layout(
        "bd3lm",
        BD3 | {"causal": True, "adaln": False, "cross_attn": False, "var_min": False},
        B,
        timed=False,
        pattern="causal",
    ),
    "udlm": Layout("udlm", UDLM, B, clock="sigma", process=UNIFORM),
    "udlm-guided": Layout(
        "udlm", UDLM | {"cfg": True, "cfg_num_classes": 3}, B, classes=4, clock="sigma", process=UNIFORM
    ),
    "duo": Layout("duo", DUO, B, clock="sigma", process=UNIFORM),
    "sedd": Layout("sedd", SEDD, clock="sigma"),
    "radd": Layout("radd", RADD, timed=False, norm_bias=True),
    "gidd": Layout("gidd", GIDD, table=True, clock="t", process=HYBRID),
    "gidd-masked": Layout("gidd", GIDD | {"p_uniform": 0.0}, table=True, clock="t"),
}
layouts = pytest.mark.parametrize("name", LAYOUTS)


def shapes(layout):
    """The keys of a layout without its prefix, and their shapes."""
    found = {"vocab_embed.embedding": (layout.states, E), "output_layer.norm_final.weight": (E,)}
    found |= {"output_layer.linear.weight": (layout.states, E), "output_layer.linear.bias": (layout.states,)}
    for i in range(LAYERS):
        found |= {
            f"blocks.{i}.{key}": shape
            for key, shape in {
                "norm1.weight": (E,),
                "norm2.weight": (E,),
                "attn_qkv.weight": (3 * E, E),
                "attn_out.weight": (E, E),
                "mlp.0.weight": (4 * E, E),
                "mlp.0.bias": (4 * E,),
                "mlp.2.weight": (E, 4 * E),
                "mlp.2.bias": (E,),
            }.items()
        }
    if layout.norm_bias:
        found |= {key.replace("weight", "bias"): (E,) for key in list(found) if "norm" in key}
    if layout.timed:
        found |= {"sigma_map.mlp.0.weight": (C, 256), "sigma_map.mlp.0.bias": (C,)}
        found |= {"sigma_map.mlp.2.weight": (C, C), "sigma_map.mlp.2.bias": (C,)}
        for where, parts in [*((f"blocks.{i}", 6) for i in range(LAYERS)), ("output_layer", 2)]:
            found |= {
                f"{where}.adaLN_modulation.weight": (parts * E, C),
                f"{where}.adaLN_modulation.bias": (parts * E,),
            }
    if layout.classes:
        found["cond_map.embedding_table.weight"] = (layout.classes, C)
    if layout.table:
        found |= {f"rotary_emb.{one}_cached": (1, L, 3, 1, HEAD) for one in ("cos", "sin")}
    else:
        found["rotary_emb.inv_freq"] = (HEAD // 2,)
    return found


def random_tensors(layout, dtype=torch.float32):
    """Random values, none of them special, so that nothing can be recomputed unnoticed."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        layout.prefix + key: 0.4 * torch.randn(shape, generator=generator) for key, shape in shapes(layout).items()
    }
    for key in list(tensors):
        if key.endswith("_cached"):  # both halves of a head turn by the same angles
            half = tensors[key][..., : HEAD // 2]
            tensors[key] = torch.cat([half, half], dim=-1)
    if layout.bounds:
        tensors |= {"sampling_eps_min": torch.tensor(0.3), "sampling_eps_max": torch.tensor(0.8)}
    return {key: value.to(dtype) for key, value in tensors.items()}


def write(path, layout, tokenizer=True, dtype=torch.float32, **changed):
    path.mkdir(exist_ok=True, parents=True)
    (path / "config.json").write_text(json.dumps(layout.config | changed, indent=3))
    save_file(random_tensors(layout, dtype), path / "model.safetensors", metadata={"format": "pt"})
    if tokenizer:
        build_tokenizer("toy").save(path)
    return path


def load(path, layout):
    return runs.load(write(path, layout))


# --------------------------------------------------------------------------------------------------- the slow forward


def layer_norm(w, key, x):
    y = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, correction=0, keepdim=True) + 1e-5) * w[key + ".weight"]
    return y + w[key + ".bias"] if key + ".bias" in w else y


def linear(w, key, x):
    y = x @ w[key + ".weight"].T
    return y + w[key + ".bias"] if key + ".bias" in w else y


def time_code(w, layout, t, label):
    if not layout.timed:
        return None
    told = {"nothing": 0.0, "sigma": -math.log(1 - 0.999 * t), "t": min(max(t, 1e-4), 1 - 1e-4)}[layout.clock]
    angles = [told * 10_000 ** (-i / 128) for i in range(128)]
    features = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)
    hidden = torch.nn.functional.silu(linear(w, "sigma_map.mlp.0", features))
    code = torch.nn.functional.silu(linear(w, "sigma_map.mlp.2", hidden))
    if layout.classes:
        code = code + torch.nn.functional.silu(w["cond_map.embedding_table.weight"][label])
    return code


def turned(w, layout, vector, position):
    """A head's query or key, its pairs (i, i + half) rotated by the position's angles."""
    half = HEAD // 2
    result = vector.clone()
    for i in range(half):
        if layout.table:
            cos, sin = (w[f"rotary_emb.{one}_cached"][0, position, 0, 0, i] for one in ("cos", "sin"))
        else:
            angle = position * w["rotary_emb.inv_freq"][i]
            cos, sin = angle.cos(), angle.sin()
        a, b = vector[i], vector[i + half]
        result[i], result[i + half] = a * cos - b * sin, b * cos + a * sin
    return result


def slow_row(w, layout, z, t, label):
    """Logits (L, V) of one row, position by position, head by head."""
    length = len(z)
    z = [K - 1, *z[:-1]] if layout.pattern == "causal" else z
    sees = {
        "full": lambda i, j: True,
        "causal": lambda i, j: j <= i,
        "block": lambda i, j: j // 2 <= i // 2,
    }[layout.pattern]
    code = time_code(w, layout, t, label)
    x = torch.stack([w["vocab_embed.embedding"][token] for token in z])
    for layer in range(LAYERS):
        at = f"blocks.{layer}"
        zero, one = torch.zeros(E, dtype=torch.float64), torch.ones(E, dtype=torch.float64)
        parts = (zero, zero, one, zero, zero, one)
        if code is not None:
            parts = linear(w, f"{at}.adaLN_modulation", code).split(E)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = parts
        qkv = linear(w, f"{at}.attn_qkv", layer_norm(w, f"{at}.norm1", x) * (1 + scale_msa) + shift_msa)
        y = torch.zeros_like(x)
        for head in range(H):
            lanes = slice(head * HEAD, (head + 1) * HEAD)
            q = [turned(w, layout, qkv[i, :E][lanes], i) for i in range(length)]
            k = [turned(w, layout, qkv[i, E : 2 * E][lanes], i) for i in range(length)]
            for i in range(length):
                keys = [j for j in range(length) if sees(i, j)]
                weights = torch.softmax(torch.stack([q[i] @ k[j] / math.sqrt(HEAD) for j in keys]), dim=0)
                y[i, lanes] = sum(weight * qkv[j, 2 * E :][lanes] for weight, j in zip(weights, keys, strict=True))
        x = x + gate_msa * linear(w, f"{at}.attn_out", y)
        h = linear(w, f"{at}.mlp.0", layer_norm(w, f"{at}.norm2", x) * (1 + scale_mlp) + shift_mlp)
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + gate_mlp * linear(w, f"{at}.mlp.2", h)
    x = layer_norm(w, "output_layer.norm_final", x)
    if code is not None:
        shift, scale = linear(w, "output_layer.adaLN_modulation", code).split(E)
        x = x * (1 + scale) + shift
    return linear(w, "output_layer.linear", x)


def slow_logits(layout, z, t, label):
    w = {key.removeprefix(layout.prefix): value.double() for key, value in random_tensors(layout).items()}
    return torch.stack(
        [slow_row(w, layout, row, time, label) for row, time in zip(z.tolist(), t.tolist(), strict=True)]
    )
