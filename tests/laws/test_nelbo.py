"""The likelihood bound: one integrand, equal to the path KL it stands for and to every closed form it generalises.

Reference values are those of the toy law (K = 3, L = 2, H = 1.940734 nats); all expectations are exact sums and all
time integrals 200-point Gauss-Legendre quadratures.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from redraft import processes

from .oracle import (
    INFORMATION,
    LAW,
    ExactDenoiser,
    H,
    TableDenoiser,
    embed,
    emissions,
    entropy,
    finite_nelbo,
    kl,
    marginals,
    nelbo,
    noisy_pairs,
    sequences,
)

PROCESSES = {
    "masked": lambda K: processes.masked(K),
    "masked_cosine": lambda K: processes.masked(K, schedule="cosine"),
    "uniform": lambda K: processes.uniform(K),
    "uniform_cosine": lambda K: processes.uniform(K, schedule="cosine"),
    "hybrid": lambda K: processes.hybrid(K, uniform_share=0.2),
    "hybrid_inside": lambda K: processes.hybrid(K + 1, uniform_share=0.2, mask_id=1),
    "hybrid_cosine": lambda K: processes.hybrid(K, uniform_share=0.6, schedule="cosine"),
}


@pytest.fixture(params=PROCESSES)
def make(request):
    return PROCESSES[request.param]


def situations(process, time: float, seed: int = 0):
    """Every (x, z) of positive probability at one time, as rows of length one, with a random prediction each."""
    t = torch.tensor([time], dtype=torch.float64)
    x0, z = (index[:, None] for index in torch.nonzero(marginals(process, t)[0] > 0).T)
    logits = torch.randn(len(x0), 1, process.K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if process.mask_id is not None and process.mask_id < process.K:  # a mask among the ids is no clean token
        x0, z, logits = (value[x0[:, 0] != process.mask_id] for value in (x0, z, logits))
        logits[..., process.mask_id] = -math.inf
    return x0, z, t.expand(len(x0)), (2 * logits).log_softmax(-1)


def one_hot(x0, process):
    return torch.nn.functional.one_hot(x0, process.K).double()


def test_the_toy_is_the_reference_toy():
    product = torch.outer(LAW.sum(1), LAW.sum(0))
    assert entropy() == pytest.approx(H, abs=5e-7)
    assert kl(LAW.flatten(), product.flatten()).item() == pytest.approx(INFORMATION, abs=1e-13)


@pytest.mark.parametrize("K", [3, 7])
@pytest.mark.parametrize("time", [0.03, 0.3, 0.5, 0.97])
def test_t0_integrand_is_the_path_kl(make, K, time):
    """T0: nelbo = sum_{y != z} [R_theta - R + R log(R / R_theta)], R(z -> y) = g_t(z) marg(y) / marg(z), 1e-12."""
    process = make(K)
    x0, z, t, logp = situations(process, time)
    g = process.jump(z, t)[:, :, None]
    rates = []
    for p0 in (one_hot(x0, process), logp.exp()):
        q = process.marginal(p0, t)
        rates.append(g * q / q.gather(2, z[:, :, None]))
    true, model = rates
    terms = model - true + torch.special.xlogy(true, torch.where(true > 0, true / model, 1.0))
    expected = terms.scatter(2, z[:, :, None], 0.0).sum(-1)
    got = process.nelbo(logp, x0, z, t)
    assert got.shape == x0.shape
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert (got >= -1e-12).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine_squared"])
def test_t0b_masked_is_weighted_cross_entropy(schedule):
    """T0b: 1[z = m] (-alpha' / (1 - alpha)) (-log p(x)), 1e-12 (MDLM, MD4, RADD, LLaDA)."""
    process = processes.masked(7, schedule=schedule)
    for time in (0.01, 0.4, 0.9):
        x0, z, t, logp = situations(process, time)
        alpha, derivative = process.schedule(t)
        expected = (-derivative / (1 - alpha))[:, None] * -logp.gather(2, x0[:, :, None])[..., 0] * (z == 7)
        torch.testing.assert_close(process.nelbo(logp, x0, z, t), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_t0c_uniform_is_udlm(schedule):
    """T0c: the closed form of UDLM and Duo (discrete.md 4.3), 1e-12."""
    K = 7
    process = processes.uniform(K, schedule=schedule)
    for time in (0.05, 0.4, 0.9):
        x0, z, t, logp = situations(process, time)
        alpha, derivative = (value[:, None] for value in process.schedule(t))
        true, model = (K * alpha[..., None] * p + 1 - alpha[..., None] for p in (one_hot(x0, process), logp.exp()))
        at = z[:, :, None]
        true_z, model_z = true.gather(2, at), model.gather(2, at)
        inner = (true / true_z * (model_z * true / (model * true_z)).log()).sum(-1)
        expected = derivative / (K * alpha) * (K / true_z[..., 0] - K / model_z[..., 0] - inner)
        torch.testing.assert_close(process.nelbo(logp, x0, z, t), expected, rtol=1e-11, atol=1e-12)


def test_t3_score_entropy_is_the_same_bound():
    """T3a, T3c: sigma' DWDSE (SEDD) with the score of the prediction equals nelbo, masked and uniform, 1e-12."""
    for process in (processes.masked(5), processes.uniform(5)):
        for time in (0.1, 0.5, 0.9):
            x0, z, t, logp = situations(process, time)
            alpha, derivative = process.schedule(t)
            at = z[:, :, None]
            true, model = (process.marginal(p, t) for p in (one_hot(x0, process), logp.exp()))
            ratio, score = true / true.gather(2, at), model / model.gather(2, at)
            # forward rate Q(y -> z), per unit of sigma: 1 into the mask, 1 / K into each token of the uniform process
            rate = (z == process.mask_id).double() if process.mask_id is not None else 0.2
            log_score = torch.where(ratio > 0, score, 1.0).log()
            terms = score - ratio * log_score + torch.special.xlogy(ratio, ratio) - ratio
            expected = (-derivative / alpha)[:, None] * rate * terms.scatter(2, at, 0.0).sum(-1)
            torch.testing.assert_close(process.nelbo(logp, x0, z, t), expected, rtol=1e-11, atol=1e-12)


def test_t13_gidd_weights():
    """T13: jump / marginal is GIDD's weight (discrete.md 7.9) for z = x, z = mask and any other token, 1e-12."""
    for share, K in itertools.product((0.1, 0.2, 0.7), (3, 8)):
        process = processes.hybrid(K, uniform_share=share)
        for t in (0.01, 0.3, 0.5, 0.99):
            c = 2 * share / (1 - share) * math.sqrt(t * (1 - t))
            d_c = 0.5 * (1 - 2 * t) / (t * (1 - t)) * c
            expected = {
                0: (c + (1 - t) * d_c) / K / ((1 - t) * (1 - t + c / K)),
                1: (c + (1 - t) * d_c) / ((1 - t) * c),
                K: 1 / (t * (1 - t)),
            }
            assert expected[1] == pytest.approx(1 / (2 * t * (1 - t)), rel=1e-12)
            time = torch.tensor([t], dtype=torch.float64)
            for z, weight in expected.items():
                g = process.jump(torch.tensor([[z]]), time).squeeze()
                assert (g / marginals(process, time)[0][0, z]).item() == pytest.approx(weight, rel=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine_squared"])
def test_t1_masked_bound_is_tight_for_every_schedule(schedule):
    """T1: with exact conditionals the bound is H, whatever the schedule, 1e-10."""
    process = processes.masked(3, schedule=schedule)
    assert nelbo(process, ExactDenoiser(process)) == pytest.approx(entropy(), abs=1e-10)


def test_t1_mask_inside_the_vocabulary():
    """A mask among the token ids, which the prediction gives probability zero (log p = -inf), changes nothing."""
    process = processes.masked(4, mask_id=2)
    law = embed(LAW, [0, 1, 3], 4)
    assert nelbo(process, ExactDenoiser(process, law), law) == pytest.approx(entropy(), abs=1e-10)


def test_t2_uniform_wants_the_cavity():
    """T2: cavity = H within 1e-6; the full posterior plugged in pays 0.95368 nats (1e-3); converted, nothing."""
    process = processes.uniform(3)
    assert nelbo(process, ExactDenoiser(process)) == pytest.approx(entropy(), abs=1e-6)
    full = ExactDenoiser(process, posterior="full")
    assert nelbo(process, full) - entropy() == pytest.approx(0.95368, abs=1e-3)
    converted = nelbo(process, full, call=lambda f, z, t: process.to_cavity(f(z, t), z, t))
    assert converted == pytest.approx(entropy(), abs=1e-6)


def test_t2_hybrid_wants_the_cavity():
    """T2: cavity = H within 1e-4 (the integrand is singular at the ends); the full posterior pays 0.7237 (1e-3)."""
    process = processes.hybrid(3, uniform_share=0.2)
    assert nelbo(process, ExactDenoiser(process)) == pytest.approx(entropy(), abs=1e-4)
    full = ExactDenoiser(process, posterior="full")
    assert nelbo(process, full) - entropy() == pytest.approx(0.7237, abs=1e-3)


def test_the_cavity_is_the_minimiser(make):
    """At every t the gradient of the expected integrand in a table of logits vanishes at the cavity posterior."""
    process = make(3)
    law = embed(LAW, [x for x in range(process.K) if x != process.mask_id], process.K)
    for which in ("cavity", "full"):
        if which == "full" and process.name == "masked":
            continue  # where they differ, the masked integrand does not look
        for time in (0.1, 0.6):
            x0, z, t, probability = noisy_pairs(process, torch.tensor([time], dtype=torch.float64), law)
            states = sequences(process.V)
            table = ExactDenoiser(process, law, which)(states, t[:1].expand(len(states)))
            logits = table.clone().requires_grad_()
            logp = TableDenoiser(logits.log_softmax(-1), process.V)(z, t)
            loss = (process.nelbo(logp, x0, z, t).sum(-1) * probability).sum()
            (gradient,) = torch.autograd.grad(loss, logits)
            assert gradient.isfinite().all()
            slope = gradient.abs().max().item()
            assert slope < 1e-12 if which == "cavity" else slope > 1e-4


@pytest.mark.parametrize("time", [0.2, 0.7])
def test_finite_steps_converge_to_the_integrand(make, time):
    """KL(posterior of x || posterior of p) per unit of time tends to nelbo with an error of order 1 / T."""
    process = make(3)
    x0, z, t, logp = situations(process, time)
    limit = process.nelbo(logp, x0, z, t)

    def rate(steps):
        s = t - 1 / steps
        return kl(process.posterior(one_hot(x0, process), z, t, s), process.posterior(logp.exp(), z, t, s)) * steps

    errors = [(rate(steps) - limit).abs().max().item() for steps in (1_000, 2_000, 4_000)]
    assert errors[-1] < 2e-2 * max(1.0, limit.abs().max().item())
    for coarse, fine in itertools.pairwise(errors):
        if coarse > 1e-9:
            assert coarse / fine == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("steps", [1, 2, 4, 16, 64])
def test_t4_masked_in_finitely_many_steps(steps):
    """T4: linear masking with exact conditionals costs I(X1; X2) / T exactly, 1e-8 (.217195 for T = 1)."""
    process = processes.masked(3)
    excess = finite_nelbo(process, ExactDenoiser(process), steps) - entropy()
    assert excess == pytest.approx(INFORMATION / steps, abs=1e-8)


@pytest.mark.parametrize(("steps", "gap"), [(2, 0.139699), (4, 0.075110), (16, 0.019290), (64, 0.004832)])
def test_t4_uniform_in_finitely_many_steps(steps, gap):
    """T4: uniform noise with the exact cavity; the reference gives six digits."""
    process = processes.uniform(3)
    assert finite_nelbo(process, ExactDenoiser(process), steps) - entropy() == pytest.approx(gap, abs=6e-7)


def any_order(table, order):
    """E[-sum_i log p(x_order[i] | earlier ones)] of the toy, for a table of masked conditionals."""
    total = 0.0
    for x in sequences(3):
        z = torch.full((1, 2), 3)
        for i in order:
            total -= LAW[tuple(x)] * table(z)[0, i, x[i]]
            z[0, i] = x[i]
    return float(total)


@pytest.mark.parametrize("exact", [True, False])
def test_t5_four_faces_of_the_masked_bound(exact):
    """T5: any-order autoregression = mask-rate CE = mask-count CE = the bound, for any table of conditionals, 1e-10."""
    process = processes.masked(3)
    states = sequences(4)
    table = ExactDenoiser(process)(states, torch.full((len(states),), 0.5, dtype=torch.float64))
    if not exact:
        noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        table = (table + noise).log_softmax(-1)
    denoiser = TableDenoiser(table, 4)
    orders = [any_order(denoiser, order) for order in itertools.permutations(range(2))]
    bound = nelbo(process, denoiser)
    mean = sum(orders) / len(orders)

    def masked_ce(hidden):  # E sum over hidden positions of -log p(x_i | the rest)
        x = sequences(3)
        z = x.clone()
        z[:, hidden] = 3
        terms = -denoiser(z).gather(2, x[:, :, None])[:, hidden, 0].sum(-1)
        return (terms * LAW.flatten()).sum().item()

    subsets = {k: [list(hidden) for hidden in itertools.combinations(range(2), k)] for k in (1, 2)}
    by_count = sum(2 / k * sum(map(masked_ce, subsets[k])) / len(subsets[k]) for k in (1, 2)) / 2
    node, weight = np.polynomial.legendre.leggauss(8)  # a polynomial in the mask rate: exact
    by_rate = 0.0
    for rate, w in zip((node + 1) / 2, weight / 2, strict=True):
        by_rate += w * sum(rate ** (k - 1) * (1 - rate) ** (2 - k) * masked_ce(h) for k in (1, 2) for h in subsets[k])
    for value in (by_count, by_rate, bound):
        assert value == pytest.approx(mean, abs=1e-10)
    if exact:
        assert mean == pytest.approx(entropy(), abs=1e-10)
    else:
        assert mean > entropy()


def test_t11_tweedie_leaping_is_the_posterior():
    """T11: SEDD's analytic sampler with the exact score is the plug-in posterior, masked and uniform, 1e-12."""
    for process in (processes.masked(4), processes.uniform(4)):
        for s_time, t_time in ((0.1, 0.3), (0.5, 0.52), (0.2, 0.95)):
            _, z, t, logp = situations(process, t_time)
            s = torch.full_like(t, s_time)
            alpha_t, alpha_s = process.schedule(t)[0], process.schedule(s)[0]
            a = (alpha_t / alpha_s)[:, None, None]
            q = process.marginal(logp.exp(), t)
            score = q / q.gather(2, z[:, :, None])
            if process.mask_id is not None:
                staggered = score / a
                staggered[..., process.mask_id] += (1 - 1 / a[..., 0]) * score.sum(-1)
                onto = (1 - a).expand_as(score).clone()
                onto[..., process.mask_id] = 1.0
                keep = (z == process.mask_id)[:, 0]  # a token stays: its score is zero everywhere else
            else:
                staggered = score / a + (a - 1) / (process.K * a) * score.sum(-1, keepdim=True)
                onto = (1 - a) / process.K + a * torch.nn.functional.one_hot(z, process.K)
                keep = torch.ones(len(z), dtype=torch.bool)
            expected = process.posterior(logp.exp(), z, t, s)
            torch.testing.assert_close((staggered * onto)[keep], expected[keep], rtol=0, atol=1e-12)


def test_emissions_are_the_marginals_of_every_process(make):
    """The oracle reads q_t(z | x) off ``marginal``; a law of z given x must sum to one over z."""
    process = make(3)
    z = torch.arange(process.V)[:, None]
    q = emissions(process, z, torch.full((process.V,), 0.3, dtype=torch.float64))[:, 0]
    clean = [x for x in range(process.K) if x != process.mask_id]
    torch.testing.assert_close(q.sum(0)[clean], torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-14)
