"""Fine-tuning from the command line: a converted model learns a dozen conversations by heart and answers them."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from redraft import runs
from redraft.conversion import convert
from redraft.data import build_tokenizer

TALKS = [
    ("one", "un"), ("two", "deux"), ("three", "trois"), ("four", "quatre"), ("five", "cinq"), ("six", "six!"),
    ("red", "rouge"), ("blue", "bleu"), ("sea", "la mer"), ("sun", "le soleil"), ("cat", "chat"), ("dog", "chien"),
]  # fmt: skip


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A random causal model in Llama's layout, converted to masks."""
    root = tmp_path_factory.mktemp("converted")
    words = build_tokenizer("bytes")
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words.K, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=words.eos_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root / "causal")
    words.save(root / "causal")
    convert(root / "causal", to="masked", out=root / "masked")
    lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in TALKS]
    (root / "chat.jsonl").write_text("\n".join(lines) + "\n")
    return root


def test_learned_by_heart(converted, run, tmp_path):
    """Exact answers of free length: the model writes into a window, and ends each answer itself."""
    done = run(
        "train", "sft", "--model", converted / "masked", "--data", converted / "chat.jsonl", "--out", tmp_path / "run",
        "--data.template", "plain", "--train.steps", 160, "--train.batch", 12, "--train.optimizer", "muon",
        "--train.lr", 5e-3, "--train.warmup", 5, "--train.weight_decay", 0, "--train.threads", 1, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 160
    lm = runs.load(tmp_path / "run")
    said = [
        lm.chat([{"role": "user", "content": prompt}], length=10, template="plain", temperature=0.0, steps=10).text
        for prompt, _ in TALKS
    ]
    assert said == [answer for _, answer in TALKS]


def test_adapters_from_the_command_line(converted, run, tmp_path):
    done = run(
        "train", "sft", "--model", converted / "masked", "--data", converted / "chat.jsonl", "--out", "tuned",
        "--data.template", "plain", "--lora.rank", 2, "--train.steps", 2, "--train.batch", 2, "--data.held_out=0.2",
        "--checkpointing", "true",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "saved in" in done.stdout
    assert (tmp_path / "tuned" / "adapter" / "adapter_config.json").is_file()


def test_refused(converted, refused):
    refused("train", "sft", "--data", converted / "chat.jsonl", words=("--model",))
    refused("train", "sft", "--model", converted / "masked", words=("--data",))
    refused("train", "sft", "--model", "x", "--lora.ranc", 2, words=("--lora.ranc", "lora.rank", "redraft list sft"))
    refused("train", "mdlm", "--lora.rank", 2, words=("--lora.rank",))


def test_a_folder_called_sft_is_no_recipe(run):
    """Fields are those of what is trained, whatever else is called sft."""
    done = run("train", "--out", "sft", "toy_masked", "--model.depth", 1, "--train.steps", 1, "--train.batch", 2)
    assert done.exit_code == 0, done.stderr


def test_fields_are_listed(run):
    entries = json.loads(run("list", "sft", "--json").stdout)["sft"]
    cut = [one["name"] for one in entries if one["name"].startswith("data.") and not one["description"].endswith(".")]
    assert not cut
    listed = {one["name"]: one["default"] for one in entries}
    assert listed["train.lr"] == 2.5e-5
    assert listed["lora.targets"] == "all"
    assert listed["model"] is None
