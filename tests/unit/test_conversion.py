"""Converting a causal folder, storing it, and training it on."""

import json
import shutil

import pytest
import torch
from parity import released
from parity.bases import OWN, STYLES, base
from parity.borrowed import BERT, bert_shapes
from parity.checkpoints import tokenizer_files, write
from parity.released import LAYOUTS
from safetensors.torch import load_file, save_file

import redraft as rd
from redraft import runs
from redraft.cli import app
from redraft.conversion import convert
from redraft.models.backbone import BackboneDenoiser
from redraft.models.decoder import Decoder

IDS = torch.randint(2, 60, (2, 8), generator=torch.Generator().manual_seed(3))
SIZE = 64


def said(lm):
    with torch.no_grad():
        return lm.denoiser.logits(IDS)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


# -------------------------------------------------------------------------------------------------------- the folder


@pytest.mark.parametrize("style", STYLES)
def test_what_is_stored_is_what_was_converted(style, tmp_path):
    base(tmp_path / "base", style)
    lm = rd.convert(tmp_path / "base", to="masked", shift=True, out=tmp_path / "a")
    again = rd.load(tmp_path / "a")
    assert isinstance(again.denoiser, BackboneDenoiser)
    assert isinstance(again.denoiser.backbone, Decoder) == (style in OWN)
    assert torch.equal(said(again), said(lm))
    assert (again.process.to_dict(), again.denoiser.facts) == (lm.process.to_dict(), lm.denoiser.facts)
    assert again.generate("cde", length=4, steps=2, seed=1).texts == lm.generate("cde", length=4, steps=2, seed=1).texts
    again.save(tmp_path / "b")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    theirs, ours = (load_file(tmp_path / part / "model.safetensors") for part in ("base", "a"))
    assert theirs.keys() == ours.keys()
    grown = {name for name in ours if ours[name].shape != theirs[name].shape}
    assert all(torch.equal(ours[name][: len(theirs[name])], theirs[name]) for name in theirs)
    assert grown == {name for name in ours if "embed_tokens" in name or "wte" in name or "lm_head" in name}
    stored, was = config_of(tmp_path / "a"), config_of(tmp_path / "base")
    assert stored["model_type"] == f"a2d-{style}"
    assert {key: stored[key] for key in was if key not in ("model_type", "vocab_size")} == {
        key: was[key] for key in was if key not in ("model_type", "vocab_size")
    }
    assert stored["diffusion"]["attention"] == "full"
    assert stored["diffusion"]["shift"] is True
    assert (stored["mask_token_id"], stored["vocab_size"]) == (SIZE, SIZE + 1)


def test_the_new_row_is_the_mean_of_the_tokens(tmp_path):
    base(tmp_path)
    convert(tmp_path, to="masked", out=tmp_path / "a")
    tensors, before = load_file(tmp_path / "a" / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(tensors[name][SIZE], before[name].mean(0))


def test_a_row_of_the_padding_is_taken_where_there_is_one(tmp_path):
    base(tmp_path, "qwen2", rows=80)
    lm = convert(tmp_path, to="masked", out=tmp_path / "a")
    name = "model.embed_tokens.weight"
    tensor, before = (load_file(folder / "model.safetensors")[name] for folder in (tmp_path / "a", tmp_path))
    assert tensor.shape == before.shape
    changed = (tensor != before).any(1).nonzero().flatten().tolist()
    assert changed == [SIZE]
    torch.testing.assert_close(tensor[SIZE], before[:SIZE].mean(0))
    assert (lm.process.K, lm.process.mask_id) == (SIZE, SIZE)
    assert config_of(tmp_path / "a")["vocab_size"] == 80
    assert torch.equal(said(rd.load(tmp_path / "a")), said(lm))
    with torch.no_grad():  # ids that are no tokens are never written
        assert lm.denoiser(IDS, torch.ones(2)).shape[-1] == SIZE


def test_a_token_that_is_there_becomes_the_mask_as_it_is(tmp_path):
    base(tmp_path)
    lm = convert(tmp_path, to="masked", mask_token="<|mask|>", out=tmp_path / "a")
    assert (lm.process.K, lm.process.mask_id, lm.tokenizer.mask_id) == (SIZE, 60, 60)
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "a"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert rd.load(tmp_path / "a").tokenizer.mask_id == 60
    with torch.no_grad():
        assert bool((lm.denoiser(IDS, torch.ones(2))[..., 60] == -torch.inf).all())


def test_a_tokenizer_with_a_mask_keeps_it(tmp_path):
    base(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"mask_token": "<|mask|>"}))
    lm = convert(tmp_path, to="masked")
    assert lm.process.mask_id == 60
    table = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(lm.denoiser.backbone.model.embed_tokens.weight, table)
    assert convert(tmp_path, to="masked", mask_token="<|mask|>").process.mask_id == 60
    with pytest.raises(ValueError, match="has a mask"):
        convert(tmp_path, to="masked", mask_token="c")


