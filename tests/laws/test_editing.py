"""Editing by noise (section 18, item 13): a text of the model's law, noised to t* and drawn back, is one of that law.

Exact laws come from running ``sample`` itself for every outcome of its draws; where real draws are compared with one,
the seed is fixed, and the test would reject a correct sampler under a random seed with probability below 1e-6.
"""

import itertools
import math

import pytest
import torch

from redraft import processes, sampling
from redraft.processes import Facts

from .chain import Chain, ExactChain, noise
from .exhaust import after, noised, outcomes, transitions
from .line import CODES, PI, ExactTokens, posterior_tokens, toy
from .oracle import (
    LAW,
    ExactDenoiser,
    chi_square_tail,
    on_states,
    sequences,
    state_counts,
    state_number,
    total_variation,
)
from .tiled import Tiled, drawing, tile

FALSE_ALARM = 1e-6
ONE = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
SCORES = torch.tensor([0.6, -0.8, 0.2])
PROCESSES = {
    "masked": lambda: processes.masked(3),
    "masked_cosine": lambda: processes.masked(3, schedule="cosine"),
    "uniform": lambda: processes.uniform(3),
    "hybrid": lambda: processes.hybrid(3, uniform_share=0.3),
    "spindle": lambda: processes.spindle(SCORES),
    "learned": lambda: processes.learned(SCORES),
    "d3pm_uniform": lambda: processes.d3pm(3, "uniform", 8),
    "d3pm_absorbing": lambda: processes.d3pm(3, "absorbing", 8),
    "d3pm_band": lambda: processes.d3pm(3, "band", 8, width=3),
}
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def exact(process, law):
    full = isinstance(process, processes.PerToken)
    return ExactDenoiser(process, law, "full" if full else "cavity")


def edited(process, law: torch.Tensor, strength: float, together: bool = True, **options) -> torch.Tensor:
    """P(x, what it was edited to), (K^L, V^L): x of ``law``, every outcome of ``sample`` with its probability."""
    texts, process = sequences(3, law.dim()), drawing(process)
    denoiser = exact(process, law)
    joint = torch.zeros(len(texts), process.V ** law.dim(), dtype=torch.float64)
    for rows in [slice(None)] if together else [slice(i, i + 1) for i in range(len(texts))]:
        canvas = texts[rows]

        def run(canvas: torch.Tensor = canvas) -> torch.Tensor:
            return sampling.sample(process, denoiser, canvas=canvas, strength=strength, **options).tokens

        number = torch.arange(len(texts))[rows]
        for result, weight in outcomes(run, len(canvas)):
            joint.index_put_((number, state_number(result, process.V)), weight, accumulate=True)
    return law.flatten()[:, None] * joint


def agreement(joint: torch.Tensor, states: int) -> float:
    """E[share of positions left as they were], of P(x, y)."""
    length = round(math.log(len(joint), 3))
    same = (sequences(3, length)[:, None] == sequences(states, length)).double().mean(-1)
    return (joint * same).sum().item()


# --------------------------------------------------------------------------------------------------- exact laws


@pytest.mark.parametrize("name", PROCESSES)
def test_18_13_an_edited_token_keeps_its_law(name):
    """One token, every process, 2 steps between t* and 0: x ~ p gives y ~ p for every t*, to 1e-9.

    Agreement is 1 at t* = 0, falls strictly, and is that of strangers, sum p^2, at t* = 1. A chain that does not forget
    all by t = 1 (D3PM's uniform and band) is not exact from the prior: there t* = 1 is left to the tests below.
    """
    process = PROCESSES[name]()
    forgets = name not in ("d3pm_uniform", "d3pm_band")
    strengths = STRENGTHS if forgets else STRENGTHS[:-1]
    joints = [edited(process, ONE, strength, steps=2) for strength in strengths]
    for joint in joints:
        torch.testing.assert_close(joint.sum(0)[:3], ONE, rtol=0, atol=1e-9)
        assert joint.sum().item() == pytest.approx(1, abs=1e-12)
    shares = [agreement(joint, process.V) for joint in joints]
    assert shares[0] == 1
    assert all(later < sooner - 1e-3 for sooner, later in itertools.pairwise(shares))
    if forgets:
        assert shares[-1] == pytest.approx((ONE**2).sum().item(), abs=1e-9)


def test_18_13_edited_masked_text_keeps_its_law():
    """Two dependent tokens, one a step by ``first_hitting``, so that the reverse is exact: the law itself, 1e-9."""
    process = processes.masked(3, schedule="cosine")
    strengths = (0.0, 0.4, 1.0)
    joints = [edited(process, LAW, one, together=False, steps=1, sampler="first_hitting") for one in strengths]
    for joint in joints:
        torch.testing.assert_close(joint.sum(0), on_states(process), rtol=0, atol=1e-9)
    shares = [agreement(joint, 4) for joint in joints]
    assert shares[0] == 1
    assert all(later < sooner - 1e-2 for sooner, later in itertools.pairwise(shares))
    strangers = ((LAW.sum(1) ** 2).sum() + (LAW.sum(0) ** 2).sum()).item() / 2
    assert shares[-1] == pytest.approx(strangers, abs=1e-9)


