"""Dream's folders: a tokenizer in vocab.json and merges.txt whose class is code; DreamOn's token that grows gaps."""

import json
import unicodedata
from itertools import pairwise

import pytest
import regex
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, trainers

from parity.checkpoints import DREAM, M, qwen2_shapes, tokenizer_files, write
from redraft import runs
from redraft.data import Tokenizer
from redraft.sampling.growth import Elastic

ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>", "<|beginoftext|>", "<|mask|>", "<|expand|>")
TEXTS = [
    "the sea is the sea", "naïve  café\n\n\tdef f(x):\r\n    return 1234 - x's", "日本語 🙂 e\u0301",
    "it's 2025-12-31!  ", "<|mask|> spelt, <|im_end|> too", "",
]  # fmt: skip


def byte_pairs():
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    made.train_from_iterator(["the sea is the sea of the day and of the return of the def"] * 3, trainer)
    return json.loads(made.to_str())["model"]


def slow_files(folder, model, named="DreamTokenizer", gap=0):
    """As Dream's repository has them: no tokenizer.json, and a class that only its own code knows."""
    (folder / "tokenizer.json").unlink(missing_ok=True)
    first = len(model["vocab"]) + gap
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "tokenizer_class": named,
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {str(first + n): {"content": token, **special} for n, token in enumerate(ADDED)},
        "bos_token": "<|beginoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>", "unk_token": None, "add_bos_token": False, "errors": "replace",
        "chat_template": "{% for message in messages %}{{ message.content }}<|im_end|>{% endfor %}",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    for file in ("tokenization_dream.py", "modeling_dream.py"):
        (folder / file).write_text(f"open({str(folder / 'ran')!r}, 'w')\nraise SystemExit('code was run')\n")
    return first


def encoded(text, model):
    """Byte pair encoding by hand: the pieces of Qwen2's own expression, merged by rank."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    pattern = words + r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [b for b in range(256) if chr(b) in letters]
    of_byte = {b: chr(b) for b in printable}
    of_byte |= {b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in of_byte)}
    ranks, ids = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}, []
    for piece in regex.findall(pattern, unicodedata.normalize("NFC", text)):
        parts = [of_byte[b] for b in piece.encode()]
        while len(parts) > 1:
            rank, at = min((ranks.get(pair, 10**9), n) for n, pair in enumerate(pairwise(parts)))
            if rank == 10**9:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [model["vocab"][part] for part in parts]
    return ids


def checkpoint(folder, **tokenizer):
    model = byte_pairs()
    first = len(model["vocab"])
    rows = first + len(ADDED) + 9  # more than there are tokens, as released
    ids = {"mask_token_id": first + 5, "eos_token_id": first, "pad_token_id": first}
    config = DREAM | {"vocab_size": rows, **ids}
    write(folder, config, qwen2_shapes(config))
    slow_files(folder, model, **tokenizer)
    return model, first


@pytest.mark.parametrize("named", ["DreamTokenizer", "Qwen2Tokenizer"])
def test_byte_pairs_in_slow_files_are_read_without_their_code(named, tmp_path):
    model, first = checkpoint(tmp_path / "hub", named=named)
    lm = runs.load(tmp_path / "hub")
    for text in TEXTS:
        assert lm.encode(text) == encoded(text, model), text
        assert lm.decode(lm.encode(text)) == text.replace("e\u0301", "é")
    assert [lm.tokenizer.token(token) for token in ADDED] == list(range(first, first + len(ADDED)))
    facts = lm.denoiser.facts
    assert (facts.mask_id, facts.eos_id, facts.pad_id) == (first + 5, first, first)
    assert (lm.tokenizer.mask_id, lm.tokenizer.eos_id) == (first + 5, first)
    assert "[MASK]" in lm.decode([*lm.encode("the "), first + 5])
    lm.save(tmp_path / "once")
    runs.load(tmp_path / "once").save(tmp_path / "twice")
    once, twice = ({one.name: one.read_bytes() for one in (tmp_path / n).iterdir()} for n in ("once", "twice"))
    assert once == twice
    assert runs.load(tmp_path / "twice").encode(TEXTS[1]) == encoded(TEXTS[1], model)
    assert not (tmp_path / "hub/ran").exists()


def test_added_tokens_have_the_ids_that_the_files_say(tmp_path):
    checkpoint(tmp_path, gap=2)
    with pytest.raises(ValueError, match=r"gives <\|endoftext\|> the id .*, and it would have"):
        runs.load(tmp_path)


@pytest.mark.parametrize(("file", "damage"), [("merges.txt", "a b c d\n"), ("vocab.json", "{"), ("vocab.json", None)])
def test_damaged_slow_files_are_refused(file, damage, tmp_path):
    checkpoint(tmp_path)
    if damage is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(damage)
    with pytest.raises(ValueError, match="tokenizer"):
        runs.load(tmp_path)


def test_slow_files_of_other_classes_are_left_to_transformers(tmp_path):
    model = byte_pairs()
    slow_files(tmp_path, model, named="GPT2Tokenizer")
    found = Tokenizer.load(tmp_path)
    assert found.encode("the sea") != []
    assert not (tmp_path / "ran").exists()


def test_a_token_that_grows_gaps(tmp_path):
    """DreamOn: its token is one of the tokenizer's, and elastic infilling takes it."""
    folder = write(tmp_path, DREAM, qwen2_shapes(DREAM))
    tokenizer_files(folder, specials={61: "<|expand|>"})
    lm = runs.load(folder)
    expand = lm.tokenizer.token("<|expand|>")
    assert expand == 61
    network = lm.denoiser.backbone
    with torch.no_grad():  # all tokens look alike, and the head says "grow" with probability a half
        network.model.embed_tokens.weight[:] = 1.0
        hidden = network(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1))[0, 0]
        network.lm_head.weight.zero_()
        network.lm_head.weight[expand] = 4 * hidden / hidden.square().sum()
    marks = Elastic(expand=expand, delete=(lm.denoiser.facts.eos_id,), budget=3)
    row = lm.infill("cd[MASK:2]ef", marks=marks, sampler="low_confidence", seed=3).rows[0]
    assert len(row) == 6 + 3
    assert row[:2] == lm.encode("cd")
    assert row[-2:] == lm.encode("ef")
    assert expand not in row
    assert M not in row
