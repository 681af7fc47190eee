"""Training to write beside given text: in a share of the rows a random part stands clean, and the rest is learned.

What a model is ``told`` when it infills (``models.told``) it must have met in training. Any objective over noise that
hides no token behind a mask becomes one: its denoiser is told, and the loss counts the other positions only, so that
the NELBO of such a row bounds -log p(free | given).
"""

import functools
from typing import Any

import torch
from torch import Tensor

from redraft.models.told import Told
from redraft.objectives.base import Batch, Loss, Objective, valid
from redraft.processes import Denoiser, Process, only_masks
from redraft.randomness import Device, Generators, rand

PATTERNS = 3
"""A prefix is given, or all but a span, or each position at one rate; each of them as often."""
REFUSED = ("duo", "dcd")
"""They show the network more than z: a mixture of tokens, or what a teacher says of it."""


def choose(shape: tuple[int, int], share: float, generator: Generators, device: Device = None) -> tuple[Tensor, Tensor]:
    """Which rows are chosen, (B,) bool, and the positions given in them, (B, L) bool; L uniform draws a row and four.

    The length of a prefix, or of the span that is left free, is uniform in 1 .. L - 1, as is the place of the span; the
    rate at which positions are given is uniform in (0, 1). Where by chance none or all would be given, one at
    random is turned round. Rows of one position are never chosen.
    """
    B, L = shape
    if L < 2:
        nothing = torch.zeros(B, L, dtype=torch.bool, device=device)
        return nothing.any(1), nothing
    u = rand((B, 4 + L), generator, device)
    chosen, pattern = u[:, 0] < share, (u[:, 1] * PATTERNS).long()[:, None]
    count = 1 + (u[:, 2:3] * (L - 1)).long()
    start = (u[:, 3:4] * (L - count + 1)).long()
    place, each = torch.arange(L, device=device), u[:, 4:]
    span = (place >= start) & (place < start + count)
    scattered = each < u[:, 2:3]
    # the position with the least u is given in any case, that with the greatest never
    rank = each.argsort(1).argsort(1)
    scattered = (scattered | (rank == 0)) & (rank != L - 1)
    given = torch.where(pattern == 0, place < count, torch.where(pattern == 1, ~span, scattered))
    return chosen, given & chosen[:, None]


def with_given(objective: Objective, share: float) -> Objective:
    """``objective`` for a model that is told, in ``share`` of the rows, what stands at some of the positions.

    The loss is 0 at given positions. The bound is that of the rows where nothing is given, which weigh so much more
    that its mean is the bound's of a text as a whole.

    Errors: ``ValueError`` for a share outside (0, 1), and, when called, for a process that masks.
    """
    if not 0 < share < 1:
        raise ValueError(f"given={share}: pass a share of the rows above 0 and below 1, or leave it out")

    @functools.wraps(objective)
    def told(
        denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators = None, **extra: Any
    ) -> Loss:
        check_given(process)
        ids = batch["ids"]
        chosen, given = choose((ids.shape[0], ids.shape[1]), share, generator, ids.device)
        free: Batch = {**batch, "valid": valid(batch) & ~given}
        loss = objective(Told(denoiser, process, ids, given), process, free, u, generator, **extra)
        counts = 1 / (1 - share) if ids.shape[1] > 1 else 1.0  # a row of one position is never chosen
        terms = {name: torch.where(given, 0.0, term) for name, term in loss.terms.items()}
        bound = torch.where(chosen[:, None], 0.0, counts * loss.bound)
        return Loss(torch.where(given, 0.0, loss.value), bound, terms)

    return told


def check_given(process: Process, objective: str = "") -> None:
    """Errors: ``ValueError`` for a process that masks, which needs no training to infill, and for ``REFUSED``."""
    if objective in REFUSED:
        raise ValueError(f"loss.given with objective {objective!r}, which shows the network more than z: leave it out")
    if only_masks(process):
        raise ValueError(
            f"loss.given with a {process.name} process: what is no mask is clean there, and known to be; leave it out"
        )
