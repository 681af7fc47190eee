"""A step of the samplers of vectors: its coefficients in every paper's coordinates, and what the options make of it."""

import math

import pytest
import torch
from torch import Tensor

from redraft.processes import Channel
from redraft.randomness import row_generators
from redraft.sampling import samplers
from redraft.sampling.contract import Draw
from redraft.schedules import GammaSchedule, time_of

from .chain import noise
from .line import KINDS, PI, SCHEDULES, posterior_tokens
from .test_flow_samplers import DETERMINISTIC, columns, line, quantiles, query, run


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


# ------------------------------------------------------------------------------------------------------- coefficients


def some(process) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, z, t and s of six rows, short steps and long."""
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(6, 3, process.D, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([1.0, 1.0, 0.6, 0.5, 0.3, 1e-3], dtype=torch.float64)
    return x, z, t, torch.tensor([0.999, 0.0, 0.1, 0.499999, 0.0, 0.0], dtype=torch.float64)


def test_2_2_6_ddpm_is_vdm_is_full_strength():
    """DDPM's posterior in terms of alpha-bar and beta, (Ho et al. 2020, eq. 7), VDM's, and eta = 1: 1e-12."""
    process = noise("vp")
    x, z, t, s = some(process)
    (alpha_t, _), (alpha_s, sigma_s) = columns(process, t, s)
    bar_t, bar_s = alpha_t**2, alpha_s**2
    beta = 1 - bar_t / bar_s
    ddpm = bar_s.sqrt() * beta / (1 - bar_t) * x + (bar_t / bar_s).sqrt() * (1 - bar_s) / (1 - bar_t) * z
    c = -torch.expm1(process.gamma(s)[0] - process.gamma(t)[0])[..., None]
    mean, variance = process.posterior(x, z, t, s)
    torch.testing.assert_close(mean, ddpm, rtol=0, atol=1e-12)
    torch.testing.assert_close(mean, (1 - c) * alpha_s / alpha_t * z + c * alpha_s * x, rtol=0, atol=1e-13)
    torch.testing.assert_close(variance, beta * (1 - bar_s) / (1 - bar_t), rtol=1e-9, atol=0)
    torch.testing.assert_close(variance, c * sigma_s**2, rtol=1e-14, atol=0)
    drawn = process.step(x, z, t, s, 1.0, torch.Generator().manual_seed(5))
    xi = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    torch.testing.assert_close(drawn, ddpm + variance.sqrt() * xi, rtol=0, atol=1e-12)
    assert torch.equal(drawn, process.ancestral(x, z, t, s, torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.9])
def test_generalised_step_is_its_formula_and_keeps_marginals(kind, eta):
    """alpha_s x + sqrt(sigma_s^2 - eta^2 sigma_s^2 c) eps + eta sigma_s sqrt(c) xi; q_t(. | x) goes to q_s(. | x)."""
    process = noise(kind)
    x, z, t, s = some(process)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = columns(process, t, s)
    c = -torch.expm1(process.gamma(s)[0] - process.gamma(t)[0])[..., None]
    xi = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    kept = (sigma_s**2 - eta**2 * sigma_s**2 * c).sqrt()
    expected = alpha_s * x + kept * (z - alpha_t * x) / sigma_t + eta * sigma_s * c.sqrt() * xi
    got = process.step(x, z, t, s, eta, torch.Generator().manual_seed(5))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    at_mean, variance = process.posterior(x, alpha_t * x, t, s, eta)
    above, _ = process.posterior(x, alpha_t * x + sigma_t, t, s, eta)
    torch.testing.assert_close(at_mean, alpha_s * x, rtol=0, atol=1e-12)
    torch.testing.assert_close((above - at_mean) ** 2 + variance, (sigma_s**2).expand(x.shape), rtol=1e-11, atol=0)


def test_2_2_7_ddim_is_eulers_step_in_every_coordinate():
    """DDIM in VP = EDM's Euler in (u, sigma~) = RF's in (z, tau) = Euler in (y, r) = (z / sigma, alpha / sigma)."""
    process, rf = noise("vp"), noise("rf")
    x, z, t, s = some(process)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = columns(process, t, s)
    u, low, high = z / alpha_t, sigma_s / alpha_s, sigma_t / alpha_t
    ddim = process.step(x, z, t, s, 0.0) / alpha_s
    torch.testing.assert_close(ddim, u + (low - high) * (u - x) / high, rtol=0, atol=1e-10)
    y = z / sigma_t + (1 / low - 1 / high) * x
    torch.testing.assert_close(ddim, low * y, rtol=0, atol=1e-10)
    (tau, rest), (tau_s, _) = columns(rf, t, s)
    moved = tau * u + (tau_s - tau) * (x - tau * u) / rest
    torch.testing.assert_close(ddim, moved / tau_s, rtol=0, atol=1e-10)
    for other in (rf, noise("ve")):
        (alpha, _), (alpha_after, _) = columns(other, t, s)
        torch.testing.assert_close(other.step(x, alpha * u, t, s, 0.0) / alpha_after, ddim, rtol=0, atol=1e-10)


def test_step_draws_only_for_noise_and_a_row_at_a_time():
    """eta = 0 leaves the generator where it was; row 2 of 6 is row 2 alone; gradients pass to x and z."""
    process = noise()
    x, z, t, s = some(process)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    process.step(x, z, t, s, 0.0, generator)
    assert torch.equal(before, generator.get_state())
    together = process.step(x, z, t, s, 0.7, row_generators(1, rows=range(6)))
    alone = process.step(x[2:3], z[2:3], t[2:3], s[2:3], 0.7, row_generators(1, rows=[2]))
    assert torch.equal(together[2:3], alone)
    parts = x[:2].clone().requires_grad_(), z[:2].clone().requires_grad_()
    leaves = torch.autograd.grad(process.step(*parts, t[:2], s[:2], 1.0).sum(), parts)
    (alpha_t, _), (alpha_s, _) = columns(process, t[:2], s[:2])
    c = -torch.expm1(process.gamma(s[:2])[0] - process.gamma(t[:2])[0])[..., None]
    torch.testing.assert_close(leaves[0], (c * alpha_s).expand(x[:2].shape), rtol=1e-9, atol=0)
    torch.testing.assert_close(leaves[1], ((1 - c) * alpha_s / alpha_t).expand(x[:2].shape), rtol=1e-9, atol=1e-15)


def test_heun_takes_the_mean_of_both_slopes(kind):
    """u_s = u + (sigma~_s - sigma~_t) (d1 + d2) / 2, d = (u - x_hat) / sigma~ at t and at Euler's point; 1e-12."""
    process = line(kind)
    t, s = torch.full((5,), 0.7, dtype=torch.float64), torch.full((5,), 0.5, dtype=torch.float64)
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None, None]
    (alpha_t, sigma_t), (alpha_s, sigma_s) = columns(process, t, s)
    u, high, low = z / alpha_t, sigma_t / alpha_t, sigma_s / alpha_s
    said = query(process)
    first = (u - said(z, t)) / high
    euler = u + (low - high) * first
    second = (euler - said(alpha_s * euler, s)) / low
    got = samplers.heun(process, said, z, t, s, Draw(torch.zeros(5, 1, dtype=torch.bool), None))
    torch.testing.assert_close(got / alpha_s, u + (low - high) * (first + second) / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_of_a_noise_level(schedule):
    """gamma at the t of a gamma, and t itself except where the cosine stands still, to 1e-12; past an end, the end."""
    made = GammaSchedule(schedule, -5.0, 7.0)
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    found = time_of(made, made(t)[0])
    torch.testing.assert_close(made(found)[0], made(t)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[:-1], t[:-1], rtol=0, atol=1e-12)
    assert time_of(made, torch.tensor([-9.0, 9.0])).tolist() == pytest.approx([0.0, 1.0], abs=1e-15)


# ------------------------------------------------------------------------------------------------------------ options


def token_error(sampler: str, steps: int = 64) -> float:
    """Total variation between pi and the law of the token after an ODE from 801 quantiles of q_1, no draws."""
    process = line()
    z, level = quantiles(process, 801)
    end = run(process, query(process), sampler, z, steps)
    p = posterior_tokens(process, end, torch.zeros(801, dtype=torch.float64), PI)[:, 0].exp()
    law = torch.trapezoid(p, level[:, None], dim=0)
    return ((law / law.sum() - PI).abs().sum() / 2).item()


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_clamping_samples_another_law(sampler):
    """Section 3.7: pi comes out only with clamping off; on, the total variation is above 0.1 however fine the steps."""
    assert token_error(sampler) < 0.01
    assert token_error(f"{sampler}:clamp=true") > 0.1
    assert token_error(f"{sampler}:clamp=true", 128) > 0.1


def test_what_a_clamped_step_believes_is_a_row():
    """One step down to s from x_hat's nearest row; with tau, of the sharpened x_hat."""
    process = line()
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None, None]
    t, s = torch.full((9,), 0.6, dtype=torch.float64), torch.full((9,), 0.5, dtype=torch.float64)
    draw = Draw(torch.zeros(9, 1, dtype=torch.bool), None)
    x = query(process)(z, t)
    ((alpha, sigma),) = columns(process, t)
    got = samplers.get("ddim:clamp=true")(process, query(process), z, t, s, draw)
    assert torch.equal(got, process.step(process.codebook[process.nearest(x)], z, t, s, 0.0))
    sharper = (z - sigma * ((z - alpha * x) / sigma / 0.5)) / alpha
    got = samplers.get("ddim:tau=0.5")(process, query(process), z, t, s, draw)
    torch.testing.assert_close(got, process.step(sharper, z, t, s, 0.0), rtol=0, atol=1e-12)
    rows = process.codebook[process.nearest(sharper)]
    assert not torch.equal(rows, process.codebook[process.nearest(x)])
    got = samplers.get("ddim:clamp=true,tau=0.5")(process, query(process), z, t, s, draw)
    assert torch.equal(got, process.step(rows, z, t, s, 0.0))


