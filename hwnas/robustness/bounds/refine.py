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


def refined(value: Bounded, wanted: Tensor) -> Interval:
    """Find intervals of elements by linear bounds; each end is a linear function.

    Where the value is not a linear map's, its interval follows from those before it already.

    Args:
        value: The value.
        wanted: Which of its elements, (elements,), bool; others keep what they have.
    """
    lower, upper = value.interval.lower.flatten(1), value.interval.upper.flatten(1)
    if isinstance(value.step, LinearStep):
        places = wanted.nonzero()[:, 0]
        at_once = max(1, _VALUES // (2 * lower.numel()))
        below, above = [], []
        for some in torch.split(places, at_once):
            units = _units(some, value)
            least, most = lower_bounds(value, torch.cat([units, -units])).chunk(2)  # (S, N) each
            below.append(least)
            above.append(-most)
        lower = lower.index_copy(1, places, torch.cat(below).T)
        upper = upper.index_copy(1, places, torch.cat(above).T)
    return Interval.from_ends(lower.view(value.shape), upper.view(value.shape))


def _units(places: Tensor, value: Bounded) -> Tensor:
    """Return coefficients that pick one element each, (elements, batch, *shape)."""
    like = value.interval.any_tensor
    units = like.new_zeros(len(places), like.shape[1:].numel())
    units[torch.arange(len(places), device=like.device), places] = 1.0
    return units.view(-1, 1, *like.shape[1:]).expand(-1, len(like), *like.shape[1:])
