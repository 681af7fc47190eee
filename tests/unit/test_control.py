"""Control of Gaussian models in use: with our networks, row by row, on what it is given, and refused where it must."""

import math
from dataclasses import replace

import pytest
import torch

import redraft as rd
from redraft import guidance
from redraft.evaluation import ode
from redraft.processes import Facts

K, D, L = 7, 4, 5


def noise(**options):
    codebook = torch.nn.functional.normalize(torch.randn(K, D, generator=torch.Generator().manual_seed(0)), dim=-1)
    return rd.gaussian(codebook, **options)


def network(process, seed=0, **options):
    torch.manual_seed(seed)
    config = rd.TransformerConfig(process=process.to_dict(), depth=1, time_conditioned=True, **options)
    model = rd.Transformer(config, {"codebook": process.table}).eval()
    for name, weight in model.named_parameters():  # a fresh network says nothing: its last layer is zero
        if name != "codebook":
            torch.nn.init.normal_(weight, std=0.2)
    return model


def wants(token, process):
    """log p(every position has ``token``) under noise alone: an unlearned classifier of noised vectors."""
    return lambda z, t: process.output_prior(z, t).log_softmax(-1)[..., token].sum(1)


class Even:
    """The exact denoiser of tokens drawn evenly and independently: it names them, or says the mean of their vectors."""

    def __init__(self, process, vectors=False):
        self.process, self.facts = process, Facts(posterior="full", time_conditioned=True, vectors=vectors)

    def __call__(self, z, t, cond=None, vectors=False):
        logp = self.process.output_prior(z, t).log_softmax(-1)
        return self.process.mean(logp.exp()) if vectors else logp


@pytest.fixture(params=[False, True], ids=["names tokens", "says vectors"])
def even(request):
    return Even(noise(), request.param)


def share(tokens, wanted):
    return (tokens == wanted).double().mean().item()


def refuses(z, t):
    raise AssertionError("asked")


MODELS = {
    "tokens": {},
    "vectors": {"head": "x0"},
    "guesses": {"self_conditioned": True},
    "guessing_vectors": {"head": "v", "self_conditioned": True},
}


@pytest.fixture(params=MODELS)
def model(request):
    return network(noise(), **MODELS[request.param])


def draw(process, denoiser, **options):
    length = {} if "canvas" in options else {"length": L}
    return rd.sample(process, denoiser, **{**length, "num": 3, "steps": 4, **options})


# ------------------------------------------------------------------------------------------------ guided denoisers


def guided(model, process, weight=2.0):
    return (
        rd.gradient_guided(model, process, wants(2, process), weight),
        rd.token_guided(model, process, guidance.token_everywhere(2), weight),
    )


def test_weight_zero_is_the_denoiser_bit_for_bit_and_asks_nothing(model):
    process = noise()
    plain = draw(process, model)
    z, t = process.prior((3, L), torch.Generator().manual_seed(0)), torch.full((3,), 0.5)
    for weight in (0.0, lambda t: 0 * t):
        for one in (
            rd.gradient_guided(model, process, refuses, weight),
            rd.token_guided(model, process, lambda logp: refuses(logp, None), weight),
        ):
            assert torch.equal(one(z, t), model(z, t))
            expected = guidance.clean_vectors(model, process, z, t, None)
            assert torch.equal(
                one(z, t, vectors=True) if callable(weight) or model.facts.vectors else expected, expected
            )
            if not callable(weight):
                assert one.facts == replace(model.facts, selective=False, scores=False, caches=False)
                assert torch.equal(draw(process, one).tokens, plain.tokens)


def test_guided_denoisers_declare_what_they_are_made_of(model):
    process = noise()
    for one in guided(model, process):
        assert one.facts == replace(model.facts, vectors=True, selective=False, scores=False, caches=False)
        assert draw(process, one).nfe == 5


def test_guided_denoisers_get_their_way(even):
    process = noise()
    assert share(draw(process, even, num=40).tokens, 2) < 0.25
    for one in guided(even, process):
        assert share(draw(process, one, num=40, steps=20).tokens, 2) > 0.9


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "heun", "churn:order=1", "euler:clamp=true"])
def test_a_row_does_not_depend_on_those_beside_it(model, sampler):
    process = noise()
    for one in guided(model, process):
        whole = draw(process, one, seeds=[5, 6, 7], sampler=sampler)
        alone = draw(process, one, seeds=[6], num=1, sampler=sampler)
        assert torch.equal(whole.tokens[1:2], alone.tokens)
    z, t = process.prior((3, L), torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.5, 0.9])
    for one in guided(model, process, lambda t: 3 * t):
        whole = one(z, t, vectors=True)
        torch.testing.assert_close(whole[1:2], one(z[1:2], t[1:2], vectors=True), rtol=1e-5, atol=1e-6)


