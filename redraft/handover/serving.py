"""Serving a model by an engine made for it: what to ask of SGLang or vLLM, checked first, and starting them.

The engines are programs of their own, here never imported. What they take was read off their code and documentation:
sgl-project/sglang python/sglang/srt/dllm/config.py and docs, diffusion language models; docs.vllm.ai DiffusionConfig
and recipes.vllm.ai, DiffusionGemma.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import torch

from redraft import presets
from redraft.errors import unknown
from redraft.files import read_object, write_text
from redraft.models import folder as folders
from redraft.models import released
from redraft.models.families import Family
from redraft.models.families.base import Fields, Released, architectures
from redraft.models.hub import fetched
from redraft.models.weights import Shards

SMALL = ("*.json", "*.jinja", "merges.txt")
"""All of a repository but its weights, which the engine fetches itself."""
SGLANG = {"llada2": ("LLaDA2MoeModelLM", 156895), "sdar": ("SDARForCausalLM", 151669)}
"""Families that SGLang writes with, the class it knows them by, and the id it takes for the mask whatever they say."""
MERGED = "llada2_merged"
"""LLaDA2 in the layout it is trained in elsewhere, which no engine reads."""
VLLM = "DiffusionGemmaForBlockDiffusion"
ALGORITHM, COMMAND = "algorithm.yaml", "command.json"


@dataclass(frozen=True)
class Serving:
    """How to serve: an address, over how many GPUs, how many texts at a time, by which preset (``redraft.presets``).

    ``trust_remote_code``: the engine may run code that lies in the model's repository, which redraft never does.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    tensor_parallel: int = 1
    requests: int = 4
    trust_remote_code: bool = False
    preset: str | None = None

    def __post_init__(self) -> None:
        if not self.host or self.host.startswith("-"):  # which an engine would take for an option
            raise ValueError(f"host={self.host!r}: pass an address such as 127.0.0.1 or ::1, or the name of a machine")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ValueError(f"port={self.port}: pass one from 1 to 65535")
        for name in ("tensor_parallel", "requests"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value}: pass at least 1")


@dataclass(frozen=True)
class Model:
    """What is served: its name to the engine, and the folder where its config.json is (``local``: and its weights)."""

    name: str
    folder: Path
    local: bool
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What an engine is told: its arguments, the files to write for it, and what whoever starts it should know."""

    engine: str
    arguments: tuple[str, ...]
    files: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Engine:
    """How an engine is found and started: as a module of this Python, or else as a program on PATH."""

    module: str
    start: tuple[str, ...]
    program: tuple[str, ...]
    port: int
    serves: str
    plan: Callable[[Model, Serving, Path], Plan]


def plan(model: str | Path, engine: str, out: str | Path, asked: Serving) -> Plan:
    """What ``engine`` is to be told to serve ``model``, a folder or a Hub id; ``out`` is where its files will be.

    Errors: ``ValueError`` for an unknown engine, one that does not serve the model's family (naming which does), and
    whatever in the model's files the engine would fail on or read wrongly.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    return ENGINES[engine].plan(_found(model), asked, Path(out).resolve())


def launcher(engine: str) -> list[str] | None:
    """How the engine is started on this machine, or None where it is not installed."""
    known = ENGINES[engine]
    if find_spec(known.module) is not None:
        return [sys.executable, *known.start]
    program = shutil.which(known.program[0])
    return None if program is None else [program, *known.program[1:]]


