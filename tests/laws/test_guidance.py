"""Guidance against enumerated laws: two classes on the toy, exact denoisers and classifiers, exact propagation.

p(c = 0 | x) is the reference's table; p(x | c = 0) the law a guided sampler is to draw. No draw is made but where a
test says so.
"""

import itertools

import pytest
import torch

from redraft import guidance, processes, sampling

from .oracle import (
    LAW,
    ExactDenoiser,
    L,
    ancestral_law,
    chi_square_tail,
    emissions,
    on_states,
    prior_law,
    product_kernel,
    sequences,
    state_counts,
    total_variation,
)

CLASS = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.7, 0.3], [0.6, 0.4, 0.8]], dtype=torch.float64)
GIVEN = LAW * CLASS / (LAW * CLASS).sum()
PROCESSES = {
    "masked": lambda: processes.masked(3),
    "masked_cosine": lambda: processes.masked(3, schedule="cosine"),
    "uniform": lambda: processes.uniform(3),
    "hybrid": lambda: processes.hybrid(3, uniform_share=0.2),
}
FALSE_ALARM = 1e-6


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]()


def every_state(process, time: float = 0.6):
    z = sequences(process.V)
    return z, torch.full((len(z),), time, dtype=torch.float64)


def tilted_law(law: torch.Tensor, other: torch.Tensor, weight: float) -> torch.Tensor:
    p = law**weight * other ** (1 - weight)
    return p / p.sum()


class ExactClassifier:
    """log p(c = 0 | z_t) by enumeration of the clean texts; counts the texts it was asked about."""

    def __init__(self, process, table=CLASS):
        self.process, self.table, self.texts = process, table, 0

    def __call__(self, z, t):
        self.texts += len(z)
        likelihood = emissions(self.process, z, t.clamp(max=1 - 1e-12))
        joint = LAW * likelihood[:, 0, :, None] * likelihood[:, 1, None, :]
        total = joint.sum((1, 2))
        found = (joint * self.table).sum((1, 2)) / torch.where(total > 0, total, 1.0)
        return torch.where(total > 0, found, 0.5).log()  # a state that no text leads to says nothing


def guided_law(process, steps: int, kernel) -> torch.Tensor:
    """The law over states after ``steps`` equal steps of ``kernel(z, t, s)``, (B, L, V) probabilities."""
    states, law = sequences(process.V), prior_law(process)
    for i in range(steps, 0, -1):
        reached = law > 0
        z = states[reached]
        t, s = (torch.full((len(z),), time, dtype=torch.float64) for time in (i / steps, (i - 1) / steps))
        law = law[reached] @ product_kernel(kernel(z, t, s))
    return law


# ------------------------------------------------------------------------------------------------------ classifier-free


def test_t30_weight_one_is_conditional_and_zero_unconditional(process):
    """T30: of what is said of the tokens and of the reverse kernels, by the formula and by the shortcut, 1e-12."""
    z, t = every_state(process)
    sides = [ExactDenoiser(process, law) for law in (GIVEN, LAW)]
    said = [side(z, t) for side in sides]
    kernels = [process.posterior(logp.exp(), z, t, t / 2).log() for logp in said]
    for weight, index in ((1, 0), (0, 1)):
        for logs in (said, kernels):
            mixed = guidance.mix(*logs, weight)
            torch.testing.assert_close(mixed.exp(), logs[index].exp(), rtol=0, atol=1e-12)
        assert torch.equal(guidance.cfg(*sides, weight=weight)(z, t), said[index])


def test_t30_guidance_leaves_the_time_of_unmasking_alone():
    """T30: under masks the probability of staying [MASK] is that of the plain model, 1e-12, and tokens are tilted."""
    process = processes.masked(3)
    z, t = every_state(process)
    sides = [ExactDenoiser(process, law) for law in (GIVEN, LAW)]
    plain, guided = (process.posterior(d(z, t).exp(), z, t, t / 3) for d in (sides[0], guidance.cfg(*sides, weight=3)))
    torch.testing.assert_close(guided[..., 3], plain[..., 3], rtol=0, atol=1e-12)
    assert (guided - plain).abs().max() > 0.05


def test_mixed_kernels_of_masks_unmask_too_soon():
    """The stay of [MASK] becomes m / (m + (1 - m) Z), Z = sum p_c^w p_u^(1 - w): .6 to .519 at w = 2, .282 at w = 4."""
    p_c, p_u = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.4, 0.3, 0.3]).double()
    stay = torch.tensor([0.6]).double()
    kernels = [torch.cat([0.4 * p, stay]).log() for p in (p_c, p_u)]
    for weight, expected, total in ((2, 0.519, 1.392), (4, 0.282, 3.81)):
        z = (p_c**weight * p_u ** (1 - weight)).sum()
        assert z.item() == pytest.approx(total, abs=5e-3)
        mixed = guidance.mix(*kernels, weight).exp()[3].item()
        assert mixed == pytest.approx((stay / (stay + 0.4 * z)).item(), abs=1e-12)
        assert mixed == pytest.approx(expected, abs=6e-4)


