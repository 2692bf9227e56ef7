"""Linear bounds, propagated backward through a graph of bounded values."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import torch

from hwnas.robustness.bounds.steps import dot, folded, unfolded

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hwnas.robustness.bounds.bounded import Bounded

_SHARES = {torch.float32: 2.0**-16, torch.float64: 2.0**-40}


def rounding_share(dtype: torch.dtype) -> float:
    """Return by what share of the magnitudes that are summed a bound is lowered, for rounding."""
    return _SHARES[dtype]


def lower_bounds(
    value: Bounded,
    coefficients: Tensor,
    *,
    stops_at: Callable[[Bounded], bool] = lambda _: False,
) -> Tensor:
    """Bound linear functions of a value from below.

    They are rewritten step by step as linear functions of what the value was computed from, up to
    the images, and there bounded by the intervals. Paths that meet again are added before that, so
    what they have in common cancels.

    Args:
        value: The value.
        coefficients: (functions, batch, *shape)
        stops_at: Where not to go further back, but to take a value's interval.

    Returns:
        (functions, batch)
    """
    found = coefficients.new_zeros(coefficients.shape[:2])
    share = rounding_share(coefficients.dtype)
    pending = {value.place: (value, coefficients)}
    latest = [-value.place]
    while latest:
        # The latest first: all that depends on it has been gone through.
        current, weights = pending.pop(-heapq.heappop(latest))
        if current.step is None or stops_at(current):
            found = found + _least(weights, current)
            continue
        parts, constants = current.step.pull_back(weights)
        found = found + constants - share * constants.abs()
        for source, part in zip(current.step.inputs, parts, strict=True):
            if source.place in pending:
                part = part + pending[source.place][1]
            else:
                heapq.heappush(latest, -source.place)
            pending[source.place] = (source, _channels_last(part))
    return found


def _channels_last(coefficients: Tensor) -> Tensor:
    """Keep features, (S, N, C, H, W), in the layout in which transposed convolutions are fast."""
    if coefficients.ndim != 5:
        return coefficients
    flat = folded(coefficients).contiguous(memory_format=torch.channels_last)
    return unfolded(flat, len(coefficients))


def _least(coefficients: Tensor, value: Bounded) -> Tensor:
    """Return the least that linear functions of a value are over its interval, (S, N)."""
    center, radius = value.interval.center, value.interval.radius
    share = rounding_share(center.dtype)
    widened = radius + share * (center.abs() + radius)
    return dot(coefficients, center) - dot(coefficients.abs(), widened)
