"""Revisions and samplers that doubt what is written: editing, re-masking, WINO, renoising, Token-Critic."""

import itertools
from unittest.mock import patch

import pytest
import torch

from redraft import processes
from redraft.models import Transformer, TransformerConfig
from redraft.processes import Facts
from redraft.sampling import contract, sample, samplers
from redraft.sampling import critic as critics
from redraft.sampling.contract import Draw
from redraft.sampling.cost import Cost
from redraft.sampling.proposal import bounded
from redraft.sampling.query import Asked
from redraft.sampling.shadow import shadowed
from redraft.sampling.window import Window

from .exhaust import outcomes
from .oracle import DEPENDENCE, LAW, ExactDenoiser, posteriors, sequences, state_number, total_variation

PROCESS, MASK = processes.masked(3), 3


def at(time: float, rows: int = 1) -> torch.Tensor:
    return torch.full((rows,), time, dtype=torch.float64)


def query(denoiser):
    """A denoiser as a sampler called by hand is given it."""
    return lambda z, t, where=None: denoiser(z, t) if where is None else denoiser(z, t)[where]


def says(p) -> object:
    """A query that says p (L, K) of every row, whatever stands there."""
    logp = torch.as_tensor(p, dtype=torch.float64).log()
    return query(lambda z, t: logp.expand(len(z), -1, -1))


def step(sampler: str, asked, z, t=1.0, s=0.9, frozen=None, memory=None, **options):
    """One step of one row by hand; the canvas after it, and what is remembered."""
    z = torch.tensor([z])
    known = torch.zeros_like(z, dtype=torch.bool) if frozen is None else torch.tensor([frozen])
    options = {"temperature": 0.0, **options}
    draw = Draw(known, None, memory={} if memory is None else memory, **options)
    draw.memory.setdefault("logp", torch.full(z.shape, torch.nan, dtype=torch.float64))
    return samplers.get(sampler)(PROCESS, asked, z, at(t), at(s), draw)[0].tolist(), draw.memory


# --------------------------------------------------------------------------------------------------------------- edit


def conditionals(z) -> torch.Tensor:
    """p(x_i | the others) of LAW, (n, 2, 3)."""
    return (
        torch.stack([LAW.T[z[:, 1]], LAW[z[:, 0]]], 1)
        / torch.stack([LAW.sum(0)[z[:, 1]], LAW.sum(1)[z[:, 0]]], 1)[..., None]
    )


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.7])
def test_editing_by_exact_conditionals(tau):
    """Every token goes to the likeliest given the others as they stood, where that is likelier than tau, and by
    nothing else; the modes of the law, of which no single change is likelier, are its fixed points."""
    asked, states = query(ExactDenoiser(PROCESS)), sequences(3)
    p = conditionals(states)
    expected = torch.where(p.amax(-1) > tau, p.argmax(-1), states)
    for z, wanted in zip(states.tolist(), expected.tolist(), strict=True):
        found, memory = step(f"threshold+edit:tau={tau}", asked, z)
        assert found == wanted
        assert memory["done"].tolist() == [found == z]
    fixed = states[(p.argmax(-1) == states).all(1)]
    assert {tuple(one) for one in fixed.tolist()} >= {(2, 2), (0, 0), (1, 1)}
    assert (LAW.argmax(), LAW.argmax(1).tolist()) == (8, [0, 1, 2])


