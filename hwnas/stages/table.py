"""`hwnas table show|diff|merge|validate`: latency tables as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hwnas.core.errors import ConfigError, InputFileError, LatencyTableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hwnas_profilers.table_diff import TableDiff
    from hwnas_profilers.table_faults import CheckedTable, TableFault
    from hwnas_profilers.table_summary import TableSummary

NAMED = 10
"""Missing operators that a fault names; the result has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """A merged table.

    Attributes:
        table: Its file.
        tables: What it was merged from.
        operators: Operators that it holds.
        pairs: Pairs of neighbors that it holds.
        unsupported: Operators that the runtime refuses.
        conflicts: Operators and pairs that more than one table held, with other figures.
        calibration_from: The table whose calibration was kept; None where none was.
        notes: Why a calibration was dropped, and which versions differ.
    """

    table: str
    tables: tuple[str, ...]
    operators: int
    pairs: int
    unsupported: int
    conflicts: int
    calibration_from: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableValidation:
    """What is wrong with one table.

    Attributes:
        table: Its file.
        valid: Whether nothing is.
        operators: Operators that it holds and that can be read.
        pairs: Pairs of neighbors likewise.
        missing: Operators of its space that it neither holds nor says to be unsupported.
        faults: What is wrong, in the order of the lines.
    """

    table: str
    valid: bool
    operators: int
    pairs: int
    missing: tuple[str, ...]
    faults: tuple[TableFault, ...]


class LatencyTableFaults(LatencyTableError):
    """Latency tables have faults; they are what was looked for, so they are the result too."""

    def __init__(self, message: str, *, hint: str = "", result: object = None) -> None:
        super().__init__(message, hint=hint)
        self.result = result


def table_show(
    table: Path, *, kind: str | None = None, like: str | None = None, top: int = 5
) -> TableSummary:
    """Show what a latency table holds, how it was measured and how well it predicts.

    Args:
        table: The table's file.
        kind: List all operators of this kind, e.g. mbconv.
        like: List all operators whose name holds this text, e.g. 16x16 or k5.
        top: Where neither is given: list this many operators, the slowest.

    Returns:
        Its conditions, extent, sessions, calibration and operators.

    Raises:
        InputFileError: The file cannot be read.
        LatencyTableError: It is no latency table, or no operator is like that.
    """
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.table_summary import summarize_table

    _check_count(top)
    return summarize_table(LatencyTable.read(table), kind=kind, like=like, top=top)


def table_diff(first: Path, second: Path, *, top: int = 10) -> TableDiff:
    """Compare two latency tables: conditions, operators and the ratio of their medians.

    Args:
        first: A table.
        second: Another one; ratios are its medians over those of the first.
        top: How many operators to list of those that differ most.

    Returns:
        What differs, and whether the tables' figures are of the same conditions at all.

    Raises:
        InputFileError: A file cannot be read.
        LatencyTableError: One is no latency table.
    """
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.table_diff import diff_tables

    _check_count(top)
    return diff_tables(LatencyTable.read(first), LatencyTable.read(second), top=top)


def table_merge(
    tables: tuple[Path, ...],
    out: Path,
    *,
    prefer: Literal["first", "last", "tighter"] | None = None,
) -> MergeResult:
    """Merge latency tables of one space that were measured on one device and target.

    Nothing is averaged. A calibration is kept only where one table has one and none of its figures
    changed: it was fit to them.

    Args:
        tables: At least two tables; the header is that of the first.
        out: The merged table, a new file.
        prefer: Which figures count where tables hold the same operator: those of the first or the
            last table named, or those of the tighter 95 % interval. Without it that is an error.

    Returns:
        The merged table's extent.

    Raises:
        InputFileError: A file cannot be read, or `out` is there already.
        LatencyTableError: The tables cannot be merged, and why.
    """
    from hwnas.core.artifacts import write_atomically
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.table_merge import merge_tables, table_bytes

    if out.exists():
        raise InputFileError(
            f"{out} is there already; merging never writes over a table",
            hint="name a new file with --out",
        )
    merged = merge_tables([LatencyTable.read(each) for each in tables], out, prefer=prefer)
    write_atomically(out, table_bytes(merged.table))
    return MergeResult(
        table=str(out),
        tables=tuple(map(str, tables)),
        operators=len(merged.table.measurements),
        pairs=len(merged.table.pairs),
        unsupported=len(merged.table.unsupported),
        conflicts=merged.conflicts,
        calibration_from=merged.calibration_from or None,
        notes=merged.notes,
    )


