"""A language model one can talk to: process, denoiser and tokenizer together, whatever the family."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from redraft.data import Tokenizer, load_text
from redraft.evaluation import Likelihood, likelihood
from redraft.generation import WHICH, Doubt, Generation, Options, Row, canvas_of, in_parts, numbered
from redraft.models import Transformer, folder, released
from redraft.models.families.base import Released
from redraft.processes import Process, absorbing
from redraft.processes.base import device_of
from redraft.randomness import Device
from redraft.sampling import Cost, Samples, sample, semi_autoregressive
from redraft.sampling.doubt import alone, doubted
from redraft.sampling.growth import Elastic, Growth, elastic, grown
from redraft.sampling.lengths import best_of, scoring
from redraft.sampling.stages import Shaping
from redraft.sampling.steps import joined


class LM:
    """``process``, ``denoiser`` and ``tokenizer``; ``context`` is the length trained on, ``about`` what was stored."""

    def __init__(self, denoiser: Transformer | Released, tokenizer: Tokenizer, about: dict[str, Any]) -> None:
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
        self,
        prompt: str | Sequence[str] = "",
        *,
        length: int | Sequence[int] | None = None,
        stride: int | None = None,
        grow: bool | Growth = False,
        **options: Unpack[Options],
    ) -> Generation:
        """Continue ``prompt`` by ``length`` tokens (to the end of the trained context unless given).

        Either may be a list, a row for each, and ``num`` texts are written of each, one after the other; the options
        are those of ``sample``. With ``stride`` a text may be longer than the context: it is written through a window
        of that size, which moves on by so many tokens (``semi_autoregressive``). With ``grow`` a text is as long as the
        model wants, ``length`` at most: it grows until the model sees its end (``growth.Growth``, DAEDAL).

        Errors: ``ValueError`` when prompt and length exceed the context and there is no stride, for options that
        clash.
        """
        self._refuse_strength(options)
        prompts = [self.encode(one) for one in ([prompt] if isinstance(prompt, str) else prompt)]
        lengths = [length] if length is None or isinstance(length, int) else list(length)
        asked = max(len(prompts), len(lengths))
        if not {len(prompts), len(lengths)} <= {1, asked}:
            raise ValueError(f"{len(prompts)} prompts and {len(lengths)} lengths: pass one for all, or one for each")
        prompts = prompts * asked if len(prompts) == 1 else prompts
        lengths = lengths * asked if len(lengths) == 1 else lengths
        wanted = [self._room(*one, stride) for one in zip(prompts, lengths, strict=True)]
        if grow is not False and stride is not None:
            raise ValueError(f"stride={stride} with grow: a text grows within the context; leave one out")
        if grow is not False:
            return self._grow(prompts, wanted, Growth() if grow is True else grow, options)
        if stride is None:
            rows = [[*ids, *[None] * more] for ids, more in zip(prompts, wanted, strict=True)]
            return self._read(self._write(rows, options))
        return self._slide(prompts, wanted, stride, options)

    def _grow(self, prompts: list[list[int]], wanted: list[int], how: Growth, options: Options) -> Generation:
        """Prompts continued by as much as the model wants, at most what is ``wanted``."""
        common = self._only(options, "grow", "stop") | {"stop": self._stop(options.get("stop", True))}
        own, seeds = numbered(options, len(prompts))
        parts = {"prompt": [prompts[row] for row in own], "length": [wanted[row] for row in own], "seeds": seeds}
        widths = [len(prompts[row]) + wanted[row] for row in own]
        return self._read(in_parts(partial(grown, self.process, self.denoiser, growth=how), widths, common, parts))

    def _slide(self, prompts: list[list[int]], wanted: list[int], stride: int, options: Options) -> Generation:
        """Prompts continued through a window, one after the other."""
        for name in ("stop", "min_length", "constraint", "block", "cache"):
            if options.get(name) not in (None, False) and (name != "min_length" or options.get(name)):
                raise ValueError(f"{name}={options.get(name)!r} with a stride: it is of one window; leave one out")
        own, seeds = numbered(options, len(prompts))
        found = list[Samples]()
        for row, (ids, more) in enumerate(zip(prompts, wanted, strict=True)):
            window = {"window": self.context, "stride": stride, "prompt": ids, "length": more}
            write = partial(semi_autoregressive, self.process, self.denoiser, **window)
            mine = {"seeds": [seed for seed, of in zip(seeds, own, strict=True) if of == row]}
            widths = [self.context] * len(mine["seeds"])
            found.append(in_parts(write, widths, self._common(options), mine, own.index(row)))
        return self._read(joined(found))

    def infill(self, text: str, *, marks: Elastic | None = None, **options: Unpack[Options]) -> Generation:
        """Fill the gaps of ``text``: ``[MASK]`` is one token, ``[MASK:3]`` three; ``\\[MASK]`` is the text itself.

        ``[MASK:2-6]`` is a gap of unknown length: each of 2 to 6 is tried, and of several such gaps each combination,
        64 at most; every text keeps the one of whose tokens the model is surest (``lengths.best_of``, which says why
        that is no likelihood). With ``marks`` gaps grow and shrink by tokens of the model's own (``growth.Elastic``).
        The options are those of ``sample``.

        Errors: ``ValueError`` for a text without gaps, or longer than the trained context.
        """
        self._refuse_strength(options)
        rows = self.tokenizer.encode_templates(text)
        for row in rows.values():
            if len(row) > self.context:
                raise ValueError(f"the text has {len(row)} tokens, the model was trained on {self.context}: shorten it")
        if marks is not None and len(rows) > 1:
            raise ValueError(f"{text[:80]!r} with marks, which find the length themselves: give gaps one to begin with")
        if marks is not None:
            return self._stretch(rows[()], marks, options)
        if () in rows:
            return self._read(self._write([rows[()]], options))
        common = self._common(options)
        common["sampler"] = scoring(self.process, options.get("sampler"))
        write, (_, seeds) = partial(sample, self.process, self.denoiser), numbered(options, 1)

        def write_all(**own: Sequence[Any]) -> Samples:
            return in_parts(write, [len(ids) for ids in own["canvas"]], common, own)

        samples, tried = best_of(write_all, [canvas_of(row) for row in rows.values()], seeds, common.get("stop"))
        return replace(self._read(samples), lengths=list(rows), tried=tried)

    def edit(
        self,
        text: str,
        *,
        strength: float | None = None,
        span: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
        doubt: float | None = None,
        below: float | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """Redraft ``text``: noise it to t = ``strength`` and denoise it from there (SDEdit; ``sample`` says more).

        0 returns it as it is, 1 writes as from nothing; between them, the less of it is kept the greater the strength,
        which is 0.5 unless given. ``text`` is text, whatever it spells: a [MASK] in it is no mask. The options are
        those of ``sample``.

        ``span`` redrafts a passage only, characters start up to stop, or several (``Tokenizer.encode_passages``).
        ``doubt`` and ``below`` redraft what the model itself doubts, of the text or those passages: that share of their
        tokens, the least likely given all others, or those of a probability ``below``, or both, the share being the
        most (``sampling.doubt``, which says what that costs and that it does not keep the model's law). Strength is
        then 1 among masks.

        Errors: ``ValueError`` for an empty text or one longer than the trained context, a strength outside [0, 1], a
        model that writes in one order only, a span outside the text.
        """
        passages: Any = [(0, len(text))] if span is None else [span] if span and isinstance(span[0], int) else span
        ids, inside = self.tokenizer.encode_passages(text, passages) if text else ([], [])
        if not 1 <= len(ids) <= self.context:
            raise ValueError(
                f"a text of {len(ids)} tokens to redraft, and the model was trained on {self.context}: "
                f"pass one of 1 to {self.context} tokens"
            )
        canvas, free = torch.tensor(ids), torch.tensor(inside)
        free = torch.ones_like(free) if span is None else free  # a toy text's padding is of no passage
        thought, cost = None, Cost(of_rows=[0])
        if doubt is not None or below is not None:
            strength = (1.0 if absorbing(self.process) else 0.5) if strength is None else strength
            free, thought, cost = self._doubted(canvas, free, doubt, below if strength else 0.0)
        strength = (0.5 if strength is None else strength) if bool(free.any()) else 0.0
        _, seeds = numbered(options, 1)
        parts = {"canvas": [canvas] * len(seeds), "frozen": [~free] * len(seeds), "seeds": seeds}
        write = partial(sample, self.process, self.denoiser, strength=strength)
        samples = in_parts(write, [len(ids)] * len(seeds), self._common(options), parts)
        samples.cost.add(replace(cost, of_rows=cost.of_rows * len(seeds)))
        return replace(self._read(samples), doubt=thought)

    def _refuse_strength(self, options: Options) -> None:
        if "strength" in options:
            raise ValueError(f"strength={options['strength']} is of redrafting a text that is there: use edit")

    def _room(self, ids: list[int], length: int | None, stride: int | None) -> int:
        """How many tokens to write after a prompt."""
        length = self.context - len(ids) if length is None else length
        if length < 1 or (stride is None and length > self.context - len(ids)):
            raise ValueError(
                f"a prompt of {len(ids)} tokens and {length} to write do not fit the {self.context} positions trained "
                f"on: pass length from 1 to {self.context - len(ids)}, a shorter prompt, or a stride"
            )
        return length

    def _stretch(self, row: Row, marks: Elastic, options: Options) -> Generation:
        """Fill a canvas whose length the model changes, as far as the context has room."""
        marks = replace(marks, budget=min(marks.budget, self.context - len(row)))
        common, (_, seeds) = self._only(options, "marks", "sampler"), numbered(options, 1)
        canvas, frozen = canvas_of(row)
        parts = {"canvas": [canvas] * len(seeds), "frozen": [frozen] * len(seeds), "seeds": seeds}
        write = partial(elastic, self.process, self.denoiser, marks=marks)
        return self._read(in_parts(write, [len(row) + marks.budget] * len(seeds), common, parts))

    def _doubted(
        self, ids: Tensor, among: Tensor, share: float | None, below: float | None
    ) -> tuple[Tensor, Doubt, Cost]:
        """What is to be redrafted of a text, (L,) bool; nothing is asked where that is nothing in any case."""
        logp, cost = torch.full(ids.shape, torch.nan, dtype=torch.float64), Cost(of_rows=[0])
        chosen = doubted(logp, among, share, below)  # a mistake is one there too
        if share != 0 and below != 0:
            logp, cost = alone(self.process, self.denoiser, ids, among, device=self.device)
            logp = logp.cpu()
            chosen = doubted(logp, among, share, below)
        told = [None if math.isnan(value) else value for value in logp.tolist()]
        return chosen, Doubt(told, chosen.tolist()), cost

    def _write(self, rows: Sequence[Row], options: Options) -> Samples:
        """Draw texts of canvases, None where they are free."""
        own, seeds = numbered(options, len(rows))
        made = [canvas_of(rows[row]) for row in own]
        parts = {"canvas": [ids for ids, _ in made], "frozen": [known for _, known in made], "seeds": seeds}
        write = partial(sample, self.process, self.denoiser)
        return in_parts(write, [len(rows[row]) for row in own], self._common(options), parts)

    def _stop(self, stop: bool | int) -> int:
        """The id that ends a text. Errors: ``ValueError`` for a tokenizer without one."""
        if not isinstance(stop, bool):
            return stop
        if self.tokenizer.eos_id is None:
            raise ValueError("stop=True with a tokenizer that has no end of text: pass the id of a token")
        return self.tokenizer.eos_id

    def _common(self, options: Options) -> dict[str, Any]:
        """The options as ``sample`` takes them, but which texts."""
        common: dict[str, Any] = {name: value for name, value in options.items() if name not in WHICH}
        stop = common.pop("stop", False)
        common |= {} if stop is False else {"stop": self._stop(stop)}
        return common | {"device": self.device}

    def _only(self, options: Options, mode: str, *more: str) -> dict[str, Any]:
        """Those of the options that hold where lengths change. Errors: ``ValueError`` for others."""
        asked = {name: value for name, value in options.items() if name not in WHICH}
        known = (*Shaping.__annotations__, "callback", *more)
        for name, value in asked.items():
            if name not in known and value not in (None, False, 0):
                raise ValueError(f"{name}={value!r} with {mode}: it is of texts whose length is known; leave it out")
        common = {name: value for name, value in asked.items() if name in known and value is not None}
        return common | {"device": self.device}

    def _read(self, samples: Samples) -> Generation:
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
        if isinstance(self.denoiser, Transformer):
            folder.save(path, self.denoiser.config, self.denoiser.state_dict(), self.tokenizer, self.about)
        else:
            released.save(path, self.denoiser, self.tokenizer, self.about)
