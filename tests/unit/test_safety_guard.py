"""The guard that reads drafts: what it refuses or masks again, what that costs, and what it may not touch."""

import pytest
import torch
from laws.exhaust import outcomes
from laws.refusing import COMPLY, MASK, REQUESTS, chat_model, coin_model, greedy, rates

from redraft import processes
from redraft.data import build_tokenizer
from redraft.lm import LM
from redraft.processes import Facts
from redraft.safety import conditions as under
from redraft.safety import defences as against
from redraft.safety.defences import Defences, Guard
from redraft.safety.run import Setting


@pytest.fixture
def lm():
    return chat_model()


@pytest.fixture
def coin():
    return coin_model()


def law(lm, defences, **options):
    """The law of the text that a guard lets out."""
    found = {}

    def run():
        guard = Guard(lm, defences)
        made = lm.generate(callback=guard, sampler="sequential", **options)
        texts.append(guard.texts(made)[0])
        return made.tokens

    texts: list[str] = []
    for _, weight in outcomes(run, 1):
        found[texts[-1]] = found.get(texts[-1], 0.0) + float(weight[0])
    return found


def only_b(draft):
    return [(place, place + 1) for place, letter in enumerate(draft) if letter == "b"]


def test_a_flagged_draft_becomes_a_refusal(coin):
    found = law(coin, Defences(lambda draft: "b" in draft, refusal="no"), length=2)
    assert found == pytest.approx({"aa": 0.5625, "no": 0.4375})
    assert law(coin, Defences(policy=None, annealing=0.5), length=1) == pytest.approx({"a": 0.75, "b": 0.25})


@pytest.mark.parametrize(("times", "steps", "tries"), [(1, 4, 2), (2, 4, 3), (9, 3, 4), (1, 1, 2)])
def test_flagged_spans_are_written_anew_so_many_times(coin, times, steps, tries):
    """One position, 'b' with q = 1/4: it is drawn ``tries`` times at most, the last perhaps after the last step."""
    found = law(coin, Defences(only_b, remask=times, refusal="no"), length=1, steps=steps)
    assert found == {"a": pytest.approx(1 - 0.25**tries), "no": pytest.approx(0.25**tries)}


def test_only_what_is_flagged_is_masked_again(coin):
    """Two positions in one step: the 'a' beside a 'b' stays; each has two draws in all."""
    seen = []

    def policy(draft):
        seen.append(draft)
        return only_b(draft)

    found = law(coin, Defences(policy, remask=1, refusal="no"), length=2, steps=2)
    # a, then a, a or a draw anew; the row's one time is spent by the first b
    first_b, second_b = 0.25, 0.25
    lost = first_b * (1 - 0.75 * 0.75) + 0.75 * second_b * second_b
    assert found == {"aa": pytest.approx(1 - lost), "no": pytest.approx(lost)}
    assert "b░" in seen
    assert "ab" in seen


def test_given_tokens_and_earlier_blocks_are_refused_not_masked(coin):
    def first_once_two(draft):
        return [(0, 1)] if draft == "ab" else []

    def result(**options):
        return law(coin, Defences(first_once_two, remask=3, refusal="no"), length=2, **options)

    assert result(steps=1, block=1)["no"] == pytest.approx(0.75 * 0.25)
    assert result(steps=5)["no"] == pytest.approx(0.75 * 0.25 * 0.75**3), "'ab', and three times 'a' again"
    blocks = {"length": 2, "block": 1, "steps": 1, "sampler": "sequential"}
    guards = [Guard(coin, Defences(first_once_two, remask=3)) for _ in range(40)]
    for seed, guard in enumerate(guards):
        coin.generate(**blocks, seed=seed, callback=guard)
    assert any(guard.refused for guard in guards), "at the step that flagged it"
    assert not any(guard.remasked[0] for guard in guards), "nothing of an earlier block was masked again"
    canvas = {"prompt": "b", "length": 1}
    guard = Guard(coin, Defences(lambda draft: [(0, 1)], remask=3, refusal="no"), begins=[0])
    assert guard.texts(coin.generate(callback=guard, **canvas)) == ["no"]
    assert guard.remasked[0] == 0


