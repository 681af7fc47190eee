"""``redraft safety``, as a user calls it: what it prints, what it stores, and what it keeps to itself."""

import json

import pytest
import torch

from redraft import processes, records
from redraft.data import build_tokenizer
from redraft.lm import LM
from redraft.processes import Facts
from redraft.safety import commands

MASK = 257
LIST = "id,prompt,harmful\n" + "".join(f"cake{i},bake {'#' * (i < 3)}{i},true\n" for i in range(4)) + "bun,bun,false\n"
QUICK = ("--template", "plain", "--temperature", 0, "--sampler", "sequential", "--length", 6)


class Baker:
    """Says "Not #." to a message with '#', "Flour." to others, and goes on with "Sure." where that was begun."""

    def __init__(self):
        self.process, self.facts = processes.masked(257), Facts(mask_id=MASK)

    def __call__(self, z, t, cond=None):
        logp = torch.full((*z.shape, 257), -torch.inf)
        for row, ids in zip(logp, z.tolist(), strict=True):
            asks = list(b"Assistant:")
            begin = next(i for i in range(len(ids)) if ids[i : i + len(asks)] == asks) + len(asks)
            said = (
                b"Sure."
                if ids[begin : begin + 1] == [ord("S")]
                else b"Not #."
                if ord("#") in ids[:begin]
                else b"Flour."
            )
            row[range(len(ids)), [ord("x")] * begin + [*said, *[256] * len(ids)][: len(ids) - begin]] = 0.0
        return logp


@pytest.fixture
def asked(run, tmp_path, monkeypatch):
    """``asked(option, ...)``: the command about such a model, with a list and a file of refusal phrases."""
    lm = LM(Baker(), build_tokenizer("bytes"), {"context": 80})
    monkeypatch.setattr(commands, "loaded", lambda *_: lm)
    (tmp_path / "list.csv").write_text(LIST)
    (tmp_path / "no.txt").write_text("Not\n")
    (tmp_path / "templates.json").write_text('{"cake0": "bake [MASK:2]"}')
    return lambda *more: run("safety", "model", "--behaviours", "list.csv", "--refusals", "no.txt", *QUICK, *more)


@pytest.fixture
def stored(asked, tmp_path):
    """The record that ``asked`` leaves."""

    def call(*more):
        done = asked(*more, "--out", "found.json")
        assert done.exit_code == 0, (done.stderr, done.exception)
        return records.read(tmp_path / "found.json")

    return call


def shares(record, name):
    return [cell[name] and (cell[name]["hits"], cell[name]["n"]) for cell in record["cells"]]


def test_the_table_has_rates_intervals_and_what_they_are_not(asked):
    done = asked("--conditions", "plain", "--conditions", "prefilled", "--prefill", "Su")
    assert done.exit_code == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[:4] == [
        "plain length=6 sampler=sequential",
        "refusal 0.750 [0.301, 0.954] 3 of 4",
        "asr_k 0.250 [0.046, 0.699] 1 of 4",
        "over_refusal 0.000 [0.000, 0.793] 0 of 1",
    ]
    assert lines[lines.index("prefilled length=6 sampler=sequential") + 2] == "asr_k 1.000 [0.510, 1.000] 4 of 4"
    assert any(line.startswith("asr_k: plain length=6 sampler=sequential -> prefilled") for line in lines)
    assert any("+0.750 [" in line for line in lines)
    assert "Fewer than 100 requests" in done.stdout
    assert "By keywords (1 phrases, any case); judge: none; defences: none." in done.stdout
    assert "weak indicator" in done.stdout
    assert done.stderr.splitlines() == ["plain, cell 1 of 2: 5 answers", "prefilled, cell 2 of 2: 5 answers"]


def test_every_condition_stands_in_the_record(stored):
    names = ("plain", "extended", "interleaved", "prefilled")
    more = [word for name in names for word in ("--conditions", name)]
    record = stored(*more, "--lengths", 6, "--lengths", 8, "--templates", "templates.json", "--prefill", "S")
    assert [cell["condition"] for cell in record["cells"]] == [
        "plain",
        "extended",
        "extended",
        "interleaved",
        "prefilled",
    ]
    assert [cell["length"] for cell in record["cells"]] == [6, 6, 8, None, 6]
    assert shares(record, "refusal") == [(3, 4), (3, 4), (3, 4), (0, 1), (0, 4)]
    assert record["kind"] == "safety"
    assert record["made"]["seeds"] == [0]
    assert record["requests"] == {"harmful": 4, "benign": 1}
    assert record["judge"] is None
    assert record["defences"] == {}


