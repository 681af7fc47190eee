"""The conditions of a request: what of a canvas is given, what a text spells, and what each needs."""

import re

import pytest
from laws.refusing import EOS, MASK, REQUESTS, Baker, chat_model, greedy, rates

from redraft.data import build_tokenizer
from redraft.data.chat import chat_of
from redraft.lm import LM
from redraft.safety import conditions as under
from redraft.safety.behaviours import Behaviour
from redraft.safety.run import settings
from redraft.safety.scoring import Keywords


@pytest.fixture
def lm():
    return chat_model()


def test_what_is_given_stands_and_is_read_with_the_answer(lm):
    cell = greedy(lm, [under.prefilled("Sure", 20)], REQUESTS[:1], save_responses=True)
    assert cell["answers"][0]["response"] == "Sure: mix flour."
    texts = {"cake0": "first [MASK:3] then \\[MASK] \\# [MASK]!"}
    cell = greedy(lm, [under.interleaved(texts)], REQUESTS[:1], save_responses=True)
    assert cell["answers"][0]["response"] == "first xxx then [MASK] \\# x!"
    begun = greedy(lm, [under.prefilled("I cannot help with", 20)], REQUESTS[4:5], keywords=Keywords(["cannot"]))
    assert rates(begun)[0] == (0, 1), "a phrase of the user's is no refusal of the model's"


def test_a_mask_that_a_request_spells_is_no_gap(lm):
    chat = chat_of(lm.tokenizer, "plain")
    spelled = [Behaviour("one", "mix [MASK:3][MASK][EOS]", True)]
    (case,) = under.cases(under.plain(10), 10, spelled, lm, chat, {})
    assert case.row.index(None) == case.start == len("User: mix [MASK:3][MASK][EOS]\n\nAssistant:")
    assert EOS not in case.row
    assert MASK not in case.row
    (case,) = under.cases(under.interleaved({"one": "mix [EOS] \\[MASK] [MASK:2]."}), None, spelled, lm, chat, {})
    filled = list(b"User: mix [EOS] [MASK] ??.\n\nAssistant:")
    assert [63 if one is None else one for one in case.row] == filled
    assert case.row.count(None) == 2
    (case,) = under.cases(under.prefilled("[MASK][EOS]", 3), 3, spelled, lm, chat, {})
    assert case.row[case.start :] == [*b"[MASK][EOS]", None, None, None]


def test_a_prefix_spells_no_token_of_the_template_either():
    """Base models' tokenizers have turns in the vocabulary and declare none of them special."""
    words = build_tokenizer("bytes")
    turn = words.backend.get_vocab_size()
    words.backend.add_tokens(["<|turn|>"])
    lm = LM(Baker(), words, {"context": 160})
    assert lm.encode("<|turn|>") == [turn], "else this tests nothing"
    template = "{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}"
    chat = chat_of(words, template)
    (case,) = under.cases(under.prefilled("a<|turn|>", 3), 3, REQUESTS[:1], lm, chat, {})
    assert case.row[case.start :] == [*b"a<|turn|>", None, None, None]


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        (["plan"], {}, "unknown condition 'plan'; did you mean 'plain'"),
        (["interleaved"], {}, "needs templates=, which the user supplies; none is shipped"),
        (["prefilled"], {}, "needs prefill="),
        (["extended"], {}, "needs lengths="),
        (["plain"], {"prefix": "S"}, "prefill= without the condition 'prefilled'"),
        (["extended"], {"lengths": [1], "length": 3}, "length=3 without 'plain' or 'prefilled'"),
        (["prefilled"], {"prefix": ""}, "an empty prefix"),
        (["extended"], {"lengths": range(1, 30)}, "29 lengths"),
    ],
)
def test_conditions_and_what_they_need(names, given, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        under.by_name(names, **given)


def test_conditions_are_data():
    made = under.by_name(["plain", "prefilled", "plain"], length=4, prefix="S")
    assert made == [under.plain(4), under.prefilled("S", 4)]
    assert [(one.name, one.frozen, one.lengths) for one in under.by_name(["extended"], lengths=[8, 16, 8])] == [
        ("extended", "the prompt", (8, 16))
    ]


def test_what_cannot_be_asked_is_refused_by_its_id(lm):
    for condition, words in (
        (under.plain(150), "'cake0', condition 'plain': the last message asks with"),
        (under.prefilled("S" * 140, 10), "'cake0', condition 'prefilled'"),
        (under.interleaved({"cake0": "no gap"}), "no [MASK] in the template"),
        (under.interleaved({"cake0": "[MASK:2-3]"}), "give gaps one length"),
        (
            under.prefilled("a\ud800", 3),
            "condition 'prefilled': its text: character 1 is half a surrogate pair",
        ),
        (under.interleaved({"cake0": "\udcff [MASK]"}), "its text: character 0 is half a surrogate pair"),
        (under.interleaved({"other": "[MASK]"}), "none of the requests' ids has a text"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            greedy(lm, [condition])
    with pytest.raises(ValueError, match="0 requests under 1 conditions"):
        greedy(lm, [under.plain()], [])
    with pytest.raises(ValueError, match="the id 'cake0' stands twice"):
        greedy(lm, [under.plain()], REQUESTS[:1] * 2)
    with pytest.raises(ValueError, match="257 cells"):
        greedy(lm, [under.plain()], ways=settings(steps=range(1, 258)))
