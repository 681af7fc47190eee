"""Control of a Gaussian model: Diffusion-LM's suite (topic, parts of speech, length) on the toy language.

    python benchmarks/control.py [--quick] [--out benchmarks/results/control.json]

One model is trained, and a classifier of noised vectors for each control; texts are then drawn with nothing, with
gradient guidance, with token guidance and with plug-and-play control, at equal numbers of denoiser calls (``nfe``; the
classifiers' own calls, one a step or three, and backward passes come on top, and show in ``seconds``).

``success`` is the share of texts that are as asked, by rule and not by classifier; ``well_formed`` the share of
sentences of the language; ``both`` of texts that are both; ``share_of_data`` how many sentences are as asked, which is
what a perfect sampler without control reaches, and ``distinct`` how many different ones of them were drawn, out of
``sentences``. Intervals are Wilson's, 95%.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import redraft as rd
from redraft import guidance, records, runs
from redraft.data import toy
from redraft.guidance import Constraint, Control, LogLikelihood
from redraft.processes import Denoiser, Gaussian

Ids = Sequence[int]
TAGS = ("pronoun", "determiner", "noun", "verb", "s", "[PAD]")
TAG_OF = (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5)
NOUNS = (6, 7, 8)
CAT = 6
TEMPLATE = (1, 2, 4, 3, 1, 4)
"""determiner noun s verb determiner s: "our dog s are your s"."""
WORDS = 4
"""Of the 4, 5 or 6 units that a sentence has."""
UPDATES = 3
UNTIL = 0.05


def length(ids: Ids) -> int:
    """Units before the first padding."""
    return ids.index(toy.PAD) if toy.PAD in ids else len(ids)


def topic(ids: Ids) -> int:
    """0, 1 or 2 for texts of which all nouns are that one, 3 for others."""
    named = {ids_ for ids_ in ids if ids_ in NOUNS}
    return NOUNS.index(named.pop()) if len(named) == 1 else len(NOUNS)


def tags(ids: Ids) -> tuple[int, ...]:
    return tuple(TAG_OF[token] for token in ids)


@dataclass(frozen=True)
class Task:
    """A control: the rule that says whether a text is as asked, and what each method is told of it."""

    asked: Callable[[Ids], bool]
    log_likelihood: LogLikelihood
    constraints: list[Constraint]
    control: Control
    through_denoiser: bool = False


def tasks(process: Gaussian, steps: int) -> dict[str, Task]:
    """Train the classifiers and say what is asked of each method."""
    rows = [list(row) for row in toy.sentences()]
    ids = torch.tensor(rows)

    def classifier(label: Callable[[Ids], Any]) -> guidance.NoisyClassifier:
        return guidance.train_classifier(process, ids, torch.tensor([label(row) for row in rows]), steps=steps, depth=2)

    by_topic = guidance.log_likelihood(classifier(topic), NOUNS.index(CAT))
    by_tags = guidance.log_likelihood(classifier(tags), torch.tensor(TEMPLATE))
    by_length = guidance.log_likelihood(classifier(lambda row: length(row) - WORDS), 0)
    of_tag = [[token for token, tag in enumerate(TAG_OF) if tag == wanted] for wanted in TEMPLATE]
    other_nouns = [guidance.negated(guidance.token_anywhere(noun)) for noun in NOUNS if noun != CAT]
    return {
        "topic": Task(
            lambda row: topic(row) == NOUNS.index(CAT),
            by_topic,
            [guidance.token_anywhere(CAT), *other_nouns],
            guidance.unlikely(by_topic),
        ),
        "parts_of_speech": Task(
            lambda row: tags(row) == TEMPLATE,
            by_tags,
            [guidance.token_at(place, *tokens) for place, tokens in enumerate(of_tag)],
            guidance.unlikely(by_tags),
        ),
        "length": Task(
            lambda row: length(row) == WORDS,
            by_length,
            [guidance.token_at(WORDS, toy.PAD)],
            guidance.ends_at(process, WORDS, toy.PAD),
            through_denoiser=True,
        ),
    }


def wilson(count: int, total: int) -> list[float]:
    """Share, and the ends of its 95% interval."""
    z, p = 1.959964, count / total
    centre, half = p + z * z / 2 / total, z * math.sqrt(p * (1 - p) / total + z * z / 4 / total**2)
    return [
        round(value, 4) for value in (p, (centre - half) / (1 + z * z / total), (centre + half) / (1 + z * z / total))
    ]


def measure(
    process: Gaussian, denoiser: Denoiser, task: Task, num: int, steps: int, sampler: Any = "ancestral"
) -> dict[str, Any]:
    started = time.time()
    drawn = rd.sample(process, denoiser, length=toy.LENGTH, num=num, steps=steps, sampler=sampler, seed=0)
    rows: list[list[int]] = drawn.tokens.tolist()
    asked = [task.asked(row) for row in rows]
    formed = [toy.is_sentence(toy.text(row)) for row in rows]
    both = [row for row, one, other in zip(rows, asked, formed, strict=True) if one and other]
    return {
        "success": wilson(sum(asked), num),
        "well_formed": wilson(sum(formed), num),
        "both": wilson(len(both), num),
        "distinct": len({tuple(row) for row in both}),
        "nfe": drawn.nfe,
        "seconds": round(time.time() - started, 1),
    }


def compare(process: Gaussian, denoiser: Denoiser, task: Task, num: int, nfe: int) -> dict[str, Any]:
    """Every method on one task, ``nfe`` denoiser calls each, the last of them at t = 0."""
    as_asked = sum(task.asked(row) for row in toy.sentences())
    report: dict[str, Any] = {"sentences": as_asked, "share_of_data": round(as_asked / toy.COUNT, 4)}
    report["none"] = measure(process, denoiser, task, num, nfe - 1)
    for weight in (1.0, 3.0):
        guided = rd.gradient_guided(denoiser, process, task.log_likelihood, weight)
        report[f"gradient, weight {weight:g}"] = measure(process, guided, task, num, nfe - 1)
        guided = rd.token_guided(denoiser, process, task.constraints, weight)
        report[f"tokens, weight {weight:g}"] = measure(process, guided, task, num, nfe - 1)
    # control through the denoiser asks it at every update as well
    calls = 1 + UPDATES * (1 - UNTIL) if task.through_denoiser else 1
    for size in (0.1, 0.3):
        sampler = guidance.plug_and_play(task.control, updates=UPDATES, lr=size * process.power**0.5, until=UNTIL)
        found = measure(process, denoiser, task, num, round((nfe - 1) / calls), sampler)
        report[f"plug and play, lr {size:g} of a coordinate"] = found
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--num", type=int, default=500, help="texts drawn by each method")
    parser.add_argument("--nfe", type=int, default=128, help="denoiser calls")
    parser.add_argument("--steps", type=int, default=600, help="training steps of each classifier")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/control.json"))
    options = parser.parse_args()
    overrides: dict[str, Any] = {"eval.rows": "none"}
    if options.quick:
        options.num, options.nfe, options.steps, overrides["train.steps"] = 20, 8, 10, 20
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        lm = runs.train("toy_gaussian", out=Path(folder) / "run", overrides=overrides).lm
        training = time.time() - started
    process, denoiser = lm.process, lm.denoiser
    assert isinstance(process, Gaussian)
    started = time.time()
    todo = tasks(process, options.steps)
    classifying = time.time() - started
    report: dict[str, Any] = {
        **records.made([0]),
        "recipe": "toy_gaussian",
        "training_seconds": round(training, 1),
        "classifier_steps": options.steps,
        "classifier_seconds": round(classifying, 1),
        "num": options.num,
        "seed": 0,
        "interval": "share, low, high: Wilson, 95%",
        "tasks": {},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name, task in todo.items():
        report["tasks"][name] = compare(process, denoiser, task, options.num, options.nfe)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
        print(name, json.dumps(report["tasks"][name], indent=2))


if __name__ == "__main__":
    main()
