"""Masking at each token's own rate: GenMD4's learned rates and DiffusionBERT's spindle, on the exact toy."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from redraft import processes
from redraft.processes.per_token import frequency_scores, learned, spindle, usual_exponents
from redraft.randomness import row_generators

from .oracle import (
    LAW,
    ExactDenoiser,
    K,
    ancestral_law,
    chi_square_tail,
    embed,
    entropy,
    marginals,
    nelbo,
    noisy_pairs,
    on_states,
    quadrature,
    sequences,
    total_variation,
)
from .test_nelbo import situations

W = torch.tensor([0.6, 1.0, 1.7], dtype=torch.float64)
SCORES = torch.tensor([0.9, -1.0, 0.1], dtype=torch.float64)


def raw(w):
    """The inverse of softplus."""
    return torch.log(torch.expm1(w))


PROCESSES = {
    "learned": lambda: learned(raw(W)),
    "spindle": lambda: spindle(SCORES),
    "learned_inside": lambda: learned(raw(torch.tensor([0.6, 1.0, 3.0, 1.7], dtype=torch.float64)), mask_id=2),
    "spindle_inside": lambda: spindle(torch.tensor([0.9, 0.2, -1.0, 0.1], dtype=torch.float64), mask_id=1),
}


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]()


def clean(process):
    return [x for x in range(process.K) if x != process.mask_id]


def toy(process):
    return embed(LAW, clean(process), process.K)


def exact(process, law=None):
    return ExactDenoiser(process, toy(process) if law is None else law, posterior="full")


def bound(process, denoiser, law=LAW) -> float:
    """The integral over t of the expected integrand, t = s^10, which makes t^0.6 and its like polynomials in s."""
    node, weight = np.polynomial.legendre.leggauss(200)
    s, ds = torch.tensor((node + 1) / 2), torch.tensor(weight / 2)
    times = s**10
    x0, z, t, probability = noisy_pairs(process, times, law)
    terms = process.nelbo(denoiser(z, t), x0, z, t).sum(-1) * probability
    return (terms * (10 * s**9 * ds)[torch.searchsorted(times, t)]).sum().item()


@pytest.mark.parametrize("time", [0.0, 0.2, 0.7, 1.0])
def test_marginal_is_the_definition(process, time):
    """q_t(y | x) = alpha_{t,x} 1[y = x] + (1 - alpha_{t,x}) 1[y = m], alpha of the papers."""
    t = torch.tensor([time], dtype=torch.float64)
    q = marginals(process, t)[0]
    if process.name == "learned":
        alpha = 1 - time ** torch.nn.functional.softplus(process.tensor)
    else:
        alpha = 1 - time + 0.3 * math.sin(math.pi * time) * process.tensor
    for x in clean(process):
        expected = torch.zeros(process.V, dtype=torch.float64)
        expected[process.mask_id] = 1 - alpha[x]
        expected[x] += alpha[x]
        torch.testing.assert_close(q[x], expected, rtol=0, atol=1e-15)
    if time == 1:
        assert (q[clean(process), process.mask_id] == 1).all()


def test_slope_is_the_logarithmic_derivative(process):
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    h = 1e-6
    slope = process.hidden(t)[1]
    finite = (process.hidden(t + h)[0].log() - process.hidden(t - h)[0].log()) / (2 * h)
    torch.testing.assert_close(slope, finite, rtol=1e-7, atol=1e-9)
    assert (slope > 0).all()
    ids = torch.tensor(clean(process)).expand(19, -1)
    for whole, own in zip(process.hidden(t), process.hidden(t, ids), strict=True):
        assert torch.equal(own, whole.expand(19, 1, -1)[:, 0].gather(1, ids))


def transition(process, s, t):
    z = torch.arange(process.V)[:, None]
    s, t = (torch.full((len(z),), time, dtype=torch.float64) for time in (s, t))
    return process.likelihood(z, s, t)[:, 0].T


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.3), (0.2, 0.5), (0.45, 0.46), (0.5, 1.0), (0.0, 1.0)])
def test_the_chain_is_markov_and_its_posterior_is_bayes(process, s, t):
    rows = clean(process)
    early, late = (marginals(process, torch.tensor([time], dtype=torch.float64))[0] for time in (s, t))
    step = transition(process, s, t)
    assert (step >= 0).all()
    torch.testing.assert_close(step[[*rows, process.mask_id]].sum(1), torch.ones(4).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close((early @ step)[rows], late[rows], rtol=0, atol=1e-14)
    for x in rows:
        z = torch.nonzero(late[x] > 0)
        p0 = torch.eye(process.K, dtype=torch.float64)[x].expand(len(z), 1, -1)
        times = (torch.full((len(z),), time, dtype=torch.float64) for time in (t, s))
        got = process.posterior(p0, z, *times)[:, 0]
        joint = early[x] * step[:, z[:, 0]].T
        torch.testing.assert_close(got, joint / joint.sum(-1, keepdim=True), rtol=0, atol=1e-13)


def test_t24_learned_masking_is_tight():
    """T24: w = (.6, 1, 1.7) and the exact p(x | z_t), which must know t: the bound is H, 1e-10."""
    process = learned(raw(W))
    assert bound(process, exact(process)) == pytest.approx(entropy(), abs=1e-10)


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.3])
def test_t24_spindle_is_tight(strength):
    """T24 for DiffusionBERT's schedule with the vocabulary's mean: the bound is H, 1e-10."""
    process = spindle(SCORES, strength)
    assert nelbo(process, exact(process)) == pytest.approx(entropy(), abs=1e-10)


def test_t24_a_mask_inside_the_vocabulary(process):
    """T24: whatever the mask's own entry in the tensor says, it plays no part."""
    assert bound(process, exact(process), toy(process)) == pytest.approx(entropy(), abs=1e-10)


