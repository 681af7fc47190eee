"""The toy language, family by family: how near the bound comes to the entropy, and how many samples are sentences.

    python benchmarks/toys.py [--out benchmarks/results/toys.json]

Each recipe is trained by ``redraft train`` and sampled by ``redraft generate --num 1000``, defaults throughout, in
processes of their own, so that the seconds are what a user waits.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from redraft.data import toy
from redraft.records import made

RECIPES = ("toy_masked", "toy_uniform", "toy_hybrid", "toy_gaussian")
ALLOWED = {"toy_gaussian": 0.15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/toys.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {recipe: measure(recipe, Path(folder) / recipe) for recipe in RECIPES}
    report = {
        "entropy_nats_per_token": toy.ENTROPY,
        "recipes": found,
        "goal": "bound within 0.05 nats/token of the entropy (Gaussian 0.15); 0.95 of 1,000 samples well-formed; "
        "distinct sentences at least 0.9 of what a perfect sampler shows; training under 60 s",
        **made([0]),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def measure(recipe: str, out: Path) -> dict[str, Any]:
    trained, seconds = redraft("train", recipe, "--out", str(out))
    likelihood = trained["likelihood"]
    written, writing = redraft("generate", str(out), "--num", "1000")
    report = toy.report(sample["text"] for sample in written["samples"])
    excess = likelihood["nats_per_token"] - toy.ENTROPY
    coverage = report["distinct"] / report["expected_distinct"]
    return {
        "train_seconds": round(seconds, 1),
        "nats_per_token": likelihood["nats_per_token"],
        "interval_95": likelihood["nats_per_token_error"],
        "estimator": likelihood["estimator"],
        "excess_over_entropy": excess,
        "generate_seconds": round(writing, 1),
        "nfe": written["nfe"],
        **report,
        "coverage": coverage,
        "reached": excess <= ALLOWED.get(recipe, 0.05)
        and report["well_formed"] >= 0.95
        and coverage >= 0.9
        and seconds < 60,
    }


def redraft(*arguments: str) -> tuple[dict[str, Any], float]:
    """One command with --json, and the seconds it took."""
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "redraft.cli", *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout), time.time() - started


if __name__ == "__main__":
    main()
