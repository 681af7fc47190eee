"""Defences at the level of decoding: what a draft may become, and what a canvas may hold before it is written.

- **policy**: every draft is read after every step; where it is flagged, the answer becomes a refusal, or
- **remask**: the flagged tokens become masks again and are written anew, so many times, before it does;
- **cap**: a canvas on which more is given than a chat front end ever gives is not written at all;
- **eos**: an answer that the model would end at once, by its first call, becomes a refusal;
- **annealed**: which tokens are written first is partly left to chance (``annealed``).

Each is a few lines over the loop of ``sample``, and none replaces a model that was taught to refuse.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import groupby, pairwise, takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.generation import Generation, Row
from redraft.processes import Process, absorbing
from redraft.randomness import rand
from redraft.sampling import Step
from redraft.sampling.contract import Draw, Query, Sampler, proposing
from redraft.sampling.proposal import even, masks, propose, top

if TYPE_CHECKING:
    from redraft.lm import LM

Policy = Callable[[str], bool | Sequence[tuple[int, int]]]
"""What reads a draft: whether it is flagged, or which of its characters are, (start, stop) of each span.

A mask stands in a draft as one ``GAP``, a special token not at all.
"""
GAP = "░"
REFUSAL = "I cannot help with that."


@dataclass(frozen=True)
class Cap:
    """At most so many tokens, in so many spans, may be given where an answer is to be written.

    Counted are the tokens given behind a gap, the chat template's own too, or in the room of the answer. 0 is
    response-only fill: masks are filled behind the prompt and nowhere else. Errors: ``ValueError`` below 0.
    """

    tokens: int = 0
    spans: int = 1

    def __post_init__(self) -> None:
        if min(self.tokens, self.spans) < 0:
            raise ValueError(f"cap of {self.tokens} tokens in {self.spans} spans: pass numbers from 0")

    @staticmethod
    def counted(row: Row, start: int) -> tuple[int, int]:
        """(tokens, spans) given on a canvas whose answer's room begins at ``start``."""
        begin = min(start, next((place for place, token in enumerate(row) if token is None), len(row)))
        given = [token is not None for token in row[begin:]]
        return sum(given), sum(one and not before for one, before in zip(given, [False, *given], strict=False))

    def refuses(self, row: Row, start: int) -> bool:
        """Whether a canvas holds more than this."""
        tokens, spans = self.counted(row, start)
        return tokens > self.tokens or spans > self.spans


@dataclass(frozen=True)
class Defences:
    """The defences that are on; all are off unless given.

    ``policy`` reads drafts; a flagged one is refused at once, or after ``remask`` times of masking what is flagged
    again. ``eos`` refuses an answer whose first free position the model would end the text at with a probability above
    it (the abort of A2D, arXiv 2509.23286, at one position). ``annealing`` is alpha of ``annealed``, which is a sampler
    to be passed, and all that no ``Guard`` can keep. ``refusal`` is what an answer becomes.

    Errors: ``ValueError`` for what is out of range, and ``remask`` without a policy.
    """

    policy: Policy | None = None
    remask: int = 0
    cap: Cap | None = None
    eos: float | None = None
    annealing: float | None = None
    refusal: str = REFUSAL

    def __post_init__(self) -> None:
        if self.remask < 0 or (self.remask and self.policy is None):
            raise ValueError(f"remask={self.remask}: pass a number of times from 0, and the policy that flags a draft")
        if self.eos is not None and not 0 <= self.eos < 1:
            raise ValueError(f"eos={self.eos}: pass a probability from 0, below 1")
        if self.annealing is not None and not 0 < self.annealing <= 1:
            raise ValueError(f"annealing={self.annealing}: pass a share above 0, at most 1")
        if not self.refusal.strip():
            raise ValueError("refusal='': pass what a refused answer is to say")

    def to_dict(self) -> dict[str, Any]:
        """What is on, for a record."""
        on = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        if self.policy is not None:
            on["policy"] = getattr(self.policy, "__name__", type(self.policy).__name__)
        return on | ({} if self.cap is None else {"cap": vars(self.cap)})


def phrases(texts: Sequence[str]) -> Policy:
    """A policy that flags each place of some phrases, letters equal in either case. Errors: ``ValueError`` for none."""
    if not texts or not all(one.strip() for one in texts):
        raise ValueError("a policy of no phrases, or of a blank one: pass those that a draft may not hold")
    pattern = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))), re.IGNORECASE)

    def flagged(draft: str) -> list[tuple[int, int]]:
        return [place.span() for place in pattern.finditer(draft)]

    flagged.__name__ = f"phrases ({len(texts)})"
    return flagged


