"""Constraints on text: what each id contributes, what a pattern compiles to, what is refused."""

import json
import re
import sys
from itertools import product
from unittest.mock import patch

import pytest
import tokenizers
import torch
from tokenizers import decoders, models

import redraft
from redraft import processes
from redraft.constraints import automaton, bytewise, choices, each, json_schema, json_template, of_edges, regex
from redraft.constraints.compile import pattern_of
from redraft.constraints.pieces import pieces
from redraft.data import Tokenizer, build_tokenizer, toy
from redraft.processes import Facts
from redraft.sampling import sample

TEXT = "the cat sat: 12, 7 and déjà vu\n" * 3
OURS = {name: build_tokenizer(name, [TEXT], vocab=280) for name in ("bytes", "bpe", "chars", "toy")}


def foreign(vocabulary, decoder, **special) -> Tokenizer:
    """A Hugging Face tokenizer of these tokens."""
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(models.WordLevel({name: i for i, name in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.decoder = decoder
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]", **special)
    return Tokenizer(hf.backend_tokenizer, "hf", hf)


LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
FOREIGN = {
    "wordpiece": foreign(["[UNK]", "[MASK]", "a", "##a", "b", "##ab", ","], decoders.WordPiece()),
    "sentencepiece": foreign(["[UNK]", "[MASK]", "▁", "a", "▁a", "b▁", "<0xC3>", "<0xA9>", "<0x20>"], LLAMA),
    "metaspace": foreign(["[UNK]", "[MASK]", "▁", "a", "▁a", "ab"], decoders.Metaspace()),
}
ALL = OURS | FOREIGN


def usable(tokenizer) -> list[int]:
    return [one for one, piece in enumerate(pieces(tokenizer).rest) if piece is not None]


@pytest.mark.parametrize("name", ALL)
def test_a_text_is_its_pieces(name):
    """Of all pairs of ids and the tokenizer's own texts; but for bytes that are no text."""
    tokenizer, made = ALL[name], pieces(ALL[name])
    rows = [list(row) for row in product(usable(tokenizer)[:60], repeat=2)]
    if name in OURS:
        rows.append(tokenizer.encode("our dog s are" if name == "toy" else TEXT, pad=False))
    for row in rows:
        text = made.text(row).decode(errors="replace")
        assert text == tokenizer.decode(row) or "\ufffd" in text, row


@pytest.mark.parametrize("name", ALL)
def test_special_tokens_are_no_text(name):
    tokenizer, made = ALL[name], pieces(ALL[name])
    for one in (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id):
        assert one is None or made.rest[one] is None is made.first[one]
    if name in FOREIGN:
        assert made.rest[0] is None  # [UNK]
    assert len(made.rest) >= tokenizer.K


def test_a_tokenizer_without_pieces_is_refused():
    """Where the last token of a text reads otherwise than before another, texts are not made of pieces."""
    with pytest.raises(ValueError, match="'hf' tokenizer whose texts are not"):
        pieces(foreign(["[UNK]", "[MASK]", "a</w>", "b</w>", "c"], decoders.BPEDecoder()))


HALVES = ["[UNK]", "[MASK]", "a", "Ġb", "Ã", "©"]


def test_bytes_of_letters_in_a_sequence():
    """Half a character is a byte, wherever the decoder stands; with one more that changes the text, it is refused."""
    sequence = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    for decoder in (decoders.ByteLevel(), sequence, decoders.Sequence([sequence])):
        made = pieces(foreign(HALVES, decoder))
        assert made.rest[3:] == (b" b", b"\xc3", b"\xa9") == made.first[3:]
        tokenizer = foreign(HALVES, decoder)
        assert tokenizer.decode([4, 5, 2]) == "éa" == made.text([4, 5, 2]).decode()
    with pytest.raises(ValueError, match="whose texts are not"):
        pieces(foreign(HALVES, decoders.Sequence([decoders.ByteLevel(), decoders.Replace("a", "b")])))


SMALL = {
    "chars": build_tokenizer("chars", ["ab1 é"]),
    "toy": OURS["toy"],
    "wordpiece": FOREIGN["wordpiece"],
    "sentencepiece": FOREIGN["sentencepiece"],
    "metaspace": FOREIGN["metaspace"],
}
PATTERNS = [
    "a|ab",
    "(a|b)*ab",
    "a*?b??",
    "[^a]*",
    "é+ ?",
    " ?a+( a+)*",
    "(b|a b)(1| )?",
    "",
    "a{2,3}.?",
    r"\w+(, ?\w+)*",
]
PATTERNS += ["(our|their) (dog|cat)", "we are .*s", "(we|you)( s)*"]


def accepts(made, ids) -> bool:
    state = 0
    for one in ids:
        symbol = made.symbol[one] if one < len(made.symbol) else -1
        state = -1 if symbol < 0 else made.next[state, symbol]
        if state < 0:
            return False
    return bool(made.accept[state])


@pytest.mark.parametrize("name", SMALL)
def test_exactly_the_texts_that_match(name):
    """Of all sequences of up to 4 ids (3 of many) those are accepted whose text matches as a whole, and no others."""
    tokenizer, both = SMALL[name], 0
    allowed, longest = usable(tokenizer), 4 if len(usable(tokenizer)) < 9 else 3
    for pattern in PATTERNS:
        try:
            made = regex(pattern, tokenizer).automaton
        except ValueError:
            texts = [tokenizer.decode(row) for n in (1, 2) for row in product(allowed, repeat=n)]
            assert not any(re.fullmatch(pattern, text) for text in texts)
            continue
        for length in range(longest + 1):
            for row in product(range(tokenizer.K), repeat=length):
                text = pieces_text(tokenizer, row)
                right = text is not None and re.fullmatch(pattern, text) is not None
                assert accepts(made, row) == right, (pattern, row, text)
                both += right
    assert both > 50


_MADE = {name: pieces(tokenizer) for name, tokenizer in SMALL.items()}


def pieces_text(tokenizer, row):
    """What ids decode to; None for special ones and what is no UTF-8. Test above: it is what the tokenizer says."""
    made = next(made for name, made in _MADE.items() if SMALL[name] is tokenizer)
    if any(made.rest[one] is None for one in row):
        return None
    try:
        return made.text(row).decode()
    except UnicodeDecodeError:
        return None


def uniform_law(process):
    def denoiser(z, t, cond=None):
        logits = torch.randn(process.K, generator=torch.Generator().manual_seed(int(z.sum())))
        return logits.log_softmax(-1).expand(*z.shape, -1)

    denoiser.facts = Facts(mask_id=process.mask_id)
    return denoiser


def written(tokenizer, constraint, length=12, num=6, **options):
    process = processes.masked(tokenizer.K)
    stop = tokenizer.pad_id if tokenizer.eos_id is None else tokenizer.eos_id
    options = {"stop": stop, "sampler": "random_order", "steps": 5, **options}
    found = sample(process, uniform_law(process), length=length, num=num, constraint=constraint, **options)
    return [tokenizer.decode(row[: row.index(stop)] if stop in row else row) for row in found.tokens.tolist()]


@pytest.mark.parametrize("pattern", ["[a-d]+é?", "[0-9]{1,3}(, [0-9]{1,3})*", "(the|a) (cat|déjà)( sat)*", "[^a]*"])
@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_written_texts_match(name, pattern):
    texts = written(OURS[name], regex(pattern, OURS[name]))
    assert all(re.fullmatch(pattern, text) for text in texts), texts
    assert len(set(texts)) > 1


def test_toy_texts_are_words_with_blanks_between():
    texts = written(OURS["toy"], regex("(we|you|they) are (our|their) (dog|cat) s", OURS["toy"]), toy.LENGTH, 20)
    assert all(toy.is_sentence(text) for text in texts)
    assert len(set(texts)) > 5


def test_choices_are_any_texts():
    """No pattern: what means something in one is text."""
    texts = ["yes", "no", "a.b|c*", "déjà vu", "no way"]
    found = written(OURS["bpe"], choices(texts, OURS["bpe"]), num=60, temperature=5.0)
    assert set(found) == set(texts)
    made = choices(["a", "b1", "é"], SMALL["chars"]).automaton
    rows = [row for n in range(4) for row in product(range(SMALL["chars"].K), repeat=n) if accepts(made, row)]
    assert sorted(pieces_text(SMALL["chars"], row) for row in rows) == ["a", "b1", "é"]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "n": {"type": "integer"},
        "ok": {"type": "boolean"},
        "kind": {"enum": ["x", "y"]},
    },
    "required": ["name", "n", "ok", "kind"],
}


