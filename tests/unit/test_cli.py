"""The parts of the command line that need no model: options, tables, exit codes."""

import json

import pytest
from typer.testing import CliRunner

from redraft import __version__, listing
from redraft.cli import app
from redraft.options import split_fields
from redraft.trace import Frame, Record, Row

OWN = ["--out", "--resume", "--json", "--help"]


def run(*args):
    return CliRunner().invoke(app, args)


def test_fields_are_taken_wherever_they_stand():
    args = ["--train.lr", "3e-4", "mdlm", "--out", "x", "--process.gamma_min=-4", "--resume", "--objective", "nelbo"]
    rest, values = split_fields(args, OWN)
    assert rest == ["mdlm", "--out", "x", "--resume"]
    assert values == {"train.lr": "3e-4", "process.gamma_min": "-4", "objective": "nelbo"}


def test_values_may_look_like_anything():
    assert split_fields(["--data.source", "--x=[b]"], OWN) == ([], {"data.source": "--x=[b]"})
    assert split_fields(["--train.lr=", "--", "--odd"], OWN) == (["--", "--odd"], {"train.lr": ""})


@pytest.mark.parametrize(
    ("option", "near"),
    [("--lr", "--train.lr"), ("--train.lrr", "--train.lr"), ("--ot", "--out"), ("--model.dept=3", "--model.depth")],
)
def test_an_unknown_field_names_the_nearest(option, near):
    with pytest.raises(ValueError, match=f"{option.partition('=')[0]}'; did you mean '{near}'"):
        split_fields([option, "1"], OWN)


def test_a_recipe_names_itself():
    with pytest.raises(ValueError, match="--recipe"):
        split_fields(["--recipe", "x"], OWN)


def test_a_field_needs_a_value():
    with pytest.raises(ValueError, match=r"--train\.lr needs a value"):
        split_fields(["--train.lr"], OWN)


def test_version():
    assert run("--version").stdout == f"redraft {__version__}\n"


def test_no_command_shows_the_help():
    shown = run()
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in ("train", "generate", "infill", "edit", "replay", "evaluate", "list"))


