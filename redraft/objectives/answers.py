"""Losses of fine-tuning: answers are noised and scored, and what they answer stands clean.

An answer is what is ``valid`` of a conversation: a row, or one of the ``segments`` of a packed row, which has
``positions`` too. Its tokens share a mask rate p. Shapes: B rows, L length, G conversations of a row.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.models import contexts
from redraft.objectives.base import Batch, Loss, masked_cross_entropy, valid
from redraft.objectives.blocks import two_stream_cross_entropy
from redraft.processes import Categorical, Denoiser, Facts, Process, absorbing
from redraft.processes.base import Condition
from redraft.randomness import Generators, rand

Weighting = Literal["cart", "time", "linear", "flat"]
EPS, CART = 1e-3, 0.1
"""The least mask rate of LLaDA, and how far context reaches in the configurations that Dream-Coder is trained by."""


def llada(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    eps: float = EPS,
    block: int | None = None,
    drop: float = 0.0,
) -> Loss:
    """LLaDA's loss of answers (Nie et al. 2025, arXiv 2502.09992), nats per token, of an answer's N_b tokens.

        (1 / B) sum_b (1 / N_b) sum_{i masked} -log p(x0_i | z) / p_b,    p_b = (1 - eps) u_b + eps

    B counts conversations. Where all tokens are valid it is LLaDA's loss of pre-training. ``block``: answers are
    learned in blocks by a model of full attention, as it writes them in blocks: one block is drawn, those before it are
    clean, those after it masked. A model of block attention has blocks of its own, all learned at once from two
    streams, each at a rate of its own. ``drop``: share of the conversations whose prompt is masked as a whole, which
    guidance without a prompt asks for (SMDM, Nie et al. 2024, arXiv 2410.18514).

    The bound is of the same draw (``bound_weight``): it is exact whatever eps, and counts the told conversations only.
    Errors: ``ValueError`` for noise other than masks, or attention that is neither full nor by blocks.
    """
    drawn = draw(denoiser, process, batch, u, generator, eps, block, drop)
    losses, bound = drawn.cross_entropy(denoiser, batch)
    each = torch.where(valid(batch), 1 / drawn.length.clamp_min(1), 0.0)
    weight = torch.where(drawn.where, each * drawn.blocks / drawn.rate.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return Loss(weight.to(losses) * losses, bound, counts=each)


def dream(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    weighting: Weighting = "cart",
    cart: float = CART,
    block: int | None = None,
    drop: float = 0.0,
) -> Loss:
    """Dream's loss of answers (Ye et al. 2025, arXiv 2508.15487): a weighted mean over the masked tokens, nats.

        sum_i w_i (-log p(x0_i | z)) / (number masked),    a token masked with p_b = u_b

    ``weighting``: ``cart`` (``context_weights`` of p = ``cart``), ``time`` 1 / p_b, ``linear`` 1 - p_b, ``flat`` 1. Of
    these only ``time`` weighs as the bound does, and none is one, for it is divided by what was drawn. ``block``,
    ``drop``, the bound and errors as in ``llada``. The shift of Dream's logits is its denoiser's own.
    """
    if weighting == "cart" and denoiser.facts.attention == "block":
        raise ValueError("weighting='cart' for a block model, which sees no context behind a block: use time or flat")
    drawn = draw(denoiser, process, batch, u, generator, 0.0, block, drop)
    losses, bound = drawn.cross_entropy(denoiser, batch)
    rate = drawn.rate
    if weighting == "cart":
        weight = context_weights(~drawn.masked, cart, batch.get("segments"))
    else:
        inverse = 1 / rate.clamp_min(torch.finfo(torch.float64).tiny)
        weight = {"time": inverse, "linear": 1 - rate, "flat": torch.ones_like(rate)}[weighting]
    weight = torch.where(drawn.where, weight, 0.0)
    return Loss(weight.to(losses) * losses, bound, counts=drawn.where.double())


def context_weights(seen: Tensor, p: float, segments: Tensor | None = None) -> Tensor:
    """CART: how much of the context of each position is ``seen`` (B, L) bool, near tokens counting more; (B, L).

        w_i = sum_{j seen, j != i} (p / 2) (1 - p)^(|i - j| - 1)

    1 with all of an endless context seen, next to 0 deep inside masks. Positions of other ``segments``, each of which
    stands in one piece, are no context (in Dream's code padding is one, though nobody reads it).
    """
    shown = seen.double()
    joined = torch.ones_like(seen[:, 1:]) if segments is None else segments[:, 1:] == segments[:, :-1]
    before = _fading(shown, joined, 1 - p)
    behind = _fading(shown.flip(1), joined.flip(1), 1 - p).flip(1)
    return p / 2 * (before + behind)


def _fading(shown: Tensor, joined: Tensor, keep: float) -> Tensor:
    """sum_{j < i} keep^(i - j - 1) shown_j over what is ``joined`` (B, L - 1) to i without a gap; (B, L).

    The sums s_i = shown_i + a_i s_{i-1}, a_i = ``keep`` where joined, by doubling how far back they reach.
    """
    total, share = shown.clone(), F.pad(joined.double() * keep, (1, 0))
    reach = 1
    while reach < shown.shape[1]:
        total[:, reach:] += share[:, reach:] * total[:, :-reach]
        share[:, reach:] = share[:, reach:] * share[:, :-reach]
        reach *= 2
    return F.pad(torch.where(joined, total[:, :-1], 0.0), (1, 0))


# --------------------------------------------------------------------------------------------------------- the draw


@dataclass(frozen=True)
class Draw:
    """A draw of answers, (B, L) each. ``where``: masked and scored; ``masked``: all that is, prompts and later blocks.

    ``rate`` p of a token's answer or block, ``length`` N of its answer, ``blocks``: how many one drawn stands for,
    ``weight`` of the cross-entropy in the bound. ``rank``: the blocks of a model that has them, (L,), or None.
    ``clean``: what a second stream shows.
    """

    z: Tensor
    t: Tensor
    where: Tensor
    masked: Tensor
    rate: Tensor
    length: Tensor
    blocks: Tensor
    weight: Tensor
    clean: Tensor
    rank: Tensor | None

    def cross_entropy(self, denoiser: Denoiser, batch: Batch) -> tuple[Tensor, Tensor]:
        """-log p(x0) at ``where``, 0 elsewhere, (B, L), of all that a model names; and its part in the bound, detached.

        Released models are taught not to name [MASK] either, for their own decoders may write it; what the bound is of
        is p over clean tokens, -log p = -log p(x0) + log(1 - p([MASK])).
        """
        asked = Naming(denoiser) if denoiser.facts.states else denoiser
        if self.rank is None:
            losses = masked_cross_entropy(asked, batch, self.z, self.t, self.where)
        else:
            shown = {**batch, "ids": self.clean}
            losses = two_stream_cross_entropy(asked, shown, self.z, self.t, self.rank, self.where)
        clean = losses.detach()
        if isinstance(asked, Naming) and asked.others is not None:
            clean = clean + torch.zeros_like(clean).masked_scatter(self.where, asked.others.to(clean))
        return losses, self.weight.to(clean) * clean


class Naming:
    """A selective denoiser that answers with all that it names; ``others``: log(1 - p([MASK])) of its last answer."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.facts = denoiser, denoiser.facts
        self.others: Tensor | None = None

    def __call__(self, z: Tensor, t: Tensor, cond: Condition | None = None, **asked: Any) -> Tensor:
        said = self.denoiser(z, t, cond, **asked, **{"states": True})
        mask_id = self.facts.mask_id
        assert mask_id is not None
        if mask_id < said.shape[-1]:
            self.others = torch.log1p(-said[..., mask_id].detach().double().exp())
        return said


def draw(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators,
    eps: float,
    block: int | None,
    drop: float,
) -> Draw:
    """Noise for the answers of a batch; u (B,) decides the rates of a row."""
    check_answers(process, denoiser.facts, block)
    assert isinstance(process, Categorical)
    assert process.mask_id is not None
    ids, answer = batch["ids"], valid(batch)
    several = "positions" in batch
    segments = batch.get("segments", torch.zeros_like(ids))
    own, width = segments.clamp_min(0), ids.shape[1] if several else 1
    length = per_group(answer, own)
    rank, cell, current, blocks = None, own, answer, torch.ones_like(length)
    later = torch.zeros_like(answer)
    if denoiser.facts.attention == "block":
        if several:
            raise ValueError("packed rows for a block model, whose blocks count from a row's start: pad rows instead")
        assert denoiser.facts.block is not None
        rank = contexts.block_ranks(ids.shape[1], denoiser.facts.block, ids.device)
        cell, width = rank.expand(ids.shape), int(rank[-1]) + 1
    elif block is not None:
        number, blocks = numbered(answer, own, length, block)
        drawn = (rand((len(ids), width), generator, ids.device).gather(1, own) * blocks).floor()
        current, later = answer & (number == drawn), answer & (number > drawn)
    lost = rand((len(ids), width), generator, ids.device).gather(1, own) < drop if drop else torch.zeros_like(answer)
    rate = eps + (1 - eps) * cell_times(u.to(ids.device), cell, width, generator)
    t = process.schedule.inverse(1 - rate)
    hidden = later | (lost & ~answer & (segments >= 0))
    z = torch.where(current, process.corrupt(ids, t, generator), ids).masked_fill(hidden, process.mask_id)
    where = current & (z == process.mask_id)
    weight = blocks * bound_weight(per_group(current, cell), per_group(where, cell), eps)
    weight = torch.where(where & ~lost, weight / (1 - drop), 0.0)
    clean = ids.masked_fill(hidden & ~answer, process.mask_id)
    return Draw(z, t, where, where | hidden, rate, length, blocks, weight, clean, rank)


def check_answers(process: Process, facts: Facts, block: int | None = None) -> None:
    """Errors: ``ValueError`` for noise other than masks, attention in an order, a block for a model of blocks."""
    if not absorbing(process) or getattr(process, "steps", None) is not None:
        raise ValueError(f"answers learned by a {process.name} process: it takes masks, in continuous time")
    if facts.attention not in ("full", "block"):
        raise ValueError(
            f"answers learned with {facts.attention} attention, in which later text is read by none: open it, or take "
            "a model of full or block attention"
        )
    if block is not None and facts.attention == "block":
        raise ValueError(f"block={block} for a model whose blocks have {facts.block} positions: leave it out")


def per_group(values: Tensor, group: Tensor) -> Tensor:
    """The sum of (B, L) values over each position's group of its row, at that position; float64."""
    sums = torch.zeros(len(values), int(group.max()) + 1, dtype=torch.float64, device=values.device)
    return sums.scatter_add(1, group, values.double()).gather(1, group)


def numbered(answer: Tensor, own: Tensor, length: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The number of each token's block within its answer, and how many blocks that has; (B, L) float64 each."""
    place = answer.double().cumsum(1) - 1
    before = torch.full((len(own), int(own.max()) + 1), math.inf, dtype=torch.float64, device=own.device)
    before = before.scatter_reduce(1, own, torch.where(answer, place, math.inf), "amin").gather(1, own)
    number = torch.where(answer, (place - before) / block, 0.0).floor()
    return number, (length / block).ceil()


def cell_times(u: Tensor, cell: Tensor, width: int, generator: Generators) -> Tensor:
    """What decides the rate of each position's cell, (B, L): (place(j) + u) / n in the cell j of a row's n cells.

    The place is a random permutation (``blocks.block_times``, which says why), drawn alike whatever n.
    """
    u = u.double()[:, None]
    if width == 1:
        return u.expand(cell.shape)
    count = cell.max(1, keepdim=True).values + 1
    drawn = rand((len(cell), width), generator, u.device)
    drawn = torch.where(torch.arange(width, device=u.device) < count, drawn, 2.0)
    return ((drawn.argsort(1).argsort(1) + u) / count).gather(1, cell)


def bound_weight(n: Tensor, k: Tensor, eps: float) -> Tensor:
    """What the cross-entropy of k masked of n tokens weighs in the bound, when p was drawn from [eps, 1]; float64.

    The bound is sum_k (1 / k) C_k, C_k the mean over subsets (``masked.over_counts``), and k is drawn with chance

        P(k) = integral_eps^1 Bin(k; n, p) dp / (1 - eps) = P(Bin(n + 1, eps) <= k) / ((n + 1) (1 - eps))

    so 1 / (k P(k)) makes of any draw an unbiased one of the bound, 1 / p being its mean where eps is 0.
    """
    n, k = n.double(), k.double()
    return torch.where(k > 0, (n + 1) * (1 - eps) / k.clamp_min(1) / at_most(k, n + 1, eps), 0.0)


def at_most(k: Tensor, n: Tensor, eps: float) -> Tensor:
    """P(Bin(n, eps) <= k), elementwise."""
    if eps == 0:
        return torch.ones_like(n)
    found = torch.ones_like(n)
    for one in n.unique().tolist():  # the sizes of a batch's answers are few
        most = one * eps + 40 + 12 * math.sqrt(one * eps)  # beyond it there is nothing that float64 would keep
        j = torch.arange(int(min(one, most)) + 1, dtype=torch.float64, device=n.device)
        ways = math.lgamma(one + 1) - torch.lgamma(j + 1) - torch.lgamma(one - j + 1)
        total = torch.logcumsumexp(ways + j * math.log(eps) + (one - j) * math.log1p(-eps), 0).exp()
        found = torch.where(n == one, total[k.long().clamp_max(len(j) - 1)], found)
    return found


__all__ = ["check_answers", "context_weights", "dream", "llada"]
