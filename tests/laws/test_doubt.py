"""What a model doubts: log p of each token given the others, and which redrafts keep the law of a text."""

import math

import pytest
import torch

from redraft import processes, sampling
from redraft.sampling.doubt import alone, doubted

from .exhaust import outcomes
from .oracle import LAW, ExactDenoiser, K, sequences, state_number, total_variation
from .prescribed import Says, Selective, random_law
from .test_sampling_laws import Contextual

MASKED = processes.masked(K)
TEXTS = sequences(K)
EVERYWHERE = torch.ones(2, dtype=torch.bool)
GIVEN_OTHER = torch.stack([LAW / LAW.sum(0), LAW / LAW.sum(1, keepdim=True)], -1)  # p(x_i | the other), (K, K, 2)
TRIPLES = random_law(8, seed=3).exp().reshape(2, 2, 2)


def test_a_masked_model_is_asked_of_each_token_alone():
    """log p(x_i | x without i) of the toy, exactly, at a forward for each token; nan where it was not asked."""
    for text in TEXTS:
        logp, cost = alone(MASKED, ExactDenoiser(MASKED), text, EVERYWHERE)
        torch.testing.assert_close(logp, GIVEN_OTHER[text[0], text[1]].log(), rtol=0, atol=1e-12)
        assert (cost.nfe, cost.positions, cost.of_rows) == (1, 4, [2])
        second, cost = alone(MASKED, ExactDenoiser(MASKED), text, torch.tensor([False, True]))
        assert second.isnan().tolist() == [True, False]
        assert second[1] == logp[1]
        assert (cost.nfe, cost.positions, cost.of_rows) == (1, 2, [1])
    none, cost = alone(MASKED, ExactDenoiser(MASKED), TEXTS[0], ~EVERYWHERE)
    assert bool(none.isnan().all())
    assert (cost.nfe, cost.of_rows) == (0, [0])


@pytest.mark.parametrize("posterior", ["cavity", "full"])
@pytest.mark.parametrize("name", ["uniform", "hybrid"])
def test_uniform_and_hybrid_models_say_all_in_one_call(name, posterior):
    """The cavity of the text read as noisy at t0, whichever posterior is declared; exact as t0 goes to 0."""
    process = processes.uniform(K) if name == "uniform" else processes.hybrid(K, uniform_share=0.3)
    for text in TEXTS:
        denoiser = ExactDenoiser(process, posterior=posterior)
        logp, cost = alone(process, denoiser, text, EVERYWHERE, t0=1e-8)
        torch.testing.assert_close(logp, GIVEN_OTHER[text[0], text[1]].log(), rtol=0, atol=1e-3)
        assert (cost.nfe, cost.positions, denoiser.calls) == (1, 2, 1)
        usual = alone(process, denoiser, text, EVERYWHERE)[0]
        z, t = text[None], torch.full((1,), 0.01, dtype=torch.float64)
        cavity = ExactDenoiser(process)(z, t)[0].gather(-1, text[:, None])[:, 0]
        torch.testing.assert_close(usual, cavity, rtol=0, atol=1e-9)


def test_long_texts_are_asked_in_parts_and_only_where_it_matters():
    process = processes.masked(7)
    denoiser = Selective(Contextual(process))
    text = torch.arange(150) % 7
    logp, cost = alone(process, denoiser, text, torch.ones(150, dtype=torch.bool))
    assert denoiser.asked < 150 + 4 * cost.nfe
    assert (cost.nfe, cost.of_rows, cost.positions) == (6, [150], 150 * 150)  # 27 rows at a time
    again = alone(process, Contextual(process), text, torch.ones(150, dtype=torch.bool))[0]
    torch.testing.assert_close(logp, again, rtol=0, atol=0)


def test_one_that_reads_the_time_is_told_that_one_of_all_is_masked():
    seen = []

    class Watching(Says):
        def __call__(self, z, t, cond=None, scores=False):
            seen.append((t.tolist(), cond))
            return super().__call__(z, t).expand(len(z), -1, -1)

    alone(MASKED, Watching(random_law(1, 4, K), mask_id=K, given=True), torch.zeros(4).long(), torch.ones(4).bool())
    ((times, cond),) = seen
    assert times == pytest.approx([0.25] * 4)
    assert not bool(cond["given"].any())


# ----------------------------------------------------------------------------------------------- what keeps the law


