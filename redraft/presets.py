"""Presets: how the authors of a model write with it, by name; options of ``lm.generate`` that what is passed overrules.

A released checkpoint is written as its family says (``Family.decoding``) unless told otherwise, and that has a name
here too, the family's. Its authors' other ways are named after the models they are for. Where an option speaks of
tokens, they are named by their text and looked up in the model's tokenizer.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from redraft.data import Tokenizer
from redraft.errors import unknown
from redraft.models.families import FAMILIES
from redraft.sampling.stages import Shaping

_LLADA, _DREAM, _LLADA2 = (FAMILIES[name].decoding for name in ("llada", "dream", "llada2"))

GROWING = (*Shaping.__annotations__, "stop", "length")
"""Of the options that a preset may have, those of a text that grows."""
SLIDING = (*Shaping.__annotations__, "sampler", "steps", "bias", "late", "length")
"""Those of a text written through a window."""
GAPS = ("sampler", "temperature", "top_p")
"""Those of a text that is given in part."""


@dataclass(frozen=True)
class Preset:
    """``options`` of ``lm.generate``, and where they come from."""

    options: Mapping[str, Any]
    source: str


def _edited(tau: float, edit: float) -> dict[str, Any]:
    """LLaDA2.1: masks are written above ``tau``, and what is written is rewritten by what is above ``edit``."""
    return {**_LLADA2, "sampler": f"threshold:tau={tau}+edit:tau={edit},extra=16", "length": 16384}


PRESETS: dict[str, Preset] = {
    **{name: Preset(one.decoding, "Its family's own.") for name, one in FAMILIES.items() if one.decoding},
    "llada-base": Preset({**_LLADA, "block": 128}, "LLaDA's generate as it stands: 128 tokens at once (2502.09992)."),
    "llada-1.5": Preset(
        {**_LLADA, "length": 512, "late": ["<|endoftext|>", "<|eot_id|>"]},
        "LLaDA-1.5 measured on code: the end of a text or turn is written last (2505.19223).",
    ),
    "dream-base": Preset(
        {"sampler": "entropy", "temperature": 0.0, "length": 256},
        "Dream-v0-Base-7B as it was measured: the lowest entropy first, a token a step (2508.15487).",
    ),
    "dream-origin": Preset(
        {"sampler": "origin", "temperature": 0.0, "steps": 512},
        "Dream's diffusion_generate as it stands: masks drawn at random in 512 steps (2508.15487).",
    ),
    "dream-coder": Preset(
        {**_DREAM, "temperature": 0.1, "length": 768, "bias": {"<|endoftext|>": -3.0}},
        "Dream-Coder-7B: its end of text made less likely by 3 nats (2509.01142).",
    ),
    "llada2.1-quality": Preset(_edited(0.7, 0.5), "LLaDA2.1 in its quality mode (2602.08676)."),
    "llada2.1-speed": Preset(
        _edited(0.5, 0.0), "LLaDA2.1 in its speed mode: drafted fast, always mended (2602.08676)."
    ),
}


def get(name: str) -> Preset:
    """The preset of a name. Errors: ``ValueError`` for an unknown one, with the nearest."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def usual(
    decoding: Mapping[str, Any], preset: str | None, tokenizer: Tokenizer, alone: Collection[str] | None = None
) -> dict[str, Any]:
    """The options of a preset, or of a family's ``decoding`` where none is named, with ids in place of tokens' texts.

    ``alone``: only those of these names. Errors: ``ValueError`` for an unknown preset, and for a text that is no token
    of this tokenizer.
    """
    options = decoding if preset is None else get(preset).options
    found = {name: value for name, value in options.items() if alone is None or name in alone}
    for name in ("banned", "late"):
        if name in found:
            found[name] = [tokenizer.token(one) for one in found[name]]
    if "bias" in found:
        found["bias"] = {tokenizer.token(one): nats for one, nats in found["bias"].items()}
    return found