def test_t24_a_posterior_that_does_not_know_the_rates_pays():
    """T24: what a token-independent mask would suggest, the cavity, stays above H: the mask itself is evidence."""
    process = learned(raw(W))
    cavity = ExactDenoiser(process, posterior="cavity")
    assert nelbo(process, cavity) > entropy() + 0.01


def test_the_integrand_is_the_path_kl(process):
    """T0: sum over v of [p_v r_v - 1[v = x] r_x + 1[v = x] r_x log(r_x / (p_x r_x))], and GenMD4's loss, 1e-12."""
    x0, z, t, logp = situations(process, 0.4)
    got = process.nelbo(logp, x0, z, t)[:, 0]
    slope = process.hidden(t)[1][0, 0]
    rates, own = logp[:, 0].exp() * slope, slope[x0[:, 0]]
    log_ratio = torch.log(own / rates.gather(1, x0)[:, 0])
    expected = torch.where(z[:, 0] == process.mask_id, rates.sum(-1) - own + own * log_ratio, 0.0)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert (got >= -1e-12).all()
    if process.name == "learned":  # sum_v (-w_v / t) [(log p_x + 1) 1[v = x] - p_v]
        w = torch.nn.functional.softplus(process.tensor)
        inner = torch.nn.functional.one_hot(x0[:, 0], process.K) * (logp[:, 0].gather(1, x0) + 1) - logp[:, 0].exp()
        paper = torch.where(z[:, 0] == process.mask_id, (-w / 0.4 * inner).sum(-1), 0.0)
        torch.testing.assert_close(got, paper, rtol=1e-12, atol=1e-12)


