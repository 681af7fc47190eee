"""The model class that lm-evaluation-harness runs its tasks on, registered as ``redraft``.

    import redraft.harness.backend
    lm_eval.simple_evaluate(model="redraft", model_args="pretrained=runs/mine", tasks=["piqa"])

lm_eval 0.4.13 reads no entry points, so that its own command does not know the name; ``python -m redraft.harness`` is
that command, knowing it, and ``redraft lm-eval`` is ours. Later ones read the group ``lm_eval.models``.
"""

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lm_eval.models  # noqa: F401  # pyright: ignore[reportUnusedImport]  # or its own backends would be missing
import torch
from lm_eval.api import model as api
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

from redraft import answering
from redraft.data.chat import Chat
from redraft.finetuning import adapters
from redraft.harness import settings as known
from redraft.harness.asking import Asker, Spent
from redraft.harness.kept import Kept, digest, fingerprint
from redraft.harness.plans import How
from redraft.harness.scoring import Answer, Ids, Question, chosen, score
from redraft.harness.writing import AT_ONCE, Way, fitting, way, write
from redraft.lm import LM
from redraft.randomness import derive
from redraft.runs import load

LOG_P = {
    "bound": "lower bound",
    "any_order_exact": "lower bound",
    "chain_rule": "exact",
    "one_step": "not exact",
}
"""What log p by each estimator is."""
SCORED_AT_ONCE = 1024
"""Questions handed to the network together, those of about one length; then what is found is kept."""


class _Wanted(NamedTuple):
    """A request as it was understood: its task, its place among the requests, and what it asks for."""

    task: str
    place: int
    asked: Any


