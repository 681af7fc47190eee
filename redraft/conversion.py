"""From autoregressive to diffusion: a causal checkpoint as a masked, block or uniform denoiser, to be trained on.

What changes is how the network is asked: which positions are read, which token a logit is of, and one id that means
"not yet written". Its weights stay as they are, but for the row of that id.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft import processes
from redraft.data import Tokenizer
from redraft.data.tokenizers import MASK
from redraft.errors import unknown
from redraft.lm import LM
from redraft.models import folder as folders
from redraft.models.backbone import Meaning
from redraft.models.families import FAMILIES, a2d
from redraft.models.families.base import Fields, added_tokens
from redraft.models.hub import causal, fetched, quiet
from redraft.models.placement import precision
from redraft.models.weights import put
from redraft.processes import Categorical
from redraft.randomness import Device

KINDS = ("masked", "block", "uniform")


def convert(
    path_or_id: str | Path,
    *,
    to: str,
    block: int | None = None,
    shift: bool = False,
    mask_token: str | None = None,
    out: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    device: Device = None,
) -> LM:
    """A causal language model (Llama, Qwen, GPT-2, Gemma style) as a denoiser; train it on with ``model.init``.

    ``to``: masks with every position read, masks in ``block`` positions at a time that read what stands before them, or
    uniform noise without a mask. ``shift``: logits at i stay those of token i + 1, as the model learnt them
    (DiffuLLaMA, arXiv 2410.17891; Dream), or are from now on of token i, which is to be learnt (LLaDA; dllm's A2D).

    The mask is the tokenizer's own, or one added to it: its embedding is the mean of all tokens', in a row of the
    vocabulary's padding or a new one. ``mask_token`` takes a token that is there instead, rare or reserved, as it is.

    ``out``: a folder to store it in, in the base's own keys, which ``load`` reads; ``dtype``: what config.json
    says unless given.

    Errors: ``ValueError`` for options that do not go together, a folder that holds no causal model (a denoiser already,
    a class that ``transformers`` does not have), one whose weights are pickles, lacking or too many, a tokenizer that
    knows more tokens than the model, a ``mask_token`` that it does not know or writes text in, or an ``out`` that holds
    the base.
    """
    _check(to, block, mask_token)
    wanted = precision(dtype)
    folder = Path(path_or_id) if Path(path_or_id).is_dir() else Path(fetched(str(path_or_id)))
    if out is not None and Path(out).resolve() == folder.resolve():
        raise ValueError(f"out={str(out)!r} holds the base itself, which would be lost: choose another folder")
    values = _base(folder)
    words = _words(folder, mask_token)
    process = processes.uniform(words.K) if to == "uniform" else processes.masked(words.K, mask_id=words.mask_id)
    meaning = Meaning(process, shift, "full" if block is None else "block", block)
    values = _converted(folder, values, meaning, wanted)
    # before the weights are read, which takes long: what does not fit is said now
    known = a2d.reads(Fields(folder / folders.CONFIG, values))
    with torch.device("meta"):
        denoiser = known.build()
    # our own mask is learnt by no causal model, whoever added it
    unlearnt = mask_token is None and words.mask_token == MASK and words.mask_id == words.K
    tensors = _weights(folder, process, values["vocab_size"], unlearnt, wanted)
    shapes = {name: tensor.shape for name, tensor in denoiser.state_dict().items()}
    for piece in a2d.FAMILY.pieces(denoiser):
        assert tensors[piece.stored].shape == shapes[piece.name], piece
        put(denoiser, piece.name, tensors[piece.stored])
    denoiser.eos_id, denoiser.pad_id = words.eos_id, words.pad_id
    about = {"context": known.context, "family": a2d.NAME, "config": json.dumps(values, indent=2) + "\n"}
    lm = LM(denoiser.to(device).eval(), words, about)
    if out is not None:
        lm.save(out)
    return lm


def _check(to: str, block: int | None, mask_token: str | None) -> None:
    if to not in KINDS:
        raise unknown("kind of denoiser", to, KINDS)
    if (to == "block") != (block is not None):
        raise ValueError(
            f"to={to!r} with block={block}: they go together; pass to='block' and block=32, say, or neither"
        )
    if to == "uniform" and mask_token is not None:
        raise ValueError(f"mask_token={mask_token!r} with to='uniform', whose noise has no mask: leave it out")


def _base(folder: Path) -> dict[str, Any]:
    """config.json of a causal model. Errors: ``ValueError`` for a model that denoises already."""
    values = folders.read_config(folder)
    known = [family.name for family in FAMILIES.values() if family.recognises(values)]
    if folders.is_ours(values) or known:
        name = known[0] if known else folders.MODEL_TYPE
        raise ValueError(f"{folder}: a model of {name!r}, which denoises already; load it as it is")
    if "model_type" not in values:
        raise ValueError(
            f"{folder / folders.CONFIG}: no field 'model_type'; pass the folder of a causal language model"
        )
    # code beside the base is not run, and is of another model than this will be
    return {name: value for name, value in values.items() if name != "auto_map"}


def _converted(folder: Path, values: Mapping[str, Any], meaning: Meaning, dtype: torch.dtype | None) -> dict[str, Any]:
    """config.json of the denoiser. Errors: ``ValueError`` for fewer rows than the tokenizer has tokens."""
    process = meaning.process
    rows = int(a2d.base_config(Fields(folder / folders.CONFIG, values)).vocab_size)
    if rows < process.K:
        raise ValueError(f"{folder}: its tokenizer has {process.K} tokens, and the model {rows}; they are not a pair")
    decided = {"process": process.to_dict(), "shift": meaning.shift}
    made = {**values, "model_type": a2d.PREFIX + str(values["model_type"]), "vocab_size": max(rows, process.V)}
    made["diffusion"] = {**decided, "attention": meaning.attention, "block": meaning.block}
    if process.mask_id is not None:
        made["mask_token_id"] = process.mask_id
    if dtype is not None:
        made.pop("torch_dtype", None)
        made["dtype"] = str(dtype).removeprefix("torch.")
    return made


def _words(folder: Path, mask_token: str | None) -> Tokenizer:
    """The tokenizer, with a mask: its own, one added, or the token asked for."""
    words = Tokenizer.load(folder)
    if mask_token is None:
        return words
    new, found = _is_new(folder, words), words.backend.token_to_id(mask_token)
    if not new and found != words.mask_id:
        raise ValueError(f"{folder}: its tokenizer has a mask, {words.mask_token!r}; leave mask_token out")
    if found is None or (new and found == words.mask_id):
        raise ValueError(f"{folder}: no token {mask_token!r}; pass one that the tokenizer has, or leave mask_token out")
    if found == words.eos_id:
        raise ValueError(f"{folder}: mask_token={mask_token!r} ends texts, and cannot be what hides them; pass another")
    masking = Tokenizer.load(folder, found)
    for text in (mask_token, masking.backend.decode([found], skip_special_tokens=False)):
        if found in _spelt(masking, text):
            raise ValueError(
                f"{folder}: mask_token={mask_token!r} is what the tokenizer writes {text!r} as, so texts would hold "
                "masks; pass a reserved token, which no text is written in, or leave it out"
            )
    return masking


def _spelt(words: Tokenizer, text: str) -> list[int]:
    """The ids of a text; none where the vocabulary has no letters for it, which every library says in its own way."""
    try:
        return words.backend.encode(text, add_special_tokens=False).ids
    except Exception:
        return []


def _is_new(folder: Path, words: Tokenizer) -> bool:
    """Whether the mask was added to the tokenizer as it was read."""
    return words.mask_token == MASK and words.mask_id == words.K and MASK not in added_tokens(folder)


def _weights(
    folder: Path, process: Categorical, rows: int, unlearnt: bool, dtype: torch.dtype | None
) -> Mapping[str, Tensor]:
    """The tensors of the base by its own keys, of ``rows`` ids.

    Rows that it had not, and the mask's where it is ``unlearnt``, are the mean of its tokens', biases too.
    """
    network = causal(folder, dtype)
    inner, outer = network.get_input_embeddings(), network.get_output_embeddings()
    if network.config.tie_word_embeddings and not torch.equal(inner.weight, outer.weight):
        raise ValueError(f"{folder}: tie_word_embeddings is true, and its head is not its embedding; set it to false")
    made = set(range(len(inner.weight), rows))
    if made:
        with torch.random.fork_rng(devices=[]), quiet():
            network.resize_token_embeddings(rows, mean_resizing=False)
    if unlearnt and process.mask_id is not None:
        made.add(process.mask_id)
    inner, outer = network.get_input_embeddings(), network.get_output_embeddings()
    with torch.no_grad():
        for table in (inner.weight, outer.weight, getattr(outer, "bias", None)):
            if made and table is not None:
                wide = torch.promote_types(table.dtype, torch.float32)
                table[sorted(made)] = table[: process.K].mean(0, dtype=wide).to(table.dtype)
    return network.state_dict()
