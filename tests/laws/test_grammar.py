"""Grammars on canvases that are written in any order, against enumeration of all texts and against lark's parser."""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from itertools import product

import lark
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft import processes
from redraft.constraints.grammar import Grammar, grammar
from redraft.constraints.pieces import Pieces
from redraft.constraints.rules import read
from redraft.data import build_tokenizer
from redraft.processes import Facts
from redraft.sampling import sample
from redraft.sampling.contract import Draw, proposing
from redraft.sampling.law import Law
from redraft.sampling.proposal import masks, propose

from .exhaust import outcomes
from .prescribed import random_law

module = import_module("redraft.constraints.grammar")  # of which the package has the function

GRAMMARS = {
    "a^n b^n": ('start: "a" start "b" |', "ab"),
    "brackets": ('start: "(" start ")" start |', "()"),
    "ambiguous": ('start: start start | "(" start ")" | "a"', "(a)"),
    "left": ('start: start x |\nx: "a" | y\ny: | "b" y "b"', "ab"),
    "arithmetic": ('start: start "+" start | "(" start ")" | /1+/', "1+()"),
    "long": ('start: "a" "b"? "a" ["b" "b"] x~1..2\nx: "a" | /bb?/', "ab"),
    "ignored": ('start: /a+b/ ("," start)?\n%ignore " "', "ab, "),
    "nothing but blanks": ('start: "a"*\n%ignore /b+/', "ab"),
}
LETTERS = ["a", "b", "ab", "ba", "aab"]


def parser(text: str) -> lark.Lark:
    return lark.Lark(text, parser="earley", lexer="dynamic_complete")


@cache
def texts(name: str, length: int) -> frozenset[str]:
    """All texts of a grammar up to a length, by lark."""
    parse, found = parser(GRAMMARS[name][0]), set[str]()
    for size in range(length + 1):
        for letters in product(GRAMMARS[name][1], repeat=size):
            text = "".join(letters)
            try:
                parse.parse(text)
            except lark.exceptions.LarkError:
                continue
            found.add(text)
    return frozenset(found)


def of(name: str, pieces: Sequence[str], first: Sequence[str] | None = None) -> Grammar:
    """A grammar over tokens of these pieces, and one, the last, that is no text."""
    rest = (*(one.encode() for one in pieces), None)
    start = rest if first is None else (*(one.encode() for one in first), None)
    return Grammar(read(GRAMMARS[name][0], "start"), Pieces(start, rest))


def bound(made: Grammar, length: int, stop: int | None):
    """Of a canvas of masks alone, whether or not a text fits it."""
    K = len(made.pieces.rest)
    ids = torch.zeros(1, length, dtype=torch.long)
    return made.bind(processes.masked(K), ids, torch.zeros_like(ids, dtype=torch.bool), stop)


def rows(made: Grammar, name: str, length: int, most: int, stop: int | None) -> list[tuple[int, ...]]:
    """All rows of tokens whose text is one of the grammar's."""
    K, found = len(made.pieces.rest), list[tuple[int, ...]]()
    members = {text.encode() for text in texts(name, most)}
    for row in product(range(K), repeat=length):
        end = row.index(stop) if stop in row else length
        written = [(made.pieces.rest if at else made.pieces.first)[one] for at, one in enumerate(row[:end])]
        if any(one != stop for one in row[end:]) or None in written:
            continue
        if b"".join(one or b"" for one in written) in members:
            found.append(row)
    return found


def compared(made: Grammar, name: str, length: int, most: int, stop: int | None) -> int:
    """Every partial row: whether it can be completed, and by which tokens, as enumeration has it."""
    K = len(made.pieces.rest)
    whole = rows(made, name, length, most, stop)
    here = bound(made, length, stop)
    found = dict[tuple[int, ...], list[set[int]]]()
    for row in whole:
        for hidden in product((False, True), repeat=length):
            partial = tuple(K if hide else one for one, hide in zip(row, hidden, strict=True))
            sets = found.setdefault(partial, [set() for _ in range(length)])
            for at, one in enumerate(row):
                sets[at].add(one)
    for partial in product(range(K + 1), repeat=length):
        tokens = torch.tensor(partial)
        if any(one != K and int(here.kinds[min(at, 1), one]) < 0 for at, one in enumerate(partial)):
            assert partial not in found
            continue
        chart = here.lattice.chart(here._slots(0, tokens))
        assert bool(chart) == (partial in found), partial
        if chart:
            for at, kinds in enumerate(chart.viable):
                spelt = here.kinds[min(at, 1)].tolist()
                if partial[at] == K:
                    assert {one for one in range(K) if spelt[one] in kinds} == found[partial][at], (partial, at)
    return len(found)


