"""Infilling beside given tokens (section 14; section 18, item 13): what each way for them to stand draws.

Two dependent tokens, one of them given: the other's conditional is known. Masks are exact (``test_sampling_laws``). For
the rest, 20,000 real draws of ``sample`` a figure, seeds fixed: the total variation of exact ones is .008 on average,
and above .02 once in ten thousand seeds.
"""

import pytest
import torch

from redraft import guidance, objectives, processes, sampling
from redraft.models import Transformer, TransformerConfig
from redraft.models.told import Told, unnoised
from redraft.objectives.given import choose, with_given
from redraft.processes import Facts
from redraft.schedules import GammaSchedule

from .oracle import LAW, ExactDenoiser, noisy_pairs, posteriors, quadrature, total_variation
from .test_editing import Watching
from .tiled import Tiled, tile

CODES = torch.tensor([[-1.0, 0.2], [0.3, -1.0], [1.0, 0.7]], dtype=torch.float64)
TEXTS = 20_000
PROCESSES = {
    "uniform": lambda: processes.uniform(3),
    "hybrid": lambda: processes.hybrid(3, uniform_share=0.5),
    "d3pm": lambda: processes.d3pm(3, "uniform", 64),
    "vp": lambda: gaussian("vp"),
    "ve": lambda: gaussian("ve"),
    "rf": lambda: gaussian("rf"),
}


def gaussian(kind: str = "vp"):
    """Little noise at t = 0: two rows are a distance of 1.2 or more apart, its std is .05."""
    return processes.gaussian(CODES, kind, GammaSchedule(gamma_min=-6.0, gamma_max=6.0))


class ExactVectors:
    """The exact full posterior of two dependent tokens under Gaussian noise; t (B,) or (B, L)."""

    facts = Facts(posterior="full", time_conditioned=True)

    def __init__(self, process) -> None:
        self.process = process

    def __call__(self, z, t, cond=None):
        evidence = self.process.output_prior(z, t)
        return posteriors(LAW, (evidence - evidence.amax(-1, keepdim=True)).exp(), "full").log()


def exact(process):
    return ExactVectors(process) if process.vectors else ExactDenoiser(process)


def error(process, place: int, steps: int = 48, **options) -> float:
    """TV between what is drawn beside a given token and its conditional, averaged over the law of the given one."""
    given = LAW.sum(1 - place)
    counts = (given * TEXTS).round().long()
    texts = torch.zeros(int(counts.sum()), 2, dtype=torch.long)
    texts[:, place] = torch.arange(3).repeat_interleave(counts)
    frozen = torch.zeros_like(texts, dtype=torch.bool)
    frozen[:, place] = True
    rows = 50
    found = sampling.sample(
        process,
        Tiled(exact(process), 2),
        canvas=tile(texts, rows),
        frozen=tile(frozen, rows),
        steps=steps,
        seed=1,
        **options,
    )
    tokens = found.tokens.reshape(-1, 2)
    drawn = torch.bincount(3 * tokens[:, 0] + tokens[:, 1], minlength=9).double().reshape(3, 3) / len(tokens)
    return total_variation(drawn, LAW)


# process, way, total variation in 48 steps (40,000 texts, s.e. .003), the bounds it is held to below
TABLE = [
    ("uniform", {"given": "noised"}, 0.138, (0.09, 0.19)),
    ("uniform", {"given": "clean"}, 0.091, (0.06, 0.13)),
    ("uniform", {"given": "told"}, 0.006, (0.0, 0.02)),
    ("hybrid", {"given": "noised"}, 0.163, (0.10, 0.21)),
    ("hybrid", {"given": "clean"}, 0.105, (0.07, 0.15)),
    ("hybrid", {"given": "told"}, 0.004, (0.0, 0.02)),
    ("d3pm", {"given": "clean"}, 0.092, (0.06, 0.13)),
    ("d3pm", {"given": "told"}, 0.006, (0.0, 0.02)),
    ("vp", {"given": "noised"}, 0.135, (0.10, 0.18)),
    ("vp", {"given": "noised", "resample": 4}, 0.049, (0.02, 0.08)),
    ("vp", {"given": "clean"}, 0.103, (0.07, 0.14)),
    ("vp", {"given": "told"}, 0.009, (0.0, 0.03)),
    ("ve", {"given": "told"}, 0.009, (0.0, 0.03)),
    ("rf", {"given": "told"}, 0.009, (0.0, 0.03)),
]
"""Told is exact, up to the steps' own error among vectors (.02 in 24 steps); all else is biased, however many steps."""


