"""The transformer among vectors: what it reads, what its heads say, what it is told, and a codebook that it learns."""

import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from redraft import objectives, processes
from redraft.data.toy import sentences
from redraft.models import Transformer, TransformerConfig, folder, heads
from redraft.processes import Gaussian
from redraft.randomness import row_generators
from redraft.recipes.config import Config, override
from redraft.sampling import sample
from redraft.schedules import GammaSchedule
from redraft.training import parallel
from redraft.training.loop import State

K, D, B, L = 11, 6, 3, 5
HEADS = ["plain", *heads.VECTORS]
READS = ["mixture", "vectors"]
CODES = F.normalize(torch.randn(K, D, generator=torch.Generator().manual_seed(1)), dim=-1)
T = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


def noise(schedule: str = "linear_gamma", **options) -> Gaussian:
    return processes.gaussian(CODES, "vp", GammaSchedule(schedule, -3.0, 5.0), **options)


def build(process: Gaussian | None = None, double: bool = True, fresh: bool = False, **options) -> Transformer:
    """A model of depth 1, told the time, none of whose weights are zero unless it is ``fresh``; float64 if ``double``.

    A codebook among the weights is left as it is.
    """
    process = process or noise()
    torch.manual_seed(0)
    config = TransformerConfig(process.to_dict(), **{"depth": 1, "time_conditioned": True, **options})
    model = Transformer(config, {"codebook": process.table})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "codebook" and not fresh:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return (model.double() if double else model).eval()


def noisy(model: Transformer, t=T, seed: int = 0):
    ids = torch.randint(0, K, (B, L), generator=torch.Generator().manual_seed(seed))
    return ids, model.process.corrupt(ids, t, torch.Generator().manual_seed(seed)).detach()


each = pytest.mark.parametrize(("head", "reads"), [(head, reads) for head in HEADS for reads in READS])


# ---------------------------------------------------------------------------------------------------- what it says


