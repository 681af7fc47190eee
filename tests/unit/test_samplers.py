"""Samplers by name: every name runs, every option matters, and what does not fit is refused with a way out."""

import inspect

import pytest
import torch

from redraft import processes, sampling
from redraft.sampling import SAMPLERS, samplers
from redraft.schedules import GammaSchedule

CODES = torch.tensor([[-1.0, 0.2], [0.3, -1.0], [1.0, 0.7]], dtype=torch.float64)
PROCESSES = {
    "masked": lambda: processes.masked(3),
    "uniform": lambda: processes.uniform(3),
    "hybrid": lambda: processes.hybrid(3),
    "gaussian": lambda: processes.gaussian(CODES, schedule=GammaSchedule(gamma_min=-6.0)),
    "d3pm": lambda: processes.d3pm(3, "gaussian", 6),
    "spindle": lambda: processes.spindle(torch.tensor([0.5, -0.5, 0.0])),
    "absorbing": lambda: processes.d3pm(3, "absorbing", 6),
}
MASKED = {"masked", "absorbing"}
TOKENS = set(PROCESSES) - {"gaussian"}
FITS = {
    "ancestral": set(PROCESSES),
    "analytic": set(PROCESSES),
    "cached": set(PROCESSES),
    "euler": {"masked", "uniform", "hybrid", "gaussian"},
    "ddim": {"gaussian"},
    "heun": {"gaussian"},
    "churn": {"gaussian"},
    "churn:order=1,clamp=true": {"gaussian"},
    "first_hitting": MASKED,
    "greedy_tail": TOKENS,
    "psi": {"masked", "absorbing", "uniform", "hybrid"},
    "psi:rule=constant": TOKENS,
    "remdm": MASKED,
    "remdm:strategy=loop": MASKED,
    "forward_backward": MASKED,
    "dfm": MASKED,
    "gibbs": TOKENS - {"spindle"},
    "informed": TOKENS - {"spindle"},
    "renoise": {"uniform"},
    "wino": MASKED,
    "confidence": MASKED,
    "left_to_right": MASKED,
    "low_confidence": MASKED,
    "random_order": MASKED,
    "sequential": MASKED,
    "positional": MASKED,
    "dilated": MASKED,
    "origin": MASKED,
    "maskgit_plus": MASKED,
    "topk_margin": MASKED,
    "entropy": MASKED,
    "maskgit": MASKED,
    "threshold": MASKED,
    "factor": MASKED,
    "entropy_bounded": MASKED,
    "klass": MASKED,
    "hierarchical": MASKED,
}