def prepare(found: Plan, out: str | Path) -> list[str]:
    """Write a plan's files and its command into ``out``; the command, as it is on this machine or would be."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    known = ENGINES[found.engine]
    command = [*(launcher(found.engine) or known.program), *found.arguments]
    for name, text in found.files.items():
        write_text(out / name, text)
    write_text(out / COMMAND, json.dumps({"engine": found.engine, "command": command}, indent=2) + "\n")
    return command


def start(found: Plan, command: list[str]) -> None:
    """Become the engine: this process is replaced by it, so that signals and the exit code are its own.

    Errors: ``ValueError`` where it is not installed, saying what to install.
    """
    if launcher(found.engine) is None:
        raise ValueError(
            f"{found.engine} is not installed: run  pip install {found.engine}  in an environment of its own (it needs "
            f"its own torch, and a GPU), put that environment's bin on PATH, and start: {shlex.join(command)}"
        )
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)


# -------------------------------------------------------------------------------------------------------- the engines


def _sglang(model: Model, asked: Serving, out: Path) -> Plan:
    """LLaDA2 and SDAR, block by block by LowConfidence, or where what is written is edited by JointThreshold."""
    if not (named := architectures(model.config)) or named[0] not in [one for one, _ in SGLANG.values()]:
        raise _not_served("sglang", model)
    family, denoiser = _read(model)
    if family.name == MERGED:
        raise ValueError(
            f"{model.name}: the experts of a layer are in one tensor, and sglang reads them apart: store them so by  "
            f"redraft export {shlex.quote(model.name)} --to hf --out FOLDER  and serve that"
        )
    if family.name not in SGLANG:
        raise _not_served("sglang", model)
    _, mask_id = SGLANG[family.name]
    if denoiser.facts.mask_id != mask_id:
        raise ValueError(
            f"{model.name}: its mask is id {denoiser.facts.mask_id}, and SGLang takes {mask_id} for the mask of every "
            f"{named[0]}; it cannot be told otherwise"
        )
    options = family.decoding if asked.preset is None else presets.get(asked.preset).options
    algorithm, values = _algorithm(str(options.get("sampler")))
    values["block_size"] = str(denoiser.facts.block)
    lines = [f"{name}: {_number(value)}" for name, value in values.items()]
    arguments = ["--model-path", model.name, "--dllm-algorithm", algorithm]
    arguments += ["--dllm-algorithm-config", str(out / ALGORITHM), *_address(asked, "sglang")]
    arguments += ["--tp-size", str(asked.tensor_parallel), "--max-running-requests", str(asked.requests)]
    notes = ["SGLang writes the likeliest token always: temperature and top_p of a request change nothing"]
    arguments, notes = _with_code(model, asked, arguments, notes)
    return Plan("sglang", tuple(arguments), {ALGORITHM: "\n".join(lines) + "\n"}, (*notes, *_reach(asked)))


def _vllm(model: Model, asked: Serving, out: Path) -> Plan:
    """DiffusionGemma, whose sampler is in its generation_config.json."""
    if architectures(model.config)[:1] != [VLLM]:
        raise _not_served("vllm", model)
    if asked.preset is not None:
        raise ValueError(f"preset={asked.preset!r} with vllm, which writes by generation_config.json; leave it out")
    _check_generation(model)
    arguments = [model.name, *_address(asked, "vllm"), "--tensor-parallel-size", str(asked.tensor_parallel)]
    # its own sampler's buffers are of this many canvases of the whole vocabulary
    arguments += ["--max-num-seqs", str(asked.requests)]
    # FlashInfer has no way to read both ways; and the checkpoint's own limit of tokens would hold for every request
    arguments += ["--attention-backend", "TRITON_ATTN", "--generation-config", "vllm"]
    canvas = model.config.get("canvas_length")
    if canvas is not None:
        arguments += ["--diffusion-config", json.dumps({"canvas_length": canvas})]
    arguments, notes = _with_code(model, asked, arguments, [])
    return Plan("vllm", tuple(arguments), {}, (*notes, *_reach(asked)))


ENGINES = {
    "sglang": Engine("sglang", ("-m", "sglang.launch_server"), ("sglang", "serve"), 30000, ", ".join(SGLANG), _sglang),
    "vllm": Engine("vllm", ("-m", "vllm.entrypoints.cli.main", "serve"), ("vllm", "serve"), 8000, VLLM, _vllm),
}


def _not_served(engine: str, model: Model) -> ValueError:
    kind = (architectures(model.config) or [str(model.config.get("model_type"))])[0]
    served = "; ".join(f"{name} serves {one.serves}" for name, one in ENGINES.items())
    return ValueError(f"{model.name} is a {kind}, which {engine} does not serve; {served}; or see redraft generate")


def _algorithm(sampler: str) -> tuple[str, dict[str, str]]:
    """SGLang's algorithm that writes as a sampler of ours does, and its numbers. Errors: ``ValueError`` for none."""
    rule, plus, revision = sampler.partition("+")
    (name, known), (kind, more) = _options(rule), _options(revision)
    # ``whole``: at least an even share of a block, which is a token, SGLang's least, in as many steps as it has tokens
    if name == "threshold" and {"tau"} <= known.keys() <= {"tau", "whole"}:
        if not plus:
            return "LowConfidence", {"threshold": known["tau"]}
        if kind == "edit" and {"tau"} <= more.keys() <= _EDITS.keys():
            return "JointThreshold", {"threshold": known["tau"]} | {_EDITS[one]: more[one] for one in more}
    raise ValueError(
        f"sampler {sampler!r}: SGLang writes what is above a threshold, threshold:tau=.., and edits, +edit:tau=..; "
        "choose another preset, or none"
    )


