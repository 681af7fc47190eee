"""Rows, their accounting, and a stream of batches that depends on (seed, step) alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.data import Packed, build_tokenizer, indices, load_data, load_text, order, pack, toy

EOS = 9


@dataclass(frozen=True)
class Config:
    source: str = "python-docs"
    tokenizer: str = "bytes"
    vocab: int = 300
    length: int = 64
    held_out: float = 0.1
    isolate_documents: bool = False
    text_field: str = "text"
    max_documents: int | None = None


def test_training_drops_the_tail():
    packed = pack([[1, 2, 3], [4, 5], [6]], 4, EOS, num_chars=6)
    assert packed.ids.tolist() == [[1, 2, 3, 9], [4, 5, 9, 6]]
    assert packed.valid is None
    assert packed.segments is None
    assert (len(packed), packed.num_tokens, packed.num_chars) == (2, 8, 6)


def test_evaluation_keeps_it():
    packed = pack([[1, 2, 3], [4, 5], [6]], 4, EOS, keep_tail=True)
    assert packed.ids[2].tolist() == [9, 9, 9, 9]
    assert packed.num_tokens == 9
    assert packed.valid is not None
    assert packed.valid.tolist() == [[True] * 4, [True] * 4, [True, False, False, False]]
    assert pack([[1, 2, 3]], 4, EOS, keep_tail=True).valid is None
    assert pack([[1, 2, 3]], 2, None, keep_tail=True).ids.tolist() == [[1, 2], [3, 0]]


def test_segments_count_documents_from_the_start_of_each_row():
    packed = pack([[1, 2, 3], [4, 5], [], [6]], 4, EOS, isolate_documents=True, keep_tail=True)
    assert packed.ids.tolist() == [[1, 2, 3, 9], [4, 5, 9, 9], [6, 9, 9, 9]]
    assert packed.segments is not None
    assert packed.segments.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, -1, -1]]
    gap = pack([[1], [], [2]], 2, None, isolate_documents=True)
    assert gap.segments is not None
    assert gap.segments.tolist() == [[0, 1]]


@given(st.lists(st.lists(st.integers(0, 8), max_size=7), min_size=1, max_size=8), st.integers(1, 6))
def test_nothing_is_lost_when_the_tail_is_kept(documents: list[list[int]], length: int):
    stream = [i for document in documents for i in [*document, EOS]]
    owner = [n for n, document in enumerate(documents) for _ in [*document, EOS]]
    packed = pack(documents, length, EOS, isolate_documents=True, keep_tail=True)
    valid = np.ones(packed.ids.shape, bool) if packed.valid is None else packed.valid
    assert packed.ids[valid].tolist() == stream
    assert packed.num_tokens == len(stream) == valid.sum()
    assert packed.segments is not None
    assert (packed.segments[~valid] == -1).all()
    for n, row in enumerate(packed.segments):
        owners = owner[n * length : (n + 1) * length]
        assert [int(s) for s in row if s >= 0] == [o - owners[0] for o in owners]


def test_too_short_says_both_numbers():
    with pytest.raises(ValueError, match="3 tokens make no row of length 8: shorten the length or add text"):
        pack([[1, 2]], 8, EOS)
    with pytest.raises(ValueError, match="0 tokens"):
        pack([], 8, EOS, keep_tail=True)
    with pytest.raises(ValueError, match="length 0"):
        pack([[1]], 0, EOS)


def test_batch_holds_what_there_is():
    packed = pack([[1, 2, 3], [4]], 2, EOS, isolate_documents=True)
    assert set(packed.batch([0])) == {"ids", "segments"}
    assert packed.batch(np.array([2, 0]))["ids"].tolist() == [[4, 9], [1, 2]]
    assert packed.batch(slice(0, 2))["ids"].shape == (2, 2)


def test_order_is_a_permutation_and_never_changes():
    assert order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]  # else old runs no longer resume
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (-1, 3)):
        assert sorted(order(seed, epoch, 100).tolist()) == list(range(100))
    assert not (order(0, 0, 100) == order(0, 1, 100)).all()
    assert not (order(0, 0, 100) == order(1, 0, 100)).all()
    with pytest.raises(ValueError, match="read-only"):
        order(0, 0, 8)[0] = 1


@pytest.mark.parametrize(("batch", "n"), [(4, 10), (16, 10), (5, 10), (25, 10), (1, 1)])
def test_stream_of_epochs(batch: int, n: int):
    stream = np.concatenate([indices(step, batch, n, seed=3) for step in range(30)])
    epochs = np.concatenate([order(3, epoch, n) for epoch in range(len(stream) // n + 1)])
    assert stream.tolist() == epochs[: len(stream)].tolist()


def test_stream_does_not_depend_on_the_batch():
    small = np.concatenate([indices(step, 4, 10, 0) for step in range(10)])
    large = np.concatenate([indices(step, 8, 10, 0) for step in range(5)])
    assert small.tolist() == large.tolist()


@pytest.mark.parametrize("name", ["bytes", "chars", "bpe"])
def test_load_data(name: str):
    data = load_data(Config(tokenizer=name))
    assert data.held_out is not None
    assert data.train.ids.dtype == np.int32
    assert data.train.ids.shape[1] == 64
    assert data.train.ids.max() < data.tokenizer.K
    assert data.train.num_tokens == data.train.ids.size
    assert data.train.num_chars + data.held_out.num_chars == data.description["characters"]
    assert set(data.description) == {"source", "documents", "characters", "sha256"}
    again = load_data(Config(tokenizer=name), data.tokenizer)
    assert again.tokenizer is data.tokenizer
    assert (again.train.ids == data.train.ids).all()
    assert again.description == data.description


def test_load_data_without_held_out():
    assert load_data(Config(held_out=0)).held_out is None
    assert load_data(Config(source="toy", tokenizer="toy", length=6, held_out=0)).held_out is None


def test_toy_is_the_law_itself():
    data = load_data(Config(source="toy", tokenizer="toy", length=6))
    assert data.held_out is not None
    assert data.tokenizer.K == 13
    for packed in (data.train, data.held_out):
        assert [tuple(row) for row in packed.ids.tolist()] == list(toy.sentences())
        assert packed.valid is None
        assert packed.segments is None
        assert packed.num_tokens == 252 * 6
    with pytest.raises(ValueError, match=r"length 128.*set data\.length"):
        load_data(Config(source="toy", tokenizer="toy", length=128))


def test_toy_text_of_other_tokenizers_and_files(tmp_path: Path):
    assert load_data(Config(source="toy", tokenizer="chars", length=8)).train.ids.shape[1] == 8
    (tmp_path / "a.txt").write_text("we are cat s\nour dog is your s\n")
    packed = load_text(tmp_path / "a.txt", build_tokenizer("toy"), 6)
    assert packed.ids.tolist() == [[0, 10, 6, 11, 12, 12], [3, 7, 9, 4, 11, 12]]
    assert packed.num_chars == len("we are cat sour dog is your s")


def test_load_text_counts_every_character(tmp_path: Path):
    text = "Ein Haus für 🙂.\n" * 7
    (tmp_path / "a.txt").write_text(text, "utf-8")
    tokenizer = build_tokenizer("bytes")
    packed: Packed = load_text(tmp_path / "a.txt", tokenizer, 50, isolate_documents=True)
    assert packed.num_chars == len(text)
    assert packed.num_tokens == len(text.encode()) + 1
    assert packed.valid is not None
    assert packed.segments is not None
    assert tokenizer.decode(packed.ids[packed.valid]) == text


def test_text_shorter_than_a_row(tmp_path: Path):
    (tmp_path / "a.txt").write_text("Too short.")
    with pytest.raises(ValueError, match="11 tokens make no row of length 64"):
        load_data(Config(source=str(tmp_path / "a.txt"), held_out=0))
