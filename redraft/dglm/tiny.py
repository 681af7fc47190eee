"""Small random models in the layout of ``transformers``, with tokenizers learnt from the training text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from redraft.data import Tokenizer, build_tokenizer
from redraft.dglm import pretrained

VOCAB = 512


def encoder(folder: Path, texts: Sequence[str], length: int, seed: int) -> str:
    """A BERT of two layers of 64 that knows nothing: its vectors are random features of a text. The folder's name."""
    from transformers import BertConfig, BertModel

    words = build_tokenizer("bpe", texts, VOCAB)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": length}
    return _write(folder, lambda: BertModel(BertConfig(vocab_size=words.K, **sizes)), words, seed)


def decoder(folder: Path, texts: Sequence[str], positions: int, seed: int) -> str:
    """A GPT-2 of two layers of 64, without dropout. The folder's name."""
    from transformers import GPT2Config, GPT2LMHeadModel

    words = build_tokenizer("bpe", texts, VOCAB)
    sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": positions}
    still: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends: dict[str, Any] = {"bos_token_id": words.eos_id, "eos_token_id": words.eos_id}
    config = GPT2Config(vocab_size=words.K, **sizes, **still, **ends)
    return _write(folder, lambda: GPT2LMHeadModel(config), words, seed)


def _write(folder: Path, build: Callable[[], Any], words: Tokenizer, seed: int) -> str:
    with torch.random.fork_rng(devices=[]), pretrained.quiet():
        torch.manual_seed(seed)
        build().save_pretrained(folder)
    words.save(folder)
    return str(folder)
