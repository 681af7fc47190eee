"""The tokens that frame conversations, and the tokenizers that find them in a text or read them as its letters."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers

from redraft.data.tokenizers import Tokenizer

_SPELLED = re.compile(r"<\|[^<>|\s]+\|>")


def spoken(tokenizer: Tokenizer) -> list[tokenizers.AddedToken]:
    """What was added to the vocabulary, but for white space, which is only a way to write text."""
    return [token for token in tokenizer.backend.get_added_tokens_decoder().values() if token.content.strip()]


def added(tokenizer: Tokenizer, texts: Sequence[str]) -> set[str]:
    """Which of these stand in texts; the texts need not be such as the tokenizer can encode."""
    return {token.content for token in spoken(tokenizer) if any(token.content in text for text in texts)}


def framing(tokenizer: Tokenizer, template: str, around: Sequence[str]) -> set[str]:
    """The tokens that are only for what is ``around`` messages: also what the template spells like ``<|eot_id|>``.

    Base models' tokenizers have some of these in the vocabulary, and do not always declare them to be special.
    """
    spelled = {name for name in _SPELLED.findall(template) if tokenizer.backend.token_to_id(name) is not None}
    return spelled | added(tokenizer, around)


def backends(
    tokenizer: Tokenizer, around: Iterable[str], within: Iterable[str]
) -> tuple[frozenset[int], frozenset[int], tokenizers.Tokenizer, tokenizers.Tokenizer]:
    """Ids that no message may become, and those that no question may; one tokenizer that finds them, and one not.

    The first are the special tokens and those ``around`` messages (``framing``); the second these and what is
    ``within`` answers.
    """
    vocabulary = tokenizer.backend.get_added_tokens_decoder()
    names = sorted({*around, *within})
    known = {token.content: token for token in vocabulary.values()}
    special = [_special(known.get(name) or tokenizers.AddedToken(name, normalized=False)) for name in names]
    pair = [tokenizers.Tokenizer.from_str(tokenizer.backend.to_str()) for _ in range(2)]
    for backend, literal in zip(pair, (False, True), strict=True):
        backend.add_special_tokens(special)
        backend.encode_special_tokens = literal
    declared = {i for i, token in vocabulary.items() if token.special}
    specials, controls = (
        frozenset({*declared, *(i for name in some if (i := pair[0].token_to_id(name)) is not None)})
        for some in (around, names)
    )
    _open(pair[0], controls)
    return specials, controls, pair[0], pair[1]


def _open(finder: tokenizers.Tokenizer, controls: frozenset[int]) -> None:
    """Let ``finder`` read any letter: those that an alphabet lacks may stand in what is only searched."""
    model: Any = finder.model
    if isinstance(model, tokenizers.models.WordLevel) and finder.token_to_id(model.unk_token) is None:
        model.unk_token = next(word for word, i in finder.get_vocab().items() if i not in controls)


def _special(token: tokenizers.AddedToken) -> tokenizers.AddedToken:
    """The same token, declared to be special."""
    flags = {"single_word": token.single_word, "lstrip": token.lstrip, "rstrip": token.rstrip}
    return tokenizers.AddedToken(token.content, special=True, normalized=token.normalized, **flags)
