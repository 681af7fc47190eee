"""``redraft chat``, as a user talks to it: through a pipe and on a terminal."""

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from parity import checkpoints
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from typer.testing import CliRunner

import redraft
from redraft.cli import app
from redraft.data.tokenizers import BYTE_OF
from redraft.trace import load

SPECIALS = {256: "<|startoftext|>", 257: "<|endoftext|>", 258: "<|mdm_mask|>", 259: "<|start_header_id|>",
            260: "<|end_header_id|>", 261: "<|eot_id|>"}  # fmt: skip
ROWS = 272
SHIPPED = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + "
    "'<|eot_id|>' }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


@pytest.fixture(scope="module")
def llada(tmp_path_factory):
    """A tiny LLaDA in its own layout, with its special tokens and the template it is shipped with."""
    folder = tmp_path_factory.mktemp("hub") / "llada"
    ids = {"vocab_size": ROWS, "embedding_size": ROWS, "mask_token_id": 258, "eos_token_id": 257, "pad_token_id": 257}
    config = checkpoints.LLADA | ids | {"max_sequence_length": 160}
    checkpoints.write(folder, config, checkpoints.llada_shapes(config))
    backend = Tokenizer(models.BPE(vocab=dict(BYTE_OF), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS.values()])
    backend.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIALS[256], "eos_token": SPECIALS[257]}
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"chat_template": SHIPPED}))
    return folder


def talk(text, *args):
    return CliRunner().invoke(app, ["chat", *map(str, args)], input=text)


def user(text):
    return [{"role": "user", "content": text}]


def test_a_family_is_talked_to_in_its_own_words(llada):
    lm = redraft.load(llada)
    made = lm.chat(user(" hi <|eot_id|>"), length=16, block=8)
    header = [[259, *b"user", 260, *b"\n\n"], [259, *b"assistant", 260, *b"\n\n"]]
    prompt = [256, *header[0], *b"hi <|eot_id|>", 261, *header[1]]
    assert made.tokens[0, : len(prompt)].tolist() == prompt, "trimmed, begun once, and what is spelled is text"
    assert made.tokens.shape[1] == len(prompt) + 16
    assert lm.chat(user("hi")).tokens.shape[1] == len(prompt) - len(b" <|eot_id|>") + 80, "half the context"
    assert lm.chat(user("hi"), length=16, template="plain").tokens[0, :6].tolist() == [*b"User: "]
    again = [lm.chat(user("hi"), length=16, seed=seed).tokens.tolist() for seed in (0, 1)]
    assert again[0] == again[1], "at temperature 0, as its authors write"


def test_a_conversation_through_a_pipe(llada):
    lm = redraft.load(llada)
    first = lm.chat(user("hi"), length=12, seed=3).text
    asked = [*user("hi"), {"role": "assistant", "content": first}, *user("and?")]
    second = lm.chat(asked, length=12, seed=4).text
    done = talk("hi\nand?\n", llada, "--length", 12, "--seed", 3)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{first}\n{second}\n"
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    "option", [("--steps", 1), ("--block", 4), ("--sampler", "ancestral"), ("--temperature", 9), ("--length", 5)]
)
def test_options_change_the_answer(llada, option):
    usual = ["--length", 12] if option[0] != "--length" else []
    plain, other = talk("hi\n", llada, *usual), talk("hi\n", llada, *usual, *option)
    assert plain.exit_code == other.exit_code == 0
    assert plain.stdout != other.stdout


def test_a_seed_decides_the_answers(llada):
    def said(seed):
        return talk("hi\n", llada, "--length", 12, "--temperature", 1, "--seed", seed).stdout

    assert said(1) == said(1) != said(2)


def test_templates(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t.jinja"
    model, short = models("masked", "bytes"), ["--length", 3, "--steps", 2]
    told = {"plain": "User: h\n\nAssistant:", "file": "h|"}
    path.write_text(
        "{% for m in messages %}{{ m.content }}|{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    for template, prompt in (("plain", told["plain"]), (path, told["file"])):
        done = talk("h\n/trace x.json\n", model, *short, "--template", template)
        assert done.exit_code == 0, done.stderr
        frame = load("x.json").rows[0].frames[0]
        assert bytes(frame.ids[: frame.marks.count("given")]).decode() == prompt
    path.write_text("{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}")
    done = talk("h\n", model, *short, "--template", path)
    assert done.exit_code == 2
    assert "beginning of what has it" in done.stderr
    done = talk("hi\n", model)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: the tokenizer has no chat template: pass template=")
    assert done.stdout == ""
    assert "unknown chat template 'plian'; did you mean 'plain'" in talk("hi\n", model, "--template", "plian").stderr


def test_a_turn_of_ones_own(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t.jinja"
    path.write_text(
        "{% for m in messages %}{{ 'A:' + m.content + '##' if m.role == 'assistant' else m.content + '|' }}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    model, short = models("masked", "bytes"), ["--length", 3, "--steps", 2]
    done = talk("h\n", model, *short, "--template", path)
    assert done.exit_code == 2
    assert "pass turn=" in done.stderr
    done = talk("h\n/trace x.json\n", model, *short, "--template", path, "--turn", "##")
    assert done.exit_code == 0, done.stderr
    frame = load("x.json").rows[0].frames[0]
    assert bytes(frame.ids[: frame.marks.count("given")]).decode() == "h|A:"
    done = talk("h\n", model, *short, "--template", path, "--turn", "#?")
    assert done.exit_code == 2
    assert "ends no answer with '#?'" in done.stderr


def test_commands_and_mistakes_through_a_pipe(llada, tmp_path):
    path = tmp_path / "x.json"
    lines = ["hi", f"/trace {path}", "/steps 1", "/stpes 2", "/undo", "x" * 200, "/quit", "not read"]
    done = talk("\n".join(lines), llada, "--length", 12)
    assert done.exit_code == 0
    assert done.stdout.rstrip("\n") == redraft.load(llada).chat(user("hi"), length=12).text
    assert "did you mean '/steps'?" in done.stderr
    assert "error: the last message asks with" in done.stderr
    written = redraft.load(llada).chat(user("hi"), length=12)
    assert list(load(path).rows[0].frames[-1].ids) == written.tokens[0].tolist()


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_on_a_terminal(llada):
    """Drafts change in place, Ctrl-C at the prompt says how to leave, and Ctrl-D leaves."""
    import pty

    command = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from redraft.cli import main; main()"
    )
    master, slave = pty.openpty()
    args = [sys.executable, "-c", command, "chat", str(llada), "--length", "12"]
    child = subprocess.Popen(
        args, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=os.environ | {"TERM": "xterm"}
    )
    os.close(slave)
    said = ""

    def until(word, nudge=lambda: None):
        """What is said up to a word; ``nudge`` is done every second that nothing is."""
        nonlocal said
        for _ in range(120):
            if word in said:
                found, said = said, said.split(word, 1)[1]
                return found
            if select.select([master], [], [], 1.0)[0]:
                said += os.read(master, 4096).decode("utf-8", "replace")
            else:
                nudge()
        child.kill()
        raise AssertionError(f"{word!r} was not said, but {said!r}")

    until("/help")
    until("> ")
    os.write(master, b"hi\n")
    drafts = until("\x1b[?25h")
    until("> ")
    # one that comes between the prompt and the wait for a line is heard with the next
    until("To leave: /quit", lambda: child.send_signal(signal.SIGINT))
    until("> ")
    for _ in range(60):  # what is typed before the wait for a line is not always heard either
        os.write(master, b"\x04")
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=1)
            break
    assert child.wait(timeout=30) == 0
    assert "step 1/" in drafts
    os.close(master)
