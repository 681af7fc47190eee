"""A language model one can talk to: process, denoiser and tokenizer together, whatever the family."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft.data import Tokenizer, load_text
from redraft.evaluation import Likelihood, likelihood, variety
from redraft.models import Transformer, folder
from redraft.processes import Process
from redraft.randomness import Device, derive
from redraft.sampling import Callback, Sampler, Samples, sample

_POSITIONS_AT_ONCE = 4096
"""Rows times length drawn together; rows do not depend on their neighbours, so it changes no text."""


@dataclass(frozen=True)
class Generation:
    """Texts as written, prompt included, with what they cost and the seeds that write each of them again, alone."""

    texts: list[str]
    samples: Samples

    @property
    def text(self) -> str:
        """The first text."""
        return self.texts[0]

    @property
    def tokens(self) -> Tensor:
        """(B, L) ids."""
        return self.samples.tokens

    def to_dict(self) -> dict[str, Any]:
        """``samples`` with text and seed; ``nfe`` and ``positions``, what they cost; and how varied the rows are."""
        pairs = zip(self.texts, self.samples.seeds, strict=True)
        return {
            "samples": [{"text": text, "seed": seed} for text, seed in pairs],
            "nfe": self.samples.nfe,
            "positions": self.samples.positions,
            **variety(self.tokens.tolist()),
        }


class LM:
    """``process``, ``denoiser`` and ``tokenizer``; ``context`` is the length trained on, ``about`` what was stored."""

    def __init__(self, denoiser: Transformer, tokenizer: Tokenizer, about: dict[str, Any]) -> None:
        self.denoiser, self.tokenizer, self.about = denoiser, tokenizer, about
        self.context: int = about["context"]

    @classmethod
    def load(cls, path: str | Path, device: Device = None) -> "LM":
        """The model in a folder. Errors: ``ValueError`` naming what is missing, damaged or does not fit."""
        denoiser, about = folder.load(path, device)
        tokenizer = Tokenizer.load(path)
        K = denoiser.config.process["K"]
        if tokenizer.K != K:
            raise ValueError(f"{path}: the tokenizer has {tokenizer.K} tokens, the model {K}; they are not a pair")
        if not isinstance(about.get("context"), int):
            raise ValueError(f"{path}: config.json is damaged, it says nothing of about.context; copy the folder again")
        return cls(denoiser, tokenizer, about)

    @property
    def process(self) -> Process:
        return self.denoiser.process

    @property
    def device(self) -> torch.device:
        return self.denoiser.head.weight.device

    def encode(self, text: str) -> list[int]:
        """Ids of a text; text that spells a special token is text."""
        return self.tokenizer.encode(text, pad=False)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids, (L,)."""
        return self.tokenizer.decode(ids.tolist() if isinstance(ids, Tensor) else ids)

    def generate(
        self,
        prompt: str = "",
        *,
        length: int | None = None,
        num: int = 1,
        steps: int | None = None,
        sampler: str | Sampler | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        callback: Callback | None = None,
    ) -> Generation:
        """Continue ``prompt`` by ``length`` tokens (to the end of the trained context unless given).

        The other options are those of ``sample``. Errors: ``ValueError`` when prompt and length exceed the context.
        """
        ids = self.encode(prompt)
        length = self.context - len(ids) if length is None else length
        if not 0 < length <= self.context - len(ids):
            raise ValueError(
                f"a prompt of {len(ids)} tokens and {length} to write do not fit the {self.context} positions trained "
                f"on: pass length from 1 to {self.context - len(ids)}, or a shorter prompt"
            )
        return self._write([*ids, *[None] * length], num, seed, seeds, callback, steps, sampler, temperature)

    def infill(
        self,
        text: str,
        *,
        num: int = 1,
        steps: int | None = None,
        sampler: str | Sampler | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        callback: Callback | None = None,
    ) -> Generation:
        """Fill the gaps of ``text``: ``[MASK]`` is one token, ``[MASK:3]`` three; ``\\[MASK]`` is the text itself.

        Errors: ``ValueError`` for a text without gaps, or longer than the trained context.
        """
        row = self.tokenizer.encode_template(text)
        if len(row) > self.context:
            raise ValueError(f"the text has {len(row)} tokens, the model was trained on {self.context}: shorten it")
        return self._write(row, num, seed, seeds, callback, steps, sampler, temperature)

    def _write(
        self,
        row: Sequence[int | None],
        num: int,
        seed: int,
        seeds: Sequence[int] | None,
        callback: Callback | None,
        steps: int | None,
        sampler: str | Sampler | None,
        temperature: float,
    ) -> Generation:
        """Draw texts of one canvas, None where it is free, so many rows at a time that memory stays bounded."""
        if num < 1:
            raise ValueError(f"num={num}: draw at least one row")
        seeds = [derive(seed, i) for i in range(num)] if seeds is None else seeds
        at_once = max(1, _POSITIONS_AT_ONCE // len(row))
        parts = [
            sample(
                self.process,
                self.denoiser,
                canvas=torch.tensor([0 if token is None else token for token in row]),
                frozen=torch.tensor([token is not None for token in row]),
                seeds=seeds[start : start + at_once],
                steps=steps,
                sampler=sampler,
                temperature=temperature,
                callback=callback,
                device=self.device,
            )
            for start in range(0, len(seeds), at_once)
        ]
        tokens = torch.cat([part.tokens for part in parts])
        nfe, positions = max(part.nfe for part in parts), sum(part.positions for part in parts)
        return Generation([self.decode(one) for one in tokens], Samples(tokens, nfe, positions, list(seeds)))

    def evaluate(
        self, source: str | Path, *, draws: int = 4, rows: int | None = None, seed: int = 0, text_field: str = "text"
    ) -> Likelihood:
        """The bound on a text (file, folder, embedded corpus), in rows of the trained context; see ``likelihood``."""
        packed = load_text(source, self.tokenizer, self.context, text_field, self.about.get("isolate_documents", False))
        return likelihood(self.denoiser, self.process, packed, draws=draws, rows=rows, seed=seed, device=self.device)

    def save(self, path: str | Path) -> None:
        """Store the model as a folder that ``LM.load`` and ``transformers`` read."""
        folder.save(path, self.denoiser.config, self.denoiser.state_dict(), self.tokenizer, self.about)
