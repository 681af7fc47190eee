"""What a sampler is: its signature, what it is told of the rows it draws, and how a misfit is refused."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor

from redraft.processes import Process
from redraft.randomness import Generators, categorical, categorical_at

if TYPE_CHECKING:
    from redraft.sampling.proposal import Proposal


class Query(Protocol):
    """The denoiser as a sampler sees it, ``(z, t)`` to what the process's reverse kernel wants: log p (B, L, K), or, of
    a process of vectors, the clean vectors (B, L, D).

    Asked about some positions only, ``where`` (B, L) bool, it answers for those alone, (n, K) in row-major order; rows
    without any are not asked at all, and cost nothing.
    """

    def __call__(self, z: Tensor, t: Tensor, where: Tensor | None = None, /) -> Tensor: ...


class Revision(Protocol):
    """What may be done about written tokens after a step has written others; joined to a rule as ``"rule+revision"``.

    ``reads(z, draw)`` says of which written positions it must know the law, (B, L) bool, and has it in the proposal;
    called, it returns the canvas after the step, (B, L). ``extra``: the steps it may take beside one for each mask.
    """

    @property
    def extra(self) -> int: ...

    def reads(self, z: Tensor, draw: "Draw", mask_id: int) -> Tensor: ...

    def __call__(self, proposal: "Proposal", z: Tensor, chosen: Tensor) -> Tensor: ...


class Constraint(Protocol):
    """Which texts may be written on one canvas; made by ``redraft.constraints`` and asked by ``propose``.

    ``propose(z, where, logp, draw)``: tokens (n,) for the positions ``where`` (B, L) of the canvas z that are jointly
    possible, of a regular constraint drawn *together* from the product of their laws log p (n, K) given that the whole
    text satisfies it (or, at temperature 0, the likeliest such tokens), and log p (n, K) of each given that. So any of
    them may be written and the others drawn again: a text that satisfies the constraint stays possible.
    """

    def propose(self, z: Tensor, where: Tensor, logp: Tensor, draw: "Draw") -> tuple[Tensor, Tensor]: ...

    def within(self, start: int, stop: int, canvas: Tensor) -> "Constraint":
        """The same seen from the positions start to stop of ``canvas`` (B, L), which has masks where it is free."""
        ...

    def rows(self, rows: Tensor) -> "Constraint": ...


@dataclass(frozen=True)
class Draw:
    """What a sampler is told of the rows it draws.

    ``frozen`` (B, L) bool marks given tokens, ``generator`` has one generator a row. ``temperature`` divides log p
    before tokens are drawn from it (0 takes the likeliest), ``top_k`` keeps so many of the likeliest (0: all), then
    ``top_p`` the fewest of those that hold that mass; among vectors they act on the tokens whose mean the clean vector
    is, before the sampler sees it. ``revision``, ``constraint`` and ``late``, the ids whose proposals count as the
    least sure, are for samplers that propose (``proposal``).
    ``memory`` is empty when a run begins and the sampler's own: whatever (B, ...) it must know again at the next step.
    Once all of its ``done`` (B,) bool are true the run is over; rows that are done must not be asked about.
    """

    frozen: Tensor
    generator: Generators
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    revision: Revision | None = None
    constraint: Constraint | None = None
    late: tuple[int, ...] = ()
    memory: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def probs(self, logp: Tensor) -> Tensor:
        """p as this draw wants it, float64 and normalised."""
        return tempered(logp, self.temperature, self.top_p, self.top_k)

    def tokens(self, logp: Tensor) -> Tensor:
        """A token for every position, drawn from ``probs``; (B, L) ids."""
        return categorical(self.probs(logp), self.generator)

    def tokens_at(self, probs: Tensor, where: Tensor) -> Tensor:
        """A token for each position ``where`` (B, L), of ``probs`` (n, K); a row's numbers depend on its own alone."""
        return categorical_at(probs, where, self.generator)

    def note(self, where: Tensor, logp: Tensor) -> None:
        """Remember log p (n,) of the tokens written at the positions ``where`` (B, L); nan elsewhere until noted."""
        known = self.memory.get("logp")
        if known is None:
            known = torch.full(where.shape, torch.nan, dtype=torch.float64, device=where.device)
        known = known.clone()
        known[where] = logp.double()
        self.memory["logp"] = known

    def rows(self, rows: Tensor) -> "Draw":
        """The same for some rows, ``rows`` (n,) long: the others draw nothing. Its memory is empty."""
        own = self.generator
        if not (own is None or isinstance(own, torch.Generator)):
            own = [own[row] for row in rows.tolist()]
        constraint = None if self.constraint is None else self.constraint.rows(rows)
        return replace(self, frozen=self.frozen[rows], generator=own, constraint=constraint, memory={})


