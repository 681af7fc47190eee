"""Documents to rows of ids, and the endless stream of shuffled epochs over the rows. NumPy only.

``B`` rows a batch, ``L`` length. Which rows stand in a batch is a pure function of (seed, step): a run resumed at any
step sees exactly what it would have seen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from redraft.data import toy
from redraft.data.provenance import digest, of_text
from redraft.data.sources import read_documents, split_held_out
from redraft.data.tokenizers import Tokenizer, build_tokenizer

Ints = NDArray[np.int32]
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of clean ids.

    ``ids`` (n, L) int32; ``valid`` (n, L) bool, False at padding, None when all are tokens; ``segments`` (n, L) int32,
    the number of the document inside its row from 0 (padding -1), None when documents see one another;
    ``num_tokens`` tokens that count (``[EOS]`` included); ``num_chars`` characters of all documents given: with
    nothing dropped, bits per character are total nats / ln 2 / num_chars (0 where they are not all counted).
    ``positions`` (n, L) int32: where each token stands in its own document, None for where it stands in the row.
    ``num_bytes``: those of the characters in UTF-8, 0 where these are not counted. ``stride``: by how many tokens each
    row stands behind the one before; fewer than L where rows overlap, and only a row's new tokens are ``valid``.
    ``about``: what the rows were made of (``provenance.of_text``), None where nobody said.
    """

    ids: Ints
    valid: NDArray[np.bool_] | None
    segments: Ints | None
    num_chars: int
    num_tokens: int
    positions: Ints | None = None
    num_bytes: int = 0
    stride: int | None = None
    about: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: NDArray[np.int64] | Sequence[int] | slice) -> dict[str, NDArray[Any]]:
        """The rows at ``indices``: ``ids``, and ``valid``, ``segments`` and ``positions`` where there are any."""
        arrays = {"ids": self.ids, "valid": self.valid, "segments": self.segments, "positions": self.positions}
        return {name: array[indices] for name, array in arrays.items() if array is not None}


def pack(
    documents_ids: Iterable[Sequence[int]],
    length: int,
    eos_id: int | None,
    isolate_documents: bool = False,
    keep_tail: bool = False,
    num_chars: int = 0,
    stride: int | None = None,
) -> Packed:
    """Concatenate documents, ``eos_id`` after each (unless None), and cut into rows of ``length`` tokens.

    The incomplete last row is dropped, or with ``keep_tail`` kept and padded with ``valid`` False. With a ``stride``
    rows overlap, each ``stride`` tokens behind the one before: all tokens of the first are ``valid``, and the last
    ``stride`` of the others. ``ValueError`` when nothing is left, and for a stride outside 1 .. length.
    """
    if length < 1:
        raise ValueError(f"length {length}: a row needs at least one token")
    end = [] if eos_id is None else [eos_id]
    documents = [np.asarray([*ids, *end], np.int32) for ids in documents_ids]
    stream = np.concatenate([*documents, np.empty(0, np.int32)])
    owner = np.repeat(np.arange(len(documents), dtype=np.int32), [len(ids) for ids in documents])
    if stride is not None:
        return _overlapping(stream, owner if isolate_documents else None, length, stride, eos_id or 0, num_chars)
    whole = len(stream) // length * length
    if keep_tail and whole < len(stream):
        padding = length - (len(stream) - whole)
        stream = np.pad(stream, (0, padding), constant_values=eos_id or 0)
        valid = (np.arange(len(stream)) < len(stream) - padding).reshape(-1, length)
    else:
        padding, valid = 0, None
        stream, owner = stream[:whole], owner[:whole]
    if not len(stream):
        tokens = sum(map(len, documents))
        raise ValueError(f"{tokens} tokens make no row of length {length}: shorten the length or add text")
    segments = None
    if isolate_documents:
        owner = np.pad(owner, (0, padding), mode="edge").reshape(-1, length)
        segments = _numbered(owner)
        segments = segments if valid is None else np.where(valid, segments, np.int32(-1))
    return Packed(stream.reshape(-1, length), valid, segments, num_chars, len(stream) - padding)


def _numbered(owner: Ints) -> Ints:
    """The number of each token's document inside its row, of their numbers among all documents, (n, L)."""
    # count the documents begun since the row's start: a document without tokens must leave no gap
    return np.cumsum(np.diff(owner, axis=1, prepend=owner[:, :1]) > 0, axis=1, dtype=np.int32)


