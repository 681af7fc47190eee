"""How likely a text is under a model: a bound with its estimator's name and its error bar."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redraft import objectives
from redraft.data import Packed
from redraft.data.packing import without_first_tokens
from redraft.evaluation.estimators import EXACT, Score, get
from redraft.processes import Denoiser, Process
from redraft.processes.base import device_of
from redraft.processes.time import stratified
from redraft.randomness import Device, derive, generator, row_generators

_Z95 = 1.959964
_ROWS_AT_ONCE = 32
_EXP_LIMIT = 700.0
"""exp of more than this is no float64."""


@dataclass(frozen=True)
class Likelihood:
    """A measured likelihood.

    ``nats_per_token`` and ``bits_per_char`` come with the half-width of their 95% interval, taken over rows: it holds
    both what Monte Carlo adds and how much the rows differ. ``perplexity`` is exp(nats per token), per token of this
    model's tokenizer. ``is_bound``: the truth lies at or below, in expectation; autoregressive values are exact.
    ``estimator`` says how; ``draws`` of (t, z) were made per row of ``context`` tokens.
    """

    nats_per_token: float
    nats_per_token_error: float
    bits_per_char: float | None
    bits_per_char_error: float | None
    perplexity: float
    estimator: str
    is_bound: bool
    draws: int
    rows: int
    tokens: int
    characters: int | None
    context: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def likelihood(
    denoiser: Denoiser,
    process: Process,
    packed: Packed,
    *,
    draws: int = 4,
    rows: int | None = None,
    seed: int = 0,
    device: Device = None,
    estimator: str | None = None,
    ode_steps: int | None = None,
    ode_probes: int | None = None,
) -> Likelihood:
    """The NELBO of ``packed`` (exact NLL for a causal denoiser), nats per valid token.

    Each row is scored ``draws`` times, at noise levels evenly spaced with one shared random shift over all rows and
    draws, which keeps the mean unbiased and its variance low. ``rows`` takes only that many, evenly spread. A masked
    denoiser that does not read t is scored with k of its n tokens masked, k ~ U{1..n}, weight n / k: the same mean as
    the integral over t (RADD's k-DCE, arXiv 2406.03736) without the rare weights of 1 / t that upset an error bar.
    A block model is scored so block by block, and one of any order in random orders, exactly in each. Where logits are
    shifted by one, first tokens are not scored (``packing.without_first_tokens``), and there are no bits per character.

    ``estimator``: the one of least variance that the model allows, unless given: ``vlb``, the NELBO as an integral over
    noise levels, or ``ode``, the bound of a Gaussian process's probability-flow ODE by ``ode_steps`` (64) of Heun's
    method and ``ode_probes`` (1; 0 is exact) for its trace, which draws no noise levels (``ode.bound``). What the steps
    err is in neither the bound nor its error bar: double them to see it.

    Errors: ``ValueError`` for fewer than 1 draw or 2 rows, an estimator that is unknown or does not fit the model, and
    ``ode_steps`` or ``ode_probes`` for any but ``ode``.
    """
    if draws < 1:
        raise ValueError(f"draws={draws}: take at least one")
    if len(packed) < 2 or (rows is not None and rows < 2):
        raise ValueError(f"{min(len(packed), rows or 2)} rows: an error bar needs at least 2; pass a longer text")
    device = device_of(denoiser) if device is None else device
    packed = without_first_tokens(packed) if denoiser.facts.shifted else packed
    score, name = get(estimator, denoiser, process, ode_steps, ode_probes)
    exact = score in EXACT
    draws = 1 if exact else draws
    chosen = np.arange(len(packed)) if rows is None else np.linspace(0, len(packed) - 1, min(rows, len(packed)))
    chosen = np.unique(chosen.astype(np.int64))
    total, count = _row_sums(denoiser, process, score, packed, chosen, draws, seed, device)

    mean = float(total.sum() / count.sum())
    # a ratio of sums over rows: its spread is that of the rows' deviations from the common mean
    spread = float((total - mean * count).std(correction=1) * math.sqrt(len(chosen)) / count.sum())
    error = _Z95 * spread
    per_char = packed.num_tokens / packed.num_chars / math.log(2) if packed.num_chars else None
    return Likelihood(
        nats_per_token=mean,
        nats_per_token_error=error,
        bits_per_char=None if per_char is None else mean * per_char,
        bits_per_char_error=None if per_char is None else error * per_char,
        perplexity=math.exp(mean) if mean < _EXP_LIMIT else math.inf,
        estimator=name,
        is_bound=not exact,
        draws=draws,
        rows=len(chosen),
        tokens=int(count.sum()),
        characters=packed.num_chars or None,
        context=packed.ids.shape[1],
        seed=seed,
    )


def _row_sums(
    denoiser: Denoiser,
    process: Process,
    score: Score,
    packed: Packed,
    chosen: np.ndarray[Any, np.dtype[np.int64]],
    draws: int,
    seed: int,
    device: Device,
) -> tuple[Tensor, Tensor]:
    """Per row: nats of its valid tokens, averaged over draws, and how many those are; both (rows,) float64."""
    # rows that follow one another in a text resemble one another: their noise levels must not
    place = torch.randperm(len(chosen), generator=generator(seed)).tolist()
    total = torch.zeros(len(chosen), dtype=torch.float64)
    count = torch.zeros(len(chosen), dtype=torch.float64)
    for start in range(0, len(chosen), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        index = chosen[part]
        batch = objectives.as_batch(packed.batch(index), device)
        valid = objectives.valid(batch)
        count[part] = valid.sum(1).double().cpu()
        for draw in range(draws):
            # row r's times lie 1/draws apart, and rows fill the gaps between
            positions = [draw * len(chosen) + place[row] for row in range(start, start + len(index))]
            u = stratified((seed,), positions, draws * len(chosen))
            found = score(denoiser, process, batch, u, row_generators(derive(seed, draw), rows=index.tolist()))
            total[part] += (found.double() * valid).sum(1).cpu() / draws
    return total, count
