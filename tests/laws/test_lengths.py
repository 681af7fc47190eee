"""Lengths that are tried, drafts that grow until the end is in sight, gaps that grow and shrink: exact lengths."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from redraft import processes
from redraft.sampling import Ancestors, Elastic, Growth, Halt, elastic, grown, sample
from redraft.sampling.lengths import best_of, scoring

from .oracle import chi_square_tail
from .prescribed import Says
from .test_batch_invariance import FULL, K
from .test_sampling_laws import Contextual

SIZE, EOS, EXPAND, DELETE = 40, 1, 2, 3
PROCESS = processes.masked(SIZE)
MASK = PROCESS.mask_id
assert MASK == SIZE


class Scripted:
    """Says of each position of each row a token and how sure it is, by ``script(row ids) -> [(token, p), ..]``."""

    def __init__(self, script, size: int = SIZE, **facts) -> None:
        self.script, self.size = script, size
        self.facts = processes.Facts(mask_id=size, **facts)
        self.times: list[float] = []

    def __call__(self, z, t, cond=None):
        self.times += t.tolist()
        out = torch.empty(*z.shape, self.size, dtype=torch.float64)
        for row, ids in enumerate(z.tolist()):
            for place, (token, p) in enumerate(self.script(ids)):
                out[row, place] = (1 - p) / (self.size - 1)
                out[row, place, token] = p
        return out.log()


def canvas(*parts: int | list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Given ids, and gaps of so many positions."""
    ids = [one for part in parts for one in ([0] * part if isinstance(part, int) else part)]
    known = [not isinstance(part, int) for part in parts for _ in range(part if isinstance(part, int) else len(part))]
    return torch.tensor(ids), torch.tensor(known)


# ------------------------------------------------------------------------------------------------- lengths are tried


def write(denoiser, **common):
    return lambda **own: sample(PROCESS, denoiser, sampler="low_confidence", temperature=0.0, **common, **own)


def test_the_length_of_highest_mean_log_p_is_kept():
    """p of every token is .1 n (7 - n) at n free positions: 3 and 4 are equal, and the first is kept; scores to 1e-12.

    The cost is that of all candidates: n calls for n masks, one a step.
    """
    sure = {n: 0.08 * n * (7 - n) for n in range(1, 7)}

    def script(ids):
        return [(9, sure[len(ids) - 2])] * len(ids)

    candidates = [canvas([5], n, [6]) for n in range(2, 7)]
    found, tried = best_of(write(Scripted(script)), candidates, [7, 8])
    assert [one.kept for one in tried] == [1, 1]
    for one in tried:
        assert one.scores == pytest.approx([math.log(sure[n]) for n in range(2, 7)], abs=1e-12)
    assert found.tokens.tolist() == [[5, 9, 9, 9, 6]] * 2
    assert (found.seeds, found.lengths) == ([7, 8], [5, 5])
    assert found.cost.of_rows == [2 + 3 + 4 + 5 + 6] * 2
    assert found.nfe == 20  # rows of one length together
    assert found.logp[0, 1:4].exp().tolist() == pytest.approx([sure[3]] * 3, abs=1e-12)


def test_several_gaps_try_every_combination():
    """p is .9 at the lengths (3, 1), .5 elsewhere, though (2, 2) is as long."""

    def script(ids):
        return [(9, 0.9 if ids[4:5] == [6] and len(ids) == 7 else 0.5)] * len(ids)

    candidates = [canvas([5], a, [6], b, [6]) for a, b in itertools.product((2, 3), (1, 2))]
    found, (tried,) = best_of(write(Scripted(script)), candidates, [0])
    assert tried.kept == 2
    assert found.tokens.tolist() == [[5, 9, 9, 9, 6, 9, 6]]
    assert tried.scores == pytest.approx([math.log(p) for p in (0.5, 0.5, 0.9, 0.5)], abs=1e-12)


