"""DiffusionGemma, whose network is that of ``transformers``: what it computes, reads, stores and refuses."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from parity.borrowed import PAD
from parity.checkpoints import EOS, VOCAB, filled, tokenizer_files
from parity.plain_gemma import ANGLES, CANVAS, TEXT, VISION, diffusion_gemma
from parity.test_borrowed_families import ids, same, set_a_trap
from parity.test_families import contents, in_two, rewrite
from redraft import runs
from redraft.sampling import sample


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


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


class InFloat64(TorchFunctionMode):
    """Whatever asks for float32 is given float64: the class takes norms, angles, shares and logits in float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.view:  # of stored bytes, which are what they are
            return func(*args, **(kwargs or {}))
        func = torch.Tensor.double if func is torch.Tensor.float else func
        wide = {torch.float32: torch.float64}
        args = [wide.get(one, one) if isinstance(one, torch.dtype) else one for one in args]
        more = {key: wide.get(one, one) if isinstance(one, torch.dtype) else one for key, one in (kwargs or {}).items()}
        return func(*args, **more)


@pytest.fixture
def exactly(gemma):
    """Every number of the test in float64, those of the class too."""
    torch.set_default_dtype(torch.float64)
    try:
        with InFloat64():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def copied(gemma, folder):
    folder.mkdir(exist_ok=True)
    for path in gemma[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def changed(folder, text=None, **fields):
    """The folder, with other words in config.json and in its part on the ``text``'s network."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= text or {}
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


def told(z, text, **more):
    return {"given": torch.arange(z.shape[1]).expand(z.shape) < text} | more


def probabilities(*shape):
    return torch.softmax(torch.randn(*shape, VOCAB, generator=torch.Generator().manual_seed(3)), -1)


def stored(folder):
    return {key: value.double().numpy() for key, value in load_file(folder / "model.safetensors").items()}


def plainly(folder, z, text, before=None, weights=None):
    """Logits of the canvases (B, C, V) behind texts of one length; ``before``: what was said, or None, of each row."""
    config = {"final_logit_softcapping": 30.0} | json.loads((folder / "config.json").read_text())["text_config"]
    weights, rows = weights or stored(folder), []
    for row, one in zip(z.numpy(), before or [None] * len(z), strict=True):
        rows.append(diffusion_gemma(config, weights, row[:text], row[text:], None if one is None else one.numpy()))
    return torch.from_numpy(np.stack(rows))


# ----------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("text", [0, 1, 2, 3, 4, 7, 40])  # windows are of 4
def test_logits_are_those_of_the_plain_network(text, gemma, exactly):
    denoiser, z = runs.load(gemma[0]).denoiser.double(), ids(3, text + CANVAS)
    found = denoiser.logits(z, told(z, text))
    assert found.dtype == torch.float64
    same(found[:, text:], plainly(gemma[0], z, text), 1e-9)
    if not text:
        assert torch.equal(found, denoiser.logits(z))
    short = z[:, :-3]
    same(denoiser.logits(short, told(short, text))[:, text:], plainly(gemma[0], short, text), 1e-9)


@pytest.mark.parametrize("text", [0, 7])
def test_logits_behind_a_guess_are_those_of_the_plain_network(text, gemma, exactly):
    denoiser, z = runs.load(gemma[0]).denoiser.double(), ids(3, text + CANVAS)
    before = probabilities(3, CANVAS)
    guess = torch.cat([torch.zeros(3, text, VOCAB), before], dim=1)
    guess[1] = 0  # of this row nothing was said
    guess[2, text + 4] = 0  # of this token of the last neither: what stands there counts as said
    before[2, 4] = torch.nn.functional.one_hot(z[2, text + 4], VOCAB)
    wanted = plainly(gemma[0], z, text, [before[0], None, before[2]])
    same(denoiser.logits(z, told(z, text, guess=guess))[:, text:], wanted, 1e-9)
    moved = (wanted - plainly(gemma[0], z, text)).abs().amax((1, 2))
    assert (moved > 1e-2).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_either_precision_as_it_is(dtype, gemma):
    z = ids(3, 7 + CANVAS)
    found = runs.load(gemma[0], dtype=dtype).denoiser.logits(z, told(z, 7))[:, 7:]
    same(found.double(), plainly(gemma[0], z, 7), 3e-5)  # the class itself goes through float32


FIELDS = [
    {"final_logit_softcapping": 2.0},
    {"sliding_window": 3},
    {"sliding_window": 64},
    {"top_k_experts": 1},
    {"top_k_experts": 4},
    {"rms_norm_eps": 0.1},
    {"rope_parameters": {kind: one | {"rope_theta": 50.0} for kind, one in ANGLES.items()}},
    {"rope_parameters": ANGLES | {"full_attention": ANGLES["full_attention"] | {"partial_rotary_factor": 1.0}}},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: next(iter(fields)))
def test_fields_that_change_the_network(fields, gemma, exactly, tmp_path):
    folder, z = changed(copied(gemma, tmp_path), fields), ids(2, 7 + CANVAS)
    wanted = plainly(folder, z, 7)
    same(runs.load(folder).denoiser.double().logits(z, told(z, 7))[:, 7:], wanted, 1e-9)
    assert float((wanted - plainly(gemma[0], z, 7)).abs().max()) > 1e-3


class Asked(dict):
    """Tensors by name, and which were asked for."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


def test_the_plain_network_reads_every_tensor_but_those_of_images(gemma):
    weights, z = Asked(stored(gemma[0])), ids(1, 7 + CANVAS)
    plainly(gemma[0], z, 7, [probabilities(CANVAS)], weights)
    unread = weights.keys() - weights.names
    assert unread == {name for name in weights if "vision" in name}


def test_rows_do_not_know_of_each_other(gemma, exactly):
    denoiser, z = runs.load(gemma[0]).denoiser.double(), ids(5, 15)
    texts = [7, 9, 15, 12, 9]  # of the third there is nothing to write
    given = torch.arange(15) < torch.tensor(texts)[:, None]
    given[4, 11:13] = True  # what is given behind the first that is not stands on the canvas
    guess = probabilities(5, 15)
    guess[1] = 0
    found = denoiser.logits(z, {"given": given, "guess": guess})
    for row in range(5):
        one = slice(row, row + 1)
        same(found[one], denoiser.logits(z[one], {"given": given[one], "guess": guess[one]}), 1e-10)
    for row in (0, 3, 4):
        here = slice(row, row + 1), slice(texts[row], None)
        same(found[here], plainly(gemma[0], z[here[0]], texts[row], [guess[row, texts[row] :]]), 1e-9)


def test_a_pad_is_a_token_like_any_other(gemma, exactly):
    """There is no padding: canvases are as long as what is to be written, and nothing told of positions is taken."""
    denoiser, z = runs.load(gemma[0]).denoiser.double(), ids(2, 7 + CANVAS)
    padded = z.clone()
    padded[:, 2] = padded[:, -2:] = PAD
    found = denoiser.logits(padded, told(z, 7))[:, 7:]
    same(found, plainly(gemma[0], padded, 7), 1e-9)
    short = padded[:, :-2]
    assert float((found[:, :-2] - denoiser.logits(short, told(short, 7))[:, 7:]).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="segments told to DiffusionGemma"):
        denoiser.logits(padded, told(z, 7, segments=(torch.arange(15) >= 13).long().expand(2, -1)))


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


def test_what_diffusion_gemma_computes_and_does_not_store_is_right(gemma):
    folder, theirs = gemma
    denoiser = runs.load(folder).denoiser
    real = dict(theirs.named_buffers())
    made = {name.removeprefix("network."): value for name, value in denoiser.named_buffers()}
    assert real.keys() == made.keys()
    assert all(torch.equal(value, made[name]) for name, value in real.items())


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


# ------------------------------------------------------------------------------------------------------------- facts


def test_the_end_may_be_one_of_several(gemma, tmp_path):
    folder = changed(copied(gemma, tmp_path), {"eos_token_id": [7, 8], "pad_token_id": -1})
    facts = runs.load(folder).denoiser.facts
    assert (facts.eos_id, facts.pad_id) == (7, EOS)
    changed(folder, {"eos_token_id": VOCAB})
    with pytest.raises(ValueError, match=f"'eos_token_id' is {VOCAB}, expected the id of a token"):
        runs.load(folder)


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


@pytest.mark.parametrize(("field", "value"), [("tie_word_embeddings", False), ("canvas_length", 0)])
def test_fields_that_mean_what_is_not_done_are_refused(field, value, gemma, tmp_path):
    refused(changed(copied(gemma, tmp_path), **{field: value}), rf"'{field}'.*read as family 'diffusion_gemma'")


@pytest.mark.parametrize(
    ("field", "value"),
    [("vocab_size", -1), ("num_experts", None), ("top_k_experts", 0), ("use_bidirectional_attention", "all")],
)
def test_fields_of_the_text_too(field, value, gemma, tmp_path):
    refused(changed(copied(gemma, tmp_path), {field: value}), rf"'{field}'.*read as family 'diffusion_gemma'")


# ------------------------------------------------------------------------------------------------------------- files


def refused(folder, message):
    with pytest.raises(ValueError, match=message):
        runs.load(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_and_saved_it_is_the_same_to_the_bit(dtype, gemma, tmp_path):
    folder = copied(gemma, tmp_path / "hub")
    tensors = {key: value.to(dtype) for key, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for source, target in (("hub", "once"), ("once", "twice")):
        runs.load(tmp_path / source).save(tmp_path / target)
    hub, once, twice = (contents(tmp_path / one) for one in ("hub", "once", "twice"))
    assert once == twice
    assert all(once[name] == hub[name] for name in ("config.json", "model.safetensors"))


KEYS = (
    "model.decoder.embed_tokens.weight",
    "model.decoder.layers.1.experts.down_proj",
    "model.decoder.layers.3.layer_scalar",
    "model.decoder.self_conditioning.up_proj.weight",
    "model.encoder.embed_vision.embedding_projection.weight",
    "model.encoder.language_model.layers.0.layer_scalar",
)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_and_shape_is_checked(key, gemma, tmp_path):
    rewrite(copied(gemma, tmp_path), lambda tensors: tensors.update({key + "x": tensors.pop(key)}))
    refused(tmp_path, rf"missing \['{key}'\], not expected \['{key}x'\]")
    rewrite(
        copied(gemma, tmp_path),
        lambda tensors: tensors.update({key: torch.cat([tensors[key], tensors[key][:1]])}),
    )
    rows = len(gemma[1].state_dict()[key])
    refused(tmp_path, rf"{key} has shape \({rows + 1},.*the config says \({rows},")


def test_files_that_are_damaged_missing_or_pickled_are_refused(gemma, tmp_path):
    folder, _ = in_two(copied(gemma, tmp_path / "two"))
    wanted = runs.load(gemma[0]).denoiser.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in runs.load(folder).denoiser.state_dict().items())
    second = folder / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-5])
    refused(folder, "model-00002-of-00002.safetensors: damaged")
    second.unlink()
    refused(folder, "model-00002-of-00002.safetensors: no such file")
    folder = copied(gemma, tmp_path / "pickle")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin is a pickle")


def test_code_in_the_folder_is_never_run(gemma, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    marker = set_a_trap(copied(gemma, tmp_path))
    lm = runs.load(tmp_path)
    lm.generate("cd", length=3, steps=1)
    lm.save(tmp_path / "again")
    assert not marker.exists()
    assert not [path for path in (tmp_path / "again").iterdir() if path.suffix == ".py"]
