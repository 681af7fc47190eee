"""What a task asks for, and what its user sets: harness names and redraft's as one set of options, checked by name.

A layer is a mapping of options: what the model was loaded with, a task's own ``generation_kwargs``, a file's settings
of that task. Each is brought to redraft's names first, then the later goes before the earlier.
"""

import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from redraft.errors import unknown

SCORING = ("estimator", "draws", "weight")
"""How answers are scored (``plans.How``)."""
WRITING = (
    "length", "steps", "sampler", "preset", "temperature", "top_p", "top_k", "repetition", "banned", "bias", "late",
    "stop", "min_length", "block", "whole_blocks", "cache", "refresh",
)  # fmt: skip
"""How texts are written (``lm.generate``); tokens in ``banned``, ``bias`` and ``late`` by their text, or ids."""
OTHER_NAMES = {"max_gen_toks": "length", "max_new_tokens": "length", "repetition_penalty": "repetition"}
HARNESS = ("until", "do_sample", *OTHER_NAMES)
IDLE: dict[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "length_penalty": 1.0, "no_repeat_ngram_size": 0}
"""What only other models' writing has, with the value that asks for nothing."""
MEANINGLESS = ("use_cache", "pad_token_id", "early_stopping", "return_dict_in_generate")
"""Names that mean nothing here, whatever they say."""
MOST_BYTES = 1_000_000


def writing(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's options of writing by redraft's names, ``until`` among them.

    ``do_sample`` false is temperature 0, and true is temperature 1 where none is given. What only other models have is
    left out with a warning where it asks for nothing. Errors: ``ValueError`` for it where it does ask, and for an
    unknown name, with the nearest.
    """
    found, dropped = dict[str, Any](), list[str]()
    for name, value in layer.items():
        if name in MEANINGLESS or (name in IDLE and value in (IDLE[name], None)):
            dropped.append(name)
        elif name in IDLE:
            raise ValueError(f"{name}={value!r}: redraft writes without it; leave it out, or pass {IDLE[name]}")
        elif name in OTHER_NAMES:
            found.setdefault(OTHER_NAMES[name], value)
        elif name in WRITING or name in HARNESS:
            found[name] = value
        else:
            raise unknown("generation setting", name, (*WRITING, *HARNESS))
    if dropped:
        warnings.warn(f"{', '.join(sorted(dropped))}: ignored, redraft's writing has none of it", stacklevel=2)
    sampled = found.pop("do_sample", None)
    if sampled is False:
        found["temperature"] = 0.0
    elif sampled is True:
        found.setdefault("temperature", 1.0)
    if "until" in found:
        until = found["until"]
        found["until"] = [one for one in ([until] if isinstance(until, str) else until or []) if one]
    return found


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Layers as one, each by its own names; what is None says nothing."""
    found = dict[str, Any]()
    for layer in layers:
        found |= {name: value for name, value in writing(layer).items() if value is not None}
    return found


class Settings:
    """What is set of tasks, by their names or patterns of them (``mmlu_*``, ``*``), the first that fits in full.

    A task's own name goes before patterns. Made of a mapping, or of a YAML or JSON file of one.

    Errors: ``ValueError`` for a file that holds no such mapping, and for unknown settings, with the nearest.
    """

    def __init__(self, told: str | Path | Mapping[str, Any] | None = None) -> None:
        where = str(told) if isinstance(told, str | Path) else "settings"
        found: Any = _read(Path(told)) if isinstance(told, str | Path) else dict(told or {})
        if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
            raise ValueError(f"{where}: pass settings by task, such as {{gsm8k: {{length: 256, block: 32}}}}")
        self.tasks: dict[str, dict[str, Any]] = {str(name): dict(one) for name, one in found.items()}
        for name, one in self.tasks.items():
            for key in one:
                if key not in (*SCORING, *WRITING, *HARNESS, *IDLE, *MEANINGLESS):
                    raise unknown(f"setting of task {name!r}", key, (*SCORING, *WRITING, *HARNESS))

    def of(self, task: str | None) -> dict[str, Any]:
        """All that is set of a task, nothing where nothing is."""
        named = [name for name in self.tasks if name == task]
        named += [name for name in self.tasks if fnmatchcase(task or "", name)]
        return self.tasks[named[0]] if named else {}

    def scoring(self, task: str | None) -> dict[str, Any]:
        return {name: value for name, value in self.of(task).items() if name in SCORING}

    def writing(self, task: str | None) -> dict[str, Any]:
        return {name: value for name, value in self.of(task).items() if name not in SCORING}

    def check(self, tasks: Sequence[str], groups: Sequence[str]) -> None:
        """Errors: ``ValueError`` for a name or pattern that none of the ``tasks`` there are has, as of ``groups``."""
        for name in self.tasks:
            if any(name == task or fnmatchcase(task, name) for task in tasks):
                continue
            if name in groups:
                raise ValueError(f"{name!r} in the settings is a group or tag: name its tasks, or a pattern of them")
            near = get_close_matches(name, tasks, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"none of the {len(tasks)} there are has that name"
            raise ValueError(f"unknown task {name!r} in the settings; {hint}")


def _read(path: Path) -> Any:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}: more than {MOST_BYTES} bytes; settings are short")
    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: neither YAML nor JSON, {str(error).splitlines()[0]}") from None
