"""What a likelihood was measured on, and how the text was cut: two figures of different protocol are no comparison."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from redraft.data import Packed
from redraft.data.provenance import SHORT

FIELDS = {
    "tokenizer": "train or load both models with one tokenizer, or compare bits_per_byte",
    "text": "evaluate both on the same text",
    "context": "evaluate both in rows of one length",
    "stride": "pass one stride to both",
    "documents": "isolate documents in both, or in neither",
    "bos": "begin texts alike",
    "eos": "end documents alike",
    "first_tokens": "a model with shifted logits says nothing of first tokens: nothing but another model helps",
}
"""The fields of a protocol, and what to do where two differ."""


def protocol(packed: Packed, shifted: bool) -> dict[str, Any]:
    """Of rows to be scored: tokenizer, text, context and stride in tokens, documents, bos, eos and first tokens.

    ``text`` and ``tokenizer`` are named by a fingerprint (``data.provenance``); rows that somebody packed by hand by
    that of their ids, and None. ``shifted``: first tokens are left out (``packing.without_first_tokens``).
    """
    about = packed.about or {
        "tokenizer": None,
        "text": {"sha256_of_ids": _of_ids(packed), "characters": packed.num_chars or None, "bytes": None},
        "documents": "packed" if packed.segments is None else "isolated",
        "bos": None,
        "eos": None,
    }
    length = packed.ids.shape[1]
    cut = {"context": length, "stride": packed.stride or length}
    found = {**about, **cut, "first_tokens": "left out" if shifted else "scored"}
    return {name: found[name] for name in FIELDS}


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """The fields in which two protocols differ, each with both values and what to do."""
    return {
        name: f"{name}: {one.get(name)!r} against {other.get(name)!r} ({fix})"
        for name, fix in FIELDS.items()
        if one.get(name) != other.get(name)
    }


def tokenizer_name(tokenizer: Mapping[str, Any] | None) -> str:
    """How a tokenizer is quoted: its kind, K and fingerprint.

    >>> tokenizer_name({"kind": "bpe", "K": 2048, "sha256": "0a1b2c"})
    'bpe (K=2048, 0a1b2c)'
    """
    return "an unnamed tokenizer" if tokenizer is None else "{kind} (K={K}, {sha256})".format(**tokenizer)


def _of_ids(packed: Packed) -> str:
    """Of all that rows are, in one byte order and type, whatever machine they were packed on."""
    whole = hashlib.sha256()
    for name, array in sorted(packed.batch(slice(None)).items()):
        whole.update(name.encode() + np.ascontiguousarray(array, "<i4").tobytes())
    return whole.hexdigest()[:SHORT]
