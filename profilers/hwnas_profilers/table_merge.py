"""Several latency tables of one space on one device -> one table. Nothing is averaged or invented.

A table is often made in parts: on a shared machine, by several people, or again where it was noisy.
Parts are merged record by record; where two hold the same operator, the caller says which counts.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from hwnas.core.decoding import encode_json
from hwnas.core.errors import LatencyTableError, LatencyTableMismatch
from hwnas_profilers.pairs import seams_us
from hwnas_profilers.records import Measurement, PairMeasurement, UnsupportedOperator
from hwnas_profilers.table import LatencyTable, conditions
from hwnas_profilers.table_diff import condition_differences

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence
    from pathlib import Path

    from hwnas_profilers.records import CalibrationRecord

Preference: TypeAlias = Literal["first", "last", "tighter"]
Held: TypeAlias = Measurement | PairMeasurement | UnsupportedOperator

NAMED = 5
"""Conflicts that an error names; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedTable:
    """A table that was put together, not yet written.

    Attributes:
        table: It.
        conflicts: Operators and pairs that more than one table held with unequal figures.
        calibration_from: The table whose calibration was kept; empty where none was.
        notes: What a reader should know: why a calibration was dropped, which versions differ.
    """

    table: LatencyTable
    conflicts: int
    calibration_from: str
    notes: tuple[str, ...]


def merge_tables(
    tables: Sequence[LatencyTable], path: Path, *, prefer: Preference | None = None
) -> MergedTable:
    """Put tables together that were measured under the same conditions.

    The header is the first table's. Sessions of all are kept. A calibration was fit to the figures
    of its own table: it is kept only if one table alone has one and none of its figures changed.

    Args:
        tables: At least two.
        path: The file that it will be written to.
        prefer: Which record counts where two tables hold an operator or pair: that of the table
            named `first` or `last`, or the one of the `tighter` interval. None refuses.

    Raises:
        LatencyTableMismatch: They were measured for different things; all differences are named.
        LatencyTableError: There are fewer than two, or the same operator is in more than one and
            no preference is given.
    """
    if len(tables) < 2:
        raise LatencyTableError(
            f"merging takes at least two tables, not {len(tables)}",
            hint="hwnas table merge FIRST SECOND --out MERGED",
        )
    _check_same_conditions(tables)
    held: dict[Hashable, list[Held]] = defaultdict(list)
    for table in tables:
        for identity, record in _records(table):
            if record not in held[identity]:
                held[identity].append(record)
    conflicts = {identity: records for identity, records in held.items() if len(records) > 1}
    if conflicts and prefer is None:
        raise _conflict_error(list(conflicts.values()))
    chosen = [_preferred(records, prefer) for records in held.values()]
    merged = LatencyTable(
        path=path,
        header=tables[0].header,
        measurements={each.key: each for each in chosen if isinstance(each, Measurement)},
        calibration=None,
        pairs={
            (each.before, each.after): each for each in chosen if isinstance(each, PairMeasurement)
        },
        unsupported={
            each.refused: each.reason for each in chosen if isinstance(each, UnsupportedOperator)
        },
        sessions=tuple(
            sorted(
                {encode_json(each): each for table in tables for each in table.sessions}.values(),
                key=lambda session: session.utc,
            )
        ),
    )
    calibration, source, notes = _calibration(tables, merged)
    return MergedTable(
        table=replace(merged, calibration=calibration),
        conflicts=len(conflicts),
        calibration_from=source,
        notes=(*notes, *_version_notes(tables)),
    )


def table_bytes(table: LatencyTable) -> bytes:
    """Encode a table as its file would be; estimates are no part of it."""
    lines: list[object] = [table.header, *table.measurements.values(), *table.pairs.values()]
    lines += [
        UnsupportedOperator(refused=key, reason=reason) for key, reason in table.unsupported.items()
    ]
    lines += table.sessions
    if table.calibration is not None:
        lines.append(table.calibration)
    return b"".join(encode_json(line) + b"\n" for line in lines)


