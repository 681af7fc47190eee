"""A denoiser told that some positions are clean: they stand without noise, at a time of their own, 0.

Mask-conditioned infilling (CDCD, Dieleman et al. 2022; ELF; SSD-LM): a model trained so learns p(free | given) for any
noise that hides no token behind a mask. Sampling and training (``objectives.given``) both ask through this.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from redraft.processes import Denoiser, Facts, Gaussian, Process
from redraft.processes.base import forwards_at, per_position


class Told:
    """``denoiser``, shown the tokens ``ids`` (B, L) clean where ``given`` (B, L) is set, whatever stands there in z.

    There t is 0, and so is what a schedule that is told as ``gamma`` says; all else is passed on. The denoiser must
    take a time per token, (B, L).
    """

    def __init__(self, denoiser: Denoiser, process: Process, ids: Tensor, given: Tensor) -> None:
        self.denoiser, self.process, self.ids, self.given = denoiser, process, ids, given

    @property
    def facts(self) -> Facts:
        return self.denoiser.facts

    def rows(self, chosen: Tensor) -> "Told":
        """What stands for the rows of these numbers alone."""
        return Told(self.denoiser, self.process, self.ids[chosen], self.given[chosen])

    def forwards_at(self, t: Tensor) -> int:
        return forwards_at(self.denoiser, t)

    def __call__(self, z: Tensor, t: Tensor, cond: Any = None, **asked: Any) -> Tensor:
        times = torch.where(self.given, 0.0, per_position(t))
        if not isinstance(self.process, Gaussian):
            return self.denoiser(torch.where(self.given, self.ids, z), times, cond, **asked)
        start = torch.zeros_like(t)
        x = unnoised(self.process, self.ids, start).to(z)
        known = cond if isinstance(cond, Mapping) else {}
        if "detached" in known:
            x = torch.where(known["detached"][:, None, None], x.detach(), x)
        if "gamma" in known:
            least = self.process.gamma(start)[0].detach().to(known["gamma"])
            cond = {**known, "gamma": torch.where(self.given, least, known["gamma"])}
        return self.denoiser(torch.where(self.given[..., None], x, z), times, cond, **asked)


def unnoised(process: Gaussian, ids: Tensor, t: Tensor) -> Tensor:
    """alpha_t x: the vectors of tokens at t without their noise, (B, L, D) in the codebook's dtype.

    A learned codebook is followed by gradients, a learned schedule is not.
    """
    x = process.codebook[ids]
    return process.scales(process.gamma(t)[0].detach())[0][..., None].to(x) * x
