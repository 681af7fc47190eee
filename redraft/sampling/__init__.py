"""Writing text: the one loop, and the samplers it steps with."""

from redraft.sampling.correctors import self_correct
from redraft.sampling.cost import Cost
from redraft.sampling.critic import train_critic
from redraft.sampling.growth import Elastic, Growth, elastic, grown
from redraft.sampling.loop import sample
from redraft.sampling.request import DEFAULT_STEPS
from redraft.sampling.samplers import SAMPLERS, Draw, Sampler, ancestral, confidence, left_to_right
from redraft.sampling.steps import Ancestors, Callback, Halt, Samples, Step
from redraft.sampling.windows import semi_autoregressive

__all__ = [
    "DEFAULT_STEPS",
    "SAMPLERS",
    "Ancestors",
    "Callback",
    "Cost",
    "Draw",
    "Elastic",
    "Growth",
    "Halt",
    "Sampler",
    "Samples",
    "Step",
    "ancestral",
    "confidence",
    "elastic",
    "grown",
    "left_to_right",
    "sample",
    "self_correct",
    "semi_autoregressive",
    "train_critic",
]
