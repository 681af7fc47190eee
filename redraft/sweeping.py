"""``redraft evaluate MODEL --frontier``: sweep, store, draw and print."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from redraft import drawing, records
from redraft.printing import print_json, print_rows, print_table

if TYPE_CHECKING:
    from redraft.evaluation.judges import Judge
    from redraft.frontiers import Frontier
    from redraft.lm import LM

NAME = "frontier"
SHOWN = ("sampler", "calls", "", "quality", "unigram entropy")
"""What fits a terminal; the record has all, and a page of it (``redraft report``)."""


@dataclass(frozen=True)
class Sweep:
    """What was asked of all models alike; None is the usual."""

    samplers: Sequence[str] | None
    nfes: Sequence[int] | None
    num: int | None
    length: int | None
    prompt: str
    seed: int
    data: str | None
    text_field: str
    judge: str | None


def sweep(
    model: str,
    load: "Callable[[str], LM]",
    asked: Sweep,
    against: Sequence[str],
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure ``model`` and those of ``against`` that are no records, store each, and draw all of them together.

    Errors: ``ValueError`` before anything is measured for files that hold no frontier, and without matplotlib; after
    all is stored, for frontiers that are not to be drawn together.
    """
    from redraft.frontiers import SIZE, Frontier, draw, together

    drawing.check_plotting("a frontier is drawn")
    out = Path("runs", NAME, Path(model).name) if out is None else out
    if out.suffix == ".json" or out.is_file():
        raise ValueError(f"--out {out}: with --frontier it is a folder, for the record and its picture")
    stored = {one: Frontier.read(Path(one)) for one in against if one.endswith(".json")}
    judge, found, told = asked.judge, list["Frontier"](), records.made([asked.seed])
    for number, name in enumerate([model, *against], 1):
        if name in stored:
            found.append(stored[name])
            continue
        one, used = _measured(load(name), name, asked, judge)
        # one that was fitted is fitted again, the same: else nobody knew which text it has not seen
        judge = asked.judge and used
        file = out / f"{NAME}{'' if number == 1 else f'-{number}'}.json"
        records.write(file, NAME, one.to_dict(), told)
        found.append(one)
    together(found, force)
    drawing.save(lambda figure: draw(found, figure), out / NAME, SIZE)
    if as_json:
        print_json({"out": str(out), "frontiers": [one.to_dict() for one in found], "made": told})
        return
    for one in found:
        _print(one)
    print_rows([("picture", str(out / f"{NAME}.png"))])


def _measured(lm: "LM", name: str, asked: Sweep, judge: "str | Judge | None") -> "tuple[Frontier, str | Judge | None]":
    """The frontier of a model, and the judge that it was judged by, who can judge the next."""
    from redraft.frontiers import NFES, NUM, frontier, yardstick

    asking, people = yardstick(lm, asked.data, judge, asked.text_field)
    found = frontier(
        lm,
        samplers=asked.samplers or None,
        nfes=asked.nfes or NFES,
        num=asked.num or NUM,
        length=asked.length,
        prompt=asked.prompt,
        seed=asked.seed,
        judge=asking,
        references=people,
        name=name,
        tell=lambda line: typer.echo(line, err=True),
    )
    return found, asking


def _print(found: "Frontier") -> None:
    from redraft.frontiers import areas, entries

    protocol: dict[str, Any] = found.protocol
    rows = [("model", found.model), ("quality", found.measure)]
    if protocol["judge"] is not None:
        rows.append(("judge", protocol["judge"]))
    rows.append(("texts a point", f"{protocol['num']} of {protocol['length']} tokens"))
    if found.reference is not None and found.reference["quality"] is not None:
        rows.append(("human text", f"{found.reference['quality']:.3f}"))
    print_rows(rows)
    print_table([{name: row[name] for name in SHOWN} for row in entries(found)])
    if below := areas(found):
        print_table(below)
