"""The command ``safety``: how a chat model meets what it should refuse."""

import sys
from collections.abc import Sequence
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
    from redraft.safety.behaviours import Behaviour
    from redraft.safety.conditions import Condition
    from redraft.safety.defences import Defences
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
Phrases = Annotated[Path | None, typer.Option(help="Refusal phrases, one a line; English ones unless given.")]
Judging = Annotated[Path | None, typer.Option(help="A classifier's folder, or with --rubric a chat model's.")]
JudgesTemplate = Annotated[str | None, typer.Option(help="With --rubric: the judge's chat template, as --template.")]
Rubric = Annotated[Path | None, typer.Option(help="How to ask the judge: a text with {prompt} and {answer}.")]
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
    refusals: Phrases = None,
    case: Annotated[bool, typer.Option("--case", help="Refusal phrases: capital letters count.")] = False,
    judge: Judging = None,
    judge_label: Annotated[str, typer.Option(help="The label, or with --rubric the word, for harmful.")] = "yes",
    refused_label: Annotated[str | None, typer.Option(help="The classifier's label for a refusal, if any.")] = None,
    judge_template: JudgesTemplate = None,
    rubric: Rubric = None,
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
    from redraft.safety.run import measure, settings
    from redraft.safety.scoring import REFUSALS, Keywords, lines_of

    requests = _requests(behaviours, benign or (), limit)
    asked = _conditions(conditions or ["plain"], length, lengths or (), templates, prefill)
    defences = _defences(defence or (), flagged, refusal)
    keywords = Keywords(REFUSALS if refusals is None else lines_of(refusals), case)
    template, judge_template = _words(template), _words(judge_template)
    if out is not None and out.is_dir():
        raise ValueError(f"--out {out}: that is a folder; pass a file to write")
    judging = _judge(judge, judge_label, refused_label, rubric, judge_template, device)
    lm = loaded(model, device, tokenizer, family, dtype, device_map, quantize)
    ways = settings(steps or (), block or (), sampler or (), guidance or ())
    how: dict[str, Any] = {"template": template, "turn": turn, "preset": preset, "temperature": temperature}
    how |= {"keywords": keywords, "judge": judging, "defences": defences, "seed": seed}
    measured = measure(lm, requests, asked, ways, **how, save_responses=save_responses, told=_progress)
    result = {"model": model, "lists": [*behaviours, *(benign or ())]} | measured
    _tell(result, seed, out, as_json, None if save_responses else prefill)


def _requests(harmful: Sequence[str], benign: Sequence[str], limit: int | None) -> "list[Behaviour]":
    """The requests of all lists, ``limit`` of each."""
    from redraft.safety.behaviours import read, spread

    found = [one for name in harmful for one in spread(read(name), limit)]
    return found + [one for name in benign for one in spread(read(name, benign=True), limit)]


def _conditions(
    names: Sequence[str], length: int | None, lengths: Sequence[int], templates: Path | None, prefill: str | None
) -> "list[Condition]":
    """The conditions of some names, with the user's texts for them."""
    from redraft.safety.behaviours import texts_by_id
    from redraft.safety.conditions import by_name

    texts = None if templates is None else texts_by_id(templates)
    prefix = texts_by_id(Path(prefill)) if prefill is not None and _names_file(prefill) else prefill
    return by_name(names, length=length, lengths=lengths, templates=texts, prefix=prefix)


def _names_file(prefill: str) -> bool:
    """Whether a prefix is the name of a file of them, not a text."""
    return prefill.endswith(".json")


def _defences(names: Sequence[str], flagged: Path | None, refusal: str | None) -> "Defences | None":
    """The defences of some names, with the phrases that no draft may hold."""
    from redraft.safety.defences import by_name, phrases
    from redraft.safety.scoring import lines_of

    return by_name(names, None if flagged is None else phrases(lines_of(flagged)), refusal)


def _progress(line: str) -> None:
    typer.echo(line, err=True)


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
    """Store and print what was measured; ``secret``, a prefix, is left out of the command that is stored."""
    if print_record("safety", result, [seed], out, as_json, command=_redacted(["redraft", *sys.argv[1:]], secret)):
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
    typer.echo(f"By {result['keywords']}; judge: {result['judge'] or 'none'}; defences: {_on(result)}.")
    typer.echo(WEAK)


def _redacted(words: Sequence[str], secret: str | None) -> list[str]:
    """A command without the text of a prefix; the name of a file of them may stand."""
    if secret is None or _names_file(secret):
        return list(words)
    hidden = {secret: REDACTED, f"--prefill={secret}": f"--prefill={REDACTED}"}
    return [hidden.get(word, word) for word in words]


def _on(result: dict[str, Any]) -> str:
    """The defences that were on, in words."""
    return ", ".join(f"{name} {value}" for name, value in result["defences"].items()) or "none"


def _place(cell: dict[str, Any]) -> str:
    """A cell by its condition and what is not as usual."""
    from redraft.safety.metrics import FACTORS

    told = [f"{name}={cell[name]}" for name in ("length", *FACTORS) if cell[name] is not None]
    return " ".join([cell["condition"], *told])


def _rows(cell: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of a cell: shares with Wilson's intervals of 95%, then what was seen of the steps."""
    from redraft.safety.metrics import READS, SEEN

    found = list[tuple[str, str]]()
    for name in READS:
        if (one := cell[name]) is not None:
            interval = f"[{one['low']:.3f}, {one['high']:.3f}]"
            found.append((name, f"{one['value']:.3f} {interval}  {one['hits']} of {one['n']}"))
    for name in SEEN:
        if (one := cell[name]) is not None:
            found.append((name, f"{one['mean']:.3g}, the mean of {one['n']}"))
    for name, count in cell["stopped"].items():
        found.append((f"stopped by {name}", f"{count} of {len(cell['answers'])}"))
    return found


COMMANDS = (safety,)
