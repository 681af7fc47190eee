"""Steering: unbiased at any number of particles, the sampler itself at one, and every group alone.

What is exact is exact by ``Forest``: the package's own code, run for every outcome of every draw. Statistical tests fix
their seeds and state how often a correct sampler would fail them under random ones.
"""

import itertools
import math
from contextlib import ExitStack
from importlib import import_module
from unittest.mock import patch

import pytest
import torch

from redraft import guidance, processes, sampling
from redraft.guidance import particles as weighing
from redraft.guidance.steering import Steering
from redraft.models import Transformer, TransformerConfig
from redraft.randomness import generator
from redraft.schedules import GammaSchedule

from .chain import Chain, ExactChain, noise
from .oracle import LAW, ExactDenoiser, ancestral_law, emissions, state_number, total_variation
from .tiled import drawing

REWARD = torch.tensor([[0.9, -1.2, 0.3], [-0.4, 1.1, 0.0], [0.6, -0.7, -2.0]], dtype=torch.float64)
LAM = 1.3
POTENTIALS = list(weighing.POTENTIALS)
MODULES = ("processes.categorical", "processes.per_token", "guidance.particles", "guidance.steering", "guidance.smc")


def reward(ids):
    return REWARD[ids[:, 0], ids[:, -1]]


def guess(z, t):
    """A promise that is wrong, of masks too, and differs at every time."""
    return torch.sin(3 * z.double().sum(1) + 5 * t) - 0.5


def law_of(size):
    """The toy's law among its first tokens."""
    return LAW[:size, :size] / LAW[:size, :size].sum()


def target(law, rewards=REWARD):
    """p(x) exp(lam r(x)), not normalised, of p over all states of two positions; (K, K)."""
    states = math.isqrt(len(law))
    size = min(states, len(rewards)) if states > 3 else states - 1
    return law.view(states, states)[:size, :size] * torch.exp(LAM * rewards[:size, :size])


# ----------------------------------------------------------------------------------------------- every outcome, exactly


class Forest:
    """``categorical`` that gives each text its own outcomes, those of its path, and grows the paths by one draw a run.

    A path is a text among many in one run: what a text becomes depends on nothing beside it. Which particle is picked
    in the end is left out.
    """

    def __init__(self, particles: int) -> None:
        self.size, self.paths, self.weight = particles, [()], torch.ones(1, dtype=torch.float64)

    def __call__(self, probs, generators):
        texts, width = len(self.paths), probs.shape[-1]
        if probs.shape == (texts, 1, self.size):
            return torch.zeros(texts, 1, dtype=torch.long)
        share = probs.double() / probs.double().sum(-1, keepdim=True)
        if len(probs) in (texts, texts * self.size):
            share, places = share.reshape(texts, -1, width), list(range(texts))
        else:  # some groups are resampled, and others draw nothing
            places = [self.groups[one.initial_seed()] for one in generators]
        if self.depth == len(self.paths[0]):
            raise _GrowError(dict(zip(places, share, strict=True)))
        self.depth += 1
        told = torch.tensor([self.paths[text][self.depth - 1] for text in places])
        return told.reshape(probs.shape[:-1])

    def grow(self, shares):
        paths, weights = [], []
        for text, path in enumerate(self.paths):
            rows = [[0]] if text not in shares else [row.nonzero().flatten().tolist() for row in shares[text]]
            chances = shares[text].tolist() if text in shares else [[1.0]]
            for outcome in itertools.product(*rows):
                paths.append((*path, outcome))
                chance = math.prod(row[one] for row, one in zip(chances, outcome, strict=True))
                weights.append(float(self.weight[text]) * chance)
        self.paths, self.weight = paths, torch.tensor(weights, dtype=torch.float64)

    def run(self, steer, same_seed):
        """(the population of all paths, the probability of each); ``steer(seeds)`` draws a text for each seed."""
        modules = [import_module(f"redraft.{name}") for name in MODULES]
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(patch.object(module, "categorical", self))
            while True:
                seeds = [0 if same_seed else text for text in range(len(self.paths))]
                self.groups = {generator(seed, 0, 0).initial_seed(): text for text, seed in enumerate(seeds)}
                self.depth = 0
                try:
                    return steer(seeds), self.weight
                except _GrowError as error:
                    self.grow(error.args[0])


