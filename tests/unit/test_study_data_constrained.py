"""The study of little text and many epochs: its texts, its crossings and slope, and what it says of made-up curves."""

import math

import pytest

from redraft.studies import data_constrained, data_constrained_claims
from redraft.studies.data_constrained_claims import (
    AR,
    BEST,
    CLAIMS,
    CROSSES,
    EARLY,
    HEART,
    LATER,
    LAW,
    MASKED,
    RISES,
    Crossing,
    crossing,
    curve,
    slope,
)
from redraft.studies.runner import Budget, Cell, Record

EPOCHS = (1, 2, 5, 10, 20, 50, 100)


def measured(held_out, train, characters=10_000, error=0.01):
    """A cell whose curve has these losses after ``EPOCHS``; a step is a thousand characters."""
    steps = [round(one * characters / 1000) for one in EPOCHS]
    points = zip(steps, held_out, train, strict=True)
    return {
        "curve": [
            {"step": step, "held_out": out, "held_out_error": error, "train": seen, "train_error": error}
            for step, out, seen in points
        ],
        "per_step": 1000,
        "characters": characters,
        "parameters": 1000,
    }


LEARNS_BY_HEART = [3.0, 2.7, 2.5, 2.6, 3.0, 4.0, 5.0]
SLOW = [3.4, 3.3, 3.1, 2.9, 2.8, 2.7, 2.6]
"""Below the other one between 10 and 20 epochs: -0.3 and 0.2 in log epochs, so at 10 2^0.6."""


def records(size, ar, masked, train=(2.9, 2.5, 2.0, 1.5, 1.0, 0.5, 0.2)):
    cells = {AR: measured(ar, train, size), MASKED: measured(masked, [one - 0.1 for one in masked], size)}
    return [Record(Cell(f"{name} {size // 1000}k", 0, {"characters": size}), one) for name, one in cells.items()]


def verdicts(made):
    found = data_constrained_claims.conclude(made).findings
    return {claim: [one.verdict for one in found if one.claim == claim] for claim in CLAIMS}


def test_a_crossing_is_where_the_lines_meet():
    pair = [curve([one.measured]) for one in records(10_000, LEARNS_BY_HEART, SLOW)]
    found = crossing(*pair)
    assert found is not None
    assert found.epochs == pytest.approx(10 * 2 ** (0.3 / 0.5))
    assert (found.low, found.high) == (10, 20)


def test_between_its_points_a_curve_is_linear_in_log_epochs():
    one = curve([measured(SLOW, SLOW)])
    between = one.at(math.sqrt(10 * 20))
    assert between.mean == pytest.approx((2.9 + 2.8) / 2)
    assert between.error == pytest.approx(0.01 / math.sqrt(2))
    assert (one.at(0.5).mean, one.at(500).mean) == (3.4, 2.6)


def test_what_is_not_sure_widens_the_interval():
    noisy = [curve([measured(one, one, error=0.2)]) for one in (LEARNS_BY_HEART, SLOW)]
    found = crossing(*noisy)
    assert found is not None
    assert (found.low, found.high) == (10, 50), "-0.2 +- 0.28 at 20 epochs is not surely below"


def test_no_crossing_unless_it_is_sure_at_the_end():
    ar = curve([measured(LEARNS_BY_HEART, LEARNS_BY_HEART)])
    assert crossing(ar, curve([measured([6.0] * 7, [6.0] * 7)])) is None
    assert crossing(ar, curve([measured([*[6.0] * 6, 4.999], [6.0] * 7)])) is None
    back_again = curve([measured([2.0, *[6.0] * 5, 4.0], [2.0] * 7)])
    found = crossing(ar, back_again)
    assert found is not None
    assert found.low == 50, "the last time is what counts"


def test_who_was_never_behind_did_not_overtake():
    """Where the curves meet lies before the first point, if anywhere: no crossing is seen, and none enters a slope."""
    ahead = [2.0] * 7
    assert crossing(*(curve([one.measured]) for one in records(10_000, LEARNS_BY_HEART, ahead))) is None
    said = verdicts([*records(10_000, LEARNS_BY_HEART, ahead), *records(20_000, LEARNS_BY_HEART, SLOW)])
    assert said[CROSSES] == ["not measured", "holds"]
    assert said[LATER] == said[LAW] == ["not measured"]


def test_a_slope_is_that_of_the_compute():
    """C = 6 N U epochs, epochs ~ U^1.17: the slope is 2.17, and its error that of the crossings."""
    sizes, pairs, crossings = (10_000, 20_000, 40_000), {}, {}
    for u in sizes:
        both = [curve([one.measured]) for one in records(u, LEARNS_BY_HEART, SLOW)]
        pairs[u] = (both[0], both[1])
        middle = 10 * (u / 10_000) ** 1.17
        crossings[u] = Crossing(middle, middle / 1.2, middle * 1.1)
    found = slope(crossings, pairs)
    assert found.mean == pytest.approx(2.17)
    assert found.error == pytest.approx(math.log(1.2) / math.log(2) / math.sqrt(2))
    two = {u: crossings[u] for u in sizes[:2]}
    assert slope(two, pairs).error == pytest.approx(math.log(1.2) * math.sqrt(2) / math.log(2))
    with pytest.raises(ValueError, match="1 crossings"):
        slope({10_000: crossings[10_000]}, pairs)


