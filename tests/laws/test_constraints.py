"""Regular constraints: the law of what is proposed is the law given the constraint, and every text satisfies it."""

import math
from contextlib import suppress
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
import torch

from redraft import processes
from redraft.constraints import each, layers, of_edges, paths, regular
from redraft.constraints.regular import Regular
from redraft.models import Transformer, TransformerConfig
from redraft.processes import Facts
from redraft.randomness import generator
from redraft.sampling import sample
from redraft.sampling.contract import Draw
from redraft.sampling.law import Law
from redraft.sampling.samplers import SAMPLERS, proposes

K, MASK = 4, 4
PROCESS = processes.masked(K)
ANY = -1


class Machine:
    """A random automaton over K ids as a table, and what the package makes of it."""

    def __init__(self, seed: int, states: int = 4, size: int = K) -> None:
        draw = np.random.default_rng(seed)
        self.table = np.where(draw.random((states, size)) < 0.6, draw.integers(0, states, (states, size)), -1)
        self.accept = sorted({int(one) for one in draw.integers(0, states, 2)})
        edges = [(q, v, int(after)) for q, row in enumerate(self.table) for v, after in enumerate(row) if after >= 0]
        self.constraint = Regular(of_edges(states, size, edges, self.accept))

    def accepts(self, ids, stop=None) -> bool:
        ids = list(ids)
        if stop is not None and stop in ids:
            end = ids.index(stop)
            if any(one != stop for one in ids[end:]):
                return False
            ids = ids[:end]
        state = 0
        for one in ids:
            state = self.table[state][one]
            if state < 0:
                return False
        return state in self.accept


def machines(count: int, **options):
    """Random automata that accept something."""
    seed, found = 0, []
    while len(found) < count:
        with suppress(ValueError):
            found.append(Machine(seed, **options))
        seed += 1
    return found


def random_law(length: int, seed: int, size: int = K):
    draw = torch.randn(length, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * draw).log_softmax(-1)


def conditional(accepts, z, asked, logp) -> dict[tuple[int, ...], float]:
    """P(tokens at the positions asked about | some text goes with them and with what stands on z), by enumeration.

    The other masks may become anything; P itself is the product of the rows of ``logp``.
    """
    options = [range(logp.shape[1]) if one == MASK else [one] for one in z]
    possible = {tuple(text[i] for i in asked) for text in product(*options) if accepts(text)}
    weight = {some: math.exp(sum(logp[i][one].item() for i, one in enumerate(some))) for some in possible}
    total = sum(weight.values())
    return {some: one / total for some, one in weight.items() if one > 0}


def bound(constraint, z, frozen=None, stop=None, law=None):
    """The constraint on one row; free positions are masks unless said otherwise."""
    z = torch.tensor([z])
    frozen = torch.zeros_like(z, dtype=torch.bool) if frozen is None else torch.tensor([frozen])
    return constraint.bind(PROCESS, z, frozen, stop, law)


def proposed(made, z, asked, logp, **options):
    z = torch.tensor([z])
    where = torch.zeros_like(z, dtype=torch.bool)
    where[0, asked] = True
    draw = Draw(torch.zeros_like(where), [generator(0)], **options)
    return made.propose(z, where, logp, draw)


class _ImpossibleError(Exception):
    """What was told so far has probability 0."""


class Told:
    """``pick`` that takes the outcomes of ``path`` in turn, and then the first possible ones."""

    def __init__(self, path):
        self.path, self.sizes, self.weight = path, [], 1.0

    def __call__(self, weights, u):
        if len(self.sizes) == len(self.path):
            self.path.append(0)
        outcome = self.path[len(self.sizes)]
        self.sizes.append(len(weights))
        if weights[outcome] == 0:
            raise _ImpossibleError
        self.weight *= weights[outcome] / weights.sum()
        return outcome


def drawn_law(run) -> dict[tuple[int, ...], float]:
    """The exact law of what ``run`` returns, by every outcome of its picks."""
    law, path = {}, []
    while True:
        told = Told(path)
        with patch.object(paths, "pick", told), patch.object(regular, "pick", told), suppress(_ImpossibleError):
            tokens = tuple(run().tolist())
            law[tokens] = law.get(tokens, 0.0) + told.weight
        path = told.path[: len(told.sizes)]
        while path and path[-1] == told.sizes[len(path) - 1] - 1:
            path.pop()
        if not path:
            return law
        path[-1] += 1


