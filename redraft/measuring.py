"""The commands that measure: evaluate, and study, which runs a claim of the field as an experiment."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from redraft import records
from redraft.flags import Device, DeviceMap, Family, Json, Model, Precision, Quantize, Record, Seed, Words, loaded
from redraft.printing import likelihood_rows, print_json, print_rows

if TYPE_CHECKING:
    from redraft.lm import LM


def evaluate(
    model: Model,
    data: Annotated[str, typer.Option(help="File, folder, corpus or Hub data set.")],
    draws: Annotated[int, typer.Option(help="Draws of the noise for each row of text.")] = 4,
    rows: Annotated[int | None, typer.Option(help="Rows to score, evenly spread; all unless given.")] = None,
    seed: Seed = 0,
    text_field: Annotated[str, typer.Option(help="Field of .jsonl and .parquet records that holds the text.")] = "text",
    samples: Annotated[int, typer.Option(help="Also draw this many texts and measure how varied they are.")] = 0,
    estimator: Annotated[str | None, typer.Option(help="vlb or ode (vectors only); the best unless given.")] = None,
    ode_steps: Annotated[int | None, typer.Option(help="Heun steps of the ODE; 64 unless given.")] = None,
    ode_probes: Annotated[int | None, typer.Option(help="Probes of its trace a call, 0 exact; 1 unless given.")] = None,
    device: Device = None,
    tokenizer: Words = None,
    family: Family = None,
    dtype: Precision = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    out: Record = None,
    as_json: Json = False,
) -> None:
    """Measure how likely a text is under a model: a bound with its error bar (95%)."""
    lm = loaded(model, device, tokenizer, family, dtype, device_map, quantize)
    measure = partial(lm.evaluate, estimator=estimator, ode_steps=ode_steps, ode_probes=ode_probes)
    result = {"model": model, **measure(data, draws=draws, rows=rows, seed=seed, text_field=text_field).to_dict()}
    table = likelihood_rows(result)
    if samples:
        result["samples"] = _variety(lm, samples, seed)
        table += [(name.replace("_", " "), f"{value:.4g}") for name, value in result["samples"].items()]
    told = records.made([seed])
    if out is not None:
        records.write(out, "likelihood", result, told)
    if as_json:
        print_json({**result, "made": told})
    else:
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


def _variety(lm: "LM", num: int, seed: int) -> dict[str, float]:
    """How varied ``num`` samples of the model's context are, and for the toy language how many are sentences."""
    from redraft.data import toy
    from redraft.evaluation import variety

    written = lm.generate(num=num, seed=seed)
    found = {"samples": num, "nfe": written.samples.nfe, **variety(written.tokens.tolist())}
    if lm.tokenizer.kind == "toy":
        found |= {name: value for name, value in toy.report(written.texts).items() if name != "n"}
    return found


COMMANDS = (evaluate, study)
