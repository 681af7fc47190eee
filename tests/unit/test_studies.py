"""Studies without a training: estimates, verdicts, the cache's keys, the judge, repair on exact denoisers, reports."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from redraft import processes, recipes, studies
from redraft.data import toy
from redraft.evaluation.ngram import NGram
from redraft.processes import Facts
from redraft.recipes.lineage import LINEAGE
from redraft.studies import findings, hybrid, lineage, lineage_claims, repair, runner
from redraft.studies.findings import Conclusion, Estimate, Finding, Plot, Table
from redraft.studies.report import write_report
from redraft.studies.runner import Budget, Cell, Record, run_cells

BUDGET = Budget(steps=7, seeds=2, draws=1, samples=3)


# ------------------------------------------------------------------------------------------------ estimates, verdicts


def test_a_difference_within_its_error_separates_nothing():
    values = {"a": Estimate(1.0, 0.3), "b": Estimate(1.4, 0.3), "c": Estimate(1.5, 0.3)}
    said = [findings.below("x", left, right, values, "bits").verdict for left, right in ("ab", "ac", "ca", "ad")]
    assert said == ["not separated", "holds", "fails", "not measured"]  # hypot(0.3, 0.3) = 0.424


def test_alike():
    values = {"a": Estimate(1.0, 0.1), "b": Estimate(1.05, 0.1), "c": Estimate(1.3, 0.1)}
    assert findings.alike("x", ["a", "b"], values, "bits").verdict == "holds"
    apart = findings.alike("x", ["a", "b", "c"], values, "bits")
    assert apart.verdict == "fails"
    assert "a and c" in apart.sentence
    assert "a and b" not in apart.sentence
    assert findings.alike("x", ["a", "d"], values, "bits").verdict == "not measured"
    close = values | {"c": Estimate(1.15, 0.1)}
    assert "most apart are a and c (-0.150 ± 0.173)" in findings.alike("x", ["a", "b", "c"], close, "bits").sentence
    assert findings.alike("x", ["a", "c"], close, "bits").verdict == "fails", "one comparison needs less"


def test_many_comparisons_widen_the_intervals():
    one = Estimate(0.5, 0.1)
    assert findings.widened(one, 1).error == pytest.approx(0.1)
    assert findings.widened(one, 10).error == pytest.approx(0.1 * 2.807 / 1.96, abs=1e-3)
    values = {"a": Estimate(0.0, 0.1), "b": Estimate(0.15, 0.1)}
    assert findings.below("x", "a", "b", values, "bits").verdict == "holds"
    chosen = findings.below("x", "a", "b", values, "bits", comparisons=3)
    assert chosen.verdict == "not separated"
    assert "difference -0.150 ± 0.173" in chosen.sentence


def test_what_a_difference_says():
    gaps = [Estimate(mean, 0.5) for mean in (-1.0, 0.0, 1.0)]
    assert [findings.lower(gap) for gap in gaps] == ["holds", "not separated", "fails"]
    assert [findings.higher(gap) for gap in gaps] == ["fails", "not separated", "holds"]


def test_pooling_adds_the_spread_over_seeds():
    one = Estimate(1.0, 0.2)
    assert findings.pooled([one]) == one
    assert findings.pooled([one, one]).error == pytest.approx(0.2 / math.sqrt(2))
    apart = findings.pooled([Estimate(0.0, 0.0), Estimate(2.0, 0.0)])
    assert (apart.mean, apart.error) == (1.0, pytest.approx(1.96 * math.sqrt(2 / 2), rel=1e-3))


def test_a_share_of_nothing_still_has_an_error():
    assert 0 < findings.share(0, 1000).error < 0.01
    assert findings.share(500, 1000).error == pytest.approx(1.96 * math.sqrt(0.25 / 1000), rel=0.01)
    with pytest.raises(ValueError, match="3 of 2"):
        findings.share(3, 2)


def test_the_summary_counts_every_claim_and_names_those_that_do_not_hold():
    said = {"a": ["holds", "holds"], "b": ["holds", "fails"], "c": ["fails", "not separated"], "d": ["not separated"]}
    said |= {"e": ["not measured"], "f": ["holds", "not measured"]}
    told = [Finding(claim, verdict, "") for claim, verdicts in said.items() for verdict in verdicts]
    assert findings.summary([*said, "g"], told) == (
        "Of 7 claims 2 held in every comparison; in some: “b” (1 of 2, failed in 1); in none: “c” (failed in 1 of 2); "
        "not separated: “d”; "
        "not measured: “e”, “g”."
    )
    assert findings.summary(["a"], told[:2]) == "Of 1 claims 1 held in every comparison."
    partly = [Finding("a", "holds", ""), Finding("a", "not separated", "")]
    assert findings.summary(["a"], partly).endswith("in some: “a” (1 of 2).")


# ------------------------------------------------------------------------------------------------------------- cells


def test_every_option_and_seed_makes_another_cell():
    cells = [Cell("a", 0, {"x": 1}), Cell("a", 1, {"x": 1}), Cell("a", 0, {"x": 2}), Cell("b", 0, {"x": 1})]
    assert len({cell.key for cell in cells}) == 4
    assert Cell("a", 0, {"x": (1, 2)}).key == Cell("a", 0, {"x": [1, 2]}).key, "as JSON tells it"


def test_every_study_quotes_what_it_tests_and_has_a_row_in_the_index():
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text("utf-8")
    for name in studies.STUDIES:
        assert len(studies.get(name).told) > 40, name
        (row,) = [line for line in page.splitlines() if line.startswith((f"| `{name}` |", f"| [`{name}`]("))]
        assert row.count("|") == 6, "study, asks, found, --quick, full"


def test_a_budget_may_write_nothing_but_must_train():
    assert replace(BUDGET, samples=0, draws=0).samples == 0
    for field in ("steps", "seeds"):
        with pytest.raises(ValueError, match=f"{field}=0"):
            replace(BUDGET, **{field: 0})
    with pytest.raises(ValueError, match="draws=-1"):
        replace(BUDGET, draws=-1)


@pytest.mark.parametrize("name", studies.STUDIES)
def test_a_budget_says_what_is_measured(name):
    """What a cell is not given is 0: the report would promise bounds or samples that nobody sees."""
    study = studies.get(name)
    for budget in (study.quick, study.full):
        options = study.cells(budget)[0].options
        assert (budget.samples > 0) == ("samples" in options)
        assert (budget.draws > 0) == ("draws" in options)


def test_quick_runs_go_on_after_a_failure(monkeypatch, tmp_path, capsys):
    """One study breaks, one has a cell that failed: all are run and timed, and the command exits with an error."""
    path = Path(__file__).parents[2] / "benchmarks" / "studies.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_studies", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    asked = []

    def run(name, *, quick, out, workers):
        asked.append((name, quick, out))
        if name == "gaussian":
            raise RuntimeError("broken")
        failed = "no" if name == "hybrid" else None
        return studies.Outcome([Record(Cell("one", 0, {}), {}, failed, 60.0)], Conclusion(), out)

    monkeypatch.setattr(benchmark.studies, "run", run)
    names = ["gaussian", "hybrid", "length"]
    monkeypatch.setattr("sys.argv", ["studies.py", "--out", str(tmp_path), "--only", *names])
    with pytest.raises(SystemExit, match="failed: gaussian, hybrid: one; see"):
        benchmark.main()
    assert asked == [(name, True, tmp_path / name) for name in names]
    told = capsys.readouterr()
    assert "broken" in told.err
    (total,) = [line for line in told.out.splitlines() if line.startswith("total")]
    assert "2.0 CPU-minutes" in total
    monkeypatch.setattr("sys.argv", ["studies.py", "--out", str(tmp_path), "--only", "length"])
    benchmark.main()


def test_quick_is_a_smaller_budget():
    for name in studies.STUDIES:
        study = studies.get(name)
        assert study.quick.steps < study.full.steps
        quick, full = (study.cells(budget) for budget in (study.quick, study.full))
        assert {cell.key for cell in quick}.isdisjoint(cell.key for cell in full)
        assert quick[0].options["config"]["train"]["steps"] == study.quick.steps


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: studies.get("lineaeg"), ["'lineage'"]),
        (lambda: studies.run("hybrid", only=["0.3"]), ["'0.3'", "0.05"]),
        (lambda: studies.run("hybrid", steps=0), ["steps=0"]),
        (lambda: studies.run("hybrid", seeds=0), ["seeds=0"]),
        (lambda: run_cells([], hybrid.measure, None, workers=0), ["workers=0"]),
    ],
    ids=["study", "cell", "steps", "seeds", "workers"],
)
def test_refusals(call, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words[0]) as error:
        call()
    assert all(word in str(error.value) for word in words)
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("redraft.drawing.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"redraft\[viz\]"):
        studies.run("hybrid", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------- lineage


def test_every_preset_of_the_lineage_is_a_cell_on_one_budget():
    assert set(lineage.presets()) == {recipe.__name__ for recipe in LINEAGE} | {"gaussian"}
    for name in lineage.presets():
        preset, config = recipes.get(name), lineage.config(name, BUDGET)
        assert (config.process, config.objective, config.loss) == (preset.process, preset.objective, preset.loss)
        assert replace(config.model, depth=preset.model.depth) == preset.model
        assert (config.data, config.train.steps, config.model.depth) == (lineage.DATA, BUDGET.steps, lineage.DEPTH)
        assert config.data.length % (config.model.block or 1) == 0


def test_what_claims_name_are_presets():
    names = {name for pairs in lineage_claims._PAIRS.values() for pair in pairs for name in pair}
    assert names | set(lineage_claims._SAME) <= set(lineage.presets())


@pytest.mark.parametrize(
    ("process", "attention", "kind"),
    [
        ("masked", "causal", "autoregressive"),
        ("gaussian", "full", "Gaussian"),
        ("d3pm gaussian", "full", "structured"),
        ("d3pm absorbing", "full", "masked"),
        ("d3pm hybrid", "full", "hybrid"),
        ("spindle", "full", "masked"),
        ("uniform", "full", "uniform"),
    ],
)
def test_families(process, attention, kind):
    assert lineage_claims.family({"process": process, "attention": attention}) == kind


def test_claims_against_made_up_records():
    """A table of known bounds: every verdict is what the numbers say, and a failed preset stands in the table."""
    bounds = {"mdlm": 2.0, "md4": 2.01, "radd": 2.0, "sedd_absorb": 2.3, "udlm": 2.4, "gaussian": 2.41}
    records = [made_up(name, bits) for name, bits in bounds.items()]
    records += [made_up("autoregressive", 1.9, "causal"), Record(Cell("duo", 0, {}), failed="ValueError: no")]
    told = lineage_claims.conclude(records)
    said = {(found.claim, found.sentence.split()[0]): found.verdict for found in told.findings}
    assert said[lineage_claims.ONE_BOUND, "sedd_absorb"] == "fails"
    assert said[lineage_claims.MASKED, "mdlm"] == "not measured", "gidd has no record"
    assert said[lineage_claims.MASKED, "d3pm_absorbing"] == "not measured"
    assert said[lineage_claims.UNIFORM, "udlm"] == "not separated"
    assert said[lineage_claims.AR, "autoregressive"] == "holds"
    masked = [f.verdict for f in told.findings if f.sentence.startswith("mdlm (2.000") and "udlm" in f.sentence]
    assert masked[0] == "holds"
    assert ("duo", "failed") in [row[:2] for row in told.tables[0].rows]
    assert "mdlm" in told.answer
    assert "radd" in told.answer


@pytest.mark.parametrize(("entropy", "verdict"), [(2.0, "holds"), (1.7, "fails")])
def test_text_that_repeats_itself_is_not_better(entropy, verdict):
    few = made_up("udlm", 2.0)
    mended = {"nfe": 50, "bits_per_char": 1.0, "bits_per_char_error": 0.1, "unigram_entropy": entropy}
    few.measured["samples"] = [
        {**few.measured["samples"][0], "corrected": {**mended, "distinct_2": 1, "distinct_3": 1}}
    ]
    (found,) = [one for one in lineage_claims.conclude([few]).findings if one.claim == lineage_claims.MENDED]
    assert found.verdict == verdict
    assert ("repetition" in found.sentence) == (verdict == "fails")


def made_up(name, bits, attention="full"):
    row = {"nfe": 8, "steps": 8, "bits_per_char": 3.0, "bits_per_char_error": 0.1, "unigram_entropy": 2.0}
    row |= {"distinct_2": 0.5, "distinct_3": 0.6}
    likelihood = {"bits_per_char": bits, "bits_per_char_error": 0.02, "is_bound": True, "estimator": "made up"}
    measured = {
        "likelihood": likelihood,
        "process": "masked",
        "objective": "nelbo",
        "attention": attention,
        "train_cpu_seconds": 1.0,
        "parameters": 10,
        "tokens": 20,
        "judge": "made up",
        "judge_held_out": 2.0,
        "human": row,
        "samples": [row, row],
    }
    return Record(Cell(name, 0, {}), measured, None, 2.0, 100.0, {"processor": "x"})


# ------------------------------------------------------------------------------------------------------------- judge


def test_the_judge_is_a_law():
    judge = NGram(["abracadabra", "barbara"], order=3)
    for history in ("", "a", "ab", "br", "zz", "za"):
        assert sum(judge.probability(history, c) for c in "abrcd") + judge.probability(history, "z") == pytest.approx(1)


def test_the_judge_by_hand():
    """p_1(a) = (2 + 2/3) / 6, p_2(b | a) = (2 + p_1(b)) / 3: one kind of character followed a, twice."""
    judge = NGram(["abab"], order=2)
    a = (2 + 2 / 3) / 6
    assert judge.bits_per_char("ab") == pytest.approx(-(math.log2(a) + math.log2((2 + a) / 3)) / 2)
    with pytest.raises(ValueError, match="empty"):
        judge.bits_per_char("")


def test_the_judge_prefers_what_it_read():
    judge = NGram(["the cat sat on the mat, and the dog sat on the cat"])
    assert judge.bits_per_char("the cat sat") < judge.bits_per_char("tac eht tas") < judge.bits_per_char("zzz zzz zzz")


# ------------------------------------------------------------------------------------------------------------ repair


class Exact:
    """The exact cavity posterior p(x_i | z without i) of the toy language under any categorical process."""

    def __init__(self, process):
        self.process, self.sentences = process, torch.tensor(toy.sentences())
        self.facts = Facts(posterior="cavity", time_conditioned=True, mask_id=process.mask_id)

    def __call__(self, z, t, cond=None):
        K = self.process.K
        eye = torch.eye(K, dtype=torch.float64).expand(len(z), K, K)
        table = self.process.marginal(eye, t).clamp_min(1e-12).log()  # log q_t(y | x), (B, x, y)
        each = table.gather(2, z[:, None].expand(-1, K, -1))  # of the tokens there are, (B, x, L)
        own = each.transpose(1, 2)[:, None].expand(-1, len(self.sentences), -1, -1)
        own = own.gather(3, self.sentences[None, :, :, None].expand(len(z), -1, -1, 1))[..., 0]  # (B, sentence, L)
        others = torch.softmax(own.sum(2, keepdim=True) - own, dim=1)
        p = torch.zeros(*z.shape, K, dtype=torch.float64)
        places = self.sentences.T[None].expand(len(z), -1, -1)
        return p.scatter_add(2, places, others.transpose(1, 2)).clamp_min(1e-30).log()


def test_agreement_errors_are_all_of_them():
    right, wrong = repair.agreement_errors()
    assert ((right != wrong).sum(1) == 1).all()
    assert {toy.classify(toy.text(row)) for row in wrong.tolist()} == {"agreement"}
    assert ("our dog s are your s", "our dog is your s") not in list(map(texts, zip(right, wrong, strict=True)))
    assert ("our dog is your s", "our dog are your s") in list(map(texts, zip(right, wrong, strict=True)))
    assert len(torch.cat([right, wrong], 1).unique(dim=0)) == len(right)


def texts(pair):
    return tuple(toy.text(row.tolist()) for row in pair)


@pytest.mark.parametrize("name", ["masked", "uniform", "hybrid"])
def test_an_exact_denoiser_never_doubts_a_right_sentence(name):
    """p(x_i | the others) of a sentence's own token is at least 1/12: below that, ``redraw`` leaves it alone."""
    process = getattr(processes, name)(len(toy.UNITS))
    rows = torch.tensor(toy.sentences())
    kept, calls = repair.redraw(process, Exact(process), rows, threshold=0.01, seed=0)
    assert (kept == rows).all()
    assert calls == (toy.LENGTH if name == "masked" else 1)


