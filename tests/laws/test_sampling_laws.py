"""Samplers draw from the law the mathematics says, and ``sample`` is that sampler and nothing else.

Exact laws come from propagating a step's kernel over all V^L states. Where real draws are compared with them, the seed
is fixed and the test would reject a correct sampler under a random seed with probability below 1e-6.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from redraft import processes, sampling
from redraft.sampling.samplers import Draw
from redraft.schedules import GammaSchedule

from .oracle import (
    DEPENDENCE,
    LAW,
    ExactDenoiser,
    L,
    ancestral_law,
    chi_square_tail,
    embed,
    on_states,
    product_kernel,
    sequences,
    state_counts,
    total_variation,
)

PROCESSES = {
    "masked": lambda: processes.masked(3),
    "masked_cosine": lambda: processes.masked(3, schedule="cosine"),
    "masked_inside": lambda: processes.masked(4, mask_id=2),
    "uniform": lambda: processes.uniform(3),
    "hybrid": lambda: processes.hybrid(3, uniform_share=0.2),
    "hybrid_inside": lambda: processes.hybrid(4, uniform_share=0.5, mask_id=0),
}
CODES = torch.tensor([[-1.0, 0.2], [0.3, -1.0], [1.0, 0.7]], dtype=torch.float64)
PAIRS = [(name, "ancestral") for name in (*PROCESSES, "gaussian")]
PAIRS += [(name, sampler) for name in ("masked", "masked_inside") for sampler in ("confidence", "left_to_right")]
ANY_NOISE = ["euler", "greedy_tail", "psi:eta=0.5", "psi:rule=constant,eta=0.5", "gibbs:k=2", "informed:k=2"]
MASKS = ["first_hitting", "forward_backward", "dfm", "remdm:eta=0.3", "remdm:strategy=rescale,eta=0.5"]
MASKS += ["remdm:strategy=conf", "remdm:strategy=loop,eta=0.3"]
PAIRS += [(name, sampler) for name in ("masked_inside", "uniform", "hybrid_inside") for sampler in ANY_NOISE]
PAIRS += [(name, sampler) for name in ("masked", "masked_inside") for sampler in MASKS]
ROWS = 10_000
FALSE_ALARM = 1e-6


def clean(process) -> list[int]:
    return [x for x in range(process.K) if x != process.mask_id]


def toy_law(process) -> torch.Tensor:
    return embed(LAW, clean(process), process.K)


class Contextual:
    """A deterministic denoiser of any length, whose output for a row depends on that row and its time only."""

    def __init__(self, process, posterior: str = "cavity") -> None:
        self.process = process
        self.facts = processes.Facts(posterior=posterior, time_conditioned=True, mask_id=process.mask_id)
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, z, t, cond=None):
        self.calls.append(tuple(z.shape[:2]))
        level = z.double() if z.dim() == 2 else 3 * z.sum(-1)
        neighbours = level.roll(1, 1) + 2 * level.roll(-1, 1) + torch.arange(level.shape[1])
        logits = torch.sin(neighbours[..., None] * torch.arange(1, self.process.K + 1) + t[:, None, None])
        if self.process.mask_id is not None and self.process.mask_id < self.process.K:
            logits[..., self.process.mask_id] = -math.inf
        return logits.log_softmax(-1)


def make(name: str):
    return PROCESSES[name]() if name in PROCESSES else processes.gaussian(CODES, schedule=GammaSchedule(gamma_min=-6.0))


# --------------------------------------------------------------------------------------------- exact propagation (T7)


@pytest.mark.parametrize("steps", [1, 4, 64])
def test_t7_masked_ancestral_is_off_by_the_dependence_over_n(steps):
    """T7: TV = .28125 / N exactly, and no mask is left, 1e-9."""
    process = processes.masked(3)
    law = ancestral_law(process, ExactDenoiser(process), steps)
    assert total_variation(law, on_states(process)) == pytest.approx(DEPENDENCE / steps, abs=1e-9)
    assert law.sum().item() == pytest.approx(1, abs=1e-12)


def test_t7_masked_ancestral_with_a_mask_inside_the_vocabulary():
    process = processes.masked(4, mask_id=2)
    law = ancestral_law(process, ExactDenoiser(process, toy_law(process)), 4)
    assert total_variation(law, toy_law(process).flatten()) == pytest.approx(DEPENDENCE / 4, abs=1e-9)


@pytest.mark.parametrize(("steps", "expected"), [(4, 0.097733), (16, 0.024146), (64, 0.0059285), (256, 0.0014738)])
def test_t7_uniform_ancestral_with_the_cavity(steps, expected):
    """T7: the values of the reference, to the digits it gives."""
    process = processes.uniform(3)
    error = total_variation(ancestral_law(process, ExactDenoiser(process), steps), on_states(process))
    assert error == pytest.approx(expected, abs=6e-7 if steps < 64 else 6e-8)


def test_t7_the_full_posterior_plugged_in_samples_another_law():
    """T7: raw, the total variation stays at .199 however many steps; through to_cavity it is the cavity's law."""
    process = processes.uniform(3)
    full, cavity = ExactDenoiser(process, posterior="full"), ExactDenoiser(process)
    for steps in (64, 512):
        raw = total_variation(ancestral_law(process, full, steps), on_states(process))
        assert raw == pytest.approx(0.199, abs=3e-3)
    converted = ancestral_law(process, full, 16, call=lambda f, z, t: process.to_cavity(f(z, t), z, t))
    torch.testing.assert_close(converted, ancestral_law(process, cavity, 16), rtol=0, atol=1e-12)