def _declares(folder, token):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"mask_token": token}))


@pytest.mark.parametrize(("style", "fields"), [("llama", {}), ("gpt2", {}), ("phi", {"hidden_size": 32})])
def test_a_mask_that_the_model_has_no_row_for_is_the_mean(style, fields, tmp_path, monkeypatch):
    """The tokenizer's own; its row is a function of the base alone, and its bias too, where a head has one."""
    monkeypatch.setitem(STYLES, "phi", STYLES["llama"])
    base(tmp_path / "base", style, **fields)
    tokenizer_files(tmp_path / "base", vocab=SIZE + 1, mask=SIZE)
    _declares(tmp_path / "base", "<|mask|>")
    before, found = load_file(tmp_path / "base" / "model.safetensors"), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        lm = convert(tmp_path / "base", to="masked", out=tmp_path / str(seed))
        assert (lm.process.mask_id, lm.process.K) == (SIZE, SIZE)
        found.append(load_file(tmp_path / str(seed) / "model.safetensors"))
    grown = [name for name in before if found[0][name].shape != before[name].shape]
    assert {"llama": 2, "gpt2": 1, "phi": 3}[style] == len(grown)
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name]), name
    for name in grown:
        torch.testing.assert_close(found[0][name][SIZE], before[name].mean(0))


def test_our_own_mask_is_the_mean_though_the_tokenizer_declares_it(tmp_path):
    """As in a folder whose tokenizer was stored after a conversion, and its row is the vocabulary's padding."""
    base(tmp_path, "qwen2", rows=80)
    rd.data.Tokenizer.load(tmp_path).save(tmp_path)
    convert(tmp_path, to="masked", out=tmp_path / "a")
    name = "model.embed_tokens.weight"
    tensor, before = (load_file(folder / "model.safetensors")[name] for folder in (tmp_path / "a", tmp_path))
    assert (tensor != before).any(1).nonzero().flatten().tolist() == [SIZE]
    torch.testing.assert_close(tensor[SIZE], before[:SIZE].mean(0))
    asked = convert(tmp_path, to="masked", mask_token="[MASK]").denoiser.backbone.model.embed_tokens.weight
    assert torch.equal(asked, before)  # named, it is taken as it is


def test_a_word_of_the_vocabulary_is_no_mask(tmp_path):
    base(tmp_path)
    with pytest.raises(ValueError, match=r"mask_token='c' is what the tokenizer writes 'c' as.*reserved"):
        convert(tmp_path, to="masked", mask_token="c")


def test_a_base_is_not_written_over(tmp_path):
    base(tmp_path / "base")
    before = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    (tmp_path / "link").symlink_to(tmp_path / "base")
    for out in (tmp_path / "base", tmp_path / "link", tmp_path / "a" / ".." / "base"):
        with pytest.raises(ValueError, match="another folder"):
            convert(tmp_path / "base", to="masked", out=out)
    assert {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "maskd"}, "did you mean 'masked'"),
        ({"to": "block"}, "block=None"),
        ({"to": "masked", "block": 4}, "block=4"),
        ({"to": "block", "block": 4, "shift": True}, "drop the shift"),
        ({"to": "uniform", "mask_token": "c"}, "leave it out"),
        ({"to": "masked", "mask_token": "<|rare|>"}, "no token"),
        ({"to": "masked", "mask_token": "[MASK]"}, "no token"),
        ({"to": "masked", "mask_token": "<|end|>"}, "ends texts"),
        ({"to": "masked", "dtype": "float31"}, "did you mean 'float32'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, tmp_path):
    base(tmp_path)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, **options, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def _without(folder, name):
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _with(folder, name):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})


