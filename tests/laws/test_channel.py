"""The channel of vectors: every conversion against its definition, float64; codebooks that are read normalised.

Numbers are those of the reference for Gaussian processes. gamma = -log SNR, u = z / alpha, sigma~ = sigma / alpha.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from redraft import processes
from redraft.processes.gaussian import PREDICTIONS, Channel
from redraft.randomness import row_generators
from redraft.schedules import GammaSchedule

KINDS = ["vp", "ve", "rf"]
GAMMAS = torch.linspace(-7, 7, 8, dtype=torch.float64)[:, None]  # (B, 1): a row a noise level


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=sorted(PREDICTIONS))
def predicts(request):
    return request.param


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def channel(kind: str = "vp", low: float = -4.0, high: float = 6.0, power: float = 1.0) -> Channel:
    return Channel(kind, GammaSchedule("linear_gamma", low, high), power)


def noisy(one: Channel, gamma: Tensor = GAMMAS) -> tuple[Tensor, Tensor, Tensor]:
    """x, eps and z = alpha x + sigma eps; (B, 3, 5) each."""
    x, eps = randn(len(gamma), 3, 5), randn(len(gamma), 3, 5, seed=1)
    alpha, sigma = (scale[..., None] for scale in one.scales(gamma))
    return x, eps, alpha * x + sigma * eps


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted.expand(found.shape), rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------------ predictions


def test_every_prediction_converts_both_ways(kind, predicts):
    """``denoised`` undoes ``predicted`` and the reverse, at one gamma a row and at one a position."""
    one = channel(kind, power=0.3)
    for gamma in (GAMMAS, GAMMAS + torch.linspace(-1, 1, 3, dtype=torch.float64)):
        x, _, z = noisy(one, gamma)
        value = one.predicted(x, predicts, z, gamma)
        # x = a u + b f cancels e^(|gamma| / 2), 33 here, of its terms
        close(one.denoised(value, predicts, z, gamma), x, 1e-12)
        close(one.predicted(one.denoised(x, predicts, z, gamma), predicts, z, gamma), x, 1e-12)


def test_x0_and_epsilon_are_what_they_are_called(kind):
    one = channel(kind)
    x, eps, z = noisy(one)
    alpha, sigma = (scale[..., None] for scale in one.scales(GAMMAS))
    close(one.predicted(x, "x0", z, GAMMAS), x)
    close(one.predicted(x, "epsilon", z, GAMMAS), (z - alpha * x) / sigma, 1e-11)
    close(one.predicted(x, "epsilon", z, GAMMAS), eps, 1e-11)


def test_v_is_alpha_eps_minus_sigma_x_in_vp_units(kind):
    """v = alpha eps - sigma x with the scales of VP; x = alpha z - sigma v and eps = sigma z + alpha v there."""
    one, vp = channel(kind), channel("vp")
    x, eps, z = noisy(one)
    alpha, sigma = (scale[..., None] for scale in vp.scales(GAMMAS))
    v = one.predicted(x, "v", z, GAMMAS)
    close(v, alpha * eps - sigma * x, 1e-11)
    z = alpha * x + sigma * eps
    close(vp.denoised(v, "v", z, GAMMAS), alpha * z - sigma * v, 1e-11)
    close(sigma * z + alpha * v, eps, 1e-11)


def test_velocity_is_that_of_the_line_to_the_data(kind):
    """(x - z) / (1 - tau) with RF's z = tau x + (1 - tau) eps, whatever the kind: x - eps."""
    one, rf = channel(kind), channel("rf")
    x, eps, z = noisy(one)
    tau, rest = (scale[..., None] for scale in rf.scales(GAMMAS))
    close(rest, 1 - tau)
    line = tau * x + rest * eps
    velocity = one.predicted(x, "velocity", z, GAMMAS)
    close(velocity, (x - line) / (1 - tau), 1e-11)
    close(velocity, x - eps, 1e-11)


