"""Discrete consistency distillation: a student learns to say at t what its teacher says a jump earlier."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from redraft.models import Transformer, folder
from redraft.objectives.base import Batch, Loss, bound, condition, log_probs
from redraft.objectives.uniform import continuous_uniform
from redraft.processes import Denoiser, Process, duality
from redraft.processes.base import per_position, to_convention
from redraft.processes.categorical import T_EDGE
from redraft.processes.fused import kl
from redraft.randomness import Generators


def dcd(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    teacher: str | Denoiser | None = None,
    jump: float = 1 / 512,
) -> Loss:
    """Discrete consistency distillation (Duo, Sahoo et al. 2025, arXiv 2506.10892):

        KL( p(. | z_t, t) || teacher(. | z_s, s) ),    s = t - jump, or 1e-5,    no gradient into the teacher

    where z_t and z_s come from one Gaussian draw (``duality.coupled``), so that z_s is a point of the path that ends in
    z_t. t is uniform, not shifted upwards by the jump as the authors' code has it, so that z_t is also a draw of the
    NELBO, which is reported. ``teacher``: a model's folder, or a denoiser of the same vocabulary.

    Errors: ``ValueError`` without a teacher, for one of another vocabulary, for other than continuous uniform noise.
    """
    process = continuous_uniform("dcd", process)
    x0 = batch["ids"]
    guide = teacher if isinstance(teacher, Denoiser) else _load(teacher, process.K, x0.device)
    t, weight = process.times(u.to(x0.device))
    s = (t - jump).clamp_min(T_EDGE)
    z, earlier = duality.coupled(process, x0, (t, s), generator)
    logp = log_probs(denoiser, process, batch, z, t)
    with torch.no_grad():
        said = guide(earlier, s, condition(batch))
        target = to_convention(guide, process, said, earlier, s)
    return Loss(kl(logp, target), bound(process, logp.detach(), x0, z, t, per_position(weight)))


def _load(teacher: str | None, K: int, device: torch.device) -> Denoiser:
    if teacher is None:
        raise ValueError("objective 'dcd' needs a teacher: set loss.teacher to the folder of a trained model")
    config = Path(teacher) / folder.CONFIG
    loaded = _cached(teacher, config.stat().st_mtime_ns if config.is_file() else 0, device)
    if loaded.config.process["name"] != "uniform" or loaded.config.process["K"] != K:
        raise ValueError(f"loss.teacher={teacher}: a model of {loaded.config.process}; it must be of uniform({K})")
    return loaded


@lru_cache(maxsize=1)
def _cached(teacher: str, _written: int, device: torch.device) -> Transformer:
    """The teacher, read once; again if its folder was written since."""
    return folder.load(teacher, device)[0].requires_grad_(False)