def test_a_short_step_costs_the_integrand(process):
    """KL between reverse kernels, per unit of time, tends to nelbo."""
    from redraft.processes.base import step_kl

    x0, z, t, logp = situations(process, 0.4)
    limit = process.nelbo(logp, x0, z, t)
    errors = [(step_kl(process, logp, x0, z, t, t - h) / h - limit).abs().max().item() for h in (1e-3, 5e-4)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert errors[1] < 1e-2 * limit.max()


@pytest.mark.parametrize("make", [lambda: learned(usual_exponents(3).double()), lambda: spindle(torch.zeros(3))])
def test_equal_rates_are_linear_masking(make):
    """w = 1 and scores 0 are masked(): coefficients, draws, posterior, bound."""
    process, masked = make(), processes.masked(3)
    x0, z, t, logp = situations(masked, 0.4)
    # usual_exponents are float32: softplus of them is 1 to seven digits
    torch.testing.assert_close(process.nelbo(logp, x0, z, t), masked.nelbo(logp, x0, z, t), rtol=1e-6, atol=1e-6)
    for method in ("marginal", "posterior"):
        arguments = (logp.exp(), t) if method == "marginal" else (logp.exp(), z, t, t / 2)
        got, expected = (getattr(one, method)(*arguments) for one in (process, masked))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    x = torch.randint(3, (4, 50), generator=torch.Generator().manual_seed(0))
    u = torch.tensor([0.1, 0.5, 0.7, 0.9], dtype=torch.float64)
    draws = [one.corrupt(x, u, row_generators(1, rows=range(4))) for one in (process, masked)]
    assert torch.equal(*draws)


def test_ancestral_sampling_converges_like_one_over_steps():
    """Propagated exactly over the states: TV = c / N, so that four times the steps are a quarter of the distance."""
    for make in (PROCESSES["learned"], PROCESSES["spindle"]):
        process = make()
        target = on_states(process)
        distance = [
            total_variation(ancestral_law(process, exact(process), steps), target) for steps in (4, 16, 64, 256)
        ]
        for coarse, fine in itertools.pairwise(distance):
            assert coarse / fine == pytest.approx(4, abs=0.7)
        assert distance[-1] < 2e-3


@pytest.mark.parametrize("time", [0.0, 0.3, 0.9, 1.0])
def test_corrupt_frequencies(process, time):
    x0 = torch.tensor(clean(process)).expand(20_000, -1)
    t = torch.full((20_000,), time, dtype=torch.float64)
    z = process.corrupt(x0, t, torch.Generator().manual_seed(1))
    q = marginals(process, t[:1])[0]
    for i, x in enumerate(clean(process)):
        assert chi_square_tail(torch.bincount(z[:, i], minlength=process.V).double(), q[x]) > 1e-7
    per_token = process.corrupt(x0, t[:, None].expand(-1, 3), torch.Generator().manual_seed(1))
    assert torch.equal(per_token, z)
    assert (process.prior((2, 3)) == process.mask_id).all()


def test_small_exponents_keep_the_bound_a_bound():
    """At w = 0.1 a third of the masks lie within 1e-5 of t = 0, beyond ``times``: coded uniformly, they count.

    A model that knows nothing then pays log K exactly.
    """
    process = learned(raw(torch.full((3,), 0.1, dtype=torch.float64)))
    nodes, weights = quadrature(60)
    edge = 1e-5
    t = torch.exp((1 - nodes) * math.log(edge))[:, None]  # evenly over log t, from the edge to 1
    x0 = torch.zeros(len(t), 1, dtype=torch.long)
    masked = process.nelbo(torch.full((len(t), 1, 3), -math.log(3)).double(), x0, torch.full_like(x0, 3), t)
    hidden = process.hidden(t, x0)[0]
    integral = (masked * hidden * t * -math.log(edge) * weights[:, None]).sum().item()
    assert integral < 0.7 * math.log(3)
    assert integral + process.prior_kl(x0[:1]).item() == pytest.approx(math.log(3), abs=1e-8)


def test_the_mean_over_u_is_the_bound(process):
    """times(u) spends u so that the weighted mean of the integrand is the integral over t, edges of 1e-5 apart."""
    nodes, weights = quadrature(60)
    t, w = process.times(nodes)
    law, denoiser = toy(process), exact(process)
    x0, z, at, probability = noisy_pairs(process, t, law)
    place = torch.searchsorted(t, at)
    terms = process.nelbo(denoiser(z, at), x0, z, at).sum(-1) * probability * (w * weights)[place]
    assert terms.sum().item() == pytest.approx(entropy(), abs=1e-4)


def test_log_q_is_the_log_of_the_marginal_and_differentiable():
    parameter = nn.Parameter(raw(W))
    process = learned(parameter)
    q = marginals(process, torch.tensor([0.4], dtype=torch.float64))[0]
    x0, z = (index[:, None] for index in torch.nonzero(torch.ones(3, 4)).T)
    t = torch.full((12,), 0.4, dtype=torch.float64)
    got = process.log_q(z, x0, t)
    torch.testing.assert_close(got.exp()[:, 0], q[x0[:, 0], z[:, 0]], rtol=1e-13, atol=1e-15)
    finite = got.isfinite()
    (slope,) = torch.autograd.grad(got[finite].sum(), parameter)
    h = 1e-6
    for v in range(3):
        nudge = torch.zeros(3, dtype=torch.float64)
        nudge[v] = h
        up, down = (learned(raw(W) + sign * nudge).log_q(z, x0, t)[finite].sum() for sign in (1, -1))
        assert slope[v].item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-6)
    process.log_q(z, x0, torch.ones(12))[z == 3].sum().backward()  # at t = 1 all is hidden, whatever w
    assert parameter.grad.isfinite().all()