@pytest.mark.parametrize(("name", "options", "measured", "bounds"), TABLE, ids=lambda value: str(value))
def test_14_only_what_is_told_infills_exactly(name, options, measured, bounds):
    """18.13: the table, with fewer texts and steps (8 among tokens, where told is exact in any; 24 among vectors)."""
    process = PROCESSES[name]()
    found = error(process, 0, steps=24 if process.vectors else 8, **options)
    assert bounds[0] <= found <= bounds[1], found
    assert bounds[0] <= measured <= bounds[1]


@pytest.mark.parametrize(("name", "usual"), [("uniform", "clean"), ("hybrid", "clean"), ("vp", "noised")])
def test_the_usual_way_is_the_one_of_before(name, usual):
    """Nothing said: tokens stand as they are, vectors freshly noised."""
    process = PROCESSES[name]()
    canvas, frozen = torch.tensor([0, 1, 2, 0]), torch.tensor([True, False, True, False])
    options = {"canvas": canvas, "frozen": frozen, "steps": 5, "num": 8}
    silent = sampling.sample(process, Watching(process), **options).tokens
    for way in ("noised", "clean", "told"):
        said = sampling.sample(process, Watching(process), given=way, **options).tokens
        assert torch.equal(said, silent) == (way == usual), way
        assert torch.equal(said[:, [0, 2]], canvas[[0, 2]].expand(8, -1))


class Shown:
    """Notes all it is asked, and answers evenly."""

    def __init__(self, process, **facts) -> None:
        self.process, self.asked = process, []
        posterior = "full" if process.vectors else "cavity"
        self.facts = Facts(**{"posterior": posterior, "time_conditioned": True, **facts})

    def __call__(self, z, t, cond=None):
        self.asked.append((z, t))
        return torch.zeros(*z.shape[:2], self.process.K, dtype=torch.float64).log_softmax(-1)


@pytest.mark.parametrize("name", ["uniform", "vp", "ve", "rf"])
@pytest.mark.parametrize("way", ["noised", "clean", "told"])
def test_how_given_tokens_stand_when_the_denoiser_is_asked(name, way):
    """alpha_s x without noise (clean), alpha_0 x with t = 0 (told), x with the noise of s (noised)."""
    process = PROCESSES[name]()
    canvas = torch.arange(3).repeat(100)[None]
    frozen = torch.arange(300)[None] % 2 == 0
    denoiser = Shown(process)
    sampling.sample(process, denoiser, canvas=canvas, frozen=frozen, steps=4, given=way)
    x = CODES[canvas][frozen]
    for z, t in denoiser.asked:
        now = t[~frozen] if way == "told" else t
        assert len(now.unique()) == 1
        if way == "told":
            assert (t[frozen] == 0).all()
        if not process.vectors:
            assert torch.equal(z[frozen], canvas[frozen]) == (way != "noised" or float(now[0]) == 0)
            continue
        level = torch.zeros(1) if way == "told" else now[:1]
        alpha, sigma = (one.item() for one in process.scales(process.gamma(level.double())[0]))
        spread = (z[frozen] - alpha * x).std().item()
        # 150 vectors of two coordinates: five standard errors of a std are 20 %
        assert spread == pytest.approx(sigma if way == "noised" else 0, rel=0.25, abs=1e-12)
    assert [float(t.max()) for _, t in denoiser.asked][:4] == [1.0, 0.75, 0.5, 0.25]


