"""Figures of samples: what stands together, each by hand on a small case, intervals that cover, distances to laws."""

import itertools
import json
import math
import random
import sys
from collections import Counter

import pytest
import torch

import redraft as rd
from redraft.data import toy
from redraft.data.packing import Packed, load_text
from redraft.data.tokenizers import build_tokenizer
from redraft.evaluation.generation import self_bleu, unigram_entropy
from redraft.evaluation.intervals import mean_of, wilson
from redraft.evaluation.ngram import Judged, NGram
from redraft.evaluation.quality import NO_SACREBLEU, Passages, computes_in, passages, quality, quality_of
from redraft.lm import LM
from redraft.models import Transformer, TransformerConfig
from redraft.sampling import Cost

TEXTS = ["the cat sat on the mat.", "the dog sat on the cat.", "a dog is on the mat, on it.", "it is"]
ROWS = [list(map(ord, text)) for text in TEXTS]
JUDGE = NGram(["the cat is on the mat and the dog is not"], of="one sentence")


def made(texts=TEXTS, **options):
    rows = [list(map(ord, text)) for text in texts]
    return quality(texts, rows, **({"dtype": "float64"} | options))


# ------------------------------------------------------------------------------------------------ what stands together


def test_nothing_of_a_judge_stands_alone():
    """Whatever is stored or printed with a judge's figure has variety, dtype and cost beside it."""
    found = made(judge=JUDGE, cost=Cost(nfe=12, positions=80, of_rows=[7, 5, 3, 1]), network="float32")
    stored, printed = found.to_dict(), str(found)
    assert {"bits_per_char", "perplexity", "judge", "tokenisation"} <= set(stored)
    for name in (
        "unigram_entropy",
        "distinct_1",
        "distinct_2",
        "distinct_3",
        "self_bleu",
        "dtype",
        "network_dtype",
        "nfe",
    ):
        assert stored[name] is not None, name
    assert stored["unigram_entropy_error"] > 0
    for words in (
        "bits per character",
        "perplexity",
        "unigram entropy",
        "distinct 3",
        "self-BLEU",
        "float64, network in",
    ):
        assert words in printed
    assert (stored["nfe"], stored["positions"]) == (4, 20), "of a text, however many were written side by side"
    assert "character 5-gram of one sentence" in printed
    assert "characters, each text from nothing" in printed
    assert json.loads(json.dumps(stored)) == stored


def test_who_draws_must_say_in_what():
    with pytest.raises(TypeError, match="dtype"):
        quality(TEXTS, ROWS)
    with pytest.raises(ValueError, match="unknown dtype 'flaot32'; did you mean 'float32'"):
        made(dtype="flaot32")
    assert made(dtype=torch.float32, network=torch.bfloat16).to_dict()["dtype"] == "float32"
    assert made(dtype="unknown").to_dict()["network_dtype"] is None


def test_without_a_judge_there_is_none():
    found = made()
    assert found.judge is None
    assert found.samples.perplexity is None
    assert not {"bits_per_char", "perplexity"} & set(found.to_dict())
    assert "judge" not in str(found)
    assert "unknown" in dict(found.rows())["nfe"]


def test_figures_by_hand():
    found = made(["aab", "abc"], judge=NGram(["ab"], order=1)).samples
    # counts a 1, b 1 of 2 and three kinds of characters: (1 + 2/3) / 4 for those seen, (2/3) / 4 for the other
    seen, other = -math.log(5 / 12), -math.log(1 / 6)
    nats, mean = [3 * seen, 2 * seen + other], (5 * seen + other) / 6
    assert found.nats_per_token.mean == pytest.approx(mean)
    assert found.bits_per_char.mean == pytest.approx(mean / math.log(2))
    assert found.perplexity.mean == pytest.approx(math.exp(mean))
    # two ratios of equal size: Student's t of one degree of freedom times |difference| / 2
    error = 12.706205 * abs(nats[0] - nats[1]) / 3 / 2
    assert found.nats_per_token.error == pytest.approx(error)
    assert found.bits_per_char.error == pytest.approx(error / math.log(2))
    assert found.perplexity.error == pytest.approx(math.exp(mean) * error)
    one = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert found.unigram_entropy.mean == pytest.approx((one + math.log(3)) / 2)
    assert found.distinct == {1: 3 / 6, 2: 3 / 4, 3: 2 / 2}
    assert (found.shortest, found.longest, found.texts, found.empty) == (3, 3, 2, 0)


