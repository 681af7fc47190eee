"""Which tokens a rule writes: exact laws by enumeration, each rule against its definition, and how many steps it takes.

The definitions are written out one position at a time in plain Python; the laws run ``sample`` itself for every outcome
of its draws (``exhaust``). The chi-square tests have fixed seeds; over other seeds each fails once in 10 000.
"""

import itertools
import math
from unittest.mock import patch

import pytest
import torch

from redraft import processes
from redraft.processes import Facts
from redraft.sampling import SAMPLERS, adaptive, published, sample, samplers, selection
from redraft.sampling.contract import Draw, tempered
from redraft.sampling.samplers import proposes, revises

from .exhaust import outcomes
from .oracle import DEPENDENCE, LAW, ExactDenoiser, chi_square_tail, state_number, total_variation
from .prescribed import random_law

PROCESS = processes.masked(3)
RULES = sorted(name for name, one in SAMPLERS.items() if proposes(one) and not revises(one))
ADAPTIVE = ["threshold", "factor", "entropy_bounded", "klass", "hierarchical"]
VARIANTS = [
    *RULES,
    *(f"{name}:gap=3" for name in ADAPTIVE),
    "threshold:tau=0.4,least=2",
    "factor:factor=3",
    "entropy_bounded:gamma=2,gap=2",
    "klass:tau=0.3,kl=0.5,history=1",
    "hierarchical:tau=0.6,low=0.35",
    "maskgit:schedule=exp,noise=0",
    "maskgit:schedule=log",
    "maskgit:schedule=pow,exponent=0.7",
    "entropy:alg_temp=0.3",
    "origin:eps=0",
    "positional:decay=0",
]


class Context:
    """Laws that depend on the whole canvas, (z, t) -> log p (B, L, K) in float32 or float64, and on nothing else."""

    def __init__(self, size: int = 3, dtype=torch.float64, scale: float = 1.5) -> None:
        self.size, self.dtype, self.scale = size, dtype, scale
        self.facts = Facts(mask_id=size)

    def __call__(self, z, t, cond=None):
        level = (z + 1.3 * z.roll(1, 1) + 0.7 * z.roll(-2, 1) + torch.arange(z.shape[1])).to(self.dtype)
        return (self.scale * torch.sin(level[..., None] * torch.arange(1, self.size + 1) + z.sum(1)[:, None, None])
                ).log_softmax(-1)  # fmt: skip


class Table:
    """The same law of a position whatever stands elsewhere: log p (L, K)."""

    def __init__(self, logp) -> None:
        self.logp, self.facts = logp, Facts(mask_id=logp.shape[-1])

    def __call__(self, z, t, cond=None):
        return self.logp.expand(len(z), -1, -1)


def step(rule, logp, t=1.0, s=None, given=(), seed=0, rows=1, **draw):
    """Which positions (rows, L) one step writes of an empty canvas, but for ``given`` ones; the step's law (L, K)."""
    size, length = logp.shape[-1], len(logp)
    frozen = torch.zeros(rows, length, dtype=torch.bool)
    frozen[:, list(given)] = True
    z = torch.where(frozen, 0, size)
    s = t - 1 / length if s is None else s
    t, s = (torch.full((rows,), one, dtype=torch.float64) for one in (t, s))

    def query(z, t, where):
        return logp.expand(rows, -1, -1)[where]

    made = samplers.get(rule)(
        processes.masked(size), query, z, t, s, Draw(frozen, torch.Generator().manual_seed(seed), **draw)
    )
    return (made != z).int()


def written(rule, logp, **options):
    """The positions of one row that one step at temperature 0 writes."""
    return step(rule, logp, temperature=0.0, **options)[0].nonzero().flatten().tolist()


def left_after(rule, length=8, steps=None, denoiser=None, **options):
    """Masks left after each step, and what came out."""
    denoiser, left = denoiser or Context(), []

    def count(one):
        left.append(int((one.z == denoiser.facts.mask_id).sum()))

    process = processes.masked(denoiser.facts.mask_id)
    made = sample(process, denoiser, length=length, steps=steps, sampler=rule, callback=count, **options)
    return left, made


# ------------------------------------------------------------------------------------------------------ laws, exactly


def law_of(denoiser, length, **options):
    """The law of what ``sample`` writes, over the K^length texts, by running it for every outcome of its draws."""
    law = torch.zeros(3**length, dtype=torch.float64)
    for made, weight in outcomes(lambda: sample(PROCESS, denoiser, length=length, **options).tokens, 1):
        law[state_number(made, 3)] += weight
    return law