def test_what_is_kept_is_what_its_canvas_alone_becomes():
    """A network, temperature 1: tokens, log p and score of every candidate to the last bit, whatever stands beside."""
    candidates = [canvas([5, 1], n, [6]) for n in (2, 3, 5)]

    def drawn(**own):
        return sample(processes.masked(K), FULL, sampler="threshold:tau=0.4", **own)

    found, tried = best_of(drawn, candidates, [3, 4, 5, 6])
    assert len({one.kept for one in tried}) > 1
    for row, (seed, one) in enumerate(zip([3, 4, 5, 6], tried, strict=True)):
        alone = [drawn(canvas=[ids], frozen=[known], seeds=[seed]) for ids, known in candidates]
        kept = alone[one.kept]
        width = kept.tokens.shape[1]
        assert torch.equal(found.tokens[row, :width], kept.tokens[0])
        assert one.scores == [part.logp[0][~part.logp[0].isnan()].mean().item() for part in alone]
        assert found.cost.of_rows[row] == sum(part.cost.of_rows[0] for part in alone)
        assert found.lengths[row] == width


def test_behind_the_stop_token_nothing_counts():
    """EOS (p = .7) stands at place 1; what is written behind it (p = .2) is no part of the score of 4 or 2 places."""

    def script(ids):
        return [(EOS if place == 1 else 9, (0.9, 0.7, 0.2)[min(place, 2)]) for place in range(len(ids))]

    found, (tried,) = best_of(write(Scripted(script), stop=EOS), [canvas(2), canvas(4)], [0], EOS)
    assert tried.scores == pytest.approx([(math.log(0.9) + math.log(0.7)) / 2] * 2, abs=1e-12)
    assert (tried.kept, found.lengths) == (0, [2])


def test_lengths_are_compared_by_samplers_that_say_how_sure_they_are():
    assert scoring(PROCESS, None) == "low_confidence"
    assert scoring(PROCESS, "threshold:tau=0.5") == "threshold:tau=0.5"
    with pytest.raises(ValueError, match="'ancestral' does not say how likely"):
        scoring(PROCESS, "ancestral")
    with pytest.raises(ValueError, match=r"trying lengths.*which a uniform process is not: use 'one given length'"):
        scoring(processes.uniform(5), None)


# ------------------------------------------------------------------------------------------- a run that is ended early


def test_a_callback_ends_the_run():
    """Two of five masks are written, two calls paid, and the rest are masks; or whatever the callback leaves there."""

    def halt(step):
        return Halt(None if step.index < 2 else torch.where(step.z == MASK, 7, step.z)) if step.index >= when else None

    ids, known = canvas([5], 5)
    denoiser = Scripted(lambda ids: [(9, 0.9)] * len(ids))
    for when, wanted in ((1, [5, 9, 9, MASK, MASK, MASK]), (2, [5, 9, 9, 9, 7, 7])):
        found = write(denoiser, callback=halt)(canvas=[ids], frozen=[known])
        assert found.tokens.tolist() == [wanted]
        assert found.nfe == when + 1
        assert found.logp[0].isnan().tolist() == [True, *[False] * (when + 1), *[True] * (4 - when)]
    with pytest.raises(ValueError, match="ended the run, while blocks are written"):
        write(denoiser, callback=halt, block=2)(canvas=[ids], frozen=[known])


def test_vectors_left_early_are_the_tokens_last_thought_likeliest():
    process = processes.gaussian(torch.eye(3, dtype=torch.float64))
    says = Says(torch.tensor([[[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]]], dtype=torch.float64).log(), posterior="full")
    found = sample(process, says, length=2, steps=5, callback=lambda step: Halt())
    assert (found.tokens.tolist(), found.nfe) == ([[1, 0]], 1)


# ---------------------------------------------------------------------------------------------------- DAEDAL's growth


