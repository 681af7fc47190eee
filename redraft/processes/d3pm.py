"""D3PM's chains by name (Austin et al. 2021, arXiv 2107.03006): six kinds of transition matrix, four schedules.

``uniform``, ``absorbing`` and ``hybrid`` are coefficients and work for any vocabulary; ``gaussian``, ``neighbour`` and
``band`` are matrices, for alphabets of letters. beta_i below is what the schedule gives step i of T.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft import schedules
from redraft.errors import unknown
from redraft.processes.categorical import (
    Categorical,
    mask_state,
    vocabulary,
)
from redraft.processes.matrix import Matrix, check_size
from redraft.processes.noises import Noise, masked_noise, mixed_noise, uniform_noise
from redraft.schedules import BETAS, Table

USUAL = {
    "uniform": "cosine",
    "absorbing": "reciprocal",
    "hybrid": "reciprocal",
    "gaussian": "linear",
    "neighbour": "mutual_information",
    "band": "linear",
}
"""Every kind with the schedule it has unless told otherwise."""

NEIGHBOURS = 8
"""How many a token has in the graph of ``neighbour`` unless told otherwise; the paper's number is not known to us."""

OPTIONS = {
    "uniform": (),
    "absorbing": ("mask_id",),
    "hybrid": ("mask_id", "mask_fraction"),
    "gaussian": (),
    "neighbour": ("embeddings", "neighbours", "graph"),
    "band": ("width",),
}
"""Every kind with the options it has beside the schedule."""

SCHEDULES = (*BETAS, "mutual_information")


