from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core.errors import DataError
from hwnas_profilers.statistics import (
    MIN_SAMPLES,
    median_interval_ranks,
    relative_width,
    summarize,
)


def coverage(n: int, low: int) -> float:
    missed = sum(comb(n, k) for k in range(low)) / float(2**n)
    return 1 - 2 * missed


@given(st.integers(MIN_SAMPLES, 400), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_ranks_are_the_narrowest_symmetric_pair_that_covers_enough(
    n: int, confidence: float
) -> None:
    if coverage(n, 1) < confidence:
        with pytest.raises(DataError):
            median_interval_ranks(n, confidence)
        return
    low, high = median_interval_ranks(n, confidence)
    assert low + high == n + 1
    assert low <= high
    assert coverage(n, low) >= confidence
    if low + 1 <= n - low:
        assert coverage(n, low + 1) < confidence


def test_published_ranks() -> None:
    # The textbook values: all of six samples, and the 6th and 15th of twenty.
    assert median_interval_ranks(6) == (1, 6)
    assert median_interval_ranks(20) == (6, 15)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_samples_have_no_interval(n: int) -> None:
    with pytest.raises(DataError, match="at least 6"):
        median_interval_ranks(n)
    assert relative_width(np.ones(n)) == float("inf")


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    summaries = [summarize(generator.lognormal(size=30)) for _ in range(1_000)]
    share = np.mean([one.low_us <= 1 <= one.high_us for one in summaries])
    assert 0.94 <= share <= 0.98


@given(st.lists(st.floats(1e-3, 1e9), min_size=MIN_SAMPLES, max_size=60), st.randoms())
@settings(max_examples=50)
def test_a_summary_is_ordered_and_ignores_the_order_of_samples(samples, random) -> None:  # type: ignore[no-untyped-def]
    one = summarize(np.array(samples))
    assert one.min_us <= one.low_us <= one.median_us <= one.high_us
    assert one.min_us <= one.p10_us <= one.median_us <= one.p90_us
    random.shuffle(samples)
    assert summarize(np.array(samples)) == one


def test_an_outlier_does_not_move_the_summary() -> None:
    samples = np.linspace(9, 11, 41)
    spoiled = samples.copy()
    spoiled[-1] = 1e6
    assert summarize(spoiled).median_us == summarize(samples).median_us
    assert relative_width(spoiled) == relative_width(samples)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_no_clock_can_have_measured_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match="clock"):
        summarize(np.array([1.0] * 9 + [bad]))


def test_the_width_of_zeros_is_infinite() -> None:
    assert relative_width(np.zeros(10)) == float("inf")