@each
def test_every_head_names_tokens_and_most_say_vectors(head, reads):
    """log p (B, L, K) sums to 1; a head of vectors says x_hat (B, L, D), of which log p is the rounding."""
    model = build(head=head, reads=reads)
    _, z = noisy(model)
    logp = model(z, T)
    assert logp.shape == (B, L, K)
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(B, L).double())
    assert model.facts.vectors == (head in heads.VECTORS)
    assert model.facts.posterior == "full"
    if not model.facts.vectors:
        with pytest.raises(ValueError, match=r"vectors=True asked of a model that names tokens: set model\.head to"):
            model(z, T, vectors=True)
        return
    x = model(z, T, vectors=True)
    assert x.shape == (B, L, D)
    torch.testing.assert_close(model.process.rounding(x), logp, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", heads.VECTORS)
def test_a_head_says_what_it_is_called(head):
    """x_hat is ``denoised`` of the last layer's numbers: with a zero layer, of zeros."""
    model = build(head=head, fresh=True)
    _, z = noisy(model)
    wanted = model.process.denoised(torch.zeros_like(z), head, z.double(), model.process.gamma(T)[0])
    torch.testing.assert_close(model(z, T, vectors=True), wanted.double(), rtol=0, atol=1e-12)
    ones = build(head=head, fresh=True)
    torch.nn.init.ones_(ones.head.weight)
    # a layer of ones says the same number D times: what it adds to x_hat is b of x = a u + b f
    added = ones(z, T, vectors=True) - wanted
    torch.testing.assert_close(added, added[..., :1].expand_as(added), rtol=0, atol=1e-9)
    assert added.abs().max() > 1e-3


def test_a_fresh_plain_model_says_the_evidence_alone():
    for reads in READS:
        model = build(reads=reads, fresh=True)
        _, z = noisy(model)
        alone = model.process.output_prior(z.double(), T).log_softmax(-1)
        torch.testing.assert_close(model(z, T), alone, rtol=0, atol=1e-12)


@each
def test_where_is_the_full_output_there(head, reads):
    model = build(head=head, reads=reads, self_conditioned=True)
    _, z = noisy(model)
    where = torch.rand(B, L, generator=torch.Generator().manual_seed(2)) < 0.5
    assert 0 < int(where.sum()) < B * L
    guess = torch.randn(B, L, D, generator=torch.Generator().manual_seed(3)).double()
    times = [T, T[:, None] + torch.linspace(0, 0.1, L)]
    for t in times:
        for cond in (None, {"guess": guess}, {"gamma": model.process.gamma(t)[0] + 0.5}):
            torch.testing.assert_close(model(z, t, cond, where), model(z, t, cond)[where], rtol=1e-10, atol=1e-10)
            if model.facts.vectors:
                some, whole = model(z, t, cond, where, vectors=True), model(z, t, cond, vectors=True)
                torch.testing.assert_close(some, whole[where], rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------- what it is told


@each
def test_gamma_stands_in_for_t(head, reads):
    """Told the gamma of t, the model says what it says at t, whatever t it is given; told another, something else."""
    model = build(noise("cosine"), head=head, reads=reads)
    _, z = noisy(model)
    gamma = model.process.gamma(T)[0]
    logp = model(z, T)
    other = torch.full_like(T, 0.3)
    torch.testing.assert_close(model(z, other, {"gamma": gamma}), logp, rtol=1e-10, atol=1e-10)
    assert (model(z, T, {"gamma": gamma + 0.5}) - logp).abs().max() > 1e-3
    per_position = gamma.expand(B, L).contiguous()
    torch.testing.assert_close(model(z, other, {"gamma": per_position}), logp, rtol=1e-10, atol=1e-10)


@each
def test_gamma_has_a_gradient(head, reads):
    model = build(head=head, reads=reads)
    _, z = noisy(model)
    gamma = model.process.gamma(T)[0].requires_grad_()
    said = model(z, T, {"gamma": gamma}, vectors=True) if model.facts.vectors else model(z, T, {"gamma": gamma})
    (gradient,) = torch.autograd.grad(said[..., 0].sum(), gamma)
    assert (gradient.abs() > 0).all()


@each
def test_a_time_per_position(head, reads):
    """(B, L) of one value is (B,); otherwise a position is read and said at its own time."""
    model = build(head=head, reads=reads)
    _, z = noisy(model)
    logp = model(z, T)
    torch.testing.assert_close(model(z, T[:, None].expand(B, L)), logp, rtol=1e-10, atol=1e-10)
    own = T[:, None].repeat(1, L)
    own[:, -1] = 0.3
    assert (model(z, own) - logp)[:, -1].abs().max() > 1e-3


@each
def test_one_network_serves_all_kinds(head, reads):
    """VP, VE and RF are one process in other units: the same weights say the same of the same u = z / alpha."""
    said = []
    for kind in ("vp", "ve", "rf"):
        model = build(processes.gaussian(CODES, kind, GammaSchedule("linear_gamma", -3.0, 5.0)), head=head, reads=reads)
        alpha = model.process.scales(model.process.gamma(T)[0])[0][..., None]
        u = model.process.codebook[:L].double() + torch.linspace(-1, 1, D)
        said.append(model(alpha * u.expand(B, -1, -1), T))
    for other in said[1:]:
        torch.testing.assert_close(other, said[0], rtol=1e-9, atol=1e-9)


def test_the_time_is_told_as_a_place_between_the_ends():
    """A schedule may change: what is told is gamma, so equal noise is read equally whatever t it is reached at."""
    linear, cosine = build(noise(), reads="vectors"), build(noise("cosine"), reads="vectors")
    gamma = torch.tensor([[-1.0], [0.0], [2.0]]).double()
    _, z = noisy(linear)
    a, b = (model(z, T, {"gamma": gamma}) for model in (linear, cosine))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    t = (gamma[:, 0] + 3) / 8
    torch.testing.assert_close(linear(z, t), a, rtol=0, atol=1e-12)


@each
def test_a_guess_is_read_once_it_has_weights(head, reads):
    """Self-conditioning starts at nothing, zeros are no guess, and then a guess is read at its own position's scale."""
    guess = torch.randn(B, L, D, generator=torch.Generator().manual_seed(3)).double()
    fresh = build(head=head, reads=reads, self_conditioned=True, fresh=True)
    assert fresh.facts.self_conditioned
    assert not fresh.reading.guess.weight.any()
    torch.nn.init.normal_(fresh.head.weight)
    _, z = noisy(fresh)
    assert torch.equal(fresh(z, T, {"guess": guess}), fresh(z, T))
    model = build(head=head, reads=reads, self_conditioned=True)
    logp = model(z, T)
    assert torch.equal(model(z, T, {"guess": torch.zeros_like(guess)}), logp)
    assert (model(z, T, {"guess": guess}) - logp).abs().max() > 1e-3


def test_a_guess_is_read_in_units_of_the_codebook():
    """Codes ten times as long, under noise ten times as wide: a guess ten times as long is read as the same."""
    small, large = noise(), processes.gaussian(10 * CODES, schedule=GammaSchedule(gamma_min=-3.0, gamma_max=5.0))
    weights = build(small, self_conditioned=True).state_dict()
    guess = torch.randn(B, L, D, generator=torch.Generator().manual_seed(3)).double()
    read = []
    for process, scale in ((small, 1.0), (large, 10.0)):
        model = build(process, self_conditioned=True, reads="mixture")
        model.load_state_dict({**weights, "codebook": process.table.double()})
        evidence = torch.zeros(B, L, K).double()
        z = torch.zeros(B, L, D).double()
        gamma = torch.zeros(B, 1).double()
        read.append(model.reading(z, gamma, model.process, model.embed.weight, evidence, scale * guess))
    torch.testing.assert_close(read[0], read[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reads": "vectors", "time_conditioned": False}, r"reads='vectors' .* set time_conditioned, or reads='mix"),
        ({"reads": "vector"}, "unknown reads 'vector'; did you mean 'vectors'"),
        ({"head": "score"}, "head 'score' with a gaussian process: scores belong to .*; use another head"),
        ({"head": "epsilom"}, "unknown head 'epsilom'; did you mean 'epsilon'"),
        ({"attention": "causal"}, "attention='causal' with a gaussian process: it needs a masked one"),
    ],
)
def test_refused_when_built(options, said):
    with pytest.raises(ValueError, match=said):
        build(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reads": "vectors"}, "reads='vectors', self_conditioned=False with a masked process.*leave them out"),
        ({"self_conditioned": True}, "reads=None, self_conditioned=True with a masked process.*leave them out"),
        ({"head": "x0"}, "head 'x0' with a masked process: it predicts vectors, and there are none; leave head out"),
        ({"head": "edm"}, "head 'edm' with a masked process"),
    ],
)
def test_refused_among_ids(options, said):
    with pytest.raises(ValueError, match=said):
        Transformer(TransformerConfig(processes.masked(K).to_dict(), depth=1, **options))


def test_refused_when_told():
    ids = Transformer(TransformerConfig(processes.masked(K).to_dict(), depth=1))
    with pytest.raises(ValueError, match="gamma told to a model of a masked process: leave it out"):
        ids(torch.zeros(1, 2, dtype=torch.long), torch.ones(1), {"gamma": torch.zeros(1, 1)})
    model = build()
    _, z = noisy(model)
    with pytest.raises(ValueError, match=r"guess told to a model .* set model\.self_conditioned, or leave it out"):
        model(z, T, {"guess": z})


def test_low_precision_rounds_no_evidence():
    """Under bfloat16 autocast, and with weights gathered in bfloat16, a fresh model still says the exact evidence."""
    for reads in READS:
        model = build(reads=reads, double=False, fresh=True)
        _, z = noisy(model, torch.zeros(B).double())
        t = torch.zeros(B)
        wanted = model.process.output_prior(z.float(), t).log_softmax(-1)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(z, t), wanted)
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(z, t), wanted)
    for head in heads.VECTORS:
        model = build(head=head, double=False, fresh=True)
        x = model(z, T, vectors=True)
        wanted = model.process.rounding(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(z, T, vectors=True), x)
            assert torch.equal(model(z, T), wanted)


