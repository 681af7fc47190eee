"""Written a token at a time from a cache, a text follows the law of the full recompute, each position read once."""

from typing import Any

import pytest
import torch

from redraft import processes
from redraft.models import Transformer, TransformerConfig
from redraft.models.layers import Cache
from redraft.sampling import sample
from redraft.studies import cached

LENGTH, K = 8, 5


def network(attention: Any = "causal", block: int | None = None) -> Transformer:
    process = processes.masked(K)
    model = Transformer(TransformerConfig(process=process.to_dict(), depth=2, attention=attention, block=block))
    torch.manual_seed(0)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    return model.eval()


@torch.no_grad()
def test_a_cache_says_what_the_whole_canvas_says():
    model, z = network().double(), torch.randint(K, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    whole, cache = model(z, torch.zeros(3)), Cache()
    before = torch.cat([torch.full((3, 1), K), z], dim=1)
    said = [cached.following(model, before[:, i], i, cache) for i in range(LENGTH)]
    assert torch.stack(said, 1).sub(whole).abs().max() < 1e-12


def test_what_is_written_follows_the_model():
    """4,000 first tokens against p: chi squared of 4 degrees is beyond 23.5 in one run of 10,000."""
    model = network()
    tokens = cached.write(model, 1, 4000, seed=0)
    p = model(tokens[:1], torch.zeros(1))[0, 0].exp().double()
    seen = torch.bincount(tokens.flatten(), minlength=K).double()
    assert ((seen - 4000 * p) ** 2 / (4000 * p)).sum() < 23.5
    rows = cached.write(model, LENGTH, 6, seed=3)
    assert (rows[:2] == cached.write(model, LENGTH, 2, seed=3)).all(), "a row does not depend on those beside it"
    with pytest.raises(ValueError, match="'full'"):
        cached.write(network("full"), LENGTH, 1, seed=0)


def test_flops_are_those_of_the_matrices():
    """A position goes through every matrix once; attention reads what stands before it, itself included."""
    model = network()
    matrices = sum(w.numel() for name, w in model.named_parameters() if w.ndim == 2 and "embed" not in name)
    width, depth = 128, 2
    read = sum(4 * width * depth * (i + 1) for i in range(LENGTH))
    assert cached.flops(lambda: cached.write(model, LENGTH, 1, seed=0)) == 2 * matrices * LENGTH + read
    # a canvas read whole, every time; the last block's second half and the head for those that are asked about
    full, process = network("full"), processes.masked(K)
    once, twice = (
        cached.flops(lambda n=n: sample(process, full, length=LENGTH, steps=n, sampler="random_order", seed=0))
        for n in (1, 2)
    )
    assert once == 2 * matrices * LENGTH + 4 * width * depth * LENGTH**2
    unasked = 3 * width * 384 + width * full.head.out_features
    assert 2 * once - twice == 2 * unasked * LENGTH
