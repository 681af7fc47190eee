"""DGLM's parts from ``transformers``, made here at toy size, and all of it together: trained, asked, kept."""

import json
import shutil
import sys
from copy import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import redraft as rd
from redraft import recipes
from redraft.cli import app
from redraft.data import build_tokenizer
from redraft.dglm import commands
from redraft.dglm import config as configs
from redraft.dglm import model as dglm_model
from redraft.dglm.config import PairsConfig, VerbaliserConfig
from redraft.dglm.encoder import Encoder, Standard
from redraft.dglm.pairs import Pair, cut, read_pairs
from redraft.dglm.verbaliser import Verbaliser
from redraft.randomness import generator, row_generators

PETS = ["the cat sat on the mat", "the dog ran in the park", "the cat likes warm milk", "the dog chased a ball"]
MONEY = ["the bank raised its rates", "the stock fell two percent", "the bank sold its bonds", "the stock lost value"]
PAIRS = [
    Pair("the", text.removeprefix("the"), label)
    for label, texts in (("pets", PETS), ("money", MONEY))
    for text in texts
]
FAST = {
    "proposer.width": 32,
    "proposer.depth": 1,
    "encoder.length": 16,
    "verbaliser.prefix": 8,
    "verbaliser.length": 12,
    "verbaliser.soft_tokens": 2,
    "sample.steps": 8,
    "train.proposer.steps": 150,
    "train.verbaliser.steps": 120,
    "train.verbaliser.lr": 1e-2,
    "train.verbaliser.batch": 8,
    "train.classifier.steps": 60,
    "train.classifier.lr": 1e-2,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a random BERT, T5 and GPT-2 with a tokenizer, as ``transformers`` writes them."""
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

    root, words = tmp_path_factory.mktemp("parts"), build_tokenizer("bpe", PETS + MONEY, 300)
    common, ends = {"vocab_size": words.K + 1}, {"bos_token_id": words.eos_id, "eos_token_id": words.eos_id}
    torch.manual_seed(0)
    bert = BertConfig(
        **common,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    t5 = T5Config(**common, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    gpt2 = GPT2Config(**common, **ends, **still, n_embd=32, n_layer=1, n_head=2, n_positions=48)
    made = {"bert": BertModel(bert), "t5": T5ForConditionalGeneration(t5), "gpt2": GPT2LMHeadModel(gpt2)}
    for name, model in made.items():
        model.save_pretrained(root / name)
        words.save(root / name)
    return root


@pytest.fixture(scope="module")
def model():
    return rd.DGLM.train("dglm_toy", PAIRS, None, FAST)


def test_trained_model_is_a_function_of_its_seed():
    """And of nothing else: neither the global generator nor what was trained before; which it leaves as it was."""
    few = {**FAST, **{name: 3 for name in FAST if name.endswith("steps")}}
    state = torch.get_rng_state()
    one, other, third = (
        rd.DGLM.train("dglm_toy", PAIRS, None, {**few, "train.seed": seed}).parts().state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not all(torch.equal(value, third[name]) for name, value in one.items())


# -------------------------------------------------------------------------------------------------------- the encoder


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_encoder_is_the_mean_of_its_last_states(folders, kind):
    encoder = Encoder.load(str(folders / kind), 32)
    texts = ["the cat", "the bank raised its rates"]
    together = encoder.vectors(texts)
    assert together.shape == (2, 16)
    for text, row in zip(texts, together, strict=True):
        ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
        alone = encoder.model(input_ids=ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-5)
    assert not any(weight.requires_grad for weight in encoder.model.parameters())


def test_encoder_reads_so_many_tokens(folders):
    short = Encoder.load(str(folders / "bert"), 2)
    one, other, third = short.vectors(["the cat sat", "the cat ran off", "a dog"])
    torch.testing.assert_close(one, other)
    assert (one - third).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"encoder.length=65: this encoder has 64"):
        Encoder.load(str(folders / "bert"), 65)


def test_what_spells_a_special_token_is_text(folders, tmp_path):
    """Also with a tokenizer that would have parsed it, as released ones do."""
    folder = tmp_path / "released"
    shutil.copytree(folders / "bert", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "split_special_tokens": False}))
    encoder = Encoder.load(str(folder), 32)
    parsed = encoder.tokenizer("[EOS]")["input_ids"]
    assert len(parsed) == 1
    real = encoder.model(input_ids=torch.tensor([parsed])).last_hidden_state[0, 0]
    assert (encoder.vectors(["[EOS]"])[0] - real).abs().max() > 1e-3


def test_encoder_survives_saving(folders, tmp_path):
    encoder = Encoder.load(str(folders / "t5"), 32)
    encoder.save(tmp_path / "kept")
    assert torch.equal(Encoder.load(str(tmp_path / "kept"), 32).vectors(PETS), encoder.vectors(PETS))


def test_standardisation():
    vectors = torch.randn(100, 3, generator=generator(0)) * torch.tensor([2.0, 0.1, 0.0]) + 5
    standard = Standard(3)
    standard.fit(vectors)
    x = standard(vectors)
    torch.testing.assert_close(x.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(x.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), rtol=1e-3, atol=1e-4)


def test_remote_code_is_never_executed(folders, tmp_path):
    witness = tmp_path / "executed"
    for part, load in (("bert", lambda f: Encoder.load(f, 16)), ("gpt2", lambda f: Verbaliser.load(f, 3, small()))):
        folder = tmp_path / part
        shutil.copytree(folders / part, folder)
        stored = json.loads((folder / "config.json").read_text())
        kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForTextEncoding")
        stored["auto_map"] = {kind: f"evil.{kind}" for kind in kinds}
        (folder / "config.json").write_text(json.dumps(stored))
        (folder / "evil.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
        load(str(folder))
        (folder / "config.json").write_text(json.dumps({**stored, "model_type": "evil"}))
        with pytest.raises(ValueError, match="cannot load the"):
            load(str(folder))
        assert not witness.exists()


def test_pickles_and_incomplete_models_are_refused(folders, tmp_path):
    pickled, partial = tmp_path / "pickled", tmp_path / "partial"
    shutil.copytree(folders / "bert", pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot load the encoder.*pytorch_model.bin is a pickle"):
        Encoder.load(str(pickled), 16)
    shutil.copytree(folders / "gpt2", partial)
    tensors = load_file(partial / "model.safetensors")
    del tensors["transformer.h.0.ln_1.weight"]
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has no weights for transformer\.h\.0\.ln_1\.weight"):
        Verbaliser.load(str(partial), 3, small())
    with pytest.raises(ValueError, match="cannot load the encoder 'no/such'"):
        Encoder.load("no/such", 16)


# ----------------------------------------------------------------------------------------------------- the verbaliser


def small(**options):
    return VerbaliserConfig(soft_tokens=2, prefix=4, length=16, **options)


@pytest.fixture(scope="module")
def verbaliser(folders):
    """Overfitted to eight sentences, each with a vector of its own and the same prefix."""
    torch.manual_seed(1)
    made = Verbaliser.load(str(folders / "gpt2"), 8, small())
    x = 3 * torch.eye(8)
    prefix, rows = made.tokenizer.encode("the"), [made.tokenizer.encode(pair.continuation) for pair in PAIRS]
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    for step in range(220):
        loss = made.loss(x, [prefix] * 8, rows, row_generators(0, step, rows=range(8)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made.eval()


def written(verbaliser, x, prefix="the", temperature=0.0, key=5):
    ids = verbaliser.tokenizer.encode(prefix) if prefix else []
    rows = verbaliser.write(x, ids, 16, row_generators(key, rows=range(len(x))), temperature)
    return [verbaliser.tokenizer.decode(row) for row in rows]


def test_memorised_sentences_come_back_from_their_vectors(verbaliser):
    """Greedily, through noise of sigma^2 = .05; a swapped vector brings the other's sentence: the vector is read."""
    x, own = 3 * torch.eye(8), [pair.continuation for pair in PAIRS]
    assert written(verbaliser, x) == own
    assert written(verbaliser, x.flip(0)) == own[::-1]
    assert written(verbaliser, x, prefix="") == own, "one prefix in ten was hidden"


def test_a_text_depends_on_its_own_row_only(verbaliser):
    x = torch.randn(4, 8, generator=generator(0))
    together = verbaliser.write(x, [1, 2], 16, row_generators(3, rows=range(4)), 1.0, 0.9)
    assert len({tuple(row) for row in together}) > 1
    for row in range(4):
        assert verbaliser.write(x[row : row + 1], [1, 2], 16, row_generators(3, rows=[row]), 1.0, 0.9) == [
            together[row]
        ]


def test_nucleus_and_temperature_act(verbaliser):
    x = torch.zeros(6, 8)
    cold = written(verbaliser, x, temperature=1e-4)
    hot = written(verbaliser, x, temperature=3.0)
    ids, draws = verbaliser.tokenizer.encode("the"), row_generators(5, rows=range(6))
    narrow = verbaliser.write(x, ids, 16, draws, 3.0, 1e-6)
    assert cold == [verbaliser.tokenizer.decode(row) for row in narrow], "the likeliest alone, however hot"
    assert cold != hot


def test_written_texts_end(verbaliser):
    rows = verbaliser.write(
        3 * torch.eye(8), verbaliser.tokenizer.encode("the"), 16, row_generators(0, rows=range(8)), 0
    )
    assert all(verbaliser.end not in row and 0 < len(row) < 16 for row in rows)
    first = verbaliser.write(
        3 * torch.eye(8), verbaliser.tokenizer.encode("the"), 2, row_generators(0, rows=range(8)), 0
    )
    assert [row[:2] for row in rows] == first


def test_loss_is_that_of_the_continuation(folders):
    """By hand, one row at a time: -log p of each token and of the end, over their number; padding does not count."""
    torch.manual_seed(0)
    made = Verbaliser.load(str(folders / "gpt2"), 3, small(noise=0.0, drop=0.0)).eval()
    x, prefixes, rows = torch.randn(2, 3), [[5, 6, 7], []], [[8, 9], [10, 11, 12, 13]]
    total = 0.0
    for one, prefix, row in zip(x, prefixes, rows, strict=True):
        ids = torch.tensor([[*prefix, *row, made.end]])
        logits = made.decoder(inputs_embeds=made.told(one[None], ids, None)).logits.log_softmax(-1)
        first = made.config.soft_tokens + len(prefix) - 1
        total -= sum(logits[0, first + i, token].item() for i, token in enumerate([*row, made.end]))
    assert made.loss(x, prefixes, rows, row_generators(0, rows=range(2))).item() == pytest.approx(total / 8, rel=1e-5)


def test_verbaliser_options_act(folders):
    torch.manual_seed(0)
    made = {
        name: Verbaliser.load(str(folders / "gpt2"), 3, small(**options))
        for name, options in (("plain", {}), ("noisy", {"noise": 0.5}), ("hidden", {"drop": 1.0}))
    }
    weights = made["plain"].state_dict()
    x, rows = torch.randn(2, 3), [[8, 9], [10, 11]]
    losses = {}
    for name, one in made.items():
        one.load_state_dict(weights)
        losses[name] = [
            one.eval().loss(x, prefix, rows, row_generators(0, rows=range(2))).item()
            for prefix in ([[5], [6]], [[], []])
        ]
    assert losses["plain"][0] != losses["plain"][1]
    assert losses["hidden"][0] == losses["hidden"][1] == losses["plain"][1]
    assert losses["noisy"][0] != losses["plain"][0]


def test_a_decoders_own_settings_are_neither_read_nor_changed(folders, verbaliser, tmp_path):
    """Else a released one's penalties would write, and what is saved would depend on what was asked before."""
    x = torch.randn(4, 8, generator=generator(0))
    plain = written(verbaliser, x, temperature=1.0)
    own = Verbaliser.load(str(folders / "gpt2"), 8, small())
    own.load_state_dict(verbaliser.state_dict())
    own.decoder.generation_config.repetition_penalty = 50.0
    own.save(tmp_path / "before")
    assert written(own.eval(), x, temperature=1.0) == plain
    own.save(tmp_path / "after")
    before, after = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("before", "after")
    )
    assert b"50.0" in before["generation_config.json"]
    assert before == after