def test_2_2_8_edm_preconditioning_gives_unit_variances(kind):
    """D = c_skip u + c_out F(c_in u): network input and target have variance 1, and the target is free of the input.

    Exactly, from the coefficients: for x of variance ``power`` and eps of 1, independent, F = p x + q eps.
    """
    power = 0.3
    one = channel(kind, power=power)
    alpha, sigma = one.scales(GAMMAS)
    noise = torch.exp(GAMMAS)  # sigma~^2
    skip, out = power / (noise + power), (noise * power / (noise + power)).sqrt()
    x, _, z = noisy(one)
    wanted = (x - skip[..., None] * z / alpha[..., None]) / out[..., None]
    close(one.predicted(x, "edm", z, GAMMAS), wanted, 1e-11)

    unit, nothing = torch.ones(len(GAMMAS), 1, 1, dtype=torch.float64), torch.zeros(len(GAMMAS), 1, 1)
    by_x = one.predicted(unit, "edm", alpha[..., None] * unit, GAMMAS)[..., 0]
    by_eps = one.predicted(nothing.double(), "edm", sigma[..., None] * unit, GAMMAS)[..., 0]
    scale = one.input_scale(GAMMAS)
    close(by_x**2 * power + by_eps**2, torch.ones(()).double())
    close(scale**2 * (alpha**2 * power + sigma**2), torch.ones(()).double())
    close(by_x * alpha * power + by_eps * sigma, torch.zeros(()).double())


def test_input_scale_is_karras_c_in_and_plaids():
    """1 / sqrt(sigma~^2 + sigma_d^2) on u; on unit rows of width d in VP, 1 / sqrt(alpha^2 / d + sigma^2) on z."""
    alpha, _ = channel("vp").scales(GAMMAS)
    close(channel("ve", power=0.7).input_scale(GAMMAS), (torch.exp(GAMMAS) + 0.7).rsqrt())
    d = 6
    process = processes.gaussian(F.normalize(randn(11, d), dim=-1))
    assert process.power == pytest.approx(1 / d, rel=1e-12)
    close(process.input_scale(GAMMAS), (alpha**2 / d + 1 - alpha**2).rsqrt())


def test_error_weight_is_the_table_of_1_5(predicts):
    """An error e = |x - x_hat|^2 is so many times larger in the prediction: SNR, SNR + 1, 1 / (1 - tau)^2, EDM's, 1."""
    power = 0.3
    tau, _ = channel("rf").scales(GAMMAS)
    snr, noise = torch.exp(-GAMMAS), torch.exp(GAMMAS)
    table = {
        "x0": torch.ones_like(GAMMAS),
        "epsilon": snr,
        "v": snr + 1,
        "velocity": (1 - tau) ** -2,
        "edm": (noise + power) / (noise * power),
    }
    for kind in KINDS:
        one = channel(kind, power=power)
        close(one.error_weight(predicts, GAMMAS), table[predicts], 1e-11)
        x, _, z = noisy(one)
        other = x + randn(*x.shape, seed=2)
        target, said = (one.predicted(value, predicts, z, GAMMAS) for value in (x, other))
        squared = ((x - other) ** 2).sum(-1)
        close(((target - said) ** 2).sum(-1), one.error_weight(predicts, GAMMAS) * squared, 1e-10)


def test_vlb_is_half_the_error_in_epsilon():
    """1/2 exp(-gamma) gamma' |x - x_hat|^2 = 1/2 gamma' |eps - eps_hat|^2."""
    one = channel()
    x, _, z = noisy(one)
    other = x + randn(*x.shape, seed=2)
    errors = [
        ((one.predicted(x, name, z, GAMMAS) - one.predicted(other, name, z, GAMMAS)) ** 2).sum(-1)
        for name in ("x0", "epsilon")
    ]
    slope = torch.full_like(GAMMAS, 10.0)
    close(one.vlb(errors[0], GAMMAS, slope), 0.5 * slope * errors[1], 1e-10)
    assert one.vlb(errors[0].float(), GAMMAS, slope).dtype == torch.float32


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown prediction 'epsilom'; did you mean 'epsilon'"):
        channel().denoised(randn(1, 1, 1), "epsilom", randn(1, 1, 1), GAMMAS[:1])
    with pytest.raises(ValueError, match="unknown kind of Gaussian process 'v'"):
        Channel("v")
    with pytest.raises(ValueError, match=r"codebook of shape \(3,\): pass one row per token"):
        processes.gaussian(randn(3))


