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


@pytest.mark.parametrize("normalise", [False, True])
def test_our_own_codebook_is_taken_as_its_model_reads_it(normalise, tmp_path):
    """What a learned table's norms came to be says nothing where the model divides by them."""
    noise = processes.gaussian(TABLE, normalise=normalise)
    model = Transformer(TransformerConfig(noise.to_dict(), depth=1), {"codebook": TABLE})
    folder.save(tmp_path, model.config, model.state_dict())
    size = TABLE.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(
        embeddings.token_embedding(tmp_path, TOKENIZER), TABLE / (size if normalise else size.mean())
    )


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
        ({"weight_map": {"wte.weight": "../model.safetensors"}}, "only .safetensors files beside it"),
        ({"weight_map": {"wte.weight": "weights.bin"}}, "only .safetensors files beside it"),
        ({"weight_map": {"wte.weight": "gone.safetensors"}}, "gone.safetensors: no such file"),
        ({"weight_map": {"wte.weight": "there.safetensors"}}, "is in there.safetensors"),
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
    process, model = built(learn_codebook=True, normalise=True, dim=5)
    assert process.table is model.codebook
    assert (process.D, model.codebook.requires_grad) == (5, True)


def test_rows_without_a_direction_are_given_one_where_rows_are_normalised(tmp_path):
    """A padding row of zeros has none to read, and the gradient of its norm has no bound. The others stay."""
    table = TABLE.clone()
    table[[0, 4]] = 0.0
    save_file({"wte.weight": table}, tmp_path / "model.safetensors")
    options = {"codebook": str(tmp_path), "learn_codebook": True}
    process, model = built(**options, normalise=True)
    torch.testing.assert_close(process.codebook.norm(dim=-1), torch.ones(K))
    torch.testing.assert_close(model.codebook[[0, 4]].norm(dim=-1), torch.ones(2))
    full = [i for i in range(K) if i not in (0, 4)]
    torch.testing.assert_close(process.codebook[full], TABLE[full] / TABLE[full].norm(dim=-1, keepdim=True))
    process.codebook.sum().backward()
    assert model.codebook.grad is not None
    assert model.codebook.grad.norm(dim=-1).max() < 100
    assert not torch.allclose(process.codebook[0], process.codebook[4])
    assert torch.equal(built(**options, normalise=True)[1].codebook, model.codebook)
    # read as it stands, zero is a place like any other
    assert (built(codebook=str(tmp_path))[0].codebook[[0, 4]] == 0).all()


def test_a_width_that_is_not_the_codebooks_is_refused(pretrained):
    assert built(codebook="bits", dim=4)[0].D == 4
    with pytest.raises(
        ValueError, match=r"process\.dim=5 with process\.codebook='bits', whose rows have 4: set process\.dim=4$"
    ):
        built(codebook="bits", dim=5)
    with pytest.raises(ValueError, match=r"process\.dim=8 .*whose rows have 7: set process\.dim=7$"):
        built(codebook=str(pretrained), dim=8)
    cdcd = recipes.override(recipes.get("cdcd"), {"process.codebook": str(pretrained)})  # it is the recipe that sets 32
    with pytest.raises(ValueError, match=r"process\.dim=32 .*set process\.dim=7$"):
        runs.build(cdcd, TOKENIZER)
    assert runs.build(recipes.override(cdcd, {"process.dim": 7}), TOKENIZER)[0].D == 7
    with pytest.raises(ValueError, match="use random, bits or a model's folder"):
        built(codebook="bitts")
    with pytest.raises(ValueError, match=r"process\.codebook='bits' with a masked process"):
        runs.build(recipes.override(recipes.get("toy_masked"), {"process.codebook": "bits"}), TOKENIZER)


