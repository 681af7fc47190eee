"""A denoiser that does not read t is asked only about rows that changed: the same texts, for fewer calls."""

import math

import pytest
import torch

from redraft import processes, sampling

from .exhaust import outcomes

SAMPLERS = ["ancestral", "euler", "first_hitting", "greedy_tail", "psi", "remdm:strategy=conf", "remdm:strategy=loop"]
SAMPLERS += ["forward_backward", "dfm", "gibbs", "informed:k=2", "confidence", "left_to_right"]


class TimeFree:
    """A denoiser whose output for a row depends on its tokens only, and which may hide that it does."""

    def __init__(self, process, declared: bool) -> None:
        self.facts = processes.Facts(time_conditioned=not declared, mask_id=process.mask_id)
        self.weights = torch.randn(
            process.V, process.K, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        self.positions = 0

    def __call__(self, z, t, cond=None):
        self.positions += z.numel()
        seen = self.weights[z]
        return (seen.roll(1, 1) + 2 * seen.roll(-1, 1) + seen.cumsum(1)).log_softmax(-1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_t29_cached_is_uncached(sampler):
    """T29: bitwise the same tokens from the same seeds, prompts and ragged rows included, and never more positions."""
    process = processes.masked(5)
    canvas = torch.tensor([[0] * 12, [1, 2, 3, 0, 0, 4, 0, 0, 0, 0, 1, 2], [1] * 11 + [0]])
    frozen = canvas != 0
    cached, uncached = (
        sampling.sample(
            process, denoiser, canvas=canvas, frozen=frozen, seeds=[1, 2, 3], steps=24, sampler=sampler, callback=None
        )
        for denoiser in (TimeFree(process, declared=True), TimeFree(process, declared=False))
    )
    assert torch.equal(cached.tokens, uncached.tokens)
    # a rule that proposes asks about rows with something to write, whatever the denoiser reads; so does first-hitting
    some = sampler == "first_hitting" or sampling.samplers.proposes(sampling.samplers.get(sampler))
    assert cached.positions < uncached.positions or some
    assert cached.nfe <= uncached.nfe


def test_t29_a_callback_that_masks_again_is_asked_again():
    """T29: the cache goes by what the canvas is, not by what the sampler made of it."""
    process = processes.masked(5)

    def forgetful(step):
        z = step.z.clone()
        if step.index in (5, 11):
            z[:, 2:6] = process.mask_id
        return z

    drawn = [
        sampling.sample(process, TimeFree(process, declared), length=8, num=6, steps=16, callback=forgetful).tokens
        for declared in (True, False)
    ]
    assert torch.equal(*drawn)


def test_positions_are_what_the_denoiser_saw():
    process = processes.masked(5)
    denoiser = TimeFree(process, declared=True)
    samples = sampling.sample(process, denoiser, length=8, num=20, steps=32)
    assert samples.positions == denoiser.positions < samples.nfe * 20 * 8


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_t16_expected_calls_exactly(steps):
    """T16: N (1 - (1 - 1/N)^l) for l = 2, by every outcome of the loop's own draws, 1e-12."""
    process = processes.masked(2)
    denoiser = TimeFree(process, declared=True)

    def run() -> torch.Tensor:
        return torch.tensor(sampling.sample(process, denoiser, length=2, steps=steps, seeds=[0]).nfe)

    expected = sum(nfe.item() * weight.item() for nfe, weight in outcomes(run, 1))
    assert expected == pytest.approx(steps * (1 - (1 - 1 / steps) ** 2), abs=1e-12)


def test_t16_expected_calls_of_eight_masks_in_sixteen_steps():
    """T16: 6.452488 calls a row: propagated with the kernel's own reveals, 1e-6; measured over 12,000 rows within .02.

    The number of steps that reveal something is that of the boxes which 8 balls fill of 16, of standard deviation .92:
    a right sampler would raise the alarm for one seed in 58.
    """
    process, rows = processes.masked(2), 12_000
    left, formula = torch.zeros(9, dtype=torch.float64).index_fill(0, torch.tensor(8), 1.0), 0.0
    p0, z = torch.full((1, 1, 2), 0.5, dtype=torch.float64), torch.tensor([[2]])
    for i in range(16, 0, -1):
        t, s = (torch.tensor([time / 16], dtype=torch.float64) for time in (i, i - 1))
        stay = process.posterior(p0, z, t, s)[0, 0, 2].item()
        chances = [[math.comb(n, k) * stay**k * (1 - stay) ** (n - k) for k in range(n + 1)] for n in range(9)]
        thinned = torch.tensor([row + [0.0] * (9 - len(row)) for row in chances], dtype=torch.float64)
        formula += 1 - (left @ thinned.diagonal()).item()  # the step reveals something, and so costs a call after it
        left = left @ thinned
    assert formula == pytest.approx(6.452488, abs=5e-7)
    samples = sampling.sample(process, TimeFree(process, declared=True), length=8, num=rows, steps=16, seed=1)
    assert samples.positions / (rows * 8) == pytest.approx(formula, abs=0.02)
    assert samples.nfe == 16  # the batch as a whole changes at every step


def test_a_condition_is_not_cut():
    """What speaks of rows is told of all of them: with one stale row the whole batch is asked."""
    process, seen = processes.masked(3), []

    class Told(TimeFree):
        def __call__(self, z, t, cond=None):
            seen.append(len(z) == len(cond))
            return super().__call__(z, t)

    sampling.sample(process, Told(process, declared=True), length=4, num=5, steps=20, cond=torch.zeros(5))
    assert all(seen)
    assert len(seen) < 20
