"""Guidance in use: with our networks, on what it is given, and refused where it does not apply."""

import math
from dataclasses import replace

import pytest
import torch

import redraft as rd
from redraft import guidance
from redraft.processes import Facts
from redraft.processes.base import device_of


def network(process, seed=0, **options):
    torch.manual_seed(seed)
    model = rd.Transformer(rd.TransformerConfig(process=process.to_dict(), depth=1, **options)).eval()
    for weight in model.parameters():  # a fresh network says nothing: its last layer is zero
        torch.nn.init.normal_(weight, std=0.2)
    return model


class Labelled:
    """Says more of token 0 when told so; keeps what it was told."""

    facts = Facts(mask_id=5)

    def __init__(self):
        self.told = []

    def __call__(self, z, t, cond=None):
        self.told.append(cond)
        logits = torch.zeros(*z.shape, 5)
        logits[..., 0] = 0.0 if cond is None else cond["strength"]
        return logits.log_softmax(-1)


def test_one_denoiser_is_told_two_things():
    model = Labelled()
    guided = rd.cfg(model, weight=3.0, null={"strength": -0.5})
    z, t = torch.full((2, 4), 5), torch.full((2,), 0.5)
    odds = guided(z, t, {"strength": 1.0})
    assert model.told == [{"strength": 1.0}, {"strength": -0.5}]
    assert (odds[..., 0] - odds[..., 1]).flatten().tolist() == pytest.approx([3 * 1.0 - 2 * -0.5] * 8, rel=1e-6)


