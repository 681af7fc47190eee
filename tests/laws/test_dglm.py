"""The proposer against a mixture of two Gaussians, whose posterior mean and classifier are known exactly.

Cluster y has mean MEANS[y], covariance WIDTH^2 I and probability PI[y]; y is the attribute. Statistical tests draw
20 000 rows with a fixed seed and allow five standard errors: a false alarm in two million.
"""

import itertools
import math
from functools import partial

import pytest
import torch

from redraft.dglm.config import ProposerConfig, StageConfig
from redraft.dglm.guidance import Noised, plug_in
from redraft.dglm.proposer import Prompted, Proposer, Vectors, propose
from redraft.dglm.proposer import noise as channel
from redraft.dglm.teaching import Log, fit
from redraft.dglm.verbaliser import renoised
from redraft.guidance import cfg, gradient_guided
from redraft.processes import Facts
from redraft.processes.gaussian import PREDICTIONS
from redraft.randomness import generator, row_generators
from redraft.sampling.samplers import SAMPLERS
from redraft.schedules import GammaSchedule

MEANS = torch.tensor([[1.2, -0.4, 0.5], [-0.8, 0.9, 0.1]], dtype=torch.float64)
PI = torch.tensor([0.3, 0.7], dtype=torch.float64)
WIDTH = 0.4
ROWS = 20_000
FLOW = ("ancestral", "ddim", "heun", "churn")


def noise():
    return channel(ProposerConfig(gamma_min=-12.0, gamma_max=12.0))


class Says:
    """A denoiser of vectors that says what a function of z and t does, and counts how often."""

    facts = Facts(time_conditioned=True, vectors=True)

    def __init__(self, said):
        self.said, self.calls = said, 0

    def __call__(self, z, t, cond=None, vectors=True):
        self.calls += 1
        return self.said(z, t)


def guided(denoiser, process, log_p, weight):
    """What the guided denoiser says of z at t."""
    return partial(gradient_guided(denoiser, process, log_p, weight), vectors=True)


def densities(process, z, t):
    """log p(z, y), (B, 2)."""
    alpha, sigma = process.scales(process.gamma(t)[0])
    variance = alpha**2 * WIDTH**2 + sigma**2
    squared = ((z[:, 0, None] - alpha[..., None] * MEANS) ** 2).sum(-1)
    return PI.log() - squared / (2 * variance) - 1.5 * variance.log()


def component(process, y):
    """E[x | z, y]."""

    def said(z, t):
        alpha, sigma = (scale[..., None] for scale in process.scales(process.gamma(t)[0]))
        gain = alpha * WIDTH**2 / (alpha**2 * WIDTH**2 + sigma**2)
        return MEANS[y] + gain * (z - alpha * MEANS[y])

    return Says(said)


def exact(process):
    """E[x | z]."""

    def said(z, t):
        p = densities(process, z, t).softmax(-1)
        return sum(p[:, y, None, None] * component(process, y)(z, t) for y in range(2))

    return Says(said)


def log_p(process, y):
    return lambda z, t: densities(process, z, t).log_softmax(-1)[:, y]


def clean(y):
    """log p(y | x) of a clean vector."""

    def said(x):
        squared = ((x[:, None] - MEANS) ** 2).sum(-1)
        return (PI.log() - squared / (2 * WIDTH**2)).log_softmax(-1)[:, y]

    return said


def states(rows=64):
    t = torch.linspace(0, 1, rows, dtype=torch.float64)
    x = MEANS[torch.arange(rows) % 2] + WIDTH * torch.randn(rows, 3, generator=generator(0), dtype=torch.float64)
    return noise().noised(x[:, None], noise().gamma(t)[0], generator(1)), t


# ------------------------------------------------------------------------------------------------------------ guidance


@pytest.mark.parametrize("y", [0, 1])
def test_18_7_guidance_by_the_exact_classifier_is_the_conditional_mean(y):
    """x_hat + (sigma^2 / alpha) grad log p(y | z) = E[x | z, y] at every noise level, relative 1e-8."""
    process, (z, t) = noise(), states()
    found = guided(exact(process), process, log_p(process, y), 1.0)(z, t)
    torch.testing.assert_close(found, component(process, y)(z, t), rtol=1e-8, atol=1e-8)


