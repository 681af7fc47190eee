"""Guided denoisers in the loop: caches of both sides, weights of t, hidden prompts, classifiers in blocks.

Networks are real, small and random; costs are counted where the forwards are made; laws are enumerated.
"""

from dataclasses import replace

import pytest
import torch

from redraft import guidance, processes
from redraft.models import Transformer, TransformerConfig
from redraft.processes import Facts
from redraft.sampling import sample, samplers
from redraft.sampling.cost import Cost

from .exhaust import outcomes
from .oracle import ExactDenoiser
from .test_guidance import GIVEN, ExactClassifier

K, MASK = 11, 11
PROCESS = processes.masked(K)
PROMPTS, LENGTHS = [[1, 2, 3], [4], [], [5, 6, 7, 8, 9]], [4, 6, 5, 3]


def network(seed=0, attention="full", block=None, **options) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(PROCESS.to_dict(), depth=1, attention=attention, block=block, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


class Counted(torch.nn.Module):
    """A network that counts its forwards, keeps the canvases it saw, and may be asked to keep no cache."""

    def __init__(self, model, **facts) -> None:
        super().__init__()
        self.model, self.changed, self.calls, self.seen, self.places = model, facts, 0, [], []

    @property
    def facts(self) -> Facts:
        return replace(self.model.facts, **self.changed)

    def forward(self, z, t, cond=None, where=None):
        self.calls += 1
        self.seen.append(z.clone())
        self.places.append((cond or {}).get("positions", torch.arange(z.shape[1])))
        return self.model(z, t, cond, where=where)


def drawn(denoiser, **options):
    return sample(PROCESS, denoiser, prompt=PROMPTS, length=LENGTHS, seeds=[3, 4, 5, 6], **options)


def assert_same(one, other) -> None:
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.logp.nan_to_num(9), other.logp.nan_to_num(9))


PAIRS = {
    "two": lambda one, other: guidance.cfg(one, other, weight=2.5),
    "unprompted": lambda one, other: guidance.cfg(one, guidance.unprompted(one), weight=2.5),
    "in_t": lambda one, other: guidance.cfg(one, guidance.unprompted(other), weight=guidance.interval(3.0, 0.2, 0.7)),
    "nested": lambda one, other: guidance.cfg(
        guidance.cfg(one, guidance.unprompted(one), weight=1.5), other, weight=guidance.linear(2.0)
    ),
}


# --------------------------------------------------------------------------------------------------------------- caches


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("time_conditioned", [False, True])
def test_guided_blocks_with_their_caches_are_the_whole_text_recomputed(kind, time_conditioned):
    """Each side of a block model keeps a cache of its own: the same texts, log p within 1e-5, and fewer positions."""
    sides = [network(seed, "block", 3, time_conditioned=time_conditioned) for seed in (0, 1)]
    guided = PAIRS[kind](*sides)
    plain = PAIRS[kind](*(Counted(side, caches=False) for side in sides))
    assert guided.facts.caches
    assert not plain.facts.caches
    cached, recomputed = (drawn(one, sampler="low_confidence", temperature=0.7) for one in (guided, plain))
    assert torch.equal(cached.tokens, recomputed.tokens)
    torch.testing.assert_close(cached.logp, recomputed.logp, rtol=0, atol=1e-5, equal_nan=True)
    assert cached.positions < recomputed.positions
    one_sided = drawn(sides[0], sampler="low_confidence", temperature=0.7)
    assert not torch.equal(cached.tokens, one_sided.tokens), "guided texts are others"


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("kind", [*PAIRS, "doubting"])
def test_a_cache_renewed_at_every_call_is_none(kind, cache):
    """refresh=1 with full attention: bit for bit what is written without a cache; without refresh, something else."""
    one, other = network(), network(1)
    guided = (
        guidance.cfg(one, guidance.doubting(other, 0.5), weight=2.5) if kind == "doubting" else PAIRS[kind](one, other)
    )
    options = {"block": 3, "sampler": "low_confidence", "temperature": 0.7}
    plain = drawn(guided, **options)
    assert_same(drawn(guided, **options, cache=cache, refresh=1), plain)
    kept = drawn(guided, **options, cache=cache)
    assert kept.approximate
    assert kept.positions < plain.positions
    assert not torch.equal(kept.logp.nan_to_num(9), plain.logp.nan_to_num(9))


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_what_a_guided_cache_keeps_is_each_sides_own(cache):
    """cfg of one network with itself told nothing else is that network, cache and all: log p within 1e-5."""
    model, copy = network(), network()
    options = {"block": 3, "cache": cache, "sampler": "low_confidence", "temperature": 0.7}
    plain, guided = drawn(model, **options), drawn(guidance.cfg(model, copy, weight=3.0), **options)
    assert torch.equal(plain.tokens, guided.tokens)
    torch.testing.assert_close(plain.logp, guided.logp, rtol=0, atol=1e-5, equal_nan=True)
    assert (guided.nfe, guided.positions, guided.cost.cached) == (
        2 * plain.nfe,
        2 * plain.positions,
        2 * plain.cost.cached,
    )