SIZES = {2: 6, 3: 4, 4: 4}


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("name", GRAMMARS)
def test_what_can_be_completed_and_by_what_is_as_enumerated(name, ends):
    """All partial texts of tokens that are letters, and a stop token or none, of some length that a text has."""
    letters = GRAMMARS[name][1]
    length = SIZES[len(letters)]
    if not ends:
        length = max(size for size in range(length + 1) if any(len(text) == size for text in texts(name, length)))
    assert compared(of(name, letters), name, length, length, len(letters) if ends else None) > 30


@pytest.mark.parametrize("name", ["a^n b^n", "left", "long", "nothing but blanks"])
def test_tokens_of_several_letters(name):
    """Terminals end within tokens; the first token of a text may read otherwise."""
    assert compared(of(name, LETTERS), name, 3, 9, 5) > 20
    assert compared(of(name, LETTERS, ["b", "b", "b", "aa", "a"]), name, 3, 9, 5) > 20


@pytest.fixture
def narrow(monkeypatch):
    """No vocabulary is small enough to be looked at as a whole."""
    monkeypatch.setattr(module, "NODES", 1)
    monkeypatch.setattr(module, "FEWER", 1)


@pytest.mark.parametrize("name", ["a^n b^n", "left", "long"])
def test_narrowed_to_the_shortest_pieces_no_text_without_a_completion_is_let_pass(name, narrow):
    """And what is let pass always has a token that is let pass next, so that no run can end in between."""
    pieces = [*GRAMMARS[name][1], *LETTERS[2:]]
    made = of(name, pieces)
    K, stop, length = len(pieces) + 1, len(pieces), 3
    here, possible = bound(made, length, stop), set[tuple[int, ...]]()
    assert bool(here.beyond.any())
    for row in rows(made, name, length, 9, stop):
        for hidden in product((False, True), repeat=length):
            possible.add(tuple(K if hide else one for one, hide in zip(row, hidden, strict=True)))
    passed = 0
    for partial in product(range(K + 1), repeat=length):
        chart = here.lattice.chart(here._slots(0, torch.tensor(partial)))
        if chart:
            passed += 1
            assert partial in possible
            assert all(chart.viable)
    assert passed > 20


# ----------------------------------------------------------------------------------------------------------- proposals


def proposed(here, z: torch.Tensor, logp: torch.Tensor, where: torch.Tensor, **options):
    draw = Draw(torch.zeros_like(z, dtype=torch.bool), None, **options)
    return here.propose(z, where, logp[where], draw)


def sequential(whole, order, logp, z, mask):
    """The law of tokens drawn one after the other from those with which some row of ``whole`` agrees."""
    law = {tuple(z): 1.0}
    for at in order:
        after = dict[tuple[int, ...], float]()
        for partial, weight in law.items():
            fits = {row[at] for row in whole if all(one in (mask, two) for one, two in zip(partial, row, strict=True))}
            total = sum(logp[at, one].exp().item() for one in fits)
            for one in fits:
                key = (*partial[:at], one, *partial[at + 1 :])
                after[key] = after.get(key, 0.0) + weight * logp[at, one].exp().item() / total
        law = after
    return law


@pytest.mark.parametrize("asked", [(True, True, True, True), (True, False, True, False)])
def test_the_law_of_proposals_is_the_models_by_turns(asked):
    """The surest first, from the model's law of those tokens that leave a text; exactly, by every outcome."""
    made = of("left", "ab")
    here, whole = bound(made, 4, 2), rows(made, "left", 4, 4, 2)
    logp, where = random_law(1, 4, 3, seed=2), torch.tensor([asked])
    z = torch.full((1, 4), 3)
    order = [at for at in logp[0].amax(-1).argsort(descending=True).tolist() if asked[at]]
    expected, found = sequential(whole, order, logp[0], z[0].tolist(), 3), dict[tuple[int, ...], float]()

    def run():
        tokens = z.clone()
        tokens[where] = proposed(here, z, logp, where)[0]
        return tokens

    for tokens, weight in outcomes(run, 1):
        found[tuple(tokens[0].tolist())] = found.get(tuple(tokens[0].tolist()), 0.0) + weight.item()
    assert set(found) == set(expected)
    assert all(abs(found[key] - expected[key]) < 1e-12 for key in found)


