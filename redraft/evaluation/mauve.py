"""MAUVE (Pillutla et al., arXiv 2102.01454): how close texts are to human ones, all together, in a model's features.

Features of both are clustered, and the two histograms compared by the area under their divergence curve: near 1 for
texts that nobody could tell apart there, near 0 for none in common. By the library mauve-text (extra ``mauve``; its
licence is the GPL's). The figure depends on the features, the number of clusters and that of texts: compare it at equal
ones only. The paper takes 5000 texts of each; of few texts it says little.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from redraft.data import Tokenizer
from redraft.models.hub import body, fetched
from redraft.randomness import Device

Features = NDArray[np.floating[Any]]
AT_ONCE = 1 << 14
"""Tokens that are read together."""
_LEAST = 4


@dataclass(frozen=True)
class Mauve:
    """``mauve`` in [0, 1], of ``texts`` against ``references``, in ``buckets`` clusters found by ``seed``.

    ``smoothed``: the same of histograms with half a text more in each cluster (MAUVE*, Pillutla et al. 2023), which
    depends less on how many texts there are. ``features`` says of what. ``empty`` texts have none, and are not in it.
    """

    mauve: float
    smoothed: float
    texts: int
    references: int
    buckets: int
    features: str
    seed: int
    empty: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        counts = f"{self.texts} against {self.references} texts, {self.empty} empty, {self.buckets} clusters"
        counts += f", seed {self.seed}"
        return f"MAUVE {self.mauve:.4f} (smoothed {self.smoothed:.4f}; {counts}; {self.features})"


def mauve(
    texts: Sequence[str],
    references: Sequence[str],
    *,
    features: str | Path | Callable[[Sequence[str]], Features],
    buckets: int | None = None,
    seed: int = 0,
    device: Device = None,
) -> Mauve:
    """MAUVE of ``texts`` against ``references``, in the ``features`` of a model's folder or Hub id (see ``Embedder``).

    Or of a function, texts -> (n, D). Empty texts have none: they are left out, and counted.

    Errors: those of ``of_features``.
    """
    library()  # missed before a model is read
    embed = Embedder.load(features, device) if isinstance(features, str | Path) else features
    told = getattr(embed, "name", None) or getattr(embed, "__name__", "given features")
    ours, theirs = ([text for text in part if text] for part in (texts, references))
    if min(len(ours), len(theirs)) < _LEAST:
        raise _few(len(ours), len(theirs))
    found = of_features(embed(ours), embed(theirs), buckets=buckets, seed=seed, told=str(told))
    return replace(found, empty=len(texts) - len(ours))


def of_features(
    p: Features, q: Features, *, buckets: int | None = None, seed: int = 0, told: str = "given features"
) -> Mauve:
    """MAUVE of features (n, D) of texts and (m, D) of references.

    ``buckets``: how many clusters, a tenth of the fewer texts unless given. Errors: ``ValueError`` without mauve-text,
    for fewer than four of either, more clusters than of both, or features that do not fit one another.
    """
    found = library()
    if min(len(p), len(q)) < _LEAST:
        raise _few(len(p), len(q))
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1]:
        raise ValueError(f"features of shapes {p.shape} and {q.shape}: pass (n, D) and (m, D)")
    buckets = max(2, round(min(len(p), len(q)) / 10)) if buckets is None else buckets
    if not 2 <= buckets <= len(p) + len(q):
        raise ValueError(f"buckets={buckets}: from 2 to {len(p) + len(q)}, the number of texts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own libraries; what is wrong with features is said above
        made = found.compute_mauve(p_features=p, q_features=q, num_buckets=buckets, seed=seed, verbose=False)
    # of equal histograms, whose whole curve is one point, the library's area depends on how a sort leaves ties
    alike = np.array_equal(made.p_hist, made.q_hist)
    value = 1.0 if alike else float(made.mauve)
    smoothed = 1.0 if alike and len(p) == len(q) else float(made.mauve_star)
    return Mauve(value, smoothed, len(p), len(q), buckets, told, seed)


def library() -> Any:
    """mauve-text, an extra. Errors: ``ValueError`` without it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mauve as found
    except ImportError:
        raise ValueError("MAUVE needs mauve-text: pip install 'redraft[mauve]'") from None
    return found


@dataclass(frozen=True)
class Embedder:
    """A text's features: the last hidden state at its last token, as in the paper; (n, D) of n texts.

    Texts are cut to ``context`` tokens, the paper's 1024 at most; no token is put before them.
    """

    name: str
    words: Tokenizer
    network: Any
    context: int
    device: Device = None

    @classmethod
    def load(cls, path: str | Path, device: Device = None) -> "Embedder":
        """The model of a folder or Hub id: safetensors, and no code of it. Errors: ``ValueError`` for none."""
        folder = Path(path) if Path(path).is_dir() else Path(fetched(str(path)))
        network = body(folder).to(device).eval()
        context = min(1024, int(getattr(network.config, "max_position_embeddings", 0) or 1024))
        name = f"{folder.name if Path(path).is_dir() else path}, last token of {context} at most"
        return cls(name, Tokenizer.load(folder), network, context, device)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Features:
        rows = [self.words.encode(text)[: self.context] for text in texts]
        if not all(rows):
            raise ValueError("a text without a token has no features: leave it out")
        found: list[Any] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        while order:
            width, part = len(rows[order[0]]), list[int]()
            # rows of one length together: nothing is padded, so that what a model makes of padding plays no part
            while order and len(rows[order[0]]) == width and (not part or (len(part) + 1) * width <= AT_ONCE):
                part.append(order.pop(0))
            ids = torch.tensor([rows[place] for place in part], device=self.device)
            last = self.network(input_ids=ids).last_hidden_state[:, -1].double().cpu().numpy()
            for place, values in zip(part, last, strict=True):
                found[place] = values
        return np.stack(found)


def _few(texts: int, references: int) -> ValueError:
    return ValueError(f"{texts} texts and {references} references: MAUVE needs {_LEAST} of each at least, and hundreds")