@pytest.mark.parametrize("name", ["masked", "uniform", "hybrid"])
def test_exact_denoisers_mend(name):
    """One token is wrong: whatever is doubted and drawn again ends in a sentence, unless it is the wrong token to
    doubt, one that no sentence has beside the others."""
    process = getattr(processes, name)(len(toy.UNITS))
    denoiser, (_, wrong) = Exact(process), repair.agreement_errors()
    mended, _ = repair.redraw(process, denoiser, wrong, 0.01, seed=0)
    assert repair._sentences(mended).double().mean() > 0.95
    if name != "masked":
        restarted = repair.restart(process, denoiser, wrong, 0.1, seed=0)
        assert repair._sentences(restarted).double().mean() > 0.9


def test_what_is_counted():
    """On 20 errors: counts that fit one another, of every way."""
    process = processes.uniform(len(toy.UNITS))
    for way in repair.measure(process, Exact(process), 0, rounds=1, most=20):
        assert 0 <= way["near"] <= way["repaired"] <= way["errors"] == 20
        assert 0 <= way["broken"] <= way["changed"] <= way["right"] == 20
        assert way["nfe"] >= 1


def test_a_masked_model_can_only_remask():
    process = processes.masked(len(toy.UNITS))
    assert {way.method for way in repair.ways(process, Exact(process))} == {"remask"}
    rows = repair.agreement_errors()[1]
    assert (repair.restart(process, Exact(process), rows, 0.4, seed=0) == rows).all()