def wants(end: int, p: float = 0.95, weak: tuple[int, ...] = ()):
    """A text of ``end`` tokens: EOS from there on, p; the tokens ``weak``, while the canvas is short, of p = .05."""

    def script(ids):
        said = [(EOS if place >= end else 9, p) for place in range(len(ids))]
        return [(9, 0.05) if place in weak and len(ids) < end else one for place, one in enumerate(said)]

    return Scripted(script)


SHORT = Growth(start=4, append=2, tail=4)


def test_growth_stops_when_the_end_is_in_sight():
    """A text of 10: among the last 4, EOS is likeliest at 2 of 12 positions (.475 < .5), at 4 of 14 (.95).

    So 4 masks grow to 14 by five calls that write nothing; the sixth writes all, as .95 > tau.
    """
    found = grown(PROCESS, wants(10), stop=EOS, length=40, growth=SHORT, temperature=0.0)
    assert found.tokens.tolist() == [[9] * 10 + [EOS] * 4]
    assert found.lengths == [11]
    assert (found.nfe, found.positions) == (6, 4 + 6 + 8 + 10 + 12 + 14)
    assert found.logp.exp()[0].tolist() == pytest.approx([0.95] * 14, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "tokens", "nfe"),
    [
        ({}, 14, 6),
        ({"start": 7}, 13, 4),  # 7, 9, 11, 13: 3 of the last 4
        ({"start": 99}, 40, 1),  # no more than the length; what is behind the end need not be written
        ({"append": 5}, 14, 3),  # 4, 9, 14
        ({"append": 50}, 40, 2),
        ({"tail": 2}, 12, 5),
        ({"enough": 0.4}, 12, 5),
        ({"enough": 0.99}, 40, 19),  # p is .95: never enough, so 18 calls to grow to all 40
        ({"window": 5}, 14, 8),  # 14 masks are written in 3 windows
        ({"tau": 0.96}, 14, 16),  # never so sure: one a step, 10 tokens and the first EOS
    ],
)
def test_every_option_of_growth_says_what_it_says(change, tokens, nfe):
    found = grown(PROCESS, wants(10), stop=EOS, length=40, growth=replace(SHORT, **change), temperature=0.0)
    assert found.tokens.shape == (1, tokens)
    assert found.nfe == nfe
    assert found.lengths == [11]


def growing_inside(**change):
    """What the model wants is 20 long; nothing says EOS before, and place 2 is weak till then; 8 masks to begin."""
    growth = Growth(**{"start": 8, "expand": 4, "tail": 4, "enough": 0.0, **change})
    return grown(PROCESS, wants(20, weak=(2,)), stop=EOS, length=24, growth=growth, temperature=0.0)


def test_a_weak_mask_is_replaced_by_several():
    """Place 2 becomes 4 masks while all others are written, then the first of those, and so on: 8, 11, 14, 17, 20.

    At 20 it is sure: EOS is still out of sight (19 is the last place), but nothing is weak.
    """
    found = growing_inside()
    assert found.tokens.tolist() == [[9] * 20]
    assert (found.lengths, found.nfe) == ([20], 5)
    assert found.positions == 8 + 11 + 14 + 17 + 20


@pytest.mark.parametrize(
    ("change", "length"),
    [
        ({"expand": 7}, 20),
        ({"expand": 6}, 23),  # 8, 13, 18, 23
        ({"expand": 100}, 24),  # no more than there is room for
        ({"weak": 0.05}, 8),  # not below
        ({"sight": 0.0}, 8),
        ({"start": 21}, 21),
    ],
)
def test_how_a_weak_mask_grows(change, length):
    assert growing_inside(**change).tokens.shape == (1, length)


def test_the_only_mask_may_be_the_weak_one():
    """It is replaced, not written: 1 mask, 3 of which 2 are written, 3 of 5."""
    growth = Growth(start=1, expand=3, tail=4, enough=0.0)
    found = grown(PROCESS, wants(5, weak=(0,)), stop=EOS, length=9, growth=growth, temperature=0.0)
    assert found.tokens.tolist() == [[9] * 5]
    assert (found.nfe, found.positions) == (3, 1 + 3 + 5)


