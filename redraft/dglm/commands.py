"""The command line's ``dglm`` group: train and generate. Nothing heavy is imported before a command needs it."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from redraft.options import FIELDS, TrainCommand
from redraft.printing import print_json, print_rows

app = typer.Typer(help="DGLM: propose a sentence vector by diffusion, verbalise it by an autoregressive decoder.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; cpu unless given.")]


class DGLMTrain(TrainCommand):
    """Takes every dotted field of a DGLM's recipe as an option, besides its own."""

    listed = "dglm"

    def known(self) -> list[str]:
        from redraft.dglm.config import DGLMConfig
        from redraft.recipes import field_names

        return field_names(DGLMConfig)


@app.command(cls=DGLMTrain, options_metavar="[OPTIONS] [--FIELD VALUE ...]")
def train(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="dglm_toy or dglm_paper.")],
    data: Annotated[str, typer.Option(help="File, folder, corpus or Hub data set; .jsonl may hold pairs.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the model; runs/RECIPE unless given.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train a DGLM by a recipe. Any field of it is an option: --proposer.width 512."""
    from redraft.dglm.model import DGLM

    values: dict[str, Any] = dict(ctx.meta[FIELDS])
    folder = Path("runs", recipe) if out is None else out
    made = DGLM.train(recipe, data, folder, values, device)
    if as_json:
        print_json({"out": str(folder), "labels": made.labels})
    else:
        print_rows([("saved in", str(folder))])


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="The folder of a trained DGLM.")],
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = "",
    num: Annotated[int, typer.Option(help="Texts to draw.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the recipe's unless given.")] = None,
    weight: Annotated[float, typer.Option(help="Guidance by the prompt: 1 is none, 0 forgets it.")] = 1.0,
    attribute: Annotated[str | None, typer.Option(help="A label of the training data to guide towards.")] = None,
    strength: Annotated[float, typer.Option(help="How strongly; 1 is p(x | label), 0 none.")] = 1.0,
    length: Annotated[int | None, typer.Option(help="Tokens to write at most.")] = None,
    sampler: Annotated[str | None, typer.Option(help="One for vectors: ancestral, ddim, heun, ...")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the decoder: 0 takes the likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of the decoder: the share of the mass to draw from.")] = None,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write text, from nothing or after a prompt."""
    from redraft.dglm.model import DGLM
    from redraft.trace import visible

    written = DGLM.load(model, device).generate(
        prompt,
        num,
        steps=steps,
        weight=weight,
        attribute=attribute,
        strength=strength,
        length=length,
        sampler=sampler,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    if as_json:
        print_json(written.to_dict())
        return
    for number, (text, own) in enumerate(zip(written.texts, written.seeds, strict=True), 1):
        if num > 1:
            typer.echo(f"-- {number} of {num}, seed {own}", err=True)
        typer.echo(visible(text, keep="\n\t") if sys.stdout.isatty() else text)
    typer.echo(f"{written.nfe} denoiser calls", err=True)