def _pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _changed(folder, **values):
    (folder / "config.json").write_text(json.dumps(config_of(folder) | values))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: _without(folder, "model.norm.weight"), r"missing model\.norm\.weight"),
        (lambda folder: _with(folder, "model.extra.weight"), r"unexpected model\.extra\.weight"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"0" * 99), "cannot load"),
        (_pickled, "pickle"),
        (lambda folder: _changed(folder, hidden_size=48), "cannot load|do not fit"),
        (lambda folder: _changed(folder, model_type="mamba"), "mamba"),
        (lambda folder: _changed(folder, model_type="nothing"), "'nothing'"),
        (lambda folder: _changed(folder, model_type="Dream"), "denoises already"),
        (lambda folder: _changed(folder, model_type="a2d-llama"), "denoises already"),
        (lambda folder: _changed(folder, tie_word_embeddings=True), "its head is not its embedding"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    ],
)
def test_a_folder_that_is_none_is_refused(harm, message, tmp_path):
    base(tmp_path)
    harm(tmp_path)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, to="masked", out=tmp_path / "a")


def test_a_tokenizer_of_more_tokens_is_refused(tmp_path):
    base(tmp_path, tokens=70)
    with pytest.raises(ValueError, match="70 tokens, and the model 64"):
        convert(tmp_path, to="uniform")


def test_a_head_stored_twice_is_one(tmp_path):
    """As some tied checkpoints are released."""
    base(tmp_path, "qwen3")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    lm = convert(tmp_path, to="masked", out=tmp_path / "a")
    assert torch.equal(said(rd.load(tmp_path / "a")), said(lm))
    assert "lm_head.weight" not in load_file(tmp_path / "a" / "model.safetensors")


