"""Classifiers of noised vectors, and their training: what gradient guidance asks how likely a class is, at any noise.

Shapes: B batch, L length, C classes, D codebook width, E model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.guidance.classifier_free import of_vectors
from redraft.guidance.gradient import LogLikelihood
from redraft.models.layers import (
    TIME_FEATURES,
    Block,
    Reading,
    norm,
    placed,
    preserve_variance,
    time_features,
    widths,
)
from redraft.models.vectors import Reads, VectorInput
from redraft.processes import Process
from redraft.processes.base import log_prob_of
from redraft.randomness import generator, rand, row_generators

UNWANTED = -1
"""A target that asks for nothing: any tag may stand there."""


class NoisyClassifier(nn.Module):
    """``(z, t) -> log p(class | z)``, (B, C), or (B, L, C) of each position's tag; z (B, L, D), t (B,) or (B, L).

    A transformer of ``depth`` blocks that reads z as ours does (``VectorInput``) and is told the time, as the place of
    gamma between the schedule's ends. ``process`` is the one whose noise it knows; its weights do not hold it. A fresh
    one says that all classes are alike.
    """

    def __init__(
        self, process: Process, classes: int, per_token: bool = False, depth: int = 1, reads: Reads = "mixture"
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes={classes}: there is nothing to tell apart, pass two at least")
        sizes = widths(depth)
        self.process = process = of_vectors(process, "a classifier of noised vectors")
        self.classes, self.per_token = classes, per_token
        self.reading = VectorInput(process.D, sizes.width, reads, guesses=False)
        self.embed = nn.Embedding(process.K, sizes.width) if reads == "mixture" else None
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, sizes.width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(sizes, time_conditioned=True, layer=layer) for layer in range(depth))
        self.head = nn.Linear(sizes.width, classes, bias=False)
        self.initialise()

    def initialise(self) -> None:
        """As ``Transformer.initialise``: variance kept by every map, residual branches and the head at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                preserve_variance(module)
        for module in self.modules():
            if isinstance(module, Block):
                module.zero_branches()
        nn.init.zeros_(self.head.weight)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        z = z.to(self.head.weight)
        gamma = self.process.gamma(t)[0]
        table = None if self.embed is None else self.embed.weight
        x = self.reading(z, gamma, self.process, table, None, None)
        x, rotary = placed(x, torch.arange(z.shape[1], device=z.device))
        code = self.time(time_features(self.process.place(gamma)).to(x))
        reading = Reading(rotary, attend=None, causal=False, cache=None, store=False)
        for block in self.blocks:
            x = block(x, reading, code)
        x = norm(x)
        return torch.log_softmax(self.head(x if self.per_token else x.mean(1)), -1)


def log_likelihood(classifier: NoisyClassifier, target: int | Tensor) -> LogLikelihood:
    """``(z, t) -> log p(target | z)``, (B,), for ``gradient_guided`` and ``plug_and_play``.

    ``target``: a class, or, of a classifier of tags, a tag for every position, (L,), of which -1 asks for nothing: the
    log-probabilities are added up, as if tags were independent given z.

    Errors: ``ValueError`` for a target that is no class, or of the wrong shape.
    """
    wanted = torch.as_tensor(target)
    lowest = UNWANTED if classifier.per_token else 0
    if wanted.ndim != classifier.per_token or not bool(((wanted >= lowest) & (wanted < classifier.classes)).all()):
        shape = "one tag for every position, (L,), -1 for any," if classifier.per_token else "one class"
        raise ValueError(f"target {wanted.tolist()}: pass {shape} of 0 to {classifier.classes - 1}")

    def of(z: Tensor, t: Tensor) -> Tensor:
        logp, want = classifier(z, t), wanted.to(z.device)
        if not classifier.per_token:
            return logp[:, int(want)]
        if len(want) != z.shape[1]:
            raise ValueError(f"{len(want)} tags wanted of texts of {z.shape[1]} tokens: pass one for each, -1 for any")
        picked = log_prob_of(want.clamp_min(0).expand(z.shape[:2]), logp)
        return torch.where(want == UNWANTED, 0.0, picked).sum(1)

    return of


def train_classifier(
    process: Process,
    ids: Tensor,
    labels: Tensor,
    *,
    steps: int = 500,
    batch: int = 128,
    lr: float = 3e-3,
    depth: int = 1,
    reads: Reads = "mixture",
    seed: int = 0,
) -> NoisyClassifier:
    """Train a ``NoisyClassifier`` on rows noised to t ~ U(0, 1): ``ids`` (N, L), ``labels`` (N,), or (N, L) of tags.

    Cross-entropy, whose minimum is p(class | z) itself, by AdamW with a rate that falls linearly to 0. What a row is
    noised with depends on (seed, step, its index). The process learns nothing, even a ``learned`` codebook.

    Errors: ``ValueError`` for labels of another shape or below 0, and for fewer than one step or row.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"steps={steps}, batch={batch}: take one step at least, of one row at least")
    if labels.shape not in (ids.shape[:1], ids.shape) or int(labels.min()) < 0:
        raise ValueError(
            f"labels {tuple(labels.shape)}, {int(labels.min())} the least, for ids {tuple(ids.shape)}: "
            "pass classes from 0, one a row or one a token"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = NoisyClassifier(process, int(labels.max()) + 1, labels.ndim == 2, depth, reads).to(ids.device)
    weights = list(classifier.parameters())
    optimizer = torch.optim.AdamW(weights, lr=lr)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        rows = torch.randint(len(ids), (batch,), generator=generator(seed, step))
        draws = row_generators(seed, step, rows=rows.tolist())
        chosen = rows.to(ids.device)
        t = rand((batch, 1), draws, ids.device)[:, 0]
        with torch.no_grad():
            z = process.corrupt(ids[chosen], t, draws)
        loss = F.nll_loss(classifier(z, t).flatten(0, -2), labels[chosen].flatten())
        # not loss.backward(): a learned codebook is read too, and its gradient is its own model's
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = gradient
        optimizer.step()
        falling.step()
    return classifier.eval().requires_grad_(False)
