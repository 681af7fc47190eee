"""Answers: prompts stand clean and teach nothing, losses are their formulas, packing changes nothing."""

import itertools
import math
from fractions import Fraction
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from laws import prescribed
from redraft import processes
from redraft.models import Transformer, TransformerConfig
from redraft.objectives import Loss, answers, as_batch
from redraft.objectives.answers import dream, llada
from redraft.processes import Facts
from redraft.randomness import row_generators

K, M = 3, 3
PROCESS = processes.masked(K)
IDS = torch.tensor([[2, 0, 1, 1, 2, 0]])
PROMPT = 2
ANSWER = torch.arange(6)[None] >= PROMPT
BATCH = {"ids": IDS, "valid": ANSWER}


class Reader(nn.Module):
    """A denoiser all of whose answers depend on all of z that it may read, float64; of blocks, if it is told so."""

    def __init__(self, block: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(8, K + 1, K, dtype=torch.float64))
        self.facts = Facts(attention="full" if block is None else "block", block=block, mask_id=M)

    def forward(self, z: Tensor, t: Tensor, cond=None) -> Tensor:
        cond = cond or {}
        at = cond.get("positions", torch.arange(z.shape[1])).expand(z.shape)
        read = cond.get("attend", torch.ones(z.shape[1], z.shape[1], dtype=torch.bool)).expand(len(z), -1, -1)
        if "segments" in cond:
            read = read & (cond["segments"][:, :, None] == cond["segments"][:, None, :])
        apart = 1 + (at[:, :, None] - at[:, None, :]).abs() % 8
        said = self.table[apart % 8, z[:, None, :].expand(apart.shape)] * read[..., None]
        return (said.sum(2) + self.table[at % 8, z]).log_softmax(-1)


def nats(denoiser, z, ids=IDS):
    """-log p(x0 | z), (B, L)."""
    return -denoiser(z, torch.zeros(len(z))).detach().gather(-1, ids[..., None])[..., 0]


def masked_at(*places: int) -> Tensor:
    return IDS.clone().index_fill(1, torch.tensor(places, dtype=torch.long), M)


# --------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("loss", [llada, dream, partial(llada, block=2), partial(llada, drop=0.5)])
def test_prompts_are_neither_noised_nor_scored(loss, monkeypatch):
    """What is true of a prompt's tokens as targets is nothing to the loss, exactly; as context it is."""
    denoiser, seen = Reader(), []
    forward = denoiser.forward
    monkeypatch.setattr(denoiser, "forward", lambda z, t, cond=None: seen.append(z) or forward(z, t, cond))
    rows = {name: one.repeat(64, 1) for name, one in BATCH.items()}
    u = (torch.arange(64) + 0.5) / 64
    found = loss(denoiser, PROCESS, rows, u, row_generators(0, rows=range(64)))
    z = seen[0]
    whole = (
        (z[:, :PROMPT] == M).all(1) if "drop" in getattr(loss, "keywords", {}) else torch.zeros(64, dtype=torch.bool)
    )
    assert torch.equal(z[~whole, :PROMPT], rows["ids"][~whole, :PROMPT])
    assert bool((z[:, PROMPT:] == M).any())
    assert bool((found.value[:, PROMPT:] > 0).any())
    assert not any(bool(one[:, :PROMPT].any()) for one in (found.value, found.bound, found.counts))
    # other targets where the prompt is, the canvas kept as it was: not a bit of the gradient changes
    corrupted = prescribed.prescribed(PROCESS, z)
    other = {**rows, "ids": torch.where(rows["valid"], rows["ids"], (rows["ids"] + 1) % K)}
    gradients = []
    for batch in (rows, other):
        torch.manual_seed(0)
        monkeypatch.setattr(denoiser, "forward", lambda z, t, cond=None: forward(seen[0], t, cond))
        value = loss(denoiser, corrupted, batch, u, row_generators(0, rows=range(64)))
        gradients.append(torch.autograd.grad(value.value.sum(), denoiser.table)[0])
    assert torch.equal(*gradients)
    assert bool(gradients[0].any())


