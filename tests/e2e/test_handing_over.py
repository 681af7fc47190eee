"""``redraft export`` and ``redraft serve``, as a user runs them."""

import json
import os
import shlex

import pytest
from parity import checkpoints
from parity.checkpoints import LLADA, SDAR
from parity.served import NASTY, program, sdar_shapes, wide

import redraft


@pytest.fixture
def llada(tmp_path):
    return checkpoints.write(tmp_path / "llada", LLADA, checkpoints.llada_shapes(LLADA))


@pytest.fixture
def sdar(tmp_path):
    """A tiny SDAR whose mask is where the released have it, its weights without a number."""
    return wide(tmp_path / NASTY.replace("/", ""), SDAR, sdar_shapes)


def test_export_prints_what_it_wrote(run, models, tmp_path):
    done = run("export", models(), "--to", "hf", "--out", "out")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split()[:3] == ["saved", "in", "out"]
    assert redraft.load("out").generate(seed=1, steps=2).text == redraft.load(models()).generate(seed=1, steps=2).text
    found = json.loads(run("export", models(), "--to", "hf", "--out", "again", "--json").stdout)
    assert found["out"] == "again"
    assert found["files"] == sorted(one.name for one in (tmp_path / "out").iterdir())


def test_export_by_a_converter_that_is_given(run, llada, tmp_path):
    converter = tmp_path / "c.py"
    converter.write_text("import sys, pathlib\nprint('noise')\npathlib.Path(sys.argv[3]).write_text('GGUF')\n")
    args = ("export", llada, "--to", "gguf", "--converter", converter, "--precision", "q8_0", "--out", "out", "--json")
    made = json.loads(run(*args).stdout)
    assert "model.gguf" in made["files"]
    assert made["notes"] == ["llama-diffusion-cli of llama.cpp writes with it; llama-server does not"]
    again = run(*args[:-3], "--out", "b")
    assert again.stderr.endswith("note: llama-diffusion-cli of llama.cpp writes with it; llama-server does not\n")


def test_export_refuses(refused, models, llada, monkeypatch, tmp_path):
    refused("export", models(), "--to", "gg", "--out", "out", words=["unknown layout 'gg'", "gguf"])
    refused("export", models(), "--to", "merged", "--out", "out", words=["only LLaDA2", "use to='hf'"])
    monkeypatch.setenv("PATH", str(tmp_path))
    refused("export", llada, "--to", "gguf", "--out", "out", words=["convert_hf_to_gguf.py", "not on PATH"])
    refused("export", llada, "--to", "hf", "--out", "out", words=["there already, and not empty"])


def test_a_dry_run_writes_and_starts_nothing(run, sdar, monkeypatch, tmp_path):
    engine = program(tmp_path / "bin/sglang", code=7)
    monkeypatch.setenv("PATH", str(engine.parent))
    monkeypatch.setattr("os.execv", lambda *_: pytest.fail("started"))
    done = run("serve", sdar, "--engine", "sglang", "--dry-run", "--port", 8123)
    assert done.exit_code == 0, done.stderr
    command = json.loads((tmp_path / "runs/serve/sglang/command.json").read_text())["command"]
    assert command[:4] == [str(engine), "serve", "--model-path", str(sdar)]
    assert "8123" in command
    assert done.stdout.splitlines()[1] == f"{'command':<20}{shlex.join(command)}", "as a shell reads it"
    assert (tmp_path / "runs/serve/sglang/algorithm.yaml").read_text() == "threshold: 0.85\nblock_size: 4\n"
    assert done.stderr.startswith("note: ")
    assert not (engine.parent / "argv.json").exists()


def test_serve_becomes_the_engine(spawn, sdar, tmp_path):
    engine = program(tmp_path / "bin/sglang", code=7)
    path = os.pathsep.join([str(engine.parent), os.environ["PATH"]])
    process = spawn("serve", sdar, "--engine", "sglang", "--out", "told", env={**os.environ, "PATH": path})
    out, err = process.communicate(timeout=120)
    assert process.returncode == 7, err
    argv = json.loads((engine.parent / "argv.json").read_text())
    assert [str(engine), *argv] == json.loads((tmp_path / "told/command.json").read_text())["command"]
    assert argv[:3] == ["serve", "--model-path", str(sdar)]
    assert out.startswith("written in")
    assert not (tmp_path / "owned").exists()


def test_serve_refuses(run, refused, models, llada, sdar, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run("serve", sdar, "--engine", "sglang")
    assert done.exit_code == 2
    assert "error: sglang is not installed: run  pip install sglang" in done.stderr
    assert (tmp_path / "runs/serve/sglang/algorithm.yaml").exists(), "what was to be written was"
    refused("serve", llada, "--engine", "sglang", words=["LLaDAModelLM", "sglang does not serve", "llada2, sdar"])
    refused("serve", models(), "--engine", "vllm", words=["RedraftForMaskedLM", "vllm does not serve"])
    refused("serve", sdar, "--engine", "tgi", words=["unknown engine 'tgi'"])
    refused("serve", sdar, "--engine", "sglang", "--host", "-a", words=["host='-a'"])
    refused("serve", sdar, "--engine", "sglang", "--port", 70000, words=["port=70000"])
    refused("serve", "no/such/model", "--engine", "sglang", words=["no/such/model: no such folder"])
