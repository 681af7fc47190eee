"""Networks of ``transformers``' classes: the causal one's own logits under a causal pattern, open under an open one."""

import pytest
import torch
import transformers

from redraft.models.borrowed import CAUSAL, MASKED, borrow, windows
from redraft.models.layers import Cache

L, V = 9, 40
SIZES = {
    "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 32, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
WINDOWED = {"sliding_window": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MORE = {
    "cohere2": WINDOWED,
    "gemma2": WINDOWED | {"head_dim": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 2.0},
    "gemma": {"head_dim": 8},
    "gemma3_text": WINDOWED | {"head_dim": 8, "layer_types": ["sliding_attention", *["full_attention"] * 2]},
    "granite": {"logits_scaling": 3.0},
    "mistral": WINDOWED,
    "mixtral": {"num_local_experts": 4},
    "qwen2": WINDOWED | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "qwen3_moe": EXPERTS | {"head_dim": 8},
    "starcoder2": WINDOWED,
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2},
}


def config(kind):
    made = transformers.AutoConfig.for_model(kind, **SIZES | MORE.get(kind, {}))
    made._experts_implementation = "eager"  # the grouped product is of 32 bits or fewer
    return made


def lively(network, seed=0):
    """Weights drawn wide, so that every part of the network has its say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network


def both(kind, masked=False):
    """A network of transformers in float64, and ours of the same weights."""
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    eager = "eager" if kind == "gemma2" else "sdpa"
    theirs = lively(auto.from_config(config(kind), attn_implementation=eager)).double().eval()
    ours = borrow(config(kind), masked).double().eval()
    ours.network.load_state_dict({name: theirs.state_dict()[name] for name in ours.network.state_dict()})
    return theirs, ours


def ids(rows=2, length=L, seed=1):
    return torch.randint(4, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def said(ours, z, positions=None, pattern=None, **more):
    positions = torch.arange(z.shape[1]) if positions is None else positions
    return ours.say(ours(z, positions, pattern, **more))


CAUSES = torch.ones(L, L, dtype=torch.bool).tril()[None, None]


@pytest.fixture(autouse=True)
def no_gradients(request):
    with torch.set_grad_enabled("training" in request.node.name):
        yield


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_pattern_gives_the_causal_models_logits(kind):
    theirs, ours = both(kind)
    z = ids()
    torch.testing.assert_close(said(ours, z, pattern=CAUSES), theirs(z).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", CAUSAL)
def test_an_open_pattern_reads_what_comes_later(kind):
    _, ours = both(kind)
    z = ids()
    other = z.clone()
    other[:, -1] = (other[:, -1] + 1) % V
    changed = (said(ours, z) - said(ours, other)).abs().amax(-1)
    assert bool((changed > 1e-6).all()), changed


def open_of(theirs, z):
    """What transformers' own switch makes of a causal model."""
    theirs.config.is_causal = False
    return theirs(z).logits


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gemma"])
def test_an_open_pattern_is_what_transformers_calls_not_causal(kind):
    theirs, ours = both(kind)
    z = ids()
    everything = torch.ones(1, 1, L, L, dtype=torch.bool)
    open_ = said(ours, z)
    torch.testing.assert_close(open_, open_of(theirs, z), rtol=0, atol=1e-10)
    torch.testing.assert_close(open_, said(ours, z, pattern=everything), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["gemma2", "mistral", "modernbert"])
def test_a_window_is_open_on_both_sides(kind):
    _, ours = both(kind, masked=kind == "modernbert")
    (wide,) = {width for width in ours.windows.values() if width is not None}
    at = torch.arange(L)
    near = ((at[:, None] - at).abs() < wide)[None, None]
    found = ours._reads(at.expand(2, L), None, 0, None, torch.float64)
    masks = found if isinstance(found, dict) else {"sliding_attention": found}
    sliding = masks["sliding_attention"]
    assert torch.equal(sliding if sliding.dtype == torch.bool else sliding == 0, near.expand_as(sliding))
    assert wide == (3 if kind == "modernbert" else 4)


@pytest.mark.parametrize("kind", MASKED)
def test_masked_models_are_themselves(kind):
    theirs, ours = both(kind, masked=True)
    z = ids()
    torch.testing.assert_close(said(ours, z), theirs(z).logits, rtol=0, atol=1e-10)
    # padding, which theirs tell by a mask of two dimensions
    keep = torch.arange(L) < 6
    padded = theirs(z, attention_mask=keep.long().expand(2, L)).logits
    found = said(ours, z, pattern=keep.expand(1, 1, L, L))
    torch.testing.assert_close(found[:, keep], padded[:, keep], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [*CAUSAL, *MASKED])
def test_padding_and_company_change_nothing(kind):
    _, ours = both(kind, kind in MASKED)
    z, segments = ids(), torch.tensor([0] * 5 + [1] * 4)
    pattern = (segments[:, None] == segments)[None, None]
    both_ = said(ours, z, pattern=pattern)
    alone = said(ours, z[:1, :5])
    torch.testing.assert_close(both_[:1, :5], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [*CAUSAL, *MASKED])
def test_positions_move(kind):
    """Positions told are those the class is told itself; each row may have its own."""
    _, ours = both(kind, kind in MASKED)
    z, places = ids(), torch.stack([torch.arange(L), torch.arange(L) + 5])
    found = said(ours, z, places)
    torch.testing.assert_close(found[1:], said(ours, z[1:], places[1]), rtol=0, atol=1e-10)
    if kind in ("gpt2", "bert", "roberta"):  # where they are no differences
        assert float((found[1:] - said(ours, z[1:])).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", [*CAUSAL, *MASKED])
def test_a_mixture_of_one_token_is_that_token(kind):
    _, ours = both(kind, kind in MASKED)
    z, at = ids(), torch.arange(L)
    one = (torch.stack([z, z.flip(1)], dim=-1), torch.tensor([1.0, 0.0]).expand(2, L, 2))
    torch.testing.assert_close(ours(z, at, mixture=one), ours(z, at), rtol=0, atol=1e-10)
    half = (one[0], torch.full((2, L, 2), 0.5))
    assert float((ours(z, at, mixture=half) - ours(z, at)).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", CAUSAL)
def test_what_is_kept_is_what_would_be_computed(kind):
    _, ours = both(kind)
    z, at = ids(length=12), torch.arange(12)
    ranks = at // 4
    whole = said(ours, z, at, (ranks[:, None] >= ranks)[None, None])
    cache = Cache()
    for start in range(0, 12, 4):
        part = slice(start, start + 4)
        first = said(ours, z[:, part], at[part], cache=cache)
        torch.testing.assert_close(first, whole[:, part], rtol=0, atol=1e-10)
        # asked without storing, it keeps nothing
        sizes = [k.shape for k in cache.keys]
        assert sizes == ([] if start == 0 else [(2, *k.shape[1:2], start, *k.shape[3:]) for k in cache.keys])
        ours(z[:, part], at[part], cache=cache, store=True)
    assert len(cache.keys) == ours.depth


def on_meta(kind):
    with torch.device("meta"):
        return borrow(config(kind), kind in MASKED)


@pytest.mark.parametrize("kind", [*CAUSAL, *MASKED])
def test_what_is_not_stored_is_right_after_the_meta_device(kind):
    ours, empty = borrow(config(kind), kind in MASKED), on_meta(kind)
    real, made = dict(ours.named_buffers()), dict(empty.named_buffers())
    assert real.keys() == made.keys()
    for name, value in real.items():
        assert torch.equal(made[name], value), name
    # and stays so where the rest is given room, moved or cast
    empty.to_empty(device="cpu").to(torch.bfloat16)
    for name, value in real.items():
        assert torch.equal(dict(empty.named_buffers())[name], value), name
    empty.load_state_dict(ours.state_dict())
    assert all(not value.is_meta for value in (*empty.parameters(), *empty.buffers()))


BIASES = {"bert": "network.cls.predictions.bias", "roberta": "network.lm_head.bias"}


def test_a_tied_head_follows_its_embedding():
    for kind in ("gpt2", "qwen3", "bert", "roberta"):
        _, ours = both(kind, kind in MASKED)
        names = set(ours.state_dict())
        assert not {name for name in names if name.endswith(("lm_head.weight", "decoder.weight", "decoder.bias"))}
        table = ours.network.get_input_embeddings()
        hidden = ours(ids(), torch.arange(L))
        before = ours.say(hidden)
        table.weight = torch.nn.Parameter(table.weight * 2)
        after = ours.say(hidden)
        bias = 0 if kind in ("gpt2", "qwen3") else dict(ours.named_parameters())[BIASES[kind]]
        torch.testing.assert_close(after - bias, 2 * (before - bias), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "gemma3_text", "bert", "modernbert"])
def test_training_with_checkpointing_has_the_same_gradients(kind):
    _, ours = both(kind, kind in MASKED)
    ours.train()
    found = []
    for on in (False, True):
        ours.checkpointing = on
        assert ours.checkpointing is on
        ours.zero_grad()
        calls = []
        hook = block_of(ours).register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        said(ours, ids()).square().sum().backward()
        hook.remove()
        assert len(calls) == 1 + on
        found.append({name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() == dict(ours.named_parameters()).keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-9)


def block_of(ours):
    return next(module for name, module in ours.named_modules() if name.endswith((".0.mlp", ".0.intermediate")))


@pytest.mark.parametrize("kind", [*CAUSAL, *MASKED])
def test_nothing_is_drawn_in_training(kind):
    """Whatever its config drops: those draws would be of the global generator, and a run resumed be another."""
    made = config(kind)
    named = [name for name in made.to_dict() if any(part in name for part in ("drop", "jitter"))]
    for name in named:
        setattr(made, name, 0.3)
    ours = lively(borrow(made, kind in MASKED))
    z, state = ids(), torch.get_rng_state()
    evaluated = said(ours.eval(), z)
    assert torch.equal(said(ours.train(), z), evaluated)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(getattr(made, name) == 0.3 for name in named)  # the caller's own is left as it was


def test_what_cannot_be_opened_is_refused():
    with pytest.raises(ValueError, match=r"gpt22.*gpt2"):
        borrow(type("Config", (), {"model_type": "gpt22"})())
    with pytest.raises(ValueError, match="'bart'"):
        borrow(transformers.BartConfig(), masked=True)
    chunked = config("llama")
    chunked.layer_types = ["chunked_attention"] * 3
    with pytest.raises(ValueError, match="chunked_attention"):
        windows(chunked, False)
