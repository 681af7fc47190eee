"""What is kept of a canvas while a block is written: exact for block models, approximate for the others, and cheaper.

The oracle is the algorithm written plainly on the network itself, one row, in float64.
"""

import pytest
import torch

from redraft import processes
from redraft.models import Transformer, TransformerConfig
from redraft.models.layers import Cache
from redraft.sampling import sample

K, MASK = 11, 11
PROCESS = processes.masked(K)
PROMPT = [1, 2, 3, 4, 5]


def network(attention="full", block=None, **options) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(PROCESS.to_dict(), depth=2, attention=attention, block=block, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double().eval()


def plain(model, length: int, block: int, keep: str | None, refresh: int | None, tau: float) -> tuple[list[int], int]:
    """Threshold decoding of one row, and its number of calls."""
    x, calls = torch.tensor([PROMPT + [MASK] * length]), 0
    for start in range(len(PROMPT), x.shape[1], block):
        stop, kept, age = min(start + block, x.shape[1]), Cache(), 0
        while bool((x[0, start:stop] == MASK).any()):
            t, calls = torch.ones(1, dtype=torch.float64), calls + 1
            if keep is None or age % (refresh or 10**6) == 0:
                whole = Cache()
                logp = model(x, t, {"cache": whole, "store": True})[0, start:stop]
                right = slice(stop, None) if keep == "dual" else slice(0, 0)
                for mine, theirs in ((kept.keys, whole.keys), (kept.values, whole.values)):
                    mine[:] = [torch.cat([one[:, :, :start], one[:, :, right]], dim=2) for one in theirs]
            else:
                end = stop if keep == "dual" else x.shape[1]
                told = {"cache": kept, "positions": torch.arange(start, end)}
                logp = model(x[:, start:end], t, told)[0, : stop - start]
            age += 1
            p, tokens = logp.exp().max(-1)
            p = torch.where(x[0, start:stop] == MASK, p, -1.0)
            chosen = (p > tau) | (torch.arange(stop - start) == p.argmax())
            x[0, start:stop] = torch.where(chosen, tokens, x[0, start:stop])
    return x[0].tolist(), calls


@pytest.mark.parametrize("keep", [None, "prefix", "dual"])
@pytest.mark.parametrize("refresh", [None, 1, 2, 3])
@pytest.mark.parametrize("tau", [0.3, 0.6, 1.0])
@torch.no_grad()
def test_caches_are_the_plain_loop(keep, refresh, tau):
    if keep is None and refresh is not None:
        pytest.skip("nothing to renew")
    model = network()
    found = sample(
        PROCESS,
        model,
        prompt=PROMPT,
        length=9,
        block=4,
        cache=keep,
        refresh=refresh,
        sampler=f"threshold:tau={tau}",
        temperature=0.0,
    )
    tokens, calls = plain(model, 9, 4, keep, refresh, tau)
    assert found.tokens[0].tolist() == tokens
    assert found.nfe == calls
    assert found.approximate == (found.cost.cached > 0)


@pytest.mark.parametrize("keep", ["prefix", "dual"])
def test_renewed_at_every_call_it_is_exact_to_the_last_bit(keep):
    model, options = network().float(), {"prompt": PROMPT, "length": 12, "block": 4, "sampler": "low_confidence"}
    exact = sample(PROCESS, model, **options)
    renewed = sample(PROCESS, model, **options, cache=keep, refresh=1)
    kept = sample(PROCESS, model, **options, cache=keep)
    assert torch.equal(exact.tokens, renewed.tokens)
    assert torch.equal(exact.logp.nan_to_num(9), renewed.logp.nan_to_num(9))
    assert not torch.equal(exact.logp.nan_to_num(9), kept.logp.nan_to_num(9)), "an approximation, and it shows"


@pytest.mark.parametrize("time_conditioned", [False, True])
def test_block_models_lose_nothing_by_their_cache(time_conditioned):
    """Cached block decoding is the full recompute, to 1e-12 in float64."""
    model = network("block", 3, time_conditioned=time_conditioned)

    class Uncached:
        facts = processes.Facts(attention="block", block=3, mask_id=MASK, time_conditioned=time_conditioned)

        def __call__(self, z, t, cond=None):
            return model(z, t, cond)

    options = {"prompt": PROMPT, "length": 8, "num": 3, "sampler": "threshold:tau=0.5", "temperature": 0.7}
    cached, uncached = sample(PROCESS, model, **options), sample(PROCESS, Uncached(), **options)
    assert torch.equal(cached.tokens, uncached.tokens)
    torch.testing.assert_close(cached.logp, uncached.logp, atol=1e-12, rtol=0, equal_nan=True)
    assert not cached.approximate
    assert cached.positions < uncached.positions
    assert cached.cost.cached > 0 == uncached.cost.cached


def test_one_block_is_no_block():
    model, options = network(), {"prompt": PROMPT, "length": 8, "num": 2, "sampler": "low_confidence", "steps": 3}
    options["temperature"] = 0.0  # a draw for every position of the canvas is not one for every position of the block
    whole, one = sample(PROCESS, model, **options), sample(PROCESS, model, **options, block=8)
    assert torch.equal(whole.tokens, one.tokens)
    assert (whole.nfe, whole.positions) == (one.nfe, one.positions)


def test_a_block_that_is_written_at_once_costs_one_call():
    """Peers run a cached call at least (8 calls for 4 blocks); there is nothing left to ask about."""
    for keep in ("prefix", "dual", None):
        found = sample(
            PROCESS,
            network(),
            prompt=PROMPT,
            length=12,
            block=3,
            cache=keep,
            sampler="threshold:tau=0",
            temperature=0.0,
        )
        assert found.nfe == 4
        assert found.positions == 4 * 17


def test_what_caches_cost():
    """One token a step in blocks of four: the canvas once a block, then the block, or the block and what follows."""
    options = {"prompt": PROMPT, "length": 8, "block": 4, "sampler": "low_confidence", "num": 2, "temperature": 0.0}
    dual = sample(PROCESS, network(), **options, cache="dual").cost
    assert (dual.nfe, dual.positions) == (8, 2 * (2 * 13 + 6 * 4))
    assert dual.cached == 2 * 6 * 9
    prefix = sample(PROCESS, network(), **options, cache="prefix").cost
    assert (prefix.nfe, prefix.positions) == (8, 2 * (2 * 13 + 3 * 8 + 3 * 4))
    assert prefix.cached == 2 * (3 * 5 + 3 * 9)
    assert prefix.of_rows == [8, 8]
    assert (prefix.written, prefix.tokens_per_forward) == (16, 1.0)
    renewed = sample(PROCESS, network(), **options, cache="dual", refresh=2).cost
    assert renewed.positions == 2 * (4 * 13 + 4 * 4)


def test_a_row_that_has_ended_costs_nothing_more():
    """It leaves at the end of its block, and the others are written as if it had never been there."""
    stop, model = 10, network()
    options = {"length": 16, "block": 4, "sampler": "low_confidence", "cache": "dual", "prompt": PROMPT}
    apart = [sample(PROCESS, model, **options, stop=stop, seeds=[seed]) for seed in range(12)]
    ended = [one.lengths[0] < 21 for one in apart]
    assert any(ended)
    assert not all(ended)
    both = sample(PROCESS, model, **options, stop=stop, seeds=list(range(12)))
    assert both.cost.of_rows == [one.nfe for one in apart]
    for row, one in enumerate(apart):
        assert torch.equal(one.tokens[0], both.tokens[row])
        text = one.tokens[0, 5:]
        if ended[row]:
            assert one.nfe < 16
            first = int((text == stop).int().argmax())
            assert one.lengths[0] == 5 + first + 1
            assert (text[first:] == stop).all()
        else:
            assert not (text[:-1] == stop).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "dual"}, "without blocks"),
        ({"cache": "both", "block": 2}, "unknown cache 'both'"),
        ({"block": 0}, "block=0"),
        ({"block": 2, "refresh": 2}, "refresh=2 with cache=None"),
        ({"block": 2, "cache": "dual", "refresh": 0}, "refresh=0"),
        ({"block": 2, "cond": {"positions": torch.arange(4)}}, "leave them out"),
        ({"min_length": 3}, "min_length=3 with stop=None"),
        ({"banned": [K]}, "banned holds 11"),
        ({"banned": list(range(K))}, "leave one"),
        ({"repetition": 0.0}, "repetition=0.0"),
        ({"top_k": -1}, "top_k=-1"),
        ({"stop": 12}, "stop holds 12"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample(PROCESS, network(), length=4, **options)


def test_what_block_models_refuse():
    for options, message in (({"cache": "dual"}, "exact and always used"), ({"block": 4}, "made for block=3")):
        with pytest.raises(ValueError, match=message):
            sample(PROCESS, network("block", 3), length=4, **options)
    process = processes.uniform(5)
    model = Transformer(TransformerConfig(process.to_dict(), depth=1))
    with pytest.raises(ValueError, match="needs blocks and masks"):
        sample(process, model, length=4, block=2)
