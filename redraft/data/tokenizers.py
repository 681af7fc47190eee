"""Tokenizers: four of our own (bytes, chars, bpe, toy) and any fast one of Hugging Face, behind one thin wrapper.

Text is always text: what spells ``[MASK]`` or ``[EOS]`` is encoded letter by letter and never becomes the special
token, neither here nor in ``transformers`` after saving. Masks are written in templates, through ``parse_template``.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from itertools import count, groupby, pairwise, product
from math import prod
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from redraft.data import slow, toy
from redraft.data.messages import remembering
from redraft.data.sources import spread
from redraft.data.templates import parse_template
from redraft.errors import unknown
from redraft.files import write_text

MASK, EOS = "[MASK]", "[EOS]"
NAMES = ("bpe", "bytes", "chars", "toy")
MAX_TRIED = 64
"""Most combinations of the lengths of a template's spans."""
BPE_SAMPLE = 20_000_000
BPE_LEAST = 258  # 256 bytes, one merge, [EOS]

_JSON, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"


class Tokenizer:
    """Text to ids and back. ``K`` counts the clean ids, ``[EOS]`` among them.

    ``mask_id`` is ``K`` where the mask is the last id, as it is when we append it, and lies below ``K`` where a
    Hugging Face tokenizer has its own among the others (BERT); ``eos_id`` (put after each document) and ``pad_id``
    are ids or None.
    """

    def __init__(self, backend: tokenizers.Tokenizer, kind: str, hf: Any = None) -> None:
        """Wrap a backend that holds its special tokens; ``build_tokenizer`` and ``load`` are the usual doors."""
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._hf = hf
        self.kind = kind
        self.mask_token: str = hf.mask_token if hf else MASK
        self.mask_id = _id(backend, self.mask_token)
        size = 1 + max(backend.get_vocab().values())
        self.K: int = self.mask_id if self.mask_id == size - 1 else size
        self.eos_id: int | None = backend.token_to_id(EOS)
        self.pad_id: int | None = toy.PAD if kind == "toy" else None
        if hf:  # BERT and its kin have no end of text; their separator stands between documents
            self.eos_id = hf.eos_token_id if hf.eos_token_id is not None else hf.sep_token_id
            self.pad_id = hf.pad_token_id
        self._alphabet = set(backend.get_vocab()) if kind == "chars" else None
        self.taught: dict[str, str] = {}
        """How conversations were told it, where that was not as its model's family does: ``template`` and ``turn``."""

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer inside, for who must know what a single id contributes to a text."""
        return self._backend

    @property
    def hf(self) -> Any:
        """The ``transformers`` tokenizer around it, None for our own kinds."""
        return self._hf

    def encode(self, text: str, pad: bool = True) -> list[int]:
        """Ids of ``text``, no specials added. Toy rows are padded to six unless ``pad`` is False.

        ``ValueError`` for a character outside the alphabet (chars), for an unknown unit or a seventh (toy), and for a
        word that is the mask (DiffuLLaMA's is one of the vocabulary's).
        """
        ids = self.encode_batch([text], pad)[0]
        if self.mask_id in ids:
            start, stop = self._backend.encode(text, add_special_tokens=False).offsets[ids.index(self.mask_id)]
            raise ValueError(
                f"the word {text[start:stop]!r} of the text, at character {start}, is the mask (id {self.mask_id}): "
                "no text can have it; write another"
            )
        return ids

    def teach(self, template: str, turn: str) -> None:
        """Let conversations be told by this template, Jinja, and end so, from now on and where it is saved."""
        self.taught = {"template": template, "turn": turn}
        if self._hf is not None:
            self._hf.chat_template = template

    def encode_batch(self, texts: Sequence[str], pad: bool = True) -> list[list[int]]:
        """``encode`` of each text, masks and all."""
        for text in texts:
            self._refuse_unknown(text)
        rows = [row.ids for row in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        return [row + _toy_padding(row) for row in rows] if self.kind == "toy" and pad else rows

    def _refuse_unknown(self, text: str) -> None:
        if self._alphabet is not None and (strange := set(text) - self._alphabet):
            character = min(strange, key=text.index)
            raise ValueError(f"character {character!r} is not in the alphabet of 'chars'; use 'bytes' or 'bpe'")
        if self.kind == "toy":
            for unit in text.split():
                if unit not in toy.UNITS:
                    raise unknown("unit of the toy language", unit, toy.UNITS)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``: masks shown as ``[MASK]``, documents ended by ``[EOS]`` apart by a blank line.

        ``[EOS]`` at either end and padding at the end are left out.
        """
        row = [int(i) for i in ids]
        while row and row[-1] == self.pad_id:
            row.pop()
        documents = [list(group) for end, group in groupby(row, lambda i: i == self.eos_id) if not end]
        text = "\n\n".join(self._backend.decode(one, skip_special_tokens=False) for one in documents)
        masked = self.mask_token != MASK and self.mask_id in row  # else what spells the mask is text
        return text.replace(self.mask_token, MASK) if masked else text

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """One readable string per id, for traces; a byte that is no character alone reads ``<0xE2>``."""
        return [self._readable(int(i)) for i in ids]

    def _readable(self, i: int) -> str:
        if i in (self.mask_id, self.eos_id):
            return MASK if i == self.mask_id else EOS
        token = self._backend.id_to_token(i)
        if token is None:
            return f"<{i}>"
        if token.startswith("▁"):  # SentencePiece's blank, which decoding one token alone would lose
            return token.replace("▁", " ")
        text = self._backend.decode([i], skip_special_tokens=False)
        if "\ufffd" in text and all(letter in BYTE_OF for letter in token):
            return "".join(f"<0x{BYTE_OF[letter]:02X}>" for letter in token)
        return text

    def token(self, text: str) -> int:
        """The id of a token by its text, or of a special token by its name.

        For options that take ids. Errors: ``ValueError`` for a text that is no one token.
        """
        specials = {token.content: i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}
        if text in specials:
            return specials[text]
        ids = self.encode(text, pad=False)
        if len(ids) != 1:
            raise ValueError(f"{text!r} is {len(ids)} tokens, {self.tokens(ids)}: pass the text of one")
        return ids[0]

    def encode_template(self, text: str) -> list[int | None]:
        """Ids of a template, None at each place to fill: "The [MASK:3] is here." has three (see parse_template).

        Errors: ``ValueError`` for a span of unknown length, beside those of ``parse_template`` and ``encode``.
        """
        rows = self.encode_templates(text)
        if () not in rows:
            raise ValueError(f"{len(rows)} lengths are possible of {text[:80]!r}: give one, [MASK:n]")
        return rows[()]

    def encode_templates(self, text: str) -> dict[tuple[int, ...], list[int | None]]:
        """As ``encode_template``, for each combination of the lengths of its spans of unknown length, ``[MASK:2-6]``.

        The lengths (one for each such span, none of a template without) are the keys, the shortest first. Errors:
        ``ValueError`` for more than ``MAX_TRIED``.
        """
        parts = [
            part if isinstance(part, int | range) else self.encode(part, pad=False) for part in parse_template(text)
        ]
        spans = [part for part in parts if isinstance(part, range)]
        if (number := prod(map(len, spans))) > MAX_TRIED:
            raise ValueError(
                f"{number} combinations of lengths in {text[:80]!r}, and each would be tried: narrow the ranges to "
                f"{MAX_TRIED} at most"
            )
        rows = dict[tuple[int, ...], list[int | None]]()
        for lengths in product(*spans):
            row, left = list[int | None](), iter(lengths)
            for part in parts:
                gap = next(left) if isinstance(part, range) else part
                row += [None] * gap if isinstance(gap, int) else gap
            rows[lengths] = [*row, *_toy_padding(row)] if self.kind == "toy" else row
        return rows

    def encode_passages(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """Ids of a text, and which of them are of its passages: the characters from start up to stop, of each span.

        The text is encoded whole where its tokens begin and end as the passages do. Where one lies across the border
        of a passage, all that is between borders is encoded apart, so that a passage has all its letters and no others
        (where tokens begin with their blank, as in BPE, let a passage begin with it).

        Errors: ``ValueError`` for spans that are empty, overlap or leave the text.
        """
        borders = [border for span in sorted(spans) for border in span]
        if not borders or borders[0] < 0 or borders[-1] > len(text) or any(a >= b for a, b in sorted(spans)):
            raise ValueError(f"span={list(spans)} of a text of {len(text)} characters: pass 0 <= start < stop of each")
        if borders != sorted(borders):
            raise ValueError(f"span={list(spans)}: passages overlap; pass their union")
        ids = self.encode(text)
        offsets: list[tuple[int, int]] = self._backend.encode(text, add_special_tokens=False).offsets
        if not any(start < border < stop for start, stop in offsets for border in borders):
            inside = [any(a <= start and stop <= b for a, b in spans) for start, stop in offsets]
            return ids, inside + [False] * (len(ids) - len(inside))
        row, inside = list[int](), list[bool]()
        for number, (start, stop) in enumerate(pairwise([0, *borders, len(text)])):
            piece = self.encode(text[start:stop], pad=False)
            row, inside = row + piece, inside + [number % 2 == 1] * len(piece)
        return row, inside

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which ``transformers.AutoTokenizer`` loads too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._hf:
            self._hf.save_pretrained(folder)
            config = json.loads((folder / CONFIG).read_text("utf-8"))
        else:
            write_text(folder / _JSON, self._backend.to_str(pretty=True))
            config: dict[str, Any] = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_input_names": ["input_ids", "attention_mask"],
                "clean_up_tokenization_spaces": False,
                "mask_token": MASK,
                "eos_token": None if self.eos_id is None else EOS,
                "pad_token": None if self.pad_id is None else toy.UNITS[toy.PAD],
            }
            config = {key: value for key, value in config.items() if value is not None}
        config |= {"split_special_tokens": True, "redraft": {"kind": self.kind}}
        write_text(folder / CONFIG, remembering(json.dumps(config), self.taught))

    @classmethod
    def load(cls, folder: str | Path, mask_id: int | None = None) -> "Tokenizer":
        """The tokenizer saved in ``folder`` by us or by ``transformers``.

        ``mask_id``: the token that is the mask, where the tokenizer itself does not say. Errors: ``ValueError`` for no
        tokenizer, a damaged one, one without that token, or that has another mask.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / CONFIG).read_text("utf-8")) if (folder / CONFIG).exists() else {}
            kind = config.get("redraft", {}).get("kind", "hf")
            taught = {name: str(one) for name, one in config.get("redraft", {}).get("taught", {}).items()}
            if taught and taught.keys() != {"template", "turn"}:
                raise ValueError(f"redraft.taught has {', '.join(taught)}")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{folder / CONFIG}: damaged ({error}); copy the folder again") from None
        if kind == "hf":
            found = _hugging_face(str(folder), mask_id=mask_id)
            found.taught = taught
            return found
        if kind not in NAMES:
            raise unknown(f"tokenizer kind in {folder / CONFIG}", kind, [*NAMES, "hf"])
        if not (folder / _JSON).is_file():
            raise ValueError(f"{folder}: no {_JSON} in it; copy the folder again")
        try:
            found = cls(tokenizers.Tokenizer.from_file(str(folder / _JSON)), kind)
            found.taught = taught
            return found
        except Exception as error:  # the Rust library raises bare Exception
            raise ValueError(f"{folder / _JSON}: damaged ({error}); copy the folder again") from None


def build_tokenizer(name: str, texts: Iterable[str] = (), vocab: int = 2048) -> Tokenizer:
    """The tokenizer ``name``: bytes, chars, bpe, toy, or the folder or id of a Hugging Face tokenizer.

    ``texts`` gives chars its alphabet and bpe its merges. ``vocab`` is read by bpe only: its number ``K`` of clean
    ids, 256 bytes and ``[EOS]`` included (fewer if the text has no more pairs to merge).
    """
    if name in _BUILDERS:
        return Tokenizer(_with_specials(_BUILDERS[name](texts, vocab), eos=name != "toy"), name)
    if not Path(name).is_dir() and get_close_matches(name, NAMES, n=1, cutoff=0.75):
        raise unknown("tokenizer", name, NAMES)
    return Tokenizer.load(name) if Path(name).is_dir() else _hugging_face(name)


def pretrained(name: str, pad_token: str | None = None, mask_id: int | None = None) -> Tokenizer:
    """The Hugging Face tokenizer of a folder or id; ``pad_token`` is appended as padding if it has none.

    ``mask_id``: see ``Tokenizer.load``. Errors: ``ValueError`` for one that cannot be had.
    """
    return _hugging_face(name, pad_token, mask_id)


def _bytes(_texts: Iterable[str], _vocab: int) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab=BYTE_OF, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _chars(texts: Iterable[str], _vocab: int) -> tokenizers.Tokenizer:
    alphabet = sorted(set[str]().union(*texts))
    if not alphabet:
        raise ValueError("no text to take the alphabet of 'chars' from; pass texts or use 'bytes'")
    backend = tokenizers.Tokenizer(models.WordLevel(vocab={letter: i for i, letter in enumerate(alphabet)}))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def _bpe(texts: Iterable[str], vocab: int) -> tokenizers.Tokenizer:
    if vocab < BPE_LEAST:
        raise ValueError(f"vocab {vocab} is too small for 'bpe': at least {BPE_LEAST}, or use 'bytes'")
    listed = list(texts)
    if not any(listed):
        raise ValueError("no text to train 'bpe' on; pass texts or use 'bytes'")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab - 1, initial_alphabet=list(BYTE_OF), show_progress=False)
    backend.train_from_iterator(spread(listed, BPE_SAMPLE), trainer)
    return backend


def _toy(_texts: Iterable[str], _vocab: int) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(vocab={unit: i for i, unit in enumerate(toy.UNITS)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


_BUILDERS: dict[str, Callable[[Iterable[str], int], tokenizers.Tokenizer]] = {
    "bpe": _bpe,
    "bytes": _bytes,
    "chars": _chars,
    "toy": _toy,
}


def _hugging_face(name: str, pad_token: str | None = None, mask_id: int | None = None) -> Tokenizer:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # seconds to import: only for those who need it

    try:
        if (Path(name) / _JSON).is_file():  # config.json may be unknown to transformers
            hf: Any = PreTrainedTokenizerFast.from_pretrained(name)
        elif slow.is_qwen2(Path(name)):
            hf = slow.qwen2(Path(name))
        else:
            hf = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # from no network to a damaged file: whatever it is, this tokenizer cannot be had
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        choice = f"{', '.join(NAMES)}, or a Hugging Face folder or id"
        raise ValueError(f"cannot load the tokenizer {name!r} ({reason}); use one of {choice}") from None
    if not isinstance(getattr(hf, "backend_tokenizer", None), tokenizers.Tokenizer):
        raise ValueError(f"{name}: {type(hf).__name__} has no tokenizer.json; convert it to a fast tokenizer first")
    if pad_token is not None and hf.pad_token is None:
        hf.add_special_tokens({"pad_token": pad_token})
    if mask_id is not None and hf.mask_token_id != mask_id:
        hf.add_special_tokens({"mask_token": _known_mask(name, hf, mask_id)})
    elif hf.mask_token is None:
        hf.add_special_tokens({"mask_token": MASK})
    return Tokenizer(hf.backend_tokenizer, "hf", hf)


def _known_mask(name: str, hf: Any, mask_id: int) -> str:
    """The text of the token that is the mask. Errors: ``ValueError`` for none, or for a clash."""
    token: str | None = hf.backend_tokenizer.id_to_token(mask_id)
    if hf.mask_token is not None:
        raise ValueError(
            f"{name}: the tokenizer's mask is id {hf.mask_token_id}, the model's {mask_id}; pass tokenizer=, the one "
            "it was trained with"
        )
    if token is None:
        raise ValueError(
            f"{name}: the model's mask is id {mask_id}, and the tokenizer has no such token; pass tokenizer=, the one "
            "it was trained with"
        )
    return token


def _with_specials(backend: tokenizers.Tokenizer, eos: bool) -> tokenizers.Tokenizer:
    names = [EOS, MASK] if eos else [MASK]
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in names])
    return backend


def _id(backend: tokenizers.Tokenizer, token: str) -> int:
    if (i := backend.token_to_id(token)) is None:
        raise ValueError(f"the tokenizer has no {token}")
    return i


def _toy_padding(row: Sequence[int | None]) -> list[int]:
    if len(row) > toy.LENGTH:
        raise ValueError(f"{len(row)} units: a toy text has at most {toy.LENGTH}; shorten it")
    return [toy.PAD] * (toy.LENGTH - len(row))


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as one visible letter: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = count(0x100)
    return {chr(byte if byte in printable else next(spare)): byte for byte in range(256)}


BYTE_OF = _byte_alphabet()
"""The byte of each letter."""
