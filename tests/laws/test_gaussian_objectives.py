"""Objectives of Gaussian noise: what they average is the law's own, and what their gradients reach is what they say.

Expectations are Monte Carlo with fixed seeds, compared within three standard errors (false alarm .3% each under a
random seed); all else is exact in float64.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from redraft import objectives, processes
from redraft.models import Transformer, TransformerConfig
from redraft.models.vectors import ask
from redraft.processes import Facts, Gaussian, codebooks
from redraft.processes.gaussian import PREDICTIONS
from redraft.processes.time import draw
from redraft.randomness import rand, row_generators
from redraft.schedules import Adaptive, GammaSchedule, Gumbel, Plaid

from .chain import Chain, D, ExactChain, L, V, noise, sphere

F64 = torch.float64
NAMES = ["cdcd", "langflow", "plaid", "diffusion_lm", "analog_bits"]
SQUARED = ["diffusion_lm", "analog_bits"]
ENDS = {"gamma_min": -2.0, "gamma_max": 2.0}


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at(t: float, rows: int) -> Tensor:
    """The u that stands for t > 0 (``Gaussian.times``), once per row."""
    return torch.full((rows,), 0.125 + 0.875 * t, dtype=F64)


def spread(rows: int) -> Tensor:
    return draw("uniform", (0, 0), range(rows), rows)


# --------------------------------------------------------------------------------------------------- likelihood


def densities(process: Gaussian, chain: Chain, ids: Tensor, t: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """z drawn at t of the chain's sequences, log q(z), and log P(w | z) of the whole sequence."""
    times = torch.full((len(ids),), t, dtype=F64)
    z = process.corrupt(ids, times, seeded(seed))
    alpha, sigma = (scale[..., None, None] for scale in process.scales(process.gamma(times)[0]))
    emission = Normal(alpha * process.codebook, sigma).log_prob(z[:, :, None]).sum(-1)
    log_q = chain.log_evidence(emission)
    joint = chain.log_prob(ids) + emission.gather(-1, ids[..., None])[..., 0].sum(1)
    return z, log_q, joint - log_q


@pytest.mark.parametrize(("name", "kind"), [("nelbo", "vp"), ("plaid", "ve"), ("cdcd", "rf")])
def test_18_2_monte_carlo_vlb_of_the_chain(name, kind):
    """Exact denoiser: VLB = H(w) + KL(q(z_1) || prior) + [recon - H(w | z_0)], at least H; nats per sequence.

    At these ends both corrections are many standard errors, so that a bound without one of its terms is caught. Times
    are stratified over rows, whose spread is therefore that of neighbours.
    """
    process, chain, rows = noise(kind, -1.0, 0.5), Chain(), 8000
    ids, denoiser = chain.sample(rows), ExactChain(process, chain)
    u = draw("stratified", (0, 0), range(rows), rows)
    loss = objectives.get(name)(denoiser, process, {"ids": ids}, u, seeded())
    bound = loss.bound.sum(1)

    z, _, joint = densities(process, chain, ids, 0.0, 2)
    recon = -denoiser(z, torch.zeros(rows, dtype=F64)).gather(-1, ids[..., None])[..., 0].sum(1) + joint
    z, log_q, _ = densities(process, chain, ids, 1.0, 3)
    prior = log_q - Normal(0.0, process.ends()[2]).log_prob(z).sum((1, 2))
    error = math.hypot(
        (bound[::2] - bound[1::2]).square().sum().sqrt().item() / rows,
        (recon + prior).std().item() / math.sqrt(rows),
    )
    assert min(recon.mean(), prior.mean()) > 6 * error
    expected = chain.entropy() + (recon + prior).mean().item()
    assert bound.mean().item() == pytest.approx(expected, abs=3 * error)
    assert bound.mean() > chain.entropy() + 3 * error
    if name == "plaid":
        assert torch.equal(loss.value, loss.bound)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_reports_the_bound_of_its_draw(name):
    """``bound`` is what ``nelbo`` says of the same (t, z); all is (B, L), and terms add up to the value."""
    process = noise()
    batch, u = {"ids": Chain().sample(16)}, spread(16)
    denoiser = Regressor(process) if name in SQUARED else ExactChain(process, Chain())
    loss = objectives.get(name)(denoiser, process, batch, u, seeded())
    same = objectives.get("nelbo")(denoiser, process, batch, u, seeded())
    torch.testing.assert_close(loss.bound, same.value.detach(), rtol=1e-12, atol=0)
    assert not loss.bound.requires_grad
    assert loss.value.shape == loss.bound.shape == (16, L)
    torch.testing.assert_close(sum(loss.terms.values()), loss.value, rtol=1e-12, atol=1e-12)
    assert objectives.spec(name).is_bound == (name == "plaid")


