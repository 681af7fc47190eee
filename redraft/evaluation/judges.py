"""Who may judge samples: a character n-gram, any causal model of ``transformers``, a causal model of our own.

A judge says how likely it finds a text, exactly: bounds are refused. Under it plain and repetitive text is likely, so
what it says is no figure yet; ``redraft.evaluation.quality`` makes one of it, with how varied the texts are beside it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from redraft.data import Tokenizer, read_documents
from redraft.data.provenance import SHORT, digest
from redraft.evaluation.ngram import Judged, NGram
from redraft.models import folder as folders
from redraft.models.hub import causal as causal_network
from redraft.models.hub import fetched
from redraft.models.placement import precision
from redraft.objectives import autoregressive
from redraft.randomness import Device

NGRAM = "ngram"
LOGITS = 1 << 26
"""Numbers of a judge's answers that are held at a time; a row longer than that stands alone."""
_PROBE = 8


class Judge(Protocol):
    """``nats(texts)`` gives -log p of each text with the tokens and characters it is of (``Judged``).

    A figure is quoted with the judge's ``name`` and ``tokenisation``, which says what a token is, what stands before a
    text's first, and how texts longer than the judge's context are read.
    """

    @property
    def name(self) -> str: ...

    @property
    def tokenisation(self) -> str: ...

    def nats(self, texts: Sequence[str]) -> list[Judged]: ...


