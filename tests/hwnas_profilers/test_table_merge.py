"""Parts of a table make one, and nothing is mixed that does not belong together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from hwnas.core.errors import LatencyTableError, LatencyTableMismatch
from hwnas_profilers.records import (
    CalibrationRecord,
    ErrorFigures,
    Measurement,
    PairMeasurement,
    Session,
    TableHeader,
)
from hwnas_profilers.statistics import summarize
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.table_merge import merge_tables, table_bytes
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., LatencyTable]

OUT = Path("merged.jsonl")
FIGURES = ErrorFigures(
    n=0, mape_percent=1.0, spearman=None, kendall=None, within_5_percent=100, within_10_percent=100
)


def key_of(width: int) -> OperatorKey:
    return OperatorKey(kind="conv", in_shape=(3, 8, 8), out_shape=(width, 8, 8), kernel=3)


AFTER = OperatorKey(kind="conv", in_shape=(8, 8, 8), out_shape=(8, 8, 8), kernel=3)


def measured(key: OperatorKey, median_us: float, *, width: float = 0.1) -> Measurement:
    samples_us = np.linspace(1 - width, 1 + width, 31) * median_us
    return Measurement(key=key, statistics=summarize(samples_us))


def session_of(utc: str) -> Session:
    return Session(
        utc=utc,
        seconds=1.0,
        workloads=1,
        rounds=1,
        disturbed_rounds=0,
        noisy_rounds=0,
        reasons={},
        load_percent=None,
        temperature_c=None,
        clock_mhz=None,
        pilot_us=None,
    )


def calibration_of(*keys: OperatorKey, seed: int = 0) -> CalibrationRecord:
    return CalibrationRecord(
        intercept_us=0.0,
        scale=1.0,
        per_operator_us=0.0,
        operators_us=tuple((key, 1.0) for key in keys),
        noise_percent=0.5,
        fit=FIGURES,
        holdout=FIGURES,
        baselines={},
        noise_floor_percent=0.5,
        networks=(),
        holdout_networks=(),
        seed=seed,
        utc="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture
def make(header: TableHeader) -> Make:
    def table(name: str, *measurements: Measurement, **fields: Any) -> LatencyTable:
        values = {"header": header, "calibration": None} | fields
        return LatencyTable(
            path=Path(name), measurements={each.key: each for each in measurements}, **values
        )

    return table


def test_parts_make_a_whole_that_can_be_read_back(make: Make, tmp_path: Path) -> None:
    pair = PairMeasurement(
        before=key_of(8), after=AFTER, statistics=measured(AFTER, 3.0).statistics
    )
    sessions = [session_of("2026-01-02T00:00:00+00:00"), session_of("2026-01-01T00:00:00+00:00")]
    first = make("a", measured(key_of(8), 8.0), sessions=sessions[:1])
    second = make(
        "b",
        measured(key_of(16), 16.0),
        sessions=sessions,
        pairs={(key_of(8), AFTER): pair},
        unsupported={key_of(7): "no"},
    )
    merged = merge_tables([first, second], tmp_path / "m.jsonl")
    assert merged.conflicts == 0
    (tmp_path / "m.jsonl").write_bytes(table_bytes(merged.table))
    read = LatencyTable.read(tmp_path / "m.jsonl")
    assert read == merged.table
    assert read.measurements == first.measurements | second.measurements  # type: ignore[operator]
    assert (read.pairs, read.unsupported) == (second.pairs, second.unsupported)
    assert read.sessions == (sessions[1], sessions[0])  # each once, in order of time


def test_equal_figures_are_no_conflict(make: Make) -> None:
    tables = [make(name, measured(key_of(8), 8.0)) for name in "ab"]
    assert merge_tables(tables, OUT).conflicts == 0


def test_unequal_figures_need_a_preference(make: Make) -> None:
    tables = [
        make("a", *(measured(key_of(width), 8.0) for width in range(1, 9))),
        make(
            "b",
            *(measured(key_of(width), 9.0) for width in range(1, 8)),
            unsupported={key_of(8): ""},
        ),
    ]
    with pytest.raises(LatencyTableError, match="8 operators or pairs") as caught:
        merge_tables(tables, OUT)
    assert f"{key_of(1)} (8 us, 9 us)" in caught.value.message
    assert "and 3 more" in caught.value.message
    for way in ("first", "last", "tighter"):
        assert f"--prefer {way}" in caught.value.hint


def test_the_preferred_figures_count(make: Make) -> None:
    loose, tight = measured(key_of(8), 8.0, width=0.3), measured(key_of(8), 9.0, width=0.1)
    tables = [make("a", loose), make("b", tight), make("c", loose)]

    def chosen(prefer: Any, order: list[LatencyTable]) -> float:
        return merge_tables(order, OUT, prefer=prefer).table.latency_us(key_of(8))

    assert chosen("first", tables) == 8.0
    assert chosen("last", tables[:2]) == 9.0
    assert chosen("last", tables[1::-1]) == 8.0
    assert chosen("tighter", tables) == chosen("tighter", tables[::-1]) == 9.0


def test_a_measurement_is_tighter_than_a_refusal(make: Make) -> None:
    tables = [make("a", unsupported={key_of(8): "no"}), make("b", measured(key_of(8), 8.0))]
    merged = merge_tables(tables, OUT, prefer="tighter").table
    assert merged.latency_us(key_of(8)) == 8.0
    assert not merged.unsupported
    assert merge_tables(tables, OUT, prefer="first").table.unsupported == {key_of(8): "no"}


def test_a_calibration_stays_where_its_figures_did(make: Make) -> None:
    calibration = calibration_of(key_of(8))
    first = make("a", measured(key_of(8), 8.0), calibration=calibration)
    second = make("b", measured(key_of(16), 9.0))
    merged = merge_tables([second, first], OUT)
    assert merged.table.calibration == calibration
    assert merged.calibration_from == "a"
    assert merged.notes == ()


def test_a_calibration_goes_where_its_figures_changed(make: Make) -> None:
    first = make("a", measured(key_of(8), 8.0), calibration=calibration_of(key_of(8)))
    second = make("b", measured(key_of(8), 9.0))
    kept = merge_tables([first, second], OUT, prefer="first")
    assert kept.calibration_from == "a"
    dropped = merge_tables([first, second], OUT, prefer="last")
    assert dropped.table.calibration is None
    assert "calibration of a was dropped" in dropped.notes[0]
    assert f"hwnas calibrate --table {OUT}" in dropped.notes[0]


def test_a_calibration_goes_where_a_seam_changed(make: Make) -> None:
    def pair(before: OperatorKey, median_us: float) -> Any:
        statistics = measured(before, median_us).statistics
        return {(before, AFTER): PairMeasurement(before=before, after=AFTER, statistics=statistics)}

    other = OperatorKey(kind="stem", in_shape=(3, 8, 8), out_shape=(8, 8, 8), kernel=3)
    measurements = [measured(key_of(8), 8.0), measured(AFTER, 8.0)]
    first = make(
        "a", *measurements, pairs=pair(key_of(8), 15.0), calibration=calibration_of(key_of(8))
    )
    second = make("b", measured(other, 8.0), pairs=pair(other, 10.0))
    assert merge_tables([first, second], OUT).table.calibration is None


def test_two_calibrations_are_dropped(make: Make) -> None:
    first = make("a", measured(key_of(8), 8.0), calibration=calibration_of(key_of(8)))
    second = make("b", measured(key_of(16), 9.0), calibration=calibration_of(key_of(16), seed=1))
    merged = merge_tables([first, second], OUT)
    assert merged.table.calibration is None
    assert "2 calibrations were dropped" in merged.notes[0]


def test_all_conditions_that_differ_are_named(make: Make, header: TableHeader) -> None:
    device = dataclasses.replace(header.provenance.device, name="Another Board")
    other = dataclasses.replace(
        header,
        target="torch-cpu",
        space_fingerprint="x",
        threads=2,
        batch=4,
        dtype="fp16",
        provenance=dataclasses.replace(header.provenance, device=device),
    )
    with pytest.raises(LatencyTableMismatch, match="cannot be one with a: b: ") as caught:
        merge_tables([make("a"), make("b", header=other)], OUT)
    for name in ("space", "target", "threads", "batch", "dtype", "device"):
        assert f"{name} " in caught.value.message
    assert "hwnas table diff a b" in caught.value.hint


def test_other_versions_are_merged_with_a_word(make: Make, header: TableHeader) -> None:
    provenance = dataclasses.replace(header.provenance, packages={"onnxruntime": "0.1"})
    other = dataclasses.replace(header, provenance=provenance)
    merged = merge_tables([make("a"), make("b", header=other)], OUT)
    assert "b was measured with other " in merged.notes[0]
    assert "onnxruntime" in merged.notes[0]


def test_one_table_is_nothing_to_merge(make: Make) -> None:
    with pytest.raises(LatencyTableError, match="at least two tables, not 1"):
        merge_tables([make("a")], OUT)
