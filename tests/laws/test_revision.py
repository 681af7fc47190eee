"""Samplers that take tokens back: Psi, ReMDM and its correctors. Kernels as identities, laws by ``exhaust``."""

import itertools

import pytest
import torch

from redraft import processes, sampling
from redraft.sampling import samplers
from redraft.sampling.contract import Draw
from redraft.sampling.revision import (
    alphas,
    corrector_sigma,
    loop_time,
    psi_kernel,
    remdm_kernel,
    sigma_max,
    sigma_rule,
)
from redraft.schedules import NAMES

from .exhaust import after, law_at, noised, outcomes, transitions
from .oracle import DEPENDENCE, ExactDenoiser, marginals, on_states, sequences, total_variation

FAMILIES = {
    "masked": lambda: processes.masked(3, "cosine"),
    "uniform": lambda: processes.uniform(3),
    "hybrid": lambda: processes.hybrid(3, 0.3),
    "matrix": lambda: processes.d3pm(3, "gaussian", 8),
    "spindle": lambda: processes.spindle(torch.tensor([-0.5, 0.0, 0.5])),
}


def times(rows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    t = torch.rand(rows, generator=g, dtype=torch.float64).clamp_min(0.01)
    return t, t * torch.rand(rows, generator=g, dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------- remdm (T8, T18)


@pytest.mark.parametrize("schedule", NAMES)
def test_t8_remdm_keeps_the_marginals(schedule):
    """T8: alpha_t (1 - sigma) + (1 - alpha_t) reveal = alpha_s for every sigma and schedule, 1e-14; entries >= 0."""
    process = processes.masked(3, schedule)
    t, s = times()
    largest = sigma_max(*alphas(process, t, s))
    truth = torch.eye(3, dtype=torch.float64)[torch.arange(40) % 3][:, None]
    q_t, q_s = (process.marginal(truth, time) for time in (t, s))
    for share in (0.0, 0.3, 1.0):
        kernel = torch.stack(
            [
                remdm_kernel(process, truth, torch.full((40, 1), z), t, s, share * largest)[:, 0]
                for z in range(process.V)
            ],
            1,
        )
        torch.testing.assert_close(torch.einsum("bz,bzy->by", q_t[:, 0], kernel), q_s[:, 0], rtol=0, atol=1e-14)
        assert kernel.min() > -1e-15
    plain = remdm_kernel(process, truth, torch.full((40, 1), 3), t, s, torch.zeros(40, 1).double())
    torch.testing.assert_close(plain, process.posterior(truth, torch.full((40, 1), 3), t, s), rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", NAMES)
def test_t8_entries_are_probabilities_iff_sigma_is_within_its_bound(schedule):
    """T8: >= 0 iff sigma <= min(1, (1 - alpha_s) / alpha_t); asked for more, the kernel is that of the bound."""
    process = processes.masked(3, schedule)
    t, s = times()
    alpha_t, alpha_s = alphas(process, t, s)
    largest = sigma_max(alpha_t, alpha_s)

    def least(sigma):
        return torch.stack([1 - sigma, alpha_s - (1 - sigma) * alpha_t, 1 - alpha_s - sigma * alpha_t]).amin(0)

    assert (least(largest) >= -1e-15).all()
    assert (least(largest + 1e-6)[alpha_t > 1e-3] < 0).all()
    p0, z = torch.full((40, 1, 3), 1 / 3, dtype=torch.float64), torch.full((40, 1), 3)
    asked, clamped = (remdm_kernel(process, p0, z, t, s, sigma) for sigma in (largest + 0.5, largest))
    torch.testing.assert_close(asked, clamped, rtol=0, atol=0)


def test_t18_forward_backward():
    """T18: sigma = (alpha_s - alpha_t) / alpha_t reveals at twice the rate; feasible iff alpha_s <= 2 alpha_t and
    2 alpha_s - alpha_t <= 1, which on an even linear grid fails at its first and last steps only.
    """
    process, steps = processes.masked(3), 10
    t = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    s = (t - 1 / steps).clamp_min(0.0)
    alpha_t, alpha_s = alphas(process, t, s)
    wanted = ((alpha_s - alpha_t) / alpha_t.clamp_min(1e-300)).clamp_max(1e6)
    conditions = (alpha_s <= 2 * alpha_t + 1e-12) & (2 * alpha_s - alpha_t <= 1 + 1e-12)
    feasible = wanted <= sigma_max(alpha_t, alpha_s) + 1e-12
    assert torch.equal(feasible, conditions)
    assert feasible[:, 0].tolist() == [False] + [True] * (steps - 2) + [False]
    p0 = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(steps, 2, 3)
    kernel = remdm_kernel(process, p0, torch.tensor([[3, 1]]).expand(steps, 2), t, s, wanted)
    assert (kernel >= 0).all()
    torch.testing.assert_close(kernel.sum(-1), torch.ones(steps, 2).double(), rtol=0, atol=1e-14)
    inner = kernel[1:-1]
    twice = (2 * (alpha_s - alpha_t) / (1 - alpha_t))[1:-1]
    torch.testing.assert_close(inner[:, 0, :3], twice * p0[1:-1, 0], rtol=0, atol=1e-14)
    torch.testing.assert_close(inner[:, 1, 3:], wanted[1:-1], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("sampler", "beta"), [("forward_backward", 1.0), ("dfm", None), ("dfm:beta=2", None)])
def test_t18_the_correctors_are_remdm(sampler, beta):
    """T18: the samplers draw from that kernel, clamped where it must be; dfm has beta t^(1/4) (1 - t)^(1/4)."""
    process = processes.masked(3)
    denoiser, states = ExactDenoiser(process), sequences(4)
    scale = 2.0 if "=" in sampler else 10.0
    for time, until in ((0.95, 0.8), (0.6, 0.5), (0.1, 0.0)):
        t, s = (torch.full((16,), value, dtype=torch.float64) for value in (time, until))
        rate = torch.full((16,), beta or scale * time**0.25 * (1 - time) ** 0.25, dtype=torch.float64)
        sigma = corrector_sigma(process, t, s, rate)
        assert sigma[0].item() == pytest.approx(min(1.0, rate[0].item() * (time - until) / (1 - time)), abs=1e-12)
        probs = remdm_kernel(process, denoiser(states, t).exp(), states, t, s, sigma)
        expected = torch.einsum("zy,zx->zyx", probs[:, 0], probs[:, 1]).flatten(1)
        actual = transitions(samplers.get(sampler), process, denoiser, time, until)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ psi (T9)


@pytest.mark.parametrize("schedule", NAMES)
def test_t9_psi_on_masks_is_remdm(schedule):
    """T9: with sigma = (1 - kappa)(1 - alpha_s), every state, 1e-14 of the numerators that 1 - alpha_t divides."""
    process = processes.masked(3, schedule)
    t, s = times()
    g = torch.Generator().manual_seed(1)
    p0 = torch.randn(40, 4, 3, generator=g, dtype=torch.float64).softmax(-1)
    z, kappa = torch.arange(4).expand(40, 4), torch.rand(40, 1, generator=g, dtype=torch.float64)
    sigma = (1 - kappa) * (1 - alphas(process, t, s)[1])
    expected = remdm_kernel(process, p0, z, t, s, sigma)
    hidden = 1 - alphas(process, t, s)[0][..., None]
    actual = psi_kernel(process, p0, z, t, s, kappa)
    torch.testing.assert_close(hidden * actual, hidden * expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["cap", "rescale"])
def test_t9_the_rules_of_psi_are_those_of_remdm(rule):
    """T9: kappa = clip(1 - sigma / (1 - alpha_s), 0, 1) makes Psi's sampler ReMDM's, while sigma <= 1 - alpha_s."""
    process = processes.masked(3)
    denoiser = ExactDenoiser(process)
    for t, s in ((0.9, 0.6), (0.5, 0.4), (0.2, 0.0)):
        one, other = (
            transitions(samplers.get(name), process, denoiser, t, s)
            for name in (f"psi:rule={rule},eta=0.3", f"remdm:strategy={rule},eta=0.3")
        )
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def marginals_of(law: torch.Tensor, states: int) -> torch.Tensor:
    law = law.reshape(states, states)
    return torch.stack([law.sum(1), law.sum(0)])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_psi_keeps_the_marginals_of_any_process(name, eta):
    """From q_t, with the exact denoiser, every position has the law q_s gives it, 1e-12; kappa = 1 is ancestral."""
    process = FAMILIES[name]()
    t, s = 0.625, 0.375
    posterior = "full" if name == "spindle" else "cavity"
    denoiser = ExactDenoiser(process, posterior=posterior)
    kernel = transitions(samplers.get(f"psi:rule=constant,eta={eta}"), process, denoiser, t, s)
    law = after(noised(process, t), kernel)
    expected = marginals_of(noised(process, s), process.V)
    torch.testing.assert_close(marginals_of(law, process.V), expected, rtol=0, atol=1e-12)
    plain = transitions(samplers.ancestral, process, denoiser, t, s)
    assert ((kernel - plain).nan_to_num().abs().max() < 1e-14) == (eta == 0)


@pytest.mark.parametrize("name", ["uniform", "hybrid"])
def test_psi_beside_masks(name):
    """Its rules hold the marginals of uniform and hybrid noise too, 1e-12, and its law comes nearer as steps grow."""
    process = FAMILIES[name]()
    denoiser = ExactDenoiser(process)
    for rule in ("cap", "rescale"):
        kernel = transitions(samplers.get(f"psi:rule={rule},eta=0.2"), process, denoiser, 0.7, 0.4)
        law = after(noised(process, 0.7), kernel)
        expected = marginals_of(noised(process, 0.4), process.V)
        torch.testing.assert_close(marginals_of(law, process.V), expected, rtol=0, atol=1e-12)
    errors = [total_variation(law_at(samplers.psi, process, denoiser, n), on_states(process)) for n in (4, 16)]
    assert errors[0] > 2.3 * errors[1]


# --------------------------------------------------------------------------------------------------- remdm, in a run


@pytest.mark.parametrize("strategy", ["cap", "rescale"])
def test_t7_remdm_converges(strategy):
    """T7: .28125 / N at eta = 0 exactly, 1e-9; above it otherwise, but falling; no mask is left."""
    process = processes.masked(3)
    denoiser = ExactDenoiser(process)
    errors = []
    for steps in (4, 16):
        plain = law_at(samplers.get(f"remdm:strategy={strategy},eta=0"), process, denoiser, steps)
        assert total_variation(plain, on_states(process)) == pytest.approx(DEPENDENCE / steps, abs=1e-9)
        law = law_at(samplers.get(f"remdm:strategy={strategy},eta=0.2"), process, denoiser, steps)
        assert law.reshape(4, 4)[:3, :3].sum().item() == pytest.approx(1, abs=1e-12)
        errors.append(total_variation(law, on_states(process)))
        assert errors[-1] > DEPENDENCE / steps + 1e-3
    assert errors[0] > 2 * errors[1]


def test_remdm_loop_follows_its_own_alpha():
    """Rising to alpha_on, standing still while tokens are taken back, rising to 1: as the text has it, 1e-14."""
    process = processes.masked(3)
    t = torch.tensor([1.0, 0.775, 0.55, 0.3, 0.05, 0.02, 0.0], dtype=torch.float64)
    alpha = process.schedule(loop_time(process, t, 0.55, 0.05, 0.9))[0]
    expected = torch.tensor([0.0, 0.45, 0.9, 0.9, 0.9, 1 - 0.02 * 0.1 / 0.05, 1.0], dtype=torch.float64)
    torch.testing.assert_close(alpha, expected, rtol=0, atol=1e-14)
    for schedule in ("cosine", "polynomial"):
        ends = loop_time(processes.masked(3, schedule), t, 0.55, 0.05, 0.9)
        assert ends[0] == 1
        assert ends[-1] == 0
        assert (ends.diff() <= 1e-15).all()


def test_remdm_loop_keeps_its_marginals():
    """After every step of 20 the share of written tokens is the loop's alpha, 1e-12, and the law comes near LAW."""
    process, steps = processes.masked(3), 20
    denoiser, loop = ExactDenoiser(process), samplers.get("remdm:strategy=loop,eta=0.1")
    law = None
    for i in range(steps, 0, -1):
        t, s = i / steps, (i - 1) / steps
        law = (
            law_at(loop, process, denoiser, steps, until=steps - 1)
            if law is None
            else after(law, transitions(loop, process, denoiser, t, s))
        )
        own = loop_time(process, torch.tensor([s], dtype=torch.float64), 0.55, 0.05, 0.9)
        written = marginals_of(law, 4)[:, :3].sum(1)
        torch.testing.assert_close(written, process.schedule(own)[0].expand(2), rtol=0, atol=1e-12)
    assert total_variation(law, on_states(process)) < 0.03
    rising = transitions(loop, process, denoiser, 0.8, 0.75)
    assert rising[0, 0].item() == 1  # written tokens stay before alpha stands, and after
    assert transitions(loop, process, denoiser, 0.04, 0.02)[0, 0].item() == 1
    standing = transitions(loop, process, denoiser, 0.5, 0.45)
    still = transitions(samplers.get("remdm:strategy=loop,eta=0"), process, denoiser, 0.5, 0.45)
    assert torch.equal(still, torch.eye(16, dtype=torch.float64))
    assert standing[0, 3].item() == pytest.approx(0.1 * 0.9, abs=1e-12)  # of (0, 0), the second taken back alone


def test_remdm_conf_takes_back_the_doubtful():
    """sigma^l = sigma_max softmax(-psi^l) over written tokens: psi from when each was written, none for given ones."""
    process = processes.masked(3)
    p = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05], [0.6, 0.3, 0.1]], dtype=torch.float64)[None]
    frozen = torch.tensor([[False, False, False, True]])
    p = torch.cat([p, p[:, :1]], 1)
    draw = Draw(frozen, None)
    conf = samplers.get("remdm:strategy=conf")
    first = torch.tensor([[1, 0, 3, 2]])  # what is drawn of all masks: two tokens, one mask left
    masks = torch.tensor([[3, 3, 3, 2]])
    t, s, r = (torch.full((1,), time, dtype=torch.float64) for time in (0.9, 0.5, 0.4))

    def run(z, t, s):
        return outcomes(lambda: conf(process, lambda z, t: p.log(), z, t, s, draw), 1)

    for result, _ in run(masks, t, s):
        if torch.equal(result[:, :3], first[:, :3]):
            break
    assert draw.memory["psi"][0, :2].tolist() == pytest.approx([0.5, 0.9])
    memory = {name: value.clone() for name, value in draw.memory.items()}
    back = torch.zeros(4, dtype=torch.float64)
    for result, weight in run(first, s, r):
        back += weight * (result[0] == 3)
        draw.memory.update({name: value.clone() for name, value in memory.items()})
    weights = torch.softmax(-torch.tensor([0.5, 0.9], dtype=torch.float64), 0)
    largest = sigma_max(*alphas(process, s, r)).item()
    assert back[:2].tolist() == pytest.approx((largest * weights).tolist(), abs=1e-12)
    assert back[3].item() == pytest.approx(0, abs=1e-12)  # given
    assert back[2].item() == pytest.approx(0.8, abs=1e-12)  # a mask's sigma is 0: it stays with (1 - .6) / (1 - .5)


