"""Fine-tuning: rows of conversations, released losses, adapters, every field acts, what cannot be is refused."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from laws import prescribed
from parity import small
from parity.checkpoints import DREAM, LLADA, llada_shapes, qwen2_shapes, write
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from redraft import objectives, processes, runs
from redraft.answering import speaks
from redraft.data import build_tokenizer
from redraft.data.chat import Chat
from redraft.finetuning import adapters, finetune
from redraft.finetuning.rows import Example, Padded, beside, examples, split, stacked
from redraft.finetuning.run import configure, loss_of
from redraft.models import Transformer, TransformerConfig, folder
from redraft.objectives.answers import context_weights, dream, llada
from redraft.recipes.finetune import AnswersConfig, ChatConfig, Finetune, LoraConfig
from redraft.sampling import sample
from redraft.training import fit
from redraft.training.loop import shortened

# --------------------------------------------------------------------------------------------------- released losses

TOKENS = torch.tensor([[3, 14, 15, 9, 2, 7, 11, 20]])
SHOWN = torch.tensor([[3, 14, 15, 60, 60, 7, 11, 60]])


def test_losses_of_llada(tmp_path):
    """The loss of pre-training, where all tokens are valid, and of an answer of 5 tokens; p = 0.4."""
    config = LLADA | {"n_kv_heads": 2}
    lm = runs.load(write(tmp_path, config, llada_shapes(config)))
    process = prescribed.prescribed(lm.process, SHOWN)
    u = torch.tensor([(0.4 - 1e-3) / (1 - 1e-3)], dtype=torch.float64)
    for prompt, wanted in ((0, 5.189561), (3, 8.303298)):
        batch = {"ids": TOKENS, "valid": torch.arange(8)[None] >= prompt}
        found = llada(lm.denoiser, process, batch, u)
        assert float((found.value.sum() / found.counts.sum()).detach()) == pytest.approx(wanted, abs=1e-4)


def test_what_a_model_gives_to_the_mask_is_lost_and_not_in_the_bound(tmp_path):
    """The loss is of all that is named, as released models are trained; the bound is of p over clean tokens."""
    lm = runs.load(write(tmp_path, LLADA, llada_shapes(LLADA)))
    process = prescribed.prescribed(lm.process, SHOWN)
    batch = {"ids": TOKENS, "valid": torch.ones_like(TOKENS, dtype=torch.bool)}
    found = llada(lm.denoiser, process, batch, torch.tensor([0.4], dtype=torch.float64), eps=0.0)
    clean = -lm.denoiser(SHOWN, torch.tensor([0.4])).detach().gather(-1, TOKENS[..., None])[..., 0]
    masked = SHOWN == 60
    torch.testing.assert_close(found.bound, torch.where(masked, clean * 9 / 3, 0.0))
    assert bool((found.value[masked].detach() * 8 * 0.4 > clean[masked] + 1e-3).all())


def test_losses_of_dream(tmp_path):
    lm = runs.load(write(tmp_path, DREAM, qwen2_shapes(DREAM)))
    process = prescribed.prescribed(lm.process, SHOWN)
    batch = {"ids": TOKENS, "valid": torch.arange(8)[None] >= 3}
    goldens = {0.1: (0.849151, [0.2210, 0.21695, 0.183902]), 0.3: (1.819089, [0.5070, 0.48495, 0.333873])}
    goldens[0.8] = 2.257056, [0.5920, 0.5792, 0.480794]
    for p, (wanted, weights) in goldens.items():
        found = dream(lm.denoiser, process, batch, torch.tensor([0.4]), cart=p)
        assert float((found.value.sum() / found.counts.sum()).detach()) == pytest.approx(wanted, abs=1e-4)
        seen = SHOWN != 60
        assert context_weights(seen, p)[0, [3, 4, 7]].tolist() == pytest.approx(weights, abs=1e-5)
    plain = dream(lm.denoiser, process, batch, torch.tensor([0.4]), weighting="flat")
    assert plain.value[0, [3, 4, 7]].tolist() == pytest.approx([5.031815, 3.295326, 3.917859], abs=1e-4)
    timed = dream(lm.denoiser, process, batch, torch.tensor([0.4], dtype=torch.float64), weighting="time")
    torch.testing.assert_close(timed.value, plain.value / 0.4)


# ----------------------------------------------------------------------------------------------------------- rows

TALK = [
    {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "ab"}, {"role": "assistant", "content": "cde"},
]  # fmt: skip


@pytest.fixture(scope="module")
def chat():
    return Chat(build_tokenizer("bytes"), "plain")


def said(chat, example):
    words = build_tokenizer("bytes")
    return words.decode(example.ids[example.answer].tolist())


def test_each_answer_is_a_row(chat):
    one, two = examples(chat, [TALK])
    assert one.ids.tolist() == two.ids[: len(one.ids)].tolist()
    assert [said(chat, example).strip() for example in (one, two)] == ["yo", "cde"]
    for example in (one, two):  # a row ends with what ends its answer
        assert example.answer[-1]
        assert example.ids[-1] == chat.turn_id


def test_the_last_answer_and_all(chat):
    (last,), (every,) = examples(chat, [TALK], "last"), examples(chat, [TALK], "all")
    assert said(chat, last).strip() == "cde"
    assert [one.strip() for one in said(chat, every).split("\n\n")] == ["yo", "cde"]
    assert every.ids.tolist() == last.ids.tolist()
    assert int(every.answer.sum()) > int(last.answer.sum())


def parts():
    return [
        Example(np.array([5, 6, 7], np.int32), np.array([False, True, True])),
        Example(np.array([8, 9], np.int32), np.array([False, True])),
        Example(np.array([1, 2, 3, 4], np.int32), np.array([False, False, True, True])),
    ]


def test_padding_is_learned_to_the_longest_of_the_batch():
    rows = Padded(parts(), pad_id=0)
    found = rows.batch([1, 0])
    assert found["ids"].tolist() == [[8, 9, 0], [5, 6, 7]]
    assert found["valid"].tolist() == [[False, True, True], [False, True, True]]
    assert "segments" not in found
    assert Padded(parts(), 0, length=6).batch([1])["valid"].tolist() == [[False, *[True] * 5]]


def test_padding_apart():
    found = Padded(parts(), pad_id=0, learned=False).batch(np.array([1, 2]))
    assert found["valid"].tolist() == [[False, True, False, False], [False, False, True, True]]
    assert found["segments"].tolist() == [[0, 0, -1, -1], [0] * 4]


def test_beside():
    found = beside(parts(), 5, 0).batch(slice(None))
    assert found["ids"].tolist() == [[5, 6, 7, 8, 9], [1, 2, 3, 4, 0]]
    assert found["segments"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, -1]]
    assert found["positions"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    assert found["valid"].tolist() == [[False, True, True, False, True], [False, False, True, True, False]]


def test_held_out_rows_are_of_one_length():
    """Of an answer nothing counts but itself, however long another is, unless all rows are trained at one length."""
    for learned in (True, False):
        packed = stacked(parts(), 0, learned=learned, length=None)
        assert packed.ids.shape == (3, 4)
        assert packed.segments is not None
        assert packed.segments.tolist() == [[0, 0, 0, -1], [0, 0, -1, -1], [0] * 4]
        assert packed.num_tokens == 2 + 1 + 2
    fixed = stacked(parts(), 0, learned=True, length=6)
    assert fixed.ids.shape == (3, 6)
    assert fixed.segments is None
    assert fixed.num_tokens == 5 + 5 + 4


def test_split_by_content():
    talks = [[{"role": "user", "content": str(i % 9)}, {"role": "assistant", "content": "a"}] for i in range(18)]
    train, held_out = split(talks, 0.3)
    texts = [{one[0]["content"] for one in side} for side in (train, held_out)]
    assert not texts[0] & texts[1]
    assert len(texts[1]) == 3
    assert len(train) + len(held_out) == 18
    assert split(talks, 0.0) == (talks, [])
    with pytest.raises(ValueError, match="too few"):
        split(talks[:2], 0.5)


# ------------------------------------------------------------------------------------------------------------ runs

LENGTH = 64
SMALL = {"train.steps": 3, "train.batch": 4, "train.lr": 1e-2, "train.warmup": 0, "train.threads": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of our own on bytes, and one in LLaDA's layout, which is told conversations by a template of letters."""
    root = tmp_path_factory.mktemp("base")
    words = build_tokenizer("bytes")
    torch.manual_seed(0)
    process = processes.masked(words.K, mask_id=words.mask_id)
    model = Transformer(TransformerConfig(process.to_dict(), depth=1, eos_id=words.eos_id, pad_id=words.pad_id))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)
    folder.save(root / "ours", model.config, model.state_dict(), words, {"context": LENGTH})
    ids = {"eos_token_id": 50, "pad_token_id": 50}
    write(root / "llada", LLADA | ids, llada_shapes(LLADA), eos=50)
    blocks = Transformer(TransformerConfig(process.to_dict(), depth=1, attention="block", block=8, eos_id=words.eos_id))
    folder.save(root / "blocks", blocks.config, blocks.state_dict(), words, {"context": LENGTH})
    lines = [
        {"prompt": p, "completion": c} for p, c in [("ab", "cd"), ("b", "aaa"), ("ca", "d"), ("dd", "abcd"), ("e", "f")]
    ]
    (root / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    talk = {"messages": TALK}
    (root / "talk.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*lines, talk]))
    return root


LETTERS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}z{{ m.content }}<|end|>{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}z{% endif %}"
)


