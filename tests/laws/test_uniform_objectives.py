"""Uniform objectives: the closed form, the fused sum and its gradient, Duo's curriculum, distillation's fixed point.

Integrals are quadratures over enumerated states; where a draw is compared with its exact mean, the seed is fixed and
the bound is five standard errors (false alarm below 1e-6 under a random seed).
"""

import math

import numpy as np
import pytest
import torch

from redraft import objectives, processes
from redraft.processes import Facts, duality, fused, time

from .oracle import LAW, ExactDenoiser, K, L, entropy, noisy_pairs, sequences

F64 = torch.float64


def random_logp(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, L, size, generator=generator, dtype=F64).mul(2).log_softmax(-1)


def closed_form(logp, x0, z, alpha, d_alpha):
    """UDLM's loss as its paper writes it: vectors over the vocabulary, float64."""
    size = logp.shape[-1]
    alpha, d_alpha = alpha[:, None, None], d_alpha[:, None, None]
    true = size * alpha * torch.nn.functional.one_hot(x0, size) + 1 - alpha
    model = size * alpha * logp.exp() + 1 - alpha
    true_z, model_z = (one.gather(-1, z[..., None]) for one in (true, model))
    inner = (true / true_z * torch.log(model_z * true / (model * true_z))).sum(-1, keepdim=True)
    return (d_alpha / (size * alpha) * (size / true_z - size / model_z - inner))[..., 0]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "geometric"])
def test_t0b_the_objective_is_the_closed_form(schedule):
    """T0b/c: nelbo of the uniform process = UDLM's closed form at every (x0, z, t), 1e-12 relative."""
    process = processes.uniform(K, schedule)
    t = torch.tensor([0.02, 0.3, 0.5, 0.9, 0.98], dtype=F64)
    x0, z, rows, _ = noisy_pairs(process, t)
    logp = random_logp(len(x0), K)
    expected = closed_form(logp, x0, z, *process.schedule(rows))
    torch.testing.assert_close(process.nelbo(logp, x0, z, rows), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["udlm", "duo"])
def test_t0b_the_named_objectives_draw_it(name):
    """udlm, and duo when its curriculum is over, are the closed form at the draw that ``corrupt`` makes."""
    process = processes.uniform(K)
    u = time.draw("uniform", (0, 0), range(9), 9)
    options = {"progress": 1.0} if name == "duo" else {}
    loss = objectives.OBJECTIVES[name].function(
        ExactDenoiser(process), process, {"ids": sequences(K)}, u, torch.Generator().manual_seed(3), **options
    )
    z, t, _ = objectives.corrupt(process, sequences(K), u, torch.Generator().manual_seed(3))
    expected = closed_form(ExactDenoiser(process)(z, t), sequences(K), z, *process.schedule(t))
    torch.testing.assert_close(loss.value, expected, rtol=1e-11, atol=1e-12)
    assert torch.equal(loss.value, loss.bound)


def test_the_fused_sum_is_its_formula_and_has_its_gradient():
    """shares(...) against plain autograd at a size of several chunks, 1e-12; kl too, and where p is 0."""
    generator = torch.Generator().manual_seed(0)
    size, rows = 70_001, 9
    logits = torch.randn(rows, L, size, generator=generator, dtype=F64, requires_grad=True)
    assert rows * L * size > 2 * fused._CHUNK["cpu"]
    x0, z = torch.randint(size, (2, rows, L), generator=generator)
    ratio = torch.rand(rows, 1, generator=generator, dtype=F64) * size
    weights = torch.randn(3, rows, L, generator=generator, dtype=F64)

    def plain(logp):
        return torch.log1p(ratio[..., None] * logp.exp()).sum(-1), *(
            logp.gather(-1, ids[..., None])[..., 0] for ids in (x0, z)
        )

    target = torch.randn(rows, L, size, generator=generator, dtype=F64).log_softmax(-1)
    pairs = [
        (lambda logp: fused.shares(logp, ratio, x0, z), plain),
        (lambda logp: (fused.kl(logp, target),), lambda logp: ((logp.exp() * (logp - target)).sum(-1),)),
    ]
    for ours, theirs in pairs:
        found = []
        for function in (ours, theirs):
            out = function(logits.log_softmax(-1))
            total = sum((weight * one).sum() for weight, one in zip(weights, out, strict=False))
            found.append((*out, *torch.autograd.grad(total, logits)))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    none = torch.tensor([[0.0, -math.inf]], dtype=F64, requires_grad=True)
    value = fused.kl(none, torch.tensor([[-1.0, -math.inf]], dtype=F64))
    assert value.item() == 1.0
    assert torch.equal(torch.autograd.grad(value.sum(), none)[0], torch.tensor([[2.0, 0.0]], dtype=F64))


