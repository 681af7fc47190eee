"""Chains of any transition matrices: the two primitives are products of matrices, and all else follows.

The random chain is T25's: a symmetric matrix of rates, doubly stochastic steps, uniform stationary law.
"""

import itertools
import math

import pytest
import torch

from redraft import processes
from redraft.processes import Matrix, d3pm
from redraft.processes.d3pm import nearest
from redraft.processes.matrix import LIMIT
from redraft.randomness import row_generators

from .oracle import (
    LAW,
    ExactDenoiser,
    ancestral_law,
    chi_square_tail,
    entropy,
    finite_nelbo,
    kl,
    marginals,
    sequences,
    total_variation,
)
from .test_finite_time import bound


def random_rates(K, seed=0):
    rates = torch.rand(K, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rates = (rates + rates.T).fill_diagonal_(0.0)
    return rates - torch.diag(rates.sum(1))


def random_chain(K, T, span=6.0):
    """T equal steps of the semigroup of random symmetric rates, from time 0 to ``span``."""
    step = torch.linalg.matrix_exp(random_rates(K) * span / T)
    return Matrix(K, step.expand(T, K, K).clone(), torch.full((K,), 1 / K, dtype=torch.float64))


def skew_chain(K, T):
    """Matrices that are neither symmetric nor commute, so that order and orientation show."""
    steps = torch.rand(T, K, K, generator=torch.Generator().manual_seed(5), dtype=torch.float64) ** 3
    steps = steps / steps.sum(-1, keepdim=True)
    return Matrix(K, steps, torch.full((K,), 1 / K, dtype=torch.float64))


EMBEDDINGS = torch.randn(9, 4, generator=torch.Generator().manual_seed(3))
CHAINS = {
    "random": lambda T: random_chain(4, T),
    "skew": lambda T: skew_chain(4, T),
    "gaussian": lambda T: d3pm(7, "gaussian", T),
    "band": lambda T: d3pm(7, "band", T, width=3),
    "neighbour": lambda T: d3pm(9, "neighbour", T, embeddings=EMBEDDINGS, neighbours=2),
    "gaussian_cosine": lambda T: d3pm(5, "gaussian", T, "cosine"),
    "neighbour_reciprocal": lambda T: d3pm(9, "neighbour", T, "reciprocal", embeddings=EMBEDDINGS),
    "band_betas": lambda T: d3pm(6, "band", T, [0.9] * T),
}


@pytest.fixture(params=CHAINS)
def make(request):
    return CHAINS[request.param]


def at(i, T, rows=1):
    return torch.full((rows,), i / T, dtype=torch.float64)


def transition(process, j, i):
    """q(z_i | z_j) as a matrix [from, to], read off ``likelihood``."""
    z = torch.arange(process.V)[:, None]
    return process.likelihood(z, at(j, process.steps, len(z)), at(i, process.steps, len(z)))[:, 0].T


@pytest.mark.parametrize("name", [name for name in CHAINS if name != "skew"])
def test_steps_are_doubly_stochastic(name):
    process = CHAINS[name](6)
    for i in range(1, 7):
        q = transition(process, i - 1, i)
        assert (q >= 0).all()
        for axis in (0, 1):
            torch.testing.assert_close(q.sum(axis), torch.ones(process.K).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(q, q.T, rtol=0, atol=1e-12)


def test_marginals_and_likelihoods_are_products(make):
    """q_0 = 1, q_i = q_{i-1} Q_i, and Q_{j+1} .. Q_i for every pair of points of the grid."""
    process = make(6)
    q = [marginals(process, at(i, 6))[0] for i in range(7)]
    assert torch.equal(q[0], torch.eye(process.K, dtype=torch.float64))
    for j, i in itertools.combinations_with_replacement(range(7), 2):
        torch.testing.assert_close(q[j] @ transition(process, j, i), q[i], rtol=0, atol=1e-13)


def test_products_are_in_order():
    """q_i = Q_1 .. Q_i, the first step first."""
    process = skew_chain(4, 3)
    steps = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64) ** 3
    first, second, third = steps / steps.sum(-1, keepdim=True)
    torch.testing.assert_close(marginals(process, at(3, 3))[0], first @ second @ third, rtol=0, atol=1e-14)
    torch.testing.assert_close(transition(process, 1, 3), second @ third, rtol=0, atol=1e-14)


def test_posterior_is_bayes(make):
    process = make(6)
    K = process.K
    for j, i in ((0, 1), (1, 3), (0, 6), (4, 5)):
        early, late, step = marginals(process, at(j, 6))[0], marginals(process, at(i, 6))[0], transition(process, j, i)
        x0, z = (index[:, None] for index in torch.nonzero(late > 0).T)
        truth = torch.nn.functional.one_hot(x0, K).double()
        got = process.posterior(truth, z, at(i, 6, len(z)), at(j, 6, len(z)))[:, 0]
        joint = early[x0[:, 0]] * step[:, z[:, 0]].T
        torch.testing.assert_close(got, joint / joint.sum(-1, keepdim=True), rtol=0, atol=1e-12)


def test_cavity_and_full(make):
    """T2b: cavity times q_t(z | .) is full, and to_cavity is the way back."""
    process = make(6)
    z = torch.arange(process.K)[:, None]
    t = at(4, 6, len(z))
    logits = torch.randn(len(z), 1, process.K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cavity = logits.log_softmax(-1)
    joint = cavity.exp()[:, 0] * marginals(process, t[:1])[0][:, z[:, 0]].T
    full = process.to_full(cavity, z, t)
    torch.testing.assert_close(full.exp()[:, 0], joint / joint.sum(-1, keepdim=True), rtol=0, atol=1e-13)
    torch.testing.assert_close(process.to_cavity(full, z, t), cavity, rtol=1e-9, atol=1e-9)


def test_t25_the_bound_tightens_like_one_over_steps():
    """T25: random symmetric rates, joint law, cavity: bound + prior KL - H falls towards 0, in the end like 1 / T."""
    gaps = []
    for T in (4, 16, 64, 256):
        process = random_chain(3, T)
        gaps.append(bound(process, ExactDenoiser(process)) - entropy())
        if T == 4:
            prior = process.prior_kl(sequences(3)).sum(-1) @ LAW.flatten()
            expected = finite_nelbo(process, ExactDenoiser(process), T) + prior.item() - entropy()
            assert gaps[0] == pytest.approx(expected, abs=1e-12)
    assert all(coarse > fine > 0 for coarse, fine in itertools.pairwise(gaps))
    assert gaps[-1] < 0.02
    assert gaps[-2] / gaps[-1] == pytest.approx(4, abs=0.4)


@pytest.mark.parametrize("kind", ["gaussian", "band", "neighbour"])
def test_t25_the_kinds_bound_and_tighten(kind):
    options = {"embeddings": EMBEDDINGS[:3], "neighbours": 1} if kind == "neighbour" else {}
    options = {"width": 3} if kind == "band" else options
    gaps = [bound(p, ExactDenoiser(p)) - entropy() for p in (d3pm(3, kind, T, **options) for T in (4, 16, 64))]
    assert all(coarse > fine > 0 for coarse, fine in itertools.pairwise(gaps)), gaps
    assert gaps[-1] < 0.06


def test_t25_full_posterior_pays():
    """T25: the cavity is what the bound wants; the full posterior in its place stays above, whatever T."""
    process = random_chain(3, 64)
    cavity, full = (ExactDenoiser(process, LAW, which) for which in ("cavity", "full"))
    assert bound(process, full) > bound(process, cavity) + 0.1
    converted = bound(process, full, lambda f, z, t: process.to_cavity(f(z, t), z, t))
    assert converted == pytest.approx(bound(process, cavity), abs=1e-9)


def test_prior_kl_is_what_the_chain_remembers(make):
    process = make(6)
    q = marginals(process, at(6, 6))[0]
    got = process.prior_kl(torch.arange(process.K)[:, None])[:, 0]
    torch.testing.assert_close(got, kl(q, torch.full_like(q, 1 / process.K)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["neighbour", "band", "gaussian"])
def test_stationary_law_is_reached(kind):
    options = {"embeddings": EMBEDDINGS[:7], "neighbours": 2} if kind == "neighbour" else {}
    last = [d3pm(7, kind, T, **options).prior_kl(torch.tensor([[0, 6]])).max().item() for T in (4, 64)]
    assert last[-1] < (1e-12 if kind == "neighbour" else last[0] / 2)
    assert d3pm(7, kind, 300, [1.0] * 300, **options).prior_kl(torch.tensor([[0, 6]])).max() < 1e-12


@pytest.mark.parametrize("kind", ["neighbour", "band", "gaussian"])
def test_mutual_information_falls_in_equal_steps(kind):
    """I(x_i; x_0) = (1 - i / T) log K for uniform x_0, as long as a step can be wide enough."""
    options = {"embeddings": EMBEDDINGS[:7], "neighbours": 2} if kind == "neighbour" else {}
    process = d3pm(7, kind, 20, "mutual_information", **options)
    q = marginals(process, torch.arange(21, dtype=torch.float64) / 20)
    information = torch.special.xlogy(q, torch.where(q > 0, 7 * q, 1.0)).sum((1, 2)) / 7
    expected = (1 - torch.arange(21, dtype=torch.float64) / 20) * math.log(7)
    reached = 21 if kind == "neighbour" else 15
    torch.testing.assert_close(information[:reached], expected[:reached], rtol=0, atol=1e-8)


def test_absorbing_as_a_matrix_is_the_absorbing_process():
    """The same chain, once as matrices and once as coefficients: marginal, likelihood, posterior, bound, prior_kl."""
    K, T = 3, 8
    products = [torch.eye(4, dtype=torch.float64)]
    for i in range(1, T + 1):
        beta = 1 / (T - i + 1)
        q = (1 - beta) * torch.eye(4, dtype=torch.float64)
        q[:, 3] += beta
        products.append(q)
    prior = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    matrix, masked = Matrix(K, torch.stack(products[1:]), prior, mask_id=3), processes.masked(K, steps=T)
    z = torch.arange(4)[:, None]
    p0 = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64).expand(4, 1, 3)
    for i, j in ((8, 7), (5, 2), (1, 0)):
        t, s = at(i, T, 4), at(j, T, 4)
        for got, expected in (
            (matrix.marginal(p0, t), masked.marginal(p0, t)),
            (matrix.likelihood(z, s, t), masked.likelihood(z, s, t)),
            (matrix.posterior(p0, z, t, s), masked.posterior(p0, z, t, s)),
        ):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)
    assert bound(matrix, ExactDenoiser(matrix)) == pytest.approx(bound(masked, ExactDenoiser(masked)), abs=1e-12)
    assert matrix.prior((2, 5)).unique().tolist() == [3]
    assert matrix.prior_kl(torch.tensor([[0, 1, 2]])).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["random", "gaussian", "neighbour"])