def test_remdm_conf_does_not_doubt_what_a_callback_wrote():
    """A token that replaced the drawn one has no probability of its own: it counts as sure."""
    process = processes.masked(3)
    draw = Draw(torch.zeros(1, 2, dtype=torch.bool), None)
    s, r = (torch.full((1,), time, dtype=torch.float64) for time in (0.5, 0.4))
    logp = torch.tensor([[[0.2, 0.3, 0.5]] * 2], dtype=torch.float64).log()
    conf = samplers.get("remdm:strategy=conf")
    z = torch.tensor([[0, 0]])
    draw.memory.update(written=torch.tensor([[0, 1]]), psi=torch.tensor([[0.2, 0.2]], dtype=torch.float64))
    back = torch.zeros(2, dtype=torch.float64)
    for result, weight in outcomes(lambda: conf(process, lambda z, t: logp, z, s, r, draw), 1):
        back += weight * (result[0] == 3)
    weights = torch.softmax(-torch.tensor([0.2, 1.0], dtype=torch.float64), 0)
    assert back.tolist() == pytest.approx((0.8 * weights).tolist(), abs=1e-12)


def test_a_revising_run_goes_on_without_masks():
    """A complete canvas is no end for a sampler that may take tokens back; its last step leaves no mask."""
    process = processes.masked(3)
    seen = []
    drawn = sampling.sample(
        process,
        ExactDenoiser(process),
        length=2,
        num=40,
        steps=12,
        sampler="remdm:strategy=rescale,eta=1",
        callback=lambda step: seen.append((step.z == 3).any(1)),
    )
    assert len(seen) == 12
    again = sum((later & ~before).any() for before, later in itertools.pairwise(seen))
    assert again > 0
    assert (drawn.tokens < 3).all()


def test_sigma_rules():
    alpha_t, alpha_s = torch.tensor([0.2, 0.9]).double(), torch.tensor([0.3, 0.99]).double()
    assert sigma_rule("cap", 0.008, alpha_t, alpha_s).tolist() == [0.008, 0.008]
    assert sigma_rule("cap", 0.5, alpha_t, alpha_s).tolist() == pytest.approx([0.5, 0.01 / 0.9])
    assert sigma_rule("rescale", 0.5, alpha_t, alpha_s).tolist() == pytest.approx([0.5, 0.005 / 0.9])
    assert marginals(processes.masked(3), torch.ones(1).double())[0, 0, 3] == 1
