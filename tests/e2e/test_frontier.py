"""``redraft evaluate MODEL --frontier`` and the judge of ``--samples``, and ``redraft report`` of what they leave."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

import redraft
from redraft import drawing, records
from redraft.frontiers import Frontier

SMALL = ("--nfe", 1, "--nfe", 3, "--samples", 6, "--samplers", "ancestral")
TEXT = "\n\n".join(f"Line {i} of a text that says little." for i in range(200))


@pytest.fixture
def undrawn(monkeypatch):
    """No pictures, which take longer than the sweeps: for what is seen in records alone."""
    monkeypatch.setattr(drawing, "save", lambda *_: None)


def test_a_frontier_leaves_a_record_and_a_picture(run, models, tmp_path):
    done = run("evaluate", models(), "--frontier", *SMALL, "--samplers", "low_confidence", "--out", "f", "--seed", 3)
    assert done.exit_code == 0, done.exception
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"frontier.json", "frontier.png", "frontier.svg"}
    ElementTree.parse(tmp_path / "f" / "frontier.svg")
    record = records.read(tmp_path / "f" / "frontier.json")
    assert (record["kind"], record["seed"], record["made"]["seeds"]) == ("frontier", 3, [3])
    assert record["made"]["machine"]["redraft"] == redraft.__version__
    found = Frontier.read(tmp_path / "f" / "frontier.json")
    assert [(one.sampler, one.asked) for one in found.points] == [
        ("ancestral", 1),
        ("ancestral", 3),
        ("low_confidence", 1),
        ("low_confidence", 3),
    ]
    assert found.protocol["num"] == 6
    assert found.reference["quality"] == 1.0, "the toy language itself"
    for words in ("share of well-formed sentences", "low_confidence", "unigram entropy", "octaves", "frontier.png"):
        assert words in done.stdout
    assert "[4/4] low_confidence" in done.stderr


def test_a_frontier_as_json_and_where_it_goes_unless_told(run, models, tmp_path, undrawn):
    done = run("evaluate", models(), "--frontier", *SMALL, "--length", 4, "--prompt", "we are", "--json")
    found = json.loads(done.stdout)
    out = Path("runs", "frontier", Path(models()).name)
    assert found["out"] == str(out)
    assert (tmp_path / out / "frontier.json").exists()
    assert found["frontiers"][0]["protocol"]["length"] == 4
    assert found["frontiers"][0]["protocol"]["prompt"] == "we are"
    assert found["made"]["seeds"] == [0]


def test_other_models_and_records_are_drawn_beside(run, models, tmp_path):
    done = run("evaluate", models(), "--frontier", *SMALL, "--against", models("uniform"), "--out", "both", "--json")
    assert [one["model"] for one in json.loads(done.stdout)["frontiers"]] == [models(), models("uniform")]
    told = (tmp_path / "both" / "frontier.svg").read_text("utf-8")
    assert f"ancestral, {models()}" in told
    assert f"ancestral, {models('uniform')}" in told
    stored = ("--frontier", *SMALL, "--against", "both/frontier-2.json")
    assert run("evaluate", models(), *stored, "--out", "two").exit_code == 0
    assert (tmp_path / "two" / "frontier.svg").read_text("utf-8") == told, "a record is drawn as its model was"
    odd = (*stored, "--samples", 7, "--out", "odd")
    assert "measured differently: num 7 and 6" in run("evaluate", models(), *odd).stderr
    assert not (tmp_path / "odd" / "frontier.png").exists()
    assert run("evaluate", models(), *odd, "--force").exit_code == 0
    assert (tmp_path / "odd" / "frontier.png").exists()


def test_a_text_is_judged_by_its_own_spelling_unless_told(run, models, tmp_path, undrawn):
    (tmp_path / "x.txt").write_text(TEXT)
    options = (models("masked", "bytes"), "--frontier", "--data", "x.txt", *SMALL, "--samplers", "ancestral")
    assert run("evaluate", *options, "--out", "own").exit_code == 0
    own = Frontier.read(tmp_path / "own" / "frontier.json")
    assert own.measure == "bits per character"
    assert "character 5-gram of nine tenths of x.txt" in own.protocol["judge"]
    noise = min(point.quality for point in own.points)
    assert own.reference["quality"] < 3 < noise, "people are judged better than noise"
    assert run("evaluate", *options, "--out", "told", "--judge", "ngram:x.txt").exit_code == 0
    told = Frontier.read(tmp_path / "told" / "frontier.json")
    assert told.protocol["judge"].startswith("character 5-gram of x.txt")


def test_every_model_is_shown_beside_text_that_the_judge_does_not_know(run, models, tmp_path, undrawn):
    """The judge that is fitted for the first judges the second; the human text is the tenth that it never saw."""
    (tmp_path / "x.txt").write_text(TEXT)
    one, other = models("masked", "bytes"), models("uniform", "bytes")
    options = ("--nfe", 1, "--samples", 2, "--samplers", "ancestral", "--data", "x.txt", "--out", "f")
    assert run("evaluate", one, "--frontier", *options, "--against", other).exit_code == 0
    first, second = (Frontier.read(tmp_path / "f" / name) for name in ("frontier.json", "frontier-2.json"))
    assert first.reference == second.reference
    assert first.protocol == second.protocol


def test_a_model_that_writes_nothing_is_told_so(run, models, monkeypatch, tmp_path):
    monkeypatch.setattr("redraft.lm.LM.decode", lambda self, ids: "")
    done = run("evaluate", models(), "--data", "toy", "--rows", 9, "--samples", 3, "--json", "--out", "one.json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == {"samples": 3, "empty": 3}
    assert records.read(tmp_path / "one.json")["nats_per_token"] > 0, "what was measured before is not lost"
    assert "none to judge: all 3 are empty" in run("evaluate", models(), "--data", "toy", "--samples", 3).stdout


def test_samples_are_judged_too(run, models, tmp_path):
    (tmp_path / "x.txt").write_text(TEXT)
    done = run("evaluate", models("masked", "bytes"), "--data", "x.txt", "--rows", 2, "--samples", 4, "--json")
    plain = json.loads(done.stdout)["samples"]
    assert plain["judge"] is None
    assert plain["human"]["texts"] == 4
    options = ("--rows", 2, "--samples", 4, "--judge", "ngram:x.txt")
    done = run("evaluate", models("masked", "bytes"), "--data", "x.txt", *options, "--json", "--out", "one.json")
    found = json.loads(done.stdout)["samples"]
    assert found["bits_per_char"] > found["human"]["bits_per_char"]
    assert found["unigram_entropy"] == plain["unigram_entropy"]
    assert records.read(tmp_path / "one.json")["samples"] == found
    done = run("evaluate", models("masked", "bytes"), "--data", "x.txt", *options)
    assert "bits per character" in done.stdout
    (tmp_path / "short.txt").write_text("A line.")
    done = run("evaluate", models("masked", "bytes"), "--data", "short.txt", "--samples", 2, "--json")
    assert done.exit_code == 2, "one row has no error bar"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ("--data",)),
        (("--frontier", "--draws", 2), ("--draws 2",)),
        (("--frontier", "--estimator", "ode"), ("--estimator",)),
        (("--data", "toy", "--nfe", 2), ("--nfe", "--frontier")),
        (("--data", "toy", "--samplers", "ancestral"), ("--samplers", "--frontier")),
        (("--data", "toy", "--length", 3), ("--length", "--frontier")),
        (("--data", "toy", "--prompt", "we"), ("--prompt", "--frontier")),
        (("--data", "toy", "--judge", "ngram:x"), ("--judge", "--samples")),
        (("--data", "toy", "--against", "a", "--against", "b"), ("a and b",)),
        (("--frontier", "--samplers", "ancestrall"), ("'ancestrall'", "ancestral")),
        (("--frontier", "--samplers", "ddim"), ("ddim", "masked")),
        (("--frontier", "--nfe", 0), ("nfes=[0]",)),
        (("--frontier", "--samples", 1), ("num=1",)),
        (("--frontier", "--judge", "ngram"), ("ngram:FILE",)),
        (("--frontier", "--out", "x.json"), ("x.json", "folder")),
        (("--frontier", "--against", "none.json"), ("none.json",)),
        (("--frontier", "--force"), ("--against",)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_refusals(options, words, refused, models, tmp_path):
    refused("evaluate", models(), *options, words=words)
    assert list(tmp_path.iterdir()) == []


def test_text_without_a_judge_is_refused(refused, models):
    refused("evaluate", models("masked", "bytes"), "--frontier", words=("--data", "--judge"))


def test_what_is_measured_becomes_a_page(run, refused, models, tmp_path, undrawn):
    refused("report", tmp_path, words=("holds no records", "--out"))
    assert run("evaluate", models(), "--data", "toy", "--rows", 9, "--samples", 4, "--out", "r/a.json").exit_code == 0
    assert run("evaluate", models(), "--frontier", *SMALL, "--out", "r/f").exit_code == 0
    done = run("report", "r")
    assert (done.exit_code, done.stdout.split()) == (0, ["page", "r/report.html"])
    text = (tmp_path / "r" / "report.html").read_text("utf-8")
    value = records.read(tmp_path / "r" / "a.json")["nats_per_token"]
    for words in (f"{value:.5g} ± ", "unigram entropy", "<svg", "ancestral", "f/frontier.json"):
        assert words in text
    assert json.loads(run("report", "r", "--out", "x.html", "--json").stdout) == {"page": "x.html"}
    assert (tmp_path / "x.html").read_text("utf-8") == text


def test_a_run_says_what_made_it(run, tmp_path):
    small = ("--train.steps", 2, "--train.batch", 4, "--model.depth", 1, "--eval.draws", 1)
    assert run("train", "toy_masked", "--out", "one", *small, "--seed", 4).exit_code == 0
    told = json.loads((tmp_path / "one" / "results.json").read_text("utf-8"))
    assert {"command", "commit", "machine", "date"} <= told.keys()
    assert run("report", ".").exit_code == 0
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "toy_masked" in text
    assert f"{told['nats_per_token']:.5g} ± " in text
    assert "<td>4</td>" in text, "its seed"
