"""Discrete time: the bound of T steps, exactly, and D3PM's chains that are coefficients.

Every figure is a finite sum over the toy's sequences and noisy states. The bound is read off ``times`` and ``nelbo``,
as a training step reads it, not off the definition, which ``oracle.finite_nelbo`` has.
"""

import itertools
import math

import pytest
import torch

from redraft import processes, schedules
from redraft.processes import d3pm
from redraft.processes.base import grid_before, step_kl
from redraft.randomness import row_generators

from .oracle import (
    INFORMATION,
    LAW,
    ExactDenoiser,
    ancestral_law,
    entropy,
    finite_nelbo,
    kl,
    marginals,
    noisy_pairs,
    on_states,
    sequences,
    total_variation,
)
from .test_nelbo import situations


def bound(process, denoiser, call=lambda f, z, t: f(z, t)) -> float:
    """The mean over u, in the middle of each of T equal parts, of the weighted integrand: T steps, each once."""
    u = (torch.arange(process.steps, dtype=torch.float64) + 0.5) / process.steps
    times, weight = process.times(u)
    x0, z, t, probability = noisy_pairs(process, times)
    at = weight[torch.searchsorted(times, t)] / process.steps
    terms = process.nelbo(call(denoiser, z, t), x0, z, t).sum(-1) * probability * at
    prior = process.prior_kl(sequences(process.K)).sum(-1) @ LAW.flatten()
    return (terms.sum() + prior).item()


def test_times_are_the_steps_of_the_chain():
    for steps in (1, 7, 1000):
        process = processes.masked(3, steps=steps)
        u = torch.linspace(0, 1, 3001, dtype=torch.float64)[:-1]
        t, weight = process.times(u)
        torch.testing.assert_close(t * steps, 1 + (u * steps).floor(), rtol=0, atol=1e-9)
        assert (weight == 1).all()
        assert (t.min() * steps).round() == 1
        assert t.max() == 1
        s = grid_before(t, steps)
        assert s.min() == 0
        assert grid_before(t[:1].float(), steps) == 0
        torch.testing.assert_close((t - s) * steps, torch.ones_like(t), rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 4, 16, 64])
def test_t4_masked(steps):
    """T4: with exact conditionals the linear absorbing chain costs I(X1; X2) / T exactly, 1e-8."""
    process = processes.masked(3, steps=steps)
    assert bound(process, ExactDenoiser(process)) - entropy() == pytest.approx(INFORMATION / steps, abs=1e-8)


@pytest.mark.parametrize(("steps", "gap"), [(2, 0.139699), (4, 0.075110), (16, 0.019290), (64, 0.004832)])
def test_t4_uniform(steps, gap):
    """T4: uniform noise with the exact cavity, the reference's six digits."""
    process = processes.uniform(3, steps=steps)
    assert bound(process, ExactDenoiser(process)) - entropy() == pytest.approx(gap, abs=6e-7)


@pytest.mark.parametrize("make", [processes.masked, processes.uniform, processes.hybrid])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_it_is_the_bound_of_the_definition(make, schedule):
    """Equal to sum_i KL(posterior || posterior), for a wrong denoiser too; above H, and falling with T."""
    found = []
    for steps in (2, 4, 8):
        process = make(3, schedule=schedule, steps=steps)
        wrong = ExactDenoiser(process, (LAW + 0.1) / (LAW + 0.1).sum())
        assert bound(process, wrong) == pytest.approx(finite_nelbo(process, wrong, steps), abs=1e-12)
        found.append(bound(process, ExactDenoiser(process)) - entropy())
    assert all(coarse > fine > 0 for coarse, fine in itertools.pairwise(found))


def test_the_first_step_is_the_reconstruction():
    """KL at s = 0 is -log p(x | z), whichever z."""
    for make in (processes.masked, processes.uniform, processes.hybrid):
        process = make(3, steps=8)
        x0, z, t, logp = situations(process, 1 / 8)
        told = -process.to_full(logp, z, t).gather(2, x0[..., None])[..., 0]
        told = torch.where(z == x0, 0.0, told) if process.name == "masked" else told
        torch.testing.assert_close(process.nelbo(logp, x0, z, t) / 8, told, rtol=0, atol=1e-12)