def test_the_gradient_of_the_bound_has_two_parts():
    """d/dw of the exact bound = E[d nelbo / dw] + E[nelbo d log q / dw]: what GenMD4's two draws estimate."""
    parameter = nn.Parameter(raw(W))
    law = (LAW + 0.1) / (LAW + 0.1).sum()
    t = torch.tensor([0.3], dtype=torch.float64)
    fixed = ExactDenoiser(learned(raw(W)), law, posterior="full")

    def at(tensor):
        process = learned(tensor)
        x0, z, time, _ = noisy_pairs(learned(raw(W)), t)
        logp = fixed(z, time)
        log_q = process.log_q(z, x0, time).sum(-1)
        probability = LAW[x0[:, 0], x0[:, 1]]
        return probability, log_q, process.nelbo(logp, x0, z, time).sum(-1)

    probability, log_q, loss = at(parameter)
    weight = probability * log_q.exp().detach()
    surrogate = (weight * (loss + loss.detach() * log_q)).sum()
    (got,) = torch.autograd.grad(surrogate, parameter)
    h = 1e-6
    for v in range(K):
        nudge = torch.zeros(3, dtype=torch.float64)
        nudge[v] = h
        values = [(p * q.exp() * each).sum().item() for p, q, each in (at(raw(W) + nudge), at(raw(W) - nudge))]
        assert got[v].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


def test_a_parameter_stays_live():
    """What an optimiser or an average writes into the parameter is what the process then does; so after ``to``."""
    parameter = nn.Parameter(usual_exponents(3))
    process = learned(parameter).to("cpu")
    t = torch.tensor([0.5], dtype=torch.float64)
    before = process.hidden(t)[0].detach().clone()
    with torch.no_grad():
        parameter.add_(1.0)
    assert (process.hidden(t)[0] < before).all()
    x0, z, times, logp = situations(process, 0.4)
    process.nelbo(logp, x0, z, times).sum().backward()
    assert parameter.grad.abs().sum() > 0


def test_posterior_conversions_are_the_identity(process):
    """A mask is evidence here, so the kernel wants the full posterior, and that is what the bound teaches."""
    _, z, t, logp = situations(process, 0.4)
    assert process.to_full(logp, z, t) is logp
    assert process.to_cavity(logp, z, t) is logp
    assert not processes.absorbing(process)


def test_frequency_scores():
    """Log counts about their mean, frequent tokens high: they stay longer."""
    scores = frequency_scores(torch.tensor([1000, 0, 10, 10]))
    assert scores.mean().abs() < 1e-6
    assert scores.abs().max() == 1
    assert scores[0] > scores[2] == scores[3] > scores[1]
    process = spindle(scores)
    hidden = process.hidden(torch.tensor([0.5]))[0][0, 0]
    assert hidden[0] < hidden[2] < hidden[1]
    assert (frequency_scores(torch.tensor([5, 5])) == 0).all()


def test_stored_and_built_again(process):
    facts = process.to_dict()
    again = processes.from_dict(facts, {processes.tensors_of(facts)[0].name: process.tensor})
    assert again.to_dict() == facts
    t = torch.tensor([0.4], dtype=torch.float64)
    assert torch.equal(marginals(again, t), marginals(process, t))
    (kept,) = processes.tensors_of(facts)
    assert kept.shape == (process.K,)
    assert kept.learned == (process.name == "learned")
    with pytest.raises(ValueError, match=f"{process.name}.*{kept.name}"):
        processes.from_dict(facts)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: spindle(SCORES, strength=0.32), "strength=0.32"),
        (lambda: spindle(SCORES, strength=-0.1), "strength=-0.1"),
        (lambda: spindle(SCORES, strength=math.nan), "strength=nan"),
        (lambda: spindle(2 * SCORES), "2.0 is outside"),
        (lambda: spindle(SCORES * math.nan), "nan is outside"),
        (lambda: spindle(SCORES[None]), r"\(1, 3\)"),
        (lambda: learned(torch.tensor([0.0, -2000.0, 1.0])), "w=0.0 of token 1"),
        (lambda: learned(torch.tensor([0.0, math.nan])), "w=nan of token 1"),
        (lambda: learned(torch.zeros(2, 2)), r"\(2, 2\)"),
        (lambda: learned(torch.zeros(3), mask_id=5), "mask_id=5"),
        (lambda: learned(torch.zeros(3)).corrupt(torch.tensor([[3]]), torch.ones(1)), "token id 3"),
    ],
)
def test_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_every_state_is_a_sequence():
    """The oracle's enumeration covers the appended mask."""
    assert len(sequences(learned(raw(W)).V)) == 16
