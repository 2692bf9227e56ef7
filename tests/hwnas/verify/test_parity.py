from __future__ import annotations

import numpy as np
import pytest

from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.errors import DataError
from hwnas.verify.parity import Parity, parity_of

TWIN = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.5], [1.0, 0.0, 4.0]], dtype=np.float32)


def test_equal_logits_have_no_distance() -> None:
    parity = parity_of(TWIN, TWIN.copy())
    assert (parity.max_abs_diff, parity.relative_l2, parity.margin_drift_p99) == (0, 0, 0)
    assert (parity.agreement, parity.nonfinite, parity.tie_rate) == (1, 0, 0)
    assert parity.distinct_logits_twin == parity.distinct_logits_engine == 6


def test_known_differences_are_measured() -> None:
    engine = TWIN.copy()
    engine[1, 2] = 2.5  # the second image changes its class, its margin stays
    engine[0, 0] = 1.0  # the first one ties, its margin falls by 2
    parity = parity_of(TWIN, engine)
    assert parity.max_abs_diff == 2
    assert parity.relative_l2 == pytest.approx(np.sqrt(5) / np.linalg.norm(TWIN), rel=1e-6)
    assert parity.agreement == pytest.approx(2 / 3)
    assert parity.tie_rate == pytest.approx(1 / 3)
    assert parity.margin_drift_p99 == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_nan_makes_incomparable_is_none_and_survives_json(value: float) -> None:
    engine = TWIN.copy()
    engine[0, 0] = value
    parity = parity_of(TWIN, engine)
    assert parity.max_abs_diff is parity.relative_l2 is parity.margin_drift_p99 is None
    assert parity.nonfinite == 1
    assert parity.agreement == pytest.approx(2 / 3)
    assert decode_json(encode_json(parity), Parity, source="test") == parity


def test_a_twin_of_zeros_has_no_relative_distance() -> None:
    zeros = np.zeros_like(TWIN)
    assert parity_of(zeros, TWIN).relative_l2 is None
    assert parity_of(zeros, zeros).relative_l2 == 0


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="another network"):
        parity_of(TWIN, TWIN[:, :2])
    with pytest.raises(DataError, match="twin itself"):
        parity_of(np.full_like(TWIN, np.nan), TWIN)