def test_what_either_rules_out_stays_out():
    """No weight turns infinities into NaN; where nothing is left the conditional speaks alone."""
    p_c = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).double()
    p_u = torch.tensor([[0.8, 0.0, 0.2], [0.0, 0.5, 0.5]]).double()
    for weight in (-1.5, 0.5, 1.5, 20.0):
        mixed = guidance.mix(p_c.log(), p_u.log(), weight)
        torch.testing.assert_close(mixed.exp(), torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).double())


@pytest.mark.parametrize("weight", [0.5, 2.0, 4.0])
def test_one_position_draws_the_tilted_law(process, weight):
    """At L = 1 cfg is exact in any number of steps, under any noise: p_c^w p_u^(1 - w) / Z, 1e-12."""
    p_c, p_u = LAW.sum(1), LAW.sum(0)
    guided = guidance.cfg(*(ExactDenoiser(process, law) for law in (p_c, p_u)), weight=weight)
    states, law, steps = sequences(process.V, 1), prior_law(process, 1), 3
    for i in range(steps, 0, -1):
        reached = law > 0
        z = states[reached]
        t, s = (torch.full((len(z),), time, dtype=torch.float64) for time in (i / steps, (i - 1) / steps))
        law = law[reached] @ product_kernel(process.posterior(guided(z, t).exp(), z, t, s))
    torch.testing.assert_close(law[:3], tilted_law(p_c, p_u, weight), rtol=0, atol=1e-12)


def test_mixed_kernels_miss_the_tilted_law_of_one_position():
    """Under uniform noise cfg_posteriors stays off p_c^w p_u^(1 - w) at L = 1 in any number of steps; cfg is exact."""
    process, weight = processes.uniform(3), 3.0
    p_c, p_u = LAW.sum(1), LAW.sum(0)

    def distance(steps):
        law, z = prior_law(process, 1), sequences(3, 1)
        for i in range(steps, 0, -1):
            t, s = (torch.full((3,), time, dtype=torch.float64) for time in (i / steps, (i - 1) / steps))
            kernels = (process.posterior(p.expand(3, 1, 3), z, t, s).log() for p in (p_c, p_u))
            law = law @ guidance.mix(*kernels, weight).exp()[:, 0]
        return total_variation(law, tilted_law(p_c, p_u, weight))

    few, many = distance(64), distance(512)
    assert many == pytest.approx(0.0086, abs=1e-4)
    assert few == pytest.approx(many, abs=2e-3)


def test_any_likelihood_cancels():
    """Full posteriors of any noise, Gaussian too: p_c(x | z)^w p_u(x | z)^(1 - w) is that of the tilted law, 1e-12."""
    likelihood = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p_c, p_u = LAW.sum(1), LAW.sum(0)
    posteriors = [(law.log() + likelihood).log_softmax(-1) for law in (p_c, p_u)]
    expected = (tilted_law(p_c, p_u, 2.5).log() + likelihood).log_softmax(-1)
    torch.testing.assert_close(guidance.mix(*posteriors, 2.5), expected, rtol=0, atol=1e-12)


def test_full_posteriors_and_cavities_are_one_guidance(process):
    """Mixing what two denoisers of the full posterior say, then converting, is mixing their cavities, 1e-10."""
    z, t = every_state(process)
    cavity, full = (
        guidance.cfg(*(ExactDenoiser(process, law, which) for law in (GIVEN, LAW)), weight=2.0)
        for which in ("cavity", "full")
    )
    assert full.facts.posterior == "full"
    kernels = [
        process.posterior(processes.base.to_convention(d, process, d(z, t), z, t).exp(), z, t, t / 2)
        for d in (cavity, full)
    ]
    torch.testing.assert_close(*kernels, rtol=0, atol=1e-10)


def test_neither_form_draws_the_tilted_law_of_two_positions():
    """Guidance of each position alone is no guidance of the text: the error does not vanish with the steps."""
    sides, weight = (GIVEN, LAW), 3.0
    for name in ("masked", "uniform"):
        process = PROCESSES[name]()
        target = on_states(process, tilted_law(*sides, weight))
        exact = [ExactDenoiser(process, law) for law in sides]
        guided = guidance.cfg(*exact, weight=weight)
        few, many = (total_variation(ancestral_law(process, guided, steps), target) for steps in (64, 256))
        assert many > 0.03
        assert few == pytest.approx(many, abs=0.01)
        plain = guidance.cfg(*exact, weight=1.0)
        assert total_variation(ancestral_law(process, plain, 256), on_states(process, GIVEN)) < 0.003


