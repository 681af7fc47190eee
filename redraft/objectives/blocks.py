"""Texts in an order: block diffusion (BD3-LM) and any-order models, each trained by one forward over two streams.

The clean text stands beside the noisy one, [z ; x0], and every noisy position is told the clean text of lower ranks
(``models.contexts``): ranks by blocks are BD3-LM's, a random order of ranks is an any-order model's.
"""

import torch
from torch import Tensor, nn

from redraft.models import contexts
from redraft.objectives.base import Batch, Loss, masked_cross_entropy, valid
from redraft.processes import Categorical, Denoiser, Process, absorbing
from redraft.processes.base import Condition, per_position
from redraft.processes.time import stratified
from redraft.randomness import Generators, derive, rand, row_generators

BINS = 20
"""Cells of width 0.05 into which ``choose_range`` cuts the mask rates."""
NARROWEST, WIDEST = 10, 18
"""Cells of the ranges it compares: widths 0.5 to 0.9 (BD3-LM)."""
_ROWS_AT_ONCE = 16


def bd3lm(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    mask_min: float | None = None,
    mask_max: float | None = None,
) -> Loss:
    """Block diffusion (Arriola et al. 2025, arXiv 2503.09573): the sum over blocks of each one's masked NELBO.

        -log p(x0) <= sum_b E_t [ -alpha' / (1 - alpha) sum_{i in b masked} -log p(x0_i | z^b, x0^{<b}) ]

    One t per block (``block_times``). The mask rate is drawn from [mask_min, mask_max], or, with neither set, from the
    range the model carries (``noise_range``), at first the whole of it. Over less than the whole range the value is the
    mean of the integrand there and bounds nothing: the bound is then NaN, not measured by this draw. A block of one
    token is always masked: weight times P(masked) integrates to 1, so each draw at t = 1 is -log p(x_i | x_<i) itself.

    Errors: ``ValueError`` for a denoiser without blocks, a process other than masked, a range that is none.
    """
    ids, block = batch["ids"], block_of(denoiser)
    if not absorbing(process):
        raise ValueError(f"objective 'bd3lm' with a {process.name} process: it is defined for masked")
    rank = contexts.block_ranks(ids.shape[1], block, ids.device)
    if block == 1:
        if (mask_min, mask_max) not in ((None, None), (0.0, 1.0)):
            raise ValueError(f"mask_min={mask_min}, mask_max={mask_max}: a block of one token is always masked")
        assert process.mask_id is not None
        z, t = torch.full_like(ids, process.mask_id), torch.ones(ids.shape, dtype=torch.float64, device=ids.device)
        value = two_stream_cross_entropy(denoiser, batch, z, t, rank, torch.ones_like(ids, dtype=torch.bool))
        return Loss(value, value.detach())
    low, high = _range(denoiser, mask_min, mask_max)
    each = block_times(u.to(ids.device), int(rank[-1]) + 1, generator)
    t, weight = (one[:, rank] for one in _within(process, each, low, high))
    z = process.corrupt(ids, t, generator)
    losses = two_stream_cross_entropy(denoiser, batch, z, t, rank, z == process.mask_id)
    value = weight * process.mask_weight(t) * losses
    return Loss(value, value.detach() if (low, high) == (0.0, 1.0) else torch.full_like(value, torch.nan).detach())


def any_order(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None) -> Loss:
    """-log p(x_i | those before it) in a random order of each row: XLNet's and sigma-GPT's loss, an order's chain rule.

        -log p(x0) <= E_order sum_i -log p(x0_order(i) | x0_order(<i))        (Jensen; exact for each order by itself)

    The order is drawn from ``generator``, so u is idle; tokens that do not count come first, as given. With exact
    conditionals it is the masked NELBO (Ou et al. 2024, arXiv 2406.03736; T5).

    Errors: ``ValueError`` for a denoiser that is not permuted, or a process without a mask.
    """
    if denoiser.facts.attention != "permuted" or process.mask_id is None:
        raise ValueError("objective 'any_order' needs a permuted denoiser with a mask: set model.attention=permuted")
    ids, counted = batch["ids"], valid(batch)
    drawn = rand(ids.shape, generator, ids.device).masked_fill(~counted, -1.0)
    rank = drawn.argsort(dim=1, stable=True).argsort(1)
    z, t = torch.full_like(ids, process.mask_id), torch.ones(ids.shape, dtype=torch.float64, device=ids.device)
    value = two_stream_cross_entropy(denoiser, batch, z, t, rank, counted)
    return Loss(value, value.detach())


def two_stream_cross_entropy(
    denoiser: Denoiser, batch: Batch, z: Tensor, t: Tensor, rank: Tensor, where: Tensor
) -> Tensor:
    """-log p(x0_i | z of rank i's own, x0 of lower ranks) at the positions ``where`` and 0 elsewhere, (B, L).

    One forward over 2L inputs. z (B, L); t (B,) or (B, L), of which the clean half is told 0; rank (L,) or (B, L).
    """
    ids, t = batch["ids"], per_position(t).expand(z.shape)
    L = ids.shape[1]
    cond: Condition = {"attend": contexts.two_stream(rank), "positions": contexts.doubled(L, ids.device)}
    if "segments" in batch:
        cond["segments"] = batch["segments"].repeat(1, 2)
    pairs = ((z, ids), (t, torch.zeros_like(t)), (where, torch.zeros_like(where)))
    inputs, times, read = (torch.cat(pair, dim=1) for pair in pairs)
    return masked_cross_entropy(denoiser, {"ids": ids.repeat(1, 2)}, inputs, times, read, cond)[:, :L]