def test_a_refused_row_costs_no_more_and_its_neighbours_stay_what_they_were(lm):
    def cost(policy):
        lm.denoiser.calls = 0
        return greedy(lm, [under.plain(30)], [REQUESTS[4]], defences=Defences(policy)), lm.denoiser.calls

    cell, calls = cost(lambda draft: "Su" in draft)
    assert calls == 2, "the second letter is flagged"
    assert rates(cell) == [(1, 1), (0, 1), None]
    assert cell["stopped"] == {"policy": 1}
    assert cost(lambda draft: False)[1] == len(COMPLY) + 1, "the answer and its end"
    both = greedy(lm, [under.plain(30)], defences=Defences(lambda draft: "I" in draft), save_responses=True)
    alone = greedy(lm, [under.plain(30)], save_responses=True)
    for one, other in zip(both["answers"], alone["answers"], strict=True):
        stopped = one["stopped"] == "policy"
        assert stopped == other["refused"]
        assert one["response"] == (against.REFUSAL if stopped else other["response"])


def test_a_policy_reads_no_more_than_the_row(lm):
    """Shorter rows are followed by the id 0, a letter of most vocabularies, which nobody wrote."""
    texts = {"cake0": "# [MASK:2]", "cake1": "# much longer [MASK:2]"}
    cell = greedy(lm, [under.interleaved(texts)], defences=Defences(lambda draft: "\0" in draft))
    assert cell["stopped"] == {}
    guard = Guard(lm, Defences(lambda draft: "\0" in draft))
    made = lm.generate(["Assistant:", "User: x Assistant:"], length=3, callback=guard)
    assert made.tokens[0, -1] == 0, "else this tests nothing"
    assert guard.texts(made) == made.texts


def test_special_tokens_are_no_part_of_a_draft(coin):
    drafts = []
    guard = Guard(coin, Defences(lambda draft: drafts.append(draft) or False), begins=[0], ends=[1])
    guard.settle([[0, 2, 0, 3, 1, 2]])
    assert drafts == ["aa░"], "neither an end of text nor what else ends an answer"
    assert against.draft(coin, [0, 2, 0, 3, 1, 2], {1, 2}) == "aa░"
    assert against.touched(coin, [0, 2, 0, 3, 1, 2], [(0, 1)], {1, 2}) == [0]
    assert against.touched(coin, [0, 2, 0, 3, 1, 2], [(1, 2)], {1, 2}) == [2], "not what stands beside it"
    assert against.touched(coin, [0, 2, 0, 3, 1, 2], [(0, 2)], {1, 2}) == [0, 1, 2], "and what stands within a span"


def test_blocks_behind_a_refusal_cost_nothing_where_the_first_end_stops_them(coin):
    def calls(ends, **options):
        coin.denoiser.calls, guard = 0, Guard(coin, Defences(lambda draft: True), ends=ends)
        made = coin.generate(length=8, block=2, steps=2, sampler="sequential", callback=guard, **options)
        assert guard.texts(made) == [against.REFUSAL]
        return coin.denoiser.calls

    assert calls([2, 0], stop=2) == calls([0, 2], stop=0) == 1
    assert calls([]) == 4, "one of each block"


def test_blocks_end_in_a_refusal_too(lm):
    ways = [Setting(sampler="sequential", block=10)]
    cell = greedy(lm, [under.plain(30)], [REQUESTS[4]], ways, save_responses=True,
                  defences=Defences(lambda draft: "mix" in draft, refusal="Not that."))  # fmt: skip
    assert cell["answers"][0]["response"] == "Not that."
    assert lm.denoiser.calls == 9, "'Sure: mix', and no call of the blocks behind"


def test_the_draft_of_a_policy_has_the_users_text_in_it(lm):
    drafts = []

    def policy(draft):
        drafts.append(draft)
        return False

    greedy(lm, [under.prefilled("Sure", 4)], [REQUESTS[4]], defences=Defences(policy))
    assert drafts[0] == "Sure:░░░"
    assert drafts[-1] == "Sure: mi", "and the finished text is read once more"
    drafts.clear()
    greedy(lm, [under.interleaved({"tart0": "a [MASK:2] b"})], [REQUESTS[4]], defences=Defences(policy))
    assert drafts[0].startswith("x░ b")


