"""The parts that come from ``transformers``: read from a folder or the Hub, safetensors only, no remote code.

Or made here in the same layout, small and random, with tokenizers learnt from the training text.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from redraft.data import Tokenizer, build_tokenizer
from redraft.models.hub import quiet, refusing

TINY_VOCAB = 512


def config(name: str, what: str, local: bool = False) -> Any:
    """The configuration of a model; with ``local`` nothing is asked of the Hub, here and below.

    Errors: ``ValueError`` for one that cannot be had.
    """
    from transformers import AutoConfig

    with refusing(name, what):
        return AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=local)


def model(auto: Any, name: str, what: str, spare: str = "", local: bool = False) -> Any:
    """A model by the Auto class ``auto``, in float32 and evaluation mode.

    Weights whose name begins with ``spare`` (if given) may be missing, since they are not used. Errors: ``ValueError``
    for a model that cannot be had, has no safetensors, or lacks weights, which would be random ones.
    """
    with refusing(name, what), quiet():
        made, info = auto.from_pretrained(
            name,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local,
            dtype=torch.float32,
            output_loading_info=True,
        )
    lacking = sorted(key for key in info["missing_keys"] if not (spare and key.startswith(spare)))
    if lacking:
        raise ValueError(f"the {what} {name!r} has no weights for {', '.join(lacking[:3])}; pass a complete model")
    return made.eval()


def tokenizer(name: str, what: str, local: bool = False) -> Any:
    """The fast tokenizer beside a model; what spells a special token is text to it."""
    from transformers import AutoTokenizer

    with refusing(name, what):
        made: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    if not getattr(made, "is_fast", False):
        raise ValueError(f"the {what} {name!r} has no tokenizer.json; convert its tokenizer to a fast one first")
    return made


# --------------------------------------------------------------------------------------------------------- small ones


def tiny_encoder(folder: Path, texts: Sequence[str], length: int, seed: int) -> str:
    """A BERT of two layers of 64 that knows nothing: its vectors are random features of a text. The folder's name."""
    from transformers import BertConfig, BertModel

    words = build_tokenizer("bpe", texts, TINY_VOCAB)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": length}
    return _write(folder, lambda: BertModel(BertConfig(vocab_size=words.K, **sizes)), words, seed)


def tiny_decoder(folder: Path, texts: Sequence[str], positions: int, seed: int) -> str:
    """A GPT-2 of two layers of 64, without dropout. The folder's name."""
    from transformers import GPT2Config, GPT2LMHeadModel

    words = build_tokenizer("bpe", texts, TINY_VOCAB)
    sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": positions}
    still: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends: dict[str, Any] = {"bos_token_id": words.eos_id, "eos_token_id": words.eos_id}
    config = GPT2Config(vocab_size=words.K, **sizes, **still, **ends)
    return _write(folder, lambda: GPT2LMHeadModel(config), words, seed)


def _write(folder: Path, build: Callable[[], Any], words: Tokenizer, seed: int) -> str:
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        build().save_pretrained(folder)
    words.save(folder)
    return str(folder)
