"""Answers to conversations, and the conversation in the terminal, with a model that answers what it is told."""

import io
import json
import re

import pytest
import torch
from rich.console import Console

from redraft import answering, chatting, processes
from redraft.data import build_tokenizer
from redraft.lm import LM
from redraft.models.families import FAMILIES
from redraft.processes import Facts
from redraft.trace import load

EOS, MASK = 256, 257
ASKS = list(b"Assistant:")


class Backwards:
    """Answers the last message letter by letter from its end, in the words of the plain template."""

    def __init__(self):
        self.process = processes.masked(257)
        self.facts = Facts(mask_id=MASK)
        self.prompts = []

    def __call__(self, z, t, cond=None):
        logp = torch.full((*z.shape, 257), -30.0)
        for row, ids in zip(logp, z.tolist(), strict=True):
            begin = max(i for i in range(len(ids)) if ids[i : i + len(ASKS)] == ASKS) + len(ASKS)
            prompt = bytes(i for i in ids[:begin] if i < 256).decode()
            self.prompts.append(prompt)
            message = prompt.rsplit("User: ", 1)[1].removesuffix("\n\nAssistant:")
            answer = [*b" ", *message[::-1].encode(), *[EOS] * len(ids)][: len(ids) - begin]
            row[range(begin, len(ids)), answer] = 0.0
        return logp.log_softmax(-1)


@pytest.fixture
def lm():
    return LM(Backwards(), build_tokenizer("bytes"), {"context": 200})


def talk(*contents, system=None):
    said = [{"role": ("user", "assistant")[i % 2], "content": one} for i, one in enumerate(contents)]
    return said if system is None else [{"role": "system", "content": system}, *said]


def ask(lm, messages, **options):
    return lm.chat(messages, **{"template": "plain", "steps": 4, **options})


# ------------------------------------------------------------------------------------------------------- one answer


def test_the_answer_is_the_text_alone(lm):
    made = ask(lm, talk("hello", "olleh", "abc"), num=2)
    assert made.texts == ["cba", "cba"]
    assert made.dropped == 0
    assert lm.denoiser.prompts[0] == "User: hello\n\nAssistant: olleh\n\nUser: abc\n\nAssistant:"
    assert lm.decode(made.rows[0]).endswith("Assistant: cba")
    assert len(made.rows[0]) == len("User: hello\n\nAssistant: olleh") + 1 + len("\n\nUser: abc\n\nAssistant: cba") + 1
    assert made.to_dict()["dropped"] == 0
    assert made.to_dict()["samples"][0]["text"] == "cba"


def test_an_answer_is_at_most_as_long_as_asked(lm):
    assert ask(lm, talk("abcdefgh"), length=4).text == "hgf"
    assert ask(lm, talk("abcdefgh")).tokens.shape[1] == len("User: abcdefgh\n\nAssistant:") + 100, "half the context"
    lm.context = 400
    assert ask(lm, talk("abcdefgh")).tokens.shape[1] == len("User: abcdefgh\n\nAssistant:") + 128


def test_options_are_those_of_generate(lm):
    assert ask(lm, talk("abc"), steps=2).samples.nfe == 2
    assert ask(lm, talk("abc"), seed=3).samples.seeds != ask(lm, talk("abc"), seed=4).samples.seeds
    lm.about["decoding"] = {"length": 5, "block": 2, "stop": True, "sampler": "low_confidence"}
    made = ask(lm, talk("abcdef"))
    assert made.text == "fedc", "the family's length, and its end of text gives way to the turn"
    assert made.samples.nfe > ask(lm, talk("abcdef"), block=5).samples.nfe
    assert ask(lm, talk("abcdef"), preset="dream").tokens.shape[1] == len("User: abcdef\n\nAssistant:") + 100
    with pytest.raises(ValueError, match="unknown preset"):
        ask(lm, talk("abc"), preset="draem")