def test_what_is_returned_is_the_law_each_token_was_drawn_from():
    """The model's, without what leaves no text, renormalised; the likeliest of it at temperature 0."""
    made = of("brackets", "()")
    here, whole = bound(made, 6, None), rows(made, "brackets", 6, 6, None)
    for seed in range(8):
        logp, z = random_law(1, 6, 3, seed=seed), torch.full((1, 6), 3)
        z[0, 2] = 1
        where = z == 3
        tokens, law = proposed(here, z, logp, where, temperature=0.0)
        places, partial = where[0].nonzero().flatten().tolist(), z[0].tolist()
        for one in logp[where].amax(-1).argsort(descending=True).tolist():
            fits = {row[places[one]] for row in whole if all(a in (3, b) for a, b in zip(partial, row, strict=True))}
            expected = torch.full((3,), -torch.inf, dtype=torch.float64)
            expected[list(fits)] = logp[where][one][list(fits)].log_softmax(0)
            assert torch.allclose(law[one], expected)
            partial[places[one]] = int(expected.argmax())
        assert tokens.tolist() == [partial[place] for place in places]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_part_of_what_is_proposed_may_be_written(data):
    name = data.draw(st.sampled_from(["a^n b^n", "left", "long", "arithmetic"]))
    several = len(GRAMMARS[name][1]) == 2 and data.draw(st.booleans())
    pieces = LETTERS if several else GRAMMARS[name][1]
    made, length = of(name, pieces), 3 if several else 4
    K, stop = len(pieces) + 1, len(pieces)
    whole = rows(made, name, length, 9 if several else 4, stop)
    row = data.draw(st.sampled_from(whole))
    hidden = torch.tensor([data.draw(st.lists(st.booleans(), min_size=length, max_size=length))])
    z = torch.where(hidden, K, torch.tensor([row]))
    where = hidden & torch.tensor([data.draw(st.lists(st.booleans(), min_size=length, max_size=length))])
    logp = random_law(1, length, K, seed=data.draw(st.integers(0, 99)))
    tokens, _ = proposed(bound(made, length, stop), z, logp, where, temperature=data.draw(st.sampled_from([0.0, 1.0])))
    for written in product((False, True), repeat=len(tokens)):
        partial = z.clone()
        partial[where] = torch.where(torch.tensor(written, dtype=torch.bool), tokens, K)
        assert any(all(a in (K, b) for a, b in zip(partial[0].tolist(), one, strict=True)) for one in whole)


# --------------------------------------------------------------------------------------------------------------- texts

JSON = r"""
start: value
?value: object | array | STRING | NUMBER | "true" | "null"
object: "{" [pair ("," pair)*] "}"
pair: STRING ":" value
array: "[" [value ("," value)*] "]"
STRING: /"[^"\\]*"/
NUMBER: /-?(0|[1-9][0-9]*)/
%ignore /[ \n]+/
"""
WRITTEN = {
    "brackets": (GRAMMARS["brackets"][0], "()x"),
    "arithmetic": ('start: start "+" start | start "*" start | "(" start ")" | /[0-9]+/', "0123+*()x"),
    "json": (JSON, '{}[],: "xtruenl01-\n'),
}
RULES = ["low_confidence", "random_order", "threshold:tau=0.3", "left_to_right", "confidence"]


class Noisy:
    """Any law, by the position, what stands before it, and the row's number of masks."""

    def __init__(self, K: int) -> None:
        self.K, self.facts, self.calls = K, Facts(mask_id=K), 0
        self.table = random_law(40, K + 1, K, seed=1, scale=2.0)

    def __call__(self, z, t, cond=None):
        self.calls += 1
        return self.table[torch.arange(z.shape[1]) % 40, z.roll(1, 1)]


@cache
def kit(name: str):
    """Tokenizer, constraint, parser."""
    text, letters = WRITTEN[name]
    tokenizer = build_tokenizer("chars", [letters])
    return tokenizer, grammar(text, tokenizer), parser(text)


