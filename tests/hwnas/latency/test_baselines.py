from __future__ import annotations

import numpy as np
import pytest

from hwnas.latency.baselines import baseline_predictions, relative_least_squares

# Three operators, four networks of the fit, two to predict.
COUNTS = np.array([[1.0, 0, 1], [0, 1, 1], [1, 1, 0], [2, 1, 1]])
COUNTS_NEW = np.array([[1.0, 1, 1], [0, 0, 2]])
ISOLATED_US = np.array([10.0, 20.0, 40.0])
IN_NETWORK_US = np.array([8.0, 15.0, 38.0])
MACS_NEW = np.array([500.0, 100.0])


def predictions(measured_us: list[float], macs: list[float]) -> dict[str, list[float]]:
    found = baseline_predictions(
        counts=COUNTS,
        isolated_us=ISOLATED_US,
        in_network_us=IN_NETWORK_US,
        macs=np.array(macs),
        measured_us=np.array(measured_us),
        counts_new=COUNTS_NEW,
        macs_new=MACS_NEW,
    )
    return {name: values.tolist() for name, values in found.items()}


def test_sums_are_sums() -> None:
    found = predictions([1, 2, 3, 4], [1, 2, 3, 4])
    assert set(found) == {"sum", "seams", "sum_affine", "sum_count_affine", "macs_affine"}
    assert found["sum"] == [70.0, 80.0]
    assert found["seams"] == [61.0, 76.0]


def test_affine_fits_recover_what_is_affine() -> None:
    sums = COUNTS @ ISOLATED_US
    found = predictions((7 + 0.5 * sums).tolist(), [1, 2, 3, 4])
    assert found["sum_affine"] == pytest.approx([7 + 35, 7 + 40])
    sizes = COUNTS.sum(axis=1)
    found = predictions((7 + 0.5 * sums + 3 * sizes).tolist(), [1, 2, 3, 4])
    assert found["sum_count_affine"] == pytest.approx([7 + 35 + 9, 7 + 40 + 6])


def test_macs_in_millions_are_no_trouble() -> None:
    macs = [1e9, 2e9, 5e9, 7e9]
    found = predictions([10 + 2e-8 * each for each in macs], macs)
    assert found["macs_affine"] == pytest.approx([10 + 2e-8 * 500, 10 + 2e-8 * 100])


def test_least_squares_are_of_relative_errors() -> None:
    # One constant for 1 and 3: sum((1 - c/1)^2 + (1 - c/3)^2) is least at c = 1.2, not at 2.
    found = relative_least_squares(np.ones((2, 1)), np.array([1.0, 3.0]))
    assert found.tolist() == pytest.approx([(1 + 1 / 3) / (1 + 1 / 9)])


def test_an_affine_fit_is_the_closed_form_of_weighted_least_squares() -> None:
    sums, measured = COUNTS @ ISOLATED_US, np.array([52.0, 61.0, 33.0, 80.0])
    weights = 1 / measured**2
    mean_x, mean_y = np.average(sums, weights=weights), np.average(measured, weights=weights)
    scale = np.sum(weights * (sums - mean_x) * (measured - mean_y)) / np.sum(
        weights * (sums - mean_x) ** 2
    )
    expected = mean_y + scale * (COUNTS_NEW @ ISOLATED_US - mean_x)
    found = predictions(measured.tolist(), [1, 2, 3, 4])
    assert found["sum_affine"] == pytest.approx(expected.tolist())


@pytest.mark.parametrize("networks", [1, 2])
def test_too_few_networks_for_a_fit_give_something_finite(networks: int) -> None:
    found = baseline_predictions(
        counts=COUNTS[:networks],
        isolated_us=ISOLATED_US,
        in_network_us=IN_NETWORK_US,
        macs=np.zeros(networks),  # and a column of nothing
        measured_us=np.full(networks, 50.0),
        counts_new=COUNTS_NEW,
        macs_new=MACS_NEW,
    )
    assert all(np.isfinite(values).all() for values in found.values())
    assert found["macs_affine"] == pytest.approx(50)