# ------------------------------------------------------------------------------------------------ codebooks, folders


@pytest.mark.parametrize("normalise", [False, True])
@each
def test_a_learned_codebook_is_a_weight(head, reads, normalise):
    """It is a parameter that the process reads, whose gradient is not zero, for every loss on vectors."""
    model = build(noise(learned=True, normalise=normalise), head=head, reads=reads)
    assert isinstance(model.codebook, torch.nn.Parameter)
    process = model.process
    assert process.table is model.codebook
    assert process.learned
    assert not isinstance(build(noise()).codebook, torch.nn.Parameter)
    ids = torch.randint(0, K, (B, L), generator=torch.Generator().manual_seed(0))
    for objective in ("nelbo", "cross_entropy"):
        model.zero_grad()
        u = torch.tensor([0.05, 0.5, 0.9])
        loss = objectives.get(objective)(model, process, {"ids": ids}, u, row_generators(0, rows=range(B)))
        loss.value.mean().backward()
        assert model.codebook.grad is not None
        # every row is a wrong answer somewhere, so every row is moved
        assert (model.codebook.grad.abs().sum(-1) > 0).all() or reads == "vectors"
        assert float(model.codebook.grad.abs().max()) > 1e-6


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("head", ["plain", "edm"])
def test_a_folder_keeps_it(head, normalise, tmp_path):
    """Saved and loaded: the same weights, the same process, the same answers; a codebook in another precision too."""
    process = processes.gaussian(3 * CODES.double(), learned=True, normalise=normalise)
    model = build(process, double=False, head=head, self_conditioned=True)
    with torch.no_grad():
        model.codebook.add_(0.1)
    _, z = noisy(model)
    folder.save(tmp_path, model.config, model.state_dict())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    again, _ = folder.load(tmp_path)
    assert isinstance(again.codebook, torch.nn.Parameter)
    assert again.process.table is again.codebook
    assert again.process.to_dict() == model.process.to_dict()
    guess = {"guess": model.process.codebook[:L].detach().expand(B, -1, -1)}
    assert torch.equal(again(z, T, guess), model(z, T, guess))
    norms = again.process.codebook.norm(dim=-1)
    assert bool(((norms - 1).abs() < 1e-5).all()) == normalise


