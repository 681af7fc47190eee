"""A folder of records as one page: well-formed, escaped, nothing of different protocol in one table, equal bytes."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from redraft import records, reporting
from redraft.frontiers import Frontier, Point
from redraft.reporting import found as collecting
from redraft.reporting.page import POLICY
from redraft.reporting.parts import figure, words

MACHINE = {"processor": "p9", "gpu": None, "torch": "2.0"}
VOID = {"meta", "br", "hr", "img", "input", "link"}


def made(seed=0, command="redraft evaluate x --out 'a b.json'"):
    return {"command": command, "seeds": [seed], "commit": "abc123+", "machine": MACHINE, "date": "2026-01-02"}


def likelihood(model="m", nats=1.25, text="t1", **more):
    protocol = {"text": {"sha256": text}, "context": 6}
    told = {"model": model, "nats_per_token": nats, "nats_per_token_error": 0.125, "is_bound": True, "rows": 20}
    return {**told, "estimator": "NELBO", "bits_per_char": None, "protocol": protocol, **more}


def samples(judge="j1", **more):
    told = {"samples": 40, "judge": judge, "tokenisation": "characters", "bits_per_char": 2.5, "dtype": "float64"}
    told |= {"shortest": 5, "longest": 9, "empty": 2}
    told |= {"bits_per_char_error": 0.25, "unigram_entropy": 3.5, "unigram_entropy_error": 0.1, "distinct_2": 0.75}
    return {**told, "human": {"texts": 39, "bits_per_char": 1.5, "bits_per_char_error": 0.2, "unigram_entropy": 4.5}}


def frontier(model="m", num=10):
    point = {"asked": 4, "steps": 4, "nfe_percentiles": {"p10": 3.0, "p90": 4.0}, "positions": 24.0}
    point |= {"tokens_per_forward": 1.5, "cpu_seconds": 0.1, "quality_low": 0.4, "quality_high": 0.6}
    points = [Point("ancestral", nfe=nfe, quality=0.5, unigram_entropy=1.0, measured={}, **point) for nfe in (4.0, 8.0)]
    protocol = {"length": 6, "prompt": "", "num": num, "judge": None}
    return Frontier(model, "share of well-formed sentences", protocol, tuple(points), None, 0).to_dict()


def rate(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "error": 0.1, "hits": 1, "n": 4}


HARNESS = {
    "model": "m",
    "n_shot": {"quiz": 5},
    "results": {"quiz": {"alias": "quiz", "acc,none": 0.625, "acc_stderr,none": 0.0625}},
    "log_p": {"quiz": {"is": "lower bound", "estimator": "bound", "draws": 32, "mean_standard_error": 0.375}},
}
CELL = {"steps": None, "sampler": "gibbs", "answers": [{"text": "an answer"}]}
SAFETY = {
    "model": "m",
    "cells": [
        {"condition": "plain", "length": 8, "refusal": rate(0.75), **CELL},
        {"condition": "longer", "length": 16, "refusal": rate(0.25), **CELL},
    ],
    "differences": [{"figure": "refusal", "changed": "condition", "from": 0, "to": 1, **rate(-0.5)}],
}
STUDY = {
    "study": "order",
    "question": "Why?",
    "answer": "So.",
    "findings": [{"claim": "c", "verdict": "fails", "sentence": "It does not."}],
}
RUN = {
    **{"nats_per_token": 0.9375, "nats_per_token_error": 0.03, "is_bound": True, "parameters": 1234567},
    **{"tokens_trained_on": 5000, "seconds": 12.5, "machine": MACHINE, "commit": "abc", "command": "redraft train x"},
    "recipe": {"recipe": "toy_masked", "train": {"seed": 7}},
}


@pytest.fixture
def folder(tmp_path):
    every = {
        "a.json": ("likelihood", likelihood(samples=samples())),
        "b/c.json": ("likelihood", likelihood("other", 1.5)),
        "d.json": ("likelihood", likelihood("third", 1.75, "t2")),
        "s.json": ("samples", {"model": "sampled", **samples("j2")}),
        "f.json": ("frontier", frontier()),
        "g.json": ("frontier", frontier("second")),
        "h.json": ("frontier", frontier("third", 11)),
        "quiz.json": ("harness", HARNESS),
        "safe.json": ("safety", SAFETY),
        "study/records.json": ("study", STUDY),
    }
    for name, (kind, tree) in every.items():
        records.write(tmp_path / name, kind, tree, made())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(json.dumps(RUN))
    for name, text in {"tokenizer.json": '{"model": {}}', "list.json": "[1]", "run/config.json": "{}"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


class Checked(HTMLParser):
    """Every element is closed in its order, ids are unique, and links lead somewhere on the page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.tables = [], [], [], set(), []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        assert {link[1:] for link in self.links} <= set(self.ids)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        told = dict(attrs)
        assert not [name for name in told if name.startswith("on")]
        self.ids += [told["id"]] if "id" in told else []
        self.links += [told["href"]] if tag == "a" else []
        self.open += [] if tag in VOID else [tag]
        if tag == "table":
            self.tables.append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "table" in self.open:
            self.tables[-1] += f"{data}|"


