"""The latency of a genotype, and the expected latency of a supernet, from a latency table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.errors import LatencyTableError, LatencyTableMismatch
from hwnas.latency.costs import ChainCost, link_arrays
from hwnas.latency.in_network import OperatorCosts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hwnas.latency.costs import LinkFloats, LinkMasks
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.genotype import Genotype
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey

_NAMED = 5
"""Refused operators that an error names; the table has them all."""


class LatencyModel:
    """Calibrated latency of every link of a space's chain.

    An operator's cost depends on its own choice and on the one before (its input width), so a
    network's total is an intercept and one table look-up per link, and a supernet's expected
    total is exact: E = intercept + sum over links of p_before^T T p_here. The total is the latency,
    but where a calibration found that large networks take longer than their operators add up to:
    `hwnas.latency.curvature`.

    What the runtime refuses costs infinitely much: no network with it is ever derived, and only in
    an expectation does it count as something finite (see `ChainCost.expected`). A skipped block
    costs nothing.

    Args:
        space: The space.
        table: A table that holds every operator of it, or the runtime's refusal.

    Attributes:
        supported: Which arcs the runtime takes, (options before, options here) per link.

    Raises:
        LatencyTableMismatch: The table was measured for another space.
        LatencyTableMiss: An operator is not in the table.
        LatencyTableError: The runtime refuses so many operators that no network is left.
    """

    def __init__(self, space: ChainSpace, table: LatencyTable) -> None:
        # Estimates are made for the operators of a space, whichever the table was measured for.
        if table.header.space_fingerprint != space.spec.fingerprint and not table.estimates:
            raise LatencyTableMismatch(
                f"{table.path} was measured for another space ({table.header.space}) "
                f"than {space.spec.name}, or for other images or classes",
                hint=f"measure one: hwnas profile --space {space.spec.name} "
                f"--target {table.header.target} --out NEW.jsonl",
            )
        self.space = space
        self.is_calibrated = table.calibration is not None
        self._table = table
        costs = OperatorCosts(table)

        def latency_us(key: OperatorKey) -> float:
            return np.inf if key in table.unsupported else costs.latency_us(key)

        self._cost = ChainCost(
            link_arrays(space, latency_us),
            fixed=costs.intercept_us,
            curvature=costs.curvature_per_us,
        )
        self.supported: LinkMasks = tuple(np.isfinite(link) for link in self.links_us)
        if self._cost.cheapest() is None:
            raise _nothing_left(space, table)

    @property
    def intercept_us(self) -> float:
        """What a call costs that no operator accounts for."""
        return self._cost.fixed

    @property
    def links_us(self) -> LinkFloats:
        """Microseconds per link, (options before, options here); infinity where refused."""
        return self._cost.links

    @property
    def cost_us(self) -> ChainCost:
        """The latency as a cost along the chain, in microseconds."""
        return self._cost

    def predict_ms(self, genotype: Genotype) -> float:
        """Predict a network's latency in milliseconds.

        Raises:
            LatencyTableMiss: The runtime refuses one of its operators.
        """
        total_us = self._cost.of(self.space.choices(genotype))
        if not np.isfinite(total_us):
            for key in self.space.operators_of(genotype):
                self._table.latency_us(key)  # raises for the one that is refused
        return total_us / 1e3

    def range_ms(self, allowed: LinkMasks | None = None) -> tuple[float, float]:
        """Return the latencies of the fastest and of the slowest network, in milliseconds.

        Args:
            allowed: Which arcs may be taken; at least one network must be left.
        """
        ends = self._cost.range(allowed)
        assert ends is not None  # of all arcs, the constructor has seen to it
        return ends[0] / 1e3, ends[1] / 1e3

    def expected_ms(self, probabilities: Sequence[Tensor]) -> Tensor:
        """Compute the expected latency of a supernet whose blocks choose independently.

        Args:
            probabilities: One (options,) distribution per searched block.

        Returns:
            A scalar in milliseconds, differentiable in every distribution.
        """
        return self._cost.expected(probabilities) / 1e3

    @property
    def closed_options(self) -> tuple[str, ...]:
        """Options of searched blocks that no network can take, as the runtime refuses them."""
        open_options = _on_a_path(self.supported)
        return tuple(
            f"{option} of {self.space.block_names[block]}"
            for block, options in enumerate(self.space.options)
            for choice, option in enumerate(options)
            if not open_options[block + 1][choice]
        )


def _on_a_path(masks: LinkMasks) -> list[NDArray[np.bool_]]:
    """Tell of each option of each link whether a path from the first to the last goes through."""
    before = np.ones(1, dtype=np.bool_)
    reached = []
    for mask in masks:
        before = np.asarray((before[:, None] & mask).any(axis=0))
        reached.append(before)
    behind = np.ones(1, dtype=np.bool_)
    open_options = [reached[-1]]
    for mask, own in zip(reversed(masks[1:]), reversed(reached[:-1]), strict=True):
        behind = np.asarray((mask & behind).any(axis=1))
        open_options.append(own & behind)
    return open_options[::-1]


def _nothing_left(space: ChainSpace, table: LatencyTable) -> LatencyTableError:
    refused = list(table.unsupported.items())
    named = "".join(f"\n  {key}: {reason}" for key, reason in refused[:_NAMED])
    more = f"\n  and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
    return LatencyTableError(
        f"no network of {space.spec.name} runs on {table.header.target}: it refuses "
        f"{len(refused)} operators, one at least of which every network has:{named}{more}",
        hint="use another target or precision, or a space without them",
    )