def test_jumps_back_cost_calls_and_keep_the_marginal_of_the_noise():
    """N jumps a step are N more calls; q(z_t | z_s) takes q_s to q_t: mean and std to five standard errors."""
    process = gaussian("ve")
    denoiser = Shown(process)
    frozen = torch.tensor([[True, False]])
    found = sampling.sample(
        process, denoiser, canvas=torch.zeros(1, 2, dtype=torch.long), frozen=frozen, steps=4, resample=2
    )
    assert found.nfe == 4 * 3 + 1
    assert [float(t) for _, t in denoiser.asked] == [1, 1, 1, 0.75, 0.75, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0]
    for kind in ("vp", "ve", "rf"):
        process, n = gaussian(kind), 20_000
        ids = torch.full((1, n), 2)
        canvas = sampling.canvas.Canvas(process, ids, ids == 2, "noised", torch.Generator().manual_seed(0))
        z = canvas.renoised(canvas.put_back(torch.zeros(1, n, 2, dtype=torch.float64), 0.5), 0.5, 0.6)
        alpha, sigma = (one.item() for one in process.scales(process.gamma(torch.tensor([0.6]))[0]))
        assert (z.mean((0, 1)) - alpha * CODES[2]).abs().max() < 5 * sigma / n**0.5
        assert z.std((0, 1)).sub(sigma).abs().max() < 5 * sigma / (2 * n) ** 0.5


