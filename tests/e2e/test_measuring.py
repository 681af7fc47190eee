"""``redraft evaluate``: figures with estimator and error bar, and every fault a user's file can have."""

import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import redraft
from redraft.data import toy
from redraft.sampling import DEFAULT_STEPS

MEGABYTE = 1_000_000


def edit_weights(model, change):
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors")


def flat(model):
    edit_weights(model, lambda weights: weights["model.head.weight"].zero_())


def test_evaluate_prints_figure_error_bar_and_estimator(run, models):
    done = run("evaluate", models(), "--data", "toy", "--draws", 2, "--rows", 20)
    assert done.exit_code == 0
    for word in ("nats per token", "bits per character", " ± ", "upper bound", "perplexity", "NELBO", "2 draws"):
        assert word in done.stdout


def test_evaluate_json_is_what_the_api_measures(run, models):
    done = run("evaluate", models(), "--data", "toy", "--draws", 2, "--rows", 20, "--seed", 5, "--json")
    assert done.stderr == ""
    found = json.loads(done.stdout)
    made = found.pop("made")
    assert found == {"model": models()} | redraft.load(models()).evaluate("toy", draws=2, rows=20, seed=5).to_dict()
    assert made["seeds"] == [5]
    assert made["machine"]["redraft"] == redraft.__version__
    assert found["bits_per_char_error"] > 0
    assert found["estimator"]


def test_a_model_that_knows_nothing_is_as_good_as_guessing(run, copy):
    flat(copy)
    found = json.loads(run("evaluate", copy, "--data", "toy", "--draws", 64, "--json").stdout)
    assert found["nats_per_token"] == pytest.approx(math.log(13), abs=found["nats_per_token_error"] + 0.01)


@pytest.mark.parametrize("name", ["masked", "gaussian"])
def test_samples_come_with_variety_and_cost(name, run, models):
    done = run("evaluate", models(name), "--data", "toy", "--rows", 10, "--samples", 40, "--json")
    found = json.loads(done.stdout)["samples"]
    assert found["samples"] == 40
    assert 1 <= found["nfe"] <= DEFAULT_STEPS + 1
    assert all(0 < found[f"distinct_{n}"] <= 1 for n in (1, 2, 3))
    assert found["well_formed"] + found["agreement"] + found["ill_formed"] == pytest.approx(1)
    assert set(toy.report(["x"])) - {"n"} <= set(found)


def test_samples_in_words(run, models):
    done = run("evaluate", models("masked", "bytes"), "--data", __file__, "--rows", 4, "--samples", 2)
    assert done.exit_code == 2, "a .py file is not text we take"
    done = run("evaluate", models(), "--data", "toy", "--rows", 4, "--samples", 2)
    for word in ("unigram entropy", "distinct 2", "nfe", "well formed"):
        assert word in done.stdout


def test_text_field(run, refused, models, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"body": "we are cat s"}\n{"body": "you are cat s"}\n')
    done = run("evaluate", models(), "--data", "x.jsonl", "--text-field", "body", "--json")
    assert json.loads(done.stdout)["rows"] == 2
    refused("evaluate", models(), "--data", "x.jsonl", words=("'text'", "body"))


def one_line(path):
    with path.open("wb") as file:
        file.write(b"a" * 11 * MEGABYTE)
        file.truncate(100 * MEGABYTE)


