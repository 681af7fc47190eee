"""Samplers of vectors: marginals by density and by draws, orders measured, one process in all units, no state.

One token on a line is carried exactly: the ODE keeps quantiles there, and a step with noise is a quadrature over that
noise. What is drawn is compared by chi-square; a threshold on its tail is the false-alarm rate over other seeds.
"""

import functools
import inspect
import itertools
import math

import pytest
import torch
from torch import Tensor

from redraft import processes, sampling
from redraft.models.transformer import Transformer, TransformerConfig
from redraft.processes import Channel
from redraft.sampling import samplers
from redraft.sampling.contract import Draw
from redraft.schedules import GammaSchedule

from .chain import Chain, ExactChain, noise
from .line import CODES, KINDS, PI, posterior_tokens
from .oracle import chi_square_tail

EVERY = ["ancestral", "euler", "ddim:eta=0.5", "heun", "churn", "churn:order=1", "heun:clamp=true,tau=0.9"]
DETERMINISTIC = ["euler", "heun"]
NOISY = ["ancestral", "ddim:eta=0.5", "churn:order=1", "churn:churn=0.3"]


def line(kind: str = "vp", low: float = -3.0, high: float = 6.0):
    return processes.gaussian(CODES, kind, GammaSchedule("linear_gamma", low, high))


def query(process, pi: Tensor = PI):
    """The exact clean vectors of independent tokens of law ``pi``."""
    return lambda z, t: process.mean(posterior_tokens(process, z, t, pi).exp())


def run(process, said, sampler: str, z: Tensor, steps: int, generator=None, times: tuple[float, float] = (1, 0)):
    """z after ``steps`` even steps of t: the loop of ``sample``, of vectors alone."""
    step = samplers.get(sampler)
    draw = Draw(torch.zeros(z.shape[:2], dtype=torch.bool), generator)
    for t, s in itertools.pairwise(torch.linspace(*times, steps + 1, dtype=torch.float64)):
        z = step(process, said, z, t.expand(len(z)), s.expand(len(z)), draw)
    return z


