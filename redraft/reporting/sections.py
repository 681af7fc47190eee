"""What is shown of each kind of record. Figures of different protocol, or of different judges, share no table."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

from redraft import drawing
from redraft.frontiers import SIZE, Frontier, areas, draw, entries
from redraft.reporting.found import RUN, Found
from redraft.reporting.parts import Part, Picture, Table, cut, figure, grid, mapping, number, objects, words

T = TypeVar("T")
LIKELIHOOD = {
    "model": "model",
    "nats_per_token": "nats a token",
    "bits_per_byte": "bits a byte",
    "bits_per_char": "bits a character",
    "perplexity": "perplexity a token",
    "is": "is",
    "estimator": "estimator",
    "draws": "draws a row",
    "rows": "rows",
    "seed": "seed",
}
SAMPLES = {
    "model": "model",
    "samples": "texts",
    "empty": "empty",
    "sizes": "tokens of the model",
    "bits_per_char": "bits a character",
    "perplexity": "perplexity",
    "well_formed": "well formed",
    "total_variation": "total variation",
    "unigram_entropy": "unigram entropy",
    "distinct_1": "distinct 1",
    "distinct_2": "distinct 2",
    "distinct_3": "distinct 3",
    "self_bleu": "self-BLEU",
    "nfe": "calls",
    "drawn": "drawn in",
}
RUNS = {
    "model": "run",
    "name": "recipe",
    "parameters": "parameters",
    "tokens_trained_on": "tokens trained on",
    "seconds": "seconds",
}
SET = ("length", "steps", "block", "sampler", "guidance")
"""What a cell of a safety record is set by, beside its condition."""


def likelihoods(found: Sequence[Found]) -> list[Part]:
    """A table for each protocol: other text, tokens or rows make other figures."""
    rows = list[tuple[str, int, dict[str, Any]]]()
    for one in found:
        tree = one.tree
        if tree.get("nats_per_token") is None:
            continue
        bound = tree.get("is_bound")
        kind = "upper bound" if bound is True else "exact" if bound is False else None
        cut_as = tree.get("protocol") or {name: tree.get(name) for name in ("context", "tokens", "characters")}
        rows.append((words(cut_as), one.number, {**tree, "model": _model(one), "is": kind}))
    return [grid(f"Measured on: {told}", LIKELIHOOD, group) for told, group in _grouped(rows)]


def samples(found: Sequence[Found]) -> list[Part]:
    """A table for each judge, with how varied the texts are, and human text's figures below those of each model."""
    rows = list[tuple[str, int, dict[str, Any]]]()
    for one in found:
        nested = one.tree.get("samples")
        tree: dict[str, Any] = nested if isinstance(nested, dict) else one.tree if one.kind == "samples" else {}
        if tree.get("unigram_entropy") is None:
            continue
        judge = "no judge" if tree.get("judge") is None else f"{tree['judge']}; {tree.get('tokenisation')}"
        drawn = f"{tree.get('dtype')}, network {tree.get('network_dtype')}"
        rows.append((judge, one.number, {**tree, "model": _model(one), "drawn": drawn, "sizes": _sizes(tree)}))
        if human := mapping(tree.get("human")):
            told = {"model": "human text beside it", "samples": human.get("texts"), "sizes": _sizes(human)}
            rows.append((judge, one.number, {**human, **told}))
    return [grid(f"Judged by: {told}", SAMPLES, group) for told, group in _grouped(rows)]


def frontiers(found: Sequence[Found]) -> list[Part]:
    """For each protocol one picture of all that were measured by it, and the points of each."""
    parts = list[Part]()
    read = [(one.number, Frontier.from_dict(one.tree, one.name)) for one in found if one.kind == "frontier"]
    if read:
        drawing.check_plotting("the folder holds frontiers, which are drawn,")
    keyed = [(json.dumps([one.measure, one.protocol], sort_keys=True), number, one) for number, one in read]
    for _, group in _grouped(keyed):
        curves = [one for _, one in group]
        first = curves[0]
        told = words({name: value for name, value in first.protocol.items() if value not in ("", {})})
        svg = drawing.svg(lambda figure, curves=curves: draw(curves, figure), SIZE)
        parts.append(Picture(f"{first.measure} by denoiser calls. {told}", svg))
        for i, one in group:
            parts.append(_listed(f"{one.model}; * is dominated by none of its own", entries(one), i))
            parts.append(_listed(f"{one.model}: area under the curve, by trapezoids over log2 of calls", areas(one), i))
    return [part for part in parts if not isinstance(part, Table) or part.rows]


def harness(found: Sequence[Found]) -> list[Part]:
    """A row for each figure of each task, and what its log p is; errors are standard errors, not intervals."""
    rows, likely = list[tuple[int, dict[str, Any]]](), list[tuple[int, dict[str, Any]]]()
    for one in found:
        if one.kind != "harness":
            continue
        for task, told in mapping(one.tree.get("log_p")).items():
            likely.append((one.number, {**mapping(told), "model": _model(one), "task": task}))
        for task, told in mapping(one.tree.get("results")).items():
            for name, value in mapping(told).items():
                metric, comma, rule = str(name).partition(",")
                if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                    error = told.get(f"{metric}_stderr,{rule}")
                    spread = number(error) if isinstance(error, float) else None
                    named = {"model": _model(one), "task": task, "figure": metric, "rule": rule, "limit": None}
                    named["shots"] = mapping(one.tree.get("n_shot")).get(task)
                    rows.append(
                        (one.number, {**named, "value": value, "error": spread, "limit": one.tree.get("limit")})
                    )
    heads = {"model": "model", "task": "task", "figure": "figure", "rule": "filter", "value": "value"}
    heads |= {"error": "standard error", "shots": "examples shown", "limit": "at most"}
    said = {"model": "model", "task": "task", "is": "log p is", "estimator": "estimator", "draws": "draws"}
    said |= {"mean_standard_error": "standard error by chance, nats, mean", "largest_standard_error": "largest"}
    tables = [("Tasks of lm-evaluation-harness", heads, rows), ("How their answers were scored", said, likely)]
    return [grid(*one) for one in tables if one[2]]


