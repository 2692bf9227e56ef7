"""The lines of a latency table, all JSON objects: a header, then what was measured, as measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

# Not for type checking alone: msgspec evaluates the annotations when it decodes.
from hwnas.core.environment import Provenance
from hwnas_profilers.workload import OperatorKey

SCHEMA = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TableHeader:
    """What a table's figures hold for.

    Attributes:
        target: Runtime, device and precision, e.g. `onnxruntime-cpu`.
        space: Name of the search space.
        space_spec: The space's full description, from which it can be built again.
        space_fingerprint: Hash of `space_spec`: tables of unequal spaces are never mixed.
        threads: Threads within an operator.
        batch: Images per call.
        dtype: Precision of the arithmetic.
        settings: The profiler's settings.
        provenance: Device, library versions and time.
        host: Where the device was reached, `ssh://[user@]host[:port]`; empty for this machine.
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
    host: str = ""
    schema: int = SCHEMA
    record: Literal["header"] = "header"

    @property
    def measured_at(self) -> str:
        """The target string that measures there again."""
        return f"{self.host}/{self.target}" if self.host else self.target


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
class EnergyStatistics:
    """Energy of one call, summed up over windows of many calls. All in microjoules.

    Attributes:
        n: Windows.
        median_uj: Their median.
        low_uj: Lower end of the median's 95 % interval; the least window where they are too few.
        high_uj: Upper end of it; the greatest window likewise.
    """

    n: int
    median_uj: float
    low_uj: float
    high_uj: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one operator takes when it runs alone.

    Attributes:
        key: The operator.
        statistics: Its latency.
        disturbed: Visits that were thrown away and repeated, as the machine was disturbed.
        weights_bytes: Size of its weights in the compiled precision; None where not known.
        peak_activation_bytes: Largest sum of live activations while it runs; None likewise.
        energy: Energy of a call; None where the target cannot tell.
    """

    key: OperatorKey
    statistics: Statistics
    disturbed: int = 0
    weights_bytes: int | None = None
    peak_activation_bytes: int | None = None
    energy: EnergyStatistics | None = None
    record: Literal["measurement"] = "measurement"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMeasurement:
    """The latency of two operators compiled as one: what the seam between them is worth.

    Run alone, the first hands its output to the caller and the second takes its input from there.
    In one network neither happens: a network's call is paid once, and the tensor between stays in
    the layout and in the caches where it is.

    Attributes:
        before: The first operator; its output is the second one's input.
        after: The second operator.
        statistics: Latency of both together.
        disturbed: As in `Measurement`.
    """

    before: OperatorKey
    after: OperatorKey
    statistics: Statistics
    disturbed: int = 0
    record: Literal["pair"] = "pair"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsupportedOperator:
    """An operator that the runtime refuses, in the runtime's own words."""

    refused: OperatorKey
    reason: str
    record: Literal["unsupported"] = "unsupported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One run of the profiler into a table: how quiet the machine was.

    Attributes:
        utc: When it ended.
        seconds: How long it took, compiling included.
        workloads: Operators and pairs that it measured.
        rounds: Rounds that were kept.
        disturbed_rounds: Rounds that were thrown away and repeated.
        noisy_rounds: Rounds that were disturbed but kept, as too many were.
        reasons: How often a round was disturbed, by reason.
        load_percent: Median share of all cores' time that other programs took in a round; None
            where the system does not tell.
        temperature_c: Hottest thermal zone at the begin and at the end; None where there is none.
        clock_mhz: Mean frequency at the begin and at the end; None where not readable.
        pilot_us: Median time of the fixed computation that follows the clock; None where no round
            was watched.
        memory_us: Median time of reading some MiB, which follows what others leave of the shared
            cache; None likewise.
        throttled: Throttling flags at the end; empty where there are none.
        facts: What else the device says of itself, e.g. its power mode.
    """

    utc: str
    seconds: float
    workloads: int
    rounds: int
    disturbed_rounds: int
    noisy_rounds: int
    reasons: dict[str, int]
    load_percent: float | None
    temperature_c: tuple[float, float] | None
    clock_mhz: tuple[float, float] | None
    pilot_us: float | None
    memory_us: float | None = None
    throttled: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    record: Literal["session"] = "session"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkMeasurement:
    """The latency of one whole network, measured twice in separate rounds.

    Attributes:
        choices: Its genotype's option index per layer.
        macs: Multiply-accumulates per image.
        statistics: Over all samples.
        first_us: Median over the even rounds.
        second_us: Median over the odd rounds, in which it is another loading of the network where
            it was loaded several times: how far it is from the first is the noise floor.
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
    """latency(network) = total + curvature * total^2, total = intercept + sum over its operators.

    Attributes:
        intercept_us: Cost of a call that no operator accounts for.
        scale: Mean factor on what the table alone says of an operator within a network.
        per_operator_us: Mean cost that every operator has beside.
        operators_us: What each operator adds to the total, by operator.
        curvature_per_us: By how much a network takes longer than its total, per microsecond of it;
            0, as in tables of before 0.2.0, where networks take what their operators add up to.
        noise_percent: Standard deviation of what the fit leaves unexplained, of the total.
        fit: Errors on the networks of the fit.
        holdout: Errors on networks that the fit never saw.
        baselines: Errors on the same held-out networks of simpler predictors, those that need a fit
            fit to the same networks: see `hwnas.latency.baselines`.
        noise_floor_percent: Mean absolute percentage difference of the held-out networks' two
            measurements: no predictor can be shown to be better.
        networks: The networks of the fit.
        holdout_networks: The held-out networks.
        seed: What the networks were drawn with.
        utc: When.
        settings: How the networks were timed.
    """

    intercept_us: float
    scale: float
    per_operator_us: float
    operators_us: tuple[tuple[OperatorKey, float], ...]
    noise_percent: float
    fit: ErrorFigures
    holdout: ErrorFigures
    baselines: dict[str, ErrorFigures]
    noise_floor_percent: float
    networks: tuple[NetworkMeasurement, ...]
    holdout_networks: tuple[NetworkMeasurement, ...]
    seed: int
    utc: str
    settings: dict[str, Any] = field(default_factory=dict)
    curvature_per_us: float = 0.0
    record: Literal["calibration"] = "calibration"
