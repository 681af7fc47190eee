"""Documents from wherever they lie: an embedded corpus, a file, a folder or a Hub data set.

Every fault in a user's file is one ``ValueError`` of one line with the file, the offending value and the fix.
"""

import codecs
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import count, islice
from pathlib import Path
from typing import Any

from redraft.data.corpora import CORPORA
from redraft.errors import unknown

SEPARATOR = "<|endoftext|>"
MAX_LINE = 10_000_000
HUB_DOCUMENTS = 100_000
PIECE = 4_000

_BLOCK = 1 << 20
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.:\[\]%+-]+))?")
_FORMATS = ".txt, .jsonl or .parquet"


def read_documents(source: str | Path, text_field: str = "text", max_documents: int | None = None) -> Iterator[str]:
    """The documents of ``source``, in a fixed order; those of nothing but white space are left out.

    ``source`` is the name of an embedded corpus (``CORPORA``), a ``.txt`` file (documents separated by lines holding
    only ``<|endoftext|>``, else one document), a ``.jsonl`` or ``.parquet`` file (field ``text_field``), a folder (all
    such files below it, sorted), or a Hub data set ``owner/name[:split]``, streamed, of which the first 100,000
    documents are taken unless ``max_documents`` says otherwise. Text is UTF-8; ``\\r\\n`` is read as ``\\n``.
    """
    name = str(source)
    path = Path(name).expanduser()
    if name in CORPORA:
        documents = iter(CORPORA[name]())
    elif name and path.exists():
        documents = _read_path(path, text_field)
    elif hub := _hub_id(name, path):
        documents = _read_hub(name, *hub, text_field, max_documents)
    elif _looks_like_path(name, path):
        raise ValueError(f"no such file or folder: {name!r};{_near_file(path)} check the path")
    else:
        raise ValueError(f"{unknown('data source', name, CORPORA)}; or a {_FORMATS} file, a folder, or owner/name")
    return _not_blank(name, documents, max_documents)


def _not_blank(name: str, documents: Iterator[str], max_documents: int | None) -> Iterator[str]:
    empty = True
    for document in islice((d for d in documents if d.strip()), max_documents):
        empty = False
        yield document
    if empty:
        raise ValueError(f"{name}: empty, there is no text in it; choose a source with text")


def _hub_id(name: str, path: Path) -> tuple[str, str] | None:
    match = _HUB_ID.fullmatch(name)
    # 'folder/name' with such a folder here is far more often a mistyped path than a data set of that owner
    if not match or name[0] in "./~" or path.suffix in _READERS or path.parent.exists():
        return None
    return match[1], match[2] or "train"


def _looks_like_path(name: str, path: Path) -> bool:
    return "/" in name or "\\" in name or bool(path.suffix)


def _near_file(path: Path) -> str:
    siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, siblings, n=1)
    return f" did you mean {str(path.parent / near[0])!r}?" if near else ""


def _read_path(path: Path, text_field: str) -> Iterator[str]:
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.suffix in _READERS and file.is_file()]
        files = [file for file in files if not any(p.startswith(".") for p in file.relative_to(path).parts)]
        if not files:
            raise ValueError(f"{path}: no {_FORMATS} file below this folder; add one or choose another folder")
        for file in sorted(files, key=lambda file: file.relative_to(path).as_posix()):
            yield from _READERS[file.suffix](file, text_field)
    elif path.suffix in _READERS:
        yield from _READERS[path.suffix](path, text_field)
    else:
        raise ValueError(f"{path}: unknown file type {path.suffix!r}; use {_FORMATS} (rename plain text to .txt)")


def _read_txt(path: Path, _text_field: str) -> Iterator[str]:
    text = "".join(_blocks(path)).replace("\r\n", "\n")
    yield from re.split(rf"^{re.escape(SEPARATOR)}[ \t]*(?:\n|\Z)", text, flags=re.MULTILINE)


def _read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    for where, record in records(path, f"{{{text_field!r}: ...}}"):
        yield _field(record, text_field, where)


