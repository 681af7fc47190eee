"""Edit flows (Havasi et al. 2025, arXiv 2506.09018): the oracle that a process of insertions and deletions must meet.

There is no such process in the package. Here is what one would have to satisfy, over strings of {a, b} short enough to
enumerate, in the flow's own time: kappa runs from 0, the source, to 1, the data.

A pair (x_0, x_1) is aligned to columns of equal length, with blanks where one has nothing. Each column shows x_1's side
with probability kappa, else x_0's, and z_t without its blanks is the string x_t. A column still showing x_0's side is a
remaining edit: an insertion, a deletion or a substitution at a place of x_t. The rate of an edit e from x is

    u_t(e | x) = kappa' / (1 - kappa) E[number of remaining edits e | x_t = x]

and with d sigma = d kappa / (1 - kappa), sigma = -log(1 - kappa), it is that expectation alone.
"""

import itertools
import math
from collections import defaultdict

import pytest
import torch

BLANK = ""
Column = tuple[str, str]
Edit = tuple[str, int, str]
Coupling = dict[tuple[str, str], float]

DATA = {"": 0.05, "a": 0.2, "b": 0.1, "ab": 0.3, "ba": 0.05, "bb": 0.3}
NOISE = {"a": 0.5, "ba": 0.3, "": 0.2}


def independent(source: dict[str, float], data: dict[str, float]) -> Coupling:
    return {(x0, x1): p * q for (x0, p), (x1, q) in itertools.product(source.items(), data.items())}


COUPLINGS = {
    "from_nothing": independent({"": 1.0}, DATA),
    "from_noise": independent(NOISE, DATA),
    "paired": {("ab", "ba"): 0.3, ("a", ""): 0.2, ("b", "bb"): 0.1, ("ba", "ab"): 0.25, ("", "a"): 0.15},
}


def align(x0: str, x1: str) -> list[Column]:
    """The columns of fewest edits (Needleman and Wunsch with unit costs); of equals the diagonal move is preferred."""
    best: dict[tuple[int, int], tuple[int, list[Column]]] = {(0, 0): (0, [])}
    for i, j in itertools.product(range(len(x0) + 1), range(len(x1) + 1)):
        ways = []
        if i and j:
            cost, columns = best[i - 1, j - 1]
            ways.append((cost + (x0[i - 1] != x1[j - 1]), [*columns, (x0[i - 1], x1[j - 1])]))
        if i:
            cost, columns = best[i - 1, j]
            ways.append((cost + 1, [*columns, (x0[i - 1], BLANK)]))
        if j:
            cost, columns = best[i, j - 1]
            ways.append((cost + 1, [*columns, (BLANK, x1[j - 1])]))
        if ways:
            best[i, j] = min(ways, key=lambda way: way[0])  # the first of equals
    return best[len(x0), len(x1)][1]


def remaining(columns: list[Column], shown: tuple[bool, ...]) -> list[Edit]:
    """The edits still to make, each at its place in the string that the columns show."""
    edits, place = [], 0
    for (old, new), done in zip(columns, shown, strict=True):
        if not done and old != new:
            kind = "insert" if old == BLANK else "delete" if new == BLANK else "substitute"
            edits.append((kind, place, new))
        place += (new if done else old) != BLANK
    return edits


def apply(edit: Edit, x: str) -> str:
    kind, place, token = edit
    return x[:place] + token + x[place + (kind != "insert") :]


def states(coupling: Coupling):
    """Every (x_t, number of columns done, columns, probability of the pair, remaining edits)."""
    for (x0, x1), probability in coupling.items():
        columns = align(x0, x1)
        for shown in itertools.product((False, True), repeat=len(columns)):
            x = "".join(new if done else old for (old, new), done in zip(columns, shown, strict=True))
            yield x, sum(shown), len(columns), probability, remaining(columns, shown)


def marginal(coupling: Coupling, kappa: float) -> dict[str, float]:
    """q_t over the strings."""
    law: dict[str, float] = defaultdict(float)
    for x, done, columns, probability, _ in states(coupling):
        law[x] += probability * kappa**done * (1 - kappa) ** (columns - done)
    return dict(law)


def edit_rates(coupling: Coupling, kappa: float) -> dict[str, dict[Edit, float]]:
    """E[number of remaining edits e | x_t = x] for every string and edit: what a perfect network answers."""
    law, rates = marginal(coupling, kappa), defaultdict(lambda: defaultdict(float))
    for x, done, columns, probability, edits in states(coupling):
        weight = probability * kappa**done * (1 - kappa) ** (columns - done)
        for edit in edits if weight else ():  # at kappa = 0 only the source's own strings have rates
            rates[x][edit] += weight / law[x]
    return {x: dict(edits) for x, edits in rates.items()}


def generator(rates: dict[str, dict[Edit, float]], order: list[str]) -> torch.Tensor:
    """The rate matrix of the chain over strings, per unit of sigma."""
    number = {x: i for i, x in enumerate(order)}
    matrix = torch.zeros(len(order), len(order), dtype=torch.float64)
    for x, edits in rates.items():
        for edit, rate in edits.items():
            matrix[number[x], number[apply(edit, x)]] += rate
            matrix[number[x], number[x]] -= rate
    return matrix


