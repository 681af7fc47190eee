"""What ``redraft list`` shows: the names of each kind with the first line of their documentation."""

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

Entry = dict[str, Any]


def _described(named: Iterable[tuple[str, Any]]) -> list[Entry]:
    return [{"name": name, "description": first_line(inspect.getdoc(thing) or "")} for name, thing in named]


def first_line(documentation: str) -> str:
    """The first line of a docstring, without its mark-up."""
    return documentation.strip().partition("\n")[0].replace("``", "")


def _recipes() -> list[Entry]:
    from redraft.recipes import RECIPES

    return _described(RECIPES.items())


def _processes() -> list[Entry]:
    from redraft import processes

    return _described((name, getattr(processes, name)) for name in processes.NAMES)


def _schedules() -> list[Entry]:
    from redraft.schedules import alpha

    # a schedule's formula is documented where it is computed, under its own name
    return _described((name, vars(alpha)[f"_{name}"]) for name in alpha.NAMES)


def _gammas() -> list[Entry]:
    from redraft.schedules import GAMMAS

    return _described(GAMMAS.items())


def _objectives() -> list[Entry]:
    from redraft.objectives import OBJECTIVES

    described = _described((name, spec.function) for name, spec in OBJECTIVES.items())
    return [{**entry, "is_bound": OBJECTIVES[entry["name"]].is_bound} for entry in described]


def _samplers() -> list[Entry]:
    from redraft.sampling import SAMPLERS

    # papers have several names for one kernel, which is documented under its own
    return [
        entry if function.__name__ == name else {**entry, "description": f"The same as {function.__name__}."}
        for (name, function), entry in zip(SAMPLERS.items(), _described(SAMPLERS.items()), strict=True)
    ]


def _presets() -> list[Entry]:
    from redraft.presets import PRESETS

    def said(options: Mapping[str, Any]) -> str:
        return ", ".join(f"{name}={value}" for name, value in options.items())

    return [{"name": name, "options": said(one.options), "description": one.source} for name, one in PRESETS.items()]


def _revisions() -> list[Entry]:
    from redraft.sampling.samplers import REVISIONS

    return _described(REVISIONS.items())


def _families() -> list[Entry]:
    from redraft.models.released import FAMILIES

    return _described((name, family.reads) for name, family in FAMILIES.items())


def _corpora() -> list[Entry]:
    from redraft.data import CORPORA

    return _described(CORPORA.items())


def _studies() -> list[Entry]:
    from redraft import studies

    return [{"name": name, "description": studies.get(name).question} for name in studies.STUDIES]


TOKENIZERS = {
    "bpe": "Byte pairs, learnt from the training text; data.vocab ids.",
    "bytes": "UTF-8 bytes: 256 ids, for any text.",
    "chars": "The characters of the corpus, for small alphabets.",
    "toy": "The 13 units of the toy language.",
    "FOLDER or OWNER/NAME": "A Hugging Face tokenizer.",
}


def _tokenizers() -> list[Entry]:
    return [{"name": name, "description": description} for name, description in TOKENIZERS.items()]


def _fields() -> list[Entry]:
    from redraft.recipes import Config

    return [entry for entry in _leaves(Config, "") if entry["name"] != "recipe"]


def _dglm() -> list[Entry]:
    from redraft.dglm.config import DGLMConfig

    return [entry for entry in _leaves(DGLMConfig, "") if entry["name"] != "recipe"]


def _sft() -> list[Entry]:
    from redraft.recipes.finetune import Finetune

    return [entry for entry in _leaves(Finetune, "", Finetune()) if entry["name"] != "recipe"]


def _leaves(cls: Any, prefix: str, usual: Any = None) -> list[Entry]:
    """The leaf fields below a configuration class: dotted name, default, the choice if it is one, documentation.

    Defaults are those of ``usual``, an object of the class, or of the class itself.
    """
    notes, usual = _attribute_docs(cls), cls() if usual is None else usual
    leaves: list[Entry] = []
    for field in fields(cls):
        if is_dataclass(field.type):
            leaves += _leaves(field.type, f"{prefix}{field.name}.", getattr(usual, field.name))
            continue
        choice = " | ".join(get_args(field.type)) + ". " if get_origin(field.type) is Literal else ""
        description = choice + first_line(notes.get(field.name, ""))
        leaves.append(
            {"name": prefix + field.name, "default": getattr(usual, field.name), "description": description.strip()}
        )
    return leaves


def _attribute_docs(cls: Any) -> dict[str, str]:
    """The strings written under the fields of a class, which Python itself does not keep."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    notes: dict[str, str] = {}
    for field, note in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(note, ast.Expr) and isinstance(note.value, ast.Constant):
            notes[ast.unparse(field.target)] = str(note.value.value)
    return notes


KINDS: dict[str, Callable[[], list[Entry]]] = {
    "recipes": _recipes,
    "processes": _processes,
    "schedules": _schedules,
    "gammas": _gammas,
    "objectives": _objectives,
    "samplers": _samplers,
    "presets": _presets,
    "revisions": _revisions,
    "families": _families,
    "corpora": _corpora,
    "tokenizers": _tokenizers,
    "studies": _studies,
    "fields": _fields,
    "sft": _sft,
    "dglm": _dglm,
}
