"""Token-Critic: a second network says which tokens of a finished draft look written by the first; those go.

Shapes: B batch, L length, E model width.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.models.layers import (
    TIME_FEATURES,
    Block,
    Reading,
    norm,
    placed,
    preserve_variance,
    time_features,
    widths,
)
from redraft.processes import Categorical, Denoiser, Process, absorbing
from redraft.processes.base import per_position
from redraft.randomness import categorical, generator, rand, row_generators
from redraft.sampling.contract import Draw, Query, Sampler, clean, misfit, proposing, revising
from redraft.sampling.proposal import floored, masks, propose, top

Judge = Callable[[Tensor, Tensor], Tensor]
"""``(ids, t) -> (B, L)``: the log-odds that each token of a finished draft is real, not written by the generator."""


@runtime_checkable
class Judging(Protocol):
    """What ``sample`` gives a sampler for a denoiser: it asks another network too, and counts it."""

    def judge(self, network: Judge, z: Tensor, t: Tensor, where: Tensor, /) -> Tensor: ...


def critic(network: Judge, *, noise: float = 1.0) -> Sampler:
    """A sampler that fills every mask and keeps what a critic takes for real (Lezama et al. 2022, arXiv 2209.04439).

    In the step from t to s the generator draws a token for every mask. Of all n free positions, those written long ago
    too, floor((1 - alpha_s) n) are masked again: those of lowest

        p(real) + noise s u,    p(real) = sigmoid(network(ids, t)),  u ~ U(0, 1)

    so that choices are bold early and by merit at the end. Given tokens stay. ``network``: ``train_critic`` makes one;
    any function will do, such as log p of each token by the generator itself, asked with that token masked.

    Two forwards a step, one of the last, which keeps all; both count in ``nfe``. While blocks are written the network
    reads the text up to the block's end. Exact for no law.

    Errors: ``ValueError`` for a negative noise, and, at its first step, for a process other than masked.
    """
    if noise < 0:
        raise ValueError(f"noise={noise} of critic: pass 0, which chooses by merit alone, or more")

    @revising
    @proposing
    def criticised(process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
        open_, free = masks("critic", process, z, draw), ~draw.frozen
        proposal = propose(process, denoiser, z, t, s, draw, open_)
        filled, mask_id = proposal.write(open_), proposal.process.mask_id
        assert mask_id is not None
        hidden = 1 - proposal.process.schedule(s)[0]
        count = torch.where(s == 0, 0, floored(hidden * free.sum(1)))
        where = free & (count > 0)[:, None]
        by_sample = isinstance(denoiser, Judging)
        said = denoiser.judge(network, filled, t, where) if by_sample else network(filled, t)[where]
        score = noise * per_position(s) * rand(z.shape, draw.generator, z.device)
        score[where] += torch.sigmoid(said.double())
        kept = top(score, where, where.sum(1) - count)
        return filled.masked_fill(where & ~kept, mask_id)

    return criticised


class TokenCritic(nn.Module):
    """``(ids, t) -> (B, L)``: the log-odds that each token is real; t (B,) is the time that the draft was filled at.

    A transformer of ``depth`` blocks that is told the time. A fresh one takes all tokens for as likely real as not.
    """

    def __init__(self, K: int, depth: int = 1) -> None:
        super().__init__()
        sizes = widths(depth)
        self.embed = nn.Embedding(K, sizes.width)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, sizes.width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(sizes, time_conditioned=True, layer=layer) for layer in range(depth))
        self.head = nn.Linear(sizes.width, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                preserve_variance(module)
        for module in self.modules():
            if isinstance(module, Block):
                module.zero_branches()
        nn.init.zeros_(self.head.weight)

    def forward(self, ids: Tensor, t: Tensor) -> Tensor:
        x, rotary = placed(self.embed(ids), torch.arange(ids.shape[1], device=ids.device))
        code = self.time(time_features(per_position(t)).to(x))
        reading = Reading(rotary, attend=None, causal=False, cache=None, store=False)
        for block in self.blocks:
            x = block(x, reading, code)
        return self.head(norm(x))[..., 0]


def train_critic(
    denoiser: Denoiser,
    process: Process,
    ids: Tensor,
    *,
    steps: int = 500,
    batch: int = 128,
    lr: float = 3e-3,
    depth: int = 1,
    seed: int = 0,
) -> TokenCritic:
    """Train a ``TokenCritic`` on rows ``ids`` (N, L): masked to t ~ U(0, 1), filled by ``denoiser``, which stays as is.

    Binary cross-entropy of which tokens the denoiser wrote, whether or not it wrote what had stood there, by AdamW with
    a rate that falls linearly to 0. What a row becomes depends on (seed, step, its index).

    Errors: ``ValueError`` for a process other than masked, ids that are not (N, L), fewer than one step or row.
    """
    if not absorbing(process):
        raise misfit("critic", process, "a process that has fixed masks")
    if steps < 1 or batch < 1 or ids.ndim != 2:
        raise ValueError(f"steps={steps}, batch={batch}, ids {tuple(ids.shape)}: pass one at least, and rows (N, L)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TokenCritic(process.V, depth).to(ids.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        rows = torch.randint(len(ids), (batch,), generator=generator(seed, step))
        draws = row_generators(seed, step, rows=rows.tolist())
        draft, real, t = drafted(denoiser, process, ids[rows.to(ids.device)], draws)
        loss = F.binary_cross_entropy_with_logits(network(draft, t), real)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    return network.eval().requires_grad_(False)


@torch.no_grad()
def drafted(
    denoiser: Denoiser, process: Categorical, ids: Tensor, draws: list[torch.Generator]
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows masked to a time of their own and filled in again: the drafts (B, L), 1.0 where they are real, t (B,)."""
    t = rand((len(ids), 1), draws, ids.device)[:, 0]
    z = process.corrupt(ids, t, draws)
    made = categorical(clean(denoiser(z, t), process).exp(), draws)
    hidden = z == process.mask_id
    return torch.where(hidden, made, z), (~hidden).float(), t
