"""log p of many answers at once, and whether each is what greedy decoding writes.

The figures are those of ``redraft.evaluation.answers``, asked for together: choices of one prompt share the sets that
are hidden, and canvases that are equal, as with choices of one token, are asked once. The sets that a bound draws
depend on the prompt and the answer's length, never on what else is scored.

``greedy`` is of decoding by confidence, a token a step, at temperature 0, when the answer's length is given: from all
masks on, the likeliest token at the position the network is surest of is the answer's each time (block by block, of a
block model). It costs little: it ends at the first token that differs, and most of what it asks is asked anyway.
"""

import math
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from redraft.evaluation.answers import GROUPS, spans_of
from redraft.guidance import cfg, unprompted
from redraft.harness.asking import Asker, Job
from redraft.harness.plans import How, Plan, plan
from redraft.processes import Denoiser, Process, absorbing
from redraft.randomness import derive

Ids = tuple[int, ...]
Question = tuple[Ids, Ids]
"""Prompt and answer."""


@dataclass(frozen=True)
class Answer:
    """``nats``: log p(answer | prompt) as estimated, with its ``standard_error`` (0 where nothing is drawn, nan of one
    draw), as the harness has it too; ``greedy`` as the module says; ``draws`` of sets, 0 where none is drawn."""

    nats: float
    standard_error: float
    greedy: bool
    draws: int


@dataclass
class _Case:
    """The answers of one length to one prompt, and what is known of each, span by span."""

    prompt: Ids
    answers: list[Ids]
    spans: list[range]
    plans: list[Plan]
    groups: int
    totals: Tensor = field(init=False)
    greedy: list[bool] = field(init=False)

    def __post_init__(self) -> None:
        self.totals = torch.zeros(len(self.answers), self.groups, dtype=torch.float64)
        self.greedy = [True] * len(self.answers)

    def text(self, numbers: Sequence[int], stop: int) -> Tensor:
        """Prompt and answers up to ``stop``, (Q, stop)."""
        return torch.tensor([(*self.prompt, *self.answers[number])[:stop] for number in numbers])


@dataclass
class _Walk:
    """A greedy decoding under way that has agreed so far: of which answer and span, and what is left to write."""

    case: _Case
    number: int
    span: range
    left: Tensor


def score(
    process: Process,
    denoiser: Denoiser,
    asker: Asker,
    questions: Sequence[Question],
    how: How,
    greedy: bool = True,
) -> list[Answer]:
    """What the ``asker`` finds of each question, in their order; equal ones are asked once.

    Without ``greedy`` it is not looked for, and False. Errors: those of ``answers.score``.
    """
    how = replace(how, estimator=chosen(process, denoiser, how))
    if how.weight != 1:
        asker = replace(asker, denoiser=cfg(denoiser, unprompted(denoiser), weight=how.weight))
    for prompt, answer in questions:
        if not answer:
            raise ValueError("an answer without tokens has no log p: pass a text")
        if not prompt and denoiser.facts.shifted:
            raise ValueError("an answer without a prompt, and logits that are shifted say nothing of a first token")
    grouped = defaultdict[tuple[Ids, int], dict[Ids, None]](dict)
    for prompt, answer in questions:
        grouped[prompt, len(answer)][answer] = None
    order = sorted(grouped, key=lambda key: (len(key[0]) + key[1], len(key[0]), key), reverse=True)
    cases = [_case(denoiser, asker.at_once, prompt, list(grouped[prompt, size]), how) for prompt, size in order]
    walks = list[_Walk]()
    for job, case, number in _asked(asker, cases):
        walks += _read(case, number, job, asker.at_once, greedy)
    while walks:
        walks = _on(asker, walks)
    found = dict[Question, Answer]()
    for case in cases:
        drawn = any(one.groups is not None for one in case.plans)
        error = _error(case) if drawn else torch.zeros(len(case.answers))
        for number, answer in enumerate(case.answers):
            nats, draws = case.totals[number].mean().item(), how.draws if drawn else 0
            found[case.prompt, answer] = Answer(nats, error[number].item(), greedy and case.greedy[number], draws)
    return [found[question] for question in questions]


