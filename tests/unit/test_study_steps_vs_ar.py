"""The study of parallel decoding against a cache: a cell is measured, and verdicts are those of the numbers."""

import pytest

from redraft.studies import steps_vs_ar, steps_vs_ar_claims
from redraft.studies.runner import Budget, Cell, Record
from redraft.studies.steps_vs_ar_claims import (
    ALONE,
    AR,
    BATCHED,
    BLOCKS,
    CLAIMS,
    COMPUTE,
    LESS,
    MASKED,
    REACHES,
)


def row(bits, nfe, flops, sampler="random_order", entropy=2.5, error=0.01):
    times = {"seconds_alone": [flops * 0.999, flops * 1.001], "seconds_batch": [flops * 1.999, flops * 2.001]}
    judged = {"bits_per_char": bits, "bits_per_char_error": error, "unigram_entropy": entropy, "distinct_2": 0.5}
    return {"sampler": sampler, "steps": nfe, "nfe": nfe, "flops": flops, **times, **judged}


def records(**rows):
    made = {AR: [row(3.0, 64, 10.0, "cached")], **rows}
    human = row(2.8, 0, 0.0)
    return [Record(Cell(name, 0, {}), {"human": human, "rows": told}) for name, told in made.items()]


def verdicts(made):
    found = steps_vs_ar_claims.conclude(made).findings
    return {claim: [one.verdict for one in found if one.claim == claim] for claim in CLAIMS}


def test_quality_reached_is_judged_by_its_cost():
    """Masked texts of 8 calls are as good and cost half; of 4 calls they are cheaper and worse."""
    good = [row(3.9, 4, 2.0), row(3.05, 8, 5.0), row(3.0, 64, 50.0)]
    said = verdicts(records(**{MASKED: good, BLOCKS: [row(3.0, 16, 4.0)]}))
    assert said == {claim: ["holds"] * (1 if claim == LESS else 2) for claim in CLAIMS}
    dear = verdicts(records(**{MASKED: [row(3.05, 8, 50.0)], BLOCKS: [row(3.0, 16, 60.0)]}))
    assert dear[REACHES] == ["holds", "holds"]
    assert {verdict for claim in (COMPUTE, ALONE, BATCHED, LESS) for verdict in dear[claim]} == {"fails"}


def test_each_cost_is_that_of_the_way_which_has_least_of_it():
    """Of two ways of equal quality one takes fewer FLOPs and one less time."""
    fast = row(3.0, 16, 12.0) | {"seconds_alone": [1.0, 1.01], "seconds_batch": [1.0, 1.01]}
    slow = row(3.0, 8, 5.0) | {"seconds_alone": [50.0, 51.0], "seconds_batch": [50.0, 51.0]}
    said = verdicts(records(**{MASKED: [fast, slow]}))
    assert [said[claim] for claim in (COMPUTE, ALONE, BATCHED)] == [["holds"]] * 3


def test_few_repeats_are_unsure():
    """The mean of 1, 2, 3 has a standard error of 1 / sqrt(3), and Student's t of two degrees is 4.30."""
    cost = steps_vs_ar_claims.cost([{"seconds_alone": [1.0, 2.0, 3.0]}], "seconds_alone")
    assert (cost.mean, cost.error) == (pytest.approx(2.0), pytest.approx(4.302653 / 3**0.5))


def test_quality_that_is_not_reached():
    said = verdicts(records(**{MASKED: [row(3.9, 8, 5.0), row(3.0, 64, 50.0)]}))
    assert said[REACHES] == ["fails"], "as many calls as tokens are not fewer"
    assert said[COMPUTE] == ["fails"], "it is reached, at five times the FLOPs"
    assert said[LESS] == ["not measured"]
    never = steps_vs_ar_claims.conclude(records(**{MASKED: [row(3.9, 8, 5.0)]}))
    assert [one.verdict for one in never.findings] == ["fails", *["not measured"] * 4]
    assert "cheaper up to 8 calls" in never.findings[1].sentence
    assert "masked up to 8 calls" in never.answer
    two = steps_vs_ar_claims.conclude(records(**{MASKED: [row(3.9, 8, 5.0), row(3.9, 4, 3.0)]}))
    assert "cheaper up to 8 calls" in two.findings[1].sentence
    unsure = verdicts(records(**{MASKED: [row(3.05, 8, 5.0, error=0.3)]}))
    assert unsure[REACHES] == ["not separated"]


def test_text_that_repeats_itself_reaches_nothing():
    flat = row(2.0, 8, 5.0, "low_confidence", entropy=2.2)
    assert verdicts(records(**{MASKED: [flat]}))[REACHES] == ["fails"], "2.2 of 2.5 nats is below nine tenths"
    both = verdicts(records(**{MASKED: [flat, row(3.0, 16, 20.0)]}))
    assert both[REACHES] == ["holds"]
    assert both[COMPUTE] == ["fails"]


def test_without_the_baseline_nothing_is_said():
    alone = [Record(Cell(MASKED, 0, {}), {"human": row(2.8, 0, 0.0), "rows": [row(3.0, 8, 5.0)]})]
    assert {one.verdict for one in steps_vs_ar_claims.conclude(alone).findings} == {"not measured"}


@pytest.mark.parametrize("name", [AR, MASKED, BLOCKS])
def test_a_cell_is_measured(name, tmp_path, monkeypatch):
    monkeypatch.setattr(steps_vs_ar, "BATCH", 2)
    monkeypatch.setattr(steps_vs_ar, "ROUNDS", 2)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n\n" for i in range(400)))
    made = steps_vs_ar.options(name, Budget(steps=2, seeds=1, draws=1, samples=2))
    config = made["config"]
    made["config"] = config | {"data": config["data"] | {"source": str(text)}}
    fewer = {} if name == AR else {"samplers": ["random_order"], "steps": [2]}
    found = steps_vs_ar.measure(Cell(name, 0, {**made, **fewer}), tmp_path)
    (told,) = found["rows"]
    assert told["nfe"] == {AR: 64, MASKED: 2, BLOCKS: 8 * 2 + 7}[name]
    assert told["flops"] > 0
    assert len(told["seconds_alone"]) == len(told["seconds_batch"]) == steps_vs_ar.ROUNDS
    longer = steps_vs_ar.config(steps_vs_ar_claims.LONGER, Budget(steps=2, seeds=1, draws=1, samples=2))
    assert longer.train.steps == 2 * steps_vs_ar.TIMES