def random_joint(length=2):
    """A law of tokens out of three without zeros, and its exact denoiser."""
    law = random_law(3**length, seed=3).exp().reshape((3,) * length)
    return law, ExactDenoiser(PROCESS, law)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_one_token_a_step_in_random_order_is_the_exact_joint(schedule):
    """Averaged over the six orders, each of which is a chain rule; 1e-12."""
    law, denoiser = random_joint(3)
    process, found = processes.masked(3, schedule), torch.zeros(27, dtype=torch.float64)
    for order in itertools.permutations([0.1, 0.5, 0.9]):
        drawn = torch.tensor([order], dtype=torch.float64)
        with patch.object(selection, "rand", lambda shape, *_, drawn=drawn: drawn):
            for made, weight in outcomes(lambda: sample(process, denoiser, length=3, sampler="random_order").tokens, 1):
                found[state_number(made, 3)] += weight / 6
    assert total_variation(found, law.flatten()) < 1e-12


@pytest.mark.parametrize(
    "rule", ["sequential", "left_to_right", "entropy:eps=0", "topk_margin:eps=0", "entropy_bounded:gamma=0"]
)
def test_an_order_that_does_not_look_at_the_tokens_is_exact(rule):
    """One token a step, chosen by the law alone and not by what was drawn: still the joint, 1e-12."""
    length = 3 if rule in ("sequential", "left_to_right") else 2  # those ask about what they write alone
    law, denoiser = random_joint(length)
    assert total_variation(law_of(denoiser, length, sampler=rule), law.flatten()) < 1e-12


@pytest.mark.parametrize("rule", ["low_confidence", "maskgit_plus:eps=0", "threshold", "factor", "klass"])
def test_an_order_that_prefers_likely_tokens_is_not(rule):
    """The same run with confidence to choose by is another law: the tests above can fail."""
    law, denoiser = random_joint()
    assert total_variation(law_of(denoiser, 2, sampler=rule), law.flatten()) > 0.01


@pytest.mark.parametrize("rule", VARIANTS)
def test_one_step_is_the_product_of_the_marginals(rule):
    """Whatever the rule, its last step draws all that is left independently, as temperature and cuts want it, 1e-12."""
    marginals = [LAW.sum(1), LAW.sum(0)]
    found = law_of(ExactDenoiser(PROCESS), 2, sampler=rule, steps=1)
    assert total_variation(found, torch.outer(*marginals).flatten()) < 1e-12
    assert total_variation(found, LAW.flatten()) == pytest.approx(DEPENDENCE, abs=1e-9)
    for shaped in ({"temperature": 0.6}, {"top_p": 0.6}, {"top_k": 2}, {"temperature": 1.7, "top_p": 0.7, "top_k": 2}):
        options = {"temperature": 1.0, **shaped}
        first, second = (tempered(one.log(), **options) for one in marginals)
        found = law_of(ExactDenoiser(PROCESS), 2, sampler=rule, steps=1, **shaped)
        assert total_variation(found, torch.outer(first, second).flatten()) < 1e-12


# ------------------------------------------------------------------------------------------------- rules that coincide


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("rule", "other"),
    [
        ("threshold:tau=1", "low_confidence"),
        ("threshold:tau=7,strict=false", "low_confidence"),
        ("factor:factor=0", "low_confidence"),
        ("klass:tau=1", "low_confidence"),
        ("klass:kl=0", "low_confidence"),
        ("hierarchical:tau=1,low=1", "low_confidence"),
        ("hierarchical:tau=0.6,low=0.6", "threshold:tau=0.6"),
        ("maskgit_plus:eps=0", "low_confidence"),
        ("maskgit:noise=0", "low_confidence"),
        ("positional:decay=0", "low_confidence"),
        ("positional:decay=1000", "sequential"),
        ("entropy_bounded:gamma=0", "entropy:eps=0"),
        ("entropy_bounded:gamma=1e-300", "entropy:eps=0"),
        ("left_to_right", "sequential"),
    ],
)
def test_rules_at_their_limits_are_others_bit_for_bit(rule, other, temperature, dtype):
    """One a step: the same tokens, the same log p of each, the same calls."""
    options = {"length": 9, "num": 5, "temperature": temperature}
    one, two = (sample(PROCESS, Context(dtype=dtype), sampler=name, **options) for name in (rule, other))
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.logp, two.logp)
    assert one.cost.of_rows == two.cost.of_rows


