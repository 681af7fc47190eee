"""How checkpoints are loaded: in which precision and format, on which devices, in how much memory, from where."""

import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from parity.checkpoints import LAYOUTS, LLADA, filled, llada_shapes
from parity.checkpoints import write as write_checkpoint
from torch import nn
from typer.testing import CliRunner

from redraft import flags, processes, runs
from redraft.cli import app
from redraft.data import build_tokenizer
from redraft.models import Transformer, TransformerConfig, folder, placement, quantised, weights
from redraft.models.decoder import Attending, DecoderBlock
from redraft.models.families import FAMILIES
from redraft.models.families.base import Fields

PATH = Path(__file__).parents[2] / "benchmarks" / "loading.py"
SPEC = importlib.util.spec_from_file_location("benchmark_of_loading", PATH)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)

WIDE = LLADA | {"d_model": 64, "mlp_hidden_size": 128}
"""Large enough for blocks of 64 numbers."""
IDS = torch.tensor([[3, 14, 15, 60, 60, 9, 2, 60]])


def llada(path, dtype=torch.float32, **changed):
    config = WIDE | changed
    return write_checkpoint(path, config, llada_shapes(config), dtype)


def mixture(path, name="llada2"):
    layout = LAYOUTS[name]
    return layout.write(path, hidden_size=64, num_attention_heads=4, moe_intermediate_size=64, intermediate_size=128)


def on_meta(config=WIDE, path=Path("config.json")):
    with torch.device("meta"):
        return FAMILIES["llada"].reads(Fields(path, config)).build()


def said(lm):
    with torch.no_grad():
        return lm.denoiser(IDS, torch.full((1,), 0.5)).float()


# --------------------------------------------------------------------------------------------------------- precisions


