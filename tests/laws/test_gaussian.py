"""Gaussian processes against one-token oracles whose expectations are quadratures, not samples (``line``)."""

import functools
import itertools
import math

import pytest
import torch
from torch import Tensor

from redraft import objectives, processes, sampling
from redraft.processes.time import draw
from redraft.schedules import GammaSchedule

from .line import (
    CODES,
    KINDS,
    PI,
    SCHEDULES,
    ExactTokens,
    H,
    cross_entropy,
    diffusion_loss,
    noisy_tokens,
    posterior_tokens,
    sphere,
    toy,
)
from .oracle import chi_square_tail, quadrature


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_scales_of_the_kinds(kind):
    """gamma = log(sigma^2 / alpha^2) always; VP: alpha^2 + sigma^2 = 1; VE: alpha = 1; RF: alpha + sigma = 1."""
    process = toy(kind)
    gamma, d_gamma = process.gamma(torch.linspace(0, 1, 21, dtype=torch.float64))
    alpha, sigma = process.scales(gamma)
    assert alpha.dtype == sigma.dtype == gamma.dtype == torch.float64
    torch.testing.assert_close((sigma**2 / alpha**2).log(), gamma, rtol=0, atol=1e-12)
    assert (d_gamma > 0).all()
    total = {"vp": alpha**2 + sigma**2, "ve": alpha, "rf": alpha + sigma}[kind]
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)


def test_end_points_of_the_reference():
    """gamma = -3: alpha^2 = .952574, sigma^2 = .047426, SNR 20.0855; gamma = 6: alpha^2 = .002473."""
    process = toy()
    (alpha, last), (sigma, _) = (s[:, 0].tolist() for s in process.scales(process.gamma(torch.tensor([0.0, 1.0]))[0]))
    assert alpha**2 == pytest.approx(0.952574, abs=5e-7)
    assert sigma**2 == pytest.approx(0.047426, abs=5e-7)
    assert alpha**2 / sigma**2 == pytest.approx(20.0855, abs=5e-5)
    assert last**2 == pytest.approx(0.002473, abs=5e-7)


def test_golden_bound():
    """18.2: recon .07490 + diffusion .95377 + prior .00101 = 1.029677 +- 1e-4, against H = 1.029653."""
    process = toy()
    assert process.vectors is True
    recon, diffusion = cross_entropy(process, 0.0), diffusion_loss(process)
    prior = (process.prior_kl(torch.arange(3)[None])[0] * PI).sum().item()
    assert recon == pytest.approx(0.07490, abs=1e-5)
    assert diffusion == pytest.approx(0.95377, abs=1e-5)
    assert prior == pytest.approx(0.00101, abs=1e-5)
    assert recon + diffusion + prior == pytest.approx(1.029677, abs=1e-4)
    assert pytest.approx(1.029653, abs=1e-6) == H


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bound_is_the_entropy_and_what_the_prior_misses(kind, schedule):
    """The exact-denoiser identity recon + diffusion = H(w | z_1), whatever the kind and the schedule.

    With an exact denoiser CE(t) = H(w | z_t), and the integral of the loss is its increase from t = 0 to t = 1; what
    is missing to H is the information left at t = 1, which the prior term charges for.
    """
    process = toy(kind, schedule)
    recon, last = cross_entropy(process, 0.0), cross_entropy(process, 1.0)
    assert recon + diffusion_loss(process) == pytest.approx(last, abs=1e-8)
    prior = (process.prior_kl(torch.arange(3)[None])[0] * PI).sum().item()
    assert H < last + prior < H + 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("time", [0.1, 0.4, 0.8])