def test_the_decoder_has_so_many_positions(folders, verbaliser):
    with pytest.raises(ValueError, match=r"2 soft tokens, 4 of the prefix and 43 to write are 49.*48 positions"):
        Verbaliser.load(str(folders / "gpt2"), 3, VerbaliserConfig(soft_tokens=2, prefix=4, length=43))
    with pytest.raises(ValueError, match="shorten the prefix"):
        verbaliser.write(torch.zeros(1, 8), [1] * 40, 16, row_generators(0, rows=[0]))


# ---------------------------------------------------------------------------------------------------------- the model


def test_generations_survive_saving(model, tmp_path):
    model.save(tmp_path / "kept")
    again = rd.DGLM.load(tmp_path / "kept")
    for options in ({}, {"attribute": "pets", "strength": 2.0}, {"weight": 2.0}):
        one, other = (made.generate("the cat", 3, seed=4, **options) for made in (model, again))
        assert one.texts == other.texts
        assert torch.equal(one.vectors, other.vectors)
    assert again.config == model.config
    model.save(tmp_path / "kept")  # over itself
    assert rd.DGLM.load(tmp_path / "kept").generate("the cat").texts == model.generate("the cat").texts


def test_rows_depend_on_their_own_seed_and_prompt_only(model):
    together = model.generate(["the cat", "the stock"], 2, seed=3, temperature=1.0)
    prompts = ["the cat", "the cat", "the stock", "the stock"]
    for row, (prompt, seed) in enumerate(zip(prompts, together.seeds, strict=True)):
        alone = model.generate(prompt, seeds=[seed], temperature=1.0)
        assert alone.texts == [together.texts[row]]
        torch.testing.assert_close(alone.vectors[0], together.vectors[row], rtol=1e-4, atol=1e-4)
    assert (together.vectors[0] - together.vectors[1]).abs().max() > 1e-2
    assert [text.startswith(prompt) for text, prompt in zip(together.texts, prompts, strict=True)] == [True] * 4