def _check_same_conditions(tables: Sequence[LatencyTable]) -> None:
    first = tables[0]
    different = []
    for other in tables[1:]:
        mine, theirs = conditions(first.header), conditions(other.header)
        parts = [
            f"{name} is {theirs[name]!r}, not {mine[name]!r}"
            for name in mine
            if mine[name] != theirs[name]
        ]
        if other.header.space_fingerprint != first.header.space_fingerprint:
            parts.insert(0, f"space {other.header.space!r} is another, or another version of it")
        if parts:
            different.append(f"{other.path}: {', '.join(parts)}")
    if different:
        raise LatencyTableMismatch(
            f"these tables cannot be one with {first.path}: {'; '.join(different)}",
            hint=f"see how they differ: `hwnas table diff {first.path} {tables[1].path}`",
        )


def _records(table: LatencyTable) -> Iterable[tuple[Hashable, Held]]:
    yield from table.measurements.items()
    yield from table.pairs.items()
    for key, reason in table.unsupported.items():
        yield key, UnsupportedOperator(refused=key, reason=reason)


def _preferred(records: Sequence[Held], prefer: Preference | None) -> Held:
    if prefer == "last":
        return records[-1]
    return min(records, key=_relative_width) if prefer == "tighter" else records[0]


def _relative_width(record: Held) -> float:
    """Return how uncertain a record is; a measurement is always surer than a refusal."""
    if isinstance(record, UnsupportedOperator):
        return float("inf")
    statistics = record.statistics
    return (statistics.high_us - statistics.low_us) / statistics.median_us


def _conflict_error(conflicts: Sequence[Sequence[Held]]) -> LatencyTableError:
    named = "; ".join(map(_conflict_text, conflicts[:NAMED]))
    more = f"; and {len(conflicts) - NAMED} more" if len(conflicts) > NAMED else ""
    return LatencyTableError(
        f"{len(conflicts)} operators or pairs are in more than one table, "
        f"with other figures: {named}{more}",
        hint="say which count: `--prefer first`, `--prefer last` (in the order of the tables), or "
        "`--prefer tighter` (the narrower 95 % interval)",
    )


def _conflict_text(records: Sequence[Held]) -> str:
    record = records[0]
    if isinstance(record, PairMeasurement):
        name = f"{record.before} then {record.after}"
    else:
        name = str(record.key if isinstance(record, Measurement) else record.refused)
    figures = (
        "unsupported"
        if isinstance(each, UnsupportedOperator)
        else f"{each.statistics.median_us:.4g} us"
        for each in records
    )
    return f"{name} ({', '.join(figures)})"


def _calibration(
    tables: Sequence[LatencyTable], merged: LatencyTable
) -> tuple[CalibrationRecord | None, str, tuple[str, ...]]:
    """Return the calibration that still holds, its table, and why others do not."""
    having = [table for table in tables if table.calibration is not None]
    again = f"calibrate the merged table: `hwnas calibrate --table {merged.path}`"
    if not having:
        return None, "", ()
    records = {encode_json(table.calibration) for table in having}
    if len(records) > 1:
        return None, "", (f"{len(records)} calibrations were dropped, each fit to a part; {again}",)
    table = having[0]
    before = seams_us(table.measurements, table.pairs.values())
    after = seams_us(merged.measurements, merged.pairs.values())
    is_unchanged = all(
        merged.measurements.get(key) == own for key, own in table.measurements.items()
    ) and all(after.get(shape) == worth for shape, worth in before.items())
    if is_unchanged:
        return table.calibration, str(table.path), ()
    note = f"the calibration of {table.path} was dropped: figures that it was fit to changed"
    return None, "", (f"{note}; {again}",)


def _version_notes(tables: Sequence[LatencyTable]) -> tuple[str, ...]:
    """Say which versions and settings differ: the merged header names only the first table's."""
    quiet = {"utc", "git_commit", "host"}
    return tuple(
        f"{table.path} was measured with other {', '.join(names)} than the merged header says"
        for table in tables[1:]
        if (
            names := [
                each.condition
                for each in condition_differences(tables[0].header, table.header)
                if each.condition not in quiet
            ]
        )
    )
