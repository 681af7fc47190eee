"""Presets: the authors' algorithms by name, what overrules them, and how a checkpoint is written by itself."""

import json

import pytest
import torch
from parity import authors
from parity.checkpoints import EOS, LAYOUTS, M, write
from typer.testing import CliRunner

from redraft import cli, presets, processes, runs
from redraft.data import build_tokenizer
from redraft.evaluation import answers
from redraft.lm import LM
from redraft.models.families import FAMILIES
from redraft.sampling import sample
from redraft.sampling.law import law

PROMPT = "dop"  # 3, 14, 15
IDS = [3, 14, 15]
LATE = ["--late", "o", "--late", "e"]
NAMED = {"specials": [(61, "<|endoftext|>"), (62, "<|eot_id|>")]}


@pytest.fixture(scope="module")
def lms(tmp_path_factory):
    with torch.no_grad():
        made = {name: LAYOUTS[name].write(tmp_path_factory.mktemp(name)) for name in ("llada", "dream", "llada2")}
        return {name: runs.load(folder) for name, folder in made.items()}


def said_by(lm):
    return lambda x: lm.denoiser.logits(x[None])[0].double()


def written(lm, **options):
    found = lm.generate(PROMPT, **options)
    return found.tokens[0, len(IDS) : found.samples.lengths[0]].tolist()


# ------------------------------------------------------------------------------------------- the authors' algorithms


@torch.no_grad()
@pytest.mark.parametrize(("preset", "block"), [("llada-base", 24), ("llada", 8)])
def test_llada(preset, block, lms):
    """Blocks of 32 and 128 are more than this context has: shorter ones say the same."""
    lm = lms["llada"]
    assert written(lm, preset=preset, length=24, block=block) == authors.llada(said_by(lm), IDS, 24, 24, block, M)
    assert written(lm, preset=preset, length=24) == authors.llada(said_by(lm), IDS, 24, 24, 24, M)
    assert written(lm, length=40, preset="llada") == written(lm, length=40, block=32)


@torch.no_grad()
def test_dream(lms):
    lm = lms["dream"]
    said = authors.dream(said_by(lm), IDS, 20, 20, "entropy", M)[0]
    assert written(lm, preset="dream-base", length=20) == said
    assert written(lm, preset="dream", length=20, temperature=0.0, top_p=1.0) == said
    assert written(lm, preset="dream", length=20) != said
    assert written(lm, preset="dream-origin", length=20, seed=1) != said


@torch.no_grad()
@pytest.mark.parametrize(
    ("preset", "tau", "editing"), [("llada2", 0.95, None), ("llada2.1-quality", 0.7, 0.5), ("llada2.1-speed", 0.5, 0.0)]
)
def test_llada2(preset, tau, editing, lms):
    lm = lms["llada2"]
    said = authors.llada21(said_by(lm), IDS, 40, 32, tau, editing, M, EOS)[0]
    assert written(lm, preset=preset, length=40) == said
    if editing is None:
        assert said == authors.llada2(said_by(lm), IDS, 40, 32, 32, tau, M, EOS)


@torch.no_grad()
def test_speed_is_not_quality(lms):
    texts = [written(lms["llada2"], preset=name, length=40) for name in ("llada2", "llada2.1-speed")]
    assert texts[0] != texts[1]


@torch.no_grad()
@pytest.mark.parametrize(("preset", "family"), [("llada-1.5", "llada"), ("dream-coder", "dream")])
def test_tokens_are_named_by_their_text(preset, family, tmp_path):
    """Ends of text are written last, or less likely, by the ids that this tokenizer gives them."""
    layout = LAYOUTS[family]
    lm = runs.load(write(tmp_path, layout.config, layout.shapes(layout.config), **NAMED))
    options = presets.usual({}, preset, lm.tokenizer)
    assert options.get("late", [61, 62]) == [61, 62]
    assert options.get("bias", {61: -3.0}) == {61: -3.0}
    assert ("late" in options) != ("bias" in options)
    plain = {name: value for name, value in options.items() if name not in ("late", "bias")} | {"length": 8}
    banned = {"late": [41, 39], "bias": {33: -30.0}}
    assert written(lm, **plain) != written(lm, **plain, **{name: banned[name] for name in banned if name in options})
    with pytest.raises(ValueError, match=r"endoftext.* is 13 tokens"):
        presets.usual({}, preset, build_tokenizer("bytes"))


# ---------------------------------------------------------------------------------------------- what is usual, and not


