"""Likelihood estimators where some tokens are given: clean amid masks, in their own noise elsewhere, and in windows."""

import itertools
import math

import pytest
import torch

from redraft import processes
from redraft.data import pack
from redraft.evaluation import likelihood
from redraft.processes import Facts

from .oracle import LAW, ExactDenoiser, K, sequences
from .tables import SMALL, TEXTS, Recalls, Table, assert_close, found, pairs, rows_of, start

TEXT = torch.tensor([1, 4, 0, 2, 3, 3, 1, 0, 4, 2, 1])


@pytest.mark.parametrize("name", ["enumeration", "any_order", "importance", "exact_elbo"])
def test_what_does_not_count_is_given(name):
    """Of masks: the first token known, each estimator of the exact denoiser says -log p(second | first); 1e-10."""
    process = processes.masked(K)
    exact = ExactDenoiser(process)
    exact.facts = Facts(mask_id=K)
    expected = -(LAW / LAW.sum(1, keepdim=True)).log().flatten()
    assert_close(found(name, exact, process, rows_of(TEXTS, torch.tensor([[False, True]]))), expected)


@pytest.mark.parametrize("estimator", ["vlb", "steps", "exact_elbo"])
def test_what_does_not_count_stands_clean_at_every_time(estimator):
    """Also where t is drawn: a masked denoiser that is told t sees the known token in every call."""
    process = processes.masked(K) if estimator == "vlb" else processes.masked(K, steps=4)
    seen = list[torch.Tensor]()

    class Watching(Table):
        def __call__(self, z, t=None, cond=None):
            seen.append(z)
            return super().__call__(z, t)

    denoiser = Watching(process, timed=True)
    batch = rows_of(TEXTS, torch.tensor([[True, False]]))
    found(estimator, denoiser, process, batch)
    assert seen
    whole = torch.cat(seen)
    assert (whole[:, 1] != K).all()
    assert (whole[:, 0] == K).any()


@pytest.mark.parametrize("name", ["masked", "uniform", "hybrid", "d3pm_gaussian"])
def test_known_tokens_of_a_chain(name):
    """The law of what is free beside known tokens, noisy or clean: by loops over states, and E w; 1e-10."""
    process = SMALL[name]()
    texts, valid = sequences(process.K), torch.tensor([[False, True]])
    denoiser = Table(process, timed=True)
    expected = [-math.log(beside(process, denoiser, text)) for text in texts]
    got = found("enumeration", denoiser, process, rows_of(texts, valid))
    assert_close(got, torch.tensor(expected, dtype=torch.float64))
    logs, chance = pairs(process, 2, texts, valid)
    assert_close(-(torch.where(chance > 0, logs.exp(), 0.0) * chance).sum(0).log(), got)
    widest = -(torch.where(chance > 0, logs, 0.0) * chance).sum(0)
    assert_close(found("exact_elbo", denoiser, process, rows_of(texts, valid)), widest)


def beside(process, denoiser, text, steps=2):
    """p(second token | the first, which has its own noise or, amid masks, none), one state at a time."""
    truth = torch.nn.functional.one_hot(text, process.K).double()[None]
    prior = start(process, 1)
    last = process.marginal(truth, torch.ones(1, dtype=torch.float64))[0, 0]
    still = torch.nn.functional.one_hot(text[0], process.V).double()
    masks = process.name == "masked"
    law = torch.outer(still if masks else last, prior)
    for i in range(steps, 0, -1):
        t, s = (torch.tensor([time], dtype=torch.float64) for time in (i / steps, (i - 1) / steps))
        after = torch.zeros_like(law)
        for a, b in itertools.product(range(process.V), repeat=2):
            if law[a, b] > 0:
                z = torch.tensor([[a, b]])
                p = process.posterior(denoiser(z, t).exp(), z, t, s)[0, 1]
                q = still if masks else process.posterior(truth, z, t, s)[0, 0]
                after += law[a, b] * torch.outer(q, p)
        law = after
    return (law[text[0], text[1]] / law[text[0]].sum()).item()


# ------------------------------------------------------------------------------------------------------------ windows


def windows(stride, length=4):
    return pack([TEXT.tolist()], length, None, stride=stride)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("attention", ["causal", "full"])
def test_windows_score_every_token_once_given_those_before(attention, stride):
    """Stride s: by hand, from what a window of 4 holds; of masks by the mean over orders of the new; 1e-10."""
    process = processes.masked(5)
    denoiser = Recalls(5, attention)
    estimator = "exact_elbo" if attention == "full" else None
    got = likelihood(denoiser, process, windows(stride), estimator=estimator)
    expected, at = 0.0, 0
    while at < len(TEXT):
        start = 0 if at == 0 else at + stride - 4
        stop = min(start + 4, len(TEXT))
        expected += scored(denoiser, TEXT[start:stop], at - start, 4)
        at = stop
    assert got.tokens == len(TEXT)
    assert got.nats_per_token == pytest.approx(expected / len(TEXT), abs=1e-10)
    assert got.protocol["stride"] == stride
    assert got.protocol["context"] == 4


def scored(denoiser, window, known, length):
    """Nats of the window's tokens behind the known ones, padded to a length with zeros."""
    row = torch.cat([window, window.new_zeros(length - len(window))])
    free = range(known, len(window))
    if denoiser.facts.attention == "causal":
        logp = denoiser(row[None], None)[0]
        return -sum(logp[i, row[i]].item() for i in free)
    total, every = 0.0, list(itertools.permutations(free))
    for order in every:
        for step, i in enumerate(order):
            z = row.clone()
            z[list(order[step:])] = 5
            total -= denoiser(z[None], None)[0, i, row[i]].item()
    return total / len(every)


def test_windows_keep_documents_apart():
    """Segments are numbered from a window's own start; what is past the text has none."""
    found = pack([[1, 2, 3], [4, 5, 6]], 4, None, isolate_documents=True, stride=3)
    assert found.ids.tolist() == [[1, 2, 3, 4], [4, 5, 6, 0]]
    assert found.segments.tolist() == [[0, 0, 0, 1], [0, 0, 0, -1]]
    assert found.valid.tolist() == [[True] * 4, [False, True, True, False]]


def test_a_stride_of_the_whole_row_is_plain_rows():
    process, denoiser = processes.masked(5), Recalls(5)
    plain = pack([TEXT.tolist()], 4, None, keep_tail=True)
    one, other = (likelihood(denoiser, process, rows, estimator="exact_elbo") for rows in (windows(4), plain))
    assert one.nats_per_token == pytest.approx(other.nats_per_token, abs=1e-12)


@pytest.mark.parametrize(
    ("process", "facts", "said"),
    [
        (processes.uniform(5), {}, "stride=2 of a uniform process: its noise reaches every token"),
        (
            processes.masked(5),
            {"attention": "block", "block": 4},
            "knows 2 tokens, which must be whole blocks of 4 for this model; take stride=4",
        ),
    ],
)
def test_windows_are_refused_where_nothing_can_be_known(process, facts, said):
    with pytest.raises(ValueError, match=said):
        likelihood(Table(process, 4, **facts), process, windows(2))
