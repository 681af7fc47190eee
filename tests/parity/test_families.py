"""Large models' families: what their folders mean, what their networks compute, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from parity import plain
from parity.checkpoints import EOS, LAYOUTS, SDAR, VOCAB, M, tokenizer_files
from redraft import runs
from redraft.models import weights
from redraft.models.families import FAMILIES
from redraft.models.layers import Cache
from redraft.models.released import family_of
from redraft.sampling import sample

families = pytest.mark.parametrize("name", LAYOUTS)
PLAIN = {
    "llada": plain.llada, "dream": plain.llama, "llada_moe": plain.llada_moe, "llada2": plain.llada2,
    "llada2_merged": plain.llada2, "sdar": plain.llama, "diffullama": plain.llama, "illada": plain.llama,
    "smdm": plain.smdm,
}  # fmt: skip
SIZE = {"llada2": "block_size", "llada2_merged": "block_size", "sdar": "block_size"}
L = 13


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def load(folder, name, **changed):
    layout = LAYOUTS[name]
    return runs.load(layout.write(folder, **changed), family=layout.asked)


def wide(folder, name, **changed):
    return load(folder, name, **changed).denoiser.double()


def stored(folder):
    return {key: value.double().numpy() for key, value in load_file(folder / "model.safetensors").items()}


def ids(rows=1, length=L, seed=0):
    z = torch.randint(2, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
    return z.where(torch.arange(length) % 3 != 2, M)


def reads(name, length, block=None):
    block = block or LAYOUTS[name].block
    return np.ones((length, length), bool) if block is None else plain.blocks(length, block)


def plainly(folder, name, z, allowed, **changed):
    rows = [PLAIN[name](LAYOUTS[name].config | changed, stored(folder), row.numpy(), allowed) for row in z]
    rows = [plain.shifted(row) if LAYOUTS[name].shift else row for row in rows]
    return torch.from_numpy(np.stack(rows))


def same(a, b, atol=1e-6):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# ---------------------------------------------------------------------------------------------------------- networks


@families
def test_logits_are_those_of_the_plain_network(name, tmp_path):
    z = ids(2, 40)  # more than a block of the largest
    found = wide(tmp_path, name).logits(z)
    same(found, plainly(tmp_path, name, z, reads(name, 40)), 1e-9)


@pytest.mark.parametrize("name", SIZE)
@pytest.mark.parametrize("block", [1, 3, 8])
def test_blocks_are_of_the_size_that_the_config_says(name, block, tmp_path):
    denoiser = wide(tmp_path, name, **{SIZE[name]: block})
    assert (denoiser.facts.attention, denoiser.facts.block) == ("block", block)
    same(denoiser.logits(ids()), plainly(tmp_path, name, ids(), reads(name, L, block)), 1e-9)


@families
def test_tied_embeddings(name, tmp_path):
    tied = LAYOUTS[name].tied
    if tied is None:
        rewrite(LAYOUTS[name].write(tmp_path), lambda tensors: tensors.pop("lm_head.weight"))
        refused(tmp_path, name, r"missing \['lm_head.weight'\]")
        return
    lm = load(tmp_path / "tied", name, **{tied: True})
    assert lm.denoiser.backbone.lm_head is None
    lm.save(tmp_path / "again")
    assert sorted(load_file(tmp_path / "again/model.safetensors")) == sorted(stored(tmp_path / "tied"))
    found = lm.denoiser.double().logits(ids())
    same(found, plainly(tmp_path / "tied", name, ids(), reads(name, L), **{tied: True}), 1e-9)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("llada", {"include_qkv_bias": False, "n_kv_heads": 1}),
        ("llada_moe", {"moe_layer_freq": [0, 1]}),
        ("llada_moe", {"qk_layernorm": False, "num_experts_per_tok": 5}),
        ("llada2", {"first_k_dense_replace": 0, "num_shared_experts": 2}),
        ("llada2", {"rotary_dim": 16, "partial_rotary_factor": 1.0, "routed_scaling_factor": 1.0}),
        ("llada2", {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 3}),
        ("sdar", {"head_dim": 8, "rope_theta": 10_000, "rms_norm_eps": 1e-3}),
        ("smdm", {"n_query_groups": 1}),
        ("smdm", {"n_query_groups": 4}),
    ],
)
def test_fields_that_change_the_network(name, changed, tmp_path):
    found = wide(tmp_path, name, **changed).logits(ids())
    same(found, plainly(tmp_path, name, ids(), reads(name, L), **changed), 1e-9)


def transformers_class(name):
    import transformers

    kinds = {"dream": "Qwen2", "sdar": "Qwen3", "diffullama": "Llama", "illada": "Llama"}
    made = getattr(transformers, kinds[name] + "Config")
    fields = {key: value for key, value in LAYOUTS[name].config.items() if key not in ("model_type", "auto_map")}
    config = made(**fields, attn_implementation="eager")
    return getattr(transformers, kinds[name] + "ForCausalLM")(config).double().eval()


@pytest.mark.parametrize("name", ["dream", "sdar", "diffullama", "illada"])
def test_logits_are_those_of_transformers_own_class(name, tmp_path):
    denoiser, theirs = wide(tmp_path, name), transformers_class(name)
    tensors = {key: value.double() for key, value in load_file(tmp_path / "model.safetensors").items()}
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    theirs.load_state_dict(tensors)
    allowed = torch.from_numpy(reads(name, L))[None, None]
    mask = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, torch.finfo(torch.float64).min)
    said = theirs(ids(), attention_mask=mask).logits
    said = torch.cat([said[:, :1], said[:, :-1]], dim=1) if LAYOUTS[name].shift else said
    same(denoiser.logits(ids()), said, 1e-5)  # theirs takes norms and angles in float32, whatever the weights


@families
def test_padding_behind_is_not_read(name, tmp_path):
    denoiser, z = wide(tmp_path, name), ids(2)
    behind = torch.cat([z, torch.full((2, 4), EOS)], dim=1)
    apart = {"segments": (torch.arange(L + 4) >= L).long().expand(2, -1)}
    same(denoiser.logits(behind, apart)[:, :L], denoiser.logits(z), 1e-12)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if LAYOUTS[name].block is None])
def test_padding_before_is_not_read_and_moves_nothing(name, tmp_path):
    denoiser, z = wide(tmp_path, name), ids(2)
    before = torch.cat([torch.full((2, 3), EOS), z], dim=1)
    wanted = denoiser.logits(z)
    same(denoiser.logits(before, {"segments": (torch.arange(L + 3) < 3).long().expand(2, -1)})[:, 3:], wanted, 1e-9)
    first = 4 if LAYOUTS[name].shift else 3  # unless it is told so, the first token is answered for by another
    wanted = wanted[:, first - 3 :]
    attend = (torch.arange(L + 3) >= 3).expand(2, L + 3, -1)
    same(denoiser.logits(before, {"attend": attend})[:, first:], wanted, 1e-9)
    assert not torch.allclose(denoiser.logits(before)[:, first:], wanted, atol=1e-3)


@families
def test_rows_do_not_know_of_each_other(name, tmp_path):
    denoiser, z = wide(tmp_path, name), ids(5)
    alone = torch.cat([denoiser.logits(row[None]) for row in z])
    same(denoiser.logits(z), alone, 1e-12)
    where = torch.rand(z.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    same(denoiser.logits(z, where=where), alone[where], 1e-12)


@pytest.mark.parametrize("name", SIZE)
def test_a_block_models_cache_is_exact(name, tmp_path):
    denoiser, z = wide(tmp_path, name, **{SIZE[name]: 4}), ids(2, 16)
    whole, cache = denoiser.logits(z), Cache()
    for start in range(0, 16, 4):
        own = torch.arange(start, start + 4)
        told = {"cache": cache, "positions": own, "store": False}
        same(denoiser.logits(z[:, own], told), whole[:, own], 1e-12)
        denoiser.logits(z[:, own], told | {"store": True})
    assert cache.keys[0].shape[2] == 16


@pytest.mark.parametrize("name", SIZE)
def test_texts_written_with_the_cache_are_those_written_without(name, tmp_path, monkeypatch):
    denoiser = wide(tmp_path, name, **{SIZE[name]: 4})
    how = {"prompt": [3, 14, 15, 9, 2], "length": 11, "sampler": "threshold:tau=0.3", "temperature": 0.0}
    kept = sample(denoiser.process, denoiser, **how)
    monkeypatch.setattr(denoiser.backbone.__class__, "depth", None)
    plainly_written = sample(denoiser.process, denoiser, **how)
    assert kept.tokens.tolist() == plainly_written.tokens.tolist()
    assert kept.cost.cached > 0 == plainly_written.cost.cached


# ------------------------------------------------------------------------------------------------------------- facts


@families
def test_what_a_folder_is_taken_for(name, tmp_path):
    layout, lm = LAYOUTS[name], load(tmp_path, name)
    facts = lm.denoiser.facts
    assert lm.about["family"] == name
    assert (facts.mask_id, lm.process.mask_id, lm.process.K) == (layout.mask, layout.mask, VOCAB)
    assert (facts.attention, facts.block) == ("full" if layout.block is None else "block", layout.block)
    assert (lm.denoiser.meaning.shift, facts.time_conditioned, facts.caches) == (layout.shift, False, True)
    assert (facts.eos_id, facts.pad_id) == (EOS, EOS)
    assert lm.context == 64
    logp = lm.denoiser(ids(), torch.full((1,), 0.5))
    same(logp.exp().sum(-1), torch.ones(1, L), 1e-5)


@families
def test_ids_that_the_config_names_count_more_than_the_tokenizers(name, tmp_path):
    if name == "smdm":
        pytest.skip("lit-gpt's config names none")
    facts = load(tmp_path, name, eos_token_id=7, pad_token_id=8).denoiser.facts
    assert (facts.eos_id, facts.pad_id) == (7, 8)
    with pytest.raises(ValueError, match=f"'eos_token_id' is {VOCAB}, expected the id of a token"):
        load(tmp_path, name, eos_token_id=VOCAB)


@families
def test_its_authors_way_to_write_runs(name, tmp_path):
    family, lm = FAMILIES[name], load(tmp_path, name)
    assert family.decoding
    assert "\n" not in (family.reads.__doc__ or "\n")
    how = dict(family.decoding) | {"length": 12, "block": None if LAYOUTS[name].block else family.decoding.get("block")}
    written = lm.generate("cdeg", seed=0, **how)
    assert written.tokens.shape == (1, 16)
    assert not bool((written.tokens == lm.process.mask_id).any())


@pytest.mark.parametrize(
    ("name", "token", "stated", "rows"),
    [
        ("llada_moe", "<|mask|>", 156895, 157184),
        ("llada2", "<|mask|>", 156895, 157184),
        ("sdar", "<|MASK|>", 151669, 151936),
        ("illada", "<[MASK]>", 5, VOCAB),
        ("diffullama", None, 811, 32000),
    ],
)
def test_a_mask_that_the_config_does_not_name(name, token, stated, rows, tmp_path):
    config = {key: value for key, value in LAYOUTS[name].config.items() if key != "mask_token_id"}

    def mask():
        from redraft.models.families.base import Fields

        read = FAMILIES[name].reads(Fields(tmp_path / "config.json", config | {"vocab_size": rows}))
        with torch.device("meta"):
            return read.build().process.mask_id

    assert mask() == stated
    if token is not None:
        declared = {"added_tokens_decoder": {"9": {"content": token}}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(declared))
        assert mask() == 9, "the checkpoint's own files say otherwise"
    if stated > 5:
        rows = VOCAB
        (tmp_path / "tokenizer_config.json").write_text("{}")
        with pytest.raises(ValueError, match="mask_token_id"):
            mask()
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    if token is not None:
        with pytest.raises(ValueError, match=r"tokenizer_config.json: damaged"):
            mask()


def family(config, **more):
    return family_of("config.json", config, **more).name


def test_two_families_of_one_model_type(tmp_path):
    llada, moe = LAYOUTS["llada"].config, LAYOUTS["llada_moe"].config
    assert (family(llada), family(moe)) == ("llada", "llada_moe")
    nameless = [{key: value for key, value in one.items() if key != "architectures"} for one in (llada, moe)]
    assert [family(one) for one in nameless] == ["llada", "llada_moe"]
    assert family({"model_type": "llada", "architectures": ["LLaDAMoEModelLM"]}) == "llada_moe"
    both = llada | {"num_experts": 8}
    with pytest.raises(ValueError, match="could be llada or llada_moe; pass family="):
        family(both)
    assert family(both, family="llada") == "llada"
    with pytest.raises(ValueError, match=r"model_type 'llada' alone does not tell .* pass family= if it is illada"):
        family({"model_type": "llada", "hidden_size": 32})


def test_a_model_type_of_autoregressive_models_needs_a_name(tmp_path):
    config = LAYOUTS["diffullama"].config
    with pytest.raises(ValueError, match=r"model_type 'llama' alone does not tell .* if it is illada or diffullama"):
        family(config)
    with pytest.raises(ValueError, match="'llama' alone"):
        family(config, repository="meta-llama/Llama-2-7b")
    assert family(config, repository="diffusionfamily/diffullama") == "diffullama"
    assert family(config, repository="GSAI-ML/iLLaDA-8B-Base") == "illada"
    assert family(config, family="diffullama") == "diffullama"
    assert family(LAYOUTS["sdar"].config, repository="diffusionfamily/diffullama") == "sdar"
    with pytest.raises(ValueError, match="'qwen2' is not supported"):
        family(config | {"model_type": "qwen2"}, repository="diffusionfamily/diffullama")


def test_a_block_that_the_config_does_not_name(tmp_path):
    LAYOUTS["sdar"].write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in SDAR.items() if k != "block_size"}))
    assert runs.load(tmp_path).denoiser.facts.block == 4


def test_experts_of_sdar_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"'sdar_moe' is not supported.*read as family 'sdar'"):
        load(tmp_path, "sdar", model_type="sdar_moe", num_experts=8)


UNSUPPORTED = {
    "llada": [("alibi", True), ("rope", False), ("block_type", "sequential"), ("input_emb_norm", True)],
    "dream": [("rope_scaling", {"type": "linear"}), ("use_sliding_window", True), ("use_mrope", True)],
    "llada_moe": [
        ("rope_scaling", {"type": "yarn"}), ("clip_qkv", 8), ("shared_expert_intermediate_size", 16),
        ("moe_router_enable_expert_bias", True), ("moe_layer_freq", [1]), ("moe_layer_freq", [1, 2]),
        ("attention_bias", True), ("partial_rotary_factor", 0.5), ("moe_router_score_function", "sigmoid"),
        ("routed_scaling_factor", 2.5), ("hidden_act", "gelu"),
    ],
    "llada2": [
        ("rope_scaling", {"type": "yarn"}), ("use_sliding_window", True), ("score_function", "softmax"),
        ("use_qkv_bias", True), ("use_bias", True), ("norm_head", True), ("use_rmsnorm", False),
        ("rotary_dim", 4), ("n_group", 3), ("first_k_dense_replace", -1), ("block_size", 0),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1.0}),
    ],
    "llada2_merged": [("using_split_qkv_in_self_attention", True), ("use_qk_norm", False)],
    "sdar": [("use_sliding_window", True), ("attention_bias", True), ("hidden_act", "gelu"), ("block_size", True)],
    "diffullama": [("rope_scaling", {"type": "dynamic"}), ("mlp_bias", True), ("pretraining_tp", 2)],
    "illada": [("attention_bias", True), ("rope_scaling", {"type": "linear"})],
    "smdm": [
        ("bias", True), ("parallel_residual", True), ("rotary_percentage", 0.25), ("_mlp_class", "GptNeoxMLP"),
        ("_norm_class", "LayerNorm"), ("shared_attention_norm", True), ("condense_ratio", 2),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "field", "value"), [(name, *one) for name in UNSUPPORTED for one in UNSUPPORTED[name]]
)
def test_fields_that_mean_what_is_not_done_are_refused(name, field, value, tmp_path):
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(layout.config | {field: value}))
    with pytest.raises(ValueError, match=rf"{field.split('_')[0]}.*read as family '{name}'"):
        runs.load(tmp_path, family=layout.asked)


def test_a_base_of_angles_as_transformers_5_writes_it(tmp_path):
    plain_config = {key: value for key, value in SDAR.items() if key not in ("rope_theta", "rope_scaling")}
    new = plain_config | {"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}}
    LAYOUTS["sdar"].write(tmp_path)
    wanted = runs.load(tmp_path).denoiser.logits(ids())
    (tmp_path / "config.json").write_text(json.dumps(new))
    assert torch.equal(runs.load(tmp_path).denoiser.logits(ids()), wanted)


# ------------------------------------------------------------------------------------------------------------- files


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@families
def test_saved_and_loaded_and_saved_it_is_the_same_to_the_bit(name, dtype, tmp_path):
    layout = LAYOUTS[name]
    layout.write(tmp_path / "hub", dtype)
    for source, target in (("hub", "once"), ("once", "twice")):
        runs.load(tmp_path / source, family=layout.asked).save(tmp_path / target)
    hub, once, twice = (contents(tmp_path / one) for one in ("hub", "once", "twice"))
    assert once == twice
    assert {name: once[name] for name in ("config.json", "model.safetensors")} == {
        name: hub[name] for name in ("config.json", "model.safetensors")
    }


def in_two(folder):
    """The folder's weights in two files with an index, the later half of the keys first."""
    tensors = load_file(folder / "model.safetensors")
    keys, index = sorted(tensors), {}
    for number, part in enumerate((keys[len(keys) // 2 :], keys[: len(keys) // 2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    total = sum(value.nbytes for value in tensors.values())
    (folder / weights.INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    return folder, total


@families
def test_in_two_shards_too(name, tmp_path, monkeypatch):
    layout = LAYOUTS[name]
    wanted = load(tmp_path / "one", name).denoiser.state_dict()
    folder, total = in_two(layout.write(tmp_path / "hub"))
    found = runs.load(folder, family=layout.asked)
    assert all(torch.equal(value, wanted[key]) for key, value in found.denoiser.state_dict().items())
    monkeypatch.setattr(weights, "MAX_SHARD", total * 3 // 5)
    found.save(tmp_path / "once")
    runs.load(tmp_path / "once", family=layout.asked).save(tmp_path / "twice")
    once, twice = contents(tmp_path / "once"), contents(tmp_path / "twice")
    assert once == twice
    assert sum(file.endswith(".safetensors") for file in once) == 2


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refused(folder, name, message):
    with pytest.raises(ValueError, match=message):
        runs.load(folder, family=LAYOUTS[name].asked)


@families
def test_every_key_and_shape_is_checked(name, tmp_path):
    shapes = LAYOUTS[name].shapes(LAYOUTS[name].config)
    for key in (min(shapes), max(shapes), next(key for key in shapes if "mlp" in key or "ff_proj" in key)):
        rewrite(LAYOUTS[name].write(tmp_path), lambda tensors, key=key: tensors.update({key + "x": tensors.pop(key)}))
        refused(tmp_path, name, rf"missing \['{key}'\], not expected \['{key}x'\]")
        rewrite(
            LAYOUTS[name].write(tmp_path),
            lambda tensors, key=key: tensors.update({key: torch.cat([tensors[key], tensors[key][:1]])}),
        )
        refused(tmp_path, name, rf"{key} has shape \({shapes[key][0] + 1},.*the config says \({shapes[key][0]},")


@families
def test_a_shard_cut_off_or_missing_is_refused(name, tmp_path):
    folder, _ = in_two(LAYOUTS[name].write(tmp_path))
    second = folder / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-5])
    refused(tmp_path, name, "model-00002-of-00002.safetensors: damaged")
    second.unlink()
    refused(tmp_path, name, "model-00002-of-00002.safetensors: no such file")


@families
def test_a_pickle_is_refused(name, tmp_path):
    folder = LAYOUTS[name].write(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(tmp_path, name, "pytorch_model.bin is a pickle")


@families
def test_code_in_the_folder_is_never_run(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    classes = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "modeling_trap.Trap")
    LAYOUTS[name].write(tmp_path, auto_map=classes)
    marker = tmp_path / "ran"
    for file in ("modeling_trap.py", "configuration_trap.py", "tokenization_trap.py", "__init__.py"):
        (tmp_path / file).write_text(f"open({str(marker)!r}, 'w')\nraise SystemExit('code of a checkpoint was run')\n")
    words = json.loads((tmp_path / "tokenizer_config.json").read_text())
    words |= {"auto_map": {"AutoTokenizer": ["tokenization_trap.Trap", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(words))
    lm = runs.load(tmp_path, family=LAYOUTS[name].asked)
    lm.generate("cd", length=3, steps=1)
    lm.save(tmp_path / "again")
    assert not marker.exists()
    assert not [path for path in (tmp_path / "again").iterdir() if path.suffix == ".py"]


@families
def test_a_mask_that_the_tokenizer_lacks(name, tmp_path):
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    if name == "smdm":  # its mask is appended to whatever the tokenizer has, which must not be too much
        tokenizer_files(tmp_path, vocab=VOCAB + 1, mask=None)
        refused(tmp_path, name, f"the tokenizer has {VOCAB + 1} tokens, the model {VOCAB}")
        return
    config = layout.config | {"mask_token_id": M}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer_files(tmp_path, vocab=30, mask=None)
    refused(tmp_path, name, f"the model's mask is id {M}, and the tokenizer has no such token; pass tokenizer=")
    tokenizer_files(tmp_path, mask=M - 1)
    words = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"mask_token": "<|mask|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(words))
    refused(tmp_path, name, f"the tokenizer's mask is id {M - 1}, the model's {M}")
