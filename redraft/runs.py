"""From a recipe to a trained model, and from a folder or Hub id to a model: ``train`` and ``load``."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from redraft import continuation, objectives, processes, recipes, schedules
from redraft.continuation import Network
from redraft.data import Data, Packed, Tokenizer, load_data
from redraft.data.packing import without_first_tokens
from redraft.evaluation import Likelihood, likelihood
from redraft.files import write_text
from redraft.lm import LM
from redraft.models import Transformer, TransformerConfig, folder
from redraft.models.embeddings import token_embedding
from redraft.models.hub import fetched, parted
from redraft.models.placement import DeviceMap
from redraft.processes import Process, absorbing
from redraft.processes.base import device_of
from redraft.processes.codebooks import bits, filled, unit_vectors
from redraft.processes.d3pm import NEIGHBOURS, USUAL, nearest, spelling
from redraft.processes.per_token import frequency_scores, usual_exponents
from redraft.publishing import RESULTS
from redraft.randomness import Device, derive, generator
from redraft.recipes import Config, ProcessConfig
from redraft.records import made
from redraft.sampling import sample
from redraft.training import Hooks, fit, parallel
from redraft.training.loop import starting_point

_WEIGHTS, _CODEBOOK, _SCHEDULE = 0, 1, 2
"""What a run's seed draws before its first step."""
READ = {
    "masked": ("schedule", "steps"),
    "uniform": ("schedule", "steps"),
    "hybrid": ("schedule", "steps", "uniform_share"),
    "gaussian": (
        *("schedule", "kind", "dim", "gamma_min", "gamma_max"),
        *("codebook", "learn_codebook", "normalise"),
    ),
    "d3pm": ("schedule", "steps", "matrix"),
    "spindle": ("strength",),
    "learned": (),
}
"""The fields of ``ProcessConfig`` that each process reads."""
_RANGE_ROWS = 32
"""Held-out rows on which a block model's range of mask rates is chosen."""


@dataclass(frozen=True)
class Run:
    """What ``train`` returns. ``stopped``: a signal ended it early at ``step``, and ``resume=True`` continues it.

    ``likelihood`` is of the held-out rows; None when stopped, or when nothing is held out. Under ``torchrun`` rank 0
    alone holds the model and the likelihood.
    """

    model: LM | None
    likelihood: Likelihood | None
    stopped: bool
    step: int
    out: Path

    @property
    def lm(self) -> LM:
        """The trained model. Errors: ``RuntimeError`` on ranks that hold none."""
        if self.model is None:
            raise RuntimeError("only rank 0 holds the trained model: guard what uses it, or load it from its folder")
        return self.model


