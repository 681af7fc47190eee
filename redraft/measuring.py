"""The commands that measure: evaluate, study, a claim of the field as an experiment, and report, of all they left."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft import records
from redraft.flags import Device, DeviceMap, Family, Json, Model, Precision, Quantize, Record, Seed, Words, loaded
from redraft.printing import difference_rows, likelihood_rows, print_json, print_record, print_rows
from redraft.sweeping import Sweep, sweep

if TYPE_CHECKING:
    from redraft.evaluation import Likelihood
    from redraft.evaluation.judges import Judge
    from redraft.lm import LM

DRAWS = 4
AGAINST = "A record of --out to print the difference from; with --frontier records or models to draw beside."
ESTIMATOR = "vlb, steps, exact_elbo, any_order, importance, enumeration, ode; the best that fits unless given."


def evaluate(
    model: Model,
    data: Annotated[str | None, typer.Option(help="File, folder, corpus or Hub data set.")] = None,
    draws: Annotated[int, typer.Option(help="Draws of the noise for each row of text.")] = DRAWS,
    rows: Annotated[int | None, typer.Option(help="Rows to score, evenly spread; all unless given.")] = None,
    seed: Seed = 0,
    text_field: Annotated[str, typer.Option(help="Field of .jsonl and .parquet records that holds the text.")] = "text",
    samples: Annotated[int, typer.Option(help="Also draw this many texts, and say how good and how varied.")] = 0,
    judge: Annotated[str | None, typer.Option(help="Who judges them: ngram:FILE, or a causal model.")] = None,
    estimator: Annotated[str | None, typer.Option(help=ESTIMATOR)] = None,
    ode_steps: Annotated[int | None, typer.Option(help="Heun steps of the ODE; 64 unless given.")] = None,
    ode_probes: Annotated[int | None, typer.Option(help="Probes of its trace a call, 0 exact; 1 unless given.")] = None,
    particles: Annotated[int | None, typer.Option(help="Weights of the importance bound; 8 unless given.")] = None,
    chain_steps: Annotated[int | None, typer.Option(help="Ancestral steps importance or enumeration is of.")] = None,
    stride: Annotated[int | None, typer.Option(help="Windows that advance by so many tokens, and score these.")] = None,
    against: Annotated[list[str] | None, typer.Option(help=AGAINST)] = None,
    unit: Annotated[str | None, typer.Option(help="nats_per_token unless given, bits_per_byte, bits_per_char.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare though the protocols differ.")] = False,
    frontier: Annotated[bool, typer.Option("--frontier", help="Sweep samplers and calls, and draw quality.")] = False,
    samplers: Annotated[list[str] | None, typer.Option(help="With --frontier: of these; may be given again.")] = None,
    nfe: Annotated[
        list[int] | None, typer.Option(help="With --frontier: calls to ask for; may be given again.")
    ] = None,
    length: Annotated[int | None, typer.Option(help="With --frontier: tokens to write.")] = None,
    prompt: Annotated[str, typer.Option(help="With --frontier: the text to continue.")] = "",
    device: Device = None,
    tokenizer: Words = None,
    family: Family = None,
    dtype: Precision = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    out: Record = None,
    as_json: Json = False,
) -> None:
    """Measure how likely a text is under a model: a bound with its error bar (95%).

    With --frontier how good and how varied its own texts are instead, by sampler and number of denoiser calls.
    """
    if not against and (unit is not None or force):
        raise ValueError("--unit and --force are of a comparison: pass --against FILE with them, or leave them out")
    placed = {"device": device, "dtype": dtype, "device_map": device_map, "quantize": quantize}
    load = partial(loaded, **placed, tokenizer=tokenizer, family=family)
    scored = {"--draws": draws if draws != DRAWS else None, "--rows": rows, "--estimator": estimator, "--unit": unit}
    scored |= {"--ode-steps": ode_steps, "--ode-probes": ode_probes, "--particles": particles, "--stride": stride}
    if frontier:
        _refuse(scored | {"--chain-steps": chain_steps}, "with --frontier, which scores no text")
        asked = Sweep(samplers, nfe, samples or None, length, prompt, seed, data, text_field, judge)
        return sweep(model, load, asked, against or (), out, force, as_json)
    swept = {"--samplers": samplers, "--nfe": nfe, "--length": length, "--prompt": prompt or None}
    _refuse(swept, "without --frontier")
    _refuse({} if samples else {"--judge": judge}, "without texts to judge: pass --samples, or --frontier")
    if data is None:
        raise ValueError("no text to score: pass --data; --frontier alone can do without")
    other = _other(against)
    lm = load(model)
    asking = _judge(judge, lm)
    measure = partial(lm.evaluate, estimator=estimator, ode_steps=ode_steps, ode_probes=ode_probes)
    measure = partial(measure, particles=particles, chain_steps=chain_steps, stride=stride)
    found = measure(data, draws=draws, rows=rows, seed=seed, text_field=text_field)
    result: dict[str, Any] = {"model": model, **found.to_dict()}
    table = likelihood_rows(result)
    if other is not None:
        result["against"] = _difference(found, other, unit or "nats_per_token", force)
        table += difference_rows(result["against"])
    if samples:
        result["samples"], told = _quality(lm, samples, seed, asking, data, text_field)
        table += told
    if not print_record("likelihood", result, [seed], out, as_json, more=found.to_record()):
        print_rows(table)


def study(
    name: Annotated[str, typer.Argument(help="See: redraft list studies.")],
    quick: Annotated[bool, typer.Option("--quick", help="Spend the study's small budget.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; runs/studies/NAME unless given.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of each cell; the budget's unless given.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each cell; the budget's unless given.")] = None,
    workers: Annotated[int, typer.Option(help="Cells at a time, a thread each.")] = 2,
    only: Annotated[list[str] | None, typer.Option(help="Run this cell only; may be given again.")] = None,
    as_json: Json = False,
) -> int:
    """Run a study: a claim of the field as an experiment, with its report. Run again, it goes on where it stopped."""
    from redraft import studies

    done = studies.run(name, quick=quick, out=out, steps=steps, seeds=seeds, workers=workers, only=only or ())
    if as_json:
        print_json(done.to_dict())
    else:
        found = [(one.verdict, f"{one.claim}: {one.sentence}") for one in done.conclusion.findings]
        print_rows([*found, ("report", str(done.out / "report.md"))])
    return 1 if done.failed else 0  # the runner has told of each, and so does the report


def report(
    folder: Annotated[Path, typer.Argument(help="A folder with records somewhere in it.")],
    out: Annotated[Path | None, typer.Option(help="The page; report.html in the folder unless given.")] = None,
    as_json: Json = False,
) -> None:
    """Render all records below a folder into one page of HTML, with tables, plots, and how to repeat each."""
    from redraft import reporting

    page = reporting.report(folder, out)
    if as_json:
        print_json({"page": str(page)})
    else:
        print_rows([("page", str(page))])


def _refuse(options: Mapping[str, Any], why: str) -> None:
    """Errors: ``ValueError`` for options that were given and would do nothing."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} {value} {why}; leave it out")


