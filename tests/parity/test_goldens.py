"""What the released code said of the tiny checkpoints: logits, texts at temperature 0, likelihoods."""

import pytest
import torch

from parity.checkpoints import DREAM, EOS, GOLDEN_IDS, LLADA, filled, llada_shapes, qwen2_shapes, write
from redraft import runs
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


@pytest.mark.parametrize(("steps", "block", "more", "text"), LLADA_TEXTS)
def test_llada_writes_as_its_authors_do(steps, block, more, text, tmp_path):
    lm = llada(tmp_path)
    found = sample(
        lm.process, lm.denoiser, prompt=PROMPT, length=8, steps=steps, block=block, sampler="low_confidence",
        temperature=0.0, **more,
    )  # fmt: skip
    assert found.tokens[0, 4:].tolist() == text
    assert found.nfe == steps * (8 // block)


def test_ids_are_those_of_the_config(tmp_path):
    lm = llada(tmp_path)
    facts = lm.denoiser.facts
    assert (facts.mask_id, facts.eos_id, facts.pad_id) == (60, EOS, EOS)
    assert (lm.process.K, lm.context) == (64, 64)
