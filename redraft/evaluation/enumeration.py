"""-log p of a text itself, where the states it can come through are few enough to go through them all.

A masked denoiser that reveals its tokens one at a time, in a random order, has

    p(S) = 1/|S| sum_{i in S} p(x_i | x_{S without i}) p(S without i),        p(nothing) = 1

for the tokens S written so far: 2^N sets for N tokens. It is what ancestral sampling tends to with many steps. A
reverse process of T ancestral steps has the law of the prior carried through T kernels, over all states of the row: V^N
of noise that reaches tokens, 2^N of masks, for on the way to x0 nothing but x0 and [MASK] can stand.
"""

import math
from collections.abc import Iterator
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft import objectives
from redraft.evaluation.importance import Chained, clean, grid, hidden_losses, reverse, spread
from redraft.objectives import Batch, masked_cross_entropy
from redraft.processes import Denoiser, Process, absorbing, only_masks
from redraft.randomness import Generators

STATES: Final = 4096
"""The most states of a row that are gone through: 12 masked tokens, or 6 of 4 kinds."""
NUMBERS_AT_ONCE: Final = 1 << 24
"""Probabilities held at a time."""


def refuse(name: str, states: int, what: str) -> None:
    """Errors: ``ValueError`` for more than ``STATES``, naming the number and a way out."""
    if states > STATES:
        other = (
            "leave it out: the same bound with draws" if name == "exact_elbo" else "use 'importance', which bounds it"
        )
        raise ValueError(
            f"estimator={name!r} of a row of {what}, at most {STATES} are gone through: evaluate shorter rows, or "
            f"{other}"
        )


def row_of(batch: Batch, row: int, count: int = 1) -> Batch:
    """One row of the batch, so many times."""
    return {name: tensor[row : row + 1].expand(count, -1) for name, tensor in batch.items()}


# -------------------------------------------------------------------------------------------------------------- sets


def subsets(count: int) -> Tensor:
    """All sets of so many things, (2^count, count) bool; thing i is in set number s if bit i of s is 1."""
    return (torch.arange(2**count)[:, None] >> torch.arange(count)) % 2 == 1


def set_weights(sets: Tensor) -> Tensor:
    """1 / (k C(N, k)) of a set of k of N things, (S, N), and 0 of none; (S,) float64.

    Weighted so and summed over all sets, the losses of hidden tokens are the chain rule's mean over orders.
    """
    N = sets.shape[1]
    weights = [0.0, *(1 / (k * math.comb(N, k)) for k in range(1, N + 1))]
    return torch.tensor(weights, dtype=torch.float64, device=sets.device)[sets.sum(1)]