@pytest.mark.parametrize("gamma", [0.0, 1e-300])
def test_no_entropy_to_spare_is_the_lowest_entropy_first(gamma):
    """Position by position, by hand."""
    logp = random_law(9, 3)
    lowest = sorted(range(9), key=lambda i: -(logp[i].exp() * logp[i]).sum().item())
    for n in range(9):
        assert written(f"entropy_bounded:gamma={gamma}", logp, given=lowest[:n]) == [lowest[n]]


TIED = [name for name in VARIANTS if name.partition(":")[0] not in ("dilated", "random_order", "origin")]
TIED = [name for name in TIED if not any(one in name for one in ("alg_temp", "maskgit:", "low="))]
TIED = [name for name in TIED if name != "maskgit"] + ["maskgit:noise=0"]


@pytest.mark.parametrize("rule", TIED)
def test_ties_go_to_the_lowest_index(rule):
    """All positions alike: a step, of one token or of half, writes the leftmost masks; with a gap, the leftmost so."""
    logp = torch.tensor([0.3, 0.4, 0.3]).log().expand(12, 3)
    for given, s in (((), None), ((0, 3), None), ((0, 3), 0.5), ((), 0.5)):
        open_ = [i for i in range(12) if i not in given]
        found = written(rule, logp, given=given, s=s)
        gap = int(rule.partition("gap=")[2] or 1)
        expected = greedy(open_, gap)[: len(found)]
        expected += [i for i in open_ if i not in expected][: len(found) - len(expected)]
        assert found == sorted(expected)


# --------------------------------------------------------------------------------------------- how many tokens a step


@pytest.mark.parametrize("rule", ["low_confidence", "random_order", "sequential", "positional", "threshold:tau=1"])
def test_even_shares(rule):
    """LLaDA's: 10 masks in 4 steps are 3, 3, 2, 2; 3 in 5 are 1, 1, 1 and no call for the rest."""
    assert left_after(rule, 10, 4)[0] == [7, 4, 2, 0]
    left, made = left_after(rule, 3, 5)
    assert left == [2, 1, 0]
    assert made.nfe == 3


@pytest.mark.parametrize("rule", ["maskgit_plus", "topk_margin", "entropy", "entropy:alg_temp=1"])
def test_dreams_numbers(rule):
    """8 masks in 8 steps leave 8, 7, 6, 5, 4, 3, 2, 0 and in 4 steps 7, 5, 3, 0; what writes nothing costs nothing."""
    for steps, expected in ((8, [8, 7, 6, 5, 4, 3, 2, 0]), (4, [7, 5, 3, 0])):
        left, made = left_after(rule, 8, steps)
        assert left == expected
        assert made.nfe == len(set(expected)) - (expected[0] == 8)
    assert left_after(f"{rule}{',' if ':' in rule else ':'}eps=0", 8, 8)[0] == [7, 6, 5, 4, 3, 2, 1, 0]


def test_dreams_numbers_are_each_rows_own():
    """A row of 8 masks beside one of 3: neither counts the other's."""
    canvas, left = torch.zeros(2, 8, dtype=torch.long), []
    frozen = torch.tensor([[False] * 8, [True] * 5 + [False] * 3])
    sample(PROCESS, Context(), canvas=canvas, frozen=frozen, steps=8, sampler="entropy",
           callback=lambda one: left.append((one.z == 3).sum(1).tolist()))  # fmt: skip
    assert [row[0] for row in left] == [8, 7, 6, 5, 4, 3, 2, 0]
    assert [row[1] for row in left] == [3, 3, 3, 3, 3, 3, 2, 0]


def test_dreams_grid():
    """1 - s'/t' in four steps, as computed from the authors' grid, and 1 at the end."""
    t = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64)
    found = published.share(t, t - 0.25, 1e-3)
    assert found.tolist() == pytest.approx([0.24975, 0.332889, 0.499001, 1], abs=5e-7)
    assert found[-1] == 1


def test_origin_reveals_each_mask_by_itself():
    """A mask is written if its own uniform number is below 1 - s'/t'; a row that reveals none is not asked."""
    u = torch.tensor([[0.0, 0.2497, 0.2498, 0.5, 0.9], [0.4, 0.45, 0.6, 0.7, 0.9]], dtype=torch.float64)
    logp = random_law(5, 3)
    with patch.object(published, "rand", lambda *_: u):
        assert step("origin", logp, s=0.75, rows=2).tolist() == [[1, 1, 0, 0, 0], [0] * 5]
        assert step("origin", logp, t=0.25, s=0.0, rows=2).tolist() == [[1] * 5] * 2
        made = sample(PROCESS, Context(), length=5, num=2, steps=4, sampler="origin")
    assert made.cost.of_rows == [3, 2]


