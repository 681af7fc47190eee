"""Objectives: what training averages is, in expectation, the bound (or the cross-entropy) it says it is.

The draws are real, with fixed seeds; a mean is compared with its exact value within five standard errors (false alarm
below 1e-6 under a random seed). The autoregressive value is enumerated.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from redraft import objectives, processes
from redraft.processes import time

from .oracle import LAW, ExactDenoiser, entropy, noisy_pairs, sequences

ROWS = 20_000
PROCESSES = {
    "masked": lambda: processes.masked(3),
    "masked_cosine": lambda: processes.masked(3, schedule="cosine"),
    "uniform": lambda: processes.uniform(3),
    "hybrid": lambda: processes.hybrid(3, uniform_share=0.2),
}


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]()


def draw_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    number = torch.multinomial(LAW.flatten(), ROWS, replacement=True, generator=generator)
    return {"ids": sequences(3)[number]}


def assert_mean(values: torch.Tensor, expected: float) -> None:
    """The mean of ``values`` (one per row) within five standard errors of ``expected``."""
    error = values.std().item() / math.sqrt(len(values))
    assert values.mean().item() == pytest.approx(expected, abs=5 * error)
    assert error < 0.05 * max(expected, 0.1)  # or the comparison says nothing


def test_nelbo_is_an_unbiased_estimate_of_the_entropy(process):
    """With the exact cavity posterior the mean over times and noise is H, and value and bound are the same."""
    u = time.draw("uniform", (0, 0), range(ROWS), ROWS)
    objective = objectives.get("nelbo")
    loss = objective(ExactDenoiser(process), process, draw_batch(), u, torch.Generator().manual_seed(1))
    assert loss.value.shape == loss.bound.shape == (ROWS, 2)
    assert torch.equal(loss.value, loss.bound)
    assert_mean(loss.value.sum(-1), entropy())


@pytest.mark.parametrize("u", [0.3, 0.8])
def test_cross_entropy_is_that_of_the_full_posterior(process, u):
    """At one time, from the cavity output: sum_i H(x_i | z), over masked positions only if the process is masked."""
    spent = torch.tensor([u], dtype=torch.float64)
    t = process.times(spent)[0]
    x0, z, rows, probability = noisy_pairs(process, t)
    logp = ExactDenoiser(process, posterior="full")(z, rows).gather(2, x0[..., None])[..., 0]
    counted = z == process.mask_id if process.name == "masked" else torch.ones_like(z, dtype=torch.bool)
    expected = -(torch.where(counted, logp, 0.0).sum(-1) * probability).sum().item()
    objective = objectives.get("cross_entropy")
    generator = torch.Generator().manual_seed(1)
    loss = objective(ExactDenoiser(process), process, draw_batch(), spent.expand(ROWS), generator)
    assert_mean(loss.value.sum(-1), expected)


def test_cross_entropy_still_reports_the_bound(process):
    """The same draw's nelbo, to the last bit of the weight: reweighting the loss never reweights the likelihood."""
    u = time.draw("stratified", (0, 1), range(ROWS), ROWS)
    batch, denoiser = draw_batch(), ExactDenoiser(process)
    bound = objectives.get("cross_entropy")(denoiser, process, batch, u, torch.Generator().manual_seed(1)).bound
    nelbo = objectives.get("nelbo")(denoiser, process, batch, u, torch.Generator().manual_seed(1)).bound
    torch.testing.assert_close(bound, nelbo, rtol=1e-12, atol=1e-12)


def test_autoregressive_value_is_the_negative_log_likelihood():
    """Exact conditionals in the order of the text: E sum_i value_i = H, 1e-12."""

    class Chain:
        facts = processes.Facts(attention="causal", mask_id=3)

        def __call__(self, z, t, cond=None):
            first = LAW.sum(1).expand(len(z), -1)
            second = (LAW / LAW.sum(1, keepdim=True))[z[:, 0]]
            return torch.stack([first, second], 1).log()

    ids = sequences(3)
    loss = objectives.get("autoregressive")(Chain(), processes.masked(3), {"ids": ids}, torch.zeros(9))
    assert (loss.value.sum(-1) * LAW.flatten()).sum().item() == pytest.approx(entropy(), abs=1e-12)
    torch.testing.assert_close(loss.value.sum(-1), -LAW.flatten().log(), rtol=0, atol=1e-12)


def test_a_row_is_corrupted_the_same_in_any_batch(process):
    """Value and bound of a row follow from its own time and generator, whatever the batch it is in."""
    from redraft.randomness import row_generators

    batch = {"ids": sequences(3)}
    u = time.draw("stratified", (0, 0), range(9), 9)
    denoiser, objective = ExactDenoiser(process), objectives.get("nelbo")
    whole = objective(denoiser, process, batch, u, row_generators(0, 5, rows=range(9))).value
    for rows in (range(0, 4), range(4, 9), [7]):
        part = {"ids": batch["ids"][list(rows)]}
        value = objective(denoiser, process, part, u[list(rows)], row_generators(0, 5, rows=rows)).value
        torch.testing.assert_close(value, whole[list(rows)], rtol=1e-12, atol=1e-14)


def test_mean_over_u_is_the_bound(process):
    """The estimator's own expectation, edges of u and all: quadrature over u, enumeration of z; 2e-4 nats of H.

    For hybrid noise it is the substitution t = u^2 that makes this hold: spent evenly, and kept 1e-5 from t = 0, the
    integral loses 0.9% of a nat, and its estimate has no variance to speak of an error bar with.
    """
    nodes, weights = np.polynomial.legendre.leggauss(60)
    pieces = list(pairwise([0.0, 1e-3, 0.1, 0.9, 1 - 1e-3, 1.0]))
    u = torch.from_numpy(np.concatenate([low + (high - low) * (nodes + 1) / 2 for low, high in pieces]))
    share = torch.from_numpy(np.concatenate([(high - low) / 2 * weights for low, high in pieces]))
    spent, weight = process.times(u)
    t, which = spent.unique(return_inverse=True)  # kept from the ends, several u are one time
    weight = torch.zeros_like(t).index_add(0, which, share * weight)
    x0, z, rows, probability = noisy_pairs(process, t)
    terms = process.nelbo(ExactDenoiser(process)(z, rows), x0, z, rows).sum(-1)
    total = (terms * probability * weight[torch.searchsorted(t, rows)]).sum().item()
    assert total == pytest.approx(entropy(), abs=2e-4)


def test_a_denoiser_of_the_full_posterior_is_converted(process):
    """Declared full or cavity, one law has one bound: what differs is the declaration, not the number."""
    u = time.draw("stratified", (0, 3), range(64), 64)
    batch = {"ids": draw_batch()["ids"][:64]}
    losses = [
        objectives.nelbo(ExactDenoiser(process, posterior=which), process, batch, u, torch.Generator().manual_seed(2))
        for which in ("cavity", "full")
    ]
    torch.testing.assert_close(losses[0].value, losses[1].value, rtol=1e-9, atol=1e-12)
