"""Training a DGLM: encode the pairs once, then teach each part from the vectors.

A stage is a compact loop, whose every step is a pure function of (data, seed, step).
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.data.packing import indices
from redraft.dglm import pretrained
from redraft.dglm.config import TINY, DGLMConfig, StageConfig
from redraft.dglm.encoder import Encoder
from redraft.dglm.guidance import Logistic
from redraft.dglm.pairs import Pair
from redraft.dglm.verbaliser import Verbaliser
from redraft.processes.time import draw
from redraft.randomness import Generators, derive, row_generators
from redraft.recipes.config import TrainConfig
from redraft.training import optim

if TYPE_CHECKING:
    from redraft.dglm.model import DGLM

ENCODER, DECODER, PROPOSER, VERBALISER, CLASSIFIER = range(5)
"""Whose seed: the key after the run's."""
TIMES, NOISE, DROPOUT = 1, 2, 3
"""What a draw is for: the second key after the seed, so that no two draws of a stage share a stream."""

Loss = Callable[[list[int], Tensor, list[torch.Generator]], Tensor]
"""(rows of the data, u ~ U(0, 1) for each, a generator for each) -> the mean loss, ()."""


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
    bare = next((number for number, pair in enumerate(pairs) if pair.label is None), None)
    if labels and bare is not None:
        raise ValueError(f"pair {bare} has no label, and others have: label all or none")
    if len(labels) == 1:
        raise ValueError(
            f"all pairs are labelled {labels[0]!r}: there is nothing to tell apart; add others, or leave labels out"
        )
    return labels


def read_parts(config: DGLMConfig, pairs: Sequence[Pair]) -> tuple[Encoder, Verbaliser]:
    """Encoder and verbaliser as they begin: read from where the config says, or small random ones."""
    texts = [pair.prefix + pair.continuation for pair in pairs]
    told, seed = config.verbaliser, config.train.seed
    positions = told.soft_tokens + 2 * (told.prefix + told.length)  # room for longer prompts than those learnt
    with TemporaryDirectory() as folder:
        name, length = config.encoder.model, config.encoder.length
        if name == TINY:
            name = pretrained.tiny_encoder(Path(folder) / "encoder", texts, length, derive(seed, ENCODER))
        encoder = Encoder.load(name, length)
        name = told.model
        if name == TINY:
            name = pretrained.tiny_decoder(Path(folder) / "decoder", texts, positions, derive(seed, DECODER))
        return encoder, Verbaliser.load(name, encoder.dim, told)


# ---------------------------------------------------------------------------------------------------------- one stage


class Log:
    """Means of the losses, on standard error and in ``metrics.jsonl`` of a folder; without a folder, nowhere."""

    def __init__(self, out: Path | None, every: int) -> None:
        self.out, self.every = out, every

    def row(self, term: str, step: int, steps: int, loss: float) -> None:
        if self.out is None:
            return
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": term, "step": step, "loss": loss}) + "\n")
        print(f"{term} step {step}/{steps}  loss {loss:.5g}", file=sys.stderr, flush=True)


def fit(term: str, module: nn.Module, loss: Loss, rows: int, stage: StageConfig, seed: int, log: Log) -> float:
    """Train ``module`` in place on ``rows`` rows of data; the mean loss of the last logged steps.

    Errors: ``ValueError`` naming step and ``term`` where the loss or its gradient is not finite, before any weight
    takes that in.
    """
    train = TrainConfig(
        steps=stage.steps, lr=stage.lr, warmup=stage.warmup, decay=stage.decay, weight_decay=stage.weight_decay
    )
    optimizers, mean, recent = optim.build(module, train), math.nan, list[float]()
    devices = sorted({weight.device.index or 0 for weight in module.parameters() if weight.is_cuda})
    module.train()
    with torch.random.fork_rng(devices=devices):
        for step in range(stage.steps):
            torch.manual_seed(derive(seed, DROPOUT, step))  # a released decoder's own dropout draws from the global one
            drawn = indices(step, stage.batch, rows, seed).tolist()
            u = draw("stratified", (seed, TIMES, step), range(stage.batch), stage.batch)
            value = loss(drawn, u, row_generators(seed, NOISE, step, rows=drawn))
            value.backward()
            norm = optim.clip(module, stage.clip)
            recent.append(value.item())
            if not (math.isfinite(recent[-1]) and math.isfinite(norm)):
                raise ValueError(
                    f"training diverged at step {step + 1} of the {term}: loss {recent[-1]}, gradient norm {norm}; "
                    f"lower train.{term}.lr or raise train.{term}.warmup"
                )
            optim.set_lr(optimizers, optim.lr_scale(step, train))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if step + 1 == stage.steps or (step + 1) % log.every == 0:
                mean = sum(recent) / len(recent)
                log.row(term, step + 1, stage.steps, mean)
                recent.clear()
    module.eval()
    return mean


# ---------------------------------------------------------------------------------------------------------- all stages


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
