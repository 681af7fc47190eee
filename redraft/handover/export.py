"""A model in a folder for other tools: in its family's own layout, a training tool's, or GGUF.

Nothing is converted that a tool converts itself: for llama.cpp its own converter is started, with a list of arguments.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redraft.data import Tokenizer
from redraft.errors import unknown
from redraft.files import read_object, write, write_text
from redraft.lm import LM
from redraft.models import Transformer, released
from redraft.models import folder as folders
from redraft.models.families import FAMILIES
from redraft.models.families.base import architectures

FORMATS = {
    "hf": "The layout of the family's releases, files as they came; of our own models, what transformers reads.",
    "merged": "LLaDA2 with the experts of a layer stacked in one tensor, as dFactory trains it.",
    "gguf": "One file for llama.cpp, by its own converter, and the folder it is made of.",
}
CONVERTER, GGUF = "convert_hf_to_gguf.py", "model.gguf"
CONVERTED = ("LLaDAModelLM", "LLaDAMoEModel", "LLaDAMoEModelLM", "DreamModel")
"""The architectures of diffusion language models that llama.cpp's converter knows."""
PRECISIONS = ("auto", "f32", "f16", "bf16", "q8_0")
_STDERR, _OFFLINE = 2, {"HF_HUB_OFFLINE": "1"}
_APART, _MERGED = "llada2", "llada2_merged"
_TYPES = {_APART: "llada2_moe", _MERGED: "llada2_moe_veomni"}


@dataclass(frozen=True)
class Exported:
    """Where it is, the files there, and what whoever uses them must know."""

    out: Path
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def export(
    lm: LM, to: str, out: str | Path, *, converter: str | Path | None = None, precision: str = "auto"
) -> Exported:
    """Store ``lm`` in the new folder ``out``, in the layout ``to`` (``FORMATS``).

    ``converter`` (where llama.cpp's is, unless it is on PATH) and ``precision`` (its ``--outtype``) are of gguf.

    Errors: ``ValueError`` for an unknown layout, one that the model does not fit, an ``out`` that is there already, a
    converter that is missing or fails. ``out`` is there whole or not at all; of gguf the folder to convert is kept.
    """
    out = Path(out)
    if to not in FORMATS:
        raise unknown("layout", to, FORMATS)
    if to != "gguf" and (converter is not None or precision != "auto"):
        raise ValueError(f"to={to!r} with a converter or a precision: those are of gguf; leave them out")
    if to == "gguf":
        return _gguf(lm, out, converter, precision)
    with _new(out) as folder:
        if to == "merged":
            _stored_as(lm, _MERGED, folder)
        elif lm.about.get("family") == _MERGED:
            _stored_as(lm, _APART, folder)
        else:
            lm.save(folder)
    return _exported(out)


def _exported(out: Path, *notes: str) -> Exported:
    return Exported(out, tuple(sorted(str(one.relative_to(out)) for one in out.rglob("*") if one.is_file())), notes)


@contextmanager
def _new(out: Path) -> Generator[Path]:
    """A folder beside ``out`` that becomes it, if nothing goes wrong. Errors: ``ValueError`` for one that has files."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: there already, and not empty; choose another folder, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        folder = Path(beside) / "model"
        yield folder
        os.replace(folder, out)


# ------------------------------------------------------------------------------------------------------------ layouts


def _stored_as(lm: LM, family: str, folder: Path) -> None:
    """LLaDA2 in the other of its two layouts, which differ in the experts' tensors and in model_type."""
    mine = str(lm.about.get("family"))
    if mine not in _TYPES:
        raise ValueError(f"to='merged' of family {mine!r}: only LLaDA2 has experts in two layouts; use to='hf'")
    assert not isinstance(lm.denoiser, Transformer)  # which is of no family
    tensors = released.tensors_of(lm.denoiser, FAMILIES[family])
    config = _retyped(lm.about["config"], _TYPES[mine], _TYPES[family])
    folders.write_model(folder, tensors, config, *released.words_and_files(lm.tokenizer, lm.about))


def _retyped(config: str, old: str, new: str) -> str:
    """config.json with another model_type, and where that can be every other byte as it was."""
    text = re.sub(rf'("model_type"\s*:\s*)"{old}"', rf'\g<1>"{new}"', config)
    wanted = json.loads(config) | {"model_type": new}
    return text if json.loads(text) == wanted else json.dumps(wanted, indent=2) + "\n"


# --------------------------------------------------------------------------------------------------------------- gguf


def _gguf(lm: LM, out: Path, converter: str | Path | None, precision: str) -> Exported:
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    named = architectures(json.loads(lm.about.get("config", "{}")))
    if not named or named[0] not in CONVERTED:
        kind = named[0] if named else None
        raise ValueError(f"to='gguf' of architecture {kind!r}: llama.cpp converts {', '.join(CONVERTED)}; use to='hf'")
    program = str(converter) if converter is not None else shutil.which(CONVERTER)
    if converter is not None and not Path(converter).is_file():
        raise ValueError(f"converter={str(converter)!r}: no such file; pass the path of llama.cpp's {CONVERTER}")
    with _new(out) as folder:
        lm.save(folder / "hf")
        _plain(lm.tokenizer, folder / "hf")
    # where both are named in full, neither can be taken for an option
    source, target = (out / "hf").resolve(), (out / GGUF).resolve()

    def options(made: Path) -> list[str]:
        return [str(source), "--outfile", str(made), "--outtype", precision]

    if program is None:
        raise ValueError(
            f"{CONVERTER}, which makes the file, is not on PATH: get llama.cpp (github.com/ggml-org/llama.cpp), "
            f"install its requirements.txt, and run: python {CONVERTER} {shlex.join(options(target))}"
        )
    program = str(Path(program).resolve())
    start = [sys.executable, program] if program.endswith(".py") else [program]
    write(target, lambda beside: _run([*start, *options(beside)], beside))
    return _exported(out, "llama-diffusion-cli of llama.cpp writes with it; llama-server does not")


def _plain(tokenizer: Tokenizer, folder: Path) -> None:
    """Leave no code for llama.cpp's converter to run, which reads tokenizers with any code allowed.

    What named it (``auto_map``) is taken out, and the tokenizer stands there whole, for a class of transformers.
    """
    config = read_object(folder / folders.CONFIG)
    if config.pop("auto_map", None) is not None:
        _write(folder / folders.CONFIG, config)
    if not (folder / "tokenizer.json").is_file():
        write_text(folder / "tokenizer.json", tokenizer.backend.to_str(pretty=True))
    path = folder / "tokenizer_config.json"
    told = read_object(path) if path.is_file() else {}
    told.pop("auto_map", None)
    _write(path, told | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _write(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _run(command: list[str], made: Path) -> None:
    """Start a converter, all it says on standard error. Errors: ``ValueError`` where it fails, or makes no file."""
    try:
        code = subprocess.run(command, stdout=_STDERR, env=os.environ | _OFFLINE, check=False).returncode
    except OSError as error:
        raise ValueError(f"{command[0]} cannot be started ({error.strerror})") from None
    if code or not made.is_file():
        raise ValueError(f"the converter failed with exit code {code}; what it said stands above")
