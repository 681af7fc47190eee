"""What a command prints: rows for people or one line of JSON on standard output, remarks on standard error."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from redraft import records

if TYPE_CHECKING:
    from redraft.lm import LM, Generation


def print_json(value: Mapping[str, Any]) -> None:
    """One line of JSON; numbers that JSON cannot write are null."""
    typer.echo(json.dumps(records.plain(value)))


def print_record(
    kind: str,
    measured: Mapping[str, Any],
    seeds: Sequence[int],
    out: Path | None,
    as_json: bool,
    *,
    command: Sequence[str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> bool:
    """Store what was measured in ``out`` if there is one, and print it if that is to be JSON; whether it was printed.

    ``command``: that which repeats it, where this process's own must not be told; ``more``: what the file alone says.
    """
    made = records.made(seeds, command)
    if out is not None:
        records.write(out, kind, {**measured, **(more or {})}, made)
    if as_json:
        print_json({**measured, "made": made})
    return as_json


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    for name, value in rows:
        typer.echo(f"{name:<20}{value}")


def print_table(entries: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of ``entries``, which share their keys."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for key in entries[0]:
        table.add_column(key, no_wrap=key == "name")
    for entry in entries:
        # Text, since a description may hold [brackets] that mark-up would eat
        table.add_row(*(Text("none" if value is None else str(value)) for value in entry.values()))
    Console().print(table)


_UNITS = {"byte": "byte", "char": "character"}


def likelihood_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what ``Likelihood.to_dict`` found."""
    if not found:
        return []
    bound = "upper bound" if found["is_bound"] else "exact"
    rows = [("nats per token", f"{found['nats_per_token']:.4f} ± {found['nats_per_token_error']:.4f} ({bound})")]
    for unit in ("byte", "char"):
        if found.get(f"bits_per_{unit}") is not None:
            value, error = found[f"bits_per_{unit}"], found[f"bits_per_{unit}_error"]
            rows.append((f"bits per {_UNITS[unit]}", f"{value:.4f} ± {error:.4f}"))
    token = "token"
    if "protocol" in found:
        from redraft.evaluation.protocol import tokenizer_name

        token += f" of {tokenizer_name(found['protocol']['tokenizer'])}"
    estimator = f"{found['estimator']}; {found['draws']} draws of {found['rows']} rows of {found['context']} tokens"
    return [*rows, ("perplexity", f"{found['perplexity']:.4g} per {token}"), ("estimator", estimator)]


def difference_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what ``Comparison.to_dict`` found, against a ``file``."""
    unit, rows = found["unit"].replace("_", " "), "row by row" if found["paired"] else "as if independent"
    forced = f"; forced, though {', '.join(found['forced'])} differ" if found["forced"] else ""
    told = f"{found['difference']:+.4f} ± {found['error']:.4f} {unit}, {rows}{forced}"
    return [("against", found["file"]), ("difference", told), *([("note", found["note"])] if found["note"] else [])]


def print_texts(written: "Generation") -> None:
    """The texts, as they are to a file or pipe, and what they cost."""
    from redraft.trace import visible

    for i, (text, seed) in enumerate(zip(written.texts, written.samples.seeds, strict=True), 1):
        if len(written.texts) > 1:
            typer.echo(f"-- {i} of {len(written.texts)}, seed {seed}", err=True)
        typer.echo(visible(text, keep="\n\t") if sys.stdout.isatty() else text)
    if written.choice is not None and written.choice.score is not None:
        one = written.choice
        typer.echo(f"text {one.index + 1} of {one.count}, mean {one.gain} {one.score:.3f} with the others", err=True)
    variety = written.to_dict()
    typer.echo(f"{variety['nfe']} denoiser calls, unigram entropy {variety['unigram_entropy']:.3f} nats", err=True)


def write(
    lm: "LM",
    draw: "Callable[..., Generation]",
    select: str | None,
    show: bool,
    trace: Path | None,
    svg: Path | None,
    as_json: bool,
    before: str | None = None,
) -> None:
    """Draw texts, ``before`` being what is redrafted; show how if asked, select one if asked, and print them."""
    from rich.console import Console

    from redraft.evaluation import mbr
    from redraft.trace import Trace, checked

    if select is not None:
        mbr.get(select)  # refused before anything is drawn
    if trace is not None:
        checked(trace, "--trace", remedy="; --show shows the draft in the terminal")
    if svg is not None:
        checked(svg, "--svg", ())
    if show or trace or svg:
        start = None if before is None else lm.tokenizer.encode(before)
        title = "redraft " + " ".join(sys.argv[1:2])
        with Trace(lm, Console(stderr=as_json) if show else None, start, title=title) as seen:
            written = draw(callback=seen)
            seen.finish(written)
        if trace:
            seen.save(trace)
        if svg:
            seen.save_svg(svg, title=title)
    else:
        written = draw()
    written = written if select is None else written.select(select)
    if as_json:
        print_json(written.to_dict())
    else:
        print_texts(written)


def replayed(file: Path, row: int, speed: float, html: Path | None, png: Path | None) -> None:
    """Show a saved trace again, or save it as what is asked for instead."""
    from rich.console import Console

    from redraft.trace import checked, load, replay

    for option, path, ending in (("--html", html, ".html"), ("--png", png, ".png")):
        if path is not None:
            checked(path, option, (ending,))
    record = load(file)
    record.row(row)
    for path in (html, png):
        if path is not None:
            record.save(path, row)
    if html is None and png is None:
        replay(record, Console(), row=row, speed=speed)