def is_of_schema(text: str) -> bool:
    said = json.loads(text)
    return (
        list(said) == ["name", "n", "ok", "kind"]
        and isinstance(said["name"], str)
        and len(said["name"]) <= 5
        and type(said["n"]) is int
        and type(said["ok"]) is bool
        and said["kind"] in ("x", "y")
    )


def test_json_of_a_schema():
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        texts = written(OURS["bpe"], json_schema(schema, OURS["bpe"]), length=60, num=4, steps=20)
        assert all(is_of_schema(text) for text in texts), texts
    wide = regex(r" *\{\s*\}", OURS["bytes"]).automaton.least()
    assert json_schema({"type": "null"}, OURS["bytes"], whitespace=" *").automaton.least() == 4
    assert wide == 2


def test_a_template_is_filled_in():
    """Braces and names are given; whatever stands in the gaps, it is JSON of the schema, however short the values."""
    tokenizer = OURS["bytes"]
    text, constraint = json_template(SCHEMA, tokenizer, {"name": 7, "n": 4, "ok": 6, "kind": 3})
    assert text == '{"name": [MASK:7], "n": [MASK:4], "ok": [MASK:6], "kind": [MASK:3]}'
    row = tokenizer.encode_template(text)
    canvas, frozen = torch.tensor([one or 0 for one in row]), torch.tensor([one is not None for one in row])
    process = processes.masked(tokenizer.K)
    for sampler in ("random_order", "left_to_right"):
        found = sample(
            process,
            uniform_law(process),
            canvas=canvas,
            frozen=frozen,
            num=5,
            stop=tokenizer.eos_id,
            sampler=sampler,
            constraint=constraint,
        )
        assert all(is_of_schema(tokenizer.decode(row)) for row in found.tokens.tolist())
    assert len(json_template(SCHEMA, tokenizer)[1].gaps) == 4
    assert json_template({"properties": {"[MASK]": {"type": "null"}}}, tokenizer)[0] == '{"\\[MASK]": [MASK:4]}'


