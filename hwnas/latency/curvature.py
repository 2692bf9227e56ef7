"""What a sum of operators costs in a network so large that they get into each other's way.

    latency = total + curvature * total^2,    total = intercept + sum over operators

A network that is larger than a core's cache waits for its weights and tensors, and the more so the
larger it is: what it takes grows faster than the sum of its operators. The sum itself is kept, so
that all that follows from it (exact derivation, fronts, gradients) stays exact: a bound on the
latency is one on the total. Without curvature both are the same, to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


# Infinity, of what cannot run, must not meet a curvature of zero: their product is no number.
_MOST = 1e300


def bent(total: float | Floats, curvature: float | Floats) -> Floats:
    """Return the latency of totals. One below zero, which an intercept can make, stays as it is.

    Args:
        total: Intercept and operators, added up; infinity stays.
        curvature: Not negative, in one over the unit of the total.
    """
    latency: Floats = np.asarray(total) * (1.0 + curvature * np.clip(total, 0.0, _MOST))
    return latency


def straight(latency: float | Floats, curvature: float | Floats) -> Floats:
    """Return the total that has a latency: the inverse of `bent`."""
    # The root as a quotient, since the usual form cancels where the curvature is small.
    root = np.sqrt(1.0 + 4.0 * curvature * np.clip(latency, 0.0, _MOST))
    total: Floats = np.asarray(latency) * (2.0 / (1.0 + root))
    return total
