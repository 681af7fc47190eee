"""The oracle: a toy law small enough to enumerate, the exact denoisers of any process on it, and exact propagation.

Every expectation is a finite sum over the toy's sequences and noisy states, every time integral a Gauss-Legendre
quadrature, everything float64: the laws tested with this module have no sampling error. A process enters only through
its public primitives (``marginal``, ``posterior``, ``nelbo``), so a process that is wrong cannot make its oracle wrong
in the same way unless ``marginal`` itself is, and ``test_processes`` compares that with closed forms.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redraft.processes import Categorical, Facts

LAW = torch.tensor([[6, 1, 3], [2, 5, 1], [1, 4, 9]], dtype=torch.float64) / 32
K, L = 3, 2
H = 1.940734  # entropy of LAW in nats, as given by the reference
INFORMATION = 0.21719454636877  # I(X1; X2) in nats
DEPENDENCE = 0.28125  # total variation between LAW and the product of its marginals, exactly


def entropy(law: Tensor = LAW) -> float:
    return -torch.special.xlogy(law, law).sum().item()


def embed(law: Tensor, ids: list[int], size: int) -> Tensor:
    """The same law over a vocabulary of ``size`` in which token k has the id ``ids[k]``."""
    larger = law.new_zeros((size,) * law.dim())
    larger[torch.meshgrid(*[torch.tensor(ids)] * law.dim(), indexing="ij")] = law
    return larger


def sequences(size: int, length: int = L) -> Tensor:
    """All ``size ** length`` sequences, in the row-major order of ``law.flatten()``."""
    return torch.cartesian_prod(*[torch.arange(size)] * length).reshape(-1, length)


def per_position(t: Tensor, length: int) -> Tensor:
    """Times as (B, length), from (B,) or (B, length)."""
    return t if t.dim() == 2 else t[:, None].expand(-1, length)


def marginals(process: Categorical, t: Tensor) -> Tensor:
    """q_t(y | x) for every clean token x: (B, K, V) for ``t`` of shape (B,)."""
    clean = torch.eye(process.K, dtype=torch.float64).expand(len(t), -1, -1)
    return process.marginal(clean, t)


def emissions(process: Categorical, z: Tensor, t: Tensor) -> Tensor:
    """q_t(z_i | x) for every position i and clean token x: (B, L, K)."""
    t = per_position(t, z.shape[1])
    columns: list[Tensor] = []
    for i in range(z.shape[1]):
        times, which = t[:, i].unique(return_inverse=True)  # mostly one time for all rows
        columns.append(marginals(process, times)[which, :, z[:, i]])
    return torch.stack(columns, 1)


def posteriors(law: Tensor, likelihood: Tensor, posterior: str) -> Tensor:
    """p(x_i | z), or of the cavity p(x_i | z without i), by enumeration; uniform on impossible states."""
    length, size = law.dim(), law.shape[0]
    out = []
    for i in range(length):
        weight = law.expand(len(likelihood), *law.shape)
        for j in range(length):
            if j != i or posterior == "full":
                weight = weight * likelihood[:, j].reshape(-1, *(size if k == j else 1 for k in range(length)))
        out.append(weight.movedim(i + 1, 1).reshape(len(weight), size, -1).sum(2))
    probs = torch.stack(out, 1)
    total = probs.sum(-1, keepdim=True)
    return torch.where(total > 0, probs / torch.where(total > 0, total, 1.0), 1 / size)


class ExactDenoiser:
    """The exact posterior of ``law`` under ``process``: a callable (z, t, cond=None) -> log p of shape (B, L, K).

    At t = 1 it is the limit t -> 1, where a clean token (a prompt's, say) is still evidence.
    """

    def __init__(self, process: Categorical, law: Tensor = LAW, posterior: str = "cavity") -> None:
        self.process, self.law, self.posterior = process, law, posterior
        self.calls = 0
        self.facts = Facts(posterior=posterior, time_conditioned=True, mask_id=process.mask_id)

    def __call__(self, z: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.calls += 1
        return posteriors(self.law, emissions(self.process, z, t.double().clamp(max=1 - 1e-12)), self.posterior).log()


@dataclass
class TableDenoiser:
    """Any function of (z, t) as a denoiser; ``table`` is indexed by the state's row-major number."""

    table: Tensor  # (V ** L, L, K) log-probabilities
    size: int  # V

    def __call__(self, z: Tensor, t: Tensor | None = None, cond: object = None) -> Tensor:
        return self.table[state_number(z, self.size)]


def raw(denoiser: Callable[..., Tensor], z: Tensor, t: Tensor) -> Tensor:
    return denoiser(z, t)


def quadrature(nodes: int = 200) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on t in (0, 1) after t = s^2 (3 - 2 s), which tames both end points."""
    node, weight = np.polynomial.legendre.leggauss(nodes)
    s, ds = torch.tensor((node + 1) / 2), torch.tensor(weight / 2)
    return s**2 * (3 - 2 * s), 6 * s * (1 - s) * ds


def noisy_pairs(process: Categorical, t: Tensor, law: Tensor = LAW) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All (x0, z) of positive probability at each of the times ``t``: x0, z, t, probability, one row each."""
    x0, z = sequences(process.K, law.dim()), sequences(process.V, law.dim())
    rows_x, rows_z = (grid.flatten() for grid in torch.meshgrid(*map(torch.arange, (len(x0), len(z))), indexing="ij"))
    q = marginals(process, t)[:, x0[rows_x], z[rows_z]].prod(-1)  # (times, rows)
    probability = law.flatten()[rows_x] * q
    time, row = (probability > 0).nonzero(as_tuple=True)
    return x0[rows_x[row]], z[rows_z[row]], t[time], probability[time, row]


def nelbo(
    process: Categorical, denoiser: Callable[..., Tensor], law: Tensor = LAW, call: Callable[..., Tensor] = raw
) -> float:
    """The continuous-time bound E[-log p(x)] <= int E_{x, z} sum_i nelbo_i dt, in nats per sequence."""
    times, weights = quadrature()
    x0, z, t, probability = noisy_pairs(process, times, law)
    loss = process.nelbo(call(denoiser, z, t), x0, z, t).sum(-1)
    dt = weights[torch.searchsorted(times, t)]
    return (loss * probability * dt).sum().item()


def finite_nelbo(process: Categorical, denoiser: Callable[..., Tensor], steps: int) -> float:
    """sum_i E KL(posterior of the truth || of the denoiser) on the grid i / steps; its first term is -log p(x | z)."""
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    x0, z, t, probability = noisy_pairs(process, times)
    s = (t - 1 / steps).clamp(min=0)
    truth = torch.nn.functional.one_hot(x0, process.K).double()
    p = process.posterior(truth, z, t, s)
    q = process.posterior(denoiser(z, t).exp(), z, t, s)
    return (kl(p, q).sum(-1) * probability).sum().item()


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, torch.where(p > 0, q, 1.0))).sum(-1)