def test_words_and_vectors_are_drawn_apart(model, monkeypatch):
    """Else the noise that a vector is read through would be the noise it was proposed from."""
    seen = []
    propose, write = dglm_model.propose, Verbaliser.write

    def proposing(process, denoiser, shape, draws, *rest):
        seen.extend(one.initial_seed() for one in draws)
        return propose(process, denoiser, shape, draws, *rest)

    def writing(self, x, prefix, length, draws, *rest):
        seen.extend(one.initial_seed() for one in draws)
        return write(self, x, prefix, length, draws, *rest)

    monkeypatch.setattr(dglm_model, "propose", proposing)
    monkeypatch.setattr(Verbaliser, "write", writing)
    model.generate("the", 2)
    assert len(seen) == len(set(seen)) == 4


def test_attribute_moves_the_proposal(model):
    """Of 40 proposals those a nearest-mean rule calls ``pets``: more when asked for than when ``money`` is."""
    centre = [
        model.encode([pair.continuation for pair in PAIRS if pair.label == label]).mean(0)
        for label in ("pets", "money")
    ]
    shares = {}
    for label in ("pets", "money"):
        x = model.generate("", 40, attribute=label, strength=2.0, length=1, seed=1).vectors
        shares[label] = ((x - centre[0]).norm(dim=1) < (x - centre[1]).norm(dim=1)).double().mean().item()
    assert shares["pets"] > 0.9
    assert shares["money"] < 0.1


