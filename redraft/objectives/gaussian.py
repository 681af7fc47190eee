"""Named objectives of Gaussian noise on token vectors: CDCD, LangFlow, Diffusion-LM, analog bits; PLAID's is ``vlb``.

They differ in what is asked of the denoiser at a draw of (t, z): the token, by cross-entropy, or the clean vector, by
squared error; and in what else is learned with it, the schedule or the codebook. One draw in eight is made at t = 0,
where the bound has its reconstruction (``Gaussian.times``), so that every one of them reports the bound too.

Self-conditioning (Analog Bits, Chen et al. 2022, arXiv 2208.04202): of a denoiser that is told guesses, a share
``self_condition`` of the rows is asked about twice, and told its first answer the second time; the rest is told zeros.
Which rows, their own generators decide. Other denoisers are asked once, whatever the share.
"""

import torch
from torch import Tensor

from redraft.models.vectors import Said
from redraft.objectives.base import Batch, Loss
from redraft.objectives.vectors import Drawn, Parts, answer, draw, error, measured, over_vectors, total
from redraft.processes import Denoiser, Gaussian, Process
from redraft.processes.base import log_prob_of
from redraft.randomness import Generators
from redraft.schedules import Warped


def cdcd(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    self_condition: float = 0.5,
) -> Loss:
    """CDCD's score interpolation (Dieleman et al. 2022, arXiv 2211.15089): -log p(x0_i | z), weight 1 everywhere.

    The exact p makes x_hat = p @ codebook the posterior mean, and so the score exact. Which noise levels are worth
    learning from is the schedule's choice: ``adaptive`` and ``gumbel`` are fitted to the cross-entropy found here, by
    the term ``schedule`` of the loss, and no other gradient reaches them. A learned codebook must be normalised
    (process.normalise): cross-entropy falls as its rows grow, without end. Not a bound.
    """
    noise = over_vectors("cdcd", process)
    drawn = draw(denoiser, noise, batch["ids"], u, generator, self_condition)
    said = answer(denoiser, noise, batch, drawn)
    found = -log_prob_of(drawn.x0, said.logp)
    parts = {"cross_entropy": found}
    if isinstance(noise.schedule, Warped):
        # it is to be fitted at levels of its own choosing, which those at t = 0 are not
        misfit = drawn.weight.to(found) * noise.schedule.fit(drawn.gamma, found).to(found)
        parts["schedule"] = torch.where(drawn.at_zero, 0.0, misfit)
    return _loss(noise, said, drawn, parts)


def langflow(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    self_condition: float = 0.5,
) -> Loss:
    """LangFlow's cross-entropy (arXiv 2604.11748), which is ``cdcd``: a flow's velocity is its x_hat in other units.

    What makes the preset is data: kind ``vp`` or, for rectified flow, ``rf``, and the ``gumbel`` schedule. Not a bound.
    """
    noise = over_vectors("langflow", process)
    return cdcd(denoiser, noise, batch, u, generator, self_condition=self_condition)


def diffusion_lm(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    target: str = "x0",
    self_condition: float = 0.5,
) -> Loss:
    """Diffusion-LM (Li et al. 2022, arXiv 2205.14217): squared error, rounding and anchor, all of weight 1.

        mean_d (x - x_hat)^2 - log p(x0 | x + exp(gamma_0 / 2) eps) + mean_d (alpha_1 x)^2

    The last two are for a learned codebook: its rows stay apart, for ``Gaussian.rounding`` must tell them under the
    noise of t = 0, and do not grow, for the prior must not see them. alpha_1 is in units of the prior's std, which is 1
    for VP. z is drawn of x, not, as in the paper's code, of a vector noised once before: that adds to the noise at
    every t, and its law would not be the process's own. ``target``: see ``analog_bits``. Not a bound.
    """
    noise = over_vectors("diffusion_lm", process)
    drawn = draw(denoiser, noise, batch["ids"], u, generator, self_condition)
    said = answer(denoiser, noise, batch, drawn)
    squared = _squared_error(noise, said, drawn, target)
    start = noise.gamma(torch.zeros_like(drawn.t))[0].detach()
    near = noise.noised(drawn.x, start, generator) / noise.scales(start)[0][..., None].to(drawn.x)
    alpha, _, std = noise.ends()
    parts = {
        "error": squared,
        "rounding": -log_prob_of(drawn.x0, noise.rounding(near)).to(squared),
        "anchor": ((alpha / std).to(drawn.x) * drawn.x).square().mean(-1).to(squared),
    }
    return _loss(noise, said, drawn, parts)


def analog_bits(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    target: str = "x0",
    self_condition: float = 0.5,
) -> Loss:
    """Analog bits (Chen et al. 2022, arXiv 2208.04202): the squared error of vectors, which are bits by their codebook.

        b(gamma)^-2 mean_d (x - x_hat)^2

    is mean_d (f - f_hat)^2 of what the ``target`` names (``processes.gaussian.PREDICTIONS``: x0, epsilon, v, velocity,
    edm), whichever of them the network predicts (model.head). Not a bound.
    """
    noise = over_vectors("analog_bits", process)
    drawn = draw(denoiser, noise, batch["ids"], u, generator, self_condition)
    said = answer(denoiser, noise, batch, drawn)
    return _loss(noise, said, drawn, {"error": _squared_error(noise, said, drawn, target)})


# ------------------------------------------------------------------------------------------------------------ parts


def _squared_error(process: Gaussian, said: Said, drawn: Drawn, target: str) -> Tensor:
    """mean_d of the squared error in what ``target`` names, (B, L)."""
    weight = process.error_weight(target, drawn.gamma)
    return weight.to(said.x) * error(said, drawn) / process.D


def _loss(process: Gaussian, said: Said, drawn: Drawn, parts: Parts) -> Loss:
    """What is minimised, the sum of ``parts``, and beside it the bound of the same draw."""
    return Loss(total(parts), measured(process, said, drawn), parts)