# ------------------------------------------------------------------------------------------------------------- where


def test_a_pair_of_selective_sides_answers_for_the_positions_asked_about():
    """Fewer rows of the output layer, the same numbers; of a pair with one that is not, all and then cut."""
    one, other = network(), network(1)
    z = torch.randint(0, K + 1, (3, 8), generator=torch.Generator().manual_seed(0))
    t, where = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), z == MASK
    cond = {"given": torch.arange(8).expand(3, -1) < 2}
    for guided in (
        *(make(one, other) for make in PAIRS.values()),
        guidance.cfg(one, guidance.doubting(other, 0.5), weight=2.0),
    ):
        assert guided.facts.selective
        torch.testing.assert_close(guided(z, t, cond, where), guided(z, t, cond)[where], rtol=1e-5, atol=1e-5)
    assert not guidance.cfg(one, Counted(other, selective=False), weight=2.0).facts.selective


# ----------------------------------------------------------------------------------------------------- weights and cost


@pytest.mark.parametrize("layout", [{}, {"block": 3}, {"block": 3, "cache": "dual"}])
def test_weight_one_without_the_prompt_is_the_conditional_model(layout):
    """Bit for bit, and one forward a call: the other side is never asked. Weight 0 is the unconditional one."""
    one, other = Counted(network()), Counted(network(1))
    plain = drawn(one.model, sampler="low_confidence", **layout)
    for weight in (1, 1.0, guidance.interval(5.0, 0.0, 0.0), lambda t: 1.0):
        one.calls = other.calls = 0
        found = drawn(guidance.cfg(one, guidance.unprompted(other), weight=weight), sampler="low_confidence", **layout)
        assert_same(found, plain)
        assert found.nfe == one.calls + other.calls
        stored = callable(weight) and "cache" in layout
        assert (other.calls > 0) == stored, "what is kept is kept of both, as it may be needed at another t"
        assert stored or found.nfe == plain.nfe
    hidden = drawn(guidance.unprompted(other.model), sampler="low_confidence", **layout)
    assert_same(
        drawn(guidance.cfg(one, guidance.unprompted(other), weight=0), sampler="low_confidence", **layout), hidden
    )


def test_each_row_has_the_weight_of_its_own_time():
    """Rows of weight 1 and 0 bit for bit what one side says, others the mixture that one number gives."""
    one, other = network(), network(1)
    z = torch.randint(0, K + 1, (5, 6), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, 2.5, -1.0, 1.0], dtype=torch.float64)
    guided = guidance.cfg(one, other, weight=lambda t: weights[(t * 4).long()])
    said = guided(z, t)
    for row, weight in enumerate(weights.tolist()):
        alone = guidance.cfg(one, other, weight=weight)(z, t)
        if weight in (0, 1):
            assert torch.equal(said[row], (one if weight else other)(z, t)[row])
        assert torch.equal(said[row], alone[row])
    per_token = torch.stack([t / 2, t], 1).repeat(1, 3)
    assert torch.equal(guided(z, per_token), said), "a row's latest time counts"
    assert [guided.forwards_at(t[row : row + 1]) for row in range(5)] == [1, 1, 2, 2, 1]
    assert guided.forwards_at(t[:2]) == 2, "one side each"
    cost = Cost(of_rows=[0] * 5)
    cost.call(guided, t, None, 30)
    assert (cost.nfe, cost.of_rows) == (2, [1, 1, 2, 2, 1])
    assert (guided.facts.forwards, guided.facts.time_conditioned) == (2, True)


@pytest.mark.parametrize("sampler", ["ancestral", "low_confidence", "first_hitting", "threshold:tau=0.3"])
@pytest.mark.parametrize("kind", PAIRS)
def test_what_is_spent_is_what_is_counted(kind, sampler):
    one, other = Counted(network()), Counted(network(1))
    found = drawn(PAIRS[kind](one, other), sampler=sampler, steps=7)
    assert found.nfe == one.calls + other.calls
    assert found.positions == sum(seen.numel() for side in (one, other) for seen in side.seen)
    if kind == "in_t":
        assert 0 < other.calls < one.calls


