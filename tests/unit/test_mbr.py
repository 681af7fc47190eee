"""Minimum-Bayes-risk selection: small cases by hand, and the argument for it."""

import itertools
import sys

import pytest
import torch

from redraft.evaluation import mbr

TEXTS = ["the cat sat on the mat", "the cat sat on a mat", "a dog ran", "the cat sat on the mat today"]


def test_the_one_that_agrees_most_with_the_others():
    """Agreements: rows 0 and 1 share 2 of 3, 1 and 2 share 2, 0 and 2 share 1; means 1/2, 2/3, 1/2."""
    rows = [[1, 2, 3], [1, 2, 4], [7, 2, 4]]
    assert mbr.scores(rows, "agreement") == pytest.approx([1 / 2, 2 / 3, 1 / 2])
    assert mbr.select(rows, "agreement") == 1
    chosen = mbr.choose(rows, "agreement")
    assert (chosen.index, chosen.gain, chosen.count) == (1, "agreement", 3)
    assert chosen.score == pytest.approx(2 / 3)


def test_the_candidate_is_the_hypothesis():
    """A gain that is not symmetric tells the directions apart: what is gained by SAYING y where x is true."""
    table = {("a", "b"): 1.0, ("b", "a"): 0.0, ("a", "c"): 1.0, ("c", "a"): 0.0, ("b", "c"): 0.5, ("c", "b"): 0.0}
    asked = []

    def gain(hypothesis, reference):
        asked.append((hypothesis, reference))
        return table[hypothesis, reference]

    assert mbr.scores(["a", "b", "c"], gain) == [1.0, 0.25, 0.0]
    assert set(asked) == set(table)
    assert mbr.choose(["a", "b", "c"], gain).gain == "gain"


def test_bleu_is_asked_of_the_candidate():
    """Of a text and its first half the half is precise and brief, the whole is not: BLEU differs by direction."""
    from sacrebleu import sentence_bleu

    whole, half = "a b c d e f g h", "a b c d e f"
    gain = mbr.get("bleu")
    assert gain(half, whole) == pytest.approx(sentence_bleu(half, [whole], use_effective_order=True).score / 100)
    assert gain(whole, half) == pytest.approx(sentence_bleu(whole, [half], use_effective_order=True).score / 100)
    assert abs(gain(half, whole) - gain(whole, half)) > 0.01


def test_one_like_another_counts_as_another():
    """Three equal texts out of four agree with each other: 2/3 of the others each, wholly; the fourth with none."""
    assert mbr.scores([[1], [1], [2], [1]], "agreement") == pytest.approx([2 / 3, 2 / 3, 0, 2 / 3])
    assert mbr.select([[2], [1], [1], [1]], "agreement") == 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_ties_go_to_the_lowest_index(order):
    """All pairs share one position of three, whatever the order of summation."""
    rows = [[1, 2, 3], [1, 5, 6], [4, 2, 6]]
    assert mbr.select([rows[i] for i in order], "agreement") == 0


def test_it_estimates_the_maximiser_of_the_expected_gain():
    """Of 400 samples of a known law over pairs, MBR takes the pair of highest expected agreement, not the likeliest.

    The law: (9, 9) with .28, and (0, 0), (0, 1), (1, 0) with .24 each. The expected agreement of (9, 9) is .28, that of
    (0, 0) .24 + (.24 + .24) / 2 = .48.
    """
    pairs = torch.tensor([[9, 9], [0, 0], [0, 1], [1, 0]])
    law = torch.tensor([0.28, 0.24, 0.24, 0.24], dtype=torch.float64)
    expected = torch.stack([((pairs == pair).double().mean(1) * law).sum() for pair in pairs])
    assert law.argmax() == 0
    assert expected.argmax() == 1
    assert expected.sort(descending=True).values[:2].diff().abs() > 0.1
    drawn = pairs[torch.multinomial(law, 400, replacement=True, generator=torch.Generator().manual_seed(0))].tolist()
    index = mbr.select(drawn, "agreement")
    assert drawn[index] == [0, 0]
    # its score estimates the expectation, s.e. below .02 and five of them allowed
    assert mbr.scores(drawn, "agreement")[index] == pytest.approx(expected.max().item(), abs=0.1)


def test_gains_by_hand():
    assert mbr.agreement("a b c", "a x c d") == 2 / 4
    assert mbr.agreement("", "") == 1
    assert mbr.agreement([1, 2], [1, 2]) == 1
    assert mbr.edits("a b c d", "b c d e") == 6 / 8
    assert mbr.edits([1, 2, 3], [9, 1, 2, 3]) == 6 / 7
    # a repeated token counts, however often (difflib's junk rule is off)
    assert mbr.edits([1] * 300, [1] * 300) == 1


@pytest.mark.parametrize("gain", mbr.GAINS)
def test_every_gain_prefers_what_is_like_the_rest(gain):
    found = mbr.scores(TEXTS, gain)
    assert found.index(min(found)) == 2
    assert all(0 <= one <= 1 for one in found)
    assert mbr.get(gain)("a b c d", "a b c d") == pytest.approx(1)
    assert mbr.get(gain)("a b c d", "w x y z") < 0.1


def test_one_sample_is_itself():
    chosen = mbr.choose(["alone"], "chrf")
    assert (chosen.index, chosen.score, chosen.count) == (0, None, 1)
    assert mbr.select([[1, 2]], "edits") == 0
    with pytest.raises(ValueError, match="no samples"):
        mbr.select([])
    with pytest.raises(ValueError, match="1 samples: there are no others"):
        mbr.scores(["alone"])


@pytest.mark.parametrize("samples", [["a"], ["a", "b"]])
def test_an_unknown_gain_offers_the_nearest(samples):
    with pytest.raises(ValueError, match="unknown gain 'blue'; did you mean 'bleu'"):
        mbr.select(samples, "blue")


def test_texts_and_rows_are_not_mixed_up():
    with pytest.raises(ValueError, match="'bleu' reads texts, not rows of ids"):
        mbr.select([[1, 2], [3, 4]], "bleu")


def test_without_sacrebleu_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=r"redraft\[eval\]"):
        mbr.select(["a", "b"], "chrf")
    assert mbr.select(["a", "b"], "edits") == 0