@torch.no_grad()
def test_a_checkpoint_is_written_as_its_family_is(lms):
    lm = lms["llada"]
    assert lm.about["decoding"] == FAMILIES["llada"].decoding
    plain = LM(lm.denoiser, lm.tokenizer, {"context": lm.context})
    asked = {"sampler": "low_confidence", "temperature": 0.0, "block": 32}
    assert written(lm, length=40) == written(plain, length=40, **asked) != written(plain, length=40, steps=8)
    assert len(written(lm)) == lm.context - len(IDS), "128 are usual, and there is room for fewer"
    short = LM(lm.denoiser, lm.tokenizer, lm.about | {"decoding": {"length": 5}})
    assert len(written(short, steps=5)) == 5
    assert len(written(short, length=7, steps=5)) == 7
    assert written(lm, length=8, temperature=1.0, seed=1) != written(lm, length=8, temperature=1.0, seed=2)
    assert written(lm, length=8, temperature=None, seed=1) == written(lm, length=8, seed=2)
    assert written(lm, length=8, sampler="sequential") != written(lm, length=8)


@torch.no_grad()
def test_gaps_are_filled_and_texts_redrafted_as_usual(lms):
    lm = lms["llada"]
    one, other = (lm.infill("do[MASK:4]p", seed=seed).text for seed in (1, 2))
    assert one == other == lm.infill("do[MASK:4]p", sampler="low_confidence", temperature=0.0).text
    assert lm.infill("do[MASK:4]p", temperature=1.0, seed=1).text != lm.infill("do[MASK:4]p", temperature=1.0).text
    edited = [lm.edit("doqpacd", strength=1.0, seed=seed).text for seed in (1, 2)]
    assert edited[0] == edited[1] == lm.edit("doqpacd", strength=1.0, sampler="low_confidence", temperature=0.0).text
    drawn = LM(lm.denoiser, lm.tokenizer, lm.about | {"decoding": {"sampler": "ancestral", "temperature": 0.0}})
    assert drawn.infill("do[MASK:1-3]p").lengths == [(1,), (2,), (3,)], "ancestral says nothing of how likely"
    assert drawn.infill("do[MASK:3]p", steps=2).samples.nfe == 2


@torch.no_grad()
def test_what_does_not_hold_is_left_out(lms):
    """A window has no blocks, and a text that grows no sampler."""
    lm = lms["llada"]
    assert lm.generate(PROMPT, length=70, stride=16).tokens.shape == (1, 73)
    with pytest.raises(ValueError, match="block=4 with a stride"):
        lm.generate(PROMPT, length=70, stride=16, block=4)
    grown = lm.generate(PROMPT, length=12, grow=True)
    assert 3 <= grown.tokens.shape[1] <= 15


def test_a_preset_is_told_by_its_name(lms):
    with pytest.raises(ValueError, match=r"unknown preset 'llada2.1-sped'; did you mean 'llada2.1-speed'"):
        lms["llada2"].generate(PROMPT, preset="llada2.1-sped")
    assert {name for name, one in FAMILIES.items() if one.decoding} <= set(presets.PRESETS)


@torch.no_grad()
@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_writes(name, tmp_path):
    """Each on a checkpoint of its own family, or that of its name's first word."""
    family = name if name in LAYOUTS else name.split("-")[0].split(".")[0]
    layout = LAYOUTS.get(family, LAYOUTS["llada"])
    config = layout.config | ({"block_size": 4} if layout.block else {})
    named = NAMED if layout.mask == M else {"mask": layout.mask if layout.mask < 64 else None}
    lm = runs.load(write(tmp_path, config, layout.shapes(config), **named), family=layout.asked)
    found = lm.generate(PROMPT, preset=name, length=6, steps=6)
    assert found.samples.tokens.shape == (1, 9)


def test_the_command_line_knows_presets(lms, tmp_path):
    lms["llada2"].save(tmp_path / "m")
    run = CliRunner().invoke
    command = ["generate", str(tmp_path / "m"), "--prompt", PROMPT, "--length", "40", "--json"]
    with torch.no_grad():
        wanted = lms["llada2"].generate(PROMPT, preset="llada2.1-speed", length=40).text
    found = run(cli.app, [*command, "--preset", "llada2.1-speed"])
    assert json.loads(found.stdout)["samples"][0]["text"] == wanted
    plain = json.loads(run(cli.app, command).stdout)["samples"][0]["text"]
    assert plain != wanted
    command = [*command, "--sampler", "low_confidence", "--steps", "8"]
    texts = [json.loads(run(cli.app, [*command, *more]).stdout)["samples"][0]["text"] for more in ([], LATE)]
    assert texts[0] != texts[1]
    listed = json.loads(run(cli.app, ["list", "presets", "--json"]).stdout)["presets"]
    assert {one["name"] for one in listed} == set(presets.PRESETS)
    assert all(one["options"] and one["description"] for one in listed)


# ------------------------------------------------------------------------------------- options that presets brought in


def test_a_bias_is_added_to_log_p():
    logp = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    made = law(processes.masked(5), torch.zeros(2, 3, dtype=torch.bool), bias={3: -2.0, 0: 1.5})
    wanted = (logp + torch.tensor([1.5, 0, 0, -2.0, 0])).log_softmax(-1)
    torch.testing.assert_close(made(logp, torch.full((2, 3), 5), None, 5), wanted)


