"""Judges: the same number alone and among others, long texts in windows, and what is refused as a judge."""

import itertools
import json
import math

import pytest
import torch
from parity.bases import base
from parity.borrowed import BERT, bert_shapes
from parity.checkpoints import write

import redraft as rd
from redraft.data import Tokenizer
from redraft.data.tokenizers import build_tokenizer
from redraft.evaluation import judges
from redraft.evaluation.ngram import Judged, NGram
from redraft.models import Transformer, TransformerConfig, folder

TEXTS = ["cde", "", "a", "fghijkl" * 3, "d" * 40, "edca", "kj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}

    def get(style="llama"):
        if style not in made:
            made[style] = tmp_path_factory.mktemp(style)
            base(made[style], style, **{"n_positions" if style == "gpt2" else "max_position_embeddings": 16})
        return made[style]

    return get


def by_hand(network, ids, start):
    """-log p(x_i | x_<i) of a short text, one forward, in float64."""
    with torch.no_grad():
        logp = network.double()(torch.tensor([[start, *ids]])).logits[0].log_softmax(-1)
    return -sum(float(logp[place, token]) for place, token in enumerate(ids))


# ------------------------------------------------------------------------------------------------------ transformers


@pytest.mark.parametrize(("style", "within"), [("llama", 1e-9), ("gpt2", 1e-9), ("gemma2", 1e-5)])
def test_a_text_has_one_number_alone_and_among_others(style, within, bases):
    """Padding, order and neighbours change nothing; 1e-9 nats in float64, which Gemma's attention does not keep to."""
    judge = judges.get(str(bases(style)), dtype="float64")
    together, backwards = judge.nats(TEXTS), judge.nats(TEXTS[::-1])[::-1]
    for text, one, other in zip(TEXTS, together, backwards, strict=True):
        (alone,) = judge.nats([text])
        assert one.nats == pytest.approx(alone.nats, abs=within)
        assert other.nats == pytest.approx(alone.nats, abs=within)
        assert one[1:] == alone[1:] == (len(text), len(text))
    assert together[1] == Judged(0.0, 0, 0)


def test_the_number_is_the_chain_rule_after_the_first_token(bases):
    judge = judges.get(str(bases()), dtype="float64")
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(bases(), dtype=torch.float64)
    assert judge.start == 0
    (found,) = judge.nats(["cdefg"])
    assert found.nats == pytest.approx(by_hand(network, judge.words.encode("cdefg"), 0), abs=1e-9)


def test_long_texts_are_read_in_windows(bases):
    """Of a context of 16, windows by 8: tokens from the 16th on are judged with at least 8 before them, each once."""
    judge = judges.get(str(bases()), dtype="float64")
    ids = [2 + (7 * i) % 11 for i in range(37)]
    seen = [judge.words.decode(ids)]
    assert judge.words.encode(seen[0]) == ids
    total, row = 0.0, [0, *ids]
    for begin, first in ((0, 1), (8, 8), (16, 8), (24, 8)):
        part = row[begin : begin + 16]
        values = judge.score(torch.tensor([part])).detach()[0]
        total += float(values[first:].sum())
    assert judge.nats(seen)[0].nats == pytest.approx(total, abs=1e-9)
    assert judge.nats(seen)[0].tokens == 37


@pytest.mark.parametrize("context", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("start", [None, 0])
def test_windows_judge_every_token_once(context, start):
    if context == 1 and start is not None:
        return
    words = build_tokenizer("bytes")
    judge = judges.CausalJudge("j", "t", words, lambda ids: ids.double(), words.K, context, start)
    for length in range(40):
        ids = list(range(1, length + 1))
        read = [token for row, first in judge._windows(ids) for token in row[first:]]
        assert read == ids
        assert all(len(row) <= context for row, _ in judge._windows(ids))


def test_room_is_bounded_and_changes_nothing(bases, monkeypatch):
    judge = judges.get(str(bases()), dtype="float64")
    whole, shapes = judge.nats(TEXTS), []
    score = judge.score
    object.__setattr__(judge, "score", lambda ids: (shapes.append(ids.shape), score(ids))[1])
    monkeypatch.setattr(judges, "LOGITS", 20 * judge.K)
    for one, other in zip(judge.nats(TEXTS), whole, strict=True):
        assert one.nats == pytest.approx(other.nats, abs=1e-9)
    assert all(rows * width <= 20 or rows == 1 for rows, width in shapes)


def test_the_name_says_what_it_is(bases):
    judge = judges.get(str(bases()), dtype="bfloat16")
    assert judge.name == f"{bases().name}, bfloat16"
    for word in ("its own tokens", "after", "end not judged", "windows of 16 tokens by 8"):
        assert word in judge.tokenisation


def test_an_encoder_is_no_judge(tmp_path):
    """BERT has a class for causal models, and reads ahead unless told not to."""
    write(tmp_path, BERT, bert_shapes(BERT))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"is_decoder": False, "bos_token_id": 0}))
    with pytest.raises(ValueError, match="depends on those behind it"):
        judges.get(str(tmp_path))


