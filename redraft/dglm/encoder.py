"""A text as one vector: the mean of an encoder's last states over the text's tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from redraft.dglm import pretrained
from redraft.models.hub import quiet

_AT_ONCE = 64


class Encoder:
    """A ``transformers`` encoder, never trained here, with its tokenizer. It reads ``length`` tokens of a text."""

    def __init__(self, model: Any, tokenizer: Any, length: int) -> None:
        most = getattr(model.config, "max_position_embeddings", None)
        if most is not None and length > most:
            raise ValueError(f"encoder.length={length}: this encoder has {most} positions; ask for no more")
        self.model, self.tokenizer, self.length = model.requires_grad_(False), tokenizer, length
        self.dim = int(model.config.hidden_size)

    @classmethod
    def load(cls, name: str, length: int, local: bool = False) -> Self:
        """From a folder or Hub id: an encoder, or a model such as T5 whose encoder half ``transformers`` can take.

        With ``local`` nothing is asked of the Hub, whatever the folder says.

        Errors: ``ValueError`` for one that cannot be had, and for another kind of model.
        """
        from transformers import AutoModel, AutoModelForTextEncoding
        from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

        config = pretrained.config(name, "encoder", local)
        halves = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING
        if config.is_encoder_decoder and not halves:
            raise ValueError(f"encoder {name!r}: transformers cannot take the encoder of a {config.model_type}; use T5")
        auto = AutoModelForTextEncoding if halves else AutoModel
        # a pooler stands on top of the states that are read here
        model = pretrained.model(auto, name, "encoder", spare="pooler.", local=local)
        return cls(model, pretrained.tokenizer(name, "encoder", local), length)

    def save(self, folder: Path) -> None:
        with quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> Tensor:
        """One vector a text, (n, D) float32; texts are read in the order given, a few at a time."""
        parts = [self._vectors(texts[i : i + _AT_ONCE]) for i in range(0, len(texts), _AT_ONCE)]
        return torch.cat(parts) if parts else torch.empty(0, self.dim, device=self.model.device)

    def _vectors(self, texts: Sequence[str]) -> Tensor:
        read: Any = self.tokenizer(list(texts), split_special_tokens=True, truncation=True, max_length=self.length)
        rows: list[list[int]] = read["input_ids"]
        ids, valid = padded(rows, self.model.device)
        states = self.model(input_ids=ids, attention_mask=valid.long()).last_hidden_state
        weight = valid[..., None].to(states)
        return (states * weight).sum(1) / weight.sum(1).clamp_min(1.0)


def padded(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """ids and validity, (B, L) each, L the longest row's; zeros stand after the shorter ones."""
    length = max(1, *map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(length, device=device) < lengths[:, None]


class Standard(nn.Module):
    """x = (vector - mean) / std, coordinate by coordinate, both fitted on the training data and stored."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, vectors: Tensor) -> None:
        """A coordinate that does not vary keeps std 1."""
        self.mean = vectors.mean(0)
        std = vectors.std(0, correction=0)
        self.std = torch.where(std > 1e-6 * (1 + self.mean.abs()), std, 1.0)

    def forward(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) / self.std