class Denoiser:
    """Something of a context, and of a time: enough for every option to show."""

    def __init__(self, process) -> None:
        self.process = process
        self.facts = processes.Facts(time_conditioned=True, mask_id=process.mask_id, caches=True)

    def __call__(self, z, t, cond=None):
        if "attend" in (cond or {}):  # a shadow beside the canvas: no position reads itself here anyway
            return self(z[:, : z.shape[1] // 2], t).repeat(1, 2, 1)
        level = z.double() if z.dim() == 2 else 3 * z.sum(-1)
        near = level.roll(1, 1) + 2 * level.roll(-1, 1) + torch.arange(level.shape[1])
        return torch.sin(near[..., None] * torch.arange(1, 4) + t[:, None, None]).log_softmax(-1)


def draw(process: str, sampler: str, **options) -> torch.Tensor:
    made = PROCESSES[process]()
    options = {"length": 12, "num": 4, "steps": 6, **options}
    return sampling.sample(made, Denoiser(made), sampler=sampler, **options).tokens


def test_every_name_is_tried_here():
    assert {name.partition(":")[0] for name in FITS} == set(SAMPLERS)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampler", FITS)
def test_a_sampler_writes_tokens_or_refuses_the_process(sampler, process):
    """A refusal names the process and a sampler that fits it."""
    if process in FITS[sampler]:
        tokens = draw(process, sampler)
        assert tokens.shape == (4, 12)
        assert tokens.max() < 3
    else:
        name = PROCESSES[process]().name
        with pytest.raises(ValueError, match=rf"{name} process .*use '(ancestral|psi|gibbs)"):
            draw(process, sampler)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_sampler_a_refusal_names_fits_or_names_one_that_does(process):
    for sampler in FITS:
        name, last = sampler, None
        for _ in range(4):
            try:
                draw(process, name)
            except ValueError as error:
                last, name = name, str(error).rpartition("use '")[2].rstrip("'")
                assert name != last
            else:
                break
        else:
            pytest.fail(f"{sampler} for {process}: the advice leads nowhere")


VECTORS = ["euler", "ddim", "heun", "churn"]
OPTIONS = [
    ("hybrid", "psi:eta=0.3", "psi:eta=0.9"),
    ("hybrid", "psi:eta=0.3", "psi:rule=constant,eta=0.3"),
    ("masked", "psi:eta=0.3", "psi:rule=cap,eta=0.3"),
    ("masked", "remdm:eta=0.3", "remdm:eta=0.9"),
    ("masked", "remdm:eta=0.3", "remdm:strategy=rescale,eta=0.3"),
    ("masked", "remdm:strategy=conf", "remdm:strategy=conf,eta=0.1"),
    ("masked", "remdm:strategy=conf", "remdm:strategy=rescale,eta=1"),
    ("masked", "remdm:strategy=loop,eta=0.5", "remdm:strategy=loop"),
    ("masked", "remdm:strategy=loop,eta=0.5", "remdm:strategy=loop,eta=0.5,t_on=0.9"),
    ("masked", "remdm:strategy=loop,eta=0.5", "remdm:strategy=loop,eta=0.5,t_off=0.3"),
    ("masked", "remdm:strategy=loop,eta=0.5", "remdm:strategy=loop,eta=0.5,alpha_on=0.3"),
    ("masked", "dfm", "dfm:beta=1"),
    ("masked", "low_confidence", "low_confidence:of=drawn"),
    ("masked", "threshold:tau=0.5", "threshold:tau=0.6"),
    ("masked", "threshold:tau=0.5", "threshold:tau=0.5,of=drawn"),
    ("masked", "positional", "positional:decay=2"),
    ("masked", "positional", "positional:alpha=0.2"),
    ("masked", "origin", "origin:eps=0.5"),
    ("masked", "maskgit_plus", "maskgit_plus:eps=0.5"),
    ("masked", "maskgit_plus", "maskgit_plus:alg_temp=1"),
    ("masked", "topk_margin", "topk_margin:eps=0.5"),
    ("masked", "topk_margin", "topk_margin:alg_temp=1"),
    ("masked", "entropy", "entropy:eps=0.5"),
    ("masked", "entropy", "entropy:alg_temp=1"),
    ("masked", "maskgit", "maskgit:schedule=square"),
    ("masked", "maskgit:schedule=pow,exponent=1", "maskgit:schedule=pow,exponent=4"),
    ("masked", "maskgit", "maskgit:noise=0"),
    ("masked", "threshold:tau=1,of=drawn", "threshold:tau=1,of=drawn,strict=false"),
    ("masked", "threshold", "threshold:least=4"),
    ("masked", "threshold:tau=0.6", "threshold:tau=0.6,whole=true"),
    ("masked", "threshold:tau=0.5", "threshold:tau=0.5,gap=4"),
    ("masked", "factor", "factor:factor=2.5"),
    ("masked", "factor", "factor:of=drawn"),
    ("masked", "factor:factor=2", "factor:factor=2,gap=4"),
    ("masked", "entropy_bounded", "entropy_bounded:gamma=2"),
    ("masked", "entropy_bounded", "entropy_bounded:of=drawn"),
    ("masked", "entropy_bounded:gamma=2", "entropy_bounded:gamma=2,gap=4"),
    ("masked", "klass:tau=0.4,kl=0.5,history=1", "klass:tau=0.8,kl=0.5,history=1"),
    ("masked", "klass:tau=0.4,kl=0.5,history=1", "klass:tau=0.4,kl=0.01,history=1"),
    ("masked", "klass:tau=0.4,kl=0.5,history=1", "klass:tau=0.4,kl=0.5,history=4"),
    ("masked", "klass:tau=0.4,kl=0.5,history=1", "klass:tau=0.4,kl=0.5,history=1,of=drawn"),
    ("masked", "klass:tau=0.4,kl=0.5,history=1", "klass:tau=0.4,kl=0.5,history=1,gap=4"),
    ("masked", "hierarchical:tau=0.7,low=0.4", "hierarchical:tau=0.5,low=0.4"),
    ("masked", "hierarchical:tau=0.7,low=0.4", "hierarchical:tau=0.7,low=0.6"),
    ("masked", "hierarchical:tau=0.7,low=0.4", "hierarchical:tau=0.7,low=0.4,of=drawn"),
    ("masked", "hierarchical:tau=0.7,low=0.4", "hierarchical:tau=0.7,low=0.4,gap=4"),
    ("masked", "wino", "wino:tau=0.2"),
    ("masked", "wino:tau=0", "wino:tau=0,verify=0.2"),
    ("masked", "wino:tau=0,least=1", "wino:tau=0,least=1,share=0.3"),
    ("masked", "wino:tau=0,share=0.1", "wino:tau=0,share=0.1,least=1"),
    ("masked", "wino:tau=0", "wino:tau=0,most=5"),
    ("uniform", "renoise", "renoise:hot=2"),
    ("uniform", "renoise", "renoise:cold=1"),
    ("uniform", "renoise", "renoise:gamma=2"),
    ("uniform", "renoise:gamma=3,sure=9", "renoise:gamma=3,sure=9,stable=2"),
    ("uniform", "renoise:gamma=3", "renoise:gamma=3,sure=9"),
    ("uniform", "gibbs", "gibbs:k=3"),
    ("uniform", "informed", "informed:k=1"),
    ("uniform", "informed", "informed:tau=0"),
    ("uniform", "informed:tau=0", "informed:tau=0,score=margin"),
    ("gaussian", "ddim", "ddim:eta=0.5"),
    ("gaussian", "churn", "churn:churn=0.4"),
    ("gaussian", "churn:churn=0", "churn:churn=0,order=1"),
    *(("gaussian", name, f"{name}:{one}") for name in VECTORS for one in ("tau=0.5", "clamp=true")),
]


@pytest.mark.parametrize(("process", "one", "other"), OPTIONS)
def test_every_option_matters(process, one, other):
    """From the same seeds, other texts."""
    assert not torch.equal(*(draw(process, name, num=16, temperature=0.7, top_p=0.8) for name in (one, other)))


def test_no_option_is_left_out():
    tried = {(name.partition(":")[0], part.partition("=")[0]) for _, *pair in OPTIONS for name in pair
             for part in filter(None, name.partition(":")[2].split(","))}  # fmt: skip
    there = {
        (name, option)
        for name, function in SAMPLERS.items()
        for option, one in inspect.signature(function).parameters.items()
        if one.kind is one.KEYWORD_ONLY
    }
    assert tried == there


@pytest.mark.parametrize("sampler", ["ancestral", "euler", "first_hitting", "psi", "remdm", "gibbs", "informed", "dfm"])
def test_temperature_and_top_p_reach_every_sampler(sampler):
    """Both sharpen; with only the likeliest token kept, whichever way, the same texts are written."""
    plain = draw("masked", sampler, num=16)
    assert not torch.equal(plain, draw("masked", sampler, num=16, temperature=0.3))
    assert not torch.equal(plain, draw("masked", sampler, num=16, top_p=0.5))
    kept = draw("masked", sampler, num=16, top_p=1e-6)
    assert torch.equal(kept, draw("masked", sampler, num=16, temperature=0.0))


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("remdn", "unknown sampler 'remdn'; did you mean 'remdm'"),
        ("remdm:etta=1", "unknown option of sampler 'remdm': 'etta'; did you mean 'eta'"),
        ("remdm:eta=much", "eta='much' should be like 0.5"),
        ("remdm:strategy=capp", "unknown strategy of remdm 'capp'; did you mean 'cap'"),
        ("remdm:eta=2", r"eta=2.0 is outside \[0, 1\]"),
        ("remdm:t_on=0.5", "t_on of remdm: options of strategy=loop, not of 'cap'"),
        ("remdm:strategy=loop,t_on=0.5,t_off=0.6", "0 < t_off < t_on < 1"),
        ("remdm:strategy=loop,alpha_on=1", r"alpha_on=1.0 of remdm is outside \(0, 1\)"),
        ("psi:rule=captain", "unknown rule of psi 'captain'; did you mean 'cap'"),
        ("psi:eta=-1", r"eta=-1.0 is outside \[0, 1\]"),
        ("dfm:beta=-1", "beta=-1.0 of dfm"),
        ("gibbs:k=0", "k=0 of gibbs"),
        ("gibbs:k=1.5", "k='1.5' should be like 1"),
        ("informed:k=0", "k=0, tau=1.0 of informed"),
        ("informed:score=high", "unknown score of informed 'high'"),
        ("ancestral:k=1", "unknown option of sampler 'ancestral': 'k'"),
    ],
)
def test_mistakes_are_named(sampler, message):
    with pytest.raises(ValueError, match=message):
        draw("masked", sampler)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("ddim:eta=2", r"eta=2.0 is outside \[0, 1\]"),
        ("ddim:clamp=maybe", "clamp='maybe' should be like False"),
        ("heun:tau=0", "tau=0.0: pass a temperature above 0"),
        ("heun:eta=1", "unknown option of sampler 'heun': 'eta'"),
        ("churn:churn=-0.1", "churn=-0.1 of churn: pass 0"),
        ("churn:churn=nan", "churn=nan of churn: pass 0"),
        ("churn:order=3", "order=3 of churn: pass 1"),
        ("churn:order=1.5", "order='1.5' should be like 2"),
    ],
)
def test_mistakes_among_vectors_are_named(sampler, message):
    with pytest.raises(ValueError, match=message):
        draw("gaussian", sampler)


