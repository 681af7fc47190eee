"""Gaussian noise under the argmax is uniform noise: the transform, the sparse draw, the coupling of two times (T10).

Draws have fixed seeds; a test of a law rejects below a tail of 1e-6, its false alarm under a random seed, and where it
could be blind a wrong law is shown to be rejected.
"""

import math

import pytest
import torch
from scipy import integrate, stats

from redraft import processes
from redraft.processes import duality
from redraft.schedules import bisect

from .oracle import chi_square_tail

F64 = torch.float64
FALSE_ALARM = 1e-6


def ratio_of(gamma: float) -> torch.Tensor:
    """a~ / s~ with a~^2 = sigmoid(-gamma), s~^2 = sigmoid(gamma)."""
    gamma = torch.tensor(gamma, dtype=F64)
    return torch.sqrt(torch.sigmoid(-gamma) / torch.sigmoid(gamma))


@pytest.mark.parametrize(
    ("K", "gamma", "alpha"),
    [
        (50_258, -3.55, 0.945474),
        (50_258, -2.7, 0.360124),
        (50_258, -1.85, 0.049317),
        (30_522, -3.5, 0.941706),
        (30_522, -2.625, 0.350337),
        (30_522, -1.75, 0.048683),
    ],
)
def test_t10_transform_at_the_vocabularies_of_use(K, gamma, alpha):
    """T10: the reference's table, 1e-6; and adaptive quadrature of the definition, 1e-9."""
    a = ratio_of(gamma)
    found = duality.transform(a, K)[0].item()
    assert found == pytest.approx(alpha, abs=1e-6)

    def integrand(u):
        return stats.norm.pdf(u - a.item()) * math.exp((K - 1) * stats.norm.logcdf(u))

    stays = integrate.quad(integrand, a.item() - 9, a.item() + 9, points=[a.item()], epsabs=1e-13, limit=400)[0]
    assert found == pytest.approx((K * stays - 1) / (K - 1), abs=1e-9)


def test_t10_transform_of_five_tokens():
    """T10: K = 5, a~ = 0.6: 0.2655469931, and the two ends are uniform noise's own."""
    assert duality.transform(torch.tensor(0.6 / 0.8), 5)[0].item() == pytest.approx(0.2655469931, abs=1e-10)
    ends, _ = duality.transform(torch.tensor([0.0, 30.0]), 5)
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=F64), rtol=0, atol=1e-12)


def test_t10_argmax_frequencies():
    """T10: the argmax of dense Gaussians, 4e5 draws: (1 - alpha) / K at each token and alpha more at x, chi-square."""
    K, draws = 5, 400_000
    w = torch.randn(draws, K, generator=torch.Generator().manual_seed(0), dtype=F64) * 0.8
    w[:, 2] += 0.6
    counts = torch.bincount(w.argmax(-1), minlength=K).double()
    process = processes.uniform(K)
    alpha = duality.transform(torch.tensor(0.75), K)[0]
    law = process.marginal(torch.eye(K, dtype=F64)[2][None, None], 1 - alpha[None])[0, 0]
    assert chi_square_tail(counts, law) > FALSE_ALARM
    wrong = process.marginal(torch.eye(K, dtype=F64)[2][None, None], 1 - alpha[None] - 0.007)[0, 0]
    assert chi_square_tail(counts, wrong) < FALSE_ALARM


@pytest.mark.parametrize("K", [3, 30_522])
def test_the_derivative_is_that_of_the_transform(K):
    """d alpha / d ratio against central differences, 1e-8, over the curriculum's interval."""
    least, greatest = duality.interval(K)
    a = torch.exp(-torch.linspace(least, greatest, 9, dtype=F64) / 2)
    h = 1e-5
    difference = (duality.transform(a + h, K)[0] - duality.transform(a - h, K)[0]) / (2 * h)
    torch.testing.assert_close(duality.transform(a, K)[1], difference, rtol=0, atol=1e-8)


