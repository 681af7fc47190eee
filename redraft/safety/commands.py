"""The command ``safety``: how a chat model meets what it should refuse."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.flags import (
    Device,
    DeviceMap,
    Family,
    Json,
    Model,
    Precision,
    PresetName,
    Quantize,
    Record,
    Seed,
    Temperature,
    Words,
    loaded,
)
from redraft.printing import print_record, print_rows

if TYPE_CHECKING:
    from redraft.lm import LM
    from redraft.safety.scoring import Judge

WEAK = (
    "Refusals and asr_k are of keywords: an answer without a refusal phrase need not be harmful, nor of use, and one "
    "with it need not be safe. Quote asr_k as a weak indicator, asr_e with its judge's name."
)
FEW = 100
"""Requests of a kind below which intervals are wide enough to say so."""
REDACTED = "REDACTED"
"""In the place of a prefix in the stored command: the text is a response's beginning."""

Lists = Annotated[list[str], typer.Option(help="A .csv or .jsonl list, or owner/name:file.csv; may be given again.")]
Benign = Annotated[list[str] | None, typer.Option(help="A list of harmless requests: over-refusal; as --behaviours.")]
Conditions = Annotated[
    list[str] | None, typer.Option(help="plain (unless given), extended, interleaved, prefilled; may be given again.")
]
Templates = Annotated[Path | None, typer.Option(help="interleaved: a .json file, id to text with [MASK:n].")]
Prefill = Annotated[str | None, typer.Option(help="prefilled: a text, or a .json file, id to text.")]
Named = Annotated[
    list[str] | None,
    typer.Option(help="policy, remask, cap, eos or annealed; remask:times=3 sets an option. May be given again."),
]
AGAIN = "May be given again: every combination is measured, and compared."


def safety(
    model: Model,
    behaviours: Lists,
    benign: Benign = None,
    limit: Annotated[int | None, typer.Option(help="So many requests of each list, evenly spread.")] = None,
    conditions: Conditions = None,
    templates: Templates = None,
    prefill: Prefill = None,
    length: Annotated[int | None, typer.Option(help="Tokens of an answer; as usual, or 128.")] = None,
    lengths: Annotated[list[int] | None, typer.Option(help="extended: a length; may be given again.")] = None,
    steps: Annotated[list[int] | None, typer.Option(help=f"Denoising steps. {AGAIN}")] = None,
    block: Annotated[list[int] | None, typer.Option(help=f"Positions to write at a time. {AGAIN}")] = None,
    sampler: Annotated[list[str] | None, typer.Option(help=f"See: redraft list samplers. {AGAIN}")] = None,
    guidance: Annotated[list[float] | None, typer.Option(help=f"Towards the prompt, 1 none. {AGAIN}")] = None,
    temperature: Temperature = None,
    refusals: Annotated[
        Path | None, typer.Option(help="Refusal phrases, one a line; English ones unless given.")
    ] = None,
    case: Annotated[bool, typer.Option("--case", help="Refusal phrases: capital letters count.")] = False,
    judge: Annotated[Path | None, typer.Option(help="A classifier's folder, or with --rubric a chat model's.")] = None,
    judge_label: Annotated[str, typer.Option(help="The label, or with --rubric the word, for harmful.")] = "yes",
    refused_label: Annotated[str | None, typer.Option(help="The classifier's label for a refusal, if any.")] = None,
    judge_template: Annotated[
        str | None, typer.Option(help="With --rubric: the judge's chat template, as --template.")
    ] = None,
    rubric: Annotated[
        Path | None, typer.Option(help="How to ask the judge: a text with {prompt} and {answer}.")
    ] = None,
    defence: Named = None,
    flagged: Annotated[Path | None, typer.Option(help="policy, remask: phrases no draft may hold, one a line.")] = None,
    refusal: Annotated[str | None, typer.Option(help="What an answer says that a defence refused.")] = None,
    save_responses: Annotated[bool, typer.Option("--save-responses", help="Store answers, not verdicts only.")] = False,
    template: Annotated[str | None, typer.Option(help="A file with a chat template, or plain; else its own.")] = None,
    turn: Annotated[str | None, typer.Option(help="What ends an answer; as the template has it unless given.")] = None,
    preset: PresetName = None,
    seed: Seed = 0,
    device: Device = None,
    tokenizer: Words = None,
    family: Family = None,
    dtype: Precision = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    out: Record = None,
    as_json: Json = False,
) -> None:
    """Measure refusals and harmful answers of a chat model, with requests, templates and prefixes of your own."""
    from redraft.safety import behaviours as lists
    from redraft.safety import conditions as under
    from redraft.safety import defences as against
    from redraft.safety.run import measure, settings
    from redraft.safety.scoring import REFUSALS, Keywords, lines_of

    found = [one for name in behaviours for one in lists.spread(lists.read(name), limit)]
    found += [one for name in benign or () for one in lists.spread(lists.read(name, benign=True), limit)]
    asked = under.by_name(
        conditions or ["plain"],
        length=length,
        lengths=lengths or (),
        templates=None if templates is None else lists.texts_by_id(templates),
        prefix=lists.texts_by_id(Path(prefill)) if prefill is not None and prefill.endswith(".json") else prefill,
    )
    policy = None if flagged is None else against.phrases(lines_of(flagged))
    defences = against.by_name(defence or (), policy, refusal)
    keywords = Keywords(REFUSALS if refusals is None else lines_of(refusals), case)
    template, judge_template = _words(template), _words(judge_template)
    if out is not None and out.is_dir():
        raise ValueError(f"--out {out}: that is a folder; pass a file to write")
    judging = _judge(judge, judge_label, refused_label, rubric, judge_template, device)
    lm = loaded(model, device, tokenizer, family, dtype, device_map, quantize)
    result = {"model": model, "lists": [*behaviours, *(benign or ())]} | measure(
        lm,
        found,
        asked,
        settings(steps or (), block or (), sampler or (), guidance or ()),
        keywords=keywords,
        judge=judging,
        defences=defences,
        seed=seed,
        save_responses=save_responses,
        template=template,
        turn=turn,
        preset=preset,
        temperature=temperature,
        told=lambda line: typer.echo(line, err=True),
    )
    _tell(result, seed, out, as_json, prefill if not save_responses else None)


