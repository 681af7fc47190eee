"""How likely a masked model thinks an answer to a prompt: log p(answer | prompt), in nats, by several estimators.

A masked model has no one law of texts, but one for every order in which the N tokens of an answer may be written. With
l_S(i) = log p(x_i | prompt, the answer with the tokens of S hidden), i in S:

    bound             mean over k ~ U{1..N} and sets S of k tokens of  N / k sum_{i in S} l_S(i)
    any_order_exact   the same without chance: sum_k 1 / (k C(N, k)) sum_{|S| = k} sum_{i in S} l_S(i)
    chain_rule        sum_i l_{i..N}(i), from left to right: exact for that order
    confidence        the same in the order of the answer's own probabilities, the likeliest token first
    one_step          sum_i l_{1..N}(i), all at once

The first two are the mean of log p over all N! orders, which is below the log of the mean: bounds. ``bound`` is LLaDA's
``get_log_likelihood`` (Nie et al. 2025, arXiv 2502.09992), ``chain_rule`` SMDM's (arXiv 2410.18514), ``confidence``
iLLaDA's (arXiv 2606.25331), which no law has, as the order depends on the answer; ``one_step`` is diffu-GRPO's (d1,
arXiv 2504.12216), which takes tokens for independent. A block model reads nothing right of a block and was trained with
clean text before it: its answers are scored block by block, in any order within each. [MASK] has no probability.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from redraft.data import Tokenizer
from redraft.errors import unknown
from redraft.evaluation.enumeration import STATES, set_weights, subsets
from redraft.evaluation.intervals import student95
from redraft.guidance import cfg, unprompted
from redraft.processes import Categorical, Denoiser, Process, absorbing
from redraft.processes.base import device_of, log_prob_of, per_position
from redraft.randomness import Device, generator, rand
from redraft.sampling.doubt import POSITIONS_AT_ONCE
from redraft.sampling.speak import speak

GROUPS = 8
"""Independent parts of the draws, over which the spread is taken; within each they are stratified."""
ENUMERATED = STATES.bit_length() - 1
"""The most tokens of an answer, or of it in a block, whose 2^N sets are all gone through."""
NUMBERS_AT_ONCE = 1 << 26
"""Probabilities held at a time."""


@dataclass(frozen=True)
class AnswerScore:
    """``nats``: log p(answer | prompt), at most 0, of ``tokens`` tokens in all.

    ``error`` is the half-width of its 95% interval, of chance alone: 0 where nothing is left to it, and nan of a single
    draw. ``is_bound``: the mean over orders of writing lies above or at it, in expectation; ``forwards`` are those of
    the network.
    """

    nats: float
    error: float
    estimator: str
    is_bound: bool
    draws: int
    tokens: int
    forwards: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Asked:
    """What the denoiser says of the text ``ids`` (L,), of which ``given`` (L,) is the prompt."""

    process: Categorical
    denoiser: Denoiser
    ids: Tensor
    given: Tensor
    forwards: int = field(default=0)

    def __call__(self, span: range, hidden: Tensor) -> Tensor:
        """log p of the tokens ``hidden`` (B, N) of the span's N, all of a row hidden together; 0 elsewhere, (B, N)."""
        patterns, of_row = hidden.unique(dim=0, return_inverse=True)
        rows = min(POSITIONS_AT_ONCE // span.stop, NUMBERS_AT_ONCE // (self.process.K * len(span)))
        return torch.cat([self._said(span, part) for part in patterns.split(max(1, rows))])[of_row]

    def _said(self, span: range, hidden: Tensor) -> Tensor:
        ids = self.ids[: span.stop].expand(len(hidden), -1)
        where = torch.zeros_like(ids, dtype=torch.bool)
        where[:, span.start :] = hidden.to(ids.device)
        start = torch.full((len(ids),), span.start, device=ids.device)
        logp = hear(self.process, self.denoiser, ids, where, start, self.given[: span.stop].expand_as(ids))
        self.forwards += self.denoiser.facts.forwards * len(hidden)
        out = torch.zeros(where.shape, dtype=torch.float64, device=ids.device)
        out[where] = log_prob_of(ids[where], logp).double()
        return out[:, span.start :].cpu()


def hear(process: Categorical, denoiser: Denoiser, ids: Tensor, where: Tensor, start: Tensor, given: Tensor) -> Tensor:
    """log p (n, K) of the tokens ``where`` (B, L) of texts (B, L), which are hidden; a span is from ``start`` (B,) on.

    ``given`` (B, L) is the prompt, for a denoiser that is told. What it is told of the time is the share hidden of the
    span, and of a block model nothing of the blocks before: they are clean.
    """
    facts, mask_id = denoiser.facts, process.mask_id
    assert mask_id is not None
    t = process.schedule.inverse(1 - where.sum(1).double() / (ids.shape[1] - start))
    if facts.attention == "block" and facts.time_conditioned:  # finished blocks are told that they are clean
        assert facts.block is not None
        own = torch.arange(ids.shape[1], device=ids.device) >= (start // facts.block * facts.block)[:, None]
        t = torch.where(own, per_position(t), 0.0)
    told = {"given": given} if facts.given else None
    return speak(denoiser, ids.masked_fill(where, mask_id), t, where, told)


# -------------------------------------------------------------------------------------------------------- estimators


def sizes(first: Tensor, draws: int, length: int) -> Tensor:
    """How many tokens each of the ``draws`` hides, (draws,), evenly spread over 1 to ``length`` from ``first`` + 1 on.

        (first + floor(j length / draws)) mod length + 1,  j = 0 .. draws - 1

    Each is uniform if ``first`` is, on 0 .. length - 1. (To round to the nearest even, as LLaDA does, favours some.)
    """
    return (first + torch.arange(draws) * length // draws) % length + 1


def hide(first: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """What stratified draws hide, each the first so many of its own ``order`` (draws, N), and N over that number."""
    many = sizes(first, len(order), order.shape[1])
    return order < many[:, None], order.shape[1] / many.double()


def drawn_sets(length: int, draws: int, *keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the draws hide of so many tokens: ``hidden`` (R, N), ``weight`` (R,) float64 and ``group`` (R,).

    There are ``GROUPS`` independent groups, or one a draw. Over one's rows the sum of w_r 1[i in r] is 1 in the mean.
    """
    groups = min(GROUPS, draws)
    hidden, weights, group = list[Tensor](), list[Tensor](), list[Tensor]()
    for number in range(groups):
        own, part = generator(*keys, number), draws // groups + (number < draws % groups)
        sets, weight = hide(torch.randint(length, (), generator=own), rand((part, length), own).argsort(1))
        hidden.append(sets)
        weights.append(weight / part)
        group.append(torch.full((part,), number))
    return torch.cat(hidden), torch.cat(weights), torch.cat(group)


def levelled(logp: Tensor, hidden: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    """What groups of draws estimate of log p, (.., groups) float64: their mean is the estimate, their spread its error.

    The estimate is the mean over groups of

        sum over rows r of the group and i in r of  w_r (logp_ri - b_i)   +   sum_i b_i

    with b_i the mean of logp_ri, weighed by w_r, of the other groups. A group knows nothing of its b, so that its mean
    is what it is without; but most of the spread is in which tokens small sets happen to hide, and b_i takes that out
    (a control variate, cross-fitted). But groups that share their b are not independent, and spread too little. So what
    stands for group g is how far the estimate moves without it (a jackknife): M + (G - 1) (mean of all M_h - M_g), M
    being the estimate and M_g that of the G - 1 others.

    ``logp`` (.., R, N), 0 where nothing is ``hidden``; the rest as ``drawn_sets``.
    """
    weight, many = weight[:, None], int(group.max()) + 1
    rows = torch.where(hidden & (weight > 0), weight * logp, 0.0)  # what weighs nothing may be -inf
    said = rows.new_zeros(*rows.shape[:-2], many, rows.shape[-1]).index_add(-2, group, rows)
    seen = weight.new_zeros(many, rows.shape[-1]).index_add(0, group, weight * hidden)
    whole = _crossed(said, seen)[..., None]
    if many == 1:
        return whole
    rest = [[other for other in range(many) if other != one] for one in range(many)]
    without = torch.stack([_crossed(said[..., others, :], seen[others]) for others in rest], -1)
    gain = (many - 1) * (without.mean(-1, keepdim=True) - without)
    return torch.where(whole.isfinite(), whole + gain, whole)


def _crossed(said: Tensor, seen: Tensor) -> Tensor:
    """The estimate of ``levelled``, (..): each group's sums ``said`` (.., G, N) of w logp and ``seen`` (G, N) of w."""
    others = 1 - torch.eye(len(seen), dtype=seen.dtype)
    known, counted = others @ said.nan_to_num(neginf=0.0), others @ seen
    usual = known.sum(-1, keepdim=True) / counted.sum(-1, keepdim=True).clamp_min(torch.finfo(seen.dtype).tiny)
    level = torch.where(counted > 0, known / counted, usual)
    return (said + (1 - seen) * level).sum(-1).mean(-1)


def spans_of(denoiser: Denoiser, prompt: int, stop: int) -> list[range]:
    """The positions of an answer behind ``prompt`` tokens, up to ``stop``; of a block model block by block."""
    width = denoiser.facts.block if denoiser.facts.attention == "block" else None
    starts = [prompt, *(range(prompt // width * width + width, stop, width) if width else ())]
    return [range(*pair) for pair in zip(starts, [*starts[1:], stop], strict=True)]


def _bound(ask: Asked, spans: list[range], draws: int, seed: int) -> tuple[float, float]:
    groups = min(GROUPS, draws)
    found = torch.zeros(groups, dtype=torch.float64)
    for number, span in enumerate(spans):
        hidden, weight, group = drawn_sets(len(span), draws, seed, number)
        found += levelled(ask(span, hidden), hidden, weight, group)
    error = student95(groups) * found.std(correction=1).item() / math.sqrt(groups) if groups > 1 else math.nan
    error = 0.0 if max(map(len, spans)) == 1 else error  # then there is one set to draw
    return found.mean().item(), error


def _any_order_exact(ask: Asked, spans: list[range]) -> float:
    total = 0.0
    for span in spans:
        N = len(span)
        if N > ENUMERATED:
            raise ValueError(
                f"any_order_exact of {N} tokens, which have 2^{N} sets: score at most {ENUMERATED}, or use 'bound'"
            )
        sets = subsets(N)[1:]  # all but none hidden
        total += (ask(span, sets).sum(1) * set_weights(sets)).sum().item()
    return total


def _chain_rule(ask: Asked, spans: list[range]) -> float:
    behind = [torch.ones(len(span), len(span), dtype=torch.bool).triu() for span in spans]
    return sum(ask(span, hidden).diagonal().sum().item() for span, hidden in zip(spans, behind, strict=True))


def _confidence(ask: Asked, spans: list[range]) -> float:
    total = 0.0
    for span in spans:
        left = torch.ones(1, len(span), dtype=torch.bool)
        while bool(left.any()):
            best = ask(span, left)[0].masked_fill(~left[0], -torch.inf).max(0)
            total += best.values.item()
            left[0, best.indices] = False
    return total


def _one_step(ask: Asked, spans: list[range]) -> float:
    return sum(ask(span, torch.ones(1, len(span), dtype=torch.bool)).sum().item() for span in spans)


EXACT: dict[str, Callable[[Asked, list[range]], float]] = {
    "any_order_exact": _any_order_exact,
    "chain_rule": _chain_rule,
    "confidence": _confidence,
    "one_step": _one_step,
}
"""Those that draw nothing."""
ESTIMATORS = ("bound", *EXACT)


# ------------------------------------------------------------------------------------------------------------- doors


@torch.no_grad()
def score(
    process: Process,
    denoiser: Denoiser,
    prompt: Tensor,
    answer: Tensor,
    *,
    draws: int = 128,
    estimator: str = "bound",
    weight: float = 1.0,
    seed: int = 0,
    device: Device = None,
) -> AnswerScore:
    """log p(answer | prompt) in nats of ids (P,) and (N,), by the ``estimator``: see the module.

    ``draws`` are those of ``bound``, in ``GROUPS`` independent groups; sets that come twice are asked once. ``weight``
    of classifier-free guidance by the prompt, 1 + w of LLaDA's w (``guidance.unprompted``): 1 is the model itself.

    Errors: ``ValueError`` for an unknown estimator, an empty answer, no prompt where logits are shifted, no draws, a
    process without fixed masks, an autoregressive denoiser by any but ``chain_rule``, and an answer too long for
    ``any_order_exact``.
    """
    if estimator not in ESTIMATORS:
        raise unknown("estimator", estimator, ESTIMATORS)
    if not absorbing(process):
        raise ValueError(
            f"an answer to be scored by a {process.name} process: it needs a process that has fixed masks; "
            "lm.evaluate measures texts of any"
        )
    if denoiser.facts.attention == "causal" and estimator != "chain_rule":
        raise ValueError(f"estimator={estimator!r} of an autoregressive denoiser, which has one order: 'chain_rule'")
    if not len(answer) or draws < 1:
        raise ValueError(f"an answer of {len(answer)} tokens in {draws} draws: pass one token and one draw at least")
    if not len(prompt) and denoiser.facts.shifted:
        raise ValueError(
            "an answer without a prompt, and logits that are shifted say nothing of a first token: pass a prompt, for "
            "example the model's beginning of text"
        )
    device = device_of(denoiser) if device is None else device
    if weight != 1:
        denoiser = cfg(denoiser, unprompted(denoiser), weight=weight)
    ids = torch.cat([prompt, answer]).to(device)
    ask = Asked(process, denoiser, ids, torch.arange(len(ids), device=device) < len(prompt))
    spans = spans_of(denoiser, len(prompt), len(ids))
    nats, error = _bound(ask, spans, draws, seed) if estimator == "bound" else (EXACT[estimator](ask, spans), 0.0)
    return AnswerScore(
        nats,
        error,
        estimator,
        is_bound=estimator in ("bound", "any_order_exact"),
        draws=draws if estimator == "bound" else 0,
        tokens=len(answer),
        forwards=ask.forwards,
        seed=seed,
    )


def split(tokenizer: Tokenizer, prompt: str, answer: str, context: int) -> tuple[Tensor, Tensor]:
    """The ids of both, encoded as one text; blanks that the prompt ends with are the answer's (lm-evaluation-harness).

    Errors: ``ValueError`` for an answer without tokens of its own, and for more than ``context`` tokens in all.
    """
    kept = prompt.rstrip()
    answer = prompt[len(kept) :] + answer
    ids, start = tokenizer.encode(kept + answer, pad=False), len(tokenizer.encode(kept, pad=False))
    if start >= len(ids):
        raise ValueError(f"answer={answer!r} has no tokens of its own after the prompt: pass a text")
    if len(ids) > context:
        raise ValueError(
            f"prompt and answer have {len(ids)} tokens, the model was trained on {context}: shorten the prompt"
        )
    return torch.tensor(ids[:start], dtype=torch.long), torch.tensor(ids[start:])