def test_texts_of_the_judge_count_by_their_length():
    """Total over total: a long text has more say than a short one."""

    class Told:
        name, tokenisation = "told", "words"

        def nats(self, texts):
            return [Judged(6.0, 2, 4) if text == "ab" else Judged(1.0, 1, 2) for text in texts]

    found = made(["ab", "c"], judge=Told()).samples
    assert found.nats_per_token.mean == pytest.approx(7 / 3)
    assert found.bits_per_char.mean == pytest.approx(7 / 6 / math.log(2))


def test_a_judge_that_loses_letters_has_no_bits_per_character():
    class Deaf:
        name, tokenisation = "deaf", "words"

        def nats(self, texts):
            return [Judged(1.0, 1, len(text) if text == "it is" else 0) for text in texts]

    found = made(judge=Deaf())
    assert found.samples.bits_per_char is None
    assert "bits_per_char" not in found.to_dict()
    assert "not measured" in dict(found.rows())["bits per character"]
    assert found.to_dict()["perplexity"] == pytest.approx(math.e)


def test_empty_texts_are_counted_and_left_out():
    found = made([*TEXTS, ""], judge=JUDGE)
    assert found.samples.empty == 1
    assert found.to_dict()["samples"] == 5
    assert found.samples.unigram_entropy == made(judge=JUDGE).samples.unigram_entropy
    with pytest.raises(ValueError, match="all of them empty"):
        made(["", ""])
    with pytest.raises(ValueError, match="a cost of 1 rows with 4 texts"):
        made(cost=Cost(nfe=7, of_rows=[7]))
    with pytest.raises(ValueError, match="2 texts and 1 rows"):
        quality(["a", "b"], [[1]], dtype="float64")


def test_what_ends_texts_is_no_part_of_them():
    padded = [[*row, 0, 0] for row in ROWS]
    told = {"dtype": "float64"}
    assert quality(TEXTS, padded, eos_id=0, **told).to_dict() == quality(TEXTS, ROWS, **told).to_dict()
    assert (
        quality(TEXTS, padded, **told).samples.unigram_entropy != quality(TEXTS, ROWS, **told).samples.unigram_entropy
    )


def test_one_text_has_no_error():
    found = made(["the cat"], judge=JUDGE)
    assert math.isinf(found.samples.bits_per_char.error)
    assert found.samples.self_bleu is None
    assert dict(found.rows())["self-BLEU"] == "not measured: of one text"


def test_texts_without_a_token_of_the_judge_are_not_judged():
    """A judge whose tokenizer drops blanks reads nothing in them; the rest is measured all the same."""

    class Blind:
        name, tokenisation = "blind", "words"

        def nats(self, texts):
            return [Judged(0.0, 0, 0) for _ in texts]

    found = made([" ", "  "], judge=Blind())
    assert not {"perplexity", "bits_per_char"} & found.to_dict().keys()
    assert found.to_dict()["unigram_entropy"] == 0
    assert "not measured: no token" in dict(found.rows())["perplexity"]


def test_human_text_stands_beside():
    human = Passages(TEXTS[:3], ROWS[:3])
    found = made(["aaaaa", "aaaab"], judge=JUDGE, references=human)
    beside = made(TEXTS[:3], judge=JUDGE).samples
    assert found.human == beside
    assert found.to_dict()["human"] == beside.to_dict()
    assert dict(found.rows())["unigram entropy"].endswith(f"(human {beside.unigram_entropy.text()} nats)")


# ------------------------------------------------------------------------------------------------------ what is written


def lm(words="toy", dtype=torch.float32, **options):
    tokenizer = build_tokenizer(words)
    process = rd.masked(tokenizer.K, mask_id=tokenizer.mask_id)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Transformer(TransformerConfig(process.to_dict(), depth=1, **options)).eval().to(dtype)
    return LM(model, tokenizer, {"context": 6 if words == "toy" else 16})


def test_what_a_model_wrote_is_told_with_what_it_was_drawn_in():
    model = lm()
    written = model.generate(num=5, steps=3, seed=1)
    stored = quality_of(written, model).to_dict()
    assert (stored["dtype"], stored["network_dtype"]) == ("float64", "float32")
    assert (stored["samples"], stored["nfe"]) == (5, sum(written.samples.cost.of_rows) / 5)
    assert stored["unigram_entropy"] == pytest.approx(unigram_entropy(written.rows))
    assert computes_in(lm(dtype=torch.bfloat16).denoiser) == torch.bfloat16
    assert set(toy.report(["x"])) - {"n"} <= set(stored)
    assert set(toy.divergence(["x"])) <= set(stored)
    low, high = wilson(round(5 * stored["well_formed"]), 5)
    assert (stored["well_formed_low"], stored["well_formed_high"]) == (low, high)


