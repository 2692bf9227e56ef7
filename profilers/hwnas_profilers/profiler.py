"""Workloads -> measurements: compile, time in shuffled rounds, append as measured."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT
from hwnas_profilers.records import Measurement, Statistics
from hwnas_profilers.statistics import summarize
from hwnas_profilers.table import LatencyTable, TableAppender
from hwnas_profilers.targets import require_target, runners_for, threads_of
from hwnas_profilers.timing import time_in_rounds, time_interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hwnas.core.progress import Progress
    from hwnas_export.runner import Runner
    from hwnas_profilers.records import TableHeader
    from hwnas_profilers.timing import TimingSettings
    from hwnas_profilers.workload import Operator, OperatorKey, Workload

GROUP_SIZE = 64
"""Operators that are compiled and timed together: bounds memory, and what a killed run loses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTiming:
    """The latency of one whole network, measured twice in separate rounds.

    Attributes:
        statistics: Over all samples.
        first_us: Median over the first, third, ... round.
        second_us: Median over the rounds between.
    """

    statistics: Statistics
    first_us: float
    second_us: float


def profile_operators(
    operators: Sequence[Operator],
    *,
    path: Path,
    header: TableHeader,
    settings: TimingSettings,
    progress: Progress = SILENT,
) -> LatencyTable:
    """Measure what a latency table lacks, and return the whole table.

    Operators are timed in groups, within a group in shuffled rounds. Which group an operator falls
    into is drawn, so that a drift between groups favors no kind of operator.

    Args:
        operators: The operators of a space; equal keys are measured once.
        path: The table's file; made where there is none, gone on from where there is one.
        header: What is measured, and on what.
        settings: How exactly.
        progress: Where to report.

    Raises:
        TargetError: The target is unknown, or cannot be used here.
        ConfigError: An operator's batch or precision is not the header's.
        ExportError: The runtime cannot compile an operator. What was measured before is kept.
        InputFileError: The table cannot be written. What was measured before is kept.
        LatencyTableError: The table that is there cannot be gone on from.
    """
    require_target(header.target)
    by_key = {operator.key: operator for operator in operators}
    _check_keys(by_key, header)
    generator = np.random.default_rng(settings.seed)
    with TableAppender(path, header, progress=progress) as table:
        missing = [operator for key, operator in by_key.items() if key not in table.measurements]
        done = len(by_key) - len(missing)
        if done:
            progress.say(f"{path}: {done} of {len(by_key)} operators are measured already")
        groups = _groups([missing[index] for index in generator.permutation(len(missing))])
        for number, group in enumerate(groups, start=1):
            if len(groups) > 1:
                progress.say(f"operators: group {number} of {len(groups)}")
            _profile_group(group, table, header, settings, progress)
    return LatencyTable.read(path)


def profile_networks(
    workloads: Sequence[Workload],
    *,
    target: str,
    threads: int,
    settings: TimingSettings,
    progress: Progress = SILENT,
) -> list[NetworkTiming]:
    """Time whole networks in shuffled rounds.

    Args:
        workloads: The networks; all are held compiled at once, so that drift hits all alike.
        target: What to run them on.
        threads: Threads within an operator.
        settings: How exactly.
        progress: Where to report.

    Raises:
        TargetError: The target is unknown, or cannot be used here.
        ExportError: The runtime cannot compile a network.
    """
    with _compiled(workloads, target, threads, settings.seed, progress) as calls:
        timed = time_in_rounds(calls, settings, progress=progress)
    return [
        NetworkTiming(
            statistics=summarize(np.concatenate(rounds)),
            first_us=float(np.median(np.concatenate(rounds[0::2]))),
            second_us=float(np.median(np.concatenate(rounds[1::2]))),
        )
        for rounds in timed
    ]


def time_runner(
    runner: Runner,
    *,
    settings: TimingSettings,
    threads: int = 1,
    batch: int = 1,
    progress: Progress = SILENT,
) -> Statistics:
    """Time one active runner, e.g. an engine that is to be verified.

    Args:
        runner: An active runner.
        settings: How exactly.
        threads: Threads, where they belong to the process; else those that it was compiled with.
        batch: Images per call, where the runner leaves that free.
        progress: Where to report.
    """
    call = runner.call_on(_input_for(runner, np.random.default_rng(settings.seed), batch))
    with threads_of(runner.name, threads):
        (samples_us,) = time_interleaved([call], settings, progress=progress)
    return summarize(samples_us)


def _profile_group(
    group: Sequence[Operator],
    table: TableAppender,
    header: TableHeader,
    settings: TimingSettings,
    progress: Progress,
) -> None:
    def append(index: int, samples_us: NDArray[np.float64]) -> None:
        table.append(Measurement(key=group[index].key, statistics=summarize(samples_us)))

    with _compiled(group, header.target, header.threads, settings.seed, progress) as calls:
        time_interleaved(calls, settings, on_finished=append, progress=progress)


@contextmanager
def _compiled(
    workloads: Sequence[Workload], target: str, threads: int, seed: int, progress: Progress
) -> Iterator[list[Callable[[], object]]]:
    """Compile workloads, hold them active, and bind each to an input."""
    generator = np.random.default_rng(seed)
    runners = runners_for(target, workloads, threads=threads)
    with ExitStack() as stack:
        stack.enter_context(threads_of(target, threads))
        calls = []
        with progress.task("compiling", len(workloads)) as task:
            for workload, runner in zip(workloads, runners, strict=True):
                stack.enter_context(runner)
                calls.append(runner.call_on(_input_for(runner, generator, 1)))
                task.advance(note=workload.name)
        yield calls


def _input_for(runner: Runner, generator: np.random.Generator, batch: int) -> NDArray[np.float32]:
    """Draw an input as normal as activations are: zeros or denormals may run at another speed."""
    own_batch, *rest = runner.input_shape
    return generator.standard_normal((own_batch or batch, *rest), dtype=np.float32)


def _groups(operators: Sequence[Operator]) -> list[Sequence[Operator]]:
    """Split into groups of nearly equal size, none larger than `GROUP_SIZE`."""
    count = -(-len(operators) // GROUP_SIZE)
    return [operators[start::count] for start in range(count)]


def _check_keys(keys: Iterable[OperatorKey], header: TableHeader) -> None:
    for key in keys:
        if (key.batch, key.dtype) != (header.batch, header.dtype):
            raise ConfigError(
                f"operator {key} is of batch {key.batch} and {key.dtype}, "
                f"the table of batch {header.batch} and {header.dtype}"
            )
