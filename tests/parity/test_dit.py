"""The network of the released checkpoints against the slow one, and what it can be told."""

import math
from pathlib import Path

import pytest
import torch

from parity.released import LAYERS, LAYOUTS, SEDD, K, L, layouts, load, slow_logits, write
from redraft import processes, runs
from redraft.models import contexts
from redraft.models.dit import DenoiserConfig, DiTConfig, DiTDenoiser
from redraft.models.layers import Cache
from redraft.models.released import FAMILIES, Fields


@layouts
def test_forward_equals_the_slow_one(name, tmp_path):
    layout = LAYOUTS[name]
    lm = load(tmp_path, layout)
    denoiser = lm.denoiser.double()
    z = torch.randint(0, layout.states, (3, L), generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    cond = {"labels": torch.tensor([2, 2, 2])} if layout.classes else None
    expected = torch.log_softmax(slow_logits(layout, z, t, 2)[..., : lm.process.K], -1)
    with torch.no_grad():
        found = denoiser(z, t, cond)
        assert float((found - expected).abs().max()) < 1e-10
        where = torch.rand((3, L), generator=torch.Generator().manual_seed(2)) < 0.5
        torch.testing.assert_close(denoiser(z, t, cond, where=where), found[where], rtol=0, atol=1e-12)
        if layout.classes:  # no label told is the table's last row, the class that stands for none
            nothing = torch.log_softmax(slow_logits(layout, z, t, layout.classes - 1), -1)
            assert float((denoiser(z, t) - nothing).abs().max()) < 1e-10


def test_the_real_size():
    with torch.device("meta"):
        small = DiTDenoiser(DenoiserConfig(DiTConfig(50258, 768, 12, 12, code=128), processes.masked(50257)))
        radd = DiTDenoiser(DenoiserConfig(DiTConfig(50258, 768, 12, 12, code=None), processes.masked(50257)))
    assert sum(weight.numel() for weight in small.parameters()) == 169_627_218
    assert sum(weight.numel() for weight in radd.parameters()) == 169_627_218 - 12 * 4608 * 129 - 1536 * 129 - 49_408
    assert small.backbone.get_buffer("rotary_emb.inv_freq").shape == (32,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mdlm", "radd", "gidd"])
def test_half_precision_weights_compute_nearly_the_same(name, dtype, tmp_path):
    layout = LAYOUTS[name]
    z, t = torch.tensor([[1, K, 3, K, 5, K]]), torch.tensor([0.5])
    with torch.no_grad():
        exact = load(tmp_path, layout).denoiser(z, t)
        found = runs.load(write(tmp_path, layout, dtype=dtype)).denoiser(z, t)
    assert found.dtype == torch.float32, "the sum over the vocabulary is not rounded"
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(1, L))
    assert float((found - exact).abs().mean()) < 0.1


def test_a_sedd_model_gives_scores(tmp_path):
    layout = LAYOUTS["sedd"]
    denoiser = load(tmp_path, layout).denoiser.double()
    z = torch.tensor([[K, 3, K, K, 0, 5]])
    t = torch.tensor([0.4], dtype=torch.float64)
    noise = -math.log(1 - 0.999 * 0.4)
    expected = slow_logits(layout, z, t, None) - math.log(math.exp(noise) - 1) - math.log(K)
    expected.scatter_(-1, z[..., None], 0.0)
    with torch.no_grad():
        found = denoiser(z, t, scores=True)
        assert float((found - expected).abs().max()) < 1e-10
        masked = z[0] == K
        ratio = found[0, masked, :K] - denoiser(z, t)[0, masked]  # log p is the score, up to a constant
        assert float((ratio - ratio[:, :1]).abs().max()) < 1e-10
        torch.testing.assert_close(denoiser(z, t, where=z == K, scores=True), found[0, masked], rtol=0, atol=1e-12)
        write(tmp_path, layout, model=SEDD["model"] | {"scale_by_sigma": False})
        plain = runs.load(tmp_path).denoiser.double()(z, t, scores=True)[0, 0, :K]
        torch.testing.assert_close(plain, slow_logits(layout, z, t, None)[0, 0, :K], rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="trained to give log p"):
        load(tmp_path / "mdlm", LAYOUTS["mdlm"]).denoiser(z, t, scores=True)


def test_times_may_differ_along_a_row_and_are_read_only_when_asked_for(tmp_path):
    z = torch.tensor([[K, 3, K, 1]])
    free, told = (load(tmp_path / one, LAYOUTS[one]).denoiser for one in ("mdlm", "mdlm-timed"))
    early, late = torch.tensor([0.2]), torch.tensor([0.8])
    with torch.no_grad():
        assert torch.equal(free(z, early), free(z, late))
        assert not torch.allclose(told(z, early), told(z, late))
        torch.testing.assert_close(told(z, early.expand(1, 4)), told(z, early))
        mixed = torch.tensor([[0.2, 0.2, 0.2, 0.8]])
        assert not torch.allclose(told(z, mixed), told(z, early))
        where = torch.tensor([[True, False, False, True]])
        torch.testing.assert_close(told(z, mixed, where=where), told(z, mixed)[where])


def test_labels_are_for_guided_models(tmp_path):
    z, t = torch.tensor([[1, 2]]), torch.tensor([0.5])
    with pytest.raises(ValueError, match="labels told to a model that was trained without any"):
        load(tmp_path, LAYOUTS["udlm"]).denoiser(z, t, {"labels": torch.tensor([1])})


def test_blocks_read_clean_text_before_them(tmp_path):
    """The two streams [z ; x0] give every block what it has with only the clean text before it, cached or not."""
    denoiser = load(tmp_path, LAYOUTS["bd3lm"]).denoiser.double()
    x0, z, t = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([[K, 2, K, K, 5, K]]), torch.tensor([0.5])
    rank = contexts.block_ranks(L, 2)
    layout = {"attend": contexts.two_stream(rank), "positions": contexts.doubled(L)}
    with torch.no_grad():
        at_once = denoiser(torch.cat([z, x0], dim=1), t, layout)[:, :L]
        cache = Cache()
        for block in range(3):
            here = slice(2 * block, 2 * block + 2)
            alone = denoiser(torch.cat([x0[:, : here.start], z[:, here]], dim=1), t)[:, here]
            cond = {"positions": torch.arange(L)[here], "cache": cache}
            cached = denoiser(z[:, here], t, cond)
            denoiser(x0[:, here], t, cond | {"store": True})
            torch.testing.assert_close(at_once[:, here], alone, rtol=0, atol=1e-12)
            torch.testing.assert_close(cached, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["radd", "bd3lm", "bd3lm-ar"])
def test_segments_do_not_see_one_another(name, tmp_path):
    denoiser = load(tmp_path, LAYOUTS[name]).denoiser
    z, t, segments = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([0.5]), torch.tensor([[0, 0, 0, 1, 1, 1]])
    changed = z.clone()
    changed[0, 1] = 9
    shielded = slice(4, None) if name == "bd3lm-ar" else slice(3, None)
    with torch.no_grad():
        before, after = (denoiser(one, t, {"segments": segments}) for one in (z, changed))
        torch.testing.assert_close(before[:, shielded], after[:, shielded], rtol=0, atol=0)
        assert not torch.allclose(denoiser(z, t)[:, shielded], denoiser(changed, t)[:, shielded])


def test_a_mixture_of_embeddings_stands_for_ids(tmp_path):
    denoiser = load(tmp_path, LAYOUTS["duo"]).denoiser
    z, t = torch.tensor([[1, 2, 3]]), torch.tensor([0.5])
    other = torch.zeros_like(z)
    weights = torch.tensor([1.0, 0.0]).expand(1, 3, 2)
    with torch.no_grad():
        same = denoiser(other, t, {"mixture": (torch.stack([z, other], dim=-1), weights)})
        torch.testing.assert_close(same, denoiser(z, t))


def test_stored_angles_end_where_they_end(tmp_path):
    denoiser = load(tmp_path, LAYOUTS["gidd"]).denoiser
    with pytest.raises(ValueError, match=r"position 6: .* below 6 only"):
        denoiser(torch.zeros(1, L + 1, dtype=torch.long), torch.tensor([0.5]))


def test_dropout_is_the_configs_and_for_training(tmp_path, monkeypatch):
    denoiser = load(tmp_path, LAYOUTS["mdlm"]).denoiser
    asked = []
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, p, training: asked.append((p, training)) or x)
    denoiser(torch.tensor([[1, K, 3]]), torch.tensor([0.5]))
    denoiser.train()(torch.tensor([[1, K, 3]]), torch.tensor([0.5]))
    assert asked == [(0.1, False)] * 2 * LAYERS + [(0.1, True)] * 2 * LAYERS


def test_gidds_noise_is_our_hybrid():
    """Its alpha, b_t and NELBO weights in its own words (arXiv 2503.04482) against the process a folder gives."""
    fields = Fields(Path("config.json"), LAYOUTS["gidd"].config)
    process, share, N = FAMILIES["gidd"].reads(fields).build().process, 0.2, K
    t = torch.linspace(0.01, 0.99, 37, dtype=torch.float64)[:, None]
    c = 2 * share / (1 - share) * torch.sqrt(t * (1 - t))
    d_c = (1 - 2 * t) / (2 * t * (1 - t)) * c
    at = process.coefficients(t)
    for found, expected in ((at.alpha, (1 - t) / (1 + c)), (at.mask, t / (1 + c)), (at.token, c / (1 + c) / N)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    mass = at.alpha + at.token, at.mask, at.token
    weights = (
        (c + (1 - t) * d_c) / N / ((1 - t) * (1 - t + c / N)),
        1 / (t * (1 - t)),
        (c + (1 - t) * d_c) / ((1 - t) * c),
    )
    for z, own, expected in zip((0, process.mask_id, 1), mass, weights, strict=True):  # z = x, the mask, another token
        found = process.jump(torch.full_like(t, z, dtype=torch.long), t) / own
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
