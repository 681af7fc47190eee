"""``redraft study``: tiny studies through the real runner, in processes of their own."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from redraft import recipes, studies
from redraft.studies import lineage
from redraft.studies.runner import Budget, Cell, run_cells

TINY = Budget(steps=2, seeds=1, draws=1, samples=4)


def broken_or_whole(name, budget):
    """What decides a cell; that of "broken" is no configuration."""
    if name == "broken":
        return {"config": {"recipe": 1, "modle": {}}, "samples": 1}
    chosen = recipes.override(lineage.config(name, budget), {"data.source": "toy", "data.held_out": 0.3})
    return {"config": recipes.to_dict(chosen), "draws": 1, "samples": budget.samples, "nfe": [2, 4]}


def small(**changes):
    names = ["mdlm", "broken", "autoregressive"]
    return replace(studies.get("lineage"), names=lambda: names, options=broken_or_whole, full=TINY, **changes)


def stop_after_one(line):
    if line.startswith("[1/"):
        raise KeyboardInterrupt


@pytest.mark.slow
def test_lineage_interrupted_resumed_and_reported(tmp_path, capfd):
    """Stopped after its first cell, it goes on from there; the cell that fails is named with its reason."""
    study = small()
    with pytest.raises(KeyboardInterrupt):
        run_cells(study.cells(TINY), study.measure, tmp_path, 1, stop_after_one)
    kept = list((tmp_path / "cells").iterdir())
    assert [path.name.split("-")[0] for path in kept] == ["mdlm"]
    before = kept[0].stat().st_mtime_ns

    done = studies.run(study, out=tmp_path)
    assert "1 of 3 cells are already in" in capfd.readouterr().err
    assert kept[0].stat().st_mtime_ns == before
    assert [record.failed is None for record in done.records] == [True, False, True]
    assert "modle" in str(done.records[1].failed)
    assert [path.name.split("-")[0] for path in (tmp_path / "logs").iterdir()] == ["broken"]
    assert not (tmp_path / "work").exists()

    report = (tmp_path / "report.md").read_text("utf-8")
    assert "| broken | failed |" in report
    assert "modle" in report
    assert "autoregressive" in report
    for name in ("bounds", "quality", "cost"):
        assert f"({name}.png)" in report
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        assert (tmp_path / f"{name}.svg").exists()
    records = {one["cell"]["name"]: one for one in json.loads((tmp_path / "records.json").read_text())["records"]}
    check_lineage_record(records["mdlm"], calls=[2, 4])
    check_lineage_record(records["autoregressive"], calls=[lineage.LENGTH])


def check_lineage_record(record, calls):
    found = record["measured"]
    assert found["likelihood"]["estimator"]
    assert found["likelihood"]["bits_per_char_error"] > 0
    assert found["tokens"] == 2 * 16 * 64
    assert [row["nfe"] for row in found["samples"]] == calls
    for row in (*found["samples"], found["human"]):
        assert {"bits_per_char", "bits_per_char_error", "unigram_entropy", "distinct_2"} <= set(row)
    assert found["human"]["bits_per_char"] < found["samples"][0]["bits_per_char"]
    assert 0 < found["train_cpu_seconds"] <= record["cpu_seconds"]
    assert 100 < record["peak_memory_mb"] < 10_000
    assert record["machine"]["threads"] == 1


@pytest.mark.slow
def test_hybrid_from_the_command_line(run, refused, monkeypatch):
    monkeypatch.setattr("redraft.studies.hybrid.STUDY", replace(studies.get("hybrid"), quick=TINY))
    options = ["study", "hybrid", "--quick", "--only", "0.2", "--out", "here"]
    first = run(*options, "--json")
    assert first.exit_code == 0, first.stderr
    told = json.loads(first.stdout)
    assert (told["out"], told["cells"], told["failed"]) == ("here", 1, [])
    assert {"claim", "verdict", "sentence"} == set(told["findings"][0])
    again = run(*options)
    assert "1 of 1 cells are already in here" in again.stderr
    assert "report.md" in again.stdout
    report = Path("here/report.md").read_text("utf-8")
    assert "2 training steps" in report
    assert "`redraft study hybrid --quick" in report
    refused("study", "hybird", words=("'hybrid'",))
    refused("study", "hybrid", "--only", "0.21", words=("'0.21'", "0.2"))


def die(cell, folder):
    os._exit(3)


def test_a_cell_whose_process_dies_is_a_failed_cell(tmp_path):
    told = []
    (record,) = run_cells([Cell("gone", 0, {})], die, tmp_path, tell=told.append)
    assert "exit code 3" in str(record.failed)
    assert "failed" in told[0]
    assert not (tmp_path / "cells").exists(), "and it is tried again next time"
