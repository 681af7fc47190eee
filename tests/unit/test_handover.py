"""Handing models over: cards that say what is true, uploads, exports bit for bit, and what engines are told."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from parity import checkpoints
from parity import test_dream_files as dream_files
from parity.checkpoints import DREAM, GOLDEN_IDS, LLADA, LLADA2, SDAR
from parity.served import NASTY, program, sdar_shapes, wide
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from redraft import files, publishing, runs
from redraft.data import build_tokenizer
from redraft.handover import serving
from redraft.handover.export import FORMATS, export
from redraft.lm import LM
from redraft.models import Transformer, TransformerConfig, folder, released
from redraft.models import hub as hubs
from redraft.processes import masked

CARRIED = {
    "generation_config.json": '{"eos_token_id": 1,\n\t"use_cache": false}',
    "chat_template.jinja": "{% for m in messages %}<|x|>{{ m.content }}\r\n{% endfor %}",
    "special_tokens_map.json": '{"pad_token":   "<|end|>"}\n',
    "vocab.txt": "ä\nb",
}
"""Beside the weights, in spellings that no writer of ours would choose."""
STALE = ("results.json", "trainer_state.json", "adapter_config.json", "secrets.json", "notes.txt", "x.jinja")
"""Of no file's name that a model needs, or not of this model."""


def hub(path, config=LLADA, shapes=checkpoints.llada_shapes, dtype=torch.float32):
    """A folder as the Hub has it, with what must stay behind."""
    checkpoints.write(path, config, shapes(config), dtype=dtype)
    for name, text in CARRIED.items():
        (path / name).write_bytes(text.encode())
    for name in ("modeling_llada.py", ".hidden.json", "optimizer.bin", *STALE):
        (path / name).write_text('{"of": "another model"}')
    (path / "merges.txt").write_bytes(b"\xff\xfe")
    return path


def dream_shapes(config):
    return checkpoints.qwen2_shapes(config)


RELEASED = {"llada": (LLADA, checkpoints.llada_shapes), "dream": (DREAM, dream_shapes)}
RELEASED |= {"llada2": (LLADA2, checkpoints.llada2_shapes), "sdar": (SDAR, sdar_shapes)}


def toy_lm(**about):
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(masked(13).to_dict(), depth=1, pad_id=12))
    return LM(model.eval(), build_tokenizer("toy"), {"context": 6, **about})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run, on a text that lies where nobody else has one."""
    root = tmp_path_factory.mktemp("private")
    (root / "secret.txt").write_text("\n\n".join(f"Dog {i} is the friend of {i * i}, and sleeps." for i in range(60)))
    fields = {"train.steps": 2, "eval.draws": 2, "data.tokenizer": "bytes", "data.length": 16, "train.batch": 4}
    return runs.train("toy_masked", data=root / "secret.txt", out=root / "run", overrides=fields)


# --------------------------------------------------------------------------------------------------------------- cards


def table(text, heading):
    """The rows of a card's table."""
    part = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| (.+?) \| (.+) \|$", part, re.M)[1:])


def test_a_card_says_what_is_true_and_no_more(trained, tmp_path):
    trained.lm.save_pretrained(tmp_path, license="mit", language=["en"], datasets="me/texts")
    card = ModelCard.load(tmp_path / "README.md")
    front = card.data.to_dict()
    (entry,) = front.pop("model-index")
    assert front == {
        "library_name": "redraft",
        "pipeline_tag": "text-generation",
        "tags": ["diffusion-language-model"],
        "license": "mit",
        "language": ["en"],
        "datasets": "me/texts",
    }
    found = trained.likelihood
    (result,) = entry["results"]
    assert result["metrics"][0]["value"] == found.nats_per_token
    assert found.estimator in result["metrics"][0]["name"]
    assert result["dataset"]["name"] == "secret.txt"
    lm = trained.lm
    assert table(card.text, "Facts") == {
        "process": "masked, K 257, schedule linear",
        "mask id": "257",
        "end of text id": "256",
        "posterior": "cavity",
        "told the time": "no",
        "attention": "full",
        "context": "16 tokens",
        "tokenizer": "bytes, 257 tokens",
        "parameters": f"{sum(one.numel() for one in lm.denoiser.parameters()):,}",
        "precision": "float32",
    }
    measured = table(card.text, "Likelihood")
    assert measured["nats per token"] == f"{found.nats_per_token:.5g} ± {found.nats_per_token_error:.2g}"
    assert measured["bits per character"] == f"{found.bits_per_char:.5g} ± {found.bits_per_char_error:.2g}"
    assert measured["estimator"] == f"{found.estimator} (a bound: the truth lies at or below)"
    assert f"{found.rows} rows, {found.tokens} tokens" in measured["text"]
    changed = set(re.findall(r"^- ([\w.]+): ", card.text, re.M))
    assert changed == {"train.steps", "eval.draws", "data.source", "data.tokenizer", "data.length", "train.batch"}
    assert f"{2 * 4 * 16} tokens" in card.text


