"""How good samples are, never without how varied they are, in what they were drawn, and what they cost.

A judge's figure alone is worthless: text that repeats itself is judged well, and draws in float32 cut the tail of the
law, which lowers perplexity and entropy together (Zheng et al., arXiv 2409.02908). So all of it is one object,
``Quality``, which prints and stores all of it together, and human text of the same length may stand beside.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import torch

from redraft.data import Packed, Tokenizer, toy
from redraft.errors import unknown
from redraft.evaluation import judges
from redraft.evaluation.generation import SELF_BLEU_TEXTS, distinct_n, self_bleu, unigram_entropies
from redraft.evaluation.intervals import Estimate, ratio, wilson
from redraft.evaluation.judges import Judge
from redraft.processes import Denoiser
from redraft.randomness import DRAWS
from redraft.sampling import Cost, Samples

DTYPES = ("bfloat16", "float16", "float32", "float64", "unknown")
"""In what samples may have been drawn, "unknown" being of texts that nobody can tell it of."""
_EXP_LIMIT = 700.0
NO_SACREBLEU = "not measured: pip install 'redraft[eval]'"
NOT_READ = "not measured: no token of the judge stands for any of it"


class Passages(NamedTuple):
    """Human text in pieces, and the ids of each."""

    texts: list[str]
    rows: list[list[int]]


@dataclass(frozen=True)
class Figures:
    """Of one set of ``texts``, ``empty`` ones apart, ``shortest`` to ``longest`` tokens of the model long.

    ``unigram_entropy``: nats, the mean over texts. ``distinct``: different n-grams of all, for n = 1 to 3 as far as
    they are long enough. ``self_bleu``: None where it was not measured, of ``compared`` texts. Of the judge, None
    without one, or where it reads nothing: ``nats_per_token``, of its own tokens, whose exp is ``perplexity``;
    ``bits_per_char``, None too where it did not read the text letter for letter. Both are of all the texts together,
    total over total, and errors are over texts.
    """

    texts: int
    empty: int
    shortest: int
    longest: int
    unigram_entropy: Estimate
    distinct: Mapping[int, float]
    self_bleu: float | None
    compared: int
    nats_per_token: Estimate | None = None
    bits_per_char: Estimate | None = None

    @property
    def perplexity(self) -> Estimate | None:
        """exp(nats per token) of the judge, its error to first order."""
        if self.nats_per_token is None:
            return None
        value = math.exp(self.nats_per_token.mean) if self.nats_per_token.mean < _EXP_LIMIT else math.inf
        return Estimate(value, value * self.nats_per_token.error)

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"texts": self.texts, "empty": self.empty}
        found |= {"shortest": self.shortest, "longest": self.longest}
        for name in ("bits_per_char", "perplexity", "unigram_entropy"):
            value: Estimate | None = getattr(self, name)
            if value is not None:
                found |= {name: value.mean, f"{name}_error": value.error}
        found |= {f"distinct_{n}": value for n, value in self.distinct.items()}
        return found | {"self_bleu": self.self_bleu, "self_bleu_texts": self.compared}


@dataclass(frozen=True)
class Quality:
    """The ``samples``' figures, those of ``human`` text beside, and what they can only be quoted with.

    ``judge`` and ``tokenisation``: its name, and what its tokens are; None without one. ``dtype``: what the draws were
    made in; ``network``, what the network computes in, None where nobody said. ``cost`` of the samples, None likewise:
    it is told a text, for how many were written side by side is no matter of theirs.
    ``language``: for a language whose law is known, how far from it they are.
    """

    samples: Figures
    human: Figures | None
    judge: str | None
    tokenisation: str | None
    dtype: str
    network: str | None
    cost: Cost | None
    language: Mapping[str, float]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it, the samples' own figures by their names, and ``human`` text's below it."""
        found: dict[str, Any] = {"samples": self.samples.texts + self.samples.empty, **self.samples.to_dict()}
        found |= {"judge": self.judge, "tokenisation": self.tokenisation, "dtype": self.dtype}
        found |= {"network_dtype": self.network, "seed": self.seed}
        if self.cost is not None:
            texts = len(self.cost.of_rows)
            found |= {"nfe": self._nfe, "positions": self.cost.positions / texts}
            found["tokens_per_forward"] = self.cost.tokens_per_forward
        found |= dict(self.language)
        return found | ({} if self.human is None else {"human": self.human.to_dict()})

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for people to read, human text's in brackets behind the samples'."""
        told = [] if self.judge is None else [("judge", f"{self.judge}; {self.tokenisation}")]
        if self.judge is not None and self.samples.perplexity is None:
            told.append(("perplexity", NOT_READ))
        ours, human = (_said(one) for one in (self.samples, self.human))
        for name, value in ours.items():
            told.append((name, value + (f" (human {human[name]})" if name in human else "")))
        told.append(("drawn in", f"{self.dtype}, network in {self.network or 'unknown'}"))
        told.append(("nfe", "unknown" if self._nfe is None else f"{self._nfe:.4g} a text"))
        return told + [(name.replace("_", " "), f"{value:.4g}") for name, value in self.language.items()]

    @property
    def _nfe(self) -> float | None:
        """The calls that a text took part in, mean."""
        return None if self.cost is None else sum(self.cost.of_rows) / len(self.cost.of_rows)

    def __str__(self) -> str:
        return "\n".join(f"{name:<20}{value}" for name, value in self.rows())


def quality(
    texts: Sequence[str],
    rows: Sequence[Sequence[int]],
    *,
    dtype: str | torch.dtype,
    network: str | torch.dtype | None = None,
    judge: str | Judge | None = None,
    references: Passages | None = None,
    cost: Cost | None = None,
    language: Mapping[str, float] | None = None,
    eos_id: int | None = None,
    most: int = SELF_BLEU_TEXTS,
    seed: int = 0,
) -> Quality:
    """Judge ``texts`` whose ids are ``rows``, and measure how varied they are.

    ``dtype`` is what they were drawn in, one of ``DTYPES``. ``judge``: one, or a name (``judges.get``). ``references``:
    human text of the same length, of which ``passages`` makes as much. Tokens ``eos_id`` are no part of a text, as
    when it is decoded. Of more than ``most`` texts, self-BLEU is of so many drawn by ``seed``.

    Errors: ``ValueError`` for rows that are not as many as texts, or a cost of another number, nothing but empty texts,
    an unknown dtype or judge.
    """
    if cost is not None and len(cost.of_rows) != len(texts):
        raise ValueError(f"a cost of {len(cost.of_rows)} rows with {len(texts)} texts: pass that of these texts")
    drawn, computed = (_dtype(one) for one in (dtype, network))
    assert drawn is not None
    asked = None if judge is None else judges.get(judge)
    ours = _figures("texts", texts, rows, asked, eos_id, most, seed)
    human = None if references is None else _figures("references", *references, asked, eos_id, most, seed)
    name, how = (None, None) if asked is None else (asked.name, asked.tokenisation)
    return Quality(ours, human, name, how, drawn, computed, cost, language or {}, seed)


class Written(Protocol):
    """What was written, a ``Generation``."""

    @property
    def texts(self) -> list[str]: ...
    @property
    def rows(self) -> list[list[int]]: ...
    @property
    def samples(self) -> Samples: ...
    @property
    def choice(self) -> Any: ...


class Author(Protocol):
    """Who wrote it, an ``LM``."""

    @property
    def denoiser(self) -> Denoiser: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def eos_id(self) -> int | None: ...


def quality_of(
    written: Written,
    lm: Author,
    *,
    judge: str | Judge | None = None,
    references: Packed | None = None,
    most: int = SELF_BLEU_TEXTS,
    seed: int = 0,
) -> Quality:
    """``quality`` of what a model wrote, with what it was drawn in and what it cost; of the toy language, with its law.

    ``references``: rows of human text in the model's tokens (``data.packing.load_text``), cut to the lengths of what
    was written, tokens that end texts apart. Errors: those of ``quality``, and ``ValueError`` for a text that was
    selected among others.
    """
    if written.choice is not None:
        raise ValueError("a text selected among others says nothing of how a model writes: measure all that were drawn")
    widths = [sum(token != lm.eos_id for token in row) for row in written.rows]
    human = None if references is None else passages(references, lm.tokenizer, widths)
    return quality(
        written.texts,
        written.rows,
        dtype=DRAWS,
        network=computes_in(lm.denoiser),
        judge=judge,
        references=human,
        cost=written.samples.cost,
        language=of_language(lm.tokenizer, written.texts),
        eos_id=lm.eos_id,
        most=most,
        seed=seed,
    )


def passages(packed: Packed, tokenizer: Tokenizer, widths: Sequence[int]) -> Passages:
    """Human text in as many pieces as there are ``widths``, each so many tokens long: whole rows, evenly spread, cut.

    Tokens that end texts do not count, and are left out. Fewer where there are fewer rows, and shorter where those are.
    Errors: ``ValueError`` for no whole row.
    """
    whole = [i for i in range(len(packed)) if packed.valid is None or bool(packed.valid[i].all())]
    if not whole:
        raise ValueError("the human text is shorter than one row of the context: pass a longer one")
    n = min(len(widths), len(whole))
    told = (packed.ids[whole[i * len(whole) // n]].tolist() for i in range(n))
    rows = [
        [token for token in ids if token != tokenizer.eos_id][:width]
        for ids, width in zip(told, widths[:n], strict=True)
    ]
    return Passages([tokenizer.decode(row) for row in rows], rows)


def of_language(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, float]:
    """How far texts are from the law of their language where that is known, the toy language's; else nothing."""
    if tokenizer.kind != "toy":
        return {}
    found, n = toy.report(texts), len(texts)
    found["well_formed_low"], found["well_formed_high"] = wilson(round(found["well_formed"] * n), n)
    return {name: value for name, value in found.items() if name != "n"} | toy.divergence(texts)


