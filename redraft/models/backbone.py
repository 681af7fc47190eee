"""A released network as a denoiser: what its logits mean, and which ids it knows.

Shapes: B batch, L length, K clean tokens, E width.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.models import contexts, heads
from redraft.models.layers import Cache
from redraft.processes import Categorical, Facts
from redraft.processes.base import Attention, Condition, as_condition


class Backbone(Protocol):
    """A network that reads ids at positions, with a pattern and a cache, and answers in two steps; see ``Decoder``.

    ``depth``: the layers it keeps in a cache, or None for one that keeps nothing. ``checkpointing``: see ``Decoder``.
    """

    @property
    def depth(self) -> int | None: ...

    @property
    def checkpointing(self) -> bool: ...

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None: ...

    def __call__(
        self,
        z: Tensor,
        positions: Tensor,
        pattern: Tensor | None = None,
        cache: Cache | None = None,
        store: bool = False,
        mixture: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor: ...

    def say(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Meaning:
    """What the logits of a network mean.

    ``shift``: those at position i are of token i + 1, as autoregressive models have them (Dream, DiffuLLaMA); the
    first token, of a text or of a segment, then has its own, and is never asked about in earnest. ``attention`` and
    ``block``: see ``Facts``.
    """

    process: Categorical
    shift: bool = False
    attention: Attention = "full"
    block: int | None = None

    def __post_init__(self) -> None:
        if (self.attention == "block") != (self.block is not None):
            raise ValueError(f"attention={self.attention!r} with block={self.block}: they go together, set both")
        if self.attention == "causal" and not self.shift:
            raise ValueError("causal attention without a shift: what is said of a token would be told the token itself")
        if self.shift and self.attention == "block":
            raise ValueError(
                "shifted logits with block attention: the first token of a block would be answered for by another "
                "block; drop the shift"
            )


class BackboneDenoiser(nn.Module):
    """The denoiser ``(z, t, cond) -> log p`` over clean tokens, (B, L, K); no network here is told the time.

    z: (B, L) ids; cond: a ``Condition`` (padding is a segment apart). ``where`` (B, L) bool asks for those positions
    only, (n, K): the head, which is much of a large model, then answers for no others. ``eos_id``, ``pad_id``: whoever
    has a tokenizer sets them.
    """

    def __init__(self, backbone: Backbone, meaning: Meaning) -> None:
        super().__init__()
        self.meaning = meaning
        self.backbone = backbone
        self.eos_id: int | None = None
        self.pad_id: int | None = None

    @property
    def process(self) -> Categorical:
        return self.meaning.process

    @property
    def blocks(self) -> nn.ModuleList:
        """The network's layers, its first list of modules: what training shards, and what Muon updates."""
        assert isinstance(self.backbone, nn.Module)
        return next(one for one in self.backbone.modules() if isinstance(one, nn.ModuleList))

    @property
    def checkpointing(self) -> bool:
        """While training, blocks are computed again for their gradients, and keep nothing in between."""
        return self.backbone.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.backbone.checkpointing = on

    @property
    def facts(self) -> Facts:
        return Facts(
            attention=self.meaning.attention,
            block=self.meaning.block,
            mask_id=self.process.mask_id,
            eos_id=self.eos_id,
            pad_id=self.pad_id,
            shifted=self.meaning.shift,
            selective=True,
            caches=self.backbone.depth is not None,
            states=self.process.mask_id is not None,
        )

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        where: Tensor | None = None,
        states: bool = False,
    ) -> Tensor:
        logits = self.logits(z, cond, where)[..., : self.process.V if states else self.process.K]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (heads.plain if states else heads.subs)(wide, z, t, self.process)

    def logits(self, z: Tensor, cond: Condition | None = None, where: Tensor | None = None) -> Tensor:
        """The network's own numbers, as they stand: (B, L, V), or (n, V) of the positions ``where``, after the shift.

        Errors: ``ValueError`` for ``labels``, of which these networks know none.
        """
        cond = as_condition(cond)
        if "labels" in cond:
            raise ValueError("labels told to a model that was trained without any: leave them out")
        positions = cond.get("positions", torch.arange(z.shape[1], device=z.device))
        pattern = contexts.readable(z, cond, self.meaning.attention, self.meaning.block, self.process.mask_id)
        if pattern is None and self.meaning.attention == "causal":
            pattern = contexts.up_to(positions).view(-1, 1, z.shape[1], z.shape[1])
        told = cond.get("cache"), cond.get("store", False), cond.get("mixture")
        hidden = self.backbone(z, positions, pattern, *told)
        if self.meaning.shift:
            hidden = self._shifted(hidden, positions, cond)
        return self.backbone.say(hidden if where is None else hidden[where])

    def _shifted(self, hidden: Tensor, positions: Tensor, cond: Condition) -> Tensor:
        """What is said at i moved to i + 1, (B, L, E); what begins, a text or a segment, keeps its own.

        A cache keeps what the head reads too, as one layer more: the first position of a block is answered for by what
        stands before the block.
        """
        before, cache = hidden[:, :1], cond.get("cache")
        if cache is not None:
            assert self.backbone.depth is not None
            kept = cache.extend(self.backbone.depth, hidden[:, None], hidden[:, None, :, :0], cond.get("store", False))[
                0
            ]
            first = int(positions.flatten()[0])
            before = kept[:, 0, first - 1 : first] if first else before
        moved = torch.cat([before, hidden[:, :-1]], dim=1)
        if "segments" not in cond:
            return moved
        segments = cond["segments"]
        begins = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0))
        return torch.where(begins[..., None], hidden, moved)