@pytest.mark.parametrize("sampler", ["first_hitting", "low_confidence"])
def test_a_rows_cost_is_what_it_costs_alone(sampler):
    """Also where rows of a batch stand at different times, and only some are guided (``first_hitting``)."""
    guided = PAIRS["in_t"](network(time_conditioned=True), network(1, time_conditioned=True))
    options = {"length": 6, "steps": 1 if sampler == "first_hitting" else 6, "sampler": sampler, "prompt": [1]}
    batch = sample(PROCESS, guided, seeds=[1, 2, 3, 4], **options)
    for row, seed in enumerate(batch.seeds):
        alone = sample(PROCESS, guided, seeds=[seed], **options)
        assert torch.equal(alone.tokens[0], batch.tokens[row])
        if sampler == "low_confidence":
            assert alone.cost.of_rows[0] == alone.nfe == batch.cost.of_rows[row]


def test_weights_of_t_by_name():
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    assert guidance.interval(3.0, 0.25, 0.5)(t).tolist() == [1, 3, 3, 1]
    assert guidance.interval(2.3, 0, 1)(t).tolist() == [2.3] * 4
    assert guidance.linear(3.0)(t).tolist() == [3, 2.5, 2, 1]
    for low, high in ((-0.1, 0.5), (0.6, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="low="):
            guidance.interval(2.0, low, high)
    for make in (lambda w: guidance.interval(w, 0, 1), guidance.linear, lambda w: guidance.cfg(network(), weight=w)):
        with pytest.raises(ValueError, match="weight=nan"):
            make(float("nan"))
    with pytest.raises(ValueError, match=r"return numbers"):
        guidance.cfg(network(), network(1), weight=lambda t: 1 / (t * 0))(torch.zeros(4, 2, dtype=torch.long), t)
    with pytest.raises(ValueError, match=r"shape \(3,\) at t of 4 rows"):
        guidance.cfg(network(), network(1), weight=lambda t: t[:3])(torch.zeros(4, 2, dtype=torch.long), t)


def test_an_answer_that_depends_on_t_by_its_weight_is_asked_for_again():
    """Networks that do not read t, a weight that does: no step may reuse what another time's weight made."""
    one, other = Counted(network()), Counted(network(1))
    sample(PROCESS, guidance.cfg(one, other, weight=guidance.linear(2.0)), length=2, steps=40)
    assert one.calls > 2 + 40 // 2
    one.calls = 0
    sample(PROCESS, guidance.cfg(one, other, weight=2.0), length=2, steps=40)
    assert one.calls <= 3


# ------------------------------------------------------------------------------------------------------------ hidden


@pytest.mark.parametrize("layout", [{}, {"block": 2}, {"block": 2, "cache": "dual"}, {"attention": "block"}])
def test_the_unconditional_side_sees_masks_for_the_prompt_and_only_there(layout):
    """Rows of different prompts: all that is given is hidden, all that is written stays, whatever is recomputed."""
    options = dict(layout)
    attention = options.pop("attention", "full")
    sides = [Counted(network(seed, attention, 2 if attention == "block" else None)) for seed in (0, 1)]
    guided = guidance.cfg(sides[0], guidance.unprompted(sides[1]), weight=2.0)
    for prompt in ([1, 2, 3], [4]):
        for side in sides:
            side.seen.clear()
            side.places.clear()
        sample(PROCESS, guided, prompt=[prompt, prompt[::-1]], length=5, sampler="left_to_right", **options)
        assert len(sides[0].seen) == len(sides[1].seen) > 4
        written = 0
        for shown, hidden, places in zip(sides[0].seen, sides[1].seen, sides[1].places, strict=True):
            given = places < len(prompt)
            assert (hidden[:, given] == MASK).all()
            assert (shown[:, given] != MASK).all()
            assert torch.equal(hidden[:, ~given], shown[:, ~given])
            written += int((hidden != MASK).sum())
        assert written, "what is written is shown"


def test_prompts_of_any_length_are_hidden_together():
    """What given tokens anywhere are, an infilling's too, by row."""
    one, other = Counted(network()), Counted(network(1))
    canvas = torch.tensor([[1, 0, 0, 0, 3], [0, 4, 0, 5, 0]])
    guided = guidance.cfg(one, guidance.unprompted(other), weight=2.0)
    sample(PROCESS, guided, canvas=canvas, frozen=canvas > 0, sampler="left_to_right", steps=3)
    assert len(other.seen) > 2
    for shown, hidden in zip(one.seen, other.seen, strict=True):
        assert torch.equal(shown[canvas > 0], canvas[canvas > 0])
        assert (hidden[canvas > 0] == MASK).all()
        assert torch.equal(shown[canvas == 0], hidden[canvas == 0])


class Toy:
    """log p by a table of what stands there: how sure it is of each written token is known."""

    def __init__(self, sure) -> None:
        self.facts, self.sure, self.seen = Facts(mask_id=3), torch.tensor(sure, dtype=torch.float64), []

    def __call__(self, z, t, cond=None):
        self.seen.append(z.tolist())
        p = ((1 - self.sure) / 2)[..., None].expand(*z.shape, 3).clone()
        p[(z < 3), z[z < 3]] = self.sure[z < 3]
        return p.log()


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.5, [[0, 1, 3, 2, 3, 3], [3, 3, 3, 1, 0, 0]]),
        (0.4, [[0, 1, 3, 2, 3, 3], [3, 3, 3, 1, 0, 0]]),
        (0.25, [[0, 1, 3, 2, 1, 3], [3, 3, 2, 1, 0, 0]]),
        (1.0, [[0, 3, 3, 3, 3, 3], [3, 3, 3, 3, 3, 0]]),
    ],
)
def test_the_least_sure_tokens_are_masked_again(share, shown):
    """A fixed toy, by hand: round(share n) of the n tokens neither masked nor given, the least sure of each row; of
    equals those that stand first. The scores are the conditional side's own, at this call."""
    z = torch.tensor([[0, 1, 0, 2, 1, 3], [3, 0, 2, 1, 0, 0]])
    given = torch.tensor([[True] + [False] * 5, [False] * 5 + [True]])
    sure = [[0.1, 0.9, 0.2, 0.8, 0.3, 0.5], [0.5, 0.4, 0.4, 0.7, 0.6, 0.05]]
    one, other = Toy(sure), Toy([[0.5] * 6] * 2)
    guided = guidance.cfg(one, guidance.doubting(other, share), weight=2.0)
    said = guided(z, torch.ones(2), {"given": given})
    assert one.seen == [z.tolist()]
    assert other.seen == [shown], "one forward each, the second of the canvas with doubts"
    expected = guidance.mix(Toy(sure)(z, None), Toy([[0.5] * 6] * 2)(torch.tensor(shown), None), 2.0)
    torch.testing.assert_close(said, expected, rtol=0, atol=1e-12)