def test_an_end_that_is_written_is_in_sight():
    """EOS stands on the last 4 of 14 after the first step, and the weak mask left at place 2 is written, no more."""
    script = [(EOS if place >= 10 else 9, 0.05 if place == 2 else 0.95) for place in range(14)]
    found = grown(PROCESS, Scripted(lambda ids: script), stop=EOS, length=30, growth=replace(SHORT, start=14))
    assert (found.tokens.shape, found.nfe) == ((1, 14), 2)


def test_what_is_filled_behind_the_end_has_no_log_p():
    """Places 2 and 3 are written first, then the end at 1 (p = .5): they are EOS, and nobody said how likely."""
    script = [(EOS if place == 1 else 9, 0.5 if place == 1 else 0.95) for place in range(4)]
    growth = Growth(start=4, enough=0.0)
    found = grown(PROCESS, Scripted(lambda ids: script), stop=EOS, length=4, growth=growth, temperature=0.0)
    assert found.tokens.tolist() == [[9, EOS, EOS, EOS]]
    assert found.logp[0].exp().nan_to_num(9).tolist() == pytest.approx([0.95, 0.5, 9, 9])


def test_nothing_is_appended_once_writing_began():
    """The end was in sight, until two tokens were written: now it is not, and the text stays as long as it was."""

    def script(ids):
        return [(9 if place < 2 or 9 in ids else EOS, 0.95) for place in range(len(ids))]

    growth = Growth(start=6, append=2, tail=4, window=2, sight=0.0)
    found = grown(PROCESS, Scripted(script), stop=EOS, length=30, growth=growth, temperature=0.0)
    assert (found.tokens.tolist(), found.nfe) == ([[9] * 6], 3)


def test_no_more_than_the_length_is_written_and_always_in_bounds():
    """Never an end, never sure: 2 m - start calls at most, each row as alone, over 40 random options."""
    never = Scripted(lambda ids: [(9, 0.03)] * len(ids))
    draw = torch.Generator().manual_seed(0)
    for _ in range(40):
        start, append, tail, window, length = torch.randint(1, 12, (5,), generator=draw).tolist()
        growth = Growth(start=start, append=append, expand=1 + append, tail=tail, window=window)
        found = grown(PROCESS, never, stop=EOS, length=length, growth=growth, temperature=0.0)
        assert found.tokens.tolist() == [[9] * length]
        assert length - min(start, length) < found.nfe + 1 <= 2 * length - min(start, length) + 1


def test_rows_grow_each_by_itself():
    """The prompt tells the length; prompts and most lengths differ; drawn together or alone, bit for bit."""

    def script(ids):
        return [(EOS, 0.95) if place >= ids[0] else (9, 0.6 if place % 3 else 0.08) for place in range(len(ids))]

    rows = [([12], 30), ([6, 6], 30), ([20, 4, 4], 22), ([12], 30), ([39], 9)]
    growth = Growth(start=3, append=3, expand=3, tail=5, window=6)
    options = {"stop": EOS, "growth": growth, "banned": [7], "repetition": 1.1}
    batch = grown(
        PROCESS, Scripted(script), prompt=[p for p, _ in rows], length=[n for _, n in rows], seeds=[1, 2, 3, 4, 5],
        **options,
    )  # fmt: skip
    assert len(set(batch.lengths)) > 2
    assert not (batch.tokens == 7).any()
    for row, (prompt, length) in enumerate(rows):
        alone = grown(PROCESS, Scripted(script), prompt=prompt, length=length, seeds=[row + 1], **options)
        width = alone.tokens.shape[1]
        assert torch.equal(alone.tokens[0], batch.tokens[row, :width])
        assert bool((batch.tokens[row, width:] == EOS).all())
        assert torch.equal(alone.logp[0].nan_to_num(9), batch.logp[row, :width].nan_to_num(9))
        assert alone.lengths[0] == batch.lengths[row]
        assert alone.cost.of_rows[0] == batch.cost.of_rows[row]
        assert batch.tokens[row, : len(prompt)].tolist() == prompt


