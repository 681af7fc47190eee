"""Steering: every option changes an outcome, what it costs is counted, and what does not fit is refused."""

import math
from itertools import pairwise

import pytest
import torch

import redraft as rd
from redraft import guidance, processes
from redraft.guidance import Population

MASKED = processes.masked(6)


class Denoiser:
    """Something of a context; counts the rows it was asked about."""

    def __init__(self, process=MASKED, *, time_conditioned=False, shift=0.0, **facts) -> None:
        self.facts = processes.Facts(time_conditioned=time_conditioned, mask_id=process.mask_id, **facts)
        self.K, self.shift, self.rows, self.labels = process.K, shift, [], []

    def __call__(self, z, t, cond=None):
        self.rows.append(len(z))
        self.labels.append(None if cond is None else cond["labels"].tolist())
        near = z.roll(1, 1) + 2 * z.roll(-1, 1) + torch.arange(z.shape[1])
        label = 0 if cond is None else cond["labels"].view(-1, 1, 1)
        return torch.sin(near[..., None] * torch.arange(1, self.K + 1) + self.shift + label).log_softmax(-1)


def zeros(ids):
    """How many zeros a text has."""
    return (ids == 0).sum(1)


def steer(reward=zeros, denoiser=None, process=MASKED, **options) -> Population:
    length = None if "canvas" in options else 5
    options = {"length": length, "num": 3, "steps": 6, "particles": 4, "lam": 1.5, "seed": 1, **options}
    return rd.steer(process, denoiser or Denoiser(process), reward, **options)


def test_what_comes_back():
    found = steer(lambda ids: zeros(ids).double() / 2, prompt=[1, 2])
    assert found.tokens.shape == found.samples.tokens.shape == (3, 7)
    assert found.particles.tokens.shape == (12, 7)
    assert found.weights.shape == found.rewards.shape == (3, 4)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(3, dtype=torch.float64))
    whole = found.particles.tokens.view(3, 4, 7)
    assert torch.equal(found.tokens, whole[range(3), found.chosen])
    assert torch.equal(found.rewards, (whole == 0).sum(2).double() / 2)
    assert bool((found.tokens[:, :2] == torch.tensor([1, 2])).all())
    assert len(found.ess) == 3
    assert all(1 <= one <= 4 + 1e-9 for ess in found.ess for one in ess)
    assert found.samples.cost.nfe == found.particles.cost.nfe
    assert len(found.samples.cost.of_rows) == len(found.samples.seeds) == len(found.samples.lengths) == 3
    assert sum(found.samples.cost.of_rows) == sum(found.particles.cost.of_rows)
    assert found.rewarded > 0
    again = rd.steer(MASKED, Denoiser(), lambda ids: zeros(ids).double() / 2, prompt=[1, 2], length=5, steps=6,
                     particles=4, lam=1.5, seeds=[found.samples.seeds[1]])  # fmt: skip
    assert torch.equal(again.tokens[0], found.tokens[1])


def test_defaults_are_enough():
    found = rd.steer(MASKED, Denoiser(), zeros)
    assert found.tokens.shape == (1, 64)
    assert found.particles.tokens.shape == (8, 64)