class Sampler(Protocol):
    """From z at t to z at s < t; t and s (B,). Options are keywords with defaults, set by ``get("name:option=1")``."""

    def __call__(self, process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor: ...


def tempered(logp: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """p^(1/temperature), renormalised, float64; 0 puts all mass on the likeliest token (the lowest id of equals).

    ``top_k`` above 0 then keeps so many of the likeliest, and ``top_p`` below 1, of what those renormalise to, the
    likeliest up to and with the one that crosses that mass (Holtzman et al. 2020; the order is that of transformers,
    and the crossing token stays as there, in RADD and in Duo; ReMDM and BD3-LM drop it).
    """
    check_temperature(temperature, top_p, top_k)
    if temperature == 0:
        return torch.nn.functional.one_hot(logp.argmax(-1), logp.shape[-1]).double()
    logp = logp.double()
    p = torch.softmax((logp - logp.amax(-1, keepdim=True)) / temperature, dim=-1)  # so that no quotient is infinite
    if top_p == 1 and not 0 < top_k < p.shape[-1]:
        return p
    ranked, order = p.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ranked[..., top_k:] = 0.0
        ranked = ranked / ranked.sum(-1, keepdim=True)
    ranked = torch.where(ranked.cumsum(-1) - ranked < top_p, ranked, 0.0)
    p = torch.zeros_like(p).scatter(-1, order, ranked)
    return p / p.sum(-1, keepdim=True)


def check_temperature(temperature: float, top_p: float, top_k: int = 0) -> None:
    """Errors: ``ValueError`` for values that ``tempered`` has no meaning for."""
    if top_k < 0:
        raise ValueError(f"top_k={top_k}: pass the number of tokens to choose from, 0 for all")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature}: pass 0 (greedy) or a number above it")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: pass a share above 0, 1 for all tokens")


def clean(logp: Tensor, process: Process) -> Tensor:
    """log p over the clean tokens, (..., K): a text is made of those, whatever mass a ``plain`` head leaves on [MASK].

    A mask among the K ids keeps its column, without mass.
    """
    if logp.shape[-1] != process.K:
        return torch.log_softmax(logp[..., : process.K], dim=-1)
    inside = process.mask_id is not None and process.mask_id < process.K
    if not inside or bool(torch.isneginf(logp[..., process.mask_id]).all()):
        return logp
    mask = torch.tensor(process.mask_id, device=logp.device)
    return torch.log_softmax(logp.index_fill(-1, mask, -torch.inf), dim=-1)


class Tokens(Process, Protocol):
    """A process over ids: its laws are tables of probabilities over V states."""

    def marginal(self, p0: Tensor, t: Tensor) -> Tensor:
        """q_t averaged over x ~ p0, (B, L, V)."""
        ...

    def posterior(self, p0: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The plug-in reverse kernel p(z_s | z_t = z, p0), (B, L, V)."""
        ...


def over_tokens(process: Process) -> TypeGuard[Tokens]:
    """Whether z holds ids, not vectors."""
    return not process.vectors


T = TypeVar("T", bound=Callable[..., Tensor])


def revising(sampler: T) -> T:
    """Mark a sampler that may change tokens already written: its run goes on when no mask is left."""
    vars(sampler)["revises"] = True
    return sampler


def revises(sampler: Sampler) -> bool:
    return getattr(getattr(sampler, "func", sampler), "revises", False)


def proposing(sampler: T) -> T:
    """Mark a sampler that proposes a token for every mask and writes some of them, once a token unless it is revised.

    It obeys a constraint and takes a revision; its steps, unless given, are as many as there are masks to write.
    """
    vars(sampler)["proposes"] = True
    return sampler


def proposes(sampler: Sampler) -> bool:
    return getattr(getattr(sampler, "func", sampler), "proposes", False)


def misfit(sampler: str, process: Process, needs: str, instead: str = "ancestral") -> ValueError:
    """The error for a process that a sampler is not defined for; raise what it returns."""
    return ValueError(f"sampler {sampler!r} needs {needs}, which a {process.name} process is not: use {instead!r}")