@pytest.mark.parametrize("eos", [True, False])
def test_padding_by_ends_of_text_counts_in_the_length(eos):
    """(1 / N) of an answer of 2 tokens with 2 ends of text behind it is 1/4; of what is apart 1/2."""
    ids = torch.tensor([[0, 1, 2, 0, 0]])
    valid = torch.tensor([[False, True, True, eos, eos]])
    batch = {"ids": ids, "valid": valid} | ({} if eos else {"segments": torch.tensor([[0, 0, 0, -1, -1]])})
    z = torch.full_like(ids, M)
    found = llada(Reader(), prescribed.prescribed(PROCESS, z), batch, torch.tensor([0.5]), eps=0.0)
    length = 4 if eos else 2
    found = Loss(found.value.detach(), found.bound, counts=found.counts)
    shown = torch.where(valid, z, ids)
    told = None if eos else {"segments": batch["segments"]}
    said = -Reader()(shown, torch.zeros(1), told).detach().gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(found.value, torch.where(valid, said / 0.5 / length, 0.0))
    assert found.counts.sum() == pytest.approx(1.0)


# ----------------------------------------------------------------------------------------------------- bounds


def exact_bound(denoiser, told=IDS, places=range(PROMPT, 6), later=()):
    """sum_k (1 / k) mean over subsets of k of the sum of their cross-entropies: the NELBO of ``places``, in nats."""
    places, total = list(places), 0.0
    for k in range(1, len(places) + 1):
        subsets = list(itertools.combinations(places, k))
        for subset in subsets:
            z = told.clone().index_fill(1, torch.tensor([*subset, *later], dtype=torch.long), M)
            total += float(nats(denoiser, z)[0, list(subset)].sum()) / k / len(subsets)
    return total


def mean_bound(loss, denoiser, places, lowest=0.0, batch=BATCH, points=24, **others):
    """E[bound], nats of a row: Gauss-Legendre over u, every canvas by its probability."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    total, value = 0.0, 0.0
    for u, w in zip((nodes + 1) / 2, weights / 2, strict=True):
        p = lowest + (1 - lowest) * u
        for k in range(len(places) + 1):
            for subset in itertools.combinations(places, k):
                fixed = prescribed.prescribed(PROCESS, masked_at(*subset))
                found = loss(denoiser, fixed, batch, torch.tensor([u], dtype=torch.float64), **others)
                chance = w * p**k * (1 - p) ** (len(places) - k)
                total += chance * float(found.bound.sum())
                value += chance * float((found.value.sum() / found.counts.sum().clamp_min(1e-300)).detach())
    return total, value


@pytest.mark.parametrize(
    ("loss", "lowest"),
    [
        (partial(llada, eps=0.0), 0.0),
        (partial(llada, eps=0.3), 0.3),
        (dream, 0.0),
        (partial(dream, weighting="time"), 0),
    ],
)
def test_the_bound_is_exact_whatever_the_loss(loss, lowest):
    denoiser = Reader()
    bound, value = mean_bound(loss, denoiser, range(PROMPT, 6), lowest)
    assert bound == pytest.approx(exact_bound(denoiser), rel=1e-9)
    if getattr(loss, "keywords", {}).get("eps") == 0.0:
        assert value == pytest.approx(exact_bound(denoiser) / 4, rel=1e-6)  # nats per token of the answer


def test_least_rate_moves_the_loss_and_not_the_bound():
    _, value = mean_bound(partial(llada, eps=0.3), Reader(), range(PROMPT, 6), 0.3)
    assert abs(value - exact_bound(Reader()) / 4) > 0.05


@pytest.mark.parametrize(("n", "eps"), [(4, 0.3), (7, 0.05), (300, 1e-3)])
def test_chance_of_so_many_masks(n, eps):
    """P(k) = P(Bin(n + 1, eps) <= k) / ((n + 1) (1 - eps)), against quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    p = eps + (1 - eps) * (nodes + 1) / 2
    for k in (1, 2, n - 1, n):
        chance = sum(w / 2 * math.comb(n, k) * q**k * (1 - q) ** (n - k) for q, w in zip(p, weights, strict=True))
        weight = float(answers.bound_weight(torch.tensor(float(n)), torch.tensor(float(k)), eps))
        assert weight == pytest.approx(1 / (k * chance), rel=1e-8)


