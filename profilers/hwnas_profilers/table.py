"""Latency tables: read, ask, and append as measured. The format is in latency_tables/README.md."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from hwnas.core.decoding import encode_json
from hwnas.core.errors import (
    InputFileError,
    LatencyTableError,
    LatencyTableMismatch,
    LatencyTableMiss,
    nearest,
)
from hwnas.core.progress import SILENT
from hwnas_profilers.records import (
    CalibrationRecord,
    Measurement,
    PairMeasurement,
    Session,
    Statistics,
    TableHeader,
    UnsupportedOperator,
)
from hwnas_profilers.table_lines import Record, contents_from_bytes
from hwnas_profilers.workload import OperatorKey, nearest_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from hwnas.core.progress import Progress
    from hwnas_profilers.estimate import Estimate

_log = logging.getLogger(__name__)

_SYNC_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """The measured latency of a space's operators on one target.

    Attributes:
        path: Its file.
        header: What its figures hold for.
        measurements: By operator.
        calibration: What whole networks say of sums of operators; None before `hwnas calibrate`.
        pairs: Two operators compiled as one, by both.
        unsupported: Why the runtime refuses an operator, by operator: it is out of the space.
        sessions: The runs of the profiler that measured it, and how quiet the machine was.
        estimates: Operators that were estimated from others, as was asked for; never in its file.
    """

    path: Path
    header: TableHeader
    measurements: Mapping[OperatorKey, Measurement] = field(repr=False)
    calibration: CalibrationRecord | None = field(repr=False)
    pairs: Mapping[tuple[OperatorKey, OperatorKey], PairMeasurement] = field(
        default_factory=dict, repr=False
    )
    unsupported: Mapping[OperatorKey, str] = field(default_factory=dict, repr=False)
    sessions: Sequence[Session] = field(default=(), repr=False)
    estimates: Mapping[OperatorKey, Estimate] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """Read a table. A torn last line, which a killed run leaves, is passed over and logged.

        Raises:
            InputFileError: The file is missing or unreadable.
            LatencyTableError: It holds no header, has another schema, a line that cannot be read,
                or an operator twice.
        """
        contents = contents_from_bytes(read_table_bytes(path), path)
        if contents.torn_line:
            _log.warning("%s", _torn_message(path, contents.torn_line))
        if contents.header is None:
            raise LatencyTableError(
                f"{path} holds no measurement: `hwnas profile` was stopped before its first",
                hint="run `hwnas profile` again",
            )
        return cls(
            path=path,
            header=contents.header,
            measurements=contents.measurements,
            calibration=contents.calibration,
            pairs=contents.pairs,
            unsupported=contents.unsupported,
            sessions=tuple(contents.sessions),
        )

    def latency_us(self, key: OperatorKey) -> float:
        """Return an operator's median latency in microseconds, as measured alone.

        An estimate is returned only where it was asked for: see `with_estimates`.

        Raises:
            LatencyTableMiss: It is not in the table. Nothing counts 0.
        """
        measurement = self.measurements.get(key)
        if measurement is not None:
            return measurement.statistics.median_us
        if key in self.unsupported:
            raise LatencyTableMiss(
                f"{self.header.target} does not support {key} ({self.path}): "
                f"{self.unsupported[key]}",
                hint="leave it out of the network, or use another target",
            )
        if key in self.estimates:
            return self.estimates[key].median_us
        near = "; ".join(map(str, nearest_keys(key, self.measurements))) or "the table is empty"
        raise LatencyTableMiss(
            f"{self.path} has no operator {key}; nearest: {near}",
            hint=f"measure it: `{self.profile_command()}`; or, with `--estimate`, have it "
            "estimated from the others",
        )

    def with_estimates(self, keys: Iterable[OperatorKey], *, seed: int = 0) -> LatencyTable:
        """Return this table with estimates of what it lacks; its file stays as it is.

        Args:
            keys: Operators that must have a latency. Those that are measured stay as measured;
                those that the runtime refuses are not estimated, as they cannot run.
            seed: See `estimate.estimator_from_table`.

        Raises:
            LatencyTableError: They cannot be estimated from this table, and why.
        """
        missing = [
            key
            for key in dict.fromkeys(keys)
            if key not in self.measurements and key not in self.unsupported
        ]
        if not missing:
            return self
        from hwnas_profilers.estimate import estimator_from_table

        estimates = estimator_from_table(self, seed=seed).estimate(missing)
        return replace(self, estimates={**self.estimates, **{each.key: each for each in estimates}})

    def require(
        self,
        *,
        target: str | None = None,
        space_fingerprint: str | None = None,
        threads: int | None = None,
        device: str | None = None,
        force: bool = False,
    ) -> None:
        """Check that the table's figures hold for a use. What is None is not checked.

        Args:
            target: Target that it must be measured on.
            space_fingerprint: Space whose operators it must hold.
            threads: Threads within an operator.
            device: Name of the device, e.g. `this_device().name`, where it matters.
            force: Warn of another target, device or number of threads instead. Another space is
                refused all the same: its operators are others.

        Raises:
            LatencyTableMismatch: The table was measured for something else.
        """
        wanted: dict[str, object] = {"target": target, "threads": threads, "device": device}
        differences = [
            f"{name} is {own!r}, not {wanted[name]!r}"
            for name, own in conditions(self.header).items()
            if wanted.get(name) is not None and wanted[name] != own
        ]
        if space_fingerprint not in (None, self.header.space_fingerprint):
            raise LatencyTableMismatch(
                f"{self.path} was measured for another version of space {self.header.space!r}, "
                "or for another space",
                hint="profile this space into a table of its own: "
                "`hwnas profile --space SPACE --target TARGET --out TABLE`",
            )
        if differences:
            message = f"{self.path} was measured for something else: {', '.join(differences)}"
            if force:
                _log.warning("%s; used all the same, as asked", message)
                return
            raise LatencyTableMismatch(
                message,
                hint="profile into a table of its own where it will run: "
                f"`hwnas profile --space {self.header.space} --target "
                f"{target or self.header.target} --out TABLE`",
            )

    def profile_command(self) -> str:
        """Return the command that measures what the table lacks."""
        header = self.header
        parts = [f"hwnas profile --space {header.space} --target {header.measured_at}"]
        if "image_shape" in header.space_spec and "classes" in header.space_spec:
            shape = ",".join(map(str, header.space_spec["image_shape"]))
            parts.append(f"--image-shape {shape} --classes {header.space_spec['classes']}")
        if header.batch != 1:
            parts.append(f"--batch {header.batch}")
        if header.threads != 1:
            parts.append(f"--threads {header.threads}")
        return " ".join([*parts, f"--out {self.path}"])


class TableAppender:
    """A latency table open for writing: one record, one line, written before the next is measured.

    Makes the file, with its header, where there is none. One process may hold a table at a time.
    Whatever stops an append (a full disk, Ctrl-C), the file ends with a whole line.

    Args:
        path: The table's file; its folder is made where it is missing.
        header: What will be measured; must agree with the header of a table that is there already.
        progress: Told of a torn last line that was removed.
    """

    def __init__(self, path: Path, header: TableHeader, *, progress: Progress = SILENT) -> None:
        self._path = path
        self._header = header
        self._progress = progress
        self._file = -1
        self._end_bytes = 0
        self._synced_at = -math.inf
        self._measurements: dict[OperatorKey, Measurement] = {}
        self._pairs: dict[tuple[OperatorKey, OperatorKey], PairMeasurement] = {}
        self._unsupported: dict[OperatorKey, str] = {}
        self.recovered = False
        """Whether a torn last line was found, and removed."""

    @property
    def measurements(self) -> Mapping[OperatorKey, Measurement]:
        """What the table holds, by operator."""
        return self._measurements

    @property
    def pairs(self) -> Mapping[tuple[OperatorKey, OperatorKey], PairMeasurement]:
        """What the table holds of two operators compiled as one."""
        return self._pairs

    @property
    def unsupported(self) -> Mapping[OperatorKey, str]:
        """What the runtime is known to refuse, with its words."""
        return self._unsupported

    def __enter__(self) -> Self:
        """Open, lock and check the file.

        Raises:
            InputFileError: It cannot be written.
            LatencyTableError: Another process writes it, or it cannot be read.
            LatencyTableMismatch: It was measured for something else.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        try:
            self._lock()
            self._open_contents()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unlock and close."""
        self._close()

    def append(self, record: Record) -> None:
        """Write one record, whole and durably, or not at all.

        Raises:
            InputFileError: The disk is full, or the file cannot be written. It is as before.
            LatencyTableError: It is in the table already, or its median is not a time.
        """
        if isinstance(record, Measurement):
            self._check_new(record.key, record.key in self._measurements, record.statistics)
        elif isinstance(record, PairMeasurement):
            pair = (record.before, record.after)
            self._check_new(" then ".join(map(str, pair)), pair in self._pairs, record.statistics)
        self._write_line(encode_json(record) + b"\n")
        if isinstance(record, Measurement):
            self._measurements[record.key] = record
        elif isinstance(record, PairMeasurement):
            self._pairs[record.before, record.after] = record
        elif isinstance(record, UnsupportedOperator):
            self._unsupported[record.refused] = record.reason

    def _check_new(self, what: object, held: bool, statistics: Statistics) -> None:
        if held:
            raise LatencyTableError(f"{self._path} already holds {what}")
        if not 0 < statistics.median_us < float("inf"):
            raise LatencyTableError(
                f"the median of {what} is {statistics.median_us} us, not a time"
            )

    def _lock(self) -> None:
        # The lock belongs to the open file: the kernel drops it when the process dies, however.
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LatencyTableError(
                f"{self._path} is being written by another process",
                hint="wait for it, or write to another file",
            ) from error
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def _open_contents(self) -> None:
        contents = contents_from_bytes(read_table_bytes(self._path), self._path)
        if contents.header is not None:
            _check_same(contents.header, self._header, self._path)
        self._measurements = contents.measurements
        self._pairs = contents.pairs
        self._unsupported = contents.unsupported
        self._end_bytes = contents.whole_bytes
        if contents.torn_line:
            os.ftruncate(self._file, self._end_bytes)
            self.recovered = True
            self._progress.say(_torn_message(self._path, contents.torn_line))
        if not contents.ends_line:
            self._write_line(b"\n")
        if contents.header is None:
            try:
                self._write_line(encode_json(self._header) + b"\n")
            except BaseException:
                # We hold the lock, and there is nothing in it: leave no empty file behind.
                self._path.unlink(missing_ok=True)
                raise

    def _write_line(self, line: bytes) -> None:
        """Write at the end; on whatever goes wrong cut back to where the file ended before."""
        if self._file < 0:
            raise ValueError("the table is not open: use it in a `with` block")
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end_bytes + written)
            self._sync_now_and_then()
            self._end_bytes += len(line)
        except BaseException as error:
            os.ftruncate(self._file, self._end_bytes)
            if isinstance(error, OSError):
                raise _unwritable(self._path, error) from error
            raise

    def _sync_now_and_then(self) -> None:
        """Have what is written on the disk within a second: each line by itself costs too long.

        What is written outlives this process at once; the disk matters where the machine dies.
        """
        now = time.monotonic()
        if now - self._synced_at > _SYNC_SECONDS:
            os.fsync(self._file)
            self._synced_at = now

    def _close(self) -> None:
        if self._file >= 0:
            try:
                with contextlib.suppress(OSError):
                    os.fsync(self._file)
            finally:  # Ctrl-C while the disk is busy must not keep the lock
                os.close(self._file)
                self._file = -1


def conditions(header: TableHeader) -> dict[str, object]:
    """Return what must be equal for figures to be comparable, by name; the space aside."""
    return {
        "target": header.target,
        "threads": header.threads,
        "batch": header.batch,
        "dtype": header.dtype,
        "device": header.provenance.device.name,
    }


def _check_same(own: TableHeader, wanted: TableHeader, path: Path) -> None:
    mine, theirs = conditions(own), conditions(wanted)
    differences = [
        f"{name} is {mine[name]!r}, not {theirs[name]!r}"
        for name in mine
        if mine[name] != theirs[name]
    ]
    if own.space_fingerprint != wanted.space_fingerprint:
        differences.insert(0, f"space {own.space!r} is another, or another version of it")
    if differences:
        raise LatencyTableMismatch(
            f"{path} was measured for something else: {', '.join(differences)}",
            hint="give another file with --out; figures of both are never mixed",
        )


def _torn_message(path: Path, line: int) -> str:
    return (
        f"{path}:{line}: the last line is torn (a run was stopped while it wrote); passed over, "
        "the same command measures it again"
    )


def read_table_bytes(path: Path) -> bytes:
    """Read a table's file.

    Raises:
        InputFileError: It is missing or unreadable; a file of a similar name is named.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        similar = nearest(path.name, siblings)
        hint = (
            f"did you mean {path.parent / similar[0]}?"
            if similar
            else f"make it: `hwnas profile --space SPACE --target TARGET --out {path}`"
        )
        raise InputFileError(f"{path} does not exist", hint=hint) from error
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror}") from error


def _unwritable(path: Path, error: OSError) -> InputFileError:
    return InputFileError(
        f"{path} cannot be written: {error.strerror or error}",
        hint="check that the folder is writable and the disk has room, then run again: "
        "what is measured is kept",
    )