def _judge(
    folder: Path | None,
    harmful: str,
    refused: str | None,
    rubric: Path | None,
    template: str | None,
    device: str | None,
) -> "Judge | None":
    """The judge that was asked for. Errors: ``ValueError`` for options of a judge without one."""
    if rubric is None and template is not None:
        raise ValueError("--judge-template is of a chat model: pass --judge and --rubric")
    if folder is None:
        if rubric is not None or refused is not None or harmful != "yes":
            raise ValueError("--judge-label, --refused-label and --rubric are of a judge: pass --judge FOLDER")
        return None
    from redraft.safety.behaviours import text_of
    from redraft.safety.judges import ChatJudge, Classifier

    if rubric is None:
        return Classifier(folder, harmful, refused, device)
    if refused is not None:
        raise ValueError(f"--refused-label {refused} with --rubric: a chat model has no labels; leave it out")
    lm: LM = loaded(str(folder), device)
    return ChatJudge(
        lm, text_of(rubric), harmful, model=f"chat model {folder.name}", temperature=0.0, template=template
    )


def _words(template: str | None) -> str | None:
    """A chat template's text, of a file or as it was passed."""
    return Path(template).read_text("utf-8") if template is not None and Path(template).is_file() else template


def _tell(result: dict[str, Any], seed: int, out: Path | None, as_json: bool, secret: str | None) -> None:
    """Store and print what was measured; ``secret`` is left out of the command that is stored."""
    words = ["redraft", *sys.argv[1:]]
    if secret is not None and not secret.endswith(".json"):
        words = [word.replace(secret, REDACTED) if word in (secret, f"--prefill={secret}") else word for word in words]
    if print_record("safety", result, [seed], out, as_json, command=words):
        return
    for cell in result["cells"]:
        typer.echo(_place(cell))
        print_rows([(f"  {name}", value) for name, value in _rows(cell)])
    for one in result["differences"]:
        cells = (_place(result["cells"][one[end]]) for end in ("from", "to"))
        interval = f"[{one['low']:+.3f}, {one['high']:+.3f}]"
        typer.echo(f"{one['figure']}: {' -> '.join(cells)}  {one['value']:+.3f} {interval}")
    if any(0 < value < FEW for value in result["requests"].values()):
        typer.echo(
            f"Fewer than {FEW} requests of a kind: the intervals are wide, and differences seldom clear of them."
        )
    typer.echo(f"By {result['keywords']}; judge: {result['judge'] or 'none'}; defences: {_defences(result)}.")
    typer.echo(WEAK)


def _defences(result: dict[str, Any]) -> str:
    """The defences that were on, in words."""
    return ", ".join(f"{name} {value}" for name, value in result["defences"].items()) or "none"


def _place(cell: dict[str, Any]) -> str:
    """A cell by its condition and what is not as usual."""
    factors = ("length", "steps", "block", "sampler", "guidance")
    told = [f"{name}={cell[name]}" for name in factors if cell[name] is not None]
    return " ".join([cell["condition"], *told])


def _rows(cell: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of a cell: shares with Wilson's intervals of 95%, then what was seen of the steps."""
    from redraft.safety.metrics import READS

    found = list[tuple[str, str]]()
    for name in READS:
        if (one := cell[name]) is not None:
            interval = f"[{one['low']:.3f}, {one['high']:.3f}]"
            found.append((name, f"{one['value']:.3f} {interval}  {one['hits']} of {one['n']}"))
    for name in ("first_refusal", "first_end", "refusal_step"):
        if (one := cell[name]) is not None:
            found.append((name, f"{one['mean']:.3g}, the mean of {one['n']}"))
    for name, count in cell["stopped"].items():
        found.append((f"stopped by {name}", f"{count} of {len(cell['answers'])}"))
    return found


COMMANDS = (safety,)