def binomial(k, n, eps):
    """P(Bin(n, eps) <= k) of exact fractions."""
    p = Fraction(eps)
    return float(sum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k + 1)))


@pytest.mark.parametrize("eps", [1e-3, 0.3, 0.9])
def test_chance_of_at_most(eps):
    pairs = [(k, n) for n in (1, 2, 9, 200) for k in sorted({0, 1, n // 3, n - 1, n})]
    k, n = (torch.tensor(one, dtype=torch.float64).view(1, -1) for one in zip(*pairs, strict=True))
    found = answers.at_most(k, n, eps).flatten().tolist()
    assert found == pytest.approx([binomial(*pair, eps) for pair in pairs], rel=1e-9)


def most_numbers(call):
    """Of the tensors that a call makes, how many numbers the largest has; and how many operations it is."""
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            sizes.extend(one.numel() for one in tree_leaves(made) if isinstance(one, torch.Tensor))
            return made

    with Watch():
        call()
    return max(sizes), len(sizes)


def test_weights_of_long_rows_take_little():
    L = 2048
    seen, segments = torch.rand(2, L) < 0.5, (torch.arange(2 * L).view(2, L) // 300)
    for told in (None, segments):
        largest, number = most_numbers(lambda told=told: answers.context_weights(seen, 0.1, told))
        assert largest <= 2 * L
        assert number < 500
    n = torch.full((2, L), 4096.0)
    largest, number = most_numbers(lambda: answers.at_most(n - 5, n, 0.3))
    assert largest <= 4097
    assert number < 500


@pytest.mark.parametrize("p", [1e-3, 0.1, 0.8, 1.0])
def test_context_weights_are_their_sum(p):
    L, generator = 37, torch.Generator().manual_seed(0)
    seen = torch.rand(2, L, generator=generator) < 0.6
    segments = torch.tensor([[0] * 10 + [1] * 1 + [2] * 20 + [-1] * 6, [0] * L])
    for told in (None, segments):
        wanted = torch.zeros(2, L, dtype=torch.float64)
        for b, i, j in product(range(2), range(L), range(L)):
            near = told is None or told[b, i] == told[b, j]
            if i != j and near and seen[b, j]:
                wanted[b, i] += p / 2 * (1 - p) ** (abs(i - j) - 1)
        torch.testing.assert_close(answers.context_weights(seen, p, told), wanted, rtol=1e-12, atol=1e-15)


# ----------------------------------------------------------------------------------------------------- blocks


def canvases(loss, denoiser, rows=400, batch=BATCH):
    """What the denoiser was shown of many draws."""
    seen = []

    def asked(z, t, cond=None):
        seen.append(z)
        return Reader.forward(denoiser, z, t, cond)

    asked.facts = denoiser.facts
    many = {name: one.repeat(rows, 1) for name, one in batch.items()}
    u = (torch.arange(rows) + 0.5) / rows
    found = loss(asked, PROCESS, many, u, row_generators(1, rows=range(rows)))
    return seen[0], found


def test_block_pattern():
    """Before the block clean, behind it masked; only the block is scored; a short last block is a block too."""
    batch = {"ids": torch.tensor([[2, 0, 1, 1, 2, 0, 1]]), "valid": torch.arange(7)[None] >= 2}
    z, found = canvases(partial(llada, block=2), Reader(), batch=batch)
    scored, met = found.value > 0, set()
    for row, (shown, here) in enumerate(zip(z, scored, strict=True)):
        if not here.any():
            continue
        number = int((here.nonzero()[0, 0] - 2) // 2)
        met.add(number)
        start, stop = 2 + 2 * number, min(4 + 2 * number, 7)
        assert torch.equal(shown[:start], batch["ids"][0, :start]), row
        assert bool((shown[stop:] == M).all())
        assert not here[:start].any()
        assert not here[stop:].any()
    assert met == {0, 1, 2}


def test_block_bound_is_that_of_the_blocks_in_turn(monkeypatch):
    """E[bound] = the sum over blocks of -log p(block | what stands before it), each a NELBO with the rest masked."""
    denoiser = Reader()
    wanted = exact_bound(denoiser, places=(2, 3), later=(4, 5)) + exact_bound(denoiser, places=(4, 5))
    total, loss = 0.0, 0.0
    for block, places in ((0, (2, 3)), (1, (4, 5))):
        monkeypatch.setattr(answers, "rand", lambda shape, *_, b=block: torch.full(shape, (b + 0.5) / 2).double())
        bound, value = mean_bound(partial(llada, block=2, eps=0.0), denoiser, places)
        total, loss = total + bound / 2, loss + value / 2
    assert total == pytest.approx(wanted, rel=1e-9)
    assert loss == pytest.approx(wanted / 4, rel=1e-6)  # nats per token of the answer


def test_a_block_as_long_as_the_answer_is_none():
    denoiser = Reader()
    z = masked_at(2, 5)
    found = [
        llada(
            denoiser,
            prescribed.prescribed(PROCESS, z),
            BATCH,
            torch.tensor([0.4]),
            row_generators(0, rows=[0]),
            block=b,
        )
        for b in (None, 4, 9)
    ]
    assert torch.equal(found[0].value, found[1].value)
    assert torch.equal(found[0].value, found[2].value)


def test_block_models_learn_all_blocks_at_once():
    """Two streams: each block's masked tokens are told the clean text before its block, prompts are clean."""
    denoiser = Reader(block=2)
    z = masked_at(2, 4, 5)
    monkey = torch.tensor([[0.2, 0.2, 0.5, 0.5, 0.9, 0.9]], dtype=torch.float64)
    keep, answers.cell_times = answers.cell_times, lambda *_: monkey
    try:
        found = llada(denoiser, prescribed.prescribed(PROCESS, z), BATCH, torch.tensor([0.3]), eps=0.0)
    finally:
        answers.cell_times = keep
    # the noisy row of a block, by itself: clean before, its own noise, nothing behind
    for start, places in ((2, (2,)), (4, (4, 5))):
        canvas = torch.cat([IDS[:, :start], z[:, start : start + 2]], 1)
        said = -Reader()(canvas, torch.zeros(1)).detach().gather(-1, IDS[:, : start + 2, None])[..., 0]
        for i in places:
            assert float(found.value[0, i].detach()) == pytest.approx(float(said[0, i] / monkey[0, i] / 4))


# ---------------------------------------------------------------------------------------------------- dropping


def test_dropped_prompts_are_masked_whole_and_leave_the_bound():
    z, found = canvases(partial(llada, drop=0.25), Reader(), rows=2000)
    gone = (z[:, :PROMPT] == M).all(1)
    assert torch.equal(gone, (z[:, :PROMPT] == M).any(1))
    # of 2000 draws at 0.25 the share lies within 0.05 but for once in 2e7 seeds
    assert abs(float(gone.double().mean()) - 0.25) < 0.05
    assert bool((found.value[gone] > 0).any())
    assert not found.bound[gone].any()
    assert bool((z[gone][:, PROMPT:] != M).any())  # the answers themselves are noised as ever
    kept = canvases(llada, Reader(), rows=2000)[1]
    assert abs(float(found.bound.sum() / kept.bound.sum()) - 1) < 0.1


def test_a_block_model_is_told_nothing_of_a_dropped_prompt(monkeypatch):
    z, _ = canvases(partial(llada, drop=0.5), Reader(block=2), rows=64)
    gone = (z[:, :PROMPT] == M).all(1)
    assert 0 < int(gone.sum()) < 64
    assert torch.equal(gone, (z[:, 6 : 6 + PROMPT] == M).all(1))
    assert torch.equal(z[:, 6 + PROMPT :], IDS[:, PROMPT:].expand(64, -1))


# ----------------------------------------------------------------------------------------------------- packing

FIRST, SECOND = [2, 0, 1, 1], [0, 2, 2]
APART = [
    {"ids": torch.tensor([FIRST]), "valid": torch.tensor([[False, True, True, True]])},
    {"ids": torch.tensor([SECOND]), "valid": torch.tensor([[False, True, True]])},
]
PACKED = {
    "ids": torch.tensor([[*FIRST, *SECOND, 0]]),
    "valid": torch.tensor([[False, True, True, True, False, True, True, False]]),
    "segments": torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1]]),
    "positions": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0]]),
}
U = (0.3, 0.8)


