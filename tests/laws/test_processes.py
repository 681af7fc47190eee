"""Forward processes: the primitives are one Markov chain, its Bayes posterior, and draws that follow its laws.

All comparisons are exact except those named ``frequencies``: their seed is fixed, so they cannot flicker, and they
would reject a correct implementation under a random seed with probability below 1e-6.
"""

import pytest
import torch

from redraft import processes, schedules

from .oracle import (
    LAW,
    ExactDenoiser,
    chi_square_tail,
    embed,
    emissions,
    marginals,
    posteriors,
    sequences,
)

TIMES = [(0.0, 0.3), (0.2, 0.5), (0.1, 0.999), (0.45, 0.46), (0.5, 1.0), (0.0, 1.0)]
PROCESSES = {
    "masked": lambda: processes.masked(3),
    "masked_cosine": lambda: processes.masked(3, schedule="cosine"),
    "masked_inside": lambda: processes.masked(4, mask_id=2),
    "uniform": lambda: processes.uniform(3),
    "uniform_cosine": lambda: processes.uniform(4, schedule="cosine_squared"),
    "hybrid": lambda: processes.hybrid(3, uniform_share=0.2),
    "hybrid_inside": lambda: processes.hybrid(4, uniform_share=0.2, mask_id=2),
    "hybrid_half": lambda: processes.hybrid(4, uniform_share=0.5, schedule="linear"),
}


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]()


def clock(*times: float) -> list[torch.Tensor]:
    return [torch.tensor([time], dtype=torch.float64) for time in times]


def clean(process) -> list[int]:
    return [x for x in range(process.K) if x != process.mask_id]


def transition(process, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """q_{t|s}(z | y) as a (V, V) matrix [y, z], read off ``likelihood`` one observed z at a time."""
    z = torch.arange(process.V)[:, None]
    rows = len(z)
    return process.likelihood(z, s.expand(rows), t.expand(rows))[:, 0].T


def test_sizes_and_mask_id(process):
    states = torch.arange(process.V)
    assert process.mask_id is None or process.mask_id in states
    assert process.vectors is False


def test_the_default_mask_is_the_state_after_the_last_token():
    assert (processes.masked(5).mask_id, processes.masked(5).V) == (5, 6)
    assert (processes.hybrid(5).mask_id, processes.hybrid(5).V) == (5, 6)
    assert (processes.uniform(5).mask_id, processes.uniform(5).V) == (None, 5)
    assert (processes.masked(4, mask_id=2).mask_id, processes.masked(4, mask_id=2).V) == (2, 4)


@pytest.mark.parametrize("time", [0.0, 1e-9, 0.25, 0.5, 1 - 1e-9, 1.0])
def test_marginal_is_a_law_and_matches_its_coefficients(process, time):
    """q_t(y|x) = alpha 1[y=x] + mask 1[y=m] + token 1[y is a clean token]."""
    (t,) = clock(time)
    q = marginals(process, t)[0]
    c = process.coefficients(t)
    assert q.dtype == torch.float64
    expected = torch.zeros(process.K, process.V, dtype=torch.float64)
    for x in range(process.K):
        expected[x, clean(process)] += c.token.item()
        expected[x, x] += c.alpha.item()
        if process.mask_id is not None:
            expected[x, process.mask_id] += c.mask.item()
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(q[clean(process)].sum(-1), torch.ones(len(clean(process))).double(), rtol=0, atol=1e-14)
    assert (q >= 0).all()


def test_end_points(process):
    """q_0 is the data and q_1 forgets it, both exactly."""
    zero, one = clock(0.0, 1.0)
    rows = clean(process)
    identity = torch.eye(process.K, process.V, dtype=torch.float64)
    torch.testing.assert_close(marginals(process, zero)[0][rows], identity[rows], rtol=0, atol=0)
    last = marginals(process, one)[0][rows]
    torch.testing.assert_close(last, last[:1].expand_as(last), rtol=0, atol=0)


def test_coefficient_derivatives(process):
    t = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)[:, None]
    h = 1e-6
    up, down, here = process.coefficients(t + h), process.coefficients(t - h), process.coefficients(t)
    for name in ("alpha", "mask", "token"):
        finite = (getattr(up, name) - getattr(down, name)) / (2 * h) + torch.zeros_like(t)
        derivative = getattr(here, f"d_{name}") + torch.zeros_like(t)
        torch.testing.assert_close(derivative, finite, rtol=1e-6, atol=1e-8)


