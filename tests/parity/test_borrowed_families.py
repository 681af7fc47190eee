"""Families on networks of ``transformers``: BERT and its kin, DiffuGPT, and causal models made to denoise."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from parity import plain
from parity.borrowed import BERT, GPT, LAYOUTS, PAD, PLAIN, bert_shapes, gpt_shapes, plain_gpt
from parity.checkpoints import EOS, SDAR, VOCAB, Layout, M, qwen2_shapes, tokenizer_files
from parity.test_families import contents, in_two, rewrite
from redraft import runs
from redraft.models.borrowed import borrow
from redraft.models.families import FAMILIES
from redraft.models.released import family_of

L = 11
FAMILY = {"diffugpt": "diffugpt"}
GPT_2 = {
    name.replace("denoise_model", "transformer").replace("embed_tokens", "transformer.wte"): name
    for name in gpt_shapes(GPT)
    if name != "lm_head.weight"
}
"""GPT-2's own names, and DiffuGPT's, which has a head besides."""


def gpt_2_shapes(config):
    return {name: gpt_shapes(config)[old] for name, old in GPT_2.items()}


def plain_gpt_2(config, w, z, reads):
    w = {old: w[name] for name, old in GPT_2.items()}
    return plain_gpt(config, w | {"lm_head.weight": w["embed_tokens.weight"]}, z, reads)


QWEN_3 = {key: value for key, value in SDAR.items() if key not in ("auto_map", "block_size")}
A2D = {
    "a2d-qwen3": Layout(QWEN_3 | {"model_type": "a2d-qwen3"}, partial(qwen2_shapes, bias=False, norms=True)),
    "a2d-gpt2": Layout(GPT | {"model_type": "a2d-gpt2", "diffusion": {"shift": True}}, gpt_2_shapes, shift=True),
}
"""Causal models made to denoise: a network that ours computes, and one that is borrowed."""
EVERY, NETWORKS = LAYOUTS | A2D, PLAIN | {"a2d-qwen3": plain.llama, "a2d-gpt2": plain_gpt_2}
families = pytest.mark.parametrize("name", LAYOUTS)
every = pytest.mark.parametrize("name", EVERY)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def load(folder, name, **changed):
    layout = EVERY[name]
    return runs.load(layout.write(folder, **changed), family=layout.asked)


def ids(rows=2, length=L, seed=0):
    z = torch.randint(6, M, (rows, length), generator=torch.Generator().manual_seed(seed))
    return z.where(torch.arange(length) % 3 != 2, M)


def plainly(folder, name, z, reads=None):
    tensors = load_file(folder / "model.safetensors")
    w = {key: value.double().numpy() for key, value in tensors.items()}
    reads = np.ones((z.shape[1],) * 2, bool) if reads is None else reads
    return torch.from_numpy(np.stack([NETWORKS[name](EVERY[name].config, w, row.numpy(), reads) for row in z]))


def same(a, b, atol=1e-6):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# ---------------------------------------------------------------------------------------------------------- networks


@every
def test_logits_are_those_of_the_plain_network(name, tmp_path):
    denoiser = load(tmp_path, name).denoiser.double()
    same(denoiser.logits(ids()), plainly(tmp_path, name, ids()))
    reads = np.arange(L)[:, None] // 4 >= np.arange(L) // 4
    found = denoiser.logits(ids(), {"attend": torch.from_numpy(reads)})
    same(found, plainly(tmp_path, name, ids(), reads))


def test_experts_of_a_borrowed_network_are_asked_in_float64_too():
    from transformers import AutoConfig

    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": VOCAB}
    network = borrow(AutoConfig.for_model("mixtral", **sizes)).eval()
    said = network(ids(), torch.arange(L)).double()
    same(network.double()(ids(), torch.arange(L)), said, 1e-5)


@every
def test_padding_and_company_change_nothing(name, tmp_path):
    denoiser, z = load(tmp_path, name).denoiser.double(), ids(5)
    behind = torch.cat([z, torch.full((5, 4), PAD)], dim=1)
    apart = {"segments": (torch.arange(L + 4) >= L).long().expand(5, -1)}
    same(denoiser.logits(behind, apart)[:, :L], denoiser.logits(z), 1e-10)
    alone = torch.cat([denoiser.logits(row[None]) for row in z])
    same(denoiser.logits(z), alone, 1e-10)
    where = torch.rand(z.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    same(denoiser.logits(z, where=where), alone[where], 1e-10)


@families
def test_what_a_folder_is_taken_for(name, tmp_path):
    lm = load(tmp_path, name)
    facts, shift = lm.denoiser.facts, LAYOUTS[name].shift
    assert lm.about["family"] == FAMILY.get(name, "bert")
    assert (lm.process.name, facts.mask_id, lm.process.K) == ("masked", M, VOCAB)
    assert (lm.denoiser.meaning.shift, facts.attention, facts.time_conditioned) == (shift, "full", False)
    assert facts.caches == (name == "diffugpt")
    assert (facts.eos_id, facts.pad_id) == (EOS, EOS if name == "diffugpt" else PAD)
    assert lm.context == 64
    logp = lm.denoiser(ids(), torch.full((2,), 0.5))
    same(logp.exp().sum(-1), torch.ones(2, L), 1e-5)
    assert float(logp[..., M].exp().max()) == 0


@families
def test_its_authors_way_to_write_runs(name, tmp_path):
    family, lm = FAMILIES[FAMILY.get(name, "bert")], load(tmp_path, name)
    assert family.decoding
    assert "\n" not in (family.reads.__doc__ or "\n")
    block = {"block": 4} if "block" in family.decoding else {}
    written = lm.generate("cdef", seed=0, **dict(family.decoding) | {"length": 12, "steps": 3} | block)
    assert written.tokens.shape == (1, 16)
    assert not bool((written.tokens == M).any())


def test_the_mask_is_the_tokenizers_word_or_the_familys(tmp_path):
    config = {key: value for key, value in BERT.items() if key != "mask_token_id"}
    LAYOUTS["bert"].write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"id 103, is none of 64 tokens.*read as family 'bert'"):
        runs.load(tmp_path)
    tokenizer_files(tmp_path, mask=None, specials={M: "[MASK]"}.items())
    assert runs.load(tmp_path).process.mask_id == M
    wide = Layout(config | {"vocab_size": 110}, bert_shapes, mask=103)
    wide.write(tmp_path / "wide")
    tokenizer_files(tmp_path / "wide", vocab=110, mask=103)
    assert runs.load(tmp_path / "wide").process.mask_id == 103


def test_gpt_2_is_taken_for_diffugpt_by_name_only(tmp_path):
    config = {key: value for key, value in GPT.items() if key != "mask_token_id"}
    with pytest.raises(ValueError, match="'gpt2' alone does not tell what it is; pass family= if it is diffugpt"):
        family_of("config.json", GPT)
    assert family_of("config.json", GPT, repository="diffusionfamily/diffugpt-s").name == "diffugpt"
    assert FAMILIES["diffugpt"].under == ("gpt2",)
    LAYOUTS["diffugpt"].write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="id 50257, is none of 64 tokens"):
        runs.load(tmp_path, family="diffugpt")


def test_a_conversation_with_bert_chat_reads_as_it_was_taught():
    from transformers import PreTrainedTokenizerFast

    from redraft.data import build_tokenizer

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer("bytes").backend)
    told = [{"role": "system", "content": "Be kind. "}, {"role": "user", "content": " Why?"}]
    said = tokenizer.apply_chat_template(
        told, chat_template=FAMILIES["bert"].template, tokenize=False, add_generation_prompt=True
    )
    assert said == "[SYS]\nBe kind.\n[/SYS]\n\n[Question]\nWhy?\n[/Question]\n\n[Answer]\n"
    whole = [*told, {"role": "assistant", "content": "So."}]
    done = tokenizer.apply_chat_template(whole, chat_template=FAMILIES["bert"].template, tokenize=False)
    assert done == said + "So.\n[/Answer]\n\n"
    assert FAMILIES["bert"].turn == "[/Answer]"


UNSUPPORTED = {
    "bert": [("is_decoder", True), ("position_embedding_type", "relative_key"), ("add_cross_attention", True)],
    "modernbert": [("sparse_prediction", True)],
    "diffugpt": [("add_cross_attention", True), ("reorder_and_upcast_attn", True)],
}


@pytest.mark.parametrize(
    ("name", "field", "value"), [(name, *one) for name in UNSUPPORTED for one in UNSUPPORTED[name]]
)
def test_fields_that_mean_what_is_not_done_are_refused(name, field, value, tmp_path):
    with pytest.raises(ValueError, match=f"{field}.*read as family"):
        load(tmp_path, name, **{field: value})


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every
def test_saved_and_loaded_and_saved_it_is_the_same_to_the_bit(name, dtype, tmp_path):
    layout = EVERY[name]
    layout.write(tmp_path / "hub", dtype)
    if name == "google":
        numbers = {"bert.embeddings.position_ids": torch.arange(64)[None]}
        rewrite(tmp_path / "hub", lambda tensors: tensors.update(numbers))
    if name == "diffugpt":
        causes = {"denoise_model.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool)}
        rewrite(tmp_path / "hub", lambda tensors: tensors.update(causes))
    for source, target in (("hub", "once"), ("once", "twice")):
        runs.load(tmp_path / source, family=layout.asked).save(tmp_path / target)
    hub, once, twice = (contents(tmp_path / one) for one in ("hub", "once", "twice"))
    assert once == twice
    assert once["config.json"] == hub["config.json"]
    before, after = (load_file(tmp_path / one / "model.safetensors") for one in ("hub", "once"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) and value.dtype == after[key].dtype for key, value in before.items())


def refused(folder, name, message):
    with pytest.raises(ValueError, match=message):
        runs.load(folder, family=EVERY[name].asked)


@every
def test_every_key_and_shape_is_checked(name, tmp_path):
    shapes = EVERY[name].shapes(EVERY[name].config)
    read = [key for key in shapes if not key.startswith(("bert.pooler", "cls.seq"))]
    for key in (min(read), max(read), next(key for key in read if "mlp" in key or "intermediate" in key)):
        rewrite(EVERY[name].write(tmp_path), lambda tensors, key=key: tensors.update({key + "x": tensors.pop(key)}))
        refused(tmp_path, name, rf"missing \['{key}'\], not expected \['{key}x'\]")
        longer = torch.ones(shapes[key][0] + 1, *shapes[key][1:])
        rewrite(EVERY[name].write(tmp_path), lambda tensors, key=key, value=longer: tensors.update({key: value}))
        refused(tmp_path, name, rf"{key} has shape \({shapes[key][0] + 1},.*the config says \({shapes[key][0]},")


@every
def test_files_that_are_damaged_missing_or_pickled_are_refused(name, tmp_path):
    folder, _ = in_two(EVERY[name].write(tmp_path / "two"))
    wanted = load(tmp_path / "one", name).denoiser.state_dict()
    found = runs.load(folder, family=EVERY[name].asked).denoiser.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())
    second = folder / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-5])
    refused(folder, name, "model-00002-of-00002.safetensors: damaged")
    second.unlink()
    refused(folder, name, "model-00002-of-00002.safetensors: no such file")
    folder = EVERY[name].write(tmp_path / "pickle")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, name, "pytorch_model.bin is a pickle")


def set_a_trap(folder, **config):
    """Code in a folder that leaves a mark if it is ever run."""
    said = json.loads((folder / "config.json").read_text()) | config
    classes = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForMaskedLM"), "modeling_trap.Trap")
    (folder / "config.json").write_text(json.dumps(said | {"auto_map": classes}))
    marker = folder / "ran"
    for file in ("modeling_trap.py", "configuration_trap.py", "__init__.py"):
        (folder / file).write_text(f"open({str(marker)!r}, 'w')\nraise SystemExit('code of a checkpoint was run')\n")
    return marker


@every
def test_code_in_the_folder_is_never_run(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    marker = set_a_trap(EVERY[name].write(tmp_path))
    lm = runs.load(tmp_path, family=EVERY[name].asked)
    lm.generate("cd", length=3, steps=1)
    lm.save(tmp_path / "again")
    assert not marker.exists()
    assert not [path for path in (tmp_path / "again").iterdir() if path.suffix == ".py"]


def test_a_plain_key_table_is_what_transformers_itself_writes(tmp_path):
    """The layouts above are those of transformers' own classes, where those have them."""
    import transformers

    for name, layout in EVERY.items():
        if name in ("google", "diffugpt"):
            continue
        auto = transformers.AutoModelForCausalLM if name in A2D else transformers.AutoModelForMaskedLM
        fields = layout.config | {"model_type": layout.config["model_type"].removeprefix("a2d-")}
        made = auto.from_config(transformers.AutoConfig.for_model(**fields))
        made.save_pretrained(tmp_path / name)
        found = {key: tuple(value.shape) for key, value in load_file(tmp_path / name / "model.safetensors").items()}
        assert found == layout.shapes(layout.config)