@pytest.mark.parametrize("name", ["llada", "llada2"])
@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float64", "float16"])
def test_the_precision_asked_for(name, dtype, tmp_path):
    path = LAYOUTS[name].write(tmp_path)
    plain, cast = runs.load(path), runs.load(path, dtype=dtype)
    wanted = getattr(torch, str(dtype).removeprefix("torch."))
    assert {one.dtype for one in plain.denoiser.parameters()} == {torch.float32}
    assert {one.dtype for one in cast.denoiser.parameters()} == {wanted}
    after = cast.denoiser.state_dict()
    for key, before in plain.denoiser.state_dict().items():
        kept = key.endswith("expert_bias")  # a buffer, which is no weight
        assert torch.equal(before if kept else before.to(wanted), after[key]), key
    assert {one.dtype for one in cast.denoiser.buffers()} <= {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_is_as_stored(dtype, tmp_path):
    path = llada(tmp_path, dtype)
    for asked in (None, "auto"):
        assert {one.dtype for one in runs.load(path, dtype=asked).denoiser.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("bf16", "dtype='bf16' is no precision of weights; did you mean 'bfloat16'"),
        ("int8", r"dtype='int8' is no .*; pass auto or one of bfloat16, float16, float32, float64"),
        (torch.int8, "dtype=torch.int8 is no precision"),
        ("fp16", "did you mean 'float16'"),
    ],
)
def test_what_is_no_precision(dtype, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs.load(llada(tmp_path), dtype=dtype)


def our_own(path, process):
    model = Transformer(TransformerConfig(process.to_dict(), depth=1))
    folder.save(path, model.config, model.state_dict(), build_tokenizer("toy"), {"context": 6})
    return model


def test_our_own_models_are_cast_too(tmp_path):
    model = our_own(tmp_path / "masked", processes.masked(13))
    lm = runs.load(tmp_path / "masked", dtype="bfloat16")
    assert {one.dtype for one in lm.denoiser.parameters()} == {torch.bfloat16}
    z, t = torch.full((1, 6), 13), torch.ones(1)
    torch.testing.assert_close(lm.denoiser(z, t), model.eval()(z, t), atol=0.05, rtol=0.05)
    for option in ({"quantize": "int8"}, {"device_map": "auto"}):
        with pytest.raises(ValueError, match=rf"{next(iter(option))}=.* a model of redraft's own.*leave it out"):
            runs.load(tmp_path / "masked", **option)


def test_numbers_that_a_process_keeps_are_not_cast(tmp_path):
    process = processes.learned(torch.ones(13), 13)
    model = Transformer(TransformerConfig(process.to_dict(), depth=1), {"exponents": torch.ones(13)})
    folder.save(tmp_path, model.config, model.state_dict(), build_tokenizer("toy"), {"context": 6})
    assert runs.load(tmp_path).process.name == process.name
    with pytest.raises(ValueError, match=r"dtype=torch.bfloat16: exponents of the learned process must be exact"):
        runs.load(tmp_path, dtype="bfloat16")


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is resident is read where Linux tells it")
def test_loading_takes_little_more_than_what_is_loaded(tmp_path):
    """Of 20 million weights, stored in one precision and loaded in it or the other: below 1.15 times their size."""
    cases = benchmark.CASES[:4]
    for (stored, options), found in zip(cases, benchmark.measured(tmp_path, 20, cases, each=False), strict=True):
        size = 4 if "float32" in (options.get("dtype") or stored).replace("bfloat16", "") else 2
        assert found["loaded_bytes"] > 15e6 * size
        assert 0.95 < found["ratio"] < 1.15, (stored, options, found)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is resident is read where Linux tells it")
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_what_only_made_a_quantised_matrix_is_given_back(quantize):
    """Twelve matrices of a million numbers, 4 MB each before: what stays is less than twice what is kept of them."""
    kind = quantised.KINDS[quantize]
    kept, weight = [quantised.made(kind, torch.randn(1024, 1024))], torch.randn(1024, 1024)
    before = benchmark.resident()["RssAnon"]
    kept += [quantised.made(kind, weight) for _ in range(12)]
    stays = benchmark.resident()["RssAnon"] - before
    assert stays < 2 * 12 * kind.size((1024, 1024), 4)


def sizes_on(model, device="cpu", quantize=None, **precision):
    dtype = precision.get("dtype", torch.float32)
    return placement.sizes(model, dict.fromkeys(model.state_dict(), dtype), quantize)


def kept_bytes(model):
    return sum(leaf.numel() * leaf.itemsize for one in model.state_dict().values() for leaf in benchmark.leaves(one))


@pytest.mark.parametrize("quantize", [None, "int8", "nf4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llada", "llada2", "llada2_merged"])
def test_the_estimate_is_what_is_kept(name, dtype, quantize, tmp_path):
    path = llada(tmp_path) if name == "llada" else mixture(tmp_path, name)
    lm = runs.load(path, dtype=dtype, quantize=quantize)
    family, config = FAMILIES[name], json.loads((path / "config.json").read_text())
    with torch.device("meta"):
        model = family.reads(Fields(path / "config.json", config)).build()
    precisions = weights.fits(model, weights.Shards(path), family.pieces(model), getattr(torch, dtype))
    assert sum(placement.sizes(model, precisions, quantize).values()) == kept_bytes(lm.denoiser)


def test_what_cannot_fit_is_refused_before_a_tensor_is_read(tmp_path, monkeypatch):
    path = llada(tmp_path)
    full = sum(sizes_on(on_meta()).values())
    monkeypatch.setattr(placement, "free", lambda device: full)
    runs.load(path)
    monkeypatch.setattr(placement, "free", lambda device: full - 1)
    with monkeypatch.context() as patch:
        patch.setattr(weights.Shards, "rows", lambda *_: pytest.fail("a tensor was read"))
        patch.setattr(weights.Shards, "get", lambda *_: pytest.fail("a tensor was read"))
        with pytest.raises(ValueError, match="the weights take") as refused:
            runs.load(path)
    message = str(refused.value)
    gigabytes = [f"{sum(sizes_on(on_meta(), **how).values()) / 1e9:.3g} GB" for how in (
        {}, {"dtype": torch.bfloat16}, {"quantize": "int8"}, {"quantize": "nf4"}
    )]  # fmt: skip
    assert f"take {gigabytes[0]} on cpu" in message
    for option, size in zip(("dtype='bfloat16'", "quantize='int8'", "quantize='nf4'"), gigabytes[1:], strict=True):
        assert f"{option} makes it {size}" in message
    assert "device_map='auto'" in message
    for how in ({"dtype": "bfloat16"}, {"quantize": "int8"}, {"quantize": "nf4"}):
        runs.load(path, **how)  # what was proposed helps
    monkeypatch.setattr(placement, "free", lambda device: 1)
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        runs.load(path, dtype="bfloat16", quantize="nf4")
    assert "makes it" not in str(refused.value), "nothing is smaller than that"
    monkeypatch.setattr(placement, "free", lambda device: None)
    runs.load(path)


def test_what_is_free():
    import psutil

    found = placement.free(torch.device("cpu"))
    assert 0 < found <= psutil.virtual_memory().total
    assert placement.free(torch.device("meta")) is None


# ---------------------------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize(("quantize", "low", "high"), [("int8", 1e-3, 0.012), ("nf4", 0.03, 0.12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_error_of_a_quantised_matrix(quantize, low, high, dtype):
    """Of normal numbers, relative in squares: half of one part in 127 at most, and 9% of the 16 quantiles."""
    torch.manual_seed(0)
    weight = torch.randn(128, 256, dtype=dtype)
    layer = nn.Linear(256, 128, bias=False)
    layer.weight = nn.Parameter(quantised.KINDS[quantize].make(weight), requires_grad=False)
    x = torch.randn(64, 256, dtype=dtype)
    right = x.double() @ weight.double().T
    error = ((layer(x).double() - right).norm() / right.norm()).item()
    assert low < error < high
    assert layer(x).dtype == dtype


@pytest.mark.parametrize(("quantize", "most"), [("int8", 0.05), ("nf4", 0.5)])
@pytest.mark.parametrize("name", ["llada", "llada2", "llada2_merged"])
def test_a_quantised_model_says_nearly_the_same(name, quantize, most, tmp_path):
    """Half the sum of differences of its laws, at most over positions; other weights say something else (above 0.5)."""
    path = llada(tmp_path) if name == "llada" else mixture(tmp_path, name)
    right, found = said(runs.load(path)).exp(), said(runs.load(path, quantize=quantize)).exp()
    apart = (right - found).abs().sum(-1).max().item() / 2
    assert 0 < apart < most


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_which_weights_are_quantised(quantize, tmp_path):
    lm = runs.load(mixture(tmp_path), quantize=quantize)
    kept = {name for name, one in lm.denoiser.named_parameters() if type(one.data) is torch.Tensor}
    assert all(any(part in name for part in ("embed_tokens", "lm_head", "norm", "mlp.gate.weight")) for name in kept)
    others = {name for name, _ in lm.denoiser.named_parameters()} - kept
    assert {name.split(".")[-2] for name in others if ".experts." not in name} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    experts = [name for name in others if ".mlp.experts." in name]
    config = json.loads((tmp_path / "config.json").read_text())
    mixtures = config["num_hidden_layers"] - config["first_k_dense_replace"]
    assert len(experts) == 3 * config["num_experts"] * mixtures
    assert "backbone.model.layers.1.mlp.gate.weight" in kept
    assert not any(one.requires_grad for name, one in lm.denoiser.named_parameters() if name in others)
    assert lm.generate("ac", length=4, steps=2).tokens.shape == (1, 6)


def test_a_matrix_of_odd_size_stays_as_it_is(tmp_path):
    path = llada(tmp_path, mlp_hidden_size=33, d_model=8, n_heads=2, n_kv_heads=2)
    lm = runs.load(path, quantize="nf4")
    types = {name: type(one.data) is torch.Tensor for name, one in lm.denoiser.named_parameters()}
    assert types["backbone.model.layers.0.mlp.up_proj.weight"]
    assert not types["backbone.model.layers.0.self_attn.q_proj.weight"]


def test_routers_of_other_networks_stay():
    block = nn.ModuleDict({"gate": nn.Linear(64, 4), "router": nn.Linear(64, 4), "gate_proj": nn.Linear(64, 64)})
    network = nn.Module()
    network.layers = nn.ModuleList([block])
    network.head = nn.Linear(64, 64)
    assert list(quantised.matrices(network, quantised.KINDS["int8"])) == ["layers.0.gate_proj.weight"]
    assert [name for name, _ in quantised.blocks(network)] == ["layers.0"]


def test_a_quantised_model_is_not_stored(tmp_path):
    path = llada(tmp_path / "hub")
    lm = runs.load(path, quantize="int8")
    with pytest.raises(ValueError, match=r"a quantised model has lost .*load it without quantize="):
        lm.save(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_unknown_format_and_no_torchao(tmp_path, monkeypatch):
    path = llada(tmp_path)
    with pytest.raises(ValueError, match=r"unknown quantize 'int2'; did you mean 'int8'\? Known: int8, nf4"):
        runs.load(path, quantize="int2")
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"quantize='int8' needs torchao: pip install 'redraft\[quantise\]'"):
        runs.load(path, quantize="int8")


def test_gradients_pass_through_quantised_weights(tmp_path):
    """So that adapters may learn beside them."""
    for quantize in ("int8", "nf4"):
        lm = runs.load(llada(tmp_path), quantize=quantize)
        table = lm.denoiser.get_parameter("backbone.model.embed_tokens.weight")
        lm.denoiser(IDS, torch.full((1,), 0.5))[0, 3, 0].backward()
        assert float(table.grad.abs().sum()) > 0


# ------------------------------------------------------------------------------------------------------------- devices

PARTS = ("embed_tokens", "layers.0", "layers.1", "norm")


def everything(device, **changed):
    names = [*(f"backbone.model.{part}" for part in PARTS), "backbone.lm_head"]
    return {name: changed.get(name.rpartition(".")[2], device) for name in names}


@pytest.mark.parametrize("device_map", [{"": "cpu"}, everything("cpu"), {"": torch.device("cpu")}, "auto"])
def test_a_device_map_on_one_device(device_map, tmp_path):
    path = llada(tmp_path)
    assert torch.equal(said(runs.load(path, device_map=device_map)), said(runs.load(path)))


def planned(device_map, **how):
    model = on_meta()
    precisions = dict.fromkeys(model.state_dict(), how.pop("dtype", torch.float32))
    return placement.plan(model, how.pop("device", None), device_map, precisions, **how)


def test_auto_goes_by_the_room_there_is():
    """By accelerate, on devices that are there: all fits, or something would be left on disk."""
    need = sum(sizes_on(on_meta()).values())
    assert set(planned("auto", room={"cpu": 3 * need}).values()) == {torch.device("cpu")}
    with pytest.raises(ValueError, match=r"left on disk.*too little room"):
        planned("auto", room={"cpu": need // 2})
    half = {"dtype": torch.bfloat16, "room": {"cpu": round(0.7 * need)}}
    assert set(planned("auto", **half).values()) == {torch.device("cpu")}, "sizes are those of the precision"
    small = sum(sizes_on(on_meta(), quantize="nf4").values())
    few = {"room": {"cpu": round(1.2 * small)}}
    assert set(planned("auto", quantize="nf4", **few).values()) == {torch.device("cpu")}, "or of the format"
    with pytest.raises(ValueError, match="left on disk"):
        planned("auto", **few)


def test_auto_divides_no_block(monkeypatch):
    """Over two devices, which need not be there to plan for them."""
    monkeypatch.setattr(placement, "to_be_had", torch.device)
    model = on_meta(WIDE | {"n_layers": 6})
    precisions = dict.fromkeys(model.state_dict(), torch.float32)
    need = sum(placement.sizes(model, precisions).values())
    found = placement.plan(model, None, "auto", precisions, room={0: round(0.7 * need), 1: round(0.7 * need)})
    assert set(found.values()) == {torch.device("cuda:0"), torch.device("cuda:1")}
    where = placement.place(found)
    for name, block in quantised.blocks(model):
        assert isinstance(block, DecoderBlock)
        assert len({where(f"{name}.{one}") for one, _ in block.named_parameters()}) == 1
    assert where("backbone.model.embed_tokens.weight") == torch.device("cuda:0")


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"backbone.model": "cpu"}, "where 'backbone.lm_head' goes is not said; name it, or '' for the rest"),
        (everything("cpu") | {"backbone.modell": "cpu"}, "no module is called 'backbone.modell'; did you mean"),
        (
            {"": "cpu", "backbone.model.layers.1.mlp": "cpu"},
            "'backbone.model.layers.1.mlp' divides 'backbone.model.layers",
        ),
        ({"": "disk"}, "left on disk"),
        ({"": "cpu", "backbone.lm_head": "disk"}, "left on disk"),
        ({"": "gpu"}, "device 'gpu' is not to be had"),
        ("balanced", "device_map='balanced': pass 'auto', or the names"),
    ],
)
def test_a_device_map_that_cannot_be(device_map, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs.load(llada(tmp_path), device_map=device_map)


def test_a_device_map_needs_accelerate(tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"device_map needs accelerate: pip install 'redraft\[train\]'"):
        runs.load(llada(tmp_path), device_map="auto")


def test_device_and_device_map_clash(tmp_path):
    with pytest.raises(ValueError, match="device='cpu' and device_map='auto': they say the same"):
        runs.load(llada(tmp_path), "cpu", device_map="auto")


def test_only_what_can_be_divided_is(tmp_path):
    """The meta device stands for a second one: what passes between it and the CPU is refused or carried along."""
    with pytest.raises(ValueError, match="the embedding cannot be left on the CPU"):
        planned(everything("meta", embed_tokens="cpu"))
    with pytest.raises(ValueError, match=r"quantize='int8' with a device_map that leaves part on the CPU"):
        planned(everything("meta", lm_head="cpu"), quantize="int8")
    with torch.device("meta"):
        network = nn.ModuleDict({"backbone": nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})})
    precisions = dict.fromkeys(network.state_dict(), torch.float32)
    with pytest.raises(ValueError, match="network of class ModuleDict: only Decoder can be divided"):
        placement.plan(network, None, {"backbone.a": "cpu", "backbone.b": "meta"}, precisions)