CANVASES = {
    "all open": ([MASK] * 4, [0, 1, 2, 3]),
    "one": ([MASK], [0]),
    "one of many": ([MASK] * 4, [2]),
    "given between": ([MASK, 1, MASK, 0, MASK], [0, 2, 4]),
    "open behind": ([MASK] * 5, [0, 1]),
    "open before": ([MASK] * 5, [3, 4]),
    "open between": ([MASK] * 5, [0, 3]),
    "all of it": ([MASK, MASK, 2, MASK, MASK, MASK], [0, 3, 5]),
}


def cases(count=8, stop=None):
    """Canvases, automata and laws for which there is a text."""
    for name, (z, asked) in CANVASES.items():
        found = 0
        for number, machine in enumerate(machines(24)):
            logp = random_law(len(asked), number)
            expected = conditional(lambda ids, m=machine: m.accepts(ids, stop), z, asked, logp)
            if expected and found < count:
                found += 1
                yield name, machine, z, asked, logp, expected
        assert found >= 3, name


@pytest.mark.parametrize("stop", [None, 3])
def test_marginals_are_those_given_the_constraint(stop):
    """log p of each token, given that some text goes with it, against enumeration to 1e-12."""
    for name, machine, z, asked, logp, expected in cases(stop=stop):
        _, given = proposed(bound(machine.constraint, z, [one != MASK for one in z], stop), z, asked, logp)
        marginals = torch.zeros_like(logp)
        for some, weight in expected.items():
            for i, one in enumerate(some):
                marginals[i, one] += weight
        assert torch.allclose(given.exp(), marginals, atol=1e-12), name


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.6}, {"top_k": 3, "temperature": 1.5}, {"top_p": 0.9}], ids=str
)
def test_draws_have_the_law_given_the_constraint(options):
    """The joint law of what is drawn, by every outcome of the draws, against enumeration to 1e-12."""
    for name, machine, z, asked, logp, expected in cases(3):
        frozen = [one != MASK for one in z]
        law = Draw(torch.zeros(1, 1), None, **options).probs(logp).log()
        target = conditional(machine.accepts, z, asked, law)
        if not target:  # the cuts left none: as if there were no cuts
            target = conditional(machine.accepts, z, asked, logp / options.get("temperature", 1.0))
        made = bound(machine.constraint, z, frozen)
        found = drawn_law(lambda a=(made, z, asked, logp): proposed(*a, **options)[0])
        assert set(found) == set(target) <= set(expected), name
        assert all(abs(found[some] - target[some]) < 1e-12 for some in target), name


def test_cuts_that_leave_no_text_are_not_made():
    """The only text is of tokens that top_k would never take."""
    constraint = Regular(of_edges(3, K, [(0, 3, 1), (1, 3, 2)], [2]))
    logp = torch.tensor([[0.7, 0.2, 0.1 - 1e-9, 1e-9]], dtype=torch.float64).log().expand(2, -1)
    tokens, given = proposed(bound(constraint, [MASK] * 2), [MASK] * 2, [0, 1], logp, top_k=1)
    assert tokens.tolist() == [3, 3]
    assert torch.allclose(given.exp(), torch.tensor([0.0, 0, 0, 1], dtype=torch.float64))


def test_masses_beyond_a_float_are_told_apart():
    """Weights of e^-2000 are as good as others if nothing else satisfies the constraint."""
    constraint = Regular(of_edges(4, K, [(0, 2, 1), (1, 2, 3), (0, 3, 2), (2, 1, 3)], [3]))
    logp = torch.tensor([[0.0, -3000.0, -2000.0, -2001.0]] * 2, dtype=torch.float64)
    for temperature in (0.0, 0.7):
        made, law = bound(constraint, [MASK] * 2), logp.clone()
        law[1] = torch.tensor([0.0, -1000.0, -1002.0, 0.0], dtype=torch.float64)  # 22: -3002, 31: -3001
        tokens, given = proposed(made, [MASK] * 2, [0, 1], law, temperature=temperature)
        assert torch.allclose(given[0, 2:].exp(), torch.tensor([1, math.e]).double() / (1 + math.e), atol=1e-12)
        assert tokens.tolist() == [3, 1] or temperature > 0


