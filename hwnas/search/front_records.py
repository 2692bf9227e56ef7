"""What `hwnas pareto` leaves behind, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.decoding import read_json
from hwnas.search.budget import Budgets
from hwnas.space.genotype import Genotype
from hwnas_profilers.estimate import EstimateUse
from hwnas_profilers.records import Statistics

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """One network of a front.

    Attributes:
        genotype: The network.
        score: Sum of the log-probabilities that the search gave its blocks' choices.
        predicted_ms: Its predicted latency. `hwnas derive` with this budget derives the network.
        macs: Multiply-accumulates per image.
        params: Trained parameters.
        memory_kib: Peak of live activations; None where the table does not tell.
        weights_kib: Size of the weights; None likewise.
        uncalibrated_energy_mj: Sum of its operators' energies, each run alone; None likewise.
        measured: Its measured latency; None where it was not measured.
    """

    genotype: Genotype
    score: float
    predicted_ms: float
    macs: int
    params: int
    memory_kib: float | None
    weights_kib: float | None
    uncalibrated_energy_mj: float | None
    measured: Statistics | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontRecord:
    """The Pareto front of score and latency of a search on a table.

    Attributes:
        space: Name of the space.
        target: Target of the table.
        device: Name of the device that it was measured on.
        threads: Threads within an operator.
        batch: Images per call.
        budgets: Bounds that all its networks meet.
        networks: Networks on the front.
        complete: Whether they are all that are on it. Else each is the best within some latency,
            but others lie between.
        points: The networks, in ascending order of latency and of score; no more than a cap, evenly
            over the latency and with both ends.
        estimated: Operators of the points whose latency is an estimate; None where none is.
        table_sha256: Hash of the latency table.
        search_sha256: Hash of the search's record.
    """

    space: str
    target: str
    device: str
    threads: int
    batch: int
    budgets: Budgets
    networks: int
    complete: bool
    points: tuple[FrontPoint, ...]
    estimated: EstimateUse | None
    table_sha256: str
    search_sha256: str
    schema: int = SCHEMA


def read_front(path: Path) -> FrontRecord:
    """Read `front.json`.

    Raises:
        InputFileError: The file is missing or unreadable.
        ConfigError: It holds something else.
    """
    return read_json(path, FrontRecord)
