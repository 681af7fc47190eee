"""``redraft chat``: a conversation in the terminal, drafts changing under one's eyes while an answer is written."""

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.errors import unknown
from redraft.flags import (
    Block,
    Device,
    DeviceMap,
    Family,
    Model,
    Precision,
    PresetName,
    Quantize,
    SamplerName,
    Seed,
    Steps,
    Temperature,
    Words,
    loaded,
)

if TYPE_CHECKING:
    from rich.console import Console

    from redraft.data.chat import Message
    from redraft.lm import LM, Generation
    from redraft.sampling import Step
    from redraft.trace import Trace

LEAVE = "To leave: /quit, or the end of input (Ctrl-D)."


class Talk:
    """A conversation with ``lm``: what was said, and the commands about it.

    Answers go to ``console``, with the drafts on their way where it is a terminal; remarks and errors to ``aside``.
    ``options`` are those of ``lm.chat``; the answer to the n-th message is drawn by ``seed`` + n, asked again or not.
    """

    def __init__(
        self, lm: "LM", console: "Console", aside: "Console", *, seed: int = 0, options: Mapping[str, Any] | None = None
    ) -> None:
        self.lm, self.console, self.aside, self.seed = lm, console, aside, seed
        self.options = dict(options or {})
        self.system = ""
        self.said: list[Message] = []
        self.trace: Trace | None = None
        self._dropped = 0

    @property
    def messages(self) -> "list[Message]":
        """All that was said, the system's message first if there is one."""
        return [*([_message("system", self.system)] if self.system else []), *self.said]

    def hear(self, line: str) -> bool:
        """Take in a line: a command, or a message to answer (``//x`` says ``/x``); whether to go on.

        A mistake is told, and changes nothing; so does an interrupt while an answer is written. What was written by
        then is kept, and that is told.
        """
        before = len(self.said)
        try:
            if line.startswith("/") and not line.startswith("//"):
                name, _, rest = line[1:].partition(" ")
                return self._command(name.strip(), rest.strip())
            if line.strip():
                self._answer(line.removeprefix("/"))
        except ValueError as error:
            self._remark(f"error: {error}")
        except OSError as error:  # a trace that cannot be written
            self._remark(f"error: {error.filename}: {error.strerror}")
        except KeyboardInterrupt:
            kept = "what was answered is kept: /undo forgets it" if len(self.said) > before else "nothing has changed"
            self._remark(f"stopped; {kept}")
        return True

    def _answer(self, text: str) -> None:
        from redraft.trace import Trace

        asked = _message("user", text)
        with _Draft(self.console) as draft:
            trace = Trace(self.lm, callback=draft, title="redraft chat")
            draft.trace = trace
            written = self.lm.chat([*self.messages, asked], seed=self.seed, callback=trace, **self.options)
        trace.finish(written)
        self.trace, self.seed = trace, self.seed + 1
        self.said += [asked, _message("assistant", written.text)]
        self._show(written)

    def _show(self, written: "Generation") -> None:
        from redraft.trace import visible

        text = written.text
        text = visible(text, keep="\n\t") if self.console.is_terminal else text
        self.console.file.write(f"{text}\n")  # print would take a pipe's control characters out
        self.console.file.flush()
        if (dropped := written.dropped or 0) > self._dropped:
            self._remark(f"the context is full: {dropped} earlier exchanges are no longer read")
        self._dropped = dropped

    def _command(self, name: str, rest: str) -> bool:
        if name not in COMMANDS_OF_A_TALK:
            raise unknown("command", f"/{name}", [f"/{one}" for one in COMMANDS_OF_A_TALK])
        run, wants, _ = COMMANDS_OF_A_TALK[name]
        if rest and not wants:
            raise ValueError(f"/{name} {rest}: it takes nothing; leave {rest!r} out")
        run(self, rest)
        return name != "quit"

    def steps(self, number: str) -> None:
        if number and not (number.isdecimal() and int(number)):
            raise ValueError(f"/steps {number}: pass a number of denoising steps from 1, or none for the usual ones")
        self.options["steps"] = int(number) if number else None
        self._remark(f"{number or 'as many as usual'} steps")

    def undo(self, _: str = "") -> None:
        if not self.said:
            raise ValueError("/undo: nothing was said yet")
        del self.said[-2:]
        self.trace, self._dropped = None, 0
        self._remark(f"forgotten; {len(self.said) // 2} exchanges are left")

    def show_trace(self, path: str) -> None:
        from redraft.trace import checked, replay

        if self.trace is None:
            raise ValueError("/trace: there is no answer to show; say something first")
        if path:
            self.trace.save(checked(path, "/trace"))
            self._remark(f"saved in {path}")
        else:
            replay(self.trace.record, self.console)

    def instruct(self, text: str) -> None:
        self.system = text
        self._remark("the system's message is set" if text else "there is no message of the system's")

    def clear(self, _: str = "") -> None:
        self.said, self.trace, self._dropped = [], None, 0
        self._remark("a new conversation" + (", with the system's message" if self.system else ""))

    def help(self, _: str = "") -> None:
        for name, (_run, wants, about) in COMMANDS_OF_A_TALK.items():
            self._remark(f"{f'/{name} {wants}':<16}{about}")
        self._remark(f"{'//TEXT':<16}Say a text that begins with a stroke.")

    def quit(self, _: str = "") -> None:
        """What is after it is for ``hear`` to do."""

    def _remark(self, text: str) -> None:
        self.aside.print(text, style="bright_black", markup=False, highlight=False, soft_wrap=True)


