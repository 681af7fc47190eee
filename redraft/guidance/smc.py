"""Steering by sequential Monte Carlo: texts of p(x) exp(lam r(x)) for any reward r, and how likely they were.

K particles a text are written side by side by the one loop. After each step they are weighed by what their texts
promise, and now and then those of little weight give way to copies of others (Feynman-Kac steering, Singhal et al.
2025, arXiv 2501.06848; twisted SMC). As K grows the law of what is drawn tends to the target for any reward, sampler
and potential; the estimate of E_p[exp(lam r)] is unbiased at every K. p is the law of *the sampler with these options*:
of a rule such as ``low_confidence`` what that rule writes, not the model's own.

With ``base`` the denoiser is a proposal, a guided one say, and weights hold p_base / p_proposal of each step: guidance
proposes, SMC corrects, and p is the law of ``base``, whatever guided it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor

from redraft.guidance.classifier_free import reverse_kernel
from redraft.guidance.steering import Corrected, Plan, Promise, Reward, Steering
from redraft.processes import Denoiser, Process
from redraft.processes.base import as_condition, of_rows
from redraft.randomness import Device, categorical, derive, row_seeds
from redraft.sampling.canvas import layout
from redraft.sampling.loop import sample
from redraft.sampling.request import Writing
from redraft.sampling.samplers import ancestral, get
from redraft.sampling.steps import Samples


@dataclass(frozen=True)
class Population:
    """What ``steer`` returns of n texts with K particles each.

    ``samples``: a text each; ``particles``: all of them, text i's in rows i K to (i + 1) K - 1. ``weights`` (n, K) sum
    to 1 over a text's particles, ``rewards`` (n, K) are r of each, ``chosen`` (n,) says which is in ``samples``.
    ``log_evidence`` (n,), nats: exp of it is an unbiased estimate of E_p[exp(lam r)], if a text that is refused for
    having lost all its particles counts as 0. ``ess``: of each text, the
    effective number of particles 1 / sum w^2 whenever they were weighed, the last time at the end. ``rewarded``: how
    many texts the reward was asked about. The cost of ``samples`` is that of all particles.
    """

    samples: Samples
    particles: Samples
    weights: Tensor
    rewards: Tensor
    chosen: Tensor
    log_evidence: Tensor
    ess: list[list[float]]
    rewarded: int

    @property
    def tokens(self) -> Tensor:
        """The texts, (n, L) ids."""
        return self.samples.tokens


def steer(
    process: Process,
    denoiser: Denoiser,
    reward: Reward,
    *,
    particles: int = 8,
    lam: float = 1.0,
    potential: str = "difference",
    intermediate: str | Promise = "draws",
    draws: int = 4,
    every: int = 1,
    threshold: float = 0.5,
    resampling: str = "systematic",
    base: Denoiser | None = None,
    pick: str = "weights",
    length: int | Sequence[int] | None = None,
    num: int = 1,
    prompt: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
    canvas: Tensor | Sequence[Tensor] | None = None,
    frozen: Tensor | Sequence[Tensor] | None = None,
    strength: float | None = None,
    given: str | None = None,
    resample: int = 0,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    cond: Any = None,
    device: Device = None,
    **options: Unpack[Writing],
) -> Population:
    """Draw ``num`` texts from p(x) exp(lam r(x)) / Z, each from ``particles`` that ``sample`` writes side by side.

    ``reward``: see ``Reward``; it is asked once about each distinct text, and need not be differentiable. ``lam`` from
    0, where only what is -inf counts. ``potential``: ``difference``, ``max``, ``add`` or ``rt``
    (``particles.POTENTIALS``): what a weight is multiplied by every ``every`` steps; the last one makes the product
    exp(lam r(x_0)) on every path. All are exact as particles grow in number, and differ in what they favour on the way.

    ``intermediate``: the reward r_k of an unfinished text. A function is a ``Promise``. ``draws`` completes the text so
    many times from what the denoiser last said, each position on its own, and takes (1 / lam) log mean exp(lam r); no
    call is spent on it, and a rule that asks only about what it writes leaves nothing to draw from. Where no draw has a
    finite reward, half a draw is taken to have the group's least. ``none`` waits for the end: importance sampling.

    Particles are resampled (``resampling``: ``systematic`` or ``multinomial``) when the effective number of them falls
    below ``threshold`` times K: 0 never, 1 always; weights add up until then.

    ``base``: the denoiser whose law is meant where ``denoiser``, guided say, only proposes; for ``ancestral`` sampling
    among ids. ``denoiser`` must give mass to all that ``base`` does; temperature and ``banned`` hold for both.
    ``base`` is asked about the same canvases and counted, under masks only about rows that a step has changed.

    ``pick``: the text returned is drawn by the final ``weights``; ``best``, of highest reward, seeks modes and is a
    draw from no law. At K particles the law of a drawn text is off the target by order 1 / K; that of one particle is
    p itself, bit for bit ``sample``'s.

    The other options are those of ``sample``. ``cond`` holds a row for each text. ``callback`` may look at all rows,
    a text's K after one another, and change nothing. Text i draws from ``seeds[i]``, or (seed, i), alone: no group of
    particles depends on another.

    Errors: ``ValueError`` for options out of range, unknown names, a reward that is nan, +inf or of another shape, a
    text all of whose particles have weight 0, by its number and the step, texts written in blocks, and those of
    ``sample``.
    """
    plan = Plan(particles, lam, potential, intermediate, draws, every, threshold, resampling, pick)
    watch, corrected = options.pop("callback", None), None
    if options.get("block") is not None or denoiser.facts.attention == "block":
        raise ValueError("steer of texts written in blocks, whose particles cannot change places: write them whole")
    ids, known = layout(process, length, num if seeds is None else len(seeds), prompt, canvas, frozen, strength)
    seeds = row_seeds(seed, seeds, len(ids))
    cond = _of_particles(cond, len(ids), particles)
    if base is not None:
        _check_base(process, denoiser, options)
        options["sampler"] = corrected = Corrected(base, cond)
    steering = Steering(plan, process, reward, seeds, _shaping(options), corrected, watch)
    options["callback"] = steering
    found = sample(
        process,
        denoiser,
        canvas=[row for row in ids for _ in range(particles)],
        frozen=[row for row in known for _ in range(particles)],
        strength=strength,
        given=given,
        resample=resample,
        seeds=[derive(one, k) if k else one for one in seeds for k in range(particles)],
        cond=cond,
        device=device,
        **options,
    )
    return _picked(found, steering, seeds, [len(row) for row in ids])


def _check_base(process: Process, denoiser: Denoiser, options: Writing) -> None:
    """Errors: ``ValueError`` where the steps of a proposal cannot be weighed against those of a base."""
    reverse_kernel(process, "steer with a base")
    sampler = options.get("sampler") or ancestral
    if get(sampler) is not ancestral or denoiser.facts.attention == "causal":
        raise ValueError(
            f"sampler={options.get('sampler')!r} of a denoiser of {denoiser.facts.attention} attention, with a base: "
            "only steps of 'ancestral' can be weighed against it; leave base out"
        )
    temperature, top_p, top_k = _shaping(options)
    if temperature == 0 or top_p < 1 or top_k:
        raise ValueError(
            f"temperature={temperature}, top_p={top_p}, top_k={top_k} with a base: no weight brings back what is cut "
            "from a proposal; take a temperature above 0, and leave the others out"
        )


def _shaping(options: Writing) -> tuple[float, float, int]:
    return options.get("temperature", 1.0), options.get("top_p", 1.0), options.get("top_k", 0)


def _of_particles(cond: Any, texts: int, particles: int) -> Any:
    """What each text is told, told to each of its particles."""
    if not isinstance(cond, Mapping):
        return cond
    return of_rows(as_condition(cond), torch.arange(texts).repeat_interleave(particles))


def _picked(found: Samples, steering: Steering, seeds: list[int], widths: list[int]) -> Population:
    """One text of each group, and all that is known of the groups."""
    size, texts = steering.plan.particles, len(seeds)
    rewards = steering.finish(found.tokens, widths)
    weights = torch.softmax(steering.particles.log_w, -1)
    if steering.plan.pick == "best":
        chosen = rewards.masked_fill(weights == 0, -torch.inf).argmax(1)
    else:
        chosen = categorical(weights[:, None], steering.own).squeeze(1)
    rows = (torch.arange(texts) * size + chosen).to(found.tokens.device)
    forwards = torch.tensor(found.cost.of_rows).view(texts, size).sum(1).tolist()
    samples = replace(found.rows(rows), seeds=seeds, cost=replace(found.cost, of_rows=forwards))
    log_evidence, asked = steering.particles.log_evidence, steering.reward.asked
    return Population(samples, found, weights, rewards, chosen, log_evidence, steering.ess, asked)