def test_the_likeliest_text_and_ties():
    """At temperature 0 the argmax of all texts; of equals the one of lower ids, from left to right."""
    for name, machine, z, asked, logp, expected in cases(6):
        made = bound(machine.constraint, z, [one != MASK for one in z])
        best = max(expected, key=lambda some: expected[some])
        assert tuple(proposed(made, z, asked, logp, temperature=0.0)[0].tolist()) == best, name
        coarse = torch.randint(-2, 1, logp.shape, generator=torch.Generator().manual_seed(len(z))).double()
        weight = {some: sum(coarse[i, one].item() for i, one in enumerate(some)) for some in expected}
        most = max(weight.values())
        lowest = min(some for some, one in weight.items() if one == most)
        assert tuple(proposed(made, z, asked, coarse, temperature=0.0)[0].tolist()) == lowest, name


def test_any_part_may_be_written():
    """Whatever is kept of what was proposed, the next proposal is a text: the constraint holds in any order."""
    machine = machines(6)[3]
    seen = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        z = [MASK] * 6
        try:
            made = bound(machine.constraint, z)
        except ValueError:
            continue
        while MASK in z:
            open_ = [i for i in range(6) if z[i] == MASK]
            asked = sorted(draw.choice(open_, draw.integers(1, len(open_) + 1), replace=False).tolist())
            tokens, _ = proposed(made, z, asked, random_law(len(asked), seed), temperature=float(seed % 2))
            for i, token in zip(asked, tokens.tolist(), strict=True):
                if draw.random() < 0.5:
                    z[i] = token
        assert machine.accepts(z)
        seen += 1
    assert seen == 40


def test_a_block_is_seen_as_the_canvas():
    """The law of a block is that of the same positions of the whole canvas, masks elsewhere being any token."""
    for machine in machines(8):
        z = [MASK, MASK, 1, MASK, MASK, MASK, MASK]
        logp = random_law(3, 1)
        try:
            whole = bound(machine.constraint, z, [one != MASK for one in z], stop=0)
            found = proposed(whole, z, [1, 3, 4], logp)[1]
        except ValueError:
            continue
        block = whole.within(1, 5, torch.tensor([z]))
        again = proposed(block, z[1:5], [0, 2, 3], logp)[1]
        assert torch.equal(found, again)


def test_rows_keep_their_own():
    """Some rows of a batch, in any order, become what they may: 1 2 3 0 0 .. behind what is given."""
    constraint = Regular(of_edges(4, K, [(0, 1, 1), (1, 2, 2), (2, 3, 3), (3, 0, 3)], [3]))
    z = torch.tensor([[MASK] * 5, [3, MASK, MASK, MASK, MASK], [3, 3, MASK, MASK, MASK]])
    made = constraint.bind(PROCESS, z, z != MASK, None)
    texts = [[1, 2, 3, 0, 0], [3, 1, 2, 3, 0], [3, 3, 1, 2, 3]]
    for rows in ([0, 1, 2], [2, 0], [1]):
        some = z[rows]
        draw = Draw(some != MASK, [generator(row) for row in rows])
        tokens, _ = made.rows(torch.tensor(rows)).propose(
            some, some == MASK, random_law(int((some == MASK).sum()), 0), draw
        )
        some[some == MASK] = tokens
        assert some.tolist() == [texts[row] for row in rows]


def test_written_tokens_that_are_asked_about_stay():
    """A revision asks about them: they are their own proposal, and their law is the model's."""
    machine = machines(4)[1]
    text = next(ids for ids in product(range(K), repeat=4) if machine.accepts(ids))
    z, logp = [text[0], MASK, text[2], MASK], random_law(4, 0)
    tokens, given = proposed(bound(machine.constraint, [MASK] * 4), z, [0, 1, 2, 3], logp)
    assert machine.accepts(tokens.tolist())
    assert (tokens[0], tokens[2]) == (text[0], text[2])
    assert torch.equal(given[[0, 2]], logp[[0, 2]])