@pytest.mark.parametrize(
    "options", [{"given": "told"}, {"given": "clean"}, {"resample": 2}, {"given": "noised"}], ids=str
)
@pytest.mark.parametrize("name", ["uniform", "vp"])
def test_a_row_that_is_given_tokens_does_not_depend_on_the_rows_beside_it(name, options):
    process = PROCESSES[name]()
    if name == "uniform" and "resample" in options:
        return
    canvas = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0], [1, 1, 1, 1]])
    frozen = torch.tensor([[True, False, False, True], [False] * 3 + [True], [True, True, True, False]])
    batch = sampling.sample(
        process, Watching(process), canvas=canvas, frozen=frozen, seeds=[1, 2, 3], steps=4, **options
    )
    for row, seed in enumerate(batch.seeds):
        alone = sampling.sample(
            process, Watching(process), canvas=canvas[row], frozen=frozen[row], seeds=[seed], steps=4, **options
        )
        assert torch.equal(alone.tokens[0], batch.tokens[row])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vp", {"given": "tolt"}, "unknown way for given tokens to stand 'tolt'; did you mean 'told'"),
        ("masked", {"given": "told"}, "given='told' with a masked process: .* exact as they are"),
        ("masked", {"resample": 1}, "resample=1 with a masked process"),
        ("spindle", {"given": "clean"}, "with a spindle process"),
        ("uniform", {"resample": 1}, "resample=1 with given='clean' and a uniform process"),
        ("vp", {"resample": 1, "given": "told"}, "resample=1 with given='told'"),
        ("vp", {"resample": -1}, "resample=-1"),
        ("vp", {"given": "told", "frozen": torch.tensor([False, False])}, "no token is given"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(name, options, words):
    others = {
        "masked": lambda: processes.masked(3),
        "spindle": lambda: processes.spindle(torch.tensor([0.5, 0.0, -0.5])),
    }
    process = {**PROCESSES, **others}[name]()
    options = {"canvas": torch.tensor([0, 1]), "frozen": torch.tensor([True, False]), **options}
    with pytest.raises(ValueError, match=words):
        sampling.sample(process, Watching(process), **options)


def test_who_is_not_told_the_time_cannot_be_told_that_tokens_are_clean():
    process = processes.uniform(3)
    options = {"canvas": torch.tensor([0, 1]), "frozen": torch.tensor([True, False])}
    with pytest.raises(ValueError, match="not told the time"):
        sampling.sample(process, Shown(process, time_conditioned=False), given="told", **options)


# ------------------------------------------------------------------------------------------------------- training


def test_a_bound_beside_given_text_is_that_of_the_conditional():
    """Uniform noise, the first token given: E[sum of the loss] = H(x2 | x1) for the exact denoiser, 1e-6.

    Every (x, z, t) by quadrature, the draw prescribed; the position given teaches nothing.
    """
    process = processes.uniform(3)
    times, weights = quadrature(100)
    x0, z, t, probability = noisy_pairs(process, times)
    given = torch.tensor([[True, False]]).expand(len(x0), -1)
    told = Told(ExactDenoiser(process), process, x0, given)
    loss = torch.where(given, 0.0, process.nelbo(told(z, t), x0, z, t)).sum(1)
    found = (loss * probability * weights[torch.searchsorted(times, t)]).sum().item()
    first = LAW.sum(1)
    entropy = -(LAW * (LAW / first[:, None]).log()).sum().item()
    assert found == pytest.approx(entropy, abs=1e-6)
    # not told, the same loss bounds more: it does not know that the first is clean
    blind = torch.where(given, 0.0, process.nelbo(ExactDenoiser(process)(z, t), x0, z, t)).sum(1)
    assert (blind * probability * weights[torch.searchsorted(times, t)]).sum().item() > entropy + 0.01


@pytest.mark.parametrize("objective", ["nelbo", "cross_entropy", "cdcd", "plaid", "udlm"])
def test_the_loss_counts_free_positions_and_the_bound_rows_that_are_whole(objective):
    """Objectives see the same denoiser, told; the bound's mean is the objective's own, within five standard errors."""
    process, rows = (processes.uniform(3) if objective == "udlm" else gaussian()), 20_000
    first = torch.multinomial(LAW.flatten(), rows, replacement=True, generator=torch.Generator().manual_seed(0))
    batch = {"ids": torch.stack([first // 3, first % 3], 1)}
    u = torch.rand(rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    shown = []

    class Watched:
        facts = exact(process).facts

        def __call__(self, z, t, cond=None):
            shown.append((z, t))
            return exact(process)(z, t, cond)

    loss = objectives.get(objective, given=0.5)(Watched(), process, batch, u, generator)
    chosen, given = choose((rows, 2), 0.5, torch.Generator().manual_seed(2))
    assert (shown[0][1][given] == 0).all()
    assert 0.45 < chosen.double().mean() < 0.55
    assert (loss.value[given] == 0).all()
    assert (loss.bound[chosen] == 0).all()
    for term in loss.terms.values():
        assert (term[given] == 0).all()
    plain = objectives.get(objective)(exact(process), process, batch, u, torch.Generator().manual_seed(2))
    difference = loss.bound.sum(1) - plain.bound.sum(1)
    assert difference.mean().abs() < 5 * difference.std() / rows**0.5


def test_what_is_given_is_a_prefix_or_all_but_a_span_or_scattered():
    """In the share asked for; at least one token is given and one free; each pattern a third; false alarm < 1e-6."""
    n, L = 6000, 6
    chosen, given = choose((n, L), 0.4, torch.Generator().manual_seed(0))
    assert chosen.double().mean().item() == pytest.approx(0.4, abs=5 * (0.24 / n) ** 0.5)
    assert not given[~chosen].any()
    counts = given[chosen].sum(1)
    assert 1 <= int(counts.min()) <= int(counts.max()) <= L - 1
    assert set(counts.tolist()) == set(range(1, L))
    edges = (given[:, 1:] != given[:, :-1]).sum(1)[chosen]
    prefix = given[chosen][:, 0] & (edges == 1)
    scattered = edges > 2
    assert prefix.double().mean() > 1 / 3
    assert 0.05 < scattered.double().mean() < 1 / 3
    assert choose((4, 1), 0.9, None)[0].sum() == 0
    assert given[chosen].double().mean(0).sub(0.5).abs().max() < 0.25


def test_rows_are_given_the_same_whatever_stands_beside_them():
    def some(rows):
        return choose((len(rows), 5), 0.5, [torch.Generator().manual_seed(row) for row in rows])[1]

    assert torch.equal(some(range(8))[3:5], some([3, 4]))


@pytest.mark.parametrize("reads", ["mixture", "vectors"])
def test_our_network_hears_what_it_is_told(reads):
    """The transformer takes a time per token: what it says of the rest changes with it, and is what Told asks."""
    torch.manual_seed(0)
    process = gaussian()
    model = Transformer(
        TransformerConfig(process.to_dict(), depth=1, reads=reads, time_conditioned=True), {"codebook": CODES.float()}
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    ids, given = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[True, False, True, False]])
    t = torch.tensor([0.6], dtype=torch.float64)
    process = model.process
    z = process.corrupt(ids, t, torch.Generator().manual_seed(0))
    z = torch.where(given[..., None], unnoised(process, ids, torch.zeros(1)), z)
    told = Told(model, model.process, ids, given)(z, t)
    assert torch.equal(told, model(z, torch.tensor([[0, 0.6, 0, 0.6]], dtype=torch.float64)))
    assert (told - model(z, t))[~given].abs().max() > 1e-3
    level = {"gamma": model.process.gamma(t)[0]}
    torch.testing.assert_close(Told(model, model.process, ids, given)(z, t, level), told, rtol=0, atol=1e-12)


def test_a_second_denoiser_is_told_too():
    """Guidance that asks two denoisers: both see given tokens at their own time."""
    process = processes.uniform(3)
    one, other = Shown(process), Shown(process)
    canvas, frozen = torch.tensor([[0, 1]]), torch.tensor([[True, False]])
    sampler = guidance.cfg_posteriors(other, weight=2.0)
    sampling.sample(process, one, canvas=canvas, frozen=frozen, steps=2, given="told", sampler=sampler)
    assert [t.tolist() for _, t in one.asked] == [t.tolist() for _, t in other.asked] == [[[0, 1]], [[0, 0.5]]]


def test_an_objective_counts_what_is_free_and_no_gradient_comes_back_from_detached_rows():
    """``valid`` leaves given positions out; rows told as detached (PLAID) do not move a learned codebook."""
    seen = []

    def objective(denoiser, process, batch, u, generator=None):
        seen.append(batch["valid"])
        return objectives.Loss(torch.ones(4, 6), torch.ones(4, 6))

    valid = torch.arange(6).expand(4, 6) < 5
    batch = {"ids": torch.zeros(4, 6, dtype=torch.long), "valid": valid}
    with_given(objective, 0.7)(Shown(gaussian()), gaussian(), batch, torch.zeros(4), torch.Generator().manual_seed(0))
    _, given = choose((4, 6), 0.7, torch.Generator().manual_seed(0))
    assert given.any()
    assert torch.equal(seen[0], valid & ~given)

    table = CODES.clone().requires_grad_()
    process = processes.gaussian(table, "vp", GammaSchedule(gamma_min=-6.0, gamma_max=6.0))
    ids, given = torch.tensor([[0, 1], [2, 1]]), torch.tensor([[True, False]] * 2)
    denoiser = Shown(process)
    z, t = torch.zeros(2, 2, 2, dtype=torch.float64), torch.full((2,), 0.5)
    Told(denoiser, process, ids, given)(z, t, {"detached": torch.tensor([True, False])})
    denoiser.asked[0][0].sum().backward()
    assert table.grad.abs().sum(1).gt(0).tolist() == [False, False, True]


def test_what_cannot_be_trained_beside_given_text_is_refused():
    masked, uniform = processes.masked(3), processes.uniform(3)
    with pytest.raises(ValueError, match=r"loss\.given with a masked process"):
        objectives.check("nelbo", masked, Facts(mask_id=3), 0.5)
    with pytest.raises(ValueError, match=r"loss\.given with objective 'duo'"):
        objectives.check("duo", uniform, Facts(time_conditioned=True), 0.5)
    objectives.check("udlm", uniform, Facts(time_conditioned=True), 0.5)
    with pytest.raises(ValueError, match=r"given=1\.0"):
        with_given(objectives.get("udlm"), 1.0)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "churn:order=1", "churn"])
def test_clean_vectors_are_clean_inside_a_step(sampler):
    """Samplers that ask twice, or at a raised level, ask about alpha_t x at the given positions every time; 1e-12."""
    process = gaussian()
    seen: list[float] = []

    def ask(z, t, cond=None):
        seen.append((z[:, 0] - unnoised(process, canvas[None, :1], t)[:, 0]).abs().max().item())
        return watching(z, t, cond)

    watching, canvas = Watching(process), torch.tensor([1, 0])
    ask.facts = watching.facts
    frozen = torch.tensor([True, False])
    sampling.sample(process, ask, canvas=canvas, frozen=frozen, num=2, steps=3, sampler=sampler, given="clean")
    assert len(seen) >= 4
    assert max(seen) < 1e-12