def test_the_network_learns_nothing_from_being_guided(model):
    process = noise()
    for one in guided(model, process):
        draw(process, one)
    assert all(weight.grad is None for weight in model.parameters())


def test_the_condition_and_the_guess_reach_the_denoiser():
    process, told = noise(), []

    class Told:
        facts = Facts(posterior="full", self_conditioned=True)

        def __call__(self, z, t, cond=None):
            told.append(cond)
            return process.output_prior(z, t).log_softmax(-1)

    for one in guided(Told(), process):
        told.clear()
        draw(process, one, cond={"labels": 3}, num=1)
        assert [set(cond) for cond in told] == [{"labels", "guess"}] * 5
        assert told[0]["guess"].abs().max() == 0 < told[1]["guess"].abs().max()


@pytest.mark.parametrize("cond", [torch.tensor([0, 1, 2]), 0], ids=["tensor", "zero"])
def test_a_condition_of_any_kind_reaches_a_denoiser_that_takes_it(cond):
    process, heard = noise(), []

    class Labelled:
        facts = Facts(posterior="full")

        def __call__(self, z, t, cond=None):
            heard.append(cond)
            return process.output_prior(z, t).log_softmax(-1)

    given = torch.tensor([True] + [False] * (L - 1))
    told = {"canvas": torch.zeros(L, dtype=torch.long), "frozen": given, "given": "told"}
    for one in (*guided(Labelled(), process), rd.cfg(Labelled(), weight=1.0)):
        for options in ({}, told):
            draw(process, one, cond=cond, **options)
    assert len(heard) == 30
    assert all(one is cond for one in heard)


@pytest.mark.parametrize("cond", [torch.tensor([0, 1, 2]), 0], ids=["tensor", "zero"])
def test_only_a_mapping_can_carry_a_guess(cond):
    process = noise()
    model = network(process, self_conditioned=True)
    for one in (model, *guided(model, process), rd.cfg(model, network(process, 1), weight=2.0)):
        with pytest.raises(ValueError, match="mapping"):
            draw(process, one, cond=cond)
    z, t = process.prior((3, L), torch.Generator().manual_seed(0)), torch.full((3,), 0.5)
    mixed = rd.cfg(network(process), model, weight=2.0, null=cond)
    with pytest.raises(ValueError, match="mapping"):
        mixed(z, t, {"guess": torch.zeros_like(z)})


def test_a_weight_of_each_row_where_tokens_have_times_of_their_own():
    """A function of t is given (B,), each row's latest time, also where given tokens stand at a time of their own."""
    process = noise()
    model = network(process)
    for rows, length in ((3, 3), (3, 4)):
        z = process.prior((rows, length), torch.Generator().manual_seed(0))
        latest = torch.tensor([0.2, 0.5, 0.9])
        t = latest[:, None].repeat(1, length)
        t[:, 0] = 0.0
        asked = []

        def weight(t, asked=asked):
            asked.append(t)
            return 3 * t

        for one, row_of in (
            (guided(model, process, weight), None),
            *((guided(model, process, 3 * u), i) for i, u in enumerate(latest.tolist())),
        ):
            if row_of is None:
                whole = [part(z, t, vectors=True) for part in one]
            else:
                for found, part in zip(whole, one, strict=True):
                    torch.testing.assert_close(found[row_of], part(z, t, vectors=True)[row_of])
        assert all(torch.equal(one, latest) for one in asked)
    draw(process, guided(model, process, weight)[0], prompt=[1, 2], length=1, given="told")


