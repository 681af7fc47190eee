"""The commands that write: generate, infill, edit, and replay, which shows again how a text was written."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from redraft.flags import (
    Banned,
    Block,
    CacheName,
    Choices,
    Device,
    DeviceMap,
    Family,
    Given,
    Grammar,
    Json,
    Late,
    MinLength,
    Model,
    Num,
    Precision,
    PresetName,
    Quantize,
    Refresh,
    Regex,
    Repetition,
    Resample,
    SamplerName,
    Schema,
    Seed,
    Select,
    Show,
    Steps,
    Stop,
    Svg,
    Temperature,
    TopK,
    TopP,
    Trace,
    Words,
    constrained,
    loaded,
    passages,
    shaped,
)
from redraft.printing import replayed, write


def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = "",
    length: Annotated[
        int | None, typer.Option(help="Tokens to write; as usual for the model, or to the end of its context.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Write on past the context, by a window that moves so far.")
    ] = None,
    grow: Annotated[bool, typer.Option("--grow", help="Write as much as the model wants, --length at most.")] = False,
    preset: PresetName = None,
    steps: Steps = None,
    num: Num = 1,
    sampler: SamplerName = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = 0,
    repetition: Repetition = 1.0,
    ban: Banned = None,
    late: Late = None,
    stop: Stop = False,
    min_length: MinLength = 0,
    block: Block = None,
    cache: CacheName = None,
    refresh: Refresh = None,
    regex: Regex = None,
    json_schema: Schema = None,
    choice: Choices = None,
    grammar: Grammar = None,
    given: Given = None,
    resample: Resample = 0,
    select: Select = None,
    seed: Seed = 0,
    device: Device = None,
    tokenizer: Words = None,
    family: Family = None,
    dtype: Precision = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    show: Show = False,
    trace: Trace = None,
    svg: Svg = None,
    as_json: Json = False,
) -> None:
    """Write text, from nothing or after a prompt."""
    lm = loaded(model, device, tokenizer, family, dtype, device_map, quantize)
    common = {"num": num, "steps": steps, "sampler": sampler, "temperature": temperature, "top_p": top_p, "seed": seed}
    common |= {"given": given, "resample": resample}
    shape = {"top_k": top_k, "repetition": repetition, "stop": stop, "min_length": min_length}
    common |= shaped(lm, ban, late, **shape, block=block, cache=cache, refresh=refresh)
    common |= constrained(lm, regex, json_schema, choice, grammar)
    draw = partial(lm.generate, prompt, length=length, stride=stride, grow=grow, preset=preset, **common)
    write(lm, draw, select, show, trace, svg, as_json)


def infill(
    model: Model,
    text: Annotated[
        str, typer.Argument(help="[MASK] is one token to fill, [MASK:3] three, [MASK:2-6] what fits best.")
    ],
    steps: Steps = None,
    num: Num = 1,
    sampler: SamplerName = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = 0,
    repetition: Repetition = 1.0,
    ban: Banned = None,
    late: Late = None,
    stop: Stop = False,
    min_length: MinLength = 0,
    block: Block = None,
    cache: CacheName = None,
    refresh: Refresh = None,
    regex: Regex = None,
    json_schema: Schema = None,
    choice: Choices = None,
    grammar: Grammar = None,
    given: Given = None,
    resample: Resample = 0,
    select: Select = None,
    seed: Seed = 0,
    device: Device = None,
    tokenizer: Words = None,
    family: Family = None,
    dtype: Precision = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    show: Show = False,
    trace: Trace = None,
    svg: Svg = None,
    as_json: Json = False,
) -> None:
    """Fill the gaps of a text, "The [MASK:3] of France"; a backslash before [MASK] makes it text."""
    lm = loaded(model, device, tokenizer, family, dtype, device_map, quantize)
    common = {"num": num, "steps": steps, "sampler": sampler, "temperature": temperature, "top_p": top_p, "seed": seed}
    common |= {"given": given, "resample": resample}
    shape = {"top_k": top_k, "repetition": repetition, "stop": stop, "min_length": min_length}
    common |= shaped(lm, ban, late, **shape, block=block, cache=cache, refresh=refresh)
    common |= constrained(lm, regex, json_schema, choice, grammar)
    write(lm, partial(lm.infill, text, **common), select, show, trace, svg, as_json)


def edit(
    model: Model,
    text: Annotated[str, typer.Argument(help="The text to redraft; a [MASK] in it is text.")],
    strength: Annotated[
        float | None, typer.Option(help="The t it is noised to, 0.5 unless given: 0 changes nothing, 1 keeps nothing.")
    ] = None,
    span: Annotated[list[str] | None, typer.Option(help="Redraft characters 4:9 only; may be given again.")] = None,
    doubt: Annotated[float | None, typer.Option(help="Redraft this share, what the model doubts most.")] = None,
    below: Annotated[float | None, typer.Option(help="Redraft what the model gives less than this.")] = None,
    steps: Steps = None,
    num: Num = 1,
    sampler: SamplerName = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = 0,
    repetition: Repetition = 1.0,
    ban: Banned = None,
    select: Select = None,
    seed: Seed = 0,
    device: Device = None,
    tokenizer: Words = None,
    family: Family = None,
    dtype: Precision = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    show: Show = False,
    trace: Trace = None,
    svg: Svg = None,
    as_json: Json = False,
) -> None:
    """Redraft a text: noise it to t = strength, and denoise it from there."""
    lm = loaded(model, device, tokenizer, family, dtype, device_map, quantize)
    common = {"num": num, "steps": steps, "sampler": sampler, "temperature": temperature, "top_p": top_p, "seed": seed}
    common |= shaped(lm, ban, top_k=top_k, repetition=repetition)
    where = {"span": passages(span), "doubt": doubt, "below": below}
    write(lm, partial(lm.edit, text, strength=strength, **where, **common), select, show, trace, svg, as_json, text)


def replay(
    file: Annotated[Path, typer.Argument(help="What --trace FILE.json saved.")],
    speed: Annotated[float, typer.Option(help="Steps a second; 0 waits for the Enter key.")] = 4.0,
    row: Annotated[int, typer.Option(help="Which text, from 1.")] = 1,
    html: Annotated[Path | None, typer.Option(help="Save it as a page to look at instead.")] = None,
    png: Annotated[Path | None, typer.Option(help="Save the text as a heat map instead.")] = None,
) -> None:
    """Show how a text was written again, step by step, without its model."""
    replayed(file, row - 1, speed, html, png)


COMMANDS = (generate, infill, edit, replay)