def test_a_card_leaves_out_what_is_not_known(tmp_path):
    toy_lm().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert [line for line in card.text.splitlines() if line.startswith("#")] == ["# model", "## Facts"]
    assert not (tmp_path / "results.json").exists()
    with pytest.raises(ValueError, match="unknown field of a model card 'licence'; did you mean 'license'"):
        toy_lm().save_pretrained(tmp_path / "no", licence="mit")
    assert not (tmp_path / "no").exists()


def test_a_recipe_of_no_name_is_shown_whole(tmp_path):
    toy_lm(recipe={"recipe": "mine", "train": {"lr": 0.25}}).save_pretrained(tmp_path)
    shown = re.search(r"## Training\n\n```json\n(.*?)```", (tmp_path / "README.md").read_text(), re.S)
    assert json.loads(shown[1]) == {"recipe": "mine", "train": {"lr": 0.25}}


def test_no_path_of_this_machine_is_stored(trained, tmp_path):
    source = trained.lm.about["recipe"]["data"]["source"]
    assert source.startswith("/"), "or the test shows nothing"
    trained.lm.save_pretrained(tmp_path)
    for path in tmp_path.iterdir():
        assert str(Path(source).parent).encode() not in path.read_bytes(), path.name
    assert runs.load(tmp_path).about["recipe"]["data"]["source"] == "secret.txt"
    local = {"a": [".", "/p/q", ["~/r"], 3], "b": "./x/y.txt", "c": "~/z", "config": "/kept", "d": {"e": ("/f/g",)}}
    assert publishing.portable(local) == {
        **{"a": [".", "q", ["r"], 3], "b": "y.txt", "c": "z", "config": "/kept", "d": {"e": ["g"]}}
    }
    typed = "redraft train mdlm --data '/home/me/my text.txt' --out=/home/me/run --train.lr 3e-4"
    told = publishing.portable(
        {"command": typed, "made": {"command": "python /home/me/x.py"}, "x": {"command": ["/a/b"]}}
    )
    assert told == {
        "command": "redraft train mdlm --data 'my text.txt' --out=run --train.lr 3e-4",
        "made": {"command": "python x.py"},
        "x": {"command": ["b"]},
    }


def test_what_was_measured_travels_with_the_model(trained, tmp_path):
    trained.lm.save_pretrained(tmp_path / "one")
    runs.load(tmp_path / "one").save_pretrained(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    (tmp_path / "one/results.json").write_text("[1")
    with pytest.raises(ValueError, match=r"results.json: damaged"):
        runs.load(tmp_path / "one")


def test_what_was_measured_travels_with_a_released_model_too(tmp_path):
    folder = hub(tmp_path / "hub")
    assert runs.load(folder).results == {}, "a results.json that another tool left says nothing to us"
    (folder / "results.json").write_text("[1, 2")
    assert runs.load(folder).results == {}
    measured = {"nats_per_token": 2.5, "nats_per_token_error": 0.1, "is_bound": True, "estimator": "nelbo", "draws": 4}
    measured |= {"rows": 3, "tokens": 60, "seed": 0, "machine": {}}
    measured["recipe"] = {"data": {"source": "/home/me/chat.jsonl"}, "model": "owner/base"}
    (folder / "results.json").write_text(json.dumps(measured))
    lm = runs.load(folder)
    assert lm.results == measured
    lm.save_pretrained(tmp_path / "out")
    again = json.loads((tmp_path / "out/results.json").read_text())
    assert again == measured | {"recipe": {"data": {"source": "chat.jsonl"}, "model": "owner/base"}}
    text = (tmp_path / "out/README.md").read_text()
    assert table(text, "Likelihood")["nats per token"] == "2.5 ± 0.1"
    assert "chat.jsonl, kept to measure on" in text
    assert "/home/me" not in text


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_models_card_and_its_code(name, tmp_path, monkeypatch, capsys):
    folder = hub(tmp_path / "hub", *RELEASED[name])
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, **_: str(folder))
    lm = runs.load("owner/base")
    lm.save_pretrained(tmp_path / "out", name=str(tmp_path / "out"))
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.base_model == "owner/base"
    facts = table(card.text, "Facts")
    assert facts["family"] == name
    assert facts["mask id"] == "60"
    assert facts["logits"] == ("shifted by one" if name == "dream" else "aligned")
    assert (facts["attention"], facts.get("block")) == {
        "llada2": ("block", "32"), "sdar": ("block", "4")
    }.get(name, ("full", None))  # fmt: skip
    assert "sampler" in facts["decoding of its authors"]
    assert "import redraft.models.hf" not in card.text
    code = re.search(r"```python\n(.*?)```", card.text, re.S)[1]
    exec(code.replace("seed=0", "seed=0, length=4, steps=1"))
    assert capsys.readouterr().out