def test_a_second_derivative_passes_a_network():
    """Attention on its fast path has none: it is asked the plain way where the guided answer is differentiated."""
    process = noise()
    model = network(process)
    classifier = guidance.NoisyClassifier(process, 3)
    for weight in classifier.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    z, t = process.prior((2, L), torch.Generator().manual_seed(0)), torch.full((2,), 0.5)
    by_classifier = rd.gradient_guided(model, process, guidance.log_likelihood(classifier, 1))
    for one in (by_classifier, rd.token_guided(model, process, guidance.token_at(0, 1))):
        at, direction = z.clone().requires_grad_(), torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
        answer = one(at, t, vectors=True)
        torch.testing.assert_close(answer.detach(), one(z, t, vectors=True), rtol=1e-4, atol=1e-5)
        weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
        (found,) = torch.autograd.grad((answer * weights).sum(), at)
        ahead, behind = ((one(z + h * direction, t, vectors=True) * weights).sum() for h in (1e-2, -1e-2))
        assert (found * direction).sum().item() == pytest.approx(((ahead - behind) / 2e-2).item(), rel=2e-2, abs=1e-2)
        bound = ode.bound(one, process, {"ids": torch.zeros(2, L, dtype=torch.long)}, z, steps=1)
        assert torch.isfinite(bound).all()
    draw(process, by_classifier, sampler=guidance.plug_and_play(guidance.ends_at(process, 3, 4), until=0.9))


def test_inference_mode_allows_no_gradient_and_says_so():
    process = noise()
    model = network(process)
    z, t = process.prior((2, L), torch.Generator().manual_seed(0)), torch.full((2,), 0.5)
    control = guidance.plug_and_play(guidance.unlikely(wants(2, process)))
    batch = {"ids": torch.zeros(2, L, dtype=torch.long)}
    asking = [
        *(lambda one=one: one(z, t, vectors=True) for one in guided(model, process)),
        lambda: draw(process, model, sampler=control),
        lambda: ode.bound(model, process, batch, z, steps=1),
        lambda: guidance.first_order_gain(lambda rows, t: rows.sum((1, 2)), torch.zeros(2, L, dtype=torch.long), t, K),
    ]
    for ask in asking:
        with torch.inference_mode(), pytest.raises(ValueError, match=r"inference_mode.*torch\.no_grad"):
            ask()
    with torch.inference_mode():  # where no gradient is asked, there is nothing to refuse
        draw(process, guided(model, process, 0.0)[0])


def test_guidance_nests_around_tokens():
    process = noise()
    model = network(process)
    inner = rd.token_guided(model, process, guidance.token_at(0, 1))
    outer = rd.gradient_guided(inner, process, wants(2, process))
    z, t = process.prior((3, L), torch.Generator().manual_seed(0)), torch.full((3,), 0.5)
    plain = guidance.clean_vectors(model, process, z, t, None)
    parts = inner, rd.gradient_guided(model, process, wants(2, process))
    both = plain + sum(part(z, t, vectors=True) - plain for part in parts)
    torch.testing.assert_close(outer(z, t, vectors=True), both, rtol=1e-4, atol=1e-4)
    mixed = rd.cfg(outer, model, weight=2.0, process=process)
    assert (mixed.facts.forwards, mixed.space) == (2, "vectors")
    torch.testing.assert_close(mixed(z, t, vectors=True), 2 * both - plain, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="steered denoiser"):
        rd.token_guided(outer, process, guidance.token_at(0, 1))


def test_mistakes_of_guided_denoisers_are_named():
    process = noise()
    model = network(process)
    z, t = process.prior((3, L), torch.Generator().manual_seed(0)), torch.full((3,), 0.5)
    for weight in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="weight="):
            rd.gradient_guided(model, process, refuses, weight)
        with pytest.raises(ValueError, match="weight="):
            rd.gradient_guided(model, process, refuses, lambda t, weight=weight: weight)(z, t, vectors=True)
    with pytest.raises(ValueError, match="masked noise changes tokens"):
        rd.gradient_guided(model, rd.masked(K), refuses)
    with pytest.raises(ValueError, match="without constraints"):
        rd.token_guided(model, process, [])
    for log_likelihood, named in (
        (lambda z, t: z.sum(-1), "one per row"),
        (lambda z, t: z.sum((1, 2)) - math.inf, "no finite gradient"),
        (lambda z, t: (z[:, 0, 0] * 0).sqrt(), "row 0"),
    ):
        with pytest.raises(ValueError, match=named):
            rd.gradient_guided(model, process, log_likelihood)(z, t, vectors=True)
    for constraint in (guidance.token_at(L, 1), guidance.token_at(-L - 1, 1)):
        with pytest.raises(ValueError, match=f"texts of {L}"):
            rd.token_guided(model, process, constraint)(z, t, vectors=True)
    for tokens in ((), (K,), (-1,), (1, 1)):
        with pytest.raises(ValueError, match="different ids"):
            rd.token_guided(model, process, guidance.token_anywhere(*tokens))(z, t, vectors=True)


