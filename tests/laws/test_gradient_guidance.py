"""Guidance of vectors against exact conditional laws: x_hat plus a gradient is E[x | z, y] (2.2-5, 18-7), CFG is not.

What holds of a text is here the parity of how many of its tokens are in a set: p(y | z) and E[x | z, y] by
forward-backward on the product of chain and parity, or by enumeration.
"""

import itertools
import math

import pytest
import torch

import redraft as rd
from redraft import guidance, processes
from redraft.processes import Facts
from redraft.schedules import GammaSchedule

from .chain import Chain, ExactChain, noise
from .oracle import chi_square_tail, sequences, state_number, total_variation

FALSE_ALARM = 1e-6
IMPOSSIBLE = -1e30  # in place of -inf, which has no gradient


def point(process, chain, level, rows=4, seed=1):
    t = torch.full((rows,), level, dtype=torch.float64)
    return process.corrupt(chain.sample(rows), t, torch.Generator().manual_seed(seed)), t


class Parity:
    """log p(an odd, or even, number of tokens in ``members`` | z), exact for a chain; differentiable in z."""

    def __init__(self, process, chain, members=(0, 2, 3), odd=True):
        self.process, self.chain, self.odd = process, chain, odd
        self.inside = torch.tensor([token in members for token in range(chain.size)])

    def joint(self, emission):
        """log p(z, y), (B,): messages over (token, parity so far)."""
        chain, inside = self.chain, self.inside

        def entered(even, odd):
            """Parities before a token to those with it, (B, V) each."""
            return torch.where(inside, odd, even), torch.where(inside, even, odd)

        none = torch.full_like(emission[:, 0], IMPOSSIBLE)
        even, odd = entered(chain.log_first + emission[:, 0], none)
        for i in range(1, emission.shape[1]):
            even, odd = entered(
                *(torch.logsumexp(m[:, :, None] + chain.log_step, 1) + emission[:, i] for m in (even, odd))
            )
        return torch.logsumexp(odd if self.odd else even, -1)

    def __call__(self, z, t):
        emission = self.process.output_prior(z, t)
        return self.joint(emission) - self.chain.log_evidence(emission)

    def mean(self, z, t):
        """E[x | z, y]: P(w_i = v | z, y) is the slope of log p(z, y) in the emission of v at i."""
        emission = self.process.output_prior(z, t).detach().requires_grad_()
        (marginals,) = torch.autograd.grad(self.joint(emission).sum(), emission)
        return self.process.mean(marginals)

    def holds(self, ids):
        return (self.inside[ids].sum(1) % 2 == 1) == self.odd


# ---------------------------------------------------------------------------------------------- classifier guidance


@pytest.mark.parametrize("kind", ["vp", "ve", "rf"])
@pytest.mark.parametrize("odd", [True, False])
def test_18_7_classifier_guidance_is_exact(kind, odd):
    """x_hat + (sigma^2 / alpha) grad log p(y | z) = E[x | z, y] of 13 tokens at 6 places, 1e-9."""
    process, chain = noise(kind), Chain()
    parity = Parity(process, chain, odd=odd)
    guided = rd.gradient_guided(ExactChain(process, chain), process, parity)
    for level in (0.02, 0.3, 0.6, 0.95):
        z, t = point(process, chain, level)
        found = guided(z, t, vectors=True)
        torch.testing.assert_close(found, parity.mean(z, t), rtol=0, atol=1e-9)
        plain = process.mean(guided(z, t).exp())
        if level > 0.1:
            assert (found - plain).abs().max() > 0.01
        # a weight other than 1 is that many times as far from the plain denoiser, and may change with time
        for weight in (2.5, lambda t: 2.5 * t / t.max()):
            further = rd.gradient_guided(ExactChain(process, chain), process, parity, weight)(z, t, vectors=True)
            torch.testing.assert_close(further - plain, 2.5 * (found - plain), rtol=1e-9, atol=1e-9)