@pytest.mark.parametrize("weight", [0, 1, 2.0])
@pytest.mark.parametrize("posteriors", [False, True])
def test_calls_are_counted_as_they_are_made(weight, posteriors):
    """One forward a step for weights 0 and 1, two for others; nfe and positions say so."""
    process = processes.uniform(3)
    c, u = (ExactDenoiser(process, law) for law in (GIVEN, LAW))
    sampler, denoiser = "ancestral", guidance.cfg(c, u, weight=weight)
    if posteriors:
        sampler, denoiser = guidance.cfg_posteriors(u, weight), c
    drawn = sampling.sample(process, denoiser, length=L, num=3, steps=4, sampler=sampler)
    assert (c.calls, u.calls) == {0: (0, 4), 1: (4, 0)}.get(weight, (4, 4))
    assert drawn.nfe == c.calls + u.calls
    assert drawn.positions == drawn.nfe * 3 * L


@pytest.mark.parametrize("name", ["uniform", "hybrid"])
def test_mixed_kernels_are_what_is_drawn(name):
    """10,000 rows of cfg_posteriors, a denoiser of the full posterior among them, against the propagated kernels."""
    process, weight = PROCESSES[name](), 2.0
    sides = [ExactDenoiser(process, law) for law in (GIVEN, LAW)]

    def kernel(z, t, s):
        return guidance.mix(*(process.posterior(side(z, t).exp(), z, t, s).log() for side in sides), weight).exp()

    expected = guided_law(process, 3, kernel)
    sampler = guidance.cfg_posteriors(ExactDenoiser(process, LAW, "full"), weight)
    drawn = sampling.sample(process, sides[0], length=L, num=10_000, steps=3, sampler=sampler)
    assert chi_square_tail(state_counts(drawn.tokens, process.V), expected) > FALSE_ALARM
    tokens = guidance.cfg(*sides, weight=weight)
    assert total_variation(expected, ancestral_law(process, tokens, 3)) > 0.003  # mixed tokens draw another law


