"""What searching and deriving leave behind, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwnas.core.decoding import Hook, read_json
from hwnas.core.errors import ConfigError, nearest
from hwnas.distill.tutors import TutorSelection, frozen_tutors
from hwnas.search.budget import Budgets
from hwnas.search.objectives import Objective
from hwnas.space.chain_spec import ChainSpec
from hwnas.space.genotype import Genotype
from hwnas.space.spec import spec_from_plain
from hwnas.training.robust import RobustMethod
from hwnas_profilers.estimate import EstimateUse
from hwnas_profilers.records import EnergyStatistics, Statistics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """What a search learned, less the supernet's weights.

    Attributes:
        space: The space.
        target: Target whose latency was searched for.
        budget_ms: Bound on the latency that was held.
        expected_ms: Expected latency at the end.
        budgets: All bounds that were held; None where that on latency was the only one there was.
        expected_weights_kib: Expected weights at the end; None without a bound on them.
        expected_uncalibrated_energy_mj: Expected sum of the operators' energies; None likewise.
        expected_forbidden_operators: Expected number of operators that exceed the memory or that
            the runtime refuses; None where none does.
        estimated: Operators of the space whose latency is an estimate; None where none is.
        log_probabilities: Per searched block, of each of its options.
        tutor_probabilities: Per student layer, of each teacher layer; of a selection that is not
            searched, its fixed weights.
        student_layers: Names of the student layers.
        teacher_layers: Names of the teacher layers.
        attention_size: Height and width of the attention maps.
        seed: Seed of the search.
        selection: How tutors were selected.
        objective: Robustness objective that the choices were to raise.
        robust: How the supernet's weights were trained against perturbations.
    """

    space: ChainSpec
    target: str
    budget_ms: float
    expected_ms: float
    log_probabilities: tuple[tuple[float, ...], ...]
    tutor_probabilities: tuple[tuple[float, ...], ...]
    student_layers: tuple[str, ...]
    teacher_layers: tuple[str, ...]
    attention_size: int
    seed: int
    budgets: Budgets | None = None
    expected_weights_kib: float | None = None
    expected_uncalibrated_energy_mj: float | None = None
    expected_forbidden_operators: float | None = None
    estimated: EstimateUse | None = None
    selection: TutorSelection = "searched"
    objective: Objective = "none"
    robust: RobustMethod = "none"
    schema: int = SCHEMA

    @property
    def tutor_weights(self) -> tuple[tuple[float, ...], ...]:
        """Weights of the teacher layers for each student layer, as they are trained with."""
        return frozen_tutors(self.selection, self.tutor_probabilities)

    @property
    def choice_evenness(self) -> float:
        """How even the choices of options were left: 0, all decided, to 1, as even as chance.

        The entropy of their probabilities over the largest that it could be, over all blocks; 0
        where there is nothing to choose.
        """
        return _evenness([[math.exp(each) for each in row] for row in self.log_probabilities])

    @property
    def tutor_evenness(self) -> float:
        """How even the choices of tutors were left, likewise; 0 where none were searched."""
        return _evenness(self.tutor_probabilities) if self.selection == "searched" else 0.0

    def tutor_weights_of(self, layers: Sequence[str]) -> tuple[tuple[float, ...], ...]:
        """Return the weights of the teacher layers for some of the student layers.

        Args:
            layers: Names of the layers that a derived network has: `SlimNetwork.tap_names`.

        Raises:
            ConfigError: The search knows no such layer.
        """
        rows = dict(zip(self.student_layers, self.tutor_weights, strict=True))
        unknown = [layer for layer in layers if layer not in rows]
        if unknown:
            similar = nearest(unknown[0], rows)
            raise ConfigError(
                f"the search of {self.space.name} chose no tutor for {', '.join(unknown)}: a "
                "network's `tap_names` must be among those of its supernet",
                hint=f"did you mean `{similar[0]}`?" if similar else f"it has {', '.join(rows)}",
            )
        return tuple(rows[layer] for layer in layers)


def _evenness(rows: Sequence[Sequence[float]]) -> float:
    entropy = -sum(each * math.log(each) for row in rows for each in row if each > 0.0)
    largest = sum(math.log(len(row)) for row in rows)
    return entropy / largest if largest else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One network that was derived and measured.

    Attributes:
        genotype: The network.
        bound_ms: Bound on the predicted latency that it is the optimum of.
        predicted_ms: Its predicted latency.
        measured: Its measured latency; None where it was not measured.
        energy_bound_mj: Bound on the uncalibrated sum of energies likewise; None without one.
        metered: Its metered energy; None where it was not metered.
    """

    genotype: Genotype
    bound_ms: float
    predicted_ms: float
    measured: Statistics | None
    energy_bound_mj: float | None = None
    metered: EnergyStatistics | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a derived network takes besides time, and what it may take at most.

    Figures are None where the table does not tell, bounds where none was given.

    Attributes:
        batch: Images per call that activations and energy are for.
        memory_kib: Peak of live activations, counted from the operators' ONNX graphs.
        weights_kib: Size of the weights, counted likewise.
        uncalibrated_energy_mj: Sum of its operators' energies, each run alone: no whole network
            has corrected it.
        metered: Energy of the network as metered whole; None where there was no meter.
        memory_budget_kib: Bound on `memory_kib`.
        weights_budget_kib: Bound on `weights_kib`.
        energy_budget_mj: Bound on the energy.
        macs_budget_m: Bound on the multiply-accumulates per image, in millions.
        params_budget_k: Bound on the trained parameters, in thousands.
    """

    batch: int
    memory_kib: float | None
    weights_kib: float | None
    uncalibrated_energy_mj: float | None
    metered: EnergyStatistics | None
    memory_budget_kib: float | None
    weights_budget_kib: float | None
    energy_budget_mj: float | None
    macs_budget_m: float | None = None
    params_budget_k: float | None = None


def budgets_of(latency_ms: float, resources: Resources | None) -> Budgets:
    """Return the bounds of a network, given that on its latency and its other resources."""
    if resources is None:
        return Budgets(latency_ms=latency_ms)
    return Budgets(
        latency_ms=latency_ms,
        memory_kib=resources.memory_budget_kib,
        weights_kib=resources.weights_budget_kib,
        energy_mj=resources.energy_budget_mj,
        macs_m=resources.macs_budget_m,
        params_k=resources.params_budget_k,
    )


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
        tutor_weights: Per student layer, of each teacher layer; each row sums to 1, or, without
            tutors, to 0.
        attention_size: Height and width of the attention maps.
        attempts: All networks that were derived on the way, the chosen one last.
        table_sha256: Hash of the latency table.
        search_sha256: Hash of the search's record.
        resources: What it takes besides time; None in records that did not know of it.
        estimated: Operators of the network whose latency is an estimate; None where none is.
        selection: How tutors were selected.
    """

    genotype: Genotype
    space: ChainSpec
    target: str
    threads: int
    budget_ms: float
    predicted_ms: float
    measured_ms: float | None
    macs: int
    params: int
    student_layers: tuple[str, ...]
    teacher_layers: tuple[str, ...]
    tutor_weights: tuple[tuple[float, ...], ...]
    attention_size: int
    attempts: tuple[Attempt, ...]
    table_sha256: str
    search_sha256: str
    resources: Resources | None = None
    estimated: EstimateUse | None = None
    selection: TutorSelection = "searched"
    schema: int = SCHEMA

    @property
    def budgets(self) -> Budgets:
        """All bounds that it was derived under."""
        return budgets_of(self.budget_ms, self.resources)

    @property
    def tutors(self) -> tuple[int, ...]:
        """Index of the teacher layer that each student layer learns most from."""
        return tuple(row.index(max(row)) for row in self.tutor_weights)


def read_search(path: Path) -> SearchRecord:
    """Read `search.json`.

    Raises:
        InputFileError: The file is missing or unreadable.
        ConfigError: It holds something else.
    """
    return read_json(path, SearchRecord, hook=_space_of(path))


def read_derivation(path: Path) -> Derivation:
    """Read `genotype.json`. Raises as `read_search`."""
    return read_json(path, Derivation, hook=_space_of(path))


def _space_of(path: Path) -> Hook:
    def decode(kind: type, plain: Any) -> Any:
        assert kind is ChainSpec  # no other field of a record is of a type that is no plain data
        return spec_from_plain(plain, source=f"{path} (space)")

    return decode