def test_plug_in_guidance(model):
    """By the user's own log p(y | x), here a coordinate to be positive; strength 0 is no guidance."""
    plain = model.generate("the", 20, seed=2, length=1).vectors

    def wanted(x):
        return torch.nn.functional.logsigmoid(8 * x[:, 3])

    pushed = model.generate("the", 20, seed=2, length=1, attribute=wanted, strength=2.0).vectors
    assert (pushed[:, 3] > 0).double().mean() > (plain[:, 3] > 0).double().mean()
    still = model.generate("the", 20, seed=2, length=1, attribute=wanted, strength=0.0).vectors
    assert torch.equal(still, plain)


def test_a_clean_classifier_guides_too():
    clean = rd.DGLM.train("dglm_toy", PAIRS, None, {**FAST, "classifier.reads": "clean", "train.verbaliser.steps": 1})
    assert type(clean.classifier).__name__ == "Logistic"
    x = clean.encode([pair.continuation for pair in PAIRS])
    assert (clean.classifier(x).argmax(1).tolist()) == [clean.labels.index(str(pair.label)) for pair in PAIRS]
    pets, money = (
        clean.classifier(clean.generate("", 20, attribute=label, strength=3.0, length=1).vectors)[:, 1].exp().mean()
        for label in ("pets", "money")
    )
    assert clean.labels[1] == "pets"
    assert pets > money + 0.3