def model():
    torch.manual_seed(1)
    made = Transformer(TransformerConfig(PROCESS.to_dict(), depth=1)).double()
    nn.init.normal_(made.head.weight)
    return made


@pytest.mark.parametrize("denoiser", [Reader(), model()], ids=["reader", "transformer"])
@pytest.mark.parametrize("loss", [llada, dream, partial(dream, weighting="linear"), partial(llada, block=2)])
def test_packed_is_as_written_separately(loss, denoiser, monkeypatch):
    zs = [torch.tensor([[2, M, 1, M]]), torch.tensor([[0, M, 2]])]
    monkeypatch.setattr(answers, "rand", lambda shape, *_: torch.zeros(shape, dtype=torch.float64))
    alone = [
        loss(denoiser, prescribed.prescribed(PROCESS, z), one, torch.tensor([u], dtype=torch.float64))
        for z, one, u in zip(zs, APART, U, strict=True)
    ]
    times = torch.tensor([[U[0]] * 4 + [U[1]] * 4], dtype=torch.float64)
    monkeypatch.setattr(answers, "cell_times", lambda *_: times)
    z = torch.cat([*zs, torch.tensor([[0]])], 1)
    together = loss(denoiser, prescribed.prescribed(PROCESS, z), PACKED, torch.tensor([0.5]))
    for name in ("value", "bound", "counts"):
        separate = torch.cat([getattr(one, name) for one in alone], 1)
        torch.testing.assert_close(getattr(together, name)[:, :7], separate.to(getattr(together, name)))
        assert not getattr(together, name)[0, 7]


