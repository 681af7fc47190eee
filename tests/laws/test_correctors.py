"""Correctors: what leaves q_s as it is, what does not and by how much, and what mends a finished text."""

import math

import pytest
import torch

from redraft import processes, sampling
from redraft.sampling import samplers
from redraft.sampling.contract import Draw
from redraft.sampling.correctors import lowest, self_correct

from .exhaust import after, law_at, noised, outcomes, transitions
from .oracle import ExactDenoiser, ancestral_law, on_states, total_variation

FAMILIES = {
    "masked": lambda: processes.masked(3, "cosine"),
    "uniform": lambda: processes.uniform(3),
    "hybrid": lambda: processes.hybrid(3, 0.3),
    "matrix": lambda: processes.d3pm(3, "gaussian", 8),
    "d3pm_hybrid": lambda: processes.d3pm(3, "hybrid", 8),
}
CLEAN = 1e-9
"""A time at which q_s is the law itself to 1e-8, and still a time: the corrector alone is a step from s to s."""


def corrected(sampler: str, process, s: float) -> float:
    """The total variation by which a corrector moves q_s; its predictor, from s to s, does nothing."""
    kernel = transitions(samplers.get(sampler), process, ExactDenoiser(process), s, s, together=False)
    return total_variation(after(noised(process, s), kernel), noised(process, s))


# --------------------------------------------------------------------------------------------------------------- gibbs


@pytest.mark.parametrize("name", FAMILIES)
def test_t28_random_scan_gibbs_leaves_the_law_as_it_is(name):
    """T28: TV 0, 1e-9, at a noisy s and, among processes in continuous time, for the clean law."""
    process = FAMILIES[name]()
    assert corrected("gibbs", process, 0.375) < 1e-9
    if name in ("masked", "uniform", "hybrid"):
        assert corrected("gibbs", process, CLEAN) < 1e-9


def test_t28_a_redraw_from_the_wrong_conditional_would_show():
    """T28: conditionals of another noise level move q_s, so the test above can fail; those of the full posterior do
    not, for a guess at the clean token noised afresh is a Gibbs step too, of token and noise in turn.
    """
    process, s = processes.uniform(3), 0.4
    exact, full = ExactDenoiser(process), ExactDenoiser(process, posterior="full")
    moved = []
    for denoiser in (lambda z, t: exact(z, t / 2), full):
        kernel = transitions(samplers.gibbs, process, denoiser, s, s, together=False)
        moved.append(total_variation(after(noised(process, s), kernel), noised(process, s)))
    assert moved[0] > 0.01
    assert moved[1] < 1e-9


@pytest.mark.parametrize("name", ["masked", "uniform"])
def test_gibbs_mends_what_ancestral_steps_do_wrong(name):
    """A redraw brings the law of two steps nearer; a step costs one call more for each redraw."""
    process = FAMILIES[name]()
    denoiser = ExactDenoiser(process)
    plain = total_variation(ancestral_law(process, denoiser, 2), on_states(process))
    once = total_variation(law_at(samplers.gibbs, process, denoiser, 2, together=False), on_states(process))
    assert once < 0.9 * plain
    drawn = sampling.sample(process, ExactDenoiser(process), length=2, num=3, steps=4, sampler="gibbs:k=2")
    assert drawn.nfe == 4 + 3 * 2  # the last step is not corrected


# ------------------------------------------------------------------------------------------------------------ informed


@pytest.mark.parametrize("name", ["masked", "uniform", "hybrid"])
def test_t28_choosing_by_confidence_moves_the_law(name):
    """T28: .0215, redrawing the lowest of log p - Gumbel of two clean tokens: the choice weighs 1 / p. 5e-5."""
    assert corrected("informed:k=1", FAMILIES[name](), CLEAN) == pytest.approx(0.0215, abs=5e-5)


def test_t28_the_bias_of_every_way_to_choose():
    """T28: greedy choices are far worse, and a score blind to the token itself is no cure: all see the state."""
    process = processes.uniform(3)
    bias = {
        sampler: corrected(f"informed:{sampler}", process, CLEAN)
        for sampler in ("k=1", "k=1,tau=0", "k=1,score=margin", "k=1,tau=0,score=margin", "k=1,tau=4")
    }
    assert bias["k=1,tau=0"] == pytest.approx(0.162954, abs=1e-6)
    assert bias["k=1,score=margin"] == pytest.approx(0.037848, abs=1e-6)
    assert bias["k=1,tau=0,score=margin"] == pytest.approx(0.176004, abs=1e-6)
    assert bias["k=1,tau=4"] < bias["k=1"] / 3  # flatter choices are nearer to Gibbs sampling


