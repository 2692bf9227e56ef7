"""Bytes of a latency table -> its records. Strict, fast, and honest about a torn end.

A table is written line by line; a killed run can leave a torn last line, and nothing worse. So a
last line that is cut is passed over and counted, and any other line that cannot be read is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec

from hwnas.core.decoding import convert, encode_json
from hwnas.core.errors import ConfigError, LatencyTableError
from hwnas_profilers.records import (
    SCHEMA,
    CalibrationRecord,
    Measurement,
    PairMeasurement,
    Session,
    TableHeader,
    UnsupportedOperator,
)
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")

Record: TypeAlias = (
    Measurement | PairMeasurement | UnsupportedOperator | Session | CalibrationRecord
)
"""What any line after the header may be."""

# The lines that a table has thousands of, by how they begin.
_FAST_DECODERS: tuple[tuple[bytes, msgspec.json.Decoder[Any]], ...] = (
    (b'{"key":', msgspec.json.Decoder(Measurement)),
    (b'{"before":', msgspec.json.Decoder(PairMeasurement)),
)
_HEADER_START = b'{"target":'
# A line may hold anything: bytes that are no UTF-8, or brackets without end.
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
RECORDS: dict[str, type[Record]] = {
    "measurement": Measurement,
    "pair": PairMeasurement,
    "unsupported": UnsupportedOperator,
    "session": Session,
    "calibration": CalibrationRecord,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableContents:
    """What a table's file holds.

    Attributes:
        header: Its first line; None where the file is empty, or was cut within its first line.
        measurements: By operator, in the order of the file.
        pairs: By the two operators, likewise.
        unsupported: Why the runtime refuses an operator, by operator.
        sessions: The runs of the profiler.
        calibration: The last one; None where there is none.
        whole_bytes: Length of the file up to the end of its last whole line.
        torn_line: Number of a last line that was cut; 0 where there is none.
        ends_line: Whether the last whole line has its newline.
    """

    header: TableHeader | None
    measurements: dict[OperatorKey, Measurement]
    pairs: dict[tuple[OperatorKey, OperatorKey], PairMeasurement]
    unsupported: dict[OperatorKey, str]
    sessions: list[Session]
    calibration: CalibrationRecord | None
    whole_bytes: int
    torn_line: int
    ends_line: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLines:
    """The lines of a table's file.

    Attributes:
        whole: Those that were written to their end.
        torn: A last one that was cut; empty where there is none.
        torn_line: Its number; 0 where there is none.
        ends_line: Whether the file ends with a newline.
    """

    whole: list[bytes]
    torn: bytes
    torn_line: int
    ends_line: bool


def split_lines(data: bytes) -> TableLines:
    """Split a table's bytes into lines, a torn last one apart."""
    lines = data.split(b"\n")
    ends_line = lines[-1] == b""
    if ends_line:
        lines.pop()
    torn_line = len(lines) if lines and not _is_json(lines[-1]) else 0
    torn = lines.pop() if torn_line else b""
    return TableLines(whole=lines, torn=torn, torn_line=torn_line, ends_line=ends_line)


