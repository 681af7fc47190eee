"""The toy language has exactly 252 sentences, and every text has exactly one class."""

import math
from itertools import product

import pytest

from redraft.data import toy


def _by_the_definition(words: tuple[str, ...]) -> str:
    """The grammar once more, by parsing instead of by listing."""
    det, noun, pronoun = {"our", "your", "their"}, {"cat", "dog", "friend"}, {"we", "you", "they"}

    def number(phrase: tuple[str, ...], subject: bool) -> set[str]:
        match phrase:
            case (p,) if p in pronoun and subject:
                return {"are"}
            case (d, n) if d in det and n in noun:
                return {"is"}
            case (n, "s") if n in noun:
                return {"are"}
            case (d, "s") if d in det and not subject:
                return {"is", "are"}
            case (d, n, "s") if d in det and n in noun:
                return {"are"}
        return set()

    verbs = [i for i, word in enumerate(words) if word in ("is", "are")]
    if len(words) > 6 or len(verbs) != 1:
        return "ill-formed"
    left, right = number(words[: verbs[0]], True), number(words[verbs[0] + 1 :], False)
    if not left or not right:
        return "ill-formed"
    return "sentence" if words[verbs[0]] in left & right else "agreement"


def test_there_are_252_different_rows_and_the_entropy_is_theirs():
    rows = toy.sentences()
    assert len(rows) == len(set(rows)) == toy.COUNT == 252
    assert {len(row) for row in rows} == {toy.LENGTH} == {6}
    assert toy.ENTROPY == pytest.approx(math.log(252) / 6) == pytest.approx(0.92157, abs=1e-5)


@pytest.mark.parametrize(
    "text", ["dog s are our friend s", "our dog s are your s", "we are cat s", "our cat is your s"]
)
def test_members(text: str):
    assert toy.is_sentence(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("our dog are your s", "agreement"),
        ("our dog s is your s", "agreement"),
        ("we is cat s", "agreement"),
        ("we are our cat", "agreement"),
        ("our cat s are your dog s", "ill-formed"),  # seven units
        ("cat is your dog", "ill-formed"),
        ("our s are your s", "ill-formed"),
        ("", "ill-formed"),
        ("our [PAD] cat is your s", "ill-formed"),
        ("our cat is [MASK] s", "ill-formed"),
    ],
)
def test_others(text: str, kind: str):
    assert toy.classify(text) == kind
    assert not toy.is_sentence(text)


def test_every_text_up_to_five_units_has_the_class_a_parser_gives_it():
    words = toy.UNITS[:-1]
    for length in range(6):
        for text in product(words, repeat=length):
            assert toy.classify(" ".join(text)) == _by_the_definition(text)


def test_six_units_too():
    for row in toy.sentences():
        words = toy.text(row).split()
        assert _by_the_definition(tuple(words)) == "sentence" == toy.classify(" ".join(words))
        for i, word in product(range(len(words)), toy.UNITS[:-1]):
            changed = (*words[:i], word, *words[i + 1 :])
            assert toy.classify(" ".join(changed)) == _by_the_definition(changed)


def test_text_tells_rows_apart_and_drops_only_padding_at_the_end():
    assert toy.text((0, 10, 6, 11, 12, 12)) == "we are cat s"
    assert toy.text((0, 12, 10, 6, 11, 12)) == "we [PAD] are cat s"
    assert toy.text((12,) * 6) == ""


def test_report():
    report = toy.report(["we are cat s", "we are cat s", "we is cat s", "cat"])
    assert report["n"] == 4
    assert report["distinct"] == 1
    assert (report["well_formed"], report["agreement"], report["ill_formed"]) == (0.5, 0.25, 0.25)
    assert report["expected_distinct"] == pytest.approx(252 * (1 - (251 / 252) ** 4))
    with pytest.raises(ValueError, match="at least one"):
        toy.report([])
