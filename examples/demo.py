"""The demonstration behind ``make demo``: train on text every Python carries, evaluate, write, infill, plot.

It uses the public API only and downloads nothing. Everything it makes lies under ``--out``: the model, results.json,
metrics.jsonl, curve.png and trace.svg.
"""

import argparse
import gzip
import json
import math
import time
from pathlib import Path
from typing import Any

import redraft as rd
from redraft.data import read_documents, split_held_out
from redraft.trace import Trace

PROMPTS = ["The", "A class definition", "If the expression"]
TEMPLATE = "The [MASK:2] statement is used to [MASK:6] the value of the expression."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--steps", type=int, default=None, help="training steps (the recipe's own unless given)")
    options = parser.parse_args()
    started = time.time()

    overrides: dict[str, Any] = {} if options.steps is None else {"train.steps": options.steps}
    run = rd.train("mdlm", out=options.out, overrides=overrides)
    if run.stopped or run.likelihood is None:
        raise SystemExit(f"stopped at step {run.step}; continue with: redraft train mdlm --out {options.out} --resume")
    bound = run.likelihood
    compressed = gzip_bits_per_char()
    print(
        f"\nheld-out bound   {bound.bits_per_char:.3f} ± {bound.bits_per_char_error:.3f} bits/char ({bound.estimator})"
    )
    print(f"gzip -9          {compressed:.3f} bits/char of the same text\n")

    trace = Trace(run.lm)
    continued = [run.lm.generate(prompt, length=48, steps=48, seed=0) for prompt in PROMPTS]
    filled = run.lm.infill(TEMPLATE, num=3, steps=16, sampler="confidence", seed=0)
    run.lm.generate(PROMPTS[1], length=32, steps=32, seed=1, callback=trace)
    for one in continued:
        print(f"continued: {one.text!r}")
    for text in filled.texts:
        print(f"infilled:  {text!r}")

    free = run.lm.generate(num=8, steps=64, seed=2)
    results = json.loads((options.out / "results.json").read_text())
    results |= {
        "gzip_9_bits_per_char": compressed,
        "below_gzip": bound.bits_per_char is not None and bound.bits_per_char < compressed,
        "continuations": [{"prompt": p, "text": one.text} for p, one in zip(PROMPTS, continued, strict=True)],
        "infilling": {"template": TEMPLATE, "texts": filled.texts},
        "free_samples": free.to_dict(),
        "demo_seconds": round(time.time() - started, 1),
        "command": f"python examples/demo.py --out {options.out}",
    }
    (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    trace.save_svg(options.out / "trace.svg")
    plot_curve(options.out, compressed)
    print(f"\nmodel, results.json, curve.png and trace.svg are in {options.out} ({results['demo_seconds']} s)")


def gzip_bits_per_char() -> float:
    """What gzip -9 needs for the same held-out text, documents joined by a newline."""
    held_out = "\n".join(split_held_out(read_documents("python-docs"), 0.1)[1])
    return len(gzip.compress(held_out.encode(), 9, mtime=0)) * 8 / len(held_out)


def plot_curve(out: Path, compressed: float) -> None:
    """Training bound and held-out bits per character against the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((out / "results.json").read_text())
    per_char = results["tokens"] / results["characters"] / math.log(2)
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    training = [(row["step"], row["bound"] * per_char) for row in rows if "bound" in row]
    axes.plot(*zip(*training, strict=True), color="0.7", label="training batches")
    held_out = [(row["step"], row["bits_per_char"]) for row in rows if "bits_per_char" in row]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="C0", label="held-out bound")
    axes.axhline(compressed, color="C3", linestyle="--", label="gzip -9")
    axes.set(xlabel="step", ylabel="bits per character", ylim=(0, 1.2 * compressed))
    axes.legend()
    figure.savefig(out / "curve.png", dpi=150)


if __name__ == "__main__":
    main()