def test_precision_and_code_beside(tmp_path):
    base(tmp_path)
    _changed(tmp_path, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    lm = convert(tmp_path, to="masked", dtype="bfloat16", out=tmp_path / "a")
    assert lm.denoiser.backbone.model.norm.weight.dtype is torch.bfloat16
    assert rd.load(tmp_path / "a").denoiser.backbone.model.norm.weight.dtype is torch.bfloat16
    assert config_of(tmp_path / "a")["dtype"] == "bfloat16"
    assert "auto_map" not in config_of(tmp_path / "a")


def test_a_base_that_does_more_than_our_network_is_borrowed(tmp_path):
    scaled = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    more = [
        ("llama", {"rope_parameters": scaled}),
        ("llama", {"mlp_bias": True}),
        ("mistral", {"sliding_window": 4}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ]
    for number, (style, fields) in enumerate(more):
        folder = tmp_path / str(number)
        fields = {"rope_theta": None} | fields if "rope_parameters" in fields else fields
        base(folder, style, **fields)
        assert not isinstance(convert(folder, to="masked").denoiser.backbone, Decoder), (style, fields)


# --------------------------------------------------------------------------------------------------------- dllm's own


def test_a_folder_of_dllms_is_masked_in_place_and_open(tmp_path):
    base(tmp_path, "qwen3")
    _changed(tmp_path, model_type="a2d-qwen3")
    lm = rd.load(tmp_path)
    assert lm.denoiser.meaning.shift is False
    assert (lm.process.K, lm.process.mask_id, lm.denoiser.facts.attention) == (SIZE, 60, "full")
    _changed(tmp_path, mask_token_id=7)
    assert rd.load(tmp_path).process.mask_id == 7


@pytest.mark.parametrize(
    ("diffusion", "message"),
    [
        ({"process": {"name": "maskd", "K": 9}}, "did you mean 'masked'"),
        ({"process": {"name": "masked"}}, "describes no process"),
        ({"process": None}, "describes no process"),
        ({"process": {"name": "masked", "K": 90, "schedule": {"name": "linear"}}}, "at most 65 ids"),
        ({"attention": "causl"}, "attention"),
        ({"shift": "yes"}, "shift"),
        ({"block": 4}, "go together"),
        ({"attention": "block", "block": 0}, "at least 1"),
    ],
)
def test_what_was_decided_is_read_with_care(diffusion, message, tmp_path):
    base(tmp_path)
    convert(tmp_path, to="masked", out=tmp_path / "a")
    stored = config_of(tmp_path / "a")
    stored["diffusion"] |= diffusion
    (tmp_path / "a" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=message):
        rd.load(tmp_path / "a")


# ---------------------------------------------------------------------------------------------------------- training

LETTERS = "cdefghijkl"
TINY = {
    "objective": "nelbo", "train.steps": 30, "train.batch": 8, "train.lr": 3e-3, "train.warmup": 2, "train.decay": 0.0,
    "train.log_every": 1, "data.length": 12, "data.held_out": 0.2, "eval.draws": 2, "eval.rows": 8,
    "train.optimizer": "adamw",
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "letters.jsonl"
    lines = ((LETTERS * 3)[i % 10 : i % 10 + 10 + i // 20] for i in range(200))
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return path


@pytest.mark.parametrize(
    ("style", "to", "more"),
    [
        ("llama", {"to": "masked", "shift": True}, {"model.anneal": 10}),
        ("qwen2", {"to": "masked"}, {}),
        ("gpt2", {"to": "masked", "shift": True}, {"data.isolate_documents": True}),
        ("gemma3_text", {"to": "masked"}, {"train.ema": 0.5}),
        ("qwen3", {"to": "block", "block": 4}, {"objective": "bd3lm", "model.anneal": 10}),
        ("gpt2", {"to": "block", "block": 4}, {"objective": "bd3lm"}),
        ("llama", {"to": "uniform"}, {"objective": "udlm"}),
    ],
)
def test_a_converted_model_trains_on(style, to, more, text, tmp_path):
    base(tmp_path / "base", style)
    convert(tmp_path / "base", **to, out=tmp_path / "start")
    before = config_of(tmp_path / "start")
    options = {**TINY, "model.init": str(tmp_path / "start"), **more}
    run = rd.train("mdlm" if to["to"] == "masked" else rd.Config(), data=text, out=tmp_path / "run", overrides=options)
    again = rd.load(tmp_path / "run")
    assert torch.equal(said(again), said(run.lm))
    assert config_of(tmp_path / "run") == before
    written = again.generate("cde", length=6, steps=3, num=2, seed=1)
    assert len(written.texts) == 2
    assert again.process.mask_id not in written.tokens.flatten().tolist()
    first, last = (rd.load(tmp_path / one).evaluate(text, draws=4, rows=32) for one in ("start", "run"))
    assert last.nats_per_token < 0.9 * first.nats_per_token
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["recipe"]["model"]["attention"] == run.lm.denoiser.facts.attention


def test_a_run_that_was_cut_short_ends_as_one_that_was_not(text, tmp_path):
    """With dropout in the base's config, a pattern that opens, and Muon."""
    base(tmp_path / "base", "gpt2")
    convert(tmp_path / "base", to="masked", shift=True, out=tmp_path / "start")
    assert config_of(tmp_path / "start")["attn_pdrop"] > 0
    options = {
        **TINY,
        "model.init": str(tmp_path / "start"),
        "train.steps": 8,
        "model.anneal": 7,
        "train.save_every": 3,
    }
    options |= {"train.optimizer": "muon", "train.muon_lr": 1e-3}
    whole = rd.train("mdlm", data=text, out=tmp_path / "a", overrides=options)
    rd.train("mdlm", data=text, out=tmp_path / "b", overrides=options)
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-000008")
    resumed = rd.train("mdlm", data=text, out=tmp_path / "b", resume=True, overrides=options)
    for name, tensor in whole.lm.denoiser.state_dict().items():
        assert torch.equal(resumed.lm.denoiser.state_dict()[name], tensor), name
    same = rd.train("mdlm", data=text, out=tmp_path / "c", overrides=options)
    assert torch.equal(said(same.lm), said(whole.lm))
    averaged = rd.train("mdlm", data=text, out=tmp_path / "e", overrides={**options, "train.ema": 0.9})
    assert not torch.equal(said(averaged.lm), said(whole.lm))
    at_once = rd.train("mdlm", data=text, out=tmp_path / "d", overrides={**options, "model.anneal": None})
    assert not torch.equal(said(at_once.lm), said(whole.lm))
    with pytest.raises(ValueError, match=r"model\.anneal=7"):
        rd.train("mdlm", data=text, out=tmp_path / "b", resume=True, overrides={**options, "model.anneal": 6})


@pytest.mark.parametrize("family", ["bert", "mdlm"])
def test_a_run_with_dropout_in_its_base_is_the_same_again(family, text, tmp_path):
    """Resumed, or whatever the global generator holds: what is dropped would be drawn from that."""
    if family == "bert":
        assert BERT["hidden_dropout_prob"] > 0
        write(tmp_path / "start", BERT, bert_shapes(BERT))
    else:
        assert LAYOUTS["mdlm"].config["dropout"] > 0
        released.write(tmp_path / "start", LAYOUTS["mdlm"])
        tokenizer_files(tmp_path / "start", vocab=LAYOUTS["mdlm"].config["vocab_size"] - 1, mask=None, eos=1)
    options = {**TINY, "model.init": str(tmp_path / "start"), "train.steps": 4, "train.save_every": 2}
    options["data.length"] = 6
    said_ = []
    for seed, out in ((0, "a"), (1, "b")):
        torch.manual_seed(seed)
        said_.append(rd.train("mdlm", data=text, out=tmp_path / out, overrides=options).lm.denoiser.state_dict())
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-000004")
    resumed = rd.train("mdlm", data=text, out=tmp_path / "b", resume=True, overrides=options).lm
    for name, tensor in resumed.denoiser.state_dict().items():
        assert torch.equal(said_[0][name], tensor), name
        assert torch.equal(said_[1][name], tensor), name


def test_first_tokens_of_a_shifted_model_teach_nothing(text, tmp_path, monkeypatch):
    base(tmp_path / "base")
    seen = []
    real = runs.fit
    monkeypatch.setattr(runs, "fit", lambda *given: (seen.append(given[4]), real(*given))[1])
    for shift in (True, False):
        start = tmp_path / str(shift)
        convert(tmp_path / "base", to="masked", shift=shift, out=start)
        options = {**TINY, "model.init": str(start), "train.steps": 1}
        rd.train("mdlm", data=text, out=tmp_path / f"run-{shift}", overrides=options)
    assert not seen[0].valid[:, 0].any()
    assert seen[0].valid[:, 1:].all()
    assert seen[1].valid is None


def test_a_model_in_half_precision_stays_so(text, tmp_path):
    base(tmp_path / "base")
    convert(tmp_path / "base", to="masked", dtype=torch.bfloat16, out=tmp_path / "start")
    options = {**TINY, "model.init": str(tmp_path / "start"), "train.steps": 2}
    run = rd.train("mdlm", data=text, out=tmp_path / "run", overrides=options)
    assert {one.dtype for one in run.lm.denoiser.parameters()} == {torch.bfloat16}
    assert config_of(tmp_path / "run")["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.depth": 7}, r"model\.depth=7"),
        ({"model.attention": "block", "model.block": 4}, r"model\.attention='block'"),
        ({"process.name": "uniform"}, r"process\.name='uniform'"),
        ({"process.schedule": "cosine"}, r"process\.schedule='cosine'"),
        ({"objective": "bd3lm"}, "goes together"),
        ({"objective": "udlm"}, "it is defined for uniform"),
        ({"data.length": 65}, r"data\.length=65"),
        ({"model.anneal": 31}, r"model\.anneal=31"),
    ],
)
def test_fields_that_would_build_another_model_are_refused(options, message, text, tmp_path):
    base(tmp_path / "base")
    convert(tmp_path / "base", to="masked", out=tmp_path / "start")
    options = {**TINY, "model.init": str(tmp_path / "start"), **options}
    with pytest.raises(ValueError, match=message):
        rd.train("mdlm", data=text, out=tmp_path / "run", overrides=options)
    assert not (tmp_path / "run").exists()


def test_what_the_model_has_may_be_said(text, tmp_path):
    base(tmp_path / "base")
    convert(tmp_path / "base", to="block", block=4, out=tmp_path / "start")
    options = {**TINY, "model.init": str(tmp_path / "start"), "train.steps": 1, "objective": "bd3lm"}
    options |= {"model.attention": "block", "model.block": 4, "process.name": "masked", "process.schedule": "linear"}
    rd.train(rd.Config(), data=text, out=tmp_path / "run", overrides=options)


def test_a_model_without_open_attention_is_not_annealed(tmp_path):
    options = {"train.steps": 2, "model.anneal": 2, "model.depth": 1, "data.source": "toy", "data.tokenizer": "toy"}
    with pytest.raises(ValueError, match="causal attention, which never opens"):
        rd.train("autoregressive", out=tmp_path / "run", overrides=options | {"data.length": 6})


# ------------------------------------------------------------------------------------------------------ command line


def test_the_command_line_converts(tmp_path):
    from typer.testing import CliRunner

    base(tmp_path / "base")
    told = ["convert", str(tmp_path / "base"), "--to", "block", "--block", "4", "--out", str(tmp_path / "a"), "--json"]
    done = CliRunner().invoke(app, told)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["attention"], found["process"]["name"]) == ("block", "masked")
    assert rd.load(tmp_path / "a").denoiser.facts.block == 4
    done = CliRunner().invoke(app, [*told[:-1], "--shift"])
    assert done.exit_code == 2