def test_what_blocks_share_is_carried_along(tmp_path):
    """A block left on the CPU computes where the others do: the meta device, which mixes with no other."""
    path = llada(tmp_path)
    lm = runs.load(path, device_map=everything("meta", **{"1": "cpu"}))
    z, t = IDS.to("meta"), torch.ones(1, device="meta")
    assert lm.denoiser(z, t).device.type == "meta"
    assert lm.denoiser(z, t, {"segments": torch.zeros_like(z)}).device.type == "meta"
    with pytest.raises(ValueError, match=r"part of the model was left on the CPU by device_map="):
        lm.save(tmp_path / "again")


@pytest.mark.parametrize("pattern", [None, torch.ones(1, 1, 3, 3, dtype=torch.bool)])
def test_how_a_block_attends_moves_to_it(pattern):
    how = Attending((torch.ones(3, 2), torch.ones(3, 2)), pattern, None, True).to(
        torch.device("meta"), non_blocking=True
    )
    tensors = [*how.rotary, *([] if how.pattern is None else [how.pattern])]
    assert {one.device.type for one in tensors} == {"meta"}
    assert (how.pattern is None, how.store) == (pattern is None, True)


class Elsewhere(nn.Module):
    """A last norm on another device."""

    def forward(self, x):
        return torch.zeros(x.shape)


