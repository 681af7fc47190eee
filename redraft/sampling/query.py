"""What ``sample`` hands its samplers: the denoiser conditioned, counted, and in the reverse kernel's convention."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from redraft.models.vectors import ask
from redraft.processes import Denoiser, Gaussian, Process, absorbing
from redraft.processes.base import OF_POSITIONS, as_condition, of_rows, per_position, to_convention
from redraft.sampling.contract import clean, tempered
from redraft.sampling.cost import Clock, Cost
from redraft.sampling.law import Law
from redraft.sampling.shadow import shadowed
from redraft.sampling.speak import speak
from redraft.sampling.window import Window


@dataclass
class Asked:
    """The denoiser as samplers see it: counted, conditioned, and in the convention the reverse kernel wants."""

    denoiser: Denoiser
    process: Process
    cond: Any
    cost: Cost
    frozen: Tensor  # the given tokens, for a denoiser that wants to know them
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    law: Law | None = None  # what the request does to log p
    told: Callable[[Denoiser], Denoiser] | None = None  # what tells a denoiser that given tokens are clean
    stand: Callable[[Tensor, Tensor], Tensor] | None = None  # (z, t) -> z, given vectors clean, inside a step too
    tokens: Tensor | None = field(default=None, repr=False)  # of vectors: those last thought likeliest
    guess: Tensor | None = field(default=None, repr=False)  # and the clean ones themselves
    final: bool = False  # whether a token once written stays, so that nothing is asked of a row without masks
    last: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    said: tuple[Tensor, Tensor | None] | None = field(default=None, repr=False)  # log p, and of which positions

    def __post_init__(self) -> None:
        self.denoiser = self.told(self.denoiser) if self.told else self.denoiser

    def __call__(self, z: Tensor, t: Tensor, where: Tensor | None = None, /) -> Tensor:
        """What the denoiser says of z; rows that stand as they did when it was last asked are not asked for again.

        That holds for denoisers that do not read t (MDLM's and RADD's cached sampling, row by row): over N steps a row
        of l masks takes N (1 - (1 - 1/N)^l) calls on the linear schedule.
        """
        if isinstance(self.process, Gaussian):
            assert where is None
            return self._vectors(self.process, self.stand(z, t) if self.stand else z, t)
        if where is not None:
            self.said = self._where(z, t, where), where
            return self.said[0]
        stale = self._stale(z)
        if stale is not None and not len(stale) and self._again(z):
            assert self.last is not None
            self.said = self.last[1], None
            return self.last[1]
        logp = self._ask(self.denoiser, self.cond, z, t) if stale is None else self._asked(z, t, stale)
        if absorbing(self.process) and not self.denoiser.facts.time_conditioned:
            self.last = z.clone(), logp
        self.said = logp, None
        return logp

    def beside(self, denoiser: Denoiser, cond: Any, /) -> Callable[..., Tensor]:
        """A second denoiser, told ``cond``, in the same convention and counted with the first.

        It is asked ``(z, t)``, or ``(z, t, rows)`` about some rows alone, z and t being those of the ``rows`` (n,).

        Errors: ``ValueError`` while blocks are written, of which the second would see no more than the block.
        """
        if isinstance(self.denoiser, Window):
            raise ValueError("this sampler asks a second denoiser, which it cannot block by block: mix them by rd.cfg")
        other = self.told(denoiser) if self.told else denoiser

        def ask(z: Tensor, t: Tensor, rows: Tensor | None = None) -> Tensor:
            return self._ask(other, cond, z, t, rows=rows)

        return ask

    def whole(self, z: Tensor, /) -> tuple[Tensor, int]:
        """The text that z (B, W) is part of, (B, L), and where in it z begins: z itself, but for a block of a text."""
        window = self.denoiser
        return (window.around(z), window.start) if isinstance(window, Window) else (z, 0)

    def classified(self, texts: int, /) -> None:
        """Count texts that a classifier was asked about."""
        self.cost.classified += texts

    def shadow(self, z: Tensor, t: Tensor, where: Tensor, doubted: Tensor, /) -> tuple[Tensor, Tensor]:
        """log p (n, K) of the positions ``where``, as if asked alone, and (m, K) of the written ones ``doubted``, as
        their shadow says it (``sampling.shadow``); both (B, W). Rows without a doubted position have no shadow.

        Errors: ``ValueError`` for a denoiser that cannot be told what to read, is told of positions already, or shifts.
        """
        self._check_shadow()
        rows, row = doubted.any(1), where.nonzero()[:, 0]
        plain = self._where(z, t, where & ~rows[:, None])
        some = rows.nonzero().squeeze(1)
        if not len(some):
            return plain, plain[:0]
        wide = torch.cat([where, doubted], 1)[some]
        logp = self._heard(self.denoiser, self.cond, z[some], t[some], wide, some)
        behind = wide.nonzero()[:, 1] >= z.shape[1]
        said = logp.new_empty(len(row), logp.shape[-1])
        said[~rows[row]] = plain.to(logp)
        said[rows[row]] = self._shaped(logp[~behind], z[some], where[some], some)
        self.said = said, where
        return said, self._shaped(logp[behind], z[some], doubted[some], some)

    def _check_shadow(self) -> None:
        facts = self.denoiser.denoiser.facts if isinstance(self.denoiser, Window) else self.denoiser.facts
        if not facts.caches or facts.attention not in ("full", "block"):
            raise ValueError(
                "a shadow of the text needs a network that can be told what each position reads; this denoiser "
                f"(attention {facts.attention!r}, caches={facts.caches}) cannot: use 'threshold', or 'wino:verify=0'"
            )
        if facts.shifted:
            raise ValueError(
                "a shadow of the text stands beside it, and this denoiser's logits are shifted: another position would "
                "answer for each of its own; use 'threshold', or 'wino:verify=0'"
            )
        told = [name for name in OF_POSITIONS if name in as_condition(self.cond)]
        if told:
            raise ValueError(f"cond says {', '.join(told)}, which a shadow of the text has of its own: leave it out")

    def recall(self, law: Tensor, where: Tensor, /) -> None:
        """Tell a denoiser of tokens that conditions on itself, from its next call on, that p (n, K) is what was thought
        of the positions ``where`` (B, L): ``guess`` of ``Condition``. Others are told nothing.
        """
        if not self.denoiser.facts.self_conditioned:
            return
        guess = law.new_zeros(*where.shape, law.shape[-1]) if self.guess is None else self.guess.clone()
        guess[where] = law
        self.guess = guess

    def judge(self, network: Callable[[Tensor, Tensor], Tensor], z: Tensor, t: Tensor, where: Tensor, /) -> Tensor:
        """What another network, ``(ids, t) -> (B, L)``, says of the positions ``where`` (B, W) of z, (n,).

        It reads the text up to the end of z, and is counted as one forward of the rows that have such a position.
        """
        rows = where.any(1).nonzero().squeeze(1)
        text, start = self.whole(z)
        text = text[rows, : start + z.shape[1]]
        if not len(rows):
            return torch.zeros(0, device=z.device)
        self.cost.count(1, rows.tolist(), text.numel())
        with Clock(self.cost, "model"):
            return network(text, t[rows])[:, start:][where[rows]]

    def _asked(self, z: Tensor, t: Tensor, stale: Tensor) -> Tensor:
        """log p (B, L, K) with that of the rows ``stale`` (n,) new; of others as before, or anything if never asked."""
        if self._again(z):
            assert self.last is not None
            logp = self.last[1].clone()
        else:  # rows without masks, of which nobody reads what is said
            logp = torch.full((*z.shape, self.process.K), -math.log(self.process.K), dtype=torch.float64).to(z.device)
        if len(stale):
            said = self._ask(self.denoiser, self.cond, z[stale], t[stale], rows=stale)
            logp = logp.to(said).index_copy(0, stale, said)
        return logp

    def _again(self, z: Tensor) -> bool:
        """Whether what was said of this canvas before is known."""
        return self.last is not None and self.last[0].shape == z.shape

    def _stale(self, z: Tensor) -> Tensor | None:
        """The rows that must be asked for, (n,); None for all."""
        stale = torch.ones(len(z), dtype=torch.bool, device=z.device)
        if self.last is not None and self._again(z):
            stale = (self.last[0] != z).any(1)
        if self.final:
            stale &= (z == self.process.mask_id).any(1)
        if bool(stale.all()) or (bool(stale.any()) and not self._divisible):
            return None
        return stale.nonzero().squeeze(1)

    @property
    def _divisible(self) -> bool:
        """Whether what is told can be cut into rows; what we do not know may speak of them, and cannot."""
        return self.cond is None or isinstance(self.cond, Mapping)

    def _where(self, z: Tensor, t: Tensor, where: Tensor) -> Tensor:
        """log p (n, K) of the positions ``where``; only rows that have one are asked."""
        rows = where.any(1)
        if bool(rows.all()) or not self._divisible:
            return self._ask(self.denoiser, self.cond, z, t, where)
        chosen = rows.nonzero().squeeze(1)
        if not len(chosen):
            return torch.zeros(0, self.process.K, device=z.device)
        return self._ask(self.denoiser, self.cond, z[chosen], t[chosen], where[chosen], chosen)

    def _ask(
        self,
        denoiser: Denoiser,
        cond: Any,
        z: Tensor,
        t: Tensor,
        where: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """log p of the rows ``rows``, those of z (all if None), at ``where`` or everywhere; counted and shaped."""
        logp = self._heard(denoiser, cond, z, t, where, rows)
        if where is None:
            logp = to_convention(denoiser, self.process, logp, z, t)
        elif not absorbing(self.process):  # the positions as rows of length one
            at, times = z[where][:, None], per_position(t).expand(z.shape)[where]
            logp = to_convention(denoiser, self.process, logp[:, None], at, times)[:, 0]
        return self._shaped(logp, z, where, rows)

    def _heard(
        self, denoiser: Denoiser, cond: Any, z: Tensor, t: Tensor, where: Tensor | None, rows: Tensor | None
    ) -> Tensor:
        """What the denoiser itself says of the clean tokens, counted; of a shadow too if ``where`` is (n, 2 W)."""
        told = self._told(denoiser, cond, rows)
        if isinstance(denoiser, Window):
            rows = torch.arange(len(z), device=z.device) if rows is None else rows
            return clean(denoiser.ask(z, t, told, where, rows, self.cost), self.process)
        if where is not None and where.shape[1] > z.shape[1]:
            assert self.process.mask_id is not None
            free = ~(self.frozen if rows is None else self.frozen[rows])
            z, told = shadowed(z, free, self.process.mask_id, as_condition(told), slice(0, z.shape[1]))
        self.cost.call(denoiser, t, None if rows is None else rows.tolist(), z.shape[0] * z.shape[1])
        with Clock(self.cost, "model"):
            return clean(speak(denoiser, z, t, where, told), self.process)

    def _shaped(self, logp: Tensor, z: Tensor, where: Tensor | None, rows: Tensor | None) -> Tensor:
        """log p as the request wants it."""
        if self.law is None:
            return logp
        return (self.law if rows is None else self.law.rows(rows))(logp, z, where, self.process.mask_id)

    def _told(self, denoiser: Denoiser, cond: Any, rows: Tensor | None) -> Any:
        """What the denoiser is told of these rows, of all if None."""
        if denoiser.facts.given:
            cond = {**as_condition(cond), "given": self.frozen}
        if denoiser.facts.self_conditioned and not self.process.vectors:
            guess = self.guess
            if guess is None:
                guess = torch.zeros(*self.frozen.shape, self.process.K, device=self.frozen.device)
            cond = {**as_condition(cond), "guess": guess}
        return cond if rows is None or cond is None else of_rows(as_condition(cond), rows)

    def follow(self, rows: Tensor) -> None:
        """Row r goes on from row rows[r]: what is remembered of rows follows."""
        self.guess = None if self.guess is None else self.guess[rows]
        self.tokens = None if self.tokens is None else self.tokens[rows]
        self.last = None if self.last is None else (self.last[0][rows], self.last[1][rows])

    def _vectors(self, process: Gaussian, z: Tensor, t: Tensor) -> Tensor:
        """Clean vectors (B, L, D). One that conditions on itself is told what it said at the step before."""
        facts, cond = self.denoiser.facts, self.cond
        if facts.self_conditioned:
            cond = {**as_condition(cond), "guess": torch.zeros_like(z) if self.guess is None else self.guess.to(z)}
        self.cost.call(self.denoiser, t, None, z.shape[0] * z.shape[1])
        with Clock(self.cost, "model"):
            said = ask(self.denoiser, process, z, t, self._told(self.denoiser, cond, None))
        self.said = said.logp, None
        self.tokens = process.nearest(said.x) if facts.vectors else said.logp.argmax(-1)
        if facts.self_conditioned:
            self.guess = said.x.detach()  # who asks with gradients (plug-and-play control) leaves no graph behind
        if facts.vectors or (self.temperature, self.top_p, self.top_k) == (1.0, 1.0, 0):
            return said.x
        return process.mean(tempered(said.logp, self.temperature, self.top_p, self.top_k)).to(said.x)
