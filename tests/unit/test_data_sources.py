"""Where documents come from, every way a file can be wrong, and the split that keeps equal text on one side."""

import gzip
import json
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.data import CORPORA, read_documents, sources, split_held_out


def read(source: str | Path, **options: object) -> list[str]:
    return list(read_documents(source, **options))  # pyright: ignore[reportArgumentType]


def refused(source: str | Path, *parts: str, **options: object) -> None:
    """Refused in one line that holds all these parts."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_importing_is_light():
    code = "import sys, redraft.data; print({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@pytest.mark.parametrize(("name", "least"), [("python-docs", 70), ("python-source", 300), ("toy", 252)])
def test_embedded_corpora_are_there_and_always_the_same(name: str, least: int):
    documents = read(name)
    assert len(documents) >= least
    assert documents == list(CORPORA[name]())
    assert all(isinstance(document, str) and document.strip() for document in documents)


def test_unknown_source_offers_the_nearest():
    refused("python-dcs", "'python-dcs'", "did you mean 'python-docs'", ".jsonl")
    refused("", "unknown data source")


def test_txt(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\r\ntwo\n\nthré 🙂\n".encode())
    assert read(file) == read(str(file)) == ["one\ntwo\n\nthré 🙂\n"]
    file.write_text("one\n<|endoftext|>\n\n<|endoftext|>\ntwo <|endoftext|> too\n<|endoftext|>")
    assert read(file) == ["one\n", "two <|endoftext|> too\n"]


def test_characters_across_blocks_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "_BLOCK", 3)
    (tmp_path / "a.txt").write_bytes("aé🙂\r\n日本語\n".encode())
    assert read(tmp_path / "a.txt") == ["aé🙂\n日本語\n"]
    (tmp_path / "b.txt").write_bytes("aé🙂 plain text ".encode() + b"caf\xe9 noir")
    refused(tmp_path / "b.txt", f"byte {len('aé🙂 plain text caf'.encode())}", "iconv")


def test_jsonl(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    rows = [{"text": "one\r\n\u2028x"}, {"text": " "}, {"text": None}, {"text": "two", "n": 1}]
    file.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n", "utf-8")
    assert read(file) == ["one\n\u2028x", "two"]


def test_parquet(tmp_path: Path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"body": ["one", None, "two"], "n": [1, 2, 3]}), file)
    assert read(file, text_field="body") == ["one", "two"]
    refused(file, "a.parquet", "field 'text'", "body", text_field="text")
    refused(file, "a.parquet", "'1'", "not a string", text_field="n")
    file.write_bytes(b"no parquet at all, not at all")
    refused(file, "a.parquet", "not a parquet file")
    file.write_bytes(b"")
    refused(file, "a.parquet", "empty")


def test_missing_extras_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(tmp_path / "a.parquet", 'pip install "redraft[data]"')
    refused("owner/name", 'pip install "redraft[data]"')


def test_folder(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("c.txt", "b/z.txt", "b/a.txt", ".git/x.txt", "readme.md"):
        (tmp_path / name).write_text(name)
    (tmp_path / "a.jsonl").write_text('{"text": "a.jsonl"}')
    (tmp_path / "empty.txt").touch()
    assert read(tmp_path) == ["a.jsonl", "b/a.txt", "b/z.txt", "c.txt"]
    assert read(tmp_path, max_documents=2) == ["a.jsonl", "b/a.txt"]
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", "none", "no .txt")


def test_hub(monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[object, ...]] = []

    def load_dataset(name: str, *, split: str, streaming: bool):
        calls.append((name, split, streaming))
        if name == "no/where":
            raise FileNotFoundError("Couldn't find it\non the Hub")
        if split == "tset":
            raise ValueError("Bad split: tset.\nAvailable: train")
        return ({"text": f"{i}"} for i in range(5))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read("owner/name") == list("01234")
    assert read("owner/na.me:test[:10%]", max_documents=2) == ["0", "1"]
    assert calls == [("owner/name", "train", True), ("owner/na.me", "test[:10%]", True)]
    refused("owner/name", "row 0", "did you mean 'text'", text_field="txt")
    refused("no/where", "no/where", "Couldn't find it")
    refused("owner/name:tset", "Bad split: tset")
    monkeypatch.setattr(sources, "HUB_DOCUMENTS", 3)
    with pytest.warns(UserWarning, match="only the first 3"):
        assert read("owner/name") == ["0", "1", "2"]
    monkeypatch.setattr(sources, "HUB_DOCUMENTS", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read("owner/name")) == 5


def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "corpus.txt").write_text("x")
    refused(tmp_path / "korpus.txt", "no such file", "korpus.txt", "did you mean", "corpus.txt")
    monkeypatch.chdir(tmp_path)
    refused("copus.txt", "no such file", "did you mean 'corpus.txt'")
    refused("nowhere/at/all", "no such file")
    (tmp_path / "texts").mkdir()
    refused("texts/absent", "no such file")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.txt", b"", ["empty"]),
        ("a.txt", b" \n\n", ["empty"]),
        ("a.jsonl", b"\n", ["empty"]),
        ("a.txt", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", ["binary", "offset 8"]),
        ("a.txt", bytes(range(1, 256)) * 4, ["binary"]),
        ("a.txt", "Le café est noir".encode("latin1"), ["not UTF-8", "byte 6", "iconv -f latin1 -t utf-8"]),
        ("a.txt", "ends in half a caf\u00e9".encode()[:-1], ["not UTF-8", "byte 18"]),
        ("a.jsonl", '{"text": "café"}'.encode("latin1"), ["not UTF-8", "byte 13"]),
        ("a.txt", "text".encode("utf-16"), ["UTF-16", "iconv -f utf-16"]),
        ("a.csv", b"text\n1\n", ["'.csv'", ".jsonl", "rename"]),
        ("a.txt.gz", gzip.compress(b"text", mtime=0), ["'.gz'"]),
        ("noext", b"text", ["''"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', ["line 2", "not JSON"]),
        ("a.jsonl", b"[" * 100_000, ["line 1", "not JSON"]),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', ["line 2", "no JSON object"]),
        ("a.jsonl", b'{"txet": "a"}', ["line 1", "unknown field 'text'", "did you mean 'txet'"]),
        ("a.jsonl", b'{"text": 3}', ["line 1", "'3'", "not a string"]),
        ("a.jsonl", b'{"text": "\\ud800"}', ["line 1", "surrogate"]),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, parts: list[str]):
    file = tmp_path / name
    file.write_bytes(content)
    refused(file, str(file), *parts)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_one_line_of_100_megabytes_is_refused_fast(tmp_path: Path, name: str):
    file = tmp_path / name
    with file.open("wb") as out:
        out.write(b"x" * 12_000_000)
        out.truncate(100_000_000)  # a hole: never written, and never read
    start = time.perf_counter()
    refused(file, str(file), "longer than 10,000,000 characters", "break it")
    assert time.perf_counter() - start < 1


def test_many_ordinary_lines_are_not_one_long_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "MAX_LINE", 10)
    monkeypatch.setattr(sources, "_BLOCK", 7)
    (tmp_path / "a.txt").write_text("0123456789\n" * 5 + "0123456789")
    assert len(read(tmp_path / "a.txt")) == 1
    (tmp_path / "a.txt").write_text("0\n01234567891\n2")
    refused(tmp_path / "a.txt", "a line longer")


words = st.text("ab \n", min_size=0, max_size=60)


@given(st.text("ab \n", max_size=200), st.integers(1, 30))
def test_pieces_join_to_the_document(text: str, size: int):
    cut = sources.pieces(text, size)
    assert "".join(cut) == text
    assert all(0 < len(piece) <= size for piece in cut)


def test_pieces_end_at_paragraphs_then_lines_then_anywhere():
    assert sources.pieces("aaaa\n\nbbbb\n\ncccc", 12) == ["aaaa\n\nbbbb\n\n", "cccc"]
    assert sources.pieces("aaaa\nbbbb\ncccc", 12) == ["aaaa\nbbbb\n", "cccc"]
    assert sources.pieces("a" * 25, 10) == ["a" * 10, "a" * 10, "a" * 5]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_the_split_is_fair_stable_and_loses_nothing(share: float):
    documents = read("python-docs")
    train, held_out = split_held_out(documents, share)
    assert split_held_out(documents, share) == (train, held_out)
    total = sum(map(len, documents))
    assert sum(map(len, train + held_out)) == total
    assert share / 2 < sum(map(len, held_out)) / total < share * 1.5
    assert sorted("".join(train + held_out)) == sorted("".join(documents))


def test_held_out_documentation_is_new_to_a_model_trained_on_the_rest():
    train, held_out = split_held_out(read("python-docs"), 0.1)
    windows = {text[i : i + 64] for text in train for i in range(len(text) - 63)}
    known = [text[i : i + 64] in windows for text in held_out for i in range(len(text) - 63)]
    assert sum(known) / len(known) < 0.03  # a quarter, were the help's repetitions left in


def test_one_short_document_is_split_too():
    document = "\n\n".join(f"Paragraph {i}: " + "some words " * 20 for i in range(40))
    train, held_out = split_held_out([document], 0.1)
    assert 0.03 < sum(map(len, held_out)) / len(document) < 0.25
    assert all(part in document for part in train + held_out)


def test_equal_pieces_stand_on_one_side():
    documents = [f"document {i % 7}" for i in range(50)]
    train, held_out = split_held_out(documents, 0.3)
    assert train
    assert held_out
    assert not set(train) & set(held_out)


@given(st.lists(words, min_size=2, max_size=6, unique=True), st.floats(0.001, 0.999))
def test_both_sides_have_text(documents: list[str], share: float):
    if len([document for document in documents if document]) >= 2:
        train, held_out = split_held_out(documents, share)
        assert train
        assert held_out


def test_split_edges():
    assert split_held_out(["a", "b"], 0) == (["a", "b"], [])
    for documents in (["a"], ["a", "a"]):
        with pytest.raises(ValueError, match="too few to hold out"):
            split_held_out(documents, 0.1)
    for share in (-0.1, 1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="no share"):
            split_held_out(["a", "b"], share)
