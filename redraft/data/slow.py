"""Tokenizers whose files are vocab.json and merges.txt, and whose class is code beside them, which is not run.

Dream's is Qwen2's under another name: byte pairs with tokens added behind them, which ``transformers`` has itself.
"""

import json
from pathlib import Path
from typing import Any

VOCAB, MERGES, CONFIG = "vocab.json", "merges.txt", "tokenizer_config.json"
CLASSES = ("DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast")


def is_qwen2(folder: Path) -> bool:
    """Whether the folder holds byte pairs in files, and says that they are Qwen2's or Dream's."""
    if not all((folder / name).is_file() for name in (VOCAB, MERGES, CONFIG)):
        return False
    return json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("tokenizer_class") in CLASSES


def qwen2(folder: Path) -> Any:
    """The fast tokenizer of ``transformers`` with these byte pairs and all added tokens.

    Errors: ``ValueError`` for an added token that would have another id than the files say.
    """
    from transformers import Qwen2Tokenizer

    found: Any = Qwen2Tokenizer.from_pretrained(folder)
    said = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("added_tokens_decoder", {})
    for number, token in said.items():
        if (got := found.convert_tokens_to_ids(token["content"])) != int(number):
            raise ValueError(f"{CONFIG} gives {token['content']} the id {number}, and it would have {got}")
    return found
