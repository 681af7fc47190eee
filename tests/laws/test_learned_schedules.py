"""Learned schedules of gamma against the exact denoiser of one token, whose expectations are quadratures.

The toy is that of ``line``, 3 tokens on a line; CE(gamma) and the bound's integrand m(gamma) = d CE / d gamma
are trapezoid sums over the noise, differentiable in gamma, so that training here has no noise but that of t.
"""

import functools
import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from redraft import processes, recipes, runs, schedules
from redraft.data import build_tokenizer
from redraft.models import Transformer, TransformerConfig, folder
from redraft.randomness import derive
from redraft.schedules import GammaSchedule
from redraft.schedules.learned import BINS, FIT_WEIGHT, FLOOR, LEARNED, PACE

from .line import CODES, PI, cross_entropy, noisy_tokens, posterior_tokens

NAMES = ["adaptive", "gumbel", "plaid"]
WARPED = ["adaptive", "gumbel"]
LOW, HIGH = -3.0, 6.0
GRID = torch.linspace(0, 1, 1001, dtype=torch.float64)
EVEN = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
EPS = torch.linspace(-7, 7, 51, dtype=torch.float64)
DENSITY = torch.exp(-(EPS**2) / 2) / math.sqrt(2 * math.pi) * (EPS[1] - EPS[0])


def make(name: str, seed: int | None = None, low: float = LOW, high: float = HIGH):
    """A schedule in float64 whose tensors can be trained: at its start, or of some random shape."""
    tensors = {key: one.double() for key, one in LEARNED[name].start(0).items()}
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            key: one + torch.randn(one.shape, generator=generator, dtype=torch.float64) * 0.8 / PACE
            for key, one in tensors.items()
        }
    return LEARNED[name](low, high, {key: one.requires_grad_() for key, one in tensors.items()})


@pytest.fixture(params=[None, 1, 2], ids=["start", "one", "other"])
def seed(request):
    return request.param