class _GrowError(Exception):
    """All paths are told to their end."""


def exactly(process, denoiser, *, length=2, steps=2, same_seed=False, reward=reward, lam=LAM, **options):
    """E[Z-hat], and E[Z-hat times the weighted law of the particles] over the clean texts, of two particles."""
    population, weight = Forest(2).run(
        lambda seeds: guidance.steer(
            process,
            denoiser,
            reward,
            lam=lam,
            particles=2,
            length=length,
            steps=steps,
            seeds=seeds,
            resampling="multinomial",
            **options,
        ),
        same_seed,
    )
    assert weight.sum().item() == pytest.approx(1, abs=1e-12)
    z = weight * population.log_evidence.exp()
    shares = (z[:, None] * population.weights.nan_to_num(0.0)).flatten()
    at = state_number(population.particles.tokens, process.K)
    return z.sum(), torch.zeros(process.K**length, dtype=torch.float64).index_add(0, at, shares)


def assert_unbiased(found, wanted):
    assert found[0].item() == pytest.approx(wanted.sum().item(), abs=1e-12)
    torch.testing.assert_close(found[1], wanted.flatten(), rtol=0, atol=1e-12)


def masked(size):
    """Masks on a law of ``size`` tokens, its exact denoiser, and p(x) of two steps of it tilted by the reward."""
    process = processes.masked(size)
    denoiser = ExactDenoiser(process, law_of(size))
    return process, denoiser, target(ancestral_law(process, denoiser, 2))


@pytest.mark.parametrize(("potential", "size"), [("difference", 3), ("max", 2), ("add", 2), ("rt", 2)])
def test_18_9_evidence_and_law_are_unbiased(potential, size):
    """18.9: two particles, two steps, resampled always: E[Z-hat] and E[Z-hat times their law], every outcome, 1e-12."""
    process, denoiser, wanted = masked(size)
    found = exactly(process, denoiser, potential=potential, intermediate=guess, threshold=1.0)
    assert_unbiased(found, wanted)


def test_without_the_last_potential_it_is_another_law():
    """Were it a running reward's, as in the released class, the evidence would be off by more than 0.1."""
    process, denoiser, wanted = masked(2)
    with patch.object(weighing.Particles, "finish", lambda self, v: self.log_w.add_(v)):
        found = exactly(process, denoiser, potential="max", intermediate=guess, threshold=1.0)
    assert abs(found[0] - wanted.sum()) > 0.1


@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_18_9_weights_add_up_while_nothing_is_resampled(threshold):
    """18.9: never resampled, or where the effective number of two falls below 1.8, which some do: unbiased, 1e-12."""
    process, denoiser, wanted = masked(2)
    assert_unbiased(exactly(process, denoiser, intermediate=guess, threshold=threshold), wanted)


@pytest.mark.parametrize("hard", [False, True])
def test_drawn_rewards_keep_it_unbiased(hard):
    """``draws`` of one text each, whatever they come out as; also where all may fail, and the text may not, 1e-12."""
    process, denoiser, _ = masked(2)
    rewards = REWARD.masked_fill(torch.eye(3).bool(), -math.inf) if hard else REWARD
    wanted = target(ancestral_law(process, denoiser, 2), rewards)
    with patch.object(Steering, "_check", lambda *_: None):  # a text whose particles are all lost counts as 0
        found = exactly(
            process,
            denoiser,
            reward=lambda ids: rewards[ids[:, 0], ids[:, 1]],
            draws=1,
            threshold=1.0,
            same_seed=True,
        )
    assert_unbiased(found, wanted)


