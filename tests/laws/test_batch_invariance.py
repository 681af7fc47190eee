"""A batch of n is n batches of one, bit for bit on the CPU in float32: tokens, and log p of each when written."""

import pytest
import torch

from redraft import processes
from redraft.models import Transformer, TransformerConfig
from redraft.sampling import sample
from redraft.sampling.samplers import SAMPLERS, proposes

K = 11
PROCESS = processes.masked(K)


def network(attention="full", block=None, **options) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(PROCESS.to_dict(), depth=2, attention=attention, block=block, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


FULL, BLOCKS = network(), network("block", 3)
MASKED = sorted(name for name, one in SAMPLERS.items() if name not in ("ddim", "heun", "churn"))
RULES = [name for name in MASKED if proposes(SAMPLERS[name])]
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
@pytest.mark.parametrize("sampler", RULES)
def test_every_rule_and_cache(sampler, layout):
    denoiser, options = LAYOUTS[layout]
    assert_apart(denoiser, sampler=sampler, temperature=0.0, **options)
    assert_apart(denoiser, sampler=sampler, temperature=0.8, top_p=0.9, steps=3, stop=1, **options)