def test_the_interval_is_the_papers():
    """alpha = 0.945 and 0.05 at its ends; for GPT-2's and BERT's vocabularies the paper's gammas within 0.02."""
    for K, least, greatest in ((50_258, -3.55, -1.85), (30_522, -3.5, -1.75)):
        assert duality.interval(K) == pytest.approx((least, greatest), abs=0.02)
    for K in (2, 13, 4096):
        ends = torch.exp(-torch.tensor(duality.interval(K), dtype=F64) / 2)
        torch.testing.assert_close(
            duality.transform(ends, K)[0], torch.tensor([0.945, 0.05], dtype=F64), rtol=0, atol=1e-10
        )


# ---------------------------------------------------------------------------------------------- the sparse draw


def relaxed(K: int, n: int, ratio: float, rows: int = 200, length: int = 100, seed: int = 0) -> duality.Relaxed:
    x0 = torch.full((rows, length), min(2, K - 1))
    return duality.relax(x0, torch.full((rows,), ratio), K, n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("K", "n", "ratio"), [(5, 5, 0.75), (5, 2, 0.75), (7, 4, 0.0), (2, 2, 1.0)])
def test_t10_the_sparse_argmax_has_the_transforms_law(K, n, ratio):
    """T10: 20,000 draws, chi-square against alpha 1_x + (1 - alpha) / K, however few coordinates are kept."""
    z = relaxed(K, n, ratio).z
    alpha = duality.transform(torch.tensor(ratio), K)[0].clamp_min(0)
    law = torch.full((K,), ((1 - alpha) / K).item(), dtype=F64)
    law[min(2, K - 1)] += alpha
    assert chi_square_tail(torch.bincount(z.flatten(), minlength=K).double(), law) > FALSE_ALARM


@pytest.mark.parametrize(("count", "n"), [(1, 1), (4, 4), (30_521, 3)])
def test_order_statistics_are_those_of_normals(count, n):
    """Kolmogorov-Smirnov of each: Phi(the j-th largest of ``count``) is Beta(count + 1 - j, j); 4,000 draws."""
    v = torch.rand(4000, n, generator=torch.Generator().manual_seed(1), dtype=F64)
    tops = duality._largest_normals(v, count)
    assert (tops.diff(dim=-1) <= 0).all()
    for j in range(1, n + 1):
        uniform = torch.special.ndtr(tops[:, j - 1])
        assert stats.kstest(uniform.numpy(), stats.beta(count + 1 - j, j).cdf).pvalue > FALSE_ALARM
    if count == 4:
        assert stats.kstest(uniform.numpy(), stats.beta(count + 2 - n, n).cdf).pvalue < FALSE_ALARM
    # far out in the tail, and at the very ends of the uniforms, numbers stay numbers
    assert duality._largest_normals(torch.tensor([[0.0] * n, [1 - 2**-53] * n], dtype=F64), count).isfinite().all()


def test_order_statistics_have_the_joint_law():
    """All of 3 normals at once: sum N(0, 3) and sum of squares chi-square 3, whatever the order; and their range."""
    v = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    tops = duality._largest_normals(v, 3)
    assert stats.kstest(tops.sum(-1).numpy(), stats.norm(scale=math.sqrt(3)).cdf).pvalue > FALSE_ALARM
    assert stats.kstest((tops**2).sum(-1).numpy(), stats.chi2(3).cdf).pvalue > FALSE_ALARM
    assert stats.kstest((tops[:4000, 0] - tops[:4000, 2]).numpy(), spacing_law).pvalue > FALSE_ALARM


def spacing_law(r):
    """P(range of 3 normals <= r) = 3 int phi(x) (Phi(x + r) - Phi(x))^2 dx."""
    x = torch.linspace(-9, 9, 361, dtype=F64)
    phi = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    r = torch.as_tensor(r, dtype=F64)
    inner = torch.special.ndtr(x + r[..., None]) - torch.special.ndtr(x)
    return (3 * 0.05 * (phi * inner**2).sum(-1)).numpy()


