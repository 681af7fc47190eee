"""Codebooks of Gaussian noise: random, bits, or out of a trained model's folder; and the recipes that use them."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from redraft import objectives, processes, recipes, runs
from redraft.data import build_tokenizer, load_data
from redraft.models import Transformer, TransformerConfig, embeddings, folder
from redraft.processes import codebooks
from redraft.recipes.gaussian import GAUSSIAN

K = 13
TINY = {"train.steps": 3, "train.warmup": 1, "model.depth": 1, "train.batch": 8, "eval.draws": 1, "eval.rows": 16}
TOKENIZER = build_tokenizer("toy")
TABLE = torch.randn(K, 7, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------ random and bits


def test_unit_vectors_have_norm_one_and_right_angles_if_there_is_room():
    for dim in (5, 13, 20):
        rows = codebooks.unit_vectors(K, dim, torch.Generator().manual_seed(0)).double()
        gram = rows @ rows.T
        torch.testing.assert_close(gram.diagonal(), torch.ones(K, dtype=torch.float64), atol=1e-6, rtol=0)
        off = (gram - gram.diagonal().diag()).abs().max()
        assert (off < 1e-6) == (dim >= K)
    other = codebooks.unit_vectors(K, 5, torch.Generator().manual_seed(1))
    assert not torch.equal(other, codebooks.unit_vectors(K, 5, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 13, 16, 17, 4096])
def test_bits_are_the_digits_of_the_id(size):
    rows = codebooks.bits(size)
    assert rows.shape == (size, max(math.ceil(math.log2(size)), 1))
    assert (rows.abs() == 1).all()
    numbers = ((rows > 0).long() * 2 ** torch.arange(rows.shape[1]).flip(0)).sum(-1)
    assert torch.equal(numbers, torch.arange(size))


def test_codes_of_no_token_are_never_named():
    """Vectors right at the codes 13, 14 and 15 are rounded to one of the 13 tokens."""
    process = processes.gaussian(codebooks.bits(K))
    beyond = codebooks.bits(16)[None, K:]
    logp = process.rounding(beyond)
    assert logp.shape == (1, 3, K)
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(1, 3))
    assert (process.nearest(beyond) < K).all()


# -------------------------------------------------------------------------------------------- a trained model's own


@pytest.mark.parametrize(
    "name",
    [
        *("model.codebook", "model.embed.weight", "backbone.vocab_embed.embedding", "model.embed_tokens.weight"),
        *("transformer.wte.weight", "wte.weight", "bert.embeddings.word_embeddings.weight", "gpt_neox.embed_in.weight"),
        *("shared.weight", "tok_embeddings.weight"),
    ],
)
def test_the_token_embedding_is_found_under_the_usual_names(name, tmp_path):
    save_file({name: TABLE, "transformer.wpe.weight": torch.zeros(9, 7)}, tmp_path / "model.safetensors")
    found = embeddings.token_embedding(tmp_path, TOKENIZER)
    torch.testing.assert_close(found, TABLE / TABLE.norm(dim=-1).mean())
    assert found.dtype is torch.float32


def test_any_transformers_model_will_do(tmp_path):
    """Saved by ``transformers`` itself, whole and in shards, in bfloat16 too; a padding row of zeros stays one."""
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    small = {"vocab_size": K, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = LlamaForCausalLM(LlamaConfig(**small, intermediate_size=16))
    llama.save_pretrained(tmp_path / "whole")
    llama.save_pretrained(tmp_path / "sharded", max_shard_size="1KB")
    llama.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    whole, sharded, half = (
        embeddings.token_embedding(tmp_path / name, TOKENIZER) for name in ("whole", "sharded", "half")
    )
    assert torch.equal(whole, sharded)
    torch.testing.assert_close(whole, half, rtol=0.02, atol=0.02)
    assert whole.norm(dim=-1).mean().item() == pytest.approx(1.0, rel=1e-6)
    bert = BertModel(BertConfig(**small, intermediate_size=16))
    bert.save_pretrained(tmp_path / "bert")
    found = embeddings.token_embedding(tmp_path / "bert", TOKENIZER)
    weight = bert.get_input_embeddings().weight.detach()
    torch.testing.assert_close(found, weight / weight.norm(dim=-1).mean())
    assert (found[0] == 0).all()


def test_ours_too_without_the_row_of_the_mask(tmp_path):
    masked = Transformer(TransformerConfig(processes.masked(K).to_dict(), depth=1))
    folder.save(tmp_path / "masked", masked.config, masked.state_dict())
    weight = masked.embed.weight.detach()
    assert weight.shape == (K + 1, 64)
    found = embeddings.token_embedding(tmp_path / "masked", TOKENIZER)
    torch.testing.assert_close(found, weight[:K] / weight[:K].norm(dim=-1).mean())
    noise = processes.gaussian(TABLE)
    vectors = Transformer(TransformerConfig(noise.to_dict(), depth=1), {"codebook": TABLE})
    folder.save(tmp_path / "gaussian", vectors.config, vectors.state_dict())
    found = embeddings.token_embedding(tmp_path / "gaussian", TOKENIZER)
    torch.testing.assert_close(found, TABLE / TABLE.norm(dim=-1).mean())


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"wte.weight": torch.ones(K + 2, 4)}, r"wte.weight has shape \(15, 4\), the tokenizer 13 tokens"),
        ({"wte.weight": torch.ones(K - 1, 4)}, r"\(12, 4\), the tokenizer 13 tokens.*data.tokenizer"),
        ({"wte.weight": torch.ones(K)}, r"\(13,\)"),
        ({"wte.weight": torch.ones(K, 4, dtype=torch.int8)}, "int8"),
        ({"wte.weight": torch.zeros(K, 4)}, "mean norm 0.0"),
        ({"wte.weight": torch.full((K, 4), torch.nan)}, "mean norm nan"),
        ({"wpe.weight": torch.ones(K, 4)}, "none of its 1 tensors is called like a token embedding"),
    ],
)
def test_rows_that_cannot_be_the_tokens(tensors, said, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        embeddings.token_embedding(tmp_path, TOKENIZER)


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="no such folder; use random, bits or"):
        embeddings.token_embedding(tmp_path / "none", TOKENIZER)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="is a pickle"):
        embeddings.token_embedding(tmp_path, TOKENIZER)
    (tmp_path / "model.safetensors").write_bytes(b"12345678not a header")
    with pytest.raises(ValueError, match="damaged"):
        embeddings.token_embedding(tmp_path, TOKENIZER)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"wte.weight": "../model.safetensors"}}, "no safetensors file of this folder"),
        ({"weight_map": {"wte.weight": "weights.bin"}}, "no safetensors file of this folder"),
        ({"weight_map": {"wte.weight": "gone.safetensors"}}, "gone.safetensors: damaged"),
        ({"weight_map": {"wte.weight": "there.safetensors"}}, "there.safetensors: damaged"),
        ({"metadata": {}}, "index.json: damaged"),
        ([], "index.json: damaged"),
    ],
)
def test_an_index_names_files_beside_it(index, said, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file({"wte.weight": TABLE}, tmp_path / "model.safetensors")
    save_file({"other": TABLE}, inside / "there.safetensors")
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=said):
        embeddings.token_embedding(inside, TOKENIZER)


# ---------------------------------------------------------------------------------------------------- in a recipe


def built(**options):
    config = recipes.override(recipes.get("toy_gaussian"), {f"process.{name}": one for name, one in options.items()})
    return runs.build(config, TOKENIZER)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_file({"wte.weight": 3 * TABLE}, path / "model.safetensors")
    return path


def test_a_recipe_names_its_codebook(pretrained):
    process, model = built(codebook="bits")
    assert torch.equal(process.codebook, codebooks.bits(K))
    assert (process.D, model.codebook.requires_grad) == (4, False)
    process, _ = built(codebook=str(pretrained))
    torch.testing.assert_close(process.codebook, TABLE / TABLE.norm(dim=-1).mean())
    process, _ = built(codebook=str(pretrained), normalise=True)
    torch.testing.assert_close(process.codebook, TABLE / TABLE.norm(dim=-1, keepdim=True))
    process, model = built(learn_codebook=True, dim=5)
    assert process.table is model.codebook
    assert (process.D, model.codebook.requires_grad) == (5, True)


def test_a_width_that_is_not_the_codebooks_is_refused(pretrained):
    assert built(codebook="bits", dim=4)[0].D == 4
    with pytest.raises(ValueError, match=r"process\.dim=5 with process\.codebook='bits', whose rows have 4"):
        built(codebook="bits", dim=5)
    with pytest.raises(ValueError, match=r"process\.dim=8 .*whose rows have 7: leave process\.dim out"):
        built(codebook=str(pretrained), dim=8)
    with pytest.raises(ValueError, match="use random, bits or a model's folder"):
        built(codebook="bitts")
    with pytest.raises(ValueError, match=r"process\.codebook='bits' with a masked process"):
        runs.build(recipes.override(recipes.get("toy_masked"), {"process.codebook": "bits"}), TOKENIZER)


CODEBOOKS = {"process.learn_codebook": True, "process.dim": 5}


@pytest.mark.parametrize(
    ("recipe", "base", "option", "value"),
    [
        ("toy_gaussian", {}, "process.codebook", "bits"),
        ("toy_gaussian", {}, "process.codebook", "pretrained"),
        ("toy_gaussian", {"process.codebook": "bits"}, "process.normalise", True),
        ("toy_gaussian", {}, "process.learn_codebook", True),
        ("toy_gaussian", CODEBOOKS, "process.normalise", True),
        ("toy_cdcd", {}, "loss.self_condition", 0.0),
        ("toy_langflow", {}, "process.kind", "rf"),
        ("toy_plaid", {}, "loss.self_condition", 1.0),
        ("toy_diffusion_lm", {}, "loss.target", "v"),
        ("toy_diffusion_lm", {}, "model.head", "edm"),
        ("toy_analog_bits", {}, "loss.target", "epsilon"),
        ("toy_analog_bits", {}, "loss.self_condition", 0.1),
    ],
)
def test_every_option_changes_the_outcome(recipe, base, option, value, pretrained, tmp_path):
    value = str(pretrained) if value == "pretrained" else value
    found = [
        runs.train(recipe, out=tmp_path / str(i), overrides={**TINY, **base, **more}).likelihood.nats_per_token
        for i, more in enumerate([{}, {option: value}])
    ]
    assert found[0] != found[1]


def test_a_codebook_is_stored_with_its_model(pretrained, tmp_path):
    """Learned from where a pretrained one was, and read back without its folder."""
    options = {**TINY, "process.codebook": str(pretrained), "process.learn_codebook": True}
    run = runs.train("toy_gaussian", out=tmp_path / "run", overrides=options)
    process = run.lm.denoiser.process
    assert 0 < (process.table - TABLE / TABLE.norm(dim=-1).mean()).abs().max() < 0.5
    again = runs.load(tmp_path / "run").denoiser.process
    assert torch.equal(again.codebook, process.codebook)


# -------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("recipe", [one.__name__ for one in GAUSSIAN if one.__name__.startswith("toy_")])
def test_toy_recipes_train_and_write(recipe, tmp_path):
    run = runs.train(recipe, out=tmp_path / "run", overrides=TINY)
    assert math.isfinite(run.likelihood.nats_per_token)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    texts = run.lm.generate(num=2, steps=4, seed=1).texts
    assert runs.load(tmp_path / "run").generate(num=2, steps=4, seed=1).texts == texts


@pytest.mark.parametrize("recipe", [one.__name__ for one in GAUSSIAN if not one.__name__.startswith("toy_")])
def test_recipes_build_at_their_size(recipe):
    """On the budget of ``mdlm``: same data, steps and batch; the parts fit one another."""
    config, base = recipes.get(recipe), recipes.get("mdlm")
    assert (config.data, config.train, config.eval) == (base.data, base.train, base.eval)
    assert config.objective in objectives.OBJECTIVES
    tokenizer = load_data(config.data).tokenizer
    process, model = runs.build(config, tokenizer)
    assert process.K == model.config.process["K"] == tokenizer.K
