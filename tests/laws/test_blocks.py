"""Texts in an order: T6, T19, the draws of t per block, exact caches, and the laws that block models sample.

The networks are real, small and random; every equality is of two ways to compute one number, and every law enumerated.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from redraft import objectives, processes
from redraft.evaluation import estimators
from redraft.models import Transformer, TransformerConfig, contexts
from redraft.models.layers import Cache
from redraft.objectives import blocks
from redraft.processes import Facts
from redraft.processes.time import stratified
from redraft.randomness import row_generators
from redraft.sampling import sample, semi_autoregressive

from .oracle import posteriors, sequences, total_variation

K, MASK = 3, 3


def network(attention="block", block=None, dtype=torch.float64, schedule="linear", depth=2, **options) -> Transformer:
    torch.manual_seed(0)
    process = processes.masked(K, schedule)
    model = Transformer(TransformerConfig(process.to_dict(), depth=depth, attention=attention, block=block, **options))
    with torch.no_grad():  # a fresh head is zero, which would hide everything below it
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def texts(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, K, (rows, length), generator=torch.Generator().manual_seed(seed))


def chain_rule(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    """-log p(x_i | x_<i) by one plain call for each position, with masks from i on."""
    found = []
    for i in range(ids.shape[1]):
        z = torch.where(torch.arange(ids.shape[1]) < i, ids, MASK)
        found.append(-model(z, torch.ones(len(ids)))[:, i].gather(1, ids[:, i : i + 1]))
    return torch.cat(found, 1).detach()


# ---------------------------------------------------------------------------------------------------------- objective


@pytest.mark.parametrize("u", [0.0, 0.3, 0.999])
def test_t6_blocks_of_one_token_are_the_chain_rule_for_every_draw(u):
    """L' = 1: whatever t is drawn, the value is the autoregressive -log p(x_i | x_<i), 1e-12; and sums to a law."""
    model, ids = network(block=1), sequences(K, 4)
    draws = torch.full((len(ids),), u)
    loss = objectives.bd3lm(model, model.process, {"ids": ids}, draws, torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss.value, chain_rule(model, ids), rtol=0, atol=1e-12)
    assert torch.equal(loss.bound, loss.value)
    assert torch.exp(-loss.value.sum(1)).sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial"])
def test_t6_weight_times_masked_is_one_on_average(schedule):
    """Why t = 1 loses nothing for L' = 1: int -alpha' / (1 - alpha) P(masked) dt = 1, 1e-12."""
    process = processes.masked(K, schedule)
    node, share = np.polynomial.legendre.leggauss(60)
    t = torch.tensor((node + 1) / 2)
    masked = process.coefficients(t).mask[:, 0]
    mean = (torch.tensor(share / 2) * process.mask_weight(t)[:, 0] * masked).sum().item()
    assert mean == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("time_conditioned", [False, True])
def test_t6_one_block_is_mdlm(schedule, time_conditioned):
    """L' = L: the same (x0, z, t) and weights of the network give MDLM's value, position by position, 1e-12."""
    options = {"schedule": schedule, "time_conditioned": time_conditioned}
    one, full = network(block=6, **options), network("full", **options)
    full.load_state_dict({name: value for name, value in one.state_dict().items() if name != "noise_range"})
    batch, u = {"ids": texts(8, 6)}, stratified((0,), range(8), 8)
    found = objectives.bd3lm(one, one.process, batch, u, row_generators(0, rows=range(8)))
    mdlm = objectives.nelbo(full, full.process, batch, u, row_generators(0, rows=range(8)))
    assert (mdlm.value > 0).any()
    torch.testing.assert_close(found.value, mdlm.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.bound, mdlm.bound, rtol=1e-12, atol=1e-12)


