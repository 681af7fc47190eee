"""Correctors: moves at one noise level that leave q_s as it is, or nearly so, and mend what the predictor did wrong."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.processes import Denoiser, Process, absorbing, only_masks
from redraft.processes.base import device_of, log_prob_of, to_convention
from redraft.processes.per_token import PerToken
from redraft.randomness import categorical, generator, row_seeds
from redraft.sampling.contract import Draw, Query, Tokens, clean, misfit, over_tokens, revising, tempered
from redraft.sampling.kernels import ancestral


def _corrigible(sampler: str, process: Process) -> Tokens:
    """The process, if p(x_i | z without i) can be asked of its denoisers; ``ValueError`` otherwise."""
    if not over_tokens(process) or isinstance(process, PerToken):
        raise misfit(sampler, process, "a process over tokens whose masks say nothing of what they hide")
    return process


def _predicted(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
    """z at s by an ancestral step, given tokens put back: the corrector's calls must see them."""
    return torch.where(draw.frozen, z, ancestral(process, denoiser, z, t, s, draw))


def _alone(process: Process, denoiser: Query, z: Tensor, s: Tensor, site: Tensor, frozen: Tensor) -> Tensor:
    """log p(x_i | z without i) at one position a row, ``site`` (B, 1); (B, 1, K).

    A masked denoiser is trained at masks only, so the position is masked before it is asked; others give the cavity.
    """
    asked = torch.where(frozen, z, z.scatter(1, site, process.mask_id or 0)) if absorbing(process) else z
    logp = denoiser(asked, s)
    return logp.gather(1, site[..., None].expand(-1, -1, logp.shape[-1]))


@revising
def gibbs(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw, *, k: int = 1) -> Tensor:
    """An ancestral step, then ``k`` single-site redraws at s: a free position drawn evenly, its state drawn from

        q_s(z_i | z without i) = alpha_s p(x_i | z without i) + b_s

    Random-scan Gibbs sampling (Campbell et al. 2022, arXiv 2205.14987, use it in continuous time): exact conditionals
    leave q_s as it is, so only the predictor's error remains, and less of it. A call for every redraw beside the
    predictor's. The last step, to s = 0, is not corrected: a clean canvas tells of no cavity.

    Errors: ``ValueError`` for k below 1, per-token masking (whose masks tell of tokens) and a process of vectors.
    """
    tokens = _corrigible("gibbs", process)
    if k < 1:
        raise ValueError(f"k={k} of gibbs: redraw at least one position, or use 'ancestral'")
    z = _predicted(process, denoiser, z, t, s, draw)
    free = (~draw.frozen).double()[:, None]
    for _ in range(k if bool((s > 0).any()) else 0):
        site = categorical(free, draw.generator)
        p = draw.probs(_alone(process, denoiser, z, s, site, draw.frozen))
        state = categorical(tokens.marginal(p, s), draw.generator)
        z = torch.where(draw.frozen, z, z.scatter(1, site, state))
    return z


def _confidence(logp: Tensor, z: Tensor) -> Tensor:
    return log_prob_of(z.clamp_max(logp.shape[-1] - 1), logp)


def _margin(logp: Tensor, z: Tensor) -> Tensor:
    best = logp.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


SCORES = {"confidence": _confidence, "margin": _margin}
"""How sure the model is of a position, given the others: log p of its token, or the best token's lead in log p."""


@revising
def informed(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    k: int = 4,
    tau: float = 1.0,
    score: str = "confidence",
) -> Tensor:
    """An ancestral step, then redraw the ``k`` written tokens of lowest score - tau Gumbel (Zhao et al., 2407.21243).

    ``score``: ``confidence``, log p of the token given the others; ``margin``, the best token's lead over the second.
    The tokens stay written: they are drawn from the conditional of z_i given the others and that it is none of [MASK].
    Choosing by the state does not leave q_s as it is: redrawing the less likely of two tokens, tau = 1, moves a toy law
    by 0.0215; tau = 0 by more.

    The score must not know the token it judges. Uniform and hybrid denoisers say p(x_i | z without i) in one call; a
    masked one must have every written position masked in turn, as many calls, so that a step costs up to L + 1. The
    last step is not corrected (see ``gibbs``).

    Errors: ``ValueError`` for k below 1, a negative tau, an unknown score, and processes that ``gibbs`` refuses.
    """
    tokens = _corrigible("informed", process)
    if k < 1 or tau < 0:
        raise ValueError(f"k={k}, tau={tau} of informed: need k >= 1, tau >= 0")
    if score not in SCORES:
        raise unknown("score of informed", score, SCORES)
    z = _predicted(process, denoiser, z, t, s, draw)
    if not bool((s > 0).any()):
        return z
    written = ~draw.frozen if process.mask_id is None else ~draw.frozen & (z != process.mask_id)
    logp = _cavities(process, denoiser, z, s, draw.frozen)
    chosen = lowest(SCORES[score](logp, z), written, k, tau, draw)
    states = tokens.marginal(draw.probs(logp), s)
    if process.mask_id is not None:
        states[..., process.mask_id] = 0.0
    return torch.where(chosen, categorical(states, draw.generator), z)