def train(
    recipe: str | Config,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Train a model by a recipe, evaluate it on its held-out text, and store it in ``out`` (``runs/<recipe>``).

    ``data`` is short for ``data.source``. Fields change by dotted name, ``overrides={"train.lr": 3e-4}``.
    Under ``torchrun`` every process calls it alike. ``out`` receives the model's folder,
    ``results.json``, ``metrics.jsonl`` and ``checkpoints/``.

    Errors: ``ValueError`` for an unknown recipe or field, parts that do not fit, text that cannot be read, an ``out``
    already in use without ``resume``.
    """
    config = configure(recipe, data, overrides)
    out = Path(out or Path("runs") / config.recipe)
    starting_point(out, resume)
    with parallel.world() as world:
        started = time.time()
        init, given = config.model.init, continuation.network(config)
        if given is not None:
            config = continuation.settled(config, given)
        words = None if init is None else Tokenizer.load(init) if given is None else given.tokenizer
        corpus = load_data(config.data, words)
        process, model = build(config, corpus.tokenizer, corpus.train, given)
        dtype = next(model.parameters()).dtype
        objective = objectives.get(config.objective, **asdict(config.loss))
        if config.model.anneal is not None:
            objective = objectives.annealed(objective, config.model.anneal, config.train.seed, config.train.steps)
        hooks = Hooks(validate=_validation(config, corpus.held_out), sample=_sampling(config, corpus.tokenizer))
        rows = without_first_tokens(corpus.train) if model.facts.shifted else corpus.train
        ended = fit(config, model, process, objective, rows, hooks, out, resume)
        about: dict[str, Any] = {"context": config.data.length, "data": corpus.description}
        about["isolate_documents"] = config.data.isolate_documents
        if not world.main:
            return Run(None, None, ended.stopped, ended.step, out)
        # the trained one may be sharded over processes: what is kept is a whole one
        if isinstance(model, Transformer):
            whole = Transformer.empty(model.config)
            whole.load_state_dict(ended.weights, assign=True)
        else:
            assert given is not None and init is not None  # noqa: PT018
            whole, about = continuation.rebuilt_with(given, ended.weights, dtype, init), dict(given.about)
        lm = LM(whole.to(world.device).eval(), corpus.tokenizer, about | {"recipe": recipes.to_dict(config)})
        if ended.stopped:
            return Run(lm, None, True, ended.step, out)
        measured = _measure(config, whole, corpus, world.device)
        told = {"tokens_trained_on": config.train.steps * config.train.batch * config.data.length}
        finished(lm, out, config, measured, time.time() - started, **told, data=corpus.description)
        return Run(lm, measured, False, ended.step, out)


def load(
    path: str | Path,
    device: Device = None,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap | None = None,
    quantize: str | None = None,
    tokenizer: str | Tokenizer | None = None,
    family: str | None = None,
) -> LM:
    """The model of a run, of a saved folder, of a released checkpoint's folder, or of a Hugging Face id ``owner/name``.

    An id may name a revision, ``owner/name@v1.0``. ``dtype``: the precision of the weights, torch's or its name; as
    stored unless given, or "auto". For released checkpoints: ``device_map``, "auto" or names of modules with their
    devices, divides the blocks of one (extra ``train``); ``quantize`` keeps the matrices of blocks in 8 or 4 bits,
    "int8" or "nf4" (extra ``quantise``); ``tokenizer``, a folder or id, where the one the family trained with is not
    wanted; ``family`` (see ``redraft.models.released.FAMILIES``) where config.json does not tell.

    Errors: ``ValueError`` for a folder that holds none, an id that cannot be fetched, or weights that take more memory
    than is free.
    """
    local = Path(path).is_dir()
    found, repository = (path, "") if local else (fetched(str(path)), parted(str(path))[0])
    how: Any = {"dtype": dtype, "device_map": device_map, "quantize": quantize}
    return LM.load(found, device, tokenizer=tokenizer, family=family, repository=repository, **how)


def configure(
    recipe: str | Config,
    data: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration ``train`` would run: a recipe with fields changed. Errors: ``ValueError``."""
    config = recipes.get(recipe) if isinstance(recipe, str) else recipe
    values = dict(overrides or {})
    if data is not None and values.setdefault("data.source", str(data)) != str(data):
        raise ValueError(f"data={str(data)!r} and data.source={values['data.source']!r} are the same field: pass one")
    return recipes.override(config, values)


def build(
    config: Config, tokenizer: Tokenizer, rows: Packed | None = None, given: LM | None = None
) -> tuple[Process, Network]:
    """The process and the denoiser of a configuration, its weights drawn from the seed, or those of ``model.init``.

    ``rows`` are the training rows, whose token counts a spindle process needs. ``given``: the model that
    ``model.init`` names, where it is a network of its own (``continuation``), which is then what is trained.

    Errors: ``ValueError`` for parts that do not fit one another.
    """
    model = _transformer(config, tokenizer, rows) if given is None else given.denoiser
    process = model.process  # the model's own, so that what is learned of it is learned in the model
    objectives.check(config.objective, process, model.facts, config.loss.given, config.loss.self_condition)
    if given is None and not (absorbing(process) or process.vectors or model.facts.time_conditioned):
        raise ValueError(f"a {process.name} process needs the time: set model.time_conditioned=True")
    return process, model


def _transformer(config: Config, tokenizer: Tokenizer, rows: Packed | None) -> Transformer:
    facts, tensors = _process(config, tokenizer, rows)
    if config.train.parallel == "fsdp":
        _refuse_sharding(facts)
    shape = TransformerConfig(
        process=facts,
        depth=config.model.depth,
        time_conditioned=config.model.time_conditioned,
        attention=config.model.attention,
        block=config.model.block,
        head=config.model.head,
        reads=config.model.reads,
        self_conditioned=config.model.self_conditioned,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.train.seed, _WEIGHTS))
        model = Transformer(shape, tensors)
    if config.model.init is not None:
        folder.start_from(model, config.model.init)
    return model