def test_an_edit_is_more_than_tau_and_another_token():
    p = [[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]
    assert step("threshold+edit:tau=0.5", says(p), [1, 1])[0] == [1, 1]
    assert step("threshold+edit:tau=0.49", says(p), [1, 1])[0] == [0, 2]
    found, memory = step("threshold+edit:tau=0", says(p), [1, 2], frozen=[True, False])
    assert found == [1, 2]
    assert memory["done"].item()
    found, memory = step("threshold+edit:tau=0", says(p), [1, 1])
    assert memory["logp"].exp().tolist() == [[0.5, 0.5]]  # what stands was written now


class Own:
    """A denoiser that always thinks the token after the one that stands, and of a mask 0, or ``others``."""

    def __init__(self, turns: bool = True) -> None:
        self.turns, self.calls = turns, 0
        self.facts = Facts(mask_id=MASK)

    def __call__(self, z, t, cond=None):
        self.calls += 1
        following = torch.where(z == MASK, 0, (z + 1) % 3 if self.turns else z)
        return (0.9 * torch.nn.functional.one_hot(following, 3).double() + 0.1 / 3).log()


@pytest.mark.parametrize("extra", [0, 1, 5, 16])
def test_editing_ends(extra):
    """A token that is never content is edited ``extra`` times more and no more; a content one is looked at once."""
    for options in ({}, {"block": 2}):
        restless = sample(PROCESS, Own(), length=4, sampler=f"sequential+edit:tau=0,extra={extra}", **options)
        blocks = 1 if not options else 2
        assert restless.nfe == 4 + blocks * extra
        content = sample(PROCESS, Own(False), length=4, sampler=f"sequential+edit:tau=0,extra={extra}", **options)
        assert content.nfe == 4 + blocks * min(extra, 1)
        assert content.tokens.tolist() == [[0, 0, 0, 0]]
    at_once = sample(PROCESS, Own(), length=4, sampler=f"threshold:tau=0+edit:tau=0,extra={extra}")
    assert at_once.nfe == 1 + extra  # of the 4 + extra steps that there are
    turns = 3 + extra  # the first is written in the first step of four, and edited in all others
    whole = sample(PROCESS, Own(), length=4, sampler=f"sequential+edit:tau=0,extra={extra}")
    assert whole.tokens.tolist() == [[(turns - i) % 3 for i in range(4)]]


def network(attention="full", block=None, depth=1, dtype=torch.float64) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(PROCESS.to_dict(), depth=depth, attention=attention, block=block))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype).eval()


SMALL = network(depth=2, dtype=torch.float32)
OPTIONS = {"prompt": [1, 0], "length": 9, "num": 3, "temperature": 0.9, "top_p": 0.95}


def assert_same(one: str, other: str, **options) -> None:
    """Two samplers write the same, at the same cost."""
    found, wanted = (sample(PROCESS, SMALL, sampler=name, **{**OPTIONS, **options}) for name in (one, other))
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(found.logp.nan_to_num(9), wanted.logp.nan_to_num(9))
    assert (found.nfe, found.positions, found.cost.of_rows) == (wanted.nfe, wanted.positions, wanted.cost.of_rows)


LAYOUTS = ({}, {"block": 4}, {"block": 4, "cache": "dual"})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", ["threshold:tau=0.4", "threshold:tau=0.9", "random_order"])
def test_a_revision_that_does_nothing_is_the_rule_and_costs_as_much(rule, layout):
    for nothing in ("edit:tau=1,extra=0", "remask:share=0,extra=0", "remask:share=0,when=written,extra=0"):
        assert_same(f"{rule}+{nothing}", rule, **layout)
    if rule != "random_order":  # whose draws are of a step, and more steps would be others
        for nothing in ("edit:tau=1", "remask:share=0", "remask:share=0,when=written"):
            assert_same(f"{rule}+{nothing}", rule, **layout)


def test_a_revision_that_does_nothing_reads_nothing():
    draw = Draw(torch.tensor([[True, False, False]]), None)
    z = torch.tensor([[0, 1, MASK]])
    for name, read in (("edit", [1]), ("edit:tau=1", []), ("remask", [1]), ("remask:share=0", []),
                       ("remask:when=written", [])):  # fmt: skip
        revision = samplers.get(f"threshold+{name}").revision
        assert revision.reads(z, draw, MASK)[0].nonzero().flatten().tolist() == read


# ------------------------------------------------------------------------------------------------------------- remask


P = [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.1, 0.7], [0.4, 0.4, 0.2], [0.8, 0.1, 0.1], [0.3, 0.3, 0.4]]


def test_remask_takes_back_the_least_sure():
    """floor(share s n) of the n that stood before, of the lowest p: those of 0.1, 0.2, 0.3 in this order."""
    z = [1, 0, 0, MASK, 0, 2]  # of p .3 .1 .2 - .8 .4
    for share, s, back in ((1.0, 0.99, 4), (0.5, 0.9, 2), (0.5, 0.7, 1), (0.3, 0.6, 0), (1.0, 0.0, 0)):
        found, memory = step(f"threshold:tau=0.9+remask:share={share}", says(P), z, t=1.0, s=s)
        order = [1, 2, 0, 5][:back]
        assert found == [MASK if i in order else 0 if i == 3 else one for i, one in enumerate(z)]
        assert memory["taken"][0].nonzero().flatten().tolist() == sorted(order)


