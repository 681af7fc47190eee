"""Experiments as data: a recipe is a function that returns a frozen ``Config``."""

from redraft.recipes.config import (
    Config,
    DataConfig,
    EvalConfig,
    LossConfig,
    ModelConfig,
    ProcessConfig,
    TrainConfig,
    field_names,
    from_dict,
    override,
    to_dict,
)
from redraft.recipes.named import RECIPES, get

__all__ = [
    "RECIPES",
    "Config",
    "DataConfig",
    "EvalConfig",
    "LossConfig",
    "ModelConfig",
    "ProcessConfig",
    "TrainConfig",
    "field_names",
    "from_dict",
    "get",
    "override",
    "to_dict",
]