def test_ancestral_sampling_converges_to_the_law(kind):
    """Propagated exactly: the distance falls with T; a sampler may also take fewer or more steps than the chain."""

    def chain(T):
        if kind == "random":
            return random_chain(3, T)
        return d3pm(3, kind, T, **({"embeddings": EMBEDDINGS[:3], "neighbours": 1} if kind == "neighbour" else {}))

    target = LAW.flatten()
    prior = torch.full((9,), 1 / 9, dtype=torch.float64)
    distance = [total_variation(propagate(chain(T), T, prior), target) for T in (4, 16, 64, 256)]
    assert all(coarse > fine for coarse, fine in itertools.pairwise(distance)), distance
    assert distance[-1] < 0.025
    long = chain(64)
    assert distance[2] < total_variation(propagate(long, 8, prior), target) < 0.28
    same = propagate(long, 128, prior)  # half of these steps go nowhere
    assert total_variation(same, propagate(long, 64, prior)) < 1e-12


def propagate(process, steps, prior):
    """As ``ancestral_law``, but from the prior the sampler draws from, which the chain's end need not be."""
    denoiser = ExactDenoiser(process)
    from .oracle import product_kernel

    law, states = prior, sequences(process.V)
    for i in range(steps, 0, -1):
        t, s = at(i, steps, len(states)), at(i - 1, steps, len(states))
        law = law @ product_kernel(process.posterior(denoiser(states, t).exp(), states, t, s))
    return law


