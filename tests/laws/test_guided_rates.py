"""Guidance of rates: the guided generator against the law it should integrate to, and what mixed rates do to masks.

The state space of the toy has V^2 states; a rate table (V^2, 2, V) is a generator of single changes on it.
"""

import pytest
import torch

from redraft import guidance, processes, sampling
from redraft.sampling import samplers
from redraft.sampling.kernels import euler_kernel, leap, reverse_rates

from .oracle import ExactDenoiser, L, chi_square_tail, marginals, on_states, state_counts, total_variation
from .test_guidance import FALSE_ALARM, GIVEN, PROCESSES, ExactClassifier, every_state, guided_law, linear


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]()


def generator(rates: torch.Tensor) -> torch.Tensor:
    """(V^2, V^2) from rates (V^2, 2, V) of changing one position; rows sum to 0."""
    size = rates.shape[-1]
    first = torch.einsum("aby,bz->abyz", rates[:, 0].unflatten(0, (size, size)), torch.eye(size).double())
    second = torch.einsum("abz,ay->abyz", rates[:, 1].unflatten(0, (size, size)), torch.eye(size).double())
    jumps = (first + second).flatten(2).flatten(0, 1)
    return jumps - torch.diag(jumps.sum(1))


def guided_rates(process, time: float, weight=1.0) -> torch.Tensor:
    z, t = every_state(process, time)
    p0 = ExactDenoiser(process)(z, t).exp()
    return guidance.tilted_rates(process, p0, z, t, ExactClassifier(process), weight)