def two_streams(model: Transformer, z: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    rank = contexts.block_ranks(z.shape[1], model.config.block)
    cond = {"attend": contexts.two_stream(rank), "positions": contexts.doubled(z.shape[1])}
    return model(torch.cat([z, x0], 1), torch.ones(len(z)), cond)[:, : z.shape[1]].detach()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_t19_two_streams(dtype, tolerance):
    """L = 6, L' = 2: what x0 and z may reach, and each block's output is a plain forward on [x0^{<b}, z^b]."""
    model, x0 = network(block=2, dtype=dtype), texts(4, 6)
    z = torch.where(torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.6, MASK, x0)
    out = two_streams(model, z, x0)
    for i in range(6):
        block, other = i // 2, (x0[:, i] + 1) % K
        changed = two_streams(model, z, x0.clone().index_copy_(1, torch.tensor([i]), other[:, None]))
        moved = (changed - out).abs().amax((0, 2)) > tolerance
        assert moved.tolist() == [j // 2 > block for j in range(6)], f"x0_{i} reaches the blocks after its own only"
        flipped = torch.where(z[:, i] == MASK, x0[:, i], MASK)
        changed = two_streams(model, z.clone().index_copy_(1, torch.tensor([i]), flipped[:, None]), x0)
        moved = (changed - out).abs().amax((0, 2)) > tolerance
        assert moved.tolist() == [j // 2 == block for j in range(6)], f"z_{i} reaches its own block only"
    for start in (0, 2, 4):
        plain = model(torch.cat([x0[:, :start], z[:, start : start + 2]], 1), torch.ones(4)).detach()
        torch.testing.assert_close(out[:, start : start + 2], plain[:, start:], rtol=0, atol=tolerance)


def test_isolated_documents_stay_apart_in_both_streams():
    """With segments a token is told nothing of another document, neither its noisy nor its clean tokens."""
    model, ids = network(block=2), texts(2, 6)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]]).expand(2, -1)  # the border cuts the second block
    changed = torch.where(segments == 0, (ids + 1) % K, ids)
    u = torch.tensor([0.9, 0.7])

    def values(rows, parts):
        batch = {"ids": rows, "segments": parts}
        return objectives.bd3lm(model, model.process, batch, u, row_generators(0, rows=range(2))).value

    apart = values(ids, segments)
    assert (apart[:, 3:] > 0).any()
    torch.testing.assert_close(values(changed, segments)[:, 3:], apart[:, 3:], rtol=0, atol=1e-12)
    together = torch.zeros_like(segments)
    assert (values(changed, together)[:, 3:] - values(ids, together)[:, 3:]).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------------------- the draws


def test_every_blocks_time_is_uniform(monkeypatch):
    """Section 2.2: with the permutation a block's mean of (t - 1/2)^2 is 1/12 exactly, B = 1; without, off by 0.137."""
    node, share = np.polynomial.legendre.leggauss(8)
    u, weight = torch.tensor((node + 1) / 2), torch.tensor(share / 2)
    means = []
    for order in itertools.permutations(range(4)):
        drawn = torch.tensor(order, dtype=torch.float64).expand(len(u), -1)
        monkeypatch.setattr(blocks, "rand", lambda *_, drawn=drawn: drawn)
        times = blocks.block_times(u, 4, None)
        assert ((times * 4).floor().sort(1).values == torch.arange(4)).all(), "a row draws once from each quarter"
        means.append((weight[:, None] * (times - 0.5) ** 2).sum(0))
    torch.testing.assert_close(
        torch.stack(means).mean(0), torch.full((4,), 1 / 12, dtype=torch.float64), rtol=0, atol=1e-14
    )
    unturned = u / 16  # the reference's u_ij = (U_ij + 16 i + j) / 16 B for i = j = 0, B = 1
    assert (weight * (unturned - 0.5) ** 2).sum().item() - 1 / 12 == pytest.approx(0.137, abs=1e-3)


def test_a_batch_draws_once_from_every_stratum():
    """Stratified u_i of B rows and N blocks: the B N draws lie one in each B N-th of (0, 1), up to the shared shift."""
    u = stratified((3,), range(8), 8)
    times = blocks.block_times(u, 5, row_generators(0, rows=range(8))).flatten().sort().values
    gaps = torch.cat([times, times[:1] + 1]).diff()
    torch.testing.assert_close(gaps, torch.full((40,), 1 / 40, dtype=torch.float64), rtol=0, atol=1e-12)
    row = blocks.block_times(u[2:3], 5, row_generators(0, rows=[2]))
    assert torch.equal(row, blocks.block_times(u, 5, row_generators(0, rows=range(8)))[2:3])


