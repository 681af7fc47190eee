"""log p of an answer: every estimator against enumeration, float64, with a denoiser that errs and one that does not."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from redraft import processes
from redraft.evaluation import answers
from redraft.evaluation.enumeration import set_weights, subsets
from redraft.evaluation.intervals import student95
from redraft.harness import plans
from redraft.processes import Facts

from .oracle import LAW, ExactDenoiser, K, sequences, state_number

MASKED = processes.masked(K, schedule="cosine")
L = 5


class Table:
    """A random law at every position of every canvas of five, and of the time if it is told: exact of nothing."""

    def __init__(self, timed=False, attention="full", block=None) -> None:
        drawn = torch.randn((K + 1) ** L, L, K, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.table, self.calls = drawn.log_softmax(-1), 0
        self.facts = Facts(mask_id=K, time_conditioned=timed, attention=attention, block=block)

    def __call__(self, z, t, cond=None):
        self.calls += len(z)
        if self.facts.attention == "block":  # nothing behind the block is read
            ends = [min(i // self.facts.block * self.facts.block + self.facts.block, L) for i in range(z.shape[1])]
            said = [self._at(z[:, :end])[:, i] for i, end in enumerate(ends)]
            return torch.stack(said, 1)
        return (
            self._at(z) if not self.facts.time_conditioned else ((1 + t.view(-1, 1, 1)) * self._at(z)).log_softmax(-1)
        )

    def _at(self, z):
        wide = torch.cat([z, z.new_zeros(len(z), L - z.shape[1])], 1)
        return self.table[state_number(wide, K + 1)][:, : z.shape[1]]


PROMPT, ANSWER = torch.tensor([2, 0]), torch.tensor([1, 0, 2])


def said(denoiser, hidden, prompt=PROMPT, answer=ANSWER, share=None):
    """log p of the answer's tokens with those ``hidden`` (numbers in it) masked."""
    z = torch.cat([prompt, answer])
    for i in hidden:
        z[len(prompt) + i] = K
    share = len(hidden) / len(answer) if share is None else share
    t = MASKED.schedule.inverse(torch.tensor([1 - share], dtype=torch.float64))
    return denoiser(z[None], t)[0, len(prompt) + torch.arange(len(answer)), answer]


def over_orders(denoiser):
    """The mean over all orders of the sum of log p, each token given those before it in the order."""
    totals = [
        sum(said(denoiser, order[i:])[one].item() for i, one in enumerate(order))
        for order in itertools.permutations(range(3))
    ]
    return sum(totals) / len(totals)


def score(denoiser, estimator, **options):
    return answers.score(MASKED, denoiser, PROMPT, ANSWER, estimator=estimator, device="cpu", **options)


@pytest.mark.parametrize("timed", [False, True])
def test_the_exact_bound_is_the_mean_over_orders(timed):
    denoiser = Table(timed)
    found = score(denoiser, "any_order_exact")
    assert found.nats == pytest.approx(over_orders(denoiser), abs=1e-12)
    assert (found.is_bound, found.error, found.forwards, found.tokens, found.draws) == (True, 0, 7, 3, 0)


@pytest.mark.parametrize("draws", [1, 2, 3])
@pytest.mark.parametrize("timed", [False, True])
def test_the_drawn_bound_is_unbiased(draws, timed):
    """Every start of the strata and every order of every draw, run through the code: their mean is the exact value."""
    denoiser, orders = Table(timed), torch.tensor(list(itertools.permutations(range(3))))
    ask = answers.Asked(MASKED, denoiser, torch.cat([PROMPT, ANSWER]), torch.arange(5) < 2)
    values = []
    for first, chosen in itertools.product(range(3), itertools.product(range(6), repeat=draws)):
        hidden, weight = answers.hide(torch.tensor(first), orders[list(chosen)])
        assert (hidden.sum(1).double() * weight == 3).all()
        values.append((ask(range(2, 5), hidden).sum(1) * weight).mean())
    assert torch.stack(values).mean().item() == pytest.approx(over_orders(denoiser), abs=1e-12)


@pytest.mark.parametrize(("draws", "length"), [(4, 3), (3, 7), (16, 5), (8, 8), (2, 3)])
def test_strata_are_uniform_and_even(draws, length):
    """Each draw's number is uniform over the starts; of one start, they differ in how often by 1 at most."""
    every = torch.stack([answers.sizes(torch.tensor(first), draws, length) for first in range(length)])
    assert torch.equal(every.sort(0).values, torch.arange(1, length + 1)[:, None].expand(-1, draws))
    for row in every:
        counts = torch.bincount(row, minlength=length + 1)[1:]
        assert counts.max() - counts.min() <= 1
        gaps = row.sort().values.diff(append=row.min()[None] + length)
        assert gaps.max() - gaps.min() <= 1


