"""Discrete flow matching: its loss is a path KL, its rates carry q_t, and its bound is tight for masks only.

The rates of the model with the exact full posterior p are -alpha' / (1 - alpha) (p(y | z) - 1[y = z]), position by
position, from t = 1 to t = 0. All expectations are enumerated, time integrals 200-point Gauss-Legendre quadratures.
"""

from dataclasses import dataclass

import pytest
import torch

from redraft import objectives, processes
from redraft.objectives.flow_matching import generalised_kl
from redraft.processes import time
from redraft.randomness import row_generators

from .oracle import LAW, ExactDenoiser, L, TableDenoiser, entropy, marginals, noisy_pairs, quadrature, sequences

SOURCES = {
    "masked": lambda: processes.masked(3),
    "masked_cosine": lambda: processes.masked(3, schedule="cosine"),
    "uniform": lambda: processes.uniform(3),
    "uniform_cosine": lambda: processes.uniform(3, schedule="cosine"),
}


@pytest.fixture(params=SOURCES)
def process(request):
    return SOURCES[request.param]()


def expected_loss(process, denoiser) -> float:
    """The generalised KL over all x, z and t, nats per sequence."""
    times, weights = quadrature()
    x0, z, t, probability = noisy_pairs(process, times)
    loss = generalised_kl(process, denoiser(z, t), x0, z, t).sum(-1)
    return (loss * probability * weights[torch.searchsorted(times, t)]).sum().item()


