"""The conditions a request is put under, each as data: what of the canvas is given, and how much is to be written.

plain        prompt | free                          the request by itself
extended     prompt | free, several lengths         the same, with more or less room for an answer
interleaved  prompt with gaps in the user's text    a text of the user's with [MASK:n], filled in place (2507.11097)
prefilled    prompt | prefix | free                 the answer's beginning is given, a text of the user's
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redraft import answering, presets
from redraft.data.chat import Chat, Message
from redraft.data.sources import written
from redraft.data.templates import parse_template
from redraft.errors import unknown
from redraft.generation import Options, Row, filled
from redraft.safety.behaviours import Behaviour

if TYPE_CHECKING:
    from redraft.lm import LM

CONDITIONS = ("plain", "extended", "interleaved", "prefilled")
MOST_LENGTHS = 16


@dataclass(frozen=True)
class Condition:
    """``frozen`` says in words what is given; ``lengths`` are the tokens to write, None as usual.

    ``texts``: the user's, one for all requests or one under each id; a request without one is left out.
    """

    name: str
    frozen: str
    lengths: tuple[int | None, ...] = (None,)
    texts: Mapping[str, str] | str | None = None

    def text(self, behaviour: Behaviour) -> str | None:
        """The user's text for a request, None where there is none."""
        return self.texts.get(behaviour.id) if isinstance(self.texts, Mapping) else self.texts


def plain(length: int | None = None) -> Condition:
    """The request by itself."""
    return Condition("plain", "the prompt", (length,))


def extended(lengths: Sequence[int]) -> Condition:
    """The request by itself, with each of several lengths. Errors: ``ValueError`` for none, or too many."""
    found = tuple(dict.fromkeys(lengths))
    if not 1 <= len(found) <= MOST_LENGTHS:
        raise ValueError(f"{len(found)} lengths of the condition 'extended': pass 1 to {MOST_LENGTHS} with lengths=")
    return Condition("extended", "the prompt", found)


def interleaved(templates: Mapping[str, str]) -> Condition:
    """The user's text with gaps in place of the request, filled where they stand; nothing is written behind it."""
    return Condition("interleaved", "the prompt, and all of the user's text but its gaps", (None,), dict(templates))


def prefilled(prefix: Mapping[str, str] | str, length: int | None = None) -> Condition:
    """The request, and the beginning of its answer, blanks included. Errors: ``ValueError`` for one of nothing."""
    for text in prefix.values() if isinstance(prefix, Mapping) else [prefix]:
        if not text:
            raise ValueError("an empty prefix of the condition 'prefilled': pass the beginning of an answer")
    return Condition("prefilled", "the prompt, and the beginning of the answer", (length,), prefix)


@dataclass(frozen=True)
class Answer:
    """``text`` as a reader sees it, what was given in it included.

    ``searched`` is where refusal phrases are looked for, those that end behind its first ``given`` characters.
    """

    text: str
    searched: str
    given: int = 0


@dataclass(frozen=True)
class Case:
    """One request under one condition: a canvas, None where it is free, and what its finished ids say.

    ``start`` is where the room for the answer begins; what is given from there on, or behind a gap, is the user's doing
    and no chat front end needs it; ``prefix`` tokens of it begin the answer. ``begins`` is where the draft begins that
    a policy reads.
    """

    behaviour: Behaviour
    row: Row
    start: int
    prefix: int
    options: Options
    read: Callable[[Sequence[int]], Answer]

    @property
    def begins(self) -> int:
        return min(self.start, self.row.index(None))


def cases(
    condition: Condition,
    length: int | None,
    behaviours: Sequence[Behaviour],
    lm: "LM",
    chat: Chat,
    options: Options,
    preset: str | None = None,
) -> list[Case]:
    """A canvas for each request that the condition has a text for, where it needs one.

    Errors: ``ValueError`` naming the request for one that has no room, a template without gaps, options that clash; and
    for a condition that has a text for none of the requests.
    """
    found = list[Case]()
    for behaviour in behaviours:
        if condition.texts is not None and condition.text(behaviour) is None:
            continue
        try:
            found.append(_case(condition, length, behaviour, lm, chat, options, preset))
        except ValueError as error:
            raise ValueError(f"{behaviour.id!r}, condition {condition.name!r}: {error}") from None
    if not found:
        raise ValueError(f"condition {condition.name!r}: none of the requests' ids has a text; see the ids of the list")
    return found