def hidden_sets(denoiser: Denoiser, process: Process, row: Batch, name: str) -> tuple[Tensor, Tensor]:
    """Every set of a row's N valid tokens, (2^N, N), and -log p of each token in it while it is hidden, 0 elsewhere."""
    where = objectives.valid(row)[0].nonzero()[:, 0]
    N, L = len(where), row["ids"].shape[1]
    refuse(name, 2**N, f"{N} tokens, which have 2^{N} sets")
    sets = subsets(N).to(where.device)
    losses = list[Tensor]()
    for part in sets.split(max(1, NUMBERS_AT_ONCE // (L * process.K))):
        hidden = torch.zeros(len(part), L, dtype=torch.bool, device=where.device)
        hidden[:, where] = part
        found = hidden_losses(denoiser, process, row_of(row, 0, len(part)), hidden, hidden)
        losses.append(found[:, where])
    return sets, torch.cat(losses)


def over_sets(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """-log p of each row, written one token at a time in a random order; in equal shares of its tokens, (B, L)."""
    totals = [_one_at_a_time(denoiser, process, row_of(batch, row)) for row in range(len(batch["ids"]))]
    return spread(torch.stack(totals), batch)


def _one_at_a_time(denoiser: Denoiser, process: Process, row: Batch) -> Tensor:
    hidden, losses = hidden_sets(denoiser, process, row, "enumeration")
    N = hidden.shape[1]
    logp = torch.full((2**N,), -torch.inf, dtype=torch.float64, device=losses.device)
    logp[0] = 0.0
    size, everything = hidden.sum(1), 2**N - 1
    number = torch.arange(2**N, device=losses.device)
    for many in range(1, N + 1):
        written = number[size == many]  # the sets of so many tokens, by their numbers
        terms = list[Tensor]()
        for i in range(N):
            before = written & ~(1 << i)
            term = logp[before] - losses[everything - before, i]
            terms.append(torch.where(written == before, -torch.inf, term))
        logp[written] = torch.stack(terms).logsumexp(0) - math.log(many)
    return -logp[-1]


# ------------------------------------------------------------------------------------------------------------ states


def support(process: Chained, row: Batch) -> list[Tensor]:
    """The states of each position through which the row can come: its token and [MASK] among masks, else all."""
    ids, still = row["ids"][0], clean(process, row)[0]
    everything = torch.arange(process.V, device=ids.device)
    if only_masks(process):
        mask = torch.tensor([process.mask_id], device=ids.device)
        return [one[None] if known else torch.cat([one[None], mask]) for one, known in zip(ids, still, strict=True)]
    return [everything] * len(ids)


def states_of(process: Chained, row: Batch, name: str) -> tuple[list[Tensor], Tensor]:
    """The support of each position, and all states of the row made of them, (S, L), in row-major order."""
    own = support(process, row)
    count = math.prod(map(len, own))
    widest = max(map(len, own))
    many = sum(len(one) > 1 for one in own)
    refuse(name, count, f"{many} tokens, which have {widest}^{many} states")
    return own, torch.cartesian_prod(*own).reshape(count, len(own))


def joined(probs: Tensor, own: list[Tensor]) -> Tensor:
    """The law of the row's states (R, S) when its positions are drawn apart from ``probs`` (R, L, V)."""
    law = probs.new_ones(len(probs), 1)
    for i, states in enumerate(own):
        law = (law[:, :, None] * probs[:, i, states][:, None, :]).flatten(1)
    return law


def over_states(
    denoiser: Denoiser, process: Chained, batch: Batch, u: Tensor, generator: Generators, steps: int
) -> Tensor:
    """-log p of each row, as ``steps`` ancestral steps write it; in equal shares of its tokens, (B, L).

    Rows that come through the same states, told the same, share one pass.
    """
    laws: dict[bytes, tuple[Tensor, Tensor]] = {}
    totals = list[Tensor]()
    for number in range(len(batch["ids"])):
        row = row_of(batch, number)
        # without masks a text whose tokens all count shares its states with all others
        shared = not only_masks(process) and bool(objectives.valid(row).all())
        told = [tensor for name, tensor in sorted(row.items()) if name != "ids" or not shared]
        key = b"|".join(tensor.cpu().numpy().tobytes() for tensor in told)
        if key not in laws:
            laws[key] = _law(denoiser, process, row, steps)
        states, law = laws[key]
        totals.append(-law[(states == row["ids"]).all(1)].sum().log())
    return spread(torch.stack(totals), batch)


def _law(denoiser: Denoiser, process: Chained, row: Batch, steps: int) -> tuple[Tensor, Tensor]:
    """The states of the row, (S, L), and their law at t = 0, (S,), what is known being as it is."""
    own, states = states_of(process, row, "enumeration")
    counted, truth = objectives.valid(row)[0], F.one_hot(row["ids"], process.K).double()

    def free(p: Tensor, q: Tensor) -> Tensor:
        """p where tokens are written, q, which knows them, where they are known: (R, L, V)."""
        kept = F.one_hot(row["ids"], process.V).to(q).expand_as(q) if only_masks(process) else q
        return torch.where(counted[:, None], p, kept)

    last = process.marginal(truth, torch.ones(1, dtype=torch.float64, device=states.device))
    law = joined(free(process.prior_law().to(last).expand_as(last), last), own)[0]
    for t, s in grid(steps, 1, states):
        after = torch.zeros_like(law)
        for part in _parts(process, law.nonzero()[:, 0], states):
            z, many = states[part], len(part)
            p = reverse(denoiser, process, row_of(row, 0, many), z, t.expand(many), s.expand(many))
            q = process.posterior(truth.expand(many, -1, -1), z, t.expand(many), s.expand(many))
            after += law[part] @ joined(free(p, q), own)
        law = after
    return states, law


def _parts(process: Chained, numbers: Tensor, states: Tensor) -> Iterator[Tensor]:
    """So many states at a time, by their numbers, that the memory stays bounded."""
    yield from numbers.split(max(1, NUMBERS_AT_ONCE // max(len(states), states.shape[1] * process.V)))


# ------------------------------------------------------------------------------------------- the NELBO without chance


def integrand(denoiser: Denoiser, process: Process, batch: Batch, z: Tensor, t: Tensor) -> Tensor:
    """The NELBO's integrand at z and t, (B, L); among masks only what is hidden is asked about."""
    if absorbing(process):
        return process.mask_weight(t) * masked_cross_entropy(denoiser, batch, z, t, z == process.mask_id)
    return process.nelbo(objectives.log_probs(denoiser, process, batch, z, t), batch["ids"], z, t)


def nelbo_over_sets(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The NELBO of masks, the mean over k and all sets of k of n / k times their cross-entropy; nothing is drawn."""
    totals = torch.zeros(batch["ids"].shape, dtype=torch.float64, device=batch["ids"].device)
    for number in range(len(totals)):
        row = row_of(batch, number)
        sets, losses = hidden_sets(denoiser, process, row, "exact_elbo")
        totals[number, objectives.valid(row)[0]] = (set_weights(sets)[:, None] * losses).sum(0)
    return totals


def nelbo_over_states(
    denoiser: Denoiser, process: Chained, batch: Batch, u: Tensor, generator: Generators, steps: int
) -> Tensor:
    """The NELBO of a chain of ``steps``: all steps, and all z of each, by q; nothing is drawn."""
    totals = process.prior_kl(batch["ids"]).double()
    for number in range(len(totals)):
        row = row_of(batch, number)
        own, states = states_of(process, row, "exact_elbo")
        truth = F.one_hot(row["ids"], process.K).double()
        for step in range(1, steps + 1):
            t = torch.full((1,), step / steps, dtype=torch.float64, device=states.device)
            q = process.marginal(truth, t)
            known = F.one_hot(row["ids"], process.V).double()
            law = joined(torch.where(clean(process, row)[..., None], known, q), own)[0]
            for part in _parts(process, law.nonzero()[:, 0], states):
                terms = integrand(denoiser, process, row_of(row, 0, len(part)), states[part], t.expand(len(part)))
                totals[number] += law[part] @ terms.double() / steps
    return totals