def test_a_mask_that_is_spelled_is_no_mask(lm):
    made = ask(lm, talk("[MASK][EOS]"))
    prompt = made.tokens[0, : len("User: [MASK][EOS]\n\nAssistant:")]
    assert not torch.isin(prompt, torch.tensor([MASK, EOS])).any()
    assert made.text == "]SOE[]KSAM["


def test_the_oldest_exchanges_give_way_and_the_system_stays(lm):
    """Of 96 tokens 20 are for the answer; an exchange takes 40 to 42, the system's message 13, the question 28."""
    said = ["first one!", "answer one", "secondone!", "answer two", "third one!"]
    long = talk(*said, system="sys")
    lm.context = 96
    made = ask(lm, long, length=20)
    assert made.dropped == 2
    assert lm.denoiser.prompts[-1] == "System: sys\n\nUser: third one!\n\nAssistant:"
    lm.context = (
        20 + len("System: sys\n\nUser: secondone!\n\nAssistant: answer two\n\nUser: third one!\n\nAssistant:") + 1
    )
    made = ask(lm, long, length=20)
    assert made.dropped == 1
    assert lm.denoiser.prompts[-1].startswith("System: sys\n\nUser: secondone!")
    lm.context -= 1
    assert ask(lm, long, length=20).dropped == 2
    lm.context = 200
    assert ask(lm, long, length=20).dropped == 0


def test_two_messages_in_a_row_are_one_exchange(lm):
    lm.context = 96
    messages = [*talk("a" * 30, "b" * 10), *talk("c"), *talk("dd")]
    assert ask(lm, messages, length=40).dropped == 1
    assert lm.denoiser.prompts[-1] == "User: c\n\nUser: dd\n\nAssistant:"
    with pytest.raises(ValueError, match="asks with 29 tokens, and the answer leaves room for 28"):
        ask(lm, messages, length=68)


def test_what_cannot_be_answered(lm):
    for options, say in [
        ({"length": 0}, "length=0: pass from 1 to 199"),
        ({"length": 200}, "length=200: pass from 1 to 199"),
        ({"length": 190}, "asks with 19 tokens, and the answer leaves room for 10"),
        ({"stop": 3}, "pass turn="),
        ({"strength": 0.5}, "use edit"),
        ({"template": None}, "no chat template"),
        ({"turn": "[EOT]"}, r"ends no answer with '\[EOT\]'"),
    ]:
        with pytest.raises(ValueError, match=say):
            ask(lm, talk("a"), **options)
    with pytest.raises(ValueError, match="is the assistant's"):
        ask(lm, talk("a", "b"))


def test_a_turn_of_ones_own(lm):
    assert ask(lm, talk("ab"), turn="[EOS]").text == "ba"
    until = (
        "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}{% if m.role == 'assistant' %}ba{% endif %}"
    )
    until += "{{ '\\n\\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    assert ask(lm, talk("xabc"), template=until, turn="ba").text == "c"


def test_families_have_their_own_words():
    words = build_tokenizer("bytes")
    bert = answering.speaks(words, {"family": "bert"}, None, None)
    assert (bert.template, bert.turn, bert.turn_id) == (FAMILIES["bert"].template, "[/Answer]", None)
    assert answering.speaks(words, {"family": "bert"}, None, "/Answer]").turn == "/Answer]"
    assert answering.speaks(words, {"family": "bert"}, "plain", None).turn == "[EOS]", "a template brings its turn"
    with pytest.raises(ValueError, match="no chat template"):
        answering.speaks(words, {"family": "dream"}, None, None)


# ------------------------------------------------------------------------------------------------- the conversation


