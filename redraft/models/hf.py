"""Our denoiser as a ``transformers`` model, for Auto classes, the Trainer and the Hub.

Importing this module registers it: afterwards ``AutoModelForMaskedLM.from_pretrained(folder)`` reads what
``redraft.models.folder`` wrote, and ``save_pretrained`` writes what that reads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from redraft.models.folder import ARCHITECTURE, MODEL_TYPE
from redraft.models.transformer import Block, Transformer, TransformerConfig
from redraft.processes import Facts, Process


class RedraftConfig(PreTrainedConfig):
    """``transformer``: the fields of ``TransformerConfig``, the process among them. ``about``: any JSON values."""

    model_type = MODEL_TYPE

    def __init__(
        self, transformer: Mapping[str, Any] | None = None, about: Mapping[str, Any] | None = None, **common: Any
    ) -> None:
        self.transformer = dict(transformer or {})
        self.about = dict(about or {})
        super().__init__(**common)


class RedraftForMaskedLM(PreTrainedModel):
    """``forward(input_ids, t)`` gives ``logits`` (B, L, K): log-probabilities of the clean tokens.

    It is a denoiser too, ``model.denoiser``. ``t`` may be left out for models that do not read it.
    """

    config_class = RedraftConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _no_split_modules = [Block.__name__]  # noqa: RUF012

    def __init__(self, config: RedraftConfig) -> None:
        super().__init__(config)
        self.model = Transformer(TransformerConfig(**config.transformer))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        if isinstance(module, Transformer):
            module.initialise()

    @property
    def denoiser(self) -> Transformer:
        return self.model

    @property
    def facts(self) -> Facts:
        return self.model.facts

    @property
    def process(self) -> Process:
        return self.model.process

    def forward(
        self, input_ids: Tensor, t: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> MaskedLMOutput:
        if t is None:
            if self.model.time_conditioned:
                raise ValueError("this model is conditioned on the time: pass t of shape (B,)")
            t = input_ids.new_ones(len(input_ids), dtype=torch.float64)
        cond = None if attention_mask is None else {"segments": attention_mask.long()}  # padding is a segment apart
        return MaskedLMOutput(logits=self.model(input_ids, t, cond))


AutoConfig.register(MODEL_TYPE, RedraftConfig, exist_ok=True)
AutoModelForMaskedLM.register(RedraftConfig, RedraftForMaskedLM, exist_ok=True)
assert RedraftForMaskedLM.__name__ == ARCHITECTURE
