"""Samplers that write every token once: Euler, analytic, first-hitting, greedy tail, and the draws under all of them.

Laws of samplers come from ``exhaust``: the package's own code, run for every outcome of its categorical draws.
"""

import itertools
import math
from unittest.mock import patch

import pytest
import torch

from redraft import processes, randomness, sampling
from redraft.sampling import kernels, samplers
from redraft.sampling.contract import Draw
from redraft.sampling.kernels import euler, euler_kernel, first_hitting, hitting_time

from .exhaust import law_at, outcomes, transitions
from .oracle import DEPENDENCE, LAW, ExactDenoiser, ancestral_law, on_states, sequences, state_number, total_variation


def table(process, rows: int = 5, length: int = 4):
    """(p0, z, t, s): random cavity posteriors, states and times s < t."""
    g = torch.Generator().manual_seed(0)
    p0 = torch.randn(rows, length, process.K, generator=g, dtype=torch.float64).softmax(-1)
    z = torch.randint(process.V, (rows, length), generator=g)
    t = 0.05 + 0.95 * torch.rand(rows, generator=g, dtype=torch.float64)
    return p0, z, t, t * torch.rand(rows, generator=g, dtype=torch.float64)


# -------------------------------------------------------------------------------------------------------------- euler


@pytest.mark.parametrize("mask_id", [None, 1])
def test_euler_is_ancestral_on_the_linear_masked_schedule(mask_id):
    """Section 5: exactly so while (t - s) / t <= 1, which is always; from t = 1 on, where alpha is 0; 1e-12."""
    process = processes.masked(3, mask_id=mask_id)
    p0, z, t, s = table(process)
    if mask_id is not None:
        p0 = p0.index_fill(-1, torch.tensor(mask_id), 0.0)
        p0 = p0 / p0.sum(-1, keepdim=True)
    for times in ((t, s), (torch.ones_like(t), s), (t, torch.zeros_like(t))):
        expected = process.posterior(p0, z, *times)
        torch.testing.assert_close(euler_kernel(process, p0, z, *times), expected, rtol=0, atol=1e-12)
    cosine = processes.masked(3, "cosine", mask_id=mask_id)
    assert (euler_kernel(cosine, p0, z, t, s) - cosine.posterior(p0, z, t, s)).abs().max() > 0.01


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_t7_euler_masked(steps):
    """T7: TV = .28125 / N, as for ancestral sampling, 1e-9; through the sampler's own draws."""
    process = processes.masked(3)
    law = law_at(euler, process, ExactDenoiser(process), steps)
    assert total_variation(law, on_states(process)) == pytest.approx(DEPENDENCE / steps, abs=1e-9)