def test_slope_of_cross_entropy_is_the_loss(kind, schedule, time):
    """2.2.9, I-MMSE: d CE / d gamma = 1/2 exp(-gamma) MMSE, so E nelbo = d CE / dt."""
    process = toy(kind, schedule)
    times = torch.tensor([time], dtype=torch.float64)
    x0, z, t, probability = noisy_tokens(process, times)
    logp = posterior_tokens(process, z, t, PI)
    mmse = (((process.codebook[x0] - logp.exp() @ process.codebook) ** 2)[:, 0, 0] * probability).sum().item()
    gamma, d_gamma = (value.item() for value in process.gamma(times))
    h = 1e-4
    d_ce = (cross_entropy(process, time + h) - cross_entropy(process, time - h)) / (2 * h)
    assert d_ce / d_gamma == pytest.approx(0.5 * math.exp(-gamma) * mmse, rel=1e-6)
    loss = (process.nelbo(logp, x0, z, t)[:, 0] * probability).sum().item()
    assert loss == pytest.approx(d_ce, rel=1e-6)


def test_prior_kl_is_the_kl_of_two_gaussians():
    """VP: 1/2 sum (sigma^2 + alpha^2 x^2 - 1 - log sigma^2) at t = 1, summed over the width."""
    process = sphere(norms=True)
    alpha, sigma = (scale.item() for scale in process.scales(process.gamma(torch.tensor([1.0]))[0]))
    x0 = torch.tensor([[0, 1, 2], [3, 4, 4]])
    squared = (process.codebook[x0] ** 2).sum(-1)
    expected = 0.5 * (4 * (sigma**2 - 1 - math.log(sigma**2)) + alpha**2 * squared)
    torch.testing.assert_close(process.prior_kl(x0), expected, rtol=1e-9, atol=0)


def test_prior_is_what_the_bound_charges(kind):
    """The drawn prior is N(0, alpha^2 + sigma^2) at t = 1 (moments within five standard errors of 40 000 draws)."""
    process = sphere(kind)
    z = process.prior((5000, 2), torch.Generator().manual_seed(0))
    assert z.shape == (5000, 2, 4)
    alpha, sigma = (scale.item() for scale in process.scales(process.gamma(torch.tensor([1.0]))[0]))
    variance = alpha**2 + sigma**2
    assert z.mean().item() == pytest.approx(0, abs=5 * math.sqrt(variance / z.numel()))
    assert z.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / z.numel()))