@pytest.mark.parametrize("potential", ["difference", "add"])
def test_uniform_noise_is_unbiased(potential):
    """One position of two tokens under uniform noise, whose prior is drawn too, 1e-12."""
    process, p = drawing(processes.uniform(2)), torch.tensor([0.7, 0.3], dtype=torch.float64)
    denoiser = ExactDenoiser(process, p)
    found = exactly(process, denoiser, length=1, potential=potential, intermediate=guess, threshold=1.0)
    assert_unbiased(found, p * torch.exp(LAM * REWARD.diagonal()[:2]))


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_guidance_proposes_and_weights_correct(threshold):
    """A guided proposal weighed by p / pi at every step draws the base's law, tilted, 1e-12; unweighed it does not."""
    process, base, wanted = masked(2)
    guided = guidance.cfg(base, ExactDenoiser(process, law_of(2).flip(0)), weight=1.7)
    assert_unbiased(exactly(process, guided, base=base, intermediate=guess, threshold=threshold), wanted)
    plain = exactly(process, guided, intermediate=guess, threshold=threshold)
    assert abs(plain[0] - wanted.sum()) > 0.1


def test_a_proposal_of_uniform_noise_draws_the_base():
    """lam = 0: weights are p / pi alone, and their mean is 1. Uniform noise, one position, 1e-12."""
    process, p = drawing(processes.uniform(2)), torch.tensor([0.7, 0.3], dtype=torch.float64)
    base, proposal = ExactDenoiser(process, p), ExactDenoiser(process, p.flip(0))
    found = exactly(process, proposal, length=1, base=base, lam=0.0, threshold=1.0, intermediate="none")
    assert_unbiased(found, p)


# --------------------------------------------------------------------------------------------------------- no variance


@pytest.mark.parametrize("name", ["masked", "uniform", "hybrid"])
@pytest.mark.parametrize("intermediate", ["exact", "none"])
def test_exact_twists_leave_no_variance(name, intermediate):
    """Independent positions, proposals tilted as the target is: every weight is Z, and by the exact promise always."""
    process = getattr(processes, name)(3)
    first, last = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]], dtype=torch.float64)
    gains = torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.9, -1.1]], dtype=torch.float64)
    law, gain = first[:, None] * last, LAM * (gains[0][:, None] + gains[1])
    tilted = law * gain.exp()
    base, proposal = ExactDenoiser(process, law), ExactDenoiser(process, tilted / tilted.sum())

    def additive(ids):
        return gains[0][ids[:, 0]] + gains[1][ids[:, 1]]

    def promise(z, t):
        q = emissions(process, z, t)
        p = q * torch.stack([first, last])
        return ((p * (LAM * gains).exp()).sum(-1) / p.sum(-1)).log().sum(1) / LAM

    exact = intermediate == "exact"
    found = guidance.steer(
        process,
        proposal,
        additive,
        lam=LAM,
        base=base,
        particles=5,
        num=4,
        length=2,
        steps=6,
        threshold=1.0 if exact else 0.0,
        intermediate=promise if exact else "none",
    )
    torch.testing.assert_close(found.log_evidence, tilted.sum().log().expand(4), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.weights, torch.full((4, 5), 0.2, dtype=torch.float64), rtol=0, atol=1e-12)
    whole = [ess[-1] for ess in found.ess] if not exact else list(itertools.chain(*found.ess))
    assert whole == pytest.approx([5.0] * len(whole), abs=1e-10)
    assert len(set(map(tuple, found.particles.tokens.tolist()))) > 2


# ------------------------------------------------------------------------------------------------------- path by path


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("potential", POTENTIALS)
def test_18_9_potentials_telescope(potential, every):
    """18.9: alone, a particle's evidence is the product of its potentials: exp(lam r(x_0)) on every path, 1e-12."""
    process = processes.hybrid(3)
    found = guidance.steer(
        process,
        ExactDenoiser(process),
        reward,
        lam=LAM,
        particles=1,
        num=50,
        length=2,
        steps=7,
        potential=potential,
        intermediate=guess,
        every=every,
        threshold=1.0,
    )
    torch.testing.assert_close(found.log_evidence, LAM * reward(found.tokens), rtol=0, atol=1e-12)
    assert [len(ess) for ess in found.ess] == [7 if every == 1 else 3] * 50


