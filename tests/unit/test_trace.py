"""What a trace records of a draw, against what ``sample`` returns; and the draft on the screen."""

import io
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from redraft import processes, writing
from redraft.data import build_tokenizer
from redraft.lm import LM
from redraft.models import Transformer, TransformerConfig
from redraft.sampling import Step, sample, semi_autoregressive
from redraft.sampling.growth import Elastic, Growth, elastic, grown
from redraft.sampling.steps import Ancestors, Halt
from redraft.trace import Trace, replay, visible
from redraft.trace.record import carried
from redraft.trace.recorder import MOST

TOY = build_tokenizer("toy")
MASK = TOY.mask_id
PROCESS = processes.masked(TOY.K)
UNIFORM = processes.uniform(TOY.K)


def fake(kind="toy", masks=True):
    tokenizer = TOY if kind == "toy" else build_tokenizer(kind)
    return SimpleNamespace(tokenizer=tokenizer, process=SimpleNamespace(mask_id=tokenizer.mask_id if masks else None))


def step(index, steps, *rows, given=(), **more):
    tokens = torch.tensor(rows)
    frozen = torch.zeros_like(tokens, dtype=torch.bool)
    frozen[:, list(given)] = True
    return Step(index, steps, 1 - index / steps, 1 - (index + 1) / steps, tokens, tokens, frozen, index + 1, **more)


def network(process=PROCESS, attention="full", block=None) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(process.to_dict(), depth=1, attention=attention, block=block)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


FULL, BLOCKS = network(), network(attention="block", block=2)
NOISED = network(UNIFORM)


def marks(trace, row=0):
    return [list(frame.marks) for frame in trace.record.rows[row].frames]


def drafts(trace, row=0):
    return [list(frame.ids) for frame in trace.record.rows[row].frames]


def consistent(trace, samples, widths=None):
    """The last frames are the texts, the marks say what changed, and the step map points at what wrote a token."""
    mask = trace.record.mask
    for number, row in trace.record.rows.items():
        width = samples.tokens.shape[1] if widths is None else widths[number]
        assert list(row.frames[-1].ids) == samples.tokens[number, :width].tolist()
        for frame, before in zip(row.frames[1:], row.frames, strict=False):
            assert len(frame.ids) == len(frame.marks) == len(frame.confidence) == len(frame.entropy)
            for i, mark in enumerate(frame.marks) if len(frame.ids) == len(before.ids) else []:
                was, now = before.ids[i], frame.ids[i]
                assert (mark in ("kept", "given", "mask")) == (was == now)
                assert (mark == "taken") == (was != mask == now)
                assert (mark == "rewritten") == (was != now and mask not in (was, now))
        for i, number in enumerate(row.step_map()):
            frame = row.frames[number]
            since = {one.ids[i] for one in row.frames[max(0, number) :]}
            assert since == {row.frames[-1].ids[i]}, "nothing wrote it since"
            assert number < 0 or frame.marks[i] in ("written", "rewritten") or (mask is None and not number)


def test_masks_are_written_kept_rewritten_and_taken_back():
    trace = Trace(fake())
    trace(step(0, 4, [0, MASK, 3, MASK, MASK], given=[0]))
    trace(step(1, 4, [0, 2, 3, MASK, MASK], given=[0]))
    trace(step(2, 4, [0, 5, MASK, 4, MASK], given=[0]))
    trace(step(3, 4, [0, 5, MASK, 4, 1], given=[0]))
    assert marks(trace) == [
        ["given", "mask", "written", "mask", "mask"],
        ["given", "written", "kept", "mask", "mask"],
        ["given", "rewritten", "taken", "written", "mask"],
        ["given", "kept", "mask", "kept", "written"],
    ]
    assert [(frame.t, frame.s) for frame in trace.frames] == [(1, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0)]
    assert [frame.nfe for frame in trace.frames] == [1, 2, 3, 4]
    assert trace.frames[2].written == [1, 3]
    assert (trace.frames[2].rewritten, trace.frames[2].taken) == ([1], [2])
    assert trace.step_map() == [-1, 2, -1, 2, 3]
    assert trace.record.rows[0].standing()[2].wrote == (-1, 2, -1, 2, -1), "no step wrote a mask"


