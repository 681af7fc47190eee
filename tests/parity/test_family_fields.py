"""What config.json may say in other words, or leave out, and what it may not say at all; and what a name says."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.bases import base
from parity.checkpoints import EOS, LAYOUTS, M
from parity.test_families import contents, families, ids, load, rewrite, same, wide
from redraft import runs
from redraft.lm import LM
from redraft.models import released
from redraft.models.families import FAMILIES, a2d
from redraft.models.families import base as family_base
from redraft.models.families.base import Fields
from redraft.processes import masked

LLAMA = ("dream", "llada_moe", "llada2", "llada2_merged", "sdar", "diffullama", "illada")
"""Those in Llama's words."""


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def written(folder, name, drop=(), **changed):
    """The family's weights as they are, and other words in config.json."""
    layout = LAYOUTS[name]
    layout.write(folder)
    values = {key: value for key, value in layout.config.items() if key not in drop} | changed
    (folder / "config.json").write_text(json.dumps(values))
    return layout


def said(folder, name, drop=(), **changed):
    layout = written(folder, name, drop, **changed)
    return runs.load(folder, family=layout.asked).denoiser.logits(ids())


def refused(folder, name, message, drop=(), **changed):
    layout = written(folder, name, drop, **changed)
    with pytest.raises(ValueError, match=rf"{message}.*read as family '{name}'"):
        runs.load(folder, family=layout.asked)


# ------------------------------------------------------------------------------------------------------------ angles


@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, {"type": "default", "rope_type": "default"}])
@pytest.mark.parametrize("name", LLAMA)
def test_angles_scaled_by_default_are_not_scaled(name, scaling, tmp_path):
    assert torch.equal(said(tmp_path / "a", name, rope_scaling=scaling), said(tmp_path / "b", name))


@pytest.mark.parametrize("name", LLAMA)
def test_angles_of_another_kind_are_refused(name, tmp_path):
    theta = {"rope_theta": 1e4}
    for field, value in (
        ("rope_scaling", "linear"),
        ("rope_scaling", {"type": "default", "factor": 2.0}),
        ("rope_scaling", {"type": "default", "rope_type": "yarn"}),
        ("rope_parameters", theta | {"rope_type": "default", "mrope_section": [2]}),
        ("rope_parameters", theta | {"type": "linear"}),
        ("rope_parameters", [1]),
    ):
        refused(tmp_path, name, f"field '{field}' is {re.escape(repr(value))}", **{field: value})


@pytest.mark.parametrize("name", sorted(set(LLAMA) - {"llada2", "llada2_merged"}))
@pytest.mark.parametrize("where", ["alone", "among"])
def test_a_part_of_a_head_is_turned_by_none_but_llada2(name, where, tmp_path):
    part = {"partial_rotary_factor": 0.5}
    changed = part if where == "alone" else {"rope_parameters": part | {"rope_theta": 1e4}}
    refused(tmp_path, name, "'partial_rotary_factor' is 0.5, and only 1 is supported", **changed)


@pytest.mark.parametrize("name", ["llada2", "llada2_merged"])
def test_the_part_that_is_turned_may_stand_among_the_angles_parameters(name, tmp_path):
    fields = ("rope_theta", "partial_rotary_factor", "rotary_dim", "rope_scaling")
    inner = {"rope_theta": 600000, "rope_type": "default"}
    found = said(tmp_path / "a", name, fields, rope_parameters=inner | {"partial_rotary_factor": 0.5})
    assert torch.equal(found, said(tmp_path / "b", name))
    assert not torch.allclose(said(tmp_path / "c", name, fields, rope_parameters=inner), found, atol=1e-4)
    inner["partial_rotary_factor"] = 0.25
    refused(tmp_path / "d", name, "rotary_dim 8 and partial_rotary_factor 0.25", fields[:2], rope_parameters=inner)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
@families
def test_what_must_be_above_zero_is(name, value, tmp_path):
    for field in ("rope_theta", "rms_norm_eps", "norm_eps"):
        if field in LAYOUTS[name].config:
            refused(tmp_path, name, f"field '{field}' is .*, expected a number above 0", **{field: value})


# ------------------------------------------------------------------------------------------------------- other words


@pytest.mark.parametrize("name", sorted({*LLAMA, "llada"}))
def test_quantised_weights_are_refused_by_their_field(name, tmp_path):
    refused(tmp_path, name, "quantization_config", quantization_config={"quant_method": "fp8"})


@pytest.mark.parametrize("name", LLAMA)
def test_windows_are_refused(name, tmp_path):
    refused(tmp_path, name, "use_sliding_window", use_sliding_window=True)
    kinds = ["full_attention", "sliding_attention"]
    refused(tmp_path, name, "'layer_types' has 'sliding_attention'", layer_types=kinds)
    open_ = ["full_attention"] * LAYOUTS[name].config["num_hidden_layers"]
    assert torch.equal(said(tmp_path / "a", name, layer_types=open_), said(tmp_path / "b", name))


