"""Defences beside the policy: the cap, the early end and annealing; and defences by their names."""

import re

import pytest
import torch
from laws.refusing import REQUESTS, Coin, Q, chat_model, coin_model, greedy, rates

from redraft import processes
from redraft.data import build_tokenizer
from redraft.lm import LM
from redraft.processes import Facts
from redraft.randomness import row_generators
from redraft.safety import conditions as under
from redraft.safety import defences as against
from redraft.safety.behaviours import Behaviour
from redraft.safety.defences import Cap, Defences, Guard
from redraft.safety.run import Setting
from redraft.sampling.contract import Draw


@pytest.fixture
def lm():
    return chat_model()


@pytest.fixture
def coin():
    return coin_model()


def test_the_cap_counts_what_is_given_behind_gaps_and_in_the_answer():
    prompt = [1, 2, 3]
    assert Cap.counted([*prompt, None, None], 3) == (0, 0)
    assert Cap.counted([*prompt, 4, 5, None], 3) == (2, 1), "a prefix"
    assert Cap.counted([*prompt, None, 4, None, 5, 6], 3) == (3, 2)
    assert Cap.counted([1, None, 3, None, 5], 5) == (2, 2), "gaps in the prompt"
    for cap, refuses in ((Cap(), True), (Cap(2), True), (Cap(3), True), (Cap(3, 2), False), (Cap(2, 2), True)):
        assert cap.refuses([*prompt, None, 4, None, 5, 6], 3) is refuses
    assert not Cap().refuses([*prompt, None], 3), "response-only fill"
    with pytest.raises(ValueError, match="cap of -1 tokens"):
        Cap(-1)


def test_the_cap_refuses_before_a_call(lm):
    cap = Defences(cap=Cap(3), refusal="Not that.")
    cell = greedy(lm, [under.prefilled("Sure", 10)], defences=cap, save_responses=True)
    assert (lm.denoiser.calls, cell["stopped"]) == (0, {"cap": 9})
    assert {one["response"] for one in cell["answers"]} == {"Not that."}
    assert rates(cell) == [(6, 6), (0, 6), (3, 3)]
    mixed = {"cake0": "Sur", "cake1": "Sure", "tart0": "S"}
    cell = greedy(lm, [under.prefilled(mixed, 10)], defences=cap)
    assert [one["stopped"] for one in cell["answers"]] == [None, "cap", None]
    assert rates(greedy(lm, [under.plain(30)], defences=cap)) == [(4, 6), (2, 6), (1, 3)], "a plain request is written"
    cell = greedy(lm, [under.interleaved({"cake0": "# [MASK:2]"})], defences=Defences(cap=Cap()))
    assert cell["stopped"] == {"cap": 1}


@pytest.mark.parametrize("block", [None, 2])
def test_a_guard_keeps_the_cap_by_its_first_call(coin, block):
    for text, begins, refused in (("a[MASK]a", None, True), ("a[MASK:4]", None, False), ("a[MASK:4]", [0], True)):
        coin.denoiser.calls, guard = 0, Guard(coin, Defences(cap=Cap()), begins)
        made = coin.infill(text, callback=guard, block=block, sampler="sequential")
        assert guard.refused == ({0: "cap"} if refused else {})
        assert guard.texts(made) == [against.REFUSAL if refused else made.text]
        assert not refused or coin.denoiser.calls <= (1 if block is None else 2)


def test_an_answer_that_would_end_at_once_is_refused_above_a_threshold(lm):
    ends = [Behaviour("end", "!", True)]
    for above, stopped in ((Q - 0.01, {"eos": 1}), (Q, {}), (0.9, {})):
        cell = greedy(lm, [under.plain(30)], ends, defences=Defences(eos=above))
        assert cell["stopped"] == stopped, above
    lm.denoiser.calls = 0
    greedy(lm, [under.plain(30)], ends, defences=Defences(eos=0.5))
    assert lm.denoiser.calls == 1, "given up by the first call"
    assert rates(greedy(lm, [under.plain(30)], defences=Defences(eos=0.5))) == [(4, 6), (2, 6), (1, 3)]
    with pytest.raises(ValueError, match="does not ask about the first free position"):
        greedy(lm, [under.plain(30)], ends, [Setting(sampler="random_order", steps=30)], defences=Defences(eos=0.5))


