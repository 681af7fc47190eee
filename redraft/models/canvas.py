"""A denoiser of one canvas of uniform noise behind a text: DiffusionGemma, by ``transformers``' own class."""

from typing import Any

import torch
from torch import Tensor

from redraft import processes
from redraft.models import heads
from redraft.models.borrowed import Computed, untied, whole
from redraft.processes import Categorical, Facts
from redraft.processes.base import OF_POSITIONS, Condition, as_condition


class CanvasDenoiser(Computed):
    """The denoiser ``(z, t, cond) -> log p`` of z (B, L), a text and the canvas behind it; log p (B, L, K).

    An encoder reads the text, causally; a decoder of the same weights reads the canvas, all of it, and what the encoder
    kept. ``given`` of ``cond``: the tokens up to the first that is not given are the text (none: there is only a
    canvas); the rest is the canvas, of ``canvas`` tokens at most. ``guess`` is what was said before of the canvas
    (self-conditioning); of single tokens it says nothing of, what stands there. A row without any is told of none.
    Nothing is told the time. Of the text the answer is what stands there.
    """

    def __init__(self, config: Any) -> None:
        from transformers import DiffusionGemmaForBlockDiffusion

        super().__init__(DiffusionGemmaForBlockDiffusion(config))
        self._tied = untied(self.network)
        self.process: Categorical = processes.uniform(config.text_config.vocab_size)
        self.canvas = int(config.canvas_length)
        self.eos_id: int | None = None
        self.pad_id: int | None = None

    @property
    def facts(self) -> Facts:
        # cross-entropy teaches p(x0 | z), z's own token included
        return Facts(posterior="full", self_conditioned=True, given=True, eos_id=self.eos_id, pad_id=self.pad_id)

    def forward(self, z: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return heads.plain(self.logits(z, cond), z, t, self.process)

    def logits(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        """The network's own numbers (B, L, K); of the text 0 where the token stands, and minus infinity elsewhere.

        Errors: ``ValueError`` for what it cannot be told, and a canvas that is too long.
        """
        cond = as_condition(cond)
        if refused := sorted(cond.keys() & {*OF_POSITIONS, "labels"}):
            raise ValueError(f"{refused[0]} told to DiffusionGemma, which knows a text and one canvas: leave it out")
        self.follow(z)
        said = standing(z, self.process.K)
        texts = cond.get("given", torch.zeros_like(z, dtype=torch.bool)).long().cumprod(1).sum(1)
        for text in texts.unique().tolist():
            free = z.shape[1] - text
            if free > self.canvas:
                raise ValueError(
                    f"{free} tokens to write, and the model was made for {self.canvas} at a time: pass "
                    f"length={self.canvas} or less, and what was written as the prompt of the next"
                )
            rows = (texts == text).nonzero().squeeze(1)
            if free:
                place = rows[:, None], torch.arange(text, z.shape[1], device=z.device)
                said = said.index_put(place, self._asked(z[rows], text, cond.get("guess"), rows).to(said))
        return said

    def _asked(self, z: Tensor, text: int, guess: Tensor | None, rows: Tensor) -> Tensor:
        """Logits of the canvases behind texts of one length, of these rows of ``guess``."""
        told: dict[str, Any] = {"input_ids": z[:, :text]} if text else {"past_key_values": self._of_no_text(z)}
        if guess is not None:
            before = guess[rows, text:]
            some, own = before.sum(-1) > 0, standing(z[:, text:], self.process.K).to(before)
            told["self_conditioning_logits"] = torch.where(some[..., None], before.log(), own)
            told["self_conditioning_mask"] = some.any(1)
        return whole(self.network, self._tied)(decoder_input_ids=z[:, text:], **told).logits

    def _of_no_text(self, z: Tensor) -> Any:
        """What the encoder keeps of nothing."""
        from transformers import DynamicCache

        config = self.network.config.get_text_config()
        cache = DynamicCache(config=config)
        for number, layer in enumerate(self.network.model.decoder.layers):
            keys = layer.self_attn.k_proj
            width = layer.self_attn.head_dim
            empty = keys.weight.new_zeros(len(z), keys.out_features // width, 0, width)
            cache.update(empty, empty, number)
        return cache


def standing(z: Tensor, K: int) -> Tensor:
    """Logits (B, L, K) of what stands there: 0 of it, minus infinity elsewhere."""
    return torch.full((*z.shape, K), -torch.inf, device=z.device).scatter_(-1, z[..., None], 0.0)