def tables(folder):
    return Checked(reporting.page(folder)).tables


def table(parts, word):
    (one,) = [one for one in parts if word in one and "redraft evaluate" not in one]
    return one


def without_pictures(folder):
    """The tables of a page on which nothing is drawn, which is quicker."""
    for name in "fgh":
        (folder / f"{name}.json").unlink()
    return tables(folder)


def test_the_page_is_well_formed_and_needs_nothing_else(folder):
    text = reporting.page(folder)
    seen = Checked(text)
    assert not {"script", "iframe", "img", "link", "form", "object"} & seen.tags
    assert POLICY in text
    assert "default-src 'none'" in POLICY
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ), "nothing is fetched"
    assert text == reporting.page(folder), "equal records make equal bytes"


def test_likelihoods_of_another_protocol_stand_in_another_table(folder):
    parts = without_pictures(folder)
    first, second = table(parts, "sha256 t1"), table(parts, "sha256 t2")
    for words_ in ("1.25 ± 0.12", "1.5 ± 0.12", "upper bound", "NELBO", "other"):
        assert words_ in first
    assert "1.75" not in first
    assert "1.75 ± 0.12" in second
    assert "other" not in second
    assert "bits a byte" not in first, "what no record has gets no column"


def test_samples_of_another_judge_stand_in_another_table_and_never_without_variety(folder):
    parts = without_pictures(folder)
    first, second = table(parts, "Judged by: j1"), table(parts, "Judged by: j2")
    for one in (first, second):
        for words_ in (
            "2.5 ± 0.25",
            "3.5 ± 0.1",
            "0.75",
            "float64",
            "5 to 9",
            "empty",
            "human text beside it",
            "1.5 ± 0.2",
            "4.5",
            "39",
        ):
            assert words_ in one
    assert "sampled" in second
    assert "sampled" not in first


def test_frontiers_of_one_protocol_are_drawn_together(folder):
    text = reporting.page(folder)
    assert text.count("<svg") == 2
    both, other = text.split("<svg")[1:]
    assert ">ancestral, m<" in both
    assert ">ancestral, second<" in both
    assert ">ancestral<" in other
    assert "0.500 (0.400 to 0.600)" in text
    assert "4.0 (3 to 4)" in text


def test_the_other_kinds_show_their_figures_with_intervals(folder):
    parts = without_pictures(folder)
    quiz = table(parts, "examples shown")
    for words_ in ("quiz", "acc", "0.625", "0.0625", "standard error", "5"):
        assert words_ in quiz
    assert "alias" not in quiz
    scored = table(parts, "log p is")
    for words_ in ("quiz", "lower bound", "32", "0.375"):
        assert words_ in scored
    rates, apart = table(parts, "m: rates"), table(parts, "m: differences")
    for words_ in ("0.75 (0.65 to 0.85)", "0.25 (0.15 to 0.35)", "longer", "16", "gibbs"):
        assert words_ in rates
    assert "-0.5 (-0.6 to -0.4)" in apart
    assert "plain length 8 sampler gibbs, longer length 16 sampler gibbs" in apart
    assert "an answer" not in reporting.page(folder), "what a model answered is not shown"
    assert "fails|It does not." in table(parts, "Study order")
    assert "order: Why? So. (Its report: study/report.md)" in reporting.page(folder)
    runs = table(parts, "Runs")
    for words_ in ("toy_masked", "1,234,567", "5,000", "12.5"):
        assert words_ in runs
    assert "0.9375 ± 0.03" in "".join(parts), "a run's likelihood stands among the others"


def test_every_record_says_how_to_repeat_it(folder):
    last = without_pictures(folder)[-1]
    assert last.count("redraft evaluate x --out 'a b.json'") == 7
    for words_ in ("abc123+", "processor p9", "torch 2.0", "2026-01-02", "redraft train x", "run/results.json", "|7|"):
        assert words_ in last
    assert "gpu" not in last, "there was none"
    text = reporting.page(folder)
    assert {f'href="#made-{i}"' in text for i in range(1, 9)} == {True}
    assert "8 records" in text