def spread(process, steps, eta):
    """The std that ``steps`` steps of strength ``eta`` leave of a component: each is affine in z, so it is exact."""
    ends = torch.zeros(2, 1, 3, dtype=torch.float64)
    ends[1] = 1.0
    variance, query = process.ends()[2] ** 2, component(process, 0)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    for t, s in itertools.pairwise(times):
        t, s = t.expand(2), s.expand(2)
        mean, added = process.posterior(query(ends, t), ends, t, s, eta)
        variance = (mean[1] - mean[0])[0, 0] ** 2 * variance + added[0, 0, 0]
    last = query(ends, times[-1:].expand(2))
    return (last[1] - last[0])[0, 0].abs() * variance.sqrt()


@pytest.mark.parametrize(("sampler", "steps", "eta"), [("ancestral", 40, 1.0), ("ddim", 40, 0.0)])
def test_18_7_first_order_samples_are_the_components(sampler, steps, eta):
    """Mean and std within 5 s.e.: of a component's mean no step is biased, of its std the steps' error is known."""
    process = noise()
    query = gradient_guided(exact(process), process, log_p(process, 0), 1.0)
    x = propose(process, query, (ROWS, 3), generator(2), steps, sampler, dtype=torch.float64)
    assert ((x.mean(0) - MEANS[0]).abs() < 5 * WIDTH / math.sqrt(ROWS)).all()
    std = spread(process, steps, eta)
    assert ((x.std(0) / std - 1).abs() < 5 / math.sqrt(2 * ROWS)).all()
    assert 0.03 < abs(std / WIDTH - 1) < 0.1
    assert abs(spread(process, 40 * steps, eta) / WIDTH - 1) < 0.003
    correlation = torch.corrcoef(x.T) - torch.eye(3, dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(ROWS)


@pytest.mark.parametrize("sampler", ["heun", "churn"])
def test_18_7_second_order_samples_are_the_components(sampler):
    """At 40 steps the std too: within 5 s.e. and 1% (ancestral is 9% off there)."""
    process = noise()
    query = gradient_guided(exact(process), process, log_p(process, 0), 1.0)
    x = propose(process, query, (ROWS // 2, 3), generator(2), 40, sampler, dtype=torch.float64)
    assert ((x.mean(0) - MEANS[0]).abs() < 5 * WIDTH / math.sqrt(ROWS // 2)).all()
    assert ((x.std(0) / WIDTH - 1).abs() < 5 / math.sqrt(ROWS) + 0.01).all()


def test_unguided_samples_are_the_mixture():
    process = noise()
    x = propose(process, exact(process), (ROWS, 3), generator(3), 100, dtype=torch.float64)
    share = (clean(0)(x).exp() > 0.5).double().mean()
    assert abs(share - PI[0]) < 5 * math.sqrt(0.21 / ROWS) + 0.002
    mean = PI @ MEANS
    spread = (WIDTH**2 + (PI[:, None] * (MEANS - mean) ** 2).sum(0)).sqrt()
    assert ((x.mean(0) - mean).abs() < 5 * spread / math.sqrt(ROWS) + 0.005).all()


def test_strength_is_how_far_the_mean_moves():
    """Linear in the strength at a given z; 0 is the denoiser bit for bit, and below 0 is refused."""
    process, (z, t) = noise(), states()
    query = exact(process)
    one, three = (guided(query, process, log_p(process, 1), g)(z, t) - query(z, t) for g in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)
    assert torch.equal(guided(query, process, log_p(process, 1), 0.0)(z, t), query(z, t))
    with pytest.raises(ValueError, match="weight=-1"):
        guided(query, process, log_p(process, 1), -1.0)


def test_a_gradient_of_tokens_needs_their_codebook():
    """A channel knows none: it will do for a denoiser that says vectors only."""
    process, names = noise(), Says(None)
    names.facts = Facts()
    with pytest.raises(ValueError, match="needs their codebook"):
        gradient_guided(names, process, log_p(process, 1))


def test_plug_in_is_the_gradient_through_the_denoiser():
    """Against central differences of log p(y | x_hat(z)), 1e-5."""
    process, (z, t) = noise(), states(8)
    query = exact(process)
    push = guided(query, process, plug_in(query, clean(0)), 1.0)(z, t) - query(z, t)
    alpha, sigma = process.scales(process.gamma(t)[0])
    scale = (sigma**2 / alpha)[:, 0]
    for axis in range(3):
        h = 1e-5 * torch.eye(3, dtype=torch.float64)[axis]
        after, before = (clean(0)(query(at, t)[:, 0]) for at in (z + h, z - h))
        slope = (after - before) / 2e-5
        torch.testing.assert_close(push[:, 0, axis], scale * slope, rtol=1e-5, atol=1e-6)


def test_plug_in_is_biased_by_noise():
    """With both parts exact it is not E[x | z, y]: wrong by tenths amid noise, right to 1e-3 where little is left."""
    process = noise()
    levels = [(-9.0, 0.0, 1e-3), (0.0, 0.1, 10.0)]
    for gamma, least, most in levels:
        angle = math.atan(math.exp(gamma / 2))
        ends = [math.atan(math.exp(end / 2)) for end in (-12.0, 12.0)]
        t = torch.full((64,), (angle - ends[0]) / (ends[1] - ends[0]), dtype=torch.float64)
        x = MEANS[torch.arange(64) % 2] + WIDTH * torch.randn(64, 3, generator=generator(4), dtype=torch.float64)
        z = process.noised(x[:, None], process.gamma(t)[0], generator(5))
        found = guided(exact(process), process, plug_in(exact(process), clean(0)), 1.0)(z, t)
        wrong = (found - component(process, 0)(z, t)).abs().mean()
        assert least <= wrong < most


@pytest.mark.parametrize(("weight", "asked"), [(1.0, [1, 0]), (0.0, [0, 1]), (2.5, [1, 1])])
def test_18_7_cfg_at_0_and_1_is_one_denoiser_bitwise(weight, asked):
    process, (z, t) = noise(), states()
    conditional, unconditional = component(process, 0), exact(process)
    found = cfg(conditional, unconditional, weight=weight)(z, t, vectors=True)
    assert [conditional.calls, unconditional.calls] == asked
    if weight in (0.0, 1.0):
        assert torch.equal(found, conditional(z, t) if weight else unconditional(z, t))


@pytest.mark.parametrize("predicts", ["v", "epsilon"])
def test_cfg_combines_any_prediction_alike(predicts):
    """s v_c + (1 - s) v_u, turned into x, is the same combination of x; likewise epsilon."""
    process, (z, t) = noise(), states()
    gamma, (c, u) = process.gamma(t)[0], (component(process, 0)(z, t), exact(process)(z, t))
    mixed = 2.5 * process.predicted(c, predicts, z, gamma) - 1.5 * process.predicted(u, predicts, z, gamma)
    found = cfg(Says(lambda z, t: c), Says(lambda z, t: u), weight=2.5)(z, t, vectors=True)
    torch.testing.assert_close(process.denoised(mixed, predicts, z, gamma), found, rtol=1e-9, atol=1e-9)


def test_bad_weights_are_refused():
    for weight in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"weight={weight}"):
            cfg(exact(noise()), exact(noise()), weight=weight)


# ------------------------------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_draw_vectors_or_say_that_they_do_not(sampler):
    process = noise()
    if sampler in (*FLOW, "analytic", "cached", "euler"):
        assert propose(process, exact(process), (3, 3), generator(0), 3, sampler).shape == (3, 3)
    else:
        with pytest.raises(ValueError, match=r"needs|vectors"):
            propose(process, exact(process), (3, 3), generator(0), 3, sampler)


def test_a_row_depends_on_its_own_seed_only():
    process = noise()
    together = propose(process, exact(process), (4, 3), row_generators(7, rows=range(4)), 12, dtype=torch.float64)
    for row in range(4):
        alone = propose(process, exact(process), (1, 3), row_generators(7, rows=[row]), 12, dtype=torch.float64)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-12)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_cosine_schedule(scale):
    """Ends at -+15 - 2 log(scale), sech density of gamma, derivative by differences."""
    schedule = channel(ProposerConfig(), scale).schedule
    shift = 2 * math.log(scale)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    gamma, slope = schedule(t)
    assert gamma[[0, -1]].tolist() == pytest.approx([-15 - shift, 15 - shift], abs=1e-9)
    assert (schedule.gamma_min, schedule.gamma_max) == pytest.approx((-15 - shift, 15 - shift))
    inner, h = t[5:-5], 1e-6
    difference = (schedule(inner + h)[0] - schedule(inner - h)[0]) / (2 * h)
    torch.testing.assert_close(slope[5:-5], difference, rtol=1e-6, atol=0)
    share = 1 - 4 / math.pi * math.atan(math.exp(-7.5))
    density = 1 / (2 * math.pi * torch.cosh((gamma + shift) / 2)) / share
    torch.testing.assert_close(1 / slope, density, rtol=1e-9, atol=0)


def test_renoising_keeps_unit_variance():
    """Mean sqrt(.95) x and variance .05, five s.e. of 60 000 numbers; no noise is the vector itself."""
    x = torch.ones(ROWS, 3, dtype=torch.float64)
    z = renoised(x, 0.05, generator(0))
    assert z.mean().item() == pytest.approx(math.sqrt(0.95), abs=5 * math.sqrt(0.05 / z.numel()))
    assert z.var().item() == pytest.approx(0.05, rel=5 * math.sqrt(2 / z.numel()))
    assert torch.equal(renoised(x, 0.0, generator(0)), x)


# -------------------------------------------------------------------------------------------------------- the proposer


@pytest.mark.parametrize("predicts", ["v", "x0", "epsilon"])
def test_predictions_convert_exactly(predicts):
    """A network that says the exact target makes x_hat = x at every noise level, 1e-6 (float64)."""
    proposer = Proposer(3, ProposerConfig(predicts=predicts, gamma_min=-12, gamma_max=12)).double()
    process, t = proposer.process, torch.linspace(0, 1, 33, dtype=torch.float64)
    gamma = process.gamma(t)[0]
    x = torch.randn(33, 1, 3, generator=generator(0), dtype=torch.float64)
    z = process.noised(x, gamma, generator(1))
    target = process.predicted(x, predicts, z, gamma)
    proposer.forward = lambda z, gamma, prefix: target[:, 0]
    torch.testing.assert_close(proposer.denoise(z, gamma, x[:, 0]), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("predicts", [name for name in PREDICTIONS if name in ("v", "x0", "epsilon")])
@pytest.mark.parametrize("schedule", [None, GammaSchedule("linear_gamma", -15.0, 15.0)])
def test_sigmoid_loss_is_one_integral_whatever_the_schedule(predicts, schedule):
    """int sigmoid(gamma) |eps - eps_hat|^2 d gamma of the same x_hat, drawn with either schedule, five s.e.

    x_hat = alpha z has error sigma^2 on data of variance 1, so the integral is int alpha^2 sigma^2 / alpha^2 ... =
    int sigmoid(gamma) sigmoid(-gamma) d gamma = sigmoid(15) - sigmoid(-15).
    """
    proposer = Proposer(16, ProposerConfig(predicts=predicts, width=8, depth=1))
    if schedule is not None:
        proposer.process = Vectors("vp", schedule)
    process = proposer.process

    def alpha_z(z, gamma, prefix):
        z, gamma = z[:, None], gamma[:, None]
        return process.predicted(process.scales(gamma)[0][..., None] * z, predicts, z, gamma)[:, 0]

    proposer.forward = alpha_z
    x = torch.randn(ROWS, 16, generator=generator(0), dtype=torch.float64)
    t = (torch.arange(ROWS, dtype=torch.float64) + 0.5) / ROWS
    loss = proposer.loss(x, torch.zeros_like(x), t, generator(1))
    expected = math.tanh(7.5)
    assert loss.mean().item() == pytest.approx(expected, abs=5 * loss.std().item() / math.sqrt(ROWS))
    assert loss.std() / math.sqrt(ROWS) < 0.02


@pytest.mark.parametrize("predicts", ["v", "x0", "epsilon"])
def test_flat_loss_is_the_error_of_what_is_predicted(predicts):
    """A network that says 0: the mean square of the target, by Channel's own conversion."""
    proposer = Proposer(3, ProposerConfig(predicts=predicts, weighting="flat", gamma_min=-9, gamma_max=9))
    x = torch.randn(50, 3, generator=generator(0), dtype=torch.float64)
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    loss = proposer.loss(x, x, t, generator(1))
    gamma = proposer.process.gamma(t)[0]
    z = proposer.process.noised(x[:, None], gamma, generator(1))
    target = proposer.process.predicted(x[:, None], predicts, z, gamma)
    torch.testing.assert_close(loss.detach(), (target[:, 0] ** 2).mean(-1), rtol=1e-6, atol=1e-9)


def test_prefixes_are_hidden_at_the_rate_asked_for():
    """With drop = 1 the loss does not know the prefix, with 0 it does in every row, with .1 in about 9 of 10."""
    losses = {}
    for drop in (0.0, 0.1, 1.0):
        torch.manual_seed(0)
        proposer = Proposer(3, ProposerConfig(width=16, depth=1, drop=drop))
        for weight in proposer.parameters():
            torch.nn.init.normal_(weight)
        x, t = torch.zeros(2000, 3), torch.full((2000,), 0.5, dtype=torch.float64)
        found = [proposer.loss(x, prefix, t, generator(0)) for prefix in (x, x + 1.0)]
        losses[drop] = (found[0] != found[1]).double().mean().item()
    assert losses[0.0] == 1.0
    assert losses[1.0] == 0.0
    assert losses[0.1] == pytest.approx(0.9, abs=5 * math.sqrt(0.09 / 2000))


@pytest.fixture(scope="module")
def trained():
    """A proposer told the cluster by a prefix vector, from 4000 points, and a classifier of noised points."""
    y = (torch.arange(4000) % 10 >= 3).long()
    x = (MEANS[y] + WIDTH * torch.randn(4000, 3, generator=generator(0), dtype=torch.float64)).float()
    told = torch.stack([1.0 - 2.0 * y, 2.0 * y - 1.0, torch.zeros(4000)], 1)
    torch.manual_seed(0)
    proposer = Proposer(3, ProposerConfig(width=48, depth=2, drop=0.3, gamma_min=-9, gamma_max=9))
    classifier, log = Noised(3, 2, 32), Log(None, 100)

    def denoised(rows, u, noise):
        return proposer.loss(x[rows], told[rows], u, generator(noise[0].initial_seed())).mean()

    def classified(rows, u, noise):
        gamma = proposer.process.gamma(u)[0]
        z = proposer.process.noised(x[rows][:, None], gamma, generator(noise[0].initial_seed()))[:, 0]
        return torch.nn.functional.nll_loss(classifier(z, gamma[:, 0]), y[rows])

    fit("proposer", proposer, denoised, 4000, StageConfig(steps=500, batch=128, lr=4e-3), 1, log)
    fit("classifier", classifier, classified, 4000, StageConfig(steps=300, batch=128, lr=4e-3), 2, log)
    return proposer, classifier, told


@torch.no_grad()
def draws(proposer, query, rows=4000):
    return propose(proposer.process, query, (rows, 3), generator(9), 30, "heun")


def nothing(proposer, rows=4000):
    """The proposer, told nothing of what stands before."""
    return Prompted(proposer, proposer.process, proposer.null.expand(rows, -1))


def test_trained_proposer_recovers_its_cluster(trained):
    """Told the cluster: mean within .1 and std within 15% of the data's, four s.e. and the rest learning's error."""
    proposer, _, told = trained
    for y in range(2):
        row = told[0] if y == 0 else told[9]
        x = draws(proposer, Prompted(proposer, proposer.process, row.expand(4000, -1)))
        assert (x.mean(0) - MEANS[y]).abs().max() < 0.1
        assert (x.std(0) / WIDTH - 1).abs().max() < 0.15


def test_trained_proposer_recovers_the_mixture(trained):
    """Told nothing: share of the clusters within .06, covariance within .1."""
    proposer, _, _ = trained
    x = draws(proposer, nothing(proposer)).double()
    assert (clean(0)(x).exp() > 0.5).double().mean().item() == pytest.approx(0.3, abs=0.06)
    mean = PI @ MEANS
    centred = MEANS - mean
    covariance = centred.T @ (PI[:, None] * centred) + WIDTH**2 * torch.eye(3, dtype=torch.float64)
    assert (torch.cov(x.T) - covariance).abs().max() < 0.1


def test_trained_classifier_steers_to_the_cluster(trained):
    """The least likely cluster from 3 in 10 to 9 in 10, its mean within .15."""
    proposer, classifier, _ = trained
    process = proposer.process

    def log(z, t):
        return classifier(z[:, 0], process.gamma(t)[0][:, 0])[:, 0]

    x = draws(proposer, gradient_guided(nothing(proposer), process, log, 1.0))
    assert (clean(0)(x.double()).exp() > 0.5).double().mean() > 0.9
    assert (x.mean(0) - MEANS[0]).abs().max() < 0.15


def test_divergence_names_step_and_term():
    layer = torch.nn.Linear(1, 1)

    def loss(rows, u, noise):
        bad = math.nan if 3 in rows else 1.0
        return (layer(torch.ones(1, 1)) * bad).sum()

    with pytest.raises(ValueError, match=r"diverged at step \d+ of the proposer: loss nan.*train\.proposer\.lr"):
        fit("proposer", layer, loss, 8, StageConfig(steps=20, batch=1), 0, Log(None, 10))
    assert all(torch.isfinite(weight).all() for weight in layer.parameters())