def test_ids_are_an_even_choice_without_the_data():
    """3 of the 4 tokens that are not x0 = 2, in order: each of 24 arrangements alike (chi-square, 20,000 draws)."""
    drawn = relaxed(K=5, n=4, ratio=0.0)
    ids = drawn.ids[..., :3].flatten(0, 1)
    assert (drawn.ids[..., 3] == 2).all()
    assert (ids != 2).all()
    assert (ids.sort(-1).values.diff(dim=-1) > 0).all()
    place = ids[:, 0] * 25 + ids[:, 1] * 5 + ids[:, 2]
    counts = torch.bincount(place, minlength=125)[torch.bincount(place, minlength=125) > 0].double()
    assert len(counts) == 24
    assert chi_square_tail(counts, torch.full((24,), 1 / 24, dtype=F64)) > FALSE_ALARM
    whole = relaxed(K=3, n=3, ratio=0.5).ids
    assert torch.equal(whole.sort(-1).values, torch.arange(3).expand_as(whole))


def test_the_sparse_draw_has_the_dense_draws_law():
    """The gap between the data's coordinate and the largest other, two-sample KS against dense Gaussians, K = 50."""
    K, ratio = 50, 2.0
    dense = torch.randn(20_000, K, generator=torch.Generator().manual_seed(5), dtype=F64)
    expected = dense[:, 0] + ratio - dense[:, 1:].max(-1).values
    drawn = relaxed(K=K, n=8, ratio=ratio)
    found = (drawn.w[..., -1] - drawn.w[..., 0]).flatten()
    assert stats.ks_2samp(found.numpy(), expected.numpy()).pvalue > FALSE_ALARM
    assert stats.ks_2samp(found.numpy() + 0.1, expected.numpy()).pvalue < FALSE_ALARM


# --------------------------------------------------------------------------------------------------- the coupling


def test_the_coupling_is_that_of_one_gaussian_draw():
    """(z_t, z_s) of ``coupled`` and of dense Gaussians with the same noise: the same joint law, exactly and by draws.

    Exactly: P(z_t = x) = m_t, and z_s is x whenever z_t is, so P(both x) = m_t, P(lost between) = m_s - m_t, evenly
    over the other tokens, and a token once lost stays the same. Chi-square of both against that, 40,000 draws.
    """
    K, x, s, t = 4, 1, 0.35, 0.6
    process = processes.uniform(K)
    keep_t, keep_s = (1 - one + one / K for one in (t, s))
    law = torch.zeros(K, K, dtype=F64)  # [z_t, z_s]
    law[x, x] = keep_t
    for other in {0, 2, 3}:
        law[other, x], law[other, other] = (keep_s - keep_t) / 3, (1 - keep_s) / 3
    assert law.sum().item() == pytest.approx(1, abs=1e-14)

    x0 = torch.full((400, 100), x)
    times = tuple(torch.full((400,), one, dtype=F64) for one in (t, s))
    z, earlier = duality.coupled(process, x0, times, torch.Generator().manual_seed(0))
    counts = torch.bincount((z * K + earlier).flatten(), minlength=K * K).double()
    assert chi_square_tail(counts, law.flatten()) > FALSE_ALARM

    noise = torch.randn(40_000, K, generator=torch.Generator().manual_seed(1), dtype=F64)
    ids = []
    for one in (t, s):
        wanted = torch.tensor([one], dtype=F64)
        a = bisect(lambda ratio: 1 - duality.transform(ratio, K)[0], wanted, 0.0, 9.0)
        ids.append((noise + a * torch.eye(K, dtype=F64)[x]).argmax(-1))
    dense = torch.bincount(ids[0] * K + ids[1], minlength=K * K).double()
    assert chi_square_tail(dense, law.flatten()) > FALSE_ALARM


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_coupling_keeps_the_marginals(schedule):
    """Each z_t alone is a draw of the process, at every time of one row of times per position too (chi-square)."""
    process = processes.uniform(3, schedule)
    x0 = torch.full((300, 100), 1)
    times = torch.tensor([0.1, 0.9], dtype=F64)
    drawn = duality.coupled(
        process, x0, tuple(one.expand(300) for one in times), [torch.Generator().manual_seed(i) for i in range(300)]
    )
    for one, z in zip(times, drawn, strict=True):
        law = process.marginal(torch.eye(3, dtype=F64)[1][None, None], one[None])[0, 0]
        assert chi_square_tail(torch.bincount(z.flatten(), minlength=3).double(), law) > FALSE_ALARM
    assert torch.equal(duality.coupled(process, x0, (torch.zeros(300),), None)[0], x0)
