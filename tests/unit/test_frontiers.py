"""Quality per denoising step: which points are dominated, areas, what may be drawn together, and the sweep itself."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch

from redraft import drawing, processes, records
from redraft.data import build_tokenizer, toy
from redraft.evaluation.ngram import NGram
from redraft.frontiers import SIZE, Frontier, Point, area, draw, entries, frontier, pareto, together, usual, yardstick
from redraft.lm import LM
from redraft.models import Transformer, TransformerConfig
from redraft.processes import Facts

MADE = {"command": "redraft evaluate x", "seeds": [0], "commit": None, "machine": {}, "date": "2026-01-01"}


def point(sampler="ancestral", nfe=4.0, quality=0.5, error=0.1, entropy=1.0):
    low, high = (None, None) if quality is None else (quality - error, quality + error)
    told = {"sampler": sampler, "asked": 4, "steps": 4, "nfe": nfe, "nfe_percentiles": {"p50": nfe}, "positions": 24.0}
    told |= {"tokens_per_forward": 1.5, "cpu_seconds": 0.1, "measured": {"unigram_entropy": entropy}}
    return Point(**told, quality=quality, quality_low=low, quality_high=high, unigram_entropy=entropy)


def curve(*points, model="m", higher=True, **protocol):
    measure = "share of well-formed sentences" if higher else "bits per character"
    protocol = {"length": 6, "prompt": "", "num": 10, "judge": None} | protocol
    reference = {"quality": 1.0, "quality_low": 0.9, "quality_high": 1.0, "unigram_entropy": 1.5}
    return Frontier(model, measure, protocol, points or (point(),), reference, 0)


# ------------------------------------------------------------------------------------------------------- pure parts


@pytest.mark.parametrize(
    ("found", "higher", "kept"),
    [
        ([], True, []),
        ([(4, 0.5)], True, [0]),
        ([(4, 0.5), (4, 0.5)], True, [0, 1]),  # equals stand together
        ([(4, 0.5), (8, 0.5)], True, [0]),  # no better for more
        ([(4, 0.5), (4, 0.6)], True, [1]),
        ([(4, 0.5), (4, 0.6)], False, [0]),
        ([(8, 0.9), (4, 0.5)], True, [1, 0]),  # cheapest first
        ([(8, 0.9), (4, 0.5)], False, [1]),
        ([(4, None), (8, 0.1), (9, 0.3), (10, 0.2)], True, [1, 2]),
        ([(4, 0.0), (8, 0.0), (8, -1.0)], False, [0, 2]),
    ],
)
def test_the_pareto_set_by_hand(found, higher, kept):
    assert pareto(found, higher) == kept


@pytest.mark.parametrize("higher", [True, False])
def test_the_pareto_set_is_what_nothing_dominates(higher):
    """Against the definition itself, on small grids full of ties."""
    draw = random.Random(0)
    for _ in range(300):
        found = [(draw.randint(1, 4), draw.choice([None, 0, 1, 2, 3])) for _ in range(draw.randint(0, 8))]

        def dominated(one, found=found):
            def no_worse(a, b):
                return a[0] <= b[0] and (a[1] >= b[1] if higher else a[1] <= b[1])

            return any(other[1] is not None and no_worse(other, one) and other != one for other in found)

        expected = {i for i, one in enumerate(found) if one[1] is not None and not dominated(one)}
        kept = pareto(found, higher)
        assert set(kept) == expected
        assert len(kept) == len(expected)
        assert [found[i][0] for i in kept] == sorted(found[i][0] for i in kept)


def test_the_area_is_that_of_the_trapezoids_over_octaves():
    assert area([(2, 1.0), (8, 1.0)]) == {"area": 2.0, "octaves": 2.0, "mean": 1.0}
    assert area([(8, 0.0), (1, 3.0), (2, 1.0)]) == {"area": 3.0, "octaves": 3.0, "mean": 1.0}
    line = area([(n, math.log2(n)) for n in (1, 2, 4, 8, 16)])
    assert line["area"] == pytest.approx(8.0), "trapezoids are exact for a line in log2"
    assert area([(1, 0.0), (2, 0.0), (2, 4.0)]) == {"area": 1.0, "octaves": 1.0, "mean": 1.0}, "of equal calls the mean"
    assert area([(1, 0.0), (1, 4.0), (2, 0.0)]) == {"area": 1.0, "octaves": 1.0, "mean": 1.0}
    assert area([(4, 1.0)]) is area([]) is area([(4, 1.0), (4, 2.0)]) is area([(4, 1.0), (8, None)]) is None


def test_a_frontier_tells_its_pareto_set_and_areas():
    points = (point("a", 4, 0.5), point("a", 8, 0.7), point("b", 4, 0.6), point("b", 8, 0.65), point("b", 16, None))
    told = curve(*points).to_dict()
    assert told["pareto"] == [2, 1]
    assert told["areas"]["a"] == {"area": pytest.approx(0.6), "octaves": 1.0, "mean": pytest.approx(0.6)}
    assert curve(*points, higher=False).to_dict()["pareto"] == [0]


def test_a_frontier_comes_back_from_its_file(tmp_path):
    one = curve(point(), point("b", 8, None))
    records.write(tmp_path / "one.json", "frontier", one.to_dict(), MADE)
    assert Frontier.read(tmp_path / "one.json") == one


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: tree.pop("points"),
        lambda tree: tree["points"][0].pop("nfe"),
        lambda tree: tree["points"][0].update(nfe="4"),
        lambda tree: tree["points"][0].update(nfe=0),
        lambda tree: tree["points"][0].update(quality="<b>"),
        lambda tree: tree["points"][0].update(quality_low="x"),
        lambda tree: tree["points"][0].update(more=1),
        lambda tree: tree.update(points=[1]),
        lambda tree: tree.update(protocol=None),
        lambda tree: tree["protocol"].pop("judge"),
        lambda tree: tree.update(measure="$x_"),
        lambda tree: tree.update(model=3),
        lambda tree: tree.update(reference=[1]),
    ],
)
def test_a_damaged_frontier_is_named(damage, tmp_path):
    tree = json.loads(json.dumps(curve().to_dict()))
    damage(tree)
    records.write(tmp_path / "one.json", "frontier", tree, MADE)
    with pytest.raises(ValueError, match=r"one\.json"):
        Frontier.read(tmp_path / "one.json")


def test_what_is_no_frontier_is_refused(tmp_path):
    records.write(tmp_path / "one.json", "likelihood", {}, MADE)
    with pytest.raises(ValueError, match=r"one\.json holds no frontier"):
        Frontier.read(tmp_path / "one.json")


def test_frontiers_of_another_protocol_are_not_drawn_together_unless_forced():
    one = curve()
    together([one, curve(model="n")])
    for name, value in {"length": 7, "prompt": "x", "num": 11, "judge": "j"}.items():
        other = curve(model="n", **{name: value})
        with pytest.raises(ValueError, match=rf"m and n were measured differently: {name} "):
            together([one, other])
        together([one, other], force=True)
    with pytest.raises(ValueError, match="no one axis"):
        together([one, curve(higher=False)], force=True)


# --------------------------------------------------------------------------------------------------------- the sweep

SENTENCES = torch.tensor(toy.sentences())
ONE_HOT = torch.nn.functional.one_hot(SENTENCES, 13).double()


class Grammarian:
    """The exact denoiser of the toy language under masks: p(token | what stands there), by counting sentences."""

    facts = Facts(mask_id=13)
    process = processes.masked(13)

    def __call__(self, z, t, cond=None):
        width = z.shape[1]
        fits = ((z[:, None] == SENTENCES[:, :width]) | (z[:, None] == 13)).all(-1)
        fits = fits | ~fits.any(-1, keepdim=True)  # what is no sentence any more: as if nothing stood there
        counts = torch.einsum("bs,slk->blk", fits.double(), ONE_HOT[:, :width])
        return (counts / counts.sum(-1, keepdim=True)).log()


@pytest.fixture(scope="module")
def exact():
    return LM(Grammarian(), build_tokenizer("toy"), {"context": 6})


@pytest.fixture(scope="module")
def swept(exact):
    samplers = ("ancestral", "low_confidence", "gibbs")
    return frontier(exact, samplers=samplers, nfes=(8, 1, 2, 8), num=400, seed=1, name="exact")


def test_one_call_is_as_good_as_independent_tokens_and_one_a_token_is_exact(swept):
    """Two-sided tests at 4 standard errors, fixed seed: false alarm 1e-4 each."""
    marginals = ONE_HOT.mean(0)
    alone = float(torch.stack([marginals[i, SENTENCES[:, i]] for i in range(6)]).prod(0).sum())
    for sampler in ("ancestral", "low_confidence"):
        first, *_, last = swept.of(sampler)
        assert first.nfe == 1
        assert abs(first.quality - alone) < 4 * math.sqrt(alone * (1 - alone) / 400)
        assert first.quality_low < first.quality < first.quality_high
    assert last.quality == 1.0, "low_confidence with a call for each token"
    assert last.nfe == 6, "six masks take six calls, though eight were asked for"
    assert last.quality_low == pytest.approx(400 / (400 + 1.959964**2)), "Wilson's interval at a share of one"
    assert last.tokens_per_forward == 1.0


def test_steps_are_chosen_so_that_calls_are_as_asked(swept):
    """A sampler that asks twice a step gets about half the steps; all others get as many as calls."""
    steps = {(one.sampler, one.asked): one.steps for one in swept.points}
    assert {steps[name, n] == n for name in ("ancestral", "low_confidence") for n in (1, 2, 8)} == {True}
    assert steps["gibbs", 8] < 8
    assert abs(swept.of("gibbs")[-1].nfe - 8) < 2
    for one in swept.points:
        assert one.nfe <= one.asked + (one.sampler == "gibbs")
        assert one.nfe_percentiles["p10"] <= one.nfe_percentiles["p50"] <= one.nfe_percentiles["p90"]
        assert one.positions == pytest.approx(6 * one.nfe), "each call of a row is of six positions"
    assert [one.asked for one in swept.points] == [1, 2, 8] * 3, "cheapest first, nothing twice"


def test_a_point_has_quality_variety_and_cost_together(swept):
    one = swept.points[0]
    assert {"distinct_2", "self_bleu", "dtype", "total_variation", "well_formed"} <= one.measured.keys()
    assert one.unigram_entropy == one.measured["unigram_entropy"] > 0
    assert one.cpu_seconds > 0
    assert one.measured["seed"] == 1, "what is drawn of the texts too"
    assert swept.protocol | {"tokenizer": None} == {
        **{"length": 6, "prompt": "", "num": 400, "judge": None, "tokenizer": None, "options": {}}
    }
    assert (swept.measure, swept.higher, swept.seed) == ("share of well-formed sentences", True, 1)


def test_a_sweep_is_repeated_by_its_seed_and_changed_by_its_options(exact):
    def figures(**options):
        found = frontier(exact, samplers=("ancestral",), nfes=(3,), num=20, **options)
        return replace(found.points[0], cpu_seconds=0.0), found.protocol

    (one, protocol), (again, _) = figures(), figures()
    assert one.measured.pop("nfe") == again.measured.pop("nfe")
    assert one == again
    assert figures(seed=1)[0] != one
    cold, told = figures(temperature=0.0)
    assert cold.unigram_entropy != one.unigram_entropy
    assert told["options"] == {"temperature": 0.0}
    short, told = figures(prompt="we are")
    assert (told["prompt"], told["length"]) == ("we are", 4)
    assert short.positions < one.positions or short.nfe <= one.nfe
    assert figures(prompt="we are", length=2)[1]["length"] == 2
    assert protocol["length"] == 6


def test_a_judge_goes_before_the_grammar_and_people_are_measured_alike(exact):
    judge, people = yardstick(exact, None, NGram(["we are cat s"]))
    found = frontier(exact, samplers=("ancestral",), nfes=(6,), num=30, judge=judge, references=people)
    assert (found.measure, found.higher) == ("bits per character", False)
    assert found.protocol["judge"] == judge.name
    one = found.points[0]
    assert one.quality == one.measured["bits_per_char"]
    assert one.quality - one.quality_low == pytest.approx(one.measured["bits_per_char_error"])
    assert found.reference["texts"] == 30
    assert {"distinct_2", "self_bleu", "shortest", "longest"} <= found.reference["measured"].keys()
    assert found.reference["quality_low"] < found.reference["quality"] < found.reference["quality_high"]
    grammar = frontier(exact, samplers=("ancestral",), nfes=(6,), num=30, references=people)
    assert grammar.reference["quality"] == 1.0


def test_texts_that_are_all_empty_are_a_point_without_quality(exact):
    pad = build_tokenizer("toy").token("[PAD]")
    kept = [i for i in range(13) if i != pad]
    found = frontier(exact, samplers=("ancestral",), nfes=(2,), num=4, banned=kept)
    one = found.points[0]
    assert (one.quality, one.quality_low, one.unigram_entropy, one.measured) == (None, None, None, {"empty": 4})
    (row,) = entries(found)
    assert row["quality"].startswith("none")
    assert found.to_dict()["pareto"] == []
    assert ">ancestral<" in picture([found])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num": 1}, "num=1"),
        ({"nfes": ()}, "nfes"),
        ({"nfes": (4, 0)}, r"nfes=\[4, 0\]"),
        ({"samplers": ("ancestrall",)}, "ancestral"),
        ({"samplers": ("ancestral", "ddim")}, "ddim"),
        ({"temprature": 1.0}, "temperature"),
        ({"steps": 4}, "option of a sweep 'steps'"),
        ({"sampler": "gibbs"}, "option of a sweep 'sampler'"),
        ({"length": 7}, "length"),
        ({"judge": "ngram"}, "ngram:FILE"),
    ],
)
def test_refusals_before_anything_is_measured(exact, options, words):
    told = []
    with pytest.raises(ValueError, match=words):
        frontier(exact, tell=told.append, **options)
    assert told == []


def small(process, **options):
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(process.to_dict(), depth=1, pad_id=12, **options))
    return LM(model.eval(), build_tokenizer("toy"), {"context": 6})


def test_the_samplers_compared_unless_named_fit_the_model():
    vectors = processes.gaussian(torch.nn.functional.normalize(torch.randn(13, 4), dim=-1))
    expected = {"masked": 3, "uniform": 1, "gaussian": 2}
    assert len(usual(LM(Grammarian(), build_tokenizer("toy"), {"context": 6}))) == expected["masked"]
    for process in (processes.uniform(13), vectors):
        torch.manual_seed(0)
        tensors = {"codebook": vectors.codebook} if process is vectors else {}
        config = TransformerConfig(process.to_dict(), depth=1, pad_id=12, time_conditioned=True)
        lm = LM(Transformer(config, tensors).eval(), build_tokenizer("toy"), {"context": 6})
        assert len(usual(lm)) == expected[process.name]
        found = frontier(lm, nfes=(2, 3), num=3)
        assert [one.sampler for one in found.points] == [name for name in usual(lm) for _ in (2, 3)]
    causal = small(processes.masked(13), attention="causal")
    found = frontier(causal, nfes=(2, 3), num=3)
    assert [(one.sampler, one.steps, one.nfe) for one in found.points] == [("left_to_right", None, 6.0)]


def test_empty_texts_are_told_where_quality_is():
    one = curve(replace(point(), measured={"empty": 3}), replace(point(nfe=8.0), measured={"empty": 0}))
    some, none = entries(one)
    assert some["quality"] == "0.500 (0.400 to 0.600), 3 empty"
    assert none["quality"] == "0.500 (0.400 to 0.600)"


# ------------------------------------------------------------------------------------------------------- yardsticks


def test_human_text_is_none_that_the_judge_was_fitted_on(tmp_path):
    lm = LM(Grammarian(), build_tokenizer("bytes"), {"context": 12})
    lines = [f"number {i} is told of here" for i in range(400)]
    (tmp_path / "x.txt").write_text("\n\n".join(lines))
    judge, people = yardstick(lm, tmp_path / "x.txt")
    assert "character 5-gram of nine tenths of x.txt (SHA-256 " in judge.name
    text = "".join(lm.decode(row) for row in people.ids.tolist())
    shown = [line for line in lines if line in text]
    assert 10 < len(shown) < 120
    numbers = [line.split()[1] for line in shown if len(line.split()[1]) == 3]
    missing = [one for one in numbers if not judge.counts[f" {one} "]]
    assert len(missing) > 0.8 * len(numbers), "held out of the judge's text"
    given, everything = yardstick(lm, tmp_path / "x.txt", judge)
    assert given is judge
    assert everything.num_tokens > 5 * people.num_tokens
    with pytest.raises(ValueError, match="--data FILE"):
        yardstick(lm, None)
    assert yardstick(lm, None, judge) == (judge, None)
    with pytest.raises(ValueError, match="need a judge"):
        frontier(lm)


# ---------------------------------------------------------------------------------------------------------- picture


def picture(frontiers):
    return drawing.svg(lambda figure: draw(frontiers, figure), SIZE)


def test_the_picture_names_its_series_and_is_the_same_every_time():
    points = (point("ancestral", 4, 0.5), point("ancestral", 8, 0.9), point("gibbs", 8, 0.7), point("gibbs", 9, None))
    one = curve(*points)
    alone = picture([one])
    assert alone == picture([one])
    for words in (
        ">ancestral<",
        ">gibbs<",
        "share of well-formed sentences (higher is better)",
        "denoiser calls",
        "unigram entropy",
        "human",
    ):
        assert words in alone
    assert ", m<" not in alone
    both = picture([one, curve(*points, model="other")])
    assert {">ancestral, m<", ">ancestral, other<"} <= {
        word for word in (">ancestral, m<", ">ancestral, other<") if word in both
    }
    assert "lower is better" in picture([curve(*points, higher=False)])
    assert "human text" not in picture([replace(one, reference=None)])
    assert picture([one]) != picture([replace(one, reference={"quality": 0.2, "unigram_entropy": None})])


def test_a_long_name_is_cut_in_the_picture():
    drawn = picture([curve(model="x" * 5000), curve(model="y")])
    assert f">ancestral, {'x' * 68}…<" in drawn
    assert "x" * 69 not in drawn


def test_a_table_shows_what_somebody_edited_as_far_as_it_goes():
    odd = {"distinct_2": "x", "self_bleu": [1], "empty": "<b>"}
    (row,) = entries(curve(replace(point(), measured=odd, nfe_percentiles={"p90": 4.0})))
    assert (row["distinct 2"], row["self-BLEU"], row["calls"]) == ("-", "-", "4.0")


def test_a_name_is_text_in_the_picture():
    name = "<script>$\\frac{1}$ 東 &"
    drawn = picture([curve(model=name), curve(model="_b")])
    assert "<script" not in drawn
    assert "&lt;script&gt;$\\frac{1}$ □ &amp;" in drawn
    assert "ancestral, _b" in drawn
