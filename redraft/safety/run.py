"""The evaluation: every request under every condition and setting, written, defended, scored and counted."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from torch import Tensor

from redraft import answering
from redraft.generation import Options
from redraft.guidance import cfg, unprompted
from redraft.processes import Denoiser
from redraft.randomness import derive
from redraft.safety.behaviours import Behaviour, unique
from redraft.safety.conditions import Answer, Case, Condition, cases
from redraft.safety.defences import Defences, Guard, annealed, draft, first_law, silent
from redraft.safety.metrics import differences, rates
from redraft.safety.scoring import Judge, Keywords, Verdict, name_of
from redraft.sampling import Step
from redraft.writing import Writer

if TYPE_CHECKING:
    from redraft.data.chat import Chat
    from redraft.lm import LM

MOST_CELLS = 256


@dataclass(frozen=True)
class Setting:
    """How answers are written, a factor each; None is as usual. ``guidance``: the weight towards the prompt, 1 none."""

    steps: int | None = None
    block: int | None = None
    sampler: str | None = None
    guidance: float | None = None


def settings(
    steps: Sequence[int] = (), block: Sequence[int] = (), sampler: Sequence[str] = (), guidance: Sequence[float] = ()
) -> list[Setting]:
    """Every combination of some values of each factor, in order; as usual of a factor without."""
    return [Setting(*one) for one in product(steps or [None], block or [None], sampler or [None], guidance or [None])]


def measure(
    lm: "LM",
    behaviours: Sequence[Behaviour],
    conditions: Sequence[Condition],
    settings: Sequence[Setting] = (Setting(),),
    *,
    keywords: Keywords | None = None,
    judge: Judge | None = None,
    defences: Defences | None = None,
    seed: int = 0,
    save_responses: bool = False,
    template: str | None = None,
    turn: str | None = None,
    preset: str | None = None,
    temperature: float | None = None,
    told: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The figures of each condition and setting (``metrics.rates``), and ``differences`` between them, for a record.

    Request r is answered once in each cell, by the seed derive(seed, r), whatever the cell: what differs between cells
    is not the draw. ``keywords`` are the English ones unless given; a ``judge`` is asked of every answer that no
    defence refused, and once of a refusal, whether it knows of any. Answers are stored only with ``save_responses``,
    requests never; a cell has the ``options`` it was written by, an answer its ``free`` tokens. ``told`` hears of each.

    Errors: ``ValueError`` for no requests or conditions, an id that stands twice, too many cells, and whatever
    ``cases``, ``Guard`` and ``sample`` refuse, before anything is written where it can be known.
    """
    keywords = keywords or Keywords()
    if not behaviours or not conditions:
        raise ValueError(f"{len(behaviours)} requests under {len(conditions)} conditions: pass at least one of each")
    unique(behaviours, "the requests")
    chat = answering.speaks(lm.tokenizer, lm.about, template, turn)
    grid = _crossed(conditions, settings)
    made = [
        cases(condition, length, behaviours, lm, chat, _options(how, temperature, defences), preset)
        for condition, length, how in grid
    ]
    numbers = {one.id: number for number, one in enumerate(behaviours)}
    known = None if judge is None or defences is None else _knows_refusals(judge, behaviours[0], defences)
    cells = list[dict[str, Any]]()
    for (condition, length, how), some in zip(grid, made, strict=True):
        seeds = [derive(seed, numbers[case.behaviour.id]) for case in some]
        answers = _Answerer(lm, chat, keywords, defences).answers(some, how, seeds)
        found = [_judged(one, keywords, judge, Verdict(known, False), save_responses) for one in answers]
        about = {"condition": condition.name, "frozen": condition.frozen, "length": length, **asdict(how)}
        about["options"] = {name: value for name, value in some[0].options.items() if not callable(value)}
        cells.append({**about, **rates(found, judge is not None), "answers": found})
        if told is not None:
            told(f"{condition.name}, cell {len(cells)} of {len(grid)}: {len(found)} answers")
    harmful = sum(one.harmful for one in behaviours)
    return {
        "requests": {"harmful": harmful, "benign": len(behaviours) - harmful},
        "keywords": keywords.name,
        "judge": None if judge is None else name_of(judge),
        "defences": {} if defences is None else defences.to_dict(),
        "responses": "saved" if save_responses else "redacted",
        "cells": cells,
        "differences": differences(cells),
    }


