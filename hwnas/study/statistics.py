"""Means over seeds with their intervals, differences between paired seeds, and the Pareto front."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from hwnas.core.errors import DataError
from hwnas.robustness.evaluate import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedMean:
    """The mean of a figure over seeds.

    Attributes:
        n: Seeds.
        mean: Their mean.
        low: Lower end of the 95 % t interval of the mean; None of a single seed, which tells
            nothing of how far another one would come out.
        high: Upper end of it.
    """

    n: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """By how much a figure differs from the baseline's, seed by seed.

    Attributes:
        n: Seeds that both have.
        mean: Mean of the differences.
        low: Lower end of its 95 % paired t interval; None of a single seed.
        high: Upper end of it.
        p: Two-sided p-value of the paired t-test that there is no difference, not corrected for the
            number of arms; None of a single seed, or where all differences are alike.
        above: Seeds in which the figure is above the baseline's.
        below: Seeds in which it is below.
        p_sign: Two-sided p-value of the sign test, which assumes no distribution; None where no
            seed differs. With n seeds it is never under 2 / 2^n.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    above: int
    below: int
    p_sign: float | None


def mean_over_seeds(values: Sequence[float]) -> SeedMean:
    """Return the mean of a figure over seeds, and the 95 % t interval of it.

    Args:
        values: One finite figure per seed.

    Raises:
        DataError: There are none, or one is not finite.

    >>> mean = mean_over_seeds([0.5, 0.6, 0.7])
    >>> f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}] n={mean.n}"
    '0.600 [0.352, 0.848] n=3'
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size or not np.isfinite(array).all():
        raise DataError(f"a mean over seeds needs finite figures, not {list(values)}")
    mean = float(array.mean())
    if array.size == 1:
        return SeedMean(n=1, mean=mean, low=None, high=None)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, array.size - 1)) * float(stats.sem(array))
    return SeedMean(n=array.size, mean=mean, low=mean - half, high=mean + half)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float]
) -> PairedDifference | None:
    """Compare an arm with the baseline in the seeds that both have.

    Args:
        values: The arm's figure by seed.
        baseline: The baseline's.

    Returns:
        The difference; None where no seed is common.

    >>> found = paired_difference({0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.55, 2: 0.7, 3: 0.1})
    >>> found.n, round(found.mean, 3), found.above, found.below, found.p_sign
    (3, 0.05, 2, 0, 0.5)
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = np.array([values[seed] - baseline[seed] for seed in seeds])
    mean = mean_over_seeds(differences.tolist())
    above, below = int((differences > 0).sum()), int((differences < 0).sum())
    p_sign = stats.binomtest(above, above + below).pvalue if above + below else None
    return PairedDifference(
        n=mean.n,
        mean=mean.mean,
        low=mean.low,
        high=mean.high,
        p=_t_test(differences.tolist()),
        above=above,
        below=below,
        p_sign=None if p_sign is None else float(p_sign),
    )


def _t_test(differences: Sequence[float]) -> float | None:
    """Return the p-value of the t-test that a mean is 0; None where there is no spread to tell."""
    if len(differences) < 2 or np.ptp(differences) == 0:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def interval_over_images(values: Sequence[float], n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share over the test images, pooled over seeds.

    Every seed is judged on the same images, so that more seeds are no more images: the share is the
    mean over the seeds, and n that of the images alone. Counting images times seeds would make the
    interval narrower than what is known.

    Args:
        values: One share per seed.
        n: Images that each was judged on.
    """
    share = math.fsum(values) / len(values)
    return wilson_interval(share * n, n)


def pareto_places(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Return the places of what nothing else beats: no cost as low with a value as high, or better.

    Args:
        costs: The less the better.
        values: The more the better.

    Returns:
        Places on the front, by rising cost; of equal pairs, the first.

    >>> pareto_places([1.0, 2.0, 3.0, 2.0], [0.4, 0.5, 0.45, 0.3])
    [0, 1]
    """
    order = sorted(range(len(costs)), key=lambda place: (costs[place], -values[place]))
    front: list[int] = []
    for place in order:
        if not front or values[place] > values[front[-1]]:
            front.append(place)
    return front
