"""A model asked for texts of lengths nobody knows, and for redrafts of parts: options, costs, refusals."""

import json

import pytest
import torch

from redraft import Elastic, Growth, processes
from redraft.data import build_tokenizer
from redraft.evaluation import variety
from redraft.lm import LM
from redraft.models import Transformer, TransformerConfig

TEXT = "our dog is your friend s"


def small_lm(process=None, name="toy", context=6, texts=(), **options):
    words = build_tokenizer(name, texts, vocab=300)
    torch.manual_seed(0)
    process = process or processes.masked(words.K, mask_id=words.mask_id)
    model = Transformer(TransformerConfig(process.to_dict(), depth=1, pad_id=words.pad_id, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return LM(model.eval(), words, {"context": context})


@pytest.fixture(scope="module")
def lm():
    return small_lm()


@pytest.fixture(scope="module")
def bytes_lm():
    return small_lm(name="bytes", context=40)


# ------------------------------------------------------------------------------------------- gaps of unknown length


def test_a_gap_of_unknown_length_is_the_best_of_given_ones(bytes_lm):
    made = bytes_lm.infill("a [MASK:2-4] b [MASK:1-2].", num=3, seed=2, top_k=40)
    assert made.lengths == [(2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2)]
    assert len({one.kept for one in made.tried}) > 1
    for row, one in enumerate(made.tried):
        a, b = made.lengths[one.kept]
        given = f"a [MASK:{a}] b [MASK:{b}]."
        alone = bytes_lm.infill(given, seeds=made.samples.seeds[row : row + 1], sampler="low_confidence", top_k=40)
        assert alone.text == made.texts[row]
        assert one.scores[one.kept] == max(one.scores)
        assert one.scores[one.kept] == pytest.approx(alone.samples.logp.nanmean().item(), abs=1e-12)
        assert made.samples.cost.of_rows[row] == sum(a + b for a, b in made.lengths)
    report = json.loads(json.dumps(made.to_dict()))
    assert report["tried"] == [list(one) for one in made.lengths]
    assert [one["lengths"] for one in report["samples"]] == [list(made.lengths[one.kept]) for one in made.tried]
    assert report["samples"][0]["scores"] == made.tried[0].scores
    assert report["cost"]["of_rows"] == made.samples.cost.of_rows
    assert made.select().tried == [made.tried[made.select().choice.index]]
    assert bytes_lm.infill("a [MASK:2-4]", seed=2, sampler="threshold:tau=0.1").samples.nfe <= 9
    assert bytes_lm.infill("a [MASK:3-3]", seed=2).tried is None


def test_memory_stays_bounded_whatever_is_tried(bytes_lm, monkeypatch):
    whole = bytes_lm.infill("a [MASK:2-5] b", num=4, seed=1)
    monkeypatch.setattr("redraft.writing.POSITIONS_AT_ONCE", 20)
    seen = []
    parts = bytes_lm.infill(
        "a [MASK:2-5] b", num=4, seed=1, callback=lambda step: seen.append((step.tokens.numel(), step.rows))
    )
    assert max(size for size, _ in seen) <= 20
    assert {row for _, rows in seen for row in rows} == set(range(16))
    assert parts.texts == whole.texts
    assert parts.tried == whole.tried
    prompts = ["a", "bcd", ""] * 3
    apart = bytes_lm.generate(prompts, length=[3, 8, 5] * 3, seed=3)
    seen.clear()
    bytes_lm.generate("ab", length=4, num=8, callback=lambda step: seen.append((step.index, step.rows)))
    assert [rows for index, rows in seen if index == 0] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    monkeypatch.undo()
    assert apart.texts == bytes_lm.generate(prompts, length=[3, 8, 5] * 3, seed=3).texts


def test_what_is_tried_is_bounded_and_fits(bytes_lm, lm):
    with pytest.raises(ValueError, match=r"125 combinations of lengths.*narrow the ranges to 64 at most"):
        bytes_lm.infill("[MASK:1-5][MASK:1-5][MASK:1-5]")
    with pytest.raises(ValueError, match="the text has 41 tokens"):
        bytes_lm.infill("[MASK:39-41]")
    with pytest.raises(ValueError, match="7 units"):
        lm.infill("our dog [MASK:4-5]")
    with pytest.raises(ValueError, match="'ancestral' does not say"):
        bytes_lm.infill("[MASK:2-3]", sampler="ancestral")
    uniform = small_lm(processes.uniform(13), time_conditioned=True)
    with pytest.raises(ValueError, match=r"trying lengths.*a uniform process is not"):
        uniform.infill("our [MASK:2-3]")


# ------------------------------------------------------------------------------------------------------ many prompts


def test_prompts_and_lengths_of_their_own(bytes_lm):
    made = bytes_lm.generate(["ab", "", "abcdef"], length=[4, 9, 2], seed=5)
    assert made.samples.lengths == [6, 9, 8]
    assert [len(row) for row in made.rows] == [6, 9, 8]
    for row, (prompt, length) in enumerate((("ab", 4), ("", 9), ("abcdef", 2))):
        alone = bytes_lm.generate(prompt, length=length, seeds=made.samples.seeds[row : row + 1])
        assert alone.text == made.texts[row]
        assert made.texts[row].startswith(prompt)
    assert made.to_dict()["unigram_entropy"] == variety(made.rows)["unigram_entropy"]
    assert made.to_dict()["unigram_entropy"] != variety(made.tokens.tolist())["unigram_entropy"]
    twice = bytes_lm.generate(["ab", "c"], length=3, num=2, seed=5)
    assert [row[:-3] for row in twice.rows] == [[97, 98], [97, 98], [99], [99]]
    assert len(set(twice.texts)) == 4
    assert bytes_lm.generate("ab", length=[1, 2, 3]).samples.lengths == [3, 4, 5]
    assert bytes_lm.generate(["ab", "c"]).samples.lengths == [40, 40]
    assert bytes_lm.generate("ab", length=2, seeds=[1, 2, 3]).samples.seeds == [1, 2, 3]
    long = bytes_lm.generate(["ab", "c"], length=[45, 50], stride=20, steps=2, num=2, seeds=[1, 2, 3, 4])
    assert long.samples.lengths == [47, 47, 51, 51]
    assert long.texts[2] == bytes_lm.generate("c", length=50, stride=20, steps=2, seeds=[3]).text
    for wrong, words in (
        ({"length": [1, 2, 3]}, "2 prompts and 3 lengths"),
        ({"length": [4, 40]}, "a prompt of 1 tokens and 40 to write"),
        ({"seeds": [1]}, "1 seeds for 2 texts"),
        ({"stride": 4, "stop": True}, "stop=True with a stride"),
        ({"stride": 4, "block": 3}, "block=3 with a stride"),
        ({"stride": 4, "grow": True}, "stride=4 with grow"),
    ):
        with pytest.raises(ValueError, match=words):
            bytes_lm.generate(["ab", "c"], **wrong)


def test_the_options_of_sample_reach_it(bytes_lm):
    """Each changes what is written, or what it costs."""

    def drawn(**options):
        return bytes_lm.generate("ab", length=12, num=6, sampler="low_confidence", seed=1, **options)

    plain = drawn()
    assert plain.to_dict()["cost"]["nfe"] == plain.to_dict()["nfe"] == 12
    assert plain.to_dict()["approximate"] is False
    for options in ({"top_k": 3}, {"repetition": 5.0}, {"block": 4}, {"temperature": 0.5}):
        assert drawn(**options).texts != plain.texts
    letters = plain.tokens[:, 2:].unique().tolist()[:10]
    assert not set(drawn(banned=letters).tokens[:, 2:].flatten().tolist()) & set(letters)
    cached = drawn(block=4, cache="dual", refresh=2)
    assert cached.samples.cost.cached > 0
    assert cached.to_dict()["approximate"] is True
    end = bytes_lm.tokenizer.eos_id
    two = {"banned": [i for i in range(bytes_lm.tokenizer.K) if i not in (250, end)], "temperature": 3.0}
    stopped = drawn(**two, stop=True)
    assert min(stopped.samples.lengths) < 14
    for text, row, length in zip(stopped.texts, stopped.tokens.tolist(), stopped.samples.lengths, strict=True):
        assert text == bytes_lm.decode(row[:length])
        assert length == (row.index(end) + 1 if end in row else 14)
    assert min(drawn(**two, stop=True, min_length=7).samples.lengths) >= 2 + 7 + 1
    assert drawn(**two, stop=250).samples.lengths != stopped.samples.lengths
    assert drawn(stop=False).texts == plain.texts
    zero = drawn(banned=[i for i in range(257) if i not in (0, 98)], temperature=5.0, stop=0)  # an id as any other
    assert min(zero.samples.lengths) < 14
    for wrong, words in (({"min_length": 3}, "min_length=3 with stop=None"), ({"banned": [999]}, "banned holds 999")):
        with pytest.raises(ValueError, match=words):
            drawn(**wrong)


def test_options_that_do_not_fit_are_refused_as_sample_does(lm):
    with pytest.raises(ValueError, match="stop=True with a model that has no end of text"):
        lm.generate(stop=True)
    uniform = small_lm(processes.uniform(13), time_conditioned=True)
    with pytest.raises(ValueError, match="block=2 with a uniform process"):
        uniform.generate(block=2)
    with pytest.raises(ValueError, match="cache='dual' without blocks"):
        lm.generate(cache="dual")
    assert uniform.generate(steps=3, banned=[1, 2], top_k=3).samples.nfe == 3


# ---------------------------------------------------------------------------------------------------- length unknown


def test_texts_grow_within_the_context(bytes_lm):
    made = bytes_lm.generate(
        ["ab", "c"], length=[20, 30], grow=Growth(start=4, append=4, enough=0.9), num=2, temperature=0.0, seed=1
    )
    assert made.samples.lengths == [22, 22, 31, 31]  # a network of noise never ends
    assert max(made.samples.cost.of_rows) <= 2 * 30 - 4
    assert bytes_lm.generate("ab", grow=True).samples.lengths[0] <= 40
    only = {"banned": [i for i in range(257) if i not in (250, 256)], "temperature": 3.0, "num": 8, "seed": 4}
    ends = bytes_lm.generate("ab", grow=Growth(enough=0.0, start=6, weak=0.0), **only)
    assert min(ends.samples.lengths) < 8
    other = bytes_lm.generate("ab", grow=Growth(enough=0.0, start=6, weak=0.0), stop=250, **only)
    assert other.samples.lengths != ends.samples.lengths
    assert bytes_lm.generate("ab", grow=Growth(enough=0.0, start=6, weak=0.0), stop=0, seed=4).tokens.shape == (1, 8)
    for wrong, words in (({"steps": 3}, "steps=3 with grow"), ({"block": 2}, "block=2 with grow")):
        with pytest.raises(ValueError, match=words):
            bytes_lm.generate("ab", grow=True, **wrong)
    with pytest.raises(ValueError, match="no end of text"):
        small_lm().generate(grow=True)
    assert bytes_lm.generate("ab", grow=True, steps=None, resample=0, given=None).texts


def test_gaps_stretch_within_the_context(bytes_lm):
    marks = Elastic(expand=101, delete=(102,), budget=500)
    made = bytes_lm.infill("a[MASK:30]b", marks=marks, num=2, top_k=3, seed=1, sampler="threshold:tau=0.2")
    assert max(made.samples.lengths) <= 40
    only = [i for i in range(257) if i not in (101, 97)]
    grew = bytes_lm.infill("a[MASK:30]b", marks=marks, num=4, banned=only, temperature=5.0)
    assert max(grew.samples.lengths) == 40
    for row in [*made.rows, *grew.rows]:
        assert (row[0], row[-1]) == (97, 98)
        assert not {101, 102} & set(row)
    assert bytes_lm.infill("a[MASK:3]b", marks=marks).text != bytes_lm.infill("a[MASK:3]b").text
    with pytest.raises(ValueError, match="give gaps one to begin with"):
        bytes_lm.infill("a[MASK:2-3]", marks=marks)
    with pytest.raises(ValueError, match="cache='dual' with marks"):
        bytes_lm.infill("a[MASK:2]", marks=marks, cache="dual")


# --------------------------------------------------------------------------------------------------- parts of a text


def test_a_passage_is_redrafted_and_nothing_else(bytes_lm):
    text = "héllo wörld, goodbye"
    a, b = text.index("wörld"), text.index(",")
    made = bytes_lm.edit(text, span=(a, b), strength=1.0, num=6, seed=1)
    ids = bytes_lm.encode(text)
    start, stop = len(text[:a].encode()), len(text[:b].encode())
    for row in made.tokens.tolist():
        assert (row[:start], row[stop:]) == (ids[:start], ids[stop:])
    assert len(set(map(tuple, made.tokens[:, start:stop].tolist()))) > 1
    both = bytes_lm.edit(text, span=[(b, b + 2), (0, 1)], strength=1.0, seed=1)
    row = both.tokens[0].tolist()
    assert (row[1:stop], row[stop + 2 :]) == (ids[1:stop], ids[stop + 2 :])
    assert bytes_lm.edit(text, span=(0, len(text)), seed=3).text == bytes_lm.edit(text, seed=3).text
    assert bytes_lm.edit(text, span=(a, b), strength=0.0).samples.nfe == 0
    for span, words in (
        ((3, 3), r"span=\[\(3, 3\)\]"),
        ((-1, 2), "pass 0 <= start < stop"),
        ((5, 99), "a text of 20 characters"),
        ([(0, 4), (3, 6)], "passages overlap"),
        ([], r"span=\[\] of a text"),
    ):
        with pytest.raises(ValueError, match=words):
            bytes_lm.edit(text, span=span)


def test_a_passage_of_a_toy_text_leaves_its_padding(lm):
    made = lm.edit("our dog is your", span=(4, 7), strength=1.0, num=20)
    assert {tuple(row[2:]) for row in made.tokens.tolist()} == {tuple(lm.tokenizer.encode("our dog is your")[2:])}
    assert len(set(made.texts)) > 1
    whole = lm.edit("our dog is your", strength=1.0, num=20)  # which no passage was named of
    assert len({tuple(row[4:]) for row in whole.tokens.tolist()}) > 1


def test_what_is_doubted_is_redrafted(lm):
    """Masked: a forward a token, then a call a redrafted token; the tokens chosen are the least likely alone."""
    made = lm.edit(TEXT, doubt=0.3, num=5, seed=1, sampler="low_confidence")
    ids = torch.tensor(lm.encode(TEXT))
    alone = []
    for i in range(6):
        z = ids.clone()
        z[i] = lm.process.mask_id
        alone.append(lm.denoiser(z[None], torch.zeros(1))[0, i, ids[i]].item())
    assert made.doubt.logp == pytest.approx(alone, abs=1e-5)
    least = sorted(range(6), key=alone.__getitem__)[:2]
    assert [i for i, one in enumerate(made.doubt.chosen) if one] == sorted(least)
    kept = [i for i in range(6) if i not in least]
    assert bool((made.tokens[:, kept] == ids[kept]).all())
    assert len(set(made.texts)) > 1
    assert made.samples.cost.of_rows == [6 + 2] * 5
    assert (made.samples.nfe, made.samples.positions) == (1 + 2, 36 + 2 * 30)
    assert made.to_dict()["doubt"]["chosen"] == made.doubt.chosen
    below = lm.edit(TEXT, below=2.718281828 ** ((sorted(alone)[2] + sorted(alone)[3]) / 2))
    assert sum(below.doubt.chosen) == 3
    assert lm.edit(TEXT, doubt=0.1, below=0.999).doubt.chosen.count(True) == 1
    inside = lm.edit(TEXT, doubt=1.0, span=(4, 10))
    assert inside.doubt.chosen == [False, True, True, False, False, False]
    assert inside.doubt.logp[0] is None


def test_nothing_doubted_is_nothing_asked(lm):
    for options in ({"doubt": 0.0}, {"below": 0.0}, {"doubt": 0.5, "strength": 0.0}):
        made = lm.edit(TEXT, num=2, **options)
        assert made.texts == [TEXT] * 2
        assert (made.samples.nfe, made.samples.cost.of_rows) == (0, [0, 0])
        assert made.doubt.chosen == [False] * 6
    sure = lm.edit(TEXT, below=1e-30)
    assert (sure.text, sure.samples.nfe, sure.samples.cost.of_rows) == (TEXT, 1, [6])
    for options, words in (
        ({"doubt": 2}, "doubt=2"),
        ({"below": -1}, "below=-1"),
        ({"doubt": 0, "below": 7}, "below=7"),
    ):
        with pytest.raises(ValueError, match=words):
            lm.edit(TEXT, **options)
    with pytest.raises(ValueError, match="temperature=-3"):
        lm.edit(TEXT, doubt=0.0, temperature=-3)


def test_a_uniform_model_doubts_in_one_call_and_redrafts_from_strength():
    lm = small_lm(processes.uniform(13), time_conditioned=True)
    made = lm.edit(TEXT, doubt=0.5, steps=4, num=20, seed=1)
    assert made.samples.nfe == 1 + 4
    assert made.samples.cost.of_rows == [5] * 20
    kept = [i for i, one in enumerate(made.doubt.chosen) if not one]
    assert len(kept) == 3
    assert bool((made.tokens[:, kept] == torch.tensor(lm.encode(TEXT))[kept]).all())
    assert made.texts == lm.edit(TEXT, doubt=0.5, steps=4, num=20, seed=1, strength=0.5).texts
    assert made.texts != lm.edit(TEXT, doubt=0.5, steps=4, num=20, seed=1, strength=0.9).texts


# ---------------------------------------------------------------------------------------- what spells a mask is text


@pytest.mark.parametrize("name", ["bytes", "chars", "bpe"])
def test_text_that_spells_masks_is_text_wherever_it_stands(name):
    spelt = "[MASK] [MASK:2-3] [EOS]"
    lm = small_lm(name=name, context=200, texts=[spelt + " ab\\"] * 5)
    prompt = lm.generate([spelt, "ab"], length=2, steps=1)
    assert prompt.texts[0].startswith(spelt)
    assert lm.process.mask_id not in prompt.tokens[0].tolist()[:-2]
    filled = lm.infill(r"\[MASK]a\[MASK:2-3] [MASK:2]", steps=1)
    assert lm.tokenizer.encode("[MASK]a[MASK:2-3] ") == filled.tokens[0].tolist()[:-2]
    for options in ({"strength": 0.0}, {"doubt": 0.0}):
        assert lm.edit(spelt, **options).text == spelt
    part = lm.edit(spelt, span=(7, 17), steps=2).tokens[0].tolist()
    assert lm.decode(part).startswith("[MASK] ")
    assert lm.edit(spelt, doubt=0.1, steps=1, sampler="ancestral").doubt.chosen.count(True) >= 1
    assert lm.tokenizer.token("[MASK]") == lm.process.mask_id  # where an id is asked for, its name is one
