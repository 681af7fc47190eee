"""lm-evaluation-harness runs its own tasks on redraft's models: answers known exactly, however many at a time."""

import math
import subprocess
import sys

import pytest
import torch
from letters import QUESTIONS, REMARKS, TEXTS, network, request

from redraft import LM, processes
from redraft.data import build_tokenizer
from redraft.models import Transformer, TransformerConfig

pytestmark = REMARKS


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