def _other(against: Sequence[str] | None) -> tuple[str, dict[str, Any]] | None:
    """The likelihood to compare with, and its file. Errors: ``ValueError`` for several, or a file of another kind."""
    if not against:
        return None
    if len(against) > 1:
        raise ValueError(f"--against {' and '.join(against)}: a likelihood is compared with one record; pass one")
    found = records.read(Path(against[0]))
    if found is None or found["kind"] != "likelihood":
        raise ValueError(
            f"--against {against[0]}: it is no record of a likelihood; store one by redraft evaluate --out"
        )
    return against[0], found


def _difference(found: "Likelihood", other: tuple[str, dict[str, Any]], unit: str, force: bool) -> dict[str, Any]:
    """How far what was found is from a record (``compare``)."""
    from redraft.evaluation import compare

    return {"file": other[0], **compare(found, other[1], unit, force=force).to_dict()}


def _judge(judge: str | None, lm: "LM") -> "Judge | None":
    """Found before anything is measured. Errors: ``ValueError``, see ``judges.get``."""
    from redraft.evaluation import judges

    return None if judge is None else judges.get(judge, lm.device)


def _quality(
    lm: "LM", num: int, seed: int, judge: "Judge | None", data: str, text_field: str
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """How good and how varied ``num`` texts of the model's context are, beside the text that was scored; and in words.

    Of nothing but empty texts that alone.
    """
    from redraft.evaluation.quality import quality_of
    from redraft.frontiers import of_people

    written = lm.generate(num=num, seed=seed)
    if not any(written.texts):
        return {"samples": num, "empty": num}, [("texts", f"none to judge: all {num} are empty")]
    people = of_people(lm, data, text_field)
    found = quality_of(written, lm, judge=judge, references=people, seed=seed)
    return found.to_dict(), found.rows()


COMMANDS = (evaluate, study, report)