OPTIONS = {
    "particles": 5,
    "lam": 0.2,
    "potential": "max",
    "intermediate": "none",
    "draws": 1,
    "every": 2,
    "threshold": 1.0,
    "resampling": "multinomial",
    "seed": 2,
    "temperature": 0.5,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_matters(option):
    plain, other = steer(threshold=0.8, every=1), steer(**{"threshold": 0.8, option: OPTIONS[option]})
    assert plain.log_evidence.tolist() != other.log_evidence.tolist()
    assert plain.ess != other.ess


@pytest.mark.parametrize("potential", ["difference", "max", "add", "rt"])
def test_potentials_differ(potential):
    found = {name: steer(potential=name).ess for name in guidance.particles.POTENTIALS}
    assert sum(found[potential] == other for other in found.values()) == 1


@pytest.mark.parametrize(
    ("potential", "expected"), [("max", [3.0, 3.0]), ("add", [5.0, 4.0]), ("difference", [-1, -2])]
)
def test_who_goes_on_takes_its_past_along(potential, expected):
    """Both particles go on from the second, whose rewards were 3; then 2 and 1: the potentials by their definition."""
    particles, one = guidance.particles.Particles.fresh(1, 2, potential), torch.tensor([0])
    seen = torch.ones(1, 2, dtype=torch.bool)
    particles.weigh(one, torch.tensor([[7.0, 3.0]], dtype=torch.float64), seen)
    particles.resample(one, torch.tensor([[1, 1]]))
    particles.weigh(one, torch.tensor([[2.0, 1.0]], dtype=torch.float64), seen)
    assert particles.log_w.tolist() == [expected]
    particles.weigh(one, torch.tensor([[9.0, 9.0]], dtype=torch.float64), ~seen)
    assert particles.log_w.tolist() == [expected]


def test_the_best_is_picked_where_asked():
    drawn, best = steer(num=8, lam=0.1), steer(num=8, lam=0.1, pick="best")
    assert torch.equal(drawn.particles.tokens, best.particles.tokens)
    assert torch.equal(best.rewards[range(8), best.chosen], best.rewards.amax(1))
    assert not torch.equal(drawn.chosen, best.chosen)
    barred = steer(lambda ids: torch.where(ids[:, 0] == ids[:, 0].max(), -math.inf, zeros(ids)), pick="best", num=6)
    assert bool(torch.isfinite(barred.rewards[range(6), barred.chosen]).all())


def test_a_reward_is_sought():
    assert zeros(steer(num=20, lam=3.0).tokens).sum() > 1.5 * zeros(steer(num=20, lam=0.0).tokens).sum()


def test_what_must_not_be_is_not():
    """-inf at any lam, 0 too: no text that has weight holds a 3, and the evidence is the share of those without."""
    found = steer(lambda ids: torch.where((ids == 3).any(1), -math.inf, 0.0), lam=0.0, num=40, intermediate="none",
                  particles=16)  # fmt: skip
    holds = (found.particles.tokens == 3).any(1).view(40, 16)
    assert not bool((found.tokens == 3).any())
    assert bool(holds.any())
    torch.testing.assert_close(found.log_evidence.exp(), 1 - holds.double().mean(1))


def test_rows_of_many_shapes_are_shown_whole():
    """Prompts and lengths of their own: the reward sees each text as long as it is, given tokens and no fill."""
    seen = set()

    def reward(ids):
        assert int(ids.max()) < 6
        seen.update((len(row), tuple(row[:1].tolist())) for row in ids)
        return ids.double().mean(1)

    steer(reward, prompt=[[5, 5, 5], [4]], length=[2, 6], num=1)
    assert seen == {(5, (5,)), (7, (4,))}


@pytest.mark.parametrize("process", [processes.uniform(6), processes.hybrid(6), processes.d3pm(6, "gaussian", 6)])
def test_drawn_texts_are_clean(process):
    def reward(ids):
        assert 0 <= int(ids.min()) <= int(ids.max()) < 6
        return zeros(ids)

    found, plain = (steer(reward, Denoiser(process), process, prompt=[1], lam=lam, num=20) for lam in (2.0, 0.0))
    assert bool((found.tokens[:, 0] == 1).all())
    assert zeros(found.tokens).sum() > 1.3 * zeros(plain.tokens).sum()


def test_copies_are_asked_about_once():
    asked = []

    def reward(ids):
        assert len(ids.unique(dim=0)) == len(ids)
        asked.append(len(ids))
        return zeros(ids)

    assert steer(reward).rewarded == sum(asked)
    assert steer(intermediate="none").rewarded <= 12


def test_a_promise_sees_canvas_and_time():
    seen = []

    def promise(z, t):
        seen.append((z.shape, t.unique().tolist()))
        return -(z == 6).sum(1)

    steer(intermediate=promise, steps=4, denoiser=Denoiser(time_conditioned=True), num=1)
    assert seen == [((4, 5), [0.75]), ((4, 5), [0.5]), ((4, 5), [0.25])]
    seen.clear()
    steer(intermediate=promise, steps=6, every=3, denoiser=Denoiser(time_conditioned=True), num=1)
    assert seen == [((4, 5), [0.5])]


def test_draws_that_all_fail_count_as_half_a_draw():
    """Two draws a particle, wanted or not: weights 1, 1/2, or 1/4 for none, but as before where all of a group fail."""
    steps = []

    def reward(ids):
        return torch.where((ids.sum(1) % 7 > 2) & (len(steps) < 2), -math.inf, 0.0)  # in the end all is well

    options = {"particles": 2, "draws": 2, "threshold": 0.0, "num": 40, "steps": 2, "callback": steps.append}
    found = steer(reward, **options)
    sizes = {round(ess[0], 9) for ess in found.ess}
    assert sizes == {2.0, 1.8, round(1.25**2 / (1 + 1 / 16), 9)}


def test_drawn_texts_are_as_the_sampler_draws_them():
    """At temperature 0 all draws are alike; and a particle of which a step says nothing keeps its weight."""
    one, many = (steer(temperature=0.0, draws=draws, threshold=0.0) for draws in (1, 6))
    assert one.ess == [pytest.approx(ess, abs=1e-9) for ess in many.ess]
    assert min(map(min, one.ess)) < 3.9
    slow = steer(sampler="confidence", steps=24, threshold=0.0, process=processes.masked(6, schedule="cosine"))
    assert any(before == after for ess in slow.ess for before, after in pairwise(ess))


def test_a_promise_of_nothing_ends_a_particle():
    """What a promise gives up has no weight at the end, though its text is rewarded; nor any ancestor's place."""
    for threshold in (0.0, 1.0):
        seen = []
        found = steer(
            intermediate=lambda z, t: torch.where(z[:, 0] == 2, -math.inf, 0.0),
            steps=12,
            num=8,
            threshold=threshold,
            callback=lambda step, seen=seen: seen.append(step.z[:, 0] == 2),
        )
        given_up = seen[-2]  # after the last step nothing is promised
        assert bool((found.weights.view(-1)[given_up] == 0).all()) or threshold == 1
        assert bool(given_up.any()) == (threshold == 0) or int(given_up.sum()) < 4


def test_the_best_has_some_weight():
    """What a promise gave up is not picked, however high its reward."""
    gone = []
    found = steer(
        lambda ids: (ids[:, 0] == 2).double(),
        intermediate=lambda z, t: torch.where(z[:, 0] == 2, -math.inf, 0.0),
        steps=12,
        num=8,
        threshold=0.0,
        pick="best",
        callback=lambda step: gone.append(step.z[:, 0] == 2),
    )
    rows = torch.arange(8) * 4 + found.chosen
    assert bool(gone[-2].any())
    assert not bool(gone[-2][rows].any())


def test_a_copy_is_not_asked_about_again():
    """A denoiser that reads no time is asked about a row once it has changed, not because it has moved."""
    found = steer(intermediate=lambda z, t: t, threshold=1.0, resampling="multinomial", steps=60).particles
    assert found.cost.nfe > 5
    assert sum(found.cost.of_rows) <= 12 + found.cost.written


def test_a_base_is_counted():
    """Under masks the base is asked about the rows that a step has changed; under other noise about all."""
    for process, most in ((MASKED, 12 * 5), (processes.uniform(6), 12 * 9)):
        proposal, base = Denoiser(process), Denoiser(process, shift=0.4)
        found = steer(zeros, proposal, process, base=base, steps=9)
        assert found.particles.nfe == len(proposal.rows) + len(base.rows)
        assert sum(found.particles.cost.of_rows) == sum(proposal.rows) + sum(base.rows)
        assert 12 < sum(base.rows) <= most
        assert sum(base.rows) == most or process is MASKED
        plain = steer(zeros, Denoiser(process), process, steps=9)
        assert plain.log_evidence.tolist() != found.log_evidence.tolist()


def test_a_base_like_the_proposal_changes_nothing():
    for process in (MASKED, processes.hybrid(6), processes.spindle(torch.arange(6) / 6)):
        one, other = (steer(zeros, Denoiser(process), process, base=base, prompt=[2])
                      for base in (None, Denoiser(process)))  # fmt: skip
        assert torch.equal(one.particles.tokens, other.particles.tokens)
        torch.testing.assert_close(one.log_evidence, other.log_evidence, rtol=0, atol=1e-9)


def test_every_particle_is_told_what_its_text_is():
    denoiser = Denoiser(time_conditioned=True)
    steer(denoiser=denoiser, cond={"labels": torch.tensor([0, 3, 1])})
    assert denoiser.labels[0] == [0] * 4 + [3] * 4 + [1] * 4


def test_a_callback_looks_on():
    steps = []
    found = steer(callback=lambda step: steps.append((step.index, len(step.z))))
    assert steps[0] == (0, 12)
    assert torch.equal(found.tokens, steer().tokens)
    with pytest.raises(ValueError, match="may only look"):
        steer(callback=lambda step: step.z)


def test_a_text_of_any_strength():
    """A text that is redrafted; at strength 0 it is weighed as it stands."""
    text = torch.tensor([1, 2, 0, 0, 3])
    found = steer(canvas=text, strength=0.0, num=1)
    assert torch.equal(found.tokens[0], text)
    assert found.log_evidence.item() == pytest.approx(3.0, abs=1e-12)
    assert steer(canvas=text, strength=0.7, num=2).tokens.shape == (2, 5)


REFUSED = {
    "particles=0": {"particles": 0},
    "draws=0": {"draws": 0},
    "every=0": {"every": 0},
    "lam=-1": {"lam": -1.0},
    "lam=nan": {"lam": math.nan},
    "threshold=1.5": {"threshold": 1.5},
    "unknown potential 'maximum'; did you mean 'max'": {"potential": "maximum"},
    "unknown resampling 'systemic'; did you mean 'systematic'": {"resampling": "systemic"},
    "unknown pick 'beste'; did you mean 'best'": {"pick": "beste"},
    "unknown intermediate reward 'draw'; did you mean 'draws'": {"intermediate": "draw"},
    "written in blocks": {"block": 2},
    "asks only about what it writes": {"sampler": "random_order"},
    "1 seeds for 3": {"seeds": [1], "canvas": torch.zeros(3, 5).long(), "frozen": torch.zeros(3, 5).bool()},
    "only steps of 'ancestral'": {"base": Denoiser(), "sampler": "low_confidence"},
    "top_p=0.9": {"base": Denoiser(), "top_p": 0.9},
    "temperature=0": {"base": Denoiser(), "temperature": 0.0},
    "top_k=2": {"base": Denoiser(), "top_k": 2},
}


@pytest.mark.parametrize("message", REFUSED)
def test_misfits_are_refused(message):
    with pytest.raises(ValueError, match=message):
        steer(**REFUSED[message])


def test_a_base_needs_tokens():
    process = processes.gaussian(torch.eye(6, dtype=torch.float64))
    with pytest.raises(ValueError, match="steer with a base acts on a kernel over tokens"):
        steer(zeros, Denoiser(process), process, base=Denoiser(process))


REWARDS = {
    "returned nan for text": lambda ids: torch.full((len(ids),), torch.nan),
    "returned inf for text": lambda ids: torch.full((len(ids),), torch.inf),
    r"returned shape \(\) for": lambda ids: torch.tensor(1.0),
    r"return \(\d+,\), a number each": lambda ids: torch.ones(len(ids), 1),
    "returned a NoneType": lambda ids: None,
    "returned a list": lambda ids: ["good"] * len(ids),
}


@pytest.mark.parametrize("message", REWARDS)
def test_rewards_are_looked_over(message):
    with pytest.raises(ValueError, match=f"the reward .*{message}" if "return " not in message else message):
        steer(REWARDS[message])
    with pytest.raises(ValueError, match="the intermediate reward"):
        steer(intermediate=lambda z, t: REWARDS[message](z))


def test_rewards_may_be_lists_or_of_another_dtype():
    assert torch.equal(steer(lambda ids: zeros(ids).tolist()).weights, steer().weights)
    assert torch.equal(steer(lambda ids: zeros(ids).float().requires_grad_()).weights, steer().weights)


def test_a_text_that_is_lost_is_named():
    """All particles at weight 0: by the text's number, and the step if a promise gave them up."""
    with pytest.raises(ValueError, match="4 particles of text 0 have weight 0 at the end"):
        steer(lambda ids: torch.full((len(ids),), -math.inf))
    with pytest.raises(ValueError, match="text 1 have weight 0 at the end"):
        steer(lambda ids: torch.where(ids[:, 0] == 2, -math.inf, 0.0), prompt=[[1], [2], [3]], length=4, num=1)
    with pytest.raises(ValueError, match="text 0 have weight 0 after step 3 of 6"):
        steer(intermediate=lambda z, t: torch.where(t < 0.6, -math.inf, 0.0), steps=6)