def test_the_masked_fast_path_is_the_general_form():
    """T (alpha_s - alpha_t) / (1 - alpha_t) cross-entropy = T KL(posterior || posterior), 1e-12."""
    for schedule, mask_id in (("linear", None), ("cosine", None), ("linear", 1)):
        process = processes.masked(5, schedule=schedule, mask_id=mask_id, steps=8)
        for i in range(1, 9):
            x0, z, t, logp = situations(process, i / 8)
            general = 8 * step_kl(process, logp, x0, z, t, grid_before(t, 8))
            torch.testing.assert_close(process.nelbo(logp, x0, z, t), general, rtol=1e-12, atol=1e-12)
            weight = process.mask_weight(t)
            alpha_t, alpha_s = process.schedule(t)[0], process.schedule(t - 1 / 8)[0]
            torch.testing.assert_close(weight[:, 0], 8 * (alpha_s - alpha_t) / (1 - alpha_t), rtol=1e-13, atol=0)


CHAINS = {
    "uniform": lambda: processes.uniform(4, steps=8),
    "uniform_cosine": lambda: processes.uniform(4, schedule="cosine", steps=8),
    "hybrid": lambda: processes.hybrid(4, steps=8),
    "hybrid_inside": lambda: processes.hybrid(5, mask_id=1, steps=8),
    "d3pm_uniform": lambda: d3pm(4, "uniform", 8),
    "d3pm_hybrid": lambda: d3pm(4, "hybrid", 8),
    "d3pm_hybrid_inside": lambda: d3pm(5, "hybrid", 8, mask_id=1),
}


@pytest.mark.parametrize("name", CHAINS)
def test_one_sum_over_the_vocabulary_is_the_general_form(name):
    """The KL of a step through sum_j log(1 + ratio p_j) = through both posteriors, values and gradients, 1e-10."""
    process = CHAINS[name]()
    for i in range(1, 9):
        x0, z, t, logp = situations(process, i / 8)
        results = []
        for form in (
            lambda p, x0=x0, z=z, t=t: process.nelbo(p, x0, z, t),
            lambda p, x0=x0, z=z, t=t: 8 * step_kl(process, p, x0, z, t, grid_before(t, 8)),
        ):
            logits = logp.clamp_min(-80).clone().requires_grad_()
            value = form(logits.log_softmax(-1))
            value.sum().backward()
            results.append((value.detach(), logits.grad))
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-9)


def test_float32_keeps_the_small_kl_of_a_short_step():
    process = processes.uniform(64, steps=1000)
    x0, z, t, logp = situations(process, 0.5)
    exact = process.nelbo(logp, x0, z, t)
    torch.testing.assert_close(process.nelbo(logp.float(), x0, z, t).double(), exact, rtol=2e-4, atol=1e-4)


