"""Released checkpoints: tiny ones of every family are read strictly, written back bit for bit, and used."""

import math

import pytest
import torch
from parity.released import BD3, LAYOUTS, MDLM, UDLM, UNIFORM, B, K, L, Layout, layouts, load, shapes, write
from safetensors.torch import load_file, save_file

from redraft import processes, runs
from redraft.data import build_tokenizer, pretrained
from redraft.models import Transformer, TransformerConfig, folder
from redraft.models.released import FAMILIES


@layouts
def test_what_a_folder_is_taken_for(name, tmp_path):
    layout = LAYOUTS[name]
    lm = load(tmp_path, layout)
    stored = lm.process.to_dict()
    wanted = {"name": "masked"} | layout.process
    assert {key: stored[key] for key in wanted} == wanted
    assert stored["schedule"] == {"name": "linear"}
    assert (lm.process.K, lm.process.mask_id) == ((layout.states, None) if wanted == UNIFORM else (K, K))
    facts = lm.denoiser.facts
    assert facts.posterior == "cavity"
    assert facts.time_conditioned == (layout.clock != "nothing")
    assert (facts.attention, facts.block) == (layout.pattern, 2 if layout.pattern == "block" else None)
    assert facts.scores == (layout.family == "sedd")
    assert facts.mask_id == lm.process.mask_id
    assert (lm.about["family"], lm.context) == (layout.family, L)
    assert not lm.denoiser.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@layouts