def test_t7_mixture_kernel_of_the_full_posterior_is_the_plug_in_of_the_cavity():
    """Section 1.3: sum_x q(z_s | z_t, x) full(x) = the plug-in kernel with the cavity, at every state, 1e-13."""
    for process in (processes.uniform(3), processes.hybrid(3, uniform_share=0.4)):
        z = sequences(process.V)
        t, s = (torch.full((len(z),), time, dtype=torch.float64) for time in (0.6, 0.35))
        full = ExactDenoiser(process, posterior="full")(z, t).exp()
        truth = torch.eye(3, dtype=torch.float64)
        mixture = sum(full[..., x, None] * process.posterior(truth[x].expand_as(full), z, t, s) for x in range(3))
        plug_in = process.posterior(ExactDenoiser(process)(z, t).exp(), z, t, s)
        torch.testing.assert_close(mixture, plug_in, rtol=0, atol=1e-13)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_hybrid_ancestral_converges(schedule):
    process = processes.hybrid(3, uniform_share=0.2, schedule=schedule)
    denoiser = ExactDenoiser(process)
    errors = [total_variation(ancestral_law(process, denoiser, n), on_states(process)) for n in (4, 16, 64, 256)]
    for coarse, fine in itertools.pairwise(errors):
        assert coarse > 2.5 * fine
    assert errors[-1] < 5e-3


# ----------------------------------------------------------------------------------------- real draws against the law


@pytest.mark.parametrize("posterior", ["cavity", "full"])
@pytest.mark.parametrize("name", PROCESSES)
def test_sample_draws_the_propagated_law(name, posterior):
    """Ancestral sampling in 4 steps; a denoiser that declares the full posterior is converted, never plugged in."""
    process = PROCESSES[name]()
    expected = ancestral_law(process, ExactDenoiser(process, toy_law(process)), 4)
    denoiser = ExactDenoiser(process, toy_law(process), posterior)
    samples = sampling.sample(process, denoiser, length=L, num=ROWS, steps=4, sampler="ancestral", seed=0)
    assert samples.tokens.shape == (ROWS, L)
    assert chi_square_tail(state_counts(samples.tokens, process.V), expected) > FALSE_ALARM


@pytest.mark.parametrize("name", PROCESSES)
def test_one_ancestral_step_draws_the_kernel(name):
    """The sampler itself, from every state z at t = .7 to s = .4, against the product of posteriors."""
    process = PROCESSES[name]()
    states = sequences(process.V)
    t, s = (torch.full((len(states),), time, dtype=torch.float64) for time in (0.7, 0.4))
    denoiser = ExactDenoiser(process, toy_law(process))
    kernel = product_kernel(process.posterior(denoiser(states, t).exp(), states, t, s))
    each = 1500
    z, t, s = (value.repeat_interleave(each, 0) for value in (states, t, s))
    frozen = torch.zeros_like(z, dtype=torch.bool)
    drawn = sampling.ancestral(process, denoiser, z, t, s, Draw(frozen, torch.Generator().manual_seed(0)))
    for row, probs in zip(drawn.split(each), kernel, strict=True):
        assert chi_square_tail(state_counts(row, process.V), probs) > FALSE_ALARM / len(states)