def computes_in(denoiser: Denoiser) -> torch.dtype | None:
    """What most of a network's floating weights are in; None for one without any."""
    weights = list(denoiser.parameters()) if isinstance(denoiser, torch.nn.Module) else []
    sizes: dict[torch.dtype, int] = {}
    for weight in weights:
        if weight.is_floating_point():
            sizes[weight.dtype] = sizes.get(weight.dtype, 0) + weight.numel()
    return max(sizes, key=lambda one: sizes[one], default=None)


def _dtype(dtype: str | torch.dtype | None) -> str | None:
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return name


def _figures(
    what: str,
    texts: Sequence[str],
    rows: Sequence[Sequence[int]],
    judge: Judge | None,
    eos_id: int | None,
    most: int,
    seed: int,
) -> Figures:
    if len(texts) != len(rows):
        raise ValueError(f"{len(texts)} {what} and {len(rows)} rows of ids: pass one for each")
    cut = [[i for i in row if i != eos_id] for row in rows]
    kept = [place for place, text in enumerate(texts) if text and cut[place]]
    if not kept:
        raise ValueError(f"{len(texts)} {what}, all of them empty: there is nothing to measure")
    texts, cut = [texts[place] for place in kept], [cut[place] for place in kept]
    longest = max(map(len, cut))
    compared = min(len(texts), most) if len(texts) > 1 and find_spec("sacrebleu") is not None else 0
    nats, bits = (None, None) if judge is None else _judged(judge, texts)
    return Figures(
        texts=len(texts),
        empty=len(rows) - len(texts),
        shortest=min(map(len, cut)),
        longest=longest,
        unigram_entropy=ratio(unigram_entropies(cut), [1.0] * len(cut)),
        distinct={n: distinct_n(cut, n) for n in (1, 2, 3) if n <= longest},
        self_bleu=self_bleu(texts, most, seed) if compared else None,
        compared=compared,
        nats_per_token=nats,
        bits_per_char=bits,
    )


