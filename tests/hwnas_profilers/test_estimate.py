"""Estimates are near a law that they were not told, know how far off they are, and are flagged."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hwnas.core.errors import LatencyTableError, LatencyTableMismatch, LatencyTableMiss
from hwnas_profilers.estimate import (
    MAX_OPERATORS,
    MIN_OPERATORS,
    Estimate,
    Estimator,
    estimates_used,
    estimator_from_table,
)
from hwnas_profilers.records import Measurement, Statistics, TableHeader
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.table_merge import table_bytes
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Make = Callable[[Iterable[OperatorKey]], LatencyTable]

NOISE = 0.03


def mbconv(width_in: int, width: int, side: int, kernel: int, expansion: int) -> OperatorKey:
    return OperatorKey(
        kind="mbconv",
        in_shape=(width_in, side, side),
        out_shape=(width, side, side),
        kernel=kernel,
        hidden=expansion * width_in,
        variant="hswish",
    )


def law_us(key: OperatorKey) -> float:
    """Return what a made-up device takes: a call, arithmetic, and traffic."""
    inputs, height, width = key.in_shape
    pixels, outputs = height * width, key.out_shape[0]
    macs = key.hidden * pixels * (inputs + key.kernel**2 + outputs)
    return 3 + macs / 2e4 + (2 * key.hidden + inputs + outputs) * pixels / 4e3


WIDTHS, SIDES, KERNELS, EXPANSIONS = (16, 24, 32, 48), (8, 16), (3, 5, 7), (1, 2, 4, 6)
KEYS = [
    mbconv(*each)
    for each in itertools.product(WIDTHS, WIDTHS, SIDES, KERNELS, EXPANSIONS)
    if each[0] <= each[1]
]
LEFT_OUT = {KEYS[index] for index in np.random.default_rng(3).permutation(len(KEYS))[:80]}


@pytest.fixture(scope="module")
def make_table() -> Make:
    from hwnas.core.environment import provenance

    header = TableHeader(
        target="onnxruntime-cpu",
        space="tiny",
        space_spec={},
        space_fingerprint="abc",
        threads=1,
        batch=1,
        dtype="fp32",
        settings={},
        provenance=provenance(),
    )

    def make(keys: Iterable[OperatorKey]) -> LatencyTable:
        generator = np.random.default_rng(0)
        measurements = {}
        for key in keys:
            median_us = law_us(key) * float(np.exp(generator.normal(0, NOISE)))
            measurements[key] = Measurement(
                key=key,
                statistics=Statistics(
                    n=20,
                    median_us=median_us,
                    low_us=median_us,
                    high_us=median_us,
                    min_us=median_us,
                    p10_us=median_us,
                    p90_us=median_us,
                ),
            )
        return LatencyTable(
            path=Path("t.jsonl"), header=header, measurements=measurements, calibration=None
        )

    return make


@pytest.fixture(scope="module")
def table(make_table: Make) -> LatencyTable:
    return make_table(key for key in KEYS if key not in LEFT_OUT)


@pytest.fixture(scope="module")
def estimator(table: LatencyTable) -> Estimator:
    return estimator_from_table(table)


def test_left_out_operators_are_near_and_within_what_is_said(estimator: Estimator) -> None:
    keys = sorted(LEFT_OUT, key=str)
    found = estimator.estimate(keys)
    assert [each.key for each in found] == keys
    errors = [abs(each.median_us / law_us(each.key) - 1) for each in found]
    assert np.mean(errors) < NOISE
    # A new measurement has noise of its own; that is what a 90 % interval is for.
    generator = np.random.default_rng(7)
    truths = [law_us(each.key) * float(np.exp(generator.normal(0, NOISE))) for each in found]
    inside = [
        each.low_us <= truth <= each.high_us for each, truth in zip(found, truths, strict=True)
    ]
    assert 0.8 <= np.mean(inside) <= 0.99
    # ... and not because it is wide: 90 % of normal noise lies within 3.3 deviations.
    assert np.median([each.width_percent for each in found]) < 1.5 * 3.3 * NOISE * 100
    assert all(each.low_us <= each.median_us <= each.high_us for each in found)


def test_its_own_error_is_what_it_turns_out_to_be(estimator: Estimator) -> None:
    error = estimator.error
    assert error.n == len(KEYS) - len(LEFT_OUT)
    assert 0.5 * 100 * NOISE < error.mape_percent < 2 * 100 * NOISE
    assert 85 <= error.coverage_percent <= 95


def test_operators_of_new_shapes_have_wider_intervals(
    make_table: Make, estimator: Estimator
) -> None:
    new = [mbconv(20, 28, 12, kernel, expansion) for kernel in KERNELS for expansion in (2, 4)]
    known = [key for key in sorted(LEFT_OUT, key=str) if key.hidden > key.in_shape[0]]
    found = estimator.estimate([*new, *known])
    width_new = np.median([each.width_percent for each in found[: len(new)]])
    width_known = np.median([each.width_percent for each in found[len(new) :]])
    assert width_new > width_known
    inside = [each.low_us <= law_us(each.key) <= each.high_us for each in found[: len(new)]]
    assert np.mean(inside) >= 0.8
    assert not any(each.extrapolated for each in found)
    assert estimator.error_of_new_shapes.mape_percent >= estimator.error.mape_percent


def test_more_work_is_not_estimated_as_faster(estimator: Estimator) -> None:
    """Kernel, expansion and width each add work: what they add is more than the noise."""
    rows = [
        [mbconv(24, 24, 16, kernel, 4) for kernel in (3, 5, 7)],
        [mbconv(24, 24, 16, 5, expansion) for expansion in (1, 2, 4, 6)],
        [mbconv(24, width, 16, 5, 4) for width in (24, 32, 48)],
        [mbconv(32, 32, side, 5, 4) for side in (8, 16)],
    ]
    for row in rows:
        medians = [each.median_us for each in estimator.estimate(row)]
        assert medians == sorted(medians)


def test_what_is_outside_is_flagged(estimator: Estimator) -> None:
    known = mbconv(24, 32, 8, 5, 4)
    outside = [
        mbconv(24, 32, 8, 9, 4),
        mbconv(24, 32, 8, 5, 12),
        mbconv(24, 96, 8, 5, 4),
        mbconv(24, 32, 64, 5, 4),
        replace(known, variant="relu"),
    ]
    assert [each.extrapolated for each in estimator.estimate([known, *outside])] == [
        False, *[True] * len(outside)
    ]  # fmt: skip


def _medians(estimates: Iterable[Estimate]) -> list[float]:
    return [each.median_us for each in estimates]


def test_an_estimate_is_the_same_for_the_same_seed(table: LatencyTable) -> None:
    keys = sorted(LEFT_OUT, key=str)[:5]
    first, again, other = (
        estimator_from_table(table, seed=seed).estimate(keys) for seed in (1, 1, 2)
    )
    # Sums may be rounded otherwise where arrays lie otherwise in memory.
    assert _medians(first) == pytest.approx(_medians(again), rel=1e-6)
    assert _medians(first) != pytest.approx(_medians(other), rel=1e-4)


def test_large_tables_are_drawn_from(make_table: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas_profilers.estimate.MAX_OPERATORS", 60)
    assert MAX_OPERATORS > 60
    estimator = estimator_from_table(make_table(KEYS[:150]))
    assert estimator.error.n == 60


def test_too_small_a_table_is_refused(make_table: Make) -> None:
    with pytest.raises(LatencyTableError, match=f"29 operators; .* at least {MIN_OPERATORS}"):
        estimator_from_table(make_table(KEYS[: MIN_OPERATORS - 1]))


def test_too_few_shapes_are_refused_for_new_ones_only(make_table: Make) -> None:
    shapes = sorted({(key.in_shape, key.out_shape) for key in KEYS})[:4]
    keys = [key for key in KEYS if (key.in_shape, key.out_shape) in shapes]
    estimator = estimator_from_table(make_table(keys[:-1]))
    assert estimator.estimate(keys[-1:])[0].median_us > 0
    with pytest.raises(LatencyTableError, match="operators of 4 shapes"):
        estimator.estimate([mbconv(17, 17, 8, 3, 4)])


def test_what_nothing_is_known_of_is_refused(estimator: Estimator) -> None:
    key = mbconv(24, 32, 8, 5, 4)
    with pytest.raises(LatencyTableMiss, match="no operator of kind `attention`, only mbconv"):
        estimator.estimate([replace(key, kind="attention")])
    for other in (replace(key, batch=2), replace(key, dtype="fp16")):
        with pytest.raises(LatencyTableMismatch, match="batch 1 and fp32"):
            estimator.estimate([other])


def test_a_table_answers_with_estimates_only_where_asked(
    table: LatencyTable, estimator: Estimator
) -> None:
    measured, missing = next(iter(table.measurements)), sorted(LEFT_OUT, key=str)[0]
    with pytest.raises(LatencyTableMiss, match="--estimate"):
        table.latency_us(missing)
    estimated = table.with_estimates([measured, missing])
    assert set(estimated.estimates) == {missing}
    again = estimator.estimate([missing])[0].median_us
    assert estimated.latency_us(missing) == pytest.approx(again, rel=1e-6)
    assert estimated.latency_us(measured) == table.latency_us(measured)
    with pytest.raises(LatencyTableMiss, match="--estimate"):
        table.latency_us(missing)
    assert table.with_estimates([measured]) is table


def test_an_estimate_never_replaces_a_measurement(table: LatencyTable) -> None:
    measured = next(iter(table.measurements))
    wrong = replace(estimator_from_table(table).estimate([measured])[0], median_us=1e9)
    assert replace(table, estimates={measured: wrong}).latency_us(measured) < 1e9


def test_what_the_runtime_refuses_is_not_estimated(table: LatencyTable) -> None:
    refused = sorted(LEFT_OUT, key=str)[0]
    estimated = replace(table, unsupported={refused: "no"}).with_estimates([refused])
    assert not estimated.estimates
    with pytest.raises(LatencyTableMiss, match="does not support"):
        estimated.latency_us(refused)


def test_estimates_are_no_part_of_a_file(table: LatencyTable) -> None:
    assert table_bytes(table.with_estimates(LEFT_OUT)) == table_bytes(table)


def test_what_rests_on_estimates_can_say_so(table: LatencyTable) -> None:
    missing = [*sorted(LEFT_OUT, key=str)[:2], mbconv(24, 96, 8, 5, 4)]
    measured = next(iter(table.measurements))
    estimated = table.with_estimates([*missing, KEYS[0]])
    used = estimates_used(estimated, [measured, *missing, missing[0]])
    assert (used.operators, used.extrapolated) == (3, 1)
    assert used.widest_percent == max(estimated.estimates[key].width_percent for key in missing)
    nothing = estimates_used(estimated, [measured])
    assert (nothing.operators, nothing.widest_percent) == (0, None)
