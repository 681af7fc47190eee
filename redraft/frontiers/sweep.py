"""The sweep: texts by every sampler at every number of calls, judged, with what they cost and how varied they are."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from redraft.data import Packed
from redraft.data.provenance import of_tokenizer
from redraft.errors import unknown
from redraft.evaluation import judges
from redraft.evaluation.judges import Judge
from redraft.evaluation.quality import of_language, passages, quality, quality_of
from redraft.frontiers.curves import BITS, FORMED, Frontier, Point
from redraft.generation import Generation, Options
from redraft.lm import LM
from redraft.processes import absorbing
from redraft.writing import WHICH

NFES = (4, 8, 16, 32, 64)
NUM = 64
TRIED = 4
"""Texts that are drawn to see how many calls a step takes."""
PERCENTILES = (10, 50, 90)
OPTIONS = tuple(name for name in Options.__annotations__ if name not in (*WHICH, "steps", "sampler", "callback"))
"""What may be asked of all points alike."""


def frontier(
    lm: LM,
    *,
    samplers: Sequence[str] | None = None,
    nfes: Sequence[int] = NFES,
    num: int = NUM,
    length: int | None = None,
    prompt: str = "",
    seed: int = 0,
    judge: str | Judge | None = None,
    references: Packed | None = None,
    name: str = "model",
    tell: Callable[[str], object] | None = None,
    **options: Any,
) -> Frontier:
    """Quality, diversity and cost of ``num`` texts for each of ``samplers`` at each number of calls in ``nfes``.

    Steps are chosen so that a text takes about the calls asked for: a few are drawn with as many steps, and where they
    took more calls (samplers that ask twice a step, models of blocks) the steps are cut by that factor. Rules that are
    sure early take fewer than they may. What is kept, and drawn, is the number of calls measured. A rule with a
    threshold is swept by its own parameter: name it several times, ``"threshold:tau=0.9"``, ``"threshold:tau=0.7"``.

    Quality is bits per character under ``judge`` (``redraft.evaluation.judges``), of a text with its prompt; without
    one, of a model of the toy language, the share of texts that are sentences. ``references``: human text, packed in
    rows, of which as much is measured alike. ``name`` is how the series is labelled. ``samplers`` are ``usual`` unless
    given; ``length`` and ``options`` are those of ``LM.generate``, equal at all points. Each point draws anew from
    ``seed``. ``tell`` is told of each point.

    Errors: ``ValueError`` before any point is measured, for samplers that are unknown or do not fit the model, no judge
    where one is needed, fewer than two texts, calls below one.
    """
    judge = None if judge is None else judges.get(judge, lm.device)
    if judge is None and lm.tokenizer.kind != "toy":
        raise ValueError("texts of no toy language need a judge: pass one (--judge), or a text to fit one on (--data)")
    if num < 2:
        raise ValueError(f"num={num}: an interval needs at least 2 texts")
    if not nfes or min(nfes) < 1:
        raise ValueError(f"nfes={list(nfes)}: pass numbers of calls, each at least 1")
    for option in options:
        if option not in OPTIONS:
            raise unknown("option of a sweep", option, OPTIONS)
    chosen = usual(lm) if samplers is None else tuple(dict.fromkeys(samplers))
    draw = partial(lm.generate, prompt, length=length, seed=seed, **options)
    plan = [(one, calls, *_planned(lm, draw, one, calls)) for one in chosen for calls in _calls(lm, nfes)]
    width = max(width for *_, width in plan)
    people = None if references is None else _of_people(lm, references, [width] * num, judge, seed)
    points = list[Point]()
    for one, calls, steps, _ in plan:
        points.append(_point(lm, partial(draw, num=num), one, calls, steps, judge, seed))
        if tell is not None:
            tell(f"[{len(points)}/{len(plan)}] {one}, {points[-1].nfe:.1f} calls")
    protocol = {"length": width - len(lm.encode(prompt) if prompt else ()), "prompt": prompt, "num": num}
    protocol |= {"judge": None if judge is None else judge.name, "tokenizer": of_tokenizer(lm.tokenizer)}
    protocol["options"] = {key: _plain(value) for key, value in options.items() if value is not None}
    measure = FORMED if judge is None else BITS
    return Frontier(name, measure, protocol, tuple(points), people, seed)


def usual(lm: LM) -> tuple[str, ...]:
    """The samplers that are compared where none are named: what the model's noise allows."""
    if lm.denoiser.facts.attention == "causal":
        return ("left_to_right",)
    if lm.process.vectors:
        return ("ancestral", "ddim")
    return ("ancestral", "low_confidence", "threshold:tau=0.9") if absorbing(lm.process) else ("ancestral",)


