"""What steers particles while the loop writes them: rewards of finished and unfinished texts, weights, who goes on.

The loop is ``sample``'s; ``Steering`` is its callback, and ``Corrected`` the sampler where one denoiser proposes and
another is meant. ``smc.steer`` puts them together.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.guidance.classifier_free import Beside, reverse_kernel
from redraft.guidance.particles import POTENTIALS, RESAMPLING, Particles, effective_size
from redraft.processes import Denoiser, Process, absorbing, only_masks
from redraft.randomness import categorical, generator, inverse_cdf, rand
from redraft.sampling.contract import tempered
from redraft.sampling.samplers import Draw, Query
from redraft.sampling.steps import Ancestors, Callback, Step

Reward = Callable[[Tensor], Any]
"""``reward(ids) -> r``: texts (n, L), given tokens and all, to n numbers; -inf for what must not be."""
Promise = Callable[[Tensor, Tensor], Any]
"""``promise(z, t) -> r``: canvases (n, L), or (n, L, D), at t (n,) to n numbers, what reward they lead to.

Best is (1 / lam) log E[exp(lam r(x_0)) | z]. -inf says that nothing can come of z.
"""
INTERMEDIATE = ("draws", "none")
PICK = ("weights", "best")


@dataclass(frozen=True)
class Plan:
    """The options of ``smc.steer``, which says what they mean."""

    particles: int
    lam: float
    potential: str
    intermediate: str | Promise
    draws: int
    every: int
    threshold: float
    resampling: str
    pick: str

    def __post_init__(self) -> None:
        for name in ("particles", "draws", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} of steer: pass 1 or more")
        if not 0 <= self.lam < math.inf:
            raise ValueError(f"lam={self.lam} of steer: pass 0 or more; for less of something reward its opposite")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} of steer: pass a share of the particles, 0 never, 1 always")
        names = {"potential": POTENTIALS, "resampling": RESAMPLING, "pick": PICK}
        for name, known in names.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if not callable(self.intermediate) and self.intermediate not in INTERMEDIATE:
            raise unknown("intermediate reward", self.intermediate, INTERMEDIATE)


def checked(found: Any, count: int, name: str) -> Tensor:
    """Rewards as (n,) float64 on the CPU. Errors: ``ValueError`` for nan, +inf and other shapes."""
    try:
        r = torch.as_tensor(found).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} returned a {type(found).__name__}: return a number for each text") from None
    if r.shape != (count,):
        raise ValueError(f"{name} returned shape {tuple(r.shape)} for {count} texts: return ({count},), a number each")
    wrong = r.isnan() | torch.isposinf(r)
    if bool(wrong.any()):
        raise ValueError(
            f"{name} returned {r[wrong][0].item()} for text {int(wrong.nonzero()[0])} of {count}: return finite "
            "numbers, or -inf for what must not be"
        )
    return r


@dataclass
class Rewarding:
    """r(x) of texts (n, L), (n,); copies are asked about once. ``asked`` counts what the reward has seen."""

    reward: Reward
    asked: int = 0

    def __call__(self, texts: Tensor) -> Tensor:
        distinct, which = texts.unique(dim=0, return_inverse=True)
        self.asked += len(distinct)
        return checked(self.reward(distinct), len(distinct), "the reward")[which.cpu()]


class Corrected:
    """The ancestral sampler of a proposal pi, and of the step it took log p / pi, ``log_ratio`` (B,), p by ``base``."""

    def __init__(self, base: Denoiser, cond: Any) -> None:
        self.base, self.cond = base, cond
        self.log_ratio = torch.zeros(0)

    def __call__(self, process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
        kernel = reverse_kernel(process, "steer with a base")
        assert isinstance(denoiser, Beside)
        ask = denoiser.beside(self.base, self.cond)
        proposed = kernel.posterior(draw.probs(denoiser(z, t)), z, t, s)
        # a clean token given amid noise may be impossible there, and its kernel no number: it is not drawn
        found = torch.where(draw.frozen, z, categorical(proposed, draw.generator))
        self.log_ratio = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        moved = torch.ones(len(z), dtype=torch.bool, device=z.device)
        if absorbing(process) and (self.cond is None or isinstance(self.cond, Mapping)):
            moved = (found != z).any(1)  # under masks what stays has one probability by any denoiser: nothing to ask
        rows = moved.nonzero().squeeze(1)
        if not len(rows):
            return found
        said = ask(z[rows], t[rows], rows if len(rows) < len(z) else None)
        meant = kernel.posterior(draw.probs(said), z[rows], t[rows], s[rows])
        at = found[rows][..., None]
        log_ratio = (meant.gather(-1, at).log() - proposed[rows].gather(-1, at).log()).squeeze(-1)
        self.log_ratio[rows] = log_ratio.masked_fill(draw.frozen[rows], 0.0).sum(1)
        return found


class Steering:
    """The callback: weighs particles after each step, and names who goes on. ``shaping``: temperature, top_p, top_k."""

    def __init__(
        self,
        plan: Plan,
        process: Process,
        reward: Reward,
        seeds: Sequence[int],
        shaping: tuple[float, float, int],
        corrected: Corrected | None,
        watch: Callback | None,
    ) -> None:
        self.plan, self.process, self.reward, self.shaping = plan, process, Rewarding(reward), shaping
        self.corrected, self.watch = corrected, watch
        self.particles = Particles.fresh(len(seeds), plan.particles, plan.potential)
        self.ess: list[list[float]] = [[] for _ in seeds]
        # draws of their own: those of the rows are the sampler's, and one particle is to be what it writes alone
        self.own = [generator(seed, 0, 0) for seed in seeds]
        self.looks = [generator(seed, 0, 1, k) for seed in seeds for k in range(plan.particles)]

    def __call__(self, step: Step) -> Ancestors | None:
        size, plan = self.plan.particles, self.plan
        if self.watch is not None and self.watch(step) is not None:
            raise ValueError(
                "the callback of steer changed the run: it may only look, for weights are of what was drawn"
            )
        texts = torch.tensor(step.rows[::size]) // size
        if self.corrected is not None:
            self.particles.log_w[texts] += self.corrected.log_ratio.cpu().view(-1, size)
        assert step.over is not None
        left = ~step.over.cpu().view(-1, size).all(1)  # alone, the others' run would be over
        if step.index == step.steps - 1 or (step.index + 1) % plan.every or not bool(left.any()):
            return None
        if plan.intermediate != "none":
            v, seen = self._promised(step, left.repeat_interleave(size).to(step.z.device))
            self.particles.weigh(texts[left], v.view(-1, size)[left], seen.view(-1, size)[left])
        self._check(texts[left], f"after step {step.index + 1} of {step.steps}")
        return self._resampled(texts, left, step.z.device)

    def note(self, texts: Tensor) -> Tensor:
        """The effective number of particles of each of the ``texts`` (m,), put on record."""
        found = effective_size(self.particles.log_w[texts])
        for text, one in zip(texts.tolist(), found.tolist(), strict=True):
            self.ess[text].append(one)
        return found

    def _resampled(self, texts: Tensor, left: Tensor, device: torch.device) -> Ancestors | None:
        """Who goes on in place of whom; None if all do as themselves."""
        size, threshold = self.plan.particles, self.plan.threshold
        found = torch.full((len(texts),), math.inf, dtype=torch.float64)
        found[left] = self.note(texts[left])
        poor = left & ((found < threshold * size) | (threshold == 1))
        if size == 1 or not bool(poor.any()):
            return None
        chosen = texts[poor]
        weights = torch.softmax(self.particles.log_w[chosen], -1)
        ancestors = RESAMPLING[self.plan.resampling](weights, [self.own[text] for text in chosen.tolist()])
        self.particles.resample(chosen, ancestors)
        rows = torch.arange(len(texts) * size).view(-1, size)
        rows[poor] = rows[poor][:, :1] + ancestors
        return Ancestors(rows.flatten().to(device))

    def _check(self, texts: Tensor, when: str) -> None:
        lost = self.particles.lost(texts)
        if len(lost):
            raise ValueError(
                f"all {self.plan.particles} particles of text {int(lost[0])} have weight 0 {when}: none of their texts "
                "is wanted; take more particles, or a reward that is finite for more texts"
            )

    def _tilted(self, r: Tensor) -> Tensor:
        """lam r, and -inf where r is, also at lam = 0."""
        return torch.where(torch.isneginf(r), r, self.plan.lam * r)

    def finish(self, tokens: Tensor, widths: Sequence[int]) -> Tensor:
        """r (n, K) of the texts ``tokens`` (n K, L), of which text i is ``widths[i]`` long; the weights know them."""
        size = self.plan.particles
        r = torch.zeros(len(tokens), dtype=torch.float64)
        each = torch.tensor(widths).repeat_interleave(size)
        for width in sorted(set(widths)):
            r[each == width] = self.reward(tokens[(each == width).to(tokens.device), :width])
        self.particles.finish(self._tilted(r).view(-1, size))
        everyone = torch.arange(len(widths))
        self._check(everyone, "at the end")
        self.note(everyone)
        return r.view(-1, size)

    # ------------------------------------------------------------------------------------------- unfinished texts

    def _promised(self, step: Step, rows: Tensor) -> tuple[Tensor, Tensor]:
        """lam r_k of the rows marked (B,), and of which anything is known; both (B,)."""
        v = torch.zeros(len(rows), dtype=torch.float64)
        if callable(self.plan.intermediate):
            s = torch.full((int(rows.sum()),), step.s, dtype=torch.float64, device=step.z.device)
            found = self.plan.intermediate(step.z[rows], s)
            v[rows.cpu()] = self._tilted(checked(found, len(s), "the intermediate reward"))
            return v, torch.ones_like(v, dtype=torch.bool)
        texts, told = self._drawn(step, rows)
        drawn = torch.full(texts.shape[:2], -torch.inf, dtype=torch.float64)
        asked = (rows & told).cpu()
        if bool(asked.any()):
            drawn[asked] = self._tilted(self.reward(texts[rows & told].flatten(0, 1))).view(-1, self.plan.draws)
        v = torch.logsumexp(drawn, 1) - math.log(self.plan.draws)
        finite = torch.where(torch.isneginf(drawn), torch.inf, drawn).view(-1, self.plan.particles * self.plan.draws)
        least = finite.amin(1).repeat_interleave(self.plan.particles)
        # a particle is not given up for draws that failed: half a draw is taken to have done as badly as any
        v = torch.where(torch.isneginf(v), least - math.log(2 * self.plan.draws), v)
        return v, told.cpu() & torch.isfinite(v)

    def _drawn(self, step: Step, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Finished texts (B, draws, L) of the rows marked (B,), and of which rows enough was said, (B,)."""
        where, logp = step.law
        free = ~step.frozen & rows[:, None]
        if only_masks(self.process):
            free &= step.z == self.process.mask_id
        unsaid, silent = free & ~where, ~where.any(1)
        if bool((unsaid.any(1) & ~silent).any()):
            raise ValueError(
                "intermediate='draws' with a sampler that asks only about what it writes, and knows nothing of the "
                "rest: pass a function of (z, t), or 'none'"
            )
        told = ~unsaid.any(1)
        free &= told[:, None]
        p = self._law(step, logp, free[where])
        u = rand((*step.tokens.shape, self.plan.draws), [self.looks[row] for row in step.rows], step.z.device)
        texts = step.tokens[..., None].repeat(1, 1, self.plan.draws)
        texts[free] = inverse_cdf(p, u[free])
        return texts.movedim(-1, 1), told

    def _law(self, step: Step, logp: Tensor, wanted: Tensor) -> Tensor:
        """p(x_0) of the positions ``wanted``, of those ``logp`` (n, K) speaks of, as the sampler draws from it; given
        what stands at each now, where noise reaches tokens."""
        if self.process.vectors or only_masks(self.process):
            return tempered(logp[wanted], *self.shaping)
        s = torch.full((len(step.z),), step.s, dtype=torch.float64, device=step.z.device)
        cavity = tempered(logp, *self.shaping).log().view(*step.z.shape, -1)
        return self.process.to_full(cavity, step.z, s).flatten(0, 1)[wanted].exp()