def test_maskgits_numbers():
    """The golden list: N = 256, T = 8, cosine."""
    left, made = left_after("maskgit", 256, 8)
    assert left == [251, 236, 212, 181, 142, 97, 49, 0]
    assert made.nfe == 8


SHARES = {
    "cosine": lambda r, n: math.cos(math.pi * r / 2),
    "uniform": lambda r, n: 1 - r,
    "square": lambda r, n: 1 - r * r,
    "cubic": lambda r, n: 1 - r**3,
    "sqrt": lambda r, n: 1 - math.sqrt(r),
    "pow,exponent=1.7": lambda r, n: 1 - r**1.7,
    "log": lambda r, n: min(1.0, -math.log2(r) / math.log2(n)),
    "exp": lambda r, n: 1 - 2 ** (-math.log2(n) * (1 - r)),
}


@pytest.mark.parametrize("schedule", SHARES)
def test_maskgits_schedules(schedule):
    """Masks left: floor(N gamma), one written a step at least and one left before the last; N is the free positions."""
    for length, steps in ((40, 7), (40, 10), (5, 9), (1, 3), (2, 2)):
        expected, left = [], length
        for k in range(1, steps):
            stay = math.floor(length * SHARES[schedule](k / steps, max(2, length)) + 1e-9)
            left = min(max(1, stay), left - 1)
            expected.append(left)
        expected = [*expected, 0]
        expected = expected[: expected.index(0) + 1]
        assert left_after(f"maskgit:schedule={schedule}", length, steps)[0] == expected
        prompted = left_after(f"maskgit:schedule={schedule}", length, steps, prompt=[0, 1, 2])
        assert prompted[0] == expected


@pytest.mark.parametrize("n", range(1, 10))
def test_dilated_rounds(n):
    """ceil(log2 n) calls; round r writes the free positions number j with j mod 2^(R-r) = 0 not written before."""
    logp, rounds = random_law(2 * n + 1, 3), max(1, math.ceil(math.log2(n)))
    free = [i for i in range(2 * n + 1) if i % 2]  # every other position is given: distances are among free ones
    given, done = [i for i in range(2 * n + 1) if i % 2 == 0], []
    for r in range(1, rounds + 1):
        expected = [free[j] for j in range(n) if j % 2 ** (rounds - r) == 0 and free[j] not in done]
        frozen = torch.zeros(1, 2 * n + 1, dtype=torch.bool)
        frozen[:, given] = True
        z = torch.where(frozen, 0, 3)
        z[:, done] = 1
        t, s = torch.tensor([1.0]), torch.tensor([0.9])
        made = samplers.dilated(PROCESS, lambda z, t, w: logp[w[0]], z, t, s, Draw(frozen, None, 0.0))
        assert (made != z)[0].nonzero().flatten().tolist() == expected
        done += expected
    assert sorted(done) == free
    assert left_after("dilated", n)[1].nfe == rounds


def test_dilated_in_fewer_steps_joins_rounds():
    """Five rounds of 32 in 2 steps: three, whose positions are 4 apart, then two; in 5 or more a round each."""
    assert left_after("dilated", 32, 2)[0] == [24, 0]
    assert left_after("dilated", 32, 5)[0] == left_after("dilated", 32, 20)[0] == [30, 28, 24, 16, 0]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_sequential_writes_the_leftmost_masks(schedule):
    """An even share a step whatever the schedule, round given tokens."""
    canvas, seen = torch.tensor([[0, 1, 0, 0, 2, 0, 0]]), []
    sample(processes.masked(3, schedule), Context(), canvas=canvas, frozen=canvas > 0, steps=3, sampler="sequential",
           callback=lambda one: seen.append((one.z != 3).int()[0].tolist()))  # fmt: skip
    assert seen == [[1, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0], [1] * 7]


# -------------------------------------------------------------------------------------------- rules as they are defined


def random_step(seed: int):
    """A law (L, K) that is sure here and there, what is given, and p of the likeliest tokens at the rest."""
    g = torch.Generator().manual_seed(seed)
    length = 1 + int(torch.randint(14, (1,), generator=g))
    logp = (
        torch.randn(length, 4, generator=g, dtype=torch.float64) * 6 * torch.rand(length, 1, generator=g)
    ).log_softmax(-1)
    given = [i for i in range(length) if torch.rand((), generator=g) < 0.25]
    open_ = [i for i in range(length) if i not in given]
    return logp, given, open_, [row.max().exp().item() for row in logp], [-(r.exp() * r).sum().item() for r in logp]


def greedy(order, gap, taken=()):
    """Those of ``order`` that keep ``gap`` from all taken before them."""
    taken = list(taken)
    for i in order:
        if all(abs(i - j) >= gap for j in taken):
            taken.append(i)
    return taken


