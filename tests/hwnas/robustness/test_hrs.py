from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.core.errors import DataError
from hwnas.robustness.hrs import HarmonicRobustness, harmonic_robustness

shares = st.floats(0.0, 1.0)


@given(shares, shares)
def test_score_lies_between_the_two_and_below_their_mean(clean: float, robust: float) -> None:
    score = harmonic_robustness(clean, robust)
    assert min(clean, robust) - 1e-12 <= score <= (clean + robust) / 2 + 1e-12
    assert score == harmonic_robustness(robust, clean)


def test_known_values() -> None:
    assert harmonic_robustness(0.0, 0.0) == 0.0
    assert harmonic_robustness(1.0, 0.0) == 0.0
    assert harmonic_robustness(1.0, 1.0) == 1.0
    assert harmonic_robustness(0.8, 0.4) == pytest.approx(0.64 / 1.2)


@pytest.mark.parametrize("pair", [(81.6, 20.0), (0.5, -0.1), (float("nan"), 0.5)])
def test_what_is_no_share_is_refused(pair: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="a share between 0 and 1"):
        harmonic_robustness(*pair)


def flags(right: int, n: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.arange(n) < right


def test_interval_holds_the_score_and_narrows_with_samples() -> None:
    few = HarmonicRobustness.from_flags(flags(80, 100), flags(40, 100), seed=0)
    many = HarmonicRobustness.from_flags(flags(800, 1000), flags(400, 1000), seed=0)
    assert few.value == many.value == pytest.approx(harmonic_robustness(0.8, 0.4))
    for score in (few, many):
        assert score.low < score.value < score.high
    # Of ten times the samples, an interval is the root of ten narrower.
    ratio = (few.high - few.low) / (many.high - many.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.1)


def test_interval_is_that_of_samples_drawn_one_by_one() -> None:
    clean, robust = flags(70, 90), np.roll(flags(45, 90), 10)
    found = HarmonicRobustness.from_flags(clean, robust, seed=3)
    generator = np.random.default_rng(5)
    drawn = generator.integers(90, size=(10_000, 90))
    both = clean[drawn].mean(1), robust[drawn].mean(1)
    scores = 2 * both[0] * both[1] / (both[0] + both[1])
    np.testing.assert_allclose(
        (found.low, found.high), np.quantile(scores, (0.025, 0.975)), atol=0.01
    )


def test_the_seed_decides_the_interval() -> None:
    make = HarmonicRobustness.from_flags
    first, again, other = (make(flags(50, 60), flags(9, 60), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.value == other.value
    assert (first.low, first.high) != (other.low, other.high)


@pytest.mark.parametrize(("right", "robust", "value"), [(0, 0, 0.0), (10, 10, 1.0), (10, 0, 0.0)])
def test_samples_that_are_all_alike_have_no_width(right: int, robust: int, value: float) -> None:
    found = HarmonicRobustness.from_flags(flags(right, 10), flags(robust, 10), seed=0)
    assert (found.low, found.value, found.high) == (value, value, value)


def test_flags_of_different_samples_are_refused() -> None:
    with pytest.raises(DataError, match="both flags of every sample"):
        HarmonicRobustness.from_flags(flags(1, 3), flags(1, 4), seed=0)
    with pytest.raises(DataError, match="both flags of every sample"):
        HarmonicRobustness.from_flags(flags(0, 0), flags(0, 0), seed=0)
