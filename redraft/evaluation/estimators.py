"""Unbiased draws of the bound, and which of them a denoiser allows."""

from collections.abc import Callable

import torch
from torch import Tensor

from redraft import objectives
from redraft.objectives import Batch
from redraft.processes import Denoiser, Process, absorbing
from redraft.randomness import Generators, rand

Score = Callable[[Denoiser, Process, Batch, Tensor, Generators], Tensor]
"""(denoiser, process, batch, u, generator) -> one unbiased draw of the bound, nats per token, (B, L)."""


def exact(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """-log p(x_i | x_<i) of a causal denoiser."""
    return objectives.autoregressive(denoiser, process, batch, u, generator).bound


def over_times(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """The continuous-time NELBO at the time u stands for."""
    return objectives.nelbo(denoiser, process, batch, u, generator).bound


def over_counts(denoiser: Denoiser, process: Process, batch: Batch, u: Tensor, generator: Generators) -> Tensor:
    """(n / k) times the cross-entropy of k masked tokens, a uniformly random subset of the row's n valid ones."""
    ids = batch["ids"]
    valid = objectives.valid(batch)
    n = valid.sum(1)
    k = 1 + (u.to(ids.device) * n).floor().long().clamp_max(n - 1)
    rank = rand(ids.shape, generator, ids.device).masked_fill(~valid, 2.0).argsort(1).argsort(1)
    masked = rank < k[:, None]
    assert process.mask_id is not None
    z = torch.where(masked, process.mask_id, ids)
    # this denoiser does not read t; the share of masks is what it would be told
    return objectives.masked_cross_entropy(denoiser, batch, z, k / n, masked) * (n / k)[:, None]


ESTIMATORS: dict[Score, str] = {
    exact: "chain rule, exact",
    over_times: "continuous-time NELBO, stratified t",
    over_counts: "NELBO, k of n tokens masked, stratified k",
}


def choose(denoiser: Denoiser, process: Process) -> Score:
    """The estimator of least variance that this denoiser and process allow."""
    if denoiser.facts.attention == "causal":
        return exact
    return over_counts if absorbing(process) and not denoiser.facts.time_conditioned else over_times
