"""Options that commands share, with their help, and what those of writing mean to ``lm.generate`` and its kin."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from redraft.lm import LM

Model = Annotated[str, typer.Argument(help="A run's folder, a saved model, or a Hugging Face id.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Record = Annotated[Path | None, typer.Option("--out", help="Also store it as a file; see: redraft report.")]
Corpus = Annotated[str | None, typer.Option(help="File, folder, corpus or Hub data set; field data.source.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in the folder.")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; cpu unless given.")]
Words = Annotated[
    str | None, typer.Option("--tokenizer", help="Released checkpoints: another tokenizer's folder or id.")
]
Family = Annotated[str | None, typer.Option(help="Released checkpoints that do not tell. See: redraft list families.")]
Precision = Annotated[str | None, typer.Option("--dtype", help="bfloat16, float32, ...; as stored unless given.")]
DeviceMap = Annotated[str | None, typer.Option("--device-map", help="Released checkpoints: auto, on several devices.")]
Quantize = Annotated[str | None, typer.Option(help="Released checkpoints: keep weights as int8 or nf4 (4 bits).")]

# -------------------------------------------------------------------------------------------- how texts are written

Num = Annotated[int, typer.Option(help="Texts to draw.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; the sampler's default unless given.")]
SamplerName = Annotated[str | None, typer.Option("--sampler", help="See: redraft list samplers.")]
Temperature = Annotated[float | None, typer.Option(help="Below 1 sharpens, 0 takes the likeliest; 1 or as usual.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest tokens that hold this share of the mass.")]
TopK = Annotated[int, typer.Option(help="Draw from so many of the likeliest tokens; 0 is all.")]
PresetName = Annotated[
    str | None, typer.Option("--preset", help="As its authors write with a model. See: redraft list presets.")
]
Repetition = Annotated[float, typer.Option(help="Above 1 makes tokens that stand there already less likely.")]
Banned = Annotated[list[str] | None, typer.Option("--ban", help="A token never to write; may be given again.")]
Late = Annotated[list[str] | None, typer.Option("--late", help="A token to write last; may be given again.")]
Stop = Annotated[bool, typer.Option("--stop", help="End a text at the tokenizer's end of text.")]
MinLength = Annotated[int, typer.Option(help="With --stop: no end before so many tokens.")]
Block = Annotated[int | None, typer.Option(help="Write so many positions at a time, from left to right.")]
CacheName = Annotated[str | None, typer.Option("--cache", help="With --block: prefix or dual, faster and approximate.")]
Refresh = Annotated[int | None, typer.Option(help="Renew the cache after so many calls.")]
Regex = Annotated[str | None, typer.Option(help="What is written must match this regular expression.")]
Schema = Annotated[
    str | None, typer.Option("--json-schema", help="What is written must be JSON of the schema in this file.")
]
Choices = Annotated[list[str] | None, typer.Option("--choice", help="Write one of these; may be given again.")]
Grammar = Annotated[Path | None, typer.Option(help="What is written must parse by this file's grammar, lark's EBNF.")]
Given = Annotated[str | None, typer.Option(help="How given tokens stand amid noise: noised, clean or told.")]
Resample = Annotated[int, typer.Option(help="Jumps back in each step, where given tokens are noised.")]

# ------------------------------------------------------------------------------------------- what is done with them

Select = Annotated[
    str | None, typer.Option(help="Print the one of --num texts most like the others: bleu, chrf, agreement, edits.")
]
Show = Annotated[bool, typer.Option("--show", help="Show the draft of the first text step by step.")]
Trace = Annotated[Path | None, typer.Option(help="Save every step as .json (see: redraft replay), .html or .png.")]
Svg = Annotated[Path | None, typer.Option(help="Save the drafts of the first text as a picture.")]


def shaped(lm: "LM", banned: Sequence[str] | None, late: Sequence[str] | None = None, **options: Any) -> dict[str, Any]:
    """Options of ``sample`` without those that ask for nothing, which not every way to write takes."""
    idle: dict[str, Any] = {"top_k": 0, "repetition": 1.0, "stop": False, "min_length": 0}
    found = {name: value for name, value in options.items() if value is not None and value != idle.get(name)}
    tokens = {"banned": banned, "late": late}
    return found | {name: [lm.tokenizer.token(one) for one in ids] for name, ids in tokens.items() if ids}


def constrained(
    lm: "LM", regex: str | None, schema: str | None, choices: Sequence[str] | None, grammar: Path | None
) -> dict[str, Any]:
    """The constraint that was asked for, none or one. Errors: ``ValueError`` for more, or a file that is not there."""
    asked = {"--regex": regex, "--json-schema": schema, "--choice": choices, "--grammar": grammar}
    asked = {name: value for name, value in asked.items() if value not in (None, [])}
    if not asked:
        return {}
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} are constraints each: pass one")
    from redraft import constraints

    if regex is not None:
        return {"constraint": constraints.regex(regex, lm.tokenizer)}
    if schema is not None:
        return {"constraint": constraints.json_schema(Path(schema).read_text("utf-8"), lm.tokenizer)}
    if choices:
        return {"constraint": constraints.choices(choices, lm.tokenizer)}
    assert grammar is not None
    return {"constraint": constraints.grammar(grammar.read_text("utf-8"), lm.tokenizer)}


def passages(spans: Sequence[str] | None) -> list[tuple[int, int]] | None:
    """``4:9`` as (4, 9). Errors: ``ValueError`` for anything else."""
    found = list[tuple[int, int]]()
    for span in spans or ():
        start, _, stop = span.partition(":")
        if not (start.isdecimal() and stop.isdecimal()):
            raise ValueError(f"--span {span!r}: pass the characters to redraft as START:STOP, such as 4:9")
        found.append((int(start), int(stop)))
    return found or None


def loaded(
    model: str,
    device: str | None,
    tokenizer: str | None = None,
    family: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    quantize: str | None = None,
) -> "LM":
    """The model of a folder or a name. Errors: ``ValueError`` for a device that is not to be had."""
    from redraft.models.placement import to_be_had
    from redraft.runs import load

    to_be_had(device)
    how: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "quantize": quantize}
    return load(model, device, tokenizer=tokenizer, family=family, **how)