def test_the_parts_of_the_bound_lie_where_they_belong():
    """At t = 0 reconstruction weighs 8 and diffusion nothing; elsewhere diffusion 8/7; the prior everywhere 1."""
    process, ids = noise(), Chain().sample(8)
    u = torch.tensor([0.0, 0.1249, 0.1251, 0.5] * 2, dtype=F64)
    terms = objectives.get("plaid")(ExactChain(process, Chain()), process, {"ids": ids}, u, seeded()).terms
    start = u < 0.125
    assert (terms["reconstruction"] != 0).any(1).tolist() == start.tolist()
    assert (terms["diffusion"] != 0).any(1).tolist() == (~start).tolist()
    t, _ = process.times(u)
    z = process.corrupt(ids, t, seeded())
    logp = ExactChain(process, Chain())(z, t)
    torch.testing.assert_close(terms["diffusion"][~start], (8 / 7 * process.nelbo(logp, ids, z, t))[~start])
    expected = -8 * logp.gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(terms["reconstruction"][start], expected[start])
    torch.testing.assert_close(terms["prior"], process.prior_kl(ids))


# ------------------------------------------------------------------------------------------------- cross-entropy


@pytest.mark.parametrize("kind", ["vp", "ve", "rf"])
@pytest.mark.parametrize("t", [0.2, 0.5])
def test_cross_entropy_at_the_optimum_is_the_oracles_entropy(kind, t):
    """Section 4.6: of an exact denoiser the mean of CDCD's loss is sum_i H(w_i | z), pairwise on the same z."""
    process, chain, rows = noise(kind), Chain(), 10_000
    ids = chain.sample(rows)
    loss = objectives.get("cdcd")(ExactChain(process, chain), process, {"ids": ids}, at(t, rows), seeded())
    times = torch.full((rows,), t, dtype=F64)
    logp = ExactChain(process, chain)(process.corrupt(ids, times, seeded()), times)
    entropy = -(logp.exp() * logp).sum((1, 2))
    surplus = loss.value.sum(1) - entropy
    error = surplus.std().item() / math.sqrt(rows)
    assert abs(surplus.mean().item()) < 3 * error < 0.05 * entropy.mean().item()
    assert torch.equal(loss.value, loss.terms["cross_entropy"])
    other = objectives.get("cdcd")(ExactChain(process, Chain(seed=1)), process, {"ids": ids}, at(t, rows), seeded())
    assert (other.value.sum(1) - entropy).mean() > 20 * error


def test_langflow_is_the_same_loss_whatever_the_kind_in_units_of_its_own():
    """cdcd = langflow = rectified flow of the same noise: the kinds differ in units alone, 1e-9."""
    ids, found = Chain().sample(16), []
    for name, kind in (("cdcd", "ve"), ("langflow", "vp"), ("langflow", "rf")):
        process = noise(kind)
        loss = objectives.get(name)(ExactChain(process, Chain()), process, {"ids": ids}, spread(16), seeded())
        found.append(loss.value)
    for one, other in pairwise(found):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", [Adaptive, Gumbel])