@pytest.mark.parametrize("name", ["masked", "uniform", "hybrid"])
def test_euler_is_the_reverse_kernel_to_first_order(name):
    """What it is off by falls with the square of the step."""
    process = getattr(processes, name)(3, schedule="cosine")
    p0, z, t, _ = table(process)
    t = t.clamp(0.2, 0.8)
    errors = [
        (euler_kernel(process, p0, z, t, t - d) - process.posterior(p0, z, t, t - d)).abs().max().item()
        for d in (0.01, 0.005, 0.0025)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(4, rel=0.15)


def test_t7_euler_uniform_and_hybrid_converge():
    """T7: to the law, from above what the exact kernel gives; hybrid noise, of infinite rate at t = 1, more slowly."""
    for process, factor in ((processes.uniform(3), 3.5), (processes.hybrid(3), 1.8)):
        denoiser = ExactDenoiser(process)
        errors = [total_variation(law_at(euler, process, denoiser, n), on_states(process)) for n in (4, 16)]
        assert errors[0] > factor * errors[1]
        assert errors[1] > total_variation(ancestral_law(process, denoiser, 16), on_states(process))


# ----------------------------------------------------------------------------------------------------- analytic (T11)


def test_t11_analytic_absorb_is_ancestral():
    """T11: the staggered SUBS score times the transposed transition is the reverse kernel, normalised, 1e-12."""
    process = processes.masked(3, "cosine")
    p0, z, t, s = table(process)
    z = torch.where(torch.rand(z.shape, generator=torch.Generator().manual_seed(1)) < 0.5, 3, z)
    sigma_t, sigma_s = (-process.schedule(time)[0].log()[:, None, None] for time in (t, s))
    masked, is_mask = (z == 3)[..., None], torch.arange(4) == 3
    own = torch.nn.functional.one_hot(z, 4).double()
    # s(y) = q_t(y) / q_t(z): p_y / (e^sigma - 1) at masks; at a token itself 1, and e^sigma - 1 to the mask
    padded = torch.nn.functional.pad(p0, (0, 1))
    score = torch.where(masked, padded / torch.expm1(sigma_t) + is_mask, own + torch.expm1(sigma_t) * is_mask)
    d = sigma_t - sigma_s
    staggered = d.exp() * score + torch.where(is_mask, (1 - d.exp()) * score.sum(-1, keepdim=True), 0.0)
    probs = staggered * ((-d).exp() * own + (1 - (-d).exp()) * masked)
    torch.testing.assert_close(probs, process.posterior(p0, z, t, s), rtol=0, atol=1e-12)
    torch.testing.assert_close(probs.sum(-1), torch.ones(z.shape, dtype=torch.float64), rtol=0, atol=1e-12)
    assert samplers.SAMPLERS["analytic"] is samplers.ancestral


def test_t11_analytic_uniform_is_the_bayes_kernel():
    """T11: with the exact score of the cavity, already normalised, 1e-12."""
    process = processes.uniform(3)
    p0, z, t, s = table(process)
    alpha_t, alpha_s = (process.schedule(time)[0][:, None, None] for time in (t, s))
    a = alpha_t / alpha_s
    marginal = alpha_t * p0 + (1 - alpha_t) / 3
    score = marginal / marginal.gather(-1, z[..., None])
    staggered = score / a + (a - 1) / (3 * a) * score.sum(-1, keepdim=True)
    probs = staggered * ((1 - a) / 3 + a * torch.nn.functional.one_hot(z, 3))
    torch.testing.assert_close(probs, process.posterior(p0, z, t, s), rtol=0, atol=1e-12)
    torch.testing.assert_close(probs.sum(-1), torch.ones(z.shape, dtype=torch.float64), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------ first hitting (T17)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "geometric"])
def test_t17_law_of_the_next_event(schedule):
    """T17: P(t' <= x) = ((1 - alpha_x) / (1 - alpha_t))^n, the law of the largest of n hiding times; as an identity."""
    process = processes.masked(3, schedule)
    x = torch.linspace(0.05, 0.75, 15, dtype=torch.float64)
    t = torch.full_like(x, 0.8)
    for n in (1, 2, 7):
        hidden = [1 - process.schedule(time)[0] for time in (x, t)]
        u = (hidden[0] / hidden[1]) ** n  # the CDF at x, so the draw u must give x back
        torch.testing.assert_close(hitting_time(process.schedule, t, torch.full_like(x, n), u), x, rtol=0, atol=1e-9)
    if schedule == "linear":
        assert hitting_time(process.schedule, t[:1], torch.tensor([3]), torch.tensor([0.125])).item() == 0.4


@pytest.mark.parametrize(("steps", "schedule"), [(1, "linear"), (3, "cosine"), (8, "linear")])
def test_t7_first_hitting_is_exact(steps, schedule):
    """T7: First-hitting: 0. Whatever the event times (four seeds), the order is even and the law is LAW, 1e-9."""
    process = processes.masked(3, schedule)
    denoiser = ExactDenoiser(process)
    for seed in range(4):
        law = torch.zeros(16, dtype=torch.float64)

        def run(seed: int = seed) -> torch.Tensor:
            return sampling.sample(
                process, denoiser, length=2, steps=steps, sampler="first_hitting", seeds=[seed]
            ).tokens

        for tokens, weight in outcomes(run, 1):
            law[state_number(tokens, 4)] += weight
        assert total_variation(law, on_states(process)) < 1e-9


