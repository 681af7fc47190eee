"""Grammars: what is read, over which tokens, and what is refused with a way out."""

import sys

import lark
import pytest
import torch

from redraft import processes
from redraft.constraints import rules
from redraft.constraints.grammar import MAX_POSITIONS, grammar
from redraft.constraints.rules import MAX_TEXT, read
from redraft.data import build_tokenizer
from redraft.processes import Facts
from redraft.sampling import sample
from redraft.sampling.contract import Draw

AB = build_tokenizer("chars", ["ab"])


class Flat:
    """The same law everywhere, the lowest ids likeliest."""

    def __init__(self, K: int) -> None:
        self.K, self.facts = K, Facts(mask_id=K)

    def __call__(self, z, t, cond=None):
        return torch.arange(self.K, 0.0, -1).div(9).log_softmax(0).expand(*z.shape, -1)


def write(text: str, tokenizer, length: int, start: str = "start", **options) -> list[str]:
    """Texts of a grammar, those of fewer tokens too."""
    asked = {"sampler": "random_order", "stop": tokenizer.eos_id, "num": 4, "length": length, **options}
    process, constraint = processes.masked(tokenizer.K), grammar(text, tokenizer, start)
    found = sample(process, Flat(tokenizer.K), constraint=constraint, **asked)
    return [tokenizer.decode(row.tolist()) for row in found.tokens]


def accepts(text: str, written: str) -> bool:
    """Whether a grammar has a text of bytes."""
    tokenizer = build_tokenizer("bytes")
    ids = tokenizer.encode(written)
    bound = grammar(text, tokenizer).bind(
        processes.masked(tokenizer.K), torch.zeros(1, 0).long(), torch.zeros(1, 0).bool(), None
    )
    slots = [frozenset((int(bound.kinds[1, one]),)) for one in ids]
    return all(-1 not in slot for slot in slots) and bool(bound.lattice.chart(slots))


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ('start: "aB"i', ["ab", "AB"], ["a", "abb"]),
        ("start: /ab?|ba/", ["a", "ab", "ba"], ["b", "aba"]),
        ('start: /a+/ "a"', ["aa", "aaa"], ["a"]),
        ("start: X\nX: /[à-ü]/ | /./", ["é", "x", "日"], ["\n", "xx"]),
        ('start: "if" NAME\nNAME: /[a-z]+/', ["ifx", "ififif"], ["if"]),
        ('start: "a" "b"\n%ignore /\\s+/', ["ab", " a\n b\t"], ["", "a"]),
        ('start: x*\n?x: "a" -> one | y\n!y: "b"~2..3', ["", "abba", "bbbbb"], ["b", "bab"]),
        ("%import common.SIGNED_INT\nstart: SIGNED_INT", ["-12", "0"], ["1.5", "-"]),
        ('start: "a b" | "\\"" | "\\\\"', ["a b", '"', "\\"], ["a", "ab"]),
        ("start: /a b c/x | /x.y/s", ["abc", "x\ny"], ["a b c"]),
    ],
)
def test_what_a_grammar_has(text, inside, outside):
    """And lark says the same."""
    parse = lark.Lark(text, parser="earley", lexer="dynamic_complete")
    for one in inside:
        parse.parse(one)
        assert accepts(text, one), one
    for one in outside:
        with pytest.raises(lark.exceptions.LarkError):
            parse.parse(one)
        assert not accepts(text, one), one


def test_a_pattern_stands_for_all_it_matches():
    """Whichever of it ``re.match`` finds first, of alternatives and of what takes as little as it can."""
    assert all(accepts("start: /a|ab/", one) for one in ("a", "ab"))
    assert all(accepts("start: /a+?/", one) for one in ("a", "aa"))
    assert not accepts("start: /a|ab/", "aba")


def test_any_rule_may_be_the_first():
    text = 'start: "a"\nother: "b"'
    assert write(text, AB, 2) == ["a"] * 4
    assert write(text, AB, 2, start="other") == ["b"] * 4


@pytest.mark.parametrize(("name", "corpus"), [("bytes", []), ("chars", ["ab«»é "]), ("bpe", ["abé «abé» "] * 50)])
def test_letters_of_several_bytes(name, corpus):
    """Under any tokenizer; not half a letter is left."""
    tokenizer = build_tokenizer(name, corpus, vocab=270)
    text = 'start: "«" start? "»" | /[abé]{2}/'
    parse = lark.Lark(text, parser="earley", lexer="dynamic_complete")
    for seed in range(3):
        for one in write(text, tokenizer, 9, seed=seed):
            parse.parse(one)


def test_tokens_that_are_words():
    """The first of a text has no blank before it."""
    tokenizer = build_tokenizer("toy")
    words = write('start: NOUN (" are" | " is") /( s)+/\nNOUN: "cat" | "dog"', tokenizer, 5, stop=None)
    assert all(word.split()[0] in ("cat", "dog") and word.endswith(" s s s") for word in words)


def test_banned_tokens_are_none_that_a_text_may_need():
    """Of a^n b and stop, what is banned is never written, and without b there is no text."""
    text = 'start: "a"* "b"'
    assert write(text, AB, 5, sampler="low_confidence", temperature=0.0, banned=[0]) == ["b"] * 4
    with pytest.raises(ValueError, match="no text of the grammar"):
        write(text, AB, 5, sampler="low_confidence", banned=[1])