def test_oracles_agree_where_the_chain_forgets():
    process = random_chain(3, 8, span=60.0)
    prior = torch.full((9,), 1 / 9, dtype=torch.float64)
    ours, oracles = propagate(process, 8, prior), ancestral_law(process, ExactDenoiser(process), 8)
    torch.testing.assert_close(ours, oracles, rtol=0, atol=1e-12)


def test_corrupt_frequencies(make):
    process = make(6)
    x0 = torch.arange(process.K).expand(4000, -1)
    z = process.corrupt(x0, at(3, 6, 4000), torch.Generator().manual_seed(1))
    q = marginals(process, at(3, 6))[0]
    for x in range(process.K):
        assert chi_square_tail(torch.bincount(z[:, x], minlength=process.K).double(), q[x]) > 1e-7
    z = process.prior((2000, 2), torch.Generator().manual_seed(2))
    assert (
        chi_square_tail(torch.bincount(z.flatten(), minlength=process.K).double(), torch.ones(process.K) / process.K)
        > 1e-7
    )


def test_rows_do_not_depend_on_their_neighbours(make):
    process = make(6)
    x0 = torch.arange(process.K).repeat(5, 1)
    t = torch.arange(1, 6, dtype=torch.float64) / 6
    together = process.corrupt(x0, t, row_generators(5, rows=range(5)))
    for row in range(5):
        alone = process.corrupt(x0[row : row + 1], t[row : row + 1], row_generators(5, rows=[row]))
        assert torch.equal(alone[0], together[row])
    per_token = t[:, None].expand(-1, process.K)
    assert torch.equal(process.corrupt(x0, per_token, row_generators(5, rows=range(5))), together)


