"""What a network takes besides time: memory, weights and energy, from the table; and its size."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from hwnas.core.errors import LatencyTableError, LatencyTableMiss
from hwnas.latency.costs import ChainCost, link_arrays
from hwnas.latency.model import LatencyModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.latency.costs import LinkFloats, LinkMasks
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.genotype import Genotype
    from hwnas_profilers.records import Measurement
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey

KIB = 1024
UJ_PER_MJ = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFigures:
    """What a table says of a network besides its latency; None where the table does not tell.

    Attributes:
        memory_kib: Peak of live activations: the greatest of its operators'.
        weights_kib: Weights: the sum of its operators'.
        uncalibrated_energy_mj: Energy of a call: the plain sum over its operators, each run alone.
            No whole network has corrected it.
    """

    memory_kib: float | None
    weights_kib: float | None
    uncalibrated_energy_mj: float | None


@final
class SpaceCosts:
    """All costs of a space's networks on a target. Only latency must be in the table.

    Multiply-accumulates and parameters need no table: the space knows them.

    Weights and energy add up over the operators of a network. The peak of live activations does
    not: it is the greatest of its operators' peaks, since between two operators of a chain nothing
    is alive but the tensor between them (`hwnas_export.memory`). Where more is alive, as between
    the nodes of a cell, nothing is told of it: `ChainSpace.is_sequential`. That, and the sum of
    weights, is exact in fp32. In other precisions an operator compiled alone also converts its
    input and output, so its figures are upper bounds; `verify` counts the engine itself.

    Args:
        space: The space.
        table: A table of it.

    Raises:
        LatencyTableError: As `LatencyModel`.
    """

    def __init__(self, space: ChainSpace, table: LatencyTable) -> None:
        self.space = space
        try:
            self.latency = LatencyModel(space, table)
        except LatencyTableMiss as error:
            raise _all_missing(space, table, error) from error
        self._table = table

    @functools.cached_property
    def macs(self) -> ChainCost:
        """Multiply-accumulates per image along the chain."""
        return ChainCost(link_arrays(self.space, self.space.macs_of))

    @functools.cached_property
    def params(self) -> ChainCost:
        """Trained parameters along the chain, batch normalization's included."""
        return ChainCost(link_arrays(self.space, self.space.parameters_of))

    @functools.cached_property
    def weights_bytes(self) -> ChainCost:
        """Weights along the chain.

        Raises:
            LatencyTableError: The table does not tell.
        """
        return ChainCost(
            self._links(lambda measured: measured.weights_bytes, "the weights", memory=True)
        )

    @functools.cached_property
    def energy_uj(self) -> ChainCost:
        """Energy along the chain: isolated operators, power at rest included; uncalibrated.

        Raises:
            LatencyTableError: The table does not tell.
        """
        return ChainCost(
            self._links(
                lambda measured: measured.energy.median_uj if measured.energy else None,
                "the energy",
                memory=False,
            )
        )

    @functools.cached_property
    def peak_bytes(self) -> LinkFloats:
        """Peak of live activations of each operator, per link; infinity where refused.

        Raises:
            LatencyTableError: The table does not tell, or the operators of a network do not.
        """
        if not self.space.is_sequential:
            raise LatencyTableError(
                f"the memory of networks of {self.space.spec.name} does not follow from that of "
                "their operators: several tensors are alive between two of them",
                hint="leave out the budget on memory; `hwnas verify` counts that of the engine",
            )
        return self._links(
            lambda measured: measured.peak_activation_bytes, "the peak of activations", memory=True
        )

    def allowed(self, memory_kib: float | None = None) -> LinkMasks:
        """Return which arcs a network may take: those that run, and stay within the memory."""
        if memory_kib is None:
            return self.latency.supported
        return tuple(
            supported & (peak <= memory_kib * KIB)
            for supported, peak in zip(self.latency.supported, self.peak_bytes, strict=True)
        )

    def memory_kib_of(self, genotype: Genotype) -> float:
        """Return a network's peak of live activations."""
        chosen = (0, *self.space.choices(genotype), 0)
        before = (0, *chosen[:-1])
        links = zip(self.peak_bytes, before, chosen, strict=True)
        return max(float(link[i, j]) for link, i, j in links) / KIB

    def memory_range_kib(self) -> tuple[float, float]:
        """Return the least and the greatest peak of a network, over all networks that run."""
        least, most = np.zeros(1), np.zeros(1)
        for peak, supported in zip(self.peak_bytes, self.latency.supported, strict=True):
            least = np.maximum(least[:, None], peak).min(axis=0)
            # From what cannot run, or cannot be reached, nothing follows.
            reached = np.where(supported, np.maximum(most[:, None], peak), -np.inf)
            most = np.where(np.isfinite(most)[:, None], reached, -np.inf).max(axis=0)
        return least.item() / KIB, most.item() / KIB

    def figures(self, genotype: Genotype) -> NetworkFigures:
        """Return what the table says of a network besides its latency."""
        choices = self.space.choices(genotype)
        return NetworkFigures(
            memory_kib=self._if_known(lambda: self.memory_kib_of(genotype)),
            weights_kib=self._if_known(lambda: self.weights_bytes.of(choices) / KIB),
            uncalibrated_energy_mj=self._if_known(lambda: self.energy_uj.of(choices) / UJ_PER_MJ),
        )

    def _if_known(self, figure: Callable[[], float]) -> float | None:
        try:
            return figure()
        except LatencyTableError:
            return None

    def _links(
        self, figure: Callable[[Measurement], float | None], what: str, *, memory: bool
    ) -> LinkFloats:
        table = self._table
        lacking: list[OperatorKey] = []

        def of(key: OperatorKey) -> float:
            if key in table.unsupported:
                return np.inf
            table.latency_us(key)  # complains of an operator that the table lacks
            measured = table.measurements.get(key)  # what is estimated has a latency alone
            value = figure(measured) if measured else None
            if value is None:
                lacking.append(key)
                return np.nan
            return float(value)

        links = link_arrays(self.space, of)
        if lacking:
            header = table.header
            target = header.measured_at
            how, option = "", " --energy"
            if memory:
                how = "memory is counted on targets that compile ONNX models; "
                option = ""
                target = "onnxruntime-cpu" if target.startswith("torch") else target
            shape = ",".join(map(str, self.space.spec.image_shape))
            raise LatencyTableError(
                f"{table.path} does not tell {what} of {len(set(lacking))} operators, "
                f"e.g. {lacking[0]}",
                hint=f"{how}measure into a new table: hwnas profile --space {header.space} "
                f"--target {target} --image-shape {shape} --classes {self.space.spec.classes} "
                f"--batch {header.batch} --threads {header.threads}{option} --out NEW.jsonl",
            )
        return links


def _all_missing(space: ChainSpace, table: LatencyTable, error: LatencyTableMiss) -> Exception:
    """Say of how many operators the table knows nothing, not of the first one alone."""
    keys = [operator.key for operator in space.operators()]
    known = {*table.measurements, *table.unsupported, *table.estimates}
    missing = sum(key not in known for key in keys)
    return LatencyTableMiss(
        f"{table.path} lacks {missing} of {len(keys)} operators of {space.spec.name}: "
        f"{error.message}",
        hint=error.hint,
    )