def prior_law(process: Categorical, length: int = L) -> Tensor:
    """The law of the prior over the V ** length states, from the marginal at t = 1 (where alpha = 0 exactly)."""
    single = marginals(process, torch.ones(1, dtype=torch.float64))[0, 0]
    return single[sequences(process.V, length)].prod(-1)


def product_kernel(probs: Tensor) -> Tensor:
    """The (V ** L, V ** L) transition matrix of a step that draws every position from ``probs`` (V ** L, L, V)."""
    kernel = probs.new_ones(len(probs), 1)
    for i in range(probs.shape[1]):
        kernel = (kernel[:, :, None] * probs[:, i, None, :]).flatten(1)
    return kernel


def ancestral_law(
    process: Categorical, denoiser: Callable[..., Tensor], steps: int, call: Callable[..., Tensor] = raw
) -> Tensor:
    """The exact law of ancestral sampling on the grid 1, 1 - 1/steps, .., 0, over the V ** L states."""
    states = sequences(process.V)
    law = prior_law(process)
    for i in range(steps, 0, -1):
        reached = law > 0  # the kernel of an unreachable state is 0 / 0 and never asked for
        z = states[reached]
        t, s = (torch.full((len(z),), time, dtype=torch.float64) for time in (i / steps, (i - 1) / steps))
        law = law[reached] @ product_kernel(process.posterior(call(denoiser, z, t).exp(), z, t, s))
    return law


def on_states(process: Categorical, law: Tensor = LAW) -> Tensor:
    """``law`` over clean sequences as a law over the V ** L states (a mask has probability zero)."""
    return embed(law, list(range(process.K)), process.V).flatten() if process.V > process.K else law.flatten()


def total_variation(p: Tensor, q: Tensor) -> float:
    return (p - q).abs().sum().item() / 2


def chi_square_tail(counts: Tensor, probs: Tensor) -> float:
    """P(a chi-square this large) for ``counts`` of draws from ``probs``; zero if an impossible class was drawn."""
    from scipy.stats import chi2

    possible = probs > 1e-15
    if counts[~possible].sum() > 0:
        return 0.0
    expected = probs[possible] * counts.sum()
    statistic = ((counts[possible] - expected) ** 2 / expected).sum().item()
    return float(chi2.sf(statistic, int(possible.sum()) - 1)) if possible.sum() > 1 else 1.0


def state_number(z: Tensor, size: int) -> Tensor:
    """The row-major number of each row of ``z`` among the ``size ** L`` sequences."""
    number = torch.zeros(len(z), dtype=torch.long)
    for i in range(z.shape[1]):
        number = number * size + z[:, i]
    return number


def state_counts(tokens: Tensor, size: int) -> Tensor:
    return torch.bincount(state_number(tokens, size), minlength=size ** tokens.shape[1]).double()
