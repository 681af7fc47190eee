"""The samplers by name. Each is a pure function from z at t to z at s < t, given the process and the denoiser.

Their contract is in ``contract``. A sampler may call the denoiser as often as its method asks. Given tokens
(``Draw.frozen``) it may use to count but need not protect: ``sample`` puts them back after every step.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from redraft.errors import unknown
from redraft.processes import Process
from redraft.sampling.adaptive import entropy_bounded, factor, hierarchical, klass, threshold
from redraft.sampling.contract import (
    Draw,
    Query,
    Revision,
    Sampler,
    Tokens,
    misfit,
    over_tokens,
    proposes,
    proposing,
    revises,
    revising,
    tempered,
)
from redraft.sampling.correctors import gibbs, informed
from redraft.sampling.critic import critic
from redraft.sampling.editing import Edit, Remask
from redraft.sampling.flow import churn, ddim, heun
from redraft.sampling.kernels import ancestral, euler, first_hitting, greedy_tail
from redraft.sampling.published import entropy, maskgit, maskgit_plus, origin, topk_margin
from redraft.sampling.renoise import renoise
from redraft.sampling.revision import dfm, forward_backward, psi, remdm
from redraft.sampling.selection import (
    calibrated,
    confidence,
    dilated,
    left_to_right,
    low_confidence,
    positional,
    random_order,
    sequential,
)
from redraft.sampling.wino import wino

__all__ = [
    "REVISIONS",
    "SAMPLERS",
    "Draw",
    "Query",
    "Sampler",
    "Tokens",
    "ancestral",
    "calibrated",
    "churn",
    "confidence",
    "critic",
    "ddim",
    "dfm",
    "dilated",
    "entropy",
    "entropy_bounded",
    "euler",
    "factor",
    "first_hitting",
    "forward_backward",
    "get",
    "gibbs",
    "greedy_tail",
    "heun",
    "hierarchical",
    "informed",
    "klass",
    "left_to_right",
    "low_confidence",
    "maskgit",
    "maskgit_plus",
    "misfit",
    "origin",
    "over_tokens",
    "positional",
    "proposes",
    "proposing",
    "psi",
    "random_order",
    "remdm",
    "renoise",
    "revises",
    "revising",
    "sequential",
    "tempered",
    "threshold",
    "topk_margin",
    "wino",
]

SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ancestral": ancestral,
    "analytic": ancestral,
    "cached": ancestral,
    "euler": euler,
    "ddim": ddim,
    "heun": heun,
    "churn": churn,
    "first_hitting": first_hitting,
    "greedy_tail": greedy_tail,
    "psi": psi,
    "remdm": remdm,
    "forward_backward": forward_backward,
    "dfm": dfm,
    "gibbs": gibbs,
    "informed": informed,
    "renoise": renoise,
    "wino": wino,
    "confidence": confidence,
    "left_to_right": left_to_right,
    "low_confidence": low_confidence,
    "random_order": random_order,
    "sequential": sequential,
    "positional": positional,
    "dilated": dilated,
    "origin": origin,
    "maskgit_plus": maskgit_plus,
    "topk_margin": topk_margin,
    "entropy": entropy,
    "maskgit": maskgit,
    "threshold": threshold,
    "factor": factor,
    "entropy_bounded": entropy_bounded,
    "klass": klass,
    "hierarchical": hierarchical,
}
"""``analytic`` and ``cached`` are ``ancestral``, which says why."""

REVISIONS: dict[str, Callable[..., Revision]] = {"edit": Edit, "remask": Remask}
"""What may be joined to a sampler that proposes, ``"threshold:tau=0.5+edit:tau=0.9"``: classes of their options."""

_BOOLS = {"true": True, "false": False}


@dataclass(frozen=True)
class Revised:
    """A rule whose every step is followed by a revision of what was written before."""

    rule: Sampler
    revision: Revision
    proposes = True
    revises = True

    @property
    def extra(self) -> int:
        return self.revision.extra

    def __call__(self, process: Process, denoiser: Query, z: Tensor, t: Tensor, s: Tensor, draw: Draw) -> Tensor:
        return self.rule(process, denoiser, z, t, s, replace(draw, revision=self.revision))


def get(sampler: str | Sampler) -> Sampler:
    """The sampler of a name, or the given function.

    A name may have options after a colon, ``"remdm:strategy=cap,eta=0.02"``, and a rule that proposes a revision after
    a plus, ``"threshold:tau=0.5+edit"``.

    Errors: ``ValueError`` naming the nearest for an unknown name or option, for a value that is no number or word, and
    for a revision of a sampler that does not propose.
    """
    if not isinstance(sampler, str):
        return sampler
    rule, plus, revision = sampler.partition("+")
    found = _made(rule, "sampler", SAMPLERS)
    if not plus:
        return found
    if not proposes(found):
        raise ValueError(f"sampler {sampler!r}: {rule!r} does not propose tokens, which a revision needs; drop the '+'")
    return Revised(found, _made(revision, "revision", REVISIONS)())


def _made(written: str, kind: str, among: dict[str, Callable[..., Any]]) -> Any:
    """The function of a name with its options set."""
    name, _, options = written.partition(":")
    if name not in among:
        raise unknown(kind, name, among)
    function = among[name]
    parameters = inspect.signature(function).parameters
    known = {option: one.default for option, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    values: dict[str, Any] = {}
    for part in filter(None, options.split(",")):
        option, _, value = part.partition("=")
        if option not in known:
            raise unknown(f"option of {kind} {name!r}:", option, known)
        usual = 0.5 if known[option] is None else known[option]  # a number with no usual value of its own
        try:
            values[option] = _BOOLS[value.lower()] if isinstance(usual, bool) else type(usual)(value)
        except (ValueError, KeyError):
            raise ValueError(f"{kind} {name!r}: {option}={value!r} should be like {usual!r}") from None
    return partial(function, **values) if values else function
