"""lm-evaluation-harness runs its own tasks on redraft's models: answers known exactly, however many at a time."""

import json
import math
import runpy
import sqlite3
import subprocess
import sys
from functools import partial

import pytest
import torch
import yaml

from redraft import LM, load, processes
from redraft.data import build_tokenizer
from redraft.finetuning import adapters
from redraft.models import Transformer, TransformerConfig
from redraft.processes import Facts
from redraft.recipes.finetune import LoraConfig

pytestmark = [  # what lm_eval and the libraries it imports remark on import and in use
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(lm_eval|datasets|evaluate|multiprocess|dill|sqlitedict).*"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
LETTERS = "abcdef"
CONTEXT = 10


class Exact(torch.nn.Module):
    """The conditionals of a Markov chain over the tokens, of whatever is hidden: log p of any text is known."""

    def __init__(self, size, seed=0):
        super().__init__()
        drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        drawn[:, -1] = -torch.inf  # no end of text but where one is given
        self.step = (1.5 * drawn).log_softmax(-1)
        self.size, self.process, self.asked = size, processes.masked(size), 0
        self.facts = Facts(mask_id=size, eos_id=size - 1)

    def forward(self, z, t, cond=None):
        self.asked += len(z)
        named = torch.nn.functional.one_hot(z.clamp_max(self.size - 1), self.size).double().log()
        said = named.masked_fill((z == self.size)[..., None], 0.0)
        before, after = [said[:, 0]], [torch.zeros_like(said[:, 0])]
        for at in range(1, z.shape[1]):
            before.append(torch.logsumexp(before[-1][:, :, None] + self.step, 1) + said[:, at])
            after.append(torch.logsumexp(self.step + (said[:, -at] + after[-1])[:, None, :], 2))
        return (torch.stack(before, 1) + torch.stack(after[::-1], 1)).log_softmax(-1)

    def nats(self, ids):
        """log p of all but the first, given it."""
        return self.step[ids[:-1], ids[1:]].sum().item()


@pytest.fixture(scope="module")
def words():
    return build_tokenizer("chars", [LETTERS])


@pytest.fixture
def exact(words):
    return LM(Exact(words.K), words, {"context": CONTEXT})


@pytest.fixture(scope="module")
def backend():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        from lm_eval import evaluator

        from redraft.harness import backend

        patch.setattr(evaluator, "add_env_info", lambda results: None)  # asks pip for all that is installed, each time
        yield backend


QUESTIONS = [("ab", ["c", "d", "a"], 1), ("cf", ["ab", "de", "fa"], 0), ("be", ["acd", "bcd", "f"], 2)]
TEXTS = ["abcdefabcdefabcdef", "fedcba", "a"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of three tasks, each with its questions in a file of its own."""
    root = tmp_path_factory.mktemp("tasks")
    choice = [{"q": q, "choices": choices, "gold": gold} for q, choices, gold in QUESTIONS]
    rows = {"choice": choice, "text": [{"text": one} for one in TEXTS], "write": [{"q": q} for q, _, _ in QUESTIONS]}
    own = {
        "choice": {
            "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": "{{gold}}",
            "doc_to_choice": "{{choices}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
        },
        "text": {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
        },
        "write": {
            "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "x", "target_delimiter": "",
            "generation_kwargs": {"until": ["zz"], "max_gen_toks": 5, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    }  # fmt: skip
    for name, task in own.items():
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows[name]))
        files = {"data_files": {"test": str(root / f"{name}.jsonl")}, "cache_dir": str(root / "cache")}
        about = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
        (root / f"{name}.yaml").write_text(
            yaml.safe_dump({**about, **task, "metadata": {"version": 2}, "tag": "letters"})
        )
    return root


@pytest.fixture
def evaluate(backend, tasks):
    from redraft.harness.tasks import Asked, run

    def call(lm, *names, asked=None, **options):
        own = lm if isinstance(lm, backend.Harness) else backend.Harness(lm, **options)
        return run(own, Asked(names, include_path=tasks, **(asked or {})))

    return call


def request(backend, *args, task="choice"):
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, args, 0, (task, 0, 1))


# ---------------------------------------------------------------------------------------- the harness's own machinery


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_model_whose_answers_are_known_gets_the_figures_it_must(batch, exact, evaluate):
    """All three kinds of task, by formula: the share right, bits per byte, and what greedy decoding writes."""
    found = evaluate(exact, "choice", "text", batch_size=batch)
    right = 0
    for question, choices, gold in QUESTIONS:
        start = exact.encode(question)[-1:]
        said = [exact.denoiser.nats(torch.tensor([*start, *exact.encode(one)])) for one in choices]
        right += said.index(max(said)) == gold
    assert found["results"]["choice"]["acc,none"] == right / 3
    nats = 0.0
    for text in TEXTS:  # windows of nine, each told the token before it, the first one the end of text
        ids = [exact.eos_id, *exact.encode(text)]
        nats += exact.denoiser.nats(torch.tensor(ids))
    wanted = -nats / math.log(2) / sum(map(len, TEXTS))
    assert found["results"]["text"]["bits_per_byte,none"] == pytest.approx(wanted, abs=0.2)  # of nine tokens drawn sets
    assert found["versions"] == {"choice": 2, "text": 2}
    assert found["n_samples"]["choice"]["effective"] == 3
    assert found["log_p"]["choice"] == {
        "estimator": "bound", "is": "lower bound", "draws": 0, "mean_standard_error": 0.0, "largest_standard_error": 0.0
    }  # fmt: skip
    assert found["log_p"]["text"]["draws"] == 128


def test_a_record_says_what_is_a_bound_and_how_texts_were_written(exact, words, evaluate):
    """Of what nobody set too: the estimator, the sampler, the length; and an error that is not known is none."""
    from redraft.harness.tasks import figures

    found = evaluate(exact, "text", "write", draws=1)
    assert found["log_p"]["text"]["is"] == "lower bound"
    assert found["log_p"]["text"]["estimator"] == found["settings"]["text"]["estimator"] == "bound"
    assert found["log_p"]["text"]["mean_standard_error"] is found["log_p"]["text"]["largest_standard_error"] is None
    assert found["settings"]["write"]["sampler"] == "low_confidence"
    assert found["settings"]["write"]["length"] == 5
    assert found["versions_of"]["lm_eval"]
    rows = dict(figures(found))
    assert "lower bound" in rows["text log p"]
    assert "not known" in rows["text log p"]
    causal = evaluate(network(words, attention="causal"), "choice")
    assert causal["log_p"]["choice"]["estimator"] == "chain_rule"
    assert causal["log_p"]["choice"]["is"] == "exact"
    assert "exact" in dict(figures(causal))["choice log p"]


def test_rolling_by_the_chain_rule_is_exact(exact, evaluate):
    found = evaluate(exact, "text", estimator="chain_rule")
    nats = sum(exact.denoiser.nats(torch.tensor([exact.eos_id, *exact.encode(text)])) for text in TEXTS)
    bits = -nats / math.log(2) / sum(map(len, TEXTS))
    assert found["results"]["text"]["bits_per_byte,none"] == pytest.approx(bits, abs=1e-9)


def plain(lm, prompt, length):
    """Greedy decoding by confidence, a token a step."""
    K = lm.process.K
    text = torch.tensor([*lm.encode(prompt), *[K] * length])
    while bool((text == K).any()):
        at = (text == K).nonzero().flatten()
        logp = lm.denoiser(text[None], torch.ones(1))[0, at]
        best = int(logp.max(1).values.argmax())
        text[at[best]] = logp[best].argmax()
    return lm.decode(text[len(prompt) :])


def network(words, context=24, seed=0, **options):
    torch.manual_seed(seed)
    config = TransformerConfig(processes.masked(words.K).to_dict(), depth=1, eos_id=words.eos_id, **options)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return LM(model.eval().requires_grad_(False), words, {"context": context})


def test_batch_sizes_change_no_bit(words, backend):
    """Requests of many lengths, in the order they were asked in, of a network in float32."""
    lm = network(words)
    asked = [
        request(backend, q, one) for q in ("ab", "abc", "fedcba", "") for one in ("a", "bc", "abcdefab", "d", "fa")
    ]
    writes = [request(backend, q, {"until": ["c"], "max_gen_toks": 8}, task="write") for q in ("a", "bd", "cc", "bda")]
    rolls = [request(backend, text, task="text") for text in ("abcdef" * 9, "fa", "bcd")]
    found = []
    for batch in (1, 3, 8, "auto"):
        one = backend.Harness(lm, batch_size=batch)
        found.append((one.loglikelihood(asked), one.loglikelihood_rolling(rolls), one.generate_until(writes)))
    assert found[0] == found[1] == found[2] == found[3]
    shuffled = backend.Harness(lm).loglikelihood(asked[::-1])
    assert shuffled[::-1] == found[0][0]


def test_contexts_are_cut_from_the_left(exact, backend):
    own = backend.Harness(exact)
    contexts = "fbdace" * 4, "fbdacefbdace"[-7:]
    long, short = own.loglikelihood([request(backend, context, "abc") for context in contexts])
    assert long == short
    with pytest.raises(ValueError, match="11 tokens"):
        own.loglikelihood([request(backend, "a", "abcdefabcde")])
    with pytest.raises(ValueError, match="has 0 tokens"):
        own.loglikelihood([request(backend, "a", "")])


def test_an_empty_context_is_the_end_of_a_text(exact, backend):
    ((nats, _),) = backend.Harness(exact).loglikelihood([request(backend, "", "abc")])
    ids = torch.tensor([exact.eos_id, *exact.encode("abc")])
    assert nats == pytest.approx(exact.denoiser.nats(ids), abs=1e-9)


def test_greedy_says_what_decoding_writes(exact, backend):
    best = plain(exact, "ab", 4)
    asked = [request(backend, "ab", best), request(backend, "ab", best[:-1] + ("a" if best[-1] != "a" else "b"))]
    assert [greedy for _, greedy in backend.Harness(exact).loglikelihood(asked)] == [True, False]


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("block", [None, 2, 4])
def test_until_cuts_the_text_and_ends_the_row(block, words, backend):
    """The text is that of the whole canvas, cut; no forward follows the step in which it stands complete."""
    lm = network(words)
    own = {"block": block} if block else {}
    whole = backend.Harness(lm, **own)
    (text,) = whole.generate_until([request(backend, "ab", {"until": [], "max_gen_toks": 16}, task="write")])
    assert len(text) == 16
    until = text[4:6]
    cut = backend.Harness(lm, **own)
    (short,) = cut.generate_until([request(backend, "ab", {"until": ["zz", until], "max_gen_toks": 16}, task="write")])
    assert short == text[: text.index(until)]
    assert whole.spent["written"].forwards == 16
    if block:
        ends = text.index(until) + 2
        assert cut.spent["written"].forwards <= -(-ends // block) * block
    else:
        assert cut.spent["written"].forwards <= 16
    several = backend.Harness(lm, **own)
    asked = [
        request(backend, q, {"until": [until], "max_gen_toks": 16}, task="write") for q in ("ab", "ba", "ab", "cd")
    ]
    texts = several.generate_until(asked)
    assert texts[0] == texts[2] == short
    assert several.counts == {"requests": 4, "distinct": 3, "kept": 0}


def test_a_row_that_is_complete_costs_nothing_more(exact, backend):
    """Blocks of one: an until string that ends with the second token takes two forwards, not twelve."""
    lm = LM(exact.denoiser, exact.tokenizer, {"context": 14})
    (text,) = backend.Harness(lm, block=1).generate_until([request(backend, "ab", {"max_gen_toks": 12}, task="write")])
    own = backend.Harness(lm, block=1)
    (short,) = own.generate_until([request(backend, "ab", {"until": text[1], "max_gen_toks": 12}, task="write")])
    assert (short, own.spent["written"].forwards) == (text[: text.index(text[1])], 1 + text.index(text[1]))


def test_a_row_ends_only_where_no_other_string_could_begin_before(exact, backend):
    """Of two strings the one that begins first cuts, though the other stands complete before it."""
    from redraft.harness.writing import Reader, way

    reader = Reader(exact, way(exact, {"until": ["bcd", "c"]}, None), [0], None)
    assert [reader.ends(text) for text in ("a", "ab", "abc", "abcd", "abce", "cb")] == [False] * 3 + [True] * 3
    assert [reader.cut(text) for text in ("abcd", "abce", "cb")] == ["a", "ab", ""]


def test_a_token_may_be_set_that_ends_a_text(exact, backend):
    asked = [request(backend, "ab", {"max_gen_toks": 5}, task="write")]
    (whole,) = backend.Harness(exact).generate_until(asked)
    (ended,) = backend.Harness(exact, stop=exact.encode(whole[2])[0]).generate_until(asked)
    assert ended == whole[: whole.index(whole[2])]


def test_settings_of_a_task_go_before_its_own_and_those_before_the_models(exact, backend, tmp_path):
    asked = [request(backend, "ab", {"until": ["zz"], "max_gen_toks": 5, "do_sample": False}, task="write")]
    bare = [request(backend, "ab", {"until": ["zz"]}, task="write")]
    assert len(backend.Harness(exact, length=3).generate_until(bare)[0]) == 3
    assert len(backend.Harness(exact, length=3).generate_until(asked)[0]) == 5
    (tmp_path / "s.yaml").write_text("write: {length: 4, block: 2, steps: 1}\n'w*': {length: 1}\n")
    own = backend.Harness(exact, length=3, settings=tmp_path / "s.yaml")
    assert len(own.generate_until(asked)[0]) == 4
    assert own.spent["written"].forwards == 2
    assert own.record()["settings"]["write"]["block"] == 2
    (tmp_path / "s.json").write_text(json.dumps({"wr*": {"max_new_tokens": 2, "temperature": 1.0}}))
    drawn = backend.Harness(exact, settings=tmp_path / "s.json")
    texts = drawn.generate_until(asked * 12)
    assert {len(text) for text in texts} == {2}
    assert len(set(texts)) > 1, "the same request again is another draw"
    assert texts == backend.Harness(exact, settings=tmp_path / "s.json").generate_until(asked * 12)
    other = backend.Harness(exact, settings=tmp_path / "s.json", seed=1)
    assert texts != other.generate_until(asked * 12)


def test_answers_too_are_scored_as_the_settings_say(exact, backend):
    asked = [request(backend, "ab", "cdefabcd"), request(backend, "ab", "cdefabcd", task="other")]
    own = backend.Harness(exact, settings={"choice": {"draws": 255}, "oth*": {"estimator": "chain_rule"}})
    (one, _), (other, _) = own.loglikelihood(asked)
    wanted = exact.denoiser.nats(torch.tensor(exact.encode("bcdefabcd")))
    assert one == pytest.approx(wanted, abs=1e-9), "255 draws are all sets of eight"
    assert other == pytest.approx(wanted, abs=1e-9)
    assert own.spent["scored"].texts >= 255
    ((drawn, _),) = backend.Harness(exact).loglikelihood(asked[:1])
    assert abs(drawn - wanted) > 1e-6


def test_what_is_unknown_is_refused_by_name(exact, backend, tmp_path):
    for mistake, near in (({"blok": 4}, "block"), ({"stepss": 2}, "steps"), ({"max_gen_tokens": 2}, "max_gen_toks")):
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            backend.Harness(exact, settings={"write": mistake})
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            backend.Harness(exact, **mistake)
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            backend.Harness(exact).generate_until([request(backend, "ab", mistake, task="write")])
    with pytest.raises(ValueError, match="num_beams=4"):
        backend.Harness(exact, num_beams=4)
    with pytest.warns(UserWarning, match="num_beams, use_cache: ignored"):
        backend.Harness(exact, num_beams=1, use_cache=True)
    for content in ("[1, 2]", "write: 3", "write: {length: ["):
        (tmp_path / "s.yaml").write_text(content)
        with pytest.raises(ValueError, match=r"s\.yaml"):
            backend.Harness(exact, settings=tmp_path / "s.yaml")
    for batch in ("many", 0):
        with pytest.raises(ValueError, match="batch_size"):
            backend.Harness(exact, batch_size=batch)
    with pytest.raises(ValueError, match="length=10"):
        backend.Harness(exact, length=10).generate_until([request(backend, "ab", {}, task="write")])


def test_names_of_the_harness_are_brought_to_ours(backend):
    from redraft.harness.settings import Settings, layered

    assert layered({"max_gen_toks": 4, "do_sample": False, "temperature": 0.7}) == {"length": 4, "temperature": 0.0}
    assert layered({"do_sample": True}) == {"temperature": 1.0}
    assert layered({"do_sample": True, "temperature": 0.7, "until": "x"}) == {"temperature": 0.7, "until": ["x"]}
    assert layered({"do_sample": False}, {"temperature": 0.2}) == {"temperature": 0.2}
    assert layered({"max_gen_toks": 4, "length": 3}, {"repetition_penalty": 1.2}) == {"length": 3, "repetition": 1.2}
    told = Settings({"a*": {"length": 1}, "*": {"length": 2}, "ab": {"length": 3, "draws": 4}})
    assert [told.of(task)["length"] for task in ("ab", "ac", "b", None)] == [3, 1, 2, 2]
    assert told.scoring("ab") == {"draws": 4}
    assert told.writing("ab") == {"length": 3}
    assert Settings({"a": {"length": 1}}).of("ab") == {}


def test_unknown_tasks_are_refused_with_the_nearest(exact, evaluate):
    with pytest.raises(ValueError, match="did you mean 'choice'"):
        evaluate(exact, "choise")
    with pytest.raises(ValueError, match="did you mean 'write'"):
        evaluate(exact, "write", settings={"wriet": {"length": 2}})
    with pytest.raises(ValueError, match="a group or tag"):
        evaluate(exact, "write", settings={"letters": {"length": 2}})


# ------------------------------------------------------------------------------------------------------- conversations


TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def test_the_chat_template_is_applied_by_ids(backend, evaluate):
    words = build_tokenizer("bytes")
    lm = network(words, context=64)
    own = backend.Harness(lm, template=TEMPLATE)
    text = own.apply_chat_template([{"role": "user", "content": "ab"}])
    assert text == "<u>ab[EOS]<a>"
    plainly = backend.Harness(lm).loglikelihood([request(backend, text, "c")])
    (inside,) = own.loglikelihood([request(backend, text, "c")])
    assert inside != plainly[0], "the end of a turn is a token, and not the letters that spell it"
    spelled = own.apply_chat_template([{"role": "user", "content": "a[EOS]b"}])
    assert own._rendered[spelled].count(words.eos_id) == 1, "what a message spells is text"
    begun = own.apply_chat_template(
        [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "So"}], add_generation_prompt=False
    )
    assert begun == text + "So"
    assert own._rendered[begun] == (*own._rendered[text], *lm.encode("So"))
    with pytest.raises(ValueError, match="--cache_requests"):
        own.loglikelihood([request(backend, "never rendered", "c")])
    found = evaluate(backend.Harness(lm, template=TEMPLATE), "choice", "write", asked={"chat": True})
    assert found["chat"]
    bare = evaluate(backend.Harness(lm), "choice", "write")
    assert bare["cost"]["scored"]["positions"] < found["cost"]["scored"]["positions"]
    with pytest.raises(ValueError, match="template"):
        own.chat_template("other")
    assert own.chat_template(True) == TEMPLATE


def test_an_answer_in_a_conversation_keeps_its_white_space(backend):
    """A program's first line is indented, and a blank line may be what ends a text."""
    from redraft.harness.writing import Reader, way

    lm = network(build_tokenizer("bytes"), context=64)
    chat = backend.Harness(lm, template=TEMPLATE).chat
    reader = Reader(lm, way(lm, {"until": ["\n\n"]}, chat), [0], chat)
    assert reader.text(0, [*lm.encode("  return x\n\n"), lm.eos_id, *lm.encode("more")]) == "  return x"
    assert reader.text(0, [*lm.encode("  x\n"), lm.eos_id]) == "  x\n"


# ------------------------------------------------------------------------------------ files: models, adapters, results


@pytest.fixture
def model(tmp_path):
    words = build_tokenizer("chars", [LETTERS])
    lm = network(words)
    lm.save(tmp_path / "model")
    return tmp_path / "model"


def test_the_harness_finds_the_class_by_its_name(model, backend, tasks):
    import lm_eval
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    assert get_model("redraft") is backend.Harness
    assert get_model("hf") is not None, "the harness's own stay known"
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    args = f"pretrained={model},draws=16,block=2"
    found = lm_eval.simple_evaluate(
        model="redraft", model_args=args, tasks=["choice", "write"], batch_size=3, task_manager=manager
    )
    assert found["config"]["draws"] == 16
    assert len(found["samples"]["write"]) == 3
    with pytest.raises(ValueError, match="did you mean 'block'"):
        lm_eval.simple_evaluate(model="redraft", model_args=args + ",blok=2", tasks=["choice"], task_manager=manager)


def test_the_harness_own_command_knows_the_name(model, tasks, monkeypatch, capsys):
    """``python -m redraft.harness``; its cuda:0, which it says unless told, is not taken where there is none."""
    import lm_eval.tasks

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    told = ["--model", "redraft", "--model_args", f"pretrained={model},draws=16", "--include_path", str(tasks)]
    monkeypatch.setattr(sys, "argv", ["redraft.harness", *told, "--tasks", "choice"])
    runpy.run_module("redraft.harness", run_name="__main__")
    assert "|choice|" in capsys.readouterr().out


def test_a_device_that_was_asked_for_is_taken(model, backend, monkeypatch):
    asked = list[str | None]()
    whole = load(str(model))
    monkeypatch.setattr(backend, "load", lambda path, device, **how: asked.append(device) or whole)
    make = backend.Harness.create_from_arg_string
    for cuda, told in ((True, "cuda:0"), (False, "cuda:0"), (False, "cuda:1"), (False, None)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        make(f"pretrained={model}", {"device": told, "batch_size": 3, "max_batch_size": None})
    make(f"pretrained={model},device=cuda:0", {"device": "cpu"})
    assert asked == ["cuda:0", None, "cuda:1", None, "cuda:0"]


def test_results_are_kept_and_not_asked_again(model, backend, tmp_path, evaluate):
    kept = str(tmp_path / "kept" / "results.sqlite")
    first = backend.Harness(str(model), cache_path=kept)
    found = evaluate(first, "choice", "text", "write")
    again = backend.Harness(str(model), cache_path=kept)
    once_more = evaluate(again, "choice", "text", "write")
    assert found["results"] == once_more["results"]
    assert found["log_p"] == once_more["log_p"]
    assert first.spent["scored"].texts > 0
    assert first.spent["written"].texts > 0
    assert [again.spent[name].texts for name in ("scored", "written")] == [0, 0]
    assert again.counts["kept"] == again.counts["distinct"] == first.counts["distinct"]
    other = backend.Harness(str(model), cache_path=kept, draws=3, length=2)
    evaluate(other, "text", "choice")
    assert other.spent["scored"].texts > 0, "asked in another way"
    changed = network(build_tokenizer("chars", [LETTERS]), seed=1)
    changed.save(tmp_path / "other")
    third = backend.Harness(str(tmp_path / "other"), cache_path=kept)
    evaluate(third, "choice", "write")
    assert third.spent["scored"].texts > 0, "of another model"
    assert third.counts["kept"] == 0


def test_files_of_results_that_are_damaged_or_busy(tmp_path, backend):
    """A result that cannot be read is asked again; a file that cannot is named."""
    from redraft.harness.kept import Kept

    path = tmp_path / "kept.sqlite"
    one, two = Kept(path), Kept(path)
    one.put({"a": [1.0], "b": [2.0]})
    two.put({"a": [1.0], "c": "text"})
    assert one.get(["a", "b", "c", "d"]) == [[1.0], [2.0], "text", None]
    two.base.execute("update kept set value = '[1' where key = 'a'")
    two.base.commit()
    assert one.get(["a", "b"]) == [None, [2.0]]
    (tmp_path / "junk").write_text("no results " * 99)
    other = sqlite3.connect(tmp_path / "other")
    other.execute("create table kept (name text)")
    other.close()
    for bad in (tmp_path / "junk", tmp_path / "other", tmp_path):
        with pytest.raises(ValueError, match="not a file of results"):
            Kept(bad)
        with pytest.raises(ValueError, match="not a file of results"):  # before any model is looked for
            backend.Harness("nowhere", cache_path=str(bad))
    content = bytearray(path.read_bytes())
    content[100:] = b"\xff" * len(content[100:])
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a file of results"):
        Kept(path).get(["b"])


def test_a_model_is_told_by_all_that_decides_its_answers(words):
    """One number of a large weight, and what a network does with equal weights."""
    from redraft.harness.kept import fingerprint

    lm = network(words)
    first = fingerprint(lm)
    assert first == fingerprint(network(words))
    large = max(lm.denoiser.parameters(), key=lambda one: one.numel())
    large.view(-1)[1] += 1
    assert fingerprint(lm) != first
    assert fingerprint(network(words, attention="causal")) != first
    assert fingerprint(network(words, context=23)) != first


def test_the_harness_may_keep_results_itself(model, backend, tmp_path, tasks):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = []
    for _ in range(2):
        own = backend.Harness(str(model))
        how = {"use_cache": str(tmp_path / "theirs"), "task_manager": manager, "log_samples": False}
        found.append((own, lm_eval.simple_evaluate(model=own, tasks=["choice", "text", "write"], **how)))
    assert found[0][1]["results"] == found[1][1]["results"]
    assert [found[1][0].spent[name].texts for name in ("scored", "written")] == [0, 0]


def test_adapters_change_what_is_said(model, backend, tmp_path):
    asked = [request(backend, "ab", "cd")]
    base = backend.Harness(str(model))
    before = base.loglikelihood(asked)
    adapters.inject(base.model.denoiser, LoraConfig(rank=2))
    adapters.save(base.model.denoiser, tmp_path / "idle", "x")
    for name, one in base.model.denoiser.named_parameters():
        if "lora_" in name:
            one.data = torch.randn(one.shape, generator=torch.Generator().manual_seed(1)) * 0.3
    adapters.save(base.model.denoiser, tmp_path / "trained", "x")
    idle = backend.Harness(str(model), peft=str(tmp_path / "idle")).loglikelihood(asked)
    assert idle[0][0] == pytest.approx(before[0][0], rel=1e-5)
    trained = backend.Harness(str(model), peft=str(tmp_path / "trained")).loglikelihood(asked)
    assert trained[0][0] == pytest.approx(base.loglikelihood(asked)[0][0], rel=1e-4)
    assert abs(trained[0][0] - before[0][0]) > 1e-2
    half = backend.Harness(str(model), dtype="bfloat16").loglikelihood(asked)
    assert half != before


def test_other_noise_writes_and_says_why_it_scores_not(backend, words):
    config = TransformerConfig(processes.uniform(words.K).to_dict(), depth=1, time_conditioned=True)
    lm = LM(Transformer(config).eval(), words, {"context": 10})
    own = backend.Harness(lm, steps=3, length=4)
    assert own.generate_until([request(backend, "ab", {"until": ["zz"]}, task="write")]) != [""]
    with pytest.raises(ValueError, match="uniform process"):
        own.loglikelihood([request(backend, "ab", "c")])


def test_a_missing_library_is_named():
    program = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from redraft.cli import main\nsys.argv = ['redraft', 'lm-eval', 'x', '--tasks', 'y']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'redraft[harness]'" in done.stderr
    assert "Traceback" not in done.stderr