# ------------------------------------------------------------------------------------------------- what the noise is


def test_noised_is_corrupt_without_tokens(kind):
    """z = alpha x + sigma eps with the generator's eps, in x's dtype; ``corrupt`` is that of the tokens' rows."""
    process = processes.gaussian(randn(7, 4), kind)
    x0, t = torch.tensor([[0, 6, 3], [2, 2, 5]]), torch.tensor([0.2, 0.9])
    gamma = process.gamma(t)[0]
    alpha, sigma = (scale[..., None] for scale in process.scales(gamma))
    z = process.noised(process.codebook[x0], gamma, torch.Generator().manual_seed(3))
    close(z, alpha * process.codebook[x0] + sigma * randn(2, 3, 4, seed=3))
    assert torch.equal(process.corrupt(x0, t, torch.Generator().manual_seed(3)), z)
    single = process.noised(process.codebook[x0].float(), gamma, torch.Generator().manual_seed(3))
    assert single.dtype == torch.float32
    together = process.noised(process.codebook[x0], gamma, row_generators(1, rows=[0, 1]))
    alone = process.noised(process.codebook[x0[1:]], gamma[1:], row_generators(1, rows=[1]))
    assert torch.equal(together[1:], alone)


def test_ends_and_prior_are_those_of_unit_variance_data(kind):
    """std = sqrt(alpha_1^2 + sigma_1^2): 1 for VP; the prior is N(0, std^2), drawn in float64 on row generators."""
    process = processes.gaussian(randn(7, 4), kind, GammaSchedule("linear_gamma", -4.0, 3.0))
    alpha, sigma, std = process.ends()
    close(torch.log(sigma**2 / alpha**2), torch.tensor(3.0).double())
    close(std**2, alpha**2 + sigma**2)
    formulas = {"vp": 1.0, "ve": math.sqrt(1 + math.exp(3)), "rf": math.sqrt(1 + math.exp(3)) / (1 + math.exp(1.5))}
    assert std.item() == pytest.approx(formulas[kind], rel=1e-12)
    z = process.prior((2, 5), torch.Generator().manual_seed(3))
    close(z, std * randn(2, 5, 4, seed=3))
    rows = process.prior((2, 5), row_generators(4, rows=[0, 1]))
    assert torch.equal(rows[1:], process.prior((1, 5), row_generators(4, rows=[1])))


def test_power_is_the_mean_square_of_a_coordinate():
    """Measured on the codebook unless given; 1 / D for normalised rows; kept by ``to`` and in what is stored."""
    table = 3 * randn(7, 4)
    assert processes.gaussian(table).power == pytest.approx((table**2).mean().item(), rel=1e-12)
    assert processes.gaussian(table, normalise=True).power == 1 / 4
    assert processes.Gaussian(table, power=2.0).to("cpu").power == 2.0
    again = processes.from_dict({**processes.gaussian(table).to_dict(), "power": 2.5}, {"codebook": table})
    assert again.power == 2.5
    assert processes.gaussian(torch.zeros(3, 2)).power == 1.0  # a codebook that is still to be filled


# --------------------------------------------------------------------------------------------- scores, SDE and ODE


def log_density(process: processes.Gaussian, z: Tensor, gamma: Tensor) -> Tensor:
    """log p_gamma(z) of tokens alike and independent, summed: an explicit mixture of Gaussians."""
    alpha, sigma = (scale[..., None, None] for scale in process.scales(gamma))
    distance = ((z[:, :, None] - alpha * process.codebook) ** 2).sum(-1, keepdim=True)
    parts = -distance / (2 * sigma**2) - process.D * sigma.log() - math.log(process.K)
    return parts[..., 0].logsumexp(-1) - process.D / 2 * math.log(2 * math.pi)


def score(process: processes.Gaussian, z: Tensor, gamma: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(process, z, gamma).sum(), z)
    return gradient


def denoised(process: processes.Gaussian, z: Tensor, gamma: Tensor) -> Tensor:
    """x_hat of tokens alike and independent: the evidence alone."""
    return process.mean(process.evidence(z, gamma).softmax(-1))


