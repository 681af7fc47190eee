"""D3PM's loss in discrete time: one step's share of the bound, and a cross-entropy beside it."""

from torch import Tensor

from redraft.objectives.base import Batch, Loss, corrupt, evaluate, log_full_of
from redraft.processes import Denoiser, Process
from redraft.randomness import Generators

AUXILIARY = 0.01
"""D3PM's lambda for text and masks; with uniform noise the cross-entropy made its models worse."""


def d3pm(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators = None,
    *,
    auxiliary: float | None = None,
) -> Loss:
    """L_vb + lambda CE (D3PM, Austin et al. 2021, arXiv 2107.03006, eq. 5), nats per token.

    L_vb is the KL of the drawn step, the bound over T, as in the paper; the bound is that of all T steps, T L_vb. CE is
    -log p(x0 | all of z): it acts on the full posterior, for on the cavity output it would pull to another law. Its
    weight ``auxiliary`` is 0.01 where there is a mask and 0 elsewhere, unless given; then the value is no bound.

    Errors: ``ValueError`` for a process in continuous time.
    """
    steps = getattr(process, "steps", None)
    if steps is None:
        raise ValueError(f"objective 'd3pm' with a {process.name} process in continuous time: set process.steps")
    if auxiliary is None:
        auxiliary = 0.0 if process.mask_id is None else AUXILIARY
    return with_cross_entropy(denoiser, process, batch, u, generator, auxiliary, steps)


def with_cross_entropy(
    denoiser: Denoiser,
    process: Process,
    batch: Batch,
    u: Tensor,
    generator: Generators,
    auxiliary: float,
    steps: int = 1,
) -> Loss:
    """The bound of one draw over ``steps``, plus ``auxiliary`` times -log p(x0 | z) of noised positions."""

    def terms(logp: Tensor, x0: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        nelbo = process.nelbo(logp, x0, z, t)
        if not auxiliary:
            return (nelbo,)
        return nelbo, -log_full_of(process, x0, logp, z, t)

    z, t, weight = corrupt(process, batch["ids"], u, generator)
    nelbo, *rest = evaluate(denoiser, process, batch, z, t, terms)
    bound = weight.to(nelbo) * nelbo + process.prior_kl(batch["ids"]).to(nelbo)
    value = bound / steps + sum(auxiliary * one for one in rest)
    return Loss(value, bound.detach())
