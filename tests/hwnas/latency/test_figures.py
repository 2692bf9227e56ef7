from __future__ import annotations

import numpy as np
import pytest

from hwnas.core.errors import DataError
from hwnas.latency.figures import error_figures, noise_floor_percent
from hwnas_profilers.records import NetworkMeasurement, Statistics


def test_a_prediction_that_is_right_has_no_error() -> None:
    measured = np.array([1.0, 2.0, 4.0])
    figures = error_figures(measured, measured)
    assert figures.mape_percent == 0
    assert figures.spearman == pytest.approx(1)
    assert figures.kendall == pytest.approx(1)
    assert figures.within_5_percent == 100


def test_figures_are_what_they_are_called() -> None:
    measured = np.array([100.0, 200.0, 300.0, 400.0])
    figures = error_figures(np.array([104.0, 184.0, 360.0, 300.0]), measured)
    assert figures.n == 4
    assert figures.mape_percent == pytest.approx((4 + 8 + 20 + 25) / 4)
    assert figures.within_5_percent == 25
    assert figures.within_10_percent == 50
    assert figures.kendall == pytest.approx(2 / 3)
    assert figures.spearman == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("predicted", "measured"),
    [
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]),
    ],
)
def test_a_rank_that_is_undefined_is_none(predicted: list[float], measured: list[float]) -> None:
    figures = error_figures(np.array(predicted), np.array(measured))
    assert figures.spearman is None
    assert figures.kendall is None


def test_no_network_is_nothing_to_judge_by() -> None:
    with pytest.raises(DataError, match="no network to judge"):
        error_figures(np.array([]), np.array([]))


def network(first_us: float, second_us: float) -> NetworkMeasurement:
    return NetworkMeasurement(
        choices=(0,),
        macs=1,
        statistics=Statistics(n=20, median_us=1, low_us=1, high_us=1, min_us=1, p10_us=1, p90_us=1),
        first_us=first_us,
        second_us=second_us,
    )


def test_the_noise_floor_is_the_difference_of_both_halves() -> None:
    assert noise_floor_percent([network(99, 101), network(1_020, 980)]) == pytest.approx(3)
    assert noise_floor_percent([network(5, 5)]) == 0