def enough(sure, order, least, gap):
    """The sure ones that keep the gap; then others that do; then others; both by ``order``, up to ``least``."""
    first = greedy([i for i in order if i in sure], gap)
    spaced = greedy([i for i in order if i not in sure], gap, first)
    found = first + [i for i in spaced if i not in first][: max(0, least - len(first))]
    return sorted(found + [i for i in order if i not in found][: max(0, least - len(found))])


def by_definition(rule, open_, p, h, least, gap):
    order = sorted(open_, key=lambda i: (-p[i], i))
    if rule == "threshold":
        sure = [i for i in open_ if p[i] > 0.7]
    elif rule == "factor":
        n = 1
        while n < len(order) and p[order[n]] >= 1 - 1.2 / (n + 2):
            n += 1
        sure = order[:n]
    elif rule == "entropy_bounded":
        order = sorted(open_, key=lambda i: (h[i], i))
        n = max(n for n in range(1, len(order) + 1) if sum(h[i] for i in order[:n]) - h[order[n - 1]] <= 0.6)
        sure = order[:n]
    else:
        runs = [[i for _, i in run] for _, run in itertools.groupby(enumerate(open_), lambda one: one[1] - one[0])]
        best = [min(run, key=lambda i: (-p[i], i)) for run in runs]
        sure = [i for i in open_ if p[i] > 0.9 or (i in best and p[i] > 0.6)]
    return enough(sure, order, least, gap)


DEFINED = {
    "threshold": "threshold:tau=0.7",
    "factor": "factor:factor=1.2",
    "entropy_bounded": "entropy_bounded:gamma=0.6",
    "hierarchical": "hierarchical:tau=0.9,low=0.6",
}


@pytest.mark.parametrize("gap", [1, 2, 3, 30])
@pytest.mark.parametrize("rule", DEFINED)
def test_adaptive_rules_are_what_they_say(rule, gap):
    """Against the definition, for 40 random laws, with one and with three tokens a step at least."""
    several = 0
    for seed in range(40):
        logp, given, open_, p, h = random_step(seed)
        for s in (1 - 1e-9, 0.7) if open_ else ():
            least = 1 if s > 0.9 else math.ceil(len(open_) / 3)
            expected = by_definition(rule, open_, p, h, least, gap)
            assert written(f"{DEFINED[rule]},gap={gap}", logp, given=given, s=s) == expected
            several += least == 1 and len(expected) > 1
    assert several > 10 or gap == 30


@pytest.mark.parametrize("gap", [1, 2, 3, 5])
def test_what_is_sure_and_what_is_added_to_it(gap):
    """Any set may be sure, of whatever scores: those first, then others by score, with the gap and then without."""
    g = torch.Generator().manual_seed(gap)
    score, open_ = torch.rand(200, 12, generator=g), torch.rand(200, 12, generator=g) < 0.8
    score = (4 * score).round()  # with ties
    sure = open_ & (torch.rand(200, 12, generator=g) < 0.4)
    least = torch.minimum(torch.randint(6, (200,), generator=g), open_.sum(1))
    found = adaptive.enough(sure, score, open_, least, gap)
    for row in range(200):
        order = sorted(open_[row].nonzero().flatten().tolist(), key=lambda i, row=row: (-float(score[row, i]), i))
        expected = enough(sure[row].nonzero().flatten().tolist(), order, int(least[row]), gap)
        assert found[row].nonzero().flatten().tolist() == expected


def test_a_bound_that_is_met_exactly_is_kept():
    """factor: 1 - 1.5 / 3 = 1/2 is the second's p; entropy_bounded: gamma is the entropy of the first."""
    logp = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log().expand(4, 3)
    assert float(logp[0, 0].exp()) == 0.5
    assert written("factor:factor=1.5", logp) == [0, 1]
    entropy = float(torch.special.entr(logp[0].exp()).sum())
    assert written(f"entropy_bounded:gamma={entropy!r}", logp) == [0, 1]


def test_a_gap_is_kept_by_whole_runs():
    """One token a step at least: no two of a step are closer, and both rules with it and without write all."""
    for rule in ("threshold:tau=0.4,gap=3", "entropy_bounded:gamma=9,gap=3", "klass:tau=0.3,kl=9,history=1,gap=3"):
        before, close, most = [torch.full((1, 20), 3)], [], [0]

        def look(one, before=before, close=close, most=most):
            new = ((one.z != before[-1]) & (before[-1] == 3))[0].nonzero().flatten()
            close.extend((new.diff() < 3).tolist())
            most[0] = max(most[0], len(new))
            before.append(one.z)

        sample(PROCESS, Context(), length=20, temperature=0.0, sampler=rule, callback=look)
        assert not any(close)
        assert most[0] > 1


