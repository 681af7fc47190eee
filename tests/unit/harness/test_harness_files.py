"""Models, adapters and results that the harness finds in files, by its own command too."""

import json
import runpy
import sqlite3
import sys
from functools import partial

import pytest
import torch
from letters import LETTERS, REMARKS, network, request

from redraft import load
from redraft.data import build_tokenizer
from redraft.finetuning import adapters
from redraft.recipes.finetune import LoraConfig

pytestmark = REMARKS


@pytest.fixture
def model(tmp_path):
    words = build_tokenizer("chars", [LETTERS])
    lm = network(words)
    lm.save(tmp_path / "model")
    return tmp_path / "model"


def test_the_harness_finds_the_class_by_its_name(model, backend, tasks):
    import lm_eval
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    assert get_model("redraft") is backend.Harness
    assert get_model("hf") is not None, "the harness's own stay known"
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    args = f"pretrained={model},draws=16,block=2"
    found = lm_eval.simple_evaluate(
        model="redraft", model_args=args, tasks=["choice", "write"], batch_size=3, task_manager=manager
    )
    assert found["config"]["draws"] == 16
    assert len(found["samples"]["write"]) == 3
    with pytest.raises(ValueError, match="did you mean 'block'"):
        lm_eval.simple_evaluate(model="redraft", model_args=args + ",blok=2", tasks=["choice"], task_manager=manager)


@pytest.fixture
def command(tasks, backend, monkeypatch):
    """``python -m redraft.harness`` in this process, of those tasks alone."""
    import lm_eval.__main__
    import lm_eval.tasks

    manager = partial(lm_eval.tasks.TaskManager, include_defaults=False)

    def call(*told):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # as the command sets it, but not for other tests
        monkeypatch.setattr(lm_eval.__main__, "setup_logging", lambda: None)
        monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
        argv = ["redraft.harness", "--model", "redraft", "--include_path", tasks, *told]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        runpy.run_module("redraft.harness", run_name="__main__")

    return call


