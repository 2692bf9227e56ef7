"""What an operator takes within a network: the table, its seams, and its calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas_profilers.pairs import seams_us

if TYPE_CHECKING:
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey


class OperatorCosts:
    """Costs that add up to a network's total: intercept_us + sum of `latency_us`.

    The total is the latency, but for the curvature of a calibration: `hwnas.latency.curvature`.

    Args:
        table: A latency table. Without pairs nothing is known of seams, and isolated latencies are
            added up as they are; without a calibration the seams stand as measured.
    """

    def __init__(self, table: LatencyTable) -> None:
        self._table = table
        self._seams_us = seams_us(table.measurements, table.pairs.values())
        calibration = table.calibration
        self._calibrated = dict(calibration.operators_us) if calibration else {}
        self._scale = calibration.scale if calibration else 1.0
        self._per_operator_us = calibration.per_operator_us if calibration else 0.0
        self.intercept_us = calibration.intercept_us if calibration else 0.0
        """Cost that no operator accounts for."""
        self.curvature_per_us = calibration.curvature_per_us if calibration else 0.0

    def prior_us(self, key: OperatorKey) -> float:
        """Return its latency alone less half the seam at each end: what precedes calibration.

        Over a network the halves add up to whole seams. Taken off the operator behind it alone, a
        seam of a large tensor may exceed all that an operator takes which gives a small one.

        Raises:
            LatencyTableMiss: It is not in the table.
        """
        ends_us = [self._seams_us.get(shape, 0.0) for shape in (key.in_shape, key.out_shape)]
        return max(0.0, self._table.latency_us(key) - sum(ends_us) / 2)

    def latency_us(self, key: OperatorKey) -> float:
        """Return what it takes within a network, in microseconds.

        One that the table got after its calibration has the mean correction.

        Raises:
            LatencyTableMiss: It is not in the table.
        """
        prior_us = self.prior_us(key)  # first, as one that is not in the table has no latency
        if key in self._calibrated:
            return self._calibrated[key]
        return max(0.0, self._scale * prior_us + self._per_operator_us)
