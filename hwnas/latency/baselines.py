"""Simpler predictors of a network's latency, to be read beside ours.

| name | latency of a network |
|---|---|
| `sum` | the sum of its operators, each timed alone: what a plain look-up table says |
| `seams` | that sum less the seams between its operators; no network is timed |
| `sum_affine` | intercept + scale * sum, fit to networks |
| `sum_count_affine` | intercept + scale * sum + cost * number of operators, fit to networks |
| `macs_affine` | intercept + scale * multiply-accumulates, fit to networks |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def relative_least_squares(columns: Floats, measured_us: Floats) -> Floats:
    """Fit latency = columns @ coefficients by least squares of relative errors.

    Args:
        columns: (N, C); columns that are no combination of each other where N allows it.
        measured_us: (N,), positive.

    Returns:
        Coefficients, (C,). Of several equally good ones the shortest, as columns are scaled to a
        largest value of one.

    A constant for 1 and 3 is nearer to 1, where an error is a larger share:

    >>> relative_least_squares(np.ones((2, 1)), np.array([1.0, 3.0])).round(3)
    array([1.2])
    """
    units = np.abs(columns).max(axis=0)  # so that MACs in millions make no ill-conditioned system
    units[units == 0] = 1.0
    weighted = columns / units / measured_us[:, None]
    solution = np.linalg.lstsq(weighted, np.ones_like(measured_us), rcond=None)[0]
    return np.asarray(solution / units, dtype=np.float64)


def baseline_predictions(
    *,
    counts: Floats,
    isolated_us: Floats,
    in_network_us: Floats,
    macs: Floats,
    measured_us: Floats,
    counts_new: Floats,
    macs_new: Floats,
) -> dict[str, Floats]:
    """Predict networks by each baseline.

    Args:
        counts: Operator counts of the networks of the fit, (N, K).
        isolated_us: Latency of each operator alone, (K,).
        in_network_us: The same less its share of seams, (K,).
        macs: Multiply-accumulates of the networks of the fit, (N,).
        measured_us: Their latencies, (N,).
        counts_new: Operator counts of the networks to predict, (M, K).
        macs_new: Their multiply-accumulates, (M,).

    Returns:
        Latencies in microseconds, (M,), by name.
    """

    def affine(values: Floats, new: Floats) -> Floats:
        """Fit to the columns of values, (N, C), and predict for those of new, (M, C)."""
        with_one = np.column_stack([np.ones(len(values)), values])
        coefficients = relative_least_squares(with_one, measured_us)
        predicted: Floats = np.column_stack([np.ones(len(new)), new]) @ coefficients
        return predicted

    sums, sums_new = counts @ isolated_us, counts_new @ isolated_us  # (N, K) @ (K,) -> (N,)
    sizes, sizes_new = counts.sum(axis=1), counts_new.sum(axis=1)
    return {
        "sum": sums_new,
        "seams": counts_new @ in_network_us,
        "sum_affine": affine(sums[:, None], sums_new[:, None]),
        "sum_count_affine": affine(
            np.column_stack([sums, sizes]), np.column_stack([sums_new, sizes_new])
        ),
        "macs_affine": affine(macs[:, None], macs_new[:, None]),
    }