def _calls(lm: LM, nfes: Sequence[int]) -> list[int]:
    """The calls to ask for: one number alone of an autoregressive model, which takes one a token whatever is asked."""
    return [max(nfes)] if lm.denoiser.facts.attention == "causal" else sorted(set(nfes))


def _planned(lm: LM, draw: Callable[..., Generation], sampler: str, calls: int) -> tuple[int | None, int]:
    """The steps that take about so many ``calls``, and how long a text is, by drawing a few."""
    steps = None if lm.denoiser.facts.attention == "causal" else calls
    tried = draw(sampler=sampler, steps=steps, num=TRIED).samples
    took = sum(tried.cost.of_rows) / TRIED
    if steps is not None and took > calls:
        steps = max(1, round(calls * calls / took))
    return steps, tried.tokens.shape[1]


def _point(
    lm: LM, draw: Callable[..., Generation], sampler: str, calls: int, steps: int | None, judge: Judge | None, seed: int
) -> Point:
    started = time.process_time()
    written = draw(sampler=sampler, steps=steps)
    spent = time.process_time() - started
    cost, num = written.samples.cost, len(written.texts)
    # of nothing but empty texts there is nothing to say, but that they are: rules that are sure of blanks write such
    silent = not any(written.texts)
    found: dict[str, Any] = {"empty": num} if silent else quality_of(written, lm, judge=judge, seed=seed).to_dict()
    percentiles = np.percentile(cost.of_rows, PERCENTILES).tolist()
    return Point(
        sampler=sampler,
        asked=calls,
        steps=steps,
        nfe=sum(cost.of_rows) / num,
        nfe_percentiles={f"p{one}": value for one, value in zip(PERCENTILES, percentiles, strict=True)},
        positions=cost.positions / num,
        tokens_per_forward=cost.tokens_per_forward,
        cpu_seconds=spent / num,
        **_drawn(found, judge is not None),
        measured=found,
    )


def _of_people(lm: LM, references: Packed, widths: Sequence[int], judge: Judge | None, seed: int) -> dict[str, Any]:
    """The same of human text, in as many pieces of these lengths as there are."""
    texts, rows = passages(references, lm.tokenizer, widths)
    told: dict[str, Any] = {"judge": judge, "language": of_language(lm.tokenizer, texts), "seed": seed}
    found = quality(texts, rows, dtype="unknown", **told).to_dict()
    return {**_drawn(found, judge is not None), "texts": len(texts), "measured": found}


def _drawn(found: Mapping[str, Any], judged: bool) -> dict[str, float | None]:
    """What the picture shows of all that was measured: quality with its interval, and entropy; None for what is not."""
    value, entropy = found.get("bits_per_char" if judged else "well_formed"), found.get("unigram_entropy")
    ends = found.get("well_formed_low"), found.get("well_formed_high")
    if judged and value is not None:
        ends = value - found["bits_per_char_error"], value + found["bits_per_char_error"]
    low, high = (None, None) if value is None else ends
    return {"quality": value, "quality_low": low, "quality_high": high, "unigram_entropy": entropy}


def _plain(value: Any) -> Any:
    """An option as JSON can hold it; of one that is no number, word or list of them, the kind alone."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__