@pytest.mark.parametrize(
    ("recipe", "base", "option", "value"),
    [
        ("toy_gaussian", {}, "process.codebook", "bits"),
        ("toy_gaussian", {}, "process.codebook", "pretrained"),
        ("toy_gaussian", {"process.codebook": "bits"}, "process.normalise", True),
        ("toy_gaussian", {"process.normalise": True, "process.dim": 5}, "process.learn_codebook", True),
        ("toy_diffusion_lm", {}, "process.normalise", True),
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
    options = {**TINY, "process.codebook": str(pretrained)}
    options |= {"process.learn_codebook": True, "process.normalise": True}
    run = runs.train("toy_gaussian", out=tmp_path / "run", overrides=options)
    process = run.lm.denoiser.process
    assert 0 < (process.table - TABLE / TABLE.norm(dim=-1).mean()).abs().max() < 0.5
    again = runs.load(tmp_path / "run").denoiser.process
    assert torch.equal(again.codebook, process.codebook)


# ----------------------------------------------------------------------------------------------------- model.init

START = {"process.schedule": "plaid", "process.learn_codebook": True, "process.normalise": True, "process.dim": 4}


def start(path, there, here):
    """A model of dim 4 in ``path``, and what is built from it with other options."""
    made = recipes.override(recipes.get("toy_plaid"), {**START, "model.depth": 1, **there})
    model = runs.build(made, TOKENIZER)[1]
    folder.save(path, model.config, model.state_dict(), TOKENIZER, {"recipe": recipes.to_dict(made)})
    return runs.build(recipes.override(made, {"model.init": str(path), **here}), TOKENIZER)


FIXED = {"process.normalise": False, "process.learn_codebook": False}
BITS = {"objective": "nelbo", "process.schedule": "linear_gamma", "process.codebook": "bits", **FIXED}
OF = "of its process is"


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        (BITS, {"process.codebook": "random"}, rf"power {OF} 1 there and 0\.25 here.*set process\.codebook='bits'"),
        (BITS, {"process.normalise": True}, rf"normalise {OF} false there and true here.*set process\.normalise=false"),
        ({}, {"process.gamma_max": 5.0}, rf"gamma_max {OF} 4 there and 5 here.*set process\.gamma_max=4$"),
        ({}, {"process.gamma_min": -5.0}, rf"gamma_min {OF} -4 there and -5 here.*set process\.gamma_min=-4$"),
        ({"objective": "cdcd", "process.schedule": "gumbel"}, {"process.schedule": "adaptive"}, "gumbel.*adaptive"),
    ],
    ids=["power", "normalise", "gamma_max", "gamma_min", "schedule"],
)
def test_a_start_whose_weights_would_mean_something_else_is_refused(there, here, said, tmp_path):
    with pytest.raises(ValueError, match=said) as refused:
        start(tmp_path, there, here)
    assert f"model.init={tmp_path}" in str(refused.value)


def test_a_start_may_change_what_weights_do_not_mean(tmp_path):
    """Another seed's random vectors give way to the stored; a fixed schedule visits the levels that it likes."""
    _, model = start(tmp_path / "plaid", {}, {"train.seed": 3})
    assert torch.equal(model.codebook, folder.load(tmp_path / "plaid")[0].codebook)
    other = {"train.seed": 3, "process.schedule": "cosine", "process.gamma_max": 5.0}
    process, _ = start(tmp_path / "fixed", {**BITS, "process.codebook": "random"}, other)
    assert (process.schedule.name, process.schedule.gamma_max) == ("cosine", 5.0)


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
    """On the budget of ``mdlm``: same text, steps and batch; the parts fit one another."""
    config, base = recipes.get(recipe), recipes.get("mdlm")
    assert (config.train, config.eval) == (base.train, base.eval)
    assert (config.data.source, config.data.length) == (base.data.source, base.data.length)
    assert config.objective in objectives.OBJECTIVES
    tokenizer = load_data(config.data).tokenizer
    process, model = runs.build(config, tokenizer)
    assert process.K == model.config.process["K"] == tokenizer.K