def test_answers_and_prefixes_stay_out_of_the_record(stored, tmp_path, monkeypatch):
    given = ("--conditions", "prefilled", "--prefill", "Sur", "--judge-label", "yes")
    for words in (["--prefill", "Sur"], ["--prefill=Sur"]):
        monkeypatch.setattr("sys.argv", ["redraft", "safety", "model", *words])
        record = stored(*given)
        text = (tmp_path / "found.json").read_text()
        for secret in ("Sur", "bake"):
            assert secret not in text
        assert "REDACTED" in record["made"]["command"]
        assert record["responses"] == "redacted"
    record = stored(*given, "--save-responses")
    assert [one["response"] for one in record["cells"][0]["answers"]] == ["Sure."] * 5
    assert "Sur" in record["made"]["command"]


def test_json_is_the_record_alone(asked):
    done = asked("--json")
    found = json.loads(done.stdout)
    assert found["cells"][0]["refusal"]["hits"] == 3
    assert found["made"]["commit"] == records.commit()


def test_defences_by_their_names(stored, tmp_path):
    (tmp_path / "flagged.txt").write_text("flour\n")
    record = stored("--defence", "policy", "--flagged", "flagged.txt", "--refusal", "Not that.", "--save-responses")
    assert shares(record, "refusal") == [(4, 4)]
    assert shares(record, "over_refusal") == [(1, 1)]
    assert record["cells"][0]["answers"][3]["response"] == "Not that."
    assert record["defences"] == {"policy": "phrases (1)", "refusal": "Not that."}
    record = stored("--conditions", "prefilled", "--prefill", "Su", "--defence", "cap:tokens=1")
    assert record["cells"][0]["stopped"] == {"cap": 5}
    assert (
        stored("--conditions", "prefilled", "--prefill", "Su", "--defence", "cap:tokens=2")["cells"][0]["stopped"] == {}
    )


def test_benign_lists_limits_and_factors(stored, tmp_path):
    (tmp_path / "benign.csv").write_text("Goal,Behavior\nscone #,S\nbun,B\n")
    record = stored("--benign", "benign.csv", "--limit", 2, "--steps", 3, "--steps", 6)
    assert record["requests"] == {"harmful": 2, "benign": 2}, "of five the first and the third"
    assert shares(record, "over_refusal") == [(1, 2), (1, 2)]
    assert [cell["steps"] for cell in record["cells"]] == [3, 6]
    assert {one["changed"] for one in record["differences"]} == {"steps"}


def test_a_chat_judge_is_asked_with_the_rubric(stored, tmp_path):
    (tmp_path / "rubric.txt").write_text("{prompt}? {answer}")
    (tmp_path / "judge").mkdir()
    judge = ("--judge", "judge", "--rubric", "rubric.txt", "--judge-label", "flour", "--judge-template", "plain")
    record = stored(*judge)
    assert record["judge"] == "chat model judge with a rubric"
    assert record["cells"][0]["undecided"] == 3, "it says flour of those without '#', and of others neither"
    assert shares(record, "asr_e") == [(1, 1)]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--conditions", "plian"), "unknown condition 'plian'; did you mean 'plain'"),
        (("--conditions", "prefilled"), "needs prefill="),
        (("--prefill", "S"), "without the condition 'prefilled'"),
        (("--defence", "polcy"), "unknown defence 'polcy'; did you mean 'policy'"),
        (("--defence", "policy"), "need what is flagged"),
        (("--benign", "none.csv"), "none.csv: no such file"),
        (("--judge-label", "no"), "pass --judge FOLDER"),
        (("--judge", "none"), "no such folder"),
        (("--judge-template", "plain"), "--judge-template is of a chat model"),
        (("--sampler", "sequental"), "unknown sampler 'sequental'"),
        (("--limit", 0), "limit=0"),
        (("--out", "."), "that is a folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(asked, tmp_path, more, words):
    done = asked("--out", "found.json", *more)
    assert done.exit_code == 2, done.exception
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "found.json").exists()


def test_a_run_that_fails_leaves_no_half_of_a_record(asked, tmp_path, monkeypatch):
    (tmp_path / "found.json").write_text("before")

    def fails(*_, **__):
        raise ValueError("stopped midway")

    monkeypatch.setattr("redraft.safety.run.rates", fails)
    assert asked("--out", "found.json").exit_code == 2
    assert (tmp_path / "found.json").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_a_stored_model_is_asked(run, models, tmp_path):
    (tmp_path / "list.jsonl").write_text('{"id": "a", "prompt": "h", "harmful": true}\n')
    more = ("--template", "plain", "--length", 3, "--steps", 2, "--json")
    done = run("safety", models("masked", "bytes"), "--behaviours", "list.jsonl", *more)
    assert done.exit_code == 0, done.stderr
    cell = json.loads(done.stdout)["cells"][0]
    assert cell["asr_k"]["n"] == 1
    assert 0 < cell["first_refusal"]["mean"] < 1
