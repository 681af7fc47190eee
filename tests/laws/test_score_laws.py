"""Score entropy and concrete score matching: the sums equal their definitions, and the score entropy is the bound."""

import math

import numpy as np
import pytest
import torch

from redraft import objectives, processes
from redraft.models.heads import to_score
from redraft.objectives.score import score_entropy, squared_score_error

from .oracle import LAW, ExactDenoiser, entropy, noisy_pairs, sequences
from .prescribed import Says, Selective, prescribed, random_law

K = 5
PROCESSES = {
    "masked": lambda: processes.masked(K),
    "masked_cosine": lambda: processes.masked(K, schedule="cosine"),
    "masked_inside": lambda: processes.masked(K + 1, mask_id=2),
    "uniform": lambda: processes.uniform(K),
    "uniform_cosine": lambda: processes.uniform(K, schedule="cosine"),
    "hybrid": lambda: processes.hybrid(K),
    "hybrid_inside": lambda: processes.hybrid(K + 1, mask_id=2),
}
TIMES = (0.01, 0.3, 0.9)


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]()


def situations(process, time):
    """Every (x0, z) of positive probability as rows of one, with a random law: x0, z, t, logp."""
    t = torch.tensor([time], dtype=torch.float64)
    x0, z = (grid.flatten() for grid in torch.meshgrid(torch.arange(process.K), torch.arange(process.V), indexing="ij"))
    keep = torch.ones_like(x0, dtype=torch.bool) if process.mask_id is None else x0 != process.mask_id
    x0, z = x0[keep], z[keep]
    q = process.marginal(torch.nn.functional.one_hot(x0, process.K)[:, None].double(), t)[:, 0]
    x0, z = (one[q.gather(1, z[:, None])[:, 0] > 0][:, None] for one in (x0, z))
    logp = random_law(len(x0), 1, process.K)
    if process.mask_id is not None and process.mask_id < process.K:
        logp[..., process.mask_id] = -torch.inf
    return x0, z, t.expand(len(x0)), logp.log_softmax(-1)


def ratios(process, x0, z, t):
    """rho_y and the forward rates R(y -> z), for y other than z: (B, 1, V)."""
    q = process.marginal(torch.nn.functional.one_hot(x0, process.K).double(), t)
    others = torch.arange(process.V) != z[..., None]
    return q / q.gather(-1, z[..., None]), process.jump(z, t)[..., None] * others


def raw_scores(process, x0, z, seed=5):
    """Log-scores of no law at all."""
    found = random_law(len(x0), 1, process.V, seed=seed) + 1.3
    return found.scatter(-1, z[..., None], 0.0)


@pytest.mark.parametrize("time", TIMES)
def test_t3b_score_entropy_is_its_definition(process, time):
    """T3b: sum_{y != z} R(y -> z) [s_y - rho_y log s_y + rho_y (log rho_y - 1)] for any scores s, 1e-12."""
    x0, z, t, _ = situations(process, time)
    log_s = raw_scores(process, x0, z)
    rho, rate = ratios(process, x0, z, t)
    expected = (rate * (log_s.exp() - rho * log_s + torch.special.xlogy(rho, rho) - rho)).sum(-1)
    found = score_entropy(process, log_s, x0, z, t)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert (found > -1e-12).all()