def test_remask_and_its_limits():
    z = [1, 0, 0, MASK, 0, 2]
    found, _ = step("threshold+remask:share=1,tau=0.25", says(P), z, s=0.99)
    assert found == [1, MASK, MASK, 0, 0, 2]
    given = [False, True, False, False, False, False]
    found, _ = step("threshold+remask:share=0.5", says(P), z, s=0.99, frozen=given)
    assert found == [1, 0, MASK, 0, 0, 2]  # floor(.99 / 2 of 4) is 1, and not the given one
    taken = torch.tensor([[0, 1, 0, 0, 0, 0]])
    assert step("threshold+remask:share=0.5", says(P), z, memory={"taken": taken})[0] == [MASK, 0, MASK, 0, 0, 2]
    again = step("threshold+remask:share=0.5,times=2", says(P), z, memory={"taken": taken})[0]
    assert again == [1, MASK, MASK, 0, 0, 2]
    logp = torch.tensor([[0.9, 0.8, 0.7, torch.nan, 0.1, torch.nan]]).double().log()
    found, _ = step("threshold+remask:share=0.5,when=written", says(P), z, memory={"logp": logp})
    assert found == [1, 0, MASK, 0, MASK, 2]  # .1 and .7: nobody said how sure the last one was


def test_what_was_written_just_now_is_not_taken_back():
    """It is the rule's own choice of this step; and of ``written`` no call is made for it."""
    for when in ("now", "written"):
        found, memory = step(f"threshold:tau=0+remask:share=1,when={when}", says(P), [MASK] * 6)
        assert found == [0, 1, 2, 0, 0, 2]
        assert not memory["done"].item()
        _, memory = step(f"threshold:tau=0+remask:share=1,when={when}", says(P), [MASK] * 6, t=0.2, s=0.1)
        assert memory["done"].item()  # the step that is left takes nothing back


@pytest.mark.parametrize("when", ["now", "written"])
def test_remask_ends(when):
    """Every position once at most, so twice as many writes as masks; a row in which nothing is taken back is done."""
    seen: list[torch.Tensor] = []
    made = sample(
        PROCESS,
        SMALL,
        sampler=f"threshold:tau=0.3+remask:share=1,when={when}",
        callback=lambda step: seen.append(step.z.clone()),
        **OPTIONS,
    )
    canvases = torch.stack([torch.full_like(made.tokens, MASK), *seen])
    canvases[0, :, :2] = made.tokens[:, :2]
    back = ((canvases[:-1] != MASK) & (canvases[1:] == MASK)).sum(0)
    assert back.max() == 1
    assert made.cost.written <= 2 * 27
    assert (made.tokens < 3).all()
    assert len(seen) < 9 + 16


# ------------------------------------------------------------------------------------------------------- a constraint


class Among:
    """A constraint that allows some texts, by going through them all; tokens are the likeliest together."""

    def __init__(self, texts: torch.Tensor) -> None:
        self.texts, self.seen = texts, list[torch.Tensor]()

    def bind(self, process, ids, frozen, stop, law=None) -> "Among":
        return self

    def within(self, start, stop, canvas) -> "Among":
        return self

    def rows(self, rows) -> "Among":
        return self

    def propose(self, z, where, logp, draw):
        self.seen.append(z[where])
        tokens, laws, n = [], [], 0
        for row, asked in zip(z, where, strict=True):
            fits = ((row == MASK) | (row == self.texts)).all(1)
            assert fits.any(), "no text is left"
            texts, mine = self.texts[fits][:, asked], logp[n : n + int(asked.sum())]
            n += len(mine)
            score = mine.gather(1, texts.T).sum(0)
            tokens.append(texts[score.argmax()])
            share = score.softmax(0)
            laws.append(
                torch.zeros_like(mine).index_put((torch.arange(len(mine))[:, None], texts.T), share, True).log()
            )
        return torch.cat(tokens), torch.cat(laws)


@pytest.mark.parametrize("revision", ["edit:tau=0", "edit:tau=0.4", "remask:share=1", "remask:share=1,when=written"])
@pytest.mark.parametrize("rule", ["threshold:tau=0.3", "random_order", "wino:tau=0.3,verify=0.5"])
def test_revised_texts_still_satisfy_a_constraint(rule, revision):
    """Of 9 texts far from what the model likes, one is written whatever is edited and taken back; masks alone are asked
    of the constraint, and what is edited is asked of it together."""
    texts = torch.randint(0, 3, (9, 5), generator=torch.Generator().manual_seed(1))
    among = Among(texts)
    made = sample(PROCESS, SMALL, length=5, num=4, sampler=f"{rule}+{revision}", constraint=among, seed=2)
    for text in made.tokens:
        assert (text == texts).all(1).any()
    assert all((one == MASK).all() for one in among.seen)