class Guard:
    """The callback that keeps ``defences``: ``lm.chat(messages, callback=guard)``, then ``guard.texts(made)``.

    A row that is refused costs no more calls where masks are the only noise and nothing is revised: its free positions
    become ends of text. In blocks only the one in work can be rewritten, so that one call is left of each behind it,
    none if the first of ``ends`` is the ``stop`` of the draw. What is flagged in an earlier block is refused, not
    masked again, and it is ``texts`` that keeps it from being told. ``begins``: where the draft begins of each row, its
    first free position unless given; ``ends``: the ids that end an answer, beside the end of text. A guard is of one
    draw.

    Errors: ``ValueError`` for ``remask`` of a process without fixed masks; for ``eos`` of a model without an end of
    text, and a sampler that does not ask about the first free position in its first step.
    """

    def __init__(self, lm: "LM", defences: Defences, begins: Sequence[int] | None = None, ends: Sequence[int] = ()):
        if defences.remask and not absorbing(lm.process):
            raise ValueError(f"remask={defences.remask} with a {lm.process.name} process, which has no masks to set")
        self.lm, self.defences, self.begins = lm, defences, begins
        self.ends: list[int] = list(dict.fromkeys([*ends, *([] if lm.eos_id is None else [lm.eos_id])]))
        if defences.eos is not None and not self.ends:
            raise ValueError(f"eos={defences.eos} with a model that has no end of text: leave it out")
        self.refused: dict[int, str] = {}
        """The defence that refused each row, by its number."""
        self.remasked: Counter[int] = Counter()
        """How often each row had tokens masked again."""
        self._firsts: dict[int, int] = {}
        other = 1 if lm.process.mask_id == 0 else 0  # of a model without an end of text: any token, for none is shown
        self._nothing = self.ends[0] if self.ends else other
        self._silent = silent(lm, self.ends)

    def __call__(self, step: Step) -> Tensor | None:
        tokens = step.tokens.clone()
        for place, number in enumerate(step.rows or range(len(tokens))):
            if number not in self.refused and step.index == 0 and not bool(step.frozen[place].all()):
                self._at_first(step, place, number)
            if number not in self.refused and self.defences.policy is not None:
                self._at_each(step, place, number, tokens)
            if number in self.refused:
                tokens[place] = tokens[place].masked_fill(~step.frozen[place], self._nothing)
        return None if torch.equal(tokens, step.tokens) or not absorbing(self.lm.process) else tokens

    def settle(self, rows: Sequence[Sequence[int]]) -> None:
        """Read the finished rows, each its own ids: what was filled after the last step no callback has seen."""
        for number, ids in enumerate(rows):
            if number not in self.refused and self._flagged(ids[self._begin(number) :]):
                self.refused[number] = "policy"

    def texts(self, made: Generation) -> list[str]:
        """The texts of what was written, or in their place the refusal."""
        self.settle(made.rows)
        return [self.defences.refusal if row in self.refused else text for row, text in enumerate(made.texts)]

    def _at_first(self, step: Step, place: int, number: int) -> None:
        """Refuse a row on which too much is given, or that the model would end at once."""
        begin = self._begin(number, step.frozen[place])
        row = [0 if given else None for given in step.frozen[place].tolist()]
        if self.defences.cap is not None and self.defences.cap.refuses(row, begin):
            self.refused[number] = "cap"
        if self.defences.eos is None or number in self.refused:
            return
        logp = first_law(step, place)
        if logp is None:
            raise ValueError(
                f"eos={self.defences.eos} with a sampler that does not ask about the first free position in its first "
                "step, so the check cannot be made: use another, low_confidence say"
            )
        if float(logp[self.ends].double().exp().sum()) > self.defences.eos:
            self.refused[number] = "eos"

    def _at_each(self, step: Step, place: int, number: int, tokens: Tensor) -> None:
        """Mask again what is flagged of a draft, or refuse it; ``tokens`` (B, L) is rewritten."""
        ids = step.tokens[place].tolist()
        begin = self._begin(number, step.frozen[place])
        spans = self._flagged(ids[begin:])
        if not spans:
            return
        there = torch.zeros_like(step.frozen[place])
        if self.remasked[number] < self.defences.remask:
            there[[begin + one for one in touched(self.lm, ids[begin:], spans, self._silent)]] = True
            there &= ~step.frozen[place] & (step.tokens[place] != self.lm.process.mask_id)
            there[: step.start] = False  # of earlier blocks nothing can be written again
        if not bool(there.any()):
            self.refused[number] = "policy"
            return
        self.remasked[number] += 1
        assert self.lm.process.mask_id is not None
        tokens[place, there] = self.lm.process.mask_id

    def _flagged(self, ids: Sequence[int]) -> Sequence[tuple[int, int]]:
        """The spans that the policy flags, the whole draft for a bare yes."""
        if self.defences.policy is None:
            return []
        text = draft(self.lm, ids, self._silent)
        said = self.defences.policy(text)
        if isinstance(said, bool):
            return [(0, len(text))] if said else []
        return said

    def _begin(self, number: int, frozen: Tensor | None = None) -> int:
        if self.begins is not None:
            return self.begins[number]
        if frozen is not None:
            self._firsts[number] = int((~frozen).int().argmax())
        return self._firsts.get(number, 0)


def first_law(step: Step, row: int) -> Tensor | None:
    """log p (K,) of a row's first free position, by what was said before the step; None where it was not asked."""
    where, logp = step.law
    place = int((~step.frozen[row]).int().argmax())
    if step.frozen[row, place] or not where[row, place]:
        return None
    return logp[int(where.flatten()[: row * where.shape[1] + place].sum())]


