"""The space that a table or a record was made for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.space.registry import space_from_spec
from hwnas.space.spec import spec_from_plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hwnas.core.progress import Progress
    from hwnas.space.chain_space import ChainSpace
    from hwnas_profilers.estimate import EstimateUse
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey


def space_of_table(table: LatencyTable) -> ChainSpace:
    """Build the space whose operators a table holds, from the description in its header.

    Raises:
        ConfigError: The description is of another version of hwnas.
    """
    header = table.header
    spec = spec_from_plain(header.space_spec, source=f"{table.path} (space_spec)")
    return space_from_spec(spec, batch=header.batch, dtype=header.dtype)


def say_if_uncalibrated(table: LatencyTable, progress: Progress) -> None:
    """Tell that a table's predictions are plain sums, which are far off: see its baselines."""
    if table.calibration is None:
        progress.say(
            f"{table.path} is not calibrated: a network's latency is the plain sum of its "
            f"operators'; better: hwnas calibrate --table {table.path}"
        )


def with_estimates(table: LatencyTable, space: ChainSpace, progress: Progress) -> LatencyTable:
    """Return a table that answers for all operators of a space, and tell how much it guesses.

    Raises:
        LatencyTableError: It holds too few operators to estimate others from.
    """
    from hwnas_profilers.estimate import estimates_used

    keys = [operator.key for operator in space.operators()]
    known = {*table.measurements, *table.unsupported}
    if known.issuperset(keys):
        return table
    filled = table.with_estimates(keys)
    used = estimates_used(filled, keys)
    progress.say(
        f"{table.path} lacks {used.operators} of {len(keys)} operators: estimated, as asked; the "
        f"widest 90 % interval spans {used.widest_percent:.0f} % of its estimate"
        + (f", {used.extrapolated} are extrapolated" if used.extrapolated else "")
    )
    return filled


def estimates_in(table: LatencyTable, keys: Iterable[OperatorKey]) -> EstimateUse | None:
    """Return what is estimated of some operators; None where nothing is."""
    from hwnas_profilers.estimate import estimates_used

    used = estimates_used(table, keys)
    return used if used.operators else None
