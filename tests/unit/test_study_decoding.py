"""Studies ``schedules`` and ``self-correction``: their parts, and what they say of records made up for the purpose."""

from typing import ClassVar

import pytest
import torch

from redraft import processes, studies
from redraft.sampling import sample, samplers
from redraft.studies import schedules, self_correction, syntax
from redraft.studies.findings import Estimate
from redraft.studies.runner import Cell, Record
from redraft.studies.self_correction_claims import MENDS, PAYS, UNTAUGHT, errors


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ("x = 1", True),
        ("    return x + 1", True),
        ("return x +", False),
        ("def f(a, b):", True),
        ("def f(a, b)", False),
        ("else:", True),
        ("elif x == 2:", True),
        ("except ValueError as error:", True),
        ("finally:", True),
        ("case [a, b]:", True),
        ("@property", True),
        ("try:", True),
        ("try: x = 1", True),
        ("match x:", True),
        ("if x:  # why", True),
        ("else: # or not", True),
        ("def f(): # nothing", True),
        ("case = 3", True),
        ("except* E:", True),
        ("except E: pass", True),
        ("if x", False),
        ("else", False),
        ("@", False),
        ("case 3", False),
        ("# anything: goes (", True),
        ("for i in range(3:", False),
        ("els:", False),
        ("'open", False),
        ("\x00", False),
    ],
)
def test_lines_that_parse(line, right):
    assert syntax.parses(line) == right


def test_only_complete_lines_count():
    assert syntax.lines("tail of one\nx = 1\n\n  y =\nhead of an") == ["x = 1", "  y ="]
    assert syntax.parsing(["a\nx = 1\ny =\nb", "no line"]) == (1, 2)


def test_the_corpus_is_code():
    text = syntax.corpus()
    assert syntax.LIMIT <= len(text) < syntax.LIMIT + 2 * syntax.PIECE
    right, lines = syntax.parsing([text])
    assert 0.5 < right / lines < 1


class Watching:
    """Says the same of every token and keeps how many masks it saw."""

    def __init__(self) -> None:
        self.facts, self.seen = processes.Facts(mask_id=5), []

    def __call__(self, z, t, cond=None):
        self.seen.append(int((z == 5).sum()))
        return torch.zeros(*z.shape, 5).log_softmax(-1)


def test_a_plan_of_counts_is_kept_to():
    watching = Watching()
    found = sample(processes.masked(5), watching, length=10, steps=4, sampler=schedules.revealing([1, 2, 3, 4]), seed=0)
    assert watching.seen == [10, 9, 7, 4]
    assert found.nfe == 4


def test_surprise_is_the_models_loss_by_what_is_known():
    """A model that knows the next token once any is revealed, and else nothing: ln 5, then 0."""

    class Model:
        process, facts = processes.masked(5), processes.Facts(mask_id=5)

        @staticmethod
        def denoiser(z, t):
            known = (z != 5).any(1)[:, None, None]
            return torch.where(known, torch.eye(5).log()[2], torch.full((5,), 0.2).log()).expand(*z.shape, 5)

    found = schedules.measured_surprise(Model(), torch.full((40, 4), 2), draws=1, seed=0)
    assert found == pytest.approx([1.6094379, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("name", self_correction.CELLS)
def test_samplers_of_a_cell_fit_its_noise(name):
    """Each is one, and writes something with a denoiser of that noise."""
    made = {"masked": processes.masked(5), "uniform": processes.uniform(5), "hybrid": processes.hybrid(5)}
    process = made[name.split()[1]]

    class Even:
        facts = processes.Facts(mask_id=process.mask_id, time_conditioned=True)

        def __call__(self, z, t, cond=None):
            return torch.linspace(0, 1, 5).expand(*z.shape, 5).log_softmax(-1)

    for sampler in self_correction.samplers(name):
        if sampler == "wino":  # which needs a network that can be told what to read
            continue
        assert samplers.get(sampler)
        assert sample(process, Even(), length=4, steps=3, sampler=sampler, seed=0).tokens.shape == (1, 4)


class Made:
    """Records of one cell, two samplers beside ancestral."""

    right: ClassVar = {"ancestral": 600, "gibbs": 800, "low_confidence": 700, "low_confidence+edit:tau=0.5": 500}

    @classmethod
    def records(cls) -> list[Record]:
        rows = [
            {
                "sampler": name,
                "calls": calls,
                "nfe": calls,
                "right": right,
                "agreement": 10,
                "n": 1000,
                "distinct": 300 - right // 10,
                "expected": 247,
                "unigram_entropy": 1.5 - right / 1e4,
            }
            for name, right in cls.right.items()
            for calls in (4, 8)
        ]
        return [Record(Cell("toy masked", 0, {}), measured={"rows": rows})]


def test_what_self_correction_concludes():
    found = studies.get("self-correction").conclude(Made.records())
    verdicts = {(one.claim, one.sentence.split(" (")[0]): one.verdict for one in found.findings}
    assert verdicts[MENDS, "gibbs"] == "holds"
    assert {one.verdict for one in found.findings if one.claim == UNTAUGHT} == {"holds"}, "editing made it worse"
    assert {one.verdict for one in found.findings if one.claim == PAYS} == {"holds"}
    assert errors([{"n": 10, "right": 9}]).mean == pytest.approx(0.1)
    assert isinstance(errors([{"n": 10, "right": 9}]), Estimate)
    empty = studies.get("self-correction").conclude([])
    assert {one.verdict for one in empty.findings} == {"not measured"}


def test_what_schedules_concludes():
    def row(name, cost, right):
        return {"schedule": name, "counts": [3, 3], "cost": cost, "costs": [cost * 0.8, cost * 0.2], "n": 1000,
                "well_formed": right / 1000, "unigram_entropy": 1.5}  # fmt: skip

    rows = [row("sqrt", 2.0, 500), row("uniform", 1.0, 700), row("square", 0.7, 780), row("cosine", 0.5, 850)]
    rows += [row("cubic", 0.6, 820), row("best", 0.45, 860)]
    told = {"exact_surprise": [1.0, 0.5], "surprise": [1.0, 0.5], "written": [{"steps": 2, "rows": rows}]}
    found = studies.get("schedules").conclude([Record(Cell("toy", 0, {}), measured=told)])
    assert {one.verdict for one in found.findings} == {"holds"}
    assert len(found.findings) == 5
    wrong = [{**one, "well_formed": 1 - one["well_formed"]} for one in rows]
    told["written"] = [{"steps": 2, "rows": wrong}]
    turned = studies.get("schedules").conclude([Record(Cell("toy", 0, {}), measured=told)])
    assert [one.verdict for one in turned.findings].count("fails") == 2