def klass_by_definition(denoiser, length, tau, kl, history):
    """Which positions each step writes at temperature 0, by a list of all laws of each mask so far."""
    z, laws, steps = torch.full((1, length), 3), [], []
    while bool((z == 3).any()):
        logp = denoiser(z, None)[0]
        laws.append(logp)
        open_ = [i for i in range(length) if z[0, i] == 3]
        p, sure = logp.max(-1).values.exp().tolist(), []
        for i in open_:
            pairs = list(itertools.pairwise([one[i] for one in laws]))[-history:]
            moved = [(a.exp() * (a - b)).sum().item() for b, a in pairs]
            if len(moved) == history and max(moved) < kl and p[i] > tau:
                sure.append(i)
        steps.append(sure or [min(open_, key=lambda i: (-p[i], i))])
        z[0, steps[-1]] = logp.argmax(-1)[steps[-1]]
    return steps


@pytest.mark.parametrize("history", [1, 2, 3])
def test_klass_is_what_it_says(history):
    """A law that moves slowly enough for some tokens to rest; per row, beside a row that moves otherwise."""

    class Slow(Context):
        def __call__(self, z, t, cond=None):
            drift = torch.sin(((z == 3).sum(1)[:, None] * torch.arange(1, z.shape[1] + 1)).double())
            sharp = 3 + torch.arange(z.shape[1]).double() % 4
            base = torch.cos(torch.arange(3) * torch.arange(1.0, z.shape[1] + 1, dtype=torch.float64)[:, None])
            return (sharp[None, :, None] * base + 0.6 * drift[..., None] * torch.arange(3)).log_softmax(-1)

    expected = klass_by_definition(Slow(), 16, 0.6, 0.1, history)
    rule, before, found = f"klass:tau=0.6,kl=0.1,history={history}", [torch.full((16,), 3)], []

    def look(one):
        found.append(((one.z[0] != 3) & (before[-1] == 3)).nonzero().flatten().tolist())
        before.append(one.z[0])

    sample(PROCESS, Slow(), length=16, temperature=0.0, sampler=rule, callback=look)
    assert found == expected
    assert max(map(len, expected)) > 1
    assert all(len(one) == 1 for one in expected[:history])


def test_klass_measures_from_the_law_before_to_the_law_now():
    """KL(now || before) is .076 nats from [.9, .09, .01] to [.99, .005, .005], and .181 the other way round."""
    laws = [torch.tensor(p).log() for p in ([0.9, 0.09, 0.01], [0.99, 0.005, 0.005])]

    class Two(Context):
        def __call__(self, z, t, cond=None):
            return laws[0 if bool((z == 3).all()) else 1].expand(*z.shape, 3)

    rule = "klass:tau=0.8,kl=0.1,history=1"
    assert left_after(rule, 4, denoiser=Two(), temperature=0.0)[0] == [3, 0]
    laws.reverse()
    assert left_after(rule, 4, denoiser=Two(), temperature=0.0)[0] == [3, 2, 0]


def test_klass_forgets_the_laws_of_before_a_position_was_written():
    """A mask that a callback puts back, one step after it was written, has to come to rest again; the others do not."""
    logp, seen = torch.tensor([0.96, 0.02, 0.02]).log().expand(4, 3), []

    def back(one):
        seen.append((one.z[0] == 3).int().tolist())
        return torch.where(torch.arange(4) == 0, 3, one.z) if one.index == 1 else None

    sample(PROCESS, Table(logp), length=4, steps=9, temperature=0.0, sampler="klass:history=2", callback=back)
    assert seen == [[0, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_klass_rests_where_tokens_are_ruled_out():
    """-inf now and before is no movement: with a banned token three laws alike are written at the third step."""
    logp = torch.tensor([0.96, 0.02, 0.02]).log().expand(6, 3)
    left = left_after("klass", 6, None, Table(logp), temperature=0.0, banned=[1])[0]
    assert left == [5, 4, 0]


def test_threshold_can_be_llada2s_rule():
    """n = length / steps of each step, whatever was written before: all above tau if they are n, else the n surest."""
    sure = torch.tensor([0.95, 0.6, 0.8, 0.9, 0.5, 0.85, 0.72, 0.69, 0.92, 0.99, 0.5, 0.71], dtype=torch.float64)
    denoiser, length, steps = Table(torch.stack([sure, 0.6 - 0.6 * sure, 0.4 - 0.4 * sure], -1).log()), 12, 4
    z, expected = torch.full((1, length), 3), []
    while bool((z == 3).any()):
        logp = denoiser(z, None)[0]
        p, open_ = logp.max(-1).values.exp(), (z[0] == 3)
        order = sorted(open_.nonzero().flatten().tolist(), key=lambda i: (-p[i].item(), i))
        above = [i for i in order if p[i] > 0.7]
        take = above if len(above) >= length // steps else order[: length // steps]
        z[0, take] = logp.argmax(-1)[take]
        expected.append(int((z == 3).sum()))
    left, made = left_after("threshold:tau=0.7,least=3", length, steps, denoiser, temperature=0.0)
    assert left == expected
    assert torch.equal(made.tokens, z)
    assert left != left_after("threshold:tau=0.7", length, steps, denoiser, temperature=0.0)[0]


def test_strict_or_not():
    """p = tau exactly: written only if the rule is not strict."""
    logp = torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.125, 0.125], [0.5, 0.25, 0.25]], dtype=torch.float64).log()
    p = float(logp[0].max().exp())
    assert written(f"threshold:tau={p!r}", logp) == [1]
    assert written(f"threshold:tau={p!r},strict=false", logp) == [0, 1, 2]