def test_hiding_the_prompt_guides_towards_it():
    """p(x2 | x1)^w p(x2)^(1 - w): the unconditional side sees the prompt as masks (SMDM, LLaDA), 1e-12."""
    process = processes.masked(3)
    model = ExactDenoiser(process)
    guided = guidance.cfg(model, guidance.unprompted(model), weight=2.5)
    z = torch.tensor([[given, 3] for given in range(3)])
    t = torch.full((3,), 0.5, dtype=torch.float64)
    p_c, p_u = LAW / LAW.sum(1, keepdim=True), LAW.sum(0).expand(3, 3)
    expected = torch.stack([tilted_law(one, other, 2.5) for one, other in zip(p_c, p_u, strict=True)])
    said = guided(z, t, {"given": z != 3})
    torch.testing.assert_close(said.exp()[:, 1], expected, rtol=0, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------- classifier


@pytest.mark.parametrize(("steps", "expected"), [(4, 0.1072159), (16, 0.0268040)])
def test_t21_exact_classifier_guidance_of_masks(steps, expected):
    """T21: weight 1 with the exact classifier is .4288638 / N away from p(x | c = 0), 1e-7."""
    process = processes.masked(3)
    denoiser, classifier = ExactDenoiser(process), ExactClassifier(process)
    law = guided_law(
        process, steps, lambda z, t, s: guidance.tilted(process, denoiser(z, t).exp(), z, t, s, classifier)
    )
    distance = total_variation(law, on_states(process, GIVEN))
    assert distance == pytest.approx(expected, abs=1e-7)
    assert distance == pytest.approx(0.4288638 / steps, abs=1e-7)


@pytest.mark.parametrize("name", ["masked_cosine", "uniform", "hybrid"])
def test_classifier_guidance_converges_for_every_noise(name):
    """With the exact classifier of noisy texts the distance to p(x | c) falls like 1 / N; hybrid a bit slower."""
    process = PROCESSES[name]()
    denoiser, classifier = ExactDenoiser(process), ExactClassifier(process)

    def distance(steps):
        law = guided_law(
            process, steps, lambda z, t, s: guidance.tilted(process, denoiser(z, t).exp(), z, t, s, classifier)
        )
        return total_variation(law, on_states(process, GIVEN))

    coarse, fine, finest = (distance(steps) for steps in (16, 64, 256))
    assert coarse > 2.7 * fine > 2.7**2 * finest
    assert finest < 0.01


def linear(slopes):
    """log p(c | z) = sum_l slopes[l, z_l] - 3, of ids or of one-hot rows."""

    def classifier(z, t):
        rows = z if z.ndim == 3 else torch.nn.functional.one_hot(z, slopes.shape[1]).to(slopes)
        return (rows * slopes).sum((1, 2)) - 3

    return classifier


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_first_order_is_exact_for_a_linear_classifier(process, weight):
    """Where log p(c | z) is linear in the one-hot rows one gradient replaces L V calls, 1e-10; elsewhere not."""
    z, t = every_state(process)
    p0 = ExactDenoiser(process)(z, t).exp()
    slopes = torch.randn(L, process.V, generator=torch.Generator().manual_seed(0))
    for classifier, same in ((linear(slopes), True), (lambda z, t: linear(slopes)(z, t) ** 2, False)):
        exact = guidance.tilted(process, p0, z, t, t / 2, classifier, weight)
        first = guidance.tilted(process, p0, z, t, t / 2, classifier, weight, first_order=True)
        assert ((exact - first).abs().max().item() < 1e-10) == same
        torch.testing.assert_close(first.sum(-1), torch.ones_like(first[..., 0]))
    plain = process.posterior(p0, z, t, t / 2)
    assert (exact - plain).abs().max() > 0.1


def test_one_position_at_weight_w_is_the_law_tilted_by_the_power(process):
    """At L = 1 a step is p(z_s | z_t) p(c | z_s)^w, renormalised: the definition, written out, 1e-12."""
    p_c = torch.tensor([0.2, 0.5, 0.9, 0.4], dtype=torch.float64)[: process.V].log()
    z = sequences(process.V, 1)
    t = torch.full((process.V,), 0.7, dtype=torch.float64)
    p0 = torch.softmax(torch.arange(3.0).double(), 0).expand(process.V, 1, 3)
    kernel = process.posterior(p0, z, t, t / 2)
    expected = kernel * torch.exp(1.7 * p_c)
    got = guidance.tilted(process, p0, z, t, t / 2, lambda z, t: p_c[z[:, 0]], 1.7)
    torch.testing.assert_close(got, expected / expected.sum(-1, keepdim=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_only_what_can_change_is_asked(batch):
    """Under masks: V texts for each masked position, none for revealed ones, however they are batched."""
    process = processes.masked(3)
    z, t = every_state(process)
    possible = process.posterior(ExactDenoiser(process)(z, t).exp(), z, t, t / 2) > 0
    classifier = ExactClassifier(process)
    found = guidance.gain(classifier, z, t, possible, batch)
    assert classifier.texts == int((z == 3).sum()) * 4
    expected = torch.zeros_like(found)
    for row, position in (z == 3).nonzero().tolist():
        changed = z[row].repeat(4, 1)
        changed[:, position] = torch.arange(4)
        expected[row, position] = classifier(changed, t[:1].expand(4))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert torch.equal(
        guidance.tilted(process, possible[..., :3].double() / 3, z, t, t / 2, classifier, 0.0),
        process.posterior(possible[..., :3].double() / 3, z, t, t / 2),
    )


@pytest.mark.parametrize("name", ["masked", "hybrid"])
def test_the_guided_kernel_is_what_is_drawn(name):
    """10,000 rows of classifier_guided in three steps against the propagated kernel."""
    process, weight = PROCESSES[name](), 1.5
    denoiser, classifier = ExactDenoiser(process), ExactClassifier(process)
    expected = guided_law(
        process, 3, lambda z, t, s: guidance.tilted(process, denoiser(z, t).exp(), z, t, s, classifier, weight)
    )
    sampler = guidance.classifier_guided(classifier, weight)
    drawn = sampling.sample(process, denoiser, length=L, num=10_000, steps=3, sampler=sampler)
    assert chi_square_tail(state_counts(drawn.tokens, process.V), expected) > FALSE_ALARM


KINDS = ["cfg", "cfg_posteriors", "classifier", "first_order"]
PAIRS = [(n, k) for n, k in itertools.product(PROCESSES, KINDS) if not (n.startswith("masked") and k == KINDS[1])]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_guided_row_does_not_depend_on_the_rows_beside_it(name, kind):
    process = PROCESSES[name]()
    sides = [ExactDenoiser(process, law) for law in (GIVEN, LAW)]
    slopes = torch.randn(L, process.V, generator=torch.Generator().manual_seed(0))
    sampler, denoiser = {
        "cfg": ("ancestral", guidance.cfg(*sides, weight=2.0)),
        "cfg_posteriors": (guidance.cfg_posteriors(sides[1], 2.0), sides[0]),
        "classifier": (guidance.classifier_guided(ExactClassifier(process)), sides[1]),
        "first_order": (guidance.classifier_guided(linear(slopes), first_order=True), sides[1]),
    }[kind]
    options = {"length": L, "steps": 5, "sampler": sampler}
    batch = sampling.sample(process, denoiser, num=6, seed=3, **options)
    for row, seed in enumerate(batch.seeds):
        alone = sampling.sample(process, denoiser, seeds=[seed], **options)
        assert torch.equal(alone.tokens[0], batch.tokens[row])
