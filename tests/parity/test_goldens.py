"""What the released code said of the tiny checkpoints: logits, texts at temperature 0, likelihoods."""

import pytest
import torch

from parity import authors
from parity.checkpoints import (
    DREAM,
    EOS,
    GOLDEN_IDS,
    LAYOUTS,
    LLADA,
    VOCAB,
    M,
    filled,
    llada_shapes,
    qwen2_shapes,
    write,
)
from redraft import processes, runs
from redraft.evaluation import answers
from redraft.evaluation.intervals import student95
from redraft.guidance import cfg, unprompted
from redraft.sampling import sample

IDS = torch.tensor([GOLDEN_IDS])
LLADA2 = LLADA | {"n_kv_heads": 2}


def llada(folder, config=LLADA2):
    return runs.load(write(folder, config, llada_shapes(config)))


def dream(folder):
    return runs.load(write(folder, DREAM, qwen2_shapes(DREAM)))


def test_the_rule_that_fills_checkpoints():
    found = filled("model.transformer.wte.weight", (2, 3))
    wanted = [[0.00966398, -0.24422501, -0.24358857], [0.08360589, -0.10013757, -0.1737089]]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=0, atol=1e-8)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def check(logits, rows, total, absolute, argmax):
    torch.testing.assert_close(logits[[0, 3, 7], :4], torch.tensor(rows), rtol=0, atol=1e-4)
    assert float(logits.sum()) == pytest.approx(total, abs=2e-3)
    assert float(logits.abs().sum()) == pytest.approx(absolute, abs=2e-3)
    assert logits.argmax(-1).tolist() == argmax


