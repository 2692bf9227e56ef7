"""Operators and their pairs -> a latency table: compiled, timed in shuffled rounds, appended."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.errors import ConfigError, LatencyTableError
from hwnas.core.progress import SILENT
from hwnas_profilers.pairs import neighbor_pairs
from hwnas_profilers.records import Measurement, PairMeasurement, Session, UnsupportedOperator
from hwnas_profilers.statistics import summarize
from hwnas_profilers.table import LatencyTable, TableAppender
from hwnas_profilers.workload import Operator, chain_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from hwnas.core.progress import Progress
    from hwnas_profilers.profiler import Profiler
    from hwnas_profilers.records import TableHeader
    from hwnas_profilers.timing import RoundLog, Timed, TimingSettings
    from hwnas_profilers.workload import Chain, OperatorKey

GROUP_SIZE = 512
"""Workloads that are compiled and timed together. As many as memory holds, for what lies in one
group shares the same rounds: between groups a machine was seen to change its speed by a tenth,
which then stands in the table as if some operators were slower. A killed run loses the unfinished
ones."""


def profile_operators(
    operators: Sequence[Operator],
    *,
    profiler: Profiler,
    path: Path,
    header: TableHeader,
    settings: TimingSettings,
    energy: bool = False,
    progress: Progress = SILENT,
) -> LatencyTable:
    """Measure what a latency table lacks, and return the whole table.

    Operators, and pairs of neighbors, are timed in groups, within a group in shuffled rounds. Which
    group one falls into is drawn, so that a drift between groups favors no kind of operator. What
    the runtime refuses is recorded with its words, and is not tried again.

    Args:
        operators: The operators of a space; equal keys are measured once.
        profiler: An entered profiler.
        path: The table's file; made where there is none, gone on from where there is one.
        header: What is measured, and on what.
        settings: How exactly.
        energy: Meter the energy of each operator too.
        progress: Where to report.

    Raises:
        ConfigError: An operator's batch or precision, or the profiler's target or threads, are not
            the header's.
        TargetError: The target cannot tell its energy.
        InputFileError: The table cannot be written. What was measured before is kept.
        LatencyTableError: The table that is there cannot be gone on from, or the runtime refuses
            every operator.
    """
    by_key = {operator.key: operator for operator in operators}
    _check_header(header, profiler)
    _check_keys(by_key, header)
    if energy:
        profiler.energies(())  # a target that cannot tell says so before there is a file
    generator = np.random.default_rng(settings.seed)
    began = time.monotonic()
    with TableAppender(path, header, progress=progress) as table:
        singles = list(by_key.values())
        pairs = neighbor_pairs(singles)
        new_singles, new_pairs = _missing_operators(singles, table), _missing_pairs(pairs, table)
        work = [*new_singles, *map(chain_of, new_pairs)]
        if len(work) < len(singles) + len(pairs):
            progress.say(
                f"{path}: {len(singles) - len(new_singles)} of {len(singles)} operators and "
                f"{len(pairs) - len(new_pairs)} of {len(pairs)} pairs of neighbors "
                "are measured already"
            )
        groups = _groups([work[index] for index in generator.permutation(len(work))])
        for number, group in enumerate(groups, start=1):
            if len(groups) > 1:
                progress.say(f"operators: group {number} of {len(groups)}")
            _profile_group(group, profiler, table, settings, energy, progress)
        if work:
            session = session_of(
                profiler.log,
                workloads=len(work),
                seconds=time.monotonic() - began,
                facts=profiler.facts(),
            )
            table.append(session)
        if not table.measurements:
            reason = next(iter(table.unsupported.values()), "there are none")
            raise LatencyTableError(f"{header.target} takes no operator of this space: {reason}")
    return LatencyTable.read(path)


def _missing_operators(operators: Sequence[Operator], table: TableAppender) -> list[Operator]:
    """Return those that are neither measured nor known to be refused."""
    return [
        operator
        for operator in operators
        if operator.key not in table.measurements and operator.key not in table.unsupported
    ]


def _missing_pairs(
    pairs: Sequence[tuple[Operator, Operator]], table: TableAppender
) -> list[tuple[Operator, Operator]]:
    """Return those that are neither measured nor hold a refused operator."""
    return [
        pair
        for pair in pairs
        if (pair[0].key, pair[1].key) not in table.pairs
        and not any(each.key in table.unsupported for each in pair)
    ]


def _profile_group(
    group: Sequence[Operator | Chain],
    profiler: Profiler,
    table: TableAppender,
    settings: TimingSettings,
    energy: bool,
    progress: Progress,
) -> None:
    singles = [each for each in group if isinstance(each, Operator)]
    energies = dict(
        zip(
            (each.key for each in singles),
            profiler.energies(singles, seed=settings.seed, progress=progress) if energy else (),
            strict=energy,
        )
    )

    def append(index: int, timed: Timed) -> None:
        workload, statistics = group[index], summarize(timed.samples_us)
        if not isinstance(workload, Operator):
            before, after = workload.parts
            table.append(
                PairMeasurement(
                    before=before.key,
                    after=after.key,
                    statistics=statistics,
                    disturbed=timed.disturbed,
                )
            )
            return
        memory = profiler.memory_of(workload)
        table.append(
            Measurement(
                key=workload.key,
                statistics=statistics,
                disturbed=timed.disturbed,
                weights_bytes=memory.weights_bytes if memory else None,
                peak_activation_bytes=memory.peak_activation_bytes if memory else None,
                energy=energies.get(workload.key),
            )
        )

    def refuse(index: int, reason: str) -> None:
        workload = group[index]
        if isinstance(workload, Operator):  # a pair of a refused operator is refused with it
            table.append(UnsupportedOperator(refused=workload.key, reason=reason))
            progress.say(f"not supported by {profiler.target}: {workload.key}: {reason}")

    profiler.time(group, settings, on_finished=append, on_rejected=refuse, progress=progress)


def session_of(log: RoundLog, *, workloads: int, seconds: float, facts: dict[str, str]) -> Session:
    """Sum up what rounds were like.

    Args:
        log: Their log.
        workloads: How many were measured.
        seconds: How long it took.
        facts: What the device says of itself.
    """
    return Session(
        utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        workloads=workloads,
        rounds=log.kept,
        disturbed_rounds=log.disturbed,
        noisy_rounds=log.noisy,
        reasons=log.reasons,
        load_percent=100 * float(np.median(log.loads)) if log.loads else None,
        temperature_c=_ends(log, "temperature_c"),
        clock_mhz=_ends(log, "clock_mhz"),
        pilot_us=float(np.median(log.pilots_ns)) / 1e3 if log.pilots_ns else None,
        memory_us=float(np.median(log.memories_ns)) / 1e3 if log.memories_ns else None,
        throttled=log.states[-1].throttled if log.states else "",
        facts=facts,
    )


def _ends(log: RoundLog, name: str) -> tuple[float, float] | None:
    values = [getattr(state, name) for state in log.states]
    return (values[0], values[-1]) if values and None not in values else None


def _groups(work: Sequence[Operator | Chain]) -> list[Sequence[Operator | Chain]]:
    """Split into groups of nearly equal size, none larger than `GROUP_SIZE`."""
    count = -(-len(work) // GROUP_SIZE)
    return [work[start::count] for start in range(count)]


def _check_header(header: TableHeader, profiler: Profiler) -> None:
    measured = (profiler.target.name, profiler.threads)
    if (header.target, header.threads) != measured:
        raise ConfigError(
            f"the profiler measures {measured[0]} with {measured[1]} threads, "
            f"the table is of {header.target} with {header.threads}"
        )


def _check_keys(keys: Iterable[OperatorKey], header: TableHeader) -> None:
    for key in keys:
        if (key.batch, key.dtype) != (header.batch, header.dtype):
            raise ConfigError(
                f"operator {key} is of batch {key.batch} and {key.dtype}, "
                f"the table of batch {header.batch} and {header.dtype}"
            )