def test_verdicts_are_what_the_curves_say():
    later = [one + 0.3 for one in SLOW]
    said = verdicts([*records(10_000, LEARNS_BY_HEART, SLOW), *records(20_000, LEARNS_BY_HEART, later)])
    assert said[EARLY] == said[RISES] == said[HEART] == said[CROSSES] == ["holds", "holds"]
    assert said[BEST] == ["fails", "fails"], "2.6 and 2.9 against 2.5"
    # 15 epochs (10 to 20), and 10 2^(..) beyond: the intervals meet
    assert said[LATER] == said[LAW] == ["not separated"]


def test_the_opposite_is_said_of_the_opposite():
    """A model that never learns by heart, and a masked one that is ahead, then behind."""
    falling = [3.4, 3.2, 3.0, 2.8, 2.6, 2.4, 2.3]
    behind = [2.9, 2.9, 3.0, 3.1, 3.2, 3.3, 3.4]
    said = verdicts(records(10_000, falling, behind, train=[one - 0.01 for one in falling]))
    assert said[RISES] == ["not separated"]
    assert said[HEART] == ["fails"]
    assert said[CROSSES] == said[BEST] == ["fails"]
    assert said[LATER] == said[LAW] == ["not measured"]
    ahead = verdicts(records(10_000, LEARNS_BY_HEART, [2.0] * 7))
    assert ahead[EARLY] == ["fails"]
    assert ahead[BEST] == ["holds"]
    late = verdicts(records(10_000, LEARNS_BY_HEART, [one - 0.2 for one in SLOW]))
    assert late[BEST] == ["holds"], "2.4 after 100 epochs, against 2.5 after 5"


def test_later_needs_the_larger_text_to_have_been_trained_long_enough():
    never = [one + 3 for one in SLOW]
    said = verdicts([*records(10_000, LEARNS_BY_HEART, SLOW), *records(20_000, LEARNS_BY_HEART, never)])
    assert said[CROSSES] == ["holds", "fails"]
    assert said[LATER] == ["holds"], "surely not within 100 epochs"
    assert said[LAW] == ["not measured"]
    brief = [curve([one.measured]) for one in records(20_000, LEARNS_BY_HEART, never)]
    early = {10_000: Crossing(150, 120, 180), 20_000: None}
    pairs = {10_000: (brief[0], brief[1]), 20_000: (brief[0], brief[1])}
    assert [one.verdict for one in data_constrained_claims._later(pairs, early)] == ["not measured"], "100 epochs only"
    backwards = verdicts([*records(10_000, LEARNS_BY_HEART, never), *records(20_000, LEARNS_BY_HEART, SLOW)])
    assert backwards[LATER] == ["not measured"]


def test_a_law_of_another_power_fails():
    """Crossings at equal epochs: compute grows as U, slope 1."""
    sharp = {"error": 0.001}
    made = []
    for size in (10_000, 1_000_000):
        for name, losses in ((AR, LEARNS_BY_HEART), (MASKED, SLOW)):
            one = measured(losses, losses, size, **sharp)
            made.append(Record(Cell(f"{name} {size // 1000}k", 0, {"characters": size}), one))
    said = data_constrained_claims.conclude(made)
    (law,) = [one for one in said.findings if one.claim == LAW]
    assert law.verdict == "fails"
    assert "1.00 ±" in law.sentence
    assert "2 points" in law.sentence


def test_without_both_models_nothing_is_said():
    half = records(10_000, LEARNS_BY_HEART, SLOW)[:1]
    assert {one.verdict for one in data_constrained_claims.conclude(half).findings} == {"not measured"}


def test_texts_have_their_size_and_share_nothing():
    train, held_out, tokenizer = data_constrained.texts(5_000, 2_000, 512)
    more, same, _ = data_constrained.texts(10_000, 2_000, 512)
    assert 4_500 < train.ids.size <= 5_000
    assert 9_500 < more.ids.size <= 10_000
    assert (held_out.ids == same.ids).all()
    rows = {tokenizer.decode(row) for row in more.ids.tolist()}
    assert not rows & {tokenizer.decode(row) for row in held_out.ids.tolist()}


def test_points_are_steps_at_which_the_loop_validates():
    for steps in (10, 250, 3000):
        found = data_constrained.points(steps)
        assert found[-1] == steps
        assert found == sorted(set(found))
        assert all(step % data_constrained.EVERY == 0 for step in found)
        assert len(found) <= data_constrained.POINTS


@pytest.mark.parametrize("name", ["masked 10k", "autoregressive 10k"])
def test_a_cell_is_measured(name, tmp_path, monkeypatch):
    monkeypatch.setattr(data_constrained, "DEPTH", 1)
    budget = Budget(steps=30, seeds=1, draws=1, samples=0)
    made = {**data_constrained.options(name, budget), "characters": 2_000, "held_out": 600, "points": [10, 30]}
    found = data_constrained.measure(Cell(name, 0, made), tmp_path)
    assert [one["step"] for one in found["curve"]] == [10, 30], "20 is no point"
    assert found["characters"] == 15 * 128
    assert 0 < found["curve"][1]["held_out"] < math.log(200)
    assert found["curve"][1]["held_out"] < found["curve"][0]["held_out"]