# ----------------------------------------------------------------------------------------------------------- cfg


def test_cfg_of_vectors_is_linear_in_what_both_say():
    process = noise()
    z, t = process.prior((3, L), torch.Generator().manual_seed(0)), torch.full((3,), 0.5)
    for options in ({}, {"head": "x0"}):
        sides = network(process, **options), network(process, 1, **options)
        x, y = (guidance.clean_vectors(side, process, z, t, None) for side in sides)
        mixed = rd.cfg(*sides, weight=3.0, space="vectors", process=process)
        assert mixed.facts.vectors
        torch.testing.assert_close(mixed(z, t, vectors=True), 3 * x - 2 * y)
        assert draw(process, mixed).nfe == 2 * 5
    by_tokens = rd.cfg(network(process), network(process, 1), weight=3.0)
    assert (by_tokens.space, by_tokens.facts.vectors) == ("tokens", False)


def test_both_sides_of_cfg_are_told_the_guess_and_one_question_is_still_one():
    process = noise()
    model, other = (network(process, seed, self_conditioned=True) for seed in (0, 1))
    z, t = process.prior((2, L), torch.Generator().manual_seed(0)), torch.full((2,), 0.5)
    guess = {"guess": torch.randn(2, L, D)}
    mixed = rd.cfg(model, other, weight=2.0)
    expected = guidance.mix(model(z, t, guess), other(z, t, guess), 2.0)
    torch.testing.assert_close(mixed(z, t, guess), expected)
    assert not torch.allclose(expected, guidance.mix(model(z, t, guess), other(z, t), 2.0))
    without = rd.cfg(network(process, 2), other, weight=2.0)
    assert without.facts.self_conditioned
    assert torch.isfinite(without(z, t, guess)).all()
    assert draw(process, without).nfe == 2 * 5
    with pytest.raises(ValueError, match="nothing to mix"):
        draw(process, rd.cfg(model, weight=2.0))


def test_mistakes_of_cfg_among_vectors_are_named():
    process = noise()
    tokens, vectors = network(process), network(process, head="x0")
    with pytest.raises(ValueError, match="did you mean 'vectors'"):
        rd.cfg(tokens, weight=2.0, space="vector")
    with pytest.raises(ValueError, match="pass process="):
        rd.cfg(tokens, weight=2.0, space="vectors")
    with pytest.raises(ValueError, match="pass process="):
        rd.cfg(tokens, vectors, weight=2.0)
    with pytest.raises(ValueError, match="by rounding"):
        rd.cfg(vectors, weight=2.0, space="tokens")
    with pytest.raises(ValueError, match="masked noise"):
        rd.cfg(tokens, weight=2.0, space="vectors", process=rd.masked(K))


# ----------------------------------------------------------------------------------------------- plug-and-play control


def test_updates_are_those_of_adagrad_made_anew():
    """x - lr sign(grad J) is one step of a fresh Adagrad, three times over; 1e-6 of float64 coordinates."""
    process = noise()
    model = network(process).double()
    toward = wants(2, process)
    z = process.prior((3, L), torch.Generator().manual_seed(0))
    t, s = torch.full((3,), 0.5, dtype=torch.float64), torch.full((3,), 0.4, dtype=torch.float64)
    step = rd.guidance.plug_and_play(guidance.unlikely(toward), fluency=0.05, updates=3, lr=0.1)

    def drawing():
        frozen = torch.zeros(3, L, dtype=torch.bool)
        return rd.samplers.Draw(frozen, torch.Generator().manual_seed(3))

    def query(z, t):
        return process.mean(model(z, t).exp()).detach()

    found = step(process, query, z, t, s, drawing())
    x = rd.samplers.ancestral(process, query, z, t, s, drawing())
    mean, variance = process.posterior(query(z, t), z, t, s)
    for _ in range(3):
        x = x.detach().requires_grad_()
        optimizer = torch.optim.Adagrad([x], lr=0.1)
        (-toward(x, s).sum() + 0.05 * ((x - mean) ** 2 / variance.sqrt()).sum()).backward()
        optimizer.step()
    torch.testing.assert_close(found, x.detach(), rtol=0, atol=1e-6)
    held = rd.guidance.plug_and_play(guidance.unlikely(toward), fluency=50.0)(process, query, z, t, s, drawing())
    assert ((held - mean).abs().mean() < 0.9 * (found - mean).abs().mean()).item()


