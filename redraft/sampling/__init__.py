"""Writing text: the one loop, and the samplers it steps with."""

from redraft.sampling.correctors import self_correct
from redraft.sampling.loop import Callback, Samples, Step, sample
from redraft.sampling.samplers import SAMPLERS, Draw, Sampler, ancestral, confidence, left_to_right
from redraft.sampling.windows import semi_autoregressive

__all__ = [
    "SAMPLERS",
    "Callback",
    "Draw",
    "Sampler",
    "Samples",
    "Step",
    "ancestral",
    "confidence",
    "left_to_right",
    "sample",
    "self_correct",
    "semi_autoregressive",
]
