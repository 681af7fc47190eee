"""A recipe's fields as options of the command line: ``--train.lr 3e-4``."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from typer.core import TyperCommand

FIELDS, ARGUMENTS = "redraft.fields", "redraft.arguments"
"""Where a context keeps the fields that were set, and the arguments as they were typed."""


class TrainCommand(TyperCommand):
    """Takes every dotted field of a recipe as an option, besides its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = [name for parameter in self.get_params(ctx) for name in parameter.opts if name.startswith("-")]
        ctx.meta[ARGUMENTS] = list(args)
        if not ctx.resilient_parsing:  # which is a shell asking for completions
            flags = [name for one in self.get_params(ctx) if getattr(one, "is_flag", False) for name in one.opts]
            tuning = ctx.info_name == "train" and argument(args, flags) == "sft"
            fields = (finetune_fields, "sft") if tuning else (self.known, self.listed)
            args, ctx.meta[FIELDS] = split_fields(args, own, *fields)
        return super().parse_args(ctx, args)

    listed = "fields"
    """What ``redraft list`` calls the fields."""

    def known(self) -> list[str]:
        """The dotted names of the fields."""
        return recipe_fields()


def recipe_fields() -> list[str]:
    """The dotted names of all fields of a ``recipes.Config``."""
    from redraft.recipes import Config, field_names

    return field_names(Config)


def finetune_fields() -> list[str]:
    """The dotted names of all fields of a ``recipes.finetune.Finetune``."""
    from redraft.recipes import field_names
    from redraft.recipes.finetune import Finetune

    return field_names(Finetune)


def argument(args: Sequence[str], flags: Sequence[str]) -> str | None:
    """The first of ``args`` that is no option, nor the value of one; ``flags`` are options without a value."""
    remaining = iter(args)
    for arg in remaining:
        if not arg.startswith("--"):
            return arg
        if "=" not in arg and arg not in flags:
            next(remaining, None)
    return None


def split_fields(
    args: Sequence[str], own: Sequence[str], known: Callable[[], list[str]] = recipe_fields, listed: str = "fields"
) -> tuple[list[str], dict[str, str]]:
    """Take ``--train.lr 3e-4`` and ``--train.lr=3e-4`` out of ``args``: the rest, and {"train.lr": "3e-4"}.

    Errors: ``ValueError`` for an option that is neither a field nor in ``own``, naming the nearest.
    """
    rest: list[str] = []
    values: dict[str, str] = {}
    remaining = iter(args)
    for arg in remaining:
        option, given, value = arg.partition("=")
        if arg == "--":
            return [*rest, arg, *remaining], values
        if not arg.startswith("--") or option in own:
            rest.append(arg)
            continue
        name = _field(option, own, known(), listed)
        value = value if given else next(remaining, None)
        if value is None:
            raise ValueError(f"{option} needs a value: {option} VALUE")
        values[name] = value
    return rest, values


def _field(option: str, own: Sequence[str], known: Sequence[str], listed: str) -> str:
    fields = [name for name in known if name != "recipe"]
    name = option.removeprefix("--")
    if name in fields:
        return name
    options = [*own, *(f"--{field}" for field in fields)]
    near = [one for one in options if one.endswith(f".{name}")] or get_close_matches(option, options, n=1, cutoff=0.5)
    hint = f" did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown option {option!r};{hint} 'redraft list {listed}' shows every field of a recipe")