@pytest.mark.parametrize("name", ["cdcd", "langflow"])
def test_a_warped_schedule_is_fitted_and_learns_from_nothing_else(name, family):
    """The term ``schedule`` is ``fit`` of the cross-entropy where t > 0; no other gradient gets there."""
    schedule = learning(family)
    process = processes.gaussian(nn.Parameter(sphere()), "vp", schedule, learned=True)
    u = spread(64)
    batch, at_zero = {"ids": Chain().sample(64)}, u < 0.125
    loss = objectives.get(name)(GammaChain(process), process, batch, u, seeded())
    found, misfit = loss.terms["cross_entropy"], loss.terms["schedule"]
    gamma, _ = process.gamma(process.times(u)[0])
    torch.testing.assert_close(misfit[~at_zero], (8 / 7 * schedule.fit(gamma, found))[~at_zero])
    assert at_zero.any()
    assert (misfit[at_zero] == 0).all()
    learned = list(schedule.tensors.values())
    assert all(one is None for one in gradients(found, learned))
    assert any((one.abs() > 0).any() for one in gradients(loss.value, learned))
    assert not loss.bound.requires_grad


def test_only_plaid_moves_a_schedule_by_gradients_through_gamma():
    """Of cdcd on a ``plaid`` schedule, which is refused in training, no gradient arrives there; of plaid it does."""
    schedule = learning(Plaid)
    process = processes.gaussian(nn.Parameter(sphere()), "vp", schedule, learned=True)
    batch, u, learned = {"ids": Chain().sample(16)}, spread(16), list(schedule.tensors.values())
    one, other = (objectives.get(name)(GammaChain(process), process, batch, u, seeded()) for name in ("cdcd", "plaid"))
    assert all(gradient is None for gradient in gradients(one.value, learned))
    assert all(gradient is not None for gradient in gradients(other.value, learned))


# ------------------------------------------------------------------------------------------------ squared error


class Regressor(nn.Module):
    """A linear map of z as a denoiser that predicts vectors in the units of ``head``."""

    def __init__(self, process: Gaussian, head: str = "x0", **facts) -> None:
        super().__init__()
        self.process, self.head = process, head
        self.facts = Facts(posterior="full", vectors=True, **facts)
        weight = torch.randn(process.D, process.D, generator=seeded(5), dtype=F64)
        self.weight, self.calls = nn.Parameter(weight), []

    def raw(self, z: Tensor, cond) -> Tensor:
        guess = cond.get("guess", torch.zeros_like(z))
        return torch.tanh(z @ self.weight + guess)

    def forward(self, z: Tensor, t: Tensor, cond=None, vectors: bool = False) -> Tensor:
        self.calls.append((z.shape, (cond or {}).get("guess")))
        x = self.process.denoised(self.raw(z, cond), self.head, z, cond["gamma"])
        return x if vectors else self.process.rounding(x)


@pytest.mark.parametrize("target", PREDICTIONS)
@pytest.mark.parametrize("head", PREDICTIONS)
def test_targets_convert_exactly(head, target):
    """Whatever a network predicts, the error is that of the target's own units: values and gradients, 1e-10."""
    process = noise()
    batch, u = {"ids": Chain().sample(16)}, spread(16)
    denoiser = Regressor(process, head)
    loss = objectives.get("analog_bits", target=target)(denoiser, process, batch, u, seeded())

    x, (t, _) = process.codebook[batch["ids"]], process.times(u)
    gamma, z = process.gamma(t)[0], process.corrupt(batch["ids"], t, seeded())
    x_hat = process.denoised(denoiser.raw(z, {}), head, z, gamma)
    wanted, got = (process.predicted(one, target, z, gamma) for one in (x, x_hat))
    explicit = ((wanted - got) ** 2).mean(-1)
    torch.testing.assert_close(loss.value, explicit, rtol=1e-10, atol=1e-12)
    (one,), (other,) = (torch.autograd.grad(value.sum(), denoiser.weight) for value in (loss.value, explicit))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    if head == target:  # a network trained in its own units: no conversion is left in the loss
        own = ((denoiser.raw(z, {}) - wanted) ** 2).mean(-1)
        torch.testing.assert_close(explicit, own, rtol=1e-10, atol=1e-12)
    plain = objectives.get("analog_bits")(denoiser, process, batch, u, seeded())
    weight = process.error_weight(target, gamma)
    torch.testing.assert_close(loss.value, weight * plain.value, rtol=1e-10, atol=1e-12)
    lm = objectives.get("diffusion_lm", target=target)(denoiser, process, batch, u, seeded())
    assert torch.equal(lm.terms["error"], loss.value)