def with_mask(process, time, seed=1):
    """Situations whose prediction has V columns: a plain softmax over the states, [MASK] among them."""
    x0, z, t, _ = situations(process, time)
    logits = torch.randn(len(x0), 1, process.V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x0, z, t, (2 * logits).log_softmax(-1)


@pytest.mark.parametrize("i", range(1, 9))
def test_t14_mask_mass_is_the_brute_force_kl(i):
    """T14: a model that gives [MASK] mass pays the KL of D3PM's sums over x0, and its closed form, 1e-12."""
    process = processes.masked(4, steps=8)
    x0, z, t, logp = with_mask(process, i / 8)
    s = t - 1 / 8
    states = torch.eye(5, dtype=torch.float64)
    step = process.likelihood(torch.arange(5)[:, None], s[:1].expand(5), t[:1].expand(5))[:, 0].T  # [y, z]
    early = process.marginal(states[:, None], s[:1].expand(5))[:, 0]  # [x, y], [MASK] a clean value like any other

    def reverse(p0):  # sum over x of p0(x) q(y | x) q(z | y), normalised over y
        joint = torch.einsum("bx,xy,yz->byz", p0, early, step)[torch.arange(len(z)), :, z[:, 0]]
        return joint / joint.sum(-1, keepdim=True)

    expected = 8 * kl(reverse(states[x0[:, 0]]), reverse(logp[:, 0].exp()))
    got = process.nelbo(logp, x0, z, t)[:, 0]
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
    if i > 1:
        masked, alpha_t, alpha_s = z[:, 0] == 4, 1 - t, 1 - s
        p_m, log_p = logp[:, 0, 4].exp(), logp[:, 0].gather(1, x0)[:, 0]
        log_n = torch.log(alpha_t * p_m / t + 1)
        revealed, share = log_n - log_p, 1 / 8 / t
        closed = share * revealed + (1 - share) * (log_n - torch.log(alpha_s * p_m / s + 1))
        torch.testing.assert_close(got[masked], 8 * closed[masked], rtol=1e-11, atol=1e-12)
        assert (got[~masked] == 0).all()


def test_t14_gradients_with_mask_mass_are_finite_at_the_first_step():
    """T14: at s = 0 the formula has a 0 times infinity, which neither value nor gradient may meet."""
    process = processes.masked(4, steps=8)
    x0, z, t, logp = with_mask(process, 1 / 8)
    logits = logp.clone().requires_grad_()
    process.nelbo(logits.log_softmax(-1), x0, z, t).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", CHAINS)
def test_gradients_are_finite_at_every_step(name):
    """Bound and cross-entropy of the full posterior, where after the last step no clean token is left: 0 / 0 unseen."""
    process = CHAINS[name]()
    for i in range(1, 9):
        x0, z, t, logp = situations(process, i / 8)
        for cross_entropy in (False, True):
            logits = logp.clamp_min(-80).clone().requires_grad_()
            said = logits.log_softmax(-1)
            value = process.log_full_of(x0, said, z, t) if cross_entropy else process.nelbo(said, x0, z, t)
            value.sum().backward()
            assert logits.grad is not None
            assert logits.grad.isfinite().all()


def test_mask_mass_in_continuous_time_is_the_limit():
    process = processes.masked(4, schedule="cosine")
    x0, z, t, logp = with_mask(process, 0.4)
    limit = process.nelbo(logp, x0, z, t)
    errors = [(step_kl(process, logp, x0, z, t, t - h) / h - limit).abs().max() for h in (1e-3, 5e-4)]
    assert errors[1] < 1e-2 * limit.max()
    assert (errors[0] / errors[1]).item() == pytest.approx(2, abs=0.1)
    none = torch.cat([logp[..., :4].log_softmax(-1), torch.full_like(logp[..., :1], -math.inf)], -1)
    torch.testing.assert_close(process.nelbo(none, x0, z, t), process.nelbo(none[..., :4], x0, z, t))


# ----------------------------------------------------------------------------------------------- chains by name


def explicit(kind, betas, K, fraction=None):
    """The products of D3PM's matrices, (T + 1, V, V), from their definition."""
    V = K if kind == "uniform" else K + 1
    target = torch.zeros(V, dtype=torch.float64)
    if kind == "uniform":
        target[:] = 1 / K
    elif kind == "absorbing":
        target[K] = 1
    else:
        target[:K], target[K] = (1 - fraction) / K, fraction
    products = [torch.eye(V, dtype=torch.float64)]
    for i, beta in enumerate(betas):
        q = (1 - beta) * torch.eye(V, dtype=torch.float64) + beta * target
        if kind != "uniform" and i == len(betas) - 1:
            q = torch.zeros_like(q)
            q[:, K] = 1
        products.append(products[-1] @ q)
    return products


@pytest.mark.parametrize("kind", ["uniform", "absorbing", "hybrid"])
@pytest.mark.parametrize("schedule", ["reciprocal", "linear", "cosine", "custom"])
def test_coefficients_are_the_products_of_the_matrices(kind, schedule):
    """marginal = x Q_1 .. Q_i and likelihood = Q_{j+1} .. Q_i, 1e-13, though no matrix is made."""
    K, T = 4, 6
    betas = [0.1, 0.3, 0.05, 0.2, 0.5, 0.9] if schedule == "custom" else schedules.BETAS[schedule](T).tolist()
    process = d3pm(K, kind, T, betas if schedule == "custom" else schedule)
    products = explicit(kind, betas, K, 2 / 3)
    states = torch.arange(process.V)[:, None]
    for i in range(T + 1):
        t = torch.tensor([i / T], dtype=torch.float64)
        torch.testing.assert_close(marginals(process, t)[0], products[i][:K], rtol=0, atol=1e-13)
        for j in range(i):
            s = torch.tensor([j / T], dtype=torch.float64).expand(process.V)
            if (torch.linalg.det(products[j]).abs() > 1e-9).item():
                between = torch.linalg.solve(products[j], products[i])
                got = process.likelihood(states, s, t.expand(process.V))[:, 0].T
                torch.testing.assert_close(got, between, rtol=0, atol=1e-11)


def test_t15_reciprocal_absorbing_is_linear_masking():
    """T15: beta_i = 1 / (T - i + 1) is the chain masked(steps=T), coefficient by coefficient, 1e-14."""
    chain, linear = d3pm(5, "absorbing", 16), processes.masked(5, steps=16)
    t = torch.arange(17, dtype=torch.float64) / 16
    torch.testing.assert_close(chain.coefficients(t).alpha, linear.coefficients(t).alpha, rtol=0, atol=1e-14)
    assert bound(d3pm(3, "absorbing", 16), ExactDenoiser(d3pm(3, "absorbing", 16))) - entropy() == pytest.approx(
        INFORMATION / 16, abs=1e-8
    )


@pytest.mark.parametrize("kind", ["absorbing", "uniform", "hybrid"])
def test_mutual_information_falls_in_equal_steps(kind):
    """I(x_i; x_0) = (1 - i / T) log K for uniform x_0, 1e-9; for absorbing noise that is the reciprocal schedule."""
    K, T = 5, 12
    process = d3pm(K, kind, T, "mutual_information")
    q = marginals(process, torch.arange(T + 1, dtype=torch.float64) / T)
    mean = q.mean(1, keepdim=True)
    information = torch.special.xlogy(q, torch.where(q > 0, q / mean, 1.0)).sum((1, 2)) / K
    expected = (1 - torch.arange(T + 1, dtype=torch.float64) / T) * math.log(K)
    torch.testing.assert_close(information, expected, rtol=0, atol=1e-9)
    if kind == "absorbing":
        reciprocal = d3pm(K, kind, T, "reciprocal")
        torch.testing.assert_close(process.schedule.alphas, reciprocal.schedule.alphas, rtol=0, atol=1e-12)


def test_uniform_chains_pay_for_what_they_do_not_forget():
    """The cosine's clipped end leaves alpha_T > 0: prior_kl is KL(q_T || uniform), and the bound with it is >= H."""
    process = d3pm(3, "uniform", 8)
    q = marginals(process, torch.ones(1, dtype=torch.float64))[0]
    expected = kl(q, torch.full_like(q, 1 / 3))
    x0 = torch.arange(3)[:, None]
    torch.testing.assert_close(process.prior_kl(x0)[:, 0], expected, rtol=1e-9, atol=1e-15)
    assert expected.min() > 1e-9
    gaps = [bound(p, ExactDenoiser(p)) - entropy() for p in (d3pm(3, "uniform", T) for T in (4, 16, 64))]
    assert all(coarse > fine > 0 for coarse, fine in itertools.pairwise(gaps))
    assert gaps[-1] < 0.02


@pytest.mark.parametrize("kind", ["uniform", "hybrid"])
def test_a_long_chain_that_forgets_early_stays_finite(kind):
    """Linear betas leave alpha = e^-1000 = 0 long before the last of 4000 steps: nothing is left to tell there."""
    process = d3pm(5, kind, 4000, "linear")
    t = torch.tensor([0.05, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
    x0 = torch.arange(5)[:, None]
    z = process.corrupt(x0, t, torch.Generator().manual_seed(0))
    logp = torch.randn(5, 1, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(-1)
    found = process.nelbo(logp.requires_grad_(), x0, z, t)
    found.sum().backward()
    assert found.isfinite().all()
    assert (found[2:].abs() < 1e-12).all()
    assert logp.grad is not None
    assert logp.grad.isfinite().all()
    kernel = process.posterior(logp.detach().exp(), z, t, t - 1 / 4000)
    torch.testing.assert_close(kernel.sum(-1), torch.ones(5, 1, dtype=torch.float64))


def test_full_posterior_drops_what_is_left_on_the_mask():
    """A plain head has mass on [MASK]; where masks are not the only noise, the full posterior is one of tokens."""
    process, z = processes.hybrid(3, steps=4), torch.tensor([[0, 3]])
    logp = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    t = torch.tensor([0.5])
    torch.testing.assert_close(process.to_full(logp, z, t), process.to_full(logp[..., :3].log_softmax(-1), z, t))


def test_every_kind_of_coefficient_bounds_and_tightens():
    for kind in ("absorbing", "hybrid"):
        gaps = [bound(p, ExactDenoiser(p)) - entropy() for p in (d3pm(3, kind, T) for T in (2, 4, 8, 16, 32))]
        assert all(coarse > fine > 0 for coarse, fine in itertools.pairwise(gaps)), (kind, gaps)
        assert gaps[-2] / gaps[-1] == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("kind", ["absorbing", "uniform", "hybrid"])
def test_sampling_a_chain_approaches_the_law(kind):
    """Ancestral steps propagated exactly, on the chain's own grid, on a coarser and on a finer one."""
    target = on_states(d3pm(3, kind, 2))
    distance = [total_variation(ancestral_law(p, ExactDenoiser(p), T), target) for T, p in chains(kind)]
    assert all(coarse > fine for coarse, fine in itertools.pairwise(distance))
    assert distance[-1] < 0.01
    long = d3pm(3, kind, 64)
    coarse = total_variation(ancestral_law(long, ExactDenoiser(long), 8), target)
    assert distance[-1] < coarse < 0.1
    assert total_variation(ancestral_law(long, ExactDenoiser(long), 100), target) < 0.01


def chains(kind):
    return [(T, d3pm(3, kind, T)) for T in (4, 16, 64)]


def test_a_large_vocabulary_needs_no_matrix():
    process = d3pm(50_000, "hybrid", 1000)
    x0 = torch.arange(64).view(1, 64)
    z = process.corrupt(x0, torch.tensor([0.4]), row_generators(0, rows=[0]))
    assert ((z == x0) | (z == 50_000) | (z < 50_000)).all()
    assert 10 < (z == 50_000).sum() < 25  # 0.4 * 2/3 of 64 is 17


# ---------------------------------------------------------------------------------------------- stored, refused


@pytest.mark.parametrize(
    "process",
    [
        processes.masked(4, steps=8),
        processes.uniform(4, "cosine", steps=8),
        processes.hybrid(4, steps=8),
        d3pm(4, "absorbing", 8),
        d3pm(4, "hybrid", 8, "cosine", mask_fraction=0.5, mask_id=2),
        d3pm(4, "uniform", 2, [0.5, 1.0]),
    ],
)
def test_stored_and_built_again(process):
    again = processes.from_dict(process.to_dict())
    assert again.to_dict() == process.to_dict()
    assert (again.steps, again.V, again.mask_id) == (process.steps, process.V, process.mask_id)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    assert torch.equal(marginals(again, t), marginals(process, t))


def test_continuous_time_stores_no_steps():
    assert "steps" not in processes.masked(4).to_dict()
    assert processes.from_dict(processes.masked(4).to_dict()).steps is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: processes.masked(3, steps=0), "steps=0"),
        (lambda: d3pm(3, "absorbing", 0), "steps=0"),
        (lambda: d3pm(3, "absorbign", 8), "absorbign.*did you mean 'absorbing'"),
        (lambda: d3pm(3, "uniform", 8, "cosin"), "cosin.*did you mean 'cosine'"),
        (lambda: d3pm(3, "uniform", 2, [0.5, 1.5]), "beta=1.5 at step 2"),
        (lambda: d3pm(3, "uniform", 2, [0.5]), "1 betas for steps=2"),
        (lambda: d3pm(3, "hybrid", 2, mask_fraction=1.0), "mask_fraction=1.0"),
        (lambda: d3pm(3, "uniform", 2, width=5), "width with kind 'uniform'"),
        (lambda: d3pm(1, "uniform", 2), "K=1"),
        (lambda: d3pm(3, "absorbing", 2, mask_id=7), "mask_id=7"),
        (lambda: d3pm(3, "uniform", 2).corrupt(torch.tensor([[3]]), torch.ones(1)), "token id 3"),
    ],
)
def test_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