def test_sample_passes_the_condition_to_the_conditional_side():
    model, process = Labelled(), rd.masked(5)
    drawn = rd.sample(process, rd.cfg(model, weight=2.0), length=30, steps=2, cond={"strength": 30.0})
    assert (drawn.tokens == 0).all()
    assert model.told == [{"strength": 30.0}, None] * (drawn.nfe // 2)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
def test_rows_that_did_not_change_are_asked_once_and_counted_in_full(weight):
    """A time-free model of masks: fewer calls than steps, each counted with both of its sides."""
    process = rd.masked(13)
    guided = rd.cfg(network(process), network(process, 1), weight=weight)
    assert guided.facts.forwards == (2 if weight == 2.0 else 1)
    drawn = rd.sample(process, guided, length=3, num=2, steps=64)
    assert drawn.nfe <= 64 * guided.facts.forwards
    assert drawn.nfe % guided.facts.forwards == 0
    assert drawn.positions < 64 * 2 * 3 * guided.facts.forwards / 4


def test_weights_of_both_sides_are_weights_of_the_pair():
    """So a guided denoiser stands where its networks stand, and moves with them."""
    model, process = network(rd.masked(13)), rd.masked(13)
    pair = rd.cfg(model, rd.cfg(rd.unprompted(model), rd.doubting(model, 0.5), weight=2.0), weight=2.0)
    assert {id(weight) for weight in pair.parameters()} == {id(weight) for weight in model.parameters()}
    assert device_of(pair.to("meta")).type == "meta"
    assert process.mask_id == pair.facts.mask_id


def test_guided_denoisers_nest():
    process = rd.masked(13)
    a, b, c = (network(process, seed) for seed in range(3))
    z, t = torch.full((2, 4), 13), torch.full((2,), 0.5)
    inner = rd.cfg(a, b, weight=2.0)
    outer = rd.cfg(inner, c, weight=1.5)
    assert outer.facts.forwards == 3
    expected = (1.5 * (2 * a(z, t) - b(z, t)) - 0.5 * c(z, t)).log_softmax(-1)
    torch.testing.assert_close(outer(z, t), expected, rtol=1e-4, atol=1e-5)


def test_one_question_cannot_be_mixed_with_itself():
    process = rd.masked(13)
    model = network(process)
    with pytest.raises(ValueError, match="nothing to mix"):
        rd.sample(process, rd.cfg(model, weight=1.5), length=4)
    rd.sample(process, rd.cfg(model, weight=1.0), length=4, steps=2)


@pytest.mark.parametrize("changed", [{"posterior": "full"}, {"mask_id": 3}, {"attention": "causal"}])
def test_denoisers_of_different_kinds_are_refused(changed):
    one, other = Labelled(), Labelled()
    other.facts = replace(one.facts, **changed)
    with pytest.raises(ValueError, match=next(iter(changed))):
        rd.cfg(one, other, weight=2.0)


def test_the_time_is_told_if_either_side_reads_it():
    one, other = Labelled(), Labelled()
    other.facts = replace(one.facts, time_conditioned=True, selective=True, scores=True)
    found = rd.cfg(one, other, weight=2.0).facts
    assert (found.time_conditioned, found.selective, found.scores) == (True, False, False)
    assert not rd.cfg(one, other, weight=1.0).facts.time_conditioned


class Echo:
    """Says that all tokens are alike; keeps what it was shown and told."""

    def __init__(self, **facts):
        self.facts, self.seen, self.told = Facts(mask_id=5, **facts), [], []

    def __call__(self, z, t, cond=None):
        self.seen.append(z.tolist())
        self.told.append(cond)
        return torch.zeros(*z.shape, 5).log_softmax(-1)


def test_unprompted_shows_masks_for_what_is_given_and_nothing_else():
    echo = Echo()
    hidden = rd.unprompted(echo)
    assert hidden.facts == replace(echo.facts, given=True)
    given = torch.tensor([[True, False, False], [True, False, True]])
    hidden(torch.tensor([[1, 2, 5], [4, 5, 3]]), torch.full((2,), 0.5), {"given": given})
    assert echo.seen == [[[5, 2, 5], [5, 5, 5]]]


def test_who_hides_must_be_told_what_is_given_and_know_a_mask():
    z, t = torch.tensor([[1, 2, 5]]), torch.ones(1)
    sides = rd.cfg(Echo(), rd.unprompted(Echo()), weight=2.0), rd.cfg(Echo(), rd.doubting(Echo(), 0.5), weight=2.0)
    for one in (rd.unprompted(Echo()), *sides):
        with pytest.raises(ValueError, match="told by sample which tokens are given"):
            one(z, t)
    with pytest.raises(ValueError, match=r"the second of cfg\(denoiser, doubting\)"):
        rd.sample(rd.masked(5), rd.doubting(Echo(), 0.5), length=3, steps=1)
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="share="):
            rd.doubting(Echo(), share)
    unmasked = Echo()
    unmasked.facts = Facts(mask_id=None)
    for method in (rd.unprompted, lambda denoiser: rd.doubting(denoiser, 0.5)):
        with pytest.raises(ValueError, match="knows \\[MASK\\]"):
            method(unmasked)


def test_both_sides_are_told_of_the_canvas_and_one_what_is_wanted():
    one, other = Echo(given=True), Echo()
    z, t, given = torch.tensor([[1, 5]]), torch.ones(1), torch.tensor([[True, False]])
    segments = torch.zeros(1, 2, dtype=torch.long)
    cond = {"strength": 1.0, "segments": segments, "given": given}
    rd.cfg(one, other, weight=2.0, null={"strength": 0.0})(z, t, cond)
    assert one.told == [cond]
    assert other.told == [{"strength": 0.0, "segments": segments}]
    rd.cfg(other, one, weight=2.0)(z, t, {"given": given})
    assert other.told[1:] == [None]
    assert one.told[1:] == [{"given": given}]


def test_vectors_have_no_kernel_to_guide_but_their_tokens_can_be():
    process = rd.gaussian(torch.nn.functional.normalize(torch.randn(5, 3), dim=-1))
    options = {"time_conditioned": True}
    model, other = network(process, **options), network(process, 1, **options)
    for sampler in (guidance.cfg_posteriors(other, 2.0), rd.classifier_guided(lambda z, t: torch.zeros(len(z)))):
        with pytest.raises(ValueError, match="moves vectors"):
            rd.sample(process, model, length=4, steps=2, sampler=sampler)
    drawn = rd.sample(process, rd.cfg(model, other, weight=2.0), length=4, steps=2)
    assert drawn.nfe == 2 * 3