def test_the_ends_of_what_a_model_wrote_are_not_counted():
    model = lm("bytes")
    written = model.generate(num=3, length=8, steps=2)
    written.samples.tokens[:, 5:] = model.eos_id
    assert quality_of(written, model).samples.longest <= 5


def test_calls_are_of_a_text_however_many_are_written_at_a_time(monkeypatch):
    """Room for fewer positions makes more parts, and each of them calls: no text takes more for it."""
    from redraft import writing

    model = lm()
    whole = quality_of(model.generate(num=8, steps=3), model).to_dict()
    monkeypatch.setattr(writing, "POSITIONS_AT_ONCE", 12)
    written = model.generate(num=8, steps=3)
    parts = quality_of(written, model).to_dict()
    assert written.samples.nfe > 3 >= parts["nfe"]
    assert {parts[name] == whole[name] for name in ("nfe", "positions", "tokens_per_forward")} == {True}


def test_the_dtype_told_is_the_one_of_the_draws(monkeypatch):
    """Were draws made in float32, that would be said; and they are made in what is said."""
    from redraft import randomness

    asked = []
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *a, **b: (asked.append(b["dtype"]), rand(*a, **b))[1])
    randomness.rand((2,), torch.Generator().manual_seed(0))
    assert asked == [randomness.DRAWS] == [torch.float64]
    ids = randomness.inverse_cdf(torch.tensor([1.0, 1e-12]), torch.tensor([1 - 1e-13], dtype=torch.float64))
    assert ids.tolist() == [1], "a class far below float32's resolution is drawn"


def test_a_text_that_was_selected_is_refused():
    model = lm()
    with pytest.raises(ValueError, match="selected among others"):
        quality_of(model.generate(num=3, steps=2).select("agreement"), model)


def test_human_text_is_cut_to_what_was_written(tmp_path):
    model = lm("bytes")
    (tmp_path / "x.txt").write_text("".join(chr(97 + i % 26) for i in range(150)))
    packed = load_text(tmp_path / "x.txt", model.tokenizer, 16)
    found = passages(packed, model.tokenizer, [16, 3, 5])
    assert list(map(len, found.rows)) == [16, 3, 5]
    assert found.texts == [model.decode(row) for row in found.rows]
    whole = packed.ids[packed.valid.all(1)].tolist()
    assert found.rows == [whole[0], whole[3][:3], whole[6][:5]]
    assert len(passages(packed, model.tokenizer, [16] * 50).rows) == len(whole)
    written = model.generate(num=4, steps=2, length=7)
    assert quality_of(written, model, references=packed).human.longest == 7
    written.samples.tokens[:, 5:] = model.eos_id
    both = quality_of(written, model, references=packed)
    assert both.human.longest == both.samples.longest == 5, "what only ends a text makes it no longer"
    ends = packed.ids[:1].copy()
    ends[0, 3] = model.eos_id
    (row,) = passages(Packed(ends, None, None, 0, 16), model.tokenizer, [5]).rows
    assert row == [*whole[0][:3], *whole[0][4:6]], "what ends a text amid a row does not count"
    short = Packed(packed.ids[-1:], packed.valid[-1:], None, 0, 0)
    with pytest.raises(ValueError, match="shorter than one row"):
        passages(short, model.tokenizer, [3])


# ------------------------------------------------------------------------------------------------------------ self-BLEU


def by_sacrebleu(texts):
    """Each text against all others, by the library's own function: quadratic, and the law."""
    import sacrebleu

    metric = sacrebleu.BLEU(effective_order=True)
    scores = [metric.sentence_score(text, texts[:i] + texts[i + 1 :]).score / 100 for i, text in enumerate(texts)]
    return sum(scores) / len(scores)


def test_self_bleu_is_each_text_against_the_others():
    draw = random.Random(0)
    for _ in range(40):
        texts = [" ".join(draw.choices(["a", "b", "the", "cat,", "x."], k=draw.randint(1, 9))) for _ in range(6)]
        texts += texts[:1] * draw.randint(0, 2)
        assert self_bleu(texts) == pytest.approx(by_sacrebleu(texts), abs=1e-12)
    assert self_bleu(TEXTS) == pytest.approx(by_sacrebleu(TEXTS), abs=1e-12)