def test_a_network_grows_alike_alone_and_beside():
    process = processes.masked(K)
    growth = Growth(start=3, append=2, expand=2, tail=3, window=4, enough=0.1, weak=0.3)
    prompts = [[1, 2], [3], [4, 5, 6], [7]]
    batch = grown(process, FULL, stop=0, length=12, growth=growth, prompt=prompts, seeds=[1, 2, 3, 4])
    for row, prompt in enumerate(prompts):
        alone = grown(process, FULL, stop=0, length=12, growth=growth, prompt=prompt, seeds=[row + 1])
        assert torch.equal(alone.tokens[0], batch.tokens[row, : alone.tokens.shape[1]])


def test_a_denoiser_that_reads_the_time_is_told_how_much_is_masked():
    """Masks over free positions: 1 while it grows, then 9 of 14 (a window of 5 written), 4 of 14."""
    denoiser = wants(10)
    denoiser.facts = replace(denoiser.facts, time_conditioned=True)
    grown(PROCESS, denoiser, stop=EOS, length=40, growth=replace(SHORT, window=5), temperature=0.0)
    assert denoiser.times == pytest.approx([1.0] * 6 + [9 / 14, 4 / 14])


def test_a_callback_sees_the_whole_text_and_may_rewrite_it():
    seen = []

    def callback(step):
        seen.append((step.index, step.nfe, step.tokens.shape[1], step.frozen.sum().item(), step.rows))
        return torch.where(step.tokens == 9, 8, step.tokens) if step.index == 5 else None

    growth = replace(SHORT, window=8)
    found = grown(
        PROCESS, wants(10), stop=EOS, length=39, prompt=[5], growth=growth, temperature=0.0, callback=callback
    )
    assert seen == [(i, i + 1, min(5 + 2 * i, 13), 1, [0]) for i in range(6)]
    assert found.tokens.tolist() == [[5] + [8] * 9 + [EOS] * 3]


def test_a_callback_may_not_end_what_ends_by_itself():
    for said in (Halt(), Ancestors(torch.zeros(1).long())):
        with pytest.raises(ValueError, match="it may rewrite only"):
            grown(PROCESS, wants(10), stop=EOS, length=9, callback=lambda step, said=said: said)


@pytest.mark.parametrize(
    ("process", "facts", "options", "words"),
    [
        (processes.uniform(SIZE), {"mask_id": None}, {}, "growing.*which a uniform process is not"),
        (PROCESS, {"attention": "causal"}, {}, "growing with a denoiser of causal attention"),
        (PROCESS, {"attention": "block", "block": 2}, {}, "growing with a denoiser of block attention"),
        (PROCESS, {"given": True}, {}, "told which tokens are given"),
        (PROCESS, {}, {"stop": SIZE}, "stop=40 is no token, ids run from 0 to 39"),
        (PROCESS, {}, {"seeds": [1, 2], "prompt": [[1], [2], [3]]}, "num=2 with 3 rows"),
    ],
)
def test_growth_refuses(process, facts, options, words):
    denoiser = wants(10)
    denoiser.facts = replace(denoiser.facts, **facts)
    with pytest.raises(ValueError, match=words):
        grown(process, denoiser, **{"stop": EOS, **options})


def test_a_growth_that_cannot_be_is_refused():
    for name in ("start", "append", "tail", "window"):
        with pytest.raises(ValueError, match=f"{name}=0 of a growth"):
            Growth(**{name: 0})
    with pytest.raises(ValueError, match="expand=1 of a growth"):
        Growth(expand=1)


# ------------------------------------------------------------------------------------------- DreamOn's expand, delete

MARKS = Elastic(expand=EXPAND, delete=(DELETE, EOS), budget=5)