# --------------------------------------------------------------------------------------------------------------- wino


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wino_without_verification_is_threshold(layout):
    """Bit for bit, and at its cost, where its cap is out of reach; with the cap, fewer are written."""
    assert_same("wino:tau=0.4,verify=0,share=1,least=99,most=99", "threshold:tau=0.4", **layout)
    counts = []
    for cap in ("least=1,most=2", "share=0.25,least=1"):
        left = [9]
        sample(
            PROCESS,
            SMALL,
            sampler=f"wino:tau=0,verify=0,{cap}",
            callback=lambda step, left=left: left.append(int((step.z[0] == MASK).sum())),
            **{**OPTIONS, "num": 1},
        )
        counts.append(left)
    assert counts[0] == [9, 7, 5, 3, 1, 0]
    assert counts[1] == [9, 7, 6, 5, 4, 3, 2, 1, 0]  # a quarter of 9 and of 8 is 2, of fewer 1; one at least


Z = torch.tensor([[0, 1, MASK, 2, MASK, 0, 1, 2], [2, MASK, 0, MASK, MASK, 1, 1, 0]])
KNOWN = torch.tensor([[True, True, False, False, False, False, False, True]] * 2)


def asked_of(model, z, frozen, window=None) -> Asked:
    return Asked(model if window is None else window, PROCESS, None, Cost(of_rows=[0] * len(z)), frozen)


def beside(z, free, j):
    """What the shadow of position j of a row reads, as a text: z with j masked, and masks at the other free ones."""
    others = [i for i in free if i != j]
    ids = torch.cat([z.clone(), torch.full((len(others),), MASK)])
    ids[j] = MASK
    return ids[None], torch.tensor([*range(len(z)), *others])


@pytest.mark.parametrize("depth", [1, 2])
def test_the_shadow_of_a_position(depth):
    """What is said of the canvas does not change, 1e-12. One block: of j it says what a plain forward says of a mask
    there, beside the other shadows. Two: no longer, as the docstring has it."""
    model = network(depth=depth)
    where, doubted = (Z == MASK) & ~KNOWN, (Z != MASK) & ~KNOWN
    with torch.no_grad():
        said, shade = asked_of(model, Z, KNOWN).shadow(Z, at(0.5, 2), where, doubted)
        torch.testing.assert_close(said, model(Z, at(0.5, 2))[where], rtol=0, atol=1e-12)
        for one, (row, j) in zip(shade, doubted.nonzero().tolist(), strict=True):
            ids, positions = beside(Z[row], (~KNOWN[row]).nonzero().flatten().tolist(), j)
            plain = model(ids, at(0.5), {"positions": positions})[0, j]
            assert ((one - plain).abs().max() < 1e-12) == (depth == 1)
            own = Z.clone()
            own[row, j] = (own[row, j] + 1) % 3
            changed = asked_of(model, Z, KNOWN).shadow(own, at(0.5, 2), where, doubted)[1]
            number = doubted.nonzero().tolist().index([row, j])
            if depth == 1:
                torch.testing.assert_close(changed[number], one, rtol=0, atol=1e-12)


def test_the_shadow_of_the_only_free_position_is_a_mask_there():
    """Nothing else stands beside it: in one block the plain forward with that position masked, 1e-12."""
    model, known = network(), torch.ones(1, 8, dtype=torch.bool)
    known[0, 3] = False
    z = Z[:1].masked_fill(Z[:1] == MASK, 0)
    hidden = z.clone()
    hidden[0, 3] = MASK
    with torch.no_grad():
        _, shade = asked_of(model, z, known).shadow(z, at(0.5), known & False, ~known)
        torch.testing.assert_close(shade, model(hidden, at(0.5))[:, 3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["whole", "prefix", "dual", "exact"])
def test_the_shadow_of_a_block(layout):
    """Through a window, cached or not, rows in any order: what is said of the block is what it was without the shadow,
    1e-12, and the shadow's what a plain forward says (one block of the network, so that what is kept is exact)."""
    full = layout != "exact"
    model = network() if full else network("block", 4)
    window = Window(model, PROCESS, Z.clone(), KNOWN, layout if layout in ("prefix", "dual") else None)
    cost = Cost(of_rows=[0, 0])
    start, stop = (2, 6) if full else (4, 8)
    if not full:
        window.take_in(0, 4, cost, [0, 1])
    window.move(start, stop)
    block = Z[:, start:stop].clone()
    where = block == MASK
    doubted = ~where & ~KNOWN[:, start:stop]
    asked = Asked(window, PROCESS, None, cost, KNOWN[:, start:stop])
    with torch.no_grad():
        for turn in range(3):  # the first renews what is kept
            plain = Window(model, PROCESS, Z.clone(), KNOWN)
            plain.move(start, stop)
            if not full:
                plain.take_in(0, 4, Cost(of_rows=[0, 0]), [0, 1])
            before = cost.positions
            said, shade = asked.shadow(block, at(0.5, 2), where, doubted)
            expected = plain.ask(block, at(0.5, 2), None, where, torch.arange(2), Cost(of_rows=[0, 0]))
            torch.testing.assert_close(said, expected, rtol=0, atol=1e-12)
            rows = {"whole": 8, "prefix": 8 if turn == 0 else 6, "dual": 8 if turn == 0 else 4, "exact": 4}[layout]
            assert cost.positions - before == 2 * (rows + 4)
            for one, (row, j) in zip(shade, doubted.nonzero().tolist(), strict=True):
                free = (~KNOWN[row]).nonzero().flatten().tolist()
                free = [i for i in free if start <= i < stop]
                ids, positions = beside(Z[row] if full else Z[row, :stop], free, start + j)
                every = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool)
                told = {"positions": positions, "attend": every}
                torch.testing.assert_close(one, model(ids, at(0.5), told)[0, start + j], rtol=0, atol=1e-12)