def test_kinds_are_one_process_in_other_units(kind):
    """From the same noise, u = z / alpha, tokens, losses, posteriors and draws agree with VP's at equal gamma."""
    one, other = sphere("vp", norms=True), sphere(kind, norms=True)
    x0 = torch.tensor([[0, 3], [4, 1], [2, 2]])
    t, s = torch.tensor([0.9, 0.4, 0.2], dtype=torch.float64), torch.tensor([0.7, 0.1, 0.0], dtype=torch.float64)
    pi = torch.full((5,), 0.2, dtype=torch.float64)
    results = []
    for process in (one, other):
        at, before = (process.scales(process.gamma(time)[0]) for time in (t, s))
        z = process.corrupt(x0, t, torch.Generator().manual_seed(1))
        logp = posterior_tokens(process, z, t, pi)
        mean, variance = process.posterior(process.mean(logp.exp()), z, t, s)
        drawn = process.ancestral(process.mean(logp.exp()), z, t, s, torch.Generator().manual_seed(2))
        prior = process.prior((3, 2), torch.Generator().manual_seed(3))
        last = process.scales(process.gamma(torch.ones(1))[0])[0][..., None]
        alpha = before[0][..., None]
        results.append(
            {
                "u": z / at[0][..., None],
                "tokens": logp,
                "mean": mean / alpha,
                "variance": variance / alpha**2,
                "draw": drawn / alpha,
                "loss": process.nelbo(logp, x0, z, t),
                "prior_kl": process.prior_kl(x0),
                "prior": prior / last,
                "output_prior": process.output_prior(z, t),
            }
        )
    for name, value in results[0].items():
        named = lambda message, name=name: f"{name}: {message}"  # noqa: E731
        torch.testing.assert_close(results[1][name], value, rtol=1e-10, atol=1e-11, msg=named)


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.3), (0.4, 0.41), (0.2, 1.0), (0.0, 1.0)])
def test_posterior_is_vdm_and_gaussian_conditioning(kind, s, t):
    """Mean (1 - c)(a_s / a_t) z + c a_s x, variance c sigma_s^2, c = 1 - exp(gamma_s - gamma_t); and Bayes."""
    process = sphere(kind)
    s, t = (torch.full((6,), time, dtype=torch.float64) for time in (s, t))
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64)
    p0 = torch.rand(6, 3, 5, generator=generator, dtype=torch.float64)
    p0 = p0 / p0.sum(-1, keepdim=True)
    mean, variance = process.posterior(process.mean(p0), z, t, s)
    variance = variance.expand(mean.shape)
    (gamma_s, _), (gamma_t, _) = process.gamma(s), process.gamma(t)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (
        tuple(scale[..., None] for scale in process.scales(gamma)) for gamma in (gamma_s, gamma_t)
    )
    x = p0 @ process.codebook
    c = -torch.expm1(gamma_s - gamma_t)[..., None]
    torch.testing.assert_close(mean, (1 - c) * alpha_s / alpha_t * z + c * alpha_s * x, rtol=0, atol=1e-12)
    torch.testing.assert_close(variance, (c * sigma_s**2).expand(mean.shape), rtol=1e-12, atol=0)
    # z_s ~ N(a_s x, s_s^2) observed through z = (a_t / a_s) z_s + N(0, s_t^2 - (a_t / a_s)^2 s_s^2)
    ratio = alpha_t / alpha_s
    noise = sigma_t**2 - ratio**2 * sigma_s**2
    precision = 1 / sigma_s**2 + ratio**2 / noise
    torch.testing.assert_close(variance, (1 / precision).expand(mean.shape), rtol=1e-9, atol=0)
    bayes = (alpha_s * x / sigma_s**2 + ratio * z / noise) / precision
    torch.testing.assert_close(mean, bayes, rtol=1e-9, atol=1e-10)


def test_posterior_undoes_the_forward_step(kind):
    """Averaged over z_t ~ q_t(. | x), the reverse kernel given x leaves q_s(. | x): mean and variance."""
    process = sphere(kind)
    x0 = torch.arange(5)[None]
    p0 = torch.eye(5, dtype=torch.float64)[None]
    s, t = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.6], dtype=torch.float64)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (process.scales(process.gamma(time)[0]) for time in (s, t))
    centre = alpha_t[..., None] * process.codebook[x0]
    mean, variance = process.posterior(process.mean(p0), centre, t, s)
    torch.testing.assert_close(mean, alpha_s[..., None] * process.codebook[x0], rtol=0, atol=1e-12)
    moved, _ = process.posterior(process.mean(p0), centre + 1, t, s)
    slope = (moved - mean)[0, 0, 0]
    torch.testing.assert_close(slope**2 * sigma_t[0, 0] ** 2 + variance.flatten()[0], sigma_s[0, 0] ** 2)


@pytest.mark.parametrize("time", [0.2, 0.7])
def test_finite_steps_converge_to_the_integrand(kind, time):
    """KL between the reverse kernels of x and of the prediction, per unit of time, tends to nelbo like 1 / T."""
    process = sphere(kind)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.arange(5)[None]
    t = torch.tensor([time], dtype=torch.float64)
    z = process.corrupt(x0, t, generator)
    logp = torch.randn(1, 5, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    limit = process.nelbo(logp, x0, z, t)

    def rate(steps):
        s = t - 1 / steps
        true, variance = process.posterior(process.codebook[None], z, t, s)
        model, _ = process.posterior(process.mean(logp.exp()), z, t, s)
        return ((true - model) ** 2 / (2 * variance)).sum(-1) * steps

    errors = [(rate(steps) - limit).abs().max().item() for steps in (1_000, 2_000, 4_000)]
    assert errors[-1] < 1e-2 * limit.max().item()
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2, abs=0.05)


