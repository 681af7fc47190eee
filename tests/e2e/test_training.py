"""``redraft train``: from a recipe to a model one can use, and what happens when it is stopped."""

import json
import re
import shlex
import signal

import pytest

import redraft
from redraft import recipes

SMALL = ["--model.depth", "1", "--train.batch", "8", "--eval.draws", "1", "--train.threads", "1"]


@pytest.fixture
def trained(run):
    """The folder of a finished run of three steps."""
    done = run("train", "toy_masked", "--out", "run", "--train.steps", 3, *SMALL)
    assert done.exit_code == 0, done.output
    return "run"


def test_train_then_use(run, tmp_path):
    done = run("train", "toy_masked", "--train.steps", 3, "--train.lr=3e-4", "--seed", 7, *SMALL)
    assert done.exit_code == 0, done.output
    assert "upper bound" in done.stdout
    assert "runs/toy_masked" in done.stdout
    stored = json.loads((tmp_path / "runs/toy_masked/results.json").read_text())["recipe"]
    assert (stored["train"]["lr"], stored["train"]["seed"], stored["model"]["depth"]) == (3e-4, 7, 1)
    assert len(run("generate", "runs/toy_masked", "--json").stdout) > 1
    assert redraft.load("runs/toy_masked").context == 6


@pytest.mark.parametrize("recipe", ["toy_uniform", "toy_hybrid", "toy_gaussian"])
def test_every_process_trains(recipe, run):
    done = run("train", recipe, "--train.steps", 2, *SMALL, "--json")
    assert done.exit_code == 0, done.output
    assert run("generate", f"runs/{recipe}", "--steps", 2).exit_code == 0


def test_json_is_one_object(run, tmp_path):
    (tmp_path / "text.txt").write_text("The sea is wide. " * 200)
    options = ["--data", "text.txt", "--data.tokenizer", "chars", "--data.length", 16, "--out", "r[un]"]
    done = run("train", "mdlm", *options, "--train.steps", 2, *SMALL, "--json")
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (found["out"], found["steps"], found["stopped"]) == ("r[un]", 2, False)
    assert found["likelihood"]["bits_per_char"] > 0
    assert found["likelihood"]["estimator"]


def test_nothing_held_out_is_no_likelihood(run):
    done = run("train", "toy_masked", "--train.steps", 2, *SMALL, "--data.held_out", 0, "--json")
    assert json.loads(done.stdout)["likelihood"] is None


def test_an_existing_run_is_not_overwritten(run, trained, refused, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / trained).rglob("*")}
    refused("train", "toy_masked", "--out", trained, "--train.steps", 3, *SMALL, words=("run", "resume", "out"))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / trained).rglob("*")} == before


def test_a_finished_run_resumes_to_itself(run, trained):
    options = ["--out", trained, "--train.steps", 3, *SMALL]
    done = run("train", "toy_masked", *options, "--resume", "--json")
    assert json.loads(done.stdout)["steps"] == 3
    assert json.loads(done.stdout)["likelihood"]


def test_resume_refuses_another_configuration(refused, trained):
    options = ["--out", trained, "--train.steps", 3, *SMALL, "--resume"]
    trained_with = recipes.get("toy_masked").train.lr
    refused("train", "toy_masked", *options, "--train.lr", "1", words=("train.lr", "1.0", trained_with))


def test_resume_refuses_a_damaged_checkpoint(refused, trained, tmp_path):
    file = next((tmp_path / trained / "checkpoints").rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    options = ["--out", trained, "--train.steps", 3, *SMALL, "--resume"]
    refused("train", "toy_masked", *options, words=("damaged", file.name))


def test_nothing_to_resume(refused):
    refused("train", "toy_masked", "--out", "nowhere", "--resume", words=("nowhere", "resume"))


def test_a_file_where_the_folder_should_be(refused, tmp_path):
    (tmp_path / "run").write_text("mine")
    refused("train", "toy_masked", "--out", "run", "--train.steps", 1, *SMALL, words=("run",))
    assert (tmp_path / "run").read_text() == "mine"


def test_a_corpus_shorter_than_one_context(refused, tmp_path):
    (tmp_path / "short.txt").write_text("A short text. " * 20)
    options = ["--data", "short.txt", "--data.tokenizer", "bytes", "--data.length", "1000"]
    refused("train", "mdlm", *options, words=("1000", "tokens"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--train.accumulate", "3"], ["3"]),
        (["--data.length", "7"], ["7"]),
        (["--data.tokenizer", "byts"], ["'byts'", "'bytes'"]),
        (["--data", "toi"], ["'toi'", "'toy'"]),
        (["--process.schedule", "linaer"], ["'linaer'", "'linear'"]),
        (["--process.name", "uniform"], ["model.time_conditioned"]),
        (["--model.attention", "causal"], ["causal", "autoregressive"]),
        (["--train.lr", "0"], ["train.lr", "'0'"]),
        (["--train.tracker", "wandb"], ["'wandb'"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_train_refuses(options, words, refused, tmp_path):
    refused("train", "toy_masked", "--train.steps", 1, *SMALL, *options, words=tuple(words))
    assert not (tmp_path / "runs").exists(), "nothing was begun"


def interrupt_after(process, step):
    """Send SIGINT once a step beyond ``step`` is reported; the exit code, standard output and the last line said."""
    for line in process.stderr:
        if (found := re.match(r"step (\d+)/", line)) and int(found[1]) > step:
            break
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors.splitlines()[-1]


def test_an_interrupt_leaves_a_run_that_continues(spawn):
    args = ["train", "toy_masked", "--out", "my run", "--train.steps", 100_000, "--train.log_every", 2, *SMALL]
    with spawn(*args, "--json") as process:
        code, out, last = interrupt_after(process, 2)
    assert code == 130
    found = json.loads(out)
    assert found["stopped"]
    assert found["likelihood"] is None
    stopped, command = re.fullmatch(r"stopped at step (\d+); continue with: redraft (.*)", last).groups()
    assert int(stopped) == found["steps"] > 2

    with spawn(*(arg for arg in shlex.split(command) if arg != "--json")) as process:
        code, out, last = interrupt_after(process, int(stopped))
    assert (code, out) == (130, "")
    assert int(re.match(r"stopped at step (\d+)", last)[1]) > int(stopped), "it went on from there"