def test_left_to_right_one_token_a_step_is_the_chain_rule():
    """Exact conditionals in the order of the text: the law itself, in L steps."""
    process = processes.masked(3)
    samples = sampling.sample(
        process, ExactDenoiser(process), length=L, num=ROWS, steps=L, sampler="left_to_right", seed=1
    )
    assert chi_square_tail(state_counts(samples.tokens, 3), LAW.flatten()) > FALSE_ALARM
    assert samples.nfe == L


def test_confidence_one_token_a_step_follows_its_own_law():
    """Draw both, keep the likelier (the first of equals), redraw the other given it: enumerated, then compared."""
    process = processes.masked(3)
    first, second = LAW.sum(1), LAW.sum(0)
    law = torch.zeros(3, 3, dtype=torch.float64)
    for a, b in itertools.product(range(3), repeat=2):
        if first[a] >= second[b]:
            law[a] += first[a] * second[b] * LAW[a] / first[a]
        else:
            law[:, b] += first[a] * second[b] * LAW[:, b] / second[b]
    assert total_variation(law, LAW) > 0.01  # the bias that makes this sampler no sampler of LAW
    samples = sampling.sample(
        process, ExactDenoiser(process), length=L, num=ROWS, steps=L, sampler="confidence", seed=2
    )
    assert chi_square_tail(state_counts(samples.tokens, 3), law.flatten()) > FALSE_ALARM


@pytest.mark.parametrize("sampler", ["ancestral", "confidence", "left_to_right", "euler", "remdm:eta=0.3", "gibbs"])
@pytest.mark.parametrize("position", [0, 1])
def test_infilling_one_masked_token_is_exact(sampler, position):
    """18.13: the other token frozen, the missing one follows its conditional, whatever the sampler and the steps."""
    process, given = processes.masked(3), 1
    canvas = torch.tensor([given, given])
    frozen = torch.arange(2) != position
    samples = sampling.sample(
        process, ExactDenoiser(process), canvas=canvas, frozen=frozen, num=5000, steps=3, sampler=sampler, seed=3
    )
    conditional = LAW.select(1 - position, given)
    counts = torch.bincount(samples.tokens[:, position], minlength=3).double()
    assert chi_square_tail(counts, conditional / conditional.sum()) > FALSE_ALARM
    assert (samples.tokens[:, 1 - position] == given).all()


@pytest.mark.parametrize("name", ["uniform", "hybrid"])
def test_infilling_with_a_time_per_token_is_exact(name):
    """Uniform noise leaves no trace: a given token counts fully only if its own time is 0, and then any N is exact."""
    process, steps = PROCESSES[name](), 3
    denoiser = ExactDenoiser(process)
    for given in range(3):
        states = torch.tensor([[given, z] for z in range(process.V)])
        law = process.marginal(torch.full((1, 1, 3), 1 / 3, dtype=torch.float64), torch.ones(1))[0, 0]
        for i in range(steps, 0, -1):
            reached = law > 0
            z = states[reached]
            t, s = (torch.tensor([[0.0, j / steps]], dtype=torch.float64).expand(len(z), 2) for j in (i, i - 1))
            law = law[reached] @ process.posterior(denoiser(z, t).exp(), z, t, s)[:, 1]
        torch.testing.assert_close(law[:3], LAW[given] / LAW[given].sum(), rtol=0, atol=1e-9)


def test_temperature_is_the_power_of_the_law():
    """One step of masked sampling draws p^(1 / T) renormalised, position by position; T = 0 takes the likeliest."""
    process = processes.masked(3)
    for temperature in (0.5, 2.0):
        p = torch.stack([LAW.sum(1), LAW.sum(0)]) ** (1 / temperature)
        first, second = p / p.sum(-1, keepdim=True)
        samples = sampling.sample(
            process, ExactDenoiser(process), length=L, num=5000, steps=1, temperature=temperature, seed=4
        )
        assert chi_square_tail(state_counts(samples.tokens, 3), torch.outer(first, second).flatten()) > FALSE_ALARM
    greedy = sampling.sample(process, ExactDenoiser(process), length=L, num=5, steps=1, temperature=0.0, seed=4)
    assert (greedy.tokens == torch.tensor([LAW.sum(1).argmax(), LAW.sum(0).argmax()])).all()


