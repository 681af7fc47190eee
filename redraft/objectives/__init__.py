"""Training objectives: (denoiser, process, batch, u, generator) -> loss per token, and the bound it reports.

The loss is what gradients come from; the bound is the NELBO of the same draw, in nats per token. A reweighted loss is
not a likelihood, so the two are kept apart, and ``Spec.is_bound`` says which of them an objective's own value is.
"""

import inspect
from functools import partial
from typing import Any

from redraft.errors import unknown
from redraft.objectives.annealing import annealed
from redraft.objectives.base import (
    Batch,
    Loss,
    Objective,
    Spec,
    as_batch,
    at,
    bound,
    condition,
    corrupt,
    log_probs,
    masked_cross_entropy,
    valid,
)
from redraft.objectives.blocks import (
    any_order,
    bd3lm,
    block_of,
    block_times,
    choose_range,
    retune,
    two_stream_cross_entropy,
)
from redraft.objectives.distil import dcd
from redraft.objectives.finite import d3pm
from redraft.objectives.flow_matching import dfm
from redraft.objectives.gaussian import analog_bits, cdcd, diffusion_lm, langflow
from redraft.objectives.given import check_given, with_given
from redraft.objectives.hybrid import gidd
from redraft.objectives.masked import maskgit, md4, mdlm, over_counts, radd, some_masked
from redraft.objectives.per_token import diffusionbert, genmd4
from redraft.objectives.plain import autoregressive, cross_entropy, nelbo
from redraft.objectives.score import concrete_score_matching, csm, sedd
from redraft.objectives.uniform import duo, udlm
from redraft.objectives.vlb import plaid
from redraft.processes import Facts, Gaussian, Process
from redraft.processes.gaussian import PREDICTIONS
from redraft.schedules import gamma_tensors
from redraft.schedules.gamma import FIXED

OBJECTIVES: dict[str, Spec] = {
    "nelbo": Spec(nelbo, is_bound=True),
    "cross_entropy": Spec(cross_entropy, is_bound=False),
    "udlm": Spec(udlm, is_bound=True, processes=("uniform",)),
    "duo": Spec(duo, is_bound=False, processes=("uniform",), time="continuous"),
    "dcd": Spec(dcd, is_bound=False, processes=("uniform",), time="continuous"),
    "gidd": Spec(gidd, is_bound=False, processes=("hybrid",), time="continuous"),
    "dfm": Spec(dfm, is_bound=False, processes=("masked", "uniform"), time="continuous"),
    "mdlm": Spec(mdlm, is_bound=True, processes=("masked",)),
    "md4": Spec(md4, is_bound=True, processes=("masked",)),
    # three of its variants are bounds, t_dce is none
    "radd": Spec(radd, is_bound=False, processes=("masked",), time="continuous"),
    "maskgit": Spec(maskgit, is_bound=False, processes=("masked",)),
    "sedd": Spec(sedd, is_bound=True, processes=("masked", "uniform", "hybrid"), time="continuous"),
    "csm": Spec(csm, is_bound=False, processes=("masked", "uniform", "hybrid"), time="continuous"),
    "d3pm": Spec(d3pm, is_bound=False, processes=("masked", "uniform", "hybrid", "d3pm"), time="discrete"),
    "diffusionbert": Spec(diffusionbert, is_bound=False, processes=("spindle",)),
    "genmd4": Spec(genmd4, is_bound=False, processes=("learned",)),
    "cdcd": Spec(cdcd, False, ("gaussian",), says="tokens", schedules=("adaptive", "gumbel")),
    "langflow": Spec(langflow, False, ("gaussian",), says="tokens", schedules=("adaptive", "gumbel")),
    "plaid": Spec(plaid, True, ("gaussian",), says="tokens", schedules=("plaid",)),
    "diffusion_lm": Spec(diffusion_lm, False, ("gaussian",), says="vectors"),
    "analog_bits": Spec(analog_bits, False, ("gaussian",), says="vectors"),
    # one step a token, whatever the process
    "autoregressive": Spec(autoregressive, True, processes=("masked",), attention=("causal",), time="continuous"),
    "any_order": Spec(any_order, True, processes=("masked",), attention=("permuted",), time="continuous"),
    # a bound as long as mask rates are drawn from their whole range, which training may narrow
    "bd3lm": Spec(bd3lm, is_bound=False, processes=("masked",), attention=("block",)),
}


