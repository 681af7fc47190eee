"""Units and protocol of a likelihood, what may be compared with what, and the command that does."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
from typer.testing import CliRunner

import redraft as rd
from redraft import processes
from redraft.cli import app
from redraft.data import Tokenizer, build_tokenizer, load_text, pack
from redraft.data.provenance import of_tokenizer
from redraft.evaluation import compare, likelihood
from redraft.evaluation.protocol import protocol
from redraft.lm import LM
from redraft.models import Transformer, TransformerConfig
from redraft.processes import Facts

TEXT = "größer als vier; " * 6


class Uneven:
    """A causal denoiser that likes token i the better the larger i is; ``power`` says how much."""

    facts = Facts(attention="causal")

    def __init__(self, size, power=1.0):
        self.logp = (power * torch.arange(1, size + 1, dtype=torch.float64).log()).log_softmax(0)

    def __call__(self, z, t, cond=None):
        return self.logp.expand(*z.shape, -1)


def rows(tmp_path, name="bytes", length=16, text=TEXT, **options):
    (tmp_path / "x.txt").write_text(text, "utf-8")
    tokenizer = build_tokenizer(name, [text], 300)
    return load_text(tmp_path / "x.txt", tokenizer, length, **options), tokenizer


def measured(tmp_path, power=1.0, name="bytes", rows_only=None, **options):
    packed, tokenizer = rows(tmp_path, name, **options)
    return likelihood(Uneven(tokenizer.K, power), processes.masked(tokenizer.K), packed, rows=rows_only)


def test_units_are_of_one_total(tmp_path):
    """nats / ln 2 over UTF-8 bytes, and over characters: of text that is not ASCII they differ."""
    found = measured(tmp_path)
    nats = sum(found.row_nats)
    assert len(TEXT.encode()) > len(TEXT)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / len(TEXT.encode()), rel=1e-12)
    assert found.bits_per_char == pytest.approx(nats / math.log(2) / len(TEXT), rel=1e-12)
    assert found.nats_per_token == pytest.approx(nats / sum(found.row_tokens), rel=1e-12)
    share = found.bits_per_byte_error / found.bits_per_byte
    assert share == pytest.approx(found.nats_per_token_error / found.nats_per_token, rel=1e-12)
    assert found.per_token_of.startswith("bytes (K=")
    assert "row_nats" not in found.to_dict()
    assert {**found.to_dict(), "row_nats": found.row_nats, "row_tokens": found.row_tokens} == found.to_record()


def test_a_protocol_says_what_was_measured(tmp_path):
    packed, tokenizer = rows(tmp_path, stride=8)
    told = protocol(packed, shifted=False)
    assert told["tokenizer"] == {"kind": "bytes", "K": tokenizer.K, "sha256": told["tokenizer"]["sha256"]}
    assert (told["text"]["characters"], told["text"]["bytes"]) == (len(TEXT), len(TEXT.encode()))
    assert (told["context"], told["stride"], told["documents"]) == (16, 8, "packed")
    assert (told["bos"], told["eos"], told["first_tokens"]) == ("none", "after each document", "scored")
    assert protocol(packed, shifted=True)["first_tokens"] == "left out"
    json.dumps(told)


def test_fingerprints_are_of_vocabulary_and_text(tmp_path):
    def told(name, text, **options):
        return protocol(rows(tmp_path, name, text=text, **options)[0], False)

    base = told("chars", TEXT)
    assert told("chars", TEXT) == base
    other = told("chars", TEXT.replace("vier", "reiv"))  # the same letters in another order
    assert other["tokenizer"] == base["tokenizer"]
    assert other["text"]["sha256"] != base["text"]["sha256"]
    assert told("chars", TEXT + "!")["tokenizer"]["sha256"] != base["tokenizer"]["sha256"]
    assert told("chars", TEXT, isolate_documents=True)["documents"] == "isolated"


def test_tokenizers_of_one_vocabulary_and_other_merges_are_told_apart():
    vocabulary = {token: i for i, token in enumerate(["a", "b", "c", "ab", "bc", "abc", "[EOS]", "[MASK]"])}

    def told(*merges):
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, list(merges)))
        return of_tokenizer(Tokenizer(backend, "bpe"))["sha256"]

    left, right = (("a", "b"), ("ab", "c")), (("b", "c"), ("a", "bc"))
    assert told(*left) == told(*left)
    assert told(*left) != told(*right)


def test_rows_packed_by_hand_go_by_their_ids():
    one, other = pack([[1, 2, 3, 4]], 2, None), pack([[1, 2, 4, 3]], 2, None)
    assert protocol(one, False)["tokenizer"] is None
    assert protocol(one, False) == protocol(replace(one), False)
    assert protocol(one, False)["text"] != protocol(other, False)["text"]
    padded = replace(one, valid=one.ids > 1)
    assert protocol(padded, False)["text"] != protocol(one, False)["text"]
    elsewhere = replace(one, ids=np.asfortranarray(one.ids.astype(">i8")))
    assert protocol(elsewhere, False) == protocol(one, False)
    apart = [replace(one, segments=np.array(parts, np.int32)) for parts in ([[0, 1], [0, 0]], [[0, 0], [0, 1]])]
    assert protocol(apart[0], False)["text"] != protocol(apart[1], False)["text"]


def test_the_same_rows_are_compared_row_by_row(tmp_path):
    """The interval is that of the rows' own differences, in the unit asked for; of other rows that of both."""
    one, other = measured(tmp_path), measured(tmp_path, power=0.5)
    gap = torch.tensor(one.row_nats) - torch.tensor(other.row_nats)
    found = compare(one, other)
    assert found.paired
    assert found.difference == pytest.approx(one.nats_per_token - other.nats_per_token, rel=1e-12)
    assert found.difference == pytest.approx(gap.sum().item() / one.tokens, rel=1e-5)
    assert found.error < 0.9 * math.hypot(one.nats_per_token_error, other.nats_per_token_error)
    assert compare(other, one).difference == -found.difference
    in_bits = compare(one, other, "bits_per_byte")
    per_nat = one.bits_per_byte / one.nats_per_token
    assert in_bits.error == pytest.approx(found.error * per_nat, rel=1e-9)
    fewer = measured(tmp_path, power=0.5, rows_only=3)
    apart = compare(one, fewer)
    assert not apart.paired
    assert apart.error == pytest.approx(math.hypot(one.nats_per_token_error, fewer.nats_per_token_error), rel=1e-12)
    assert compare(one, one).error == 0


