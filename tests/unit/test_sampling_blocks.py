"""Texts written by blocks and by sliding windows: what they cost, what they keep, what they refuse."""

import pytest
import torch

from redraft import processes
from redraft.models import Transformer, TransformerConfig
from redraft.processes import Facts
from redraft.sampling import sample, semi_autoregressive

K, MASK = 7, 7
PROCESS = processes.masked(K)


def network(attention="block", block=2, **options) -> Transformer:
    torch.manual_seed(0)
    block = block if attention == "block" else None
    model = Transformer(TransformerConfig(PROCESS.to_dict(), depth=2, attention=attention, block=block, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


class Uncached:
    """The same model as one that knows no cache, keeping the times it was told."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.times = model, []
        facts = model.facts
        self.facts = Facts(attention="block", block=facts.block, mask_id=MASK, time_conditioned=facts.time_conditioned)

    def __call__(self, z, t, cond=None):
        self.times.append(t)
        return self.model(z, t, cond)


@pytest.mark.parametrize("sampler", ["ancestral", "confidence", "left_to_right"])
@pytest.mark.parametrize("time_conditioned", [False, True])
def test_cache_changes_no_token(sampler, time_conditioned):
    model = network(time_conditioned=time_conditioned)
    options = {"length": 7, "num": 4, "steps": 4, "prompt": [1, 2, 3, 4, 5], "sampler": sampler, "seed": 5}
    plain = Uncached(model)
    cached, uncached = sample(PROCESS, model, **options), sample(PROCESS, plain, **options)
    assert torch.equal(cached.tokens, uncached.tokens)
    assert not (cached.tokens == MASK).any()
    assert cached.positions < uncached.positions
    if time_conditioned:
        assert all((t[:, :4] == 0).all() for t in plain.times), "finished text is told that it is clean"


def test_cost():
    """Two tokens a block one at a time, and a clean pass for each finished block that another follows."""
    model = network()
    found = sample(PROCESS, model, length=6, num=3, steps=2, sampler="left_to_right")
    assert (found.nfe, found.positions) == (3 * 2 + 2, 3 * (3 * 2 + 2) * 2)
    given = sample(PROCESS, model, length=2, num=3, steps=2, sampler="left_to_right", prompt=[1, 2, 3, 4])
    assert (given.nfe, given.positions) == (1 + 2, 3 * (4 + 2 * 2)), "a prompt is taken in by one pass"
    plain = sample(PROCESS, Uncached(model), length=6, num=3, steps=2, sampler="left_to_right")
    assert (plain.nfe, plain.positions) == (3 * 2, 3 * 2 * (2 + 4 + 6))
    full = torch.ones(1, 4, dtype=torch.bool)
    whole = sample(PROCESS, model, canvas=torch.ones(1, 4, dtype=torch.long), frozen=full)
    assert (whole.nfe, whole.positions, whole.tokens.tolist()) == (0, 0, [[1, 1, 1, 1]])


def test_one_block_is_the_whole_canvas():
    """L' = L writes what the same weights with full attention write, from the same seeds."""
    one, full = network(block=6), network("full")
    full.load_state_dict({name: value for name, value in one.state_dict().items() if name != "noise_range"})
    options = {"length": 4, "num": 3, "prompt": [1, 2], "steps": 8, "seed": 3}
    found, whole = sample(PROCESS, one, **options), sample(PROCESS, full, **options)
    assert torch.equal(found.tokens, whole.tokens)
    assert found.seeds == whole.seeds


def test_rows_do_not_depend_on_their_neighbours():
    """Rows with given tokens in other places, in a partly given block too: the batch is its rows, one by one."""
    model = network(block=3)
    canvas = torch.tensor([[1, 2, 3, 4, 5, 6, 0, 0], [1, 0, 3, 0, 0, 0, 0, 0], [1, 2, 3, 4, 0, 6, 0, 0]])
    frozen = canvas > 0
    batch = sample(PROCESS, model, canvas=canvas, frozen=frozen, seeds=[5, 6, 7], steps=6)
    assert torch.equal(batch.tokens[frozen], canvas[frozen])
    for row in range(3):
        alone = sample(PROCESS, model, canvas=canvas[row], frozen=frozen[row], seeds=[5 + row], steps=6)
        assert torch.equal(alone.tokens[0], batch.tokens[row])


def test_blocks_draw_from_streams_of_their_own():
    """A model that says the same of every position does not write the same block over and over."""
    model = network()
    with torch.no_grad():
        model.head.weight.zero_()
    found = sample(PROCESS, model, length=40, num=1, steps=2).tokens.reshape(20, 2)
    assert len(found.unique(dim=0)) > 10


def test_callback_sees_the_whole_canvas_and_may_rewrite_the_block_in_work():
    seen = []

    def watch(step):
        seen.append((step.index, step.steps, step.nfe, step.tokens.clone()))
        return torch.where(step.z == MASK, step.z, 4) if step.index % 2 else None

    found = sample(PROCESS, network(), length=4, num=2, steps=2, sampler="left_to_right", prompt=[1, 1], callback=watch)
    assert [index for index, *_ in seen] == [0, 1, 2, 3]
    assert {steps for _, steps, *_ in seen} == {4}
    assert [nfe for *_, nfe, _ in seen] == [2, 3, 5, 6]
    assert all(tokens.shape == (2, 6) for *_, tokens in seen)
    assert (seen[0][3][:, 3:] == MASK).all()
    assert found.tokens.tolist() == [[1, 1, 4, 4, 4, 4]] * 2
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        sample(PROCESS, network(), length=4, num=2, steps=2, callback=lambda step: step.z[:, :2])


def test_what_is_refused():
    model = network()
    canvas, frozen = torch.tensor([[1, 0, 0, 2]]), torch.tensor([[True, False, False, True]])
    with pytest.raises(ValueError, match="sees nothing right of"):
        sample(PROCESS, model, canvas=canvas, frozen=frozen)
    inside = sample(PROCESS, network(block=4), canvas=canvas, frozen=frozen, steps=4)
    assert inside.tokens[0, [0, 3]].tolist() == [1, 2], "right of the gap in the same block is seen"
    with pytest.raises(ValueError, match="leave them out"):
        sample(PROCESS, model, length=4, cond={"segments": torch.zeros(1, 4, dtype=torch.long)})
    uniform = Uncached(model)
    uniform.facts = Facts(attention="block", block=2, mask_id=None)
    with pytest.raises(ValueError, match="uniform process"):
        sample(processes.uniform(K), uniform, length=4)
    with pytest.raises(ValueError, match="attention='block' with a uniform process"):
        Transformer(TransformerConfig(processes.uniform(K).to_dict(), attention="block", block=2))


# ------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("attention", ["full", "causal", "block", "permuted"])
def test_a_text_that_fits_into_the_window_is_samples(attention):
    model = network(attention)
    options = {"length": 4, "num": 3, "prompt": [1, 2], "seed": 9}
    found, plain = semi_autoregressive(PROCESS, model, window=6, **options), sample(PROCESS, model, **options)
    assert torch.equal(found.tokens, plain.tokens)
    assert (found.nfe, found.positions, found.seeds) == (plain.nfe, plain.positions, plain.seeds)


def test_windows_keep_what_is_written_and_reach_the_length():
    """A prompt longer than the window stays as it is; every window is written once and not touched again."""
    model, seen = network("full"), []

    def watch(step):
        seen.append((step.z.shape[1], int(step.frozen[0].sum())))

    prompt = [1, 2, 3, 4, 5, 6]
    found = semi_autoregressive(
        PROCESS, model, window=4, stride=3, length=7, num=2, prompt=prompt, steps=3, sampler="left_to_right",
        callback=watch,
    )  # fmt: skip
    assert found.tokens.shape == (2, 13)
    assert found.tokens[:, :6].tolist() == [prompt] * 2
    assert not (found.tokens == MASK).any()
    assert list(dict.fromkeys(seen)) == [(4, 1), (4, 3)]
    assert found.positions == 2 * 4 * found.nfe
    short = semi_autoregressive(
        PROCESS, model, window=4, stride=3, length=3, num=2, prompt=prompt, steps=3, sampler="left_to_right"
    )
    assert torch.equal(short.tokens, found.tokens[:, :9]), "a longer text begins as the shorter one does"


def test_rows_of_windows_are_their_own():
    model = network("full")
    options = {"window": 4, "length": 9, "steps": 4}
    batch = semi_autoregressive(PROCESS, model, seeds=[3, 4], **options)
    alone = semi_autoregressive(PROCESS, model, seeds=[4], **options)
    assert torch.equal(alone.tokens[0], batch.tokens[1])


@pytest.mark.parametrize("options", [{"stride": 0}, {"stride": 4}, {"length": 0}, {"num": 0}, {"prompt": [[1, 2]]}])
def test_windows_refuse(options):
    with pytest.raises(ValueError, match=r"stride=|length=|prompt of shape"):
        semi_autoregressive(PROCESS, network("full"), window=4, **{"length": 8, **options})
