"""Noise schedules: the end points exact, the derivative the derivative, the closed forms those of the papers."""

import math

import pytest
import torch

from redraft import processes, schedules

T = torch.linspace(0.01, 0.99, 197, dtype=torch.float64)
CLOSED = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: 1 - torch.cos(math.pi / 2 * (1 - t)),
    "cosine_squared": lambda t: torch.cos(math.pi / 2 * t) ** 2,
}
WEIGHTS = {  # -alpha' / (1 - alpha), discrete.md 2.1
    "linear": lambda t: 1 / t,
    "cosine": lambda t: math.pi / 2 * torch.tan(math.pi / 2 * (1 - t)),
}


@pytest.mark.parametrize("name", schedules.NAMES)
def test_end_points_are_exact(name):
    alpha, _ = schedules.get(name)(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert alpha.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("name", schedules.NAMES)
def test_monotone_in_float64(name):
    alpha, derivative = schedules.get(name)(T)
    assert alpha.dtype == derivative.dtype == torch.float64
    assert alpha.shape == derivative.shape == T.shape
    assert (alpha.diff() < 0).all()
    assert (derivative < 0).all()
    assert ((alpha > 0) & (alpha < 1)).all()


@pytest.mark.parametrize("name", schedules.NAMES)
def test_float32_times_lose_nothing_more_than_their_rounding(name):
    t = T.float()
    alpha, derivative = schedules.get(name)(t)
    expected, expected_derivative = schedules.get(name)(t.double())
    assert alpha.dtype == derivative.dtype == torch.float64
    torch.testing.assert_close(alpha, expected, rtol=0, atol=0)
    torch.testing.assert_close(derivative, expected_derivative, rtol=0, atol=0)


@pytest.mark.parametrize("name", schedules.NAMES)
def test_derivative_is_the_derivative(name):
    """Against autograd of alpha, and against a central finite difference (which needs no graph to be right)."""
    schedule = schedules.get(name)
    t = T.clone().requires_grad_()
    alpha, derivative = schedule(t)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    torch.testing.assert_close(derivative.detach(), slope, rtol=1e-9, atol=1e-11)
    h = 1e-5
    finite = (schedule(T + h)[0] - schedule(T - h)[0]) / (2 * h)
    torch.testing.assert_close(schedule(T)[1], finite, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name):
    torch.testing.assert_close(schedules.get(name)(T)[0], CLOSED[name](T), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weight_of_a_mask(name):
    alpha, derivative = schedules.get(name)(T)
    torch.testing.assert_close(-derivative / (1 - alpha), WEIGHTS[name](T), rtol=1e-11, atol=0)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0])
def test_polynomial_is_one_minus_a_power(power):
    """MD4's polynomial schedule, whose weight -alpha' / (1 - alpha) is w / t."""
    (key,) = set(schedules.get("polynomial").to_dict()) - {"name"}
    alpha, derivative = schedules.get("polynomial", **{key: power})(T)
    torch.testing.assert_close(alpha, 1 - T**power, rtol=0, atol=1e-15)
    torch.testing.assert_close(-derivative / T ** (power - 1), power * torch.ones_like(T), rtol=1e-13, atol=0)


