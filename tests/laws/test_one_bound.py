"""One bound: every objective whose value or bound is the NELBO gives the same number for the same (x0, z, t, logits).

Random logits, not exact ones: the agreement is that of formulas, 1e-10 in float64.
"""

import math

import pytest
import torch

from redraft import objectives, processes
from redraft.models.heads import to_score

from .prescribed import Says, prescribed, random_law

K, L = 5, 3
SHARING = ("nelbo", "mdlm", "md4", "radd", "sedd", "udlm", "duo", "gidd", "bd3lm", "genmd4", "diffusionbert", "d3pm")
U = torch.tensor([0.04, 0.21, 0.5, 0.77, 0.93, 0.995], dtype=torch.float64)
X0 = torch.arange(len(U) * L).reshape(-1, L) * 7 % K
LOGP = random_law(len(U), L, K)


def ones(process):
    """Rates of each token's own that are all the same: linear masking again."""
    return {
        "genmd4": processes.learned(torch.full((K,), math.log(math.expm1(1.0)), dtype=torch.float64)),
        "diffusionbert": processes.spindle(torch.zeros(K, dtype=torch.float64)),
    }.get(process)


def draw(process):
    """z of the process at the times of U, so that every kind of position occurs; t; what the draw weighs."""
    t, weight = process.times(U)
    return process.corrupt(X0, t, torch.Generator().manual_seed(1)), t, weight[:, None]


# objective, its process, its options, what the denoiser declares
CASES = {
    "nelbo, masked": ("nelbo", processes.masked(K), {}, {}),
    "mdlm": ("mdlm", processes.masked(K), {}, {}),
    "md4": ("md4", processes.masked(K, schedule="cosine"), {}, {}),
    "radd t_dse": ("radd", processes.masked(K, schedule="cosine"), {"variant": "t_dse"}, {}),
    "radd lambda_dce": ("radd", processes.masked(K), {"variant": "lambda_dce"}, {}),
    "sedd, masked": ("sedd", processes.masked(K, schedule="cosine"), {}, {}),
    "sedd, masked, from scores": ("sedd", processes.masked(K), {}, {"scores": True}),
    "bd3lm of one block": ("bd3lm", processes.masked(K), {}, {"attention": "block", "block": L}),
    "genmd4 of equal rates": ("genmd4", processes.masked(K), {}, {}),
    "diffusionbert of equal rates": ("diffusionbert", processes.masked(K), {"auxiliary": 0.0}, {}),
    "nelbo, uniform": ("nelbo", processes.uniform(K), {}, {}),
    "udlm": ("udlm", processes.uniform(K, schedule="cosine"), {}, {}),
    "duo after its curriculum": ("duo", processes.uniform(K), {}, {}),
    "sedd, uniform": ("sedd", processes.uniform(K), {}, {}),
    "sedd, uniform, from scores": ("sedd", processes.uniform(K, schedule="cosine"), {}, {"scores": True}),
    "gidd": ("gidd", processes.hybrid(K), {"weighting": "nelbo"}, {}),
    "sedd, hybrid": ("sedd", processes.hybrid(K), {}, {}),
}


def path_kl(process, logp, z, t):
    """The reference: KL between the rates of the truth and of p, from ``marginal`` and ``jump`` alone (T0)."""
    truth = torch.nn.functional.one_hot(X0, K).double()
    rates = []
    for p0 in (truth, logp.exp()):
        q = process.marginal(p0, t)
        at_z = q.gather(-1, z[..., None])
        rates.append(process.jump(z, t)[..., None] * q / torch.where(at_z > 0, at_z, 1.0))
    true, model = rates
    there = true > 0
    ratio = torch.where(there, true, 1.0) / torch.where(there, model, 1.0)
    terms = model - true + torch.special.xlogy(true, ratio)
    return terms.scatter(-1, z[..., None], 0.0).sum(-1)


def test_every_name_is_there():
    assert set(SHARING) <= set(objectives.OBJECTIVES)
    assert {case[0] for case in CASES.values()} | {"d3pm"} == set(SHARING)


