"""Families on networks of ``transformers``: BERT and its kin, DiffuGPT and DiffusionGemma."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from parity.borrowed import BERT, GPT, LAYOUTS, PAD, PLAIN, bert_shapes
from parity.checkpoints import EOS, VOCAB, Layout, M, filled, tokenizer_files
from parity.test_families import contents, in_two, rewrite
from redraft import runs
from redraft.models.families import FAMILIES
from redraft.models.released import family_of
from redraft.sampling import sample

L = 11
FAMILY = {"diffugpt": "diffugpt"}
families = pytest.mark.parametrize("name", LAYOUTS)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def load(folder, name, **changed):
    layout = LAYOUTS[name]
    return runs.load(layout.write(folder, **changed), family=layout.asked)


def ids(rows=2, length=L, seed=0):
    z = torch.randint(6, M, (rows, length), generator=torch.Generator().manual_seed(seed))
    return z.where(torch.arange(length) % 3 != 2, M)


def plainly(folder, name, z, reads=None):
    tensors = load_file(folder / "model.safetensors")
    w = {key: value.double().numpy() for key, value in tensors.items()}
    reads = np.ones((z.shape[1],) * 2, bool) if reads is None else reads
    return torch.from_numpy(np.stack([PLAIN[name](LAYOUTS[name].config, w, row.numpy(), reads) for row in z]))


def same(a, b, atol=1e-6):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# ---------------------------------------------------------------------------------------------------------- networks


@families
def test_logits_are_those_of_the_plain_network(name, tmp_path):
    denoiser = load(tmp_path, name).denoiser.double()
    same(denoiser.logits(ids()), plainly(tmp_path, name, ids()))
    reads = np.arange(L)[:, None] // 4 >= np.arange(L) // 4
    found = denoiser.logits(ids(), {"attend": torch.from_numpy(reads)})
    same(found, plainly(tmp_path, name, ids(), reads))


@families
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
@families
def test_saved_and_loaded_and_saved_it_is_the_same_to_the_bit(name, dtype, tmp_path):
    layout = LAYOUTS[name]
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
        runs.load(folder, family=LAYOUTS[name].asked)


@families
def test_every_key_and_shape_is_checked(name, tmp_path):
    shapes = LAYOUTS[name].shapes(LAYOUTS[name].config)
    read = [key for key in shapes if not key.startswith(("bert.pooler", "cls.seq"))]
    for key in (min(read), max(read), next(key for key in read if "mlp" in key or "intermediate" in key)):
        rewrite(LAYOUTS[name].write(tmp_path), lambda tensors, key=key: tensors.update({key + "x": tensors.pop(key)}))
        refused(tmp_path, name, rf"missing \['{key}'\], not expected \['{key}x'\]")
        longer = torch.ones(shapes[key][0] + 1, *shapes[key][1:])
        rewrite(LAYOUTS[name].write(tmp_path), lambda tensors, key=key, value=longer: tensors.update({key: value}))
        refused(tmp_path, name, rf"{key} has shape \({shapes[key][0] + 1},.*the config says \({shapes[key][0]},")


@families
def test_files_that_are_damaged_missing_or_pickled_are_refused(name, tmp_path):
    folder, _ = in_two(LAYOUTS[name].write(tmp_path / "two"))
    wanted = load(tmp_path / "one", name).denoiser.state_dict()
    found = runs.load(folder, family=LAYOUTS[name].asked).denoiser.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())
    second = folder / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-5])
    refused(folder, name, "model-00002-of-00002.safetensors: damaged")
    second.unlink()
    refused(folder, name, "model-00002-of-00002.safetensors: no such file")
    folder = LAYOUTS[name].write(tmp_path / "pickle")
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


@families
def test_code_in_the_folder_is_never_run(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    marker = set_a_trap(LAYOUTS[name].write(tmp_path))
    lm = runs.load(tmp_path, family=LAYOUTS[name].asked)
    lm.generate("cd", length=3, steps=1)
    lm.save(tmp_path / "again")
    assert not marker.exists()
    assert not [path for path in (tmp_path / "again").iterdir() if path.suffix == ".py"]


# --------------------------------------------------------------------------------------------------- DiffusionGemma

TEXT = {
    "model_type": "diffusion_gemma_text", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16,
    "num_global_key_value_heads": 2, "sliding_window": 4, "num_experts": 4, "top_k_experts": 2, "pad_token_id": PAD,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "moe_intermediate_size": 16,
    "max_position_embeddings": 64, "eos_token_id": EOS, "bos_token_id": 2,
}  # fmt: skip
VISION = {
    "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8,
    "num_attention_heads": 2, "num_key_value_heads": 2, "patch_size": 2, "position_embedding_size": 8,
}  # fmt: skip
CANVAS = 8


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A folder as transformers writes it, and the model that wrote it."""
    import transformers

    config = transformers.DiffusionGemmaConfig(
        text_config=TEXT,
        vision_config=VISION,
        canvas_length=CANVAS,
        image_token_id=63,
        boi_token_id=62,
        eoi_token_id=61,
    )
    theirs = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
    tied = theirs.all_tied_weights_keys
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if name not in tied:
                tensor.copy_(filled(name, tensor.shape or (1,)).reshape(tensor.shape))
    folder = tmp_path_factory.mktemp("gemma")
    theirs.save_pretrained(folder)
    tokenizer_files(folder, mask=None)
    return folder, theirs


