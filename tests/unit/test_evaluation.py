"""Likelihood and variety, against values known in closed form."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from typer.testing import CliRunner

from redraft import processes
from redraft.cli import app
from redraft.data import Packed, build_tokenizer
from redraft.evaluation import distinct_n, estimators, likelihood, unigram_entropy
from redraft.lm import LM
from redraft.models import Transformer, TransformerConfig
from redraft.processes import Facts


class Constant:
    """A denoiser that gives every token of ``p`` the same probability everywhere: the NELBO is -E log p(x)."""

    def __init__(self, p, causal=False, mask_id=None):
        self.logp = torch.tensor(p, dtype=torch.float64).log()
        self.facts = Facts(mask_id=mask_id, attention="causal" if causal else "full")

    def __call__(self, z, t, cond=None):
        return self.logp.expand(*z.shape[:2], -1)


P = [0.5, 0.3, 0.2]


def rows(n=400, length=8, valid=None):
    ids = np.random.default_rng(0).choice(3, size=(n, length), p=P).astype(np.int32)
    tokens = ids.size if valid is None else int(valid.sum())
    return Packed(ids, valid, None, num_chars=2 * tokens, num_tokens=tokens)


def cross_entropy(packed):
    valid = np.ones(packed.ids.shape, bool) if packed.valid is None else packed.valid
    return -np.log(np.array(P))[packed.ids[valid]].mean()


def test_masked_bound_of_independent_tokens_is_their_entropy():
    """Two-sided 99.9% test with a fixed seed: false alarm 1e-3, once."""
    packed = rows()
    found = likelihood(Constant(P, mask_id=3), processes.masked(3), packed, draws=16)
    assert abs(found.nats_per_token - cross_entropy(packed)) < 3.3 * found.nats_per_token_error / 1.96
    assert found.nats_per_token_error < 0.05
    assert found.bits_per_char == pytest.approx(found.nats_per_token / math.log(2) / 2)
    assert found.perplexity == pytest.approx(math.exp(found.nats_per_token))
    assert (found.is_bound, found.rows, found.tokens, found.characters) == (True, 400, 3200, 6400)
    assert found.estimator == "NELBO, k of n tokens masked, stratified k"


def test_every_estimator_has_the_same_mean():
    """k of n masked and the integral over t agree, for a denoiser that looks at what is left.

    Two-sided 99.9% test with a fixed seed: false alarm 1e-3, once.
    """

    class Looking(Constant):
        def __call__(self, z, t, cond=None):
            seen = (z != 3).double().mean(1)[:, None, None]
            return torch.log_softmax(self.logp * (1 + seen), -1).expand(*z.shape, -1)

    packed, process = rows(n=2000), processes.masked(3)
    counted = likelihood(Looking(P, mask_id=3), process, packed, draws=8)
    timed = Looking(P, mask_id=3)
    timed.facts = Facts(mask_id=3, time_conditioned=True)
    integrated = likelihood(timed, process, packed, draws=8)
    assert integrated.estimator == "continuous-time NELBO, stratified t"
    error = math.hypot(counted.nats_per_token_error, integrated.nats_per_token_error) / 1.96
    assert abs(counted.nats_per_token - integrated.nats_per_token) < 3.3 * error
    assert counted.nats_per_token_error < integrated.nats_per_token_error


def test_causal_likelihood_is_exact():
    packed = rows()
    found = likelihood(Constant(P, causal=True, mask_id=3), processes.masked(3), packed, draws=9)
    assert found.nats_per_token == pytest.approx(cross_entropy(packed), abs=1e-12)
    assert (found.is_bound, found.draws) == (False, 1)
    spread = student.ppf(0.975, 399) * np.log(np.array(P))[packed.ids].mean(1).std(ddof=1) / math.sqrt(400)
    assert found.nats_per_token_error == pytest.approx(spread, rel=1e-6)


def test_padding_does_not_count():
    valid = np.ones((400, 8), bool)
    valid[::2, 5:] = False
    packed = rows(valid=valid)
    found = likelihood(Constant(P, causal=True, mask_id=3), processes.masked(3), packed)
    assert found.nats_per_token == pytest.approx(cross_entropy(packed), abs=1e-12)
    assert found.tokens == valid.sum()


def test_interval_covers_the_truth_at_its_rate():
    """95% intervals over 60 seeds: fewer than 50 hits has probability 4e-4 under the stated rate."""
    packed = rows(n=40)
    truth = cross_entropy(packed)
    results = [likelihood(Constant(P, mask_id=3), processes.masked(3), packed, seed=seed) for seed in range(60)]
    hits = sum(abs(one.nats_per_token - truth) < one.nats_per_token_error for one in results)
    assert hits >= 50


def test_options_change_the_outcome():
    packed, denoiser, process = rows(), Constant(P, mask_id=3), processes.masked(3)
    base = likelihood(denoiser, process, packed)
    assert base == likelihood(denoiser, process, packed)
    assert base.nats_per_token != likelihood(denoiser, process, packed, seed=1).nats_per_token
    assert likelihood(denoiser, process, packed, draws=16).nats_per_token_error < base.nats_per_token_error
    assert likelihood(denoiser, process, packed, rows=10).rows == 10
    with pytest.raises(ValueError, match="draws=0"):
        likelihood(denoiser, process, packed, draws=0)
    with pytest.raises(ValueError, match="1 rows"):
        likelihood(denoiser, process, rows(n=1))


# -------------------------------------------------------------------------------------------------------- estimators


class Steady(Constant):
    """Says the same of every vector, and lets a gradient through."""

    def __call__(self, z, t, cond=None):
        return (self.logp + 0.0 * z.sum(-1, keepdim=True)).log_softmax(-1)


def three_vectors():
    return processes.gaussian(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]], dtype=torch.float64))


def test_an_ode_of_a_constant_field_is_known_in_closed_form():
    """y moves by a constant along r: -log p(w), and |y_1|^2 / 2v + D/2 log v - |eps|^2 / 2 averages to what eps has.

    Row sums over 2000 rows of 8, within 3.3 standard errors (false alarm 1e-3, once).
    """
    packed, process = rows(2000), three_vectors()
    found = likelihood(Steady(P), process, packed, draws=1, estimator="ode", ode_steps=3)
    first, last = (math.exp(-process.gamma(torch.tensor([t]))[0].item() / 2) for t in (0.0, 1.0))
    x = process.codebook[torch.tensor(packed.ids).long()]
    mean = torch.tensor(P, dtype=torch.float64) @ process.codebook
    v = 1 + last**2
    moved = first * x + (last - first) * mean  # y_1 without eps
    expected = cross_entropy(packed) + ((moved**2).sum(-1).mean().item() + 2) / (2 * v) + math.log(v) - 1
    assert found.nats_per_token == pytest.approx(expected, abs=3.3 * found.nats_per_token_error / 1.96)
    assert found.nats_per_token_error < 0.02 * expected
    assert found.estimator == "probability-flow ODE, Heun of 3 steps, Hutchinson trace"
    assert found.is_bound


def test_an_ode_does_not_charge_for_padding():
    """With half of the rows padded the figure is per token that counts, whatever ids stand in the padding."""
    valid = np.ones((40, 8), bool)
    valid[::2, 5:] = False
    packed, process = rows(40, valid=valid), three_vectors()
    other = Packed(np.where(valid, packed.ids, 0).astype(np.int32), valid, None, packed.num_chars, packed.num_tokens)
    one, two = (likelihood(Steady(P), process, this, estimator="ode", ode_steps=2) for this in (packed, other))
    assert one.tokens == valid.sum()
    assert one.nats_per_token == pytest.approx(two.nats_per_token, abs=1e-12)


def test_an_ode_is_told_of_segments():
    class Parted(Steady):
        def __call__(self, z, t, cond=None):
            return super().__call__(z, t) - cond["segments"][..., None] * torch.tensor([0.0, 0.0, 1e9])

    ids = np.array([[0, 1, 2, 0], [2, 0, 1, 1]], np.int32)
    packed = Packed(ids, None, np.array([[0, 0, 0, 1], [0, 0, 1, 1]], np.int32), 8, 8)
    found = likelihood(Parted(P), three_vectors(), packed, estimator="ode", ode_steps=2)
    assert math.isfinite(found.nats_per_token)


def test_ode_options_change_the_outcome():
    class Looking(Steady):
        def __call__(self, z, t, cond=None):
            return torch.log_softmax(
                self.logp * (1 + z.tanh().mean((1, 2))[:, None, None] + z.sum(-1, keepdim=True)), -1
            )

    packed, denoiser, process = rows(8), Looking(P), three_vectors()

    def found(**options):
        return likelihood(denoiser, process, packed, estimator="ode", **{"draws": 1, "ode_steps": 2} | options)

    assert found().nats_per_token == pytest.approx(found().nats_per_token, rel=1e-12)
    values = {found(**options).nats_per_token for options in ({}, {"ode_probes": 0}, {"ode_probes": 2}, {"seed": 1})}
    values |= {found(**options).nats_per_token for options in ({"ode_steps": 3}, {"ode_steps": None}, {"draws": 2})}
    assert len({round(value, 9) for value in values}) == 7
    assert found(ode_probes=0).estimator == "probability-flow ODE, Heun of 2 steps, exact trace"
    assert found(ode_probes=2).estimator == "probability-flow ODE, Heun of 2 steps, Hutchinson trace of 2 probes"
    assert found(ode_steps=None).estimator == "probability-flow ODE, Heun of 64 steps, Hutchinson trace"
    for options, said in (({"ode_steps": 0}, "ode_steps=0"), ({"ode_probes": -1}, "ode_probes=-1")):
        with pytest.raises(ValueError, match=said):
            found(**options)


@pytest.mark.parametrize("score", [partial(estimators.over_flow, steps=1, probes=1), estimators.over_levels])
def test_times_are_where_the_ids_are(score, monkeypatch):
    """Also where u, drawn on the CPU, is not."""
    process, seen = three_vectors(), []

    def spy(x0, t, *others):
        seen.append(t.device.type)
        raise InterruptedError

    monkeypatch.setattr(process, "corrupt", spy)
    monkeypatch.setattr(process, "levels", lambda u: spy(None, u))
    with pytest.raises(InterruptedError):
        score(Steady(P), process, {"ids": torch.zeros(2, 4, dtype=torch.long, device="meta")}, torch.rand(2), None)
    assert seen == ["meta"]


def test_a_denoiser_that_lets_no_gradient_through_has_no_ode():
    """Silence would be a divergence of zero, and a bound that is none."""
    with pytest.raises(ValueError, match="no gradient passes"):
        likelihood(Constant(P), three_vectors(), rows(4), estimator="ode")

    class Weighted(Constant):
        def __call__(self, z, t, cond=None):
            return (self.logp.clone().requires_grad_() + z.detach().sum(-1, keepdim=True)).log_softmax(-1)

    with pytest.raises(ValueError, match="no gradient passes"):
        likelihood(Weighted(P), three_vectors(), rows(4), estimator="ode")


def test_the_vlb_is_the_integral_over_times():
    """Of masks that are not told the time too, for which counting masks is the default."""
    packed, process = rows(), processes.masked(3)
    found = likelihood(Constant(P, mask_id=3), process, packed, estimator="vlb")
    assert found.estimator == "continuous-time NELBO, stratified t"
    assert found.nats_per_token != likelihood(Constant(P, mask_id=3), process, packed).nats_per_token
    chain = likelihood(Constant(P, mask_id=3), processes.masked(3, steps=5), packed, estimator="vlb")
    assert chain.estimator == "discrete-time NELBO of T steps, stratified step"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"estimator": "odd"}, "unknown estimator 'odd'; did you mean 'ode'"),
        ({"estimator": "ode"}, "estimator='ode' of a masked process"),
        ({"estimator": "vlb", "ode_steps": 8}, "ode_steps=8"),
        ({"ode_probes": 0}, "ode_probes=0"),
    ],
)
def test_estimators_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        likelihood(Constant(P, mask_id=3), processes.masked(3), rows(), **options)


def test_a_causal_denoiser_has_no_vlb():
    with pytest.raises(ValueError, match="chain rule, exact"):
        likelihood(Constant(P, causal=True, mask_id=3), processes.masked(3), rows(), estimator="vlb")


def test_a_model_is_evaluated_by_the_ode_and_so_says_the_command_line(tmp_path):
    tokenizer = build_tokenizer("toy")
    torch.manual_seed(0)
    process = processes.gaussian(torch.randn(tokenizer.K, 4))
    model = Transformer(TransformerConfig(process.to_dict(), depth=1), {"codebook": process.table})
    torch.nn.init.normal_(model.head.weight, std=0.2)
    lm = LM(model, tokenizer, {"context": 6})
    lm.save(tmp_path / "model")
    found = lm.evaluate("toy", rows=3, draws=1, estimator="ode", ode_steps=2, ode_probes=2)
    assert found.estimator == "probability-flow ODE, Heun of 2 steps, Hutchinson trace of 2 probes"
    assert math.isfinite(found.nats_per_token)
    options = ["--rows", "3", "--draws", "1", "--estimator", "ode", "--ode-steps", "2", "--ode-probes", "2", "--json"]
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "model"), "--data", "toy", *options])
    printed = json.loads(done.stdout)
    assert printed["estimator"] == found.estimator
    assert printed["nats_per_token"] == pytest.approx(found.nats_per_token, rel=1e-6)


def test_unigram_entropy():
    assert unigram_entropy([[1, 2, 3, 4]]) == pytest.approx(math.log(4))
    assert unigram_entropy([[1, 1, 1, 1], [1, 1, 2, 2]]) == pytest.approx(math.log(2) / 2)
    with pytest.raises(ValueError, match="no tokens"):
        unigram_entropy([])


def test_distinct_n():
    assert distinct_n([[1, 2, 1, 2], [1, 2, 3, 4]], 2) == pytest.approx(4 / 6)
    assert distinct_n([[1, 1]], 1) == 0.5
    with pytest.raises(ValueError, match="no row has 3"):
        distinct_n([[1, 2]], 3)
    with pytest.raises(ValueError, match="n=0"):
        distinct_n([[1, 2]], 0)