def test_the_other_orders():
    denoiser = Table()
    chain = said(denoiser, [0, 1, 2])[0] + said(denoiser, [1, 2])[1] + said(denoiser, [2])[2]
    assert score(denoiser, "chain_rule").nats == pytest.approx(chain.item(), abs=1e-12)
    assert score(denoiser, "one_step").nats == pytest.approx(said(denoiser, [0, 1, 2]).sum().item(), abs=1e-12)
    left, total = [0, 1, 2], 0.0
    while left:
        logp = said(denoiser, left)
        best = max(left, key=lambda i, logp=logp: logp[i].item())
        total += logp[best].item()
        left.remove(best)
    assert score(denoiser, "confidence").nats == pytest.approx(total, abs=1e-12)
    assert len({round(score(denoiser, one).nats, 6) for one in answers.EXACT}) == 4


@pytest.mark.parametrize("estimator", ["bound", "any_order_exact", "chain_rule", "confidence"])
@pytest.mark.parametrize("x", sequences(K).tolist())
def test_of_an_exact_denoiser_every_order_says_log_p(estimator, x):
    """With the exact conditionals all orders agree, so that the bound is log p itself; given a token, log p of it."""
    process = processes.masked(K)
    exact = ExactDenoiser(process)
    one, other = (torch.tensor([token]) for token in x)
    conditional = math.log(LAW[x[0], x[1]] / LAW[x[0]].sum())
    found = answers.score(process, exact, one, other, estimator=estimator, draws=3, device="cpu")
    assert found.nats == pytest.approx(conditional, abs=1e-9)
    if estimator != "bound":
        whole = answers.score(process, exact, one[:0], torch.cat([one, other]), estimator=estimator, device="cpu")
        assert whole.nats == pytest.approx(LAW[x[0], x[1]].log().item(), abs=1e-9)


@pytest.mark.parametrize("timed", [False, True])
def test_a_block_model_is_scored_block_by_block(timed):
    """Blocks of 2 from position 0: an answer at 1 to 4 is one token, two, and one, each given what stands before."""
    denoiser, text = Table(timed=False, attention="block", block=2), torch.tensor([2, 1, 0, 2, 1])
    wanted = 0.0
    for own in ([1], [2, 3], [4]):
        orders = list(itertools.permutations(own))
        for order in orders:
            for i, at in enumerate(order):
                z = text.clone()
                z[list(order[i:])] = K
                wanted += denoiser(z[None], torch.ones(1))[0, at, text[at]].item() / len(orders)
    found = answers.score(MASKED, denoiser, text[:1], text[1:], estimator="any_order_exact", device="cpu")
    assert found.nats == pytest.approx(wanted, abs=1e-12)
    if timed:  # what is finished is told that it is clean, a block by how much of it is hidden
        heard = []

        class Hears(Table):
            def __call__(self, z, t, cond=None):
                heard.extend(t.tolist())
                return super().__call__(z, t)

        answers.score(MASKED, Hears(True, "block", 2), text[:1], text[1:], estimator="one_step", device="cpu")
        assert [1.0, 1.0] in heard
        assert [0.0, 0.0, 1.0, 1.0] in heard
        assert [0.0, 0.0, 0.0, 0.0, 1.0] in heard


def test_draws_are_their_own_and_their_error_is_true():
    """One seed, one value; the mean of 200 seeds is the exact value, and each says how far 95% of them spread.

    5 standard errors, and 30% of the spread: both fail a correct estimator with a chance below 1e-5.
    """
    denoiser = Table()
    exact = score(denoiser, "any_order_exact").nats
    assert score(denoiser, "bound", seed=4) == score(denoiser, "bound", seed=4)
    found = [score(denoiser, "bound", draws=32, seed=seed) for seed in range(200)]
    nats = torch.tensor([one.nats for one in found], dtype=torch.float64)
    spread = nats.std().item()
    assert abs(nats.mean().item() - exact) < 5 * spread / math.sqrt(200)
    mean_square = sum((one.error / student95(answers.GROUPS)) ** 2 for one in found) / 200
    assert 0.7 < math.sqrt(mean_square) / spread < 1.3
    assert math.isnan(score(denoiser, "bound", draws=1).error)