def test_quantised_bases_are_refused(tmp_path):
    base(tmp_path, "qwen3")
    changed(tmp_path, model_type="a2d-qwen3", mask_token_id=7, quantization_config={"quant_method": "fp8"})
    with pytest.raises(ValueError, match="quantization_config"):
        runs.load(tmp_path)


def test_lladas_feed_forward_may_be_said_as_a_ratio(tmp_path):
    values = LAYOUTS["llada"].config | {"mlp_hidden_size": 96, "mlp_ratio": 3}
    layout = LAYOUTS["llada"]
    layout.write(tmp_path, mlp_hidden_size=96)
    wanted = runs.load(tmp_path).denoiser.logits(ids())
    (tmp_path / "config.json").write_text(json.dumps(values | {"mlp_hidden_size": None}))
    assert torch.equal(runs.load(tmp_path).denoiser.logits(ids()), wanted)
    refused(tmp_path, "llada", "rope_full_precision", rope_full_precision=False)
    refused(tmp_path, "llada", "rope_scaling", rope_scaling={"type": "linear"})


@pytest.mark.parametrize("said_so", [None, 1, [1, 1]])
def test_every_layer_of_llada_moe_has_experts_unless_it_says_otherwise(said_so, tmp_path):
    wanted = said(tmp_path / "a", "llada_moe")
    assert torch.equal(said(tmp_path / "b", "llada_moe", moe_layer_freq=said_so), wanted)
    assert torch.equal(said(tmp_path / "c", "llada_moe", drop=["moe_layer_freq"]), wanted)
    for wrong in (2, 0, "1"):
        refused(tmp_path, "llada_moe", "moe_layer_freq", moe_layer_freq=wrong)


def test_shares_of_llada_moes_experts_are_never_made_to_sum_to_one(tmp_path):
    wanted = said(tmp_path / "a", "llada_moe")
    for value in (True, False):
        assert torch.equal(said(tmp_path / "b", "llada_moe", norm_topk_prob=value), wanted)


def test_shared_experts_of_llada_moe_are_refused(tmp_path):
    refused(tmp_path, "llada_moe", "'num_shared_experts' is 1", num_shared_experts=1)
    wanted = said(tmp_path / "a", "llada_moe")
    for none in (None, 0):
        assert torch.equal(said(tmp_path / "b", "llada_moe", num_shared_experts=none), wanted)


@families
def test_several_ends_of_text_and_no_padding(name, tmp_path):
    if name == "smdm":
        pytest.skip("lit-gpt's config names none")
    facts = load(tmp_path / "a", name, eos_token_id=[7, 8], pad_token_id=-1).denoiser.facts
    assert (facts.eos_id, facts.pad_id) == (7, EOS)  # the tokenizer has the other
    for wrong in ([], [-2], [64, 1], [True], -2):
        refused(tmp_path, name, "'eos_token_id' is", eos_token_id=wrong)


@pytest.mark.parametrize(("positions", "trained"), [(64, 64), (131072, 2048)])
def test_dream_was_trained_on_fewer_positions_than_its_base_has(positions, trained, tmp_path):
    assert load(tmp_path, "dream", max_position_embeddings=positions).context == trained


# ------------------------------------------------------------------------------------------------------- tied heads

HEADS = {"llada": ("model.transformer.ff_out.weight", "model.transformer.wte.weight")}
HEADS |= dict.fromkeys(("llada2", "llada2_merged"), ("lm_head.weight", "model.word_embeddings.weight"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in LAYOUTS if LAYOUTS[name].tied])
def test_a_tied_head_that_is_stored_too(name, dtype, tmp_path, monkeypatch):
    layout, tied = LAYOUTS[name], {LAYOUTS[name].tied: True}
    head, table = HEADS.get(name, ("lm_head.weight", "model.embed_tokens.weight"))
    layout.write(tmp_path / "once", dtype, **tied)
    wanted = runs.load(tmp_path / "once", family=layout.asked).denoiser
    layout.write(tmp_path / "hub", dtype, **tied)
    rewrite_with(tmp_path / "hub", lambda tensors: tensors.update({head: tensors[table].clone()}))
    monkeypatch.setattr(family_base, "READ", 1000)
    lm = runs.load(tmp_path / "hub", family=layout.asked)
    assert lm.denoiser.backbone.lm_head is None
    assert torch.equal(lm.denoiser.logits(ids()), wanted.logits(ids()))
    lm.save(tmp_path / "again")
    assert contents(tmp_path / "again")["model.safetensors"] == contents(tmp_path / "hub")["model.safetensors"]
    lm.denoiser.backbone.model.embed_tokens.weight.zero_()
    lm.save(tmp_path / "trained")
    assert not load_file(tmp_path / "trained/model.safetensors")[head].any()
    for change in (lambda one: one.where(torch.arange(len(one))[:, None] < 63, -one), lambda one: one[:-1].clone()):
        rewrite_with(tmp_path / "hub", lambda tensors, change=change: tensors.update({head: change(tensors[table])}))
        with pytest.raises(ValueError, match=rf"{head} is not {table}, which the config ties it to"):
            runs.load(tmp_path / "hub", family=layout.asked)