def test_sqrt_and_geometric_are_the_papers_formulas_rescaled():
    """Diffusion-LM's 1 - sqrt(t + offset) and SEDD's exp(-sigma) miss an end; the affine map that meets both is one."""
    for name, formula in {
        "sqrt": lambda t, offset: 1 - (t + offset) ** 0.5,
        "geometric": lambda t, sigma_min, sigma_max: torch.exp(-(sigma_min ** (1 - t)) * sigma_max**t),
    }.items():
        schedule = schedules.get(name)
        parameters = {key: value for key, value in schedule.to_dict().items() if key != "name"}
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        first, last = formula(ends, **parameters)
        expected = (formula(T, **parameters) - last) / (first - last)
        torch.testing.assert_close(schedule(T)[0], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", schedules.NAMES)
def test_to_dict_round_trip(name):
    schedule = schedules.get(name)
    saved = schedule.to_dict()
    assert saved["name"] == name
    again = schedules.get(saved.pop("name"), **saved)
    for one, other in zip(schedule(T), again(T), strict=True):
        assert torch.equal(one, other)
    assert again.to_dict() == schedule.to_dict()


def test_a_schedule_passes_through():
    schedule = schedules.get("cosine")
    assert schedules.get(schedule) is schedule


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(ValueError, match=r"linaer.*did you mean 'linear'"):
        schedules.get("linaer")
    with pytest.raises(ValueError, match=r"cosin_squared.*did you mean 'cosine_squared'"):
        processes.masked(3, schedule="cosin_squared")


# ------------------------------------------------------------------------------------------------------- inverse


def everywhere():
    """alpha over [0, 1], both ends and their neighbourhoods included."""
    tail = 10.0 ** -torch.arange(1, 14, dtype=torch.float64)
    return torch.cat([torch.linspace(0, 1, 101, dtype=torch.float64), tail, 1 - tail]).sort().values


@pytest.mark.parametrize("name", schedules.NAMES)
def test_inverse_is_the_inverse(name):
    """schedule(inverse(a)) = a to 1e-12, in closed form and by bisection, and the ends are met exactly."""
    schedule, alpha = schedules.get(name), everywhere()
    t = schedule.inverse(alpha)
    assert t.dtype == torch.float64
    assert ((t >= 0) & (t <= 1)).all()
    torch.testing.assert_close(schedule(t)[0], alpha, rtol=0, atol=1e-12)
    assert schedule.inverse(torch.tensor([1.0, 0.0])).tolist() == [0.0, 1.0]
    halved = schedules.bisect(lambda t: schedule(t)[0], alpha)
    torch.testing.assert_close(schedule(halved)[0], alpha, rtol=0, atol=1e-12)
    inside = (alpha > 0.01) & (alpha < 0.99)
    torch.testing.assert_close(t[inside], halved[inside], rtol=1e-9, atol=1e-12)
    grid = torch.rand(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(schedule(schedule.inverse(grid))[0], grid, rtol=0, atol=1e-12)


def test_inverse_refuses_what_is_no_probability():
    for schedule in (schedules.get("linear"), schedules.Table.of_betas("x", torch.tensor([0.5, 1.0]))):
        for value in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match=str(value)):
                schedule.inverse(torch.tensor([0.5, value], dtype=torch.float64))


# ------------------------------------------------------------------------------------------------- discrete time


@pytest.mark.parametrize("name", schedules.BETAS)
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_table_is_the_product_of_what_each_step_keeps(name, steps):
    betas = schedules.BETAS[name](steps)
    table = schedules.Table.of_betas(name, betas)
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    kept = [1.0]
    for beta in betas.tolist():
        kept.append(kept[-1] * (1 - beta))
    torch.testing.assert_close(table(t)[0], torch.tensor(kept, dtype=torch.float64), rtol=1e-12, atol=0)
    alpha, derivative = table(T)
    steps_up = table(T + 1e-9)[0] - table(T - 1e-9)[0]
    smooth = (T * steps - (T * steps).round()).abs() > 1e-4
    torch.testing.assert_close(derivative[smooth], (steps_up / 2e-9)[smooth], rtol=1e-4, atol=1e-6)
    assert (alpha.diff() <= 0).all()
    reached = table.alphas[-1].item() + (1 - table.alphas[-1].item()) * torch.linspace(0, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(table(table.inverse(reached))[0], reached, rtol=0, atol=1e-12)


def test_t15_reciprocal_betas_are_the_line():
    """T15: beta_i = 1 / (T - i + 1) leaves alpha_i = 1 - i / T, 1e-14."""
    for steps in (1, 2, 16, 1000):
        alphas = schedules.Table.of_betas("reciprocal", schedules.BETAS["reciprocal"](steps)).alphas
        expected = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
        torch.testing.assert_close(alphas, expected, rtol=0, atol=1e-14)
        assert alphas[-1] == 0


def test_cosine_betas_follow_the_cosine_until_clipped():
    i = torch.arange(1001, dtype=torch.float64)
    curve = torch.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2)
    table = schedules.Table.of_betas("cosine", schedules.BETAS["cosine"](1000))
    torch.testing.assert_close(table.alphas[:-1], (curve / curve[0])[:-1], rtol=1e-10, atol=0)
    assert table.alphas[-1].item() == pytest.approx(table.alphas[-2].item() * 0.001, rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, -0.1, 1.5, math.nan])