@pytest.mark.parametrize("time", TIMES)
def test_t3b_uniform_closed_form(time):
    """T3b: SEDD's own expression for uniform noise (discrete.md 4.2) times sigma', 1e-12."""
    process = PROCESSES["uniform_cosine"]()
    x0, z, t, _ = situations(process, time)
    log_s = raw_scores(process, x0, z)
    alpha, derivative = process.schedule(t)
    e = ((1 - alpha) / alpha)[:, None]
    rho = 1 - K / (e + K)
    mean_s, mean_log = log_s.exp().mean(-1), log_s.mean(-1)
    s_z, log_z, log_x = 1 / K, 0.0, log_s.gather(-1, x0[..., None])[..., 0]
    same = z == x0
    neg = torch.where(same, rho * (mean_log - log_z / K), log_x / e + mean_log - log_z / K)
    const = torch.where(same, (K - 1) / K * rho * (rho.log() - 1), ((-rho.log() - 1) / rho - (K - 2)) / K)
    expected = (-derivative / alpha)[:, None] * (mean_s - s_z - neg + const)
    torch.testing.assert_close(score_entropy(process, log_s, x0, z, t), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("time", TIMES)
def test_t3a_t3c_score_entropy_of_a_law_is_the_bound(process, time):
    """T3a, T3c: with the scores of p it is ``nelbo`` of p, pointwise: masked, uniform and hybrid, 1e-12."""
    x0, z, t, logp = situations(process, time)
    found = score_entropy(process, to_score(logp, z, t, process), x0, z, t)
    torch.testing.assert_close(found, process.nelbo(logp, x0, z, t), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("time", TIMES)
def test_t3a_masked_is_r_times_cross_entropy(time):
    """T3a: sigma' DWDSE = sigma' r (-log p(x0)) at masks, r = 1 / (e^sigma - 1), and nothing elsewhere; 1e-12."""
    process = PROCESSES["masked_cosine"]()
    x0, z, t, logp = situations(process, time)
    alpha, derivative = process.schedule(t)
    sigma = -torch.log(alpha)
    expected = (-derivative / alpha / torch.expm1(sigma))[:, None] * -logp.gather(-1, x0[..., None])[..., 0]
    found = score_entropy(process, to_score(logp, z, t, process), x0, z, t)
    torch.testing.assert_close(found, torch.where(z == K, expected, 0.0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("time", TIMES)
def test_squared_error_is_its_definition(process, time):
    """sum_{y != z} R(y -> z) (s_y - rho_y)^2 for any scores, 1e-12 of the largest ratio."""
    x0, z, t, _ = situations(process, time)
    log_s = raw_scores(process, x0, z)
    rho, rate = ratios(process, x0, z, t)
    expected = (rate * (log_s.exp() - rho).square()).sum(-1)
    torch.testing.assert_close(squared_score_error(process, log_s, x0, z, t), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("integrand", [score_entropy, squared_score_error])
def test_gradients_are_those_of_the_sums(process, integrand):
    """The one hand-written backward against finite differences; at z itself there is none."""
    x0, z, t, _ = situations(process, 0.4)
    log_s = raw_scores(process, x0, z).requires_grad_()
    keep = torch.zeros_like(log_s).scatter(-1, z[..., None], 1.0)

    def function(free):
        return integrand(process, torch.where(keep > 0, 0.0, free), x0, z, t)

    assert torch.autograd.gradcheck(function, (log_s,), fast_mode=True)  # along random directions
    (gradient,) = torch.autograd.grad(integrand(process, log_s, x0, z, t).sum(), log_s)
    assert (gradient[keep > 0] == 0).all()


@pytest.mark.parametrize("integrand", [score_entropy, squared_score_error])
@pytest.mark.parametrize("kind", ["masked", "uniform", "hybrid"])
def test_both_are_least_at_the_exact_score(integrand, kind):
    """E over x0 given z is stationary there: the same minimiser, 1e-10; at other scores it is not."""
    process = getattr(processes, kind)(3)
    time = torch.tensor([0.4], dtype=torch.float64)
    x0, z, t, probability = noisy_pairs(process, time)
    for shift in (0.0, 0.3):
        log_s = to_score(ExactDenoiser(process)(z, t), z, t, process)
        states = sequences(process.V)
        table = torch.zeros(len(states), 2, process.V, dtype=torch.float64)
        number = z[:, 0] * process.V + z[:, 1]
        table[number] = log_s + shift
        table.requires_grad_()
        loss = integrand(process, table[number].scatter(-1, z[..., None], 0.0), x0, z, t).sum(-1) @ probability
        (gradient,) = torch.autograd.grad(loss, table)
        slope = gradient.nan_to_num(0.0).abs().max().item()
        assert slope < 1e-10 if shift == 0 else slope > 1e-4


def objective_mean(name, process, denoiser_of, nodes=120):
    """The objective's own expectation in nats per sequence: quadrature over u, enumeration of (x0, z)."""
    node, share = np.polynomial.legendre.leggauss(nodes)
    value = bound = 0.0
    for x, w in zip((node + 1) / 2, share / 2, strict=True):
        s = x * x * (3 - 2 * x)
        u = torch.tensor([s], dtype=torch.float64)
        x0, z, t, probability = noisy_pairs(process, process.times(u)[0])
        loss = objectives.get(name)(denoiser_of(z, t), prescribed(process, z), {"ids": x0}, u.expand(len(x0)))
        value += w * 6 * x * (1 - x) * (loss.value.sum(-1) @ probability).item()
        bound += w * 6 * x * (1 - x) * (loss.bound.sum(-1) @ probability).item()
    return value, bound


@pytest.mark.parametrize("kind", ["masked", "uniform"])
def test_sedd_with_exact_scores_is_the_entropy(kind):
    """Scores told as such, of the exact posterior: E value = E bound = H, 1e-4 (edges of t included)."""
    process = getattr(processes, kind)(3)

    def denoiser(z, t):
        return Says(to_score(ExactDenoiser(process)(z, t), z, t, process), scores=True)

    value, bound = objective_mean("sedd", process, denoiser)
    assert value == bound == pytest.approx(entropy(), abs=1e-4)


def test_sedd_of_scores_of_no_law_is_still_a_bound():
    """Scores twice too large and unnormalised: the chain they drive has a bound above H, and value is it."""
    process = processes.uniform(3)

    def denoiser(z, t):
        right = to_score(ExactDenoiser(process)(z, t), z, t, process)
        return Says((right + math.log(2)).scatter(-1, z[..., None], 0.0), scores=True)

    value, bound = objective_mean("sedd", process, denoiser)
    assert value == bound > entropy() + 0.1


@pytest.mark.parametrize("name", ["sedd", "csm"])
@pytest.mark.parametrize("kind", ["masked", "uniform", "hybrid"])
@pytest.mark.parametrize("scores", [True, False])
def test_objectives_are_their_integrands(name, kind, scores):
    """Value and bound of the same draw, for log p and for raw scores, asked for everything or masks only; 1e-12."""
    process = getattr(processes, kind)(K)
    x0 = torch.arange(12).reshape(4, 3) % K
    u = torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    z = process.corrupt(x0, process.times(u)[0], torch.Generator().manual_seed(3))
    t, weight = process.times(u)
    answer = random_law(4, 3, process.V if scores else K)
    if scores:
        answer = answer.scatter(-1, z[..., None], 0.0)
    log_s = answer if scores else to_score(answer, z, t, process)
    entropy_terms = weight[:, None] * score_entropy(process, log_s, x0, z, t)
    squares = weight[:, None] * squared_score_error(process, log_s, x0, z, t)
    denoiser = Says(answer, scores=scores)
    for one in (denoiser, Selective(denoiser)):
        loss = objectives.get(name)(one, prescribed(process, z), {"ids": x0}, u)
        torch.testing.assert_close(loss.value, entropy_terms if name == "sedd" else squares, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(loss.bound, entropy_terms, rtol=1e-11, atol=1e-12)
        assert not loss.bound.requires_grad
    if kind == "masked":
        assert one.asked == int((z == K).sum())  # revealed tokens cost no output layer


@pytest.mark.parametrize("name", ["sedd", "csm"])
def test_processes_without_scores_are_refused(name):
    batch, u = {"ids": torch.zeros(1, 2, dtype=torch.long)}, torch.tensor([0.5])
    for process in (processes.masked(3, steps=4), processes.learned(torch.zeros(3))):
        with pytest.raises(ValueError, match=f"{process.name} process"):
            objectives.get(name)(Says(random_law(1, 2, 3)), process, batch, u)


def test_t20_concrete_score_matching():
    """T20: E_p sum_i (c_i - c_p,i)^2 - J does not depend on c, 1e-12, whatever the neighbours."""
    generator = torch.Generator().manual_seed(0)
    p = LAW.flatten()
    ring = torch.stack([(torch.arange(9) + 1) % 9, (torch.arange(9) - 1) % 9, torch.arange(9) * 0 + 4], 1)
    constants = []
    for _ in range(5):
        c = torch.randn(9, 3, generator=generator, dtype=torch.float64)
        exact = p[ring] / p[:, None] - 1
        explicit = (p[:, None] * (c - exact) ** 2).sum()
        constants.append(float(explicit - objectives.concrete_score_matching(c, p, ring)))
    assert max(constants) - min(constants) < 1e-12
    c = (p[ring] / p[:, None] - 1).requires_grad_()
    (gradient,) = torch.autograd.grad(objectives.concrete_score_matching(c, p, ring), c)
    assert gradient.abs().max() < 1e-15
