"""What a request does to a model's law: temperature and cuts, repetition, banned tokens, a least length; every sampler
of masks obeys them, and none writes a mask."""

import math

import pytest
import torch

from redraft import processes
from redraft.processes import Facts
from redraft.sampling import SAMPLERS, sample
from redraft.sampling.contract import clean, tempered
from redraft.sampling.law import Law, law

PROCESS = processes.masked(4)
RANDOM = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)


class Table:
    """The same law of a position whatever stands elsewhere: log p (L, K), or with a column for [MASK]."""

    def __init__(self, logp, mask_id=4) -> None:
        self.logp, self.facts = logp, Facts(mask_id=mask_id)

    def __call__(self, z, t, cond=None):
        return self.logp[: z.shape[1]].expand(len(z), -1, -1)


def same(length, p):
    return torch.tensor(p).log().expand(length, len(p))


def drawn(sampler, logp, num=8, steps=24, **options):
    return sample(PROCESS, Table(logp), num=num, steps=steps, sampler=sampler, **{"length": 6, **options}).tokens


def fits(sampler):
    """Whether a sampler is one for masks."""
    try:
        drawn(sampler, same(6, [0.25] * 4), steps=1)
    except ValueError as refusal:
        return "process is not" not in str(refusal)
    return True


IDS = {"wino": "wino:verify=0"}  # what it verifies by needs a network
MASKED = sorted(IDS.get(name, name) for name in SAMPLERS if fits(name))


# ------------------------------------------------------------------------------------------------------ tempered


def test_tempered_by_hand():
    """Squares at temperature 1/2; the likeliest alone at 0, the lowest id of equals."""
    logp = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    squares = torch.tensor([16.0, 9.0, 4.0, 1.0], dtype=torch.float64) / 30
    torch.testing.assert_close(tempered(logp, 0.5), squares, rtol=1e-6, atol=0)
    assert tempered(torch.tensor([0.1, 0.4, 0.4, 0.1]).log(), 0).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [4, 3, 2, 1]),
        (1, 1.0, [4, 0, 0, 0]),
        (3, 1.0, [4, 3, 2, 0]),
        (4, 1.0, [4, 3, 2, 1]),
        (9, 1.0, [4, 3, 2, 1]),
        (0, 0.41, [4, 3, 0, 0]),
        (0, 0.39, [4, 0, 0, 0]),
        (0, 0.71, [4, 3, 2, 0]),
        (3, 0.75, [4, 3, 0, 0]),  # of 4, 3, 2 in 9 the first two hold 0.78; of all four they hold 0.7
        (2, 0.56, [4, 0, 0, 0]),
        (9, 0.41, [4, 3, 0, 0]),
    ],
)
def test_top_k_comes_before_top_p(top_k, top_p, kept):
    """What is kept keeps its proportions, wherever it stands."""
    order = torch.tensor([2, 0, 3, 1])
    p, kept = (torch.tensor(one, dtype=torch.float64) for one in ([0.4, 0.3, 0.2, 0.1], kept))
    found = tempered(p[order].log(), 1.0, top_p, top_k)
    torch.testing.assert_close(found, (kept / kept.sum())[order], rtol=1e-12, atol=1e-15)


def test_top_k_breaks_ties_by_the_lowest_id():
    assert tempered(torch.zeros(4), 1.0, 1.0, 2).tolist() == [0.5, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"top_k": -1}, "top_k=-1"), ({"top_p": 0.0}, "top_p=0.0"), ({"top_p": 1.1}, "top_p=1.1")],
)
def test_cuts_that_are_none_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tempered(torch.zeros(4), 1.0, **options)
    with pytest.raises(ValueError, match=message):
        drawn("low_confidence", same(6, [0.25] * 4), **options)