@pytest.mark.parametrize("potential", POTENTIALS)
def test_weights_on_the_way_are_the_potentials(potential):
    """log w after step k: v_k, or the sum over j <= k of max, sum, or v_j itself; the ESS of those, 1e-10."""
    process, seen = processes.uniform(3), []
    found = guidance.steer(
        process,
        ExactDenoiser(process),
        reward,
        lam=LAM,
        particles=4,
        length=2,
        steps=5,
        potential=potential,
        intermediate=guess,
        threshold=0.0,
        callback=lambda step: seen.append(LAM * guess(step.z, torch.tensor(step.s))),
    )
    v = torch.stack(seen[:-1])
    log_w = {
        "difference": v,
        "max": v.cummax(0).values.cumsum(0),
        "add": v.cumsum(0).cumsum(0),
        "rt": v.cumsum(0),
    }[potential]
    log_w = torch.cat([log_w, LAM * reward(found.particles.tokens)[None]])
    w = log_w.exp() / log_w.exp().sum(1, keepdim=True)
    assert found.ess[0] == pytest.approx((1 / (w**2).sum(1)).tolist(), abs=1e-10)
    torch.testing.assert_close(found.weights[0], w[-1], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.log_evidence, log_w[-1].exp().mean()[None].log(), rtol=0, atol=1e-12)