def positional_by_definition(logp, frequencies, decay, alpha, start):
    token = logp.argmax(-1).tolist()
    score = [
        math.exp(-decay * (i - start)) * min(-logp[i].max().exp().item() * math.log(frequencies[v]), alpha)
        for i, v in enumerate(token)
    ]
    return score


@pytest.mark.parametrize(("decay", "alpha"), [(0.25, 10.0), (0.05, 0.7), (0.0, 10.0)])
def test_positional_by_its_formula(decay, alpha):
    for seed in range(20):
        logp, given, open_, *_ = random_step(seed)
        if not open_:
            continue
        counts = torch.tensor([900, 60, 30, 10])
        for rule, f in ((f"positional:decay={decay},alpha={alpha}", [0.25] * 4),
                        (samplers.calibrated(counts, decay=decay, alpha=alpha), (counts / 1000).tolist())):  # fmt: skip
            score = positional_by_definition(logp, f, decay, alpha, open_[0])
            order = sorted(open_, key=lambda i, score=score: (-round(score[i], 12), i))
            assert written(rule, logp, given=given, s=1 - 1e-9) == order[:1]
            assert written(rule, logp, given=given, s=0.5) == sorted(order[: math.ceil(len(open_) / 2)])


def test_positional_far_down_a_text():
    """e^(-decay i) would be 0 from position 3000 on: it is the distance from the first mask that counts."""
    logp = torch.tensor([[0.4, 0.3, 0.3], [0.9, 0.05, 0.05]]).log().repeat(2500, 1)
    assert written("positional", logp, given=range(4998), s=1 - 1e-9) == [4999]


def test_frequent_tokens_wait():
    """Two sure tokens, one of them a comma: the other is written first, and stays so if the comma is surer."""
    logp = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.85, 0.1]]).log()
    rule = samplers.calibrated(torch.tensor([98, 1, 1]), decay=0.0)
    assert (written("positional:decay=0", logp), written(rule, logp)) == ([0], [1])
    assert written(samplers.calibrated(torch.tensor([0, 1, 1]), decay=0.0), logp) == [0]


# -------------------------------------------------------------------------------------------------- chance in the order


@pytest.mark.parametrize(
    ("rule", "weight"),
    [
        ("maskgit_plus:eps=0,alg_temp=0.3", lambda p, h, m: p / 0.3),
        ("topk_margin:eps=0,alg_temp=0.5", lambda p, h, m: m / 0.5),
        ("entropy:eps=0,alg_temp=0.4", lambda p, h, m: -h / 0.4),
        ("maskgit:schedule=uniform,noise=3", lambda p, h, m: p.log() / 1.5),
    ],
)
def test_positions_are_drawn_without_replacement(rule, weight):
    """Two of four in the step from 1 to 1/2, in proportion to exp(weight): chi-square over the six pairs."""
    logp = random_law(4, 3, seed=5)
    best = logp.exp().sort(descending=True).values
    w = weight(best[:, 0], -(logp.exp() * logp).sum(-1), best[:, 0] - best[:, 1]).exp()
    w = w / w.sum()
    pairs = list(itertools.combinations(range(4), 2))
    probs = torch.stack([w[i] * w[j] / (1 - w[i]) + w[j] * w[i] / (1 - w[j]) for i, j in pairs])
    made = step(rule, logp, s=0.5, rows=20_000, temperature=0.0, seed=1)
    assert set(made.sum(1).tolist()) == {2}
    counts = torch.stack([(made[:, i] & made[:, j]).sum() for i, j in pairs]).double()
    assert chi_square_tail(counts, probs) > 1e-4
    assert chi_square_tail(counts, torch.full((6,), 1 / 6, dtype=torch.float64)) < 1e-6


