"""Attention patterns, compared with the sentences that define them, position by position."""

import itertools

import pytest
import torch

from redraft.models import contexts

RANKS = {
    "blocks": contexts.block_ranks(6, 2),
    "ragged blocks": contexts.block_ranks(5, 3),
    "one block": contexts.block_ranks(4, 4),
    "places": contexts.block_ranks(4, 1),
    "an order": torch.tensor([2, 0, 3, 1]),
}


def test_block_ranks():
    assert contexts.block_ranks(7, 3).tolist() == [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("name", RANKS)
def test_two_stream_and_up_to_as_defined(name):
    rank = RANKS[name]
    L = len(rank)
    pattern, plain = contexts.two_stream(rank), contexts.up_to(rank)
    assert pattern.shape == (2 * L, 2 * L)
    for query, key in itertools.product(range(2 * L), repeat=2):
        noisy_query, noisy_key = query < L, key < L
        q, k = int(rank[query % L]), int(rank[key % L])
        expected = k == q if noisy_query and noisy_key else not noisy_key and (k < q if noisy_query else k <= q)
        assert bool(pattern[query, key]) == expected
    for query, key in itertools.product(range(L), repeat=2):
        assert bool(plain[query, key]) == (rank[key] <= rank[query])


def test_every_query_reads_something():
    for rank in RANKS.values():
        assert contexts.two_stream(rank).any(-1).all()


def test_rows_may_have_their_own_orders():
    rank = torch.stack([torch.arange(4), torch.tensor([2, 0, 3, 1])])
    pattern = contexts.two_stream(rank)
    assert pattern.shape == (2, 8, 8)
    for row in range(2):
        assert torch.equal(pattern[row], contexts.two_stream(rank[row]))
        assert torch.equal(contexts.up_to(rank)[row], contexts.up_to(rank[row]))


def test_places_make_the_causal_pattern():
    assert torch.equal(contexts.up_to(torch.arange(5)), torch.ones(5, 5, dtype=torch.bool).tril())


def test_doubled():
    assert contexts.doubled(3).tolist() == [0, 1, 2, 0, 1, 2]


def test_revealed_as_defined():
    """A known token reads the known up to itself, an unknown one all known and itself; nobody another's mask."""
    for known in itertools.product([False, True], repeat=4):
        pattern = contexts.revealed(torch.tensor([known]))[0]
        for query, key in itertools.product(range(4), repeat=2):
            told = known[key] and (key <= query or not known[query])
            assert bool(pattern[query, key]) == (told or query == key)
