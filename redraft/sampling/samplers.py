"""The samplers by name. Each is a pure function from z at t to z at s < t, given the process and the denoiser.

Their contract is in ``contract``. A sampler may call the denoiser as often as its method asks. Given tokens
(``Draw.frozen``) it may use to count but need not protect: ``sample`` puts them back after every step.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from redraft.errors import unknown
from redraft.sampling.contract import Draw, Query, Sampler, Tokens, misfit, over_tokens, revises, revising, tempered
from redraft.sampling.correctors import gibbs, informed
from redraft.sampling.flow import churn, ddim, heun
from redraft.sampling.kernels import ancestral, confidence, euler, first_hitting, greedy_tail, left_to_right
from redraft.sampling.revision import dfm, forward_backward, psi, remdm

__all__ = [
    "SAMPLERS",
    "Draw",
    "Query",
    "Sampler",
    "Tokens",
    "ancestral",
    "churn",
    "confidence",
    "ddim",
    "dfm",
    "euler",
    "first_hitting",
    "forward_backward",
    "get",
    "gibbs",
    "greedy_tail",
    "heun",
    "informed",
    "left_to_right",
    "misfit",
    "over_tokens",
    "psi",
    "remdm",
    "revises",
    "revising",
    "tempered",
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
    "confidence": confidence,
    "left_to_right": left_to_right,
}
"""``analytic`` and ``cached`` are ``ancestral``, which says why."""

_BOOLS = {"true": True, "false": False}


def get(sampler: str | Sampler) -> Sampler:
    """The sampler of a name, with options after a colon (``"remdm:strategy=cap,eta=0.02"``), or the given function.

    Errors: ``ValueError`` naming the nearest for an unknown name or option, and for a value that is no number or word.
    """
    if not isinstance(sampler, str):
        return sampler
    name, _, written = sampler.partition(":")
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    function = SAMPLERS[name]
    parameters = inspect.signature(function).parameters
    known = {option: one.default for option, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    options: dict[str, Any] = {}
    for part in filter(None, written.split(",")):
        option, _, value = part.partition("=")
        if option not in known:
            raise unknown(f"option of sampler {name!r}:", option, known)
        usual = 0.5 if known[option] is None else known[option]  # a number with no usual value of its own
        try:
            options[option] = _BOOLS[value.lower()] if isinstance(usual, bool) else type(usual)(value)
        except (ValueError, KeyError):
            raise ValueError(f"sampler {name!r}: {option}={value!r} should be like {usual!r}") from None
    return partial(function, **options) if options else function