def test_self_bleu_of_equals_and_of_strangers():
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1)
    assert self_bleu(["a b c d e", "f g h i j"]) == 0
    assert self_bleu(["a", "a"]) == pytest.approx(1)


def test_self_bleu_of_a_part():
    texts = [f"a b c {i} {i % 3} d" for i in range(12)]
    found = {seed: self_bleu(texts, most=4, seed=seed) for seed in range(4)}
    assert len(set(found.values())) > 1
    assert found[0] == self_bleu(texts, most=4, seed=0) == self_bleu(random.Random(0).sample(texts, 4))
    stored = made(texts, most=4, seed=2).to_dict()
    assert (stored["self_bleu"], stored["self_bleu_texts"], stored["seed"]) == (found[2], 4, 2)
    with pytest.raises(ValueError, match="1 texts"):
        self_bleu(texts, most=1)


def test_without_sacrebleu_it_is_not_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    found = made(judge=JUDGE)
    assert found.to_dict()["self_bleu"] is None
    assert dict(found.rows())["self-BLEU"] == NO_SACREBLEU
    assert "redraft[eval]" in NO_SACREBLEU
    with pytest.raises(ValueError, match=r"redraft\[eval\]"):
        self_bleu(TEXTS)


# -------------------------------------------------------------------------------------------------------- a known law


@pytest.mark.parametrize(("n", "count"), [(1, 3), (4, 3), (5, 2), (2, 5), (3, 1)])
def test_what_a_perfect_sampler_shows_is_counted(n, count):
    """Every outcome of n draws: mean total variation and mean KL of frequencies to the even law; 1e-12."""
    apart = kl = 0.0
    for drawn in itertools.product(range(count), repeat=n):
        seen = Counter(drawn)
        apart += sum(abs(seen[i] / n - 1 / count) for i in range(count)) / 2 / count**n
        kl += sum(c / n * math.log(c / n * count) for c in seen.values()) / count**n
    assert toy.expected_divergence(n, count) == pytest.approx((apart, kl), abs=1e-12)


def test_expected_divergence_falls_as_it_should():
    for n in (100_000, 400_000):
        variation, kl = toy.expected_divergence(n)
        assert kl == pytest.approx(251 / (2 * n), rel=0.01)
        assert variation == pytest.approx(math.sqrt(252 / (2 * math.pi * n)), rel=0.01)
    with pytest.raises(ValueError, match="n=0"):
        toy.expected_divergence(0)


def texts():
    return [toy.text(row) for row in toy.sentences()]


def test_the_law_is_at_no_distance_from_itself():
    found = toy.divergence(texts() * 3)
    assert found["total_variation"] == pytest.approx(0, abs=1e-12)
    assert found["kl"] == pytest.approx(0, abs=1e-12)
    assert found["expected_total_variation"] > 0.2


def test_divergence_by_hand():
    one, other = texts()[:2]
    found = toy.divergence([one, one, other, "are dog our"])
    assert found["total_variation"] == pytest.approx((0.5 - 1 / 252 + 0.25 - 1 / 252 + 250 / 252 + 0.25) / 2)
    assert math.isinf(found["kl"])
    assert found["kl_of_sentences"] == pytest.approx(2 / 3 * math.log(2 / 3 * 252) + 1 / 3 * math.log(1 / 3 * 252))
    assert found["expected_kl_of_sentences"] == toy.expected_divergence(3)[1]
    assert found["expected_kl"] == toy.expected_divergence(4)[1]
    assert math.isnan(toy.divergence(["x"])["kl_of_sentences"])
    with pytest.raises(ValueError, match="no texts"):
        toy.divergence([])


def test_a_perfect_sampler_is_where_it_is_expected():
    """Means over 100 seeds of 500 draws, within 4 standard errors: false alarm 1e-4 each."""
    all_of, found = texts(), []
    for seed in range(100):
        found.append(toy.divergence(random.Random(seed).choices(all_of, k=500)))
    for name in ("total_variation", "kl"):
        estimate = mean_of([one[name] for one in found])
        assert abs(estimate.mean - found[0][f"expected_{name}"]) < 4 / 1.96 * estimate.error