def told(z, text, **more):
    return {"given": torch.arange(z.shape[1]).expand(z.shape) < text} | more


def test_diffusion_gemmas_logits_are_those_of_its_own_forward(gemma):
    folder, theirs = gemma
    denoiser, z = runs.load(folder).denoiser, ids(3, 7 + CANVAS)
    wanted = theirs(input_ids=z[:, :7], decoder_input_ids=z[:, 7:]).logits
    same(denoiser.logits(z, told(z, 7))[:, 7:], wanted)
    before = torch.softmax(torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3)), -1)
    again = theirs(input_ids=z[:, :7], decoder_input_ids=z[:, 7:], self_conditioning_logits=before.log()).logits
    assert float((again - wanted).abs().max()) > 1e-3
    guess = torch.cat([torch.zeros(3, 7, VOCAB), before], dim=1)
    guess[1] = 0  # nothing was said of this row before
    found = denoiser.logits(z, told(z, 7, guess=guess))[:, 7:]
    same(found[[0, 2]], again[[0, 2]], 1e-5)
    same(found[1], wanted[1], 1e-5)
    hole = guess.clone()
    hole[0, 9] = 0
    filled_in = guess.clone()
    filled_in[0, 9] = torch.nn.functional.one_hot(z[0, 9], VOCAB)
    same(denoiser.logits(z, told(z, 7, guess=hole)), denoiser.logits(z, told(z, 7, guess=filled_in)), 0)


def test_diffusion_gemma_reads_a_text_causally_and_a_canvas_whole(gemma):
    denoiser, z = runs.load(gemma[0]).denoiser, ids(2, 12)
    both = torch.stack([told(z, 5)["given"][0], told(z, 9)["given"][0]])
    mixed = denoiser.logits(z, {"given": both})
    same(mixed[:1], denoiser.logits(z[:1], told(z[:1], 5)), 1e-5)
    same(mixed[1:], denoiser.logits(z[1:], told(z[1:], 9)), 1e-5)
    other = z.clone()
    other[:, -1] = 7
    changed = (denoiser.logits(z, told(z, 5)) - denoiser.logits(other, told(z, 5)))[:, 5:].abs().amax(-1)
    assert bool((changed > 1e-6).all())
    # no text at all: the canvas alone
    alone = denoiser(z[:, :CANVAS], torch.ones(2))
    same(alone.exp().sum(-1), torch.ones(2, CANVAS), 1e-5)
    logp = denoiser(z, torch.ones(2), told(z, 5))
    assert torch.equal(logp[:, :5].argmax(-1), z[:, :5])
    assert float(logp[:, :5].amax(-1).abs().max()) == 0


class Wide(TorchDispatchMode):
    """Which kinds of numbers tensors of at least so many columns had."""

    def __init__(self, columns):
        super().__init__()
        self.columns, self.kinds = columns, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.ndim == 3 and out.shape[-1] == self.columns:
            self.kinds.add(out.dtype)
        return out


def test_diffusion_gemma_makes_no_table_of_the_vocabulary_in_wide_integers(gemma):
    denoiser, z = runs.load(gemma[0]).denoiser, ids(2, 12)
    with Wide(VOCAB) as seen:
        logits = denoiser.logits(z, told(z, 5, guess=torch.zeros(2, 12, VOCAB)))
    assert seen.kinds - {torch.bool} == {torch.float32}
    stands = torch.nn.functional.one_hot(z[:, :5], VOCAB) == 1
    assert torch.equal(logits[:, :5], torch.zeros(2, 5, VOCAB).where(stands, -torch.inf))