def test_what_reads_ahead_is_refused(tmp_path):
    with pytest.raises(ValueError, match="depends on those behind it"):
        judges._refuse_reading_ahead(tmp_path, lambda ids: ids.double() + ids[:, -1:], 50, 8, None)
    judges._refuse_reading_ahead(tmp_path, lambda ids: ids.double().cumsum(1), 50, 8, None)


def test_what_cannot_be_a_judge(tmp_path, bases):
    with pytest.raises(ValueError, match="no such folder"):
        judges.get("nowhere")
    with pytest.raises(ValueError, match="ngram:FILE"):
        judges.get("ngram")
    with pytest.raises(ValueError, match="unknown kind of judge 'ngarm'"):
        judges.get("ngarm:x.txt")
    with pytest.raises(ValueError, match=r"missing\.txt"):
        judges.get(f"ngram:{tmp_path / 'missing.txt'}")
    base(tmp_path / "wide", "llama", tokens=60, rows=40)
    with pytest.raises(ValueError, match="not a pair"):
        judges.get(str(tmp_path / "wide"))


def test_weights_that_are_a_pickle_are_refused(tmp_path):
    base(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle"):
        judges.get(str(tmp_path))


def test_remote_code_is_not_run(tmp_path):
    base(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "run.py").write_text("raise SystemExit('it was run')")
    config |= {"model_type": "its_own", "auto_map": {"AutoConfig": "run.C", "AutoModelForCausalLM": "run.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot load the causal model"):
        judges.get(str(tmp_path))


def test_a_model_without_a_first_token_is_refused(tmp_path):
    base(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"bos_token_id": None, "eos_token_id": None}))
    words = json.loads((tmp_path / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in words.items() if name not in ("bos_token", "eos_token")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="no token to begin"):
        judges.get(str(tmp_path))


# ------------------------------------------------------------------------------------------------------------- ours


def own(path, attention="causal"):
    words = build_tokenizer("bytes")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        process = rd.masked(words.K, mask_id=words.mask_id)
        model = Transformer(TransformerConfig(process.to_dict(), depth=1, attention=attention))
        for tensor in model.parameters():
            torch.nn.init.normal_(tensor, std=0.1)
    folder.save(path, model.config, model.state_dict(), words, {"context": 8})
    return path


def test_a_causal_model_of_ours_is_exact(tmp_path):
    """p of all texts of up to two bytes adds up: over first bytes to 1, with [EOS] among them."""
    judge = judges.get(str(own(tmp_path / "ar")), dtype="float64")
    everything = torch.arange(judge.K)[:, None]
    with torch.no_grad():
        assert float((-judge.score(everything)).exp().sum()) == pytest.approx(1, abs=1e-6)
    texts = ["abc", "x" * 30, "é"]
    for text, one in zip(texts, judge.nats(texts), strict=True):
        (alone,) = judge.nats([text])
        assert one.nats == pytest.approx(alone.nats, abs=1e-9)
        assert one[1:] == (len(text.encode()), len(text))
    assert "each text from nothing" in judge.tokenisation


def test_a_bound_is_no_judge(tmp_path):
    with pytest.raises(ValueError, match="is a bound"):
        judges.get(str(own(tmp_path / "masked", attention="full")))


# ------------------------------------------------------------------------------------------------------------ n-gram


def test_the_ngram_says_what_it_was_fitted_on(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("the cat sat on the mat")
    judge = judges.get(f"ngram:{file}")
    assert judge.name.startswith("character 5-gram of words.txt (SHA-256 ")
    file.write_text("the cat sat on the hat")
    assert judges.get(f"ngram:{file}").name != judge.name
    assert str(tmp_path) not in judge.name
    assert judge.tokenisation == "characters, each text from nothing"


def test_the_ngrams_nats_are_its_bits():
    judge = NGram(["abracadabra", "barbara"], order=3)
    for text, found in zip(["abra", "z"], judge.nats(["abra", "z"]), strict=True):
        assert found == Judged(pytest.approx(judge.bits_per_char(text) * len(text) * math.log(2)), len(text), len(text))
    texts = ["".join(one) for one in itertools.product("abrcdz", repeat=2)]
    assert sum(math.exp(-one.nats) for one in judge.nats(texts)) == pytest.approx(1)
    assert judge.nats([""]) == [(0, 0, 0)]


def test_a_tokenizer_that_loses_letters_gives_no_characters(monkeypatch, bases):
    judge = judges.get(str(bases()))
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: "c")
    assert [one.characters for one in judge.nats(["c", "cd"])] == [1, 0]


def test_a_judge_stays_one():
    judge = NGram(["ab"])
    assert judges.get(judge) is judge
