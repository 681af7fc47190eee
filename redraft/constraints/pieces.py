"""What each id of a tokenizer contributes to a decoded text, in bytes of UTF-8.

A text is the pieces of its ids, one after the other. Only the first may read otherwise than it would elsewhere: without
the blank that words are joined by (toy, WordPiece), or that SentencePiece puts before each.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from redraft.data import Tokenizer
from redraft.data.tokenizers import BYTE_OF

_TRIED = 64
"""So many sequences of ids are decoded to see that texts are made of pieces."""


@dataclass(frozen=True)
class Pieces:
    """``first`` and ``rest``: the bytes of each id at the start of a text and elsewhere; None for an id no text has.

    Those are special tokens, which contribute nothing that is meant as text, and numbers that name no token.
    """

    first: tuple[bytes | None, ...]
    rest: tuple[bytes | None, ...]

    def text(self, ids: Sequence[int]) -> bytes:
        """What ids read."""
        found = [self.first[one] if at == 0 else self.rest[one] for at, one in enumerate(ids)]
        return b"".join(piece or b"" for piece in found)


def pieces(tokenizer: Tokenizer) -> Pieces:
    """The pieces of a tokenizer's ids. Errors: ``ValueError`` for one whose texts are not made of any."""
    size = max(tokenizer.K, tokenizer.mask_id + 1)
    names = [tokenizer.backend.id_to_token(one) for one in range(size)]
    special = _special(tokenizer)
    usable = [one for one, name in enumerate(names) if name is not None and one not in special]
    allowed = set(usable)
    decoder = json.loads(tokenizer.backend.to_str())["decoder"]
    kinds = _kinds(decoder)
    if "ByteLevel" in kinds and not kinds - {"ByteLevel", "Sequence", "Fuse"}:  # others would change what is spelt
        found = [_of_letters(name) if one in allowed else None for one, name in enumerate(names)]
        return Pieces(tuple(found), tuple(found))
    made = _probed(tokenizer, names, usable, '"ByteFallback"' in json.dumps(decoder))
    _check(tokenizer, made, usable)
    return made


def _kinds(decoder: dict[str, Any] | None) -> set[str]:
    """The types of a decoder and of all it is made of."""
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_kinds(one) for one in decoder.get("decoders", ())))


def _special(tokenizer: Tokenizer) -> set[int]:
    """The ids that are no text."""
    added = tokenizer.backend.get_added_tokens_decoder()
    named = (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id)
    return {one for one, token in added.items() if token.special} | {one for one in named if one is not None}


def _of_letters(name: str | None) -> bytes:
    """The bytes that a byte-level token spells; of an added token, which spells nothing, its own."""
    assert name is not None
    if all(letter in BYTE_OF for letter in name):
        return bytes(BYTE_OF[letter] for letter in name)
    return name.encode()


def _probed(tokenizer: Tokenizer, names: list[str | None], usable: list[int], bytewise: bool) -> Pieces:
    """What decoding adds for each id, alone and behind another."""
    alone = dict(zip(usable, _decoded(tokenizer, [[one] for one in usable]), strict=True))
    anchor = next((one for one in usable if alone[one].isascii() and alone[one].strip()), None)
    if anchor is None:
        raise _no_pieces(tokenizer)
    behind = _decoded(tokenizer, [[anchor, one] for one in usable])
    first, rest = list[bytes | None]([None] * len(names)), list[bytes | None]([None] * len(names))
    for one, text in zip(usable, behind, strict=True):
        if not text.startswith(alone[anchor]):
            raise _no_pieces(tokenizer)
        first[one], rest[one] = alone[one].encode(), text[len(alone[anchor]) :].encode()
        name = names[one]
        assert name is not None
        if bytewise and len(name) == 6 and name.startswith("<0x") and int(name[3:5], 16) >= 0x80:
            first[one] = rest[one] = bytes([int(name[3:5], 16)])  # half a character, which decodes to nothing alone
        elif "\ufffd" in text and "\ufffd" not in name:
            raise _no_pieces(tokenizer)  # half a character of which the bytes are not known
    return Pieces(tuple(first), tuple(rest))


def _check(tokenizer: Tokenizer, made: Pieces, usable: list[int]) -> None:
    """Errors: ``ValueError`` where a text is not its pieces."""
    draw = Random(0)
    rows = [[draw.choice(usable) for _ in range(1 + number % 8)] for number in range(_TRIED)]
    for row, text in zip(rows, _decoded(tokenizer, rows), strict=True):
        if "\ufffd" not in text and made.text(row) != text.encode():
            raise _no_pieces(tokenizer)


def _decoded(tokenizer: Tokenizer, rows: list[list[int]]) -> list[str]:
    return tokenizer.backend.decode_batch(rows, skip_special_tokens=False)


def _no_pieces(tokenizer: Tokenizer) -> ValueError:
    return ValueError(
        f"a {tokenizer.kind!r} tokenizer whose texts are not the texts of its tokens in a row: constraints on text "
        "need one that is byte-level, SentencePiece, WordPiece, or one of ours"
    )
