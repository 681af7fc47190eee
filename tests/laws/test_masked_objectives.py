"""The masked family, D3PM's hybrid loss and GenMD4's gradient: expectations of the objectives themselves, enumerated.

Draws are prescribed and weighed by their exact probabilities, times are quadratures: nothing here is Monte Carlo.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from redraft import objectives, processes
from redraft.objectives import masked
from redraft.objectives.masked import denoising_cross_entropy

from .oracle import LAW, ExactDenoiser, TableDenoiser, entropy, finite_nelbo, nelbo, noisy_pairs, sequences
from .prescribed import Says, Selective, prescribed, random_law

THREE = random_law(1, 8, seed=3).exp().reshape(2, 2, 2)
"""A law of three binary tokens, where a revealed set is more than its size."""
MASKED = ("mdlm", "md4", "radd", "maskgit", "sedd", "nelbo")


class Table(TableDenoiser):
    facts = processes.Facts(mask_id=None)


def conditionals(law, exact, seed=0):
    """p(x_i | revealed set and values), exact or arbitrary, as a denoiser; with the process."""
    process = processes.masked(law.shape[0])
    states = sequences(process.V, law.dim())
    table = ExactDenoiser(process, law)(states, torch.full((len(states),), 0.5, dtype=torch.float64))
    if not exact:
        noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        table = (table.clamp_min(-20) + noise).log_softmax(-1)
    return process, Table(table, process.V)


def over_orders(law, denoiser, mask_id):
    """Mean over orders of the autoregressive NLL, nats per sequence."""
    x, orders = sequences(law.shape[0], law.dim()), list(itertools.permutations(range(law.dim())))
    total = 0.0
    for order in orders:
        z = torch.full_like(x, mask_id)
        for i in order:
            total -= (denoiser(z)[:, i].gather(1, x[:, i : i + 1])[:, 0] @ law.flatten()).item()
            z[:, i] = x[:, i]
    return total / len(orders)


def over_times(objective, law, process, denoiser, nodes=24, part="value"):
    """E over u (quadrature) and z (enumerated) of an objective, nats per sequence."""
    node, share = np.polynomial.legendre.leggauss(nodes)
    total = 0.0
    for u, w in zip((node + 1) / 2, share / 2, strict=True):
        time = torch.tensor([u], dtype=torch.float64)
        x0, z, _, probability = noisy_pairs(process, time, law)
        loss = objective(denoiser, prescribed(process, z), {"ids": x0}, time.expand(len(x0)))
        total += w * (getattr(loss, part).sum(-1) @ probability).item()
    return total


def over_counts(law, process, denoiser, monkeypatch):
    """E of k-DCE: every k by its u, every subset by the order of the numbers it is drawn with."""
    L = law.dim()
    x0, total = sequences(law.shape[0], L), 0.0
    orders = list(itertools.permutations(range(L)))
    for k, order in itertools.product(range(L), orders):
        drawn = torch.tensor(order, dtype=torch.float64) / L
        monkeypatch.setattr(masked, "rand", lambda shape, generator, device, drawn=drawn: drawn.expand(shape).clone())
        u = torch.full((len(x0),), (k + 0.5) / L, dtype=torch.float64)
        loss = objectives.get("radd", variant="k_dce")(denoiser, process, {"ids": x0}, u)
        assert torch.equal(loss.value, loss.bound)
        total += (loss.value.sum(-1) @ law.flatten()).item() / L / len(orders)
    return total


@pytest.mark.parametrize("law", [LAW, THREE], ids=["toy", "three"])
@pytest.mark.parametrize("exact", [True, False])
def test_t5_orders_rates_counts_and_times_are_one(law, exact, monkeypatch):
    """T5: mean over orders of NLL = lambda-DCE = k-DCE = t-NELBO, for any table of conditionals; H if exact; 1e-10."""
    process, denoiser = conditionals(law, exact)
    mean = over_orders(law, denoiser, process.mask_id)
    for name, options in (("nelbo", {}), ("radd", {"variant": "lambda_dce"}), ("radd", {"variant": "t_dse"})):
        found = over_times(objectives.get(name, **options), law, process, denoiser)
        assert found == pytest.approx(mean, abs=1e-10), (name, options)
    assert over_counts(law, process, denoiser, monkeypatch) == pytest.approx(mean, abs=1e-10)
    assert nelbo(process, denoiser, law) == pytest.approx(mean, abs=1e-10)
    assert mean == pytest.approx(entropy(law), abs=1e-10) if exact else mean > entropy(law) + 1e-3


def test_t5_t_dce_is_off_by_what_has_no_mean():
    """T5: t-DCE = NELBO integrand + r sigma' log(e^sigma - 1) at masks; that term integrates to 0 but is not 0."""
    process = processes.masked(3, schedule="cosine")
    node, share = np.polynomial.legendre.leggauss(400)
    s = (torch.tensor(node) + 1) / 2
    t, w = s**2 * (3 - 2 * s), torch.tensor(share) / 2 * 6 * s * (1 - s)
    z, x0 = torch.full((400, 1), 3), torch.zeros(400, 1, dtype=torch.long)
    logp = random_law(400, 1, 3)
    free = denoising_cross_entropy(process, logp, x0, z, t) - process.nelbo(logp, x0, z, t)
    odds = torch.log(torch.expm1(-torch.log(process.schedule(t)[0])))
    inner = t < 0.99  # nearer to 1 the odds of this reference overflow
    expected = process.mask_weight(t)[:, 0] * odds
    torch.testing.assert_close(free[inner, 0], expected[inner], rtol=1e-9, atol=1e-9)
    masked_share = 1 - process.schedule(t)[0]
    assert (free[:, 0] * masked_share * w).sum().item() == pytest.approx(0.0, abs=1e-6)
    assert (free[:, 0].abs() * masked_share * w).sum().item() > 0.5
    at = torch.tensor([0.3, 0.9], dtype=torch.float64)
    denoiser, batch = Says(random_law(2, 1, 3)), {"ids": x0[:2]}
    loss = objectives.get("radd", variant="t_dce")(denoiser, prescribed(process, z[:2]), batch, at)
    expected = objectives.nelbo(denoiser, prescribed(process, z[:2]), batch, at)
    torch.testing.assert_close(loss.bound, expected.bound, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(loss.value, loss.bound)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_lambda_dce_ignores_the_schedule(schedule):
    """Masks come at rate u whatever the schedule, and the denoiser is told the time when they do."""
    process, told = processes.masked(3, schedule=schedule), []

    class Listens(Says):
        def __call__(self, z, t, cond=None):
            told.append(t)
            return super().__call__(z, t, cond)

    u = torch.tensor([0.2, 0.7], dtype=torch.float64)
    x0, z = torch.tensor([[0, 1], [2, 1]]), torch.tensor([[3, 1], [3, 3]])
    answer = random_law(2, 2, 3)
    loss = objectives.get("radd")(Listens(answer), prescribed(process, z), {"ids": x0}, u)
    losses = torch.where(z == 3, -answer.gather(-1, x0[..., None])[..., 0], 0.0)
    torch.testing.assert_close(loss.value, losses / u[:, None], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(process.schedule(told[0])[0], 1 - u, rtol=1e-12, atol=1e-12)


def test_k_dce_masks_valid_tokens_only():
    """k of n VALID tokens, weight n / k, exactly k masked, the others in view."""
    process = processes.masked(3)
    valid = torch.tensor([[True, True, False, True, False]]).expand(40, -1)
    batch = {"ids": torch.ones(40, 5, dtype=torch.long), "valid": valid}
    u = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    answer = torch.full((40, 5, 3), -1.0, dtype=torch.float64)
    loss = objectives.get("radd", variant="k_dce")(Says(answer), process, batch, u, torch.Generator().manual_seed(0))
    k = (1 + (u * 3).floor()).long()
    assert torch.equal((loss.value != 0).sum(1), k)
    assert (loss.value[~valid] == 0).all()
    torch.testing.assert_close(loss.value.sum(1), torch.full((40,), 3.0, dtype=torch.float64))


def test_t22_variance_of_the_weight():
    """T22: Var of (1/t) 1[masked] with t ~ U[1e-3, 1] and unit cross-entropy is 5.9147, 1e-3; mean 1."""
    process = processes.masked(2)
    node, share = np.polynomial.legendre.leggauss(60)
    low = math.log(1e-3)
    t = torch.tensor(np.exp(low * (1 - (node + 1) / 2)))
    density = torch.tensor(share) / 2 * -low * t / (1 - 1e-3)  # dt in log t, over the interval
    z, x0 = torch.full((60, 1), 2), torch.zeros(60, 1, dtype=torch.long)
    unit = Says(torch.full((60, 1, 2), -1.0, dtype=torch.float64))
    value = objectives.get("mdlm")(unit, prescribed(process, z), {"ids": x0}, t).value[:, 0]
    mean, square = ((value**power * t * density).sum().item() for power in (1, 2))
    assert mean == pytest.approx(1.0, abs=1e-10)
    assert square - mean**2 == pytest.approx(5.9147, abs=1e-3)


@pytest.mark.parametrize("name", MASKED)
def test_revealed_tokens_cost_nothing(name):
    """A selective denoiser is asked for masked positions only, and all is as without."""
    process = processes.masked(5, schedule="cosine")
    x0 = torch.arange(12).reshape(3, 4) % 5
    u = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    z = torch.where(torch.arange(12).reshape(3, 4) % 3 == 0, 5, x0)
    plain = Says(random_law(3, 4, 5))
    chosen = Selective(plain)
    one, two = (objectives.get(name)(d, prescribed(process, z), {"ids": x0}, u) for d in (plain, chosen))
    torch.testing.assert_close(one.value, two.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.bound, two.bound, rtol=1e-12, atol=1e-12)
    assert chosen.asked == int((z == 5).sum())
    assert (one.value[z != 5] == 0).all()


def test_maskgit_is_plain_cross_entropy_with_a_bound_beside_it():
    process, x0 = processes.masked(3, schedule="cosine"), torch.tensor([[0, 2]])
    z, u = torch.tensor([[3, 2]]), torch.tensor([0.4], dtype=torch.float64)
    answer = random_law(1, 2, 3)
    loss = objectives.get("maskgit")(Says(answer), prescribed(process, z), {"ids": x0}, u)
    assert loss.value[0, 0] == -answer[0, 0, 0]
    assert loss.value[0, 1] == 0
    torch.testing.assert_close(loss.bound, process.nelbo(answer, x0, z, u), rtol=1e-12, atol=1e-12)
    assert not objectives.spec("maskgit").is_bound


# ------------------------------------------------------------------------------------------------- discrete time

STEPS = 5
CHAINS = {
    "masked": lambda: processes.masked(3, steps=STEPS),
    "masked_cosine": lambda: processes.masked(3, schedule="cosine", steps=STEPS),
    "uniform": lambda: processes.uniform(3, steps=STEPS),
    "hybrid": lambda: processes.hybrid(3, steps=STEPS),
    "absorbing": lambda: processes.d3pm(3, "absorbing", STEPS),
    "gaussian": lambda: processes.d3pm(3, "gaussian", STEPS),
    "d3pm_hybrid": lambda: processes.d3pm(3, "hybrid", STEPS),
}


def over_steps(process, objective):
    """Mean over the T steps, and over (x0, z), of value and bound: nats per sequence."""
    value = bound = 0.0
    for step in range(1, STEPS + 1):
        time = torch.tensor([step / STEPS], dtype=torch.float64)
        x0, z, t, probability = noisy_pairs(process, time)
        denoiser = Says(ExactDenoiser(process)(z, t).clamp_min(-1e3))
        u = (t * STEPS - 0.5) / STEPS
        loss = objective(denoiser, prescribed(process, z), {"ids": x0}, u)
        value += (loss.value.sum(-1) @ probability).item() / STEPS
        bound += (loss.bound.sum(-1) @ probability).item() / STEPS
    return value, bound


@pytest.mark.parametrize("kind", CHAINS)
def test_t4_d3pm_is_a_step_of_the_bound_and_a_cross_entropy(kind):
    """T4: the mean bound is that of T steps, 1e-10; value = bound / T + lambda CE of the full posterior, 1e-10."""
    process = CHAINS[kind]()
    expected = finite_nelbo(process, ExactDenoiser(process), STEPS)
    expected += (process.prior_kl(sequences(3)).sum(-1) @ LAW.flatten()).item()
    value, bound = over_steps(process, objectives.get("d3pm", auxiliary=0.0))
    assert bound == pytest.approx(expected, abs=1e-10)
    assert value == pytest.approx(bound / STEPS, abs=1e-12)
    cross_entropy = over_steps(process, objectives.get("cross_entropy"))[0]
    for weight in (0.01, 0.5):
        value, bound = over_steps(process, objectives.get("d3pm", auxiliary=weight))
        assert value == pytest.approx(bound / STEPS + weight * cross_entropy, abs=1e-10)
    usual = over_steps(process, objectives.get("d3pm"))[0]
    weight = 0.0 if process.mask_id is None else 0.01
    assert usual == pytest.approx(bound / STEPS + weight * cross_entropy, abs=1e-10)


def test_d3pm_knows_what_mass_on_the_mask_means():
    """A plain head's V columns: the leaking step KL, not the cross-entropy of masks alone."""
    process = CHAINS["masked"]()
    x0, z, u = torch.tensor([[0, 1]]), torch.tensor([[3, 1]]), torch.tensor([0.5], dtype=torch.float64)
    answer = random_law(1, 2, 4)
    loss = objectives.get("d3pm", auxiliary=0.0)(Says(answer), prescribed(process, z), {"ids": x0}, u)
    t = process.times(u)[0]
    torch.testing.assert_close(loss.bound[0, :1], process.nelbo(answer, x0, z, t)[0, :1], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(loss.bound, process.nelbo(answer[..., :3], x0, z, t))


def test_d3pm_needs_steps():
    with pytest.raises(ValueError, match=r"uniform process.*process\.steps"):
        objectives.get("d3pm")(
            Says(random_law(1, 1, 3)), processes.uniform(3), {"ids": torch.zeros(1, 1)}, torch.ones(1)
        )


# ------------------------------------------------------------------------------------------- rates of each token's own


def test_diffusionbert_is_bound_and_cross_entropy():
    process = processes.spindle(torch.tensor([0.5, 0.1, -0.6], dtype=torch.float64))
    x0, z = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[3, 1], [3, 3]])
    u, answer = torch.tensor([0.3, 0.8], dtype=torch.float64), random_law(2, 2, 3)
    losses = torch.where(z == 3, -answer.gather(-1, x0[..., None])[..., 0], 0.0)
    bound = process.nelbo(answer, x0, z, u) + process.prior_kl(x0)
    for options, weight in (({}, 0.01), ({"auxiliary": 0.7}, 0.7)):
        for denoiser in (Says(answer), Selective(Says(answer))):
            loss = objectives.get("diffusionbert", **options)(denoiser, prescribed(process, z), {"ids": x0}, u)
            torch.testing.assert_close(loss.bound, bound, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(loss.value, bound + weight * losses, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("whole", [True, False])
def test_genmd4_gradient_is_that_of_the_enumerated_bound(whole):
    """E over both draws of d value / d exponents = d/dw sum_z q_w(z) NELBO_w(z), 1e-12, for any table p(x | z, t).

    Without its score-function term the gradient is another one. Tokens that do not count are noised too, and the
    loss of the others depends on how.
    """
    exponents = torch.tensor([-0.4, 0.9, 0.3], dtype=torch.float64, requires_grad=True)
    process = processes.learned(exponents)
    time = torch.tensor([0.35], dtype=torch.float64)
    x0, z, t, _ = noisy_pairs(process, time)
    denoiser = TableDenoiser(random_law(16, 2, 3), 4)
    denoiser.facts = processes.Facts(time_conditioned=True)
    valid = torch.ones_like(x0, dtype=torch.bool)
    if not whole:
        valid[:, 1] = False
    weight = LAW[x0[:, 0], x0[:, 1]]
    log_q = process.log_q(z, x0, t).sum(1)
    terms = ((process.nelbo(denoiser(z), x0, z, t) + process.prior_kl(x0)) * valid).sum(1)
    (expected,) = torch.autograd.grad((weight * log_q.exp() * terms).sum(), exponents, retain_graph=True)

    rows = [(i, j) for i, j in itertools.product(range(len(z)), repeat=2) if torch.equal(x0[i], x0[j])]
    first, second = torch.tensor(rows).T
    batch = {"ids": x0[first], "valid": valid[first]}
    loss = objectives.get("genmd4")(denoiser, prescribed(process, z[first], z[second]), batch, t[first])
    probability = (weight[first] * torch.exp(log_q[first] + log_q[second])).detach()
    (found,) = torch.autograd.grad(((loss.value * valid[first]).sum(1) * probability).sum(), exponents)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    (pathwise,) = torch.autograd.grad((weight * log_q.exp().detach() * terms).sum(), exponents)
    assert (pathwise - expected).abs().max() > 1e-2
    assert not loss.bound.requires_grad
    mean = ((loss.bound * valid[first]).sum(1) * probability).sum().item()
    assert mean == pytest.approx((weight * log_q.exp() * terms).sum().item(), abs=1e-12)


def test_genmd4_needs_rates():
    with pytest.raises(ValueError, match=r"masked process.*process\.name=learned"):
        objectives.get("genmd4")(
            Says(random_law(1, 1, 3)), processes.masked(3), {"ids": torch.zeros(1, 1)}, torch.ones(1)
        )


def test_radd_refuses_what_it_is_not_defined_for():
    batch, u = {"ids": torch.zeros(1, 1, dtype=torch.long)}, torch.tensor([0.5])
    with pytest.raises(ValueError, match="'k_dcee'; did you mean 'k_dce'"):
        objectives.get("radd", variant="k_dcee")(Says(random_law(1, 1, 3)), processes.masked(3), batch, u)
    for process in (processes.uniform(3), processes.masked(3, steps=4)):
        with pytest.raises(ValueError, match=f"'radd' with a {process.name} process"):
            objectives.get("radd")(Says(random_law(1, 1, 3)), process, batch, u)


@pytest.mark.parametrize(
    ("name", "process", "message"),
    [
        ("sedd", processes.masked(3, steps=8), "continuous time: process.steps=none"),
        ("d3pm", processes.masked(3), "discrete time: set process.steps"),
        ("genmd4", processes.masked(3), "defined for learned"),
        ("mdlm", processes.uniform(3), "defined for masked"),
    ],
)
def test_combinations_are_refused_before_any_step(name, process, message):
    with pytest.raises(ValueError, match=message):
        objectives.check(name, process, processes.Facts(time_conditioned=True))
