from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hwnas.core.errors import DataError
from hwnas.robustness.evaluate import Accuracy
from hwnas.study.statistics import (
    interval_over_images,
    mean_over_seeds,
    paired_difference,
    pareto_places,
)

FIGURES = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=6)


def test_the_t_interval_of_three_seeds_is_that_of_the_tables() -> None:
    # Student's t at 97.5 % with 2 degrees of freedom is 4.3027.
    found = mean_over_seeds([0.40, 0.42, 0.44])
    half = 4.3027 * 0.02 / math.sqrt(3)
    assert found.n == 3
    assert found.mean == pytest.approx(0.42)
    assert found.low == pytest.approx(0.42 - half, abs=1e-5)
    assert found.high == pytest.approx(0.42 + half, abs=1e-5)


def test_one_seed_has_no_interval() -> None:
    found = mean_over_seeds([0.3])
    assert (found.mean, found.low, found.high) == (0.3, None, None)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_what_is_no_figure_has_no_mean(values: list[float]) -> None:
    with pytest.raises(DataError, match="finite"):
        mean_over_seeds(values)


@given(FIGURES)
def test_an_interval_over_seeds_holds_its_mean_and_grows_with_the_spread(
    values: list[float],
) -> None:
    found = mean_over_seeds(values)
    wider = mean_over_seeds([3 * value for value in values])
    assert found.low is not None
    assert found.high is not None
    assert wider.low is not None
    assert wider.high is not None
    assert found.low <= found.mean <= found.high
    assert wider.high - wider.low == pytest.approx(3 * (found.high - found.low), abs=1e-12)


def test_intervals_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        found = mean_over_seeds(generator.normal(0.5, 0.1, 3).tolist())
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.5 <= found.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_a_paired_difference_is_that_of_the_paired_t_test() -> None:
    arm, baseline = [0.51, 0.48, 0.55, 0.50], [0.47, 0.46, 0.52, 0.51]
    found = paired_difference(dict(enumerate(arm)), dict(enumerate(baseline)))
    known = stats.ttest_rel(arm, baseline)
    interval = known.confidence_interval(0.95)
    assert found is not None
    assert found.mean == pytest.approx(0.02)
    assert found.p == pytest.approx(float(known.pvalue))
    assert (found.low, found.high) == pytest.approx((float(interval.low), float(interval.high)))
    assert (found.above, found.below) == (3, 1)
    # Of four signs, 3 or more of one kind: 2 * (4 + 1) / 16.
    assert found.p_sign == pytest.approx(0.625)


def test_pairing_takes_out_what_both_arms_share() -> None:
    """Seeds that are hard for both differ far more than the arms do."""
    baseline = {0: 0.2, 1: 0.5, 2: 0.8}
    arm = {0: 0.23, 1: 0.54, 2: 0.83}
    found = paired_difference(arm, baseline)
    assert found is not None
    assert found.low is not None
    assert found.low > 0
    apart = mean_over_seeds(list(arm.values()))
    assert apart.low is not None
    assert apart.low < 0


def test_only_common_seeds_are_compared() -> None:
    found = paired_difference({0: 0.5, 3: 0.9}, {0: 0.4, 1: 0.1})
    assert found is not None
    assert (found.n, found.low, found.p) == (1, None, None)
    assert found.mean == pytest.approx(0.1)
    assert paired_difference({0: 0.5}, {1: 0.5}) is None


def test_arms_that_are_alike_differ_by_nothing() -> None:
    found = paired_difference({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6})
    assert found is not None
    assert (found.mean, found.p, found.p_sign, found.above, found.below) == (0.0, None, None, 0, 0)


def test_more_seeds_are_no_more_images() -> None:
    once = Accuracy.from_counts(60, 100)
    assert interval_over_images([0.6], 100) == pytest.approx((once.low, once.high))
    assert interval_over_images([0.6] * 5, 100) == pytest.approx((once.low, once.high))
    assert interval_over_images([1.0, 1.0, 1.0], 50)[1] == 1.0
    assert interval_over_images([0.0, 0.0], 50)[0] == 0.0


POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=10)


@given(POINTS)
def test_the_front_is_what_brute_force_finds(points: list[tuple[int, int]]) -> None:
    costs, values = [float(cost) for cost, _ in points], [float(value) for _, value in points]
    found = {points[place] for place in pareto_places(costs, values)}
    best = {
        (cost, value)
        for cost, value in points
        if not any(
            other <= cost and more >= value and (other, more) != (cost, value)
            for other, more in points
        )
    }
    assert found == best
    ordered = [costs[place] for place in pareto_places(costs, values)]
    assert ordered == sorted(ordered)