def test_options_act(model):
    plain = model.generate("the cat", 2)
    assert plain.nfe == 9, "8 steps and the last call"
    changed = {
        "steps": 9,
        "weight": 3.0,
        "sampler": "ddim",
        "attribute": "money",
        "seed": 1,
    }
    for name, value in changed.items():
        assert not torch.equal(model.generate("the cat", 2, **{name: value}).vectors, plain.vectors), name
    unmoved = copy(model)
    unmoved.config = replace(model.config, sample=replace(model.config.sample, scale=1.0))
    assert not torch.equal(unmoved.generate("the cat", 2).vectors, plain.vectors)
    assert model.generate("the cat", weight=3.0).nfe == 18
    assert model.generate("the cat", weight=0.0).nfe == 9
    assert model.generate("the cat", sampler="heun").nfe == 17
    assert len(model.verbaliser.tokenizer.encode(model.generate("the", length=1).continuations[0])) <= 1
    hot = model.generate("the", 8, temperature=5.0, top_p=1.0)
    assert hot.texts != model.generate("the", 8, temperature=5.0, top_p=1e-6).texts
    assert hot.texts != model.generate("the", 8, temperature=0.0).texts
    assert torch.equal(hot.vectors, model.generate("the", 8).vectors), "the decoder's options leave the proposal alone"
    forgetful = model.generate("the cat", 2, weight=0.0).vectors
    torch.testing.assert_close(forgetful, model.generate("", 2).vectors, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attribute": "pet"}, "unknown attribute 'pet'; did you mean 'pets'"),
        ({"num": 0}, "num=0"),
        ({"steps": 0}, "steps=0"),
        ({"length": 0}, "length=0"),
        ({"seeds": [1, 2]}, "2 seeds for 1 rows"),
        ({"sampler": "ancestrel"}, "did you mean 'ancestral'"),
        ({"sampler": "confidence"}, "fixed masks"),
        ({"attribute": "pets", "strength": -1.0}, "strength=-1"),
        ({"strength": -3.0}, "strength=-3"),
        ({"strength": 7.0}, r"strength=7.0 without an attribute"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"top_p": 0.0}, "top_p=0"),
    ],
)
def test_bad_options_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate("the", **options)


def test_a_model_without_labels_says_so(model):
    bare = rd.DGLM(model.config, model.encoder, model.proposer, model.verbaliser)
    with pytest.raises(ValueError, match=r"train with data\.label_field"):
        bare.generate("the", attribute="pets")


