"""Revisions: what a rule's step may do, beside writing masks, about the tokens that were written before it.

A revision is joined to a rule by a plus, ``"threshold:tau=0.5+edit:tau=0.9"``. It reads the law of written positions in
the same call that the rule asks about masks in, so that it costs no call while masks are left. A model must have learnt
what to say of a written token: one trained on masks alone says anything there.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.processes.base import log_prob_of
from redraft.sampling.contract import Draw
from redraft.sampling.proposal import Proposal, floored, top


def _written(z: Tensor, draw: Draw, mask_id: int) -> Tensor:
    """What is neither a mask nor given, of rows that are not done, (B, L) bool."""
    written = (z != mask_id) & ~draw.frozen
    return written & ~draw.memory["done"][:, None] if "done" in draw.memory else written


def _open(z: Tensor, proposal: Proposal) -> Tensor:
    """Which rows of z have masks to write, (B,) bool."""
    return ((z == proposal.process.mask_id) & ~proposal.draw.frozen).any(1)


def _known(memory: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """What is remembered by this name, zeros of the shape of ``like`` at first."""
    return memory[name] if name in memory else torch.zeros_like(like, dtype=torch.long)


def _check_extra(extra: int, revision: str) -> None:
    if extra < 0:
        raise ValueError(f"extra={extra} of {revision}: pass a number of steps from 0")


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Overwrite written tokens of which the model now thinks another likelier: token-to-token editing (LLaDA2.1,
    arXiv 2602.08676).

        x_i <- argmax_v p_i(v)   where that is another token than x_i, and its p_i > tau

    Every position is looked at in every step, all of them by what stood there before it; those written in the step
    are not edited in it. ``tau`` of 0 always edits, of 1 or more never, at the rule's own cost: to edit nothing, leave
    the revision out. Once a row has no masks it is edited on until a look at it changes nothing, or ``extra`` times; so
    a row takes at most a call for each mask and ``extra`` more. ``steps``, if given, are all there are.

    Under a constraint, what is to be edited is written again together, by the likeliest tokens that keep the text
    possible.

    Errors: ``ValueError`` for a tau or an ``extra`` below 0.
    """

    tau: float = 0.9
    extra: int = 16

    def __post_init__(self) -> None:
        if not self.tau >= 0:
            raise ValueError(
                f"tau={self.tau} of edit: pass a probability, 0 to edit always; without it, leave edit out"
            )
        _check_extra(self.extra, "edit")

    def reads(self, z: Tensor, draw: Draw, mask_id: int) -> Tensor:
        return torch.zeros_like(draw.frozen) if self.tau >= 1 else _written(z, draw, mask_id)

    def __call__(self, proposal: Proposal, z: Tensor, chosen: Tensor) -> Tensor:
        before, memory = proposal.z, proposal.draw.memory
        read = proposal.asked & (before != proposal.process.mask_id)
        logp = proposal.logp[read[proposal.asked]]
        best, token = logp.max(-1)
        edited = torch.zeros_like(read)
        edited[read] = (token != before[read]) & (best.exp() > self.tau)
        if bool(edited.any()):
            z = self._edited(proposal, z, edited, logp[edited[read]], token[edited[read]])
        idle = ~_open(before, proposal)
        looks = _known(memory, "looks", idle) + idle
        memory["looks"] = looks
        settled = (looks >= self.extra) | (idle & ~edited.any(1)) | (self.tau >= 1)
        memory["done"] = ~_open(z, proposal) & settled
        return z

    @staticmethod
    def _edited(proposal: Proposal, z: Tensor, edited: Tensor, logp: Tensor, token: Tensor) -> Tensor:
        """z with the positions ``edited`` (B, L) overwritten by ``token`` (n,), of whose laws log p is (n, K)."""
        draw, mask_id = proposal.draw, proposal.process.mask_id
        assert mask_id is not None
        if draw.constraint is not None:
            hidden = z.masked_fill(edited, mask_id)
            token, logp = draw.constraint.propose(hidden, edited, logp, replace(draw, temperature=0.0))
        z = z.clone()
        z[edited] = token
        draw.note(edited, log_prob_of(token, logp))
        return z


WHEN = ("now", "written")


@dataclass(frozen=True, kw_only=True)
class Remask:
    """Take back the written tokens that the model is least sure of, to be written again: low-confidence re-masking.

    After the step from t to s wrote its tokens, of those that stood before it and whose p is below ``tau``

        floor(share s n),  n how many were written,

    of the lowest p are masked again, each position at most ``times`` times. ``when``: p is that of the token under the
    law at this step (``now``), or what it was when it was written (``written``), which a model that never learnt to
    doubt a written token can say too, and which costs nothing. What is taken back falls to nothing as s does, and the
    rule writes faster to make up for it, so that the last step leaves no mask. Unless ``steps`` are given, there are
    ``extra`` beside one for each mask. A row is done when it has no masks and no more is taken back.

    ReMDM (``remdm``) takes tokens back by chance instead, at a rate that keeps the law of the canvas; this keeps none.

    Errors: ``ValueError`` for a share outside [0, 1], another ``when``, a tau below 0, fewer than one of ``times``, an
    ``extra`` below 0.
    """

    share: float = 0.1
    tau: float = 1.0
    when: str = "now"
    times: int = 1
    extra: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} of remask is outside [0, 1]")
        if not self.tau >= 0 or self.times < 1:
            raise ValueError(f"tau={self.tau}, times={self.times} of remask: need tau >= 0, times >= 1")
        if self.when not in WHEN:
            raise unknown("time of remask's probability", self.when, WHEN)
        _check_extra(self.extra, "remask")

    def reads(self, z: Tensor, draw: Draw, mask_id: int) -> Tensor:
        if self.share == 0 or self.when == "written":
            return torch.zeros_like(draw.frozen)
        written = _written(z, draw, mask_id)
        return written & (draw.memory["taken"] < self.times) if "taken" in draw.memory else written

    def __call__(self, proposal: Proposal, z: Tensor, chosen: Tensor) -> Tensor:
        draw, before, memory = proposal.draw, proposal.z, proposal.draw.memory
        mask_id = proposal.process.mask_id
        assert mask_id is not None
        taken = _known(memory, "taken", z)
        written = _written(before, draw, mask_id)
        logp = self._sureness(proposal, written)
        count = floored(self.share * proposal.s * written.sum(1))
        among = written & (taken < self.times) & (logp.exp() < self.tau)
        back = top(-logp, among, count)
        memory["taken"] = taken + back
        z = torch.where(back, mask_id, z)
        last = 2 * proposal.s - proposal.t < 1e-9  # the next step takes nothing back: s is 0 there
        idle = ~_open(before, proposal) & ~back.any(1)
        memory["done"] = ~_open(z, proposal) & (idle | last | (self.share == 0))
        return z

    def _sureness(self, proposal: Proposal, written: Tensor) -> Tensor:
        """log p of the tokens that stood before the step, (B, L); 0 where none is known."""
        if self.when == "written":
            return proposal.draw.memory["logp"].nan_to_num(0.0, neginf=-torch.inf)
        out = torch.zeros(written.shape, dtype=proposal.logp.dtype, device=written.device)
        read = written & proposal.asked
        out[read] = log_prob_of(proposal.z[read], proposal.logp[read[proposal.asked]])
        return out