@pytest.mark.parametrize("name", ["masked", "masked_cosine"])
def test_t27_the_mask_source_is_the_bound_of_masks(name):
    """T27: with exact conditionals the loss is H, 1e-10; with any prediction it is the NELBO's integrand, 1e-12."""
    process = SOURCES[name]()
    assert expected_loss(process, ExactDenoiser(process, posterior="full")) == pytest.approx(entropy(), abs=1e-10)
    x0, z, t, _ = noisy_pairs(process, torch.tensor([0.1, 0.6]).double())
    logp = torch.randn(len(z), L, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    expected = process.nelbo(logp, x0, z, t)
    torch.testing.assert_close(generalised_kl(process, logp, x0, z, t), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["uniform", "uniform_cosine"])
def test_t27_the_uniform_source_is_not_tight(name):
    """T27: the exact full posterior is .58235 nats above H, 1e-4, whatever the schedule; the cavity is worse."""
    process = SOURCES[name]()
    gap = expected_loss(process, ExactDenoiser(process, posterior="full")) - entropy()
    assert gap == pytest.approx(0.58235, abs=1e-4)
    assert expected_loss(process, ExactDenoiser(process)) - entropy() > gap + 0.1


def test_the_loss_is_the_kl_of_two_chains(process):
    """sum_{y != z} [u_p - u_x + u_x log(u_x / u_p)], u_p = w (p(y) - 1[y = z]), of a random p, 1e-12; at least 0."""
    x0, z, t, _ = noisy_pairs(process, torch.tensor([0.05, 0.5, 0.9]).double())
    logp = torch.randn(len(z), L, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(-1)
    if process.name == "masked":  # the full posterior of a token that stands is that token
        known = torch.nn.functional.one_hot(z.clamp_max(2), 3).double().log()
        logp = torch.where((z == 3)[..., None], logp, known)
    alpha, slope = (value[:, None, None] for value in process.schedule(t))
    truth = torch.nn.functional.one_hot(x0, 3).double()
    true, model = (-slope / (1 - alpha) * p for p in (truth, logp.exp()))
    terms = model - true + torch.special.xlogy(true, torch.where(true > 0, true / model, 1.0))
    terms = torch.where(torch.nn.functional.one_hot(z, process.V)[..., :3].bool(), 0.0, terms)
    got = generalised_kl(process, logp, x0, z, t)
    torch.testing.assert_close(got, terms.sum(-1), rtol=1e-12, atol=1e-12)
    assert (got >= -1e-12).all()


def law_at(process, at: float) -> torch.Tensor:
    """q_t over the V ** L states."""
    q = marginals(process, torch.tensor([at], dtype=torch.float64))[0]
    return torch.einsum("ab,ay,bz->yz", LAW, q, q).flatten()


@pytest.mark.parametrize("at", [0.2, 0.7])
def test_the_rates_of_the_full_posterior_carry_the_marginals(process, at):
    """-d q_t / dt is the flow of the rates, 1e-8: the simulated marginals are right, though the bound is not tight."""
    states, size = sequences(process.V), process.V
    t = torch.full((len(states),), at, dtype=torch.float64)
    p = ExactDenoiser(process, posterior="full")(states, t).exp()
    alpha, slope = process.schedule(t[:1])
    law, flow = law_at(process, at), torch.zeros(size**L, dtype=torch.float64)
    for number, state in enumerate(states):
        for position in range(L):
            if process.mask_id is not None and state[position] != process.mask_id:
                continue
            for token in range(3):
                reached = state.clone()
                reached[position] = token
                rate = (-slope / (1 - alpha) * p[number, position, token] * law[number]).item()
                flow[int(reached[0]) * size + int(reached[1])] += rate
                flow[number] -= rate
    step = 1e-4
    slopes = [law_at(process, at - h) - law_at(process, at + h) for h in (step, 2 * step)]
    torch.testing.assert_close(flow, (8 * slopes[0] - slopes[1]) / (12 * step), rtol=0, atol=1e-8)
    assert flow.abs().max() > 0.05


@pytest.mark.parametrize("name", ["masked", "uniform"])
def test_the_full_posterior_is_the_minimiser(name):
    """At every t the gradient of the expected loss in a table of logits vanishes there; not at the cavity."""
    process = SOURCES[name]()
    states = sequences(process.V)
    for which in ("full", "cavity") if name == "uniform" else ("full",):
        x0, z, t, probability = noisy_pairs(process, torch.tensor([0.6]).double())
        logits = ExactDenoiser(process, posterior=which)(states, t[:1].expand(len(states))).requires_grad_()
        logp = TableDenoiser(logits.log_softmax(-1), process.V)(z, t)
        (gradient,) = torch.autograd.grad((generalised_kl(process, logp, x0, z, t).sum(-1) * probability).sum(), logits)
        slope = gradient.nan_to_num().abs().max().item()
        assert slope < 1e-12 if which == "full" else slope > 1e-3


@dataclass
class Declared:
    """Another name for a denoiser's output, with its facts."""

    inner: ExactDenoiser

    @property
    def facts(self):
        return self.inner.facts

    def __call__(self, z, t, cond=None):
        return self.inner(z, t)


def test_the_objective_is_the_loss_of_its_draw(process):
    """Value = weight x generalised KL of ``to_full``, bound = the NELBO of the same z; cavity or full alike."""
    batch = {"ids": sequences(3)}
    u = time.draw("stratified", (0, 0), range(9), 9)
    noise = {"generator": row_generators(0, 1, rows=range(9))}
    z, t, weight = objectives.corrupt(process, batch["ids"], u, noise["generator"])
    expected = weight * generalised_kl(process, ExactDenoiser(process, posterior="full")(z, t), batch["ids"], z, t)
    for which in ("cavity", "full"):
        denoiser = Declared(ExactDenoiser(process, posterior=which))
        loss = objectives.get("dfm")(denoiser, process, batch, u, row_generators(0, 1, rows=range(9)))
        torch.testing.assert_close(loss.value, expected, rtol=1e-9, atol=1e-11)
        plain = objectives.get("nelbo")(denoiser, process, batch, u, row_generators(0, 1, rows=range(9)))
        torch.testing.assert_close(loss.bound, plain.bound, rtol=1e-12, atol=1e-12)
    if process.name == "masked":
        torch.testing.assert_close(loss.value, plain.value, rtol=1e-9, atol=1e-11)


def test_paths_it_does_not_have_are_refused():
    batch = {"ids": sequences(3)}
    for process in (processes.hybrid(3), processes.uniform(3, steps=8)):
        with pytest.raises(ValueError, match="dfm"):
            objectives.get("dfm")(ExactDenoiser(process), process, batch, torch.full((9,), 0.5))
