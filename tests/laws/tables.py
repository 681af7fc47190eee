"""Random tables for denoisers, and what the estimators of likelihood say of them."""

import torch

from redraft import processes
from redraft.evaluation import estimators, importance
from redraft.processes import Facts
from redraft.processes.d3pm import d3pm

from .exhaust import outcomes
from .oracle import K, L, TableDenoiser, prior_law, sequences
from .prescribed import random_law

TEXTS = sequences(K)
U = torch.full((1,), 0.7, dtype=torch.float64)  # idle in most of what is tested here
SMALL = {
    "masked": lambda: processes.masked(K, steps=2),
    "uniform": lambda: processes.uniform(2, schedule="cosine", steps=2),
    "hybrid": lambda: processes.hybrid(2, steps=2),
    "d3pm_gaussian": lambda: d3pm(2, "gaussian", 2, [0.4, 0.5]),
}


class Table(TableDenoiser):
    """A random law at every position of every state, which may lean on the time, and knows nothing."""

    def __init__(self, process, length=L, timed=False, **facts):
        super().__init__(random_law(process.V**length, length, process.K).double(), process.V)
        self.facts = Facts(mask_id=process.mask_id, time_conditioned=timed, **facts)

    def __call__(self, z, t=None, cond=None):
        said = super().__call__(z)
        return ((1 + t.view(-1, 1, 1)) * said).log_softmax(-1) if self.facts.time_conditioned else said


def rows_of(texts, valid=None):
    return {"ids": texts} if valid is None else {"ids": texts, "valid": valid.expand_as(texts)}


def found(name, denoiser, process, batch, seed=0, **options):
    """What an estimator says of each row's tokens that count, in all, (B,)."""
    how = estimators.get(name, denoiser, process, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        values = how.score(denoiser, process, batch, U.expand(len(batch["ids"])), generator)
    return (values * batch.get("valid", torch.ones_like(batch["ids"], dtype=torch.bool))).sum(1)


def assert_close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


class Recalls:
    """Says a law that depends on the sum of the clean tokens it sees, and on how many masks there are."""

    def __init__(self, mask_id, attention="full", size=5):
        logits = torch.randn(size, 8, size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        self.logp, self.size = logits.log_softmax(-1), size
        self.facts = Facts(mask_id=mask_id, attention=attention)

    def __call__(self, z, t, cond=None):
        if self.facts.attention == "causal":
            before = z.cumsum(1) - z
            return self.logp[before % self.size, torch.arange(z.shape[1])]
        hidden = z == self.facts.mask_id
        total = torch.where(hidden, 0, z).sum(1) % self.size
        return self.logp[total, hidden.sum(1)][:, None].expand(-1, z.shape[1], -1)


def start(process, length):
    """The law that sampling begins with: all masks, or uniform tokens; over the V ** length states."""
    if process.mask_id is None:  # D3PM's chains need not have forgotten all at t = 1
        return torch.full((process.V**length,), process.V**-length, dtype=torch.float64)
    return prior_law(process, length)


def pairs(process, steps, texts, valid=None):
    """log w of every chain of each text and its probability: (chains, texts) each, through the code."""
    denoiser, batch = Table(process, timed=True), rows_of(texts, valid)

    def run():
        return importance.log_weight(denoiser, process, batch, steps, None)

    every = list(outcomes(run, len(texts)))
    return torch.stack([value for value, _ in every]), torch.stack([weight for _, weight in every])
