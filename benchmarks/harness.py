"""lm-evaluation-harness on one tiny checkpoint: redraft's backend against LLaDA's loops, one request at a time.

    python benchmarks/harness.py [--rounds 3] [--docs 16] [--steps 700] [--model FOLDER] [--out FILE.json]

A small masked model learns facts about invented people (``train``, a minute) and is asked them by four tasks of the
harness's own kinds: choices of one token, of a few, of a sentence, and answers written until the end of the line. Both
sides are given the same ``Instance`` objects, in turns, the order changing every round; seconds are CPU seconds of one
thread. The baseline (``Plain``) is the algorithm as the paper and its wrapper have it: ``get_log_likelihood`` with 128
draws in batches of 32, ``generate`` with a forward of the whole canvas a step and no early stop. Choices must be equal,
and texts, or no time is given; the standard errors of both bounds are measured, for speed at less precision is none.
Sentences are scored by ours in as many draws too, and then in ``FEW``, about the least of no larger error than the
baseline's; and choices of one token by a baseline of one draw, which says as much.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

import redraft
from redraft import records

LENGTH, BLOCK = 48, 8
DRAWS, BATCH = 128, 32
FEW = 56
NAMES = ["Ada", "Bo", "Dora", "Gus", "June", "Max", "Otto", "Vera"]
CITIES = ["Rome", "Oslo", "Lima", "Cairo", "Paris", "Delhi", "Quito", "Tunis"]
JOBS = ["baker", "pilot", "nurse", "farmer", "singer", "lawyer", "tailor", "miner"]
MOODS = ["quiet", "happy", "clever", "brave", "gentle", "honest", "lively", "stern"]
THINGS = ["river", "garden", "winter", "music", "desert", "kitchen", "market", "forest"]


# ----------------------------------------------------------------------------------------------- what there is to know


def facts(name: str) -> dict[str, str]:
    """Who someone is: the same every time."""
    own = random.Random(name)
    return {
        "city": own.choice(CITIES),
        "job": own.choice(JOBS),
        "mood": own.choice(MOODS),
        "thing": own.choice(THINGS),
        "other": own.choice(THINGS),
    }


ASKED: dict[str, Callable[[str, dict[str, str]], tuple[str, str]]] = {
    "one": lambda name, own: (f"Q: Where does {name} live?\nA:", f" {own['city']}"),
    "few": lambda name, own: (f"Q: What is {name}?\nA:", f" a {own['mood']} {own['job']}"),
    "sentence": lambda name, own: (
        f"Q: Tell me of {name}.\nA:",
        f" {name} is a {own['mood']} {own['job']} from {own['city']} who likes the {own['thing']} and the "
        f"{own['other']}.",
    ),
    "written": lambda name, own: (f"Q: What does {name} like?\nA:", f" the {own['thing']} and the {own['other']}"),
}


def lines(names: Sequence[str], kinds: Sequence[str]) -> str:
    """Questions with their answers, one after the other."""
    return "".join("".join(ASKED[kind](name, facts(name))) + "\n" for name, kind in zip(names, kinds, strict=True))


def corpus(documents: int = 3000, seed: int = 0) -> str:
    draw = random.Random(seed)
    texts = [lines(draw.choices(NAMES, k=4), draw.choices(list(ASKED), k=4)) for _ in range(documents)]
    return "\n\n".join(texts)


def write_tasks(folder: Path, docs: int) -> None:
    """Four tasks, each with two solved questions before its own, choices being what is true of others."""
    for kind, ask in ASKED.items():
        draw, rows = random.Random(kind), list[dict[str, Any]]()
        for number in range(docs):
            name = NAMES[number % len(NAMES)]
            question, answer = ask(name, facts(name))
            wrong = {ask(name, facts(other))[1] for other in NAMES} - {answer}
            choices = [answer, *draw.sample(sorted(wrong), 3)]
            draw.shuffle(choices)
            before = lines(draw.sample([one for one in NAMES if one != name], 2), [kind] * 2)
            rows.append({"q": before + question, "choices": choices, "gold": choices.index(answer), "a": answer})
        (folder / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        files = {"data_files": {"test": str(folder / f"{kind}.jsonl")}, "cache_dir": str(folder / "cache")}
        told: dict[str, Any] = {"task": kind, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
        told |= {"doc_to_text": "{{q}}", "target_delimiter": ""}
        if kind == "written":
            told |= {"output_type": "generate_until", "doc_to_target": "{{a}}"}
            told["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": LENGTH, "do_sample": False}
        else:
            told |= {"output_type": "multiple_choice", "doc_to_target": "{{gold}}", "doc_to_choice": "{{choices}}"}
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(told))


def train(out: Path, steps: int) -> None:
    """A masked model of 96 positions that has learned the facts."""
    (out.parent / "facts.txt").write_text(corpus())
    options: dict[str, Any] = {"model.depth": 2, "data.tokenizer": "bpe", "data.vocab": 512, "data.length": 96}
    options |= {"train.steps": steps, "train.batch": 16, "eval.rows": 8, "eval.draws": 1}
    redraft.train("toy_masked", data=str(out.parent / "facts.txt"), out=str(out), overrides=options)


# ------------------------------------------------------------------------------------------------------ the baseline


@dataclass
class Plain:
    """LLaDA's loops (Nie et al. 2025, arXiv 2502.09992) on a redraft network, a request at a time."""

    lm: Any
    forwards: int = 0
    texts: int = 0
    positions: int = 0
    drawn: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def logits(self, x: Tensor) -> Tensor:
        """Log p of every position of x (B, L): up to what softmax takes off, logits."""
        self.forwards += 1
        self.texts += len(x)
        self.positions += x.numel()
        return self.lm.denoiser(x, torch.ones(len(x), dtype=torch.float64))

    def likelihood(self, context: str, continuation: str, draws: int) -> float:
        """``get_log_likelihood``: in each batch, sizes even over 1..N from a random one on, and random sets of them."""
        whole, start = self.lm.encode(context + continuation), len(self.lm.encode(context))
        text, size, batch = torch.tensor(whole), len(whole) - start, min(BATCH, draws)
        found = list[float]()
        for _ in range(draws // batch):
            first = int(torch.randint(1, size + 1, (), generator=self.drawn))
            many = torch.linspace(first, first + (batch - 1) * size / batch, batch).round().long()
            many = (many - 1) % size + 1
            order = torch.rand(batch, size, generator=self.drawn).argsort(1)
            hidden = torch.zeros(batch, len(text), dtype=torch.bool)
            hidden[:, start:] = order < many[:, None]
            x = text.expand(batch, -1)
            logits = self.logits(x.masked_fill(hidden, self.lm.process.mask_id))
            share = (many / size)[:, None].expand(-1, len(text))[hidden]
            loss = F.cross_entropy(logits[hidden], x[hidden], reduction="none") / share
            found.append(float(loss.sum()) / batch)
        return -sum(found) / len(found)

    def write(self, context: str, until: Sequence[str]) -> str:
        """``generate`` at temperature 0 by low confidence, a token a step, block by block, to the end of the canvas."""
        mask = self.lm.process.mask_id
        prompt = self.lm.encode(context)
        x = torch.cat([torch.tensor(prompt), torch.full((LENGTH,), mask)])[None]
        for start in range(len(prompt), x.shape[1], BLOCK):
            for _ in range(BLOCK):
                logits = self.logits(x)
                tokens = logits.argmax(-1)
                sure = torch.softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]
                sure = torch.where(x == mask, sure, -torch.inf)
                sure[:, start + BLOCK :] = -torch.inf
                best = int(sure.argmax())
                x[0, best] = tokens[0, best]
        row = x[0, len(prompt) :].tolist()
        text = self.lm.decode(row[: row.index(self.lm.eos_id)] if self.lm.eos_id in row else row)
        return text[: min([len(text), *(at for one in until if (at := text.find(one)) >= 0)])]