_EDITS = {"tau": "edit_threshold", "extra": "max_post_edit_steps"}


def _options(written: str) -> tuple[str, dict[str, str]]:
    """The name and the options of ``name:option=value,..``."""
    name, _, options = written.partition(":")
    return name, {option: value for option, _, value in (one.partition("=") for one in options.split(",") if one)}


def _number(value: str) -> str:
    """As YAML reads a number: 1e-05 is a word to it."""
    return value if value.isdecimal() else np.format_float_positional(float(value), trim="0")


def _address(asked: Serving, engine: str) -> list[str]:
    return ["--host", asked.host, "--port", str(asked.port or ENGINES[engine].port)]


def _with_code(model: Model, asked: Serving, arguments: list[str], notes: list[str]) -> tuple[list[str], list[str]]:
    """The arguments, and if that was asked for the one that lets an engine run code of the model's repository."""
    named = sorted({_module(value) for value in dict(model.config.get("auto_map") or {}).values()})
    if not asked.trust_remote_code:
        note = (
            f"config.json names code of its own ({', '.join(named)}), which is not run: if the engine does not know "
            "the model without, read it, put it beside config.json, and pass --trust-remote-code"
        )
        return arguments, [*notes, note] if named else notes
    absent = [name for name in named if model.local and not (model.folder / name).is_file()]
    if absent:
        raise ValueError(
            f"trust_remote_code: {model.folder} has no {', '.join(absent)}, which redraft neither fetches nor writes; "
            "copy it from the model's repository"
        )
    return [*arguments, "--trust-remote-code"], notes


def _module(value: Any) -> str:
    """The file of ``owner/name--module.Class``, or of the first of several."""
    first = value[0] if isinstance(value, list) and value else value
    return str(first).rpartition("--")[2].partition(".")[0] + ".py"


def _reach(asked: Serving) -> tuple[str, ...]:
    local = asked.host == "localhost"
    with suppress(ValueError):  # the name of a machine is no address
        local = local or ip_address(asked.host).is_loopback
    return () if local else (f"{asked.host} can be reached from other machines, and no key is asked for",)


# --------------------------------------------------------------------------------------------------------- the checks


def _found(model: str | Path) -> Model:
    """The model of a folder, whose weights are looked at too, or of the Hub."""
    local = Path(model).is_dir()
    folder = Path(model).resolve() if local else Path(fetched(str(model), SMALL))
    config = folders.read_config(folder)
    if local and not folders.is_ours(config):
        Shards(folder)
    return Model(str(folder) if local else str(model), folder, local, config)


def _read(model: Model) -> tuple[Family, Released]:
    """The family, and its denoiser without weights."""
    path = model.folder / folders.CONFIG
    repository = "" if model.local else model.name
    family = released.family_of(path, model.config, repository=repository)
    with torch.device("meta"):
        return family, family.reads(Fields(path, model.config, repository)).build()


def _check_generation(model: Model) -> None:
    """Errors: ``ValueError`` for fields that vLLM reads by name and that are not there."""
    path = model.folder / "generation_config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file, and vLLM reads the sampler from it; copy it from the release")
    values = read_object(path)
    sampler: Any = values.get("sampler_config")
    found = values | {"sampler_config.entropy_bound": dict[str, Any](sampler or {}).get("entropy_bound")}
    needed = ("sampler_config.entropy_bound", "t_min", "t_max", "stability_threshold", "confidence_threshold")
    if absent := [name for name in needed if found.get(name) is None]:
        raise ValueError(f"{path}: no {', '.join(absent)}, which vLLM reads; copy the file from the release")