def one_token(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """CE(gamma) = H(token | z) and m(gamma) = 1/2 exp(-gamma) E|x - x_hat|^2, nats, of gamma's shape (n,)."""
    codes, width = CODES[:, 0], torch.exp(gamma / 2)[:, None, None]
    u = codes[:, None] + width * EPS
    logp = (PI.log() - (u[..., None] - codes) ** 2 / (2 * width[..., None] ** 2)).log_softmax(-1)
    probability = PI[:, None] * DENSITY
    own = torch.stack([logp[:, k, :, k] for k in range(3)], 1)
    error = (codes[:, None] - logp.exp() @ codes) ** 2
    return -(own * probability).sum((1, 2)), 0.5 * torch.exp(-gamma) * (error * probability).sum((1, 2))


def even_times(count: int, generator: torch.Generator) -> Tensor:
    return (torch.rand((), generator=generator, dtype=torch.float64) + torch.arange(count) / count) % 1


# ------------------------------------------------------------------------------------------------- maps of t to gamma


@pytest.mark.parametrize("name", NAMES)
def test_it_rises_from_end_to_end(name, seed):
    """gamma(0) and gamma(1) are the ends (of a warped one exactly), and gamma' > 0 integrates to their distance."""
    schedule = make(name, seed)
    gamma, slope = (value.detach() for value in schedule(GRID))
    assert gamma.dtype == slope.dtype == torch.float64
    first, last = schedule.ends() if name == "plaid" else (torch.tensor(LOW), torch.tensor(HIGH))
    tolerance = 1e-13 if name == "plaid" else 0.0
    assert abs(gamma[0] - first) <= tolerance
    assert abs(gamma[-1] - last) <= tolerance
    assert (gamma.diff() > 0).all()
    assert (slope > 0).all()
    assert schedule(GRID.float()[None, :3])[0].shape == (1, 3)
    if seed is None:
        assert schedule.complaint() is None
        assert float(schedule(torch.tensor(0.0))[0].detach()) == LOW


@pytest.mark.parametrize("name", WARPED)
def test_18_6_time_warp_inverse(name, seed):
    """F^-1(F(gamma)) = gamma and F(F^-1(t)) = t to 1e-12, both rising; gamma' F' = 1, with F' by differences."""
    schedule = make(name, seed)
    gamma = torch.linspace(LOW, HIGH, 4001, dtype=torch.float64)
    t = schedule.cdf(gamma)
    assert (t.diff() > 0).all()
    torch.testing.assert_close(schedule(t)[0], gamma, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.cdf(schedule(GRID)[0]), GRID, rtol=0, atol=1e-12)
    middle, h = LOW + (HIGH - LOW) / BINS * (torch.arange(BINS, dtype=torch.float64) + 0.5), 1e-3
    slope = schedule(schedule.cdf(middle))[1]
    inverse = (schedule.cdf(middle + h) - schedule.cdf(middle - h)) / (2 * h)
    torch.testing.assert_close(slope * inverse, torch.ones(BINS, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", WARPED)
def test_beyond_the_ends_is_at_the_ends(name):
    """Bin numbers are clamped: levels and times a little outside, as rounding makes them, are those of the ends."""
    schedule = make(name, 1)
    assert schedule.cdf(torch.tensor([LOW - 1, HIGH + 1])).tolist() == pytest.approx([0, 1], abs=1e-15)
    assert schedule(torch.tensor([-1e-9, 1 + 1e-9]))[0].tolist() == [LOW, HIGH]


@pytest.mark.parametrize("name", WARPED)
@pytest.mark.parametrize("far", [-60.0, 60.0])
def test_no_bin_loses_its_time(name, far):
    """A flat cross-entropy, one beyond what exp can hold, or none within the ends: gamma' stays below range / FLOOR."""
    schedule = make(name)
    for tensor in schedule.tensors.values():
        tensor.data[: (len(tensor) + 1) // 2] = far / PACE
    gamma, slope = schedule(GRID)
    assert gamma.isfinite().all()
    assert (gamma.diff() > 0).all()
    assert slope.max() <= (HIGH - LOW) / FLOOR * (1 + FLOOR) * (1 + 1e-9)
    schedule.fit(gamma, torch.ones_like(gamma)).sum().backward()
    assert all(one.grad.isfinite().all() for one in schedule.tensors.values())


def test_a_narrow_gumbel_has_gradients():
    """All of the law within one bin, whose tail is exp(-exp(1600)): values and gradients are still numbers."""
    schedule = make("gumbel")
    schedule.tensors["log_scale"].data.fill_(-6.0 / PACE)
    gamma = schedule(GRID)[0]
    assert gamma.isfinite().all()
    schedule.fit(gamma, torch.ones_like(gamma)).sum().backward()
    assert all(one.grad.isfinite().all() for one in schedule.tensors.values())


@pytest.mark.parametrize("seed", [None, 1], ids=["start", "one"])
def test_plaids_slope_is_its_derivative(seed):
    """gamma' = d gamma / dt by autograd, 1e-12; and both are right in every tensor (gradcheck on some coordinates)."""
    schedule = make("plaid", seed)
    t = torch.linspace(0.01, 0.99, 23, dtype=torch.float64, requires_grad=True)
    gamma, slope = schedule(t)
    (expected,) = torch.autograd.grad(gamma.sum(), t)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-12)
    for name, tensor in schedule.tensors.items():
        for which, direction in ((0, 1e-5), (len(tensor) - 1, 1e-5)):
            values = []
            for sign in (1, -1):
                moved = tensor.detach().clone()
                moved[which] += sign * direction
                values.append(schedule_with(schedule, name, moved)(t.detach()))
            for k in (0, 1):
                (gradient,) = torch.autograd.grad(schedule(t.detach())[k].sum(), tensor)
                difference = (values[0][k] - values[1][k]).detach().sum() / (2 * direction)
                torch.testing.assert_close(gradient[which], difference, rtol=1e-4, atol=1e-5)


def schedule_with(schedule, name: str, tensor: Tensor):
    return type(schedule)(schedule.gamma_min, schedule.gamma_max, {**schedule.tensors, name: tensor})


def test_gumbel_is_langflows_law():
    """At the bins' edges F is the truncated CDF with its floor; in between gamma = loc - scale log(-log u) to 1e-2."""
    schedule = make("gumbel", 3)
    loc, scale, total = (float(one.detach()) for one in schedule.law())
    edges = torch.linspace(LOW, HIGH, BINS + 1, dtype=torch.float64)
    cdf = torch.exp(-torch.exp(-(edges - loc) / scale))
    torch.testing.assert_close(schedule.expected(edges).detach(), total * cdf, rtol=1e-12, atol=0)
    share = (cdf - cdf[0]) / (cdf[-1] - cdf[0])
    floored = (share + FLOOR * torch.linspace(0, 1, BINS + 1, dtype=torch.float64)) / (1 + FLOOR)
    torch.testing.assert_close(schedule.cdf(edges), floored, rtol=0, atol=1e-12)
    u = torch.linspace(0.1, 0.9, 33, dtype=torch.float64)
    gamma = loc - scale * torch.log(-torch.log(u))
    gamma = gamma[(gamma > LOW) & (gamma < HIGH)]
    assert len(gamma) > 20
    u = torch.exp(-torch.exp(-(gamma - loc) / scale))
    torch.testing.assert_close(schedule.expected(gamma).detach() / total, u, rtol=0, atol=1e-2)


# --------------------------------------------------------------------------------------------------------- the bound


def pieces(schedule) -> tuple[Tensor, Tensor]:
    """Times and weights of a quadrature over (0, 1) that no kink of the schedule falls into."""
    edges = GRID[::50].clone()
    if schedule.name != "plaid":
        edges = schedule.cdf(torch.linspace(LOW, HIGH, BINS + 1, dtype=torch.float64))
    node, weight = (torch.tensor(one) for one in np.polynomial.legendre.leggauss(3 if schedule.name != "plaid" else 12))
    width = edges.diff()[:, None]
    return (edges[:-1, None] + width * (node + 1) / 2).flatten(), (width * weight / 2).flatten()


@pytest.mark.parametrize("name", NAMES)
def test_bound_does_not_depend_on_the_schedule(name, seed):
    """Reconstruction + diffusion = H(w | z_1) to 1e-6 whatever a schedule has learned, its ends included."""
    process = processes.gaussian(CODES, "vp", make(name, seed))
    times, weights = pieces(process.schedule)
    with torch.no_grad():
        gamma, slope = process.gamma(times)
        error = 2 * torch.exp(gamma) * one_token(gamma[:, 0])[1][:, None]
        diffusion = (process.vlb(error, gamma, slope)[:, 0] * weights).sum().item()
        assert cross_entropy(process, 0.0) + diffusion == pytest.approx(cross_entropy(process, 1.0), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_process_reads_it(name):
    """``nelbo`` of a few states is 1/2 exp(-gamma) gamma' |x - x_hat|^2 at this schedule's gamma and slope."""
    process = processes.gaussian(CODES, "vp", make(name, 1))
    with torch.no_grad():
        x0, z, t, probability = noisy_tokens(process, torch.tensor([0.3], dtype=torch.float64))
        found = (process.nelbo(posterior_tokens(process, z, t, PI), x0, z, t)[:, 0] * probability).sum()
        torch.testing.assert_close(found, exact_loss(*process.schedule(t[:1]))[0], rtol=1e-9, atol=0)


# ------------------------------------------------------------------------------------------------------ time warping


@pytest.mark.parametrize("name", WARPED)
def test_only_fit_teaches_a_warped_schedule(name):
    """No gradient comes through gamma(t); that of ``fit`` enters the schedule's tensors and nothing else."""
    schedule = make(name, 1)
    assert not any(value.requires_grad for value in schedule(GRID))
    gamma = schedule(GRID)[0].requires_grad_()
    seen = torch.rand(1001, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = schedule.fit(gamma, seen)
    assert loss.shape == gamma.shape
    loss.sum().backward()
    assert gamma.grad is None
    assert seen.grad is None
    assert all(bool((one.grad != 0).any()) for one in schedule.tensors.values())
    assert schedule.fit(gamma[:4, None], seen[:8].reshape(4, 2).float()).shape == (4, 2)


@pytest.mark.parametrize("name", WARPED)
def test_fit_counts_all_levels_alike(name, seed):
    """The mean of ``fit`` over t ~ U(0, 1) is the even mean over gamma of the squared error, whatever F visits."""
    schedule = make(name, seed)
    t, weight = pieces(schedule)
    gamma = schedule(t)[0]
    found = (schedule.fit(gamma, torch.cos(gamma)) * weight).sum()
    even, width = pieces(make("adaptive"))  # its F is linear
    even = LOW + (HIGH - LOW) * even
    expected = (((schedule.expected(even) - torch.cos(even)) ** 2) * width).sum() * FIT_WEIGHT
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@functools.cache
def fitted(name: str, steps: int = 300):
    """The schedule after AdamW steps, each on 64 of its own levels and the exact cross-entropy there."""
    schedule, generator = make(name), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(schedule.tensors.values(), lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        gamma = schedule(even_times(64, generator))[0]
        optimizer.zero_grad()
        schedule.fit(gamma, one_token(gamma)[0]).mean().backward()
        optimizer.step()
    return schedule


def r_squared(t: Tensor, value: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([t, value]))[0, 1] ** 2)


@pytest.mark.parametrize(("name", "least", "misfit"), [("adaptive", 0.9995, 0.02), ("gumbel", 0.995, 0.04)])
def test_18_6_cross_entropy_is_linear_after_time_warping(name, least, misfit):
    """With the oracle's CE, CE(F^-1(t)) is a line in t, R^2 > .99, and F~ is CE; linear_gamma's R^2 is below .9."""
    schedule = fitted(name)
    gamma = schedule(GRID)[0]
    now, before = r_squared(GRID, one_token(gamma)[0]), r_squared(GRID, one_token(LOW + (HIGH - LOW) * GRID)[0])
    assert before < 0.9
    assert now > least
    even = torch.linspace(LOW, HIGH, 301, dtype=torch.float64)
    assert (schedule.expected(even).detach() - one_token(even)[0]).abs().max() < misfit


def test_warped_grid_has_equal_steps_of_cross_entropy():
    """Section 4.6: CE rises alike in all ten steps of t, 1 : 1.5 at most; under linear_gamma by 1 : 50 and more."""
    ten = torch.linspace(0, 1, 11, dtype=torch.float64)
    rise = one_token(fitted("adaptive")(ten)[0])[0].diff()
    assert rise.max() / rise.min() < 1.5
    linear = one_token(LOW + (HIGH - LOW) * ten)[0].diff()
    assert linear.max() / linear.min() > 50


# ------------------------------------------------------------------------------------------------ variance minimising


def watched(schedule, t: Tensor, loss_of) -> Tensor:
    """The loss of each t, through whose ``inner`` the network follows E l^2: what an objective is to do."""
    inner = schedule.inner(t)
    gamma, slope = schedule.between(*inner)
    loss = loss_of(gamma, slope)
    for one in inner:
        one.register_hook(lambda gradient: gradient * 2 * loss.detach())
    return loss


def exact_loss(gamma: Tensor, slope: Tensor) -> Tensor:
    return one_token(gamma)[1] * slope


def test_network_follows_the_square_and_ends_the_loss():
    """One backward pass of E l with the hooks: the ends get the gradient of E l, slopes, shifts, heights of E l^2."""
    schedule = make("plaid", 1)
    t = even_times(16, torch.Generator().manual_seed(0))
    watched(schedule, t, exact_loss).mean().backward()
    plain = exact_loss(*schedule(t))
    (ends,) = torch.autograd.grad(plain.mean(), schedule.tensors["ends"], retain_graph=True)
    assert ends.abs().min() > 1e-3
    torch.testing.assert_close(schedule.tensors["ends"].grad, ends, rtol=1e-12, atol=0)
    network = ["slopes", "shifts", "heights"]
    squares = torch.autograd.grad((plain**2).mean(), [schedule.tensors[name] for name in network])
    for name, square in zip(network, squares, strict=True):
        assert square.abs().max() > 1e-6
        torch.testing.assert_close(schedule.tensors[name].grad, square, rtol=1e-9, atol=1e-15, msg=name)


@pytest.fixture(scope="module")
def straightened():
    """PLAID's network trained with the oracle on gamma from -3 to 4, the ends held: 250 steps of 64 times."""
    schedule, generator = make("plaid", low=-3.0, high=4.0), torch.Generator().manual_seed(0)
    network = [schedule.tensors[name] for name in ("slopes", "shifts", "heights")]
    optimizer = torch.optim.AdamW(network, lr=1e-2, weight_decay=0.0)
    for step in range(250):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 250)
        optimizer.zero_grad()
        watched(schedule, even_times(64, generator), exact_loss).mean().backward()
        optimizer.step()
    return schedule


def test_18_6_plaids_loss_is_flat(straightened):
    """The mean loss at every t of [.02, .98] is the same to 10 per cent, where linear_gamma's differs by 1 : 25."""
    flat, uneven = (exact_loss(*schedule(EVEN)).detach() for schedule in (straightened, linear()))
    assert uneven.max() / uneven.min() > 25
    assert flat.max() / flat.min() < 1.1


def linear() -> GammaSchedule:
    return GammaSchedule("linear_gamma", -3.0, 4.0)


def test_18_6_plaids_cross_entropy_is_linear(straightened):
    """Flat loss is linear cross-entropy: R^2 > .999."""
    gamma = straightened(GRID)[0].detach()
    assert r_squared(GRID, one_token(gamma)[0]) > 0.999


def test_bound_stays_while_its_variance_falls(straightened):
    """The mean over t is CE(g1) - CE(g0) before and after; the variance over t falls a hundredfold."""
    ce = one_token(torch.tensor([-3.0, 4.0], dtype=torch.float64))[0]
    times, weights = pieces(straightened)
    variances = []
    for schedule in (straightened, linear()):
        loss = exact_loss(*schedule(times)).detach()
        mean = (loss * weights).sum()
        assert float(mean) == pytest.approx(float(ce[1] - ce[0]), rel=1e-6)
        variances.append(float(((loss - mean) ** 2 * weights).sum()))
    assert variances[0] < variances[1] / 100


# ------------------------------------------------------------------------------------------------ names, storage, words


def test_all_are_listed_and_construct():
    assert set(NAMES) < set(schedules.GAMMAS)
    for name, documented in schedules.GAMMAS.items():
        assert inspect.getdoc(documented)
        made = schedules.gamma({"name": name})
        assert (made.name, made.gamma_min, made.gamma_max) == (name, -4.0, 6.0)
        assert made.complaint() is None
        assert processes.gaussian(CODES, schedule=name).schedule.to_dict() == made.to_dict()
    with pytest.raises(ValueError, match="unknown schedule 'adaptiv'; did you mean 'adaptive'"):
        schedules.gamma({"name": "adaptiv"})
    with pytest.raises(ValueError, match=r"gamma_min=2\.0 must be below gamma_max=1\.0"):
        schedules.gamma({"name": "plaid", "gamma_min": 2.0, "gamma_max": 1.0})
    with pytest.raises(ValueError, match=r"'adaptive' needs log_heights of shape \(100,\), given: \(3,\)"):
        schedules.gamma({"name": "adaptive"}, {"log_heights": torch.zeros(3), "log_offset": torch.zeros(1)})


@pytest.mark.parametrize("name", NAMES)
def test_a_start_is_drawn_from_the_seed(name):
    stored = {"name": name}
    first, again, other = (schedules.gamma_start(stored, seed) for seed in (0, 0, 1))
    kept = schedules.gamma_tensors(stored)
    assert {key: tuple(one.shape) for key, one in first.items()} == {key: one.shape for key, one in kept.items()}
    assert all(one.learned for one in kept.values())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(torch.equal(first[key], other[key]) for key in first) == (name != "plaid")
    gamma, _ = schedules.gamma(stored, other)(GRID)
    assert (gamma - (10 * GRID - 4)).abs().max() < {"adaptive": 1e-6, "plaid": 0.5, "gumbel": 3.5}[name]
    assert schedules.gamma_start({"name": "cosine"}, 0) == schedules.gamma_tensors({"name": "cosine"}) == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_keeps_it(name, tmp_path):
    """Its tensors are the model's parameters, which the process reads as they change; a folder brings them back."""
    stored = {"name": name, "gamma_min": LOW, "gamma_max": HIGH}
    start = schedules.gamma_start(stored, 3)
    process = processes.gaussian(torch.eye(5), "vp", schedules.gamma(stored, start))
    tensors = {"codebook": torch.eye(5), **{f"schedule_{key}": one for key, one in start.items()}}
    model = Transformer(TransformerConfig(process.to_dict(), depth=1), tensors)
    assert model.process.to_dict() == process.to_dict()
    torch.testing.assert_close(model.process.schedule(GRID), process.schedule(GRID), rtol=0, atol=0)
    held = model.process.to("cpu")
    key = LEARNED[name].kept[0].name
    parameter = dict(model.named_parameters())[f"schedule_{key}"]
    assert held.schedule.tensors[key] is parameter
    with torch.no_grad():
        parameter[:1] += 0.05
    assert not torch.equal(held.schedule(GRID)[0], process.schedule(GRID)[0])
    folder.save(tmp_path, model.config, model.state_dict())
    again, _ = folder.load(tmp_path)
    torch.testing.assert_close(again.process.schedule(GRID), held.schedule(GRID), rtol=0, atol=0)
    with pytest.raises(ValueError, match=f"needs its schedule_{key}"):
        processes.from_dict(process.to_dict(), {"codebook": torch.eye(5)})


OBJECTIVE = {"adaptive": "cdcd", "gumbel": "langflow", "plaid": "plaid"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_it(name):
    """``process.schedule`` takes the name, the seed draws its start; weights that are sharded are refused."""
    base = recipes.get("toy_masked")
    noise = recipes.ProcessConfig(name="gaussian", schedule=name, gamma_min=LOW, gamma_max=HIGH)
    model = replace(base.model, depth=1, time_conditioned=True)
    config = replace(base, process=noise, model=model, objective=OBJECTIVE[name], train=replace(base.train, seed=5))
    process, built = runs.build(config, build_tokenizer("toy"))
    expected = {"name": name, "gamma_min": LOW, "gamma_max": HIGH}
    assert process.schedule.to_dict() == expected
    parameters = dict(built.named_parameters())
    for key, start in schedules.gamma_start(expected, derive(5, 2)).items():
        assert process.schedule.tensors[key] is parameters[f"schedule_{key}"]
        assert torch.equal(parameters[f"schedule_{key}"], start)
    sharded = replace(config, train=replace(config.train, parallel="fsdp"))
    with pytest.raises(ValueError, match=f"train.parallel='fsdp' with a gaussian process.*schedule_{key}.*use ddp"):
        runs.build(sharded, build_tokenizer("toy"))


@pytest.mark.parametrize("name", NAMES)
def test_tensors_follow_the_device_parameters_their_model(name):
    """Plain tensors move; parameters stay, for their model moves them; times may come from elsewhere."""
    moved = LEARNED[name](LOW, HIGH).to("meta")
    assert all(one.is_meta for one in moved.tensors.values())
    owned = LEARNED[name](LOW, HIGH, {key: nn.Parameter(one) for key, one in LEARNED[name].start(0).items()})
    assert all(one is owned.tensors[key] for key, one in owned.to("meta").tensors.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_that_is_not_finite_is_named(name):
    for kept in LEARNED[name].kept:
        for value in (math.nan, math.inf):
            schedule = make(name)
            schedule.tensors[kept.name].data[-1] = value
            if (kept.name, value) == ("ends", math.inf):
                assert "gamma at t = 1 is inf, outside" in schedule.complaint()
            else:
                assert schedule.complaint() == f"{kept.name} of schedule {name!r} is not finite"


def test_ends_that_leave_or_cross_are_named():
    schedule = make("plaid")
    for moved, words in (
        ([0.0, 3.5], "schedule 'plaid': gamma at t = 1 is 41, outside [-40, 40]"),
        ([-3.8, 0.0], "schedule 'plaid': gamma at t = 0 is -41, outside [-40, 40]"),
        ([0.5, -0.5], "schedule 'plaid': its ends are out of order, 2 at t = 0 and 1 at t = 1"),
        ([0.1, 0.1], None),
    ):
        schedule.tensors["ends"].data = torch.tensor(moved, dtype=torch.float64)
        assert schedule.complaint() == words


def test_a_schedule_that_stands_still_is_named():
    """Units so steep that all have gone over between two times: gamma' is 0 there, and no time would pass."""
    schedule = make("plaid")
    schedule.tensors["slopes"].data.fill_(1e4 / PACE)
    schedule.tensors["shifts"].data.zero_()
    assert "schedule 'plaid' does not rise" in schedule.complaint()
    overflowing = make("adaptive")
    overflowing.tensors["log_heights"].data.fill_(800.0 / PACE)
    assert "schedule 'adaptive' does not rise" in overflowing.complaint()
