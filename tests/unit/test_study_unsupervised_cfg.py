"""The study of guidance by a hidden prompt: its law by enumeration, its counts by hand, its verdicts from numbers."""

from itertools import product

import pytest

from redraft.data import toy
from redraft.recipes.config import from_dict
from redraft.recipes.finetune import Finetune
from redraft.studies import unsupervised_cfg as study
from redraft.studies import unsupervised_cfg_claims as claims
from redraft.studies.runner import Budget, Cell, Record

BUDGET = Budget(steps=2, seeds=1, draws=1, samples=2)


def test_the_law_is_that_of_the_language():
    found = study.law()
    assert len(found) == 41
    for (a, b), answers in found.items():
        texts = [toy.text(row).split() for row in answers]
        assert len(answers) >= study.LEAST
        assert all(toy.is_sentence(" ".join(text)) for text in texts)
        assert all(toy.UNITS[a] in text and toy.UNITS[b] in text for text in texts)
    a, b = toy.UNITS.index("is"), toy.UNITS.index("s")
    wanted = [row for row in toy.sentences() if a in row and b in row]
    assert sorted(found[a, b]) == sorted(wanted)


def test_the_data_hold_each_answer_once():
    rows = [(tuple(one.ids[:2].tolist()), tuple(one.ids[2:].tolist())) for one in study.examples(False)]
    assert len(rows) == len(set(rows)) == sum(map(len, study.law().values()))
    assert all(answer in study.law()[prompt] for prompt, answer in rows)


def test_what_is_learned_of_prompts_is_what_differs():
    apart, whole = study.examples(False), study.examples(True)
    assert all(one.answer.tolist() == [False] * 2 + [True] * 6 for one in apart)
    assert all(one.answer.all() for one in whole)
    assert [one.ids.tolist() for one in apart] == [one.ids.tolist() for one in whole]
    drops = {name: study.config(name, BUDGET).loss.drop for name in study.names()}
    assert drops == {"answers": None, "dropped": 0.1, "whole": None}


def test_answers_are_judged_by_hand():
    prompt = next(iter(study.law()))
    one, two, *rest = sorted(study.law()[prompt])
    m = len(rest) + 2
    other = next(row for row in toy.sentences() if not set(prompt) <= set(row))
    broken = (*prompt, *prompt, *prompt)
    found = study.judged(prompt, [one, one, one, two, other, broken])
    assert found["follows"] == pytest.approx(5 / 6)
    assert found["right"] == pytest.approx(4 / 6)
    assert found["same"] == 3
    assert found["same_by_law"] == pytest.approx(6 / m)
    distance = (abs(3 / 6 - 1 / m) + abs(1 / 6 - 1 / m) + (m - 2) / m + 2 / 6) / 2
    assert found["distance"] == pytest.approx(distance - study.by_chance(6, m))


@pytest.mark.parametrize(("n", "m"), [(1, 2), (3, 2), (4, 3)])
def test_the_distance_of_chance_by_enumeration(n, m):
    total = 0.0
    for drawn in product(range(m), repeat=n):
        total += sum(abs(drawn.count(a) / n - 1 / m) for a in range(m)) / 2
    assert study.by_chance(n, m) == pytest.approx(total / m**n, abs=1e-12)


def test_repeats_of_the_law_are_one_on_average(monkeypatch):
    prompt, support = (0, 1), [(0, 1, i) for i in range(3)]
    monkeypatch.setattr(study, "law", lambda: {prompt: frozenset(support)})
    same, by_law = 0.0, 0.0
    for drawn in product(support, repeat=4):
        found = study.judged(prompt, drawn)
        same, by_law = same + found["same"], by_law + found["same_by_law"]
    assert same == pytest.approx(by_law)


@pytest.mark.parametrize("name", study.names())
def test_a_cell_is_measured(name, tmp_path):
    chosen = study.options(name, BUDGET)
    assert from_dict(chosen["config"], Finetune) == study.config(name, BUDGET)
    smaller = {"depth": 1, "weights": [0.0, 1.0], "steps": [3], "samples": 1}
    found = study.measure(Cell(name, 0, chosen | smaller), tmp_path)
    assert [(row["weight"], row["nfe"]) for row in found["rows"]] == [(0.0, 3), (1.0, 6)]
    for row in found["rows"]:
        assert len(row["right"]) == len(row["follows"]) == 41
        assert all(a <= b for a, b in zip(row["right"], row["follows"], strict=True))