def test_hybrid_coefficients_are_gidd():
    """discrete.md 7.9, gamma = 1: c = B sqrt(t (1 - t)), B = 2 p_u / (1 - p_u), all over C = 1 + c."""
    for share in (0.05, 0.2, 0.5, 0.9):
        process = processes.hybrid(7, uniform_share=share, schedule="linear")
        t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
        c = 2 * share / (1 - share) * (t * (1 - t)).sqrt()
        d_c = 0.5 * (1 - 2 * t) / (t * (1 - t)) * c
        got = process.coefficients(t)
        expected = {
            "alpha": (1 - t) / (1 + c),
            "mask": t / (1 + c),
            "token": c / (1 + c) / 7,
            "d_alpha": (-(1 + c) - (1 - t) * d_c) / (1 + c) ** 2,
            "d_mask": ((1 + c) - t * d_c) / (1 + c) ** 2,
            "d_token": d_c / (1 + c) ** 2 / 7,
        }
        for name, value in expected.items():
            torch.testing.assert_close(getattr(got, name).squeeze(-1), value, rtol=1e-11, atol=1e-13)
    half = processes.hybrid(7, uniform_share=0.2).coefficients(torch.tensor([0.5], dtype=torch.float64))
    assert 7 * half.token.item() == pytest.approx(0.2, abs=1e-14)  # the share is reached at t = 1/2


@pytest.mark.parametrize("schedule", schedules.NAMES)
@pytest.mark.parametrize("make", [processes.masked, processes.uniform, processes.hybrid])
def test_every_schedule_serves_every_process(make, schedule):
    """Both ends included: the coefficients are a law, and so is one reverse step across the whole of time."""
    process = make(3, schedule=schedule)
    t = torch.tensor([0.0, 1e-12, 1e-3, 0.5, 0.999, 1 - 1e-12, 1.0], dtype=torch.float64)
    c = process.coefficients(t)
    for mass in (c.alpha, c.mask, c.token):
        assert mass.isfinite().all()
        assert (mass >= 0).all()
    torch.testing.assert_close(c.alpha + c.mask + 3 * c.token, torch.ones(7, 1).double(), rtol=0, atol=1e-14)
    z = process.prior((1, 1), torch.Generator().manual_seed(0))
    p0 = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64)
    step = process.posterior(p0, z, *clock(1.0, 0.0))[0, 0]
    torch.testing.assert_close(step[:3], p0[0, 0], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("s", "t"), TIMES)
def test_likelihood_is_a_stochastic_matrix(process, s, t):
    s, t = clock(s, t)
    q = transition(process, s, t)
    assert (q >= -1e-15).all()
    torch.testing.assert_close(q.sum(1), torch.ones(process.V).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("s", "t"), TIMES)
def test_chapman_kolmogorov(process, s, t):
    """q_{t|s} q_s = q_t and q_{t|s} q_{s|r} = q_{t|r}."""
    s, t = clock(s, t)
    rows = clean(process)
    composed = marginals(process, s)[0] @ transition(process, s, t)
    torch.testing.assert_close(composed[rows], marginals(process, t)[0][rows], rtol=0, atol=1e-14)
    r = s / 2
    composed = transition(process, r, s) @ transition(process, s, t)
    torch.testing.assert_close(composed, transition(process, r, t), rtol=0, atol=1e-14)