def test_float32_keeps_the_integrand_at_a_large_vocabulary():
    """K = 50,258, float32 log p: within 2e-6 of float64, relatively, from t = 0.001 to 0.999.

    As a difference of entropies of order log K, which is how the KL first comes to mind, it is off by 5e-5.
    """
    process = processes.uniform(50_258)
    t = torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999], dtype=F64)
    generator = torch.Generator().manual_seed(0)
    logp = (torch.randn(5, 2, process.K, generator=generator, dtype=F64) * 3).log_softmax(-1)
    x0 = torch.tensor([[7, 9]]).expand(5, 2)
    z = torch.tensor([[7, 11]]).expand(5, 2)
    exact, rounded = process.nelbo(logp, x0, z, t), process.nelbo(logp.float(), x0, z, t)
    assert rounded.dtype is torch.float32
    torch.testing.assert_close(rounded.double(), exact, rtol=2e-6, atol=0)


# ------------------------------------------------------------------------------------------------------- curriculum


class Reads:
    """A denoiser that keeps what it is told, and answers with the exact cavity posterior of z."""

    def __init__(self, process):
        self.exact, self.facts = ExactDenoiser(process), Facts(time_conditioned=True)

    def __call__(self, z, t, cond=None):
        self.z, self.t, self.cond = z, t, cond
        return self.exact(z, t)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_curriculum_is_the_nelbo_of_its_interval(schedule):
    """E value with the exact denoiser = the part of the NELBO between alpha = 0.945 and 0.05, whatever the schedule.

    Both sides are quadratures over enumerated states, the one in u and the other in alpha: 1e-9. That z has the law of
    alpha = T(a~) is ``test_duality``'s; here, that the time told is the one at which the process's alpha is that.
    """
    process = processes.uniform(K, schedule)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    node, share = torch.tensor((nodes + 1) / 2, dtype=F64), torch.tensor(weights / 2, dtype=F64)
    ratio, t, dt_du = objectives.uniform.times(process, node)
    torch.testing.assert_close(process.schedule(t)[0], duality.transform(ratio, K)[0], rtol=0, atol=1e-12)
    alpha = 0.945 - node * 0.895
    others = process.schedule.inverse(alpha)
    dt_alpha = -0.895 / process.schedule(others)[1]
    means = []
    for times, dt in ((t, dt_du), (others, dt_alpha)):  # both rise
        x0, z, rows, probability = noisy_pairs(process, times)
        terms = process.nelbo(ExactDenoiser(process)(z, rows), x0, z, rows).sum(-1) * probability
        means.append((terms * (dt * share)[torch.searchsorted(times, rows)]).sum().item())
    assert means[0] == pytest.approx(means[1], abs=1e-9)
    assert 0.5 * entropy() < means[0] < 0.95 * entropy()


def test_the_curriculums_value_is_that_of_its_draw():
    """dt/du times the closed form at the z and t that the network is told, 1e-12."""
    process = processes.uniform(K, "cosine")
    denoiser, u = Reads(process), time.draw("uniform", (0, 0), range(9), 9)
    loss = objectives.get("duo")(denoiser, process, {"ids": sequences(K)}, u, torch.Generator().manual_seed(0))
    _, t, dt_du = objectives.uniform.times(process, u)
    assert torch.equal(denoiser.t, t)
    expected = closed_form(denoiser.exact(denoiser.z, t), sequences(K), denoiser.z, *process.schedule(t))
    torch.testing.assert_close(loss.value, dt_du[:, None] * expected, rtol=1e-11, atol=1e-12)


