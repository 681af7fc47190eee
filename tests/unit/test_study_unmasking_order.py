"""The study of what is fixed first: its arithmetic by hand and by enumeration, its verdicts from the numbers."""

from itertools import permutations, product

import pytest
import torch

from redraft.studies import unmasking_order as study
from redraft.studies import unmasking_order_claims as claims
from redraft.studies.runner import Budget, Cell, Record

BUDGET = Budget(steps=3, seeds=1, draws=1, samples=12)


def test_places_by_hand():
    fixed = torch.tensor([[0, 1, 2], [2, 0, 0], [0, 0, 0]])
    wanted = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.25, 0.25], [0.5, 0.5, 0.5]], dtype=torch.float64)
    assert torch.equal(study.order_of(fixed), wanted)


@pytest.mark.parametrize(
    ("fixed", "share"), [([0, 1, 2], 1.0), ([2, 1, 0], 1 / 3), ([0, 2, 1], 2 / 3), ([1, 1, 0], 2 / 3)]
)
def test_leftmost_by_hand(fixed, share):
    assert study.leftmost(torch.tensor([fixed])).tolist() == pytest.approx([share])


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2), (1, 3), (4,), (1, 2, 1)])
def test_chance_is_the_mean_over_all_orders(sizes):
    steps = [step for step, many in enumerate(sizes) for _ in range(many)]
    ways = torch.tensor(sorted(set(permutations(steps))))
    exact = study.leftmost(ways).mean().item()
    assert study.by_chance(torch.tensor([steps])) == pytest.approx(exact, abs=1e-12)
    assert study.by_chance(ways) == pytest.approx(exact, abs=1e-12)


def test_kinds_are_counted_by_text():
    places = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]], dtype=torch.float64)
    found = study.by_kind(places, [["a", "a", "b"], ["a", "b", "b"]], fewest=2)
    assert found["a"]["place"] == pytest.approx((0.25 + 1.0) / 2)
    assert found["b"]["place"] == pytest.approx((1.0 + 0.25) / 2)
    assert found["a"]["share"] == pytest.approx(0.5)
    assert study.by_kind(places, [["a", "a", "c"], ["a", "b", "b"]], fewest=2).keys() == {"a"}
    assert study.by_kind(places, [["a", "a", "b"], ["a", "b", "b"]]) == {}, "of so few texts nothing is told"


def test_every_token_has_a_kind():
    toy = [study.kind("toy", unit) for unit in ("we", "our", "cat", "is", "s", "[PAD]")]
    assert toy == ["pronoun", "determiner", "noun", "verb", "plural s", "padding"]
    letters = [study.kind("characters", one) for one in (" ", "\n", "e", "t", "T", "3", ".")]
    assert letters == ["space", "line end", "vowel", "consonant", "capital", "digit", "punctuation"]


def test_a_cell_is_measured(tmp_path):
    found = study.measure(Cell("toy", 0, study.options("toy", BUDGET)), tmp_path)
    assert len(found["rows"]) == len(study.SAMPLERS) * len(study.SHARES)
    for row in found["rows"]:
        assert sum(one["share"] for one in row["kinds"].values()) <= 1 + 1e-9
        assert 0 <= row["leftmost"] <= 1
        if row["tokens_a_step"] == 1 and row["sampler"] == "low_confidence":
            assert row["leftmost_by_chance"] == pytest.approx(sum(1 / k for k in range(1, 7)) / 6)
            assert row["nfe"] == 6


class At:
    def __init__(self, index, rows, tokens):
        self.index, self.rows, self.tokens = index, rows, torch.tensor(tokens)


def test_the_callback_sees_the_last_change_of_rows_drawn_in_parts():
    seen = study.Order()
    for index, tokens in enumerate([[[9, 1]], [[2, 1]], [[2, 3]]]):
        seen(At(index, [1], tokens))
    for index, tokens in enumerate([[[9, 9], [4, 9]], [[9, 7], [4, 5]]]):
        seen(At(index, [0, 2], tokens))
    assert seen.fixed.tolist() == [[0, 1], [1, 2], [0, 1]]


def test_texts_drawn_in_parts_are_measured_as_drawn_together(monkeypatch, tmp_path):
    cell = Cell("toy", 0, study.options("toy", BUDGET))
    whole = study.measure(cell, tmp_path / "one")["rows"]
    monkeypatch.setattr("redraft.writing.POSITIONS_AT_ONCE", 30)
    assert study.measure(cell, tmp_path / "two")["rows"] == whole


def made_up(kinds, leftmost, sampler="low_confidence"):
    told = {kind: {"place": place, "error": 0.02, "share": share, "texts": 9} for kind, (place, share) in kinds.items()}
    row = {"sampler": sampler, "tokens_a_step": 1, "kinds": told, "leftmost": leftmost, "leftmost_error": 0.01}
    return {**row, "leftmost_by_chance": 0.3, "unigram_entropy": 1.0}


@pytest.mark.parametrize(
    ("kinds", "leftmost", "verdicts"),
    [
        ({"space": (0.2, 0.6), "word": (0.8, 0.4)}, 0.5, ("holds", "holds", "holds")),
        ({"space": (0.8, 0.6), "word": (0.2, 0.4)}, 0.1, ("holds", "fails", "fails")),
        ({"space": (0.5, 0.6), "word": (0.5, 0.4)}, 0.3, ("not separated", "not separated", "not separated")),
    ],
)
def test_verdicts_are_what_the_numbers_say(kinds, leftmost, verdicts):
    rows = [made_up(kinds, leftmost), made_up(kinds, 0.3, "ancestral")]
    records = [Record(Cell("characters", 0, {}), {"rows": rows}), Record(Cell("toy", 0, {}), failed="no")]
    found = claims.conclude(records).findings
    told = {one.claim: one.verdict for one in found}
    assert tuple(told[claim] for claim in (claims.KINDS, claims.COMMON, claims.LEFT)) == verdicts
    assert told[claims.CONTROL] == ("holds" if verdicts[0] == "not separated" else "fails")
    assert {one.verdict for one in claims.conclude(records[1:]).findings} == {"not measured"}


@pytest.mark.parametrize("kinds", [{}, {"space": (0.5, 1.0)}])
def test_a_text_of_one_kind_has_no_order_of_kinds(kinds):
    rows = [made_up(kinds, 0.3), made_up(kinds, 0.3, "ancestral")]
    found = claims.conclude([Record(Cell("toy", 0, {}), {"rows": rows})]).findings
    told = {one.claim: one.verdict for one in found}
    assert told.pop(claims.LEFT) == "not separated"
    assert told == dict.fromkeys((claims.CONTROL, claims.KINDS, claims.COMMON), "not measured")


def test_many_kinds_widen_the_intervals():
    """0.023 from 1/2 with an error of 0.02: separated alone, not among ten."""
    two = {"a": (0.523, 0.5), "b": (0.5, 0.5)}
    ten = two | dict.fromkeys("cdefghij", (0.5, 0.1))
    for kinds, verdict in ((two, "holds"), (ten, "not separated")):
        found = claims.conclude([Record(Cell("toy", 0, {}), {"rows": [made_up(kinds, 0.3)]})]).findings
        assert [one.verdict for one in found if one.claim == claims.KINDS] == [verdict]


def test_leftmost_against_its_definition():
    for fixed in product(range(3), repeat=4):
        wanted = sum(all(fixed[j] <= fixed[i] for j in range(i)) for i in range(4)) / 4
        assert study.leftmost(torch.tensor([fixed])).item() == pytest.approx(wanted)
