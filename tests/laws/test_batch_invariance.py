"""A batch of n is n batches of one, bit for bit on the CPU in float32: tokens, and log p of each when written."""

import pytest
import torch

from redraft import guidance, processes
from redraft.models import Transformer, TransformerConfig
from redraft.sampling import sample
from redraft.sampling.samplers import SAMPLERS, proposes

K = 11
PROCESS = processes.masked(K)


def network(attention="full", block=None, depth=2, seed=0, **options) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(PROCESS.to_dict(), depth=depth, attention=attention, block=block, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


FULL, BLOCKS = network(), network("block", 3)
MASKED = sorted(name for name, one in SAMPLERS.items() if name not in ("ddim", "heun", "churn"))
RULES = [name for name in MASKED if proposes(SAMPLERS[name])]
REVISED = ["threshold:tau=0.5+edit:tau=0.2", "low_confidence+remask:share=0.5,times=2"]
REVISED += ["random_order+remask:when=written"]
LAYOUTS = {
    "whole": (FULL, {}),
    "blocks": (FULL, {"block": 3}),
    "prefix": (FULL, {"block": 4, "cache": "prefix"}),
    "dual": (FULL, {"block": 4, "cache": "dual"}),
    "renewed": (FULL, {"block": 5, "cache": "dual", "refresh": 2}),
    "exact": (BLOCKS, {}),
}
PROMPTS = [[1, 2, 3], [4], [], [1, 2, 3], [5, 6, 7, 8, 9], [4]]
LENGTHS = [7, 5, 9, 7, 2, 5]


def drawn(denoiser, rows, **options):
    return sample(
        PROCESS,
        denoiser,
        prompt=[PROMPTS[row] for row in rows],
        length=[LENGTHS[row] for row in rows],
        seeds=[row % 5 for row in rows],
        **options,
    )


def assert_apart(denoiser, **options) -> None:
    """Every row of the batch is the row alone."""
    batch = drawn(denoiser, range(len(PROMPTS)), **options)
    for row, width in enumerate(len(prompt) + length for prompt, length in zip(PROMPTS, LENGTHS, strict=True)):
        alone = drawn(denoiser, [row], **options)
        assert torch.equal(alone.tokens[0], batch.tokens[row, :width]), (row, alone.tokens, batch.tokens)
        assert torch.equal(alone.logp[0].nan_to_num(9), batch.logp[row, :width].nan_to_num(9)), row
        assert alone.lengths[0] == batch.lengths[row]
        assert alone.cost.of_rows[0] == batch.cost.of_rows[row]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sampler", RULES + REVISED)
def test_every_rule_and_cache(sampler, layout):
    denoiser, options = LAYOUTS[layout]
    assert_apart(denoiser, sampler=sampler, temperature=0.0, **options)
    assert_apart(denoiser, sampler=sampler, temperature=0.8, top_p=0.9, steps=3, stop=1, **options)


# -------------------------------------------------------------------------------------------------------------- guided

PAIRS = {
    attention: [network(attention, 3 if attention == "block" else None, depth=1, seed=seed) for seed in (0, 1)]
    for attention in ("full", "block")
}
GUIDED = {
    "two": lambda one, other: guidance.cfg(one, other, weight=2.0),
    "unprompted": lambda one, other: guidance.cfg(one, guidance.unprompted(one), weight=1.5),
    "doubting": lambda one, other: guidance.cfg(one, guidance.doubting(one, 0.5), weight=1.5),
    "in_t": lambda one, other: guidance.cfg(one, other, weight=guidance.interval(3.0, 0.0, 0.6)),
}


@pytest.mark.parametrize("layout", ["whole", "blocks", "dual", "exact"])
@pytest.mark.parametrize("kind", GUIDED)
@pytest.mark.parametrize("sampler", RULES)
def test_guided_rows(sampler, kind, layout):
    """Two denoisers as one, prompts of several lengths on canvases of one: the batch is its rows."""
    model, options = LAYOUTS[layout]
    denoiser = GUIDED[kind](*PAIRS[model.facts.attention])
    prompts, shared = [[1, 2], [4], [3, 1], [5, 5]], {"sampler": sampler, "temperature": 0.8, "steps": 2, **options}
    if sampler == "wino" and not denoiser.facts.caches:
        with pytest.raises(ValueError, match="what each position reads"):
            sample(PROCESS, denoiser, length=7, **shared)
        return
    batch = sample(PROCESS, denoiser, prompt=prompts, length=[5, 6, 5, 5], seeds=[0, 1, 2, 3], **shared)
    row = 1 if layout in ("whole", "exact") else 2  # blocks of full attention begin where the prompt ends
    alone = sample(PROCESS, denoiser, prompt=prompts[row], length=7 - len(prompts[row]), seeds=[row], **shared)
    assert torch.equal(alone.tokens[0], batch.tokens[row])
    assert torch.equal(alone.logp[0].nan_to_num(9), batch.logp[row].nan_to_num(9))
    assert alone.cost.of_rows[0] == batch.cost.of_rows[row]