@pytest.mark.parametrize("kind", ["vp", "ve", "rf"])
def test_2_2_10_analog_bits_posterior_mean(kind):
    """tanh(alpha z / sigma^2 + 1/2 log(p / (1 - p))) is the exact posterior's mean of the tokens' bits, 1e-11."""
    process = processes.gaussian(codebooks.bits(8).double(), kind, GammaSchedule(gamma_min=-3.0, gamma_max=5.0))
    p = torch.tensor([0.3, 0.5, 0.9], dtype=F64)
    law = torch.where(process.codebook > 0, p, 1 - p).prod(-1)
    t = torch.linspace(0, 1, 6, dtype=F64)
    z = process.corrupt(torch.arange(24).reshape(6, 4) % 8, t, seeded())
    mean = process.mean((law.log() + process.output_prior(z, t)).softmax(-1))
    alpha, sigma = (scale[..., None] for scale in process.scales(process.gamma(t)[0]))
    torch.testing.assert_close(mean, torch.tanh(alpha * z / sigma**2 + (p / (1 - p)).log() / 2), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["vp", "ve", "rf"])
def test_rounding_is_bayes_and_the_anchor_what_the_prior_sees(kind):
    """Rounding: -log p(token | x + exp(gamma_0 / 2) eps) for tokens alike; anchor: mean_d (alpha_1 x)^2 over std^2."""
    codes = sphere() * torch.linspace(0.5, 2.0, V, dtype=F64)[:, None]
    process = processes.gaussian(codes, kind, GammaSchedule(**ENDS))
    ids, u = Chain().sample(32), spread(32)
    loss = objectives.get("diffusion_lm")(Regressor(process), process, {"ids": ids}, u, seeded())
    generator = seeded()
    process.corrupt(ids, process.times(u)[0], generator)
    eps = torch.randn((32, L, D), generator=generator, dtype=F64)
    near = codes[ids] + math.exp(ENDS["gamma_min"] / 2) * eps
    density = Normal(codes, math.exp(ENDS["gamma_min"] / 2)).log_prob(near[:, :, None]).sum(-1)
    expected = -density.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(loss.terms["rounding"], expected, rtol=1e-10, atol=1e-11)
    alpha, sigma = (value.item() for value in process.ends()[:2])
    share = alpha**2 / (alpha**2 + sigma**2)
    torch.testing.assert_close(loss.terms["anchor"], share * codes[ids].square().mean(-1), rtol=1e-10, atol=0)


# ------------------------------------------------------------------------------------------------------ gradients


class GammaChain:
    """The exact chain denoiser, which reads gamma as it is told: gradients through gamma pass by the objective."""

    facts = Facts(posterior="full", time_conditioned=True)

    def __init__(self, process: Gaussian) -> None:
        self.process, self.chain = process, Chain(sharpness=0.5)

    def __call__(self, z: Tensor, t: Tensor, cond) -> Tensor:
        return self.chain.log_posterior(self.process.evidence(z, cond["gamma"]))


def learning(family):
    """A learned schedule some way from its start, its tensors float64 leaves."""
    start = family.start(0)
    moved = {name: (one.double() + 0.02 * torch.randn(one.shape, generator=seeded(7))) for name, one in start.items()}
    return family(-3.0, 3.0, {name: nn.Parameter(one.double()) for name, one in moved.items()})


def gradients(values: Tensor, tensors: list[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(values.mean(), tensors, retain_graph=True, allow_unused=True))


TAUGHT = [
    *[("plaid", term) for term in ("reconstruction", "diffusion", "prior")],
    *[("diffusion_lm", term) for term in ("error", "rounding", "anchor")],
    ("cdcd", "cross_entropy"),
    ("analog_bits", "error"),
]


@pytest.mark.parametrize(("name", "term"), TAUGHT)
def test_every_term_teaches_a_learned_codebook(name, term):
    """The gradient is that of finite differences along a direction, 1e-6: nothing on the way is detached."""
    table = (sphere() * torch.linspace(0.5, 1.5, V, dtype=F64)[:, None]).requires_grad_()
    direction = torch.randn(V, D, generator=seeded(3), dtype=F64)
    batch, u = {"ids": Chain().sample(32)}, spread(32)

    def mean(table: Tensor) -> Tensor:
        process = Gaussian(table, "vp", GammaSchedule(**ENDS), learned=True, power=1.0)
        denoiser = Regressor(process, "edm") if name in SQUARED else GammaChain(process)
        return objectives.get(name)(denoiser, process, batch, u, seeded()).terms[term].mean()

    (gradient,) = torch.autograd.grad(mean(table), table)
    h = 1e-5
    slope = (mean(table.detach() + h * direction) - mean(table.detach() - h * direction)) / (2 * h)
    assert abs(slope) > 1e-5
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)


