"""BERT, RoBERTa and ModernBERT as denoisers: they fill masks, all at once or a few at a time.

DiffusionBERT (He et al. 2211.15029) is such a model trained on, BERT-Chat (github.com/ZHZisZZ/dllm) a ModernBERT that
was taught to answer. config.json and keys as released: huggingface.co/google-bert/bert-base-uncased,
FacebookAI/roberta-base, answerdotai/ModernBERT-base.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from redraft import processes
from redraft.models.backbone import BackboneDenoiser, Meaning
from redraft.models.borrowed import MASKED, borrow
from redraft.models.families.a2d import base_config
from redraft.models.families.base import Family, Fields, Known, mask_id, named_ids
from redraft.models.families.unread import Unread
from redraft.models.weights import Piece, Shards

MASKS = {
    "bert": (103, "[MASK]"),
    "modernbert": (50284, "[MASK]"),
    "roberta": (50264, "<mask>"),
    "xlm-roberta": (250001, "<mask>"),
}
"""The mask's id, which config.json does not say, and what it is called by tokenizers, whose word counts more."""
OTHERS = ("bert.pooler.", "cls.seq_relationship.", "roberta.pooler.")
"""Tensors of other tasks, pretraining's among them."""
TABLES = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Numbers that old releases stored."""
NORM, OLD = ("LayerNorm.weight", "LayerNorm.bias"), ("LayerNorm.gamma", "LayerNorm.beta")
"""What norms are made of, and what it was called before."""
TEMPLATE = (
    "{% for message in messages %}"
    "{% set part = {'system': 'SYS', 'user': 'Question', 'assistant': 'Answer'}[message['role']] %}"
    "{{ '[' ~ part ~ ']\n' ~ (message['content'] | trim) ~ '\n[/' ~ part ~ ']\n\n' }}{% endfor %}"
    "{{ '[Answer]\n' if add_generation_prompt else '' }}"
)
"""BERT-Chat's: each message between its name and the same closed, as text."""


class BertDenoiser(BackboneDenoiser):
    """A masked language model, and what else its files hold; ``old``: they call the parts of norms by their old names.

    Text stands without [CLS] and [SEP] unless they are among the ids it is given.
    """

    def __init__(self, config: Any, meaning: Meaning, other: Mapping[str, tuple[int, ...]], old: bool) -> None:
        super().__init__(borrow(config, masked=True), meaning)
        self.unread, self.old = Unread(other), old


def is_bert(config: Mapping[str, Any]) -> bool:
    """Whatever it was trained for: heads of other tasks are refused by their keys."""
    return config.get("model_type") in MASKED


def reads(fields: Fields) -> Known:
    """BERT, RoBERTa, ModernBERT, BERT-Chat, DiffusionBERT: masks, answers in place (He et al. 2211.15029)."""
    fields.refuse(
        is_decoder=False, add_cross_attention=False, position_embedding_type="absolute", sparse_prediction=False
    )
    kind, rows = fields("model_type", str), fields("vocab_size", int)
    config = base_config(fields)
    meaning = Meaning(processes.masked(rows, mask_id=mask_id(fields, rows, *MASKS[kind])))
    context = fields("max_position_embeddings", int)
    if "roberta" in kind:  # its first positions are padding's
        context -= fields.id("pad_token_id", rows) + 1
    folder = fields.path.parent
    names = Shards(folder).shapes
    old = any(name.endswith(OLD) for name in names)
    other = {name: shape for name, shape in names.items() if name.startswith(OTHERS) or name.endswith(TABLES)}
    return Known(lambda: BertDenoiser(config, meaning, other, old), context, named_ids(fields, rows))


def pieces(model: nn.Module) -> list[Piece]:
    """The names of ``transformers``, or those of before; what nobody reads under its own."""
    assert isinstance(model, BertDenoiser)
    found = list[Piece]()
    for name in model.state_dict():
        if name.startswith("unread."):
            found.append(Piece(model.unread.stored(name), name))
            continue
        stored = name.removeprefix("backbone.network.")
        for new, before in zip(NORM, OLD, strict=True):
            stored = stored.replace(new, before) if model.old else stored
        found.append(Piece(stored, name))
    return found


FAMILY = Family(
    "bert",
    is_bert,
    reads,
    pieces,
    turn="[/Answer]",
    template=TEMPLATE,
    decoding={"sampler": "low_confidence", "temperature": 0.0, "length": 128, "block": 32},
)