def test_without_masks_the_first_draft_is_nobodys_change():
    trace = Trace(fake(masks=False))
    trace(step(0, 2, [0, 1, 2]))
    trace(step(1, 2, [0, 1, 3]))
    assert marks(trace) == [["kept"] * 3, ["kept", "kept", "rewritten"]]
    assert trace.step_map() == [0, 0, 1], "what noise nobody saw became was drawn by the first step"


def test_what_stays_of_a_text_that_is_redrafted_was_not_written():
    trace = Trace(fake(), before=[0, 1, 2])
    trace(step(0, 2, [0, 4, MASK]))
    trace(step(1, 2, [0, 4, 2]))
    assert marks(trace) == [["kept", "rewritten", "taken"], ["kept", "kept", "written"]]
    assert trace.step_map() == [-1, 0, 1]


def test_given_positions_may_lie_anywhere():
    trace = Trace(fake())
    trace(step(0, 1, [0, 1, 2], given=[1]))
    assert marks(trace) == [["written", "given", "written"]]


def test_confidence_and_entropy_are_of_the_positions_asked_about():
    logp = torch.tensor([[0.5, 0.25, 0.25], [0.123456, 0.5, 0.376544]]).log()
    asked = torch.tensor([[False, True, True]])
    trace = Trace(fake())
    trace(replace(step(0, 1, [0, 1, MASK], given=[0]), _said=(logp, asked)))
    frame = trace.frames[0]
    assert frame.confidence == (None, 0.25, None), "there is none of a mask"
    assert frame.entropy == (None, 1.04, 0.9726), "4 significant digits"
    trace(replace(step(1, 1, [0, 0, 0], given=[0]), _said=(logp, asked)))
    assert trace.frames[1].confidence == (None, 0.5, 0.1235)
    standing = trace.record.rows[0].standing()
    assert [one.sure for one in standing] == [(None, 0.25, None), (None, 0.5, 0.1235)]
    trace(step(2, 1, [0, 0, 1], given=[0]))
    assert trace.record.rows[0].standing()[2].sure == (None, 0.5, None), "kept, and written without a word"


@pytest.mark.parametrize("sampler", ["ancestral", "low_confidence", "threshold:tau=0.2", "remdm:eta=0.3"])
def test_ragged_rows_are_recorded_each_for_itself(sampler):
    trace = Trace(fake())
    prompts, lengths = [[1, 2], [3], [1], [], [1, 2]], [4, 3, 5, 6, 4]
    found = sample(PROCESS, FULL, prompt=prompts, length=lengths, sampler=sampler, callback=trace, seed=3)
    trace.finish(found)
    widths = [len(p) + n for p, n in zip(prompts, lengths, strict=True)]
    assert sorted(trace.record.rows) == [0, 1, 2, 3, 4]
    consistent(trace, found, widths)
    for number, (prompt, seed) in enumerate(zip(prompts, found.seeds, strict=True)):
        row = trace.record.rows[number]
        assert row.seed == seed
        assert row.length == widths[number]
        assert row.calls == found.cost.of_rows[number]
        assert row.step_map()[: len(prompt)] == [-1] * len(prompt)
        alone = Trace(fake())
        one = sample(
            PROCESS, FULL, prompt=prompt, length=lengths[number], sampler=sampler, callback=alone, seeds=[seed]
        )
        alone.finish(one)
        kept = alone.record.rows[0].frames
        assert [replace(a, nfe=0) for a in row.frames] == [replace(b, nfe=0) for b in kept]
    assert trace.record.cost == {
        name: value for name, value in found.cost.to_dict().items() if name in trace.record.cost
    }
    assert "tokens per forward" in trace.record.summary(0)


def test_log_p_of_the_samples_is_the_confidence_when_last_written():
    trace = Trace(fake())
    found = sample(PROCESS, FULL, length=6, num=2, sampler="low_confidence", callback=trace)
    trace.finish(found)
    for number in (0, 1):
        sure = trace.record.rows[number].standing()[-1].sure
        assert sure == pytest.approx(found.logp[number].exp().tolist(), rel=1e-3)