def test_the_harness_own_command_knows_the_name(model, command, monkeypatch, capsys):
    """Its cuda:0, which it says unless told, is not taken where there is none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command("--model_args", f"pretrained={model},draws=16", "--tasks", "choice")
    assert "|choice|" in capsys.readouterr().out


def test_options_of_the_harness_own_command_reach(command, backend, evaluate, tmp_path, monkeypatch):
    """All that is asked, found and spent is what our own way to run the tasks makes of the same options."""
    network(build_tokenizer("bytes"), context=64).save(tmp_path / "bytes")
    ours = backend.Harness(str(tmp_path / "bytes"), template="plain", draws=16, batch_size=3)
    expected = evaluate(ours, "choice", "write", asked={"chat": True, "gen_kwargs": "max_gen_toks=2,steps=1"})
    made = list[backend.Harness]()
    start = backend.Harness.__init__

    def watched(self, *args, **options):
        made.append(self)
        start(self, *args, **options)

    monkeypatch.setattr(backend.Harness, "__init__", watched)
    told = ["--model_args", f"pretrained={tmp_path / 'bytes'},template=plain,draws=16", "--tasks", "choice,write"]
    told += ["--device", "cpu", "--batch_size", 3, "--gen_kwargs", "max_gen_toks=2,steps=1", "--apply_chat_template"]
    command(*told, "--output_path", tmp_path / "out", "--log_samples", "--trust_remote_code")
    assert made[0].batch == 3
    assert made[0].device == torch.device("cpu")
    assert made[0].record()["settings"]["write"]["length"] == 2
    assert made[0].record().items() <= expected.items()
    (path,) = tmp_path.glob("out/*/results_*.json")
    found = json.loads(path.read_text())
    assert found["results"] == json.loads(json.dumps(expected["results"]))
    assert found["chat_template"] == ours.chat.template
    assert (found["config"]["process"], found["config"]["draws"]) == ("masked", 16)


def test_a_device_that_was_asked_for_is_taken(model, backend, monkeypatch):
    """And a place given among model_args goes before the command's own, which it says unless told."""
    asked = list[tuple[str | None, str | None]]()
    whole = load(str(model))
    monkeypatch.setattr(
        backend, "load", lambda path, device, device_map, **how: asked.append((device, device_map)) or whole
    )
    make = backend.Harness.create_from_arg_string
    for cuda, told in ((True, "cuda:0"), (False, "cuda:0"), (False, "cuda:1"), (False, None)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        make(f"pretrained={model}", {"device": told, "batch_size": 3, "max_batch_size": None})
    make(f"pretrained={model},device=cuda:0", {"device": "cpu"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    make(f"pretrained={model},device_map=auto", {"device": "cuda:0"})
    make(f"pretrained={model},device_map=auto", {"device": "cuda:1"})  # which ``load`` refuses
    assert asked == [
        *((told, None) for told in ("cuda:0", None, "cuda:1", None, "cuda:0")),
        (None, "auto"),
        ("cuda:1", "auto"),
    ]


def test_results_are_kept_and_not_asked_again(model, backend, tmp_path, evaluate):
    kept = str(tmp_path / "kept" / "results.sqlite")
    first = backend.Harness(str(model), cache_path=kept)
    found = evaluate(first, "choice", "text", "write")
    again = backend.Harness(str(model), cache_path=kept)
    once_more = evaluate(again, "choice", "text", "write")
    assert found["results"] == once_more["results"]
    assert found["log_p"] == once_more["log_p"]
    assert first.spent["scored"].texts > 0
    assert first.spent["written"].texts > 0
    assert [again.spent[name].texts for name in ("scored", "written")] == [0, 0]
    assert again.counts["kept"] == again.counts["distinct"] == first.counts["distinct"]
    other = backend.Harness(str(model), cache_path=kept, draws=3, length=2)
    evaluate(other, "text", "choice")
    assert other.spent["scored"].texts > 0, "asked in another way"
    changed = network(build_tokenizer("chars", [LETTERS]), seed=1)
    changed.save(tmp_path / "other")
    third = backend.Harness(str(tmp_path / "other"), cache_path=kept)
    evaluate(third, "choice", "write")
    assert third.spent["scored"].texts > 0, "of another model"
    assert third.counts["kept"] == 0


def test_files_of_results_that_are_damaged_or_busy(tmp_path, backend):
    """A result that cannot be read is asked again; a file that cannot is named."""
    from redraft.harness.kept import Kept

    path = tmp_path / "kept.sqlite"
    one, two = Kept(path), Kept(path)
    one.put({"a": [1.0], "b": [2.0]})
    two.put({"a": [1.0], "c": "text"})
    assert one.get(["a", "b", "c", "d"]) == [[1.0], [2.0], "text", None]
    two.base.execute("update kept set value = '[1' where key = 'a'")
    two.base.commit()
    assert one.get(["a", "b"]) == [None, [2.0]]
    (tmp_path / "junk").write_text("no results " * 99)
    other = sqlite3.connect(tmp_path / "other")
    other.execute("create table kept (name text)")
    other.close()
    for bad in (tmp_path / "junk", tmp_path / "other", tmp_path):
        with pytest.raises(ValueError, match="not a file of results"):
            Kept(bad)
        with pytest.raises(ValueError, match="not a file of results"):  # before any model is looked for
            backend.Harness("nowhere", cache_path=str(bad))
    content = bytearray(path.read_bytes())
    content[100:] = b"\xff" * len(content[100:])
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a file of results"):
        Kept(path).get(["b"])


def test_a_model_is_told_by_all_that_decides_its_answers(words):
    """One number of a large weight, and what a network does with equal weights."""
    from redraft.harness.kept import fingerprint

    lm = network(words)
    first = fingerprint(lm)
    assert first == fingerprint(network(words))
    large = max(lm.denoiser.parameters(), key=lambda one: one.numel())
    large.view(-1)[1] += 1
    assert fingerprint(lm) != first
    assert fingerprint(network(words, attention="causal")) != first
    assert fingerprint(network(words, context=23)) != first


def test_the_harness_may_keep_results_itself(model, backend, tmp_path, tasks):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = []
    for _ in range(2):
        own = backend.Harness(str(model))
        how = {"use_cache": str(tmp_path / "theirs"), "task_manager": manager, "log_samples": False}
        found.append((own, lm_eval.simple_evaluate(model=own, tasks=["choice", "text", "write"], **how)))
    assert found[0][1]["results"] == found[1][1]["results"]
    assert [found[1][0].spent[name].texts for name in ("scored", "written")] == [0, 0]


def test_adapters_change_what_is_said(model, backend, tmp_path):
    asked = [request(backend, "ab", "cd")]
    base = backend.Harness(str(model))
    before = base.loglikelihood(asked)
    adapters.inject(base.model.denoiser, LoraConfig(rank=2))
    adapters.save(base.model.denoiser, tmp_path / "idle", "x")
    for name, one in base.model.denoiser.named_parameters():
        if "lora_" in name:
            one.data = torch.randn(one.shape, generator=torch.Generator().manual_seed(1)) * 0.3
    adapters.save(base.model.denoiser, tmp_path / "trained", "x")
    idle = backend.Harness(str(model), peft=str(tmp_path / "idle")).loglikelihood(asked)
    assert idle[0][0] == pytest.approx(before[0][0], rel=1e-5)
    trained = backend.Harness(str(model), peft=str(tmp_path / "trained")).loglikelihood(asked)
    assert trained[0][0] == pytest.approx(base.loglikelihood(asked)[0][0], rel=1e-4)
    assert abs(trained[0][0] - before[0][0]) > 1e-2
    half = backend.Harness(str(model), dtype="bfloat16").loglikelihood(asked)
    assert half != before
