"""The language model object: text in, text out, and what it refuses."""

import pytest
import torch

from redraft import processes, runs
from redraft.data import build_tokenizer
from redraft.lm import LM
from redraft.models import Transformer, TransformerConfig
from redraft.trace import Trace


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
    with pytest.raises(ValueError, match="has no fixed masks"):
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