COMMANDS_OF_A_TALK: dict[str, tuple[Callable[[Talk, str], None], str, str]] = {
    "steps": (Talk.steps, "N", "Write answers in N denoising steps; none for the usual ones."),
    "undo": (Talk.undo, "", "Forget the last exchange."),
    "trace": (Talk.show_trace, "FILE", "Show again how the last answer was written, or save it: .json, .html, .png."),
    "system": (Talk.instruct, "TEXT", "Set the system's message; none takes it away."),
    "clear": (Talk.clear, "", "Begin a new conversation."),
    "help": (Talk.help, "", "Show this."),
    "quit": (Talk.quit, "", "Leave."),
}
"""What each runs, what it takes, and what its help says."""


class _Draft:
    """A callback that shows the answer as it changes, on a terminal, and takes it away at the end."""

    def __init__(self, console: "Console") -> None:
        from rich.live import Live

        self.trace: Trace | None = None
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "_Draft":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, step: "Step") -> None:
        from rich.console import Group

        from redraft.trace.terminal import coloured, progress

        if self._live is None or self.trace is None:
            return
        frame = self.trace.frames[-1]
        first = next((place for place, mark in enumerate(frame.marks) if mark != "given"), len(frame.marks))
        self._live.update(Group(progress(frame), coloured(self.trace.record, frame, first)), refresh=True)


def _message(role: str, content: str) -> "Message":
    return {"role": role, "content": content}


def converse(talk: Talk, read: Callable[[], str]) -> None:
    """Hear lines until there are no more or one says to leave; an interrupt between them only says how to."""
    while True:
        try:
            line = read()
        except EOFError:
            return
        except KeyboardInterrupt:
            talk.aside.print(f"\n{LEAVE}", style="bright_black", highlight=False)
            continue
        if not talk.hear(line):
            return


def chat(
    model: Model,
    length: Annotated[int | None, typer.Option(help="Tokens of an answer at most; as usual, or 128.")] = None,
    steps: Steps = None,
    block: Block = None,
    sampler: SamplerName = None,
    temperature: Temperature = None,
    preset: PresetName = None,
    template: Annotated[
        str | None, typer.Option(help="A file with a chat template, Jinja, or plain; the model's own unless given.")
    ] = None,
    turn: Annotated[
        str | None, typer.Option(help="What ends an answer, a token or a text; as the template has it unless given.")
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    tokenizer: Words = None,
    family: Family = None,
    dtype: Precision = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
) -> None:
    """Talk with a model in the terminal. /help shows what can be said beside messages."""
    from rich.console import Console

    from redraft import answering

    if template is not None and Path(template).is_file():
        template = Path(template).read_text("utf-8")
    lm = loaded(model, device, tokenizer, family, dtype, device_map, quantize)
    answering.speaks(lm.tokenizer, lm.about, template, turn)  # refused before anything is said
    asked = {"length": length, "steps": steps, "block": block, "sampler": sampler, "temperature": temperature}
    options = {**asked, "preset": preset, "template": template, "turn": turn}
    talk = Talk(lm, Console(), Console(stderr=True), seed=seed, options=options)
    if not sys.stdin.isatty():
        converse(talk, input)
        return
    with suppress(ImportError):  # lines can be edited and called back where the system has it
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]
    talk.aside.print(f"{LEAVE} Commands: /help.", style="bright_black", highlight=False)
    converse(talk, lambda: input("> "))
    talk.aside.print()  # the line that the end of input left open


COMMANDS = (chat,)