def test_diffusion_gemmas_end_may_be_one_of_several(gemma, tmp_path):
    config = json.loads((copied(gemma, tmp_path) / "config.json").read_text())
    config["text_config"] |= {"eos_token_id": [7, 8], "pad_token_id": -1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = runs.load(tmp_path).denoiser.facts
    assert (facts.eos_id, facts.pad_id) == (7, EOS)
    config["text_config"]["eos_token_id"] = VOCAB
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"'eos_token_id' is {VOCAB}, expected the id of a token"):
        runs.load(tmp_path)


def test_diffusion_gemmas_facts_and_what_it_cannot_be_told(gemma):
    lm = runs.load(gemma[0])
    facts = lm.denoiser.facts
    assert (lm.process.name, lm.process.K, facts.mask_id, lm.denoiser.canvas) == ("uniform", VOCAB, None, CANVAS)
    assert (facts.posterior, facts.attention, facts.self_conditioned, facts.given) == ("full", "full", True, True)
    assert (facts.eos_id, facts.pad_id, facts.caches, lm.context) == (EOS, PAD, False, 64)
    z = ids(1, 12)
    with pytest.raises(ValueError, match="12 tokens to write, and the model was made for 8 at a time: pass length=8"):
        lm.denoiser.logits(z)
    for name in ("positions", "attend", "segments", "mixture", "cache", "store", "labels"):
        with pytest.raises(ValueError, match=f"{name} told to DiffusionGemma"):
            lm.denoiser.logits(z, {name: torch.arange(12)})


def test_diffusion_gemma_writes(gemma):
    lm = runs.load(gemma[0])
    written = lm.generate("cdef", seed=0, length=CANVAS, steps=4, sampler="ancestral")
    assert written.tokens.shape == (1, 4 + CANVAS)
    again = sample(lm.process, lm.denoiser, prompt=lm.encode("cdef"), length=CANVAS, steps=4, seed=0)
    assert torch.equal(written.tokens, again.tokens)
    with pytest.raises(ValueError, match="9 tokens to write"):
        lm.generate("cdef", length=CANVAS + 1, steps=2)


def copied(gemma, folder):
    folder.mkdir(exist_ok=True)
    for path in gemma[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_diffusion_gemmas_files(gemma, tmp_path):
    folder = copied(gemma, tmp_path / "hub")
    marker = set_a_trap(folder)
    for source, target in (("hub", "once"), ("once", "twice")):
        runs.load(tmp_path / source).save(tmp_path / target)
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")
    assert contents(tmp_path / "once")["model.safetensors"] == contents(folder)["model.safetensors"]
    assert not marker.exists()
    key = "model.decoder.layers.0.experts.down_proj"
    rewrite(folder, lambda tensors: tensors.update({key + "x": tensors.pop(key)}))
    with pytest.raises(ValueError, match=rf"missing \['{key}'\], not expected \['{key}x'\]"):
        runs.load(folder)
    rewrite(copied(gemma, folder), lambda tensors: tensors.update({key: torch.ones(5, 32, 16)}))
    with pytest.raises(ValueError, match=rf"{key} has shape \(5,"):
        runs.load(folder)
    whole = (copied(gemma, folder) / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="damaged"):
        runs.load(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is a pickle"):
        runs.load(folder)
    for field, value in (("tie_word_embeddings", False), ("canvas_length", 0), ("text_config", {"vocab_size": -1})):
        config = json.loads((copied(gemma, folder) / "config.json").read_text()) | {field: value}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=rf"{'vocab_size' if field == 'text_config' else field}.*read as family"):
            runs.load(folder)


def test_a_plain_key_table_is_what_transformers_itself_writes(tmp_path):
    """The layouts above are those of transformers' own classes, where those have them."""
    import transformers

    for name, layout in LAYOUTS.items():
        if name in ("google", "diffugpt"):
            continue
        made = transformers.AutoModelForMaskedLM.from_config(transformers.AutoConfig.for_model(**layout.config))
        made.save_pretrained(tmp_path / name)
        found = {key: tuple(value.shape) for key, value in load_file(tmp_path / name / "model.safetensors").items()}
        assert found == layout.shapes(layout.config)


def test_what_diffusion_gemma_computes_and_does_not_store_is_right(gemma):
    folder, theirs = gemma
    denoiser = runs.load(folder).denoiser
    real = dict(theirs.named_buffers())
    made = {name.removeprefix("network."): value for name, value in denoiser.named_buffers()}
    assert real.keys() == made.keys()
    assert all(torch.equal(value, made[name]) for name, value in real.items())