def refusals():
    tokenizer = OURS["chars"]
    yield lambda: regex("^ab", tokenizer), "pattern '\\^ab' cannot be compiled"
    yield lambda: regex("(a", tokenizer), "pattern '\\(a' cannot be compiled"
    yield lambda: regex("a)(b", tokenizer), "cannot be compiled"
    yield lambda: regex(r"(a)\1", tokenizer), "look-around and references"
    yield lambda: regex(r"[^\s\S]", tokenizer), "nothing matches it"
    yield lambda: regex("[ab]*a[ab]{13}", tokenizer), "needs 16385 states: at most 4000"
    yield lambda: regex("a" * 20_001, tokenizer), "of 20001 characters"
    yield lambda: regex("Z", tokenizer), "no text over these tokens"
    yield lambda: choices([], tokenizer), r"choices=\[\]"
    yield lambda: choices("yes", tokenizer), "choices='yes'"
    yield lambda: choices(["a" * 20_001], tokenizer), "20001 characters"
    yield lambda: json_schema({"type": "nothing"}, tokenizer), "JSON Schema .* cannot be compiled"
    yield lambda: json_schema("{", tokenizer), "JSON Schema { cannot be compiled"
    yield lambda: json_schema({"const": "a" * 20_001}, tokenizer), "at most 20000"
    yield lambda: json_schema({"type": object}, tokenizer), "cannot be compiled"
    yield lambda: json_template({"type": "string"}, tokenizer), "without properties"
    yield lambda: json_template(SCHEMA, tokenizer, {"n": 3}), "pass one for each"
    yield lambda: of_edges(2, 3, [(0, 3, 1)], [1]), "ids to 2"
    yield lambda: of_edges(3, 3, [(0, 1, 1), (0, 1, 2)], [1]), "two edges from state 0 with id 1"
    yield lambda: of_edges(2, 3, [(0, 1, 1)], []), "no text over these tokens"