def test_what_is_kept_is_kept_at_the_rate_of_the_noise():
    """A masked text keeps each token with probability alpha, and draws the rest anew: agreement in closed form."""
    process = processes.masked(3, schedule="cosine")
    for strength in STRENGTHS:
        alpha = process.schedule(torch.tensor(strength).double())[0].item()
        expected = alpha + (1 - alpha) * (ONE**2).sum().item()
        assert agreement(edited(process, ONE, strength, steps=3), 4) == pytest.approx(expected, abs=1e-9)


def propagated(process, strength: float, steps: int) -> torch.Tensor:
    """The law of two tokens edited in ``steps`` ancestral steps, by kernels over all states."""
    law = noised(process, strength)
    for i in range(steps, 0, -1):
        t, s = strength * i / steps, strength * (i - 1) / steps
        law = after(law, transitions(sampling.ancestral, process, ExactDenoiser(process), t, s))
    return law


@pytest.mark.parametrize("name", ["masked", "uniform", "hybrid"])
def test_18_13_the_error_of_parallel_steps_falls_with_their_number(name):
    """Two tokens at once are off by the dependence within a step: halved by twice the steps, 1.6 to 2.3 times."""
    process = PROCESSES[name]()
    errors = [total_variation(propagated(process, 0.6, steps), on_states(process)) for steps in (8, 16, 32)]
    assert all(1.6 < coarse / fine < 2.3 for coarse, fine in itertools.pairwise(errors)), errors
    unconditional = total_variation(propagated(process, 1.0, 8), on_states(process))
    assert errors[0] < unconditional


# --------------------------------------------------------------------------------------------------- real draws