def records(path: Path, wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a ``.jsonl`` file, each with the words for where it stands; ``wanted`` is what a line should be.

    Errors: ``ValueError`` for a line that is no JSON object or longer than ``MAX_LINE``, and for a file of no text.
    """
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error}): {_short(line)}; write one JSON object a line") from None
        if not isinstance(record, dict):
            raise ValueError(f"{where}: {_short(line)} is no JSON object; write {wanted}")
        yield where, record


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f'{path}: .parquet needs pyarrow; run: pip install "redraft[data]"') from None
    if not path.stat().st_size:
        return
    try:
        file: Any = parquet.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a parquet file ({_first_line(error)}); write it again") from None
    with file:
        if text_field not in file.schema_arrow.names:
            raise ValueError(f"{path}: {unknown('field', text_field, file.schema_arrow.names)}; set text_field")
        for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
            for value in batch.column(0).to_pylist():
                yield _field({text_field: value}, text_field, str(path))


def _read_hub(name: str, dataset: str, split: str, text_field: str, max_documents: int | None) -> Iterator[str]:
    limit = HUB_DOCUMENTS if max_documents is None else max_documents
    for number, row in enumerate(_hub_rows(name, dataset, split)):
        if max_documents is None and number == limit:
            warnings.warn(f"{name}: only the first {limit} documents are read", stacklevel=2)
            return
        yield _field(row, text_field, f"{name}, row {number}")


def _hub_rows(name: str, dataset: str, split: str) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise ValueError(f'{name}: a Hub data set needs datasets; run: pip install "redraft[data]"') from None
    load: Callable[..., Iterable[dict[str, Any]]] = datasets.load_dataset
    try:
        yield from load(dataset, split=split, streaming=True)
    except (OSError, RuntimeError, ValueError) as error:  # no network, no such repository, no such split
        raise ValueError(f"{name}: no such file, and no Hub data set to be had ({_first_line(error)})") from None


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _field(record: dict[str, Any], name: str, where: str) -> str:
    if name not in record:
        raise ValueError(f"{where}: {unknown('field', name, record)}; set text_field")
    value = record[name]
    if value is None:  # a document without text
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {name!r} is {_short(repr(value))}, not a string; set text_field")
    return written(value, where)


def written(text: str, where: str) -> str:
    """The text as it is read, ``\\r\\n`` as ``\\n``. Errors: ``ValueError`` for what no UTF-8 can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: character {error.start} is half a surrogate pair; write it whole") from None
    return text.replace("\r\n", "\n")


def _lines(path: Path) -> Iterator[str]:
    rest = ""
    for block in _blocks(path):
        *whole, rest = (rest + block).split("\n")
        yield from whole
    yield rest


def _blocks(path: Path) -> Iterator[str]:
    """The decoded text of a file, block by block, so that a hopeless file is refused before it fills the memory."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = run = 0
    try:
        opened = path.open("rb")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    with opened as file:
        while True:
            block = file.read(_BLOCK)
            if not offset:
                _refuse_binary(path, block)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _undecodable(path, block, offset - pending + error.start) from None
            lines = text.split("\n")
            lengths = [run + len(lines[0]), *map(len, lines[1:])]
            if max(lengths) > MAX_LINE:
                raise ValueError(f"{path}: a line longer than {MAX_LINE:,} characters; break it into lines")
            run = lengths[-1]
            yield text if offset else text.removeprefix("\ufeff")
            offset += len(block)
            if not block:
                return


def _refuse_binary(path: Path, block: bytes) -> None:
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}: UTF-16, not UTF-8; convert it: iconv -f utf-16 -t utf-8")
    if (at := block.find(b"\0")) >= 0:
        raise ValueError(f"{path}: a binary file (NUL byte at offset {at}); give plain UTF-8 text")


def _undecodable(path: Path, block: bytes, offset: int) -> ValueError:
    control = sum(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in block[:4096])
    if control * 50 > len(block[:4096]):
        return ValueError(f"{path}: a binary file (no text at byte {offset}); give plain UTF-8 text")
    return ValueError(f"{path}: not UTF-8 at byte {offset}; convert it, e.g.: iconv -f latin1 -t utf-8")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def split_held_out(documents: Iterable[str], share: float) -> tuple[list[str], list[str]]:
    """Split off about ``share`` of the text: (train, held out), the same for the same text, in the text's order.

    Documents are cut into pieces of at most 4,000 characters, shorter for a corpus below 200,000, at paragraphs where
    possible; a piece is held out when its SHA-256, read as a number on [0, 1), is below ``share``. So equal pieces
    never stand on both sides. Neighbouring pieces on one side are joined again. ``ValueError`` if a side stays empty.
    """
    documents = list(documents)
    if not 0 <= share < 1:
        raise ValueError(f"held_out {share} is no share of the text; choose 0 (none) or a number below 1, e.g. 0.1")
    if share == 0:
        return documents, []
    characters = sum(map(len, documents))
    size = min(PIECE, max(PIECE // 20, characters // 50))  # enough pieces for a fair share of a short text too
    cut = [[(_unit_hash(piece), piece) for piece in pieces(document, size)] for document in documents]
    hashes = sorted({u for document in cut for u, _ in document})
    if len(hashes) < 2:
        raise ValueError(f"{characters} characters are too few to hold out {share}: add text or set held_out to 0")
    # the first and the last in the order of the hash are on either side, however small the corpus
    threshold = min(max(share, hashes[1]), hashes[-1])
    sides: tuple[list[str], list[str]] = ([], [])
    for document in cut:
        previous = None
        for u, piece in document:
            side = int(u < threshold)
            if side == previous:
                sides[side][-1] += piece
            else:
                sides[side].append(piece)
            previous = side
    return sides


def pieces(document: str, size: int) -> list[str]:
    """Cut a document into pieces of at most ``size`` characters, at blank lines, else at lines, else anywhere."""
    cut: list[str] = []
    start = 0
    while len(document) - start > size:
        low, high = start + size // 2, start + size
        end = next((at + len(mark) for mark in ("\n\n", "\n") if (at := document.rfind(mark, low, high)) >= 0), high)
        cut.append(document[start:end])
        start = end
    return [*cut, document[start:]] if document[start:] else cut


def _unit_hash(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def spread(texts: Sequence[str], limit: int, piece: int = 1 << 14) -> Iterator[str]:
    """All texts, or every n-th piece of them: about ``limit`` characters in all, from everywhere."""
    stride = -(-sum(map(len, texts)) // limit)
    if stride <= 1:
        yield from texts
        return
    number = count()
    for text in texts:
        for start in range(0, len(text), piece):
            if next(number) % stride == 0:
                yield text[start : start + piece]