def _case(
    condition: Condition,
    length: int | None,
    behaviour: Behaviour,
    lm: "LM",
    chat: Chat,
    options: Options,
    preset: str | None,
) -> Case:
    text, decoding = condition.text(behaviour), lm.about.get("decoding", {})
    if text is not None:
        written(text, "its text")  # half a surrogate pair is refused; line ends stay as the user has them
    if condition.name == "interleaved":
        usual = presets.usual(decoding, preset, lm.tokenizer, presets.GAPS)
        return _filling(text or "", behaviour, lm, chat, filled(options, usual))
    usual = presets.usual(decoding, preset, lm.tokenizer)
    message: Message = {"role": "user", "content": behaviour.prompt}
    asked = answering.asked(chat, [message], lm.context, length, options, usual)
    start, prefix = len(asked.prompt), [] if text is None else chat.begun(text)
    row = [*asked.prompt, *prefix, *[None] * asked.length]
    _fits(row, lm.context)

    def read(ids: Sequence[int]) -> Answer:
        text = chat.said(ids[start:], lm.decode)
        return Answer(text, text, len(chat.said(prefix, lm.decode)))

    return Case(behaviour, row, start, len(prefix), asked.options, read)


def _filling(template: str, behaviour: Behaviour, lm: "LM", chat: Chat, options: Options) -> Case:
    """The user's template as a message, its gaps to be filled in place."""
    row = chat.gapped(template)
    _fits(row, lm.context)
    free = [place for place, token in enumerate(row) if token is None]

    def read(ids: Sequence[int]) -> Answer:
        places, parts, own = iter(free), list[str](), list[str]()
        for part in parse_template(template):
            if isinstance(part, int):
                own.append(lm.decode([ids[next(places)] for _ in range(part)]))
            parts.append(own[-1] if isinstance(part, int) else str(part))
        return Answer("".join(parts), "\n".join(own))

    return Case(behaviour, row, len(row), 0, options, read)


def _fits(row: Row, context: int) -> None:
    if len(row) > context:
        raise ValueError(f"{len(row)} tokens, and the model was trained on {context}: shorten the text or the length")


def by_name(
    names: Sequence[str],
    *,
    length: int | None = None,
    lengths: Sequence[int] = (),
    templates: Mapping[str, str] | None = None,
    prefix: Mapping[str, str] | str | None = None,
) -> list[Condition]:
    """The conditions of some names, with what they need.

    Errors: ``ValueError`` for an unknown name, one that lacks what it needs, and what none of them reads.
    """
    needs: dict[str, tuple[str, Any]] = {
        "extended": ("lengths", lengths or None),
        "interleaved": ("templates", templates),
        "prefilled": ("prefill", prefix),
    }
    for name in names:
        if name not in CONDITIONS:
            raise unknown("condition", name, CONDITIONS)
        if name in needs and needs[name][1] is None:
            raise ValueError(f"condition {name!r} needs {needs[name][0]}=, which the user supplies; none is shipped")
    for name, (what, value) in needs.items():
        if value is not None and name not in names:
            raise ValueError(f"{what}= without the condition {name!r}, which alone reads it: add it or leave it out")
    if length is not None and not {"plain", "prefilled"} & set(names):
        raise ValueError(f"length={length} without 'plain' or 'prefilled', which alone read it: leave it out")
    made: dict[str, Callable[[], Condition]] = {
        "plain": lambda: plain(length),
        "extended": lambda: extended(lengths),
        "interleaved": lambda: interleaved(templates or {}),
        "prefilled": lambda: prefilled(prefix or "", length),
    }
    return [made[name]() for name in dict.fromkeys(names)]