def rewrite_with(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def changed(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_converted_models_tied_head_that_is_stored_too(tmp_path):
    base(tmp_path, "qwen3")
    changed(tmp_path, model_type="a2d-qwen3", mask_token_id=7)
    wanted = runs.load(tmp_path).denoiser.logits(ids())
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    lm = runs.load(tmp_path)
    assert torch.equal(lm.denoiser.logits(ids()), wanted)
    lm.save(tmp_path / "again")
    assert "lm_head.weight" in load_file(tmp_path / "again/model.safetensors")


# ------------------------------------------------------------------------------------------------------ blocks by name


def test_a_bd3lm_of_dllms_is_known_by_the_name_of_its_repository(tmp_path):
    base(tmp_path, "qwen3")
    changed(tmp_path, model_type="a2d-qwen3", mask_token_id=7)

    def meaning(repository="", folder=tmp_path):
        found = released.load(folder, repository=repository)[0].meaning
        return found.attention, found.block, found.shift, found.process.to_dict()

    noise = masked(64, mask_id=7).to_dict()
    assert meaning() == meaning("dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1") == ("full", None, False, noise)
    name = "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1"
    assert meaning(name) == ("block", 32, False, noise)
    LM(*released.load(tmp_path, repository=name)).save(tmp_path / "again")
    assert meaning(folder=tmp_path / "again") == meaning(name), "the name is no longer known"
    changed(tmp_path, diffusion={"attention": "block", "block": 4})
    assert meaning() == meaning(name) == ("block", 4, False, noise)
    changed(tmp_path, diffusion={})
    assert meaning(name) == ("full", None, False, noise)
    for wrong in (3, [], "block"):
        changed(tmp_path, diffusion=wrong)
        with pytest.raises(ValueError, match=r"field 'diffusion' is .*, expected an object"):
            meaning()


def test_a_mask_that_neither_the_config_nor_the_tokenizer_names(tmp_path):
    with pytest.raises(
        ValueError, match=r"no field 'mask_token_id', and .*'<\|mask\|>', id None, is none of 64 tokens"
    ):
        a2d.meaning_of(Fields(tmp_path / "config.json", {}), 64)


# ------------------------------------------------------------------------------------------------ texts beside others


@pytest.mark.parametrize("name", [name for name in LAYOUTS if LAYOUTS[name].block is None])
def test_a_text_packed_behind_another_is_answered_for_by_itself(name, tmp_path):
    denoiser, z = wide(tmp_path, name), ids(2)
    other = z.clone()
    other[:, :5] = (other[:, :5] + 7) % M
    apart = {"segments": (torch.arange(13) >= 5).long().expand(2, -1)}
    same(denoiser.logits(z, apart)[:, 5:], denoiser.logits(other, apart)[:, 5:], 1e-12)
    same(denoiser.logits(z, apart)[:, 5:], denoiser.logits(z[:, 5:]), 1e-9)
    assert not torch.allclose(denoiser.logits(z)[:, 5], denoiser.logits(other)[:, 5], atol=1e-3)


@pytest.mark.parametrize("name", ["llada2", "llada2_merged", "sdar"])
def test_a_block_is_of_positions_wherever_the_text_stands(name, tmp_path):
    denoiser, z = wide(tmp_path, name, block_size=4), ids(2)
    before = torch.cat([torch.full((2, 3), EOS), z], dim=1)
    told = {"segments": (torch.arange(16) < 3).long().expand(2, -1), "positions": (torch.arange(16) - 3).clamp(0)}
    same(denoiser.logits(before, told)[:, 3:], denoiser.logits(z), 1e-9)
    told["positions"] = told["positions"].expand(2, -1)
    same(denoiser.logits(before, told)[:, 3:], denoiser.logits(z), 1e-9)
    assert not torch.allclose(denoiser.logits(before, {"segments": told["segments"]})[:, 3:], denoiser.logits(z))


@families
def test_a_shadow_of_shifted_logits_is_refused(name, tmp_path):
    lm, shift = load(tmp_path, name), LAYOUTS[name].shift
    assert lm.denoiser.facts.shifted is shift
    how = {"length": 8, "seed": 0, "block": None if LAYOUTS[name].block else 8}
    if not shift:
        lm.generate("cdeg", sampler="wino:tau=0,verify=0.9", **how)
        return
    with pytest.raises(ValueError, match=r"logits are shifted.*'wino:verify=0'"):
        lm.generate("cdeg", sampler="wino:tau=0,verify=0.9", **how)
    lm.generate("cdeg", sampler="wino:tau=0.3,verify=0", **how)
    assert FAMILIES[name].decoding["sampler"] != "wino"
