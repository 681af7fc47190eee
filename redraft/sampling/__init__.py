"""Writing text: the one loop, and the samplers it steps with."""

from redraft.sampling.loop import Callback, Samples, Step, sample
from redraft.sampling.samplers import SAMPLERS, Sampler, ancestral, confidence, left_to_right

__all__ = ["SAMPLERS", "Callback", "Sampler", "Samples", "Step", "ancestral", "confidence", "left_to_right", "sample"]