def test_rows_do_not_depend_on_their_neighbours():
    process = processes.hybrid(len(toy.UNITS))
    denoiser, rows = Exact(process), repair.agreement_errors()[1][:8]
    all_of_them, two = (repair.restart(process, denoiser, part, 0.2, 3) for part in (rows, rows[:2]))
    assert (all_of_them[:2] == two).all()


# ------------------------------------------------------------------------------------------------------------ hybrid


def test_total_variation_of_known_texts():
    sentences = [toy.text(row) for row in toy.sentences()]
    assert hybrid.total_variation(sentences)["total_variation"] == pytest.approx(0)
    half = hybrid.total_variation(sentences[:126] * 2)["total_variation"]
    assert half == pytest.approx(0.5)
    assert hybrid.total_variation(["no sentence"] * 10)["total_variation"] == pytest.approx(1)


def test_a_perfect_sampler_is_this_far_from_the_law():
    """Against 2,000 simulated runs of 500 draws."""
    drawn = torch.randint(252, (2000, 500), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(2000, 252).scatter_add(1, drawn, torch.ones(2000, 500))
    simulated = (counts / 500 - 1 / 252).abs().sum(1).mean().item() / 2
    assert hybrid.perfect_variation(500) == pytest.approx(simulated, rel=0.005)


def test_the_mask_share_only_grows():
    for share in (0.05, 0.5, 0.99):
        assert hybrid.mask_share_grows(processes.hybrid(13, share))
    assert hybrid.mask_share_grows(processes.masked(13))
    assert hybrid.mask_share_grows(processes.uniform(13)) is None


# ------------------------------------------------------------------------------------------------------------ report


def test_the_report_says_it_all(tmp_path):
    cells = [Record(Cell("a", 0, {}), {"x": 1}, None, 60.0, 1.0, {"processor": "p", "gpu": None})]
    cells.append(Record(Cell("b", 1, {}), failed="ValueError: b | a"))
    told = {"question": "Why?", "told": "They say so.", "claims": ("c", "unread"), "protocol": ("As told.",)}
    study = replace(studies.get("hybrid"), name="s", sampled="texts", **told)
    plot = Plot("one", "A plot.", lambda figure: figure.subplots().plot([0, 1], [0, 1]))
    table = Table("T", ("k",), [("v|w",)], "A note.")
    conclusion = Conclusion([table], [plot], [Finding("c", "fails", "It does not.")], "So it is.")
    write_report(study, BUDGET, cells, conclusion, tmp_path, "redraft study s")
    text = (tmp_path / "report.md").read_text("utf-8")
    head = text.partition("## Claims")[0]
    assert "> What is said: They say so." in head
    found = "Of 2 claims 0 held in every comparison; in none: “c” (failed in 1 of 1); not measured: “unread”."
    assert f"**What we found.** {found}" in head
    assert "**Budget.** 7 training steps, 1 draws a row for each bound, 3 texts; seeds 0, 1." in head
    for words in ("Why?", "**Claim: c**", "**fails**: It does not.", "not measured", "So it is.", "v\\|w", "A note."):
        assert words in text
    for words in (
        "ValueError: b \\| a",
        "`redraft study s`",
        "7 training steps",
        "seeds 0, 1",
        "processor p",
        "(one.png)",
    ):
        assert words in text
    assert "](one.png)" in text
    kept = json.loads((tmp_path / "records.json").read_text("utf-8"))
    assert (kept["told"], kept["found"]) == ("They say so.", found)
    assert [one["failed"] for one in kept["records"]] == [None, "ValueError: b | a"]
    assert (tmp_path / "one.svg").read_text("utf-8").startswith("<?xml")
    assert (tmp_path / "one.png").stat().st_size > 1000
    write_report(study, replace(BUDGET, draws=0, samples=0), cells, conclusion, tmp_path, "redraft study s")
    assert "**Budget.** 7 training steps; seeds 0, 1." in (tmp_path / "report.md").read_text("utf-8")


def test_a_cell_killed_while_it_tells_is_a_failure():
    """Half a message is none: the record says that the process died, and the study goes on."""
    import os
    from multiprocessing import Pipe
    from types import SimpleNamespace

    ours, theirs = Pipe(duplex=False)
    os.write(theirs.fileno(), b"\x00\x00\x00\x40half")  # 64 bytes are announced
    theirs.close()
    process = SimpleNamespace(join=lambda: None, exitcode=-9)
    record = runner._receive(Cell("one", 0, {}), ours, process)
    assert "exit code -9" in str(record.failed)
