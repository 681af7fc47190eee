"""Training a network on that was not built here: a converted or released one, which ``model.init`` names.

Unlike our transformer it is not built by the recipe: its sizes, attention and noise are its own.
"""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redraft import recipes
from redraft.lm import LM
from redraft.models import Transformer, folder
from redraft.models.dit import DiTBlock
from redraft.models.families import FAMILIES
from redraft.models.families.base import Fields, Released
from redraft.processes import Categorical
from redraft.recipes import Config, ModelConfig, ProcessConfig

Network = Transformer | Released
"""What can be trained."""


def network(config: Config) -> LM | None:
    """The model that ``model.init`` names, where it is no transformer of ours; None where it is, or none is named.

    Errors: ``ValueError`` for a folder that holds no model.
    """
    init = config.model.init
    if init is None or folder.is_ours(folder.read_config(Path(init))):
        return None
    lm = LM.load(init)
    still(lm.denoiser)
    return lm


def still(denoiser: nn.Module) -> None:
    """Have a released network drop nothing at random in training, in place.

    What is dropped would be drawn by the global generator, and a run resumed be another (``training.loop``).
    """
    for block in denoiser.modules():
        if isinstance(block, DiTBlock):
            block.dropout = 0.0


def settled(config: Config, lm: LM) -> Config:
    """``config`` with the facts of the model in place of what would build another.

    Errors: ``ValueError`` for a field that was set, other than to what the model has, or rows longer than it can read.
    """
    process, facts = lm.process, lm.denoiser.facts
    assert isinstance(process, Categorical)
    held: dict[str, Any] = {"attention": facts.attention, "block": facts.block}
    held |= {"time_conditioned": facts.time_conditioned, "init": config.model.init, "anneal": config.model.anneal}
    model = replace(ModelConfig(), **held)
    known = process.to_dict()
    noise = {"name": process.name, "schedule": process.schedule.to_dict()["name"], "steps": process.steps}
    noise |= {"uniform_share": known["uniform_share"]} if "uniform_share" in known else {}
    # what a recipe says of the model it would build is no wish of the caller's
    named = recipes.get(config.recipe).model if config.recipe in recipes.RECIPES else ModelConfig()
    _refuse("model", config.model, model, (ModelConfig(), named))
    _refuse("process", config.process, replace(ProcessConfig(), **noise), (ProcessConfig(),))
    if config.data.length > lm.context:
        raise ValueError(
            f"data.length={config.data.length} with model.init={config.model.init!r}, which reads {lm.context} tokens "
            f"at most: set data.length={lm.context} or less"
        )
    return replace(config, model=model, process=replace(ProcessConfig(), name=process.name))


def _refuse(part: str, asked: Any, held: Any, silent: tuple[Any, ...]) -> None:
    for field in fields(asked):
        value, own = getattr(asked, field.name), getattr(held, field.name)
        if value != own and value not in [getattr(one, field.name) for one in silent]:
            raise ValueError(
                f"{part}.{field.name}={value!r} with model.init, a network of its own, of {own!r}: leave it out"
            )


def rebuilt_with(lm: LM, weights: dict[str, Tensor], dtype: torch.dtype, init: str) -> Released:
    """The network of ``lm`` built again, in ``dtype``, of trained ``weights``."""
    values = json.loads(lm.about["config"])
    with torch.device("meta"):
        made = FAMILIES[lm.about["family"]].reads(Fields(Path(init) / folder.CONFIG, values)).build()
    made.load_state_dict(weights, assign=True)
    made.eos_id, made.pad_id = lm.denoiser.facts.eos_id, lm.denoiser.facts.pad_id
    return made.to(dtype)