def test_names_are_text(tmp_path):
    evil = "<script>alert(1)</script>\"' & \x00\n\ud800"
    records.write(tmp_path / "a.json", "frontier", frontier(evil), made(command=evil))
    records.write(tmp_path / "b.json", "frontier", frontier("$\\frac{$"), made())
    for kind, tree in {
        "likelihood": likelihood(evil, samples=samples(evil)),
        "study": {**STUDY, "study": evil},
    }.items():
        records.write(tmp_path / f"{kind}.json", kind, tree, {**made(), "commit": evil, "machine": {evil: evil}})
    text = reporting.page(tmp_path)
    seen = Checked(text)
    assert "script" not in seen.tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\x00" not in text
    text.encode("utf-8")


def test_a_damaged_file_is_named(folder):
    for text in ("{", '{"kind": "likelihood"', "\xff", "[" * 100_000):
        (folder / "broken.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=r"broken\.json: damaged"):
            reporting.page(folder)
    records.write(folder / "broken.json", "frontier", {**frontier(), "points": 3}, made())
    with pytest.raises(ValueError, match=r"broken\.json is no frontier"):
        reporting.page(folder)


@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [1], {"a": 1}, True, [{"a": [1]}], {"protocol": [{}]}])
def test_what_somebody_edited_is_shown_as_far_as_it_goes(tmp_path, value):
    """Every field of every kind but a frontier's, replaced by something else."""
    kinds = {"likelihood": likelihood(samples=samples()), "harness": HARNESS, "safety": SAFETY, "study": STUDY}
    kinds["samples"] = samples()
    number = 0
    for kind, tree in kinds.items():
        for name in tree:
            number += 1
            told = {**made(), "seeds": value, "machine": value, "command": value}
            records.write(tmp_path / f"{number}.json", kind, {**tree, name: value}, told)
    (tmp_path / "results.json").write_text(json.dumps({**RUN, "recipe": value, "seconds": value}))
    Checked(reporting.page(tmp_path))


def test_what_cannot_be_a_report_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="holds no records: redraft evaluate"):
        reporting.page(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        reporting.page(tmp_path / "none")
    records.write(tmp_path / "a.json", "likelihood", likelihood(), made())
    with pytest.raises(ValueError, match="name a file"):
        reporting.report(tmp_path, tmp_path)
    monkeypatch.setattr(collecting, "MOST_FILES", 0)
    with pytest.raises(ValueError, match=r"1 \.json files"):
        reporting.page(tmp_path)


def test_a_huge_file_is_left_out_with_a_remark_and_links_are_not_followed(tmp_path, monkeypatch):
    records.write(tmp_path / "in" / "a.json", "likelihood", likelihood(), made())
    records.write(tmp_path / "in" / "big.json", "likelihood", likelihood("x" * 5000), made())
    records.write(tmp_path / "outside.json", "likelihood", likelihood("outside"), made())
    (tmp_path / "in" / "link.json").symlink_to(tmp_path / "outside.json")
    monkeypatch.setattr(collecting, "MOST_BYTES", 4000)
    text = reporting.page(tmp_path / "in")
    assert "big.json was not read" in text
    assert "1 records" in text
    assert "outside" not in text


def test_a_frontier_without_matplotlib_names_the_extra(folder, monkeypatch):
    monkeypatch.setattr("redraft.drawing.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"redraft\[viz\]"):
        reporting.page(folder)
    for name in "fgh":
        (folder / f"{name}.json").unlink()
    Checked(reporting.page(folder))


def test_where_the_page_goes(folder):
    assert reporting.report(folder) == folder / "report.html"
    assert reporting.report(folder, folder / "new" / "x.html") == folder / "new" / "x.html"
    assert (folder / "report.html").read_bytes() == (folder / "new" / "x.html").read_bytes()


def test_figures_in_words():
    assert figure({"x": {"value": 1, "low": 0, "high": 2}}, "x") == "1 (0 to 2)"
    assert figure({"x": {"mean": 0.5, "n": 3}}, "x") == "mean 0.5, n 3"
    assert figure({"x": 1.0, "x_error": None}, "x") == "1"
    assert figure({"x": True}, "x") == "yes"
    deep: dict = {}
    for _ in range(50):
        deep = {"a": deep}
    assert words(deep).endswith("…")
    assert len(figure({"x": "y" * 5000}, "x")) == 1000


def test_the_style_is_in_the_package():
    assert (Path(reporting.__file__).parent / "page.css").is_file()
