"""A language model one can talk to: process, denoiser and tokenizer together, whatever the family."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from redraft import answering, presets, publishing
from redraft.data import Tokenizer, load_text
from redraft.data.chat import Message
from redraft.evaluation import AnswerScore, Likelihood, answers, likelihood
from redraft.generation import Generation, Options, filled
from redraft.models import Transformer, folder, released
from redraft.models.families.base import Released
from redraft.models.placement import DeviceMap, precision
from redraft.processes import Process, absorbing
from redraft.processes.base import device_of
from redraft.randomness import Device
from redraft.sampling import Cost, Samples, samplers
from redraft.sampling.contract import proposes
from redraft.sampling.growth import Elastic, Growth
from redraft.writing import Writer, doubts, paired, room


class LM:
    """``process``, ``denoiser`` and ``tokenizer``; ``context`` is the length trained on, ``about`` what was stored."""

    def __init__(self, denoiser: Transformer | Released, tokenizer: Tokenizer, about: dict[str, Any]) -> None:
        self.denoiser, self.tokenizer, self.about = denoiser, tokenizer, about
        self.context: int = about["context"]
        self.results: dict[str, Any] = {}
        """What results.json of its run says, likelihood and machine; nothing of a model that no run left."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: Device = None,
        *,
        dtype: torch.dtype | str | None = None,
        device_map: DeviceMap | None = None,
        quantize: str | None = None,
        tokenizer: str | Tokenizer | None = None,
        family: str | None = None,
        repository: str = "",
    ) -> "LM":
        """The model in a folder: one of ours, or a released checkpoint (``redraft.models.released.load``).

        Errors: ``ValueError`` naming what is missing, damaged or does not fit, and for options of released ones alone
        where the folder is ours.
        """
        only: dict[str, Any] = {"tokenizer": tokenizer, "family": family}
        only |= {"device_map": device_map, "quantize": quantize}
        if not folder.is_ours(folder.read_config(Path(path))):
            lm = cls(*released.load(path, device, dtype=dtype, repository=repository, **only))
            lm.results = publishing.results_beside(Path(path))
            return lm
        for name, value in only.items():
            if value is not None:
                raise ValueError(f"{name}={value!r}: {path} is a model of redraft's own, without choice; leave it out")
        denoiser, about = folder.load(path, device, precision(dtype))
        words = Tokenizer.load(path)
        K = denoiser.config.process["K"]
        if words.K != K:
            raise ValueError(f"{path}: the tokenizer has {words.K} tokens, the model {K}; they are not a pair")
        if not isinstance(about.get("context"), int):
            raise ValueError(f"{path}: config.json is damaged, it says nothing of about.context; copy the folder again")
        lm = cls(denoiser, words, about)
        lm.results = publishing.results_of(Path(path))
        return lm

    @property
    def process(self) -> Process:
        return self.denoiser.process

    @property
    def _decoding(self) -> Mapping[str, Any]:
        """How the model's authors write with it, if its family says so."""
        return self.about.get("decoding", {})

    @property
    def device(self) -> torch.device:
        return device_of(self.denoiser)

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text: what config.json says it is, or else the tokenizer; None where neither does."""
        return self.tokenizer.eos_id if (eos := self.denoiser.facts.eos_id) is None else eos

    @property
    def _writer(self) -> Writer:
        return Writer(self.process, self.denoiser, self.device, self.context, self.eos_id)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; text that spells a special token is text. Errors: ``ValueError``, see ``Tokenizer.encode``."""
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
        preset: str | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """Continue ``prompt`` by ``length`` tokens (to the end of the trained context unless given).

        ``preset`` names how the authors of a model write with it (``redraft.presets``); a released checkpoint is
        written as its family's are unless another is named. What is passed here goes before either.

        Either may be a list, a row for each, and ``num`` texts are written of each, one after the other; the options
        are those of ``sample``. With ``stride`` a text may be longer than the context: it is written through a window
        of that size, which moves on by so many tokens (``semi_autoregressive``). With ``grow`` a text is as long as the
        model wants, ``length`` at most: it grows until the model sees its end (``growth.Growth``, DAEDAL).

        Errors: ``ValueError`` when prompt and length exceed the context and there is no stride, for an unknown preset,
        for options that clash.
        """
        self._refuse_strength(options)
        kept = presets.GROWING if grow is not False else presets.SLIDING if stride is not None else None
        usual = presets.usual(self._decoding, preset, self.tokenizer, kept)
        options, most = filled(options, usual), usual.get("length")
        told = [self.encode(one) for one in ([prompt] if isinstance(prompt, str) else prompt)]
        prompts, lengths = paired(told, length)
        wanted = [room(self.context, *one, most, stride is not None) for one in zip(prompts, lengths, strict=True)]
        if grow is not False and stride is not None:
            raise ValueError(f"stride={stride} with grow: a text grows within the context; leave one out")
        if grow is not False:
            how = Growth() if grow is True else grow
            return self._read(self._writer.growing(prompts, wanted, how, options))
        if stride is not None:
            return self._read(self._writer.sliding(prompts, wanted, stride, options))
        rows = [[*ids, *[None] * more] for ids, more in zip(prompts, wanted, strict=True)]
        return self._read(self._writer.rows(rows, options))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        length: int | None = None,
        template: str | None = None,
        turn: str | None = None,
        preset: str | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """Answer a conversation, ``[{"role": "user", "content": "Hello"}]``; roles are system, user and assistant.

        ``text`` is the answer alone, of ``length`` tokens at most (unless given, as usual or 128, and at most half the
        context), up to its ``turn``, a token. It is asked for by the chat ``template``, Jinja or "plain": the model's
        own unless given. Where there is no room the oldest exchanges are left out, never the system's messages, and
        ``dropped`` says how many. What messages spell is text. ``preset`` and the options are those of ``generate``.

        Errors: ``ValueError`` for a model without template, what is no conversation, a last message without room.
        """
        self._refuse_strength(options)
        usual = presets.usual(self._decoding, preset, self.tokenizer)
        told = answering.speaks(self.tokenizer, self.about, template, turn)
        asked = answering.asked(told, messages, self.context, length, options, usual)
        return asked.read(self._writer.rows([asked.row], asked.options), self.decode)

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
        usual = presets.usual(self._decoding, None, self.tokenizer, presets.GAPS)
        if (marks is not None or len(rows) > 1) and not proposes(samplers.get(usual.get("sampler", "low_confidence"))):
            del usual["sampler"]
        options = filled(options, usual)
        for row in rows.values():
            if len(row) > self.context:
                raise ValueError(f"the text has {len(row)} tokens, the model was trained on {self.context}: shorten it")
        if marks is not None and len(rows) > 1:
            raise ValueError(f"{text[:80]!r} with marks, which find the length themselves: give gaps one to begin with")
        if marks is not None:
            return self._read(self._writer.stretching(rows[()], marks, options))
        if () in rows:
            return self._read(self._writer.rows([rows[()]], options))
        samples, tried = self._writer.best_of(list(rows.values()), options)
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
        options = filled(options, presets.usual(self._decoding, None, self.tokenizer, presets.GAPS))
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
            free, thought, cost = doubts(self.process, self.denoiser, canvas, free, doubt, below if strength else 0.0)
        strength = (0.5 if strength is None else strength) if bool(free.any()) else 0.0
        samples = self._writer.redrafting(canvas, free, strength, options)
        samples.cost.add(replace(cost, of_rows=cost.of_rows * len(samples.tokens)))
        return replace(self._read(samples), doubt=thought)

    def _refuse_strength(self, options: Options) -> None:
        if "strength" in options:
            raise ValueError(f"strength={options['strength']} is of redrafting a text that is there: use edit")

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
        particles: int | None = None,
        chain_steps: int | None = None,
        stride: int | None = None,
    ) -> Likelihood:
        """The bound on a text (file, folder, embedded corpus), in rows of the trained context; see ``likelihood``.

        ``stride``: the rows are windows that advance by so many tokens, and but for the first only these are scored,
        given those before them; every token is scored once, at a cost of context / stride. Errors: those of
        ``likelihood``, and ``ValueError`` for a stride outside 1 .. context.
        """
        isolated = self.about.get("isolate_documents", False)
        packed = load_text(source, self.tokenizer, self.context, text_field, isolated, stride)
        asked: dict[str, Any] = {"draws": draws, "rows": rows, "seed": seed, "device": self.device}
        asked |= {"estimator": estimator, "ode_steps": ode_steps, "ode_probes": ode_probes}
        return likelihood(self.denoiser, self.process, packed, **asked, particles=particles, chain_steps=chain_steps)

    def score(
        self,
        prompt: str,
        answer: str,
        *,
        draws: int = 128,
        estimator: str = "bound",
        weight: float = 1.0,
        seed: int = 0,
    ) -> AnswerScore:
        """log p of ``answer`` after ``prompt``, nats, with its 95% error; of masked models (``answers.score``).

        They are encoded as one text, and blanks that the prompt ends with count to the answer. ``estimator``: one of
        ``answers.ESTIMATORS``. Errors: ``ValueError`` for texts longer than the context, and those of ``score``.
        """
        start, rest = answers.split(self.tokenizer, prompt, answer, self.context)
        options: dict[str, Any] = {"draws": draws, "estimator": estimator, "weight": weight, "seed": seed}
        return answers.score(self.process, self.denoiser, start, rest, **options)

    def save(self, path: str | Path) -> None:
        """Store the model as a folder that ``LM.load`` reads, in the layout it came in.

        A model of our own can be read by ``transformers`` too.
        """
        if isinstance(self.denoiser, Transformer):
            folder.save(path, self.denoiser.config, self.denoiser.state_dict(), self.tokenizer, self.about)
        else:
            released.save(path, self.denoiser, self.tokenizer, self.about)

    def save_pretrained(
        self, path: str | Path, *, name: str = publishing.PLACE, **told: Unpack[publishing.CardFields]
    ) -> None:
        """``save``, with a model card: README.md, filled with what is known (``publishing.card``).

        ``name``: how the card says to load it. Of files and folders of this machine that a recipe names, only their
        own names are stored. Errors: ``ValueError`` for a field that a card does not have.
        """
        about, results = publishing.portable(self.about), publishing.portable(self.results)
        written = publishing.card(self.denoiser, self.tokenizer, about, results, told, name)
        LM(self.denoiser, self.tokenizer, about).save(path)
        publishing.store(Path(path), written, results)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        **told: Unpack[publishing.CardFields],
    ) -> str:
        """Upload what ``save_pretrained`` writes to ``owner/name``, made if need be; the URL of the commit.

        ``private`` is what the Hub's settings say unless given; ``revision`` a branch; ``token`` the one this machine
        is logged in by unless given. Errors: ``ValueError``, see ``publishing.upload``; nothing is left on this
        machine.
        """
        write = partial(self.save_pretrained, name=repo_id, **told)
        return publishing.upload(write, repo_id, private=private, revision=revision, token=token)