def test_block_models_are_guided_on_the_whole_text_so_far():
    """Two networks of the same weights, mixed, write what the one does with its cache; a hidden prompt changes that."""
    process = rd.masked(13)
    options = {"attention": "block", "block": 2}
    model, copy, other = network(process, **options), network(process, **options), network(process, 1, **options)
    arguments = {"prompt": [3, 5], "length": 6, "num": 4, "steps": 3}
    plain = rd.sample(process, model, **arguments)
    same = rd.sample(process, rd.cfg(model, copy, weight=3.0), **arguments)
    assert torch.equal(same.tokens, plain.tokens)
    hidden = rd.unprompted(copy)
    for changed in (rd.cfg(model, hidden, weight=3.0), rd.cfg(model, other, weight=3.0)):
        assert not torch.equal(rd.sample(process, changed, **arguments).tokens, plain.tokens)


def test_masks_are_not_guided_by_kernels():
    process = rd.masked(13)
    with pytest.raises(ValueError, match="use cfg"):
        rd.sample(process, network(process), length=4, steps=2, sampler=guidance.cfg_posteriors(network(process), 2.0))


def test_kernels_are_mixed_by_sample_only():
    process, z, t = rd.uniform(7), torch.zeros(1, 2, dtype=torch.long), torch.ones(1)
    model = network(process, time_conditioned=True)
    with pytest.raises(ValueError, match=r"redraft\.sample"):
        guidance.cfg_posteriors(model, 2.0)(process, model, z, t, t / 2, rd.samplers.Draw(z.bool(), None))


def test_classifier_mistakes_are_named():
    with pytest.raises(ValueError, match="weight=-1"):
        rd.classifier_guided(lambda z, t: torch.zeros(len(z)), weight=-1)
    process = rd.masked(13)
    impossible = rd.classifier_guided(lambda z, t: torch.full((len(z),), -math.inf))
    with pytest.raises(ValueError, match="probability 0 to every state"):
        rd.sample(process, network(process), length=4, steps=2, sampler=impossible)


@pytest.mark.parametrize("make", [rd.masked, rd.uniform, rd.hybrid])
@pytest.mark.parametrize("first_order", [False, True])
def test_a_classifier_gets_what_it_wants(make, first_order):
    """Our network, guided to token 4 at every position."""
    process = make(7)
    likes = torch.zeros(7 + (process.mask_id is not None))
    likes[4] = 3.0

    def classifier(z, t):
        assert len(z) == len(t)
        return (z @ likes if z.ndim == 3 else likes[z]).sum(1)

    model = network(process, time_conditioned=True)
    plain, guided = (
        rd.sample(process, model, length=6, num=20, steps=24, sampler=sampler).tokens
        for sampler in ("ancestral", rd.classifier_guided(classifier, 3.0, first_order=first_order))
    )
    assert (guided == 4).double().mean() > 0.9 > (plain == 4).double().mean()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_plain_weights_draw_what_the_plain_model_draws(weight):
    """Bit for bit: kernels of weight 1 and 0 are those of one denoiser, and a classifier of weight 0 is not asked."""
    process = rd.uniform(7)
    one, other = network(process, time_conditioned=True), network(process, 1, time_conditioned=True)
    options = {"length": 6, "num": 4, "steps": 5}
    plain = rd.sample(process, one if weight else other, **options)
    mixed = rd.sample(process, one, sampler=guidance.cfg_posteriors(other, weight), **options)
    assert torch.equal(mixed.tokens, plain.tokens)
    assert mixed.nfe == plain.nfe == 5

    def never(z, t):
        raise AssertionError("asked")

    silent = rd.sample(process, one if weight else other, sampler=rd.classifier_guided(never, 0.0), **options)
    assert torch.equal(silent.tokens, plain.tokens)