def _crossed(
    conditions: Sequence[Condition], settings: Sequence[Setting]
) -> list[tuple[Condition, int | None, Setting]]:
    """The cells: every condition with each of its lengths and every setting."""
    grid = [(one, length, how) for one in conditions for length in one.lengths for how in settings]
    if len(grid) > MOST_CELLS:
        raise ValueError(f"{len(grid)} cells of conditions, lengths and settings: pass {MOST_CELLS} at most")
    return grid


def _options(how: Setting, temperature: float | None, defences: Defences | None) -> Options:
    """The options of ``sample`` that a setting means."""
    asked: dict[str, Any] = {"steps": how.steps, "block": how.block, "sampler": how.sampler, "temperature": temperature}
    if defences is not None and defences.annealing is not None:
        if how.sampler not in (None, "low_confidence"):
            raise ValueError(f"sampler={how.sampler!r} with the defence 'annealed', which is one of its own: leave it")
        asked["sampler"] = annealed(defences.annealing)
    options: Any = {name: value for name, value in asked.items() if value is not None}
    return options


@dataclass(frozen=True)
class _Written:
    """An answer before it is judged, and what was seen of its steps."""

    case: Case
    answer: Answer
    stopped: str | None
    remasked: int
    first_refusal: float | None
    first_end: float | None
    refusal_step: int | None


class _Watch:
    """The callback: sees the first call and when a refusal stands, then lets the guard act."""

    def __init__(self, lm: "LM", cases: Sequence[Case], keywords: Keywords, ends: Sequence[int], guard: Guard | None):
        self.lm, self.keywords, self.guard = lm, keywords, guard
        self.cases = cases
        self.starts, self.ends, self.silent = _beginnings(lm, keywords), ends, silent(lm, ends)
        self.first: dict[int, tuple[float, float]] = {}
        self.complete: dict[int, int] = {}

    def __call__(self, step: Step) -> Tensor | None:
        for place, number in enumerate(step.rows):
            if step.index == 0 and (logp := first_law(step, place)) is not None:
                p = logp.double().exp()
                self.first[number] = float(p[self.starts].sum()), float(p[list(self.ends)].sum())
            if number not in self.complete and self._refuses(self.cases[number], step, place):
                self.complete[number] = step.index + 1
        return None if self.guard is None else self.guard(step)

    def _refuses(self, case: Case, step: Step, place: int) -> bool:
        """Whether a phrase stands in the draft, of which the model wrote the end."""
        ids = step.tokens[place]
        if case.start == len(case.row):  # gaps between the user's texts: what fills them is the model's
            own = ids.masked_fill(step.frozen[place], self.lm.tokenizer.mask_id)
            return self.keywords.holds(draft(self.lm, own.tolist(), self.silent))
        text, given = ids[case.start :].tolist(), ids[case.start : case.start + case.prefix].tolist()
        return self.keywords.holds(draft(self.lm, text, self.silent), len(draft(self.lm, given, self.silent)))


def _beginnings(lm: "LM", keywords: Keywords) -> list[int]:
    """The tokens with which a refusal phrase may begin, behind a blank or not."""
    found = set[int]()
    for phrase in keywords.phrases:
        for text in (phrase, f" {phrase}"):
            first = lm.encode(text)[0]
            found |= {first} if lm.decode([first]).strip() else set()
    return sorted(found)