def test_half_a_folder_is_no_model(model, tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    model.save(folder)
    (folder / "model.safetensors").rename(folder / "away")
    with pytest.raises(ValueError, match=r"model\.safetensors: no such file"):
        rd.DGLM.load(folder)
    tensors = load_file(folder / "away")
    tensors["proposer.null"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"proposer\.null has shape \(3,\)"):
        rd.DGLM.load(folder)
    monkeypatch.setattr(model.encoder, "save", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save(folder)
    with pytest.raises(ValueError, match=r"no config\.json"):
        rd.DGLM.load(folder)
    (folder / "config.json").write_text('{"model_type": "redraft"}')
    with pytest.raises(ValueError, match="'redraft' is not 'redraft-dglm'"):
        rd.DGLM.load(folder)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_missing_part_is_not_looked_for_elsewhere(model, tmp_path, monkeypatch, part):
    """``mydglm/encoder`` would be a Hub id, of a stranger's."""
    monkeypatch.chdir(tmp_path)
    model.save("mydglm")
    shutil.rmtree(tmp_path / "mydglm" / part)
    with pytest.raises(ValueError, match=rf"mydglm: no folder '{part}' in it"):
        rd.DGLM.load("mydglm")


def test_a_saved_model_is_read_without_the_hub(model, tmp_path, monkeypatch):
    """Also where a file in it names another model, as that of an adapter does."""
    import transformers

    model.save(tmp_path)
    asked = {}

    def watch(name):
        auto = getattr(transformers, name)
        read = auto.from_pretrained

        def reading(*args, **options):
            asked.setdefault(name, options.get("local_files_only"))
            return read(*args, **options)

        monkeypatch.setattr(auto, "from_pretrained", reading)

    names = ["AutoConfig", "AutoTokenizer", "AutoModelForTextEncoding", "AutoModelForCausalLM"]
    for name in names:
        watch(name)
    rd.DGLM.load(tmp_path)
    assert asked == dict.fromkeys(names, True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("config", {"proposer": {"widht": 3}}, r"unknown field 'proposer\.widht'; did you mean 'proposer\.width'"),
        ("config", [], "damaged, AttributeError"),
        ("labels", 3, "damaged, TypeError"),
    ],
)
def test_a_damaged_config_is_refused(model, tmp_path, key, value, message):
    model.save(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stored, key: value}))
    with pytest.raises(ValueError, match=message):
        rd.DGLM.load(tmp_path)


def test_divergence_stops_the_run(tmp_path):
    wild = {"train.verbaliser.lr": 1e30, "train.verbaliser.warmup": 0, "train.proposer.steps": 1}
    with pytest.raises(ValueError, match=r"diverged at step \d+ of the verbaliser.*train\.verbaliser\.lr"):
        rd.DGLM.train("dglm_toy", PAIRS, tmp_path / "run", {**FAST, **wild})
    assert not (tmp_path / "run" / "config.json").exists()


# ------------------------------------------------------------------------------------------- data, recipes, commands


def test_pieces_join_to_the_text():
    text = "one two\n\nthree  four five six seven "
    pieces = list(cut(text, PairsConfig(words=4, prefix_share=0.5)))
    assert [piece.prefix + piece.continuation for piece in pieces] == ["one two\n\nthree  four", "five six seven"]
    assert [len(piece.prefix.split()) for piece in pieces] == [2, 1]
    assert next(cut(text, PairsConfig(words=4, prefix_share=0.0))).prefix == ""