def stretched(script, *parts, marks=MARKS, **options):
    ids, known = canvas(*parts)
    denoiser = script if isinstance(script, Scripted | Contextual) else Scripted(script)
    return elastic(PROCESS, denoiser, canvas=ids, frozen=known, marks=marks, **{"temperature": 0.0, **options})


def test_a_gap_grows_and_shrinks_to_what_the_model_wants():
    """A whole of 7 between 5 and 6: expand while it is shorter, delete while it is longer; calls counted exactly.

    From 2 masks: 3 expansions make 5, which are written: 8 calls. From 8: 3 deletions, then 5 tokens: 8 too.
    """

    def script(ids):
        token = EXPAND if len(ids) < 7 else DELETE if len(ids) > 7 else 9
        return [(token, 0.9)] * len(ids)

    for gap, nfe in ((2, 3 + 5), (5, 5), (8, 3 + 5)):
        found = stretched(script, [5], gap, [6])
        assert found.tokens.tolist() == [[5, 9, 9, 9, 9, 9, 6]]
        assert (found.nfe, found.lengths) == (nfe, [7])
        assert found.logp[0].isnan().tolist() == [True, *[False] * 5, True]
    by_end = stretched(lambda ids: [(EOS if len(ids) > 7 else 9, 0.9)] * len(ids), [5], 8, [6])
    assert by_end.tokens.tolist() == found.tokens.tolist()
    nothing = stretched(lambda ids: [(DELETE, 0.9)] * len(ids), [5], 3, [6])
    assert nothing.tokens.tolist() == [[5, 6]]


def test_a_model_that_always_expands_takes_the_budget_and_no_more():
    """The bound is met: m + 2 budget calls, m + budget tokens; then expand is ruled out and the next best written."""

    def script(ids):
        return [(EXPAND, 0.9)] * len(ids)

    for budget in (0, 1, 4):
        found = stretched(script, [5], 3, [6], 1, marks=replace(MARKS, budget=budget))
        assert found.tokens.shape == (1, 2 + 4 + budget)
        assert found.nfe == 4 + 2 * budget
        assert not (found.tokens == EXPAND).any()
        assert found.tokens[0, 0] == 5


@pytest.mark.parametrize(("budget", "lengths"), [(2, [4, 6]), (4, [4, 7, 8])])
def test_of_more_expansions_than_are_left_the_leftmost_stand(budget, lengths):
    """Three of three at once, of which two stand; or three, then one of six. Then expand is ruled out."""
    seen = []
    found = stretched(
        lambda ids: [(EXPAND, 0.9)] * len(ids),
        3,
        [6],
        marks=replace(MARKS, budget=budget),
        sampler="threshold:tau=0.5",
        callback=lambda step: seen.append(step.tokens.tolist()[0]),
    )
    assert seen[0] == [EXPAND] * 3 + [6]
    assert [len(row) for row in seen][: len(lengths)] == lengths
    assert (found.tokens.shape[1], int(found.tokens[0, -1])) == (4 + budget, 6)


def test_a_deletion_gives_no_expansion_back():
    """A model that expands and deletes for ever ends."""

    def script(ids):
        return [(EXPAND if len(ids) % 2 else DELETE, 0.9)] * len(ids)

    found = stretched(script, [5], 2, marks=replace(MARKS, budget=6))
    assert found.nfe <= 2 + 2 * 6


def test_every_stage_draws_afresh():
    """Each mask expands with probability .2, so one mask becomes 1, 2, or more tokens with .8, .2 x .8^2, the rest.

    2,000 rows, seed fixed; the false alarm of a correct sampler is below 1e-6.
    """
    out = torch.zeros(SIZE, dtype=torch.float64)
    out[9], out[EXPAND] = 0.8, 0.2

    class Alike(Says):
        def __call__(self, z, t, cond=None, scores=False):
            return self.answer.expand(*z.shape, -1)

    says = Alike(out.log(), mask_id=SIZE, time_conditioned=False)
    ids, known = canvas(1)
    found = elastic(PROCESS, says, canvas=ids, frozen=known, marks=MARKS, num=2000, sampler="left_to_right")
    counts = torch.tensor(found.lengths).clamp_max(3).bincount(minlength=4)[1:].double()
    assert chi_square_tail(counts, torch.tensor([0.8, 0.128, 0.072], dtype=torch.float64)) > 1e-6