def test_clean_leaves_no_mass_on_masks():
    """A column for [MASK] behind the tokens is cut off, one among them is emptied; the rest keep their proportions."""
    logp = torch.tensor([0.1, 0.2, 0.1, 0.1, 0.5]).log()
    torch.testing.assert_close(clean(logp, PROCESS).exp(), torch.tensor([0.2, 0.4, 0.2, 0.2]))
    inside = clean(logp, processes.masked(5, mask_id=4)).exp()
    torch.testing.assert_close(inside, torch.tensor([0.2, 0.4, 0.2, 0.2, 0.0]))
    inside = clean(logp, processes.masked(5, mask_id=1)).exp()
    torch.testing.assert_close(inside, torch.tensor([0.125, 0.0, 0.125, 0.125, 0.625]))


# ----------------------------------------------------------------------------------------------------------- law


def test_repetition_divides_the_probability_of_what_stands():
    """p / r for tokens elsewhere on the row's canvas, given or written, and beside it; then normalised.

    What stands at a position is no repetition of itself, unless it stands twice.
    """
    z = torch.tensor([[0, 4, 4, 2, 4], [4, 4, 4, 4, 4]])
    found = Law(repetition=1.7)(RANDOM, z, None, 4)
    factor = torch.ones(2, 5, 4, dtype=torch.float64)
    factor[0, :, [0, 2]] = 1.7
    factor[0, 0, 0] = factor[0, 3, 2] = 1.0
    torch.testing.assert_close(found, (RANDOM - factor.log()).log_softmax(-1))
    beside = Law(repetition=1.7).within(3, torch.tensor([[1, 0], [3, 3]]))
    factor[0, :, 1] = factor[1, :, 3] = 1.7
    factor[0, 0, 0] = 1.7
    torch.testing.assert_close(beside(RANDOM, z, None, 4), (RANDOM - factor.log()).log_softmax(-1))
    where = z == 4
    torch.testing.assert_close(beside(RANDOM[where], z, where, 4), (RANDOM - factor.log()).log_softmax(-1)[where])
    torch.testing.assert_close(
        beside.rows(torch.tensor([1]))(RANDOM[1:], z[1:], None, 4), (RANDOM - factor.log())[1:].log_softmax(-1)
    )


def test_a_mask_inside_the_vocabulary_does_not_count_as_repeated():
    z = torch.tensor([[1, 1, 0, 1, 1]])
    found = Law(repetition=3.0)(RANDOM[:1], z, None, 1)
    factor = torch.ones(1, 5, 4, dtype=torch.float64)
    factor[0, [0, 1, 3, 4], 0] = 3.0
    torch.testing.assert_close(found, (RANDOM[:1] - factor.log()).log_softmax(-1))


def test_banned_and_early_stops_have_no_mass():
    """Position 1 is free first and a text has two tokens at least: the stop token may stand from position 3 on."""
    frozen = torch.tensor([[True, False, False, False, False], [False] * 5])
    found = law(PROCESS, frozen, banned=[1], min_length=2, stop=3)
    assert found is not None
    z = torch.full((2, 5), 4)
    p = found(RANDOM, z, None, 4).exp()
    assert not p[..., 1].any()
    assert (p[..., 3] > 0).int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]
    kept = torch.where(p > 0, RANDOM, -math.inf).log_softmax(-1).exp()
    torch.testing.assert_close(p, kept)
    where = torch.tensor([[False, True, False, True, False], [True, False, False, False, True]])
    torch.testing.assert_close(found(RANDOM[where], z, where, 4).exp(), kept[where])
    second = found.rows(torch.tensor([1]))
    torch.testing.assert_close(second(RANDOM[1:], z[1:], None, 4).exp(), kept[1:])
    later = found.within(1, z[:, :1])  # the same positions as part of the canvas, which begins at 1
    torch.testing.assert_close(later(RANDOM[:, 1:], z[:, 1:], None, 4).exp(), kept[:, 1:])


