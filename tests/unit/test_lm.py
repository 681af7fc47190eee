"""The language model object: text in, text out, and what it refuses."""

import pytest
import torch

from redraft import processes, runs
from redraft.data import build_tokenizer
from redraft.evaluation import mbr
from redraft.evaluation.answers import split
from redraft.lm import LM
from redraft.models import Transformer, TransformerConfig
from redraft.trace import Trace
from redraft.writing import Writer


def toy_lm(process=None, **options):
    torch.manual_seed(0)
    process = process or processes.masked(13)
    model = Transformer(TransformerConfig(process.to_dict(), depth=1, pad_id=12, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return LM(model.eval(), build_tokenizer("toy"), {"context": 6})


@pytest.fixture
def lm():
    return toy_lm()


def test_generate_continues_its_prompt(lm):
    made = lm.generate("our dog", num=4, steps=4, seed=3)
    assert made.tokens.shape == (4, 6)
    assert all(text.startswith("our dog") for text in made.texts)
    assert made.text == made.texts[0] == lm.decode(made.tokens[0])
    assert made.samples.nfe == 4
    alone = lm.generate("our dog", steps=4, seeds=made.samples.seeds[2:3])
    assert alone.text == made.texts[2]
    assert lm.generate("our dog", num=4, steps=4, seed=4).texts != made.texts
    report = made.to_dict()
    assert [one["text"] for one in report["samples"]] == made.texts
    assert 0 < report["unigram_entropy"] <= 1.8


def test_length_is_what_is_written_after_the_prompt(lm):
    assert lm.generate("our", length=2, steps=2).tokens.shape == (1, 3)
    with pytest.raises(ValueError, match="do not fit the 6 positions"):
        lm.generate("our", length=6)
    with pytest.raises(ValueError, match=r"seeds=\[\]"):
        lm.generate("our", seeds=[])
    with pytest.raises(ValueError, match="0 to write"):
        lm.generate("we are our friend s s")


def test_a_stride_writes_past_the_context(lm):
    made = lm.generate("our", length=9, stride=3, steps=2, num=2, seed=1)
    assert made.tokens.shape == (2, 10)
    assert made.tokens.tolist() != lm.generate("our", length=9, stride=2, steps=2, num=2, seed=1).tokens.tolist()
    with Trace(lm) as trace:
        long = lm.generate("our", length=9, stride=3, steps=2, callback=trace)
        trace.finish(long.tokens)
    assert len(trace.frames[-1].marks) == 10
    within = lm.generate("our", length=5, stride=3, steps=2, seed=1)
    assert within.tokens.tolist() == lm.generate("our", length=5, steps=2, seed=1).tokens.tolist()


def test_top_p_leaves_out_the_tail(lm):
    assert lm.generate(steps=2, num=20, top_p=1e-6).samples.tokens.unique(dim=0).shape[0] < 20
    with pytest.raises(ValueError, match="top_p"):
        lm.generate(steps=2, top_p=0.0)


def test_infill_keeps_what_is_given(lm):
    made = lm.infill("our [MASK] is [MASK:2]", num=3, steps=3)
    for text in made.texts:
        units = text.split()
        assert units[0] == "our"
        assert units[2] == "is"
    with pytest.raises(ValueError, match="MASK"):
        lm.infill("our dog is your")
    with pytest.raises(ValueError, match="at most 6"):
        lm.infill("our [MASK:9]")


def vector_lm(**options):
    codebook = torch.nn.functional.normalize(torch.randn(13, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    torch.manual_seed(0)
    process = processes.gaussian(codebook)
    model = Transformer(TransformerConfig(process.to_dict(), depth=1, pad_id=12, **options), {"codebook": codebook})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return LM(model.eval(), build_tokenizer("toy"), {"context": 6})


LMS = {
    "masked": toy_lm,
    "uniform": lambda: toy_lm(processes.uniform(13), time_conditioned=True),
    "gaussian": vector_lm,
    "vectors": lambda: vector_lm(reads="vectors", time_conditioned=True, self_conditioned=True),
}


@pytest.mark.parametrize("name", LMS)
def test_edit_changes_more_with_strength(name):
    """The less of a text is kept the stronger the edit: nothing is changed at 0, and at 1 nothing is known of it."""
    lm, text = LMS[name](), "our dog is your friend s"
    ids = torch.tensor(lm.encode(text))
    kept = []
    for strength in (0.0, 0.3, 0.7, 1.0):
        made = lm.edit(text, strength=strength, num=60, steps=4, seed=1)
        kept.append((made.tokens == ids).double().mean().item())
    assert kept[0] == 1
    assert kept[0] > kept[1] > kept[2] > kept[3] - 0.02
    assert lm.edit(text, strength=0.0).text == text
    assert lm.edit(text, strength=0.0).samples.nfe == 0
    free = lm.generate(num=3, steps=4, seed=1)
    assert lm.edit(text, strength=1.0, num=3, steps=4, seed=1).texts == free.texts
    one = lm.edit(text, strength=0.7, num=3, steps=4, seed=1)
    assert lm.edit(text, strength=0.7, steps=4, seeds=one.samples.seeds[1:2]).text == one.texts[1]
    assert lm.edit(text, num=3, steps=4, seed=1).texts == lm.edit(text, num=3, steps=4, seed=1, strength=0.5).texts


def test_a_text_that_cannot_be_edited_is_refused(lm):
    with pytest.raises(ValueError, match=r"strength=2"):
        lm.edit("our dog", strength=2.0)
    with pytest.raises(ValueError, match="causal attention"):
        toy_lm(attention="causal").edit("our dog")
    short = LM(lm.denoiser, lm.tokenizer, {"context": 4})
    with pytest.raises(ValueError, match="a text of 6 tokens to redraft, and the model was trained on 4"):
        short.edit("our dog is your friend s")


def test_a_mask_that_is_spelt_in_a_text_to_edit_is_text():
    words = build_tokenizer("bytes")
    process = processes.masked(words.K)
    model = Transformer(TransformerConfig(process.to_dict(), depth=1)).eval()
    lm = LM(model, words, {"context": 24})
    assert lm.edit("a [MASK] b", strength=0.0).text == "a [MASK] b"
    assert lm.edit("a [MASK] b", strength=0.0).tokens.shape == (1, 10)
    assert lm.edit("a [MASK] b", strength=0.4, steps=2).tokens.shape == (1, 10)
    with pytest.raises(ValueError, match="a text of 0 tokens"):
        lm.edit("")


def test_how_given_tokens_stand_is_the_callers_choice():
    lm, template = LMS["vectors"](), "our [MASK] is [MASK:2]"
    made = {way: lm.infill(template, num=40, steps=4, given=way).texts for way in ("noised", "clean", "told")}
    assert made["noised"] == lm.infill(template, num=40, steps=4).texts
    assert len({tuple(texts) for texts in made.values()}) == 3
    jumping = lm.infill(template, num=2, steps=4, resample=2)
    assert jumping.samples.nfe == 13
    assert lm.generate("our", num=40, steps=4, given="told").texts != lm.generate("our", num=40, steps=4).texts
    long = lm.generate(length=9, stride=3, steps=2, given="told", num=20).texts
    assert long != lm.generate(length=9, stride=3, steps=2, num=20).texts
    with pytest.raises(ValueError, match="given='told' with a masked process"):
        toy_lm().infill(template, given="told")
    with pytest.raises(ValueError, match="no token is given"):
        lm.generate(given="told")


def test_one_of_many_is_selected(lm):
    drawn = lm.generate("our", num=12, steps=3, seed=2)
    for gain in ("bleu", "chrf", "agreement", "edits"):
        rows = drawn.tokens.tolist() if gain in ("agreement", "edits") else drawn.texts
        index, kept = mbr.select(rows, gain), drawn.select(gain)
        assert kept.texts == [drawn.texts[index]]
        assert torch.equal(kept.tokens, drawn.tokens[index : index + 1])
        assert kept.samples.seeds == [drawn.samples.seeds[index]]
        assert (kept.samples.nfe, kept.samples.positions) == (drawn.samples.nfe, drawn.samples.positions)
        assert kept.to_dict()["choice"] == {"index": index, "score": kept.choice.score, "gain": gain, "count": 12}
    assert "choice" not in drawn.to_dict()
    longest = drawn.select(lambda hypothesis, reference: len(hypothesis))
    assert len(longest.text) == max(map(len, drawn.texts))
    with pytest.raises(ValueError, match="did you mean 'bleu'"):
        drawn.select("bluh")


def test_infilling_an_autoregressive_model_is_refused():
    lm = toy_lm(attention="causal")
    assert lm.generate("our", length=5).samples.nfe == 5
    with pytest.raises(ValueError, match="only continues a prompt"):
        lm.infill("[MASK] dog is your")
    with pytest.raises(ValueError, match="one per token"):
        lm.generate("our", steps=2)
    with pytest.raises(ValueError, match="left_to_right"):
        lm.generate("our", sampler="confidence")


def test_temperature_and_sampler_change_what_is_written(lm):
    def texts(**options):
        return lm.generate(num=8, steps=6, **options).texts

    assert len(set(texts(temperature=0.0, sampler="confidence"))) == 1
    assert texts() != texts(temperature=3.0)
    assert texts() != texts(sampler="confidence")
    with pytest.raises(ValueError, match=r"temperature=-1"):
        texts(temperature=-1)
    with pytest.raises(ValueError, match="unknown sampler 'confidense'; did you mean 'confidence'"):
        texts(sampler="confidense")
    with pytest.raises(ValueError, match="has fixed masks, which a uniform process is not"):
        toy_lm(processes.uniform(13), time_conditioned=True).generate(sampler="confidence")


def test_save_and_load_write_the_same_text(lm, tmp_path):
    lm.save(tmp_path / "model")
    again = runs.load(tmp_path / "model")
    assert again.generate(num=3, steps=4).texts == lm.generate(num=3, steps=4).texts
    assert again.evaluate("toy", draws=2) == lm.evaluate("toy", draws=2)
    assert again.context == 6


def test_load_refuses_what_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        runs.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no config\.json"):
        runs.load(tmp_path)
    with pytest.raises(ValueError, match="not to be had"):
        runs.load("someone/some-model")  # offline


def test_a_tokenizer_of_another_size_is_refused(lm, tmp_path):
    lm.save(tmp_path)
    build_tokenizer("bytes").save(tmp_path)
    with pytest.raises(ValueError, match="257 tokens, the model 13"):
        runs.load(tmp_path)


def test_strength_belongs_to_edit(lm):
    with pytest.raises(ValueError, match=r"strength=0\.5.*use edit"):
        lm.generate("our", length=2, strength=0.5)
    with pytest.raises(ValueError, match=r"strength=0\.0.*use edit"):
        lm.infill("our [MASK:2]", strength=0.0)


def test_options_are_checked_where_nothing_is_to_be_drawn(lm):
    """One window, an empty prompt, a strength of 0: a mistake is one there too."""
    for options, words in ({"given": "bogus"}, "bogus"), ({"resample": -4}, "resample=-4"):
        with pytest.raises(ValueError, match=words):
            lm.generate("", stride=3, length=4, **options)
    with pytest.raises(ValueError, match="temperature=-3"):
        lm.edit("our cat", strength=0.0, temperature=-3)
    with pytest.raises(ValueError, match="clock of its own"):
        lm.edit("our cat", strength=0.5, sampler="remdm:strategy=loop")


def test_the_model_says_what_ends_a_text_before_its_tokenizer():
    from types import SimpleNamespace

    from redraft.processes import Facts

    words = build_tokenizer("bytes")
    for declared, wanted in ((7, 7), (None, words.eos_id), (0, 0)):
        lm = LM(SimpleNamespace(facts=Facts(eos_id=declared)), words, {"context": 8})
        writer = Writer(None, lm.denoiser, torch.device("cpu"), 8, lm.eos_id)
        assert writer.end(True) == lm.eos_id == wanted
        assert writer.end(3) == 3


def test_a_word_that_is_the_mask_is_named():
    """Where the mask is one of the vocabulary's words (DiffuLLaMA), a text that has it is no text of the model's."""
    words = build_tokenizer("bytes")
    words.mask_id = words.encode("x")[0]
    assert words.encode("abc")
    with pytest.raises(ValueError, match="the word 'x' of the text, at character 2, is the mask"):
        words.encode("abxc")
    with pytest.raises(ValueError, match="the word 'x'"):
        split(words, "ab", "cx", 9)
    with pytest.raises(ValueError, match="the word 'x'"):
        words.encode_passages("abxc", [(0, 1)])