def test_the_curriculum_tells_a_mixture_and_no_bound():
    """The network reads softmax(w / temperature), which the argmax leads; the bound is NaN: none was measured."""
    process = processes.uniform(40)
    batch = {"ids": torch.arange(40).view(4, 10), "segments": torch.zeros(4, 10, dtype=torch.long)}
    told = {}

    class Fixed:
        facts = Facts(time_conditioned=True)

        def __call__(self, z, t, cond=None):
            told.update(z=z, t=t, **cond)
            return torch.full((*z.shape, 40), -math.log(40), dtype=F64, requires_grad=True)

    u = torch.rand(4, dtype=F64)
    widths = []
    for temperature in (1e-3, 1.0):
        objective = objectives.at(objectives.get("duo", temperature=temperature, curriculum=0.3), 0.29)
        loss = objective(Fixed(), process, batch, u, torch.Generator().manual_seed(0))
        ids, weights = told["mixture"]
        assert ids.shape == weights.shape == (4, 10, 32)
        assert torch.equal(told["segments"], batch["segments"])
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 10, dtype=F64))
        assert torch.equal(ids.gather(-1, weights.argmax(-1, keepdim=True))[..., 0], told["z"])
        assert loss.bound.isnan().all()
        assert not loss.bound.requires_grad
        assert loss.value.requires_grad
        widths.append((weights * weights.log()).nansum().item())
    assert widths[0] > widths[1]  # entropy grows with the temperature
    over = objectives.at(objectives.get("duo", curriculum=0.3), 0.31)
    told.clear()

    class Plain(Fixed):
        def __call__(self, z, t, cond=None):
            assert "mixture" not in (cond or {})
            return super().__call__(z, t, cond)

    loss = over(Plain(), process, batch, u, torch.Generator().manual_seed(0))
    assert torch.equal(loss.value, loss.bound)


def test_a_row_of_the_curriculum_is_the_same_in_any_batch():
    from redraft.randomness import row_generators

    process = processes.uniform(K)
    batch = {"ids": sequences(K)}
    u = time.draw("stratified", (0, 0), range(9), 9)
    objective = objectives.get("duo")
    whole = objective(Reads(process), process, batch, u, row_generators(0, 5, rows=range(9))).value
    part = objective(Reads(process), process, {"ids": batch["ids"][3:5]}, u[3:5], row_generators(0, 5, rows=(3, 4)))
    torch.testing.assert_close(part.value, whole[3:5], rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------------------------------ distillation


@pytest.mark.parametrize("objective", ["duo", "dcd"])
def test_other_noise_is_refused(objective):
    for process in (processes.masked(K), processes.uniform(K, steps=8)):
        with pytest.raises(ValueError, match="uniform noise in continuous time"):
            objectives.get(objective)(ExactDenoiser(process), process, {"ids": sequences(K)}, torch.rand(9))


def test_distillation_reports_the_nelbo_of_its_draw():
    """E bound = H with the exact student, whatever the teacher says: t is uniform and z_t drawn from q_t."""
    process = processes.uniform(K)
    rows = 20_000
    number = torch.multinomial(LAW.flatten(), rows, replacement=True, generator=torch.Generator().manual_seed(0))
    u = time.draw("uniform", (0, 0), range(rows), rows)
    exact = ExactDenoiser(process)
    objective = objectives.get("dcd", teacher=exact, jump=0.1)
    loss = objective(exact, process, {"ids": sequences(K)[number]}, u, torch.Generator().manual_seed(1))
    bound = loss.bound.sum(-1)
    error = bound.std().item() / math.sqrt(rows)
    assert bound.mean().item() == pytest.approx(entropy(), abs=5 * error)
    assert error < 0.05 * entropy()
    assert loss.value.mean() > 1e-3  # the exact posterior moves along the path: it is no fixed point of distillation
