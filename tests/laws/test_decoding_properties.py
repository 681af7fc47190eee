"""Whatever is asked: no crash, no mask, no given token changed, and no more calls than were stated."""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redraft import constraints, processes
from redraft.data import build_tokenizer
from redraft.models import Transformer, TransformerConfig
from redraft.sampling import sample
from redraft.sampling.samplers import SAMPLERS, proposes

LETTERS = "ab01 "
TOKENIZER = build_tokenizer("chars", [LETTERS])
K = TOKENIZER.K
MASKED = processes.masked(K)
RULES = sorted(name for name, one in SAMPLERS.items() if proposes(one) and name not in ("ddim", "heun", "churn"))
OTHERS = ["ancestral", "remdm", "first_hitting", "threshold:tau=0.3+edit:tau=0.1", "entropy_bounded+remask"]
PATTERNS = ["[ab]*", "(a|b0)+ ?", "0*1[ab ]*"]
QUIET = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def network(attention: str, seed: int) -> Transformer:
    torch.manual_seed(seed)
    block = 3 if attention == "block" else None
    model = Transformer(TransformerConfig(MASKED.to_dict(), depth=1, attention=attention, block=block))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return model.eval()


MODELS = {"full": network("full", 0), "block": network("block", 1)}
LAYOUTS = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"block": st.integers(1, 7)},
        optional={"cache": st.sampled_from(["prefix", "dual"]), "refresh": st.integers(1, 4)},
    ),
)
SHAPES = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.5, 1.0]),
        "top_p": st.sampled_from([0.3, 1.0]),
        "top_k": st.integers(0, 4),
        "repetition": st.sampled_from([1.0, 1.5]),
        "banned": st.lists(st.integers(0, K - 1), max_size=2),
        "steps": st.integers(1, 9),
    },
)


@st.composite
def canvases(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """A row with gaps anywhere."""
    length = draw(st.integers(1, 10))
    ids = torch.tensor(draw(st.lists(st.integers(0, K - 1), min_size=length, max_size=length)))
    return ids, torch.tensor(draw(st.lists(st.booleans(), min_size=length, max_size=length)))


def stated(sampler: str, options: dict, frozen: torch.Tensor) -> int:
    """The most calls that a row may take: its steps in every block, and one more for what a callback might leave."""
    free = int((~frozen).sum())
    width = min(options.get("block", len(frozen)), len(frozen))
    blocks = -(-len(frozen) // width)
    extra = 16 if "+" in sampler else 0
    usual = 128 if sampler in ("ancestral", "remdm") else max(width if "block" in options else free, 1) + extra
    steps = options.get("steps", usual)
    return free if sampler == "first_hitting" else blocks * steps


@QUIET
@given(
    st.sampled_from(RULES + OTHERS), st.lists(canvases(), min_size=1, max_size=3), LAYOUTS, SHAPES, st.integers(0, 99)
)
def test_any_request_of_a_full_attention_model(sampler, rows, layout, shape, seed):
    options = {**layout, **shape}
    if "cache" not in options:
        options.pop("refresh", None)
    if sampler == "first_hitting":
        options.pop("steps", None)
    found = sample(
        MASKED,
        MODELS["full"],
        canvas=[ids for ids, _ in rows],
        frozen=[known for _, known in rows],
        sampler=sampler,
        seed=seed,
        **options,
    )
    for row, (ids, known) in enumerate(rows):
        tokens = found.tokens[row, : len(ids)]
        assert torch.equal(tokens[known], ids[known])
        assert ((tokens >= 0) & (tokens < K)).all(), "no mask, and nothing that is no token"
        assert not torch.isin(tokens[~known], torch.tensor(options.get("banned", []), dtype=torch.long)).any()
        assert found.cost.of_rows[row] <= stated(sampler, options, known) + 1
        if known.all():
            assert found.cost.of_rows[row] == 0


@QUIET
@given(
    st.sampled_from(RULES),
    st.lists(st.lists(st.integers(0, K - 1), max_size=5), min_size=1, max_size=3),
    st.integers(1, 8),
    SHAPES,
    st.integers(0, 99),
)
def test_any_request_of_a_block_model(sampler, prompts, length, shape, seed):
    found = sample(MASKED, MODELS["block"], prompt=prompts, length=length, sampler=sampler, seed=seed, **shape)
    for row, prompt in enumerate(prompts):
        tokens = found.tokens[row, : len(prompt) + length]
        assert tokens[: len(prompt)].tolist() == prompt
        assert (tokens < K).all()
        blocks = -(-(len(prompt) + length) // 3)
        assert found.cost.of_rows[row] <= blocks * (shape.get("steps", 3) + 1) + 1


@QUIET
@given(
    st.sampled_from([*RULES, "threshold:tau=0.3+edit:tau=0.1"]),
    st.sampled_from(PATTERNS),
    st.integers(1, 8),
    LAYOUTS,
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 99),
)
def test_any_constraint_holds(sampler, pattern, length, layout, temperature, seed):
    layout = {name: value for name, value in layout.items() if name != "refresh" or "cache" in layout}
    found = sample(
        MASKED,
        MODELS["full"],
        length=length,
        num=2,
        sampler=sampler,
        constraint=constraints.regex(pattern, TOKENIZER),
        temperature=temperature,
        seed=seed,
        **layout,
    )
    for tokens in found.tokens:
        assert re.fullmatch(pattern, TOKENIZER.decode(tokens.tolist()))


@pytest.mark.parametrize("sampler", ["ancestral", "euler", "psi", "gibbs", "informed", "renoise"])
def test_uniform_noise_ends_in_time_too(sampler):
    process = processes.uniform(K)
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(process.to_dict(), depth=1, time_conditioned=True)).eval()
    ids, known = torch.arange(4) % K, torch.tensor([True, False, False, True])
    found = sample(process, model, canvas=ids, frozen=known, num=3, steps=5, sampler=sampler)
    assert (found.tokens[:, known] == ids[known]).all()
    assert found.nfe <= 2 * 5 + 1
