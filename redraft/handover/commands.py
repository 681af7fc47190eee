"""The commands that hand a model over: export and serve."""

from pathlib import Path
from typing import Annotated

import typer

from redraft.flags import Device, Family, Json, Model, Words, loaded
from redraft.printing import print_json, print_rows

To = Annotated[str, typer.Option(help="hf (its family's layout), merged (LLaDA2) or gguf.")]
Converter = Annotated[Path | None, typer.Option(help="gguf: llama.cpp's convert_hf_to_gguf.py, if not on PATH.")]
Files = Annotated[Path | None, typer.Option("--out", help="Folder of the engine's files; else runs/serve/ENGINE.")]
Code = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the engine run code that the model's repository holds.")
]


def export(
    model: Model,
    to: To,
    out: Annotated[Path, typer.Option(help="A new folder.")],
    converter: Converter = None,
    precision: Annotated[str, typer.Option(help="gguf: auto, f32, f16, bf16 or q8_0.")] = "auto",
    device: Device = None,
    tokenizer: Words = None,
    family: Family = None,
    as_json: Json = False,
) -> None:
    """Store a model in the layout of another tool."""
    lm = loaded(model, device, tokenizer, family)
    from redraft.handover.export import export

    made = export(lm, to, out, converter=converter, precision=precision)
    if as_json:
        print_json({"out": str(made.out), "files": list(made.files), "notes": list(made.notes)})
    else:
        print_rows([("saved in", str(made.out)), *(("", name) for name in made.files)])
        _remark(made.notes)


def serve(
    model: Model,
    engine: Annotated[str, typer.Option(help="sglang (LLaDA2, SDAR) or vllm (DiffusionGemma).")],
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="The engine's own unless given.")] = None,
    tensor_parallel: Annotated[int, typer.Option(help="GPUs to lay each layer over.")] = 1,
    requests: Annotated[int, typer.Option(help="Texts written at a time.")] = 4,
    preset: Annotated[str | None, typer.Option(help="sglang: how to write; the family's way unless given.")] = None,
    trust_remote_code: Code = False,
    out: Files = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and write, but start nothing.")] = False,
) -> None:
    """Serve a model by an engine made for it, which this command becomes."""
    import shlex

    from redraft.handover import serving

    asked = serving.Serving(host, port, tensor_parallel, requests, trust_remote_code, preset)
    folder = Path("runs", "serve", engine) if out is None else out
    found = serving.plan(model, engine, folder, asked)
    command = serving.prepare(found, folder)
    _remark(found.notes)
    print_rows([("written in", str(folder)), ("command", shlex.join(command))])
    if not dry_run:
        serving.start(found, command)


def _remark(notes: tuple[str, ...]) -> None:
    for note in notes:
        typer.echo(f"note: {note}", err=True)


COMMANDS = (export, serve)