@pytest.mark.parametrize("sampler", ["euler", "ddim", "heun", "churn"])
def test_only_a_temperature_of_one_is_exact(sampler):
    process = line()
    z, _ = quantiles(process, 21)
    end = lambda name: run(process, query(process), name, z, 12, torch.Generator().manual_seed(0))  # noqa: E731
    assert torch.equal(end(f"{sampler}:tau=1"), end(sampler))
    assert not torch.allclose(end(f"{sampler}:tau=0.9"), end(sampler), atol=1e-3)
    assert token_error("heun:tau=0.9") > 0.03 > 3 * token_error("heun")


def test_churn_without_noise_is_its_orders_step_and_never_passes_the_prior():
    process = line()
    z, _ = quantiles(process, 21)
    for order, plain in ((1, "ddim"), (2, "heun")):
        generator = torch.Generator().manual_seed(0)
        before = generator.get_state()
        still = run(process, query(process), f"churn:churn=0,order={order}", z, 8, generator)
        assert torch.equal(still, run(process, query(process), plain, z, 8))
        assert torch.equal(before, generator.get_state())
    asked: list[float] = []

    def said(z, t):
        asked.append(t[0].item())
        return query(process)(z, t)

    run(process, said, "churn:churn=0.5,order=1", z, 4, torch.Generator().manual_seed(0))
    raised = 2 * math.log(1.5) / 9  # of gamma's 9 nats
    assert asked == pytest.approx([1.0, 0.75 + raised, 0.5 + raised, 0.25 + raised], abs=1e-12)
    run(process, said, "churn:churn=9,order=1", z, 4, torch.Generator().manual_seed(0))
    assert asked[4:] == pytest.approx([1.0, 1.0, 1.0, 0.25 + 2 * math.log(10) / 9], abs=1e-12)


def test_a_channel_of_vectors_without_tokens_is_sampled_alike():
    """x ~ N(0, 1) under exact means: every sampler keeps the variance alpha^2 + sigma^2 = 1 of VP (5 s.e.)."""
    channel = Channel("vp", GammaSchedule("linear_gamma", -6.0, 6.0))
    said = lambda z, t: channel.scales(channel.gamma(t)[0])[0][..., None] * z  # noqa: E731
    z = torch.randn(4000, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sampler in ("ddim:eta=1", "heun", "churn"):
        end = run(channel, said, sampler, z, 100, torch.Generator().manual_seed(1))
        assert end.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / z.numel()) + 0.01)
    with pytest.raises(ValueError, match="no codebook to be rounded to"):
        run(channel, said, "ddim:clamp=true", z, 2)