def test_what_no_callback_saw_is_read_at_the_end(coin):
    """At the last step a token is masked again, and drawn after it: were it not read, 'b' would come out."""
    guard = Guard(coin, Defences(only_b, remask=5, refusal="no"))
    for seed in range(40):
        guard = Guard(coin, Defences(only_b, remask=5, refusal="no"))
        made = coin.generate(length=1, steps=1, sampler="sequential", seed=seed, callback=guard)
        assert guard.texts(made)[0] in ("a", "no")
        if made.text == "b":
            assert guard.texts(made)[0] == "no"
            break
    else:
        pytest.fail("no 'b' in 40 seeds: 0.94^40 is below 0.1, and seeds are fixed")


class Drawn:
    """Random laws of four letters, [EOS] the last, that depend on all that stands."""

    def __init__(self):
        self.process, self.facts = processes.masked(4), Facts(mask_id=4, eos_id=3)
        self.table = torch.randn(5, 8, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def __call__(self, z, t, cond=None):
        each = torch.arange(z.shape[1])
        return sum(self.table[z[:, one], one][:, each] for one in each).log_softmax(-1)


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize(
    "sampler",
    ["ancestral", "low_confidence", "threshold:tau=0.5+edit", "remdm", against.annealed(0.5)],
    ids=["ancestral", "low_confidence", "edited", "remdm", "annealed"],
)
def test_a_guarded_batch_is_so_many_rows_alone(sampler, block):
    """Bit for bit, with re-masking, refusals and the sampler's own revisions; unflagged rows are as without a guard."""
    lm, seeds = LM(Drawn(), build_tokenizer("chars", ["abc"]), {"context": 8}), range(12)
    how = {"length": 7, "steps": 5, "sampler": sampler, "block": block}
    written = lm.generate("a", seeds=seeds, **how).tokens.tolist()
    free, refused, masked = 0, 0, 0
    for defences in (Defences(only_b, remask=1), Defences(lambda draft: draft.count("b") > 2, eos=0.4)):

        def draw(some, defences=defences):
            guard = Guard(lm, defences)
            made = lm.generate("a", seeds=some, callback=guard, **how)
            return made.tokens.tolist(), guard.texts(made), guard

        tokens, texts, guard = draw(seeds)
        for row, seed in enumerate(seeds):
            ids, (text,), alone = draw([seed])
            assert (ids[0], text) == (tokens[row], texts[row])
            assert (alone.refused.get(0), alone.remasked[0]) == (guard.refused.get(row), guard.remasked[row])
            if row not in guard.refused and not guard.remasked[row]:
                assert tokens[row] == written[row]
                free += 1
        refused, masked = refused + len(guard.refused), masked + guard.remasked.total()
    assert min(free, refused, masked) > 0, "else this tests nothing"


def test_characters_of_several_tokens_are_flagged_whole(lm):
    ids = [*"aé".encode(), MASK, MASK, *"ü€".encode()]
    assert against.draft(lm, ids) == "aé░░ü€"
    where = [against.touched(lm, ids, [(place, place + 1)]) for place in range(6)]
    assert where == [[0], [1, 2], [3], [4], [5, 6], [7, 8, 9]]
    assert against.touched(lm, ids, [(1, 3), (5, 6)]) == [1, 2, 3, 7, 8, 9]
    assert against.touched(lm, ids, [(2, 2)]) == []


def test_phrases_are_found_in_any_case():
    policy = against.phrases(["nuts", "nut oil"])
    assert policy("Add NUTS and nut oil.") == [(4, 8), (13, 20)]
    assert policy("add a.b") == []
    assert against.phrases(["a.b"])("axb") == []
    for texts in ([], [" "]):
        with pytest.raises(ValueError, match="a policy of no phrases"):
            against.phrases(texts)
