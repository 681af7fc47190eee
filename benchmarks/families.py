"""Every family on the same text, network, steps and seed, with the autoregressive model as the line to compare with.

    python benchmarks/families.py [--recipes mdlm autoregressive] [--out benchmarks/results/families.json]

Compute is given as seconds of training steps alone and as tokens seen; the networks differ only in what their process
needs (time conditioning, the codebook). Bounds and the exact autoregressive value are of the same held-out text;
``validations`` are (step, bits per character) along the way, from one draw of every row: who over-fits, and when.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from redraft import records, runs
from redraft.evaluation import variety
from redraft.lm import LM

RECIPES = ["mdlm", "autoregressive", "udlm", "gidd", "gaussian"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--steps", type=int, default=None, help="training steps (each recipe's own unless given)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/families.json"))
    options = parser.parse_args()
    report: dict[str, Any] = {**records.made([0, 1]), "recipes": {}}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for recipe in options.recipes:
        report["recipes"][recipe] = measure(recipe, options.steps)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
        print(recipe, json.dumps(report["recipes"][recipe]))


def measure(recipe: str, steps: int | None) -> dict[str, Any]:
    """Train, evaluate, and draw eight texts."""
    overrides: dict[str, Any] = {"eval.rows": "none"} | ({} if steps is None else {"train.steps": steps})
    with tempfile.TemporaryDirectory() as folder:
        run = runs.train(recipe, out=Path(folder) / "run", overrides=overrides)
        rows = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
        results = json.loads((run.out / "results.json").read_text())
    assert run.likelihood is not None
    speeds = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    tokens = results["tokens_trained_on"]
    return {
        **run.likelihood.to_dict(),
        "parameters": results["parameters"],
        "tokens_trained_on": tokens,
        "validations": [(row["step"], row["bits_per_char"]) for row in rows if "bits_per_char" in row],
        "training_seconds": round(sum(tokens / len(speeds) / speed for speed in speeds), 1),
        **samples(run.lm),
    }


def samples(lm: LM) -> dict[str, Any]:
    written = lm.generate(num=8, seed=1)
    return {"samples": 8, "nfe": written.samples.nfe, **variety(written.tokens.tolist())}


if __name__ == "__main__":
    main()
