"""All faults of a latency table's file, each with its line: what `hwnas table validate` looks for.

Reading a table stops at the first fault. Whoever mends or contributes one wants to see them all, so
here every line is decoded by itself, and what decodes is asked whether it makes sense.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.errors import LatencyTableError
from hwnas_profilers.records import (
    CalibrationRecord,
    Measurement,
    PairMeasurement,
    Session,
    UnsupportedOperator,
)
from hwnas_profilers.statistics import MIN_SAMPLES
from hwnas_profilers.table_lines import (
    check_cut_header,
    header_from_line,
    record_from_line,
    split_lines,
)
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hwnas_profilers.records import (
        EnergyStatistics,
        NetworkMeasurement,
        Statistics,
        TableHeader,
    )
    from hwnas_profilers.table_lines import Record

_ROUNDING = 1e-9
"""Interpolated quantiles may be off by rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFault:
    """What is wrong with a table.

    Attributes:
        line: Number of the line; 0 where it is the file as a whole.
        message: What is wrong, and how to mend it where that is known.
    """

    line: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedTable:
    """What could be read of a table, and what is wrong with it.

    Attributes:
        header: Its header; None where it cannot be read: then nothing else was.
        lines: Line of each operator that is measured or said to be unsupported.
        measurements: By operator.
        pairs: How many.
        faults: In the order of the lines.
    """

    header: TableHeader | None
    lines: dict[OperatorKey, int]
    measurements: dict[OperatorKey, Measurement]
    pairs: int
    faults: tuple[TableFault, ...]


def check_table(data: bytes, path: Path) -> CheckedTable:
    """Find every fault of a table that its file alone shows.

    Args:
        data: The file's bytes.
        path: The file, for messages.
    """
    split = split_lines(data)
    faults: list[TableFault] = []
    if split.torn_line and split.whole:
        faults.append(
            TableFault(
                line=split.torn_line,
                message="the last line is cut: a run was stopped while it wrote it, or the file "
                "was; the same `hwnas profile` removes it and measures what is missing",
            )
        )
    header = None
    try:
        if split.whole:
            header = header_from_line(split.whole[0], path)
        else:
            check_cut_header(split.torn, path)
            faults.append(TableFault(line=1, message="there is no whole header: it holds nothing"))
    except LatencyTableError as error:
        faults.append(_fault(error, path, 1))
    if header is None:
        return CheckedTable(header=None, lines={}, measurements={}, pairs=0, faults=tuple(faults))

    check = _Check(header)
    faults += [TableFault(line=1, message=each) for each in _header_faults(header)]
    records: list[tuple[int, Record]] = []
    for number, line in enumerate(split.whole[1:], start=2):
        try:
            record = record_from_line(line, path, number)
        except LatencyTableError as error:
            faults.append(_fault(error, path, number))
            continue
        records.append((number, record))
        faults += [TableFault(line=number, message=each) for each in check.record(record, number)]
    for number, record in records:  # what a calibration speaks of may stand after it
        if isinstance(record, CalibrationRecord):
            faults += [
                TableFault(line=number, message=each)
                for each in _calibration_faults(record, check.measurements)
            ]
    return CheckedTable(
        header=header,
        lines=check.lines,
        measurements=check.measurements,
        pairs=len(check.pair_lines),
        faults=tuple(sorted(faults, key=lambda fault: fault.line)),
    )


class _Check:
    """Asks records of one table whether they make sense, by themselves and beside each other."""

    def __init__(self, header: TableHeader) -> None:
        self._header = header
        self.lines: dict[OperatorKey, int] = {}
        self.pair_lines: dict[tuple[OperatorKey, OperatorKey], int] = {}
        self.measurements: dict[OperatorKey, Measurement] = {}

    def record(self, record: Record, number: int) -> Iterator[str]:
        if isinstance(record, Measurement):
            yield from self._once(record.key, number)
            self.measurements.setdefault(record.key, record)
            yield from _statistics_faults(record.statistics)
            yield from _measurement_faults(record)
        elif isinstance(record, PairMeasurement):
            yield from self._pair(record, number)
        elif isinstance(record, UnsupportedOperator):
            yield from self._once(record.refused, number)
            if not record.reason.strip():
                yield f"no reason is given why {record.refused} is unsupported"
        elif isinstance(record, Session):
            yield from _session_faults(record)

    def _pair(self, record: PairMeasurement, number: int) -> Iterator[str]:
        pair = (record.before, record.after)
        first = self.pair_lines.setdefault(pair, number)
        if first != number:
            yield f"{record.before} then {record.after} is in the table twice; see line {first}"
        for key in pair:
            yield from self._key(key)
        if record.before.out_shape != record.after.in_shape:
            yield (
                f"{record.after} cannot follow {record.before}: its input is not the other's output"
            )
        yield from _statistics_faults(record.statistics)
        if record.disturbed < 0:
            yield f"disturbed is {record.disturbed}, below zero"

    def _once(self, key: OperatorKey, number: int) -> Iterator[str]:
        first = self.lines.setdefault(key, number)
        if first != number:
            yield f"{key} is in the table twice; see line {first}"
        yield from self._key(key)

    def _key(self, key: OperatorKey) -> Iterator[str]:
        header = self._header
        if (key.batch, key.dtype) != (header.batch, header.dtype):
            yield (
                f"{key} is of batch {key.batch} and {key.dtype}, "
                f"the header of batch {header.batch} and {header.dtype}"
            )
        if min(*key.in_shape, *key.out_shape, key.stride, key.batch) < 1:
            yield f"{key}: shapes, stride and batch are at least 1"
        if min(key.kernel, key.hidden) < 0:
            yield f"{key}: kernel and hidden are not below 0"


