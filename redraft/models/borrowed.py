"""Networks of ``transformers``' own classes as a denoiser reads with them: causal models, opened, and masked ones.

Whatever the class, its body is told which keys each query reads, so that nothing is causal unless the pattern is; and
its own head answers. Shapes: B batch, L length, M keys, E width, V rows of the head.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from redraft.errors import unknown
from redraft.models.layers import Cache, mixed

CAUSAL = (
    "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral",
    "olmo", "olmo2", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2",
)  # fmt: skip
"""Types of causal models known to read what the pattern says and nothing else; others may be causal in other ways."""
MASKED = ("bert", "modernbert", "roberta", "xlm-roberta")
"""Types of masked ones."""
RANDOM = ("drop", "jitter")
"""What a config calls chances whose draws would be of the global generator, and a run resumed another."""


class Computed(nn.Module):
    """A network with what is computed and not stored kept right: on the meta device, and wherever it is moved."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self._computed = _computed(network)

    def follow(self, z: Tensor) -> None:
        """Move what is computed to where z is; weights may have been put there one by one, and in other precisions.

        In float64 experts are asked one by one, since nothing multiplies groups of rows of it.
        """
        if self.network.dtype == torch.float64 and self.network.config._experts_implementation == "grouped_mm":
            self.network.set_experts_implementation("eager")
        for owner, name in self._computed:
            if (tensor := owner._buffers[name]) is not None and tensor.device != z.device:
                owner._buffers[name] = tensor.to(z.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Computed":
        """Moves and casts what is stored; what is computed is only moved: angles in bfloat16 would be other angles."""
        kept = [(owner, name, owner._buffers[name]) for owner, name in self._computed]
        super()._apply(fn, recurse)
        device = next(self.network.parameters()).device
        for owner, name, tensor in kept:
            owner._buffers[name] = tensor if tensor is None or device.type == "meta" else tensor.to(device)
        return self


class Borrowed(Computed):
    """A causal or masked language model of ``transformers`` as a ``Backbone``; ``borrow`` builds one.

    ``network``: its parameters have the names they have there, but tied ones, of which only those that are read are
    kept: the head's view of the embedding is made as it answers, so that one may be put in place of another. Layers
    with a sliding window read what stands less than a window away, on both sides, and what the pattern allows besides;
    a window of a causal model is thus the same window, opened.
    """

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        self.masked = str(network.config.model_type) in MASKED
        self.windows = windows(network.config, self.masked)
        # RoBERTa's positions begin behind that of its padding
        self._first = network.config.pad_token_id + 1 if "roberta" in network.config.model_type else 0
        self._tied = untied(network)

    @property
    def depth(self) -> int | None:
        """Layers that a ``Cache`` has of this network: its blocks, and where windows need it one of positions."""
        if self.masked:
            return None
        return self.network.config.num_hidden_layers + any(self.windows.values())

    @property
    def checkpointing(self) -> bool:
        """While training, blocks are computed again for their gradients, and keep nothing in between."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.network.modules())

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        for module in self.network.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = on
                module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def forward(
        self,
        z: Tensor,
        positions: Tensor,
        pattern: Tensor | None = None,
        cache: Cache | None = None,
        store: bool = False,
        mixture: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """What the head reads, (B, L, E); arguments as ``Decoder.forward`` has them."""
        self.follow(z)
        body, table = self.network.base_model, self.network.get_input_embeddings()
        at = positions.to(z.device).expand(z.shape)
        told: dict[str, Any] = {"input_ids": z}
        if mixture is not None:
            # some classes scale what their embedding says, as it says it
            told = {"inputs_embeds": mixed(table.weight, mixture) * getattr(table, "embed_scale", 1.0)}
        kept = cache.keys[0].shape[2] if cache is not None and cache.keys else 0
        if not self.masked:
            told |= {"use_cache": cache is not None, "past_key_values": _bridge(cache, store)}
        told["position_ids"] = at + self._first
        told["attention_mask"] = self._reads(at, pattern, kept, cache, table.weight.dtype)
        hidden = body(**told)[0]
        if cache is not None and any(self.windows.values()):
            self._places(at, cache, store)
        return hidden

    def say(self, hidden: Tensor) -> Tensor:
        """Logits (..., V), scaled and capped as the class does it: its own head, of a body that answers ``hidden``."""
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        head = whole(self.network, self._tied)
        head._modules[self.network.base_model_prefix] = _Answers(rows)
        ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=rows.device)
        logits = head(input_ids=ids).logits
        return logits.view(*hidden.shape[:-1], logits.shape[-1])

    def _places(self, at: Tensor, cache: Cache | None, store: bool) -> Tensor:
        """Where the keys stand, (B, M): those in the cache, one layer more of it, and these."""
        if cache is None:
            return at
        one = at[:, None, :, None]
        return cache.extend(self.network.config.num_hidden_layers, one, one[..., :0], store)[0][:, 0, :, 0]

    def _reads(
        self, at: Tensor, pattern: Tensor | None, kept: int, cache: Cache | None, dtype: torch.dtype
    ) -> Tensor | dict[str, Tensor]:
        """Which keys each query reads, by the kind of layer if there are several."""
        length = at.shape[1]
        if pattern is None:  # said in full, since some would take silence for a causal mask
            pattern = at.new_ones(1, 1, length, kept + length, dtype=torch.bool)
        read = dict[str, Tensor]()
        for kind, window in self.windows.items():
            read[kind] = pattern
            if window is not None:
                away = at[:, None, :, None] - self._places(at, cache, False)[:, None, None, :]
                read[kind] = pattern & (away.abs() < window)
        if self.network.config._attn_implementation == "eager":
            low = torch.finfo(dtype).min
            read = {kind: torch.zeros_like(may, dtype=dtype).masked_fill(~may, low) for kind, may in read.items()}
        return read if len(read) > 1 else next(iter(read.values()))


class _Answers(nn.Module):
    """A body that has answered already."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *told: Any, **more: Any) -> "_Said":
        return _Said(self.hidden)


class _Said:
    """What a body says of the last layer, as any class may ask for it; nothing more."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


def borrow(config: Any, masked: bool = False) -> Borrowed:
    """The network that a ``transformers`` config describes, causal or ``masked``, its weights drawn at random.

    On the meta device (``with torch.device("meta")``) it has none yet: ``weights.fill`` puts them there. What is
    computed and not stored is right either way. Nothing is dropped at random in training.

    Errors: ``ValueError`` for a type that is not in ``CAUSAL`` or ``MASKED``, or layers that are
    recurrent or attend in chunks.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    known = MASKED if masked else CAUSAL
    if config.model_type not in known:
        raise unknown("masked language model" if masked else "causal language model", config.model_type, known)
    windows(config, masked)
    config = copy.deepcopy(config)
    for name, value in config.to_dict().items():
        if isinstance(value, float) and any(part in name for part in RANDOM):
            setattr(config, name, 0.0)
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    # scores that are capped are computed by the class itself, which no fused kernel does
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return Borrowed(auto.from_config(config, attn_implementation="eager" if capped else "sdpa"))


def windows(config: Any, masked: bool) -> dict[str, int | None]:
    """How far each kind of layer reads: positions less than so many away, or all (None).

    Errors: ``ValueError`` for a kind that reads in another way.
    """
    width = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["full_attention" if width is None else "sliding_attention"]
    # a causal window counts the position itself, that of a masked model those on either side of it
    found = {"full_attention": None, "sliding_attention": None if width is None else width + masked}
    if others := sorted(set(kinds) - found.keys()):
        raise ValueError(f"{config.model_type}: layers of type {others[0]!r} cannot read what stands behind them")
    return {kind: found[kind] for kind in dict.fromkeys(kinds)}


def _bridge(cache: Cache | None, store: bool) -> Any:
    """Our cache as ``transformers`` writes to one and reads from it; theirs is never filled."""
    if cache is None:
        return None
    from transformers import DynamicCache

    bridge = DynamicCache()

    def update(
        key_states: Tensor, value_states: Tensor, layer_idx: int, *told: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        return cache.extend(layer_idx, key_states, value_states, store)

    bridge.update = update
    return bridge


def _computed(network: Any) -> list[tuple[Any, str]]:
    """Buffers that are computed and not stored; those lost on the meta device are computed again.

    By the class of the model that a module belongs to, or of the one within it.
    """
    found = list[tuple[Any, str]]()

    def visit(module: Any, model: Any) -> None:
        model = module if hasattr(module, "_init_weights") else model
        names = [name for name in module._buffers if name in module._non_persistent_buffers_set]
        found.extend((module, name) for name in names if module._buffers[name] is not None)
        lost = [name for name in names if (value := module._buffers[name]) is not None and value.is_meta]
        if lost:
            with torch.device("cpu"):
                module._buffers.update({name: torch.zeros_like(module._buffers[name], device="cpu") for name in lost})
                model._init_weights(module)
        for part in module.children():
            visit(part, model)

    visit(network, network)
    return found


def untied(network: Any) -> dict[str, str]:
    """Takes from a network the parameters that are others', and says whose they are: name to name."""
    tied = {target: source for target, source in network.all_tied_weights_keys.items() if target != source}
    for target in tied:
        owner, _, leaf = target.rpartition(".")
        network.get_submodule(owner)._parameters.pop(leaf, None)
    return tied


def whole(network: Any, tied: Mapping[str, str]) -> Any:
    """The network with all its ``tied`` parameters in place: a copy of the modules on the way to them, of no tensor."""
    copies: dict[str, Any] = {"": _shallow(network)}

    def copied(path: str) -> Any:
        if path not in copies:
            above, _, name = path.rpartition(".")
            parent = copied(above)
            copies[path] = parent._modules[name] = _shallow(parent._modules[name])
        return copies[path]

    for target, source in tied.items():
        owner, _, leaf = target.rpartition(".")
        copied(owner)._parameters[leaf] = network.get_parameter(source)
    return copies[""]


def _shallow(module: Any) -> Any:
    """A module of the same parts, any of which may be replaced in it alone."""
    one = copy.copy(module)
    one._modules, one._parameters = dict(module._modules), dict(module._parameters)
    return one
