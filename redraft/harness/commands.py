"""The command that runs lm-evaluation-harness: lm-eval."""

from pathlib import Path
from typing import Annotated, Any

import typer

from redraft.flags import (
    Block,
    Device,
    DeviceMap,
    Family,
    Json,
    Model,
    Precision,
    PresetName,
    Quantize,
    Record,
    SamplerName,
    Seed,
    Steps,
    Words,
)
from redraft.harness import library
from redraft.printing import print_record, print_rows

Tasks = Annotated[str, typer.Option(help="Names of the harness's tasks, divided by commas.")]
Include = Annotated[Path | None, typer.Option(help="A folder of task files; only these are known then, at once.")]
Shots = Annotated[int | None, typer.Option(help="Examples before each question; as the task says unless given.")]
Settings = Annotated[Path | None, typer.Option(help="YAML or JSON by task: {gsm8k: {length: 256, block: 32}}.")]
Cache = Annotated[Path | None, typer.Option(help="Keep results in this file, and take from it what was asked before.")]
Peft = Annotated[Path | None, typer.Option(help="A folder of LoRA adapters to put into the model.")]
Estimator = Annotated[str | None, typer.Option(help="bound, any_order_exact, chain_rule, one_step; see the docs.")]
Batch = Annotated[str, typer.Option(help="Texts in a forward, or auto; results do not depend on it.")]
Unsafe = Annotated[bool, typer.Option("--run-unsafe-code", help="Allow tasks that run the code a model writes.")]
Weight = Annotated[float, typer.Option(help="Of guidance by the prompt, 1 + LLaDA's cfg: 1 is the model itself.")]


def lm_eval(
    model: Model,
    tasks: Tasks,
    include_path: Include = None,
    num_fewshot: Shots = None,
    limit: Annotated[int | None, typer.Option(help="Ask only so many questions of each task.")] = None,
    settings: Settings = None,
    batch_size: Batch = "auto",
    estimator: Estimator = None,
    draws: Annotated[int, typer.Option(help="Sets of hidden tokens for each answer.")] = 128,
    weight: Weight = 1.0,
    length: Annotated[int | None, typer.Option(help="Tokens to write, where a task does not say.")] = None,
    steps: Steps = None,
    block: Block = None,
    sampler: SamplerName = None,
    preset: PresetName = None,
    gen_kwargs: Annotated[str | None, typer.Option(help="Over tasks' own settings: temperature=0.2,length=64.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask in the model's chat template.")] = False,
    template: Annotated[str | None, typer.Option(help="With --chat: Jinja, or plain; the model's own.")] = None,
    system: Annotated[str | None, typer.Option(help="With --chat: a system message.")] = None,
    run_unsafe_code: Unsafe = False,
    peft: Peft = None,
    cache_file: Cache = None,
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
    """Run tasks of lm-evaluation-harness; needs the extra: harness."""
    library()
    from redraft.harness.backend import Harness
    from redraft.harness.tasks import Asked, figures, run
    from redraft.models.placement import to_be_had

    if not chat and (template is not None or system is not None):
        raise ValueError("--template and --system are of a conversation: pass --chat too")
    to_be_had(device)
    writing: dict[str, Any] = {"length": length, "steps": steps, "block": block, "sampler": sampler, "preset": preset}
    loading: dict[str, Any] = {"device": device, "dtype": dtype, "device_map": device_map, "quantize": quantize}
    scoring: dict[str, Any] = {"estimator": estimator, "draws": draws, "weight": weight, "seed": seed}
    backend = Harness(
        model,
        **{**loading, **scoring, "tokenizer": tokenizer, "family": family},
        peft=None if peft is None else str(peft),
        batch_size=batch_size,
        settings=settings,
        cache_path=None if cache_file is None else str(cache_file),
        template=template,
        **{name: value for name, value in writing.items() if value is not None},
    )
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    asked = Asked(names, include_path, num_fewshot, limit, chat, system, gen_kwargs, run_unsafe_code)
    result: dict[str, Any] = {"model": model, **run(backend, asked)}
    if not print_record("harness", result, [seed], out, as_json):
        print_rows(figures(result))


COMMANDS = (lm_eval,)
