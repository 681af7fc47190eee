"""Many answers scored together: each as ``answers.score`` has it alone, bit for bit whatever is beside it."""

import itertools
import math
import zlib

import pytest
import torch

from redraft import processes
from redraft.evaluation import answers
from redraft.harness.asking import Asker
from redraft.harness.plans import How, plan
from redraft.harness.scoring import score
from redraft.models import Transformer, TransformerConfig
from redraft.processes import Facts
from redraft.randomness import derive

from .chain import Chain

K = 20
KINDS = {
    "full": {},
    "timed": {"time_conditioned": True},
    "causal": {"attention": "causal"},
    "causal, timed": {"attention": "causal", "time_conditioned": True},
    "block": {"attention": "block", "block": 4},
    "block, timed": {"attention": "block", "block": 4, "time_conditioned": True},
}


def network(**options):
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(processes.masked(K).to_dict(), depth=1, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.eval().double().requires_grad_(False)


def questions(sizes=(1, 2, 3, 9)):
    """Prompts of several lengths, answers of several, and choices of one prompt."""
    drawn = torch.Generator().manual_seed(1)

    def text(length):
        return tuple(torch.randint(K, (length,), generator=drawn).tolist())

    found = [(text(size), text(n)) for size in (3, 3, 6) for n in sizes]
    return found + [(found[0][0], (token,)) for token in range(5)] + [found[2]]


def together(model, asked, how=None, batch=None, **options):
    asker = Asker(model.process, model, torch.device("cpu"), batch)
    return score(model.process, model, asker, asked, How() if how is None else how, **options), asker.spent


def alone(model, question, estimator, **options):
    seed = derive(0, zlib.crc32(repr(question[0]).encode()))
    prompt, answer = (torch.tensor(part, dtype=torch.long) for part in question)
    return answers.score(model.process, model, prompt, answer, estimator=estimator, seed=seed, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_what_it_is_alone_whatever_is_beside_it(kind):
    model, asked = network(**KINDS[kind]).float(), questions()  # in float64 a product's last bits do depend on its size
    found = [together(model, asked, batch=batch)[0] for batch in (1, 3, 8, None)]
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0] == [together(model, [one])[0][0] for one in asked]
    for question, one in zip(asked, found[0], strict=True):
        exact = "chain_rule" if "causal" in kind else "any_order_exact"
        drawn = "causal" not in kind and "block" not in kind and 2 ** len(question[1]) - 1 > 128
        wanted = alone(model, question, "bound" if drawn else exact)
        assert one.nats == pytest.approx(wanted.nats, rel=1e-5)
        assert (one.draws, one.standard_error > 0) == ((128, True) if drawn else (0, False))


@pytest.mark.parametrize("estimator", ["any_order_exact", "chain_rule", "one_step", "bound"])
@pytest.mark.parametrize("weight", [1.0, 1.5])
def test_every_estimator_and_guidance_is_that_of_answers(estimator, weight):
    model, asked = network(), questions((1, 3, 4))
    found, _ = together(model, asked, How(estimator, draws=5, weight=weight))
    for question, one in zip(asked, found, strict=True):
        drawn = estimator == "bound" and 2 ** len(question[1]) - 1 > 5
        exact = "any_order_exact" if estimator == "bound" and not drawn else estimator
        wanted = alone(model, question, exact, draws=5, weight=weight)
        assert one.nats == pytest.approx(wanted.nats, abs=1e-10)


@pytest.mark.parametrize("draws", [1, 3, 5])
def test_the_weights_of_a_plan_are_of_an_unbiased_estimate(draws):
    """Over many seeds the mean of a drawn plan is the enumeration's; 4 standard errors: false alarm 6e-5."""
    logp = torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    every = (torch.arange(1, 8)[:, None] >> torch.arange(3)) % 2 == 1
    said = {tuple(row): logp[0, at].where(every[at], torch.zeros(())) for at, row in enumerate(every.tolist())}

    def total(own, groups):
        rows = torch.stack([said[tuple(row)] for row in own.hidden.tolist()])[None]
        return own.totals(rows, groups).mean().item()

    exact = total(plan(3, How("any_order_exact")), answers.GROUPS)
    found = torch.tensor([total(plan(3, How(draws=draws), seed), min(answers.GROUPS, draws)) for seed in range(600)])
    assert abs(found.mean().item() - exact) < 4 * found.std().item() / math.sqrt(len(found))


def test_the_standard_error_is_that_of_the_estimate():
    """Its square is, in the mean over prompts' draws, the variance: 150 seeds, within 35%, three times chance."""
    model, asked = network(), questions((9,))[:1]
    found = [together(model, asked, How(draws=16, seed=seed))[0][0] for seed in range(150)]
    spread = torch.tensor([one.nats for one in found]).var().item()
    told = sum(one.standard_error**2 for one in found) / len(found)
    assert told == pytest.approx(spread, rel=0.35)


def test_a_single_draw_says_nothing_of_its_error():
    (found,), _ = together(network(), questions((9,))[:1], How(draws=1))
    assert math.isnan(found.standard_error)


def test_what_is_equal_is_asked_once():
    """Four choices of one token are one canvas; two of two tokens 5 of their 6 sets; equal questions cost nothing."""
    model, prompt = network(), (1, 2, 3)
    assert together(model, [(prompt, (token,)) for token in range(4)])[1].texts == 1
    assert together(model, [(prompt, (0, 1)), (prompt, (0, 2))], greedy=False)[1].texts == 4
    assert together(model, [(prompt, (0, 1)), (prompt, (3, 2))], greedy=False)[1].texts == 5
    assert together(model, [(prompt, (0, 1))] * 9, greedy=False)[1].texts == 3
    spent = together(network(attention="causal"), [(prompt, (0, 1, 2, 3))])[1]
    assert (spent.texts, spent.forwards, spent.positions) == (1, 1, 7)
    assert together(model, [(prompt, (0, 1))], How(weight=2.0), greedy=False)[1].texts == 6


def written(model, prompt, length):
    """What decoding by confidence writes, a token a step, the plain way; of a block model block by block."""
    text = torch.tensor([*prompt, *[K] * length])
    width = model.facts.block or len(text)
    while bool((text == K).any()):
        at = (text == K).nonzero().flatten()
        own = at[at // width == at[0] // width]
        whole = text[: (int(own[0]) // width + 1) * width] if model.facts.block else text
        t = torch.full((1,), len(own) / length)  # of a block model it is not told
        logp = model(whole[None], t.double())[0, own]
        best = int(logp.max(1).values.argmax()) if model.facts.attention != "causal" else 0
        text[own[best]] = logp[best].argmax()
    return tuple(text[len(prompt) :].tolist())


@pytest.mark.parametrize("kind", ["full", "timed", "causal", "causal, timed", "block"])
@pytest.mark.parametrize("estimator", [None, "chain_rule"])
def test_greedy_is_what_decoding_by_confidence_writes(kind, estimator):
    """Of the text it writes, and of none that differs from it in a token."""
    model = network(**KINDS[kind])
    for length in (1, 3, 9):
        best = written(model, (4, 5), length)
        others = [(*best[:at], (best[at] + 1) % K, *best[at + 1 :]) for at in range(length)]
        found, _ = together(model, [((4, 5), one) for one in (best, *others)], How(estimator))
        assert [one.greedy for one in found] == [True] + [False] * length


class Exact(torch.nn.Module):
    """The conditionals of a Markov chain with some tokens hidden, exactly."""

    def __init__(self, chain):
        super().__init__()
        self.chain, self.process = chain, processes.masked(chain.size)
        self.facts = Facts(mask_id=chain.size)

    def forward(self, z, t, cond=None):
        named = torch.nn.functional.one_hot(z.clamp_max(self.chain.size - 1), self.chain.size).double().log()
        return self.chain.log_posterior(named.masked_fill((z == self.chain.size)[..., None], 0.0))


def test_of_an_exact_denoiser_every_answer_has_its_log_p():
    chain = Chain(size=5, length=6, seed=3)
    asked = [((1, 2), rest) for n in (1, 2, 4) for rest in itertools.islice(itertools.product(range(5), repeat=n), 40)]
    for how in (How(), How("chain_rule")):
        found, _ = together(Exact(chain), asked, how)
        for (prompt, answer), one in zip(asked, found, strict=True):
            whole = torch.tensor([[*prompt, *answer]])
            wanted = chain.log_prob(whole) - chain.log_prob(whole[:, : len(prompt)])
            assert one.nats == pytest.approx(wanted.item(), abs=1e-9)


def test_mistakes_are_named():
    model = network()
    with pytest.raises(ValueError, match="did you mean 'chain_rule'"):
        How("chain_rul")
    with pytest.raises(ValueError, match="draws=0"):
        How(draws=0)
    with pytest.raises(ValueError, match="any_order_exact of 13 tokens"):
        together(model, [((1,), (2,) * 13)], How("any_order_exact"))
    with pytest.raises(ValueError, match="has one order"):
        together(network(attention="causal"), [((1,), (2,))], How("bound"))
    with pytest.raises(ValueError, match="without tokens"):
        together(model, [((1,), ())])
    uniform = Transformer(TransformerConfig(processes.uniform(K).to_dict(), depth=1, time_conditioned=True))
    with pytest.raises(ValueError, match="uniform process"):
        together(uniform, [((1,), (2,))])
    gaussian = processes.gaussian(torch.randn(K, 4))
    with pytest.raises(ValueError, match="gaussian process"):
        score(gaussian, model, Asker(model.process, model, torch.device("cpu")), [((1,), (2,))], How())
