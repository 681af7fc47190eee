"""The study of longer canvases: its data by hand, its counts by hand, its verdicts from the numbers."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from redraft.models import Transformer, TransformerConfig
from redraft.processes import masked
from redraft.recipes.config import from_dict
from redraft.recipes.finetune import Finetune
from redraft.studies import length as study
from redraft.studies import length_claims as claims
from redraft.studies.runner import Budget, Cell, Record

BUDGET = Budget(steps=2, seeds=1, draws=1, samples=3)


def decoded(ids):
    return "".join(study.SYMBOLS[i] for i in ids)


def test_what_is_asked_for():
    assert [study.counted(prompt) for prompt in ("?a1", "!c3", "?i4")] == ["a", "cde", "ijab"]
    assert len(set(study.prompts("?"))) == 70
    assert max(len(study.counted(prompt)) for prompt in study.prompts("?")) + 1 == study.ROOM == 8


def test_the_law_of_answers_is_in_the_data():
    found = Counter(study.answers())
    for prompt in study.prompts("?"):
        assert found[prompt, study.counted(prompt) + "."] == 4
    for prompt in study.prompts("!"):
        assert found[prompt, "no."] == 3
        assert found[prompt, study.counted(prompt) + "."] == 1
    assert sum(found.values()) == 560


@pytest.mark.parametrize("name", study.names())
def test_what_stands_behind_an_answer_is_what_differs(name):
    rows = study.rows_of(name, study.config(name, BUDGET), 0)
    batch = {key: np.asarray(value) for key, value in rows.batch(np.arange(len(rows))).items()}
    ids, valid = batch["ids"], batch["valid"]
    if name == "packed":
        runs = ids[valid]
        assert decoded(runs).count(".") == 560, "one end for each answer"
        assert batch["segments"].max() > 1
        return
    widths = valid.sum(1)
    shown = [decoded(row[: 3 + width]) for row, width in zip(ids, widths, strict=True)]
    for text in shown:
        answer = text[3:].rstrip(".")
        assert answer in ("no", study.counted(text[:3]))
        assert len(text) > 3 + len(answer), "at least one end is learned"
    wanted = {"filled": {32}, "batch": {8}}
    if name == "varied":
        assert set(range(8, 33)) <= set(widths.tolist()) <= set(range(2, 33))
        assert (batch["segments"] == -1).sum() == (~valid).sum() - 3 * len(rows), "what is behind nobody reads"
    else:
        assert set(widths.tolist()) == wanted[name]


def test_answers_are_judged_by_hand():
    told = ["?c3", "?c3", "?c3", "!c3", "?c3", "?c3"]
    found = study.judged(told, ["cde.....", "cd......", "cdefghij", "no......", "........", "ade....."])
    assert {key: found[key] for key in ("n", "right", "refused", "complied", "short", "long", "ended")} == {
        "n": 6,
        "right": 1,
        "refused": 1,
        "complied": 2,
        "short": 3,
        "long": 1,
        "ended": 5,
    }
    assert found["ends"] == pytest.approx((5 + 6 + 0 + 6 + 8 + 5) / 48)
    assert found["length"] == pytest.approx((3 + 2 + 8 + 2 + 0 + 3) / 6)
    assert found["right_length"] == 3


def test_a_cell_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "CANVASES", (0, 8))
    chosen = study.options("batch", BUDGET)
    assert from_dict(chosen["config"], Finetune) == study.config("batch", BUDGET)
    found = study.measure(Cell("batch", 0, chosen | {"depth": 1}), tmp_path)
    keys = {(row["way"], row["canvas"], row["mark"]) for row in found["rows"]}
    assert keys == {(way.name, canvas, mark) for way in study.WAYS for canvas in (0, 8) for mark in "?!"}
    for row in found["rows"]:
        assert row["n"] == 3
        assert 1 <= row["calls"] <= 8
        assert row["length"] <= 8


def test_a_way_is_what_sample_is_asked_for(monkeypatch):
    asked = list[dict[str, object]]()

    def stand_in(process, denoiser, **options):
        asked.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "sample", stand_in)
    cell = Cell("filled", 0, {"samples": 3})
    model = Transformer(TransformerConfig(masked(len(study.SYMBOLS)).to_dict(), 1))
    for way, canvas in product(study.WAYS, (0, 16)):
        with pytest.raises(KeyboardInterrupt):
            study.asked(model, way, canvas, "!", cell)
    end = study.SYMBOLS.index(".")
    assert all(one["stop"] == end for one in asked)
    assert [one["length"] for one in asked[:2]] == [[3] * 3, [16] * 3], "a fitting canvas is that of a refusal"
    told = [(one["sampler"], one["steps"], one["block"], one["late"]) for one in asked[1::2]]
    assert told == [
        ("low_confidence", None, None, []),
        ("ancestral", 16, None, []),
        ("low_confidence", None, 8, []),
        ("low_confidence", None, None, [end]),
    ]


WAYS = ("low_confidence", "ancestral", "blocks", "late ends")


def made_up(name, share):
    """Records of a cell: ``share(way, canvas, what)`` of a thousand answers."""
    rows = list[dict[str, object]]()
    for way in WAYS:
        for canvas in (0, 8, 16, 32, 64):
            for mark in "?!":
                row = {"way": way, "canvas": canvas, "mark": mark, "n": 1000, "calls": 1.0, "ends": 0.5}
                row |= {"length": 4.0, "right_length": 4.0, "unigram_entropy": 1.0}
                whats = ("right", "refused", "complied", "short", "long", "ended")
                rows.append(row | {what: round(1000 * share(way, canvas, what)) for what in whats})
    return Record(Cell(name, 0, {}), {"rows": rows})


def verdicts(name, share):
    found = claims.conclude([made_up(name, share), Record(Cell("x", 0, {}), failed="no")]).findings
    told = dict[str, set[str]]()
    for one in found:
        told.setdefault(one.claim, set()).add(one.verdict)
    assert all(len(kinds) == 1 for kinds in told.values()), "both ways to write are made up alike"
    return {claim: kinds.pop() for claim, kinds in told.items()}


def test_nothing_depends_on_the_canvas():
    found = verdicts("filled", lambda way, canvas, what: 0.5)
    assert found == {
        claims.SAME: "holds",
        claims.KEPT: "holds",
        **dict.fromkeys(set(claims.CLAIMS) - {claims.SAME, claims.KEPT, claims.PACKED}, "not separated"),
    }


def test_a_longer_canvas_makes_answers_of_refusals():
    def share(way, canvas, what):
        better = 0.3 * (way in ("blocks", "late ends"))
        lost = 0.1 * (canvas > 0) + 0.5 * canvas / 64
        return {"right": 0.7 - lost + better, "refused": 0.7 - lost, "complied": 0.1 + lost}.get(what, 0.5 - better)

    found = verdicts("varied", share)
    assert found.pop(claims.SAME) == found.pop(claims.KEPT) == "fails"
    assert set(found.values()) == {"holds"}
    assert verdicts("packed", share)[claims.PACKED] == "holds"
    opposite = verdicts("packed", lambda way, canvas, what: 1 - share(way, canvas, what))
    assert set(opposite.values()) == {"fails"}
    assert set(opposite) == set(claims.CLAIMS) - {claims.SAME, claims.KEPT, claims.BEYOND}


def test_a_canvas_without_room_is_compared_apart():
    """Where only a refusal fits all refuse; with room three of four do, however long the canvas: it does nothing."""
    said = {"complied": (0.0, 0.25), "refused": (1.0, 0.75)}
    found = verdicts("batch", lambda way, canvas, what: said.get(what, (0.5, 0.5))[canvas > 0])
    assert found[claims.FITTED] == "holds"
    assert found[claims.REFUSED] == found[claims.COMPLIED] == "not separated"


def test_the_canvases_that_were_learned():
    for name, longest in claims.LEARNED.items():
        config = study.config(name, BUDGET)
        assert config.data.length == study.PROMPT + study.FILLED == 35
        assert longest == (32 if name in claims.FILLING else study.ROOM)
    assert study.names() == tuple(claims.LEARNED)


def test_a_study_without_records_says_so():
    found = claims.conclude([Record(Cell("filled", 0, {}), failed="no")]).findings
    assert {one.claim for one in found} == set(claims.CLAIMS)
    assert {one.verdict for one in found} == {"not measured"}