def test_score_is_the_gradient_of_the_density(kind):
    """2.2.2: (alpha x_hat - z) / sigma^2 = grad log p_t(z), by autograd of the explicit mixture, 1e-9."""
    process = sphere(kind, norms=True)
    pi = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=torch.float64)
    for level in (0.0, 0.3, 0.8):
        t = torch.full((8,), level, dtype=torch.float64)
        alpha, sigma = (scale[..., None] for scale in process.scales(process.gamma(t)[0]))
        z = process.corrupt(torch.arange(8)[:, None] % 5, t, torch.Generator().manual_seed(0)).requires_grad_()
        distance = ((z[:, :, None] - alpha[..., None] * process.codebook) ** 2).sum(-1)
        log_density = (pi.log() - distance / (2 * sigma**2)).logsumexp(-1)
        (gradient,) = torch.autograd.grad(log_density.sum(), z)
        x_hat = process.mean(posterior_tokens(process, z, t, pi).exp())
        torch.testing.assert_close((alpha * x_hat - z) / sigma**2, gradient, rtol=1e-9, atol=1e-9)


def test_output_prior_is_bayes_for_independent_tokens(kind):
    """2.2.3: log pi + (alpha / sigma^2) z.e - (alpha^2 / 2 sigma^2) |e|^2, unequal norms included."""
    process = sphere(kind, norms=True)
    pi = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=torch.float64)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    z = process.corrupt(torch.arange(14).reshape(7, 2) % 5, t, torch.Generator().manual_seed(0))
    got = (pi.log() + process.output_prior(z, t)).log_softmax(-1)
    torch.testing.assert_close(got, posterior_tokens(process, z, t, pi), rtol=0, atol=1e-11)


def test_equal_norms_make_h_sufficient(kind):
    """2.2.4: with equal norms the posterior depends on (z, gamma) through (alpha / sigma^2) z alone."""
    process = sphere(kind)
    h = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for level in (0.2, 0.9):
        t = torch.tensor([level], dtype=torch.float64)
        alpha, sigma = process.scales(process.gamma(t)[0])
        results.append(process.output_prior(h * (sigma**2 / alpha)[..., None], t).log_softmax(-1))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-11)


def test_corrupt_follows_its_gaussian_and_its_row(kind):
    """Mean alpha x and std sigma (five standard errors of 20 000 draws), per-token times, rows of their own."""
    from redraft.randomness import row_generators

    process = sphere(kind)
    t = torch.tensor([[0.1, 0.8]], dtype=torch.float64)
    x0 = torch.tensor([[1, 4]])
    z = process.corrupt(x0.expand(20_000, -1), t.expand(20_000, -1), torch.Generator().manual_seed(0))
    alpha, sigma = (scale[..., None] for scale in process.scales(process.gamma(t)[0]))
    standard = (z - alpha * process.codebook[x0]) / sigma
    assert (standard.mean(0).abs() < 5 / math.sqrt(20_000)).all()
    assert ((standard.var(0) - 1).abs() < 5 * math.sqrt(2 / 20_000)).all()
    together = process.corrupt(x0.expand(4, -1), t[0, :1].expand(4), row_generators(1, rows=range(4)))
    for row in range(4):
        alone = process.corrupt(x0, t[0, :1], row_generators(1, rows=[row]))
        assert torch.equal(alone[0], together[row])


def ancestral_density(process, steps: int, points: int) -> tuple[Tensor, Tensor]:
    """Grid of z, and log p (points, K) of tokens there at t = 0, weighted by the law of z after ``steps`` steps."""
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    alpha, sigma = (scale.item() for scale in process.scales(process.gamma(t[:1])[0]))
    z = torch.linspace(-4.5, 4.5, points, dtype=torch.float64)
    law = torch.exp(-(z**2) / (2 * (alpha**2 + sigma**2)))
    law = law / law.sum()
    canvas = z[:, None, None]
    for i in range(steps):
        now, after = t[i].expand(points), t[i + 1].expand(points)
        p0 = posterior_tokens(process, canvas, now, PI).exp()
        mean, variance = (value.reshape(-1, 1) for value in process.posterior(process.mean(p0), canvas, now, after))
        kernel = torch.exp(-((z - mean) ** 2) / (2 * variance))
        law = law @ (kernel / kernel.sum(-1, keepdim=True))
    return law, posterior_tokens(process, canvas, t[-1:].expand(points), PI)[:, 0]


