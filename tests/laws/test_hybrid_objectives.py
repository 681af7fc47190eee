"""GIDD's objective: its weights are g / q (T13), its terms the NELBO's, its bound the bound whatever the weighting."""

import math

import numpy as np
import pytest
import torch

from redraft import objectives, processes
from redraft.objectives.hybrid import weights
from redraft.processes import time

from .oracle import LAW, ExactDenoiser, K, entropy, noisy_pairs, sequences

F64 = torch.float64
TIMES = torch.tensor([0.01, 0.2, 0.5, 0.77, 0.99], dtype=F64)
LEGENDRE = np.polynomial.legendre.leggauss(60)
CASES = {"clean": (0, 0), "mask": (0, K), "other": (0, 2)}


def at(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    x0, z = CASES[case]
    return torch.full((len(TIMES), 1), x0), torch.full((len(TIMES), 1), z)


def papers(case: str, t: torch.Tensor, p_u: float) -> torch.Tensor:
    """The ELBO weights of the paper's appendix, with gamma = 1 and N = K clean tokens."""
    c = 2 * p_u / (1 - p_u) * torch.sqrt(t * (1 - t))
    d_c = (1 - 2 * t) / (2 * t * (1 - t)) * c
    if case == "mask":
        return 1 / (t * (1 - t))
    if case == "other":
        return (c + (1 - t) * d_c) / ((1 - t) * c)
    return (c + (1 - t) * d_c) / K / ((1 - t) * (1 - t + c / K))


@pytest.mark.parametrize("p_u", [0.1, 0.2, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_t13_the_weights_are_the_papers(case, p_u):
    """T13: g_t(z) / q_t(z|x) = GIDD's weight for z = x, mask, another token: 1e-12; and gamma = 1's short forms."""
    process, (x0, z), t = processes.hybrid(K, p_u), at(case), TIMES
    found = process.bound_weight(x0, z, t)[:, 0]
    torch.testing.assert_close(found, papers(case, t, p_u), rtol=1e-12, atol=0)
    q = process.marginal(torch.nn.functional.one_hot(x0, K).to(F64), t).gather(2, z[..., None])[..., 0]
    direct = process.jump(z, t) / q
    torch.testing.assert_close(found, direct[:, 0], rtol=1e-12, atol=0)
    c = 2 * p_u / (1 - p_u) * torch.sqrt(t * (1 - t))
    short = {
        "mask": 1 / (t * (1 - t)),
        "other": 1 / (2 * t * (1 - t)),  # whatever p_u
        "clean": c / (2 * t * K * (1 - t) * (1 - t + c / K)),
    }[case]
    torch.testing.assert_close(found, short, rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_dynamic_weights_are_the_bounds_relative_ones(case):
    """Over those of other tokens: 2 for the mask, exactly; for clean tokens to leading order in 1/K; never above 2."""
    size, p_u = 4096, 0.2
    process = processes.hybrid(size, p_u)
    x0, z = (torch.full((len(TIMES), 1), {K: size}.get(one, one)) for one in CASES[case])
    other = torch.full_like(z, 2)
    relative = process.bound_weight(x0, z, TIMES) / process.bound_weight(x0, other, TIMES)
    found = weights(process, x0, z, TIMES, "dynamic")
    torch.testing.assert_close(found, relative, rtol=3e-3, atol=0)
    near_one = torch.full((len(TIMES),), 1 - 1e-12, dtype=F64)
    assert weights(process, x0, z, near_one, "dynamic").max() == (1.0 if case == "other" else 2.0)


def test_clipped_weights_are_the_bounds_up_to_two():
    process = processes.hybrid(K)
    for case in CASES:
        x0, z = at(case)
        own = process.bound_weight(x0, z, TIMES)
        assert torch.equal(weights(process, x0, z, TIMES, "nelbo"), own)
        assert torch.equal(weights(process, x0, z, TIMES, "clip"), own.clamp_max(2.0))
    with pytest.raises(ValueError, match=r"unknown weighting 'dynamics'; did you mean 'dynamic'"):
        weights(process, x0, z, TIMES, "dynamics")


def test_divergence_is_its_definition():
    """KL(marginal(x) || marginal(p)) + r - log r - 1 over all V states, 1e-12, for uniform and hybrid noise."""
    for process in (processes.uniform(K), processes.hybrid(K, 0.4), processes.hybrid(K + 1, 0.4, mask_id=1)):
        law = (
            LAW
            if process.K == K
            else torch.zeros(4, 4, dtype=F64).index_put(tuple(torch.tensor([0, 2, 3])[sequences(3)].T), LAW.flatten())
        )
        x0, z, t, _ = noisy_pairs(process, TIMES, law)
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(*x0.shape, process.K, generator=generator, dtype=F64)
        if process.mask_id == 1:
            logits[..., 1] = -math.inf
        logp = logits.log_softmax(-1)
        true = process.marginal(torch.nn.functional.one_hot(x0, process.K).to(F64), t)
        model = process.marginal(logp.exp(), t)
        r = (true / model).gather(2, z[..., None])[..., 0]
        expected = (true * torch.log(true / model)).sum(-1) + r - torch.log(r) - 1
        torch.testing.assert_close(process.divergence(logp, x0, z, t), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weighting", ["nelbo", "dynamic", "clip"])
def test_the_bound_is_the_nelbo_of_the_draw(weighting):
    """Bit for bit that of ``nelbo`` on the same draw; the value is another, unless the weighting is the bound's own."""
    process, batch = processes.hybrid(K), {"ids": sequences(K)}
    u = time.draw("stratified", (0, 0), range(9), 9)
    found = objectives.get("gidd", weighting=weighting)(
        ExactDenoiser(process), process, batch, u, torch.Generator().manual_seed(0)
    )
    plain = objectives.nelbo(ExactDenoiser(process), process, batch, u, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.bound, plain.bound, rtol=1e-12, atol=1e-14)
    assert torch.allclose(found.value, found.bound, rtol=1e-12) == (weighting == "nelbo")
    assert not found.bound.requires_grad


@pytest.mark.parametrize("weighting", ["dynamic", "clip"])
def test_the_value_is_the_integral_of_its_weights(weighting):
    """E value = int_0^1 E sum_i weight divergence dt, by quadrature in t against 20,000 draws, five standard errors."""
    process, rows = processes.hybrid(K), 20_000
    denoiser = ExactDenoiser(process)
    nodes, shares = (torch.tensor(one / 2 + half, dtype=F64) for one, half in zip(LEGENDRE, (0.5, 0.0), strict=True))
    x0, z, t, probability = noisy_pairs(process, nodes**2)
    terms = weights(process, x0, z, t, weighting) * process.divergence(denoiser(z, t), x0, z, t)
    dt = (2 * nodes * shares)[torch.searchsorted(nodes**2, t)]
    expected = (terms.sum(-1) * probability * dt).sum().item()
    ids = sequences(K)[torch.multinomial(LAW.flatten(), rows, True, generator=torch.Generator().manual_seed(0))]
    u = time.draw("uniform", (0, 0), range(rows), rows)
    value = objectives.get("gidd", weighting=weighting)(
        denoiser, process, {"ids": ids}, u, torch.Generator().manual_seed(1)
    ).value.sum(-1)
    error = value.std().item() / math.sqrt(rows)
    assert value.mean().item() == pytest.approx(expected, abs=5 * error)
    assert error < 0.05 * expected < 0.05 * entropy()


def test_other_noise_is_refused():
    for process in (processes.masked(K), processes.uniform(K), processes.hybrid(K, steps=8)):
        with pytest.raises(ValueError, match="hybrid noise in continuous time"):
            objectives.get("gidd")(ExactDenoiser(process), process, {"ids": sequences(K)}, torch.rand(9))