def _cavities(process: Process, denoiser: Query, z: Tensor, s: Tensor, frozen: Tensor) -> Tensor:
    """log p(x_i | z without i) at the free positions that are written, (B, L, K); elsewhere anything."""
    if not absorbing(process):
        return denoiser(z, s)
    out = torch.zeros(*z.shape, process.K, dtype=torch.float64, device=z.device)
    assert process.mask_id is not None
    written = ~frozen & (z != process.mask_id)
    for i in written.any(0).nonzero().flatten().tolist():
        site = torch.zeros_like(written)
        site[:, i] = written[:, i]  # rows in which it is a mask are not asked
        out[site] = denoiser(z.masked_fill(site, process.mask_id), s, site).to(out)
    return out


def lowest(score: Tensor, among: Tensor, k: int, tau: float, draw: Draw) -> Tensor:
    """The k positions of lowest score - tau Gumbel ``among`` those marked, fewer where there are fewer; (B, L) bool.

    Drawn one after another with weights exp(-score / tau), which is the same law (Gumbel top-k, Plackett-Luce).
    """
    left, chosen = among, torch.zeros_like(among)
    for _ in range(min(k, score.shape[1])):
        # finite: a token that the model rules out goes first, and is no infinity to subtract from another
        weights = tempered((-score.double()).clamp(-1e99, 1e99).masked_fill(~left, -1e100), tau)
        pick = torch.nn.functional.one_hot(categorical(weights[:, None], draw.generator)[:, 0], score.shape[1]).bool()
        chosen, left = chosen | (pick & left), left & ~pick
    return chosen


@torch.no_grad()
def self_correct(
    process: Process,
    denoiser: Denoiser,
    tokens: Tensor,
    *,
    frozen: Tensor | None = None,
    t0: float = 0.01,
    temperature: float = 0.1,
    patience: int = 32,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    cond: Any = None,
) -> tuple[Tensor, int]:
    """Mend finished texts, one token at a time, until the denoiser finds no more to mend (GIDD, arXiv 2503.04482).

    Tokens (B, L) are read as noisy at ``t0``; candidates are drawn from the denoiser's output, the cavity posterior, at
    ``temperature``, and of those that differ the one of the highest probability is written. A row ends after
    ``patience`` rounds in which its self-accuracy, the share of tokens that are the denoiser's first choice, did not
    rise, and is given back as it was when that was highest: at most patience (L + 1) + 1 rounds. ``frozen`` (B, L)
    tokens stay. Row r draws from ``seeds[r]``, or from (seed, r).

    Returns the tokens and the number of denoiser calls. Errors: ``ValueError`` for a masked process or one of vectors,
    whose denoisers never learnt to doubt a token, for other shapes, for t0 outside (0, 1) and for a patience below 1.
    """
    if not over_tokens(process) or only_masks(process):
        raise ValueError(
            f"self_correct needs uniform or hybrid noise; a {process.name} denoiser never learnt to doubt a token: "
            "revise while writing, with sampler='remdm'"
        )
    if not 0 < t0 < 1 or patience < 1:
        raise ValueError(f"t0={t0}, patience={patience} of self_correct: need 0 < t0 < 1, patience >= 1")
    if tokens.ndim != 2 or (frozen is not None and frozen.shape != tokens.shape):
        shape = None if frozen is None else tuple(frozen.shape)
        raise ValueError(
            f"tokens {tuple(tokens.shape)}, frozen {shape} of self_correct: pass (B, L) ids and a bool alike"
        )
    generators = [generator(one) for one in row_seeds(seed, seeds, len(tokens))]
    tokens = tokens.to(device_of(denoiser))
    frozen = torch.zeros_like(tokens, dtype=torch.bool) if frozen is None else frozen.to(tokens.device)
    t = torch.full((len(tokens),), t0, dtype=torch.float64, device=tokens.device)
    z, best, record = tokens, tokens, torch.full_like(t, -1.0)
    waited, nfe = torch.zeros_like(t), 0
    while bool((waited < patience).any()):
        logp, nfe = to_convention(denoiser, process, clean(denoiser(z, t, cond), process), z, t), nfe + 1
        accuracy = (logp.argmax(-1) == z).double().mean(1)
        better = (accuracy > record) & (waited < patience)
        best, record = torch.where(better[:, None], z, best), torch.where(better, accuracy, record)
        waited = torch.where(better, 0.0, waited + 1)
        candidate = categorical(tempered(logp, temperature), generators)
        doubt = (candidate != z) & ~frozen
        sure = log_prob_of(candidate, logp).masked_fill(~doubt, -torch.inf).argmax(1, keepdim=True)
        first = torch.zeros_like(doubt).scatter(1, sure, True) & doubt
        z = torch.where(first, candidate, z)
    return best, nfe