# ------------------------------------------------------------------------------------------------- the loop's contract


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_frozen_tokens_never_change(name, sampler):
    """Not by the sampler, nor by a callback that overwrites the whole canvas; seen at every step among ids."""
    process = make(name)
    tokens = torch.tensor(clean(process))
    canvas = tokens[torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 1, 0, 0, 1]])]
    frozen = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 1]], dtype=torch.bool)
    seen = []

    def vandal(step):
        seen.append(step.tokens)
        if process.name == "gaussian":  # vectors: the given tokens, noised to the time of the step
            alpha, sigma = process.scales(process.gamma(torch.tensor([step.s]))[0])
            assert ((step.z - alpha * CODES[canvas])[frozen].abs() < 6 * sigma).all()
        return torch.full_like(step.z, int(tokens[0])) if step.z.dim() == 2 else torch.zeros_like(step.z)

    class Watching(Contextual):
        def __call__(self, z, t, cond=None):
            if z.shape == frozen.shape:  # nor does the denoiser ever see another token there
                assert torch.equal(z[frozen], canvas[frozen])
            return super().__call__(z, t, cond)

    for callback in (None, vandal):
        samples = sampling.sample(
            process, Watching(process), canvas=canvas, frozen=frozen, steps=6, sampler=sampler, callback=callback
        )
        assert torch.equal(samples.tokens[frozen], canvas[frozen])
        assert torch.isin(samples.tokens, tokens).all()
    assert seen
    for tokens_then in seen:
        assert torch.equal(tokens_then[frozen], canvas[frozen])


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_a_prompt_stays_where_it_is(name, sampler):
    process = make(name)
    prompt = torch.tensor(clean(process))[[2, 0, 1]]
    samples = sampling.sample(process, Contextual(process), prompt=prompt, length=4, num=3, steps=4, sampler=sampler)
    assert samples.tokens.shape == (3, 7)
    assert (samples.tokens[:, :3] == prompt).all()


@pytest.mark.parametrize("name", PROCESSES)
def test_the_callback_can_rewrite_the_canvas(name):
    """What it returns is what the next step starts from, and what comes out if it is the last word."""
    process = make(name)
    mark = clean(process)[-1]
    times = []

    def callback(step):
        times.append((step.t, step.s))
        z = step.z.clone()
        z[:, 1] = mark
        return z

    denoiser = Contextual(process)
    samples = sampling.sample(process, denoiser, length=5, num=4, steps=8, sampler="ancestral", callback=callback)
    assert (samples.tokens[:, 1] == mark).all()
    assert times[0][0] == 1.0
    assert all(s < t for t, s in times)
    assert [t for t, _ in times[1:]] == [s for _, s in times[:-1]]


def test_masks_a_callback_puts_back_are_still_filled():
    process = processes.masked(3)
    samples = sampling.sample(
        process, ExactDenoiser(process), length=L, num=50, steps=3, callback=lambda step: torch.full_like(step.z, 3)
    )
    assert (samples.tokens < 3).all()


@pytest.mark.parametrize("free", [8, 5])
@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("sampler", ["confidence", "left_to_right"])
def test_the_quota_of_the_schedule_is_kept(sampler, free, steps):
    """(1 - alpha_s) times the free positions stay masked, so one step a token reveals one token a step."""
    process, steps = processes.masked(3), steps or free
    left = []
    samples = sampling.sample(
        process,
        Contextual(process),
        prompt=[1] * (8 - free),
        length=free,
        num=4,
        steps=steps,
        sampler=sampler,
        callback=lambda step: left.append((step.s, (step.z == process.mask_id).sum(1).tolist())),
    )
    assert len(left) == steps
    for s, counts in left:
        assert counts == [round(s * free)] * 4
    if steps == free:
        assert [counts[0] for _, counts in left] == list(range(free - 1, -1, -1))
    assert samples.nfe == steps