def test_18_9_effective_size():
    """18.9: 1 / sum of squares: K of equal weights, 1 of one alone, and whatever the weights' scale."""
    log_w = torch.tensor(
        [[0.0, 0.0, 0.0, 0.0], [5.0, -math.inf, -math.inf, -math.inf], [0.0, 0.0, -math.inf, -math.inf]]
    )
    large = torch.tensor([[1000.5, 1000.5 + math.log(3), -3e4, -math.inf]], dtype=torch.float64)
    log_w = torch.cat([log_w.double(), large])
    sizes = weighing.effective_size(log_w)
    torch.testing.assert_close(sizes, torch.tensor([4.0, 1.0, 2.0, 1.6], dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("weights", [[0.1, 0.2, 0.3, 0.4], [0.0, 0.7, 0.0, 0.3], [0.25] * 4])
def test_systematic_copies_each_as_often_as_its_weight(weights):
    """The mean over u of the copies is K w (between the breaks of u nothing changes), 1e-9; none is off by 1."""
    w = torch.tensor([weights], dtype=torch.float64)
    breaks = torch.cat([torch.zeros(1).double(), (4 * w[0].cumsum(0)) % 1, torch.ones(1).double()]).sort().values
    middles, shares = (breaks[1:] + breaks[:-1]) / 2, breaks.diff()
    copies = torch.zeros(4, dtype=torch.float64)
    for u, share in zip(middles, shares, strict=True):
        if share > 1e-9:
            with patch.object(weighing, "rand", lambda shape, _, u=u: u.expand(shape)):
                found = torch.bincount(weighing.systematic(w, [None])[0], minlength=4)
            assert ((found - 4 * w[0]).abs() < 1).all()
            copies += share * found
    torch.testing.assert_close(copies, 4 * w[0], rtol=0, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------- by draws


def test_18_9_texts_of_the_tilted_law():
    """18.9: 500 texts of 8 particles, all defaults. Z-hat and Z-hat times their law within 5 s.e. of what they estimate
    (ten figures: 6e-6), and the texts picked less than a quarter as far off the target as the sampler's own law."""
    process = processes.masked(3)
    denoiser = ExactDenoiser(process)
    found = guidance.steer(process, denoiser, reward, lam=LAM, particles=8, num=500, length=2, steps=5)
    base = ancestral_law(process, denoiser, 5)
    wanted, z = target(base).flatten(), found.log_evidence.exp()
    at = torch.nn.functional.one_hot(state_number(found.particles.tokens, 3), 9).view(500, 8, 9)
    shares = z[:, None] * (found.weights[..., None] * at).sum(1)
    for values, mean in [(z, wanted.sum()), *zip(shares.T, wanted, strict=True)]:
        assert abs(values.mean() - mean) < 5 * values.std() / len(z) ** 0.5
    p = wanted / wanted.sum()
    counts = torch.bincount(state_number(found.tokens, 3), minlength=9) / len(z)
    assert total_variation(counts, p) < total_variation(base.view(4, 4)[:3, :3].flatten(), p) / 4


def test_vectors_are_steered():
    """Gaussian noise, a chain of three positions: Z-hat of 400 texts of 4 against the mean of exp(2 r) of 3,200 texts
    that ``sample`` draws, within 5 s.e. (6e-7)."""
    chain, process = Chain(4, 3), noise(size=4)
    denoiser = ExactChain(process, chain)

    def of(ids):
        return (ids == 2).double().sum(1)

    options = {"length": 3, "steps": 5, "sampler": "ancestral"}
    plain = of(sampling.sample(process, denoiser, num=3200, seed=5, **options).tokens)
    found = guidance.steer(process, denoiser, of, lam=2.0, particles=4, num=400, threshold=0.8, **options)
    z, each = found.log_evidence.exp(), (2 * plain).exp()
    error = (each.var() / len(each) + z.var() / len(z)).sqrt()
    assert abs(each.mean() - z.mean()) < 5 * error
    assert of(found.tokens).mean() > 1.5 * plain.mean()
    assert sum(min(ess[:-1]) < 3.2 for ess in found.ess) > 50, "too few were resampled to show anything"


def test_drawn_promises_tend_to_the_exact_one():
    """One position of uniform noise: 4,000 draws of p(x_0 | z_s) give the ESS of the exact promise, to 3%."""
    process, p = processes.uniform(3), LAW.sum(1)

    def exact(z, t):
        joint = emissions(process, z, t)[:, 0] * p
        return (joint @ torch.exp(LAM * REWARD.diagonal()) / joint.sum(1)).log() / LAM

    options = {"lam": LAM, "particles": 6, "length": 1, "steps": 4, "threshold": 0.0, "num": 3}
    one = guidance.steer(process, ExactDenoiser(process, p), reward, intermediate=exact, **options)
    other = guidance.steer(process, ExactDenoiser(process, p), reward, draws=4000, **options)
    assert torch.equal(one.tokens, other.tokens)
    assert one.ess == [pytest.approx(ess, rel=0.03) for ess in other.ess]
    assert min(map(min, one.ess)) < 5.5


# ----------------------------------------------------------------------------------------------- one, and each alone


CODES = torch.tensor([[-1.0, 0.2], [0.3, -1.0], [1.0, 0.7]], dtype=torch.float64)
ALONE = {
    "masked": (
        lambda: processes.masked(3),
        ["ancestral", "greedy_tail", "remdm:eta=0.3", "low_confidence", "threshold"],
    ),
    "uniform": (lambda: processes.uniform(3), ["ancestral", "gibbs"]),
    "hybrid": (lambda: processes.hybrid(3), ["ancestral", "psi"]),
    "spindle": (lambda: processes.spindle(torch.tensor([0.5, -0.5, 0.0])), ["ancestral"]),
    "gaussian": (lambda: processes.gaussian(CODES, schedule=GammaSchedule(gamma_min=-6.0)), ["ancestral", "churn"]),
}


class Contextual:
    """A denoiser of some context, of any length and any process."""

    def __init__(self, process, time_conditioned=True) -> None:
        self.process = process
        self.facts = processes.Facts(time_conditioned=time_conditioned, mask_id=process.mask_id)

    def __call__(self, z, t, cond=None):
        level = z.double() if z.dim() == 2 else 3 * z.sum(-1)
        near = level.roll(1, 1) + 2 * level.roll(-1, 1) + torch.arange(level.shape[1])
        time = t.double() if self.facts.time_conditioned else torch.zeros(len(z)).double()
        return torch.sin(near[..., None] * torch.arange(1, self.process.K + 1) + time.view(len(z), -1, 1)).log_softmax(
            -1
        )


def sums(ids):
    return torch.cos(ids.double() * torch.arange(1, ids.shape[1] + 1)).sum(1)


@pytest.mark.parametrize(("name", "sampler"), [(name, one) for name, (_, all_) in ALONE.items() for one in all_])
def test_18_9_one_particle_is_the_sampler(name, sampler):
    """18.9: bit for bit, tokens and log p, resampled always, beside given tokens."""
    process = ALONE[name][0]()
    denoiser = Contextual(process)
    options = {"canvas": torch.tensor([1, 0, 2, 0, 0, 0]), "num": 3, "steps": 5, "sampler": sampler, "seed": 4}
    options["frozen"] = torch.tensor([True, False, True, False, False, False])
    plain = sampling.sample(process, denoiser, **options)
    steered = guidance.steer(process, denoiser, sums, particles=1, threshold=1.0, **options)
    assert torch.equal(plain.tokens, steered.tokens)
    assert torch.equal(plain.logp.nan_to_num(9), steered.samples.logp.nan_to_num(9))
    assert plain.seeds == steered.samples.seeds
    assert plain.cost.of_rows == steered.samples.cost.of_rows


def test_one_particle_of_a_proposal_is_the_proposal():
    process = processes.hybrid(3)
    proposal, base = Contextual(process), Contextual(process, time_conditioned=False)
    options = {"length": 5, "num": 3, "steps": 4}
    steered = guidance.steer(process, proposal, sums, particles=1, base=base, **options)
    assert torch.equal(sampling.sample(process, proposal, **options).tokens, steered.tokens)


NETWORK_K = 11


def network():
    torch.manual_seed(0)
    process = processes.masked(NETWORK_K)
    model = Transformer(TransformerConfig(process.to_dict(), depth=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return process, model.eval()


PROMPTS, LENGTHS = [[1, 2, 3], [4], [5, 6, 7], [2, 2, 2]], [5, 4, 5, 5]
SETTINGS = {
    "ancestral": ("masked", {"sampler": "ancestral", "steps": 12}),
    "stop": ("masked", {"sampler": "ancestral", "steps": 40, "stop": 1, "potential": "max", "threshold": 1.0}),
    "threshold": ("masked", {"sampler": "threshold:tau=0.15", "potential": "add"}),
    "low_confidence": ("masked", {"sampler": "low_confidence", "steps": 3, "temperature": 0.7, "top_k": 5}),
    "remdm": ("masked", {"sampler": "remdm:eta=0.3", "steps": 6, "potential": "rt", "resampling": "multinomial"}),
    "network": ("network", {"sampler": "threshold:tau=0.3", "steps": 5}),
    "uniform": ("uniform", {"sampler": "ancestral", "steps": 4, "every": 2, "threshold": 1.0}),
    "gaussian": ("gaussian", {"sampler": "churn", "steps": 4}),
    "promise": ("masked", {"sampler": "random_order", "intermediate": guess, "pick": "best"}),
    "base": ("masked", {"base": "other", "steps": 9}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_group_is_alone(setting):
    """A batch of n texts is n batches of one, bit for bit: texts, particles, weights, evidence, ESS."""
    name, options = SETTINGS[setting]
    if name == "network":
        process, denoiser = network()
    elif name == "gaussian":
        process = processes.gaussian(CODES.repeat(3, 1)[:8] + torch.arange(8)[:, None] / 9)
        denoiser = Contextual(process)
    else:
        process = getattr(processes, name)(8)
        denoiser = Contextual(process, time_conditioned=name != "masked")
    options = {key: Contextual(process) if value == "other" else value for key, value in options.items()}

    def drawn(rows):
        return guidance.steer(
            process,
            denoiser,
            sums,
            particles=4,
            lam=2.0,
            prompt=[PROMPTS[row] for row in rows],
            length=[LENGTHS[row] for row in rows],
            seeds=[row % 3 for row in rows],
            **options,
        )

    batch, resampled = drawn(range(4)), 0
    for row in range(4):
        alone, width = drawn([row]), len(PROMPTS[row]) + LENGTHS[row]
        assert torch.equal(alone.tokens[0], batch.tokens[row, :width])
        assert torch.equal(alone.particles.tokens, batch.particles.tokens[4 * row : 4 * row + 4, :width])
        assert torch.equal(alone.weights[0], batch.weights[row])
        assert alone.log_evidence[0] == batch.log_evidence[row]
        assert alone.ess[0] == batch.ess[row]
        assert alone.samples.lengths[0] == batch.samples.lengths[row]
        assert alone.samples.cost.of_rows[0] == batch.samples.cost.of_rows[row]
        resampled += any(one < 2 or options.get("threshold") == 1.0 for one in alone.ess[0][:-1])
    assert resampled, "a setting in which nothing is resampled shows little"
    if setting in ("threshold", "stop"):
        assert len({len(ess) for ess in batch.ess}) > 1, "texts that end together show little"