def test_answers_come_back_to_where_the_ids_are():
    """What the head reads is where the ids are, and a head tied to the embedding answers where that is."""
    network = on_meta(WIDE | {"weight_tying": True}).backbone
    z = IDS.to("meta")
    network.model.norm = Elsewhere()
    assert network(z, torch.arange(8, device="meta")).device.type == "meta"
    assert network.say(torch.zeros(1, 8, 64)).device.type == "meta"


# ----------------------------------------------------------------------------------------------------- from the Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of folders, each a repository: a snapshot holds what the patterns ask for, as the library has it."""
    root, asked = tmp_path / "hub", []

    def files(repository):
        return [str(one.relative_to(root / repository)) for one in (root / repository).rglob("*") if one.is_file()]

    def snapshot(repository, revision="main", allow_patterns=None, ignore_patterns=None):
        asked.append((repository, revision))
        into = tmp_path / "cache" / repository / revision
        wanted = filter_repo_objects(files(repository), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for name in wanted:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / repository / name, into / name)
        into.mkdir(parents=True, exist_ok=True)
        return str(into)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repository, **_: files(repository))
    hub = type("Hub", (), {"root": root, "asked": asked, "cache": tmp_path / "cache"})
    return hub


def test_what_is_fetched(hub, monkeypatch):
    path = llada(hub.root / "owner/name")
    for name in ("modeling_llada.py", "pytorch_model.bin", "training_args.pt", "merges.txt", "README.md", "x.jinja"):
        (path / name).write_text("no code")
    for name in ("checkpoint-7", "original"):
        shutil.copytree(path, path / name, ignore=shutil.ignore_patterns("checkpoint-7", "original"))
    lm = runs.load("owner/name")
    assert hub.asked == [("owner/name", "main")]
    snapshot = hub.cache / "owner/name/main"
    assert sorted(str(one.relative_to(snapshot)) for one in snapshot.rglob("*") if one.is_file()) == [
        "config.json", "merges.txt", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "x.jinja",
    ]  # fmt: skip
    assert torch.equal(said(lm), said(runs.load(path)))


