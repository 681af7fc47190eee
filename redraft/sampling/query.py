"""What ``sample`` hands its samplers: the denoiser conditioned, counted, and in the reverse kernel's convention."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from redraft.models.vectors import ask
from redraft.processes import Denoiser, Gaussian, Process, absorbing
from redraft.processes.base import as_condition, to_convention
from redraft.sampling.contract import clean, tempered


@dataclass
class Asked:
    """The denoiser as samplers see it: counted, conditioned, and in the convention the reverse kernel wants."""

    denoiser: Denoiser
    process: Process
    cond: Any
    temperature: float = 1.0
    top_p: float = 1.0
    told: Callable[[Denoiser], Denoiser] | None = None  # what tells a denoiser that given tokens are clean
    stand: Callable[[Tensor, Tensor], Tensor] | None = None  # (z, t) -> z, given vectors clean, inside a step too
    nfe: int = 0
    positions: int = 0
    tokens: Tensor | None = field(default=None, repr=False)  # of vectors: those last thought likeliest
    guess: Tensor | None = field(default=None, repr=False)  # and the clean ones themselves
    final: bool = False  # whether a token once written stays, so that nothing is asked of a row without masks
    last: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.denoiser = self.told(self.denoiser) if self.told else self.denoiser

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """What the denoiser says of z; rows that stand as they did when it was last asked are not asked for again.

        That holds for denoisers that do not read t (MDLM's and RADD's cached sampling, row by row): over N steps a row
        of l masks takes N (1 - (1 - 1/N)^l) calls on the linear schedule.
        """
        if isinstance(self.process, Gaussian):
            return self._vectors(self.process, self.stand(z, t) if self.stand else z, t)
        stale = torch.ones(len(z), dtype=torch.bool, device=z.device)
        if self.last is not None and self.last[0].shape == z.shape:
            stale = (self.last[0] != z).any(1)
            if self.final:
                stale &= (z == self.process.mask_id).any(1)
        if not bool(stale.any()):
            assert self.last is not None
            return self.last[1]
        if self.cond is not None:  # it may speak of rows, and cannot be cut
            stale = torch.ones_like(stale)
        self._count(self.denoiser, int(stale.sum()) * z.shape[1])
        if bool(stale.all()):
            logp = clean(self.denoiser(z, t, self.cond), self.process)
        else:
            assert self.last is not None
            logp = self.last[1].clone()
            logp[stale] = clean(self.denoiser(z[stale], t[stale], self.cond), self.process)
        if absorbing(self.process) and not self.denoiser.facts.time_conditioned:
            self.last = z.clone(), logp
        return to_convention(self.denoiser, self.process, logp, z, t)

    def _vectors(self, process: Gaussian, z: Tensor, t: Tensor) -> Tensor:
        """Clean vectors (B, L, D). One that conditions on itself is told what it said at the step before."""
        facts, cond = self.denoiser.facts, self.cond
        if facts.self_conditioned:
            cond = {**as_condition(cond), "guess": torch.zeros_like(z) if self.guess is None else self.guess.to(z)}
        self._count(self.denoiser, z.shape[0] * z.shape[1])
        said = ask(self.denoiser, process, z, t, cond)
        self.tokens = process.nearest(said.x) if facts.vectors else said.logp.argmax(-1)
        if facts.self_conditioned:
            self.guess = said.x.detach()  # who asks with gradients (plug-and-play control) leaves no graph behind
        if facts.vectors or (self.temperature, self.top_p) == (1.0, 1.0):
            return said.x
        return process.mean(tempered(said.logp, self.temperature, self.top_p)).to(said.x)

    def beside(self, denoiser: Denoiser, cond: Any, /) -> Callable[[Tensor, Tensor], Tensor]:
        """A second denoiser, told ``cond``, in the same convention and counted with the first."""
        denoiser = self.told(denoiser) if self.told else denoiser

        def other(z: Tensor, t: Tensor) -> Tensor:
            self._count(denoiser, z.shape[0] * z.shape[1])
            return to_convention(denoiser, self.process, clean(denoiser(z, t, cond), self.process), z, t)

        return other

    def _count(self, denoiser: Denoiser, positions: int) -> None:
        self.nfe += denoiser.facts.forwards
        self.positions += denoiser.facts.forwards * positions