def test_saving_back_is_bit_identical(name, dtype, tmp_path):
    layout = LAYOUTS[name]
    write(tmp_path / "hub", layout, dtype=dtype)
    runs.load(tmp_path / "hub").save(tmp_path / "again")
    before, after = (load_file(tmp_path / one / "model.safetensors") for one in ("hub", "again"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key].dtype == dtype
        assert torch.equal(value, after[key]), key
    assert (tmp_path / "hub/config.json").read_bytes() == (tmp_path / "again/config.json").read_bytes()
    assert (tmp_path / "hub/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()
    assert runs.load(tmp_path / "again").tokenizer.K == K


def rewrite(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn, torch.bfloat16])
def test_a_weight_of_another_precision_is_refused(dtype, tmp_path):
    write(tmp_path, LAYOUTS["mdlm"])
    key = "backbone.blocks.1.attn_qkv.weight"
    rewrite(tmp_path, lambda tensors: tensors.update({key: tensors[key].to(dtype)}))
    with pytest.raises(ValueError, match=f"{key} is {dtype}.* convert"):
        runs.load(tmp_path)


@layouts
def test_keys_are_matched_strictly(name, tmp_path):
    layout = LAYOUTS[name]
    for key in {layout.prefix + "blocks.1.attn_qkv.weight", layout.prefix + min(shapes(layout), key=len)}:
        rewrite(write(tmp_path, layout), lambda tensors, key=key: tensors.pop(key))
        with pytest.raises(ValueError, match=rf"missing \['{key}'\], not expected none"):
            runs.load(tmp_path)
    rewrite(write(tmp_path, layout), lambda tensors: tensors.update({"noise.empty": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"missing none, not expected \['noise.empty'\]"):
        runs.load(tmp_path)
    key = layout.prefix + "output_layer.linear.bias"
    rewrite(write(tmp_path, layout), lambda tensors: tensors.update({key: torch.zeros(3)}))
    with pytest.raises(ValueError, match=rf"{key} has shape \(3,\), the config says \({layout.states},\)"):
        runs.load(tmp_path)


OPTIONAL = {"return_dict", "attn_backend", "sampling_eps_min", "sampling_eps_max", "cfg_num_classes", "var_min"}
FLAGS = {"adaln", "causal", "cross_attn", "cfg"}
"""Left out, they are what the released code takes them for: True, False, True and False."""


@pytest.mark.parametrize("name", ["mdlm", "bd3lm", "udlm", "udlm-guided", "duo", "sedd", "radd", "gidd"])
def test_every_field_is_checked(name, tmp_path):
    layout = LAYOUTS[name]
    needed = {key: key for key in layout.config.keys() - OPTIONAL - FLAGS - {"model_type", "graph", "noise", "model"}}
    for key in needed:
        config = {one: value for one, value in layout.config.items() if one != key}
        write(tmp_path, Layout(layout.family, config, layout.prefix))
        with pytest.raises(ValueError, match=f"no field '{key}'"):
            runs.load(tmp_path, family=layout.family)
    if "model" in layout.config:
        for key in layout.config["model"].keys() - ({"cond_dim"} if name == "radd" else set()):
            inner = {one: value for one, value in layout.config["model"].items() if one != key}
            write(tmp_path, layout, model=inner)
            with pytest.raises(ValueError, match=f"no field 'model.{key}'"):
                runs.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("mdlm", {"vocab_size": "14"}, "'vocab_size' is '14', expected int"),
        ("mdlm", {"n_blocks": True}, "'n_blocks' is True, expected int"),
        ("mdlm", {"n_blocks": 0}, "'n_blocks' is 0, expected at least 1"),
        ("mdlm", {"n_heads": 5}, "width 16 in 5 heads"),
        ("mdlm", {"time_conditioning": 1}, "'time_conditioning' is 1, expected bool"),
        ("mdlm", {"mask_token_id": 14}, "'mask_token_id' is 14, expected an id below vocab_size 14"),
        ("mdlm", {"model_type": "mamba"}, "'mamba' is not supported; known are 'redraft' and .* mdlm, bd3lm, udlm"),
        ("bd3lm", {"block_size": 4}, "block_size 4 does not divide model_length 6"),
        ("udlm", {"cfg": True}, "'cfg_num_classes' is -1"),
        ("duo", {"causal": True}, "'causal' is True"),
        ("sedd", {"graph": {"type": "uniform"}}, "'graph.type' is 'uniform'; released checkpoints have 'absorb'"),
        ("sedd", {"noise": {"type": "geometric"}}, "'noise.type' is 'geometric'"),
        ("gidd", {"p_uniform": 1.0}, "'p_uniform' is 1.0"),
        ("gidd", {"model_type": "gidd"}, "'gidd' is not supported"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(name, changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs.load(write(tmp_path, LAYOUTS[name], **changed))


def test_fields_the_released_code_has_a_value_for_may_be_left_out(tmp_path):
    config = {key: value for key, value in BD3.items() if key not in FLAGS | OPTIONAL}
    assert load(tmp_path, Layout("bd3lm", config, B, bounds=True)).denoiser.facts.block == 2


def test_the_family_comes_from_the_config_the_caller_or_last_the_name(tmp_path, monkeypatch):
    nameless = Layout("mdlm", {key: value for key, value in MDLM.items() if key != "model_type"}, B)
    write(tmp_path, nameless)
    with pytest.raises(ValueError, match=r"model_type None is not supported.*pass family="):
        runs.load(tmp_path)
    assert runs.load(tmp_path, family="mdlm").about["family"] == "mdlm"
    with pytest.raises(ValueError, match="unknown family 'mdln'; did you mean 'mdlm'"):
        runs.load(tmp_path, family="mdln")

    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: asked.append(how) or str(tmp_path))
    assert runs.load("kuleshov-group/mdlm-owt").about["family"] == "mdlm"
    fetched = {"allow_patterns": ["*.json", "*.safetensors", "*.jinja", "merges.txt"], "ignore_patterns": ["*/*"]}
    assert asked == [fetched], "no code is fetched, nor a pickle"
    with pytest.raises(ValueError, match="could be mdlm or duo"):
        runs.load("someone/duo_and_mdlm")
    write(tmp_path, LAYOUTS["udlm"])
    assert runs.load("someone/mdlm-owt").about["family"] == "udlm", "config.json counts more than a name"
    with pytest.raises(ValueError, match=r"missing .*read as family|no field"):
        runs.load(tmp_path, family="gidd")


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "last.ckpt"])
def test_pickles_are_never_read(pickled, tmp_path):
    (write(tmp_path, LAYOUTS["mdlm"]) / "model.safetensors").rename(tmp_path / pickled)
    with pytest.raises(ValueError, match=rf"model.safetensors: no such file. {pickled} is a pickle.*save_file"):
        runs.load(tmp_path)


def test_our_own_folders_take_neither_family_nor_tokenizer(tmp_path):
    model = Transformer(TransformerConfig(processes.masked(K).to_dict(), depth=1))
    folder.save(tmp_path, model.config, model.state_dict(), build_tokenizer("toy"), {"context": 6})
    assert runs.load(tmp_path).context == 6
    with pytest.raises(ValueError, match=r"family='mdlm': .* leave it out"):
        runs.load(tmp_path, family="mdlm")
    with pytest.raises(ValueError, match="tokenizer='toy'"):
        runs.load(tmp_path, tokenizer="toy")


def test_whose_tokenizer(tmp_path):
    write(tmp_path / "with", LAYOUTS["mdlm"])
    write(tmp_path / "without", LAYOUTS["mdlm"], tokenizer=False)
    assert runs.load(tmp_path / "with").tokenizer.kind == "toy"
    assert runs.load(tmp_path / "without", tokenizer=str(tmp_path / "with")).tokenizer.kind == "toy"
    assert runs.load(tmp_path / "without", tokenizer=build_tokenizer("toy")).denoiser.facts.pad_id == 12
    with pytest.raises(ValueError, match=r"no tokenizer in it, and cannot load the tokenizer 'gpt2'.*pass tokenizer="):
        runs.load(tmp_path / "without")
    with pytest.raises(ValueError, match="the tokenizer has 257 tokens, the model 13"):
        runs.load(tmp_path / "with", tokenizer="bytes")
    write(tmp_path / "with", LAYOUTS["mdlm"], mask_token_id=3)  # a mask among the tokens, which this one does not know
    with pytest.raises(ValueError, match="the tokenizer's mask is id 13, the model's 3"):
        runs.load(tmp_path / "with")


def hugging_face_folder(path, words=11):
    """A folder as ``transformers`` leaves it: no mask, no padding, an end of text as its last id."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(words)} | {"<|endoftext|>": words}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", unk_token="<|endoftext|>")
    hf.save_pretrained(path)
    return path


def test_duo_pads_where_it_was_trained_to(tmp_path):
    source = str(hugging_face_folder(tmp_path / "gpt2", words=12))
    plain, padded = pretrained(source), pretrained(source, "[PAD]")
    assert (plain.K, plain.pad_id, plain.mask_id) == (13, None, 13)
    assert (padded.K, padded.pad_id, padded.mask_id) == (14, 13, 14), "[PAD] is a token of the model, [MASK] is none"
    assert FAMILIES["duo"].pad_token == "[PAD]"
    write(tmp_path / "duo", LAYOUTS["duo"], tokenizer=False)
    lm = runs.load(tmp_path / "duo", tokenizer=padded)
    assert (lm.tokenizer.K, lm.process.K, lm.denoiser.facts.pad_id) == (14, 14, 13)
    lm.save(tmp_path / "again")
    again = runs.load(tmp_path / "again")
    assert (again.tokenizer.K, again.denoiser.facts.eos_id, again.denoiser.facts.pad_id) == (14, 12, 13)


@layouts
def test_writes_and_measures(name, tmp_path):
    lm = load(tmp_path, LAYOUTS[name])
    causal = LAYOUTS[name].pattern == "causal"
    made = lm.generate("our dog", num=3, steps=None if causal else 3, seed=1)
    assert made.tokens.shape == (3, L)
    assert all(text.startswith("our dog") for text in made.texts)
    if lm.process.mask_id is not None:
        assert not bool((made.tokens == lm.process.mask_id).any())
    if lm.denoiser.facts.attention == "full":
        assert lm.infill("our [MASK] is your", steps=2).tokens.shape == (1, L)
    measured = lm.evaluate("toy", draws=1, rows=4)
    assert math.isfinite(measured.nats_per_token)
    assert measured.is_bound != causal


def test_ids_beyond_the_tokenizer_decode_to_nothing(tmp_path):
    lm = load(tmp_path, Layout("udlm", UDLM | {"vocab_size": K + 5}, B, clock="sigma"))
    assert lm.decode([0, K + 3]) == lm.decode([0])