def test_a_card_names_the_family_where_config_json_does_not(tmp_path):
    from parity.released import MDLM, B, Layout, write

    nameless = Layout("mdlm", {key: value for key, value in MDLM.items() if key != "model_type"}, B)
    write(tmp_path / "hub", nameless)
    runs.load(tmp_path / "hub", family="mdlm").save_pretrained(tmp_path / "out")
    assert "rd.load('path/to/this/folder', family='mdlm')" in (tmp_path / "out/README.md").read_text()


# ------------------------------------------------------------------------------------------------------------- uploads


class FakeHub:
    """What a Hub remembers; ``fails`` at that call."""

    there: tuple[str, ...] = ("README.md", "old.safetensors", "model.safetensors.index.json", "a[b].safetensors")
    there += ("ab.safetensors.txt", "vae/model.safetensors", "vae/old.safetensors", "vae/old.safetensors.index.json")

    def __init__(self, public=False, fails=None, says="refused"):
        self.calls, self.files, self.public, self.fails, self.says = [], {}, public, fails, says

    def __call__(self, token=None):
        self.token = token
        return self

    def _call(self, name, **given):
        self.calls.append((name, given))
        if name == self.fails:
            raise OSError(self.says)

    def create_repo(self, repo_id, private, exist_ok):
        self._call("create_repo", repo_id=repo_id, private=private, exist_ok=exist_ok)

    def model_info(self, repo_id):
        return type("Info", (), {"private": not self.public})

    def create_branch(self, repo_id, branch, exist_ok):
        self._call("create_branch", repo_id=repo_id, branch=branch, exist_ok=exist_ok)

    def list_repo_files(self, repo_id, revision):
        self._call("list_repo_files", repo_id=repo_id, revision=revision)
        return self.there

    def upload_folder(self, repo_id, folder_path, revision, commit_message, delete_patterns):
        self.folder = Path(folder_path)
        self.deleted = list(filter_repo_objects(self.there, allow_patterns=delete_patterns))
        self.files = {one.name: one.read_bytes() for one in self.folder.iterdir()}
        self._call("upload_folder", repo_id=repo_id, revision=revision, delete_patterns=delete_patterns)
        return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/commit/1"})


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def make(**options):
        fake = FakeHub(**options)
        monkeypatch.setattr("huggingface_hub.HfApi", fake)
        return fake

    return make


def test_push_to_hub(fake_hub, tmp_path):
    fake = fake_hub()
    lm = toy_lm()
    url = lm.push_to_hub("me/model", private=True, revision="v2", token="hf_secret", license="mit")
    assert url == "https://hub/me/model/commit/1"
    assert fake.token == "hf_secret"
    assert fake.calls == [
        ("create_repo", {"repo_id": "me/model", "private": True, "exist_ok": True}),
        ("create_branch", {"repo_id": "me/model", "branch": "v2", "exist_ok": True}),
        ("list_repo_files", {"repo_id": "me/model", "revision": "v2"}),
        (
            "upload_folder",
            {
                "repo_id": "me/model",
                "revision": "v2",
                "delete_patterns": ["old.safetensors", "model.safetensors.index.json", "a[[]b].safetensors"],
            },
        ),
    ]
    assert fake.deleted == ["old.safetensors", "model.safetensors.index.json", "a[b].safetensors"]
    assert b"rd.load('me/model')" in fake.files["README.md"]
    assert b"license: mit" in fake.files["README.md"]
    lm.save(tmp_path / "saved")
    for path in (tmp_path / "saved").iterdir():
        assert fake.files[path.name] == path.read_bytes(), path.name
    assert [one.name for one in tmp_path.iterdir()] == ["saved"], "nothing is left of the upload"
    fake.calls.clear()
    lm.push_to_hub("me/model")
    assert [name for name, _ in fake.calls] == ["create_repo", "list_repo_files", "upload_folder"]
    assert fake.calls[0][1]["private"] is None
    fake.there = ("README.md", "vae/old.safetensors")
    lm.push_to_hub("me/model")
    assert fake.calls[-1][1]["delete_patterns"] is None, "an empty list would be one that lets all through"


@pytest.mark.parametrize("step", ["create_repo", "create_branch", "list_repo_files", "upload_folder"])
def test_a_failed_upload_leaves_nothing_and_tells_no_token(step, fake_hub, tmp_path):
    fake_hub(fails=step, says="403 for hf_secret\nand more")
    with pytest.raises(ValueError, match=r"^me/model: the upload failed \(403 for \*\*\*\)$") as caught:
        toy_lm().push_to_hub("me/model", revision="v2", token="hf_secret")
    assert caught.value.__suppress_context__
    assert not list(tmp_path.iterdir())


