"""A DGLM: encoder, proposer and verbaliser together; trained, asked for texts, and kept as a folder.

    prefix --encoder--> c;   z ~ N(0, I) --proposer, told c, guided--> x_hat;   (x_hat, prefix) --verbaliser--> text

The encoder is fixed, so the parts learn apart from one another.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from redraft import recipes
from redraft.dglm import config as configs
from redraft.dglm import teaching
from redraft.dglm.config import DGLMConfig
from redraft.dglm.encoder import Encoder, Standard
from redraft.dglm.guidance import Clean, Logistic, Noised, plug_in
from redraft.dglm.pairs import Pair, read_pairs
from redraft.dglm.proposer import Prompted, Proposer, Vectors, noise, propose
from redraft.dglm.verbaliser import Verbaliser
from redraft.errors import unknown
from redraft.guidance import LogLikelihood, cfg, gradient_guided
from redraft.models.folder import CONFIG, read_config, write_model
from redraft.models.weights import fill
from redraft.processes import Denoiser
from redraft.randomness import Device, generator, row_seeds

MODEL_TYPE = "redraft-dglm"
ENCODER, DECODER = "encoder", "decoder"
VECTOR, WORDS = 1, 2
"""What a row draws: the second key after its seed."""


@dataclass(frozen=True)
class Written:
    """Texts, each its prompt and a continuation, the seeds that write each again, and the vectors they verbalise.

    ``nfe``: calls of the proposer's network for each row; a gradient through it counts as one.
    """

    texts: list[str]
    continuations: list[str]
    vectors: Tensor
    seeds: list[int]
    nfe: int

    @property
    def text(self) -> str:
        """The first text."""
        return self.texts[0]

    def to_dict(self) -> dict[str, Any]:
        """``samples`` with text, continuation and seed, and ``nfe``."""
        rows = zip(self.texts, self.continuations, self.seeds, strict=True)
        samples = [{"text": text, "continuation": own, "seed": seed} for text, own, seed in rows]
        return {"samples": samples, "nfe": self.nfe}


class DGLM:
    """Proposes sentence vectors and writes them out. ``train``, ``load`` and ``generate`` are the doors."""

    def __init__(
        self,
        config: DGLMConfig,
        encoder: Encoder,
        proposer: Proposer,
        verbaliser: Verbaliser,
        labels: Sequence[str] = (),
    ) -> None:
        self.config, self.encoder, self.proposer, self.verbaliser = config, encoder, proposer, verbaliser
        self.standard, self.labels = Standard(encoder.dim), list(labels)
        self.classifier: Noised | Logistic | None = None
        if self.labels:
            known = config.classifier
            noised = known.reads == "noised"
            sizes = encoder.dim, len(self.labels)
            self.classifier = Noised(*sizes, known.width) if noised else Logistic(*sizes)

    @classmethod
    def train(
        cls,
        recipe: str | DGLMConfig,
        data: str | Path | Sequence[Pair],
        out: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        device: Device = None,
    ) -> Self:
        """Train a DGLM by a recipe (``dglm_toy``, ``dglm_paper``, or a config) and save it in ``out``, if given.

        ``data``: pairs, or what ``pairs.read_pairs`` reads; ``overrides`` sets fields by dotted name. ``out`` also gets
        ``metrics.jsonl``.

        Errors: ``ValueError`` for a field, file or model that will not do, for an ``out`` in use, and for a loss that
        is not finite, by its step and term.
        """
        config = recipes.override(configs.get(recipe) if isinstance(recipe, str) else recipe, overrides or {})
        pairs = read_pairs(data, config.data)
        labels = teaching.labels_of(pairs)
        folder = None if out is None else teaching.fresh(out)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            encoder, verbaliser = teaching.read_parts(config, pairs)
            made = cls(config, encoder, Proposer(encoder.dim, config.proposer), verbaliser, labels).to(device)
        teaching.teach(made, pairs, folder)
        if folder is not None:
            made.save(folder)
        return made

    # ------------------------------------------------------------------------------------------------------- writing

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str] = "",
        num: int = 1,
        *,
        steps: int | None = None,
        weight: float = 1.0,
        attribute: str | Clean | None = None,
        strength: float = 1.0,
        length: int | None = None,
        sampler: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
    ) -> Written:
        """``num`` texts for each prompt, one after the other; an empty prompt is nothing known.

        ``weight``: of the prefix in the proposal, 1 is plain, 0 forgets it (``guidance.cfg``). ``attribute``: a label
        the classifier was trained with, or log p(y | x) of standardised clean vectors (B, D), with ``strength``
        (``guidance.gradient_guided``). ``length`` tokens at most. What is None is as the model's recipe says.

        Row r draws from its own generator, seeded by ``seeds[r]``, or by (seed, r): no row depends on those beside it.

        Errors: ``ValueError`` for options out of range, an unknown label, or a prompt the decoder has no room for.
        """
        asked = [prompts] if isinstance(prompts, str) else list(prompts)
        if num < 1 or not asked:
            raise ValueError(f"num={num} for {len(asked)} prompts: draw at least one row")
        rows = [prompt for prompt in asked for _ in range(num)]
        own = row_seeds(seed, seeds, len(rows))
        prefixes = {prompt: self.verbaliser.tokenizer.encode(prompt) if prompt else [] for prompt in asked}
        length = self.config.verbaliser.length if length is None else length
        if length < 1:
            raise ValueError(f"length={length}: ask for at least one token")
        for prefix in prefixes.values():
            self.verbaliser.room(len(prefix), length)
        x, nfe = self.propose(rows, own, steps, weight, attribute, strength, sampler)
        known = self.config.sample
        heat = known.temperature if temperature is None else temperature
        share = known.top_p if top_p is None else top_p
        written = [""] * len(rows)
        for prompt, prefix in prefixes.items():
            at = [row for row, one in enumerate(rows) if one == prompt]
            draws = [generator(own[row], WORDS) for row in at]
            for row, ids in zip(at, self.verbaliser.write(x[at], prefix, length, draws, heat, share), strict=True):
                written[row] = self.verbaliser.tokenizer.decode(ids)
        texts = [prompt + text for prompt, text in zip(rows, written, strict=True)]
        return Written(texts, written, x, own, nfe)

    @torch.no_grad()
    def propose(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int | None = None,
        weight: float = 1.0,
        attribute: str | Clean | None = None,
        strength: float = 1.0,
        sampler: str | None = None,
    ) -> tuple[Tensor, int]:
        """Standardised vectors (B, D), one a prompt, and the calls of the proposer's network for each row."""
        if not 0 <= strength < math.inf:
            raise ValueError(f"strength={strength}: 0 is no guidance and 1 is p(x | y); to move away, ask for not-y")
        if attribute is None and strength != 1.0:
            raise ValueError(f"strength={strength} without an attribute guides towards nothing: pass attribute")
        known = self.config.sample
        process, prefix = noise(self.config.proposer, known.scale), self.prefixes(prompts)
        sides = [Prompted(self.proposer, process, one) for one in (prefix, self.proposer.null.expand_as(prefix))]
        denoiser = cfg(*sides, weight=weight)
        if attribute is not None:
            denoiser = gradient_guided(denoiser, process, self.log_p(denoiser, process, attribute), strength)
        draws = [generator(one, VECTOR) for one in seeds]
        steps = known.steps if steps is None else steps
        shape = len(prompts), self.encoder.dim
        x = propose(process, denoiser, shape, draws, steps, sampler or known.sampler, prefix.device)
        return x, sum(side.calls for side in sides)

    def prefixes(self, prompts: Sequence[str]) -> Tensor:
        """The proposer's condition for each prompt, (B, D): its vector, the learned null for an empty one."""
        # one at a time, or a prompt's vector would depend, by rounding, on how it was padded beside others
        known = {one: self.encode([one])[0] if one.strip() else self.proposer.null for one in dict.fromkeys(prompts)}
        return torch.stack([known[one] for one in prompts])

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Standardised vectors of texts, (n, D)."""
        return self.standard(self.encoder.vectors(texts))

    def log_p(self, denoiser: Denoiser, process: Vectors, wanted: str | Clean) -> LogLikelihood:
        """log p(y | z), (B,), of what is wanted, differentiable in z. Errors: ``ValueError`` for an unknown label."""
        if not isinstance(wanted, str):
            return plug_in(denoiser, wanted)
        if self.classifier is None:
            raise ValueError(f"attribute={wanted!r}: this model has no classifier; train with data.label_field")
        if wanted not in self.labels:
            raise unknown("attribute", wanted, self.labels)
        at, known = self.labels.index(wanted), self.classifier
        if isinstance(known, Logistic):
            return plug_in(denoiser, lambda x: known(x)[:, at])
        return lambda z, t: known(z[:, 0], process.gamma(t)[0][:, 0])[:, at]

    # ------------------------------------------------------------------------------------------------------- keeping

    def to(self, device: Device) -> Self:
        """The same model with all its parts on ``device``, in place."""
        self.encoder.model.to(device)
        self.verbaliser.to(device)
        self.parts().to(device)
        return self

    def parts(self) -> nn.ModuleDict:
        """What is kept in our own file: all but the encoder and the decoder."""
        own = {"standard": self.standard, "proposer": self.proposer, "soften": self.verbaliser.soften}
        return nn.ModuleDict(own if self.classifier is None else {**own, "classifier": self.classifier})

    def save(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors, and the folders ``encoder`` and ``decoder`` as ``transformers`` has
        them. config.json is written last: a folder that has one is whole.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)  # while its parts are exchanged, the folder is no model
        self.encoder.save(folder / ENCODER)
        self.verbaliser.save(folder / DECODER)
        about = {"model_type": MODEL_TYPE, "labels": self.labels, "config": recipes.to_dict(self.config)}
        write_model(folder, self.parts().state_dict(), json.dumps(about, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, device: Device = None) -> Self:
        """The model saved in ``folder``. Errors: ``ValueError`` naming what is missing or wrong; nothing is loaded in
        part, nothing in a folder is executed.
        """
        folder = Path(folder)
        stored = read_config(folder)
        if stored.get("model_type") != MODEL_TYPE:
            raise ValueError(f"{folder / CONFIG}: model_type {stored.get('model_type')!r} is not {MODEL_TYPE!r}")
        try:
            config, labels = recipes.from_dict(stored["config"], DGLMConfig), [str(one) for one in stored["labels"]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG}: damaged, {type(error).__name__} {error}") from None
        for part in (ENCODER, DECODER):  # a folder that is not there would be read as a Hub id
            if not (folder / part).is_dir():
                raise ValueError(f"{folder}: no folder {part!r} in it; copy the model again")
        encoder = Encoder.load(str(folder / ENCODER), config.encoder.length, local=True)
        with torch.random.fork_rng(devices=[]):  # fresh weights, all of which are replaced
            proposer = Proposer(encoder.dim, config.proposer)
            verbaliser = Verbaliser.load(str(folder / DECODER), encoder.dim, config.verbaliser, local=True)
            made = cls(config, encoder, proposer, verbaliser, labels)
        fill(made.parts(), folder)
        return made.to(device)