def test_states_and_ids_that_act_alike_are_one():
    """Trimming keeps the language and no more states or symbols than it needs."""
    edges = [(0, v, 1) for v in range(50)] + [(1, 7, 2), (2, 3, 2), (1, 8, 3), (4, 1, 2)]
    made = of_edges(5, 100, edges, [2])
    assert made.next.shape == (
        3,
        3,
    )  # the 3rd state leads nowhere, the 4th is not reached; 7, 3, and the others below 50
    assert made.least() == 2
    assert (made.symbol < 0).sum() == 50


def test_pick_is_the_inverse_distribution_function():
    weights = 3 * np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    grid = (np.arange(4000) + 0.5) / 4000
    counts = np.bincount([paths.pick(weights, u) for u in grid], minlength=6)
    assert counts.tolist() == [0, 1000, 0, 2000, 1000, 0]
    assert paths.pick(weights, 0.0) == 1
    assert paths.pick(weights, 1.0) == 4


# ------------------------------------------------------------------------------------------------ through the loop

SIZE = 11
WIDE = processes.masked(SIZE)
STOP = 1


def network(attention="full", block=None) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(WIDE.to_dict(), depth=1, attention=attention, block=block))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


FULL, BLOCKS = network(), network("block", 3)
LAYOUTS = {
    "whole": (FULL, {}),
    "blocks": (FULL, {"block": 3}),
    "prefix": (FULL, {"block": 4, "cache": "prefix"}),
    "dual": (FULL, {"block": 4, "cache": "dual", "refresh": 2}),
    "exact": (BLOCKS, {}),
}
RULES = sorted(name for name, one in SAMPLERS.items() if proposes(one))
RULES += ["threshold:tau=0.3+edit:tau=0.2,extra=2", "low_confidence+remask:share=0.5,extra=2"]
# 2 then pairs of an even and an odd id above 2, an odd one never followed by the even one below it; then 10s
_EDGES = [(0, 2, 1), (1, 10, 6), (6, 10, 6)]
_EDGES += [(1, even, even // 2) for even in (4, 6, 8)]
_EDGES += [(even // 2, odd, 1) for even in (4, 6, 8) for odd in (3, 5, 7, 9) if odd != even + 1]
PAIRS = Regular(of_edges(7, SIZE, _EDGES, [1, 6]))
PROMPTS, LENGTHS = [[1, 2, 3], [4], []], [5, 3, 7]


def in_pairs(ids, stop=None) -> bool:
    ids = list(ids)
    if stop is not None and stop in ids:
        end = ids.index(stop)
        assert all(one == stop for one in ids[end:])
        ids = ids[:end]
    while ids and ids[-1] == 10:
        ids.pop()
    pairs = list(zip(ids[1::2], ids[2::2], strict=False))
    alright = all(even in (4, 6, 8) and odd in (3, 5, 7, 9) and odd != even + 1 for even, odd in pairs)
    return ids[:1] == [2] and len(ids) % 2 == 1 and alright


def written(denoiser, rows, **options):
    drawn = sample(
        WIDE,
        denoiser,
        prompt=[PROMPTS[row] for row in rows],
        length=[LENGTHS[row] for row in rows],
        seeds=[row + 3 for row in rows],
        constraint=PAIRS,
        **options,
    )
    widths = [len(PROMPTS[row]) + LENGTHS[row] for row in rows]
    return drawn, [
        one[len(PROMPTS[row]) : width].tolist() for row, one, width in zip(rows, drawn.tokens, widths, strict=True)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sampler", RULES)
def test_every_rule_writes_texts_of_the_constraint(sampler, layout):
    """Whatever the rule, the blocks, the cache, the temperature and the stop token; and a batch is its rows."""
    denoiser, options = LAYOUTS[layout]
    for more in ({"temperature": 0.0, "steps": None if layout == "whole" else 2}, {"steps": 2, "stop": STOP}):
        drawn, texts = written(denoiser, range(3), sampler=sampler, **options, **more)
        assert all(in_pairs(text, more.get("stop")) for text in texts), texts
    alone, texts = written(denoiser, [2], sampler=sampler, **options, **more)
    assert texts[0] == drawn.tokens[2, :7].tolist()
    assert torch.equal(alone.logp[0].nan_to_num(9), drawn.logp[2, :7].nan_to_num(9))


def test_cuts_and_bans_leave_the_constraint_standing():
    for options in ({"top_k": 1}, {"top_p": 0.05}, {"repetition": 5.0}, {"banned": [4, 6]}):
        texts = written(FULL, range(3), sampler="threshold:tau=0.2", temperature=1.3, **options)[1]
        assert all(in_pairs(text) for text in texts)
        assert not any(one in options.get("banned", ()) for text in texts for one in text)
    with pytest.raises(ValueError, match=r"without the banned tokens \[2\]"):
        written(FULL, [0], sampler="threshold", banned=[2])


def test_frequencies_are_those_given_the_constraint():
    """One forward, all written at once: 400 texts against the law given the constraint.

    A right sampler raises the alarm in one seed of 1,000 (chi-square of 1e-3).
    """
    from .oracle import chi_square_tail

    logp = random_law(4, 5)

    def denoiser(z, t, cond=None):
        return logp.expand(len(z), -1, -1)

    denoiser.facts = Facts(mask_id=MASK)
    machine = machines(9)[6]
    target = conditional(machine.accepts, [MASK] * 4, [0, 1, 2, 3], logp)
    assert len(target) > 3
    texts = sample(
        PROCESS, denoiser, length=4, num=400, steps=1, sampler="low_confidence", constraint=machine.constraint
    ).tokens
    counts = dict.fromkeys(target, 0)
    for text in map(tuple, texts.tolist()):
        counts[text] += 1
    counts, law = (torch.tensor(list(one.values()), dtype=torch.float64) for one in (counts, target))
    assert chi_square_tail(counts, law) > 1e-3


class Counting:
    """A denoiser that counts its calls."""

    facts = Facts(mask_id=MASK)

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, z, t, cond=None):
        self.calls += 1
        return torch.zeros(*z.shape, K).log_softmax(-1)


@pytest.mark.parametrize(
    ("canvas", "stop", "said"),
    [
        ([None] * 2, None, "needs at least 3 tokens, and its text has 2 positions"),
        ([None] * 4, None, "no text of exactly 4 tokens"),
        ([None, 1, None], None, "with the 1 given"),
        ([None, 2, None], None, None),
        ([None] * 4, 0, None),
        ([None] * 4, 3, "of whatever length"),
    ],
)
def test_what_cannot_be_satisfied_is_refused_before_the_first_call(canvas, stop, said):
    """The only text is 1 2 3."""
    constraint = Regular(of_edges(4, K, [(0, 1, 1), (1, 2, 2), (2, 3, 3)], [3]))
    ids = torch.tensor([0 if one is None else one for one in canvas])
    frozen = torch.tensor([one is not None for one in canvas])
    denoiser = Counting()

    def run():
        return sample(
            PROCESS, denoiser, canvas=ids, frozen=frozen, stop=stop, sampler="threshold", constraint=constraint
        )

    if said is None:
        assert run().tokens[0, :3].tolist() == [1, 2, 3]
    else:
        with pytest.raises(ValueError, match=said):
            run()
        assert denoiser.calls == 0


def test_each_gap_has_its_own():
    """A constraint for a gap holds of that gap alone; a gap without one is free."""
    ones, twos = (Regular(of_edges(2, K, [(0, v, 1), (1, v, 1)], [1])) for v in (1, 2))
    canvas = torch.tensor([0, 0, 3, 0, 0, 3, 0, 0])
    frozen = canvas == 3
    options = {"canvas": canvas, "frozen": frozen, "num": 20, "sampler": "random_order"}
    texts = sample(PROCESS, Counting(), constraint=each({0: ones, 2: twos}), **options).tokens
    assert (texts[:, :2] == 1).all()
    assert (texts[:, 6:] == 2).all()
    assert len({tuple(text) for text in texts[:, 3:5].tolist()}) > 8
    with pytest.raises(ValueError, match="gap 3 of a text with 3 gaps"):
        sample(PROCESS, Counting(), constraint=each({3: ones}), **options)


def test_sets_of_states_are_bounded():
    """Sets for masks not asked about, between those that are."""
    machine = machines(6)[3]
    made = bound(machine.constraint, [MASK] * 6)
    with patch.object(layers, "MAX_SETS", 0), pytest.raises(ValueError, match="sets of states, at most 0"):
        proposed(made, [MASK] * 6, [1, 4], random_law(2, 0))


# -------------------------------------------------------------------------------------- rows, gaps and what is banned

ONES = Regular(of_edges(2, K, [(0, 1, 1), (0, 2, 1), (1, 1, 1), (1, 2, 1)], [1]))
TWO_OR_TWO = Regular(of_edges(4, K, [(0, 0, 1), (1, 1, 3), (0, 2, 2), (2, 3, 3)], [3]))  # 01 or 23
ONE_OR_THREE = Regular(of_edges(5, K, [(0, 0, 4), (0, 1, 1), (1, 1, 2), (2, 1, 4)], [4]))  # 0 or 111


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"top_p": 0.8}], ids=str)
def test_a_row_draws_alone_what_it_draws_beside_rows_with_free_gaps(options):
    """One row has a gap that nothing constrains, the other none: neither changes what the other draws."""
    frozen = torch.tensor([[0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 1, 1]]).bool()
    asked = {"sampler": "random_order", "constraint": each({0: ONES}), **options}
    canvas = torch.full((2, 6), 3)
    for seed in range(6):
        seeds = [seed, seed + 50]
        both = sample(PROCESS, Likely([0.0, 0.2, 0.1, 0.3]), canvas=canvas, frozen=frozen, seeds=seeds, **asked)
        for row in range(2):
            alone = sample(
                PROCESS,
                Likely([0.0, 0.2, 0.1, 0.3]),
                canvas=canvas[row],
                frozen=frozen[row],
                seeds=[seeds[row]],
                **asked,
            )
            assert torch.equal(alone.tokens[0], both.tokens[row])
            assert torch.equal(alone.logp[0].nan_to_num(9), both.logp[row].nan_to_num(9))


class Likely(Counting):
    """The same law everywhere."""

    def __init__(self, scores) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)

    def __call__(self, z, t, cond=None):
        self.calls += 1
        return self.scores.log_softmax(-1).expand(*z.shape, -1)