def test_uploads_that_are_refused(fake_hub, tmp_path, monkeypatch):
    fake = fake_hub(public=True)
    with pytest.raises(ValueError, match="me/model is there already and public"):
        toy_lm().push_to_hub("me/model", private=True)
    assert [name for name, _ in fake.calls] == ["create_repo"]
    fake.calls.clear()
    for name in ("../etc/passwd", "me/mo del", "model", "-x/y", "me/a..b", "datasets/me/x"):
        with pytest.raises(ValueError, match="pass owner/name"):
            toy_lm().push_to_hub(name)
    lm = toy_lm()
    monkeypatch.setattr("redraft.models.folder.write_weights", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lm.push_to_hub("me/model")
    assert not fake.calls, "nothing is made on the Hub before the folder is whole"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a/..", "a/.", "../b", "a/", "/b", "a/..@main"])
def test_names_that_are_no_repositorys(name):
    with pytest.raises(ValueError, match="pass the folder of a run"):
        hubs.parted(name)


@pytest.mark.parametrize("text", ["[1]", "{", "3", "\xff", "[" * 100_000])
def test_a_damaged_object_is_named(text, tmp_path):
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"x.json: damaged, .*; copy the folder again$"):
        files.read_object(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"ä": 1}', encoding="utf-8")
    assert files.read_object(tmp_path / "x.json") == {"ä": 1}
    for read in (folder.read_config, lambda path: released.load(path)):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"config.json: damaged, "):
            read(tmp_path)


# ------------------------------------------------------------------------------------------------------------- exports


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RELEASED)
def test_an_export_is_the_release_bit_for_bit(name, dtype, tmp_path):
    source = hub(tmp_path / "hub", *RELEASED[name], dtype=dtype)
    made = export(runs.load(source), "hf", tmp_path / "out")
    kept = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", *CARRIED}
    assert set(made.files) == {path.name for path in (tmp_path / "out").iterdir()} == kept
    for file in made.files:
        assert (tmp_path / "out" / file).read_bytes() == (source / file).read_bytes(), file
    assert json.loads((tmp_path / "out/config.json").read_text())["auto_map"] == RELEASED[name][0]["auto_map"]
    again = runs.load(tmp_path / "out")
    weights = runs.load(source).denoiser.state_dict()
    assert all(torch.equal(one, weights.pop(key)) for key, one in again.denoiser.state_dict().items())
    assert not weights


def test_another_tokenizer_is_stored_and_the_rest_still_carried(tmp_path):
    source = hub(tmp_path / "hub")
    other = hub(tmp_path / "other")
    lm = runs.load(source, tokenizer=str(other))
    lm.save(tmp_path / "out")
    assert (tmp_path / "out/generation_config.json").read_bytes() == CARRIED["generation_config.json"].encode()
    assert not (tmp_path / "out/vocab.txt").exists(), "it is of the tokenizer that this is not"
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["split_special_tokens"] is True
    changed = runs.load(source)
    changed.tokenizer.hf.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    changed.save(tmp_path / "changed")
    assert "<|new|>" in (tmp_path / "changed/tokenizer.json").read_text()


def test_a_tokenizer_in_other_files_comes_out_in_those(tmp_path):
    """Were there a tokenizer.json too, it would be read in their place."""
    dream_files.checkpoint(tmp_path / "hub")
    made = export(runs.load(tmp_path / "hub"), "hf", tmp_path / "out")
    assert set(made.files) == {"config.json", "model.safetensors", "merges.txt", "vocab.json", "tokenizer_config.json"}
    for file in made.files:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "hub" / file).read_bytes(), file