FULL = {
    4: (
        [
            [1.49502, 0.82184, 0.728824, -1.35072],
            [2.020375, 0.447405, 0.861904, -1.584138],
            [2.150047, -0.008818, 0.80192, -1.63808],
        ],
        20.912476, 336.402614, [18, 31, 54, 0, 18, 18, 18, 0],
    ),
    2: (
        [
            [0.209162, 0.300508, 0.182909, -0.261791],
            [0.065962, -0.92802, 0.487356, 0.449963],
            [0.060178, -1.007635, 0.512714, 0.435547],
        ],
        16.304915, 333.738616, [32, 41, 41, 41, 30, 41, 41, 41],
    ),
}  # fmt: skip
PADDED = {
    4: (
        [
            [1.386986, 0.017037, -0.012292, -0.909556],
            [2.034272, 0.090246, 0.230019, -1.364412],
            [2.142793, -0.073855, 0.353932, -1.421827],
        ],
        -12.297032, 346.725716, [35, 35, 0, 0, 0, 35, 35, 0],
    ),
    2: (
        [
            [0.373838, 0.607505, 0.475969, -0.482275],
            [0.330085, -0.23059, 1.106085, 0.172353],
            [0.23446, -0.389169, 1.077899, 0.242197],
        ],
        -21.103277, 348.809509, [32, 41, 41, 30, 30, 36, 41, 9],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kv", [4, 2])
def test_logits_of_llada(kv, tmp_path):
    denoiser = llada(tmp_path, LLADA | {"n_kv_heads": kv}).denoiser
    check(denoiser.logits(IDS)[0], *FULL[kv])
    keep = torch.arange(8)[None] > 1  # what is padding is read by nobody, and may read what it likes
    told = {"attend": keep[:, None].expand(1, 8, 8)}
    check(denoiser.logits(IDS, told)[0], *PADDED[kv])


EXPERTS = {
    "llada_moe": (
        [
            [0.00235, -0.008211, 0.875386, -0.014438],
            [0.209144, -0.314965, 1.370533, -0.223917],
            [0.563752, -0.31595, 1.476415, 0.085022],
        ],
        92.477513, 288.406424, [18, 23, 34, 37, 2, 37, 57, 2],
    ),
    "llada2": (
        [
            [0.037703, -1.881113, 0.98478, -0.633907],
            [-0.1642, -1.133263, 1.379525, -0.782041],
            [0.048409, -1.453854, 1.227684, -0.748306],
        ],
        56.410437, 361.149640, [44, 55, 44, 55, 55, 55, 55, 55],
    ),
    "llada2 in blocks": (
        [
            [0.345849, -1.548572, 1.413255, -0.07281],
            [0.46478, -0.935993, 1.636406, -0.391739],
            [0.155408, -1.689336, 1.429364, -0.679648],
        ],
        88.217182, 360.238210, [55, 38, 7, 55, 55, 55, 55, 55],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changed"), [("llada_moe", {}), ("llada2", {}), ("llada2 in blocks", {"block_size": 4})]
)
def test_logits_of_mixtures_of_experts(name, changed, tmp_path):
    layout = LAYOUTS[name.split()[0]]
    denoiser = runs.load(layout.write(tmp_path, **changed)).denoiser
    everything = {"attend": torch.ones(8, 8, dtype=torch.bool)}
    check(denoiser.logits(IDS, None if changed else everything)[0], *EXPERTS[name])
    if name == "llada2":  # one block of 32 has them all
        check(denoiser.logits(IDS)[0], *EXPERTS[name])


def test_logits_of_dream_before_the_shift(tmp_path):
    denoiser = dream(tmp_path).denoiser
    raw = denoiser.backbone.say(denoiser.backbone(IDS, torch.arange(8)))[0]
    check(
        raw,
        [
            [-1.262233, 0.666849, -0.203228, 1.294708],
            [-0.555682, 0.227389, 0.91084, 0.951273],
            [-0.847248, 0.346242, 1.175645, 0.912364],
        ],
        4.874884, 335.609232, [14, 61, 51, 14, 45, 35, 33, 33],
    )  # fmt: skip
    shifted = denoiser.logits(IDS)[0]
    torch.testing.assert_close(shifted[1:], raw[:-1], rtol=0, atol=0)
    torch.testing.assert_close(shifted[0], raw[0], rtol=0, atol=0)


PROMPT = [3, 14, 15, 9]
LLADA_TEXTS = [
    (8, 8, {}, [39, 31, 32, 43, 61, 41, 23, 32]),
    (4, 8, {}, [31, 39, 39, 31, 41, 41, 32, 32]),
    (2, 4, {}, [32, 32, 41, 41, 39, 39, 31, 31]),  # 4 steps in all
    (3, 8, {}, [31, 19, 31, 31, 41, 41, 41, 19]),
]


def greedy(lm, denoiser=None, **options):
    return sample(lm.process, denoiser or lm.denoiser, temperature=0.0, **options)


def said_by(lm):
    """The network alone, as ``authors`` ask it."""
    return lambda x: lm.denoiser.logits(x[None])[0].double()


@pytest.mark.parametrize(("steps", "block", "more", "text"), LLADA_TEXTS)
def test_llada_writes_as_its_authors_do(steps, block, more, text, tmp_path):
    lm = llada(tmp_path)
    found = greedy(lm, prompt=PROMPT, length=8, steps=steps, block=block, sampler="low_confidence", **more)
    assert found.tokens[0, 4:].tolist() == text
    assert found.nfe == steps * (8 // block)
    assert authors.llada(said_by(lm), PROMPT, 8, steps * (8 // block), block, M) == text


def test_llada_is_guided_as_its_authors_do(tmp_path):
    """Their w is our 1 + w; what is hidden from the other side is the prompt."""
    lm = llada(tmp_path)
    text = [31, 39, 39, 31, 41, 41, 32, 32]
    for w, prompt, wanted in ((0.5, PROMPT, text), (3.0, PROMPT, None), (1.5, [7, 11], None)):
        guided = cfg(lm.denoiser, unprompted(lm.denoiser), weight=1 + w)
        found = greedy(lm, guided, prompt=prompt, length=8, steps=4, sampler="low_confidence")
        said = authors.llada(said_by(lm), prompt, 8, 4, 8, M, cfg=w)
        assert found.tokens[0, len(prompt) :].tolist() == said
        assert said == wanted or wanted is None
        assert said != authors.llada(said_by(lm), prompt, 8, 4, 8, M) or w == 0.5
        assert found.nfe == 8


def test_llada_writes_prompts_of_several_lengths_as_each_alone(tmp_path):
    """Padding on the left, as its authors have it, changes nothing; here there is none."""
    lm = llada(tmp_path)
    found = greedy(lm, prompt=[[3, 14], PROMPT], length=8, steps=4, sampler="low_confidence")
    assert found.tokens[0, 2:10].tolist() == [41, 23, 39, 39, 32, 32, 43, 41]
    assert found.tokens[1, 4:].tolist() == [31, 39, 39, 31, 41, 41, 32, 32]
    padded = torch.tensor([[1, 1, 3, 14, M, 9, M, M]])
    keep = torch.arange(8)[None] > 1
    apart = lm.denoiser.logits(padded, {"attend": keep[:, None].expand(1, 8, 8)})[0, 2:]
    torch.testing.assert_close(apart, lm.denoiser.logits(padded[:, 2:])[0], rtol=0, atol=1e-5)


PROMPTS = [[5], [3, 14], [40, 2, 33], [9, 9, 21, 50, 17], [12, 60 - 1, 8, 31, 44, 6, 27]]


@pytest.mark.parametrize(("steps", "block", "late", "never"), [
    (12, 12, (), ()), (5, 12, (), ()), (6, 4, (), ()), (3, 4, (39, 41), ()), (12, 12, (31, 32, 41), ()),
    (4, 12, (), (41, 31)),
])  # fmt: skip
def test_llada_on_other_prompts(steps, block, late, never, tmp_path):
    """``late`` is their confidence_eos_eot_inf, ``banned`` their logits_eos_inf, of whatever tokens."""
    lm = llada(tmp_path)
    ours = {"late": late, "banned": never, "sampler": "low_confidence", "block": block}
    found = greedy(lm, prompt=PROMPTS, length=12, steps=steps, **ours)
    plain = greedy(lm, prompt=PROMPTS, length=12, steps=steps, block=block, sampler="low_confidence")
    for row, prompt in enumerate(PROMPTS):
        own = slice(len(prompt), len(prompt) + 12)
        assert found.tokens[row, own].tolist() == authors.llada(
            said_by(lm), prompt, 12, steps * (12 // block), block, M, late=late, never=never
        )
    assert not torch.equal(found.tokens, plain.tokens) or not (late or never)


DREAM_TEXTS = [
    ("entropy", 8, [6, 2, 20, 14, 33, 33, 20, 33]),
    ("entropy", 4, [38, 33, 46, 33, 33, 33, 46, 33]),
    ("maskgit_plus", 8, [6, 33, 2, 33, 33, 33, 58, 14]),
    ("maskgit_plus", 4, [6, 2, 2, 33, 33, 33, 4, 33]),
    ("topk_margin", 8, [6, 2, 2, 33, 33, 33, 33, 46]),
    ("topk_margin", 4, [6, 2, 2, 33, 33, 33, 33, 46]),
]


@pytest.mark.parametrize(("rule", "steps", "text"), DREAM_TEXTS)
def test_dream_writes_as_its_authors_do(rule, steps, text, tmp_path):
    """The grid's eps and floor: with a step for each token the first writes none, which is not asked for, the last two.

    Rows keep their own count, and are what each is alone, whatever their lengths.
    """
    lm, left = dream(tmp_path), []
    found = greedy(
        lm,
        prompt=PROMPT,
        length=8,
        steps=steps,
        sampler=rule,
        callback=lambda one: left.append(int((one.z == M).sum())),
    )
    assert found.tokens[0, 4:].tolist() == text
    assert left == {8: [8, 7, 6, 5, 4, 3, 2, 0], 4: [7, 5, 3, 0]}[steps]
    assert found.nfe == steps - (steps == 8)
    assert authors.dream(said_by(lm), PROMPT, 8, steps, rule, M) == (text, left)
    rows = greedy(lm, prompt=PROMPTS, length=[6, 12, 7, 9, 3], steps=steps, sampler=rule)
    for row, (prompt, length) in enumerate(zip(PROMPTS, (6, 12, 7, 9, 3), strict=True)):
        own = rows.tokens[row, len(prompt) : len(prompt) + length].tolist()
        assert own == authors.dream(said_by(lm), prompt, length, steps, rule, M)[0]


def llada2(folder, block):
    return runs.load(LAYOUTS["llada2"].write(folder, block_size=block, mask_token_id=M, eos_token_id=EOS))


LLADA2_TEXTS = [
    (4, 4, 0.95, [39, 39, 39, 39, 54, 54, 39, 39]),
    (4, 4, 0.05, [39, 39, 39, 39, 54, 54, 54, 39]),
    (2, 4, 0.95, [39, 39, 39, 39, 54, 54, 39, 39]),
    (8, 8, 0.95, [39, 44, 55, 55, 39, 33, 33, 55]),
]


def texts(found, prompts):
    return [
        found.tokens[row, len(one) : n].tolist()
        for row, (one, n) in enumerate(zip(prompts, found.lengths, strict=True))
    ]


@pytest.mark.parametrize(("steps", "block", "tau", "text"), LLADA2_TEXTS)
def test_llada2_writes_as_its_authors_do(steps, block, tau, text, tmp_path):
    lm, prompt = llada2(tmp_path, block), [3, 14, 15, 9, 2]
    rule = {"sampler": f"threshold:tau={tau},whole=true", "whole_blocks": True}
    found = greedy(lm, prompt=prompt, length=8, steps=steps, stop=EOS, **rule)
    assert texts(found, [prompt]) == [text]
    assert authors.llada2(said_by(lm), prompt, 8, steps, block, tau, M, EOS) == text


@pytest.mark.parametrize(("steps", "block", "tau"), [(3, 8, 0.95), (5, 8, 0.06), (8, 8, 0.04), (2, 4, 0.03)])
@pytest.mark.parametrize("eos", [EOS, 39, 55])
def test_llada2_on_other_prompts(steps, block, tau, eos, tmp_path):
    """Shares of a whole block where some of it is given, blocks beyond the text, and ends of it amid a block."""
    lm = llada2(tmp_path, block)
    rule = {"sampler": f"threshold:tau={tau},whole=true", "whole_blocks": True}
    found = greedy(lm, prompt=PROMPTS, length=13, steps=steps, stop=eos, **rule)
    said = [authors.llada2(said_by(lm), one, 13, steps, block, tau, M, eos) for one in PROMPTS]
    assert texts(found, PROMPTS) == said
    assert found.tokens.shape[1] == 13 + 7


@pytest.mark.parametrize(
    ("tau", "editing", "after"),
    [(0.05, 0.0, 1), (0.04, 0.05, 16), (2.0, 0.04, 3), (0.06, 0.0, 16), (0.03, None, 16), (2.0, None, 1)],
)
def test_llada21_edits_as_its_authors_do(tau, editing, after, tmp_path):
    """Token for token; None of theirs is to leave the revision out, and 0 always edits.

    A prompt never changes, and no block takes more calls than it has masks, and ``after`` more. With editing off and a
    threshold that nothing reaches it is the likeliest token a step.
    """
    lm = llada2(tmp_path, 8)
    edit = "" if editing is None else f"+edit:tau={editing},extra={after}"
    rule = {"sampler": f"threshold:tau={tau}{edit}", "whole_blocks": True, "stop": EOS}
    found = greedy(lm, prompt=PROMPTS, length=13, **rule)
    for row, prompt in enumerate(PROMPTS):
        text, calls = authors.llada21(said_by(lm), prompt, 13, 8, tau, editing, M, EOS, after)
        assert texts(found, PROMPTS)[row] == text
        assert found.tokens[row, : len(prompt)].tolist() == prompt
        assert all(used <= masks + after for masks, used in calls)
        kept = len(calls) - 1 + (len(prompt) >= 8)  # finished blocks, and whole ones of the prompt at once, are read
        assert found.cost.of_rows[row] == sum(used for _, used in calls) + kept
    if editing is None and tau == 2.0:
        best = greedy(lm, prompt=PROMPTS, length=13, sampler="low_confidence", whole_blocks=True, stop=EOS)
        assert torch.equal(found.tokens, best.tokens)


# -------------------------------------------------------------------------------------------------------- likelihood


class LeavesTheMask:
    """LLaDA as its authors score with it: [MASK], here an id of its own, has a share of the probability."""

    facts = processes.Facts(mask_id=VOCAB, selective=True)

    def __init__(self, lm):
        self.lm = lm

    def __call__(self, z, t, cond=None, where=None):
        return self.lm.denoiser.logits(z.masked_fill(z == VOCAB, M), None, where).log_softmax(-1)


QUESTION, ANSWER = torch.tensor([3, 14, 15]), torch.tensor([9, 2, 7])


def scored(folder, answer=ANSWER, **options):
    return answers.score(processes.masked(VOCAB), LeavesTheMask(llada(folder)), QUESTION, answer, **options)


@pytest.mark.parametrize(
    ("options", "nats"),
    [
        ({"estimator": "any_order_exact"}, -13.231060),
        ({"estimator": "any_order_exact", "weight": 1.5}, -15.353263),
        ({"estimator": "chain_rule"}, -11.363450),
        ({"estimator": "one_step"}, -12.170730),
    ],
)
def test_likelihood_of_an_answer(options, nats, tmp_path):
    found = scored(tmp_path, **options)
    assert found.nats == pytest.approx(nats, abs=1e-5)
    assert found.error == 0


@pytest.mark.parametrize(("weight", "nats"), [(1.0, -13.231060), (1.5, -15.353263)])
def test_a_drawn_likelihood_is_within_its_error(weight, nats, tmp_path):
    """Seven groups' degrees of freedom: 6 standard errors off is a chance of 5e-4 for each of these seeds."""
    for seed in range(3):
        found = scored(tmp_path, draws=512, weight=weight, seed=seed)
        standard_error = found.error / student95(answers.GROUPS)
        assert 0 < standard_error < 0.3
        assert abs(found.nats - nats) < 6 * standard_error
        assert found.forwards <= 7 * (2 if weight != 1 else 1)


@pytest.mark.parametrize("draws", [1, 2, 5, 128])
def test_of_a_single_token_any_draw_is_exact(draws, tmp_path):
    found = scored(tmp_path, ANSWER[:1], draws=draws)
    assert found.nats == pytest.approx(-4.673794, abs=1e-5)
    assert found.error == 0
    assert found.forwards == 1


def test_ids_are_those_of_the_config(tmp_path):
    lm = llada(tmp_path)
    facts = lm.denoiser.facts
    assert (facts.mask_id, facts.eos_id, facts.pad_id) == (60, EOS, EOS)
    assert (lm.process.K, lm.context) == (64, 64)
