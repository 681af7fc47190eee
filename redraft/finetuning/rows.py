"""Conversations as rows: which tokens are answers, and what stands behind them.

Every row has ``valid``, the tokens that are noised and scored: those of answers with what ends them, and, where padding
is to be learned, the ends of text behind them, by which a model of fixed windows learns to stop (LLaDA).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from redraft.data import Packed
from redraft.data.chat import Chat, Message

Answers = Literal["each", "last", "all"]


@dataclass(frozen=True, eq=False)
class Example:
    """Ids of a conversation, to the end of its last answer, and which of them are learned."""

    ids: NDArray[np.int32]
    answer: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Padded:
    """A row an example, padded when it is asked for: to ``length``, or to the longest of those asked for together.

    ``learned``: padding is of the answer; else it is a segment apart, which nobody reads and nothing counts.
    """

    examples: Sequence[Example]
    pad_id: int
    learned: bool = True
    length: int | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: NDArray[np.int64] | Sequence[int] | slice) -> dict[str, NDArray[Any]]:
        chosen = [self.examples[i] for i in np.arange(len(self))[indices]]
        length = self.length or max(len(one.ids) for one in chosen)
        ids = np.full((len(chosen), length), self.pad_id, np.int32)
        valid, segments = np.full(ids.shape, self.learned), np.full(ids.shape, -1, np.int32)
        for row, one in enumerate(chosen):
            n = len(one.ids)
            ids[row, :n], valid[row, :n], segments[row, :n] = one.ids, one.answer, 0
        return {"ids": ids, "valid": valid} | ({} if self.learned else {"segments": segments})


def examples(chat: Chat, conversations: Sequence[Sequence[Message]], answers: Answers = "each") -> list[Example]:
    """What is learned: ``each`` answer, with all before it as its prompt, the ``last`` one, or ``all`` together.

    Learned at once, an answer is told what was said after it; one by one it is not (LLaDA's guideline).
    """
    found = list[Example]()
    for messages in conversations:
        ends = [end for end, message in enumerate(messages, 1) if message["role"] == "assistant"]
        for end in ends if answers == "each" else ends[-1:]:
            ids, learned = chat.taught(messages[:end])
            answer = np.asarray(learned)
            stop = int(np.flatnonzero(answer)[-1]) + 1
            answer = answer[:stop].copy()
            if answers != "all":  # the runs before the last are told
                prompts = np.flatnonzero(~answer)
                answer[: prompts[-1] + 1 if len(prompts) else 0] = False
            found.append(Example(np.asarray(ids[:stop], np.int32), answer))
    return found


def beside(parts: Sequence[Example], length: int, pad_id: int) -> Packed:
    """Several conversations in a row of ``length``, each in the first that has room for it; each is a segment apart."""
    rows, left = list[list[Example]](), list[int]()
    for one in parts:
        row = next((i for i, room in enumerate(left) if room >= len(one.ids)), None)
        if row is None:
            row = len(rows)
            rows.append([])
            left.append(length)
        rows[row].append(one)
        left[row] -= len(one.ids)
    shape = len(rows), length
    ids, valid = np.full(shape, pad_id, np.int32), np.zeros(shape, np.bool_)
    segments, positions = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    for row, several in enumerate(rows):
        start = 0
        for number, one in enumerate(several):
            here = slice(start, start + len(one.ids))
            ids[row, here], valid[row, here], segments[row, here] = one.ids, one.answer, number
            positions[row, here] = np.arange(len(one.ids))
            start = here.stop
    return Packed(ids, valid, segments, 0, int(valid.sum()), positions)


def stacked(parts: Sequence[Example], pad_id: int, learned: bool, length: int | None) -> Packed:
    """Examples as one array of rows, for whoever measures them.

    Padded to ``length``, with ends of text that count if they are ``learned``. Without a length there is none to learn
    them up to: each is a row as long as itself, the longest of a batch of its own, with what ends its answer. What
    stands behind is a segment apart, which nobody reads and nothing counts: else the longest held out would say how
    many ends of text every other answer is measured by.
    """
    rows = Padded(parts, pad_id, learned and length is not None, length or max(len(one.ids) for one in parts))
    found = rows.batch(slice(None))
    return Packed(found["ids"], found["valid"], found.get("segments"), 0, int(found["valid"].sum()))


def split(conversations: Sequence[list[Message]], share: float) -> tuple[list[list[Message]], list[list[Message]]]:
    """Hold out about ``share`` of the conversations, two at least, by content hash: equal ones stand on one side.

    Errors: ``ValueError`` for too few.
    """
    if not share:
        return list(conversations), []
    marks = [hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest() for one in conversations]
    different = sorted(set(marks))
    if len(different) < 3:
        raise ValueError(f"{len(different)} different conversations are too few to hold some out: data.held_out=0")
    last = different[min(max(2, round(share * len(different))), len(different) - 1) - 1]
    sides = [
        [one for one, mark in zip(conversations, marks, strict=True) if (mark <= last) is out] for out in (False, True)
    ]
    return sides[0], sides[1]
