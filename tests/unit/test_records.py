"""What every measurement is kept with."""

import json
import shlex
import subprocess
import sys

import pytest

from redraft import records

MADE = {"command": "redraft evaluate x", "seeds": [0], "commit": None, "machine": {}, "date": "2026-01-01"}


def test_a_record_comes_back_and_says_what_it_is(tmp_path):
    path = tmp_path / "new" / "one.json"
    records.write(path, "likelihood", {"nats": 1.5, "error": float("inf"), "rows": (1, 2)}, MADE)
    assert records.read(path) == {"kind": "likelihood", "nats": 1.5, "error": None, "rows": [1, 2], "made": MADE}


@pytest.mark.parametrize("text", ["{}", json.dumps({"kind": "likelihood"}), json.dumps({"kind": "x", "made": {}})])
def test_other_json_is_no_record(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    assert records.read(tmp_path / "other.json") is None


def test_made_says_how_to_repeat_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/redraft", "evaluate", "my model", "--data", "toy"])
    told = records.made([3])
    assert shlex.split(told["command"]) == ["redraft", "evaluate", "my model", "--data", "toy"]
    assert told["seeds"] == [3]
    assert {"torch", "transformers", "redraft", "python", "processor"} <= told["machine"].keys()
    assert records.made([0], ["python", "x y.py"])["command"] == "python 'x y.py'"
    for program, words in {"/site/redraft/cli.py": "redraft --n 2", "mine.py": "python mine.py --n 2"}.items():
        monkeypatch.setattr(sys, "argv", [program, "--n", "2"])
        assert records.made([])["command"] == words


def test_the_commit_is_of_redraft_itself(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], cwd=tmp_path, check=True)

    home = tmp_path / "redraft"
    home.mkdir()
    (home / "records.py").write_text("1")
    monkeypatch.setattr(records, "__file__", str(home / "records.py"))
    records.commit.cache_clear()
    assert records.commit() is None
    git("init", "-q")
    (tmp_path / "other").write_text("1")
    git("add", "other")
    git("commit", "-qm", "one")
    records.commit.cache_clear()
    assert records.commit() is None, "a checkout of something else"
    git("add", ".")
    git("commit", "-qm", "two")
    records.commit.cache_clear()
    clean = records.commit()
    assert len(clean) == 12
    (home / "records.py").write_text("2")
    records.commit.cache_clear()
    assert records.commit() == clean + "+"
    records.commit.cache_clear()