@pytest.mark.parametrize("rule", ["random_order", "low_confidence", "left_to_right"])
def test_no_gap_but_the_last_writes_stop(rule):
    """A model that favours stop: in an earlier gap it would end the text, and fill the gaps that are constrained."""
    frozen = torch.tensor([[0, 0, 1, 0, 0]]).bool()
    canvas, favoured = torch.full((1, 5), 3), Likely([0.0, 0.0, 4.0, 0.0])
    zeros = Regular(of_edges(3, K, [(0, 0, 1), (1, 1, 2), (0, 2, 1), (1, 2, 2)], [2]))  # 01, and 2, the stop token
    options = {"canvas": canvas, "frozen": frozen, "sampler": rule, "stop": 2}
    for temperature in (0.0, 1.0):
        for seed in range(6):
            asked = {"temperature": temperature, "seed": seed, **options}
            text = sample(PROCESS, favoured, constraint=each({1: zeros}), **asked).tokens[0].tolist()
            assert 2 not in text[:2]
            assert text[2] == 3
            assert text[3:] == [0, 1]
            text = sample(PROCESS, favoured, constraint=each({0: zeros}), **asked).tokens[0].tolist()
            assert text[:3] == [0, 1, 3]
    found = sample(PROCESS, favoured, constraint=each({0: zeros}), temperature=0.0, **options).tokens[0].tolist()
    assert found == [0, 1, 3, 2, 2]  # the last gap, which is free, may


