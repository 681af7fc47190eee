"""Can a model mend a sentence? Agreement errors of the toy language, and the ways a model may undo them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from redraft.data import toy
from redraft.processes import Categorical, Denoiser, Process, absorbing
from redraft.processes.base import log_prob_of, to_convention
from redraft.randomness import categorical, derive, row_generators
from redraft.sampling.correctors import self_correct

SETTINGS = {"threshold": (0.003, 0.01, 0.03, 0.1), "restart": (0.05, 0.1, 0.2, 0.4)}
"""Probabilities below which ``redraw`` acts, and the times at which ``restart`` begins."""
STEPS = 8
"""Denoiser calls of ``restart``."""
NOISE = 0.01
"""The noise level at which a finished text is read: GIDD's, for ``self_correct``."""


@cache
def agreement_errors() -> tuple[Tensor, Tensor]:
    """Every sentence with every change of one token that breaks agreement and nothing else: (n, 6) and (n, 6) ids."""
    right: list[list[int]] = []
    wrong: list[list[int]] = []
    for sentence in toy.sentences():
        for place in range(toy.LENGTH):
            for token in range(len(toy.UNITS)):
                changed = [*sentence[:place], token, *sentence[place + 1 :]]
                if toy.classify(toy.text(changed)) == "agreement":
                    right.append(list(sentence))
                    wrong.append(changed)
    return torch.tensor(right), torch.tensor(wrong)


def _ask(process: Process, denoiser: Denoiser, z: Tensor, t: Tensor) -> Tensor:
    return to_convention(denoiser, process, denoiser(z, t), z, t)


def swaps(process: Process) -> bool:
    """Does this noise swap tokens for others, so that its denoiser has learnt to doubt a token it sees?"""
    return isinstance(process, Categorical) and not absorbing(process)


@torch.no_grad()
def restart(process: Process, denoiser: Denoiser, rows: Tensor, t: float, seed: int, steps: int = STEPS) -> Tensor:
    """Take ``rows`` (B, L) for noisy ones of time t, and denoise them from there by the ancestral sampler."""
    z, generators = rows, row_generators(seed, rows=range(len(rows)))
    for now, then in pairwise(torch.linspace(t, 0, steps + 1, dtype=torch.float64).tolist()):
        at, to = (torch.full((len(rows),), value, dtype=torch.float64) for value in (now, then))
        z = process.ancestral(_ask(process, denoiser, z, at).double().exp(), z, at, to, generators)
    return z


@torch.no_grad()
def cavities(process: Process, denoiser: Denoiser, rows: Tensor) -> tuple[Tensor, int]:
    """log p(x_i | the other tokens) of finished ``rows`` (B, L), as (B, L, K), and the denoiser calls it took.

    Noise that swaps tokens has taught the denoiser to say it of the tokens it sees: one call at ``NOISE``. A masked one
    says it at masks alone, so that every token is masked in turn and predicted: L calls.
    """
    B, L = rows.shape
    if swaps(process):
        return _ask(process, denoiser, rows, torch.full((B,), NOISE, dtype=torch.float64)), 1
    assert process.mask_id is not None
    parts: list[Tensor] = []
    for place in range(L):
        hidden = rows.clone()
        hidden[:, place] = process.mask_id
        parts.append(_ask(process, denoiser, hidden, torch.full((B,), 1 / L, dtype=torch.float64))[:, place])
    return torch.stack(parts, 1), L


@torch.no_grad()
def redraw(process: Process, denoiser: Denoiser, rows: Tensor, threshold: float, seed: int) -> tuple[Tensor, int]:
    """Draw the least likely token of each row again, given the others, where its probability is below ``threshold``.

    Returns the rows and the denoiser calls. For a masked model it is remasking: mask and predict each token.
    """
    logp, calls = cavities(process, denoiser, rows)
    own = log_prob_of(rows, logp).double()
    least = own.argmin(1, keepdim=True)
    doubted = own.gather(1, least) < math.log(threshold)
    drawn = categorical(logp.double().exp(), row_generators(seed, rows=range(len(rows))))
    return torch.where(doubted, rows.scatter(1, least, drawn.gather(1, least)), rows), calls


@dataclass(frozen=True)
class Way:
    """A way to correct: ``apply(rows, seed)`` gives corrected rows and the denoiser calls it took."""

    method: str
    setting: float
    apply: Callable[[Tensor, int], tuple[Tensor, int]]


def ways(process: Process, denoiser: Denoiser) -> list[Way]:
    """The ways open to this process: ``redraw``, or ``remask`` as it is called for a masked one, which has no other.

    A purely masked sampler never changes a token it sees; noise that swaps tokens can be restarted, and self-corrected.
    """
    name = "redraw" if swaps(process) else "remask"
    found = [
        Way(name, p, lambda rows, seed, p=p: redraw(process, denoiser, rows, p, seed)) for p in SETTINGS["threshold"]
    ]
    if swaps(process):
        for t in SETTINGS["restart"]:
            found.append(Way("restart", t, lambda rows, seed, t=t: (restart(process, denoiser, rows, t, seed), STEPS)))
        found.append(
            Way("self_correct", NOISE, lambda rows, seed: self_correct(process, denoiser, rows, t0=NOISE, seed=seed))
        )
    return found


def measure(
    process: Process, denoiser: Denoiser, seed: int, rounds: int = 2, most: int | None = None
) -> list[dict[str, Any]]:
    """How many agreement errors each way mends, and how many right sentences it spoils; counts, and of how many.

    ``repaired``: a sentence afterwards; ``near``: one that differs from the wrong one in a single token, so that it
    was mended and not written anew. Of ``right`` sentences, each tried ``rounds`` times: ``changed``, and ``broken``.
    ``most``: no more than so many of each kind.
    """
    wrong = agreement_errors()[1][:most]
    right = torch.tensor(toy.sentences()).repeat(rounds, 1)[:most]
    listed: list[dict[str, Any]] = []
    for number, way in enumerate(ways(process, denoiser)):
        mended, calls = way.apply(wrong, derive(seed, number, 0))
        kept, _ = way.apply(right, derive(seed, number, 1))
        good = _sentences(mended)
        listed.append(
            {
                "method": way.method,
                "setting": way.setting,
                "nfe": calls,
                "errors": len(wrong),
                "repaired": int(good.sum()),
                "near": int((good & ((mended != wrong).sum(1) == 1)).sum()),
                "right": len(right),
                "changed": int((kept != right).any(1).sum()),
                "broken": int((~_sentences(kept)).sum()),
            }
        )
    return listed


def _sentences(rows: Tensor) -> Tensor:
    return torch.tensor([toy.is_sentence(toy.text(row)) for row in rows.tolist()])