def test_the_oracle_of_parity_is_enumeration():
    process, chain = noise(size=4), Chain(size=4, length=3)
    parity, texts = Parity(process, chain), sequences(4, 3)
    z, t = point(process, chain, 0.5)
    emission = process.output_prior(z, t)
    log_joint = chain.log_prob(texts) + emission[:, torch.arange(3), texts].sum(-1)
    p = log_joint.softmax(-1) * parity.holds(texts)
    torch.testing.assert_close(parity(z, t).exp(), p.sum(1), rtol=0, atol=1e-12)
    expected = torch.einsum("bn,nld->bld", p / p.sum(1, keepdim=True), process.codebook[texts])
    torch.testing.assert_close(parity.mean(z, t), expected, rtol=0, atol=1e-12)


STEPS = {"ancestral": 60, "ddim": 60, "euler": 60, "heun": 30, "churn": 30}


@pytest.mark.parametrize("sampler", STEPS)
def test_18_7_every_sampler_draws_the_texts_that_hold(sampler):
    """1,000 texts of 9 against p(w | y): chi-square, false alarm 1e-6. The unguided law is 0.73 away."""
    process, chain, texts = noise(size=3, gamma_min=-5.0), Chain(size=3, length=2, sharpness=0.7), sequences(3)
    parity = Parity(process, chain, members=(0, 2))
    guided = rd.gradient_guided(ExactChain(process, chain), process, parity)
    drawn = rd.sample(process, guided, length=2, num=1000, steps=STEPS[sampler], sampler=sampler)
    assert drawn.nfe == STEPS[sampler] * (2 if sampler in ("heun", "churn") else 1) + 1
    law = chain.log_prob(texts).exp()
    wanted = law * parity.holds(texts)
    wanted = wanted / wanted.sum()
    counts = torch.bincount(state_number(drawn.tokens, 3), minlength=9).double()
    assert chi_square_tail(counts, wanted) > FALSE_ALARM
    assert total_variation(law, wanted) > 0.7


# --------------------------------------------------------------------------------------------------- token guidance


def clamped(process, chain, z, t, where):
    """E[x | z, w_j in tokens for all (j, tokens)]: the emission of every other token taken away."""
    emission = process.output_prior(z, t)
    for position, tokens in where:
        others = [token for token in range(chain.size) if token not in tokens]
        emission[:, position, others] = -torch.inf
    return process.mean(chain.log_posterior(emission).exp())


@pytest.mark.parametrize("kind", ["vp", "ve", "rf"])
def test_2_2_5_token_guidance_is_the_conditional_mean(kind):
    """x_hat + (sigma^2 / alpha) grad log p_j(v | z) = E[x | z, w_j = v], of one token or any of several, 1e-8."""
    process, chain = noise(kind), Chain()
    for level in (0.05, 0.4, 0.9):
        z, t = point(process, chain, level)
        for position, tokens in ((2, (7,)), (-1, (0, 4, 11))):
            guided = rd.token_guided(
                ExactChain(process, chain), process, guidance.token_at(position, *tokens), weight=1.0
            )
            expected = clamped(process, chain, z, t, [(position, tokens)])
            torch.testing.assert_close(guided(z, t, vectors=True), expected, rtol=0, atol=1e-8)
            if level == 0.9:  # nearer to data the others are all but certain, and 1 - p is rounding
                others = tuple(token for token in range(chain.size) if token not in tokens)
                constraint = guidance.negated(guidance.token_at(position, *others))
                same = rd.token_guided(ExactChain(process, chain), process, constraint)
                torch.testing.assert_close(same(z, t, vectors=True), expected, rtol=0, atol=1e-8)


def test_18_7_several_tokens_are_exact_only_if_independent():
    """The sum of log-marginals is the joint's for tokens drawn independently, 1e-8, and not along a chain."""
    process, wanted = noise(), [(1, (7,)), (2, (3, 5))]
    constraints = [guidance.token_at(position, *tokens) for position, tokens in wanted]
    chain, independent = Chain(), Chain()
    independent.log_step = independent.log_first.expand_as(independent.log_step)
    worst = {}
    for name, law in (("independent", independent), ("chain", chain)):
        z, t = point(process, law, 0.5)
        found = rd.token_guided(ExactChain(process, law), process, constraints)(z, t, vectors=True)
        worst[name] = (found - clamped(process, law, z, t, wanted)).abs().max().item()
    assert worst["independent"] < 1e-8
    assert worst["chain"] > 0.05


