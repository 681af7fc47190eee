"""One rank of a group: train in every layout that needs one, and keep the corruption, the weights and refusals."""

import os
import signal
import sys
from pathlib import Path

import torch

from parity import small
from redraft import objectives
from redraft.training import Hooks, fit, world

LAYOUTS = {
    "ddp": {"parallel": "auto"},
    "ddp_parts": {"parallel": "ddp", "accumulate": 2},
    "fsdp": {"parallel": "fsdp", "ema": 0.9},
    "fsdp_parts": {"parallel": "fsdp", "accumulate": 2},
}


def recorded(out: Path, **options) -> None:
    """Train with a process that remembers what it draws; rank r's share of every step goes to ``drawn-r.pt``."""
    process, drawn = small.process(), []
    corrupt = process.corrupt

    def remember(x0, t, generator):
        drawn.append((x0, t, corrupt(x0, t, generator)))
        return drawn[-1][-1]

    process.corrupt = remember
    with world() as here:
        config = small.config(**options)
        result = fit(config, small.model(), process, objectives.get("nelbo"), small.Rows(), Hooks(small.probe), out)
        torch.save(drawn, out / f"drawn-{here.rank}.pt")
        if here.main:
            torch.save(result.weights, out / "weights.pt")


def main(out: Path) -> None:
    with world() as here:
        for name, options in LAYOUTS.items():
            recorded(out / name, **options)
        # the averaged weights are whole on rank 0, and a checkpoint read by both ranks ends the same run
        small.train(out / "half", parallel="fsdp", ema=0.9, save_every=2)
        if here.main:
            newest = out / "half" / "checkpoints" / "step-000004"
            newest.rename(newest.with_name(".step-000004.tmp"))
        here.barrier()
        again = small.train(out / "half", resume=True, parallel="fsdp", ema=0.9, save_every=2)
        if here.main:
            torch.save(again.weights, out / "half" / "weights.pt")
        muon = small.train(out / "muon", parallel="fsdp", optimizer="muon")
        if here.main:
            torch.save(muon.weights, out / "muon" / "weights.pt")
        for name in small.SCHEDULES:
            learned = small.train_vectors(out / f"{name}_ddp", name)
            if here.main:
                torch.save(learned.weights, out / f"{name}_ddp" / "weights.pt")
        # one rank is asked to stop: all stop after the same step

        def interrupt(step, model):
            if step == 2 and here.rank == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return {}

        stopped = small.train(out / "stopped", hooks=Hooks(interrupt), eval_every=1)
        (out / f"stopped-{here.rank}").write_text(f"{stopped.stopped} {stopped.step}")
        try:
            small.train(out / "odd", batch=9)
        except ValueError as error:
            (out / f"refusal-{here.rank}").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
