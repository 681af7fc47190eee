"""Heads: scores and laws are two ways to say one thing, and the logistic head is what its formula says."""

import math

import pytest
import torch

from redraft import processes
from redraft.models import heads

from .prescribed import random_law

K = 6
PROCESSES = {
    "masked": processes.masked(K),
    "masked_cosine": processes.masked(K, schedule="cosine"),
    "masked_inside": processes.masked(K + 1, mask_id=2),
    "uniform": processes.uniform(K),
    "uniform_geometric": processes.uniform(K, schedule="geometric"),
    "hybrid": processes.hybrid(K),
    "hybrid_inside": processes.hybrid(K + 1, mask_id=2),
}
TIMES = (1e-3, 0.2, 0.7, 0.95)


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


def situations(process, time: float, masks_only: bool = False):
    """Every state as z in a row of one, with a random law over clean tokens: (logp, z, t)."""
    z = torch.arange(process.V)[:, None]
    if masks_only and process.absorbing:
        z = z[z[:, 0] == process.mask_id]
    logp = random_law(len(z), 1, process.K)
    if process.mask_id is not None and process.mask_id < process.K:
        logp[..., process.mask_id] = -torch.inf
        logp = logp.log_softmax(-1)
    return logp, z, torch.full((len(z),), time, dtype=torch.float64)


@pytest.mark.parametrize("time", TIMES)
def test_from_score_undoes_to_score(process, time):
    """from_score(to_score(p)) = p, 1e-12 (discrete.md 3); at a revealed token of masked noise it is that token."""
    logp, z, t = situations(process, time, masks_only=True)
    again = heads.from_score(heads.to_score(logp, z, t, process), z, t, process)
    assert again.shape == logp.shape
    rounding = 2**-52 / process.schedule(t[:1])[0].item()  # scores forget p as alpha falls
    torch.testing.assert_close(again.exp(), logp.exp(), rtol=0, atol=max(1e-12, rounding))
    if process.absorbing:
        logp, z, t = situations(process, time)
        known = z[:, 0] != process.mask_id
        again = heads.from_score(heads.to_score(logp, z, t, process), z, t, process)[known, 0].exp()
        assert torch.equal(again, torch.nn.functional.one_hot(z[known, 0], process.K).double())


@pytest.mark.parametrize("time", TIMES)
def test_scores_are_ratios_of_marginals(process, time):
    """s(z -> y) = marginal(p, t)(y) / marginal(p, t)(z), where a revealed token of masked noise is known; 1e-12."""
    logp, z, t = situations(process, time)
    p = logp.exp()
    if process.absorbing:
        known = (z != process.mask_id)[..., None]
        p = torch.where(known, torch.nn.functional.one_hot(z.clamp_max(process.K - 1), process.K).double(), p)
    q = process.marginal(p, t)
    expected = q / q.gather(-1, z[..., None])
    torch.testing.assert_close(heads.to_score(logp, z, t, process).exp(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("time", TIMES)
def test_identities_of_masked_and_uniform_scores(time):
    """Masked: s_y = p_y / (e^sigma - 1), their sum 1 / (e^sigma - 1). Uniform: the closed form of discrete.md 3."""
    process = PROCESSES["masked_cosine"]
    logp, z, t = situations(process, time, masks_only=True)
    sigma = -torch.log(process.schedule(t)[0])
    s = heads.to_score(logp, z, t, process).exp()[0, 0, :K]
    torch.testing.assert_close(s, logp.exp()[0, 0] / torch.expm1(sigma), rtol=1e-12, atol=1e-12)
    assert s.sum().item() == pytest.approx(1 / math.expm1(float(sigma)), rel=1e-12)
    process = PROCESSES["uniform"]
    logp, z, t = situations(process, time)
    alpha, p = process.schedule(t)[0][:, None], logp.exp()[:, 0]
    expected = (alpha * p + (1 - alpha) / K) / (alpha * p.gather(1, z) + (1 - alpha) / K)
    torch.testing.assert_close(heads.to_score(logp, z, t, process).exp()[:, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0.5, 0.0), (1 - 2**-40, -40 * math.log(2) + 2**-40), (2.0**-60, 60 * math.log(2)), (0.25, math.log(3))],
)
def test_log_odds_keeps_its_digits(alpha, expected):
    """log(e^sigma - 1) = log((1 - alpha) / alpha), 1e-14 relative, towards both ends (discrete.md 6.2)."""
    found = heads.log_odds(torch.tensor(alpha, dtype=torch.float64)).item()
    assert found == pytest.approx(expected, rel=1e-14, abs=1e-14)


def test_log_odds_is_finite_at_both_ends():
    assert heads.log_odds(torch.tensor([0.0, 1.0])).isfinite().all()


@pytest.mark.parametrize("time", TIMES)
def test_the_score_head_says_one_thing_twice(process, time):
    """Its log p is from_score of its scores, 1e-12; log s(z -> z) = 0."""
    _, z, t = situations(process, time)
    logits = 0.3 * random_law(len(z), 1, process.V, seed=1)
    scores = heads.scores(logits, z, t, process)
    assert (scores.gather(-1, z[..., None]) == 0).all()
    logp = heads.get("score", process.to_dict())(logits, z, t, process)
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(len(z), 1, dtype=torch.float64), rtol=0, atol=1e-12)
    if process.absorbing:  # away from masks the numbers at z are not used as scores
        logp, scores, z, t = (one[process.mask_id][None] for one in (logp, scores, z, t))
    torch.testing.assert_close(heads.from_score(scores, z, t, process), logp, rtol=1e-10, atol=1e-12)