@pytest.mark.parametrize("option", ["tau=0.9", "clamp=True"])
def test_euler_has_options_of_vectors_that_tokens_refuse(option):
    with pytest.raises(ValueError, match=f"euler:.*{option}.* masked process is not: use 'euler'"):
        draw("masked", f"euler:{option}")


def test_a_switch_is_written_true_or_false():
    assert torch.equal(draw("gaussian", "ddim:clamp=false"), draw("gaussian", "euler"))
    assert torch.equal(draw("gaussian", "ddim:clamp=True"), draw("gaussian", "euler:clamp=true"))


def test_names_and_functions_are_the_same():
    assert torch.equal(draw("masked", "remdm"), draw("masked", samplers.remdm))
    assert torch.equal(draw("hybrid", "psi:eta=0.02"), draw("hybrid", "psi"))
    assert torch.equal(draw("masked", "analytic"), draw("masked", "ancestral"))


def test_rows_of_a_draw():
    """A part of a batch keeps its own generators; a single generator, or none, stays what it is."""
    frozen = torch.tensor([[True], [False], [True]])
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    part = samplers.Draw(frozen, generators).rows(torch.tensor([2, 1]))
    assert part.frozen.tolist() == [[True], [False]]
    assert part.generator == [generators[2], generators[1]]
    assert samplers.Draw(frozen, None).rows(torch.tensor([0])).generator is None


