"""Samples of a latency -> robust statistics: medians and their order-statistic intervals.

A latency's samples are skewed, with rare large outliers from interrupts and other programs. The
median and an interval between two order statistics assume nothing about their distribution.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.errors import DataError
from hwnas_profilers.records import Statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIDENCE = 0.95
MIN_SAMPLES = 6
"""Below six samples no pair of order statistics encloses the median with 95 % confidence."""


@functools.lru_cache(maxsize=4096)
def median_interval_ranks(n: int, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """Return the ranks of the order statistics that enclose the median.

    The number of n independent samples below the median is binomial (n, 1/2), so the interval from
    the r-th smallest to the r-th largest misses the median with probability 2 P(B < r). The largest
    such r is taken; integers make the sum exact.

    Args:
        n: Number of samples.
        confidence: Least probability that the interval holds the median, in (0, 1).

    Returns:
        Ranks of both ends, counted from 1.

    Raises:
        DataError: There are too few samples for any such interval.

    References:
        W. J. Conover, Practical Nonparametric Statistics, 3rd ed., 1999, section 3.2. That interval
        is for a number of samples fixed beforehand; a timer that stops once it is narrow enough
        covers a little less.

    >>> median_interval_ranks(100)
    (40, 61)
    """
    # Half of what may be missed, as a count of the 2^n equally likely outcomes.
    allowed = (1 - Fraction(str(confidence))) / 2 * 2**n
    rank, cumulated, outcomes = 0, 0, 1
    while cumulated + outcomes <= allowed and 2 * rank < n:
        cumulated += outcomes
        outcomes = outcomes * (n - rank) // (rank + 1)
        rank += 1
    if rank == 0:
        raise DataError(
            f"{n} samples are too few for a {100 * confidence:g} % interval of the median",
            hint=f"take at least {MIN_SAMPLES} samples for 95 %",
        )
    return rank, n + 1 - rank


def relative_width(samples_us: NDArray[np.float64]) -> float:
    """Return the width of the median's 95 % interval, as a share of the median.

    Args:
        samples_us: Samples in microseconds, (n,).

    Returns:
        The width; infinity where the samples are too few to tell, or their median is not positive.
    """
    if samples_us.size < MIN_SAMPLES:
        return float("inf")
    low, high = median_interval_ranks(samples_us.size)
    ordered = np.sort(samples_us)
    median = float(np.median(ordered))
    return float(ordered[high - 1] - ordered[low - 1]) / median if median > 0 else float("inf")


def summarize(samples_us: NDArray[np.float64]) -> Statistics:
    """Sum up samples.

    Args:
        samples_us: Samples in microseconds per call, (n,), n >= 6, finite and positive.

    Raises:
        DataError: Too few samples, or one that no clock can have measured.
    """
    low, high = median_interval_ranks(samples_us.size)
    ordered = np.sort(samples_us)
    if not (np.isfinite(ordered).all() and ordered[0] > 0):
        raise DataError("a measured time is zero, negative or not finite: the clock does not work")
    p10, median, p90 = np.quantile(ordered, (0.1, 0.5, 0.9))
    return Statistics(
        n=int(ordered.size),
        median_us=float(median),
        low_us=float(ordered[low - 1]),
        high_us=float(ordered[high - 1]),
        min_us=float(ordered[0]),
        p10_us=float(p10),
        p90_us=float(p90),
    )
