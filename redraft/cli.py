"""The command line; `redraft --help` lists its commands.

Options have the names of the Python API. What a command measured or wrote goes to standard output, all else to standard
error. A mistake of the user's is one line and exit code 2, an interrupt one line and 130; a traceback is a fault of
ours. Nothing heavy is imported before a command needs it.
"""

import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from redraft import __version__, chatting, measuring
from redraft.dglm.commands import app as dglm
from redraft.drafting import COMMANDS
from redraft.errors import unknown
from redraft.flags import Corpus, Json, Model, Resume
from redraft.handover import commands as handover
from redraft.harness import commands as harness
from redraft.options import ARGUMENTS, FIELDS, TrainCommand
from redraft.printing import likelihood_rows, print_json, print_rows, print_table
from redraft.safety import commands as safety

if TYPE_CHECKING:
    from redraft.runs import Run

INTERRUPTED, MISTAKE = 130, 2
# click's UsageError, which typer carries inside or imports, by its version
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class Commands(TyperGroup):
    """The commands, with the one place where errors become exit codes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            return _fail("stopped", INTERRUPTED)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        try:
            code = super().main(*args, standalone_mode=False, **extra)
        except _UsageError as error:
            code = _fail(f"error: {error.format_message()}", MISTAKE)  # pyright: ignore[reportAttributeAccessIssue]
        except BrokenPipeError:  # a reader such as `head` that has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except OSError as error:
            where = "" if error.filename is None else f"{error.filename}: "
            code = _fail(f"error: {where}{error.strerror or error}", MISTAKE)
        except ValueError as error:
            code = _fail(f"error: {error}", MISTAKE)
        if not standalone_mode:
            return code
        sys.exit(code)


def _recipes(incomplete: str) -> list[str]:
    from redraft.recipes import RECIPES

    return [name for name in (*RECIPES, "sft") if name.startswith(incomplete)]


def _kinds(incomplete: str) -> list[str]:
    from redraft.listing import KINDS

    return [name for name in KINDS if name.startswith(incomplete)]


app = typer.Typer(cls=Commands, pretty_exceptions_enable=False, help="Diffusion language models.")
app.add_typer(dglm, name="dglm")


@app.callback(invoke_without_command=True)
def _root(ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False):  # pyright: ignore[reportUnusedFunction]
    if version:
        typer.echo(f"redraft {__version__}")
        raise typer.Exit()
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command(cls=TrainCommand, options_metavar="[OPTIONS] [--FIELD VALUE ...]")
def train(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="See: redraft list recipes; or sft.", autocompletion=_recipes)],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/RECIPE unless given.")] = None,
    data: Corpus = None,
    resume: Resume = False,
    seed: Annotated[int | None, typer.Option(help="Field train.seed.")] = None,
    as_json: Json = False,
) -> int:
    """Train a model by a recipe. Any field of it is an option: --train.lr 3e-4 (see: redraft list fields).

    sft fine-tunes one: redraft train sft --model MODEL --data CHAT.jsonl (see: redraft list sft).
    """
    values = _fields(ctx, "seed", seed)
    if recipe == "sft":
        from redraft.finetuning import finetune

        return _ended(ctx, finetune(data=data, out=out, resume=resume, overrides=values), as_json)
    from redraft.runs import train

    run = train(recipe, data=data, out=out, resume=resume, overrides=values)
    return _ended(ctx, run, as_json)


@app.command(cls=TrainCommand, options_metavar="[OPTIONS] [--FIELD VALUE ...]")
def distil(
    ctx: typer.Context,
    model: Model,
    rounds: Annotated[int, typer.Option(help="Each round's model teaches the next, over twice the jump in time.")] = 5,
    steps: Annotated[int | None, typer.Option(help="Steps of a round; field train.steps.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the rounds; runs/RECIPE-distilled unless given.")] = None,
    data: Corpus = None,
    resume: Resume = False,
    as_json: Json = False,
) -> int:
    """Distil a trained uniform model into one that needs fewer steps, by its own recipe; fields as in train."""
    from redraft.distillation import distil

    values = _fields(ctx, "steps", steps)
    run = distil(model, rounds, data=data, out=out, resume=resume, overrides=values)
    return _ended(ctx, run, as_json)


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="A causal language model: a folder, or a Hugging Face id.")],
    to: Annotated[str, typer.Option(help="masked, block or uniform: the noise, and what is read of it.")],
    out: Annotated[Path, typer.Option(help="Folder to store the denoiser in.")],
    block: Annotated[int | None, typer.Option(help="With --to block: positions of a block.")] = None,
    shift: Annotated[bool, typer.Option("--shift", help="Logits stay those of the next token.")] = False,
    mask_token: Annotated[str | None, typer.Option(help="A token to be the mask; one is added unless given.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, ..; as config.json says unless given.")] = None,
    as_json: Json = False,
) -> None:
    """Make a denoiser of a causal language model; train it on with --model.init."""
    from redraft.conversion import convert

    lm = convert(model, to=to, block=block, shift=shift, mask_token=mask_token, out=out, dtype=dtype)
    found = {"out": str(out), "process": lm.process.to_dict(), "attention": lm.denoiser.facts.attention}
    if as_json:
        print_json(found)
    else:
        print_rows([("noise", lm.process.name), ("attention", str(found["attention"])), ("saved in", str(out))])


for _command in (
    *COMMANDS,
    *measuring.COMMANDS,
    *chatting.COMMANDS,
    *handover.COMMANDS,
    *safety.COMMANDS,
    *harness.COMMANDS,
):
    app.command()(_command)


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="recipes, fields, processes, schedules, ...", autocompletion=_kinds)],
    as_json: Json = False,
) -> None:
    """Show what there is of a kind, such as recipes, samplers, or the fields of a recipe."""
    from redraft import listing

    if kind not in listing.KINDS:
        raise unknown("kind", kind, listing.KINDS)
    entries = listing.KINDS[kind]()
    if as_json:
        print_json({kind: entries})
    else:
        print_table(entries)


def _fields(ctx: typer.Context, option: str, value: int | None) -> dict[str, Any]:
    """The fields that were set, ``--option`` being short for train.option."""
    values: dict[str, Any] = dict(ctx.meta[FIELDS])
    if value is not None and values.setdefault(f"train.{option}", value) != value:
        given = values[f"train.{option}"]
        raise ValueError(f"--{option} {value} and --train.{option} {given} are the same field: pass one")
    return values


def _ended(ctx: typer.Context, run: "Run", as_json: bool) -> int:
    """Say how a training ended; the exit code."""
    if os.environ.get("RANK", "0") == "0":
        measured = None if run.likelihood is None else run.likelihood.to_dict()
        if as_json:
            print_json({"out": str(run.out), "steps": run.step, "stopped": run.stopped, "likelihood": measured})
        elif not run.stopped:
            print_rows([*likelihood_rows(measured or {}), ("saved in", str(run.out))])
        if run.stopped:
            again = shlex.join([*(arg for arg in ctx.meta[ARGUMENTS] if arg != "--resume"), "--resume"])
            typer.echo(f"stopped at step {run.step}; continue with: redraft {ctx.info_name} {again}", err=True)
    return INTERRUPTED if run.stopped else 0


def _fail(message: str, code: int) -> int:
    typer.echo(" ".join(message.split("\n")), err=True)
    return code


def _format_warning(message: Warning | str, *_where: object, **_line: object) -> str:
    return f"warning: {message}\n"


def main() -> None:
    """The ``redraft`` command."""
    warnings.formatwarning = _format_warning
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    app()


if __name__ == "__main__":
    main()