@dataclass
class Turn:
    """One side's answers to a task, and what they cost."""

    answers: list[Any]
    seconds: float
    forwards: int
    texts: int
    positions: int


def plain(lm: Any, kind: str, requests: list[Any], draws: int) -> Turn:
    side, started = Plain(lm), time.process_time()
    if kind == "written":
        answers: list[Any] = [side.write(one.args[0], one.args[1]["until"]) for one in requests]
    else:
        answers = [side.likelihood(*one.args, draws) for one in requests]
    return Turn(answers, time.process_time() - started, side.forwards, side.texts, side.positions)


def ours(lm: Any, kind: str, requests: list[Any], draws: int) -> Turn:
    from redraft.harness.backend import Harness

    side, started = Harness(lm, draws=draws, block=BLOCK), time.process_time()
    answers = side.generate_until(requests) if kind == "written" else [nats for nats, _ in side.loglikelihood(requests)]
    seconds, spent = time.process_time() - started, side.spent["written" if kind == "written" else "scored"]
    return Turn(list(answers), seconds, spent.forwards, spent.texts, spent.positions)


# ------------------------------------------------------------------------------------------------------- both in turns


def requests_of(folder: Path) -> dict[str, list[Any]]:
    """The harness's own requests of each task."""
    from lm_eval.tasks import TaskManager

    manager: Any = TaskManager(include_path=str(folder), include_defaults=False)
    found = dict[str, list[Any]]()
    for kind, task in manager.load(list(ASKED))["tasks"].items():
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests(rank=0, world_size=1)
        found[kind] = list(task.instances)
    return found


