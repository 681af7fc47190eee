"""Tiny causal models of every style, as ``transformers`` itself writes them, and what they say in float64."""

import copy

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from parity.checkpoints import VOCAB, tokenizer_files

_LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
STYLES = {
    "llama": _LLAMA | {"rope_theta": 500.0},
    "qwen2": _LLAMA | {"tie_word_embeddings": True, "use_sliding_window": False},
    "qwen3": _LLAMA | {"tie_word_embeddings": True, "head_dim": 16},
    "mistral": _LLAMA | {"sliding_window": None, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gemma2": _LLAMA | {"head_dim": 8, "sliding_window": 5},
    "gemma3_text": _LLAMA | {"head_dim": 8, "sliding_window": 5},
}
OWN = ("llama", "qwen2", "qwen3", "mistral")
"""Those that our own network computes."""


def base(folder, style="llama", rows=VOCAB, tokens=VOCAB, **fields):
    """A random causal model in ``folder``, of ``rows`` ids, with a tokenizer of ``tokens`` that declares no mask."""
    config = AutoConfig.for_model(style, vocab_size=rows, bos_token_id=0, eos_token_id=1, **(STYLES[style] | fields))
    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = AutoModelForCausalLM.from_config(config)
        for tensor in network.parameters():  # biases and norms too, so that none is a mere 0 or 1
            torch.nn.init.normal_(tensor, mean=float(tensor.detach().mean().round()), std=0.2)
    network.save_pretrained(folder)
    tokenizer_files(folder, vocab=tokens)
    return network.eval()


class _Angles(torch.nn.Module):
    """cos and sin of position theta^(-2 j / D) in float64: theirs are float32 whatever the weights are."""

    def __init__(self, theta, width):
        super().__init__()
        self.theta, self.width = theta, width

    def forward(self, x, position_ids, *_more):
        frequency = self.theta ** -(torch.arange(0, self.width, 2).double() / self.width)
        angle = position_ids[..., None].double() * frequency
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos(), angle.sin()


class _Norm(torch.nn.Module):
    """x / rms(x) times a weight, in float64: theirs is float32 whatever the weights are."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def exact(network, style):
    """The network in float64 throughout, where ours is: what ``transformers`` computes itself stays as it is."""
    network = copy.deepcopy(network).double()
    if style in OWN:
        config = network.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        network.model.rotary_emb = _Angles(config.rope_parameters["rope_theta"], width)
        for owner in list(network.modules()):
            for name, module in owner.named_children():
                if type(module).__name__.endswith("RMSNorm"):
                    setattr(owner, name, _Norm(module))
    return network
