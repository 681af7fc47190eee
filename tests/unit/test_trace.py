"""The draft on the screen: what each token's mark is, on a terminal, in a pipe and in a picture."""

import io
from contextlib import suppress
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from redraft.data import build_tokenizer
from redraft.sampling import Step
from redraft.trace import SHOWN, Trace, visible

TOY = build_tokenizer("toy")
MASK = TOY.mask_id


def fake(kind="toy", masks=True):
    tokenizer = TOY if kind == "toy" else build_tokenizer(kind)
    return SimpleNamespace(tokenizer=tokenizer, process=SimpleNamespace(mask_id=tokenizer.mask_id if masks else None))


def step(index, steps, *rows, given=()):
    tokens = torch.tensor(rows)
    frozen = torch.zeros_like(tokens, dtype=torch.bool)
    frozen[:, list(given)] = True
    return Step(index, steps, 1 - index / steps, 1 - (index + 1) / steps, tokens, tokens, frozen, index + 1)


def marks(trace):
    return [frame.marks for frame in trace.frames]


def test_masks_are_written_kept_and_rewritten():
    trace = Trace(fake())
    trace(step(0, 4, [0, MASK, 3, MASK], [1, 1, 1, 1], given=[0]))
    trace(step(1, 4, [0, 2, 3, MASK], [1, 1, 1, 1], given=[0]))
    trace(step(2, 4, [0, 5, 3, 4], [1, 1, 1, 1], given=[0]))
    trace(step(0, 4, [2, 2, 2, 2], given=[0]))  # the next part of many rows: its first row is not the first
    trace(step(3, 4, [2, 2, 2, 2], given=[0]))  # and takes longer, for the first had no masks left
    assert marks(trace) == [
        ["given", "mask", "written", "mask"],
        ["given", "written", "kept", "mask"],
        ["given", "rewritten", "kept", "written"],
    ]
    assert [frame.t for frame in trace.frames] == [0.75, 0.5, 0.25]


def test_without_masks_the_first_draft_is_nobodys_change():
    trace = Trace(fake(masks=False))
    trace(step(0, 2, [0, 1, 2]))
    trace(step(1, 2, [0, 1, 3]))
    assert marks(trace) == [["kept"] * 3, ["kept", "kept", "rewritten"]]


def test_given_positions_may_lie_anywhere():
    trace = Trace(fake())
    trace(step(0, 1, [0, 1, 2], given=[1]))
    assert marks(trace) == [["written", "given", "written"]]


def test_finish_adds_a_frame_only_where_the_text_changed():
    trace = Trace(fake(masks=False))
    trace(step(0, 1, [0, 1, 2]))
    trace.finish(torch.tensor([[0, 1, 2]]))
    assert len(trace.frames) == 1
    trace.finish(torch.tensor([[0, 1, 3]]))
    assert [frame.label for frame in trace.frames] == ["step 1/1", "final text"]


def test_a_pipe_gets_a_line_a_step():
    file = io.StringIO()
    with Trace(fake(), Console(file=file)) as trace:
        trace(step(0, 2, [0, MASK, 9]))
        trace(step(1, 2, [0, 10, 9]))
    assert file.getvalue() == "step 1/2  t=0.50  we ░░░ is\nstep 2/2  t=0.00  we are is\n"


def test_a_terminal_shows_the_draft_in_place():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, color_system="standard", legacy_windows=False)
    with Trace(fake(), console) as trace:
        trace(step(0, 2, [0, MASK]))
        trace(step(1, 2, [0, 10]))
    shown = file.getvalue()
    assert "step 2/2  t=0.00" in shown
    assert "\x1b[1A" in shown, "the cursor goes back up"
    assert "\x1b[1;32mare" in shown, "what was written is green"
    assert shown.endswith("\x1b[?25h"), "the cursor is visible again"


def test_the_cursor_comes_back_after_an_interrupt():
    file = io.StringIO()
    trace = Trace(fake(), Console(file=file, force_terminal=True))
    with suppress(KeyboardInterrupt), trace:
        trace(step(0, 2, [0, MASK]))
        raise KeyboardInterrupt
    assert "\x1b[?25h" in file.getvalue()


def test_text_is_never_mark_up():
    file = io.StringIO()
    lm = fake("bytes")
    ids = lm.tokenizer.encode("[red]a[/red]\n\x1b[31mb")
    Trace(lm, Console(file=file))(step(0, 1, [*ids, lm.tokenizer.mask_id]))
    assert file.getvalue() == "step 1/1  t=0.00  [red]a[/red]↵␛[31mb░\n"


@pytest.mark.parametrize("steps", [1, 3, SHOWN, 100])
def test_the_picture_is_svg_with_few_drafts(steps, tmp_path):
    trace = Trace(fake())
    for i in range(steps):
        trace(step(i, steps, [0, MASK] if i < steps - 1 else [0, 10]))
    trace.save_svg(tmp_path / "draft.svg", "a <title>")
    text = (tmp_path / "draft.svg").read_text("utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "&lt;title&gt;" in text
    drafts = "".join(ElementTree.fromstring(text).itertext()).count("t\xa0=\xa0")
    assert drafts == min(steps, SHOWN)
    assert list(tmp_path.iterdir()) == [tmp_path / "draft.svg"]


def test_visible():
    assert visible("a\x1b[0m\x07\x7f\x9b\n\té 漢") == "a␛[0m␇␡�↵␉é 漢"
    assert visible("a\n\tb", keep="\n\t") == "a\n\tb"