def test_annealing_leaves_the_first_place_to_chance():
    """Two places, p = 0.9 and 0.7 of their tokens. Ranked by (1 - a) p + a U at a = 1/2, the second goes first if
    U2 - U1 > 0.2: probability 0.8^2 / 2 = 0.32. 400 rows: 0.12, five deviations, is left with probability 4e-7."""

    class Two(Coin):
        def __call__(self, z, t, cond=None):
            p = torch.tensor([[0.9, 0.1, 0.0], [0.7, 0.3, 0.0]], dtype=torch.float64)
            return p.log().expand(len(z), 2, 3)

    lm = LM(Two(), build_tokenizer("chars", ["ab"]), {"context": 2})

    def second_first(sampler):
        firsts = []

        def see(step):
            if step.index == 0:
                firsts.append(step.tokens[:, 0] == 3)

        lm.generate(length=2, steps=2, temperature=0.0, sampler=sampler, num=400, callback=see)
        return float(firsts[0].double().mean())

    assert second_first("low_confidence") == 0.0
    assert second_first(against.annealed(0.5)) == pytest.approx(0.32, abs=0.12)
    assert second_first(against.annealed(1.0)) == pytest.approx(0.5, abs=0.125)
    assert second_first(against.annealed(0.1)) == 0.0, "p decides where chance weighs too little"
    rows = torch.full((400, 2), 3)
    times = [torch.full((400,), time, dtype=torch.float64) for time in (0.5, 0.25)]
    draw = Draw(torch.zeros(400, 2, dtype=torch.bool), row_generators(0, rows=range(400)), temperature=0.0)
    ask = lm.denoiser
    after = against.annealed(0.5)(lm.process, lambda z, t, where: ask(z, t)[where], rows, *times, draw)
    share = float((after[:, 0] == 3).double().mean())
    assert share == pytest.approx(0.4**2 / 2, abs=0.07), "at t = 1/2 a is 1/4: U2 - U1 > 0.6"


def test_annealing_is_the_evaluations_sampler(lm):
    wrote = greedy(lm, [under.plain(30)], [REQUESTS[4]], [Setting()], defences=Defences(annealing=1.0))
    assert wrote["asr_k"]["hits"] == 1
    with pytest.raises(ValueError, match="sampler='sequential' with the defence 'annealed'"):
        greedy(lm, [under.plain(30)], defences=Defences(annealing=0.5))


def test_defences_by_name_and_their_mistakes():
    policy = against.phrases(["nuts"])
    assert against.by_name([]) is None
    assert against.by_name(["remask:times=2", "cap:tokens=4"], policy, "No.") == Defences(
        policy, 2, Cap(4), refusal="No."
    )
    assert against.by_name(["eos:above=0.25", "annealed"]) == Defences(eos=0.25, annealing=0.3)
    assert against.by_name(["policy"], policy).to_dict() == {"policy": "phrases (1)"}
    assert against.by_name(["cap"]).to_dict() == {"cap": {"tokens": 0, "spans": 1}}
    for names, given, refusal, words in (
        (["capp"], None, None, "unknown defence 'capp'; did you mean 'cap'"),
        (["cap:token=1"], None, None, "did you mean 'tokens'"),
        (["cap:tokens=x"], None, None, "should be like 0"),
        (["policy"], None, None, "need what is flagged"),
        (["cap"], policy, None, "need what is flagged"),
        (["annealed"], None, "No.", "without a defence that refuses"),
        (["remask:times=-1"], policy, None, "remask=-1"),
        (["eos:above=1"], None, None, "eos=1.0"),
        (["annealed:alpha=0"], None, None, "annealing=0.0"),
        (["cap"], None, " ", "refusal="),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            against.by_name(names, given, refusal)
    noisy = type("Noisy", (), {"process": processes.uniform(257), "facts": Facts()})()
    uniform = LM(noisy, build_tokenizer("bytes"), {"context": 8})
    with pytest.raises(ValueError, match="remask=1 with a uniform process"):
        Guard(uniform, Defences(policy, 1))