def redrafted(law, free, **options) -> torch.Tensor:
    """The law of texts of ``law`` whose positions ``free(text)`` were redrafted, every outcome of ``sample``."""
    texts = sequences(law.shape[0], law.dim())
    process = processes.masked(law.shape[0])
    out = torch.zeros(len(texts), dtype=torch.float64)
    for text, weight in zip(texts, law.flatten(), strict=True):
        chosen, denoiser = free(text), ExactDenoiser(process, law)

        def run(text=text, chosen=chosen, denoiser=denoiser):
            options_ = {"strength": 1.0, "sampler": "left_to_right", **options}
            return sampling.sample(process, denoiser, canvas=text, frozen=~chosen, **options_).tokens

        for result, share in outcomes(run, 1):
            out.index_put_((state_number(result, law.shape[0]),), weight * share, accumulate=True)
    return out


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_redraft_of_a_place_chosen_blindly_keeps_the_law(strength):
    """A Gibbs step: x ~ p stays p, 1e-12, whichever position, at any strength; of two positions one a step too."""
    for place in range(2):
        after = redrafted(LAW, lambda _, place=place: torch.arange(2) == place, strength=strength)
        torch.testing.assert_close(after, LAW.flatten(), rtol=0, atol=1e-12)
    after = redrafted(TRIPLES, lambda _: torch.tensor([True, False, True]), strength=strength)
    torch.testing.assert_close(after, TRIPLES.flatten(), rtol=0, atol=1e-12)


def test_a_place_chosen_by_the_others_alone_keeps_the_law():
    """Which of two is redrafted may depend on the third token, which is not."""
    after = redrafted(TRIPLES, lambda text: torch.tensor([bool(text[2]), not bool(text[2]), False]))
    torch.testing.assert_close(after, TRIPLES.flatten(), rtol=0, atol=1e-12)


def test_redrafting_what_is_doubted_does_not():
    """The less likely of two tokens is redrafted: the law that simple sums over the toy give, off by .1747 in all.

    Texts become likelier: log p of a token given the other rises on average, by .0361 nats.
    """

    def choose(text):
        return doubted(alone(MASKED, ExactDenoiser(MASKED), text, EVERYWHERE)[0], EVERYWHERE, 0.5, None)

    by_hand = torch.zeros(K, K, dtype=torch.float64)
    for a, b in TEXTS.tolist():
        if GIVEN_OTHER[a, b, 0] <= GIVEN_OTHER[a, b, 1]:
            by_hand[:, b] += LAW[a, b] * GIVEN_OTHER[:, b, 0]
        else:
            by_hand[a] += LAW[a, b] * GIVEN_OTHER[a, :, 1]
    after = redrafted(LAW, choose)
    torch.testing.assert_close(after, by_hand.flatten(), rtol=0, atol=1e-12)
    pseudo = GIVEN_OTHER.log().mean(-1).flatten()
    assert total_variation(after, LAW.flatten()) == pytest.approx(0.17473, abs=1e-5)
    assert ((after - LAW.flatten()) * pseudo).sum().item() == pytest.approx(0.03611, abs=1e-5)


# ------------------------------------------------------------------------------------------------- what is doubted


def test_the_share_that_is_least_likely_is_doubted():
    logp = torch.tensor([-1.0, -3.0, math.nan, -3.0, -2.0, -math.inf])
    among = ~logp.isnan()

    def chosen(share=None, below=None):
        return doubted(logp, among, share, below).nonzero().flatten().tolist()

    assert chosen(0.0) == []
    assert chosen(0.01) == [5]  # rounded up
    assert chosen(0.2) == [5]
    assert chosen(0.4) == [1, 5]  # the first of equals
    assert chosen(0.6) == [1, 3, 5]
    assert chosen(1.0) == [0, 1, 3, 4, 5]
    assert chosen(below=0.0) == []
    assert chosen(below=math.exp(-2.0)) == [1, 3, 5]
    assert chosen(below=1.0) == [0, 1, 3, 4, 5]
    assert chosen(0.4, math.exp(-1.5)) == [1, 5]
    assert chosen(0.9, math.exp(-2.5)) == [1, 3, 5]


def test_what_cannot_be_doubted_is_refused():
    for share, below, words in ((1.5, None, "doubt=1.5"), (None, -0.1, r"below=-0\.1")):
        with pytest.raises(ValueError, match=words):
            doubted(torch.zeros(2), EVERYWHERE, share, below)
    with pytest.raises(ValueError, match=r"t0=0\.0"):
        alone(MASKED, ExactDenoiser(MASKED), TEXTS[0], EVERYWHERE, t0=0.0)
    codes = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    says = Says(random_law(1, 2, K))
    with pytest.raises(ValueError, match="a gaussian denoiser of full attention cannot say"):
        alone(processes.gaussian(codes), says, TEXTS[0], EVERYWHERE)
    for attention in ("causal", "block"):
        with pytest.raises(ValueError, match=f"a masked denoiser of {attention} attention cannot say"):
            alone(MASKED, Says(random_law(1, 2, K), mask_id=K, attention=attention), TEXTS[0], EVERYWHERE)
