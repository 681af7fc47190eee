"""A killed run resumes from its last complete checkpoint and ends with the weights of one never killed."""

import random
import signal

from parity import small


def test_killed_run_resumes_bit_for_bit(tmp_path):
    options = {"steps": 14, "save_every": 3, "ema": 0.9, "log_every": 2}
    with small.start("slow_worker.py", tmp_path / "killed") as child:
        whole = small.train(tmp_path / "whole", **options)
        at = 2 * random.randint(2, 6)
        assert any(line.startswith(f"step {at}/") for line in child.stderr), "the run ended early"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    resumed = small.train(tmp_path / "killed", resume=True, **options)
    assert small.same(resumed.weights, whole.weights), f"killed after step {at}"
    ours, theirs = small.metrics(tmp_path / "killed"), small.metrics(tmp_path / "whole")
    kept = ("step", "loss", "bound", "lr", "norm")
    assert [[row[key] for key in kept] for row in ours] == [[row[key] for key in kept] for row in theirs]
