"""Noise schedules by name: alpha(t) of tokens, and gamma(t) = -log SNR of vectors, which may be learned."""

from redraft.schedules.alpha import BETAS, NAMES, Schedule, Table, bisect, get
from redraft.schedules.gamma import GAMMAS, Gamma, GammaSchedule, Kept, gamma, gamma_tensors

__all__ = [
    "BETAS",
    "GAMMAS",
    "NAMES",
    "Gamma",
    "GammaSchedule",
    "Kept",
    "Schedule",
    "Table",
    "bisect",
    "gamma",
    "gamma_tensors",
    "get",
]
