from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hwnas.core.environment import provenance
from hwnas.core.errors import LatencyTableMiss
from hwnas.latency.in_network import OperatorCosts
from hwnas_profilers.records import (
    CalibrationRecord,
    ErrorFigures,
    Measurement,
    PairMeasurement,
    Statistics,
    TableHeader,
)
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.workload import OperatorKey

STEM = OperatorKey(kind="stem", in_shape=(3, 8, 8), out_shape=(4, 4, 4))
BLOCK = OperatorKey(kind="mbconv", in_shape=(4, 4, 4), out_shape=(4, 4, 4), hidden=8)
WIDE = OperatorKey(kind="mbconv", in_shape=(4, 4, 4), out_shape=(4, 4, 4), hidden=24)
HEAD = OperatorKey(kind="head", in_shape=(4, 4, 4), out_shape=(10, 1, 1))
ALONE_US = {STEM: 30.0, BLOCK: 20.0, HEAD: 5.0}


def statistics(median_us: float) -> Statistics:
    return Statistics(
        n=10,
        median_us=median_us,
        low_us=median_us,
        high_us=median_us,
        min_us=median_us,
        p10_us=median_us,
        p90_us=median_us,
    )


def pair(before: OperatorKey, after: OperatorKey, seam_us: float) -> PairMeasurement:
    both_us = ALONE_US[before] + ALONE_US[after] - seam_us
    return PairMeasurement(before=before, after=after, statistics=statistics(both_us))


@pytest.fixture
def table() -> LatencyTable:
    return LatencyTable(
        path=Path("made-up.jsonl"),
        header=TableHeader(
            target="onnxruntime-cpu",
            space="made up",
            space_spec={},
            space_fingerprint="",
            threads=1,
            batch=1,
            dtype="fp32",
            settings={},
            provenance=provenance(),
        ),
        measurements={
            key: Measurement(key=key, statistics=statistics(us)) for key, us in ALONE_US.items()
        },
        calibration=None,
    )


def with_pairs(table: LatencyTable, *pairs: PairMeasurement) -> LatencyTable:
    return replace(table, pairs={(each.before, each.after): each for each in pairs})


def calibrated(table: LatencyTable) -> LatencyTable:
    figures = ErrorFigures(
        n=3,
        mape_percent=1,
        spearman=None,
        kendall=None,
        within_5_percent=100,
        within_10_percent=100,
    )
    return replace(
        table,
        calibration=CalibrationRecord(
            intercept_us=7.0,
            scale=1.5,
            per_operator_us=2.0,
            operators_us=((BLOCK, 12.0),),
            noise_percent=1.0,
            fit=figures,
            holdout=figures,
            baselines={},
            noise_floor_percent=0.5,
            networks=(),
            holdout_networks=(),
            seed=0,
            utc="",
        ),
    )


def test_without_pairs_latencies_alone_are_added_up(table: LatencyTable) -> None:
    costs = OperatorCosts(table)
    assert costs.intercept_us == 0
    assert {key: costs.latency_us(key) for key in ALONE_US} == ALONE_US


def test_a_seam_is_shared_by_the_operators_at_its_sides(table: LatencyTable) -> None:
    # Seams of 4, 6 and 8: all of one shape, so what counts is 6.
    pairs = (pair(STEM, BLOCK, 4), pair(BLOCK, BLOCK, 6), pair(BLOCK, HEAD, 8))
    costs = OperatorCosts(with_pairs(table, *pairs))
    assert {key: costs.latency_us(key) for key in ALONE_US} == {
        STEM: 27.0,  # nothing comes before the image
        BLOCK: 14.0,
        HEAD: 2.0,  # nor after the classes
    }
    network = [STEM, BLOCK, BLOCK, HEAD]
    total_us = sum(ALONE_US[key] for key in network)
    assert sum(map(costs.latency_us, network)) == total_us - 3 * 6


def test_no_operator_takes_less_than_nothing(table: LatencyTable) -> None:
    costs = OperatorCosts(with_pairs(table, pair(BLOCK, HEAD, 12)))
    assert costs.prior_us(HEAD) == costs.latency_us(HEAD) == 0
    apart = OperatorCosts(with_pairs(table, pair(BLOCK, HEAD, -12)))
    assert apart.latency_us(HEAD) == ALONE_US[HEAD]  # and joining is never taken to cost time


def test_a_calibration_has_the_last_word_on_the_operators_that_it_knows(
    table: LatencyTable,
) -> None:
    costs = OperatorCosts(calibrated(with_pairs(table, pair(BLOCK, HEAD, 2))))
    assert costs.intercept_us == 7
    assert costs.latency_us(BLOCK) == 12
    assert costs.prior_us(BLOCK) == 18  # as it was before


def test_an_operator_measured_after_the_calibration_has_the_mean_correction(
    table: LatencyTable,
) -> None:
    costs = OperatorCosts(calibrated(with_pairs(table, pair(BLOCK, HEAD, 2))))
    assert costs.latency_us(HEAD) == 1.5 * (5 - 1) + 2


def test_an_operator_that_is_not_measured_is_a_miss(table: LatencyTable) -> None:
    for costs in (OperatorCosts(table), OperatorCosts(calibrated(table))):
        with pytest.raises(LatencyTableMiss, match="nearest: mbconv"):
            costs.latency_us(WIDE)
        with pytest.raises(LatencyTableMiss):
            costs.prior_us(WIDE)
