"""From a recipe to a trained model, and from a folder or Hub id to a model: ``train`` and ``load``."""

import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft import objectives, processes, recipes, schedules
from redraft.data import Data, Packed, Tokenizer, load_data
from redraft.evaluation import Likelihood, likelihood
from redraft.files import write_text
from redraft.lm import LM
from redraft.models import Transformer, TransformerConfig
from redraft.processes import Process
from redraft.randomness import Device, derive, generator, randn
from redraft.recipes import Config, ProcessConfig
from redraft.sampling import sample
from redraft.training import Hooks, fit, parallel
from redraft.training.loop import starting_point

RESULTS = "results.json"
_WEIGHTS, _CODEBOOK = 0, 1
"""What a run's seed draws before its first step."""


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
        corpus = load_data(config.data)
        process, model = build(config, corpus.tokenizer)
        objective = objectives.get(config.objective)
        hooks = Hooks(validate=_validation(config, corpus.held_out), sample=_sampling(config, corpus.tokenizer))
        ended = fit(config, model, process, objective, corpus.train, hooks, out, resume)
        about = {"context": config.data.length, "recipe": recipes.to_dict(config), "data": corpus.description}
        about["isolate_documents"] = config.data.isolate_documents
        if not world.main:
            return Run(None, None, ended.stopped, ended.step, out)
        # the trained one may be sharded over processes: what is kept is a whole one
        whole = Transformer.empty(model.config)
        whole.load_state_dict(ended.weights, assign=True)
        lm = LM(whole.to(world.device).eval(), corpus.tokenizer, about)
        if ended.stopped:
            return Run(lm, None, True, ended.step, out)
        measured = _measure(config, whole, corpus, world.device)
        lm.save(out)
        _write_results(out, config, corpus, whole, measured, time.time() - started)
        return Run(lm, measured, False, ended.step, out)


def load(path: str | Path, device: Device = None) -> LM:
    """The model of a run, of a saved folder, or of a Hugging Face id ``owner/name``.

    Errors: ``ValueError`` for a folder that holds none, or an id that cannot be fetched.
    """
    if Path(path).is_dir():
        return LM.load(path, device)
    name = str(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"{name}: no such folder; pass the folder of a run, or a Hugging Face id like owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # only data is asked for: no code of a repository is ever fetched, still less run
        found = snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name}: no such folder, and not to be had from the Hugging Face Hub ({reason})") from None
    return LM.load(found, device)


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


def build(config: Config, tokenizer: Tokenizer) -> tuple[Process, Transformer]:
    """The process and the untrained denoiser of a configuration, weights drawn from its seed.

    Errors: ``ValueError`` for parts that do not fit one another.
    """
    process = _process(config.process, tokenizer, config.train.seed)
    codebook = process.codebook if isinstance(process, processes.Gaussian) else None
    shape = TransformerConfig(
        process=process.to_dict(),
        depth=config.model.depth,
        time_conditioned=config.model.time_conditioned,
        causal=config.model.causal,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.train.seed, _WEIGHTS))
        model = Transformer(shape, codebook)
    objectives.check(config.objective, process, model.facts)
    return process, model


def _process(config: ProcessConfig, tokenizer: Tokenizer, seed: int) -> Process:
    K = tokenizer.K
    if config.name == "gaussian":
        codebook = unit_vectors(K, config.dim, seed)
        gamma = schedules.GammaSchedule(config.schedule, config.gamma_min, config.gamma_max)
        return processes.gaussian(codebook, config.kind, gamma)
    if config.name == "uniform":
        return processes.uniform(K, config.schedule)
    if config.name == "hybrid":
        return processes.hybrid(K, config.uniform_share, config.schedule, tokenizer.mask_id)
    return processes.masked(K, config.schedule, tokenizer.mask_id)


def unit_vectors(K: int, dim: int, seed: int) -> Tensor:
    """K fixed random vectors of norm 1, (K, dim) float32: at right angles to one another if there is room for that."""
    drawn = randn((K, dim), generator(seed, _CODEBOOK))
    rows = torch.linalg.qr(drawn.T).Q.T if dim >= K else F.normalize(drawn, dim=-1)
    return rows.float().contiguous()


def _validation(config: Config, held_out: Packed | None) -> Callable[[int, nn.Module], dict[str, float]] | None:
    if held_out is None:
        return None

    def validate(_step: int, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Transformer)
        device = model.head.weight.device
        found = likelihood(
            model, model.process, held_out, draws=1, rows=config.eval.rows, seed=config.train.seed, device=device
        )
        shown = {"held_out": found.nats_per_token, "held_out_error": found.nats_per_token_error}
        return shown if found.bits_per_char is None else {**shown, "bits_per_char": found.bits_per_char}

    return validate


def _sampling(config: Config, tokenizer: Tokenizer) -> Callable[[int, nn.Module], str]:
    def draw(step: int, model: nn.Module) -> str:
        assert isinstance(model, Transformer)
        device = model.head.weight.device
        drawn = sample(
            model.process, model, length=config.data.length, seed=derive(config.train.seed, step), device=device
        )
        return tokenizer.decode(drawn.tokens[0].tolist())

    return draw


def _measure(config: Config, model: Transformer, corpus: Data, device: torch.device) -> Likelihood | None:
    if corpus.held_out is None:
        return None
    return likelihood(
        model, model.process, corpus.held_out, draws=config.eval.draws, seed=config.train.seed, device=device
    )


def _write_results(
    out: Path, config: Config, corpus: Data, model: nn.Module, measured: Likelihood | None, seconds: float
) -> None:
    results = {
        **({} if measured is None else measured.to_dict()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_trained_on": config.train.steps * config.train.batch * config.data.length,
        "seconds": round(seconds, 1),
        "recipe": recipes.to_dict(config),
        "data": corpus.description,
        "machine": machine(),
    }
    write_text(out / RESULTS, json.dumps(results, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """What a figure was measured on: processor, threads, GPU, and versions."""
    from redraft import __version__

    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "redraft": __version__,
    }


__all__ = ["Run", "build", "configure", "load", "machine", "train"]