@pytest.mark.parametrize("holes", [False, True])
def test_plaids_schedule_follows_the_square_and_all_else_the_loss(holes):
    """Inner network: autograd of the mean over rows of w l^2; ends and codebook: that of the loss itself; 1e-9."""
    schedule, rows = learning(Plaid), 32
    table = nn.Parameter(sphere())
    process = processes.gaussian(table, "vp", schedule, learned=True)
    denoiser, u = GammaChain(process), spread(rows)
    batch = {"ids": Chain().sample(rows)}
    valid = torch.rand((rows, L), generator=seeded(4)) < 0.6 if holes else torch.ones(rows, L, dtype=torch.bool)
    valid[:, 0] = True
    if holes:
        batch["valid"] = valid
    inner = [schedule.tensors[name] for name in ("slopes", "shifts", "heights")]
    others = [schedule.tensors["ends"], table]
    loss = objectives.get("plaid")(denoiser, process, batch, u, seeded())
    got = gradients(loss.value[valid], [*inner, *others])

    t, weight = process.times(u)
    gamma, d_gamma = process.gamma(t)
    z = process.noised(process.codebook[batch["ids"]], gamma, seeded())
    said = ask(denoiser, process, z, t, {"gamma": gamma})
    diffusion = process.vlb(((process.codebook[batch["ids"]] - said.x) ** 2).sum(-1), gamma, d_gamma)
    row = (diffusion * valid).sum(1) / valid.sum(1)
    squares = (weight * (t > 0) * row**2 / math.log(V))[:, None].expand(-1, L)[valid]
    start = -8 * said.logp.gather(-1, batch["ids"][..., None])[..., 0]
    value = torch.where(t[:, None] == 0, start, weight[:, None] * diffusion) + process.prior_kl(batch["ids"])
    torch.testing.assert_close(loss.value, value, rtol=1e-12, atol=1e-12)
    expected = [*gradients(squares, inner), *gradients(value[valid], others)]
    for one, other in zip(got, expected, strict=True):
        assert one is not None
        assert other is not None
        assert other.abs().max() > 1e-8
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * other.abs().max().item())


# ---------------------------------------------------------------------------------------------- self-conditioning


def transformer(head: str | None = None, schedule: str = "linear_gamma", seed: int = 0, **options) -> Transformer:
    """A model of depth 1 that conditions on itself, with a learned codebook; no weight is zero, float64."""
    torch.manual_seed(seed)
    process = processes.gaussian(sphere(), "vp", schedule, learned=True, normalise=True)
    reads = "vectors" if head else "mixture"
    options = {"self_conditioned": True, "reads": reads, **options}
    config = TransformerConfig(process.to_dict(), depth=1, time_conditioned=True, head=head, **options)
    start = {f"schedule_{name}": one for name, one in Plaid.start(0).items()} if schedule == "plaid" else {}
    model = Transformer(config, {"codebook": process.table, **start}).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("codebook", "schedule")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def model_for(name: str, **options) -> Transformer:
    return transformer("v" if name in SQUARED else None, "plaid" if name == "plaid" else "linear_gamma", **options)


def evaluated(model: Transformer, name: str, ids: Tensor, u: Tensor, rows: list[int], **options):
    process = model.process
    generators = row_generators(9, rows=rows)
    return objectives.get(name, **options)(model, process, {"ids": ids[rows]}, u[rows], generators)


