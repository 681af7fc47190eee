"""MAUVE by its library: of equals and of strangers, what it says it is of, and the features of a text."""

import sys

import numpy as np
import pytest
import torch
from parity.bases import base

from redraft.evaluation import mauve as mauves

TEXTS = ["the cat sat on the mat.", "the dog sat on the cat.", "a dog is on the mat, on it.", "it is"]


def clouds(at, n=60, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 8)) * 0.05 + np.asarray(at)


def test_mauve_of_equals_and_of_strangers():
    same = clouds(np.eye(8)[0], seed=1)
    for n in (4, 12, 60):
        found = mauves.of_features(same[:n], same[:n])
        assert (found.mauve, found.smoothed) == (1, 1)
    assert mauves.of_features(same, clouds(np.eye(8)[0], seed=3)).mauve > 0.8
    assert mauves.of_features(same, clouds(-np.eye(8)[0], seed=2)).mauve < 0.05


def test_mauve_says_what_it_is_of():
    p, q = clouds(np.eye(8)[0], 70, seed=1), clouds(np.eye(8)[0], 40, seed=2)
    found = mauves.of_features(p, q, seed=3)
    assert (found.texts, found.references, found.buckets, found.seed) == (70, 40, 4, 3)
    assert found == mauves.of_features(p, q, seed=3)
    assert mauves.of_features(p, q, buckets=20).buckets == 20
    assert mauves.of_features(p, q, buckets=20).mauve < found.mauve
    assert "70 against 40 texts, 0 empty, 4 clusters, seed 3" in str(found)
    assert found.to_dict()["features"] == "given features"


def test_mauve_refuses():
    p = clouds(np.eye(8)[0])
    with pytest.raises(ValueError, match="3 texts and 60 references"):
        mauves.of_features(p[:3], p)
    with pytest.raises(ValueError, match="buckets=1"):
        mauves.of_features(p, p, buckets=1)
    with pytest.raises(ValueError, match="shapes"):
        mauves.of_features(p, p[:, :3])
    with pytest.raises(ValueError, match="1 texts and 2 references"):
        mauves.mauve(["a", ""], ["b", "c"], features=lambda texts: p)


def test_without_mauve_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ValueError, match=r"pip install 'redraft\[mauve\]'"):
        mauves.mauve(TEXTS, TEXTS, features="nowhere")


def test_features_are_the_last_tokens_state(tmp_path):
    """As computed alone; long texts are cut to the context; 1e-5 in float32."""
    base(tmp_path, "gpt2", n_positions=16)
    embed = mauves.Embedder.load(tmp_path)
    assert embed.context == 16
    given = ["cde", "d", "fgh", "k" * 30, "cd"]
    found = embed(given)
    for text, values in zip(given, found, strict=True):
        ids = torch.tensor([embed.words.encode(text)[:16]])
        with torch.no_grad():
            np.testing.assert_allclose(values, embed.network(ids).last_hidden_state[0, -1].numpy(), atol=1e-5)
    told = mauves.mauve(["cde", "", "d", "fgh", "kk"], ["cde", "d", "fgh", "kk"], features=tmp_path)
    assert (told.texts, told.empty) == (4, 1)
    assert told.features == f"{tmp_path.name}, last token of 16 at most"
    assert told.mauve == 1
    with pytest.raises(ValueError, match="without a token"):
        embed([""])