def test_t17_the_next_event_is_at_any_masked_position_alike():
    """T17: one event at .5^(1/3) and the next beyond s: each free masked position is written with probability 1 / 3."""
    process = processes.masked(3)
    z, frozen = torch.tensor([[3, 0, 3, 3]]), torch.tensor([[False, True, False, False]])
    t, s = torch.ones(1, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)

    def run() -> torch.Tensor:
        told = iter((0.5, 1e-9))
        with patch.object(kernels, "rand", lambda shape, generators, device: torch.full(shape, next(told)).double()):
            said = lambda z, t, where: p.log().expand(1, 4, 3)[where]  # noqa: E731
            return first_hitting(process, said, z, t, s, Draw(frozen, None))

    law = torch.zeros(4, 3, dtype=torch.float64)
    for result, weight in outcomes(run, 1):
        (at,) = (result != z)[0].nonzero().flatten().tolist()
        law[at, result[0, at]] += weight.item()
    expected = torch.where(frozen[0][:, None], 0.0, p / 3)
    torch.testing.assert_close(law, expected, rtol=0, atol=1e-12)


def test_first_hitting_has_no_memory_of_its_grid():
    """P(no event between t and s) is a product over any grid between: u^(1/n) drawn afresh at each of its points."""
    process = processes.masked(3)
    t, s, rows = torch.full((4000,), 1.0).double(), torch.full((4000,), 0.5).double(), 4000
    z, counts = torch.full((rows, 6), 3), []
    uniform = lambda z, t, where: torch.zeros(int(where.sum()), 3).log_softmax(-1)  # noqa: E731
    frozen = torch.zeros_like(z, dtype=torch.bool)
    middle = torch.full_like(t, 0.75)
    for grid in ((t, s), (t, middle, s)):
        after, draw = z, Draw(frozen, torch.Generator().manual_seed(len(grid)))
        for one, two in itertools.pairwise(grid):
            after = first_hitting(process, uniform, after, one, two, draw)
        counts.append(torch.bincount((after == 3).sum(1), minlength=7).double())
    binomial = torch.tensor([math.comb(6, k) / 64 for k in range(7)])  # each hidden at s = 1/2 with probability 1/2
    for count in counts:
        assert ((count - rows * binomial) ** 2 / (rows * binomial)).sum() < 40  # chi-square(6): 5e-7


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_first_hitting_asks_once_a_token(steps):
    """Exactly L calls for a row, whatever the grid; a batch in one step as many as its row with most masks."""
    process = processes.masked(3)
    denoiser = ExactDenoiser(process, torch.ones(3, 3, 3, 3, dtype=torch.float64) / 81)
    options = {"steps": steps, "sampler": "first_hitting"}
    assert sampling.sample(process, denoiser, length=4, seeds=[3], **options).nfe == 4
    batch = sampling.sample(process, denoiser, length=4, seeds=[1, 2, 3], **options)
    assert batch.nfe == 4 if steps == 1 else 4 <= batch.nfe <= 12


# -------------------------------------------------------------------------------------------------------- greedy tail


@pytest.mark.parametrize("name", ["masked", "uniform", "hybrid", "spindle"])
def test_greedy_tail_is_ancestral_but_for_the_last_step(name):
    """Its last step takes the argmax of the output, the cavity posterior, at all positions that may still change."""
    process = processes.spindle(torch.tensor([0.5, -0.5, 0.0])) if name == "spindle" else getattr(processes, name)(3)
    denoiser = ExactDenoiser(process, posterior="full" if name == "spindle" else "cavity")
    early = transitions(samplers.greedy_tail, process, denoiser, 0.5, 0.25)
    torch.testing.assert_close(early, transitions(samplers.ancestral, process, denoiser, 0.5, 0.25))
    z = sequences(process.V)
    t = torch.full((len(z),), 0.25, dtype=torch.float64)
    best = denoiser(z, t).argmax(-1)
    expected = torch.where(z == 3, best, z) if name in ("masked", "spindle") else best
    last = transitions(samplers.greedy_tail, process, denoiser, 0.25, 0.0)
    torch.testing.assert_close(
        last[torch.arange(len(z)), state_number(expected, process.V)], torch.ones(len(z)).double()
    )


# ------------------------------------------------------------------------------------------------------------- matrix


def test_ancestral_sampling_of_a_matrix_process_converges():
    """D3PM's Gaussian chain, whose transitions are no coefficients: TV falls as its own T grows."""
    errors = []
    for steps in (4, 16, 64):
        process = processes.d3pm(3, "gaussian", steps)
        even = torch.full((9,), 1 / 9, dtype=torch.float64)
        law = law_at(samplers.ancestral, process, ExactDenoiser(process), steps, law=even)
        errors.append(total_variation(law, on_states(process)))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.015