def written(tokenizer, tokens: torch.Tensor) -> str:
    row = tokens.tolist()
    end = row.index(tokenizer.eos_id) if tokenizer.eos_id in row else len(row)
    assert all(one == tokenizer.eos_id for one in row[end:])
    return tokenizer.decode(row[:end])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WRITTEN)
def test_every_text_parses(name, rule, temperature):
    """Ragged prompts, which are no part of the text, and lengths; a batch is its rows, bit for bit."""
    tokenizer, constraint, parse = kit(name)
    process, denoiser = processes.masked(tokenizer.K), Noisy(tokenizer.K)
    options = {"sampler": rule, "temperature": temperature, "constraint": constraint, "stop": tokenizer.eos_id}
    prompts, lengths = [tokenizer.encode(one) for one in ("x", "xx", "x")], [9, 10, 9]
    found = sample(process, denoiser, prompt=prompts, length=lengths, seeds=[1, 2, 3], num=3, **options)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        text = found.tokens[row, len(prompt) : len(prompt) + length]
        parse.parse(written(tokenizer, text))
        alone = sample(process, denoiser, prompt=prompt, length=length, seeds=[row + 1], **options)
        assert torch.equal(alone.tokens[0], found.tokens[row, : len(prompt) + length])


@pytest.mark.parametrize("options", [{"block": 3}, {"steps": 2}, {"top_k": 2}, {"top_p": 0.3}, {"min_length": 6}])
def test_every_text_parses_whatever_else_is_asked(options):
    tokenizer, constraint, parse = kit("arithmetic")
    process, denoiser = processes.masked(tokenizer.K), Noisy(tokenizer.K)
    asked = {"length": 10, "num": 4, "stop": tokenizer.eos_id, "constraint": constraint, "sampler": "low_confidence"}
    found = sample(process, denoiser, prompt=tokenizer.encode("x"), **asked, **options)
    lines = [written(tokenizer, row[1:]) for row in found.tokens]
    for line in lines:
        parse.parse(line)
    assert min(map(len, lines)) >= options.get("min_length", 1)


def test_blocks_of_rows_that_end_apart():
    """Rows whose texts end at other places, some of them in the first block; each is as if alone."""
    tokenizer, constraint, parse = kit("brackets")
    canvas = torch.tensor([tokenizer.encode("x((((((((((("), tokenizer.encode("x((((((((xxx")] * 4)
    frozen = canvas == tokenizer.encode("x")[0]
    options = {"stop": tokenizer.eos_id, "constraint": constraint, "sampler": "random_order", "block": 4}
    process, denoiser = processes.masked(tokenizer.K), Noisy(tokenizer.K)
    found = sample(process, denoiser, canvas=canvas, frozen=frozen, seeds=list(range(8)), **options)
    sizes = list[int]()
    for row, (tokens, known) in enumerate(zip(found.tokens, frozen, strict=True)):
        free = (~known).nonzero().flatten()
        sizes.append(len(line := written(tokenizer, tokens[free[0] : free[-1] + 1])))
        parse.parse(line)
        alone = sample(process, denoiser, canvas=canvas[row], frozen=known, seeds=[row], **options)
        assert torch.equal(alone.tokens[0], tokens)
    assert min(sizes) < 4 < max(sizes)


def test_some_rows_of_a_constraint():
    """Of canvases whose texts stand elsewhere, with other tokens given."""
    tokenizer, constraint, _ = kit("brackets")
    process, K = processes.masked(tokenizer.K), tokenizer.K
    canvas = torch.tensor([tokenizer.encode(one) for one in ("xx(((((x", "x((()(((", "((()((((")])
    frozen = torch.tensor([[one in "x)" for one in row] for row in ("xx(((((x", "x((()(((", "((()((((")])
    bound = constraint.bind(process, canvas, frozen, tokenizer.eos_id)
    z, rows = torch.where(frozen, canvas, K), torch.tensor([2, 0])
    logp = random_law(3, 8, K, seed=5)
    for here, part in ((bound, slice(0, 8)), (bound.within(3, 6, z), slice(3, 6))):
        where, numbers = (z == K)[:, part], torch.zeros_like(z[:, part])
        tokens, law = proposed(here, z[:, part], logp[:, part], where, temperature=0.0)
        some, own = proposed(here.rows(rows), z[rows, part], logp[rows, part], where[rows], temperature=0.0)
        numbers[where] = torch.arange(len(tokens))
        places = numbers[rows][where[rows]]
        assert torch.equal(some, tokens[places])
        assert torch.equal(own, law[places])


