"""Requests at their edges: nothing left to write, an end amid noise, rows of several shapes, what does not fit."""

import pytest
import torch

from redraft import processes
from redraft.models import Transformer, TransformerConfig
from redraft.sampling import sample

MASKED = processes.masked(5)


class Says:
    """log p of the tokens ``p`` everywhere, and what it was told."""

    def __init__(self, p, process=MASKED, **facts) -> None:
        self.logp = torch.tensor(p, dtype=torch.float64).log()
        self.facts, self.heard = processes.Facts(mask_id=process.mask_id, **facts), []

    def __call__(self, z, t, cond=None):
        self.heard.append((z.clone(), t.clone(), cond))
        return self.logp.expand(*z.shape[:2], len(self.logp))


CERTAIN = [1.0, 0, 0, 0, 0]


@pytest.mark.parametrize("sampler", ["ancestral", "low_confidence"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_nothing_likely_is_left_what_is_left_is_written(sampler, temperature):
    found = sample(MASKED, Says(CERTAIN), length=6, banned=[0], sampler=sampler, temperature=temperature, num=3)
    assert ((found.tokens > 0) & (found.tokens < 5)).all()
    ends = sample(MASKED, Says(CERTAIN), length=4, stop=0, min_length=2, sampler=sampler, temperature=temperature)
    assert (ends.tokens[0, :2] > 0).all()
    with pytest.raises(ValueError, match="not the end alone"):
        sample(MASKED, Says(CERTAIN), length=4, banned=[1, 2, 3, 4], stop=0, min_length=1)


def test_repetition_never_favours_what_repeats():
    """Of few tokens all stand soon; the likeliest must not gain by it."""
    denoiser = Says([0.6, 0.1, 0.1, 0.1, 0.1])
    drawn = [sample(MASKED, denoiser, length=64, repetition=r, seed=1, num=8).tokens for r in (1.0, 4.0)]
    shares = [(tokens == 0).float().mean() for tokens in drawn]
    assert abs(float(shares[0] - shares[1])) < 0.15
    uniform = processes.uniform(5)
    with pytest.raises(ValueError, match="noise repeats too"):
        sample(uniform, Says(CERTAIN, uniform), length=4, repetition=2.0)


def test_noise_tells_of_no_end():
    """Under uniform noise a text is cut when it is done: as long as the same text without an end, cut afterwards."""
    process = processes.uniform(5)
    denoiser = Says([0.3, 0.3, 0.3, 0.08, 0.02], process)
    options = {"length": 16, "num": 20, "steps": 8}
    cut, whole = sample(process, denoiser, stop=4, **options), sample(process, denoiser, **options)
    for row, length in enumerate(cut.lengths):
        first = (whole.tokens[row] == 4).nonzero().flatten().tolist()
        assert length == (first[0] + 1 if first else 16)
    vectors = processes.gaussian(torch.randn(5, 4))
    with_vectors = sample(
        vectors, Says(CERTAIN, vectors, time_conditioned=True, posterior="full"), length=4, stop=0, steps=2
    )
    assert with_vectors.lengths == [1]


def test_what_is_told_of_rows_follows_them():
    denoiser = Says([0.2] * 5)
    told = {"labels": torch.tensor([10, 20, 30])}
    sample(MASKED, denoiser, prompt=[[0], [0, 1, 2], [1]], length=2, cond=told, steps=2, sampler="low_confidence")
    for z, _, cond in denoiser.heard:
        assert len(cond["labels"]) == len(z)
        assert set(cond["labels"].tolist()) <= ({20} if z.shape[1] == 5 else {10, 30})
    with pytest.raises(ValueError, match="rows of several shapes"):
        sample(MASKED, denoiser, prompt=[[0], [0, 1]], length=2, cond=torch.zeros(2))


def test_blocks_tell_the_time_of_the_whole_canvas():
    denoiser = Says([0.2] * 5, time_conditioned=True)
    sample(MASKED, denoiser, length=8, block=2, sampler="low_confidence")
    for z, t, _ in denoiser.heard:
        assert t[0].item() == pytest.approx((z[0] == 5).double().mean().item())


def test_an_end_within_a_block_ends_it():
    denoiser = Says([0.0, 0, 0, 0, 1.0])
    for options in ({}, {"block": 8}):
        found = sample(MASKED, denoiser, length=8, stop=4, sampler="sequential", **options)
        assert (found.nfe, found.lengths) == (1, [1])
        assert found.logp[0, 1:].isnan().all(), "of what fills the rest nothing was said"


def test_rows_without_masks_cost_nothing():
    canvas, frozen = torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 6, dtype=torch.bool)
    frozen[0] = True
    for conditioned in (False, True):
        found = sample(MASKED, Says([0.2] * 5, time_conditioned=conditioned), canvas=canvas, frozen=frozen, steps=4)
        assert found.cost.of_rows[0] == 0 < found.cost.of_rows[1]


def test_what_a_callback_wrote_has_no_probability():
    found = sample(
        MASKED, Says([0.2] * 5), length=4, sampler="sequential", callback=lambda step: torch.where(step.z == 5, 5, 3)
    )
    assert found.tokens.tolist() == [[3] * 4]
    drawn = sample(MASKED, Says([0.2] * 5), length=4, sampler="sequential", seed=0)
    changed = drawn.tokens[0] != 3
    assert found.logp[0, changed].isnan().all()


@pytest.mark.parametrize("sampler", ["low_confidence", "threshold:tau=0.3"])
def test_rows_that_are_told_the_time_are_their_own_too(sampler):
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(MASKED.to_dict(), depth=2, time_conditioned=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    for options in ({}, {"block": 3}):
        batch = sample(MASKED, model.eval(), length=8, num=3, sampler=sampler, seed=2, **options)
        for row, seed in enumerate(batch.seeds):
            alone = sample(MASKED, model, length=8, seeds=[seed], sampler=sampler, **options)
            assert torch.equal(alone.logp[0], batch.logp[row])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canvas": torch.zeros(1, 3).long(), "strength": 0.5, "block": 2}, "leave the block out"),
        ({"canvas": torch.zeros(3).long(), "frozen": torch.zeros(3).bool(), "length": 9}, "leave length out"),
        ({"canvas": [torch.zeros(3).long()], "frozen": [torch.zeros(3).bool()], "num": 2}, "one canvas for each"),
    ],
)
def test_what_does_not_fit_together(options, message):
    with pytest.raises(ValueError, match=message):
        sample(MASKED, Says([0.2] * 5), **options)