@pytest.mark.parametrize("name", ["masked", "hybrid"])
def test_informed_redraws_tokens_as_tokens(name):
    """The conditional of z_i given the others and that it is written: no mass goes to [MASK], or away from it."""
    process, s = FAMILIES[name](), 0.4
    denoiser = ExactDenoiser(process)
    kernel = transitions(samplers.get("informed:k=1"), process, denoiser, s, s, together=False).reshape(4, 4, 4, 4)
    assert kernel[0, 1, 3].sum() + kernel[0, 1, :, 3].sum() == 0
    assert kernel[3, 1, :3].sum() == 0
    # beside a mask only the token can be chosen; masking it to ask of it changes nothing for hybrid noise
    states, time = torch.tensor([[3, 3 if name == "masked" else 1]]), torch.full((1,), s, dtype=torch.float64)
    tokens = process.marginal(denoiser(states, time).exp(), time)[0, 1, :3]
    torch.testing.assert_close(kernel[3, 1, 3, :3], tokens / tokens.sum(), rtol=0, atol=1e-12)


def test_lowest_is_gumbel_top_k():
    """Positions in turn with weights exp(-score / tau), without return; tau = 0 takes the lowest, given ones never."""
    score = torch.tensor([[0.3, -0.5, 1.0, 0.1]], dtype=torch.float64)
    among = torch.tensor([[True, True, True, False]])
    draw = Draw(~among, None)
    weights = torch.exp(-score[0, :3] / 0.7)
    expected = {}
    for a in range(3):
        for b in {0, 1, 2} - {a}:
            pair = tuple(sorted((a, b)))
            chance = weights[a] / weights.sum() * weights[b] / (weights.sum() - weights[a])
            expected[pair] = expected.get(pair, 0.0) + chance.item()
    law = {}
    for chosen, weight in outcomes(lambda: lowest(score, among, 2, 0.7, draw), 1):
        pair = tuple(chosen[0].nonzero().flatten().tolist())
        law[pair] = law.get(pair, 0.0) + weight.item()
    assert law == pytest.approx(expected, abs=1e-12)
    assert lowest(score, among, 2, 0.0, draw)[0].tolist() == [True, True, False, False]
    assert lowest(score, among, 4, 1.0, draw)[0].tolist() == [True, True, True, False]  # no more than there are


def test_informed_scores_a_masked_token_without_showing_it():
    """Every written position is masked in turn: as many calls, and no score depends on its own token."""
    process = processes.masked(3)
    seen = []

    class Watching(ExactDenoiser):
        def __call__(self, z, t, cond=None):
            seen.append((z == 3).sum(1).tolist())
            return super().__call__(z, t, cond)

    z = torch.tensor([[0, 1], [2, 2]])
    s = torch.full((2,), 0.3, dtype=torch.float64)
    draw = Draw(torch.tensor([[False, False], [True, False]]), torch.Generator().manual_seed(0))
    watching = Watching(process)

    def query(z, t, where=None):
        return watching(z, t) if where is None else watching(z, t)[where]

    result = samplers.informed(process, query, z, s, s, draw, k=2)
    assert seen == [[0, 0], [1, 0], [1, 1]]  # the predictor's call; then each position, but never a given token
    assert result[1, 0] == 2
    assert (result < 3).all()


# -------------------------------------------------------------------------------------------------- self-correction


def modes() -> torch.Tensor:
    """A law of three words over three letters, aaa, bbb and ccc, and a tenth of anything else."""
    law = torch.full((3, 3, 3), 0.1 / 24, dtype=torch.float64)
    for k in range(3):
        law[k, k, k] = 0.3
    return law