def test_shards_are_fetched(hub, monkeypatch):
    path = llada(hub.root / "owner/name")
    whole = runs.load(path)
    monkeypatch.setattr(weights, "MAX_SHARD", 60_000)
    whole.save(hub.root / "owner/shards")
    assert len(list((hub.root / "owner/shards").glob("*.safetensors"))) > 2
    assert torch.equal(said(runs.load("owner/shards", dtype="float32")), said(whole))


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/3", "0123abcd"])
def test_a_revision_may_be_named(revision, hub):
    llada(hub.root / "owner/name")
    lm = runs.load(f"owner/name@{revision}")
    assert hub.asked == [("owner/name", revision)]
    assert lm.about["base_model"] == "owner/name"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/name@", "no revision after the @"),
        ("owner@v1", "no such folder; pass the folder of a run, or a Hugging Face id"),
        ("name", "no such folder"),
        ("a/b/c", "no such folder"),
        ("../name", "no such folder"),
        ("/etc/name", "no such folder"),
    ],
)
def test_what_is_no_repository(name, message, hub):
    with pytest.raises(ValueError, match=message):
        runs.load(name)
    assert not hub.asked


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "last.ckpt", "weights/model.pth"])
def test_a_repository_of_pickles_is_told_from_an_empty_one(pickled, hub):
    path = llada(hub.root / "owner/name")
    (path / pickled).parent.mkdir(exist_ok=True)
    (path / "model.safetensors").rename(path / pickled)
    with pytest.raises(ValueError, match=rf"weights are a pickle \({pickled}\).*pass owner/name@refs/pr/NUMBER"):
        runs.load("owner/name@main")
    assert not list(hub.cache.rglob("*.bin"))
    (path / pickled).unlink()
    with pytest.raises(ValueError, match="owner/name: no safetensors file in it"):
        runs.load("owner/name")


