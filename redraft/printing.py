"""What a command prints: rows for people or one line of JSON on standard output, remarks on standard error."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from redraft.lm import Generation


def print_json(value: Mapping[str, Any]) -> None:
    """One line of JSON; numbers that JSON cannot write are null."""

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: finite(one) for name, one in value.items()}
        if isinstance(value, list):
            return [finite(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    typer.echo(json.dumps(finite(value)))


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


def likelihood_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what ``Likelihood.to_dict`` found."""
    if not found:
        return []
    bound = "upper bound" if found["is_bound"] else "exact"
    rows = [("nats per token", f"{found['nats_per_token']:.4f} ± {found['nats_per_token_error']:.4f} ({bound})")]
    if found["bits_per_char"] is not None:
        rows.append(("bits per character", f"{found['bits_per_char']:.4f} ± {found['bits_per_char_error']:.4f}"))
    estimator = f"{found['estimator']}; {found['draws']} draws of {found['rows']} rows of {found['context']} tokens"
    return [*rows, ("perplexity", f"{found['perplexity']:.4g} per token"), ("estimator", estimator)]


def print_texts(written: "Generation") -> None:
    """The texts, as they are to a file or pipe, and what they cost."""
    from redraft.trace import visible

    for i, (text, seed) in enumerate(zip(written.texts, written.samples.seeds, strict=True), 1):
        if len(written.texts) > 1:
            typer.echo(f"-- {i} of {len(written.texts)}, seed {seed}", err=True)
        typer.echo(visible(text, keep="\n\t") if sys.stdout.isatty() else text)
    variety = written.to_dict()
    typer.echo(f"{variety['nfe']} denoiser calls, unigram entropy {variety['unigram_entropy']:.3f} nats", err=True)
