"""Conversations told to a model in the words of its chat template.

A template is rendered by ``transformers``; what spells a special token inside a message stays text all the same.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

from redraft.data.messages import Message, checked, conversations
from redraft.data.specials import added, backends, framing, spoken
from redraft.data.templates import parse_template
from redraft.data.tokenizers import Tokenizer
from redraft.errors import unknown

__all__ = ["PLAIN", "TEMPLATES", "Chat", "Message", "chat_of", "conversations"]

PLAIN = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For models that have no template: roles as words, the end of text behind each answer."""
TEMPLATES = {"plain": PLAIN}

# private use of planes 15 and 16: no text has a meaning for them, and no template looks for them
_PRIVATE = range(0xF0000, 0x10FFFD)
_ANY = chr(_PRIVATE.stop)  # in the place of a message that may say anything


class Chat:
    """A tokenizer with the chat template that its model was, or is to be, taught with.

    ``template`` is Jinja, or a name of ``TEMPLATES``; the tokenizer's own unless given. ``turn``: the token that ends
    an answer, or the text; the special token that the template puts behind one unless given. ``turn_id`` is its id,
    None where it is no token but a text of several.

    The ids are those of ``transformers``' ``apply_chat_template(tokenize=True)``, but for two cases. A message that
    spells a special token, ``<|eot_id|>`` or the mask, is encoded as the letters it has; so is each token that was
    added to the vocabulary and that the template writes around messages, special or not, and in a question also what
    the template writes elsewhere or looks for (``<think>``, which an answer may have). And what asks for an answer is
    encoded as it would be if there were no answer yet, even where a token could span both: so what is learned is an
    answer to what will be asked.

    Errors: ``ValueError`` for a tokenizer without template, a template that is none, or ends no answer or not so; and,
    of each conversation, for what only the template makes a special token of, by joining or changing what is said.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None, turn: str | None = None) -> None:
        if tokenizer.kind in ("chars", "toy"):
            raise ValueError(f"a conversation has no spelling in the alphabet of {tokenizer.kind!r}: use bytes or bpe")
        self._hf = _renderer(tokenizer)
        self.template = _chosen(self._hf, template)
        self.turn_id = None if turn is None else tokenizer.backend.token_to_id(turn)
        around = self._examples([("user",), ("system", "user")], asking=True)
        names = framing(tokenizer, self.template, around) | (set() if self.turn_id is None else {turn or ""})
        within = added(tokenizer, [*around, *self._examples([("user", "assistant", "user")], asking=False)])
        sought = {token.content for token in spoken(tokenizer) if token.content in self.template}
        self._specials, self._controls, self._finder, self._plain = backends(tokenizer, names, within | sought)
        self.turn = self._turn(turn)
        self.turn_id = self._plain.token_to_id(self.turn)

    def asks(self, messages: Sequence[Message]) -> str:
        """What ``prompt`` has the ids of, as the template renders it. Errors: ``ValueError``, as there."""
        checked(messages)
        return self._render(messages, asking=True)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation that asks for the next answer.

        Errors: ``ValueError`` where the last message is an answer, or the template refuses the conversation.
        """
        checked(messages)
        if messages[-1]["role"] == "assistant":
            raise ValueError("the last message is the assistant's: end with one that is to be answered")
        return self._encoded(messages, asking=True)[0]

    def begun(self, text: str) -> list[int]:
        """Ids of what an answer begins with, to stand behind ``prompt``: what it spells is text, as in ``taught``."""
        (message,), spelled = self._hidden([{"role": "assistant", "content": text}])
        return self._ids(message["content"], spelled)

    def gapped(self, text: str) -> list[int | None]:
        """``prompt`` of one message of the user's that is a template (``parse_template``), None at each place to fill.

        The texts between gaps are encoded apart; what they spell is text, the mask too. Errors: ``ValueError`` for a
        text without gaps or with one of unknown length, and a chat template that does not say the message once.
        """
        parts = parse_template(text)
        gaps = [part for part in parts if not isinstance(part, str)]
        mark = next(chr(code) for code in _PRIVATE if chr(code) not in text)
        content = "".join(part if isinstance(part, str) else mark for part in parts)
        messages, spelled = self._hidden([{"role": "user", "content": content}])
        whole = self._render(messages, asking=True)
        self._own(whole, messages, asking=True)
        first, *rest = whole.split(mark)
        if len(rest) != len(gaps) or any(isinstance(gap, range) for gap in gaps):
            raise ValueError(f"{text[:80]!r}: give gaps one length, [MASK:n], and a template= that tells messages once")
        row: list[int | None] = [*self._ids(first, spelled)]
        for gap, piece in zip(gaps, rest, strict=True):
            row += [*[None] * (gap if isinstance(gap, int) else 0), *self._ids(piece, spelled)]
        return row

    def taught(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation, and which of them are to be learned: each answer's and the token that ends it.

        What comes before an answer is, id for id, ``prompt`` of the messages before it. Errors: ``ValueError`` for a
        conversation without an answer, and a template that does not render what asks for an answer as the beginning of
        what has it, that ends an answer without its ``turn``, or that asks for another behind the last.
        """
        checked(messages)
        ids, answers, rest = self._encoded(messages, asking=False)
        if not answers:
            raise ValueError("a conversation without an answer teaches nothing: add a message of the assistant's")
        learned = [False] * len(ids)
        for start, end in answers:
            if start == end or not self._specials.isdisjoint(ids[start : end - 1]):
                raise ValueError(
                    f"the chat template does not end each answer with {self.turn!r}: pass the turn= it has, or a "
                    "template= that ends answers so"
                )
            learned[start:end] = [True] * (end - start)
        if messages[-1]["role"] == "assistant" and rest.strip():
            raise ValueError(
                f"the chat template writes {rest.strip()[:80]!r} behind the last answer, as if it asked for another: "
                "pass a template= that heeds add_generation_prompt"
            )
        return ids, learned

    def fitting(self, messages: Sequence[Message], room: int) -> tuple[list[int], int]:
        """``prompt`` in ``room`` tokens at most, and how many exchanges were left out of it for that, the oldest first.

        An exchange is what the user said and what was answered. The system's messages stay, and so does the last one.
        Errors: ``ValueError`` where those do not fit either.
        """
        checked(messages)
        users = [number for number, one in enumerate(messages) if one["role"] == "user"]
        begins = [number for number in users if number == 0 or messages[number - 1]["role"] != "user"]
        size = 0
        for dropped, begin in enumerate(begins):
            system = [one for one in messages[:begin] if one["role"] == "system"]
            ids = self.prompt(messages if dropped == 0 else [*system, *messages[begin:]])
            if len(ids) <= room:
                return ids, dropped
            size = len(ids)
        raise ValueError(
            f"the last message asks with {size} tokens, and the answer leaves room for {room}: shorten it, or pass a "
            "smaller length"
        )

    def said(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
        """The answer that ids are, decoded: up to what ends it, or a special token, without the white space around."""
        return self.spelled(ids, decode).strip()

    def spelled(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
        """``said``, with the white space around."""
        end = next((place for place, i in enumerate(ids) if i in self._specials), len(ids))
        text = decode(ids[:end])
        return text if self.turn_id is not None else text.partition(self.turn)[0]

    def _encoded(self, messages: Sequence[Message], asking: bool) -> tuple[list[int], list[tuple[int, int]], str]:
        """Ids, where each answer begins and ends among them, turn included, and the text behind the last.

        From one border to the next the ids of what was before are kept: encoded with what follows where that is so by
        itself, else apart.
        """
        messages, spelled = self._hidden(messages)
        whole, begins = self._render(messages, asking), list[int]()
        self._own(whole, messages, asking)
        for number in (number for number, one in enumerate(messages) if one["role"] == "assistant"):
            begins.append(_begun(whole, self._render(messages[:number], asking=True), number))
        borders = [0]
        for begin, limit in zip(begins, [*begins, len(whole)][1:], strict=True):
            turn = whole.find(self.turn, begin, limit)
            borders += [begin, begin if turn < 0 else turn + len(self.turn)]
        ids, places = list[int](), list[int]()
        for left, right in pairwise([*borders, len(whole)]):
            together = self._ids(whole[:right], spelled)
            ids = together if together[: len(ids)] == ids else ids + self._ids(whole[left:right], spelled)
            places.append(len(ids))
        return ids, [*zip(places[:-1:2], places[1::2], strict=True)], whole[borders[-1] :]

    def _own(self, whole: str, messages: Sequence[Message], asking: bool) -> None:
        """Refuse what has more control tokens, or turns, than the template writes of itself and answers say."""
        anything = [_ANY if message["content"].strip() else message["content"] for message in messages]
        bare = [Message(role=one["role"], content=say) for one, say in zip(messages, anything, strict=True)]
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        surplus = self._counted(whole)
        surplus -= self._counted(self._render(bare, asking))
        for answer in answers:
            surplus -= self._counted(answer)
        if surplus:
            raise ValueError(
                f"the chat template turns what a message says into {next(iter(surplus))!r}, which may only be its own: "
                "leave that out of the message, or pass a template= that changes no message"
            )

    def _counted(self, text: str) -> Counter[str]:
        """How often each control token, and a turn that is a text, is in a text."""
        row = self._finder.encode(text, add_special_tokens=False)
        found = Counter(self._finder.id_to_token(i) or "" for i in row.ids if i in self._controls)
        if self.turn_id is None:
            found[self.turn] = sum(text.startswith(self.turn, place) for place in range(len(text)))
        return found

    def _hidden(self, messages: Sequence[Message]) -> tuple[list[Message], dict[int, str]]:
        """The messages with a private character in place of each spelling of a special token, and what they stand for.

        The finder itself says what is one, so whatever a normaliser or its own rules make of a text is found too. Where
        a turn is a text it is hidden too, and the last letter of what could begin one that the template's completes.
        """
        contents = [message["content"] for message in messages]
        rows = self._finder.encode_batch(contents, add_special_tokens=False)
        banned = [self._specials if one["role"] == "assistant" else self._controls for one in messages]
        places = [
            [span for i, span in zip(row.ids, row.offsets, strict=True) if i in ids]
            for row, ids in zip(rows, banned, strict=True)
        ]
        if self.turn_id is None:  # a text may not end a message before its end either
            places = [_beside(spans, self.turn, text) for spans, text in zip(places, contents, strict=True)]
        if not any(places):
            return list(messages), {}
        spellings = {text[start:stop] for text, spans in zip(contents, places, strict=True) for start, stop in spans}
        taken = set("".join(contents))
        spare = (chr(code) for code in _PRIVATE if chr(code) not in taken)
        stands = dict(zip(sorted(spellings), spare, strict=False))
        if len(stands) < len(spellings):
            raise ValueError("the messages use up all characters of private use: leave some of them out")
        hidden = list[Message]()
        for message, spans in zip(messages, places, strict=True):
            text, shown, parts = message["content"], 0, list[str]()
            for start, stop in spans:
                parts += [text[shown:start], stands[text[start:stop]]]
                shown = stop
            hidden.append({"role": message["role"], "content": "".join([*parts, text[shown:]])})
        return hidden, {ord(stand_in): spelling for spelling, stand_in in stands.items()}

    def _ids(self, text: str, spelled: Mapping[int, str]) -> list[int]:
        """Ids of a rendered text: the template's special tokens, and between them text with what was ``spelled``."""
        row = self._finder.encode(text, add_special_tokens=False)
        if not spelled:
            return row.ids
        ids, stretch, start = list[int](), list[int](), 0
        ends: list[tuple[int | None, tuple[int, int]]] = [*zip(row.ids, row.offsets, strict=True)]
        for i, (left, right) in [*ends, (None, (len(text), len(text)))]:
            if i is not None and i not in self._controls:
                stretch.append(i)
                continue
            said = text[start:left].translate(spelled)
            if said != text[start:left]:
                stretch = self._plain.encode(said, add_special_tokens=False).ids
                if not self._controls.isdisjoint(stretch):
                    raise ValueError(f"the tokenizer has no letters to spell {said[:80]!r} with: leave it out")
            ids += stretch
            ids += [] if i is None else [i]
            stretch, start = [], right
        return ids

    def _render(self, messages: Sequence[Message], asking: bool) -> str:
        import jinja2

        rendered = partial(self._hf.apply_chat_template, chat_template=self.template, tokenize=False)
        try:
            return rendered(list(messages), add_generation_prompt=asking)
        except (jinja2.TemplateError, TypeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ValueError(f"the chat template refuses this conversation: {reason}") from None

    def _examples(self, conversations: Sequence[Sequence[str]], asking: bool) -> list[str]:
        """Conversations of some roles as the template has them, without those that it refuses."""
        found = list[str]()
        for roles in conversations:
            with suppress(ValueError):
                found.append(self._render([{"role": role, "content": _ANY} for role in roles], asking))
        return found

    def _turn(self, given: str | None) -> str:
        """What ends an answer, as the template of a short conversation has it."""
        one: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        told = self._render(one, asking=False)
        answer = told[_begun(told, self._render(one[:1], asking=True), 1) :]
        row = self._finder.encode(answer, add_special_tokens=False)
        ends = [(i, start) for i, (start, _) in zip(row.ids, row.offsets, strict=True) if i in self._specials]
        if given is not None and given in answer:
            return given
        if given is not None or not ends or ends[0][1] == 0:
            raise ValueError(
                f"the chat template ends no answer with {'a special token' if given is None else repr(given)}, or does "
                "not ask for one: pass turn=, what ends an answer, or a template= that heeds add_generation_prompt"
            )
        found = self._plain.id_to_token(ends[0][0])
        assert found is not None, "it was found in a text"
        return found


@lru_cache(maxsize=4)
def chat_of(tokenizer: Tokenizer, template: str | None = None, turn: str | None = None) -> Chat:
    """``Chat``, the same again for the same: to make one takes as long as to load a tokenizer, twice."""
    return Chat(tokenizer, template, turn)


def _begun(whole: str, asks: str, number: int) -> int:
    """How long what ``asks`` is, with which a ``whole`` conversation begins. Errors: ``ValueError`` if it does not."""
    if not whole.startswith(asks):
        raise ValueError(
            f"the chat template does not render what asks for message {number} as the beginning of what has it: pass a "
            "template= that only adds to what it said before"
        )
    return len(asks)


def _beside(spans: Sequence[tuple[int, int]], turn: str, text: str) -> list[tuple[int, int]]:
    """Spans, and apart from them those of a turn in a text, and of the last letter of what begins as a turn does."""
    found = [one.span() for one in re.finditer(re.escape(turn), text)]
    end = len(text.rstrip())
    if any(turn.startswith(part[-size:]) for part in (text, text[:end]) for size in range(1, len(turn)) if part):
        found.append((end - 1, end))
    spans = list(spans)
    for a, b in found:
        if a >= 0 and all(b <= left or right <= a for left, right in spans):
            spans.append((a, b))
    return sorted(spans)


def _renderer(tokenizer: Tokenizer) -> Any:
    """The ``transformers`` tokenizer that renders; one is made for our own kinds."""
    if tokenizer.hf is not None:
        return tokenizer.hf
    from transformers import PreTrainedTokenizerFast  # seconds to import: only for those who need it

    assert tokenizer.eos_id is not None
    eos = tokenizer.backend.id_to_token(tokenizer.eos_id)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, eos_token=eos)


def _chosen(hf: Any, template: str | None) -> str:
    """The Jinja of a template. Errors: ``ValueError`` for an unknown name, and for none."""
    if template is None:
        try:
            return hf.get_chat_template()
        except ValueError:
            raise ValueError(
                "the tokenizer has no chat template: pass template=, the Jinja of one or the name 'plain' "
                "(of a base model: roles as words, the end of text behind each answer)"
            ) from None
    if template in TEMPLATES:
        if hf.eos_token is None:
            raise ValueError(f"template={template!r} with a tokenizer that has no end of text: pass the Jinja of one")
        return TEMPLATES[template]
    if "{" not in template:
        raise unknown("chat template", template, TEMPLATES)
    return template