def test_records_are_compared_as_likelihoods_are(tmp_path):
    one, other = measured(tmp_path), measured(tmp_path, power=0.5)
    as_files = [json.loads(json.dumps(side.to_record())) for side in (one, other)]
    assert compare(*as_files) == compare(one, other)
    assert not compare(one.to_dict(), other).paired


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"length": 8}, ("context: 16 against 8", "stride: 16 against 8")),
        ({"stride": 4}, ("stride: 16 against 4",)),
        ({"text": TEXT + "x"}, ("text: {'sha256'",)),
        ({"name": "chars"}, ("tokenizer: {'kind': 'bytes'", "compare bits_per_byte")),
        ({"isolate_documents": True}, ("documents: 'packed' against 'isolated'",)),
    ],
)
def test_another_protocol_is_refused_unless_forced(options, fields, tmp_path):
    one, other = measured(tmp_path), measured(tmp_path, **options)
    with pytest.raises(ValueError, match="different protocol") as refused:
        compare(one, other)
    assert all(field in str(refused.value) for field in (*fields, "force"))
    found = compare(one, other, force=True)
    assert not found.paired
    assert found.forced == tuple(field.partition(":")[0] for field in fields if ": " in field)


def test_tokenizers_may_differ_in_units_of_text(tmp_path):
    one, other = measured(tmp_path), measured(tmp_path, name="chars")
    found = compare(one, other, "bits_per_byte")
    assert found.difference == pytest.approx(one.bits_per_byte - other.bits_per_byte)
    assert (found.paired, found.forced) == (False, ())
    per_row = 16 * len(TEXT.encode()) / other.tokens
    assert f"{per_row:.4g} of the second" in found.note
    with pytest.raises(ValueError, match="context: 16 against 8"):
        compare(one, measured(tmp_path, name="chars", length=8), "bits_per_char")


def test_notes_say_what_is_slack(tmp_path):
    exact = measured(tmp_path)
    bound = replace(exact, is_bound=True)
    assert compare(exact, exact).note == ""
    assert "the first is a bound and the second is exact" in compare(bound, exact).note
    assert "the second is a bound" in compare(exact, bound).note
    assert "not known" in compare(bound, bound).note
    assert "different estimators (other;" in compare(replace(bound, estimator="other"), bound).note
    assert "different laws" in compare(replace(exact, estimator="enumeration"), exact).note