def block_times(u: Tensor, count: int, generator: Generators) -> Tensor:
    """What decides each block's t: u (B,) -> (B, count), u_ij = (place_i(j) + u_i) / count, place_i a permutation.

    place_i is random and row i's own, so that every u_ij is uniform; a row has one u in each of ``count`` equal cells,
    and stratified u_i spread them further, one in each of B count. (BD3-LM's code leaves j in its place: block j then
    never leaves the strata congruent to j, and its mean over t is biased, by 0.137 for (t - 1/2)^2, 16 blocks, B = 1.)
    """
    u = u.double()
    if count == 1:
        return u[:, None]
    return (rand((len(u), count), generator, u.device).argsort(1) + u[:, None]) / count


def block_of(denoiser: Denoiser) -> int:
    """Positions per block. Errors: ``ValueError`` for a denoiser without blocks."""
    if denoiser.facts.attention != "block" or denoiser.facts.block is None:
        raise ValueError("objective 'bd3lm' needs a block denoiser: set model.attention=block and model.block")
    return denoiser.facts.block


# ------------------------------------------------------------------------------------------------ the range of rates


def noise_range(denoiser: object) -> Tensor | None:
    """The range of mask rates, (2,), that a block model carries among its buffers; None for one that carries none.

    What wraps a model for training holds it under ``module``.
    """
    while isinstance(inner := getattr(denoiser, "module", None), nn.Module):
        denoiser = inner
    return getattr(denoiser, "noise_range", None)


def retune(model: nn.Module, process: Process, batch: Batch, seed: int) -> tuple[float, float]:
    """Have ``model`` carry the range that ``choose_range`` finds, and say which."""
    assert isinstance(model, Denoiser)
    carried, found = noise_range(model), choose_range(model, process, batch, seed)
    assert carried is not None, "block models of our own carry a range"
    carried.copy_(torch.tensor(found))
    return found


@torch.no_grad()
def choose_range(denoiser: Denoiser, process: Process, batch: Batch, seed: int) -> tuple[float, float]:
    """The range of mask rates, of widths 0.5, 0.55 .. 0.9, at which a row's loss varies least (BD3-LM).

    Blocks are told clean text only, so a block's loss depends on its own t alone, and one draw of it in every cell of
    width 0.05 gives the variance of the row's loss under all ranges at once. A pure function of weights, batch, seed.
    """
    parts: list[Tensor] = []
    for start in range(0, len(batch["ids"]), _ROWS_AT_ONCE):
        rows = range(start, min(start + _ROWS_AT_ONCE, len(batch["ids"])))
        part = {name: tensor[rows.start : rows.stop] for name, tensor in batch.items()}
        parts.append(torch.stack([_cell(denoiser, process, part, seed, cell, rows) for cell in range(BINS)]))
    losses = torch.cat(parts, dim=1)
    ranges = [(a, a + width) for width in range(NARROWEST, WIDEST + 1) for a in range(BINS - width + 1)]
    low, high = min(ranges, key=lambda cells: row_variance(losses[slice(*cells)]))
    return low / BINS, high / BINS


def row_variance(losses: Tensor) -> float:
    """Var of a row's loss whose blocks take one of the cells each, at random: losses (cells, rows, blocks).

    Var_row(sum_b mean_cell) + mean_row(sum_b var_cell), the law of total variance.
    """
    within = losses.var(0, correction=0).sum(1).mean()
    return float(within + losses.mean(0).sum(1).var(correction=0))


def _cell(denoiser: Denoiser, process: Process, batch: Batch, seed: int, cell: int, rows: range) -> Tensor:
    """The loss of each block at a mask rate in the cell, (rows, blocks) float64."""
    u = stratified((seed, cell), rows, rows.stop)
    noise = row_generators(derive(seed, cell), rows=rows)
    low, high = cell / BINS, (cell + 1) / BINS
    value = bd3lm(denoiser, process, batch, u, noise, mask_min=low, mask_max=high).value.double() * valid(batch)
    rank = contexts.block_ranks(value.shape[1], block_of(denoiser), value.device)
    return value.new_zeros(len(value), int(rank[-1]) + 1).index_add(1, rank, value).cpu()


def _range(denoiser: Denoiser, mask_min: float | None, mask_max: float | None) -> tuple[float, float]:
    carried = noise_range(denoiser)
    if mask_min is None and mask_max is None and carried is not None:
        low, high = carried.tolist()
        return low, high
    low, high = mask_min or 0.0, 1.0 if mask_max is None else mask_max
    if not 0 <= low < high <= 1:
        raise ValueError(f"mask_min={low}, mask_max={high}: pass 0 <= mask_min < mask_max <= 1")
    return low, high


def _within(process: Categorical, u: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Times whose mask rates 1 - alpha lie in [low, high], evenly in t, and their weights; of u's shape."""
    rates = torch.tensor([low, high], dtype=torch.float64)
    first, last = process.schedule.inverse(1 - rates).tolist()
    return process.times(first + (last - first) * u)