@pytest.mark.parametrize("case", CASES)
def test_t0_objectives_that_share_the_bound_agree(case):
    """T0: value, bound and gradient in the logits of each are those of weight * path KL of the same draw; 1e-10."""
    name, process, options, facts = CASES[case]
    z, t, weight = draw(process)
    logits = LOGP.clone().requires_grad_()
    logp = logits.log_softmax(-1)
    said = to_score(logp, z, t, process) if facts.get("scores") else logp
    objective = objectives.at(objectives.get(name, **options), 1.0)
    acted = prescribed(ones(name) or process, z)
    loss = objective(Says(said, **facts), acted, {"ids": X0}, U)
    expected = weight * path_kl(process, logp, z, t) + (ones(name) or process).prior_kl(X0)
    torch.testing.assert_close(loss.value, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss.bound, expected.detach(), rtol=1e-10, atol=1e-10)
    found, slope = (torch.autograd.grad(one.sum(), logits, retain_graph=True)[0] for one in (loss.value, expected))
    torch.testing.assert_close(found, slope, rtol=1e-9, atol=1e-10)
    assert (expected > 1e-3).sum() >= 5, "a comparison of zeros says nothing"


@pytest.mark.parametrize("name", ["udlm", "duo", "sedd"])
def test_t0c_uniform_objectives_are_the_closed_form(name):
    """T0c: alpha' / (K alpha) [K / y_z - K / p_z - sum_j y_j / y_z log(p_z y_j / (p_j y_z))] (4.3), 1e-10."""
    process = processes.uniform(K, schedule="cosine")
    z, t, weight = draw(process)
    alpha, derivative = (one[:, None] for one in process.schedule(t))
    truth = torch.nn.functional.one_hot(X0, K).double()
    y, p = (K * alpha[..., None] * one + 1 - alpha[..., None] for one in (truth, LOGP.exp()))
    y_z, p_z = (one.gather(-1, z[..., None]) for one in (y, p))
    inner = (y / y_z * torch.log(p_z * y / (p * y_z))).sum(-1)
    expected = weight * derivative / (K * alpha) * (K / y_z[..., 0] - K / p_z[..., 0] - inner)
    objective = objectives.at(objectives.get(name), 1.0)
    loss = objective(Says(LOGP), prescribed(process, z), {"ids": X0}, U)
    torch.testing.assert_close(loss.value, expected, rtol=1e-10, atol=1e-10)


def test_t4_d3pm_is_it_for_masks_at_any_number_of_steps():
    """Linear masking: T KL of a step is the integrand itself, for every T; 1e-10."""
    for steps in (1, 4, 100):
        process = processes.masked(K, steps=steps)
        z, t, _ = draw(process)
        loss = objectives.get("d3pm")(Says(LOGP), prescribed(process, z), {"ids": X0}, U)
        expected = processes.masked(K).nelbo(LOGP, X0, z, t)
        torch.testing.assert_close(loss.bound, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["uniform", "hybrid"])
def test_d3pm_tends_to_it_with_steps(kind):
    """T -> infinity: the distance from the integrand halves as T doubles."""
    make = getattr(processes, kind)
    grid = torch.tensor([5, 21, 50, 77, 93, 99], dtype=torch.float64) / 100  # times of every chain below
    z = make(K).corrupt(X0, grid, torch.Generator().manual_seed(1))
    expected = make(K).nelbo(LOGP, X0, z, grid)
    apart = []
    for steps in (10_000, 20_000, 40_000):
        process = make(K, steps=steps)
        loss = objectives.get("d3pm")(Says(LOGP), prescribed(process, z), {"ids": X0}, grid - 0.5 / steps)
        apart.append((loss.bound - expected).abs().max().item())
    assert apart[-1] < 0.02
    assert apart[0] / apart[1] == pytest.approx(2, abs=0.05)
    assert apart[1] / apart[2] == pytest.approx(2, abs=0.05)


def test_those_that_are_none_say_so():
    """Values that are no bound are declared, and stand beside the same bound."""
    process = processes.masked(K)
    z, t, _ = draw(process)
    expected = process.nelbo(LOGP, X0, z, t)
    for name, options in (("radd", {"variant": "t_dce"}), ("maskgit", {}), ("cross_entropy", {}), ("csm", {})):
        loss = objectives.get(name, **options)(Says(LOGP), prescribed(process, z), {"ids": X0}, U)
        torch.testing.assert_close(loss.bound, expected, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(loss.value, expected)
        assert not objectives.spec(name).is_bound