@pytest.mark.parametrize("reads", ["mixture", "vectors"])
def test_rows_asked_again_teach_plaids_denoiser_alone(reads):
    """No gradient of theirs reaches codebook or schedule; that of the others does, as if they were alone."""
    model = transformer(schedule="plaid", reads=reads)
    ids, u, rows = Chain().sample(12), spread(12), list(range(12))
    kept = [one for name, one in model.named_parameters() if name.startswith(("codebook", "schedule"))]
    weights = [one for name, one in model.named_parameters() if not name.startswith(("codebook", "schedule"))]
    assert len(kept) == 5
    whole = evaluated(model, "plaid", ids, u, rows, self_condition=1.0)
    assert all(one is None or (one == 0).all() for one in gradients(whole.value, kept))
    assert all(one is not None and (one != 0).any() for one in gradients(whole.value, weights))

    again = (rand((12,), row_generators(9, rows=rows)) < 0.5).tolist()
    assert 0 < sum(again) < 12
    some, none = (evaluated(model, "plaid", ids, u, rows, self_condition=share) for share in (0.5, 0.0))
    alone = [row for row in rows if not again[row]]
    torch.testing.assert_close(some.value[alone], none.value[alone], rtol=1e-12, atol=1e-12)
    for got, expected in zip(gradients(some.value, kept), gradients(none.value[alone], kept), strict=True):
        assert got is not None
        assert expected is not None
        assert (expected != 0).any()
        expected = expected * (len(alone) / 12)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("name", NAMES)
def test_self_conditioning_is_an_option_of_every_objective(name):
    """The share decides how many rows are told; without it the default is some; models untold of it do not notice."""
    model, ids, u, rows = model_for(name), Chain().sample(16), spread(16), list(range(16))
    never, always, usual = (
        evaluated(model, name, ids, u, rows, self_condition=share).value.detach() for share in (0.0, 1.0, None)
    )
    differ = (never != always).any(1)
    assert differ.all()
    told = (usual != never).any(1)
    assert torch.equal(told, rand((16,), row_generators(9, rows=rows)) < (0.25 if name == "plaid" else 0.5))
    torch.testing.assert_close(usual[told], always[told], rtol=1e-10, atol=1e-10)
    plain = model_for(name, self_conditioned=False)
    found = [evaluated(plain, name, ids, u, rows, self_condition=share).value for share in (0.0, 1.0)]
    assert torch.equal(*found)


def test_a_guess_is_the_first_answer_of_the_rows_that_are_told():
    """Only they are asked twice; the others are told zeros; no gradient enters the guess."""
    process, ids = noise(), Chain().sample(12)
    denoiser = Regressor(process, self_conditioned=True)
    loss = objectives.get("analog_bits")(denoiser, process, {"ids": ids}, spread(12), row_generators(2, rows=range(12)))
    again = rand((12,), row_generators(2, rows=range(12))) < 0.5
    (first, zeros), (second, guess) = denoiser.calls
    assert (first[0], second[0]) == (int(again.sum()), 12)
    assert (zeros == 0).all()
    assert not guess.requires_grad
    assert torch.equal((guess != 0).any(2).any(1), again)
    generators = row_generators(2, rows=range(12))
    rand((12,), generators)
    t = process.times(spread(12))[0]
    z = process.corrupt(ids, t, generators)
    gamma = process.gamma(t)[0]
    answered = denoiser(z, t, {"gamma": gamma}, vectors=True)
    torch.testing.assert_close(guess[again], answered[again].detach(), rtol=1e-12, atol=1e-12)
    x = denoiser(z, t, {"gamma": gamma, "guess": guess}, vectors=True)
    torch.testing.assert_close(loss.value, (process.codebook[ids] - x).square().mean(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_those_beside_it(name):
    """From the same generator of its own a row's loss, bound and terms are the same alone; 1e-10."""
    model, ids, u = model_for(name), Chain().sample(6), spread(6)
    whole = evaluated(model, name, ids, u, list(range(6)))
    for row in range(6):
        alone = evaluated(model, name, ids, u, [row])
        for one, other in ((alone.value, whole.value), (alone.bound, whole.bound)):
            torch.testing.assert_close(one[0], other[row], rtol=1e-10, atol=1e-10)
        for term, value in alone.terms.items():
            torch.testing.assert_close(value[0], whole.terms[term][row], rtol=1e-10, atol=1e-10)


# -------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("name", "schedule", "is_vectors", "said"),
    [
        ("cdcd", "linear_gamma", True, "predicts vectors.*set model.head=plain"),
        ("plaid", "linear_gamma", True, "predicts vectors"),
        ("diffusion_lm", "sqrt", False, "names tokens.*set model.head to one of x0"),
        ("analog_bits", "sqrt", False, "names tokens"),
        ("cdcd", "plaid", False, "process.schedule='plaid'.*use objective plaid, or a fixed schedule"),
        ("nelbo", "adaptive", False, "process.schedule='adaptive'.*use objective cdcd or langflow"),
        ("plaid", "gumbel", False, "process.schedule='gumbel'"),
    ],
)
def test_what_does_not_go_together_is_refused(name, schedule, is_vectors, said):
    process = processes.gaussian(sphere(), "vp", schedule)
    with pytest.raises(ValueError, match=said):
        objectives.check(name, process, Facts(posterior="full", time_conditioned=True, vectors=is_vectors))


@pytest.mark.parametrize("name", NAMES)
def test_only_vectors_are_trained_so(name):
    masked = processes.masked(V)
    with pytest.raises(ValueError, match="gaussian"):
        objectives.check(name, masked, Facts())
    with pytest.raises(ValueError, match=r"process\.name=gaussian"):
        objectives.get(name)(ExactChain(noise(), Chain()), masked, {"ids": Chain().sample(2)}, spread(2))


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="no option 'target'"):
        objectives.get("cdcd", target="v")
    with pytest.raises(ValueError, match="unknown prediction 'vv'"):
        objectives.get("analog_bits", target="vv")(
            Regressor(noise()), noise(), {"ids": Chain().sample(2)}, spread(2), seeded()
        )


