"""How likely a text is under a model: a bound with its estimator's name and its error bar."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redraft import objectives
from redraft.data import Packed
from redraft.data.packing import without_first_tokens
from redraft.evaluation.estimators import Score, get
from redraft.evaluation.intervals import ratio
from redraft.evaluation.protocol import protocol, tokenizer_name
from redraft.processes import Denoiser, Process, only_masks
from redraft.processes.base import device_of
from redraft.processes.time import stratified
from redraft.randomness import Device, derive, generator, row_generators

_ROWS_AT_ONCE = 32
_EXP_LIMIT = 700.0
"""exp of more than this is no float64."""


@dataclass(frozen=True)
class Likelihood:
    """A measured likelihood.

    ``nats_per_token``, ``bits_per_byte`` (UTF-8) and ``bits_per_char`` come with the half-width of their 95% interval,
    taken over rows: it holds both what Monte Carlo adds and how much the rows differ (docs/evaluation.md says how often
    it holds the truth). ``perplexity`` is exp(nats per token), per token of this model's
    tokenizer (``per_token_of``). ``is_bound``: -log p of the estimator's own law lies at or below, in expectation;
    autoregressive and enumerated values are exact. ``estimator`` says how; ``draws`` of (t, z) were made per row of
    ``context`` tokens. ``protocol`` says on what, and how it was cut (``protocol.protocol``): only figures of one
    protocol are compared (``compare``). ``row_nats`` and ``row_tokens``: of each row.
    """

    nats_per_token: float
    nats_per_token_error: float
    bits_per_byte: float | None
    bits_per_byte_error: float | None
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
    protocol: dict[str, Any]
    row_nats: tuple[float, ...] = field(repr=False)
    row_tokens: tuple[int, ...] = field(repr=False)

    @property
    def per_token_of(self) -> str:
        """The tokenizer whose tokens ``nats_per_token`` and ``perplexity`` are counted in."""
        return tokenizer_name(self.protocol["tokenizer"])

    def to_dict(self) -> dict[str, Any]:
        """All but the rows."""
        return {name: value for name, value in self.to_record().items() if name not in ("row_nats", "row_tokens")}

    def to_record(self) -> dict[str, Any]:
        """All of it, for a file that is to be compared with another row by row."""
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
    particles: int | None = None,
    chain_steps: int | None = None,
) -> Likelihood:
    """The NELBO of ``packed`` (exact NLL for a causal denoiser), nats per valid token.

    Each row is scored ``draws`` times, at noise levels evenly spaced with one shared random shift over all rows and
    draws, which keeps the mean unbiased and its variance low. ``rows`` takes only that many, evenly spread. A masked
    denoiser that does not read t is scored with k of its n tokens masked, k ~ U{1..n}, weight n / k: the same mean as
    the integral over t (RADD's k-DCE, arXiv 2406.03736) without the rare weights of 1 / t that upset an error bar.
    A block model is scored so block by block, and one of any order in random orders, exactly in each. Where logits are
    shifted by one, first tokens are not scored (``packing.without_first_tokens``), and there are no bits per character.

    ``estimator``: the one of least variance that the model allows, unless given, one of ``estimators.NAMES``:

    - ``vlb``: the NELBO as an integral over noise levels.
    - ``steps``: that of a process with steps, every step summed; ``exact_elbo``: with every z too, or every set of
      masks, where they are few enough.
    - ``any_order``: the chain rule of a masked denoiser in a random order, a forward for each token.
    - ``importance``: the importance-weighted bound of ``particles`` (8) orders, or of chains of ``chain_steps``
      ancestral steps: the process's own, 128 in continuous time; closer to -log p the more particles.
    - ``enumeration``: -log p itself, of tokens written one at a time in a random order, or in ``chain_steps`` ancestral
      steps; where the states of a row are few enough.
    - ``ode``: the bound of a Gaussian process's probability-flow ODE by ``ode_steps`` (64) of Heun's method and
      ``ode_probes`` (1; 0 is exact) for its trace, which draws no noise levels (``ode.bound``). What the steps err is
      in neither the bound nor its error bar: double them to see it.

    Positions that are not ``valid`` (padding, what a window has seen before) are known, and stand clean among masks.

    Errors: ``ValueError`` for fewer than 1 draw or 2 rows, an estimator that is unknown or does not fit the model, an
    option of another, rows with too many states to go through, and windows (``Packed.stride``) of a model that cannot
    be told clean tokens.
    """
    if draws < 1:
        raise ValueError(f"draws={draws}: take at least one")
    if len(packed) < 2 or (rows is not None and rows < 2):
        raise ValueError(f"{min(len(packed), rows or 2)} rows: an error bar needs at least 2; pass a longer text")
    device = device_of(denoiser) if device is None else device
    check_stride(denoiser, process, packed)
    options = {"ode_steps": ode_steps, "ode_probes": ode_probes, "particles": particles, "chain_steps": chain_steps}
    how = get(estimator, denoiser, process, **options)
    protocol_of = protocol(packed, denoiser.facts.shifted)
    packed = without_first_tokens(packed) if denoiser.facts.shifted else packed
    draws = draws if how.draws else 1
    chosen = np.arange(len(packed)) if rows is None else np.linspace(0, len(packed) - 1, min(rows, len(packed)))
    chosen = np.unique(chosen.astype(np.int64))
    total, count = _row_sums(denoiser, process, how.score, packed, chosen, draws, seed, device)

    found = ratio(total.tolist(), count.tolist())
    mean, error = found.mean, found.error
    per_byte, per_char = (
        packed.num_tokens / size / math.log(2) if size else None for size in (packed.num_bytes, packed.num_chars)
    )
    return Likelihood(
        nats_per_token=mean,
        nats_per_token_error=error,
        bits_per_byte=None if per_byte is None else mean * per_byte,
        bits_per_byte_error=None if per_byte is None else error * per_byte,
        bits_per_char=None if per_char is None else mean * per_char,
        bits_per_char_error=None if per_char is None else error * per_char,
        perplexity=math.exp(mean) if mean < _EXP_LIMIT else math.inf,
        estimator=how.name,
        is_bound=how.is_bound,
        draws=draws,
        rows=len(chosen),
        tokens=int(count.sum()),
        characters=packed.num_chars or None,
        context=packed.ids.shape[1],
        seed=seed,
        protocol=protocol_of,
        row_nats=tuple(total.tolist()),
        row_tokens=tuple(map(int, count.tolist())),
    )


def check_stride(denoiser: Denoiser, process: Process, packed: Packed) -> None:
    """Refuse windows whose tokens before the scored ones would not be clean, known ones: ``ValueError``."""
    stride, length, facts = packed.stride, packed.ids.shape[1], denoiser.facts
    if stride is None or stride == length:
        return
    known = length - stride
    if facts.attention == "block" and facts.block is not None and known % facts.block:
        raise ValueError(
            f"stride={stride} of rows of {length}: each then knows {known} tokens, which must be whole blocks of "
            f"{facts.block} for this model; take stride={length - known // facts.block * facts.block}"
        )
    if facts.attention in ("causal", "permuted") or only_masks(process):
        return
    raise ValueError(
        f"stride={stride} of a {process.name} process: its noise reaches every token, also those that a window is to "
        "know; leave it out"
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
