from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hwnas.latency.curvature import bent, straight

totals = st.floats(-1e3, 1e7)
curvatures = st.floats(0, 1e-1)


@given(total=totals)
def test_without_curvature_nothing_changes_to_the_last_bit(total: float) -> None:
    assert bent(total, 0.0) == total
    assert straight(total, 0.0) == total


@given(total=totals, curvature=curvatures)
def test_one_undoes_the_other(total: float, curvature: float) -> None:
    np.testing.assert_allclose(straight(bent(total, curvature), curvature), total, rtol=1e-9)


@given(total=totals, more=st.floats(1e-3, 1e3), curvature=curvatures)
def test_more_work_takes_longer(total: float, more: float, curvature: float) -> None:
    assert bent(total + more, curvature) > bent(total, curvature)


def test_what_cannot_run_stays_so() -> None:
    for curvature in (0.0, 1e-3):
        assert bent(np.inf, curvature) == np.inf
        assert straight(np.inf, curvature) == np.inf


def test_only_what_is_above_zero_bends() -> None:
    np.testing.assert_array_equal(bent(np.array([-2.0, 0.0, 10.0]), 0.01), [-2.0, 0.0, 11.0])