BAD_FILES = {
    "empty.txt": (lambda path: path.write_bytes(b""), "empty"),
    "blank.txt": (lambda path: path.write_bytes(b" \n\n"), "no text"),
    "binary.txt": (lambda path: path.write_bytes(bytes(range(256)) * 10), "binary"),
    "latin1.txt": (lambda path: path.write_bytes("Müll und Käse\n".encode("latin-1") * 20), "not UTF-8"),
    "utf16.txt": (lambda path: path.write_bytes("Text\n".encode("utf-16")), "UTF-16"),
    "line.txt": (one_line, "line longer"),
    "broken.jsonl": (lambda path: path.write_text('{"text": "a"\n'), "line 1"),
    "broken.parquet": (lambda path: path.write_text("no"), "parquet"),
    "image.png": (lambda path: path.write_bytes(b"\x89PNG"), "'.png'"),
    "folder": (lambda path: path.mkdir(), "no .txt"),
    "missing.txt": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_evaluate_refuses_bad_text(name, refused, models, tmp_path):
    make, word = BAD_FILES[name]
    make(tmp_path / name)
    refused("evaluate", models("masked", "bytes"), "--data", name, words=(name, word))


@pytest.mark.parametrize("name", BAD_FILES)
def test_train_refuses_bad_text(name, refused, tmp_path):
    make, word = BAD_FILES[name]
    make(tmp_path / name)
    refused("train", "mdlm", "--data", name, "--out", "run", words=(name, word))
    assert not (tmp_path / "run").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--draws", "0"], ["draws=0"]),
        (["--rows", "1"], ["rows"]),
        (["--samples", "-1"], ["num=-1"]),
        (["--seed", "x"], ["--seed"]),
        (["--drows", "2"], ["--drows", "--draws"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_evaluate_refuses(options, words, refused, models):
    refused("evaluate", models(), "--data", "toy", *options, words=tuple(words))


def test_a_text_of_strange_units(refused, models, tmp_path):
    (tmp_path / "x.txt").write_text("our cat are\nour cta is\n")
    refused("evaluate", models(), "--data", "x.txt", words=("'cta'", "'cat'"))


# ------------------------------------------------------------------------------------------------- damaged folders


def rename_a_key(model):
    edit_weights(model, lambda weights: weights.update({"model.hat.weight": weights.pop("model.head.weight")}))


def reshape_a_weight(model):
    edit_weights(model, lambda weights: weights.update({"model.head.weight": weights["model.head.weight"][1:].clone()}))


def truncate(model):
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[: len(data) // 2])


def edit_config(change):
    def damage(model):
        config = json.loads((model / "config.json").read_text())
        change(config)
        (model / "config.json").write_text(json.dumps(config))

    return damage


DAMAGE = {
    "truncated weights": (truncate, "model.safetensors"),
    "empty weights": (lambda model: (model / "model.safetensors").write_bytes(b""), "model.safetensors"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "model.safetensors"),
    "renamed key": (rename_a_key, "head.weight"),
    "another shape": (reshape_a_weight, "head.weight"),
    "broken config": (lambda model: (model / "config.json").write_text('{"model_type": "redr'), "config.json"),
    "config of a list": (lambda model: (model / "config.json").write_text("[]"), "config.json"),
    "no config": (lambda model: (model / "config.json").unlink(), "config.json"),
    "another model type": (edit_config(lambda config: config.update(model_type="llama")), "'llama'"),
    "another depth": (edit_config(lambda config: config["transformer"].update(depth=2)), "model.safetensors"),
    "unknown field": (edit_config(lambda config: config["transformer"].update(deep=2)), "deep"),
    "no process": (edit_config(lambda config: config["transformer"].pop("process")), "config.json"),
    "unknown process": (edit_config(lambda config: config["transformer"]["process"].update(name="mask")), "'mask'"),
    "no context": (edit_config(lambda config: config["about"].pop("context")), "context"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "tokenizer.json"),
    "broken tokenizer": (lambda model: (model / "tokenizer.json").write_text("{"), "tokenizer.json"),
    "depth of words": (edit_config(lambda config: config["transformer"].update(depth="two")), "config.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_refused_whole(name, refused, copy):
    damage, word = DAMAGE[name]
    damage(copy)
    refused("generate", copy, words=(word,))


def test_a_tokenizer_of_another_model_is_refused(refused, copy, models):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).write_bytes((Path(models("masked", "bytes")) / name).read_bytes())
    refused("generate", copy, words=("13", "257"))