@pytest.mark.parametrize("name", ["uniform", "hybrid", "d3pm_hybrid"])
def test_self_correct_mends_an_injected_error(name):
    """Section 7.9: every word with one wrong letter becomes the word again; words stay; one letter at a time."""
    process = FAMILIES[name]()
    denoiser = ExactDenoiser(process, modes())
    words = torch.arange(3).repeat_interleave(6)[:, None].expand(-1, 3)
    wrong = words.clone()
    for row in range(18):
        wrong[row, row % 3] = (wrong[row, row % 3] + 1 + row // 3 % 2) % 3
    t0 = 0.25 if name == "d3pm_hybrid" else 0.01
    mended, nfe = self_correct(process, denoiser, wrong, t0=t0, seed=1)
    assert torch.equal(mended, words)
    assert 32 < nfe <= 32 * 4 + 1  # at most one rise of self-accuracy for each letter, and a last wait
    assert self_correct(process, denoiser, words, t0=t0, patience=1)[1] == 2
    assert torch.equal(self_correct(process, denoiser, words, t0=t0)[0], words)


def test_self_correct_respects_given_tokens():
    """With the wrong letter given, the others give way, or stay where all are given."""
    process = processes.hybrid(3)
    denoiser = ExactDenoiser(process, modes())
    wrong = torch.tensor([[1, 0, 0], [1, 0, 0]])
    frozen = torch.tensor([[True, False, False], [True, True, True]])
    mended, _ = self_correct(process, denoiser, wrong, frozen=frozen, temperature=2.0, patience=200, seed=0)
    assert mended.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_self_correct_is_bounded_and_never_worse():
    """A denoiser that contradicts itself forever ends after its patience, with the text of most self-accuracy."""
    process = processes.uniform(3)

    class Contrary:
        facts = processes.Facts()

        def __call__(self, z, t, cond=None):
            return torch.nn.functional.one_hot((z + 1) % 3, 3).double().add(1e-9).log().log_softmax(-1)

    tokens = torch.tensor([[0, 1, 2]])
    mended, nfe = self_correct(process, Contrary(), tokens, patience=5)
    assert torch.equal(mended, tokens)
    assert nfe == 6


def test_self_correct_draws_row_by_row():
    """A row is what its seed makes it, whatever stands beside it; temperature, t0 and seed all matter."""
    process = processes.hybrid(3, 0.5)
    denoiser = ExactDenoiser(process, modes())
    tokens = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 1, 0], [0, 2, 1]]).repeat(4, 1)
    seeds = list(range(16))
    hot = {"temperature": 3.0, "patience": 3}
    batch, _ = self_correct(process, denoiser, tokens, seeds=seeds, **hot)
    for row in (0, 7):
        alone, _ = self_correct(process, denoiser, tokens[row : row + 1], seeds=[row], **hot)
        assert torch.equal(alone[0], batch[row])
    others = [
        self_correct(process, denoiser, tokens, seed=1, **hot),
        self_correct(process, denoiser, tokens, seed=2, **hot),
        self_correct(process, denoiser, tokens, seed=1, temperature=0.0, patience=3),
        self_correct(process, denoiser, tokens, seed=1, t0=0.9, **hot),
        self_correct(process, denoiser, tokens, seed=1, temperature=3.0, patience=1),
    ]
    first = others[0][0]
    assert all(not torch.equal(first, other) for other, _ in others[1:])
    assert math.isfinite(others[0][1])


def test_self_correct_refuses_what_it_cannot_do():
    masked = processes.masked(3)
    tokens = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"masked denoiser never learnt .*remdm"):
        self_correct(masked, ExactDenoiser(masked), tokens)
    uniform = processes.uniform(3)
    with pytest.raises(ValueError, match=r"t0=1\.5"):
        self_correct(uniform, ExactDenoiser(uniform), tokens, t0=1.5)
    with pytest.raises(ValueError, match=r"tokens \(2,\), frozen None"):
        self_correct(uniform, ExactDenoiser(uniform), tokens[0])
    with pytest.raises(ValueError, match=r"tokens \(1, 2\), frozen \(2,\)"):
        self_correct(uniform, ExactDenoiser(uniform), tokens, frozen=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="patience=0"):
        self_correct(uniform, ExactDenoiser(uniform), tokens, patience=0)


def test_self_correct_writes_no_mask():
    """A plain head leaves mass on [MASK], which hybrid D3PM noise knows: it is no candidate."""

    class Plain:
        facts = processes.Facts(mask_id=3)

        def __call__(self, z, t, cond=None):
            return torch.tensor([0.0, 1.0, 0.0, 9.0]).log_softmax(-1).expand(*z.shape, 4)

    tokens, _ = self_correct(processes.d3pm(3, "hybrid", 10), Plain(), torch.zeros(2, 4, dtype=torch.long), patience=8)
    assert tokens.tolist() == [[1] * 4] * 2


def test_a_token_that_is_ruled_out_is_chosen_first():
    score = torch.tensor([[-1.0, -torch.inf, -2.0, -torch.inf]])
    among = torch.tensor([[True, True, True, False]])
    draw = Draw(~among, torch.Generator().manual_seed(0))
    for tau in (0.0, 1e-3, 1.0):
        assert lowest(score, among, 1, tau, draw).tolist() == [[False, True, False, False]]
