"""Samplers that take written tokens back: Psi, ReMDM and the correctors that are ReMDM with a sigma of their own.

All of them keep the marginals q_s: what a step takes back, it reveals so much more of elsewhere. Errors made early can
then be mended, at the price of more calls.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.errors import unknown
from redraft.processes import Categorical, Process, absorbing
from redraft.processes.base import log_prob_of, per_position
from redraft.randomness import categorical
from redraft.sampling.contract import Draw, Query, Tokens, misfit, over_tokens, revising


def alphas(process: Categorical, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha_t, alpha_s), (B, 1) float64."""
    return process.schedule(per_position(t))[0], process.schedule(per_position(s))[0]


def sigma_max(alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """min(1, (1 - alpha_s) / alpha_t), the largest share of tokens that a ReMDM step may take back."""
    return ((1 - alpha_s) / alpha_t.clamp_min(torch.finfo(alpha_t.dtype).tiny)).clamp_max(1.0)


# ---------------------------------------------------------------------------------------------------------------- psi

PSI_RULES = ("constant", "cap", "rescale")


def psi_kernel(process: Tokens, p0: Tensor, z: Tensor, t: Tensor, s: Tensor, kappa: Tensor) -> Tensor:
    """kappa posterior(p0, z; t, s) + (1 - kappa) [alpha_s p_full + b_s], p_full = posterior(p0, z; t, 0); (B, L, V).

    kappa (B, 1). The second term guesses the clean token and noises it afresh to s (Duo's chapter II, 2602.21185).
    """
    full = process.posterior(p0, z, t, torch.zeros_like(t))[..., : process.K]
    share = _column(kappa, p0)
    return share * process.posterior(p0, z, t, s) + (1 - share) * process.marginal(full, s)


@revising
def psi(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    rule: str = "rescale",
    eta: float = 0.02,
) -> Tensor:
    """Draw every position from ``psi_kernel``: part reverse step, part fresh noise on a guess (arXiv 2602.21185).

    ``rule`` gives kappa: ``constant`` is 1 - eta (eta=0 the pure posterior, which is ``ancestral``; eta=1 the pure
    predictor-corrector); ``cap`` and ``rescale`` are clip(1 - sigma / (1 - alpha_s), 0, 1) with ReMDM's sigma. On masks
    it is ReMDM with sigma = (1 - kappa)(1 - alpha_s). Keeps the marginals of any process, exact as steps grow if
    1 - kappa falls with them.

    Errors: ``ValueError`` for an unknown rule, an eta outside [0, 1], a process of vectors, and ``cap`` or ``rescale``
    for a process without one alpha.
    """
    if not over_tokens(process):
        raise misfit("psi", process, "a process over tokens")
    _check_share("eta", eta)
    if rule not in PSI_RULES:
        raise unknown("rule of psi", rule, PSI_RULES)
    if rule == "constant":
        kappa = torch.full((len(z), 1), 1 - eta, dtype=torch.float64, device=z.device)
    elif isinstance(process, Categorical):
        alpha_t, alpha_s = process.coefficients(t).alpha, process.coefficients(s).alpha
        sigma = sigma_rule(rule, eta, alpha_t, alpha_s)
        # at s = 0 both terms are the same, and kappa may be anything
        kappa = (1 - sigma / (1 - alpha_s).clamp_min(torch.finfo(alpha_s.dtype).tiny)).clamp(0.0, 1.0)
    else:
        raise misfit(f"psi:rule={rule}", process, "one alpha for all tokens", "psi:rule=constant")
    return categorical(psi_kernel(process, draw.probs(denoiser(z, t)), z, t, s, kappa), draw.generator)


# -------------------------------------------------------------------------------------------------------------- remdm


def remdm_kernel(process: Categorical, p0: Tensor, z: Tensor, t: Tensor, s: Tensor, sigma: Tensor) -> Tensor:
    """The law of z_s when a token is taken back with probability sigma, (B, L, V); sigma (B, 1 or L), clamped.

        z a token:  (1 - sigma) 1_z + sigma 1_m
        z = m:      [(alpha_s - (1 - sigma) alpha_t) p0 + (1 - alpha_s - sigma alpha_t) 1_m] / (1 - alpha_t)

    (ReMDM, arXiv 2503.00307.) One sigma for a position's token and mask keeps the marginals, whatever it is.
    """
    assert process.mask_id is not None
    alpha_t, alpha_s = alphas(process, t, s)
    sigma = torch.minimum(sigma, sigma_max(alpha_t, alpha_s))
    reveal = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
    stay = (1 - alpha_s - sigma * alpha_t) / (1 - alpha_t)
    assert bool((sigma >= 0).all() and (reveal >= -1e-12).all() and (stay >= -1e-12).all())
    is_mask = F.one_hot(torch.tensor(process.mask_id, device=z.device), process.V).to(p0)
    tokens = process.marginal(p0, torch.zeros_like(t))  # p0 over the V states
    from_mask = _column(reveal, p0) * tokens + _column(stay, p0) * is_mask
    from_token = _column(1 - sigma, p0) * F.one_hot(z, process.V).to(p0) + _column(sigma, p0) * is_mask
    return torch.where((z == process.mask_id)[..., None], from_mask, from_token)


ETAS = {"cap": 0.008, "rescale": 0.015, "conf": 1.0, "loop": 0.02}
"""ReMDM's strategies, each with the eta of the authors' scripts."""
LOOP = {"t_on": 0.55, "t_off": 0.05, "alpha_on": 0.9}


def sigma_rule(strategy: str, eta: float, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """sigma of ReMDM's ``cap``, min(eta, sigma_max), and ``rescale``, eta sigma_max."""
    largest = sigma_max(alpha_t, alpha_s)
    return largest.clamp_max(eta) if strategy == "cap" else eta * largest


def loop_time(process: Categorical, t: Tensor, t_on: float, t_off: float, alpha_on: float) -> Tensor:
    """The time of the process at which a looping run stands at t, of t's shape.

    alpha rises to ``alpha_on`` until t_on, stands still until t_off and rises to 1 after it; either rise is the
    schedule itself, drawn together in time and alpha.
    """
    rise = alpha_on * process.schedule(((t - t_on) / (1 - t_on)).clamp(0.0, 1.0))[0]
    end = alpha_on + (1 - alpha_on) * process.schedule((t / t_off).clamp(0.0, 1.0))[0]
    return process.schedule.inverse(torch.where(t > t_on, rise, end))


@revising
def remdm(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    strategy: str = "cap",
    eta: float | None = None,
    t_on: float | None = None,
    t_off: float | None = None,
    alpha_on: float | None = None,
) -> Tensor:
    """Ancestral sampling that masks written tokens again with probability sigma (ReMDM, arXiv 2503.00307).

    ``strategy``: ``cap``, sigma = min(eta, sigma_max); ``rescale``, eta sigma_max; ``conf``, eta sigma_max times the
    softmax over the written tokens of minus the probability each had when it was written, so that doubtful ones go
    first; ``loop``, sigma = eta between ``t_on`` and ``t_off`` while alpha stands at ``alpha_on``, plain before and
    after. ``eta`` is the authors' unless given: 0.008, 0.015, 1, 0.02. Marginals are kept, but for ``conf``, whose
    sigma depends on the state.

    Errors: ``ValueError`` for a process other than masked, an unknown strategy, an option of another one, a share
    outside [0, 1] and for times out of order.
    """
    if not absorbing(process):
        raise misfit("remdm", process, "a masked process", "psi")
    if strategy not in ETAS:
        raise unknown("strategy of remdm", strategy, ETAS)
    eta = ETAS[strategy] if eta is None else eta
    _check_share("eta", eta)
    given = {"t_on": t_on, "t_off": t_off, "alpha_on": alpha_on}
    given = {name: value for name, value in given.items() if value is not None}
    if strategy == "loop":
        phases = {**LOOP, **given}
        inside = _loop_inside(t, **phases)
        t, s = loop_time(process, t, **phases), loop_time(process, s, **phases)
        sigma = inside * eta
    elif given:
        raise ValueError(f"{', '.join(given)} of remdm: options of strategy=loop, not of {strategy!r}")
    elif strategy == "conf":
        sigma = eta * sigma_max(*alphas(process, t, s)) * _doubt(process, z, draw)
    else:
        sigma = sigma_rule(strategy, eta, *alphas(process, t, s))
    logp = denoiser(z, t)
    after = categorical(remdm_kernel(process, draw.probs(logp), z, t, s, sigma), draw.generator)
    if strategy == "conf":
        _remember(process, z, after, logp, draw)
    return after


def _loop_inside(t: Tensor, t_on: float, t_off: float, alpha_on: float) -> Tensor:
    """1.0 where t is in the phase in which alpha stands still, (B, 1)."""
    if not 0 < t_off < t_on < 1:
        raise ValueError(f"t_on={t_on}, t_off={t_off} of remdm: need 0 < t_off < t_on < 1")
    if not 0 < alpha_on < 1:
        raise ValueError(f"alpha_on={alpha_on} of remdm is outside (0, 1)")
    return per_position((t > t_off) & (t <= t_on)).double()


def _doubt(process: Categorical, z: Tensor, draw: Draw) -> Tensor:
    """softmax over the written tokens of a row of -psi, 0 at masks and given tokens, (B, L) float64.

    psi is the probability of a token when it was written; one that something else wrote (a callback) is not doubted, 1.
    """
    written = (z != process.mask_id) & ~draw.frozen
    psi = torch.ones(z.shape, dtype=torch.float64, device=z.device)
    if "written" in draw.memory:
        psi = torch.where(draw.memory["written"] == z, draw.memory["psi"], psi)
    weight = torch.where(written, torch.exp(-psi), 0.0)
    return weight / weight.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)


def _remember(process: Categorical, z: Tensor, after: Tensor, logp: Tensor, draw: Draw) -> None:
    """Keep the tokens written just now and their probabilities, float64 (bfloat16 would make ties)."""
    memory = draw.memory
    if "written" not in memory:
        memory["written"] = torch.full_like(z, -1)
        memory["psi"] = torch.ones(z.shape, dtype=torch.float64, device=z.device)
    new = (z == process.mask_id) & (after != process.mask_id)
    own = log_prob_of(after.clamp_max(process.K - 1), logp).double().exp()
    memory["written"] = torch.where(new, after, memory["written"])
    memory["psi"] = torch.where(new, own, memory["psi"])


# -------------------------------------------------------------------------------- correctors that are ReMDM's kernel


@revising
def forward_backward(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
    """ReMDM with sigma = (alpha_s - alpha_t) / alpha_t: twice the reverse rate, and the forward rate against it.

    The forward-backward corrector (Campbell et al. 2022, arXiv 2205.14987) in one step with its predictor.
    Clamped to sigma_max, which on an even linear grid only the first and last steps need.

    Errors: ``ValueError`` for a process other than masked.
    """
    return _corrected("forward_backward", process, denoiser, z, t, s, draw, torch.ones_like(t))


@revising
def dfm(
    process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw, *, beta: float = 10.0
) -> Tensor:
    """ReMDM with sigma = beta_t (alpha_s - alpha_t) / alpha_t, beta_t = beta t^(1/4) (1 - t)^(1/4), clamped.

    The corrector of discrete flow matching (Gat et al. 2024, arXiv 2407.15595), with ReMDM's schedule for it.

    Errors: ``ValueError`` for a process other than masked, and for a negative beta.
    """
    if beta < 0:
        raise ValueError(f"beta={beta} of dfm: pass 0 (ancestral) or more")
    return _corrected("dfm", process, denoiser, z, t, s, draw, beta * (t * (1 - t)) ** 0.25)


def _corrected(
    name: str, process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw, beta: Tensor
) -> Tensor:
    if not absorbing(process):
        raise misfit(name, process, "a masked process", "gibbs")
    sigma = corrector_sigma(process, t, s, beta)
    return categorical(remdm_kernel(process, draw.probs(denoiser(z, t)), z, t, s, sigma), draw.generator)


def corrector_sigma(process: Categorical, t: Tensor, s: Tensor, beta: Tensor) -> Tensor:
    """beta (alpha_s - alpha_t) / alpha_t, (B, 1); beta (B,). 1 at t = 1, where no token is written."""
    alpha_t, alpha_s = alphas(process, t, s)
    share = (alpha_s - alpha_t) / alpha_t.clamp_min(torch.finfo(alpha_t.dtype).tiny)
    return (per_position(beta) * share).clamp_max(1.0)


# -------------------------------------------------------------------------------------------------------------- parts


def _column(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like)[..., None]


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} is outside [0, 1]")