def test_replay_shows_and_converts_a_saved_trace(tmp_path):
    drafts, rows = ([0, 1], [0, 2]), {}
    for number in (0, 2):
        frames = [
            Frame("step", k, 2, 1 - k / 2, 0.5 - k / 2, k + 1, tuple(ids), (0.5, 0.25), (0.1, 0.2), ("kept", "written"))
            for k, ids in enumerate(drafts)
        ]
        rows[number] = Row(number, frames=frames[number // 2 :])
    Record({0: "we", 1: "are", 2: "not"}, joint=" ", rows=rows).save(tmp_path / "x.json")
    shown = run("replay", str(tmp_path / "x.json"))
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.splitlines()[:2] == ["step 1/2  t=0.50  we are", "step 2/2  t=0.00  we not"]
    assert run("replay", str(tmp_path / "x.json"), "--row", "3").stdout.splitlines()[0].startswith("step 2/2")
    saved = run("replay", str(tmp_path / "x.json"), "--html", str(tmp_path / "x.html"))
    assert (saved.exit_code, saved.stdout) == (0, "")
    assert (tmp_path / "x.html").read_text("utf-8").startswith("<!doctype html>")
    pytest.importorskip("matplotlib")
    assert run("replay", str(tmp_path / "x.json"), "--png", str(tmp_path / "x.png"), "--row", "3").exit_code == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "y.json").write_text("{}")
    for arguments, said in (
        (["x.json", "--row", "2"], "text 2 is not in the trace: it has 1, 3"),
        (["x.json", "--speed", "-1"], "speed=-1"),
        (["x.json", "--html", "x.png"], "--html"),
        (["x.json", "--png", "nowhere/x.png"], "--png"),
        (["y.json"], "it is no trace"),
        (["z.json"], "z.json: No such file"),
    ):
        paths = [str(tmp_path / one) if "." in one else one for one in arguments]
        done = run("replay", *paths)
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.output
        assert said in done.stderr


def test_other_names_of_a_sampler_say_whose_they_are():
    said = {entry["name"]: entry["description"] for entry in listing.KINDS["samplers"]()}
    assert said["analytic"] == said["cached"] == "The same as ancestral."
    assert "reverse kernel" in said["ancestral"]


@pytest.mark.parametrize("kind", listing.KINDS)
def test_list(kind):
    found = run("list", kind, "--json")
    assert found.exit_code == 0
    assert found.stderr == ""
    entries = json.loads(found.stdout)[kind]
    table = run("list", kind).stdout
    for entry in entries:
        assert entry["name"] in table
        assert kind in ("fields", "sft", "dglm") or entry["description"], f"{entry['name']} has no docstring"


def test_list_names_what_the_api_names():
    from redraft import data, objectives, processes, recipes, sampling, schedules

    def names(kind):
        return [entry["name"] for entry in listing.KINDS[kind]()]

    assert names("recipes") == list(recipes.RECIPES)
    assert names("processes") == list(processes.NAMES)
    assert names("schedules") == list(schedules.NAMES)
    assert names("gammas") == list(schedules.GAMMAS)
    assert names("objectives") == list(objectives.OBJECTIVES)
    assert names("samplers") == list(sampling.SAMPLERS)
    assert names("corpora") == list(data.CORPORA)
    assert names("tokenizers")[:-1] == list(data.tokenizers.NAMES)
    assert {"recipe", *names("fields")} == set(recipes.field_names(recipes.Config))


def test_fields_have_defaults_choices_and_notes():
    fields = {entry["name"]: entry for entry in listing.KINDS["fields"]()}
    assert fields["train.lr"]["default"] == 1e-3
    assert fields["train.lr"]["description"].startswith("Peak learning rate")
    assert fields["process.name"]["description"].startswith("masked | uniform | hybrid | gaussian")
    assert fields["data.max_documents"]["default"] is None


def test_brackets_in_a_table_survive():
    assert "[MASK]" in run("list", "processes").stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["genrate"], ["genrate", "generate"]),
        (["list", "recipe"], ["'recipe'", "'recipes'"]),
        (["list"], ["kind"]),
        (["train", "mdml"], ["'mdml'", "'mdlm'"]),
        (["train", "mdlm", "--train.lrr", "1"], ["'--train.lrr'", "'--train.lr'"]),
        (["train", "mdlm", "--train.lr", "fast"], ["train.lr", "'fast'"]),
        (["train", "mdlm", "--train.steps", "-1"], ["train.steps", "'-1'"]),
        (["train", "mdlm", "--process.name", "maskd"], ["process.name", "'maskd'", "'masked'"]),
        (["train", "mdlm", "--objective", "nelbow"], ["'nelbow'", "'nelbo'"]),
        (["train", "mdlm", "--process.schedule", "linaer"], ["'linaer'", "'linear'"]),
        (["train", "mdlm", "--seed", "first"], ["--seed"]),
        (["train"], ["recipe"]),
        (["generate", "nowhere"], ["nowhere"]),
        (["generate", "nowhere", "--stps", "1"], ["--stps", "--steps"]),
        (["edit", "nowhere"], ["text"]),
        (["edit", "nowhere", "a", "--strenth", "1"], ["--strenth", "--strength"]),
        (["evaluate", "nowhere"], ["--data"]),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*args)
    assert done.exit_code == 2, done.exception
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


def test_our_own_faults_keep_their_traceback(monkeypatch):
    def broken():
        raise KeyError("ours")

    monkeypatch.setitem(listing.KINDS, "recipes", broken)
    assert isinstance(run("list", "recipes").exception, KeyError)


def test_numbers_that_json_lacks_are_null(monkeypatch):
    monkeypatch.setitem(listing.KINDS, "recipes", lambda: [{"name": "x", "value": float("nan")}])
    assert json.loads(run("list", "recipes", "--json").stdout) == {"recipes": [{"name": "x", "value": None}]}


@pytest.mark.parametrize(
    ("typed", "offered"), [("gener", "generate"), ("train toy_m", "toy_masked"), ("list sched", "schedules")]
)
def test_the_shell_completes(typed, offered, monkeypatch):
    words = ["redraft", *typed.split()]
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_REDRAFT_COMPLETE", "complete_bash")
    assert CliRunner().invoke(app, [], prog_name="redraft").stdout.split() == [offered]