def test_score_is_both_of_its_forms(kind):
    """grad log p(z) = (alpha x_hat - z) / sigma^2 = -eps_hat / sigma, with the exact x_hat (Tweedie)."""
    process = processes.gaussian(randn(7, 4), kind)
    gamma = torch.linspace(-3, 5, 6, dtype=torch.float64)[:, None]
    alpha, sigma = (scale[..., None] for scale in process.scales(gamma))
    z = process.noised(process.codebook[torch.arange(18).reshape(6, 3) % 7], gamma, torch.Generator().manual_seed(0))
    x = denoised(process, z, gamma)
    wanted = score(process, z, gamma)
    close((alpha * x - z) / sigma**2, wanted, 1e-9)
    close(-process.predicted(x, "epsilon", z, gamma) / sigma, wanted, 1e-9)


def test_1_6_forward_sde_of_vp():
    """dz = -1/2 beta z dt + sqrt(beta) dW with beta = sigma^2 gamma': the scales solve its moment equations.

    alpha' = -1/2 beta alpha and (sigma^2)' = beta (1 - sigma^2), by central differences; of VE alpha' = 0 and
    (sigma^2)' = gamma' sigma^2.
    """
    h = 1e-5
    for name in ("linear_gamma", "cosine", "sqrt", "edm"):
        for kind in ("vp", "ve"):
            one = Channel(kind, GammaSchedule(name, -3.0, 5.0))
            t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
            gamma, slope = one.gamma(t)
            alpha, sigma = one.scales(gamma)
            (low_a, low_s), (high_a, high_s) = (one.scales(one.gamma(at)[0]) for at in (t - h, t + h))
            d_alpha, d_power = (high_a - low_a) / (2 * h), (high_s**2 - low_s**2) / (2 * h)
            beta = sigma**2 * slope
            if kind == "vp":
                close(d_alpha, -0.5 * beta * alpha, 1e-6)
                close(d_power, beta * (1 - sigma**2), 1e-6)
            else:
                close(d_alpha, torch.zeros(()).double())
                torch.testing.assert_close(d_power, slope * sigma**2, rtol=1e-6, atol=1e-6)


def flow(process: processes.Gaussian, z: Tensor, first: float, last: float, steps: int = 4_000) -> Tensor:
    """Probability flow from gamma ``first`` to ``last`` in VE units, du / d sigma~ = (u - x_hat) / sigma~."""
    ve = processes.gaussian(process.codebook, "ve")
    times = torch.linspace(first / 2, last / 2, steps + 1, dtype=torch.float64).exp()
    u = z
    for now, after in itertools.pairwise(times):
        middle, gamma = (now + after) / 2, torch.stack([now, (now + after) / 2]).log().mul(2)
        slope = (u - denoised(ve, u, gamma[:1, None])) / now
        half = u + slope * (middle - now)
        u = u + (half - denoised(ve, half, gamma[1:, None])) / middle * (after - now)
    return u