def texts_of(law: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.multinomial(law.flatten(), count, replacement=True, generator=torch.Generator().manual_seed(seed))
    return sequences(3, law.dim())[drawn]


@pytest.mark.parametrize("name", ["masked", "uniform", "hybrid"])
def test_sample_edits_by_the_propagated_law(name):
    """10,000 texts edited at t* = 0.6 in 4 steps, against the law of those kernels."""
    process = PROCESSES[name]()
    canvas = tile(texts_of(LAW, 10_000), 50)
    found = sampling.sample(process, Tiled(ExactDenoiser(process), 2), canvas=canvas, strength=0.6, steps=4, seed=3)
    counts = state_counts(found.tokens.reshape(-1, 2), process.V)
    assert chi_square_tail(counts, propagated(process, 0.6, 4)) > FALSE_ALARM


def edited_density(strength: float, steps: int, points: int = 401) -> tuple[torch.Tensor, torch.Tensor]:
    """P(token, z at t = 0), (3, points), of one token edited in ancestral steps, by kernels on a grid; log p there."""
    process = toy()
    z = torch.linspace(-4.5, 4.5, points, dtype=torch.float64)
    times = torch.linspace(strength, 0, steps + 1, dtype=torch.float64)
    alpha, sigma = (scale[:, 0] for scale in process.scales(process.gamma(times[:1])[0]))
    alpha, sigma = (alpha, sigma) if strength < 1 else (0 * alpha, torch.ones(1))  # the prior
    law = torch.exp(-((z - alpha * CODES) ** 2) / (2 * sigma**2))
    law = PI[:, None] * law / law.sum(1, keepdim=True)
    canvas = z[:, None, None]
    for t, s in itertools.pairwise(times):
        now, then = t.expand(points), s.expand(points)
        p0 = posterior_tokens(process, canvas, now, PI).exp()
        mean, variance = (one.reshape(-1, 1) for one in process.posterior(process.mean(p0), canvas, now, then))
        kernel = torch.exp(-((z - mean) ** 2) / (2 * variance))
        law = law @ (kernel / kernel.sum(-1, keepdim=True))
    return law, posterior_tokens(process, canvas, times[-1:].expand(points), PI)[:, 0]


def test_18_13_edited_vectors_keep_the_law_of_a_token():
    """On a grid, no draws: at any t* tokens tend to PI like 1 / N (2 to 6 times as near in 4 N, TV < .005 at 128).

    Agreement falls strictly, and at t* = 1 is that of strangers to .001 (1 / N again).
    """
    shares = []
    for strength in (0.25, 0.5, 0.75, 1.0):
        laws = [law @ logp.exp() for law, logp in (edited_density(strength, steps) for steps in (8, 32, 128))]
        errors = [total_variation(joint.sum(0), PI) for joint in laws]
        assert all(2 < coarse / fine < 6 for coarse, fine in itertools.pairwise(errors)), (strength, errors)
        assert errors[-1] < 0.005, (strength, errors)
        shares.append(laws[-1].diagonal().sum().item())
    assert all(sooner - later > 0.005 for sooner, later in itertools.pairwise([1.0, *shares])), shares
    assert shares[-1] == pytest.approx((PI**2).sum().item(), abs=1e-3)


@pytest.mark.parametrize("kind", ["vp", "ve", "rf"])
def test_sample_edits_vectors_by_the_propagated_law(kind):
    """20,000 tokens edited at t* = 0.6 in 8 steps, read by argmax, against those densities: of y, and of (x, y)."""
    law, logp = edited_density(0.6, 8, 901)
    expected = law @ torch.nn.functional.one_hot(logp.argmax(-1), 3).double()
    canvas = tile(texts_of(PI, 20_000), 20)
    process = toy(kind)
    found = sampling.sample(process, Tiled(ExactTokens(process), 1), canvas=canvas, strength=0.6, steps=8, seed=1)
    counts = torch.bincount((3 * canvas + found.tokens).flatten(), minlength=9).double()
    assert chi_square_tail(counts, expected.flatten()) > FALSE_ALARM
    assert chi_square_tail(counts.reshape(3, 3).sum(0), expected.sum(0)) > FALSE_ALARM


def test_18_13_edited_vectors_keep_the_law_of_a_text():
    """2,000 texts of the Markov chain, edited in 24 steps: unigrams and bigrams within six standard errors + .004."""
    process, chain, rows = noise(), Chain(), 2000
    canvas = chain.sample(rows)
    found = sampling.sample(
        process, Tiled(ExactChain(process, chain), 6), canvas=tile(canvas, 20), strength=0.6, steps=24, seed=2
    )
    ids = found.tokens.reshape(rows, 6)
    assert 0.1 < (ids == canvas).double().mean() < 0.9
    unigrams = torch.nn.functional.one_hot(ids, 13).double().mean(0)
    pairs = torch.nn.functional.one_hot(13 * ids[:, :-1] + ids[:, 1:], 169).double().mean(0).reshape(5, 13, 13)
    for counted, law in ((unigrams, chain.unigrams()), (pairs, chain.bigrams())):
        assert ((counted - law).abs() < 0.004 + 6 * (law * (1 - law) / rows).sqrt()).all()


# ------------------------------------------------------------------------------------------------- both ends, the loop


class Watching:
    """A deterministic denoiser that notes the times it is asked about, and what it is told."""

    def __init__(self, process, **facts) -> None:
        self.process, self.times, self.told = process, list[float](), []
        posterior = "full" if process.vectors or isinstance(process, processes.PerToken) else "cavity"
        self.facts = Facts(**{"posterior": posterior, "time_conditioned": True, "mask_id": process.mask_id, **facts})

    def __call__(self, z, t, cond=None):
        self.times.append(float(t.max()))
        self.told.append(cond)
        level = (z.double() if z.dim() == 2 else 3 * z.sum(-1)) + (t if t.dim() == 2 else t[:, None])
        around = level.roll(1, 1) + 2 * level.roll(-1, 1) + torch.arange(level.shape[1])
        return torch.sin(around[..., None] * torch.arange(1, self.process.K + 1)).log_softmax(-1)


EVERY = [*PROCESSES, "gaussian"]


def make(name: str):
    return toy() if name == "gaussian" else PROCESSES[name]()


@pytest.mark.parametrize("name", EVERY)
def test_18_13_no_strength_changes_nothing_and_full_strength_keeps_nothing(name):
    """t* = 0 is the identity without a call; t* = 1 draws, to the bit, what no text at all would have drawn."""
    process, canvas = make(name), torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    denoiser = Watching(process)
    kept = sampling.sample(process, denoiser, canvas=canvas, strength=0.0, steps=5)
    assert torch.equal(kept.tokens, canvas)
    assert (kept.nfe, kept.positions, denoiser.times) == (0, 0, [])
    redrawn = sampling.sample(process, denoiser, canvas=canvas, strength=1.0, steps=5, seeds=[7, 8])
    free = sampling.sample(process, denoiser, length=4, steps=5, seeds=[7, 8])
    assert torch.equal(redrawn.tokens, free.tokens)


@pytest.mark.parametrize("name", EVERY)
def test_the_steps_are_spent_between_the_strength_and_zero(name):
    process, steps = make(name), []
    denoiser = Watching(process)
    canvas = torch.zeros(1, 40, dtype=torch.long)
    sampling.sample(process, denoiser, canvas=canvas, strength=0.5, steps=4, callback=steps.append)
    assert [(one.t, one.s) for one in steps] == [(0.5, 0.375), (0.375, 0.25), (0.25, 0.125), (0.125, 0.0)][: len(steps)]
    assert denoiser.times[0] == 0.5
    assert steps[0].steps == 4


@pytest.mark.parametrize("name", EVERY)
def test_a_text_is_noised_to_the_time_of_the_first_step(name, monkeypatch):
    process, canvas, calls = make(name), torch.tensor([[0, 1, 2, 0]]), []
    corrupt = process.corrupt
    monkeypatch.setattr(process, "corrupt", lambda x0, t, g=None: calls.append((x0, t)) or corrupt(x0, t, g))
    sampling.sample(process, Watching(process), canvas=canvas, strength=0.5, steps=1)
    assert torch.equal(calls[0][0], canvas)
    assert calls[0][1].tolist() == [0.5]


@pytest.mark.parametrize("name", EVERY)
def test_an_edited_row_does_not_depend_on_the_rows_beside_it(name):
    process = make(name)
    canvas = torch.tensor([[0, 1, 2, 0, 2, 2], [2, 2, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1]])
    batch = sampling.sample(process, Watching(process), canvas=canvas, strength=0.7, steps=4, seed=5)
    assert not torch.equal(batch.tokens, canvas)
    for row, seed in enumerate(batch.seeds):
        alone = sampling.sample(process, Watching(process), canvas=canvas[row], strength=0.7, steps=4, seeds=[seed])
        assert torch.equal(alone.tokens[0], batch.tokens[row])
    several = sampling.sample(process, Watching(process), canvas=canvas[0], num=3, strength=0.7, steps=4, seed=5)
    assert len(several.tokens) == 3
    assert torch.equal(several.tokens[0], batch.tokens[0])


@pytest.mark.parametrize("name", EVERY)
def test_frozen_tokens_are_not_edited(name):
    process, canvas = make(name), torch.tensor([[0, 1, 2, 0, 2, 2]]).expand(8, -1)
    frozen = torch.tensor([[True, False, True, False, False, False]]).expand(8, -1)
    found = sampling.sample(process, Watching(process), canvas=canvas, frozen=frozen, strength=0.8, steps=4)
    assert torch.equal(found.tokens[frozen], canvas[frozen])
    assert not torch.equal(found.tokens, canvas)


def test_a_denoiser_that_conditions_on_itself_begins_with_nothing():
    process = toy()
    denoiser = Watching(process, self_conditioned=True)
    sampling.sample(process, denoiser, canvas=torch.tensor([[0, 1, 2]]), strength=0.5, steps=2)
    assert [bool((cond["guess"] == 0).all()) for cond in denoiser.told] == [True, False, False]


@pytest.mark.parametrize("attention", ["causal", "block"])
def test_a_denoiser_of_one_order_cannot_redraft(attention):
    process = processes.masked(3)
    denoiser = Watching(process, attention=attention, block=2 if attention == "block" else None)
    for strength in (0.0, 0.5):
        with pytest.raises(ValueError, match=f"strength={strength} with a denoiser of {attention} attention"):
            sampling.sample(process, denoiser, canvas=torch.zeros(1, 4, dtype=torch.long), strength=strength)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 1.5}, r"strength=1\.5"),
        ({"strength": math.nan}, "strength=nan"),
        ({"canvas": None, "strength": 0.5}, "pass the ids to redraft as canvas"),
        ({"canvas": torch.tensor([0, 3]), "strength": 0.5}, "canvas ids run from 0 to 3, tokens from 0 to 2"),
        ({"canvas": torch.tensor([0, -1]), "strength": 0.5}, "canvas ids run from -1 to 0"),
        ({"strength": None}, "canvas and frozen go together"),
    ],
    ids=str,
)
def test_what_cannot_be_edited_is_refused(options, words):
    process = processes.masked(3)
    with pytest.raises(ValueError, match=words):
        sampling.sample(process, Watching(process), **{"canvas": torch.tensor([0, 1]), **options})


def test_a_mask_inside_the_vocabulary_is_no_text():
    process = processes.masked(4, mask_id=2)
    with pytest.raises(ValueError, match="a canvas position holds the mask id 2: a text to redraft holds tokens only"):
        sampling.sample(process, Watching(process), canvas=torch.tensor([0, 2]), strength=0.5)


def test_a_canvas_is_ids():
    """A list is one as well; numbers that are no integers are refused."""
    process = processes.uniform(3)
    denoiser = Watching(process)
    with pytest.raises(ValueError, match=r"torch\.float32.*integers"):
        sampling.sample(process, denoiser, canvas=torch.tensor([0.0, 1.0]), strength=0.0)
    drawn = sampling.sample(process, denoiser, canvas=[0, 1], strength=0.0)
    assert drawn.tokens.tolist() == [[0, 1]]