@pytest.mark.parametrize("cache", [None, "dual"])
def test_blocks_are_seen_as_steps_of_the_whole_text(cache):
    trace = Trace(fake())
    found = sample(PROCESS, FULL, prompt=[[1], [2, 3]], length=5, block=3, cache=cache, callback=trace)
    trace.finish(found)
    consistent(trace, found, [6, 7])
    assert trace.record.approximate == (cache is not None)
    assert ("approximate cache" in trace.record.summary(0)) == (cache is not None)
    first = trace.record.rows[0].frames[0]
    assert first.places("mask"), "later blocks are masked"
    assert max(trace.step_map(0)[1:4]) < min(trace.step_map(0)[4:]), "block after block"
    assert all(p is not None for p in trace.record.rows[1].standing()[-1].sure[2:])


def test_a_block_model_ends_blocks_early():
    trace = Trace(fake())
    found = sample(PROCESS, BLOCKS, length=6, num=3, sampler="threshold:tau=0.1", callback=trace)
    trace.finish(found)
    consistent(trace, found)


def test_windows_are_put_together():
    trace = Trace(fake())
    found = semi_autoregressive(
        PROCESS, FULL, window=6, stride=3, length=12, num=2, prompt=[1, 2], steps=5, callback=trace
    )
    trace.finish(found)
    consistent(trace, found)
    row = trace.record.rows[1]
    assert sorted({len(frame.ids) for frame in row.frames}) == [6, 9, 12, 14]
    assert len(row.frames[-1].ids) == 14
    assert row.step_map()[:3] == [-1, -1, row.step_map()[2]]
    assert min(row.step_map()[2:]) >= 0, "what a window takes as given was written by the one before"
    assert [frame.nfe for frame in row.frames] == sorted(frame.nfe for frame in row.frames)
    assert row.frames[-1].nfe == found.nfe
    assert all(frame.places("given") == [0, 1] for frame in row.frames), "to a window all before it is given"
    with pytest.raises(ValueError, match="begins at 3"):
        Trace(fake())(step(0, 1, [1, 2], offset=3))


def test_parts_of_many_rows_have_their_own_numbers(monkeypatch):
    monkeypatch.setattr(writing, "POSITIONS_AT_ONCE", 12)
    lm = LM(FULL, TOY, {"context": 6})
    trace = Trace(lm)
    found = lm.generate(num=5, steps=3, callback=trace)
    trace.finish(found)
    assert sorted(trace.record.rows) == [0, 1, 2, 3, 4]
    consistent(trace, found.samples)
    trace = Trace(lm)
    found = lm.generate(["our", "we we"], length=8, stride=2, num=2, steps=3, callback=trace)
    trace.finish(found)
    consistent(trace, found.samples, found.samples.lengths)


def test_lengths_that_were_tried_are_rows():
    lm = LM(FULL, TOY, {"context": 6})
    trace = Trace(lm)
    found = lm.infill("our [MASK:1-3]", num=2, callback=trace)
    trace.finish(found)
    assert sorted(trace.record.rows) == list(range(6))
    assert trace.record.cost is not None


@pytest.mark.parametrize("seed", range(3))
def test_texts_that_grow_are_followed(seed):
    trace = Trace(fake())
    growth = Growth(start=3, append=2, expand=3, tail=2, weak=0.5)
    found = grown(PROCESS, FULL, stop=2, length=12, growth=growth, prompt=[[1], [3, 4]], seed=seed, callback=trace)
    trace.finish(found)
    for number, row in trace.record.rows.items():
        assert list(row.frames[-1].ids) == found.tokens[number, : len(row.frames[-1].ids)].tolist()
        assert row.frames[0].marks[0] == "given"
        rewritten = [mark for frame in row.frames for mark in frame.marks if mark in ("rewritten", "taken")]
        assert not rewritten or found.lengths[number] < len(row.frames[-1].ids), "only what stands behind the end"