def test_1_6_three_forms_of_the_probability_flow():
    """du / d sigma~ = (u - x_hat) / sigma~; dy / dr = x_hat with y = z / sigma, r = 1 / sigma~; RF dz / dtau =
    (x_hat - z) / (1 - tau): along one path of the first, finite differences of the others hold, in every kind.
    """
    process = processes.gaussian(F.normalize(randn(7, 4), dim=-1), "ve")
    start, level, h = 4.0, 0.5, 1e-3
    u = process.noised(
        process.codebook[torch.tensor([[0, 3, 5]])], torch.tensor([[start]]).double(), torch.Generator().manual_seed(0)
    )
    middle = flow(process, u, start, level)
    ends = [flow(process, middle, level, level + step, steps=20) for step in (-h, h)]
    gammas = torch.tensor([[level - h], [level], [level + h]], dtype=torch.float64)
    x = denoised(process, middle, gammas[1:2])

    noise, r = torch.exp(gammas / 2), torch.exp(-gammas / 2)
    d_u = (ends[1] - ends[0]) / (noise[2] - noise[0])
    torch.testing.assert_close(d_u, (middle - x) / noise[1], rtol=1e-5, atol=1e-5)

    y = [one / noise[i] for i, one in ((0, ends[0]), (2, ends[1]))]  # u = z / alpha, so z / sigma = u / sigma~
    torch.testing.assert_close((y[1] - y[0]) / (r[2] - r[0]), x, rtol=1e-5, atol=1e-5)

    rf = Channel("rf")
    tau = rf.scales(gammas)[0]
    z = [tau[i] * one for i, one in ((0, ends[0]), (1, middle), (2, ends[1]))]
    d_z = (z[2] - z[0]) / (tau[2] - tau[0])
    torch.testing.assert_close(d_z, (x - z[1]) / (1 - tau[1]), rtol=1e-5, atol=1e-5)
    velocity = rf.predicted(x, "velocity", z[1], gammas[1:2])
    torch.testing.assert_close(d_z, velocity, rtol=1e-5, atol=1e-5)

    vp = Channel("vp")  # f = -1/2 beta z, less half the squared diffusion times the score
    alpha, sigma = vp.scales(gammas)
    z = [alpha[i] * one for i, one in ((0, ends[0]), (1, middle), (2, ends[1]))]
    d_z = (z[2] - z[0]) / (2 * h)  # along gamma, where beta is sigma^2
    score_there = (alpha[1] * x - z[1]) / sigma[1] ** 2
    torch.testing.assert_close(d_z, -0.5 * sigma[1] ** 2 * (z[1] + score_there), rtol=1e-5, atol=1e-5)


def test_the_posterior_is_of_vectors():
    """``ancestral`` draws the mean and variance of ``posterior``, whatever x_hat is: it need be no mean of rows."""
    one = channel("rf")
    x, z = 3 * randn(2, 3, 5), randn(2, 3, 5, seed=1)
    t, s = torch.tensor([0.7, 0.4]).double(), torch.tensor([0.5, 0.0]).double()
    mean, variance = one.posterior(x, z, t, s)
    close(one.ancestral(x, z, t, s, torch.Generator().manual_seed(2)), mean + variance.sqrt() * randn(2, 3, 5, seed=2))
    # a step of no length leaves z
    still, none = one.posterior(x, z, t, t)
    close(still, z)
    close(none, torch.zeros(()).double())


# ----------------------------------------------------------------------------------------------------------- tokens


def test_normalised_rows_have_norm_one_whatever_the_table(kind):
    """A normalised process is a plain one on the normalised table; its gradient reaches the table, across its rows."""
    table = (randn(7, 4) * torch.logspace(-3, 3, 7, dtype=torch.float64)[:, None]).requires_grad_()
    process = processes.gaussian(table, kind, learned=True, normalise=True)
    plain = processes.gaussian(F.normalize(table.detach(), dim=-1), kind)
    close(process.codebook.norm(dim=-1), torch.ones(()).double())
    x0, t = torch.tensor([[0, 6, 3]]), torch.tensor([0.4])
    z = plain.corrupt(x0, t, torch.Generator().manual_seed(0))
    logp = randn(1, 3, 7).log_softmax(-1)
    assert process.power == pytest.approx(plain.power, rel=1e-12)
    for name, arguments in {
        "corrupt": (x0, t, torch.Generator().manual_seed(0)),
        "mean": (logp.exp(),),
        "nelbo": (logp, x0, z, t),
        "prior_kl": (x0,),
        "output_prior": (z, t),
        "rounding": (z,),
    }.items():
        generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        passed = [[g if isinstance(one, torch.Generator) else one for one in arguments] for g in generators]
        close(getattr(process, name)(*passed[0]), getattr(plain, name)(*passed[1]), 1e-11)
    assert torch.equal(process.nearest(z), plain.nearest(z))

    process.nelbo(logp, x0, process.corrupt(x0, t, torch.Generator().manual_seed(0)), t).sum().backward()
    assert table.grad is not None
    assert (table.grad[x0[0]].abs().sum(-1) > 0).all()
    along = (table.grad * table.detach()).sum(-1)
    close(along / table.detach().norm(dim=-1) / (table.grad.norm(dim=-1) + 1e-300), torch.zeros(()).double(), 1e-9)