class Harness(api.LM):
    """``pretrained``: a folder, an id, or a loaded model; the options of loading are those of ``redraft.load``.

    ``peft``: a folder of adapters. ``batch_size``: texts in a forward, as memory is planned for with "auto"; results
    do not depend on it. ``estimator``, ``draws``, ``weight``: how answers are scored (``lm.score``), and ``seed``.
    ``settings``: of tasks, a file or a mapping (``settings.Settings``); ``cache_path``: a file that keeps results.
    ``template``, ``turn``: of conversations (``lm.chat``). All other options are those of ``lm.generate``: they hold
    where neither a task nor the settings say otherwise.

    Errors: ``ValueError`` for options that are unknown, with the nearest, or do not fit.
    """

    def __init__(
        self,
        pretrained: str | LM,
        *,
        device: str | None = None,
        dtype: str | None = None,
        device_map: Any = None,
        quantize: str | None = None,
        tokenizer: str | None = None,
        family: str | None = None,
        peft: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        estimator: str | None = None,
        draws: int = 128,
        weight: float = 1.0,
        seed: int = 0,
        settings: str | Path | Mapping[str, Any] | None = None,
        cache_path: str | None = None,
        template: str | None = None,
        turn: str | None = None,
        **writing: Any,
    ) -> None:
        super().__init__()
        self.usual = known.layered(writing)
        self.how = How(estimator, draws, weight, seed)
        self.settings = known.Settings(settings)
        self.batch = _batch(batch_size, max_batch_size)
        self.kept = None if cache_path is None else Kept(cache_path)
        where = {"dtype": dtype, "device_map": device_map, "quantize": quantize}
        how: dict[str, Any] = {**where, "tokenizer": tokenizer, "family": family}
        self.model = pretrained if isinstance(pretrained, LM) else load(pretrained, device, **how)
        self.name = "" if isinstance(pretrained, LM) else pretrained
        if peft is not None:
            adapters.attach(self.model.denoiser, peft)
            if quantize is None:
                adapters.merge(self.model.denoiser)
        for task in ("", *self.settings.tasks):  # mistakes are told before anything is asked
            way(self.model, known.layered(self.usual, self.settings.writing(task)), None)
            How(**{**_options(self.how), **self.settings.scoring(task)})
        self._device = self.model.device
        self._template, self._turn = template, turn
        self._chat: Chat | None = None
        self._rendered: dict[str, Ids] = {}
        self._model_is = "" if self.kept is None else fingerprint(self.model)
        self.spent = {"scored": Spent(), "written": Spent()}
        self.counts: Counter[str] = Counter()
        self.errors: defaultdict[str, list[float]] = defaultdict(list)
        self.drawn: dict[str, list[int]] = {}
        self.used: dict[str, dict[str, Any]] = {}

    @classmethod
    def create_from_arg_obj(cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None):
        """As lm_eval makes a model, where ``arg_dict``, its model_args, goes before what its command says beside them.

        The command says cuda:0 unless told, which is not taken where there is none or a device_map says where. Its
        trust_remote_code is put among model_args, and is of data sets only: no model here runs code of its own.
        """
        given = {name: value for name, value in arg_dict.items() if name != "trust_remote_code"}
        more = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if more.get("device") == "cuda:0" and (given.get("device_map") or not torch.cuda.is_available()):
            del more["device"]
        return cls(**{**more, **given})

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None):
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # ------------------------------------------------------------------------------------------------ what is asked

    @property
    def tokenizer_name(self) -> str:
        """What lm_eval tells apart its stored requests by: the model, and the template conversations are told in."""
        return digest(self.name, self.chat.template)[:16]

    @property
    def chat(self) -> Chat:
        """How the model is talked to. Errors: ``ValueError`` for a model without a template."""
        if self._chat is None:
            self._chat = answering.speaks(self.model.tokenizer, self.model.about, self._template, self._turn)
        return self._chat

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template, Jinja. Errors: ``ValueError`` for a name: the choice is the model argument ``template``."""
        if isinstance(chat_template, str):
            raise ValueError(f"chat template {chat_template!r}: pass template= to the model, Jinja or 'plain'")
        return self.chat.template if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as a text, whose ids are remembered: what its messages spell stays text.

        Without ``add_generation_prompt`` the last message is the beginning of the answer.
        """
        messages: Any = [{"role": one["role"], "content": one["content"]} for one in chat_history]
        begun = ""
        if not add_generation_prompt and messages and messages[-1]["role"] == "assistant":
            begun = messages.pop()["content"]
        text = self.chat.asks(messages) + begun
        more = self.chat.begun(begun) if begun else []
        self._rendered[text] = (*self.chat.prompt(messages), *more)
        return text

    def _prompt(self, text: str) -> Ids:
        """Ids of a prompt that is written on. Errors: ``ValueError`` for one not rendered here, in a conversation."""
        if not text:
            return self._prefix()
        if self._chat is None:
            return tuple(self.model.encode(text))
        if text not in self._rendered:
            raise ValueError(
                f"the prompt {text[:80]!r} was not rendered in this run, so that its special tokens are not known: "
                "leave out --cache_requests"
            )
        return self._rendered[text]

    def _prefix(self) -> Ids:
        """What stands before a text that nothing stands before: the beginning of text, or the end of the one before."""
        begin = getattr(self.model.tokenizer.hf, "bos_token_id", None)
        one = self.model.eos_id if begin is None else begin
        return () if one is None else (one,)

    def _question(self, context: str, continuation: str) -> Question:
        """Ids, encoded as one text; blanks that the context ends with are the continuation's. Cut from the left."""
        if not context.strip():
            prompt, answer = self._prefix(), tuple(self.model.encode(context + continuation))
        elif self._chat is not None:
            prompt, answer = self._prompt(context), tuple(self.model.encode(continuation))
        else:
            start = context.rstrip()
            whole = self.model.encode(context + continuation)
            begun = len(self.model.encode(start))
            prompt, answer = tuple(whole[:begun]), tuple(whole[begun:])
        if not 1 <= len(answer) <= self.model.context:
            raise ValueError(
                f"the answer {continuation[:80]!r} has {len(answer)} tokens of its own, and the model was trained on "
                f"{self.model.context}: it can score 1 to so many"
            )
        return fitting(prompt, self.model.context - len(answer)), answer

    def _windows(self, text: str) -> list[Question]:
        """A text in pieces of the context, one after the other, each told the token before it.

        The last is told as many as there is room for.
        """
        ids, prefix, room = self.model.encode(text), self._prefix(), self.model.context - 1
        if not prefix:
            room += 1
            return [((), tuple(ids[at : at + room])) for at in range(0, len(ids), room)]
        windows = map(make_disjoint_window, get_rolling_token_windows(ids, prefix[0], room, 1))
        return [(tuple(before), tuple(piece)) for before, piece in windows]

    # ---------------------------------------------------------------------------------------------- what is answered

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(nats, greedy) of each request's continuation: ``scoring.Answer``. Errors: ``ValueError``, see there."""
        told = [_Wanted(one.task_name or "", at, [self._question(*one.args)]) for at, one in enumerate(requests)]
        found = self._scored(told, greedy=True)
        return [(one[0].nats, one[0].greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of each whole text: the sum over its windows, each token in one; a bound, of models that have one."""
        told = [_Wanted(one.task_name or "", at, self._windows(*one.args)) for at, one in enumerate(requests)]
        found = self._scored(told, greedy=False)
        return [math.fsum(one.nats for one in some) for some in found]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What is written behind each request's context, up to its until string (``writing``)."""
        self.counts["requests"] += len(requests)
        ways = dict[str, Way]()
        wanted = list[_Wanted]()
        for at, one in enumerate(requests):
            context, told = one.args
            asked = known.layered(self.usual, told, self.settings.writing(one.task_name))
            key = digest(asked)
            ways[key] = ways.get(key) or way(self.model, asked, self._chat)
            self.used.setdefault(one.task_name or "", {}).update(ways[key].told())
            wanted.append(_Wanted(one.task_name or "", at, (key, self._prompt(context))))
        found = [""] * len(requests)
        for key, how in ways.items():
            mine = [one for one in wanted if one.asked[0] == key]
            for one, text in zip(mine, self._written(how, [one.asked[1] for one in mine]), strict=True):
                found[one.place] = text
        return found

    @torch.no_grad()
    def _scored(self, wanted: Sequence[_Wanted], greedy: bool) -> list[list[Answer]]:
        """The answers to each request's questions; those of one way to score together."""
        self.counts["requests"] += len(wanted)
        found = [list[Answer]() for _ in wanted]
        ways = defaultdict[How, list[_Wanted]](list)
        for one in wanted:
            mine = self.settings.scoring(one.task)
            how = How(**{**_options(self.how), **mine})
            how = replace(how, estimator=chosen(self.model.process, self.model.denoiser, how))
            self.used.setdefault(one.task, {}).update(_options(how))
            ways[how].append(one)
        for how, some in ways.items():
            questions = sorted({question for one in some for question in one.asked}, key=_place)
            answers = dict(zip(questions, self._answers(questions, how, greedy), strict=True))
            for one in some:
                found[one.place] = [answers[question] for question in one.asked]
        for one, said in zip(wanted, found, strict=True):
            self.errors[one.task].append(math.sqrt(math.fsum(each.standard_error**2 for each in said)))
            self.drawn.setdefault(one.task, []).append(max((each.draws for each in said), default=0))
        return found

    def _answers(self, questions: Sequence[Question], how: How, greedy: bool) -> list[Answer]:
        asker = Asker(self.model.process, self.model.denoiser, self.model.device, self.batch, self.spent["scored"])  # pyright: ignore[reportArgumentType]

        def ask(missing: list[Question]) -> list[Any]:
            said = score(self.model.process, self.model.denoiser, asker, missing, how, greedy)
            return [[one.nats, one.standard_error, one.greedy, one.draws] for one in said]

        keys = [digest(self._model_is, "answer", _options(how), greedy, *one) for one in questions]
        return [Answer(*one) for one in self._recalled(questions, keys, ask, SCORED_AT_ONCE)]

    def _written(self, how: Way, prompts: Sequence[Ids]) -> list[str]:
        """Texts behind prompts. The same prompt is written once where nothing is drawn, else once for each request."""
        times = Counter[Ids]()
        numbered = list[tuple[Ids, int]]()
        for prompt in prompts:
            numbered.append((prompt, times[prompt] if how.options["temperature"] else 0))
            times[prompt] += 1
        asked = sorted(set(numbered), key=lambda one: (len(one[0]), one))

        def ask(missing: list[tuple[Ids, int]]) -> list[Any]:
            seeds = [derive(self.how.seed, zlib.crc32(repr(prompt).encode()), nth) for prompt, nth in missing]
            return write(self.model, how, [one[0] for one in missing], seeds, self._chat, self.spent["written"])

        turn = None if self._chat is None else [self._chat.turn]
        about = [how.until, how.length, how.options, turn, self.how.seed]
        keys = [digest(self._model_is, "text", *about, *one) for one in asked]
        found = dict(zip(asked, self._recalled(asked, keys, ask, self.batch or AT_ONCE), strict=True))
        return [found[one] for one in numbered]

    def _recalled(
        self, asked: Sequence[Any], keys: Sequence[str], ask: Callable[[list[Any]], list[Any]], at_once: int
    ) -> list[Any]:
        """What was kept, and what is now found of the rest, stored some at a time, so that a run can be taken up."""
        self.counts["distinct"] += len(asked)
        found = [None] * len(asked) if self.kept is None else self.kept.get(keys)
        missing = [at for at, one in enumerate(found) if one is None]
        self.counts["kept"] += len(asked) - len(missing)
        for first in range(0, len(missing), at_once):
            part = missing[first : first + at_once]
            said = ask([asked[at] for at in part])
            for at, one in zip(part, said, strict=True):
                found[at] = one
            if self.kept is not None:
                self.kept.put({keys[at]: found[at] for at in part})
        return found

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval stores beside its results."""
        process, facts = self.model.process.name, self.model.denoiser.facts
        return {"process": process, "attention": facts.attention, "context": self.model.context, **_options(self.how)}

    def record(self) -> dict[str, Any]:
        """What a run cost, and how sure its figures are."""
        found: dict[str, Any] = {"requests": dict(self.counts)}
        found["cost"] = {name: vars(one) for name, one in self.spent.items()}
        found["settings"] = self.used
        found["log_p"] = {task: self._surely(task, errors) for task, errors in self.errors.items()}
        return found

    def _surely(self, task: str, errors: Sequence[float]) -> dict[str, Any]:
        """What log p of a task is, and how sure; errors are None where a single draw does not say."""
        estimator, unknown = self.used[task]["estimator"], any(map(math.isnan, errors))
        return {
            "estimator": estimator,
            "is": LOG_P[estimator],
            "draws": max(self.drawn[task]),
            "mean_standard_error": None if unknown else sum(errors) / len(errors),
            "largest_standard_error": None if unknown else max(errors),
        }


register_model("redraft")(Harness)


def _place(question: Question) -> tuple[int, Ids, int]:
    """Where a question stands: the longest first, those of one prompt together."""
    prompt, answer = question
    return -len(prompt) - len(answer), prompt, len(answer)


def _options(how: How) -> dict[str, Any]:
    return {"estimator": how.estimator, "draws": how.draws, "weight": how.weight, "seed": how.seed}


def _batch(size: int | str | None, most: int | None) -> int | None:
    """Texts in a forward, None for as many as memory is planned for. Errors: ``ValueError`` for anything else."""
    if size is None or str(size).partition(":")[0] == "auto":
        return most
    if not str(size).isdecimal() or int(size) < 1:
        raise ValueError(f"batch_size={size!r}: pass a number from 1, or 'auto'")
    return int(size) if most is None else min(int(size), most)