def simulate(coupling: Coupling, order: list[str], until: float, steps: int, rates=edit_rates) -> torch.Tensor:
    """The law of the chain at sigma = ``until``, started from the source: fourth-order Runge-Kutta, no sampling."""
    law = vector(marginal(coupling, 0.0), order)
    step = until / steps
    at = [generator(rates(coupling, -math.expm1(-i * step / 2)), order) for i in range(2 * steps + 1)]
    for start, middle, end in zip(at[0::2], at[1::2], at[2::2], strict=False):
        k1 = law @ start
        k2 = (law + step / 2 * k1) @ middle
        k3 = (law + step / 2 * k2) @ middle
        k4 = (law + step * k3) @ end
        law = law + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return law


def vector(law: dict[str, float], order: list[str]) -> torch.Tensor:
    return torch.tensor([law.get(x, 0.0) for x in order], dtype=torch.float64)


@pytest.fixture(params=COUPLINGS)
def coupling(request):
    return COUPLINGS[request.param]


def strings(coupling: Coupling) -> list[str]:
    return sorted(marginal(coupling, 0.5))


def test_t26_exact_edit_rates_carry_the_marginals(coupling):
    """T26: the chain of the exact rates has the law q_t at every time looked at, 1e-9."""
    order = strings(coupling)
    for until, steps in ((0.5, 60), (2.0, 240)):
        law = simulate(coupling, order, until, steps)
        expected = vector(marginal(coupling, -math.expm1(-until)), order)
        torch.testing.assert_close(law, expected, rtol=0, atol=1e-9)
        assert (expected - vector(marginal(coupling, 0.0), order)).abs().sum() > 0.3


def test_t26_the_flow_of_the_rates_is_the_slope_of_q(coupling):
    """T26, at one time and exactly: q_t U_t = d q_t / d sigma, by the product rule over the columns, 1e-13."""
    order = strings(coupling)
    for kappa in (0.0, 0.3, 0.9):
        slope: dict[str, float] = defaultdict(float)
        for x, done, columns, probability, _ in states(coupling):
            left = columns - done
            rising = done * kappa ** (done - 1) * (1 - kappa) ** left if done else 0.0
            falling = left * kappa**done * (1 - kappa) ** (left - 1) if left else 0.0
            slope[x] += (1 - kappa) * probability * (rising - falling)
        flow = vector(marginal(coupling, kappa), order) @ generator(edit_rates(coupling, kappa), order)
        torch.testing.assert_close(flow, vector(slope, order), rtol=0, atol=1e-13)


def test_rates_that_know_too_little_carry_another_law():
    """The law above can fail: rates averaged over the strings of equal length, or blind to deletions, miss q_t."""
    coupling = COUPLINGS["from_noise"]
    order = strings(coupling)

    def without_deletions(coupling, kappa):
        exact = edit_rates(coupling, kappa)
        return {x: {e: r for e, r in edits.items() if e[0] != "delete"} for x, edits in exact.items()}

    def by_length(coupling, kappa):
        exact, law = edit_rates(coupling, kappa), marginal(coupling, kappa)
        return {
            x: {
                e: sum(law[y] * exact[y].get(e, 0.0) for y in exact if len(y) == len(x))
                / sum(law[y] for y in exact if len(y) == len(x))
                for e in edits
            }
            for x, edits in exact.items()
        }

    expected = vector(marginal(coupling, -math.expm1(-2.0)), order)
    for rates in (without_deletions, by_length):
        assert (simulate(coupling, order, 2.0, 60, rates) - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("x0", "x1", "edits"),
    [("", "ab", 2), ("ab", "ab", 0), ("ab", "b", 1), ("ab", "ba", 2), ("aba", "ba", 1), ("a", "bab", 2)],
)
def test_alignment_is_the_edit_distance(x0, x1, edits):
    """Its columns spell both strings, and differ in as few places as edits are needed; all edits lead to x_1."""
    columns = align(x0, x1)
    assert ("".join(old for old, _ in columns), "".join(new for _, new in columns)) == (x0, x1)
    shown, x = [False] * len(columns), x0
    assert len(remaining(columns, tuple(shown))) == edits
    for i, (old, new) in enumerate(columns):
        if old != new:
            x = apply(remaining(columns, tuple(shown))[0], x)
        shown[i] = True
    assert x == x1


def test_the_rate_is_the_minimiser_of_the_loss():
    """sum_e u_e - sum over remaining edits of log u_e has its zero gradient at E[number of remaining edits e | x_t]."""
    coupling, kappa = COUPLINGS["from_noise"], 0.4
    exact = {(x, e): r for x, edits in edit_rates(coupling, kappa).items() for e, r in edits.items()}
    keys = list(exact)
    log_rate = torch.tensor([math.log(exact[key]) for key in keys], dtype=torch.float64, requires_grad=True)
    loss = torch.zeros((), dtype=torch.float64)
    for x, done, columns, probability, edits in states(coupling):
        weight = probability * kappa**done * (1 - kappa) ** (columns - done)
        here = [i for i, (y, _) in enumerate(keys) if y == x]
        loss = loss + weight * log_rate[here].exp().sum()
        loss = loss - weight * sum(log_rate[keys.index((x, edit))] for edit in edits)
    (gradient,) = torch.autograd.grad(loss, log_rate)
    assert gradient.abs().max() < 1e-12
