"""What a latency table holds, in a few figures and rows: what `hwnas table show` prints."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from hwnas.core.errors import LatencyTableError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas_profilers.records import (
        CalibrationRecord,
        ErrorFigures,
        Measurement,
        Session,
        TableHeader,
    )
    from hwnas_profilers.table import LatencyTable


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRow:
    """An operator's figures; see `records.Measurement`."""

    operator: str
    median_us: float
    low_us: float
    high_us: float
    n: int
    weights_bytes: int | None
    peak_activation_bytes: int | None
    energy_uj: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedRow:
    """An operator that the runtime refuses."""

    operator: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """How quiet the machine was; see `records.Session`."""

    utc: str
    seconds: float
    workloads: int
    rounds: int
    disturbed_rounds: int
    noisy_rounds: int
    load_percent: float | None
    temperature_c: tuple[float, float] | None
    clock_mhz: tuple[float, float] | None
    throttled: str
    reasons: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRow:
    """The errors of one predictor on the held-out networks; see `records.ErrorFigures`."""

    predictor: str
    mape_percent: float
    spearman: float | None
    within_5_percent: float
    within_10_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSummary:
    """How well a table predicts whole networks.

    Attributes:
        utc: When they were measured.
        networks: Networks of the fit.
        holdout_networks: Networks that the errors are of.
        noise_floor_percent: How far their own two measurements are apart.
        intercept_us: Cost of a call that no operator accounts for.
        curvature_per_us: By how much a network takes longer than its operators add up to.
        errors: Of the calibrated table, then of simpler predictors, the best first.
    """

    utc: str
    networks: int
    holdout_networks: int
    noise_floor_percent: float
    intercept_us: float
    curvature_per_us: float
    errors: tuple[ErrorRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSummary:
    """What a latency table holds.

    Attributes:
        table: Its file.
        target: What measures there again.
        space: The search space.
        device: The device's name.
        system: Its operating system.
        governor: Its frequency governor; empty where not readable.
        threads: Threads within an operator.
        batch: Images per call.
        dtype: Precision.
        utc: When its header was written.
        hwnas: Version that wrote it.
        packages: Versions of the libraries.
        settings: The profiler's settings.
        operators: Operators that are measured.
        pairs: Pairs of neighbors that are measured.
        unsupported: Operators that the runtime refuses.
        fastest_us: Median of the fastest operator; None where none is measured.
        slowest_us: Median of the slowest one; None likewise.
        interval_percent: Width of the median's 95 % interval as a share of the median: that of the
            operator in the middle, and the widest; None likewise.
        disturbed: Visits of operators that were thrown away and repeated.
        unsupported_operators: The refused ones, with the runtime's words.
        sessions: The runs of the profiler.
        calibration: None where there is none.
        rows: The slowest operators, or those that were asked for, the slowest first.
    """

    table: str
    target: str
    space: str
    device: str
    system: str
    governor: str
    threads: int
    batch: int
    dtype: str
    utc: str
    hwnas: str
    packages: dict[str, str]
    settings: dict[str, Any]
    operators: int
    pairs: int
    unsupported: int
    fastest_us: float | None
    slowest_us: float | None
    interval_percent: tuple[float, float] | None
    disturbed: int
    unsupported_operators: tuple[RefusedRow, ...]
    sessions: tuple[SessionRow, ...]
    calibration: CalibrationSummary | None
    rows: tuple[OperatorRow, ...]


def summarize_table(
    table: LatencyTable, *, kind: str | None = None, like: str | None = None, top: int = 5
) -> TableSummary:
    """Sum a table up.

    Args:
        table: The table.
        kind: Rows of all operators of this kind, e.g. `mbconv`.
        like: Rows of all operators whose name holds this text, in any case.
        top: Where neither is given: rows of this many, the slowest.

    Raises:
        LatencyTableError: No operator is of that kind, or has a name like that.
    """
    header: TableHeader = table.header
    measured = sorted(
        table.measurements.values(), key=lambda each: each.statistics.median_us, reverse=True
    )
    chosen = measured[:top] if kind is like is None else _matching(table, measured, kind, like)
    medians_us = [each.statistics.median_us for each in measured]
    widths = [_interval_percent(each) for each in measured]
    device = header.provenance.device
    return TableSummary(
        table=str(table.path),
        target=header.measured_at,
        space=header.space,
        device=device.name,
        system=device.system,
        governor=device.governor,
        threads=header.threads,
        batch=header.batch,
        dtype=header.dtype,
        utc=header.provenance.utc,
        hwnas=header.provenance.hwnas,
        packages=header.provenance.packages,
        settings=header.settings,
        operators=len(measured),
        pairs=len(table.pairs),
        unsupported=len(table.unsupported),
        fastest_us=min(medians_us, default=None),
        slowest_us=max(medians_us, default=None),
        interval_percent=(median(widths), max(widths)) if widths else None,
        disturbed=sum(each.disturbed for each in measured)
        + sum(each.disturbed for each in table.pairs.values()),
        unsupported_operators=tuple(
            RefusedRow(operator=str(key), reason=reason)
            for key, reason in table.unsupported.items()
        ),
        sessions=tuple(map(_session_row, table.sessions)),
        calibration=_calibration_summary(table.calibration) if table.calibration else None,
        rows=tuple(map(_operator_row, chosen)),
    )


def _matching(
    table: LatencyTable, measured: Sequence[Measurement], kind: str | None, like: str | None
) -> list[Measurement]:
    kinds = sorted({each.key.kind for each in measured})
    if kind is not None and kind not in kinds:
        similar = nearest(kind, kinds)
        hint = f"did you mean `{similar[0]}`? " if similar else ""
        raise LatencyTableError(
            f"{table.path} has no operator of kind `{kind}`",
            hint=f"{hint}its kinds: {', '.join(kinds) or 'none'}",
        )
    found = [
        each
        for each in measured
        if kind in (None, each.key.kind) and (like or "").lower() in str(each.key).lower()
    ]
    if not found:
        example = f"names look like `{measured[0].key}`" if measured else "the table is empty"
        raise LatencyTableError(f"{table.path} has no operator like `{like}`", hint=example)
    return found


def _interval_percent(measurement: Measurement) -> float:
    statistics = measurement.statistics
    return 100 * (statistics.high_us - statistics.low_us) / statistics.median_us


def _operator_row(measurement: Measurement) -> OperatorRow:
    statistics, energy = measurement.statistics, measurement.energy
    return OperatorRow(
        operator=str(measurement.key),
        median_us=statistics.median_us,
        low_us=statistics.low_us,
        high_us=statistics.high_us,
        n=statistics.n,
        weights_bytes=measurement.weights_bytes,
        peak_activation_bytes=measurement.peak_activation_bytes,
        energy_uj=energy.median_uj if energy else None,
    )


def _session_row(session: Session) -> SessionRow:
    return SessionRow(
        utc=session.utc,
        seconds=session.seconds,
        workloads=session.workloads,
        rounds=session.rounds,
        disturbed_rounds=session.disturbed_rounds,
        noisy_rounds=session.noisy_rounds,
        load_percent=session.load_percent,
        temperature_c=session.temperature_c,
        clock_mhz=session.clock_mhz,
        throttled=session.throttled,
        reasons=", ".join(f"{reason}: {count}" for reason, count in session.reasons.items()),
    )


def _calibration_summary(record: CalibrationRecord) -> CalibrationSummary:
    baselines = sorted(record.baselines.items(), key=lambda each: each[1].mape_percent)
    return CalibrationSummary(
        utc=record.utc,
        networks=len(record.networks),
        holdout_networks=len(record.holdout_networks),
        noise_floor_percent=record.noise_floor_percent,
        intercept_us=record.intercept_us,
        curvature_per_us=record.curvature_per_us,
        errors=(
            _error_row("calibrated", record.holdout),
            *(_error_row(name, figures) for name, figures in baselines),
        ),
    )


def _error_row(predictor: str, figures: ErrorFigures) -> ErrorRow:
    return ErrorRow(
        predictor=predictor,
        mape_percent=figures.mape_percent,
        spearman=figures.spearman,
        within_5_percent=figures.within_5_percent,
        within_10_percent=figures.within_10_percent,
    )
