"""What likelihood estimators refuse, and what they say of themselves."""

import numpy as np
import pytest
import torch

from redraft import processes
from redraft.data import Packed
from redraft.evaluation import estimators, likelihood

from .oracle import ExactDenoiser, K
from .tables import TEXTS, Recalls, Table, found, rows_of


def packed(texts):
    return Packed(texts.numpy().astype(np.int32), None, None, 0, texts.numel())


def wide():
    process = processes.masked(K)
    return process, Recalls(K, size=K), torch.zeros(2, 13, dtype=torch.long)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (wide, {"estimator": "enumeration"}, r"13 tokens, which have 2\^13 sets, at most 4096"),
        (wide, {"estimator": "exact_elbo"}, r"exact_elbo.*2\^13 sets"),
        (wide, {"estimator": "enumeration", "chain_steps": 2}, r"13 tokens, which have 2\^13 states, at most 4096"),
        (wide, {"estimator": "importanse"}, "did you mean 'importance'"),
        (wide, {"estimator": "any_order", "particles": 3}, "particles=3 goes with estimator='importance'"),
        (wide, {"chain_steps": 3}, "chain_steps=3 goes with estimator='importance' or estimator='enumeration'"),
        (wide, {"estimator": "importance", "particles": 0}, "particles=0: take at least one"),
        (wide, {"estimator": "enumeration", "chain_steps": 0}, "chain_steps=0"),
        (wide, {"estimator": "steps"}, "steps' of a masked process in continuous time"),
    ],
)
def test_what_does_not_fit_is_refused(make, options, said):
    process, denoiser, texts = make()
    with pytest.raises(ValueError, match=said):
        likelihood(denoiser, process, packed(texts), **options)


@pytest.mark.parametrize(
    ("process", "facts", "name", "said"),
    [
        (processes.uniform(K), {}, "any_order", "uniform process: tokens are written in an order among masks only"),
        (processes.uniform(K), {}, "exact_elbo", "an integral over t"),
        (processes.masked(K), {"timed": True}, "exact_elbo", "an integral over t"),
        (processes.masked(K), {"attention": "causal"}, "importance", "'causal', which has an estimator of its own"),
        (processes.masked(K), {"attention": "permuted"}, "enumeration", "'permuted'"),
        (processes.uniform(K), {"self_conditioned": True}, "enumeration", "self-conditioned"),
    ],
)
def test_models_that_do_not_fit_are_refused(process, facts, name, said):
    with pytest.raises(ValueError, match=said):
        estimators.get(name, Table(process, **facts), process)


def test_a_permuted_denoiser_writes_in_no_steps():
    process = processes.masked(K)
    with pytest.raises(ValueError, match="chain_steps=2 of a permuted"):
        estimators.get("importance", Table(process, attention="permuted"), process, chain_steps=2)


def test_what_draws_nothing_is_measured_once():
    """However many draws are asked for: enumeration and ``exact_elbo`` say 1, and only the first is no bound."""
    process, texts = processes.masked(K), packed(TEXTS)
    names = ("enumeration", "exact_elbo", "any_order")
    told = [likelihood(Table(process), process, texts, draws=3, estimator=name) for name in names]
    assert [(one.draws, one.is_bound) for one in told] == [(1, False), (1, True), (3, True)]


def test_rows_of_noise_that_reaches_tokens_have_all_states():
    process = processes.uniform(K)
    with pytest.raises(ValueError, match=r"8 tokens, which have 3\^8 states"):
        found("enumeration", ExactDenoiser(process), process, rows_of(torch.zeros(1, 8, dtype=torch.long)))


def test_steps_of_the_chain_are_the_processes_own_unless_given():
    process = processes.uniform(K, steps=7)
    denoiser = Table(process)
    assert "of 7 ancestral" in estimators.get("enumeration", denoiser, process).name
    assert "of 2 ancestral" in estimators.get("enumeration", denoiser, process, chain_steps=2).name
    assert "128 ancestral" in estimators.get("importance", denoiser, processes.uniform(K)).name
    assert "8 random orders" in estimators.get("importance", Table(processes.masked(K)), processes.masked(K)).name