Tensors = dict[str, Tensor]
"""What a process keeps among the model's weights, by name."""


def _process(config: Config, tokenizer: Tokenizer, rows: Packed | None) -> tuple[dict[str, Any], Tensors]:
    """The process's facts, and the tensors it keeps among the model's weights."""
    noise, K, mask_id = config.process, tokenizer.K, tokenizer.mask_id
    for field in fields(noise):
        value = getattr(noise, field.name)
        if field.name not in ("name", *READ[noise.name]) and value != getattr(ProcessConfig(), field.name):
            raise ValueError(
                f"process.{field.name}={value!r} with a {noise.name} process, which does not read it: leave it out"
            )
    schedule = noise.schedule or "linear"
    if noise.name == "gaussian":
        return _gaussian(noise, tokenizer, config.train.seed)
    if noise.name == "d3pm":
        return _d3pm(noise, tokenizer)
    if noise.name == "spindle":
        scores = frequency_scores(_counts(K, rows))
        return processes.spindle(scores, noise.strength, mask_id).to_dict(), {"scores": scores}
    if noise.name == "learned":
        exponents = usual_exponents(K)
        return processes.learned(exponents, mask_id).to_dict(), {"exponents": exponents}
    if noise.name == "uniform":
        return processes.uniform(K, schedule, noise.steps).to_dict(), {}
    if noise.name == "hybrid":
        return processes.hybrid(K, noise.uniform_share, schedule, mask_id, noise.steps).to_dict(), {}
    return processes.masked(K, schedule, mask_id, noise.steps).to_dict(), {}


def _refuse_sharding(facts: Mapping[str, Any]) -> None:
    """Errors: ``ValueError`` for a process that learns, whose parameters are read outside the model's forward."""
    learning = [kept.name for kept in processes.tensors_of(facts) if kept.learned]
    if learning:
        raise ValueError(
            f"train.parallel='fsdp' with a {facts['name']} process that is learned: its {', '.join(learning)} must be "
            "whole on every process; use ddp"
        )


def _gaussian(noise: ProcessConfig, tokenizer: Tokenizer, seed: int) -> tuple[dict[str, Any], Tensors]:
    codebook = _codebook(noise, tokenizer, seed)
    ends = {"gamma_min": noise.gamma_min, "gamma_max": noise.gamma_max}
    stored = {"name": noise.schedule or "linear_gamma", **ends}
    start = schedules.gamma_start(stored, derive(seed, _SCHEDULE))
    schedule = schedules.gamma(stored, start)
    process = processes.gaussian(
        codebook, noise.kind, schedule, learned=noise.learn_codebook, normalise=noise.normalise
    )
    return process.to_dict(), {"codebook": codebook, **{f"schedule_{name}": one for name, one in start.items()}}


def _codebook(noise: ProcessConfig, tokenizer: Tokenizer, seed: int) -> Tensor:
    """One vector per token, (K, D). Errors: ``ValueError`` for a width that was set and is not the codebook's."""
    if noise.codebook == "random":
        return unit_vectors(tokenizer.K, noise.dim, generator(seed, _CODEBOOK))
    table = bits(tokenizer.K) if noise.codebook == "bits" else token_embedding(noise.codebook, tokenizer)
    if noise.dim not in (ProcessConfig().dim, table.shape[1]):
        raise ValueError(
            f"process.dim={noise.dim} with process.codebook={noise.codebook!r}, whose rows have {table.shape[1]}: "
            f"set process.dim={table.shape[1]}"
        )
    return filled(table, generator(seed, _CODEBOOK)) if noise.normalise else table