def tune(base, out, name="ours", data="chat.jsonl", **changes):
    template = LETTERS if name == "llada" else "plain"
    changes = {one.replace("__", "."): value for one, value in changes.items()}
    given = SMALL | {"data.template": template} | changes
    return finetune(base / name, base / data, out=out, overrides=given, resume=given.pop("resume", False))


def weights(run):
    return {name: one.detach().clone() for name, one in run.lm.denoiser.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    return weights(tune(base, tmp_path_factory.mktemp("plain")))


ACTS = {
    "loss.name": {"loss.name": "dream"},
    "loss.eps": {"loss.eps": 0.5},
    "loss.weighting": {"loss.name": "dream", "loss.weighting": "time"},
    "loss.cart": {"loss.name": "dream", "loss.cart": 0.8},
    "loss.block": {"loss.block": 2},
    "loss.drop": {"loss.drop": 0.9},
    "data.rows": {"data.rows": "packed"},
    "data.length": {"data.rows": "fixed", "data.length": 40},
    "data.limit": {"data.limit": 2},
    "data.held_out": {"data.held_out": 0.4},
    "data.template": {"data.template": LETTERS.replace("<|end|>", "{{ eos_token }}")},
    "lora.rank": {"lora.rank": 2},
    "lora.alpha": {"lora.rank": 2, "lora.alpha": 64.0},
    "lora.targets": {"lora.rank": 2, "lora.targets": "qkv"},
}
BASES = {"lora": {"lora.rank": 2}, "dream": {"loss.name": "dream"}, "fixed": {"data.rows": "fixed"}}


@pytest.fixture(scope="module")
def others(base, plain, tmp_path_factory):
    """What an option with a companion is compared to: the companion alone."""
    found = {name: weights(tune(base, tmp_path_factory.mktemp(name), **more)) for name, more in BASES.items()}
    return found | {"plain": plain}


@pytest.mark.parametrize("name", ACTS)
def test_option_changes_the_weights(name, base, others, tmp_path):
    changes = ACTS[name]
    companion = next((key for key, more in BASES.items() if more.items() < changes.items()), "plain")
    assert not same(weights(tune(base, tmp_path, **changes)), others[companion])


@pytest.mark.parametrize("rows", ["batch", "fixed", "apart", "packed"])
def test_every_kind_of_rows_is_another_run(rows, base, plain, tmp_path):
    assert same(weights(tune(base, tmp_path, data__rows=rows)), plain) is (rows == "batch")


def test_answers_of_a_talk(base, tmp_path):
    each, last, every = (
        weights(tune(base, tmp_path / name, data="talk.jsonl", data__answers=name, data__length=LENGTH))
        for name in ("each", "last", "all")
    )
    assert not same(each, last)
    assert not same(last, every)


def test_every_option_is_tested():
    own = {
        f"{part}.{one.name}"
        for part, cls in (("loss", AnswersConfig), ("data", ChatConfig), ("lora", LoraConfig))
        for one in fields(cls)
    }
    elsewhere = {"data.source", "data.turn", "data.answers"}
    assert own == set(ACTS) | elsewhere
    assert {one.name for one in fields(Finetune)} == {
        "recipe", "model", "tokenizer", "family", "loss", "data", "lora", "quantize", "checkpointing", "train", "eval",
    }  # fmt: skip


def test_turn_tokenizer_and_family_are_passed_on(base, tmp_path):
    with pytest.raises(ValueError, match="'<nothing>'"):
        tune(base, tmp_path, data__turn="<nothing>")
    with pytest.raises(ValueError, match="tokenizer='x'"):
        tune(base, tmp_path, tokenizer="x")
    with pytest.raises(ValueError, match="family='llada'"):
        tune(base, tmp_path, family="llada")


def test_results(base, tmp_path):
    run = tune(base, tmp_path, data__held_out=0.4, eval__draws=2)
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["answers"] == 3
    assert told["left_out"] == 0
    assert told["parameters"] == told["trained"]
    assert run.likelihood is not None
    assert run.likelihood.is_bound
    assert told["nats_per_token"] == run.likelihood.nats_per_token
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out" in row for row in logged)
    rows = [row for row in logged if "loss" in row]
    assert all(np.isfinite(row["bound"]) for row in rows)


@pytest.mark.parametrize("name", ["ours", "llada"])
def test_the_tuned_model_knows_its_own_recipe_and_likelihood(name, base, tmp_path):
    """Not those of what it was tuned from; in memory as in its folder, and so in its card."""
    run = tune(base, tmp_path / "run", name=name, data__held_out=0.4, eval__draws=2)
    told = json.loads((tmp_path / "run" / "results.json").read_text())
    assert run.lm.results == told
    assert run.lm.about["recipe"]["recipe"] == "sft"
    for lm in (run.lm, runs.load(tmp_path / "run")):
        lm.save_pretrained(tmp_path / "card")
        card = (tmp_path / "card" / "README.md").read_text()
        assert card.count("\n# sft\n") == 1
        assert f"{run.likelihood.nats_per_token:.5g}" in card


@pytest.mark.parametrize("name", ["ours", "llada"])
def test_the_template_is_remembered(name, base, tmp_path):
    """In memory, in the folder, in one saved anew, and by transformers; before the family's own."""
    run = tune(base, tmp_path / "run", name=name)
    runs.load(tmp_path / "run").save(tmp_path / "again")
    wanted = Chat(run.lm.tokenizer, LETTERS if name == "llada" else "plain")
    ids = wanted.prompt(TALK[:1])
    for lm in (run.lm, *(runs.load(tmp_path / where) for where in ("run", "again"))):
        chat = speaks(lm.tokenizer, lm.about, None, None)
        assert (chat.prompt(TALK[:1]), chat.turn, chat.turn_id) == (ids, wanted.turn, wanted.turn_id)
    for where in ("run", "again"):
        theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / where)
        assert theirs.chat_template == wanted.template