@pytest.mark.parametrize(
    ("name", "schedule", "is_vectors"),
    [
        *[(name, schedule, False) for name in ("cdcd", "langflow") for schedule in ("edm", "adaptive", "gumbel")],
        *[("plaid", "linear_gamma", False), ("plaid", "plaid", False), ("nelbo", "cosine", True)],
        *[("diffusion_lm", "sqrt", True), ("analog_bits", "cosine", True), ("cross_entropy", "edm", False)],
    ],
)
def test_what_goes_together_is_not(name, schedule, is_vectors):
    process = processes.gaussian(sphere(), "vp", schedule)
    objectives.check(name, process, Facts(posterior="full", time_conditioned=True, vectors=is_vectors))


@pytest.mark.parametrize(
    ("name", "normalise", "is_vectors", "said"),
    [
        ("analog_bits", True, True, "fall together.*diffusion_lm"),
        ("cdcd", False, False, "learns freely.*process.normalise=true"),
        ("langflow", False, False, "learns freely"),
        ("cross_entropy", False, False, "learns freely"),
    ],
)
def test_a_codebook_that_would_degenerate_is_refused(name, normalise, is_vectors, said):
    facts = Facts(posterior="full", time_conditioned=True, vectors=is_vectors)
    with pytest.raises(ValueError, match=said):
        objectives.check(name, processes.gaussian(sphere(), learned=True, normalise=normalise), facts)
    objectives.check(name, processes.gaussian(sphere(), normalise=normalise), facts)


def test_self_conditioning_of_a_model_that_is_told_nothing_is_refused():
    facts = Facts(posterior="full", time_conditioned=True)
    with pytest.raises(ValueError, match=r"loss\.self_condition=0\.3.*model\.self_conditioned=True"):
        objectives.check("nelbo", noise(), facts, self_condition=0.3)


@pytest.mark.parametrize("name", ["nelbo", "cross_entropy"])
def test_the_plain_objectives_teach_the_first_answer_too(name):
    """Half the rows are asked once, told zeros, unless another share is asked for."""
    model, ids, u, rows = model_for("cdcd"), Chain().sample(16), spread(16), list(range(16))
    never, always, usual = (
        evaluated(model, name, ids, u, rows, self_condition=share).value.detach() for share in (0.0, 1.0, None)
    )
    told = rand((16,), row_generators(9, rows=rows)) < 0.5
    assert torch.equal((usual != never).any(1), told)
    torch.testing.assert_close(usual[told], always[told], rtol=1e-10, atol=1e-10)