def contents_from_bytes(data: bytes, path: Path) -> TableContents:
    """Decode a table.

    Args:
        data: The file's bytes.
        path: The file, for errors.

    Raises:
        LatencyTableError: It is no latency table, has another schema, a line that cannot be read
            (other than a torn last one), or an operator twice.
    """
    split = split_lines(data)
    lines, torn_line, ends_line = split.whole, split.torn_line, split.ends_line
    if not lines:
        check_cut_header(split.torn, path)
        return TableContents(
            header=None,
            measurements={},
            pairs={},
            unsupported={},
            sessions=[],
            calibration=None,
            whole_bytes=0,
            torn_line=torn_line,
            ends_line=True,
        )

    header = header_from_line(lines[0], path)
    measurements: dict[OperatorKey, Measurement] = {}
    pairs: dict[tuple[OperatorKey, OperatorKey], PairMeasurement] = {}
    unsupported: dict[OperatorKey, str] = {}
    sessions: list[Session] = []
    calibration: CalibrationRecord | None = None
    line_of: dict[object, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        record = record_from_line(line, path, number)
        if isinstance(record, Measurement):
            _check_median(record.statistics.median_us, record.key, path, number)
            _check_once(record.key, line_of, path, number)
            measurements[record.key] = record
        elif isinstance(record, PairMeasurement):
            pair = (record.before, record.after)
            _check_median(record.statistics.median_us, " then ".join(map(str, pair)), path, number)
            _check_once(pair, line_of, path, number)
            pairs[pair] = record
        elif isinstance(record, UnsupportedOperator):
            _check_once(record.refused, line_of, path, number)
            unsupported[record.refused] = record.reason
        elif isinstance(record, Session):
            sessions.append(record)
        else:
            calibration = record
    return TableContents(
        header=header,
        measurements=measurements,
        pairs=pairs,
        unsupported=unsupported,
        sessions=sessions,
        calibration=calibration,
        whole_bytes=len(data) - len(split.torn) - (1 if torn_line and ends_line else 0),
        torn_line=torn_line,
        # A torn line comes after the newline of the last whole one.
        ends_line=ends_line or bool(torn_line),
    )


def header_from_line(line: bytes, path: Path) -> TableHeader:
    """Decode a table's first line.

    Raises:
        LatencyTableError: It is no header, of another schema, or cannot be read.
    """
    try:
        document = msgspec.json.decode(line)
    except _NOT_JSON as error:
        raise LatencyTableError(f"{path}:1: the header is not valid JSON: {error}") from error
    if not isinstance(document, dict) or document.get("record") != "header":
        raise LatencyTableError(
            f"{path} is no latency table: its first line is no header",
            hint="make one with `hwnas profile --space SPACE --target TARGET --out TABLE`",
        )
    if document.get("schema") != SCHEMA:
        raise LatencyTableError(
            f"{path} has table schema {document.get('schema')}; this hwnas reads {SCHEMA}",
            hint="profile again into a new file, or use the hwnas version that its header names",
        )
    return _strict(document, TableHeader, path, 1)


def _check_median(median_us: float, what: object, path: Path, number: int) -> None:
    if not median_us > 0:
        raise LatencyTableError(
            f"{path}:{number}: the median of {what} is {median_us} us, not above zero",
            hint="delete that line, then profile again: only what is missing is measured",
        )


def _check_once(
    what: OperatorKey | tuple[OperatorKey, OperatorKey],
    line_of: dict[object, int],
    path: Path,
    number: int,
) -> None:
    if what in line_of:
        name = what if isinstance(what, OperatorKey) else " then ".join(map(str, what))
        raise LatencyTableError(
            f"{path}:{number}: {name} is in the table twice; it is in line {line_of[what]} too",
            hint="delete one of both lines",
        )
    line_of[what] = number


def record_from_line(line: bytes, path: Path, number: int) -> Record:
    """Decode one line after the header.

    msgspec passes over unknown keys, and a walk over 5,000 documents to find them takes half a
    second. But what hwnas wrote comes back byte for byte when it is encoded again, and an unknown
    key does not; so only lines that others wrote or edited are walked, spaces aside.

    Raises:
        LatencyTableError: It cannot be read, or is no record that a table holds.
    """
    try:
        fast = _record_as_written(line) or _record_as_written(msgspec.json.format(line, indent=-1))
    except _NOT_JSON:
        fast = None  # the slow way says what is wrong
    if fast is not None:
        return fast
    try:
        document = msgspec.json.decode(line)
    except _NOT_JSON as error:
        raise LatencyTableError(
            f"{path}:{number}: this line is not valid JSON: {error}",
            hint="restore the file, or delete that line and profile again",
        ) from error
    name = document.get("record") if isinstance(document, dict) else None
    kind = RECORDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise LatencyTableError(
            f"{path}:{number}: this line is no record that a table holds ({', '.join(RECORDS)})",
            hint="restore the file, or delete that line and profile again",
        )
    return _strict(document, kind, path, number)


def _record_as_written(line: bytes) -> Record | None:
    """Decode a line that is as hwnas writes it; None where it is not, or cannot be decoded."""
    for start, decoder in _FAST_DECODERS:
        if line.startswith(start):
            record: Record = decoder.decode(line)
            return record if encode_json(record) == line else None
    return None


def _strict(document: object, kind: type[T], path: Path, number: int) -> T:
    try:
        return convert(document, kind, source=f"{path}:{number}")
    except ConfigError as error:
        raise LatencyTableError(error.message, hint=error.hint) from error


def _is_json(line: bytes) -> bool:
    """Tell whether a line is whole. A cut JSON object is never valid: its last brace is missing."""
    try:
        msgspec.json.decode(line)
    except _NOT_JSON:
        return False
    return True


def check_cut_header(torn: bytes, path: Path) -> None:
    """Refuse a file of one unreadable line, unless it is the beginning of a header.

    Raises:
        LatencyTableError: It is the beginning of something else.
    """
    if torn[: len(_HEADER_START)] != _HEADER_START[: len(torn)]:
        raise LatencyTableError(
            f"{path} is no latency table: its first line is no header",
            hint="name another file; hwnas does not overwrite this one",
        )