def test_what_other_groups_say_moves_no_mean():
    """Over all draws of three groups of one set each, 7^3 by their chances, the mean of every group is the bound."""
    logp = -torch.rand(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sets = subsets(3)[1:]
    logp, many = torch.where(sets, logp, 0.0), sets.sum(1)
    chance = 1 / (3 * torch.tensor([math.comb(3, int(k)) for k in many], dtype=torch.float64))
    exact = (set_weights(sets)[:, None] * logp).sum()
    mean, plain = torch.zeros(3, dtype=torch.float64), 0.0
    for drawn in itertools.product(range(7), repeat=3):
        rows = torch.tensor(drawn)
        found = answers.levelled(logp[rows], sets[rows], 3 / many[rows].double(), torch.arange(3))
        mean += chance[rows].prod() * found
        plain += chance[rows].prod() * (found - logp[rows].sum(1) * 3 / many[rows]).abs().sum()
    torch.testing.assert_close(mean, exact.expand(3), rtol=0, atol=1e-12)
    assert plain > 0.1  # though it is not what the groups say by themselves


def test_tokens_that_cost_the_same_whatever_is_hidden_leave_nothing_to_chance():
    """Then what the others say is all there is to know; a token that cannot be is not hidden by the levels."""
    cost = -torch.arange(1.0, 7.0, dtype=torch.float64)
    hidden, weight, group = answers.drawn_sets(6, 64, 0)
    found = answers.levelled(torch.where(hidden, cost, 0.0), hidden, weight, group)
    torch.testing.assert_close(found, cost.sum().expand(8), rtol=0, atol=1e-12)
    cost[2] = -torch.inf
    found = answers.levelled(torch.where(hidden, cost, 0.0), hidden, weight, group)
    assert found.mean() == -torch.inf


@pytest.mark.parametrize("draws", [2, 3, 4])
def test_intervals_hold_though_groups_share_what_they_know(draws):
    """Few groups, 400 seeds: at 0.95 fewer than 368 hits have a chance of 5e-3. The groups' own spread held 0.74 on."""
    cost, hits = -torch.rand(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 0
    for seed in range(400):
        hidden, weight, group = answers.drawn_sets(10, draws, seed, 7)
        found = answers.levelled(torch.where(hidden, cost, 0.0), hidden, weight, group)
        error = student95(draws) * found.std() / math.sqrt(draws)
        hits += bool((found.mean() - cost.sum()).abs() <= error)
    assert hits >= 368


@pytest.mark.parametrize("estimator", ["chain_rule", "bound"])
def test_what_weighs_nothing_may_be_impossible(estimator):
    """A plan's total is the sum of what it weighs: a token that cannot be while others are hidden too is no 0 / 0."""
    own = plans.plan(6, plans.How(estimator, draws=4))
    logp = torch.where(own.hidden & (own.weights > 0), -1.0, -torch.inf).double().where(own.hidden, 0.0)
    assert (logp == -torch.inf).any()
    assert own.totals(logp[None], 4).isfinite().all()


def test_memory_is_bounded_and_the_value_is_not_moved_by_it(monkeypatch):
    whole = score(Table(), "bound", draws=64)
    rows = []

    class Counts(Table):
        def __call__(self, z, t, cond=None):
            rows.append(len(z))
            return super().__call__(z, t)

    monkeypatch.setattr(answers, "NUMBERS_AT_ONCE", 2 * K * 3)
    monkeypatch.setattr("redraft.sampling.speak.LEAST", 1)
    assert score(Counts(), "bound", draws=64).nats == pytest.approx(whole.nats, abs=1e-12)
    assert max(rows) == 2
    assert sum(rows) <= 7


@pytest.mark.parametrize(
    ("process", "denoiser", "options", "message"),
    [
        (MASKED, Table(), {"estimator": "bond"}, "unknown estimator 'bond'; did you mean 'bound'"),
        (MASKED, Table(), {"draws": 0}, "0 draws: pass one"),
        (MASKED, Table(), {"answer": ANSWER[:0]}, "an answer of 0 tokens"),
        (MASKED, Table(attention="causal"), {}, "autoregressive denoiser, which has one order: 'chain_rule'"),
        (MASKED, Table(), {"answer": torch.zeros(13).long(), "estimator": "any_order_exact"}, r"13 tokens.* 2\^13"),
        (processes.uniform(K), Table(), {}, "scored by a uniform process"),
    ],
)
def test_mistakes_are_named(process, denoiser, options, message):
    answer = options.get("answer", ANSWER)
    options = {name: value for name, value in options.items() if name != "answer"}
    with pytest.raises(ValueError, match=message):
        answers.score(process, denoiser, PROMPT, answer, device="cpu", **options)


def test_an_autoregressive_denoiser_has_the_chain_rule():
    denoiser = Table(attention="causal")
    assert score(denoiser, "chain_rule").nats == score(Table(), "chain_rule").nats


def test_a_shifted_denoiser_needs_a_prompt():
    """What it says of a first token is read off nothing."""
    denoiser = Table()
    denoiser.facts = replace(denoiser.facts, shifted=True)
    assert score(denoiser, "one_step").nats == score(Table(), "one_step").nats
    with pytest.raises(ValueError, match="pass a prompt, for example the model's beginning of text"):
        answers.score(MASKED, denoiser, PROMPT[:0], ANSWER, device="cpu")
