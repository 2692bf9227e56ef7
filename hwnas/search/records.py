"""What searching and deriving leave behind, as data."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.space.genotype import Genotype
from hwnas.space.spec import SpaceSpec
from hwnas_profilers.records import Statistics

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """What a search learned, less the supernet's weights.

    Attributes:
        space: The space.
        target: Target whose latency was searched for.
        budget_ms: Bound on the latency that was held.
        expected_ms: Expected latency at the end.
        log_probabilities: Per searched block, of each of its options.
        tutor_probabilities: Per student layer, of each teacher layer.
        student_layers: Names of the student layers.
        teacher_layers: Names of the teacher layers.
        attention_size: Height and width of the attention maps.
        seed: Seed of the search.
    """

    space: SpaceSpec
    target: str
    budget_ms: float
    expected_ms: float
    log_probabilities: tuple[tuple[float, ...], ...]
    tutor_probabilities: tuple[tuple[float, ...], ...]
    student_layers: tuple[str, ...]
    teacher_layers: tuple[str, ...]
    attention_size: int
    seed: int
    schema: int = SCHEMA

    @property
    def tutors(self) -> tuple[int, ...]:
        """The teacher layer that each student layer chose: its most likely one."""
        return tuple(row.index(max(row)) for row in self.tutor_probabilities)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One network that was derived and measured.

    Attributes:
        genotype: The network.
        bound_ms: Bound on the predicted latency that it is the optimum of.
        predicted_ms: Its predicted latency.
        measured: Its measured latency; None where it was not measured.
    """

    genotype: Genotype
    bound_ms: float
    predicted_ms: float
    measured: Statistics | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """A derived network, with how it came about: the content of `genotype.json`.

    Attributes:
        genotype: The network.
        space: Its space.
        target: Target of the latencies.
        threads: Threads within an operator.
        budget_ms: Bound on the latency.
        predicted_ms: Predicted latency.
        measured_ms: Measured latency (median); None where it was not measured.
        macs: Multiply-accumulates per image.
        params: Trained parameters.
        student_layers: Names of the layers that learn from a tutor.
        teacher_layers: Names of the teacher's layers.
        tutors: Index of the teacher layer of each student layer.
        attention_size: Height and width of the attention maps.
        attempts: All networks that were derived on the way, the chosen one last.
        table_sha256: Hash of the latency table.
        search_sha256: Hash of the search's record.
    """

    genotype: Genotype
    space: SpaceSpec
    target: str
    threads: int
    budget_ms: float
    predicted_ms: float
    measured_ms: float | None
    macs: int
    params: int
    student_layers: tuple[str, ...]
    teacher_layers: tuple[str, ...]
    tutors: tuple[int, ...]
    attention_size: int
    attempts: tuple[Attempt, ...]
    table_sha256: str
    search_sha256: str
    schema: int = SCHEMA