@pytest.mark.parametrize("rule", ["random_order", "left_to_right", "low_confidence"])
def test_what_is_banned_is_no_way_out_for_masks_that_are_not_asked_about(rule):
    """01 or 23 without 1 is 23, whichever is written first."""
    for seed in range(20):
        asked = {"length": 2, "sampler": rule, "seed": seed, "constraint": TWO_OR_TWO}
        assert sample(PROCESS, Likely([3.0, 0.0, 0.0, 0.0]), banned=[1], **asked).tokens.tolist() == [[2, 3]]


@pytest.mark.parametrize("rule", ["random_order", "left_to_right", "low_confidence"])
def test_stop_before_the_least_length_is_no_way_out_either(rule):
    """0 or 111, and stop behind it, of three tokens at least: 111; of one, either."""
    found = set()
    for seed in range(20):
        asked = {"sampler": rule, "seed": seed, "constraint": ONE_OR_THREE, "stop": 3, "prompt": [2]}
        text = sample(PROCESS, Likely([4.0, 0.0, 0.0, 0.0]), length=3, min_length=3, **asked).tokens[0]
        assert text.tolist() == [2, 1, 1, 1]
        text = sample(PROCESS, Likely([0.0, 0.0, 0.0, 0.0]), length=4, min_length=2, block=2, **asked).tokens[0]
        assert text.tolist() == [2, 1, 1, 1, 3]
        found.add(tuple(sample(PROCESS, Likely([0.0] * 4), length=3, min_length=1, **asked).tokens[0].tolist()))
    assert found == {(2, 1, 1, 1), (2, 0, 3, 3)}


