"""Small untrained models of every process, and the command line run inside this process."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from redraft import processes
from redraft.cli import app
from redraft.data import build_tokenizer
from redraft.models import Transformer, TransformerConfig, folder

# a child of a background shell would inherit an ignored SIGINT
COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from redraft.cli import main
main()
"""
CONTEXT = {"toy": 6, "bytes": 24}


def build(path: Path, name: str, kind: str) -> Path:
    """A model folder with random weights: process ``name``, tokenizer ``kind``."""
    tokenizer = build_tokenizer(kind)
    torch.manual_seed(0)
    codebook = torch.nn.functional.normalize(torch.randn(tokenizer.K, 8), dim=-1) if name == "gaussian" else None
    process = getattr(processes, name)(tokenizer.K if codebook is None else codebook)
    config = TransformerConfig(
        process.to_dict(), depth=1, time_conditioned=name != "masked", eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id
    )
    model = Transformer(config, {} if codebook is None else {"codebook": codebook})
    torch.nn.init.normal_(model.head.weight, std=0.2)
    folder.save(path, config, model.state_dict(), tokenizer, {"context": CONTEXT[kind]})
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """``models(process, tokenizer)``: the path of such a model, made once."""
    root = tmp_path_factory.mktemp("models")

    def get(name: str = "masked", kind: str = "toy") -> str:
        path = root / f"{name}-{kind}"
        return str(path if path.exists() else build(path, name, kind))

    return get


@pytest.fixture
def copy(models, tmp_path):
    """A model's folder that a test may damage."""
    return Path(shutil.copytree(models(), tmp_path / "model"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run("generate", ...)`` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args])

    return call


@pytest.fixture
def refused(run):
    """Run, and demand the one-line refusal that names each of ``words``."""

    def call(*args: object, words: tuple[object, ...]) -> str:
        done = run(*args)
        assert done.exit_code == 2, done.exception
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1, done.stderr
        for word in words:
            assert str(word) in done.stderr, done.stderr
        return done.stderr

    return call


@pytest.fixture
def spawn(tmp_path):
    """``spawn("generate", ...)``: the command as a process of its own, in an empty folder, with text pipes."""

    def call(*args: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", COMMAND, *map(str, args)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True)

    return call