def chosen(kind: str, turn: Turn) -> list[Any]:
    """What counts: texts, or of each four choices the likeliest."""
    if kind == "written":
        return turn.answers
    return [max(range(4), key=turn.answers[at : at + 4].__getitem__) for at in range(0, len(turn.answers), 4)]


def cell(lm: Any, kind: str, requests: list[Any], rounds: int, draws: int = DRAWS, own: int = DRAWS) -> dict[str, Any]:
    """One task by both sides, ``rounds`` times each; the baseline of ``draws``, ours of its ``own``."""
    sides: dict[str, Callable[[list[Any]], Turn]] = {
        "baseline": lambda some: plain(lm, kind, some, draws),
        "ours": lambda some: ours(lm, kind, some, own),
    }
    for run in sides.values():
        run(requests[:4])  # for nothing: what is first is slower
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            turns[name].append(sides[name](requests))
    answers = [chosen(kind, turn) for turn in (*turns["baseline"], *turns["ours"])]
    told: dict[str, Any] = {"requests": len(requests), "equal_answers": all(one == answers[0] for one in answers)}
    if kind != "written":
        told |= {"baseline_draws": draws, "our_draws": own}
        told["tokens"] = sorted({len(lm.encode(one.args[1])) for one in requests})
        told["standard_error"] = spread(lm, requests, draws, own)
    for name, some in turns.items():
        told[name] = {cost: getattr(some[0], cost) for cost in ("forwards", "texts", "positions")}
    if not told["equal_answers"]:
        return told  # no speed of other answers
    ratios = [one.seconds / two.seconds for one, two in zip(turns["baseline"], turns["ours"], strict=True)]
    told["speedup"] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    for name, some in turns.items():
        seconds = statistics.median(turn.seconds for turn in some)
        told[name] |= {"cpu_seconds": seconds, "requests_per_cpu_second": len(requests) / seconds}
    return told


def spread(lm: Any, requests: list[Any], draws: int, own: int, times: int = 40) -> dict[str, float]:
    """The standard error of one request's log p by each side, in nats: the root mean square over some requests.

    With 8 ``times`` 36 draws seemed to be enough where it takes about 50.
    """
    from redraft.harness.backend import Harness

    some = requests[:8]
    both = {"baseline": list[list[float]](), "ours": list[list[float]]()}
    side = Plain(lm)
    for seed in range(times):
        both["baseline"].append([side.likelihood(*one.args, draws) for one in some])
        both["ours"].append([nats for nats, _ in Harness(lm, draws=own, seed=seed).loglikelihood(some)])
    return {name: float(torch.tensor(found).var(0).mean().sqrt()) for name, found in both.items()}


def mixed(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All four tasks after one another."""
    if any("speedup" not in one for one in cells):
        return {"equal_answers": False}
    seconds = {name: sum(one[name]["cpu_seconds"] for one in cells) for name in ("baseline", "ours")}
    return {"cpu_seconds": seconds, "speedup": seconds["baseline"] / seconds["ours"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 3), ("docs", 16), ("steps", 700)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", type=Path, help="a model that was trained so already")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/harness/cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = options.model or Path(folder) / "model"
        if options.model is None:
            with torch.enable_grad():
                train(model, options.steps)
        lm = redraft.load(str(model))
        write_tasks(Path(folder), options.docs)
        asked = requests_of(Path(folder))
        cells = dict[str, Any]()
        for kind, requests in asked.items():
            cells[kind] = cell(lm, kind, requests, options.rounds)
            print(kind, json.dumps(cells[kind]), file=sys.stderr)
        cells["one, baseline of one draw"] = cell(lm, "one", asked["one"], options.rounds, 1)
        cells[f"sentence, ours of {FEW} draws"] = cell(lm, "sentence", asked["sentence"], options.rounds, own=FEW)
    report: dict[str, Any] = {"goal": "5 times the requests per CPU-second, at equal answers", "tasks": cells}
    fewest = {"one": "one, baseline of one draw", "sentence": f"sentence, ours of {FEW} draws"}
    report["mix, of as many draws"] = mixed([cells[kind] for kind in asked])
    report["mix, of no more error"] = mixed([cells[fewest.get(kind, kind)] for kind in asked])
    shape = {"length": LENGTH, "block": BLOCK, "draws": DRAWS, "baseline_batch": BATCH, "rounds": options.rounds}
    weights = sum(one.numel() for one in lm.denoiser.parameters())
    report |= {**shape, "weights": weights, "vocabulary": lm.process.K, "machine": records.machine()}
    report |= {"load": os.getloadavg(), "command": " ".join(["python", *sys.argv])}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
