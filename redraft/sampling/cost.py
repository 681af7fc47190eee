"""What a text cost: calls, positions, and where the time went."""

from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

from torch import Tensor

from redraft.processes import Denoiser
from redraft.processes.base import forwards_at


@dataclass
class Cost:
    """``nfe``: denoiser calls, a call of a denoiser made of several counting for each of them (``Facts.forwards``).

    ``of_rows``: in how many of them each row took part, which is what it would have cost alone. ``positions``: those
    that went in, summed over rows and calls; ``cached``: those that were read from a cache instead. ``written``: tokens
    on free positions, counted again when written again. ``classified``: texts that a classifier which guides was asked
    about, its calls being none of the denoiser's. ``seconds``: wall time in the ``model``, in a ``callback``,
    and in the ``rest``, which is proposing, choosing and writing.
    """

    nfe: int = 0
    positions: int = 0
    cached: int = 0
    written: int = 0
    classified: int = 0
    of_rows: list[int] = field(default_factory=list[int])
    seconds: dict[str, float] = field(default_factory=lambda: {"model": 0.0, "callback": 0.0, "rest": 0.0})

    @property
    def tokens_per_forward(self) -> float:
        """Tokens written over forwards, each row's counted: 1 for writing one token a step."""
        return self.written / max(1, sum(self.of_rows))

    def count(
        self, forwards: int, rows: list[int] | None, positions: int, cached: int = 0, alone: list[int] | None = None
    ) -> None:
        """A call that asked ``rows``, all if None, about so many positions in all; ``alone``: each row's own forwards,
        if those are fewer."""
        self.nfe += forwards
        self.positions += forwards * positions
        self.cached += forwards * cached
        for place, row in enumerate(range(len(self.of_rows)) if rows is None else rows):
            self.of_rows[row] += forwards if alone is None else alone[place]

    def call(self, denoiser: Denoiser, t: Tensor, rows: list[int] | None, positions: int, cached: int = 0) -> None:
        """A call of ``denoiser`` at t (n,) or (n, L), as ``count``: for what it costs then."""
        forwards, alone = forwards_at(denoiser, t), None
        if hasattr(denoiser, "forwards_at") and not bool((t == t[:1]).all()):
            alone = [forwards_at(denoiser, one) for one in t.split(1)]
        self.count(forwards, rows, positions, cached, alone)

    def add(self, other: "Cost", at: list[int] | None = None) -> None:
        """What followed: ``other`` is of the rows ``at``, of all unless given."""
        self.nfe += other.nfe
        self.positions += other.positions
        self.cached += other.cached
        self.written += other.written
        self.classified += other.classified
        for row, forwards in zip(range(len(self.of_rows)) if at is None else at, other.of_rows, strict=True):
            self.of_rows[row] += forwards
        for phase, seconds in other.seconds.items():
            self.seconds[phase] += seconds

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_forward": self.tokens_per_forward}


class Clock:
    """``with Clock(cost, "model"):`` adds the seconds inside to that phase, and takes them off the rest."""

    def __init__(self, cost: Cost, phase: str) -> None:
        self.seconds, self.phase = cost.seconds, phase

    def __enter__(self) -> None:
        self.start = perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = perf_counter() - self.start
        self.seconds[self.phase] += spent
        if self.phase != "rest":
            self.seconds["rest"] -= spent
