"""Training a DGLM: encode the pairs once, then teach each part from the vectors."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.dglm import tiny
from redraft.dglm.config import TINY, DGLMConfig
from redraft.dglm.encoder import Encoder
from redraft.dglm.guidance import Logistic
from redraft.dglm.pairs import Pair
from redraft.dglm.training import Log, fit
from redraft.dglm.verbaliser import Verbaliser
from redraft.randomness import Generators, derive

if TYPE_CHECKING:
    from redraft.dglm.model import DGLM

ENCODER, DECODER, PROPOSER, VERBALISER, CLASSIFIER = range(5)
"""Whose seed: the key after the run's."""


def fresh(out: str | Path) -> Path:
    """The folder of a new run, made. Errors: ``ValueError`` for one in use."""
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"out={str(folder)!r} is there already: choose another out, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def labels_of(pairs: Sequence[Pair]) -> list[str]:
    """The labels of the pairs, sorted. Errors: ``ValueError`` if only some have one, or all the same."""
    labels = sorted({pair.label for pair in pairs if pair.label is not None})
    if labels and any(pair.label is None for pair in pairs):
        raise ValueError("some pairs have a label and some have none: label all or none")
    if len(labels) == 1:
        raise ValueError(f"all pairs are labelled {labels[0]!r}: there is nothing to tell apart")
    return labels


def read_parts(config: DGLMConfig, pairs: Sequence[Pair]) -> tuple[Encoder, Verbaliser]:
    """Encoder and verbaliser as they begin: read from where the config says, or small random ones."""
    texts = [pair.prefix + pair.continuation for pair in pairs]
    told, seed = config.verbaliser, config.train.seed
    positions = told.soft_tokens + 2 * (told.prefix + told.length)  # room for longer prompts than those learnt
    with TemporaryDirectory() as folder:
        name, length = config.encoder.model, config.encoder.length
        if name == TINY:
            name = tiny.encoder(Path(folder) / "encoder", texts, length, derive(seed, ENCODER))
        encoder = Encoder.load(name, length)
        name = told.model
        if name == TINY:
            name = tiny.decoder(Path(folder) / "decoder", texts, positions, derive(seed, DECODER))
        return encoder, Verbaliser.load(name, encoder.dim, told)


def teach(model: "DGLM", pairs: Sequence[Pair], out: Path | None) -> None:
    """Fit the standardisation, then the proposer, the verbaliser, and the classifier if pairs are labelled."""
    train = model.config.train
    log = Log(out, train.log_every)
    raw = model.encoder.vectors([pair.continuation for pair in pairs])
    model.standard.fit(raw)
    x, n = model.standard(raw), len(pairs)
    _teach_proposer(model, pairs, x, log)
    words = model.verbaliser.tokenizer
    prefixes = words.encode_batch([pair.prefix for pair in pairs])
    continuations = words.encode_batch([pair.continuation for pair in pairs])

    def told(rows: list[int], u: Tensor, noise: Generators) -> Tensor:
        return model.verbaliser.loss(x[rows], [prefixes[i] for i in rows], [continuations[i] for i in rows], noise)

    fit("verbaliser", model.verbaliser, told, n, train.verbaliser, derive(train.seed, VERBALISER), log)
    if model.classifier is not None:
        _teach_classifier(model, pairs, x, log)


def _teach_proposer(model: "DGLM", pairs: Sequence[Pair], x: Tensor, log: Log) -> None:
    train, proposer = model.config.train, model.proposer
    empty = torch.tensor([not pair.prefix.strip() for pair in pairs], device=x.device)
    prefixes = model.encode([pair.prefix for pair in pairs])

    def denoised(rows: list[int], u: Tensor, noise: Generators) -> Tensor:
        known = torch.where(empty[rows, None], proposer.null, prefixes[rows])
        return proposer.loss(x[rows], known, u.to(x.device), noise).mean()

    fit("proposer", proposer, denoised, len(pairs), train.proposer, derive(train.seed, PROPOSER), log)


def _teach_classifier(model: "DGLM", pairs: Sequence[Pair], x: Tensor, log: Log) -> None:
    """Cross-entropy, whose minimum is p(y | z) at each noise level, or p(y | x)."""
    train, known, process = model.config.train, model.classifier, model.proposer.process
    assert known is not None
    wanted = torch.tensor([model.labels.index(str(pair.label)) for pair in pairs], device=x.device)

    def told(rows: list[int], u: Tensor, noise: Generators) -> Tensor:
        if isinstance(known, Logistic):
            return F.nll_loss(known(x[rows]), wanted[rows])
        gamma = process.gamma(u.to(x.device))[0]
        z = process.noised(x[rows][:, None], gamma, noise)[:, 0]
        return F.nll_loss(known(z, gamma[:, 0]), wanted[rows])

    fit("classifier", known, told, len(pairs), train.classifier, derive(train.seed, CLASSIFIER), log)