def test_every_option_of_plug_and_play_changes_what_is_written(even):
    process, model = noise(), even
    control = guidance.unlikely(wants(2, process))
    texts = [
        draw(process, model, num=20, steps=10, sampler=guidance.plug_and_play(control, **options)).tokens
        for options in ({}, {"fluency": 30.0}, {"updates": 1}, {"lr": 0.02}, {"until": 0.9})
    ]
    assert all(not torch.equal(texts[0], other) for other in texts[1:])
    plain = draw(process, model, num=20, steps=10)
    assert share(texts[0], 2) > share(plain.tokens, 2) + 0.2
    never = draw(process, model, num=20, steps=10, sampler=guidance.plug_and_play(refuses, until=1.01))
    assert torch.equal(never.tokens, plain.tokens)
    assert never.nfe == plain.nfe == 11


def test_the_end_is_put_where_it_is_wanted_through_the_denoiser(model):
    """No classifier: each update asks the denoiser, and is counted; no graph outlives its step."""
    process = noise()
    sampler = guidance.plug_and_play(guidance.ends_at(process, 3, 4), updates=2, lr=0.2, until=0.5)
    found, plain = (draw(process, model, num=30, steps=10, sampler=one) for one in (sampler, "ancestral"))
    assert found.nfe == 11 + 6 * 2  # of t = 1, .9 .. .5
    assert plain.nfe == 11
    assert all(weight.grad is None for weight in model.parameters())
    alone = draw(process, model, seeds=found.seeds[4:5], num=1, steps=10, sampler=sampler)
    assert torch.equal(alone.tokens, found.tokens[4:5])


def test_the_end_is_a_squared_distance_in_units_of_the_noise():
    process = noise()
    z, s = process.prior((3, L), torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.5, 0.9])
    sigma = process.scales(process.gamma(s)[0])[1][:, 0]
    distance = (z[:, 3] - process.codebook[4]).norm(dim=-1)
    found = guidance.ends_at(process, 3, 4)(z, s, lambda z, t: z)
    torch.testing.assert_close(found, distance**2 / sigma)


def test_the_end_is_where_it_is_wanted(even):
    process = noise()
    sampler = guidance.plug_and_play(guidance.ends_at(process, 3, 4), lr=0.2, fluency=0.0)
    found = draw(process, even, num=60, steps=20, sampler=sampler).tokens
    assert share(found[:, 3], 4) > 0.9
    assert share(found[:, :3], 4) < 0.3


def test_no_graph_outlives_its_update():
    """A denoiser that is told its own guess is told a number, whoever asked for it last."""
    process, model, kept = noise(), network(noise(), self_conditioned=True), []

    class Watched:
        facts = model.facts

        def __call__(self, z, t, cond=None):
            kept.append(cond["guess"].requires_grad)
            return model(z, t, cond)

    draw(process, Watched(), sampler=guidance.plug_and_play(guidance.ends_at(process, 3, 4)))
    assert len(kept) > 8
    assert not any(kept)


def test_frozen_tokens_are_not_moved():
    process = noise()
    model = network(process)
    sampler = guidance.plug_and_play(guidance.unlikely(wants(2, process)))
    drawn = draw(process, model, prompt=[1, 5], length=3, sampler=sampler)
    assert (drawn.tokens[:, :2] == torch.tensor([1, 5])).all()