def test_records(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [{"prompt": "a", "completion": " b", "kind": 1}, {"text": "c d", "kind": "x"}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    pairs = read_pairs(path, PairsConfig(label_field="kind"))
    assert pairs == [Pair("a", " b", "1"), Pair("c", " d", "x")]
    assert read_pairs(path, PairsConfig(max_documents=1)) == [Pair("a", " b")]
    with pytest.raises(ValueError, match=r"line 1: unknown field 'kin'; did you mean 'kind'"):
        read_pairs(path, PairsConfig(label_field="kin"))
    plain = tmp_path / "data.txt"
    plain.write_text("a b c d")
    assert read_pairs(plain, PairsConfig(words=2)) == [Pair("a", " b"), Pair("c", " d")]
    with pytest.raises(ValueError, match="has no records"):
        read_pairs(plain, PairsConfig(label_field="kind"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: no JSON object"),
        ('{"body": "x"}', "unknown field 'text'"),
        ('{"text": 3}', "field 'text' is 3, not a string"),
        ('{"prompt": "a", "completion": " "}', "its continuation is empty"),
        ("", "no text to learn from"),
    ],
)
def test_bad_records_are_refused(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        read_pairs(path, PairsConfig())


def test_labels_are_for_all_or_none():
    half = [PAIRS[0], Pair("a", " b")]
    with pytest.raises(ValueError, match="label all or none"):
        rd.DGLM.train("dglm_toy", half)
    with pytest.raises(ValueError, match="nothing to tell apart"):
        rd.DGLM.train("dglm_toy", PAIRS[:4])


def test_recipes():
    for name, recipe in configs.RECIPES.items():
        made = recipe()
        assert made.recipe == name
        assert recipes.from_dict(json.loads(json.dumps(recipes.to_dict(made))), configs.DGLMConfig) == made
    paper = configs.dglm_paper()
    assert (paper.proposer.predicts, paper.proposer.weighting, paper.proposer.drop) == ("v", "sigmoid", 0.1)
    assert (paper.proposer.gamma_min, paper.proposer.gamma_max) == (-15, 15)
    assert (paper.verbaliser.soft_tokens, paper.verbaliser.noise) == (8, 0.05)
    assert (paper.sample.scale, paper.sample.top_p) == (3.0, 0.9)
    assert 50 <= paper.sample.steps <= 250
    shorter = replace(paper, data=replace(paper.data, max_documents=3))
    changed = recipes.override(shorter, {"train.proposer.lr": "3e-4", "data.max_documents": "none"})
    assert (changed.train.proposer.lr, changed.data.max_documents) == (3e-4, None)
    with pytest.raises(ValueError, match=r"unknown field 'proposer\.widht'; did you mean 'proposer\.width'"):
        recipes.override(paper, {"proposer.widht": 3})
    with pytest.raises(ValueError, match=r"proposer\.width='x'"):
        recipes.override(paper, {"proposer.width": "x"})
    with pytest.raises(ValueError, match="unknown DGLM recipe 'dglm_toi'; did you mean 'dglm_toy'"):
        configs.get("dglm_toi")


def test_commands(tmp_path):
    data, out = tmp_path / "data.jsonl", tmp_path / "run"
    rows = [{"prompt": pair.prefix, "completion": pair.continuation, "kind": pair.label} for pair in PAIRS]
    data.write_text("\n".join(map(json.dumps, rows)))
    few = {name: "2" for name in FAST if name.endswith("steps")}
    fields = [part for name, value in {**FAST, **few}.items() for part in (f"--{name}", str(value))]
    runner = CliRunner()
    options = ["--data", str(data), "--out", str(out), "--data.label_field", "kind", "--json", *fields]
    found = runner.invoke(app, ["dglm", "train", "dglm_toy", *options])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout) == {"out": str(out), "labels": ["money", "pets"]}
    steps = [json.loads(line)["stage"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == ["proposer", "verbaliser", "classifier"]
    again = runner.invoke(app, ["dglm", "train", "dglm_toy", *options])
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    asked = ["dglm", "generate", str(out), "--prompt", "the", "--num", "2", "--attribute", "pets"]
    told = json.loads(runner.invoke(app, [*asked, "--json"]).stdout)
    expected = rd.DGLM.load(out).generate("the", 2, attribute="pets")
    assert told == expected.to_dict()
    shown = runner.invoke(app, asked)
    assert shown.stdout == "".join(text + "\n" for text in expected.texts)
    assert "3 denoiser calls" in shown.stderr
    wrong = runner.invoke(app, ["dglm", "train", "dglm_toy", "--data", str(data), "--proposer.widht", "3"])
    assert wrong.exit_code == 2
    assert "did you mean '--proposer.width'" in wrong.stderr
    assert "redraft list dglm" in wrong.stderr


@pytest.mark.parametrize("terminal", [True, False])
def test_a_text_cannot_steer_the_terminal(monkeypatch, capsys, terminal):
    text = "a\x07b\n\tc"
    made = dglm_model.Written([text], [text], torch.zeros(1, 2), [0], 3)
    monkeypatch.setattr(rd.DGLM, "load", lambda *args: rd.DGLM)
    monkeypatch.setattr(rd.DGLM, "generate", lambda *args, **options: made)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    commands.generate("kept")
    assert capsys.readouterr().out == ("a␇b\n\tc\n" if terminal else text + "\n")