def chosen(process: Process, denoiser: Denoiser, how: How) -> str:
    """The estimator, chosen where it is not given. Errors: ``ValueError`` for one, or a process, that does not fit."""
    if not absorbing(process):
        raise ValueError(
            f"answers to be scored by a {process.name} process: that needs one with fixed masks; redraft evaluate "
            "measures texts of any, and tasks that generate run with any"
        )
    causal = denoiser.facts.attention == "causal"
    found = ("chain_rule" if causal else "bound") if how.estimator is None else how.estimator
    if causal and found != "chain_rule":
        raise ValueError(f"estimator={found!r} of an autoregressive denoiser, which has one order: 'chain_rule'")
    return found


def _case(denoiser: Denoiser, at_once: bool, prompt: Ids, answers: list[Ids], how: How) -> _Case:
    """The spans of answers of one length, blocks of a block model's, with the sets of each."""
    spans = spans_of(denoiser, len(prompt), len(prompt) + len(answers[0]))
    own = replace(how, estimator="one_step") if at_once else how
    seed = derive(how.seed, zlib.crc32(repr(prompt).encode()))
    plans = [plan(len(span), own, seed, nth) for nth, span in enumerate(spans)]
    return _Case(prompt, answers, spans, plans, min(GROUPS, how.draws))


def _asked(asker: Asker, cases: Sequence[_Case]) -> Iterator[tuple[Job, _Case, int]]:
    """The job of each span of each case, answered, the longest first."""
    parts = [(case, number) for case in cases for number in range(len(case.spans))]
    parts.sort(key=lambda part: part[0].spans[part[1]].stop, reverse=True)
    waiting = list[tuple[_Case, int]]()

    def jobs() -> Iterator[Job]:
        for case, number in parts:
            span, rows = case.spans[number], case.plans[number].hidden
            waiting.append((case, number))
            of = torch.arange(len(case.answers)).repeat_interleave(len(rows))
            text = case.text(range(len(case.answers)), span.stop)
            yield Job(text, len(case.prompt), span.start, of, rows.repeat(len(case.answers), 1), asker.at_once)

    for nth, job in enumerate(asker(jobs())):
        yield job, *waiting[nth]


def _read(case: _Case, number: int, job: Job, at_once: bool, greedy: bool) -> list[_Walk]:
    """Add what a span says to its case; the decodings that go on beyond the sets asked."""
    span, own = case.spans[number], case.plans[number]
    shape = len(case.answers), *own.hidden.shape
    case.totals += own.totals(job.logp.view(shape), case.groups)
    if not greedy:
        return []
    if at_once:
        for nth, right in enumerate(job.right.view(shape).all(2).all(1).tolist()):
            case.greedy[nth] &= right
        return []
    best, right = job.best.view(shape[:2]), job.right.view(shape)
    whole = int(own.hidden.all(1).nonzero()[0])
    walks = [_Walk(case, nth, span, torch.ones(len(span), dtype=torch.bool)) for nth in range(len(case.answers))]
    walks = [walk for walk in walks if _step(walk, int(best[walk.number, whole]), right[walk.number, whole])]
    known = {row.numpy().tobytes(): place for place, row in enumerate(own.hidden)} if walks else {}
    found = list[_Walk]()
    for walk in walks:
        more = True
        while more and (row := known.get(walk.left.numpy().tobytes())) is not None:
            more = _step(walk, int(best[walk.number, row]), right[walk.number, row])
        found += [walk] * more
    return found


def _step(walk: _Walk, best: int, right: Tensor) -> bool:
    """Write the surest token; whether there is more to write of a decoding that agrees."""
    if not bool(right[best]):
        walk.case.greedy[walk.number] = False
        return False
    walk.left[best] = False
    return bool(walk.left.any())


def _on(asker: Asker, walks: list[_Walk]) -> list[_Walk]:
    """One step further with each; those that still agree and are not at their end."""
    walks = [walk for walk in walks if walk.case.greedy[walk.number]]
    walks.sort(key=lambda walk: walk.span.stop, reverse=True)
    one = torch.zeros(1, dtype=torch.long)
    jobs = (
        Job(walk.case.text([walk.number], walk.span.stop), len(walk.case.prompt), walk.span.start, one, walk.left[None])
        for walk in walks
    )
    told = zip(walks, asker(jobs), strict=True)
    return [walk for walk, job in told if _step(walk, int(job.best[0]), job.right[0])]


def _error(case: _Case) -> Tensor:
    """The standard error over groups, (Q,)."""
    if case.groups == 1:
        return torch.full((len(case.answers),), math.nan)
    return case.totals.std(1, correction=1) / math.sqrt(case.groups)
