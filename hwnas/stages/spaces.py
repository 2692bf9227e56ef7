"""The space that a table or a record was made for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.core.decoding import convert
from hwnas.space.channel_space import ChannelSpace
from hwnas.space.spec import SpaceSpec

if TYPE_CHECKING:
    from hwnas.core.progress import Progress
    from hwnas_profilers.table import LatencyTable


def space_of_table(table: LatencyTable) -> ChannelSpace:
    """Build the space whose operators a table holds, from the description in its header.

    Raises:
        ConfigError: The description is of another version of hwnas.
    """
    spec = convert(table.header.space_spec, SpaceSpec, source=f"{table.path} (space_spec)")
    return ChannelSpace(spec, batch=table.header.batch)


def say_if_uncalibrated(table: LatencyTable, progress: Progress) -> None:
    """Tell that a table's predictions are plain sums, which are far off: see its baselines."""
    if table.calibration is None:
        progress.say(
            f"{table.path} is not calibrated: a network's latency is the plain sum of its "
            f"operators'; better: hwnas calibrate --table {table.path}"
        )