def made_up(name, value):
    """A cell of four prompts: ``value(steps, weight, what)`` and a little about it."""
    rows = list[dict[str, object]]()
    for steps, weight in product((3, 6), (0.0, 0.5, 1.0, 2.0, 4.0)):
        row = {"steps": steps, "weight": weight, "nfe": steps, "well_formed": 0.5, "unigram_entropy": 1.0}
        row |= {
            what: [value(steps, weight, what) + off for off in (-0.01, 0.0, 0.0, 0.01)]
            for what in ("follows", "right", "distance")
        }
        same = value(steps, weight, "same")
        rows.append(row | {"same": [same, same + 0.1, same, same - 0.1], "same_by_law": [10.0] * 4})
    return Record(Cell(name, 0, {}), {"rows": rows})


def verdicts(**values):
    records = [made_up(name, value) for name, value in values.items()]
    found = claims.conclude([*records, Record(Cell("x", 0, {}), failed="no")]).findings
    told = dict[str, set[str]]()
    for one in found:
        told.setdefault(one.claim, set()).add(one.verdict)
    return told


def flat(steps, weight, what):
    return 10.0 if what == "same" else 0.5


def test_no_difference_separates_nothing():
    found = verdicts(answers=flat, dropped=flat, whole=flat)
    assert found.pop(claims.NEEDLESS) == {"holds"}
    assert set(found) == set(claims.CLAIMS) - {claims.NEEDLESS}
    assert all(kinds == {"not separated"} for kinds in found.values())


def test_gains_and_costs_are_what_the_numbers_say():
    def rising(slope):
        return lambda steps, weight, what: 10.0 + 5 * slope * weight if what == "same" else 0.5 + slope * weight

    found = verdicts(answers=rising(0.05), dropped=rising(0.1), whole=rising(0.05))
    assert found.pop(claims.NEEDLESS) == found.pop(claims.BETTER) == {"fails"}
    assert all(kinds == {"holds"} for kinds in found.values())
    found = verdicts(answers=rising(-0.05), dropped=rising(-0.1), whole=rising(-0.1))
    assert found.pop(claims.NEEDLESS) == {"holds"}
    assert found.pop(claims.BETTER) == {"holds", "not separated"}, "0.45 of answers, 0.4 of whole, against 0.4"
    assert all(kinds == {"fails"} for kinds in found.values())


def test_too_much_guidance_and_too_few_steps():
    def peaked(steps, weight, what):
        lost = 0.2 * (steps == 3) + 0.3 * (weight == 4.0)
        return 10.0 if what == "same" else 0.5 + 0.1 * (weight > 0) - lost

    found = verdicts(answers=peaked)
    assert found[claims.FOLLOWS] == found[claims.RIGHT] == {"holds"}
    assert found[claims.MORE] == {"fails"}, "at w = 4 fewer follow than at 1, and than at 0"
    assert found[claims.FORWARDS] == {"fails"}, "0.4 in three guided steps, 0.5 in six plain ones"


def test_gains_are_taken_prompt_by_prompt():
    cell = {
        (3, 0.0): [{"right": [0.0, 0.5, 1.0]}],
        (3, 1.0): [{"right": [0.1, 0.6, 1.1]}],
    }
    found = claims.gain(cell, "right", (3, 1.0), (3, 0.0))
    assert (found.mean, found.error) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-12))


def test_models_are_compared_prompt_by_prompt():
    """What differs between prompts is far more than what differs between models, and is no error."""

    def spread(name, off):
        one = made_up(name, lambda steps, weight, what: 10.0 if what == "same" else 0.5)
        for row in one.measured["rows"]:
            row["right"] = [0.1 + off, 0.4 + off, 0.6 + off, 0.9 + off]
        return one

    records = [spread(claims.WHOLE, 0.02), spread(claims.DROPPED, 0.0)]
    found = [one for one in claims.conclude(records).findings if one.claim == claims.BETTER]
    assert {one.verdict for one in found if claims.WHOLE in one.sentence} == {"holds"}
    assert {one.verdict for one in found if claims.WHOLE not in one.sentence} == {"not measured"}


def test_what_is_missing_is_not_measured():
    found = verdicts(answers=flat)
    assert found[claims.DROP] == found[claims.NEEDLESS] == found[claims.BETTER] == {"not measured"}
    one = made_up("answers", flat)
    one.measured["rows"] = [row for row in one.measured["rows"] if row["steps"] == 6]
    assert {f.verdict for f in claims.conclude([one]).findings if f.claim == claims.FORWARDS} == {"not measured"}
    none = claims.conclude([Record(Cell("answers", 0, {}), failed="no")]).findings
    assert {one.verdict for one in none} == {"not measured"}
    assert {one.claim for one in none} == set(claims.CLAIMS)
    empty = made_up("answers", flat)
    for row in empty.measured["rows"]:
        row["same_by_law"] = [0.0] * 4
    told = {one.claim: one.verdict for one in claims.conclude([empty]).findings}
    assert told[claims.VARIETY] == "not measured"