def spec(name: str) -> Spec:
    """What is known of an objective. Errors: ``ValueError`` for an unknown name, with the nearest."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def get(name: str, given: float | None = None, **options: Any) -> Objective:
    """The objective of a name, with its options set; those that are None keep the objective's own default.

    ``given``: the share of the rows in which a part is given clean, of any objective (``with_given``).

    Errors: ``ValueError`` for an unknown name, or an option this objective does not have, naming the nearest.
    """
    function = spec(name).function
    known = [one.name for one in inspect.signature(function).parameters.values() if one.kind is one.KEYWORD_ONLY]
    chosen = {option: value for option, value in options.items() if value is not None}
    for option in chosen:
        if option not in known:
            raise ValueError(f"objective {name!r} has no option {option!r}; it has {sorted(known) or 'none'}")
    objective: Objective = partial(function, **chosen) if chosen else function
    return objective if given is None else with_given(objective, given)


def check(
    objective: str,
    process: Process,
    facts: Facts,
    given: float | None = None,
    self_condition: float | None = None,
) -> None:
    """Refuse, before any step, combinations that cannot train: ``ValueError``."""
    if given is not None:
        check_given(process, objective)
    if self_condition is not None and not facts.self_conditioned:
        raise ValueError(
            f"loss.self_condition={self_condition} with a model that is told no guess of its own: "
            "set model.self_conditioned=True, or leave it out"
        )
    fits = spec(objective)
    if fits.processes and process.name not in fits.processes:
        raise ValueError(
            f"objective {objective!r} with a {process.name} process: it is defined for {', '.join(fits.processes)}"
        )
    if process.name == "learned" and objective != "genmd4":
        raise ValueError(
            f"objective {objective!r} with a learned process: its gradient leaves out how the rates move the noise; "
            "use genmd4"
        )
    discrete = getattr(process, "steps", None) is not None
    if fits.time != "any" and discrete != (fits.time == "discrete"):
        fix = "set process.steps" if fits.time == "discrete" else "process.steps=none"
        raise ValueError(f"objective {objective!r} goes together with a process in {fits.time} time: {fix}")
    if facts.attention not in fits.attention:
        trained = [name for name, other in OBJECTIVES.items() if facts.attention in other.attention]
        raise ValueError(
            f"objective {objective!r} with model.attention={facts.attention}: it goes together with "
            f"{' or '.join(fits.attention)}; {facts.attention} attention is trained by {', '.join(trained)}"
        )
    if isinstance(process, Gaussian):
        _check_vectors(objective, process, facts)


_COLLAPSE, _BLOW_UP = ("analog_bits",), ("cdcd", "langflow", "cross_entropy")
"""Objectives that pull a learned codebook's rows together, and those that push them apart unless normalised."""


def _check_vectors(objective: str, process: Gaussian, facts: Facts) -> None:
    """Refuse a head that does not say what the objective is about, and a schedule that nothing would train."""
    fits, schedule = spec(objective), process.schedule.name
    if fits.says == "vectors" and not facts.vectors:
        raise ValueError(
            f"objective {objective!r} with a model that names tokens: it is about the vectors that a model predicts; "
            f"set model.head to one of {', '.join(PREDICTIONS)}"
        )
    if fits.says == "tokens" and facts.vectors:
        raise ValueError(
            f"objective {objective!r} with a model that predicts vectors: it is about the tokens that a model names; "
            "set model.head=plain, or leave it out"
        )
    if process.learned and objective in _COLLAPSE:
        raise ValueError(
            f"objective {objective!r} with process.learn_codebook: vectors that are their own target fall together; "
            "leave it out, or use objective diffusion_lm"
        )
    if process.learned and not process.normalise and objective in _BLOW_UP:
        raise ValueError(
            f"objective {objective!r} with a codebook that learns freely: cross-entropy falls as its rows grow, "
            "without end; set process.normalise=true"
        )
    if gamma_tensors(process.schedule.to_dict()) and schedule not in fits.schedules:
        trained = [name for name, other in OBJECTIVES.items() if schedule in other.schedules]
        raise ValueError(
            f"objective {objective!r} with process.schedule={schedule!r}, which learns, but not from it: use "
            f"objective {' or '.join(trained)}, or a fixed schedule, {', '.join(FIXED)}"
        )


__all__ = [
    "OBJECTIVES",
    "Batch",
    "Loss",
    "Objective",
    "Spec",
    "annealed",
    "any_order",
    "as_batch",
    "at",
    "autoregressive",
    "bd3lm",
    "block_of",
    "block_times",
    "bound",
    "check",
    "choose_range",
    "concrete_score_matching",
    "condition",
    "corrupt",
    "cross_entropy",
    "get",
    "log_probs",
    "masked_cross_entropy",
    "nelbo",
    "over_counts",
    "retune",
    "some_masked",
    "two_stream_cross_entropy",
    "valid",
]