def silent(lm: "LM", ends: Sequence[int]) -> frozenset[int]:
    """The ids that no draft shows as text: special tokens, and what ends an answer."""
    added = lm.tokenizer.backend.get_added_tokens_decoder()
    return frozenset({*ends, *(i for i, token in added.items() if token.special)})


def draft(lm: "LM", ids: Sequence[int], silent: Collection[int] = ()) -> str:
    """The text of ids, a ``GAP`` for each mask, and nothing for those that are ``silent``."""
    return "".join(_shown(lm, mark, run) for mark, run in _runs(lm, ids, silent))


def touched(lm: "LM", ids: Sequence[int], spans: Sequence[tuple[int, int]], silent: Collection[int] = ()) -> list[int]:
    """The places of the ids of which a character lies in a span of ``draft``.

    A character that several tokens spell lies in each of them.
    """
    ends, shown = list[tuple[int, int]](), 0
    for mark, run in _runs(lm, ids, silent):
        text = _shown(lm, mark, run)
        sure = [_agree(_shown(lm, mark, run[:size]), text) for size in range(len(run) + 1)]
        least = 0 if mark == "" else 1  # what is not shown lies in what goes on around it alone
        ends += [(shown + start, shown + max(stop, start + least)) for start, stop in pairwise(sure)]
        shown += len(text)
    return [place for place, (a, b) in enumerate(ends) if any(a < stop and start < b for start, stop in spans)]


def _agree(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _runs(lm: "LM", ids: Sequence[int], silent: Collection[int]) -> list[tuple[str | None, list[int]]]:
    """Stretches of ids, each with what every one of them is shown as: masks, silent ones, and None for a text."""

    def mark(one: int) -> str | None:
        return GAP if one == lm.tokenizer.mask_id else "" if one in silent else None

    return [(shown, list(run)) for shown, run in groupby(ids, mark)]


def _shown(lm: "LM", mark: str | None, run: Sequence[int]) -> str:
    return lm.decode(run) if mark is None else mark * len(run)


# ------------------------------------------------------------------------------------------------- leaving it to chance


@proposing
def _annealed(
    process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw, *, alpha: float
) -> Tensor:
    open_ = masks("annealed", process, z, draw)
    count = even(open_.sum(1), t, s)
    proposal = propose(process, denoiser, z, t, s, draw, open_ & (count > 0)[:, None])
    share = (alpha * t)[:, None]
    score = (1 - share) * proposal.confidence().double() + share * rand(z.shape, draw.generator, z.device)
    return proposal.write(top(score, open_, count))


def annealed(alpha: float) -> Sampler:
    """``low_confidence`` that ranks by (1 - a) p + a U, U uniform on [0, 1) and a = alpha t: less and less by chance.

    After DiffuGuard (arXiv 2509.24296): what is likeliest first is then not always written first. ``alpha`` in (0, 1].
    """
    return partial(_annealed, alpha=alpha)


# --------------------------------------------------------------------------------------------------------- by its name

OPTIONS: dict[str, dict[str, float]] = {
    "policy": {},
    "remask": {"times": 3},
    "cap": {"tokens": 0, "spans": 1},
    "eos": {"above": 0.5},
    "annealed": {"alpha": 0.3},
}
"""The defences by name, with their options and what those are unless given."""


def by_name(names: Sequence[str], policy: Policy | None = None, refusal: str | None = None) -> Defences | None:
    """Defences as ``"remask:times=2"`` and its kin name them; None of no names.

    Errors: ``ValueError`` for an unknown name or option, a value that is no number, a policy that is missing or not
    read, a refusal without a defence.
    """
    found: dict[str, Any] = {}
    for name in names:
        own, _, options = name.partition(":")
        if own not in OPTIONS:
            raise unknown("defence", own, OPTIONS)
        values = _values(own, options)
        found |= {
            "policy": {"policy": policy},
            "remask": {"policy": policy, "remask": int(values.get("times", 0))},
            "cap": {"cap": Cap(int(values.get("tokens", 0)), int(values.get("spans", 1)))},
            "eos": {"eos": values.get("above")},
            "annealed": {"annealing": values.get("alpha")},
        }[own]
    if ("policy" in found) != (policy is not None):
        raise ValueError("defences 'policy' and 'remask' need what is flagged, and nothing else reads it: pass both")
    if refusal is not None and not found.keys() & {"policy", "cap", "eos"}:
        raise ValueError(f"refusal={refusal!r} without a defence that refuses: leave it out")
    if refusal is not None:
        found["refusal"] = refusal
    return Defences(**found) if found else None


def _values(name: str, written: str) -> dict[str, float]:
    values = dict(OPTIONS[name])
    for part in filter(None, written.split(",")):
        option, _, value = part.partition("=")
        if option not in values:
            raise unknown(f"option of the defence {name!r}:", option, values)
        try:
            values[option] = type(values[option])(value)
        except ValueError:
            raise ValueError(f"defence {name!r}: {option}={value!r} should be like {values[option]!r}") from None
    return values