@pytest.mark.parametrize(("make", "said"), list(refusals()))
def test_what_cannot_be_made_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_pattern_without_end_is_given_up():
    """It would ask for 2^40 states."""
    with patch.object(bytewise, "SECONDS", 0.5), pytest.raises(ValueError, match=r"more than 0.5 seconds or"):
        regex("[ab]*a[ab]{40}", OURS["chars"])


def test_automata_are_bounded():
    with patch.object(automaton, "MAX_STATES", 3), pytest.raises(ValueError, match=r"4 states .* at most 3"):
        choices(["abc", "abd", "xyz"], OURS["bytes"])
    with patch.object(automaton, "MAX_EDGES", 3), pytest.raises(ValueError, match="symbols over these tokens"):
        choices(["abc", "abd", "xyz"], OURS["bytes"])


@pytest.mark.parametrize("make", [lambda one: regex("b+a", one), lambda one: json_schema({"type": "null"}, one)])
def test_the_extra_is_named_if_it_is_missing(make):
    with patch.dict(sys.modules, {"outlines_core": None}), pytest.raises(ValueError, match=r"redraft\[guide\]"):
        make(OURS["chars"])
    choices(["a"], OURS["chars"])


def test_misfits_are_refused():
    tokenizer = OURS["chars"]
    constraint = choices(["the"], tokenizer)
    uniform, masked = processes.uniform(tokenizer.K), processes.masked(tokenizer.K)
    with pytest.raises(ValueError, match="a uniform process"):
        sample(uniform, uniform_law(uniform), length=3, sampler="low_confidence", constraint=constraint)
    for options, said in (
        ({"sampler": "ancestral"}, "a sampler that proposes"),
        ({"sampler": "threshold", "stop": 99}, "stop.*99"),
        ({"sampler": "threshold", "strength": 0.5, "canvas": torch.zeros(3).long(), "length": None}, "leave one out"),
    ):
        with pytest.raises(ValueError, match=said):
            sample(masked, uniform_law(masked), **{"length": 3, "constraint": constraint, **options})


def test_a_callback_that_writes_what_cannot_be_is_told():
    tokenizer = OURS["chars"]
    process = processes.masked(tokenizer.K)

    def spoil(step):
        z = step.z.clone()
        z[:, 0] = tokenizer.encode("a")[0]
        return z

    for sampler in ("left_to_right", "low_confidence", "random_order"):
        with pytest.raises(ValueError, match="contradicts the tokens on the canvas"):
            sample(
                process,
                uniform_law(process),
                length=3,
                steps=3,
                sampler=sampler,
                constraint=choices(["the"], tokenizer),
                callback=spoil,
            )


def test_models_of_more_or_fewer_ids_than_the_tokenizer():
    """A padded vocabulary has ids that no text has; a mask among the ids is none either."""
    tokenizer = OURS["chars"]
    constraint = choices(["the"], tokenizer)
    wide = processes.masked(tokenizer.K + 9)
    found = sample(wide, uniform_law(wide), length=3, sampler="threshold", constraint=constraint)
    assert tokenizer.decode(found.tokens[0]) == "the"
    inside = processes.masked(tokenizer.K, mask_id=tokenizer.encode("h")[0])
    with pytest.raises(ValueError, match="no text over these tokens"):
        sample(inside, uniform_law(inside), length=3, sampler="threshold", constraint=constraint)


