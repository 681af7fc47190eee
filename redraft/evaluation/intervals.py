"""Intervals of 95% around means, shares and ratios: the one place where they are computed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Z95: Final = 1.9599639845400545
_FEW: Final = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004)
"""Student's quantile of 1 to 8 degrees of freedom."""


def student95(values: int) -> float:
    """By how many standard errors the mean of so many values (2 or more) may miss at 95%: Student's t, ``values`` - 1.

    From 9 degrees of freedom on by the series in 1 / df (Abramowitz and Stegun 26.7.5), right to 1e-4.
    """
    df = values - 1
    assert df >= 1
    if df <= len(_FEW):
        return _FEW[df - 1]
    z = Z95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / df + second / df**2 + third / df**3 + fourth / df**4


@dataclass(frozen=True)
class Estimate:
    """A mean and the half-width of its 95% interval."""

    mean: float
    error: float

    def text(self, digits: int = 3) -> str:
        return f"{self.mean:.{digits}f} ± {self.error:.{digits}f}"

    def percent(self) -> str:
        return f"{100 * self.mean:.1f}% ± {100 * self.error:.1f}"

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference of two independent estimates."""
        return Estimate(self.mean - other.mean, math.hypot(self.error, other.error))

    @property
    def sign(self) -> int:
        """-1, 1, or 0 when the interval holds zero."""
        return 0 if abs(self.mean) <= self.error else int(math.copysign(1, self.mean))


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over seeds. Its error holds each seed's own, and the spread over seeds when there are several.

    error^2 = sum_i error_i^2 / n^2 + 1.96^2 variance / n: the two overlap, which errs on the wide side.
    """
    n = len(estimates)
    if not n:
        raise ValueError("no estimates to pool: pass at least one")
    mean = sum(one.mean for one in estimates) / n
    own = sum(one.error**2 for one in estimates) / n**2
    spread = sum((one.mean - mean) ** 2 for one in estimates) / (n - 1) / n if n > 1 else 0.0
    return Estimate(mean, math.sqrt(own + Z95**2 * spread))


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean of independent values, with its interval. Errors: ``ValueError`` for fewer than two."""
    n = len(values)
    if n < 2:
        raise ValueError(f"{n} values: an error bar needs at least 2")
    mean = sum(values) / n
    return Estimate(mean, Z95 * math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n))


def ratio(amounts: Sequence[float], sizes: Sequence[float]) -> Estimate:
    """sum(amounts) / sum(sizes) over independent items, nats over tokens say, with its interval.

    The spread is that of amount_i - ratio size_i, which is the ratio's to first order (Cochran 1977), times Student's
    t. One item alone says nothing of it: the error is then infinite. Errors: ``ValueError`` for sizes that add up to
    nothing.
    """
    n, whole = len(amounts), math.fsum(sizes)
    if whole <= 0 or n != len(sizes):
        raise ValueError(f"{n} amounts over {len(sizes)} sizes of {whole} in all: pass one size each, some above 0")
    mean = math.fsum(amounts) / whole
    if n < 2:
        return Estimate(mean, math.inf)
    spread = math.fsum((amount - mean * size) ** 2 for amount, size in zip(amounts, sizes, strict=True))
    return Estimate(mean, student95(n) * math.sqrt(spread * n / (n - 1)) / whole)


def share(hits: int, n: int) -> Estimate:
    """A share, with an interval that does not vanish at 0 and 1 (Agresti and Coull's half-width)."""
    _check(hits, n)
    around = (hits + Z95**2 / 2) / (n + Z95**2)
    return Estimate(hits / n, Z95 * math.sqrt(around * (1 - around) / (n + Z95**2)))


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95% interval (low, high) of a share, all p with (hits / n - p)^2 <= 1.96^2 p (1 - p) / n (Wilson 1927).

    It lies within [0, 1], has a width at 0 and 1 too, and is not centred on the share. Errors: ``ValueError`` for no
    share.

    >>> [round(end, 4) for end in wilson(0, 10)]
    [0.0, 0.2775]
    """
    _check(hits, n)
    p, z2 = hits / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    # at the ends rounding would leave a trace of 1e-17 beyond them
    return 0.0 if not hits else centre - half, 1.0 if hits == n else centre + half


def _check(hits: int, n: int) -> None:
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"{hits} of {n} is no share: count hits among at least one trial")