def test_nothing_asked_is_no_law():
    assert law(PROCESS, torch.zeros(1, 3, dtype=torch.bool), stop=2) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"banned": [4]}, "banned holds 4, which is no token"),
        ({"banned": [-1]}, "banned holds -1"),
        ({"stop": 9}, "stop holds 9"),
        ({"banned": [0, 1, 2, 3]}, "banned holds all 4 tokens"),
        ({"repetition": 0.0}, "repetition=0.0: pass a number above 0"),
        ({"min_length": 2}, "min_length=2 with stop=None"),
        ({"min_length": -1, "stop": 1}, "min_length=-1"),
        ({"min_length": 7, "stop": 1}, "min_length=7, and a row has 6 free positions"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        drawn("low_confidence", same(6, [0.25] * 4), **options)


@pytest.mark.parametrize("options", [{"banned": [1]}, {"repetition": 2.0}, {"min_length": 1, "stop": 2}])
def test_vectors_have_no_law_to_change(options):
    process, frozen = processes.gaussian(torch.eye(4).double()), torch.zeros(1, 3, dtype=torch.bool)
    assert law(process, frozen, banned=[], repetition=1, min_length=0, stop=2) is None
    with pytest.raises(ValueError, match=f"{next(iter(options))}.* of a gaussian process, which names tokens at its"):
        law(process, frozen, **options)


# ------------------------------------------------------------------------------------------------- for every sampler


@pytest.mark.parametrize("sampler", MASKED)
def test_banned_tokens_are_never_written(sampler):
    assert not bool((drawn(sampler, same(6, [0.6, 0.2, 0.1, 0.1]), banned=[0]) == 0).any())


@pytest.mark.parametrize("sampler", MASKED)
def test_a_text_has_its_least_length(sampler):
    """Even of a model that would stop at once; behind the stop token all is stop."""
    tokens = drawn(sampler, same(8, [0.05, 0.05, 0.05, 0.85]), prompt=[0, 3], min_length=3, stop=3)
    assert not bool((tokens[:, 2:5] == 3).any())
    assert bool((tokens[:, 5:] == 3).any())


@pytest.mark.parametrize("sampler", MASKED)
def test_the_likeliest_tokens_at_temperature_0(sampler):
    logp = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    best = logp.argmax(-1).expand(8, -1)
    assert torch.equal(drawn(sampler, logp, temperature=0.0), best)
    assert torch.equal(drawn(sampler, logp, top_k=1), best)
    assert torch.equal(drawn(sampler, logp, top_p=1e-6), best)
    assert torch.equal(drawn(sampler, logp, temperature=1e-3), best)
    assert not torch.equal(drawn(sampler, logp), best)


@pytest.mark.parametrize("sampler", MASKED)
def test_only_what_the_cuts_keep_is_written(sampler):
    """Two of four by number, three by mass; a temperature above 1 brings the rest up, but not past the cut."""
    logp = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]] * 3).log()
    by_number = drawn(sampler, logp, top_k=2, temperature=1.5, num=24)
    by_mass = drawn(sampler, logp, top_p=0.75, num=24)
    rank = torch.tensor([[0, 3, 1, 2], [3, 2, 1, 0]] * 3)
    ranks = [rank.expand(24, -1, -1).gather(2, one[..., None]) for one in (by_number, by_mass)]
    assert [int(one.max()) for one in ranks] == [1, 2]


@pytest.mark.parametrize("sampler", MASKED)
def test_repetition_is_avoided(sampler):
    """At temperature 0 a model of one token in mind writes that alone; made to avoid it, others too."""
    logp = same(6, [0.4, 0.25, 0.2, 0.15])
    assert int(drawn(sampler, logp, temperature=0.0).max()) == 0
    for row in drawn(sampler, logp, temperature=0.0, repetition=9.0):
        assert len(set(row.tolist())) > 1


@pytest.mark.parametrize("sampler", MASKED)
def test_a_mask_is_never_written(sampler):
    """Not by a plain head with most mass on [MASK], be that one of the K ids or one more, at any temperature."""
    for process, mask_id in ((processes.masked(4), 4), (processes.masked(5, mask_id=1), 1)):
        logp = torch.zeros(6, 5)
        logp[:, mask_id] = 20.0
        for options in ({}, {"temperature": 0.0}, {"top_k": 2}, {"temperature": 3.0, "steps": 1}):
            tokens = sample(process, Table(logp.log_softmax(-1), mask_id), length=6, num=3, sampler=sampler,
                            **{"steps": 9, **options}).tokens  # fmt: skip
            assert not bool((tokens == mask_id).any())
            assert int(tokens.max()) < 5