def test_they_are_public():
    assert redraft.constraints.regex is regex
    assert redraft.constraints.each is each


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 0},
        {"type": "array", "items": {"type": "number", "multipleOf": 2}},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "integer", "maximum": 3}, {"type": "null"}]}}},
        {"$defs": {"n": {"type": "array", "uniqueItems": True}}, "properties": {"a": {"$ref": "#/$defs/n"}}},
        {"allOf": [{"type": "null"}, {"type": "boolean"}]},
        {"properties": {"a": {}}, "required": ["b"]},
        {"type": "object", "minProperties": 1},
        {"type": "object", "maxProperties": 1},
        {"prefixItems": [{"type": "null"}], "minItems": 2},
        {"prefixItems": [{"type": "null"}], "items": {"type": "null"}},
        {"$ref": "#/$defs/a", "maxLength": 2, "$defs": {"a": {"type": "string"}}},
        {"anyOf": [{"type": "string"}], "maxLength": 2},
        {"anyOf": [{"type": "object"}], "properties": {"a": {}}},
        {"oneOf": [{"type": "null"}], "type": "null"},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"oneOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]},
        {"enum": ["a"], "minLength": 2},
        {"const": "a", "maxLength": 0},
        {"type": "string", "pattern": "a", "minLength": 2},
        {"type": "string", "format": "date", "minLength": 2},
        {"type": "string", "format": "email"},
        {"type": "string", "pattern": "(?i)a"},
        {"type": "string", "pattern": "(?i:a)"},
        {"type": "string", "pattern": "a^b"},
        {"type": "string", "pattern": "a(?=b)"},
        {"type": "string", "pattern": "a++"},
        {"type": "string", "pattern": r"\s"},
        {"type": "integer", "maxLength": 2},
        {"properties": {'a"b': {}}},
        {"const": [{"a\n": 1}]},
        {"surprise": 1},
    ],
)
def test_what_a_schema_asks_and_a_pattern_cannot_say_is_refused(schema):
    with pytest.raises(ValueError, match="would not hold"):
        pattern_of(schema)


def test_a_property_may_have_the_name_of_a_keyword():
    assert '"minimum"' in pattern_of({"type": "object", "properties": {"minimum": {"type": "null"}}})


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "string", "pattern": '["a]'}, "JSON escapes"),
        ({"type": "string", "pattern": "[ -z]"}, "JSON escapes"),
        ({"type": "string", "pattern": "\\\\"}, "JSON escapes"),
        ({"type": "string", "pattern": "(a"}, "string pattern"),
        ({"properties": {"a": {"$ref": "#"}}}, "leads back to itself"),
        ({"$ref": "#/$defs/a"}, "leads nowhere"),
        ({"$ref": "other.json"}, "not to a part of the schema"),
        ({"enum": ["a"], "type": "null"}, "is not of type"),
        ({"type": "string", "maxLength": 2.5}, "an integer of at least 0"),
        ({"type": "array", "items": {}, "minItems": 3, "maxItems": 2}, "is above"),
        ({"enum": []}, "at least one value"),
        ({"anyOf": []}, "at least one schema"),
        ({"type": []}, "no type is left"),
        ({"type": "array", "items": False, "minItems": 1}, "no array of no items"),
        (False, "no schema that a text could be of"),
        ({"properties": {f"p{i}": {"properties": {f"q{i}": {} for i in range(9)}} for i in range(99)}}, "levels or"),
        ({"properties": {f"p{i}": {"type": "integer"} for i in range(99)}}, "its pattern has"),
    ],
)
def test_no_schema_for_a_pattern(schema, said):
    with pytest.raises(ValueError, match=said):
        pattern_of(schema)


def nested(levels, schema=None):
    for _ in range(levels):
        schema = {"type": "array", "items": schema or {"type": "null"}}
    return schema


def test_schemas_are_bounded():
    with pytest.raises(ValueError, match="too many levels"):
        pattern_of(nested(3000))
    with pytest.raises(ValueError, match="more than 12 levels"):
        pattern_of(nested(13))
    with pytest.raises(ValueError, match="its pattern has"):
        pattern_of(nested(11))
    with patch.object(bytewise, "SECONDS", 0.001), pytest.raises(ValueError, match="more than can be made"):
        pattern_of({"type": "null"})


