"""A codebook out of a trained model: the token embedding in a folder of safetensors, ours or anyone's.

Only safetensors are read, one tensor of them; nothing in a folder is run.
"""

from collections.abc import Iterable
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from redraft.data import Tokenizer
from redraft.models.folder import CONFIG, is_ours, read_config
from redraft.models.weights import Shards

NAMES = (
    *("codebook", "embed.weight"),  # ours: a Gaussian model's own vectors before its input's
    "vocab_embed.embedding",  # MDLM, SEDD and their kin
    *("embed_tokens.weight", "tok_embeddings.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight"),
    "shared.weight",
)
"""What the token embedding is called, the first that is found wins; prefixes such as ``model.`` may precede it."""


def token_embedding(folder: str | Path, tokenizer: Tokenizer) -> Tensor:
    """The token embedding of the model in ``folder``, one row per clean token, (K, D) float32, of mean row norm 1.

    The row of a [MASK] after the last token is left out. Which tokens the rows belong to a file does not say: their
    number must be the tokenizer's. The codebook of a model of ours that normalises its rows is given as that reads it.

    Errors: ``ValueError`` for a folder without safetensors, a damaged file, no tensor of a known name, a number of
    rows that is not the tokenizer's, rows that are no numbers or all zero.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"process.codebook={str(folder)!r}: no such folder; use random, bits or a model's folder")
    shards = Shards(folder)
    name = _choose(folder, shards.shapes)
    shards.check(name)
    table = shards.get(name)
    K = tokenizer.K
    if table.ndim != 2 or len(table) not in (K, max(K, tokenizer.mask_id + 1)):
        raise ValueError(
            f"process.codebook={str(folder)!r}: {name} has shape {tuple(table.shape)}, the tokenizer {K} tokens; "
            "one row per token is needed: set data.tokenizer to the one that model was trained with"
        )
    table = table[:K].float()
    if name.split(".")[-1] == "codebook" and _normalised(folder):
        table = F.normalize(table, dim=-1)
    size = table.norm(dim=-1).mean()
    if not (size.isfinite() and size > 0):
        raise ValueError(f"process.codebook={str(folder)!r}: rows of {name} have mean norm {size.item()}; take another")
    return (table / size).contiguous()


def _normalised(folder: Path) -> bool:
    """Whether the model in ``folder`` is one of ours that divides its codebook's rows by their norms."""
    if not (folder / CONFIG).is_file():
        return False
    stored = read_config(folder)
    return is_ours(stored) and bool(stored["transformer"]["process"].get("normalise"))


def _choose(folder: Path, found: Iterable[str]) -> str:
    for known in NAMES:
        if named := sorted(name for name in found if f".{name}".endswith(f".{known}")):
            return named[0]
    raise ValueError(
        f"process.codebook={str(folder)!r}: none of its {len(list(found))} tensors is called like a token embedding: "
        f"{', '.join(NAMES)}"
    )