def test_doubts_cost_a_forward_of_each_side():
    one, other = Counted(network()), Counted(network(1))
    guided = guidance.cfg(one, guidance.doubting(other, 0.4), weight=2.0)
    found = drawn(guided, sampler="low_confidence")
    assert one.calls == other.calls
    assert found.nfe == 2 * one.calls
    again = [(hidden == MASK) & (shown != MASK) for shown, hidden in zip(one.seen, other.seen, strict=True)]
    assert any(bool(one.any()) for one in again)
    assert guidance.cfg(one, guidance.doubting(other, 0.4), weight=0).facts.forwards == 2, "who doubts is asked too"
    assert guidance.cfg(one, guidance.doubting(other, 0.4), weight=1).facts.forwards == 1
    block = [network(seed, "block", 3) for seed in (0, 1)]
    assert not guidance.cfg(block[0], guidance.doubting(block[1], 0.4), weight=2.0).facts.caches


def test_a_worse_model_that_errs_twice_as_much_guides_to_the_truth():
    """Autoguidance: log p + e guided away from log p + 2 e by weight 2 is log p, whatever the error e; 1e-12."""
    process = processes.masked(3)
    error = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Wrong(ExactDenoiser):
        def __init__(self, times):
            super().__init__(process)
            self.times = times

        def __call__(self, z, t, cond=None):
            return (super().__call__(z, t) + self.times * error).log_softmax(-1)

    z = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    t = torch.full((16,), 0.5, dtype=torch.float64)
    truth = ExactDenoiser(process)(z, t)
    found = guidance.cfg(Wrong(1), Wrong(2), weight=2.0)(z, t)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)
    assert (Wrong(1)(z, t) - truth).abs().max() > 0.1


# --------------------------------------------------------------------------------------------------- what is ruled out


