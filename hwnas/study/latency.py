"""Latencies that can be compared: all networks of a study timed side by side, in one session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.environment import Provenance, this_device
from hwnas_profilers.records import Statistics
from hwnas_profilers.targets import parse_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hwnas.core.progress import Progress
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.timing import TimingSettings
    from hwnas_profilers.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Networks that were timed in shuffled rounds, so that what drifts hits all alike.

    Attributes:
        target: What they ran on.
        threads: Threads within an operator.
        networks: By name, what was measured.
        provenance: The device, and when.
    """

    target: str
    threads: int
    networks: dict[str, Statistics]
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSession:
    """Engines, as they are deployed, that were timed in shuffled rounds.

    Attributes:
        engines: By `engine_place`, what was measured.
        provenance: The device, and when.
    """

    engines: dict[str, Statistics]
    provenance: Provenance


def engine_place(architecture: str, target: str) -> str:
    """Return what an engine's latency is found by: weights are of no account."""
    return f"{architecture} as {target}"


def is_here(table: LatencyTable) -> bool:
    """Say whether what a table was measured on can be measured from here."""
    header = table.header
    if header.host:  # a board, reached from anywhere
        return True
    kind = parse_target(header.target).runtime.device
    return header.provenance.device.name == this_device(kind).name


def time_side_by_side(
    workloads: Mapping[str, Workload],
    target: str,
    threads: int,
    settings: TimingSettings,
    progress: Progress,
) -> Session:
    """Time networks in one session.

    Args:
        workloads: Networks by name.
        target: What to measure on.
        threads: Threads within an operator.
        settings: How exactly.
        progress: Where to report.

    Raises:
        TargetError: The target cannot be used here.
        ExportError: It refuses a network.
    """
    from hwnas.core.environment import provenance
    from hwnas_profilers.profiler import profiler_for

    with profiler_for(target, threads=threads) as profiler:
        timings = profiler.time_networks(list(workloads.values()), settings, progress=progress)
        measured = zip(workloads, (timing.statistics for timing in timings), strict=True)
        return Session(
            target=target,
            threads=threads,
            networks=dict(measured),
            provenance=provenance(profiler.device, profiler.packages),
        )