# ---------------------------------------------------------------------------------------------------- the command line


def test_commands_pass_on_how_to_load(tmp_path, monkeypatch):
    path = str(llada(tmp_path))
    lm = flags.loaded(path, None, dtype="bfloat16", quantize="int8")
    assert lm.denoiser.get_parameter("backbone.lm_head.weight").dtype == torch.bfloat16
    assert quantised.bits(lm.denoiser)
    seen = []
    load = runs.load
    monkeypatch.setattr("redraft.runs.load", lambda *args, **how: seen.append(how) or load(*args, **how))
    how = ["--dtype", "bfloat16", "--quantize", "int8", "--device-map", "auto"]
    few = ["--steps", "1", "--num", "1"]
    corpus = tmp_path / "text.txt"
    corpus.write_text("acac" * 200)
    commands = [
        ["generate", path, "--length", "2", *few],
        ["infill", path, "ac[MASK]", *few],
        ["edit", path, "ac", "--span", "0:1", *few],
        ["evaluate", path, "--data", str(corpus), "--draws", "1", "--rows", "2"],
    ]
    for command in commands:
        done = CliRunner().invoke(app, [*command, *how])
        assert done.exit_code == 0, (command, done.output, done.exception)
        wanted = {"dtype": "bfloat16", "device_map": "auto", "quantize": "int8"}
        assert {name: seen[-1][name] for name in wanted} == wanted
    assert len(seen) == len(commands)
    for option, value in (("--dtype", "int3"), ("--quantize", "int3"), ("--device-map", "all"), ("--device", "gpu")):
        done = CliRunner().invoke(app, ["generate", path, option, value])
        assert (done.exit_code, done.stdout) == (2, ""), done.output
        assert value in done.stderr


def test_the_benchmark_s_checkpoint_has_the_size_asked_for(tmp_path):
    count = benchmark.write(tmp_path, 5, "bfloat16")
    assert math.isclose(count, 5e6, rel_tol=0.4)
    assert filled("a", (2, 2)).shape == (2, 2)