@dataclass(frozen=True)
class CausalJudge:
    """-log p(text) = -sum_i log p(x_i | x_<i) by a network that reads one way.

    ``score``: ids (B, L) -> -log p of each given those before it, (B, L), nats. ``start`` is the id put before each
    text, for a network that says nothing of a first token; None for one that does. A text longer than ``context`` is
    read in windows of that size, each half a window further: every token is judged once, with half a window before it
    at least. Texts are padded on the right only, where a causal network does not look: a text's number is the same
    alone and among others, up to the rounding of what the network computes in.
    """

    name: str
    tokenisation: str
    words: Tokenizer
    score: Callable[[Tensor], Tensor]
    K: int
    context: int
    start: int | None = None
    device: Device = None

    @torch.no_grad()
    def nats(self, texts: Sequence[str]) -> list[Judged]:
        """-log p of each text; of an empty one 0, of no tokens. Errors: ``ValueError`` for what has no encoding."""
        rows = [self.words.encode(text) if text else [] for text in texts]
        totals = [0.0] * len(texts)
        windows = [(text, *window) for text, ids in enumerate(rows) for window in self._windows(ids)]
        windows.sort(key=lambda window: len(window[1]))  # as little padding as can be
        for part in self._parts(windows):
            width = max(len(ids) for _, ids, _ in part)
            padded = torch.tensor([ids + [0] * (width - len(ids)) for _, ids, _ in part], device=self.device)
            found = self.score(padded).double().cpu()
            for (text, ids, first), values in zip(part, found, strict=True):
                totals[text] += float(values[first : len(ids)].sum())
        read = [len(text) if self.words.decode(ids) == text else 0 for text, ids in zip(texts, rows, strict=True)]
        return [Judged(*one) for one in zip(totals, map(len, rows), read, strict=True)]

    def _windows(self, ids: list[int]) -> Iterator[tuple[list[int], int]]:
        """The windows of a text, with the place in each from which on its tokens are judged."""
        row, first = (ids, 0) if self.start is None else ([self.start, *ids], 1)
        if len(row) > first:
            yield row[: self.context], first
        stride = max(1, self.context // 2)
        for begin in range(stride, len(row) - self.context + stride, stride):
            yield row[begin : begin + self.context], self.context - stride

    def _parts(self, windows: list[tuple[int, list[int], int]]) -> Iterator[list[tuple[int, list[int], int]]]:
        """Windows, the shortest first, as many together as there is room for."""
        part: list[tuple[int, list[int], int]] = []
        for window in windows:
            if part and (len(part) + 1) * len(window[1]) * self.K > LOGITS:
                yield part
                part = []
            part.append(window)
        if part:
            yield part


def get(judge: "str | Judge", device: Device = None, dtype: torch.dtype | str | None = None) -> Judge:
    """The judge of a name: ``ngram:FILE``, an n-gram of that text (anything that data may be); or a causal model's
    folder or Hub id. ``dtype``: of a model's weights, as stored unless given.

    Errors: ``ValueError`` for what is no judge: no such file or folder, a model that is not causal or not exact.
    """
    if not isinstance(judge, str):
        return judge
    kind, colon, source = judge.partition(":")
    if kind == NGRAM and source:
        return _ngram(source)
    if kind == NGRAM and not Path(judge).is_dir():
        raise ValueError(f"judge {judge!r}: say which text it is fitted on, {NGRAM}:FILE")
    if colon and not Path(judge).is_dir():
        raise ValueError(f"unknown kind of judge {kind!r} in {judge!r}; pass {NGRAM}:FILE, a folder, or a Hub id")
    return causal(judge, device, dtype)


def causal(path: str | Path, device: Device = None, dtype: torch.dtype | str | None = None) -> CausalJudge:
    """The causal model of a folder or Hub id as a judge: one of ``transformers``, or one of ours that reads one way.

    Weights are read from safetensors alone, and no code of a repository is run. Errors: ``ValueError`` for a model
    that is not causal, whose tokenizer does not fit, or that has nothing to begin a text with.
    """
    folder = Path(path) if Path(path).is_dir() else Path(fetched(str(path)))
    name = folder.name if Path(path).is_dir() else str(path)
    wanted = precision(dtype)
    if folders.is_ours(folders.read_config(folder)):
        return _own(folder, name, device, wanted)
    return _borrowed(folder, name, device, wanted)


def _ngram(source: str) -> NGram:
    texts = list(read_documents(source))
    return NGram(texts, of=f"{Path(source).name} (SHA-256 {digest(texts)[:SHORT]})")


def _own(folder: Path, name: str, device: Device, dtype: torch.dtype | None) -> CausalJudge:
    """A causal model of ours, whose likelihood is exact; all else that we have gives bounds."""
    denoiser, about = folders.load(folder, device, dtype)
    if denoiser.facts.attention != "causal":
        raise ValueError(
            f"{folder}: a diffusion model's likelihood is a bound, and a judge's is to be exact; "
            "pass a causal model, of ours the recipe 'ar'"
        )
    words, context = Tokenizer.load(folder), int(about["context"])

    def score(ids: Tensor) -> Tensor:
        # no time is read
        return autoregressive(denoiser, denoiser.process, {"ids": ids}, torch.zeros(len(ids), device=ids.device)).bound

    how = f"its own tokens ({words.kind}), each text from nothing, {_reading(context)}"
    return CausalJudge(f"{name}, {_told(denoiser)}", how, words, score, words.K, context, device=device)


def _borrowed(folder: Path, name: str, device: Device, dtype: torch.dtype | None) -> CausalJudge:
    """Any causal language model that ``transformers`` has."""
    network: Any = causal_network(folder, dtype).to(device).eval()
    words, K = Tokenizer.load(folder), int(network.get_input_embeddings().weight.shape[0])
    start = _start(words, network.config)
    if start is None:
        raise ValueError(f"{folder}: it has no token to begin or end texts with, so nothing says what their first is")
    # a mask that our tokenizers add to those that have none is written in no text
    if start >= K or (words.K > K and max(words.backend.get_vocab(with_added_tokens=False).values()) >= K):
        raise ValueError(f"{folder}: its tokenizer has more tokens than the model, {K}; they are not a pair")
    context = int(getattr(network.config, "max_position_embeddings", 0) or 1024)

    def score(ids: Tensor) -> Tensor:
        logits: Tensor = network(input_ids=ids, use_cache=False).logits[:, :-1]
        logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        nats = -logp.gather(-1, ids[:, 1:, None]).squeeze(-1)
        return torch.nn.functional.pad(nats, (1, 0))  # of the first token nothing is said

    _refuse_reading_ahead(folder, score, K, min(context, _PROBE), device)
    before = words.backend.id_to_token(start)
    how = f"its own tokens, each text after {before!r}, its end not judged, {_reading(context)}"
    return CausalJudge(f"{name}, {_told(network)}", how, words, score, K, context, start, device)


def _start(words: Tokenizer, config: Any) -> int | None:
    """The id that stands before a text: the one that begins texts, or else the one that ends them (GPT-2 has one)."""
    for field in ("bos_token_id", "eos_token_id"):
        for owner in (words.hf, config):
            found = getattr(owner, field, None)
            if found is not None:
                return int(found[0] if isinstance(found, list) else found)
    return None


@torch.no_grad()
def _refuse_reading_ahead(folder: Path, score: Callable[[Tensor], Tensor], K: int, length: int, device: Device) -> None:
    """Errors: ``ValueError`` where what is said of tokens changes with one behind them, as an encoder's does."""
    ids = (torch.arange(length, device=device) % K).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % K
    one, other = score(ids)[:, :-1]
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-3 * math.log(K)):
        raise ValueError(f"{folder}: what it says of a token depends on those behind it; a judge is to be causal")


def _reading(context: int) -> str:
    return f"windows of {context} tokens by {max(1, context // 2)}"


def _told(network: torch.nn.Module) -> str:
    return str(next(network.parameters()).dtype).removeprefix("torch.")