def doubling(levels: int, line: str) -> str:
    return "\n".join(line.format(at, at + 1) for at in range(levels)) + f'\nA{levels}: "aaaaaaaaaaaaaaaa"'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("start: nothing", "lark refuses the grammar: .*nothing"),
        ('start: "a" )', "lark refuses the grammar"),
        ("start: /a*/", "lark refuses the grammar: .*zero-width"),
        ("start: /(a/", "lark refuses the grammar"),
        ('other: "a"', "lark refuses the grammar: .*start"),
        ("%import .secrets.x\nstart: x", "%import of a file"),
        ("%declare X\nstart: X", "X is declared without a pattern"),
        ('start: a{"b"}\na{x}: x', "uses a template"),
        ("start: " + " ".join(["[/a/]"] * 30), "'start' stands for more than 2000 rules"),
        ("start: " + " ".join(["(/a/|/b/)"] * 30), "'start' stands for more than 2000 rules"),
        ("start: (/a/|/b/)~30", "'start' stands for more than 2000 rules"),
        ("start: /a(?=b)/ /b/", r"__ANON_0: .* looks at what stands beside it"),
        ("start: /^a/", "looks at what stands beside it"),
        ("start: /a$/", "looks at what stands beside it"),
        ("start: /[[a]b]/", "nested set .* put a backslash"),
        (r"start: /(a)\1/", "cannot be compiled"),
        ("start: /a{30000}/", "states"),
        ("start: /a++/", "possessive repeat or an atomic group"),
        ("start: /(?>a|ab)c/", "possessive repeat or an atomic group"),
        ("start: A0\n" + doubling(16, "A{0}: A{1} A{1}"), "the terminals up to A0 stand for more than 8000"),
        (
            "start: A0\n" + doubling(16, "A{0}.2: \\\n A{1} A{1} // A"),
            "the terminals up to A0 stand for more than 8000",
        ),
        ("start: A0\n" + doubling(16, "%extend A{0}: A{1} A{1}"), "the terminals up to A0 stand for more than 8000"),
        ("start: A\nA: B\nB: A", "terminal A is made of itself"),
        ("x" * (MAX_TEXT + 1), f"{MAX_TEXT + 1} characters"),
    ],
)
def test_what_is_no_grammar(text, said):
    with pytest.raises(ValueError, match=said):
        grammar(text, AB)


def test_terminals_of_terminals_are_read():
    assert accepts("start: A0\n" + doubling(3, "A{0}: A{1} A{1}"), "a" * 128)


def test_choices_at_the_top_do_not_multiply():
    """500 words, and 12 of them in a row, are few rules."""
    words = " | ".join(f'"w{number}"' for number in range(500))
    assert read(f"start: word~12\nword: {words}", "start").size > 500


def test_the_automata_together_are_bounded(monkeypatch):
    patterns = lark.Lark("start: A B\nA: /a{300}/\nB: /b{300}/", parser="earley").terminals
    monkeypatch.setattr(rules, "MAX_STATES", 500)
    with pytest.raises(ValueError, match="up to B need more than 500"):
        rules.lexer({one.name: one.pattern for one in patterns})


def test_a_negative_number_of_rejections():
    with pytest.raises(ValueError, match="rejections=-1"):
        grammar('start: "a"', AB, rejections=-1)


@pytest.mark.parametrize("library", ["lark", "outlines_core"])
def test_a_missing_library_is_named_with_its_extra(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=r"redraft\[guide\]"):
        grammar(f"start: /never met {library}/", AB)


def test_canvases_that_are_refused():
    made = grammar('start: "a"*', AB)
    masked = processes.masked(AB.K)
    empty = torch.zeros(1, MAX_POSITIONS + 1, dtype=torch.long)
    with pytest.raises(ValueError, match=f"over {MAX_POSITIONS + 1} positions"):
        made.bind(masked, empty, empty.bool(), None)
    with pytest.raises(ValueError, match="a uniform process"):
        made.bind(processes.uniform(AB.K), empty[:, :3], empty[:, :3].bool(), None)
    with pytest.raises(ValueError, match="stop=9 is no token"):
        made.bind(masked, empty[:, :3], empty[:, :3].bool(), 9)
    with pytest.raises(ValueError, match="no text of the grammar has the token 2, which stands at position 1"):
        made.bind(masked, torch.tensor([[0, 2, 0]]), torch.tensor([[False, True, False]]), None)


def test_a_canvas_that_is_given_whole_is_no_text_to_write():
    full = torch.ones(1, 2, dtype=torch.bool)
    options = {"constraint": grammar('start: "a"', AB), "sampler": "low_confidence"}
    found = sample(processes.masked(AB.K), Flat(AB.K), canvas=torch.tensor([[1, 1]]), frozen=full, **options)
    assert found.tokens.tolist() == [[1, 1]]


def test_what_a_callback_wrote_against_the_grammar():
    def spoil(step):
        return torch.where(step.z == AB.K, step.z, 1)

    with pytest.raises(ValueError, match="what a callback wrote"):
        write('start: "a" start "b" |', AB, 4, callback=spoil, sampler="low_confidence", temperature=0.0)


def test_a_written_token_that_is_asked_about_stays():
    """As for a revision; its law is the model's."""
    made = grammar('start: "a" start "b" |', AB)
    z = torch.tensor([[0, AB.K, AB.K, AB.K]])
    bound = made.bind(processes.masked(AB.K), torch.zeros_like(z), torch.zeros_like(z).bool(), None)
    logp = torch.randn(4, AB.K, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    tokens, given = bound.propose(z, torch.ones_like(z).bool(), logp, Draw(z == 9, None))
    assert tokens[0] == 0
    assert torch.equal(given[0], logp[0])
    assert tokens[3] == 1