def test_t15_linear_masking_hides_one_in_what_is_left():
    """T15: the step from (i - 1) / T to i / T masks with probability beta_i = 1 / (T - i + 1), 1e-14."""
    process, steps = processes.masked(3), 16
    for i in range(1, steps + 1):
        q = transition(process, *clock((i - 1) / steps, i / steps))
        assert q[0, process.mask_id].item() == pytest.approx(1 / (steps - i + 1), abs=1e-14)
        assert q[process.mask_id, process.mask_id].item() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(("s", "t"), TIMES)
def test_posterior_is_bayes(process, s, t):
    """One-hot p0: q(z_s = y | z_t = z, x) = q_{t|s}(z | y) q_s(y | x) / q_t(z | x), for all x and reachable z."""
    s, t = clock(s, t)
    forward, before, after = transition(process, s, t), marginals(process, s)[0], marginals(process, t)[0]
    for x in clean(process):
        z = torch.nonzero(after[x] > 0)
        rows = len(z)
        p0 = torch.eye(process.K, dtype=torch.float64)[x].expand(rows, 1, -1)
        got = process.posterior(p0, z, t.expand(rows), s.expand(rows))[:, 0]
        joint = before[x] * forward[:, z[:, 0]].T
        torch.testing.assert_close(got, joint / joint.sum(-1, keepdim=True), rtol=0, atol=1e-13)
        torch.testing.assert_close(got.sum(-1), torch.ones(rows).double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("s", "t"), TIMES)