def test_evidence_is_the_log_likelihood_of_each_token(kind):
    """evidence(z, gamma) = log N(z; alpha e_v, sigma^2) up to a constant of v, norms unequal; ``output_prior`` at t."""
    process = processes.gaussian(randn(7, 4), kind)
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    gamma = process.gamma(t)[0]
    alpha, sigma = (scale[..., None, None] for scale in process.scales(gamma))
    z = process.noised(process.codebook[torch.arange(18).reshape(6, 3) % 7], gamma, torch.Generator().manual_seed(0))
    density = torch.distributions.Normal(alpha * process.codebook, sigma).log_prob(z[:, :, None]).sum(-1)
    difference = process.evidence(z, gamma) - density
    close(difference, difference[..., :1], 1e-9)
    assert torch.equal(process.output_prior(z, t), process.evidence(z, gamma))
    per_position = gamma.expand(-1, 3).contiguous()
    assert torch.equal(process.evidence(z, per_position), process.evidence(z, gamma))


def test_rounding_is_bayes_at_the_noise_of_zero(kind):
    """p(token | x) for x seen through e^(gamma_0 / 2) eps: the explicit densities, norms unequal, in every kind."""
    process = processes.gaussian(randn(7, 4), kind, GammaSchedule("linear_gamma", -1.5, 6.0))
    x = randn(5, 3, 4, seed=1)
    density = torch.distributions.Normal(process.codebook, math.exp(-0.75)).log_prob(x[:, :, None]).sum(-1)
    logp = process.rounding(x)
    close(logp, density.log_softmax(-1), 1e-11)
    # it is the evidence of a clean vector put where the noise of t = 0 left none
    alpha, _ = process.scales(process.schedule(torch.zeros(()))[0])
    close(logp, process.output_prior(alpha * x, torch.zeros(5)).log_softmax(-1), 1e-11)


def test_nearest_is_the_least_distance():
    """argmin |x - e_v|, also where a longer row has the larger product; of equals the lowest id; rounding's mode."""
    process = processes.gaussian(randn(7, 4) * torch.linspace(0.2, 3, 7, dtype=torch.float64)[:, None])
    x = 2 * randn(50, 3, 4, seed=1)
    distance = ((x[:, :, None] - process.codebook) ** 2).sum(-1)
    assert torch.equal(process.nearest(x), distance.argmin(-1))
    assert torch.equal(process.rounding(x).argmax(-1), distance.argmin(-1))
    assert (process.nearest(x) != (x @ process.codebook.T).argmax(-1)).any()
    assert torch.equal(process.nearest(process.codebook[None]), torch.arange(7)[None])
    twins = processes.gaussian(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert twins.nearest(torch.ones(1, 1, 2)).item() == 0


def test_the_bound_of_a_prediction_is_that_of_its_vector():
    """``nelbo`` of log p is ``vlb`` of the squared error of p @ codebook, at a time per token too."""
    process = processes.gaussian(randn(7, 4), "rf", "cosine")
    x0, t = torch.tensor([[0, 6, 3]]), torch.tensor([[0.2, 0.5, 0.8]]).double()
    logp = randn(1, 3, 7).log_softmax(-1)
    gamma, slope = process.gamma(t)
    error = ((process.codebook[x0] - logp.exp() @ process.codebook) ** 2).sum(-1)
    close(process.nelbo(logp, x0, randn(1, 3, 4), t), 0.5 * torch.exp(-gamma) * slope * error)


def test_what_is_stored_is_read_back():
    """Name and parameters of a learned, normalised process with its table come back, and draw what it draws."""
    process = processes.gaussian(randn(7, 4), "ve", GammaSchedule("edm", -3.0, 5.0), learned=True, normalise=True)
    again = processes.from_dict(process.to_dict(), {"codebook": process.table})
    assert again.to_dict() == process.to_dict()
    assert processes.tensors_of(process.to_dict()) == (processes.Kept("codebook", (7, 4), learned=True),)
    draws = [
        one.corrupt(torch.tensor([[1, 2]]), torch.tensor([0.3]), torch.Generator().manual_seed(0))
        for one in (process, again)
    ]
    assert torch.equal(*draws)
    with pytest.raises(ValueError, match="a gaussian process needs its codebook"):
        processes.from_dict(process.to_dict())