def test_everywhere_is_every_position_at_once():
    process, law = noise(), Chain()
    law.log_step = law.log_first.expand_as(law.log_step)
    z, t = point(process, law, 0.5)
    found = rd.token_guided(ExactChain(process, law), process, guidance.token_everywhere(2, 9))(z, t, vectors=True)
    expected = clamped(process, law, z, t, [(i, (2, 9)) for i in range(6)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_anywhere_is_a_position_drawn_at_random():
    """log of the mean over positions: x_hat becomes the mixture of E[x | z, w_j = v] over where v may stand."""
    process, chain = noise(), Chain()
    z, t = point(process, chain, 0.5)
    exact = ExactChain(process, chain)
    share = exact(z, t)[..., 4].softmax(1)
    parts = torch.stack([clamped(process, chain, z, t, [(j, (4,))]) for j in range(6)], 1)
    found = rd.token_guided(exact, process, guidance.token_anywhere(4))(z, t, vectors=True)
    torch.testing.assert_close(found, (share[..., None, None] * parts).sum(1), rtol=0, atol=1e-8)
    value = guidance.token_anywhere(4)(exact(z, t))
    torch.testing.assert_close(value.exp(), exact(z, t)[..., 4].exp().mean(1), rtol=1e-12, atol=0)


def test_negation_is_the_complement_from_almost_never_to_almost_always():
    """log(1 - p) and its gradient -p / (1 - p), finite even where p rounds to 1."""
    for p in (1e-300, 1e-20, 1e-9, 0.3, 0.5, 0.7, 1 - 1e-9):
        value = torch.tensor([math.log(p)], dtype=torch.float64, requires_grad=True)
        found = guidance.negated(lambda logp: logp)(value)
        below = -torch.expm1(value.detach())
        torch.testing.assert_close(
            found.detach(), torch.tensor([math.log1p(-p)], dtype=torch.float64), rtol=1e-6, atol=0
        )
        (slope,) = torch.autograd.grad(found.sum(), value)
        torch.testing.assert_close(slope, -value.detach().exp() / below, rtol=1e-6, atol=0)
    nearly = torch.full((1,), -1e-13, dtype=torch.float64)
    found = guidance.negated(lambda logp: logp)(nearly)
    torch.testing.assert_close(found, nearly.abs().log(), rtol=1e-9, atol=0)
    certain = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(guidance.negated(lambda logp: logp)(certain).sum(), certain)
    assert slope.item() < -1e14
    assert math.isfinite(slope.item())


def test_guided_vectors_have_gradients_of_their_own():
    """The answer is differentiable where z asks for it, its own gradient included: the ODE likelihood needs it."""
    process, chain = noise(size=4, dim=2), Chain(size=4, length=2)
    exact = ExactChain(process, chain)
    z, t = point(process, chain, 0.5, rows=1)
    for guided in (
        rd.gradient_guided(exact, process, Parity(process, chain), 1.5),
        rd.token_guided(exact, process, guidance.token_at(0, 1), 1.5),
    ):
        assert torch.autograd.gradcheck(lambda z, of=guided: of(z, t, vectors=True), (z.clone().requires_grad_(),))
        assert not guided(z, t, vectors=True).requires_grad


# ------------------------------------------------------------------------------------- what two points become, exactly


class TwoPoints:
    """The exact denoiser of a token that is the first of two with probability p."""

    facts = Facts(posterior="full", time_conditioned=True)

    def __init__(self, process, p, vectors=False):
        self.process, self.log_prior, self.calls = process, torch.tensor([p, 1 - p]).double().log(), 0
        self.facts = Facts(posterior="full", time_conditioned=True, vectors=vectors)

    def __call__(self, z, t, cond=None, vectors=False):
        self.calls += 1
        logp = (self.process.output_prior(z, t) + self.log_prior).log_softmax(-1)
        return self.process.mean(logp.exp()) if vectors else logp


def plus_and_minus(gamma_min=-8.0, gamma_max=8.0):
    codebook = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    return processes.gaussian(codebook, "vp", GammaSchedule("linear_gamma", gamma_min, gamma_max))


def ddim(process, denoiser, z, steps):
    """Where ``steps`` DDIM steps, even in gamma, take each of the numbers z."""
    z, times = z[:, None, None], torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    for t, s in itertools.pairwise(times):
        at = [torch.full((len(z),), value, dtype=torch.float64) for value in (t, s)]
        x = guidance.clean_vectors(denoiser, process, z, at[0], None)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (process.scales(process.gamma(one)[0]) for one in at)
        z = alpha_s[..., None] * x + (sigma_s / sigma_t)[..., None] * (z - alpha_t[..., None] * x)
    return z[:, 0, 0]


def share_above_zero(process, denoiser, steps=800):
    """P(z > 0 at t = 0) by DDIM from N(0, 1): the map is rising, so it is one threshold, found to 1e-4."""
    low, high = -5.0, 5.0
    for _ in range(2):
        z = torch.linspace(low, high, 301, dtype=torch.float64)
        first = int((ddim(process, denoiser, z, steps) > 0).double().argmax())
        low, high = z[first - 1].item(), z[first].item()
    return math.erfc((low + high) / 2 / math.sqrt(2)) / 2


@pytest.mark.parametrize("predicts", [False, True])
@pytest.mark.parametrize(("gamma_max", "expected"), [(8.0, 0.0571), (12.0, 0.0548)])
def test_2_3_cfg_of_vectors_is_not_the_tilted_law(predicts, gamma_max, expected):
    """P(+1), for p_c(+1) = .2, p_u = .5, weight 2, 800 DDIM steps; the tilted law p_c^2 / p_u has .0588.

    The reference has .0565 of draws from a gamma it does not name; what is expected here is by quadrature, with x_hat =
    2 tanh(a z / s^2 + log(.25) / 2) - tanh(a z / s^2) written out. Mixing log p gives the tilted law, of one token.
    """
    process = plus_and_minus(-6.0, gamma_max)
    sides = [TwoPoints(process, p, predicts) for p in (0.2, 0.5)]
    linear = rd.cfg(*sides, weight=2.0, space="vectors", process=process)
    assert share_above_zero(process, linear) == pytest.approx(expected, abs=1e-4)
    if predicts:
        assert rd.cfg(*sides, weight=2.0).space == "vectors"
        return
    tokens = rd.cfg(*sides, weight=2.0)
    assert tokens.space == "tokens"
    if gamma_max == 12:  # from 8 the prior is not yet what the noise ends as
        assert share_above_zero(process, tokens) == pytest.approx(1 / 17, abs=6e-4)


def test_18_7_a_guided_token_is_drawn_by_its_conditional_law():
    """One token of three, y at random given it: P(w | y) by DDIM is Bayes' to 2e-3, and weight 0 gives the prior."""
    codebook = torch.tensor([[-1.0], [0.3], [1.0]], dtype=torch.float64)
    process = processes.gaussian(codebook, "vp", GammaSchedule("linear_gamma", -6.0, 12.0))
    prior, likelihood = torch.tensor([0.5, 0.2, 0.3]).double(), torch.tensor([0.1, 0.9, 0.4]).double()

    class Three:
        facts = Facts(posterior="full", time_conditioned=True)

        def __call__(self, z, t, cond=None):
            return (process.output_prior(z, t) + prior.log()).log_softmax(-1)

    def says(z, t):
        return torch.logsumexp(Three()(z, t) + likelihood.log(), -1)[:, 0]

    # the tokens right of 0 are the second and the third
    posterior = prior * likelihood / (prior * likelihood).sum()
    assert share_above_zero(process, rd.gradient_guided(Three(), process, says)) == pytest.approx(
        posterior[1:].sum().item(), abs=2e-3
    )
    assert share_above_zero(process, rd.gradient_guided(Three(), process, says, 0.0)) == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize("space", ["tokens", "vectors"])
def test_18_7_plain_weights_of_cfg_ask_one_side_and_say_what_it_says(space):
    process = plus_and_minus()
    z, t = torch.randn(5, 3, 1, dtype=torch.float64), torch.full((5,), 0.4)
    for weight, index in ((1, 0), (0, 1)):
        sides = [TwoPoints(process, p) for p in (0.2, 0.5)]
        guided = rd.cfg(*sides, weight=weight, space=space, process=process)
        assert torch.equal(guided(z, t), TwoPoints(process, (0.2, 0.5)[index])(z, t))
        assert [side.calls for side in sides] == [1 - index, index]
        assert (guided.facts.forwards, guided.facts.vectors) == (1, False)
        plain, same = (rd.sample(process, one, length=3, num=4, steps=5) for one in (sides[index], guided))
        assert torch.equal(plain.tokens, same.tokens)
        assert plain.nfe == same.nfe


def test_18_7_no_nan_where_a_token_is_ruled_out():
    """Weight 4 and -inf on either side, in both spaces; mixed tokens stay within the codebook's hull, vectors leave."""
    process = plus_and_minus()
    z, t = torch.randn(50, 3, 1, dtype=torch.float64), torch.full((50,), 0.6)
    for certain in (1.0, 0.0):
        for sides in ((certain, 0.5), (0.5, certain)):
            for space in ("tokens", "vectors"):
                guided = rd.cfg(*(TwoPoints(process, p) for p in sides), weight=4.0, space=space, process=process)
                x = guidance.clean_vectors(guided, process, z, t, None)
                assert torch.isfinite(x).all()
                if space == "tokens":
                    assert (x.abs() <= 1 + 1e-12).all()
                elif sides[0] == 1.0:
                    assert x.max() > 1.01


def test_mixing_vectors_is_mixing_epsilon_or_v_or_the_score():
    """All are affine in x with the same coefficients: 1e-12 (section 11.3)."""
    process = plus_and_minus()
    sides = [TwoPoints(process, p) for p in (0.2, 0.5)]
    z, t = torch.randn(5, 3, 1, dtype=torch.float64), torch.full((5,), 0.4)
    gamma = process.gamma(t)[0]
    mixed = rd.cfg(*sides, weight=3.0, space="vectors", process=process)(z, t, vectors=True)
    said = [side(z, t, vectors=True) for side in sides]
    for predicts in ("x0", "epsilon", "v", "velocity", "edm"):
        f = [process.predicted(x, predicts, z, gamma) for x in said]
        x = process.denoised(3 * f[0] - 2 * f[1], predicts, z, gamma)
        torch.testing.assert_close(x, mixed, rtol=0, atol=1e-12)


def test_18_7_scales_of_other_papers_convert():
    """(1 + w) l_c - w l_u, and p_c^(1/T) p_u^(1 - 1/T), are weights 1 + w and 1 / T: 1e-12."""
    generator = torch.Generator().manual_seed(0)
    c, u = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    for w in (-1.0, 0.0, 0.5, 3.0):
        expected = ((1 + w) * c - w * u).log_softmax(-1)
        torch.testing.assert_close(guidance.mix(c, u, guidance.from_w(w)), expected, rtol=0, atol=1e-12)
    for temperature in (0.5, 1.0, 4.0, math.inf):
        tilted = c.exp() ** (1 / temperature) * u.exp() ** (1 - 1 / temperature)
        found = guidance.mix(c, u, guidance.from_temperature(temperature)).exp()
        torch.testing.assert_close(found, tilted / tilted.sum(-1, keepdim=True), rtol=0, atol=1e-12)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature"):
            guidance.from_temperature(temperature)
