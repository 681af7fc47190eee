"""What simpler models make of the held-out part of ``python-docs``: compressors and character n-grams.

    python benchmarks/baselines.py [--out benchmarks/results/baselines.json]

Compressors see the held-out text alone, or after the training text (bytes added by appending it). The n-gram is
interpolated by Witten-Bell from order 1 up; it spends its mass on the characters of the whole corpus.
"""

import argparse
import bz2
import gzip
import json
import lzma
import math
from collections import Counter
from pathlib import Path

from redraft.data import read_documents, split_held_out
from redraft.records import made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/baselines.json"))
    options = parser.parse_args()
    train, held_out = ("\n".join(side) for side in split_held_out(read_documents("python-docs"), 0.1))
    compressors = {
        "gzip -9": lambda data: gzip.compress(data, 9, mtime=0),
        "bzip2 -9": lambda data: bz2.compress(data, 9),
        "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    }
    bits: dict[str, float] = {}
    for name, compress in compressors.items():
        alone = len(compress(held_out.encode()))
        after = len(compress((train + held_out).encode())) - len(compress(train.encode()))
        bits[name] = alone * 8 / len(held_out)
        bits[f"{name}, after the training text"] = after * 8 / len(held_out)
    for order in (1, 2, 3, 4, 5, 6, 8):
        bits[f"character {order}-gram, Witten-Bell"] = ngram_bits(train, held_out, order)
    report = {
        "corpus": "python-docs",
        "held_out_characters": len(held_out),
        "training_characters": len(train),
        "bits_per_char": {name: round(value, 4) for name, value in bits.items()},
        **made([]),  # nothing is drawn
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def ngram_bits(train: str, held_out: str, order: int) -> float:
    """Bits per character of ``held_out`` under p_n(c|h) = (count(hc) + types(h) p_{n-1}(c)) / (count(h) + types(h))."""
    alphabet = len(set(train + held_out))
    grams = [Counter(train[i : i + n] for i in range(len(train) - n + 1)) for n in range(1, order + 1)]
    totals: list[Counter[str]] = [Counter() for _ in range(order)]
    types: list[Counter[str]] = [Counter() for _ in range(order)]
    for n, counts in enumerate(grams):
        for gram, count in counts.items():
            totals[n][gram[:-1]] += count
            types[n][gram[:-1]] += 1
    nats = 0.0
    for i, character in enumerate(held_out):
        p = 1 / alphabet
        for n in range(min(order, i + 1)):
            history = held_out[i - n : i]
            if totals[n][history]:
                p = (grams[n][history + character] + types[n][history] * p) / (totals[n][history] + types[n][history])
        nats -= math.log(p)
    return nats / math.log(2) / len(held_out)


if __name__ == "__main__":
    main()