def columns(process, *times: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(alpha, sigma) at each time, (B, 1, 1)."""
    scaled = (process.scales(process.gamma(t)[0]) for t in times)
    return [(alpha[..., None], sigma[..., None]) for alpha, sigma in scaled]


# ---------------------------------------------------------------------------------------------------------- marginals


def mixture_cdf(process, z: Tensor, time: float) -> Tensor:
    """P(z_t <= z) of the token on the line, exactly."""
    ((alpha, sigma),) = columns(process, torch.tensor([time], dtype=torch.float64))
    return (PI * torch.special.ndtr((z[:, None] - alpha[0] * CODES[:, 0]) / sigma[0])).sum(-1)


def quantiles(process, count: int) -> tuple[Tensor, Tensor]:
    """Points z at t = 1, (count, 1, 1), and P(z_1 <= z) at them."""
    z = torch.linspace(-4, 4, count, dtype=torch.float64) * process.ends()[2]
    return z[:, None, None], mixture_cdf(process, z, 1.0)


@functools.cache
def misplaced(sampler: str, steps: int) -> float:
    """Greatest |P(z <= .) - exact| at t = 0 after ``steps``: an ODE in one dimension carries the quantiles along."""
    process = line()
    z, level = quantiles(process, 401)
    z = run(process, query(process), sampler, z, steps)[:, 0, 0]
    return (mixture_cdf(process, z, 0.0) - level).abs().max().item()


def carried(monkeypatch, sampler: str, steps: int, points: int = 601, nodes: int = 31) -> tuple[Tensor, Tensor]:
    """A grid of z and the mass on it after ``steps`` of the sampler itself, its noise replaced by quadrature nodes.

    Mass between two points of the grid is shared among them linearly, which keeps means and adds 4e-5 of variance.
    """
    process = line()
    grid = torch.linspace(-4.5, 4.5, points, dtype=torch.float64)
    spacing, xi = grid[1] - grid[0], torch.linspace(-5, 5, nodes, dtype=torch.float64)
    weight = torch.exp(-(xi**2) / 2) / torch.exp(-(xi**2) / 2).sum()
    drawn = lambda shape, generator, device=None: xi.repeat(points)[:, None, None]  # noqa: E731
    for where in (samplers.churn, Channel):
        monkeypatch.setattr(inspect.getmodule(where), "randn", drawn)
    edges = torch.cat([grid - spacing / 2, grid[-1:] + spacing / 2])
    mass = mixture_cdf(process, edges, 1.0).diff()
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    for ends in itertools.pairwise(times):
        moved = run(process, query(process), sampler, grid.repeat_interleave(nodes)[:, None, None], 1, times=ends)
        place = ((moved[:, 0, 0] - grid[0]) / spacing).clamp(0, points - 1 - 1e-9)
        below, share = place.floor().long(), place.frac()
        flow = (mass[:, None] * weight).flatten()
        mass = torch.zeros_like(mass).index_add(0, below, flow * (1 - share)).index_add(0, below + 1, flow * share)
    return grid, mass


@pytest.mark.parametrize("sampler", NOISY)
def test_18_4_noise_and_ode_have_the_same_marginals(monkeypatch, sampler):
    """The law at t = 0, started from q_1, tends to q_0 as steps grow: the greatest difference of their distribution
    functions falls to below .02 and by more than half from 16 to 48 steps. Euler and Heun, below, go to the same law.
    """
    worst = []
    for steps in (16, 48):
        grid, mass = carried(monkeypatch, sampler, steps)
        edges = (grid[:-1] + grid[1:]) / 2
        worst.append((mass.cumsum(0)[:-1] - mixture_cdf(line(), edges, 0.0)).abs().max().item())
    print(f"{sampler}: distribution functions differ by {worst[0]:.4f} after 16 steps, {worst[1]:.4f} after 48")
    assert worst[1] < (0.005 if sampler == "churn:churn=0.3" else 0.02)
    assert worst[1] < worst[0] / 2


def test_18_4_the_ode_carries_the_law_and_heun_does_it_better():
    """Greatest difference of distribution functions at t = 0, from equal ones at t = 1: both go to 0 as their orders
    say, and Heun's is less than half of Euler's from 8 steps on.
    """
    for steps in (8, 16, 64):
        assert misplaced("heun", steps) < misplaced("euler", steps) / 2
    assert misplaced("heun", 16) < 0.01
    assert misplaced("euler", 64) / misplaced("euler", 256) == pytest.approx(4, rel=0.2)
    assert misplaced("heun", 64) / misplaced("heun", 256) == pytest.approx(16, rel=0.2)
    print({(name, steps): round(misplaced(name, steps), 5) for name in DETERMINISTIC for steps in (8, 16, 64, 256)})


def circle():
    angle = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    codes = torch.stack([angle.cos(), angle.sin()], dim=1)
    return processes.gaussian(codes, "vp", GammaSchedule(gamma_min=-6.0, gamma_max=8.0))


@pytest.mark.parametrize("sampler", ["euler", "heun", "ancestral"])
def test_18_4_three_tokens_on_the_circle(sampler):
    """Section 2.3: pi = (.6, .3, .1), 400 even steps of gamma from 8 to -6; 4000 draws, false alarm 1e-3."""
    process, pi = circle(), torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    z = process.prior((4000, 1), torch.Generator().manual_seed(0))
    z = run(process, query(process, pi), sampler, z, 400, torch.Generator().manual_seed(1))
    counts = torch.bincount(process.nearest(z)[:, 0], minlength=3).double()
    print(f"{sampler}: {(counts / counts.sum()).tolist()}")
    assert chi_square_tail(counts, pi) > 1e-3


def tail(ids: Tensor, law: Tensor) -> float:
    """Chi-square tail of ids counted over the cells of ``law``; those expected fewer than 5 times count as one."""
    counts = torch.bincount(ids, minlength=law.numel()).double()
    rare = law * len(ids) < 5
    pooled = [torch.cat([value[~rare], value[rare].sum(0, keepdim=True)]) for value in (counts, law)]
    return chi_square_tail(*pooled)


@pytest.mark.parametrize(("sampler", "steps"), [("ancestral", 48), ("euler", 48), ("heun", 16), ("churn", 16)])
def test_18_4_unigrams_and_bigrams_of_the_chain(sampler, steps):
    """4 unigram and 3 bigram laws of 2000 drawn rows, each tail above 2e-4: false alarm below 2e-3."""
    chain, process = Chain(size=6, length=4), noise(gamma_min=-8.0, gamma_max=8.0, size=6)
    ids = sampling.sample(process, ExactChain(process, chain), length=4, num=2000, steps=steps, sampler=sampler).tokens
    tails = [tail(ids[:, i], law) for i, law in enumerate(chain.unigrams())]
    tails += [tail(ids[:, i] * 6 + ids[:, i + 1], law.flatten()) for i, law in enumerate(chain.bigrams())]
    assert min(tails) > 2e-4


# -------------------------------------------------------------------------------------------------------------- order


def endpoint_errors(sampler: str, counts: tuple[int, ...]) -> list[float]:
    """Mean |z_0 - z_0 of 4096 Heun steps| over 41 starts, for each number of steps."""
    return [(endpoints(sampler, steps) - endpoints("heun", 4096)).abs().mean().item() for steps in counts]


@functools.cache
def endpoints(sampler: str, steps: int) -> Tensor:
    process = line()
    return run(process, query(process), sampler, quantiles(process, 41)[0], steps)


def test_18_5_euler_is_of_first_order_and_heun_of_second():
    """Slope of log error in log N over N = 16 .. 256, measured: Euler .8 to 1.3, Heun 1.7 to 2.4."""
    counts = (16, 32, 64, 128, 256)
    x = torch.tensor(counts).double().log()
    slopes = {}
    for sampler in DETERMINISTIC:
        y = torch.tensor(endpoint_errors(sampler, counts)).double().log()
        slopes[sampler] = -(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()).item()
    print(f"measured orders: {slopes}")
    assert 0.8 < slopes["euler"] < 1.3
    assert 1.7 < slopes["heun"] < 2.4
    assert endpoint_errors("heun", counts)[0] < endpoint_errors("euler", counts)[0] / 4


def test_18_5_on_the_chain_heun_wins_from_four_steps_on():
    """10 nats of gamma in 2 steps divide sigma~ by 12, and Heun corrects too much; in 4 steps it is ahead, at equal
    steps, and in 16 by ten times."""
    chain, process = Chain(), noise()
    model = ExactChain(process, chain)
    said = lambda z, t: process.mean(model(z, t).exp())  # noqa: E731
    z = process.prior((40, 6), torch.Generator().manual_seed(0))
    reference = run(process, said, "heun", z, 256)
    error = {
        (name, steps): (run(process, said, name, z, steps) - reference).abs().mean().item()
        for name in DETERMINISTIC
        for steps in (2, 4, 16)
    }
    assert error["heun", 2] > error["euler", 2]
    assert error["heun", 4] < error["euler", 4]
    assert error["heun", 16] < error["euler", 16] / 8


# ------------------------------------------------------------------------------------------- one process, rows, state


@pytest.mark.parametrize("sampler", EVERY)
def test_18_15_kinds_write_the_same_tokens_from_the_same_seed(sampler):
    """VP, VE and RF: tokens and calls equal, and u = z / alpha at every step to 1e-8."""
    chain, seen = Chain(), {}
    for kind in KINDS:
        process = noise(kind)
        states: list[Tensor] = []

        def keep(step, process=process, states=states):
            ((alpha, _),) = columns(process, torch.tensor([step.s], dtype=torch.float64))
            states.append(step.z / alpha)

        options = {"length": 6, "num": 6, "steps": 10, "sampler": sampler, "callback": keep, "seed": 3}
        made = sampling.sample(process, ExactChain(process, chain), **options)
        seen[kind] = made, torch.stack(states)
    calls = 21 if sampler.startswith(("heun", "churn")) and "order=1" not in sampler else 11
    for made, states in seen.values():
        assert made.nfe == calls
        assert torch.equal(made.tokens, seen["vp"][0].tokens)
        torch.testing.assert_close(states, seen["vp"][1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sampler", EVERY)
def test_a_row_of_eight_is_the_row_alone(sampler):
    process, last = noise(), []
    model = ExactChain(process, Chain())
    options = {"length": 6, "steps": 8, "sampler": sampler, "callback": lambda step: last.append(step.z)}
    together = sampling.sample(process, model, num=8, seed=5, **options)
    z = last[-1]
    for row in (0, 5):
        alone = sampling.sample(process, model, seeds=[together.seeds[row]], **options)
        assert torch.equal(alone.tokens[0], together.tokens[row])
        torch.testing.assert_close(last[-1][0], z[row], rtol=0, atol=1e-12)


@functools.cache
def guessing() -> Transformer:
    """A small model that reads what it said before, with weights that make something of it."""
    process = noise(size=7)
    config = TransformerConfig(process.to_dict(), depth=1, time_conditioned=True, self_conditioned=True)
    torch.manual_seed(0)
    model = Transformer(config, {"codebook": process.codebook.float()})
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    return model


class Forgetful:
    """The same model, never told what it said."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.facts = processes.Facts(posterior="full", time_conditioned=True)

    def __call__(self, z: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.model(z, t)


def after(denoiser, sampler: str, moved: float = 0.0) -> list[Tensor]:
    """z after every step; a callback sets the canvas to one and the same after the third, and by ``moved`` beside it
    after the first."""
    states: list[Tensor] = []

    def keep(step):
        states.append(step.z.clone())
        if step.index == 0:
            return step.z + moved
        return torch.full_like(step.z, 0.3) if step.index == 2 else None

    process = guessing().process
    with torch.no_grad():
        sampling.sample(process, denoiser, length=5, num=2, steps=6, sampler=sampler, callback=keep)
    return states


@pytest.mark.parametrize("sampler", EVERY)
def test_18_14_without_a_guess_a_sampler_has_no_state(sampler):
    """Two histories that meet in one canvas go on as one; with self-conditioning they do not."""
    one, other = after(Forgetful(guessing()), sampler), after(Forgetful(guessing()), sampler, moved=1.0)
    assert not torch.equal(one[2], other[2])
    assert all(torch.equal(*pair) for pair in zip(one[3:], other[3:], strict=True))
    if "clamp" not in sampler:  # which hides what is said but for its nearest row
        assert not torch.equal(after(guessing(), sampler)[3], after(guessing(), sampler, moved=1.0)[3])


@pytest.mark.parametrize("sampler", ["ancestral", "euler", "ddim:eta=0.5", "churn:order=1"])
def test_18_14_the_first_step_knows_no_guess(sampler):
    """One call, told nothing: equal to the model that is never told. The second step differs; so does Heun's first,
    whose second call is told what the first said."""
    told, untold = after(guessing(), sampler), after(Forgetful(guessing()), sampler)
    assert torch.equal(told[0], untold[0])
    assert not torch.equal(told[1], untold[1])
    assert not torch.equal(after(guessing(), "heun")[0], after(Forgetful(guessing()), "heun")[0])