LEAKING = ["ancestral", "first_hitting", "confidence", "psi", "remdm", "gibbs", "informed", "left_to_right"]


@pytest.mark.parametrize("sampler", LEAKING)
def test_a_mask_inside_the_vocabulary_is_never_written(sampler):
    """A plain head leaves mass on [MASK], here a token's id: texts are made of the others all the same."""

    class Plain:
        facts = processes.Facts(mask_id=1)

        def __call__(self, z, t, cond=None):
            return torch.tensor([0.0, 5.0, 0.0, 0.0]).log_softmax(-1).expand(*z.shape, 4)

    made = sampling.sample(processes.masked(4, mask_id=1), Plain(), length=8, num=4, steps=4, sampler=sampler)
    assert not bool((made.tokens == 1).any())


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_named(temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature}"):
        draw("masked", "ancestral", temperature=temperature)


@pytest.mark.parametrize("schedule", ["cosine", "polynomial", "geometric"])
def test_an_autoregressive_denoiser_writes_one_token_a_step_on_any_schedule(schedule):
    process = processes.masked(3, schedule)

    class Successor:
        """The token after z_{i-1}, which a masked one would not tell."""

        facts = processes.Facts(mask_id=3, attention="causal")

        def __call__(self, z, t, cond=None):
            before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
            following = torch.where(before == 3, 0, (before + 1) % 3)
            return torch.nn.functional.one_hot(following, 3).double().log()

    left: list[int] = []
    made = sampling.sample(process, Successor(), length=7, callback=lambda step: left.append(int((step.z == 3).sum())))
    assert left == [6, 5, 4, 3, 2, 1, 0]
    assert made.tokens.tolist() == [[1, 2, 0, 1, 2, 0, 1]]


@pytest.mark.parametrize("sampler", ["confidence", "left_to_right"])
def test_a_misfit_is_named_before_the_denoiser_is_asked(sampler):
    """At t = 1 a hybrid denoiser of the full posterior says nothing of given tokens, which is no number to draw by."""

    class Full:
        facts = processes.Facts(mask_id=3, posterior="full")

        def __call__(self, z, t, cond=None):
            return torch.zeros(*z.shape, 3).log_softmax(-1)

    with pytest.raises(ValueError, match="fixed masks"):
        sampling.sample(processes.hybrid(3), Full(), prompt=[0, 1], length=4, steps=2, sampler=sampler)
