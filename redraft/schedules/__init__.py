"""Noise schedules by name: alpha(t) of tokens, and gamma(t) = -log SNR of vectors, which may be learned."""

from redraft.schedules.alpha import BETAS, NAMES, Schedule, Table, bisect, get
from redraft.schedules.gamma import Gamma, GammaSchedule, Kept, time_of
from redraft.schedules.learned import Adaptive, Gumbel, Plaid, Warped
from redraft.schedules.named import GAMMAS, gamma, gamma_start, gamma_tensors

__all__ = [
    "BETAS",
    "GAMMAS",
    "NAMES",
    "Adaptive",
    "Gamma",
    "GammaSchedule",
    "Gumbel",
    "Kept",
    "Plaid",
    "Schedule",
    "Table",
    "Warped",
    "bisect",
    "gamma",
    "gamma_start",
    "gamma_tensors",
    "get",
    "time_of",
]