def test_what_a_shadow_is_told():
    """Positions of z read z, before it what is kept; those of the shadow all of it but their own, and the free ones."""
    z, free = torch.tensor([[0, 1, 2]]), torch.tensor([[True, False]])
    given = {"given": torch.tensor([[True, False, True]])}
    ids, told = shadowed(z, free, MASK, given, slice(1, 3), first=5, before=2)
    assert ids.tolist() == [[0, 1, 2, 3, 3]]
    assert told["positions"].tolist() == [5, 6, 7, 6, 7]
    assert told["given"].tolist() == [[True, False, True, False, False]]
    rows = ["1111100", "1111100", "1111100", "1110110", "1111011"]
    assert told["attend"][0].int().tolist() == [[int(one) for one in row] for row in rows]


class Shade:
    """A query that says p of the masks, and q of what a shadow is asked about."""

    def __init__(self, p, q) -> None:
        self.plain, self.q = says(p), torch.tensor(q, dtype=torch.float64)

    def __call__(self, z, t, where=None):
        return self.plain(z, t, where)

    def shadow(self, z, t, where, doubted):
        q = self.q.expand(z.shape)[doubted]
        other = ((1 - q) / 2)[:, None].expand(-1, 3)
        return self.plain(z, t, where), other.scatter(1, z[doubted][:, None], q[:, None]).log()


def test_wino_takes_back_fewer_than_it_writes():
    """Of q .2 .1 .85 .95 the two lowest go with three written, one with two, none with one; never at q >= verify."""
    sure, unsure = [0.8, 0.1, 0.1], [0.4, 0.3, 0.3]
    z, q = [1, 1, 1, 1, MASK, MASK, MASK], [0.2, 0.1, 0.85, 0.95, 0.0, 0.0, 0.0]
    for written, back in ((3, [0, 1]), (2, [1]), (1, [])):
        p = [unsure] * 4 + [sure] * written + [unsure] * (3 - written)
        found, memory = step("wino", Shade(p, q), z, s=0.8)
        expected = [MASK if i in back else 1 for i in range(4)] + [0] * written + [MASK] * (3 - written)
        assert found == expected
        assert not memory["done"].item()
    wide = [unsure] * 4 + [sure] * 3
    assert step("wino:verify=0.15", Shade(wide, q), z, s=0.8)[0] == [1, MASK, 1, 1, 0, 0, 0]
    assert step("wino:verify=1", Shade(wide, q), z, s=0.8)[0] == [MASK, MASK, 1, 1, 0, 0, 0]
    given = [False, True, False, False, False, False, False]
    assert step("wino", Shade(wide, q), z, s=0.8, frozen=given)[0] == [MASK, 1, MASK, 1, 0, 0, 0]
    assert step("wino+edit:tau=0", Shade(wide, q), z, s=0.8)[0] == [0] * 7  # what was doubted is mended already
    found, memory = step("wino", Shade(wide, q), z, t=0.1, s=0.0)  # the last step
    assert found == [1, 1, 1, 1, 0, 0, 0]
    assert memory["done"].item()