def test_times_between_points_go_to_the_nearest():
    process = random_chain(4, 8)
    p0 = torch.eye(4, dtype=torch.float64)[None]
    near, point = torch.tensor([0.51], dtype=torch.float64), at(4, 8)
    assert torch.equal(process.marginal(p0, near), process.marginal(p0, point))
    z = torch.arange(4)[:, None]
    still = process.posterior(p0[0][:, None].expand(4, 1, 4) * 0 + 0.25, z, at(4, 8, 4), near.expand(4))
    torch.testing.assert_close(still[:, 0], torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-15)


def test_gaussian_matrix_is_the_papers():
    """exp(-4 d^2 / ((K - 1)^2 beta)) over its sum for d = -(K - 1) .. K - 1; the diagonal takes the rest."""
    K, beta = 5, 0.3
    q = transition(d3pm(K, "gaussian", 1, [beta]), 0, 1)
    weight = [math.exp(-4 * d * d / ((K - 1) ** 2 * beta)) for d in range(-(K - 1), K)]
    for i, j in itertools.permutations(range(K), 2):
        assert q[i, j].item() == pytest.approx(weight[i - j + K - 1] / sum(weight), rel=1e-12)


def test_neighbour_follows_its_graph():
    """Two far clusters: one edge joins them; without it, no token ever becomes one of the other cluster."""
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [0.1, 1.0], [0.2, 1.0]])
    graph = nearest(rows, 2)
    assert torch.equal(graph, graph.T)
    assert (graph[:3, 3:] > 0).sum() == 1
    assert graph[2, 5] > 0
    joined = d3pm(6, "neighbour", 4, embeddings=rows, neighbours=2)
    assert joined.prior_kl(torch.tensor([[0]])).item() < 1e-12
    graph[2, 5] = graph[5, 2] = 0
    process = d3pm(6, "neighbour", 4, graph=graph)
    q = marginals(process, at(4, 4))[0]
    torch.testing.assert_close(q[:3, :3], torch.full((3, 3), 1 / 3, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(q[:3, 3:], torch.zeros(3, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert process.prior_kl(torch.tensor([[0]])).item() == pytest.approx(math.log(2), abs=1e-9)
    rate = graph - torch.diag(graph.sum(1))
    again = d3pm(6, "neighbour", 1, [0.7], graph=graph)
    torch.testing.assert_close(
        transition(again, 0, 1), torch.linalg.matrix_exp(0.7 * rate.double()), rtol=0, atol=1e-13
    )


def test_stored_and_built_again(make):
    process = make(6)
    if process.to_dict().get("kind") is None:
        return  # a chain of one's own matrices is not described by facts
    again = processes.from_dict(process.to_dict(), {} if process.graph is None else {"graph": process.graph})
    assert again.to_dict() == process.to_dict()
    torch.testing.assert_close(marginals(again, at(3, 6)), marginals(process, at(3, 6)), rtol=0, atol=1e-12)
    assert process.to("cpu") is process
    kept = processes.tensors_of(process.to_dict())
    assert (kept == ()) == (process.graph is None)
    for one in kept:
        assert one.shape == tuple(process.graph.shape)
        with pytest.raises(ValueError, match="graph"):
            processes.from_dict(process.to_dict())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: d3pm(4096, "gaussian", 1000), r"K=4096, steps=1000.*250.* GiB.*steps=3 "),
        (lambda: d3pm(50_000, "band", 2), "data.vocab"),
        (lambda: d3pm(9, "neighbour", 4), "embeddings"),
        (lambda: d3pm(8, "neighbour", 4, embeddings=EMBEDDINGS), r"\(9, 4\) for K=8"),
        (lambda: d3pm(9, "neighbour", 4, embeddings=EMBEDDINGS, neighbours=0), "neighbours=0"),
        (lambda: d3pm(9, "band", 4, width=4), "width=4"),
        (lambda: d3pm(9, "gaussian", 4, mask_id=9), "mask_id with kind 'gaussian'"),
        (lambda: d3pm(9, "gaussian", 2, [0.5, 0.0]), "beta=0.0 at step 2"),
        (lambda: Matrix(3, torch.ones(2, 3, 3), torch.ones(3) / 3), "step 1: a row is no law"),
        (lambda: Matrix(4, torch.eye(3)[None], torch.ones(3) / 3), r"\(1, 3, 3\) for K=4"),
        (lambda: random_chain(4, 2).corrupt(torch.tensor([[4]]), torch.ones(1)), "token id 4"),
    ],
)
def test_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build()


def test_letters_fit():
    """Bytes over a thousand steps stay within the limit."""
    assert LIMIT >= 16 * 256**2 * 1001