class Harsh:
    """Rules out tokens of its own choice at every position, and leaves mass on [MASK] if it has a column for it."""

    def __init__(self, out, columns=K) -> None:
        self.facts, self.out, self.columns = Facts(mask_id=MASK), out, columns

    def __call__(self, z, t, cond=None):
        logits = torch.arange(float(self.columns)).expand(*z.shape, self.columns).clone() * 40
        logits[..., self.out] = -torch.inf
        return logits.log_softmax(-1)


RULES = sorted(name for name, one in samplers.SAMPLERS.items() if samplers.proposes(one))


@pytest.mark.parametrize("columns", [K, K + 1])
@pytest.mark.parametrize("sampler", [*RULES, "ancestral", "euler", "posteriors", "rates"])
def test_no_weight_makes_what_is_ruled_out_a_number(sampler, columns):
    """-inf logits at weight 4, supports that meet in some tokens, in one, in none but [MASK]: tokens, and no NaN."""
    one, others = Harsh([0, 1, 10], columns), ([2, 3, 9], [2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 6, 7, 8, 9])
    for out in others:
        other = Harsh(out, columns)
        denoiser, rule = guidance.cfg(one, other, weight=4.0), sampler
        if sampler in ("posteriors", "rates"):
            make = (
                guidance.rate_cfg(other, 4.0) if sampler == "rates" else guidance.cfg_posteriors(other, 4.0, masks=True)
            )
            denoiser, rule = one, make
        said = guidance.cfg(one, other, weight=4.0)(torch.full((1, 2), MASK), torch.ones(1))
        assert not torch.isnan(said).any()
        found = sample(PROCESS, denoiser, length=4, num=2, sampler=rule, steps=4, seed=1)
        assert not (found.tokens == MASK).any()
        assert not torch.isnan(found.logp).any() or rule not in RULES
        left = set(range(K)) - {0, 1, 10}
        allowed = left - set(out) or left
        assert set(found.tokens.flatten().tolist()) <= allowed


# ----------------------------------------------------------------------------------------------- classifiers in blocks


@pytest.mark.parametrize("steps", [1, 3])
def test_a_classifier_of_whole_texts_guides_blocks_of_one_exactly(steps):
    """One position at a time D-CBG is exact in any number of steps, as the classifier reads the text around: 1e-12."""
    process = processes.masked(3)
    denoiser, classifier = ExactDenoiser(process), ExactClassifier(process)
    sampler = guidance.classifier_guided(classifier)
    law = torch.zeros(3, 3, dtype=torch.float64)

    def run():
        return sample(process, denoiser, length=2, block=1, steps=steps, seeds=[0], sampler=sampler).tokens

    for tokens, weight in outcomes(run, 1):
        law[tuple(tokens[0].tolist())] += weight[0]
    torch.testing.assert_close(law, GIVEN, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [guidance.classifier_guided, guidance.rate_guided])
@pytest.mark.parametrize("first_order", [False, True])
def test_classifiers_read_the_text_of_the_rows_that_are_left(make, first_order):
    """Rows that end leave; what the classifier is shown of those left is their own text, and it is counted."""
    model, seen, likes = network(), [], torch.linspace(0, 2, K + 1)

    def classifier(z, t):
        ids = z.argmax(-1) if z.ndim == 3 else z
        seen.append((len(ids), ids.shape[1]))
        assert (ids[:, :2] == torch.tensor([1, 2])).all()
        return (z @ likes if z.ndim == 3 else likes[z]).sum(1)

    options = {
        "prompt": [1, 2],
        "length": 9,
        "block": 3,
        "steps": 3,
        "stop": K - 1,
        "sampler": make(classifier, 1.0, first_order),
    }
    batch = sample(PROCESS, model, seeds=[1, 2, 3, 4, 5, 6], **options)
    assert len(set(batch.lengths)) > 1, "some end before others"
    assert {width for _, width in seen} == {11}, "the whole text, with masks where nothing stands"
    assert batch.cost.classified == sum(texts for texts, _ in seen) > 0
    assert batch.cost.to_dict()["classified"] == batch.cost.classified
    for row, seed in enumerate(batch.seeds):
        alone = sample(PROCESS, model, seeds=[seed], **options)
        assert torch.equal(alone.tokens[0, : batch.lengths[row]], batch.tokens[row, : batch.lengths[row]])


def test_a_second_denoiser_of_kernels_is_refused_in_blocks():
    one, other = network(), network(1)
    for sampler in (guidance.cfg_posteriors(other, 2.0, masks=True), guidance.rate_cfg(other, 2.0)):
        with pytest.raises(ValueError, match="block by block"):
            sample(PROCESS, one, length=4, block=2, sampler=sampler)
