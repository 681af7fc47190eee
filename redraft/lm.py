"""A language model one can talk to: process, denoiser and tokenizer together, whatever the family."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from redraft.data import Tokenizer, load_text
from redraft.evaluation import Likelihood, likelihood, mbr, variety
from redraft.evaluation.mbr import Choice, Gain
from redraft.models import Transformer, folder, released
from redraft.models.dit import DiTDenoiser
from redraft.processes import Process
from redraft.processes.base import device_of
from redraft.randomness import Device, derive
from redraft.sampling import Samples, sample, semi_autoregressive
from redraft.sampling.request import Writing
from redraft.sampling.steps import joined

_POSITIONS_AT_ONCE = 4096
"""Rows times length drawn together; rows do not depend on their neighbours, so it changes no text."""


class Draws(Writing, total=False):
    """Options of ``sample`` that writing texts shares; see there."""

    num: int
    seed: int
    seeds: Sequence[int] | None


class Options(Draws, total=False):
    """Those, and the two that say how given tokens stand on the canvas; see ``sample``."""

    given: str | None
    resample: int


@dataclass(frozen=True)
class Generation:
    """Texts as written, prompt included, with what they cost and the seeds that write each of them again, alone.

    ``choice`` says how the text came to be selected, if it was (``select``); what it cost is then the cost of all.
    """

    texts: list[str]
    samples: Samples
    choice: Choice | None = None

    @property
    def text(self) -> str:
        """The first text."""
        return self.texts[0]

    @property
    def tokens(self) -> Tensor:
        """(B, L) ids."""
        return self.samples.tokens

    def select(self, gain: str | Gain = "bleu") -> "Generation":
        """The one text that agrees best with the others: minimum Bayes risk under ``gain``, the first of equals.

        Names are those of ``redraft.evaluation.mbr.GAINS``; a function (hypothesis, reference) is given texts. To draw
        many and keep one: ``lm.generate(num=50).select("bleu")``. Errors: ``ValueError`` for an unknown gain.
        """
        rows: list[Any] = self.tokens.tolist() if gain in mbr.OF_ROWS else self.texts
        choice = mbr.choose(rows, gain)
        kept = slice(choice.index, choice.index + 1)
        of_one = {name: getattr(self.samples, name)[kept] for name in ("tokens", "seeds", "lengths", "logp")}
        samples = replace(self.samples, **of_one)
        return Generation(self.texts[kept], samples, choice)

    def to_dict(self) -> dict[str, Any]:
        """``samples`` with text and seed; ``nfe`` and ``positions``, what they cost; and how varied the rows are.

        Of a selected text also ``choice``: its index, mean gain, and the number it was chosen from.
        """
        pairs = zip(self.texts, self.samples.seeds, strict=True)
        chosen: dict[str, Any] = {} if self.choice is None else {"choice": asdict(self.choice)}
        return {
            "samples": [{"text": text, "seed": seed} for text, seed in pairs],
            "nfe": self.samples.nfe,
            "positions": self.samples.positions,
            **variety(self.tokens.tolist()),
            **chosen,
        }


class LM:
    """``process``, ``denoiser`` and ``tokenizer``; ``context`` is the length trained on, ``about`` what was stored."""

    def __init__(self, denoiser: Transformer | DiTDenoiser, tokenizer: Tokenizer, about: dict[str, Any]) -> None:
        self.denoiser, self.tokenizer, self.about = denoiser, tokenizer, about
        self.context: int = about["context"]

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: Device = None,
        *,
        tokenizer: str | Tokenizer | None = None,
        family: str | None = None,
        repository: str = "",
    ) -> "LM":
        """The model in a folder: one of ours, or a released checkpoint (``redraft.models.released.load``).

        Errors: ``ValueError`` naming what is missing, damaged or does not fit, and for a ``tokenizer`` or ``family``
        where the folder says both.
        """
        if not folder.is_ours(folder.read_config(Path(path))):
            found = released.load(path, device, tokenizer=tokenizer, family=family, repository=repository)
            return cls(*found)
        for name, value in (("tokenizer", tokenizer), ("family", family)):
            if value is not None:
                raise ValueError(
                    f"{name}={value!r}: {path} is a model of redraft's own and says it itself; leave it out"
                )
        denoiser, about = folder.load(path, device)
        words = Tokenizer.load(path)
        K = denoiser.config.process["K"]
        if words.K != K:
            raise ValueError(f"{path}: the tokenizer has {words.K} tokens, the model {K}; they are not a pair")
        if not isinstance(about.get("context"), int):
            raise ValueError(f"{path}: config.json is damaged, it says nothing of about.context; copy the folder again")
        return cls(denoiser, words, about)

    @property
    def process(self) -> Process:
        return self.denoiser.process

    @property
    def device(self) -> torch.device:
        return device_of(self.denoiser)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; text that spells a special token is text."""
        return self.tokenizer.encode(text, pad=False)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids, (L,)."""
        return self.tokenizer.decode(ids.tolist() if isinstance(ids, Tensor) else ids)

    def generate(
        self, prompt: str = "", *, length: int | None = None, stride: int | None = None, **options: Unpack[Options]
    ) -> Generation:
        """Continue ``prompt`` by ``length`` tokens (to the end of the trained context unless given).

        With ``stride`` a text may be longer than the context: it is written through a window of that size, which moves
        on by so many tokens (``semi_autoregressive``). The options are those of ``sample``.

        Errors: ``ValueError`` when prompt and length exceed the context and there is no stride.
        """
        self._refuse_strength(options)
        ids = self.encode(prompt)
        length = self.context - len(ids) if length is None else length
        if length < 1 or (stride is None and length > self.context - len(ids)):
            raise ValueError(
                f"a prompt of {len(ids)} tokens and {length} to write do not fit the {self.context} positions trained "
                f"on: pass length from 1 to {self.context - len(ids)}, a shorter prompt, or a stride"
            )
        if stride is None:
            return self._write([*ids, *[None] * length], options)
        window = {"window": self.context, "stride": stride, "prompt": ids, "length": length}
        return self._draw(partial(semi_autoregressive, self.process, self.denoiser, **window), self.context, options)

    def infill(self, text: str, **options: Unpack[Options]) -> Generation:
        """Fill the gaps of ``text``: ``[MASK]`` is one token, ``[MASK:3]`` three; ``\\[MASK]`` is the text itself.

        The options are those of ``sample``. Errors: ``ValueError`` for a text without gaps, or longer than the trained
        context.
        """
        self._refuse_strength(options)
        row = self.tokenizer.encode_template(text)
        if len(row) > self.context:
            raise ValueError(f"the text has {len(row)} tokens, the model was trained on {self.context}: shorten it")
        return self._write(row, options)

    def edit(self, text: str, *, strength: float = 0.5, **options: Unpack[Draws]) -> Generation:
        """Redraft ``text``: noise it to t = ``strength`` and denoise it from there (SDEdit; ``sample`` says more).

        0 returns it as it is, 1 writes as from nothing; between them, the less of it is kept the greater the strength.
        ``text`` is text, whatever it spells: a [MASK] in it is no mask. The options are those of
        ``sample``.

        Errors: ``ValueError`` for an empty text or one longer than the trained context, a strength outside [0, 1], a
        model that writes in one order only.
        """
        ids = self.tokenizer.encode(text)
        if not 1 <= len(ids) <= self.context:
            raise ValueError(
                f"a text of {len(ids)} tokens to redraft, and the model was trained on {self.context}: "
                f"pass one of 1 to {self.context} tokens"
            )
        write = partial(sample, self.process, self.denoiser, canvas=torch.tensor(ids), strength=strength)
        return self._draw(write, len(ids), cast(Options, options))

    def _refuse_strength(self, options: Options) -> None:
        if "strength" in options:
            raise ValueError(f"strength={options['strength']} is of redrafting a text that is there: use edit")

    def _write(self, row: Sequence[int | None], options: Options) -> Generation:
        """Draw texts of one canvas, None where it is free."""
        canvas = torch.tensor([0 if token is None else token for token in row])
        frozen = torch.tensor([token is not None for token in row])
        return self._draw(partial(sample, self.process, self.denoiser, canvas=canvas, frozen=frozen), len(row), options)

    def _draw(self, write: Callable[..., Samples], width: int, options: Options) -> Generation:
        """Draw texts so many rows at a time that memory stays bounded."""
        num, seed, seeds = options.pop("num", 1), options.pop("seed", 0), options.pop("seeds", None)
        if num < 1:
            raise ValueError(f"num={num}: draw at least one row")
        seeds = [derive(seed, i) for i in range(num)] if seeds is None else seeds
        if not seeds:
            raise ValueError("seeds=[]: pass one for each text to draw")
        common = cast(Writing, options)  # what is left are those
        at_once = max(1, _POSITIONS_AT_ONCE // width)
        parts = [
            write(seeds=seeds[start : start + at_once], device=self.device, **common)
            for start in range(0, len(seeds), at_once)
        ]
        samples = joined(parts)
        rows = zip(samples.tokens, samples.lengths, strict=True)
        return Generation([self.decode(one[:length]) for one, length in rows], samples)

    def evaluate(
        self,
        source: str | Path,
        *,
        draws: int = 4,
        rows: int | None = None,
        seed: int = 0,
        text_field: str = "text",
        estimator: str | None = None,
        ode_steps: int | None = None,
        ode_probes: int | None = None,
    ) -> Likelihood:
        """The bound on a text (file, folder, embedded corpus), in rows of the trained context; see ``likelihood``."""
        packed = load_text(source, self.tokenizer, self.context, text_field, self.about.get("isolate_documents", False))
        return likelihood(
            self.denoiser,
            self.process,
            packed,
            draws=draws,
            rows=rows,
            seed=seed,
            device=self.device,
            estimator=estimator,
            ode_steps=ode_steps,
            ode_probes=ode_probes,
        )

    def save(self, path: str | Path) -> None:
        """Store the model as a folder that ``LM.load`` reads, in the layout it came in.

        A model of our own can be read by ``transformers`` too.
        """
        if isinstance(self.denoiser, DiTDenoiser):
            released.save(path, self.denoiser, self.tokenizer, self.about)
        else:
            folder.save(path, self.denoiser.config, self.denoiser.state_dict(), self.tokenizer, self.about)
