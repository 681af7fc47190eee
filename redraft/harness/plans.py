"""Which tokens of an answer are hidden together, and how much each log p so found weighs: an estimator as a table.

    log p(answer | prompt)  ~  sum over rows r and hidden tokens i of  w_ri log p(x_i | prompt, the row's others)

Each estimator of ``redraft.evaluation.answers`` that does not choose as it goes is such a sum. A bound whose 2^N - 1
sets are no more than its draws is not drawn: all of them are asked, and nothing is left to chance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.evaluation.answers import ENUMERATED, drawn_sets, levelled
from redraft.evaluation.enumeration import set_weights, subsets

ESTIMATORS = ("bound", "any_order_exact", "chain_rule", "one_step")


@dataclass(frozen=True)
class How:
    """How an answer is scored: see ``answers.score``, which each of these is of.

    ``estimator``: ``chain_rule`` of causal denoisers and ``bound`` of others unless given.
    """

    estimator: str | None = None
    draws: int = 128
    weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.estimator is not None and self.estimator not in ESTIMATORS:
            raise unknown("estimator", self.estimator, ESTIMATORS)
        if self.draws < 1:
            raise ValueError(f"draws={self.draws}: pass 1 at least")


@dataclass(frozen=True)
class Plan:
    """``hidden`` (R, N) bool, ``weights`` (R, N) float64; ``groups`` (R,) the independent part each row is of.

    ``groups`` is None where nothing is drawn. Rows of weight 0 are asked for what they say of greedy decoding.
    """

    hidden: Tensor
    weights: Tensor
    groups: Tensor | None = None

    def totals(self, logp: Tensor, groups: int) -> Tensor:
        """(Q, groups) float64 of log p (Q, R, N): what each group estimates; their mean is the estimate."""
        if self.groups is not None:
            return levelled(logp, self.hidden, self.weights[:, 0], self.groups)
        rows = torch.where(self.weights > 0, self.weights * logp, 0.0)  # what weighs nothing may be -inf
        return rows.sum((1, 2))[:, None].expand(-1, groups)


def plan(length: int, how: How, *keys: int) -> Plan:
    """The sets of an answer's, or a span's, ``length`` tokens. What is drawn depends on ``keys`` alone.

    Errors: ``ValueError`` for an answer too long for ``any_order_exact``.
    """
    every = torch.ones(length, length, dtype=torch.bool)
    if how.estimator == "one_step":
        return Plan(every[:1], torch.ones(1, length, dtype=torch.float64))
    if how.estimator == "chain_rule":
        return Plan(every.triu(), torch.eye(length, dtype=torch.float64))
    if how.estimator == "any_order_exact" and length > ENUMERATED:
        raise ValueError(
            f"any_order_exact of {length} tokens, which have 2^{length} sets: at most {ENUMERATED}, or use 'bound'"
        )
    if how.estimator == "any_order_exact" or 2**length - 1 <= how.draws:
        return _enumerated(length)
    return _drawn(length, how.draws, keys)


def _enumerated(length: int) -> Plan:
    """All sets; one of k tokens weighs 1 / (k C(N, k))."""
    hidden = subsets(length)[1:]
    return Plan(hidden, set_weights(hidden)[:, None].expand(-1, length))


def _drawn(length: int, draws: int, keys: tuple[int, ...]) -> Plan:
    """The sets that ``answers.score`` draws, and all tokens together, which says how greedy decoding begins."""
    rows, weight, group = drawn_sets(length, draws, *keys)
    if not bool(rows.all(1).any()):
        rows = torch.cat([rows, torch.ones(1, length, dtype=torch.bool)])
        weight, group = (torch.cat([one, one.new_zeros(1)]) for one in (weight, group))
    return Plan(rows, weight[:, None].expand(-1, length), group)
