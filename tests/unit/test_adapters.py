"""Adapters beside every kind of layer that a family has, in their own precision, and back again."""

import json

import pytest
import torch
from parity.borrowed import LAYOUTS as BORROWED
from parity.checkpoints import LAYOUTS, LLADA, M, llada_shapes, write
from safetensors.torch import load_file
from torch import nn

from redraft import runs
from redraft.finetuning import adapters, finetune
from redraft.recipes.finetune import LoraConfig

ALL = {
    "bert": {"query", "key", "value", "dense"},
    "roberta": {"query", "key", "value", "dense"},
    "modernbert": {"Wqkv", "Wo", "Wi", "dense"},
    "diffugpt": {"c_attn", "c_proj", "c_fc"},
    "llada_moe": {"q_proj", "k_proj", "v_proj", "o_proj"},
}


def load(folder, name):
    layout = (BORROWED | LAYOUTS)[name]
    return runs.load(layout.write(folder), family="diffugpt" if name == "diffugpt" else None)


def said(lm):
    z = torch.randint(6, M, (2, 8), generator=torch.Generator().manual_seed(0))
    z[:, 5:] = M
    with torch.no_grad():
        return lm.denoiser(z, torch.full((2,), 0.5)).clamp_min(-1e4)  # where a mask is no token


def adapted(denoiser):
    return {name: one for name, one in denoiser.named_parameters() if "lora_" in name}


def stir(denoiser):
    """As if trained: every adapter says something."""
    generator = torch.Generator().manual_seed(1)
    for one in adapted(denoiser).values():
        one.data = torch.randn(one.shape, generator=generator).mul(0.3).to(one.dtype)


@pytest.mark.parametrize("name", ALL)
def test_all_but_the_head(name, tmp_path):
    """Put in they say nothing; trained, all are heard; beside another copy, or merged, they say the same."""
    lm = load(tmp_path / "base", name)
    before = said(lm)
    assert {one.rpartition(".")[2] for one in adapters.targets(lm.denoiser)} == ALL[name]
    adapters.inject(lm.denoiser, LoraConfig(rank=2))
    assert adapters.reached(lm.denoiser) == sorted(ALL[name])
    assert torch.equal(said(lm), before)
    stir(lm.denoiser)
    z = torch.full((2, 8), M)
    lm.denoiser(z, torch.full((2,), 0.5))[..., 0].sum().backward()
    assert all(one.grad is not None and bool(one.grad.any()) for one in adapted(lm.denoiser).values())
    beside = said(lm)
    assert float((beside - before).abs().max()) > 1e-2
    other = load(tmp_path / "base", name)
    adapters.save(lm.denoiser, tmp_path / "adapter", "owner/name")
    adapters.attach(other.denoiser, tmp_path / "adapter")
    assert torch.equal(said(other), beside)
    adapters.merge(lm.denoiser)
    torch.testing.assert_close(said(lm), beside, rtol=0, atol=1e-4)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match="Embedding has no linear layer"):
        adapters.targets(nn.Embedding(3, 2))


def test_a_layer_whose_weight_is_anothers_is_left_out():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1]._parameters.pop("weight")
    assert adapters.targets(network) == ["0"]


def test_a_layer_of_the_head_cannot_be_asked_for(tmp_path):
    with pytest.raises(ValueError, match="'decoder'"):
        adapters.targets(load(tmp_path, "bert").denoiser, "decoder")


LETTERS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}z{{ m.content }}<|end|>{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}z{% endif %}"
)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A model in bfloat16, and two conversations."""
    root = tmp_path_factory.mktemp("half")
    ids = {"eos_token_id": 50, "pad_token_id": 50}
    write(root / "base", LLADA | ids, llada_shapes(LLADA), torch.bfloat16, eos=50)
    lines = [{"prompt": p, "completion": c} for p, c in [("ab", "cd"), ("b", "aaa")]]
    (root / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {
        "data.template": LETTERS, "lora.rank": 2, "train.steps": 3, "train.batch": 2, "train.lr": 1e-2,
        "train.warmup": 0, "train.threads": 1,
    }  # fmt: skip
    return root, finetune(root / "base", root / "chat.jsonl", out=root / "run", overrides=given).lm


def test_adapters_stay_float32_beside_coarser_weights(half):
    """What a run stored, put beside its base and merged, gives the bits that the run merged."""
    root, tuned = half
    assert {one.dtype for one in tuned.denoiser.parameters()} == {torch.bfloat16}
    stored = load_file(root / "run" / "adapter" / adapters.WEIGHTS)
    assert {one.dtype for one in stored.values()} == {torch.float32}
    assert not all(torch.equal(one, one.bfloat16().float()) for one in stored.values())
    lm = runs.load(root / "base")
    old = {name: one.clone() for name, one in lm.denoiser.state_dict().items()}
    adapters.attach(lm.denoiser, root / "run" / "adapter")
    assert all(torch.equal(it, stored[n.replace(".default", "")]) for n, it in adapted(lm.denoiser).items())
    adapters.merge(lm.denoiser)
    merged, run = lm.denoiser.state_dict(), tuned.denoiser.state_dict()
    assert all(torch.equal(merged[name], run[name]) for name in run)
    assert not all(torch.equal(merged[name], old[name]) for name in old)


def test_adapters_of_another_model_are_refused(half, tmp_path):
    root, _ = half
    with pytest.raises(ValueError, match="pass the folder 'adapter'"):
        adapters.attach(runs.load(root / "base").denoiser, tmp_path)
    with pytest.raises(ValueError, match=r"adapters of backbone.*which this model has not"):
        adapters.attach(load(tmp_path / "other", "bert").denoiser, root / "run" / "adapter")
    write(tmp_path / "wide", LLADA | {"mlp_hidden_size": 64}, llada_shapes(LLADA | {"mlp_hidden_size": 64}))
    with pytest.raises(ValueError, match=r"has shape \(.*\) there, and"):
        adapters.attach(runs.load(tmp_path / "wide").denoiser, root / "run" / "adapter")


def test_a_stored_adapter_looks_for_nothing_on_the_hub(tmp_path, monkeypatch):
    from peft.utils import save_and_load

    lm = load(tmp_path / "base", "bert")
    adapters.inject(lm.denoiser, LoraConfig(rank=2))
    asked = []
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", lambda *a, **k: asked.append(a))
    adapters.save(lm.denoiser, tmp_path / "adapter", "owner/name")
    assert not asked
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "owner/name"
    )


def test_adapters_are_float32_from_the_first(half):
    lm = runs.load(half[0] / "base")
    adapters.inject(lm.denoiser, LoraConfig(rank=2))
    assert {one.dtype for one in adapted(lm.denoiser).values()} == {torch.float32}
    wide = runs.load(half[0] / "base")
    wide.denoiser.double()
    adapters.inject(wide.denoiser, LoraConfig(rank=2))
    assert {one.dtype for one in adapted(wide.denoiser).values()} == {torch.float64}


def test_results_name_the_layers(half):
    told = json.loads((half[0] / "run" / "results.json").read_text())
    assert told["adapted"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
