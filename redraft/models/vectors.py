"""Vectors and networks: how a transformer reads noisy ones, and what any denoiser, when asked, says of the clean ones.

Shapes: B batch, L length, K tokens, D codebook width.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from redraft.processes import Denoiser, Gaussian

Reads = Literal["mixture", "vectors"]


@dataclass(frozen=True)
class Said:
    """What a denoiser says of noisy vectors: clean ones, ``x`` (B, L, D), and ``logp`` (B, L, K) of tokens.

    ``named`` is log p of one that names tokens; of one that says vectors it is None, and x is rounded when read.
    """

    x: Tensor
    named: Tensor | None
    process: Gaussian | None

    @cached_property
    def logp(self) -> Tensor:
        if self.named is not None:
            return self.named
        assert self.process is not None
        return self.process.rounding(self.x)


def ask(denoiser: Denoiser, process: Gaussian | None, z: Tensor, t: Tensor, cond: Any) -> Said:
    """One call of the denoiser; what it does not say itself follows: x = p @ codebook, or p by rounding x.

    ``process`` holds the codebook; clean vectors alone, of a denoiser that says vectors, need none.
    """
    if denoiser.facts.vectors:
        return Said(denoiser(z, t, cond, **{"vectors": True}), None, process)
    assert process is not None
    logp = denoiser(z, t, cond)
    return Said(process.mean(logp.exp()), logp, process)


class VectorInput(nn.Module):
    """From noisy vectors z (B, L, D), and a guess at the clean ones, to the model's width E.

    ``mixture``: the mixture of token embeddings that q(z_i | token) suggests. That likelihood is all z_i says about its
    token, and it knows gamma; it costs as much as an output layer. ``vectors``: a linear map of z, scaled to variance 1
    (EDM's c_in); the network must then be told the time.

    ``guesses``: self-conditioning (Analog Bits, Chen et al. 2022): what was said of x before is added, by a map that
    starts at zero.
    """

    def __init__(self, dim: int, width: int, reads: Reads, guesses: bool) -> None:
        super().__init__()
        self.project = nn.Linear(dim, width, bias=False) if reads == "vectors" else None
        self.guess = nn.Linear(dim, width, bias=False) if guesses else None

    def zero_guess(self) -> None:
        if self.guess is not None:
            nn.init.zeros_(self.guess.weight)

    def forward(
        self,
        z: Tensor,
        gamma: Tensor,
        process: Gaussian,
        table: Tensor | None,
        evidence: Tensor | None,
        guess: Tensor | None,
    ) -> Tensor:
        """(B, L, E). ``table`` (K, E) are the embeddings of tokens, which a mixture needs; ``evidence`` is
        ``process.evidence`` of z at gamma, if it is known already."""
        if self.project is None:
            assert table is not None
            evidence = process.evidence(z, gamma) if evidence is None else evidence
            x = torch.softmax(evidence, dim=-1).to(table) @ table
        else:
            x = self.project((process.input_scale(gamma)[..., None].to(z) * z).to(self.project.weight))
        if self.guess is not None and guess is not None:
            x = x + self.guess((guess * process.power**-0.5).to(self.guess.weight))
        return x
