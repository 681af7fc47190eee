"""Many prompts continued, each until a string that ends it: what is written behind that is cut off, and not written.

A row whose text stands complete, an until string with all before it fixed, is finished at once: the rest of the block
in work is filled with the end of text, and no later block is asked for. Written whole, its canvas is filled and asked
for no more. So an answer of 20 tokens in a canvas of 256 costs its 20, and what is returned is the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from redraft import presets
from redraft.data.chat import Chat
from redraft.generation import Row, filled
from redraft.harness.asking import Spent
from redraft.harness.scoring import Ids
from redraft.lm import LM
from redraft.processes import absorbing
from redraft.sampling import Step, samplers
from redraft.sampling.contract import revises
from redraft.writing import Writer

LENGTH = 256
"""Tokens to write unless a task, its user or a model's authors say: the harness's own, at most half the context."""
AT_ONCE = 64
"""Prompts handed to the sampler together."""


@dataclass(frozen=True)
class Way:
    """How to write: strings that end a text, tokens at most, and the options of ``sample``."""

    until: tuple[str, ...]
    length: int
    options: Mapping[str, Any]

    def told(self) -> dict[str, Any]:
        """What is said of it in a record: all that is set, by whomever."""
        options = {name: value for name, value in self.options.items() if value not in (None, [], {})}
        return {"until": list(self.until), "length": self.length, **options}


def way(lm: LM, asked: Mapping[str, Any], chat: Chat | None) -> Way:
    """What was ``asked`` for (``settings.layered``), with what is usual of the model where that does not say.

    Unless told otherwise, texts are the likeliest (temperature 0), a masked model writes what it is surest of first,
    and a text ends at the end of text, or of the turn in a ``chat``.
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    until, preset, length = (asked.pop(name, None) for name in ("until", "preset", "length"))
    usual = presets.usual(lm.about.get("decoding", {}), preset, lm.tokenizer)
    length = min(usual.get("length", LENGTH), lm.context // 2) if length is None else length
    if not 1 <= length < lm.context:
        raise ValueError(f"length={length}: the model was trained on {lm.context} tokens, pass 1 to {lm.context - 1}")
    usual.setdefault("temperature", 1.0 if lm.denoiser.facts.vectors else 0.0)
    if absorbing(lm.process) and lm.denoiser.facts.attention != "causal":
        usual.setdefault("sampler", "low_confidence")
    options: dict[str, Any] = dict(filled({**asked}, usual))  # pyright: ignore[reportArgumentType]
    if options.get("sampler") is not None:
        samplers.get(options["sampler"])  # a mistake is told before tasks are loaded
    for name in ("banned", "late"):
        options[name] = [lm.tokenizer.token(one) if isinstance(one, str) else one for one in options.get(name, ())]
    if "bias" in options:
        bias = options["bias"].items()
        options["bias"] = {lm.tokenizer.token(one) if isinstance(one, str) else one: nats for one, nats in bias}
    stop = options.pop("stop", True)
    if stop is True:
        stop = lm.eos_id if chat is None or chat.turn_id is None else chat.turn_id
    if stop is not None and stop is not False:
        options["stop"] = stop
    return Way(tuple(until or ()), length, options)


def fitting(ids: Ids, room: int) -> Ids:
    """The end of a prompt, as much as there is ``room`` for."""
    return ids[max(0, len(ids) - room) :]


def write(lm: LM, how: Way, prompts: Sequence[Ids], seeds: Sequence[int], chat: Chat | None, spent: Spent) -> list[str]:
    """The texts behind prompts, cut before the first until string; prompts too long lose their beginning."""
    kept = [fitting(ids, lm.context - how.length) for ids in prompts]
    rows: list[Row] = [[*ids, *[None] * how.length] for ids in kept]
    reader = Reader(lm, how, [len(ids) for ids in kept], chat)
    options: Any = {**how.options, "seeds": list(seeds)} | ({"callback": reader} if reader.ends_early else {})
    found = Writer(lm.process, lm.denoiser, lm.device, lm.context, lm.eos_id).rows(rows, options)
    spent.forwards += found.nfe
    spent.texts += sum(found.cost.of_rows)
    spent.positions += found.positions
    told = zip(found.tokens.tolist(), found.lengths, strict=True)
    return [reader.text(row, ids[:length]) for row, (ids, length) in enumerate(told)]


@dataclass
class Reader:
    """Reads rows as they are written, and ends those whose text is complete: a callback of ``sample``.

    ``starts`` are the lengths of the prompts. ``done``: texts of rows that were ended.
    """

    lm: LM
    how: Way
    starts: Sequence[int]
    chat: Chat | None
    done: dict[int, str] = field(default_factory=dict[int, str])
    seen: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def ends_early(self) -> bool:
        """Whether a text can be ended: what is written once must stay, and there must be something to end it with."""
        sampler = self.how.options.get("sampler")
        stays = absorbing(self.lm.process) and not (sampler is not None and revises(samplers.get(sampler)))
        return stays and bool(self.how.until) and "stop" in self.how.options

    def __call__(self, step: Step) -> Tensor | None:
        """The canvas with the rest of the block in work ended, in rows whose text is complete."""
        masks = step.z == self.lm.process.mask_id
        fixed = torch.where(masks.any(1), masks.int().argmax(1), masks.shape[1]).tolist()
        over = list[int]()
        for at, row in enumerate(step.rows):
            if row not in self.done and self.seen.get(row) != fixed[at]:
                self.seen[row] = fixed[at]
                ids = step.z[at, : fixed[at]].tolist()
                text = self.read(ids[self.starts[row] :])
                if self.ends(text):
                    self.done[row] = self.cut(text)
            if row in self.done:
                over.append(at)
        if not over:
            return None
        z = step.z.clone()
        z[over, step.start : step.stop] = self.how.options["stop"]
        return torch.where(step.frozen, step.z, z)

    def read(self, ids: Sequence[int]) -> str:
        """The text of what was written, up to its end."""
        stop = self.how.options.get("stop")
        ids = ids[: ids.index(stop)] if stop in ids else ids
        return self.lm.decode(ids) if self.chat is None else self.chat.spelled(ids, self.lm.decode)

    def ends(self, text: str) -> bool:
        """Whether it has an until string, and no other may begin before that one with what is not written yet."""
        whole = len(self.cut(text))
        begun = (one.startswith(text[at:]) for at in range(whole) for one in self.how.until)
        return whole < len(text) and not any(begun)

    def cut(self, text: str) -> str:
        """What stands before the first until string."""
        return text[: min([len(text), *(at for one in self.how.until if (at := text.find(one)) >= 0)])]

    def text(self, row: int, ids: Sequence[int]) -> str:
        """The answer in a finished row."""
        return self.done[row] if row in self.done else self.cut(self.read(ids[self.starts[row] :]))
