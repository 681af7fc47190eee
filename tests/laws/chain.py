"""The oracle of the Gaussian laws: tokens that form a Markov chain, whose posteriors under any noise are exact.

V = 13 tokens, L = 6 positions, codebook rows on the unit sphere of R^5. Forward-backward with the emissions
q(z_i | token) gives every posterior marginal in O(L V^2); nothing is enumerated and nothing is sampled.
"""

import torch
from torch import Tensor

from redraft import processes
from redraft.processes import Facts, Gaussian
from redraft.schedules import GammaSchedule

V, L, D = 13, 6, 5


def sphere(size: int = V, dim: int = D, seed: int = 0) -> Tensor:
    """Rows of norm 1, (size, dim) float64."""
    codes = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return codes / codes.norm(dim=-1, keepdim=True)


def noise(kind: str = "vp", gamma_min: float = -4.0, gamma_max: float = 6.0, size: int = V, dim: int = D) -> Gaussian:
    return processes.gaussian(sphere(size, dim), kind, GammaSchedule("linear_gamma", gamma_min, gamma_max))


class Chain:
    """P(w) = first(w_1) step(w_1, w_2) .. : a law of sequences of ``length`` tokens out of ``size``."""

    def __init__(self, size: int = V, length: int = L, seed: int = 0, sharpness: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(size + 1, size, generator=generator, dtype=torch.float64)
        logits = (sharpness * draw).log_softmax(-1)
        self.size, self.length = size, length
        self.log_first, self.log_step = logits[0], logits[1:]

    def _messages(self, emission: Tensor) -> tuple[Tensor, Tensor]:
        """Forward and backward log-messages, (B, L, V) each; forward ones hold the emission of their own position."""
        forward, backward = [self.log_first + emission[:, 0]], [torch.zeros_like(emission[:, 0])]
        for i in range(1, emission.shape[1]):
            forward.append(torch.logsumexp(forward[-1][:, :, None] + self.log_step, 1) + emission[:, i])
            seen = emission[:, -i] + backward[-1]
            backward.append(torch.logsumexp(self.log_step + seen[:, None, :], 2))
        return torch.stack(forward, 1), torch.stack(backward[::-1], 1)

    def log_posterior(self, emission: Tensor) -> Tensor:
        """log P(w_i = v | z), (B, L, V), from log q(z_i | v) up to a constant per position; differentiable."""
        forward, backward = self._messages(emission)
        return (forward + backward).log_softmax(-1)

    def log_evidence(self, emission: Tensor) -> Tensor:
        """log sum_w P(w) prod_i exp(emission_i(w_i)), (B,)."""
        return torch.logsumexp(self._messages(emission)[0][:, -1], -1)

    def log_prob(self, ids: Tensor) -> Tensor:
        """log P(w) of (B, L) ids, (B,)."""
        return self.log_first[ids[:, 0]] + self.log_step[ids[:, :-1], ids[:, 1:]].sum(1)

    def sample(self, rows: int, seed: int = 0) -> Tensor:
        """(rows, L) ids drawn from P."""
        generator = torch.Generator().manual_seed(seed)
        ids = [torch.multinomial(self.log_first.exp(), rows, replacement=True, generator=generator)]
        for _ in range(self.length - 1):
            ids.append(torch.multinomial(self.log_step[ids[-1]].exp(), 1, generator=generator)[:, 0])
        return torch.stack(ids, 1)

    def unigrams(self) -> Tensor:
        """P(w_i = v), (L, V)."""
        rows = [self.log_first.exp()]
        for _ in range(self.length - 1):
            rows.append(rows[-1] @ self.log_step.exp())
        return torch.stack(rows)

    def bigrams(self) -> Tensor:
        """P(w_i = u, w_{i+1} = v), (L - 1, V, V)."""
        return self.unigrams()[:-1, :, None] * self.log_step.exp()

    def entropy(self) -> float:
        """H(w) in nats per sequence."""
        first = self.log_first.exp() @ self.log_first
        return -(first + (self.bigrams() * self.log_step).sum()).item()


class ExactChain:
    """The exact denoiser of a chain: (z, t, cond=None) -> log p(w_i | z), (B, L, V); t (B,) or (B, L)."""

    facts = Facts(posterior="full", time_conditioned=True)

    def __init__(self, process: Gaussian, chain: Chain) -> None:
        self.process, self.chain, self.calls = process, chain, 0

    def __call__(self, z: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.calls += 1
        return self.chain.log_posterior(self.process.output_prior(z, t))
