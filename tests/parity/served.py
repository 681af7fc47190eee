"""Tiny checkpoints as engines take them, a name that only a list of arguments carries whole, and programs to start."""

import json
import sys

import torch
from safetensors.torch import save_file

from parity.checkpoints import LLADA2, qwen2_shapes

NASTY = "a b; touch owned $(touch owned) 'q' --outtype=f16"
"""A name that a shell, or a parser of options, would take for more than one word."""


def sdar_shapes(config):
    return qwen2_shapes(config, bias=False, norms=True)


def wide(path, config, shapes, **fields):
    """A tiny checkpoint whose mask is where the release has it: a row for each token, of two numbers."""
    name = "<|mask|>" if config is LLADA2 else "<|MASK|>"
    small = {"hidden_size": 2, "num_hidden_layers": 1, "vocab_size": 157184 if config is LLADA2 else 151936}
    config = {key: one for key, one in config.items() if key != "mask_token_id"} | small | fields
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file({key: torch.zeros(shape) for key, shape in shapes(config).items()}, path / "model.safetensors")
    ids = {"<|mask|>": 156895, "<|MASK|>": 151669}
    (path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {str(ids[name]): {"content": name}}})
    )
    return path


def program(path, code=0, makes=True):
    """An executable that writes its arguments to argv.json beside it, and what follows --outfile if there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\n"
        "pathlib.Path(__file__).with_name('argv.json').write_text(json.dumps(sys.argv[1:]))\nprint('said')\n"
        f"if {makes} and '--outfile' in sys.argv:\n"
        "    pathlib.Path(sys.argv[sys.argv.index('--outfile') + 1]).write_text('GGUF')\n"
        f"raise SystemExit({code})\n"
    )
    path.chmod(0o755)
    return path
