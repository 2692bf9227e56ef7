"""The harmonic mean of clean and robust accuracy, with an interval over the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from hwnas.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 10_000
_CONFIDENCE = 0.95


def harmonic_robustness(clean: float, robust: float) -> float:
    """Return the harmonic robustness score, 2 C R / (C + R); 0 where both are 0.

    Args:
        clean: Clean accuracy C, in [0, 1].
        robust: Accuracy R under attack, in [0, 1].

    Raises:
        DataError: One is no share: a score of percents would be a hundred times as large.

    References:
        Devaguptapu et al., "On Adversarial Robustness: A Neural Architecture Search perspective"
        (arXiv 2007.08428).

    >>> harmonic_robustness(0.75, 0.25), harmonic_robustness(0.0, 0.0)
    (0.375, 0.0)
    """
    for value in (clean, robust):
        if not 0.0 <= value <= 1.0:
            raise DataError(
                f"an accuracy is a share between 0 and 1, not {value}",
                hint="divide percents by 100",
            )
    both = clean + robust
    return 2.0 * clean * robust / both if both else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmonicRobustness:
    """A harmonic robustness score with its 95 % bootstrap interval over the samples.

    Attributes:
        n: Samples.
        clean: Clean accuracy.
        robust: Accuracy under attack.
        value: 2 C R / (C + R).
        low: Lower end of the interval.
        high: Upper end of it.
    """

    n: int
    clean: float
    robust: float
    value: float
    low: float
    high: float

    @classmethod
    def from_flags(
        cls,
        clean: NDArray[np.bool_],
        robust: NDArray[np.bool_],
        *,
        seed: int,
        resamples: int = RESAMPLES,
    ) -> Self:
        """Compute the score of samples, and draw them anew for its interval.

        A sample brings both of its flags along when it is drawn, as the two accuracies are of the
        same samples. No formula for shares fits: the score is a ratio of sums of dependent shares.
        The interval lies between percentiles, so it has no width where all samples are alike.

        Args:
            clean: (n,), which samples are right as they are.
            robust: (n,), which are right under attack.
            seed: Seed of the draws.
            resamples: How many draws.

        Raises:
            DataError: There are no samples, or the flags are of different ones.

        References:
            B. Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979: percentile method.
        """
        if clean.shape != robust.shape or clean.ndim != 1 or not clean.size:
            raise DataError(
                f"a score needs both flags of every sample, not {clean.shape} and {robust.shape}"
            )
        n = clean.size
        # How often each of the four cases is drawn is multinomial: no sample need be drawn itself.
        cases = np.bincount(2 * clean.astype(np.int64) + robust, minlength=4)
        drawn = np.random.default_rng(seed).multinomial(n, cases / n, size=resamples)
        rights = drawn[:, 2] + drawn[:, 3], drawn[:, 1] + drawn[:, 3]
        both = rights[0] + rights[1]
        # n times the score: 2 (n C) (n R) / (n C + n R).
        scores = 2.0 * rights[0] * rights[1] / np.maximum(both, 1) / n
        tail = (1.0 - _CONFIDENCE) / 2.0
        low, high = np.quantile(scores, (tail, 1.0 - tail))
        accuracies = float(np.mean(clean)), float(np.mean(robust))
        return cls(
            n=n,
            clean=accuracies[0],
            robust=accuracies[1],
            value=harmonic_robustness(*accuracies),
            low=float(low),
            high=float(high),
        )