@pytest.mark.parametrize("steps", [None, 3])
def test_wino_ends(steps):
    """Fewer masks after each step; nothing is asked of a row without any; no shadow before something stands."""
    left: list[torch.Tensor] = []
    made = sample(
        PROCESS,
        SMALL,
        sampler="wino:tau=0.2,verify=1,least=3",
        steps=steps,
        callback=lambda step: left.append((step.z == MASK).sum(1)),
        **OPTIONS,
    )
    for before, after in itertools.pairwise([torch.full((3,), 9), *left]):
        assert ((after < before) | (before == 0)).all()
    assert (made.tokens < 3).all()
    assert len(left) <= (steps or 9)
    assert made.cost.written > 27  # some were taken back
    forwards = sum(made.cost.of_rows)
    assert made.positions == 11 * (2 * forwards - 3)  # twice the canvas, but for the first call of each row


# ------------------------------------------------------------------------------------------------------------ renoise

UNIFORM = processes.uniform(3)


def test_renoise_without_bound_draws_the_product_of_posteriors():
    """gamma infinite, temperature 1, not at the end: from any z the product of p(x_i | all of z), 1e-12."""
    states, name = sequences(3), "renoise:gamma=inf,hot=1,cold=1,sure=0"
    exact = ExactDenoiser(UNIFORM)
    full = posteriors(
        LAW, torch.where(torch.eye(3).bool(), 0.5 + 0.5 / 3, 0.5 / 3).double()[:, states].movedim(0, -1), "full"
    )
    asked = query(exact)
    for z, p in zip(states, full, strict=True):
        law = torch.zeros(9, dtype=torch.float64)

        def run(z=z):
            draw = Draw(torch.zeros(1, 2, dtype=torch.bool), torch.Generator().manual_seed(0))
            return samplers.get(name)(UNIFORM, asked, z[None], at(0.5), at(0.4), draw)

        for result, weight in outcomes(run, 1):
            law[state_number(result, 3)] += weight
        torch.testing.assert_close(law, (p[0][:, None] * p[1]).flatten(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", ["renoise", "renoise:gamma=0", "ancestral"])
def test_either_convention_is_heard(sampler):
    """A denoiser of full posteriors and one of cavities say the same, and are asked for the same positions."""
    one, other = (
        sample(UNIFORM, ExactDenoiser(UNIFORM, posterior=kind), length=2, num=20, steps=8, sampler=sampler, prompt=None)
        for kind in ("cavity", "full")
    )
    assert torch.equal(one.tokens, other.tokens)


def test_a_query_about_some_positions_is_in_the_same_convention():
    """Of any noise: the rows of what it says of all."""
    z, t = sequences(3)[:4], torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    where = torch.tensor([[True, False], [False, True], [True, True], [False, False]])
    asked = Asked(ExactDenoiser(UNIFORM, posterior="full"), UNIFORM, None, Cost(of_rows=[0] * 4), where)
    expected = ExactDenoiser(UNIFORM)(z, t)
    torch.testing.assert_close(asked(z, t), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(asked(z, t, where), expected[where], rtol=0, atol=1e-12)
    assert asked.cost.of_rows == [2, 2, 2, 1]


def test_the_entropy_bound():
    """The most, by rising entropy, whose entropies but the largest sum to gamma at most: by going through all prefixes;
    one at least, all at infinity."""
    g = torch.Generator().manual_seed(3)
    entropy, among = torch.rand(40, 7, generator=g).double(), torch.rand(40, 7, generator=g) < 0.7
    for gamma in (0.0, 0.3, 1.0, torch.inf):
        kept = bounded(entropy, among, gamma)
        assert not (kept & ~among).any()
        for h, inside, taken in zip(entropy, among, kept, strict=True):
            ranked = h[inside].sort().values
            most = max((n for n in range(1, len(ranked) + 1) if ranked[: n - 1].sum() <= gamma), default=0)
            assert sorted(h[taken].tolist()) == ranked[:most].tolist()
    assert bounded(torch.zeros(1, 3).double() + 0.5, torch.ones(1, 3).bool(), 0.2).tolist() == [[True, False, False]]


def heated(p, temperature):
    p = torch.as_tensor(p, dtype=torch.float64) ** (1 / temperature)
    return p / p.sum(-1, keepdim=True)


def test_one_step_of_renoise():
    """The temperature falls with t, the kept are the surest of the heated law, and elsewhere is fresh noise."""
    p, t = [[0.98, 0.01, 0.01], [0.4, 0.3, 0.3], [0.05, 0.9, 0.05], [0.6, 0.2, 0.2]], 0.25
    law = heated(p, 0.4 + 0.4 * t)
    entropy = torch.special.entr(law).sum(-1)
    assert entropy.argsort().tolist() == [0, 2, 3, 1]
    bound = float(entropy[0] + entropy[2]) + 1e-9  # the first three
    drawn = torch.tensor([2, 2, 2, 2])
    seen: list[torch.Tensor] = []

    def told(probs, where, generators):
        seen.append(probs)
        return drawn

    z = torch.zeros(1, 4, dtype=torch.long)
    draw = Draw(torch.zeros(1, 4, dtype=torch.bool), [torch.Generator().manual_seed(5)])
    noise = UNIFORM.prior((1, 4), [torch.Generator().manual_seed(5)])
    # at t = 0.25 the evidence of z is in p too: this denoiser gives the cavity whose full posterior p is
    cavity = UNIFORM.to_cavity(torch.tensor([p], dtype=torch.float64).log(), z, at(t))
    with patch.object(contract, "categorical_at", told):
        after = samplers.get(f"renoise:gamma={bound}")(UNIFORM, query(lambda z, t: cavity), z, at(t), at(0.2), draw)
    torch.testing.assert_close(seen[0], law, rtol=0, atol=1e-12)
    assert after[0].tolist() == [2, int(noise[0, 1]), 2, 2]
    assert draw.memory["best"].tolist() == [[0, 0, 1, 0]]


class Guesses:
    """A denoiser that conditions on itself and says the same whatever it is told; keeps what it was told."""

    def __init__(self, p, self_conditioned=True) -> None:
        self.logp = torch.as_tensor(p, dtype=torch.float64).log()
        self.facts = Facts(self_conditioned=self_conditioned, posterior="full", time_conditioned=True)
        self.told: list = []

    def __call__(self, z, t, cond=None):
        self.told.append((z.clone(), t.clone(), cond))
        return self.logp.expand(len(z), -1, -1)


def test_renoise_tells_a_denoiser_what_it_thought():
    """Nothing at first, then the heated law of the step before; of a given token nothing; others are told nothing."""
    p = [[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]]
    denoiser = Guesses(p)
    sample(UNIFORM, denoiser, prompt=[1], length=2, num=2, steps=3, sampler="renoise")
    assert len(denoiser.told) == 3
    assert not denoiser.told[0][2]["guess"].any()
    for (_, t, _), (_, _, cond) in itertools.pairwise(denoiser.told):
        expected = heated(p, 0.4 + 0.4 * t[0].item())
        expected[0] = 0.0
        torch.testing.assert_close(cond["guess"], expected.expand(2, 3, 3), rtol=0, atol=1e-12)
    for sampler, conditioned in (("renoise", False), ("ancestral", True)):
        plain = Guesses(p, conditioned)
        sample(UNIFORM, plain, length=3, steps=3, sampler=sampler)
        assert all(cond is None or not cond["guess"].any() for _, _, cond in plain.told)


@pytest.mark.parametrize("stable", [1, 3])
def test_renoise_ends_a_row_that_is_settled(stable):
    """After ``stable`` more steps of the same likeliest tokens and next to no entropy; one without never ends early,
    and both give the likeliest tokens back. The rows are not asked beyond that."""
    settled, open_ = [0.9998, 1e-4, 1e-4], [0.5, 0.3, 0.2]

    class Two(Guesses):
        def __call__(self, z, t, cond=None):
            # which row this is stands in its first, given, token
            super().__call__(z, t, cond)
            both = torch.tensor([[settled] * 4, [open_] * 4], dtype=torch.float64).log()
            return both[z[:, 0]]

    denoiser = Two([settled], False)
    made = sample(UNIFORM, denoiser, prompt=[[0], [1]], length=3, steps=9, sampler=f"renoise:stable={stable}")
    assert made.cost.of_rows == [stable + 1, 9]
    assert made.nfe == 9
    assert made.tokens.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]
    expected = torch.tensor([[0.9998] * 3, [0.5] * 3], dtype=torch.float64)
    torch.testing.assert_close(made.logp[:, 1:].exp(), expected, rtol=0, atol=1e-9)
    assert made.logp[:, 0].isnan().all()


# ------------------------------------------------------------------------------------------------------------- critic


def test_a_critic_that_knows_nothing_writes_the_joint_law():
    """All alike and one token a step: what is kept was drawn from its marginal, and the other is drawn given it. One
    step is the product of marginals."""
    exact = query(ExactDenoiser(PROCESS))
    alike = samplers.critic(lambda ids, t: torch.zeros(ids.shape))
    law = torch.zeros(9, dtype=torch.float64)
    for noise in ([[0.1, 0.9]], [[0.9, 0.1]]):

        def run(noise=noise):
            z = torch.full((1, 2), MASK)
            draw = Draw(torch.zeros(1, 2, dtype=torch.bool), None)
            with patch.object(critics, "rand", lambda *_: torch.tensor(noise, dtype=torch.float64)):
                z = alike(PROCESS, exact, z, at(1.0), at(0.5), draw)
                assert (z == MASK).sum() == 1
                return alike(PROCESS, exact, z, at(0.5), at(0.0), draw)

        for result, weight in outcomes(run, 1):
            law[state_number(result, 3)] += weight / 2
    assert total_variation(law, LAW.flatten()) < 1e-12

    def once():
        z = torch.full((1, 2), MASK)
        return alike(PROCESS, exact, z, at(1.0), at(0.0), Draw(torch.zeros(1, 2, dtype=torch.bool), None))

    law = torch.zeros(9, dtype=torch.float64)
    for result, weight in outcomes(once, 1):
        law[state_number(result, 3)] += weight
    assert total_variation(law, LAW.flatten()) == pytest.approx(DEPENDENCE, abs=1e-12)


def test_a_critic_chooses_among_all_that_is_free():
    """What was kept may go, what is given stays; merit decides without noise, and early with it chance may."""
    merit = torch.tensor([[-9.0, 3.0, 1.0, 2.0, -1.0, 0.0]])
    z = [0, 1, MASK, 1, 1, MASK]
    given = [True, False, False, False, False, False]
    p = [[0.6, 0.2, 0.2]] * 6
    draw = Draw(torch.tensor([given]), torch.Generator().manual_seed(0), temperature=0.0)
    plain = samplers.critic(lambda ids, t: merit, noise=0.0)
    # floor(.5 5) = 2 of 5: the kept one of merit -1, and a filled one
    assert plain(PROCESS, says(p), torch.tensor([z]), at(0.6), at(0.5), draw)[0].tolist() == [0, 1, 0, 1, MASK, MASK]
    assert plain(PROCESS, says(p), torch.tensor([z]), at(0.6), at(0.19), draw)[0].tolist() == [0, 1, 0, 1, 1, 0]
    bold = samplers.critic(lambda ids, t: merit, noise=9.0)
    early = {tuple(bold(PROCESS, says(p), torch.tensor([z]), at(0.6), at(0.5), draw)[0].tolist()) for _ in range(50)}
    assert len(early) > 5
    usual = samplers.critic(
        lambda ids, t: merit
    )  # at s = 0.2 chance adds 0.2 at most, and p(real) is .27 or from .5 on
    late = {tuple(usual(PROCESS, says(p), torch.tensor([z]), at(0.6), at(0.2), draw)[0].tolist()) for _ in range(50)}
    assert late == {(0, 1, 0, 1, MASK, 0)}
    faint = samplers.critic(lambda ids, t: merit, noise=0.01)
    assert faint(PROCESS, says(p), torch.tensor([z]), at(0.6), at(0.5), draw)[0].tolist() == [0, 1, 0, 1, MASK, MASK]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_critic_is_counted(layout):
    """Two forwards a step and one of the last; given the text up to the end of what is written; at the step's time."""
    seen: list[tuple[torch.Size, float]] = []

    def judge(ids, t):
        assert (ids != MASK).all()
        seen.append((ids.shape, t[0].item()))
        return -ids.double()

    masks: list[list[int]] = []
    made = sample(
        PROCESS,
        SMALL,
        sampler=samplers.critic(judge),
        steps=4,
        callback=lambda step: masks.append((step.z == MASK).sum(1).tolist()),
        **{**OPTIONS, "length": 8},
        **layout,
    )
    blocks = 2 if layout else 1
    assert made.nfe == 7 * blocks
    assert made.cost.of_rows == [7 * blocks] * 3
    assert [t for _, t in seen] == [1.0, 0.75, 0.5] * blocks
    assert [shape[1] for shape, _ in seen] == ([6] * 3 + [10] * 3 if layout else [10] * 3)
    assert masks[:4] == [[n + (4 if layout else 0)] * 3 for n in ((3, 2, 1, 0) if layout else (6, 4, 2, 0))]
    assert (made.tokens[:, :2] == torch.tensor([1, 0])).all()
    assert (made.tokens < 3).all()


def test_a_text_with_nothing_free_is_not_judged():
    canvas, frozen = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 0]]), torch.tensor([[True] * 4, [True, False, False, False]])
    judge = samplers.critic(lambda ids, t: -ids.double())
    made = sample(PROCESS, SMALL, canvas=canvas, frozen=frozen, sampler=judge, steps=3)
    assert (made.cost.of_rows, made.nfe) == ([0, 5], 5)