def test_narrowed_to_the_shortest_pieces_every_text_parses(narrow):
    """Byte pairs, of which only bytes are looked at beforehand; others are tried, as often as ``rejections`` allows."""
    corpus = ['{"xx": [true, null, "tree", 100], "xx": "true"}'] * 9
    tokenizer, parse = build_tokenizer("bpe", corpus, vocab=290), parser(JSON)
    process, denoiser = processes.masked(tokenizer.K), Noisy(tokenizer.K)
    found = list[str]()
    for rejections in (0, 1, 100):
        constraint = grammar(JSON, tokenizer, rejections=rejections)
        options = {"sampler": "random_order", "stop": tokenizer.eos_id, "constraint": constraint}
        tokens = sample(process, denoiser, length=8, num=8, **options).tokens
        found.append("\n".join(written(tokenizer, row) for row in tokens))
        for row in tokens:
            parse.parse(written(tokenizer, row))
        longest = max(len(piece) for row in tokens for one in row if (piece := constraint.pieces.rest[one]) is not None)
        assert (longest > 1) == (rejections > 0)
    assert len(found[0].encode()) < len(found[1].encode()) < len(found[2].encode())


@proposing
def anywhere(process, denoiser, z, t, s, draw):
    """Any part of the proposals, told by the callback below."""
    open_ = masks("low_confidence", process, z, draw)
    chosen = open_ & (ORDER.pop() | (open_.cumsum(1) == 1))
    return propose(process, denoiser, z, t, s, draw, open_).write(chosen)


ORDER: list[torch.Tensor] = []


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(sorted(WRITTEN)), st.integers(1, 12))
def test_any_order_of_writing_ends_in_a_text(seed, name, length):
    tokenizer, constraint, parse = kit(name)
    noise = torch.Generator().manual_seed(seed)
    ORDER[:] = [torch.rand(1, length, generator=noise) < 0.3 for _ in range(length)]
    options = {"sampler": anywhere, "stop": tokenizer.eos_id, "constraint": constraint, "seed": seed}
    found = sample(processes.masked(tokenizer.K), Noisy(tokenizer.K), length=length, **options)
    parse.parse(written(tokenizer, found.tokens[0]))


def test_given_tokens_are_part_of_the_text():
    """Those between the first free position and the last; what stands outside is context."""
    tokenizer, constraint, parse = kit("arithmetic")
    process, denoiser = processes.masked(tokenizer.K), Noisy(tokenizer.K)
    text, frozen = tokenizer.encode("x00)(00x"), torch.tensor([one in "x()" for one in "x00)(00x"])
    with pytest.raises(ValueError, match="tokens given between"):
        sample(process, denoiser, canvas=torch.tensor(text), frozen=frozen, constraint=constraint, sampler="threshold")
    assert denoiser.calls == 0
    canvas = torch.tensor([tokenizer.encode("x00(00+00*00)x"), tokenizer.encode("xx0+(0*000)0*0")])
    frozen = torch.tensor([[one in "x(+)" for one in "x00(00+00*00)x"], [one in "x(+)" for one in "xx0+(0*000)0*0"]])
    found = sample(process, denoiser, canvas=canvas, frozen=frozen, constraint=constraint, sampler="random_order")
    assert torch.equal(found.tokens[frozen], canvas[frozen])
    for row, known in zip(found.tokens, frozen, strict=True):
        free = (~known).nonzero().flatten()
        parse.parse(tokenizer.decode(row[free[0] : free[-1] + 1].tolist()))


@pytest.mark.parametrize(("text", "lengths", "stop"), [('"a" start "b" |', [4, 5], False), ('"a"~4', [4, 3], True)])
def test_what_has_no_text_is_refused_before_the_model_is_asked(text, lengths, stop):
    """Too odd, too short."""
    tokenizer = build_tokenizer("chars", ["ab"])
    constraint = grammar(f"start: {text}", tokenizer)
    denoiser = Noisy(tokenizer.K)
    options = {"constraint": constraint, "sampler": "low_confidence", "stop": tokenizer.eos_id if stop else None}
    with pytest.raises(ValueError, match=rf"no text of the grammar fits the {lengths[1]} positions 1 to {lengths[1]}:"):
        sample(processes.masked(tokenizer.K), denoiser, length=lengths[1], prompt=[0], **options)
    assert denoiser.calls == 0
    sample(processes.masked(tokenizer.K), denoiser, length=lengths[0], prompt=[0], **options)


