"""Distilling a trained uniform model into one that needs fewer steps: rounds of ``dcd``, each teaching the next."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from redraft import recipes
from redraft.models import folder
from redraft.recipes import Config
from redraft.recipes.config import LossConfig
from redraft.runs import Run, train
from redraft.training import checkpoint, parallel

_OURS = ("objective", "loss.teacher", "loss.jump", "model.init")


def distil(
    model: str | Path,
    rounds: int = 5,
    *,
    jump: float = 1 / 512,
    data: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Discrete consistency distillation of the model in a folder (Duo, Sahoo et al. 2025, arXiv 2506.10892).

    Each round starts from the weights of the model before, has it as its frozen teacher, and trains by the model's own
    recipe with the objective ``dcd``; the jump in t doubles from round to round, up to 1. ``train.steps`` are those of
    one round. The paper: 5 rounds of 10,000 steps from 1/512, batch 128, lr 6e-5, warm-up 500, EMA 0.999.

    ``out`` (``runs/<recipe>-distilled``) receives one run per round, ``round-1`` ..; the last is the result. ``data``
    and ``overrides`` as in ``train``. With ``resume`` finished rounds are kept and one cut short is continued.

    Errors: ``ValueError`` for a folder without a recipe or of another noise, a field that distillation itself sets, an
    ``out`` in use without ``resume``.
    """
    config = _recipe(Path(model))
    for name in overrides or {}:
        if name in _OURS:
            raise ValueError(f"{name}: distillation sets it itself, round by round; leave it out")
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: at least 1 is needed")
    out = Path(out or Path("runs") / f"{config.recipe}-distilled")
    if out.exists() and not resume:
        raise ValueError(f"out={str(out)!r} exists: continue it with resume, or choose another out")
    if resume and not out.exists():
        raise ValueError(f"nothing to resume: {out} is not there; start without resume")
    teacher, run = Path(model), None
    with parallel.world() as world:
        for number in range(rounds):
            target = out / f"round-{number + 1}"
            last = number == rounds - 1
            if last or not (resume and (target / folder.CONFIG).is_file()):
                loss = LossConfig(teacher=str(teacher), jump=min(1.0, jump * 2**number))
                round_ = replace(config, loss=loss, model=replace(config.model, init=str(teacher)))
                begun = resume and checkpoint.latest(target) is not None
                run = train(round_, data=data, out=target, resume=begun, overrides=overrides)
                world.barrier()  # the next round reads what rank 0 has stored
                if run.stopped:
                    return run
            teacher = target
    assert run is not None
    return run


def _recipe(path: Path) -> Config:
    """The recipe a model was trained by, with the objective of distillation."""
    stored = folder.read_config(path)
    recipe = stored.get("about", {}).get("recipe")
    if not isinstance(recipe, Mapping):
        raise ValueError(f"{path}: its config.json names no recipe; distil a model that redraft trained")
    config = recipes.from_dict(recipe)
    if config.process.name != "uniform":
        raise ValueError(f"{path}: a model of {config.process.name} noise; distillation is defined for uniform noise")
    return replace(config, objective="dcd")