@pytest.mark.parametrize("sampler", ["low_confidence", "left_to_right", "threshold:tau=0.05", "random_order"])
def test_the_books_are_kept(sampler):
    """Whatever is written: length = before + expansions - deletions, given tokens stay, calls within the bound."""
    denoiser = Contextual(PROCESS)
    denoiser.facts = replace(denoiser.facts, time_conditioned=False)
    for seed in range(25):
        books = {EXPAND: 0, DELETE: 0, EOS: 0}

        def callback(step, books=books):
            for token in books:
                books[token] += int(((step.tokens == token) & ~step.frozen).sum())

        parts = ([5], 4, [7, 8], 3, [6])
        found = stretched(
            denoiser, *parts, sampler=sampler, temperature=1.0, top_k=6, seed=seed, callback=callback,
            marks=Elastic(EXPAND, (DELETE, EOS), budget=9),
        )  # fmt: skip
        shown = books[EXPAND] if sampler != "threshold:tau=0.05" else min(books[EXPAND], 9)
        assert found.tokens.shape[1] == 11 + shown - books[DELETE] - books[EOS]
        assert shown <= 9
        assert found.nfe <= 7 + 2 * 9
        left = found.tokens[0][found.logp[0].isnan()].tolist()
        assert left == [5, 7, 8, 6]
        assert not bool(torch.isin(found.tokens, torch.tensor([EXPAND, DELETE, EOS, MASK])).any())


def test_gaps_change_each_by_itself():
    process, marks = processes.masked(K), Elastic(expand=3, delete=(4,), budget=4)
    rows = [canvas([1], 3, [2]), canvas([5, 6], 2), canvas([1], 3, [2]), canvas(4, [7], 2)]

    def drawn(*which):
        own = {"canvas": [rows[i][0] for i in which], "frozen": [rows[i][1] for i in which]}
        return elastic(process, FULL, marks=marks, seeds=[10 + i for i in which], temperature=1.5, **own)

    batch = drawn(0, 1, 2, 3)
    assert len(set(batch.lengths)) > 1
    for row in range(4):
        alone = drawn(row)
        assert torch.equal(alone.tokens[0], batch.tokens[row, : batch.lengths[row]])
        assert torch.equal(alone.logp[0].nan_to_num(9), batch.logp[row, : batch.lengths[row]].nan_to_num(9))
        assert alone.cost.of_rows[0] == batch.cost.of_rows[row]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "ancestral"}, "sampler='ancestral' where lengths change"),
        ({"marks": Elastic()}, "name the id that expands"),
        ({"marks": Elastic(expand=2, budget=-1)}, "a budget from 0"),
        ({"marks": Elastic(expand=SIZE)}, "40 is no token"),
        ({"marks": Elastic(delete=(-1,))}, "-1 is no token"),
        ({"callback": lambda step: torch.zeros(1, 1)}, "the callback returned shape"),
    ],
)
def test_what_cannot_stretch_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        stretched(lambda ids: [(9, 0.9)] * len(ids), [5], 3, **options)


def test_a_rule_that_writes_nothing_is_refused():
    process = processes.masked(SIZE, schedule="cosine")
    ids, known = canvas([5], 9)
    denoiser = Scripted(lambda ids: [(9, 0.9)] * len(ids))
    with pytest.raises(ValueError, match="sampler='confidence' wrote none of 9 masks"):
        elastic(process, denoiser, canvas=ids, frozen=known, marks=MARKS, sampler="confidence")