def test_a_fixed_codebook_keeps_its_precision(tmp_path):
    """A float64 buffer is no weight: it is stored as it is, and the model's precision is that of its weights."""
    process = processes.gaussian(CODES.double() / 3)
    model = build(process, double=False)
    folder.save(tmp_path, model.config, model.state_dict())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    again, _ = folder.load(tmp_path)
    assert torch.equal(again.codebook, process.table)


def test_a_model_of_before_these_fields_is_read(tmp_path):
    """config.json without learned, normalise, power, reads and self_conditioned: the same model, the same answers."""
    model = build(double=False)
    _, z = noisy(model)
    folder.save(tmp_path, model.config, model.state_dict())
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    for field in ("reads", "self_conditioned"):
        del stored["transformer"][field]
    for field in ("learned", "normalise", "power"):
        del stored["transformer"]["process"][field]
    path.write_text(json.dumps(stored))
    again, _ = folder.load(tmp_path)
    assert torch.equal(again(z, T), model(z, T))
    assert again.process.to_dict() == {**model.process.to_dict(), "power": again.process.power}
    assert again.process.power == pytest.approx(model.process.power, rel=1e-6)
    assert set(again.state_dict()) == set(model.state_dict())


def test_transformers_reads_and_writes_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers import AutoModelForMaskedLM
    from transformers.utils import logging

    from redraft.models import hf  # noqa: F401  (registers)

    logging.disable_progress_bar()
    for process in (noise(learned=True, normalise=True), processes.gaussian(CODES.double())):
        name = f"{process.learned}"
        model = build(process, double=False, head="v", reads="vectors", self_conditioned=True)
        _, z = noisy(model)
        folder.save(tmp_path / name, model.config, model.state_dict())
        theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / name)
        assert torch.equal(theirs(z, T).logits, model(z, T))
        theirs.save_pretrained(tmp_path / f"{name}-theirs")
        again, _ = folder.load(tmp_path / f"{name}-theirs")
        assert torch.equal(again(z, T), model(z, T))
        assert torch.equal(again.codebook.detach(), model.codebook.detach())


# ------------------------------------------------------------------------------------------------ training, sampling


class Rows:
    """All sentences of the toy language."""

    ids = torch.tensor(sentences())

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices):
        return {"ids": self.ids[torch.as_tensor(indices)].numpy()}


def toy(learned: bool, normalise: bool = False) -> Gaussian:
    codes = F.normalize(torch.randn(13, 8, generator=torch.Generator().manual_seed(5)), dim=-1)
    return processes.gaussian(codes, schedule=GammaSchedule(gamma_max=4.0), learned=learned, normalise=normalise)


def config(**train) -> Config:
    usual = {"steps": 20, "batch": 32, "optimizer": "adamw", "lr": 3e-3, "warmup": 1, "threads": 1}
    return override(Config(), {f"train.{name}": value for name, value in {**usual, **train}.items()})


