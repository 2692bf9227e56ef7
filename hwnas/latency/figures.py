"""How well predicted latencies agree with measured ones, and how well any prediction could."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from hwnas.core.errors import DataError
from hwnas_profilers.records import ErrorFigures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hwnas_profilers.records import NetworkMeasurement

    Floats = NDArray[np.float64]


def error_figures(predicted_us: Floats, measured_us: Floats) -> ErrorFigures:
    """Return how well predictions agree with measurements, both (N,).

    Raises:
        DataError: There is no network.
    """
    if not len(measured_us):
        raise DataError("there is no network to judge a prediction by")
    relative = np.abs(predicted_us - measured_us) / measured_us
    ranked = len(measured_us) > 2 and np.ptp(predicted_us) > 0 and np.ptp(measured_us) > 0
    return ErrorFigures(
        n=len(measured_us),
        mape_percent=float(100 * relative.mean()),
        spearman=float(stats.spearmanr(predicted_us, measured_us).statistic) if ranked else None,
        kendall=float(stats.kendalltau(predicted_us, measured_us).statistic) if ranked else None,
        within_5_percent=float(100 * (relative <= 0.05).mean()),
        within_10_percent=float(100 * (relative <= 0.10).mean()),
    )


def noise_floor_percent(networks: Sequence[NetworkMeasurement]) -> float:
    """Return the mean absolute difference of networks' two measurements, in percent of their mean.

    Each of the two has half of the samples, so this errs on the large side.
    """
    first = np.array([network.first_us for network in networks])
    second = np.array([network.second_us for network in networks])
    return float(100 * np.mean(np.abs(first - second) / ((first + second) / 2)))