def noised(process, law: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """q_t over the V^2 states of texts of ``law``."""
    q = marginals(process, t)[0]
    return torch.einsum("ab,ay,bz->yz", law, q, q).flatten()


@pytest.mark.parametrize("time", [0.05, 0.3, 0.6, 0.95])
def test_11_6_guided_rates_are_those_of_the_reverse_process_of_the_class(process, time):
    """d q_t(z | c) / dt = -q_t(. | c) R^c at weight 1 with the exact noisy classifier, pointwise in t, 1e-10; the
    derivative is the process's own (alpha', b'). Without guidance it is that of q_t, and not of q_t(. | c)."""
    t = torch.tensor([time], dtype=torch.float64)
    at, q = process.coefficients(t), marginals(process, t)[0]
    dq = at.d_alpha * torch.eye(process.V, dtype=torch.float64)[:3] + at.d_token.expand(3, process.V)
    if process.mask_id is not None:
        dq[:, process.mask_id] = at.d_mask
    change = torch.einsum("ab,ay,bz->yz", GIVEN, dq, q) + torch.einsum("ab,ay,bz->yz", GIVEN, q, dq)
    law = noised(process, GIVEN, t)
    torch.testing.assert_close(law @ generator(guided_rates(process, time)), -change.flatten(), rtol=1e-10, atol=1e-10)
    plain = law @ generator(guided_rates(process, time, weight=0.0))
    assert (plain + change.flatten()).abs().max() > 1e-3


def test_11_6_the_guided_generator_integrates_to_the_class():
    """Linear masks have rates A / t, so that the reverse process to t = e^-45 is exp(45 A): p(x | c = 0), 1e-10."""
    process = processes.masked(3)
    A = generator(guided_rates(process, 0.5) * 0.5)
    for time in (0.1, 0.9):
        torch.testing.assert_close(generator(guided_rates(process, time) * time), A, rtol=0, atol=1e-12)
    start = torch.zeros(16, dtype=torch.float64)
    start[15] = 1.0
    found = start @ torch.linalg.matrix_exp(45 * A)
    torch.testing.assert_close(found, on_states(process, GIVEN), rtol=0, atol=1e-10)
    plain = start @ torch.linalg.matrix_exp(45 * generator(guided_rates(process, 0.5, weight=0.0) * 0.5))
    assert total_variation(plain, on_states(process, GIVEN)) > 0.1


@pytest.mark.parametrize("name", ["uniform", "hybrid"])
def test_11_6_noise_among_tokens_integrates_to_the_class_too(name):
    """From q_t(. | c) at t = 0.9 down to 0.01 by 60 steps of Runge-Kutta's fourth order: q(. | c) there, 1e-6."""
    process, steps = PROCESSES[name](), 60
    grid = 0.9 * (0.01 / 0.9) ** (torch.arange(steps + 1, dtype=torch.float64) / steps)
    law = noised(process, GIVEN, grid[:1])
    last = generator(guided_rates(process, 0.9))
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        h, first, middle, last = t - s, last, *(generator(guided_rates(process, one)) for one in ((t + s) / 2, s))
        k1 = law @ first
        k2 = (law + h / 2 * k1) @ middle
        k3 = (law + h / 2 * k2) @ middle
        k4 = (law + h * k3) @ last
        law = law + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    torch.testing.assert_close(law, noised(process, GIVEN, grid[-1:]), rtol=0, atol=1e-6)


def kernel(process, weight=1.0):
    denoiser, classifier = ExactDenoiser(process), ExactClassifier(process)

    def step(z, t, s):
        rates = guidance.tilted_rates(process, denoiser(z, t).exp(), z, t, classifier, weight)
        return guidance.rates.landed(process, rates, z, t, s)

    return step


@pytest.mark.parametrize("name", ["masked", "masked_cosine", "uniform"])
def test_steps_of_guided_rates_converge(name):
    """Euler's steps: the distance to p(x | c) falls like 1 / N."""
    process = PROCESSES[name]()
    coarse, fine = (
        total_variation(guided_law(process, steps, kernel(process)), on_states(process, GIVEN)) for steps in (32, 128)
    )
    assert coarse > 3.5 * fine
    assert fine < 0.02


@pytest.mark.parametrize("name", ["masked", "uniform"])
def test_the_guided_step_is_what_is_drawn(name):
    """3,000 rows of rate_guided in three steps against the propagated kernel; one false alarm in a million."""
    process = PROCESSES[name]()
    expected, sampler = (
        guided_law(process, 3, kernel(process, 1.5)),
        guidance.rate_guided(ExactClassifier(process), 1.5),
    )
    drawn = sampling.sample(process, ExactDenoiser(process), length=L, num=3_000, steps=3, sampler=sampler)
    assert chi_square_tail(state_counts(drawn.tokens, process.V), expected) > FALSE_ALARM
    assert drawn.cost.classified > 0
    assert drawn.nfe == 3


def test_rates_are_eulers_own(process):
    """Factored out, they are those of ``euler``: weight 0 of a classifier, 1 and 0 of two denoisers; bit for bit.

    But for masks that ``euler`` leaves at the last step, on schedules that are not linear, and fills by another call.
    """
    exact, other = ExactDenoiser(process), ExactDenoiser(process, GIVEN)
    z, t = every_state(process)
    p0 = exact(z, t).exp()
    rates = reverse_rates(process, p0, z, t)
    assert (rates.gather(-1, z[..., None]) == 0).all()
    assert torch.equal(leap(rates, z, t - t / 2), euler_kernel(process, p0, z, t, t / 2))

    def never(z, t):
        raise AssertionError("asked")

    options = {"length": L, "num": 6, "steps": 4, "seed": 2}
    plain, far = (sampling.sample(process, one, sampler="euler", **options) for one in (exact, other))
    for sampler, expected in (
        (guidance.rate_guided(never, 0.0), plain),
        (guidance.rate_guided(never, lambda t: 0 * t), plain),
        (guidance.rate_cfg(other, 1.0), plain),
        (guidance.rate_cfg(other, 0.0), far),
        (guidance.rate_cfg(other, lambda t: 1.0), plain),
    ):
        found = sampling.sample(process, exact, sampler=sampler, **options)
        assert found.nfe == 4
        assert found.cost.classified == 0
        if process.schedule.to_dict()["name"] == "linear" or process.mask_id is None:
            assert torch.equal(found.tokens, expected.tokens)
    both = sampling.sample(process, exact, sampler=guidance.rate_cfg(other, 2.0), **options)
    assert both.nfe > plain.nfe


def test_weights_of_t_guide_kernels_and_rates_by_the_time():
    """Both samplers that ask a classifier: the number a function gives is the number."""
    process = processes.masked(3)
    z, t = every_state(process)
    p0, classifier = ExactDenoiser(process)(z, t).exp(), ExactClassifier(process)
    for method in (
        lambda weight: guidance.tilted(process, p0, z, t, t / 2, classifier, weight),
        lambda weight: guidance.tilted_rates(process, p0, z, t, classifier, weight),
    ):
        assert torch.equal(method(lambda t: 4 * t), method(4 * 0.6))
        classifier.texts = 0
        method(1.0)
        asked, classifier.texts = classifier.texts, 0
        mixed = method(lambda t: torch.arange(16) % 2)
        assert classifier.texts < asked, "rows of weight 0 are not asked about"
        assert torch.equal(mixed[::2], method(0.0)[::2])
        torch.testing.assert_close(mixed[1::2], method(1.0)[1::2], rtol=0, atol=0)
        with pytest.raises(ValueError, match="weight=-1"):
            method(lambda t: -1.0)
    for make in (guidance.rate_guided, guidance.classifier_guided):
        with pytest.raises(ValueError, match="weight=-1"):
            make(classifier, -1)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
def test_first_order_rates_are_exact_for_a_linear_classifier(process):
    z, t = every_state(process)
    p0 = ExactDenoiser(process)(z, t).exp()
    slopes = torch.randn(L, process.V, generator=torch.Generator().manual_seed(0))
    for classifier, same in ((linear(slopes), True), (lambda z, t: linear(slopes)(z, t) ** 2, False)):
        exact, first = (
            guidance.tilted_rates(process, p0, z, t, classifier, 1.5, first_order=one) for one in (False, True)
        )
        assert ((exact - first).abs().max().item() < 1e-10) == same


@pytest.mark.parametrize(("weight", "total", "stay"), [(2, 1.392, 0.519), (4, 3.81, 0.282)])
def test_mixed_rates_and_kernels_write_masks_too_soon(weight, total, stay):
    """A mask is left Z times as fast, and by mixed kernels stays with m / (m + (1 - m) Z), m = .6; by cfg with m.

    4,000 rows each, five standard errors: one false alarm in 1.7 million.
    """
    process = processes.masked(3)
    p_c, p_u = (torch.tensor([[p]], dtype=torch.float64) for p in ([0.7, 0.2, 0.1], [0.4, 0.3, 0.3]))
    z, t = torch.tensor([[3]]), torch.tensor([0.5], dtype=torch.float64)
    rates = [reverse_rates(process, p, z, t) for p in (p_c, p_u)]
    ratio = (guidance.mixed_rates(*rates, weight).sum() / rates[0].sum()).item()
    assert ratio == pytest.approx((p_c**weight * p_u ** (1 - weight)).sum().item(), abs=1e-12)
    assert ratio == pytest.approx(total, abs=5e-3)
    seen = []

    class Says:
        def __init__(self, p):
            self.p, self.facts = p, processes.Facts(mask_id=3)

        def __call__(self, z, t, cond=None):
            return self.p.log().expand(*z.shape, 3)

    def stays(sampler, denoiser):
        found = sampling.sample(
            process, denoiser, length=1, num=4_000, steps=5, seed=1, sampler=sampler, callback=seen.append
        )
        first = next(step for step in seen if step.index == 1)
        seen.clear()
        assert not (found.tokens == 3).any()
        return (first.z == 3).double().mean().item()

    # two steps of five leave .8 x .75 = .6 hidden; each step's m becomes m / (m + (1 - m) Z)
    expected = 1.0
    for m in (0.8, 0.75):
        expected *= m / (m + (1 - m) * ratio)
    guided = stays(guidance.cfg_posteriors(Says(p_u), weight, masks=True), Says(p_c))
    assert guided == pytest.approx(expected, abs=5 * (expected * (1 - expected) / 4_000) ** 0.5)
    assert stays("ancestral", guidance.cfg(Says(p_c), Says(p_u), weight=weight)) == pytest.approx(
        0.6, abs=5 * (0.24 / 4_000) ** 0.5
    )
    p = [process.posterior(one, z, t, t * 0.6).log() for one in (p_c, p_u)]
    assert guidance.mix(*p, weight).exp()[0, 0, 3].item() == pytest.approx(stay, abs=6e-4)


def test_a_classifier_that_rules_texts_out_leaves_numbers():
    """log p(c | .) = -inf for some changes, for the text as it stands, for all; weights to 20: no NaN, and at the end
    no mask, unless there is no token: then an error."""
    process = processes.masked(3)
    z, t = every_state(process)
    p0 = torch.full((16, 2, 3), 1 / 3, dtype=torch.float64)

    def never_two(z, t):
        return torch.where((z == 2).any(1), -torch.inf, 0.0)

    for weight in (1.0, 4.0, 20.0):
        rates = guidance.tilted_rates(process, p0, z, t, never_two, weight)
        assert torch.isfinite(rates).all()
        assert (rates[..., 2][(z == 3) & ~(z == 2).any(1, keepdim=True)] == 0).all()
        steep = guidance.tilted_rates(process, p0, z, t, lambda z, t: 1e4 * (z == 1).sum(1).double(), weight)
        assert torch.isfinite(guidance.rates.landed(process, steep, z, t, t / 2)).all()
    options = {"length": 3, "num": 20, "steps": 4}
    drawn = sampling.sample(process, ExactThree(), sampler=guidance.rate_guided(never_two, 4.0), **options)
    assert set(drawn.tokens.flatten().tolist()) == {0, 1}
    impossible = guidance.rate_guided(lambda z, t: torch.where((z < 3).any(1), -torch.inf, 0.0))
    with pytest.raises(ValueError, match="probability 0 to every token"):
        sampling.sample(process, ExactThree(), sampler=impossible, **options)


class ExactThree:
    facts = processes.Facts(mask_id=3)

    def __call__(self, z, t, cond=None):
        return torch.full((*z.shape, 3), 1 / 3).log()


def test_mixed_rates_meet_where_both_jump():
    c = torch.tensor([[[0.5, 0.5, 0.0]], [[0.0, 0.0, 2.0]], [[1.0, 1.0, 0.0]]]).double()
    u = torch.tensor([[[0.5, 0.0, 0.5]], [[1.0, 0.0, 0.0]], [[1e-300, 1.0, 0.0]]]).double()
    for weight in (-3.0, 0.5, 4.0, 50.0):
        found = guidance.mixed_rates(c, u, weight)
        assert torch.isfinite(found).all()
        assert found[0, 0].tolist() == [0.5, 0, 0]
        assert found[1, 0].tolist() == [0, 0, 2], "nothing is left: the conditional speaks alone"


def test_processes_without_rates_are_refused():
    vectors = processes.gaussian(torch.nn.functional.normalize(torch.randn(5, 3), dim=-1))
    for process in (processes.d3pm(5, "uniform", 4), vectors):
        for sampler in (guidance.rate_guided(lambda z, t: 0 * t), guidance.rate_cfg(ExactThree(), 2.0)):
            z = process.prior((2, 3)) if not process.vectors else torch.zeros(2, 3, 3)
            with pytest.raises(ValueError, match="needs masked, uniform or hybrid noise"):
                sampler(process, ExactThree(), z, torch.ones(2), torch.zeros(2), samplers.Draw(z.bool(), None))
