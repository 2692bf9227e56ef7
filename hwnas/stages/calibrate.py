"""`hwnas calibrate`: whole networks correct what single operators say."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from hwnas.core.errors import ConfigError, LatencyTableMismatch
from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Sequence, Set
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from hwnas.latency.model import LatencyModel
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.genotype import Genotype
    from hwnas_profilers.records import CalibrationRecord, ErrorFigures
    from hwnas_profilers.timing import TimingSettings
    from hwnas_profilers.workload import OperatorKey


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateResult:
    """How well a calibrated table predicts networks that it has not seen."""

    table: str
    intercept_us: float
    scale: float
    per_operator_us: float
    curvature_per_us: float
    fit: ErrorFigures
    holdout: ErrorFigures
    baselines: dict[str, ErrorFigures]
    noise_floor_percent: float


def calibrate(
    table: Path,
    space: str | None = None,
    *,
    networks: int = 12,
    holdout: int = 24,
    relative_width: float = 0.005,
    seed: int = 0,
    progress: Progress = SILENT,
) -> CalibrateResult:
    """Time whole networks on the target and fit the latency table to them.

    The space's fastest network is one, the others are drawn at random. The fit and its errors on
    the held-out networks are appended to the table, beside those of simpler predictors.

    Args:
        table: A complete latency table of this machine.
        space: Name of its space, to be sure of it.
        networks: Networks to fit to.
        holdout: Networks to judge the fit on.
        relative_width: A network is finished once the 95 % interval of its median is narrower than
            this share of the median.
        seed: Draws the networks.
        progress: Where to report.

    Returns:
        The fit and its errors.

    Raises:
        LatencyTableError: The table is incomplete, of another machine, or of another space.
        ConfigError: Too few networks.
    """
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.timing import TimingSettings

    settings = TimingSettings.for_networks(relative_width=relative_width, seed=seed)
    header = LatencyTable.read(table).header
    if space is not None and header.space != space:
        raise LatencyTableMismatch(
            f"{table} was measured for space `{header.space}`, not `{space}`",
            hint=f"hwnas calibrate --table {table} --space {header.space}",
        )
    record = make_calibration(
        table, networks=networks, holdout=holdout, settings=settings, seed=seed, progress=progress
    )
    return CalibrateResult(
        table=str(table),
        intercept_us=record.intercept_us,
        scale=record.scale,
        per_operator_us=record.per_operator_us,
        curvature_per_us=record.curvature_per_us,
        fit=record.fit,
        holdout=record.holdout,
        baselines=record.baselines,
        noise_floor_percent=record.noise_floor_percent,
    )


def make_calibration(
    path: Path,
    *,
    networks: int,
    holdout: int,
    settings: TimingSettings,
    seed: int,
    progress: Progress = SILENT,
) -> CalibrationRecord:
    """Measure networks, fit, and append the record to the table. Raises as `calibrate`."""
    import numpy as np

    from hwnas.latency.calibration import calibration_record
    from hwnas.latency.in_network import OperatorCosts
    from hwnas.latency.model import LatencyModel
    from hwnas.stages.spaces import space_of_table
    from hwnas_profilers.profiler import profiler_for
    from hwnas_profilers.records import NetworkMeasurement
    from hwnas_profilers.table import LatencyTable, TableAppender

    if networks < 3 or holdout < 3:
        raise ConfigError(f"calibration needs 3 networks and 3 held out, not {networks}, {holdout}")
    table = LatencyTable.read(path)
    header = table.header
    space = space_of_table(table)
    # Complains of a missing operator before anything is measured.
    fastest = fastest_genotype(LatencyModel(space, table))
    genotypes = drawn_genotypes(
        space,
        networks + holdout,
        np.random.default_rng(seed),
        without=set(table.unsupported),
        first=(fastest,),
    )
    with profiler_for(header.measured_at, threads=header.threads) as profiler:
        table.require(device=profiler.device.name)
        timings = profiler.time_networks(
            [space.workload(genotype) for genotype in genotypes],
            settings,
            progress=progress,
        )
    measured = [
        NetworkMeasurement(
            choices=space.choices(genotype),
            macs=space.macs(genotype),
            statistics=timing.statistics,
            first_us=timing.first_us,
            second_us=timing.second_us,
        )
        for genotype, timing in zip(genotypes, timings, strict=True)
    ]
    keys = list(table.measurements)
    counts = operator_counts(space, genotypes, keys)
    costs = OperatorCosts(table)
    record = calibration_record(
        keys=keys,
        isolated_us=np.array([table.latency_us(key) for key in keys]),
        prior_us=np.array([costs.prior_us(key) for key in keys]),
        weights_bytes=weights_bytes(space, keys),
        counts=counts[:networks],
        networks=measured[:networks],
        holdout_counts=counts[networks:],
        holdout_networks=measured[networks:],
        seed=seed,
        utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        settings=asdict(settings),
    )
    with TableAppender(path, header) as appender:
        appender.append(record)
    return record


def fastest_genotype(latency: LatencyModel) -> Genotype:
    """Return the network that a table says is the fastest.

    Budgets are held against the ends of what a space can reach. The slow end is near what is drawn;
    the fast one is far from all of it, where an intercept is all that matters, and a fit that has
    not seen it puts it at a fraction of what it takes, or below zero.
    """
    choices = latency.cost_us.cheapest()
    assert choices is not None  # as the model has been made
    return latency.space.genotype_of_choices(choices)


def drawn_genotypes(
    space: ChainSpace,
    count: int,
    generator: np.random.Generator,
    without: Set[OperatorKey] = frozenset(),
    first: Sequence[Genotype] = (),
) -> list[Genotype]:
    """Draw networks, each once, that have none of some operators; some are given, and come first.

    Every fourth one is drawn lopsided: its blocks take their last option, the smallest or a skip,
    with one probability for the whole network. Others crowd around the middle of the space, and a
    fit to them alone would have to be believed where nothing was measured.

    Raises:
        ConfigError: The space has fewer.
    """
    drawn: dict[Genotype, None] = dict.fromkeys(first)
    for _ in range(100 * count):
        genotype = space.random_genotype(generator)
        if len(drawn) % 4 == 1:
            share = generator.random()
            genotype = space.genotype_of_choices(
                [
                    len(options) - 1 if generator.random() < share else choice
                    for options, choice in zip(space.options, space.choices(genotype), strict=True)
                ]
            )
        if without.isdisjoint(space.operators_of(genotype)):
            drawn[genotype] = None
        if len(drawn) == count:
            return list(drawn)
    raise ConfigError(
        f"{space.spec.name} has too few networks to draw {count} different ones",
        hint="lower --networks and --holdout",
    )


def weights_bytes(space: ChainSpace, keys: Sequence[OperatorKey]) -> NDArray[np.float64]:
    """Return the size of operators' weights in fp32, (operators,): what counts is their ratio."""
    import numpy as np

    return np.array([4.0 * space.weights_of(key) for key in keys])


def operator_counts(
    space: ChainSpace, genotypes: Sequence[Genotype], keys: Sequence[OperatorKey]
) -> NDArray[np.float64]:
    """Count each network's operators, (networks, operators)."""
    import numpy as np

    column = {key: index for index, key in enumerate(keys)}
    counts = np.zeros((len(genotypes), len(keys)))
    for row, genotype in zip(counts, genotypes, strict=True):
        for key in space.operators_of(genotype):
            row[column[key]] += 1
    return counts
