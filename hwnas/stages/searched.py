"""A finished search and a latency table, brought together: what deriving from it begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.core.artifacts import read_manifest
from hwnas.core.errors import LatencyTableMismatch
from hwnas.latency.resources import SpaceCosts
from hwnas.search.records import read_search
from hwnas.space.registry import space_from_spec
from hwnas.stages.search import SEARCH_FILE
from hwnas.stages.spaces import say_if_uncalibrated, with_estimates
from hwnas_profilers.table import LatencyTable

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.core.progress import Progress
    from hwnas.search.records import SearchRecord


_EVEN = 0.98
"""Evenness from which on hardly anything is chosen: the likeliest of two options has 58 %, the
likeliest of four 35 %."""


def say_if_even(record: SearchRecord, progress: Progress) -> None:
    """Say where a search ended before it had chosen: what is taken from it is hardly a choice."""
    for what, evenness in (
        ("options", record.choice_evenness),
        ("tutors", record.tutor_evenness),
    ):
        if evenness > _EVEN:
            progress.say(
                f"search: its choices of {what} are {100 * evenness:.3g} % as even as chance: what "
                "is taken from them is little better than drawn; raise `epochs` or "
                "`choice_learning_rate` in [search]"
            )


def costs_of_search(
    search: Path, table: Path, *, estimate: bool, progress: Progress
) -> tuple[SearchRecord, SpaceCosts, LatencyTable]:
    """Read a search, and what the networks of its space cost by a table, on any target.

    Args:
        search: Folder of a search.
        table: Latency table.
        estimate: Estimate operators that the table lacks; it may then be of another space.
        progress: Where to say what must be known of the table.

    Returns:
        The search's record, the costs, and the table with its estimates.

    Raises:
        ArtifactError: The search is unfinished or was changed.
        LatencyTableError: The table is of another space, or cannot be used.
    """
    read_manifest(search, kind="search")
    record = read_search(search / SEARCH_FILE)
    read = LatencyTable.read(table)
    header = read.header
    if header.space_fingerprint != record.space.fingerprint and not estimate:
        raise LatencyTableMismatch(
            f"{table} was measured for space {header.space}, {search} searched "
            f"{record.space.name}, or other images or classes",
            hint=f"hwnas profile --space {record.space.name} --target {header.target} "
            f"--image-shape {','.join(map(str, record.space.image_shape))} "
            f"--classes {record.space.classes} --out NEW.jsonl",
        )
    space = space_from_spec(record.space, batch=header.batch, dtype=header.dtype)
    if estimate:
        read = with_estimates(read, space, progress)
    costs = SpaceCosts(space, read)
    say_if_uncalibrated(read, progress)
    say_if_even(record, progress)
    return record, costs, read