def test_order_is_uniform_in_random_order():
    """Each pair of four positions alike."""
    made = step("random_order", random_law(4, 3), s=0.5, rows=20_000, seed=2)
    counts = torch.stack([(made[:, i] & made[:, j]).sum() for i, j in itertools.combinations(range(4), 2)]).double()
    assert chi_square_tail(counts, torch.full((6,), 1 / 6, dtype=torch.float64)) > 1e-4


# ------------------------------------------------------------------------------------------------------- for every rule


@pytest.mark.parametrize("rule", VARIANTS)
def test_given_steps_suffice(rule):
    """Random lengths, gaps, steps: all is written, given tokens stay, no more steps than given or calls than masks."""
    g = torch.Generator().manual_seed(0)
    for trial in range(6):
        length, steps = (int(torch.randint(1, 14, (1,), generator=g)) for _ in range(2))
        canvas = torch.randint(3, (3, length), generator=g)
        frozen = torch.rand(3, length, generator=g) < 0.3
        seen = []
        made = sample(PROCESS, Context(), canvas=canvas, frozen=frozen, steps=None if trial == 0 else steps,
                      seeds=[trial, 1, 2], sampler=rule, callback=seen.append)  # fmt: skip
        assert int(made.tokens.max()) < 3
        assert torch.equal(made.tokens[frozen], canvas[frozen])
        masks = (~frozen).sum(1)
        for row in range(3):  # rows of other numbers of masks may be written apart
            taken = sum(row in one.rows for one in seen)
            assert taken <= (steps if trial else int(masks[row]))
        assert all(calls <= mask for calls, mask in zip(made.cost.of_rows, masks.tolist(), strict=True))
        assert all(step.z.eq(3).sum() == 0 for step in seen[-1:])  # by the rule, not by what mends a callback's masks


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("maskgit:schedule=cosin", "unknown schedule of maskgit 'cosin'; did you mean 'cosine'"),
        ("maskgit:schedule=pow", "exponent=None of maskgit:schedule=pow"),
        ("maskgit:exponent=2", "exponent=2.0 of maskgit:schedule=cosine"),
        ("maskgit:schedule=pow,exponent=-1", "exponent=-1.0"),
        ("maskgit:noise=-1", "noise=-1.0 of maskgit"),
        ("origin:eps=1", r"eps=1.0 is outside \[0, 1\)"),
        ("entropy:alg_temp=-1", "alg_temp=-1.0 of entropy"),
        ("topk_margin:alg_temp=nan", "alg_temp=nan of topk_margin"),
        ("threshold:least=0", "least=0 of threshold"),
        ("threshold:tau=-0.1", "tau=-0.1"),
        ("klass:tau=nan", "tau=nan"),
        ("hierarchical:low=-1", "tau=-1.0"),
        ("threshold:strict=maybe", "strict='maybe' should be like True"),
        ("factor:factor=-1", "factor=-1.0"),
        ("entropy_bounded:gamma=-1", "gamma=-1.0 of entropy_bounded"),
        ("klass:kl=-1", "kl=-1.0, history=2 of klass"),
        ("klass:history=0", "history=0 of klass"),
        ("positional:decay=-1", "decay=-1.0, alpha=10.0 of positional"),
        ("positional:alpha=0", "alpha=0.0 of positional"),
        *((f"{name}:gap=0", "gap=0: pass 1") for name in ADAPTIVE),
        *((f"{name}:of=drwn", "unknown law to score by 'drwn'; did you mean 'drawn'") for name in ADAPTIVE),
    ],
)
def test_mistakes_are_named(rule, message):
    with pytest.raises(ValueError, match=message):
        sample(PROCESS, Context(), length=4, sampler=rule)


def test_frequencies_that_are_none_are_named():
    for counts in ([0.0, 0.0], [-1.0, 2.0], [[1.0]], [math.nan, 1.0], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="frequencies of shape"):
            samplers.calibrated(torch.tensor(counts))
    with pytest.raises(ValueError, match="frequencies of 2 tokens for a vocabulary of 3"):
        sample(PROCESS, Context(), length=4, sampler=samplers.calibrated(torch.ones(2)))