def test_scale_by_sigma_starts_at_the_exact_sum():
    """Zero logits: uniform p and sum_y s_y = 1 / (e^sigma - 1) at a mask, for any t, 1e-12."""
    for name in ("masked", "masked_inside"):
        process = PROCESSES[name]
        t = torch.tensor([1e-3, 0.4, 0.99], dtype=torch.float64)
        z = torch.full((3, 1), process.mask_id)
        logits = torch.zeros(3, 1, process.V, dtype=torch.float64)
        others = heads.scores(logits, z, t, process).exp().sum((1, 2)) - 1
        torch.testing.assert_close(others, (1 - t) / t, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [2, 7, 256])
def test_logistic_is_differences_of_the_cdf(size):
    """Mass of each bin = CDF(upper edge) - CDF(lower edge), the ends open; sums to 1; both 1e-12."""
    process = processes.uniform(size)
    loc = torch.tensor([-1.7, -0.4, 0.0, 0.31, 2.0], dtype=torch.float64)
    log_scale = torch.tensor([-1.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    logits = torch.cartesian_prod(loc, log_scale)[None]
    p = heads.logistic(logits, torch.zeros(1, 20, dtype=torch.long), torch.zeros(1), process).exp()[0]
    centre = torch.linspace(-1, 1, size, dtype=torch.float64)
    edge = (centre[1:] + centre[:-1]) / 2
    cdf = torch.sigmoid((edge - logits[0, :, :1]) * torch.exp(2 - logits[0, :, 1:]))
    cdf = torch.cat([torch.zeros(20, 1), cdf, torch.ones(20, 1)], 1)
    torch.testing.assert_close(p, cdf.diff(dim=1), rtol=0, atol=1e-12)
    torch.testing.assert_close(p.sum(1), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-12)


def test_logistic_moves_with_loc_and_stays_finite():
    """P(id <= k) falls strictly in loc for every k; log p is finite where the mass itself underflows."""
    process = processes.uniform(9)
    loc = torch.linspace(-1, 1, 21, dtype=torch.float64)
    logits = torch.stack([loc, torch.full_like(loc, 0.5)], -1)[None]
    below = heads.logistic(logits, torch.zeros(1, 21), torch.zeros(1), process).exp().cumsum(-1)[0, :, :-1]
    assert (below.diff(dim=0) < 0).all()
    far = torch.tensor([[[60.0, -4.0], [-60.0, -4.0]]], requires_grad=True)
    logp = heads.logistic(far, torch.zeros(1, 2), torch.zeros(1), process)
    (gradient,) = torch.autograd.grad(logp[..., 4].sum(), far)
    assert logp.isfinite().all()
    assert gradient.isfinite().all()
    assert logp.argmax(-1).tolist() == [[8, 0]]


def test_plain_without_mass_on_the_mask_is_subs():
    """D3PM's softmax over V states has the NELBO of SUBS once [MASK] has no logit, and another before; 1e-12."""
    process = processes.masked(K)
    z, t = torch.full((1, 4), K), torch.tensor([0.6], dtype=torch.float64)
    x0 = torch.arange(4)[None]
    logits = random_law(1, 4, K + 1, seed=2)
    plain, subs = (heads.get(name, process.to_dict()) for name in ("plain", "subs"))
    expected = process.nelbo(subs(logits[..., :K], z, t, process), x0, z, t)
    assert not torch.allclose(process.nelbo(plain(logits, z, t, process), x0, z, t), expected)
    logits[..., K] = -torch.inf
    torch.testing.assert_close(process.nelbo(plain(logits, z, t, process), x0, z, t), expected, rtol=1e-12, atol=1e-12)
