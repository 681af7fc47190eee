"""Our denoiser: a transformer that reads a noisy canvas whole and names the clean token at every position.

Shapes: B batch, L length, K clean tokens, V input states, D codebook width, E model width.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from redraft import processes
from redraft.errors import unknown
from redraft.models import contexts, heads
from redraft.models.layers import (
    TIME_FEATURES,
    Block,
    Reading,
    alike,
    chosen,
    mixed,
    norm,
    placed,
    preserve_variance,
    time_features,
    widths,
)
from redraft.models.vectors import Reads, VectorInput
from redraft.processes import Facts, Gaussian, Process
from redraft.processes.base import Attention, Condition, as_condition, per_position

FULL = ("gaussian", "spindle", "learned")
"""Processes whose bound teaches the full posterior."""


@dataclass(frozen=True)
class TransformerConfig:
    """What rebuilds a ``Transformer``: the process's facts, the dial ``depth``, how it reads and answers, two ids."""

    process: dict[str, Any]
    depth: int = 4
    time_conditioned: bool = False
    attention: Attention = "full"
    block: int | None = None
    head: str | None = None
    reads: Reads | None = None
    self_conditioned: bool = False
    eos_id: int | None = None
    pad_id: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Transformer(nn.Module):
    """The denoiser ``(z, t, cond) -> log p`` over clean tokens, (B, L, K).

    z: (B, L) ids, or (B, L, D) vectors for a Gaussian process, which ``reads`` says how to read (``VectorInput``;
    ``mixture`` unless given). cond: None or a ``Condition``. ``where`` (B, L) bool asks for those positions only and
    returns (n, K), in row-major order. A model whose head predicts vectors (``heads.VECTORS``) answers
    ``vectors=True`` with the clean vectors themselves, (B, L, D).

    t: (B,) or (B, L), told to the blocks only when ``time_conditioned``. The exact denoiser needs it for uniform and
    hybrid noise; among masks it is free of t, and a mixture is read knowing t already. Among vectors it is told as the
    place of gamma(t) between the ends that the schedule starts with, so that a schedule may change.

    ``attention``: see ``Facts``. A causal model is the autoregressive baseline: it reads [MASK], z_1 .. z_{L-1}. A
    permuted one reads every token that is not [MASK], and [MASK] only at the position itself. ``head``: see ``heads``.

    A block model carries in ``noise_range`` the mask rates it is trained at, a choice that training renews
    (``objectives.blocks``).

    Errors: ``ValueError`` for attention other than full with anything but a masked process, block attention without a
    block or the reverse, a head that does not fit the process, ``reads`` or ``self_conditioned`` among ids, vectors
    read as they are by a model that is not told the time; when called, for ``labels``, of which it knows none.
    """

    def __init__(self, config: TransformerConfig, tensors: Mapping[str, Tensor] | None = None) -> None:
        """``tensors`` are those that the process keeps among the weights (``processes.tensors_of``); else zeros."""
        super().__init__()
        self.config = config
        sizes = widths(config.depth)
        stored = config.process
        _check(config)
        self.is_gaussian = stored["name"] == "gaussian"
        self.time_conditioned = config.time_conditioned
        self._kept = processes.tensors_of(stored)
        self._built: tuple[Any, Process] | None = None
        for kept in self._kept:
            given = (tensors or {}).get(kept.name)
            tensor = torch.zeros(kept.shape) if given is None else given.detach().clone()
            if kept.learned:  # a weight like the others, of their precision
                self.register_parameter(kept.name, nn.Parameter(tensor.to(torch.get_default_dtype())))
            else:
                self.register_buffer(kept.name, tensor)
        if config.attention == "block":
            self.register_buffer("noise_range", torch.tensor([0.0, 1.0]))
        states = max(stored["K"], stored.get("mask_id", 0) + 1)
        self.readout = heads.get(config.head, stored)
        if self.is_gaussian:
            self.reading = VectorInput(stored["D"], sizes.width, config.reads or "mixture", config.self_conditioned)
        # vectors that are read as they are need no embeddings of tokens
        self.embed = nn.Embedding(states, sizes.width) if config.reads != "vectors" else None
        if self.time_conditioned:
            self.time = nn.Sequential(nn.Linear(TIME_FEATURES, sizes.width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(sizes, self.time_conditioned, layer) for layer in range(config.depth))
        self.head = nn.Linear(sizes.width, self.readout.outputs(stored, states), bias=False)
        self.initialise()

    @classmethod
    def empty(cls, config: TransformerConfig) -> Self:
        """A model without weights, on the meta device, to be given them by ``load_state_dict(..., assign=True)``."""
        with torch.device("meta"):
            return cls(config)

    def initialise(self) -> None:
        """Variance-preserving weights; every residual branch and the head start at zero, so log p starts uniform."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                preserve_variance(module)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
        for module in self.modules():
            if isinstance(module, Block):
                module.zero_branches()
            elif isinstance(module, VectorInput):
                module.zero_guess()
        nn.init.zeros_(self.head.weight)

    @property
    def undecayed(self) -> frozenset[str]:
        """Names of parameters that are the process's, which weight decay would pull to another process."""
        return frozenset(kept.name for kept in self._kept if kept.learned)

    @property
    def process(self) -> Process:
        """The process this model was built for, which reads what it needs among the model's own tensors."""
        tensors: dict[str, Tensor] = {kept.name: getattr(self, kept.name) for kept in self._kept}
        if self.config.process["name"] != "d3pm":
            return processes.from_dict(self.config.process, tensors)
        if self._built is not None and torch.compiler.is_compiling():
            return self._built[1]
        # a chain's matrices are kept until the model moves, or is given another graph
        device = self.head.weight.device
        state = (device, [(id(one), one._version) for one in tensors.values() if not one.is_inference()])
        if self._built is None or self._built[0] != state:
            self._built = state, processes.from_dict(self.config.process, tensors).to(device)
        return self._built[1]

    @property
    def facts(self) -> Facts:
        return Facts(
            # a Gaussian model adds log q(z_i | x) to its logits (output_prior), and a mask that comes at the token's
            # own rate is evidence too: their posterior is the full one
            posterior="full" if self.config.process["name"] in FULL else "cavity",
            time_conditioned=self.time_conditioned,
            attention=self.config.attention,
            block=self.config.block,
            scores=self.config.head == "score",
            vectors=self.config.head in heads.VECTORS,
            self_conditioned=self.config.self_conditioned,
            mask_id=self.config.process.get("mask_id"),
            eos_id=self.config.eos_id,
            pad_id=self.config.pad_id,
            selective=True,
            caches=True,
        )

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        where: Tensor | None = None,
        scores: bool = False,
        vectors: bool = False,
    ) -> Tensor:
        cond = as_condition(cond)
        self._refuse(cond, scores, vectors)
        process = self.process if self.is_gaussian else None
        gamma = evidence = None
        if isinstance(process, Gaussian):
            # not in bfloat16, in which weights may be gathered (FSDP): z / sigma^2 weighs tokens against one another
            z = z.to(self.head.weight.device, torch.promote_types(self.head.weight.dtype, torch.float32))
            x, place, gamma, evidence = self._read_vectors(process, z, t, cond)
        else:
            x, place = self._read(z, cond), per_position(t)
        # weights may be gathered in bfloat16 (FSDP); what blocks add to stays float32 either way
        x = x.float() if torch.is_autocast_enabled(x.device.type) else x
        positions = cond.get("positions", torch.arange(z.shape[1], device=z.device))
        x, rotary = placed(x, positions)
        code = alike(self.time, time_features(place).to(x)) if self.time_conditioned else None
        attention = self.config.attention
        pattern = contexts.readable(z, cond, attention, self.config.block, self.config.process.get("mask_id"))
        reading = Reading(rotary, pattern, attention == "causal", cond.get("cache"), cond.get("store", False))
        *blocks, last = self.blocks  # a slice would make a new list of modules every time
        for block in blocks:
            x = block(x, reading, code)
        x = last(x, reading, code, where)
        if where is not None:  # the chosen positions as rows of length one
            z, t = z[where][:, None], per_position(t).expand(where.shape)[where]
            gamma = None if gamma is None else gamma.expand(where.shape)[where][:, None]
            evidence = None if evidence is None else chosen(evidence, where)
        logits = self.head(norm(x))
        # under bfloat16 autocast the sum over a large vocabulary must not be rounded
        logits = logits.float() if logits.dtype is torch.bfloat16 else logits
        if isinstance(process, Gaussian) and self.facts.vectors:
            assert gamma is not None
            assert self.config.head is not None
            clean = process.denoised(logits, self.config.head, z, gamma)
            out = clean if vectors else process.rounding(clean)
        else:
            logits = logits if evidence is None else logits + evidence
            out = (heads.scores if scores else self.readout)(logits, z, t, process or self.process)
        return out if where is None else out[:, 0]

    def _refuse(self, cond: Condition, scores: bool, vectors: bool) -> None:
        """Errors: ``ValueError`` for what this model cannot be told or asked."""
        if "guess" in cond and not self.config.self_conditioned:
            raise ValueError("guess told to a model that reads none: set model.self_conditioned, or leave it out")
        if "gamma" in cond and not self.is_gaussian:
            raise ValueError(f"gamma told to a model of a {self.config.process['name']} process: leave it out")
        if "labels" in cond:
            raise ValueError("labels told to a model that was trained without any: leave them out")
        if scores and not self.facts.scores:
            raise ValueError("scores=True asked of a model without them: set model.head=score, or use heads.to_score")
        if vectors and not self.facts.vectors:
            raise ValueError(
                f"vectors=True asked of a model that names tokens: set model.head to one of {heads.VECTORS}"
            )

    def _read(self, z: Tensor, cond: Condition) -> Tensor:
        """Embeddings of ids, or of the mixtures told in their place, (B, L, E)."""
        assert self.embed is not None
        if "mixture" in cond:
            return mixed(self.embed.weight, cond["mixture"])
        if self.config.attention == "causal":
            start = torch.full_like(z[:, :1], self.config.process["mask_id"])
            z = torch.cat([start, z[:, :-1]], dim=1)
        return self.embed(z)

    def _read_vectors(
        self, process: Gaussian, z: Tensor, t: Tensor, cond: Condition
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What is read of vectors, (B, L, E); gamma's place between the schedule's ends, and gamma, (B, 1 or L) both;
        the evidence (B, L, K), unless that is neither read nor added to logits."""
        gamma = cond["gamma"] if "gamma" in cond else process.gamma(t)[0]
        evidence = None
        if self.config.reads != "vectors" or not self.facts.vectors:
            evidence = process.evidence(z, gamma)
            if "detached" in cond:
                apart = process.detached().evidence(z, gamma)
                evidence = torch.where(cond["detached"][:, None, None], apart, evidence)
        table = None if self.embed is None else self.embed.weight
        x = self.reading(z, gamma, process, table, evidence, cond.get("guess"))
        return x, process.place(gamma), gamma, evidence


def _check(config: TransformerConfig) -> None:
    name = config.process["name"]
    if config.attention != "full" and name != "masked":
        raise ValueError(f"attention={config.attention!r} with a {name} process: it needs a masked one")
    if (config.attention == "block") != (config.block is not None):
        raise ValueError(f"attention={config.attention!r} with block={config.block}: they go together, set both")
    if name != "gaussian" and (config.reads is not None or config.self_conditioned):
        raise ValueError(
            f"reads={config.reads!r}, self_conditioned={config.self_conditioned} with a {name} process: "
            "both are about vectors; leave them out"
        )
    if config.reads not in (None, *get_args(Reads)):
        raise unknown("reads", config.reads, get_args(Reads))
    if config.reads == "vectors" and not config.time_conditioned:
        raise ValueError(
            "reads='vectors' by a model that is not told the time: set time_conditioned, or reads='mixture'"
        )


__all__ = ["Transformer", "TransformerConfig", "widths"]