def exact_bound(model: Transformer, ids: torch.Tensor, block: int) -> float:
    """sum over blocks of the NELBO of one row, every pattern of masks by its integral over t (linear schedule)."""
    total = 0.0
    for start in range(0, ids.shape[1], block):
        part = ids[:, start : start + block]
        for pattern in itertools.product([False, True], repeat=block):
            m = sum(pattern)
            if m == 0:
                continue
            share = math.gamma(m) * math.gamma(block - m + 1) / math.gamma(block + 1)  # int t^(m-1) (1-t)^(n-m) dt
            masked = torch.tensor(pattern)
            z = torch.cat([ids[:, :start], torch.where(masked, MASK, part)], 1)
            logp = model(z, torch.ones(1))[:, start:].gather(2, part[..., None])[..., 0]
            total += share * -logp[:, masked].sum().item()
    return total


@pytest.mark.parametrize("score", [estimators.over_block_times, estimators.over_block_counts])
def test_objective_and_estimators_are_unbiased(score):
    """Draws of a row's bound average to the enumerated one, within five standard errors (false alarm below 1e-6)."""
    model, ids, rows = network(block=2, dtype=torch.float32, depth=1), texts(1, 4), 3000
    expected = exact_bound(model, ids, 2)
    batch, u = {"ids": ids.expand(rows, -1)}, torch.rand(rows, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        found = score(model, model.process, batch, u, torch.Generator().manual_seed(7)).sum(1)
    error = found.std().item() / math.sqrt(rows)
    assert found.mean().item() == pytest.approx(expected, abs=5 * error)
    assert error < 0.05 * expected


def test_which_estimator():
    """Each attention is measured by its own chain rule or bound, and only those that draw nothing count as exact."""
    for model, score in (
        (network(block=1), estimators.over_single_tokens),
        (network(block=3), estimators.over_block_counts),
        (network(block=3, time_conditioned=True), estimators.over_block_times),
        (network("permuted"), estimators.over_orders),
        (network("full"), estimators.over_counts),
    ):
        assert estimators.choose(model, model.process) is score
        assert (score in estimators.EXACT) == (model.config.block == 1)


# --------------------------------------------------------------------------------------------------- the range of rates


def test_clipped_range_draws_its_rates_and_claims_no_bound():
    """Mask rates within [mask_min, mask_max], for any schedule; the bound is NaN, and a model's own range is obeyed."""
    for schedule in ("linear", "cosine"):
        model, ids, seen = network(block=3, schedule=schedule), texts(64, 6), []
        process = model.process
        corrupt = process.corrupt

        def watched(x0, t, generator=None, seen=seen, corrupt=corrupt):
            seen.append(t)
            return corrupt(x0, t, generator)

        process.corrupt = watched
        u = stratified((0,), range(64), 64)
        loss = objectives.bd3lm(model, process, {"ids": ids}, u, mask_min=0.45, mask_max=0.95)
        assert loss.bound.isnan().all()
        assert loss.value.isfinite().all()
        model.noise_range.copy_(torch.tensor([0.45, 0.95]))
        assert objectives.bd3lm(model, process, {"ids": ids}, u).bound.isnan().all()
        for t in seen:
            rates = 1 - process.schedule(t)[0]
            assert 0.45 - 1e-9 <= rates.min() < 0.47
            assert 0.93 < rates.max() <= 0.95 + 1e-9
        full = objectives.bd3lm(model, process, {"ids": ids}, u, mask_min=0.0, mask_max=1.0)
        assert torch.equal(full.bound, full.value)


def test_row_variance_is_that_of_the_enumerated_rows():
    """All rows with all choices of a cell for each block, counted out; 1e-12."""
    losses = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sums = [losses[a, row, 0] + losses[b, row, 1] for row in range(4) for a in range(3) for b in range(3)]
    assert blocks.row_variance(losses) == pytest.approx(torch.stack(sums).var(correction=0).item(), abs=1e-12)


def test_chosen_range_has_the_least_variance(monkeypatch):
    """Losses that are level between the rates 0.3 and 0.85 and wild elsewhere: the widest such range is not beaten."""

    def cell(_denoiser, _process, batch, _seed, number, _rows):
        wild = 0.0 if 6 <= number < 17 else 5.0
        ids = batch["ids"].double()
        return ids[:, :2] * 0.1 + wild * torch.tensor([(-1.0) ** number, 1.0])

    monkeypatch.setattr(blocks, "_cell", cell)
    low, high = objectives.choose_range(network(block=3), processes.masked(K), {"ids": texts(40, 6)}, 0)
    assert 0.3 <= low < high <= 0.85
    assert high - low >= 0.5 - 1e-12


def test_retuning_is_a_pure_function_and_moves_the_buffer():
    model, batch = network(block=3), {"ids": texts(20, 6)}
    found = objectives.retune(model, model.process, batch, seed=4)
    assert model.noise_range.tolist() == pytest.approx(found)
    assert 0.5 - 1e-9 <= found[1] - found[0] <= 0.9 + 1e-9
    again = objectives.choose_range(model, model.process, batch, seed=4)
    assert again == found, "the range in force does not enter the choice of the next"


# ----------------------------------------------------------------------------------------------------------- any order


def test_any_order_is_a_likelihood_for_every_order():
    """exp(-value) summed over all K^L texts is 1 for a fixed order, 1e-12: each order is a chain rule of its own."""
    model, ids = network("permuted"), sequences(K, 3)
    per_order = []
    for order in range(6):
        loss = objectives.any_order(
            model, model.process, {"ids": ids}, torch.zeros(27), [torch.Generator().manual_seed(order) for _ in ids]
        )
        law = torch.exp(-loss.value.sum(1))
        assert law.sum().item() == pytest.approx(1, abs=1e-12)
        per_order.append(law)
    assert (torch.stack(per_order).std(0) > 1e-6).all(), "orders differ, or nothing was shown"


def test_plain_call_of_a_permuted_model_is_its_two_stream_forward():
    """Known tokens as the prefix of an order, in the order they stand: the next token's law is the plain call's, 1e-12.

    The model's reading of known tokens depends on their order, so another order of the same tokens gives another law.
    """
    model, x0 = network("permuted"), texts(2, 5)
    for known in itertools.product([False, True], repeat=5):
        given = torch.tensor(known).expand(2, -1)
        plain = model(torch.where(given, x0, MASK), torch.ones(2))
        for i in (~given[0]).nonzero().flatten().tolist():
            order = [*[j for j in range(5) if known[j]], i, *[j for j in range(5) if not known[j] and j != i]]
            rank = torch.tensor(order).argsort()
            cond = {"attend": contexts.two_stream(rank), "positions": contexts.doubled(5)}
            both = model(torch.cat([torch.full_like(x0, MASK), x0], 1), torch.ones(2), cond)
            torch.testing.assert_close(both[:, i], plain[:, i], rtol=0, atol=1e-12)
    told = []
    for order in ([0, 1, 2, 3, 4], [1, 0, 2, 3, 4]):
        cond = {"attend": contexts.two_stream(torch.tensor(order).argsort()), "positions": contexts.doubled(5)}
        told.append(model(torch.cat([torch.full_like(x0, MASK), x0], 1), torch.ones(2), cond)[:, 2])
    assert (told[0] - told[1]).abs().max() > 1e-3


# ----------------------------------------------------------------------------------------------------------- sampling


def test_cached_forward_is_the_uncached_one():
    """Each block's log p from the cache of the finished ones, and from the whole text: 1e-12; prompts in one pass."""
    model, x0 = network(block=2), texts(3, 8)
    z = torch.where(torch.rand(3, 8, generator=torch.Generator().manual_seed(2)) < 0.5, MASK, x0)
    cache = Cache()
    first = {"attend": contexts.up_to(contexts.block_ranks(4, 2)), "cache": cache, "store": True}
    model(x0[:, :4], torch.zeros(3), first)
    for start in (4, 6):
        place = torch.arange(start, start + 2)
        cached = model(z[:, start : start + 2], torch.ones(3), {"cache": cache, "positions": place})
        plain = model(torch.cat([x0[:, :start], z[:, start : start + 2]], 1), torch.ones(3))[:, start:]
        torch.testing.assert_close(cached, plain, rtol=0, atol=1e-12)
        model(x0[:, start : start + 2], torch.zeros(3), {"cache": cache, "positions": place, "store": True})
    assert cache.keys[0].shape[2] == 8


@pytest.mark.parametrize("length", [4, 5, 6])
def test_a_prompt_is_read_as_it_was_in_training(length):
    """Continued from a prompt, in whole blocks or not, a text is worth its part of the chain rule, 1e-12."""
    model = network(block=2)
    ids = torch.cat([texts(1, length).expand(9, -1), sequences(K, 2)], 1)
    forced = Forced(ids[:, length:])
    found = sample(model.process, model, prompt=ids[0, :length], length=2, num=9, steps=2, sampler=forced)
    assert torch.equal(found.tokens, ids)
    exact = -chain_rule(model, ids)[:, length:].sum(1)
    torch.testing.assert_close(forced.logp, exact, rtol=0, atol=1e-12)


class Forced:
    """A sampler that writes given texts, one token a step from the left, and adds up what each was worth.

    Run on all texts at once it propagates the sampler's law exactly.
    """

    def __init__(self, targets: torch.Tensor) -> None:
        self.targets, self.written = targets, 0
        self.logp = torch.zeros(len(targets), dtype=torch.float64)

    def __call__(self, process, denoiser, z, t, s, draw):
        logp, place = denoiser(z, t), int((z[0] == process.mask_id).nonzero()[0])
        token = self.targets[:, self.written]
        self.logp = self.logp + logp[torch.arange(len(z)), place, token].double()
        self.written += 1
        return z.clone().index_copy_(1, torch.tensor([place]), token[:, None])


@pytest.mark.parametrize("caches", [True, False])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_law_of_a_text_written_by_blocks(block, caches):
    """Written one token at a time the text has the law prod_i p(x_i | x_<i, masks to the end of its block), 1e-12."""
    model, ids = network(block=block), sequences(K, 5)
    denoiser = model if caches else Uncached(model)
    forced = Forced(ids)
    found = sample(model.process, denoiser, length=5, num=len(ids), steps=block, sampler=forced)
    assert torch.equal(found.tokens, ids)
    assert forced.logp.exp().sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(forced.logp, -chain_rule(model, ids).sum(1), rtol=0, atol=1e-12)


class Uncached:
    """The same model as one that knows no cache."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        facts = model.facts
        self.facts = Facts(attention="block", block=facts.block, mask_id=facts.mask_id)

    def __call__(self, z, t, cond=None):
        return self.model(z, t, cond)


class Chain:
    """Exact denoiser of any window of a stationary chain, whose law over a window does not depend on its place."""

    facts = Facts(mask_id=2)

    def __init__(self, law: torch.Tensor) -> None:
        self.law = law  # over as many positions as the longest window

    def __call__(self, z, t, cond=None):
        law = self.law
        while law.dim() > z.shape[1]:
            law = law.sum(-1)
        seen = torch.where((z == 2)[..., None], 1.0, torch.nn.functional.one_hot(z.clamp(max=1), 2).double())
        return posteriors(law, seen, "cavity").log()


def stationary(order: int, length: int) -> torch.Tensor:
    """The law of a binary chain of that order, started in equilibrium, over ``length`` positions."""
    weights = torch.rand(2**order, generator=torch.Generator().manual_seed(order), dtype=torch.float64) * 0.8 + 0.1
    state = sequences(2, order + 1)
    number = state[:, :-1] @ (2 ** torch.arange(order - 1, -1, -1))
    step = torch.where(state[:, -1] == 1, weights[number], 1 - weights[number]).reshape([2] * (order + 1))
    law = torch.full([2] * order, 2.0**-order, dtype=torch.float64)
    for _ in range(500):
        law = (law[..., None] * step).sum(0)
    while law.dim() < length:
        law = law[..., None] * step
    return law


def slid(law: torch.Tensor, length: int, window: int, stride: int) -> torch.Tensor:
    """The law over texts that windows of the exact denoiser write, propagated exactly."""
    ids = sequences(2, length)
    forced = Forced(ids)
    found = semi_autoregressive(
        processes.masked(2), Chain(law), window=window, stride=stride, length=length, num=len(ids), steps=window,
        sampler=forced,
    )  # fmt: skip
    assert torch.equal(found.tokens, ids)
    assert forced.logp.exp().sum().item() == pytest.approx(1, abs=1e-12)
    return forced.logp.exp()


@pytest.mark.parametrize(("window", "stride"), [(4, 2), (4, 3), (3, 2), (5, 1), (7, 3)])
def test_sliding_window_keeps_the_law_of_a_markov_chain(window, stride):
    """Length 7, one token a step, exact denoisers: TV 0 (1e-12) as soon as windows overlap by the chain's order."""
    truth = stationary(1, 7)
    assert total_variation(slid(truth, 7, window, stride), truth.flatten()) < 1e-12


def test_sliding_window_cannot_know_what_it_has_dropped():
    """A chain of order 2 with one token of overlap: another law, and the right one again with two."""
    truth = stationary(2, 7)
    assert total_variation(slid(truth, 7, 4, 3), truth.flatten()) > 0.01
    assert total_variation(slid(truth, 7, 4, 2), truth.flatten()) < 1e-12