def test_a_row_is_looked_at_by_its_own_span(monkeypatch):
    """A longer text beside it, for which fewer kinds of tokens can be looked at, changes nothing of a row."""
    monkeypatch.setattr(module, "NODES", 16)
    monkeypatch.setattr(module, "FEWER", 6)
    pieces = ("a", "b", "ab", "aab", "bab", "abba")
    rest = (*(one.encode() for one in pieces), None)
    constraint = Grammar(read('start: "a" start "b" |', "start"), Pieces(rest, rest), 0)
    process, denoiser = processes.masked(7), Noisy(7)
    canvas = torch.zeros(2, 8, dtype=torch.long)
    frozen = torch.arange(8) >= torch.tensor([[2], [8]])
    options = {"sampler": "random_order", "constraint": constraint, "steps": 8}  # so that they are written together
    texts = set()
    for seed in range(12):
        seeds = [seed, seed + 50]
        both = sample(process, denoiser, canvas=canvas, frozen=frozen, seeds=seeds, stop=6, **options)
        for row in range(2):
            mine = {"canvas": canvas[row], "frozen": frozen[row], "seeds": [seeds[row]], "stop": 6, **options}
            assert torch.equal(sample(process, denoiser, **mine).tokens[0], both.tokens[row])
        texts.add(tuple(both.tokens[0, :2].tolist()))
    assert len(texts) > 2


@pytest.mark.parametrize("rule", ["random_order", "left_to_right", "low_confidence"])
def test_bans_are_no_way_out(rule):
    """Of masks not asked about too: ab or cd without b is cd; a or bbb of three tokens at least is bbb."""
    tokenizer = build_tokenizer("chars", ["abcd"])
    process, denoiser = processes.masked(tokenizer.K), Noisy(tokenizer.K)
    a, b, _, d = tokenizer.encode("abcd")
    pair, three = grammar('start: "ab" | "cd"', tokenizer), grammar('start: "a" | "bbb"', tokenizer)
    for seed in range(10):
        options = {"sampler": rule, "seed": seed}
        found = sample(process, denoiser, length=2, constraint=pair, banned=[b], **options)
        assert tokenizer.decode(found.tokens[0].tolist()) == "cd"
        asked = {"prompt": [a], "constraint": three, "stop": tokenizer.eos_id, **options}
        found = sample(process, denoiser, length=3, min_length=3, **asked)
        assert tokenizer.decode(found.tokens[0].tolist()) == "abbb"
    denoiser = Noisy(tokenizer.K)
    with pytest.raises(ValueError, match="banned"):
        sample(process, denoiser, length=2, constraint=pair, banned=[b, d], **options)
    with pytest.raises(ValueError, match="min_length"):
        sample(process, denoiser, length=4, min_length=4, constraint=three, stop=tokenizer.eos_id, **options)
    assert denoiser.calls == 0
    canvas, frozen = torch.tensor([0, b, 0]), torch.tensor([False, True, False])  # a given token may be a banned one
    options["constraint"] = grammar('start: "abd"', tokenizer)
    found = sample(process, denoiser, canvas=canvas, frozen=frozen, banned=[b], **options)
    assert found.tokens.tolist() == [[a, b, d]]


def test_bans_hold_of_masks_that_are_not_asked_about():
    """Every partial row, as enumeration has it of rows whose new tokens are not banned, nor stop before its time."""
    made, length, banned, stop, earliest = of("left", "ab"), 4, 1, 2, 2
    ids = torch.zeros(1, length, dtype=torch.long)
    law = Law(torch.tensor([banned]), stop, torch.tensor([earliest]))
    here = made.bind(processes.masked(3), ids, torch.zeros_like(ids, dtype=torch.bool), stop, law)
    whole, seen = rows(made, "left", length, length, stop), 0
    for partial in product(range(4), repeat=length):
        new = [at for at, one in enumerate(partial) if one == 3]
        possible = any(
            all(a in (3, b) for a, b in zip(partial, row, strict=True))
            and all(row[at] != banned and not (row[at] == stop and at < earliest) for at in new)
            for row in whole
        )
        assert bool(here.lattice.chart(here._slots(0, torch.tensor(partial)))) == possible, partial
        seen += possible
    assert seen > 10