def test_confidence_keeps_the_surest():
    """Of the tokens drawn, those revealed are never less probable than those put back."""
    process = processes.masked(3)
    z = torch.full((6, 8), process.mask_id)
    t, s = (torch.full((6,), time, dtype=torch.float64) for time in (1.0, 0.5))
    logp = torch.randn(6, 8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    frozen = torch.zeros_like(z, dtype=torch.bool)
    after = sampling.confidence(
        process,
        lambda z, t, where: logp[where],
        z,
        t,
        s,
        Draw(frozen, torch.Generator().manual_seed(1), temperature=0.0),
    )
    best = logp.max(-1)
    for row in range(6):
        kept = after[row] != process.mask_id
        assert kept.sum() == 4
        assert torch.equal(after[row][kept], best.indices[row][kept])
        assert best.values[row][kept].min() >= best.values[row][~kept].max()


@pytest.mark.parametrize("name", [*PROCESSES, "gaussian"])
def test_the_count_of_evaluations_is_the_count_of_calls(name):
    """nfe is the number of denoiser calls, positions their rows times length; a step costs one call."""
    process = make(name)
    denoiser = Contextual(process)
    samples = sampling.sample(process, denoiser, length=40, num=3, steps=7, sampler="ancestral")
    assert samples.nfe == len(denoiser.calls)
    assert samples.positions == sum(rows * length for rows, length in denoiser.calls) == samples.nfe * 3 * 40
    if process.name in ("uniform", "hybrid"):
        assert samples.nfe == 7
    elif process.name == "gaussian":
        assert samples.nfe == 8  # one more to read the tokens at t = 0
    else:
        assert samples.nfe <= 7  # a canvas without masks is finished
    assert torch.isin(samples.tokens, torch.tensor(clean(process))).all()


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_a_row_does_not_depend_on_the_rows_beside_it(name, sampler):
    """Row r of a batch is what its seed draws alone, and in any other company."""
    process = make(name)
    arguments = {"length": 6, "steps": 5, "sampler": sampler}
    batch = sampling.sample(process, Contextual(process), num=5, seed=11, **arguments)
    assert len(set(batch.seeds)) == 5
    for row, seed in enumerate(batch.seeds):
        alone = sampling.sample(process, Contextual(process), seeds=[seed], **arguments)
        assert torch.equal(alone.tokens[0], batch.tokens[row])
        assert alone.seeds == [seed]
    turned = sampling.sample(process, Contextual(process), seeds=batch.seeds[::-1], **arguments)
    assert torch.equal(turned.tokens, batch.tokens.flip(0))
    again = sampling.sample(process, Contextual(process), num=5, seed=11, **arguments)
    assert torch.equal(again.tokens, batch.tokens)
    other = sampling.sample(process, Contextual(process), num=5, seed=12, **arguments)
    assert not torch.equal(other.tokens, batch.tokens)


@pytest.mark.parametrize(("name", "sampler"), [pair for pair in PAIRS if pair[1] != "left_to_right"])
def test_rows_of_different_canvases_do_not_touch_one_another(name, sampler):
    """Ragged company: rows with no, some and most tokens given are each what they are alone."""
    process = make(name)
    a, b = clean(process)[:2]
    canvas = torch.tensor([[a] * 6, [b, a, a, a, b, a], [a, b, a, b, a, a]])
    frozen = torch.tensor([[False] * 6, [True, True, False, False, True, False], [True] * 3 + [False] + [True] * 2])
    options = {"steps": 5, "sampler": sampler}
    batch = sampling.sample(process, Contextual(process), canvas=canvas, frozen=frozen, seeds=[5, 6, 7], **options)
    for row, seed in enumerate(batch.seeds):
        alone = sampling.sample(
            process, Contextual(process), canvas=canvas[row], frozen=frozen[row], seeds=[seed], **options
        )
        assert torch.equal(alone.tokens[0], batch.tokens[row])


def test_ragged_rows_of_a_left_to_right_denoiser_are_written_apart():
    """It writes one token a row and step: rows with more to write do not set the pace of the others."""
    process = processes.masked(3)
    denoiser = Contextual(process)
    denoiser.facts = replace(denoiser.facts, attention="causal")
    canvas, frozen = torch.zeros(2, 3, dtype=torch.long), torch.tensor([[True, False, False], [False] * 3])
    both = sampling.sample(process, denoiser, canvas=canvas, frozen=frozen, seeds=[0, 1])
    assert both.cost.of_rows == [2, 3]
    for row in range(2):
        alone = sampling.sample(process, denoiser, canvas=canvas[row], frozen=frozen[row], seeds=[row])
        assert torch.equal(alone.tokens[0], both.tokens[row])
