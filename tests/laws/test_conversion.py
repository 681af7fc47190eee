"""A causal model made to denoise says what it said before, as far as it reads what it read before."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity.bases import STYLES, base, exact

from redraft import objectives
from redraft.conversion import convert
from redraft.data import Packed
from redraft.data.packing import without_first_tokens
from redraft.evaluation import likelihood
from redraft.models import contexts
from redraft.objectives.annealing import Opening

L = 9
IDS = torch.randint(2, 60, (3, L), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=STYLES)
def pair(request, tmp_path_factory):
    """A causal network in float64, and the same as a masked denoiser with the shift kept, and with it dropped."""
    folder = tmp_path_factory.mktemp(request.param)
    network = exact(base(folder, request.param), request.param)
    kept, dropped = (convert(folder, to="masked", shift=shift).denoiser.double() for shift in (True, False))
    with torch.no_grad():
        yield network, kept, dropped


def causal(denoiser):
    return Opening(denoiser, contexts.opened(L, 0.0))


def autoregressive_loss(network, ids):
    """-log p(x_i | x_<i) of all but the first, (B, L - 1)."""
    logits = network(ids).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


def test_no_opening_leaves_the_causal_model(pair):
    network, kept, _ = pair
    wanted = network(IDS).logits
    found = kept.logits(IDS, {"attend": contexts.opened(L, 0.0)})
    assert found.shape[-1] == wanted.shape[-1] + 1  # the mask's row
    torch.testing.assert_close(found[:, 1:, :-1], wanted[:, :-1], rtol=0, atol=1e-10)


def test_cross_entropy_of_a_text_is_the_autoregressive_loss(pair):
    network, kept, _ = pair
    logp = causal(kept)(IDS, torch.zeros(3))
    found = -logp.gather(-1, IDS[..., None])[:, 1:, 0]
    torch.testing.assert_close(found, autoregressive_loss(network, IDS), rtol=0, atol=1e-10)


@pytest.mark.parametrize("behind", ["clean", "masked"])
def test_one_masked_token_after_a_clean_prefix_costs_what_the_next_token_does(pair, behind):
    network, kept, _ = pair
    wanted, t = autoregressive_loss(network, IDS), torch.full((3,), 0.5)
    for n in range(1, L):
        z, where = IDS.clone(), torch.zeros_like(IDS, dtype=torch.bool)
        where[:, n] = True
        z[:, n : L if behind == "masked" else n + 1] = kept.process.mask_id
        losses = objectives.masked_cross_entropy(causal(kept), {"ids": IDS}, z, t, where)
        torch.testing.assert_close(losses[:, n], wanted[:, n - 1], rtol=0, atol=1e-10)


def test_wide_open_every_position_reads_every_other(pair):
    _, kept, dropped = pair
    assert bool(contexts.opened(L, 1.0).all())
    other = IDS.clone()
    other[:, 5] = (other[:, 5] - 1) % 50 + 2
    for open_, moved in ((0.0, False), (1.0, True)):
        told = {"attend": contexts.opened(L, open_)}
        before, after = (dropped.logits(ids, told)[:, 4] for ids in (IDS, other))
        assert ((before - after).abs().amax() > 1e-6) == moved
        assert torch.equal(before, after) != moved
    torch.testing.assert_close(kept.logits(IDS), kept.logits(IDS, {"attend": contexts.opened(L, 1.0)}))


def test_the_shift_is_all_that_keeping_it_changes(pair):
    _, kept, dropped = pair
    torch.testing.assert_close(kept.logits(IDS)[:, 1:], dropped.logits(IDS)[:, :-1], rtol=0, atol=1e-12)


def test_a_shifted_loss_ignores_what_nothing_stands_before(pair):
    _, kept, dropped = pair
    apart = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2]] * 3, np.int32)
    rows = Packed(IDS.numpy().astype(np.int32), None, apart, 0, IDS.numel())
    assert (kept.facts.shifted, dropped.facts.shifted) == (True, False)
    found = without_first_tokens(rows)
    assert found.valid[0].tolist() == [False, True, True, False, True, True, True, False, True]
    assert found.num_tokens == 18
    alone = without_first_tokens(Packed(rows.ids, np.ones((3, L), bool), None, 0, IDS.numel()))
    assert alone.valid[1].tolist() == [False] + [True] * (L - 1)


def test_first_tokens_of_a_shifted_model_are_not_measured(pair):
    """Whatever they are, as all that is measured is without them; of logits at their own place all count."""
    _, kept, dropped = pair
    rows = Packed(IDS.numpy().astype(np.int32), None, None, 100, IDS.numel())
    found, every = (likelihood(one, one.process, rows, draws=1) for one in (kept, dropped))
    assert (found.tokens, every.tokens) == (IDS.numel() - len(IDS), IDS.numel())
    assert found.bits_per_char is None
    assert every.bits_per_char is not None
    stated = likelihood(kept, kept.process, without_first_tokens(rows), draws=1)
    assert stated.nats_per_token == found.nats_per_token


def test_the_row_of_the_mask_changes_nothing_else(tmp_path):
    base(tmp_path)
    with_row, without = (convert(tmp_path, to=to).denoiser.double() for to in ("masked", "uniform"))
    assert len(with_row.backbone.model.embed_tokens.weight) == len(without.backbone.model.embed_tokens.weight) + 1
    with torch.no_grad():
        assert torch.equal(with_row.logits(IDS)[..., :-1], without.logits(IDS))


# ------------------------------------------------------------------------------------------------------- annealing


def test_a_pattern_opens_by_its_share():
    """5 standard errors: a false alarm in 2 million, were the seed not fixed."""
    length, share = 100, 0.3
    pattern = contexts.opened(length, share, torch.Generator().manual_seed(0))
    lower = torch.ones(length, length, dtype=torch.bool).tril()
    assert bool(pattern[lower].all())
    right = pattern[~lower].double()
    assert abs(float(right.mean()) - share) < 5 * (share * (1 - share) / len(right)) ** 0.5
    assert torch.equal(contexts.opened(length, 0.0), lower)
    assert bool(contexts.opened(length, 1.0).all())


class Recorder:
    """A denoiser that keeps what it was told of attention."""

    def __init__(self, denoiser):
        self.denoiser, self.facts, self.told = denoiser, denoiser.facts, []

    def __call__(self, z, t, cond=None, **asked):
        self.told.append((cond or {}).get("attend"))
        return self.denoiser(z, t, cond, **asked)


def patterns(objective, denoiser, process, ids, steps, u=0.7):
    seen = Recorder(denoiser)
    for step in range(steps):
        u_ = torch.full((len(ids),), u)
        objectives.at(objective, step / steps)(seen, process, {"ids": ids}, u_, torch.Generator().manual_seed(step))
    return seen.told


def test_attention_opens_step_by_step_and_then_is_open(tmp_path):
    base(tmp_path)
    lm = convert(tmp_path, to="masked", shift=True)
    objective = objectives.annealed(objectives.get("nelbo"), over=4, seed=1, steps=6)
    with torch.no_grad():
        told = patterns(objective, lm.denoiser, lm.process, IDS, 6)
        part = patterns(objective, lm.denoiser, lm.process, IDS[:2], 6)
        other = patterns(objectives.annealed(objectives.get("nelbo"), 4, 2, 6), lm.denoiser, lm.process, IDS, 6)
    assert told[3:] == [None] * 3  # min(1, (step + 1) / 4) = 1 from step 3
    assert [one.shape for one in told[:3]] == [(L, L)] * 3
    for step in range(3):
        drawn = objectives.annealing.randomness.generator(1, objectives.annealing.PATTERN, step)
        assert torch.equal(told[step], contexts.opened(L, (step + 1) / 4, drawn))
        assert torch.equal(told[step], part[step])  # one for a step, whatever part of its batch is computed
        assert not torch.equal(told[step], other[step])
    assert not torch.equal(told[0], told[1])


def test_a_block_model_reads_its_own_pattern_of_the_opening(tmp_path):
    """Told nothing else, it reads what both let it."""
    base(tmp_path)
    lm, pattern = convert(tmp_path, to="block", block=3), contexts.opened(L, 0.5, torch.Generator().manual_seed(0))
    own = contexts.up_to(contexts.block_ranks(L, 3))
    assert bool((pattern & ~own).any())
    places = torch.arange(L) + 6
    wide = contexts.opened(L + 6, 0.5, torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = Opening(lm.denoiser, pattern)(IDS, torch.ones(3))
        torch.testing.assert_close(found, lm.denoiser(IDS, torch.ones(3), {"attend": own & pattern}))
        found = Opening(lm.denoiser, wide)(IDS, torch.ones(3), {"positions": places})
        told = {"positions": places, "attend": own & wide[6:, 6:]}
        torch.testing.assert_close(found, lm.denoiser(IDS, torch.ones(3), told))


def test_both_streams_of_a_block_model_keep_to_the_pattern(tmp_path):
    base(tmp_path)
    lm = convert(tmp_path, to="block", block=3)
    objective = objectives.annealed(objectives.get("bd3lm"), over=3, seed=1, steps=3)
    with torch.no_grad():
        told = patterns(objective, lm.denoiser, lm.process, IDS, 3)
    whole = contexts.two_stream(contexts.block_ranks(L, 3))
    drawn = objectives.annealing.randomness.generator(1, objectives.annealing.PATTERN, 0)
    assert torch.equal(told[0], whole & contexts.opened(L, 1 / 3, drawn).repeat(2, 2))
    assert torch.equal(told[2], whole)