@pytest.mark.parametrize("rule", ["low_confidence", "maskgit_plus", "topk_margin", "entropy"])
def test_what_is_late_is_written_last(rule):
    """Position i proposes token i; the surest, the last two, wait until nothing else is left, and are written then."""
    process, order = processes.masked(5), []

    class Says:
        facts = processes.Facts(mask_id=5)

        def __call__(self, z, t, cond=None):
            sharp = torch.arange(2.0, 7.0, dtype=torch.float64)
            return (torch.eye(5, dtype=torch.float64) * sharp[:, None]).log_softmax(-1).expand(len(z), -1, -1)

    def seen(step):
        order.extend((step.z[0] < 5).nonzero().flatten().tolist())

    for late, wanted in (((), [4, 3, 2, 1, 0]), ((4, 3), [2, 1, 0, 3, 4])):
        order.clear()
        found = sample(process, Says(), length=5, temperature=0.0, sampler=f"{rule}", late=late, callback=seen)
        assert found.tokens.tolist() == [[0, 1, 2, 3, 4]]
        first = list(dict.fromkeys(order))
        assert first[:3] == wanted[:3] or rule != "low_confidence"
        assert set(first[-2:]) == ({3, 4} if late else {0, 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"late": [2], "sampler": "ancestral"}, r"late=\[2\] needs a sampler that proposes"),
        ({"late": [5], "sampler": "low_confidence"}, "late holds 5, which is no token"),
        ({"bias": {7: 1.0}}, "bias holds 7, which is no token"),
        ({"bias": {1: float("-inf")}}, "bias of token 1 is -inf: pass nats"),
        ({"whole_blocks": True}, "whole_blocks with block=None: pass block"),
        ({"whole_blocks": True, "block": 2, "constraint": object()}, "whole_blocks with a constraint"),
    ],
)
def test_mistakes_are_named(options, message):
    class Says:
        facts = processes.Facts(mask_id=5)

    with pytest.raises(ValueError, match=message):
        sample(processes.masked(5), Says(), length=5, **options)


@torch.no_grad()
def test_whole_blocks_end_where_the_text_does(lms):
    """What is past the text is written and left out: of blocks of a full canvas too, and no block is begun for it."""
    lm = lms["llada"]
    asked = {"prompt": [IDS, IDS[:1]], "length": [5, 8], "block": 4, "temperature": 0.0, "sampler": "low_confidence"}
    whole = sample(lm.process, lm.denoiser, whole_blocks=True, **asked)
    long = sample(lm.process, lm.denoiser, **asked | {"length": [8, 8]})
    assert whole.tokens.shape == (2, 9)
    assert whole.lengths == [8, 9]
    assert whole.tokens[0, :8].tolist() == long.tokens[0, :8].tolist()
    assert whole.tokens[1].tolist() == long.tokens[1, :9].tolist()
    assert whole.tokens[0, 8:].tolist() == [0]
    assert whole.logp[0, 8:].isnan().all()
    assert not whole.logp[0, 3:8].isnan().any()
    assert whole.tokens[0].tolist() != sample(lm.process, lm.denoiser, **asked).tokens[0].tolist()
    given = torch.ones(1, 5, dtype=torch.bool)
    none = sample(lm.process, lm.denoiser, canvas=torch.ones(1, 5).long(), frozen=given, block=4, whole_blocks=True)
    assert none.tokens.tolist() == [[1] * 5]
    assert none.nfe == 0


# ------------------------------------------------------------------------------------------------- scoring of an answer


@torch.no_grad()
def test_an_answer_is_scored_as_text(lms):
    lm = lms["llada"]
    found = lm.score("dop", "jch", estimator="any_order_exact")
    ids = torch.tensor([9, 2, 7])
    same = answers.score(lm.process, lm.denoiser, torch.tensor(IDS), ids, estimator="any_order_exact")
    assert found.nats == same.nats
    assert found.to_dict()["estimator"] == "any_order_exact"
    guided = lm.score("dop", "jch", estimator="any_order_exact", weight=1.5)
    assert guided.nats != found.nats
    assert guided.forwards == 2 * found.forwards
    bound = [lm.score("dop", "jch", seed=seed) for seed in (0, 0, 1)]
    assert bound[0] == bound[1] != bound[2]
    assert (bound[0].draws, bound[0].is_bound) == (128, True)
    assert lm.score("dop", "jch", draws=2).draws == 2
    with pytest.raises(ValueError, match="trained on 64"):
        lm.score("d" * 60, "o" * 5)
    with pytest.raises(ValueError, match="no tokens of its own"):
        lm.score("dop", "")


class Blanks:
    """A tokenizer of letters that says what it was asked."""

    def encode(self, text, pad):
        return [ord(one) for one in text]


def test_blanks_at_the_end_of_a_prompt_are_the_answers():
    start, rest = answers.split(Blanks(), "a b \n", "c", 9)  # pyright: ignore
    assert ("".join(map(chr, start)), "".join(map(chr, rest))) == ("a b", " \nc")
    start, rest = answers.split(Blanks(), "  ", "c", 9)  # pyright: ignore
    assert (len(start), len(rest)) == (0, 3)