def table_validate(tables: tuple[Path, ...]) -> tuple[TableValidation, ...]:
    """Check latency tables, and name every fault with its line.

    Every line must decode strictly and make sense: medians above zero and within their intervals,
    enough samples, keys of the header's batch and precision, pairs that fit, a calibration of
    operators that are there, and every operator of the header's space.

    Args:
        tables: The tables' files.

    Returns:
        One finding per table, none with a fault.

    Raises:
        LatencyTableError: A table has faults; all are named.
    """
    found = tuple(map(_validated, tables))
    faulty = [each for each in found if not each.valid]
    if faulty:
        count = sum(len(each.faults) for each in faulty)
        raise LatencyTableFaults(
            f"{_counted(count, 'fault')} in {len(faulty)} of {_counted(len(found), 'table')}:"
            + "".join(
                f"\n  {each.table}{f':{fault.line}' if fault.line else ''}: {fault.message}"
                for each in faulty
                for fault in each.faults
            ),
            result=found,
        )
    return found


def _validated(path: Path) -> TableValidation:
    from hwnas_profilers.table import read_table_bytes
    from hwnas_profilers.table_faults import TableFault, check_table

    operators, pairs = 0, 0
    missing: tuple[str, ...] = ()
    try:
        checked = check_table(read_table_bytes(path), path)
    except InputFileError as error:
        message = f"{error.message.removeprefix(str(path)).strip()}; {error.hint}".rstrip("; ")
        faults = [TableFault(line=0, message=message)]
    else:
        missing, of_space = _beside_space(checked, path)
        faults = sorted((*checked.faults, *of_space), key=lambda fault: fault.line)
        operators, pairs = len(checked.measurements), checked.pairs
    return TableValidation(
        table=str(path),
        valid=not faults,
        operators=operators,
        pairs=pairs,
        missing=missing,
        faults=tuple(faults),
    )


def _beside_space(
    checked: CheckedTable, path: Path
) -> tuple[tuple[str, ...], Sequence[TableFault]]:
    """Return the operators of the header's space that are missing, and the faults that show it."""
    from hwnas.stages.spaces import space_of_table
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.table_faults import TableFault

    header = checked.header
    if header is None:
        return (), ()
    table = LatencyTable(
        path=path, header=header, measurements=checked.measurements, calibration=None
    )
    try:
        space = space_of_table(table)
    except ConfigError as error:
        message = error.message.removeprefix(str(path)).strip()
        return (), (TableFault(line=1, message=f"its space cannot be built: {message}"),)
    faults = []
    if space.spec.fingerprint != header.space_fingerprint or space.spec.name != header.space:
        faults.append(
            TableFault(
                line=1,
                message="space or space_fingerprint is not that of space_spec: the header was "
                "edited",
            )
        )
    keys = {operator.key: None for operator in space.operators()}
    missing = tuple(str(key) for key in keys if key not in checked.lines)
    if missing:
        more = f"; and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        faults.append(
            TableFault(
                line=0,
                message=f"{len(missing)} of the {len(keys)} operators of {header.space} are "
                f"missing: {'; '.join(missing[:NAMED])}{more}; measure them: "
                f"`{table.profile_command()}`",
            )
        )
    faults += [
        TableFault(line=line, message=f"{key} is no operator of {header.space}")
        for key, line in checked.lines.items()
        if key not in keys
    ]
    return missing, faults


def _check_count(top: int) -> None:
    if top < 0:
        raise ConfigError(f"top is {top}: a number of rows is not below 0")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
