"""Every fault of a table is found, at its line, and a sound table has none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from hwnas.core.decoding import encode_json
from hwnas_profilers.records import (
    CalibrationRecord,
    EnergyStatistics,
    ErrorFigures,
    Measurement,
    NetworkMeasurement,
    PairMeasurement,
    Session,
    TableHeader,
    UnsupportedOperator,
)
from hwnas_profilers.statistics import summarize
from hwnas_profilers.table_faults import CheckedTable, check_table
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Callable

PATH = Path("table.jsonl")
STATISTICS = summarize(np.linspace(9.0, 11.0, 30))


def key_of(width: int) -> OperatorKey:
    return OperatorKey(kind="conv", in_shape=(3, 8, 8), out_shape=(width, 8, 8), kernel=3)


AFTER = OperatorKey(kind="conv", in_shape=(8, 8, 8), out_shape=(8, 8, 8), kernel=3)
ENERGY = EnergyStatistics(n=3, median_uj=5.0, low_uj=4.0, high_uj=6.0)
MEASURED = Measurement(key=key_of(8), statistics=STATISTICS, weights_bytes=10, energy=ENERGY)
PAIR = PairMeasurement(before=key_of(8), after=AFTER, statistics=STATISTICS)
REFUSED = UnsupportedOperator(refused=key_of(7), reason="no kernel")
SESSION = Session(
    utc="2026-01-01T00:00:00+00:00",
    seconds=1.0,
    workloads=2,
    rounds=3,
    disturbed_rounds=0,
    noisy_rounds=0,
    reasons={},
    load_percent=None,
    temperature_c=None,
    clock_mhz=None,
    pilot_us=None,
)
FIGURES = ErrorFigures(
    n=1, mape_percent=1.0, spearman=None, kendall=None, within_5_percent=100, within_10_percent=100
)
NETWORK = NetworkMeasurement(
    choices=(0,), macs=10, statistics=STATISTICS, first_us=9.0, second_us=10.0
)
CALIBRATION = CalibrationRecord(
    intercept_us=-1.0,
    scale=1.0,
    per_operator_us=0.0,
    operators_us=((key_of(8), 9.0),),
    noise_percent=0.5,
    fit=FIGURES,
    holdout=FIGURES,
    baselines={"sum": FIGURES},
    noise_floor_percent=0.5,
    networks=(NETWORK,),
    holdout_networks=(NETWORK,),
    seed=0,
    utc="2026-01-01T00:00:00+00:00",
)


def statistics(**changes: Any) -> Measurement:
    return dataclasses.replace(MEASURED, statistics=dataclasses.replace(STATISTICS, **changes))


def energy(**changes: Any) -> Measurement:
    return dataclasses.replace(MEASURED, energy=dataclasses.replace(ENERGY, **changes))


@pytest.fixture
def check(header: TableHeader) -> Callable[..., CheckedTable]:
    """Check a table of these records, or lines."""

    def run(*records: object, header: TableHeader = header) -> CheckedTable:
        lines = [each if isinstance(each, bytes) else encode_json(each) for each in records]
        return check_table(b"".join(line + b"\n" for line in (encode_json(header), *lines)), PATH)

    return run


def test_a_sound_table_has_no_fault(check: Callable[..., CheckedTable]) -> None:
    # What a calibration speaks of may stand after it.
    checked = check(CALIBRATION, MEASURED, PAIR, REFUSED, SESSION)
    assert checked.faults == ()
    assert checked.lines == {key_of(8): 3, key_of(7): 5}
    assert (len(checked.measurements), checked.pairs) == (1, 1)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (statistics(median_us=0.0), "median_us is 0.0, not a finite time above zero"),
        (statistics(min_us=-1.0), "min_us is -1.0"),
        (statistics(n=5), "n is 5: a median's interval takes at least 6"),
        (statistics(low_us=10.5), r"low_us \(10.5\) is above median_us \(10\)"),
        (statistics(high_us=9.5), r"median_us \(10\) is above high_us"),
        (statistics(min_us=9.9), "min_us .* is above p10_us"),
        (statistics(p90_us=9.9), "median_us .* is above p90_us"),
        (dataclasses.replace(MEASURED, weights_bytes=-1), "weights_bytes is -1"),
        (dataclasses.replace(MEASURED, disturbed=-1), "disturbed is -1"),
        (energy(median_uj=0.0), "median_uj is 0.0"),
        (energy(low_uj=5.5), "low_uj .* is above median_uj"),
        (energy(n=0), "energy.n is 0"),
        (dataclasses.replace(REFUSED, reason=" "), "no reason is given"),
        (dataclasses.replace(REFUSED, refused=key_of(9)), "conv 3x8x8->9x8x8 .* twice; see line 2"),
        (dataclasses.replace(PAIR, disturbed=-1), "disturbed is -1"),
        (dataclasses.replace(PAIR, before=key_of(9)), "cannot follow conv 3x8x8->9x8x8"),
        (dataclasses.replace(SESSION, rounds=-1), "rounds is -1"),
        (dataclasses.replace(CALIBRATION, operators_us=((AFTER, 1.0),)), "not measured in the"),
        (dataclasses.replace(CALIBRATION, networks=()), "fit has figures of 1 networks, but 0"),
        (dataclasses.replace(CALIBRATION, noise_floor_percent=-1.0), "noise_floor_percent is -1"),
        (
            dataclasses.replace(
                CALIBRATION, baselines={"sum": dataclasses.replace(FIGURES, mape_percent=-2.0)}
            ),
            "sum: mape_percent is -2",
        ),
        (
            dataclasses.replace(
                CALIBRATION, networks=(dataclasses.replace(NETWORK, first_us=0.0),)
            ),
            "network 0 of fit: first_us is 0.0",
        ),
    ],
)
def test_what_makes_no_sense_is_a_fault_of_its_line(
    check: Callable[..., CheckedTable], record: Any, said: str
) -> None:
    other = dataclasses.replace(MEASURED, key=key_of(9))
    first = (other,) if isinstance(record, Measurement) else (other, MEASURED)
    checked = check(*first, record)
    (fault,) = checked.faults
    assert fault.line == len(first) + 2
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(fault.message)


def test_keys_of_another_batch_precision_or_no_shape_are_faults(
    check: Callable[..., CheckedTable],
) -> None:
    others = [
        dataclasses.replace(key_of(8), batch=2),
        dataclasses.replace(key_of(8), dtype="fp16"),
        dataclasses.replace(key_of(8), in_shape=(0, 8, 8)),
        dataclasses.replace(key_of(8), kernel=-1),
    ]
    checked = check(*(dataclasses.replace(MEASURED, key=key) for key in others))
    assert [fault.line for fault in checked.faults] == [2, 3, 4, 5]
    assert "batch 2" in checked.faults[0].message
    assert "fp16" in checked.faults[1].message


def test_all_faults_are_found_in_one_go(check: Callable[..., CheckedTable]) -> None:
    checked = check(
        statistics(n=1, low_us=10.5),
        b'{"key":1',
        b'{"record":"note"}',
        encode_json(PAIR).replace(b'"disturbed"', b'"disturbd"'),
        MEASURED,
        CALIBRATION,
        encode_json(MEASURED)[:-9],
    )
    assert [fault.line for fault in checked.faults] == [2, 2, 3, 4, 5, 6, 8]
    messages = " | ".join(fault.message for fault in checked.faults)
    assert "not valid JSON" in messages
    assert "no record that a table holds" in messages
    assert "unknown key `disturbd`; did you mean `disturbed`?" in messages
    assert "twice; see line 2" in messages
    assert "the last line is cut" in messages
    assert str(PATH) not in messages  # whoever prints them knows the file


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no whole header"),
        (b'{"target":"onnx', "no whole header"),
        (b"name,latency\n", "is no latency table"),
        (b"[]\n", "is no latency table"),
    ],
)
def test_what_is_no_table_has_one_fault(data: bytes, said: str) -> None:
    checked = check_table(data, PATH)
    (fault,) = checked.faults
    assert (fault.line, checked.header) == (1, None)
    assert said in fault.message


def test_another_schema_is_one_fault_of_the_first_line(header: TableHeader) -> None:
    data = (
        encode_json(dataclasses.replace(header, schema=1)) + b"\n" + encode_json(MEASURED) + b"\n"
    )
    (fault,) = check_table(data, PATH).faults
    assert fault.line == 1
    assert "has table schema 1; this hwnas reads 2" in fault.message


def test_a_header_of_nonsense_is_a_fault(
    check: Callable[..., CheckedTable], header: TableHeader
) -> None:
    bad = dataclasses.replace(header, threads=0, target="")
    assert {fault.message for fault in check(header=bad).faults} == {
        "threads is 0, not at least 1",
        "target is empty",
    }
