"""The verbaliser: a causal language model that is told a sentence vector as soft tokens and writes its text."""

import math
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.data import Tokenizer
from redraft.data.tokenizers import pretrained as pretrained_tokenizer
from redraft.dglm import pretrained
from redraft.dglm.config import VerbaliserConfig
from redraft.dglm.encoder import padded
from redraft.models.hub import quiet
from redraft.randomness import Generators, categorical, rand, randn
from redraft.sampling.contract import tempered


class Verbaliser(nn.Module):
    """p(continuation | vector, prefix): [soft tokens of the vector] [prefix] [continuation] [end].

    ``decoder`` is any causal ``transformers`` model that takes ``inputs_embeds``; ``soften`` a net of one hidden layer
    from the vector (B, D) to n embeddings. The vector is read through noise of variance ``config.noise``, in training
    so that proposals, which are not quite encodings, are read too, and then in writing so that it is the same input.
    """

    def __init__(self, decoder: Any, tokenizer: Tokenizer, dim: int, config: VerbaliserConfig) -> None:
        super().__init__()
        if tokenizer.eos_id is None:
            raise ValueError("the decoder's tokenizer has no token for the end of a text; pass one that has")
        self.decoder, self.tokenizer, self.config, self.end = decoder, tokenizer, config, tokenizer.eos_id
        self.width = int(decoder.get_input_embeddings().weight.shape[1])
        self.soften = nn.Sequential(
            nn.Linear(dim, self.width), nn.GELU(), nn.Linear(self.width, config.soft_tokens * self.width)
        )
        self.room(config.prefix, config.length)

    @classmethod
    def load(cls, name: str, dim: int, config: VerbaliserConfig, local: bool = False) -> Self:
        """With the decoder of a folder or Hub id and a fresh ``soften``; with ``local`` nothing is asked of the Hub.

        Errors: ``ValueError`` if it cannot be had.
        """
        from transformers import AutoModelForCausalLM

        decoder = pretrained.model(AutoModelForCausalLM, name, "decoder", local=local)
        made = Tokenizer.load(name) if Path(name).is_dir() else pretrained_tokenizer(name)
        return cls(decoder, made, dim, config)

    def save(self, folder: Path) -> None:
        """The decoder and its tokenizer; ``soften`` is kept elsewhere."""
        with quiet():
            self.decoder.save_pretrained(folder)
        self.tokenizer.save(folder)

    def room(self, prefix: int, length: int) -> None:
        """Errors: ``ValueError`` if the decoder has too few positions for so many tokens."""
        most = getattr(self.decoder.config, "max_position_embeddings", None)
        needed = self.config.soft_tokens + prefix + length
        if most is not None and needed > most:
            raise ValueError(
                f"{self.config.soft_tokens} soft tokens, {prefix} of the prefix and {length} to write are {needed}: "
                f"the decoder has {most} positions; shorten the prefix or the length"
            )

    def told(self, x: Tensor, ids: Tensor, generator: Generators) -> Tensor:
        """The soft tokens of x (B, D), then ``ids`` (B, P): embeddings (B, soft tokens + P, E)."""
        noisy = renoised(x.to(self.decoder.dtype), self.config.noise, generator)
        soft = self.soften(noisy).unflatten(-1, (self.config.soft_tokens, self.width))
        return torch.cat([soft, self.decoder.get_input_embeddings()(ids)], 1)

    def loss(
        self, x: Tensor, prefixes: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], noise: Generators
    ) -> Tensor:
        """Mean cross-entropy of the continuations' tokens, the end among them: nats per token, ().

        Of a prefix the last ``config.prefix`` tokens are read, and, with probability ``config.drop``, none; of a
        continuation the first ``config.length`` are learnt.
        """
        hidden = (rand((len(x),), noise) < self.config.drop).tolist()
        kept = [
            [] if hide else list(prefix[max(0, len(prefix) - self.config.prefix) :])
            for prefix, hide in zip(prefixes, hidden, strict=True)
        ]
        wanted = [[*row, self.end][: self.config.length] for row in continuations]
        ids, valid = padded([a + b for a, b in zip(kept, wanted, strict=True)], x.device)
        starts = torch.tensor([len(prefix) for prefix in kept], device=x.device)[:, None]
        learnt = valid & (torch.arange(ids.shape[1], device=x.device) >= starts)
        soft = self.config.soft_tokens
        attend = torch.cat([valid.new_ones(len(ids), soft), valid], 1).long()
        logits = self.decoder(inputs_embeds=self.told(x, ids, noise), attention_mask=attend).logits
        return F.cross_entropy(logits[:, soft - 1 : -1][learnt].float(), ids[learnt])

    @torch.no_grad()
    def write(
        self,
        x: Tensor,
        prefix: Sequence[int],
        length: int,
        generators: Sequence[torch.Generator],
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> list[list[int]]:
        """A continuation of ``prefix`` for each vector, x (B, D): ids up to the end of the text, ``length`` at most.

        Row r draws from its own generator only. Errors: ``ValueError`` if the decoder has too few positions.
        """
        from transformers import GenerationConfig, LogitsProcessorList

        self.room(len(prefix), length)
        ids = torch.tensor(list(prefix), dtype=torch.long, device=x.device).expand(len(x), -1)
        embeds = self.told(x, ids, generators)
        # generate fills up the settings it is passed with the decoder's own, so a copy that shares its weights has ours
        decoder = copy(self.decoder)
        decoder.generation_config = GenerationConfig(
            max_new_tokens=length, do_sample=False, eos_token_id=self.end, pad_token_id=self.end
        )
        written = decoder.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=x.device),
            logits_processor=LogitsProcessorList([RowDraw(generators, temperature, top_p, self.tokenizer.K)]),
        )
        return [row[: row.index(self.end)] if self.end in row else row for row in written.tolist()]


class RowDraw:
    """``generate`` as a sampler whose every row has its own generator: all but the token drawn is ruled out.

    transformers draws all rows from one stream, in which a row's place, and so its text, depends on the others.
    """

    def __init__(self, generators: Generators, temperature: float, top_p: float, tokens: int) -> None:
        """``tokens``: how many of the outputs stand for a token; released decoders have spare ones."""
        self.generators, self.temperature, self.top_p, self.tokens = generators, temperature, top_p, tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (B, V) to 0 at the token drawn and -inf elsewhere."""
        probs = tempered(scores[:, : self.tokens], self.temperature, self.top_p)
        drawn = categorical(probs[:, None], self.generators)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


def renoised(x: Tensor, variance: float, generator: Generators = None) -> Tensor:
    """sqrt(1 - variance) x + sqrt(variance) eps, of x's shape (B, D)."""
    eps = randn(x.shape, generator, x.device)
    return math.sqrt(1 - variance) * x + (math.sqrt(variance) * eps).to(x)