def test_what_is_no_measurement_is_refused(tmp_path):
    one = measured(tmp_path)
    with pytest.raises(ValueError, match="unknown unit 'bits_per_bite'; did you mean 'bits_per_byte'"):
        compare(one, one, "bits_per_bite")
    for side in ({}, {"nats_per_token": 1.0, "estimator": "x"}, {**one.to_dict(), "protocol": None}):
        with pytest.raises(ValueError, match="the second is no record of a likelihood"):
            compare(one, side)
    with pytest.raises(ValueError, match="first has nats_per_token='1'"):
        compare({**one.to_dict(), "nats_per_token": "1"}, one)
    with pytest.raises(ValueError, match=r"second has bits_per_byte=None.*compare nats_per_token"):
        compare(one, replace(one, bits_per_byte=None), "bits_per_byte")
    strange = {**one.to_record(), "row_nats": ["x"] * len(one.row_nats)}
    assert not compare(one, strange).paired
    assert not compare(one, {**one.to_record(), "row_nats": [math.nan] * len(one.row_nats)}).paired


# --------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = build_tokenizer("bytes")
    torch.manual_seed(0)
    process = processes.masked(tokenizer.K)
    made = Transformer(TransformerConfig(process.to_dict(), depth=1))
    for weight in made.parameters():  # one that reads what it is shown
        torch.nn.init.normal_(weight, std=0.2)
    folder = tmp_path_factory.mktemp("model")
    LM(made, tokenizer, {"context": 6}).save(folder / "model")
    (folder / "x.txt").write_text("one and two and three", "utf-8")
    return folder


def evaluate(model, *options):
    done = CliRunner().invoke(
        app, ["evaluate", str(model / "model"), "--data", str(model / "x.txt"), *map(str, options)]
    )
    return done


def test_options_of_the_command_are_those_of_evaluate(model):
    lm = rd.load(model / "model")
    asked = [
        ({"estimator": "any_order"}, ["--estimator", "any_order"]),
        ({"estimator": "exact_elbo"}, ["--estimator", "exact_elbo"]),
        (
            {"estimator": "importance", "particles": 2, "chain_steps": 3},
            ["--estimator", "importance", "--particles", 2, "--chain-steps", 3],
        ),
        ({"estimator": "importance", "particles": 3}, ["--estimator", "importance", "--particles", 3]),
        ({"estimator": "enumeration"}, ["--estimator", "enumeration"]),
        ({"stride": 4}, ["--stride", 4]),
    ]
    values = set()
    for options, flags in asked:
        found = json.loads(evaluate(model, *flags, "--draws", 1, "--json").stdout)
        expected = lm.evaluate(model / "x.txt", draws=1, **options)
        assert found["nats_per_token"] == pytest.approx(expected.nats_per_token, rel=1e-6)
        assert found["estimator"] == expected.estimator
        assert found["protocol"] == expected.protocol
        values.add(round(found["nats_per_token"], 9))
    assert len(values) == len(asked)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--estimator", "any_oder"], "did you mean 'any_order'"),
        (["--particles", "2"], "particles=2"),
        (["--chain-steps", "2"], "chain_steps=2"),
        (["--stride", "9"], "stride=9 with rows of 6"),
        (["--stride", "0"], "stride=0"),
        (["--force"], "--against"),
        (["--unit", "bits_per_byte"], "--against"),
    ],
)
def test_options_that_do_not_fit_are_refused(model, options, said):
    done = evaluate(model, *options)
    assert done.exit_code == 2 or isinstance(done.exception, ValueError)
    assert said in done.output + str(done.exception)


def test_a_record_is_measured_against(model, tmp_path):
    stored = tmp_path / "first.json"
    assert evaluate(model, "--out", stored, "--seed", 1).exit_code == 0
    told = json.loads(stored.read_text())
    assert len(told["row_nats"]) == told["rows"]
    found = json.loads(evaluate(model, "--against", stored, "--json").stdout)
    assert found["against"]["paired"] is True
    assert found["against"]["difference"] == pytest.approx(found["nats_per_token"] - told["nats_per_token"])
    shown = evaluate(model, "--against", stored).stdout
    assert "row by row" in shown
    assert "per token of bytes (K=" in shown
    assert "bits per byte" in shown
    in_bits = json.loads(evaluate(model, "--against", stored, "--unit", "bits_per_byte", "--json").stdout)
    assert in_bits["against"]["unit"] == "bits_per_byte"
    other = evaluate(model, "--against", stored, "--stride", 4)
    assert "stride: 4 against 6" in other.output + str(other.exception)
    assert "forced, though stride differ" in evaluate(model, "--against", stored, "--stride", 4, "--force").stdout
    (tmp_path / "no.json").write_text("{}")
    none = evaluate(model, "--against", tmp_path / "no.json")
    assert "no record of a likelihood" in none.output + str(none.exception)