def _judged(judge: Judge, texts: Sequence[str]) -> tuple[Estimate | None, Estimate | None]:
    """Nats per token of the judge, where it has any, and bits per character where it read all of every text."""
    found = judge.nats(texts)
    if not any(one.tokens for one in found):
        return None, None
    nats = [one.nats for one in found]
    bits = None
    if all(one.characters for one in found):
        bits = ratio([value / math.log(2) for value in nats], [one.characters for one in found])
    return ratio(nats, [one.tokens for one in found]), bits


def _said(figures: Figures | None) -> dict[str, str]:
    """Each figure in words."""
    if figures is None:
        return {}
    told = {"texts": f"{figures.texts} of {figures.shortest} to {figures.longest} tokens, {figures.empty} empty"}
    if figures.perplexity is not None:
        bits = figures.bits_per_char
        told["bits per character"] = (
            "not measured: the judge does not read all letters" if bits is None else bits.text()
        )
        told["perplexity"] = f"{figures.perplexity.mean:.4g} ± {figures.perplexity.error:.2g} per token of the judge"
    told["unigram entropy"] = f"{figures.unigram_entropy.text()} nats"
    told |= {f"distinct {n}": f"{value:.4g}" for n, value in figures.distinct.items()}
    missing = NO_SACREBLEU if figures.texts > 1 else "not measured: of one text"
    value = figures.self_bleu
    told["self-BLEU"] = missing if value is None else f"{value:.4g} of {figures.compared} texts"
    return told