def test_every_conversation_of_a_row_has_a_rate_of_its_own():
    """Each is uniform by itself, and one in each of as many equal cells as there are; drawn alike."""
    cell = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1]]).repeat(500, 1)
    u = (torch.arange(1000) + 0.5) / 1000
    found = answers.cell_times(u, cell, 6, row_generators(3, rows=range(1000)))
    for rows, cells in ((slice(0, None, 2), 3), (slice(1, None, 2), 2)):
        of_cell = torch.stack(
            [found[rows].gather(1, (cell[rows] == c).long().argmax(1, keepdim=True))[:, 0] for c in range(cells)], 1
        )
        assert torch.equal((of_cell * cells).floor().sort(1).values, torch.arange(cells).double().expand(500, -1))
        # means of 500 uniforms: 5 standard errors
        assert bool(((of_cell.mean(0) - 0.5).abs() < 5 / math.sqrt(12 * 500)).all())


# ------------------------------------------------------------------------------------------------ what is refused


def test_refused():
    run = partial(llada, batch=BATCH, u=torch.tensor([0.5]))
    with pytest.raises(ValueError, match="uniform process"):
        run(Reader(), processes.uniform(K))
    causal = prescribed.Says(torch.zeros(1, 6, K), attention="causal")
    with pytest.raises(ValueError, match="causal attention"):
        run(causal, PROCESS)
    with pytest.raises(ValueError, match="block=2"):
        run(Reader(block=2), PROCESS, block=2)
    with pytest.raises(ValueError, match="packed rows"):
        llada(Reader(block=2), PROCESS, PACKED, torch.tensor([0.5]))
    with pytest.raises(ValueError, match="cart"):
        dream(Reader(block=2), PROCESS, BATCH, torch.tensor([0.5]))


def test_numpy_rows_become_a_batch():
    assert as_batch({"positions": np.array([[0, 1]], np.int32)})["positions"].dtype is torch.long
