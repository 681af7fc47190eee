"""What a run shows and keeps."""

import json
import sys
import types

import pytest

from redraft.training import progress
from redraft.training.progress import Report, truncate


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_plain_lines_and_metrics(tmp_path, capsys):
    with Report(tmp_path, steps=10, step=0, tracker="none", config={}) as report:
        report.advance(2, 1.5, 100.0)
        report.row(2, {"loss": 1.5, "lr": 1e-3})
        report.say("[MASK] is text")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith("step 2/10  loss 1.5  lr 0.001  ETA 0:00:0")
    assert err.splitlines()[1] == "[MASK] is text"
    assert rows(tmp_path) == [{"step": 2, "loss": 1.5, "lr": 1e-3}]


def test_what_was_not_measured_is_left_out(tmp_path, capsys):
    with Report(tmp_path, steps=10, step=0, tracker="none", config={}) as report:
        report.row(2, {"loss": 1.5, "bound": float("nan")})
    assert rows(tmp_path) == [{"step": 2, "loss": 1.5}]


def test_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Report(tmp_path, steps=10, step=4, tracker="none", config={}) as report:
        report.advance(5, 1.25, 2000.0)
        report.row(5, {"loss": 1.25})
        report.say("[MASK] is text")
    err = capsys.readouterr().err
    assert "5/10" in err
    assert "loss 1.2500  2,000 tokens/s" in err
    assert "[MASK] is text" in err


def test_other_ranks_are_silent(tmp_path, capsys):
    with Report(tmp_path, steps=10, step=0, tracker="none", config={}, main=False) as report:
        report.advance(1, 1.0, 1.0)
        report.row(1, {"loss": 1.0})
        report.say("text")
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())


def test_truncate_keeps_rows_up_to_the_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    truncate(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [one.name for one in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_keeps_the_numbers(tmp_path):
    with Report(tmp_path, steps=2, step=0, tracker="tensorboard", config={"train.lr": 1}) as report:
        report.row(1, {"loss": 0.5})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5)]


def test_trackio_is_given_the_numbers(tmp_path, monkeypatch):
    seen = []
    run = types.SimpleNamespace(
        log=lambda metrics, step: seen.append((step, metrics)), finish=lambda: seen.append("finish")
    )

    def init(**options):
        seen.append(options)
        return run

    monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(init=init))
    with Report(tmp_path, steps=2, step=0, tracker="trackio", config={"train.lr": 1}) as report:
        report.row(1, {"loss": 0.5})
    assert seen[0] == {"project": "redraft", "name": tmp_path.name, "config": {"train.lr": 1}, "resume": "never"}
    assert seen[1:] == [(1, {"loss": 0.5}), "finish"]


@pytest.mark.parametrize(("tracker", "module"), [("tensorboard", "torch.utils.tensorboard"), ("trackio", "trackio")])
def test_missing_tracker_says_what_to_install(tmp_path, monkeypatch, tracker, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"redraft\[{tracker}\]"):
        Report(tmp_path, steps=2, step=0, tracker=tracker, config={})


def test_unknown_tracker(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'trackio'"):
        Report(tmp_path, steps=2, step=0, tracker="trackoi", config={})
    assert set(progress.TRACKERS) == {"tensorboard", "trackio"}