def test_positions_that_come_and_go_are_followed():
    trace, marked = Trace(fake()), Elastic(expand=5, delete=(6,), budget=4)
    canvas, frozen = torch.full((6,), 7), torch.tensor([True, False, False, True, False, True])
    canvas[[0, 3, 5]] = torch.tensor([0, 1, 2])
    elastic(PROCESS, FULL, canvas=canvas, frozen=frozen, marks=marked, num=4, callback=trace, temperature=3.0)
    lengths = {len(frame.ids) for row in trace.record.rows.values() for frame in row.frames}
    assert len(lengths) > 1
    for row in trace.record.rows.values():
        assert all(frame.marks[0] == frame.marks[-1] == "given" for frame in row.frames)
        assert all(frame.marks.count("given") == 3 for frame in row.frames)


@pytest.mark.parametrize(
    ("old", "new", "origin"),
    [
        ("abc", "xyz", [0, 1, 2]),
        ("ab", "abc", [0, 1, None]),
        ("ab..", "ab....", [0, 1, 2, 3, None, None]),
        ("a..cd", "ax...cd", [0, None, 1, 2, None, 3, 4]),
        ("a.c.e", "a..c..e", [0, 1, None, 2, 3, None, 4]),
        ("abcd", "abd", [0, 1, 3]),
        ("abcd", "ab", [0, 1]),
        ("", "a", [None]),
    ],
)
def test_where_positions_were(old, new, origin):
    found = carried([ord(one) for one in old], [ord(one) for one in new])
    assert len(found) == len(new)
    at = [j for j in found if j is not None]
    assert at == sorted(set(at)), "order is kept"
    agreeing = sum(j is not None and old[j] == now for now, j in zip(new, found, strict=True))
    assert agreeing == sum(j is not None and old[j] == now for now, j in zip(new, origin, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.text("ab.", max_size=12), st.text("ab.", max_size=12))
def test_positions_are_carried_in_order(old, new):
    found = carried([ord(one) for one in old], [ord(one) for one in new])
    at = [j for j in found if j is not None]
    assert len(found) == len(new)
    assert at == sorted(set(at))
    assert all(0 <= j < len(old) for j in at)


@pytest.mark.parametrize("sampler", ["remdm:strategy=rescale,eta=0.5", "threshold:tau=0.2+edit:tau=0.0"])
def test_revisions_are_recognised(sampler):
    trace = Trace(fake())
    found = sample(PROCESS, FULL, length=8, num=4, steps=8, sampler=sampler, callback=trace)
    trace.finish(found)
    consistent(trace, found)
    seen = {mark for row in trace.record.rows.values() for frame in row.frames for mark in frame.marks}
    assert ("taken" if sampler.startswith("remdm") else "rewritten") in seen


def test_uniform_noise_rewrites():
    trace = Trace(fake(masks=False))
    found = sample(UNIFORM, NOISED, length=6, num=2, steps=6, callback=trace)
    trace.finish(found)
    consistent(trace, found)
    assert any(frame.rewritten for frame in trace.frames)


def test_a_callback_that_rewrites_is_seen():
    """As a frame of its own, where it may write: not on given tokens, nor outside the block in work."""

    def first(one):
        return torch.full_like(one.z, 3) if one.index == 0 else None

    trace = Trace(fake(), callback=first)
    found = sample(PROCESS, FULL, prompt=[1, 2], length=4, num=2, steps=4, callback=trace)
    trace.finish(found)
    consistent(trace, found)
    assert [frame.cause for frame in trace.frames[:2]] == ["step", "callback"]
    assert list(trace.frames[1].ids) == [1, 2, 3, 3, 3, 3]
    assert trace.frames[1].confidence == (None,) * 6
    assert "callback" in trace.frames[1].label
    trace = Trace(fake(), callback=first)
    trace.finish(found := sample(PROCESS, FULL, prompt=[1], length=5, block=2, steps=2, callback=trace))
    consistent(trace, found)
    assert list(trace.frames[1].ids) == [1, 3, 3, MASK, MASK, MASK]


def test_a_callback_out_of_sight_is_seen_at_the_next_step():
    trace = Trace(fake())

    def watch(one):
        trace(one)
        return torch.full_like(one.z, MASK) if one.index == 1 else None

    trace.finish(found := sample(PROCESS, FULL, length=5, steps=5, sampler="low_confidence", callback=watch))
    consistent(trace, found)
    assert trace.frames[2].taken


def test_a_run_that_a_callback_ends():
    trace = Trace(fake(), callback=lambda one: Halt(torch.zeros_like(one.z)) if one.index else None)
    trace.finish(found := sample(PROCESS, FULL, length=5, steps=5, callback=trace))
    assert [frame.cause for frame in trace.frames] == ["step", "step", "callback"]
    consistent(trace, found)


def test_rows_take_over_the_history_of_those_they_go_on_from():
    def all_from_the_last(one):
        return Ancestors(torch.full((len(one.z),), len(one.z) - 1)) if one.index == 2 else None

    trace = Trace(fake(), callback=all_from_the_last)
    found = sample(PROCESS, FULL, length=6, num=3, steps=6, sampler="random_order", callback=trace)
    trace.finish(found)
    consistent(trace, found)
    rows = trace.record.rows
    assert rows[0].frames[:3] == rows[1].frames[:3] == rows[2].frames[:3]
    assert rows[0].frames[3:] != rows[2].frames[3:]
    assert not any(frame.rewritten for row in rows.values() for frame in row.frames)
    wrong = Trace(fake(), callback=lambda one: Ancestors(torch.tensor([5])))
    with pytest.raises(ValueError, match="ancestors"):
        sample(PROCESS, FULL, length=2, callback=wrong)


def test_the_finished_text_counts_masks_that_were_left():
    """A callback masks again after the last step; one more call fills the gaps."""
    trace = Trace(fake(), callback=lambda one: torch.full_like(one.z, MASK) if one.s == 0 else None)
    found = sample(PROCESS, FULL, length=4, steps=2, callback=trace)
    trace.finish(found)
    consistent(trace, found)
    assert trace.frames[-1].label == "final text"
    assert trace.step_map() == [len(trace.frames) - 1] * 4


def test_finish_adds_a_frame_only_where_the_text_changed():
    trace = Trace(fake(masks=False))
    trace(step(0, 1, [0, 1, 2]))
    trace.finish(torch.tensor([[0, 1, 2]]))
    assert len(trace.frames) == 1
    trace.finish(torch.tensor([[0, 1, 3]]))
    assert [frame.label for frame in trace.frames] == ["step 1/1", "final text"]
    assert trace.record.cost is None
    unchanged = Trace(fake(), before=[1, 2])
    unchanged.finish(sample(PROCESS, FULL, canvas=torch.tensor([1, 2]), strength=0.0, callback=unchanged))
    assert marks(unchanged) == [["kept", "kept"]]


def test_a_budget_keeps_whole_rows():
    def drawn(budget):
        trace = Trace(fake(), budget=budget)
        trace.finish(sample(PROCESS, FULL, length=5, num=6, steps=5, sampler="low_confidence", callback=trace))
        return trace.record

    whole = drawn(150)
    assert (len(whole.rows), whole.left_out, whole.cut) == (6, 0, False)
    some = drawn(149)
    assert (sorted(some.rows), some.left_out, some.cut) == ([0, 1, 2, 3, 4], 1, False)
    assert some.rows[4] == whole.rows[4]
    assert "1 texts more" in some.summary(0)
    one = drawn(12)
    assert (sorted(one.rows), one.left_out, one.cut) == ([0], 5, True)
    assert one.rows[0].frames[0] == whole.rows[0].frames[0]
    assert one.rows[0].frames[-1].ids == whole.rows[0].frames[-1].ids
    assert one.rows[0].size <= 12
    assert one.rows[0].frames[1].marks.count("written") == 4, "the rest as one"
    for budget in (0, MOST + 1):
        with pytest.raises(ValueError, match=f"budget={budget}"):
            Trace(fake(), budget=budget)


def test_a_row_that_is_not_there():
    with pytest.raises(ValueError, match="text 2 is not in the trace"):
        Trace(fake()).step_map(1)


# ----------------------------------------------------------------------------------------------------------- on screen


def test_a_pipe_gets_a_line_a_step():
    file = io.StringIO()
    with Trace(fake(), Console(file=file)) as trace:
        trace(step(0, 2, [0, MASK, 9], [1, 1, 1]))
        trace(step(1, 2, [0, 10, 9], [1, 1, 1]))
    assert file.getvalue() == "step 1/2  t=0.50  we ░░░ is\nstep 2/2  t=0.00  we are is\n"


def screen(**options):
    file = io.StringIO()
    return file, Console(
        file=file, force_terminal=True, width=90, color_system="standard", legacy_windows=False, **options
    )


def test_a_terminal_shows_the_draft_in_place():
    file, console = screen()
    with Trace(fake(), console) as trace:
        trace(step(0, 2, [0, MASK]))
        trace(step(1, 2, [0, 10]))
    shown = file.getvalue()
    assert "step 2/2  t=0.00" in shown
    assert "\x1b[1A" in shown, "the cursor goes back up"
    assert "\x1b[1;32mare" in shown, "what was written is green"
    assert shown.endswith("\x1b[?25h"), "the cursor is visible again"


def test_the_cursor_comes_back_after_an_interrupt():
    file, console = screen()
    trace = Trace(fake(), console)
    with suppress(KeyboardInterrupt), trace:
        trace(step(0, 2, [0, MASK]))
        raise KeyboardInterrupt
    assert "\x1b[?25h" in file.getvalue()


def recorded():
    trace = Trace(fake())
    trace(step(0, 2, [0, MASK, 4]))
    trace(step(1, 2, [0, 10, MASK]))
    trace.finish(torch.tensor([[0, 10, 2]]))
    return trace.record


def test_a_replay_shows_what_was_seen(monkeypatch):
    file, waited = io.StringIO(), []
    monkeypatch.setattr("time.sleep", waited.append)
    replay(recorded(), Console(file=file), speed=1)
    lines = file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["step 1/2", "step 2/2", "final text"]
    assert "2 denoiser calls, 2 tokens per forward, 1 taken back" in lines[3]
    assert not waited, "a pipe waits for nothing"
    file, console = screen()
    replay(recorded(), console, speed=8)
    assert waited == [1 / 8] * 2
    assert "━" in file.getvalue()
    assert "1 taken back" in file.getvalue()
    assert "\x1b[1;35m░░░" in file.getvalue(), "what was taken back is a magenta block"


def test_a_replay_steps_through_at_speed_0(monkeypatch):
    file, console = screen()
    pressed = []
    replay(recorded(), console, speed=0, wait=lambda: pressed.append(file.getvalue().count("t=")))
    assert pressed == [1, 2], "each frame waits for the key"
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    replay(recorded(), console, speed=0)
    for speed in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"speed={speed}"):
            replay(recorded(), console, speed=speed)


def test_an_interrupted_replay_gives_the_cursor_back(monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    file, console = screen()
    with pytest.raises(KeyboardInterrupt):
        replay(recorded(), console)
    assert "\x1b[?25l" in file.getvalue()
    assert file.getvalue().endswith("\x1b[?25h")


def test_text_is_never_mark_up():
    file = io.StringIO()
    lm = fake("bytes")
    ids = lm.tokenizer.encode("[red]a[/red]\n\x1b[31mb")
    Trace(lm, Console(file=file))(step(0, 1, [*ids, lm.tokenizer.mask_id]))
    assert file.getvalue() == "step 1/1  t=0.00  [red]a[/red]↵␛[31mb░\n"


def test_visible():
    assert visible("a\x1b[0m\x07\x7f\x9b\n\té 漢") == "a␛[0m␇␡�↵␉é 漢"
    assert visible("a\n\tb", keep="\n\t") == "a\n\tb"
    assert visible("a\u202eb\u2028c\ud800d\u00a0") == "a�b↵c�d\u00a0", "nothing turns the line round, or breaks it"