class Lines:
    """What a user types; an exception is raised in its place."""

    def __init__(self, *lines):
        self._lines = iter(lines)

    def __call__(self):
        line = next(self._lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line


class Screen:
    """Two consoles, and what was printed on them."""

    def __init__(self, terminal=False):
        self.console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
        self.aside = Console(file=io.StringIO(), width=80)

    @property
    def said(self):
        return self.console.file.getvalue()

    @property
    def remarks(self):
        return self.aside.file.getvalue()


def converse(lm, *lines, terminal=False, **options):
    screen = Screen(terminal)
    asked = {"template": "plain", "steps": 4} | options
    one = chatting.Talk(lm, screen.console, screen.aside, options=asked)
    chatting.converse(one, Lines(*lines))
    return one, screen


def test_a_conversation(lm):
    one, screen = converse(lm, "abc", "", "  ", "hello")
    assert screen.said == "cba\nolleh\n"
    assert screen.remarks == ""
    assert one.messages == talk("abc", "cba", "hello", "olleh")
    assert lm.denoiser.prompts[-1] == "User: abc\n\nAssistant: cba\n\nUser: hello\n\nAssistant:"


def test_quit_leaves_and_the_rest_is_not_read(lm):
    assert converse(lm, "/quit", "abc")[1].said == ""
    assert converse(lm, " /help", "//quit", "abc")[1].said == "pleh/\ntiuq/\ncba\n", "a blank or a second stroke: text"


def test_steps(lm):
    one, screen = converse(lm, "/steps 2", "abc")
    assert one.trace.record.cost["nfe"] == 2
    assert "2 steps" in screen.remarks
    one, _ = converse(lm, "/steps 2", "/steps", "abc")
    assert one.options["steps"] is None
    assert one.trace.record.cost["nfe"] > 4
    for wrong in ("0", "-3", "two", "1.5"):
        one, screen = converse(lm, f"/steps {wrong}")
        assert f"error: /steps {wrong}: pass a number" in screen.remarks
        assert one.options["steps"] == 4


def test_undo(lm):
    one, screen = converse(lm, "abc", "hello", "/undo", "xy")
    assert one.messages == talk("abc", "cba", "xy", "yx")
    assert "1 exchanges are left" in screen.remarks
    one, screen = converse(lm, "abc", "/undo", "/undo", "/trace")
    assert one.messages == []
    assert "error: /undo: nothing was said yet" in screen.remarks
    assert "error: /trace: there is no answer to show" in screen.remarks


def test_what_is_said_again_is_answered_anew(lm, monkeypatch):
    seeds = list[int]()
    chat = LM.chat
    monkeypatch.setattr(LM, "chat", lambda self, *a, **o: seeds.append(o["seed"]) or chat(self, *a, **o))
    converse(lm, "abc", "/undo", "abc", "no" * 99, "abc")
    assert seeds == [0, 1, 2, 2], "what failed was no answer"


def test_system_and_clear(lm):
    one, screen = converse(lm, "/system be brief", "abc", "/clear", "xy")
    assert lm.denoiser.prompts[-1] == "System: be brief\n\nUser: xy\n\nAssistant:"
    assert one.messages == talk("xy", "yx", system="be brief")
    assert "with the system's message" in screen.remarks
    one, _ = converse(lm, "/system be brief", "/system", "abc")
    assert one.messages == talk("abc", "cba")


def test_trace(lm, tmp_path):
    one, screen = converse(lm, "abc", "/trace")
    assert screen.said.startswith("cba\nstep 1/4")
    assert f"{one.trace.record.cost['nfe']} denoiser calls" in screen.said
    path = tmp_path / "answer.json"
    one, screen = converse(lm, "abc", "hello", f"/trace {path}")
    assert f"saved in {path}" in screen.remarks
    assert load(path).rows[0].frames[-1].ids == one.trace.frames[-1].ids
    assert json.loads(path.read_text())["title"] == "redraft chat"
    screen = converse(lm, "abc", "/trace x.txt", f"/trace {tmp_path}/no/x.json", "/clear", "/trace")[1]
    assert screen.remarks.count("error: /trace") == 3


def test_unknown_commands(lm):
    _, screen = converse(lm, "/stesp 3", "/", "/clear now", "abc")
    assert "error: unknown command '/stesp'; did you mean '/steps'?" in screen.remarks
    assert "error: unknown command '/'" in screen.remarks
    assert "error: /clear now: it takes nothing" in screen.remarks
    assert screen.said == "cba\n"


def test_help_names_every_command(lm):
    remarks = converse(lm, "/help")[1].remarks
    assert all(f"/{name} " in remarks for name in chatting.COMMANDS_OF_A_TALK)
    assert {line.split()[0] for line in remarks.splitlines()} == {f"/{c}" for c in chatting.COMMANDS_OF_A_TALK} | {
        "//TEXT"
    }


def test_a_mistake_is_told_and_nothing_is_said(lm):
    one, screen = converse(lm, "abc", "x" * 99, "xy")
    assert "error: the last message asks with" in screen.remarks
    assert one.messages == talk("abc", "cba", "xy", "yx")


def test_interrupts(lm, monkeypatch):
    one, screen = converse(lm, KeyboardInterrupt(), "abc")
    assert chatting.LEAVE in screen.remarks
    assert screen.said == "cba\n"
    once = iter([KeyboardInterrupt()])
    answer = Backwards.__call__

    def stopped(self, *args, **more):
        for error in once:
            raise error
        return answer(self, *args, **more)

    monkeypatch.setattr(Backwards, "__call__", stopped)
    one, screen = converse(lm, "abc", "xy", terminal=True)
    assert "stopped" in screen.remarks
    assert one.messages == talk("xy", "yx")
    assert screen.said.count("\x1b[?25l") == screen.said.count("\x1b[?25h") > 0, "the cursor is back"


def test_an_interrupt_while_the_answer_is_shown(lm, monkeypatch):
    """The exchange counts by then, and that is what is said."""
    once = iter([KeyboardInterrupt()])
    show = chatting.Talk._show

    def stopped(self, written):
        for error in once:
            raise error
        show(self, written)

    monkeypatch.setattr(chatting.Talk, "_show", stopped)
    one, screen = converse(lm, "abc", "xy")
    assert one.messages == talk("abc", "cba", "xy", "yx")
    assert "nothing has changed" not in screen.remarks
    assert "stopped; what was answered is kept: /undo forgets it" in screen.remarks


def test_what_is_no_longer_read_is_told_once_for_each(lm):
    lm.context = 96
    lines = ["a" * 20, "b", "c", "d", "e", "/undo", "e"]
    told = [line for line in converse(lm, *lines, length=20)[1].remarks.splitlines() if "no longer read" in line]
    assert told == [f"the context is full: {n} earlier exchanges are no longer read" for n in (1, 2, 2)]


def test_drafts_stream_on_a_terminal_and_control_characters_do_not(lm):
    said = converse(lm, "\x07abc\x1b", terminal=True)[1].said
    drafts, answer = (re.sub(r"\x1b\[[\d;]*m", "", part) for part in said.split("\x1b[?25h"))
    assert "step 1/4" in drafts
    assert "step 2/4" in drafts
    assert "░" in drafts
    assert "User: " not in drafts, "the draft is of the answer"
    assert "\x1b[2K" in answer, "the draft is taken away for the answer"
    assert answer.endswith("␛cba␇\n")
    assert "step" not in converse(lm, "abc")[1].said
    assert converse(lm, "\x07abc")[1].said == "cba\x07\n", "a pipe gets the text as it is"


def test_a_preset_is_passed_on(monkeypatch, lm):
    from typer.testing import CliRunner

    from redraft.cli import app

    asked = []
    monkeypatch.setattr(chatting, "loaded", lambda *_: lm)
    monkeypatch.setattr(chatting.Talk, "hear", lambda self, _: asked.append(self.options["preset"]))
    CliRunner().invoke(app, ["chat", "x", "--template", "plain", "--preset", "llada"], input="hi\n")
    assert asked == ["llada"]