def test_posterior_of_a_mixture_is_d3pm(process, s, t):
    """Any p0: p(z_s = y | z_t = z) is proportional to sum_x p0(x) q(z_s = y, z_t = z | x)."""
    s, t = clock(s, t)
    forward, before = transition(process, s, t), marginals(process, s)[0]
    p0 = torch.rand(process.V, process.K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if process.mask_id is not None and process.mask_id < process.K:
        p0[:, process.mask_id] = 0
    p0 = p0 / p0.sum(-1, keepdim=True)
    z = torch.arange(process.V)
    joint = (p0 @ before) * forward.T
    reachable = joint.sum(-1) > 0
    got = process.posterior(p0[:, None], z[:, None], t.expand(len(z)), s.expand(len(z)))[reachable, 0]
    torch.testing.assert_close(got, (joint / joint.sum(-1, keepdim=True))[reachable], rtol=0, atol=1e-13)


def test_posterior_at_s_equal_t_stays(process):
    (t,) = clock(0.4)
    z = torch.arange(process.V)[:, None]
    p0 = torch.full((len(z), 1, process.K), 1 / process.K, dtype=torch.float64)
    got = process.posterior(p0, z, t.expand(len(z)), t.expand(len(z)))[:, 0]
    torch.testing.assert_close(got, torch.eye(process.V, dtype=torch.float64), rtol=0, atol=1e-14)


def test_jump_is_the_rate_of_the_transition(process):
    """g_t(z) = b'_t(z) - (alpha' / alpha) b_t(z) = lim q_{t|t-h}(z | y) / h for y != z (Richardson in h)."""
    for time in (0.1, 0.4, 0.8):
        (t,) = clock(time)
        z = torch.arange(process.V)[:, None]
        g = process.jump(z, t.expand(len(z)))[:, 0]
        c = process.coefficients(t)
        slope, mass = torch.zeros(2, process.V, dtype=torch.float64)
        slope[clean(process)], mass[clean(process)] = c.d_token.item(), c.token.item()
        if process.mask_id is not None:
            slope[process.mask_id], mass[process.mask_id] = c.d_mask.item(), c.mask.item()
        expected = slope - c.d_alpha.item() / c.alpha.item() * mass
        torch.testing.assert_close(g, expected, rtol=1e-12, atol=1e-12)
        assert (g >= -1e-12).all()

        def rate(h, t=t):
            return transition(process, t - h, t) / h

        extrapolated = 2 * rate(1e-5) - rate(2e-5)
        for y in range(process.V):
            others = [state for state in range(process.V) if state != y]
            torch.testing.assert_close(extrapolated[y, others], g[others], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("time", [0.0, 0.3, 0.9, 1.0])
def test_corrupt_frequencies(process, time):
    """Draws follow the marginal, position by position, and never show a state of probability zero."""
    (t,) = clock(time)
    rows, tokens = 20_000, clean(process)
    x0 = torch.tensor(tokens).expand(rows, -1)
    z = process.corrupt(x0, t.expand(rows), torch.Generator().manual_seed(1))
    assert z.dtype == torch.long
    assert z.shape == x0.shape
    q = marginals(process, t)[0]
    for i, x in enumerate(tokens):
        assert chi_square_tail(torch.bincount(z[:, i], minlength=process.V).double(), q[x]) > 1e-7
    joint = torch.bincount(z[:, 0] * process.V + z[:, 1], minlength=process.V**2).double()
    assert chi_square_tail(joint, torch.outer(q[tokens[0]], q[tokens[1]]).flatten()) > 1e-7


def test_prior_frequencies_match_the_marginal_at_one(process):
    (one,) = clock(1.0)
    z = process.prior((10_000, 2), torch.Generator().manual_seed(2))
    assert z.shape == (10_000, 2)
    assert z.dtype == torch.long
    q = marginals(process, one)[0][clean(process)[0]]
    joint = torch.bincount(z[:, 0] * process.V + z[:, 1], minlength=process.V**2).double()
    assert chi_square_tail(joint, torch.outer(q, q).flatten()) > 1e-7
    assert torch.equal(process.prior_kl(z[:3].clamp(max=process.K - 1)), torch.zeros(3, 2, dtype=torch.float64))


def test_corrupt_is_a_contract_of_the_row(process):
    """With a generator per row, a row is corrupted the same alone or beside others."""
    from redraft.randomness import row_generators

    x0 = torch.tensor(clean(process)).repeat(8, 4)
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    together = process.corrupt(x0, t, row_generators(5, 7, rows=range(8)))
    for row in range(8):
        alone = process.corrupt(x0[row : row + 1], t[row : row + 1], row_generators(5, 7, rows=[row]))
        assert torch.equal(alone[0], together[row])


def test_time_per_token_equals_time_per_row(process):
    """t of shape (B, L): column i of every result is that of a row whose time is t[:, i]."""
    generator = torch.Generator().manual_seed(3)
    t = torch.rand(6, 4, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    s = t * 0.5
    tokens = torch.tensor(clean(process))
    x0 = tokens[torch.randint(len(tokens), (6, 4), generator=generator)]
    p0 = torch.rand(6, 4, process.K, generator=generator, dtype=torch.float64)
    if process.mask_id is not None and process.mask_id < process.K:
        p0[..., process.mask_id] = 0
    p0 = p0 / p0.sum(-1, keepdim=True)
    z = process.corrupt(x0, t, generator)
    results = {
        "marginal": lambda s, t: process.marginal(p0, t),
        "likelihood": lambda s, t: process.likelihood(z, s, t),
        "posterior": lambda s, t: process.posterior(p0, z, t, s),
        "jump": lambda s, t: process.jump(z, t) + torch.zeros(6, 4, dtype=torch.float64),
        "nelbo": lambda s, t: process.nelbo(p0.log(), x0, z, t),
    }
    if process.name != "masked":
        results["to_full"] = lambda s, t: process.to_full(p0.log(), z, t)
        results["to_cavity"] = lambda s, t: process.to_cavity(p0.log(), z, t)
    for name, result in results.items():
        for i in range(4):
            whole, column = result(s, t)[:, i], result(s[:, i], t[:, i])[:, i]
            torch.testing.assert_close(whole, column, rtol=0, atol=1e-13, msg=lambda m, name=name: f"{name}: {m}")
    constant = t[:, :1].expand(6, 4)
    one = process.corrupt(x0, constant, torch.Generator().manual_seed(4))
    assert torch.equal(one, process.corrupt(x0, t[:, 0], torch.Generator().manual_seed(4)))


def toy_process_and_law(process):
    tokens = clean(process)
    if len(tokens) == 3:
        return process, embed(LAW, tokens, process.K)
    return process, torch.outer(torch.arange(1, 5).double(), torch.ones(4)).add(torch.eye(4)).div(44)


@pytest.mark.parametrize("time", [0.05, 0.4, 0.9])
def test_t2b_cavity_times_likelihood_is_full(process, time):
    """T2b: normalise(cavity q_t(z | .)) = full, 1e-14; and to_cavity is the way back.

    On masks the two agree; at a revealed token the full posterior is one-hot and keeps no cavity, so a masked process
    converts nothing.
    """
    process, law = toy_process_and_law(process)
    z = sequences(process.V)
    t = torch.full((len(z),), time, dtype=torch.float64)
    cavity, full = (ExactDenoiser(process, law, which)(z, t) for which in ("cavity", "full"))
    if process.name == "masked":
        masks = z == process.mask_id
        torch.testing.assert_close(cavity[masks].exp(), full[masks].exp(), rtol=0, atol=1e-14)
        for convert in (process.to_full, process.to_cavity):
            assert convert(cavity, z, t) is cavity
        return
    torch.testing.assert_close(process.to_full(cavity, z, t).exp(), full.exp(), rtol=0, atol=1e-14)
    torch.testing.assert_close(process.to_cavity(full, z, t).exp(), cavity.exp(), rtol=0, atol=1e-13)
    round_trip = process.to_cavity(process.to_full(cavity, z, t), z, t)
    torch.testing.assert_close(round_trip.exp(), cavity.exp(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("time", [0.05, 0.4, 0.9])
def test_the_full_posterior_at_one_token_is_that_of_all(process, time):
    """``log_full_of`` needs no tensor over the vocabulary, and is ``to_full`` at x0; with mass on [MASK] too."""
    states = sequences(process.V, 1)
    x0 = torch.tensor(clean(process))
    x0, z = (grid.reshape(-1, 1) for grid in torch.meshgrid(x0, states[:, 0], indexing="ij"))
    t = torch.full((len(z),), time, dtype=torch.float64)
    for columns in {process.K, process.V}:
        logits = torch.randn(len(z), 1, columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        if process.mask_id is not None and process.mask_id < process.K:
            logits[..., process.mask_id] = -torch.inf
        logp = logits.log_softmax(-1)
        expected = process.to_full(logp, z, t).gather(-1, x0[..., None])[..., 0]
        torch.testing.assert_close(process.log_full_of(x0, logp, z, t), expected, rtol=0, atol=1e-12)


def test_the_oracle_on_one_position_is_bayes(process):
    """The oracle itself: with L = 1 the cavity is the prior and the full posterior is Bayes' rule."""
    law = torch.arange(1, process.K + 1, dtype=torch.float64)
    law = law / law.sum()
    z = torch.arange(process.V)[:, None]
    q = emissions(process, z, torch.full((process.V,), 0.5, dtype=torch.float64))
    joint = law * q[:, 0]
    torch.testing.assert_close(posteriors(law, q, "full")[:, 0], joint / joint.sum(-1, keepdim=True))
    torch.testing.assert_close(posteriors(law, q, "cavity")[:, 0], law.expand(process.V, -1))


@pytest.mark.parametrize("make", [processes.masked, processes.uniform, processes.hybrid])
def test_to_dict_says_what_the_process_is(make):
    saved = make(5, schedule="cosine").to_dict()
    assert saved["name"] == make.__name__
    assert saved["K"] == 5
    assert "cosine" in str(saved["schedule"])
