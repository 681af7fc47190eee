"""A toy language of 252 sentences: small enough that every law about it has an exact answer.

A sentence is *subject verb complement* over 13 units, six at most, padded with ``[PAD]`` to six:

- singular: ``Det Noun`` ``is`` (``Det Noun`` | ``Det s``)
- plural: (``Det Noun s`` | ``Noun s`` | ``Pronoun``) ``are`` (``Det Noun s`` | ``Det s`` | ``Noun s``)

with Det = our, your, their; Noun = cat, dog, friend; Pronoun = we, you, they. The law is uniform over the sentences,
so its entropy is ln 252 nats a sentence. The plural ``s`` far from its verb is what a sampler that draws tokens
independently gets wrong: such a text breaks number agreement and nothing else.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from typing import Literal

UNITS = ("we", "you", "they", "our", "your", "their", "cat", "dog", "friend", "is", "are", "s", "[PAD]")
LENGTH = 6
PAD = UNITS.index("[PAD]")
COUNT = 252
ENTROPY = math.log(COUNT) / LENGTH
"""Entropy of the law in nats per token: ln 252 / 6 = 0.92157."""

Class = Literal["sentence", "agreement", "ill-formed"]
_Phrase = tuple[str, ...]


def _phrases() -> dict[str, list[_Phrase]]:
    pronouns, determiners, nouns = UNITS[0:3], UNITS[3:6], UNITS[6:9]
    return {
        "pronoun": [(p,) for p in pronouns],
        "det noun": list(product(determiners, nouns)),
        "det noun s": [(d, n, "s") for d, n in product(determiners, nouns)],
        "noun s": [(n, "s") for n in nouns],
        "det s": [(d, "s") for d in determiners],
    }


def _clauses(subjects: Iterable[str], verbs: Iterable[str], complements: Iterable[str]) -> list[_Phrase]:
    """All subject verb complement of these kinds that fit into LENGTH units."""
    kinds = _phrases()
    left = [phrase for kind in subjects for phrase in kinds[kind]]
    right = [phrase for kind in complements for phrase in kinds[kind]]
    clauses = ((*subject, verb, *complement) for subject, verb, complement in product(left, verbs, right))
    return [clause for clause in clauses if len(clause) <= LENGTH]


@cache
def _sentences() -> tuple[_Phrase, ...]:
    singular = _clauses(["det noun"], ["is"], ["det noun", "det s"])
    plural = _clauses(["pronoun", "noun s", "det noun s"], ["are"], ["noun s", "det s", "det noun s"])
    return tuple(singular + plural)


@cache
def _members() -> dict[_Phrase, Class]:
    """The class of every text of the grammar without the rule of agreement; any other text is ill-formed."""
    subjects = ["pronoun", "det noun", "noun s", "det noun s"]
    complements = ["det noun", "noun s", "det s", "det noun s"]
    members: dict[_Phrase, Class] = dict.fromkeys(_clauses(subjects, ["is", "are"], complements), "agreement")
    members.update(dict.fromkeys(_sentences(), "sentence"))
    return members


@cache
def sentences() -> tuple[tuple[int, ...], ...]:
    """The 252 sentences as rows of LENGTH ids, padded; always in the same order."""
    index = {unit: i for i, unit in enumerate(UNITS)}
    rows = ([index[unit] for unit in sentence] for sentence in _sentences())
    return tuple(tuple(row + [PAD] * (LENGTH - len(row))) for row in rows)


def text(ids: Sequence[int]) -> str:
    """The units of ``ids`` joined by blanks. Padding at the end is dropped; padding before a word is an error of the
    model and stays visible, so that two different rows never read the same."""
    end = len(ids)
    while end and ids[end - 1] == PAD:
        end -= 1
    return " ".join(UNITS[i] for i in ids[:end])


def is_sentence(text: str) -> bool:
    """Is this one of the 252?"""
    return classify(text) == "sentence"


def classify(text: str) -> Class:
    """``sentence``, ``agreement`` or ``ill-formed``.

    ``agreement``: not a sentence, but one if the rule that the numbers of subject, verb and complement agree were
    dropped, that is, a member of {any subject} x {is, are} x {any complement}, at most six units.

    >>> classify("our dog s are your s"), classify("our dog are your s"), classify("are dog our")
    ('sentence', 'agreement', 'ill-formed')
    """
    return _members().get(tuple(text.split()), "ill-formed")


def report(texts: Iterable[str]) -> dict[str, float]:
    """How well ``texts`` follow the law: shares of the three classes, and how many different sentences occur.

    ``expected_distinct`` is what a perfect sampler reaches on average, 252 (1 - (1 - 1/252)^n): a well-formed share
    of 1 with far fewer distinct sentences is collapse.
    """
    listed = list(texts)
    if not listed:
        raise ValueError("no texts to report on: pass at least one")
    classes = [classify(text) for text in listed]
    n = len(listed)
    return {
        "n": n,
        "well_formed": classes.count("sentence") / n,
        "agreement": classes.count("agreement") / n,
        "ill_formed": classes.count("ill-formed") / n,
        "distinct": len({tuple(t.split()) for t, kind in zip(listed, classes, strict=True) if kind == "sentence"}),
        "expected_distinct": COUNT * (1 - (1 - 1 / COUNT) ** n),
    }


def divergence(texts: Iterable[str]) -> dict[str, float]:
    """How far the frequencies of ``texts`` are from the law, and what a perfect sampler would show of as many.

    ``total_variation`` is half the sum of |c / n - p| over all texts, ``kl`` the sum of c / n ln(c / (n p)) in nats,
    infinite where a text is no sentence; ``kl_of_sentences`` is that of the sentences among them, nan for none. Neither
    is 0 for a perfect sampler: ``expected_*`` are its exact means at that n (``expected_divergence``), the last at the
    number of sentences. What exceeds them is the model's.
    """
    counts = Counter(tuple(text.split()) for text in texts)
    n = sum(counts.values())
    if not n:
        raise ValueError("no texts to compare with the law: pass at least one")
    of_sentences = [counts[sentence] for sentence in _sentences()]
    m = sum(of_sentences)
    apart = sum(abs(count / n - 1 / COUNT) for count in of_sentences) + (n - m) / n
    kl = math.fsum(c / m * math.log(c * COUNT / m) for c in of_sentences if c) if m else math.nan
    expected = expected_divergence(n)
    return {
        "total_variation": apart / 2,
        "expected_total_variation": expected[0],
        "kl": kl if m == n else math.inf,
        "expected_kl": expected[1],
        "kl_of_sentences": kl,
        "expected_kl_of_sentences": expected_divergence(m)[1] if m else math.nan,
    }


def expected_divergence(n: int, count: int = COUNT) -> tuple[float, float]:
    """E of total variation and of KL (nats) between n draws of an even law over ``count`` and that law, exactly.

    Each outcome's number of draws is C ~ Bin(n, p), p = 1 / count: count E|C / n - p| / 2, and count E[C / n
    ln(C / (n p))]. They fall towards 0, like n^-1/2 and (count - 1) / (2 n).
    """
    if n < 1 or count < 1:
        raise ValueError(f"n={n}, count={count}: draw at least once among at least one")
    p = 1 / count
    # log of C(n, c) p^c (1 - p)^(n - c); of count = 1 all n are it
    logs = [-math.inf] * n + [0.0]
    if count > 1:
        whole, hit, miss = math.lgamma(n + 1), math.log(p), math.log1p(-p)
        logs = [whole - math.lgamma(c + 1) - math.lgamma(n - c + 1) + c * hit + (n - c) * miss for c in range(n + 1)]
    chances = list(map(math.exp, logs))
    variation = math.fsum(q * abs(c / n - p) for c, q in enumerate(chances)) * count / 2
    kl = math.fsum(q * c / n * math.log(c * count / n) for c, q in enumerate(chances) if c) * count
    return variation, kl
