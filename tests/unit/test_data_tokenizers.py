"""Exact round trips, text that spells a special is text, and agreement with transformers after saving."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from redraft.data import Tokenizer, build_tokenizer, parse_template, sources, toy
from redraft.data import tokenizers as module

TEXT = "The sea is calm. [MASK] [EOS] [MASK:3]\tTab\r\nCRLF  two blanks — ça 日本 👩‍🚀🙂 \x00 </s> [PAD]\n\n "
CORPUS = [TEXT, "The sea, the sea! " * 30, "the cat is on the mat and the sea is calm " * 30]
OWN = ["bytes", "chars", "bpe"]


@pytest.fixture(params=OWN)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return build_tokenizer(request.param, CORPUS, vocab=300)


def test_round_trip_is_exact_and_gives_clean_ids(tokenizer: Tokenizer):
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert all(0 <= i < tokenizer.K and i != tokenizer.eos_id for i in ids)
    assert tokenizer.encode_batch(CORPUS) == [tokenizer.encode(text) for text in CORPUS]
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_ids_stand_in_order(tokenizer: Tokenizer):
    assert tokenizer.mask_id == tokenizer.K
    assert tokenizer.eos_id == tokenizer.K - 1
    assert tokenizer.pad_id is None


def test_sizes():
    assert build_tokenizer("bytes").K == 257
    assert build_tokenizer("chars", ["abca"]).K == 4
    assert build_tokenizer("bpe", CORPUS, vocab=300).K == 300
    assert build_tokenizer("bpe", ["ab"], vocab=300).K == 258  # no second pair to merge
    assert build_tokenizer("toy").K == 13


def test_bytes_are_their_own_ids():
    assert build_tokenizer("bytes").encode("aé\n") == [97, 0xC3, 0xA9, 10]


@given(st.text())
def test_any_text_survives_bytes_and_bpe(text: str):
    for tokenizer in _any_text:
        assert tokenizer.decode(tokenizer.encode(text)) == text


_any_text = [build_tokenizer("bytes"), build_tokenizer("bpe", CORPUS, vocab=290)]


def test_training_is_deterministic(tmp_path: Path):
    for name in ("a", "b"):
        build_tokenizer("bpe", CORPUS, vocab=400).save(tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path / "new")
    again = Tokenizer.load(tmp_path / "new")
    for attribute in ("K", "mask_id", "eos_id", "pad_id", "kind"):
        assert getattr(again, attribute) == getattr(tokenizer, attribute)
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert again.decode(again.encode(TEXT)) == TEXT
    assert build_tokenizer(str(tmp_path / "new")).encode(TEXT) == tokenizer.encode(TEXT)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", [*OWN, "toy"])
def test_transformers_agrees(name: str, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    tokenizer = build_tokenizer(name, CORPUS, vocab=300)
    tokenizer.save(tmp_path)
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "our cat is your s" if name == "toy" else TEXT
    ids = tokenizer.encode(text, pad=False)
    assert hf(text)["input_ids"] == ids
    assert hf.decode(ids) == text
    assert (hf.mask_token_id, hf.eos_token_id, hf.pad_token_id) == (
        tokenizer.mask_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )
    assert len(hf) == tokenizer.K + 1


def test_masks_are_shown_and_ends_are_not(tokenizer: Tokenizer):
    a, sea = tokenizer.encode("a"), tokenizer.encode("sea")
    row = [*sea, tokenizer.mask_id, *a, tokenizer.eos_id]
    assert tokenizer.decode(i for i in row if i is not None) == "sea[MASK]a"


def test_tokens_are_readable():
    bytes_ = build_tokenizer("bytes")
    assert bytes_.tokens([97, 32, 10, 0xE2, 256, 257]) == ["a", " ", "\n", "<0xE2>", "[EOS]", "[MASK]"]
    assert bytes_.tokens([999]) == ["<999>"]
    assert build_tokenizer("toy").tokens([0, 12, 13]) == ["we", "[PAD]", "[MASK]"]
    bpe = build_tokenizer("bpe", ["the cat " * 50], vocab=270)
    assert "".join(bpe.tokens(bpe.encode("the cat the cat"))) == "the cat the cat"


def test_chars_refuse_a_strange_character_by_name():
    tokenizer = build_tokenizer("chars", ["abc"])
    with pytest.raises(ValueError, match=r"'é' is not in the alphabet.*'bytes' or 'bpe'"):
        tokenizer.encode("abéc")


def test_toy():
    tokenizer = build_tokenizer("toy")
    assert (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id) == (13, None, 12)
    assert [tuple(row) for row in tokenizer.encode_batch([toy.text(row) for row in toy.sentences()])] == list(
        toy.sentences()
    )
    assert tokenizer.decode([0, 13, 6, 11, 12, 12]) == "we [MASK] cat s"
    assert tokenizer.decode([0, 12, 6, 11, 12, 12]) == "we [PAD] cat s"
    assert tokenizer.encode("we [PAD]", pad=False) == [0, 12]
    with pytest.raises(ValueError, match="'frend'; did you mean 'friend'"):
        tokenizer.encode("our frend is your s")
    with pytest.raises(ValueError, match=r"unit of the toy language '\[MASK\]'"):
        tokenizer.encode("we [MASK]")
    with pytest.raises(ValueError, match="7 units"):
        tokenizer.encode("our cat s are your dog s")
    assert tokenizer.encode_template("our [MASK:2] your s") == [3, None, None, 4, 11, 12]


def test_building_refuses():
    with pytest.raises(ValueError, match=r"vocab 257 is too small.*at least 258"):
        build_tokenizer("bpe", CORPUS, vocab=257)
    for name in ("bpe", "chars"):
        with pytest.raises(ValueError, match="no text"):
            build_tokenizer(name)
    with pytest.raises(ValueError, match="unknown tokenizer 'byte'; did you mean 'bytes'"):
        build_tokenizer("byte")


def test_unreachable_hugging_face_name_is_one_line(monkeypatch: pytest.MonkeyPatch):
    transformers = pytest.importorskip("transformers")

    def fail(name: str, **_: object):
        raise OSError("We couldn't connect\nto the Hub")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ValueError, match=r"cannot load the tokenizer 'some/thing' \(We couldn't connect\)"):
        build_tokenizer("some/thing")


def test_loading_refuses_damage(tmp_path: Path):
    build_tokenizer("bytes").save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json: damaged"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"redraft": {"kind": "byts"}}')
    with pytest.raises(ValueError, match="did you mean 'bytes'"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match="damaged"):
        Tokenizer.load(tmp_path)


def _hugging_face_folder(folder: Path, vocab: list[str], **specials: str) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocab)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", **specials}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_hugging_face_with_a_mask_of_its_own(tmp_path: Path):
    pytest.importorskip("transformers")
    vocab = ["[UNK]", "<m>", "[SEP]", "sea", "calm"]
    _hugging_face_folder(tmp_path, vocab, mask_token="<m>", sep_token="[SEP]", pad_token="[UNK]")
    tokenizer = build_tokenizer(str(tmp_path))
    assert (tokenizer.K, tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id) == (5, 1, 2, 0)
    assert tokenizer.decode([3, 1, 4, 2]) == "sea [MASK] calm"
    assert tokenizer.tokens([3, 1, 2]) == ["sea", "[MASK]", "[EOS]"]


def test_hugging_face_without_a_mask_gets_one(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    _hugging_face_folder(tmp_path / "a", ["[UNK]", "sea", "</s>"], eos_token="</s>")
    tokenizer = build_tokenizer(str(tmp_path / "a"))
    assert (tokenizer.K, tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id) == (3, 3, 2, None)
    tokenizer.save(tmp_path / "b")
    again = Tokenizer.load(tmp_path / "b")
    assert (again.K, again.mask_id, again.eos_id) == (3, 3, 2)
    assert again.encode("sea [MASK]") == tokenizer.encode("sea [MASK]") == [1, 0]
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    assert hf.mask_token_id == 3
    assert hf("sea [MASK]")["input_ids"] == [1, 0]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("The [MASK:3] of France is [MASK].", ["The ", 3, " of France is ", 1, "."]),
        ("[MASK]", [1]),
        ("[MASK][MASK:2]x", [1, 2, "x"]),
        (r"a \[MASK] b [MASK]", ["a [MASK] b ", 1]),
        (r"\[MASK:0] [MASK:100000]", ["[MASK:0] ", 100_000]),
        (r"a\\[MASK]", ["a\\", 1]),
        (r"C:\dir [mask] [MASKS] [MASK", None),
        ("[MASK:0]", None),
        ("[MASK:100001]", None),
        ("[MASK:" + "9" * 5000 + "]", None),
        ("[MASK:-1]", None),
        ("[MASK:three]", None),
        ("a [MASK:2-6] b[MASK:3-3]", ["a ", range(2, 7), " b", 3]),
        (r"\[MASK:2-6] [MASK]", ["[MASK:2-6] ", 1]),
        ("[MASK:6-2]", None),
        ("[MASK:0-2]", None),
        ("[MASK:2-]", None),
        ("[MASK:-2]", None),
        ("[MASK:1-2-3]", None),
        ("[MASK:1-100001]", None),
        ("[MASK:]", None),
        ("[MASK:²]", None),
        (r"\[MASK]", None),
        ("", None),
    ],
)
def test_templates(text: str, parts: list[str | int | range] | None):
    if parts is None:
        with pytest.raises(ValueError, match=r"no span: write|no \[MASK\] in the template") as caught:
            parse_template(text)
        assert len(str(caught.value)) < 250
    else:
        assert parse_template(text) == parts


def test_encode_template():
    tokenizer = build_tokenizer("bytes")
    assert tokenizer.encode_template(r"a[MASK:2]\[MASK]") == [97, None, None, *b"[MASK]"]


def test_encode_templates_of_unknown_lengths():
    tokenizer = build_tokenizer("bytes")
    rows = tokenizer.encode_templates("a[MASK:1-2]b[MASK]c[MASK:2-3]")
    assert list(rows) == [(1, 2), (1, 3), (2, 2), (2, 3)]
    assert rows[2, 3] == [97, None, None, 98, None, 99, None, None, None]
    assert tokenizer.encode_templates("a[MASK:2]") == {(): [97, None, None]}
    assert len(tokenizer.encode_templates("[MASK:1-64]")) == 64
    with pytest.raises(ValueError, match=r"65 combinations of lengths in '\[MASK:1-65\]'.*to 64 at most"):
        tokenizer.encode_templates("[MASK:1-65]")
    with pytest.raises(ValueError, match="2 lengths are possible of"):
        tokenizer.encode_template("[MASK:1-2]")
    assert build_tokenizer("toy").encode_templates("our [MASK:1-2] s")[(1,)] == [3, None, 11, 12, 12, 12]


def test_a_token_by_its_text():
    bytes_, bpe = build_tokenizer("bytes"), build_tokenizer("bpe", ["the cat " * 50], vocab=270)
    assert [bytes_.token(one) for one in ("a", "[EOS]", "[MASK]")] == [97, 256, 257]
    assert bpe.tokens([bpe.token(" cat")]) == [" cat"]
    assert build_tokenizer("toy").token("dog") == build_tokenizer("toy").encode("dog", pad=False)[0]
    with pytest.raises(ValueError, match=r"'ab' is 2 tokens, \['a', 'b'\]"):
        bytes_.token("ab")
    with pytest.raises(ValueError, match="'' is 0 tokens"):
        bytes_.token("")


def test_passages_of_a_text():
    bytes_, toy_ = build_tokenizer("bytes"), build_tokenizer("toy")
    assert bytes_.encode_passages("aéb", [(1, 2)]) == ([97, 0xC3, 0xA9, 98], [False, True, True, False])
    assert bytes_.encode_passages("abcd", [(2, 4), (0, 1)])[1] == [True, False, True, True]
    ids, inside = toy_.encode_passages("our dog is", [(3, 7)])
    assert (ids, inside) == (toy_.encode("our dog is"), [False, True, False, False, False, False])
    bpe = build_tokenizer("bpe", ["the cat sat " * 50], vocab=270)
    text = "the cat sat"
    ids, inside = bpe.encode_passages(text, [(3, 7)])
    assert ids == bpe.encode(text)
    assert bpe.decode([i for i, one in zip(ids, inside, strict=True) if one]) == " cat"
    apart, inside = bpe.encode_passages(text, [(4, 6)])  # inside a token
    assert apart != ids
    assert bpe.decode(apart) == text
    assert bpe.decode([i for i, one in zip(apart, inside, strict=True) if one]) == "ca"
    for spans in ([(4, 4)], [(-1, 3)], [(0, 12)], [(5, 3)], []):
        with pytest.raises(ValueError, match="of a text of 11 characters: pass 0 <= start < stop"):
            bpe.encode_passages(text, spans)
    with pytest.raises(ValueError, match="passages overlap"):
        bpe.encode_passages(text, [(0, 4), (3, 6)])


@given(st.text(min_size=1), st.data())
def test_a_passage_has_its_letters_and_no_others(text: str, data: st.DataObject):
    start = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(start + 1, len(text)))
    for tokenizer in _any_text:
        ids, inside = tokenizer.encode_passages(text, [(start, stop)])
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([i for i, one in zip(ids, inside, strict=True) if one]) == text[start:stop]


def test_what_spells_a_mask_of_hugging_face_is_text(tmp_path: Path):
    pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer(models.BPE(vocab={**module.BYTE_OF, "<m>": 256}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "<m>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = build_tokenizer(str(tmp_path))
    text = "a <m> [MASK] b"
    ids = tokenizer.encode(text)
    assert tokenizer.mask_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([97, 256, 98]) == "a[MASK]b"
    assert tokenizer.encode_template(r"<m>\[MASK][MASK:2]") == [*b"<m>[MASK]", None, None]
    assert tokenizer.encode_passages(text, [(2, 5)])[1] == [2 <= i < 5 for i in range(len(text))]
    assert tokenizer.token("<m>") == tokenizer.mask_id


def test_the_sample_for_bpe_is_bounded_and_spread():
    texts = ["".join(chr(97 + (i + j) % 26) for j in range(1000)) for i in range(100)]
    assert list(sources.spread(texts, 100_000)) == texts
    sample = list(sources.spread(texts, 10_000, piece=100))
    assert 5_000 <= sum(map(len, sample)) <= 10_100
    assert len(set(sample)) > 10
    assert sample == list(sources.spread(texts, 10_000, piece=100))