def _overlapping(stream: Ints, owner: Ints | None, length: int, stride: int, fill: int, num_chars: int) -> Packed:
    """Windows of ``length`` that advance by ``stride``; every token of the stream is valid in exactly one."""
    if not 1 <= stride <= length:
        raise ValueError(f"stride={stride} with rows of {length} tokens: take 1 to {length}, the tokens scored in each")
    if not len(stream):
        raise ValueError(f"0 tokens make no row of length {length}: add text")
    starts = np.arange(0, max(1, 1 + -(-(len(stream) - length) // stride))) * stride
    place = starts[:, None] + np.arange(length)
    inside = place < len(stream)
    place = np.where(inside, place, len(stream) - 1)
    valid = inside & ((starts[:, None] == 0) | (np.arange(length) >= length - stride))
    segments = None if owner is None else np.where(inside, _numbered(owner[place]), np.int32(-1))
    ids = np.where(inside, stream[place], np.int32(fill))
    return Packed(ids, valid, segments, num_chars, len(stream), stride=stride)


def without_first_tokens(rows: Packed) -> Packed:
    """``rows`` for a denoiser whose logits are shifted by one, which says nothing of a first token (DiffuLLaMA).

    What nothing stands before, in a row or a document apart, does not count; nor do then the characters.
    """
    counted = np.ones(rows.ids.shape, np.bool_) if rows.valid is None else rows.valid.copy()
    counted[:, 0] = False
    if rows.segments is not None:
        counted[:, 1:] &= rows.segments[:, 1:] == rows.segments[:, :-1]
    return replace(rows, valid=counted, num_chars=0, num_bytes=0, num_tokens=int(counted.sum()))


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The permutation of ``n`` rows in an epoch (read-only), keyed by (seed, epoch).

    Sorts the raw words of Philox, whose stream NumPy keeps for ever, unlike that of ``Generator.permutation``.
    """
    words = np.random.Philox(key=np.array([seed & _MASK64, epoch], np.uint64)).random_raw(n)
    permutation = np.argsort(words, kind="stable")
    permutation.flags.writeable = False
    return permutation


def indices(step: int, batch: int, n: int, seed: int) -> NDArray[np.int64]:
    """The rows, shape (batch,), at the positions of the global batch of ``step`` in the stream of shuffled epochs."""
    positions = step * batch + np.arange(batch)
    epochs, places = np.divmod(positions, n)
    return np.array([order(seed, int(e), n)[p] for e, p in zip(epochs, places, strict=True)], np.int64)


class DataConfig(Protocol):
    """What ``load_data`` reads of a recipe's ``data``."""

    @property
    def source(self) -> str: ...
    @property
    def tokenizer(self) -> str: ...
    @property
    def vocab(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def held_out(self) -> float: ...
    @property
    def isolate_documents(self) -> bool: ...
    @property
    def text_field(self) -> str: ...
    @property
    def max_documents(self) -> int | None: ...


@dataclass(frozen=True, eq=False)
class Data:
    """Training and held-out rows, the tokenizer, and where they came from (plain JSON values)."""

    train: Packed
    held_out: Packed | None
    tokenizer: Tokenizer
    description: dict[str, Any]


def load_data(config: DataConfig, tokenizer: Tokenizer | None = None) -> Data:
    """Read, split, tokenize and pack; ``tokenizer`` given (a run resumed or fine-tuned) is taken as it is.

    A bpe tokenizer is trained on the training side only; chars takes its alphabet from both, since a character
    without an id could not be scored at all.
    """
    documents = list(read_documents(config.source, config.text_field, config.max_documents))
    if config.source == "toy" and config.tokenizer == "toy":
        # these are all the sentences there are: the corpus is the law itself, and so is what to evaluate on
        train, held_out = documents, documents if config.held_out else []
    else:
        train, held_out = split_held_out(documents, config.held_out)
    if tokenizer is None:
        texts = documents if config.tokenizer == "chars" else train
        tokenizer = build_tokenizer(config.tokenizer, texts, config.vocab)
    rows = [
        _pack_texts(texts, tokenizer, config.length, config.isolate_documents, keep_tail) if texts else None
        for texts, keep_tail in ((train, False), (held_out, True))
    ]
    assert rows[0] is not None  # split_held_out leaves neither side empty, nor does read_documents
    description = {
        "source": str(config.source),
        "documents": len(documents),
        "characters": sum(map(len, documents)),
        "sha256": digest(documents),
    }
    return Data(rows[0], rows[1], tokenizer, description)


def load_text(
    source: str | Path,
    tokenizer: Tokenizer,
    length: int,
    text_field: str = "text",
    isolate_documents: bool = False,
    stride: int | None = None,
) -> Packed:
    """All of ``source`` in rows of ``length``, the tail kept: every character is scored, ``num_chars`` is exact.

    With a ``stride`` rows overlap (``pack``).
    """
    return _pack_texts(list(read_documents(source, text_field)), tokenizer, length, isolate_documents, True, stride)


def _pack_texts(
    texts: list[str], tokenizer: Tokenizer, length: int, isolate: bool, keep_tail: bool, stride: int | None = None
) -> Packed:
    if tokenizer.kind == "toy":  # a line is a sentence, a sentence a row
        if length != toy.LENGTH:
            raise ValueError(f"length {length}: rows of the toy language have {toy.LENGTH}; set data.length to it")
        if stride is not None:
            raise ValueError(f"stride={stride} with the toy language, whose rows are sentences by themselves: drop it")
        lines = [line for text in texts for line in text.splitlines() if line.strip()]
        texts, eos_id = lines, None
    else:
        eos_id = tokenizer.eos_id
    # some hundred documents at a time: the tokenizer's own records are far larger than the ids
    parts = (tokenizer.encode_batch(texts[start : start + 256]) for start in range(0, len(texts), 256))
    rows = (ids for part in parts for ids in part)
    exact = tokenizer.kind != "hf" or all(tokenizer.decode(tokenizer.encode_batch([text])[0]) == text for text in texts)
    # a tokenizer that loses letters (lower-cases, [UNK]) scores another text: its bits are not of these characters
    packed = pack(rows, length, eos_id, isolate, keep_tail, sum(map(len, texts)) if exact else 0, stride)
    if not keep_tail:  # rows to train on: nobody compares what is measured on them
        return packed
    documents = "one a row" if tokenizer.kind == "toy" else "isolated" if isolate else "packed"
    about = of_text(texts, tokenizer, documents, eos_id is not None)
    return replace(packed, about=about, num_bytes=about["text"]["bytes"] if exact else 0)