def _header_faults(header: TableHeader) -> Iterator[str]:
    for name in ("threads", "batch"):
        if getattr(header, name) < 1:
            yield f"{name} is {getattr(header, name)}, not at least 1"
    for name in ("target", "space", "space_fingerprint", "dtype"):
        if not getattr(header, name):
            yield f"{name} is empty"


def _statistics_faults(statistics: Statistics) -> Iterator[str]:
    names = ("median_us", "low_us", "high_us", "min_us", "p10_us", "p90_us")
    bad = [name for name in names if not _is_time(getattr(statistics, name))]
    for name in bad:
        yield f"{name} is {getattr(statistics, name)}, not a finite time above zero"
    if statistics.n < MIN_SAMPLES:
        yield f"n is {statistics.n}: a median's interval takes at least {MIN_SAMPLES} samples"
    if not bad:
        yield from _order_faults(statistics, ("low_us", "median_us", "high_us"))
        yield from _order_faults(statistics, ("min_us", "p10_us", "median_us", "p90_us"))


def _order_faults(statistics: object, names: tuple[str, ...]) -> Iterator[str]:
    for lower, upper in itertools.pairwise(names):
        low, high = getattr(statistics, lower), getattr(statistics, upper)
        if low > high * (1 + _ROUNDING):
            yield f"{lower} ({low:g}) is above {upper} ({high:g})"


def _measurement_faults(record: Measurement) -> Iterator[str]:
    for name in ("disturbed", "weights_bytes", "peak_activation_bytes"):
        value = getattr(record, name)
        if value is not None and value < 0:
            yield f"{name} is {value}, below zero"
    if record.energy is not None:
        yield from _energy_faults(record.energy)


def _energy_faults(energy: EnergyStatistics) -> Iterator[str]:
    names = ("low_uj", "median_uj", "high_uj")
    bad = [name for name in names if not _is_time(getattr(energy, name))]
    for name in bad:
        yield f"{name} is {getattr(energy, name)}, not a finite energy above zero"
    if energy.n < 1:
        yield f"energy.n is {energy.n}, not at least 1"
    if not bad:
        yield from _order_faults(energy, names)


def _session_faults(session: Session) -> Iterator[str]:
    names = ("seconds", "workloads", "rounds", "disturbed_rounds", "noisy_rounds")
    for name in names:
        value = getattr(session, name)
        if not (math.isfinite(value) and value >= 0):
            yield f"{name} is {value}, below zero or not finite"


def _calibration_faults(
    record: CalibrationRecord, measurements: dict[OperatorKey, Measurement]
) -> Iterator[str]:
    for key, _ in record.operators_us:
        if key not in measurements:
            yield f"the calibration speaks of {key}, which is not measured in the table"
    for name, figures, networks in (
        ("fit", record.fit, record.networks),
        ("holdout", record.holdout, record.holdout_networks),
    ):
        if figures.n != len(networks):
            yield f"{name} has figures of {figures.n} networks, but {len(networks)} are listed"
        for index, network in enumerate(networks):
            for fault in _network_faults(network):
                yield f"network {index} of {name}: {fault}"
    for name, figures in {**record.baselines, "fit": record.fit, "holdout": record.holdout}.items():
        if not (math.isfinite(figures.mape_percent) and figures.mape_percent >= 0):
            yield f"{name}: mape_percent is {figures.mape_percent}"
        if figures.n < 1:
            yield f"{name}: n is {figures.n}, not at least 1"
    if not record.noise_floor_percent >= 0:
        yield f"noise_floor_percent is {record.noise_floor_percent}, below zero"


def _network_faults(network: NetworkMeasurement) -> Iterator[str]:
    yield from _statistics_faults(network.statistics)
    for name in ("first_us", "second_us"):
        if not _is_time(getattr(network, name)):
            yield f"{name} is {getattr(network, name)}, not a finite time above zero"


def _is_time(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _fault(error: LatencyTableError, path: Path, number: int) -> TableFault:
    """Make a fault of an error, which names the file and the line itself."""
    message = error.message.removeprefix(str(path)).removeprefix(f":{number}").lstrip(": ")
    return TableFault(line=number, message=f"{message}; {error.hint}" if error.hint else message)