CHAIN = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(6)} | {"d6": {"type": "boolean"}}
DESCRIBED = [
    ({"$ref": "#/$defs/d0", "$defs": CHAIN}, ["true"], ["null", "", "{}"]),
    ({"$ref": "#/$defs/a~1%25", "$defs": {"a/%": {"type": "null"}}}, ["null"], ["true"]),
    ({"type": "string", "pattern": "^.$"}, ['"a"', '"é"'], ['"""', r'"\"', '"\n"', '""', '"ab"']),
    ({"type": "string", "pattern": "[^a]"}, ['"b"'], ['"""', '"a"', r'"\"']),
    ({"type": "string", "pattern": r"\d+(a|\w)?$"}, ['"1"', '"1_"'], ['"٣"', '"1é"', '""']),
    ({"type": "string", "pattern": r"a\$|b{2,3}?"}, ['"a$"', '"bb"', '"bbb"'], ['"a"', '"b"']),
    ({"type": "string", "format": "date"}, ['"2024-04-30"'], ['"2024-04-31"', '"٢024-04-30"']),
    ({"type": "string", "format": "time"}, ['"10:00:00.5Z"'], ['"10:00:00"', r'"10:00:00\a5Z"']),
    ({"allOf": [{"type": "null", "title": "x"}], "description": "y"}, ["null"], ["true"]),
    ({"oneOf": [{"type": "null"}, {"type": "integer"}]}, ["null", "-3"], ["true"]),
    ({"type": ["string", "null"], "maxLength": 1}, ["null", '"a"'], ['"ab"']),
    ({"enum": [1, None], "type": ["number", "null"]}, ["1", "null"], ["2"]),
    ({"type": "array", "items": False}, ["[]"], ["[null]"]),
    ({"prefixItems": [{"type": "null"}], "items": False}, ["[null]"], ["[]"]),
    ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a": 1}']),
    ({"type": "object", "additionalProperties": {"type": "null"}}, ["{}", '{"a": null}'], ['{"a": 1}']),
    (
        {"properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "required": ["b"]},
        ['{"b":null}', '{"a": null, "b": null}'],
        ["{}", '{"a": null}'],
    ),
]


@pytest.mark.parametrize(("schema", "inside", "outside"), DESCRIBED)
def test_what_a_schema_describes(schema, inside, outside):
    made = bytewise.of_pattern(pattern_of(schema))
    for texts, right in ((inside, True), (outside, False)):
        for text in texts:
            assert reads(made, text) == right, text


def reads(made, text) -> bool:
    state = 0
    for byte in text.encode():
        state = int(made.next[state, byte]) if state >= 0 else -1
    return state >= 0 and bool(made.accept[state])


def test_any_json_in_a_template():
    text, constraint = json_template({"properties": {"a": {"type": "null"}, "b": True}}, OURS["bytes"])
    assert text == '{"a": [MASK:4], "b": [MASK:4]}'
    assert len(constraint.gaps) == 2
    for wrong in (False, 3):
        with pytest.raises(ValueError, match="no schema that a text could be of"):
            json_template({"properties": {"a": wrong}}, OURS["bytes"])


@pytest.mark.parametrize("pattern", ["a++", "a*+b", "(a|b)?+", "a{2}+", "a{1,2}+", "(?>a)", "[^]a]++", "a+?+"])
def test_possessive_repeats_are_refused(pattern):
    with pytest.raises(ValueError, match="possessive"):
        bytewise.of_pattern(pattern)


@pytest.mark.parametrize(
    "pattern", [r"\++", "[*+]+", "[a[*+]++]", r"\x{41}+", r"\p{Lu}+", r"\}+", "[[:alpha:]]+", "[]*+]+"]
)
def test_what_only_looks_possessive_is_not(pattern):
    assert len(bytewise.of_pattern(pattern).next)


def test_texts_take_the_fewest_states_in_linear_time():
    """As Moore's refinement has it; 2,000 letters, quadratic once, are as many rows."""
    for texts in (["a"], [""], ["tap", "taps", "top", "tops"], ["é", "è", "aé"], ["ab", "b", ""]):
        made = bytewise.of_texts(texts)
        assert len(bytewise.fewest(made).next) == len(made.next)
        for length in range(5):
            for row in product("aelopst", repeat=length) if length < 4 else [tuple("taps"), tuple("tops")]:
                assert reads(made, "".join(row)) == ("".join(row) in texts)
    with patch.object(bytewise, "fewest", None):
        assert len(bytewise.of_texts(["a" * 2000]).next) == 2001
    with pytest.raises(ValueError, match="texts of 5001 states: at most 4000"):
        bytewise.of_texts(["a" * 5000])
