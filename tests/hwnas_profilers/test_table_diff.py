"""Two tables side by side; and one table in a few figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hwnas.core.errors import LatencyTableError
from hwnas_profilers.records import EnergyStatistics, Measurement, Statistics, TableHeader
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.table_diff import diff_tables
from hwnas_profilers.table_summary import summarize_table
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., LatencyTable]


def key_of(width: int, **fields: Any) -> OperatorKey:
    return OperatorKey(kind="conv", in_shape=(3, 8, 8), out_shape=(width, 8, 8), **fields)


def measured(key: OperatorKey, median_us: float, half_width: float = 0.01) -> Measurement:
    return Measurement(
        key=key,
        statistics=Statistics(
            n=20,
            median_us=median_us,
            low_us=median_us * (1 - half_width),
            high_us=median_us * (1 + half_width),
            min_us=median_us * 0.9,
            p10_us=median_us * 0.95,
            p90_us=median_us * 1.1,
        ),
    )


@pytest.fixture
def make(header: TableHeader) -> Make:
    def table(name: str, *measurements: Measurement, **changes: Any) -> LatencyTable:
        return LatencyTable(
            path=Path(name),
            header=dataclasses.replace(header, **changes),
            measurements={each.key: each for each in measurements},
            calibration=None,
        )

    return table


def test_ratios_are_the_second_over_the_first(make: Make) -> None:
    first = make("a", *(measured(key_of(width), 10.0) for width in range(1, 12)))
    second = make("b", *(measured(key_of(width), 10.0 + width) for width in range(1, 12)))
    diff = diff_tables(first, second, top=2)
    assert diff.ratios is not None
    assert diff.ratios.median == pytest.approx(1.6)
    assert (diff.ratios.p10, diff.ratios.p90) == pytest.approx((1.2, 2.0))
    assert [row.operator for row in diff.farthest] == [str(key_of(11)), str(key_of(10))]
    assert diff.farthest[0].ratio == pytest.approx(2.1)


def test_the_farthest_may_be_faster(make: Make) -> None:
    first = make("a", measured(key_of(1), 10.0), measured(key_of(2), 10.0))
    second = make("b", measured(key_of(1), 4.0), measured(key_of(2), 15.0))
    assert diff_tables(first, second).farthest[0].operator == str(key_of(1))


def test_only_intervals_that_are_apart_are_a_difference(make: Make) -> None:
    first = make("a", *(measured(key_of(width), 10.0, 0.02) for width in (1, 2, 3)))
    second = make(
        "b",
        measured(key_of(1), 10.3, 0.02),
        measured(key_of(2), 10.5, 0.02),
        measured(key_of(3), 9.5, 0.02),
    )
    diff = diff_tables(first, second)
    assert diff.beyond_intervals == 2
    assert {row.operator: row.beyond_intervals for row in diff.farthest}[str(key_of(1))] is False


def test_operators_of_one_table_only_are_named(make: Make) -> None:
    diff = diff_tables(make("a", measured(key_of(1), 1.0)), make("b", measured(key_of(2), 1.0)))
    assert diff.operators_only_first == (str(key_of(1)),)
    assert diff.operators_only_second == (str(key_of(2)),)
    assert (diff.common, diff.ratios, diff.farthest) == (0, None, ())


def test_what_was_measured_where_decides_what_is_compared(make: Make, header: TableHeader) -> None:
    device = dataclasses.replace(header.provenance.device, name="Board", governor="ondemand")
    elsewhere = dataclasses.replace(header.provenance, device=device)
    later = dataclasses.replace(header.provenance, utc="2030-01-01T00:00:00+00:00")

    def comparison(**changes: Any) -> tuple[str, bool, set[str], set[str]]:
        diff = diff_tables(make("a"), make("b", **changes))
        decisive = {each.condition for each in diff.differences if each.decisive}
        beside = {each.condition for each in diff.differences if not each.decisive}
        return diff.comparison, diff.comparable, decisive, beside

    assert comparison() == ("same conditions", True, set(), set())
    assert comparison(provenance=later) == ("same conditions", True, set(), {"utc"})
    assert comparison(threads=2) == ("targets", False, {"threads"}, set())
    assert comparison(provenance=elsewhere) == ("devices", False, {"device"}, {"governor"})
    assert comparison(space_fingerprint="x", provenance=elsewhere)[0] == "spaces"


def test_precisions_are_compared_operator_by_operator(make: Make) -> None:
    first = make("a", measured(key_of(1), 10.0))
    second = make("b", measured(key_of(1, dtype="fp16", batch=4), 5.0), dtype="fp16", batch=4)
    diff = diff_tables(first, second)
    assert diff.common == 1
    assert diff.farthest[0].ratio == 0.5
    assert diff.comparison == "targets"


def test_a_summary_shows_extent_and_the_slowest(make: Make) -> None:
    table = make(
        "a", *(measured(key_of(width), float(width), 0.001 * width) for width in (3, 9, 5))
    )
    summary = summarize_table(table, top=2)
    assert (summary.operators, summary.fastest_us, summary.slowest_us) == (3, 3.0, 9.0)
    assert summary.interval_percent == pytest.approx((1.0, 1.8))
    assert [row.median_us for row in summary.rows] == [9.0, 5.0]
    assert summary.calibration is None


def test_a_summary_lists_what_is_asked_for(make: Make) -> None:
    stem = OperatorKey(kind="stem", in_shape=(3, 8, 8), out_shape=(8, 8, 8), kernel=5)
    energy = EnergyStatistics(n=1, median_uj=3.0, low_uj=3.0, high_uj=3.0)
    table = make(
        "a",
        measured(key_of(1), 1.0),
        measured(key_of(2), 2.0),
        dataclasses.replace(measured(stem, 3.0), energy=energy),
    )

    def rows(**filters: Any) -> list[float]:
        return [row.median_us for row in summarize_table(table, top=1, **filters).rows]

    assert rows(kind="conv") == [2.0, 1.0]
    assert rows(like="K5") == [3.0]
    assert rows(kind="conv", like="->1x") == [1.0]
    assert summarize_table(table, kind="stem").rows[0].energy_uj == 3.0
    with pytest.raises(LatencyTableError, match="no operator of kind `stm`") as caught:
        rows(kind="stm")
    assert "did you mean `stem`" in caught.value.hint
    with pytest.raises(LatencyTableError, match="no operator like `k9`"):
        rows(like="k9")


def test_an_empty_table_has_a_summary(make: Make) -> None:
    summary = summarize_table(make("a"))
    assert (summary.operators, summary.fastest_us, summary.interval_percent) == (0, None, None)
