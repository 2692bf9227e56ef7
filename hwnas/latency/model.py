"""The latency of a genotype, and the expected latency of a supernet, from a latency table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from hwnas.core.errors import LatencyTableMismatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hwnas.space.channel_space import ChannelSpace
    from hwnas.space.genotype import Genotype
    from hwnas_profilers.table import LatencyTable


class LatencyModel:
    """Calibrated latency of every link of a space's chain.

    An operator's cost depends on its own choice and on the one before (its input width), so a
    network's latency is an intercept and one table look-up per link, and a supernet's expected
    latency is exact: E = intercept + sum over links of p_before^T T p_here.

    Args:
        space: The space.
        table: A table that holds every operator of it.

    Raises:
        LatencyTableMismatch: The table was measured for another space.
        LatencyTableMiss: An operator is not in the table.
    """

    def __init__(self, space: ChannelSpace, table: LatencyTable) -> None:
        if table.header.space_fingerprint != space.spec.fingerprint:
            raise LatencyTableMismatch(
                f"{table.path} was measured for another space ({table.header.space}) "
                f"than {space.spec.name}, or for other images or classes",
                hint=f"measure one: hwnas profile --space {space.spec.name} "
                f"--target {table.header.target} --out NEW.jsonl",
            )
        self.space = space
        calibration = table.calibration
        self.is_calibrated = calibration is not None
        scale = calibration.scale if calibration else 1.0
        corrections = dict(calibration.corrections_us) if calibration else {}
        self.intercept_us = calibration.intercept_us if calibration else 0.0
        # One (options before, options here) array of microseconds per link.
        self.links_us: tuple[NDArray[np.float64], ...] = tuple(
            np.array(
                [
                    [scale * table.latency_us(key) + corrections.get(key, 0.0) for key in row]
                    for row in link
                ]
            )
            for link in space.transitions
        )
        self._tensors: tuple[Tensor, ...] | None = None

    def predict_ms(self, genotype: Genotype) -> float:
        """Predict a network's latency in milliseconds."""
        chosen = (0, *self.space.choices(genotype), 0)
        before = (0, *chosen[:-1])
        links = zip(self.links_us, before, chosen, strict=True)
        total_us = self.intercept_us + sum(float(link[i, j]) for link, i, j in links)
        return total_us / 1e3

    def range_ms(self) -> tuple[float, float]:
        """Return the latencies of the fastest and of the slowest network, in milliseconds.

        Found over all networks by dynamic programming, since the narrowest need not be the fastest.
        """
        fastest = np.zeros(1)
        slowest = np.zeros(1)
        for link in self.links_us:
            fastest = (fastest[:, None] + link).min(axis=0)
            slowest = (slowest[:, None] + link).max(axis=0)
        low, high = fastest.item(), slowest.item()
        return (self.intercept_us + low) / 1e3, (self.intercept_us + high) / 1e3

    def expected_ms(self, probabilities: Sequence[Tensor]) -> Tensor:
        """Compute the expected latency of a supernet whose blocks choose independently.

        Args:
            probabilities: One (options,) distribution per searched block.

        Returns:
            A scalar in milliseconds, differentiable in every distribution.
        """
        first = probabilities[0]
        links = self._tensors
        if links is None or (links[0].device, links[0].dtype) != (first.device, first.dtype):
            links = self._tensors = tuple(
                torch.as_tensor(link, dtype=first.dtype, device=first.device)
                for link in self.links_us
            )
        certain = first.new_ones(1)
        chain = (certain, certain, *probabilities, certain)
        total_us = first.new_tensor(self.intercept_us)
        for link, before, here in zip(links, chain[:-1], chain[1:], strict=True):
            total_us = total_us + before @ link @ here
        return total_us / 1e3