def d3pm(
    K: int,
    kind: str,
    steps: int,
    schedule: str | Sequence[float] | None = None,
    *,
    mask_id: int | None = None,
    mask_fraction: float | None = None,
    width: int | None = None,
    neighbours: int | None = None,
    embeddings: Tensor | None = None,
    graph: Tensor | None = None,
) -> Categorical | Matrix:
    """D3PM's chain of ``steps`` steps (arXiv 2107.03006, section 3.1 and appendix A).

    ``kind`` says what step i does, with probability beta or in the measure of it:

    - ``uniform`` draws the token anew, ``absorbing`` hides it, ``hybrid`` hides it in ``mask_fraction`` (2/3) of cases.
    - ``gaussian`` moves it by d ids with weight exp(-4 d^2 / ((K - 1)^2 beta)), ids being an order.
    - ``band`` moves it to any of the ids less than half a ``width`` away (K / 4, an odd number from 5: narrower bands
      take longer to forget than a few hundred steps).
    - ``neighbour`` is expm(beta R) along the graph of the 8 ``neighbours`` nearest each row of ``embeddings`` (K, D),
      or along a ``graph`` (K, K) such as ``nearest`` makes.

    Those with a mask are all mask after the last step; the others tend to uniform tokens, and ``prior_kl`` pays for
    what is missing.

    ``schedule``: ``reciprocal``, ``linear``, ``cosine``, ``mutual_information`` (I(x_t; x_0) falls linearly for uniform
    x_0), or the T betas themselves; ``USUAL`` unless given.

    Errors: ``ValueError`` for an unknown kind or schedule, an option of another kind, a beta outside (0, 1], a fraction
    outside (0, 1), an even width, ``neighbour`` without embeddings, and matrices beyond a gibibyte.

    >>> d3pm(27, "absorbing", 1000).mask_id
    27
    """
    if kind not in USUAL:
        raise unknown("kind of D3PM", kind, USUAL)
    if steps < 1:
        raise ValueError(f"steps={steps}: a chain takes at least 1")
    schedule = USUAL[kind] if schedule is None else schedule
    rule = schedule if isinstance(schedule, str) else tuple(float(beta) for beta in schedule)
    if isinstance(rule, str) and rule not in SCHEDULES:
        raise unknown("schedule of D3PM", rule, SCHEDULES)
    if not isinstance(rule, str) and len(rule) != steps:
        raise ValueError(f"{len(rule)} betas for steps={steps}: pass one per step")
    vocabulary(K)
    options = {"mask_id": mask_id, "mask_fraction": mask_fraction, "width": width, "neighbours": neighbours}
    for option, value in {**options, "embeddings": embeddings, "graph": graph}.items():
        if value is not None and option not in OPTIONS[kind]:
            raise ValueError(f"{option} with kind {kind!r}: that kind takes {', '.join(OPTIONS[kind]) or 'no options'}")
    if kind in ("uniform", "absorbing", "hybrid"):
        return _coefficients(K, kind, steps, rule, mask_id, 2 / 3 if mask_fraction is None else mask_fraction)
    if kind == "neighbour":
        check_size(K, steps)
        graph = (
            nearest(_rows(embeddings, K), NEIGHBOURS if neighbours is None else neighbours) if graph is None else graph
        )
        facts = {"kind": kind, "schedule": _stored(rule)}
        return Matrix(K, _chain(_Along.of(graph.double().cpu()), K, steps, rule, 2.0**40), _even(K), None, facts, graph)
    return _fixed(K, kind, steps, rule, max(5, K // 4 | 1) if width is None else width)


Rule = str | tuple[float, ...]


def _stored(rule: Rule) -> str | list[float]:
    return rule if isinstance(rule, str) else list(rule)


def _even(K: int) -> Tensor:
    return torch.full((K,), 1 / K, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------- coefficients


def _coefficients(K: int, kind: str, steps: int, rule: Rule, mask_id: int | None, mask_fraction: float) -> Categorical:
    """The kinds in which a step keeps a token or draws it anew, from one law whatever it was."""
    parameters: dict[str, Any] = {"kind": kind, "schedule": _stored(rule)}
    noise: Noise = masked_noise if kind == "absorbing" else uniform_noise
    if kind == "hybrid":
        if not 0 < mask_fraction < 1:
            raise ValueError(f"mask_fraction={mask_fraction} is outside (0, 1): use kind 'absorbing' or 'uniform'")
        noise, parameters["mask_fraction"] = mixed_noise(mask_fraction), mask_fraction
    mask_id = None if kind == "uniform" else mask_state(K, mask_id)
    tokens = K - (mask_id is not None and mask_id < K)
    if rule == "mutual_information":
        table = Table("mutual_information", _informed_alphas(noise, tokens, steps))
    elif isinstance(rule, str):
        table = Table.of_betas(rule, BETAS[rule](steps))
    else:
        table = Table.of_betas("custom", torch.tensor(rule, dtype=torch.float64))
    if mask_id is not None:  # the prior is all mask: a token left over would be infinitely surprising
        table.alphas[-1] = 0.0
    return Categorical("d3pm", K, table, noise, mask_id, parameters, steps)


def _informed_alphas(noise: Noise, tokens: int, steps: int) -> Tensor:
    """alpha_i with I(x_i; x_0) = (1 - i / T) log K for uniform x_0; for absorbing noise that is 1 - i / T."""

    def information(alpha: Tensor) -> Tensor:
        at = noise(alpha, torch.zeros_like(alpha), tokens)
        own, token = at.alpha + at.token, at.token
        mean = own + (tokens - 1) * token  # of one token under uniform x_0, times the number of tokens
        terms = torch.special.xlogy(own, own) + (tokens - 1) * torch.special.xlogy(token, token)
        return terms - torch.special.xlogy(mean, mean / tokens)

    target = (1 - torch.arange(1, steps, dtype=torch.float64) / steps) * math.log(tokens)
    # information rises with alpha, so it falls with 1 - alpha
    gone = schedules.bisect(lambda share: information(1 - share), target)
    return torch.cat([torch.ones(1), 1 - gone, torch.zeros(1)]).double()


# -------------------------------------------------------------------------------------------------------- matrices

Step = Callable[[float], Tensor]
"""beta -> the (K, K) matrix of a step."""


@lru_cache(maxsize=4)
def _fixed(K: int, kind: str, steps: int, rule: Rule, width: int) -> Matrix:
    """The kinds whose matrices follow from K; kept, since a model asks for its process often."""
    check_size(K, steps)
    facts = {"kind": kind, "schedule": _stored(rule)}
    if kind == "gaussian":
        return Matrix(K, _chain(_spread(K), K, steps, rule), _even(K), facts=facts)
    if width < 3 or width % 2 == 0:
        raise ValueError(f"width={width}: a band is an odd number of ids from 3, as many on either side")
    return Matrix(K, _chain(_band(K, width), K, steps, rule), _even(K), facts={**facts, "width": width})


def _spread(K: int) -> Step:
    """exp(-4 d^2 / ((K - 1)^2 beta)) over its sum for d = -(K - 1) .. K - 1; the rest of a row stays."""
    d = torch.arange(K, dtype=torch.float64)
    apart = (d[:, None] - d).abs().long()

    def step(beta: float) -> Tensor:
        bell = torch.exp(-4 * d**2 / ((K - 1) ** 2 * beta))
        q = (bell / (2 * bell.sum() - 1))[apart].fill_diagonal_(0.0)
        return _rest_stays(q)

    return step


def _band(K: int, width: int) -> Step:
    """beta / width to every other id at most (width - 1) / 2 away; the rest of a row stays, at either end more."""
    ids = torch.arange(K)
    near = ((ids[:, None] - ids).abs() <= width // 2).double().fill_diagonal_(0.0)
    return lambda beta: _rest_stays(beta / width * near)


@dataclass(frozen=True)
class _Along:
    """expm(beta R), R = G - diag(G 1), by the eigenvectors of the symmetric R, which all its powers share."""

    vectors: Tensor
    values: Tensor

    @classmethod
    def of(cls, graph: Tensor) -> Self:
        values, vectors = torch.linalg.eigh(graph - torch.diag(graph.sum(1)))
        return cls(vectors, values.clamp_max(0.0))

    def __call__(self, beta: float) -> Tensor:
        q = ((self.vectors * torch.exp(beta * self.values)) @ self.vectors.T).clamp_min(0.0)
        return q / q.sum(-1, keepdim=True)


def _rest_stays(q: Tensor) -> Tensor:
    return q + torch.diag(1 - q.sum(-1))


def nearest(embeddings: Tensor, neighbours: int) -> Tensor:
    """The graph G of D3PM's ``neighbour``: (A + A^T) / 2k, A the k nearest others of each row by cosine; (K, K).

    Parts that no edge joins are joined by their nearest pair: otherwise no chain along the graph forgets its part.
    """
    K = len(embeddings)
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours}: take at least 1")
    k = min(neighbours, K - 1)
    unit = F.normalize(embeddings.double(), dim=-1)
    near = (unit @ unit.T).fill_diagonal_(-torch.inf)
    # equal distances, frequent among counts, are settled by the lower id
    chosen = near.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    adjacent = torch.zeros(K, K, dtype=torch.float64).scatter_(1, chosen, 1.0)
    return (_joined(adjacent + adjacent.T, near) / (2 * k)).float()


def _joined(adjacent: Tensor, near: Tensor) -> Tensor:
    label, before = torch.arange(len(near)), None
    while before is None or not torch.equal(label, before):  # every node takes the least label it touches
        before = label
        label = torch.where(adjacent > 0, label, len(near)).amin(1).minimum(label)
    while (label > 0).any():
        inside = label == 0
        i, j = divmod(int(near.masked_fill(~(inside[:, None] & ~inside), -torch.inf).argmax()), len(near))
        adjacent[i, j] = adjacent[j, i] = 1.0
        label = torch.where(label == label[j], 0, label)
    return adjacent


VOWELS = "aeiou"


def spelling(texts: Sequence[str]) -> Tensor:
    """Embeddings of tokens by how they are spelt, for ``neighbour`` where there are no learned ones; (K, 520) float32.

    Counts of bytes and of pairs of bytes, letters taken as small ones, pairs in 256 bins; and of what the characters
    are: small letter, capital, vowel, digit, blank, other mark, beyond ASCII, none at all. Deterministic, no corpus.
    """
    rows = torch.zeros(len(texts), 520)
    for row, text in zip(rows, texts, strict=True):
        folded = text.lower().encode()
        for byte in folded:
            row[byte] += 1
        for first, second in pairwise(folded):
            row[256 + (31 * first + second) % 256] += 1
        for letter in text:
            tests = (letter.islower(), letter.isupper(), letter.lower() in VOWELS, letter.isdigit(), letter.isspace())
            mark = letter.isascii() and not (letter.isalnum() or letter.isspace())
            row[512:519] += torch.tensor([*tests, mark, not letter.isascii()]).float()
        row[519] = not text
    return rows


def _rows(embeddings: Tensor | None, K: int) -> Tensor:
    if embeddings is None:
        raise ValueError("kind 'neighbour' needs embeddings (K, D): which tokens are near is theirs to say")
    if embeddings.ndim != 2 or len(embeddings) != K:
        raise ValueError(f"embeddings of shape {tuple(embeddings.shape)} for K={K}: pass one row per token, (K, D)")
    return embeddings


def _chain(step: Step, K: int, steps: int, rule: Rule, most: float = 1.0) -> Tensor:
    """The matrices of all T steps, (T, K, K) float64; ``most`` is the greatest beta they allow."""
    if rule == "mutual_information":
        return _informed_chain(step, K, steps, most)
    betas = BETAS[rule](steps).tolist() if isinstance(rule, str) else list(rule)
    for i, beta in enumerate(betas):
        if not 0 < beta <= 1:
            raise ValueError(f"beta={beta} at step {i + 1} is outside (0, 1]")
    return torch.stack([step(beta) for beta in betas])


def _informed_chain(step: Step, K: int, steps: int, most: float) -> Tensor:
    """Each beta so that I(x_i; x_0) = (1 - i / T) log K for uniform x_0, or as near as the greatest beta takes it."""
    product, beta, chain = torch.eye(K, dtype=torch.float64), 1 / steps, list[Tensor]()
    total = 0.0
    for i in range(1, steps + 1):
        target = (1 - i / steps) * math.log(K)

        def excess(beta: float, product: Tensor = product, total: float = total, target: float = target) -> float:
            # along a graph the betas so far add up, which spares a product of matrices
            q = step(total + beta) if isinstance(step, _Along) else product @ step(beta)
            # the mean token stays uniform, all these matrices being doubly stochastic
            return torch.special.xlogy(q, K * q).sum().item() / K - target

        beta = _root(excess, beta, most)
        chain.append(step(beta))
        total += beta
        product = product @ chain[-1]
    return torch.stack(chain)


def _root(falling: Callable[[float], float], guess: float, most: float) -> float:
    """Where a falling function of (0, most] meets 0, or ``most`` if it stays above: false position (Illinois).

    Few calls count here, each being a product of matrices: about six for ten digits.
    """
    low, high = 0.0, min(guess, most)
    above, below = None, falling(high)
    while below > 0:
        if high >= most:
            return most
        low, above, high = high, below, min(4 * high, most)
        below = falling(high)
    value, side = below, 0.0
    for _ in range(100):
        if abs(value) < 1e-10 or high - low < 1e-14 * high:
            break
        middle = (low + high) / 2 if above is None else (low * below - high * above) / (below - above)
        value = falling(middle)
        again = value * side > 0  # the other end, if it stays twice in a row, counts half
        if value > 0:
            low, above, below = middle, value, below / 2 if again else below
        else:
            high, below, above = middle, value, above / 2 if again and above is not None else above
        side = value
    return low if value > 0 else high