def test_a_beta_out_of_range_is_named(beta):
    with pytest.raises(ValueError, match=f"beta={beta}.* step 2"):
        schedules.Table.of_betas("custom", torch.tensor([0.1, beta, 1.0], dtype=torch.float64))


# ---------------------------------------------------------------------------------------------- gamma = -log SNR

GAMMAS = ["linear_gamma", "edm", "sqrt", "cosine"]


@pytest.mark.parametrize("name", GAMMAS)
def test_gamma_rises_between_its_ends(name):
    schedule = schedules.GammaSchedule(name, gamma_min=-3.0, gamma_max=6.0)
    ends, _ = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([-3.0, 6.0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert (schedule(T)[0].diff() > 0).all()


@pytest.mark.parametrize("name", GAMMAS)
def test_gamma_derivative_is_the_derivative(name):
    schedule = schedules.GammaSchedule(name, gamma_min=-3.0, gamma_max=6.0)
    h = 1e-5
    finite = (schedule(T + h)[0] - schedule(T - h)[0]) / (2 * h)
    torch.testing.assert_close(schedule(T)[1], finite, rtol=1e-5, atol=1e-8)


def test_linear_gamma_is_linear():
    gamma, derivative = schedules.GammaSchedule("linear_gamma", gamma_min=-3.0, gamma_max=6.0)(T)
    torch.testing.assert_close(gamma, -3 + 9 * T, rtol=0, atol=1e-14)
    torch.testing.assert_close(derivative, torch.full_like(T, 9.0), rtol=0, atol=0)


POWERS = {
    "sqrt": lambda t: 1 - (t + 1e-4).sqrt(),
    "cosine": lambda t: torch.cos(math.pi / 2 * (t + 0.008) / 1.008) ** 2,
}


@pytest.mark.parametrize("name", POWERS)
def test_gamma_of_a_signal_power_squeezes_it(name):
    """alpha^2 of the variance-preserving process is lo + (hi - lo) times the paper's, moved to run from 1 to 0."""
    gamma, _ = schedules.GammaSchedule(name, gamma_min=-3.0, gamma_max=6.0)(T)
    hi, lo = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(6))
    first, last = (POWERS[name](torch.tensor(end, dtype=torch.float64)) for end in (0.0, 1.0))
    share = (POWERS[name](T) - last) / (first - last)
    torch.testing.assert_close(torch.sigmoid(-gamma), lo + (hi - lo) * share, rtol=1e-9, atol=1e-12)


def test_edm_spaces_the_seventh_root_of_sigma_evenly():
    gamma, _ = schedules.GammaSchedule("edm", gamma_min=-3.0, gamma_max=6.0)(
        torch.linspace(0, 1, 11, dtype=torch.float64)
    )
    steps = torch.exp(gamma / 14).diff()
    torch.testing.assert_close(steps, steps[:1].expand(10), rtol=1e-12, atol=0)


def test_an_unknown_gamma_offers_the_nearest():
    with pytest.raises(ValueError, match=r"linear_gama.*did you mean 'linear_gamma'"):
        schedules.GammaSchedule("linear_gama")


@pytest.mark.parametrize(("low", "high"), [(-40.0, 6.0), (-4.0, 800.0), (3.0, 3.0), (float("nan"), 1.0)])
def test_ends_that_float64_cannot_tell_from_nothing_are_refused(low, high):
    with pytest.raises(ValueError, match=r"gamma_min=.*both within 30 of 0"):
        schedules.GammaSchedule("cosine", low, high)
    for name in ("cosine", "sqrt", "edm", "linear_gamma"):
        gamma, slope = schedules.GammaSchedule(name, -30.0, 30.0)(T)
        assert gamma.isfinite().all()
        assert slope.isfinite().all()
