"""What a conversation asks of a model that writes: its prompt, the room for an answer, and what of a row that is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redraft.data import Tokenizer
from redraft.data.chat import Chat, Message, chat_of
from redraft.generation import Generation, Options, Row, filled
from redraft.models.families import FAMILIES
from redraft.sampling import Samples

LENGTH = 128
"""Tokens of an answer unless a model's authors, or its user, say otherwise; never more than half of the context."""


@dataclass(frozen=True)
class Asked:
    """Ids that ask for an answer, how many may be written behind them, and how; ``dropped`` exchanges had no room."""

    chat: Chat
    prompt: list[int]
    length: int
    dropped: int
    options: Options

    @property
    def row(self) -> Row:
        """The canvas."""
        return [*self.prompt, *[None] * self.length]

    def read(self, samples: Samples, decode: Callable[[Sequence[int]], str]) -> Generation:
        """The answers in what was written (``Chat.said``)."""
        start = len(self.prompt)
        texts = [self.chat.said(row[start:], decode) for row in samples.tokens.tolist()]
        return Generation(texts, samples, dropped=self.dropped)


def speaks(tokenizer: Tokenizer, about: Mapping[str, Any], template: str | None, turn: str | None) -> Chat:
    """How a model is talked to: by ``template`` if one is given, else as it was tuned, as its family is, or by the
    tokenizer's own.

    Errors: ``ValueError`` for none of these, and see ``Chat``.
    """
    if template is None and tokenizer.taught:
        return chat_of(tokenizer, tokenizer.taught["template"], turn or tokenizer.taught["turn"])
    if template is None and about.get("family") in FAMILIES:
        family = FAMILIES[about["family"]]
        template, turn = family.template, turn or family.turn
    return chat_of(tokenizer, template, turn)


def asked(
    chat: Chat,
    messages: Sequence[Message],
    context: int,
    length: int | None,
    options: Options,
    usual: Mapping[str, Any],
) -> Asked:
    """The conversation as the model is asked it, without its oldest exchanges where they leave no room for ``length``.

    ``usual``: how the model is written where ``options`` do not say. Errors: ``ValueError`` for what has no room.
    """
    if "stop" in options:
        raise ValueError(f"stop={options['stop']} of a conversation: an answer ends with its turn; pass turn=")
    most: int = min(usual.get("length", LENGTH), context // 2) if length is None else length
    if not 1 <= most < context:
        raise ValueError(f"length={most}: pass from 1 to {context - 1} tokens, the model was trained on {context}")
    prompt, dropped = chat.fitting(messages, context - most)
    own: Options = options if chat.turn_id is None else {**options, "stop": chat.turn_id}
    return Asked(chat, prompt, most, dropped, filled(own, usual))
