"""The lines of a latency table: a header, then measurements and calibrations, all JSON objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

# Not for type checking alone: msgspec evaluates the annotations when it decodes.
from hwnas.core.environment import Provenance
from hwnas_profilers.workload import OperatorKey

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TableHeader:
    """What a table's figures hold for.

    Attributes:
        target: Runtime and device class, e.g. `onnxruntime-cpu`.
        space: Name of the search space.
        space_spec: The space's full description, from which it can be built again.
        space_fingerprint: Hash of `space_spec`: tables of unequal spaces are never mixed.
        threads: Threads within an operator.
        batch: Images per call.
        dtype: Precision of the arithmetic.
        settings: The profiler's settings.
        provenance: Device, library versions and time.
    """

    target: str
    space: str
    space_spec: dict[str, Any]
    space_fingerprint: str
    threads: int
    batch: int
    dtype: str
    settings: dict[str, Any]
    provenance: Provenance
    schema: int = SCHEMA
    record: Literal["header"] = "header"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Samples of one workload, summed up. All times in microseconds per call.

    Attributes:
        n: Samples.
        median_us: Their median.
        low_us: Lower end of the median's 95 % order-statistic interval.
        high_us: Upper end of it.
        min_us: Fastest sample.
        p10_us: 10th percentile.
        p90_us: 90th percentile.
    """

    n: int
    median_us: float
    low_us: float
    high_us: float
    min_us: float
    p10_us: float
    p90_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The latency of one operator."""

    key: OperatorKey
    statistics: Statistics
    record: Literal["measurement"] = "measurement"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkMeasurement:
    """The latency of one whole network, measured twice in separate rounds.

    Attributes:
        choices: Its genotype's option index per layer.
        macs: Multiply-accumulates per image.
        statistics: Over all samples.
        first_us: Median over the even rounds.
        second_us: Median over the odd rounds: how far it is from the first is the noise floor.
    """

    choices: tuple[int, ...]
    macs: int
    statistics: Statistics
    first_us: float
    second_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorFigures:
    """How well predictions of latency agree with measurements of networks.

    Attributes:
        n: Networks.
        mape_percent: Mean absolute percentage error.
        spearman: Rank correlation; None where it is undefined (fewer than three, or all equal).
        kendall: Kendall's tau-b; None likewise.
        within_5_percent: Share of networks predicted within 5 %, in percent.
        within_10_percent: The same within 10 %.
    """

    n: int
    mape_percent: float
    spearman: float | None
    kendall: float | None
    within_5_percent: float
    within_10_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRecord:
    """latency(network) = intercept + sum over its operators of (scale * measured + correction).

    Attributes:
        intercept_us: Cost of a call that no operator accounts for.
        scale: Factor on the sum of isolated measurements.
        corrections_us: What whole networks say of single operators, by operator.
        ridge: Strength of the pull of the corrections toward zero; None where the corrections did
            not help on left-out networks and are all zero.
        fit: Errors on the networks of the fit.
        holdout: Errors on networks that the fit never saw.
        baselines: Errors on the same held-out networks of simpler predictors, each fit on the same
            networks: `sum`, `sum_affine`, `macs_affine`.
        noise_floor_percent: Mean absolute percentage difference of the held-out networks' two
            measurements: no predictor can be shown to be better.
        networks: The networks of the fit.
        holdout_networks: The held-out networks.
        seed: What the networks were drawn with.
        utc: When.
    """

    intercept_us: float
    scale: float
    corrections_us: tuple[tuple[OperatorKey, float], ...]
    ridge: float | None
    fit: ErrorFigures
    holdout: ErrorFigures
    baselines: dict[str, ErrorFigures]
    noise_floor_percent: float
    networks: tuple[NetworkMeasurement, ...]
    holdout_networks: tuple[NetworkMeasurement, ...]
    seed: int
    utc: str
    settings: dict[str, Any] = field(default_factory=dict)
    record: Literal["calibration"] = "calibration"