def test_ancestral_sampling_reaches_the_law():
    """With the exact denoiser the tokens' law tends to pi like 1 / N, save what the prior KL of .001 nats allows."""
    errors = []
    for steps in (8, 32, 128):
        law, logp = ancestral_density(toy(), steps, 401)
        errors.append((law @ logp.exp() - PI).abs().sum().item() / 2)
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.005


@functools.cache
def grid_law() -> tuple[Tensor, Tensor]:
    return ancestral_density(toy(), 8, 901)


def test_sample_draws_the_propagated_law(kind):
    """``sample`` in 8 steps against densities propagated on a grid, tokens read by argmax; false alarm below 1e-6."""
    process = toy(kind)
    law, logp = grid_law()
    expected = law @ torch.nn.functional.one_hot(logp.argmax(-1), 3).double()
    samples = sampling.sample(process, ExactTokens(process), length=1, num=10_000, steps=8, seed=0)
    assert chi_square_tail(torch.bincount(samples.tokens[:, 0], minlength=3).double(), expected) > 1e-6


def test_objective_holds_all_three_terms(kind):
    """``nelbo`` averages to recon + diffusion + prior, here .3 nats of it, within five standard errors."""
    process = processes.gaussian(CODES, kind, GammaSchedule(gamma_min=-3.0, gamma_max=0.0))
    rows = 20_000
    ids = torch.multinomial(PI, rows, replacement=True, generator=torch.Generator().manual_seed(0))[:, None]
    u = draw("uniform", (0, 0), range(rows), rows)
    loss = objectives.get("nelbo")(ExactTokens(process), process, {"ids": ids}, u, torch.Generator().manual_seed(1))
    prior = (process.prior_kl(torch.arange(3)[None])[0] * PI).sum().item()
    assert prior > 0.2
    error = loss.bound.std().item() / math.sqrt(rows)
    assert loss.bound.mean().item() == pytest.approx(cross_entropy(process, 1.0) + prior, abs=5 * error)
    assert error < 0.02


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_integrate_to_what_times_do(kind, schedule):
    """Even draws over gamma, weighed, have the mean of even draws over t: diffusion, and t = 0 alike; 1e-7."""
    process = toy(kind, schedule)
    node, width = quadrature(400)
    u = 0.125 + 0.875 * node
    means = []
    for spread in (process.times, process.levels):
        t, weight = spread(u)
        x0, z, at, probability = noisy_tokens(process, t)
        loss = process.nelbo(posterior_tokens(process, z, at, PI), x0, z, at)[:, 0]
        means.append(((loss * probability).reshape(len(t), -1).sum(-1) * weight * 0.875 * width).sum().item())
    assert means[0] == pytest.approx(diffusion_loss(process), abs=1e-7)
    assert means[1] == pytest.approx(means[0], abs=1e-7)
    at_zero = process.levels(torch.tensor([0.0, 0.1], dtype=torch.float64))
    assert at_zero[0].tolist() == [0.0, 0.0]
    assert at_zero[1].tolist() == [8.0, 8.0]


def test_levels_are_even_over_gamma():
    process = toy("vp", "sqrt")
    t, _ = process.levels(torch.linspace(0.2, 0.95, 7, dtype=torch.float64))
    steps = process.gamma(t)[0][:, 0].diff()
    torch.testing.assert_close(steps, steps[:1].expand(6), rtol=1e-9, atol=0)
