"""What of a finished text the model itself doubts: log p of each token given all the others."""

import math

import torch
from torch import Tensor

from redraft.processes import Categorical, Denoiser, PerToken, Process, absorbing
from redraft.processes.base import device_of, log_prob_of, to_convention
from redraft.randomness import Device
from redraft.sampling.contract import clean, over_tokens
from redraft.sampling.cost import Clock, Cost
from redraft.sampling.proposal import top
from redraft.sampling.speak import speak

POSITIONS_AT_ONCE = 4096
"""Rows times length asked about together."""


@torch.no_grad()
def alone(
    process: Process,
    denoiser: Denoiser,
    ids: Tensor,
    among: Tensor,
    *,
    t0: float = 0.01,
    device: Device = None,
) -> tuple[Tensor, Cost]:
    """log p(x_i | x without i), nats, of the tokens ``among`` (L,) bool of a text ``ids`` (L,), nan elsewhere; cost.

    A masked denoiser is trained at masks only: each token is masked in turn, a forward for each, many at a time. Others
    say all of them in one call, which reads the text as noisy at ``t0``: the cavity posterior of z_t0, and so exact as
    t0 goes to 0 only, where networks were not trained.

    Errors: ``ValueError`` for a process of vectors, whose denoisers see the token they judge; for per-token masking,
    whose masks tell of tokens; for a denoiser that does not read what stands on both sides.
    """
    if not over_tokens(process) or isinstance(process, PerToken) or denoiser.facts.attention != "full":
        raise ValueError(
            f"a {process.name} denoiser of {denoiser.facts.attention} attention cannot say how likely a token is given "
            "all others: choose what to redraft by span"
        )
    if not 0 < t0 < 1:
        raise ValueError(f"t0={t0}: read the text as noisy at a time above 0 and below 1")
    device = device_of(denoiser) if device is None else device
    ids, among = ids.to(device), among.to(device)
    cost, out = Cost(of_rows=[0]), torch.full(ids.shape, torch.nan, dtype=torch.float64, device=device)
    if not bool(among.any()):
        return out, cost
    with Clock(cost, "rest"):
        if absorbing(process):
            _masked_in_turn(process, denoiser, ids, among, cost, out)
        else:
            told = {"given": torch.zeros_like(among)[None]} if denoiser.facts.given else None
            t = torch.full((1,), t0, dtype=torch.float64, device=device)
            cost.count(denoiser.facts.forwards, None, len(ids))
            with Clock(cost, "model"):
                logp = clean(denoiser(ids[None], t, told), process)
            logp = to_convention(denoiser, process, logp, ids[None], t)[0]
            out[among] = log_prob_of(ids, logp)[among].double()
    return out, cost


def _masked_in_turn(
    process: Categorical, denoiser: Denoiser, ids: Tensor, among: Tensor, cost: Cost, out: Tensor
) -> None:
    """Put into ``out`` (L,) what is said of each position while it alone is masked."""
    assert process.mask_id is not None
    length = len(ids)
    time = process.schedule.inverse(torch.tensor([1 - 1 / length], dtype=torch.float64)).to(ids.device)
    for at in among.nonzero().squeeze(1).split(max(1, POSITIONS_AT_ONCE // length)):
        where = torch.zeros(len(at), length, dtype=torch.bool, device=ids.device)
        where[torch.arange(len(at)), at] = True
        z = torch.where(where, process.mask_id, ids)
        told = {"given": torch.zeros_like(where)} if denoiser.facts.given else None
        cost.nfe += denoiser.facts.forwards
        cost.positions += denoiser.facts.forwards * z.numel()
        cost.of_rows[0] += denoiser.facts.forwards * len(at)  # what the one text took
        with Clock(cost, "model"):
            logp = clean(speak(denoiser, z, time.expand(len(at)), where, told), process)
        out[at] = log_prob_of(ids[at], logp).double()


def doubted(logp: Tensor, among: Tensor, share: float | None, below: float | None) -> Tensor:
    """The tokens ``among`` (L,) to write again, (L,) bool, by their log p (L,): those of p under ``below``, and of all
    ``among`` at most the ``share`` that is least likely (rounded up; the first of equals).

    To choose a token by what it is does not keep the law: a redraw from p(x_i | x without i) is a Gibbs step, and keeps
    it, where i was chosen without a look at x_i. Here the likely tokens stay, so that texts grow likelier than the
    model's own: redrafting the less likely of two tokens moves a toy law by .175 in total variation.

    Errors: ``ValueError`` for a share or a probability outside [0, 1].
    """
    for name, value in (("doubt", share), ("below", below)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: pass 0, which doubts nothing, to 1")
    eligible = among if below is None else among & (logp < math.log(below) if below else torch.zeros_like(among))
    if share is None:
        return eligible
    count = math.ceil(round(share * int(among.sum()), 9))
    doubt = -logp.nan_to_num(torch.inf, neginf=-1e300)
    return top(doubt[None], eligible[None], torch.tensor([count], device=logp.device))[0]