@dataclass(frozen=True)
class _Answerer:
    """The model as it is asked: in its chat template, watched, and with its defences."""

    lm: "LM"
    chat: "Chat"
    keywords: Keywords
    defences: Defences | None

    def answers(self, cases: Sequence[Case], how: Setting, seeds: Sequence[int]) -> list[_Written]:
        """The answers to some cases, in order; those that the cap refuses cost nothing."""
        capped = [self._capped(case) for case in cases]
        open_ = [number for number, refused in enumerate(capped) if not refused]
        found = {number: self._refused(cases[number], "cap") for number, refused in enumerate(capped) if refused}
        if open_:
            wrote = self._write([cases[number] for number in open_], how, [seeds[number] for number in open_])
            found |= dict(zip(open_, wrote, strict=True))
        return [found[number] for number in range(len(cases))]

    def _capped(self, case: Case) -> bool:
        cap = None if self.defences is None else self.defences.cap
        return cap is not None and cap.refuses(case.row, case.start)

    def _refused(self, case: Case, by: str) -> _Written:
        assert self.defences is not None
        said = self.defences.refusal
        return _Written(case, Answer(said, said), by, 0, None, None, None)

    def _write(self, cases: Sequence[Case], how: Setting, seeds: Sequence[int]) -> list[_Written]:
        lm, defences = self.lm, self.defences
        ends = list(dict.fromkeys(one for one in (self.chat.turn_id, lm.eos_id) if one is not None))
        guard = None if defences is None else Guard(lm, defences, [case.begins for case in cases], ends)
        watch = _Watch(lm, cases, self.keywords, ends, guard)
        writer = Writer(lm.process, _guided(lm, how.guidance), lm.device, lm.context, lm.eos_id)
        options: Options = {**cases[0].options, "callback": watch, "seeds": seeds}
        tokens = writer.rows([case.row for case in cases], options).tokens.tolist()
        rows = [ids[: len(case.row)] for case, ids in zip(cases, tokens, strict=True)]  # shorter ones were filled up
        if guard is not None:
            guard.settle(rows)
        return [self._told(case, ids, watch, row) for row, (case, ids) in enumerate(zip(cases, rows, strict=True))]

    def _told(self, case: Case, ids: Sequence[int], watch: _Watch, row: int) -> _Written:
        stopped = None if watch.guard is None else watch.guard.refused.get(row)
        remasked = 0 if watch.guard is None else watch.guard.remasked[row]
        answer = case.read(ids) if stopped is None else self._refused(case, stopped).answer
        first = watch.first.get(row, (None, None))
        return _Written(case, answer, stopped, remasked, *first, watch.complete.get(row))


def _guided(lm: "LM", weight: float | None) -> Denoiser:
    return lm.denoiser if weight in (None, 1) else cfg(lm.denoiser, unprompted(lm.denoiser), weight=weight)


def _knows_refusals(judge: Judge, behaviour: Behaviour, defences: Defences) -> bool | None:
    """True for a judge that says of answers whether they refuse, None for one that does not."""
    return None if judge(behaviour, defences.refusal).refused is None else True


def _judged(one: _Written, keywords: Keywords, judge: Judge | None, refusal: Verdict, save: bool) -> dict[str, Any]:
    """An answer as the record has it. What a defence refused is a ``refusal``, whatever its words."""
    verdict, asked = Verdict(None, None), one.case.behaviour
    if judge is not None:
        verdict = refusal if one.stopped is not None else judge(asked, one.answer.text)
    return {
        "id": asked.id,
        "category": asked.category,
        "harmful": asked.harmful,
        "free": one.case.row.count(None),
        "refused": one.stopped is not None or keywords.refuses(one.answer.searched, one.answer.given),
        "judged_refused": verdict.refused,
        "judged_harmful": verdict.harmful,
        "score": verdict.score,
        "stopped": one.stopped,
        "remasked": one.remasked,
        "first_refusal": one.first_refusal,
        "first_end": one.first_end,
        "refusal_step": one.refusal_step,
        **({"response": one.answer.text} if save else {}),
    }
