"""Intervals by linear bounds that go back to the images, for each value of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hwnas.robustness.bounds.backward import lower_bounds
from hwnas.robustness.bounds.interval import Interval
from hwnas.robustness.bounds.steps import LinearStep

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.robustness.bounds.bounded import Bounded

_VALUES = 2**22
"""Coefficients of the layer that are gone back with at once: memory is a few times that."""


def refined(value: Bounded) -> Interval:
    """Find the interval of each element by linear bounds; each end is a linear function.

    Where the value is not a linear map's, its interval follows from those before it already.
    """
    interval = value.interval
    if not isinstance(value.step, LinearStep):
        return interval
    batch, count = value.shape[0], value.shape[1:].numel()
    at_once = max(1, _VALUES // (2 * batch * count))
    lower, upper = [], []
    for start in range(0, count, at_once):
        unit = _units(start, min(start + at_once, count), value)
        below, above = lower_bounds(value, torch.cat([unit, -unit])).chunk(2)  # (S, N) each
        lower.append(below)
        upper.append(-above)
    ends = (torch.cat(each).T.reshape(value.shape) for each in (lower, upper))
    return Interval.from_ends(*ends)


def _units(start: int, stop: int, value: Bounded) -> Tensor:
    """Return coefficients that pick one element each, (elements, batch, *shape)."""
    like = value.interval.any_tensor
    units = like.new_zeros(stop - start, like.shape[1:].numel())
    units[range(stop - start), range(start, stop)] = 1.0
    return units.view(-1, 1, *like.shape[1:]).expand(-1, len(like), *like.shape[1:])