@pytest.mark.parametrize(
    ("constraint", "options", "said"),
    [
        (TWO_OR_TWO, {"banned": [1, 3]}, r"without the banned tokens \[1, 3\]"),
        (each([TWO_OR_TWO]), {"banned": [1, 2]}, r"without the banned tokens \[1, 2\]"),
        (TWO_OR_TWO, {"stop": 1, "banned": [3]}, "of whatever length|banned"),
        (TWO_OR_TWO, {"length": 4, "stop": 0, "min_length": 3}, "min_length"),
    ],
)
def test_what_bans_leave_no_text_of_is_refused_before_the_first_call(constraint, options, said):
    denoiser = Counting()
    asked = {"length": 2, "sampler": "random_order", "constraint": constraint, **options}
    with pytest.raises(ValueError, match=said):
        sample(PROCESS, denoiser, **asked)
    assert denoiser.calls == 0


def test_given_tokens_may_be_banned_ones():
    """A ban is on what is written: 0 stands, and 1 follows."""
    canvas, frozen = torch.tensor([3, 0, 3]), torch.tensor([False, True, False])
    constraint = Regular(of_edges(4, K, [(0, 2, 1), (1, 0, 2), (2, 1, 3)], [3]))
    options = {"canvas": canvas, "frozen": frozen, "sampler": "random_order", "constraint": constraint}
    assert sample(PROCESS, Counting(), banned=[0], **options).tokens.tolist() == [[2, 0, 1]]


@pytest.mark.parametrize("stop", [None, 3])
def test_marginals_with_bans_are_those_of_texts_without_them(stop):
    """Against enumeration: no mask becomes a banned token, nor stop before its time, asked about or not."""
    seen, banned, earliest = 0, 1, 2
    law = Law(torch.tensor([banned]), stop, None if stop is None else torch.tensor([earliest]))
    for name, (z, asked) in CANVASES.items():
        for number, machine in enumerate(machines(24)):

            def accepts(ids, m=machine, z=z):
                new = [(i, one) for i, one in enumerate(ids) if z[i] == MASK]
                early = any(one == stop and i < earliest for i, one in new)
                return not early and all(one != banned for _, one in new) and m.accepts(ids, stop)

            logp = random_law(len(asked), number)
            logp[:, banned] = -torch.inf
            if stop is not None:
                logp[[i for i, one in enumerate(asked) if one < earliest], stop] = -torch.inf
            frozen = [one != MASK for one in z]
            expected = conditional(accepts, z, asked, logp)
            if not expected:
                with pytest.raises(ValueError, match=r"constraint"):
                    bound(machine.constraint, z, frozen, stop, law)
                continue
            _, given = proposed(bound(machine.constraint, z, frozen, stop, law), z, asked, logp)
            marginals = torch.zeros_like(logp)
            for some, weight in expected.items():
                for i, one in enumerate(some):
                    marginals[i, one] += weight
            assert torch.allclose(given.exp(), marginals, atol=1e-12), name
            seen += 1
    assert seen > 40


def test_half_precision_is_read():
    """log p in bfloat16."""
    logp = random_law(2, 0).bfloat16()
    tokens, given = proposed(bound(TWO_OR_TWO, [MASK] * 2), [MASK] * 2, [0, 1], logp)
    assert tokens.tolist() in ([0, 1], [2, 3])
    assert given.dtype == torch.bfloat16