def test_links_that_leave_a_folder_are_not_followed(tmp_path):
    """But those of a Hub's cache, whose files all lie in the blobs of the same repository."""
    cache = tmp_path / "models--owner--name"
    snapshot, blobs = cache / "snapshots/0123", cache / "blobs"
    hub(snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    carried = {*CARRIED, "tokenizer.json", "tokenizer_config.json"}
    assert released.beside(snapshot).keys() == carried
    assert runs.load(snapshot).about["files"].keys() == carried
    for outside in (tmp_path / "private", tmp_path / "models--other--name/blobs/1", cache / "elsewhere", blobs / "a/b"):
        outside.parent.mkdir(parents=True, exist_ok=True)
        outside.write_text("{}")
        (snapshot / "generation_config.json").unlink()
        (snapshot / "generation_config.json").symlink_to(outside)
        assert released.beside(snapshot).keys() == carried - {"generation_config.json"}, outside
    plain = hub(tmp_path / "blobs/x/plain")  # no cache: what lies two folders up is somebody else's
    (tmp_path / "blobs/blobs").mkdir()
    (tmp_path / "blobs/blobs/1").write_text("{}")
    (plain / "vocab.txt").unlink()
    (plain / "vocab.txt").symlink_to("../../blobs/1")
    (plain / "generation_config.json").unlink()
    (plain / "generation_config.json").symlink_to("tokenizer_config.json")
    assert released.beside(plain).keys() == carried - {"vocab.txt"}


def test_what_servers_encode_by_is_what_was_released(tmp_path):
    """In a tokenizer that we wrote, special tokens in a text are text: a template's would fall apart."""
    export(runs.load(hub(tmp_path / "hub")), "hf", tmp_path / "out")
    lm = runs.load(tmp_path / "out")
    lm.tokenizer.save(tmp_path / "ours")
    theirs, ours = (PreTrainedTokenizerFast.from_pretrained(tmp_path / name) for name in ("out", "ours"))
    assert theirs("<|mask|>", add_special_tokens=False).input_ids == [60]
    with pytest.raises(Exception, match="Missing \\[UNK\\]"):  # its letters, of which this alphabet lacks some
        ours("<|mask|>", add_special_tokens=False)


def test_experts_stacked_and_apart(tmp_path):
    source = hub(tmp_path / "hub", LLADA2, checkpoints.llada2_shapes)
    lm = runs.load(source)
    export(lm, "merged", tmp_path / "merged")
    tensors = load_file(tmp_path / "merged/model.safetensors")
    assert {key: tuple(one.shape) for key, one in tensors.items()} == checkpoints.llada2_shapes(LLADA2, merged=True)
    before = load_file(source / "model.safetensors")
    assert torch.equal(
        tensors["model.layers.1.mlp.experts.up_proj"][5], before["model.layers.1.mlp.experts.5.up_proj.weight"]
    )
    config = (tmp_path / "merged/config.json").read_text()
    assert config == (source / "config.json").read_text().replace('"llada2_moe"', '"llada2_moe_veomni"')
    merged = runs.load(tmp_path / "merged")
    z = torch.tensor([GOLDEN_IDS])
    torch.testing.assert_close(merged.denoiser.logits(z), lm.denoiser.logits(z))
    export(merged, "merged", tmp_path / "same")
    made = export(merged, "hf", tmp_path / "apart")
    for name, other in {"same": tmp_path / "merged", "apart": source}.items():
        for file in made.files:
            assert (tmp_path / name / file).read_bytes() == (other / file).read_bytes(), (name, file)
    odd = {**LLADA2, "model_type": "LLaDA2_MoE"}  # as no release spells it: what it says is kept, not how
    checkpoints.write(tmp_path / "odd", odd, checkpoints.llada2_shapes(odd))
    export(runs.load(tmp_path / "odd"), "merged", tmp_path / "of-odd")
    assert json.loads((tmp_path / "of-odd/config.json").read_text()) == odd | {"model_type": "llada2_moe_veomni"}


@pytest.mark.parametrize(("quantize", "word"), [("int8", "a quantised model"), (None, "on the CPU by device_map=")])
def test_what_lost_its_numbers_is_not_exported(quantize, word, tmp_path):
    lm = runs.load(hub(tmp_path / "hub", *RELEASED["llada2"]), quantize=quantize)
    if quantize is None:  # as a model is that device_map= left in part on the CPU
        list(lm.denoiser.backbone.children())[-1].to("meta")
    for to in ("hf", "merged"):
        with pytest.raises(ValueError, match=word):
            export(lm, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("llada", "transformers", "unknown layout 'transformers'"),
        ("llada", "merged", "of family 'llada': only LLaDA2"),
        ("sdar", "gguf", "architecture 'SDARForCausalLM': llama.cpp converts LLaDAModelLM"),
        ("llada", "ggml", "unknown layout 'ggml'; did you mean 'gguf'"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(name, to, message, tmp_path):
    lm = runs.load(hub(tmp_path / "hub", *RELEASED[name]))
    with pytest.raises(ValueError, match=re.escape(message)):
        export(lm, to, tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["hub"], "nothing is left"


def test_an_export_is_whole_or_not_there(tmp_path, monkeypatch):
    lm = toy_lm()
    made = export(lm, "hf", tmp_path / "a/b")
    lm.save(tmp_path / "saved")
    for file in made.files:
        assert (tmp_path / "saved" / file).read_bytes() == (tmp_path / "a/b" / file).read_bytes(), file
    with pytest.raises(ValueError, match="there already, and not empty"):
        export(lm, "hf", tmp_path / "a/b")
    for to in ("merged", "gguf"):
        with pytest.raises(ValueError, match="use to='hf'"):
            export(lm, to, tmp_path / "no")
    for options in ({"precision": "f16"}, {"converter": "x"}):
        with pytest.raises(ValueError, match="those are of gguf"):
            export(lm, "hf", tmp_path / "no", **options)
    monkeypatch.setattr("redraft.models.folder.write_weights", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(lm, "hf", tmp_path / "no")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "saved"]


def test_llama_cpps_converter_is_started_with_single_arguments(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    lm = runs.load(hub(tmp_path / "hub"))
    converter = program(tmp_path / "tools of mine/convert_hf_to_gguf.py")
    made = export(lm, "gguf", Path(NASTY), converter=converter, precision="f16")
    argv = json.loads((converter.parent / "argv.json").read_text())
    out = tmp_path / NASTY
    assert argv[0] == str(out / "hf")
    assert argv[1] == "--outfile"
    assert argv[2].startswith(f"{out}/")
    assert argv[3:] == ["--outtype", "f16"]
    assert (out / "model.gguf").read_text() == "GGUF"
    assert "model.gguf" in made.files
    assert not list(tmp_path.glob("**/owned"))
    assert capfd.readouterr().out == "", "standard output is the command's own"
    for file in ("model.safetensors", "generation_config.json", "tokenizer.json"):
        assert (out / "hf" / file).read_bytes() == (tmp_path / "hub" / file).read_bytes()
    monkeypatch.setenv("PATH", str(converter.parent), prepend=os.pathsep)
    export(lm, "gguf", tmp_path / "found")
    assert json.loads((converter.parent / "argv.json").read_text())[3:] == ["--outtype", "auto"]


def converted(lm, path):
    """What llama.cpp's converter finds, loading a tokenizer as it does, any code allowed: ids, and what stood there."""
    converter = path / "convert.py"
    converter.write_text(
        "import json, os, pathlib, sys\n"
        "from transformers import AutoTokenizer\n"
        "told = os.environ.get('HF_HUB_OFFLINE')\n"
        "words = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        f"ids = [words.encode(text, add_special_tokens=False) for text in {SAID!r}]\n"
        "found = {'offline': told, 'ids': ids, 'vocab': words.get_vocab()}\n"
        "pathlib.Path(sys.argv[3]).write_text(json.dumps(found))\n"
    )
    export(lm, "gguf", path / "gguf", converter=converter)
    return json.loads((path / "gguf/model.gguf").read_text())


SAID = ["thesea", "ofthe"]


@pytest.mark.parametrize(("name", "code"), [("llada", "evil/repository--code.X"), ("dream", "tokenization_dream.X")])
def test_a_converter_finds_a_tokenizer_and_no_code(name, code, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    if name == "dream":
        dream_files.checkpoint(tmp_path / "hub")
    else:
        hub(tmp_path / "hub")
    for file in ("config.json", "tokenizer_config.json"):
        path = tmp_path / "hub" / file
        said = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [code, None], "AutoConfig": code}}
        path.write_text(json.dumps(said))
    lm = runs.load(tmp_path / "hub")
    found = converted(lm, tmp_path)
    assert found["offline"] == "1"
    assert found["ids"] == [lm.encode(text) for text in SAID]
    assert len(found["vocab"]) >= lm.tokenizer.K
    assert not (tmp_path / "hub/ran").exists()
    before = json.loads((tmp_path / "hub/config.json").read_text())
    del before["auto_map"]
    assert json.loads((tmp_path / "gguf/hf/config.json").read_text()) == before
    told = json.loads((tmp_path / "gguf/hf/tokenizer_config.json").read_text())
    assert (told.pop("tokenizer_class"), told.get("auto_map")) == ("PreTrainedTokenizerFast", None)
    kept = json.loads((tmp_path / "hub/tokenizer_config.json").read_text())
    assert told == {key: one for key, one in kept.items() if key not in ("tokenizer_class", "auto_map")}
    assert not list((tmp_path / "gguf").rglob("*.py"))


def test_a_converter_that_is_missing_or_fails(tmp_path, monkeypatch):
    lm = runs.load(hub(tmp_path / "hub"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"not on PATH: get llama.cpp .*'.*/a b/hf' --outfile '.*/a b/model.gguf' --outtype auto$"
    ):
        export(lm, "gguf", tmp_path / "a b")
    assert runs.load(tmp_path / "a b/hf").about["family"] == "llada", "what is to be converted is there"
    with pytest.raises(ValueError, match="no such file; pass the path"):
        export(lm, "gguf", tmp_path / "b", converter=tmp_path / "nothing")
    with pytest.raises(ValueError, match="unknown precision 'f61'; did you mean 'f16'"):
        export(lm, "gguf", tmp_path / "b", precision="f61")
    for options in ({"code": 3}, {"makes": False}):
        broken = program(tmp_path / f"tools/{len(options)}{next(iter(options))}.py", **options)
        with pytest.raises(ValueError, match=f"failed with exit code {options.get('code', 0)}"):
            export(lm, "gguf", tmp_path / f"c{next(iter(options))}", converter=broken)
    assert not list(tmp_path.glob("c*/*gguf*"))
    assert FORMATS.keys() == {"hf", "merged", "gguf"}


# ------------------------------------------------------------------------------------------------------------- engines


def plan(model, engine="sglang", out="/nowhere", **asked):
    return serving.plan(model, engine, out, serving.Serving(**asked))


def options_of(arguments):
    """``--name value`` pairs."""
    return {name: value for name, value in pairwise(arguments) if name.startswith("--")}


@pytest.mark.parametrize(("config", "threshold", "block"), [(LLADA2, 0.95, 32), (SDAR, 0.85, 4)])
def test_what_sglang_is_told(config, threshold, block, tmp_path):
    model = wide(tmp_path / NASTY.replace("/", ""), config, RELEASED["llada2" if config is LLADA2 else "sdar"][1])
    found = plan(model, out=tmp_path / "out", port=1234, tensor_parallel=2, requests=7)
    assert yaml.safe_load(found.files["algorithm.yaml"]) == {"threshold": threshold, "block_size": block}
    assert list(found.arguments) == [
        *("--model-path", str(model)),
        *("--dllm-algorithm", "LowConfidence"),
        *("--dllm-algorithm-config", str(tmp_path / "out/algorithm.yaml")),
        *("--host", "127.0.0.1", "--port", "1234", "--tp-size", "2", "--max-running-requests", "7"),
    ]
    assert any("temperature" in note for note in found.notes)
    assert any("auto_map" not in note and "modeling_" in note for note in found.notes)
    assert options_of(plan(model).arguments)["--port"] == "30000"


def test_presets_become_sglangs_algorithms(tmp_path):
    model = wide(tmp_path, LLADA2, checkpoints.llada2_shapes)
    found = plan(model, preset="llada2.1-speed")
    assert options_of(found.arguments)["--dllm-algorithm"] == "JointThreshold"
    assert yaml.safe_load(found.files["algorithm.yaml"]) == {
        **{"threshold": 0.5, "edit_threshold": 0.0, "max_post_edit_steps": 16, "block_size": 32}
    }
    with pytest.raises(ValueError, match="sampler 'entropy': SGLang writes what is above a threshold"):
        plan(model, preset="dream")
    with pytest.raises(ValueError, match="unknown preset"):
        plan(model, preset="lada2")
    assert yaml.safe_load(f"x: {serving._number('1e-05')}") == {"x": 1e-5}
    for sampler in ("threshold:tau=0.9,least=2", "threshold:tau=0.9+edit", "threshold:tau=0.9+remask:share=0.2"):
        with pytest.raises(ValueError, match="SGLang writes what is above a threshold"):
            serving._algorithm(sampler)


GEMMA = {"architectures": ["DiffusionGemmaForBlockDiffusion"], "model_type": "diffusion_gemma", "canvas_length": 128}
SAMPLER = {"sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1}, "t_min": 0.4}
SAMPLER |= {"t_max": 0.8, "stability_threshold": 1, "confidence_threshold": 0.005}


def gemma(path, config=GEMMA, sampler=SAMPLER):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, path / "model.safetensors")
    if sampler is not None:
        (path / "generation_config.json").write_text(json.dumps(sampler))
    return path


def test_what_vllm_is_told(tmp_path):
    model = gemma(tmp_path)
    found = plan(model, "vllm", host="::1", requests=3)
    assert found.files == {}
    assert list(found.arguments[:9]) == [
        *(str(model), "--host", "::1", "--port", "8000"),
        *("--tensor-parallel-size", "1", "--max-num-seqs", "3"),
    ]
    told = options_of(found.arguments)
    assert json.loads(told["--diffusion-config"]) == {"canvas_length": 128}
    assert (told["--attention-backend"], told["--generation-config"]) == ("TRITON_ATTN", "vllm")
    assert found.notes == ()
    with pytest.raises(ValueError, match="preset='llada2' with vllm"):
        plan(model, "vllm", preset="llada2")
    for name in ("t_min", "t_max", "stability_threshold", "confidence_threshold", "sampler_config"):
        gemma(tmp_path, sampler={key: one for key, one in SAMPLER.items() if key != name})
        with pytest.raises(ValueError, match=rf"generation_config.json: no {name}"):
            plan(model, "vllm")
    (model / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"generation_config.json: damaged"):
        plan(model, "vllm")
    (model / "generation_config.json").unlink()
    with pytest.raises(ValueError, match=r"generation_config.json: no such file"):
        plan(model, "vllm")


def test_an_engine_that_does_not_serve_a_model(tmp_path):
    served = "sglang serves llada2, sdar; vllm serves DiffusionGemmaForBlockDiffusion"
    llada, small = hub(tmp_path / "llada"), hub(tmp_path / "small", *RELEASED["llada2"])
    toy_lm().save(tmp_path / "toy")
    for model, engine in [(llada, "sglang"), (llada, "vllm"), (small, "vllm"), (tmp_path / "toy", "sglang")]:
        with pytest.raises(ValueError, match=f"which {engine} does not serve; {served}"):
            plan(model, engine)
    with pytest.raises(ValueError, match="sglang does not serve"):
        plan(gemma(tmp_path / "gemma"))
    with pytest.raises(ValueError, match="its mask is id 60, and SGLang takes 156895"):
        plan(small)
    wide(tmp_path / "apart", LLADA2, checkpoints.llada2_shapes)
    export_config = json.loads((tmp_path / "apart/config.json").read_text()) | {"model_type": "llada2_moe_veomni"}
    (tmp_path / "apart/config.json").write_text(json.dumps(export_config))
    with pytest.raises(ValueError, match=r"experts .* redraft export .*/apart --to hf"):
        plan(tmp_path / "apart")
    with pytest.raises(ValueError, match="unknown engine 'vlm'; did you mean 'vllm'"):
        plan(llada, "vlm")
    (small / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"model.safetensors: damaged"):
        plan(small)


@pytest.mark.parametrize("host", ["", "--port", "-a"])
def test_hosts_that_are_refused(host):
    with pytest.raises(ValueError, match=re.escape(f"host={host!r}: pass an address")):
        serving.Serving(host=host)


@pytest.mark.parametrize("asked", [{"port": 0}, {"port": 65536}, {"port": -1}, {"tensor_parallel": 0}, {"requests": 0}])
def test_numbers_that_are_refused(asked):
    ((name, value),) = asked.items()
    with pytest.raises(ValueError, match=f"{name}={value}: pass"):
        serving.Serving(**asked)


def test_who_can_reach_it_is_said(tmp_path):
    model = gemma(tmp_path)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert plan(model, "vllm", host=host).notes == ()
    for host in ("0.0.0.0", "::", "gpu-1.example.org", "127.0.0.1.example.org"):
        assert "can be reached from other machines" in plan(model, "vllm", host=host).notes[0]


def test_code_is_only_the_engines_to_run_and_only_when_asked(tmp_path):
    model = wide(tmp_path, LLADA2, checkpoints.llada2_shapes)
    assert "--trust-remote-code" not in plan(model).arguments
    with pytest.raises(ValueError, match=r"has no modeling_llada2_moe.py, which redraft neither fetches nor writes"):
        plan(model, trust_remote_code=True)
    (model / "modeling_llada2_moe.py").write_text("raise SystemExit('run')")
    found = plan(model, trust_remote_code=True)
    assert found.arguments[-1] == "--trust-remote-code"
    assert not any("modeling_" in note for note in found.notes)
    assert serving._module("owner/name--configuration_x.Config") == "configuration_x.py"
    assert serving._module(["tokenization_y.Slow", None]) == "tokenization_y.py"


def test_a_model_of_the_hub_is_fetched_by_the_engine(tmp_path, monkeypatch):
    model = wide(tmp_path, SDAR, sdar_shapes)
    (model / "model.safetensors").unlink()
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: asked.append(how) or str(model))
    found = plan("JetLM/SDAR-1.7B-Chat", trust_remote_code=True)
    assert options_of(found.arguments)["--model-path"] == "JetLM/SDAR-1.7B-Chat"
    assert [one["allow_patterns"] for one in asked] == [["*.json", "*.jinja", "merges.txt"]], "no weights, no code"
    assert found.arguments[-1] == "--trust-remote-code"


def test_engines_are_started_from_a_list(tmp_path, monkeypatch):
    model = wide(tmp_path / NASTY.replace("/", ""), SDAR, sdar_shapes)
    found = plan(model, out=tmp_path / "out")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    started = []
    monkeypatch.setattr("os.execv", lambda path, argv: started.append((path, argv)))
    command = serving.prepare(found, tmp_path / "out")
    assert command[:2] == ["sglang", "serve"], "what it would be"
    with pytest.raises(ValueError, match=r"sglang is not installed: run  pip install sglang .* start: sglang serve"):
        serving.start(found, command)
    assert not started
    engine = program(tmp_path / "bin/sglang")
    command = serving.prepare(found, tmp_path / "out")
    serving.start(found, command)
    assert started == [(str(engine), [str(engine), "serve", *found.arguments])]
    assert json.loads((tmp_path / "out/command.json").read_text()) == {"engine": "sglang", "command": command}
    assert (tmp_path / "out/algorithm.yaml").read_text() == found.files["algorithm.yaml"]
    package = tmp_path / "site/sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(package.parent))
    assert serving.launcher("sglang") == [sys.executable, "-m", "sglang.launch_server"], "the one beside us goes first"
    assert serving.launcher("vllm") is None
    subprocess.run([str(engine), *found.arguments], check=True, capture_output=True)
    assert json.loads((tmp_path / "bin/argv.json").read_text()) == list(found.arguments)
