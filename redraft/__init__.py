"""redraft: diffusion language models, masked, uniform, hybrid and Gaussian, behind one small interface.

Everything public is here and is imported when first used, so that ``import redraft`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redraft import constraints, guidance, objectives, recipes, schedules
    from redraft.conversion import convert
    from redraft.data import Tokenizer, toy
    from redraft.dglm.model import DGLM
    from redraft.distillation import distil
    from redraft.evaluation import Comparison, Likelihood, compare, distinct_n, likelihood, unigram_entropy
    from redraft.evaluation.quality import Quality, quality, quality_of
    from redraft.finetuning import finetune
    from redraft.frontiers import Frontier, frontier
    from redraft.guidance import (
        cfg,
        classifier_guided,
        doubting,
        gradient_guided,
        rate_guided,
        steer,
        token_guided,
        unprompted,
    )
    from redraft.lm import LM, Generation
    from redraft.models import Transformer, TransformerConfig
    from redraft.processes import (
        Denoiser,
        Facts,
        Process,
        d3pm,
        gaussian,
        hybrid,
        learned,
        masked,
        spindle,
        uniform,
    )
    from redraft.recipes import Config
    from redraft.runs import Run, load, train
    from redraft.sampling import Elastic, Growth, Samples, Step, sample, samplers, self_correct, semi_autoregressive
    from redraft.trace import Trace

__version__ = "0.1.0"

__all__ = [
    "DGLM",
    "LM",
    "Comparison",
    "Config",
    "Denoiser",
    "Elastic",
    "Facts",
    "Frontier",
    "Generation",
    "Growth",
    "Likelihood",
    "Process",
    "Quality",
    "Run",
    "Samples",
    "Step",
    "Tokenizer",
    "Trace",
    "Transformer",
    "TransformerConfig",
    "__version__",
    "cfg",
    "classifier_guided",
    "compare",
    "constraints",
    "convert",
    "d3pm",
    "distil",
    "distinct_n",
    "doubting",
    "finetune",
    "frontier",
    "gaussian",
    "gradient_guided",
    "guidance",
    "hybrid",
    "learned",
    "likelihood",
    "load",
    "masked",
    "objectives",
    "quality",
    "quality_of",
    "rate_guided",
    "recipes",
    "sample",
    "samplers",
    "schedules",
    "self_correct",
    "semi_autoregressive",
    "spindle",
    "steer",
    "token_guided",
    "toy",
    "train",
    "uniform",
    "unigram_entropy",
    "unprompted",
]

_MODULES = {
    "constraints": "redraft.constraints",
    "guidance": "redraft.guidance",
    "objectives": "redraft.objectives",
    "recipes": "redraft.recipes",
    "samplers": "redraft.sampling.samplers",
    "schedules": "redraft.schedules",
    "toy": "redraft.data.toy",
}
_NAMES = {
    "redraft.conversion": ("convert",),
    "redraft.data": ("Tokenizer",),
    "redraft.dglm.model": ("DGLM",),
    "redraft.distillation": ("distil",),
    "redraft.evaluation": ("Comparison", "Likelihood", "compare", "distinct_n", "likelihood", "unigram_entropy"),
    "redraft.evaluation.quality": ("Quality", "quality", "quality_of"),
    "redraft.finetuning": ("finetune",),
    "redraft.frontiers": ("Frontier", "frontier"),
    "redraft.guidance": (
        "cfg",
        "classifier_guided",
        "doubting",
        "gradient_guided",
        "rate_guided",
        "steer",
        "token_guided",
        "unprompted",
    ),
    "redraft.lm": ("LM", "Generation"),
    "redraft.models": ("Transformer", "TransformerConfig"),
    "redraft.processes": (
        "Denoiser",
        "Facts",
        "Process",
        "d3pm",
        "gaussian",
        "hybrid",
        "learned",
        "masked",
        "spindle",
        "uniform",
    ),
    "redraft.recipes": ("Config",),
    "redraft.runs": ("Run", "load", "train"),
    "redraft.sampling": ("Elastic", "Growth", "Samples", "Step", "sample", "self_correct", "semi_autoregressive"),
    "redraft.trace": ("Trace",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = import_module(_MODULES[name])
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
