"""Gaps whose length is not known: every length is tried, and the one of whose tokens the model is surest is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.processes import Process, absorbing
from redraft.sampling import samplers
from redraft.sampling.contract import Sampler, misfit, proposes
from redraft.sampling.cost import Cost
from redraft.sampling.steps import Samples

Candidate = tuple[Tensor, Tensor]
"""Ids (L,) and which of them are given (L,), as ``sample`` takes them for ``canvas`` and ``frozen``."""


@dataclass(frozen=True)
class Tried:
    """Which of the candidates was kept, and the score of each: mean log p of the tokens written, nats per token."""

    kept: int
    scores: list[float]


def scoring(process: Process, sampler: str | Sampler | None) -> str | Sampler:
    """The sampler that candidates are written by, ``low_confidence`` unless given.

    Errors: ``ValueError`` for a process without fixed masks, and for a sampler that does not say how likely what it
    wrote was.
    """
    if not absorbing(process):
        raise misfit("trying lengths", process, "a process that has fixed masks", instead="one given length")
    if sampler is not None and not proposes(samplers.get(sampler)):
        raise ValueError(
            f"sampler={sampler!r} does not say how likely the tokens are that it writes, and lengths are compared by "
            "that: use one that proposes, 'low_confidence' or 'threshold'"
        )
    return sampler or "low_confidence"


def best_of(
    write: Callable[..., Samples], candidates: Sequence[Candidate], seeds: Sequence[int], stop: int | None = None
) -> tuple[Samples, list[Tried]]:
    """A text for each of ``seeds``, each written as every one of ``candidates``, of which the best is kept.

    ``write`` is ``sample`` with all it needs but the rows, which are written in one ragged call. Text r is written from
    seeds[r] whichever candidate it is: what is kept is what its canvas alone would have become. The cost is that of all
    candidates, each text's of its own.

    score = mean over the tokens written of log p when written      (nats per token; the first of equals is kept)

    It compares lengths, and is **no log-likelihood**: a rule that writes several tokens at once, or chooses which to
    write by what they are, draws from no law that this would be the probability of. It is known to favour what is said
    again and again. Behind a row's ``stop`` nothing counts.
    """
    many = len(candidates)
    found = write(
        canvas=[ids for _ in seeds for ids, _ in candidates],
        frozen=[known for _ in seeds for _, known in candidates],
        seeds=[seed for seed in seeds for _ in candidates],
    )
    score = [
        _score(found.tokens[row], found.logp[row], candidates[row % many][1], stop) for row in range(len(found.tokens))
    ]
    tried = list[Tried]()
    for first in range(0, len(score), many):
        mine = score[first : first + many]
        tried.append(Tried(max(range(many), key=mine.__getitem__), mine))
    return _kept(found, candidates, tried), tried


def _score(tokens: Tensor, logp: Tensor, known: Tensor, stop: int | None) -> float:
    """Mean log p of what is written of a row up to its stop token."""
    free = ~known.to(tokens.device)
    tokens, logp = tokens[: len(free)], logp[: len(free)]
    if stop is not None:
        end = (free & (tokens == stop)).int()
        free = free & (end.cumsum(0) - end == 0)
    written = logp[free & ~logp.isnan()]
    return written.mean().item() if len(written) else float("-inf")


def _kept(found: Samples, candidates: Sequence[Candidate], tried: Sequence[Tried]) -> Samples:
    """The rows kept, at the cost of all."""
    many = len(candidates)
    rows = torch.tensor([many * text + one.kept for text, one in enumerate(tried)], device=found.tokens.device)
    width = max(len(candidates[one.kept][0]) for one in tried)
    of_rows = [sum(found.cost.of_rows[many * text : many * (text + 1)]) for text in range(len(tried))]
    cost: Cost = replace(found.cost, of_rows=of_rows)
    kept = found.rows(rows)
    return replace(kept, tokens=kept.tokens[:, :width], logp=kept.logp[:, :width], cost=cost)