def test_a_step_moves_the_codebook_and_the_process_sees_it(tmp_path):
    torch.manual_seed(0)
    model = build(toy(learned=True), double=False)
    with parallel.world() as world:
        run = State(config(), model, model.process, objectives.get("nelbo"), Rows(), tmp_path, world)
        before = model.codebook.detach().clone()
        assert run.process.table is model.codebook
        run.advance(type("Never", (), {"asked": False})())
        assert (model.codebook - before).abs().max() > 1e-4
        assert run.process.table is model.codebook
        assert torch.equal(run.process.codebook, model.process.codebook)
        ids = torch.tensor([[0, 1]])
        drawn = [one.corrupt(ids, T[:1], row_generators(0, rows=[0])) for one in (run.process, model.process)]
        assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("head", "objective", "learned"),
    [("x0", "nelbo", False), ("plain", "cross_entropy", True), ("plain", "nelbo", True), ("v", "nelbo", False)],
)
def test_twenty_steps_lower_the_loss(head, objective, learned, tmp_path):
    """The same draws measured before and after, so that nothing but the weights has changed."""
    model = build(toy(learned, normalise=learned), double=False, head=head, reads="vectors", fresh=True)
    rows = Rows()

    def measure() -> float:
        u = torch.linspace(0.01, 0.99, 252)
        with torch.no_grad():
            found = objectives.get(objective)(
                model, model.process, {"ids": rows.ids}, u, row_generators(9, rows=range(252))
            )
        return float(found.value.mean())

    first = measure()
    with parallel.world() as world:
        run = State(config(), model, model.process, objectives.get(objective), rows, tmp_path, world)
        for _ in range(20):
            run.advance(type("Never", (), {"asked": False})())
    assert measure() < 0.9 * first


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("self_conditioned", [False, True])
def test_sample_writes_tokens_row_by_row(head, self_conditioned):
    """Tokens are ids, what the callback shows too; a row is what it is alone, given tokens stay."""
    model = build(head=head, reads="vectors", self_conditioned=self_conditioned)
    shown = []

    def look(step) -> None:
        shown.append(step.tokens)
        assert step.tokens.dtype == torch.long
        assert step.tokens.shape == (3, L + 1)
        assert ((step.tokens >= 0) & (step.tokens < K)).all()
        assert (step.tokens[:, 0] == 4).all()
        assert step.z.shape == (3, L + 1, D)

    drawn = sample(model.process, model, prompt=[4], length=L, num=3, steps=4, seed=7, callback=look)
    assert drawn.tokens.shape == (3, L + 1)
    assert (drawn.tokens[:, 0] == 4).all()
    assert len(shown) == 4
    assert drawn.nfe == 5  # the last names tokens at t = 0
    for row, seed in enumerate(drawn.seeds):
        alone = sample(model.process, model, prompt=[4], length=L, steps=4, seeds=[seed])
        assert torch.equal(alone.tokens[0], drawn.tokens[row])


def test_sample_tells_the_last_guess():
    """A self-conditioned model is told zeros first, and then, at each call, what it said at the one before."""
    model = build(head="x0", self_conditioned=True)
    said, told = [], []
    forward = model.forward

    def listen(z, t, cond=None, **options):
        told.append(cond["guess"])
        said.append(forward(z, t, cond, **options))
        return said[-1]

    model.forward = listen
    sample(model.process, model, length=L, steps=3, seed=0)
    assert not told[0].any()
    assert all(torch.equal(one, other.to(one)) for one, other in zip(told[1:], said[:-1], strict=True))


def test_what_is_shown_is_the_nearest_row():
    model = build(head="x0")
    shown = []
    drawn = sample(model.process, model, length=L, steps=2, seed=0, callback=lambda step: shown.append(step))
    zero = torch.zeros(1).double()
    assert torch.equal(drawn.tokens, model.process.nearest(model(shown[-1].z, zero, vectors=True)))
    assert torch.equal(drawn.tokens, model(shown[-1].z, zero).argmax(-1))
    assert asdict(model.config)["head"] == "x0"


def test_a_temperature_of_tokens_is_refused_where_vectors_are_said():
    model = build(head="x0", reads="vectors", time_conditioned=True)
    for told in ({"temperature": 0.5}, {"top_p": 0.9}):
        with pytest.raises(ValueError, match=r"and 0; 'ddim:tau=0\.9'"):
            sample(model.process, model, length=3, steps=2, **told)
