"""A tiny converted model learns a file of conversations by heart: how many answers it then writes exactly.

    python benchmarks/sft_overfit.py TASKS.jsonl [--out benchmarks/results/sft/overfit-cpu.json] [--train.steps 500 ..]

A random causal model in Llama's layout is written, converted to a masked denoiser with open attention, and fine-tuned
with defaults but for ``CHANGES``. Then each prompt is answered at temperature 0, the likeliest tokens first.
Conversations are packed without padding, so the model is told how long an answer is: as many masks as that has, the
token that ends it among them. What is too long for a row was not learned, and counts as not exact. The default run is
at the edge of exact: the same weights, asked in fewer or more steps than ``STEPS``, miss one to three answers.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from redraft.answering import speaks
from redraft.conversion import convert
from redraft.data import build_tokenizer
from redraft.data.chat import conversations
from redraft.files import write_text
from redraft.finetuning import finetune
from redraft.finetuning.rows import Example, examples
from redraft.lm import LM
from redraft.records import machine
from redraft.sampling import sample

WIDTH, INNER, DEPTH, VOCAB, LENGTH = 96, 576, 2, 4096, 1504
"""``LENGTH`` has room for the longest of the seed tasks, of 1,498 tokens."""
CHANGES: dict[str, Any] = {
    "loss.name": "dream", "loss.weighting": "flat", "data.rows": "packed", "data.template": "plain",
    "train.steps": 1600, "train.batch": 2, "train.optimizer": "muon", "train.lr": 5e-3, "train.muon_lr": 2e-2,
    "train.warmup": 10, "train.decay": 0.6, "train.weight_decay": 0.0, "train.seed": 0, "data.length": LENGTH,
    "train.log_every": 100,
}  # fmt: skip
STEPS = 32
"""Steps of an answer, or its tokens where those are fewer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sft/overfit-cpu.json"))
    parser.add_argument("--threads", type=int, default=1)
    options, fields = parser.parse_known_args()
    changes = CHANGES | {name.removeprefix("--"): value for name, value in zip(fields[::2], fields[1::2], strict=True)}
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        base(Path(folder) / "causal", options.tasks, changes["train.seed"])
        convert(Path(folder) / "causal", to="masked", out=Path(folder) / "masked")
        cpu, wall = time.process_time(), time.monotonic()
        run = finetune(Path(folder) / "masked", options.tasks, out=Path(folder) / "run", overrides=changes)
        trained = {"seconds": round(time.monotonic() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        logged = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    cpu, wall = time.process_time(), time.monotonic()
    asked = examples(speaks(run.lm.tokenizer, run.lm.about, "plain", None), conversations(options.tasks))
    learned = [one for one in asked if len(one.ids) <= LENGTH]
    exact, right = answered(run.lm, learned)
    report = {
        "tasks": len(asked),
        "learned": len(learned),
        "exact": exact,
        "share_of_all": round(exact / len(asked), 4),
        "share_of_learned": round(exact / len(learned), 4),
        "tokens_right": round(right, 4),
        "parameters": sum(one.numel() for one in run.lm.denoiser.parameters()),
        "answer_tokens": sum(int(one.answer.sum()) for one in learned),
        "training": trained,
        "decoding": {
            "seconds": round(time.monotonic() - wall, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "how": f"temperature 0, the likeliest first, {STEPS} steps at most; as many masks as the answer has tokens",
        },
        "last_loss": logged[-1]["loss"],
        "fields": changes,
        "machine": machine(),
        "command": " ".join(["python", *(Path(arg).name if Path(arg).is_absolute() else arg for arg in sys.argv)]),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def base(folder: Path, tasks: Path, seed: int) -> None:
    """A causal model of random weights, with byte pairs learnt from the tasks."""
    words = build_tokenizer("bpe", [one["content"] for talk in conversations(tasks) for one in talk], VOCAB)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=words.K, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=DEPTH,
        num_attention_heads=WIDTH // 32, num_key_value_heads=WIDTH // 32, max_position_embeddings=LENGTH,
        eos_token_id=words.eos_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save(folder)


def answered(lm: LM, asked: list[Example]) -> tuple[int, float]:
    """How many answers are written exactly, and the share of their tokens that are right."""
    exact, right = 0, 0
    for one in asked:
        length, prompt = len(one.ids), len(one.ids) - int(one.answer.sum())
        found = sample(
            lm.process, lm.denoiser, prompt=one.ids[:prompt].tolist(), length=length - prompt,
            steps=min(STEPS, length - prompt), sampler="low_confidence", temperature=0.0,
        )  # fmt: skip
        same = found.tokens[0].numpy()[prompt:] == one.ids[prompt:]
        exact, right = exact + bool(np.all(same)), right + int(same.sum())
    return exact, right / sum(int(one.answer.sum()) for one in asked)


if __name__ == "__main__":
    main()