def test_long_conversations_are_left_out_and_told(base, tmp_path):
    tune(base, tmp_path, data="talk.jsonl", data__length=30)
    assert json.loads((tmp_path / "results.json").read_text())["left_out"] == 1


def test_block_models_learn_answers(base, tmp_path):
    run = tune(base, tmp_path, name="blocks", **{"data.held_out": 0.4})
    assert run.likelihood is not None
    assert "block" in run.likelihood.estimator


def test_samples_show_an_answer(base, tmp_path, capsys):
    """To the first prompt, by the weights of that step: at the last, those that are kept; only when asked."""
    more = {"train.steps": 60, "train.batch": 5, "data.rows": "apart"}
    tune(base, tmp_path / "asked", train__sample_every=30, **more)
    shown = capsys.readouterr().err.splitlines()
    lm = runs.load(tmp_path / "asked")
    first = examples(Chat(lm.tokenizer, "plain"), [[{"role": "user", "content": "ab"}, TALK[1] | {"content": "cd"}]])[0]
    prompt = first.ids[: int(first.answer.argmax())].tolist()
    length = len(first.ids) - len(prompt)
    ids = sample(lm.process, lm.denoiser, prompt=prompt, length=length, temperature=0.0).tokens[0, len(prompt) :]
    said = lm.decode(ids).strip()
    assert said
    assert said in [line.strip() for line in shown]
    tune(base, tmp_path / "silent", **more)
    assert said not in [line.strip() for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize("more", [{}, {"lora.rank": 2}], ids=["all", "lora"])
def test_resumed_bit_by_bit(more, base, tmp_path, monkeypatch):
    """Stopped after two of four steps and gone on with: the weights of one never stopped."""
    changes = more | {"train.steps": 4, "train.save_every": 2, "train.ema": 0.5}
    whole = weights(tune(base, tmp_path / "whole", **changes))
    from redraft.training.loop import State

    advance = State.advance

    def stopping(self, stop):
        if self.step == 1:
            stop.asked = True
        return advance(self, stop)

    with monkeypatch.context() as patched:
        patched.setattr(State, "advance", stopping)
        first = tune(base, tmp_path / "parts", **changes)
    assert first.stopped
    assert first.step == 2
    second = tune(base, tmp_path / "parts", **changes, resume=True)
    assert not second.stopped
    assert same(weights(second), whole)


def test_accumulation_changes_only_roundings(base, tmp_path):
    """The means of both losses are those of the global batch, whatever the parts it is worked through in."""
    for loss in ("llada", "dream"):
        one, parts = (
            weights(
                tune(base, tmp_path / f"{loss}{n}", loss__name=loss, train__accumulate=n, train__precision="float64")
            )
            for n in (1, 4)
        )
        for name in one:
            torch.testing.assert_close(one[name], parts[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_loss_may_say_what_it_is_a_mean_over(accumulate, tmp_path):
    """sum(value) / sum(counts) over the global batch, its gradient too: what is logged of both is."""
    logged = []
    for name, counts in (("plain", None), ("counts", 2.0)):

        def objective(denoiser, process, batch, u, generator, counts=counts):
            found = objectives.nelbo(denoiser, process, batch, u, generator)
            if counts is None:
                return objectives.Loss(found.value / 2, found.bound)
            return objectives.Loss(found.value, found.bound, counts=torch.full_like(found.value, counts))

        config = small.config(steps=1, accumulate=accumulate, precision="float64", log_every=1)
        fit(config, small.model(), small.process(), objective, small.Rows(), out=tmp_path / name)
        logged.append(small.metrics(tmp_path / name)[0])
    for field in ("loss", "bound", "norm"):
        assert logged[0][field] == pytest.approx(logged[1][field], rel=1e-9), field


def test_random_length():
    train = configure("m", "d").train
    rows = {"ids": np.arange(40).reshape(2, 20)}
    assert shortened(rows, train, 0) is rows
    often = type(train)(random_length=0.25)
    lengths = [shortened(rows, often, step)["ids"].shape[1] for step in range(2000)]
    cut = [length for length in lengths if length < 20]
    # 2000 draws at 0.25 * 19/20: six standard errors
    assert abs(len(cut) / 2000 - 0.25 * 19 / 20) < 0.06
    assert set(cut) == set(range(1, 20))
    assert lengths == [shortened(rows, often, step)["ids"].shape[1] for step in range(2000)]


# -------------------------------------------------------------------------------------------------------- adapters


def log_p(lm, seed=0):
    z = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(seed))
    z[:, 6:] = lm.process.mask_id
    with torch.no_grad():
        return lm.denoiser(z, torch.full((2,), 0.5)).clamp_min(-1e4)  # where a mask is no token


def attach(denoiser, folder):
    """What ``out/adapter`` says, read by peft itself."""
    peft = adapters.library()
    peft.inject_adapter_in_model(peft.LoraConfig.from_pretrained(folder), denoiser)
    peft.set_peft_model_state_dict(denoiser, load_file(folder / adapters.WEIGHTS))


@pytest.mark.parametrize("name", ["ours", "llada"])
def test_adapters_alone_are_trained_and_merge(name, base, tmp_path):
    """All but the layers beside which adapters stand is as it was; merged, stored and read again it says the same."""
    before = runs.load(base / name)
    run = tune(base, tmp_path / "run", name=name, lora__rank=2)
    told = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 < told["trained"] < told["parameters"]
    chosen = {f"{one}.weight" for one in adapters.targets(before.denoiser)}
    old, new = before.denoiser.state_dict(), run.lm.denoiser.state_dict()
    assert old.keys() == new.keys()
    for key in old:
        assert torch.equal(old[key], new[key]) is (key not in chosen), key
    attach(before.denoiser, tmp_path / "run" / "adapter")
    unmerged = log_p(before)
    torch.testing.assert_close(unmerged, log_p(run.lm), rtol=0, atol=1e-5)
    torch.testing.assert_close(unmerged, log_p(runs.load(tmp_path / "run")), rtol=0, atol=1e-5)
    assert float((unmerged - log_p(runs.load(base / name))).abs().max()) > 1e-3


def test_adapters_say_nothing_at_first(base):
    lm = runs.load(base / "ours")
    before = log_p(lm)
    adapters.inject(lm.denoiser, LoraConfig(rank=2))
    assert torch.equal(log_p(lm), before)
    named = {name for name, one in lm.denoiser.named_parameters() if one.requires_grad}
    assert named
    assert all("lora_" in name for name in named)


def test_every_adapter_is_heard(base):
    """None stands beside a layer whose weights are read past it."""
    for name in ("ours", "llada"):
        lm = runs.load(base / name)
        adapters.inject(lm.denoiser, LoraConfig(rank=2))
        z = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(0))
        lm.denoiser(z, torch.full((2,), 0.5))[..., 0].sum().backward()
        silent = [n for n, one in lm.denoiser.named_parameters() if "lora_B" in n and not bool(one.grad.any())]
        assert not silent


def test_targets(base):
    lm = runs.load(base / "llada")
    assert {name.rpartition(".")[2] for name in adapters.targets(lm.denoiser)} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert len(adapters.targets(lm.denoiser, "q_proj, v_proj")) == 4
    with pytest.raises(ValueError, match=r"'q_prj'.*q_proj"):
        adapters.targets(lm.denoiser, "q_prj")


def test_checkpoints_hold_what_is_trained(base, tmp_path):
    tune(base, tmp_path, lora__rank=2)
    files = list((tmp_path / "checkpoints").rglob("*.safetensors"))
    from safetensors import safe_open

    names = {name for path in files for name in safe_open(path, "pt").keys()}  # noqa: SIM118
    assert any("lora_A" in name for name in names)
    assert not any("base_layer" in name or "embed" in name for name in names)


def test_checkpointing_is_the_same_run(base, tmp_path, monkeypatch):
    from redraft.models import decoder

    calls = []
    keep = decoder.checkpoint
    monkeypatch.setattr(decoder, "checkpoint", lambda *a, **k: calls.append(1) or keep(*a, **k))
    one = tune(base, tmp_path / "one", name="llada")
    assert not calls
    other = tune(base, tmp_path / "other", name="llada", checkpointing=True)
    assert calls
    assert same(weights(one), weights(other))
    assert not other.lm.denoiser.backbone.checkpointing
    with pytest.raises(ValueError, match="checkpointing with a Transformer"):
        tune(base, tmp_path / "ours", checkpointing=True)


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_quantised_base(bits, base, tmp_path):
    """Adapters beside weights of 8 or 4 bits are learned, and merged into the weights as they were."""
    pytest.importorskip("torchao")
    run = tune(base, tmp_path / "run", name="llada", lora__rank=2, quantize=bits)
    exact = tune(base, tmp_path / "exact", name="llada", lora__rank=2)
    assert not same(weights(run), weights(exact))
    assert {one.dtype for one in weights(run).values()} == {torch.float32}
    lm = runs.load(base / "llada")
    attach(lm.denoiser, tmp_path / "run" / "adapter")
    torch.testing.assert_close(log_p(lm), log_p(run.lm), rtol=0, atol=1e-5)
    rough = runs.load(base / "llada", quantize=bits)
    adapters.inject(rough.denoiser, LoraConfig(rank=2))
    assert {name for name, one in rough.denoiser.named_parameters() if one.requires_grad} == {
        name for name, _ in rough.denoiser.named_parameters() if "lora_" in name
    }


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss.cart": 0.1}, "loss.cart"),
        ({"loss.name": "dream", "loss.eps": 0.1}, "loss.eps"),
        ({"loss.name": "dream", "loss.weighting": "flat", "loss.cart": 0.1}, "loss.cart"),
        ({"lora.alpha": 3.0}, "lora.rank"),
        ({"quantize": "int8"}, "quantize=int8"),
        ({"quantize": "int4", "lora.rank": 2}, "quantize"),
        ({"train.random_length": 0.1}, "random_length"),
        ({"train.parallel": "fsdp"}, "fsdp"),
        ({"data.answers": "all", "loss.block": 2}, "loss.block"),
        ({"lora.ranks": 2}, "lora.rank"),
        ({"data.length": 99}, "64 positions"),
        ({"data.length": 3}, "data.length=3"),
        ({"data.template": None}, "template"),
    ],
)
def test_refused(changes, words, base, tmp_path):
    with pytest.raises(ValueError, match=words):
        tune(base, tmp_path / "out", **changes)
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.rows": "packed"}, "data.rows=packed for a block model"),
        ({"loss.name": "dream"}, "loss.weighting=cart for a block model"),
        ({"loss.name": "dream", "loss.cart": 0.3}, "loss.weighting=cart for a block model"),
        ({"loss.name": "dream", "loss.weighting": "cart"}, "loss.weighting=cart for a block model"),
        ({"loss.block": 2}, "block=2"),
    ],
)
def test_block_models_refuse_before_anything_is_written(changes, words, base, tmp_path):
    with pytest.raises(ValueError, match=words):
        tune(base, tmp_path / "out", name="blocks", **changes)
    assert not (tmp_path / "out").exists()
    tune(base, tmp_path / "out", name="blocks", loss__name="dream", loss__weighting="flat", train__steps=1)


def test_model_and_data_are_asked_for():
    with pytest.raises(ValueError, match="--model"):
        configure(None, "chat.jsonl")
    with pytest.raises(ValueError, match="--data"):
        configure("model")
    with pytest.raises(ValueError, match="same field"):
        configure("a", "b", {"model": "c"})
    assert loss_of(AnswersConfig()).keywords == {}


def test_without_peft(base, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="pip install"):
        tune(base, tmp_path, lora__rank=2)


def test_models_that_cannot(base, tmp_path):
    words = build_tokenizer("bytes")
    made = Transformer(TransformerConfig(processes.uniform(words.K).to_dict(), depth=1, time_conditioned=True))
    folder.save(tmp_path / "uniform", made.config, made.state_dict(), words, {"context": LENGTH})
    with pytest.raises(ValueError, match="uniform process"):
        tune(tmp_path, tmp_path / "out", name="uniform", data=base / "chat.jsonl")
