"""What rows of ids were made of, in a few values that can be compared: the text, the tokenizer, and how it was cut."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from redraft.data.tokenizers import Tokenizer

SHORT = 12
"""Hexadecimal digits of a fingerprint that tells texts and tokenizers apart."""


def digest(documents: Iterable[str]) -> str:
    """SHA-256 of the documents, each preceded by its length, so that moving a boundary changes it."""
    whole = hashlib.sha256()
    for document in documents:
        data = document.encode()
        whole.update(len(data).to_bytes(8) + data)
    return whole.hexdigest()


def of_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Its kind, its K, and the fingerprint of its vocabulary, which id every token has, and of its merges if any."""
    words: list[Any] = sorted(tokenizer.backend.get_vocab().items())
    if merges := json.loads(tokenizer.backend.to_str())["model"].get("merges"):
        words.append([one.split(" ") if isinstance(one, str) else one for one in merges])  # as versions write them
    told = json.dumps(words).encode()
    return {"kind": tokenizer.kind, "K": tokenizer.K, "sha256": hashlib.sha256(told).hexdigest()[:SHORT]}


def of_text(texts: Sequence[str], tokenizer: Tokenizer, documents: str, eos: bool) -> dict[str, Any]:
    """What makes two measurements ones of the same thing, as far as text and tokenizer go; plain JSON values.

    ``documents``: ``packed`` one after the other, ``isolated`` from one another, or ``one a row``. No token is put
    before a text; ``eos`` is after each document, or nowhere.
    """
    size = {"characters": sum(map(len, texts)), "bytes": sum(len(text.encode()) for text in texts)}
    return {
        "tokenizer": of_tokenizer(tokenizer),
        "text": {"sha256": digest(texts)[:SHORT], **size},
        "documents": documents,
        "bos": "none",
        "eos": "after each document" if eos else "none",
    }