def _d3pm(noise: ProcessConfig, tokenizer: Tokenizer) -> tuple[dict[str, Any], Tensors]:
    if noise.steps is None:
        raise ValueError("a d3pm process is a chain: set process.steps, its number of steps")
    K, kind, steps = tokenizer.K, noise.matrix, noise.steps
    if kind == "neighbour":
        graph = nearest(spelling(tokenizer.tokens(range(K))), NEIGHBOURS)
        schedule = noise.schedule or USUAL[kind]
        return {"name": "d3pm", "K": K, "kind": kind, "steps": steps, "schedule": schedule}, {"graph": graph}
    mask_id = tokenizer.mask_id if kind in ("absorbing", "hybrid") else None
    return processes.d3pm(K, kind, steps, noise.schedule, mask_id=mask_id).to_dict(), {}


def _counts(K: int, rows: Packed | None) -> Tensor:
    """How often each token occurs in the rows, (K,)."""
    if rows is None:
        raise ValueError("a spindle process is made from token counts: pass the training rows")
    ids = rows.ids if rows.valid is None else rows.ids[rows.valid]
    return torch.bincount(torch.as_tensor(ids, dtype=torch.long).flatten(), minlength=K)


def _validation(config: Config, held_out: Packed | None) -> Callable[[int, nn.Module], dict[str, float]] | None:
    if held_out is None:
        return None

    def validate(_step: int, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Network)
        device = device_of(model)
        found = likelihood(
            model, model.process, held_out, draws=1, rows=config.eval.rows, seed=config.train.seed, device=device
        )
        shown = {"held_out": found.nats_per_token, "held_out_error": found.nats_per_token_error}
        if found.bits_per_char is not None:
            shown["bits_per_char"] = found.bits_per_char
        return shown | _retuned(config, held_out, model)

    return validate


def _retuned(config: Config, held_out: Packed, model: Network) -> dict[str, float]:
    """The mask rates a block model is trained at from here on, unless the recipe or blocks of one token fix them."""
    if not isinstance(model, Transformer):  # only models of our own carry any
        return {}
    fixed = config.loss.mask_min is not None or config.loss.mask_max is not None or config.model.block == 1
    if config.objective != "bd3lm" or fixed:
        return {}
    rows = np.unique(np.linspace(0, len(held_out) - 1, min(_RANGE_ROWS, len(held_out))).astype(np.int64))
    batch = objectives.as_batch(held_out.batch(rows), model.head.weight.device)
    low, high = objectives.retune(model, model.process, batch, config.train.seed)
    return {"mask_min": low, "mask_max": high}


def _sampling(config: Config, tokenizer: Tokenizer) -> Callable[[int, nn.Module], str]:
    def draw(step: int, model: nn.Module) -> str:
        assert isinstance(model, Network)
        device = device_of(model)
        drawn = sample(
            model.process, model, length=config.data.length, seed=derive(config.train.seed, step), device=device
        )
        return tokenizer.decode(drawn.tokens[0].tolist())

    return draw


def _measure(config: Config, model: Network, corpus: Data, device: torch.device) -> Likelihood | None:
    if corpus.held_out is None:
        return None
    return likelihood(
        model, model.process, corpus.held_out, draws=config.eval.draws, seed=config.train.seed, device=device
    )


def finished(lm: LM, out: Path, config: Any, measured: Likelihood | None, seconds: float, **more: Any) -> None:
    """Store a trained model in ``out``, with results.json, and let it say its recipe and how it measured.

    ``config``: the tree of fields it was trained by; ``more``: what else results.json is to say.
    """
    recipe, told = recipes.to_dict(config), made(())
    lm.about["recipe"] = recipe
    lm.results = {
        **({} if measured is None else measured.to_dict()),
        "parameters": sum(parameter.numel() for parameter in lm.denoiser.parameters()),
        **more,
        "seconds": round(seconds, 1),
        "recipe": recipe,
        **{name: told[name] for name in ("command", "commit", "machine", "date")},
    }
    lm.save(out)
    write_text(out / RESULTS, json.dumps(lm.results, indent=2) + "\n")


__all__ = ["Run", "build", "configure", "finished", "load", "train"]
