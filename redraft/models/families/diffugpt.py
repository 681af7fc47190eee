"""DiffuGPT: GPT-2 made to denoise, its answers still shifted by one (Gong et al. 2410.17891).

config.json is GPT-2's (huggingface.co/diffusionfamily/diffugpt-s, diffugpt-m), so the name of the repository or the
caller tells it from an autoregressive model. Keys are those of a body without its embedding, and a head of its own.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from redraft import processes
from redraft.models.backbone import BackboneDenoiser, Meaning
from redraft.models.borrowed import borrow
from redraft.models.families.a2d import base_config
from redraft.models.families.base import Family, Fields, Known, mask_id, named_ids
from redraft.models.families.unread import Unread
from redraft.models.weights import Piece, Shards

MASK, MASK_ID = "[MASK]", 50257
"""The token added behind GPT-2's own, unless the tokenizer's files or config.json say another."""
NAMES = {
    "backbone.network.transformer.wte.": "embed_tokens.",
    "backbone.network.transformer.": "denoise_model.",
    "backbone.network.": "",
}
"""How our names begin, and theirs."""
CAUSES = (".attn.bias", ".attn.masked_bias")
"""Which keys were read: all of them, so old releases store nothing but True."""


class DiffuGPT(BackboneDenoiser):
    """GPT-2's network, opened, and what else its files hold."""

    def __init__(self, config: Any, meaning: Meaning, other: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(borrow(config), meaning)
        self.unread = Unread(other)


def reads(fields: Fields) -> Known:
    """DiffuGPT: GPT-2's network, masks, answers shifted by one; ask for it by name (Gong et al. 2410.17891)."""
    fields.refuse(add_cross_attention=False, reorder_and_upcast_attn=False)
    rows = fields("vocab_size", int)
    config = base_config(Fields(fields.path, {**fields.values, "model_type": "gpt2"}))
    config.tie_word_embeddings = False
    meaning = Meaning(processes.masked(rows, mask_id=mask_id(fields, rows, MASK_ID, MASK)), shift=True)
    names = Shards(fields.path.parent).shapes
    other = {name: shape for name, shape in names.items() if name.endswith(CAUSES)}
    context = fields("n_positions", int)
    return Known(lambda: DiffuGPT(config, meaning, other), context, named_ids(fields, rows))


def pieces(model: nn.Module) -> list[Piece]:
    """The embedding and the head beside the body, which is ``denoise_model``."""
    assert isinstance(model, DiffuGPT)
    return [Piece(_stored(model, name), name) for name in model.state_dict()]


def _stored(model: DiffuGPT, name: str) -> str:
    if name.startswith("unread."):
        return model.unread.stored(name)
    ours = next(ours for ours in NAMES if name.startswith(ours))
    return NAMES[ours] + name.removeprefix(ours)


FAMILY = Family(
    "diffugpt",
    lambda config: False,
    reads,
    pieces,
    decoding={"sampler": "ancestral", "temperature": 0.9, "top_p": 0.9, "steps": 64},
    under=("gpt2",),
)
