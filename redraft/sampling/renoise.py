"""DiffusionGemma's rule for uniform noise: keep what is sure, and put fresh noise everywhere else, at every step."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from redraft.processes import Categorical, Process
from redraft.processes.base import log_prob_of
from redraft.sampling.contract import Draw, Query, misfit, revising, tempered
from redraft.sampling.proposal import bounded


@runtime_checkable
class Recalling(Protocol):
    """What ``sample`` gives a sampler for a denoiser: one that conditions on itself can be told what was thought."""

    def recall(self, law: Tensor, where: Tensor, /) -> None: ...


@revising
def renoise(
    process: Process,
    denoiser: Query,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    draw: Draw,
    *,
    hot: float = 0.8,
    cold: float = 0.4,
    gamma: float = 0.1,
    stable: int = 1,
    sure: float = 0.005,
) -> Tensor:
    """Draw every token anew, keep the surest, renoise the rest (DiffusionGemma's decoding).

    At t the temperature is T = cold + (hot - cold) t, and p_i^(1/T) / Z of the full posterior p_i = p(x_i | all of z),
    which the request's temperature and cuts sharpen further, is the law that all goes by. A token is drawn from it at
    every free position. Those of lowest entropy H_i, in nats, are kept: the most of them whose H_i but for the largest
    sum to at most ``gamma``, one at least. No position stays kept: the others take uniform noise, and at the next step
    all are drawn again. A denoiser that conditions on itself is told the law of the step before.

    A row is done when the likeliest tokens are those of the ``stable`` steps before, and its mean H_i is below
    ``sure``. What it returns then, and at the last step, is the likeliest tokens, not those drawn. Exact for no law:
    with an infinite gamma and a temperature of 1 a step is a draw from the product of the posteriors.

    Errors: ``ValueError`` for a process other than uniform noise over tokens, a hot or cold not above 0, a negative
    gamma or ``sure``, and fewer than one ``stable`` step.
    """
    if not isinstance(process, Categorical) or process.mask_id is not None:
        raise misfit("renoise", process, "uniform noise, in which any token may be wrong")
    if not (hot > 0 and cold > 0 and gamma >= 0 and sure >= 0 and stable >= 1):
        raise ValueError(
            f"hot={hot}, cold={cold}, gamma={gamma}, sure={sure}, stable={stable} of renoise: "
            "pass hot and cold above 0, gamma and sure from 0, stable from 1"
        )
    memory, free = draw.memory, ~draw.frozen
    done = memory["done"] if "done" in memory else ~free.any(1)
    where = free & ~done[:, None]
    row = where.nonzero()[:, 0]
    logp = process.to_full(denoiser(z, t, where)[:, None], z[where][:, None], t[row])[:, 0]
    p = _law(logp, cold + (hot - cold) * t[row], draw)
    entropy = torch.zeros(z.shape, dtype=torch.float64, device=z.device)
    entropy[where] = torch.special.entr(p).sum(-1)
    after = process.prior((z.shape[0], z.shape[1]), draw.generator, z.device)
    kept = bounded(entropy, where, gamma)
    drawn = z.clone()
    drawn[where] = draw.tokens_at(p, where)
    after = torch.where(kept, drawn, after)
    best = z.clone()
    best[where] = logp.argmax(-1)
    same = torch.zeros_like(t, dtype=torch.long)
    if "best" in memory:
        same = torch.where((memory["best"] == best).all(1), memory["same"] + 1, 0)
    memory["best"], memory["same"] = best, same
    mean = entropy.sum(1) / where.sum(1).clamp_min(1)
    memory["done"] = done | ((same >= stable) & (mean < sure))
    if isinstance(denoiser, Recalling):
        denoiser.recall(p, where)
    draw.note(where, log_prob_of(best[where], logp))  # of the likeliest tokens, which are what is returned
    return torch.where(((s == 0) | memory["done"])[:, None], best, after)


def _law(logp: Tensor, temperature: Tensor, draw: Draw) -> Tensor:
    """p^(1/temperature) (n, K), float64, each position at its own; then as the request draws."""
    heated = torch.log_softmax(logp.double() / temperature[:, None], -1)
    return tempered(heated, draw.temperature, draw.top_p, draw.top_k)
