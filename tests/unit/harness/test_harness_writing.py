"""What tasks that generate get written, where it is cut, and how their settings are set."""

import json

import pytest
import torch
from letters import REMARKS, network, request

from redraft import LM

pytestmark = REMARKS


@pytest.mark.parametrize("block", [None, 2, 4])
def test_until_cuts_the_text_and_ends_the_row(block, words, backend):
    """The text is that of the whole canvas, cut; no forward follows the step in which it stands complete."""
    lm = network(words)
    own = {"block": block} if block else {}
    whole = backend.Harness(lm, **own)
    (text,) = whole.generate_until([request(backend, "ab", {"until": [], "max_gen_toks": 16}, task="write")])
    assert len(text) == 16
    until = text[4:6]
    cut = backend.Harness(lm, **own)
    (short,) = cut.generate_until([request(backend, "ab", {"until": ["zz", until], "max_gen_toks": 16}, task="write")])
    assert short == text[: text.index(until)]
    assert whole.spent["written"].forwards == 16
    if block:
        ends = text.index(until) + 2
        assert cut.spent["written"].forwards <= -(-ends // block) * block
    else:
        assert cut.spent["written"].forwards <= 16
    several = backend.Harness(lm, **own)
    asked = [
        request(backend, q, {"until": [until], "max_gen_toks": 16}, task="write") for q in ("ab", "ba", "ab", "cd")
    ]
    texts = several.generate_until(asked)
    assert texts[0] == texts[2] == short
    assert several.counts == {"requests": 4, "distinct": 3, "kept": 0}


def test_a_row_that_is_complete_costs_nothing_more(exact, backend):
    """Blocks of one: an until string that ends with the second token takes two forwards, not twelve."""
    lm = LM(exact.denoiser, exact.tokenizer, {"context": 14})
    (text,) = backend.Harness(lm, block=1).generate_until([request(backend, "ab", {"max_gen_toks": 12}, task="write")])
    own = backend.Harness(lm, block=1)
    (short,) = own.generate_until([request(backend, "ab", {"until": text[1], "max_gen_toks": 12}, task="write")])
    assert (short, own.spent["written"].forwards) == (text[: text.index(text[1])], 1 + text.index(text[1]))


def test_a_row_ends_only_where_no_other_string_could_begin_before(exact, backend):
    """Of two strings the one that begins first cuts, though the other stands complete before it."""
    from redraft.harness.writing import Reader, way

    reader = Reader(exact, way(exact, {"until": ["bcd", "c"]}, None), [0], None)
    assert [reader.ends(text) for text in ("a", "ab", "abc", "abcd", "abce", "cb")] == [False] * 3 + [True] * 3
    assert [reader.cut(text) for text in ("abcd", "abce", "cb")] == ["a", "ab", ""]


def test_a_token_may_be_set_that_ends_a_text(exact, backend):
    asked = [request(backend, "ab", {"max_gen_toks": 5}, task="write")]
    (whole,) = backend.Harness(exact).generate_until(asked)
    (ended,) = backend.Harness(exact, stop=exact.encode(whole[2])[0]).generate_until(asked)
    assert ended == whole[: whole.index(whole[2])]


def test_settings_of_a_task_go_before_its_own_and_those_before_the_models(exact, backend, tmp_path):
    asked = [request(backend, "ab", {"until": ["zz"], "max_gen_toks": 5, "do_sample": False}, task="write")]
    bare = [request(backend, "ab", {"until": ["zz"]}, task="write")]
    assert len(backend.Harness(exact, length=3).generate_until(bare)[0]) == 3
    assert len(backend.Harness(exact, length=3).generate_until(asked)[0]) == 5
    (tmp_path / "s.yaml").write_text("write: {length: 4, block: 2, steps: 1}\n'w*': {length: 1}\n")
    own = backend.Harness(exact, length=3, settings=tmp_path / "s.yaml")
    assert len(own.generate_until(asked)[0]) == 4
    assert own.spent["written"].forwards == 2
    assert own.record()["settings"]["write"]["block"] == 2
    (tmp_path / "s.json").write_text(json.dumps({"wr*": {"max_new_tokens": 2, "temperature": 1.0}}))
    drawn = backend.Harness(exact, settings=tmp_path / "s.json")
    texts = drawn.generate_until(asked * 12)
    assert {len(text) for text in texts} == {2}
    assert len(set(texts)) > 1, "the same request again is another draw"
    assert texts == backend.Harness(exact, settings=tmp_path / "s.json").generate_until(asked * 12)
    other = backend.Harness(exact, settings=tmp_path / "s.json", seed=1)
    assert texts != other.generate_until(asked * 12)


def test_answers_too_are_scored_as_the_settings_say(exact, backend):
    asked = [request(backend, "ab", "cdefabcd"), request(backend, "ab", "cdefabcd", task="other")]
    own = backend.Harness(exact, settings={"choice": {"draws": 255}, "oth*": {"estimator": "chain_rule"}})
    (one, _), (other, _) = own.loglikelihood(asked)
    wanted = exact.denoiser.nats(torch.tensor(exact.encode("bcdefabcd")))
    assert one == pytest.approx(wanted, abs=1e-9), "255 draws are all sets of eight"
    assert other == pytest.approx(wanted, abs=1e-9)
    assert own.spent["scored"].texts >= 255
    ((drawn, _),) = backend.Harness(exact).loglikelihood(asked[:1])
    assert abs(drawn - wanted) > 1e-6


def test_what_is_unknown_is_refused_by_name(exact, backend, tmp_path):
    for mistake, near in (({"blok": 4}, "block"), ({"stepss": 2}, "steps"), ({"max_gen_tokens": 2}, "max_gen_toks")):
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            backend.Harness(exact, settings={"write": mistake})
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            backend.Harness(exact, **mistake)
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            backend.Harness(exact).generate_until([request(backend, "ab", mistake, task="write")])
    with pytest.raises(ValueError, match="num_beams=4"):
        backend.Harness(exact, num_beams=4)
    with pytest.warns(UserWarning, match="num_beams, use_cache: ignored"):
        backend.Harness(exact, num_beams=1, use_cache=True)
    for content in ("[1, 2]", "write: 3", "write: {length: ["):
        (tmp_path / "s.yaml").write_text(content)
        with pytest.raises(ValueError, match=r"s\.yaml"):
            backend.Harness(exact, settings=tmp_path / "s.yaml")
    for batch in ("many", 0):
        with pytest.raises(ValueError, match="batch_size"):
            backend.Harness(exact, batch_size=batch)
    with pytest.raises(ValueError, match="length=10"):
        backend.Harness(exact, length=10).generate_until([request(backend, "ab", {}, task="write")])


def test_names_of_the_harness_are_brought_to_ours(backend):
    from redraft.harness.settings import Settings, layered

    assert layered({"max_gen_toks": 4, "do_sample": False, "temperature": 0.7}) == {"length": 4, "temperature": 0.0}
    assert layered({"do_sample": True}) == {"temperature": 1.0}
    assert layered({"do_sample": True, "temperature": 0.7, "until": "x"}) == {"temperature": 0.7, "until": ["x"]}
    assert layered({"do_sample": False}, {"temperature": 0.2}) == {"temperature": 0.2}
    assert layered({"max_gen_toks": 4, "length": 3}, {"repetition_penalty": 1.2}) == {"length": 3, "repetition": 1.2}
    told = Settings({"a*": {"length": 1}, "*": {"length": 2}, "ab": {"length": 3, "draws": 4}})
    assert [told.of(task)["length"] for task in ("ab", "ac", "b", None)] == [3, 1, 2, 2]
    assert told.scoring("ab") == {"draws": 4}
    assert told.writing("ab") == {"length": 3}
    assert Settings({"a": {"length": 1}}).of("ab") == {}


def test_unknown_tasks_are_refused_with_the_nearest(exact, evaluate):
    with pytest.raises(ValueError, match="did you mean 'choice'"):
        evaluate(exact, "choise")
    with pytest.raises(ValueError, match="did you mean 'write'"):
        evaluate(exact, "write", settings={"wriet": {"length": 2}})
    with pytest.raises(ValueError, match="a group or tag"):
        evaluate(exact, "write", settings={"letters": {"length": 2}})