def test_mistakes_of_plug_and_play_are_named():
    process = noise()
    control = guidance.unlikely(wants(2, process))
    for options in ({"fluency": -1.0}, {"until": math.nan}, {"updates": 0}, {"lr": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
            guidance.plug_and_play(control, **options)
    with pytest.raises(ValueError, match=f"from 0 to {K - 1}"):
        guidance.ends_at(process, 3, K)
    for position in (L, -L - 1):
        with pytest.raises(ValueError, match=f"position {position} of texts of {L}"):
            draw(process, network(process), sampler=guidance.plug_and_play(guidance.ends_at(process, position, 4)))
    for learned in (False, True):  # of a learned codebook something still has a gradient: the codebook
        process.table.requires_grad_(learned)
        with pytest.raises(ValueError, match="temperature=0"):
            draw(
                process,
                network(process),
                temperature=0.0,
                sampler=guidance.plug_and_play(guidance.ends_at(process, 3, 4)),
            )
    draw(process, network(process), temperature=0.0, sampler=guidance.plug_and_play(control))
    masked = rd.masked(K)
    torch.manual_seed(0)
    model = rd.Transformer(rd.TransformerConfig(process=masked.to_dict(), depth=1))
    with pytest.raises(ValueError, match="masked noise changes tokens"):
        draw(masked, model, sampler=guidance.plug_and_play(control))
    nowhere = guidance.plug_and_play(lambda x, s, denoiser: x.sum((1, 2)) / 0)
    with pytest.raises(ValueError, match="no finite gradient"):
        draw(process, network(process), sampler=nowhere)


# ---------------------------------------------------------------------------------------- classifiers of noised vectors


def labelled(rows=1000):
    """Texts and how many of their first two tokens are below 3: 0, 1 or 2; and, of each token, whether it is."""
    ids = torch.randint(0, K, (rows, L), generator=torch.Generator().manual_seed(1))
    return ids, (ids[:, :2] < 3).sum(1), (ids < 3).long()


def exact(process, z, t, per_token):
    """p(label | z) for tokens drawn evenly and independently."""
    below = process.output_prior(z, t).softmax(-1)[..., :3].sum(-1)
    if per_token:
        return torch.stack([1 - below, below], -1)
    a, b = below[:, 0], below[:, 1]
    return torch.stack([(1 - a) * (1 - b), a * (1 - b) + b * (1 - a), a * b], -1)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("reads", ["mixture", "vectors"])
def test_a_trained_classifier_knows_the_class_at_every_noise(per_token, reads):
    """Its cross-entropy is within 0.06 nats of the exact p(class | z)'s, which is 0.15 below knowing nothing.

    Vectors read as they are, from which tokens are yet to be learned, come within 0.14 in these few steps.
    """
    process = noise()
    ids, count, tags = labelled()
    labels = tags if per_token else count
    classifier = guidance.train_classifier(process, ids, labels, steps=120, batch=128, reads=reads)
    ids, count, tags = labelled()
    labels = tags if per_token else count
    t = torch.linspace(0, 1, len(ids), dtype=torch.float64)
    z = process.corrupt(ids, t, torch.Generator().manual_seed(7))
    target = labels[..., None]
    best, found = exact(process, z, t, per_token).log(), classifier(z, t)
    assert found.shape == best.shape
    one, other, nothing = (
        -logp.gather(-1, target).mean().item()
        for logp in (best, found, best.exp().mean(0, keepdim=True).log().expand_as(best))
    )
    assert one < nothing - 0.15
    assert other < one + (0.06 if reads == "mixture" else 0.14)


def test_training_is_repeatable_and_touches_nothing_else():
    process = noise(learned=True)
    process.table = torch.nn.Parameter(process.table)
    ids, count, _ = labelled(50)
    before = torch.random.get_rng_state()
    first, second, other = (
        guidance.train_classifier(process, ids, count, steps=3, batch=8, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert process.table.grad is None
    stored = first.state_dict()
    assert all(torch.equal(stored[name], weight) for name, weight in second.state_dict().items())
    assert any(not torch.equal(stored[name], weight) for name, weight in other.state_dict().items())
    assert not any("codebook" in name or "table" in name for name in stored)
    again = guidance.NoisyClassifier(process, 3)
    again.load_state_dict(stored)
    z, t = process.prior((3, L), torch.Generator().manual_seed(0)), torch.full((3,), 0.5)
    assert torch.equal(again(z, t), first(z, t))


def test_training_of_nothing_is_refused():
    process = noise()
    ids, count, _ = labelled(10)
    for options in ({"steps": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match="{}=0".format(*options)):
            guidance.train_classifier(process, ids, count, **options)


def test_noise_of_training_depends_on_seed_and_step_and_row(monkeypatch):
    process, seen = noise(), []
    ids, count, _ = labelled(4)
    corrupt = process.corrupt

    def spy(x0, t, generator):
        seen.append({(tuple(row), one.initial_seed()) for row, one in zip(x0.tolist(), generator, strict=True)})
        return corrupt(x0, t, generator)

    monkeypatch.setattr(process, "corrupt", spy)
    for seed, batch in ((0, 16), (1, 16), (0, 17)):
        guidance.train_classifier(process, ids, count, steps=2, batch=batch, seed=seed)
    first, second, other, _, larger, _ = seen
    assert len(first) == 4  # one noise for each of the four rows, however often they were picked
    assert not first & second
    assert not first & other
    assert first == larger


def test_a_fresh_classifier_says_nothing_and_depth_is_how_many_blocks():
    process = noise()
    z, t = process.prior((3, L), torch.Generator().manual_seed(0)), torch.full((3,), 0.5)
    for options, shape in (({}, (3, 4)), ({"per_token": True, "depth": 2, "reads": "vectors"}, (3, L, 4))):
        classifier = guidance.NoisyClassifier(process, 4, **options)
        assert len(classifier.blocks) == options.get("depth", 1)
        torch.testing.assert_close(classifier(z, t), torch.full(shape, -math.log(4)))


def test_every_position_is_pooled():
    """Without attention, which a fresh network does not have yet, each still counts for the class of the text."""
    process = noise()
    classifier = guidance.NoisyClassifier(process, 3)
    torch.nn.init.normal_(classifier.head.weight)
    z, t = process.prior((1, L), torch.Generator().manual_seed(0)), torch.full((1,), 0.5)
    for position in range(L):
        assert not torch.allclose(classifier(z.index_fill(1, torch.tensor(position), 0.0), t), classifier(z, t))


def test_the_rate_falls_to_zero(monkeypatch):
    process, rates = noise(), []
    ids, count, _ = labelled(10)
    step = torch.optim.AdamW.step

    def spy(optimizer, *arguments):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    guidance.train_classifier(process, ids, count, steps=4, batch=4, lr=0.4)
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_log_likelihoods_of_targets():
    process = noise()
    z, t = process.prior((3, L), torch.Generator().manual_seed(0)), torch.full((3,), 0.5)
    torch.manual_seed(0)
    whole, tags = guidance.NoisyClassifier(process, 3), guidance.NoisyClassifier(process, 3, per_token=True)
    for classifier in (whole, tags):
        for weight in classifier.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    torch.testing.assert_close(guidance.log_likelihood(whole, 2)(z, t), whole(z, t)[:, 2])
    wanted = guidance.log_likelihood(tags, torch.tensor([0, -1, 2, -1, -1]))(z, t)
    torch.testing.assert_close(wanted, tags(z, t)[:, 0, 0] + tags(z, t)[:, 2, 2])
    for classifier, target in (
        (whole, 3),
        (whole, -1),
        (whole, torch.tensor([1, 2])),
        (tags, 1),
        (tags, torch.tensor([3] * L)),
    ):
        with pytest.raises(ValueError, match="target"):
            guidance.log_likelihood(classifier, target)
    with pytest.raises(ValueError, match="4 tags wanted"):
        guidance.log_likelihood(tags, torch.tensor([0, 0, 0, 0]))(z, t)


def test_mistakes_of_training_are_named():
    process = noise()
    ids, count, _ = labelled(10)
    for labels in (count[:5], count[:, None], count - 5):
        with pytest.raises(ValueError, match="labels"):
            guidance.train_classifier(process, ids, labels)
    with pytest.raises(ValueError, match="classes=1"):
        guidance.train_classifier(process, ids, count * 0)
    with pytest.raises(ValueError, match="uniform noise"):
        guidance.NoisyClassifier(rd.uniform(K), 2)


def test_a_classifier_trained_here_guides_what_is_written():
    """Of tokens that are below 3 or not as it comes, guided by a trained classifier, nine in ten are as asked."""
    process = noise()
    ids, _, tags = labelled()
    classifier = guidance.train_classifier(process, ids, tags, steps=150, batch=64)
    target = torch.tensor([1, 1, 0, -1, 1])
    guided = rd.gradient_guided(Even(process), process, guidance.log_likelihood(classifier, target))
    found, plain = (draw(process, one, num=60, steps=40).tokens for one in (guided, Even(process)))
    asked = target >= 0
    hits, chance = (((tokens < 3).long() == target)[:, asked].double().mean().item() for tokens in (found, plain))
    assert chance < 0.65
    assert hits > 0.9