def safety(found: Sequence[Found]) -> list[Part]:
    """Rates of each cell with Wilson intervals, and differences of rates on the same requests. No answer is shown."""
    parts = list[Part]()
    for one in found:
        if one.kind != "safety":
            continue
        cells = objects(one.tree.get("cells"))
        names = {"condition": "condition", **{name: name for name in SET}}
        names |= {key: key.replace("_", " ") for cell in cells for key, value in cell.items() if _is_rate(value)}
        parts.append(grid(f"{_model(one)}: rates", names, [(one.number, cell) for cell in cells]))
        differences = objects(one.tree.get("differences"))
        rows = [(one.number, {**told, "places": _places(told, cells)}) for told in differences]
        heads = {"figure": "figure", "changed": "what changes", "places": "from, to", "value": "difference"}
        rows = [(i, {**told, "value_low": told.get("low"), "value_high": told.get("high")}) for i, told in rows]
        parts.append(grid(f"{_model(one)}: differences on the same requests", heads, rows))
    return [part for part in parts if not isinstance(part, Table) or part.rows]


def studies(found: Sequence[Found]) -> list[Part]:
    """The question of each study, and what it says to each claim; the report beside its record tells more."""
    parts = list[Part]()
    for one in found:
        if one.kind == "study":
            report = PurePosixPath(one.name).with_name("report.md")
            told = [str(one.tree.get(name) or "") for name in ("question", "found", "answer")]
            parts.append(f"{one.tree.get('study')}: {' '.join(filter(None, told))} (Its report: {report})")
            heads = {"claim": "claim", "verdict": "verdict", "sentence": "what was found"}
            rows = [(one.number, finding) for finding in objects(one.tree.get("findings"))]
            parts += [grid(f"Study {one.tree.get('study')}", heads, rows)] if rows else []
    return parts


def runs(found: Sequence[Found]) -> list[Part]:
    """What was trained; how it measured stands among the likelihoods."""
    rows = list[tuple[int, dict[str, Any]]]()
    for one in found:
        if one.kind == RUN:
            recipe = mapping(one.tree.get("recipe"))
            rows.append((one.number, {**one.tree, "model": _model(one), "name": recipe.get("recipe")}))
    return [grid("Runs", RUNS, rows)] if rows else []


SECTIONS: dict[str, tuple[Callable[[Sequence[Found]], list[Part]], str]] = {
    "Likelihood": (likelihoods, "How likely text is under a model, with 95% intervals over rows of text."),
    "Samples": (samples, "How good and how varied texts are. No figure of a judge says anything without the others."),
    "Quality per step": (frontiers, "The calls that quality takes, by sampler. Bars are 95% intervals over texts."),
    "Benchmarks": (harness, "What lm-evaluation-harness found."),
    "Safety": (safety, "Shares of requests, with Wilson's 95% intervals."),
    "Studies": (studies, "Claims of the field, as experiments."),
    "Runs": (runs, "Models that were trained."),
}
"""The sections of a page in their order: what makes one, and what is said below its title."""


def _grouped(rows: Iterable[tuple[str, int, T]]) -> list[tuple[str, list[tuple[int, T]]]]:
    """Rows by their key, in the order in which keys come first."""
    groups: dict[str, list[tuple[int, T]]] = {}
    for key, i, one in rows:
        groups.setdefault(key, []).append((i, one))
    return list(groups.items())


def _listed(caption: str, rows: Sequence[Mapping[str, str]], i: int) -> Table:
    columns = list(rows[0]) if rows else []
    return Table(caption, columns, [list(row.values()) for row in rows], [i] * len(rows))


def _model(one: Found) -> str:
    """The model that a record is of; of a run its folder."""
    folder = PurePosixPath(one.name).parent
    return cut(str(one.tree.get("model") or (folder if one.kind == RUN else one.name)))


def _sizes(tree: Mapping[str, Any]) -> str | None:
    """How long texts are: entropy and distinct n-grams are compared at equal lengths only."""
    ends = tree.get("shortest"), tree.get("longest")
    return None if None in ends else " to ".join(map(number, dict.fromkeys(map(number, ends))))


def _is_rate(value: Any) -> bool:
    return isinstance(value, dict) and "value" in value and "low" in value


def _places(told: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    """The two cells of a difference by their conditions, and what they are set to."""

    def place(end: str) -> str:
        i = told.get(end)
        cell = cells[i] if isinstance(i, int) and 0 <= i < len(cells) else {}
        return " ".join([figure(cell, "condition"), *(f"{name} {cell[name]}" for name in SET if cell.get(name))])

    return f"{place('from')}, {place('to')}"