# ------------------------------------------------------------------------------------------------ draws (T12 and T23)


def gumbel_law(p: torch.Tensor, bits: int, offset: float = 0.0) -> torch.Tensor:
    """The law of argmax_k p_k / (offset - log(u_k + offset)), u_k even on the grid j / 2^bits, by enumeration; (K,)."""
    grid = offset - torch.log(torch.arange(2**bits, dtype=torch.float64) / 2**bits + offset)
    clock = grid / p[:, None]  # (K, J): the smallest wins
    wins = []
    for k in range(len(p)):
        above = clock.flip(1).contiguous()  # rising, since the clock falls with u
        later = 1 - torch.searchsorted(above, clock[k].expand_as(above).contiguous(), right=True) / 2**bits  # (K, J)
        later = later.double()
        later[k] = 1.0
        wins.append(later.prod(0).mean())
    return torch.stack(wins)


def test_t12_uniforms_on_a_grid_cut_the_tail():
    """T12: B = 10. The frequencies given are those of MDLM's form, offset 1e-10, 2e-4 and the rounding of .9723;
    eps0 / expm1(eps0 / p), p relative to the largest, is the plain form's law, 2e-4. A float64 inverse CDF has no such
    tail: on the same coarse grid every class is right to one cell.
    """
    p = torch.tensor([0.97, 0.02, 0.006, 0.002, 0.001, 0.0006, 0.0003, 0.0001], dtype=torch.float64)
    given = torch.tensor([0.9723, 0.0197, 0.00555, 0.00158, 0.00062, 0.00025, 0.00004, 0.0], dtype=torch.float64)
    mdlm = gumbel_law(p, 10, offset=1e-10)
    torch.testing.assert_close(mdlm[1:], given[1:], rtol=0, atol=2e-4)
    assert mdlm[0].item() == pytest.approx(given[0].item(), abs=2e-4 + 5e-5)
    law, epsilon = gumbel_law(p, 10), -math.log(1 - 2**-10)
    torch.testing.assert_close(law[1:], epsilon / torch.expm1(epsilon / (p / p[0])[1:]), rtol=0, atol=2e-4)
    assert law[-1] < 0.05 * p[-1]
    u = torch.arange(2**10, dtype=torch.float64) / 2**10
    with patch.object(randomness, "rand", lambda shape, generators, device: u[None]):
        ids = randomness.categorical(p.expand(1, len(u), -1), None)
    counts = torch.bincount(ids[0], minlength=8) / 2**10
    assert (counts - p).abs().max() < 2**-10


def test_t23_the_largest_float32_gumbel():
    """T23: 16.63553, so a class of less than e^-16.6 beside one of 1 is never drawn."""
    largest = torch.tensor(1 - 2**-24, dtype=torch.float32)
    assert -torch.log(-torch.log(largest)).item() == pytest.approx(16.63553, abs=1e-5)


def test_a_token_of_1e_12_beside_the_mask_is_drawn():
    """Section 6.1: our one draw is a float64 inverse CDF; a token of 1e-12 has a cell of its own, first or last."""
    tokens_first = torch.tensor([[[1e-12, 1.0]]], dtype=torch.float64)
    for probs, token, inside, outside in (
        (tokens_first, 0, 0.9e-12, 1.1e-12),
        (tokens_first.flip(-1), 1, 1 - 0.9e-12, 1 - 1.1e-12),
    ):
        for u, expected in ((inside, token), (outside, 1 - token)):
            told = torch.tensor([[u]], dtype=torch.float64)
            with patch.object(randomness, "rand", lambda shape, generators, device, told=told: told):
                assert randomness.categorical(probs, None).item() == expected


def test_t7_the_law_of_the_toy_is_the_one_meant():
    """What ``exhaust`` says of ancestral sampling is what ``oracle`` propagates; both at 1e-12."""
    process = processes.hybrid(3)
    denoiser = ExactDenoiser(process)
    expected = ancestral_law(process, denoiser, 4)
    torch.testing.assert_close(law_at(samplers.ancestral, process, denoiser, 4), expected, rtol=0, atol=1e-12)
    assert LAW.sum() == 1
